#include "lib/isolate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/log.h"
#include "lib/pool.h"

/* Three kinds of process.  The program sends jobs to workers and takes results, each worker
 * over a socket pair of its own; the supervisor forks workers, reaps them, and kills one when
 * told to.  It tells the program of each death, after the successor stands. */

struct job_head {
    uint64_t serial, n;
};
struct result_head {
    uint64_t serial, n;
    int32_t code;
    uint32_t n_error;
};
struct death { /* supervisor to program */
    int32_t slot, status;
};
/* program to supervisor: int32_t, the slot to kill, or QUIT */
enum { QUIT = -1 };

struct slot {
    int fd;        /* the program's end */
    bool busy, dying;
    size_t index;  /* the job's item */
    uint64_t serial;
    double started;
    bool timed_out;
    size_t jobs;   /* since its worker began */
    struct buf out; /* job bytes yet to send, from sent on */
    size_t sent;
    struct buf in;  /* result bytes so far */
};

struct isolate {
    struct isolate_opts o;
    int control;
    pid_t supervisor;
    uint64_t serial;
    bool orphan; /* the supervisor is gone */
    struct slot *slot;
};

/* ---- a worker ---- */

static bool read_full(int fd, void *p, size_t n)
{
    for (char *c = p; n;) {
        ssize_t k = read(fd, c, n);
        if (k <= 0 && !(k < 0 && errno == EINTR))
            return false;
        if (k > 0) {
            c += k;
            n -= (size_t)k;
        }
    }
    return true;
}

static bool write_full(int fd, const void *p, size_t n)
{
    for (const char *c = p; n;) {
        ssize_t k = send(fd, c, n, MSG_NOSIGNAL);
        if (k < 0 && errno != EINTR)
            return false;
        if (k > 0) {
            c += k;
            n -= (size_t)k;
        }
    }
    return true;
}

static void limit_memory(size_t bytes)
{
#if !defined(__SANITIZE_ADDRESS__) /* whose shadow memory is terabytes of address space */
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%llu", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    rlim_t most = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + bytes;
    setrlimit(RLIMIT_AS, &(struct rlimit){most, most});
#else
    (void)bytes;
#endif
}

static _Noreturn void worker(const struct isolate_opts *o, int fd)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    limit_memory(o->memory);
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    if (!getenv("ISOLATE_STDERR")) /* to see a sanitizer's report */
        dup2(null, STDERR_FILENO);
    struct job_head jh;
    while (read_full(fd, &jh, sizeof jh)) {
        char *job = malloc(jh.n + 1);
        struct buf out = BUF_INIT;
        if (!job || !read_full(fd, job, jh.n))
            _exit(1);
        job[jh.n] = 0;
        err_clear();
        int code = o->work(o->ctx, job, jh.n, &out);
        if (code >= 0 && out.n > o->max_result)
            code = err_set(ERR_NOMEM, "a result of %zu bytes", out.n);
        const char *error = code < 0 ? err_text() : "";
        struct result_head rh = {jh.serial, code < 0 ? 0 : out.n, code, (uint32_t)strlen(error)};
        if (!write_full(fd, &rh, sizeof rh) || !write_full(fd, error, rh.n_error) || !write_full(fd, out.s, rh.n))
            _exit(1);
        buf_release(&out);
        free(job);
    }
    _exit(0);
}

/* ---- the supervisor ---- */

static pid_t start_worker(const struct isolate_opts *o, const int *ends, int slot, int control, int signals)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    close(control);
    close(signals);
    for (int i = 0; i < o->workers; i++)
        if (i != slot)
            close(ends[i]);
    worker(o, ends[slot]);
}

static void drain(int fd)
{
    char bin[65536];
    while (recv(fd, bin, sizeof bin, MSG_DONTWAIT) > 0)
        ;
}

