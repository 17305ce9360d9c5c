#include "model/encoder.h"

#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/pool.h"
#include "lib/safetensors.h"
#include "lib/wordpiece.h"
#include "shim/torch.h"

/* Of a batch, so that what passes between the operators stays in a core's cache. */
enum { MAX_TOKENS = 256, BATCH_TOKENS = 512 };

struct dense {
    th_tensor *w, *b;
};

struct encoder {
    int threads;
    int64_t dim, n_layers, n_heads;
    double eps;
    struct wordpiece *words;
    struct st *file;
    th_tensor *word, *position, *type;
    struct dense norm;
    struct bert_layer {
        struct dense qkv, o, norm1, up, down, norm2;
    } *layers;
};

static int weight(struct encoder *e, const char *name, int rank, th_tensor **out)
{
    const struct st_tensor *t;
    int rc = st_get(e->file, name, -1, NULL, &t);
    if (rc < 0)
        return rc;
    if (t->dtype != ST_F32 || t->rank != rank)
        return err_set(ERR_FORMAT, "%s: %s is no float32 tensor of rank %d", st_path(e->file), name, rank);
    *out = th_keep(th_borrow(t->data, rank, t->shape, TH_F32));
    return *out ? ERR_OK : err_code();
}

static int dense(struct encoder *e, const char *prefix, const char *name, int rank, struct dense *d)
{
    char full[160];
    snprintf(full, sizeof full, "%s%s.weight", prefix, name);
    int rc = weight(e, full, rank, &d->w);
    snprintf(full, sizeof full, "%s%s.bias", prefix, name);
    return rc < 0 ? rc : weight(e, full, 1, &d->b);
}

static void dense_free(struct dense *d)
{
    th_free(d->w);
    th_free(d->b);
}

/* Queries, keys and values of one input are one product. */
static int join(const struct dense own[3], struct dense *all)
{
    th_tensor *const w[3] = {own[0].w, own[1].w, own[2].w}, *const b[3] = {own[0].b, own[1].b, own[2].b};
    all->w = th_keep(th_cat(w, 3, 0));
    all->b = th_keep(th_cat(b, 3, 0));
    return all->w && all->b ? ERR_OK : err_code();
}

static int read_layer(struct encoder *e, int64_t i)
{
    struct bert_layer *l = &e->layers[i];
    struct dense own[3] = {{0}};
    const struct {
        const char *name;
        int rank;
        struct dense *d;
    } part[] = {
        {"attention.self.query", 2, &own[0]}, {"attention.self.key", 2, &own[1]},
        {"attention.self.value", 2, &own[2]}, {"attention.output.dense", 2, &l->o},
        {"attention.output.LayerNorm", 1, &l->norm1}, {"intermediate.dense", 2, &l->up},
        {"output.dense", 2, &l->down},       {"output.LayerNorm", 1, &l->norm2},
    };
    char prefix[64];
    int rc = ERR_OK;
    snprintf(prefix, sizeof prefix, "encoder.layer.%lld.", (long long)i);
    for (size_t k = 0; k < ARRAY_LEN(part) && rc == ERR_OK; k++)
        rc = dense(e, prefix, part[k].name, part[k].rank, part[k].d);
    if (rc == ERR_OK)
        rc = join(own, &l->qkv);
    for (int k = 0; k < 3; k++)
        dense_free(&own[k]);
    return rc;
}

static int read_config(struct encoder *e, const char *dir)
{
    char *path = path_join(dir, "config.json");
    json_t *o = NULL;
    int rc = json_read_file(path, 1 << 20, &o);
    const char *arch = rc == ERR_OK ? json_string_value(json_array_get(json_object_get(o, "architectures"), 0)) : NULL;
    if (rc == ERR_OK && (!arch || strcmp(arch, "BertModel")))
        rc = err_set(ERR_FORMAT, "%s: architecture '%s' is not supported (BertModel is, as of all-MiniLM-L6-v2)", path,
                     arch ? arch : "none");
    if (rc == ERR_OK) {
        e->dim = json_integer_value(json_object_get(o, "hidden_size"));
        e->n_layers = json_integer_value(json_object_get(o, "num_hidden_layers"));
        e->n_heads = json_integer_value(json_object_get(o, "num_attention_heads"));
        e->eps = json_number_value(json_object_get(o, "layer_norm_eps"));
        if (e->dim < 1 || e->dim > 65536 || e->n_layers < 1 || e->n_layers > 1000 || e->n_heads < 1 || e->dim % e->n_heads)
            rc = err_set(ERR_FORMAT, "%s: sizes are missing or make no sense", path);
    }
    json_decref(o);
    free(path);
    return rc;
}

