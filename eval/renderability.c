/* renderability: which STEP files OpenCASCADE turns into a solid. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/isolate.h"
#include "lib/part.h"
#include "lib/step.h"
#include "lib/step_score.h"
#include "lib/tool.h"
#include "shim/occt.h"

static const char *mode = "strict";
static bool require_all_roots;
static double timeout = 30, max_coordinate = 1e6, deflection;
static int64_t memory = 2000000000;

static struct opt options[] = {
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "strict: every root a valid closed solid; reference: the first root gives triangles"},
    {.name = "timeout", .type = OPT_REAL, .value = &timeout, .arg = "S", .help = "seconds a file may take", .min = 0.01, .max = 86400},
    {.name = "memory", .type = OPT_INT, .value = &memory, .arg = "BYTES", .help = "memory a file may take (2G)",
     .min = 64e6, .max = 1e13},
    {.name = "deflection", .type = OPT_REAL, .value = &deflection, .arg = "X",
     .help = "triangles from the surface: mm in reference mode (1), a share of the diagonal in strict mode (0.01)", .max = 1e6},
    {.name = "max-coordinate", .type = OPT_REAL, .value = &max_coordinate, .arg = "X",
     .help = "strict: points beyond this are not sane, in the file's unit", .min = 1, .max = 1e30},
    {.name = "require-all-roots", .type = OPT_FLAG, .value = &require_all_roots,
     .help = "reference: as the original's option: look at each root by itself"},
    {0},
};

static const struct tool_spec spec = {
    .name = "renderability",
    .args = "DIR|FILE...",
    .summary = "Says which STEP files can be rendered, and why the others cannot.",
    .details = "Each file is read, transferred and meshed by OpenCASCADE in a worker process of its own, with limits;\n"
               "a crash or a hang is that file's verdict.  Strict mode also asks for well-formed text, no unresolved\n"
               "reference, sane coordinates, closed shells, valid topology and positive volume.\n\n"
               "  renderability --label 'SFT with RAG' runs/12/generated\n"
               "  renderability --json --mode reference part.step\n",
    .options = options,
    .min_args = 1,
    .max_args = SIZE_MAX,
};

/* ---- in the worker ---- */

/* How often `word` stands in the text with "(" behind it, white space allowed between. */
static int64_t count_records(const char *text, size_t n, const char *word)
{
    int64_t count = 0;
    size_t len = strlen(word);
    const char *end = text + n;
    for (const char *p = text; (p = memmem(p, (size_t)(end - p), word, len));) {
        p += len;
        const char *q = p;
        while (q < end && strchr(" \t\r\n\f\v", *q) && *q)
            q++;
        count += q < end && *q == '(';
    }
    return count;
}

/* Triangles whose corners are all finite, which is what a mesh library keeps. */
static int64_t finite_triangles(const struct part_mesh *m)
{
    int64_t n = 0;
    for (size_t i = 0; i < m->n_triangles; i++) {
        bool ok = true;
        for (int k = 0; k < 9; k++)
            ok &= isfinite((float)m->points[(size_t)m->triangles[3 * i + (size_t)(k / 3)] * 3 + (size_t)(k % 3)]);
        n += ok;
    }
    return n;
}

struct reasons {
    struct buf first, list; /* list: a JSON array */
    struct jw j;
};

static void add_reason(struct reasons *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add_reason(struct reasons *r, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!r->first.n)
        buf_puts(&r->first, text);
    jw_str(&r->j, text);
}

/* ---- strict: the text ---- */