/* ends: the workers' ends of the socket pairs.  Ends when the program closes control. */
static _Noreturn void supervise(const struct isolate_opts *o, int *ends, int control)
{
    sigset_t chld;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_SETMASK, &chld, NULL);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is the program's to handle */
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
    pid_t *pid = xcalloc((size_t)o->workers, sizeof *pid);
    for (int i = 0; i < o->workers; i++)
        pid[i] = start_worker(o, ends, i, control, signals);
    struct pollfd fds[] = {{control, POLLIN, 0}, {signals, POLLIN, 0}};
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        int32_t kill_slot;
        ssize_t k = recv(control, &kill_slot, sizeof kill_slot, MSG_DONTWAIT);
        if (!k || (k == sizeof kill_slot && kill_slot == QUIT))
            break;
        if (k == sizeof kill_slot && kill_slot >= 0 && kill_slot < o->workers && pid[kill_slot] > 0)
            kill(pid[kill_slot], SIGKILL);
        struct signalfd_siginfo si;
        while (read(signals, &si, sizeof si) > 0)
            ;
        int status;
        for (pid_t dead; (dead = waitpid(-1, &status, WNOHANG)) > 0;)
            for (int i = 0; i < o->workers; i++)
                if (pid[i] == dead) {
                    drain(ends[i]); /* of the job the dead one may not have read */
                    pid[i] = start_worker(o, ends, i, control, signals);
                    struct death d = {i, status};
                    if (!write_full(control, &d, sizeof d))
                        _exit(0);
                }
    }
    for (int i = 0; i < o->workers; i++)
        if (pid[i] > 0)
            kill(pid[i], SIGKILL);
    while (wait(NULL) > 0 || errno == EINTR) /* so that their processor time counts as the program's */
        ;
    _exit(0);
}

/* ---- the program's side ---- */

int isolate_open(const struct isolate_opts *opts, struct isolate **out)
{
    struct isolate *p = xcalloc(1, sizeof *p);
    int rc = ERR_OK, made = 0, control[2] = {-1, -1};
    struct isolate_opts *o = &p->o;
    *o = *opts;
    *out = NULL;
    o->workers = o->workers > 0 ? o->workers : pool_cores();
    o->seconds = o->seconds > 0 ? o->seconds : 30;
    o->memory = o->memory ? o->memory : (size_t)2 << 30;
    o->max_result = o->max_result ? o->max_result : (size_t)512 << 20;
    o->jobs_a_worker = o->jobs_a_worker ? o->jobs_a_worker : 1000;
    p->slot = xcalloc((size_t)o->workers, sizeof *p->slot);
    int *ends = xcalloc((size_t)o->workers, sizeof *ends);
    for (; made < o->workers; made++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
            rc = err_set(ERR_IO, "socketpair: %s", strerror(errno));
            goto out;
        }
        p->slot[made].fd = pair[0];
        ends[made] = pair[1];
        buf_init(&p->slot[made].in);
        buf_init(&p->slot[made].out);
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) < 0) {
        rc = err_set(ERR_IO, "socketpair: %s", strerror(errno));
        goto out;
    }
    fflush(NULL);
    p->supervisor = fork();
    if (p->supervisor < 0)
        rc = err_set(ERR_IO, "fork: %s", strerror(errno));
    if (!p->supervisor) {
        close(control[0]);
        for (int i = 0; i < o->workers; i++)
            close(p->slot[i].fd);
        supervise(o, ends, control[1]);
    }
    p->control = control[0];
out:
    for (int i = 0; i < made; i++)
        close(ends[i]);
    free(ends);
    if (control[1] >= 0)
        close(control[1]);
    if (rc < 0) {
        for (int i = 0; i < made; i++)
            close(p->slot[i].fd);
        if (control[0] >= 0)
            close(control[0]);
        free(p->slot);
        free(p);
    } else {
        *out = p;
    }
    return rc;
}

void isolate_close(struct isolate *p)
{
    if (!p)
        return;
    /* In words, as another pool's supervisor may hold a copy of this end. */
    send(p->control, &(int32_t){QUIT}, sizeof(int32_t), MSG_NOSIGNAL);
    close(p->control);
    while (waitpid(p->supervisor, NULL, 0) < 0 && errno == EINTR)
        ;
    for (int i = 0; i < p->o.workers; i++) {
        close(p->slot[i].fd);
        buf_release(&p->slot[i].in);
        buf_release(&p->slot[i].out);
    }
    free(p->slot);
    free(p);
}

/* Results that are there, ahead of their turn. */
struct pending {
    bool there, skipped;
    struct isolate_result r;
    struct buf bytes; /* error and its NUL, then data */
};

struct running {
    struct isolate *p;
    const struct isolate_batch *b;
    size_t next, delivered, in_flight;
    struct pending *ring;
    size_t window;
};

