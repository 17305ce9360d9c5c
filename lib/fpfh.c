#include "lib/fpfh.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lib/lanes.h"
#include "lib/mem.h"

enum { NORMAL_NN = 30, FEATURE_NN = 100, LANES = 8, MAX_CELLS = 48 };

static const i8 LANE = {0, 1, 2, 3, 4, 5, 6, 7};

/* Writes the lanes of d2 in mask, and their numbers j, behind each other; returns how many.  Room for LANES is needed. */
static inline size_t compress(uint32_t mask, v8 d2, i8 j, float *out_d2, uint32_t *out_j)
{
#ifdef __AVX2__
    uint64_t bytes = _pdep_u64(mask, 0x0101010101010101u) * 0xff; /* a byte a lane */
    __m256i from = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)_pext_u64(0x0706050403020100u, bytes)));
    _mm256_storeu_ps(out_d2, _mm256_permutevar8x32_ps((__m256)d2, from));
    _mm256_storeu_si256((__m256i *)out_j, _mm256_permutevar8x32_epi32((__m256i)j, from));
    return (size_t)__builtin_popcount(mask);
#else
    size_t n = 0;
    for (; mask; mask &= mask - 1) {
        uint32_t l = (uint32_t)__builtin_ctz(mask);
        out_d2[n] = d2[l];
        out_j[n++] = (uint32_t)j[l];
    }
    return n;
#endif
}

static inline v8 to_floats(const uint8_t *p)
{
#ifdef __AVX2__
    return (v8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    v8 v;
    for (int k = 0; k < LANES; k++)
        v[k] = p[k];
    return v;
#endif
}

/* Points by coordinate, centred, sorted by cells half as wide as a reach, so that what is within it is in few runs. */
struct cells {
    size_t n;
    float *x, *y, *z; /* [n], and 2 * LANES more that may be read */
    uint32_t *order;  /* [n] the point as it came */
    int side[3];      /* cells */
    double width, min[3];
    uint32_t *start;  /* [cells + 1] first point of each cell, x fastest */
};

struct cloud {
    struct cells by; /* the histograms' reach */
    size_t n;
    float *x, *y, *z, *nx, *ny, *nz; /* x, y, z: of by */
    uint32_t *first;    /* [n + 1] neighbours of i: near[first[i]] .. near[first[i + 1] - 1], itself among them */
    uint32_t *near;     /* ascending */
    float *near_d2;
    float *limit;       /* [n] squared distance of the farthest neighbour that i may have */
};

static int cell_of(const struct cells *c, int k, double v)
{
    int at = (int)((v - c->min[k]) / c->width);
    return at < 0 ? 0 : at >= c->side[k] ? c->side[k] - 1 : at;
}

static void cells_build(struct cells *c, const double *xyz, size_t n, double reach)
{
    double max[3], centre[3] = {0, 0, 0};
    size_t pad = n + 2 * LANES;
    c->n = n;
    c->x = xcalloc(3 * pad, sizeof *c->x);
    c->y = c->x + pad;
    c->z = c->y + pad;
    c->order = xmalloc(n * sizeof *c->order);
    memcpy(c->min, xyz, sizeof c->min);
    memcpy(max, xyz, sizeof max);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 3; k++) {
            double v = xyz[3 * i + (size_t)k];
            centre[k] += v / (double)n;
            c->min[k] = v < c->min[k] ? v : c->min[k];
            max[k] = v > max[k] ? v : max[k];
        }
    c->width = reach > 0 ? reach / 2 : 1;
    for (int k = 0; k < 3; k++) {
        double cells = (max[k] - c->min[k]) / c->width + 1;
        c->side[k] = cells < MAX_CELLS ? (int)cells : MAX_CELLS; /* the last one takes the rest */
    }
    size_t total = (size_t)c->side[0] * (size_t)c->side[1] * (size_t)c->side[2];
    uint32_t *cell = xmalloc(n * sizeof *cell);
    c->start = xcalloc(total + 2, sizeof *c->start);
    for (size_t i = 0; i < n; i++) {
        const double *p = xyz + 3 * i;
        cell[i] = (uint32_t)((cell_of(c, 2, p[2]) * c->side[1] + cell_of(c, 1, p[1])) * c->side[0] + cell_of(c, 0, p[0]));
        c->start[cell[i] + 2]++;
    }
    for (size_t k = 2; k < total + 2; k++)
        c->start[k] += c->start[k - 1];
    for (size_t i = 0; i < n; i++) { /* leaves start[k + 1] at the end of cell k */
        uint32_t to = c->start[cell[i] + 1]++;
        c->order[to] = (uint32_t)i;
        c->x[to] = (float)(xyz[3 * i] - centre[0]);
        c->y[to] = (float)(xyz[3 * i + 1] - centre[1]);
        c->z[to] = (float)(xyz[3 * i + 2] - centre[2]);
    }
    for (int k = 0; k < 3; k++)
        c->min[k] -= centre[k];
    free(cell);
}

static void cells_release(struct cells *c)
{
    free(c->x);
    free(c->order);
    free(c->start);
}

