/* optim.c: AdamW by its formula in double, 8-bit AdamW against bitsandbytes (tests/golden/optim, made by make.py there),
 * clipping, schedules, state.  TEST_DEVICE=cuda runs all of it on a GPU, kernels against twins too (make test-gpu). */
#include "tests/unit/testutil.h"

#include <math.h>
#include <stdio.h>

#include "lib/mem.h"
#include "lib/safetensors.h"
#include "model/optim.h"
#include "shim/kernels.h"

static enum th_device device = TH_CPU;

static void schedules_are_those_of_transformers(void **state)
{
    (void)state;
    assert_true(schedule_factor(SCHEDULE_LINEAR, 0, 4, 12) == 0);
    assert_true(schedule_factor(SCHEDULE_LINEAR, 3, 4, 12) == 0.75);
    assert_true(schedule_factor(SCHEDULE_LINEAR, 4, 4, 12) == 1);
    assert_true(schedule_factor(SCHEDULE_LINEAR, 8, 4, 12) == 0.5);
    assert_true(schedule_factor(SCHEDULE_LINEAR, 12, 4, 12) == 0);
    assert_true(fabs(schedule_factor(SCHEDULE_COSINE, 8, 4, 12) - 0.5) < 1e-12);
    assert_true(schedule_factor(SCHEDULE_CONSTANT, 9, 4, 12) == 1);
}

/* A model of two matrices. */
struct toy {
    struct model m;
    struct param p[2];
    struct param *list[2];
    struct adamw *o;
    int64_t n[2];
};

static void make_toy(struct toy *t, enum th_device d, enum th_dtype dtype, bool bits8, const int64_t shape[2][2], float *const w[2])
{
    *t = (struct toy){.m = {.params = t->list, .n_params = 2, .device = d, .dtype = dtype}};
    const struct adamw_config c = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .bits8 = bits8};
    size_t scope = th_scope_begin();
    for (int i = 0; i < 2; i++) {
        struct param *p = t->list[i] = &t->p[i];
        *p = (struct param){.name = i ? "b" : "a", .trained = true, .decay = true};
        t->n[i] = shape[i][0] * shape[i][1];
        p->master = th_keep(th_from(w[i], 2, shape[i], TH_F32, d));
        p->w = dtype == TH_F32 ? p->master : th_keep(th_clone(th_to(p->master, dtype, d)));
        p->grad = th_keep(th_zeros(2, shape[i], TH_F32, d));
    }
    assert_int_equal(adamw_new(&t->m, &c, &t->o), 0);
    th_scope_end(scope);
}

static void free_toy(struct toy *t)
{
    adamw_free(t->o);
    for (int i = 0; i < 2; i++) {
        if (t->p[i].master != t->p[i].w)
            th_free(t->p[i].master);
        th_free(t->p[i].w);
        th_free(t->p[i].grad);
    }
}

static void set_grad(struct toy *t, int i, const float *g)
{
    size_t scope = th_scope_begin();
    int64_t shape[2] = {th_size(t->p[i].grad, 0), th_size(t->p[i].grad, 1)};
    assert_int_equal(th_copy_(t->p[i].grad, th_borrow(g, 2, shape, TH_F32)), 0);
    th_scope_end(scope);
}

static float *weights(struct toy *t, int i)
{
    float *w = xmalloc((size_t)t->n[i] * sizeof *w);
    assert_int_equal(th_read(t->p[i].master, w), 0);
    return w;
}

static void set_toy_grads(struct toy *t, int step)
{
    float g[2][6];
    for (int i = 0; i < 12; i++)
        g[i / 6][i % 6] = (float)sin(step * 7 + i) * (i == 2 ? 100 : 1);
    for (int i = 0; i < 2; i++)
        set_grad(t, i, g[i]);
}

static const int64_t toy_shape[2][2] = {{2, 3}, {3, 2}};
static float toy_start[2][6] = {{1, -2, 3, 0.5f, -0.25f, 0}, {4, 5, -6, 0.125f, 9, 1}};
static float *const toy_weights[2] = {toy_start[0], toy_start[1]};

static void steps_follow_the_formula_and_survive_a_restart(void **state)
{
    double w[12], m[12] = {0}, v[12] = {0};
    struct toy a, b;
    for (int i = 0; i < 12; i++)
        w[i] = toy_start[i / 6][i % 6];
    make_toy(&a, device, TH_F32, false, toy_shape, toy_weights);
    make_toy(&b, device, TH_F32, false, toy_shape, toy_weights);
    for (int s = 1; s <= 10; s++) {
        set_toy_grads(&a, s);
        assert_int_equal(adamw_step(a.o, 0.05, 0), 0);
        for (int i = 0; i < 12; i++) {
            double g = (float)sin(s * 7 + i) * (i == 2 ? 100 : 1);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            w[i] -= 0.05 * 0.01 * w[i];
            w[i] -= 0.05 * (m[i] / (1 - pow(0.9, s))) / (sqrt(v[i] / (1 - pow(0.999, s))) + 1e-8);
        }
        if (s == 5)
            assert_int_equal(adamw_save(a.o, in_dir(state, "o.safetensors")), 0);
    }
    assert_int_equal(adamw_load(b.o, in_dir(state, "o.safetensors")), 0);
    for (int s = 6; s <= 10; s++) {
        set_toy_grads(&b, s);
        assert_int_equal(adamw_step(b.o, 0.05, 0), 0);
    }
    for (int k = 0; k < 2; k++) {
        float *got = weights(&a, k), *again = weights(&b, k);
        for (int i = 0; i < 6; i++) {
            assert_true(fabs(got[i] - w[6 * k + i]) < 1e-5);
            assert_true(got[i] == again[i]);
        }
        free(got);
        free(again);
    }
    free_toy(&a);
    free_toy(&b);
}

