/* transformer.h: Qwen2ForCausalLM and LlamaForCausalLM, forward and backward.
 *
 * One decoder layer, x [rows, d_model], the rows being the tokens of one or more sequences:
 *
 *     h = rms_norm(x) ;  q, k, v = h Wq^T + bq, h Wk^T + bk, h Wv^T + bv     (biases: Qwen2 only)
 *     o = attention(rope(q), rope(k), v) ;  x = x + o Wo^T
 *     h = rms_norm(x) ;  x = x + (silu(h Wg^T) * (h Wu^T)) Wd^T
 *
 * and at the end logits = rms_norm(x) Wh^T, where Wh may be the embedding itself (tied).
 * (Qwen2.5 technical report, arXiv 2412.15115; Llama 3, arXiv 2407.21783; RoPE, arXiv 2104.09864;
 * grouped queries, arXiv 2305.13245; the module and tensor names are Hugging Face's.)
 *
 * Weights are either frozen, with low-rank adapters beside the seven projections
 * (W + s B A; LoRA, arXiv 2106.09685), or all trained.  The backward pass is written out and
 * never computes the gradient of a frozen weight.
 *
 * A model is used by one thread at a time.
 */
#ifndef MODEL_TRANSFORMER_H
#define MODEL_TRANSFORMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shim/torch.h"

struct model_config {
    bool qwen2;              /* else Llama */
    int64_t d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, vocab, max_positions;
    double rope_theta, rms_eps, init_std;
    bool tied;               /* the head is the embedding */
    bool attention_bias;     /* q, k and v have biases */
    struct {                 /* rope_scaling of type "llama3"; factor 0: none */
        double factor, low_freq, high_freq;
        int64_t original_positions;
    } rope;
};

/* Reads DIR/config.json.  ERR_FORMAT names what is missing or not understood. */
int model_config_read(const char *dir, struct model_config *out);

/* A tensor of the model or an adapter, by its file's name.  When trained: w is what the products
 * use, master its float32 original (the same tensor when the model computes in float32), grad
 * the float32 gradient, summed over backward passes until model_zero_grad(). */
struct param {
    char *name;
    th_tensor *w, *master, *grad;
    bool trained;
    bool decay;              /* subject to weight decay: matrices, not norms and biases */
};

enum { LORA_Q, LORA_K, LORA_V, LORA_O, LORA_GATE, LORA_UP, LORA_DOWN, LORA_TARGETS };
extern const char *const lora_target_names[LORA_TARGETS]; /* "q_proj", ... */

struct linear {
    struct param *w, *b;     /* [out, in]; [out] or NULL */
    struct param *lora_a, *lora_b; /* [r, in], [out, r]; NULL without adapter */
};

struct layer {
    struct param *norm1, *norm2;
    struct linear proj[LORA_TARGETS];
};

/* What the backward pass finds kept: as much as there is room for; each layer's input only; all of it. */
enum model_memory { MEMORY_AUTO, MEMORY_LOW, MEMORY_HIGH };

struct model {
    struct model_config cfg;
    enum th_dtype dtype;
    enum th_device device;
    struct param **params;   /* all; those of one product side by side: q, k, v; gate, up; and so their adapters' A */
    size_t n_params, cap_params;
    struct param *embed, *norm, *head; /* head == embed when tied */
    struct layer *layers;
    double lora_scale;       /* alpha / r, or alpha / sqrt(r) */
    th_tensor *cos, *sin;    /* [positions, head_dim], grown on demand */
    bool draw_on_device;
    bool fp8;                /* products with frozen weights in 8 bits, forward and backward, a scale for each row; on CUDA with bfloat16, on the CPU by way of float32, slowly */
    enum model_memory memory;
    bool profile;            /* time the phases of model_loss() */
    struct train *train;     /* of train.c */
    struct st *file;         /* the weights' mapping */
    uint64_t adapter_digest; /* of the file that lora_load() has read; 0: none */
    /* Called by the backward pass when it has queued the last of its work on the gradients of a layer's parameters
     * (those of the last layer: of what follows it, too); NULL: not. */
    void (*layer_done)(void *ctx, int64_t layer);
    void *layer_done_ctx;
};

/* Loads a Hugging Face folder.  ERR_IO, ERR_FORMAT, ERR_NOMEM. */
int model_load(const char *dir, enum th_dtype dtype, enum th_device device, struct model **out);
/* Random weights (normal, config's initializer_range; norms one, biases zero) by DIR/config.json, the same on every device; with the
 * seed MODEL_DRAW_ON_DEVICE faster, and others. */
enum { MODEL_DRAW_ON_DEVICE = 0x7fffffff };
int model_init(const char *dir, enum th_dtype dtype, enum th_device device, uint64_t seed, struct model **out);
void model_free(struct model *m); /* NULL is fine */

