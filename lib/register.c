#include "lib/register.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"
#include "lib/nearest.h"

const struct rigid RIGID_IDENTITY = {{1, 0, 0, 0, 1, 0, 0, 0, 1}, {0, 0, 0}, 1};

void rigid_apply(const struct rigid *m, const double *in, size_t n, double *out)
{
    double r[9];
    for (int k = 0; k < 9; k++)
        r[k] = m->s * m->r[k];
    for (size_t i = 0; i < n; i++) {
        double x = in[3 * i], y = in[3 * i + 1], z = in[3 * i + 2];
        for (int k = 0; k < 3; k++)
            out[3 * i + (size_t)k] = r[3 * k] * x + r[3 * k + 1] * y + r[3 * k + 2] * z + m->t[k];
    }
}

/* ---- random numbers ---- */

void mt_seed(struct mt19937 *r, uint32_t seed)
{
    r->v[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        r->v[i] = 1812433253u * (r->v[i - 1] ^ (r->v[i - 1] >> 30)) + i;
    r->at = 624;
}

uint32_t mt_u32(struct mt19937 *r)
{
    if (r->at == 624) {
        for (int i = 0; i < 624; i++) {
            uint32_t y = (r->v[i] & 0x80000000u) | (r->v[(i + 1) % 624] & 0x7fffffffu);
            r->v[i] = r->v[(i + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        r->at = 0;
    }
    uint32_t y = r->v[r->at++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

double mt_real(struct mt19937 *r)
{
    uint32_t a = mt_u32(r) >> 5, b = mt_u32(r) >> 6;
    return (a * 67108864.0 + b) / 9007199254740992.0;
}

/* ---- sampling ---- */

static double triangle_area(const double *a, const double *b, const double *c)
{
    double u[3], v[3];
    for (int k = 0; k < 3; k++) {
        u[k] = b[k] - a[k];
        v[k] = c[k] - a[k];
    }
    double x = u[1] * v[2] - u[2] * v[1], y = u[2] * v[0] - u[0] * v[2], z = u[0] * v[1] - u[1] * v[0];
    return sqrt(x * x + y * y + z * z) / 2;
}

/* Running sums of the areas; NULL if there is none. */
static double *area_sums(const double *points, const uint32_t *tri, size_t n_tri)
{
    double *sum = xmalloc((n_tri + 1) * sizeof *sum), total = 0;
    for (size_t i = 0; i < n_tri; i++) {
        double a = triangle_area(points + 3 * (size_t)tri[3 * i], points + 3 * (size_t)tri[3 * i + 1],
                                 points + 3 * (size_t)tri[3 * i + 2]);
        total += isfinite(a) ? a : 0;
        sum[i] = total;
    }
    if (total > 0 && isfinite(total))
        return sum;
    free(sum);
    return NULL;
}

/* First index whose sum is at least x (numpy's searchsorted). */
static size_t search_sums(const double *sum, size_t n, double x)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (sum[mid] < x)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n ? lo : n - 1;
}

static void point_in(const double *a, const double *b, const double *c, double u, double v, double *out)
{
    if (u + v > 1) {
        u = fabs(u - 1);
        v = fabs(v - 1);
    }
    for (int k = 0; k < 3; k++)
        out[k] = (b[k] - a[k]) * u + (c[k] - a[k]) * v + a[k];
}

bool sample_reference(const double *points, const uint32_t *tri, size_t n_tri, uint32_t seed, size_t n, double *out)
{
    size_t n_points = 0;
    for (size_t i = 0; i < 3 * n_tri; i++)
        n_points = tri[i] >= n_points ? (size_t)tri[i] + 1 : n_points;
    double *p = xmalloc((3 * n_points + 1) * sizeof *p);
    for (size_t i = 0; i < 3 * n_points; i++)
        p[i] = (float)points[i];
    double *sum = area_sums(p, tri, n_tri);
    if (sum) {
        struct mt19937 r;
        size_t *face = xmalloc(n * sizeof *face);
        mt_seed(&r, seed);
        for (size_t i = 0; i < n; i++)
            face[i] = search_sums(sum, n_tri, mt_real(&r) * sum[n_tri - 1]);
        for (size_t i = 0; i < n; i++) {
            const uint32_t *t = tri + 3 * face[i];
            double u = mt_real(&r), v = mt_real(&r);
            point_in(p + 3 * (size_t)t[0], p + 3 * (size_t)t[1], p + 3 * (size_t)t[2], u, v, out + 3 * i);
        }
        free(face);
    }
    free(p);
    free(sum);
    return sum;
}

bool sample_even(const double *points, const uint32_t *tri, size_t n_tri, size_t n, double *out)
{
    double *sum = area_sums(points, tri, n_tri);
    if (!sum)
        return false;
    struct mt19937 r;
    mt_seed(&r, 1);
    double shift_u = mt_real(&r), shift_v = mt_real(&r);
    for (size_t i = 0; i < n; i++) {
        size_t f = search_sums(sum, n_tri, ((double)i + mt_real(&r)) / (double)n * sum[n_tri - 1]);
        const uint32_t *t = tri + 3 * f;
        /* R2 sequence (Roberts 2018): multiples of the plastic number's powers */
        double u = fmod(shift_u + (double)i * 0.7548776662466927, 1), v = fmod(shift_v + (double)i * 0.5698402909980532, 1);
        point_in(points + 3 * (size_t)t[0], points + 3 * (size_t)t[1], points + 3 * (size_t)t[2], u, v, out + 3 * i);
    }
    free(sum);
    return true;
}

/* ---- measures ---- */

void cloud_centroid(const double *xyz, size_t n, double c[3])
{
    c[0] = c[1] = c[2] = 0;
    for (size_t i = 0; i < 3 * n; i++)
        c[i % 3] += xyz[i];
    for (int k = 0; k < 3; k++)
        c[k] /= (double)n;
}

double cloud_rms(const double *xyz, size_t n)
{
    double c[3], sum = 0;
    cloud_centroid(xyz, n, c);
    for (size_t i = 0; i < 3 * n; i++)
        sum += (xyz[i] - c[i % 3]) * (xyz[i] - c[i % 3]);
    return sqrt(sum / (double)n);
}

bool cloud_finite(const double *xyz, size_t n)
{
    bool ok = true;
    for (size_t i = 0; i < 3 * n; i++)
        ok &= isfinite(xyz[i]) != 0;
    return ok;
}

static void extents(const double *xyz, size_t n, double min[3], double max[3])
{
    memcpy(min, xyz, 3 * sizeof *min);
    memcpy(max, xyz, 3 * sizeof *max);
    for (size_t i = 0; i < 3 * n; i++) {
        min[i % 3] = fmin(min[i % 3], xyz[i]);
        max[i % 3] = fmax(max[i % 3], xyz[i]);
    }
}

static double mean(const double *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += v[i];
    return sum / (double)n;
}

static uint32_t *no_guesses(size_t n)
{
    uint32_t *index = xmalloc((n + 1) * sizeof *index);
    memset(index, 0xff, n * sizeof *index);
    return index;
}

double chamfer_one_sided(const double *a, size_t n_a, const double *b, size_t n_b)
{
    struct kdtree *t = kdtree_build(b, n_b);
    uint32_t *index = no_guesses(n_a);
    double *d2 = xmalloc((n_a + 1) * sizeof *d2);
    kdtree_nearest(t, a, n_a, index, d2);
    double cd = mean(d2, n_a);
    kdtree_free(t);
    free(index);
    free(d2);
    return cd;
}

/* ---- the best rigid motion between pairs of points ---- */

/* Eigenvalues (descending) and eigenvectors (columns of v) of a symmetric n x n matrix: cyclic
 * Jacobi rotations (Golub, Van Loan 8.5). */
static void eigen_symmetric(int n, double *a, double *v)
{
    for (int i = 0; i < n * n; i++)
        v[i] = i % (n + 1) == 0;
    for (int sweep = 0; sweep < 30; sweep++) {
        double off = 0, size = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++)
                *(i == j ? &size : &off) += a[i * n + j] * a[i * n + j];
        if (off <= 1e-32 * size)
            break;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) {
                double apq = a[p * n + q];
                if (apq == 0)
                    continue;
                double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
                double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < n; k++) {
                    double x = a[k * n + p], y = a[k * n + q];
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                for (int k = 0; k < n; k++) {
                    double x = a[p * n + k], y = a[q * n + k];
                    a[p * n + k] = c * x - s * y;
                    a[q * n + k] = s * x + c * y;
                    x = v[k * n + p], y = v[k * n + q];
                    v[k * n + p] = c * x - s * y;
                    v[k * n + q] = s * x + c * y;
                }
            }
    }
    for (int i = 0; i < n; i++) {
        int top = i;
        for (int j = i + 1; j < n; j++)
            top = a[j * n + j] > a[top * n + top] ? j : top;
        double swap = a[i * n + i];
        a[i * n + i] = a[top * n + top];
        a[top * n + top] = swap;
        for (int k = 0; k < n; k++) {
            swap = v[k * n + i];
            v[k * n + i] = v[k * n + top];
            v[k * n + top] = swap;
        }
    }
}

static void quaternion_matrix(const double q[4], double r[9]) /* w x y z, any length */
{
    double n = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3], w = q[0], x = q[1], y = q[2], z = q[3];
    double s = 2 / n;
    r[0] = 1 - s * (y * y + z * z), r[1] = s * (x * y - w * z), r[2] = s * (x * z + w * y);
    r[3] = s * (x * y + w * z), r[4] = 1 - s * (x * x + z * z), r[5] = s * (y * z - w * x);
    r[6] = s * (x * z - w * y), r[7] = s * (y * z + w * x), r[8] = 1 - s * (x * x + y * y);
}

/* Sums over pairs, from which the best motion follows. */
struct moments {
    double n, a[3], b[3], ab[9];
};

static void moments_add(struct moments *m, const double *a, const double *b)
{
    m->n++;
    for (int i = 0; i < 3; i++) {
        m->a[i] += a[i];
        m->b[i] += b[i];
        for (int j = 0; j < 3; j++)
            m->ab[3 * i + j] += a[i] * b[j];
    }
}

/* Horn 1987: the unit quaternion is the first eigenvector of a 4 x 4 matrix. */
static struct rigid moments_fit(const struct moments *m)
{
    struct rigid out = RIGID_IDENTITY;
    if (m->n < 1)
        return out;
    double ca[3], cb[3], s[9], v[16];
    for (int i = 0; i < 3; i++) {
        ca[i] = m->a[i] / m->n;
        cb[i] = m->b[i] / m->n;
    }
    for (int i = 0; i < 9; i++)
        s[i] = m->ab[i] / m->n - ca[i / 3] * cb[i % 3];
    double k[16] = {
        s[0] + s[4] + s[8], s[5] - s[7], s[6] - s[2], s[1] - s[3],
        s[5] - s[7], s[0] - s[4] - s[8], s[1] + s[3], s[6] + s[2],
        s[6] - s[2], s[1] + s[3], s[4] - s[0] - s[8], s[5] + s[7],
        s[1] - s[3], s[6] + s[2], s[5] + s[7], s[8] - s[0] - s[4],
    };
    eigen_symmetric(4, k, v);
    quaternion_matrix((double[]){v[0], v[4], v[8], v[12]}, out.r);
    for (int i = 0; i < 3; i++)
        out.t[i] = cb[i] - out.r[3 * i] * ca[0] - out.r[3 * i + 1] * ca[1] - out.r[3 * i + 2] * ca[2];
    return out;
}

struct rigid fit_rigid(const double *a, const double *b, size_t n)
{
    /* About the centroids, for the precision of clouds far from the origin. */
    struct moments m = {0};
    double ca[3], cb[3];
    cloud_centroid(a, n, ca);
    cloud_centroid(b, n, cb);
    for (size_t i = 0; i < n; i++) {
        double x[3], y[3];
        for (int k = 0; k < 3; k++) {
            x[k] = a[3 * i + (size_t)k] - ca[k];
            y[k] = b[3 * i + (size_t)k] - cb[k];
        }
        moments_add(&m, x, y);
    }
    struct rigid out = moments_fit(&m);
    for (int i = 0; i < 3; i++)
        out.t[i] += cb[i] - out.r[3 * i] * ca[0] - out.r[3 * i + 1] * ca[1] - out.r[3 * i + 2] * ca[2];
    return out;
}

/* first, then second */
static struct rigid compose(const struct rigid *second, const struct rigid *first)
{
    struct rigid out = {.s = second->s * first->s};
    for (int i = 0; i < 3; i++) {
        out.t[i] = second->t[i];
        for (int j = 0; j < 3; j++) {
            out.t[i] += second->s * second->r[3 * i + j] * first->t[j];
            for (int k = 0; k < 3; k++)
                out.r[3 * i + j] += second->r[3 * i + k] * first->r[3 * k + j];
        }
    }
    return out;
}

/* ---- ICP as Open3D's ---- */

struct matching {
    struct icp_round at;
    uint32_t *index;
    double *d2;
};

static void match(const struct kdtree *t, const double *p, size_t n, double max_distance, struct matching *m)
{
    double reach = max_distance * max_distance, sum = 0;
    size_t inliers = 0;
    kdtree_nearest(t, p, n, m->index, m->d2);
    for (size_t i = 0; i < n; i++)
        if (m->d2[i] < reach) {
            inliers++;
            sum += m->d2[i];
        }
    m->at.fitness = (double)inliers / (double)n;
    m->at.rmse = inliers ? sqrt(sum / (double)inliers) : 0;
}

static struct icp_round icp(double *p, size_t n_p, const double *g, const struct kdtree *t, double max_distance,
                            struct matching *m, double *a, double *b)
{
    match(t, p, n_p, max_distance, m);
    int round = 0;
    for (; round < 30;) {
        size_t n = 0;
        for (size_t i = 0; i < n_p; i++)
            if (m->d2[i] < max_distance * max_distance) {
                memcpy(a + 3 * n, p + 3 * i, 3 * sizeof *a);
                memcpy(b + 3 * n++, g + 3 * (size_t)m->index[i], 3 * sizeof *b);
            }
        if (n) {
            struct rigid move = fit_rigid(a, b, n);
            rigid_apply(&move, p, n_p, p);
        }
        struct icp_round before = m->at;
        match(t, p, n_p, max_distance, m);
        round++;
        if (fabs(before.fitness - m->at.fitness) < 1e-6 && fabs(before.rmse - m->at.rmse) < 1e-6)
            break;
    }
    m->at.iterations = round;
    return m->at;
}

static void icp_rounds(double *p, size_t n_p, const double *g, const struct kdtree *t, const double *reach, int n_rounds,
                       struct icp_round *round)
{
    struct matching m = {.index = no_guesses(n_p), .d2 = xmalloc(n_p * sizeof(double))};
    double *pairs = xmalloc(6 * n_p * sizeof *pairs);
    for (int k = 0; k < n_rounds; k++)
        round[k] = icp(p, n_p, g, t, reach[k], &m, pairs, pairs + 3 * n_p);
    free(m.index);
    free(m.d2);
    free(pairs);
}

struct icp_round reg_icp(double *p, size_t n_p, const double *g, size_t n_g, double max_distance)
{
    struct icp_round out;
    struct kdtree *t = kdtree_build(g, n_g);
    icp_rounds(p, n_p, g, t, &max_distance, 1, &out);
    kdtree_free(t);
    return out;
}

void reg_icp_rounds(double *p, size_t n_p, const double *g, size_t n_g, struct icp_round round[3])
{
    struct kdtree *t = kdtree_build(g, n_g);
    icp_rounds(p, n_p, g, t, (double[]){10, 5, 2.5}, 3, round);
    kdtree_free(t);
}

/* ---- FPFH: 3 histograms of 11 bins ---- */

enum { BINS = 11, FEATURE = 3 * BINS, FEATURE_PAD = 40, NORMAL_NN = 30, FEATURE_NN = 100 };

/* A cloud in single precision by coordinate, centred, with normals and neighbours. */
struct described {
    size_t n, pad;
    float *x, *y, *z, *nx, *ny, *nz;
    uint32_t *first;    /* neighbours of i: near[first[i]] .. near[first[i + 1] - 1], itself among them */
    uint32_t *near;
    float *near_d2;
    float *feature;     /* [n][FEATURE_PAD] */
};

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Normals: the direction of least spread among the nearest, turned away from the centroid (which,
 * unlike a random sign, is the same in every position of the part). */
static void set_normal(struct described *c, size_t i, float reach2)
{
    float kept[FEATURE_NN];
    uint32_t from = c->first[i], to = c->first[i + 1];
    size_t k = 0;
    for (uint32_t j = from; j < to; j++)
        if (c->near_d2[j] < reach2)
            kept[k++] = c->near_d2[j];
    float limit = reach2;
    if (k > NORMAL_NN) {
        qsort(kept, k, sizeof *kept, by_value);
        limit = kept[NORMAL_NN];
    }
    double n = 0, s[3] = {0}, a[9] = {0}, v[9];
    for (uint32_t j = from; j < to; j++) {
        if (!(c->near_d2[j] < limit))
            continue;
        uint32_t q = c->near[j];
        double d[3] = {c->x[q] - c->x[i], c->y[q] - c->y[i], c->z[q] - c->z[i]};
        n++;
        for (int r = 0; r < 3; r++) {
            s[r] += d[r];
            for (int t = 0; t < 3; t++)
                a[3 * r + t] += d[r] * d[t];
        }
    }
    double normal[3] = {0, 0, 1};
    if (n >= 3) {
        for (int r = 0; r < 9; r++)
            a[r] = a[r] / n - s[r / 3] / n * (s[r % 3] / n);
        eigen_symmetric(3, a, v);
        for (int r = 0; r < 3; r++)
            normal[r] = v[3 * r + 2];
    }
    double out = normal[0] * c->x[i] + normal[1] * c->y[i] + normal[2] * c->z[i] < 0 ? -1 : 1;
    c->nx[i] = (float)(out * normal[0]);
    c->ny[i] = (float)(out * normal[1]);
    c->nz[i] = (float)(out * normal[2]);
}

/* All within reach, or the FEATURE_NN nearest of them. */
static void find_neighbours(struct described *c, float reach2)
{
    float *d2 = xmalloc(c->pad * sizeof *d2), *sorted = xmalloc(c->pad * sizeof *sorted);
    size_t total = 0;
    c->first = xmalloc((c->n + 1) * sizeof *c->first);
    c->near = xmalloc((c->n + 1) * FEATURE_NN * sizeof *c->near + c->pad * sizeof *c->near);
    c->near_d2 = xmalloc((c->n + 1) * FEATURE_NN * sizeof *c->near_d2 + c->pad * sizeof *c->near_d2);
    for (size_t i = 0; i < c->n; i++) {
        float px = c->x[i], py = c->y[i], pz = c->z[i];
        for (size_t j = 0; j < c->pad; j++) {
            float dx = c->x[j] - px, dy = c->y[j] - py, dz = c->z[j] - pz;
            d2[j] = dx * dx + dy * dy + dz * dz;
        }
        float limit = reach2;
        uint32_t *near = c->near + total;
        size_t k = 0;
        for (size_t j = 0; j < c->n; j++) { /* without a branch */
            near[k] = (uint32_t)j;
            k += d2[j] < limit;
        }
        if (k > FEATURE_NN) {
            for (size_t j = 0; j < k; j++)
                sorted[j] = d2[near[j]];
            /* quickselect of the FEATURE_NN-th smallest */
            size_t lo = 0, hi = k - 1, want = FEATURE_NN - 1;
            while (lo < hi) {
                float pivot = sorted[(lo + hi) / 2];
                size_t a = lo, b = hi;
                for (;;) {
                    while (sorted[a] < pivot)
                        a++;
                    while (sorted[b] > pivot)
                        b--;
                    if (a >= b)
                        break;
                    float swap = sorted[a];
                    sorted[a++] = sorted[b];
                    sorted[b--] = swap;
                }
                if (want <= b)
                    hi = b;
                else
                    lo = b + 1;
            }
            limit = sorted[want];
            size_t kept = 0;
            for (size_t j = 0; j < k && kept < FEATURE_NN; j++)
                if (d2[near[j]] <= limit)
                    near[kept++] = near[j];
            k = kept;
        }
        c->first[i] = (uint32_t)total;
        for (size_t j = 0; j < k; j++)
            c->near_d2[total + j] = d2[near[j]];
        total += k;
    }
    c->first[c->n] = (uint32_t)total;
    free(d2);
    free(sorted);
}

/* atan2 to 1e-5, in operations that vectorise (Abramowitz, Stegun 4.4.49). */
static inline float atan2_fast(float y, float x)
{
    float ax = fabsf(x), ay = fabsf(y), big = ax > ay ? ax : ay, small = ax > ay ? ay : ax;
    float t = small / (big > 1e-30f ? big : 1e-30f), s = t * t;
    float r = t * (0.9998660f + s * (-0.3302995f + s * (0.1801410f + s * (-0.0851330f + s * 0.0208351f))));
    r = ay > ax ? 1.57079637f - r : r;
    r = x < 0 ? 3.14159274f - r : r;
    return y < 0 ? -r : r;
}

static inline int bin_of(float v)
{
    int b = (int)v;
    return b < 0 ? 0 : b >= BINS ? BINS - 1 : b;
}

/* The simplified histogram of one point: angles of its Darboux frame with each neighbour's normal. */
static void simple_histogram(const struct described *c, size_t i, float *out)
{
    float dx[FEATURE_NN], dy[FEATURE_NN], dz[FEATURE_NN], mx[FEATURE_NN], my[FEATURE_NN], mz[FEATURE_NN];
    float f0[FEATURE_NN], f1[FEATURE_NN], f2[FEATURE_NN];
    uint32_t from = c->first[i], n_near = c->first[i + 1] - from;
    int n = 0;
    for (uint32_t j = 0; j < n_near; j++) {
        uint32_t q = c->near[from + j];
        if (q == i)
            continue;
        dx[n] = c->x[q] - c->x[i], dy[n] = c->y[q] - c->y[i], dz[n] = c->z[q] - c->z[i];
        mx[n] = c->nx[q], my[n] = c->ny[q], mz[n++] = c->nz[q];
    }
    float ax = c->nx[i], ay = c->ny[i], az = c->nz[i];
    for (int k = 0; k < n; k++) {
        float inv = 1 / sqrtf(dx[k] * dx[k] + dy[k] * dy[k] + dz[k] * dz[k] + 1e-30f);
        float ux = dx[k] * inv, uy = dy[k] * inv, uz = dz[k] * inv;
        float s1 = ax * ux + ay * uy + az * uz, s2 = mx[k] * ux + my[k] * uy + mz[k] * uz;
        /* the frame stands on the point whose normal is nearer to the line between them */
        bool other = fabsf(s1) < fabsf(s2);
        float nx = other ? mx[k] : ax, ny = other ? my[k] : ay, nz = other ? mz[k] : az;
        float ox = other ? ax : mx[k], oy = other ? ay : my[k], oz = other ? az : mz[k];
        float sign = other ? -1.0f : 1.0f;
        ux *= sign, uy *= sign, uz *= sign;
        float phi = other ? -s2 : s1;
        float vx = uy * nz - uz * ny, vy = uz * nx - ux * nz, vz = ux * ny - uy * nx;
        float len2 = vx * vx + vy * vy + vz * vz;
        float iv = len2 > 1e-12f ? 1 / sqrtf(len2) : 0;
        vx *= iv, vy *= iv, vz *= iv;
        float wx = ny * vz - nz * vy, wy = nz * vx - nx * vz, wz = nx * vy - ny * vx;
        float theta = atan2_fast(wx * ox + wy * oy + wz * oz, nx * ox + ny * oy + nz * oz);
        bool flat = len2 <= 1e-12f;
        f0[k] = BINS * ((flat ? 0 : theta) + 3.14159274f) * 0.159154943f;
        f1[k] = BINS * ((flat ? 0 : vx * ox + vy * oy + vz * oz) + 1) * 0.5f;
        f2[k] = BINS * ((flat ? 0 : phi) + 1) * 0.5f;
    }
    float step = n ? 100.0f / (float)n : 0;
    for (int k = 0; k < n; k++) {
        out[bin_of(f0[k])] += step;
        out[BINS + bin_of(f1[k])] += step;
        out[2 * BINS + bin_of(f2[k])] += step;
    }
}

static void describe(const double *p, size_t n, double voxel, struct described *c)
{
    double centre[3];
    cloud_centroid(p, n, centre);
    *c = (struct described){.n = n, .pad = (n + 15) / 16 * 16};
    float *block = xcalloc(6 * c->pad, sizeof *block);
    c->x = block, c->y = block + c->pad, c->z = block + 2 * c->pad;
    c->nx = block + 3 * c->pad, c->ny = block + 4 * c->pad, c->nz = block + 5 * c->pad;
    for (size_t i = 0; i < n; i++) {
        c->x[i] = (float)(p[3 * i] - centre[0]);
        c->y[i] = (float)(p[3 * i + 1] - centre[1]);
        c->z[i] = (float)(p[3 * i + 2] - centre[2]);
    }
    find_neighbours(c, (float)(25 * voxel * voxel));
    for (size_t i = 0; i < n; i++)
        set_normal(c, i, (float)(4 * voxel * voxel));
    float *simple = xcalloc(n * FEATURE_PAD, sizeof *simple);
    c->feature = xcalloc(n * FEATURE_PAD, sizeof *c->feature);
    for (size_t i = 0; i < n; i++)
        simple_histogram(c, i, simple + i * FEATURE_PAD);
    for (size_t i = 0; i < n; i++) {
        float *f = c->feature + i * FEATURE_PAD;
        const float *own = simple + i * FEATURE_PAD;
        for (uint32_t j = c->first[i]; j < c->first[i + 1]; j++) {
            if (!(c->near_d2[j] > 0))
                continue;
            float w = 1 / c->near_d2[j];
            const float *s = simple + (size_t)c->near[j] * FEATURE_PAD;
            for (int k = 0; k < FEATURE_PAD; k++)
                f[k] += w * s[k];
        }
        for (int h = 0; h < 3; h++) {
            float sum = 0;
            for (int k = 0; k < BINS; k++)
                sum += f[h * BINS + k];
            float scale = sum > 0 ? 100 / sum : 0;
            for (int k = 0; k < BINS; k++)
                f[h * BINS + k] = f[h * BINS + k] * scale + own[h * BINS + k];
        }
    }
    free(simple);
}

static void described_release(struct described *c)
{
    free(c->x);
    free(c->first);
    free(c->near);
    free(c->near_d2);
    free(c->feature);
}

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));

