#include "lib/tool.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const tool_names[] = {
    "abc-fetch",  "hub-fetch",     "step-round",     "step-restructure", "step-restore",  "step-render",
    "caption",    "synth",         "rag-pairs",      "token-filter",     "split",         "tokenizer-train",
    "runs-merge", "schema-table", "sft", "train-bench",           "merge-lora",     "generate",         "serve",         "complete-ratio",
    "chamfer",    "renderability", "entity-stats",   "eval-loss",        "geometry-reward", "report",
    "model", /* not a tool: a config's section about the base model, read by scripts/ */
    NULL,
};

static const char *config_file, *shard;
static const char *label = "", *db_path = "runs/runs.db";
static bool help, version, json, force, print_config;
static int64_t jobs;

static struct opt common[] = {
    {.name = "help", .letter = 'h', .type = OPT_FLAG, .value = &help, .help = "show this and exit", .flags = OPT_NO_KEY},
    {.name = "version", .type = OPT_FLAG, .value = &version, .help = "show the version and exit", .flags = OPT_NO_KEY},
    {.name = "json", .type = OPT_FLAG, .value = &json, .help = "results as JSON lines on stdout", .flags = OPT_NO_KEY},
    {.name = "db", .type = OPT_STR, .value = &db_path, .arg = "FILE", .help = "run database; 'none' records nothing",
     .flags = OPT_NO_KEY},
    {.name = "label", .type = OPT_STR, .value = &label, .arg = "TEXT", .help = "the row of the tables this run belongs to"},
    {.name = "config", .type = OPT_STR, .value = &config_file, .arg = "FILE", .help = "read options from FILE",
     .flags = OPT_NO_KEY},
    {.name = "print-config", .type = OPT_FLAG, .value = &print_config, .help = "show the resolved options and exit",
     .flags = OPT_NO_KEY},
    {.name = "force", .type = OPT_FLAG, .value = &force, .help = "redo what is done already", .flags = OPT_NO_KEY},
    {.name = "jobs", .letter = 'j', .type = OPT_INT, .value = &jobs, .arg = "N", .help = "threads (0: one a core)",
     .flags = OPT_NO_KEY, .min = 0, .max = 1024},
    {.name = "quiet", .letter = 'q', .type = OPT_FLAG, .value = &log_quiet, .help = "no notes and no progress bar",
     .flags = OPT_NO_KEY},
    {0},
};
static struct opt shard_option[] = {
    {.name = "shard", .type = OPT_STR, .value = &shard, .arg = "I/N", .help = "work on every N-th item, from the I-th"},
    {0},
};

/* The exit code, once what is on its way to standard output is there or cannot be. */
static int flushed(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    log_error("cannot write to standard output: %s", strerror(errno));
    return code == TOOL_OK ? TOOL_INPUT : code;
}

static _Noreturn void leave(int code)
{
    exit(flushed(code));
}

static _Noreturn void misuse(const struct tool_spec *spec)
{
    log_error("%s", err_text());
    fprintf(stderr, "usage: %s [options] %s\n", spec->name, spec->args);
    leave(TOOL_USAGE);
}

static _Noreturn void show_help(const struct tool_spec *spec)
{
    struct buf b = BUF_INIT;
    buf_printf(&b, "usage: %s [options] %s\n\n%s\n\n", spec->name, spec->args, spec->summary);
    if (spec->options && spec->options->name) {
        buf_puts(&b, "options:\n");
        opt_help(spec->options, &b);
        buf_putc(&b, '\n');
    }
    buf_puts(&b, "common options:\n");
    opt_help(common, &b);
    if (spec->flags & TOOL_SHARDS)
        opt_help(shard_option, &b);
    buf_puts(&b, "  -o KEY=VALUE                   set any option by its name\n");
    if (spec->details)
        buf_printf(&b, "\n%s%s", spec->details, spec->details[strlen(spec->details) - 1] == '\n' ? "" : "\n");
    buf_puts(&b, "\nexit status: 0 all well, 1 some items failed, 2 usage, 3 input or environment\n");
    fwrite(b.s, 1, b.n, stdout);
    leave(TOOL_OK);
}

