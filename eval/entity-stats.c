/* entity-stats: how many instances STEP files hold, and of what types. */
#include <math.h>
#include <stdlib.h>

#include "lib/csv.h"
#include "lib/step.h"
#include "lib/step_reference.h"
#include "lib/step_score.h"
#include "lib/tool.h"

static const char *mode = "strict", *subfolder, *csv;

static struct opt options[] = {
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "strict: true counts by type; reference: the largest id, as the original counts"},
    {.name = "subfolder", .type = OPT_STR, .value = &subfolder, .arg = "gen|gt", .choices = "gen|gt",
     .help = "take DIR/SAMPLE/gen (or gt) alone, the original's layout"},
    {.name = "csv", .type = OPT_STR, .value = &csv, .arg = "FILE", .help = "one row a file, in the original's columns",
     .flags = OPT_NO_KEY},
    {0},
};

static const struct tool_spec spec = {
    .name = "entity-stats",
    .args = "DIR|FILE...",
    .summary = "Counts the entity instances of STEP files.",
    .details = "A file that does not parse fails in strict mode, and counts 0 in reference mode if it\n"
               "cannot be read.  A complex instance counts once, under its parts joined by '+'.\n\n"
               "  entity-stats --json runs/12/generated\n",
    .options = options,
    .flags = TOOL_SHARDS,
    .min_args = 1,
    .max_args = SIZE_MAX,
};

/* Counts of types over files: name -> count. */
struct tally {
    const char *type; /* owned by the process: few names */
    size_t n;
};

struct stats {
    struct tool *tool;
    struct file_list files;
    bool reference;
    double *count; /* of each file; -1: failed */
};

struct counted {
    size_t entities;
    uint64_t max_id;
    struct buf by_type; /* JSON object */
};

static int more_first(const void *a, const void *b)
{
    const struct tally *x = a, *y = b;
    if (x->n != y->n)
        return x->n > y->n ? -1 : 1;
    return strcmp(x->type, y->type);
}

static void put_types(const struct step_file *f, struct buf *out)
{
    struct tally *v = xcalloc(f->n_types + 1, sizeof *v);
    for (size_t i = 0; i < f->n_types; i++)
        v[i].type = step_type(f, (uint32_t)i);
    for (size_t i = 0; i < f->n; i++)
        v[f->v[i].type].n++;
    qsort(v, f->n_types, sizeof *v, more_first);
    struct jw j = JW_INIT(out);
    jw_object(&j);
    for (size_t i = 0; i < f->n_types && v[i].n; i++) /* header records have types too */
        jw_kv_int(&j, v[i].type, (int64_t)v[i].n);
    jw_end(&j);
    free(v);
}

static void *count_one(void *ctx, size_t i, int worker, int *code)
{
    (void)worker;
    struct stats *s = ctx;
    const char *path = s->files.v[i].path;
    struct counted *r = xcalloc(1, sizeof *r);
    struct file_map m;
    struct step_file *f = NULL;
    buf_init(&r->by_type);
    *code = file_map(path, 0, &m);
    if (*code < 0)
        return r;
    int rc = step_parse(path, m.data, m.size, 0, &f);
    if (rc == ERR_OK) {
        r->entities = f->n;
        r->max_id = f->max_id;
        put_types(f, &r->by_type);
        step_free(f);
    }
    if (s->reference)
        r->entities = (size_t)(r->max_id = step_reference_max_id(m.data, m.size));
    else
        *code = rc;
    file_unmap(&m);
    return r;
}

static int count_done(void *ctx, const struct pool_item *it)
{
    struct stats *s = ctx;
    struct counted *r = it->result;
    const char *path = s->files.v[it->index].path;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    bool failed = it->code < 0 && !s->reference;
    s->count[it->index] = failed ? -1 : (double)r->entities;
    jw_object(&j);
    jw_kv_str(&j, "file", path);
    if (failed) {
        jw_kv_str(&j, "reason", it->error);
    } else {
        jw_kv_int(&j, "entities", (int64_t)r->entities);
        jw_kv_int(&j, "max_id", (int64_t)r->max_id);
        jw_key(&j, "by_type");
        jw_raw(&j, r->by_type.n ? r->by_type.s : "{}");
    }
    jw_end(&j);
    int rc = tool_item(s->tool, &(struct run_item){.item = path, .state = failed ? "failed" : "done",
                                                   .reason = failed ? it->error : NULL, .seconds = it->seconds,
                                                   .input = path, .result = line.s});
    buf_release(&line);
    buf_release(&r->by_type);
    free(r);
    return rc;
}

/* What an earlier start of this run counted stands. */
static bool count_stands(void *ctx, size_t i)
{
    struct stats *s = ctx;
    const char *path = s->files.v[i].path;
    json_t *was = tool_item_earlier(s->tool, path, path, NULL);
    if (!was)
        return false;
    s->count[i] = (double)json_integer_value(json_object_get(was, "entities"));
    json_decref(was);
    return true;
}

/* ---- the report ---- */

static const struct {
    const char *label;
    double below;
} classes[] = {{"<100", 100}, {"100-200", 200}, {"200-300", 300}, {"300-400", 400}, {"400-500", 500}, {">500", INFINITY}};

static size_t class_of(double count)
{
    size_t k = 0;
    while (count >= classes[k].below)
        k++;
    return k;
}

struct ranked {
    double count;
    size_t file;
};

