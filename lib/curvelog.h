/* curvelog.h: a training run's curves in files that other programs read: DIR/metrics.csv and TensorBoard's
 * events in DIR/tensorboard/.
 *
 *     curvelog_open("runs/qwen", names, n, resumed, &log);  // names: "loss", "lr", ...; columns of the table
 *     curvelog_row(log, step, values);                      // NaN: an empty cell, no event
 *     curvelog_close(log);
 *
 * A run that goes on after step `resumed` cuts both there (a killed one may have written more than it saved).
 */
#ifndef LIB_CURVELOG_H
#define LIB_CURVELOG_H

#include <stddef.h>
#include <stdint.h>

struct curvelog;

/* names: borrowed while it is open.  resumed: -1 for a new run.  ERR_IO. */
int curvelog_open(const char *dir, const char *const *names, size_t n, int64_t resumed, struct curvelog **out);
int curvelog_row(struct curvelog *l, int64_t step, const double *values);
void curvelog_close(struct curvelog *l); /* NULL is fine */

#endif
