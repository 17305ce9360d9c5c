#include "model/transformer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/random.h"
#include "lib/safetensors.h"

const char *const lora_target_names[LORA_TARGETS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                     "gate_proj", "up_proj", "down_proj"};
static const char *const block_of[LORA_TARGETS] = {"self_attn", "self_attn", "self_attn", "self_attn", "mlp", "mlp", "mlp"};

/* ---- config.json ---- */

static double number(const json_t *o, const char *key, double otherwise)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : otherwise;
}

static int size_of(const json_t *o, const char *path, const char *key, int64_t otherwise, int64_t *out)
{
    double v = number(o, key, (double)otherwise);
    if (!(v >= 1 && v <= 1e7) || v != floor(v))
        return err_set(ERR_FORMAT, "%s: '%s' is missing or no sensible size", path, key);
    *out = (int64_t)v;
    return ERR_OK;
}

static int read_rope(const json_t *o, const char *path, struct model_config *c)
{
    /* "rope_scaling" up to transformers 4, "rope_parameters" since 5, which then holds rope_theta, too. */
    const json_t *r = json_object_get(o, "rope_parameters");
    if (!json_is_object(r))
        r = json_object_get(o, "rope_scaling");
    c->rope_theta = number(r, "rope_theta", number(o, "rope_theta", 10000));
    const char *type = json_string_value(json_object_get(r, "rope_type"));
    if (!type)
        type = json_string_value(json_object_get(r, "type"));
    if (!json_is_object(r) || !type || !strcmp(type, "default"))
        return ERR_OK;
    if (strcmp(type, "llama3"))
        return err_set(ERR_FORMAT, "%s: rope scaling '%s' is not supported (default or llama3 is)", path, type);
    c->rope.factor = number(r, "factor", 0);
    c->rope.low_freq = number(r, "low_freq_factor", 1);
    c->rope.high_freq = number(r, "high_freq_factor", 4);
    if (!(c->rope.factor >= 1) || !(c->rope.high_freq > c->rope.low_freq) || !(c->rope.low_freq > 0))
        return err_set(ERR_FORMAT, "%s: rope scaling factors make no sense", path);
    return size_of(r, path, "original_max_position_embeddings", 0, &c->rope.original_positions);
}

static int read_config(const json_t *o, const char *path, struct model_config *c)
{
    const char *arch = json_string_value(json_array_get(json_object_get(o, "architectures"), 0));
    if (!arch || (strcmp(arch, "Qwen2ForCausalLM") && strcmp(arch, "LlamaForCausalLM")))
        return err_set(ERR_FORMAT, "%s: architecture '%s' is not supported (Qwen2ForCausalLM and LlamaForCausalLM are)", path,
                       arch ? arch : "none");
    c->qwen2 = *arch == 'Q';
    int rc;
    if ((rc = size_of(o, path, "hidden_size", 0, &c->d_model)) < 0 ||
        (rc = size_of(o, path, "intermediate_size", 0, &c->d_ff)) < 0 ||
        (rc = size_of(o, path, "num_hidden_layers", 0, &c->n_layers)) < 0 ||
        (rc = size_of(o, path, "num_attention_heads", 0, &c->n_heads)) < 0 ||
        (rc = size_of(o, path, "num_key_value_heads", c->n_heads, &c->n_kv_heads)) < 0 ||
        (rc = size_of(o, path, "head_dim", c->d_model / c->n_heads, &c->head_dim)) < 0 ||
        (rc = size_of(o, path, "vocab_size", 0, &c->vocab)) < 0 ||
        (rc = size_of(o, path, "max_position_embeddings", 2048, &c->max_positions)) < 0 || (rc = read_rope(o, path, c)) < 0)
        return rc;
    if (c->n_heads % c->n_kv_heads || c->head_dim % 2)
        return err_set(ERR_FORMAT, "%s: %lld heads over %lld key-value heads of %lld do not fit", path, (long long)c->n_heads,
                       (long long)c->n_kv_heads, (long long)c->head_dim);
    const char *act = json_string_value(json_object_get(o, "hidden_act"));
    if (act && strcmp(act, "silu"))
        return err_set(ERR_FORMAT, "%s: activation '%s' is not supported (silu is)", path, act);
    if (json_is_true(json_object_get(o, "use_sliding_window")))
        return err_set(ERR_FORMAT, "%s: sliding-window attention is not supported", path);
    c->rms_eps = number(o, "rms_norm_eps", 1e-6);
    c->init_std = number(o, "initializer_range", 0.02);
    c->tied = json_is_true(json_object_get(o, "tie_word_embeddings"));
    c->attention_bias = c->qwen2 || json_is_true(json_object_get(o, "attention_bias"));
    return ERR_OK;
}

int model_config_read(const char *dir, struct model_config *out)
{
    char *path = path_join(dir, "config.json");
    json_t *o = NULL;
    *out = (struct model_config){0};
    int rc = json_read_file(path, 16 << 20, &o);
    if (rc == ERR_OK)
        rc = read_config(o, path, out);
    json_decref(o);
    free(path);
    return rc;
}

/* ---- building ---- */

static struct param *new_param(struct model *m, const char *name, bool decay)
{
    struct param *p = xcalloc(1, sizeof *p);
    p->name = xstrdup(name);
    p->decay = decay;
    ARRAY_GROW(m->params, m->cap_params, m->n_params + 1);
    m->params[m->n_params++] = p;
    return p;
}