static int parse_shard(struct tool *t)
{
    t->shard_i = t->shard_n = 1;
    if (!shard)
        return ERR_OK;
    char tail;
    if (sscanf(shard, "%d/%d%c", &t->shard_i, &t->shard_n, &tail) != 2 || t->shard_i < 1 || t->shard_i > t->shard_n)
        return err_set(ERR_USAGE, "--shard %s: I/N with 1 <= I <= N is due, as in 3/8", shard);
    return ERR_OK;
}

static char *argv_text;

/* The command line as a shell would take it. */
static char *quote_argv(int argc, char **argv)
{
    struct buf b = BUF_INIT;
    for (int i = 0; i < argc; i++) {
        if (i)
            buf_putc(&b, ' ');
        if (argv[i][0] && strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,:+%@") ==
                              strlen(argv[i])) {
            buf_puts(&b, argv[i]);
            continue;
        }
        buf_putc(&b, '\'');
        for (const char *p = argv[i]; *p; p++) {
            if (*p == '\'')
                buf_puts(&b, "'\\''");
            else
                buf_putc(&b, *p);
        }
        buf_putc(&b, '\'');
    }
    return buf_detach(&b);
}

void tool_start(struct tool *t, const struct tool_spec *spec, int argc, char **argv)
{
    *t = (struct tool){.spec = spec, .started = now_s()};
    log_init(spec->name);
    struct opt *tables[3] = {spec->options, common, spec->flags & TOOL_SHARDS ? shard_option : NULL};
    int rc = opt_parse(tables, 3, argc, argv, &t->args);
    if (help)
        show_help(spec);
    if (version) {
        printf("%s %s (%s)\n", spec->name, tool_version, tool_git_rev);
        leave(TOOL_OK);
    }
    if (rc == ERR_OK && config_file)
        rc = opt_config(tables, 3, config_file, spec->name, tool_names);
    if (rc == ERR_IO) { /* the config file cannot be read */
        log_error("%s", err_text());
        leave(TOOL_INPUT);
    }
    if (rc == ERR_OK && print_config) {
        struct buf b = BUF_INIT;
        for (int i = 0; i < 3; i++)
            opt_dump(tables[i], false, &b);
        fwrite(b.s, 1, b.n, stdout);
        leave(TOOL_OK);
    }
    if (rc == ERR_OK)
        rc = opt_check_required(tables, 3);
    if (rc == ERR_OK)
        rc = parse_shard(t);
    if (rc == ERR_OK && t->args.n < spec->min_args)
        rc = err_set(ERR_USAGE, "an argument is missing");
    if (rc == ERR_OK && t->args.n > spec->max_args)
        rc = err_set(ERR_USAGE, "'%s': one argument too many", t->args.v[spec->max_args]);
    if (rc < 0)
        misuse(spec);
    t->json = json;
    t->force = force;
    t->threads = jobs > 0 ? (int)jobs : pool_cores();
    t->label = label;
    t->db_path = db_path;
    argv_text = quote_argv(argc, argv);
    stop_install();
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is then an error of write(), as a full disk is */
}

