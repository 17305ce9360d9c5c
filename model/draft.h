/* draft.h: guesses how a text goes on from what it has said before ("prompt lookup": the retrieved part and the
 * part's own lines are the draft).  A guess costs nothing when wrong: the model verifies all of it in one step.
 *
 * The longest earlier match of the text's end is found, and what followed it there is the guess.
 */
#ifndef MODEL_DRAFT_H
#define MODEL_DRAFT_H

#include <stddef.h>
#include <stdint.h>

enum { DRAFT_MAX_GROUP = 1024 };

struct draft;

struct draft *draft_new(void);
void draft_free(struct draft *d); /* NULL is fine */
void draft_add(struct draft *d, int32_t id);
/* Up to n tokens into out; how many. */
size_t draft_guess(const struct draft *d, int32_t *out, size_t n);

#endif
