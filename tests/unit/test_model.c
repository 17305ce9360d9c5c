/* transformer.c against Transformers and PEFT: tests/golden/torch (made by make.py there).
 * TEST_DEVICE=cuda runs all of it on a GPU, TEST_DTYPE=bfloat16 in that precision (make test-gpu). */
#include "tests/unit/testutil.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/mem.h"
#include "lib/safetensors.h"
#include "model/dataset.h"
#include "model/transformer.h"

#define GOLDEN "tests/golden/torch/"
static const char *const cases[] = {"qwen-tied", "qwen-untied", "llama-rope", "llama-untied"};
enum { S = 40 };

static enum th_device device = TH_CPU;
static enum th_dtype dtype = TH_F32;
static double tolerance = 1e-4, loss_tolerance = 1e-5;

struct golden {
    struct model *m;
    struct st *expect;
    int32_t ids[2][S];
    struct sequence seq[2];
};

static void open_into(struct golden *out, const char *name)
{
    char path[256];
    const struct st_tensor *t;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    assert_int_equal(model_load(path, dtype, device, &out->m), 0);
    snprintf(path, sizeof path, GOLDEN "%s/expect.safetensors", name);
    assert_int_equal(st_open(path, &out->expect), 0);
    assert_non_null(t = st_find(out->expect, "ids"));
    for (int i = 0; i < 2 * S; i++)
        out->ids[i / S][i % S] = (int32_t)((const int64_t *)t->data)[i];
    assert_non_null(t = st_find(out->expect, "response"));
    for (int i = 0; i < 2; i++)
        out->seq[i] = (struct sequence){.ids = out->ids[i], .n = S, .response = (size_t)*(const int64_t *)t->data};
}

static void close_case(struct golden *g)
{
    model_free(g->m);
    st_close(g->expect);
}

/* Largest difference over the largest element expected. */
static double relative(const float *got, const struct st_tensor *want)
{
    double worst = 0, largest = 0;
    const float *w = want->data;
    for (size_t i = 0; i < want->bytes / 4; i++) {
        largest = fmax(largest, fabs(w[i]));
        worst = got[i] == got[i] ? fmax(worst, fabs(got[i] - w[i])) : INFINITY;
    }
    return worst / largest;
}

static void check(th_tensor *x, const struct st *expect, const char *prefix, const char *name)
{
    char key[256];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    const struct st_tensor *want = st_find(expect, key);
    if (!x || !want)
        fail_msg("%s: %s", key, x ? "no such vector" : err_text());
    assert_int_equal(th_numel(x) * 4, want->bytes);
    float *got = xmalloc(want->bytes);
    assert_int_equal(th_read(x, got), 0);
    double r = relative(got, want);
    if (!(r < tolerance))
        fail_msg("%s is off by %g", key, r);
    free(got);
}

static void check_gradients(struct golden *g, const char *prefix)
{
    int n = 0;
    for (size_t i = 0; i < g->m->n_params; i++)
        if (g->m->params[i]->trained) {
            check(g->m->params[i]->grad, g->expect, prefix, g->m->params[i]->name);
            n++;
        }
    assert_true(n >= 20);
}

static void check_loss(struct golden *g, const char *name, double loss)
{
    double want = *(const float *)st_find(g->expect, name)->data;
    assert_true(fabs(loss - want) < loss_tolerance * want);
}

static void logits_equal_transformers(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct golden g;
        open_into(&g, cases[c]);
        size_t scope = th_scope_begin();
        check(model_logits(g.m, g.ids[0], S), g.expect, "", "logits");
        th_scope_end(scope);
        close_case(&g);
    }
}

static void every_weights_gradient_equals_transformers(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++)
        for (int recompute = 0; recompute < 2; recompute++) {
            struct golden g;
            open_into(&g, cases[c]);
            double loss;
            size_t n;
            g.m->memory = recompute ? MEMORY_LOW : MEMORY_HIGH;
            assert_int_equal(model_train_all(g.m), 0);
            assert_int_equal(model_loss(g.m, g.seq, 2, true, 1, &loss, &n), 0);
            assert_int_equal(n, 2 * (S - g.seq[0].response));
            check_loss(&g, "full_loss", loss);
            check_gradients(&g, "full.");
            close_case(&g);
        }
}

static char *adapter_of(const char *name)
{
    return xasprintf(GOLDEN "%s/adapter", name);
}

