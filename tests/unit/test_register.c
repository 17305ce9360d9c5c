/* nearest.c, fpfh.c, register.c: against brute force, and motions that are known. */
#include "tests/unit/testutil.h"
#include <math.h>
#include <stdio.h>

#include "lib/fpfh.h"
#include "lib/mem.h"
#include "lib/nearest.h"
#include "lib/register.h"

/* Points of an L-shaped block's surface, off by `at`, times s. */
static double *block(size_t n, uint32_t seed, double s, double at)
{
    struct mt19937 r;
    double *p = xmalloc(3 * n * sizeof *p);
    mt_seed(&r, seed);
    for (size_t i = 0; i < n;) {
        double u = mt_real(&r), v = mt_real(&r), w = mt_real(&r), *q = p + 3 * i;
        int face = (int)(6 * mt_real(&r));
        double side[3] = {6, 4, 2}, x[3] = {u, v, w};
        x[face / 2] = face & 1;
        for (int k = 0; k < 3; k++)
            q[k] = at + s * (x[k] * side[k] + (k == 2 && x[0] > 0.7 && x[1] > 0.5 ? 2 * x[2] : 0));
        i++;
    }
    return p;
}

static size_t brute(const double *p, size_t n, const double *q, double *d2, double *second)
{
    size_t best = 0;
    *d2 = *second = INFINITY;
    for (size_t i = 0; i < n; i++) {
        double d = 0;
        for (int k = 0; k < 3; k++)
            d += (p[3 * i + (size_t)k] - q[k]) * (p[3 * i + (size_t)k] - q[k]);
        if (d < *d2) {
            *second = *d2;
            *d2 = d;
            best = i;
        } else if (d < *second) {
            *second = d;
        }
    }
    return best;
}

static void nearest_is_nearest(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 31, 32, 33, 65, 500, 5000};
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++)
        for (int far = 0; far < 2; far++) {
            size_t n = sizes[c], m = 300;
            double *p = block(n, 1, 1, far ? 1e6 : 0), *q = block(m, 2, far ? 1.5 : 1, far ? 1e6 - 3 : -1), d2[300];
            if (n > 40) /* several points in one place */
                memcpy(p + 60, p, 30 * sizeof *p);
            uint32_t index[300];
            memset(index, 0xff, sizeof index);
            struct kdtree *t = kdtree_build(p, n);
            kdtree_nearest(t, q, m, index, d2);
            for (size_t i = 0; i < m; i++) {
                double best, second;
                brute(p, n, q + 3 * i, &best, &second);
                assert_true(fabs(d2[i] - best) <= 1e-12 * best);
            }
            kdtree_free(t);
            free(p);
            free(q);
        }
}

static void followed_queries_stay_exact(void **state)
{
    (void)state;
    size_t n = 2000, m = 400, searched = 0, beyond = 0;
    double *p = block(n, 3, 1, 0), *q = block(m, 4, 1, 0.1), d2[400];
    struct kdtree *t = kdtree_build(p, n);
    struct kdtree_followed *f = kdtree_followed_new(m);
    uint32_t order[400];
    struct mt19937 r;
    mt_seed(&r, 5);
    for (size_t i = 0; i < m; i++)
        order[i] = (uint32_t)(m - 1 - i);
    for (int round = 0; round < 40; round++) {
        double step = round % 10 ? 0.3 / (round % 10 + 1) : 3; /* small steps and leaps */
        double move[3] = {step * (mt_real(&r) - 0.5), step * (mt_real(&r) - 0.5), step * (mt_real(&r) - 0.5)};
        for (size_t i = 0; i < 3 * m; i++)
            q[i] += move[i % 3];
        double reach = round % 4 < 2 ? INFINITY : 0.2;
        kdtree_follow(t, q, m, round % 2 ? order : NULL, reach, NULL, f, d2);
        for (size_t i = 0; i < m; i++) {
            double best, second;
            size_t at = brute(p, n, q + 3 * i, &best, &second);
            if (d2[i] == INFINITY) {
                assert_true(best > reach * reach);
                beyond++;
                continue;
            }
            assert_true(fabs(d2[i] - best) <= 1e-12 * best);
            assert_true(f[i].index == at || second - best <= 1e-12 * best);
            searched += !memcmp(f[i].at, q + 3 * i, sizeof f[i].at);
        }
    }
    assert_in_range(searched, 40, 40 * m * 9 / 10); /* not all of them had to be searched for */
    assert_true(beyond > 0);                        /* nor known, of those out of reach */
    kdtree_free(t);
    free(f);
    free(p);
    free(q);
}