/* mask ? a : b, lane by lane */
static inline i8 choose(i8 mask, i8 a, i8 b)
{
    return (a & mask) | (b & ~mask);
}

/* The nearest feature of b to each of a, and of a to each of b: one pass over the products. */
static void match_features(const struct described *a, const struct described *b, uint32_t *ab, uint32_t *ba)
{
    enum { TI = 4, TJ = 16 };
    size_t pad = b->pad;
    float *bt = xcalloc(FEATURE * pad, sizeof *bt), *b2 = xmalloc(pad * sizeof *b2), *best_b = xmalloc(pad * sizeof *best_b);
    int32_t *arg_b = xcalloc(pad, sizeof *arg_b);
    for (size_t j = 0; j < pad; j++) {
        b2[j] = j < b->n ? 0 : INFINITY;
        best_b[j] = INFINITY;
        for (size_t k = 0; k < FEATURE && j < b->n; k++) {
            float v = b->feature[j * FEATURE_PAD + k];
            bt[k * pad + j] = v;
            b2[j] += v * v;
        }
    }
    for (size_t i0 = 0; i0 < a->n; i0 += TI) {
        const float *row[TI];
        float a2[TI] = {0};
        v8 best[TI];
        i8 arg[TI];
        for (size_t r = 0; r < TI; r++) {
            row[r] = a->feature + (i0 + r < a->n ? i0 + r : a->n - 1) * FEATURE_PAD;
            for (int k = 0; k < FEATURE; k++)
                a2[r] += row[r][k] * row[r][k];
            best[r] = (v8){0} + INFINITY;
            arg[r] = (i8){0};
        }
        i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
        for (size_t j = 0; j < pad; j += TJ) {
            v8 acc[TI][2] = {{{0}}};
            for (size_t k = 0; k < FEATURE; k++) {
                v8 b0 = *(const v8 *)(bt + k * pad + j), b1 = *(const v8 *)(bt + k * pad + j + 8);
                for (int r = 0; r < TI; r++) {
                    acc[r][0] += row[r][k] * b0;
                    acc[r][1] += row[r][k] * b1;
                }
            }
            for (int h = 0; h < 2; h++) {
                v8 norm = *(const v8 *)(b2 + j + 8 * (size_t)h), low = *(const v8 *)(best_b + j + 8 * (size_t)h);
                i8 low_arg = *(const i8 *)(arg_b + j + 8 * (size_t)h), col = lane + (int32_t)(j + 8 * (size_t)h);
                for (int r = 0; r < TI; r++) {
                    v8 d = norm - 2 * acc[r][h]; /* less a2[r] */
                    i8 less = d < best[r];
                    best[r] = (v8)choose(less, (i8)d, (i8)best[r]);
                    arg[r] = choose(less, col, arg[r]);
                    d += a2[r];
                    less = d < low;
                    low = (v8)choose(less, (i8)d, (i8)low);
                    low_arg = choose(less, (i8){0} + (int32_t)(i0 + (size_t)r), low_arg);
                }
                *(v8 *)(best_b + j + 8 * (size_t)h) = low;
                *(i8 *)(arg_b + j + 8 * (size_t)h) = low_arg;
            }
        }
        for (size_t r = 0; r < TI && i0 + r < a->n; r++) {
            int top = 0;
            for (int l = 1; l < 8; l++)
                top = best[r][l] < best[r][top] ? l : top;
            ab[i0 + r] = (uint32_t)arg[r][top];
        }
    }
    for (size_t j = 0; j < b->n; j++)
        ba[j] = (uint32_t)arg_b[j] < a->n ? (uint32_t)arg_b[j] : (uint32_t)a->n - 1;
    free(bt);
    free(b2);
    free(best_b);
    free(arg_b);
}

