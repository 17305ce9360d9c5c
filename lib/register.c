#include "lib/register.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/fpfh.h"
#include "lib/lanes.h"
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

/* v[i] from itself, the next one and the one 397 on; without a branch, as its bits are random. */
static inline void mt_next(uint32_t *v, int i, int next, int far)
{
    uint32_t y = (v[i] & 0x80000000u) | (v[next] & 0x7fffffffu);
    v[i] = v[far] ^ (y >> 1) ^ (-(y & 1) & 0x9908b0dfu);
}

static void mt_turn(struct mt19937 *r)
{
    for (int i = 0; i < 227; i++)
        mt_next(r->v, i, i + 1, i + 397);
    for (int i = 227; i < 623; i++)
        mt_next(r->v, i, i + 1, i - 227);
    mt_next(r->v, 623, 0, 396);
    r->at = 0;
}

static inline uint32_t mt_temper(uint32_t y)
{
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

uint32_t mt_u32(struct mt19937 *r)
{
    if (r->at == 624)
        mt_turn(r);
    return mt_temper(r->v[r->at++]);
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

/* Sums over pairs (a, b), from which the best motion follows. */
struct moments {
    double n;
    v4 a, b, ab[3]; /* of a, of b, of a[i] b; the fourth lane is 0 */
};

static inline void moments_add(struct moments *m, const double *a, const double *b)
{
    v4 vb = {b[0], b[1], b[2], 0};
    m->n++;
    m->a += (v4){a[0], a[1], a[2], 0};
    m->b += vb;
    for (int i = 0; i < 3; i++)
        m->ab[i] += a[i] * vb;
}

/* Horn 1987: the best rotation's unit quaternion is the first eigenvector of this 4 x 4 matrix of the sums
 * s[i][j] of a[i] b[j] about the centroids. */
static void horn_matrix(const double s[9], double k[16])
{
    const double rows[16] = {
        s[0] + s[4] + s[8], s[5] - s[7], s[6] - s[2], s[1] - s[3],
        s[5] - s[7], s[0] - s[4] - s[8], s[1] + s[3], s[6] + s[2],
        s[6] - s[2], s[1] + s[3], s[4] - s[0] - s[8], s[5] + s[7],
        s[1] - s[3], s[6] + s[2], s[5] + s[7], s[8] - s[0] - s[4],
    };
    memcpy(k, rows, sizeof rows);
}

static double det3(const double m[9])
{
    return m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6]) + m[2] * (m[3] * m[7] - m[4] * m[6]);
}

/* The eigenvector of a symmetric 4 x 4 matrix for a simple eigenvalue is any row of the adjugate of k - top
 * (Theobald 2005): the first that is long enough to be exact (size: of k's numbers), or the longest.  False: all are 0. */
static bool eigenvector(double k[16], double top, double size, double q[4])
{
    double best = 0;
    for (int i = 0; i < 4; i++)
        k[5 * i] -= top;
    for (int row = 0; row < 4; row++) {
        double v[4], length2 = 0;
        for (int col = 0; col < 4; col++) {
            double m[9];
            int n = 0;
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < 4; c++)
                    if (r != row && c != col)
                        m[n++] = k[4 * r + c];
            v[col] = (row + col) & 1 ? -det3(m) : det3(m);
            length2 += v[col] * v[col];
        }
        if (length2 > best) {
            best = length2;
            memcpy(q, v, 4 * sizeof *q);
        }
        if (best > 1e-6 * pow(size, 6))
            break;
    }
    return best > 0;
}

/* quick: the largest eigenvalue by Newton's method on the characteristic polynomial, which is enough to start
 * another round from; else by Jacobi rotations. */
