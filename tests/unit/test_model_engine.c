/* The engine: each of its ways against transformer.c, and against itself: batches, drafts, masks and places change nothing.
 * The CUDA kernels run on the CPU, emulated; TEST_DEVICE=cuda runs them on a GPU (make test-gpu). */
#include "tests/unit/testutil.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "model/engine_impl.h"

#define GOLDEN "tests/golden/torch/"
static const char *const cases[] = {"qwen-tied", "qwen-untied", "llama-rope", "llama-untied"};
enum { S = 40, NEW = 24 };

static enum th_device device = TH_CPU;

static void open_model(const char *name, enum th_dtype dtype, struct model **m, int32_t ids[2 * S])
{
    char path[256];
    struct st *st;
    const struct st_tensor *t;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    if (model_load(path, dtype, device, m) < 0)
        fail_msg("%s", err_text());
    snprintf(path, sizeof path, GOLDEN "%s/adapter", name);
    assert_int_equal(lora_load(*m, path, false, NULL), 0);
    assert_int_equal(lora_merge(*m), 0);
    snprintf(path, sizeof path, GOLDEN "%s/expect.safetensors", name);
    assert_int_equal(st_open(path, &st), 0);
    assert_non_null(t = st_find(st, "ids"));
    for (int i = 0; i < 2 * S; i++)
        ids[i] = (int32_t)((const int64_t *)t->data)[i];
    st_close(st);
}

struct heard {
    int32_t ids[256];
    int64_t n, stop_at;
    struct engine_result r;
    bool done;
};

static bool hear(void *ctx, int32_t id)
{
    struct heard *h = ctx;
    h->ids[h->n++] = id;
    return h->n != h->stop_at;
}

static void hear_end(void *ctx, const struct engine_result *r)
{
    struct heard *h = ctx;
    h->r = *r;
    h->done = true;
}

static struct engine *open_engine(struct model *m, struct engine_options o)
{
    struct engine *e;
    o.emulate = device == TH_CPU && m->dtype == TH_BF16;
    if (engine_new(m, &o, &e) < 0)
        fail_msg("%s", err_text());
    return e;
}

static void ask(struct engine *e, struct heard *h, const int32_t *ids, size_t n, struct engine_request r)
{
    *h = (struct heard){.stop_at = h->stop_at};
    r.prompt = ids;
    r.n_prompt = n;
    r.token = hear;
    r.done = hear_end;
    r.ctx = h;
    if (!r.max_new)
        r.max_new = NEW;
    assert_int_equal(engine_submit(e, &r, NULL), 0);
}

static void run(struct engine *e)
{
    int rc;
    while ((rc = engine_step(e)) > 0)
        ;
    if (rc < 0)
        fail_msg("%s", err_text());
}

static void same(const struct heard *a, const struct heard *b)
{
    assert_true(a->done && b->done);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n * sizeof *a->ids);
}

static double rms(const float *a, const float *b, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] == a[i] ? ((double)a[i] - b[i]) * ((double)a[i] - b[i]) : INFINITY;
    return sqrt(s / (double)n);
}

static void all_logits(struct model *m, const int32_t *ids, float *out)
{
    size_t scope = th_scope_begin();
    assert_int_equal(th_read(model_logits(m, ids, S), out), 0);
    th_scope_end(scope);
}

/* Logits of every step, teacher-forced: no further from float32's than ATen's own bfloat16 is, twice over.  e4m3 likewise
 * with the rounded weights. */
