#include "lib/pairs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/mem.h"

enum { FIELD_MAX = 1 << 30, NEST_MAX = 64 };

enum { ID_ORIGINAL, CAPTION, ID_RETRIEVE, RETRIEVED, OUTPUT, N_FIELDS };
static const char *const field_names[N_FIELDS] = {"id_original", "caption", "id_retrieve", "relavant_step_file",
                                                  "output"};

struct pairs {
    char *path;
    struct file_map map;
    const char *p, *end; /* where reading stands */
    size_t index;        /* of the next record */
    bool first;          /* at a record's '{' or the array's start, not at a ',' */
    bool done;
    struct buf key, field[N_FIELDS];
};

static int bad(const struct pairs *r, const char *what)
{
    return err_set(ERR_FORMAT, "%s: record %zu, byte %zu: %s", r->path, r->index + 1, (size_t)(r->p - r->map.data),
                   what);
}

static int peek(struct pairs *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r'))
        r->p++;
    return r->p < r->end ? (unsigned char)*r->p : -1;
}

static bool hex4(const struct pairs *r, const char *p, uint32_t *out)
{
    *out = 0;
    if (r->end - p < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        int c = p[i] | 0x20, d = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (d < 0)
            return false;
        *out = *out << 4 | (uint32_t)d;
    }
    return true;
}

static void add_code_point(struct buf *b, uint32_t c)
{
    if (c < 0x80) {
        buf_putc(b, (char)c);
        return;
    }
    if (c >= 0x10000) {
        buf_putc(b, (char)(0xf0 | c >> 18));
        buf_putc(b, (char)(0x80 | (c >> 12 & 0x3f)));
    } else if (c >= 0x800) {
        buf_putc(b, (char)(0xe0 | c >> 12));
    }
    if (c >= 0x800)
        buf_putc(b, (char)(0x80 | (c >> 6 & 0x3f)));
    else
        buf_putc(b, (char)(0xc0 | c >> 6));
    buf_putc(b, (char)(0x80 | (c & 0x3f)));
}

/* r->p stands behind the 'u' of an escape. */
static int read_u_escape(struct pairs *r, struct buf *out)
{
    uint32_t c, low;
    if (!hex4(r, r->p, &c))
        return bad(r, "\\u needs four hexadecimal digits");
    if (!c)
        return bad(r, "a string holds a NUL character");
    r->p += 4;
    if (c >= 0xd800 && c < 0xdc00 && r->end - r->p >= 6 && r->p[0] == '\\' && r->p[1] == 'u' &&
        hex4(r, r->p + 2, &low) && low >= 0xdc00 && low < 0xe000) {
        r->p += 6;
        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
    } else if (c >= 0xd800 && c < 0xe000) {
        c = 0xfffd; /* half a pair */
    }
    add_code_point(out, c);
    return ERR_OK;
}

