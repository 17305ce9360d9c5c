#include "model/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "model/draft.h"
#include "model/engine_impl.h"

enum { MAX_GROUP = 1024 }; /* sequences of one step */

struct seq {
    struct engine_request q;
    int64_t handle, place;
    int32_t *text;           /* prompt and what came; all but the last is in the cache */
    size_t n, cap;
    struct draft *draft;
    struct engine_result result;
    double submitted, started;
    bool cancelled, over;
    struct seq *next;        /* waiting */
};

struct engine {
    struct model *m;
    const struct tok *tok;
    struct engine_way way;
    int64_t max_batch, max_tokens, vocab, last_handle;
    struct seq **place;      /* [max_batch]; NULL: free */
    struct seq *first, **last; /* waiting */
    int64_t n_active, n_waiting;
    struct engine_column *col; /* of a step */
    struct engine_choice *choice;
    int32_t *chosen;
    uint32_t *mask;
    struct draft *experience; /* of the sequence that ended last: the next one's draft goes on from it */
    struct engine_timing timing;
    struct draft_cost cost;
};

/* ---- choosing on the CPU: the same rule as sample_kernel() of kernels/decode.cu ---- */

static uint32_t draw(uint64_t seed, uint32_t place, uint32_t id)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (((uint64_t)place << 32 | id) + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static bool allowed(const struct engine_choice *c, int64_t i)
{
    return !c->mask || (c->mask[i >> 5] >> (i & 31) & 1);
}

static int by_logit(const void *a, const void *b, void *logits)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    const float *v = logits;
    return v[x] > v[y] ? -1 : v[x] < v[y] ? 1 : x < y ? -1 : 1;
}

int32_t engine_pick(const float *v, int64_t vocab, const struct engine_choice *c, uint32_t *scratch)
{
    int64_t best = -1, n = 0;
    for (int64_t i = 0; i < vocab; i++)
        if (allowed(c, i) && v[i] > (best < 0 ? -INFINITY : v[best])) /* never NaN */
            best = i;
    if (best < 0 || isinf(v[best]))
        return -1;
    if (c->s.temperature <= 0)
        return (int32_t)best;
    float f = 1 / (float)c->s.temperature, top = v[best];
    for (int64_t i = 0; i < vocab; i++) /* what is e^-32 below the best is never chosen */
        if (allowed(c, i) && (top - v[i]) * f < 32)
            scratch[n++] = (uint32_t)i;
    bool nucleus = c->s.top_p > 0 && c->s.top_p < 1;
    if (nucleus || c->s.top_k > 0) {
        double total = 0, part = 0;
        int64_t keep = 0;
        qsort_r(scratch, (size_t)n, sizeof *scratch, by_logit, (void *)(uintptr_t)v);
        for (int64_t i = 0; i < n; i++)
            total += exp((v[scratch[i]] - top) * f);
        while (keep < n && !(c->s.top_k > 0 && keep >= c->s.top_k) && !(nucleus && part >= c->s.top_p * total))
            part += exp((v[scratch[keep++]] - top) * f);
        n = keep;
    }
    float most = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        float u = ((float)(draw(c->s.seed, (uint32_t)c->at, scratch[i]) >> 8) + 0.5f) * 0x1p-24f;
        float y = (v[scratch[i]] - top) * f - logf(-logf(u));
        if (y > most || (y == most && (int64_t)scratch[i] < best)) {
            most = y;
            best = scratch[i];
        }
    }
    return (int32_t)best;
}

void engine_learn_cost(struct engine_timing *k, int64_t n, double t, struct draft_cost *cost)
{
    if (k->w > 8 && t > 4 * k->t / k->w) /* something else ran */
        return;
    double keep = 0.99, x = (double)n;
    *k = (struct engine_timing){keep * k->w + 1, keep * k->n + x, keep * k->t + t, keep * k->nn + x * x, keep * k->nt + x * t};
    double spread = k->w * k->nn - k->n * k->n, mean = k->t / k->w;
    if (k->w < 16 || spread < k->w * k->w) /* too little to tell */
        return;
    double column = (k->w * k->nt - k->n * k->t) / spread, most = mean * k->w / k->n;
    column = column > 0.001 * mean ? column < most ? column : most : 0.001 * mean;
    cost->pass = mean - column * k->n / k->w;
    cost->column = column;
}