static void sizes_and_distances_may_be_extreme(void **state)
{
    (void)state;
    static const double sizes[] = {1e-300, 1e-160, 1e-20, 1, 1e20, 1e30, 1e150, 1e160, 1e300}, away[] = {0, 1e3, 1e12, 1e18, 1e40, 1e140};
    enum { N = 500, M = 20 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t w = 0; w < sizeof away / sizeof *away; w++) {
            double *p = block(N, 8, sizes[s], 0), *q = block(M, 9, sizes[s], sizes[s] * away[w]), d2[M], e2[M];
            if (w == 5)
                q[0] = NAN, q[4] = INFINITY;
            uint32_t index[M];
            memset(index, 0xff, sizeof index);
            struct kdtree *t = kdtree_build(p, N);
            struct kdtree_followed *f = kdtree_followed_new(M);
            kdtree_nearest(t, q, M, index, d2);
            for (int round = 0; round < 3; round++) {
                kdtree_follow(t, q, M, NULL, INFINITY, NULL, f, e2);
                for (size_t i = 0; i < M; i++) {
                    double best, second;
                    brute(p, N, q + 3 * i, &best, &second);
                    assert_in_range(index[i], 0, N - 1);
                    assert_in_range(f[i].index, 0, N - 1);
                    if (best < 1e300 && best > 1e-300) {
                        assert_true(fabs(d2[i] - best) <= 1e-12 * best);
                        assert_true(fabs(e2[i] - best) <= 1e-12 * best);
                    }
                }
                for (size_t i = 0; i < 3 * M; i++)
                    q[i] *= 1 + 1e-3 * round;
                memset(index, 0xff, sizeof index);
                kdtree_nearest(t, q, M, index, d2);
            }
            kdtree_free(t);
            free(f);
            free(p);
            free(q);
        }
}

static void alignments_of_extreme_clouds_end(void **state)
{
    (void)state;
    static const double sizes[] = {1e-200, 1e-30, 1, 1e30, 1e100, 1e200};
    enum { N = 300 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int spike = 0; spike < 3; spike++) {
            double *g = block(N, 10, 1, 0), *p = block(N, 11, sizes[s], 0);
            if (spike) /* one point far away */
                p[3 * spike] = spike == 1 ? 1e30 : -1e300;
            struct reg_reference r;
            struct reg_best b;
            reg_reference(p, N, g, N, 3, &r);
            free(p);
            p = block(N, 11, sizes[s], 0);
            reg_reference(g, N, p, N, 3, &r);
            reg_best(p, N, g, N, 0.1, &b);
            free(g);
            free(p);
        }
}

static void a_grid_finds_points_nearby(void **state)
{
    (void)state;
    size_t n = 2000;
    double *p = block(n, 6, 1, 0), *q = block(n, 7, 1, 0);
    struct grid g;
    grid_build(&g, 32, p, n);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double best, second, d = 0;
        const double *at = p + 3 * (size_t)grid_nearest(&g, q + 3 * i);
        brute(p, n, q + 3 * i, &best, &second);
        for (int k = 0; k < 3; k++)
            d += (at[k] - q[3 * i + (size_t)k]) * (at[k] - q[3 * i + (size_t)k]);
        worst = fmax(worst, sqrt(d) - sqrt(best));
    }
    assert_true(worst < 1.8 / g.cells); /* a cell's diagonal */
    grid_release(&g);
    free(p);
    free(q);
}

static void matches_are_the_nearest_features(void **state)
{
    (void)state;
    size_t n = 500, wrong = 0;
    double *p = block(n, 8, 1, 0), *q = block(n - 7, 9, 1, 50);
    struct fpfh a, b;
    uint32_t ab[500], ba[500];
    fpfh_build(&a, p, n, 0.3);
    fpfh_build(&b, q, n - 7, 0.3);
    fpfh_match(&a, &b, ab, ba);
    uint32_t row_of[500];
    for (size_t j = 0; j < b.n; j++)
        row_of[b.order[j]] = (uint32_t)j;
    for (size_t i = 0; i < n; i++) {
        const float *f = a.feature + i * FPFH_PAD;
        double best = INFINITY, got = 0;
        float sum[3] = {0};
        for (int k = 0; k < FPFH_SIZE; k++)
            sum[k / FPFH_BINS] += f[k];
        for (int h = 0; h < 3; h++)
            assert_true(sum[h] > 99 && sum[h] < 201); /* a hundred of its own, a hundred of its neighbours' */
        for (size_t j = 0; j < b.n; j++) {
            double d = 0;
            for (int k = 0; k < FPFH_SIZE; k++)
                d += (f[k] - b.feature[j * FPFH_PAD + (size_t)k]) * (f[k] - b.feature[j * FPFH_PAD + (size_t)k]);
            best = d < best ? d : best;
            if (j == row_of[ab[a.order[i]]])
                got = d;
        }
        wrong += got > best + 0.5 + 0.02 * best; /* whole numbers of twentieths */
    }
    assert_int_equal(wrong, 0);
    fpfh_release(&a);
    fpfh_release(&b);
    free(p);
    free(q);
}

