/* wordpiece.h: BERT's tokenizer (uncased), from a folder's vocab.txt.
 *
 * Text is cleaned, split at white space and punctuation, Chinese characters set apart, lower-cased and stripped of
 * accents (NFD less category Mn); each word becomes the longest vocabulary pieces from the left ("##" marks
 * those inside a word), or [UNK].  Devlin et al., "BERT", NAACL 2019; ids equal Hugging Face's BertTokenizer.
 */
#ifndef LIB_WORDPIECE_H
#define LIB_WORDPIECE_H

#include <stddef.h>
#include <stdint.h>

#include "lib/tokenizer.h"

struct wordpiece;

int wordpiece_load(const char *dir, struct wordpiece **out); /* ERR_IO, ERR_FORMAT */
void wordpiece_free(struct wordpiece *w);                    /* NULL is fine */
/* Appends [CLS] pieces [SEP], cut to max_tokens in all.  Any number of threads at once. */
void wordpiece_encode(const struct wordpiece *w, const char *text, size_t n, size_t max_tokens, struct tok_ids *out);

#endif