static void adapter_gradients_equal_peft(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct golden g;
        open_into(&g, cases[c]);
        struct lora_config lc;
        double loss;
        size_t n;
        char *dir = adapter_of(cases[c]);
        assert_int_equal(lora_load(g.m, dir, true, &lc), 0);
        size_t scope = th_scope_begin();
        check(model_logits(g.m, g.ids[0], S), g.expect, "", "lora_logits");
        th_scope_end(scope);
        /* one sequence at a time sums to the same as both at once, and no frozen weight gets a gradient */
        assert_int_equal(model_loss(g.m, g.seq, 1, true, 1, &loss, &n), 0);
        double sum = loss;
        assert_int_equal(model_loss(g.m, g.seq + 1, 1, true, 1, &loss, &n), 0);
        check_loss(&g, "lora_loss", sum + loss);
        check_gradients(&g, "lora.");
        for (size_t i = 0; i < g.m->n_params; i++)
            assert_true(g.m->params[i]->trained == !strncmp(g.m->params[i]->name, "base_model.", 11));
        free(dir);
        close_case(&g);
    }
}

/* With products in 8 bits the loss and the adapters' gradients, all of them together, are off by what e4m3 rounds off; kept or computed again alike. */
static void eight_bit_passes_are_near(void **state)
{
    (void)state;
    if (device == TH_CUDA && dtype != TH_BF16)
        return;
    for (size_t c = 0; c < 2 * ARRAY_LEN(cases); c++) {
        struct golden g;
        struct lora_config lc;
        open_into(&g, cases[c / 2]);
        double loss, want = *(const float *)st_find(g.expect, "lora_loss")->data, off = 0, size = 0;
        size_t n;
        char *dir = adapter_of(cases[c / 2]), key[256];
        assert_int_equal(lora_load(g.m, dir, true, &lc), 0);
        g.m->fp8 = true;
        g.m->memory = c % 2 ? MEMORY_LOW : MEMORY_HIGH;
        assert_int_equal(model_loss(g.m, g.seq, 2, true, 1, &loss, &n), 0);
        for (size_t i = 0; i < g.m->n_params; i++) {
            if (!g.m->params[i]->trained)
                continue;
            snprintf(key, sizeof key, "lora.%s", g.m->params[i]->name);
            const struct st_tensor *t = st_find(g.expect, key);
            float *got = xmalloc(t->bytes);
            assert_int_equal(th_read(g.m->params[i]->grad, got), 0);
            for (size_t k = 0; k < t->bytes / 4; k++) {
                double w = ((const float *)t->data)[k];
                off += (got[k] - w) * (got[k] - w);
                size += w * w;
            }
            free(got);
        }
        off = sqrt(off / size);
        if (!(fabs(loss - want) < 0.02 * want && fabs(loss - want) > 1e-6 * want && off < 0.35 && off > 1e-3))
            fail_msg("%s, memory %d: loss %g for %g, gradients off by %g", cases[c / 2], (int)g.m->memory, loss, want, off);
        free(dir);
        close_case(&g);
    }
}

/* Of more than three layers the first two and the last are not in 8 bits.  Where only one layer's products reach the residual stream, 8 bits make a difference
 * if it is one of the others. */
static void first_and_last_layers_are_not_in_eight_bits(void **state)
{
    const char *config = "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":128,\"intermediate_size\":192,\"num_hidden_layers\":4,"
                         "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"vocab_size\":104,\"initializer_range\":0.1}";
    int32_t ids[60];
    struct sequence seq = {.ids = ids, .n = ARRAY_LEN(ids), .response = 20};
    if (device == TH_CUDA && dtype != TH_BF16)
        return;
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        ids[i] = (int32_t)(i * i % 101 + i % 3);
    assert_int_equal(mkdir_p(in_dir(state, "cfg")), 0);
    assert_int_equal(file_write(in_dir(state, "cfg/config.json"), config, strlen(config), false), 0);
    for (int alone = 0; alone < 4; alone++) {
        double loss[2];
        for (int fp8 = 0; fp8 < 2; fp8++) {
            struct model *m;
            size_t n;
            assert_int_equal(model_init(in_dir(state, "cfg"), dtype, device, 5, &m), 0);
            for (int i = 0; i < 4; i++)
                for (int p = LORA_O; p <= LORA_DOWN && i != alone; p += LORA_DOWN - LORA_O)
                    assert_int_equal(th_fill_(m->layers[i].proj[p].w->w, 0), 0);
            m->fp8 = fp8;
            assert_int_equal(model_loss(m, &seq, 1, false, 1, &loss[fp8], &n), 0);
            model_free(m);
        }
        if ((loss[0] == loss[1]) != (alone != 2))
            fail_msg("layer %d: loss %.9g, with 8 bits %.9g", alone, loss[0], loss[1]);
    }
}

