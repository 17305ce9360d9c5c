/* rundb.h: the run database (runs/runs.db, SQLite in WAL mode).
 *
 * A run is one tool with one resolved configuration.  Started again after it was
 * killed or failed, the same command continues the same run: items that are
 * recorded as done, whose input has not changed and whose output still stands,
 * are not repeated.  The schema is the commented SQL in rundb.c; its version is
 * in PRAGMA user_version.
 *
 * One handle a process, used by one thread (pool.h's done() runs on it).  Several
 * processes may write to one database at once: rows are queued in memory and
 * written in short transactions, at once if the last one is over a tenth of a
 * second old, so no lock is held while a tool works.
 *
 * Tools use this through tool.h; report and status read through rundb_sqlite().
 */
#ifndef LIB_RUNDB_H
#define LIB_RUNDB_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/files.h"

struct sqlite3;
struct rundb;

/* Opens, creating file, folders and schema.  ERR_IO; ERR_FORMAT when the file is no
 * database or from a newer version of this program (says which). */
int rundb_open(const char *path, struct rundb **out);
/* For readers (report, status): never creates; ERR_IO when there is none. */
int rundb_open_readonly(const char *path, struct rundb **out);
void rundb_close(struct rundb *db); /* flushes; NULL is fine */
struct sqlite3 *rundb_sqlite(struct rundb *db);

struct run_info {
    const char *tool;
    const char *key;    /* identity: tool, version and resolved configuration */
    const char *label;  /* groups runs to a row of the tables; "" if none */
    const char *argv;   /* the command line, quoted for a shell */
    const char *config; /* resolved "key = value" lines */
    const char *version, *git_rev;
    bool keep_done;     /* a finished run of the same key is taken up again (tools that
                           make files, where what is current need not be redone); else a
                           finished run stands and a new one begins */
    bool fresh;         /* --force: forget the items of the run taken up */
};
/* Begins or takes up a run; *resumed says which.  ERR_USAGE when a live process on
 * this host is at the same run now. */
int rundb_begin(struct rundb *db, const struct run_info *info, bool *resumed);
/* state: "done", "failed" or "cancelled". */
int rundb_finish(struct rundb *db, const char *state, int exit_code, const char *error);

/* True if the process of a 'running' row is alive, as far as can be seen from here: on this host by its pid
 * and program, on another by a heartbeat of the last minute. */
bool rundb_alive(const char *tool, const char *host, int64_t pid, double heartbeat);

struct run_item {
    const char *item;   /* unique in the run: relative path, record id, "chunk 3", ... */
    const char *state;  /* "done", "failed" or "skipped" */
    const char *reason; /* why it failed or was skipped, a short word first; NULL if none */
    double seconds;
    const char *input;  /* path whose size and time are recorded, to notice changes; or NULL.  Several
                           paths, a line each: their sizes and times added up */
    const char *output; /* path whose size is recorded; or NULL */
    const char *result; /* one JSON object, the tool's --json line; or NULL */
    /* If known: input as it was when it was read, output as it was written; else they are looked at now. */
    struct file_stamp input_stamp, output_stamp;
};
int rundb_item(struct rundb *db, const struct run_item *item);
/* True if item is recorded as done in this run, and input (if given) is as it was
 * then and output (if given) still stands in its recorded size. */
bool rundb_item_current(struct rundb *db, const char *item, const char *input, const char *output);
/* The recorded state ("" if none) and result of an item; the caller frees both. */
int rundb_item_get(struct rundb *db, const char *item, char **state, char **result);

int rundb_metric(struct rundb *db, int64_t step, const char *name, double value);
/* Drops metrics with a step above the one given: a resumed run redoes those steps. */
int rundb_metrics_cut(struct rundb *db, int64_t step);
/* kind: "adapter", "checkpoint", "table", ...; sha256 may be NULL. */
int rundb_artifact(struct rundb *db, const char *path, const char *kind, const char *sha256);
int rundb_flush(struct rundb *db);

#endif
