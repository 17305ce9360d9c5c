#include "lib/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"

static void newline(struct jw *j)
{
    if (!j->indent)
        return;
    buf_putc(j->out, '\n');
    for (int i = 0; i < j->depth * j->indent; i++)
        buf_putc(j->out, ' ');
}

/* Ahead of every value: the comma and line break that are due. */
static void lead(struct jw *j)
{
    if (j->after_key) {
        j->after_key = false;
        return;
    }
    if (!j->depth)
        return;
    if (j->level[j->depth - 1].any)
        buf_putc(j->out, ',');
    j->level[j->depth - 1].any = true;
    newline(j);
}

static void open_level(struct jw *j, char open, char close)
{
    lead(j);
    buf_putc(j->out, open);
    if (j->depth == JW_MAX_DEPTH)
        abort(); /* a bug of the caller: our documents are shallow */
    j->level[j->depth].close = close;
    j->level[j->depth].any = false;
    j->depth++;
}

void jw_object(struct jw *j)
{
    open_level(j, '{', '}');
}

void jw_array(struct jw *j)
{
    open_level(j, '[', ']');
}

void jw_end(struct jw *j)
{
    j->depth--;
    if (j->level[j->depth].any)
        newline(j);
    buf_putc(j->out, j->level[j->depth].close);
}

static void quoted(struct jw *j, const char *str, size_t n)
{
    struct buf *b = j->out;
    const unsigned char *s = (const unsigned char *)str;
    buf_grow(b, n + 2);
    buf_putc(b, '"');
    for (size_t i = 0; i < n;) {
        size_t run = i; /* plain characters are most of a STEP file: copy them at once */
        while (run < n && s[run] >= 0x20 && s[run] < 0x7f && s[run] != '"' && s[run] != '\\')
            run++;
        if (run > i) {
            buf_add(b, s + i, run - i);
            i = run;
            continue;
        }
        uint32_t cp;
        int len = utf8_at(s + i, n - i, &cp);
        if (!len) {
            buf_puts(b, j->ascii ? "\\ufffd" : "\xef\xbf\xbd");
            i++;
            continue;
        }
        if (cp == '"' || cp == '\\') {
            buf_putc(b, '\\');
            buf_putc(b, (char)cp);
        } else if (cp == '\n') {
            buf_puts(b, "\\n");
        } else if (cp == '\r') {
            buf_puts(b, "\\r");
        } else if (cp == '\t') {
            buf_puts(b, "\\t");
        } else if (cp == '\b') {
            buf_puts(b, "\\b");
        } else if (cp == '\f') {
            buf_puts(b, "\\f");
        } else if (cp < 0x20) {
            buf_printf(b, "\\u%04x", cp);
        } else if (cp < 0x80 || !j->ascii) {
            buf_add(b, s + i, (size_t)len);
        } else if (cp >= 0x10000) {
            cp -= 0x10000;
            buf_printf(b, "\\u%04x\\u%04x", 0xd800 + (cp >> 10), 0xdc00 + (cp & 0x3ff));
        } else {
            buf_printf(b, "\\u%04x", cp);
        }
        i += (size_t)len;
    }
    buf_putc(b, '"');
}

void jw_key(struct jw *j, const char *key)
{
    lead(j);
    quoted(j, key, strlen(key));
    buf_puts(j->out, j->indent ? ": " : ":");
    j->after_key = true;
}

void jw_strn(struct jw *j, const char *s, size_t n)
{
    lead(j);
    quoted(j, s, n);
}

void jw_str(struct jw *j, const char *s)
{
    if (s)
        jw_strn(j, s, strlen(s));
    else
        jw_null(j);
}

void jw_int(struct jw *j, int64_t v)
{
    lead(j);
    buf_printf(j->out, "%lld", (long long)v);
}

const char *real_repr(char out[32], double v)
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (strtod(out, NULL) == v)
            break;
    }
    if (isfinite(v) && !strpbrk(out, ".e"))
        strcat(out, ".0");
    return out;
}

void jw_real(struct jw *j, double v)
{
    char tmp[32];
    lead(j);
    buf_puts(j->out, isfinite(v) ? real_repr(tmp, v) : "null");
}

void jw_bool(struct jw *j, bool v)
{
    lead(j);
    buf_puts(j->out, v ? "true" : "false");
}

void jw_null(struct jw *j)
{
    lead(j);
    buf_puts(j->out, "null");
}

void jw_raw(struct jw *j, const char *json)
{
    lead(j);
    buf_puts(j->out, json);
}

int json_read_mem(const char *name, const char *s, size_t n, json_t **out)
{
    json_error_t e;
    *out = json_loadb(s, n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (!*out)
        return err_set(ERR_FORMAT, "%s:%d:%d: not valid JSON: %s", name, e.line, e.column, e.text);
    return ERR_OK;
}

int json_read_file(const char *path, size_t max_bytes, json_t **out)
{
    struct file_map m;
    *out = NULL;
    int rc = file_map(path, max_bytes, &m);
    if (rc < 0)
        return rc;
    rc = json_read_mem(path, m.data, m.size, out);
    file_unmap(&m);
    return rc;
}
