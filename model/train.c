/* train.c: forward and backward passes over packed sequences, for training and scoring.
 *
 * Matrix products and attention are ATen's, everything between them one pass over memory (kernels/train.h).
 * q, k and v are one product, gate and up another.  An adapter costs no pass over its layer's output: its
 * rank is appended to the product's inner dimension.  Of a frozen weight W [n, k] with adapter s B A, one
 * matrix is kept,
 *
 *     [ W  sB ]        forward:   u = x A^T ;  y = [x u] [W sB]^T
 *     [ A   . ]        backward:  [dx du] = dy [W sB] ;  dx += du A ;  dA = du^T x ;  dB = s dy^T u
 *                      or:        du = dy sB ;  dx = [dy du] [W; A]      (where x is wider than y)
 *
 * (In 8 bits, m->fp8, W is kept as e4m3 by rows for the forward product and by columns for the backward one, a scale for each; activations
 * and gradients are brought to e4m3 row by row as they are made.  The adapter's columns are there, too, but as two of e4m3 each, which
 * have bfloat16's 8 bits together: three columns a rank, as quantize_beside() says.  u, du and the adapters' gradients are bfloat16's.
 * The first two layers and the last stay as they are: see in_8_bits().)
 *
 * A and sB are copied anew before each pass.  When all weights are trained W is where the optimiser keeps
 * them, one after the other.
 */
#include <math.h>
#include <stdlib.h>

#include "kernels/train.h"
#include "lib/err.h"
#include "lib/mem.h"
#include "model/transformer.h"
#include "shim/kernels.h"

/* Projections that share their input. */
enum { G_QKV, G_O, G_GU, G_DOWN, GROUPS };
static const int first_of[GROUPS + 1] = {LORA_Q, LORA_O, LORA_GATE, LORA_DOWN, LORA_TARGETS};

struct group {
    int64_t n, k, e;            /* outputs, inputs, ranks of its adapters, rounded up */
    int64_t row[3], col[3];     /* of each projection: first output, first column of its adapter's */
    th_tensor *w;               /* [n + e, k + e], or [n, k] when e is 0 */
    th_tensor *fwd_t;           /* [W sB]^T */
    th_tensor *a, *a_t, *sb, *sb_t, *w_t; /* views of the parts */
    th_tensor *wide, *tall;     /* [W sB]; [W; A] */
    th_tensor *q, *qs, *qt, *qts; /* [W sB] and [W; A]^T in 8 bits, with the scales of their rows; NULL without fp8 */
    th_tensor *bias;            /* [n] or NULL */
    th_tensor *grad_w, *grad_a; /* of all its projections at once; NULL when not trained, or not side by side */
    int64_t ranks;              /* rows of grad_a */
};

struct mark {
    const char *name;
    th_mark *m;
};

enum { MAX_PHASES = 32 };

struct train {
    const struct train_kernels *kernels;
    struct group (*group)[GROUPS];
    th_tensor *copies;          /* struct tk_copy [n_copies] on the device */
    int64_t n_copies, n_layers;
    th_tensor *cos, *sin;       /* float32 [positions, head_dim / 2] */
    int64_t extra;              /* columns beside the gradient of the residual stream, for du */
    th_tensor *losses;          /* float32 [MODEL_LOSSES], a ring */
    size_t n_losses;
    struct mark *marks;
    size_t n_marks, cap_marks;
    struct phase phase[MAX_PHASES];
    size_t n_phases;
};

/* ---- preparing a model ---- */

static void free_group(struct group *g)
{
    th_tensor *all[] = {g->w, g->fwd_t, g->a, g->a_t, g->sb, g->sb_t, g->w_t, g->wide, g->tall, g->bias, g->grad_w, g->grad_a,
                        g->q, g->qs, g->qt, g->qts};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        th_free(all[i]);
    *g = (struct group){0};
}

static void drop_marks(struct train *t)
{
    for (size_t i = 0; i < t->n_marks; i++)
        th_mark_free(t->marks[i].m);
    t->n_marks = 0;
}

void model_train_reset(struct model *m)
{
    struct train *t = m->train;
    m->train = NULL;
    if (!t)
        return;
    for (int64_t i = 0; i < t->n_layers; i++)
        for (int g = 0; g < GROUPS; g++)
            free_group(&t->group[i][g]);
    th_free(t->copies);
    th_free(t->cos);
    th_free(t->sin);
    th_free(t->losses);
    drop_marks(t);
    free(t->marks);
    free(t->group);
    free(t);
}

static th_tensor *block(th_tensor *x, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    return th_narrow(th_narrow(x, 0, row, rows), 1, col, cols);
}

static th_tensor *cols(th_tensor *x, int64_t from, int64_t n)
{
    return th_narrow(x, 1, from, n);
}

static th_tensor *rows_of(th_tensor *x, int64_t from, int64_t n)
{
    return th_narrow(x, 0, from, n);
}

static th_tensor *transposed(th_tensor *x)
{
    return th_transpose(x, 0, 1);
}

struct copies {
    struct tk_copy *v;
    size_t n, cap;
};

static int add_copy(struct copies *c, th_tensor *src, th_tensor *dst, double scale)
{
    if (!src || !dst)
        return err_code();
    bool vector = th_rank(src) == 1;
    ARRAY_GROW(c->v, c->cap, c->n + 1);
    c->v[c->n++] = (struct tk_copy){.src = th_data(src), .dst = th_data(dst), .rows = vector ? 1 : th_size(src, 0),
                                    .cols = th_size(src, -1), .ld = vector ? th_size(src, 0) : th_stride(dst, 0), .scale = (float)scale};
    return ERR_OK;
}

/* The group's matrix: of trained weights, where they lie; else of its own, and frozen weights become views of it. */
static int gather_weights(struct model *m, struct group *g, struct linear *p, int n, struct copies *copies)
{
    int64_t shape[2] = {g->n + g->e, g->k + g->e};
    th_tensor *w[3], *grad[3];
    bool trained = p[0].w->trained;
    for (int i = 0; i < n; i++) {
        w[i] = p[i].w->w;
        grad[i] = p[i].w->grad;
    }
    if (trained)
        g->grad_w = th_keep(th_adjacent(grad, n));
    if (!g->e && (g->w = th_keep(th_adjacent(w, n))))
        return ERR_OK;
    g->w = th_keep(th_zeros(2, shape, m->dtype, m->device));
    int rc = g->w ? ERR_OK : err_code();
    for (int i = 0; i < n && rc == ERR_OK; i++) {
        th_tensor *to = block(g->w, g->row[i], th_size(w[i], 0), 0, g->k);
        if (trained) {
            rc = add_copy(copies, w[i], to, 1);
        } else if ((rc = to ? th_copy_(to, w[i]) : err_code()) == ERR_OK) {
            th_free(w[i]);
            p[i].w->w = th_keep(to);
        }
    }
    return rc;
}

