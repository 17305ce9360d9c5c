/* step.h: ISO 10303-21 clear text ("Part 21", STEP files): lexer, parser, writer.
 *
 * step_parse() checks the whole exchange structure and makes an index over the
 * text: entity instances with their type, parameter span and references, data
 * sections and header records.  Values stay in the text, which is borrowed;
 * step_lex() walks through them.
 *
 *     struct file_map m;
 *     struct step_file *f;
 *     if (file_map(path, 0, &m) < 0 || step_parse(path, m.data, m.size, 0, &f) < 0)
 *         return rc;                                  // "a.step:12:4: ',' or ')' is due"
 *     for (size_t i = 0; i < f->n; i++) {
 *         struct step_entity *e = &f->v[i];
 *         printf("#%lu %s\n", e->id, step_type(f, e->type));
 *         for (uint32_t k = 0; k < e->n_ref; k++)
 *             uint32_t child = f->refs[e->ref + k].target;  // index into f->v, or STEP_NONE
 *     }
 *     step_free(f);
 *
 * Grammar: ISO 10303-21:2002 (edition 2), with edition 3's ANCHOR, REFERENCE and
 * SIGNATURE sections skipped over.  Read beyond the letter of the standard, as
 * common readers do: a byte-order mark, bytes below 32 and 127 as white space,
 * reals spelt ".5", "1E3" or with a small 'e'.  Not read: &SCOPE of edition 1.
 *
 * Memory: 48 bytes an instance, 8 a reference and, where they are listed, 8 a real; no recursion; texts up to 4 GiB.
 */
#ifndef LIB_STEP_H
#define LIB_STEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/mem.h"

#define STEP_NONE UINT32_MAX
enum { STEP_MAX_DEPTH = 200 }; /* of nested parentheses */

/* ---- tokens ---- */
enum step_kind {
    STEP_END,     /* end of the text */
    STEP_BAD,     /* not a token: why says what is wrong */
    STEP_INT,     /* -12 */
    STEP_REAL,    /* 1. -1.5E-07 */
    STEP_STRING,  /* 'it''s', quotes included */
    STEP_BINARY,  /* "0F", quotes included */
    STEP_ENUM,    /* .T., dots included */
    STEP_REF,     /* #12 */
    STEP_KEYWORD, /* CARTESIAN_POINT, !USER */
    STEP_OPEN,    /* ( */
    STEP_CLOSE,   /* ) */
    STEP_COMMA,
    STEP_EQUALS,
    STEP_SEMI,
    STEP_OMITTED, /* $ */
    STEP_DERIVED, /* * */
};
struct step_token {
    const char *s; /* inside the text */
    size_t n;
    const char *why; /* STEP_BAD */
};
/* The next token at *p, skipping white space and comments; *p moves behind it. */
enum step_kind step_lex(const char **p, const char *end, struct step_token *t);
/* Where the string that opens at s (s[0] is the quote) ends: behind its closing
 * quote, or NULL if it does not. */
const char *step_string_end(const char *s, const char *end);
/* White space, comments and print control directives (\N\, \F\) skipped. */
const char *step_skip_space(const char *p, const char *end);
/* The number of a reference token ("#12"): digits, at most 18, and not the end of the text. */
uint64_t step_ref_id(const char *hash);

/* A string token's value as UTF-8, appended: '' and the directives \S\ \P\ \X\ \X2\
 * \X4\ decoded.  False if a directive is malformed (it is then copied as it stands). */
bool step_string_decode(const char *s, size_t n, struct buf *out);
/* A UTF-8 value as a string token with quotes; what is not ASCII becomes \X2\ or \X4\. */
void step_string_encode(const char *s, size_t n, struct buf *out);

/* ---- files ---- */
struct step_ref {
    uint32_t off;    /* of '#' in the text */
    uint32_t target; /* index of the instance, or STEP_NONE: no such instance */
};
struct step_entity {
    uint64_t id;           /* 0 for a header record */
    uint32_t off, len;     /* from '#' up to and with ';' */
    uint32_t par, par_len; /* between the outer parentheses; of a complex instance: its parts */
    uint32_t type;         /* for step_type() */
    uint32_t ref, n_ref;   /* refs[ref] .. refs[ref + n_ref - 1], in the order of the text */
    uint16_t section;
    bool complex;
};
struct step_section {
    uint32_t off;          /* of the word DATA */
    uint32_t par, par_len; /* edition 2's DATA('name',('SCHEMA')): between the parentheses; 0: none */
    uint32_t body, end;    /* behind "DATA;", and at ENDSEC */
    uint32_t first, n;     /* its instances */
};
struct step_real {
    uint32_t off;   /* in the text */
    uint16_t len;   /* UINT16_MAX: at least that */
    uint8_t whole;  /* digits ahead of the point; 0: it is not spelled [-]digits.digits, or has 255 on a side */
    uint8_t fraction; /* digits behind it */
};
struct step_file {
    const char *name, *text; /* borrowed */
    size_t text_n;
    struct step_entity *v; /* in the order of the text */
    size_t n;
    struct step_ref *refs;
    struct step_real *reals; /* of the instances, in the order of the text; STEP_REALS */
    size_t n_reals;
    size_t n_refs, n_dangling; /* dangling: references to instances that are not there */
    struct step_section *sections;
    size_t n_sections;
    struct step_entity *header;
    size_t n_header;
    size_t n_types;
    uint64_t max_id;
    uint32_t end; /* behind END-ISO-10303-21; */
    uint32_t n_skipped; /* sections of edition 3 */
    struct step_index *index;
};