static int st_to_th(enum st_dtype d, enum th_dtype *out)
{
    switch (d) {
    case ST_F32: *out = TH_F32; return ERR_OK;
    case ST_BF16: *out = TH_BF16; return ERR_OK;
    case ST_F16: *out = TH_F16; return ERR_OK;
    case ST_F64: *out = TH_F64; return ERR_OK;
    default: return err_set(ERR_FORMAT, "weights of type %s are not supported", st_dtype_name(d));
    }
}

/* Reads (file) or draws (no file) one weight. */
static int make_weight(struct model *m, const char *name, int rank, int64_t rows, int64_t cols, double fill, struct param **out)
{
    int64_t shape[2] = {rows, cols};
    struct param *p = new_param(m, name, rank == 2);
    *out = p;
    size_t scope = th_scope_begin();
    int rc = ERR_OK;
    if (m->file) {
        const struct st_tensor *t;
        enum th_dtype from = TH_F32;
        if ((rc = st_get(m->file, name, rank, shape, &t)) == ERR_OK && (rc = st_to_th(t->dtype, &from)) == ERR_OK)
            p->w = th_keep(th_to(th_borrow(t->data, rank, shape, from), m->dtype, m->device));
    } else {
        th_tensor *w = th_empty(rank, shape, TH_F32, m->draw_on_device ? m->device : TH_CPU);
        rc = rank == 2 ? th_normal_(w, 0, m->cfg.init_std) : th_fill_(w, fill);
        p->w = th_keep(th_to(w, m->dtype, m->device));
    }
    th_scope_end(scope);
    return rc < 0 ? rc : p->w ? ERR_OK : err_code();
}

static int make_layer(struct model *m, int64_t i)
{
    const struct model_config *c = &m->cfg;
    struct layer *l = &m->layers[i];
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim, d = c->d_model, f = c->d_ff;
    const int64_t shape[LORA_TARGETS][2] = {{q, d}, {kv, d}, {kv, d}, {d, q}, {f, d}, {f, d}, {d, f}};
    char name[160];
    int rc;
    for (int t = 0; t < LORA_TARGETS; t++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.%s.weight", (long long)i, block_of[t], lora_target_names[t]);
        if ((rc = make_weight(m, name, 2, shape[t][0], shape[t][1], 0, &l->proj[t].w)) < 0)
            return rc;
    }
    for (int t = 0; t <= LORA_V && c->attention_bias; t++) {
        snprintf(name, sizeof name, "model.layers.%lld.self_attn.%s.bias", (long long)i, lora_target_names[t]);
        if ((rc = make_weight(m, name, 1, shape[t][0], 0, 0, &l->proj[t].b)) < 0)
            return rc;
    }
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)i);
    if ((rc = make_weight(m, name, 1, d, 0, 1, &l->norm1)) < 0)
        return rc;
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)i);
    return make_weight(m, name, 1, d, 0, 1, &l->norm2);
}

static int build(struct model *m)
{
    const struct model_config *c = &m->cfg;
    m->layers = xcalloc((size_t)c->n_layers, sizeof *m->layers);
    int rc = make_weight(m, "model.embed_tokens.weight", 2, c->vocab, c->d_model, 0, &m->embed);
    for (int64_t i = 0; rc == ERR_OK && i < c->n_layers; i++)
        rc = make_layer(m, i);
    if (rc == ERR_OK)
        rc = make_weight(m, "model.norm.weight", 1, c->d_model, 0, 1, &m->norm);
    if (rc == ERR_OK && c->tied)
        m->head = m->embed;
    else if (rc == ERR_OK)
        rc = make_weight(m, "lm_head.weight", 2, c->vocab, c->d_model, 0, &m->head);
    return rc;
}

static int make_model(const char *dir, enum th_dtype dtype, enum th_device device, struct st *file, bool draw_on_device,
                      struct model **out)
{
    struct model *m = xcalloc(1, sizeof *m);
    m->dtype = dtype;
    m->device = device;
    m->file = file;
    m->draw_on_device = draw_on_device;
    int rc = model_config_read(dir, &m->cfg);
    if (rc == ERR_OK)
        rc = build(m);
    if (rc < 0) {
        model_free(m);
        return rc;
    }
    *out = m;
    return ERR_OK;
}

int model_load(const char *dir, enum th_dtype dtype, enum th_device device, struct model **out)
{
    struct st *file;
    *out = NULL;
    if (!path_is_dir(dir))
        return err_set(ERR_IO, "%s: no such model folder", dir);
    int rc = st_open(dir, &file);
    return rc < 0 ? rc : make_model(dir, dtype, device, file, false, out);
}

int model_init(const char *dir, enum th_dtype dtype, enum th_device device, uint64_t seed, struct model **out)
{
    *out = NULL;
    th_seed(seed);
    return make_model(dir, dtype, device, NULL, seed == MODEL_DRAW_ON_DEVICE, out);
}

static void param_free(struct param *p)
{
    if (p->master != p->w)
        th_free(p->master);
    th_free(p->w);
    th_free(p->grad);
    free(p->name);
    free(p);
}

void model_free(struct model *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n_params; i++)
        param_free(m->params[i]);
    model_train_reset(m);
    free(m->params);
    free(m->layers);
    th_free(m->cos);
    th_free(m->sin);
    st_close(m->file);
    free(m);
}