/* ---- sequences ---- */

static void seq_free(struct seq *s)
{
    if (!s)
        return;
    draft_free(s->draft);
    free(s->text);
    free(s);
}

static void finish(struct engine *e, struct seq *s, enum engine_finish why)
{
    s->result.finish = why;
    s->result.decode_s = s->started > 0 ? now_s() - s->started : 0;
    if (s->draft) {
        draft_free(e->experience);
        e->experience = s->draft;
        s->draft = NULL;
    }
    if (s->place >= 0) {
        e->way.release(&e->way, s->place);
        e->place[s->place] = NULL;
        e->n_active--;
    }
    if (s->q.done)
        s->q.done(s->q.ctx, &s->result);
    seq_free(s);
}

static int64_t left_of(const struct engine *e, const struct seq *s)
{
    int64_t room = e->max_tokens - (int64_t)s->n, more = s->q.max_new - s->result.tokens;
    return room < more ? room : more;
}

/* Takes a token; false when the sequence is over (result.finish says how). */
static bool emit(struct engine *e, struct seq *s, int32_t id)
{
    ARRAY_GROW(s->text, s->cap, s->n + 1);
    s->text[s->n++] = id;
    s->result.tokens++;
    if (s->draft)
        draft_add(s->draft, id);
    if (s->q.mask)
        s->q.mask->take(s->q.mask->ctx, id);
    s->result.finish = ENGINE_STOP;
    if ((s->q.token && !s->q.token(s->q.ctx, id)) || (s->q.mask && s->q.mask->done(s->q.mask->ctx)))
        return false;
    s->result.finish = ENGINE_LENGTH;
    return left_of(e, s) > 0;
}

int engine_submit(struct engine *e, const struct engine_request *r, int64_t *handle)
{
    if (!r->n_prompt)
        return err_set(ERR_USAGE, "an empty prompt");
    if ((int64_t)r->n_prompt >= e->max_tokens)
        return err_set(ERR_USAGE, "the prompt has %zu tokens, the context %lld: no room for an answer", r->n_prompt, (long long)e->max_tokens);
    for (size_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= e->m->cfg.vocab)
            return err_set(ERR_FORMAT, "token id %d is outside the model's vocabulary of %lld: tokenizer and model do not fit", r->prompt[i],
                           (long long)e->m->cfg.vocab);
    struct seq *s = xcalloc(1, sizeof *s);
    s->q = *r;
    s->q.prompt = NULL;
    s->q.max_new = r->max_new > 0 ? r->max_new : e->max_tokens;
    s->cap = s->n = r->n_prompt;
    s->text = xmalloc(s->n * sizeof *s->text);
    memcpy(s->text, r->prompt, s->n * sizeof *s->text);
    s->handle = ++e->last_handle;
    s->place = -1;
    s->submitted = now_s();
    if (handle)
        *handle = s->handle;
    *e->last = s;
    e->last = &s->next;
    e->n_waiting++;
    return ERR_OK;
}

void engine_cancel(struct engine *e, int64_t handle)
{
    for (struct seq *s = e->first; s; s = s->next)
        s->cancelled |= s->handle == handle;
    for (int64_t i = 0; i < e->max_batch; i++)
        if (e->place[i])
            e->place[i]->cancelled |= e->place[i]->handle == handle;
}

static void drop_cancelled(struct engine *e)
{
    for (struct seq **p = &e->first; *p;) {
        struct seq *s = *p;
        if (!s->cancelled) {
            p = &s->next;
            continue;
        }
        *p = s->next;
        e->n_waiting--;
        finish(e, s, ENGINE_CANCELLED); /* may submit: the list's end is found again below */
    }
    e->last = &e->first;
    while (*e->last)
        e->last = &(*e->last)->next;
    for (int64_t i = 0; i < e->max_batch; i++)
        if (e->place[i] && e->place[i]->cancelled)
            finish(e, e->place[i], ENGINE_CANCELLED);
}

