/* safetensors.h: tensors in files, read by mmap, written atomically.
 *
 * The format (huggingface/safetensors, "Format" in its README): 8 bytes little-endian
 * header length N, N bytes of JSON {"name":{"dtype","shape","data_offsets":[from,to]},
 * "__metadata__":{string:string}}, then the data, which the tensors fill without gap or
 * overlap.  A model may be several such files and an index,
 * model.safetensors.index.json {"weight_map":{"name":"file"}}.
 *
 *     struct st *s;
 *     if (st_open("models/qwen", &s) < 0) ...     // a folder, an index or one file
 *     const struct st_tensor *w = st_find(s, "model.norm.weight");
 *     ... w->dtype, w->shape[0], w->data ...      // borrowed until st_close()
 *     st_close(s);
 *
 * Everything in a header is checked before use: nothing outside the file is touched.
 */
#ifndef LIB_SAFETENSORS_H
#define LIB_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum st_dtype {
    ST_BOOL, ST_U8, ST_I8, ST_F8_E5M2, ST_F8_E4M3, ST_I16, ST_U16, ST_F16, ST_BF16,
    ST_I32, ST_U32, ST_F32, ST_F64, ST_I64, ST_U64,
};
enum { ST_MAX_RANK = 8 };

size_t st_dtype_size(enum st_dtype d);      /* bytes an element */
const char *st_dtype_name(enum st_dtype d); /* "BF16" */

struct st_tensor {
    const char *name;
    enum st_dtype dtype;
    int rank;                   /* 0: a scalar */
    int64_t shape[ST_MAX_RANK]; /* row-major */
    const void *data;           /* may be unaligned in files that others wrote */
    size_t bytes;
};

struct st;

/* path: one .safetensors file, an index .json, or a folder holding model.safetensors or
 * model.safetensors.index.json (else adapter_model.safetensors).  ERR_IO, ERR_FORMAT with
 * file and tensor. */
int st_open(const char *path, struct st **out);
void st_close(struct st *s); /* NULL is fine */
size_t st_count(const struct st *s);
const struct st_tensor *st_at(const struct st *s, size_t i);           /* sorted by name */
const struct st_tensor *st_find(const struct st *s, const char *name); /* NULL if absent */
/* Like st_find(), but an absent name is ERR_FORMAT, and so is a shape other than
 * rank/shape (rank < 0: any). */
int st_get(const struct st *s, const char *name, int rank, const int64_t *shape, const struct st_tensor **out);
/* A value of the first file's __metadata__; NULL if absent. */
const char *st_metadata(const struct st *s, const char *key);
const char *st_path(const struct st *s); /* what was opened, for messages */
/* Of names, types, shapes and samples of the numbers: tells other weights apart without reading all of them. */
uint64_t st_digest(const struct st *s);

/* Writes n tensors (bytes is ignored: dtype and shape tell) into the file at path, which appears
 * only whole.  Tensors lie in the file by falling element size, else in the given order, so
 * all are aligned.  get (may be NULL) is called for tensors whose data is NULL, in file
 * order, one at a time, and sets *data, which need last until the next call only.
 * metadata: NULL-terminated key, value, key, value...; NULL: {"format":"pt"}. */
typedef int st_get_fn(void *ctx, size_t i, const void **data);
int st_write(const char *path, const struct st_tensor *v, size_t n, st_get_fn *get, void *ctx,
             const char *const *metadata);

/* Likewise into folder dir as model.safetensors, or, when over max_shard_bytes (0: 5 GB),
 * as model-00001-of-0000N.safetensors and the index, each file but the last filled with
 * whole tensors up to the limit, in the given order. */
int st_write_model(const char *dir, const struct st_tensor *v, size_t n, st_get_fn *get, void *ctx,
                   uint64_t max_shard_bytes);

#endif
