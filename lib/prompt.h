/* prompt.h: the two prompt templates, to the byte, and their tokens.
 *
 * With retrieval (two blank lines after the first paragraph):
 *
 *     You are a CAD model generation assistant trained to produce STEP (.step) files based
 *     on textual descriptions. Given the following object description and relevant retrieved
 *     CAD data, generate a STEP file that accurately represents the described object.
 *     <blank>
 *     <blank>
 *     ### caption:
 *     {caption}
 *     <blank>
 *     ### retrieved relevant step file:
 *     {retrieved}
 *     <blank>
 *     ### output:
 *     {output}
 *
 * (the first paragraph is one line).  Without: "... the following object description,
 * generate ...", one blank line after it, no retrieved section.
 *
 * Adapters are bound to the template they were trained with: sft leaves prompt.json beside them,
 * {"template": "retrieval" or "plain", "max_tokens": N, "form": "named" or "compact"}; without "form" the text
 * has instance names (step_prep.h has the compact form).
 */
#ifndef LIB_PROMPT_H
#define LIB_PROMPT_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/mem.h"
#include "lib/tokenizer.h"

/* Appends the prompt up to and including "### output:\n"; retrieved NULL: the template
 * without retrieval. */
void prompt_text(const char *caption, const char *retrieved, struct buf *out);

/* The prompt's ids as generation starts from: prompt_text() with the tokenizer's own
 * special tokens in front. */
int prompt_encode(const struct tok *t, const char *caption, const char *retrieved, struct tok_ids *out);

/* Prompt, output and EOS as training sees them.  The text is tokenised in one go; *response
 * is the index of the first token that the loss covers: the first one that starts at or
 * after the byte that follows "### output:\n" of the template (so a marker spelt in a caption does
 * not count, and a token that straddles, as with an output that starts with a line
 * break, is context).  EOS is the last id and always covered.  The ids are appended to out;
 * *response counts from out's start.  ERR_FORMAT when the tokenizer has no EOS. */
int prompt_encode_training(const struct tok *t, const char *caption, const char *retrieved, const char *output,
                           struct tok_ids *out, size_t *response);

/* Which template the weights in a folder were trained with, by its prompt.json: *known is false when
 * there is none (as beside others' models).  ERR_FORMAT. */
int prompt_template_read(const char *dir, bool *known, bool *retrieval);

/* The adapters that the original's authors released: each was trained on one base model and with one prompt, works with
 * no other, and its own files do not say which.  They write the original's form of STEP text. */
struct prompt_release {
    const char *repo, *base; /* on the hub */
    bool retrieval;
};
const struct prompt_release *prompt_release_of(const char *repo); /* NULL: none of them */
/* Of a folder: by what hub-fetch noted in .hub.json, or merge-lora in prompt.json ("release"), else by the name of
 * the folder (or repository, as in a cache of Hugging Face's).  prompt_template_read() goes by this, too. */
const struct prompt_release *prompt_released(const char *dir);
/* ERR_USAGE when the folder of the model is known (.hub.json) not to be the one that a released adapter was trained on. */
int prompt_check_base(const char *adapter, const char *model);

/* Whether they write STEP in the compact form.  ERR_FORMAT. */
int prompt_form_read(const char *dir, bool *compact);

#endif