/* Gives waiting sequences places, in their order, while there is room. */
static int admit(struct engine *e)
{
    int64_t at = 0;
    while (e->first) {
        struct seq *s = e->first;
        while (at < e->max_batch && e->place[at])
            at++;
        if (at == e->max_batch)
            return ERR_OK;
        int64_t need = (int64_t)s->n + s->q.max_new;
        int rc = e->way.reserve(&e->way, at, need < e->max_tokens ? need : e->max_tokens);
        if (rc == 0 && !e->n_active)
            return err_set(ERR_NOMEM, "no memory for the keys and values of %lld tokens: lower --max-new-tokens", (long long)need);
        if (rc <= 0)
            return rc;
        if (!(e->first = s->next))
            e->last = &e->first;
        s->next = NULL;
        e->n_waiting--;
        e->n_active++;
        e->place[at] = s;
        s->place = at;
        double t = now_s();
        s->result.wait_s = t - s->submitted;
        if (s->n > 1 && (rc = e->way.prefill(&e->way, at, s->text, s->n - 1)) < 0)
            return rc;
        if (s->q.draft > 0 && e->way.max_a_place > 1) {
            s->draft = draft_new(e->tok, e->experience);
            for (size_t i = 0; i < s->n; i++)
                draft_add(s->draft, s->text[i]);
        }
        s->started = now_s();
        s->result.prefill_s = s->started - t;
    }
    return ERR_OK;
}

/* The next columns of s: its last token and what is guessed to follow. */
static int64_t columns(struct engine *e, struct seq *s, int64_t most, struct engine_column *c)
{
    int64_t n = 1, left = left_of(e, s);
    int32_t guess[64];
    c[0] = (struct engine_column){(int32_t)s->place, s->text[s->n - 1], (int32_t)s->n - 1};
    most = most < e->way.max_a_place ? most : e->way.max_a_place;
    most = most < left ? most : left; /* the last column's token is the last there is room for */
    most = most < s->q.draft + 1 ? most : s->q.draft + 1;
    if (s->draft && most > 1) {
        n += (int64_t)draft_guess(s->draft, guess, (size_t)(most - 1 < 64 ? most - 1 : 64),
                                  &(struct draft_cost){.pass = e->cost.pass / (double)e->n_active, .column = e->cost.column,
                                                       .wide = e->n_active == 1 ? e->way.wide : NULL});
        for (int64_t i = 1; i < n; i++)
            c[i] = (struct engine_column){(int32_t)s->place, guess[i - 1], c[0].pos + (int32_t)i};
        s->result.drafted += n - 1;
    }
    return n;
}

/* A second choice among what the mask allows. */
static int choose_masked(struct engine *e, struct seq *s, int64_t column, int32_t *id)
{
    const struct token_mask *k = s->q.mask;
    struct engine_choice c = {.s = s->q.sampling, .at = s->result.tokens, .mask = e->mask};
    memset(e->mask, 0, (size_t)((e->m->cfg.vocab + 31) / 32 + 1) * sizeof *e->mask);
    k->fill(k->ctx, left_of(e, s), e->mask);
    s->result.changed++;
    return e->way.choose(&e->way, column, 1, &c, id);
}

/* Takes what a step chose for the columns of s: up to the first that a guess got wrong. */
static int take(struct engine *e, struct seq *s, int64_t at, int64_t n)
{
    int rc = ERR_OK;
    s->result.steps++;
    for (int64_t i = 0; i < n && !s->over; i++) {
        int32_t id = e->chosen[at + i];
        const struct token_mask *k = s->q.mask;
        if (id >= 0 && k && k->allows && !k->allows(k->ctx, id, left_of(e, s)) && (rc = choose_masked(e, s, at + i, &id)) < 0)
            return rc;
        if (id < 0) {
            s->result.finish = ENGINE_NOT_FINITE;
            s->over = true;
            break;
        }
        s->over = !emit(e, s, id);
        if (s->over || i + 1 == n || id != e->col[at + i + 1].token)
            break;
        s->result.accepted++;
    }
    return ERR_OK;
}

