/* train_twin.c: the kernels of kernels/train.h on the CPU, which trains with them and checks the GPU's against them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/train.h"
#include "lib/mem.h"
#include "shim/torch.h"

static float bf16_to_float(uint16_t v)
{
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t float_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (f != f)
        return 0x7fc0;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16); /* to nearest, ties to even */
}

static const void *at(int type, const void *x, int64_t i)
{
    return (const char *)x + i * (type == TK_BF16 ? 2 : 4);
}

static void load(int type, const void *x, int64_t from, int64_t n, float *out)
{
    const uint16_t *h = at(type, x, from);
    if (type == TK_F32)
        memcpy(out, at(type, x, from), (size_t)n * sizeof *out);
    else
        for (int64_t i = 0; i < n; i++)
            out[i] = bf16_to_float(h[i]);
}

static void store(int type, void *x, int64_t from, int64_t n, const float *v)
{
    uint16_t *h = (uint16_t *)at(type, x, from);
    if (type == TK_F32)
        memcpy((void *)at(type, x, from), v, (size_t)n * sizeof *v);
    else
        for (int64_t i = 0; i < n; i++)
            h[i] = float_to_bf16(v[i]);
}

static float rounded(int type, float v)
{
    return type == TK_F32 ? v : bf16_to_float(float_to_bf16(v));
}

/* Sign, 4 bits of exponent, 3 of mantissa; 448 at most, which larger ones become. */
static uint8_t float_to_e4m3(float f)
{
    uint8_t sign = signbit(f) ? 0x80 : 0;
    float a = fabsf(f);
    int e;
    if (a != a)
        return sign | 0x7f;
    if (a >= 448)
        return sign | 0x7e;
    if (a < 0x1p-6f)
        return sign | (uint8_t)nearbyintf(a * 512); /* 8 is the first normal one */
    frexpf(a, &e);
    int m = (int)nearbyintf(ldexpf(a, 4 - e)); /* 8..16 */
    return sign | (uint8_t)((e + 5) * 8 + m);
}

static float e4m3_to_float(uint8_t q)
{
    int e = q >> 3 & 15, m = q & 7;
    float a = (q & 0x7f) == 0x7f ? NAN : e ? ldexpf((float)(8 + m), e - 10) : (float)m / 512;
    return q & 0x80 ? -a : a;
}

/* Row i of q (ld) and qs, from n floats. */
static void store_q(void *q, int64_t ld, float *qs, int64_t i, int64_t n, const float *v)
{
    uint8_t *out = (uint8_t *)q + i * ld;
    float top = 0;
    for (int64_t j = 0; j < n; j++)
        top = fmaxf(top, fabsf(v[j]));
    float inverse = top > 0 ? 448 / top : 0;
    qs[i] = top / 448;
    for (int64_t j = 0; j < n; j++)
        out[j] = float_to_e4m3(v[j] * inverse);
}

static const char *no_error(int code)
{
    (void)code;
    return "no error";
}

/* Each function packs its arguments for the threads, which take ranges of rows. */

struct norm_args {
    int type, accumulate;
    int64_t d, ld_y, ld_q, ld_dh, n;
    const void *x, *add, *w, *dh;
    void *sum, *y;
    float eps, *rstd, *partial, *qs;
    void *q;
};

