#include "model/optim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/optim.h"
#include "lib/err.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "shim/kernels.h"

enum { BLOCK = OPTIM_BLOCK, SMALL = 4096 }; /* smaller parameters keep float32 state, as with bitsandbytes */

static int shape_of(const th_tensor *x, int64_t shape[TH_MAX_RANK])
{
    for (int i = 0; i < th_rank(x); i++)
        shape[i] = th_size(x, i);
    return th_rank(x);
}

/* ---- the 8-bit code ---- */

void adamw_dynamic_map(bool is_signed, float map[256])
{
    /* Seven decades 10^-6..1; in decade i the means of 2^i (unsigned: 2^(i+1)) equal steps from 0.1 to 1, with
     * either sign; and 0 and 1.  Rounded as PyTorch's linspace rounds, for the same bits. */
    size_t n = 0;
    for (int i = 0; i < 7; i++) {
        int steps = 1 << (i + !is_signed);
        float width = (1.0f - 0.1f) / (float)steps, power = (float)pow(10, i - 6), below = 0.1f;
        for (int k = 1; k <= steps; k++) {
            float at = k < (steps + 1) / 2 ? fmaf(width, (float)k, 0.1f) : fmaf(-width, (float)(steps - k), 1.0f);
            float v = power * ((below + at) / 2);
            below = at;
            map[n++] = v;
            if (is_signed)
                map[n++] = -v;
        }
    }
    map[n++] = 0;
    map[n++] = 1;
    for (size_t i = 1; i < n; i++) /* ascending */
        for (size_t k = i; k > 0 && map[k - 1] > map[k]; k--) {
            float x = map[k];
            map[k] = map[k - 1];
            map[k - 1] = x;
        }
}

int adamw_nearest(const float map[256], float x)
{
    int pivot = 127, above = 255, below = 0;
    float upper = 1, lower = map[0] < 0 ? -1 : 0, val = map[127];
    for (int i = 64; i; i >>= 1) {
        if (x > val) {
            below = pivot;
            lower = val;
            pivot += i;
        } else {
            above = pivot;
            upper = val;
            pivot -= i;
        }
        val = map[pivot];
    }
    if (x > val)
        return x > (upper + val) * 0.5f ? above : pivot;
    return x < (lower + val) * 0.5f ? below : pivot;
}

/* ---- the kernels' twins ---- */

static void block_step(const struct adamw_args *a, float *w, const float *g, float *m, float *v, bool decays)
{
    const float factor = a->clip[1], keep = decays ? a->keep : 1;
    for (int i = 0; i < BLOCK; i++) {
        float x = g[i] * factor;
        m[i] = m[i] * a->beta1 + a->rest1 * x;
        v[i] = v[i] * a->beta2 + a->rest2 * x * x;
        w[i] = w[i] * keep + a->rate * (m[i] / (sqrtf(v[i]) + a->eps));
    }
}

static void block_decode(const float *map, float absmax, const uint8_t *code, float *x)
{
    for (int i = 0; i < BLOCK; i++)
        x[i] = map[code[i]] * absmax;
}