int encoder_load(const char *dir, struct encoder **out)
{
    struct encoder *e = xcalloc(1, sizeof *e);
    *out = NULL;
    size_t scope = th_scope_begin();
    int rc = path_is_dir(dir) ? read_config(e, dir)
                              : err_set(ERR_IO, "%s: no such encoder folder ('make deps' gets one, --encoder names another)", dir);
    if (rc == ERR_OK)
        rc = wordpiece_load(dir, &e->words);
    if (rc == ERR_OK)
        rc = st_open(dir, &e->file);
    if (rc == ERR_OK && (rc = weight(e, "embeddings.word_embeddings.weight", 2, &e->word)) == ERR_OK &&
        (rc = weight(e, "embeddings.position_embeddings.weight", 2, &e->position)) == ERR_OK &&
        (rc = weight(e, "embeddings.token_type_embeddings.weight", 2, &e->type)) == ERR_OK)
        rc = dense(e, "embeddings.", "LayerNorm", 1, &e->norm);
    if (rc == ERR_OK)
        e->layers = xcalloc((size_t)e->n_layers, sizeof *e->layers);
    for (int64_t i = 0; i < e->n_layers && rc == ERR_OK; i++)
        rc = read_layer(e, i);
    if (rc == ERR_OK && (th_size(e->word, 1) != e->dim || th_size(e->position, 0) < MAX_TOKENS))
        rc = err_set(ERR_FORMAT, "%s: the embeddings do not have the configured sizes", dir);
    th_scope_end(scope);
    if (rc < 0)
        encoder_free(e);
    else
        *out = e;
    return rc;
}

void encoder_free(struct encoder *e)
{
    if (!e)
        return;
    for (int64_t i = 0; e->layers && i < e->n_layers; i++) {
        struct bert_layer *l = &e->layers[i];
        struct dense *const all[] = {&l->qkv, &l->o, &l->norm1, &l->up, &l->down, &l->norm2};
        for (size_t k = 0; k < ARRAY_LEN(all); k++)
            dense_free(all[k]);
    }
    dense_free(&e->norm);
    th_free(e->word);
    th_free(e->position);
    th_free(e->type);
    free(e->layers);
    wordpiece_free(e->words);
    st_close(e->file);
    free(e);
}

int encoder_dim(const struct encoder *e)
{
    return (int)e->dim;
}

static th_tensor *apply(const struct dense *d, th_tensor *x)
{
    return th_linear(x, d->w, d->b);
}

/* ids [b, s], all of the same length: no padding, no mask. */
static th_tensor *forward(const struct encoder *e, th_tensor *ids)
{
    int64_t b = th_size(ids, 0), s = th_size(ids, 1), split[4] = {b, s, 3 * e->n_heads, e->dim / e->n_heads}, whole[3] = {b, s, e->dim};
    th_tensor *x = th_add(th_embedding(e->word, ids), th_narrow(e->position, 0, 0, s), 1);
    x = th_layer_norm(th_add(x, th_narrow(e->type, 0, 0, 1), 1), e->norm.w, e->norm.b, e->eps);
    for (int64_t i = 0; i < e->n_layers && x; i++) {
        const struct bert_layer *l = &e->layers[i];
        th_tensor *qkv = th_transpose(th_reshape(apply(&l->qkv, x), 4, split), 1, 2); /* [b, 3 heads, s, dim of a head] */
        th_tensor *a = th_attention(th_narrow(qkv, 1, 0, e->n_heads), th_narrow(qkv, 1, e->n_heads, e->n_heads),
                                    th_narrow(qkv, 1, 2 * e->n_heads, e->n_heads), false, NULL);
        a = th_reshape(th_transpose(a, 1, 2), 3, whole);
        x = th_layer_norm(th_add(x, apply(&l->o, a), 1), l->norm1.w, l->norm1.b, e->eps);
        th_tensor *f = apply(&l->down, th_gelu(apply(&l->up, x)));
        x = th_layer_norm(th_add(x, f, 1), l->norm2.w, l->norm2.b, e->eps);
    }
    return th_scale(th_sum(x, 1, false), 1.0 / (double)s);
}

