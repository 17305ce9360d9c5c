#include "model/dist.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "shim/kernels.h"

/* ---- who am I ---- */

static const char *variable(const char *a, const char *b)
{
    const char *v = getenv(a);
    return v && *v ? v : b && getenv(b) && *getenv(b) ? getenv(b) : NULL;
}

static int number_of(const char *name, const char *text, int *out)
{
    char *end;
    long v = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || v < 0 || v > 1000000)
        return err_set(ERR_USAGE, "%s=%s in the environment is no number", name, text ? text : "");
    *out = (int)v;
    return ERR_OK;
}

void dist_first_host(const char *list, char *out, size_t cap)
{
    size_t n = strcspn(list, ",[");
    const char *rest = list + n, *tail = "";
    size_t digits = 0, n_tail = 0;
    if (*rest == '[') {
        digits = strcspn(++rest, ",-]");
        if ((tail = strchr(rest, ']')))
            n_tail = strcspn(++tail, ",");
        else
            tail = "";
    }
    snprintf(out, cap, "%.*s%.*s%.*s", (int)n, list, (int)digits, rest, (int)n_tail, tail);
}

/* A port that all processes of a job derive from its name. */
static int port_of(const char *job)
{
    return 20000 + (int)(fnv1a(FNV_INIT, job, strlen(job)) % 20000);
}

