/* torch.h: tensors for C: a hand-picked operator-level API over ATen.
 *
 *     size_t scope = th_scope_begin();
 *     th_tensor *h = th_linear(x, w, NULL);          // [.., out] = x [.., in] w^T [out, in]
 *     th_tensor *y = th_keep(th_add(h, r, 1));       // survives the scope; th_free() it
 *     th_scope_end(scope);                           // frees h
 *     if (!y) return err_code();
 *
 * Handles.  Every function that returns a th_tensor * returns a new handle, which belongs to
 * the innermost scope of this thread and is freed at its end, unless th_keep() takes it out.
 * Handles without an open scope are errors of the caller and leak.  Views share memory with
 * what they view and keep it alive.
 *
 * Errors.  An operator that fails sets lib/err.h's text (ERR_NOMEM: out of memory, on the
 * device named; ERR_EXTERN: ATen's message) and returns NULL; an operator given NULL returns
 * NULL and leaves the error alone.  So a formula may be written as one chain and
 * checked once at its end.  In-place operators return ERR_OK or a negative code likewise.
 *
 * Nothing here records gradients: the backward pass is written out in model/.
 * Threads: a handle may be used from any thread, scopes are each thread's own.
 */
#ifndef SHIM_TORCH_H
#define SHIM_TORCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct th_tensor th_tensor;

enum th_dtype { TH_F32, TH_BF16, TH_F16, TH_F64, TH_I64, TH_I32, TH_U8, TH_BOOL, TH_F8 /* e4m3 */ };
enum th_device { TH_CPU, TH_CUDA };
enum { TH_MAX_RANK = 8 };

/* ---- process ---- */
/* "cpu", "cuda" or "auto" (CUDA where there is one).  Loads the CUDA part of libtorch on first
 * need; ERR_EXTERN says what is missing. */
int th_device_open(const char *name, enum th_device *out);
void th_set_threads(int n);                /* CPU threads of one operator */
int th_get_threads(void);
void th_seed(uint64_t seed);               /* of th_normal_() */
void th_deterministic(bool on);            /* same input, same bits (CUDA) */
void th_sync(enum th_device d);            /* waits for the device */
/* Bytes of device memory in use, at their highest, and free; zeros on the CPU. */
void th_memory(enum th_device d, size_t *used, size_t *peak, size_t *free_bytes);
void th_memory_reset_peak(enum th_device d);
size_t th_memory_reserved(enum th_device d); /* bytes that the allocator holds, at their highest */
/* Bytes that could still be taken: free ones and those that freed tensors left to the allocator. */
size_t th_memory_available(enum th_device d);
/* fn(ctx, from, to) over parts of 0 .. n - 1 of at least `grain`, on the threads that operators use. */
void th_parallel(int64_t n, int64_t grain, void (*fn)(void *ctx, int64_t from, int64_t to), void *ctx);
/* Times on the device: marks in the order of its work, the seconds between two of them once it got there. */
typedef struct th_mark th_mark;
th_mark *th_mark_new(enum th_device d);    /* NULL on the CPU, where the others do nothing */
void th_mark_free(th_mark *m);
double th_mark_seconds(const th_mark *from, const th_mark *to); /* waits for `to` */
size_t th_dtype_size(enum th_dtype t);

/* Tensors put aside in page-locked host memory, by copies beside the device's other work. */
typedef struct th_aside th_aside;
th_aside *th_aside_new(th_tensor *x);      /* the caller may free x at once; NULL: an error */
int th_aside_wait(th_aside *a);            /* the host waits until it is there, and x's memory free */
int th_aside_fetch(th_aside *a);           /* begins to bring it back, if that is not under way */
th_tensor *th_aside_take(th_aside *a);     /* it; the host waits for it */
void th_aside_free(th_aside *a);           /* NULL is fine */

/* ---- handles ---- */
size_t th_scope_begin(void);
void th_scope_end(size_t scope);
th_tensor *th_keep(th_tensor *x);          /* takes x out of its scope; NULL passes */
void th_free(th_tensor *x);                /* of a kept handle; NULL is fine */
th_tensor *th_adopt(th_tensor *x);         /* gives a kept handle to the innermost scope; NULL passes */
th_tensor *th_alias(th_tensor *x);         /* a second handle to the same tensor */
int th_rank(const th_tensor *x);
int64_t th_size(const th_tensor *x, int dim); /* dim < 0 counts from the end */
int64_t th_stride(const th_tensor *x, int dim); /* in elements */
int64_t th_numel(const th_tensor *x);
enum th_dtype th_dtype_of(const th_tensor *x);

