/* occt_xde.h: what a STEP file says besides shapes, to tell whether two files say the same: units, names, colours.
 *
 * As occt.h: in a worker of lib/isolate.h, one call at a time in a process.
 */
#ifndef SHIM_OCCT_XDE_H
#define SHIM_OCCT_XDE_H

#ifdef __cplusplus
extern "C" {
#endif

struct buf;

/* Appends a text that does not depend on the order or the numbers of the file's instances: a line for each length,
 * angle and solid angle unit, one for each product (name, how many solids, faces, edges, vertices; components) and
 * one for each different colour with the number of shapes of each kind that have it.  ERR_FORMAT if OpenCASCADE cannot read
 * the file. */
int occ_describe(const char *path, struct buf *out);

#ifdef __cplusplus
}
#endif
#endif
