/* stats: medians with infinities in them, and intervals that mean what they say. */
#include "testutil.h"

#include <math.h>

#include "lib/stats.h"

#define assert_near(got, due, tolerance) assert_true(fabs((got) - (due)) <= (tolerance))

static void means_and_medians_of_little(void **state)
{
    (void)state;
    const double v[] = {4, 1, 3, 2};
    assert_true(isnan(stats_mean(v, 0)));
    assert_true(isnan(stats_median(v, 0)));
    assert_near(stats_mean(v, 4), 2.5, 0);
    assert_near(stats_median(v, 4), 2.5, 0);
    assert_near(stats_median(v, 3), 3, 0);
    assert_near(stats_median(v, 1), 4, 0);
}

static void infinities_are_at_the_far_end(void **state)
{
    (void)state;
    const double v[] = {INFINITY, 0.5, INFINITY, 0.1, 0.2};
    assert_near(stats_median(v, 5), 0.5, 0);
    assert_true(isinf(stats_median(v, 3)));
    assert_true(isinf(stats_median(v, 4))); /* one of the middle two is infinite */
    const double all[] = {INFINITY, INFINITY};
    assert_true(isinf(stats_median(all, 2))); /* not NaN */
    struct stats_interval i = stats_bootstrap(STATS_MEDIAN, v, 5, 1000, 1);
    assert_near(i.value, 0.5, 0);
    assert_true(isfinite(i.low) && isinf(i.high));
}

static void too_few_values_have_no_interval(void **state)
{
    (void)state;
    const double v[] = {7};
    struct stats_interval i = stats_bootstrap(STATS_MEAN, v, 1, 1000, 1);
    assert_near(i.value, 7, 0);
    assert_int_equal(i.n, 1);
    assert_true(isnan(i.low) && isnan(i.high));
    i = stats_bootstrap(STATS_MEDIAN, v, 0, 1000, 1);
    assert_true(isnan(i.value) && isnan(i.low));
}

static void a_seed_decides_the_interval(void **state)
{
    (void)state;
    double v[50];
    for (int i = 0; i < 50; i++)
        v[i] = (i * 37) % 50;
    struct stats_interval a = stats_bootstrap(STATS_MEAN, v, 50, 500, 9), b = stats_bootstrap(STATS_MEAN, v, 50, 500, 9),
                          c = stats_bootstrap(STATS_MEAN, v, 50, 500, 10);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.low != c.low || a.high != c.high);
    /* The order of the values does not matter. */
    double back[50];
    for (int i = 0; i < 50; i++)
        back[i] = v[49 - i];
    b = stats_bootstrap(STATS_MEAN, back, 50, 500, 9);
    assert_near(a.low, b.low, 0);
}

/* Of n = 1..100: mean 50.5, standard error of the bootstrap sqrt(833.25/100) = 2.887. */
static void the_interval_of_a_mean_is_about_two_standard_errors(void **state)
{
    (void)state;
    double v[100];
    for (int i = 0; i < 100; i++)
        v[i] = i + 1;
    struct stats_interval i = stats_bootstrap(STATS_MEAN, v, 100, 20000, 3407);
    assert_near(i.value, 50.5, 1e-12);
    assert_near(i.low, 50.5 - 1.96 * 2.887, 0.2);
    assert_near(i.high, 50.5 + 1.96 * 2.887, 0.2);
}

/* The bootstrap's median of an odd n is at most rank k with probability P(Bin(n, k/n) >= (n+1)/2):
 * for n = 101 the 2.5 % points are ranks 41 and 61 (normal approximation 51 -+ 1.96 sqrt(101)/2). */
static void the_interval_of_a_median_has_the_right_ranks(void **state)
{
    (void)state;
    double v[101];
    for (int i = 0; i < 101; i++)
        v[i] = (i * 11) % 101 + 1;
    struct stats_interval i = stats_bootstrap(STATS_MEDIAN, v, 101, 20000, 3407);
    assert_near(i.value, 51, 0);
    assert_near(i.low, 41.2, 1.3);
    assert_near(i.high, 60.8, 1.3);
}

/* Drawn anew from a known distribution, about 95 % of the intervals hold the truth. */
static void intervals_hold_the_truth_as_often_as_they_say(void **state)
{
    (void)state;
    uint64_t x = 12345;
    int held = 0;
    for (int trial = 0; trial < 400; trial++) {
        double v[60];
        for (int i = 0; i < 60; i++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            v[i] = (double)(x >> 11) * 0x1p-53;
        }
        struct stats_interval i = stats_bootstrap(STATS_MEAN, v, 60, 400, (uint64_t)trial);
        held += i.low <= 0.5 && 0.5 <= i.high;
    }
    assert_in_range(held, 360, 396); /* 95 % of 400 is 380, standard deviation 4.4 */
}

static void proportions_of_all_and_none_are_not_certain(void **state)
{
    (void)state;
    struct stats_interval i = stats_proportion(0, 10, 1000, 1);
    assert_near(i.value, 0, 0);
    assert_near(i.low, 0, 0);
    assert_near(i.high, 0.27753, 1e-4); /* Wilson */
    i = stats_proportion(10, 10, 1000, 1);
    assert_near(i.low, 1 - 0.27753, 1e-4);
    assert_near(i.high, 1, 0);
    i = stats_proportion(90, 100, 5000, 1);
    assert_near(i.value, 0.9, 1e-12);
    assert_near(i.low, 0.84, 0.011);
    assert_near(i.high, 0.95, 0.011);
    i = stats_proportion(0, 0, 1000, 1);
    assert_true(isnan(i.value) && isnan(i.low));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(means_and_medians_of_little),
        cmocka_unit_test(infinities_are_at_the_far_end),
        cmocka_unit_test(too_few_values_have_no_interval),
        cmocka_unit_test(a_seed_decides_the_interval),
        cmocka_unit_test(the_interval_of_a_mean_is_about_two_standard_errors),
        cmocka_unit_test(the_interval_of_a_median_has_the_right_ranks),
        cmocka_unit_test(intervals_hold_the_truth_as_often_as_they_say),
        cmocka_unit_test(proportions_of_all_and_none_are_not_certain),
    };
    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
