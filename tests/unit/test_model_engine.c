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

static void open_model(const char *name, enum th_dtype dtype, struct model **m, int32_t ids[2 * S], int32_t *generated)
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
    assert_non_null(t = st_find(st, "generated"));
    for (int i = 0; i < NEW && generated; i++)
        generated[i] = (int32_t)((const int64_t *)t->data)[i];
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
        open_model(cases[c % ARRAY_LEN(cases)], TH_BF16, &m, ids, NULL);
        open_model(cases[c % ARRAY_LEN(cases)], TH_F32, &wide, ids, NULL);
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
        assert_string_equal(w->name, "cuda-persistent");
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

/* Greedy tokens of float32 on the CPU are Transformers' (with PEFT's adapter), alone and beside others. */
static void greedy_decoding_equals_transformers(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++)
        for (int way = 0; way < 2; way++) { /* the CPU's own, and ATen's */
            struct model *m;
            int32_t ids[2 * S], want[NEW];
            struct heard h[3] = {0};
            open_model(cases[c], TH_F32, &m, ids, want);
            struct engine *e = open_engine(m, (struct engine_options){.max_batch = 2, .max_tokens = 128, .plain = way == 1, .threads = 2});
            assert_string_equal(engine_way_of(e)->name, way ? "aten" : device == TH_CPU ? "cpu" : "aten");
            ask(e, &h[0], ids + S, 13, (struct engine_request){.max_new = 5});
            ask(e, &h[1], ids, S, (struct engine_request){.draft = 5});
            ask(e, &h[2], ids, S, (struct engine_request){0});
            run(e);
            assert_int_equal(h[0].n, 5);
            for (int k = 1; k < 3; k++) {
                assert_int_equal(h[k].n, NEW);
                assert_memory_equal(h[k].ids, want, sizeof want);
            }
            engine_free(e);
            model_free(m);
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
        open_model(cases[c], dtype, &m, ids, NULL);
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
        model_free(m);
    }
}

static void batches_and_drafts_change_nothing(void **state)
{
    (void)state;
    change_nothing(TH_BF16, device == TH_CUDA ? 1 : 2, device == TH_CUDA ? 64 : 12); /* emulation takes its time */
    if (device == TH_CPU)
        change_nothing(TH_F32, 1, 64);
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
        cmocka_unit_test(greedy_decoding_equals_transformers),
        cmocka_unit_test(batches_and_drafts_change_nothing),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
