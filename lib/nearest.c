#include "lib/nearest.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lib/lanes.h"
#include "lib/mem.h"

enum { LEAF = 32, WIDE = 8, MAX_STACK = 256, LEAF_BIT = 1u << 31 };

/* Boxes of up to eight children, about the tree's centre and in units of its radius, a little too wide for what
 * single precision loses.  A child is a node, or a leaf with LEAF_BIT; an empty one has a box infinitely far. */
struct node {
    float lo[3][WIDE], hi[3][WIDE];
    uint32_t child[WIDE];
};
struct leaf { /* in single precision, too: what may be near is looked at again */
    float x[LEAF], y[LEAF], z[LEAF]; /* padded by points infinitely far */
    uint32_t index[LEAF];
};
struct kdtree {
    struct node *node;
    struct leaf *leaf;
    uint32_t n_nodes, n_leaves;
    double centre[3], scale; /* 1 / radius */
    uint32_t n;
    double *xyz; /* the points as given, for guesses */
};

struct building {
    struct kdtree *t;
    const double *xyz;
    uint32_t *order;
};

/* Moves those of order[lo..hi) whose coordinate is below the pivot (or, with `equal`, at it) to the front, without a branch,
 * as it would go either way half of the time (Lomuto); returns their end. */
static size_t to_front(const double *at, uint32_t *order, size_t lo, size_t hi, double pivot, bool equal)
{
    size_t end = lo;
    for (size_t i = lo; i < hi; i++) {
        uint32_t o = order[i];
        double v = at[3 * (size_t)o];
        order[i] = order[end];
        order[end] = o;
        end += equal ? v <= pivot : v < pivot;
    }
    return end;
}

/* Quickselect (Hoare): order[lo..hi) with its k-th by coordinate dim in place. */
static void select_nth(const double *xyz, uint32_t *order, size_t lo, size_t hi, size_t k, int dim)
{
    const double *at = xyz + dim;
    while (hi - lo > 1) {
        double a = at[3 * (size_t)order[lo]], b = at[3 * (size_t)order[lo + (hi - lo) / 2]], c = at[3 * (size_t)order[hi - 1]];
        double least = a < b ? a : b, most = a < b ? b : a, pivot = c < least ? least : c > most ? most : c; /* the middle one */
        size_t mid = to_front(at, order, lo, hi, pivot, false);
        if (k < mid) {
            hi = mid;
            continue;
        }
        lo = mid;
        mid = to_front(at, order, lo, hi, pivot, true);
        if (k < mid || mid == lo)
            return; /* it is one of those equal to the pivot, or that is no number */
        lo = mid;
    }
}

static uint32_t make_leaf(struct building *b, size_t lo, size_t hi)
{
    struct kdtree *t = b->t;
    struct leaf *l = &t->leaf[t->n_leaves];
    for (size_t k = 0; k < LEAF; k++) {
        bool there = lo + k < hi;
        uint32_t i = there ? b->order[lo + k] : 0;
        l->x[k] = there ? (float)((b->xyz[3 * (size_t)i] - t->centre[0]) * t->scale) : INFINITY;
        l->y[k] = there ? (float)((b->xyz[3 * (size_t)i + 1] - t->centre[1]) * t->scale) : INFINITY;
        l->z[k] = there ? (float)((b->xyz[3 * (size_t)i + 2] - t->centre[2]) * t->scale) : INFINITY;
        l->index[k] = i;
    }
    return LEAF_BIT | t->n_leaves++;
}

static void box_of(const struct building *b, size_t lo, size_t hi, double min[3], double max[3])
{
    memcpy(min, b->xyz + 3 * (size_t)b->order[lo], 3 * sizeof *min);
    memcpy(max, min, 3 * sizeof *max);
    for (size_t k = lo; k < hi; k++)
        for (int d = 0; d < 3; d++) {
            double v = b->xyz[3 * (size_t)b->order[k] + (size_t)d];
            min[d] = v < min[d] ? v : min[d];
            max[d] = v > max[d] ? v : max[d];
        }
}