static void norm_rows(void *ctx, int64_t from, int64_t to)
{
    const struct norm_args *a = ctx;
    float *x = xmalloc((size_t)(3 * a->d) * sizeof *x), *w = x + a->d, *r = w + a->d;
    load(a->type, a->w, 0, a->d, w);
    for (int64_t i = from; i < to; i++) {
        double square = 0;
        load(a->type, a->x, i * a->d, a->d, x);
        if (a->add) {
            load(a->type, a->add, i * a->d, a->d, r);
            for (int64_t j = 0; j < a->d; j++)
                x[j] = rounded(a->type, x[j] + r[j]);
        }
        if (a->sum)
            store(a->type, a->sum, i * a->d, a->d, x);
        for (int64_t j = 0; j < a->d; j++)
            square += x[j] * x[j];
        a->rstd[i] = (float)(1 / sqrt(square / (double)a->d + a->eps));
        for (int64_t j = 0; j < a->d; j++) /* Hugging Face's order: normalise, round, weigh */
            x[j] = rounded(a->type, x[j] * a->rstd[i]) * w[j];
        store(a->type, a->y, i * a->ld_y, a->d, x);
        for (int64_t j = 0; j < a->d && a->q; j++)
            x[j] = rounded(a->type, x[j]);
        if (a->q)
            store_q(a->q, a->ld_q, a->qs, i, a->d, x);
    }
    free(x);
}

static int rms_norm(const struct tk *k, int64_t rows, int64_t d, const void *x, const void *add, const void *w, float eps,
                    void *sum, void *y, int64_t ld_y, float *rstd, void *q, int64_t ld_q, float *qs)
{
    struct norm_args a = {.type = k->type, .d = d, .x = x, .add = add, .w = w, .eps = eps, .sum = sum, .y = y, .ld_y = ld_y,
                          .rstd = rstd, .q = q, .ld_q = ld_q, .qs = qs};
    th_parallel(rows, 16, norm_rows, &a);
    return 0;
}

static void quantize_rows(void *ctx, int64_t from, int64_t to)
{
    const struct norm_args *a = ctx;
    float *x = xmalloc((size_t)a->d * sizeof *x);
    for (int64_t i = from; i < to; i++) {
        load(a->type, a->x, i * a->ld_y, a->d, x);
        store_q(a->q, a->ld_q, a->qs, i, a->d, x);
    }
    free(x);
}

static int quantize(const struct tk *k, int64_t rows, int64_t n_cols, const void *x, int64_t ld, void *q, int64_t ld_q, float *qs)
{
    struct norm_args a = {.type = k->type, .d = n_cols, .x = x, .ld_y = ld, .q = q, .ld_q = ld_q, .qs = qs};
    th_parallel(rows, 16, quantize_rows, &a);
    return 0;
}

struct beside_args {
    int type, right;
    int64_t cols, ld, step, ranks, ld_q;
    const void *u;
    void *q;
    float *qs;
};

static void beside_rows(void *ctx, int64_t from, int64_t to)
{
    const struct beside_args *a = ctx;
    for (int64_t i = from; i < to; i++) {
        uint8_t *q = (uint8_t *)a->q + i * a->ld_q, *beside = q + a->cols;
        float top = 0, v;
        for (int64_t j = 0; j < a->ranks; j++) {
            load(a->type, a->u, i * a->ld + j * a->step, 1, &v);
            top = fmaxf(top, fabsf(v));
        }
        if (top > 448 * a->qs[i]) { /* times the least power of two that is not below the ratio */
            int e;
            if (frexpf(a->qs[i] > 0 ? top / (448 * a->qs[i]) : top / 448, &e) == 0.5f)
                e--;
            for (int64_t j = 0; j < a->cols && a->qs[i] > 0; j++)
                q[j] = float_to_e4m3(ldexpf(e4m3_to_float(q[j]), -e));
            a->qs[i] = ldexpf(a->qs[i] > 0 ? a->qs[i] : 1, e);
        }
        float inverse = a->qs[i] > 0 ? 1 / a->qs[i] : 0;
        memset(beside, 0, (size_t)(a->ld_q - a->cols));
        for (int64_t j = 0; j < a->ranks; j++) {
            load(a->type, a->u, i * a->ld + j * a->step, 1, &v);
            v *= inverse;
            uint8_t hi = float_to_e4m3(v), lo = float_to_e4m3(v - e4m3_to_float(hi));
            beside[j] = hi;
            beside[a->ranks + j] = a->right ? hi : lo;
            beside[2 * a->ranks + j] = a->right ? lo : hi;
        }
    }
}

