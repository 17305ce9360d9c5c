/* draft.h: guesses how a text goes on, so that a model can verify many tokens in one pass.  A wrong guess costs a column
 * of a pass and nothing else: what comes out is what the model alone would have written.
 *
 *     struct draft *d = draft_new(tok, NULL);
 *     for each token of the prompt and of the answer: draft_add(d, id);
 *     n = draft_guess(d, guess, 15, &cost);       // ahead of a pass
 *
 * It knows STEP: that instances are numbered on, that what was just written is what the next line refers to, that a loop's
 * edges meet and each is gone along twice; and it learns from the text (the retrieved part, the lines so far) what comes in
 * which place.  The restructured form of either order, the compact form and text of any other kind are all read; other
 * text is only guessed less well.  Tokens are found by the tokenizer itself, so any byte-level vocabulary does.
 *
 * A token costs some microseconds, a guess some tens; memory is 2 MB and a few bytes a token.
 */
#ifndef MODEL_DRAFT_H
#define MODEL_DRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "lib/tokenizer.h"

struct draft;

/* t (NULL: tokens are only themselves) outlives the draft.  like (NULL: none; borrowed for the call): another, of another text, whose experience
 * this one begins with. */
struct draft *draft_new(const struct tok *t, const struct draft *like);
void draft_free(struct draft *d); /* NULL is fine */
void draft_add(struct draft *d, int32_t id);

/* What verifying costs, in any unit: a pass over n columns takes pass + column n; where passes come in some sizes alone, wide has
 * those, growing and ended by a 0, and n is the least of them that will do (NULL: every n). */
struct draft_cost {
    double pass, column;
    const int *wide;
};
int64_t draft_wide(const int *wide, int64_t n);

/* Up to n tokens into out; how many.  Their number is the one that promises the most tokens for a pass's cost (cost NULL: columns are free).
 * The text as it is known is not changed. */
size_t draft_guess(struct draft *d, int32_t *out, size_t n, const struct draft_cost *cost);

#endif
