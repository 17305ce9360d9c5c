#include "lib/csv.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"

enum { ROW_MAX = 64 * 1024 * 1024 };

struct csv {
    char *path;
    struct file_map map;
    const char *p, *end;
    size_t left; /* bytes of the mapping's start that are read and given back */
    size_t line; /* of p */
    bool skip;   /* what is left of the row at p was found bad */
    char **names;
    size_t n_columns, cap_names;
    struct buf text;  /* the row's fields, each with its NUL */
    size_t *at;       /* offsets of the fields in text */
    size_t n, cap_at;
    const char **field;
    size_t cap_field;
};

static bool at_break(const struct csv *c)
{
    return c->p < c->end && (*c->p == '\n' || *c->p == '\r');
}

static void take_break(struct csv *c)
{
    if (*c->p == '\r' && c->p + 1 < c->end && c->p[1] == '\n')
        c->p++;
    c->p++;
    c->line++;
}

static void skip_line(struct csv *c)
{
    while (c->p < c->end && !at_break(c))
        c->p++;
    if (c->p < c->end)
        take_break(c);
}

/* The quoted text from the opening quote on, without its quotes. */
static int read_quoted(struct csv *c, size_t first_line)
{
    const char *start = c->p;
    size_t start_line = c->line;
    for (c->p++; c->p < c->end; c->p++) {
        if (*c->p == '"') {
            if (c->p + 1 == c->end || c->p[1] != '"') {
                c->p++;
                return ERR_OK;
            }
            c->p++;
        } else if (*c->p == '\n' || (*c->p == '\r' && !(c->p + 1 < c->end && c->p[1] == '\n'))) {
            c->line++;
        }
        buf_putc(&c->text, *c->p);
        if (c->text.n > ROW_MAX)
            break;
    }
    bool long_row = c->text.n > ROW_MAX;
    c->p = start; /* go on with the next line: all that follows may be well */
    c->line = start_line;
    skip_line(c);
    return long_row ? err_set(ERR_NOMEM, "%s:%zu: the row is over 64 MB (a quote that is not closed?)", c->path, first_line)
                    : err_set(ERR_FORMAT, "%s:%zu: a quote is not closed", c->path, first_line);
}

/* What is read of a mapped file need not stay in memory. */
static void give_back(struct csv *c)
{
    enum { PIECE = 16 << 20 };
    if (!c->map.mapped || csv_position(c) < c->left + 2 * PIECE)
        return;
    madvise((char *)c->map.data + c->left, PIECE, MADV_DONTNEED);
    c->left += PIECE;
}

/* 1, 0 at the end, or an error. */
static int read_row(struct csv *c, size_t *line)
{
    if (c->skip)
        skip_line(c);
    c->skip = false;
    while (at_break(c))
        take_break(c);
    *line = c->line;
    c->n = 0;
    buf_clear(&c->text);
    if (c->p == c->end)
        return 0;
    for (;;) {
        ARRAY_GROW(c->at, c->cap_at, c->n + 1);
        c->at[c->n++] = c->text.n;
        bool quoted = c->p < c->end && *c->p == '"';
        int rc = quoted ? read_quoted(c, *line) : ERR_OK;
        if (rc < 0)
            return rc;
        const char *run = c->p;
        while (c->p < c->end && *c->p != ',' && *c->p != '\n' && *c->p != '\r' && *c->p && c->p - run <= ROW_MAX)
            c->p++;
        c->skip = true;
        if (quoted && c->p > run)
            return err_set(ERR_FORMAT, "%s:%zu: text after the closing quote of field %zu", c->path, *line, c->n);
        buf_add(&c->text, run, (size_t)(c->p - run));
        if (c->text.n > ROW_MAX)
            return err_set(ERR_NOMEM, "%s:%zu: the row is over 64 MB", c->path, *line);
        if ((c->p < c->end && !*c->p) || memchr(c->text.s + c->at[c->n - 1], 0, c->text.n - c->at[c->n - 1]))
            return err_set(ERR_FORMAT, "%s:%zu: a NUL byte in field %zu", c->path, *line, c->n);
        c->skip = false;
        buf_putc(&c->text, 0);
        if (c->p == c->end)
            return 1;
        if (*c->p != ',') {
            take_break(c);
            return 1;
        }
        c->p++;
    }
}

int csv_open(const char *path, struct csv **out)
{
    struct csv *c = xcalloc(1, sizeof *c);
    size_t line;
    *out = NULL;
    c->path = xstrdup(path);
    buf_init(&c->text);
    int rc = file_map(path, 0, &c->map);
    if (rc < 0)
        goto fail;
    c->p = c->map.data;
    c->end = c->p + c->map.size;
    c->line = 1;
    if (c->map.size >= 3 && !memcmp(c->p, "\xef\xbb\xbf", 3))
        c->p += 3;
    rc = read_row(c, &line);
    if (rc == 0)
        rc = err_set(ERR_FORMAT, "%s: is empty: a row of column names is due", path);
    if (rc < 0)
        goto fail;
    for (size_t i = 0; i < c->n; i++) {
        ARRAY_GROW(c->names, c->cap_names, i + 1);
        c->names[c->n_columns++] = xstrdup(c->text.s + c->at[i]);
    }
    *out = c;
    return ERR_OK;
fail:
    csv_close(c);
    return rc;
}

int csv_column(const struct csv *c, const char *name)
{
    struct buf b = BUF_INIT;
    for (size_t i = 0; i < c->n_columns; i++) {
        if (!strcmp(c->names[i], name)) {
            buf_release(&b);
            return (int)i;
        }
        if (b.n < 300)
            buf_printf(&b, "%s%.60s", i ? ", " : "", c->names[i]);
    }
    int rc = err_set(ERR_FORMAT, "%s: has no column %s (it has: %s)", c->path, name, b.s);
    buf_release(&b);
    return rc;
}

int csv_next(struct csv *c, struct csv_row *row)
{
    size_t line;
    give_back(c);
    int rc = read_row(c, &line);
    if (rc <= 0)
        return rc;
    if (c->n != c->n_columns)
        return err_set(ERR_FORMAT, "%s:%zu: the row has %zu fields, the header %zu", c->path, line, c->n, c->n_columns);
    ARRAY_GROW(c->field, c->cap_field, c->n);
    for (size_t i = 0; i < c->n; i++)
        c->field[i] = c->text.s + c->at[i];
    *row = (struct csv_row){c->field, c->n, line};
    return 1;
}

uint64_t csv_size(const struct csv *c)
{
    return c->map.size;
}

uint64_t csv_position(const struct csv *c)
{
    return (uint64_t)(c->p - c->map.data);
}

void csv_close(struct csv *c)
{
    if (!c)
        return;
    file_unmap(&c->map);
    buf_release(&c->text);
    for (size_t i = 0; i < c->n_columns; i++)
        free(c->names[i]);
    free(c->names);
    free(c->at);
    free(c->field);
    free(c->path);
    free(c);
}

void csv_field(struct buf *b, const char *s)
{
    if (!strpbrk(s, ",\"\r\n")) {
        buf_puts(b, s);
        return;
    }
    buf_putc(b, '"');
    for (; *s; s++) {
        if (*s == '"')
            buf_putc(b, '"');
        buf_putc(b, *s);
    }
    buf_putc(b, '"');
}
