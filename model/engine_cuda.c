/* engine_cuda.c: the engine's way over kernels/decode.cu: knows where the weights are, keeps the pages, starts the steps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/decode.h"
#include "lib/err.h"
#include "lib/mem.h"
#include "model/engine_impl.h"
#include "shim/kernels.h"

#define FUNCTIONS(F) \
    F(k_decode_device) F(k_decode_max_cols) F(k_decode_rows) F(k_decode_bytes) F(k_decode_pack) F(k_decode_fill) F(k_decode_plan) \
    F(k_decode_step) F(k_decode_plan_free) F(k_decode_kernels) F(k_decode_sample) F(k_host_alloc) F(k_host_free) F(k_copy) F(k_wait)

struct functions {
#define F(name) __typeof__(name) *name;
    FUNCTIONS(F)
#undef F
};

struct place {
    int32_t *pages;
    int64_t n;
};

/* Steps of up to so many columns have plans of their own. */
static const int columns[] = {1, 8, 16, 32, 0};
enum { COLS = ARRAY_LEN(columns) - 1 };
enum { ATTEND_BLOCKS = 3 };           /* of a multiprocessor */
#define MOST_KERNELS(layers) (2 + 6 * (layers)) /* of a plan */

struct cuda {
    struct model *m;
    struct functions f;
    struct dk_model dm;
    struct dk_work work;
    enum th_device device;
    int many;
    struct dk_layer *layers;
    void *plan[COLS][DK_WAYS];
    int sms, smem, nc;                /* nc and way: of the last step */
    enum dk_way way;
    int64_t max_pages, n_pages, n_free;
    int32_t *free_pages;
    struct place *places;
    int64_t n_places;
    th_tensor **held;                 /* the device's memory, freed with the engine */
    size_t n_held, cap_held;
    struct dk_step *step;             /* page-locked */
    struct dk_sampling *sampling;     /* page-locked, [DK_MAX_COLS] */
    int32_t *chosen, *page_list;      /* page-locked; page_list: the device's copy for prompts */
    uint32_t *mask, *mask_device;     /* [DK_MAX_COLS][words] */
    int mask_words;
    size_t bytes;
};

static void *stream_of(const struct cuda *c)
{
    return c->device == TH_CUDA ? kernel_stream() : NULL;
}

/* ---- memory ---- */

static void *hold(struct cuda *c, size_t bytes)
{
    int64_t n = (int64_t)(bytes + 255) / 256 * 256;
    size_t scope = th_scope_begin();
    th_tensor *t = th_keep(th_zeros(1, &n, TH_U8, c->device));
    th_scope_end(scope);
    if (!t)
        return NULL;
    ARRAY_GROW(c->held, c->cap_held, c->n_held + 1);
    c->held[c->n_held++] = t;
    c->bytes += (size_t)n;
    return th_data(t);
}

static void *upload(struct cuda *c, const void *data, size_t bytes)
{
    void *p = hold(c, bytes);
    return p && c->f.k_copy(stream_of(c), p, data, bytes) == 0 && c->f.k_wait(stream_of(c)) == 0 ? p : NULL;
}

static int check(const char *name, int rc)
{
    return kernel_check(name, rc);
}

/* ---- weights ---- */

/* True when the kernels can read t where it is: bfloat16, rows at 16 bytes. */
static bool readable(const struct param *p)
{
    return !p || (th_dtype_of(p->w) == TH_BF16 && (th_rank(p->w) == 1 || (th_size(p->w, 1) % 8 == 0 && th_stride(p->w, 0) % 8 == 0 && (uintptr_t)th_data(p->w) % 16 == 0)));
}

static bool all_readable(const struct model *m)
{
    bool ok = readable(m->embed) && readable(m->head) && readable(m->norm);
    for (int64_t i = 0; i < m->cfg.n_layers; i++) {
        const struct layer *l = &m->layers[i];
        ok &= readable(l->norm1) && readable(l->norm2);
        for (int t = 0; t < LORA_TARGETS; t++)
            ok &= readable(l->proj[t].w) && readable(l->proj[t].b) && readable(l->proj[t].lora_a) &&
                  (!l->proj[t].lora_b || th_dtype_of(l->proj[t].lora_b->w) == TH_BF16);
    }
    return ok;
}