int tool_begin(struct tool *t)
{
    t->begun = true;
    if (!strcmp(t->db_path, "none"))
        return ERR_OK;
    int rc = rundb_open(t->db_path, &t->db);
    if (rc < 0)
        return rc;
    struct buf config = BUF_INIT, key = BUF_INIT;
    struct opt *tables[3] = {t->spec->options, common, t->spec->flags & TOOL_SHARDS ? shard_option : NULL};
    char *cwd = getcwd(NULL, 0);
    buf_printf(&key, "%s %s in %s\n", t->spec->name, tool_version, cwd ? cwd : "");
    free(cwd);
    for (int i = 0; i < 3; i++) {
        opt_dump(tables[i], false, &config);
        opt_dump(tables[i], true, &key);
    }
    for (size_t i = 0; i < t->args.n; i++)
        buf_printf(&key, "arg %s\n", t->args.v[i]);
    /* Two independent 64-bit digests: a clash would merge two runs' records. */
    char digest[40];
    snprintf(digest, sizeof digest, "%016llx%016llx", (unsigned long long)fnv1a(FNV_INIT, key.s, key.n),
             (unsigned long long)fnv1a(fnv1a(0x9e3779b97f4a7c15u, "k", 1), key.s, key.n));
    rc = rundb_begin(t->db,
                     &(struct run_info){.tool = t->spec->name, .key = digest, .label = t->label, .argv = argv_text,
                                        .config = config.s, .version = tool_version, .git_rev = tool_git_rev,
                                        .keep_done = t->spec->flags & TOOL_KEEP_DONE, .fresh = force},
                     &t->resumed);
    buf_release(&config);
    buf_release(&key);
    if (rc < 0) {
        rundb_close(t->db);
        t->db = NULL;
    }
    return rc;
}

int tool_item(struct tool *t, const struct run_item *item)
{
    bool failed = !strcmp(item->state, "failed");
    if (failed)
        t->n_failed++;
    else if (!strcmp(item->state, "skipped"))
        t->n_skipped++;
    else
        t->n_done++;
    if (failed) {
        /* Most reasons name the file and place already. */
        const char *reason = item->reason ? item->reason : "failed", *named = strstr(reason, item->item);
        if (named && named[strlen(item->item)] == ':')
            log_warn("%s", reason);
        else
            log_warn("%s: %s", item->item, reason);
    }
    if (item->result && *item->result)
        tool_json_line(t, item->result);
    return t->db ? rundb_item(t->db, item) : ERR_OK;
}

bool tool_item_current(struct tool *t, const char *item, const char *input, const char *output)
{
    if (!t->db || !t->resumed || force || !rundb_item_current(t->db, item, input, output))
        return false;
    t->n_current++;
    if (json) {
        char *state, *result;
        rundb_item_get(t->db, item, &state, &result);
        if (*result)
            tool_json_line(t, result);
        free(state);
        free(result);
    }
    return true;
}

/* *text: as it stands in the database. */
static json_t *recorded(struct tool *t, const char *item, const char *input, const char *output, char **text)
{
    char *state;
    json_t *j = NULL;
    *text = NULL;
    if (!t->db || !t->resumed || force || !rundb_item_current(t->db, item, input, output))
        return NULL;
    rundb_item_get(t->db, item, &state, text);
    free(state);
    return json_read_mem(item, *text, strlen(*text), &j) == ERR_OK ? j : NULL;
}

json_t *tool_item_recorded(struct tool *t, const char *item, const char *input, const char *output)
{
    char *text;
    json_t *j = recorded(t, item, input, output, &text);
    free(text);
    return j;
}

json_t *tool_item_earlier(struct tool *t, const char *item, const char *input, const char *output)
{
    return tool_item_earlier_of(t, item, input, output, NULL, NULL);
}

json_t *tool_item_earlier_of(struct tool *t, const char *item, const char *input, const char *output, const char *key, const char *value)
{
    char *text;
    json_t *j = recorded(t, item, input, output, &text);
    const char *was = key ? json_string_value(json_object_get(j, key)) : NULL;
    if (j && key && (!was || strcmp(was, value))) {
        json_decref(j);
        j = NULL;
    }
    if (j) {
        t->n_current++;
        tool_json_line(t, text);
    }
    free(text);
    return j;
}

void tool_json_line(struct tool *t, const char *line)
{
    if (t->json)
        printf("%s\n", line);
}

void tool_print(struct tool *t, const char *fmt, ...)
{
    if (t->json)
        return;
    va_list ap;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
}

int tool_metric(struct tool *t, int64_t step, const char *name, double value)
{
    return t->db ? rundb_metric(t->db, step, name, value) : ERR_OK;
}