/* ---- RANSAC over feature matches, as Open3D's ---- */

enum { RANSAC_GRID = 32 };

static double squared_distance(const double *a, const double *b)
{
    return (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]) + (a[2] - b[2]) * (a[2] - b[2]);
}

/* For every cell of a cube around G a point of G nearest to its centre, or nearly so: a distance
 * transform in two passes over 13 neighbours each (Danielsson 1980), which is far cheaper than a
 * search for each cell. */
struct grid {
    int n; /* cells a side */
    double origin[3], cells; /* cells: per unit of length */
    uint32_t *nearest;
};

static void grid_build(struct grid *gr, int side_n, const double *g, size_t n)
{
    double min[3], max[3], side = 0;
    extents(g, n, min, max);
    for (int k = 0; k < 3; k++)
        side = fmax(side, max[k] - min[k]);
    side *= 1.5;
    gr->n = side_n;
    gr->cells = side_n / side;
    for (int k = 0; k < 3; k++)
        gr->origin[k] = (min[k] + max[k] - side) / 2;
    size_t total = (size_t)(side_n * side_n * side_n);
    float *d2 = xmalloc(total * sizeof *d2);
    gr->nearest = xcalloc(total, sizeof *gr->nearest);
    for (size_t i = 0; i < total; i++)
        d2[i] = INFINITY;
    float *unit = xmalloc(3 * n * sizeof *unit); /* points in cells, from the first cell's centre */
    for (size_t i = 0; i < n; i++) {
        int at[3];
        for (int k = 0; k < 3; k++) {
            unit[3 * i + (size_t)k] = (float)((g[3 * i + (size_t)k] - gr->origin[k]) * gr->cells - 0.5);
            at[k] = (int)(unit[3 * i + (size_t)k] + 0.5f);
        }
        const float *u = unit + 3 * i;
        float x = u[0] - (float)at[0], y = u[1] - (float)at[1], z = u[2] - (float)at[2], d = x * x + y * y + z * z;
        size_t c = (size_t)((at[2] * side_n + at[1]) * side_n + at[0]);
        if (d < d2[c]) {
            d2[c] = d;
            gr->nearest[c] = (uint32_t)i;
        }
    }
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < (int)total; i++) {
            int c = pass ? (int)total - 1 - i : i, x = c % side_n, y = c / side_n % side_n, z = c / (side_n * side_n);
            for (int k = 0; k < 13; k++) { /* the 13 neighbours that come before in this pass */
                int sign = pass ? 1 : -1, dx = sign * (1 - k % 3), dy = sign * (1 - k / 3 % 3), dz = k < 9 ? sign : 0;
                if (k >= 9) { /* same layer: the row before, and the cell before */
                    dx = k == 12 ? sign : sign * (k - 10);
                    dy = k == 12 ? 0 : sign;
                }
                int ox = x + dx, oy = y + dy, oz = z + dz;
                if (ox < 0 || oy < 0 || oz < 0 || ox >= side_n || oy >= side_n || oz >= side_n)
                    continue;
                int o = (oz * side_n + oy) * side_n + ox;
                if (d2[o] == INFINITY)
                    continue;
                const float *u = unit + 3 * (size_t)gr->nearest[o];
                float ex = u[0] - (float)x, ey = u[1] - (float)y, ez = u[2] - (float)z, d = ex * ex + ey * ey + ez * ez;
                if (d < d2[c]) {
                    d2[c] = d;
                    gr->nearest[c] = gr->nearest[o];
                }
            }
        }
    free(d2);
    free(unit);
}

