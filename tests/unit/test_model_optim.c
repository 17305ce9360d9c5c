/* optim.c: AdamW by its formula in double, clipping, schedules, state. */
#include "tests/unit/testutil.h"

#include <math.h>

#include "model/optim.h"

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

/* A model of one 2 x 3 matrix. */
struct toy {
    struct model m;
    struct param p;
    struct param *list[1];
};

static void make_toy(struct toy *t, const float *w)
{
    int64_t shape[2] = {2, 3};
    *t = (struct toy){.p = {.name = "w", .trained = true, .decay = true}};
    t->m.params = t->list;
    t->list[0] = &t->p;
    t->m.n_params = 1;
    t->p.w = t->p.master = th_keep(th_from(w, 2, shape, TH_F32, TH_CPU));
    t->p.grad = th_keep(th_zeros(2, shape, TH_F32, TH_CPU));
}

static void free_toy(struct toy *t)
{
    th_free(t->p.w);
    th_free(t->p.grad);
}

static void set_grad(struct toy *t, int step)
{
    float *g = th_data(t->p.grad);
    for (int i = 0; i < 6; i++)
        g[i] = (float)sin(step * 7 + i) * (i == 2 ? 100 : 1);
}

static void steps_follow_the_formula_and_survive_a_restart(void **state)
{
    const float start[6] = {1, -2, 3, 0.5f, -0.25f, 0};
    double w[6], m[6] = {0}, v[6] = {0};
    struct toy a, b;
    struct adamw *o, *o2;
    for (int i = 0; i < 6; i++)
        w[i] = start[i];
    size_t scope = th_scope_begin();
    make_toy(&a, start);
    make_toy(&b, start);
    assert_int_equal(adamw_new(&a.m, 0.9, 0.999, 1e-8, 0.01, &o), 0);
    assert_int_equal(adamw_new(&b.m, 0.9, 0.999, 1e-8, 0.01, &o2), 0);
    for (int s = 1; s <= 10; s++) {
        set_grad(&a, s);
        assert_int_equal(adamw_step(o, 0.05), 0);
        for (int i = 0; i < 6; i++) {
            double g = (float)sin(s * 7 + i) * (i == 2 ? 100 : 1);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            w[i] -= 0.05 * 0.01 * w[i];
            w[i] -= 0.05 * (m[i] / (1 - pow(0.9, s))) / (sqrt(v[i] / (1 - pow(0.999, s))) + 1e-8);
        }
        if (s == 5)
            assert_int_equal(adamw_save(o, in_dir(state, "o.safetensors")), 0);
    }
    assert_int_equal(adamw_load(o2, in_dir(state, "o.safetensors")), 0);
    for (int s = 6; s <= 10; s++) {
        set_grad(&b, s);
        assert_int_equal(adamw_step(o2, 0.05), 0);
    }
    const float *got = th_data(a.p.w), *again = th_data(b.p.w);
    for (int i = 0; i < 6; i++) {
        assert_true(fabs(got[i] - w[i]) < 1e-5);
        assert_true(got[i] == again[i]);
    }
    adamw_free(o);
    adamw_free(o2);
    free_toy(&a);
    free_toy(&b);
    th_scope_end(scope);
}

static void gradients_are_clipped_to_the_norm(void **state)
{
    (void)state;
    struct toy a;
    struct adamw *o;
    double norm, after;
    size_t scope = th_scope_begin();
    make_toy(&a, (const float[6]){0});
    assert_int_equal(adamw_new(&a.m, 0.9, 0.999, 1e-8, 0, &o), 0);
    float *g = th_data(a.p.grad);
    g[0] = 3;
    g[1] = -4;
    assert_int_equal(adamw_clip(o, 10, &norm), 0);
    assert_true(norm == 5 && g[0] == 3);
    assert_int_equal(adamw_clip(o, 1, &norm), 0);
    assert_int_equal(adamw_clip(o, 0, &after), 0);
    assert_true(norm == 5 && fabs(after - 1) < 1e-5);
    adamw_free(o);
    free_toy(&a);
    th_scope_end(scope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules_are_those_of_transformers),
        TEST_IN_DIR(steps_follow_the_formula_and_survive_a_restart),
        cmocka_unit_test(gradients_are_clipped_to_the_norm),
    };
    return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
