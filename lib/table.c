#include "lib/table.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "lib/csv.h"
#include "lib/json.h"

struct cell {
    char *text; /* NULL: none, or a number */
    struct stats_interval v;
};

struct row {
    char *css;
    size_t n;
    struct cell *cell;
};

struct table {
    const char *key, *title;
    const struct table_column *column;
    size_t n_columns, n_rows, cap_rows, n_notes, cap_notes;
    struct row *row;
    char **note;
};

struct table *table_new(const char *key, const char *title, const struct table_column *columns, size_t n)
{
    struct table *t = xcalloc(1, sizeof *t);
    *t = (struct table){.key = key, .title = title, .column = columns, .n_columns = n};
    return t;
}

void table_free(struct table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_rows; i++) {
        for (size_t k = 0; k < t->n_columns; k++)
            free(t->row[i].cell[k].text);
        free(t->row[i].cell);
        free(t->row[i].css);
    }
    for (size_t i = 0; i < t->n_notes; i++)
        free(t->note[i]);
    free(t->row);
    free(t->note);
    free(t);
}

size_t table_rows(const struct table *t)
{
    return t->n_rows;
}

void table_row(struct table *t, const char *css)
{
    ARRAY_GROW(t->row, t->cap_rows, t->n_rows + 1);
    struct row *r = &t->row[t->n_rows++];
    *r = (struct row){.css = xstrdup(css), .cell = xcalloc(t->n_columns, sizeof *r->cell)};
    for (size_t k = 0; k < t->n_columns; k++)
        r->cell[k].v = (struct stats_interval){NAN, NAN, NAN, 0};
}

static struct cell *next_cell(struct table *t)
{
    struct row *r = &t->row[t->n_rows - 1];
    return &r->cell[r->n++];
}

void table_text(struct table *t, const char *fmt, ...)
{
    struct buf b = BUF_INIT;
    char *text;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&text, fmt, ap) < 0)
        abort();
    va_end(ap);
    for (const char *p = text; *p; p++) /* a cell is one line */
        buf_putc(&b, (unsigned char)*p < ' ' ? ' ' : *p);
    free(text);
    next_cell(t)->text = buf_detach(&b);
}

void table_number(struct table *t, double v)
{
    next_cell(t)->v.value = v;
}

void table_interval(struct table *t, const struct stats_interval *v, double times)
{
    next_cell(t)->v = (struct stats_interval){v->value * times, v->low * times, v->high * times, v->n};
}

void table_note(struct table *t, const char *fmt, ...)
{
    va_list ap;
    ARRAY_GROW(t->note, t->cap_notes, t->n_notes + 1);
    va_start(ap, fmt);
    if (vasprintf(&t->note[t->n_notes++], fmt, ap) < 0)
        abort();
    va_end(ap);
}

/* ---- cells ---- */

static void put_number(struct buf *b, double v, int digits, const char *infinite)
{
    if (isnan(v))
        return;
    if (isinf(v))
        buf_printf(b, "%s%s", v < 0 ? "-" : "", infinite);
    else if (digits >= 0)
        buf_printf(b, "%.*f", digits, v);
    else if (fabs(v) >= pow(10, -digits - 1) && fabs(v) < 1e15)
        buf_printf(b, "%.0f", v); /* all digits before the point, rather than 1.2e+03 */
    else
        buf_printf(b, v == 0 ? "0" : "%#.*g", -digits, v);
}

static void put_range(struct buf *b, const struct stats_interval *v, int digits, const char *infinite)
{
    if (isnan(v->low))
        return;
    buf_putc(b, '[');
    put_number(b, v->low, digits, infinite);
    buf_puts(b, ", ");
    put_number(b, v->high, digits, infinite);
    buf_putc(b, ']');
}

/* Value of a cell for people. */
static void put_value(struct buf *b, const struct table_column *c, const struct cell *x, const char *infinite)
{
    if (c->kind == TABLE_TEXT_CELLS)
        buf_puts(b, x->text ? x->text : "");
    else if (c->digits < 0 && isnan(x->v.low) && fabs(x->v.value) < pow(10, -c->digits))
        buf_printf(b, "%.*g", -c->digits, x->v.value); /* quoted: no zeros that were not there */
    else
        put_number(b, x->v.value, c->digits, infinite);
}