static struct rigid moments_fit(const struct moments *m, bool quick)
{
    struct rigid out = RIGID_IDENTITY;
    if (m->n < 1)
        return out;
    double ca[3], cb[3], s[9], k[16], v[16], square = 0;
    for (int i = 0; i < 3; i++) {
        ca[i] = m->a[i] / m->n;
        cb[i] = m->b[i] / m->n;
    }
    for (int i = 0; i < 9; i++) {
        s[i] = m->ab[i / 3][i % 3] / m->n - ca[i / 3] * cb[i % 3];
        square += s[i] * s[i];
    }
    horn_matrix(s, k);
    bool found = false;
    if (quick && square > 0) {
        /* x^4 + c2 x^2 + c1 x + c0, from above its largest root */
        double c2 = -2 * square, c1 = -8 * det3(s), c0 = 0, x = sqrt(3 * square), q[4];
        for (int col = 0; col < 4; col++) {
            double minor[9];
            for (int r = 1, n = 0; r < 4; r++)
                for (int c = 0; c < 4; c++)
                    if (c != col)
                        minor[n++] = k[4 * r + c];
            c0 += (col & 1 ? -1 : 1) * k[col] * det3(minor);
        }
        for (int i = 0; i < 30; i++) {
            double f = ((x * x + c2) * x + c1) * x + c0, slope = (4 * x * x + 2 * c2) * x + c1, step = slope != 0 ? f / slope : 0;
            x -= step;
            if (fabs(step) <= 1e-12 * x)
                break;
        }
        found = eigenvector(k, x, sqrt(square), q);
        if (found)
            quaternion_matrix(q, out.r);
        else
            horn_matrix(s, k);
    }
    if (!found) {
        eigen_symmetric(4, k, v);
        quaternion_matrix((double[]){v[0], v[4], v[8], v[12]}, out.r);
    }
    for (int i = 0; i < 3; i++)
        out.t[i] = cb[i] - out.r[3 * i] * ca[0] - out.r[3 * i + 1] * ca[1] - out.r[3 * i + 2] * ca[2];
    return out;
}

struct rigid fit_rigid(const double *a, const double *b, size_t n)
{
    /* About the centroids, for the precision of clouds far from the origin. */
    struct moments m = {.n = 0};
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
    struct rigid out = moments_fit(&m, false);
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
    struct kdtree_followed *of; /* each point's nearest */
    double *d2;
    const uint32_t *order; /* in which points are gone through; NULL: as they are */
};

static struct matching matching_new(size_t n, const uint32_t *order)
{
    return (struct matching){.order = order, .of = kdtree_followed_new(n), .d2 = xmalloc((n + 1) * sizeof(double))};
}

static void matching_release(struct matching *m)
{
    free(m->of);
    free(m->d2);
}

static void match(const struct kdtree *t, const double *p, size_t n, double max_distance, struct matching *m)
{
    double reach = max_distance * max_distance, sum = 0;
    size_t inliers = 0;
    kdtree_follow(t, p, n, m->order, max_distance, NULL, m->of, m->d2);
    for (size_t i = 0; i < n; i++)
        if (m->d2[i] < reach) {
            inliers++;
            sum += m->d2[i];
        }
    m->at.fitness = (double)inliers / (double)n;
    m->at.rmse = inliers ? sqrt(sum / (double)inliers) : 0;
}