/* A row of cells, of those that cells_about() gives, holds the points *from .. *to - 1. */
static inline void cells_run(const struct cells *c, const int lo[3], const int hi[3], int y, int z, uint32_t *from, uint32_t *to)
{
    size_t row = ((size_t)z * (size_t)c->side[1] + (size_t)y) * (size_t)c->side[0];
    *from = c->start[row + (size_t)lo[0]];
    *to = c->start[row + (size_t)hi[0] + 1];
}

/* The cells with what is within the reach of p. */
static void cells_about(const struct cells *c, const float p[3], int lo[3], int hi[3])
{
    for (int k = 0; k < 3; k++) {
        int at = cell_of(c, k, p[k]);
        lo[k] = at > 2 ? at - 2 : 0;
        hi[k] = at + 2 < c->side[k] ? at + 2 : c->side[k] - 1;
    }
}

/* Of the points within the reach that c was built for, reach2 squared: squared distances and numbers.  Room for
 * c->n + LANES is needed. */
static size_t points_within(const struct cells *c, const float p[3], float reach2, float *d2, uint32_t *near)
{
    int lo[3], hi[3];
    size_t n = 0;
    cells_about(c, p, lo, hi);
    for (int z = lo[2]; z <= hi[2]; z++)
        for (int y = lo[1]; y <= hi[1]; y++) {
            uint32_t from, to;
            cells_run(c, lo, hi, y, z, &from, &to);
            for (uint32_t j = from; j < to; j += LANES) { /* past the end of a run: padding or the next run */
                v8 dx = *(const v8 *)(c->x + j) - p[0], dy = *(const v8 *)(c->y + j) - p[1], dz = *(const v8 *)(c->z + j) - p[2];
                v8 d = dx * dx + dy * dy + dz * dz;
                uint32_t m = lanes(d < reach2);
                if (to - j < LANES)
                    m &= (1u << (to - j)) - 1;
                n += compress(m, d, LANE + (int32_t)j, d2 + n, near + n);
            }
        }
    return n;
}

#ifdef __AVX2__
/* The same with vectors of 512 bits, where the machine has them; room for c->n + 2 * LANES is needed. */
__attribute__((target("avx512f"))) static size_t points_within_512(const struct cells *c, const float p[3], float reach2, float *d2,
                                                                   uint32_t *near)
{
    enum { WIDE = 16 };
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 px = _mm512_set1_ps(p[0]), py = _mm512_set1_ps(p[1]), pz = _mm512_set1_ps(p[2]), reach = _mm512_set1_ps(reach2);
    int lo[3], hi[3];
    size_t n = 0;
    cells_about(c, p, lo, hi);
    for (int z = lo[2]; z <= hi[2]; z++)
        for (int y = lo[1]; y <= hi[1]; y++) {
            uint32_t from, to;
            cells_run(c, lo, hi, y, z, &from, &to);
            for (uint32_t j = from; j < to; j += WIDE) {
                __m512 dx = _mm512_sub_ps(_mm512_loadu_ps(c->x + j), px), dy = _mm512_sub_ps(_mm512_loadu_ps(c->y + j), py);
                __m512 dz = _mm512_sub_ps(_mm512_loadu_ps(c->z + j), pz);
                __m512 d = _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(dx, dx), _mm512_mul_ps(dy, dy)), _mm512_mul_ps(dz, dz));
                __mmask16 m = _mm512_cmp_ps_mask(d, reach, _CMP_LT_OQ);
                if (to - j < WIDE)
                    m &= (__mmask16)((1u << (to - j)) - 1);
                _mm512_storeu_ps(d2 + n, _mm512_maskz_compress_ps(m, d));
                _mm512_storeu_si512(near + n, _mm512_maskz_compress_epi32(m, _mm512_add_epi32(lane, _mm512_set1_epi32((int)j))));
                n += (size_t)__builtin_popcount(m);
            }
        }
    return n;
}
#endif

static size_t count_below(const float *d2, size_t k, float than)
{
    i8 n = {0}; /* minus how many */
    size_t j = 0;
    for (; j + LANES <= k; j += LANES)
        n += *(const v8 *)(d2 + j) < than;
    n += (*(const v8 *)(d2 + j) < than) & (LANE < (int32_t)(k - j));
    return (size_t)-(n[0] + n[1] + n[2] + n[3] + n[4] + n[5] + n[6] + n[7]);
}

/* The want-th smallest (from 0) of d2[k], want < k, all at least 0 and below `most`: by counting those below a number between
 * bounds, at first one from where it is likely, as squared distances on a surface are spread evenly.  LANES more may be read. */