/* r->p stands at the opening quote. */
static int read_string(struct pairs *r, struct buf *out)
{
    static const char escapes[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    buf_clear(out);
    for (r->p++;;) {
        const char *run = r->p;
        while (r->p < r->end && *r->p != '"' && *r->p != '\\' && (unsigned char)*r->p >= 0x20)
            r->p++;
        if (out->n + (size_t)(r->p - run) > FIELD_MAX) {
            bad(r, "a string is over 1 GiB");
            return err_set(ERR_NOMEM, "%s", err_text());
        }
        buf_add(out, run, (size_t)(r->p - run));
        if (r->p == r->end)
            return bad(r, "the file ends inside a string");
        if (*r->p == '"') {
            r->p++;
            return ERR_OK;
        }
        if (*r->p != '\\')
            return bad(r, "a control character stands unescaped in a string");
        if (++r->p == r->end)
            return bad(r, "the file ends inside a string");
        char c = *r->p++;
        const char *e = c ? strchr(escapes, c) : NULL;
        if (e) {
            buf_putc(out, values[e - escapes]);
        } else if (c == 'u') {
            int rc = read_u_escape(r, out);
            if (rc < 0)
                return rc;
        } else {
            return bad(r, "unknown escape in a string");
        }
    }
}

/* Steps over any value. */
static int skip_value(struct pairs *r, int depth)
{
    int c = peek(r), rc;
    if (depth > NEST_MAX)
        return bad(r, "nested too deeply");
    if (c == '"')
        return read_string(r, &r->key);
    if (c != '{' && c != '[') {
        const char *from = r->p;
        while (r->p < r->end && *r->p && strchr("+-.0123456789aeflnrstuEN", *r->p))
            r->p++;
        return r->p > from ? ERR_OK : bad(r, "a JSON value is due");
    }
    int close = c == '{' ? '}' : ']';
    r->p++;
    if (peek(r) == close) {
        r->p++;
        return ERR_OK;
    }
    for (;;) {
        if (close == '}') {
            if (peek(r) != '"')
                return bad(r, "a key is due");
            if ((rc = read_string(r, &r->key)) < 0)
                return rc;
            if (peek(r) != ':')
                return bad(r, "':' is due");
            r->p++;
        }
        if ((rc = skip_value(r, depth + 1)) < 0)
            return rc;
        c = peek(r);
        if (c != ',' && c != close)
            return bad(r, "',' or a closing bracket is due");
        r->p++;
        if (c == close)
            return ERR_OK;
    }
}

/* One of our fields: a string; a number's text (ids); or null, which is absence. */
static int read_field(struct pairs *r, int k, bool *given)
{
    int c = peek(r);
    *given = true;
    if (c == '"')
        return read_string(r, &r->field[k]);
    const char *from = r->p;
    int rc = skip_value(r, 0);
    if (rc < 0)
        return rc;
    size_t n = (size_t)(r->p - from);
    if (n == 4 && !memcmp(from, "null", 4)) {
        *given = false;
        return ERR_OK;
    }
    if ((k != ID_ORIGINAL && k != ID_RETRIEVE) || !((c >= '0' && c <= '9') || c == '-')) {
        char what[80];
        snprintf(what, sizeof what, "%s is no string", field_names[k]);
        return bad(r, what);
    }
    buf_clear(&r->field[k]);
    buf_add(&r->field[k], from, n);
    return ERR_OK;
}

int pairs_open(const char *path, struct pairs **out)
{
    struct pairs *r = xcalloc(1, sizeof *r);
    *out = NULL;
    r->path = xstrdup(path);
    buf_init(&r->key);
    for (int k = 0; k < N_FIELDS; k++)
        buf_init(&r->field[k]);
    int rc = file_map(path, 0, &r->map);
    if (rc < 0) {
        pairs_close(r);
        return rc;
    }
    r->p = r->map.data;
    r->end = r->map.data + r->map.size;
    r->first = true;
    if (r->map.size >= 3 && !memcmp(r->p, "\xef\xbb\xbf", 3))
        r->p += 3;
    if (peek(r) != '[') {
        rc = err_set(ERR_FORMAT, "%s: byte %zu: a JSON array of pair records is due", path, (size_t)(r->p - r->map.data));
        pairs_close(r);
        return rc;
    }
    r->p++;
    *out = r;
    return ERR_OK;
}

int pairs_next(struct pairs *r, struct pair *p)
{
    bool given[N_FIELDS] = {0};
    int c = peek(r), rc;
    if (r->done)
        return 0;
    if (c == ']') {
        r->p++;
        if (peek(r) >= 0)
            return bad(r, "text after the end of the array");
        r->done = true;
        return 0;
    }
    if (!r->first) {
        if (c != ',')
            return bad(r, c < 0 ? "the file ends inside the array" : "',' or ']' is due");
        r->p++;
        c = peek(r);
    }
    if (c != '{')
        return bad(r, c < 0 ? "the file ends inside the array" : "a record, '{', is due");
    *p = (struct pair){.index = r->index, .offset = (uint64_t)(r->p - r->map.data)};
    r->p++;
    for (bool any = false; (c = peek(r)) != '}' || any; any = true) {
        if (c != '"')
            return bad(r, c < 0 ? "the file ends inside a record" : "a key is due");
        if ((rc = read_string(r, &r->key)) < 0)
            return rc;
        if (peek(r) != ':')
            return bad(r, "':' is due");
        r->p++;
        int k = 0;
        while (k < N_FIELDS && strcmp(field_names[k], r->key.s))
            k++;
        if ((rc = k < N_FIELDS ? read_field(r, k, &given[k]) : skip_value(r, 0)) < 0)
            return rc;
        c = peek(r);
        if (c == '}')
            break;
        if (c != ',')
            return bad(r, c < 0 ? "the file ends inside a record" : "',' or '}' is due");
        r->p++;
    }
    r->p++;
    for (int k = 0; k < N_FIELDS; k++)
        if (!given[k] && k != ID_RETRIEVE && k != RETRIEVED) {
            char what[80];
            snprintf(what, sizeof what, "has no %s", field_names[k]);
            return bad(r, what);
        }
    p->id_original = r->field[ID_ORIGINAL].s;
    p->caption = r->field[CAPTION].s;
    p->id_retrieve = given[ID_RETRIEVE] ? r->field[ID_RETRIEVE].s : NULL;
    p->retrieved = given[RETRIEVED] ? r->field[RETRIEVED].s : NULL;
    p->output = r->field[OUTPUT].s;
    r->index++;
    r->first = false;
    return 1;
}

void pairs_seek(struct pairs *r, uint64_t offset, size_t index)
{
    r->p = r->map.data + (offset < r->map.size ? offset : r->map.size);
    r->index = index;
    r->first = true;
    r->done = false;
}

uint64_t pairs_size(const struct pairs *r)
{
    return r->map.size;
}

void pairs_close(struct pairs *r)
{
    if (!r)
        return;
    file_unmap(&r->map);
    buf_release(&r->key);
    for (int k = 0; k < N_FIELDS; k++)
        buf_release(&r->field[k]);
    free(r->path);
    free(r);
}

/* ---- writing ---- */

struct pairs_writer {
    struct atomic_file file;
    struct buf b;
    struct jw j;
};

int pairs_create(const char *path, struct pairs_writer **out)
{
    struct pairs_writer *w = xcalloc(1, sizeof *w);
    int rc = atomic_open(&w->file, path);
    *out = NULL;
    if (rc < 0) {
        free(w);
        return rc;
    }
    buf_init(&w->b);
    w->j = JW_INIT(&w->b);
    w->j.indent = 4;
    w->j.ascii = true;
    jw_array(&w->j);
    *out = w;
    return ERR_OK;
}

static int flush(struct pairs_writer *w)
{
    size_t n = fwrite(w->b.s, 1, w->b.n, w->file.f);
    int rc = n == w->b.n ? ERR_OK : err_set(ERR_IO, "%s: %s", w->file.path, strerror(errno));
    buf_clear(&w->b);
    return rc;
}

int pairs_put(struct pairs_writer *w, const struct pair *p)
{
    const char *const v[N_FIELDS] = {p->id_original, p->caption, p->id_retrieve, p->retrieved, p->output};
    jw_object(&w->j);
    for (int k = 0; k < N_FIELDS; k++)
        if (v[k])
            jw_kv_str(&w->j, field_names[k], v[k]);
    jw_end(&w->j);
    return flush(w);
}

int pairs_commit(struct pairs_writer *w)
{
    jw_end(&w->j);
    int rc = flush(w);
    if (rc == ERR_OK)
        rc = atomic_commit(&w->file, true);
    pairs_abort(w);
    return rc;
}

void pairs_abort(struct pairs_writer *w)
{
    if (!w)
        return;
    atomic_abort(&w->file);
    buf_release(&w->b);
    free(w);
}
