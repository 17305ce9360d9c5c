/* engine_cuda.c: the engine's way over kernels/decode.cu: packs the weights, keeps the pages, starts the steps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/decode.h"
#include "lib/err.h"
#include "lib/mem.h"
#include "model/engine_impl.h"
#include "shim/kernels.h"

#define FUNCTIONS(F) \
    F(k_decode_device) F(k_decode_max_cols) F(k_decode_pack) F(k_decode_fill) F(k_decode_step) F(k_decode_sample) \
    F(k_host_alloc) F(k_host_free) F(k_copy) F(k_zero) F(k_wait)

struct functions {
#define F(name) __typeof__(name) *name;
    FUNCTIONS(F)
#undef F
};

struct place {
    int32_t *pages;
    int64_t n;
};

struct cuda {
    struct model *m;
    struct functions f;
    struct dk_model dm;
    struct dk_work work;
    enum th_device device;
    bool many;
    int grid, smem, nc;               /* nc: of the last step */
    int64_t max_pages, n_pages, n_free, cols;
    int32_t *free_pages;
    struct place *places;
    int64_t n_places;
    th_tensor *held[64];              /* the device's memory, freed with the engine */
    int n_held;
    struct dk_step *step;             /* page-locked */
    struct dk_sampling *sampling;     /* page-locked, [DK_MAX_COLS] */
    int32_t *chosen, *page_list;      /* page-locked; page_list: the device's copy for prompts */
    uint32_t *mask, *mask_device;     /* [DK_MAX_COLS][words] */
    int mask_words;
    size_t bytes;
};

static void *stream_of(const struct cuda *c)
{
    return c->device == TH_CUDA ? kernel_stream() : NULL;
}

/* ---- memory ---- */

static void *hold(struct cuda *c, size_t bytes)
{
    int64_t n = (int64_t)(bytes + 255) / 256 * 256;
    size_t scope = th_scope_begin();
    th_tensor *t = th_keep(th_zeros(1, &n, TH_U8, c->device));
    th_scope_end(scope);
    if (t && c->n_held < (int)ARRAY_LEN(c->held)) {
        c->held[c->n_held++] = t;
        c->bytes += (size_t)n;
        return th_data(t);
    }
    th_free(t);
    return NULL;
}

static void *upload(struct cuda *c, const void *data, size_t bytes)
{
    void *p = hold(c, bytes);
    return p && c->f.k_copy(stream_of(c), p, data, bytes) == 0 && c->f.k_wait(stream_of(c)) == 0 ? p : NULL;
}

static int check(const char *name, int rc)
{
    return kernel_check(name, rc);
}

/* ---- packing ---- */

/* Which rows of two matrices make up row groups; as decode.h has them. */
enum order { PLAIN, HALVES, PAIRS };

static int32_t source_row(enum order o, int64_t rg, int64_t r, int64_t rows, int64_t hd, int64_t head_dim)
{
    if (o == PAIRS) { /* 8 rows of one, 8 of the other */
        int64_t row = rg * 8 + r % 8;
        return row < rows ? (int32_t)(row * 2 + r / 8) : -1;
    }
    if (hd) { /* heads, padded from head_dim to hd */
        int64_t per = hd / 16, head = rg / per, i = o == HALVES ? rg % per * 8 + r % 8 : rg % per * 16 + r;
        int64_t dim = o == HALVES ? (i < head_dim / 2 ? i + r / 8 * (head_dim / 2) : -1) : i < head_dim ? i : -1;
        return dim < 0 ? -1 : (int32_t)((head * head_dim + dim) * 2);
    }
    int64_t row = rg * 16 + r;
    return row < rows ? (int32_t)(row * 2) : -1;
}

struct packing {
    struct cuda *c;
    int32_t *rows;
    unsigned char *w;         /* where the next goes */
    float *scale;
};

