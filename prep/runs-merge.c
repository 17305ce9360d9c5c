/* runs-merge: joins run databases, such as those of a job array's shards, into one.
 *
 * Every run of each source is copied with its items, metrics and artifacts.  A run that is in the
 * destination already (same key, host, process and start) is brought up to date, not doubled, so
 * merging again, while shards still work, is fine.  A source is read in one transaction: a
 * shard that writes meanwhile is seen as of one moment.  Sources are not changed. */
#include <sqlite3.h>
#include <stdlib.h>

#include "lib/tool.h"

static const char *into;

static struct opt options[] = {
    {.name = "into", .type = OPT_STR, .value = &into, .arg = "FILE", .flags = OPT_REQUIRED,
     .help = "database to add to; made if it is not there"},
    {0},
};

static const struct tool_spec spec = {
    .name = "runs-merge",
    .args = "DB... --into FILE",
    .summary = "Joins the run databases of shards into one.",
    .details = "Each shard of a job array had better write to a database of its own (--db runs/shard-3.db), on its\n"
               "machine's disk or not; this joins them, as often as one likes.\n"
               "\n"
               "  runs-merge runs/shard-*.db --into runs/runs.db\n",
    .options = options,
    .min_args = 1,
    .max_args = 100000,
};

/* Columns of runs, less id; those of the other tables, less run_id. */
#define RUN_COLUMNS "tool,key,label,argv,config,version,git_rev,host,pid,cwd,started,ended,heartbeat,attempts,state,exit_code,error"
static const char *const CHILDREN[][2] = {
    {"items", "item,state,reason,seconds,attempt,in_size,in_mtime_ns,output,out_size,result"},
    {"metrics", "step,name,value,time"},
    {"artifacts", "path,kind,bytes,sha256,created"},
};

struct merge {
    sqlite3 *sq;
    const char *path; /* the source */
    int64_t n_new, n_updated, n_items;
};

static int failed(const struct merge *m, const char *doing)
{
    return err_set(ERR_IO, "%s: %s: %s", m->path, doing, sqlite3_errmsg(m->sq));
}

static int exec(const struct merge *m, const char *sql)
{
    return sqlite3_exec(m->sq, sql, NULL, NULL, NULL) == SQLITE_OK ? ERR_OK : failed(m, "cannot merge");
}

/* The destination's run that is the source's run `from`; 0: none yet. */
static int find_run(const struct merge *m, int64_t from, int64_t *to)
{
    sqlite3_stmt *s;
    *to = 0;
    if (sqlite3_prepare_v2(m->sq,
                           "SELECT d.id FROM main.runs d JOIN src.runs s ON d.key=s.key AND d.host=s.host AND "
                           "d.started=s.started AND d.cwd=s.cwd WHERE s.id=?",
                           -1, &s, NULL) != SQLITE_OK)
        return failed(m, "cannot look up a run");
    sqlite3_bind_int64(s, 1, from);
    int step = sqlite3_step(s);
    if (step == SQLITE_ROW)
        *to = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return step == SQLITE_ROW || step == SQLITE_DONE ? ERR_OK : failed(m, "cannot look up a run");
}

static int copy_run(struct merge *m, int64_t from)
{
    int64_t to;
    char *sql;
    int rc = find_run(m, from, &to);
    if (rc < 0)
        return rc;
    if (to) {
        m->n_updated++;
        sql = xasprintf("UPDATE main.runs SET (" RUN_COLUMNS ")=(SELECT " RUN_COLUMNS " FROM src.runs WHERE id=%lld) "
                        "WHERE id=%lld AND heartbeat<=(SELECT heartbeat FROM src.runs WHERE id=%lld)",
                        (long long)from, (long long)to, (long long)from);
    } else {
        m->n_new++;
        sql = xasprintf("INSERT INTO main.runs(" RUN_COLUMNS ") SELECT " RUN_COLUMNS " FROM src.runs WHERE id=%lld",
                        (long long)from);
    }
    rc = exec(m, sql);
    free(sql);
    if (!to)
        to = sqlite3_last_insert_rowid(m->sq);
    for (size_t i = 0; i < ARRAY_LEN(CHILDREN) && rc == ERR_OK; i++) {
        sql = xasprintf("INSERT OR REPLACE INTO main.%s(run_id,%s) SELECT %lld,%s FROM src.%s WHERE run_id=%lld",
                        CHILDREN[i][0], CHILDREN[i][1], (long long)to, CHILDREN[i][1], CHILDREN[i][0], (long long)from);
        rc = exec(m, sql);
        free(sql);
        if (!i)
            m->n_items += sqlite3_changes(m->sq);
    }
    return rc;
}

