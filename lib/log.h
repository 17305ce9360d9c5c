/* log.h: messages and the progress bar, both on stderr and aware of each other.
 *
 * stdout is for results alone.  Messages read "tool: text"; warnings and errors
 * carry that word.  -q (log_quiet) hides notes and progress, never warnings.
 * Safe to call from any thread.
 */
#ifndef LIB_LOG_H
#define LIB_LOG_H

#include <stdbool.h>
#include <stdint.h>

extern bool log_quiet;           /* set by the -q option */
void log_init(const char *tool); /* the name ahead of every message */

void log_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Seconds on a monotonic clock. */
double now_s(void);
/* Seconds since 1970, with fraction. */
double wall_clock_s(void);

/* ---- progress: one at a time in a process ----
 *
 *     progress_start("rounding", n_files, "files");
 *     progress_add(1, 0);                 // from any thread
 *     progress_text("loss 1.234");        // optional tail
 *     progress_end();
 *
 * On a terminal: a bar redrawn at most ten times a second, first after half a
 * second.  Elsewhere: a plain line at 10 s, and then at growing intervals.
 * total 0: unknown.  unit "B" prints bytes as kB, MB, GB. */
void progress_start(const char *what, uint64_t total, const char *unit);
void progress_add(uint64_t done, uint64_t failed);
void progress_earlier(uint64_t done);  /* was done before: counts for the bar, not for rate and time left */
void progress_total(uint64_t total); /* once it is known, or known better */
void progress_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void progress_end(void);

/* "1.3 GB", "47 kB"; "2 h 03 min", "4 min 10 s", "3.2 s": into out, returned. */
const char *human_bytes(char out[32], double bytes);
const char *human_seconds(char out[32], double seconds);

#endif
