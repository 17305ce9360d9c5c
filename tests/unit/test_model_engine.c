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

/* Logits of every step, teacher-forced, against those of the whole sequence at once in the same precision. */
static void logits_equal_the_models(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct model *m;
        int32_t ids[2 * S];
        open_model(cases[c], TH_BF16, &m, ids, NULL);
        struct engine *e = open_engine(m, (struct engine_options){.max_tokens = 64});
        struct engine_way *w = engine_way_of(e);
        int64_t vocab = m->cfg.vocab;
        float *want = xmalloc((size_t)(S * vocab) * 4), *got = xmalloc((size_t)vocab * 4), top = 0, worst = 0;
        assert_string_equal(w->name, "cuda-persistent");
        size_t scope = th_scope_begin();
        assert_int_equal(th_read(model_logits(m, ids, S), want), 0);
        th_scope_end(scope);
        assert_int_equal(w->reserve(w, 0, S), 1);
        assert_int_equal(w->prefill(w, 0, ids, 9), 0);
        for (int i = 9; i < S; i += i < 20 ? 1 : 5) { /* one column a step, then five */
            struct engine_column col[5];
            int n = i < 20 ? 1 : 5;
            for (int k = 0; k < n; k++)
                col[k] = (struct engine_column){0, ids[i + k], i + k};
            assert_int_equal(w->step(w, col, n, true), 0);
            for (int k = 0; k < n; k++) {
                if (w->logits(w, k, got) < 0)
                    fail_msg("%s", err_text());
                for (int64_t v = 0; v < vocab; v++) {
                    top = fmaxf(top, fabsf(want[(i + k) * vocab + v]));
                    worst = got[v] == got[v] ? fmaxf(worst, fabsf(got[v] - want[(i + k) * vocab + v])) : INFINITY;
                }
            }
        }
        if (!(worst < 0.03f * top))
            fail_msg("%s: off by %g of %g", cases[c], worst, top);
        free(want);
        free(got);
        engine_free(e);
        model_free(m);
    }
}

/* Sequences of different lengths alone, together, in a batch with fewer places, with drafts: the same tokens. */
static void batches_and_drafts_change_nothing(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct model *m;
        int32_t ids[2 * S];
        static const size_t length[5] = {S, 17, 1, 30, 2};
        struct heard alone[5] = {0}, other[5] = {0};
        open_model(cases[c], TH_BF16, &m, ids, NULL);
        struct engine *e = open_engine(m, (struct engine_options){.max_batch = 1, .max_tokens = 128});
        for (int i = 0; i < 5; i++)
            ask(e, &alone[i], ids + i, length[i], (struct engine_request){0});
        run(e);
        for (int i = 0; i < 5; i++)
            ask(e, &other[i], ids + i, length[i], (struct engine_request){.draft = 7});
        run(e);
        for (int i = 0; i < 5; i++) {
            same(&alone[i], &other[i]);
            assert_int_equal(other[i].r.steps + other[i].r.accepted, other[i].n);
        }
        engine_free(e);
        e = open_engine(m, (struct engine_options){.max_batch = 3, .max_tokens = 128});
        for (int i = 0; i < 5; i++)
            ask(e, &other[i], ids + i, length[i], (struct engine_request){.draft = i});
        run(e);
        for (int i = 0; i < 5; i++)
            same(&alone[i], &other[i]);
        engine_free(e);
        model_free(m);
    }
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
        cmocka_unit_test(batches_and_drafts_change_nothing),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
