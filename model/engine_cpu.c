/* engine_cpu.c: the engine's way on the CPU: products of rows by vectors on all threads, in float32.
 *
 * What costs time is reading the weights, so they are kept in bfloat16 where that loses nothing (files are mostly in
 * it) and widened on the way; where they lie in memory in such a form already they are not copied.  Threads stay awake
 * between the phases of a step and sleep when there is none.  One column's arithmetic does not depend on the others.
 *
 * Keys lie transposed, [head_dim][capacity], so that scores are sums of whole vectors; values [capacity][head_dim]. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/mem.h"
#include "lib/pool.h"
#include "model/engine_impl.h"

enum { MAX_COLUMNS = 32, TILE = 16 };

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t hvec __attribute__((vector_size(64), aligned(2)));

struct matrix {
    int64_t rows, cols;
    const float *f;          /* one of the two */
    const uint16_t *h;
};

struct cpu_layer {
    struct matrix w[LORA_TARGETS];
    struct matrix a[LORA_TARGETS]; /* adapters, not merged: y = W x + B A x; no rows: none */
    const float *b[LORA_TARGETS];  /* [rows of w, rank], times the adapters' scale */
    const float *bias[3], *norm1, *norm2;
};

struct cpu;
typedef void phase_fn(struct cpu *c, int64_t layer, int thread);

struct cpu {
    struct model *m;
    int64_t d, ff, heads, kv_heads, hd, group, vocab, capacity, n_places;
    struct cpu_layer *layers;
    struct matrix head, embed;
    const float *norm;
    float *freq, *turn;      /* turn: [capacity][hd / 2]{ cos, sin } */
    float **k, **v;          /* [place]: [layer][kv head]... ; NULL: not in use yet */
    void **owned;            /* what is freed with the engine */
    size_t n_owned, cap_owned;
    struct kv_cache *scratch;
    /* a step */
    const struct engine_column *col;
    int64_t n;
    float *x, *q, *kn, *vn, *o, *act, *logits; /* [MAX_COLUMNS][...] */
    float **own;             /* [thread]: normalised x; scores; from own_spread on x in another order */
    int64_t own_spread, own_low; /* own_low: A x */
    uint32_t *pick;
    /* the threads */
    int n_threads;
    pthread_t *thread;
    phase_fn *phase;
    int64_t layer;
    _Atomic uint32_t turn_no;
    _Atomic int busy;
    _Atomic bool asleep, quit;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool wide;               /* AVX-512 */
};

/* ---- arithmetic ---- */

#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__)
#define WIDE __attribute__((target("avx512f")))
#endif

INLINE vec load(const float *p)
{
    return *(const vec *)p;
}

/* 32 bfloat16 as two vectors: those at even places and those at odd ones. */
INLINE void widen(const uint16_t *p, vec *even, vec *odd)
{
    hvec u = *(const hvec *)p;
    *even = (vec)(u << 16);
    *odd = (vec)(u & 0xffff0000u);
}

/* x in the order in which widen() gives weights: of each 32 first the even places, then the odd; the rest as it is. */
static void spread(const float *x, float *out, int64_t n)
{
    int64_t i = 0;
    for (; i + 2 * TILE <= n; i += 2 * TILE)
        for (int k = 0; k < TILE; k++) {
            out[i + k] = x[i + 2 * k];
            out[i + TILE + k] = x[i + 2 * k + 1];
        }
    memcpy(out + i, x + i, (size_t)(n - i) * sizeof *x);
}

INLINE vec splat(float f)
{
    return f - (vec){0};
}

