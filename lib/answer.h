/* answer.h: from what a model wrote to a file that a CAD program opens, and what is known of it.
 *
 *     struct answer a;
 *     answer_make("part", text, n, &a);       // header, restored, read again
 *     file_write(path, a.step.s, a.step.n, false);
 *     answer_examine(path, &a);               // by OpenCASCADE, where its programs are
 *     printf("%s\n", a.checks.s);             // "204 instances, valid Part 21, no reference dangles; one closed solid"
 *     answer_release(&a);
 */
#ifndef LIB_ANSWER_H
#define LIB_ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/mem.h"

struct answer {
    struct buf step;     /* the file: as far as it could be mended, if it is not valid */
    bool valid;          /* it is a whole exchange structure */
    size_t entities, dangling;
    enum { ANSWER_UNKNOWN, ANSWER_RENDERABLE, ANSWER_NOT_RENDERABLE } shape;
    struct buf checks;   /* what was checked, and what came out, for people */
};

void answer_make(const char *name, const char *text, size_t n, struct answer *a);
/* Has renderability look at the file.  Without that program, or when it takes over `seconds`, that is said. */
void answer_examine(const char *path, double seconds, struct answer *a);
/* A picture of the file by step-render as `png`, and a mesh as `glb` (either may be NULL).  ERR_IO: the program is
 * not there; ERR_FORMAT: it cannot draw the part (says so); ERR_CANCELLED: over `seconds`. */
int answer_draw(const char *path, int size, double seconds, const char *png, const char *glb);
void answer_release(struct answer *a);

#endif