static void gradients_are_clipped_to_the_norm(void **state)
{
    (void)state;
    const float g[2][6] = {{3, -4}, {0, 12}};
    struct toy a, b;
    double norm;
    make_toy(&a, device, TH_F32, false, toy_shape, toy_weights);
    make_toy(&b, device, TH_F32, false, toy_shape, toy_weights);
    for (int s = 0; s < 3; s++) {
        /* a clips to 1, 130 and not at all; b gets what should come of it */
        const double limit[3] = {1, 130, 0}, factor[3] = {1 / 13.0, 1, 1};
        for (int i = 0; i < 2; i++) {
            float scaled[6];
            for (int k = 0; k < 6; k++)
                scaled[k] = (float)(g[i][k] * factor[s]);
            set_grad(&a, i, g[i]);
            set_grad(&b, i, scaled);
        }
        assert_int_equal(adamw_step(a.o, 0.1, limit[s]), 0);
        assert_int_equal(adamw_norm(a.o, &norm), 0);
        assert_true(norm == 13);
        assert_int_equal(adamw_step(b.o, 0.1, 0), 0);
    }
    for (int i = 0; i < 2; i++) {
        float *x = weights(&a, i), *y = weights(&b, i);
        for (int k = 0; k < 6; k++)
            assert_true(fabs(x[k] - y[k]) < 1e-6);
        free(x);
        free(y);
    }
    free_toy(&a);
    free_toy(&b);
}

static void a_gradient_that_is_not_finite_makes_no_step(void **state)
{
    (void)state;
    for (int bits8 = 0; bits8 < 2; bits8++) {
        struct toy a;
        double norm;
        make_toy(&a, device, TH_F32, bits8, toy_shape, toy_weights);
        set_grad(&a, 0, (const float[6]){1, NAN});
        assert_int_equal(adamw_step(a.o, 0.1, 1), 0);
        assert_int_equal(adamw_norm(a.o, &norm), 0);
        assert_false(isfinite(norm));
        assert_int_equal(a.o->step, 0);
        for (int i = 0; i < 2; i++) {
            float *w = weights(&a, i);
            assert_memory_equal(w, toy_start[i], sizeof toy_start[i]);
            free(w);
        }
        free_toy(&a);
    }
}

/* ---- 8 bits ---- */

static const int64_t walk_shape[2][2] = {{64, 130}, {40, 20}};

static float made_up(int64_t i, int step) /* as in make.py */
{
    uint32_t h = ((uint32_t)i * 2654435761u + (uint32_t)step * 40503u) >> 16;
    float size = (float)(16384 + h / 2 * 3 / 2) / 65536 * powf(2, -(float)(i % 5 + i / 256 % 3));
    return h % 2 ? size : -size;
}

static void make_walk(struct toy *t, enum th_device d, enum th_dtype dtype)
{
    float *w[2];
    for (int i = 0; i < 2; i++) {
        int64_t n = walk_shape[i][0] * walk_shape[i][1];
        w[i] = xmalloc((size_t)n * sizeof *w[i]);
        for (int64_t k = 0; k < n; k++)
            w[i][k] = made_up(k, 99);
    }
    make_toy(t, d, dtype, true, walk_shape, w);
    free(w[0]);
    free(w[1]);
}

static void walk(struct toy *t, int step)
{
    for (int i = 0; i < 2; i++) {
        float *g = xmalloc((size_t)t->n[i] * sizeof *g);
        for (int64_t k = 0; k < t->n[i]; k++)
            g[k] = made_up(k, step);
        set_grad(t, i, g);
        free(g);
    }
    assert_int_equal(adamw_step(t->o, 1e-2, 0), 0);
}

static const void *vector(const struct st *st, const char *name, size_t bytes)
{
    const struct st_tensor *t = st_find(st, name);
    if (!t || t->bytes != bytes)
        fail_msg("no vector %s of %zu bytes", name, bytes);
    return t->data;
}

static void same_bytes(const struct st *st, th_tensor *x, size_t element, size_t n, const char *name)
{
    char *got = xmalloc((size_t)th_numel(x) * element);
    assert_int_equal(th_read(x, got), 0);
    if (memcmp(got, vector(st, name, n * element), n * element))
        fail_msg("%s differs", name);
    free(got);
}

