/* occt_build.h: making solid parts with OpenCASCADE, and writing them as lean STEP.
 *
 *     struct occ_build *b = occ_build_new();
 *     int plate = occ_box(b, 0, 0, 5, 80, 40, 10);             // centre, sizes
 *     plate = occ_cut(b, plate, occ_cylinder(b, OCC_Z(0, 0, 0), 6, 10));
 *     rc = occ_finish(b, plate, &info);                        // valid, closed, volume > 0 ?
 *     rc = occ_step_text(b, plate, "plate", &text, &n);        // malloc()ed
 *     occ_build_free(b);
 *
 * Shapes are small integers that live as long as their builder.  The first failure sticks: later
 * calls do nothing and give -1, so that only occ_finish() and occ_step_text() need looking at.
 * Lengths are mm, angles degrees.  A builder is used by one thread; different builders by
 * different threads.  A fault inside OpenCASCADE may still end the process: build in a child.
 */
#ifndef SHIM_OCCT_BUILD_H
#define SHIM_OCCT_BUILD_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct occ_build;
struct occ_build *occ_build_new(void); /* NULL when out of memory */
void occ_build_free(struct occ_build *b); /* NULL is fine */
void occ_build_clear(struct occ_build *b); /* forgets shapes and failure */

/* A place and an axis, not normalised; profiles lie in its x-y plane, x along `x`. */
struct occ_frame {
    double at[3], axis[3], x[3];
};
#define OCC_Z(px, py, pz) ((struct occ_frame){{(px), (py), (pz)}, {0, 0, 1}, {1, 0, 0}})
#define OCC_X(px, py, pz) ((struct occ_frame){{(px), (py), (pz)}, {1, 0, 0}, {0, 1, 0}})
/* Extrudes towards -y; the profile's x is x and its y is z. */
#define OCC_Y(px, py, pz) ((struct occ_frame){{(px), (py), (pz)}, {0, -1, 0}, {1, 0, 0}})

/* ---- primitives ---- */
int occ_box(struct occ_build *b, double cx, double cy, double cz, double dx, double dy, double dz);
int occ_cylinder(struct occ_build *b, struct occ_frame f, double r, double height);
int occ_cone(struct occ_build *b, struct occ_frame f, double r_bottom, double r_top, double height);
int occ_sphere(struct occ_build *b, double cx, double cy, double cz, double r);
int occ_torus(struct occ_build *b, struct occ_frame f, double r_ring, double r_tube);

/* ---- profiles ----
 * A loop is a circle (n = 0) or a polygon whose side from p[i] to the next is an arc when bulge
 * is not 0: the tangent of a quarter of its angle, positive when it turns left (as in DXF). */
struct occ_point {
    double x, y, bulge;
};
struct occ_loop {
    const struct occ_point *p;
    int n;
    double cx, cy, r;
};
/* The first loop is the outline, the others are holes in it. */
int occ_extrude(struct occ_build *b, struct occ_frame f, const struct occ_loop *loops, int n_loops, double height);
/* x is the distance from the z axis (at least 0), y is z. */
int occ_revolve(struct occ_build *b, const struct occ_point *p, int n, double degrees);
/* Plane sides between two polygons of equally many corners (no bulges); a pyramid when all corners of
 * the top are one point. */
int occ_loft(struct occ_build *b, const struct occ_point *bottom, double z0, const struct occ_point *top, double z1,
             int n);

/* ---- combining ---- */
int occ_fuse(struct occ_build *b, int a, int c);
int occ_cut(struct occ_build *b, int a, int c);
int occ_common(struct occ_build *b, int a, int c);
/* Copies of a in one compound, to cut or fuse in one go. */
int occ_move(struct occ_build *b, int a, double dx, double dy, double dz);
int occ_rotate(struct occ_build *b, int a, struct occ_frame about, double degrees);
int occ_polar(struct occ_build *b, int a, struct occ_frame about, int n);           /* n around the full turn */
int occ_grid(struct occ_build *b, int a, int nx, double dx, int ny, double dy);     /* centred on a */

int occ_scale(struct occ_build *b, int a, double factor); /* about the origin */

/* The shape of a STEP file in memory: all its roots. */
int occ_read(struct occ_build *b, const char *text, size_t n);

enum occ_edges {
    OCC_EDGES_ALL,
    OCC_EDGES_VERTICAL, /* straight along z */
    OCC_EDGES_TOP,      /* at the highest z */
    OCC_EDGES_BOTTOM,
};
int occ_fillet(struct occ_build *b, int a, enum occ_edges which, double radius);
int occ_chamfer(struct occ_build *b, int a, enum occ_edges which, double distance);

/* ---- finishing ---- */
struct occ_part_info {
    double volume_mm3, area_mm2;
    double min[3], max[3]; /* box around it, mm */
    int faces, edges, vertices;
};
/* Merges faces that continue each other, and checks: one solid, closed, free of self-inconsistency
 * (BRepCheck), with a volume above 0.  ERR_EXTERN with the reason, also that of an earlier failure. */
int occ_finish(struct occ_build *b, int *shape, struct occ_part_info *info);

/* The part as ISO 10303-21 text of AP214: no parametric curves, equal points, directions and placements
 * written once, children ahead of parents, `name` in the header, `product` as the product's id and name, at
 * most `decimals` decimals, nothing that differs from run to run.  *text is malloc()ed, NUL-terminated.
 * Lines, circles, ellipses and B-spline curves; planes, cylinders, cones, spheres and tori; ERR_EXTERN for
 * anything else. */
int occ_step_text(struct occ_build *b, int shape, const char *name, const char *product, int decimals, char **text, size_t *n);

/* The part as OpenCASCADE's own STEPControl_Writer has it (AP214, no parametric curves): its order, parents ahead of
 * children, its numbers to the last digit, nothing shared.  The header is the one of occ_step_text(), so that
 * nothing differs from run to run. */
int occ_step_text_native(struct occ_build *b, int shape, const char *name, const char *product, char **text, size_t *n);

#ifdef __cplusplus
}
#endif
#endif