static int pack(struct packing *p, enum order order, th_tensor *a, th_tensor *b, int64_t n_rg, int64_t k, int64_t hd, const int32_t *cols)
{
    struct cuda *c = p->c;
    int64_t n = n_rg * 16, rows = th_size(a, 0), head_dim = c->m->cfg.head_dim;
    for (int64_t i = 0; i < n; i++)
        p->rows[i] = source_row(order, i / 16, i % 16, rows, hd, head_dim);
    size_t scope = th_scope_begin();
    th_tensor *map = th_from(p->rows, 1, &n, TH_I32, c->device);
    int rc = map ? check("k_decode_pack", c->f.k_decode_pack(stream_of(c), p->w, p->scale, c->dm.fp8, th_data(a), th_data(b ? b : a),
                                                             th_size(a, 1), th_data(map), cols, (int)n_rg, (int)k))
                 : err_code();
    if (rc == ERR_OK) /* the map lives until it has been used */
        rc = check("k_decode_pack", c->f.k_wait(stream_of(c)));
    th_scope_end(scope);
    p->w += n * k * (c->dm.fp8 ? 1 : 2);
    if (p->scale)
        p->scale += n;
    return rc;
}

static int pack_all(struct cuda *c, void *w, float *scale)
{
    struct model *m = c->m;
    struct dk_model *d = &c->dm;
    int64_t head_dim = m->cfg.head_dim, most = d->rg_head > d->rg_gu ? d->rg_head : d->rg_gu;
    struct packing p = {.c = c, .w = w, .scale = scale, .rows = xmalloc((size_t)(most > d->rg_qkv ? most : d->rg_qkv) * 16 * 4)};
    int32_t *cols = NULL;
    int rc = ERR_OK;
    if (head_dim != d->hd) { /* o's columns are the padded heads' dimensions, as q's rows have them: v's order */
        int32_t *map = xmalloc((size_t)d->kq * 4);
        for (int64_t i = 0; i < d->kq; i++)
            map[i] = i / d->hd < d->heads && i % d->hd < head_dim ? (int32_t)(i / d->hd * head_dim + i % d->hd) : -1;
        if (!(cols = upload(c, map, (size_t)d->kq * 4)))
            rc = err_code();
        free(map);
    }
    int64_t per = d->hd / 16;
    for (int64_t i = 0; i < d->layers && rc == ERR_OK; i++) {
        struct linear *l = m->layers[i].proj;
        p.w = (unsigned char *)w + i * d->layer_bytes;
        if ((rc = pack(&p, HALVES, l[LORA_Q].w->w, NULL, d->heads * per, d->kd, d->hd, NULL)) == ERR_OK &&
            (rc = pack(&p, HALVES, l[LORA_K].w->w, NULL, d->kv_heads * per, d->kd, d->hd, NULL)) == ERR_OK &&
            (rc = pack(&p, PLAIN, l[LORA_V].w->w, NULL, d->kv_heads * per, d->kd, d->hd, NULL)) == ERR_OK &&
            (rc = pack(&p, PLAIN, l[LORA_O].w->w, NULL, d->rg_d, d->kq, 0, cols)) == ERR_OK &&
            (rc = pack(&p, PAIRS, l[LORA_GATE].w->w, l[LORA_UP].w->w, d->rg_gu, d->kd, 0, NULL)) == ERR_OK)
            rc = pack(&p, PLAIN, l[LORA_DOWN].w->w, NULL, d->rg_d, d->kf, 0, NULL);
    }
    p.w = (unsigned char *)w + d->layers * d->layer_bytes;
    if (rc == ERR_OK)
        rc = pack(&p, PLAIN, m->head->w, NULL, d->rg_head, d->kd, 0, NULL);
    free(p.rows);
    return rc;
}

/* One row of float32 values of a vector on the device. */
static int read_vector(th_tensor *t, float *out)
{
    size_t scope = th_scope_begin();
    int rc = th_read(th_to(t, TH_F32, TH_CPU), out);
    th_scope_end(scope);
    return rc;
}

