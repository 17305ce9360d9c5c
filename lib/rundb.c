#include "lib/rundb.h"

#include <errno.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"

enum { SCHEMA_VERSION = 1 };

static const char SCHEMA[] =
    /* One tool with one configuration, however often it was started. */
    "CREATE TABLE IF NOT EXISTS runs("
    " id INTEGER PRIMARY KEY,"
    " tool TEXT NOT NULL,"           /* 'step-round' */
    " key TEXT NOT NULL,"            /* digest of tool, version and configuration */
    " label TEXT NOT NULL,"          /* the tables' row this belongs to, or '' */
    " argv TEXT NOT NULL,"           /* as typed, quoted for a shell (of the last start) */
    " config TEXT NOT NULL,"         /* resolved 'key = value' lines */
    " version TEXT NOT NULL, git_rev TEXT NOT NULL,"
    " host TEXT NOT NULL, pid INTEGER NOT NULL, cwd TEXT NOT NULL,"
    " started REAL NOT NULL,"        /* seconds since 1970, of the first start */
    " ended REAL,"                   /* NULL while running, or if killed */
    " heartbeat REAL NOT NULL,"      /* last sign of life */
    " attempts INTEGER NOT NULL,"    /* times it was started */
    /* A 'running' row whose process is gone was killed. */
    " state TEXT NOT NULL CHECK(state IN('running','done','failed','cancelled')),"
    " exit_code INTEGER,"
    " error TEXT);"
    "CREATE INDEX IF NOT EXISTS runs_key ON runs(key);"
    /* What the run worked on: a file, a record, a checkpoint, a chunk. */
    "CREATE TABLE IF NOT EXISTS items("
    " run_id INTEGER NOT NULL REFERENCES runs(id),"
    " item TEXT NOT NULL,"
    " state TEXT NOT NULL CHECK(state IN('done','failed','skipped')),"
    " reason TEXT,"
    " seconds REAL NOT NULL,"
    " attempt INTEGER NOT NULL,"     /* the start in which it was last worked on */
    " in_size INTEGER, in_mtime_ns INTEGER,"
    " output TEXT, out_size INTEGER,"
    " result TEXT,"                  /* the tool's JSON line for it */
    " PRIMARY KEY(run_id, item)) WITHOUT ROWID;"
    /* Curves and totals: loss by step, CR, RR, MSCD, tokens/s. */
    "CREATE TABLE IF NOT EXISTS metrics("
    " run_id INTEGER NOT NULL REFERENCES runs(id),"
    " step INTEGER NOT NULL,"        /* 0 for a total */
    " name TEXT NOT NULL,"
    " value REAL,"                   /* NULL: not a finite number */
    " time REAL NOT NULL,"
    " PRIMARY KEY(run_id, name, step)) WITHOUT ROWID;"
    /* Files that matter: adapters, checkpoints, tables, reports. */
    "CREATE TABLE IF NOT EXISTS artifacts("
    " run_id INTEGER NOT NULL REFERENCES runs(id),"
    " path TEXT NOT NULL,"
    " kind TEXT NOT NULL,"
    " bytes INTEGER, sha256 TEXT,"
    " created REAL NOT NULL,"
    " PRIMARY KEY(run_id, path)) WITHOUT ROWID;";

enum { PUT_ITEM, PUT_METRIC, PUT_ARTIFACT, GET_ITEM, BEAT, N_STMT };

static const char *const SQL[N_STMT] = {
    [PUT_ITEM] = "INSERT OR REPLACE INTO items VALUES(?,?,?,?,?,?,?,?,?,?,?)",
    [PUT_METRIC] = "INSERT OR REPLACE INTO metrics VALUES(?,?,?,?,?)",
    [PUT_ARTIFACT] = "INSERT OR REPLACE INTO artifacts VALUES(?,?,?,?,?,?)",
    [GET_ITEM] = "SELECT state,in_size,in_mtime_ns,out_size,result FROM items WHERE run_id=? AND item=?",
    [BEAT] = "UPDATE runs SET heartbeat=? WHERE id=?",
};

/* A row waiting to be written: its statement and parameters. */
struct pending {
    int stmt, n;
    struct value {
        enum { NUL, INT, REAL, TEXT } type;
        int64_t i;
        double d;
        char *s;
    } v[11];
};

struct rundb {
    sqlite3 *sq;
    char *path;
    int version; /* of the schema that was found */
    sqlite3_stmt *stmt[N_STMT];
    int64_t run;
    int attempt;
    struct pending *queue;
    size_t n_queue, cap_queue;
    double last_flush;
};