void put_markup(struct buf *out, const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (len < 1 || (c < ' ' && c != '\t' && c != '\n') || c == 0xfffe || c == 0xffff) {
            buf_puts(out, "\xef\xbf\xbd");
            i += len < 1 ? 1 : (size_t)len;
            continue;
        }
        switch (c) {
        case '<': buf_puts(out, "&lt;"); break;
        case '>': buf_puts(out, "&gt;"); break;
        case '&': buf_puts(out, "&amp;"); break;
        case '"': buf_puts(out, "&quot;"); break;
        default: buf_add(out, s + i, (size_t)len);
        }
        i += (size_t)len;
    }
}

/* ---- text ---- */

static size_t width(const char *s)
{
    size_t w = 0, n = strlen(s);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        w += len < 1 ? 1 : (size_t)utf8proc_charwidth(c);
        i += len < 1 ? 1 : (size_t)len;
    }
    return w;
}

static void put_padded(struct buf *out, const char *s, size_t to, bool right, bool last)
{
    size_t w = width(s), pad = w < to ? to - w : 0;
    if (right)
        buf_printf(out, "%*s", (int)pad, "");
    buf_puts(out, s);
    if (!right && !last)
        buf_printf(out, "%*s", (int)pad, "");
}

static void put_line(const struct table *t, const size_t *wide, struct buf *cell, struct buf *out)
{
    for (size_t k = 0; k < t->n_columns; k++) {
        if (k)
            buf_puts(out, "  ");
        put_padded(out, cell[k].s, wide[k], t->column[k].kind != TABLE_TEXT_CELLS, k + 1 == t->n_columns);
        buf_clear(&cell[k]);
    }
    while (out->n && out->s[out->n - 1] == ' ')
        out->s[--out->n] = 0;
    buf_putc(out, '\n');
}

static void put_text(const struct table *t, struct buf *out)
{
    size_t *wide = xcalloc(t->n_columns, sizeof *wide);
    struct buf *cell = xcalloc(t->n_columns, sizeof *cell);
    for (size_t k = 0; k < t->n_columns; k++) {
        buf_init(&cell[k]);
        wide[k] = width(t->column[k].title);
        for (size_t i = 0; i < t->n_rows; i++)
            for (int part = 0; part < 2; part++) {
                const struct cell *x = &t->row[i].cell[k];
                if (part)
                    put_range(&cell[k], &x->v, t->column[k].digits, "inf");
                else
                    put_value(&cell[k], &t->column[k], x, "inf");
                size_t w = width(cell[k].s);
                wide[k] = w > wide[k] ? w : wide[k];
                buf_clear(&cell[k]);
            }
    }
    buf_printf(out, "%s\n\n", t->title);
    for (size_t k = 0; k < t->n_columns; k++)
        buf_puts(&cell[k], t->column[k].title);
    put_line(t, wide, cell, out);
    for (size_t k = 0; k < t->n_columns; k++)
        for (size_t w = 0; w < wide[k]; w++)
            buf_putc(&cell[k], '-');
    put_line(t, wide, cell, out);
    for (size_t i = 0; i < t->n_rows; i++) {
        bool any = false;
        for (size_t k = 0; k < t->n_columns; k++) {
            const struct cell *x = &t->row[i].cell[k];
            put_value(&cell[k], &t->column[k], x, "inf");
            if (!cell[k].n)
                buf_puts(&cell[k], "-");
            any |= !isnan(x->v.low);
        }
        put_line(t, wide, cell, out);
        for (size_t k = 0; any && k < t->n_columns; k++)
            put_range(&cell[k], &t->row[i].cell[k].v, t->column[k].digits, "inf");
        if (any)
            put_line(t, wide, cell, out);
    }
    for (size_t i = 0; i < t->n_notes; i++)
        buf_printf(out, "%s  %s\n", i ? "" : "\n", t->note[i]);
    for (size_t k = 0; k < t->n_columns; k++)
        buf_release(&cell[k]);
    free(cell);
    free(wide);
}

/* ---- for programs ---- */

static void put_exact(struct buf *out, double v)
{
    char number[32];
    if (isinf(v))
        buf_puts(out, v < 0 ? "-inf" : "inf");
    else if (!isnan(v) && v == floor(v) && fabs(v) < 1e15)
        buf_printf(out, "%.0f", v);
    else if (!isnan(v))
        buf_puts(out, real_repr(number, v));
}