/* Gives p what training needs: a float32 original and a gradient. */
int model_train(struct model *m, struct param *p)
{
    if (p->trained)
        return ERR_OK;
    model_train_reset(m);
    int64_t shape[TH_MAX_RANK];
    int rank = th_rank(p->w);
    for (int i = 0; i < rank; i++)
        shape[i] = th_size(p->w, i);
    size_t scope = th_scope_begin();
    if (m->dtype == TH_F32) {
        th_tensor *own = th_keep(th_clone(p->w)); /* not the file's read-only mapping */
        th_free(p->w);
        p->w = p->master = own;
    } else {
        p->master = th_keep(th_to(p->w, TH_F32, m->device));
    }
    p->grad = th_keep(th_zeros(rank, shape, TH_F32, m->device));
    p->trained = true;
    th_scope_end(scope);
    return p->master && p->grad ? ERR_OK : err_code();
}

int model_train_all(struct model *m)
{
    for (size_t i = 0; i < m->n_params; i++) {
        int rc = model_train(m, m->params[i]);
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

uint64_t model_digest(const struct model *m)
{
    return m->file ? st_digest(m->file) : 0;
}

int model_check_finite(const struct model *m)
{
    int64_t n = (int64_t)m->n_params, one = 1;
    float *sum = xmalloc(m->n_params * sizeof *sum);
    size_t scope = th_scope_begin();
    th_tensor *all = th_zeros(1, &n, TH_F32, m->device);
    int rc = all ? ERR_OK : err_code();
    for (int64_t i = 0; i < n && rc == ERR_OK; i++) {
        size_t inner = th_scope_begin(); /* a sum is finite when all of it is: weights are far from float32's end */
        rc = th_copy_(th_narrow(all, 0, i, 1), th_reshape(th_sum_all(m->params[i]->w), 1, &one));
        th_scope_end(inner);
    }
    if (rc == ERR_OK)
        rc = th_read(all, sum);
    th_scope_end(scope);
    for (int64_t i = 0; i < n && rc == ERR_OK; i++)
        if (!isfinite(sum[i]))
            rc = err_set(ERR_FORMAT, "%s: not all numbers of %s are finite: the file is damaged, or its training went astray",
                         m->file ? st_path(m->file) : "the model", m->params[i]->name);
    free(sum);
    return rc;
}

int64_t model_n_trained(const struct model *m)
{
    int64_t n = 0;
    for (size_t i = 0; i < m->n_params; i++)
        n += m->params[i]->trained ? th_numel(m->params[i]->w) : 0;
    return n;
}

int model_zero_grad(struct model *m)
{
    int rc = ERR_OK;
    for (size_t i = 0; i < m->n_params && rc == ERR_OK; i++)
        if (m->params[i]->trained)
            rc = th_fill_(m->params[i]->grad, 0);
    return rc;
}

/* ---- rotary positions ---- */

void model_rope_frequencies(const struct model_config *c, float *out)
{
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
        if (c->rope.factor > 0) { /* Llama 3.1: long waves are stretched, short ones kept, those between blended */
            double wave = 2 * M_PI / f, old = (double)c->rope.original_positions;
            double smooth = (old / wave - c->rope.low_freq) / (c->rope.high_freq - c->rope.low_freq);
            smooth = smooth < 0 ? 0 : smooth > 1 ? 1 : smooth;
            f = (1 - smooth) * f / c->rope.factor + smooth * f;
        }
        out[i] = (float)f; /* angles in float32, as Hugging Face has them */
    }
}

int model_rope_table(struct model *m, int64_t positions, float **cos, float **sin, int64_t *n_out)
{
    const struct model_config *c = &m->cfg;
    int64_t n = 256, half = c->head_dim / 2;
    while (n < positions)
        n *= 2;
    float *cs = xmalloc((size_t)(n * half) * sizeof *cs), *sn = xmalloc((size_t)(n * half) * sizeof *sn);
    float *freq = xmalloc((size_t)half * sizeof *freq);
    model_rope_frequencies(c, freq);
    for (int64_t i = 0; i < half; i++) {
        for (int64_t p = 0; p < n; p++) {
            float a = (float)p * freq[i];
            cs[p * half + i] = cosf(a);
            sn[p * half + i] = sinf(a);
        }
    }
    free(freq);
    *cos = cs;
    *sin = sn;
    *n_out = n;
    return ERR_OK;
}

static int rope_table(struct model *m, int64_t positions)
{
    if (m->cos && th_size(m->cos, 0) >= positions)
        return ERR_OK;
    float *table[2];
    th_tensor **const to[2] = {&m->cos, &m->sin};
    int64_t n, shape[2] = {0, m->cfg.head_dim / 2};
    model_rope_table(m, positions, &table[0], &table[1], &n);
    shape[0] = n;
    size_t scope = th_scope_begin();
    for (int i = 0; i < 2; i++) { /* both halves of a head turn by the same angles */
        th_tensor *half = th_from(table[i], 2, shape, TH_F32, TH_CPU);
        th_free(*to[i]);
        *to[i] = th_keep(th_to(th_cat((th_tensor *[]){half, half}, 2, 1), m->dtype, m->device));
        free(table[i]);
    }
    th_scope_end(scope);
    return m->cos && m->sin ? ERR_OK : err_code();
}

/* ---- linear maps with adapters ---- */

/* y = x W^T + b + s (x A^T) B^T */
static th_tensor *linear(const struct model *m, const struct linear *l, th_tensor *x)
{
    th_tensor *y = th_linear(x, l->w->w, l->b ? l->b->w : NULL);
    if (!l->lora_a)
        return y;
    th_tensor *u = th_linear(x, l->lora_a->w, NULL);
    return th_add(y, th_linear(u, l->lora_b->w, NULL), m->lora_scale);
}

static th_tensor *flat(th_tensor *x)
{
    int64_t shape[2] = {-1, x ? th_size(x, -1) : 0};
    return th_reshape(x, 2, shape);
}

/* ---- one layer ---- */

/* Where the rows of x go in the cache. */
struct rows {
    th_tensor *cos, *sin;          /* [rows, 1, head_dim] */
    struct kv_cache *cache;
    int64_t row, start;            /* all to this row of the cache, from this position on ... */
    int64_t n;                     /* ... or, if n > 0, one to each of the first n rows, */
    th_tensor *index, *mask;       /* at index of [batch * kv heads * capacity]; mask [n, 1, 1, longest] */
    int64_t longest;
};

/* [rows, heads * d] -> [rows, heads, d] */
static th_tensor *split_heads(th_tensor *x, int64_t heads, int64_t d)
{
    int64_t shape[3] = {-1, heads, d};
    return th_reshape(x, 3, shape);
}

/* Appends k [rows, kv heads, d] to the cache tensor and returns what attention should see of it, [b, kv heads, t, d]. */
static th_tensor *cache_append(const struct rows *at, th_tensor *cache, th_tensor *k)
{
    if (!k)
        return NULL;
    if (!at->n) {
        th_tensor *row = th_narrow(cache, 0, at->row, 1);
        if (th_copy_(th_narrow(row, 2, at->start, th_size(k, 0)), th_transpose(k, 0, 1)) < 0)
            return NULL;
        return th_narrow(row, 2, 0, at->start + th_size(k, 0));
    }
    int64_t whole[2] = {-1, th_size(cache, 3)};
    if (th_index_copy_(th_reshape(cache, 2, whole), 0, at->index, flat(k)) < 0)
        return NULL;
    return th_narrow(th_narrow(cache, 0, 0, at->n), 2, 0, at->longest);
}

/* Attention of new tokens, q [rows, h, d], over the cache and themselves. */
static th_tensor *attend_cached(const struct rows *at, int64_t i, th_tensor *q, th_tensor *k, th_tensor *v)
{
    th_tensor *ks = cache_append(at, at->cache->k[i], k), *vs = cache_append(at, at->cache->v[i], v);
    if (at->n) { /* a token each: [n, h, 1, d] */
        int64_t shape[4] = {at->n, th_size(q, 1), 1, th_size(q, 2)};
        return th_attention(th_reshape(q, 4, shape), ks, vs, false, at->mask);
    }
    int64_t shape[4] = {1, th_size(q, 1), th_size(q, 0), th_size(q, 2)};
    th_tensor *o = th_attention(th_reshape(th_transpose(q, 0, 1), 4, shape), ks, vs, th_size(q, 0) > 1, NULL);
    return th_transpose(o, 1, 2);
}

static th_tensor *layer_forward(struct model *m, int64_t i, th_tensor *x, const struct rows *at)
{
    const struct model_config *c = &m->cfg;
    struct layer *l = &m->layers[i];
    th_tensor *h1 = th_rms_norm(x, l->norm1->w, c->rms_eps, NULL);
    th_tensor *q = th_rope(split_heads(linear(m, &l->proj[LORA_Q], h1), c->n_heads, c->head_dim), at->cos, at->sin, false);
    th_tensor *k = th_rope(split_heads(linear(m, &l->proj[LORA_K], h1), c->n_kv_heads, c->head_dim), at->cos, at->sin, false);
    th_tensor *v = split_heads(linear(m, &l->proj[LORA_V], h1), c->n_kv_heads, c->head_dim);
    if (!q || !k || !v)
        return NULL;
    int64_t shape[2] = {th_size(x, 0), -1};
    th_tensor *o = th_reshape(attend_cached(at, i, q, k, v), 2, shape);
    th_tensor *x2 = th_add(x, linear(m, &l->proj[LORA_O], o), 1);
    th_tensor *h2 = th_rms_norm(x2, l->norm2->w, c->rms_eps, NULL);
    th_tensor *gate = linear(m, &l->proj[LORA_GATE], h2), *up = linear(m, &l->proj[LORA_UP], h2);
    return th_add(x2, linear(m, &l->proj[LORA_DOWN], th_mul(th_silu(gate), up)), 1);
}

/* The rotary tables' rows at n positions, to broadcast over heads. */
static th_tensor *at_positions(const struct model *m, th_tensor *table, th_tensor *positions)
{
    int64_t shape[3] = {-1, 1, m->cfg.head_dim};
    return th_reshape(th_index_select(table, 0, positions), 3, shape);
}

int model_check_ids(const struct model *m, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->cfg.vocab)
            return err_set(ERR_FORMAT, "token id %d is outside the model's vocabulary of %lld: tokenizer and model do not fit",
                           ids[i], (long long)m->cfg.vocab);
    return ERR_OK;
}

