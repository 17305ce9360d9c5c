/* optim.h: AdamW over a model's trained parameters, gradient clipping, learning-rate schedules.
 *
 *     m = b1 m + (1 - b1) g ;  v = b2 v + (1 - b2) g^2
 *     w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
 *
 * (Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; PyTorch's AdamW.)  Moments and
 * weights are float32; the model's own copy in its compute type follows each step.
 */
#ifndef MODEL_OPTIM_H
#define MODEL_OPTIM_H

#include "model/transformer.h"

struct adamw {
    double beta1, beta2, eps, weight_decay;
    int64_t step;             /* steps taken */
    struct model *m;
    struct param **params;    /* the trained ones, in the model's order */
    th_tensor **moment1, **moment2;
    size_t n;
};

int adamw_new(struct model *m, double beta1, double beta2, double eps, double weight_decay, struct adamw **out);
void adamw_free(struct adamw *o); /* NULL is fine */

/* Euclidean norm of all gradients, which are scaled down to max_norm if above it (max_norm 0: not). */
int adamw_clip(struct adamw *o, double max_norm, double *norm);
int adamw_step(struct adamw *o, double lr);

/* State as safetensors: "exp_avg.NAME", "exp_avg_sq.NAME", "weight.NAME" (the float32 originals), and the step
 * in the metadata.  Loading makes the next step the one that would have followed, to the bit. */
int adamw_save(struct adamw *o, const char *path);
int adamw_load(struct adamw *o, const char *path);

enum schedule { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT };
/* Factor of the learning rate for step `step` (0-based) of `total`: rises linearly over `warmup` steps from 0,
 * then falls to 0 (Transformers' get_linear_schedule_with_warmup and its cosine and constant kin). */
double schedule_factor(enum schedule s, int64_t step, int64_t warmup, int64_t total);

#endif