/* The e4m3 copy of a product's matrices takes their place in w. */
static int pack(struct cuda *c, enum dk_kind kind, const void **w, int64_t pitch, const float **scale)
{
    void *copy = hold(c, (size_t)c->f.k_decode_bytes(&c->dm, kind));
    float *s = copy ? hold(c, (size_t)c->f.k_decode_rows(&c->dm, kind) * sizeof *s) : NULL;
    if (!s)
        return err_wrap("a copy of the weights in 8 bits");
    int rc = check("k_decode_pack", c->f.k_decode_pack(stream_of(c), &c->dm, kind, w, pitch, copy, s));
    w[0] = copy;
    *scale = s;
    return rc;
}

static int weights(struct cuda *c, bool fp8)
{
    struct model *m = c->m;
    struct dk_model *d = &c->dm;
    int rc = ERR_OK;
    c->layers = xcalloc((size_t)d->layers, sizeof *c->layers);
    d->layer = c->layers;
    d->embed = th_data(m->embed->w);
    d->head = th_data(m->head->w);
    d->norm = th_data(m->norm->w);
    d->fp8 = fp8;
    for (int64_t i = 0; i < d->layers && rc == ERR_OK; i++) {
        const struct linear *p = m->layers[i].proj;
        struct dk_layer *l = &c->layers[i];
        l->norm1 = th_data(m->layers[i].norm1->w);
        l->norm2 = th_data(m->layers[i].norm2->w);
        for (int t = 0; t < 3; t++) {
            l->qkv[t] = th_data(p[LORA_Q + t].w->w);
            l->bias[t] = m->cfg.attention_bias ? th_data(p[LORA_Q + t].b->w) : NULL;
        }
        l->out = th_data(p[LORA_O].w->w);
        l->gate_up[0] = th_data(p[LORA_GATE].w->w);
        l->gate_up[1] = th_data(p[LORA_UP].w->w);
        l->down = th_data(p[LORA_DOWN].w->w);
        for (int t = 0; t < LORA_TARGETS; t++) {
            static const struct { enum dk_kind kind; int matrix; } of[LORA_TARGETS] = {
                [LORA_Q] = {DK_QKV, 0}, [LORA_K] = {DK_QKV, 1}, [LORA_V] = {DK_QKV, 2}, [LORA_O] = {DK_OUT, 0},
                [LORA_GATE] = {DK_GATE_UP, 0}, [LORA_UP] = {DK_GATE_UP, 1}, [LORA_DOWN] = {DK_DOWN, 0}};
            l->pitch[of[t].kind] = (int32_t)th_stride(p[t].w->w, 0); /* beside an adapter's columns it is not the row's length */
            if (p[t].lora_a) {
                l->a[of[t].kind][of[t].matrix] = th_data(p[t].lora_a->w);
                l->b[of[t].kind][of[t].matrix] = th_data(p[t].lora_b->w);
            }
        }
        const void **const matrices[DK_HEAD] = {[DK_QKV] = l->qkv, [DK_OUT] = &l->out, [DK_GATE_UP] = l->gate_up, [DK_DOWN] = &l->down};
        for (int k = 0; fp8 && k < DK_HEAD && rc == ERR_OK; k++)
            rc = pack(c, (enum dk_kind)k, matrices[k], l->pitch[k], &l->scale[k]);
    }
    return fp8 && rc == ERR_OK ? pack(c, DK_HEAD, &d->head, d->d, &d->head_scale) : rc;
}

/* RoPE's angles. */
static int angles(struct cuda *c, int64_t positions)
{
    struct dk_model *d = &c->dm;
    int64_t half = d->hd / 2;
    float *rope = xcalloc((size_t)(positions * d->hd), 4), *f = xcalloc((size_t)half, 4);
    model_rope_frequencies(&c->m->cfg, f);
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < half; i++) {
            float a = i < d->head_dim / 2 ? (float)p * f[i] : 0;
            rope[(p * half + i) * 2] = cosf(a);
            rope[(p * half + i) * 2 + 1] = sinf(a);
        }
    d->rope = upload(c, rope, (size_t)(positions * d->hd) * 4);
    free(rope);
    free(f);
    return d->rope ? ERR_OK : err_code();
}