static float nth_smallest(const float *d2, size_t k, size_t want, float most)
{
    float low = 0, high = most;
    size_t n_low = 0, n_high = k; /* so many are below */
    for (int round = 0; n_high != want + 1; round++) {
        float at = low + (high - low) * ((float)(want - n_low) + 0.5f) / (float)(n_high - n_low);
        if (round >= 6) { /* halve the numbers between them */
            uint32_t l, h;
            memcpy(&l, &low, sizeof l);
            memcpy(&h, &high, sizeof h);
            l += (h - l) / 2;
            memcpy(&at, &l, sizeof at);
        }
        if (!(at > low && at < high)) {
            if (round < 6)
                continue;
            break; /* low itself, several times */
        }
        size_t n = count_below(d2, k, at);
        if (n > want) {
            high = at;
            n_high = n;
        } else {
            low = at;
            n_low = n;
        }
    }
    v8 top = {0};
    for (size_t j = 0; j < k; j += LANES) {
        v8 d = *(const v8 *)(d2 + j);
        i8 in = (d < high) & (LANE < (int32_t)(k - j));
        d = select8(in, d, (v8){0});
        top = select8(d > top, d, top);
    }
    float greatest = 0;
    for (int l = 0; l < LANES; l++)
        greatest = top[l] > greatest ? top[l] : greatest;
    return greatest;
}

/* All within reach, or the FEATURE_NN nearest of them.  Where many are (a cloud much smaller than the reach), they are
 * looked for in cells of their own, within a part of it that has enough for most points. */
static void find_neighbours(struct cloud *c, const double *xyz, float reach2)
{
    size_t (*within_reach)(const struct cells *, const float[3], float, float *, uint32_t *) = points_within;
#ifdef __AVX2__
    if (__builtin_cpu_supports("avx512f"))
        within_reach = points_within_512;
#endif
    size_t total = 0, words = (c->n + 63) / 64;
    double spread = 0;
    for (size_t i = 0; i < c->n; i++)
        spread += c->x[i] * c->x[i] + c->y[i] * c->y[i] + c->z[i] * c->z[i];
    /* of a sphere's points the share 4 r^2 / R^2 is within r of one: those are 2.4 times as many as wanted */
    double part2 = 4 * 2.4 * FEATURE_NN * spread / ((double)c->n * (double)c->n);
    bool dense = part2 < 0.5 * reach2;
    struct cells small = {.n = 0};
    uint32_t *place = NULL;     /* in c->by of a point of small */
    float *of_place = NULL;     /* squared distances by place */
    uint64_t *there = NULL;     /* whether that is set */
    float *d2 = xmalloc((c->n + 2 * LANES) * sizeof *d2);
    uint32_t *near = xmalloc((c->n + 2 * LANES) * sizeof *near);
    c->first = xmalloc((c->n + 1) * sizeof *c->first);
    c->near = xmalloc((c->n * FEATURE_NN + LANES) * sizeof *c->near);
    c->near_d2 = xmalloc((c->n * FEATURE_NN + LANES) * sizeof *c->near_d2);
    c->limit = xmalloc(c->n * sizeof *c->limit);
    if (dense) {
        cells_build(&small, xyz, c->n, sqrt(part2));
        place = xmalloc(2 * c->n * sizeof *place);
        for (size_t i = 0; i < c->n; i++)
            place[c->n + c->by.order[i]] = (uint32_t)i;
        for (size_t i = 0; i < c->n; i++)
            place[i] = place[c->n + small.order[i]];
        of_place = xmalloc(c->n * sizeof *of_place);
        there = xcalloc(words, sizeof *there);
    }
    for (size_t i = 0; i < c->n; i++) {
        float p[3] = {c->x[i], c->y[i], c->z[i]}, within = reach2;
        size_t n = 0, end = total + FEATURE_NN;
        if (dense) {
            n = within_reach(&small, p, within = (float)part2, d2, near);
            if (n <= FEATURE_NN)
                within = reach2;
        }
        bool by_place = within < reach2;
        if (!by_place)
            n = within_reach(&c->by, p, reach2, d2, near);
        float limit = reach2;
        bool most = n > FEATURE_NN;
        if (most)
            limit = nth_smallest(d2, n, FEATURE_NN - 1, within);
        c->limit[i] = limit;
        c->first[i] = (uint32_t)total;
        if (by_place) {
            for (size_t j = 0; j < n; j++)
                if (d2[j] <= limit) {
                    uint32_t at = place[near[j]];
                    of_place[at] = d2[j];
                    there[at / 64] |= (uint64_t)1 << at % 64;
                }
            for (size_t w = 0; w < words; w++) /* and so in order */
                for (; there[w]; there[w] &= there[w] - 1) {
                    uint32_t at = (uint32_t)(64 * w) + (uint32_t)__builtin_ctzll(there[w]);
                    if (total == end)
                        continue;
                    c->near[total] = at;
                    c->near_d2[total++] = of_place[at];
                }
            continue;
        }
        for (size_t j = 0; j < n && total < end; j += LANES) {
            v8 d = *(const v8 *)(d2 + j);
            uint32_t m = most ? lanes(d <= limit) : 255;
            if (n - j < LANES)
                m &= (1u << (n - j)) - 1;
            total += compress(m, d, *(const i8 *)(near + j), c->near_d2 + total, c->near + total);
        }
        total = total < end ? total : end;
    }
    c->first[c->n] = (uint32_t)total;
    cells_release(&small);
    free(place);
    free(of_place);
    free(there);
    free(d2);
    free(near);
}

