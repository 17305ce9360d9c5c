/* encoder.h: sentence embeddings by all-MiniLM-L6-v2's architecture: BertModel, mean pooling, L2 norm.
 *
 *     x = layer_norm(word + position + type) ; per layer (post-norm):
 *     x = layer_norm(x + attention(x) Wo) ;  x = layer_norm(x + gelu(x Wi) Wf)
 *     e = mean over the tokens of x ;  e / |e|
 *
 * (Reimers, Gurevych, "Sentence-BERT", EMNLP 2019; MiniLM, arXiv 2002.10957.)  Call from one thread at a time;
 * batches are spread over the cores, each by itself, which beats splitting every operator among them.
 */
#ifndef MODEL_ENCODER_H
#define MODEL_ENCODER_H

#include <stddef.h>
#include <stdint.h>

struct encoder;

/* dir: a sentence-transformers folder (config.json, model.safetensors, vocab.txt).  ERR_FORMAT for another architecture. */
int encoder_load(const char *dir, struct encoder **out);
void encoder_free(struct encoder *e); /* NULL is fine */
int encoder_dim(const struct encoder *e);
void encoder_set_threads(struct encoder *e, int n); /* 0, as at first: one a core */
/* Embeds n texts into out [n][dim] float32, unit length, sorted into batches of like length; a text is cut
 * after 256 tokens.  Progress is the caller's: `progress` (or NULL) is called with the number done; a
 * negative answer stops. */
int encoder_embed(struct encoder *e, const char *const *texts, size_t n, float *out, int (*progress)(size_t done));

#endif