static void logits_equal_the_models(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2 * ARRAY_LEN(cases); c++) {
        struct model *m, *wide;
        int32_t ids[2 * S];
        bool fp8 = c >= ARRAY_LEN(cases);
        open_model(cases[c % ARRAY_LEN(cases)], TH_BF16, &m, ids);
        open_model(cases[c % ARRAY_LEN(cases)], TH_F32, &wide, ids);
        if (fp8) {
            assert_int_equal(engine_round_fp8(m), 0);
            assert_int_equal(engine_round_fp8(wide), 0); /* for a head of its own */
        }
        for (size_t i = 0; i < m->n_params; i++)
            assert_int_equal(th_copy_(wide->params[i]->w, m->params[i]->w), 0);
        struct engine *e = open_engine(m, (struct engine_options){.max_tokens = 64, .fp8 = fp8});
        struct engine_way *w = engine_way_of(e);
        int64_t vocab = m->cfg.vocab, from = 9 * vocab, n = S * vocab - from;
        float *exact = xmalloc((size_t)(S * vocab) * 4), *half = xmalloc((size_t)(S * vocab) * 4), *ours = xmalloc((size_t)(S * vocab) * 4);
        assert_string_equal(w->name, "cuda-graph");
        all_logits(wide, ids, exact);
        all_logits(m, ids, half);
        assert_int_equal(w->reserve(w, 0, S), 1);
        assert_int_equal(w->prefill(w, 0, ids, 9), 0);
        for (int i = 9, k; i < S; i += k) { /* one column a step, then some */
            struct engine_column col[12];
            k = i < 20 ? 1 : i < 28 ? 8 : 12;
            for (int j = 0; j < k; j++)
                col[j] = (struct engine_column){0, ids[i + j], i + j};
            assert_int_equal(w->step(w, col, k, true), 0);
            for (int j = 0; j < k; j++)
                assert_int_equal(w->logits(w, j, ours + (i + j) * vocab), 0);
        }
        double theirs = rms(half + from, exact + from, n), our = rms(ours + from, exact + from, n);
        if (!(our < 2 * theirs))
            fail_msg("%s%s: %g from float32, ATen %g", cases[c % ARRAY_LEN(cases)], fp8 ? " fp8" : "", our, theirs);
        free(exact);
        free(half);
        free(ours);
        engine_free(e);
        model_free(wide);
        model_free(m);
    }
}

/* 200 greedy tokens of float32 are Transformers', with PEFT's adapter (merged, and beside the weights) and without, for prompts alone and several at once, with
 * drafts and without (tests/golden/torch/make_generate.py). */
static void greedy_decoding_equals_transformers(void **state)
{
    enum { PROMPTS = 4, LONG = 200 };
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++)
        for (int lora = 0; lora < 3; lora++)
            for (int way = 0; way < 2; way++) { /* the CPU's own, and ATen's */
                char path[256], key[32];
                struct model *m;
                struct st *st;
                struct heard h[2 * PROMPTS] = {0};
                snprintf(path, sizeof path, GOLDEN "%s", cases[c]);
                assert_int_equal(model_load(path, TH_F32, device, &m), 0);
                snprintf(path, sizeof path, GOLDEN "%s/adapter", cases[c]);
                if (lora) {
                    assert_int_equal(lora_load(m, path, false, NULL), 0);
                    assert_true(model_rank(m) > 0);
                    assert_int_equal(lora == 1 ? lora_merge(m) : 0, 0);
                    assert_true((model_rank(m) > 0) == (lora == 2));
                }
                snprintf(path, sizeof path, GOLDEN "%s/generate.safetensors", cases[c]);
                assert_int_equal(st_open(path, &st), 0);
                struct engine *e = open_engine(m, (struct engine_options){.max_batch = c % 2 ? 3 : 1, .plain = way == 1, .threads = 2});
                assert_string_equal(engine_way_of(e)->name, way || device == TH_CUDA ? "aten" : "cpu");
                for (int i = 0; i < PROMPTS; i++) {
                    int32_t ids[S];
                    snprintf(key, sizeof key, "%s.prompt.%d", lora ? "lora" : "tokens", i);
                    const struct st_tensor *t = st_find(st, key);
                    assert_non_null(t);
                    for (int64_t k = 0; k < t->shape[0]; k++)
                        ids[k] = (int32_t)((const int64_t *)t->data)[k];
                    for (int draft = 0; draft < 2 - way; draft++)
                        ask(e, &h[2 * i + draft], ids, (size_t)t->shape[0], (struct engine_request){.max_new = LONG, .draft = 9 * draft});
                }
                run(e);
                for (int i = 0; i < 2 * PROMPTS; i += 1 + way) {
                    snprintf(key, sizeof key, "%s.%d", lora ? "lora" : "tokens", i / 2);
                    const int64_t *want = st_find(st, key)->data;
                    assert_int_equal(h[i].n, LONG);
                    for (int k = 0; k < LONG; k++)
                        if (h[i].ids[k] != want[k])
                            fail_msg("%s, %s, %s: token %d is %d, not %d", cases[c], key, engine_way_of(e)->name, k, h[i].ids[k], (int)want[k]);
                }
                st_close(st);
                engine_free(e);
                model_free(m);
            }
}