static int sq_err(struct rundb *db, const char *doing)
{
    return err_set(ERR_IO, "%s: %s: %s", db->path, doing, sqlite3_errmsg(db->sq));
}

static int exec(struct rundb *db, const char *sql)
{
    return sqlite3_exec(db->sq, sql, NULL, NULL, NULL) == SQLITE_OK ? ERR_OK : sq_err(db, "database");
}

/* Switching to WAL needs the file for itself and does not wait for it, whatever the
 * busy timeout: two tools that start on a new database at once would collide. */
static int set_wal(struct rundb *db)
{
    int sq = SQLITE_BUSY;
    for (int tries = 0; tries < 200 && (sq == SQLITE_BUSY || sq == SQLITE_LOCKED); tries++) {
        if (tries)
            usleep(20000);
        sq = sqlite3_exec(db->sq, "PRAGMA journal_mode=WAL", NULL, NULL, NULL);
    }
    return sq == SQLITE_OK ? ERR_OK : sq_err(db, "database");
}

static int open_at(const char *path, int flags, struct rundb **out)
{
    struct rundb *db = xcalloc(1, sizeof *db);
    *out = NULL;
    db->path = xstrdup(path);
    int rc = ERR_OK;
    if (sqlite3_open_v2(path, &db->sq, flags, NULL) != SQLITE_OK) {
        rc = sq_err(db, "cannot open the run database");
        goto fail;
    }
    sqlite3_busy_timeout(db->sq, 30000);
    sqlite3_stmt *s = NULL;
    if (sqlite3_prepare_v2(db->sq, "PRAGMA user_version", -1, &s, NULL) != SQLITE_OK || sqlite3_step(s) != SQLITE_ROW) {
        rc = err_set(ERR_FORMAT, "%s: not a run database (%s); name another with --db", path, sqlite3_errmsg(db->sq));
        sqlite3_finalize(s);
        goto fail;
    }
    int version = db->version = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    if (version > SCHEMA_VERSION) {
        rc = err_set(ERR_FORMAT, "%s: made by a newer version of this program (schema %d, this one knows %d)", path,
                     version, SCHEMA_VERSION);
        goto fail;
    }
    *out = db;
    return ERR_OK;
fail:
    rundb_close(db);
    return rc;
}

/* Makes the tables of a new database: while nothing is in it, nothing needs to wait for the disk. */
static int set_up(struct rundb *db)
{
    char set[64];
    snprintf(set, sizeof set, "PRAGMA user_version=%d; COMMIT", SCHEMA_VERSION);
    int rc = exec(db, "PRAGMA synchronous=OFF");
    if (rc == ERR_OK)
        rc = set_wal(db);
    if (rc == ERR_OK)
        rc = exec(db, "BEGIN IMMEDIATE");
    if (rc == ERR_OK)
        rc = exec(db, SCHEMA);
    return rc == ERR_OK ? exec(db, set) : rc;
}

int rundb_open(const char *path, struct rundb **out)
{
    char *dir = path_dirname(path);
    int rc = mkdir_p(dir);
    free(dir);
    if (rc < 0)
        return rc;
    if ((rc = open_at(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, out)) < 0)
        return rc;
    struct rundb *db = *out;
    if (db->version != SCHEMA_VERSION)
        rc = set_up(db);
    if (rc == ERR_OK)
        rc = exec(db, "PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON");
    if (rc < 0) {
        rundb_close(db);
        *out = NULL;
    }
    return rc;
}

int rundb_open_readonly(const char *path, struct rundb **out)
{
    *out = NULL;
    if (!path_exists(path))
        return err_set(ERR_IO, "%s: no run database here yet; run a tool first, or name one with --db", path);
    return open_at(path, SQLITE_OPEN_READWRITE, out); /* WAL readers write the shared-memory file */
}

void rundb_close(struct rundb *db)
{
    if (!db)
        return;
    rundb_flush(db);
    for (int i = 0; i < N_STMT; i++)
        sqlite3_finalize(db->stmt[i]);
    sqlite3_close(db->sq);
    free(db->queue);
    free(db->path);
    free(db);
}

struct sqlite3 *rundb_sqlite(struct rundb *db)
{
    return db->sq;
}

static sqlite3_stmt *prepared(struct rundb *db, int i)
{
    if (!db->stmt[i])
        sqlite3_prepare_v3(db->sq, SQL[i], -1, SQLITE_PREPARE_PERSISTENT, &db->stmt[i], NULL);
    return db->stmt[i];
}