static int step_group(struct engine *e, struct seq **v, int64_t n_seqs)
{
    int64_t n = 0, from[MAX_GROUP + 1];
    bool logits = false;
    int64_t each = e->way.max_columns / n_seqs;
    for (int64_t i = 0; i < n_seqs; i++) {
        from[i] = n;
        n += columns(e, v[i], each, e->col + n);
        logits |= v[i]->q.mask || v[i]->q.sampling.temperature > 0;
        for (int64_t k = from[i]; k < n; k++)
            e->choice[k] = (struct engine_choice){.s = v[i]->q.sampling, .at = v[i]->result.tokens + k - from[i]};
    }
    from[n_seqs] = n;
    double t = now_s();
    int rc = e->way.step(&e->way, e->col, n, logits);
    if (rc == ERR_OK)
        rc = e->way.choose(&e->way, 0, n, e->choice, e->chosen);
    engine_learn_cost(&e->timing, draft_wide(e->way.wide, n), now_s() - t, &e->cost);
    for (int64_t i = 0; i < n_seqs && rc == ERR_OK; i++)
        rc = take(e, v[i], from[i], from[i + 1] - from[i]);
    return rc;
}

int engine_step(struct engine *e)
{
    drop_cancelled(e);
    int rc = admit(e);
    struct seq *v[MAX_GROUP];
    int64_t most = e->way.max_columns < MAX_GROUP ? e->way.max_columns : MAX_GROUP;
    for (int64_t i = 0; i < e->max_batch && rc == ERR_OK;) {
        int64_t n = 0;
        for (; i < e->max_batch && n < most; i++)
            if (e->place[i])
                v[n++] = e->place[i];
        if (n > 0)
            rc = step_group(e, v, n);
    }
    if (rc < 0)
        return rc;
    for (int64_t i = 0; i < e->max_batch; i++)
        if (e->place[i] && e->place[i]->over)
            finish(e, e->place[i], e->place[i]->result.finish);
    return e->n_active || e->n_waiting;
}

/* ---- through ATen's operators ---- */

struct aten {
    struct model *m;
    struct kv_cache *kv;
    float *logits;           /* [rows, vocab] */
    int32_t *ids, *row;      /* row: of each column of the last step */
    uint32_t *scratch;
    int64_t vocab;
};

static int aten_reserve(struct engine_way *w, int64_t place, int64_t n)
{
    struct aten *a = w->state;
    a->kv->length[place] = 0;
    return n <= a->kv->capacity;
}

static void aten_release(struct engine_way *w, int64_t place)
{
    struct aten *a = w->state;
    a->kv->length[place] = 0;
}

static int aten_prefill(struct engine_way *w, int64_t place, const int32_t *ids, size_t n)
{
    struct aten *a = w->state;
    size_t scope = th_scope_begin();
    int rc = model_prefill(a->m, a->kv, place, ids, n) ? ERR_OK : err_code();
    th_scope_end(scope);
    return rc;
}

static int aten_step(struct engine_way *w, const struct engine_column *c, int64_t n, bool logits)
{
    struct aten *a = w->state;
    int64_t rows = c[n - 1].place + 1, k = 0;
    (void)logits;
    for (int64_t r = 0; r < rows; r++) {
        bool here = k < n && c[k].place == r;
        a->ids[r] = here ? c[k].token : 0;
        if (here)
            a->row[k++] = (int32_t)r;
        else
            a->kv->length[r] = 0; /* an idle row decodes into its own first place */
    }
    size_t scope = th_scope_begin();
    th_tensor *y = model_decode(a->m, a->kv, rows, a->ids);
    int rc = y ? th_read(y, a->logits) : err_code();
    th_scope_end(scope);
    return rc;
}

static int aten_choose(struct engine_way *w, int64_t from, int64_t n, const struct engine_choice *c, int32_t *out)
{
    struct aten *a = w->state;
    for (int64_t i = 0; i < n; i++)
        out[i] = engine_pick(a->logits + a->row[from + i] * a->m->cfg.vocab, a->vocab, &c[i], a->scratch);
    return ERR_OK;
}

static int aten_logits(struct engine_way *w, int64_t column, float *out)
{
    struct aten *a = w->state;
    memcpy(out, a->logits + a->row[column] * a->m->cfg.vocab, (size_t)a->m->cfg.vocab * sizeof *out);
    return ERR_OK;
}

static void aten_free(struct engine_way *w)
{
    struct aten *a = w->state;
    kv_cache_free(a->kv);
    free(a->logits);
    free(a->ids);
    free(a->row);
    free(a->scratch);
    free(a);
}

