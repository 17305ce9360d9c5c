#include "lib/stats.h"

#include <math.h>
#include <stdlib.h>

#include "lib/mem.h"
#include "lib/random.h"

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double *sorted_copy(const double *v, size_t n)
{
    double *s = xmalloc((n + 1) * sizeof *s);
    if (n)
        memcpy(s, v, n * sizeof *s);
    qsort(s, n, sizeof *s, ascending);
    return s;
}

static double middle(double a, double b)
{
    return a == b ? a : a / 2 + b / 2; /* equal infinities; and no overflow */
}

double stats_mean(const double *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += v[i];
    return n ? sum / (double)n : NAN;
}

double stats_median(const double *v, size_t n)
{
    if (!n)
        return NAN;
    double *s = sorted_copy(v, n), m = middle(s[(n - 1) / 2], s[n / 2]);
    free(s);
    return m;
}

static size_t below(uint64_t *state, size_t n)
{
    return (size_t)(((unsigned __int128)random_u64(state) * n) >> 64);
}

/* The median of a resample of the sorted s, found by counting ranks. */
static double resampled_median(const double *s, size_t n, uint32_t *count, uint64_t *state)
{
    memset(count, 0, n * sizeof *count);
    for (size_t i = 0; i < n; i++)
        count[below(state, n)]++;
    size_t seen = 0, i = 0;
    while ((seen += count[i]) <= (n - 1) / 2)
        i++;
    double lower = s[i];
    while (seen <= n / 2)
        seen += count[++i];
    return middle(lower, s[i]);
}

struct stats_interval stats_bootstrap(enum stats_kind kind, const double *v, size_t n, size_t resamples, uint64_t seed)
{
    struct stats_interval r = {kind == STATS_MEAN ? stats_mean(v, n) : stats_median(v, n), NAN, NAN, n};
    if (n < 2 || !resamples)
        return r;
    double *s = sorted_copy(v, n), *of = xmalloc(resamples * sizeof *of);
    uint32_t *count = xmalloc(n * sizeof *count);
    for (size_t b = 0; b < resamples; b++) {
        if (kind == STATS_MEDIAN) {
            of[b] = resampled_median(s, n, count, &seed);
        } else {
            double sum = 0;
            for (size_t i = 0; i < n; i++)
                sum += s[below(&seed, n)];
            of[b] = sum / (double)n;
        }
    }
    qsort(of, resamples, sizeof *of, ascending);
    size_t tail = (size_t)floor(0.025 * (double)resamples);
    r.low = of[tail];
    r.high = of[resamples - 1 - tail];
    free(s);
    free(of);
    free(count);
    return r;
}

struct stats_interval stats_proportion(size_t k, size_t n, size_t resamples, uint64_t seed)
{
    double *v = xcalloc(n + 1, sizeof *v);
    for (size_t i = 0; i < k && i < n; i++)
        v[i] = 1;
    struct stats_interval r = stats_bootstrap(STATS_MEAN, v, n, resamples, seed);
    free(v);
    if (n && (k == 0 || k == n)) {
        double z2 = 1.959963984540054 * 1.959963984540054, other = z2 / ((double)n + z2);
        r.low = k ? 1 - other : 0;
        r.high = k ? 1 : other;
    }
    return r;
}
