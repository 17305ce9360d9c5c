/* dist.h: several processes that train together, one for each GPU (or share of a CPU).
 *
 *     struct dist_env e;
 *     dist_env_read(&e);                          // who am I, by torchrun's, srun's or mpirun's variables
 *     if (e.size > 1) dist_open(&e, 120, &d);     // all are here, or an error that says who is not
 *     dist_use(d, device);                        // NCCL on CUDA; a TCP ring on the CPU
 *     dist_reduce(d, grad, 0, n);  ...            // sums over all processes, while other work goes on,
 *     dist_wait(d);                               // until here
 *     dist_close(d, rc < 0 ? err_text() : NULL);  // the others learn why this one ends
 *
 * Sums have one order whatever the timing: the same bits on all processes and on every run.
 *
 * Process 0 is the hub of control connections, over which each process is heard of every few seconds.  One that
 * dies, or is silent for the time-out, ends all: whatever they wait for here returns ERR_EXTERN with its number and, if it could
 * tell, its own error; a process that then hangs elsewhere (in a GPU's reduction) is ended.
 *
 * Every function but those on struct dist_env takes d NULL, for a process alone, and then does the obvious.
 * Calls come from one thread; all processes make the same calls in the same order.
 */
#ifndef MODEL_DIST_H
#define MODEL_DIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shim/torch.h"

struct dist;

struct dist_env {
    int rank, size;        /* 0 of 1 when alone */
    int local_rank, local_size; /* on this host: which GPU, and how many processes (1 if nobody says) */
    char host[256];        /* of process 0 */
    int port;
    const char *launcher;  /* "torchrun", "Slurm", "Open MPI", "MPI" or "" */
};

/* RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT (torchrun); else those of a Slurm step; else those of Open MPI,
 * MPICH or Intel MPI, with MASTER_ADDR where there are several hosts.  ERR_USAGE when they make no sense. */
int dist_env_read(struct dist_env *out);
/* First host of a Slurm node list ("gpu[003-007,9],x1": gpu003). */
void dist_first_host(const char *list, char *out, size_t cap);
/* Makes the GPU of this process the only one that CUDA sees: before CUDA is first used. */
int dist_choose_gpu(const struct dist_env *e);

/* Waits up to timeout_s for all processes.  ERR_EXTERN. */
int dist_open(const struct dist_env *e, double timeout_s, struct dist **out);
/* Opens the way that gradients take.  ERR_EXTERN; ERR_USAGE when two processes have the same GPU. */
int dist_use(struct dist *d, enum th_device device);
/* error NULL: a good end, for which all wait.  Else the others are told and end, too. */
void dist_close(struct dist *d, const char *error);

/* Why all end, once that is known; NULL: they do not. */
const char *dist_failure(const struct dist *d);
int dist_rank(const struct dist *d);
int dist_size(const struct dist *d);

/* all [size * bytes] = every process's mine [bytes], in their order. */
int dist_gather(struct dist *d, const void *mine, size_t bytes, void *all);
/* v [n] = the sum over all processes. */
int dist_sum(struct dist *d, double *v, int n);
/* ERR_USAGE naming `what` and the process when not all have the same value. */
int dist_agree(struct dist *d, const char *what, uint64_t value);

/* Begins to sum elements from..from + n - 1 of a dense float32 tensor over all processes, in place: what was queued on the
 * device ahead of it is waited for, what comes later is not.  The tensor is left alone until dist_wait(). */
int dist_reduce(struct dist *d, th_tensor *x, int64_t from, int64_t n);
/* Work that comes after sees the sums.  On a GPU nothing waits on the host. */
int dist_wait(struct dist *d);

#endif
