/* part.h: what can be known of a STEP file's geometry, as plain arrays and numbers.
 *
 * Filled by shim/occt.h (occ_load), usually in a worker of lib/isolate.h:
 *
 *     struct part_request q = {.flags = PART_MESH, .deflection = 0.001, .relative = true};
 *     // job():   part_job(&q, path, out);                 work: occ_work
 *     // done():  if (r->code < 0) ... r->error ...;  part_decode(r->data, r->n, &p)
 *
 * Lengths are mm, whatever the file's unit.
 */
#ifndef LIB_PART_H
#define LIB_PART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/mem.h"

enum {
    PART_MESH = 1,       /* triangles */
    PART_EDGES = 2,      /* polylines of the edges, for drawing; with PART_MESH */
    PART_PROPERTIES = 4, /* volume, area, centre */
    PART_CHECK = 8,      /* BRepCheck validity, closed shells */
    PART_FALLBACK = 16,  /* with root 1: if it gives no triangles, the other roots one by one */
    PART_EACH_ROOT = 32, /* a record of every root, each transferred by itself */
};

struct part_request {
    uint32_t flags;
    int32_t root;       /* 1, 2, ...: that root alone; 0: all */
    double deflection;  /* linear: of the triangles from the surface, mm; 0: 0.1 */
    double angle;       /* angular deflection, radians; 0: 0.5 (OpenCASCADE's default) */
    bool relative;      /* deflection is a share of the diagonal of the bounding box */
    uint64_t max_bytes; /* of the file; 0: 256 MiB */
};

enum part_status {
    PART_OK,
    PART_NO_FILE,      /* cannot be opened, or too big */
    PART_READ_FAILED,  /* not an exchange structure to OpenCASCADE */
    PART_NO_ROOTS,     /* nothing in it can be transferred */
    PART_NULL_SHAPE,   /* the transfer gave nothing */
    PART_NO_TRIANGLES, /* PART_MESH was asked for, and there are none */
    PART_EXCEPTION,    /* OpenCASCADE threw; reason has its text */
};
/* "ok", "no_file", "read_failed", ... */
const char *part_status_name(enum part_status s);

struct part_mesh {
    size_t n_points, n_triangles;
    double *points;      /* [n_points][3]; faces do not share points */
    uint32_t *triangles; /* [n_triangles][3], counter-clockwise from outside */
    uint32_t *face;      /* [n_triangles] index of the face each belongs to */
    size_t n_edges, n_edge_points;
    uint32_t *edge;      /* [n_edges + 1] where each polyline starts in edge_points */
    double *edge_points; /* [n_edge_points][3] */
};

struct part_root {
    bool transfer_ok, null, solid, curve; /* solid: has a face of a solid; curve: has edges but no face */
    uint64_t n_triangles;
};

struct part {
    enum part_status status;
    char *reason;   /* "" if ok */
    char *messages; /* what OpenCASCADE's reader said, one a line, the first 64 KiB */
    int32_t n_roots, n_transferred; /* roots in the file; those that gave a shape (root 0) */
    size_t n_root; /* PART_EACH_ROOT or PART_FALLBACK: records of root 1, 2, ... */
    struct part_root *root;
    /* of the shape */
    uint32_t n_solids, n_shells, n_closed_shells, n_loose_shells, n_faces, n_edges, n_vertices;
    bool checked, valid; /* BRepCheck */
    char *invalid;       /* which checks failed: "UnorientableShape, ..."; "" */
    double tolerance;    /* the largest of a vertex, edge or face, mm: what gaps the reader had to bridge */
    bool measured;
    double volume, area, min_solid_volume; /* mm^3, mm^2; min over the solids; 0 if none */
    double box[6];       /* min xyz, max xyz of the shape, or of the triangles when meshed */
    double mesh_area, mesh_volume;
    struct part_mesh mesh;
    double read_s, transfer_s, mesh_s, check_s;
};

/* A job for occ_work(). */
void part_job(const struct part_request *q, const char *path, struct buf *out);
/* Likewise for a text in memory; name is for messages. */
void part_job_text(const struct part_request *q, const char *name, const char *text, size_t n, struct buf *out);
/* The other end: spans of the job.  text is NULL for a path. */
int part_job_decode(const char *job, size_t n, struct part_request *q, const char **name, const char **text,
                    size_t *text_n);

double part_diagonal2(const struct part *p); /* of its box, squared; mm^2 */
/* The reader bridges any gap by a larger tolerance, with which BRepCheck is then content: whether it is beyond a hundredth
 * of the diagonal.  Real files stay below a hundredth of that. */
bool part_gaps(const struct part *p);

void part_encode(const struct part *p, struct buf *out);
int part_decode(const char *data, size_t n, struct part *out); /* ERR_FORMAT if cut short */
void part_release(struct part *p);

#endif
