/* retrieval.h: captions, their embeddings and the nearest of them: what prep/rag-pairs and infer/generate share. */
#ifndef MODEL_RETRIEVAL_H
#define MODEL_RETRIEVAL_H

#include <stddef.h>

#include "model/encoder.h"

/* Embeddings of n texts into fresh memory [n][dim], which the caller frees.  Equal texts are embedded once.  With
 * cache (a path, or NULL) they are read from that safetensors file when it is of these very texts and this
 * encoder, and written there otherwise. */
int retrieval_embed(struct encoder *e, const char *encoder_dir, const char *const *texts, size_t n, const char *cache,
                    float **out);

/* The k best of n vectors [n][dim] by inner product with q, best first; equal scores by ascending index.
 * Returns how many (at most k). */
size_t retrieval_nearest(const float *vectors, size_t n, int dim, const float *q, size_t k, size_t *index, float *score);

/* ---- a library of parts: pair records (train.json), to find what is like a caption ----
 *
 * As the original: the caption's embedding against those of the records' captions by cosine, the five nearest, of which
 * the first is taken that has a STEP file and is not the part itself. */
struct retrieval;
enum { RETRIEVAL_NEAREST = 5 };
struct retrieval_hit {
    const char *id, *caption, *part; /* borrowed from the library; part "" if there is none */
    float cosine;
};
/* Embeddings are kept beside the records as PAIRS.embeddings.safetensors (see retrieval_embed()).  ERR_USAGE without
 * encoder_dir. */
int retrieval_open(const char *pairs, const char *encoder_dir, struct retrieval **out);
void retrieval_close(struct retrieval *r); /* NULL is fine */
/* The nearest, best first: *n of them.  *use: index of the one to take, -1 if none may be; self: the id never to
 * take (NULL: none). */
int retrieval_find(struct retrieval *r, const char *caption, const char *self, struct retrieval_hit hit[RETRIEVAL_NEAREST],
                   size_t *n, int *use);

#endif