static int make_group(struct model *m, struct linear *p, int n, struct group *g, struct copies *copies)
{
    const int64_t multiple = m->device == TH_CUDA ? 64 : 8; /* wide loads, whole tiles of the inner dimension */
    bool bias = false;
    th_tensor *grad_a[3];
    int n_a = 0;
    g->k = th_size(p[0].w->w, 1);
    for (int i = 0; i < n; i++) {
        g->row[i] = g->n;
        g->col[i] = g->ranks;
        g->n += th_size(p[i].w->w, 0);
        g->ranks += p[i].lora_a ? th_size(p[i].lora_a->w, 0) : 0;
        bias |= p[i].b != NULL;
        if (p[i].lora_a && p[i].lora_a->trained)
            grad_a[n_a++] = p[i].lora_a->grad;
    }
    g->e = (g->ranks + multiple - 1) / multiple * multiple;
    int rc = gather_weights(m, g, p, n, copies);
    if (rc < 0)
        return rc;
    g->wide = th_keep(rows_of(g->w, 0, g->n));
    g->fwd_t = th_keep(transposed(g->wide));
    g->tall = th_keep(cols(g->w, 0, g->k));
    g->w_t = th_keep(transposed(cols(g->wide, 0, g->k)));
    if (g->e) {
        g->a = th_keep(block(g->w, g->n, g->e, 0, g->k));
        g->a_t = th_keep(transposed(g->a));
        g->sb = th_keep(cols(g->wide, g->k, g->e));
        g->sb_t = th_keep(transposed(g->sb));
    }
    if (n_a)
        g->grad_a = th_keep(th_adjacent(grad_a, n_a));
    if (bias && (g->bias = th_keep(th_zeros(1, &g->n, m->dtype, m->device))) == NULL)
        return err_code();
    for (int i = 0; i < n && rc == ERR_OK; i++) {
        if (p[i].b)
            rc = add_copy(copies, p[i].b->w, th_narrow(g->bias, 0, g->row[i], th_size(p[i].b->w, 0)), 1);
        if (!p[i].lora_a || rc < 0)
            continue;
        int64_t r = th_size(p[i].lora_a->w, 0), out = th_size(p[i].w->w, 0);
        if ((rc = add_copy(copies, p[i].lora_a->w, rows_of(g->a, g->col[i], r), 1)) == ERR_OK)
            rc = add_copy(copies, p[i].lora_b->w, block(g->sb, g->row[i], out, g->col[i], r), m->lora_scale);
    }
    return rc == ERR_OK && (!g->fwd_t || !g->tall || !g->w_t) ? err_code() : rc;
}

/* Columns of 8 bits for adapters of so many ranks beside n_cols; a row is then a multiple of 16 bytes, as the products need, and on a GPU of
 * 128, with which they are up to a quarter faster. */
static int64_t beside(const struct model *m, int64_t n_cols, int64_t ranks)
{
    const int64_t multiple = m->device == TH_CUDA ? 128 : 16;
    return ranks ? (n_cols + 3 * ranks + multiple - 1) / multiple * multiple - n_cols : 0;
}

/* Most of what rounding activations to 8 bits costs comes from the first layers, whose error all others see, and some from the last, which has
 * nothing after it that makes up for its own (docs/benchmarks.md, 'Correctness at this size'). */
static bool in_8_bits(const struct model *m, int64_t layer)
{
    int64_t n = m->cfg.n_layers;
    return m->fp8 && (n <= 3 || (layer > 1 && layer < n - 1));
}

static struct tk tk_of(const struct model *m)
{
    return (struct tk){.type = m->dtype == TH_BF16 ? TK_BF16 : TK_F32, .stream = m->device == TH_CUDA ? kernel_stream() : NULL};
}

/* W [n, k] in 8 bits, and its transpose, with room for the adapters. */
static int quantize_weights(struct model *m, struct group *g)
{
    const struct tk tk = tk_of(m);
    th_tensor **const to[2][2] = {{&g->q, &g->qs}, {&g->qt, &g->qts}};
    int rc = ERR_OK;
    for (int i = 0; i < 2 && rc == ERR_OK; i++) {
        size_t scope = th_scope_begin();
        th_tensor *w = cols(g->wide, 0, g->k), *x = i ? th_contiguous(transposed(w)) : w;
        if (!x)
            return err_code();
        int64_t n_cols = th_size(x, 1), shape[2] = {th_size(x, 0), n_cols + beside(m, n_cols, g->ranks)}, scales[2] = {shape[0], 1};
        *to[i][0] = th_keep(th_empty(2, shape, TH_F8, m->device));
        *to[i][1] = th_keep(th_empty(2, scales, TH_F32, m->device));
        if (!*to[i][0] || !*to[i][1])
            rc = err_code();
        else if (m->train->kernels->quantize(&tk, shape[0], n_cols, th_data(x), th_stride(x, 0), th_data(*to[i][0]), shape[1], th_data(*to[i][1])))
            rc = err_set(ERR_EXTERN, "the weights cannot be brought to 8 bits");
        th_scope_end(scope);
    }
    return rc;
}

int model_check_training(const struct model *m)
{
    const struct model_config *c = &m->cfg;
    if (m->device == TH_CUDA && (c->d_model % 8 || c->d_ff % 8 || c->d_model > 8192 || c->n_heads * c->head_dim % 8 ||
                                 c->n_kv_heads * c->head_dim % 8))
        return err_set(ERR_FORMAT, "on a GPU the model's sizes must be multiples of 8, hidden_size 8192 at most; use --device cpu");
    if (m->fp8 && m->device == TH_CUDA && m->dtype != TH_BF16)
        return err_set(ERR_USAGE, "8-bit products want bfloat16");
    if (m->fp8 && m->device == TH_CUDA && c->d_ff > 16384) /* a row is kept in a block's registers */
        return err_set(ERR_USAGE, "8-bit products are for an intermediate_size of up to 16384, not %lld", (long long)c->d_ff);
    if (m->fp8 && (m->layers[0].proj[0].w->trained || c->d_model % 16 || c->d_ff % 16))
        return err_set(ERR_USAGE, "8-bit products are for frozen weights, whose sizes are multiples of 16");
    return m->dtype == TH_F32 || m->dtype == TH_BF16 ? ERR_OK : err_set(ERR_USAGE, "training computes in float32 or bfloat16");
}

static int prepare(struct model *m)
{
    if (m->train)
        return ERR_OK;
    int rc = model_check_training(m);
    if (rc < 0)
        return rc;
    const struct train_kernels *(*table)(void) = train_kernels_cpu;
    if (m->device == TH_CUDA && !(table = (const struct train_kernels *(*)(void))kernel("train_kernels")))
        return err_code();
    struct train *t = m->train = xcalloc(1, sizeof *t);
    struct copies copies = {0};
    int64_t n_losses = MODEL_LOSSES;
    t->kernels = table();
    t->n_layers = m->cfg.n_layers;
    t->group = xcalloc((size_t)t->n_layers, sizeof *t->group);
    size_t scope = th_scope_begin();
    for (int64_t i = 0; i < t->n_layers && rc == ERR_OK; i++)
        for (int g = 0; g < GROUPS && rc == ERR_OK; g++) {
            size_t inner = th_scope_begin();
            rc = make_group(m, &m->layers[i].proj[first_of[g]], first_of[g + 1] - first_of[g], &t->group[i][g], &copies);
            if (rc == ERR_OK && in_8_bits(m, i))
                rc = quantize_weights(m, &t->group[i][g]);
            if ((g == G_O || g == G_DOWN) && t->group[i][g].e > t->extra)
                t->extra = t->group[i][g].e;
            th_scope_end(inner);
        }
    t->n_copies = (int64_t)copies.n;
    if (rc == ERR_OK && copies.n) {
        int64_t bytes = (int64_t)(copies.n * sizeof *copies.v);
        t->copies = th_keep(th_from(copies.v, 1, &bytes, TH_U8, m->device));
    }
    t->losses = th_keep(th_zeros(1, &n_losses, TH_F32, m->device));
    if (rc == ERR_OK && (!t->losses || (copies.n && !t->copies)))
        rc = err_code();
    free(copies.v);
    th_scope_end(scope);
    if (rc < 0)
        model_train_reset(m);
    return rc;
}

static int rope_table(struct model *m, int64_t positions)
{
    struct train *t = m->train;
    if (t->cos && th_size(t->cos, 0) >= positions)
        return ERR_OK;
    float *c, *s;
    int64_t shape[2] = {0, m->cfg.head_dim / 2};
    model_rope_table(m, positions, &c, &s, &shape[0]);
    size_t scope = th_scope_begin();
    th_free(t->cos);
    th_free(t->sin);
    t->cos = th_keep(th_from(c, 2, shape, TH_F32, m->device));
    t->sin = th_keep(th_from(s, 2, shape, TH_F32, m->device));
    th_scope_end(scope);
    free(c);
    free(s);
    return t->cos && t->sin ? ERR_OK : err_code();
}

/* ---- one pass ---- */

