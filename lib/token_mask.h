/* token_mask.h: what a decoder asks of whoever constrains its text.
 *
 * One struct token_mask a sequence.  A decoder that has chosen a token (greedily or by sampling) first asks
 * allows(), which costs a fraction of a microsecond; only when the answer is no does it need fill() and a second
 * choice among the allowed tokens from the same logits.  Greedy, that is the best allowed token; sampled, it is
 * the distribution restricted to the allowed tokens, exactly:  p(t) + (1 - Z) p(t) / Z = p(t) / Z,  where Z is
 * the allowed tokens' share.  So the device need not wait for a mask in steps where the model is right.
 *
 *     id = choose(logits, NULL);
 *     if (m->allows && !m->allows(m->ctx, id, left)) {
 *         m->fill(m->ctx, left, bits);            // at least one bit is set
 *         id = choose(logits, bits);
 *         changed++;
 *     }
 *     m->take(m->ctx, id);
 *     if (m->done(m->ctx)) ...                    // the text is complete
 *
 * left: how many tokens may still be appended, this one and an end-of-text token included.  It must not shrink
 * by more than one a token: the provider plans with it.
 *
 * Drafts: mark() and rollback() let a decoder take() a draft's tokens to get each position's mask, and go back.
 */
#ifndef LIB_TOKEN_MASK_H
#define LIB_TOKEN_MASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct token_mask {
    void *ctx;
    size_t n_words; /* of 32 bits in a mask: one bit for each id of the tokenizer, set: allowed */
    bool (*allows)(void *ctx, int32_t id, int64_t left);
    void (*fill)(void *ctx, int64_t left, uint32_t *bits);
    void (*take)(void *ctx, int32_t id);
    bool (*done)(void *ctx);
    /* mark() gives a place (TOKEN_MASK_MARK bytes, aligned to 8) to which rollback() returns; places nest. */
    void (*mark)(void *ctx, void *place);
    void (*rollback)(void *ctx, const void *place);
};
enum { TOKEN_MASK_MARK = 512 }; /* bytes of a place */

#endif