/* The direction of least spread: eigenvector of the smallest eigenvalue of a symmetric matrix (xx, xy, xz, yy,
 * yz, zz), by the closed form of its eigenvalues (Smith 1961). */
static void least_spread(const double a[6], double out[3])
{
    double mean = (a[0] + a[3] + a[5]) / 3, b[6], p2 = 0;
    for (int k = 0; k < 6; k++)
        b[k] = a[k] - (k == 0 || k == 3 || k == 5 ? mean : 0);
    p2 = (b[0] * b[0] + b[3] * b[3] + b[5] * b[5] + 2 * (b[1] * b[1] + b[2] * b[2] + b[4] * b[4])) / 6;
    out[0] = out[1] = 0;
    out[2] = 1;
    if (!(p2 > 0))
        return;
    double p = sqrt(p2);
    double det = b[0] * (b[3] * b[5] - b[4] * b[4]) - b[1] * (b[1] * b[5] - b[4] * b[2]) + b[2] * (b[1] * b[4] - b[3] * b[2]);
    double r = det / (2 * p * p2);
    r = r < -1 ? -1 : r > 1 ? 1 : r;
    double least = mean + 2 * p * cos(acos(r) / 3 + 2.0943951023931957);
    /* It is normal to every row of a - least: the longest product of two of them. */
    double row[3][3] = {{a[0] - least, a[1], a[2]}, {a[1], a[3] - least, a[4]}, {a[2], a[4], a[5] - least}}, longest = 0;
    for (int k = 0; k < 3; k++) {
        const double *u = row[k], *v = row[(k + 1) % 3];
        double w[3] = {u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]};
        double len2 = w[0] * w[0] + w[1] * w[1] + w[2] * w[2];
        if (len2 > longest) {
            longest = len2;
            memcpy(out, w, sizeof w);
        }
    }
    double inv = longest > 0 ? 1 / sqrt(longest) : 1;
    for (int k = 0; k < 3; k++)
        out[k] *= inv;
}

/* Normals: the direction of least spread among the nearest, turned away from the centroid (which,
 * unlike a random sign, is the same in every position of the part). */
static void set_normal(struct cloud *c, size_t i, float reach2)
{
    float kept[FEATURE_NN + LANES], limit = reach2;
    uint32_t from = c->first[i], to = c->first[i + 1], at[FEATURE_NN + LANES];
    size_t k = 0;
    for (uint32_t j = from; j < to; j += LANES) {
        v8 d = *(const v8 *)(c->near_d2 + j);
        uint32_t m = lanes(d < reach2);
        if (to - j < LANES)
            m &= (1u << (to - j)) - 1;
        k += compress(m, d, LANE + (int32_t)j, kept + k, at + k);
    }
    if (k > NORMAL_NN)
        limit = nth_smallest(kept, k, NORMAL_NN, reach2);
    size_t n_near = 0;
    for (size_t j = 0; j < k; j += LANES) { /* in place */
        v8 d = *(const v8 *)(kept + j);
        uint32_t m = lanes((d < limit) & (LANE < (int32_t)(k - j)));
        n_near += compress(m, d, *(const i8 *)(at + j), kept + n_near, at + n_near);
    }
    const double n = (double)n_near;
    double s[3] = {0}, a[6] = {0}, normal[3] = {0, 0, 1};
    for (size_t j = 0; j < n_near; j++) {
        uint32_t q = c->near[at[j]];
        double d[3] = {c->x[q] - c->x[i], c->y[q] - c->y[i], c->z[q] - c->z[i]};
        for (int r = 0; r < 3; r++)
            s[r] += d[r];
        a[0] += d[0] * d[0], a[1] += d[0] * d[1], a[2] += d[0] * d[2];
        a[3] += d[1] * d[1], a[4] += d[1] * d[2], a[5] += d[2] * d[2];
    }
    if (n >= 3) {
        a[0] -= s[0] * s[0] / n, a[1] -= s[0] * s[1] / n, a[2] -= s[0] * s[2] / n;
        a[3] -= s[1] * s[1] / n, a[4] -= s[1] * s[2] / n, a[5] -= s[2] * s[2] / n;
        least_spread(a, normal);
    }
    double out = normal[0] * c->x[i] + normal[1] * c->y[i] + normal[2] * c->z[i] < 0 ? -1 : 1;
    c->nx[i] = (float)(out * normal[0]);
    c->ny[i] = (float)(out * normal[1]);
    c->nz[i] = (float)(out * normal[2]);
}

static inline v8 absolute(v8 a)
{
    return (v8)((i8)a & 0x7fffffff);
}

/* 1 / sqrt(a), a > 0, to the last bit or two. */
static inline v8 inverse_root(v8 a)
{
#ifdef __AVX__
    v8 r = (v8)_mm256_rsqrt_ps((__m256)a); /* 12 bits, doubled by a step of Newton's method */
    return r * (1.5f - 0.5f * a * r * r);
#else
    v8 r;
    for (int k = 0; k < LANES; k++)
        r[k] = 1 / sqrtf(a[k]);
    return r;
#endif
}