static inline uint32_t grid_nearest(const struct grid *gr, const double *x)
{
    int at[3];
    for (int k = 0; k < 3; k++) {
        double c = (x[k] - gr->origin[k]) * gr->cells;
        at[k] = c <= 0 ? 0 : c >= gr->n ? gr->n - 1 : (int)c;
    }
    return gr->nearest[(at[2] * gr->n + at[1]) * gr->n + at[0]];
}


/* fit_rigid() of three pairs.  They lie in planes, so the characteristic polynomial of Horn's matrix
 * is biquadratic and its first eigenvector a row of an adjugate (Theobald 2005). */
static struct rigid fit_three(const double *a, const double *b)
{
    double ca[3], cb[3], s[9] = {0};
    for (int k = 0; k < 3; k++) {
        ca[k] = (a[k] + a[3 + k] + a[6 + k]) / 3;
        cb[k] = (b[k] + b[3 + k] + b[6 + k]) / 3;
    }
    for (int i = 0; i < 3; i++)
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 3; c++)
                s[3 * r + c] += (a[3 * i + r] - ca[r]) * (b[3 * i + c] - cb[c]);
    double k[4][4] = {
        {s[0] + s[4] + s[8], s[5] - s[7], s[6] - s[2], s[1] - s[3]},
        {s[5] - s[7], s[0] - s[4] - s[8], s[1] + s[3], s[6] + s[2]},
        {s[6] - s[2], s[1] + s[3], s[4] - s[0] - s[8], s[5] + s[7]},
        {s[1] - s[3], s[6] + s[2], s[5] + s[7], s[8] - s[0] - s[4]},
    };
    /* eigenvalues +-x +-y with x, y the singular values of s (the third is 0) */
    double square = 0, minors = 0;
    for (int i = 0; i < 9; i++)
        square += s[i] * s[i];
    for (int r = 0; r < 3; r++)
        for (int c = 0; c < 3; c++) {
            int r1 = (r + 1) % 3, r2 = (r + 2) % 3, c1 = (c + 1) % 3, c2 = (c + 2) % 3;
            double m = s[3 * r1 + c1] * s[3 * r2 + c2] - s[3 * r1 + c2] * s[3 * r2 + c1];
            minors += m * m;
        }
    double top = sqrt(square + 2 * sqrt(minors)), q[4], best = 0;
    for (int i = 0; i < 4; i++)
        k[i][i] -= top;
    struct rigid out = RIGID_IDENTITY;
    for (int row = 0; row < 4; row++) { /* the cofactors of a row, of the row where they are largest */
        double v[4], size = 0;
        for (int col = 0; col < 4; col++) {
            double m[9];
            int n = 0;
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < 4; c++)
                    if (r != row && c != col)
                        m[n++] = k[r][c];
            double det = m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6]) + m[2] * (m[3] * m[7] - m[4] * m[6]);
            v[col] = (row + col) & 1 ? -det : det;
            size += v[col] * v[col];
        }
        if (size > best) {
            best = size;
            memcpy(q, v, sizeof q);
        }
        if (best > 1e-6 * pow(square, 3)) /* large enough to be exact */
            break;
    }
    if (best > 0)
        quaternion_matrix(q, out.r);
    for (int i = 0; i < 3; i++)
        out.t[i] = cb[i] - out.r[3 * i] * ca[0] - out.r[3 * i + 1] * ca[1] - out.r[3 * i + 2] * ca[2];
    return out;
}

