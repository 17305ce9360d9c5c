/* How fast the engine decodes, and how near its logits are to float32's: a folder's weights, or random ones by its config.
 *
 *     bench-decode MODEL_DIR [--device D] [--threads N] [--fp8] [--plain] [--many] [--lora merged|unmerged] MODE...
 *         check           logits of bfloat16, ours and ATen's, against float32, teacher-forced
 *         one[:N]         batch 1, prompt 512, N new tokens
 *         batch[:B:N]     B prompts of 512 at once, N new tokens each
 *         columns         the step alone, by columns and by context
 *         trace[:N:C[:1]] where the step's time goes, N columns at C tokens, of as many sequences or of one
 *         first[:N]       time to the first token after a prompt of N tokens
 *         draft:PAIRS:TOKENIZER[:K[:SECONDS]]
 *                         drafting at most K tokens a step on pair records: the true file's tokens stand in for the model's choices
 *                         (so they decide what the draft gets right), every forward pass and choice is really run
 *         grammar:PAIRS:TOKENIZER[:B[:N]]
 *                         N tokens of B sequences without the grammar, with it asked about a true file's tokens, and with it changing
 *                         what random weights say
 *     --lora merged|unmerged: with a random adapter (r 16, all projections)
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/decode.h"
#include "lib/err.h"
#include "lib/files.h"
#include "lib/grammar.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "model/draft.h"
#include "model/engine_impl.h"

static struct model *m;
static bool fp8, plain;
static int threads, many;

static void die(const char *what)
{
    fprintf(stderr, "bench-decode: %s: %s\n", what, err_text());
    exit(3);
}

static struct engine *open_engine(int64_t batch, int64_t tokens, bool plain_too)
{
    struct engine *e;
    if (engine_new(m, &(struct engine_options){.max_batch = batch, .max_tokens = tokens, .fp8 = fp8, .plain = plain || plain_too, .threads = threads, .many = many}, &e) < 0)
        die("engine");
    return e;
}

static int32_t *random_ids(int64_t n, uint64_t seed)
{
    int32_t *v = xmalloc((size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        v[i] = (int32_t)((seed >> 33) % (uint64_t)m->cfg.vocab);
    }
    return v;
}

struct run {
    double first;
    int64_t tokens;
    uint64_t sum;
};

static bool on_token(void *ctx, int32_t id)
{
    struct run *r = ctx;
    if (!r->tokens++)
        r->first = now_s();
    r->sum = r->sum * 31 + (uint64_t)id;
    return true;
}

static void generate(struct engine *e, int64_t batch, int64_t prompt, int64_t new, struct run *r)
{
    int rc;
    for (int64_t b = 0; b < batch; b++) {
        int32_t *ids = random_ids(prompt, (uint64_t)b);
        r[b] = (struct run){0};
        if (engine_submit(e, &(struct engine_request){.prompt = ids, .n_prompt = (size_t)prompt, .max_new = new, .token = on_token, .ctx = &r[b]},
                          NULL) < 0)
            die("submit");
        free(ids);
    }
    while ((rc = engine_step(e)) > 0)
        ;
    if (rc < 0)
        die("step");
}

static void speed(int64_t batch, int64_t prompt, int64_t new)
{
    struct engine *e = open_engine(batch, prompt + new, false);
    struct run *r = xcalloc((size_t)batch, sizeof *r);
    generate(e, batch, prompt, 16, r);
    double t0 = now_s(), first = 0;
    clock_t c0 = clock();
    generate(e, batch, prompt, new, r);
    double t = now_s() - t0, busy = (double)(clock() - c0) / CLOCKS_PER_SEC;
    for (int64_t b = 0; b < batch; b++)
        first = r[b].first > first ? r[b].first : first;
    printf("%s%s batch %lld, prompt %lld, %lld new: %.0f tokens/s with the prompts, %.0f after the last first token (%.2f s, first tokens %.3f s, %.2f s of processors) sum %llx\n",
           engine_way_of(e)->name, fp8 ? " fp8" : "", (long long)batch, (long long)prompt, (long long)new, (double)(batch * new) / t,
           (double)(batch * (new - 1)) / (t0 + t - first), t, first - t0, busy, (unsigned long long)r[batch - 1].sum);
    fflush(stdout);
    free(r);
    engine_free(e);
}

static void first_token(int64_t prompt)
{
    struct engine *e = open_engine(1, prompt + 8, false);
    struct run r;
    double best = 1e9;
    for (int i = 0; i < 4; i++) {
        double t0 = now_s();
        generate(e, 1, prompt, 2, &r);
        best = i && r.first - t0 < best ? r.first - t0 : best;
    }
    printf("%s first token after %lld: %.4f s\n", engine_way_of(e)->name, (long long)prompt, best);
    fflush(stdout);
    engine_free(e);
}

static void columns(void)
{
    static const int64_t places[] = {1, 2, 4, 8, 12, 16, 24, 32};
    struct engine *e = open_engine(32, 4096, false);
    struct engine_way *w = engine_way_of(e);
    struct engine_column col[32];
    struct engine_choice choice[32] = {0};
    int32_t out[32];
    for (int i = 0; i < 32; i++)
        if (w->reserve(w, i, 4096) != 1)
            die("reserve");
    for (int one = 0; one < 2; one++) /* columns of as many sequences, or all of one */
        for (int context = 256; context <= 4000; context = context == 256 ? 1000 : context == 1000 ? 2000 : context + 2000)
            for (size_t k = 0; k < ARRAY_LEN(places); k++) {
                int64_t n = places[k];
                double best = 1e9;
                if (one && n > w->max_a_place)
                    continue;
                for (int64_t i = 0; i < n; i++)
                    col[i] = (struct engine_column){one ? 0 : (int32_t)i, 1000 + (int32_t)i, context - 40 + (one ? (int32_t)i : 0)};
                for (int rep = 0; rep < 8; rep++) {
                    double t0 = now_s();
                    if (w->step(w, col, n, false) < 0 || w->choose(w, 0, n, choice, out) < 0)
                        die("step");
                    double t = now_s() - t0;
                    best = t < best ? t : best;
                }
                printf("%s%s step of %2lld columns of %s at %4d: %.3f ms, %.0f tokens/s\n", w->name, fp8 ? " fp8" : "", (long long)n,
                       one ? "one sequence" : "as many", context, best * 1e3, (double)n / best);
            }
    fflush(stdout);
    engine_free(e);
}

