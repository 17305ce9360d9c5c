/* nearest.h: exact nearest neighbours in 3-D point clouds.
 *
 * A k-d tree (Friedman, Bentley, Finkel 1977) with leaves of 8 points stored by
 * coordinate, so that a leaf is two or four vector operations, and the incremental
 * distance bound of Arya and Mount (1993).  Clouds are [n][3] doubles.
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

#endif