/* Edges of the two triangles within a tenth of each other. */
static bool edges_agree(const double *a, const double *b)
{
    for (int i = 0; i < 3; i++) {
        int j = (i + 1) % 3;
        double da = squared_distance(a + 3 * i, a + 3 * j), db = squared_distance(b + 3 * i, b + 3 * j);
        if (da < db * 0.81 || db < da * 0.81)
            return false;
    }
    return true;
}

/* What a hypothesis is judged by: the share of all of P with a point of G within reach (by the grid, so
 * never more than the truth), and their squared distances.  P's points are in random order: when
 * the first ones say, with four standard deviations to spare, that it is worse than `beat`, the
 * rest are not looked at.  False: worse. */
static bool judge(const struct grid *gr, const double *p, size_t n, const double *g, const struct rigid *m, double reach2,
                  double beat, double *fitness, double *error)
{
    size_t inliers = 0, i = 0;
    double sum = 0;
    for (size_t look = 64; i < n; look *= 2) {
        size_t end = look < n ? look : n;
        for (; i < end; i++) {
            double y[3];
            rigid_apply(m, p + 3 * i, 1, y);
            double d2 = squared_distance(y, g + 3 * (size_t)grid_nearest(gr, y));
            bool in = d2 < reach2;
            inliers += in;
            sum += in ? d2 : 0;
        }
        if (i < n && (double)inliers / (double)i < beat - 4 * sqrt(beat * (1 - beat) / (double)i))
            return false;
    }
    *fitness = (double)inliers / (double)n;
    *error = sum;
    return true;
}

