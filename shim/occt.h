/* occt.h: STEP files through OpenCASCADE, as batch calls that fill plain arrays.
 *
 *     struct part_request q = {.flags = PART_MESH | PART_PROPERTIES, .deflection = 0.1};
 *     struct part p;
 *     occ_load("a.step", NULL, 0, &q, &p);
 *     if (p.status != PART_OK) puts(p.reason);
 *     part_release(&p);
 *
 * OpenCASCADE may crash or hang on a hostile file: call these in a worker of
 * lib/isolate.h (occ_work) unless the file is our own.  Not thread-safe: one call
 * at a time in a process.  Nothing is printed; messages of its reader come back in
 * part.messages.  Works with OpenCASCADE 7.6 and later.
 */
#ifndef SHIM_OCCT_H
#define SHIM_OCCT_H

#include <stddef.h>

#include "lib/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct buf;
struct part;
struct part_request;

/* Reads, transfers, meshes and measures (see lib/part.h).  text NULL: the file `name`;
 * else text is the file and name only names it.  What is wrong with the file is in
 * out->status; a negative code is the program's own failure (ERR_NOMEM).  out is to be
 * part_release()d either way. */
int occ_load(const char *name, const char *text, size_t n, const struct part_request *q, struct part *out);

/* work() of lib/isolate.h for jobs made by part_job(); the result is for part_decode(). */
int occ_work(void *ctx, const char *job, size_t n, struct buf *out);

/* Takes away the printers that write to standard output.  Other shims call it first. */
void occ_quiet(void);

#ifdef __cplusplus
}
#endif
#endif
