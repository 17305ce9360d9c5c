/* isolate.h: work that may crash, hang or run out of memory, in worker processes.
 *
 * OpenCASCADE on a generated file can do all three.  Workers are forked ahead of
 * time; a job's bytes go in and its result's bytes come out through a socket.  A
 * crash, a job over its time limit or a runaway allocation costs one worker, which
 * is replaced, and becomes that job's verdict.  What a worker prints is discarded.
 *
 *     struct isolate *pool;
 *     isolate_open(&(struct isolate_opts){.workers = 2, .seconds = 30, .work = occ_work}, &pool);
 *     isolate_run(pool, &(struct isolate_batch){.n = n, .job = make_job, .done = take, .ctx = &ctx});
 *     isolate_close(pool);
 *
 * isolate_open() forks a supervisor, which alone forks workers, then and later: so
 * open before starting threads or CUDA, and run from any thread (one at a time).
 * Workers die with their supervisor and it with the program.
 */
#ifndef LIB_ISOLATE_H
#define LIB_ISOLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/mem.h"

enum isolate_end {
    ISOLATE_OK,      /* work() returned: code, error, data are what it left */
    ISOLATE_CRASH,   /* the worker died: error says of what ("crash: signal 11 (Segmentation fault)") */
    ISOLATE_TIMEOUT, /* "timeout: over 30 s" */
    ISOLATE_MEMORY,  /* "memory: over 2.0 GB"; work() failing with ERR_NOMEM reports so, too */
};

struct isolate_opts {
    int workers;          /* 0: one a core */
    double seconds;       /* limit of one job; 0: 30 */
    size_t memory;        /* bytes a worker may map beyond what it starts with; 0: 2 GiB */
    size_t max_result;    /* bytes; 0: 512 MiB */
    size_t jobs_a_worker; /* replaced after so many, against leaks; 0: 1000 */
    /* In the worker: appends the result to out.  A negative code is reported with err_text(). */
    int (*work)(void *ctx, const char *job, size_t n, struct buf *out);
    void *ctx;            /* for work(): as it was at isolate_open() */
};

struct isolate_result {
    size_t index;
    enum isolate_end end;
    int code;          /* ERR_OK or negative; ERR_EXTERN, ERR_NOMEM for a worker's death */
    const char *error; /* "" if none */
    const char *data;  /* the result; valid during done() */
    size_t n;
    double seconds;    /* wall time from sending the job to its end */
};

struct isolate_batch {
    size_t n;
    const char *what, *unit; /* of the progress bar; NULL: none */
    /* Appends item index's job to out; returns 1 to skip the item (no callback),
     * negative to stop the batch. */
    int (*job)(void *ctx, size_t index, struct buf *out);
    /* On the calling thread, in the order of the items.  Negative stops the batch. */
    int (*done)(void *ctx, const struct isolate_result *r);
    void *ctx;
};

struct isolate;
int isolate_open(const struct isolate_opts *o, struct isolate **out);
/* ERR_OK, ERR_CANCELLED if stop_requested() (jobs in flight are completed first), or what
 * job() or done() returned. */
int isolate_run(struct isolate *p, const struct isolate_batch *b);
void isolate_close(struct isolate *p); /* NULL is fine */

#endif