int tool_artifact(struct tool *t, const char *path, const char *kind)
{
    if (!t->db)
        return ERR_OK;
    char hex[65];
    int rc = path_is_dir(path) ? ERR_OK : sha256_file(path, hex);
    return rc < 0 ? rc : rundb_artifact(t->db, path, kind, path_is_dir(path) ? NULL : hex);
}

int tool_finish(struct tool *t, int rc)
{
    int code = rc == ERR_OK ? (t->n_failed ? TOOL_SOME_FAILED : TOOL_OK) : rc == ERR_USAGE ? TOOL_USAGE : TOOL_INPUT;
    char *error = rc < 0 ? xstrdup(err_text()) : NULL;
    if (!t->begun && rc < 0 && rc != ERR_USAGE && rc != ERR_CANCELLED && !(t->spec->flags & TOOL_READS))
        tool_begin(t); /* so that --status tells of it; if that fails too, the first error is the one to show */
    if (t->db) {
        const char *state = rc == ERR_OK ? "done" : rc == ERR_CANCELLED ? "cancelled" : "failed";
        char some[64] = "";
        if (rc == ERR_OK && t->n_failed)
            snprintf(some, sizeof some, "%zu of %zu items failed", t->n_failed, t->n_failed + t->n_done + t->n_current);
        if (rundb_finish(t->db, state, code, error ? error : some) < 0) {
            log_error("%s", err_text());
            code = TOOL_INPUT;
        }
        rundb_close(t->db);
        t->db = NULL;
    }
    if (error)
        log_error("%s%s", error, rc == ERR_CANCELLED ? "; the same command goes on from here" : "");
    free(error);
    return flushed(code);
}

/* ---- tool_map_files ---- */

struct mapping {
    struct tool *tool;
    const struct tool_map *m;
    struct file_list list;
    char **out; /* output path of each entry */
};

struct converted {
    bool hopeless; /* no other file can be written either */
    struct buf note;
    struct file_stamp in, out;
};

static void *map_one(void *ctx, size_t i, int worker, int *code)
{
    struct mapping *mp = ctx;
    const struct tool_map *m = mp->m;
    struct converted *r = xcalloc(1, sizeof *r);
    struct file_map in;
    buf_init(&r->note);
    *code = file_map(mp->list.v[i].path, m->max_bytes ? m->max_bytes : (size_t)2 << 30, &in);
    if (*code < 0)
        return r;
    r->in = in.stamp;
    struct buf out = BUF_INIT;
    *code = m->convert(m->ctx, worker, mp->list.v[i].path, &in, &out, &r->note);
    file_unmap(&in);
    if (*code == ERR_OK)
        r->hopeless = (*code = file_write(mp->out[i], out.s, out.n, false)) < 0 && file_write_hopeless();
    r->out = (struct file_stamp){.size = out.n, .known = *code == ERR_OK};
    buf_release(&out);
    return r;
}

static int map_done(void *ctx, const struct pool_item *it)
{
    struct mapping *mp = ctx;
    struct converted *r = it->result;
    const struct file_entry *e = &mp->list.v[it->index];
    if (r->hopeless) { /* one error, not one a file; the next start goes on from here */
        buf_release(&r->note);
        free(r);
        return err_set(it->code, "%s", it->error);
    }
    struct run_item item = {
        .item = e->rel,
        .state = it->code < 0 ? "failed" : "done",
        .reason = it->code < 0 ? it->error : NULL,
        .seconds = it->seconds,
        .input = e->path,
        .output = it->code < 0 ? NULL : mp->out[it->index],
        .input_stamp = r->in,
        .output_stamp = r->out,
    };
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "file", e->path);
    jw_kv_str(&j, "state", item.state);
    if (item.reason)
        jw_kv_str(&j, "reason", item.reason);
    else
        jw_kv_str(&j, "output", item.output);
    if (r->note.n) {
        jw_key(&j, "detail");
        jw_raw(&j, r->note.s);
    }
    jw_end(&j);
    item.result = line.s;
    int rc = tool_item(mp->tool, &item);
    buf_release(&line);
    buf_release(&r->note);
    free(r);
    return rc;
}