static int less_first(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? -1 : 1;
    return (x->file > y->file) - (x->file < y->file);
}

static int summary(struct stats *s)
{
    struct ranked *v = xcalloc(s->files.n + 1, sizeof *v);
    size_t n = 0, in_class[ARRAY_LEN(classes)] = {0};
    double sum = 0;
    int rc = ERR_OK;
    for (size_t i = 0; i < s->files.n; i++)
        if (s->count[i] >= 0) {
            v[n++] = (struct ranked){s->count[i], i};
            sum += s->count[i];
            in_class[class_of(s->count[i])]++;
        }
    qsort(v, n, sizeof *v, less_first);
    double mean = n ? sum / (double)n : 0, median = n ? (v[(n - 1) / 2].count + v[n / 2].count) / 2 : 0;

    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_int(&j, "total", (int64_t)n);
    jw_kv_int(&j, "failed", (int64_t)(s->files.n - n));
    jw_kv_real(&j, "mean", n ? mean : NAN);
    jw_kv_real(&j, "median", n ? median : NAN);
    jw_kv_real(&j, "min", n ? v[0].count : NAN);
    jw_kv_real(&j, "max", n ? v[n - 1].count : NAN);
    jw_key(&j, "classes");
    jw_object(&j);
    for (size_t k = 0; k < ARRAY_LEN(classes); k++)
        jw_kv_int(&j, classes[k].label, (int64_t)in_class[k]);
    jw_end(&j);
    jw_end(&j);
    tool_json_line(s->tool, line.s);
    buf_release(&line);
    if (n) {
        tool_print(s->tool, "files: %zu\nmax: %.0f\nmin: %.0f\nmean: %.2f\nmedian: %.2f\n", n, v[n - 1].count, v[0].count,
                   mean, median);
        for (size_t k = 0; k < ARRAY_LEN(classes); k++)
            tool_print(s->tool, "%10s: %6zu files (%5.1f%%)\n", classes[k].label, in_class[k],
                       100 * (double)in_class[k] / (double)n);
        size_t some = n < 5 ? n : 5;
        tool_print(s->tool, "lowest:\n");
        for (size_t i = 0; i < some; i++)
            tool_print(s->tool, "  %s: %.0f\n", s->files.v[v[i].file].rel, v[i].count);
        tool_print(s->tool, "highest:\n");
        for (size_t i = n - some; i < n; i++)
            tool_print(s->tool, "  %s: %.0f\n", s->files.v[v[i].file].rel, v[i].count);
        rc = tool_metric(s->tool, 0, "entities_mean", mean);
        if (rc == ERR_OK)
            rc = tool_metric(s->tool, 0, "entities_median", median);
    }
    free(v);
    return rc;
}

/* parent_dir, subfolder, filename, filepath, entity_count, category; rows end in CRLF. */
static int write_csv(const struct stats *s)
{
    struct buf b = BUF_INIT;
    buf_puts(&b, "parent_dir,subfolder,filename,filepath,entity_count,category\r\n");
    for (size_t i = 0; i < s->files.n; i++) {
        if (s->count[i] < 0)
            continue;
        char *folder = path_dirname(s->files.v[i].path), *parent = path_dirname(folder);
        csv_field(&b, subfolder ? path_basename(parent) : path_basename(folder));
        buf_putc(&b, ',');
        csv_field(&b, subfolder ? subfolder : "");
        buf_putc(&b, ',');
        csv_field(&b, path_basename(s->files.v[i].path));
        buf_putc(&b, ',');
        csv_field(&b, s->files.v[i].path);
        buf_printf(&b, ",%.0f,%s\r\n", s->count[i], classes[class_of(s->count[i])].label);
        free(folder);
        free(parent);
    }
    int rc = file_write(csv, b.s, b.n, false);
    buf_release(&b);
    return rc;
}

static int gather(struct stats *s)
{
    struct tool *t = s->tool;
    for (size_t i = 0; i < t->args.n; i++) {
        struct file_list lacking = {0};
        int rc = ERR_OK;
        if (!subfolder)
            rc = score_files(&s->files, t->args.v[i]);
        else if (!path_is_dir(t->args.v[i]))
            rc = err_set(ERR_IO, "%s: --subfolder %s asks for a directory", t->args.v[i], subfolder);
        else if (!score_samples(&s->files, &lacking, t->args.v[i], subfolder))
            rc = err_set(ERR_IO, "%s: holds no folder SAMPLE/%s", t->args.v[i], subfolder);
        for (size_t k = 0; k < lacking.n; k++)
            tool_item(t, &(struct run_item){.item = lacking.v[k].path, .state = "skipped", .reason = "no such folder"});
        file_list_release(&lacking);
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    struct stats s = {.tool = &t, .reference = !strcmp(mode, "reference")};
    int rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = gather(&s);
    file_list_shard(&s.files, t.shard_i, t.shard_n);
    s.count = xcalloc(s.files.n + 1, sizeof *s.count);
    struct pool_job job = {.n = s.files.n, .threads = t.threads, .what = "counting", .unit = "files", .work = count_one,
                           .done = count_done, .skip = count_stands, .ctx = &s};
    if (rc == ERR_OK)
        rc = pool_run(&job);
    if (rc == ERR_OK)
        rc = summary(&s);
    if (rc == ERR_OK && csv)
        rc = write_csv(&s);
    free(s.count);
    file_list_release(&s.files);
    return tool_finish(&t, rc);
}