/* atan2 to 1e-5 (Abramowitz, Stegun 4.4.49). */
static inline v8 atan2_fast(v8 y, v8 x)
{
    v8 ax = absolute(x), ay = absolute(y), tiny = (v8){0} + 1e-30f;
    i8 steep = ay > ax;
    v8 t = lesser(ax, ay) / greater(greater(ax, ay), tiny), s = t * t;
    v8 r = t * (0.9998660f + s * (-0.3302995f + s * (0.1801410f + s * (-0.0851330f + s * 0.0208351f))));
    r = select8(steep, 1.57079637f - r, r);
    r = select8(x < 0, 3.14159274f - r, r);
    return (v8)((i8)r ^ ((y < 0) & INT32_MIN));
}

/* Which bin a value from 0 to FPFH_BINS is in, LANES at a time. */
static inline i8 bins_of(v8 v)
{
    v8 most = (v8){0} + (FPFH_BINS - 1);
    return __builtin_convertvector(lesser(greater(v, (v8){0}), most), i8);
}

/* Neighbours of one point whose pairs are to be looked at. */
struct batch {
    uint32_t j[FEATURE_NN + 2 * LANES]; /* with MUTUAL: the pair counts for the neighbour, too */
    int32_t bin[3][FEATURE_NN + LANES];
};

#define MUTUAL (1u << 31)

/* Place and normal of a point, together in memory. */
struct oriented {
    float x[3], n[3], unused[2];
};

/* Those of LANES points, by coordinate. */
static inline __attribute__((always_inline)) void by_coordinate(const struct oriented *p, const uint32_t *j, v8 x[3], v8 n[3])
{
#ifdef __AVX__
    __m256 low[4], high[4];
    for (int k = 0; k < 4; k++) {
        const float *a = (const float *)&p[j[k] & ~MUTUAL], *b = (const float *)&p[j[k + 4] & ~MUTUAL];
        low[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
        high[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a + 4)), _mm_loadu_ps(b + 4), 1);
    }
    __m256 xy0 = _mm256_unpacklo_ps(low[0], low[1]), xy1 = _mm256_unpacklo_ps(low[2], low[3]);
    __m256 zn0 = _mm256_unpackhi_ps(low[0], low[1]), zn1 = _mm256_unpackhi_ps(low[2], low[3]);
    __m256 nn0 = _mm256_unpacklo_ps(high[0], high[1]), nn1 = _mm256_unpacklo_ps(high[2], high[3]);
    x[0] = (v8)_mm256_shuffle_ps(xy0, xy1, 0x44);
    x[1] = (v8)_mm256_shuffle_ps(xy0, xy1, 0xee);
    x[2] = (v8)_mm256_shuffle_ps(zn0, zn1, 0x44);
    n[0] = (v8)_mm256_shuffle_ps(zn0, zn1, 0xee);
    n[1] = (v8)_mm256_shuffle_ps(nn0, nn1, 0x44);
    n[2] = (v8)_mm256_shuffle_ps(nn0, nn1, 0xee);
#else
    for (int k = 0; k < LANES; k++)
        for (int r = 0; r < 3; r++) {
            x[r][k] = p[j[k] & ~MUTUAL].x[r];
            n[r][k] = p[j[k] & ~MUTUAL].n[r];
        }
#endif
}

static inline v8 gather(const float *from, i8 at)
{
#ifdef __AVX2__
    return (v8)_mm256_i32gather_ps(from, (__m256i)at, 4);
#else
    v8 v;
    for (int k = 0; k < LANES; k++)
        v[k] = from[at[k]];
    return v;
#endif
}

/* Neighbours of i whose pair is not looked at from their side; without a branch, as it would go either way.  Room for LANES more
 * than FEATURE_NN is needed: i itself fills up the last vector. */
static int pairs_of(const struct cloud *c, uint32_t i, uint32_t *j)
{
    const uint32_t from = c->first[i], to = c->first[i + 1];
    float unused[FEATURE_NN + 2 * LANES];
    size_t n = 0;
    for (uint32_t k = from; k < to; k += LANES) {
        v8 d2 = *(const v8 *)(c->near_d2 + k);
        i8 there = LANE < (int32_t)(to - k), q = *(const i8 *)(c->near + k) & there, at = (i8){0} + (int32_t)i;
        i8 mutual = d2 <= gather(c->limit, q);
        n += compress(lanes(there & ((q > at) | ((q < at) & ~mutual))), d2, q | (mutual & INT32_MIN), unused + n, j + n);
    }
    for (int k = 0; k < LANES; k++)
        j[n + (size_t)k] = i;
    return (int)n;
}

/* Simplified histograms: angles of the Darboux frame of each point with each neighbour.  A pair has the same
 * from either side, so it is looked at once. */