enum {
    STEP_NO_HEADER = 1, /* a text may begin with its DATA section */
    STEP_REPEATS = 2,   /* an instance name may be defined again: the first stands for references */
    STEP_REALS = 4,     /* reals are listed */
};
/* name is for error texts ("NAME:LINE:COLUMN: ...", columns in bytes from 1); text and
 * name are borrowed until step_free().  ERR_FORMAT: not an exchange structure;
 * ERR_NOMEM: over 4 GiB. */
int step_parse(const char *name, const char *text, size_t n, unsigned flags, struct step_file **out);
void step_free(struct step_file *f); /* NULL is fine */

/* Keyword of a type: "PLANE"; of a complex instance its parts joined, "A+B+C". */
const char *step_type(const struct step_file *f, uint32_t type);
/* The type with that name, or STEP_NONE if the file has none such. */
uint32_t step_type_find(const struct step_file *f, const char *name);
/* Index of the instance with that id, or STEP_NONE. */
uint32_t step_find(const struct step_file *f, uint64_t id);
/* The header record of that keyword, or NULL. */
const struct step_entity *step_header(const struct step_file *f, const char *keyword);
/* The parts of a complex instance, one a call: *p is NULL at first.  Keyword and
 * parameters (between the parentheses) are spans of the text.  False: no more. */
bool step_part(const struct step_file *f, const struct step_entity *e, const char **p, struct step_token *keyword,
               struct step_token *params);
/* True if the instance is of that type, or complex with a part of it. */
bool step_is(const struct step_file *f, const struct step_entity *e, const char *keyword);
/* Parameter i (from 0) of "a,b,(c,d)" as a span, white space around it cut off; false if there are fewer. */
bool step_param(const char *params, size_t n, size_t i, struct step_token *out);
/* err_set(ERR_FORMAT, "NAME:LINE:COLUMN: ...") for a place in the text. */
int step_error(const char *name, const char *text, size_t n, size_t off, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* ---- writing ---- */
/* Appends the text without white space and comments (strings keep theirs, less line
 * breaks, which the standard ignores); with ids, a reference becomes ids(ctx, k-th
 * reference of the text). */
struct step_ids {
    const struct step_file *f;
    const uint64_t *of;                              /* new id of each instance */
    uint64_t (*dangling)(void *ctx, uint64_t old);   /* new id for what is not there; NULL: the old one */
    void *ctx;
    bool compact;                                    /* step_prep.h's compact form: no name, references as distances */
    uint64_t self;                                   /* set by step_put() */
};
/* "#id=TYPE(...);" of one instance, no line break; ids NULL: ids stay. */
void step_put(const struct step_file *f, const struct step_entity *e, const struct step_ids *ids, struct buf *out);
/* Any text, lean. */
void step_put_lean(const char *s, size_t n, struct buf *out);
/* The header section as "ISO-10303-21;" ... "ENDSEC;" lines, one record a line. */
void step_put_header(const struct step_file *f, struct buf *out);

/* ---- the text a language model sees ---- */
/* The part from "DATA" up to and with "END-ISO-10303-21;" (or the end of the text),
 * inside the text.  The header's strings and comments are honoured.  False if the text
 * has no data section. */
bool step_data_part(const char *text, size_t n, const char **part, size_t *part_n);
/* "ISO-10303-21;" up to the header's "ENDSEC;", six lines, always the same. */
void step_put_standard_header(struct buf *out);
/* A whole file of a generated data part: a standard AP214 header (schema
 * AUTOMOTIVE_DESIGN), then the text from its "DATA;" on (which is supplied when the text
 * begins with an instance), cut behind its first "END-ISO-10303-21;", and a line break.
 * Nothing is mended. */
void step_with_header(const char *text, size_t n, struct buf *out);

#endif
