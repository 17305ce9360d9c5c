/* Whether the files of two folders are the same parts to OpenCASCADE:
 *
 *     geometry A B [VOLUME_ONLY]
 *
 * Same counts of solids, faces, edges and vertices, same units, products and colours, area and volume equal to 1e-9 of
 * themselves.  With a number behind, only volumes are compared, to that share.  A line for each difference; exit 1 if any. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/files.h"
#include "lib/isolate.h"
#include "lib/part.h"
#include "shim/occt.h"
#include "shim/occt_xde.h"

static const char *folder[2];
static double volume_only;
static struct file_list files;
static size_t n_read, n_faces, n_coloured, n_differ;
static double largest[2]; /* relative difference of volume and area */

/* A part as text and numbers. */
struct facts {
    int32_t status;
    uint32_t counts[6];
    double volume, area, size;
};

static int look(void *ctx, const char *path, size_t n, struct buf *out)
{
    (void)ctx;
    char *name = xstrndup(path, n);
    struct part p;
    struct part_request q = {.flags = PART_PROPERTIES};
    int rc = occ_load(name, NULL, 0, &q, &p);
    struct facts f = {.status = p.status, .counts = {p.n_solids, p.n_shells, p.n_closed_shells, p.n_faces, p.n_edges, p.n_vertices},
                      .volume = p.volume, .area = p.area};
    f.size = sqrt(pow(p.box[3] - p.box[0], 2) + pow(p.box[4] - p.box[1], 2) + pow(p.box[5] - p.box[2], 2));
    buf_add(out, &f, sizeof f);
    part_release(&p);
    if (rc == ERR_OK && !volume_only && f.status != PART_READ_FAILED)
        rc = occ_describe(name, out);
    buf_putc(out, '\0');
    free(name);
    return rc;
}

static int job(void *ctx, size_t i, struct buf *out)
{
    (void)ctx;
    char *path = path_join(folder[i % 2], files.v[i / 2].rel);
    buf_puts(out, path);
    free(path);
    return 0;
}

static double apart(double a, double b, double floor)
{
    double scale = fmax(fmax(fabs(a), fabs(b)), floor);
    return scale > 0 ? fabs(a - b) / scale : 0;
}

static int take(void *ctx, const struct isolate_result *r)
{
    (void)ctx;
    static struct buf first;
    static int first_code;
    const char *name = files.v[r->index / 2].rel;
    if (r->index % 2 == 0) {
        buf_clear(&first);
        buf_add(&first, r->data, r->n);
        first_code = r->code;
        return ERR_OK;
    }
    if (first_code < 0 || r->code < 0) {
        bool same = first_code < 0 && r->code < 0;
        printf("%s: %s\n", name, same ? "neither can be read" : first_code < 0 ? "only the second can be read" : r->error);
        n_differ += !same;
        return ERR_OK;
    }
    struct facts a, b;
    memcpy(&a, first.s, sizeof a);
    memcpy(&b, r->data, sizeof b);
    const char *says[2] = {first.s + sizeof a, r->data + sizeof b};
    /* A volume near zero (open shells, curves) is measured against the cube of the part's size. */
    double v = apart(a.volume, b.volume, 1e-9 * a.size * a.size * a.size), s = apart(a.area, b.area, 1e-9 * a.size * a.size);
    bool differs = false;
    n_read += a.status == PART_OK;
    n_faces += a.counts[3];
    n_coloured += strstr(says[0], "colour ") != NULL;
    largest[0] = fmax(largest[0], v);
    largest[1] = fmax(largest[1], s);
    if (a.status != b.status && (differs = true))
        printf("%s: %s, %s\n", name, part_status_name(a.status), part_status_name(b.status));
    if (!volume_only && memcmp(a.counts, b.counts, sizeof a.counts) && (differs = true))
        printf("%s: %u/%u solids, %u/%u faces, %u/%u edges, %u/%u vertices\n", name, a.counts[0], b.counts[0], a.counts[3], b.counts[3],
               a.counts[4], b.counts[4], a.counts[5], b.counts[5]);
    if (v > (volume_only ? volume_only : 1e-9) && (differs = true))
        printf("%s: volume %.17g, %.17g (%.2g)\n", name, a.volume, b.volume, v);
    if (!volume_only && s > 1e-9 && (differs = true))
        printf("%s: area %.17g, %.17g (%.2g)\n", name, a.area, b.area, s);
    if (strcmp(says[0], says[1]) && (differs = true))
        printf("%s: described as\n%s---- and as\n%s", name, says[0], says[1]);
    n_differ += differs;
    return ERR_OK;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return fprintf(stderr, "usage: geometry A B [VOLUME_ONLY]\n"), 2;
    folder[0] = argv[1];
    folder[1] = argv[2];
    volume_only = argc > 3 ? atof(argv[3]) : 0;
    struct isolate *pool;
    int rc = isolate_open(&(struct isolate_opts){.seconds = 120, .work = look}, &pool);
    if (rc == ERR_OK)
        rc = file_list_add(&files, folder[0], STEP_SUFFIXES);
    if (rc == ERR_OK)
        rc = isolate_run(pool, &(struct isolate_batch){.n = files.n * 2, .job = job, .done = take});
    if (rc < 0)
        return fprintf(stderr, "geometry: %s\n", err_text()), 3;
    isolate_close(pool);
    printf("%zu files, %zu with shapes, %zu faces, %zu with colours; volume apart by %.2g at most, area by %.2g; %zu files differ\n", files.n,
           n_read, n_faces, n_coloured, largest[0], largest[1], n_differ);
    return n_differ || !n_read;
}