/* ---- making, moving ---- */
th_tensor *th_empty(int rank, const int64_t *shape, enum th_dtype t, enum th_device d);
th_tensor *th_zeros(int rank, const int64_t *shape, enum th_dtype t, enum th_device d);
/* A CPU tensor over memory of the caller, which must outlive it and is not written to. */
th_tensor *th_borrow(const void *data, int rank, const int64_t *shape, enum th_dtype t);
/* A copy of the caller's array on device d. */
th_tensor *th_from(const void *data, int rank, const int64_t *shape, enum th_dtype t, enum th_device d);
th_tensor *th_to(th_tensor *x, enum th_dtype t, enum th_device d); /* x's memory when nothing changes */
th_tensor *th_clone(th_tensor *x);
int th_copy_(th_tensor *dst, th_tensor *src);          /* converts dtype and device, broadcasts */
int th_fill_(th_tensor *x, double v);
int th_normal_(th_tensor *x, double mean, double std); /* from th_seed()'s generator */
/* Copies to the caller's memory, row-major, in x's dtype; waits for the device. */
int th_read(th_tensor *x, void *out);
double th_item(th_tensor *x);                          /* of one element; NaN on error */
void *th_data(th_tensor *x);                           /* of a contiguous tensor; borrowed */

/* ---- views ---- */
th_tensor *th_reshape(th_tensor *x, int rank, const int64_t *shape); /* one size may be -1 */
th_tensor *th_unflatten(th_tensor *x, int dim, int64_t n); /* [.., a n, ..] -> [.., n, a, ..], a view of any strides */
th_tensor *th_flatten(th_tensor *x, int dim);              /* [.., n, a, ..] -> [.., n a, ..] */
/* Matrices of one width that lie one after the other in the same memory, as one; else NULL, which is no error. */
th_tensor *th_adjacent(th_tensor *const *v, int n);
th_tensor *th_narrow(th_tensor *x, int dim, int64_t start, int64_t length);
th_tensor *th_transpose(th_tensor *x, int a, int b);
th_tensor *th_contiguous(th_tensor *x);
th_tensor *th_cat(th_tensor *const *v, int n, int dim);

/* ---- arithmetic (broadcasting) ---- */
th_tensor *th_add(th_tensor *a, th_tensor *b, double alpha); /* a + alpha b */
th_tensor *th_mul(th_tensor *a, th_tensor *b);
th_tensor *th_scale(th_tensor *a, double s);
th_tensor *th_sum(th_tensor *x, int dim, bool keep_dim);
th_tensor *th_sum_f32(th_tensor *x, int dim);                /* in float32 */
th_tensor *th_sum_all(th_tensor *x);                         /* in float32 */
th_tensor *th_norm(th_tensor *x);                            /* Euclidean, of all elements, in float32 */
int th_add_(th_tensor *a, th_tensor *b, double alpha);       /* a += alpha b */
int th_scale_(th_tensor *a, double s);
int th_addcmul_(th_tensor *a, th_tensor *b, th_tensor *c, double value); /* a += value b c */
int th_addcdiv_(th_tensor *a, th_tensor *b, th_tensor *c, double value); /* a += value b / c */
th_tensor *th_sqrt_plus(th_tensor *x, double eps);           /* sqrt(x) + eps */

/* ---- matrix products ---- */
th_tensor *th_matmul(th_tensor *a, th_tensor *b);
th_tensor *th_linear(th_tensor *x, th_tensor *w, th_tensor *bias); /* x w^T + bias; bias NULL: none */
/* out = beta out + alpha a b, for matrices [n, k] [k, m] (views may be transposed); beta 0: out is only written.
 * out may be float32 where a and b are bfloat16. */
int th_addmm_(th_tensor *out, th_tensor *a, th_tensor *b, double beta, double alpha);
/* out = a b + bias, a row of bias for each of out */
int th_addmm_bias_(th_tensor *out, th_tensor *a, th_tensor *b, th_tensor *bias);

