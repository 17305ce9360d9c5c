/* pool.h: the same work on many items, on all cores.
 *
 *     struct pool_job job = {
 *         .n = files.n, .threads = tool.threads, .what = "rounding", .unit = "files",
 *         .work = round_one,   // on a worker thread
 *         .done = record_one,  // on the calling thread, in the order of the items
 *         .ctx = &ctx,
 *     };
 *     int rc = pool_run(&job);
 *
 * work() returns a result that done() receives (and frees); the code and error
 * text that work() left travel with it.  done() is called once for every item
 * that was started, in item order, so output and database rows are in order
 * and need no lock.  Workers run at most `window` items ahead of done(), so
 * memory stays flat.  With one thread everything runs on the calling thread.
 */
#ifndef LIB_POOL_H
#define LIB_POOL_H

#include <stdbool.h>
#include <stddef.h>

struct pool_item {
    size_t index;
    void *result;      /* what work() returned */
    int code;          /* what work() set: ERR_OK or negative */
    const char *error; /* err_text() of the worker at that moment; "" if none */
    double seconds;    /* wall time of work() */
};

struct pool_job {
    size_t n;
    int threads;            /* 0: one a core (pool_cores()) */
    size_t window;          /* 0: 64 a thread */
    const char *what, *unit; /* for the progress bar; NULL: none */
    /* Sets *code to ERR_OK or a negative code (with err_set) and returns its result.
     * worker is 0..threads-1, for per-worker scratch. */
    void *(*work)(void *ctx, size_t index, int worker, int *code);
    /* Non-zero stops the job: pool_run() returns it. */
    int (*done)(void *ctx, const struct pool_item *item);
    void *ctx;
    /* Optional: true if item needs no work (counted as done, no callbacks). */
    bool (*skip)(void *ctx, size_t index);
};

/* ERR_OK; ERR_CANCELLED if stop_requested() (items in flight are completed and
 * delivered first); or what done() returned. */
int pool_run(struct pool_job *job);

/* Processors this process may use (respects affinity). */
int pool_cores(void);

/* SIGINT and SIGTERM ask a tool to stop after the items in hand; the second
 * SIGINT ends it at once. */
void stop_install(void);
bool stop_requested(void);

#endif
