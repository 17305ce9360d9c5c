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

#endif