/* Biases in packed order, norms padded, RoPE's angles. */
static int small_parts(struct cuda *c, int64_t positions)
{
    struct model *m = c->m;
    struct dk_model *d = &c->dm;
    int64_t n_bias = d->rg_qkv * 16, head_dim = m->cfg.head_dim, per = d->hd / 16, half = d->hd / 2;
    float *norm = xcalloc((size_t)((2 * d->layers + 1) * d->kd), 4), *bias = xcalloc((size_t)(d->layers * n_bias), 4);
    float *rope = xcalloc((size_t)(positions * d->hd), 4), *f = xcalloc((size_t)half, 4), *one = xmalloc((size_t)(d->heads * head_dim) * 4);
    int rc = ERR_OK;
    for (int64_t i = 0; i < d->layers && rc == ERR_OK; i++) {
        struct layer *l = &m->layers[i];
        if ((rc = read_vector(l->norm1->w, norm + 2 * i * d->kd)) == ERR_OK)
            rc = read_vector(l->norm2->w, norm + (2 * i + 1) * d->kd);
        int64_t rg = 0;
        for (int t = LORA_Q; t <= LORA_V && rc == ERR_OK && m->cfg.attention_bias; t++) {
            int64_t n = (t == LORA_Q ? d->heads : d->kv_heads) * per;
            rc = read_vector(l->proj[t].b->w, one);
            for (int64_t k = 0; k < n * 16; k++) {
                int32_t row = source_row(t == LORA_V ? PLAIN : HALVES, k / 16, k % 16, 0, d->hd, head_dim);
                bias[i * n_bias + rg * 16 + k] = row < 0 ? 0 : one[row / 2];
            }
            rg += n;
        }
    }
    if (rc == ERR_OK)
        rc = read_vector(m->norm->w, norm + 2 * d->layers * d->kd);
    model_rope_frequencies(&m->cfg, f);
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < half; i++) {
            float a = i < head_dim / 2 ? (float)p * f[i] : 0;
            rope[(p * half + i) * 2] = cosf(a);
            rope[(p * half + i) * 2 + 1] = sinf(a);
        }
    if (rc == ERR_OK) {
        d->norm = upload(c, norm, (size_t)((2 * d->layers + 1) * d->kd) * 4);
        d->bias = m->cfg.attention_bias ? upload(c, bias, (size_t)(d->layers * n_bias) * 4) : NULL;
        d->rope = upload(c, rope, (size_t)(positions * d->hd) * 4);
        if (!d->norm || !d->rope || (m->cfg.attention_bias && !d->bias))
            rc = err_code();
    }
    free(norm);
    free(bias);
    free(rope);
    free(f);
    free(one);
    return rc;
}