/* Logits with the adapter beside the weights are those with it merged, but for rounding; 8-bit weights are refused in float32. */
static void an_adapter_may_stay_beside_the_weights(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        enum { N = 6 };
        float *y[2];
        int64_t vocab = 0;
        for (int merged = 0; merged < 2; merged++) {
            char path[256];
            int32_t ids[2 * S];
            struct model *m;
            struct engine *e;
            if (merged) {
                open_model(cases[c], TH_F32, &m, ids);
            } else {
                struct model *other;
                open_model(cases[c], TH_F32, &other, ids);
                model_free(other);
                snprintf(path, sizeof path, GOLDEN "%s", cases[c]);
                assert_int_equal(model_load(path, TH_F32, device, &m), 0);
                snprintf(path, sizeof path, GOLDEN "%s/adapter", cases[c]);
                assert_int_equal(lora_load(m, path, false, NULL), 0);
                assert_int_equal(engine_new(m, &(struct engine_options){.fp8 = true}, &e), ERR_USAGE);
                size_t scope = th_scope_begin(); /* which puts the weights beside the adapter's */
                assert_non_null(model_logits(m, ids, N));
                th_scope_end(scope);
            }
            vocab = m->cfg.vocab;
            y[merged] = xmalloc((size_t)(N * vocab) * sizeof **y);
            e = open_engine(m, (struct engine_options){.max_batch = 1, .threads = 3});
            struct engine_way *w = engine_way_of(e);
            struct engine_column col[N];
            assert_int_equal(w->reserve(w, 0, S), 1);
            assert_int_equal(w->prefill(w, 0, ids, 10), 0);
            int64_t at_once = w->max_a_place < N ? 1 : N;
            for (int i = 0; i < N; i++)
                col[i] = (struct engine_column){0, ids[10 + i], 10 + i};
            for (int i = 0; i < N; i += (int)at_once) {
                assert_int_equal(w->step(w, col + i, at_once, true), 0);
                for (int64_t k = 0; k < at_once; k++)
                    assert_int_equal(w->logits(w, k, y[merged] + (i + k) * vocab), 0);
            }
            engine_free(e);
            model_free(m);
        }
        double off = rms(y[0], y[1], N * vocab), all = 0;
        for (int64_t i = 0; i < N * vocab; i++)
            all += (double)y[1][i] * y[1][i];
        if (!(off < 1e-5 * sqrt(all / (double)(N * vocab))))
            fail_msg("%s: %g apart", cases[c], off);
        free(y[0]);
        free(y[1]);
    }
}

/* Sequences of different lengths alone, together, in a batch with fewer places, with drafts: the same tokens. */
static void change_nothing(enum th_dtype dtype, size_t step, int64_t new)
{
    for (size_t c = 0; c < ARRAY_LEN(cases); c += step) {
        struct model *m;
        int32_t ids[2 * S];
        static const size_t length[5] = {S, 17, 1, 30, 2};
        struct heard alone[5] = {0}, other[5] = {0};
        open_model(cases[c], dtype, &m, ids);
        struct engine *e = open_engine(m, (struct engine_options){.max_batch = 1, .max_tokens = 128});
        for (int i = 0; i < 5; i++)
            ask(e, &alone[i], ids + i, length[i], (struct engine_request){.max_new = new});
        run(e);
        for (int i = 0; i < 5; i++)
            ask(e, &other[i], ids + i, length[i], (struct engine_request){.draft = 7, .max_new = new});
        run(e);
        for (int i = 0; i < 5; i++) {
            same(&alone[i], &other[i]);
            assert_int_equal(other[i].r.steps + other[i].r.accepted, other[i].n);
        }
        engine_free(e);
        e = open_engine(m, (struct engine_options){.max_batch = 3, .max_tokens = 128});
        for (int i = 0; i < 5; i++)
            ask(e, &other[i], ids + i, length[i], (struct engine_request){.draft = i, .max_new = new});
        run(e);
        for (int i = 0; i < 5; i++)
            same(&alone[i], &other[i]);
        engine_free(e);
        e = open_engine(m, (struct engine_options){.max_batch = 2, .max_tokens = 128, .many = 1 + (int)(c / step) % 2});
        for (int i = 0; i < 5; i++)
            ask(e, &other[i], ids + i, length[i], (struct engine_request){.max_new = new});
        run(e);
        for (int i = 0; i < 5; i++)
            same(&alone[i], &other[i]);
        engine_free(e);
        model_free(m);
    }
}