static uint32_t build(struct building *b, size_t lo, size_t hi);

/* Halves order[lo..hi) along its longest side, `times` times over, and makes a child of each part. */
static void divide(struct building *b, uint32_t me, int slot, int times, size_t lo, size_t hi)
{
    struct kdtree *t = b->t;
    double min[3], max[3];
    if (lo == hi)
        return;
    box_of(b, lo, hi, min, max);
    if (!times || hi - lo <= LEAF) {
        uint32_t child = build(b, lo, hi);
        struct node *nd = &t->node[me];
        nd->child[slot] = child;
        for (int d = 0; d < 3; d++) {
            nd->lo[d][slot] = (float)((min[d] - t->centre[d]) * t->scale - 1e-6);
            nd->hi[d][slot] = (float)((max[d] - t->centre[d]) * t->scale + 1e-6);
        }
        return;
    }
    int dim = max[1] - min[1] > max[0] - min[0];
    dim = max[2] - min[2] > max[dim] - min[dim] ? 2 : dim;
    size_t mid = lo + (hi - lo + 1) / 2;
    select_nth(b->xyz, b->order, lo, hi, mid, dim);
    divide(b, me, slot, times - 1, lo, mid);
    divide(b, me, slot + (1 << (times - 1)), times - 1, mid, hi);
}

/* The node or leaf of order[lo..hi). */
static uint32_t build(struct building *b, size_t lo, size_t hi)
{
    struct kdtree *t = b->t;
    if (hi - lo <= LEAF)
        return make_leaf(b, lo, hi);
    uint32_t me = t->n_nodes++;
    for (int k = 0; k < WIDE; k++)
        for (int d = 0; d < 3; d++)
            t->node[me].lo[d][k] = t->node[me].hi[d][k] = INFINITY;
    divide(b, me, 0, 3, lo, hi);
    return me;
}

struct kdtree *kdtree_build(const double *xyz, size_t n)
{
    struct kdtree *t = xcalloc(1, sizeof *t);
    struct building b = {.t = t, .xyz = xyz, .order = xmalloc(n * sizeof *b.order)};
    double min[3], max[3], radius = 0;
    for (size_t i = 0; i < n; i++)
        b.order[i] = (uint32_t)i;
    box_of(&b, 0, n, min, max);
    for (int d = 0; d < 3; d++) {
        t->centre[d] = min[d] / 2 + max[d] / 2;
        radius = max[d] - min[d] > radius ? max[d] - min[d] : radius;
    }
    t->n = (uint32_t)n;
    t->scale = radius > 1e-290 ? 1 / radius : 1;
    t->node = xmalloc((n / 4 + 2) * sizeof *t->node); /* a half has at least 16 points, a node two children */
    t->leaf = xmalloc((n / 16 + 2) * sizeof *t->leaf);
    t->xyz = xmalloc(n * 3 * sizeof *t->xyz);
    memcpy(t->xyz, xyz, n * 3 * sizeof *t->xyz);
    build(&b, 0, n);
    free(b.order);
    return t;
}

void kdtree_free(struct kdtree *t)
{
    if (!t)
        return;
    free(t->node);
    free(t->leaf);
    free(t->xyz);
    free(t);
}

static inline double distance2(const double *a, const double *b)
{
    return (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]) + (a[2] - b[2]) * (a[2] - b[2]);
}

/* What a search has found: the nearest points, one or KDTREE_KEPT, and which is the farthest of them. */
struct found {
    double d2[KDTREE_KEPT];
    uint32_t index[KDTREE_KEPT];
    double bound; /* d2[last] */
    int last;
    float limit;  /* of bound: limit_of() */
};