static void simple_histograms(const struct cloud *c, uint8_t (*count)[FPFH_PAD])
{
    struct batch b;
    struct oriented *p = xmalloc(c->n * sizeof *p);
    for (size_t i = 0; i < c->n; i++)
        p[i] = (struct oriented){{c->x[i], c->y[i], c->z[i]}, {c->nx[i], c->ny[i], c->nz[i]}, {0}};
    for (size_t i = 0; i < c->n; i++) {
        const int n = pairs_of(c, (uint32_t)i, b.j);
        v8 ax = (v8){0} + c->nx[i], ay = (v8){0} + c->ny[i], az = (v8){0} + c->nz[i];
        for (int k = 0; k < n; k += LANES) {
            v8 x[3], m[3];
            by_coordinate(p, b.j + k, x, m);
            v8 ux = x[0] - c->x[i], uy = x[1] - c->y[i], uz = x[2] - c->z[i], mx = m[0], my = m[1], mz = m[2];
            v8 inv = inverse_root(ux * ux + uy * uy + uz * uz + 1e-30f);
            ux *= inv, uy *= inv, uz *= inv;
            v8 s1 = ax * ux + ay * uy + az * uz, s2 = mx * ux + my * uy + mz * uz;
            /* the frame stands on the point whose normal is nearer to the line between them */
            i8 other = absolute(s1) < absolute(s2);
            i8 swap[3] = {((i8)mx ^ (i8)ax) & other, ((i8)my ^ (i8)ay) & other, ((i8)mz ^ (i8)az) & other};
            v8 nx = (v8)((i8)ax ^ swap[0]), ny = (v8)((i8)ay ^ swap[1]), nz = (v8)((i8)az ^ swap[2]);
            v8 ox = (v8)((i8)mx ^ swap[0]), oy = (v8)((i8)my ^ swap[1]), oz = (v8)((i8)mz ^ swap[2]);
            i8 sign = other & INT32_MIN;
            ux = (v8)((i8)ux ^ sign), uy = (v8)((i8)uy ^ sign), uz = (v8)((i8)uz ^ sign);
            v8 phi = select8(other, -s2, s1);
            v8 vx = uy * nz - uz * ny, vy = uz * nx - ux * nz, vz = ux * ny - uy * nx;
            v8 len2 = vx * vx + vy * vy + vz * vz;
            i8 bent = len2 > 1e-12f;
            v8 iv = inverse_root(len2); /* infinite or no number only where it is not bent, and nothing of it is used */
            vx *= iv, vy *= iv, vz *= iv;
            v8 wx = ny * vz - nz * vy, wy = nz * vx - nx * vz, wz = nx * vy - ny * vx;
            v8 theta = atan2_fast(wx * ox + wy * oy + wz * oz, nx * ox + ny * oy + nz * oz), alpha = vx * ox + vy * oy + vz * oz;
            *(i8 *)&b.bin[0][k] = bins_of(((v8)((i8)theta & bent) + 3.14159274f) * (FPFH_BINS * 0.159154943f));
            *(i8 *)&b.bin[1][k] = bins_of(((v8)((i8)alpha & bent) + 1) * (FPFH_BINS * 0.5f)) + FPFH_BINS;
            *(i8 *)&b.bin[2][k] = bins_of(((v8)((i8)phi & bent) + 1) * (FPFH_BINS * 0.5f)) + 2 * FPFH_BINS;
        }
        for (int k = 0; k < n; k++) {
            const uint32_t mutual = b.j[k] >> 31;
            uint8_t *own = count[i], *its = count[b.j[k] & ~MUTUAL];
            for (int h = 0; h < 3; h++) {
                own[b.bin[h][k]]++;
                its[b.bin[h][k]] = (uint8_t)(its[b.bin[h][k]] + mutual);
            }
        }
    }
    free(p);
}