/* A grammar of sorts: ids that differ from the last by an odd number.  Counts what it was asked. */
struct odd {
    int32_t last;
    int64_t filled, taken;
};

static bool odd_allows(void *ctx, int32_t id, int64_t left)
{
    struct odd *o = ctx;
    (void)left;
    return (id - o->last) & 1;
}

static void odd_fill(void *ctx, int64_t left, uint32_t *bits)
{
    struct odd *o = ctx;
    o->filled++;
    assert_true(left > 0);
    for (int32_t i = 0; i < 97; i++)
        if ((i - o->last) & 1)
            bits[i / 32] |= 1u << (i % 32);
}

static void odd_take(void *ctx, int32_t id)
{
    struct odd *o = ctx;
    assert_true((id - o->last) & 1);
    o->last = id;
    o->taken++;
}

static bool odd_done(void *ctx)
{
    (void)ctx;
    return false;
}

/* Sampled and constrained texts, too, are the same alone, in a batch and with drafts. */
static void sampling_and_masks(enum th_dtype dtype, int64_t new)
{
    static const struct engine_sampling how[4] = {{0}, {.temperature = 0.8, .seed = 5}, {.temperature = 1.5, .top_p = 0.9, .seed = 6},
                                                  {.temperature = 1, .top_p = 0.7, .top_k = 9, .seed = 7}};
    struct model *m;
    int32_t ids[2 * S];
    struct heard h[3][4] = {0};
    struct odd odd[3][4];
    struct token_mask mask[3][4];
    open_model("qwen-untied", dtype, &m, ids);
    for (int run_no = 0; run_no < 3; run_no++) {
        struct engine *e = open_engine(m, (struct engine_options){.max_batch = run_no == 1 ? 3 : 1, .max_tokens = 128});
        for (int i = 0; i < 4; i++) {
            bool masked = i != 1;
            odd[run_no][i] = (struct odd){.last = ids[i + 19]};
            mask[run_no][i] = (struct token_mask){.ctx = &odd[run_no][i], .n_words = 4, .allows = odd_allows, .fill = odd_fill, .take = odd_take, .done = odd_done};
            ask(e, &h[run_no][i], ids + i, 20, (struct engine_request){.sampling = how[i], .max_new = new, .draft = run_no == 2 ? 4 : 0,
                                                                      .mask = masked ? &mask[run_no][i] : NULL});
        }
        run(e);
        engine_free(e);
        for (int i = 0; i < 4; i++) {
            same(&h[0][i], &h[run_no][i]);
            assert_int_equal(h[run_no][i].n, new);
            if (i == 1)
                continue;
            assert_int_equal(h[run_no][i].r.changed, h[0][i].r.changed);
            assert_int_equal(odd[run_no][i].filled, h[0][i].r.changed);
            assert_int_equal(odd[run_no][i].taken, new);
        }
    }
    assert_true(h[0][0].r.changed > 0 && h[0][0].r.changed < new);
    assert_true(memcmp(h[0][1].ids, h[0][2].ids, sizeof h[0][1].ids)); /* other seeds, other texts */
    model_free(m);
}

static void sampling_and_masks_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    sampling_and_masks(TH_BF16, device == TH_CUDA ? 64 : 10);
    if (device == TH_CPU)
        sampling_and_masks(TH_F32, 64);
}

