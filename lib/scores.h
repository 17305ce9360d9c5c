/* scores.h: what the evaluators recorded in the run database, as rows of the paper's table.
 *
 * A row is a label and a way of scoring: `strict` (the tools' default; --align best for chamfer) or
 * `reference` (as the original scores; comparable with the paper's figures).  Its numbers are of the newest
 * finished run of each tool under that label, from the items of that run.
 *
 *     struct scores s;
 *     int rc = scores_read(rundb_sqlite(db), &(struct scores_request){.resamples = 2000, .seed = 3407}, &s);
 *     for (size_t i = 0; i < s.n; i++)
 *         printf("%s: CR %g\n", s.v[i].label, s.v[i].cr.value);
 *     scores_release(&s);
 */
#ifndef LIB_SCORES_H
#define LIB_SCORES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/stats.h"

struct sqlite3;

enum score_tool { SCORE_CR, SCORE_RR, SCORE_CD, SCORE_AEC, SCORE_TOOLS };
extern const char *const score_tools[SCORE_TOOLS]; /* "complete-ratio", ... */

/* One generated part, as the strict runs of its label score it (else the reference ones). */
struct score_part {
    char *name;               /* file name less its suffix */
    char *file, *truth;       /* openable paths; NULL: none */
    char *caption;            /* NULL: not known */
    int complete, renderable; /* 1, 0; -1: not scored */
    double scd, scd_two_sided, f_score, volume_ratio, entities, tokens; /* NaN: none */
    char *not_complete, *not_renderable, *no_distance; /* why; NULL: it is, or is not known */
    bool placed;
    double place[12];         /* placed: rotation by rows and translation that lay it on the truth, mm */
};

struct score_reason {
    enum score_tool tool;
    char *reason; /* its first words, so that like reasons count together */
    size_t n;
};

struct score_row {
    char *label;
    bool reference;
    int64_t run[SCORE_TOOLS]; /* 0: none finished */
    struct stats_interval cr, rr, aec; /* shares; mean number of entities */
    /* Medians of scaled Chamfer distances, one-sided and two-sided: over the pairs that have one, and
     * with every failed or missing prediction as infinitely far. */
    struct stats_interval mscd, mscd_worst, mscd2, mscd2_worst, f_score;
    size_t shards_missing;    /* of tools that were run by shards: those without a finished run */
    size_t unread;            /* complete-ratio: files that could not be read, and are not in cr */
    size_t unparsed;          /* entity-stats: files without a count, not in aec */
    size_t pred_failed, pred_missing; /* chamfer: count as worst */
    size_t truth_failed, truth_missing; /* chamfer: the data's fault, in no median */
    double *entities;         /* [aec.n] */
    struct score_reason *reason;
    size_t n_reasons, cap_reasons;
};

struct score_label {
    char *label;
    struct score_part *part;  /* only if asked for */
    size_t n_parts, cap_parts;
    uint32_t *slot;           /* hash table of part indices + 1, by file */
    size_t n_slots;
    size_t not_generated;     /* items that generate's newest run of this label failed at */
};

struct scores {
    struct score_row *v;      /* by label, in the order of their first run; strict ahead of reference */
    size_t n, cap;
    struct score_label *label;
    size_t n_labels;
};

struct scores_request {
    const char *const *labels; /* only these, in this order; NULL: all */
    size_t n_labels;
    bool parts;               /* fill label[].part */
    size_t resamples;         /* of the bootstrap */
    uint64_t seed;
};

/* ERR_IO when the database cannot be read. */
int scores_read(struct sqlite3 *sq, const struct scores_request *q, struct scores *out);
void scores_release(struct scores *s);

#endif
