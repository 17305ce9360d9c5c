/* csv.h: RFC 4180 tables, read row by row.
 *
 *     struct csv *c;
 *     struct csv_row row;
 *     int id, rc = csv_open("captions.csv", &c);
 *     if (rc == ERR_OK)
 *         rc = id = csv_column(c, "model_id");
 *     while (rc >= 0 && (rc = csv_next(c, &row)) > 0)
 *         puts(row.field[id]);          // borrowed until the next csv_next()
 *     csv_close(c);
 *
 * The first row names the columns.  Quoted fields may hold commas, quotes ("") and line
 * breaks; a quote amid an unquoted field is a character like others; lines end in LF, CRLF or CR;
 * a UTF-8 byte order mark is skipped, and so are blank lines.  Memory: one row, and 32 MB of a file that is mapped.
 */
#ifndef LIB_CSV_H
#define LIB_CSV_H

#include <stddef.h>
#include <stdint.h>

struct buf;
struct csv;

struct csv_row {
    const char **field; /* NUL-terminated, as many as there are columns */
    size_t n;
    size_t line;        /* 1-based line of the file on which the row starts */
};

/* ERR_IO; ERR_FORMAT when there is no header row. */
int csv_open(const char *path, struct csv **out);
/* Index of a column; ERR_FORMAT naming it and the columns there are. */
int csv_column(const struct csv *c, const char *name);
/* 1: a row; 0: the end.  ERR_FORMAT (file and line): a row with another number of fields, a
 * quote that is never closed, text after a closing quote, a NUL byte; ERR_NOMEM: a row of over 64 MB.
 * After an error reading may go on with the row that follows. */
int csv_next(struct csv *c, struct csv_row *row);
uint64_t csv_size(const struct csv *c);     /* bytes of the file, and how many are read: */
uint64_t csv_position(const struct csv *c); /* for progress */
void csv_close(struct csv *c);              /* NULL is fine */

/* Appends one field, quoted where RFC 4180 asks for it. */
void csv_field(struct buf *b, const char *s);

#endif
