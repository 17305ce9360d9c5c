#include "lib/nearest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

enum { LEAF = 8, MAX_DEPTH = 40 };

typedef double v4 __attribute__((vector_size(32), aligned(8)));

/* A node with right == 0 is a leaf of at most LEAF points, leaf[leaf]. */
struct node {
    double split;
    uint32_t right, leaf; /* the left child follows its parent */
    int dim;
};
struct leaf {
    double x[LEAF], y[LEAF], z[LEAF]; /* padded by points infinitely far */
    uint32_t index[LEAF];
};
struct kdtree {
    struct node *node;
    struct leaf *leaf;
    uint32_t n_nodes, n_leaves;
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

static void build(struct building *b, size_t lo, size_t hi)
{
    struct kdtree *t = b->t;
    uint32_t me = t->n_nodes++;
    if (hi - lo <= LEAF) {
        struct leaf *l = &t->leaf[t->n_leaves];
        for (size_t k = 0; k < LEAF; k++) {
            bool there = lo + k < hi;
            uint32_t i = there ? b->order[lo + k] : 0;
            l->x[k] = there ? b->xyz[3 * (size_t)i] : INFINITY;
            l->y[k] = there ? b->xyz[3 * (size_t)i + 1] : INFINITY;
            l->z[k] = there ? b->xyz[3 * (size_t)i + 2] : INFINITY;
            l->index[k] = i;
        }
        t->node[me] = (struct node){.leaf = t->n_leaves++};
        return;
    }
    double min[3], max[3];
    memcpy(min, b->xyz + 3 * (size_t)b->order[lo], sizeof min);
    memcpy(max, min, sizeof max);
    for (size_t k = lo; k < hi; k++)
        for (int d = 0; d < 3; d++) {
            double v = b->xyz[3 * (size_t)b->order[k] + (size_t)d];
            min[d] = v < min[d] ? v : min[d];
            max[d] = v > max[d] ? v : max[d];
        }
    int dim = max[1] - min[1] > max[0] - min[0];
    dim = max[2] - min[2] > max[dim] - min[dim] ? 2 : dim;
    /* Whole leaves on the left keep them full. */
    size_t half = (hi - lo + 1) / 2, mid = lo + (half + LEAF - 1) / LEAF * LEAF;
    if (mid >= hi)
        mid = lo + half;
    select_nth(b->xyz, b->order, lo, hi, mid, dim);
    double split = b->xyz[3 * (size_t)b->order[mid] + (size_t)dim];
    build(b, lo, mid);
    t->node[me] = (struct node){.split = split, .dim = dim, .right = t->n_nodes};
    build(b, mid, hi);
}

struct kdtree *kdtree_build(const double *xyz, size_t n)
{
    struct kdtree *t = xcalloc(1, sizeof *t);
    struct building b = {.t = t, .xyz = xyz, .order = xmalloc(n * sizeof *b.order)};
    for (size_t i = 0; i < n; i++)
        b.order[i] = (uint32_t)i;
    t->node = xmalloc((n / 2 + 4) * 2 * sizeof *t->node);
    t->leaf = xmalloc((n / 2 + 4) * sizeof *t->leaf);
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

static inline void scan_leaf(const struct leaf *l, const double *q, uint32_t *best, double *best_d2)
{
    double d2[LEAF];
    for (int h = 0; h < LEAF; h += 4) {
        v4 dx = *(const v4 *)(l->x + h) - q[0], dy = *(const v4 *)(l->y + h) - q[1], dz = *(const v4 *)(l->z + h) - q[2];
        *(v4 *)(d2 + h) = dx * dx + dy * dy + dz * dz;
    }
    for (int k = 0; k < LEAF; k++)
        if (d2[k] < *best_d2) {
            *best_d2 = d2[k];
            *best = l->index[k];
        }
}

static void nearest_one(const struct kdtree *t, const double *q, uint32_t *index, double *out)
{
    struct {
        uint32_t node;
        double off[3], d2; /* how far the query is outside the node's cell, by coordinate */
    } stack[MAX_DEPTH];
    int depth = 0;
    double best = INFINITY;
    uint32_t guess = *index;
    if (guess != UINT32_MAX) {
        const double *g = t->xyz + 3 * (size_t)guess;
        best = (q[0] - g[0]) * (q[0] - g[0]) + (q[1] - g[1]) * (q[1] - g[1]) + (q[2] - g[2]) * (q[2] - g[2]);
    }
    uint32_t at = 0;
    double off[3] = {0, 0, 0}, d2 = 0;
    for (;;) {
        const struct node *nd = &t->node[at];
        while (nd->right) {
            double d = q[nd->dim] - nd->split, old = off[nd->dim];
            uint32_t far = d < 0 ? nd->right : at + 1;
            at = d < 0 ? at + 1 : nd->right;
            double far_d2 = d2 - old * old + d * d;
            if (far_d2 < best) {
                stack[depth].node = far;
                memcpy(stack[depth].off, off, sizeof off);
                stack[depth].off[nd->dim] = d;
                stack[depth++].d2 = far_d2;
            }
            nd = &t->node[at];
        }
        scan_leaf(&t->leaf[nd->leaf], q, &guess, &best);
        do {
            if (!depth) {
                *index = guess;
                *out = best;
                return;
            }
            depth--;
        } while (stack[depth].d2 >= best);
        at = stack[depth].node;
        d2 = stack[depth].d2;
        memcpy(off, stack[depth].off, sizeof off);
    }
}

void kdtree_nearest(const struct kdtree *t, const double *xyz, size_t n, uint32_t *index, double *d2)
{
    for (size_t i = 0; i < n; i++)
        nearest_one(t, xyz + 3 * i, &index[i], &d2[i]);
}
