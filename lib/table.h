/* table.h: a table of text, numbers and intervals, written for a terminal, a spreadsheet, a paper or a page.
 *
 *     static const struct table_column columns[] = {{"method", "method"}, {"cr", "CR %", TABLE_INTERVAL, 2}};
 *     struct table *t = table_new("scores", "Scores", columns, 2);
 *     table_row(t, "");
 *     table_text(t, "SFT with RAG");
 *     table_interval(t, &cr, 100);
 *     table_note(t, "two files could not be read");
 *     table_put(t, TABLE_MARKDOWN, &out);
 *     table_free(t);
 *
 * CSV gives an interval four columns (KEY, KEY_low, KEY_high, KEY_n) and all its digits; JSON is a line a row.
 * Elsewhere an interval stands below or behind its value.
 */
#ifndef LIB_TABLE_H
#define LIB_TABLE_H

#include "lib/mem.h"
#include "lib/stats.h"

enum table_kind { TABLE_TEXT_CELLS, TABLE_NUMBER, TABLE_INTERVAL };
enum table_format { TABLE_TEXT, TABLE_CSV, TABLE_MARKDOWN, TABLE_LATEX, TABLE_HTML, TABLE_JSON };

struct table_column {
    const char *key, *title; /* for programs, for people */
    enum table_kind kind;
    int digits;              /* decimals; negative: significant digits */
};

struct table;
/* Borrows all three for its life. */
struct table *table_new(const char *key, const char *title, const struct table_column *columns, size_t n);
void table_free(struct table *t); /* NULL is fine */
size_t table_rows(const struct table *t);

/* Begins a row, whose cells follow from the left; what is not given stays empty.  css: class of the HTML row (copied). */
void table_row(struct table *t, const char *css);
void table_text(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_number(struct table *t, double v);      /* NaN: none */
void table_interval(struct table *t, const struct stats_interval *v, double times); /* value NaN: none */
/* A line below the table (not in CSV and JSON). */
void table_note(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void table_put(const struct table *t, enum table_format format, struct buf *out);

/* Text for HTML, SVG and their attributes: < > & " escaped, what is not UTF-8 or not allowed there replaced. */
void put_markup(struct buf *out, const char *s);

#endif