void fpfh_build(struct fpfh *f, const double *xyz, size_t n, double voxel)
{
    float *block = xmalloc(3 * n * sizeof *block);
    struct cloud c = {.n = n, .nx = block, .ny = block + n, .nz = block + 2 * n};
    cells_build(&c.by, xyz, n, 5 * voxel);
    c.x = c.by.x, c.y = c.by.y, c.z = c.by.z;
    f->n = n;
    f->order = xmalloc(n * sizeof *f->order);
    memcpy(f->order, c.by.order, n * sizeof *f->order);
    find_neighbours(&c, xyz, (float)(25 * voxel * voxel));
    for (size_t i = 0; i < n; i++)
        set_normal(&c, i, (float)(4 * voxel * voxel));
    uint8_t(*count)[FPFH_PAD] = xcalloc(n, sizeof *count);
    float(*real)[FPFH_PAD] = xmalloc(n * sizeof *real); /* the same, to be multiplied */
    float *step = xmalloc(n * sizeof *step); /* a pair's share of 100 */
    f->feature = xcalloc(n * FPFH_PAD, sizeof *f->feature);
    simple_histograms(&c, count);
    for (size_t i = 0; i < n; i++) {
        int pairs = 0;
        for (int k = 0; k < FPFH_BINS; k++)
            pairs += count[i][k];
        for (int k = 0; k < FPFH_PAD; k += LANES)
            *(v8 *)(real[i] + k) = to_floats(count[i] + k);
        step[i] = pairs ? 100.0f / (float)pairs : 0;
    }
    for (size_t i = 0; i < n; i++) {
        v8 sum[FPFH_PAD / LANES] = {{0}};
        float w[FEATURE_NN + LANES];
        const uint32_t from = c.first[i], n_near = c.first[i + 1] - from;
        for (uint32_t j = 0; j < n_near; j += LANES) {
            v8 d2 = *(const v8 *)(c.near_d2 + from + j);
            v8 share = gather(step, *(const i8 *)(c.near + from + j) & (LANE < (int32_t)(n_near - j)));
            *(v8 *)(w + j) = select8(d2 > 0, share / d2, (v8){0});
        }
        for (uint32_t j = 0; j < n_near; j++) {
            const float *s = real[c.near[from + j]];
            for (int k = 0; k < FPFH_PAD / LANES; k++)
                sum[k] += w[j] * *(const v8 *)(s + k * LANES);
        }
        float *out = f->feature + i * FPFH_PAD, weighted[FPFH_PAD];
        memcpy(weighted, sum, sizeof weighted);
        for (int h = 0; h < 3; h++) {
            float all = 0;
            for (int k = 0; k < FPFH_BINS; k++)
                all += weighted[h * FPFH_BINS + k];
            float scale = all > 0 ? 100 / all : 0;
            for (int k = 0; k < FPFH_BINS; k++)
                out[h * FPFH_BINS + k] = weighted[h * FPFH_BINS + k] * scale + step[i] * count[i][h * FPFH_BINS + k];
        }
    }
    free(count);
    free(real);
    free(step);
    free(block);
    cells_release(&c.by);
    free(c.first);
    free(c.near);
    free(c.near_d2);
    free(c.limit);
}

void fpfh_release(struct fpfh *f)
{
    free(f->order);
    free(f->feature);
    *f = (struct fpfh){0};
}

/* ---- matching, in whole numbers: twentieths, of which the machine multiplies and adds two at a time ---- */

enum { PAIRS = (FPFH_SIZE + 1) / 2, TI = 6, TJ = 2 * LANES /* rows, columns at a time */ };