/* The sum of a vector's elements, always in this order. */
INLINE float total(const vec *v)
{
    float s[TILE];
    memcpy(s, v, sizeof s);
    for (int i = 0; i < 8; i++)
        s[i] += s[i + 8];
    for (int i = 0; i < 4; i++)
        s[i] += s[i + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* y[c * ldy] = w x[c * ldx], nc columns (1 or 2), for one row; x as spread() has it for a row of h. */
INLINE void row_dot(const float *f, const uint16_t *h, int64_t n, const float *x, int64_t ldx, int nc, float *y, int64_t ldy)
{
    vec a[2][4] = {{{0}}}, w[4];
    int64_t i = 0;
    for (; i + 4 * TILE <= n; i += 4 * TILE) {
        __builtin_prefetch(f ? (const char *)(f + i) + 2048 : (const char *)(h + i) + 2048);
        if (f)
            for (int k = 0; k < 4; k++)
                w[k] = load(f + i + k * TILE);
        else {
            widen(h + i, &w[0], &w[1]);
            widen(h + i + 2 * TILE, &w[2], &w[3]);
        }
        for (int c = 0; c < nc; c++)
            for (int k = 0; k < 4; k++)
                a[c][k] += w[k] * load(x + c * ldx + i + k * TILE);
    }
    if (i + 2 * TILE <= n) {
        if (f) {
            w[0] = load(f + i);
            w[1] = load(f + i + TILE);
        } else
            widen(h + i, &w[0], &w[1]);
        for (int c = 0; c < nc; c++)
            for (int k = 0; k < 2; k++)
                a[c][k] += w[k] * load(x + c * ldx + i + k * TILE);
        i += 2 * TILE;
    }
    for (int c = 0; c < nc; c++) {
        vec all = (a[c][0] + a[c][1]) + (a[c][2] + a[c][3]);
        float s = total(&all);
        for (int64_t k = i; k < n; k++) {
            uint32_t u = h ? (uint32_t)h[k] << 16 : 0;
            float v;
            memcpy(&v, &u, 4);
            s += (f ? f[k] : v) * x[c * ldx + k];
        }
        y[c * ldy] = s;
    }
}

INLINE void rows_dot_body(const struct matrix *w, int64_t from, int64_t to, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy)
{
    for (int64_t r = from; r < to; r++) {
        const float *f = w->f ? w->f + r * w->cols : NULL;
        const uint16_t *h = w->h ? w->h + r * w->cols : NULL;
        int64_t c = 0;
        for (; c + 1 < n; c += 2) {
            if (f)
                row_dot(f, NULL, w->cols, x + c * ldx, ldx, 2, y + c * ldy + r, ldy);
            else
                row_dot(NULL, h, w->cols, x + c * ldx, ldx, 2, y + c * ldy + r, ldy);
        }
        if (c < n) {
            if (f)
                row_dot(f, NULL, w->cols, x + c * ldx, ldx, 1, y + c * ldy + r, ldy);
            else
                row_dot(NULL, h, w->cols, x + c * ldx, ldx, 1, y + c * ldy + r, ldy);
        }
    }
}

/* e^x, to some units in the last place (Cody-Waite reduction, a polynomial on [-ln 2 / 2, ln 2 / 2]). */
INLINE vec exponential(vec x)
{
    const float low = -87.0f;
    x = (vec)(((ivec)x & (x > low)) | ((ivec)splat(low) & ~(x > low)));
    vec k = x * 1.44269504088896341f + 12582912.0f;
    ivec e = (ivec)k << 23;
    k -= 12582912.0f;
    vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((ivec)p + e);
}

/* Attention of one column's heads of one kv head: keys 0 to pos.  score: [group][capacity rounded up]. */
INLINE void attend_body(const struct cpu *c, const float *q, const float *kt, const float *v, int64_t pos, float *score, float *out)
{
    int64_t n = (pos + TILE) / TILE * TILE, cap = c->capacity;
    float scale = (float)(1 / sqrt((double)c->hd));
    for (int64_t t = 0; t < n; t += TILE)
        for (int64_t g = 0; g < c->group; g += 2) {
            const float *qa = q + g * c->hd, *qb = g + 1 < c->group ? qa + c->hd : qa;
            vec a = {0}, b = {0};
            for (int64_t i = 0; i < c->hd; i++) {
                vec k = load(kt + i * cap + t);
                a += k * qa[i];
                b += k * qb[i];
            }
            *(vec *)(score + g * cap + t) = a * scale;
            if (g + 1 < c->group)
                *(vec *)(score + (g + 1) * cap + t) = b * scale;
        }
    for (int64_t g = 0; g < c->group; g++) {
        float *s = score + g * cap, top = -INFINITY;
        for (int64_t t = 0; t <= pos; t++)
            top = s[t] > top ? s[t] : top;
        for (int64_t t = pos + 1; t < n; t++)
            s[t] = -INFINITY;
        vec sum = {0};
        for (int64_t t = 0; t < n; t += TILE) {
            vec e = exponential(load(s + t) - top);
            if (t + TILE > pos + 1)
                for (int i = 0; i < TILE; i++)
                    e[i] = t + i <= pos ? e[i] : 0;
            *(vec *)(s + t) = e;
            sum += e;
        }
        float f = 1 / total(&sum), *o = out + g * c->hd;
        int64_t i = 0;
        for (; i + TILE <= c->hd; i += TILE) {
            vec a = {0}, b = {0};
            int64_t t = 0;
            for (; t + 1 <= pos; t += 2) {
                a += load(v + t * c->hd + i) * s[t];
                b += load(v + (t + 1) * c->hd + i) * s[t + 1];
            }
            if (t <= pos)
                a += load(v + t * c->hd + i) * s[t];
            *(vec *)(o + i) = (a + b) * f;
        }
        for (; i < c->hd; i++) {
            float a = 0;
            for (int64_t t = 0; t <= pos; t++)
                a += v[t * c->hd + i] * s[t];
            o[i] = a * f;
        }
    }
}

INLINE void silu_body(const float *gate, const float *up, float *out, int64_t from, int64_t to)
{
    int64_t i = from;
    for (; i + TILE <= to; i += TILE) {
        vec g = load(gate + i);
        *(vec *)(out + i) = g / (1.0f + exponential(-g)) * load(up + i);
    }
    for (; i < to; i++)
        out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

#ifdef WIDE
WIDE static void rows_dot_wide(const struct matrix *w, int64_t from, int64_t to, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy)
{
    rows_dot_body(w, from, to, x, ldx, n, y, ldy);
}
WIDE static void attend_wide(const struct cpu *c, const float *q, const float *kt, const float *v, int64_t pos, float *score, float *out)
{
    attend_body(c, q, kt, v, pos, score, out);
}
#endif

static void rows_dot(const struct cpu *c, const struct matrix *w, int64_t from, int64_t to, const float *x, int64_t ldx, float *y, int64_t ldy,
                     int thread)
{
    if (w->h) {
        float *s = c->own[thread] + c->own_spread;
        for (int64_t i = 0; i < c->n; i++)
            spread(x + i * ldx, s + i * w->cols, w->cols);
        x = s;
        ldx = w->cols;
    }
#ifdef WIDE
    if (c->wide) {
        rows_dot_wide(w, from, to, x, ldx, c->n, y, ldy);
        return;
    }
#endif
    rows_dot_body(w, from, to, x, ldx, c->n, y, ldy);
}

static void attend(const struct cpu *c, const float *q, const float *kt, const float *v, int64_t pos, float *score, float *out)
{
#ifdef WIDE
    if (c->wide) {
        attend_wide(c, q, kt, v, pos, score, out);
        return;
    }
#endif
    attend_body(c, q, kt, v, pos, score, out);
}

static void rms_norm(const struct cpu *c, const float *x, const float *w, float *out)
{
    float s = 0;
    for (int64_t i = 0; i < c->d; i++)
        s += x[i] * x[i];
    float f = 1 / sqrtf(s / (float)c->d + (float)c->m->cfg.rms_eps);
    for (int64_t i = 0; i < c->d; i++)
        out[i] = x[i] * f * w[i];
}

/* ---- the phases of a layer; each thread does its share ---- */

static int64_t share(const struct cpu *c, int64_t n, int thread)
{
    return n * thread / c->n_threads;
}

static void norm_all(struct cpu *c, const float *w, int thread) /* every thread for itself: sooner than waiting */
{
    for (int64_t i = 0; i < c->n; i++)
        rms_norm(c, c->x + i * c->d, w, c->own[thread] + i * c->d);
}

/* y = W x for rows from to to of a projection, its adapter beside it. */
static void project(const struct cpu *c, int64_t l, int t, int64_t from, int64_t to, const float *x, int64_t ldx, float *y, int64_t ldy, int thread)
{
    const struct cpu_layer *k = &c->layers[l];
    int64_t rank = k->a[t].rows;
    float *low = c->own[thread] + c->own_low;
    rows_dot(c, &k->w[t], from, to, x, ldx, y, ldy, thread);
    if (!rank)
        return;
    rows_dot(c, &k->a[t], 0, rank, x, ldx, low, rank, thread); /* every thread for itself, too */
    for (int64_t i = 0; i < c->n; i++)
        for (int64_t r = from; r < to; r++) {
            const float *b = k->b[t] + r * rank, *u = low + i * rank;
            float sum = 0;
            for (int64_t e = 0; e < rank; e++)
                sum += b[e] * u[e];
            y[i * ldy + r] += sum;
        }
}

static void phase_qkv(struct cpu *c, int64_t l, int thread)
{
    struct cpu_layer *y = &c->layers[l];
    float *const out[3] = {c->q, c->kn, c->vn};
    int64_t rows = 0, at = 0;
    norm_all(c, y->norm1, thread);
    for (int t = LORA_Q; t <= LORA_V; t++)
        rows += y->w[t].rows;
    int64_t lo = share(c, rows, thread), hi = share(c, rows, thread + 1);
    for (int t = LORA_Q; t <= LORA_V; at += y->w[t].rows, t++) {
        int64_t n = y->w[t].rows, from = lo > at ? lo - at : 0, to = hi - at < n ? hi - at : n;
        if (from >= to)
            continue;
        project(c, l, t, from, to, c->own[thread], c->d, out[t], n, thread);
        for (int64_t i = 0; y->bias[t] && i < c->n; i++)
            for (int64_t r = from; r < to; r++)
                out[t][i * n + r] += y->bias[t][r];
    }
}

static void turn(const struct cpu *c, float *x, int64_t pos)
{
    int64_t half = c->hd / 2;
    for (int64_t i = 0; i < half; i++) {
        const float *t = c->turn + (pos * half + i) * 2;
        float a = x[i], b = x[i + half];
        x[i] = a * t[0] - b * t[1];
        x[i + half] = b * t[0] + a * t[1];
    }
}

static float *place_of(const struct cpu *c, float **v, int64_t place, int64_t l, int64_t kv)
{
    return v[place] + (l * c->kv_heads + kv) * c->hd * c->capacity;
}

/* Units are kv heads: all columns' keys of one go to the cache before any is looked at. */
static void phase_attend(struct cpu *c, int64_t l, int thread)
{
    for (int64_t kv = 0; kv < c->kv_heads; kv++) {
        if (kv % c->n_threads != thread)
            continue;
        for (int64_t i = 0; i < c->n; i++) {
            const struct engine_column *k = &c->col[i];
            float *kn = c->kn + (i * c->kv_heads + kv) * c->hd, *vn = c->vn + (i * c->kv_heads + kv) * c->hd;
            float *kt = place_of(c, c->k, k->place, l, kv), *v = place_of(c, c->v, k->place, l, kv);
            turn(c, kn, k->pos);
            for (int64_t e = 0; e < c->hd; e++)
                kt[e * c->capacity + k->pos] = kn[e];
            memcpy(v + k->pos * c->hd, vn, (size_t)c->hd * sizeof *v);
        }
        for (int64_t i = 0; i < c->n; i++) {
            const struct engine_column *k = &c->col[i];
            int64_t head = i * c->heads + kv * c->group;
            for (int64_t g = 0; g < c->group; g++)
                turn(c, c->q + (head + g) * c->hd, k->pos);
            attend(c, c->q + head * c->hd, place_of(c, c->k, k->place, l, kv), place_of(c, c->v, k->place, l, kv), k->pos,
                   c->own[thread] + MAX_COLUMNS * c->d, c->o + head * c->hd);
        }
    }
}

/* x += W y */
static void add_rows(struct cpu *c, int64_t l, int t, const float *y, int thread)
{
    const struct matrix *w = &c->layers[l].w[t];
    int64_t from = share(c, w->rows, thread), to = share(c, w->rows, thread + 1);
    float *tmp = c->own[thread];
    project(c, l, t, from, to, y, w->cols, tmp, w->rows, thread);
    for (int64_t i = 0; i < c->n; i++)
        for (int64_t r = from; r < to; r++)
            c->x[i * c->d + r] += tmp[i * w->rows + r];
}

static void phase_out(struct cpu *c, int64_t l, int thread)
{
    add_rows(c, l, LORA_O, c->o, thread);
}

static void phase_gate_up(struct cpu *c, int64_t l, int thread)
{
    int64_t from = share(c, c->ff, thread), to = share(c, c->ff, thread + 1);
    float *up = c->act + MAX_COLUMNS * c->ff;
    norm_all(c, c->layers[l].norm2, thread);
    project(c, l, LORA_GATE, from, to, c->own[thread], c->d, c->act, c->ff, thread);
    project(c, l, LORA_UP, from, to, c->own[thread], c->d, up, c->ff, thread);
    for (int64_t i = 0; i < c->n; i++)
        silu_body(c->act + i * c->ff, up + i * c->ff, c->act + i * c->ff, from, to);
}

static void phase_down(struct cpu *c, int64_t l, int thread)
{
    add_rows(c, l, LORA_DOWN, c->act, thread);
}

static void phase_head(struct cpu *c, int64_t l, int thread)
{
    (void)l;
    norm_all(c, c->norm, thread);
    rows_dot(c, &c->head, share(c, c->head.rows, thread), share(c, c->head.rows, thread + 1), c->own[thread], c->d, c->logits, c->head.rows, thread);
}

/* ---- threads ---- */

enum { SPIN = 1500 }; /* some 100 us: longer than a phase takes */

INLINE void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct start {
    struct cpu *c;
    int thread;
};

static void *worker(void *arg)
{
    struct start s = *(struct start *)arg;
    struct cpu *c = s.c;
    uint32_t seen = 0;
    free(arg);
    for (;;) {
        for (int i = 0; atomic_load_explicit(&c->turn_no, memory_order_acquire) == seen; i++) {
            if (i < SPIN) {
                relax();
                continue;
            }
            pthread_mutex_lock(&c->lock);
            for (;;) { /* asleep is said before the last look: begin_turn() looks in the other order */
                atomic_store(&c->asleep, true);
                if (atomic_load(&c->turn_no) != seen)
                    break;
                pthread_cond_wait(&c->wake, &c->lock);
            }
            pthread_mutex_unlock(&c->lock);
        }
        seen++;
        if (atomic_load(&c->quit))
            return NULL;
        c->phase(c, c->layer, s.thread);
        atomic_fetch_sub_explicit(&c->busy, 1, memory_order_release);
    }
}

static void begin_turn(struct cpu *c)
{
    atomic_store(&c->busy, c->n_threads - 1);
    atomic_fetch_add(&c->turn_no, 1);
    if (atomic_load(&c->asleep)) {
        pthread_mutex_lock(&c->lock);
        atomic_store(&c->asleep, false);
        pthread_cond_broadcast(&c->wake);
        pthread_mutex_unlock(&c->lock);
    }
}

static void together(struct cpu *c, phase_fn *f, int64_t layer)
{
    c->phase = f;
    c->layer = layer;
    begin_turn(c);
    f(c, layer, 0);
    for (int i = 0; atomic_load_explicit(&c->busy, memory_order_acquire) > 0; i++)
        if (i < SPIN)
            relax();
        else
            sched_yield(); /* somebody else has our processor */
}

/* ---- the way ---- */

static int cpu_reserve(struct engine_way *w, int64_t place, int64_t n)
{
    struct cpu *c = w->state;
    (void)n;
    if (!c->k[place]) { /* touched as it is used */
        size_t bytes = (size_t)(c->m->cfg.n_layers * c->kv_heads * c->hd * c->capacity) * sizeof(float);
        c->k[place] = calloc(1, bytes);
        c->v[place] = calloc(1, bytes);
        if (!c->k[place] || !c->v[place])
            return err_set(ERR_NOMEM, "keys and values of %lld tokens: lower --batch or --max-new-tokens", (long long)c->capacity);
    }
    return 1;
}

static void cpu_release(struct engine_way *w, int64_t place)
{
    (void)w;
    (void)place;
}

static int copy_prompt(struct cpu *c, int64_t place, int64_t n)
{
    int64_t cap = c->scratch->capacity;
    for (int64_t l = 0; l < c->m->cfg.n_layers; l++) {
        size_t scope = th_scope_begin();
        const float *k = th_data(th_contiguous(th_to(c->scratch->k[l], TH_F32, TH_CPU)));
        const float *v = th_data(th_contiguous(th_to(c->scratch->v[l], TH_F32, TH_CPU)));
        for (int64_t h = 0; k && v && h < c->kv_heads; h++) {
            float *kt = place_of(c, c->k, place, l, h);
            for (int64_t e = 0; e < c->hd; e++)
                for (int64_t t = 0; t < n; t++)
                    kt[e * c->capacity + t] = k[(h * cap + t) * c->hd + e];
            memcpy(place_of(c, c->v, place, l, h), v + h * cap * c->hd, (size_t)(n * c->hd) * sizeof *v);
        }
        th_scope_end(scope);
        if (!k || !v)
            return err_code();
    }
    return ERR_OK;
}

static int cpu_prefill(struct engine_way *w, int64_t place, const int32_t *ids, size_t n)
{
    struct cpu *c = w->state;
    int rc = ERR_OK;
    if (!c->scratch || (size_t)c->scratch->capacity < n) {
        kv_cache_free(c->scratch);
        c->scratch = NULL;
        if ((rc = kv_cache_new(c->m, 1, ((int64_t)n + 255) / 256 * 256, &c->scratch)) < 0)
            return rc;
    }
    c->scratch->length[0] = 0;
    size_t scope = th_scope_begin();
    rc = model_prefill(c->m, c->scratch, 0, ids, n) ? copy_prompt(c, place, (int64_t)n) : err_code();
    th_scope_end(scope);
    return rc;
}

static int cpu_step(struct engine_way *w, const struct engine_column *col, int64_t n, bool logits)
{
    struct cpu *c = w->state;
    (void)logits;
    c->col = col;
    c->n = n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < c->d; k++) {
            uint32_t u = c->embed.h ? (uint32_t)c->embed.h[col[i].token * c->d + k] << 16 : 0;
            float *x = &c->x[i * c->d + k];
            memcpy(x, &u, 4);
            *x = c->embed.h ? *x : c->embed.f[col[i].token * c->d + k];
        }
    for (int64_t l = 0; l < c->m->cfg.n_layers; l++) {
        together(c, phase_qkv, l);
        together(c, phase_attend, l);
        together(c, phase_out, l);
        together(c, phase_gate_up, l);
        together(c, phase_down, l);
    }
    together(c, phase_head, 0);
    return ERR_OK;
}

static int cpu_choose(struct engine_way *w, int64_t from, int64_t n, const struct engine_choice *choice, int32_t *out)
{
    struct cpu *c = w->state;
    for (int64_t i = 0; i < n; i++)
        out[i] = engine_pick(c->logits + (from + i) * c->head.rows, c->vocab, &choice[i], c->pick);
    return ERR_OK;
}

static int cpu_logits(struct engine_way *w, int64_t column, float *out)
{
    struct cpu *c = w->state;
    memcpy(out, c->logits + column * c->head.rows, (size_t)c->head.rows * sizeof *out);
    return ERR_OK;
}

static void cpu_free(struct engine_way *w)
{
    struct cpu *c = w->state;
    atomic_store(&c->quit, true);
    if (c->thread)
        begin_turn(c);
    for (int i = 1; i < c->n_threads && c->thread; i++)
        pthread_join(c->thread[i], NULL);
    for (int64_t i = 0; i < c->n_places; i++) {
        free(c->k[i]);
        free(c->v[i]);
    }
    for (size_t i = 0; i < c->n_owned; i++)
        free(c->owned[i]);
    kv_cache_free(c->scratch);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
    free(c->owned);
    free(c->thread);
    free(c->layers);
    free(c->k);
    free(c->v);
    free(c->own);
    free(c);
}

static void *own(struct cpu *c, size_t bytes)
{
    ARRAY_GROW(c->owned, c->cap_owned, c->n_owned + 1);
    void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!p)
        return xcalloc(1, bytes); /* ends the process, as lack of small memory does everywhere */
    return c->owned[c->n_owned++] = memset(p, 0, (bytes + 127) / 64 * 64);
}

static void take_matrix(struct cpu *c, th_tensor *t, struct matrix *out)
{
    int64_t n = th_numel(t);
    size_t size = th_dtype_size(th_dtype_of(t)), row = (size_t)th_size(t, 1) * size, pitch = (size_t)th_stride(t, 0) * size;
    *out = (struct matrix){.rows = th_size(t, 0), .cols = th_size(t, 1)};
    const void *data = th_data(t);
    if (pitch != row) { /* gathered beside an adapter's columns, model_gather() */
        char *flat = own(c, (size_t)n * size);
        for (size_t r = 0; r < (size_t)out->rows; r++)
            memcpy(flat + r * row, (const char *)data + r * pitch, row);
        data = flat;
    }
    if (th_dtype_of(t) == TH_BF16) {
        out->h = data;
        return;
    }
    const uint32_t *u = data;
    uint32_t low = 0;
    for (int64_t i = 0; i < n; i++)
        low |= u[i] & 0xffff;
    if (low) {
        out->f = (const float *)u;
        return;
    }
    uint16_t *h = own(c, (size_t)n * sizeof *h);
    for (int64_t i = 0; i < n; i++)
        h[i] = (uint16_t)(u[i] >> 16);
    out->h = h;
}

static int take_vector(struct cpu *c, th_tensor *t, const float **out)
{
    float *v = own(c, (size_t)th_numel(t) * sizeof *v);
    size_t scope = th_scope_begin();
    int rc = th_read(th_to(t, TH_F32, TH_CPU), v);
    th_scope_end(scope);
    *out = v;
    return rc;
}

static int take_model(struct cpu *c)
{
    struct model *m = c->m;
    int rc = take_vector(c, m->norm->w, &c->norm);
    take_matrix(c, m->embed->w, &c->embed);
    c->head = c->embed;
    if (m->head != m->embed)
        take_matrix(c, m->head->w, &c->head);
    for (int64_t l = 0; l < m->cfg.n_layers && rc == ERR_OK; l++) {
        struct layer *from = &m->layers[l];
        struct cpu_layer *to = &c->layers[l];
        if ((rc = take_vector(c, from->norm1->w, &to->norm1)) == ERR_OK)
            rc = take_vector(c, from->norm2->w, &to->norm2);
        for (int t = 0; t < LORA_TARGETS && rc == ERR_OK; t++) {
            take_matrix(c, from->proj[t].w->w, &to->w[t]);
            if (from->proj[t].b)
                rc = take_vector(c, from->proj[t].b->w, &to->bias[t]);
            if (rc < 0 || !from->proj[t].lora_a)
                continue;
            take_matrix(c, from->proj[t].lora_a->w, &to->a[t]);
            rc = take_vector(c, from->proj[t].lora_b->w, &to->b[t]);
            for (int64_t k = 0; k < to->w[t].rows * to->a[t].rows && rc == ERR_OK; k++)
                ((float *)to->b[t])[k] *= (float)m->lora_scale;
        }
    }
    return rc;
}

static int start_threads(struct cpu *c)
{
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    c->thread = xcalloc((size_t)c->n_threads, sizeof *c->thread);
    for (int i = 1; i < c->n_threads; i++) {
        struct start *s = xmalloc(sizeof *s);
        *s = (struct start){c, i};
        int rc = pthread_create(&c->thread[i], NULL, worker, s);
        if (rc) {
            free(s);
            c->n_threads = i;
            return err_set(ERR_EXTERN, "a thread: %s", strerror(rc));
        }
    }
    return ERR_OK;
}

int engine_cpu(struct model *m, const struct engine_options *o, struct engine_way *out)
{
    const struct model_config *f = &m->cfg;
    if (m->device != TH_CPU || (m->dtype != TH_F32 && m->dtype != TH_BF16))
        return ERR_OK;
    struct cpu *c = xcalloc(1, sizeof *c);
    *out = (struct engine_way){.name = "cpu", .max_columns = MAX_COLUMNS, .max_a_place = 16, .state = c, .reserve = cpu_reserve,
                               .release = cpu_release, .prefill = cpu_prefill, .step = cpu_step, .choose = cpu_choose,
                               .logits = cpu_logits, .free = cpu_free};
    c->m = m;
    c->d = f->d_model;
    c->ff = f->d_ff;
    c->heads = f->n_heads;
    c->kv_heads = f->n_kv_heads;
    c->hd = f->head_dim;
    c->group = c->heads / c->kv_heads;
    c->vocab = o->vocab ? o->vocab : f->vocab;
    c->capacity = ((o->max_tokens ? o->max_tokens : f->max_positions) + TILE) / TILE * TILE;
    c->n_places = o->max_batch ? o->max_batch : 1;
    c->n_threads = o->threads > 0 ? o->threads : pool_cores();
    c->layers = xcalloc((size_t)f->n_layers, sizeof *c->layers);
    c->k = xcalloc((size_t)c->n_places, sizeof *c->k);
    c->v = xcalloc((size_t)c->n_places, sizeof *c->v);
    c->own = xcalloc((size_t)c->n_threads, sizeof *c->own);
#ifdef WIDE
    c->wide = __builtin_cpu_supports("avx512f");
#endif
    c->freq = own(c, (size_t)c->hd * sizeof *c->freq);
    model_rope_frequencies(f, c->freq);
    c->turn = own(c, (size_t)(c->capacity * c->hd) * sizeof *c->turn);
    for (int64_t p = 0; p < c->capacity; p++)
        for (int64_t i = 0; i < c->hd / 2; i++) {
            float a = (float)p * c->freq[i], *t = c->turn + (p * (c->hd / 2) + i) * 2;
            t[0] = cosf(a);
            t[1] = sinf(a);
        }
    size_t n = MAX_COLUMNS * sizeof(float);
    c->x = own(c, n * (size_t)c->d);
    c->q = own(c, n * (size_t)(c->heads * c->hd));
    c->o = own(c, n * (size_t)(c->heads * c->hd));
    c->kn = own(c, n * (size_t)(c->kv_heads * c->hd));
    c->vn = own(c, n * (size_t)(c->kv_heads * c->hd));
    c->act = own(c, 2 * n * (size_t)c->ff);
    c->logits = own(c, n * (size_t)f->vocab);
    c->pick = own(c, (size_t)f->vocab * sizeof *c->pick);
    int64_t widest = c->ff > c->d ? c->ff : c->d;
    widest = c->heads * c->hd > widest ? c->heads * c->hd : widest;
    c->own_spread = MAX_COLUMNS * c->d + c->group * c->capacity;
    c->own_low = c->own_spread + MAX_COLUMNS * widest;
    for (int i = 0; i < c->n_threads; i++)
        c->own[i] = own(c, (size_t)c->own_low * sizeof(float) + n * (size_t)model_rank(m));
    int rc = take_model(c);
    if (rc == ERR_OK)
        rc = start_threads(c);
    if (rc < 0) {
        cpu_free(out);
        *out = (struct engine_way){0};
        return rc;
    }
    out->cache_bytes = (size_t)(c->n_places * f->n_layers * c->kv_heads * c->hd * c->capacity) * 2 * sizeof(float);
    return ERR_OK;
}
