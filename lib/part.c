#include "lib/part.h"

#include <math.h>
#include <stdlib.h>

#include "lib/err.h"

static const char *const status_names[] = {
    "ok", "no_file", "read_failed", "no_roots", "null_shape", "no_triangles", "exception",
};

const char *part_status_name(enum part_status s)
{
    return (unsigned)s < ARRAY_LEN(status_names) ? status_names[s] : "unknown";
}

/* ---- jobs: the request, the name with its NUL, the text if there is one ---- */

void part_job_text(const struct part_request *q, const char *name, const char *text, size_t n, struct buf *out)
{
    buf_add(out, q, sizeof *q);
    buf_putc(out, text ? 'T' : 'P');
    buf_add(out, name, strlen(name) + 1);
    if (text)
        buf_add(out, text, n);
}

void part_job(const struct part_request *q, const char *path, struct buf *out)
{
    part_job_text(q, path, NULL, 0, out);
}

int part_job_decode(const char *job, size_t n, struct part_request *q, const char **name, const char **text,
                    size_t *text_n)
{
    const char *nul = n > sizeof *q + 1 ? memchr(job + sizeof *q + 1, 0, n - sizeof *q - 1) : NULL;
    if (!nul)
        return err_set(ERR_FORMAT, "a job of %zu bytes is cut short", n);
    memcpy(q, job, sizeof *q);
    *name = job + sizeof *q + 1;
    *text = job[sizeof *q] == 'T' ? nul + 1 : NULL;
    *text_n = (size_t)(job + n - (nul + 1));
    return ERR_OK;
}

/* ---- results: the struct's bytes (both ends are the same program), then what it points to ---- */

static void put_str(struct buf *out, const char *s)
{
    buf_add(out, s ? s : "", strlen(s ? s : "") + 1);
}

void part_encode(const struct part *p, struct buf *out)
{
    const struct part_mesh *m = &p->mesh;
    buf_add(out, p, sizeof *p);
    buf_add(out, p->root, p->n_root * sizeof *p->root);
    buf_add(out, m->points, m->n_points * 3 * sizeof *m->points);
    buf_add(out, m->triangles, m->n_triangles * 3 * sizeof *m->triangles);
    buf_add(out, m->face, m->n_triangles * sizeof *m->face);
    if (m->edge)
        buf_add(out, m->edge, (m->n_edges + 1) * sizeof *m->edge);
    buf_add(out, m->edge_points, m->n_edge_points * 3 * sizeof *m->edge_points);
    put_str(out, p->reason);
    put_str(out, p->messages);
    put_str(out, p->invalid);
}

struct reader {
    const char *p, *end;
    bool cut;
};

static void *take(struct reader *r, size_t count, size_t size)
{
    if (r->cut || count > (size_t)(r->end - r->p) / size) {
        r->cut = true;
        return NULL;
    }
    if (!count)
        return NULL;
    void *v = xmalloc(count * size);
    memcpy(v, r->p, count * size);
    r->p += count * size;
    return v;
}

static char *take_str(struct reader *r)
{
    const char *nul = r->cut ? NULL : memchr(r->p, 0, (size_t)(r->end - r->p));
    r->cut = !nul;
    return nul ? take(r, (size_t)(nul - r->p) + 1, 1) : NULL;
}

int part_decode(const char *data, size_t n, struct part *out)
{
    memset(out, 0, sizeof *out);
    if (n < sizeof *out)
        return err_set(ERR_FORMAT, "a result of %zu bytes is cut short", n);
    struct reader r = {data + sizeof *out, data + n, false};
    struct part_mesh *m = &out->mesh;
    memcpy(out, data, sizeof *out);
    bool edges = m->edge;
    out->root = take(&r, out->n_root, sizeof *out->root);
    m->points = take(&r, m->n_points, 3 * sizeof *m->points);
    m->triangles = take(&r, m->n_triangles, 3 * sizeof *m->triangles);
    m->face = take(&r, m->n_triangles, sizeof *m->face);
    m->edge = edges ? take(&r, m->n_edges + 1, sizeof *m->edge) : NULL;
    m->edge_points = take(&r, m->n_edge_points, 3 * sizeof *m->edge_points);
    out->reason = take_str(&r);
    out->messages = take_str(&r);
    out->invalid = take_str(&r);
    if (!r.cut)
        return ERR_OK;
    part_release(out);
    return err_set(ERR_FORMAT, "a result of %zu bytes is cut short", n);
}

double part_diagonal2(const struct part *p)
{
    double d2 = 0;
    for (int k = 0; k < 3; k++)
        d2 += (p->box[k + 3] - p->box[k]) * (p->box[k + 3] - p->box[k]);
    return d2;
}

bool part_gaps(const struct part *p)
{
    return p->tolerance > 0.01 * sqrt(part_diagonal2(p));
}

void part_release(struct part *p)
{
    free(p->reason);
    free(p->messages);
    free(p->invalid);
    free(p->root);
    free(p->mesh.points);
    free(p->mesh.triangles);
    free(p->mesh.face);
    free(p->mesh.edge);
    free(p->mesh.edge_points);
    memset(p, 0, sizeof *p);
}
