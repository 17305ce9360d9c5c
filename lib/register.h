/* register.h: point clouds from triangles, their alignment and distances.
 *
 * Clouds are [n][3] doubles.  Two ways to align a prediction P to the truth G:
 *
 * reg_reference()  what the original script does with Open3D 0.18: centring, feature matching
 *   by FPFH (Rusu, Blodow, Beetz 2009), RANSAC with edge-length and distance checks, and three
 *   rounds of point-to-point ICP (Besl, McKay 1992) at 10, 5 and 2.5 absolute units.  Seeded.
 *
 * reg_best()  deterministic: P scaled to G's size, rotations from principal axes and a
 *   super-Fibonacci covering of SO(3) (Alexa 2022) refined by ICP, the best of them by two-sided
 *   distance, then symmetric ICP over the pairs of both directions.
 */
#ifndef LIB_REGISTER_H
#define LIB_REGISTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* x -> s r x + t; r row-major */
struct rigid {
    double r[9], t[3], s;
};
extern const struct rigid RIGID_IDENTITY;
void rigid_apply(const struct rigid *m, const double *in, size_t n, double *out); /* out may be in */

/* ---- random numbers: MT19937 (Matsumoto, Nishimura 1998), numpy's legacy generator ---- */
struct mt19937 {
    uint32_t v[624];
    int at;
};
void mt_seed(struct mt19937 *r, uint32_t seed);
uint32_t mt_u32(struct mt19937 *r);
double mt_real(struct mt19937 *r); /* [0, 1), 53 bits */

/* ---- sampling n points by area; points [.][3], triangles [n_tri][3] ---- */
/* False if no triangle has an area.  The original's: as trimesh 4 after numpy.random.seed(seed), from
 * corners rounded to float32 (it goes through an STL file). */
bool sample_reference(const double *points, const uint32_t *triangles, size_t n_tri, uint32_t seed, size_t n, double *out);
/* Stratified over the area and low-discrepancy in the triangles: less noise; the same mesh gives
 * the same points. */
bool sample_even(const double *points, const uint32_t *triangles, size_t n_tri, size_t n, double *out);

/* ---- measures ---- */
void cloud_centroid(const double *xyz, size_t n, double c[3]);
double cloud_rms(const double *xyz, size_t n); /* root mean square distance from the centroid */
bool cloud_finite(const double *xyz, size_t n);
/* Mean squared distance from each point of a to its nearest of b. */
double chamfer_one_sided(const double *a, size_t n_a, const double *b, size_t n_b);

/* The rotation and translation (and scale, if wanted: else s = 1) that take a to b with least
 * squares: Horn 1987.  weights all 1. */
struct rigid fit_rigid(const double *a, const double *b, size_t n);

struct icp_round {
    double fitness, rmse; /* share of p with a neighbour in reach; of those, the RMS distance */
    int iterations;
};
/* Point-to-point ICP of p (moved in place) to g within max_distance, as Open3D's registration_icp:
 * at most 30 iterations, until fitness and RMSE change by less than 1e-6. */
struct icp_round reg_icp(double *p, size_t n_p, const double *g, size_t n_g, double max_distance);
/* The original's three rounds. */
void reg_icp_rounds(double *p, size_t n_p, const double *g, size_t n_g, struct icp_round round[3]);

struct reg_reference {
    size_t correspondences, iterations; /* of RANSAC */
    double ransac_fitness;
    struct icp_round icp[3];
    double forward, backward; /* mean squared distances after it, G to P and P to G */
};
/* p is moved in place. */
void reg_reference(double *p, size_t n_p, const double *g, size_t n_g, uint32_t seed, struct reg_reference *out);

struct reg_best {
    double rms_p, rms_g;
    struct rigid shape;  /* takes P to G with scaling to G's size */
    struct rigid size;   /* takes P to G as it is, s = 1 */
    /* mean squared distances over the truth's RMS squared */
    double shape_forward, shape_backward; /* G to P, P to G, scaled */
    double size_forward, size_backward;   /* not scaled */
    double precision, recall; /* shares of P and of G within `threshold` of the other, not scaled */
    int starts;
};
/* threshold: in units of G's RMS.  False if either cloud is a single point or not finite. */
bool reg_best(const double *p, size_t n_p, const double *g, size_t n_g, double threshold, struct reg_best *out);

#endif