static void check_text(const char *path, const char *text, size_t n, struct reasons *r)
{
    struct step_file *f;
    if (step_parse(path, text, n, 0, &f) < 0) {
        const char *e = err_text();
        size_t len = strlen(path);
        add_reason(r, "syntax: %s", !strncmp(e, path, len) && e[len] == ':' ? e + len + 1 : e);
        return;
    }
    if (f->n_dangling)
        for (size_t i = 0, told = 0; i < f->n && !told; i++)
            for (uint32_t k = 0; k < f->v[i].n_ref && !told; k++) {
                const struct step_ref *ref = &f->refs[f->v[i].ref + k];
                if (ref->target == STEP_NONE) {
                    add_reason(r, "unresolved_reference: #%llu in #%llu%s", (unsigned long long)step_ref_id(f->text + ref->off),
                               (unsigned long long)f->v[i].id, f->n_dangling > 1 ? ", and more" : "");
                    told = 1;
                }
            }
    uint32_t point = step_type_find(f, "CARTESIAN_POINT");
    for (size_t i = 0; i < f->n && point != STEP_NONE; i++) {
        const struct step_entity *e = &f->v[i];
        struct step_token list;
        if (e->type != point || !step_param(f->text + e->par, e->par_len, 1, &list))
            continue;
        for (const char *p = list.s; p < list.s + list.n; p++) {
            if (*p != '(' && *p != ',')
                continue;
            double x = strtod(p + 1, NULL); /* ends at the next comma or parenthesis at the latest */
            if (fabs(x) <= max_coordinate)
                continue;
            add_reason(r, "coordinate: %g in #%llu is beyond %g", x, (unsigned long long)e->id, max_coordinate);
            goto out;
        }
    }
out:
    step_free(f);
}

/* ---- strict: the shape ---- */

/* The reader bridges any gap by a larger tolerance, with which BRepCheck is then content; as a share
 * of the diagonal.  Real files stay below a hundredth of this. */
#define MAX_TOLERANCE 0.01

static void check_shape(const struct part *p, struct reasons *r)
{
    if (p->status == PART_EXCEPTION)
        add_reason(r, "exception: %s", p->reason);
    else if (p->status != PART_OK)
        add_reason(r, "%s", p->reason);
    if (p->n_roots > 0 && p->n_transferred < p->n_roots)
        add_reason(r, "roots: %d of %d gave no shape", p->n_roots - p->n_transferred, p->n_roots);
    if (p->status != PART_OK && p->status != PART_NO_TRIANGLES)
        return;
    for (int k = 0; k < 6; k++)
        if (!isfinite(p->box[k])) {
            add_reason(r, "not_finite: the bounding box");
            break;
        }
    if (finite_triangles(&p->mesh) < (int64_t)p->mesh.n_triangles)
        add_reason(r, "not_finite: corners of triangles");
    if (!p->n_solids)
        add_reason(r, "no_solid");
    if (p->n_loose_shells)
        add_reason(r, "loose_shell: %u outside any solid", p->n_loose_shells);
    if (p->n_closed_shells < p->n_shells)
        add_reason(r, "open_shell: %u of %u", p->n_shells - p->n_closed_shells, p->n_shells);
    double d = 0;
    for (int k = 0; k < 3; k++)
        d += (p->box[k + 3] - p->box[k]) * (p->box[k + 3] - p->box[k]);
    if (p->tolerance > MAX_TOLERANCE * sqrt(d))
        add_reason(r, "gap: edges or vertices %g mm apart", p->tolerance);
    if (p->checked && !p->valid)
        add_reason(r, "invalid: %s", p->invalid);
    if (p->n_solids && !(p->min_solid_volume > 0))
        add_reason(r, "volume: a solid of %g mm^3", p->min_solid_volume);
}

static void put_shape(struct jw *j, const struct part *p)
{
    jw_kv_int(j, "num_solids", p->n_solids);
    jw_kv_int(j, "num_shells", p->n_shells);
    jw_kv_int(j, "num_closed_shells", p->n_closed_shells);
    jw_kv_int(j, "num_faces", p->n_faces);
    jw_kv_int(j, "num_edges", p->n_edges);
    jw_key(j, "valid");
    p->checked ? jw_bool(j, p->valid) : jw_null(j);
    jw_kv_real(j, "volume", p->volume);
    jw_kv_real(j, "area", p->area);
    jw_key(j, "bbox");
    jw_array(j);
    for (int k = 0; k < 6; k++)
        jw_real(j, p->box[k]);
    jw_end(j);
}

/* ---- reference: the original's verdict ---- */