static float block_encode(const float *map, bool is_signed, const float *x, uint8_t *code)
{
    float largest = 0;
    for (int i = 0; i < BLOCK; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    for (int i = 0; i < BLOCK; i++) {
        int k = largest > 0 ? adamw_nearest(map, x[i] / largest) : 0;
        if (is_signed && largest > 0 && !signbit(map[k]) != !signbit(x[i])) /* the first moment keeps its sign */
            k += x[i] > 0 ? 1 : -1;
        code[i] = (uint8_t)k;
    }
    return largest;
}

static void twin_adamw(const struct adamw_args *a)
{
    if (!isfinite(a->clip[0]))
        return;
    for (int64_t b = 0; b < a->blocks; b++) {
        int64_t at = (int64_t)a->where[b] * BLOCK, s = b * BLOCK;
        if (!a->absmax1) {
            block_step(a, a->w + at, a->g + at, (float *)a->m + s, (float *)a->v + s, a->decays[b]);
            continue;
        }
        float m[BLOCK], v[BLOCK];
        uint8_t *cm = (uint8_t *)a->m + s, *cv = (uint8_t *)a->v + s;
        block_decode(a->map1, a->absmax1[b], cm, m);
        block_decode(a->map2, a->absmax2[b], cv, v);
        block_step(a, a->w + at, a->g + at, m, v, a->decays[b]);
        a->absmax1[b] = block_encode(a->map1, true, m, cm);
        a->absmax2[b] = block_encode(a->map2, false, v, cv);
    }
}

static void twin_clip(const float *g, int64_t n, float max_norm, float *clip)
{
    double sum = 0;
    for (int64_t b = 0; b < n; b += BLOCK) { /* n is a multiple of it */
        double part[8] = {0};
        for (int i = 0; i < BLOCK; i += 8)
            for (int k = 0; k < 8; k++)
                part[k] += (double)g[b + i + k] * (double)g[b + i + k];
        for (int k = 0; k < 8; k++)
            sum += part[k];
    }
    clip[0] = (float)sqrt(sum);
    clip[1] = max_norm > 0 && clip[0] > max_norm ? max_norm / (clip[0] + 1e-6f) : 1;
}

/* ---- building ---- */

static bool keeps_32_bits(const struct adamw *o, size_t i)
{
    return !o->c.bits8 || th_numel(o->params[i]->w) < SMALL || o->params[i] == o->m->embed;
}

static int64_t blocks_of(const struct param *p)
{
    return (th_numel(p->w) + BLOCK - 1) / BLOCK;
}

/* Parameter i's part of an array, in its shape: a handle of the caller's scope. */
static th_tensor *view(const struct adamw *o, th_tensor *array, int64_t at, size_t i)
{
    int64_t shape[TH_MAX_RANK];
    int rank = shape_of(o->params[i]->w, shape);
    return th_reshape(th_narrow(array, 0, at, th_numel(o->params[i]->w)), rank, shape);
}

/* Replaces *slot by a view of the array that holds the same. */
static int move_in(const struct adamw *o, th_tensor **slot, th_tensor *array, size_t i)
{
    th_tensor *v = view(o, array, o->offset[i], i);
    int rc = th_copy_(v, *slot);
    if (rc == ERR_OK) {
        th_free(*slot);
        *slot = th_keep(v);
    }
    return rc;
}

static int make_arrays(struct adamw *o)
{
    struct model *m = o->m;
    int64_t total = o->offset[o->n];
    o->grad = th_keep(th_zeros(1, &total, TH_F32, m->device));
    o->weight = th_keep(th_zeros(1, &total, TH_F32, m->device));
    if (m->dtype != TH_F32)
        o->copy = th_keep(th_zeros(1, &total, m->dtype, m->device));
    if (!o->grad || !o->weight || (m->dtype != TH_F32 && !o->copy))
        return err_code();
    for (size_t i = 0; i < o->n; i++) {
        struct param *p = o->params[i];
        size_t scope = th_scope_begin();
        bool one = p->master == p->w;
        int rc = move_in(o, &p->grad, o->grad, i);
        if (rc == ERR_OK)
            rc = move_in(o, &p->master, o->weight, i);
        if (one)
            p->w = p->master;
        else if (rc == ERR_OK)
            rc = move_in(o, &p->w, o->copy, i);
        th_scope_end(scope);
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

static int make_group(struct adamw *o, bool bits8)
{
    struct adamw_group *g = &o->group[bits8];
    enum th_device d = o->m->device;
    g->bits8 = bits8;
    for (size_t i = 0; i < o->n; i++)
        if (keeps_32_bits(o, i) != bits8) {
            o->state_at[i] = g->blocks * BLOCK;
            g->blocks += blocks_of(o->params[i]);
        }
    if (!g->blocks)
        return ERR_OK;
    int64_t elements = g->blocks * BLOCK, b = 0, *where = xmalloc((size_t)g->blocks * sizeof *where);
    uint8_t *decays = xmalloc((size_t)g->blocks);
    for (size_t i = 0; i < o->n; i++)
        for (int64_t k = 0; keeps_32_bits(o, i) != bits8 && k < blocks_of(o->params[i]); k++, b++) {
            where[b] = o->offset[i] / BLOCK + k;
            decays[b] = o->params[i]->decay;
        }
    size_t scope = th_scope_begin();
    g->where = th_keep(th_to(th_from(where, 1, &g->blocks, TH_I64, d), TH_I32, d));
    g->decays = th_keep(th_from(decays, 1, &g->blocks, TH_U8, d));
    g->moment1 = th_keep(th_zeros(1, &elements, bits8 ? TH_U8 : TH_F32, d));
    g->moment2 = th_keep(th_zeros(1, &elements, bits8 ? TH_U8 : TH_F32, d));
    if (bits8) {
        g->absmax1 = th_keep(th_zeros(1, &g->blocks, TH_F32, d));
        g->absmax2 = th_keep(th_zeros(1, &g->blocks, TH_F32, d));
    }
    th_scope_end(scope);
    free(where);
    free(decays);
    return g->where && g->decays && g->moment1 && g->moment2 && (!bits8 || (g->absmax1 && g->absmax2)) ? ERR_OK : err_code();
}

static int make_small(struct adamw *o)
{
    int64_t two = 2, many = OPTIM_PARTS, n = 256;
    float map[256];
    enum th_device d = o->m->device;
    size_t scope = th_scope_begin();
    adamw_dynamic_map(true, map);
    o->map1 = th_keep(th_from(map, 1, &n, TH_F32, d));
    adamw_dynamic_map(false, map);
    o->map2 = th_keep(th_from(map, 1, &n, TH_F32, d));
    o->clip = th_keep(th_zeros(1, &two, TH_F32, d));
    o->parts = th_keep(th_zeros(1, &many, TH_F64, d));
    th_scope_end(scope);
    return o->map1 && o->map2 && o->clip && o->parts ? ERR_OK : err_code();
}

int adamw_new(struct model *m, const struct adamw_config *c, struct adamw **out)
{
    struct adamw *o = xcalloc(1, sizeof *o);
    *out = NULL;
    *o = (struct adamw){.c = *c, .m = m};
    o->params = xcalloc(m->n_params, sizeof *o->params);
    o->offset = xcalloc(m->n_params + 1, sizeof *o->offset);
    o->state_at = xcalloc(m->n_params, sizeof *o->state_at);
    for (size_t i = 0; i < m->n_params; i++)
        if (m->params[i]->trained) {
            o->params[o->n] = m->params[i];
            o->offset[o->n + 1] = o->offset[o->n] + blocks_of(m->params[i]) * BLOCK;
            o->n++;
        }
    size_t scope = th_scope_begin();
    int rc = o->n ? ERR_OK : err_set(ERR_USAGE, "no parameter is trained");
    if (rc == ERR_OK && c->bits8 && m->device == TH_CUDA && !kernel("k_adamw"))
        rc = err_wrap("8-bit AdamW");
    model_train_reset(m); /* it knows where the weights were */
    if (rc == ERR_OK)
        rc = make_arrays(o);
    for (int bits8 = 0; bits8 < 2 && rc == ERR_OK; bits8++)
        rc = make_group(o, bits8);
    if (rc == ERR_OK)
        rc = make_small(o);
    th_scope_end(scope);
    if (rc == ERR_OK)
        *out = o;
    else
        adamw_free(o);
    return rc;
}

void adamw_free(struct adamw *o)
{
    if (!o)
        return;
    for (int k = 0; k < 2; k++) {
        struct adamw_group *g = &o->group[k];
        th_tensor *const all[] = {g->where, g->decays, g->moment1, g->moment2, g->absmax1, g->absmax2};
        for (size_t i = 0; i < ARRAY_LEN(all); i++)
            th_free(all[i]);
    }
    th_tensor *const all[] = {o->grad, o->weight, o->copy, o->map1, o->map2, o->clip, o->parts};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        th_free(all[i]);
    free(o->params);
    free(o->offset);
    free(o->state_at);
    free(o);
}

/* ---- steps ---- */

int adamw_zero_grad(struct adamw *o)
{
    return th_fill_(o->grad, 0);
}

/* Without our kernels, by ATen's operators: float32 state only, and the norm is waited for. */
static int step_by_operators(struct adamw *o, double lr, double max_norm)
{
    double fix1 = 1 - pow(o->c.beta1, (double)o->step), fix2 = 1 - pow(o->c.beta2, (double)o->step);
    size_t scope = th_scope_begin();
    th_tensor *n = th_norm(o->grad);
    double norm = th_item(n);
    int64_t one = 1;
    int rc = n ? th_copy_(th_narrow(o->clip, 0, 0, 1), th_reshape(n, 1, &one)) : err_code();
    if (rc == ERR_OK && isfinite(norm) && max_norm > 0 && norm > max_norm)
        rc = th_scale_(o->grad, max_norm / (norm + 1e-6));
    for (size_t i = 0; i < o->n && rc == ERR_OK && isfinite(norm); i++) {
        struct param *p = o->params[i];
        th_tensor *m = view(o, o->group[0].moment1, o->state_at[i], i), *v = view(o, o->group[0].moment2, o->state_at[i], i);
        if (p->decay && o->c.weight_decay > 0)
            rc = th_scale_(p->master, 1 - lr * o->c.weight_decay);
        if (rc == ERR_OK && (rc = th_scale_(m, o->c.beta1)) == ERR_OK)
            rc = th_add_(m, p->grad, 1 - o->c.beta1);
        if (rc == ERR_OK && (rc = th_scale_(v, o->c.beta2)) == ERR_OK)
            rc = th_addcmul_(v, p->grad, p->grad, 1 - o->c.beta2);
        if (rc == ERR_OK)
            rc = th_addcdiv_(p->master, m, th_sqrt_plus(v, o->c.eps * sqrt(fix2)), -lr * sqrt(fix2) / fix1);
    }
    if (rc == ERR_OK && o->copy)
        rc = th_copy_(o->copy, o->weight);
    th_scope_end(scope);
    return rc;
}

int adamw_step(struct adamw *o, double lr, double max_norm)
{
    bool cuda = o->m->device == TH_CUDA;
    int64_t n = o->offset[o->n];
    int rc = ERR_OK;
    o->step++;
    if (cuda && !kernels_here())
        return step_by_operators(o, lr, max_norm);
    if (cuda) {
        k_clip_fn *clip = (k_clip_fn *)kernel("k_clip");
        rc = clip ? kernel_check("k_clip", clip(kernel_stream(), th_data(o->grad), n, (float)max_norm, th_data(o->parts), th_data(o->clip)))
                  : err_code();
    } else {
        twin_clip(th_data(o->grad), n, (float)max_norm, th_data(o->clip));
    }
    /* sqrt(v / fix2) + eps = (sqrt(v) + eps sqrt(fix2)) / sqrt(fix2) */
    double fix1 = 1 - pow(o->c.beta1, (double)o->step), fix2 = sqrt(1 - pow(o->c.beta2, (double)o->step));
    for (int k = 0; k < 2 && rc == ERR_OK; k++) {
        struct adamw_group *g = &o->group[k];
        struct adamw_args a = {
            .w = th_data(o->weight), .half = cuda && o->copy ? th_data(o->copy) : NULL, .g = th_data(o->grad),
            .where = th_data(g->where), .decays = th_data(g->decays), .m = th_data(g->moment1), .v = th_data(g->moment2),
            .absmax1 = th_data(g->absmax1), .absmax2 = th_data(g->absmax2), .map1 = th_data(o->map1), .map2 = th_data(o->map2),
            .clip = th_data(o->clip), .blocks = g->blocks, .beta1 = (float)o->c.beta1, .beta2 = (float)o->c.beta2,
            .rest1 = (float)(1 - o->c.beta1), .rest2 = (float)(1 - o->c.beta2), .keep = (float)(1 - lr * o->c.weight_decay),
            .rate = (float)(-lr * fix2 / fix1), .eps = (float)(o->c.eps * fix2)};
        if (!g->blocks)
            continue;
        if (cuda) {
            k_adamw_fn *step = (k_adamw_fn *)kernel("k_adamw");
            rc = step ? kernel_check("k_adamw", step(kernel_stream(), &a)) : err_code();
        } else {
            twin_adamw(&a);
        }
    }
    if (rc == ERR_OK && !cuda && o->copy)
        rc = th_copy_(o->copy, o->weight);
    return rc;
}

int adamw_norm(struct adamw *o, double *norm)
{
    float clip[2];
    int rc = th_read(o->clip, clip);
    *norm = clip[0];
    if (rc == ERR_OK && !isfinite(*norm))
        o->step--;
    return rc;
}

/* ---- state ---- */

enum { EXP_AVG, EXP_AVG_SQ, MAX_AVG, MAX_AVG_SQ, WEIGHT, KINDS };
static const char *const KIND[KINDS] = {"exp_avg", "exp_avg_sq", "exp_avg.absmax", "exp_avg_sq.absmax", "weight"};

/* Parameter i's state of a kind, and its type in the file: NULL where there is none (8-bit factors of float32 state). */
static th_tensor *state_of(const struct adamw *o, size_t i, int kind, enum st_dtype *type)
{
    const struct adamw_group *g = &o->group[!keeps_32_bits(o, i)];
    *type = g->bits8 && kind <= EXP_AVG_SQ ? ST_U8 : ST_F32;
    switch (kind) {
    case EXP_AVG: return view(o, g->moment1, o->state_at[i], i);
    case EXP_AVG_SQ: return view(o, g->moment2, o->state_at[i], i);
    case WEIGHT: return th_alias(o->params[i]->master);
    default:
        return g->bits8 ? th_narrow(kind == MAX_AVG ? g->absmax1 : g->absmax2, 0, o->state_at[i] / BLOCK, blocks_of(o->params[i])) : NULL;
    }
}

struct writer {
    struct adamw *o;
    struct entry {
        size_t param;
        int kind;
    } *v;
    void *bytes;
};

static int state_bytes(void *ctx, size_t i, const void **data)
{
    struct writer *w = ctx;
    enum st_dtype type;
    size_t scope = th_scope_begin();
    th_tensor *x = state_of(w->o, w->v[i].param, w->v[i].kind, &type);
    free(w->bytes);
    w->bytes = xmalloc((size_t)th_numel(x) * 4 + 1);
    *data = w->bytes;
    int rc = th_read(x, w->bytes);
    th_scope_end(scope);
    return rc;
}

int adamw_save(struct adamw *o, const char *path)
{
    struct writer w = {.o = o, .v = xcalloc(KINDS * o->n, sizeof *w.v)};
    struct st_tensor *t = xcalloc(KINDS * o->n, sizeof *t);
    size_t n = 0, scope = th_scope_begin();
    char step[24];
    for (size_t i = 0; i < o->n; i++)
        for (int kind = 0; kind < KINDS; kind++) {
            th_tensor *x = state_of(o, i, kind, &t[n].dtype);
            if (!x)
                continue;
            t[n].name = xasprintf("%s.%s", KIND[kind], o->params[i]->name);
            t[n].rank = shape_of(x, t[n].shape);
            w.v[n++] = (struct entry){i, kind};
        }
    th_scope_end(scope);
    snprintf(step, sizeof step, "%lld", (long long)o->step);
    const char *const metadata[] = {"format", "pt", "step", step, "optimizer", o->c.bits8 ? "adamw8bit" : "adamw", NULL};
    int rc = st_write(path, t, n, state_bytes, &w, metadata);
    for (size_t i = 0; i < n; i++)
        free((char *)t[i].name);
    free(t);
    free(w.v);
    free(w.bytes);
    return rc;
}

static int read_one(struct adamw *o, const struct st *st, const char *path, size_t i, int kind)
{
    enum st_dtype type;
    int64_t shape[TH_MAX_RANK];
    const struct st_tensor *t;
    th_tensor *x = state_of(o, i, kind, &type);
    if (!x)
        return ERR_OK;
    int rank = shape_of(x, shape);
    char *name = xasprintf("%s.%s", KIND[kind], o->params[i]->name);
    int rc = st_get(st, name, rank, shape, &t);
    if (rc == ERR_OK && t->dtype != type)
        rc = err_set(ERR_FORMAT, "%s: %s is not %s", path, name, st_dtype_name(type));
    if (rc == ERR_OK)
        rc = th_copy_(x, th_borrow(t->data, rank, shape, type == ST_U8 ? TH_U8 : TH_F32));
    free(name);
    return rc;
}

int adamw_load(struct adamw *o, const char *path)
{
    struct st *st;
    int rc = st_open(path, &st);
    if (rc < 0)
        return rc;
    const char *step = st_metadata(st, "step"), *kind = st_metadata(st, "optimizer"), *mine = o->c.bits8 ? "adamw8bit" : "adamw";
    if (!step)
        rc = err_set(ERR_FORMAT, "%s: is no optimiser state", path);
    else if (kind && strcmp(kind, mine))
        rc = err_set(ERR_USAGE, "%s: is the state of --optimizer %s, not of %s", path, kind, mine);
    for (size_t i = 0; i < o->n && rc == ERR_OK; i++)
        for (int k = 0; k < KINDS && rc == ERR_OK; k++) {
            size_t scope = th_scope_begin();
            rc = read_one(o, st, path, i, k);
            th_scope_end(scope);
        }
    if (rc == ERR_OK && o->copy)
        rc = th_copy_(o->copy, o->weight);
    if (rc == ERR_OK)
        o->step = strtoll(step, NULL, 10);
    st_close(st);
    return rc;
}

double schedule_factor(enum schedule s, int64_t step, int64_t warmup, int64_t total)
{
    if (step < warmup)
        return (double)step / (double)(warmup > 0 ? warmup : 1);
    if (s == SCHEDULE_CONSTANT)
        return 1;
    double left = total > warmup ? (double)(total - step) / (double)(total - warmup) : 0;
    left = left < 0 ? 0 : left;
    return s == SCHEDULE_LINEAR ? left : 0.5 * (1 + cos(M_PI * (1 - left)));
}
