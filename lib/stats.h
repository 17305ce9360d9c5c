/* stats.h: means and medians of scores, with 95 % confidence intervals.
 *
 *     double scd[] = {0.1, 0.4, INFINITY};                          // a failure counts as worst
 *     struct stats_interval m = stats_bootstrap(STATS_MEDIAN, scd, 3, 2000, 3407);
 *     printf("%g [%g, %g] of %zu\n", m.value, m.low, m.high, m.n);
 *
 * Infinities are numbers like others, so that "the median with failures at the far end" is the
 * median of a list with infinities in it.  NaN must not come in.
 */
#ifndef LIB_STATS_H
#define LIB_STATS_H

#include <stddef.h>
#include <stdint.h>

enum stats_kind { STATS_MEAN, STATS_MEDIAN };

/* low, high: NaN when n is below 2, where nothing can be said. */
struct stats_interval {
    double value, low, high;
    size_t n;
};

/* NaN of nothing. */
double stats_mean(const double *v, size_t n);
/* Of an even number the mean of the middle two. */
double stats_median(const double *v, size_t n);

/* The statistic and its percentile bootstrap interval (Efron 1979; Efron & Tibshirani 1993, section 13.3):
 * the 2.5th and 97.5th percentile (order statistics, not interpolated) over `resamples` lists of n values
 * drawn from v with replacement.  The same seed gives the same interval. */
struct stats_interval stats_bootstrap(enum stats_kind kind, const double *v, size_t n, size_t resamples, uint64_t seed);

/* Share of k in n, by the bootstrap likewise.  Where all or none succeed resampling shows no spread, which
 * is not certainty: there the interval is Wilson's (1927). */
struct stats_interval stats_proportion(size_t k, size_t n, size_t resamples, uint64_t seed);

#endif
