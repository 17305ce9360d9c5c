/* renderability: which STEP files OpenCASCADE turns into a solid. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

#include "lib/isolate.h"
#include "lib/part.h"
#include "lib/step.h"
#include "lib/step_score.h"
#include "lib/tool.h"
#include "shim/occt.h"

static const char *mode = "strict", *report_file;
static bool require_all_roots, errors_fail;
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
    {.name = "treat-reader-errors-as-failure", .type = OPT_FLAG, .value = &errors_fail, .help = "reference: as the original's option"},
    {.name = "report", .type = OPT_STR, .value = &report_file, .arg = "FILE", .help = "reference: also the original's report of a batch, as JSON",
     .flags = OPT_NO_KEY},
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
    .flags = TOOL_SHARDS,
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
    double d2 = part_diagonal2(p);
    if (part_gaps(p))
        add_reason(r, "gap: edges or vertices %g mm apart", p->tolerance);
    if (p->checked && !p->valid)
        add_reason(r, "invalid: %s", p->invalid);
    if (p->n_solids && !(p->min_solid_volume > 1e-12 * d2 * sqrt(d2))) /* a flat one's is 0 but for rounding */
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

/* The reason, or NULL: renderable. */
static const char *reference_reason(const struct part *p, char text[512])
{
    bool any = false;
    for (size_t i = 0; i < p->n_root; i++)
        any |= p->root[i].n_triangles > 0;
    switch (p->status) {
    case PART_NO_FILE:
        return "file_not_found";
    case PART_READ_FAILED:
        return "read_failed";
    case PART_EXCEPTION:
        snprintf(text, 512, "unexpected_exception: %s", p->reason);
        return text;
    default:
        break;
    }
    if (require_all_roots && p->n_roots > 0) /* one root that gives triangles is enough, whichever it is */
        return any ? NULL : "no_solid_geometry_found";
    if (p->n_roots <= 0 || !p->n_root || p->root[0].null) /* it asks for the first of no shapes */
        return "unexpected_exception: NCollection_Sequence::Value";
    return p->status == PART_OK && finite_triangles(&p->mesh) ? NULL : "stl_empty_or_export_failed";
}

static bool reader_errors(const char *messages)
{
    return strstr(messages, "StepReaderData") || strstr(messages, "ERR");
}

