/* optim.h: the optimiser's kernels.  model/optim.c holds their twin for the CPU, which gives the same bits
 * (but for the norm, whose sum has another order). */
#ifndef KERNELS_OPTIM_H
#define KERNELS_OPTIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { OPTIM_BLOCK = 256, OPTIM_PARTS = 1024 };

/* One step over blocks of 256 elements.  State block b belongs to block where[b] of w, half and g. */
struct adamw_args {
    float *w;                      /* the weights */
    void *half;                    /* their bfloat16 copy; NULL: none */
    const float *g;                /* gradients */
    const int32_t *where;          /* [blocks] */
    const uint8_t *decays;         /* [blocks] weight decay or not */
    void *m, *v;                   /* moments [blocks * 256]: float32, or codes when absmax is there */
    float *absmax1, *absmax2;      /* [blocks], of m and of v; NULL: 32-bit state */
    const float *map1, *map2;      /* [256], ascending: what the codes stand for, in units of absmax */
    const float *clip;             /* [2]: the gradients' norm, and their factor.  A norm that is not finite: no step */
    int64_t blocks;
    float beta1, beta2, rest1, rest2; /* rest: 1 - beta */
    float keep;                    /* 1 - lr * weight decay */
    float rate, eps;               /* w += rate m / (sqrt(v) + eps) */
};

typedef int k_adamw_fn(void *stream, const struct adamw_args *a);
/* clip[0] = Euclidean norm of g [n], n a multiple of 4; clip[1] = max_norm / (norm + 1e-6) where that is below 1 and
 * max_norm > 0, else 1.  parts: room for OPTIM_PARTS doubles. */
typedef int k_clip_fn(void *stream, const float *g, int64_t n, float max_norm, double *parts, float *clip);

#ifdef __cplusplus
int k_adamw(void *stream, const struct adamw_args *a);
int k_clip(void *stream, const float *g, int64_t n, float max_norm, double *parts, float *clip);
}
#endif
#endif
