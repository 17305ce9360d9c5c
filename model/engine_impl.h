/* engine_impl.h: between engine.c, which knows sequences, and the ways to compute, which know places (0 to max_batch - 1).
 *
 * A place holds the keys and values of one sequence.  A prompt but for its last token is read at once; then
 * steps take columns, each one token at the position where it goes, those of a place together and in order.
 */
#ifndef MODEL_ENGINE_IMPL_H
#define MODEL_ENGINE_IMPL_H

#include "model/draft.h"
#include "model/engine.h"

struct engine_column {
    int32_t place, token, pos;
};

/* How to choose the token after a column. */
struct engine_choice {
    struct engine_sampling s;
    int64_t at;              /* its place in the text, from 0: with the seed, what is drawn */
    const uint32_t *mask;    /* NULL: all tokens */
};

struct engine_way {
    const char *name;
    int64_t max_columns;     /* of a step */
    const int *wide;         /* the numbers of columns that a step is computed for, as in draft_cost (NULL: each) */
    int64_t max_a_place;     /* of a place in a step: 1 if it cannot verify drafts */
    size_t weight_bytes, cache_bytes;
    void *state;
    /* 1: the place has room for n tokens; 0: not now; negative: error. */
    int (*reserve)(struct engine_way *w, int64_t place, int64_t n);
    void (*release)(struct engine_way *w, int64_t place);
    int (*prefill)(struct engine_way *w, int64_t place, const int32_t *ids, size_t n);
    /* logits: somebody will choose by sampling or under a mask. */
    int (*step)(struct engine_way *w, const struct engine_column *c, int64_t n, bool logits);
    /* Tokens for columns from to from + n of the last step; -1 where no logit is a number to choose by. */
    int (*choose)(struct engine_way *w, int64_t from, int64_t n, const struct engine_choice *c, int32_t *out);
    /* A column's logits, [vocab] (tests). */
    int (*logits)(struct engine_way *w, int64_t column, float *out);
    /* Of the CUDA kernels: NULL begins to note times, else out gets [*n][DK_MARKS] of the last step (kernels/decode.h) and kinds what
     * they are; first with NULL for the room that is due. */
    int (*trace)(struct engine_way *w, uint64_t *out, int *kinds, int *n);
    void (*free)(struct engine_way *w);
};

/* Each fills *out, or leaves out->name NULL where it does not apply. */
int engine_cuda(struct model *m, const struct engine_options *o, struct engine_way *out);
int engine_cpu(struct model *m, const struct engine_options *o, struct engine_way *out);
int engine_aten(struct model *m, const struct engine_options *o, struct engine_way *out);

/* The choice on the CPU; -1: the largest permitted logit is not finite. */
int32_t engine_pick(const float *logits, int64_t vocab, const struct engine_choice *c, uint32_t *scratch);

/* What passes take: least squares over the last few hundred, older ones with less weight.  A pass over n columns took t seconds;
 * *cost is what the next ones will, as soon as that can be told. */
struct engine_timing {
    double w, n, t, nn, nt;
};
void engine_learn_cost(struct engine_timing *k, int64_t n, double t, struct draft_cost *cost);

struct engine_way *engine_way_of(struct engine *e); /* tests, benchmarks */

#endif