static int quantize_beside(const struct tk *k, int64_t rows, int64_t cols, const void *u, int64_t ld, int64_t step, int64_t ranks, int right,
                           void *q, int64_t ld_q, float *qs)
{
    struct beside_args a = {.type = k->type, .right = right, .cols = cols, .ld = ld, .step = step, .ranks = ranks, .ld_q = ld_q, .u = u, .q = q, .qs = qs};
    th_parallel(rows, 64, beside_rows, &a);
    return 0;
}

/* `from` and `to` count parts of the rows, each with a sum of its own for the weight's gradient. */
static void norm_backward_parts(void *ctx, int64_t from, int64_t to)
{
    const struct norm_args *a = ctx;
    int64_t d = a->d;
    float *dh = xmalloc((size_t)(4 * d) * sizeof *dh), *x = dh + d, *w = x + d, *dx = w + d;
    load(a->type, a->w, 0, d, w);
    for (int64_t p = from; p < to; p++) {
        float *dw = a->partial ? a->partial + p * d : NULL;
        if (dw)
            memset(dw, 0, (size_t)d * sizeof *dw);
        for (int64_t i = a->n * p / TK_PARTIALS; i < a->n * (p + 1) / TK_PARTIALS; i++) {
            double dot = 0;
            float r = a->rstd[i];
            load(a->type, a->dh, i * a->ld_dh, d, dh);
            load(a->type, a->x, i * d, d, x);
            if (a->accumulate)
                load(a->type, a->y, i * a->ld_y, d, dx);
            else
                memset(dx, 0, (size_t)d * sizeof *dx);
            for (int64_t j = 0; j < d; j++) {
                x[j] *= r;
                if (dw)
                    dw[j] += dh[j] * x[j];
                dh[j] *= w[j];
                dot += dh[j] * x[j];
            }
            float mean = (float)(dot / (double)d);
            for (int64_t j = 0; j < d; j++)
                dx[j] += r * (dh[j] - x[j] * mean);
            store(a->type, a->y, i * a->ld_y, d, dx);
            if (a->q) {
                load(a->type, a->y, i * a->ld_y, d, dx); /* as it is rounded */
                store_q(a->q, a->ld_q, a->qs, i, d, dx);
            }
        }
    }
    free(dh);
}

static int rms_norm_backward(const struct tk *k, int64_t rows, int64_t d, const void *dh, int64_t ld_dh, const void *x,
                             const void *w, const float *rstd, int accumulate, void *dx, int64_t ld_dx, void *q, int64_t ld_q, float *qs, float *partial)
{
    struct norm_args a = {.type = k->type, .n = rows, .d = d, .dh = dh, .ld_dh = ld_dh, .x = x, .w = w, .rstd = (float *)rstd,
                          .accumulate = accumulate, .y = dx, .ld_y = ld_dx, .q = q, .ld_q = ld_q, .qs = qs, .partial = partial};
    th_parallel(TK_PARTIALS, 16, norm_backward_parts, &a);
    return 0;
}

static int column_sums(const struct tk *k, int64_t n, int64_t d, const float *partial, float *dst)
{
    (void)k;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < d; j++)
            dst[j] += partial[i * d + j];
    return 0;
}

struct rope_args {
    int type;
    int64_t h, kv, head_dim, ld;
    void *x;
    const void *dq, *dk, *dv;
    const int32_t *pos;
    const float *cos, *sin;
};

/* n heads, from src to dst */
static void rotate(int type, int64_t n, int64_t d, const void *src, int64_t from, void *dst, int64_t to, const float *c,
                   const float *s, float sign, float *x)
{
    int64_t half = d / 2;
    load(type, src, from, n * d, x);
    for (int64_t h = 0; h < n; h++) {
        float *a = x + h * d, *b = a + half;
        for (int64_t j = 0; j < half; j++) {
            float u = a[j], v = b[j];
            a[j] = u * c[j] - sign * v * s[j];
            b[j] = v * c[j] + sign * u * s[j];
        }
    }
    store(type, dst, to, n * d, x);
}

