/* draft.h: guesses how a text goes on from what it has said before ("prompt lookup": the retrieved part and the
 * part's own lines are the draft).  A guess costs next to nothing when wrong: the model verifies all of it in one step.
 *
 * The longest earlier match of the text's end is found, and what followed it there is the guess.  In Part 21
 * that would fail at every number of an entity, so those are matched by their distance: #17 in the line of #20 is
 * "three back", #20= behind #19 is "the next".
 */
#ifndef MODEL_DRAFT_H
#define MODEL_DRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "lib/tokenizer.h"

struct draft;

/* t (NULL: numbers are nothing special) outlives the draft. */
struct draft *draft_new(const struct tok *t);
void draft_free(struct draft *d); /* NULL is fine */
void draft_add(struct draft *d, int32_t id);
/* Up to n tokens into out; how many. */
size_t draft_guess(const struct draft *d, int32_t *out, size_t n);

#endif