static struct icp_round icp(double *p, size_t n_p, const double *g, const double centre[3], const struct kdtree *t, double max_distance,
                            struct matching *m)
{
    match(t, p, n_p, max_distance, m);
    int round = 0;
    for (; round < 30;) {
        /* About G's centroid, for the precision of clouds far from the origin. */
        struct moments sums = {.n = 0};
        for (size_t i = 0; i < n_p; i++) {
            if (!(m->d2[i] < max_distance * max_distance))
                continue;
            const double *x = p + 3 * i, *y = g + 3 * (size_t)m->of[i].index;
            moments_add(&sums, (double[]){x[0] - centre[0], x[1] - centre[1], x[2] - centre[2]},
                        (double[]){y[0] - centre[0], y[1] - centre[1], y[2] - centre[2]});
        }
        if (sums.n > 0) {
            struct rigid move = moments_fit(&sums, false);
            for (int i = 0; i < 3; i++)
                move.t[i] += centre[i] - move.r[3 * i] * centre[0] - move.r[3 * i + 1] * centre[1] - move.r[3 * i + 2] * centre[2];
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

static void icp_rounds(double *p, size_t n_p, const double *g, size_t n_g, const struct kdtree *t, struct matching *m, const double *reach,
                       int n_rounds, struct icp_round *round)
{
    double centre[3];
    cloud_centroid(g, n_g, centre);
    for (int k = 0; k < n_rounds; k++)
        round[k] = icp(p, n_p, g, centre, t, reach[k], m);
}

/* Rounds of ICP by themselves. */
static void icp_alone(double *p, size_t n_p, const double *g, size_t n_g, const double *reach, int n_rounds, struct icp_round *round)
{
    struct kdtree *t = kdtree_build(g, n_g);
    struct matching m = matching_new(n_p, NULL);
    icp_rounds(p, n_p, g, n_g, t, &m, reach, n_rounds, round);
    matching_release(&m);
    kdtree_free(t);
}

struct icp_round reg_icp(double *p, size_t n_p, const double *g, size_t n_g, double max_distance)
{
    struct icp_round out;
    icp_alone(p, n_p, g, n_g, &max_distance, 1, &out);
    return out;
}

void reg_icp_rounds(double *p, size_t n_p, const double *g, size_t n_g, struct icp_round round[3])
{
    icp_alone(p, n_p, g, n_g, (double[]){10, 5, 2.5}, 3, round);
}

/* ---- RANSAC over feature matches, as Open3D's ---- */

enum { RANSAC_GRID = 32 };

static double squared_distance(const double *a, const double *b)
{
    return (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]) + (a[2] - b[2]) * (a[2] - b[2]);
}

/* fit_rigid() of three pairs.  They lie in planes, so the characteristic polynomial of Horn's matrix
 * is biquadratic. */
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
    /* eigenvalues +-x +-y with x, y the singular values of s (the third is 0) */
    double k[16], q[4], square = 0, minors = 0;
    for (int i = 0; i < 9; i++)
        square += s[i] * s[i];
    for (int r = 0; r < 3; r++)
        for (int c = 0; c < 3; c++) {
            int r1 = (r + 1) % 3, r2 = (r + 2) % 3, c1 = (c + 1) % 3, c2 = (c + 2) % 3;
            double m = s[3 * r1 + c1] * s[3 * r2 + c2] - s[3 * r1 + c2] * s[3 * r2 + c1];
            minors += m * m;
        }
    struct rigid out = RIGID_IDENTITY;
    horn_matrix(s, k);
    if (eigenvector(k, sqrt(square + 2 * sqrt(minors)), sqrt(square), q))
        quaternion_matrix(q, out.r);
    for (int i = 0; i < 3; i++)
        out.t[i] = cb[i] - out.r[3 * i] * ca[0] - out.r[3 * i + 1] * ca[1] - out.r[3 * i + 2] * ca[2];
    return out;
}

/* A correspondence: a point of P and one of G. */
struct pair {
    double p[3], g[3];
};

/* Edges within a tenth of each other? */
static bool edges_agree(const struct pair *x, const struct pair *y)
{
    double dp = squared_distance(x->p, y->p), dg = squared_distance(x->g, y->g);
    return dp >= dg * 0.81 && dg >= dp * 0.81;
}

/* [n][n] bits: edges_agree() of all correspondences; NULL when they are too many to be worth it. */
static uint64_t *edge_table(const struct pair *pair, size_t n)
{
    enum { MOST = 1000 };
    if (n > MOST)
        return NULL;
    size_t words = (n + 63) / 64, pad = 64 * words;
    double *at = xcalloc(6 * pad, sizeof *at); /* by coordinate */
    uint64_t *agree = xmalloc(n * words * sizeof *agree);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < 3; k++) {
            at[k * pad + i] = pair[i].p[k];
            at[(3 + k) * pad + i] = pair[i].g[k];
        }
    for (size_t i = 0; i < n; i++) {
        const double *p = pair[i].p, *g = pair[i].g;
        uint8_t yes[64];
        for (size_t w = 0; w < words; w++) {
            const double *c = at + 64 * w;
            for (size_t j = 0; j < 64; j++) {
                double x = c[j] - p[0], y = c[pad + j] - p[1], z = c[2 * pad + j] - p[2], dp = x * x + y * y + z * z;
                x = c[3 * pad + j] - g[0], y = c[4 * pad + j] - g[1], z = c[5 * pad + j] - g[2];
                double dg = x * x + y * y + z * z;
                yes[j] = (dp >= dg * 0.81) & (dg >= dp * 0.81);
            }
            uint64_t bits = 0;
            for (size_t j = 0; j < 64; j++)
                bits |= (uint64_t)yes[j] << j;
            agree[i * words + w] = bits;
        }
    }
    free(at);
    return agree;
}

