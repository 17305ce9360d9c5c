/* decode.h: a decoding step of a whole transformer (decode.cu), its data and its launchers.
 *
 * Weights in bfloat16 are read where the model has them, row-major.  In e4m3 they are a copy, in tiles of 16 rows by 64 columns,
 * 1 KB each, in the order in which the lanes of a warp want them; a scale (a power of two) a row.  A tile's 16 rows are those that
 * have to meet in one thread:
 *   qkv: 8 dimensions of a head's first half and the 8 of its second that RoPE rotates with them; values: 16 rows in a row
 *   gate-up: 8 rows of the gate and the 8 rows of the up projection that they are multiplied with
 *   out, down, head: 16 rows in a row
 * Vectors x of n columns (tokens) lie as [k / 32][nc][32], nc = 1, 8, 16 or 32 the columns' padded number.
 * Keys and values lie in pages of 256 tokens: [page][layer][kv head]{ K [256][hd], V^T [hd][256] }.
 *
 * A C header: used by model/engine_cuda.c, kernels/decode.cu and the tests.
 */
#ifndef KERNELS_DECODE_H
#define KERNELS_DECODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { DK_PAGE = 256, DK_PART = 128, DK_PARTS = DK_PAGE / DK_PART, DK_MAX_COLS = 32, DK_MARKS = 6, DK_NEXT_PARTS = 8, DK_NEXT_NUMBERS = 4096, DK_MAX_RANK = 256, DK_ADAPT_PARTS = 8 };
/* The products of a layer, and the head. */
enum dk_kind { DK_QKV, DK_OUT, DK_GATE_UP, DK_DOWN, DK_HEAD };

/* All on the device, bfloat16 but for the scales.  fp8: w[0] of a product is its copy. */
struct dk_layer {
    const void *qkv[3], *bias[3];          /* bias: of q, k and v, or NULL */
    const void *out, *gate_up[2], *down;
    int32_t pitch[DK_HEAD];                /* numbers from a row of each product's matrices to the next */
    const void *norm1, *norm2;
    const float *scale[DK_HEAD];           /* fp8: of the rows of each product's tiles */
    const void *a[DK_HEAD][3], *b[DK_HEAD][3]; /* an adapter's, of the matrices of each product: [rank][columns], [rows][rank]; NULL where there is none */
};

struct dk_model {
    int32_t layers, heads, kv_heads, head_dim;
    int32_t hd;                            /* 64 or 128: head_dim padded, for q, keys, values; 64 and more are padded in halves */
    int32_t d, ff, rows, vocab;            /* rows: of the head; vocab: ids that may be chosen */
    int32_t fp8;
    int32_t rank;                          /* of the adapter, or 0; at most DK_MAX_RANK */
    float eps, qk_scale, adapter_scale;    /* qk_scale: 1 / sqrt(head_dim) */
    const struct dk_layer *layer;          /* [layers], on the host */
    const void *norm, *embed, *head;
    const float *head_scale;
    const float *rope;                     /* [positions][hd / 2]{ cos, sin } */
    void *pool;                            /* pages */
    int64_t page_elems, layer_elems;       /* of a page; of a layer in it */
};

/* What a step is about; uploaded before it.  The columns of a sequence follow one another, at consecutive positions. */
struct dk_seq {
    int32_t col, n;                        /* its first column, how many */
    int32_t pos;                           /* of the first */
    int32_t parts;                         /* with its keys, of DK_PART each: (pos + n - 1) / DK_PART + 1 */
    int32_t split;                         /* 1, or attention units of 16 rows (a column and a head each) for every part and kv head */
    int32_t unit;                          /* attention units of the sequences before it: sum of parts * kv_heads * split */
    int32_t unused[2];
} __attribute__((aligned(16)));            /* two reads of 16 bytes */
struct dk_step {
    int32_t cols, seqs, units;
    int32_t max_pages;                     /* row length of pages[] */
    int32_t keep_logits;
    int32_t token[DK_MAX_COLS], pos[DK_MAX_COLS], seq_of[DK_MAX_COLS];
    struct dk_seq seq[DK_MAX_COLS];
    int32_t pages[];                       /* [seqs][max_pages] */
};