/* Largest and root-mean-square differences between rows of logits, over the root mean square. */
static void differ(const char *name, const float *a, const float *b, int64_t n)
{
    double sum = 0, sq = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        sum += d * d;
        sq += (double)b[i] * b[i];
        worst = d > worst || d != d ? d : worst;
    }
    printf("%-34s rms %.5f, largest %.5f of rms %.4f\n", name, sqrt(sum / (double)n), worst, sqrt(sq / (double)n));
    fflush(stdout);
}

/* Where a step's time goes: each kernel of a layer from the end of the one before to its own, and of it how long it waited for the
 * other to be seen to have ended and how far its blocks' ends lie apart; means over the layers but the first, in microseconds. */
static void trace(int64_t n, int context, bool one)
{
    static const char *const name[8] = {"sums", "attention", "embed", "qkv", "out", "gate-up", "down", "head"};
    struct engine *e = open_engine(32, context + 64, false);
    struct engine_way *w = engine_way_of(e);
    struct engine_column col[32];
    struct engine_choice choice[32] = {0};
    int32_t out[32];
    int room, kernels, *kinds;
    double best = 1e9, time[8] = {0}, wait[8] = {0}, apart[8] = {0};
    int64_t times[8] = {0};
    if (!w->trace || w->trace(w, NULL, NULL, &room) < 0)
        die("trace");
    uint64_t *t = xcalloc((size_t)room * DK_MARKS, sizeof *t);
    kinds = xcalloc((size_t)room, sizeof *kinds);
    for (int64_t i = 0; i < n; i++) {
        if ((!one || !i) && w->reserve(w, i, context + 64) != 1)
            die("reserve");
        col[i] = (struct engine_column){one ? 0 : (int32_t)i, 1000 + (int32_t)i, context + (one ? (int32_t)i : 0)};
    }
    for (int rep = 0; rep < 6; rep++) { /* the marks of the last are read */
        double t0 = now_s();
        if (w->step(w, col, n, false) < 0 || w->choose(w, 0, n, choice, out) < 0)
            die("step");
        best = now_s() - t0 < best ? now_s() - t0 : best;
        if (w->trace(w, t, kinds, &kernels) < 0)
            die("trace");
    }
    for (int i = 1; i < kernels; i++) {
        const uint64_t *v = t + i * DK_MARKS, *before = v - DK_MARKS;
        int k = kinds[i] + 3;
        if (i <= 6 && kinds[i] != DK_HEAD)
            continue;
        times[k]++;
        time[k] += ((double)v[5] - (double)before[5]) * 1e-3;
        wait[k] += ((double)v[3] - (double)before[5]) * 1e-3;
        apart[k] += ((double)v[5] - (double)v[4]) * 1e-3;
    }
    printf("%s%s, %lld columns of %s at %d: %.3f ms, noting times;", w->name, fp8 ? " fp8" : "", (long long)n, one ? "one sequence" : "as many", context, best * 1e3);
    for (int i = 0; i < 8; i++) {
        int k = (int[]){2, 3, 1, 0, 4, 5, 6, 7}[i];
        if (times[k])
            printf(" %s %.2f (waited %.2f, apart %.2f)", name[k], time[k] / (double)times[k], wait[k] / (double)times[k], apart[k] / (double)times[k]);
    }
    printf("\n");
    fflush(stdout);
    free(t);
    free(kinds);
    engine_free(e);
}