static void bind(sqlite3_stmt *s, int at, const struct value *v)
{
    switch (v->type) {
    case NUL: sqlite3_bind_null(s, at); break;
    case INT: sqlite3_bind_int64(s, at, v->i); break;
    case REAL: sqlite3_bind_double(s, at, v->d); break; /* NaN binds as NULL */
    case TEXT: sqlite3_bind_text(s, at, v->s, -1, SQLITE_STATIC); break;
    }
}

static struct value vint(int64_t i) { return (struct value){.type = INT, .i = i}; }
static struct value vreal(double d) { return (struct value){.type = REAL, .d = d}; }
static struct value vtext(const char *s)
{
    return s ? (struct value){.type = TEXT, .s = xstrdup(s)} : (struct value){.type = NUL};
}

int rundb_flush(struct rundb *db)
{
    if (!db->n_queue)
        return ERR_OK;
    int rc = exec(db, "BEGIN IMMEDIATE");
    for (size_t i = 0; i < db->n_queue; i++) {
        struct pending *p = &db->queue[i];
        sqlite3_stmt *s = rc == ERR_OK ? prepared(db, p->stmt) : NULL;
        for (int k = 0; s && k < p->n; k++)
            bind(s, k + 1, &p->v[k]);
        if (rc == ERR_OK && (!s || sqlite3_step(s) != SQLITE_DONE))
            rc = sq_err(db, "cannot record");
        if (s) {
            sqlite3_reset(s);
            sqlite3_clear_bindings(s);
        }
        for (int k = 0; k < p->n; k++)
            if (p->v[k].type == TEXT)
                free(p->v[k].s);
    }
    db->n_queue = 0;
    sqlite3_stmt *beat = rc == ERR_OK && db->run ? prepared(db, BEAT) : NULL;
    if (beat) {
        sqlite3_bind_double(beat, 1, wall_clock_s());
        sqlite3_bind_int64(beat, 2, db->run);
        sqlite3_step(beat);
        sqlite3_reset(beat);
    }
    if (rc == ERR_OK)
        rc = exec(db, "COMMIT");
    if (rc < 0 && !sqlite3_get_autocommit(db->sq))
        sqlite3_exec(db->sq, "ROLLBACK", NULL, NULL, NULL);
    db->last_flush = now_s();
    return rc;
}

static int put(struct rundb *db, const struct pending *p)
{
    ARRAY_GROW(db->queue, db->cap_queue, db->n_queue + 1);
    db->queue[db->n_queue++] = *p;
    return now_s() - db->last_flush > 0.1 ? rundb_flush(db) : ERR_OK;
}

bool rundb_alive(const char *tool, const char *host, int64_t pid, double heartbeat)
{
    char my_host[256] = "", path[64], exe[4096], self[4096];
    gethostname(my_host, sizeof my_host - 1);
    if (strcmp(host, my_host))
        return wall_clock_s() - heartbeat < 60;
    if (pid == getpid() || (kill((pid_t)pid, 0) < 0 && errno == ESRCH))
        return false;
    /* The pid may be another program's by now: the name must fit. */
    snprintf(path, sizeof path, "/proc/%lld/exe", (long long)pid);
    ssize_t n = readlink(path, exe, sizeof exe - 1), m = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || m <= 0)
        return errno != ENOENT; /* a dead process that nobody has waited for has no program */
    exe[n] = self[m] = 0;
    char *gone = strstr(exe, " (deleted)"); /* built anew since it started */
    if (gone)
        *gone = 0;
    return !strcmp(path_basename(exe), tool) || !strcmp(path_basename(exe), path_basename(self));
}