static int64_t pad(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

static int scratch(struct cuda *c)
{
    struct dk_model *d = &c->dm;
    struct dk_work *w = &c->work;
    size_t n = DK_MAX_COLS, kd = (size_t)pad(d->d, 64), kq = (size_t)pad(d->heads * d->head_dim, 64), kf = (size_t)pad(d->ff, 64);
    size_t rows = (size_t)c->f.k_decode_rows(d, DK_HEAD), parts = (size_t)(d->heads * c->max_pages * DK_PARTS);
    c->mask_words = (int)(rows + 31) / 32;
    if (!(w->step = hold(c, sizeof *w->step + n * (size_t)c->max_pages * 4)) || !(w->x = hold(c, n * kd * 4)) || !(w->h = hold(c, n * kd * 2)) ||
        !(w->ao = hold(c, n * kq * 2)) || !(w->act = hold(c, n * kf * 2)) || !(w->sumsq = hold(c, kd / 16 * n * 4)) ||
        !(w->q = hold(c, n * (size_t)(d->heads * d->hd) * 2)) || !(w->part = hold(c, n * parts * (size_t)d->hd * 4)) ||
        !(w->ml = hold(c, n * parts * 8)) || !(w->logits = hold(c, n * rows * 4)) || !(w->best = hold(c, (size_t)c->sms * n * 16)) ||
        !(c->mask_device = hold(c, n * (size_t)c->mask_words * 4)) ||
        !(c->page_list = hold(c, (size_t)c->max_pages * 4)))
        return err_code();
    size_t wide = (size_t)(c->f.k_decode_rows(d, DK_GATE_UP) > c->f.k_decode_rows(d, DK_QKV) ? c->f.k_decode_rows(d, DK_GATE_UP) : c->f.k_decode_rows(d, DK_QKV));
    if (d->rank && (!(w->u = hold(c, DK_ADAPT_PARTS * 3 * (size_t)pad(d->rank, 16) * n * 4)) || !(w->extra = hold(c, wide * n * 4))))
        return err_code();
    int rc = c->f.k_host_alloc(sizeof *c->step + n * (size_t)c->max_pages * 4, (void **)&c->step);
    if (rc == 0)
        rc = c->f.k_host_alloc(n * sizeof *c->sampling, (void **)&c->sampling);
    if (rc == 0)
        rc = c->f.k_host_alloc(n * sizeof *c->chosen, (void **)&c->chosen);
    if (rc == 0)
        rc = c->f.k_host_alloc(n * (size_t)c->mask_words * 4, (void **)&c->mask);
    return check("page-locked memory", rc);
}

/* ---- e4m3 on the CPU: the twin of pack_kernel() and round_kernel() ---- */

static float power_above(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    u = u & 0x7fffffu ? (u & 0x7f800000u) + 0x800000u : u;
    u = u < 0x08000000u ? 0x08000000u : u;
    memcpy(&v, &u, 4);
    return v;
}

/* The nearest value of e4m3, ties to even, within 448. */
static float nearest_e4m3(float v)
{
    int e;
    float a = fabsf(v);
    if (a >= 448)
        return copysignf(448, v);
    frexpf(a, &e);                         /* a < 2^e */
    float unit = ldexpf(1, (e < -5 ? -5 : e) - 4); /* 3 bits after the first; steps of 2^-9 at the least */
    return copysignf(rintf(a / unit) * unit, v);
}

static int round_on_cpu(struct model *m, struct param *p)
{
    int64_t rows = th_size(p->w, 0), cols = th_size(p->w, 1), shape[2] = {rows, cols};
    size_t scope = th_scope_begin();
    float *v = xmalloc((size_t)(rows * cols) * sizeof *v);
    int rc = th_read(th_to(p->w, TH_F32, TH_CPU), v);
    for (int64_t r = 0; r < rows && rc == ERR_OK; r++) {
        float top = 0, *x = v + r * cols;
        for (int64_t i = 0; i < cols; i++)
            top = fmaxf(top, fabsf(x[i]));
        float s = power_above(top / 448);
        for (int64_t i = 0; i < cols; i++)
            x[i] = nearest_e4m3(x[i] / s) * s;
    }
    th_tensor *w = rc == ERR_OK ? th_keep(th_clone(th_to(th_borrow(v, 2, shape, TH_F32), m->dtype, m->device))) : NULL;
    th_scope_end(scope);
    free(v);
    if (!w)
        return rc < 0 ? rc : err_code();
    th_free(p->w); /* may be the file's own memory: never written to */
    p->w = w;
    return ERR_OK;
}

int engine_round_fp8(struct model *m)
{
    __typeof__(k_decode_round) *f = m->device == TH_CUDA && m->dtype == TH_BF16 && kernels_here() ?
                                        (__typeof__(f))kernel("k_decode_round") : NULL;
    int rc = ERR_OK;
    if (m->head == m->embed) {
        struct param *p = xcalloc(1, sizeof *p);
        p->name = xstrdup("lm_head.weight");
        size_t scope = th_scope_begin();
        p->w = th_keep(th_clone(m->embed->w));
        th_scope_end(scope);
        ARRAY_GROW(m->params, m->cap_params, m->n_params + 1);
        m->params[m->n_params++] = m->head = p;
        if (!p->w)
            return err_code();
    }
    for (int64_t i = 0; i <= m->cfg.n_layers && rc == ERR_OK; i++)
        for (int t = 0; t < (i < m->cfg.n_layers ? (int)LORA_TARGETS : 1) && rc == ERR_OK; t++) {
            struct param *p = i < m->cfg.n_layers ? m->layers[i].proj[t].w : m->head;
            rc = f ? kernel_check("k_decode_round", f(kernel_stream(), th_data(p->w), th_size(p->w, 0), th_size(p->w, 1)))
                   : round_on_cpu(m, p);
        }
    return rc;
}

/* ---- pages ---- */

static int make_pages(struct cuda *c, const struct engine_options *o, int64_t max_tokens)
{
    struct dk_model *d = &c->dm;
    int64_t want = c->max_pages * c->n_places;
    d->layer_elems = (int64_t)d->kv_heads * 2 * DK_PAGE * d->hd;
    d->page_elems = d->layer_elems * d->layers;
    size_t page = (size_t)d->page_elems * 2, used, peak, reading = 0, left = o->cache_bytes, budget = left;
    if (!budget && c->device == TH_CUDA) {
        th_memory(c->device, &used, &peak, &left);
        /* what reading the longest prompt takes: its own keys and values, and some ten wide rows a token */
        size_t row = (size_t)(c->m->cfg.d_ff * 3 + c->m->cfg.d_model * 12) * 2 + page / DK_PAGE;
        reading = (size_t)max_tokens * row + ((size_t)512 << 20);
        budget = left > reading ? (left - reading) / 20 * 19 : 0;
    }
    c->n_pages = !budget || (size_t)want * page <= budget ? want : (int64_t)(budget / page);
    if (!budget && c->device == TH_CUDA)
        c->n_pages = 0;
    if (c->n_pages < c->max_pages)
        return err_set(ERR_NOMEM, "keys and values of one sequence of %lld tokens need %.0f MB and its reading %.0f MB, %.0f MB are free: lower --max-new-tokens, or take --device cpu",
                       (long long)max_tokens, (double)(size_t)c->max_pages * (double)page / 1e6, (double)reading / 1e6, (double)left / 1e6);
    while (!(d->pool = hold(c, (size_t)c->n_pages * page))) { /* memory in pieces */
        if ((c->n_pages = c->n_pages * 3 / 4) < c->max_pages)
            return err_wrap("keys and values of %lld tokens: lower --max-new-tokens or --batch", (long long)max_tokens);
    }
    c->free_pages = xmalloc((size_t)c->n_pages * sizeof *c->free_pages);
    for (int64_t i = 0; i < c->n_pages; i++)
        c->free_pages[i] = (int32_t)(c->n_pages - 1 - i);
    c->n_free = c->n_pages;
    return ERR_OK;
}

static int cuda_reserve(struct engine_way *w, int64_t place, int64_t n)
{
    struct cuda *c = w->state;
    struct place *p = &c->places[place];
    int64_t need = (n + DK_PAGE - 1) / DK_PAGE;
    if (need > c->n_free)
        return 0;
    for (p->n = 0; p->n < need; p->n++)
        p->pages[p->n] = c->free_pages[--c->n_free];
    return 1;
}

static void cuda_release(struct engine_way *w, int64_t place)
{
    struct cuda *c = w->state;
    struct place *p = &c->places[place];
    while (p->n > 0)
        c->free_pages[c->n_free++] = p->pages[--p->n];
}

/* ---- work ---- */

static int fill_pages(void *ctx, int64_t layer, th_tensor *qkv)
{
    struct cuda *c = ctx;
    const struct model_config *f = &c->m->cfg;
    const uint16_t *k = (const uint16_t *)th_data(qkv) + f->n_heads * f->head_dim;
    return check("k_decode_fill", c->f.k_decode_fill(stream_of(c), &c->dm, (int)layer, k, k + f->n_kv_heads * f->head_dim, th_size(qkv, 1),
                                                     (int)th_size(qkv, 0), c->page_list));
}

static int cuda_prefill(struct engine_way *w, int64_t place, const int32_t *ids, size_t n)
{
    struct cuda *c = w->state;
    struct place *p = &c->places[place];
    int rc = check("copying page numbers", c->f.k_copy(stream_of(c), c->page_list, p->pages, (size_t)p->n * 4));
    if (rc == ERR_OK)
        rc = model_read(c->m, ids, n, fill_pages, c);
    return rc == ERR_NOMEM ? err_wrap("reading a prompt of %zu tokens: lower --batch", n) : rc;
}

static int cuda_step(struct engine_way *w, const struct engine_column *col, int64_t n, bool logits)
{
    struct cuda *c = w->state;
    struct dk_step *s = c->step;
    void *stream = stream_of(c);
    s->cols = (int32_t)n;
    s->seqs = s->units = 0;
    s->max_pages = (int32_t)c->max_pages;
    s->keep_logits = logits;
    for (int64_t i = 0; i < n; i++) {
        s->token[i] = col[i].token;
        s->pos[i] = col[i].pos;
        if (!i || col[i].place != col[i - 1].place) {
            struct dk_seq *q = &s->seq[s->seqs];
            *q = (struct dk_seq){.col = (int32_t)i, .pos = col[i].pos};
            memcpy(s->pages + s->seqs * c->max_pages, c->places[col[i].place].pages, (size_t)c->places[col[i].place].n * 4);
            s->seqs++;
        }
        s->seq[s->seqs - 1].n++;
        s->seq_of[i] = s->seqs - 1;
    }
    int64_t group = c->dm.heads / c->dm.kv_heads, units = 0, most = 0;
    for (int i = 0; i < s->seqs; i++) {
        struct dk_seq *q = &s->seq[i];
        int64_t rows = q->n * group;
        q->parts = (q->pos + q->n - 1) / DK_PART + 1;
        q->split = (int32_t)(rows + 15) / 16;
        units += q->parts * c->dm.kv_heads * q->split;
        most = q->split > most ? q->split : most;
    }
    /* keys and values are read from the second-level cache for each 16 rows, or once into shared memory */
    bool next = n == 1 && s->seq[0].parts <= DK_NEXT_PARTS && c->dm.heads * c->dm.head_dim <= DK_NEXT_NUMBERS && !c->dm.rank;
    c->way = c->many == 1 ? DK_WAY_MANY : c->many || (most > 2 && units > ATTEND_BLOCKS * c->sms) ? DK_WAY_WIDE : next ? DK_WAY_NEXT : DK_WAY_MANY;
    for (int i = 0; i < s->seqs; i++) {
        struct dk_seq *q = &s->seq[i];
        q->split = c->way == DK_WAY_WIDE ? 1 : q->split;
        q->unit = s->units;
        s->units += q->parts * c->dm.kv_heads * q->split;
    }
    int i = 0;
    while (columns[i] < n || (c->many && i < COLS - 1 && columns[i + 1] <= w->max_columns))
        i++;
    c->nc = columns[i];
    int rc = c->plan[i][c->way] ? 0 : c->f.k_decode_plan(&c->dm, &c->work, c->nc, c->way, c->sms, c->smem, &c->plan[i][c->way]);
    if (rc == 0)
        rc = c->f.k_copy(stream, c->work.step, s, sizeof *s + (size_t)(s->seqs * c->max_pages) * 4);
    if (rc == 0)
        rc = c->f.k_decode_step(stream, c->plan[i][c->way]);
    return check("k_decode_step", rc);
}

static int cuda_choose(struct engine_way *w, int64_t from, int64_t n, const struct engine_choice *choice, int32_t *out)
{
    struct cuda *c = w->state;
    void *stream = stream_of(c);
    bool masked = false;
    int rc = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct engine_choice *q = &choice[i];
        c->sampling[i] = (struct dk_sampling){.temperature = (float)q->s.temperature, .top_p = (float)q->s.top_p, .top_k = (int32_t)q->s.top_k,
                                              .place = (int32_t)q->at, .seed = q->s.seed, .masked = q->mask != NULL};
        if (q->mask)
            memcpy(c->mask + i * c->mask_words, q->mask, (size_t)((c->dm.vocab + 31) / 32) * 4);
        masked |= q->mask != NULL;
    }
    if (masked)
        rc = c->f.k_copy(stream, c->mask_device, c->mask, (size_t)(n * c->mask_words) * 4);
    struct dk_work at = c->work; /* columns from `from` on */
    at.logits += from * c->f.k_decode_rows(&c->dm, DK_HEAD);
    at.best += 2 * from;
    if (rc == 0)
        rc = c->f.k_decode_sample(stream, &c->dm, &at, c->nc, c->sms, (int)n, c->sampling, c->mask_device, c->mask_words, c->chosen);
    if (rc == 0)
        rc = c->f.k_wait(stream);
    if (rc == 0)
        memcpy(out, c->chosen, (size_t)n * sizeof *out);
    return check("k_decode_sample", rc);
}

