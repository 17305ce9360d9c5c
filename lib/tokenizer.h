/* tokenizer.h: byte-level BPE as in Hugging Face's tokenizer.json.
 *
 *     struct tok *t;
 *     if (tok_load("models/qwen", &t) < 0) ...       // a folder, or a tokenizer.json
 *     struct tok_ids ids = {0};
 *     tok_encode(t, text, n, true, &ids);            // true: with BOS where the file says so
 *     tok_decode(t, ids.v, ids.n, true, &out);
 *     tok_ids_release(&ids);
 *     tok_free(t);
 *
 * The ids are those of Hugging Face's `tokenizers` for the same file.  What is
 * understood: model BPE over GPT-2's byte alphabet (with ignore_merges), normalizer
 * NFC, pre-tokenizers Split, ByteLevel, Digits and Sequences of them, added tokens with
 * all their flags, post-processors TemplateProcessing, ByteLevel, RobertaProcessing.
 * Anything else in the file is ERR_FORMAT naming it, never skipped.
 *
 * BPE: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with
 * Subword Units", ACL 2016; the byte alphabet: Radford et al., "Language Models are
 * Unsupervised Multitask Learners", 2019.  A word of n bytes costs O(n log n).
 *
 * A loaded tokenizer may be used by any number of threads at once.
 *
 * Text that is not UTF-8 has each bad sequence read as U+FFFD (as Python's
 * errors="replace"), since the patterns are defined on characters.
 */
#ifndef LIB_TOKENIZER_H
#define LIB_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/mem.h"

struct tok;
struct json_t;

/* Growing list of token ids; {0} is empty. */
struct tok_ids {
    int32_t *v;
    size_t n, cap;
};
void tok_ids_add(struct tok_ids *l, int32_t id);
void tok_ids_release(struct tok_ids *l); /* frees; empty and usable again */

/* path: a folder with tokenizer.json (and tokenizer_config.json, generation_config.json,
 * config.json, which tell BOS, EOS and stop tokens), or the tokenizer.json itself, whose
 * folder is then looked into likewise.  ERR_IO, ERR_FORMAT with file and field, ERR_NOMEM. */
int tok_load(const char *path, struct tok **out);
/* From a parsed tokenizer.json (borrowed); name is for error texts.  BOS, EOS and pad are -1. */
int tok_load_json(const char *name, const struct json_t *root, struct tok **out);
void tok_free(struct tok *t); /* NULL is fine */

/* Appends the ids of text[0..n) to out.  add_special: what the post-processor puts
 * around a text (Llama: one BOS in front; Qwen: nothing).  Added tokens that are
 * spelt out in the text become their ids either way.  ERR_NOMEM: text of 2 GiB or more;
 * ERR_FORMAT: a byte for which the vocabulary has no token. */
int tok_encode(const struct tok *t, const char *text, size_t n, bool add_special, struct tok_ids *out);

/* Likewise; *first becomes the index in out of the first token that starts at or after
 * byte `mark` of text (out->n if none does).  A token that straddles the mark counts as
 * before it.  The byte ahead of the mark must be ASCII (normalisation stops there). */
int tok_encode_mark(const struct tok *t, const char *text, size_t n, bool add_special, size_t mark,
                    struct tok_ids *out, size_t *first);

/* Calls word() for each piece that BPE would work on, after normalisation and pre-tokenizer:
 * what training counts.  The pieces are borrowed for the call. */
int tok_words(const struct tok *t, const char *text, size_t n, void (*word)(void *ctx, const char *p, size_t n),
              void *ctx);

/* Appends the text of ids to out, bytes that are not UTF-8 as U+FFFD; skip_special leaves
 * out special tokens.  As Hugging Face's, but that an added token is its own text also if that
 * could be read in the byte alphabet ("caf\u00e9" there comes out as "caf\ufffd").  ERR_FORMAT: an id out of range (ids without a token give nothing). */
int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct buf *out);

/* Decoding as tokens arrive: bytes of an unfinished character wait for the next token.
 * {0} is a fresh stream.  The pieces together equal tok_decode() of all ids. */
struct tok_stream {
    unsigned char pending[8];
    int n_pending;
};
int tok_stream_push(const struct tok *t, struct tok_stream *s, int32_t id, bool skip_special, struct buf *out);
void tok_stream_end(struct tok_stream *s, struct buf *out);

/* Highest id + 1, added tokens included (a model's embedding may have more rows). */
int32_t tok_n_ids(const struct tok *t);
/* Ids from tokenizer_config.json or, failing that, generation_config.json and config.json;
 * -1 if nothing names one.  tok_eos() is what training appends. */
int32_t tok_bos(const struct tok *t);
int32_t tok_eos(const struct tok *t);
int32_t tok_pad(const struct tok *t);
/* True for every id that ends generation: tok_eos() and the eos_token_id list. */
bool tok_is_stop(const struct tok *t, int32_t id);
bool tok_is_special(const struct tok *t, int32_t id);
/* The id of an added token, or of a vocabulary entry as spelt in the file; -1 if none. */
int32_t tok_find(const struct tok *t, const char *token);
/* The bytes that id stands for (borrowed, not NUL-terminated); NULL when it has none. */
const char *tok_bytes(const struct tok *t, int32_t id, size_t *n);
/* Appends bytes as they are spelt in a tokenizer.json: in GPT-2's byte alphabet. */
void tok_spell(const char *bytes, size_t n, struct buf *out);

#endif
