/* schema.h: which entities occur in STEP data, and with what parameters: learnt from files, kept as a table.
 *
 *     struct schema *s = schema_new();
 *     schema_learn(s, file);                  // any number of parsed files
 *     schema_write(s, &out);                  // lib/schema.tsv is such a table, of the files that we have
 *
 * A table is text, one line each, fields between tabs:
 *
 *     s  NAME  COUNTS  PATTERN...             an instance NAME(...) with so many parameters ("3", "2,3")
 *     p  NAME  COUNTS  PATTERN...             the same as a part of a complex instance
 *     c  A+B+C                                a complex instance of these parts, in this order
 *
 * A pattern names what was seen in that place, alternatives between '|':
 *
 *     $  *  int  real  str  bin  .VALUE.  #TYPE  LENGTH_MEASURE(pattern)  [least,most:pattern]  (most 0: any number)
 *
 * Learnt a little wider than seen: both truth values where one was seen; lists of up to three numbers keep
 * their lengths, others may be of any length from 1, and empty only where an empty one was seen.
 */
#ifndef LIB_SCHEMA_H
#define LIB_SCHEMA_H

#include "lib/step.h"

enum schema_kind {
    SCHEMA_OMITTED = 1,
    SCHEMA_DERIVED = 2,
    SCHEMA_INT = 4,
    SCHEMA_REAL = 8,
    SCHEMA_STRING = 16,
    SCHEMA_BINARY = 32,
    SCHEMA_ENUM = 64,
    SCHEMA_REF = 128,
    SCHEMA_LIST = 256,
    SCHEMA_TYPED = 512,
};
enum { SCHEMA_MAX_PARAMS = 64, SCHEMA_MAX_DEPTH = 5 }; /* of nested lists and typed values */

struct schema_pattern;
struct schema_typed {
    char *name;
    struct schema_pattern *value;
};
struct schema_pattern {
    unsigned kinds;            /* of enum schema_kind */
    char **enums;              /* without their dots, sorted */
    char **types;              /* of what is referred to: "PLANE", "A+B"; sorted */
    size_t n_enums, enum_cap, n_types, type_cap;
    struct schema_typed *typed; /* sorted by name */
    size_t n_typed, typed_cap;
    struct schema_pattern *elem; /* of lists */
    uint32_t min, max;           /* elements; max 0: any number */
};
struct schema_entity {
    char kind;                 /* 's', 'p', 'c' */
    char *name;
    uint64_t counts;           /* bit n - 1: n parameters occur; bit 63: none */
    struct schema_pattern *param;
    size_t n_params;
};
struct schema {
    struct schema_entity *v;   /* sorted by kind and name */
    size_t n, cap;
};

struct schema *schema_new(void);
void schema_free(struct schema *s); /* NULL is fine */
/* Adds what a file holds.  Returns how many instances were left out, being nested too deep or of too many parameters. */
size_t schema_learn(struct schema *s, const struct step_file *f);
void schema_write(const struct schema *s, struct buf *out);
/* Adds a table's lines.  ERR_FORMAT names the line. */
int schema_read(struct schema *s, const char *name, const char *text, size_t n);
/* The table that is part of the program (lib/schema.tsv). */
const struct schema *schema_known(void);
const struct schema_entity *schema_find(const struct schema *s, char kind, const char *name, size_t n);

#endif