static void finish_job(struct running *run, struct slot *s, enum isolate_end end, int code, const char *error,
                       size_t n_error, const char *data, size_t n)
{
    struct pending *q = &run->ring[s->index % run->window];
    buf_init(&q->bytes);
    buf_add(&q->bytes, error, n_error);
    buf_putc(&q->bytes, 0);
    buf_add(&q->bytes, data, n);
    q->r = (struct isolate_result){.index = s->index, .end = end, .code = code, .n = n, .seconds = now_s() - s->started};
    q->r.error = q->bytes.s;
    q->r.data = q->bytes.s + n_error + 1;
    q->there = true;
    s->busy = false;
    buf_clear(&s->in);
    buf_clear(&s->out);
    run->in_flight--;
    if (run->b->what)
        progress_add(1, code < 0);
}

static void end_badly(struct running *run, struct slot *s, enum isolate_end end, int code, const char *text)
{
    finish_job(run, s, end, code, text, strlen(text), "", 0);
}

static void kill_worker(struct isolate *p, struct slot *s)
{
    int32_t i = (int32_t)(s - p->slot);
    s->dying = true;
    send(p->control, &i, sizeof i, MSG_NOSIGNAL);
}

static void on_death(struct running *run, const struct death *d)
{
    struct slot *s = &run->p->slot[d->slot];
    char text[160];
    drain(s->fd); /* a result cut short */
    s->jobs = 0;
    s->dying = false;
    buf_clear(&s->in);
    buf_clear(&s->out);
    if (!s->busy)
        return;
    if (s->timed_out) {
        snprintf(text, sizeof text, "timeout: over %g s", run->p->o.seconds);
        end_badly(run, s, ISOLATE_TIMEOUT, ERR_EXTERN, text);
    } else if (WIFSIGNALED(d->status)) {
        snprintf(text, sizeof text, "crash: signal %d (%s)", WTERMSIG(d->status), strsignal(WTERMSIG(d->status)));
        end_badly(run, s, ISOLATE_CRASH, ERR_EXTERN, text);
    } else {
        snprintf(text, sizeof text, "crash: exit with status %d", WEXITSTATUS(d->status));
        end_badly(run, s, ISOLATE_CRASH, ERR_EXTERN, text);
    }
}

static void on_result(struct running *run, struct slot *s)
{
    const struct isolate_opts *o = &run->p->o;
    struct result_head h;
    for (;;) {
        buf_grow(&s->in, 65536);
        ssize_t k = recv(s->fd, s->in.s + s->in.n, s->in.cap - s->in.n - 1, MSG_DONTWAIT);
        if (k <= 0)
            return; /* nothing more now; a death is told by the supervisor */
        s->in.n += (size_t)k;
        if (s->in.n < sizeof h)
            continue;
        memcpy(&h, s->in.s, sizeof h);
        /* A worker whose memory was overwritten may send anything. */
        if (!s->busy || h.serial != s->serial || h.n > o->max_result || h.n_error > 4096) {
            if (!s->dying)
                kill_worker(run->p, s);
            buf_clear(&s->in);
            return;
        }
        if (s->in.n < sizeof h + h.n_error + h.n)
            continue;
        char text[128], size[32];
        const char *error = s->in.s + sizeof h;
        if (h.code == ERR_NOMEM) {
            snprintf(text, sizeof text, "memory: over %s", human_bytes(size, (double)o->memory));
            end_badly(run, s, ISOLATE_MEMORY, ERR_NOMEM, text);
        } else {
            finish_job(run, s, ISOLATE_OK, h.code, error, h.n_error, error + h.n_error, h.n);
        }
        if (++s->jobs >= o->jobs_a_worker && !s->dying)
            kill_worker(run->p, s);
        return;
    }
}