static int copy_runs(struct merge *m)
{
    sqlite3_stmt *s;
    int64_t *ids = NULL;
    size_t n = 0, cap = 0;
    if (sqlite3_prepare_v2(m->sq, "SELECT id FROM src.runs ORDER BY id", -1, &s, NULL) != SQLITE_OK)
        return failed(m, "not a run database");
    int step;
    while ((step = sqlite3_step(s)) == SQLITE_ROW) {
        ARRAY_GROW(ids, cap, n + 1);
        ids[n++] = sqlite3_column_int64(s, 0);
    }
    sqlite3_finalize(s);
    int rc = step == SQLITE_DONE ? ERR_OK : failed(m, "cannot read");
    for (size_t i = 0; i < n && rc == ERR_OK; i++)
        rc = copy_run(m, ids[i]);
    free(ids);
    return rc;
}

/* One source, all or nothing. */
static int merge_one(struct rundb *db, const char *path, struct merge *m)
{
    struct rundb *check;
    sqlite3_stmt *s;
    *m = (struct merge){.sq = rundb_sqlite(db), .path = path};
    int rc = rundb_open_readonly(path, &check); /* version and kind, with their messages */
    if (rc < 0)
        return rc;
    rundb_close(check);
    if (sqlite3_prepare_v2(m->sq, "ATTACH ? AS src", -1, &s, NULL) != SQLITE_OK)
        return failed(m, "cannot open");
    sqlite3_bind_text(s, 1, path, -1, SQLITE_STATIC);
    int step = sqlite3_step(s);
    sqlite3_finalize(s);
    if (step != SQLITE_DONE)
        return failed(m, "cannot open");
    if ((rc = exec(m, "BEGIN IMMEDIATE")) == ERR_OK) {
        rc = copy_runs(m);
        if (rc == ERR_OK)
            rc = exec(m, "COMMIT");
        else
            sqlite3_exec(m->sq, "ROLLBACK", NULL, NULL, NULL);
    }
    sqlite3_exec(m->sq, "DETACH src", NULL, NULL, NULL);
    return rc;
}

static int run(struct tool *t)
{
    struct rundb *db = NULL;
    int64_t n_runs = 0, n_items = 0;
    int rc = ERR_OK;
    for (size_t i = 0; i < t->args.n && rc == ERR_OK; i++)
        if (path_same(t->args.v[i], into))
            rc = err_set(ERR_USAGE, "%s is both source and --into", into);
    if (rc == ERR_OK)
        rc = rundb_open(into, &db);
    if (rc == ERR_OK)
        rc = tool_begin(t);
    for (size_t i = 0; i < t->args.n && rc == ERR_OK && !stop_requested(); i++) {
        struct merge m;
        double start = now_s();
        int one = merge_one(db, t->args.v[i], &m);
        struct buf b = BUF_INIT;
        struct jw w = JW_INIT(&b);
        jw_object(&w);
        jw_kv_str(&w, "source", t->args.v[i]);
        jw_kv_int(&w, "new_runs", one < 0 ? 0 : m.n_new);
        jw_kv_int(&w, "updated_runs", one < 0 ? 0 : m.n_updated);
        jw_kv_int(&w, "items", one < 0 ? 0 : m.n_items);
        if (one < 0)
            jw_kv_str(&w, "reason", err_text());
        jw_end(&w);
        char *reason = one < 0 ? xstrdup(err_text()) : NULL;
        rc = tool_item(t, &(struct run_item){.item = t->args.v[i], .state = one < 0 ? "failed" : "done", .reason = reason,
                                             .seconds = now_s() - start, .input = t->args.v[i], .result = b.s});
        free(reason);
        buf_release(&b);
        if (one == ERR_OK) {
            n_runs += m.n_new + m.n_updated;
            n_items += m.n_items;
        }
    }
    if (rc == ERR_OK && stop_requested())
        rc = err_set(ERR_CANCELLED, "stopped");
    if (rc == ERR_OK)
        tool_print(t, "%lld runs with %lld items from %zu databases in %s\n", (long long)n_runs, (long long)n_items,
                   t->n_done, into);
    rundb_close(db);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    return tool_finish(&t, run(&t));
}