static void attach(struct model *x)
{
    struct lora_config c = {.r = 16, .alpha = 16};
    for (int t = 0; t < LORA_TARGETS; t++)
        c.target[t] = true;
    if (lora_attach(x, &c, 1) < 0)
        die("adapter");
}

static void check(const char *dir)
{
    enum { PROMPT = 600, MORE = 40 };
    int64_t vocab = m->cfg.vocab, n = PROMPT + MORE;
    int32_t *ids = random_ids(n, 7);
    float *exact = xmalloc((size_t)(MORE * vocab) * 4), *half = xmalloc((size_t)(MORE * vocab) * 4), *ours = xmalloc((size_t)(MORE * vocab) * 4);
    struct model *wide;
    if (model_init(dir, TH_F32, m->device, MODEL_DRAW_ON_DEVICE, &wide) < 0)
        die("float32 model");
    if (model_rank(m) > 0)
        attach(wide);
    for (size_t i = 0; i < wide->n_params; i++)
        if (th_copy_(wide->params[i]->w, m->params[i]->w) < 0)
            die("copy");
    if (wide->head == wide->embed && m->head != m->embed) { /* rounded to e4m3 */
        wide->head = xcalloc(1, sizeof *wide->head);
        wide->head->w = th_to(m->head->w, TH_F32, m->device);
    }
    for (int k = 0; k < 2; k++) {
        size_t scope = th_scope_begin();
        th_tensor *y = model_logits(k ? m : wide, ids, (size_t)n);
        if (!y || th_read(th_narrow(y, 0, PROMPT, MORE), k ? half : exact) < 0)
            die("logits");
        th_scope_end(scope);
    }
    model_free(wide);
    /* The same twenty tokens one by one, ten at a time, and twenty at a time (ten of each of two sequences), then ten more. */
    struct engine *e = open_engine(4, n, false);
    struct engine_way *w = engine_way_of(e);
    float *other = xmalloc((size_t)vocab * 4);
    int64_t unlike[2] = {0, 0};
    for (int p = 0; p < 4; p++)
        if (w->reserve(w, p, n) != 1 || w->prefill(w, p, ids, PROMPT) < 0)
            die("prefill");
    for (int i = 0; i < MORE; i += i < 20 ? 1 : 10) {
        struct engine_column col[10];
        int k = i < 20 ? 1 : 10;
        for (int c = 0; c < k; c++)
            col[c] = (struct engine_column){0, ids[PROMPT + i + c], PROMPT + i + c};
        if (w->step(w, col, k, true) < 0)
            die("step");
        for (int c = 0; c < k; c++)
            if (w->logits(w, c, ours + (i + c) * vocab) < 0)
                die("logits");
    }
    for (int many_too = 0; many_too < 2 && w->max_a_place >= 10; many_too++)
        for (int i = 0; i < 20; i += 10) {
            struct engine_column col[20];
            int k = many_too ? 20 : 10;
            for (int c = 0; c < k; c++)
                col[c] = (struct engine_column){many_too ? 2 + c / 10 : 1, ids[PROMPT + i + c % 10], PROMPT + i + c % 10};
            if (w->step(w, col, k, true) < 0)
                die("step");
            for (int c = 0; c < k; c++) {
                if (w->logits(w, c, other) < 0)
                    die("logits");
                for (int64_t v = 0; v < vocab; v++)
                    unlike[many_too] += memcmp(&other[v], &ours[(i + c % 10) * vocab + v], 4) != 0;
            }
        }
    printf("%s%s, %d positions after %d; logits of other bits in steps of ten: %lld, of twenty: %lld of %lld\n", w->name, fp8 ? " fp8" : "", MORE,
           PROMPT, (long long)unlike[0], (long long)unlike[1], (long long)(20 * vocab));
    differ("ATen bfloat16 - float32", half, exact, MORE * vocab);
    differ("ours - float32, one column", ours, exact, 20 * vocab);
    differ("ours - float32, ten columns", ours + 20 * vocab, exact + 20 * vocab, 20 * vocab);
    free(other);
    engine_free(e);
    free(exact);
    free(half);
    free(ours);
    free(ids);
}