static bool map_current(void *ctx, size_t i)
{
    struct mapping *mp = ctx;
    return tool_item_current(mp->tool, mp->list.v[i].rel, mp->list.v[i].path, mp->out[i]);
}

static bool names_a_file(const char *out, const char *const *suffixes)
{
    for (; *suffixes; suffixes++)
        if (path_has_suffix(out, *suffixes))
            return !path_is_dir(out);
    return false;
}

/* Inputs are never written over; and an output folder inside the input folder is no input the next time. */
static int keep_apart(const struct tool_map *m, bool to_file, struct file_list *l)
{
    bool folder = path_is_dir(m->in);
    char *lone = folder || to_file ? NULL : path_join(m->out, path_basename(m->in));
    bool same = path_same(m->in, lone ? lone : m->out);
    free(lone);
    if (same)
        return err_set(ERR_USAGE, "--out %s: is the input, which would be overwritten; name another", m->out);
    char *in = realpath(m->in, NULL), *out = realpath(m->out, NULL);
    size_t n = in ? strlen(in) : 0, kept = 0;
    if (folder && in && out && !strncmp(in, out, n) && out[n] == '/') {
        char *inside = xasprintf("%s/", out + n + 1);
        for (size_t i = 0; i < l->n; i++) {
            if (strncmp(l->v[i].rel, inside, strlen(inside))) {
                l->v[kept++] = l->v[i];
                continue;
            }
            free(l->v[i].path);
            free(l->v[i].rel);
        }
        if (kept < l->n)
            log_note("%s: the %zu files in there are outputs, and not read", m->out, l->n - kept);
        l->n = kept;
        free(inside);
    }
    free(in);
    free(out);
    return ERR_OK;
}

int tool_map_files(struct tool *t, const struct tool_map *m)
{
    struct mapping mp = {.tool = t, .m = m};
    const char *const *suffixes = m->suffixes ? m->suffixes : STEP_SUFFIXES;
    bool to_file = !path_is_dir(m->in) && names_a_file(m->out, suffixes);
    int rc = file_list_add(&mp.list, m->in, suffixes);
    if (rc == ERR_OK && !mp.list.n)
        rc = err_set(ERR_IO, "%s: holds no file that ends in %s%s%s", m->in, suffixes[0], suffixes[1] ? " or " : "",
                     suffixes[1] ? suffixes[1] : "");
    if (rc == ERR_OK)
        rc = keep_apart(m, to_file, &mp.list);
    if (rc == ERR_OK && !to_file)
        rc = mkdir_p(m->out);
    if (rc < 0)
        goto out;
    file_list_shard(&mp.list, t->shard_i, t->shard_n);
    /* Buffers of a file's size come and go: to ask the system for each one anew took a tenth of the time. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mp.out = xcalloc(mp.list.n, sizeof *mp.out);
    for (size_t i = 0; i < mp.list.n; i++) {
        char *rel = m->rename ? m->rename(m->ctx, mp.list.v[i].rel) : xstrdup(mp.list.v[i].rel);
        mp.out[i] = to_file ? xstrdup(m->out) : path_join(m->out, rel);
        free(rel);
    }
    struct pool_job job = {.n = mp.list.n, .threads = t->threads, .what = m->what, .unit = "files", .work = map_one,
                           .done = map_done, .skip = map_current, .ctx = &mp};
    rc = pool_run(&job);
    if (rc == ERR_OK)
        log_note("%zu files%s, %zu failed%s", t->n_done + t->n_failed + t->n_current, t->n_current || t->n_failed ? "" : " done",
                 t->n_failed, t->n_current ? " (the rest were done already)" : "");
out:
    for (size_t i = 0; mp.out && i < mp.list.n; i++)
        free(mp.out[i]);
    free(mp.out);
    file_list_release(&mp.list);
    return rc;
}
