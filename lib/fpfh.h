/* fpfh.h: Fast Point Feature Histograms (Rusu, Blodow, Beetz 2009) of clouds, and which of two clouds match.
 *
 *     struct fpfh a, b;
 *     fpfh_build(&a, p, n_p, voxel);
 *     fpfh_build(&b, g, n_g, voxel);
 *     fpfh_match(&a, &b, ab, ba);      // the b most like each a, and the reverse
 *     fpfh_release(&a); ...
 *
 * With the original's parameters: normals of at most 30 neighbours within 2 voxels, histograms of at most
 * 100 within 5.  In single precision, as what matters is which features are alike.
 */
#ifndef LIB_FPFH_H
#define LIB_FPFH_H

#include <stddef.h>
#include <stdint.h>

enum { FPFH_BINS = 11, FPFH_SIZE = 3 * FPFH_BINS, FPFH_PAD = 40 };

struct fpfh {
    size_t n;
    uint32_t *order; /* [n] the point of the cloud that feature i is of: points are sorted by place */
    float *feature;  /* [n][FPFH_PAD] */
};

/* xyz: [n][3], n at least 1. */
void fpfh_build(struct fpfh *f, const double *xyz, size_t n, double voxel);
void fpfh_release(struct fpfh *f);

/* ab[a->n]: for each point of a's cloud the point of b's whose feature is nearest; ba[b->n] likewise. */
void fpfh_match(const struct fpfh *a, const struct fpfh *b, uint32_t *ab, uint32_t *ba);

#endif