/* Adds to each lane of sum the products of the 16-bit halves of a's and b's. */
static inline i8 dot2(i8 sum, i8 a, i8 b)
{
#ifdef __AVX2__
    return sum + (i8)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* A feature's numbers by pairs, times so much, and the sum of their squares. */
static int32_t to_pairs(const float *feature, int32_t times, int32_t *out)
{
    int32_t square = 0;
    for (int k = 0; k < PAIRS; k++) {
        int32_t lo = (int32_t)(feature[2 * k] * 20 + 0.5f), hi = 2 * k + 1 < FPFH_SIZE ? (int32_t)(feature[2 * k + 1] * 20 + 0.5f) : 0;
        out[k] = (int32_t)((uint32_t)(times * hi) << 16 | (uint16_t)(times * lo));
        square += lo * lo + hi * hi;
    }
    return square;
}

/* One cloud's features by blocks of TJ, and of each column the nearest row so far and its squared distance. */
struct columns {
    size_t pad; /* columns, of whole blocks */
    int32_t (*block)[PAIRS][TJ], *square, *best, *arg;
};
/* TI features of the other cloud, times -2, and of each the nearest column and its squared distance less `square`. */
struct rows {
    int32_t pairs[TI][PAIRS], square[TI], best[TI], arg[TI];
};

enum { FAR = INT32_MAX / 2 };

/* One pass over the products gives the nearest both ways; row: the number of the first of r. */
static void match_rows(struct columns *c, struct rows *r, int32_t row)
{
    i8 best[TI], arg[TI];
    for (int i = 0; i < TI; i++) {
        best[i] = (i8){0} + FAR;
        arg[i] = (i8){0};
    }
    for (size_t j = 0; j < c->pad; j += TJ) {
        i8 acc[TI][2];
        for (int i = 0; i < TI; i++) {
            acc[i][0] = *(const i8 *)(c->square + j);
            acc[i][1] = *(const i8 *)(c->square + j + LANES);
        }
        for (size_t k = 0; k < PAIRS; k++) {
            i8 b0 = *(const i8 *)c->block[j / TJ][k], b1 = *(const i8 *)(c->block[j / TJ][k] + LANES);
            for (int i = 0; i < TI; i++) {
                i8 v = (i8){0} + r->pairs[i][k];
                acc[i][0] = dot2(acc[i][0], v, b0);
                acc[i][1] = dot2(acc[i][1], v, b1);
            }
        }
        for (size_t h = 0; h < 2; h++) {
            size_t at = j + LANES * h;
            i8 low = *(const i8 *)(c->best + at), low_arg = *(const i8 *)(c->arg + at);
            i8 col = LANE + (int32_t)at;
            for (int i = 0; i < TI; i++) {
                i8 d = acc[i][h]; /* less the row's square */
                i8 less = d < best[i];
                best[i] = choose(less, d, best[i]);
                arg[i] = choose(less, col, arg[i]);
                d += r->square[i];
                less = d < low;
                low = choose(less, d, low);
                low_arg = choose(less, (i8){0} + (row + i), low_arg);
            }
            *(i8 *)(c->best + at) = low;
            *(i8 *)(c->arg + at) = low_arg;
        }
    }
    for (int i = 0; i < TI; i++) {
        int top = 0;
        for (int l = 1; l < LANES; l++)
            top = best[i][l] < best[i][top] ? l : top;
        r->best[i] = best[i][top];
        r->arg[i] = arg[i][top];
    }
}

#ifdef __AVX2__
/* The same with vectors of 512 bits, where the machine has them and multiplies and adds in one instruction. */
__attribute__((target("avx512f,avx512vnni"))) static void match_rows_512(struct columns *c, struct rows *r, int32_t row)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i best[TI], arg[TI];
    for (int i = 0; i < TI; i++) {
        best[i] = _mm512_set1_epi32(FAR);
        arg[i] = _mm512_setzero_si512();
    }
    for (size_t j = 0; j < c->pad; j += 2 * TJ) {
        __m512i acc[TI][2];
        for (int i = 0; i < TI; i++)
            for (size_t h = 0; h < 2; h++)
                acc[i][h] = _mm512_loadu_si512(c->square + j + h * TJ);
        for (size_t k = 0; k < PAIRS; k++) {
            __m512i b0 = _mm512_loadu_si512(c->block[j / TJ][k]), b1 = _mm512_loadu_si512(c->block[j / TJ + 1][k]);
            for (int i = 0; i < TI; i++) {
                __m512i v = _mm512_set1_epi32(r->pairs[i][k]);
                acc[i][0] = _mm512_dpwssd_epi32(acc[i][0], v, b0);
                acc[i][1] = _mm512_dpwssd_epi32(acc[i][1], v, b1);
            }
        }
        for (size_t h = 0; h < 2; h++) {
            size_t at = j + h * TJ;
            __m512i low = _mm512_loadu_si512(c->best + at), low_arg = _mm512_loadu_si512(c->arg + at);
            __m512i col = _mm512_add_epi32(lane, _mm512_set1_epi32((int)at));
            for (int i = 0; i < TI; i++) {
                __m512i d = acc[i][h];
                __mmask16 less = _mm512_cmplt_epi32_mask(d, best[i]);
                best[i] = _mm512_min_epi32(best[i], d);
                arg[i] = _mm512_mask_mov_epi32(arg[i], less, col);
                d = _mm512_add_epi32(d, _mm512_set1_epi32(r->square[i]));
                less = _mm512_cmplt_epi32_mask(d, low);
                low = _mm512_min_epi32(low, d);
                low_arg = _mm512_mask_mov_epi32(low_arg, less, _mm512_set1_epi32(row + i));
            }
            _mm512_storeu_si512(c->best + at, low);
            _mm512_storeu_si512(c->arg + at, low_arg);
        }
    }
    for (int i = 0; i < TI; i++) {
        r->best[i] = _mm512_reduce_min_epi32(best[i]);
        r->arg[i] = _mm512_mask_reduce_min_epi32(_mm512_cmpeq_epi32_mask(best[i], _mm512_set1_epi32(r->best[i])), arg[i]);
    }
}
#endif

void fpfh_match(const struct fpfh *a, const struct fpfh *b, uint32_t *ab, uint32_t *ba)
{
    struct columns c = {.pad = (b->n + 2 * TJ - 1) / (2 * TJ) * (2 * TJ)};
    void (*rows)(struct columns *, struct rows *, int32_t) = match_rows;
#ifdef __AVX2__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"))
        rows = match_rows_512;
#endif
    c.block = xcalloc(c.pad / TJ, sizeof *c.block);
    c.square = xmalloc(3 * c.pad * sizeof *c.square);
    c.best = c.square + c.pad;
    c.arg = c.best + c.pad;
    for (size_t j = 0; j < c.pad; j++) {
        int32_t pairs[PAIRS];
        c.square[j] = j < b->n ? to_pairs(b->feature + j * FPFH_PAD, 1, pairs) : FAR;
        c.best[j] = FAR;
        c.arg[j] = 0;
        for (size_t k = 0; k < PAIRS && j < b->n; k++)
            c.block[j / TJ][k][j % TJ] = pairs[k];
    }
    for (size_t i = 0; i < a->n; i += TI) {
        struct rows r;
        for (size_t k = 0; k < TI; k++)
            r.square[k] = to_pairs(a->feature + (i + k < a->n ? i + k : a->n - 1) * FPFH_PAD, -2, r.pairs[k]);
        rows(&c, &r, (int32_t)i);
        for (size_t k = 0; k < TI && i + k < a->n; k++)
            ab[a->order[i + k]] = b->order[(size_t)r.arg[k]];
    }
    for (size_t j = 0; j < b->n; j++)
        ba[b->order[j]] = a->order[(size_t)c.arg[j] < a->n ? (size_t)c.arg[j] : a->n - 1];
    free(c.block);
    free(c.square);
}
