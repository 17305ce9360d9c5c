/* grammar.h: which tokens may come next, so that a text becomes a valid data section: DATA; ... END-ISO-10303-21;
 *
 *     struct grammar *g;
 *     struct grammar_state *s;
 *     grammar_new(tok, &(struct grammar_opts){0}, &g);
 *     grammar_state_new(g, max_new_tokens, &s);
 *     for (;;) {
 *         id = choose(logits, NULL);
 *         if (!grammar_permits(s, id)) {          // a fraction of a microsecond
 *             grammar_fill(s, words, n_words);    // some microseconds
 *             id = choose(logits, words);
 *         }
 *         grammar_accept(s, id);
 *         if (grammar_done(s)) break;
 *     }
 *
 * What holds for every text that comes out, whatever chooses the tokens:
 *   - it is Part 21, in the form of step-restructure (or of the original's restructurer), numbered 1, 2, 3 ... by line,
 *     or the compact form of it;
 *   - keywords, number and kind of parameters, and values of enumerations are those of an entity table (schema.h);
 *   - every reference names an instance above it, or (promises) one that does come later;
 *   - it ends within the budget: near its end only what still leaves room to close is permitted.
 *
 * How: an automaton over bytes with a stack for parentheses runs over a trie of the vocabulary's tokens.  What does
 * not depend on numbers (of instances) is computed once for each state of the automaton and kept; only tokens that
 * hold digits of an instance's name are looked at anew each time.  The tokens still needed are bounded from above
 * in each state: every byte of the shortest way out is a token of its own, and one of them is always permitted.
 *
 * A grammar may be used by several threads (it has a lock), a state by one at a time.
 */
#ifndef LIB_GRAMMAR_H
#define LIB_GRAMMAR_H

#include "lib/schema.h"
#include "lib/token_mask.h"
#include "lib/tokenizer.h"

struct grammar;
struct grammar_state;

struct grammar_opts {
    const struct schema *schema; /* NULL: schema_known() */
    bool promises;               /* references may name what comes later (parent-first) */
    bool reference;              /* white space, comments and #ID_k keys as the original's restructurer writes them */
    bool compact;                /* step_prep.h's compact form, children first */
    bool typed;                  /* references only to types that the table has seen there; not with promises */
};

/* The tokenizer outlives the grammar.  ERR_FORMAT: it has no token for some byte that is needed, or the table is
 * of no use (has no instance without references). */
int grammar_new(const struct tok *t, const struct grammar_opts *o, struct grammar **out);
void grammar_free(struct grammar *g); /* NULL is fine; its states are freed first */
size_t grammar_words(const struct grammar *g); /* of 32 bits, in a mask */

/* budget: tokens that may come, an end token included.  ERR_USAGE: it holds no text at all (says how many do). */
int grammar_state_new(struct grammar *g, int64_t budget, struct grammar_state **out);
void grammar_state_free(struct grammar_state *s); /* NULL is fine */
bool grammar_permits(struct grammar_state *s, int32_t id);
/* Bit id % 32 of word id / 32; at least one is set.  Words behind grammar_words() are left alone. */
void grammar_fill(struct grammar_state *s, uint32_t *words, size_t n_words);
/* id is one that is permitted; false if it is not (nothing happens then). */
bool grammar_accept(struct grammar_state *s, int32_t id);
/* The text is whole: nothing but an end token is permitted. */
bool grammar_done(const struct grammar_state *s);
int64_t grammar_left(const struct grammar_state *s); /* of the budget */
int64_t grammar_need(const struct grammar_state *s); /* tokens that closing takes at most, an end token included */
uint64_t grammar_entities(const struct grammar_state *s);
/* The same as a decoder wants it (s is its ctx, and lives as long). */
void grammar_token_mask(struct grammar_state *s, struct token_mask *out);
/* What the automaton waits for, for messages and tests: "a value", "';'", ... */
const char *grammar_awaits(const struct grammar_state *s);

#endif