/* ---- decoding ---- */

int kv_cache_new(const struct model *m, int64_t batch, int64_t capacity, struct kv_cache **out)
{
    const struct model_config *c = &m->cfg;
    struct kv_cache *kv = xcalloc(1, sizeof *kv);
    int64_t shape[4] = {batch, c->n_kv_heads, capacity, c->head_dim}, n = c->n_layers;
    int rc = ERR_OK;
    kv->batch = batch;
    kv->capacity = capacity;
    kv->length = xcalloc((size_t)batch, sizeof *kv->length);
    kv->k = xcalloc((size_t)n + 1, sizeof *kv->k); /* ends in NULL */
    kv->v = xcalloc((size_t)n + 1, sizeof *kv->v);
    size_t scope = th_scope_begin();
    for (int64_t i = 0; i < n && rc == ERR_OK; i++) {
        /* zeros: what lies beyond a row's length is masked, but must be finite */
        kv->k[i] = th_keep(th_zeros(4, shape, m->dtype, m->device));
        kv->v[i] = th_keep(th_zeros(4, shape, m->dtype, m->device));
        if (!kv->k[i] || !kv->v[i])
            rc = err_code();
    }
    th_scope_end(scope);
    if (rc < 0) {
        kv_cache_free(kv);
        kv = NULL;
    }
    *out = kv;
    return rc;
}