/* Drafts of at most k tokens on the records of a file, for so many seconds. */
static void draft(const char *pairs, const char *tokenizer, int64_t k, double limit)
{
    struct tok *t;
    struct pairs *r;
    struct pair p;
    struct tok_ids prompt = {0};
    struct engine *e = m ? open_engine(1, 32768, false) : NULL;
    struct engine_way *w = e ? engine_way_of(e) : NULL;
    struct engine_timing timing = {0};
    struct draft_cost cost = {.pass = 1, .column = 0.02, .wide = w ? w->wide : NULL};
    int64_t tokens = 0, steps = 0, files = 0, guessed = 0, context = 0;
    double seconds = 0, drafting = 0, prompts = 0;
    int rc;
    if (tok_load(tokenizer, &t) < 0 || pairs_open(pairs, &r) < 0)
        die("records");
    k = k < 63 ? k : 63;
    struct engine_info info = {.max_tokens = 32768};
    if (w) {
        engine_info(e, &info);
        k = k < w->max_a_place - 1 ? k : w->max_a_place - 1;
    }
    while ((rc = pairs_next(r, &p)) > 0 && (limit <= 0 || seconds < limit)) {
        struct engine_column col[64];
        struct engine_choice choice[64] = {0};
        int32_t out[64], guess[64];
        size_t start, at;
        prompt.n = 0;
        if (prompt_encode_training(t, p.caption, p.retrieved, p.output, &prompt, &start) < 0)
            die("tokens");
        if ((int64_t)prompt.n + 64 > info.max_tokens)
            continue;
        double t0 = now_s();
        struct draft *d = draft_new(t, NULL); /* each record by itself */
        for (size_t i = 0; i < start; i++)
            draft_add(d, prompt.v[i]);
        drafting += now_s() - t0;
        if (w && (w->reserve(w, 0, (int64_t)prompt.n + 64) != 1 || w->prefill(w, 0, prompt.v, start - 1) < 0))
            die("prefill");
        prompts += now_s() - t0;
        t0 = now_s();
        int64_t before = steps;
        for (at = start; at < prompt.n; steps++) {
            double t1 = now_s();
            int64_t n = 1 + (int64_t)draft_guess(d, guess, (size_t)k, &cost);
            drafting += now_s() - t1;
            guessed += n - 1;
            context += (int64_t)at;
            for (int64_t i = 0; i < n; i++)
                col[i] = (struct engine_column){0, i ? guess[i - 1] : prompt.v[at - 1], (int32_t)((int64_t)at - 1 + i)};
            t1 = now_s();
            if (w && (w->step(w, col, n, false) < 0 || w->choose(w, 0, n, choice, out) < 0))
                die("step");
            if (w)
                engine_learn_cost(&timing, draft_wide(w->wide, n), now_s() - t1, &cost);
            int64_t i = 0;
            t1 = now_s();
            do
                draft_add(d, prompt.v[at]);
            while (++at < prompt.n && ++i < n && guess[i - 1] == prompt.v[at - 1]);
            drafting += now_s() - t1;
        }
        double took = now_s() - t0;
        seconds += took;
        tokens += (int64_t)(prompt.n - start);
        files++;
        printf("  record %lld: prompt %zu, %zu tokens, %.2f a step, %.0f tokens/s\n", (long long)files, start, prompt.n - start,
               (double)(prompt.n - start) / (double)(steps - before), (double)(prompt.n - start) / took);
        fflush(stdout);
        draft_free(d);
        if (w)
            w->release(w, 0);
    }
    if (rc < 0)
        die("records");
    double n = (double)steps;
    if (!files)
        printf("%s drafts of %lld: none of the records of %s fits %lld tokens\n", w ? w->name : "no model", (long long)k, pairs, (long long)info.max_tokens);
    else
        printf("%s%s drafts of %lld on %lld records of %s (%.0f s, context %.0f): %lld tokens in %lld steps, %.2f a step (%.2f guessed), %.3f ms a step (%.3f + %.4f n), %.0f tokens/s; "
           "%.0f with the prompts; drafting %.1f us a step, prompts included\n", w ? w->name : "no model", fp8 ? " fp8" : "", (long long)k, (long long)files,
           strrchr(pairs, '/') ? strrchr(pairs, '/') + 1 : pairs, seconds,
           (double)context / n, (long long)tokens, (long long)steps, (double)tokens / n, (double)guessed / n, seconds * 1e3 / n, cost.pass * 1e3, cost.column * 1e3,
           (double)tokens / seconds, (double)tokens / (seconds + prompts), drafting * 1e6 / n);
    fflush(stdout);
    pairs_close(r);
    tok_ids_release(&prompt);
    tok_free(t);
    engine_free(e);
}