int dist_env_read(struct dist_env *e)
{
    static const struct {
        const char *launcher, *rank, *size, *local;
    } known[] = {
        {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
        {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
        {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
        {"MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    };
    *e = (struct dist_env){.size = 1, .local_size = 1, .launcher = ""};
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        const char *rank = variable(known[i].rank, NULL), *size = variable(known[i].size, NULL), *local = variable(known[i].local, NULL);
        if (!rank || !size) /* a batch script has SLURM_PROCID, too, but no step with tasks */
            continue;
        int rc = number_of(known[i].rank, rank, &e->rank);
        if (rc == ERR_OK)
            rc = number_of(known[i].size, size, &e->size);
        if (rc == ERR_OK && local)
            rc = number_of(known[i].local, local, &e->local_rank);
        else
            e->local_rank = e->rank;
        if (rc < 0)
            return rc;
        e->launcher = known[i].launcher;
        if (e->size < 1 || e->rank >= e->size)
            return err_set(ERR_USAGE, "%s=%d of %s=%d in the environment makes no sense", known[i].rank, e->rank, known[i].size, e->size);
        break;
    }
    if (e->size == 1) {
        e->rank = e->local_rank = 0;
        return ERR_OK;
    }
    bool slurm = !strcmp(e->launcher, "Slurm");
    const char *host = variable("MASTER_ADDR", NULL), *nodes = variable("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST");
    const char *port = variable("MASTER_PORT", NULL), *job = variable(slurm ? "SLURM_JOB_ID" : "PMIX_NAMESPACE", NULL);
    const char *here = variable("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS");
    if (host)
        snprintf(e->host, sizeof e->host, "%s", host);
    else if (slurm && nodes)
        dist_first_host(nodes, e->host, sizeof e->host);
    else if (here && atoi(here) < e->size)
        return err_set(ERR_USAGE, "%d processes on several hosts: set MASTER_ADDR to the host of process 0 (mpirun -x MASTER_ADDR=HOST)", e->size);
    else
        snprintf(e->host, sizeof e->host, "127.0.0.1");
    e->port = job ? port_of(job) : 29500;
    if (port) {
        int rc = number_of("MASTER_PORT", port, &e->port);
        if (rc < 0)
            return rc;
        if (variable("TORCHELASTIC_RUN_ID", NULL))
            e->port++; /* torchrun itself listens on that one */
    }
    const char *locals = variable("LOCAL_WORLD_SIZE", slurm ? "SLURM_TASKS_PER_NODE" : NULL);
    if (!locals)
        locals = here;
    e->local_size = locals ? atoi(locals) : !strcmp(e->host, "127.0.0.1") || !strcmp(e->host, "localhost") ? e->size : 1; /* "4(x2)": 4 */
    if (e->local_size < 1 || e->local_size > e->size)
        e->local_size = 1;
    return e->port > 0 && e->port < 65536 ? ERR_OK : err_set(ERR_USAGE, "port %d in the environment makes no sense", e->port);
}

int dist_choose_gpu(const struct dist_env *e)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char one[128];
    if (e->size == 1)
        return ERR_OK;
    snprintf(one, sizeof one, "%d", e->local_rank);
    if (visible) {
        if (!strchr(visible, ',')) /* none, on purpose; or Slurm's --gpus-per-task: dist_use() sees whether they differ */
            return ERR_OK;
        const char *at = visible;
        for (int i = 0; i < e->local_rank; i++) {
            at = strchr(at, ',');
            if (!at)
                return err_set(ERR_USAGE, "process %d is number %d on its host, which has GPUs %s: start no more than one process a GPU", e->rank,
                               e->local_rank + 1, visible);
            at++;
        }
        snprintf(one, sizeof one, "%.*s", (int)strcspn(at, ","), at);
    }
    return setenv("CUDA_VISIBLE_DEVICES", one, 1) == 0 ? ERR_OK : err_set(ERR_NOMEM, "out of memory");
}

/* ---- NCCL and CUDA's streams, by name: there is nothing of either on a machine without GPUs ---- */

struct nccl_id {
    char bytes[128];
};

struct gpu {
    int (*GetUniqueId)(struct nccl_id *);
    int (*CommInitRank)(void **, int, struct nccl_id, int);
    int (*AllReduce)(const void *, void *, size_t, int, int, void *, void *);
    int (*CommAbort)(void *);
    int (*CommDestroy)(void *);
    const char *(*GetErrorString)(int);
    int (*StreamCreateWithFlags)(void **, unsigned);
    int (*EventCreateWithFlags)(void **, unsigned);
    int (*EventRecord)(void *, void *);
    int (*StreamWaitEvent)(void *, void *, unsigned);
    int (*DeviceGetPCIBusId)(char *, int, int);
    void *comm, *stream, *event;
};
enum { NCCL_FLOAT = 7, NCCL_SUM = 0, STREAM_NON_BLOCKING = 1, EVENT_NO_TIMING = 2 };

static int load_symbols(struct gpu *g)
{
    const struct {
        void *slot;
        const char *name;
    } all[] = {
        {&g->GetUniqueId, "ncclGetUniqueId"}, {&g->CommInitRank, "ncclCommInitRank"}, {&g->AllReduce, "ncclAllReduce"},
        {&g->CommAbort, "ncclCommAbort"}, {&g->CommDestroy, "ncclCommDestroy"}, {&g->GetErrorString, "ncclGetErrorString"},
        {&g->StreamCreateWithFlags, "cudaStreamCreateWithFlags"}, {&g->EventCreateWithFlags, "cudaEventCreateWithFlags"},
        {&g->EventRecord, "cudaEventRecord"}, {&g->StreamWaitEvent, "cudaStreamWaitEvent"}, {&g->DeviceGetPCIBusId, "cudaDeviceGetPCIBusId"},
    };
    void *nccl = dlopen("libnccl.so.2", RTLD_NOW), *cuda = dlopen("libcudart.so.13", RTLD_NOW);
    if (!cuda)
        cuda = dlopen("libcudart.so.12", RTLD_NOW);
    if (!nccl || !cuda)
        return err_set(ERR_EXTERN, "several GPUs need %s: %s", nccl ? "CUDA's runtime" : "NCCL", dlerror());
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        void *f = dlsym(all[i].name[0] == 'n' ? nccl : cuda, all[i].name);
        if (!f)
            return err_set(ERR_EXTERN, "several GPUs need %s, which the libraries here lack", all[i].name);
        memcpy(all[i].slot, &f, sizeof f);
    }
    return ERR_OK;
}

/* ---- connections ---- */

enum { MAGIC = 0x53544c31, HELLO = 1, TABLE, GATHER, RESULT, ALIVE, ABORT, BYE };
enum { MAX_FRAME = 64 << 20 };

struct frame {
    uint32_t magic, type, from, bytes;
};

struct hello {
    uint32_t size, port;
    char host[128];
};

struct address {
    char host[256];
    uint32_t port;
};

struct peer {
    int fd;                /* -1: none */
    _Atomic bool bye, gone; /* gone: closed by the other side; our end stays open till the end, as others may be at it */
    double seen;
    char host[128];
    void *data;            /* of its last GATHER (at the hub) or RESULT (elsewhere); NULL: taken */
    size_t bytes;
};

struct job {
    float *x;
    int64_t n;
};

struct dist {
    int rank, size;
    double timeout;
    struct peer *peer;     /* hub: by rank; elsewhere only [0] is connected */
    pthread_t monitor, ring;
    bool monitoring, ringing, gpu_used;
    pthread_mutex_t lock, sending;
    pthread_cond_t changed;
    bool failing;          /* the first reason is being told */
    _Atomic bool failed, closing;
    double failed_at;
    char why[1024];
    int next, before;      /* the ring's connections; -1: none */
    struct job *jobs;      /* the ring's queue */
    size_t n_jobs, at_job, cap_jobs;
    float *tmp;
    size_t cap_tmp;
    struct gpu gpu;
};

const char *dist_failure(const struct dist *d)
{
    return d && d->failed ? d->why : NULL;
}

int dist_rank(const struct dist *d)
{
    return d ? d->rank : 0;
}

int dist_size(const struct dist *d)
{
    return d ? d->size : 1;
}

/* Reads or writes n bytes on a socket that does not block, until `until` (now_s). */
static int move(int fd, void *p, size_t n, bool out, double until)
{
    char *s = p;
    while (n) {
        ssize_t k = out ? send(fd, s, n, MSG_NOSIGNAL) : recv(fd, s, n, 0);
        if (k > 0) {
            s += k;
            n -= (size_t)k;
            continue;
        }
        if (k == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return -1;
        double left = until - now_s();
        struct pollfd f = {.fd = fd, .events = out ? POLLOUT : POLLIN};
        if (left <= 0 || poll(&f, 1, left > 1 ? 1000 : (int)(left * 1000) + 1) < 0)
            return -1;
    }
    return 0;
}

static int send_frame(struct dist *d, int fd, int type, const void *data, size_t bytes)
{
    struct frame f = {MAGIC, (uint32_t)type, (uint32_t)d->rank, (uint32_t)bytes};
    pthread_mutex_lock(&d->sending);
    int rc = move(fd, &f, sizeof f, true, now_s() + d->timeout);
    if (rc == 0 && bytes)
        rc = move(fd, (void *)data, bytes, true, now_s() + d->timeout);
    pthread_mutex_unlock(&d->sending);
    return rc;
}

/* *data (fresh memory) holds what came with it. */
static int receive_frame(int fd, struct frame *f, void **data, double until)
{
    *data = NULL;
    if (move(fd, f, sizeof *f, false, until) < 0 || f->magic != MAGIC || f->bytes > MAX_FRAME)
        return -1;
    *data = xcalloc(1, f->bytes + 1);
    if (move(fd, *data, f->bytes, false, until) == 0)
        return 0;
    free(*data);
    *data = NULL;
    return -1;
}

static void tune(int fd)
{
    int one = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL, 0) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* A listening socket on port (0: any, told in *port). */
static int listen_on(int *port, int *fd)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT, .sin6_port = htons((uint16_t)*port)};
    struct sockaddr_in b = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY), .sin_port = htons((uint16_t)*port)};
    int one = 1, zero = 0, e = 0;
    for (int v4 = 0; v4 < 2; v4++) { /* IPv6 with IPv4 in it, or IPv4 alone where there is no IPv6 */
        socklen_t n = v4 ? sizeof b : sizeof a;
        struct sockaddr *s = v4 ? (struct sockaddr *)&b : (struct sockaddr *)&a;
        *fd = socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
        if (*fd < 0)
            continue;
        setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (!v4)
            setsockopt(*fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
        if (bind(*fd, s, n) == 0 && listen(*fd, 128) == 0 && getsockname(*fd, s, &n) == 0) {
            *port = ntohs(v4 ? b.sin_port : a.sin6_port);
            tune(*fd);
            return ERR_OK;
        }
        e = errno;
        close(*fd);
        *fd = -1;
    }
    return err_set(ERR_EXTERN, "port %d of this host cannot be listened on: %s (MASTER_PORT names another)", *port, strerror(e));
}