void kv_cache_free(struct kv_cache *c)
{
    if (!c)
        return;
    for (int64_t i = 0; c->k[i] || c->v[i]; i++) {
        th_free(c->k[i]);
        th_free(c->v[i]);
    }
    free(c->k);
    free(c->v);
    free(c->length);
    free(c);
}

/* Logits of the last row, or of all when each belongs to another sequence. */
static th_tensor *run_cached(struct model *m, th_tensor *ids, const struct rows *at)
{
    th_tensor *x = th_keep(th_embedding(m->embed->w, ids));
    for (int64_t i = 0; i < m->cfg.n_layers && x; i++) {
        size_t scope = th_scope_begin();
        th_tensor *y = th_keep(layer_forward(m, i, x, at));
        th_scope_end(scope);
        th_free(x);
        x = y;
    }
    if (!x)
        return NULL;
    th_tensor *last = at->n ? x : th_narrow(x, 0, th_size(x, 0) - 1, 1);
    th_tensor *y = th_to(th_linear(th_rms_norm(last, m->norm->w, m->cfg.rms_eps, NULL), m->head->w, NULL), TH_F32, m->device);
    th_free(x);
    return y;
}

th_tensor *model_prefill(struct model *m, struct kv_cache *c, int64_t row, const int32_t *ids, size_t n)
{
    int64_t start = c->length[row], n_ids = (int64_t)n;
    if (!n || model_check_ids(m, ids, n) < 0)
        return n ? NULL : (err_set(ERR_USAGE, "an empty prompt"), NULL);
    if (start + (int64_t)n > c->capacity) {
        err_set(ERR_NOMEM, "%lld tokens are over the cache's %lld", (long long)(start + (int64_t)n), (long long)c->capacity);
        return NULL;
    }
    if (start > 0 && n > 1) { /* causal attention as computed starts at 0: later tokens go one by one */
        th_tensor *y = NULL;
        for (size_t i = 0; i < n; i++)
            y = model_prefill(m, c, row, ids + i, 1);
        return y;
    }
    if (rope_table(m, start + (int64_t)n) < 0)
        return NULL;
    int64_t *wide = xmalloc(n * sizeof *wide), shape[3] = {n_ids, 1, m->cfg.head_dim};
    for (size_t i = 0; i < n; i++)
        wide[i] = ids[i];
    th_tensor *t = th_from(wide, 1, &n_ids, TH_I64, m->device);
    free(wide);
    struct rows at = {.cache = c, .row = row, .start = start,
                      .cos = th_reshape(th_narrow(m->cos, 0, start, n_ids), 3, shape),
                      .sin = th_reshape(th_narrow(m->sin, 0, start, n_ids), 3, shape)};
    th_tensor *y = run_cached(m, t, &at);
    if (y)
        c->length[row] += (int64_t)n;
    return y;
}

th_tensor *model_decode(struct model *m, struct kv_cache *c, int64_t rows, const int32_t *ids)
{
    const struct model_config *f = &m->cfg;
    if (rows == 1)
        return model_prefill(m, c, 0, ids, 1);
    int64_t longest = 0, shape[4] = {rows, 1, 1, 0}, n_index = rows * f->n_kv_heads;
    if (model_check_ids(m, ids, (size_t)rows) < 0)
        return NULL;
    for (int64_t r = 0; r < rows; r++) {
        if (c->length[r] + 1 > c->capacity) {
            err_set(ERR_NOMEM, "the cache of %lld tokens is full", (long long)c->capacity);
            return NULL;
        }
        longest = c->length[r] + 1 > longest ? c->length[r] + 1 : longest;
    }
    if (rope_table(m, longest) < 0)
        return NULL;
    int64_t *index = xmalloc((size_t)n_index * sizeof *index), *where = xmalloc((size_t)rows * sizeof *where),
            *wide = xmalloc((size_t)rows * sizeof *wide);
    uint8_t *look = xcalloc((size_t)(rows * longest), 1);
    for (int64_t r = 0; r < rows; r++) {
        wide[r] = ids[r];
        where[r] = c->length[r];
        memset(look + r * longest, 1, (size_t)c->length[r] + 1);
        for (int64_t h = 0; h < f->n_kv_heads; h++)
            index[r * f->n_kv_heads + h] = (r * f->n_kv_heads + h) * c->capacity + c->length[r];
    }
    shape[3] = longest;
    th_tensor *pos = th_from(where, 1, &rows, TH_I64, m->device);
    struct rows at = {.cache = c, .n = rows, .longest = longest,
                      .cos = at_positions(m, m->cos, pos), .sin = at_positions(m, m->sin, pos),
                      .index = th_from(index, 1, &n_index, TH_I64, m->device),
                      .mask = th_from(look, 4, shape, TH_BOOL, m->device)};
    th_tensor *y = run_cached(m, th_from(wide, 1, &rows, TH_I64, m->device), &at);
    free(index);
    free(where);
    free(wide);
    free(look);
    for (int64_t r = 0; y && r < rows; r++)
        c->length[r]++;
    return y;
}