/* Points by coordinate, four at a time; those that fill up the last four are too far away to count. */
struct fours {
    double (*x)[3][4];
};

static struct fours fours_of(const double *xyz, size_t n)
{
    size_t fours = (n + 3) / 4;
    struct fours f = {xmalloc((fours + 1) * sizeof *f.x)};
    for (size_t i = 0; i < 4 * fours; i++)
        for (size_t k = 0; k < 3; k++)
            f.x[i / 4][k][i % 4] = i < n ? xyz[3 * i + k] : 1e150;
    return f;
}

/* Squared distances of four points, by coordinate, to the points of g that the grid has near them. */
static inline v4 grid_distances(const struct grid *gr, const double *g, const v4 y[3])
{
    v4 q[3];
#ifdef __AVX2__
    __m128i at[3], index;
    const __m256d zero = _mm256_setzero_pd(), last = _mm256_set1_pd(gr->side - 1);
    for (int k = 0; k < 3; k++)
        at[k] = _mm256_cvttpd_epi32(_mm256_min_pd(_mm256_max_pd((__m256d)((y[k] - gr->origin[k]) * gr->cells), zero), last));
    index = _mm_add_epi32(_mm_mullo_epi32(at[2], _mm_set1_epi32(gr->side)), at[1]);
    index = _mm_add_epi32(_mm_mullo_epi32(index, _mm_set1_epi32(gr->side)), at[0]);
    index = _mm_i32gather_epi32((const int *)gr->nearest, index, 4);
    index = _mm_add_epi32(index, _mm_slli_epi32(index, 1)); /* 3 doubles a point */
    for (int k = 0; k < 3; k++)
        q[k] = (v4)_mm256_i32gather_pd(g + k, index, 8);
#else
    for (int l = 0; l < 4; l++) {
        const double *near = g + 3 * (size_t)grid_nearest(gr, (double[]){y[0][l], y[1][l], y[2][l]});
        for (int k = 0; k < 3; k++)
            q[k][l] = near[k];
    }
#endif
    return (y[0] - q[0]) * (y[0] - q[0]) + (y[1] - q[1]) * (y[1] - q[1]) + (y[2] - q[2]) * (y[2] - q[2]);
}

/* What a hypothesis is judged by: the share of n points of P with a point of G within reach (by the grid, so
 * never more than the truth), and their squared distances.  P's points are in random order: when
 * the first ones say, with 2.5 standard deviations to spare, that it is worse than `beat`, the
 * rest are not looked at.  False: worse. */
static bool judge(const struct grid *gr, const struct fours *p, size_t n, const double *g, const struct rigid *m, double reach2,
                  double beat, double *fitness, double *error)
{
    v4 sum = {0};
    l4 inside = {0}; /* minus how many */
    size_t i = 0, inliers = 0;
    for (size_t look = 32; i < n; look *= 2) {
        size_t end = look < n ? look : n;
        for (; i < end; i += 4) {
            v4 y[3], d;
            const v4 x = *(const v4 *)p->x[i / 4][0], x1 = *(const v4 *)p->x[i / 4][1], x2 = *(const v4 *)p->x[i / 4][2];
            for (int k = 0; k < 3; k++)
                y[k] = m->r[3 * k] * x + m->r[3 * k + 1] * x1 + m->r[3 * k + 2] * x2 + m->t[k];
            d = grid_distances(gr, g, y);
            l4 in = d < reach2;
            sum += (v4)((l4)d & in);
            inside += in;
        }
        inliers = (size_t)-(inside[0] + inside[1] + inside[2] + inside[3]);
        if (i < n && (double)inliers / (double)i < beat - 2.5 * sqrt(beat * (1 - beat) / (double)i))
            return false;
    }
    *fitness = (double)inliers / (double)n;
    *error = sum[0] + sum[1] + sum[2] + sum[3];
    return true;
}

static double matches_within(const struct pair *pair, size_t n, const struct rigid *m, double reach2)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        double y[3];
        rigid_apply(m, pair[i].p, 1, y);
        k += squared_distance(y, pair[i].g) < reach2;
    }
    return (double)k / (double)n;
}