static void adapters_survive_saving_and_merging(void **state)
{
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct golden g, h;
        open_into(&g, cases[c]);
        open_into(&h, cases[c]);
        struct lora_config lc;
        char *dir = adapter_of(cases[c]);
        assert_int_equal(lora_load(g.m, dir, false, &lc), 0);
        assert_int_equal(lora_save(g.m, &lc, in_dir(state, "a"), "base"), 0);
        assert_int_equal(lora_load(h.m, in_dir(state, "a"), false, &lc), 0);
        assert_int_equal(lora_merge(h.m), 0);
        size_t scope = th_scope_begin();
        check(model_logits(h.m, h.ids[0], S), h.expect, "", "lora_logits");
        th_scope_end(scope);
        assert_int_equal(model_save(h.m, in_dir(state, "m"), TH_F32), 0);
        struct st *st;
        assert_int_equal(st_open(in_dir(state, "m"), &st), 0);
        assert_int_equal(st_count(st), h.m->n_params);
        st_close(st);
        free(dir);
        close_case(&g);
        close_case(&h);
    }
}

static void a_packed_batch_equals_single_sequences(void **state)
{
    (void)state;
    struct golden g;
    open_into(&g, "qwen-tied");
    double both, one, two;
    size_t n;
    g.seq[1].n = 23;
    assert_int_equal(model_loss(g.m, g.seq, 2, false, 1, &both, &n), 0);
    assert_int_equal(model_loss(g.m, g.seq, 1, false, 1, &one, &n), 0);
    assert_int_equal(model_loss(g.m, g.seq + 1, 1, false, 1, &two, &n), 0);
    assert_true(fabs(both - one - two) < loss_tolerance * both);
    close_case(&g);
}

/* Sequences of very different lengths in one pass: on a GPU each way that attention has (alone, rounded up; together), with every level of
 * what is kept, against one sequence at a time. */
static void packed_gradients_equal_those_of_single_sequences(void **state)
{
    const char *config = "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":128,\"intermediate_size\":192,\"num_hidden_layers\":2,"
                         "\"num_attention_heads\":32,\"num_key_value_heads\":2,\"head_dim\":64,\"vocab_size\":104,\"initializer_range\":0.1}";
    size_t lengths[] = {50, 2300, 300, 2048}, n = ARRAY_LEN(lengths), total = 0, covered;
    static int32_t ids[5000];
    struct sequence seq[ARRAY_LEN(lengths)];
    struct model *m;
    double loss, sum = 0;
    for (size_t i = 0; i < n; i++) {
        lengths[i] = device == TH_CUDA ? lengths[i] : lengths[i] / 16;
        seq[i] = (struct sequence){.ids = ids + total, .n = lengths[i], .response = lengths[i] / 2};
        total += lengths[i];
    }
    for (size_t i = 0; i < total; i++)
        ids[i] = (int32_t)(i * i % 101 + i % 3);
    assert_int_equal(mkdir_p(in_dir(state, "cfg")), 0);
    assert_int_equal(file_write(in_dir(state, "cfg/config.json"), config, strlen(config), false), 0);
    assert_int_equal(model_init(in_dir(state, "cfg"), dtype, device, 5, &m), 0);
    assert_int_equal(model_train_all(m), 0);
    size_t scope = th_scope_begin();
    th_tensor **single = xcalloc(m->n_params, sizeof *single);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(model_loss(m, seq + i, 1, true, 0.01, &loss, &covered), 0);
        sum += loss;
    }
    for (size_t i = 0; i < m->n_params; i++)
        single[i] = th_clone(m->params[i]->grad);
    for (enum model_memory memory = MEMORY_AUTO; memory <= MEMORY_HIGH; memory++) {
        m->memory = memory;
        assert_int_equal(model_zero_grad(m), 0);
        assert_int_equal(model_loss(m, seq, n, true, 0.01, memory == MEMORY_LOW ? NULL : &loss, &covered), 0);
        if (memory == MEMORY_LOW)
            assert_int_equal(model_losses(m, &loss, 1), 0);
        assert_true(fabs(loss - sum) < loss_tolerance * sum);
        for (size_t i = 0; i < m->n_params; i++) {
            double off = th_item(th_norm(th_add(m->params[i]->grad, single[i], -1))), size = th_item(th_norm(single[i]));
            if (!(off < tolerance * (size + 1e-4)) && strstr(m->params[i]->name, "k_proj.bias") == NULL) /* whose gradient is zero */
                fail_msg("%s, memory %d: off by %g of %g", m->params[i]->name, (int)memory, off, size);
        }
    }
    th_scope_end(scope);
    free(single);
    model_free(m);
}