static void check_reference(const struct part *p, struct reasons *r)
{
    switch (p->status) {
    case PART_OK:
        if (!finite_triangles(&p->mesh))
            add_reason(r, "stl_empty_or_export_failed");
        break;
    case PART_NO_FILE:
        add_reason(r, "file_not_found");
        break;
    case PART_READ_FAILED:
        add_reason(r, "read_failed");
        break;
    case PART_NO_ROOTS: /* it asks for the first of no shapes */
        add_reason(r, "unexpected_exception: NCollection_Sequence::Value");
        break;
    case PART_EXCEPTION:
        add_reason(r, "unexpected_exception: %s", p->reason);
        break;
    case PART_NULL_SHAPE:
    case PART_NO_TRIANGLES:
        if (p->n_root > 1)
            add_reason(r, "no_solid_geometry_found");
        else
            add_reason(r, "stl_empty_or_export_failed");
    }
}

static void put_lines(struct jw *j, const char *messages)
{
    bool any = strstr(messages, "StepReaderData") || strstr(messages, "ERR");
    jw_kv_bool(j, "reader_errors_present", any);
    if (!any)
        return;
    jw_key(j, "reader_error_lines");
    jw_array(j);
    for (const char *p = messages; *p;) {
        size_t n = strcspn(p, "\n");
        if (memmem(p, n, "StepReaderData", 14) || memmem(p, n, "ERR", 3))
            jw_strn(j, p, n);
        p += n + (p[n] == '\n');
    }
    jw_end(j);
}

static void put_roots(struct jw *j, const struct part *p)
{
    jw_key(j, "roots");
    jw_array(j);
    for (size_t i = 0; require_all_roots && i < p->n_root; i++) {
        const struct part_root *k = &p->root[i];
        jw_object(j);
        jw_kv_int(j, "root_index", (int64_t)i + 1);
        jw_kv_bool(j, "transfer_ok", k->transfer_ok);
        jw_kv_bool(j, "shape_null", k->null);
        jw_kv_bool(j, "stl_ok", k->n_triangles > 0);
        jw_kv_bool(j, "trimesh_verified", k->n_triangles > 0);
        jw_kv_int(j, "trimesh_faces", (int64_t)k->n_triangles);
        jw_kv_bool(j, "ok", k->n_triangles > 0);
        jw_kv_str(j, "geometry_type", k->solid ? "solid" : k->curve ? "wireframe_or_curve" : "unknown");
        jw_end(j);
    }
    jw_end(j);
}

/* The result: "1" or "0", the first reason and its NUL, the fields of the line behind "file". */
static int work(void *ctx, const char *path, size_t path_n, struct buf *out)
{
    (void)ctx, (void)path_n;
    double start = now_s();
    bool strict = !strcmp(mode, "strict");
    struct file_map m;
    struct part p;
    struct reasons r = {.first = BUF_INIT, .list = BUF_INIT};
    r.j = JW_INIT(&r.list);
    jw_array(&r.j);
    int rc = file_map(path, (size_t)1 << 30, &m);
    if (rc < 0)
        return rc;
    struct part_request q = {.flags = PART_MESH, .root = 0, .relative = strict};
    if (strict)
        q.flags |= PART_CHECK | PART_PROPERTIES;
    else
        q.flags |= require_all_roots ? PART_EACH_ROOT : PART_FALLBACK, q.root = 1;
    q.deflection = deflection > 0 ? deflection : strict ? 0.01 : 1;
    if (strict)
        check_text(path, m.data, m.size, &r);
    if (r.first.n) /* the verdict stands; such a text can only crash or hang the reader */
        memset(&p, 0, sizeof p), p.status = PART_READ_FAILED;
    else
        rc = occ_load(path, m.data, m.size, &q, &p);
    if (rc < 0) {
        part_release(&p);
        file_unmap(&m);
        return rc;
    }
    if (strict && !r.first.n) {
        check_shape(&p, &r);
    } else if (!strict) {
        /* With the option, one root that gives triangles is enough, whichever it is. */
        bool any = false;
        for (size_t i = 0; require_all_roots && i < p.n_root; i++)
            any |= p.root[i].n_triangles > 0;
        if (!any)
            check_reference(&p, &r);
    }
    bool ok = !r.first.n;
    jw_end(&r.j);

    int64_t expected = count_records(m.data, m.size, "ADVANCED_BREP_SHAPE_REPRESENTATION");
    int64_t wires = count_records(m.data, m.size, "WIREFRAME_SHAPE_REPRESENTATION");
    int64_t surfaces = count_records(m.data, m.size, "SURFACE_SHAPE_REPRESENTATION");
    buf_putc(out, ok ? '1' : '0');
    buf_add(out, r.first.s, r.first.n);
    buf_putc(out, 0);
    struct jw j = JW_INIT(out);
    jw_object(&j);
    size_t open = out->n - 1; /* the caller puts the file's name here */
    jw_kv_bool(&j, "renderable", ok);
    jw_kv_str(&j, "status", ok ? "ok" : "error");
    jw_kv_str(&j, "reason", ok ? NULL : r.first.s);
    if (strict) {
        jw_key(&j, "reasons");
        jw_raw(&j, r.list.s);
    }
    jw_kv_int(&j, "num_roots_expected", expected);
    jw_kv_int(&j, "num_roots_found", p.n_roots);
    put_roots(&j, &p);
    jw_kv_bool(&j, "has_mixed_geometry", (expected > 0) + (wires > 0) + (surfaces > 0) > 1);
    jw_kv_int(&j, "wireframe_representations", wires);
    jw_kv_int(&j, "surface_representations", surfaces);
    jw_kv_bool(&j, "stl_ok", p.mesh.n_triangles > 0);
    jw_kv_bool(&j, "trimesh_verified", finite_triangles(&p.mesh) > 0);
    jw_kv_int(&j, "trimesh_faces", finite_triangles(&p.mesh));
    if (strict && (p.status == PART_OK || p.status == PART_NO_TRIANGLES))
        put_shape(&j, &p);
    jw_kv_real(&j, "duration_seconds", now_s() - start);
    put_lines(&j, p.messages ? p.messages : "");
    if (!ok) {
        jw_kv_str(&j, "child_stdout", p.messages ? p.messages : "");
        jw_kv_str(&j, "child_stderr", "");
    }
    jw_end(&j);
    out->s[open] = ' ';
    buf_release(&r.first);
    buf_release(&r.list);
    part_release(&p);
    file_unmap(&m);
    return ERR_OK;
}