static int64_t pad(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

static int weights(struct cuda *c, bool fp8)
{
    const struct model_config *f = &c->m->cfg;
    struct dk_model *d = &c->dm;
    int64_t e = fp8 ? 1 : 2;
    d->layers = (int32_t)f->n_layers;
    d->heads = (int32_t)f->n_heads;
    d->kv_heads = (int32_t)f->n_kv_heads;
    d->d = (int32_t)f->d_model;
    d->kd = (int32_t)pad(f->d_model, DK_CHUNK);
    d->kq = (int32_t)pad(f->n_heads * d->hd, DK_CHUNK);
    d->kf = (int32_t)pad(f->d_ff, DK_CHUNK);
    d->rg_qkv = (d->heads + 2 * d->kv_heads) * d->hd / 16;
    d->rg_d = (int32_t)pad(f->d_model, 16) / 16;
    d->rg_gu = (int32_t)pad(f->d_ff, 8) / 8;
    d->rg_head = (int32_t)pad(f->vocab, 16) / 16;
    d->fp8 = fp8;
    d->eps = (float)f->rms_eps;
    d->qk_scale = (float)(1 / sqrt((double)f->head_dim));
    d->embed = th_data(c->m->embed->w);
    int32_t widest = d->kd > d->kq ? d->kd : d->kq, chunks = d->kf / DK_CHUNK, least = (d->kf + widest - 1) / widest;
    d->slices = chunks < 8 ? chunks : 8;
    while (d->slices < chunks && (d->slices < least || (chunks + d->slices - 1) / d->slices > widest / DK_CHUNK))
        d->slices++;
    d->off_o = (int64_t)d->rg_qkv * 16 * d->kd * e;
    d->off_gu = d->off_o + (int64_t)d->rg_d * 16 * d->kq * e;
    d->off_down = d->off_gu + (int64_t)d->rg_gu * 16 * d->kd * e;
    d->layer_bytes = d->off_down + (int64_t)d->rg_d * 16 * d->kf * e;
    d->row_o = (int64_t)d->rg_qkv * 16;
    d->row_gu = d->row_o + d->rg_d * 16;
    d->row_down = d->row_gu + d->rg_gu * 16;
    d->layer_rows = d->row_down + d->rg_d * 16;
    size_t bytes = (size_t)(d->layers * d->layer_bytes + (int64_t)d->rg_head * 16 * d->kd * e);
    void *w = hold(c, bytes);
    float *scale = fp8 && w ? hold(c, (size_t)(d->layers * d->layer_rows + d->rg_head * 16) * 4) : NULL;
    if (!w || (fp8 && !scale))
        return err_wrap("a packed copy of the weights, %.1f GB", (double)bytes / 1e9);
    d->w = w;
    d->scale = scale;
    return pack_all(c, w, scale);
}

static int scratch(struct cuda *c)
{
    struct dk_model *d = &c->dm;
    struct dk_work *w = &c->work;
    size_t n = DK_MAX_COLS;
    c->mask_words = (d->rg_head * 16 + 31) / 32;
    if (!(w->step = hold(c, sizeof *w->step + n * (size_t)c->max_pages * 4)) || !(w->x = hold(c, n * (size_t)d->kd * 4)) ||
        !(w->h = hold(c, n * (size_t)d->kd * 2)) || !(w->ao = hold(c, n * (size_t)d->kq * 2)) ||
        !(w->act = hold(c, n * (size_t)d->kf * 2)) || !(w->sumsq = hold(c, (size_t)d->rg_d * n * 4)) ||
        !(w->q = hold(c, n * (size_t)(d->heads * d->hd) * 2)) ||
        !(w->part = hold(c, n * (size_t)(d->heads * c->max_pages * DK_PARTS * d->hd) * 4)) ||
        !(w->ml = hold(c, n * (size_t)(d->heads * c->max_pages * DK_PARTS) * 8)) ||
        !(w->down = hold(c, (size_t)d->slices * (size_t)d->rg_d * n * 64)) ||
        !(w->count_attn = hold(c, n * (size_t)d->kv_heads * 4)) ||
        !(w->logits = hold(c, n * (size_t)d->rg_head * 64)) || !(w->best = hold(c, (size_t)c->grid * n * 8)) ||
        !(c->mask_device = hold(c, n * (size_t)c->mask_words * 4)) || !(c->page_list = hold(c, (size_t)c->max_pages * 4)))
        return err_code();
    int rc = c->f.k_host_alloc(sizeof *c->step + n * (size_t)c->max_pages * 4, (void **)&c->step);
    if (rc == 0)
        rc = c->f.k_host_alloc(n * sizeof *c->sampling, (void **)&c->sampling);
    if (rc == 0)
        rc = c->f.k_host_alloc(n * sizeof *c->chosen, (void **)&c->chosen);
    if (rc == 0)
        rc = c->f.k_host_alloc(n * (size_t)c->mask_words * 4, (void **)&c->mask);
    return check("page-locked memory", rc);
}

/* ---- e4m3 on the CPU: the twin of pack_kernel() and round_kernel() ---- */

static float power_above(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    u = u & 0x7fffffu ? (u & 0x7f800000u) + 0x800000u : u;
    u = u < 0x08000000u ? 0x08000000u : u;
    memcpy(&v, &u, 4);
    return v;
}

/* The nearest value of e4m3, ties to even, within 448. */
static float nearest_e4m3(float v)
{
    int e;
    float a = fabsf(v);
    if (a >= 448)
        return copysignf(448, v);
    frexpf(a, &e);                         /* a < 2^e */
    float unit = ldexpf(1, (e < -5 ? -5 : e) - 4); /* 3 bits after the first; steps of 2^-9 at the least */
    return copysignf(rintf(a / unit) * unit, v);
}

static int round_on_cpu(struct model *m, struct param *p)
{
    int64_t rows = th_size(p->w, 0), cols = th_size(p->w, 1), shape[2] = {rows, cols};
    size_t scope = th_scope_begin();
    float *v = xmalloc((size_t)(rows * cols) * sizeof *v);
    int rc = th_read(th_to(p->w, TH_F32, TH_CPU), v);
    for (int64_t r = 0; r < rows && rc == ERR_OK; r++) {
        float top = 0, *x = v + r * cols;
        for (int64_t i = 0; i < cols; i++)
            top = fmaxf(top, fabsf(x[i]));
        float s = power_above(top / 448);
        for (int64_t i = 0; i < cols; i++)
            x[i] = nearest_e4m3(x[i] / s) * s;
    }
    th_tensor *w = rc == ERR_OK ? th_keep(th_clone(th_to(th_borrow(v, 2, shape, TH_F32), m->dtype, m->device))) : NULL;
    th_scope_end(scope);
    free(v);
    if (!w)
        return rc < 0 ? rc : err_code();
    th_free(p->w); /* may be the file's own memory: never written to */
    p->w = w;
    return ERR_OK;
}

int engine_round_fp8(struct model *m)
{
    __typeof__(k_decode_round) *f = m->device == TH_CUDA && m->dtype == TH_BF16 && kernels_here() ?
                                        (__typeof__(f))kernel("k_decode_round") : NULL;
    int rc = ERR_OK;
    if (m->head == m->embed) {
        struct param *p = xcalloc(1, sizeof *p);
        p->name = xstrdup("lm_head.weight");
        size_t scope = th_scope_begin();
        p->w = th_keep(th_clone(m->embed->w));
        th_scope_end(scope);
        ARRAY_GROW(m->params, m->cap_params, m->n_params + 1);
        m->params[m->n_params++] = m->head = p;
        if (!p->w)
            return err_code();
    }
    for (int64_t i = 0; i <= m->cfg.n_layers && rc == ERR_OK; i++)
        for (int t = 0; t < (i < m->cfg.n_layers ? (int)LORA_TARGETS : 1) && rc == ERR_OK; t++) {
            struct param *p = i < m->cfg.n_layers ? m->layers[i].proj[t].w : m->head;
            rc = f ? kernel_check("k_decode_round", f(kernel_stream(), th_data(p->w), th_size(p->w, 0), th_size(p->w, 1)))
                   : round_on_cpu(m, p);
        }
    return rc;
}

/* ---- pages ---- */

static int make_pages(struct cuda *c, const struct engine_options *o, int64_t max_tokens)
{
    struct dk_model *d = &c->dm;
    int64_t want = c->max_pages * c->n_places;
    d->layer_elems = (int64_t)d->kv_heads * 2 * DK_PAGE * d->hd;
    d->page_elems = d->layer_elems * d->layers;
    size_t page = (size_t)d->page_elems * 2, used, peak, left, budget = o->cache_bytes;
    if (!budget && c->device == TH_CUDA) {
        th_memory(c->device, &used, &peak, &left);
        /* what reading the longest prompt takes: its own keys and values, and some ten wide rows a token */
        size_t row = (size_t)(c->m->cfg.d_ff * 3 + c->m->cfg.d_model * 12) * 2 + page / DK_PAGE;
        size_t reading = (size_t)max_tokens * row + ((size_t)512 << 20);
        budget = left > reading ? (left - reading) / 20 * 19 : 0;
    }
    c->n_pages = !budget || (size_t)want * page <= budget ? want : (int64_t)(budget / page);
    if (!budget && c->device == TH_CUDA)
        c->n_pages = 0;
    if (c->n_pages < c->max_pages)
        return err_set(ERR_NOMEM, "keys and values of one sequence of %lld tokens need %.2f GB, there are %.2f GB: lower --max-new-tokens",
                       (long long)max_tokens, (double)(size_t)c->max_pages * (double)page / 1e9, (double)budget / 1e9);
    while (!(d->pool = hold(c, (size_t)c->n_pages * page))) { /* memory in pieces */
        if ((c->n_pages = c->n_pages * 3 / 4) < c->max_pages)
            return err_wrap("keys and values of %lld tokens: lower --max-new-tokens or --batch", (long long)max_tokens);
    }
    c->free_pages = xmalloc((size_t)c->n_pages * sizeof *c->free_pages);
    for (int64_t i = 0; i < c->n_pages; i++)
        c->free_pages[i] = (int32_t)(c->n_pages - 1 - i);
    c->n_free = c->n_pages;
    return ERR_OK;
}

static int cuda_reserve(struct engine_way *w, int64_t place, int64_t n)
{
    struct cuda *c = w->state;
    struct place *p = &c->places[place];
    int64_t need = (n + DK_PAGE - 1) / DK_PAGE;
    if (need > c->n_free)
        return 0;
    for (p->n = 0; p->n < need; p->n++)
        p->pages[p->n] = c->free_pages[--c->n_free];
    return 1;
}

static void cuda_release(struct engine_way *w, int64_t place)
{
    struct cuda *c = w->state;
    struct place *p = &c->places[place];
    while (p->n > 0)
        c->free_pages[c->n_free++] = p->pages[--p->n];
}

/* ---- work ---- */

static int fill_pages(void *ctx, int64_t layer, th_tensor *qkv)
{
    struct cuda *c = ctx;
    const struct model_config *f = &c->m->cfg;
    const uint16_t *k = (const uint16_t *)th_data(qkv) + f->n_heads * f->head_dim;
    return check("k_decode_fill", c->f.k_decode_fill(stream_of(c), &c->dm, (int)layer, k, k + f->n_kv_heads * f->head_dim, th_size(qkv, 1),
                                                     (int)f->head_dim, (int)th_size(qkv, 0), c->page_list));
}

static int cuda_prefill(struct engine_way *w, int64_t place, const int32_t *ids, size_t n)
{
    struct cuda *c = w->state;
    struct place *p = &c->places[place];
    int rc = check("copying page numbers", c->f.k_copy(stream_of(c), c->page_list, p->pages, (size_t)p->n * 4));
    if (rc == ERR_OK)
        rc = model_read(c->m, ids, n, fill_pages, c);
    return rc == ERR_NOMEM ? err_wrap("reading a prompt of %zu tokens: lower --batch", n) : rc;
}

static int cuda_step(struct engine_way *w, const struct engine_column *col, int64_t n, bool logits)
{
    struct cuda *c = w->state;
    struct dk_step *s = c->step;
    void *stream = stream_of(c);
    s->barrier = 0;
    s->cols = (int32_t)n;
    s->seqs = s->units = 0;
    s->max_pages = (int32_t)c->max_pages;
    s->keep_logits = logits;
    for (int64_t i = 0; i < n; i++) {
        s->token[i] = col[i].token;
        s->pos[i] = col[i].pos;
        if (!i || col[i].place != col[i - 1].place) {
            struct dk_seq *q = &s->seq[s->seqs];
            *q = (struct dk_seq){.col = (int32_t)i, .pos = col[i].pos};
            memcpy(s->pages + s->seqs * c->max_pages, c->places[col[i].place].pages, (size_t)c->places[col[i].place].n * 4);
            s->seqs++;
        }
        s->seq[s->seqs - 1].n++;
        s->seq_of[i] = s->seqs - 1;
    }
    for (int i = 0; i < s->seqs; i++) {
        s->seq[i].parts = (s->seq[i].pos + s->seq[i].n - 1) / DK_PART + 1;
        s->seq[i].unit = s->units;
        s->units += s->seq[i].parts * c->dm.kv_heads;
    }
    /* For a little work a roundtrip through whoever comes last takes longer than doing it 132 times over. */
    int64_t rows = 0;
    for (int i = 0; i < s->seqs; i++)
        rows += (int64_t)s->seq[i].n * s->seq[i].parts;
    s->few_parts = !c->many && rows * c->dm.heads * c->dm.hd <= 20480;
    c->cols = n;
    c->nc = n <= 8 ? 8 : n <= 16 ? 16 : 32;
    int rc = c->f.k_copy(stream, c->work.step, s, sizeof *s + (size_t)(s->seqs * c->max_pages) * 4);
    if (rc == 0)
        rc = c->f.k_decode_step(stream, &c->dm, &c->work, c->nc, c->grid, c->smem);
    return check("k_decode_step", rc);
}

static int cuda_choose(struct engine_way *w, int64_t from, int64_t n, const struct engine_choice *choice, int32_t *out)
{
    struct cuda *c = w->state;
    void *stream = stream_of(c);
    bool masked = false;
    int rc = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct engine_choice *q = &choice[i];
        c->sampling[i] = (struct dk_sampling){.temperature = (float)q->s.temperature, .top_p = (float)q->s.top_p, .top_k = (int32_t)q->s.top_k,
                                              .place = (int32_t)q->at, .seed = q->s.seed, .masked = q->mask != NULL};
        if (q->mask)
            memcpy(c->mask + i * c->mask_words, q->mask, (size_t)((c->dm.vocab + 31) / 32) * 4);
        masked |= q->mask != NULL;
    }
    if (masked)
        rc = c->f.k_copy(stream, c->mask_device, c->mask, (size_t)(n * c->mask_words) * 4);
    struct dk_work at = c->work; /* columns from `from` on */
    at.logits += from * c->dm.rg_head * 16;
    at.best += 2 * from;
    if (rc == 0)
        rc = c->f.k_decode_sample(stream, &c->dm, &at, c->nc, c->grid, (int)n, c->sampling, c->mask_device, c->mask_words, c->chosen);
    if (rc == 0)
        rc = c->f.k_wait(stream);
    if (rc == 0)
        memcpy(out, c->chosen, (size_t)n * sizeof *out);
    return check("k_decode_sample", rc);
}