/* Of the best motion's fitness: what one must have to be kept beside it. */
#define SHARE 0.9

/* A motion that stood all of P's points. */
struct judged {
    struct rigid m;
    double fitness, error;
};

static bool better(const struct judged *a, const struct judged *b)
{
    return a->fitness > b->fitness || (a->fitness == b->fitness && a->error < b->error);
}

/* Mean squared distance, at most reach2 each, of n points of G, evenly chosen, from P moved by m. */
static double truth_left(const struct kdtree *of_p, const double *g, size_t n_g, size_t n, const struct rigid *m, double reach2)
{
    uint32_t index = UINT32_MAX;
    double sum = 0;
    n = n < n_g ? n : n_g;
    for (size_t i = 0; i < n; i++) {
        const double *x = g + 3 * (i * n_g / n);
        double d[3] = {x[0] - m->t[0], x[1] - m->t[1], x[2] - m->t[2]}, y[3], d2;
        for (int k = 0; k < 3; k++)
            y[k] = m->r[k] * d[0] + m->r[3 + k] * d[1] + m->r[6 + k] * d[2];
        kdtree_nearest(of_p, y, 1, &index, &d2);
        sum += d2 < reach2 ? d2 : reach2;
    }
    return sum / (double)n;
}

/* A few rounds of ICP of n points of P by the grid. */
static struct rigid settle(const struct grid *gr, const double *p, size_t n_p, size_t n, const double *g, double reach2, struct rigid m)
{
    n = n < n_p ? n : n_p;
    for (int round = 0; round < 6; round++) {
        struct moments sums = {.n = 0};
        for (size_t i = 0; i < n; i++) {
            const double *x = p + 3 * (i * n_p / n);
            double y[3];
            rigid_apply(&m, x, 1, y);
            const double *q = g + 3 * (size_t)grid_nearest(gr, y);
            if (squared_distance(y, q) < reach2)
                moments_add(&sums, x, q);
        }
        if (sums.n < 3)
            break;
        m = moments_fit(&sums, true);
    }
    return m;
}

