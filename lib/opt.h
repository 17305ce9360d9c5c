/* opt.h: one table makes the command-line parser, --help and the config keys.
 *
 *     static struct opt options[] = {
 *         OPT_STR_("out", 0, &out, "DIR", "where to write", OPT_REQUIRED),
 *         ...
 *     };
 *
 * An option `name` is `--name VALUE` (or --name=VALUE) on the command line,
 * `-o name=VALUE`, and `name = VALUE` in a config file; '-' and '_' are the same
 * in names.  The command line beats the config file, which beats the default (the
 * variable's value before parsing).  A key that no option has is an error that
 * names the nearest one.
 *
 * Config files: "key = value" lines, '#' comments, "[tool]" sections.  Keys ahead
 * of the first section are for every tool that has such an option (and skipped by
 * others); keys in [sft] are for sft and must be sft's options.  Values may be
 * quoted with "".  Lists repeat the key.
 */
#ifndef LIB_OPT_H
#define LIB_OPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/mem.h"

enum opt_type {
    OPT_FLAG, /* bool; --name, --no-name, name=true|false */
    OPT_INT,  /* int64_t; k, M, G suffixes (1000s) */
    OPT_REAL, /* double */
    OPT_STR,  /* const char *, NULL if unset */
    OPT_LIST, /* struct opt_list, repeated */
};

enum {
    OPT_REQUIRED = 1,
    OPT_NO_KEY = 2, /* does not change what the tool computes (-j, -q): not part of a run's identity */
    OPT_HIDDEN = 4, /* not in --help */
};

struct opt_list {
    const char **v;
    size_t n, cap;
};

struct opt {
    const char *name;
    char letter; /* 0: none */
    enum opt_type type;
    void *value;
    const char *arg;     /* what the help calls the value */
    const char *help;
    unsigned flags;
    const char *choices; /* OPT_STR: "strict|reference"; NULL: any */
    double min, max;     /* OPT_INT, OPT_REAL: allowed range; both 0: any */
    bool set;            /* out: given on the command line or in a config */
};

/* Result of parsing: positional arguments, in order (borrowed from argv). */
struct opt_args {
    const char **v;
    size_t n, cap;
};

/* Parses argv[1..] into the options of the NULL-name-terminated tables (two: the
 * tool's, and the common ones; either may be NULL).  Values live as long as the
 * process.  ERR_USAGE with the text to show. */
int opt_parse(struct opt *const tables[], int n_tables, int argc, char **argv, struct opt_args *args);

/* Applies one "name=value".  `where` names its origin in errors ("-o", "a.conf:3"). */
int opt_assign(struct opt *const tables[], int n_tables, const char *where, const char *name, const char *value);

/* Reads a config file for `tool`.  Options already set (by the command line) keep
 * their value.  known_tools: NULL-terminated names allowed as sections. */
int opt_config(struct opt *const tables[], int n_tables, const char *path, const char *tool,
               const char *const *known_tools);

/* ERR_USAGE naming the first OPT_REQUIRED option without a value. */
int opt_check_required(struct opt *const tables[], int n_tables);

/* "  --out DIR          where to write" lines. */
void opt_help(const struct opt *table, struct buf *out);
/* An option's present value as text: 1e-05, true, bf16; of a list, "q_proj v_proj". */
void opt_value(const struct opt *o, struct buf *out);
/* Resolved "name = value" lines; for_key leaves out OPT_NO_KEY options. */
void opt_dump(const struct opt *table, bool for_key, struct buf *out);

#endif