/* Makes every weight trained, or one. */
int model_train_all(struct model *m);
int model_train(struct model *m, struct param *p);
/* The digest of the weights' file (see st_digest()); 0 for random weights.  An adapter belongs to one. */
uint64_t model_digest(const struct model *m);
/* ERR_FORMAT naming the first tensor that holds a number that is not finite. */
int model_check_finite(const struct model *m);
/* Whether model_loss() can go backward through it as it is set up: sizes, types, what is trained.  model_loss() asks itself. */
int model_check_training(const struct model *m);
int64_t model_n_trained(const struct model *m); /* elements */
int model_zero_grad(struct model *m);
/* Writes the weights (in `dtype`) to dir as safetensors; config.json is the caller's. */
int model_save(struct model *m, const char *dir, enum th_dtype dtype);

/* ---- training and scoring ---- */
struct sequence {
    const int32_t *ids;
    size_t n;        /* at least 2 */
    size_t response; /* index of the first token that the loss covers, at least 1 */
};
/* Sum over the covered tokens of -log p(token | what precedes it), of n sequences as one batch, packed one
 * after the other without padding, attention kept inside each.  With backward, gradients of `scale` times that
 * sum are added to the trained parameters' grad.  *n_tokens: covered tokens.  loss_sum NULL: the sum is left on the
 * device, which nobody waits for; model_losses() reads it. */
int model_loss(struct model *m, const struct sequence *seqs, size_t n, bool backward, double scale, double *loss_sum,
               size_t *n_tokens);
/* The sums of the last n calls of model_loss() without loss_sum, oldest first, n <= MODEL_LOSSES. */
enum { MODEL_LOSSES = 4096 };
int model_losses(struct model *m, double *sums, size_t n);
/* With m->profile: seconds on the device by phase of the calls since the last time, in the order of their first use; the
 * names are constants.  Returns how many there are, `cap` at most. */
struct phase {
    const char *name;
    double seconds;
    int64_t calls;
};
size_t model_profile(struct model *m, struct phase *out, size_t cap);
/* Logits [n, vocab] float32 of one sequence, at every position; a handle of the caller's scope. */
th_tensor *model_logits(struct model *m, const int32_t *ids, size_t n);

/* Brings the weights together that model_read() and model_logits() want side by side: from now on they stay where they are. */
int model_gather(struct model *m);
/* Runs a prompt through the layers for its keys and values alone: keys() gets each layer's q, k, v, rotated, side by side in the
 * columns of [n, (n_heads + 2 n_kv_heads) head_dim], contiguous. */
typedef int model_keys_fn(void *ctx, int64_t layer, th_tensor *qkv);
int model_read(struct model *m, const int32_t *ids, size_t n, model_keys_fn *keys, void *ctx);

/* ---- decoding ---- */
/* Keys and values of `batch` sequences of up to `capacity` tokens. */
struct kv_cache {
    int64_t batch, capacity;
    th_tensor **k, **v;      /* a layer: [batch, n_kv_heads, capacity, head_dim] */
    int64_t *length;         /* tokens in each row */
};
int kv_cache_new(const struct model *m, int64_t batch, int64_t capacity, struct kv_cache **out);
void kv_cache_free(struct kv_cache *c);
/* Appends ids to a row; logits [1, vocab] of the last one (a handle of the caller's scope). */
th_tensor *model_prefill(struct model *m, struct kv_cache *c, int64_t row, const int32_t *ids, size_t n);
/* Appends one token to each of the first `rows` rows (all of which hold at least one): logits [rows, vocab]. */
th_tensor *model_decode(struct model *m, struct kv_cache *c, int64_t rows, const int32_t *ids);

/* ---- between transformer.c and train.c ---- */
/* Angle of position 1 for each of head_dim / 2 pairs, with llama3 scaling where the config has it. */
void model_rope_frequencies(const struct model_config *c, float *out);
int model_rope_table(struct model *m, int64_t positions, float **cos, float **sin, int64_t *n); /* [n, head_dim / 2], the caller's */
int model_check_ids(const struct model *m, const int32_t *ids, size_t n);
void model_train_reset(struct model *m); /* weights or adapters were replaced: what train.c made of them goes */

/* ---- adapters ---- */
struct lora_config {
    int64_t r;
    double alpha;
    bool rslora;
    bool target[LORA_TARGETS];
    bool embeddings;         /* embedding and head go with it, whole: PEFT's modules_to_save */
};
/* Adds fresh adapters (A: Kaiming uniform as PEFT, B: zero), trained.  All weights become frozen. */
int lora_attach(struct model *m, const struct lora_config *c, uint64_t seed);
/* Loads adapters from a PEFT folder.  trained: their training goes on.  ERR_FORMAT when they do not
 * fit this model, or were trained on another (by the digest that sft leaves in prompt.json). */
int lora_load(struct model *m, const char *dir, bool trained, struct lora_config *out);
/* ERR_FORMAT if dir/prompt.json names other weights than the model's: of a sister model of the same shape an adapter fits, and is still wrong. */
int lora_check_base(const struct model *m, const char *dir);
/* Writes adapter_config.json and adapter_model.safetensors (float32), as PEFT does. */
int lora_save(const struct model *m, const struct lora_config *c, const char *dir, const char *base);
/* The highest rank of the adapters that are beside the weights; 0: none, or merged. */
int64_t model_rank(const struct model *m);
/* Folds the adapters into the weights and drops them. */
int lora_merge(struct model *m);

#endif