static int cuda_logits(struct engine_way *w, int64_t column, float *out)
{
    struct cuda *c = w->state;
    void *stream = stream_of(c);
    int rc = c->f.k_copy(stream, out, c->work.logits + column * c->dm.rg_head * 16, (size_t)c->m->cfg.vocab * 4);
    return check("reading logits", rc ? rc : c->f.k_wait(stream));
}

static int cuda_trace(struct engine_way *w, uint64_t *out, int *grid)
{
    struct cuda *c = w->state;
    size_t bytes = (size_t)c->grid * DK_MARKS * 16;
    *grid = c->grid;
    if (!out)
        return (c->work.trace = hold(c, bytes)) ? ERR_OK : err_code();
    int rc = c->f.k_copy(stream_of(c), out, c->work.trace, bytes);
    return check("reading the trace", rc ? rc : c->f.k_wait(stream_of(c)));
}

static void cuda_free(struct engine_way *w)
{
    struct cuda *c = w->state;
    if (c->f.k_host_free) {
        c->f.k_host_free(c->step);
        c->f.k_host_free(c->sampling);
        c->f.k_host_free(c->chosen);
        c->f.k_host_free(c->mask);
    }
    while (c->n_held > 0)
        th_free(c->held[--c->n_held]);
    for (int64_t i = 0; c->places && i < c->n_places; i++)
        free(c->places[i].pages);
    free(c->places);
    free(c->free_pages);
    free(c);
}