/* Rows in 8 bits, with their scales, and columns for an adapter; NULL without fp8. */
struct q8 {
    th_tensor *v, *s;
};

struct pass {
    struct model *m;
    struct train *t;
    const struct train_kernels *k;
    struct tk tk;
    struct th_packing pack;
    int64_t rows, chunk;        /* tokens; rows that the feed-forward part takes at once */
    th_tensor *ids, *pos;       /* int64, int32 [rows] */
    bool grad;                  /* a backward pass follows */
    bool fp8;                   /* the layer at hand is in 8 bits */
    struct q8 dy;               /* the backward pass's gradient of a layer's output, where it is there in 8 bits: kept handles */
    model_keys_fn *keys;        /* gets each layer's q, k and v; NULL: nobody */
    void *keys_ctx;
};

static void mark(struct pass *s, const char *name)
{
    struct train *t = s->t;
    if (!s->m->profile)
        return;
    ARRAY_GROW(t->marks, t->cap_marks, t->n_marks + 1);
    t->marks[t->n_marks++] = (struct mark){name, th_mark_new(s->m->device)};
}

static int done(const struct pass *s, int code)
{
    return code ? err_set(ERR_EXTERN, "CUDA: %s", s->k->error(code)) : ERR_OK;
}

static th_tensor *matrix(const struct pass *s, int64_t rows, int64_t n_cols)
{
    int64_t shape[2] = {rows, n_cols};
    return th_empty(2, shape, s->m->dtype, s->m->device);
}

static th_tensor *floats(const struct pass *s, int64_t n)
{
    return th_empty(1, &n, TH_F32, s->m->device);
}

/* Runs the steps of a formula up to the first that fails. */
#define TRY(call) do { if (rc == ERR_OK) rc = (call); } while (0)
#define HAVE(x) do { if (rc == ERR_OK && !(x)) rc = err_code(); } while (0)

static struct q8 q8_new(const struct pass *s, int64_t rows, int64_t n_cols, int64_t ranks)
{
    int64_t shape[2] = {rows, n_cols + beside(s->m, n_cols, ranks)}, scales[2] = {rows, 1};
    if (!s->fp8)
        return (struct q8){0};
    return (struct q8){th_empty(2, shape, TH_F8, s->m->device), th_empty(2, scales, TH_F32, s->m->device)};
}

static struct q8 q8_rows(struct q8 q, int64_t from, int64_t n)
{
    return q.v ? (struct q8){rows_of(q.v, from, n), rows_of(q.s, from, n)} : q;
}

static void drop_q8(struct q8 *q)
{
    th_free(q->v);
    th_free(q->s);
    *q = (struct q8){0};
}

static int64_t q8_stride(struct q8 q)
{
    return q.v ? th_stride(q.v, 0) : 0;
}

/* x, in 8 bits with fp8. */
static int quantized(const struct pass *s, th_tensor *x, int64_t ranks, struct q8 *q)
{
    *q = x ? q8_new(s, th_size(x, 0), th_size(x, 1), ranks) : (struct q8){0};
    if (!s->fp8)
        return ERR_OK;
    return !x || !q->v || !q->s ? err_code() : done(s, s->k->quantize(&s->tk, th_size(x, 0), th_size(x, 1), th_data(x), th_stride(x, 0),
                                                                      th_data(q->v), q8_stride(*q), th_data(q->s)));
}

/* y = x w^T in 8 bits with the adapter's part: x's first n_cols are in q, u is what goes beside them (NULL: none). */
static int product8(const struct pass *s, const struct group *g, struct q8 q, int64_t n_cols, th_tensor *u, th_tensor *w, th_tensor *ws, th_tensor *bias,
                    th_tensor *y)
{
    int rc = ERR_OK;
    HAVE(q.v && q.s && y && (u || !g->ranks));
    if (g->ranks)
        TRY(done(s, rc < 0 ? 0 : s->k->quantize_beside(&s->tk, th_size(q.v, 0), n_cols, th_data(u), th_stride(u, 0), 1, g->ranks, 0, th_data(q.v),
                                                       q8_stride(q), th_data(q.s))));
    TRY(th_scaled_mm_(y, q.v, q.s, w, ws, bias));
    return rc;
}

/* The adapters, as they are now, beside the weights in 8 bits. */
static int quantize_adapters(const struct pass *s)
{
    int rc = ERR_OK;
    for (int64_t i = 0; i < s->t->n_layers; i++)
        for (int j = 0; j < GROUPS && rc == ERR_OK; j++) {
            const struct group *g = &s->t->group[i][j];
            if (!g->ranks || !g->q)
                continue;
            TRY(done(s, s->k->quantize_beside(&s->tk, g->n, g->k, th_data(g->sb), th_stride(g->sb, 0), 1, g->ranks, 1, th_data(g->q), th_stride(g->q, 0),
                                              th_data(g->qs))));
            TRY(done(s, rc < 0 ? 0 : s->k->quantize_beside(&s->tk, g->k, g->n, th_data(g->a), 1, th_stride(g->a, 0), g->ranks, 1, th_data(g->qt),
                                                           th_stride(g->qt, 0), th_data(g->qts))));
        }
    return rc;
}

/* y = h W^T + bias with the adapters' part; h [rows, k + e], whose last columns this fills, q its first k with fp8; y [rows, n]. */
static int project(const struct pass *s, const struct group *g, th_tensor *h, struct q8 q, th_tensor *y)
{
    int rc = ERR_OK;
    th_tensor *u = g->e ? cols(h, g->k, g->e) : NULL;
    if (g->e)
        TRY(th_addmm_(u, cols(h, 0, g->k), g->a_t, 0, 1));
    if (q.v)
        TRY(product8(s, g, q, g->k, u, g->q, g->qs, g->bias, y));
    else
        TRY(g->bias ? th_addmm_bias_(y, h, g->fwd_t, g->bias) : th_addmm_(y, h, g->fwd_t, 0, 1));
    return rc;
}

/* The same of x [rows, k], with u [rows, e] (NULL when e is 0) of its own. */
static int project_dense(const struct pass *s, const struct group *g, th_tensor *x, th_tensor *u, th_tensor *y)
{
    struct q8 q;
    int rc = quantized(s, x, g->ranks, &q);
    if (g->e)
        TRY(th_addmm_(u, x, g->a_t, 0, 1));
    if (q.v)
        return rc == ERR_OK ? product8(s, g, q, g->k, u, g->q, g->qs, g->bias, y) : rc;
    TRY(g->bias ? th_addmm_bias_(y, x, g->w_t, g->bias) : th_addmm_(y, x, g->w_t, 0, 1));
    if (g->e)
        TRY(th_addmm_(y, u, g->sb_t, 1, 1));
    return rc;
}

/* Gradients of a group's trained weights from its input x [rows, k], u = x A^T, and dy [rows, n], du = dy sB. */
static int weight_gradients(const struct pass *s, const struct group *g, struct linear *p, int n, th_tensor *x, th_tensor *u,
                            th_tensor *dy, th_tensor *du)
{
    int rc = ERR_OK;
    if (g->grad_w)
        TRY(th_addmm_(g->grad_w, transposed(dy), x, 1, 1));
    if (g->grad_a)
        TRY(th_addmm_(g->grad_a, transposed(cols(du, 0, g->ranks)), x, 1, 1));
    for (int i = 0; i < n && rc == ERR_OK; i++) {
        int64_t out = th_size(p[i].w->w, 0), r = p[i].lora_a ? th_size(p[i].lora_a->w, 0) : 0;
        if (p[i].w->trained && !g->grad_w)
            TRY(th_addmm_(p[i].w->grad, transposed(cols(dy, g->row[i], out)), x, 1, 1));
        if (r && p[i].lora_a->trained && !g->grad_a)
            TRY(th_addmm_(p[i].lora_a->grad, transposed(cols(du, g->col[i], r)), x, 1, 1));
        if (r && p[i].lora_b->trained)
            TRY(th_addmm_(p[i].lora_b->grad, transposed(cols(dy, g->row[i], out)), cols(u, g->col[i], r), 1,
                          s->m->lora_scale));
        if (p[i].b && p[i].b->trained)
            TRY(th_add_(p[i].b->grad, th_sum_f32(cols(dy, g->row[i], out), 0), 1));
    }
    return rc;
}