int rundb_begin(struct rundb *db, const struct run_info *info, bool *resumed)
{
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    char *cwd = getcwd(NULL, 0);
    sqlite3_stmt *s = NULL;
    int rc = exec(db, "BEGIN IMMEDIATE"); /* two starts of the same command must not both begin */
    double now = wall_clock_s();

    *resumed = false;
    db->run = 0;
    db->attempt = 1;
    if (rc < 0)
        goto out;
    sqlite3_prepare_v2(db->sq, "SELECT id,state,host,pid,heartbeat,attempts FROM runs WHERE key=? ORDER BY id DESC LIMIT 1",
                       -1, &s, NULL);
    sqlite3_bind_text(s, 1, info->key, -1, SQLITE_STATIC);
    if (sqlite3_step(s) == SQLITE_ROW) {
        int64_t id = sqlite3_column_int64(s, 0);
        const char *state = (const char *)sqlite3_column_text(s, 1);
        int pid = sqlite3_column_int(s, 3);
        if (!strcmp(state, "running") &&
            rundb_alive(info->tool, (const char *)sqlite3_column_text(s, 2), pid, sqlite3_column_double(s, 4))) {
            rc = err_set(ERR_USAGE, "the same command is running already (run %lld, process %d on %s)", (long long)id, pid,
                         (const char *)sqlite3_column_text(s, 2));
        } else if (strcmp(state, "done") || info->keep_done) {
            db->run = id;
            db->attempt = sqlite3_column_int(s, 5) + 1;
            *resumed = true;
        }
    }
    sqlite3_finalize(s);
    s = NULL;
    if (rc < 0)
        goto out;
    if (*resumed && info->fresh) {
        sqlite3_prepare_v2(db->sq, "DELETE FROM items WHERE run_id=?", -1, &s, NULL);
        sqlite3_bind_int64(s, 1, db->run);
        sqlite3_step(s);
        sqlite3_finalize(s);
        s = NULL;
    }
    sqlite3_prepare_v2(db->sq,
                       *resumed ? "UPDATE runs SET tool=?,key=?,label=?,argv=?,config=?,version=?,git_rev=?,host=?,pid=?,cwd=?,"
                                  "heartbeat=?,attempts=?,state='running',ended=NULL,exit_code=NULL,error=NULL WHERE id=?"
                                : "INSERT INTO runs(tool,key,label,argv,config,version,git_rev,host,pid,cwd,heartbeat,attempts,"
                                  "state,started) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,'running',?)",
                       -1, &s, NULL);
    const char *const text[] = {info->tool, info->key,     info->label,   info->argv,
                                info->config, info->version, info->git_rev, host};
    for (int i = 0; i < (int)ARRAY_LEN(text); i++)
        sqlite3_bind_text(s, i + 1, text[i] ? text[i] : "", -1, SQLITE_STATIC);
    sqlite3_bind_int(s, 9, (int)getpid());
    sqlite3_bind_text(s, 10, cwd ? cwd : "", -1, SQLITE_STATIC);
    sqlite3_bind_double(s, 11, now);
    sqlite3_bind_int(s, 12, db->attempt);
    if (*resumed)
        sqlite3_bind_int64(s, 13, db->run);
    else
        sqlite3_bind_double(s, 13, now);
    if (sqlite3_step(s) != SQLITE_DONE)
        rc = sq_err(db, "cannot record the run");
    sqlite3_finalize(s);
    if (!*resumed)
        db->run = sqlite3_last_insert_rowid(db->sq);
    if (rc == ERR_OK)
        rc = exec(db, "COMMIT");
out:
    if (rc < 0 && !sqlite3_get_autocommit(db->sq))
        sqlite3_exec(db->sq, "ROLLBACK", NULL, NULL, NULL);
    free(cwd);
    return rc;
}

int rundb_finish(struct rundb *db, const char *state, int exit_code, const char *error)
{
    int rc = rundb_flush(db);
    sqlite3_stmt *s = NULL;
    sqlite3_prepare_v2(db->sq, "UPDATE runs SET state=?,exit_code=?,error=?,ended=?,heartbeat=? WHERE id=?", -1, &s, NULL);
    sqlite3_bind_text(s, 1, state, -1, SQLITE_STATIC);
    sqlite3_bind_int(s, 2, exit_code);
    if (error && *error)
        sqlite3_bind_text(s, 3, error, -1, SQLITE_STATIC);
    sqlite3_bind_double(s, 4, wall_clock_s());
    sqlite3_bind_double(s, 5, wall_clock_s());
    sqlite3_bind_int64(s, 6, db->run);
    if (sqlite3_step(s) != SQLITE_DONE && rc == ERR_OK)
        rc = sq_err(db, "cannot record the run's end");
    sqlite3_finalize(s);
    return rc;
}

/* Size and time of an item's input, or of all that it names, added up. */
static bool input_stamp(const char *paths, uint64_t *size, int64_t *mtime)
{
    bool ok = true;
    *size = 0;
    *mtime = 0;
    for (const char *p = paths; ok;) {
        size_t n = strcspn(p, "\n");
        char *path = xstrndup(p, n);
        uint64_t one;
        int64_t when;
        ok = file_stamp(path, &one, &when) == ERR_OK;
        free(path);
        if (ok) {
            *size += one;
            *mtime = (int64_t)((uint64_t)*mtime + (uint64_t)when);
        }
        if (!p[n])
            break;
        p += n + 1;
    }
    return ok;
}

