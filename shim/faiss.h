/* faiss.h: exact inner-product search by FAISS, for C.
 *
 * A thin shim of our own over IndexFlatIP: Debian's libfaiss-dev has the headers of FAISS's C API, but not its
 * objects.  Codes and texts by lib/err.h; exceptions stop here, with their text copied where they are caught.
 */
#ifndef SHIM_FAISS_H
#define SHIM_FAISS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vindex vindex;

/* An empty index of vectors of `dim` float32. */
int vindex_new(int dim, vindex **out);
void vindex_free(vindex *v); /* NULL is fine */
/* Adds n vectors, x [n][dim]; they get the next ids, from 0. */
int vindex_add(vindex *v, int64_t n, const float *x);
int64_t vindex_count(const vindex *v);
int vindex_dim(const vindex *v);
/* For each of n queries x [n][dim] the k nearest by inner product, best first, into score [n][k] and id [n][k];
 * id -1 where there are fewer than k. */
int vindex_search(const vindex *v, int64_t n, const float *x, int64_t k, float *score, int64_t *id);
/* Vector id, into x [dim]. */
int vindex_get(const vindex *v, int64_t id, float *x);
/* FAISS's own file format; written whole under its final name. */
int vindex_save(const vindex *v, const char *path);
int vindex_load(const char *path, vindex **out);

#ifdef __cplusplus
}
#endif
#endif