static int cuda_logits(struct engine_way *w, int64_t column, float *out)
{
    struct cuda *c = w->state;
    void *stream = stream_of(c);
    int rc = c->f.k_copy(stream, out, c->work.logits + column * c->f.k_decode_rows(&c->dm, DK_HEAD), (size_t)c->m->cfg.vocab * 4);
    return check("reading logits", rc ? rc : c->f.k_wait(stream));
}

static void free_plans(struct cuda *c)
{
    for (int i = 0; i < COLS * DK_WAYS; i++) {
        void **plan = &c->plan[i / DK_WAYS][i % DK_WAYS];
        c->f.k_decode_plan_free(*plan);
        *plan = NULL;
    }
}

static int cuda_trace(struct engine_way *w, uint64_t *out, int *kinds, int *n)
{
    struct cuda *c = w->state;
    size_t bytes = (size_t)MOST_KERNELS(c->dm.layers) * DK_MARKS * sizeof *out;
    *n = MOST_KERNELS(c->dm.layers);
    int rc = 0;
    if (!out) { /* plans that note them */
        free_plans(c);
        return c->work.trace || (c->work.trace = hold(c, bytes)) ? ERR_OK : err_code();
    }
    uint64_t *first = xmalloc(bytes); /* nothing seen yet */
    for (size_t i = 0; i < bytes / sizeof *first; i++)
        first[i] = i % 2 ? 0 : UINT64_MAX;
    *n = c->f.k_decode_kernels(&c->dm, c->way, kinds);
    rc = c->f.k_copy(stream_of(c), out, c->work.trace, bytes);
    rc = rc ? rc : c->f.k_wait(stream_of(c));
    rc = rc ? rc : c->f.k_copy(stream_of(c), c->work.trace, first, bytes);
    rc = rc ? rc : c->f.k_wait(stream_of(c));
    free(first);
    return check("reading the trace", rc);
}

