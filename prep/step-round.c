/* step-round: shorter reals in STEP files. */
#include "lib/step_prep.h"
#include "lib/step_reference.h"
#include "lib/tool.h"

static const char *out, *mode = "strict";
static int64_t digits = 6, significant = 1;
static double flush;

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "OUT", .help = "file or directory to write", .flags = OPT_REQUIRED},
    {.name = "digits", .type = OPT_INT, .value = &digits, .arg = "N", .help = "decimals to keep", .min = 0, .max = 17},
    {.name = "significant", .type = OPT_INT, .value = &significant, .arg = "N",
     .help = "strict: but at least N significant digits; 0 lets small values become 0.", .max = 17},
    {.name = "flush", .type = OPT_REAL, .value = &flush, .arg = "X", .help = "strict: values below X in size become 0.",
     .max = 1},
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "strict: the reals of the data alone; reference: as the original, text and header too"},
    {0},
};

static const struct tool_spec spec = {
    .name = "step-round",
    .args = "IN --out OUT",
    .summary = "Rounds the real numbers of STEP files to a few decimals, which shortens the text a model learns.",
    .details = "IN is a file or a directory, which is walked; its tree is mirrored in OUT.\n\n"
               "  step-round abc/ --out rounded/ -j 8\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
    .min_args = 1,
    .max_args = 1,
};

static int convert(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *text, struct buf *note)
{
    (void)ctx, (void)worker;
    struct step_round_opts opts = {.decimals = (int)digits, .significant = (int)significant, .flush = flush};
    struct step_round_report r;
    int rc = step_round(path, in->data, in->size, &opts, text, &r);
    if (rc < 0)
        return rc;
    if (r.decimals > opts.decimals)
        log_warn("%s: its unit is %g mm, so %d decimals are too coarse: %d are kept", path, r.unit_mm, opts.decimals,
                 r.decimals);
    struct jw j = JW_INIT(note);
    jw_object(&j);
    jw_kv_int(&j, "reals", (int64_t)r.reals);
    jw_kv_int(&j, "changed", (int64_t)r.changed);
    jw_kv_int(&j, "decimals", r.decimals);
    jw_kv_real(&j, "unit_mm", r.unit_mm);
    jw_end(&j);
    return ERR_OK;
}

static int convert_reference(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *text,
                             struct buf *note)
{
    (void)ctx, (void)worker, (void)path, (void)note;
    step_reference_round(in->data, in->size, (int)digits, text);
    return ERR_OK;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    int rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = tool_map_files(&t, &(struct tool_map){.in = t.args.v[0], .out = out, .what = "rounding", .convert = strcmp(mode, "strict") ? convert_reference : convert});
    return tool_finish(&t, rc);
}
