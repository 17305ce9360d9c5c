/* render.h: pictures of a triangle mesh with its edges, by a software rasteriser: no display,
 * no GPU.  Orthographic, smooth-shaded, on white, with the edges that are not hidden as dark
 * lines; PNG out.  Also writes the mesh as binary glTF 2.0 (GLB).
 *
 *     struct buf png = BUF_INIT;
 *     int rc = render_png_mem(&mesh, &render_views[0], 240, &png);   // 240 x 240 pixels
 *
 * Shading is smooth across triangles that share a point and creased where they do not, so a
 * mesh whose faces each have points of their own (as OpenCASCADE's triangulations have) shows
 * round faces round and corners sharp.  Coordinates that are not finite are refused.
 */
#ifndef LIB_RENDER_H
#define LIB_RENDER_H

#include <stddef.h>
#include <stdint.h>

#include "lib/mem.h"

/* Borrowed arrays.  Units are free: a picture is scaled to the mesh. */
struct render_mesh {
    const double *points; /* [n_points, 3] */
    size_t n_points;
    const uint32_t *triangles; /* [n_triangles, 3], counter-clockwise seen from outside */
    size_t n_triangles;
    const double *edge_points; /* [edge_starts[n_edges], 3]: polylines, one after the other; may be NULL */
    const uint32_t *edge_starts; /* [n_edges + 1] */
    size_t n_edges;
};

struct render_view {
    const char *name; /* part of a file name */
    double from[3];   /* towards the viewer */
    double up[3];
};

/* Index 0 is the oblique view that shows most; then front, back, left, right, top, bottom,
 * oblique from behind, oblique from below. */
enum { RENDER_VIEWS = 9, RENDER_MIN_SIZE = 16, RENDER_MAX_SIZE = 8192 };
extern const struct render_view render_views[RENDER_VIEWS];

/* Appends a size x size RGB PNG to *out.  ERR_USAGE: size out of range; ERR_FORMAT: a mesh with no
 * triangle, an index out of range or a coordinate that is not finite; ERR_NOMEM. */
int render_png_mem(const struct render_mesh *mesh, const struct render_view *view, int size, struct buf *out);

/* Likewise, as size * size * 3 bytes of RGB, rows from the top: fresh memory that the caller frees. */
int render_rgb(const struct render_mesh *mesh, const struct render_view *view, int size, uint8_t **rgb);
/* Appends width x height RGB pixels as PNG. */
int render_encode_png(const uint8_t *rgb, int width, int height, struct buf *out);

/* Appends the mesh as GLB: positions (in metres), normals, triangles, and edges as lines.
 * Y is up in glTF, so the node turns the part's Z axis there. */
int render_glb_mem(const struct render_mesh *mesh, double metres_per_unit, struct buf *out);

#endif