static int functions(struct functions *f)
{
#define F(name) \
    if (!(f->name = (__typeof__(f->name))kernel(#name))) \
        return err_code();
    FUNCTIONS(F)
#undef F
    return ERR_OK;
}

int engine_cuda(struct model *m, const struct engine_options *o, struct engine_way *out)
{
    const struct model_config *f = &m->cfg;
    int capability = 0, rc;
    if ((m->device != TH_CUDA && !o->emulate) || !kernels_here() || f->head_dim > 128)
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs a CUDA device and the kernels' library") : ERR_OK;
    if (m->dtype != TH_BF16)
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs --dtype bfloat16") : ERR_OK;
    struct cuda *c = xcalloc(1, sizeof *c);
    *out = (struct engine_way){.name = "cuda-persistent", .state = c, .reserve = cuda_reserve, .release = cuda_release,
                               .prefill = cuda_prefill, .step = cuda_step, .choose = cuda_choose, .logits = cuda_logits, .trace = cuda_trace,
                               .free = cuda_free};
    c->m = m;
    c->device = m->device;
    c->many = o->many;
    if ((rc = functions(&c->f)) == ERR_OK)
        rc = check("k_decode_device", c->f.k_decode_device(&c->grid, &c->smem, &capability));
    c->dm.hd = f->head_dim <= 64 ? 64 : 128;
    int64_t kd = pad(f->d_model, DK_CHUNK), kq = pad(f->n_heads * c->dm.hd, DK_CHUNK);
    if (rc == ERR_OK)
        out->max_columns = c->f.k_decode_max_cols((int)(kd > kq ? kd : kq), c->smem);
    if (rc == ERR_OK && (capability < 90 || !out->max_columns)) {
        cuda_free(out);
        *out = (struct engine_way){0};
        return o->fp8 ? err_set(ERR_USAGE, "--weights fp8 needs a GPU of compute capability 9.0 or later; this one has %d.%d",
                                capability / 10, capability % 10) : ERR_OK;
    }
    int64_t tokens = o->max_tokens ? o->max_tokens : f->max_positions;
    c->n_places = o->max_batch ? o->max_batch : 1;
    c->max_pages = (tokens + DK_PAGE - 1) / DK_PAGE;
    c->dm.vocab = (int32_t)(o->vocab ? o->vocab : f->vocab);
    out->max_a_place = out->max_columns < 16 ? out->max_columns : 16;
    c->places = xcalloc((size_t)c->n_places, sizeof *c->places);
    for (int64_t i = 0; i < c->n_places; i++)
        c->places[i].pages = xcalloc((size_t)c->max_pages, sizeof *c->places[i].pages);
    if (rc == ERR_OK && (rc = weights(c, o->fp8)) == ERR_OK)
        out->weight_bytes = c->bytes;
    if (rc == ERR_OK && (rc = small_parts(c, c->max_pages * DK_PAGE)) == ERR_OK && (rc = scratch(c)) == ERR_OK)
        rc = make_pages(c, o, tokens);
    out->cache_bytes = (size_t)c->n_pages * (size_t)c->dm.page_elems * 2;
    if (rc < 0) {
        cuda_free(out);
        *out = (struct engine_way){0};
    }
    return rc;
}