static void send_more(struct slot *s)
{
    ssize_t k = send(s->fd, s->out.s + s->sent, s->out.n - s->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (k > 0)
        s->sent += (size_t)k;
}

/* Gives idle workers jobs, as far as the window goes. */
static int dispatch(struct running *run)
{
    struct isolate *p = run->p;
    for (int i = 0; i < p->o.workers; i++) {
        struct slot *s = &p->slot[i];
        while (!s->busy && !s->dying && run->next < run->b->n && run->next < run->delivered + run->window) {
            struct job_head h = {++p->serial, 0};
            buf_clear(&s->out);
            buf_add(&s->out, &h, sizeof h);
            int rc = run->b->job(run->b->ctx, run->next, &s->out);
            if (rc < 0)
                return rc;
            if (rc > 0) {
                run->ring[run->next++ % run->window] = (struct pending){.there = true, .skipped = true};
                if (run->b->what)
                    progress_add(1, 0);
                continue;
            }
            h.n = s->out.n - sizeof h;
            memcpy(s->out.s, &h, sizeof h);
            s->index = run->next++;
            s->serial = h.serial;
            s->busy = true;
            s->timed_out = false;
            s->started = now_s();
            s->sent = 0;
            run->in_flight++;
            send_more(s);
        }
    }
    return ERR_OK;
}

static int deliver(struct running *run, bool call)
{
    while (run->delivered < run->next && run->ring[run->delivered % run->window].there) {
        struct pending *q = &run->ring[run->delivered++ % run->window];
        int rc = call && !q->skipped ? run->b->done(run->b->ctx, &q->r) : ERR_OK;
        if (!q->skipped)
            buf_release(&q->bytes);
        *q = (struct pending){0};
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

/* Waits until something happens, but no longer than the nearest time limit. */
static int wait_for_workers(struct running *run, struct pollfd *fds)
{
    struct isolate *p = run->p;
    double now = now_s(), wait = 0.2;
    for (int i = 0; i < p->o.workers; i++) {
        struct slot *s = &p->slot[i];
        fds[i] = (struct pollfd){s->fd, s->busy && !s->dying ? POLLIN : 0, 0};
        if (s->busy && s->sent < s->out.n)
            fds[i].events |= POLLOUT;
        if (s->busy && !s->dying && s->started + p->o.seconds - now < wait)
            wait = s->started + p->o.seconds - now;
    }
    fds[p->o.workers] = (struct pollfd){p->control, POLLIN, 0};
    if (poll(fds, (nfds_t)p->o.workers + 1, wait > 0 ? (int)(wait * 1000) + 1 : 0) < 0) {
        if (errno != EINTR)
            return err_set(ERR_IO, "poll: %s", strerror(errno));
        return ERR_OK;
    }
    for (int i = 0; i < p->o.workers; i++) {
        struct slot *s = &p->slot[i];
        if (fds[i].revents & POLLIN)
            on_result(run, s);
        if (s->busy && fds[i].revents & POLLOUT)
            send_more(s);
        if (s->busy && !s->dying && now_s() > s->started + p->o.seconds) {
            s->timed_out = true;
            kill_worker(p, s);
        }
    }
    if (fds[p->o.workers].revents & (POLLIN | POLLHUP)) {
        struct death d;
        ssize_t k = recv(p->control, &d, sizeof d, MSG_DONTWAIT);
        p->orphan = !k;
        if (!k)
            return err_set(ERR_EXTERN, "the supervisor of the worker processes is gone");
        if (k == sizeof d && d.slot >= 0 && d.slot < p->o.workers)
            on_death(run, &d);
    }
    return ERR_OK;
}

int isolate_run(struct isolate *p, const struct isolate_batch *b)
{
    struct running run = {.p = p, .b = b, .window = 64 * (size_t)p->o.workers};
    struct pollfd *fds = xcalloc((size_t)p->o.workers + 1, sizeof *fds);
    run.ring = xcalloc(run.window, sizeof *run.ring);
    if (b->what)
        progress_start(b->what, b->n, b->unit);
    int rc = ERR_OK;
    /* After an error or a stop, jobs in flight are waited for (their time is limited), so that the
     * workers are idle at the end. */
    while (run.in_flight || (rc == ERR_OK && run.delivered < b->n)) {
        if (rc == ERR_OK && stop_requested())
            rc = err_set(ERR_CANCELLED, "stopped");
        int step = rc == ERR_OK ? dispatch(&run) : ERR_OK;
        if (step == ERR_OK && run.in_flight)
            step = wait_for_workers(&run, fds);
        else if (step == ERR_OK && run.delivered == run.next)
            step = wait_for_workers(&run, fds); /* all workers are being replaced */
        bool wanted = rc == ERR_OK || rc == ERR_CANCELLED;
        if (step == ERR_OK)
            step = deliver(&run, wanted);
        if (step < 0 && rc == ERR_OK)
            rc = step;
        if (p->orphan)
            break;
    }
    char text[1024];
    snprintf(text, sizeof text, "%s", err_text()); /* outlives the progress bar and the clean-up */
    deliver(&run, false);
    for (size_t i = 0; i < run.window; i++)
        if (run.ring[i].there && !run.ring[i].skipped)
            buf_release(&run.ring[i].bytes);
    if (b->what)
        progress_end();
    free(run.ring);
    free(fds);
    return rc < 0 ? err_set(rc, "%s", text) : ERR_OK;
}