/* dx, the first k columns of what it is in, of dy [rows, n], which with fp8 is in q; *du [rows, e] is made (NULL when e is 0). */
static int input_gradient(const struct pass *s, const struct group *g, th_tensor *dy, struct q8 q, th_tensor **dx, th_tensor **du)
{
    int rc = ERR_OK;
    int64_t n = th_size(dy, 0);
    *dx = matrix(s, n, q.v ? g->k : g->k + g->e);
    *du = g->e ? q.v ? matrix(s, n, g->e) : cols(*dx, g->k, g->e) : NULL;
    if (q.v) {
        if (g->e)
            TRY(th_addmm_(*du, dy, g->sb, 0, 1));
        TRY(product8(s, g, q, g->n, *du, g->qt, g->qts, NULL, *dx));
        return rc;
    }
    TRY(th_addmm_(*dx, dy, g->wide, 0, 1));
    if (g->e)
        TRY(th_addmm_(cols(*dx, 0, g->k), *du, g->a, 1, 1));
    return rc;
}

/* The same where dy [rows, n + e] has columns left for du, and need not be in q: dx [rows, k], dense. */
static int input_gradient_inner(const struct pass *s, const struct group *g, th_tensor *dy, struct q8 q, th_tensor **dx, th_tensor **du)
{
    int rc = ERR_OK;
    th_tensor *own = cols(dy, 0, g->n);
    *du = g->e ? cols(dy, g->n, g->e) : NULL;
    *dx = matrix(s, th_size(dy, 0), g->k);
    if (g->e)
        TRY(th_addmm_(*du, own, g->sb, 0, 1));
    if (!s->fp8)
        return rc == ERR_OK ? th_addmm_(*dx, cols(dy, 0, g->n + g->e), g->tall, 0, 1) : rc;
    if (!q.v)
        TRY(quantized(s, own, g->ranks, &q));
    TRY(product8(s, g, q, g->n, *du, g->qt, g->qts, NULL, *dx));
    return rc;
}

/* How much of a layer is kept, in the order of what a byte saves; aside: the input, in host memory. */
enum level { KEEP_ASIDE, KEEP_INPUT, KEEP_ATTENTION, KEEP_FFN, KEEP_NORMS, KEEP_ALL };

/* What the backward pass finds of a layer; NULL: to be computed again. */
struct saved {
    th_tensor *x;                       /* input, [rows, d] */
    th_aside *aside;                    /* or where it is meanwhile */
    th_tensor *r1, *qkv, *o, *u_o, *x2; /* 1 / rms of x; q, k rotated; attention's output; x after attention */
    th_tensor *h1, *h2, *r2;            /* norms, with the adapters' u beside them; 1 / rms of x2 */
    th_tensor *gu, *u_down, *act;       /* gate and up; act A^T; silu(gate) up, with u_down beside it */
    struct th_attention_saved attention;
};

static void saved_free(struct saved *v)
{
    th_tensor *all[] = {v->x, v->r1, v->qkv, v->o, v->u_o, v->x2, v->h1, v->h2, v->r2, v->gu, v->u_down, v->act};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        th_free(all[i]);
    th_attention_saved_free(&v->attention);
    th_aside_free(v->aside);
    *v = (struct saved){0};
}

static int norm(const struct pass *s, th_tensor *x, th_tensor *added, struct param *w, th_tensor *sum, th_tensor *h, th_tensor *r,
                struct q8 q)
{
    if (!x || !h || !r)
        return err_code();
    return done(s, s->k->rms_norm(&s->tk, th_size(x, 0), th_size(x, 1), th_data(x), th_data(added), th_data(w->w),
                                  (float)s->m->cfg.rms_eps, th_data(sum), th_data(h), th_stride(h, 0), th_data(r), th_data(q.v), q8_stride(q),
                                  th_data(q.s)));
}

/* [rows, heads * d] at column `col` of qkv as [rows, heads, d] */
static th_tensor *heads(const struct pass *s, th_tensor *qkv, int64_t col, int64_t n)
{
    return th_unflatten(cols(qkv, col, n * s->m->cfg.head_dim), 1, n);
}

/* From x + added (added NULL: x) to the norm before the feed-forward part, q2 that in 8 bits: of v what `level` keeps, and x, x2, h2, r2, in
 * handles of the scope. */
static int attention_part(struct pass *s, int64_t i, th_tensor *x, th_tensor *added, enum level level, struct saved *v, struct q8 *q2)
{
    const struct model_config *c = &s->m->cfg;
    struct layer *l = &s->m->layers[i];
    const struct group *qkv = &s->t->group[i][G_QKV], *o = &s->t->group[i][G_O], *gu = &s->t->group[i][G_GU];
    int64_t room = th_packing_rows(&s->pack, s->m->device), q_size = c->n_heads * c->head_dim, kv_size = c->n_kv_heads * c->head_dim;
    int rc = ERR_OK;

    mark(s, "norms");
    v->x = added ? matrix(s, s->rows, c->d_model) : th_alias(x);
    v->r1 = floats(s, s->rows);
    size_t scope = th_scope_begin();
    v->h1 = matrix(s, s->rows, c->d_model + qkv->e);
    struct q8 q1 = q8_new(s, s->rows, c->d_model, qkv->ranks);
    HAVE(v->x);
    TRY(norm(s, x, added, l->norm1, added ? v->x : NULL, v->h1, v->r1, q1));
    mark(s, "q, k, v");
    v->qkv = matrix(s, room, qkv->n);
    if (room > s->rows)
        TRY(th_fill_(rows_of(v->qkv, s->rows, room - s->rows), 0));
    th_tensor *own = rows_of(v->qkv, 0, s->rows);
    TRY(project(s, qkv, v->h1, q1, own));
    mark(s, "rope");
    HAVE(own);
    TRY(done(s, rc < 0 ? 0 : s->k->rope(&s->tk, s->rows, c->n_heads + c->n_kv_heads, c->head_dim, th_data(own), qkv->n, th_data(s->pos),
                                        th_data(s->t->cos), th_data(s->t->sin))));
    if (s->keys)
        TRY(s->keys(s->keys_ctx, i, own));
    mark(s, "attention");
    if (rc == ERR_OK)
        v->o = th_attention_packed(heads(s, v->qkv, 0, c->n_heads), heads(s, v->qkv, q_size, c->n_kv_heads),
                                   heads(s, v->qkv, q_size + kv_size, c->n_kv_heads), &s->pack,
                                   s->grad && level >= KEEP_ATTENTION ? &v->attention : NULL);
    v->o = th_keep(v->o ? th_flatten(v->o, 1) : NULL);
    v->h1 = level >= KEEP_NORMS ? th_keep(v->h1) : NULL;
    v->qkv = level >= KEEP_ATTENTION ? th_keep(v->qkv) : NULL;
    th_scope_end(scope);
    th_adopt(v->h1);
    th_adopt(v->qkv);

    mark(s, "o");
    v->x2 = matrix(s, s->rows, c->d_model);
    v->h2 = matrix(s, s->rows, c->d_model + gu->e);
    v->r2 = floats(s, s->rows);
    v->u_o = o->e ? matrix(s, s->rows, o->e) : NULL;
    *q2 = q8_new(s, s->rows, c->d_model, gu->ranks);
    scope = th_scope_begin();
    th_adopt(v->o);
    th_tensor *y = matrix(s, s->rows, c->d_model);
    HAVE(v->o && v->x2);
    TRY(project_dense(s, o, v->o, v->u_o, y));
    mark(s, "norms");
    TRY(norm(s, v->x, y, l->norm2, v->x2, v->h2, v->r2, *q2));
    v->o = level >= KEEP_ATTENTION ? th_keep(v->o) : NULL;
    th_scope_end(scope);
    th_adopt(v->o);
    return rc;
}