/* The device's choice is the CPU's, whatever the sampling; top-k and top-p keep what they say. */
static void devices_choose_alike(void **state)
{
    (void)state;
    struct model *m;
    int32_t ids[2 * S], out;
    open_model("llama-rope", TH_BF16, &m, ids);
    struct engine *e = open_engine(m, (struct engine_options){.max_tokens = 64, .vocab = 90});
    struct engine_way *w = engine_way_of(e);
    float v[97];
    uint32_t scratch[97], bits[4] = {0x0f0f0f0f, 0xffff, 0x12345678, 0};
    int64_t seen[97] = {0};
    struct engine_column col = {0, ids[9], 9};
    assert_int_equal(w->reserve(w, 0, S), 1);
    assert_int_equal(w->prefill(w, 0, ids, 9), 0);
    assert_int_equal(w->step(w, &col, 1, true), 0);
    assert_int_equal(w->logits(w, 0, v), 0);
    for (int i = 0; i < 120; i++) {
        struct engine_choice c = {.s = {.temperature = i % 5 * 0.5, .top_k = i % 3 ? i % 7 : 0, .top_p = i % 4 * 0.3, .seed = (uint64_t)i}, .at = i,
                                  .mask = i % 2 ? bits : NULL};
        assert_int_equal(w->choose(w, 0, 1, &c, &out), 0);
        assert_int_equal(out, engine_pick(v, 90, &c, scratch));
        assert_true(out < 90 && (i % 2 == 0 || (bits[out / 32] >> (out % 32) & 1)));
    }
    for (int i = 0; i < 20000; i++) /* the frequencies are the probabilities */
        seen[engine_pick(v, 97, &(struct engine_choice){.s = {.temperature = 1, .seed = 1}, .at = i}, scratch)]++;
    double sum = 0;
    for (int i = 0; i < 97; i++)
        sum += exp(v[i]);
    for (int i = 0; i < 97; i++)
        assert_true(fabs((double)seen[i] / 20000 - exp(v[i]) / sum) < 0.015);
    engine_free(e);
    model_free(m);
}

/* A model whose numbers overflow ends a sequence, with no token, and the others go on. */
static void what_is_no_number_is_no_token(void **state)
{
    (void)state;
    uint32_t scratch[8];
    float nan[8] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN}, some[8] = {NAN, 1, 2, NAN, 0, -INFINITY, -1, NAN}, over[8] = {0, INFINITY};
    for (int i = 0; i < 2; i++) {
        struct engine_choice c = {.s = {.temperature = i}};
        assert_int_equal(engine_pick(nan, 8, &c, scratch), -1);
        assert_int_equal(engine_pick(over, 8, &c, scratch), -1);
        assert_int_not_equal(engine_pick(some, 8, &c, scratch), -1);
    }
    for (int way = 0; way < (device == TH_CPU ? 3 : 2); way++) { /* the kernels, ATen's operators, the CPU's threads */
        struct model *m;
        int32_t ids[2 * S];
        struct heard h[4] = {0};
        struct odd odd = {.last = 1};
        struct token_mask mask = {.ctx = &odd, .n_words = 4, .allows = odd_allows, .fill = odd_fill, .take = odd_take, .done = odd_done};
        open_model("qwen-untied", way == 2 ? TH_F32 : TH_BF16, &m, ids);
        size_t scope = th_scope_begin();
        assert_int_equal(th_fill_(th_narrow(m->embed->w, 0, 5, 1), NAN), 0); /* whoever reads token 5 is lost */
        th_scope_end(scope);
        for (int i = 0; i < 40; i++)
            ids[i] = ids[i] == 5 ? 6 : ids[i];
        struct engine *e = open_engine(m, (struct engine_options){.max_batch = 4, .max_tokens = 64, .plain = way == 1});
        ask(e, &h[0], ids, 10, (struct engine_request){.max_new = 4});
        int32_t lost[3] = {ids[0], ids[1], 5};
        ask(e, &h[1], lost, 3, (struct engine_request){.max_new = 4});
        ask(e, &h[2], lost, 3, (struct engine_request){.max_new = 4, .sampling = {.temperature = 1, .seed = 1}});
        ask(e, &h[3], lost, 3, (struct engine_request){.max_new = 4, .mask = &mask});
        run(e);
        assert_true(h[0].done && (h[0].r.finish == ENGINE_LENGTH || h[0].r.finish == ENGINE_NOT_FINITE)); /* it may come to 5 itself */
        for (int i = 1; i < 4; i++)
            assert_true(h[i].done && h[i].r.finish == ENGINE_NOT_FINITE && h[i].n == 0);
        engine_free(e);
        model_free(m);
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct model *m;
    int32_t ids[2 * S];
    struct heard h[3] = {0};
    int64_t handle;
    open_model("qwen-tied", TH_F32, &m, ids);
    struct engine *e = open_engine(m, (struct engine_options){.max_tokens = 48});
    assert_int_equal(engine_submit(e, &(struct engine_request){.prompt = ids, .n_prompt = 0}, NULL), ERR_USAGE);
    assert_int_equal(engine_submit(e, &(struct engine_request){.prompt = ids, .n_prompt = 48}, NULL), ERR_USAGE);
    assert_non_null(strstr(err_text(), "48 tokens"));
    int32_t bad[2] = {3, 97};
    assert_int_equal(engine_submit(e, &(struct engine_request){.prompt = bad, .n_prompt = 2}, NULL), ERR_FORMAT);
    assert_int_equal(engine_step(e), 0);
    ask(e, &h[0], ids, S, (struct engine_request){.max_new = 100}); /* as far as there is room */
    h[1].stop_at = 3;
    ask(e, &h[1], ids, 5, (struct engine_request){.max_new = 100});
    run(e);
    assert_int_equal(h[0].n, 8);
    assert_int_equal(h[0].r.finish, ENGINE_LENGTH);
    assert_int_equal(h[1].n, 3);
    assert_int_equal(h[1].r.finish, ENGINE_STOP);
    /* one that waits and one that runs are cancelled */
    ask(e, &h[0], ids, 5, (struct engine_request){.max_new = 20});
    assert_int_equal(engine_submit(e, &(struct engine_request){.prompt = ids, .n_prompt = 5, .done = hear_end, .ctx = &h[2]}, &handle), 0);
    assert_int_equal(engine_step(e), 1);
    engine_cancel(e, handle);
    engine_cancel(e, handle - 1);
    assert_int_equal(engine_step(e), 0);
    assert_true(h[0].done && h[0].r.finish == ENGINE_CANCELLED && h[2].done && h[2].r.finish == ENGINE_CANCELLED);
    engine_free(e);
    if (device == TH_CPU) {
        struct engine_options o = {.fp8 = true};
        assert_int_equal(engine_new(m, &o, &e), ERR_USAGE);
        assert_non_null(strstr(err_text(), "fp8"));
    }
    model_free(m);
}

