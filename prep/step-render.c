/* step-render: pictures of STEP files. */
#include <stdlib.h>

#include "lib/isolate.h"
#include "lib/part.h"
#include "lib/render.h"
#include "lib/tool.h"
#include "shim/occt.h"

static const char *out;
static int64_t n_views = RENDER_VIEWS, size = 1200, memory = 4000000000;
static double timeout = 60, deflection = 0.0015;
static bool glb = true;

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "DIR", .help = "receives a folder for each part", .flags = OPT_REQUIRED},
    {.name = "views", .type = OPT_INT, .value = &n_views, .arg = "N", .min = 1, .max = RENDER_VIEWS,
     .help = "pictures of a part: oblique, front, back, left, right, top, bottom, oblique-back, oblique-below"},
    {.name = "size", .type = OPT_INT, .value = &size, .arg = "PIXELS", .help = "width and height", .min = RENDER_MIN_SIZE,
     .max = RENDER_MAX_SIZE},
    {.name = "glb", .type = OPT_FLAG, .value = &glb, .help = "write model.glb, for 3D viewers"},
    {.name = "deflection", .type = OPT_REAL, .value = &deflection, .arg = "X",
     .help = "triangles from the surface, as a share of the part's diagonal", .min = 1e-5, .max = 0.5},
    {.name = "timeout", .type = OPT_REAL, .value = &timeout, .arg = "S", .help = "seconds a part may take", .min = 0.01, .max = 86400},
    {.name = "memory", .type = OPT_INT, .value = &memory, .arg = "BYTES", .help = "memory a part may take", .min = 64e6, .max = 1e13},
    {0},
};

static const struct tool_spec spec = {
    .name = "step-render",
    .args = "IN --out DIR",
    .summary = "Draws STEP files: shaded views with edges, a contact sheet and a 3D preview, without a display.",
    .details = "IN is a file or a directory, which is walked.  Of IN/a/b.step come DIR/a/b/oblique.png, front.png and the\n"
               "other views, sheet.png with all of them, and model.glb.\n\n"
               "  step-render generated/ --out pictures/ --size 600\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
    .min_args = 1,
    .max_args = 1,
};

/* ---- in the worker: a result is files, each its name, a NUL, its length, its bytes ---- */

static void put_file(struct buf *to, const char *name, const struct buf *bytes)
{
    uint64_t n = bytes->n;
    buf_add(to, name, strlen(name) + 1);
    buf_add(to, &n, sizeof n);
    buf_add(to, bytes->s, bytes->n);
}

/* The views side by side, in as square a grid as can be, about `size` wide. */
static int draw_sheet(const struct render_mesh *m, struct buf *png)
{
    int across = n_views > 4 ? 3 : n_views > 1 ? 2 : 1, down = ((int)n_views + across - 1) / across, cell = (int)size / across;
    if (cell < RENDER_MIN_SIZE)
        cell = RENDER_MIN_SIZE;
    size_t row = (size_t)across * (size_t)cell * 3, all = row * (size_t)down * (size_t)cell;
    uint8_t *sheet = malloc(all), *view;
    if (!sheet)
        return err_set(ERR_NOMEM, "out of memory");
    memset(sheet, 255, all);
    int rc = ERR_OK;
    for (int i = 0; i < n_views && rc == ERR_OK; i++) {
        if ((rc = render_rgb(m, &render_views[i], cell, &view)) < 0)
            break;
        for (int y = 0; y < cell; y++)
            memcpy(sheet + (size_t)(i / across * cell + y) * row + (size_t)(i % across) * (size_t)cell * 3,
                   view + (size_t)y * (size_t)cell * 3, (size_t)cell * 3);
        free(view);
    }
    if (rc == ERR_OK)
        rc = render_encode_png(sheet, across * cell, down * cell, png);
    free(sheet);
    return rc;
}