static int accept_until(int listener, double until)
{
    while (now_s() < until) {
        struct pollfd f = {.fd = listener, .events = POLLIN};
        if (poll(&f, 1, 200) > 0) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0) {
                tune(fd);
                return fd;
            }
        }
    }
    return -1;
}

static int try_connect(const struct addrinfo *a, double until)
{
    int fd = socket(a->ai_family, SOCK_STREAM, 0), e = 0;
    socklen_t n = sizeof e;
    if (fd < 0)
        return -1;
    tune(fd);
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0)
        return fd;
    if (errno == EINPROGRESS) {
        struct pollfd f = {.fd = fd, .events = POLLOUT};
        double left = until - now_s();
        if (left > 0 && poll(&f, 1, left > 5 ? 5000 : (int)(left * 1000) + 1) > 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) == 0 && !e)
            return fd;
    }
    close(fd);
    return -1;
}

static int connect_until(const char *host, int port, double until)
{
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    for (;;) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
        int fd = -1;
        if (getaddrinfo(host, service, &hints, &list) == 0) {
            for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
                fd = try_connect(a, until);
            freeaddrinfo(list);
        }
        if (fd >= 0 || now_s() >= until)
            return fd;
        usleep(50000);
    }
}

/* ---- failing: once, for all who wait ---- */