static void batches_and_drafts_change_nothing(void **state)
{
    (void)state;
    change_nothing(TH_BF16, device == TH_CUDA ? 1 : 2, device == TH_CUDA ? 64 : 12); /* emulation takes its time */
    if (device == TH_CPU)
        change_nothing(TH_F32, 1, 64);
}

/* Sizes at which all slices, tiles and parts of the kernels are in use, some half: logits of tokens one by one, by twelve, and treated as
 * many, are the same to the bit, and as near to float32's as ATen's.  rank: with an adapter of it beside the weights, of all matrices but those
 * in `without` (bits). */
static void sizes(void **state, int d, int ff, int layers, int heads, int head_dim, int rank, unsigned without)
{
    enum { PROMPT = 290, MORE = 12, ALL = PROMPT + MORE, VOCAB = 300 };
    const char *dir = *(char **)state;
    FILE *f = fopen(in_dir(state, "config.json"), "w");
    assert_non_null(f);
    fprintf(f, "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", \"hidden_size\": %d, \"intermediate_size\": %d, "
               "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": 2, \"head_dim\": %d, \"vocab_size\": %d, "
               "\"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000, \"tie_word_embeddings\": false}",
            d, ff, layers, heads, head_dim, VOCAB);
    fclose(f);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        struct model *m, *wide;
        int32_t ids[ALL];
        if (model_init(dir, TH_BF16, device, 3, &m) < 0 || model_init(dir, TH_F32, device, 3, &wide) < 0)
            fail_msg("%s", err_text());
        struct lora_config lora = {.r = rank, .alpha = 2 * rank};
        for (int t = 0; t < LORA_TARGETS; t++)
            lora.target[t] = !(without & 1u << t);
        if (rank && (lora_attach(m, &lora, 1) < 0 || lora_attach(wide, &lora, 1) < 0))
            fail_msg("%s", err_text());
        for (size_t i = 0; i < m->n_params; i++) /* where it would show if something were not added */
            if (strstr(m->params[i]->name, "lora_B"))
                th_normal_(m->params[i]->w, 0, 0.2);
        for (size_t i = 0; i < m->n_params; i++) /* norms and biases that show when they are left out */
            if (th_rank(m->params[i]->w) == 1)
                th_normal_(m->params[i]->w, strstr(m->params[i]->name, "norm") ? 1 : 0, 0.1);
        if (fp8)
            assert_int_equal(engine_round_fp8(m), 0);
        for (size_t i = 0; i < m->n_params; i++)
            assert_int_equal(th_copy_(wide->params[i]->w, m->params[i]->w), 0);
        for (int i = 0; i < ALL; i++)
            ids[i] = (i * 7919 + i / 3) % VOCAB;
        static float exact[ALL * VOCAB], half[ALL * VOCAB], ours[4][MORE * VOCAB];
        size_t scope = th_scope_begin();
        assert_int_equal(th_read(model_logits(wide, ids, ALL), exact), 0);
        assert_int_equal(th_read(model_logits(m, ids, ALL), half), 0);
        th_scope_end(scope);
        for (int many = 0; many < 3; many++) {
            struct engine *e = open_engine(m, (struct engine_options){.max_batch = 2, .max_tokens = ALL, .fp8 = fp8, .many = many});
            struct engine_way *w = engine_way_of(e);
            assert_string_equal(w->name, "cuda-graph");
            for (int one = 0; one < (many ? 1 : 2); one++) {
                assert_int_equal(w->reserve(w, one, ALL), 1);
                assert_int_equal(w->prefill(w, one, ids, PROMPT), 0);
                for (int i = 0, k; i < MORE; i += k) {
                    struct engine_column col[MORE];
                    k = one ? 1 : MORE;
                    for (int j = 0; j < k; j++)
                        col[j] = (struct engine_column){one, ids[PROMPT + i + j], PROMPT + i + j};
                    assert_int_equal(w->step(w, col, k, true), 0);
                    for (int j = 0; j < k; j++)
                        assert_int_equal(w->logits(w, j, ours[many ? 1 + many : one] + (i + j) * VOCAB), 0);
                }
            }
            engine_free(e);
        }
        double theirs = rms(half + PROMPT * VOCAB, exact + PROMPT * VOCAB, MORE * VOCAB), our = rms(ours[0], exact + PROMPT * VOCAB, MORE * VOCAB);
        if (!(our < 2 * theirs))
            fail_msg("%s: %g from float32, ATen %g", fp8 ? "fp8" : "bfloat16", our, theirs);
        assert_memory_equal(ours[0], ours[1], sizeof ours[0]);
        assert_memory_equal(ours[0], ours[2], sizeof ours[0]);
        assert_memory_equal(ours[0], ours[3], sizeof ours[0]);
        model_free(wide);
        model_free(m);
    }
}