struct text {
    size_t index, from, n; /* ids [from, from + n) */
};

static int by_length(const void *a, const void *b)
{
    const struct text *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n ? -1 : 1) : x->index < y->index ? -1 : 1;
}

static void unit_length(float *v, int64_t dim)
{
    double sum = 0;
    for (int64_t i = 0; i < dim; i++)
        sum += (double)v[i] * v[i];
    float f = sum > 0 ? (float)(1 / __builtin_sqrt(sum)) : 0;
    for (int64_t i = 0; i < dim; i++)
        v[i] *= f;
}

struct embedding {
    struct encoder *e;
    const struct text *t; /* by length */
    const struct tok_ids *ids;
    struct batch {
        size_t at, n; /* texts of one length */
    } *batch;
    float *out;
    int (*progress)(size_t done);
};

static void *embed_batch(void *ctx, size_t index, int worker, int *code)
{
    const struct embedding *m = ctx;
    const struct batch *b = &m->batch[index];
    const struct text *t = m->t + b->at;
    size_t len = t[0].n, dim = (size_t)m->e->dim;
    int64_t *ids = xmalloc(b->n * len * sizeof *ids), shape[2] = {(int64_t)b->n, (int64_t)len};
    float *rows = xmalloc(b->n * dim * sizeof *rows);
    (void)worker;
    for (size_t k = 0; k < b->n; k++)
        for (size_t i = 0; i < len; i++)
            ids[k * len + i] = m->ids->v[t[k].from + i];
    size_t scope = th_scope_begin();
    th_tensor *y = forward(m->e, th_borrow(ids, 2, shape, TH_I64));
    *code = y ? th_read(y, rows) : err_code();
    th_scope_end(scope);
    for (size_t k = 0; k < b->n && *code == ERR_OK; k++) {
        float *to = m->out + t[k].index * dim;
        memcpy(to, rows + k * dim, dim * sizeof *to);
        unit_length(to, m->e->dim);
    }
    free(rows);
    free(ids);
    return NULL;
}

static int batch_done(void *ctx, const struct pool_item *item)
{
    const struct embedding *m = ctx;
    const struct batch *b = &m->batch[item->index];
    if (item->code < 0)
        return err_set(item->code, "%s", item->error);
    return m->progress ? m->progress(b->at + b->n) : ERR_OK;
}

void encoder_set_threads(struct encoder *e, int n)
{
    e->threads = n;
}

int encoder_embed(struct encoder *e, const char *const *texts, size_t n, float *out, int (*progress)(size_t done))
{
    struct tok_ids ids = {0};
    struct text *t = xmalloc((n + 1) * sizeof *t);
    struct batch *batch = xmalloc((n + 1) * sizeof *batch);
    size_t n_batches = 0;
    for (size_t i = 0; i < n; i++) {
        t[i] = (struct text){.index = i, .from = ids.n};
        wordpiece_encode(e->words, texts[i], strlen(texts[i]), MAX_TOKENS, &ids);
        t[i].n = ids.n - t[i].from;
    }
    qsort(t, n, sizeof *t, by_length);
    for (size_t at = 0; at < n; at += batch[n_batches++].n) {
        size_t k = 1, max = BATCH_TOKENS / t[at].n;
        while (at + k < n && k < max && t[at + k].n == t[at].n)
            k++;
        batch[n_batches] = (struct batch){at, k};
    }
    struct embedding m = {.e = e, .t = t, .ids = &ids, .batch = batch, .out = out, .progress = progress};
    struct pool_job job = {.n = n_batches, .threads = e->threads, .work = embed_batch, .done = batch_done, .ctx = &m};
    int operator_threads = th_get_threads();
    if (n_batches > 1)
        th_set_threads(1);
    int rc = pool_run(&job);
    th_set_threads(operator_threads);
    free(t);
    free(batch);
    tok_ids_release(&ids);
    return rc;
}