static void rope_rows(void *ctx, int64_t from, int64_t to)
{
    const struct rope_args *a = ctx;
    int64_t d = a->head_dim, half = d / 2;
    float *x = xmalloc((size_t)((a->h + a->kv) * d) * sizeof *x);
    for (int64_t i = from; i < to; i++) {
        const float *c = a->cos + a->pos[i] * half, *s = a->sin + a->pos[i] * half;
        if (!a->dq) {
            rotate(a->type, a->h, d, a->x, i * a->ld, a->x, i * a->ld, c, s, 1, x);
            continue;
        }
        rotate(a->type, a->h, d, a->dq, i * a->h * d, a->x, i * a->ld, c, s, -1, x);
        rotate(a->type, a->kv, d, a->dk, i * a->kv * d, a->x, i * a->ld + a->h * d, c, s, -1, x);
        memcpy((void *)at(a->type, a->x, i * a->ld + (a->h + a->kv) * d), at(a->type, a->dv, i * a->kv * d),
               (size_t)(a->kv * d) * (a->type == TK_BF16 ? 2 : 4));
    }
    free(x);
}

static int rope(const struct tk *k, int64_t rows, int64_t heads, int64_t head_dim, void *x, int64_t ld, const int32_t *pos,
                const float *cos, const float *sin)
{
    struct rope_args a = {.type = k->type, .h = heads, .head_dim = head_dim, .ld = ld, .x = x, .pos = pos, .cos = cos, .sin = sin};
    th_parallel(rows, 16, rope_rows, &a);
    return 0;
}

static int rope_backward(const struct tk *k, int64_t rows, int64_t h, int64_t kv, int64_t head_dim, const void *dq,
                         const void *dk, const void *dv, void *dx, const int32_t *pos, const float *cos, const float *sin, void *q, int64_t ld_q,
                         float *qs)
{
    struct rope_args a = {.type = k->type, .h = h, .kv = kv, .head_dim = head_dim, .ld = (h + 2 * kv) * head_dim, .x = dx,
                          .dq = dq, .dk = dk, .dv = dv, .pos = pos, .cos = cos, .sin = sin};
    th_parallel(rows, 16, rope_rows, &a);
    return q ? quantize(k, rows, a.ld, dx, a.ld, q, ld_q, qs) : 0;
}

struct swiglu_args {
    int type;
    int64_t f, ld_act, ld_q;
    void *gu, *act, *q;
    float *qs;
    const void *d_act;
};

static void swiglu_rows(void *ctx, int64_t from, int64_t to)
{
    const struct swiglu_args *a = ctx;
    int64_t f = a->f;
    float *g = xmalloc((size_t)(4 * f) * sizeof *g), *u = g + f, *d = u + f, *y = d + f;
    for (int64_t i = from; i < to; i++) {
        load(a->type, a->gu, 2 * i * f, 2 * f, g);
        if (a->d_act)
            load(a->type, a->d_act, i * f, f, d);
        for (int64_t j = 0; j < f; j++) {
            float s = 1 / (1 + expf(-g[j])), silu = g[j] * s;
            y[j] = silu * u[j];
            if (a->d_act) {
                g[j] = d[j] * u[j] * s * (1 + g[j] * (1 - s));
                u[j] = d[j] * silu;
            }
        }
        if (a->act)
            store(a->type, a->act, i * a->ld_act, f, y);
        if (a->d_act)
            store(a->type, a->gu, 2 * i * f, 2 * f, g);
        if (a->q && a->d_act) {
            load(a->type, a->gu, 2 * i * f, 2 * f, g);
            store_q(a->q, a->ld_q, a->qs, i, 2 * f, g);
        } else if (a->q) {
            load(a->type, a->act, i * a->ld_act, f, y);
            store_q(a->q, a->ld_q, a->qs, i, f, y);
        }
    }
    free(g);
}