static void put_csv(const struct table *t, struct buf *out)
{
    for (size_t k = 0; k < t->n_columns; k++) {
        const char *key = t->column[k].key;
        buf_printf(out, k ? ",%s" : "%s", key);
        if (t->column[k].kind == TABLE_INTERVAL)
            buf_printf(out, ",%s_low,%s_high,%s_n", key, key, key);
    }
    buf_putc(out, '\n');
    for (size_t i = 0; i < t->n_rows; i++) {
        for (size_t k = 0; k < t->n_columns; k++) {
            const struct cell *x = &t->row[i].cell[k];
            if (k)
                buf_putc(out, ',');
            if (t->column[k].kind == TABLE_TEXT_CELLS) {
                csv_field(out, x->text ? x->text : "");
                continue;
            }
            put_exact(out, x->v.value);
            if (t->column[k].kind == TABLE_INTERVAL) {
                buf_putc(out, ',');
                put_exact(out, x->v.low);
                buf_putc(out, ',');
                put_exact(out, x->v.high);
                buf_putc(out, ',');
                if (x->v.n)
                    buf_printf(out, "%zu", x->v.n);
            }
        }
        buf_putc(out, '\n');
    }
}

static void json_number(struct jw *j, const char *key, double v)
{
    jw_key(j, key);
    if (isinf(v))
        jw_str(j, v < 0 ? "-inf" : "inf");
    else
        jw_real(j, v);
}

static void put_json(const struct table *t, struct buf *out)
{
    for (size_t i = 0; i < t->n_rows; i++) {
        struct jw j = JW_INIT(out);
        jw_object(&j);
        jw_kv_str(&j, "table", t->key);
        for (size_t k = 0; k < t->n_columns; k++) {
            const struct table_column *c = &t->column[k];
            const struct cell *x = &t->row[i].cell[k];
            if (c->kind == TABLE_TEXT_CELLS) {
                jw_kv_str(&j, c->key, x->text);
                continue;
            }
            if (isnan(x->v.value))
                continue;
            if (c->kind == TABLE_NUMBER) {
                json_number(&j, c->key, x->v.value);
                continue;
            }
            jw_key(&j, c->key);
            jw_object(&j);
            json_number(&j, "value", x->v.value);
            if (!isnan(x->v.low)) {
                json_number(&j, "low", x->v.low);
                json_number(&j, "high", x->v.high);
            }
            if (x->v.n)
                jw_kv_int(&j, "n", (int64_t)x->v.n);
            jw_end(&j);
        }
        jw_end(&j);
        buf_putc(out, '\n');
    }
}

/* ---- for papers and pages ---- */

static void put_markdown_text(struct buf *out, const char *s)
{
    for (; *s; s++) {
        if (strchr("|\\`*_<>[]", *s))
            buf_putc(out, '\\');
        buf_putc(out, *s);
    }
}

static void put_markdown(const struct table *t, struct buf *out)
{
    struct buf b = BUF_INIT;
    buf_printf(out, "### %s\n\n|", t->title);
    for (size_t k = 0; k < t->n_columns; k++)
        buf_printf(out, " %s |", t->column[k].title);
    buf_puts(out, "\n|");
    for (size_t k = 0; k < t->n_columns; k++)
        buf_puts(out, t->column[k].kind == TABLE_TEXT_CELLS ? "---|" : "---:|");
    for (size_t i = 0; i < t->n_rows; i++) {
        buf_puts(out, "\n|");
        for (size_t k = 0; k < t->n_columns; k++) {
            const struct cell *x = &t->row[i].cell[k];
            buf_clear(&b);
            put_value(&b, &t->column[k], x, "∞");
            if (!isnan(x->v.low))
                buf_putc(&b, ' ');
            put_range(&b, &x->v, t->column[k].digits, "∞");
            buf_putc(out, ' ');
            put_markdown_text(out, b.n ? b.s : "-");
            buf_puts(out, " |");
        }
    }
    buf_putc(out, '\n');
    for (size_t i = 0; i < t->n_notes; i++) {
        buf_puts(out, i ? "- " : "\n- ");
        put_markdown_text(out, t->note[i]);
        buf_putc(out, '\n');
    }
    buf_release(&b);
}

static void put_latex_text(struct buf *out, const char *s)
{
    for (; *s; s++)
        switch (*s) {
        case '\\': buf_puts(out, "\\textbackslash{}"); break;
        case '~': buf_puts(out, "\\textasciitilde{}"); break;
        case '^': buf_puts(out, "\\textasciicircum{}"); break;
        case '&': case '%': case '$': case '#': case '_': case '{': case '}':
            buf_putc(out, '\\'); /* fall through */
        default: buf_putc(out, *s);
        }
}