static void larger_sizes(void **state)
{
    sizes(state, 328, 616, 2, 6, 80, 0, 0);
    sizes(state, 2408, 72, 1, 4, 64, 0, 0); /* wider than what one warp holds of a model of 2,048: Llama-3.2-3B's way */
}

static void adapters_beside_the_weights(void **state)
{
    sizes(state, 72, 136, 2, 4, 32, 16, 0);
    sizes(state, 328, 616, 1, 6, 80, 21, 1u << LORA_K | 1u << LORA_UP | 1u << LORA_O);
    sizes(state, 72, 136, 1, 4, 32, 3, ~(1u << LORA_V | 1u << LORA_DOWN));
}

int main(void)
{
    const char *d = getenv("TEST_DEVICE");
    char lib[4096] = "";
    ssize_t n = readlink("/proc/self/exe", lib, sizeof lib - 64);
    if (!d && n > 0) { /* BUILD/tests/test_model_engine -> BUILD/lib/libkernels_emulated.so */
        for (int i = 0; i < 2; i++)
            *strrchr(lib, '/') = 0;
        strcat(lib, "/lib/libkernels_emulated.so");
        setenv("STEP_LLM_KERNELS", lib, 1);
    }
    if (th_device_open(d ? d : "cpu", &device) < 0) {
        fprintf(stderr, "%s: %s\n", d, err_text());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_the_models),
        TEST_IN_DIR(larger_sizes),
        TEST_IN_DIR(adapters_beside_the_weights),
        cmocka_unit_test(greedy_decoding_equals_transformers),
        cmocka_unit_test(an_adapter_may_stay_beside_the_weights),
        cmocka_unit_test(batches_and_drafts_change_nothing),
        cmocka_unit_test(sampling_and_masks_do_not_depend_on_the_batch),
        cmocka_unit_test(devices_choose_alike),
        cmocka_unit_test(what_is_no_number_is_no_token),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
