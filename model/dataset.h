/* dataset.h: training sequences of a pair-record file, as token ids. */
#ifndef MODEL_DATASET_H
#define MODEL_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/tokenizer.h"
#include "model/transformer.h"

struct dataset {
    struct sequence *v;  /* ids point into memory of the dataset */
    char **id;           /* id_original */
    size_t n, cap;
    size_t n_long;       /* records over the limit: dropped, or cut when truncate */
    size_t n_empty;      /* records without a token that the loss covers: dropped */
    uint64_t n_tokens;
    bool compact;           /* the outputs are in the compact form of step_prep.h */
    uint64_t digest;     /* of ids and tokens: tells whether the data is what a checkpoint saw */
};

/* Reads a pair-record file with the prompt template of lib/prompt.h, with or without the retrieved part, and
 * EOS.  Records of more than max_tokens are dropped, or cut at the end with `truncate`.  ERR_IO, ERR_FORMAT. */
int dataset_read(const char *path, const struct tok *t, bool rag, int64_t max_tokens, bool truncate, struct dataset *out);
void dataset_release(struct dataset *d);

/* Packs n sequences into passes of at most max_tokens together (a longer one is a pass of its own), the first in which each fits,
 * long ones first.  pass [n]: of each.  Returns how many passes there are. */
size_t dataset_pack(const struct sequence *v, size_t n, size_t max_tokens, size_t *pass);

#endif