/* The least of KDTREE_KEPT (or with `greatest` that) and where it is. */
static inline __attribute__((always_inline)) double extreme(const double *d2, bool greatest, int *at)
{
#ifdef __AVX__
    __m256d d = _mm256_loadu_pd(d2), m = _mm256_permute2f128_pd(d, d, 1);
    m = greatest ? _mm256_max_pd(m, d) : _mm256_min_pd(m, d);
    m = greatest ? _mm256_max_pd(m, _mm256_permute_pd(m, 5)) : _mm256_min_pd(m, _mm256_permute_pd(m, 5));
    *at = __builtin_ctz((unsigned)_mm256_movemask_pd(_mm256_cmp_pd(d, m, _CMP_EQ_OQ)) | 8);
    return _mm256_cvtsd_f64(m);
#else
    *at = 0;
    for (int k = 1; k < KDTREE_KEPT; k++)
        *at = (greatest ? d2[k] > d2[*at] : d2[k] < d2[*at]) ? k : *at;
    return d2[*at];
#endif
}

/* What is searched for: as it is, and in the tree's units; and how much is to be added to squared distances there. */
struct query {
    const double *x;
    float near[3], slack;
};

/* In the tree's units: no squared distance of a point as near as bound is above it; in single precision, none above it and slack. */
static inline float limit_of(const struct kdtree *t, double bound)
{
    double limit = bound * t->scale * t->scale;
    return limit < 1e37 ? (float)limit * 1.0001f : 1e37f;
}

static inline __attribute__((always_inline)) void take(const struct kdtree *t, const double *x, bool many, uint32_t index, struct found *f)
{
    double d2 = distance2(x, t->xyz + 3 * (size_t)index);
    if (!(d2 < f->bound))
        return;
    if (many) {
        bool there = false;
        for (int k = 0; k < KDTREE_KEPT; k++)
            there |= f->index[k] == index;
        if (there)
            return;
        f->d2[f->last] = d2;
        f->index[f->last] = index;
        f->bound = extreme(f->d2, true, &f->last);
    } else {
        f->d2[0] = f->bound = d2;
        f->index[0] = index;
    }
    f->limit = limit_of(t, f->bound);
}

/* The squared length of (x, y, z), rounded however is quickest. */
static inline v8 dot(v8 x, v8 y, v8 z)
{
#ifdef __FMA__
    return (v8)_mm256_fmadd_ps((__m256)z, (__m256)z, _mm256_fmadd_ps((__m256)y, (__m256)y, _mm256_mul_ps((__m256)x, (__m256)x)));
#else
    return x * x + y * y + z * z;
#endif
}

/* A bit for each of a leaf's squared distances that is below the limit. */
static inline uint32_t below(const v8 d[LEAF / WIDE], float limit)
{
    uint32_t near = 0;
    for (int h = 0; h < LEAF / WIDE; h++)
        near |= lanes(d[h] < limit) << (WIDE * h);
    return near;
}

static inline __attribute__((always_inline)) void scan_leaf(const struct kdtree *t, const struct leaf *l, const struct query *q, bool many,
                                                            struct found *f)
{
    float limit = f->limit + q->slack;
    v8 d[LEAF / WIDE];
    for (int h = 0; h < LEAF / WIDE; h++) {
        v8 dx = *(const v8 *)(l->x + WIDE * h) - q->near[0], dy = *(const v8 *)(l->y + WIDE * h) - q->near[1];
        v8 dz = *(const v8 *)(l->z + WIDE * h) - q->near[2];
        d[h] = dot(dx, dy, dz);
    }
    uint32_t near = below(d, limit);
    if (!many && near & (near - 1)) {
        /* Only what may be the nearest of them is looked at again: each of d is off by at most as much as limit_of() says, so
         * the nearest one's is at most 1.0001 (1.0001 least + slack) + slack. */
        v8 m = lesser(lesser(d[0], d[1]), lesser(d[2], d[3]));
        float least = m[0];
        for (int k = 1; k < WIDE; k++)
            least = m[k] < least ? m[k] : least;
        least = least * 1.0003f + 3 * q->slack;
        near = below(d, least < limit ? least : limit);
    }
    for (; near; near &= near - 1)
        take(t, q->x, many, l->index[__builtin_ctz(near)], f);
}

