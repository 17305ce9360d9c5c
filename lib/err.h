/* err.h: the one error type of this project.
 *
 * Library functions return int: ERR_OK (0) or one of the negative codes below,
 * with a text for people in a thread-local buffer.  The library never prints
 * and never exits; only a main() does.
 *
 *     if (!f)
 *         return err_set(ERR_IO, "%s: %s", path, strerror(errno));
 *     ...
 *     if (step_read(path, &file) < 0)
 *         return err_wrap("chunk %d", chunk);     // "chunk 3: a.step:12:4: ..."
 *
 * The text belongs to the thread that failed.  A worker that hands its result
 * to another thread copies the text (see pool.h).
 */
#ifndef LIB_ERR_H
#define LIB_ERR_H

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ERR_OK = 0,
    ERR_USAGE = -1,     /* the caller (or the command line, or a config) is wrong */
    ERR_IO = -2,        /* file system, network, database */
    ERR_FORMAT = -3,    /* the input's bytes are not what they should be */
    ERR_NOMEM = -4,     /* out of (host or device) memory, or over a stated limit */
    ERR_EXTERN = -5,    /* a library failed: OpenCASCADE, ATen, FAISS, ... */
    ERR_CANCELLED = -6, /* stopped by a signal or by the caller */
};

/* Sets this thread's text, printf style, and returns code, so that
 * `return err_set(...)` reads well.  The text is cut at 1023 bytes.
 * Arguments may point into the present err_text(). */
int err_set(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "PREFIX: " ahead of the present text and returns the present code. */
int err_wrap(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The text of this thread's last error; "" when there was none.  Borrowed until
 * this thread's next err_set(). */
const char *err_text(void);

/* The code of this thread's last error; ERR_OK when there was none. */
int err_code(void);

void err_clear(void);

#ifdef __cplusplus
}
#endif
#endif
