#include "lib/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/log.h"
#include "lib/mem.h"

static volatile sig_atomic_t stop_count;

static void on_stop(int sig)
{
    if (stop_count++ && sig == SIGINT)
        _exit(130);
}

void stop_install(void)
{
    struct sigaction sa = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

bool stop_requested(void)
{
    return stop_count != 0;
}

int pool_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

enum { IDLE, READY };

struct slot {
    int state;
    struct pool_item item;
    char *error;
};

struct pool {
    struct pool_job *job;
    pthread_mutex_t lock;
    pthread_cond_t ready, room;
    struct slot *slots; /* ring of window slots: item i lives in slot i % window */
    size_t window;
    size_t next;      /* first item no worker has taken */
    size_t delivered; /* first item done() has not seen */
    bool stop;
};

struct worker {
    struct pool *pool;
    int id;
    pthread_t thread;
};

static void run_item(struct pool_job *job, size_t i, int worker, struct slot *s)
{
    double t0 = now_s();
    int code = ERR_OK;
    err_clear();
    void *result = job->work(job->ctx, i, worker, &code);
    s->item = (struct pool_item){.index = i, .result = result, .code = code, .seconds = now_s() - t0};
    s->error = code < 0 ? xstrdup(err_text()) : NULL;
    s->item.error = s->error ? s->error : "";
}

static int deliver(struct pool_job *job, struct slot *s)
{
    int rc = job->done ? job->done(job->ctx, &s->item) : 0;
    if (job->what)
        progress_add(1, s->item.code < 0);
    free(s->error);
    s->error = NULL;
    return rc;
}

static bool skipped(struct pool_job *job, size_t i)
{
    return job->skip && job->skip(job->ctx, i);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && p->next < p->job->n && p->next >= p->delivered + p->window)
            pthread_cond_wait(&p->room, &p->lock);
        if (p->stop || p->next >= p->job->n)
            break;
        size_t i = p->next++;
        pthread_mutex_unlock(&p->lock);
        struct slot got = {0};
        run_item(p->job, i, w->id, &got);
        pthread_mutex_lock(&p->lock);
        got.state = READY;
        p->slots[i % p->window] = got;
        pthread_cond_signal(&p->ready);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int run_alone(struct pool_job *job)
{
    for (size_t i = 0; i < job->n; i++) {
        if (stop_requested())
            return err_set(ERR_CANCELLED, "stopped by a signal after %zu of %zu items", i, job->n);
        if (skipped(job, i)) {
            if (job->what)
                progress_add(1, 0);
            continue;
        }
        struct slot s = {0};
        run_item(job, i, 0, &s);
        int rc = deliver(job, &s);
        if (rc)
            return rc;
    }
    return ERR_OK;
}

/* skip() may look at the database, which is the calling thread's: so the caller
 * decides ahead which items need work, and workers see only those. */
struct skim {
    struct pool_job *job;
    size_t *index;
};

static void *skim_work(void *ctx, size_t i, int worker, int *code)
{
    struct skim *s = ctx;
    return s->job->work(s->job->ctx, s->index[i], worker, code);
}

static int skim_done(void *ctx, const struct pool_item *item)
{
    struct skim *s = ctx;
    struct pool_item it = *item;
    it.index = s->index[item->index];
    return s->job->done ? s->job->done(s->job->ctx, &it) : 0;
}

static int run_threads(struct pool_job *job, int threads)
{
    struct pool p = {.job = job, .lock = PTHREAD_MUTEX_INITIALIZER, .ready = PTHREAD_COND_INITIALIZER,
                     .room = PTHREAD_COND_INITIALIZER, .window = job->window ? job->window : 64 * (size_t)threads};
    struct worker *w = xcalloc((size_t)threads, sizeof *w);
    int started = 0, rc = ERR_OK;

    p.slots = xcalloc(p.window, sizeof *p.slots);
    for (; started < threads; started++) {
        w[started] = (struct worker){.pool = &p, .id = started};
        if (pthread_create(&w[started].thread, NULL, worker_main, &w[started]) != 0)
            break;
    }
    if (!started)
        rc = err_set(ERR_NOMEM, "cannot start a thread");
    pthread_mutex_lock(&p.lock);
    while (started && p.delivered < job->n) {
        struct slot *s = &p.slots[p.delivered % p.window];
        if (p.stop && p.delivered >= p.next)
            break; /* all that was started has been delivered */
        if (s->state != READY) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            t.tv_sec += 1; /* look at stop_requested() now and then */
            pthread_cond_timedwait(&p.ready, &p.lock, &t);
        } else {
            struct slot got = *s;
            s->state = IDLE;
            pthread_mutex_unlock(&p.lock);
            int r = deliver(job, &got);
            pthread_mutex_lock(&p.lock);
            p.delivered++;
            if (r && rc == ERR_OK) {
                rc = r;
                p.stop = true;
            }
            pthread_cond_broadcast(&p.room);
        }
        if (stop_requested() && !p.stop) {
            p.stop = true;
            pthread_cond_broadcast(&p.room);
        }
    }
    bool cut = p.delivered < job->n;
    size_t got = p.delivered;
    pthread_mutex_unlock(&p.lock);
    for (int i = 0; i < started; i++)
        pthread_join(w[i].thread, NULL);
    free(w);
    free(p.slots);
    if (rc == ERR_OK && cut)
        rc = err_set(ERR_CANCELLED, "stopped by a signal after %zu of %zu items", got, job->n);
    return rc;
}

int pool_run(struct pool_job *job)
{
    int threads = job->threads > 0 ? job->threads : pool_cores();
    if ((size_t)threads > job->n)
        threads = job->n ? (int)job->n : 1;
    if (job->what)
        progress_start(job->what, job->n, job->unit ? job->unit : "items");
    int rc;
    if (threads == 1) {
        rc = run_alone(job);
    } else if (job->skip) {
        struct skim s = {.job = job, .index = xmalloc(job->n * sizeof *s.index)};
        struct pool_job sub = *job;
        sub.n = 0;
        for (size_t i = 0; i < job->n; i++)
            if (!skipped(job, i))
                s.index[sub.n++] = i;
        if (job->what && sub.n < job->n)
            progress_add(job->n - sub.n, 0);
        sub.work = skim_work;
        sub.done = skim_done;
        sub.ctx = &s;
        sub.skip = NULL;
        rc = run_threads(&sub, threads);
        free(s.index);
    } else {
        rc = run_threads(job, threads);
    }
    if (job->what)
        progress_end();
    return rc;
}