static int swiglu(const struct tk *k, int64_t rows, int64_t f, const void *gu, void *act, int64_t ld_act, void *q, int64_t ld_q,
                  float *qs)
{
    struct swiglu_args a = {.type = k->type, .f = f, .gu = (void *)gu, .act = act, .ld_act = ld_act, .q = q, .ld_q = ld_q, .qs = qs};
    th_parallel(rows, 8, swiglu_rows, &a);
    return 0;
}

static int swiglu_backward(const struct tk *k, int64_t rows, int64_t f, void *gu, const void *d_act, void *act, int64_t ld_act,
                           void *q, int64_t ld_q, float *qs)
{
    struct swiglu_args a = {.type = k->type, .f = f, .gu = gu, .d_act = d_act, .act = act, .ld_act = ld_act, .q = q, .ld_q = ld_q, .qs = qs};
    th_parallel(rows, 8, swiglu_rows, &a);
    return 0;
}

struct entropy_args {
    int type, backward;
    int64_t vocab;
    void *logits;
    const int32_t *target;
    float scale, *loss;
};

static void entropy_rows(void *ctx, int64_t from, int64_t to)
{
    const struct entropy_args *a = ctx;
    float *x = xmalloc((size_t)a->vocab * sizeof *x);
    for (int64_t i = from; i < to; i++) {
        float top = -INFINITY, scale = a->scale;
        double sum = 0;
        load(a->type, a->logits, i * a->vocab, a->vocab, x);
        for (int64_t j = 0; j < a->vocab; j++)
            top = x[j] > top ? x[j] : top;
        for (int64_t j = 0; j < a->vocab; j++)
            sum += expf(x[j] - top);
        float lse = top + (float)log(sum);
        a->loss[i] = lse - x[a->target[i]];
        if (!a->backward)
            continue;
        for (int64_t j = 0; j < a->vocab; j++)
            x[j] = scale * (expf(x[j] - lse) - (j == a->target[i]));
        store(a->type, a->logits, i * a->vocab, a->vocab, x);
    }
    free(x);
}

static int cross_entropy(const struct tk *k, int64_t rows, int64_t vocab, void *logits, const int32_t *target, int backward,
                         float scale, float *loss)
{
    struct entropy_args a = {.type = k->type, .backward = backward, .vocab = vocab, .logits = logits, .target = target,
                             .scale = scale, .loss = loss};
    th_parallel(rows, 4, entropy_rows, &a);
    return 0;
}

static int embed_backward(const struct tk *k, int64_t d, const void *dy, int64_t ld_dy, const int32_t *order, int64_t n_segs,
                          const int32_t *seg, int64_t n_ids, const int32_t *id, const int32_t *of, float *partial, float *grad)
{
    (void)n_segs;
    for (int64_t i = 0; i < n_ids; i++)
        for (int32_t r = seg[of[i]]; r < seg[of[i + 1]]; r++) {
            load(k->type, dy, order[r] * ld_dy, d, partial);
            for (int64_t j = 0; j < d; j++)
                grad[id[i] * d + j] += partial[j];
        }
    return 0;
}

static int copy(const struct tk *k, int64_t n, const struct tk_copy *v)
{
    for (int64_t i = 0; i < n; i++) {
        float *x = xmalloc((size_t)v[i].cols * sizeof *x);
        for (int64_t r = 0; r < v[i].rows; r++) {
            load(k->type, v[i].src, r * v[i].cols, v[i].cols, x);
            for (int64_t c = 0; c < v[i].cols; c++)
                x[c] *= v[i].scale;
            store(k->type, v[i].dst, r * v[i].ld, v[i].cols, x);
        }
        free(x);
    }
    return 0;
}

const struct train_kernels *train_kernels_cpu(void)
{
    static const struct train_kernels t = {no_error, rms_norm, quantize, quantize_beside, rms_norm_backward, column_sums, rope, rope_backward, swiglu, swiglu_backward,
                                           cross_entropy, embed_backward, copy};
    return &t;
}