/* y [n, d] of rows h [n, d + e]; v->gu, v->act if not NULL get what their names say. */
static int ffn(struct pass *s, int64_t i, th_tensor *h, struct q8 q, th_tensor *y, th_tensor **gu_out, th_tensor **act_out)
{
    const struct group *gu = &s->t->group[i][G_GU], *down = &s->t->group[i][G_DOWN];
    int64_t n = h ? th_size(h, 0) : 0;
    int rc = ERR_OK;
    mark(s, "gate, up");
    th_tensor *a = matrix(s, n, gu->n), *act = matrix(s, n, down->k + down->e);
    struct q8 q_act = q8_new(s, n, down->k, down->ranks);
    HAVE(a && act && h);
    TRY(project(s, gu, h, q, a));
    mark(s, "swiglu");
    TRY(done(s, rc < 0 ? 0 : s->k->swiglu(&s->tk, n, down->k, th_data(a), th_data(act), down->k + down->e, th_data(q_act.v), q8_stride(q_act),
                                          th_data(q_act.s))));
    mark(s, "down");
    TRY(project(s, down, act, q_act, y));
    *gu_out = a;
    *act_out = act;
    return rc;
}

/* Keeps of v, whose handles are of the scope, what `level` says. */
static int keep(struct pass *s, int64_t i, struct saved *v, enum level level, struct saved *out)
{
    const struct group *down = &s->t->group[i][G_DOWN];
    *out = (struct saved){0};
    if (level == KEEP_ASIDE)
        return (out->aside = th_aside_new(v->x)) ? ERR_OK : err_code();
    out->x = th_keep(v->x);
    if (level >= KEEP_ATTENTION) {
        out->r1 = th_keep(v->r1);
        out->qkv = th_keep(v->qkv);
        out->o = th_keep(v->o);
        out->u_o = th_keep(v->u_o);
        out->x2 = th_keep(v->x2);
        out->r2 = th_keep(v->r2);
        out->attention = v->attention;
        v->attention = (struct th_attention_saved){0};
    }
    if (level >= KEEP_FFN) {
        out->gu = th_keep(v->gu);
        if (down->e && level < KEEP_ALL)
            out->u_down = th_keep(th_clone(cols(v->act, down->k, down->e)));
    }
    if (level >= KEEP_NORMS) {
        out->h1 = th_keep(v->h1);
        out->h2 = th_keep(v->h2);
    }
    if (level >= KEEP_ALL)
        out->act = th_keep(v->act);
    return ERR_OK;
}

/* A layer, whose input is *x + *added (added NULL: *x) and so is its output: kept handles, the old ones freed. */
static int layer_forward(struct pass *s, int64_t i, enum level level, th_tensor **x, th_tensor **added, struct saved *out)
{
    size_t scope = th_scope_begin();
    struct saved v = {0};
    struct q8 q2;
    bool whole = s->chunk >= s->rows;
    s->fp8 = in_8_bits(s->m, i);
    int rc = attention_part(s, i, *x, *added, s->grad ? level : KEEP_INPUT, &v, &q2);
    th_tensor *y = matrix(s, s->rows, s->m->cfg.d_model);
    HAVE(y);
    for (int64_t at = 0; at < s->rows && rc == ERR_OK; at += s->chunk) {
        int64_t n = s->rows - at < s->chunk ? s->rows - at : s->chunk;
        size_t inner = th_scope_begin();
        rc = ffn(s, i, rows_of(v.h2, at, n), q8_rows(q2, at, n), rows_of(y, at, n), &v.gu, &v.act);
        if (!whole)
            th_scope_end(inner);
    }
    th_free(*x);
    th_free(*added);
    *x = th_keep(v.x2);
    *added = th_keep(y);
    if (rc == ERR_OK && s->grad) {
        th_tensor *x2 = v.x2;
        rc = keep(s, i, &v, level, out);
        if (rc == ERR_OK && i > 1 && out[-2].aside) /* not too far ahead of the device: see th_aside_take() */
            rc = th_aside_wait(out[-2].aside);
        if (out->x2)
            *x = th_keep(th_alias(x2));
    }
    th_attention_saved_free(&v.attention);
    th_scope_end(scope);
    return rc == ERR_OK && (!*x || !*added) ? err_code() : rc;
}

/* dx also into q, unless that is empty. */
static int norm_backward(struct pass *s, th_tensor *dh, th_tensor *x, struct param *w, th_tensor *r, bool accumulate, th_tensor *dx, struct q8 q)
{
    int64_t d = s->m->cfg.d_model, shape[2] = {TK_PARTIALS, d};
    size_t scope = th_scope_begin();
    th_tensor *partial = w->trained ? th_empty(2, shape, TH_F32, s->m->device) : NULL;
    int rc = ERR_OK;
    HAVE(dh && x && r && dx);
    HAVE(partial || !w->trained);
    TRY(done(s, s->k->rms_norm_backward(&s->tk, th_size(x, 0), d, th_data(dh), th_stride(dh, 0), th_data(x), th_data(w->w), th_data(r),
                                        accumulate, th_data(dx), th_stride(dx, 0), th_data(q.v), q8_stride(q), th_data(q.s), th_data(partial))));
    if (partial)
        TRY(done(s, s->k->column_sums(&s->tk, TK_PARTIALS, d, th_data(partial), th_data(w->grad))));
    th_scope_end(scope);
    return rc;
}

/* The feed-forward part's rows from `at` on; dy [rows, d + extra] becomes the gradient of x2, and so does q2. */
static int ffn_backward(struct pass *s, int64_t i, const struct saved *v, th_tensor *dy, struct q8 q2, int64_t at, int64_t n)
{
    struct layer *l = &s->m->layers[i];
    const struct group *g = &s->t->group[i][G_GU], *down = &s->t->group[i][G_DOWN];
    int64_t f = down->k, d = s->m->cfg.d_model;
    th_tensor *x2 = rows_of(v->x2, at, n), *mine = rows_of(dy, at, n), *h, *gu, *act, *d_act, *dh;
    th_tensor *r2 = floats(s, n);
    struct q8 q = {0}, q_gu = q8_new(s, n, g->n, g->ranks);
    int rc = ERR_OK;
    if (v->h2) {
        h = rows_of(v->h2, at, n);
        r2 = th_narrow(v->r2, 0, at, n);
    } else {
        mark(s, "norms, again");
        h = matrix(s, n, d + g->e);
        q = v->gu ? q : q8_new(s, n, d, g->ranks);
        TRY(norm(s, x2, NULL, l->norm2, NULL, h, r2, q));
    }
    if (v->gu) { /* becomes its own gradient */
        mark(s, "gate, up: adapters again");
        gu = rows_of(v->gu, at, n);
        if (!v->h2 && g->e)
            TRY(th_addmm_(cols(h, d, g->e), cols(h, 0, d), g->a_t, 0, 1));
    } else {
        mark(s, "gate, up, again");
        gu = matrix(s, n, g->n);
        if (v->h2)
            TRY(quantized(s, cols(h, 0, d), g->ranks, &q));
        TRY(project(s, g, h, q, gu));
    }
    act = v->act ? rows_of(v->act, at, n) : matrix(s, n, f + down->e);
    HAVE(gu && act);
    mark(s, "down, backward");
    th_tensor *du;
    TRY(input_gradient_inner(s, down, mine, q8_rows(s->dy, at, n), &d_act, &du)); /* the products with act itself wait until it is there */
    mark(s, "swiglu, backward");
    TRY(done(s, rc < 0 ? 0 : s->k->swiglu_backward(&s->tk, n, f, th_data(gu), th_data(d_act), v->act ? NULL : th_data(act), f + down->e,
                                                   th_data(q_gu.v), q8_stride(q_gu), th_data(q_gu.s))));
    mark(s, "weight gradients");
    th_tensor *u_down = v->u_down ? rows_of(v->u_down, at, n) : down->e ? cols(act, f, down->e) : NULL;
    if (down->e && !v->u_down && !v->act)
        TRY(th_addmm_(u_down, cols(act, 0, f), down->a_t, 0, 1));
    TRY(weight_gradients(s, down, &l->proj[LORA_DOWN], 1, cols(act, 0, f), u_down, cols(mine, 0, down->n), du));
    mark(s, "gate, up, backward");
    TRY(input_gradient(s, g, gu, q_gu, &dh, &du));
    mark(s, "weight gradients");
    TRY(weight_gradients(s, g, &l->proj[LORA_GATE], 2, cols(h, 0, d), g->e ? cols(h, d, g->e) : NULL, gu, du));
    mark(s, "norms, backward");
    TRY(norm_backward(s, dh, x2, l->norm2, r2, true, mine, q8_rows(q2, at, n)));
    return rc;
}