static void fail(struct dist *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void fail(struct dist *d, const char *fmt, ...)
{
    va_list ap;
    pthread_mutex_lock(&d->lock);
    bool first = !d->failing;
    d->failing = true;
    if (first) {
        va_start(ap, fmt);
        vsnprintf(d->why, sizeof d->why, fmt, ap);
        va_end(ap);
    }
    pthread_mutex_unlock(&d->lock);
    if (!first)
        return;
    for (int r = 1; r < d->size && !d->rank; r++) /* the hub tells all, before it may end itself */
        if (!d->peer[r].gone && !d->peer[r].bye)
            send_frame(d, d->peer[r].fd, ABORT, d->why, strlen(d->why) + 1);
    pthread_mutex_lock(&d->lock);
    d->failed_at = now_s();
    d->failed = true;
    pthread_cond_broadcast(&d->changed);
    if (d->next >= 0)
        shutdown(d->next, SHUT_RDWR); /* wakes the ring's thread */
    if (d->before >= 0)
        shutdown(d->before, SHUT_RDWR);
    pthread_mutex_unlock(&d->lock);
    if (d->gpu.comm)
        d->gpu.CommAbort(d->gpu.comm); /* else the reductions would wait for ever */
}

static int failure(struct dist *d)
{
    return err_set(ERR_EXTERN, "%s", d->why);
}

/* ---- the monitor: reads all control connections, and sees that all are alive ---- */

static void take(struct dist *d, int r)
{
    struct peer *p = &d->peer[r];
    struct frame f;
    void *data;
    if (receive_frame(p->fd, &f, &data, now_s() + d->timeout) < 0) {
        if (p->bye || d->closing)
            p->bye = true;
        else
            fail(d, "process %d of %d%s%s ended without a word (killed?)", r, d->size, *p->host ? " on " : "", p->host);
        pthread_mutex_lock(&d->lock);
        p->gone = true;
        pthread_cond_broadcast(&d->changed);
        pthread_mutex_unlock(&d->lock);
        return;
    }
    p->seen = now_s();
    if (f.type == ABORT) {
        if (d->rank)
            fail(d, "%s", (char *)data);
        else
            fail(d, "process %d of %d: %s", r, d->size, (char *)data);
    }
    pthread_mutex_lock(&d->lock);
    if (f.type == BYE)
        p->bye = true;
    if (f.type == GATHER || f.type == RESULT) {
        free(p->data);
        p->data = data;
        p->bytes = f.bytes;
        data = NULL;
    }
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    free(data);
}

static void *monitor_main(void *ctx)
{
    struct dist *d = ctx;
    double beat = d->timeout / 8 < 5 ? d->timeout / 8 : 5, next_beat = 0;
    int n = d->rank ? 1 : d->size;
    struct pollfd *f = xcalloc((size_t)n, sizeof *f);
    for (;;) {
        pthread_mutex_lock(&d->lock);
        bool closing = d->closing, failed = d->failed;
        double since = now_s() - d->failed_at;
        pthread_mutex_unlock(&d->lock);
        if (closing)
            break;
        if (failed && d->gpu_used && since > 30) {
            log_error("%s; ending this process, which does not come out of its work", d->why);
            _exit(3);
        }
        for (int r = 0; r < n; r++)
            f[r] = (struct pollfd){.fd = r == d->rank || d->peer[r].gone ? -1 : d->peer[r].fd, .events = POLLIN};
        poll(f, (nfds_t)n, 200);
        double now = now_s();
        for (int r = 0; r < n; r++) {
            if (r == d->rank || d->peer[r].gone)
                continue;
            if (f[r].revents)
                take(d, r);
            else if (!failed && !d->peer[r].bye && now - d->peer[r].seen > d->timeout)
                fail(d, "process %d of %d%s%s has been silent for %.0f s", r, d->size, *d->peer[r].host ? " on " : "", d->peer[r].host, d->timeout);
        }
        if (now >= next_beat) {
            next_beat = now + beat;
            for (int r = 0; r < n; r++)
                if (r != d->rank && !d->peer[r].gone)
                    send_frame(d, d->peer[r].fd, ALIVE, NULL, 0);
        }
    }
    free(f);
    return NULL;
}

int dist_gather(struct dist *d, const void *mine, size_t bytes, void *all)
{
    char *to = all;
    if (!d) {
        memcpy(all, mine, bytes);
        return ERR_OK;
    }
    if (d->rank && send_frame(d, d->peer[0].fd, GATHER, mine, bytes) < 0) {
        usleep(500000); /* what the hub had to say may lie unread */
        fail(d, "process 0 of %d cannot be reached", d->size);
    }
    int rc = ERR_OK;
    pthread_mutex_lock(&d->lock);
    for (int r = 0; r < (d->rank ? 1 : d->size) && rc == ERR_OK; r++) {
        struct peer *p = &d->peer[r];
        size_t want = d->rank ? bytes * (size_t)d->size : bytes;
        if (r == d->rank) {
            memcpy(to + (size_t)r * bytes, mine, bytes);
            continue;
        }
        while (!p->data && !d->failed && !p->bye && !p->gone)
            pthread_cond_wait(&d->changed, &d->lock);
        if (!p->data)
            rc = d->failed ? failure(d) : err_set(ERR_EXTERN, "process %d of %d has ended its work before this one", r, d->size);
        else if (p->bytes != want)
            rc = err_set(ERR_EXTERN, "process %d is at another place of the program than process %d: do they run the same version?", r, d->rank);
        else
            memcpy(to + (size_t)r * bytes, p->data, want);
        free(p->data);
        p->data = NULL;
    }
    pthread_mutex_unlock(&d->lock);
    for (int r = 1; r < d->size && !d->rank && rc == ERR_OK; r++)
        if (send_frame(d, d->peer[r].fd, RESULT, all, bytes * (size_t)d->size) < 0) {
            fail(d, "process %d of %d cannot be reached", r, d->size);
            rc = failure(d);
        }
    return rc;
}

int dist_sum(struct dist *d, double *v, int n)
{
    if (!d)
        return ERR_OK;
    double *all = xmalloc(sizeof *all * (size_t)n * (size_t)d->size);
    int rc = dist_gather(d, v, sizeof *v * (size_t)n, all);
    for (int i = 0; i < n && rc == ERR_OK; i++) {
        v[i] = 0;
        for (int r = 0; r < d->size; r++)
            v[i] += all[r * n + i];
    }
    free(all);
    return rc;
}

int dist_agree(struct dist *d, const char *what, uint64_t value)
{
    if (!d)
        return ERR_OK;
    uint64_t *all = xmalloc(sizeof *all * (size_t)d->size);
    int rc = dist_gather(d, &value, sizeof value, all);
    for (int r = 1; r < d->size && rc == ERR_OK; r++)
        if (all[r] != all[0])
            rc = err_set(ERR_USAGE, "%s of process %d is not that of process 0: all processes need the same", what, r);
    free(all);
    return rc;
}

/* ---- the ring: processor memory ---- */

/* Sends and receives at the same time, so that none waits for the other. */
static int exchange(struct dist *d, const float *out, int64_t n_out, float *in, int64_t n_in)
{
    const char *s = (const char *)out;
    char *r = (char *)in;
    size_t to_send = (size_t)n_out * sizeof *out, to_get = (size_t)n_in * sizeof *in;
    while (to_send || to_get) {
        struct pollfd f[2] = {{.fd = to_send ? d->next : -1, .events = POLLOUT}, {.fd = to_get ? d->before : -1, .events = POLLIN}};
        if (d->failed || (poll(f, 2, 500) < 0 && errno != EINTR))
            return -1;
        if (f[0].revents) {
            ssize_t k = send(d->next, s, to_send, MSG_NOSIGNAL);
            if (k <= 0 && errno != EAGAIN && errno != EINTR)
                return -1;
            s += k > 0 ? k : 0;
            to_send -= k > 0 ? (size_t)k : 0;
        }
        if (f[1].revents) {
            ssize_t k = recv(d->before, r, to_get, 0);
            if (k == 0 || (k < 0 && errno != EAGAIN && errno != EINTR))
                return -1;
            r += k > 0 ? k : 0;
            to_get -= k > 0 ? (size_t)k : 0;
        }
    }
    return 0;
}

/* The sum of part c begins at process c and goes round; then every part goes round whole. */
static int ring_sum(struct dist *d, float *x, int64_t n)
{
    const int size = d->size;
    for (int s = 0; s < 2 * (size - 1); s++) {
        bool summing = s < size - 1;
        int out = (d->rank - s + 2 * size + (summing ? 0 : size)) % size, in = (out - 1 + size) % size;
        int64_t a = n * out / size, n_a = n * (out + 1) / size - a, b = n * in / size, n_b = n * (in + 1) / size - b;
        if (summing && (size_t)n_b > d->cap_tmp) {
            d->cap_tmp = (size_t)n_b;
            d->tmp = xrealloc(d->tmp, d->cap_tmp * sizeof *d->tmp);
        }
        if (exchange(d, x + a, n_a, summing ? d->tmp : x + b, n_b) < 0)
            return -1;
        for (int64_t i = 0; summing && i < n_b; i++)
            x[b + i] = d->tmp[i] + x[b + i];
    }
    return 0;
}

static void *ring_main(void *ctx)
{
    struct dist *d = ctx;
    pthread_mutex_lock(&d->lock);
    while (!d->closing && !d->failed) {
        if (d->at_job == d->n_jobs) {
            pthread_cond_wait(&d->changed, &d->lock);
            continue;
        }
        struct job j = d->jobs[d->at_job];
        pthread_mutex_unlock(&d->lock);
        if (ring_sum(d, j.x, j.n) < 0) {
            usleep(500000); /* the hub may say more of what happened */
            fail(d, "the connection to process %d or %d of %d broke", (d->rank + 1) % d->size, (d->rank + d->size - 1) % d->size, d->size);
        }
        pthread_mutex_lock(&d->lock);
        d->at_job++;
        pthread_cond_broadcast(&d->changed);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* ---- reducing ---- */

static int cuda_check(struct dist *d, int code, const char *what, bool nccl)
{
    if (!code)
        return ERR_OK;
    if (d->failed)
        return failure(d);
    return nccl ? err_set(ERR_EXTERN, "%s: %s", what, d->gpu.GetErrorString(code)) : kernel_check(what, code);
}

int dist_reduce(struct dist *d, th_tensor *x, int64_t from, int64_t n)
{
    if (!d || !n)
        return ERR_OK;
    if (d->failed)
        return failure(d);
    float *p = (float *)th_data(x) + from;
    if (d->gpu_used) {
        struct gpu *g = &d->gpu;
        int rc = cuda_check(d, g->EventRecord(g->event, kernel_stream()), "cudaEventRecord", false);
        if (rc == ERR_OK)
            rc = cuda_check(d, g->StreamWaitEvent(g->stream, g->event, 0), "cudaStreamWaitEvent", false);
        return rc < 0 ? rc : cuda_check(d, g->AllReduce(p, p, (size_t)n, NCCL_FLOAT, NCCL_SUM, g->comm, g->stream), "ncclAllReduce", true);
    }
    pthread_mutex_lock(&d->lock);
    ARRAY_GROW(d->jobs, d->cap_jobs, d->n_jobs + 1);
    d->jobs[d->n_jobs++] = (struct job){p, n};
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    return ERR_OK;
}

int dist_wait(struct dist *d)
{
    if (!d)
        return ERR_OK;
    if (d->gpu_used) {
        struct gpu *g = &d->gpu;
        int rc = cuda_check(d, g->EventRecord(g->event, g->stream), "cudaEventRecord", false);
        rc = rc < 0 ? rc : cuda_check(d, g->StreamWaitEvent(kernel_stream(), g->event, 0), "cudaStreamWaitEvent", false);
        return rc == ERR_OK && d->failed ? failure(d) : rc;
    }
    pthread_mutex_lock(&d->lock);
    while (d->at_job < d->n_jobs && !d->failed)
        pthread_cond_wait(&d->changed, &d->lock);
    d->at_job = d->n_jobs = 0;
    int rc = d->failed ? failure(d) : ERR_OK;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static int open_gpu(struct dist *d)
{
    struct gpu *g = &d->gpu;
    struct nccl_id id = {{0}}, *ids = xcalloc((size_t)d->size, sizeof *ids);
    char mine[160] = "", *all = xcalloc((size_t)d->size, sizeof mine), host[96] = "", bus[32] = "";
    setenv("NCCL_NVLS_ENABLE", "0", 0); /* NVLink multicast is not to be relied on */
    int rc = load_symbols(g);
    if (rc == ERR_OK)
        rc = cuda_check(d, g->DeviceGetPCIBusId(bus, sizeof bus, 0), "cudaDeviceGetPCIBusId", false);
    gethostname(host, sizeof host - 1);
    snprintf(mine, sizeof mine, "%s on %s", bus, host);
    if (rc == ERR_OK)
        rc = dist_gather(d, mine, sizeof mine, all);
    for (int a = 0; a < d->size && rc == ERR_OK; a++)
        for (int b = a + 1; b < d->size && rc == ERR_OK; b++)
            if (!strcmp(all + (size_t)a * sizeof mine, all + (size_t)b * sizeof mine))
                rc = err_set(ERR_USAGE, "processes %d and %d both have GPU %s: start one process for each GPU", a, b, all + (size_t)a * sizeof mine);
    if (rc == ERR_OK && !d->rank)
        rc = cuda_check(d, g->GetUniqueId(&id), "ncclGetUniqueId", true);
    if (rc == ERR_OK)
        rc = dist_gather(d, &id, sizeof id, ids);
    if (rc == ERR_OK)
        rc = cuda_check(d, g->CommInitRank(&g->comm, d->size, ids[0], d->rank), "ncclCommInitRank", true);
    if (rc == ERR_OK)
        rc = cuda_check(d, g->StreamCreateWithFlags(&g->stream, STREAM_NON_BLOCKING), "cudaStreamCreate", false);
    if (rc == ERR_OK)
        rc = cuda_check(d, g->EventCreateWithFlags(&g->event, EVENT_NO_TIMING), "cudaEventCreate", false);
    d->gpu_used = rc == ERR_OK;
    free(ids);
    free(all);
    return rc;
}

/* ---- opening and closing ---- */

/* The hub waits for all, then tells each where the ring's listeners are. */
static int gather_peers(struct dist *d, int listener, struct address *table, double until)
{
    int here = 1, rc = ERR_OK;
    while (here < d->size && rc == ERR_OK) {
        struct frame f;
        void *data = NULL;
        int fd = accept_until(listener, until);
        if (fd < 0) {
            struct buf b = BUF_INIT;
            for (int r = 1; r < d->size && b.n < 200; r++)
                if (d->peer[r].fd < 0)
                    buf_printf(&b, "%s%d", b.n ? ", " : "", r);
            rc = err_set(ERR_EXTERN, "after %.0f s only %d of %d processes are here, without %s", d->timeout, here, d->size, b.s);
            buf_release(&b);
            break;
        }
        /* anyone may knock: what does not speak as we do is let go */
        if (receive_frame(fd, &f, &data, now_s() + 5) < 0 || f.type != HELLO || f.bytes != sizeof(struct hello)) {
            close(fd);
            free(data);
            continue;
        }
        struct hello *h = data;
        h->host[sizeof h->host - 1] = 0;
        if (h->size != (uint32_t)d->size)
            rc = err_set(ERR_USAGE, "process %u on %s was told of %u processes, process 0 of %d", f.from, h->host, h->size, d->size);
        else if (f.from < 1 || f.from >= (uint32_t)d->size || d->peer[f.from].fd >= 0)
            rc = err_set(ERR_USAGE, "two processes say they are number %u (the second on %s)", f.from, h->host);
        if (rc < 0) {
            send_frame(d, fd, ABORT, err_text(), strlen(err_text()) + 1);
            close(fd);
        } else {
            struct sockaddr_storage a;
            socklen_t n = sizeof a;
            struct peer *p = &d->peer[f.from];
            p->fd = fd;
            p->seen = now_s();
            snprintf(p->host, sizeof p->host, "%s", h->host);
            if (getpeername(fd, (struct sockaddr *)&a, &n) == 0)
                getnameinfo((struct sockaddr *)&a, n, table[f.from].host, sizeof table->host, NULL, 0, NI_NUMERICHOST);
            table[f.from].port = h->port;
            here++;
        }
        free(data);
    }
    for (int r = 1; r < d->size; r++)
        if (d->peer[r].fd >= 0)
            send_frame(d, d->peer[r].fd, rc < 0 ? ABORT : TABLE, rc < 0 ? (const void *)err_text() : table,
                       rc < 0 ? strlen(err_text()) + 1 : sizeof *table * (size_t)d->size);
    return rc;
}

static int join_hub(struct dist *d, const struct dist_env *e, int port, struct address *table, double until)
{
    struct hello h = {.size = (uint32_t)d->size, .port = (uint32_t)port};
    struct frame f;
    void *data = NULL;
    int rc = ERR_OK, fd = connect_until(e->host, e->port, until);
    gethostname(h.host, sizeof h.host - 1);
    if (fd < 0)
        return err_set(ERR_EXTERN, "process 0 is not at %s:%d after %.0f s", e->host, e->port, d->timeout);
    d->peer[0].fd = fd;
    d->peer[0].seen = now_s();
    if (send_frame(d, fd, HELLO, &h, sizeof h) < 0 || receive_frame(fd, &f, &data, until + 5) < 0)
        rc = err_set(ERR_EXTERN, "process 0 at %s:%d does not answer", e->host, e->port);
    else if (f.type == ABORT)
        rc = err_set(ERR_EXTERN, "process 0 of %d: %s", d->size, (char *)data);
    else if (f.type != TABLE || f.bytes != sizeof *table * (size_t)d->size)
        rc = err_set(ERR_EXTERN, "what answers at %s:%d is not process 0 of this program", e->host, e->port);
    else
        memcpy(table, data, f.bytes);
    if (rc == ERR_OK)
        snprintf(table[0].host, sizeof table->host, "%s", e->host);
    free(data);
    return rc;
}

static int join_ring(struct dist *d, int listener, const struct address *table, double until)
{
    int after = (d->rank + 1) % d->size, before = (d->rank - 1 + d->size) % d->size;
    struct frame f = {0};
    void *data = NULL;
    const struct address *a = &table[after];
    d->next = connect_until(*a->host ? a->host : "127.0.0.1", (int)a->port, until);
    if (d->next < 0 || send_frame(d, d->next, HELLO, NULL, 0) < 0)
        return err_set(ERR_EXTERN, "process %d at %s:%u cannot be reached from process %d", after, a->host, a->port, d->rank);
    while (d->before < 0) {
        int fd = accept_until(listener, until);
        if (fd < 0)
            return err_set(ERR_EXTERN, "process %d has not called process %d after %.0f s", before, d->rank, d->timeout);
        if (receive_frame(fd, &f, &data, now_s() + 5) == 0 && f.type == HELLO && f.from == (uint32_t)before)
            d->before = fd;
        else
            close(fd);
        free(data);
    }
    return ERR_OK;
}

static void dist_free(struct dist *d)
{
    if (d->monitoring)
        pthread_join(d->monitor, NULL);
    if (d->ringing)
        pthread_join(d->ring, NULL);
    for (int r = 0; r < d->size; r++) {
        if (d->peer[r].fd >= 0)
            close(d->peer[r].fd);
        free(d->peer[r].data);
    }
    if (d->next >= 0)
        close(d->next);
    if (d->before >= 0)
        close(d->before);
    if (d->gpu.comm && !d->failed)
        d->gpu.CommDestroy(d->gpu.comm);
    pthread_mutex_destroy(&d->lock);
    pthread_mutex_destroy(&d->sending);
    pthread_cond_destroy(&d->changed);
    free(d->peer);
    free(d->jobs);
    free(d->tmp);
    free(d);
}

int dist_open(const struct dist_env *e, double timeout_s, struct dist **out)
{
    struct dist *d = xcalloc(1, sizeof *d);
    struct address *table = xcalloc((size_t)e->size, sizeof *table);
    double until = now_s() + timeout_s;
    int port = e->rank ? 0 : e->port, ring_port = 0, hub = -1, listener = -1, rc = ERR_OK;
    *out = NULL;
    *d = (struct dist){.rank = e->rank, .size = e->size, .timeout = timeout_s, .next = -1, .before = -1};
    d->peer = xcalloc((size_t)e->size, sizeof *d->peer);
    for (int r = 0; r < e->size; r++)
        d->peer[r].fd = -1;
    pthread_mutex_init(&d->lock, NULL);
    pthread_mutex_init(&d->sending, NULL);
    pthread_cond_init(&d->changed, NULL);
    rc = listen_on(&ring_port, &listener);
    table[e->rank].port = (uint32_t)ring_port;
    if (rc == ERR_OK && !e->rank && (rc = listen_on(&port, &hub)) == ERR_OK)
        rc = gather_peers(d, hub, table, until);
    else if (rc == ERR_OK)
        rc = join_hub(d, e, ring_port, table, until);
    if (rc == ERR_OK)
        rc = join_ring(d, listener, table, until);
    if (hub >= 0)
        close(hub);
    if (listener >= 0)
        close(listener);
    free(table);
    if (rc == ERR_OK && pthread_create(&d->monitor, NULL, monitor_main, d) == 0)
        d->monitoring = true;
    if (d->monitoring && pthread_create(&d->ring, NULL, ring_main, d) == 0)
        d->ringing = true;
    if (rc == ERR_OK && !d->ringing)
        rc = err_set(ERR_EXTERN, "a thread cannot be started: %s", strerror(errno));
    if (rc < 0) {
        char why[1024];
        snprintf(why, sizeof why, "%s", err_text());
        d->closing = true;
        dist_free(d);
        return err_set(rc, "%s", why);
    }
    *out = d;
    return ERR_OK;
}

int dist_use(struct dist *d, enum th_device device)
{
    return d && device == TH_CUDA ? open_gpu(d) : ERR_OK;
}

void dist_close(struct dist *d, const char *error)
{
    if (!d)
        return;
    if (d->failed && !error)
        error = d->why;
    if (error && d->rank)
        send_frame(d, d->peer[0].fd, ABORT, error, strlen(error) + 1);
    else if (error)
        fail(d, "process 0 of %d: %s", d->size, error);
    else
        for (int r = 0; r < d->size; r++)
            if (d->peer[r].fd >= 0) /* [rank] has none, nor have the others of a process that is not the hub */
                send_frame(d, d->peer[r].fd, BYE, NULL, 0);
    /* At a good end nobody goes while another may still want something of it.  After an error the hub goes last: a
     * connection closed with something unread in it takes along what the other side has yet to read. */
    double until = now_s() + (error ? 3 : d->timeout);
    pthread_mutex_lock(&d->lock);
    for (int r = 0; r < (d->rank ? 1 : d->size); r++)
        while (r != d->rank && !d->peer[r].gone && now_s() < until && (error ? !d->rank || !d->failed : !d->peer[r].bye && !d->failed)) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            t.tv_nsec += 200000000;
            t.tv_sec += t.tv_nsec / 1000000000;
            t.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&d->changed, &d->lock, &t);
        }
    pthread_mutex_unlock(&d->lock);
    pthread_mutex_lock(&d->lock);
    d->closing = true;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    dist_free(d);
}
