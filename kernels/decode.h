/* decode.h: a whole decoding step as one kernel (decode.cu), its data and its launchers.
 *
 * Everything that a step reads and writes is in the order in which the tensor cores want it:
 *
 * Weights of a product y = W x lie in tiles of 16 rows by 32 columns, row-major, 1 KB in bfloat16, the tiles of a
 * row group (16 rows) one after the other.  Columns are padded with zeros to a multiple of 256, a chunk: 8 warps
 * take a tile of it each.  Row groups hold what has to meet in one thread:
 *   q, k: 8 dimensions of a head's first half and the 8 of its second that RoPE rotates with them
 *   v, o, down, head: 16 rows in a row
 *   gate-up: 8 rows of the gate and the 8 rows of the up projection that they are multiplied with
 * Vectors x of n columns (tokens) lie as [k / 32][nc][32], nc = 8, 16 or 32 the columns' padded number.
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

enum { DK_PAGE = 256, DK_PART = 128, DK_PARTS = DK_PAGE / DK_PART, DK_CHUNK = 256, DK_MAX_COLS = 32, DK_MARKS = 1024 };

struct dk_model {
    int32_t layers, heads, kv_heads, hd;   /* hd: 64 or 128, the heads' padded size */
    int32_t d, vocab;                      /* true sizes; vocab: ids that may be chosen */
    int32_t kd, kq, kf;                    /* d, heads * hd and d_ff, padded to whole chunks */
    int32_t rg_qkv, rg_d, rg_gu, rg_head;  /* row groups: q, k, v; o and down; gate and up; head */
    int32_t slices;                        /* down's columns are cut so that a slice fits beside the ring */
    int32_t fp8;
    float eps, qk_scale;                   /* 1 / sqrt(head_dim) */
    const void *w;                         /* layers * layer_bytes, then the head */
    int64_t layer_bytes, off_o, off_gu, off_down;
    const float *scale;                    /* fp8: of each packed row, in the order of w; else NULL */
    int64_t layer_rows, row_o, row_gu, row_down;
    const float *bias;                     /* [layers][rg_qkv * 16] in packed order, or NULL */
    const float *norm;                     /* [2 layers + 1][kd] */
    const void *embed;                     /* [vocab][d] bfloat16 */
    const float *rope;                     /* [positions][hd / 2]{ cos, sin } */
    void *pool;                            /* pages */
    int64_t page_elems, layer_elems;       /* of a page; of a layer in it */
};

/* What a step is about; uploaded before it.  The columns of a sequence follow one another, at consecutive positions. */
struct dk_seq {
    int32_t col, n;                        /* its first column, how many */
    int32_t pos;                           /* of the first */
    int32_t parts;                         /* with its keys, of DK_PART each: (pos + n - 1) / DK_PART + 1 */
    int32_t unit;                          /* attention units of the sequences before it: sum of parts * kv_heads */
};
struct dk_step {
    uint32_t barrier;                      /* 0 */
    int32_t cols, seqs, units;
    int32_t max_pages;                     /* row length of pages[] */
    int32_t keep_logits;
    int32_t few_parts;                     /* parts of attention are added up by everybody who wants the sum */
    int32_t token[DK_MAX_COLS], pos[DK_MAX_COLS], seq_of[DK_MAX_COLS];
    struct dk_seq seq[DK_MAX_COLS];
    int32_t pages[];                       /* [seqs][max_pages] */
};

/* Scratch, all on the device. */
struct dk_work {
    struct dk_step *step;
    float *x;                              /* [cols][kd] the residual stream */
    void *h, *ao, *act;                    /* [kd | kq | kf] / 32, nc, 32 bfloat16 */
    float *sumsq;                          /* [rg_d][nc] */
    void *q;                               /* [cols][heads][hd] bfloat16 */
    float *part, *ml;                      /* [cols][heads][max_pages * DK_PARTS][hd], {m, l} */
    float *down;                           /* [slices][rg_d][nc][16] */
    uint32_t *count_attn;                  /* zeros: [seqs][kv_heads] */
    float *logits;                         /* [cols][rg_head * 16] */
    float *best;                           /* [grid][nc]{ value, id } */
    uint64_t *trace;                       /* NULL, or [grid][DK_MARKS][2]: clock and clocks spent waiting for weights */
};

/* Every launcher returns a cudaError_t; stream is a cudaStream_t. */
/* Multiprocessors, shared memory a block may have, compute capability (major * 10 + minor) of the present device. */
int k_decode_device(int *sms, int *smem, int *capability);
/* Columns that a step can take with k columns to stage (the larger of kd and kq): 32, 16, 8 or 0. */
int k_decode_max_cols(int k, int smem);

/* Packs n_rg row groups of k columns from src[0] and src[1], bfloat16 row-major of ld columns.  rows[16 n_rg]: -1
 * (zeros) or row * 2 + which; cols[k]: -1 or the column, NULL: column i while i < ld. */
int k_decode_pack(void *stream, void *dst, float *scale, int fp8, const void *src0, const void *src1, int64_t ld,
                  const int32_t *rows, const int32_t *cols, int n_rg, int k);
/* Rounds a bfloat16 matrix to what its e4m3 form stands for (scales are powers of two, so bfloat16 holds it exactly). */
int k_decode_round(void *stream, void *w, int64_t rows, int64_t cols);
/* Copies keys and values of a prompt's n tokens into pages: bfloat16, a token's kv heads side by side, tokens `stride` elements apart. */
int k_decode_fill(void *stream, const struct dk_model *m, int layer, const void *k, const void *v, int64_t stride, int head_dim, int n,
                  const int32_t *pages);
/* One step; nc: 8, 16 or 32, at least its columns. */
int k_decode_step(void *stream, const struct dk_model *m, const struct dk_work *w, int nc, int grid, int smem);

struct dk_sampling {
    float temperature, top_p;              /* 0: greedy */
    int32_t top_k;                         /* 0: all */
    int32_t place;                         /* of the token in its sequence */
    uint64_t seed;
    int32_t masked;                        /* choose among the bits of mask[col] */
};
/* Chooses a token for each of the columns: out[cols] (may be host memory that the device sees).  Greedy unmasked
 * columns take the step's own maxima, others read the kept logits.  mask: [cols][mask_words]. */
int k_decode_sample(void *stream, const struct dk_model *m, const struct dk_work *w, int nc, int grid, int cols,
                    const struct dk_sampling *s, const uint32_t *mask, int mask_words, int32_t *out);

/* Memory and order, so that the engine needs no CUDA headers. */
int k_host_alloc(size_t n, void **out);    /* page-locked, seen by the device at the same address */
int k_host_free(void *p);
int k_copy(void *stream, void *dst, const void *src, size_t n);
int k_zero(void *stream, void *dst, size_t n);
int k_wait(void *stream);

#ifdef __cplusplus
}
#endif
#endif