static double matches_within(const double *p, const double *g, const uint32_t (*match_of)[2], size_t n, const struct rigid *m,
                             double reach2)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        double y[3];
        rigid_apply(m, p + 3 * (size_t)match_of[i][0], 1, y);
        k += squared_distance(y, g + 3 * (size_t)match_of[i][1]) < reach2;
    }
    return (double)k / (double)n;
}

static struct rigid ransac(const struct grid *gr, const double *p, size_t n_p, const double *g, const uint32_t (*match_of)[2],
                           size_t n, double reach, struct mt19937 *rng, size_t *iterations)
{
    enum { MAX_ITERATIONS = 100000 };
    struct rigid best = RIGID_IDENTITY;
    double best_fitness = 0, best_error = INFINITY, enough = MAX_ITERATIONS;
    size_t it = 0;
    for (; it < MAX_ITERATIONS && (double)it < enough; it++) {
        double a[9], b[9], fitness, error;
        for (int k = 0; k < 3; k++) {
            const uint32_t *m = match_of[(size_t)(((uint64_t)mt_u32(rng) * n) >> 32)];
            memcpy(a + 3 * k, p + 3 * (size_t)m[0], 3 * sizeof *a);
            memcpy(b + 3 * k, g + 3 * (size_t)m[1], 3 * sizeof *b);
        }
        if (!edges_agree(a, b))
            continue;
        struct rigid m = fit_three(a, b);
        double moved[9];
        rigid_apply(&m, a, 3, moved);
        bool near = true;
        for (int k = 0; k < 3; k++)
            near &= squared_distance(moved + 3 * k, b + 3 * k) <= reach * reach;
        if (!near || !judge(gr, p, n_p, g, &m, reach * reach, best_fitness, &fitness, &error))
            continue;
        if (fitness > best_fitness || (fitness == best_fitness && error < best_error)) {
            best = m;
            best_fitness = fitness;
            best_error = error;
            double share = matches_within(p, g, match_of, n, &m, reach * reach), miss = 1 - share * share * share;
            double need = miss <= 0 ? 0 : miss < 1 ? log(1 - 0.999) / log(miss) : MAX_ITERATIONS;
            enough = need < enough ? need : enough;
        }
    }
    *iterations = it;
    return best;
}