/* ---- in the program ---- */

struct histogram {
    char *reason;
    size_t n;
};

struct checking {
    struct tool *tool;
    struct file_list files;
    size_t total, renderable, timeout, crash, memory, error;
    struct histogram *why;
    size_t n_why, cap_why;
};

/* Counts a reason by its word: "invalid: ..." as "invalid". */
static void count_reason(struct checking *c, const char *reason, bool whole)
{
    size_t n = whole ? strlen(reason) : strcspn(reason, ":"), i = 0;
    while (i < c->n_why && (strncmp(c->why[i].reason, reason, n) || c->why[i].reason[n]))
        i++;
    if (i == c->n_why) {
        ARRAY_GROW(c->why, c->cap_why, c->n_why + 1);
        c->why[c->n_why++] = (struct histogram){xstrndup(reason, n), 0};
    }
    c->why[i].n++;
}

/* What an earlier start of this run recorded counts in the totals, too. */
static void count_current(struct checking *c, const char *path)
{
    char *state, *result;
    json_t *line = NULL;
    if (rundb_item_get(c->tool->db, path, &state, &result) < 0)
        return;
    if (json_read_mem(path, result, strlen(result), &line) == ERR_OK) {
        const char *status = json_string_value(json_object_get(line, "status"));
        const char *reason = json_string_value(json_object_get(line, "reason"));
        c->total++;
        c->renderable += json_is_true(json_object_get(line, "renderable"));
        c->timeout += status && !strcmp(status, "timeout");
        c->error += status && !strcmp(status, "error");
        c->crash += reason && !strncmp(reason, "crash:", 6);
        c->memory += reason && !strncmp(reason, "memory:", 7);
        if (reason)
            count_reason(c, reason, !strcmp(mode, "reference"));
        json_decref(line);
    }
    free(state);
    free(result);
}

static int make_job(void *ctx, size_t i, struct buf *out)
{
    struct checking *c = ctx;
    const char *path = c->files.v[i].path;
    buf_add(out, path, strlen(path) + 1);
    if (!tool_item_current(c->tool, path, path, NULL))
        return 0;
    count_current(c, path);
    return 1;
}

