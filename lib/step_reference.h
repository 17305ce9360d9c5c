/* step_reference.h: the original project's preparation tools, to the byte.
 *
 * Published adapters were trained on what those tools make, so its quirks are kept:
 * nothing here parses Part 21, and results may be invalid (numbers rounded inside
 * strings, instances lost, references that name the wrong instance).  step_prep.h has
 * the versions that are right.
 *
 * Text is decoded as Python does: UTF-8, and where that fails Latin-1 (restructure,
 * restore) or the text less the bad bytes (round); CR and CRLF become LF (not in
 * restore).  A "digit" is any Unicode decimal digit, a "word character" any letter or
 * number.  Linear in the text; the original is exponential in shared sub-graphs.
 */
#ifndef LIB_STEP_REFERENCE_H
#define LIB_STEP_REFERENCE_H

#include "lib/mem.h"

#include <stdbool.h>
#include <stdint.h>

/* Numbers "digits.digits[E..]" anywhere in the text, to so many decimals. */
void step_reference_round(const char *text, size_t n, int decimals, struct buf *out);

struct step_reference_report {
    size_t statements;  /* "#n = ...;" candidates of the first data section */
    size_t dropped;     /* of these, not in the output */
    size_t faces;       /* dropped ones that are faces: ADVANCED_FACE, FACE_SURFACE, ... */
    /* References left with a number of the input, since what they name was dropped: */
    size_t dangling;    /* nothing in the output has that number */
    size_t aliased;     /* another instance has it now */
    size_t colours;     /* COLOUR_RGB( , ...) written: not Part 21 */
    size_t duplicates;  /* numbers given to more than one line */
    size_t unresolved;  /* #ID_k that step_reference_restore() will not resolve */
};
/* ERR_FORMAT: no "DATA;" ... "ENDSEC;". */
int step_reference_restructure(const char *name, const char *text, size_t n, struct buf *out,
                               struct step_reference_report *report);

void step_reference_restore(const char *text, size_t n, struct buf *out);

/* True if the last line, white space cut off, is END-ISO-10303-21;.  ERR_FORMAT when
 * the text is not UTF-8 (the original stops there). */
int step_reference_complete(const char *name, const char *text, size_t n, bool *complete);

/* The original's "entity count": the largest id of a line that begins "#n =". */
uint64_t step_reference_max_id(const char *text, size_t n);

#endif