static void the_dynamic_maps_are_those_of_bitsandbytes(void **state)
{
    (void)state;
    struct st *st;
    float map[256];
    assert_int_equal(st_open("tests/golden/optim/adamw8bit.safetensors", &st), 0);
    adamw_dynamic_map(true, map);
    assert_memory_equal(map, vector(st, "map1", sizeof map), sizeof map);
    adamw_dynamic_map(false, map);
    assert_memory_equal(map, vector(st, "map2", sizeof map), sizeof map);
    for (int i = 0; i < 256; i++)
        assert_int_equal(adamw_nearest(map, map[i]), i);
    st_close(st);
}

static void eight_bit_steps_have_the_bits_of_the_scheme(void **state)
{
    (void)state;
    struct st *st;
    struct toy t;
    char name[64];
    assert_int_equal(st_open("tests/golden/optim/adamw8bit.safetensors", &st), 0);
    make_walk(&t, device, TH_F32);
    const struct adamw_group *g = &t.o->group[1];
    assert_int_equal(g->blocks, 33); /* a alone: b is small */
    for (int step = 1; step <= 20; step++) {
        walk(&t, step);
        if (step != 1 && step != 5 && step != 20)
            continue;
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "exact.%s.%d", t.p[i].name, step);
            same_bytes(st, t.p[i].master, 4, (size_t)t.n[i], name);
        }
        th_tensor *const parts[4] = {g->moment1, g->moment2, g->absmax1, g->absmax2};
        static const char *const names[4] = {"code1", "code2", "max1", "max2"};
        for (int k = 0; k < 4; k++) {
            snprintf(name, sizeof name, "exact.a.%d.%s", step, names[k]);
            same_bytes(st, parts[k], k < 2 ? 1 : 4, k < 2 ? (size_t)t.n[0] : 33, name);
        }
    }
    /* The package's own walk on the CPU: its codes are found by a coarser table.  Ours is a percent of the way from it at
     * most, and much nearer than float32 state is. */
    float *w = weights(&t, 0);
    const float *package = vector(st, "package.a", (size_t)t.n[0] * 4), *single = vector(st, "single.a", (size_t)t.n[0] * 4);
    double off = 0, off32 = 0, way = 0;
    for (int64_t i = 0; i < t.n[0]; i++) {
        off += fabs(w[i] - package[i]);
        off32 += fabs(single[i] - package[i]);
        way += fabs(package[i] - made_up(i, 99));
    }
    assert_true(off < 0.01 * way && off < 0.2 * off32);
    free(w);
    free_toy(&t);
    st_close(st);
}

static void eight_bit_state_survives_a_restart(void **state)
{
    struct toy a, b, c;
    make_walk(&a, device, TH_BF16);
    make_walk(&b, device, TH_BF16);
    for (int step = 1; step <= 3; step++)
        walk(&a, step);
    assert_int_equal(adamw_save(a.o, in_dir(state, "o")), 0);
    assert_int_equal(adamw_load(b.o, in_dir(state, "o")), 0);
    assert_int_equal(b.o->step, 3);
    walk(&a, 4);
    walk(&b, 4);
    assert_int_equal(adamw_save(a.o, in_dir(state, "a")), 0);
    assert_int_equal(adamw_save(b.o, in_dir(state, "b")), 0);
    char one[65], two[65];
    assert_int_equal(sha256_file(in_dir(state, "a"), one), 0);
    assert_int_equal(sha256_file(in_dir(state, "b"), two), 0);
    assert_string_equal(one, two);
    for (int i = 0; i < 2; i++) { /* the copy that the model computes with is the rounded weight */
        size_t scope = th_scope_begin();
        uint16_t *x = xmalloc((size_t)a.n[i] * 2), *y = xmalloc((size_t)a.n[i] * 2);
        assert_int_equal(th_read(a.p[i].w, x), 0);
        assert_int_equal(th_read(th_to(a.p[i].master, TH_BF16, device), y), 0);
        assert_memory_equal(x, y, (size_t)a.n[i] * 2);
        free(x);
        free(y);
        th_scope_end(scope);
    }
    float *const w[2] = {xcalloc(64 * 130, 4), xcalloc(800, 4)};
    make_toy(&c, device, TH_F32, false, walk_shape, w);
    assert_int_equal(adamw_load(c.o, in_dir(state, "o")), ERR_USAGE);
    assert_non_null(strstr(err_text(), "--optimizer adamw8bit"));
    free(w[0]);
    free(w[1]);
    free_toy(&a);
    free_toy(&b);
    free_toy(&c);
}

int main(void)
{
    const char *d = getenv("TEST_DEVICE");
    if (th_device_open(d ? d : "cpu", &device) < 0) {
        fprintf(stderr, "%s: %s\n", d, err_text());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules_are_those_of_transformers),
        TEST_IN_DIR(steps_follow_the_formula_and_survive_a_restart),
        cmocka_unit_test(gradients_are_clipped_to_the_norm),
        cmocka_unit_test(a_gradient_that_is_not_finite_makes_no_step),
        cmocka_unit_test(the_dynamic_maps_are_those_of_bitsandbytes),
        cmocka_unit_test(eight_bit_steps_have_the_bits_of_the_scheme),
        TEST_IN_DIR(eight_bit_state_survives_a_restart),
    };
    return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
