/* step-restore: annotated or generated STEP text back to plain files. */
#include "lib/step_prep.h"
#include "lib/step_reference.h"
#include "lib/tool.h"

static const char *out, *mode = "strict";

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "OUT", .help = "file or directory to write", .flags = OPT_REQUIRED},
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "strict: mends, and checks that the result is Part 21; reference: the original's bytes"},
    {0},
};

static const struct tool_spec spec = {
    .name = "step-restore",
    .args = "IN --out OUT",
    .summary = "Removes annotations and placeholders from STEP files and mends what models get wrong.",
    .details = "IN is a file or a directory, which is walked; its tree is mirrored in OUT.  The compact form of\n"
               "step-restructure is known by its instances without names.  A file that\n"
               "cannot be mended into valid Part 21 fails with the place, and is not written.\n\n"
               "  step-restore generated/ --out parts/\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
    .min_args = 1,
    .max_args = 1,
};

static int convert(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *text, struct buf *note)
{
    (void)ctx, (void)worker;
    struct step_restore_report r;
    int rc = step_restore(path, in->data, in->size, text, &r);
    if (rc < 0)
        return rc;
    if (r.guessed || r.dropped)
        log_warn("%s: %zu placeholders without a key: %zu told by their type, %zu removed", path, r.guessed + r.dropped,
                 r.guessed, r.dropped);
    struct jw j = JW_INIT(note);
    jw_object(&j);
    jw_kv_int(&j, "comments", (int64_t)r.comments);
    jw_kv_int(&j, "resolved", (int64_t)r.resolved);
    jw_kv_int(&j, "guessed", (int64_t)r.guessed);
    jw_kv_int(&j, "dropped", (int64_t)r.dropped);
    jw_kv_int(&j, "empty", (int64_t)r.empty);
    jw_kv_int(&j, "duplicates", (int64_t)r.duplicates);
    jw_kv_bool(&j, "header", r.header);
    jw_kv_bool(&j, "compact", r.compact);
    jw_end(&j);
    return ERR_OK;
}

static int convert_reference(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *text,
                             struct buf *note)
{
    (void)ctx, (void)worker, (void)path, (void)note;
    step_reference_restore(in->data, in->size, text);
    return ERR_OK;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    int rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = tool_map_files(&t, &(struct tool_map){.in = t.args.v[0], .out = out, .what = "restoring", .convert = strcmp(mode, "strict") ? convert_reference : convert});
    return tool_finish(&t, rc);
}