static int take(void *ctx, const struct isolate_result *r)
{
    struct checking *c = ctx;
    const char *path = c->files.v[r->index].path;
    bool unread = r->end == ISOLATE_OK && r->code < 0;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    const char *reason = r->error;
    jw_object(&j);
    jw_kv_str(&j, "file", path);
    if (r->code == ERR_OK) {
        bool ok = r->data[0] == '1';
        reason = ok ? NULL : r->data + 1;
        const char *fields = r->data + 1 + strlen(r->data + 1) + 1;
        buf_putc(&line, ',');
        buf_add(&line, fields, (size_t)(r->data + r->n - fields));
        c->renderable += ok;
        c->error += !ok;
    } else {
        c->timeout += r->end == ISOLATE_TIMEOUT;
        c->memory += r->end == ISOLATE_MEMORY;
        c->crash += r->end == ISOLATE_CRASH;
        c->error += r->end != ISOLATE_TIMEOUT;
        jw_kv_bool(&j, "renderable", false);
        jw_kv_str(&j, "status", r->end == ISOLATE_TIMEOUT ? "timeout" : "error");
        jw_kv_str(&j, "reason", r->error);
        jw_kv_bool(&j, "stl_ok", false);
        jw_kv_real(&j, "duration_seconds", r->seconds);
        jw_kv_str(&j, "child_stdout", "");
        jw_kv_str(&j, "child_stderr", "");
        jw_end(&j);
    }
    c->total++;
    if (reason) {
        count_reason(c, reason, !strcmp(mode, "reference"));
        if (!unread)
            tool_print(c->tool, "%s: %s\n", path, reason);
    }
    int rc = tool_item(c->tool, &(struct run_item){.item = path, .state = unread ? "failed" : "done", .reason = reason,
                                                   .seconds = r->seconds, .input = path, .result = line.s});
    buf_release(&line);
    return rc;
}

static int summary(struct checking *c)
{
    double ratio = c->total ? (double)c->renderable / (double)c->total : 0;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_int(&j, "total", (int64_t)c->total);
    jw_kv_int(&j, "renderable", (int64_t)c->renderable);
    jw_kv_int(&j, "not_renderable", (int64_t)(c->total - c->renderable));
    jw_kv_int(&j, "timeout", (int64_t)c->timeout);
    jw_kv_int(&j, "error", (int64_t)c->error);
    jw_kv_int(&j, "crash", (int64_t)c->crash);
    jw_kv_int(&j, "memory", (int64_t)c->memory);
    jw_kv_real(&j, "ratio", ratio);
    jw_kv_str(&j, "mode", mode);
    jw_key(&j, "failure_reasons");
    jw_object(&j);
    for (size_t i = 0; i < c->n_why; i++)
        jw_kv_int(&j, c->why[i].reason, (int64_t)c->why[i].n);
    jw_end(&j);
    jw_end(&j);
    tool_json_line(c->tool, line.s);
    buf_release(&line);
    tool_print(c->tool, "RR: %.4f (%zu of %zu)\n", ratio, c->renderable, c->total);
    const struct {
        const char *name;
        double value;
    } metrics[] = {
        {"RR", ratio}, {"n_total", (double)c->total}, {"n_renderable", (double)c->renderable},
        {"n_timeout", (double)c->timeout}, {"n_crash", (double)c->crash}, {"n_memory", (double)c->memory},
    };
    int rc = ERR_OK;
    for (size_t i = 0; i < ARRAY_LEN(metrics) && rc == ERR_OK; i++)
        rc = tool_metric(c->tool, 0, metrics[i].name, metrics[i].value);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    struct checking c = {.tool = &t};
    struct isolate *pool = NULL;
    int rc = isolate_open(&(struct isolate_opts){.workers = t.threads, .seconds = timeout, .memory = (size_t)memory, .work = work},
                          &pool);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    for (size_t i = 0; i < t.args.n && rc == ERR_OK; i++)
        rc = score_files(&c.files, t.args.v[i]);
    if (rc == ERR_OK)
        rc = isolate_run(pool, &(struct isolate_batch){.n = c.files.n, .what = "rendering", .unit = "files",
                                                       .job = make_job, .done = take, .ctx = &c});
    if (rc == ERR_OK)
        rc = summary(&c);
    isolate_close(pool);
    file_list_release(&c.files);
    for (size_t i = 0; i < c.n_why; i++)
        free(c.why[i].reason);
    free(c.why);
    return tool_finish(&t, rc);
}