/* v: the layer's, in an array of all layers'.  dy [rows, d + extra]: the gradient of the layer's output becomes that of its input. */
static int layer_backward(struct pass *s, int64_t i, struct saved *v, th_tensor *dy)
{
    const struct model_config *c = &s->m->cfg;
    struct layer *l = &s->m->layers[i];
    const struct group *g = &s->t->group[i][G_QKV], *o = &s->t->group[i][G_O];
    int64_t q_size = c->n_heads * c->head_dim, kv_size = c->n_kv_heads * c->head_dim, d = c->d_model;
    int rc = ERR_OK;

    s->fp8 = in_8_bits(s->m, i);
    struct q8 q_o = q8_new(s, s->rows, d, o->ranks);
    if (v->aside) {
        v->x = th_keep(th_aside_take(v->aside));
        th_aside_free(v->aside);
        v->aside = NULL;
        HAVE(v->x);
    }
    if (i > 0 && v[-1].aside)
        TRY(th_aside_fetch(v[-1].aside)); /* the next to be wanted */
    if (rc == ERR_OK && !v->qkv) { /* only the input was kept */
        struct saved again = {0};
        th_tensor *x = v->x;
        struct q8 q2;
        rc = attention_part(s, i, x, NULL, KEEP_ATTENTION, &again, &q2);
        v->x = NULL;
        if (rc == ERR_OK && (rc = keep(s, i, &again, KEEP_ATTENTION, v)) == ERR_OK)
            v->h2 = th_keep(again.h2);
        th_free(x);
        th_attention_saved_free(&again.attention);
    }
    for (int64_t at = 0; at < s->rows && rc == ERR_OK; at += s->chunk) {
        size_t inner = th_scope_begin();
        rc = ffn_backward(s, i, v, dy, q_o, at, s->rows - at < s->chunk ? s->rows - at : s->chunk);
        th_scope_end(inner);
    }
    if (rc < 0)
        return rc;
    th_free(v->gu);
    th_free(v->act);
    th_free(v->h2);
    th_free(v->x2);
    v->gu = v->act = v->h2 = v->x2 = NULL;

    mark(s, "o, backward");
    th_tensor *d_o = NULL, *dq, *dk, *dv, *dh, *du, *dqkv = matrix(s, s->rows, g->n), *h = v->h1, *r1 = v->r1;
    struct q8 q = q8_new(s, s->rows, g->n, g->ranks);
    size_t inner = th_scope_begin();
    HAVE(dqkv);
    TRY(input_gradient_inner(s, o, dy, q_o, &d_o, &du));
    TRY(weight_gradients(s, o, &l->proj[LORA_O], 1, v->o, v->u_o, cols(dy, 0, d), du));
    mark(s, "attention, backward");
    if (rc == ERR_OK)
        rc = th_attention_packed_backward(th_unflatten(d_o, 1, c->n_heads), heads(s, v->qkv, 0, c->n_heads),
                                          heads(s, v->qkv, q_size, c->n_kv_heads), heads(s, v->qkv, q_size + kv_size, c->n_kv_heads),
                                          th_unflatten(v->o, 1, c->n_heads), &s->pack, &v->attention, &dq, &dk, &dv);
    mark(s, "rope, backward");
    TRY(done(s, rc < 0 ? 0 : s->k->rope_backward(&s->tk, s->rows, c->n_heads, c->n_kv_heads, c->head_dim, th_data(dq), th_data(dk),
                                                 th_data(dv), th_data(dqkv), th_data(s->pos), th_data(s->t->cos), th_data(s->t->sin), th_data(q.v), q8_stride(q), th_data(q.s))));
    th_scope_end(inner);
    if (!h) {
        mark(s, "norms, again");
        h = matrix(s, s->rows, d + g->e);
        TRY(norm(s, v->x, NULL, l->norm1, NULL, h, r1, (struct q8){0}));
        if (g->e)
            TRY(th_addmm_(cols(h, d, g->e), cols(h, 0, d), g->a_t, 0, 1));
    }
    mark(s, "q, k, v, backward");
    TRY(input_gradient(s, g, dqkv, q, &dh, &du));
    TRY(weight_gradients(s, g, &l->proj[LORA_Q], 3, cols(h, 0, d), g->e ? cols(h, d, g->e) : NULL, dqkv, du));
    mark(s, "norms, backward");
    drop_q8(&s->dy);
    if (i > 0 && (s->fp8 = in_8_bits(s->m, i - 1))) {
        struct q8 next = q8_new(s, s->rows, d, s->t->group[i - 1][G_DOWN].ranks);
        s->dy = (struct q8){th_keep(next.v), th_keep(next.s)};
        HAVE(s->dy.v && s->dy.s);
    }
    TRY(norm_backward(s, dh, v->x, l->norm1, r1, true, dy, s->dy));
    return rc;
}

/* ---- the head and the embedding ---- */

/* Loss over rows of h [n, d] (final, normalised) with their targets, some rows at a time so that the logits of all never exist
 * at once; with backward, the gradient of h into dh.  loss [n]: each row's. */
static int head_loss(struct pass *s, th_tensor *h, th_tensor *target, bool backward, double scale, th_tensor *loss, th_tensor *dh)
{
    struct model *m = s->m;
    int64_t n = th_size(h, 0), vocab = m->cfg.vocab, chunk = (1 << 28) / vocab; /* 512 MB of logits in bfloat16 */
    int rc = ERR_OK;
    chunk = m->memory == MEMORY_LOW ? (1 << 27) / vocab : chunk;
    chunk = chunk < 256 ? 256 : chunk / 128 * 128;
    for (int64_t at = 0; at < n && rc == ERR_OK; at += chunk) {
        int64_t k = n - at < chunk ? n - at : chunk;
        size_t scope = th_scope_begin();
        th_tensor *rows = rows_of(h, at, k), *logits = matrix(s, k, vocab), *want = th_narrow(target, 0, at, k),
                  *out = th_narrow(loss, 0, at, k);
        mark(s, "head");
        TRY(th_addmm_(logits, rows, transposed(m->head->w), 0, 1));
        mark(s, "cross-entropy");
        TRY(done(s, rc < 0 ? 0 : s->k->cross_entropy(&s->tk, k, vocab, th_data(logits), th_data(want), backward, (float)scale, th_data(out))));
        if (backward) {
            mark(s, "head, backward");
            TRY(th_addmm_(rows_of(dh, at, k), logits, m->head->w, 0, 1));
            if (m->head->trained)
                TRY(th_addmm_(m->head->grad, transposed(logits), rows, 1, 1));
        }
        th_scope_end(scope);
    }
    return rc;
}