/* ---- what the grammar costs: the true part's tokens stand in for the model's choices when it is asked ---- */

struct stand_in {
    struct token_mask real;
    const int32_t *ids;
    size_t n, at;
    int64_t refused;
};

static bool stand_in_allows(void *ctx, int32_t id, int64_t left)
{
    struct stand_in *s = ctx;
    (void)id;
    s->refused += s->at < s->n && !s->real.allows(s->real.ctx, s->ids[s->at], left + 1000000); /* the true part goes on */
    return true;
}

static void stand_in_fill(void *ctx, int64_t left, uint32_t *bits)
{
    struct stand_in *s = ctx;
    s->real.fill(s->real.ctx, left, bits);
}

static void stand_in_take(void *ctx, int32_t id)
{
    struct stand_in *s = ctx;
    (void)id;
    s->real.take(s->real.ctx, s->ids[s->at++]);
}

static bool stand_in_done(void *ctx)
{
    struct stand_in *s = ctx;
    return s->at >= s->n;
}

static bool any_token(void *ctx, int32_t id)
{
    (void)ctx, (void)id;
    return true;
}

static void note_end(void *ctx, const struct engine_result *r)
{
    *(struct engine_result *)ctx = *r;
}

/* batch sequences of a record's tokens, decoded plainly, with the grammar asked about the true ones, and with random weights' own choices. */
static void grammar(const char *pairs, const char *tokenizer, int64_t batch, int64_t new)
{
    enum { OFF, RIGHT, WRONG, HOWS };
    static const char *const how_name[HOWS] = {"off", "each token permitted", "random weights' own choices"};
    struct tok *t;
    struct pairs *r;
    struct pair p;
    struct grammar *g;
    struct tok_ids ids = {0};
    size_t start = 0;
    int rc = 0;
    if (tok_load(tokenizer, &t) < 0 || pairs_open(pairs, &r) < 0 || grammar_new(t, &(struct grammar_opts){0}, &g) < 0)
        die("records");
    do {
        ids.n = 0;
        if ((rc = pairs_next(r, &p)) <= 0 || prompt_encode_training(t, p.caption, p.retrieved, p.output, &ids, &start) < 0)
            die("a record that is long enough");
    } while ((int64_t)(ids.n - start) < new || ids.n > 16384);
    struct engine *e = open_engine(batch, (int64_t)start + new + 8, false);
    double rate[HOWS];
    for (int how = 0; how < HOWS; how++)
        for (int rep = 0; rep < 2; rep++) { /* the first warms up */
            struct stand_in *s = xcalloc((size_t)batch, sizeof *s);
            struct engine_result *end = xcalloc((size_t)batch, sizeof *end);
            struct token_mask *mask = xcalloc((size_t)batch, sizeof *mask);
            struct grammar_state **state = xcalloc((size_t)batch, sizeof *state);
            int64_t changed = 0, tokens = 0, refused = 0;
            double decode = 0;
            for (int64_t b = 0; b < batch; b++) {
                if (grammar_state_new(g, how == RIGHT ? (int64_t)(ids.n - start) + 1000 : new, &state[b]) < 0)
                    die("grammar");
                grammar_token_mask(state[b], &s[b].real);
                s[b].ids = ids.v + start;
                s[b].n = (size_t)new;
                mask[b] = how == WRONG ? s[b].real : (struct token_mask){.ctx = &s[b], .n_words = s[b].real.n_words, .allows = stand_in_allows,
                                                                         .fill = stand_in_fill, .take = stand_in_take, .done = stand_in_done};
                if (engine_submit(e, &(struct engine_request){.prompt = ids.v, .n_prompt = start, .max_new = rep ? new : 20, .mask = how ? &mask[b] : NULL,
                                                              .token = any_token, .done = note_end, .ctx = &end[b]}, NULL) < 0)
                    die("submit");
            }
            while ((rc = engine_step(e)) > 0)
                ;
            if (rc < 0)
                die("step");
            for (int64_t b = 0; b < batch; b++) {
                changed += end[b].changed;
                tokens += end[b].tokens;
                refused += s[b].refused;
                decode = end[b].decode_s > decode ? end[b].decode_s : decode;
                grammar_state_free(state[b]);
            }
            rate[how] = (double)tokens / decode;
            if (rep)
                printf("%s grammar, batch %lld, %lld new each, %s: %.0f tokens/s (%+.1f %% time), %lld of %lld tokens changed, %lld refused\n",
                       engine_way_of(e)->name, (long long)batch, (long long)new, how_name[how], rate[how], 100 * (rate[OFF] / rate[how] - 1),
                       (long long)changed, (long long)tokens, (long long)refused);
            fflush(stdout);
            free(s), free(end), free(mask), free(state);
        }
    engine_free(e);
    grammar_free(g);
    pairs_close(r);
    tok_ids_release(&ids);
    tok_free(t);
}