static struct rigid ransac(const struct grid *gr, const double *p, size_t n_p, const double *g, size_t n_g, const struct pair *pair, size_t n,
                           double reach, struct mt19937 *rng, size_t *iterations)
{
    enum { MAX_ITERATIONS = 100000, KEEP = 8, JUDGES = 1000 };
    struct judged top[KEEP], h; /* best first */
    int n_top = 0;
    double enough = MAX_ITERATIONS;
    uint64_t *agree = edge_table(pair, n);
    const size_t judges = n_p < JUDGES ? n_p : JUDGES;
    struct fours fours = fours_of(p, judges);
    uint32_t drawn[624]; /* numbers below n, of one turn of the generator, which has not been asked before */
    size_t it = 0, words = (n + 63) / 64, at = ARRAY_LEN(drawn);
    for (; it < MAX_ITERATIONS && (double)it < enough; it++, at += 3) {
        if (at == ARRAY_LEN(drawn)) {
            mt_turn(rng);
            for (size_t k = 0; k < ARRAY_LEN(drawn); k++)
                drawn[k] = (uint32_t)(((uint64_t)mt_temper(rng->v[k]) * (uint32_t)n) >> 32);
            at = 0;
        }
        const size_t of[3] = {drawn[at], drawn[at + 1], drawn[at + 2]};
        bool alike;
        if (agree) /* all three at once: one branch, which is nearly always the same */
            alike = agree[of[0] * words + of[1] / 64] >> of[1] % 64 & agree[of[1] * words + of[2] / 64] >> of[2] % 64 &
                    agree[of[2] * words + of[0] / 64] >> of[0] % 64 & 1;
        else
            alike = edges_agree(&pair[of[0]], &pair[of[1]]) && edges_agree(&pair[of[1]], &pair[of[2]]) &&
                    edges_agree(&pair[of[2]], &pair[of[0]]);
        if (!alike)
            continue;
        double a[9], b[9], moved[9];
        for (int k = 0; k < 3; k++) {
            memcpy(a + 3 * k, pair[of[k]].p, 3 * sizeof *a);
            memcpy(b + 3 * k, pair[of[k]].g, 3 * sizeof *b);
        }
        h.m = fit_three(a, b);
        rigid_apply(&h.m, a, 3, moved);
        bool near = true;
        for (int k = 0; k < 3; k++)
            near &= squared_distance(moved + 3 * k, b + 3 * k) <= reach * reach;
        double beat = n_top ? SHARE * top[0].fitness : 0;
        if (!near || !judge(gr, &fours, judges, g, &h.m, reach * reach, beat, &h.fitness, &h.error) || h.fitness < beat)
            continue;
        if (!n_top || better(&h, &top[0])) {
            double share = matches_within(pair, n, &h.m, reach * reach), miss = 1 - share * share * share;
            double need = miss <= 0 ? 0 : miss < 1 ? log(1 - 0.999) / log(miss) : MAX_ITERATIONS;
            enough = need < enough ? need : enough;
        }
        int to = n_top < KEEP ? n_top++ : KEEP - 1;
        for (; to && better(&h, &top[to - 1]); to--)
            top[to] = top[to - 1];
        top[to] = h;
    }
    free(agree);
    free(fours.x);
    *iterations = it;
    if (!n_top)
        return RIGID_IDENTITY;
    /* Among motions as good as the best, what the original takes is up to its random numbers; here it is the one that
     * leaves least of the truth uncovered. */
    int chosen = 0;
    if (n_top > 1 && top[1].fitness >= SHARE * top[0].fitness) {
        struct kdtree *of_p = kdtree_build(p, n_p);
        double least = INFINITY;
        for (int k = 0; k < n_top && top[k].fitness >= SHARE * top[0].fitness; k++) {
            struct rigid settled = settle(gr, p, n_p, 500, g, 9 * reach * reach, top[k].m);
            double left = truth_left(of_p, g, n_g, 300, &settled, 9 * reach * reach);
            if (left < least) {
                least = left;
                chosen = k;
            }
        }
        kdtree_free(of_p);
    }
    return top[chosen].m;
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

    struct fpfh fp, fg;
    fpfh_build(&fp, p, n_p, voxel);
    fpfh_build(&fg, g, n_g, voxel);
    uint32_t *pg = xmalloc((n_p + n_g) * sizeof *pg), *gp = pg + n_p;
    fpfh_match(&fp, &fg, pg, gp);
    struct pair *pairs = xmalloc(n_p * sizeof *pairs);
    size_t n = 0;
    for (int all = 0; all < 2 && n < 9; all++) { /* too few mutual ones: all */
        n = 0;
        for (size_t i = 0; i < n_p; i++) {
            if (!all && gp[pg[i]] != i)
                continue;
            memcpy(pairs[n].p, p + 3 * i, sizeof pairs[n].p);
            memcpy(pairs[n++].g, g + 3 * (size_t)pg[i], sizeof pairs[n].g);
        }
    }
    struct mt19937 rng;
    mt_seed(&rng, seed);
    struct kdtree *t = kdtree_build(g, n_g);
    struct grid gr;
    grid_build(&gr, RANSAC_GRID, g, n_g);
    struct rigid m = ransac(&gr, p, n_p, g, n_g, pairs, n, 1.5 * voxel, &rng, &out->iterations);
    out->correspondences = n;
    rigid_apply(&m, p, n_p, p);
    struct matching at = matching_new(n_p, fp.order);
    match(t, p, n_p, 1.5 * voxel, &at);
    out->ransac_fitness = at.at.fitness;
    icp_rounds(p, n_p, g, n_g, t, &at, (double[]){10, 5, 2.5}, 3, out->icp);
    kdtree_follow(t, p, n_p, at.order, INFINITY, NULL, at.of, at.d2);
    out->backward = mean(at.d2, n_p);
    kdtree_free(t);
    t = kdtree_build(p, n_p);
    uint32_t *index = no_guesses(n_g), before = UINT32_MAX;
    double *d2 = xmalloc((n_g + 1) * sizeof *d2);
    for (size_t i = 0; i < n_p; i++)
        index[at.of[i].index] = (uint32_t)i;
    for (size_t k = 0; k < n_g; k++) { /* each is near the one before */
        size_t i = fg.order[k];
        index[i] = index[i] == UINT32_MAX ? before : index[i];
        kdtree_nearest(t, g + 3 * i, 1, &index[i], &d2[i]);
        before = index[i];
    }
    out->forward = mean(d2, n_g);
    free(index);
    free(d2);
    matching_release(&at);
    kdtree_free(t);
    grid_release(&gr);
    fpfh_release(&fp);
    fpfh_release(&fg);
    free(pairs);
    free(pg);
}