static int draw(void *ctx, const char *path, size_t path_n, struct buf *to)
{
    (void)ctx;
    char *name = xstrndup(path, path_n);
    struct part_request q = {.flags = PART_MESH | PART_EDGES, .deflection = deflection, .relative = true, .angle = 0.2};
    struct part p;
    struct buf bytes = BUF_INIT;
    int rc = occ_load(name, NULL, 0, &q, &p);
    if (rc == ERR_OK && p.status != PART_OK)
        rc = err_set(ERR_FORMAT, "%s", p.reason);
    struct render_mesh m = {.points = p.mesh.points, .n_points = p.mesh.n_points, .triangles = p.mesh.triangles,
                            .n_triangles = p.mesh.n_triangles, .edge_points = p.mesh.edge_points,
                            .edge_starts = p.mesh.edge, .n_edges = p.mesh.n_edges};
    for (int i = 0; i < n_views && rc == ERR_OK; i++) {
        buf_clear(&bytes);
        rc = render_png_mem(&m, &render_views[i], (int)size, &bytes);
        char *file = xasprintf("%s.png", render_views[i].name);
        put_file(to, file, &bytes);
        free(file);
    }
    buf_clear(&bytes);
    if (rc == ERR_OK && (rc = draw_sheet(&m, &bytes)) == ERR_OK)
        put_file(to, "sheet.png", &bytes);
    buf_clear(&bytes);
    if (rc == ERR_OK && glb && (rc = render_glb_mem(&m, 0.001, &bytes)) == ERR_OK)
        put_file(to, "model.glb", &bytes);
    buf_release(&bytes);
    part_release(&p);
    free(name);
    return rc;
}

/* ---- in the tool ---- */

struct run {
    struct tool *t;
    struct file_list files;
};

/* OUT/a/b of a/b.step */
static char *folder_of(const char *rel)
{
    const char *dot = strrchr(path_basename(rel), '.');
    char *stem = xstrndup(rel, dot ? (size_t)(dot - rel) : strlen(rel)), *dir = path_join(out, stem);
    free(stem);
    return dir;
}

static int make_job(void *ctx, size_t index, struct buf *to)
{
    struct run *r = ctx;
    const struct file_entry *f = &r->files.v[index];
    char *dir = folder_of(f->rel), *sheet = path_join(dir, "sheet.png");
    bool current = tool_item_current(r->t, f->rel, f->path, sheet);
    free(sheet);
    free(dir);
    if (current)
        return 1;
    buf_puts(to, f->path);
    return 0;
}

/* The contact sheet comes last: where it stands, all stand. */
static int write_files(const char *dir, const char *s, size_t n)
{
    const char *sheet = NULL;
    uint64_t sheet_n = 0;
    int rc = ERR_OK;
    for (const char *end = s + n; s < end && rc == ERR_OK;) {
        const char *name = s;
        uint64_t bytes;
        s += strlen(s) + 1;
        memcpy(&bytes, s, sizeof bytes);
        s += sizeof bytes;
        if (strcmp(name, "sheet.png") == 0) {
            sheet = s;
            sheet_n = bytes;
        } else {
            char *path = path_join(dir, name);
            rc = file_write(path, s, bytes, false);
            free(path);
        }
        s += bytes;
    }
    if (rc == ERR_OK) {
        char *path = path_join(dir, "sheet.png");
        rc = file_write(path, sheet, sheet_n, false);
        free(path);
    }
    return rc;
}

static int take(void *ctx, const struct isolate_result *res)
{
    struct run *r = ctx;
    const struct file_entry *f = &r->files.v[res->index];
    struct run_item item = {.item = f->rel, .state = "failed", .reason = res->error, .seconds = res->seconds, .input = f->path};
    char *dir = folder_of(f->rel), *sheet = path_join(dir, "sheet.png");
    struct buf line = BUF_INIT;
    int rc = ERR_OK;
    if (res->code == ERR_OK && (rc = write_files(dir, res->data, res->n)) == ERR_OK) {
        item.state = "done";
        item.reason = NULL;
        item.output = sheet;
    }
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "file", f->path);
    jw_kv_str(&j, "status", item.state);
    jw_key(&j, "reason");
    jw_str(&j, item.reason);
    jw_key(&j, "folder");
    jw_str(&j, item.reason ? NULL : dir);
    jw_end(&j);
    item.result = line.s;
    if (rc == ERR_OK)
        rc = tool_item(r->t, &item);
    buf_release(&line);
    free(sheet);
    free(dir);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct run r = {.t = &t};
    struct isolate *workers = NULL;
    tool_start(&t, &spec, argc, argv);
    int rc = file_list_add(&r.files, t.args.v[0], STEP_SUFFIXES);
    if (rc == ERR_OK && r.files.n == 0)
        rc = err_set(ERR_IO, "%s: no .step or .stp file in it", t.args.v[0]);
    if (rc == ERR_OK) {
        file_list_shard(&r.files, t.shard_i, t.shard_n);
        rc = isolate_open(&(struct isolate_opts){.workers = t.threads, .seconds = timeout, .memory = (size_t)memory, .work = draw},
                          &workers);
    }
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = isolate_run(workers, &(struct isolate_batch){.n = r.files.n, .what = "drawing", .unit = "parts", .job = make_job,
                                                          .done = take, .ctx = &r});
    isolate_close(workers);
    file_list_release(&r.files);
    return tool_finish(&t, rc);
}