/* Adds dy [rows, d ..] to the embedding's gradient: the rows of each token, sorted on the host, in parts of up to SEGMENT. */
static int embed_backward(struct pass *s, const struct sequence *v, size_t n, th_tensor *dy)
{
    enum { SEGMENT = 64 };
    int64_t vocab = s->m->cfg.vocab, rows = s->rows, row = 0, n_ids = 0, n_segs = 0;
    int32_t *first = xcalloc((size_t)vocab + 1, sizeof *first), *order = xmalloc((size_t)rows * sizeof *order);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < v[i].n; k++)
            first[v[i].ids[k] + 1]++;
    for (int64_t i = 0; i < vocab; i++) {
        n_ids += first[i + 1] > 0;
        n_segs += (first[i + 1] + SEGMENT - 1) / SEGMENT;
        first[i + 1] += first[i];
    }
    int32_t *at = xmalloc((size_t)vocab * sizeof *at), *seg = xmalloc((size_t)(n_segs + 1) * sizeof *seg),
            *id = xmalloc((size_t)n_ids * sizeof *id), *of = xmalloc((size_t)(n_ids + 1) * sizeof *of);
    memcpy(at, first, (size_t)vocab * sizeof *at);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < v[i].n; k++)
            order[at[v[i].ids[k]]++] = (int32_t)row++;
    n_ids = n_segs = 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (first[i + 1] == first[i])
            continue;
        id[n_ids] = (int32_t)i;
        of[n_ids++] = (int32_t)n_segs;
        for (int32_t r = first[i]; r < first[i + 1]; r += SEGMENT)
            seg[n_segs++] = r;
    }
    seg[n_segs] = (int32_t)rows;
    of[n_ids] = (int32_t)n_segs;
    int64_t segs1 = n_segs + 1, ids1 = n_ids + 1;
    th_tensor *t[4] = {th_from(order, 1, &rows, TH_I32, s->m->device), th_from(seg, 1, &segs1, TH_I32, s->m->device),
                       th_from(id, 1, &n_ids, TH_I32, s->m->device), th_from(of, 1, &ids1, TH_I32, s->m->device)};
    th_tensor *partial = floats(s, n_segs * s->m->cfg.d_model);
    int rc = ERR_OK;
    HAVE(t[0] && t[1] && t[2] && t[3] && partial);
    if (rc == ERR_OK)
        rc = done(s, s->k->embed_backward(&s->tk, s->m->cfg.d_model, th_data(dy), th_stride(dy, 0), th_data(t[0]), n_segs, th_data(t[1]), n_ids,
                                          th_data(t[2]), th_data(t[3]), th_data(partial), th_data(s->m->embed->grad)));
    free(first);
    free(order);
    free(at);
    free(seg);
    free(id);
    free(of);
    return rc;
}

/* ---- what is kept for the backward pass ---- */

static int64_t level_bytes(const struct pass *s, enum level level)
{
    const struct group *g = s->t->group[0];
    const struct model_config *c = &s->m->cfg;
    int64_t size = (int64_t)th_dtype_size(s->m->dtype), d = c->d_model, n = d * size;
    if (level >= KEEP_ATTENTION)
        n += (g[G_QKV].n + c->n_heads * c->head_dim + g[G_O].e + d) * size + c->n_heads * 4 + 8;
    if (level >= KEEP_FFN)
        n += (g[G_GU].n + g[G_DOWN].e) * size;
    if (level >= KEEP_NORMS)
        n += (2 * d + g[G_QKV].e + g[G_GU].e) * size;
    if (level >= KEEP_ALL)
        n += g[G_DOWN].k * size;
    return n * s->rows;
}

/* A level for each layer: the highest that fits for all, and the next for as many as fit. */
static void choose_levels(const struct pass *s, enum level *level)
{
    const struct model_config *c = &s->m->cfg;
    int64_t n = c->n_layers, size = (int64_t)th_dtype_size(s->m->dtype), higher = 0;
    enum level base = s->m->memory == MEMORY_LOW ? s->m->device == TH_CUDA ? KEEP_ASIDE : KEEP_INPUT : s->m->device == TH_CPU ? KEEP_NORMS : KEEP_ALL;
    if (s->m->memory == MEMORY_AUTO && s->m->device == TH_CUDA) {
        /* what a layer's backward pass, or the head's, takes beside; a tenth for fragments and cuDNN's own */
        int64_t work = s->rows * size * (4 * c->d_ff + 8 * c->d_model) + s->rows * c->n_heads * c->head_dim * 8 + ((int64_t)2 << 30);
        int64_t room = (int64_t)(0.9 * (double)th_memory_available(TH_CUDA)) - work;
        base = KEEP_ALL;
        while (base > KEEP_INPUT && n * level_bytes(s, base) > room)
            base--;
        if (base < KEEP_ALL && room > n * level_bytes(s, base))
            higher = (room - n * level_bytes(s, base)) / (level_bytes(s, base + 1) - level_bytes(s, base));
    }
    for (int64_t i = 0; i < n; i++) /* the last layers are the first to be freed again */
        level[i] = i >= n - higher ? base + 1 : base;
}

/* ---- the whole ---- */

static int begin(struct model *m, const struct sequence *v, size_t n, struct pass *s, int64_t **start_out)
{
    int64_t rows = 0, longest = 0, n_start = (int64_t)n + 1;
    int rc = prepare(m);
    *start_out = NULL;
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        if ((rc = model_check_ids(m, v[i].ids, v[i].n)) < 0)
            return rc;
        rows += (int64_t)v[i].n;
        longest = (int64_t)v[i].n > longest ? (int64_t)v[i].n : longest;
    }
    if ((rc = rope_table(m, longest)) < 0)
        return rc;
    *s = (struct pass){.m = m, .t = m->train, .k = m->train->kernels, .rows = rows, .chunk = rows,
                       .tk = tk_of(m)};
    if (m->memory == MEMORY_LOW && rows > 4096)
        s->chunk = 4096;
    int64_t *start = *start_out = xmalloc((n + 1) * sizeof *start), *ids = xmalloc((size_t)rows * sizeof *ids), at = 0;
    int32_t *pos = xmalloc((size_t)rows * sizeof *pos), *cum = xmalloc((n + 1) * sizeof *cum);
    for (size_t i = 0; i < n; i++) {
        start[i] = cum[i] = (int32_t)at;
        for (size_t k = 0; k < v[i].n; k++, at++) {
            ids[at] = v[i].ids[k];
            pos[at] = (int32_t)k;
        }
    }
    start[n] = cum[n] = (int32_t)rows;
    s->ids = th_from(ids, 1, &rows, TH_I64, m->device);
    s->pos = th_from(pos, 1, &rows, TH_I32, m->device);
    s->pack = (struct th_packing){.n = (int64_t)n, .start = start, .longest = longest};
    s->pack.cum = m->device == TH_CUDA ? th_from(cum, 1, &n_start, TH_I32, m->device) : NULL;
    free(ids);
    free(pos);
    free(cum);
    if (!s->ids || !s->pos)
        return err_code();
    if (m->train->n_copies && (rc = done(s, s->k->copy(&s->tk, m->train->n_copies, th_data(m->train->copies)))) < 0)
        return rc;
    return m->fp8 ? quantize_adapters(s) : ERR_OK;
}

/* The layers' output, [rows, d], a handle of the scope. */
static th_tensor *run_layers(struct pass *s, const enum level *level, struct saved *saved)
{
    th_tensor *x, *added = NULL;
    int rc = ERR_OK;
    mark(s, "embedding");
    x = th_keep(th_embedding(s->m->embed->w, s->ids));
    HAVE(x);
    for (int64_t i = 0; i < s->m->cfg.n_layers && rc == ERR_OK; i++)
        rc = layer_forward(s, i, level ? level[i] : KEEP_INPUT, &x, &added, saved ? &saved[i] : NULL);
    th_tensor *sum = rc == ERR_OK ? added ? th_add(x, added, 1) : th_alias(x) : NULL;
    th_free(x);
    th_free(added);
    return sum;
}

