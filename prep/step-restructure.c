/* step-restructure: STEP files in depth-first order with structural comments. */
#include "lib/step_prep.h"
#include "lib/step_reference.h"
#include "lib/tool.h"

static const char *out, *mode = "strict", *order = "children-first";
static bool compact, relative, annotations = true, geometry_first;

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "OUT", .help = "file or directory to write", .flags = OPT_REQUIRED},
    {.name = "order", .type = OPT_STR, .value = &order, .arg = "ORDER", .choices = "children-first|parent-first|original",
     .help = "strict: what comes first; children-first has no forward reference but in cycles; original: the file's order"},
    {.name = "compact", .type = OPT_FLAG, .value = &compact,
     .help = "strict: without instance names, references as distances; step-restore undoes it"},
    {.name = "relative", .type = OPT_FLAG, .value = &relative,
     .help = "with --compact: points as differences to the point met before, where that tells more"},
    {.name = "geometry-first", .type = OPT_FLAG, .value = &geometry_first,
     .help = "strict: curves ahead of the vertices, surfaces ahead of the bounds that lie on them"},
    {.name = "annotations", .type = OPT_FLAG, .value = &annotations, .help = "strict: a comment ahead of each type of root"},
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "strict: every instance kept, valid Part 21; reference: the original's bytes"},
    {0},
};

static const struct tool_spec spec = {
    .name = "step-restructure",
    .args = "IN --out OUT",
    .summary = "Reorders STEP files depth first, renumbers their instances and marks the structure by comments.",
    .details = "IN is a file or a directory, which is walked; its tree is mirrored in OUT.\n"
               "step-restore undoes the comments.\n\n"
               "  step-restructure rounded/ --out dfs/ -j 8\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
    .min_args = 1,
    .max_args = 1,
};

/* Which references must point forward, since they close cycles (or data sections refer to each other): the first few by
 * name, all of them in the JSON line. */
static void warn_of_forward(const char *path, const struct step_forward *v, size_t n)
{
    struct buf b = BUF_INIT;
    for (size_t i = 0; i < n && i < 8; i++)
        buf_printf(&b, "%s#%llu to #%llu (#%llu to #%llu of the input)", i ? ", " : "", (unsigned long long)v[i].from,
                   (unsigned long long)v[i].to, (unsigned long long)v[i].old_from, (unsigned long long)v[i].old_to);
    if (n)
        log_warn("%s: %zu references close cycles and must point forward: %s%s", path, n, b.s, n > 8 ? ", ..." : "");
    buf_release(&b);
}

static int convert(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *text, struct buf *note)
{
    (void)ctx, (void)worker;
    struct step_restructure_report r;
    struct step_restructure_opts opts = {
        .order = !strcmp(order, "parent-first") ? STEP_PARENT_FIRST : !strcmp(order, "original") ? STEP_ORIGINAL : STEP_CHILDREN_FIRST,
        .compact = compact, .relative = relative, .bare = !annotations, .geometry_first = geometry_first};
    struct buf ahead = BUF_INIT;
    opts.forward = &ahead;
    int rc = step_restructure(path, in->data, in->size, &opts, text, &r);
    if (rc < 0) {
        buf_release(&ahead);
        return rc;
    }
    size_t n_ahead = ahead.n / sizeof(struct step_forward);
    warn_of_forward(path, (const struct step_forward *)ahead.s, n_ahead);
    if (r.cyclic && !n_ahead)
        log_warn("%s: %zu references close a cycle (the first: #%llu to #%llu of the input)", path, r.cyclic,
                 (unsigned long long)r.cycle[0], (unsigned long long)r.cycle[1]);
    if (r.dangling)
        log_warn("%s: %zu references to instances that are not there", path, r.dangling);
    if (r.skipped)
        log_warn("%s: %zu ANCHOR, REFERENCE or SIGNATURE sections are left out", path, r.skipped);
    struct jw j = JW_INIT(note);
    jw_object(&j);
    jw_kv_int(&j, "entities", (int64_t)r.entities);
    jw_kv_int(&j, "roots", (int64_t)r.roots);
    jw_kv_int(&j, "forward", (int64_t)r.forward);
    if (n_ahead) { /* [from, to] of the output, then of the input */
        jw_key(&j, "forward_references");
        jw_array(&j);
        for (size_t i = 0; i < n_ahead; i++) {
            const struct step_forward *a = (const struct step_forward *)ahead.s + i;
            jw_array(&j);
            jw_int(&j, (int64_t)a->from);
            jw_int(&j, (int64_t)a->to);
            jw_int(&j, (int64_t)a->old_from);
            jw_int(&j, (int64_t)a->old_to);
            jw_end(&j);
        }
        jw_end(&j);
    }
    buf_release(&ahead);
    jw_kv_int(&j, "cyclic", (int64_t)r.cyclic);
    jw_kv_int(&j, "dangling", (int64_t)r.dangling);
    jw_end(&j);
    return ERR_OK;
}

/* What the original's output lacks or gets wrong, in one line; nothing if all is well. */
static void warn_of_losses(const char *path, const struct step_reference_report *r)
{
    struct buf b = BUF_INIT;
    if (r->dropped)
        buf_printf(&b, "; of %zu instances %zu are lost", r->statements, r->dropped);
    if (r->faces)
        buf_printf(&b, ", %zu faces among them: the geometry is not whole", r->faces);
    if (r->aliased)
        buf_printf(&b, "; %zu references name another instance than they did", r->aliased);
    if (r->dangling)
        buf_printf(&b, "; %zu references name nothing", r->dangling);
    if (r->colours + r->duplicates)
        buf_printf(&b, "; not Part 21: %zu colours without a name, %zu numbers given twice", r->colours, r->duplicates);
    if (r->unresolved)
        buf_printf(&b, "; %zu placeholders will not be resolved", r->unresolved);
    if (b.n)
        log_warn("%s: %s", path, b.s + 2);
    buf_release(&b);
}

static int convert_reference(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *text,
                             struct buf *note)
{
    (void)ctx, (void)worker;
    struct step_reference_report r;
    int rc = step_reference_restructure(path, in->data, in->size, text, &r);
    if (rc < 0)
        return rc;
    warn_of_losses(path, &r);
    struct jw j = JW_INIT(note);
    jw_object(&j);
    jw_kv_int(&j, "entities", (int64_t)r.statements);
    jw_kv_int(&j, "dropped", (int64_t)r.dropped);
    jw_kv_int(&j, "faces_dropped", (int64_t)r.faces);
    jw_kv_int(&j, "dangling", (int64_t)r.dangling);
    jw_kv_int(&j, "aliased", (int64_t)r.aliased);
    jw_kv_int(&j, "colours", (int64_t)r.colours);
    jw_kv_int(&j, "duplicates", (int64_t)r.duplicates);
    jw_kv_int(&j, "unresolved", (int64_t)r.unresolved);
    jw_end(&j);
    return ERR_OK;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    int rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = tool_map_files(&t, &(struct tool_map){.in = t.args.v[0], .out = out, .what = "restructuring",
                                                   .convert = strcmp(mode, "strict") ? convert_reference : convert});
    return tool_finish(&t, rc);
}