/* ---- saving ---- */

struct saving {
    struct param **v;
    enum th_dtype dtype;
    void *bytes;
};

static int saved_bytes(void *ctx, size_t i, const void **data)
{
    struct saving *s = ctx;
    th_tensor *w = s->v[i]->master ? s->v[i]->master : s->v[i]->w;
    free(s->bytes);
    s->bytes = xmalloc((size_t)th_numel(w) * th_dtype_size(s->dtype) + 1);
    size_t scope = th_scope_begin();
    int rc = th_read(th_to(w, s->dtype, TH_CPU), s->bytes);
    th_scope_end(scope);
    *data = s->bytes;
    return rc;
}

/* The n params as tensors of a file; the caller frees. */
static struct st_tensor *describe(struct param **v, size_t n, enum th_dtype dtype)
{
    struct st_tensor *t = xcalloc(n, sizeof *t);
    for (size_t i = 0; i < n; i++) {
        t[i].name = v[i]->name;
        t[i].dtype = dtype == TH_BF16 ? ST_BF16 : dtype == TH_F16 ? ST_F16 : ST_F32;
        t[i].rank = th_rank(v[i]->w);
        for (int k = 0; k < t[i].rank; k++)
            t[i].shape[k] = th_size(v[i]->w, k);
    }
    return t;
}

int model_save(struct model *m, const char *dir, enum th_dtype dtype)
{
    struct saving s = {.v = xcalloc(m->n_params, sizeof *s.v), .dtype = dtype};
    size_t n = 0;
    for (size_t i = 0; i < m->n_params; i++)
        if (strncmp(m->params[i]->name, "base_model.", 11))
            s.v[n++] = m->params[i];
    struct st_tensor *t = describe(s.v, n, dtype);
    int rc = st_write_model(dir, t, n, saved_bytes, &s, 0);
    free(t);
    free(s.v);
    free(s.bytes);
    return rc;
}

/* ---- adapters ---- */

static int add_lora(struct model *m, int64_t i, int t, int64_t r, struct linear *l, int ab)
{
    char name[200];
    int64_t shape[2] = {ab ? th_size(l->w->w, 0) : r, ab ? r : th_size(l->w->w, 1)};
    snprintf(name, sizeof name, "base_model.model.model.layers.%lld.%s.%s.lora_%c.weight", (long long)i, block_of[t],
             lora_target_names[t], ab ? 'B' : 'A');
    struct param *p = *(ab ? &l->lora_b : &l->lora_a) = new_param(m, name, true);
    size_t scope = th_scope_begin();
    p->w = th_keep(th_zeros(2, shape, m->dtype, m->device));
    th_scope_end(scope);
    return p->w ? ERR_OK : err_code();
}

static int set_scale(struct model *m, const struct lora_config *c)
{
    if (c->r < 1 || c->r > 4096)
        return err_set(ERR_USAGE, "lora.r = %lld: 1 to 4096 is due", (long long)c->r);
    m->lora_scale = c->alpha / (c->rslora ? sqrt((double)c->r) : (double)c->r);
    return ERR_OK;
}

static int each_adapter(struct model *m, const struct lora_config *c, int (*f)(struct model *, struct linear *, void *), void *ctx)
{
    int rc = set_scale(m, c);
    for (int64_t i = 0; i < m->cfg.n_layers && rc == ERR_OK; i++) {
        struct linear *p = m->layers[i].proj;
        for (int ab = 0; ab < 2; ab++) /* all A, then all B */
            for (int t = 0; t < LORA_TARGETS && rc == ERR_OK; t++)
                if (c->target[t])
                    rc = add_lora(m, i, t, c->r, &p[t], ab);
        for (int t = 0; t < LORA_TARGETS && rc == ERR_OK; t++)
            if (c->target[t])
                rc = f(m, &p[t], ctx);
    }
    return rc;
}

static int fresh_adapter(struct model *m, struct linear *l, void *ctx)
{
    /* A uniform within sqrt(6 / ((1 + 5) in)) = 1 / sqrt(in) (PEFT's kaiming_uniform_(a = sqrt(5))); B zero.
     * From a generator of our own, so that a seed gives the same adapter on every device. */
    int64_t r = th_size(l->lora_a->w, 0), in = th_size(l->lora_a->w, 1), shape[2] = {r, in};
    float *a = xmalloc((size_t)(r * in) * sizeof *a);
    uint64_t *state = ctx;
    for (int64_t i = 0; i < r * in; i++)
        a[i] = (float)((2.0 * random_unit(state) - 1) / sqrt((double)in));
    size_t scope = th_scope_begin();
    int rc = th_copy_(l->lora_a->w, th_borrow(a, 2, shape, TH_F32));
    th_scope_end(scope);
    free(a);
    if (rc == ERR_OK)
        rc = model_train(m, l->lora_a);
    return rc == ERR_OK ? model_train(m, l->lora_b) : rc;
}

int lora_attach(struct model *m, const struct lora_config *c, uint64_t seed)
{
    uint64_t state = seed * 0x2545f4914f6cdd1du + 1;
    model_train_reset(m);
    return each_adapter(m, c, fresh_adapter, &state);
}

struct loading {
    struct st *file;
    bool trained;
};