static void passes_hold_what_fits(void **state)
{
    (void)state;
    const struct sequence v[] = {{.n = 30}, {.n = 100}, {.n = 60}, {.n = 41}, {.n = 40}, {.n = 10}, {.n = 130}};
    const size_t want[] = {3, 1, 2, 3, 2, 3, 0};
    size_t pass[ARRAY_LEN(v)];
    assert_int_equal(dataset_pack(v, ARRAY_LEN(v), 100, pass), 4);
    for (size_t i = 0; i < ARRAY_LEN(v); i++)
        assert_int_equal(pass[i], want[i]);
    assert_int_equal(dataset_pack(v, ARRAY_LEN(v), 1000, pass), 1);
    assert_int_equal(dataset_pack(v, 0, 100, pass), 0);
}

static int32_t argmax(const float *v, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    return (int32_t)best;
}

/* Greedy decoding of one row, or of three rows of different lengths that must not disturb each other. */
static void decode_as_peft(const char *name, int64_t rows)
{
    struct golden g;
    open_into(&g, name);
    struct kv_cache *kv;
    char *dir = adapter_of(name);
    const struct st_tensor *want = st_find(g.expect, "generated");
    int64_t n = want->shape[0], vocab = g.m->cfg.vocab;
    float *logits = xmalloc((size_t)(rows * vocab) * sizeof *logits);
    int32_t last[3];
    assert_int_equal(lora_load(g.m, dir, false, NULL), 0);
    assert_int_equal(kv_cache_new(g.m, rows, S + n, &kv), 0);
    for (int64_t r = rows - 1; r >= 0; r--) {
        size_t scope = th_scope_begin();
        assert_int_equal(th_read(model_prefill(g.m, kv, r, r ? g.ids[1] : g.ids[0], r ? (size_t)(7 * r) : S), logits), 0);
        last[r] = argmax(logits, vocab);
        th_scope_end(scope);
    }
    for (int64_t i = 0; i < n; i++) {
        if (dtype == TH_BF16) /* near ties fall otherwise: only that it runs and stays in range */
            last[0] = (int32_t)((const int64_t *)want->data)[i];
        if (last[0] != ((const int64_t *)want->data)[i])
            fail_msg("%s, %d rows: token %d is %d, not %d", name, (int)rows, (int)i, last[0], (int)((const int64_t *)want->data)[i]);
        size_t scope = th_scope_begin();
        assert_int_equal(th_read(model_decode(g.m, kv, rows, last), logits), 0);
        for (int64_t r = 0; r < rows; r++)
            last[r] = argmax(logits + r * vocab, vocab);
        th_scope_end(scope);
    }
    kv_cache_free(kv);
    free(logits);
    free(dir);
    close_case(&g);
}

static void greedy_decoding_equals_transformers(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        decode_as_peft(cases[c], 1);
        decode_as_peft(cases[c], 3);
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    struct golden g;
    open_into(&g, "qwen-tied");
    struct model *m;
    double loss;
    size_t n;
    g.ids[0][3] = 97;
    assert_int_equal(model_loss(g.m, g.seq, 1, false, 1, &loss, &n), ERR_FORMAT);
    assert_int_equal(lora_load(g.m, GOLDEN "llama-untied/adapter", false, NULL), ERR_FORMAT); /* other head size */
    assert_non_null(strstr(err_text(), "does not fit"));
    close_case(&g);
    assert_int_equal(model_load(in_dir(state, "none"), TH_F32, TH_CPU, &m), ERR_IO);
    assert_int_equal(mkdir_p(in_dir(state, "bert")), 0);
    const char *cfg = "{\"architectures\":[\"BertModel\"]}";
    assert_int_equal(file_write(in_dir(state, "bert/config.json"), cfg, strlen(cfg), false), 0);
    assert_int_equal(model_init(in_dir(state, "bert"), TH_F32, TH_CPU, 1, &m), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "BertModel"));
    assert_null(m);
}

int main(void)
{
    const char *d = getenv("TEST_DEVICE"), *t = getenv("TEST_DTYPE");
    if (t && !strcmp(t, "bfloat16")) {
        dtype = TH_BF16;
        tolerance = 0.1; /* 2^-8 a rounding, some dozens of them in a row */
        loss_tolerance = 5e-3;
    }
    if (th_device_open(d ? d : "cpu", &device) < 0) {
        fprintf(stderr, "%s: %s\n", d, err_text());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_transformers),
        cmocka_unit_test(every_weights_gradient_equals_transformers),
        cmocka_unit_test(adapter_gradients_equal_peft),
        TEST_IN_DIR(first_and_last_layers_are_not_in_eight_bits),
        TEST_IN_DIR(adapters_survive_saving_and_merging),
        cmocka_unit_test(a_packed_batch_equals_single_sequences),
        cmocka_unit_test(eight_bit_passes_are_near),
        cmocka_unit_test(passes_hold_what_fits),
        TEST_IN_DIR(packed_gradients_equal_those_of_single_sequences),
        cmocka_unit_test(greedy_decoding_equals_transformers),
        TEST_IN_DIR(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