int engine_aten(struct model *m, const struct engine_options *o, struct engine_way *out)
{
    struct aten *a = xcalloc(1, sizeof *a);
    int64_t n = o->max_batch ? o->max_batch : 1, tokens = o->max_tokens ? o->max_tokens : m->cfg.max_positions;
    a->m = m;
    a->vocab = o->vocab ? o->vocab : m->cfg.vocab;
    a->logits = xmalloc((size_t)(n * m->cfg.vocab) * sizeof *a->logits);
    a->ids = xcalloc((size_t)n, sizeof *a->ids);
    a->row = xcalloc((size_t)n, sizeof *a->row);
    a->scratch = xcalloc((size_t)m->cfg.vocab, sizeof *a->scratch);
    *out = (struct engine_way){.name = "aten", .max_columns = n, .max_a_place = 1, .state = a, .reserve = aten_reserve,
                               .release = aten_release, .prefill = aten_prefill, .step = aten_step, .choose = aten_choose,
                               .logits = aten_logits, .free = aten_free};
    int rc = kv_cache_new(m, n, tokens, &a->kv);
    if (rc < 0) {
        aten_free(out);
        *out = (struct engine_way){0};
        return err_wrap("a cache for %lld sequences of %lld tokens: lower --batch or --max-new-tokens", (long long)n, (long long)tokens);
    }
    out->cache_bytes = (size_t)(n * tokens * m->cfg.n_kv_heads * m->cfg.head_dim * m->cfg.n_layers * 2) * th_dtype_size(m->dtype);
    return ERR_OK;
}

/* ---- the engine ---- */

int engine_new(struct model *m, const struct engine_options *o, struct engine **out)
{
    struct engine *e = xcalloc(1, sizeof *e);
    int rc = ERR_OK;
    *out = NULL;
    e->m = m;
    e->tok = o->tok;
    e->max_batch = o->max_batch > 0 ? o->max_batch : 1;
    e->max_tokens = o->max_tokens > 0 && o->max_tokens < m->cfg.max_positions ? o->max_tokens : m->cfg.max_positions;
    e->vocab = o->vocab > 0 ? o->vocab : m->cfg.vocab;
    e->last = &e->first;
    e->cost = (struct draft_cost){.pass = 1, .column = 0.02};
    struct engine_options k = *o;
    k.max_batch = e->max_batch;
    k.max_tokens = e->max_tokens;
    k.vocab = e->vocab;
    if (!o->plain)
        rc = engine_cuda(m, &k, &e->way);
    if (!o->plain && rc == ERR_OK && !e->way.name)
        rc = engine_cpu(m, &k, &e->way);
    if (rc == ERR_OK && !e->way.name)
        rc = engine_aten(m, &k, &e->way);
    if (rc < 0) {
        free(e);
        return rc;
    }
    size_t most = (size_t)(e->way.max_columns > 64 ? e->way.max_columns : 64);
    e->place = xcalloc((size_t)e->max_batch, sizeof *e->place);
    e->col = xcalloc(most, sizeof *e->col);
    e->choice = xcalloc(most, sizeof *e->choice);
    e->chosen = xcalloc(most, sizeof *e->chosen);
    e->mask = xcalloc((size_t)m->cfg.vocab / 32 + 2, sizeof *e->mask);
    *out = e;
    return ERR_OK;
}

void engine_free(struct engine *e)
{
    if (!e)
        return;
    for (int64_t i = 0; i < e->max_batch; i++)
        seq_free(e->place[i]);
    while (e->first) {
        struct seq *s = e->first;
        e->first = s->next;
        seq_free(s);
    }
    e->way.free(&e->way);
    draft_free(e->experience);
    free(e->place);
    free(e->col);
    free(e->choice);
    free(e->chosen);
    free(e->mask);
    free(e);
}

struct engine_way *engine_way_of(struct engine *e)
{
    return &e->way;
}

void engine_info(const struct engine *e, struct engine_info *out)
{
    *out = (struct engine_info){.way = e->way.name, .weight_bytes = e->way.weight_bytes, .cache_bytes = e->way.cache_bytes,
                                .max_batch = e->max_batch, .max_tokens = e->max_tokens, .active = e->n_active, .waiting = e->n_waiting};
}