int rundb_item(struct rundb *db, const struct run_item *it)
{
    struct pending p = {.stmt = PUT_ITEM, .n = 11};
    uint64_t size;
    int64_t mtime;
    p.v[0] = vint(db->run);
    p.v[1] = vtext(it->item);
    p.v[2] = vtext(it->state);
    p.v[3] = vtext(it->reason);
    p.v[4] = vreal(it->seconds);
    p.v[5] = vint(db->attempt);
    if (it->input_stamp.known) {
        p.v[6] = vint((int64_t)it->input_stamp.size);
        p.v[7] = vint(it->input_stamp.mtime_ns);
    } else if (it->input && input_stamp(it->input, &size, &mtime)) {
        p.v[6] = vint((int64_t)size);
        p.v[7] = vint(mtime);
    }
    p.v[8] = vtext(it->output);
    if (it->output_stamp.known)
        p.v[9] = vint((int64_t)it->output_stamp.size);
    else if (it->output && file_stamp(it->output, &size, &mtime) == ERR_OK)
        p.v[9] = vint((int64_t)size);
    p.v[10] = vtext(it->result);
    return put(db, &p);
}

static sqlite3_stmt *item_row(struct rundb *db, const char *item)
{
    /* What is queued is not in the table yet; callers ask about earlier items rarely. */
    rundb_flush(db);
    sqlite3_stmt *s = prepared(db, GET_ITEM);
    if (!s)
        return NULL;
    sqlite3_bind_int64(s, 1, db->run);
    sqlite3_bind_text(s, 2, item, -1, SQLITE_TRANSIENT);
    if (sqlite3_step(s) == SQLITE_ROW)
        return s;
    sqlite3_reset(s);
    return NULL;
}

bool rundb_item_current(struct rundb *db, const char *item, const char *input, const char *output)
{
    sqlite3_stmt *s = item_row(db, item);
    uint64_t size;
    int64_t mtime;
    if (!s)
        return false;
    bool ok = !strcmp((const char *)sqlite3_column_text(s, 0), "done");
    if (ok && input)
        ok = input_stamp(input, &size, &mtime) && sqlite3_column_type(s, 1) == SQLITE_INTEGER &&
             (int64_t)size == sqlite3_column_int64(s, 1) && mtime == sqlite3_column_int64(s, 2);
    if (ok && output)
        ok = file_stamp(output, &size, &mtime) == ERR_OK && sqlite3_column_type(s, 3) == SQLITE_INTEGER &&
             (int64_t)size == sqlite3_column_int64(s, 3);
    sqlite3_reset(s);
    return ok;
}

int rundb_item_get(struct rundb *db, const char *item, char **state, char **result)
{
    sqlite3_stmt *s = item_row(db, item);
    const char *text = s ? (const char *)sqlite3_column_text(s, 4) : NULL;
    *state = xstrdup(s ? (const char *)sqlite3_column_text(s, 0) : "");
    *result = xstrdup(text ? text : "");
    if (s)
        sqlite3_reset(s);
    return ERR_OK;
}

int rundb_metric(struct rundb *db, int64_t step, const char *name, double value)
{
    struct pending p = {.stmt = PUT_METRIC, .n = 5};
    p.v[0] = vint(db->run);
    p.v[1] = vint(step);
    p.v[2] = vtext(name);
    p.v[3] = vreal(value);
    p.v[4] = vreal(wall_clock_s());
    return put(db, &p);
}

int rundb_metrics_cut(struct rundb *db, int64_t step)
{
    int rc = rundb_flush(db);
    sqlite3_stmt *s = NULL;
    sqlite3_prepare_v2(db->sq, "DELETE FROM metrics WHERE run_id=? AND step>?", -1, &s, NULL);
    sqlite3_bind_int64(s, 1, db->run);
    sqlite3_bind_int64(s, 2, step);
    if (sqlite3_step(s) != SQLITE_DONE)
        rc = sq_err(db, "cannot cut metrics");
    sqlite3_finalize(s);
    return rc;
}

int rundb_artifact(struct rundb *db, const char *path, const char *kind, const char *sha256)
{
    struct pending p = {.stmt = PUT_ARTIFACT, .n = 6};
    uint64_t size;
    int64_t mtime;
    p.v[0] = vint(db->run);
    p.v[1] = vtext(path);
    p.v[2] = vtext(kind);
    if (file_stamp(path, &size, &mtime) == ERR_OK)
        p.v[3] = vint((int64_t)size);
    p.v[4] = vtext(sha256);
    p.v[5] = vreal(wall_clock_s());
    return put(db, &p);
}