/* ---- the best alignment ---- */

/* From many starts to one, ever fewer and with ever more points. */
enum {
    GRID = 24, COVER = 256, COARSE_POINTS = 96, COARSE_ROUNDS = 6, TRIED = 3, STAY = 96, /* all starts: TRIED rounds; the best STAY: the rest */
    KEPT = 10, KEPT_POINTS = 150, KEPT_ROUNDS = 1,
    FEW = 3, FEW_POINTS = 500, FEW_ROUNDS = 6,
    LAST_ROUNDS = 20
};

/* Two clouds about their centroids in units of G's RMS, with their trees. */
struct two {
    const double *p, *g;
    size_t n_p, n_g;
    struct kdtree *tp, *tg;
    struct kdtree_followed *fp, *fg; /* nearest of G to each p, of P to each g */
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

/* Rounds of ICP of some points of P by the grid; returns the mean squared distance ahead of the last. */
static double coarse(const struct two *w, const struct grid *gr, int rounds, struct rigid *m)
{
    size_t n = w->n_p < COARSE_POINTS ? w->n_p : COARSE_POINTS;
    double left = INFINITY;
    for (int round = 0; round < rounds; round++) {
        struct moments sums = {.n = 0};
        left = 0;
        for (size_t i = 0; i < n; i++) {
            const double *x = w->p + 3 * (i * w->n_p / n);
            double y[3];
            rigid_apply(m, x, 1, y);
            const double *q = w->g + 3 * (size_t)grid_nearest(gr, y);
            left += squared_distance(y, q);
            moments_add(&sums, x, q);
        }
        *m = moments_fit(&sums, true);
    }
    return left / (double)n;
}

/* Distances both ways between n points, evenly chosen, of one cloud and all of the other, P moved by m.  G is
 * taken to P's frame, so that both trees stand. */
static double both_ways(struct two *w, const struct rigid *m, size_t n, struct moments *sums, double *forward, double *backward)
{
    size_t n_p = w->n_p < n ? w->n_p : n, n_g = w->n_g < n ? w->n_g : n, before = 0;
    double f = 0, b = 0, y[3];
    for (size_t i = 0; i < n_p; i++) {
        size_t at = i * w->n_p / n_p;
        const double *x = w->p + 3 * at;
        rigid_apply(m, x, 1, y);
        kdtree_follow(w->tg, y, 1, NULL, INFINITY, i ? &w->fp[before] : NULL, &w->fp[at], &w->dp[at]);
        b += w->dp[at];
        before = at;
        if (sums)
            moments_add(sums, (double[]){m->s * x[0], m->s * x[1], m->s * x[2]}, w->g + 3 * (size_t)w->fp[at].index);
    }
    for (size_t i = 0; i < n_g; i++) {
        size_t at = i * w->n_g / n_g;
        const double *x = w->g + 3 * at;
        double d[3] = {x[0] - m->t[0], x[1] - m->t[1], x[2] - m->t[2]};
        for (int k = 0; k < 3; k++)
            y[k] = (m->r[k] * d[0] + m->r[3 + k] * d[1] + m->r[6 + k] * d[2]) / m->s;
        kdtree_follow(w->tp, y, 1, NULL, INFINITY, i ? &w->fg[before] : NULL, &w->fg[at], &w->dg[at]);
        w->dg[at] *= m->s * m->s;
        f += w->dg[at];
        before = at;
        const double *q = w->p + 3 * (size_t)w->fg[at].index;
        if (sums)
            moments_add(sums, (double[]){m->s * q[0], m->s * q[1], m->s * q[2]}, x);
    }
    *forward = f / (double)n_g;
    *backward = b / (double)n_p;
    return *forward + *backward;
}

/* Symmetric ICP: least squares over the pairs of both directions, until the sum changes by less than `enough`. */
static double refine(struct two *w, struct rigid *m, size_t n, int rounds, double enough, double *forward, double *backward)
{
    struct rigid best = *m;
    double best_sum = INFINITY, last = INFINITY, f, b, s = m->s;
    for (int round = 0; round <= rounds; round++) {
        struct moments sums = {.n = 0};
        double sum = both_ways(w, m, n, round < rounds ? &sums : NULL, &f, &b);
        if (sum < best_sum) {
            best_sum = sum;
            best = *m;
            *forward = f;
            *backward = b;
        }
        if (fabs(last - sum) <= enough * sum || sum < 1e-20 || round == rounds)
            break;
        last = sum;
        *m = moments_fit(&sums, false);
        m->s = s;
    }
    *m = best;
    return best_sum;
}

static struct two two_of(const double *p, size_t n_p, const double *g, size_t n_g)
{
    return (struct two){
        .p = p, .g = g, .n_p = n_p, .n_g = n_g, .tp = kdtree_build(p, n_p), .tg = kdtree_build(g, n_g),
        .fp = kdtree_followed_new(n_p), .fg = kdtree_followed_new(n_g), .dp = xmalloc(n_p * sizeof(double)), .dg = xmalloc(n_g * sizeof(double)),
    };
}

static void two_release(struct two *w)
{
    kdtree_free(w->tp);
    kdtree_free(w->tg);
    free(w->fp);
    free(w->fg);
    free(w->dp);
    free(w->dg);
}

struct candidate {
    struct rigid m;
    double left;
    int start;
};

/* Cosine of the angle between two rotations. */
static double same_way(const double *a, const double *b)
{
    double trace = 0;
    for (int k = 0; k < 9; k++)
        trace += a[k] * b[k];
    return (trace - 1) / 2;
}

static int by_left(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->left != y->left ? (x->left < y->left ? -1 : 1) : x->start - y->start;
}

/* Sorts c[n] and drops those that came to the same place as a better one; at most `most` stay. */
static int best_of(struct candidate *c, int n, int most)
{
    int kept = 0;
    qsort(c, (size_t)n, sizeof *c, by_left);
    for (int i = 0; i < n && kept < most; i++) {
        bool known = false;
        for (int k = 0; k < kept && !known; k++)
            known = same_way(c[k].m.r, c[i].m.r) > 0.995;
        if (!known)
            c[kept++] = c[i];
    }
    return kept;
}

static double search(struct two *w, struct rigid *best, int *n_starts, double *forward, double *backward)
{
    double(*r)[9] = xmalloc((25 + COVER) * sizeof *r);
    struct candidate *c = xmalloc((25 + COVER) * sizeof *c);
    int n = *n_starts = starts(w, r);
    struct grid gr;
    grid_build(&gr, GRID, w->g, w->n_g);
    for (int i = 0; i < n; i++) {
        c[i] = (struct candidate){.m = RIGID_IDENTITY, .start = i};
        memcpy(c[i].m.r, r[i], sizeof c[i].m.r);
        c[i].left = coarse(w, &gr, TRIED, &c[i].m);
    }
    qsort(c, (size_t)n, sizeof *c, by_left);
    n = n < STAY ? n : STAY;
    for (int i = 0; i < n; i++)
        c[i].left = coarse(w, &gr, COARSE_ROUNDS - TRIED, &c[i].m);
    n = best_of(c, n, KEPT);
    for (int k = 0; k < n; k++)
        c[k].left = refine(w, &c[k].m, KEPT_POINTS, KEPT_ROUNDS, 1e-5, forward, backward);
    n = best_of(c, n, FEW);
    for (int k = 0; k < n; k++)
        c[k].left = refine(w, &c[k].m, FEW_POINTS, FEW_ROUNDS, 1e-3, forward, backward);
    best_of(c, n, 1);
    *best = c[0].m;
    grid_release(&gr);
    free(c);
    free(r);
    return refine(w, best, SIZE_MAX, LAST_ROUNDS, 1e-5, forward, backward);
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
    size = shape;
    size.s = out->rms_p / out->rms_g;
    refine(&w, &size, SIZE_MAX, LAST_ROUNDS, 1e-5, &out->size_forward, &out->size_backward);
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
    tmp = compose(&size, &down);
    out->size = compose(&up_again, &tmp);
    out->size.s = 1; /* but for rounding */
    free(up);
    free(ug);
    return true;
}
