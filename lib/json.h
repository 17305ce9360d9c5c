/* json.h: the one JSON writer.  Reading is jansson's (<jansson.h>), with
 * json_read_file() below for files with a size limit and a good error.
 *
 * Writes into a struct buf; commas and escapes are its business:
 *
 *     struct jw j = JW_INIT(&b);
 *     jw_object(&j);
 *     jw_key(&j, "file");  jw_str(&j, path);
 *     jw_kv_real(&j, "cd", 0.25);          // NaN and infinities become null
 *     jw_end(&j);                          // b: {"file":"a.step","cd":0.25}
 *
 * Strings that are not UTF-8 have each bad byte replaced by U+FFFD, so the
 * output is always valid JSON.  Reals print in the fewest digits that read back
 * to the same double.
 */
#ifndef LIB_JSON_H
#define LIB_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/mem.h"

enum { JW_MAX_DEPTH = 32 };

struct jw {
    struct buf *out;
    int depth;
    int indent;      /* 0: compact; n: n spaces a level, as Python's json.dump(indent=n) */
    bool ascii;      /* non-ASCII as \uXXXX, as Python's ensure_ascii */
    bool after_key;
    struct {
        char close;
        bool any;
    } level[JW_MAX_DEPTH];
};
#define JW_INIT(b) ((struct jw){.out = (b)})

void jw_object(struct jw *j);
void jw_array(struct jw *j);
void jw_end(struct jw *j); /* closes the innermost object or array */
void jw_key(struct jw *j, const char *key);
void jw_str(struct jw *j, const char *s); /* NULL writes null */
void jw_strn(struct jw *j, const char *s, size_t n);
void jw_int(struct jw *j, int64_t v);
void jw_real(struct jw *j, double v);
void jw_bool(struct jw *j, bool v);
void jw_null(struct jw *j);
void jw_raw(struct jw *j, const char *json); /* json is a whole JSON value */

static inline void jw_kv_str(struct jw *j, const char *k, const char *v) { jw_key(j, k); jw_str(j, v); }
static inline void jw_kv_int(struct jw *j, const char *k, int64_t v) { jw_key(j, k); jw_int(j, v); }
static inline void jw_kv_real(struct jw *j, const char *k, double v) { jw_key(j, k); jw_real(j, v); }
static inline void jw_kv_bool(struct jw *j, const char *k, bool v) { jw_key(j, k); jw_bool(j, v); }

/* The shortest decimal that reads back as v ("0.1", "1e-07", "12.0"), as
 * Python's repr; out has room for 32. */
const char *real_repr(char out[32], double v);

/* Parses a whole JSON file of at most max_bytes.  ERR_IO, ERR_NOMEM (too big) or
 * ERR_FORMAT with file, line and column.  The caller json_decref()s *out. */
int json_read_file(const char *path, size_t max_bytes, json_t **out);
/* Likewise from memory; name is for the error text. */
int json_read_mem(const char *name, const char *s, size_t n, json_t **out);

#endif
