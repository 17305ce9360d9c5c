#include "lib/nearest.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#include "lib/mem.h"

enum { LEAF = 32, WIDE = 8, MAX_STACK = 256, LEAF_BIT = 1u << 31 };

typedef double v4 __attribute__((vector_size(32), aligned(8)));
typedef int64_t l4 __attribute__((vector_size(32), aligned(8)));
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));

/* Boxes of up to eight children, about the tree's centre, a little too wide for what single precision
 * loses.  A child is a node, or a leaf with LEAF_BIT; an empty one has a box infinitely far. */
struct node {
    float lo[3][WIDE], hi[3][WIDE];
    uint32_t child[WIDE];
};
struct leaf {
    double x[LEAF], y[LEAF], z[LEAF]; /* padded by points infinitely far */
    uint32_t index[LEAF];
    uint32_t n;
};
struct kdtree {
    struct node *node;
    struct leaf *leaf;
    uint32_t n_nodes, n_leaves;
    double centre[3], radius;
    double *xyz; /* the points as given, for guesses */
};

struct building {
    struct kdtree *t;
    const double *xyz;
    uint32_t *order;
};

/* Quickselect (Hoare): order[lo..hi) with its k-th by coordinate dim in place. */
static void select_nth(const double *xyz, uint32_t *order, size_t lo, size_t hi, size_t k, int dim)
{
    while (hi - lo > 1) {
        double pivot = xyz[3 * (size_t)order[lo + (hi - lo - 1) / 2] + (size_t)dim];
        size_t i = lo, j = hi - 1;
        for (;;) {
            while (xyz[3 * (size_t)order[i] + (size_t)dim] < pivot)
                i++;
            while (xyz[3 * (size_t)order[j] + (size_t)dim] > pivot)
                j--;
            if (i >= j)
                break;
            uint32_t swap = order[i];
            order[i++] = order[j];
            order[j--] = swap;
        }
        if (k <= j)
            hi = j + 1;
        else
            lo = j + 1;
    }
}

