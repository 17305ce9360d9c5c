/* faiss.h: exact inner-product search by FAISS, for C.
 *
 * Over FAISS's own C API (faiss_IndexFlatIP_new_with(), faiss_Index_search(), ...; faiss_c_api.cc has the objects that
 * Debian's package lacks), whose headers leave unprefixed names behind: they are included in faiss_index.c alone.  Codes and
 * texts by lib/err.h.  An index may be searched from several threads at once, not while it is added to.
 *
 *     vindex *v;
 *     if (vindex_load(path, &v) < 0 || !vindex_holds(v, n, dim, x))
 *         ... vindex_new(dim, &v), vindex_add(v, n, x), vindex_save(v, path);
 *     vindex_search(v, 1, query, 5, score, id);
 *     vindex_free(v);
 */
#ifndef SHIM_FAISS_H
#define SHIM_FAISS_H

#include <stdbool.h>
#include <stdint.h>

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
/* Whether these very vectors are in it, x [n][dim], and no others: a saved index that is not stale. */
bool vindex_holds(const vindex *v, int64_t n, int dim, const float *x);
/* FAISS's own file format; written whole under its final name. */
int vindex_save(const vindex *v, const char *path);
/* ERR_FORMAT: no index, another kind of index, or a damaged one (told from its size, before FAISS believes its numbers). */
int vindex_load(const char *path, vindex **out);

#endif