static void put_lines(struct jw *j, const char *messages)
{
    bool any = reader_errors(messages);
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
        bool ok = k->n_triangles > 0;
        jw_object(j);
        jw_kv_int(j, "root_index", (int64_t)i + 1);
        jw_kv_bool(j, "transfer_ok", k->transfer_ok);
        jw_key(j, "shape_null");
        k->null ? jw_null(j) : jw_bool(j, false); /* it asks a shape that is not there, which fails */
        jw_key(j, "stl_ok");
        k->null ? jw_null(j) : jw_bool(j, ok);
        jw_kv_bool(j, "trimesh_verified", true);
        jw_key(j, "trimesh_faces");
        ok ? jw_int(j, (int64_t)k->n_triangles) : jw_null(j);
        jw_kv_bool(j, "ok", ok);
        jw_kv_str(j, "geometry_type", ok ? "solid" : k->null ? "unknown" : "wireframe_or_curve");
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
    const char *messages = p.messages ? p.messages : "", *why = NULL;
    char text[512];
    if (strict && !r.first.n)
        check_shape(&p, &r);
    else if (!strict)
        why = errors_fail && reader_errors(messages) ? "reader_errors_detected" : reference_reason(&p, text);
    if (why)
        add_reason(&r, "%s", why);
    bool ok = !r.first.n;
    jw_end(&r.j);

    bool read = strict || (p.status != PART_READ_FAILED && p.status != PART_NO_FILE);
    int64_t expected = count_records(m.data, m.size, "ADVANCED_BREP_SHAPE_REPRESENTATION");
    int64_t wires = read ? count_records(m.data, m.size, "GEOMETRICALLY_BOUNDED_WIREFRAME_SHAPE_REPRESENTATION") : 0;
    int64_t surfaces = read ? count_records(m.data, m.size, "MANIFOLD_SURFACE_SHAPE_REPRESENTATION") : 0;
    int64_t shells = read ? count_records(m.data, m.size, "SHELL_BASED_SURFACE_MODEL") : 0;
    int64_t faces = finite_triangles(&p.mesh);
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
    jw_key(&j, "num_roots_expected");
    read ? jw_int(&j, expected) : jw_null(&j); /* the original counts what it could read */
    jw_key(&j, "num_roots_found");
    read ? jw_int(&j, p.n_roots) : jw_null(&j);
    put_roots(&j, &p);
    jw_kv_bool(&j, "has_mixed_geometry", read && expected > 0 && wires + surfaces + shells > 0);
    jw_kv_int(&j, "wireframe_representations", wires);
    jw_kv_int(&j, "surface_representations", surfaces);
    jw_kv_bool(&j, "stl_ok", p.mesh.n_triangles > 0);
    jw_kv_bool(&j, "trimesh_verified", faces > 0);
    jw_key(&j, "trimesh_faces");
    faces > 0 ? jw_int(&j, faces) : jw_null(&j);
    if (strict && (p.status == PART_OK || p.status == PART_NO_TRIANGLES))
        put_shape(&j, &p);
    jw_kv_real(&j, "duration_seconds", now_s() - start);
    put_lines(&j, messages);
    if (!ok) {
        jw_kv_str(&j, "child_stdout", messages);
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

/* What the original's report of a batch says of a file. */
struct batch_row {
    char *path, *rel, *reason, *status;
    bool renderable;
    int64_t faces;
};

struct checking {
    struct tool *tool;
    bool reference;
    struct file_list files;
    size_t total, renderable, timeout, crash, memory, error, with_reader_errors;
    double seconds;
    struct histogram *why;
    size_t n_why, cap_why;
    struct batch_row *row; /* with --report */
    size_t n_rows, cap_rows;
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

/* Counts a file by its line, be it of now or of an earlier start of this run, and takes the line. */
static void account(struct checking *c, const struct file_entry *f, json_t *line)
{
    const char *status = json_string_value(json_object_get(line, "status")), *reason = json_string_value(json_object_get(line, "reason"));
    const char *worker = json_string_value(json_object_get(line, "worker"));
    bool ok = json_is_true(json_object_get(line, "renderable"));
    c->total++;
    c->renderable += ok;
    c->timeout += status && !strcmp(status, "timeout");
    c->error += status && !strcmp(status, "error");
    c->crash += worker && !strncmp(worker, "crash:", 6);
    c->memory += worker && !strncmp(worker, "memory:", 7);
    c->with_reader_errors += json_is_true(json_object_get(line, "reader_errors_present"));
    c->seconds += json_number_value(json_object_get(line, "duration_seconds"));
    if (reason)
        count_reason(c, reason, c->reference);
    if (report_file) {
        ARRAY_GROW(c->row, c->cap_rows, c->n_rows + 1);
        c->row[c->n_rows++] = (struct batch_row){
            xstrdup(f->path), xstrdup(f->rel), reason ? xstrdup(reason) : NULL, xstrdup(status ? status : "unknown"), ok,
            json_integer_value(json_object_get(line, "trimesh_faces"))};
    }
    json_decref(line);
}

static int make_job(void *ctx, size_t i, struct buf *out)
{
    struct checking *c = ctx;
    const char *path = c->files.v[i].path;
    buf_add(out, path, strlen(path) + 1);
    json_t *earlier = tool_item_earlier(c->tool, path, path, NULL);
    if (earlier)
        account(c, &c->files.v[i], earlier);
    return earlier != NULL;
}

/* Fields of a file that gave none: no worker, or one that died. */
static void put_nothing(struct jw *j, const char *status, const char *reason, const char *worker, double seconds)
{
    static const char *const unknown[] = {"num_roots_expected", "num_roots_found"};
    jw_kv_bool(j, "renderable", false);
    jw_kv_str(j, "status", status);
    jw_kv_str(j, "reason", reason);
    for (size_t i = 0; i < ARRAY_LEN(unknown); i++) {
        jw_key(j, unknown[i]);
        jw_null(j);
    }
    jw_key(j, "roots");
    jw_array(j);
    jw_end(j);
    jw_kv_bool(j, "has_mixed_geometry", false);
    jw_kv_int(j, "wireframe_representations", 0);
    jw_kv_int(j, "surface_representations", 0);
    jw_kv_bool(j, "stl_ok", false);
    jw_kv_bool(j, "trimesh_verified", false);
    jw_key(j, "trimesh_faces");
    jw_null(j);
    jw_kv_real(j, "duration_seconds", seconds);
    jw_kv_bool(j, "reader_errors_present", false);
    jw_kv_str(j, "child_stdout", "");
    jw_kv_str(j, "child_stderr", "");
    if (worker)
        jw_kv_str(j, "worker", worker);
    jw_end(j);
}

static int take(void *ctx, const struct isolate_result *r)
{
    struct checking *c = ctx;
    const char *path = c->files.v[r->index].path, *reason = r->error;
    bool unread = r->end == ISOLATE_OK && r->code < 0;
    char text[4200];
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "file", path);
    if (r->code == ERR_OK) {
        reason = r->data[0] == '1' ? NULL : r->data + 1;
        const char *fields = r->data + 1 + strlen(r->data + 1) + 1;
        buf_putc(&line, ',');
        buf_add(&line, fields, (size_t)(r->data + r->n - fields));
    } else {
        if (c->reference && r->end == ISOLATE_TIMEOUT) {
            snprintf(text, sizeof text, "exceeded %gs", timeout);
            reason = text;
        } else if (c->reference) { /* what it says of a child that dies */
            reason = unread ? "file_not_found" : "no_json_output";
        } else if (unread) {
            snprintf(text, sizeof text, "cannot_read: %s", r->error);
            reason = text;
        }
        put_nothing(&j, r->end == ISOLATE_TIMEOUT ? "timeout" : "error", reason, r->error, r->seconds);
    }
    account(c, &c->files.v[r->index], json_loads(line.s, 0, NULL));
    if (reason && !unread)
        tool_print(c->tool, "%s: %s\n", path, reason);
    int rc = tool_item(c->tool, &(struct run_item){.item = path, .state = unread ? "failed" : "done", .reason = reason,
                                                   .seconds = r->seconds, .input = path, .result = line.s});
    buf_release(&line);
    return rc;
}

/* ---- which files ---- */

static bool has_suffix(const char *path)
{
    for (size_t i = 0; STEP_SUFFIXES[i]; i++) {
        size_t n = strlen(path), k = strlen(STEP_SUFFIXES[i]);
        if (n >= k && !strcasecmp(path + n - k, STEP_SUFFIXES[i]))
            return true;
    }
    return false;
}

/* The original has a verdict for a file that is none. */
static int no_file(struct checking *c, const char *path, const char *reason)
{
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "file", path);
    put_nothing(&j, "error", reason, NULL, 0);
    account(c, &(struct file_entry){.path = (char *)path, .rel = (char *)path_basename(path)}, json_loads(line.s, 0, NULL));
    int rc = tool_item(c->tool, &(struct run_item){.item = path, .state = "failed", .reason = reason, .result = line.s});
    buf_release(&line);
    return rc;
}

static int gather(struct checking *c, const char *arg)
{
    if (c->reference && !path_is_dir(arg)) {
        if (!has_suffix(arg))
            return no_file(c, arg, "invalid_extension");
        if (!path_exists(arg))
            return no_file(c, arg, "file_not_found");
    }
    size_t from = c->files.n, kept = from;
    int rc = score_files(&c->files, arg);
    if (rc < 0 || !c->reference || !path_is_dir(arg) || !strstr(arg, "STEP_generated"))
        return rc;
    for (size_t i = from; i < c->files.n; i++) { /* of such a folder it looks at the folders gen alone */
        struct file_entry *f = &c->files.v[i];
        char *folder = path_dirname(f->path);
        if (!strcmp(path_basename(folder), "gen")) {
            c->files.v[kept++] = *f;
        } else {
            free(f->path);
            free(f->rel);
        }
        free(folder);
    }
    c->files.n = kept;
    return kept > from ? ERR_OK : err_set(ERR_IO, "%s: no folder gen below it holds a .step or .stp file", arg);
}

/* ---- the original's report of a batch ---- */

static int by_folder(const void *a, const void *b)
{
    const struct batch_row *x = a, *y = b;
    size_t n = strcspn(x->rel, "/"), m = strcspn(y->rel, "/");
    int c = strncmp(x->rel, y->rel, n < m ? n : m);
    return c ? c : n != m ? (n < m ? -1 : 1) : strcmp(x->path, y->path);
}

/* A value of seconds since 1970 as Python's isoformat(). */
static void kv_time(struct jw *j, const char *key, double t)
{
    char text[48];
    time_t whole = (time_t)t;
    struct tm tm;
    if (localtime_r(&whole, &tm)) {
        size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
        snprintf(text + n, sizeof text - n, ".%06d", (int)((t - (double)whole) * 1e6));
        jw_kv_str(j, key, text);
    }
}

static int write_report(struct checking *c, double started)
{
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    int64_t min = 0, max = 0, sum = 0, with_faces = 0;
    j.indent = 2;
    for (size_t i = 0; i < c->n_rows; i++) {
        int64_t n = c->row[i].renderable ? c->row[i].faces : 0;
        if (n > 0) {
            min = !with_faces || n < min ? n : min;
            max = n > max ? n : max;
            sum += n;
            with_faces++;
        }
    }
    if (c->n_rows)
        qsort(c->row, c->n_rows, sizeof *c->row, by_folder);
    jw_object(&j);
    jw_key(&j, "batch_info");
    jw_object(&j);
    jw_kv_str(&j, "input_directory", c->tool->args.v[0]);
    kv_time(&j, "start_time", started);
    kv_time(&j, "end_time", wall_clock_s());
    jw_kv_real(&j, "total_duration_minutes", (wall_clock_s() - started) / 60);
    jw_kv_int(&j, "files_processed", (int64_t)c->total);
    jw_key(&j, "settings");
    jw_object(&j);
    jw_kv_real(&j, "timeout", timeout);
    jw_kv_bool(&j, "verify_trimesh_faces", true);
    jw_end(&j);
    jw_end(&j);
    jw_key(&j, "summary_statistics");
    jw_object(&j);
    jw_kv_int(&j, "total_files", (int64_t)c->total);
    jw_kv_int(&j, "renderable", (int64_t)c->renderable);
    jw_kv_int(&j, "not_renderable", (int64_t)(c->total - c->renderable));
    jw_kv_int(&j, "timeout", (int64_t)c->timeout);
    jw_kv_int(&j, "error", (int64_t)c->error);
    jw_kv_int(&j, "with_reader_errors", (int64_t)c->with_reader_errors);
    jw_kv_real(&j, "total_duration", c->seconds);
    jw_kv_real(&j, "avg_duration", c->total ? c->seconds / (double)c->total : 0);
    jw_key(&j, "failure_reasons");
    jw_object(&j);
    for (size_t i = 0; i < c->n_why; i++)
        jw_kv_int(&j, c->why[i].reason, (int64_t)c->why[i].n);
    jw_end(&j);
    jw_key(&j, "trimesh_stats");
    jw_object(&j);
    jw_kv_int(&j, "total_with_faces", with_faces);
    jw_kv_int(&j, "total_verified", (int64_t)c->renderable);
    static const char *const keys[] = {"min_faces", "max_faces", "avg_faces"};
    for (int k = 0; k < 3; k++) {
        jw_key(&j, keys[k]);
        if (!with_faces)
            jw_null(&j);
        else if (k < 2)
            jw_int(&j, k ? max : min);
        else
            jw_real(&j, (double)sum / (double)with_faces);
    }
    jw_end(&j);
    jw_end(&j);
    jw_key(&j, "subdirectory_statistics");
    jw_object(&j);
    for (size_t i = 0, next; i < c->n_rows; i = next) {
        size_t n = strcspn(c->row[i].rel, "/");
        int64_t good = 0, faces = 0;
        for (next = i; next < c->n_rows && strcspn(c->row[next].rel, "/") == n && !strncmp(c->row[next].rel, c->row[i].rel, n); next++) {
            good += c->row[next].renderable;
            faces += c->row[next].renderable && c->row[next].faces > 0;
        }
        char *folder = xstrndup(c->row[i].rel, n);
        jw_key(&j, folder);
        free(folder);
        jw_object(&j);
        jw_kv_int(&j, "total", (int64_t)(next - i));
        jw_kv_int(&j, "renderable", good);
        jw_kv_int(&j, "not_renderable", (int64_t)(next - i) - good);
        jw_kv_int(&j, "with_trimesh_faces", faces);
        jw_key(&j, "failed_files");
        jw_array(&j);
        for (size_t k = i; k < next; k++) {
            if (c->row[k].renderable)
                continue;
            jw_object(&j);
            jw_kv_str(&j, "file_path", c->row[k].path);
            jw_kv_str(&j, "relative_path", c->row[k].rel);
            jw_kv_str(&j, "reason", c->row[k].reason);
            jw_kv_str(&j, "status", c->row[k].status);
            jw_end(&j);
        }
        jw_end(&j);
        jw_end(&j);
    }
    jw_end(&j);
    jw_end(&j);
    buf_putc(&b, '\n');
    int rc = file_write(report_file, b.s, b.n, false);
    buf_release(&b);
    return rc == ERR_OK ? tool_artifact(c->tool, report_file, "report") : rc;
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
    struct checking c = {.tool = &t, .reference = !strcmp(mode, "reference")};
    struct isolate *pool = NULL;
    double started = wall_clock_s();
    int rc = report_file && !c.reference ? err_set(ERR_USAGE, "--report goes with --mode reference") : ERR_OK;
    if (rc == ERR_OK)
        rc = isolate_open(&(struct isolate_opts){.workers = t.threads, .seconds = timeout, .memory = (size_t)memory, .work = work}, &pool);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    for (size_t i = 0; i < t.args.n && rc == ERR_OK; i++)
        rc = gather(&c, t.args.v[i]);
    file_list_shard(&c.files, t.shard_i, t.shard_n);
    if (rc == ERR_OK)
        rc = isolate_run(pool, &(struct isolate_batch){.n = c.files.n, .what = "rendering", .unit = "files",
                                                       .job = make_job, .done = take, .ctx = &c});
    if (rc == ERR_OK)
        rc = summary(&c);
    if (rc == ERR_OK && report_file)
        rc = write_report(&c, started);
    isolate_close(pool);
    file_list_release(&c.files);
    for (size_t i = 0; i < c.n_why; i++)
        free(c.why[i].reason);
    for (size_t i = 0; i < c.n_rows; i++) {
        free(c.row[i].path);
        free(c.row[i].rel);
        free(c.row[i].reason);
        free(c.row[i].status);
    }
    free(c.why);
    free(c.row);
    return tool_finish(&t, rc);
}