static uint32_t make_leaf(struct building *b, size_t lo, size_t hi)
{
    struct kdtree *t = b->t;
    struct leaf *l = &t->leaf[t->n_leaves];
    l->n = (uint32_t)(hi - lo);
    for (size_t k = 0; k < LEAF; k++) {
        bool there = lo + k < hi;
        uint32_t i = there ? b->order[lo + k] : 0;
        l->x[k] = there ? b->xyz[3 * (size_t)i] : INFINITY;
        l->y[k] = there ? b->xyz[3 * (size_t)i + 1] : INFINITY;
        l->z[k] = there ? b->xyz[3 * (size_t)i + 2] : INFINITY;
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
            nd->lo[d][slot] = (float)(min[d] - t->centre[d] - 1e-6 * t->radius);
            nd->hi[d][slot] = (float)(max[d] - t->centre[d] + 1e-6 * t->radius);
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
    double min[3], max[3];
    for (size_t i = 0; i < n; i++)
        b.order[i] = (uint32_t)i;
    box_of(&b, 0, n, min, max);
    for (int d = 0; d < 3; d++) {
        t->centre[d] = (min[d] + max[d]) / 2;
        t->radius = max[d] - min[d] > t->radius ? max[d] - min[d] : t->radius;
    }
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

/* What a search has found: the nearest and (if two are wanted) the second, and their squared distances. */
struct found {
    uint32_t index, index2;
    double best, second;
};

static inline __attribute__((always_inline)) void take(bool two, double d2, uint32_t index, struct found *f)
{
    if (!(d2 < (two ? f->second : f->best)) || (two && index == f->index))
        return;
    if (d2 < f->best) {
        f->second = f->best;
        f->index2 = f->index;
        f->best = d2;
        f->index = index;
    } else {
        f->second = d2;
        f->index2 = index;
    }
}

static inline __attribute__((always_inline)) void scan_leaf(const struct leaf *l, const double *q, bool two, struct found *f)
{
    for (uint32_t h = 0; h < l->n; h += 4) {
        v4 dx = *(const v4 *)(l->x + h) - q[0], dy = *(const v4 *)(l->y + h) - q[1], dz = *(const v4 *)(l->z + h) - q[2];
        v4 d = dx * dx + dy * dy + dz * dz;
        l4 less = d < (two ? f->second : f->best);
#ifdef __AVX__
        if (!_mm256_movemask_pd((__m256d)less))
            continue;
#else
        if (!(less[0] | less[1] | less[2] | less[3]))
            continue;
#endif
        for (int k = 0; k < 4; k++)
            take(two, d[k], l->index[h + (uint32_t)k], f);
    }
}

static inline v8 greater(v8 a, v8 b)
{
    i8 m = a > b;
    return (v8)(((i8)a & m) | ((i8)b & ~m));
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

/* f->index and, if two are wanted, f->index2 are guesses, or UINT32_MAX. */
static inline __attribute__((always_inline)) void search(const struct kdtree *t, const double *q, bool two, struct found *f)
{
    struct {
        float d2;
        uint32_t child;
    } stack[MAX_STACK];
    float near[3] = {(float)(q[0] - t->centre[0]), (float)(q[1] - t->centre[1]), (float)(q[2] - t->centre[2])};
    int depth = 0;
    f->best = f->second = INFINITY;
    if (f->index != UINT32_MAX)
        f->best = distance2(q, t->xyz + 3 * (size_t)f->index);
    if (two && f->index2 != UINT32_MAX) {
        f->second = distance2(q, t->xyz + 3 * (size_t)f->index2);
        if (f->second < f->best) {
            double d = f->best;
            uint32_t i = f->index;
            f->best = f->second, f->index = f->index2;
            f->second = d, f->index2 = i;
        }
    }
    if (!t->n_nodes) {
        scan_leaf(&t->leaf[0], q, two, f);
        return;
    }
    uint32_t at = 0;
    for (;;) {
        if (at & LEAF_BIT) {
            scan_leaf(&t->leaf[at & ~(uint32_t)LEAF_BIT], q, two, f);
        } else {
            const struct node *nd = &t->node[at];
            v8 d = to_boxes(nd, near);
            double bound = two ? f->second : f->best;
            int first = depth;
#ifdef __AVX__
            float limit = bound < 3e38 ? (float)(bound * (1 + 1e-6)) : 3e38f;
            for (unsigned m = (unsigned)_mm256_movemask_ps((__m256)(d < limit)); m; m &= m - 1) {
                int k = __builtin_ctz(m);
#else
            for (int k = 0; k < WIDE; k++) {
                if (!(d[k] < bound && d[k] < INFINITY))
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
        } while (stack[depth].d2 >= (two ? f->second : f->best));
        at = stack[depth].child;
    }
}

void kdtree_nearest(const struct kdtree *t, const double *xyz, size_t n, uint32_t *index, double *d2)
{
    for (size_t i = 0; i < n; i++) {
        struct found f = {.index = index[i]};
        search(t, xyz + 3 * i, false, &f);
        index[i] = f.index;
        d2[i] = f.best;
    }
}

struct kdtree_followed *kdtree_followed_new(size_t n)
{
    struct kdtree_followed *f = xmalloc((n + 1) * sizeof *f);
    for (size_t i = 0; i < n; i++)
        f[i] = (struct kdtree_followed){.index = UINT32_MAX, .second = UINT32_MAX};
    return f;
}

void kdtree_follow(const struct kdtree *t, const double *xyz, size_t n, struct kdtree_followed *f, double *d2)
{
    for (size_t i = 0; i < n; i++) {
        const double *q = xyz + 3 * i;
        if (f[i].index != UINT32_MAX) {
            /* Any other point is at least so far. */
            double room = f[i].room - sqrt(distance2(q, f[i].at)), d = distance2(q, t->xyz + 3 * (size_t)f[i].index);
            if (room > 0 && d < room * room * (1 - 1e-12)) {
                d2[i] = d;
                continue;
            }
        }
        const struct kdtree_followed *like = f[i].index == UINT32_MAX && i ? &f[i - 1] : &f[i]; /* neighbours often are */
        struct found found = {.index = like->index, .index2 = like->second};
        search(t, q, true, &found);
        f[i].index = found.index;
        f[i].second = found.index2;
        f[i].room = sqrt(found.second);
        memcpy(f[i].at, q, sizeof f[i].at);
        d2[i] = found.best;
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
