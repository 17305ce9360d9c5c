/* complete-ratio: how many STEP files are whole. */
#include <stdlib.h>

#include "lib/csv.h"
#include "lib/step.h"
#include "lib/step_reference.h"
#include "lib/step_score.h"
#include "lib/tool.h"

static const char *mode = "strict", *csv;

static struct opt options[] = {
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "strict: the text parses to its end; reference: the last line is END-ISO-10303-21;"},
    {.name = "csv", .type = OPT_STR, .value = &csv, .arg = "FILE", .help = "append the original's row ckpt_path,CR to FILE",
     .flags = OPT_NO_KEY},
    {0},
};

static const struct tool_spec spec = {
    .name = "complete-ratio",
    .args = "DIR|FILE...",
    .summary = "Counts the STEP files that are complete exchange structures.",
    .details = "Directories are walked.  With --mode reference a directory laid out as DIR/SAMPLE/gen/*.step\n"
               "counts the first file of each sample, and empty files not at all, as the original does.\n\n"
               "  complete-ratio --label 'SFT with RAG' runs/12/generated\n",
    .options = options,
    .flags = TOOL_SHARDS,
    .min_args = 1,
    .max_args = SIZE_MAX,
};

struct scoring {
    struct tool *tool;
    struct file_list files;
    bool reference;
    size_t total, complete;
};

struct score {
    bool complete, counted;
    char *reason; /* NULL: complete */
};

/* "NAME:12:4: what" less the name. */
static char *less_name(const char *error, const char *name)
{
    size_t n = strlen(name);
    bool named = !strncmp(error, name, n) && error[n] == ':';
    return xstrdup(named ? error + n + 1 + strspn(error + n + 1, " ") : error);
}

static void *score_one(void *ctx, size_t i, int worker, int *code)
{
    (void)worker;
    struct scoring *s = ctx;
    const char *path = s->files.v[i].path;
    struct score *r = xcalloc(1, sizeof *r);
    struct file_map m;
    *code = file_map(path, 0, &m);
    if (*code < 0)
        return r;
    r->counted = !(s->reference && !m.size);
    if (s->reference) {
        *code = step_reference_complete(path, m.data, m.size, &r->complete);
        if (*code == ERR_OK && !r->complete)
            r->reason = xstrdup(m.size ? "the last line is not END-ISO-10303-21;" : "empty: not counted");
    } else {
        struct step_file *f;
        int rc = step_parse(path, m.data, m.size, 0, &f);
        r->complete = rc == ERR_OK;
        if (!r->complete)
            r->reason = less_name(err_text(), path);
        step_free(f);
    }
    file_unmap(&m);
    return r;
}

static int score_done(void *ctx, const struct pool_item *it)
{
    struct scoring *s = ctx;
    struct score *r = it->result;
    const char *path = s->files.v[it->index].path;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    if (it->code == ERR_OK && r->counted) {
        s->total++;
        s->complete += r->complete;
    }
    const char *reason = it->code < 0 ? it->error : r->reason;
    jw_object(&j);
    jw_kv_str(&j, "file", path);
    jw_kv_bool(&j, "complete", r->complete);
    jw_kv_str(&j, "reason", reason);
    jw_end(&j);
    if (reason)
        tool_print(s->tool, "%s: %s\n", path, reason);
    int rc = tool_item(s->tool, &(struct run_item){
        .item = path, .state = it->code < 0 ? "failed" : r->counted ? "done" : "skipped", .reason = reason,
        .seconds = it->seconds, .input = path, .result = line.s});
    buf_release(&line);
    free(r->reason);
    free(r);
    return rc;
}

/* What an earlier start of this run found stands, and counts. */
static bool score_stands(void *ctx, size_t i)
{
    struct scoring *s = ctx;
    const char *path = s->files.v[i].path;
    json_t *was = tool_item_earlier(s->tool, path, path, NULL);
    if (!was)
        return false;
    s->total++;
    s->complete += json_is_true(json_object_get(was, "complete"));
    json_decref(was);
    return true;
}

/* Appends "LABEL,CR", ahead of it the header if the file is new. */
static int append_csv(const char *label, double ratio)
{
    struct buf b = BUF_INIT;
    struct file_map m = {.data = ""};
    char number[32];
    int rc = path_exists(csv) ? file_map(csv, (size_t)64 << 20, &m) : ERR_OK;
    if (rc == ERR_OK) {
        if (m.size)
            buf_add(&b, m.data, m.size);
        else
            buf_puts(&b, "ckpt_path,CR\n");
        csv_field(&b, label);
        buf_printf(&b, ",%s\n", real_repr(number, ratio));
        rc = file_write(csv, b.s, b.n, false);
    }
    file_unmap(&m);
    buf_release(&b);
    return rc;
}

/* Files of all arguments; of samples in the original's layout the first of each. */
static int gather(struct scoring *s)
{
    struct tool *t = s->tool;
    for (size_t i = 0; i < t->args.n; i++) {
        struct file_list lacking = {0};
        size_t from = s->files.n, kept = from;
        if (s->reference && path_is_dir(t->args.v[i]) && score_samples(&s->files, &lacking, t->args.v[i], "gen")) {
            for (size_t k = from; k < s->files.n; k++) {
                struct file_entry *e = &s->files.v[k], *last = kept > from ? &s->files.v[kept - 1] : NULL;
                size_t sample = strcspn(e->rel, "/");
                if (last && strcspn(last->rel, "/") == sample && !strncmp(last->rel, e->rel, sample)) {
                    free(e->path);
                    free(e->rel);
                } else {
                    s->files.v[kept++] = *e;
                }
            }
            s->files.n = kept;
            for (size_t k = 0; k < lacking.n; k++)
                tool_item(t, &(struct run_item){.item = lacking.v[k].path, .state = "failed", .reason = "no folder gen"});
            file_list_release(&lacking);
            continue;
        }
        file_list_release(&lacking);
        int rc = score_files(&s->files, t->args.v[i]);
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    struct scoring s = {.tool = &t, .reference = !strcmp(mode, "reference")};
    int rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = gather(&s);
    file_list_shard(&s.files, t.shard_i, t.shard_n);
    struct pool_job job = {.n = s.files.n, .threads = t.threads, .what = "checking", .unit = "files", .work = score_one,
                           .done = score_done, .skip = score_stands, .ctx = &s};
    if (rc == ERR_OK)
        rc = pool_run(&job);
    if (rc == ERR_OK) {
        double ratio = s.total ? (double)s.complete / (double)s.total : 0;
        struct buf line = BUF_INIT;
        struct jw j = JW_INIT(&line);
        jw_object(&j);
        jw_kv_int(&j, "total", (int64_t)s.total);
        jw_kv_int(&j, "complete", (int64_t)s.complete);
        jw_kv_real(&j, "ratio", ratio);
        jw_end(&j);
        tool_json_line(&t, line.s);
        buf_release(&line);
        tool_print(&t, "CR: %.4f (%zu of %zu)\n", ratio, s.complete, s.total);
        rc = tool_metric(&t, 0, "complete_ratio", ratio);
        if (rc == ERR_OK)
            rc = tool_metric(&t, 0, "total", (double)s.total);
        if (rc == ERR_OK && csv)
            rc = append_csv(*t.label ? t.label : t.args.v[0], ratio);
    }
    file_list_release(&s.files);
    return tool_finish(&t, rc);
}