static int read_adapter(struct model *m, struct linear *l, void *ctx)
{
    struct loading *ld = ctx;
    struct param *const ab[2] = {l->lora_a, l->lora_b};
    int rc = ERR_OK;
    for (int k = 0; k < 2 && rc == ERR_OK; k++) {
        const int64_t shape[2] = {th_size(ab[k]->w, 0), th_size(ab[k]->w, 1)};
        const struct st_tensor *t;
        enum th_dtype from = TH_F32;
        if ((rc = st_get(ld->file, ab[k]->name, 2, shape, &t)) < 0 || (rc = st_to_th(t->dtype, &from)) < 0)
            return err_wrap("the adapter does not fit this model");
        size_t scope = th_scope_begin();
        th_tensor *src = th_borrow(t->data, 2, shape, from);
        rc = th_copy_(ab[k]->w, src);
        if (rc == ERR_OK && ld->trained && (rc = model_train(m, ab[k])) == ERR_OK)
            rc = th_copy_(ab[k]->master, src); /* not by way of bfloat16 */
        th_scope_end(scope);
    }
    return rc;
}

static int read_lora_config(const char *path, struct lora_config *c)
{
    json_t *o;
    int rc = json_read_file(path, 1 << 20, &o);
    if (rc < 0)
        return rc;
    *c = (struct lora_config){.r = (int64_t)number(o, "r", 0), .alpha = number(o, "lora_alpha", 0),
                              .rslora = json_is_true(json_object_get(o, "use_rslora"))};
    const char *type = json_string_value(json_object_get(o, "peft_type"));
    const json_t *list = json_object_get(o, "target_modules"), *v;
    size_t i;
    if (!type || strcmp(type, "LORA"))
        rc = err_set(ERR_FORMAT, "%s: peft_type '%s' is not supported (LORA is)", path, type ? type : "none");
    else if (c->r < 1 || !(c->alpha > 0))
        rc = err_set(ERR_FORMAT, "%s: r or lora_alpha is missing", path);
    else if (!json_is_array(list) || !json_array_size(list))
        rc = err_set(ERR_FORMAT, "%s: target_modules is no list of names", path);
    else if (json_is_true(json_object_get(o, "use_dora")) || json_object_size(json_object_get(o, "rank_pattern")) ||
             json_object_size(json_object_get(o, "alpha_pattern")))
        rc = err_set(ERR_FORMAT, "%s: DoRA, rank_pattern and alpha_pattern are not supported", path);
    json_array_foreach(json_object_get(o, "modules_to_save"), i, v) {
        const char *name = json_string_value(v);
        c->embeddings = true;
        if (rc == ERR_OK && (!name || (strcmp(name, "embed_tokens") && strcmp(name, "lm_head"))))
            rc = err_set(ERR_FORMAT, "%s: modules_to_save '%s' is not supported (embed_tokens and lm_head are)", path, name ? name : "?");
    }
    json_array_foreach((json_t *)list, i, v) {
        int t = 0;
        while (rc == ERR_OK && t < LORA_TARGETS && (!json_is_string(v) || strcmp(json_string_value(v), lora_target_names[t])))
            t++;
        if (rc == ERR_OK && t == LORA_TARGETS)
            rc = err_set(ERR_FORMAT, "%s: target module '%s' is not one of the seven projections", path,
                         json_is_string(v) ? json_string_value(v) : "?");
        else if (rc == ERR_OK)
            c->target[t] = true;
    }
    json_decref(o);
    return rc;
}

/* Embedding and, unless tied, head of an adapter in the base's place. */
static int read_embeddings(struct model *m, const struct loading *ld)
{
    struct param *const all[2] = {m->embed, m->head};
    int rc = ERR_OK;
    for (int k = 0; k < (m->cfg.tied ? 1 : 2) && rc == ERR_OK; k++) {
        struct param *p = all[k];
        const int64_t shape[2] = {th_size(p->w, 0), th_size(p->w, 1)};
        const struct st_tensor *t;
        enum th_dtype from = TH_F32;
        char *name = xasprintf("base_model.model.%s", p->name);
        size_t scope = th_scope_begin();
        if ((rc = st_get(ld->file, name, 2, shape, &t)) < 0 || (rc = st_to_th(t->dtype, &from)) < 0) {
            rc = err_wrap("the adapter does not fit this model");
        } else {
            th_tensor *src = th_borrow(t->data, 2, shape, from), *w = th_keep(th_clone(th_to(src, m->dtype, m->device)));
            if (w) {
                th_free(p->w);
                p->w = w;
            }
            rc = w ? ERR_OK : err_code();
            if (rc == ERR_OK && ld->trained && (rc = model_train(m, p)) == ERR_OK)
                rc = th_copy_(p->master, src);
        }
        th_scope_end(scope);
        free(name);
    }
    return rc;
}

int lora_check_base(const struct model *m, const char *dir)
{
    char *path = path_join(dir, "prompt.json"), mine[24];
    json_t *o = NULL;
    int rc = path_exists(path) ? json_read_file(path, 1 << 20, &o) : ERR_OK;
    const char *base = json_string_value(json_object_get(o, "base"));
    snprintf(mine, sizeof mine, "%016llx", (unsigned long long)model_digest(m));
    if (rc == ERR_OK && base && m->file && strcmp(base, mine))
        rc = err_set(ERR_FORMAT, "it was trained on other weights than those in %s (prompt.json: base %s, here %s)", st_path(m->file), base, mine);
    json_decref(o);
    free(path);
    return rc;
}