void reg_reference(double *p, size_t n_p, const double *g, size_t n_g, uint32_t seed, struct reg_reference *out)
{
    *out = (struct reg_reference){0};
    double cp[3], cg[3], min[3], max[3];
    cloud_centroid(p, n_p, cp);
    cloud_centroid(g, n_g, cg);
    struct rigid centre = RIGID_IDENTITY;
    for (int k = 0; k < 3; k++)
        centre.t[k] = cg[k] - cp[k];
    rigid_apply(&centre, p, n_p, p);
    extents(g, n_g, min, max);
    double voxel = 0.05 * (max[0] - min[0] + max[1] - min[1] + max[2] - min[2]) / 3;

    struct described dp, dg;
    describe(p, n_p, voxel, &dp);
    describe(g, n_g, voxel, &dg);
    uint32_t *pg = xmalloc((n_p + n_g) * sizeof *pg), *gp = pg + n_p;
    match_features(&dp, &dg, pg, gp);
    uint32_t(*pairs)[2] = xmalloc(n_p * sizeof *pairs);
    size_t n = 0;
    for (size_t i = 0; i < n_p; i++)
        if (gp[pg[i]] == i)
            pairs[n][0] = (uint32_t)i, pairs[n++][1] = pg[i];
    if (n < 9) /* too few mutual ones: all */
        for (n = 0; n < n_p; n++)
            pairs[n][0] = (uint32_t)n, pairs[n][1] = pg[n];
    struct mt19937 rng;
    mt_seed(&rng, seed);
    struct kdtree *t = kdtree_build(g, n_g);
    struct grid gr;
    grid_build(&gr, RANSAC_GRID, g, n_g);
    struct rigid m = ransac(&gr, p, n_p, g, (const uint32_t(*)[2])pairs, n, 1.5 * voxel, &rng, &out->iterations);
    out->correspondences = n;
    rigid_apply(&m, p, n_p, p);
    struct matching at = {.index = no_guesses(n_p), .d2 = xmalloc(n_p * sizeof(double))};
    match(t, p, n_p, 1.5 * voxel, &at);
    out->ransac_fitness = at.at.fitness;
    icp_rounds(p, n_p, g, t, (double[]){10, 5, 2.5}, 3, out->icp);
    kdtree_free(t);
    free(gr.nearest);
    free(at.index);
    free(at.d2);
    free(pairs);
    free(pg);
    described_release(&dp);
    described_release(&dg);
}

/* ---- the best alignment ---- */

enum { GRID = 24, COVER = 256, COARSE_POINTS = 96, COARSE_ROUNDS = 6, KEPT = 10, FINE_POINTS = 250, FINE_ROUNDS = 4, LAST_ROUNDS = 20 };

/* Two clouds about their centroids in units of G's RMS, with their trees. */
struct two {
    const double *p, *g;
    size_t n_p, n_g;
    struct kdtree *tp, *tg;
    uint32_t *ip, *ig; /* guesses: nearest of G to each p, of P to each g */
    double *dp, *dg; /* squared distances to them */
};

static void axes(const double *xyz, size_t n, double r[9])
{
    double a[9] = {0}, c[3];
    cloud_centroid(xyz, n, c);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 9; k++)
            a[k] += (xyz[3 * i + (size_t)(k / 3)] - c[k / 3]) * (xyz[3 * i + (size_t)(k % 3)] - c[k % 3]);
    eigen_symmetric(3, a, r);
    double det = r[0] * (r[4] * r[8] - r[5] * r[7]) - r[1] * (r[3] * r[8] - r[5] * r[6]) + r[2] * (r[3] * r[7] - r[4] * r[6]);
    for (int k = 0; k < 3 && det < 0; k++)
        r[3 * k + 2] = -r[3 * k + 2];
}

/* Rotations to start from: none, the 24 that take axes to axes, and a covering of SO(3). */
static int starts(const struct two *w, double (*r)[9])
{
    int n = 0;
    memcpy(r[n++], RIGID_IDENTITY.r, sizeof r[0]);
    double ap[9], ag[9];
    axes(w->p, w->n_p, ap);
    axes(w->g, w->n_g, ag);
    static const int perm[6][3] = {{0, 1, 2}, {1, 2, 0}, {2, 0, 1}, {0, 2, 1}, {2, 1, 0}, {1, 0, 2}};
    for (int i = 0; i < 6; i++)
        for (int s = 0; s < 8; s++) {
            double sign[3] = {s & 1 ? -1 : 1, s & 2 ? -1 : 1, s & 4 ? -1 : 1};
            if (sign[0] * sign[1] * sign[2] * (i < 3 ? 1 : -1) < 0)
                continue;
            for (int a = 0; a < 3; a++)
                for (int b = 0; b < 3; b++) {
                    r[n][3 * a + b] = 0;
                    for (int k = 0; k < 3; k++)
                        r[n][3 * a + b] += ag[3 * a + perm[i][k]] * sign[k] * ap[3 * b + k];
                }
            n++;
        }
    const double phi = sqrt(2), psi = 1.533751168755204288118041, pi2 = 6.283185307179586;
    for (int i = 0; i < COVER; i++) {
        double s = i + 0.5, t = s / COVER, a = pi2 * s / phi, b = pi2 * s / psi;
        quaternion_matrix((double[]){sqrt(t) * sin(a), sqrt(t) * cos(a), sqrt(1 - t) * sin(b), sqrt(1 - t) * cos(b)}, r[n++]);
    }
    return n;
}

/* A few rounds of ICP of some points of P by the grid; returns the mean squared distance left. */
static double coarse(const struct two *w, const struct grid *gr, struct rigid *m)
{
    size_t n = w->n_p < COARSE_POINTS ? w->n_p : COARSE_POINTS;
    double left = INFINITY;
    for (int round = 0; round < COARSE_ROUNDS; round++) {
        struct moments sums = {0};
        left = 0;
        for (size_t i = 0; i < n; i++) {
            const double *x = w->p + 3 * (i * w->n_p / n);
            double y[3];
            rigid_apply(m, x, 1, y);
            const double *q = w->g + 3 * (size_t)grid_nearest(gr, y);
            left += squared_distance(y, q);
            moments_add(&sums, x, q);
        }
        if (round + 1 < COARSE_ROUNDS)
            *m = moments_fit(&sums);
    }
    return left / (double)n;
}

/* Distances both ways between step-th points of one cloud and all of the other, P moved by m.  G is
 * taken to P's frame, so that both trees stand. */