/* Squared distances of q, about the centre, to the boxes of nd's children, from below. */
static inline v8 to_boxes(const struct node *nd, const float *q)
{
    v8 sum = {0};
    for (int d = 0; d < 3; d++) {
        v8 off = greater(*(const v8 *)nd->lo[d] - q[d], q[d] - *(const v8 *)nd->hi[d]);
        off = greater(off, (v8){0});
        sum += off * off;
    }
    return sum * (1 - 2e-6f);
}

/* f holds what is known already: guesses, their distances and the bound, INFINITY where there is nothing. */
static inline __attribute__((always_inline)) void search(const struct kdtree *t, const double *x, bool many, struct found *f)
{
    struct {
        float d2;
        uint32_t child;
    } stack[MAX_STACK];
    struct query q = {.x = x};
    float off = 1;
    for (int d = 0; d < 3; d++) {
        q.near[d] = (float)((x[d] - t->centre[d]) * t->scale);
        off += fabsf(q.near[d]);
    }
    q.slack = off * off * 1e-9f; /* (a + e)^2 < 1.0001 a^2 + 10001 e^2, e < 2e-7 off */
    if (!(off < 1e15f && t->scale < 1e150 && t->scale > 1e-150)) { /* so far away, so large or so small, that squares overflow: one by one */
        for (uint32_t i = 0; i < t->n; i++)
            take(t, x, many, i, f);
        if (f->index[0] == UINT32_MAX) /* none is nearer than infinitely far */
            f->index[0] = 0;
        return;
    }
    f->limit = limit_of(t, f->bound);
    int depth = 0;
    if (!t->n_nodes) {
        scan_leaf(t, &t->leaf[0], &q, many, f);
        return;
    }
    uint32_t at = 0;
    for (;;) {
        if (at & LEAF_BIT) {
            scan_leaf(t, &t->leaf[at & ~(uint32_t)LEAF_BIT], &q, many, f);
        } else {
            const struct node *nd = &t->node[at];
            v8 d = to_boxes(nd, q.near);
            const float limit = f->limit;
            int first = depth;
#ifdef __AVX__
            for (unsigned m = (unsigned)_mm256_movemask_ps((__m256)(d < limit)); m; m &= m - 1) {
                int k = __builtin_ctz(m);
#else
            for (int k = 0; k < WIDE; k++) {
                if (!(d[k] < limit))
                    continue;
#endif
                stack[depth].d2 = d[k];
                stack[depth++].child = nd->child[k];
            }
            /* the nearest is next */
            for (int k = first; k < depth - 1; k++)
                if (stack[k].d2 < stack[depth - 1].d2) {
                    float s = stack[k].d2;
                    uint32_t child = stack[k].child;
                    stack[k] = stack[depth - 1];
                    stack[depth - 1].d2 = s;
                    stack[depth - 1].child = child;
                }
        }
        do {
            if (!depth)
                return;
            depth--;
        } while (stack[depth].d2 >= f->limit);
        at = stack[depth].child;
    }
}

void kdtree_nearest(const struct kdtree *t, const double *xyz, size_t n, uint32_t *index, double *d2)
{
    for (size_t i = 0; i < n; i++) {
        const double *q = xyz + 3 * i;
        struct found f = {.index = {index[i]}, .bound = INFINITY};
        if (index[i] != UINT32_MAX)
            f.bound = distance2(q, t->xyz + 3 * (size_t)index[i]);
        f.d2[0] = f.bound;
        search(t, q, false, &f);
        index[i] = f.index[0];
        d2[i] = f.d2[0];
    }
}

struct kdtree_followed *kdtree_followed_new(size_t n)
{
    struct kdtree_followed *f = xmalloc((n + 1) * sizeof *f);
    for (size_t i = 0; i < n; i++) {
        f[i].room = 0;
        f[i].index = UINT32_MAX;
    }
    return f;
}

/* Squared distances of q to the kept points of f. */
static inline void to_kept(const struct kdtree_followed *f, const double *q, double *d2)
{
    for (int k = 0; k < KDTREE_KEPT; k += 4) {
        v4 dx = *(const v4 *)(f->x[0] + k) - q[0], dy = *(const v4 *)(f->x[1] + k) - q[1], dz = *(const v4 *)(f->x[2] + k) - q[2];
        *(v4 *)(d2 + k) = dx * dx + dy * dy + dz * dz;
    }
}

/* Searches for the points nearest to q, beginning with those of `like`, which may be f, or NULL. */
static __attribute__((noinline)) double search_kept(const struct kdtree *t, const double *q, const struct kdtree_followed *like,
                                                    struct kdtree_followed *f)
{
    struct found found = {.bound = INFINITY};
    if (like) {
        to_kept(like, q, found.d2);
        memcpy(found.index, like->kept, sizeof found.index);
    } else {
        for (int k = 0; k < KDTREE_KEPT; k++) {
            found.d2[k] = INFINITY;
            found.index[k] = UINT32_MAX;
        }
        if (f->index != UINT32_MAX) {
            found.index[0] = f->index;
            found.d2[0] = distance2(q, t->xyz + 3 * (size_t)f->index);
        }
    }
    found.bound = extreme(found.d2, true, &found.last);
    search(t, q, true, &found);
    /* The farthest of them is what all others are at least as far as. */
    for (int k = 0; k < KDTREE_KEPT; k++) {
        bool there = found.index[k] != UINT32_MAX;
        const double *x = t->xyz + 3 * (size_t)(there ? found.index[k] : 0);
        for (int c = 0; c < 3; c++)
            f->x[c][k] = there ? x[c] : INFINITY;
    }
    memcpy(f->kept, found.index, sizeof f->kept);
    memcpy(f->at, q, sizeof f->at);
    f->room = sqrt(found.bound);
    int at;
    double d2 = extreme(found.d2, false, &at);
    f->index = found.index[at] == UINT32_MAX ? 0 : found.index[at]; /* q is not finite */
    f->near = sqrt(d2);
    return d2;
}

void kdtree_follow(const struct kdtree *t, const double *xyz, size_t n, const uint32_t *order, double reach,
                   const struct kdtree_followed *like, struct kdtree_followed *f, double *d2)
{
    for (size_t k = 0; k < n; k++) {
        const size_t i = order ? order[k] : k;
        const double *q = xyz + 3 * i;
        struct kdtree_followed *it = &f[i];
        if (it->room > 0) {
            double d[KDTREE_KEPT], moved = sqrt(distance2(q, it->at)), room = it->room - moved; /* any other point is at least so far */
            to_kept(it, q, d);
            int at;
            double least = extreme(d, false, &at);
            if (room > 0 && least < room * room * (1 - 1e-12)) {
                it->index = it->kept[at];
                d2[i] = least;
            } else if ((it->near - moved) * (1 - 1e-12) > reach) {
                d2[i] = INFINITY;
            } else {
                d2[i] = search_kept(t, q, it, it);
            }
        } else {
            d2[i] = search_kept(t, q, like && like->room > 0 ? like : NULL, it);
        }
        like = it;
    }
}

/* ---- grids ---- */

/* By cell: the point it has so far, in cells from the first cell's centre, and its squared distance. */
struct sweep {
    float *x, *y, *z, *d2;
    uint32_t *index;
};

/* Where the row `from` on knows a point nearer to the cells of row `to`, it is taken. */
static void take_row(const struct sweep *s, int side, int to, int from, int y, int z)
{
    const float *restrict fx = s->x + from, *restrict fy = s->y + from, *restrict fz = s->z + from;
    const uint32_t *restrict fi = s->index + from;
    float *restrict tx = s->x + to, *restrict ty = s->y + to, *restrict tz = s->z + to, *restrict td = s->d2 + to;
    uint32_t *restrict ti = s->index + to;
    for (int i = 0; i < side; i++) {
        float dx = fx[i] - (float)i, dy = fy[i] - (float)y, dz = fz[i] - (float)z, d = dx * dx + dy * dy + dz * dz;
        int less = d < td[i];
        td[i] = less ? d : td[i];
        tx[i] = less ? fx[i] : tx[i];
        ty[i] = less ? fy[i] : ty[i];
        tz[i] = less ? fz[i] : tz[i];
        ti[i] = less ? fi[i] : ti[i];
    }
}

static void along_row(const struct sweep *s, int side, int row, int y, int z)
{
    for (int pass = 0; pass < 2; pass++) {
        int step = pass ? -1 : 1, from = row + (pass ? side - 1 : 0);
        float x = s->x[from], py = s->y[from], pz = s->z[from];
        float rest = (py - (float)y) * (py - (float)y) + (pz - (float)z) * (pz - (float)z);
        uint32_t index = s->index[from];
        for (int k = 1; k < side; k++) {
            int c = from + step * k;
            float dx = x - (float)(c - row), d = dx * dx + rest;
            if (d < s->d2[c]) {
                s->d2[c] = d;
                s->x[c] = x;
                s->y[c] = py;
                s->z[c] = pz;
                s->index[c] = index;
            } else {
                x = s->x[c], py = s->y[c], pz = s->z[c], index = s->index[c];
                rest = (py - (float)y) * (py - (float)y) + (pz - (float)z) * (pz - (float)z);
            }
        }
    }
}

void grid_build(struct grid *g, int side, const double *xyz, size_t n)
{
    double min[3], max[3], longest = 0;
    memcpy(min, xyz, sizeof min);
    memcpy(max, xyz, sizeof max);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 3; k++) {
            double v = xyz[3 * i + (size_t)k];
            min[k] = v < min[k] ? v : min[k];
            max[k] = v > max[k] ? v : max[k];
        }
    for (int k = 0; k < 3; k++)
        longest = max[k] - min[k] > longest ? max[k] - min[k] : longest;
    longest = longest > 0 ? 1.5 * longest : 1;
    g->side = side;
    g->cells = side / longest;
    for (int k = 0; k < 3; k++)
        g->origin[k] = (min[k] + max[k] - longest) / 2;
    size_t total = (size_t)side * (size_t)side * (size_t)side;
    float *block = xmalloc(4 * total * sizeof *block);
    const float far = 1e18f; /* squared still a float */
    g->nearest = xcalloc(total, sizeof *g->nearest);
    struct sweep s = {block, block + total, block + 2 * total, block + 3 * total, g->nearest};
    for (size_t i = 0; i < total; i++) {
        s.x[i] = s.y[i] = s.z[i] = far;
        s.d2[i] = 1e37f;
    }
    for (size_t i = 0; i < n; i++) {
        float u[3], d = 0;
        int at[3];
        for (int k = 0; k < 3; k++) {
            u[k] = (float)((xyz[3 * i + (size_t)k] - g->origin[k]) * g->cells - 0.5);
            at[k] = (int)(u[k] + 0.5f);
            d += (u[k] - (float)at[k]) * (u[k] - (float)at[k]);
        }
        int c = (at[2] * side + at[1]) * side + at[0];
        if (d < s.d2[c]) {
            s.d2[c] = d;
            s.x[c] = u[0], s.y[c] = u[1], s.z[c] = u[2];
            s.index[c] = (uint32_t)i;
        }
    }
    for (int z_pass = 0; z_pass < 2; z_pass++)
        for (int i = 0; i < side; i++) {
            int z = z_pass ? side - 1 - i : i, z_from = z_pass ? z + 1 : z - 1;
            for (int y_pass = 0; y_pass < 2; y_pass++)
                for (int k = 0; k < side; k++) {
                    int y = y_pass ? side - 1 - k : k, row = (z * side + y) * side, y_from = y_pass ? y + 1 : y - 1;
                    if (i && !y_pass)
                        take_row(&s, side, row, (z_from * side + y) * side, y, z);
                    if (k)
                        take_row(&s, side, row, (z * side + y_from) * side, y, z);
                    along_row(&s, side, row, y, z);
                }
        }
    free(block);
}

void grid_release(struct grid *g)
{
    free(g->nearest);
    g->nearest = NULL;
}
