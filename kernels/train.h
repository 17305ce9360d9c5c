/* train.h: the training step's element-wise kernels, each of which makes one pass over memory.
 *
 * One table of functions, twice: kernels/train.cu on the GPU (in libkernels.so, which model/kernels.h opens),
 * model/train_twin.c on the CPU.  Both do the same arithmetic: values are read in the compute type (float32 or
 * bfloat16), worked on in float32 and rounded once.  Matrices are row-major, ld the distance of two rows in
 * elements.  On the GPU sizes and ld are multiples of 8 and pointers aligned to 16 bytes (rope's and
 * cross_entropy's may be any).
 *
 * Every function returns 0, or a CUDA error code for error().
 */
#ifndef KERNELS_TRAIN_H
#define KERNELS_TRAIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { TK_F32, TK_BF16 };       /* as TH_F32, TH_BF16 */
enum { TK_PARTIALS = 2048 };    /* rows of a sum by parts */

struct tk {
    int type;                   /* of x, w, ... where they are void */
    void *stream;               /* cudaStream_t; unused on the CPU */
};

/* dst [rows, cols] (ld) = scale * src [rows, cols], dense */
struct tk_copy {
    const void *src;
    void *dst;
    int64_t rows, cols, ld;
    float scale, unused;
};

struct train_kernels {
    const char *(*error)(int code);

    /* Where a function takes q (ld_q) and qs (NULL: not wanted), it also gives its result in 8 bits, a scale for each row:
     * q = e4m3(y / qs), qs [rows] = the row's largest magnitude / 448. */

    /* s = x + add (add NULL: x), stored in sum unless NULL;  y = s rstd w,  rstd = 1 / sqrt(mean(s^2) + eps) */
    int (*rms_norm)(const struct tk *k, int64_t rows, int64_t d, const void *x, const void *add, const void *w, float eps,
                    void *sum, void *y, int64_t ld_y, float *rstd, void *q, int64_t ld_q, float *qs);
    /* q, qs of x [rows, cols] (ld) */
    int (*quantize)(const struct tk *k, int64_t rows, int64_t cols, const void *x, int64_t ld, void *q, int64_t ld_q, float *qs);
    /* An adapter's u [rows, ranks] (ld, and `step` from one value to the next) into the columns of q after the first `cols`, so that the
     * product of such rows with rows made with `right` has the adapter's part as exactly as bfloat16 would: u / qs is hi + lo, two of
     * e4m3, here as hi, lo, hi, with `right` as hi, hi, lo; zeros up to ld_q.  A row whose u is beyond 448 qs gets a larger qs, by a
     * power of two, and its q with it.  cols a multiple of 8. */
    int (*quantize_beside)(const struct tk *k, int64_t rows, int64_t cols, const void *u, int64_t ld, int64_t step, int64_t ranks, int right,
                           void *q, int64_t ld_q, float *qs);
    /* dx [rows, d] (ld_dx) (+)= rstd (g - n mean(g n)),  g = dh w,  n = x rstd.  partial [TK_PARTIALS, d] or NULL: sums
     * to the gradient of w. */
    int (*rms_norm_backward)(const struct tk *k, int64_t rows, int64_t d, const void *dh, int64_t ld_dh, const void *x,
                             const void *w, const float *rstd, int accumulate, void *dx, int64_t ld_dx, void *q, int64_t ld_q, float *qs, float *partial);
    /* dst [d] += the sum of the rows of partial [n, d] */
    int (*column_sums)(const struct tk *k, int64_t n, int64_t d, const float *partial, float *dst);
    /* Rotates in place the first `heads` heads of each row of x: with a, b the halves of a head,
     * a cos - b sin, b cos + a sin.  cos, sin [positions, head_dim / 2]; pos [rows]. */
    int (*rope)(const struct tk *k, int64_t rows, int64_t heads, int64_t head_dim, void *x, int64_t ld, const int32_t *pos,
                const float *cos, const float *sin);
    /* dx [rows, (h + 2 kv) head_dim]: dq [rows, h head_dim] and dk [rows, kv head_dim] rotated back, dv as it is. */
    int (*rope_backward)(const struct tk *k, int64_t rows, int64_t h, int64_t kv, int64_t head_dim, const void *dq,
                         const void *dk, const void *dv, void *dx, const int32_t *pos, const float *cos, const float *sin, void *q, int64_t ld_q, float *qs);
    /* gu [rows, 2 f], gate and up:  act [rows, f] (ld_act) = silu(gate) up */
    int (*swiglu)(const struct tk *k, int64_t rows, int64_t f, const void *gu, void *act, int64_t ld_act, void *q, int64_t ld_q,
                  float *qs);
    /* gu becomes its gradient, which q and qs are of; act, unless NULL, what swiglu gave. */
    int (*swiglu_backward)(const struct tk *k, int64_t rows, int64_t f, void *gu, const void *d_act, void *act, int64_t ld_act,
                           void *q, int64_t ld_q, float *qs);
    /* loss [rows] = -log softmax(logits)[target];  with backward logits becomes scale (softmax - onehot(target)). */
    int (*cross_entropy)(const struct tk *k, int64_t rows, int64_t vocab, void *logits, const int32_t *target, int backward,
                         float scale, float *loss);
    /* grad [.., d] of an embedding += rows of dy.  order [rows]: rows of dy sorted by token; segment s is order[seg[s]] to
     * order[seg[s + 1] - 1], of one token; token i is id[i] and has the segments of[i] to of[i + 1] - 1.
     * partial [n_segs, d] is scratch. */
    int (*embed_backward)(const struct tk *k, int64_t d, const void *dy, int64_t ld_dy, const int32_t *order, int64_t n_segs,
                          const int32_t *seg, int64_t n_ids, const int32_t *id, const int32_t *of, float *partial, float *grad);
    /* items: n, in the device's memory */
    int (*copy)(const struct tk *k, int64_t n, const struct tk_copy *items);
};

const struct train_kernels *train_kernels(void);      /* of libkernels.so */
const struct train_kernels *train_kernels_cpu(void);

#ifdef __cplusplus
}
#endif
#endif