static double both_ways(struct two *w, const struct rigid *m, size_t n, struct moments *sums, double *forward, double *backward)
{
    size_t n_p = w->n_p < n ? w->n_p : n, n_g = w->n_g < n ? w->n_g : n;
    double f = 0, b = 0;
    for (size_t i = 0; i < n_p; i++) {
        size_t at = i * w->n_p / n_p;
        double y[3];
        rigid_apply(m, w->p + 3 * at, 1, y);
        kdtree_nearest(w->tg, y, 1, &w->ip[at], &w->dp[at]);
        b += w->dp[at];
        if (sums)
            moments_add(sums, w->p + 3 * at, w->g + 3 * (size_t)w->ip[at]);
    }
    for (size_t i = 0; i < n_g; i++) {
        size_t at = i * w->n_g / n_g;
        const double *x = w->g + 3 * at;
        double d[3] = {x[0] - m->t[0], x[1] - m->t[1], x[2] - m->t[2]}, y[3];
        for (int k = 0; k < 3; k++)
            y[k] = m->r[k] * d[0] + m->r[3 + k] * d[1] + m->r[6 + k] * d[2];
        kdtree_nearest(w->tp, y, 1, &w->ig[at], &w->dg[at]);
        f += w->dg[at];
        if (sums)
            moments_add(sums, w->p + 3 * (size_t)w->ig[at], x);
    }
    *forward = f / (double)n_g;
    *backward = b / (double)n_p;
    return *forward + *backward;
}

/* Symmetric ICP: least squares over the pairs of both directions. */
static double refine(struct two *w, struct rigid *m, size_t n, int rounds, double *forward, double *backward)
{
    struct rigid best = *m;
    double best_sum = INFINITY, last = INFINITY, f, b;
    for (int round = 0; round <= rounds; round++) {
        struct moments sums = {0};
        double sum = both_ways(w, m, n, &sums, &f, &b);
        if (sum < best_sum) {
            best_sum = sum;
            best = *m;
            *forward = f;
            *backward = b;
        }
        if (fabs(last - sum) <= 1e-5 * sum || sum < 1e-20)
            break;
        last = sum;
        *m = moments_fit(&sums);
    }
    *m = best;
    return best_sum;
}

static struct two two_of(const double *p, size_t n_p, const double *g, size_t n_g)
{
    return (struct two){
        .p = p, .g = g, .n_p = n_p, .n_g = n_g, .tp = kdtree_build(p, n_p), .tg = kdtree_build(g, n_g),
        .ip = no_guesses(n_p), .ig = no_guesses(n_g), .dp = xmalloc(n_p * sizeof(double)), .dg = xmalloc(n_g * sizeof(double)),
    };
}

static void two_release(struct two *w)
{
    kdtree_free(w->tp);
    kdtree_free(w->tg);
    free(w->ip);
    free(w->ig);
    free(w->dp);
    free(w->dg);
}

struct candidate {
    struct rigid m;
    double left;
};

/* Cosine of the angle between two rotations. */
static double same_way(const double *a, const double *b)
{
    double trace = 0;
    for (int k = 0; k < 9; k++)
        trace += a[k] * b[k];
    return (trace - 1) / 2;
}

static double search(struct two *w, struct rigid *best, int *n_starts, double *forward, double *backward)
{
    double(*r)[9] = xmalloc((25 + COVER) * sizeof *r);
    struct candidate kept[KEPT];
    int n = starts(w, r), n_kept = 0;
    struct grid gr;
    grid_build(&gr, GRID, w->g, w->n_g);
    for (int i = 0; i < n; i++) {
        struct candidate c = {RIGID_IDENTITY, 0};
        memcpy(c.m.r, r[i], sizeof c.m.r);
        c.left = coarse(w, &gr, &c.m);
        /* Sorted by what is left; of two that came to the same place the better. */
        int at = 0, same = n_kept;
        for (int k = 0; k < n_kept && same == n_kept; k++)
            if (same_way(kept[k].m.r, c.m.r) > 0.995)
                same = k;
        if (same < n_kept && kept[same].left <= c.left)
            continue;
        if (same == n_kept && n_kept == KEPT && kept[KEPT - 1].left <= c.left)
            continue;
        if (same == n_kept)
            same = n_kept < KEPT ? n_kept++ : KEPT - 1;
        while (kept[at].left <= c.left && at < same)
            at++;
        memmove(kept + at + 1, kept + at, (size_t)(same - at) * sizeof *kept);
        kept[at] = c;
    }
    double least = INFINITY;
    for (int k = 0; k < n_kept; k++) {
        double sum = refine(w, &kept[k].m, FINE_POINTS, FINE_ROUNDS, forward, backward);
        if (sum < least) {
            least = sum;
            *best = kept[k].m;
        }
    }
    *n_starts = n;
    free(gr.nearest);
    free(r);
    return refine(w, best, SIZE_MAX, LAST_ROUNDS, forward, backward);
}

static double share_within(const double *d2, size_t n, double reach)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        k += d2[i] <= reach * reach;
    return (double)k / (double)n;
}

bool reg_best(const double *p, size_t n_p, const double *g, size_t n_g, double threshold, struct reg_best *out)
{
    *out = (struct reg_best){0};
    if (n_p < 2 || n_g < 2 || !cloud_finite(p, n_p) || !cloud_finite(g, n_g))
        return false;
    double cp[3], cg[3];
    out->rms_p = cloud_rms(p, n_p);
    out->rms_g = cloud_rms(g, n_g);
    if (!(out->rms_p > 0 && out->rms_g > 0 && isfinite(out->rms_p) && isfinite(out->rms_g)))
        return false;
    cloud_centroid(p, n_p, cp);
    cloud_centroid(g, n_g, cg);
    double *up = xmalloc(3 * n_p * sizeof *up), *ug = xmalloc(3 * n_g * sizeof *ug);
    for (size_t i = 0; i < 3 * n_p; i++)
        up[i] = (p[i] - cp[i % 3]) / out->rms_p;
    for (size_t i = 0; i < 3 * n_g; i++)
        ug[i] = (g[i] - cg[i % 3]) / out->rms_g;

    struct two w = two_of(up, n_p, ug, n_g);
    struct rigid shape, size;
    search(&w, &shape, &out->starts, &out->shape_forward, &out->shape_backward);
    two_release(&w);

    double ratio = out->rms_p / out->rms_g;
    for (size_t i = 0; i < 3 * n_p; i++)
        up[i] *= ratio;
    w = two_of(up, n_p, ug, n_g);
    size = shape;
    refine(&w, &size, SIZE_MAX, LAST_ROUNDS, &out->size_forward, &out->size_backward);
    double f, b;
    both_ways(&w, &size, SIZE_MAX, NULL, &f, &b);
    out->precision = share_within(w.dp, n_p, threshold);
    out->recall = share_within(w.dg, n_g, threshold);
    two_release(&w);

    /* Back from centred units to the clouds as they came. */
    struct rigid down = RIGID_IDENTITY, up_again = RIGID_IDENTITY;
    down.s = 1 / out->rms_p;
    up_again.s = out->rms_g;
    for (int k = 0; k < 3; k++) {
        down.t[k] = -cp[k] / out->rms_p;
        up_again.t[k] = cg[k];
    }
    struct rigid tmp = compose(&shape, &down);
    out->shape = compose(&up_again, &tmp);
    down.s = 1 / out->rms_g;
    for (int k = 0; k < 3; k++)
        down.t[k] = -cp[k] / out->rms_g;
    tmp = compose(&size, &down);
    out->size = compose(&up_again, &tmp);
    free(up);
    free(ug);
    return true;
}