static void put_latex(const struct table *t, struct buf *out)
{
    struct buf b = BUF_INIT;
    buf_puts(out, "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n\\caption{");
    put_latex_text(out, t->title);
    buf_printf(out, "}\n\\label{tab:%s}\n\\begin{tabular}{", t->key);
    for (size_t k = 0; k < t->n_columns; k++)
        buf_putc(out, t->column[k].kind == TABLE_TEXT_CELLS ? 'l' : 'r');
    buf_puts(out, "}\n\\toprule\n");
    for (size_t k = 0; k < t->n_columns; k++) {
        buf_puts(out, k ? " & " : "");
        put_latex_text(out, t->column[k].title);
    }
    buf_puts(out, " \\\\\n\\midrule\n");
    for (size_t i = 0; i < t->n_rows; i++) {
        for (size_t k = 0; k < t->n_columns; k++) {
            const struct cell *x = &t->row[i].cell[k];
            buf_puts(out, k ? " & " : "");
            buf_clear(&b);
            if (t->column[k].kind == TABLE_TEXT_CELLS) {
                put_latex_text(&b, x->text ? x->text : "");
            } else {
                put_value(&b, &t->column[k], x, "$\\infty$");
                if (!isnan(x->v.low)) {
                    buf_puts(&b, " {\\scriptsize ");
                    put_range(&b, &x->v, t->column[k].digits, "$\\infty$");
                    buf_putc(&b, '}');
                }
            }
            buf_puts(out, b.n ? b.s : "--");
        }
        buf_puts(out, " \\\\\n");
    }
    buf_puts(out, "\\bottomrule\n\\end{tabular}\n");
    for (size_t i = 0; i < t->n_notes; i++) {
        buf_puts(out, i ? "\\\\ \\footnotesize " : "\n\\smallskip\\footnotesize ");
        put_latex_text(out, t->note[i]);
        buf_putc(out, '\n');
    }
    buf_puts(out, "\\end{table}\n");
    buf_release(&b);
}

static void put_html(const struct table *t, struct buf *out)
{
    struct buf b = BUF_INIT;
    buf_printf(out, "<section id=\"table-%s\"><h2>", t->key);
    put_markup(out, t->title);
    buf_puts(out, "</h2>\n<div class=\"scroll\"><table><thead><tr>");
    for (size_t k = 0; k < t->n_columns; k++) {
        buf_puts(out, t->column[k].kind == TABLE_TEXT_CELLS ? "<th>" : "<th class=\"n\">");
        put_markup(out, t->column[k].title);
        buf_puts(out, "</th>");
    }
    buf_puts(out, "</tr></thead><tbody>\n");
    for (size_t i = 0; i < t->n_rows; i++) {
        buf_puts(out, *t->row[i].css ? "<tr class=\"" : "<tr");
        if (*t->row[i].css)
            buf_printf(out, "%s\"", t->row[i].css);
        buf_putc(out, '>');
        for (size_t k = 0; k < t->n_columns; k++) {
            const struct cell *x = &t->row[i].cell[k];
            buf_clear(&b);
            put_value(&b, &t->column[k], x, "∞");
            buf_puts(out, t->column[k].kind == TABLE_TEXT_CELLS ? "<td>" : "<td class=\"n\">");
            put_markup(out, b.n ? b.s : "–");
            buf_clear(&b);
            put_range(&b, &x->v, t->column[k].digits, "∞");
            if (b.n) {
                buf_puts(out, "<small>");
                put_markup(out, b.s);
                buf_puts(out, "</small>");
            }
            buf_puts(out, "</td>");
        }
        buf_puts(out, "</tr>\n");
    }
    buf_puts(out, "</tbody></table></div>\n");
    for (size_t i = 0; i < t->n_notes; i++) {
        buf_puts(out, i ? "<li>" : "<ul class=\"notes\"><li>");
        put_markup(out, t->note[i]);
        buf_puts(out, "</li>\n");
    }
    buf_puts(out, t->n_notes ? "</ul></section>\n" : "</section>\n");
    buf_release(&b);
}

void table_put(const struct table *t, enum table_format format, struct buf *out)
{
    static void (*const put[])(const struct table *, struct buf *) = {
        [TABLE_TEXT] = put_text,   [TABLE_CSV] = put_csv,   [TABLE_MARKDOWN] = put_markdown,
        [TABLE_LATEX] = put_latex, [TABLE_HTML] = put_html, [TABLE_JSON] = put_json,
    };
    put[format](t, out);
}
