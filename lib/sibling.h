/* sibling.h: other programs of this project, run beside this one.
 *
 * What links OpenCASCADE is apart from what links CUDA: generate and serve have parts drawn and examined by the
 * programs step-render and renderability that lie in their own folder, where there are any.
 */
#ifndef LIB_SIBLING_H
#define LIB_SIBLING_H

#include <stdbool.h>

#include "lib/mem.h"

bool sibling_there(const char *tool);
/* Runs it to its end, with args (NULL-terminated, without the program's name); what it prints on stdout is appended to
 * out (NULL: dropped), what it says on stderr is dropped.  *exit_code: as a shell tells it.  ERR_IO: it is not
 * there or cannot be started; ERR_CANCELLED: it took over so many seconds and was ended. */
int sibling_run(const char *tool, const char *const *args, double seconds, struct buf *out, int *exit_code);

#endif
