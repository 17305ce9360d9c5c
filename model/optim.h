/* optim.h: AdamW over a model's trained parameters, gradient clipping, learning-rate schedules.
 *
 *     m = b1 m + (1 - b1) g ;  v = b2 v + (1 - b2) g^2
 *     w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
 *
 * (Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; PyTorch's AdamW.)  Weights are float32; the
 * model's own copy in its compute type follows each step.
 *
 * Gradients, weights and their copies of all parameters lie in one array each, in the model's order, every
 * parameter at a multiple of 256 elements with zeros behind it (what the parameters hold are views).  So the norm, the step and an
 * all-reduce are each one pass over memory, and on a GPU one launch or two.
 *
 * State is float32, or 8 bits blockwise as bitsandbytes keeps it (Dettmers et al., "8-bit Optimizers via Block-wise
 * Quantization", ICLR 2022): in blocks of 256, a factor absmax and codes of the dynamic map, signed for m and
 * unsigned for v; parameters of under 4096 elements and embeddings stay in float32.
 */
#ifndef MODEL_OPTIM_H
#define MODEL_OPTIM_H

#include "model/transformer.h"

struct adamw_config {
    double beta1, beta2, eps, weight_decay;
    bool bits8;
};

/* Blocks of 256 elements with state of one kind. */
struct adamw_group {
    bool bits8;
    int64_t blocks;
    th_tensor *where;         /* [blocks] int32: which block of the arrays */
    th_tensor *decays;        /* [blocks] uint8: subject to weight decay */
    th_tensor *moment1, *moment2; /* [blocks * 256] float32 or uint8 */
    th_tensor *absmax1, *absmax2; /* [blocks]; NULL with float32 */
};

struct adamw {
    struct adamw_config c;
    int64_t step;             /* steps taken */
    struct model *m;
    struct param **params;    /* the trained ones, in the model's order */
    int64_t *offset;          /* [n + 1]: where each begins in the arrays; the last: their length */
    size_t n;
    th_tensor *grad, *weight, *copy; /* the arrays; copy NULL when the model computes in float32 */
    struct adamw_group group[2]; /* float32 state, 8-bit state */
    int64_t *state_at;        /* [n]: where each begins in its group's moments */
    th_tensor *map1, *map2;   /* what the codes mean */
    th_tensor *clip, *parts;  /* norm and factor of the last step; room for partial sums */
};

/* Moves the trained parameters into the arrays.  ERR_NOMEM. */
int adamw_new(struct model *m, const struct adamw_config *c, struct adamw **out);
void adamw_free(struct adamw *o); /* NULL is fine; the parameters keep what they view */

int adamw_zero_grad(struct adamw *o);
/* Scales the gradients down to max_norm if their norm is above (0: not), and steps; nothing waits for a GPU.  A norm
 * that is not finite makes no step: adamw_norm() tells. */
int adamw_step(struct adamw *o, double lr, double max_norm);
/* The Euclidean norm of all gradients at the last step, before clipping.  Waits for it.  One that is not finite: the
 * weights, the state and o->step are as before that step. */
int adamw_norm(struct adamw *o, double *norm);

/* State as safetensors: "exp_avg.NAME", "exp_avg_sq.NAME" (with "exp_avg.absmax.NAME" and its like for 8-bit
 * state), "weight.NAME" (the float32 originals), and the step in the metadata.  Loading makes the next step the one that would
 * have followed, to the bit.  ERR_USAGE when the state is of the other optimiser. */
int adamw_save(struct adamw *o, const char *path);
int adamw_load(struct adamw *o, const char *path);

/* The 256 values of the dynamic map, ascending. */
void adamw_dynamic_map(bool is_signed, float map[256]);
/* Index of the value nearest to x in [-1, 1]; between two, the even one. */
int adamw_nearest(const float map[256], float x);

enum schedule { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT };
/* Factor of the learning rate for step `step` (0-based) of `total`: rises linearly over `warmup` steps from 0,
 * then falls to 0 (Transformers' get_linear_schedule_with_warmup and its cosine and constant kin). */
double schedule_factor(enum schedule s, int64_t step, int64_t warmup, int64_t total);

#endif