int lora_load(struct model *m, const char *dir, bool trained, struct lora_config *out)
{
    struct loading ld = {.trained = trained};
    struct lora_config c;
    char *path = path_join(dir, "adapter_config.json"), *weights = path_join(dir, "adapter_model.safetensors");
    int rc = read_lora_config(path, &c);
    if (rc == ERR_OK)
        rc = lora_check_base(m, dir);
    if (rc == ERR_OK && (rc = st_open(weights, &ld.file)) == ERR_OK)
        rc = each_adapter(m, &c, read_adapter, &ld);
    if (rc == ERR_OK && c.embeddings)
        rc = read_embeddings(m, &ld);
    if (rc == ERR_OK)
        m->adapter_digest = st_digest(ld.file);
    model_train_reset(m);
    if (rc < 0)
        rc = err_wrap("adapter %s", dir);
    st_close(ld.file);
    free(path);
    free(weights);
    if (out)
        *out = c;
    return rc;
}

int64_t model_rank(const struct model *m)
{
    int64_t most = 0;
    for (int64_t l = 0; l < m->cfg.n_layers; l++)
        for (int t = 0; t < LORA_TARGETS; t++) {
            const struct param *a = m->layers[l].proj[t].lora_a;
            most = a && th_size(a->w, 0) > most ? th_size(a->w, 0) : most;
        }
    return most;
}

int lora_save(const struct model *m, const struct lora_config *c, const char *dir, const char *base)
{
    struct saving s = {.v = xcalloc(m->n_params + 2, sizeof *s.v), .dtype = TH_F32};
    struct buf b = BUF_INIT;
    struct jw j = {.out = &b, .indent = 2};
    size_t n = 0;
    for (size_t i = 0; i < m->n_params; i++)
        if (!strncmp(m->params[i]->name, "base_model.", 11))
            s.v[n++] = m->params[i];
    size_t n_lora = n;
    if (c->embeddings) { /* tied weights too are two tensors of the file, as PEFT has it */
        s.v[n++] = m->embed;
        s.v[n++] = m->head;
    }
    struct st_tensor *t = describe(s.v, n, TH_F32);
    for (size_t i = n_lora; i < n; i++)
        t[i].name = xasprintf("base_model.model.%s", i == n_lora ? s.v[i]->name : "lm_head.weight");
    char *path = path_join(dir, "adapter_model.safetensors"), *config = path_join(dir, "adapter_config.json");
    int rc = mkdir_p(dir);
    if (rc == ERR_OK)
        rc = st_write(path, t, n, saved_bytes, &s, NULL);
    jw_object(&j);
    jw_kv_str(&j, "peft_type", "LORA");
    jw_kv_str(&j, "task_type", "CAUSAL_LM");
    jw_kv_str(&j, "base_model_name_or_path", base);
    jw_kv_int(&j, "r", c->r);
    jw_kv_real(&j, "lora_alpha", c->alpha);
    jw_kv_real(&j, "lora_dropout", 0);
    jw_kv_bool(&j, "use_rslora", c->rslora);
    jw_kv_bool(&j, "fan_in_fan_out", false);
    jw_kv_str(&j, "bias", "none");
    jw_kv_bool(&j, "inference_mode", true);
    jw_key(&j, "target_modules");
    jw_array(&j);
    for (int k = 0; k < LORA_TARGETS; k++)
        if (c->target[k])
            jw_str(&j, lora_target_names[k]);
    jw_end(&j);
    if (c->embeddings) {
        jw_key(&j, "modules_to_save");
        jw_array(&j);
        jw_str(&j, "embed_tokens");
        if (!m->cfg.tied)
            jw_str(&j, "lm_head");
        jw_end(&j);
        jw_kv_bool(&j, "ensure_weight_tying", m->cfg.tied);
    }
    jw_end(&j);
    buf_putc(&b, '\n');
    if (rc == ERR_OK)
        rc = file_write(config, b.s, b.n, true);
    buf_release(&b);
    for (size_t i = n_lora; i < n; i++)
        free((char *)t[i].name);
    free(path);
    free(config);
    free(t);
    free(s.v);
    free(s.bytes);
    return rc;
}

int lora_merge(struct model *m)
{
    int rc = ERR_OK;
    model_train_reset(m);
    for (int64_t i = 0; i < m->cfg.n_layers && rc == ERR_OK; i++)
        for (int t = 0; t < LORA_TARGETS && rc == ERR_OK; t++) {
            struct linear *l = &m->layers[i].proj[t];
            if (!l->lora_a)
                continue;
            size_t scope = th_scope_begin();
            /* in float32, rounded once */
            th_tensor *w = th_clone(th_to(l->w->w, TH_F32, m->device));
            rc = th_addmm_(w, th_to(l->lora_b->w, TH_F32, m->device), th_to(l->lora_a->w, TH_F32, m->device), 1, m->lora_scale);
            th_tensor *merged = rc == ERR_OK ? th_keep(th_to(w, m->dtype, m->device)) : NULL;
            th_scope_end(scope);
            if (!merged)
                return rc < 0 ? rc : err_code();
            th_free(l->w->w);
            l->w->w = merged;
            l->lora_a = l->lora_b = NULL;
        }
    size_t n = 0; /* drop the adapters from the list */
    for (size_t i = 0; i < m->n_params; i++) {
        if (!strncmp(m->params[i]->name, "base_model.", 11))
            param_free(m->params[i]);
        else
            m->params[n++] = m->params[i];
    }
    m->n_params = n;
    return rc;
}
