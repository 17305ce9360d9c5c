/* nearest.h: exact nearest neighbours in 3-D point clouds.
 *
 * A tree of boxes with eight children a node, made by halving along the longest side (as a k-d tree:
 * Friedman, Bentley, Finkel 1977), so that a node is a few vector operations; leaves hold 32 points by
 * coordinate.  Clouds are [n][3] doubles.
 */
#ifndef LIB_NEAREST_H
#define LIB_NEAREST_H

#include <stddef.h>
#include <stdint.h>

struct kdtree;
/* xyz is copied; n at least 1, all finite. */
struct kdtree *kdtree_build(const double *xyz, size_t n);
void kdtree_free(struct kdtree *t); /* NULL is fine */

/* The nearest point of each of n queries: its index and squared distance.  index is also
 * read: a good guess (of the last round, say) makes the search quicker; UINT32_MAX: none.
 * Of equally near points any may be given. */
void kdtree_nearest(const struct kdtree *t, const double *xyz, size_t n, uint32_t *index, double *d2);

/* Queries that move a little from call to call, as those of ICP do.  Of each are kept the points that were nearest
 * where it was last searched for, and how far all others are from there: while it has moved less than leaves room
 * for one of those, its nearest is among the kept, and there is nothing to search.  Exact, as above. */
enum { KDTREE_KEPT = 4 };
struct kdtree_followed {
    double x[3][KDTREE_KEPT]; /* by coordinate; infinitely far where there are fewer */
    uint32_t kept[KDTREE_KEPT];
    double at[3], near, room; /* where it was searched for, distances of the nearest and of the others; room 0: not yet */
    uint32_t index;           /* the nearest, or a guess, or UINT32_MAX */
};
struct kdtree_followed *kdtree_followed_new(size_t n); /* to be free()d */
/* The n queries are gone through in that order, or as they are if it is NULL: best if each is near the one before.
 * like, if not NULL: what was found for one near the first.  reach, or INFINITY: d2 of those that are sure to have none
 * nearer may be INFINITY, and index a guess. */
void kdtree_follow(const struct kdtree *t, const double *xyz, size_t n, const uint32_t *order, double reach,
                   const struct kdtree_followed *like, struct kdtree_followed *f, double *d2);

/* For each cell of a cube around a cloud, half as wide again, a point of it near the cell's centre: a
 * distance transform (Danielsson 1980) in sweeps.  Not always the nearest, but found in one look. */
struct grid {
    int side;                /* cells */
    double origin[3], cells; /* cells: per unit of length */
    uint32_t *nearest;       /* [side][side][side], z first */
};
void grid_build(struct grid *g, int side, const double *xyz, size_t n);
void grid_release(struct grid *g);

static inline uint32_t grid_nearest(const struct grid *g, const double *x)
{
    int at[3];
    for (int k = 0; k < 3; k++) {
        double c = (x[k] - g->origin[k]) * g->cells;
        at[k] = c <= 0 ? 0 : c >= g->side ? g->side - 1 : (int)c;
    }
    return g->nearest[(at[2] * g->side + at[1]) * g->side + at[0]];
}

#endif