static struct rigid some_motion(uint32_t seed)
{
    struct mt19937 r;
    mt_seed(&r, seed);
    double q[4], n = 0;
    for (int k = 0; k < 4; k++) {
        q[k] = mt_real(&r) - 0.5;
        n += q[k] * q[k];
    }
    double w = q[0], x = q[1], y = q[2], z = q[3], s = 2 / n;
    return (struct rigid){.r = {1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y), s * (x * y + w * z), 1 - s * (x * x + z * z),
                                s * (y * z - w * x), s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)},
                          .t = {9 * mt_real(&r), -5 * mt_real(&r), 70 * mt_real(&r)}, .s = 1};
}

static void the_best_alignment_finds_any_motion_and_size(void **state)
{
    (void)state;
    double *g = block(2000, 10, 1, 0), *p = xmalloc(6000 * sizeof *p);
    for (uint32_t seed = 0; seed < 24; seed++) {
        struct rigid m = some_motion(seed);
        struct reg_best best, again;
        double *other = block(2000, 100 + seed, 1, 0); /* other points of the same shape */
        m.s = (double[]){1, 0.01, 100, 1}[seed % 4];
        rigid_apply(&m, other, 2000, p);
        assert_true(reg_best(p, 2000, g, 2000, 0.1, &best));
        double noise = 2 * (2 * (6 * 4 + 6 * 2 + 4 * 2)) / (3.14159 * 2000 * best.rms_g * best.rms_g);
        assert_true(best.shape_forward + best.shape_backward < 1.5 * noise);
        assert_true(fabs(best.rms_p / best.rms_g / m.s - 1) < 0.05);
        if (m.s == 1)
            assert_true(best.size_forward + best.size_backward < 1.5 * noise);
        else
            assert_true(best.size_forward + best.size_backward > 0.5);
        assert_true(reg_best(p, 2000, g, 2000, 0.1, &again));
        assert_memory_equal(&best, &again, sizeof best);
        free(other);
    }
    double bad[6] = {0, 0, 0, NAN, 1, 1};
    struct reg_best none;
    assert_false(reg_best(bad, 2, g, 2000, 0.1, &none));
    memset(bad, 0, sizeof bad);
    assert_false(reg_best(bad, 2, g, 2000, 0.1, &none)); /* one place */
    free(g);
    free(p);
}

static void the_reference_alignment_repeats_by_its_seed(void **state)
{
    (void)state;
    double *g = block(2000, 11, 2, 0), *from = block(2000, 12, 2, 0), *p = xmalloc(6000 * sizeof *p), cd[3];
    struct rigid m = some_motion(5);
    for (int i = 0; i < 3; i++) {
        struct reg_reference r;
        rigid_apply(&m, from, 2000, p);
        reg_reference(p, 2000, g, 2000, i == 2 ? 8 : 7, &r);
        cd[i] = chamfer_one_sided(g, 2000, p, 2000);
        assert_true(r.correspondences > 20 && r.icp[2].fitness > 0.99);
    }
    assert_true(cd[0] == cd[1]);
    double noise = 4 * 2 * (6 * 4 + 6 * 2 + 4 * 2) / (3.14159 * 2000);
    assert_true(cd[0] < 1.5 * noise && cd[2] < 1.5 * noise);
    free(g);
    free(from);
    free(p);
}

static void random_numbers_are_numpys(void **state)
{
    (void)state;
    struct mt19937 r;
    mt_seed(&r, 5489);
    uint32_t v = 0;
    for (int i = 0; i < 10000; i++)
        v = mt_u32(&r);
    assert_int_equal(v, 4123659995u); /* as the C++ standard has it */
    mt_seed(&r, 42);
    assert_true(fabs(mt_real(&r) - 0.3745401188473625) < 1e-16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nearest_is_nearest),
        cmocka_unit_test(followed_queries_stay_exact),
        cmocka_unit_test(sizes_and_distances_may_be_extreme),
        cmocka_unit_test(alignments_of_extreme_clouds_end),
        cmocka_unit_test(a_grid_finds_points_nearby),
        cmocka_unit_test(matches_are_the_nearest_features),
        cmocka_unit_test(the_best_alignment_finds_any_motion_and_size),
        cmocka_unit_test(the_reference_alignment_repeats_by_its_seed),
        cmocka_unit_test(random_numbers_are_numpys),
    };
    return cmocka_run_group_tests_name("register", tests, NULL, NULL);
}
