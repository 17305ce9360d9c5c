/* reward.h: the geometry reward of reinforcement learning, for batches of candidates.
 *
 *     struct reward *r;
 *     reward_open(&(struct reward_opts){.hardened = true, .work = occ_work}, &r);   // before CUDA and threads
 *     reward_batch(r, items, n, scores);
 *     reward_close(r);
 *
 * paper:    the original's: one-sided scaled Chamfer distance by the original's registration, 1 up
 *           to the lower bound, 0 from the upper, linear between.
 * hardened: what cannot be had for less than the true shape.  Of the best alignment at true size the
 *           worse direction counts (a bounding box covers the truth, but not the reverse), times 1/2
 *           for topology that is not closed and valid or has gaps (part_gaps()), times the volume ratio (the smaller over the
 *           larger, free from 0.9 on).  Nothing without a solid of positive volume.
 *
 * A candidate that cannot be read, hangs, crashes or gives no number scores 0 with its reason.  A
 * truth that cannot be read is no fault of the candidate: status REWARD_TRUTH_FAILED, to be dropped.
 */
#ifndef LIB_REWARD_H
#define LIB_REWARD_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/mem.h"

struct reward;

struct reward_opts {
    bool hardened;
    double lower, upper; /* both 0: 0.01 and 0.5, the paper's */
    size_t points;       /* 0: 2000 */
    int threads;         /* workers and threads; 0: one a core */
    double seconds;      /* a candidate may take; 0: 10 */
    size_t memory;       /* bytes; 0: 2 GiB */
    size_t keep_truths;  /* parts of truths kept for later batches; 0: 512 */
    const char *what;    /* of a progress bar; NULL: none */
    /* occ_work() of shim/occt.h, named by the caller, as this library needs no OpenCASCADE */
    int (*work)(void *ctx, const char *job, size_t n, struct buf *out);
};

struct reward_item {
    const char *truth; /* path */
    const char *name;  /* path of the candidate, or a name for its text */
    const char *text;  /* NULL: read it from name */
    size_t n;
};

enum reward_status { REWARD_OK, REWARD_PRED_FAILED, REWARD_TRUTH_FAILED };

struct reward_score {
    enum reward_status status;
    char reason[160];    /* "" if ok */
    double reward;
    double scd, scd_two_sided, worse; /* NAN when not ok; worse: of the two directions */
    bool closed, valid;  /* hardened; valid: and without gaps */
    double volume_ratio; /* hardened; else NAN */
};

int reward_open(const struct reward_opts *o, struct reward **out);
/* ERR_OK, or the program's own failure (ERR_CANCELLED, ...); out: [n]. */
int reward_batch(struct reward *r, const struct reward_item *items, size_t n, struct reward_score *out);
void reward_close(struct reward *r); /* NULL is fine */

#endif
