/* tool.h: what every executable's main() shares: the common options, --help and
 * --version, exit codes, JSON lines on stdout, the run database.
 *
 *     int main(int argc, char **argv)
 *     {
 *         struct tool t;
 *         tool_start(&t, &spec, argc, argv);      // may exit: --help, --version, misuse
 *         int rc = check_inputs(&t);
 *         if (rc == ERR_OK)
 *             rc = tool_begin(&t);                // opens runs.db, begins or resumes the run
 *         if (rc == ERR_OK)
 *             rc = do_the_work(&t);               // tool_item() for each item
 *         return tool_finish(&t, rc);             // records the end; prints the error; exit code
 *     }
 *
 * Exit codes: 0 all well, 1 some items failed, 2 usage, 3 input or environment.
 */
#ifndef LIB_TOOL_H
#define LIB_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/opt.h"
#include "lib/pool.h"
#include "lib/rundb.h"

enum { TOOL_OK = 0, TOOL_SOME_FAILED = 1, TOOL_USAGE = 2, TOOL_INPUT = 3 };

enum {
    TOOL_KEEP_DONE = 1, /* makes files: a finished run of the same command is taken up again and
                           what is current is not redone (see rundb.h) */
    TOOL_SHARDS = 2,    /* has --shard i/n */
    TOOL_READS = 4,     /* only looks at the database: records nothing, failures neither */
};

struct tool_spec {
    const char *name;
    const char *args;    /* "IN --out OUT": after the name in the usage line */
    const char *summary; /* one sentence */
    const char *details; /* more for --help, or NULL; example commands belong here */
    struct opt *options; /* NULL-name-terminated, or NULL */
    unsigned flags;
    size_t min_args, max_args; /* positional arguments allowed */
};

struct tool {
    const struct tool_spec *spec;
    struct opt_args args;  /* positional arguments */
    /* common options */
    bool json, force;
    int threads;           /* -j, resolved: at least 1 */
    int shard_i, shard_n;  /* 1-based; 1/1 when not given */
    const char *label;     /* --label: the row of the tables this run belongs to; "" if none */
    const char *db_path;   /* "none": nothing is recorded */
    /* state */
    struct rundb *db;      /* NULL when not recorded */
    bool begun, resumed;
    size_t n_done, n_failed, n_skipped, n_current;
    double started;
};

/* Parses options and config.  Exits the process for --help, --version, --print-config
 * (0) and misuse (2). */
void tool_start(struct tool *t, const struct tool_spec *spec, int argc, char **argv);

/* Opens the database and begins or resumes the run. */
int tool_begin(struct tool *t);

/* Counts, records and, with --json, prints the item (result, if any, is the line).
 * Also warns on stderr about a failed item: "ITEM: REASON". */
int tool_item(struct tool *t, const struct run_item *item);
/* True if the item was done by an earlier start of this run and still stands; then
 * it is counted, and its recorded result printed again under --json. */
bool tool_item_current(struct tool *t, const char *item, const char *input, const char *output);
/* What was recorded of such an item, which is neither counted nor printed (json_decref() it); NULL: it is to be worked on. */
json_t *tool_item_recorded(struct tool *t, const char *item, const char *input, const char *output);
/* Counted and printed, for the caller's totals. */
json_t *tool_item_earlier(struct tool *t, const char *item, const char *input, const char *output);
/* The same where, moreover, the string `key` of that result is `value`: a digest of what else the item was made of. */
json_t *tool_item_earlier_of(struct tool *t, const char *item, const char *input, const char *output, const char *key, const char *value);

/* One JSON line on stdout under --json (a summary line, say). */
void tool_json_line(struct tool *t, const char *json);
/* A line of the result for people on stdout, when not --json. */
void tool_print(struct tool *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

int tool_metric(struct tool *t, int64_t step, const char *name, double value);
int tool_artifact(struct tool *t, const char *path, const char *kind);

/* Records the run's end and returns the exit code for rc (prints err_text() for
 * negative codes).  A run that failed before tool_begin() is recorded, too, unless
 * its command line was wrong. */
int tool_finish(struct tool *t, int rc);

/* ---- tools that turn one file into another ----
 * Walks IN (file or directory), mirrors the tree in OUT, converts on all cores,
 * writes atomically, records each file. */
struct tool_map {
    const char *in, *out;
    const char *what;                 /* "rounding" */
    const char *const *suffixes;      /* NULL: STEP_SUFFIXES */
    size_t max_bytes;                 /* per input file; 0: 2 GiB */
    /* Fills out with the converted bytes; may fill note with a JSON object for the
     * item's result ("" = none).  worker: 0..threads-1.  Returns a code. */
    int (*convert)(void *ctx, int worker, const char *path, const struct file_map *in, struct buf *out,
                   struct buf *note);
    void *ctx;
    /* Optional: the output's name for a relative input path (fresh memory); NULL: the same. */
    char *(*rename)(void *ctx, const char *rel);
};
/* IN a file: OUT is the file to write when it ends in one of the suffixes (and is no
 * directory), else the directory to write into.  ERR_IO when IN holds no such file; ERR_USAGE
 * when OUT is IN.  An OUT inside IN is not read. */
int tool_map_files(struct tool *t, const struct tool_map *m);

/* "0.1.0" and the git revision this was built from. */
extern const char tool_version[], tool_git_rev[];
/* Names of all tools: the sections a config may have. */
extern const char *const tool_names[];

#endif