static void cuda_free(struct engine_way *w)
{
    struct cuda *c = w->state;
    if (c->f.k_host_free) {
        c->f.k_host_free(c->step);
        c->f.k_host_free(c->sampling);
        c->f.k_host_free(c->chosen);
        c->f.k_host_free(c->mask);
    }
    if (c->f.k_decode_plan_free)
        free_plans(c);
    while (c->n_held > 0)
        th_free(c->held[--c->n_held]);
    free(c->held);
    free(c->layers);
    for (int64_t i = 0; c->places && i < c->n_places; i++)
        free(c->places[i].pages);
    free(c->places);
    free(c->free_pages);
    free(c);
}

static int functions(struct functions *f)
{
#define F(name) \
    if (!(f->name = (__typeof__(f->name))kernel(#name))) \
        return err_code();
    FUNCTIONS(F)
#undef F
    return ERR_OK;
}

int engine_cuda(struct model *m, const struct engine_options *o, struct engine_way *out)
{
    const struct model_config *f = &m->cfg;
    int capability = 0, rc;
    if ((m->device != TH_CUDA && !o->emulate) || !kernels_here() || f->head_dim > 128 || f->head_dim % 2)
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs a CUDA device and the kernels' library") : ERR_OK;
    if (m->dtype != TH_BF16)
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs --dtype bfloat16") : ERR_OK;
    if ((rc = model_gather(m)) < 0)
        return rc;
    if (model_rank(m) > DK_MAX_RANK)
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 takes adapters of a rank of at most %d: leave --unmerged out", DK_MAX_RANK) : ERR_OK;
    if (!all_readable(m))
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs matrices whose rows are multiples of 8 numbers") : ERR_OK;
    struct cuda *c = xcalloc(1, sizeof *c);
    *out = (struct engine_way){.name = "cuda-graph", .state = c, .reserve = cuda_reserve, .release = cuda_release,
                               .prefill = cuda_prefill, .step = cuda_step, .choose = cuda_choose, .logits = cuda_logits, .trace = cuda_trace,
                               .free = cuda_free};
    c->m = m;
    c->device = m->device;
    c->many = o->many;
    if ((rc = functions(&c->f)) == ERR_OK)
        rc = check("k_decode_device", c->f.k_decode_device(&c->sms, &c->smem, &capability));
    c->dm = (struct dk_model){.layers = (int32_t)f->n_layers, .heads = (int32_t)f->n_heads, .kv_heads = (int32_t)f->n_kv_heads,
                              .head_dim = (int32_t)f->head_dim, .hd = f->head_dim <= 64 ? 64 : 128, .d = (int32_t)f->d_model, .ff = (int32_t)f->d_ff,
                              .rows = (int32_t)f->vocab, .vocab = (int32_t)(o->vocab ? o->vocab : f->vocab), .fp8 = o->fp8,
                              .rank = (int32_t)model_rank(m), .adapter_scale = (float)m->lora_scale,
                              .eps = (float)f->rms_eps, .qk_scale = (float)(1 / sqrt((double)f->head_dim))};
    if (rc == ERR_OK)
        out->max_columns = c->f.k_decode_max_cols(&c->dm, c->smem);
    if (rc == ERR_OK && (capability < 90 || !out->max_columns)) {
        cuda_free(out);
        *out = (struct engine_way){0};
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs a GPU of compute capability 9.0 or later; this one has %d.%d",
                                capability / 10, capability % 10) : ERR_OK;
    }
    int64_t tokens = o->max_tokens ? o->max_tokens : f->max_positions;
    c->n_places = o->max_batch ? o->max_batch : 1;
    c->max_pages = (tokens + DK_PAGE - 1) / DK_PAGE;
    out->max_a_place = out->max_columns;
    out->wide = columns;
    c->places = xcalloc((size_t)c->n_places, sizeof *c->places);
    for (int64_t i = 0; i < c->n_places; i++)
        c->places[i].pages = xcalloc((size_t)c->max_pages, sizeof *c->places[i].pages);
    if (rc == ERR_OK && (rc = weights(c, o->fp8)) == ERR_OK)
        out->weight_bytes = c->bytes;
    if (rc == ERR_OK && (rc = angles(c, c->max_pages * DK_PAGE)) == ERR_OK)
        rc = scratch(c);
    if (rc == ERR_NOMEM)
        rc = err_set(ERR_NOMEM, "no room on the device for %lld sequences of %lld tokens beside the weights: lower --batch or --max-new-tokens, or take --device cpu",
                     (long long)c->n_places, (long long)tokens);
    if (rc == ERR_OK)
        rc = make_pages(c, o, tokens);
    out->cache_bytes = (size_t)c->n_pages * (size_t)c->dm.page_elems * 2;
    if (rc < 0) {
        cuda_free(out);
        *out = (struct engine_way){0};
    }
    return rc;
}