/* out [n, m] bfloat16 = (a sa) (b sb)^T + bias, of a [n, k], b [m, k] in 8 bits with a scale for each row, sa [n, 1], sb [m, 1]; bias or
 * NULL.  On a GPU of compute capability 8.9 or later; on the CPU by way of float32, for tests, and out is of any type. */
int th_scaled_mm_(th_tensor *out, th_tensor *a, th_tensor *sa, th_tensor *b, th_tensor *sb, th_tensor *bias);

/* ---- the transformer's ---- */
th_tensor *th_embedding(th_tensor *w, th_tensor *ids);       /* rows of w [v, d] at ids [..] int64 */
/* y = x / sqrt(mean(x^2) + eps) * w over the last dimension; *rstd [.., 1] float32 for backward. */
th_tensor *th_rms_norm(th_tensor *x, th_tensor *w, double eps, th_tensor **rstd);
/* dx, and dw when dw is not NULL. */
th_tensor *th_rms_norm_backward(th_tensor *dy, th_tensor *x, th_tensor *w, th_tensor *rstd, th_tensor **dw);
th_tensor *th_layer_norm(th_tensor *x, th_tensor *w, th_tensor *b, double eps);
th_tensor *th_silu(th_tensor *x);
th_tensor *th_silu_backward(th_tensor *dy, th_tensor *x);
th_tensor *th_gelu(th_tensor *x);                            /* erf */
/* Rotates the two halves of the last dimension: x cos + rotate_half(x) sin (Hugging Face's RoPE;
 * cos, sin broadcast against x).  The backward is the same with sin negated. */
th_tensor *th_rope(th_tensor *x, th_tensor *cos, th_tensor *sin, bool backward);
th_tensor *th_softmax(th_tensor *x, int dim);
th_tensor *th_log_softmax(th_tensor *x);                     /* last dimension, in float32 */
th_tensor *th_gather(th_tensor *x, int dim, th_tensor *index);
int th_scatter_add_(th_tensor *x, int dim, th_tensor *index, th_tensor *src);
th_tensor *th_index_select(th_tensor *x, int dim, th_tensor *index);
int th_index_add_(th_tensor *x, int dim, th_tensor *index, th_tensor *src);
int th_index_copy_(th_tensor *x, int dim, th_tensor *index, th_tensor *src);

/* Scaled dot-product attention: q [b, h, s, d], k and v [b, h_kv, t, d], h a multiple of h_kv
 * (grouped queries, without copies where the kernel takes them).  causal: query i sees keys 0..i
 * (s = t).  mask (or NULL): bool [b or 1, 1, s, t], true = may look. */
th_tensor *th_attention(th_tensor *q, th_tensor *k, th_tensor *v, bool causal, th_tensor *mask);

/* Sequences of different lengths that lie one after the other, without padding: sequence i is the rows
 * start[i] to start[i + 1] - 1. */
struct th_packing {
    int64_t n;             /* sequences, none of them empty */
    const int64_t *start;  /* n + 1, of the caller, while attention over it goes on */
    int64_t longest;
    th_tensor *cum;        /* start as int32 on the device; NULL on the CPU */
};
/* What the backward pass wants of th_attention_packed(): start with {0}. */
struct th_attention_saved {
    int kernel;
    struct th_attention_state *state;
};
void th_attention_saved_free(struct th_attention_saved *s);
/* Causal attention inside each packed sequence: q [rows, h, d], k and v [rows, h_kv, d], views whose last dimension is
 * dense; the result is [rows of the sequences, h, d], dense.  q, k and v have th_packing_rows() rows: on a GPU more than the
 * sequences', which are read and must be finite, but do not count.  saved NULL: inference. */
th_tensor *th_attention_packed(th_tensor *q, th_tensor *k, th_tensor *v, const struct th_packing *p,
                               struct th_attention_saved *saved);
/* Gradients of the sequences' rows into dq, dk, dv: new handles, dense.  dout and out are dense. */
int th_attention_packed_backward(th_tensor *dout, th_tensor *q, th_tensor *k, th_tensor *v, th_tensor *out,
                                 const struct th_packing *p, const struct th_attention_saved *saved,
                                 th_tensor **dq, th_tensor **dk, th_tensor **dv);
int64_t th_packing_rows(const struct th_packing *p, enum th_device d);

#ifdef __cplusplus
}
#endif
#endif