/* Scratch, all on the device.  kd, kq, kf: d, heads * head_dim and ff, padded to 64; zeros to begin with. */
struct dk_work {
    struct dk_step *step;
    float *x;                              /* [cols][kd] the residual stream */
    void *h, *ao, *act;                    /* [kd | kq | kf] / 32, nc, 32 bfloat16 */
    float *sumsq;                          /* [d / 16][nc] */
    void *q;                               /* [cols][heads][hd] bfloat16 */
    float *part, *ml;                      /* [cols][heads][max_pages * DK_PARTS][hd], {m, l} */
    float *logits;                         /* [cols][rows to 16] */
    float *best;                           /* [grid][nc]{ value, id } */
    float *u, *extra;                      /* adapters: [DK_ADAPT_PARTS][3][rank to 16][nc]; [rows of the larger of qkv and gate-up][nc] */
    uint64_t *trace;                       /* NULL, or [kernels of a plan][DK_MARKS]: nanoseconds at which the first and the last block
                                            * began, went on after the wait for the kernel before, and ended */
};

/* How attention goes: its parts' sums are added up by the product that reads them (of one column, at most DK_NEXT_PARTS parts and
 * DK_NEXT_NUMBERS numbers), by a kernel of its own, or by that with keys and values in shared memory for the many columns of a sequence. */
enum dk_way { DK_WAY_NEXT, DK_WAY_MANY, DK_WAY_WIDE, DK_WAYS };

/* Every launcher returns a cudaError_t; stream is a cudaStream_t. */
/* Multiprocessors, shared memory a block may have, compute capability (major * 10 + minor) of the present device. */
int k_decode_device(int *sms, int *smem, int *capability);
/* Columns that a step of the model can take: 32, 16, 8 or 0. */
int k_decode_max_cols(const struct dk_model *m, int smem);

/* Rows of a product's tiles, and bytes of its e4m3 copy. */
int64_t k_decode_rows(const struct dk_model *m, enum dk_kind kind);
int64_t k_decode_bytes(const struct dk_model *m, enum dk_kind kind);
/* Makes the copy of w's matrices (up to three, as in struct dk_layer), rows `pitch` numbers apart. */
int k_decode_pack(void *stream, const struct dk_model *m, enum dk_kind kind, const void *const *w, int64_t pitch, void *dst, float *scale);
/* Rounds a bfloat16 matrix to what its e4m3 form stands for (scales are powers of two, so bfloat16 holds it exactly). */
int k_decode_round(void *stream, void *w, int64_t rows, int64_t cols);
/* Copies keys and values of a prompt's n tokens into pages: bfloat16, a token's kv heads side by side, tokens `stride` elements apart. */
int k_decode_fill(void *stream, const struct dk_model *m, int layer, const void *k, const void *v, int64_t stride, int n,
                  const int32_t *pages);

/* The kernels of a step as one graph, for steps of up to nc columns.  m->layer and what m and w point to outlive it. */
int k_decode_plan(const struct dk_model *m, const struct dk_work *w, int nc, enum dk_way way, int sms, int smem, void **plan);
int k_decode_step(void *stream, void *plan);
int k_decode_plan_free(void *plan); /* NULL is fine */
/* Kernels of a plan (2 + 6 a layer at most) and, for each, what it is: an enum dk_kind, or negative for embedding (-1), attention (-2), its sums (-3). */
int k_decode_kernels(const struct dk_model *m, enum dk_way way, int *kinds);

struct dk_sampling {
    float temperature, top_p;              /* 0: greedy */
    int32_t top_k;                         /* 0: all */
    int32_t place;                         /* of the token in its sequence */
    uint64_t seed;
    int32_t masked;                        /* choose among the bits of mask[col] */
};
/* Chooses a token for each of the columns: out[cols] (may be host memory that the device sees).  Greedy unmasked
 * columns take the step's own maxima (grid of them), others read the kept logits.  mask: [cols][mask_words]. */
int k_decode_sample(void *stream, const struct dk_model *m, const struct dk_work *w, int nc, int sms, int cols,
                    const struct dk_sampling *s, const uint32_t *mask, int mask_words, int32_t *out);

/* Memory and order, so that the engine needs no CUDA headers. */
int k_host_alloc(size_t n, void **out);    /* page-locked, seen by the device at the same address */
int k_host_free(void *p);
int k_copy(void *stream, void *dst, const void *src, size_t n);
int k_wait(void *stream);

#ifdef __cplusplus
}
#endif
#endif