static int64_t part(const char *arg, int i, int64_t otherwise)
{
    for (; arg && i > 0; i--)
        arg = strchr(arg, ':') ? strchr(arg, ':') + 1 : NULL;
    return arg ? atoll(arg) : otherwise;
}

int main(int argc, char **argv)
{
    enum th_device device;
    const char *name = "auto", *lora = NULL, *dir = argc > 1 ? argv[1] : NULL;
    int i = 2;
    for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
        fp8 |= !strcmp(argv[i], "--fp8");
        plain |= !strcmp(argv[i], "--plain");
        many += !strcmp(argv[i], "--many");
        if (!strcmp(argv[i], "--threads") && i + 1 < argc)
            threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--device") && i + 1 < argc)
            name = argv[++i];
        else if (!strcmp(argv[i], "--lora") && i + 1 < argc)
            lora = argv[++i];
    }
    if (!dir || i >= argc)
        return fprintf(stderr, "usage: bench-decode CONFIG_DIR|none [--device D] [--threads N] [--fp8] [--plain] [--many] [--lora merged|unmerged] MODE...\n"), 2;
    if (strcmp(dir, "none")) {
        if (th_device_open(name, &device) < 0)
            die("device");
        double t0 = now_s();
        enum th_dtype dtype = device == TH_CUDA ? TH_BF16 : TH_F32;
        char *weights = path_join(dir, "model.safetensors");
        bool real = path_exists(weights);
        free(weights);
        if ((real ? model_load(dir, dtype, device, &m) : model_init(dir, dtype, device, MODEL_DRAW_ON_DEVICE, &m)) < 0)
            die("model");
        for (size_t k = 0; k < m->n_params && !real; k++) /* norms and biases that show when they are left out */
            if (th_rank(m->params[k]->w) == 1)
                th_normal_(m->params[k]->w, strstr(m->params[k]->name, "norm") ? 1 : 0, 0.1);
        for (size_t k = 0; k < m->n_params && !real && dtype == TH_F32; k++) { /* as files have them */
            size_t scope = th_scope_begin();
            if (th_copy_(m->params[k]->w, th_to(m->params[k]->w, TH_BF16, device)) < 0)
                die("rounding");
            th_scope_end(scope);
        }
        if (lora) {
            attach(m);
            for (size_t k = 0; k < m->n_params; k++) /* B is zero */
                if (strstr(m->params[k]->name, "lora_B"))
                    th_normal_(m->params[k]->w, 0, 0.02);
            if (!strcmp(lora, "merged") && lora_merge(m) < 0)
                die("merging");
            printf("adapter: %s; ", lora);
        }
        if (fp8 && engine_round_fp8(m) < 0)
            die("rounding");
        th_sync(device);
        fprintf(stderr, "%s in %.1f s\n", real ? dir : "a random model", now_s() - t0);
    }
    for (; i < argc; i++) {
        if (!strncmp(argv[i], "check", 5))
            check(dir);
        else if (!strncmp(argv[i], "one", 3))
            speed(1, 512, part(argv[i], 1, 512));
        else if (!strncmp(argv[i], "batch", 5))
            speed(part(argv[i], 1, 32), 512, part(argv[i], 2, 2000));
        else if (!strncmp(argv[i], "columns", 7))
            columns();
        else if (!strncmp(argv[i], "trace", 5))
            trace(part(argv[i], 1, 1), (int)part(argv[i], 2, 600), part(argv[i], 3, 0) != 0);
        else if (!strncmp(argv[i], "first", 5))
            first_token(part(argv[i], 1, 8192));
        else if (!strncmp(argv[i], "draft:", 6) || !strncmp(argv[i], "grammar:", 8)) {
            char *save, *arg = xstrdup(argv[i]), *v[5] = {NULL};
            size_t n = 0;
            for (char *k = strtok_r(arg, ":", &save); k && n < 5; k = strtok_r(NULL, ":", &save))
                v[n++] = k;
            if (n < 3)
                return fprintf(stderr, "%s: PAIRS:TOKENIZER is due\n", v[0]), 2;
            if (*v[0] == 'd')
                draft(v[1], v[2], v[3] ? atoll(v[3]) : 31, v[4] ? atof(v[4]) : 0);
            else
                grammar(v[1], v[2], v[3] ? atoll(v[3]) : 1, v[4] ? atoll(v[4]) : 500);
            free(arg);
        } else
            return fprintf(stderr, "%s: no such mode\n", argv[i]), 2;
    }
    model_free(m);
    return 0;
}
