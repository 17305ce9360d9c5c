/* schema-table: the table of entities that --grammar part21 allows, from STEP files. */
#include <stdlib.h>

#include "lib/schema.h"
#include "lib/tool.h"

static const char *out;
static struct opt_list merge;

static struct opt options[] = {
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "FILE", .help = "the table", .flags = OPT_REQUIRED},
    {.name = "merge", .type = OPT_LIST, .value = &merge, .arg = "FILE", .help = "add to these tables (repeatable)"},
    {0},
};

static const struct tool_spec spec = {
    .name = "schema-table",
    .args = "IN... --out FILE",
    .summary = "Learns which entities STEP files hold and with what parameters, for generate --grammar part21.",
    .details = "IN are files and directories, which are walked.  The table that is built in: scripts/schema-table.sh.\n\n"
               "  schema-table mine/ --merge lib/schema.tsv --out mine.tsv && generate --grammar part21 --schema mine.tsv ...\n",
    .options = options,
    .min_args = 1,
    .max_args = 1000,
};

struct learner {
    struct tool *t;
    struct schema *s;
    struct file_list files;
    size_t left_out;
};

struct parsed {
    struct file_map map;
    struct step_file *f;
};

static void *parse(void *ctx, size_t i, int worker, int *code)
{
    struct learner *l = ctx;
    struct parsed *p = xcalloc(1, sizeof *p);
    (void)worker;
    *code = file_map(l->files.v[i].path, (size_t)2 << 30, &p->map);
    if (*code == ERR_OK && (*code = step_parse(l->files.v[i].path, p->map.data, p->map.size, STEP_NO_HEADER, &p->f)) < 0)
        file_unmap(&p->map);
    return p;
}

static int learn(void *ctx, const struct pool_item *it)
{
    struct learner *l = ctx;
    struct parsed *p = it->result;
    const struct file_entry *e = &l->files.v[it->index];
    if (it->code == ERR_OK) {
        l->left_out += schema_learn(l->s, p->f);
        step_free(p->f);
        file_unmap(&p->map);
    }
    free(p);
    return tool_item(l->t, &(struct run_item){.item = e->path, .state = it->code < 0 ? "failed" : "done", .input = e->path,
                                              .reason = it->code < 0 ? it->error : NULL, .seconds = it->seconds});
}

int main(int argc, char **argv)
{
    struct tool t;
    struct learner l = {.t = &t, .s = schema_new()};
    struct buf text = BUF_INIT;
    tool_start(&t, &spec, argc, argv);
    int rc = ERR_OK;
    for (size_t i = 0; i < merge.n && rc == ERR_OK; i++) {
        struct file_map m;
        if ((rc = file_map(merge.v[i], 1 << 30, &m)) == ERR_OK) {
            rc = schema_read(l.s, merge.v[i], m.data, m.size);
            file_unmap(&m);
        }
    }
    for (size_t i = 0; i < t.args.n && rc == ERR_OK; i++)
        rc = file_list_add(&l.files, t.args.v[i], STEP_SUFFIXES);
    if (rc == ERR_OK && !l.files.n)
        rc = err_set(ERR_IO, "%s: no .step or .stp file in it", t.args.v[0]);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK) {
        struct pool_job job = {.n = l.files.n, .threads = t.threads, .what = "learning", .unit = "files", .work = parse,
                               .done = learn, .ctx = &l};
        rc = pool_run(&job);
    }
    if (rc == ERR_OK) {
        schema_write(l.s, &text);
        rc = file_write(out, text.s, text.n, false);
    }
    if (rc == ERR_OK) {
        size_t kinds[128] = {0};
        for (size_t i = 0; i < l.s->n; i++)
            kinds[(int)l.s->v[i].kind]++;
        if (l.left_out)
            log_warn("%zu instances are nested too deep or have too many parameters: left out", l.left_out);
        tool_print(&t, "%zu entities, %zu parts, %zu complex instances from %zu files: %s\n", kinds['s'], kinds['p'], kinds['c'],
                   t.n_done, out);
    }
    buf_release(&text);
    file_list_release(&l.files);
    schema_free(l.s);
    return tool_finish(&t, rc);
}