/* The covered tokens of the sequences: the rows that predict them (int64), and what they are (int32). */
static int targets(const struct pass *s, const struct sequence *v, size_t n, int64_t count, th_tensor **row_out, th_tensor **target_out)
{
    int64_t *row = xmalloc((size_t)count * sizeof *row), at = 0;
    int32_t *target = xmalloc((size_t)count * sizeof *target);
    for (size_t i = 0; i < n; i++)
        for (size_t k = v[i].response; k < v[i].n; k++, at++) {
            row[at] = s->pack.start[i] + (int64_t)k - 1;
            target[at] = v[i].ids[k];
        }
    *row_out = th_from(row, 1, &count, TH_I64, s->m->device);
    *target_out = th_from(target, 1, &count, TH_I32, s->m->device);
    free(row);
    free(target);
    return *row_out && *target_out ? ERR_OK : err_code();
}

/* From the gradient of the final norm's output dh [count, d] back to the embedding. */
static int run_backward(struct pass *s, const struct sequence *v, size_t n, struct saved *saved, th_tensor *row, th_tensor *last,
                        th_tensor *rstd, th_tensor *dh)
{
    struct model *m = s->m;
    int64_t d = m->cfg.d_model;
    int rc = ERR_OK;
    th_tensor *dlast = matrix(s, th_size(dh, 0), d), *dy = matrix(s, s->rows, d + s->t->extra);
    HAVE(dlast && dy);
    mark(s, "norms, backward");
    TRY(norm_backward(s, dh, last, m->norm, rstd, false, dlast, (struct q8){0}));
    TRY(th_fill_(dy, 0));
    TRY(th_index_copy_(cols(dy, 0, d), 0, row, dlast));
    for (int64_t i = m->cfg.n_layers - 1; i >= 0 && rc == ERR_OK; i--) {
        size_t scope = th_scope_begin();
        rc = layer_backward(s, i, &saved[i], dy);
        th_scope_end(scope);
        saved_free(&saved[i]);
        if (rc == ERR_OK && m->layer_done)
            m->layer_done(m->layer_done_ctx, i);
    }
    drop_q8(&s->dy);
    mark(s, "embedding, backward");
    if (m->embed->trained)
        TRY(embed_backward(s, v, n, dy));
    return rc;
}

int model_loss(struct model *m, const struct sequence *v, size_t n, bool backward, double scale, double *loss_sum,
               size_t *n_tokens)
{
    int64_t count = 0, n_layers = m->cfg.n_layers, *start = NULL;
    *n_tokens = 0;
    if (loss_sum)
        *loss_sum = 0;
    for (size_t i = 0; i < n; i++)
        count += v[i].n > v[i].response ? (int64_t)(v[i].n - v[i].response) : 0;
    struct sequence *sorted = xmalloc((n + 1) * sizeof *sorted);
    for (size_t i = 0; i < n; i++) { /* long ones first, as attention wants them; else in their order */
        size_t at = i;
        for (; at > 0 && sorted[at - 1].n < v[i].n; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = v[i];
    }
    size_t scope = th_scope_begin();
    struct saved *saved = xcalloc((size_t)n_layers, sizeof *saved);
    enum level *level = xcalloc((size_t)n_layers, sizeof *level);
    struct pass s;
    int rc = begin(m, sorted, n, &s, &start);
    th_tensor *row = NULL, *target = NULL, *total = NULL;
    if (rc == ERR_OK && count) {
        s.grad = backward;
        if (backward)
            choose_levels(&s, level);
        rc = targets(&s, sorted, n, count, &row, &target);
        size_t inner = th_scope_begin();
        th_tensor *x = rc == ERR_OK ? run_layers(&s, level, backward ? saved : NULL) : NULL;
        mark(&s, "norms");
        th_tensor *last = th_keep(th_index_select(x, 0, row)); /* only where the loss looks */
        th_scope_end(inner);
        th_tensor *h = matrix(&s, count, m->cfg.d_model), *rstd = floats(&s, count), *loss = floats(&s, count),
                  *dh = backward ? matrix(&s, count, m->cfg.d_model) : NULL;
        HAVE(last && h && rstd && loss && (dh || !backward));
        TRY(norm(&s, last, NULL, m->norm, NULL, h, rstd, (struct q8){0}));
        TRY(head_loss(&s, h, target, backward, scale, loss, dh));
        total = th_sum_all(loss);
        HAVE(total);
        if (backward)
            TRY(run_backward(&s, sorted, n, saved, row, last, rstd, dh));
        th_free(last);
        mark(&s, "end");
    }
    if (rc == ERR_OK && loss_sum)
        *loss_sum = total ? th_item(total) : 0;
    else if (rc == ERR_OK && total)
        rc = th_copy_(th_narrow(m->train->losses, 0, (int64_t)(m->train->n_losses++ % MODEL_LOSSES), 1), total);
    else if (rc == ERR_OK)
        rc = th_fill_(th_narrow(m->train->losses, 0, (int64_t)(m->train->n_losses++ % MODEL_LOSSES), 1), 0);
    if (rc == ERR_OK)
        *n_tokens = (size_t)count;
    for (int64_t i = 0; i < n_layers; i++)
        saved_free(&saved[i]);
    free(start);
    free(sorted);
    free(saved);
    free(level);
    th_scope_end(scope);
    return rc;
}

int model_losses(struct model *m, double *sums, size_t n)
{
    struct train *t = m->train;
    if (!t || n > MODEL_LOSSES || n > t->n_losses)
        return err_set(ERR_USAGE, "no %zu losses are there to read", n);
    float *v = xmalloc(MODEL_LOSSES * sizeof *v);
    int rc = th_read(t->losses, v);
    for (size_t i = 0; i < n; i++)
        sums[i] = v[(t->n_losses - n + i) % MODEL_LOSSES];
    free(v);
    return rc;
}

size_t model_profile(struct model *m, struct phase *out, size_t cap)
{
    struct train *t = m->train;
    if (!t)
        return 0;
    t->n_phases = 0;
    for (size_t i = 0; i + 1 < t->n_marks; i++) {
        size_t p = 0;
        if (!strcmp(t->marks[i].name, "end"))
            continue;
        while (p < t->n_phases && strcmp(t->phase[p].name, t->marks[i].name))
            p++;
        if (p == MAX_PHASES)
            continue;
        if (p == t->n_phases)
            t->phase[t->n_phases++] = (struct phase){.name = t->marks[i].name};
        t->phase[p].seconds += th_mark_seconds(t->marks[i].m, t->marks[i + 1].m);
        t->phase[p].calls++;
    }
    drop_marks(t);
    size_t n = t->n_phases < cap ? t->n_phases : cap;
    memcpy(out, t->phase, n * sizeof *out);
    return n;
}

th_tensor *model_logits(struct model *m, const int32_t *ids, size_t n)
{
    struct sequence seq = {.ids = ids, .n = n};
    struct pass s;
    int64_t *start;
    int rc = begin(m, &seq, 1, &s, &start);
    th_tensor *x = rc == ERR_OK ? run_layers(&s, NULL, NULL) : NULL, *y = NULL;
    if (x) {
        th_tensor *h = matrix(&s, s.rows, m->cfg.d_model), *r = floats(&s, s.rows);
        rc = norm(&s, x, NULL, m->norm, NULL, h, r, (struct q8){0});
        y = rc == ERR_OK ? th_to(th_linear(h, m->head->w, NULL), TH_F32, m->device) : NULL;
    }
    free(start);
    return y;
}

int model_gather(struct model *m)
{
    size_t scope = th_scope_begin();
    int rc = prepare(m);
    th_scope_end(scope);
    return rc;
}

int model_read(struct model *m, const int32_t *ids, size_t n, model_keys_fn *keys, void *ctx)
{
    struct sequence seq = {.ids = ids, .n = n};
    struct pass s;
    int64_t *start;
    size_t scope = th_scope_begin();
    int rc = begin(m, &seq, 1, &s, &start);
    if (rc == ERR_OK) {
        s.keys = keys;
        s.keys_ctx = ctx;
        rc = run_layers(&s, NULL, NULL) ? ERR_OK : err_code();
    }
    th_scope_end(scope);
    free(start);
    return rc;
}
