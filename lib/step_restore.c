#include "lib/step_prep.h"

#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"

/* The text is cut into statements (to the ';' outside strings and comments) without
 * asking whether they make sense; keys are the original's annotations
 * "/" "* ID_k = v *" "/", which stand behind the statement that uses #ID_k. */
struct statement {
    uint32_t off, len; /* comments inside it and before it are removed on writing */
    uint64_t id;       /* 0: not "#n = ..." */
    bool placeholders; /* holds a #ID_k */
    bool gaps;         /* lacks a parameter: "( ," */
    bool colour, presentation; /* COLOUR_RGB, MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION */
    bool styled, context;      /* STYLED_ITEM; complex with a GEOMETRIC_REPRESENTATION_CONTEXT and units */
};
struct key {
    uint64_t k, value;
    size_t statement; /* number of statements ahead of it */
    size_t at;        /* order in the text */
};
struct mend {
    const char *text, *end;
    struct statement *v;
    size_t n, cap;
    struct key *keys;
    size_t n_keys, key_cap;
    bool guessing;           /* the tables below are there */
    struct id_set {
        uint64_t *v;
        size_t n, cap;
    } used;                  /* ids that something refers to, sorted */
    size_t next_styled;      /* where to look for the next unused STYLED_ITEM */
    uint64_t context;        /* 0: none */
    struct step_restore_report *report;
};

static inline bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static inline bool is_placeholder(const char *p, const char *end)
{
    return end - p >= 5 && p[0] == '#' && p[1] == 'I' && p[2] == 'D' && p[3] == '_' && is_digit(p[4]);
}

/* A parameter is missing between the two. */
static inline bool is_gap(char last, char c)
{
    return (c == ',' && (last == '(' || last == ',')) || (c == ')' && last == ',');
}

/* Digits at *p as a number of at most 18 digits; false: none or too many. */
static bool number(const char **p, const char *end, uint64_t *v)
{
    const char *s = *p;
    for (*v = 0; *p < end && is_digit(**p) && *p - s < 18; (*p)++)
        *v = *v * 10 + (uint64_t)(**p - '0');
    return *p > s && !(*p < end && is_digit(**p));
}

static const char *blanks(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n'))
        p++;
    return p;
}

/* The comment between s and end, delimiters excluded. */
static void take_comment(struct mend *m, const char *s, const char *end)
{
    struct key key = {.statement = m->n, .at = m->n_keys};
    m->report->comments++;
    s = blanks(s, end);
    if (end - s < 5 || memcmp(s, "ID_", 3))
        return;
    s += 3;
    if (!number(&s, end, &key.k))
        return;
    s = blanks(s, end);
    if (s >= end || *s != '=')
        return;
    s = blanks(s + 1, end);
    if (!number(&s, end, &key.value) || blanks(s, end) < end)
        return;
    ARRAY_GROW(m->keys, m->key_cap, m->n_keys + 1);
    m->keys[m->n_keys++] = key;
}

static bool begins(const char *p, const char *end, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(end - p) >= n && !memcmp(p, word, n);
}

static void classify(const struct mend *m, struct statement *s)
{
    const char *p = step_skip_space(m->text + s->off, m->end), *end = m->text + s->off + s->len;
    if (p >= end || *p != '#')
        return;
    p++;
    if (!number(&p, end, &s->id)) {
        s->id = 0;
        return;
    }
    p = step_skip_space(p, end);
    if (p >= end || *p != '=') {
        s->id = 0;
        return;
    }
    p = step_skip_space(p + 1, end);
    s->colour = begins(p, end, "COLOUR_RGB");
    s->styled = begins(p, end, "STYLED_ITEM");
    s->presentation = begins(p, end, "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION");
    s->context = begins(p, end, "(") && memmem(p, (size_t)(end - p), "GEOMETRIC_REPRESENTATION_CONTEXT", 32) &&
                 memmem(p, (size_t)(end - p), "GLOBAL_UNIT_ASSIGNED_CONTEXT", 28);
}

/* Cuts the text into statements, up to END-ISO-10303-21; or its end. */
static void cut(struct mend *m)
{
    const char *p = m->text, *start = p;
    struct statement s = {0};
    char last = 0; /* of the statement in hand, but space */
    while (p < m->end) {
        /* Digits, capitals, points: nothing to be seen in them. */
        for (; p < m->end && ((*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || *p == '.' || *p == '_'); p++)
            last = *p;
        if (p == m->end)
            break;
        char c = *p;
        if ((unsigned char)c <= ' ' || c == 127) {
            p++;
        } else if (c == '\'') {
            const char *q = step_string_end(p, m->end);
            p = q ? q : m->end;
            last = c;
        } else if (c == '/' && p + 1 < m->end && p[1] == '*') {
            const char *q = memmem(p + 2, (size_t)(m->end - p - 2), "*/", 2);
            if (q)
                take_comment(m, p + 2, q);
            p = q ? q + 2 : m->end;
            last = q ? last : '/';
        } else if (c == ';') {
            s.off = (uint32_t)(start - m->text);
            s.len = (uint32_t)(++p - start);
            classify(m, &s);
            ARRAY_GROW(m->v, m->cap, m->n + 1);
            m->v[m->n++] = s;
            if (begins(step_skip_space(start, p), p, "END-ISO-10303-21"))
                return;
            start = p;
            s = (struct statement){0};
            last = 0;
        } else {
            s.placeholders |= c == '#' && is_placeholder(p, m->end);
            s.gaps |= is_gap(last, c);
            last = c;
            p++;
        }
    }
    if (last) { /* left open: the parser will say so */
        s.off = (uint32_t)(start - m->text);
        s.len = (uint32_t)(m->end - start);
        ARRAY_GROW(m->v, m->cap, m->n + 1);
        m->v[m->n++] = s;
    }
}

/* ---- placeholders ---- */

static int by_key(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    if (x->k != y->k)
        return x->k < y->k ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void add_used(struct id_set *set, uint64_t id)
{
    ARRAY_GROW(set->v, set->cap, set->n + 1);
    set->v[set->n++] = id;
}

static bool is_used(const struct id_set *set, uint64_t id)
{
    return set->n && bsearch(&id, set->v, set->n, sizeof id, by_value);
}

/* What the file itself tells of keys that no annotation gives. */
static void prepare_guesses(struct mend *m)
{
    m->guessing = true;
    for (size_t i = 0; i < m->n_keys; i++)
        add_used(&m->used, m->keys[i].value);
    for (size_t i = 0; i < m->n; i++) {
        const struct statement *s = &m->v[i];
        if (s->context && !m->context)
            m->context = s->id;
        const char *p = m->text + s->off, *end = p + s->len, *eq = memchr(p, '=', s->len);
        for (p = eq ? eq : end; p < end;) {
            uint64_t id;
            if (*p == '\'') {
                p = step_string_end(p, end);
                p = p ? p : end;
            } else if (*p++ == '#' && number(&p, end, &id)) {
                add_used(&m->used, id);
            }
        }
    }
    if (m->used.n)
        qsort(m->used.v, m->used.n, sizeof *m->used.v, by_value);
}

/* The instance for a key without annotation: lists of a presentation hold the styled
 * items that nothing else refers to, in their order; beside the list stands the context. */
static uint64_t guess(struct mend *m, const struct statement *s, bool in_list)
{
    if (!s->presentation)
        return 0;
    if (!m->guessing)
        prepare_guesses(m);
    if (!in_list)
        return m->context;
    for (; m->next_styled < m->n; m->next_styled++) {
        const struct statement *c = &m->v[m->next_styled];
        if (c->styled && c->id && !is_used(&m->used, c->id)) {
            m->next_styled++;
            return c->id;
        }
    }
    return 0;
}

/* Keys behind statement i and ahead of the next one with placeholders, sorted by
 * number; of equal ones the last counts.  *from moves on. */
static struct key *keys_of(struct mend *m, size_t i, size_t next, size_t *from, size_t *n)
{
    while (*from < m->n_keys && m->keys[*from].statement <= i)
        (*from)++;
    struct key *first = m->keys + *from;
    while (*from < m->n_keys && m->keys[*from].statement <= next)
        (*from)++;
    *n = (size_t)(m->keys + *from - first);
    if (*n)
        qsort(first, *n, sizeof *first, by_key);
    return first;
}

static uint64_t key_value(const struct key *keys, size_t n, uint64_t k)
{
    size_t lo = 0, hi = n; /* the first key above k */
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (keys[mid].k <= k)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo && keys[lo - 1].k == k ? keys[lo - 1].value : 0;
}

/* ---- writing ---- */

/* Writes a statement lean and mended, on a line of its own. */
static void put(struct mend *m, const struct statement *s, const struct key *keys, size_t n_keys, struct buf *out)
{
    const char *p = m->text + s->off, *end = p + s->len;
    size_t first = out->n;
    int depth = 0;
    bool removed = false; /* a list element was dropped: so is one comma */
    if (!s->id || !(s->placeholders || s->gaps)) {
        step_put_lean(p, s->len, out);
        buf_putc(out, '\n');
        return;
    }
    while (p < end) {
        char c = *p, last = out->n > first ? out->s[out->n - 1] : 0;
        const char *q = (unsigned char)c <= ' ' || c == 127 || c == '/' || c == '\\' ? step_skip_space(p, end) : p;
        if (q > p) {
            p = q;
        } else if (c == '\'') {
            q = step_string_end(p, end);
            q = q ? q : end;
            step_put_lean(p, (size_t)(q - p), out);
            p = q;
        } else if (c == '#' && is_placeholder(p, end)) {
            uint64_t k, id;
            const char *digits = p + 4;
            bool good = number(&digits, end, &k);
            while (digits < end && is_digit(*digits))
                digits++;
            p = digits;
            if (good && (id = key_value(keys, n_keys, k))) {
                m->report->resolved++;
            } else if ((id = guess(m, s, depth > 1))) {
                m->report->guessed++;
            } else {
                m->report->dropped++;
                removed = depth > 1;
                if (!removed)
                    buf_putc(out, '$');
                else if (last == ',')
                    out->n--;
                continue;
            }
            buf_putc(out, '#');
            buf_put_u64(out, id);
        } else {
            bool gap = is_gap(last, c);
            if (gap && removed && c == ',') { /* (#ID_1,#2): the comma goes with its element */
                removed = false;
                p++;
                continue;
            }
            if (gap) {
                buf_puts(out, s->colour && depth == 1 && last == '(' ? "''" : "$");
                m->report->empty++;
            }
            depth += c == '(' ? 1 : c == ')' ? -1 : 0;
            removed = false;
            buf_putc(out, c);
            p++;
        }
    }
    buf_putc(out, '\n');
}

/* Instances that repeat an earlier one word for word. */
struct seen {
    uint64_t id;
    uint32_t at, len; /* in the output; len 0: free */
};

static bool repeats(struct seen *seen, size_t n_seen, uint64_t id, const struct buf *out, size_t at)
{
    /* Numbers come nearly in order: 64 neighbours stay together in memory. */
    size_t k = ((size_t)mix64(id >> 6) << 6 | (id & 63)) & (n_seen - 1);
    for (; seen[k].len; k = (k + 1) & (n_seen - 1))
        if (seen[k].id == id)
            return seen[k].len == out->n - at && !memcmp(out->s + seen[k].at, out->s + at, seen[k].len);
    seen[k] = (struct seen){.id = id, .at = (uint32_t)at, .len = (uint32_t)(out->n - at)};
    return false;
}

/* An error of the mended text, which has one statement a line, in terms of the given one. */
static int relocate(const char *name, const char *text, size_t n, const uint32_t *line_off, size_t n_lines)
{
    char *copy = xstrdup(err_text());
    char *p = copy + (strncmp(copy, name, strlen(name)) ? 0 : strlen(name)), *rest;
    int rc = err_code();
    if (*p == ':') {
        unsigned long line = strtoul(p + 1, &rest, 10);
        char *message = strstr(rest, ": ");
        if (line && message) {
            size_t off = line <= n_lines ? line_off[line - 1] : n;
            off = (size_t)(step_skip_space(text + off, text + n) - text);
            rc = step_error(name, text, n, off, "%s", message + 2);
        }
    }
    free(copy);
    return rc;
}

/* ---- what needs no mending ---- */

/* Counts the comments of a span; its statements go to out, lean, each on a line of its own (out NULL: they do not). */
static void put_statements(const char *p, const char *end, struct buf *out, struct step_restore_report *report)
{
    for (const char *start = p; p < end;) {
        if (*p == '\'') {
            const char *q = step_string_end(p, end);
            p = q ? q : end;
        } else if (*p == '/' && p + 1 < end && p[1] == '*') {
            const char *q = memmem(p + 2, (size_t)(end - p - 2), "*/", 2);
            report->comments++;
            p = q ? q + 2 : end;
        } else if (*p == '<') { /* a URI of edition 3 may hold what elsewhere begins a string or a comment */
            if (out)
                step_put_lean(start, (size_t)(p - start), out);
            for (start = p; p < end && *p != '>' && (unsigned char)*p > ' '; p++)
                ;
            if (out)
                buf_add(out, start, (size_t)(p - start));
            start = p;
        } else if (*p++ == ';' && out) {
            step_put_lean(start, (size_t)(p - start), out);
            buf_putc(out, '\n');
            start = p;
        }
    }
}

/* A text that parses as it is holds no placeholder and lacks no value: it is written lean, without cutting it up first and
 * parsing what comes out.  False: it is another kind of text. */
static bool restore_whole(const char *name, const char *text, size_t n, struct buf *out, struct step_restore_report *report)
{
    struct step_file *f;
    const char *from = text + (begins(text, text + n, "\xef\xbb\xbf") ? 3 : 0);
    if (!begins(step_skip_space(from, text + n), text + n, "ISO-10303-21") || step_parse(name, text, n, 0, &f) < 0)
        return false;
    buf_grow(out, n + f->n);
    for (size_t i = 0; i < f->n; i++) {
        const char *p = text + f->v[i].off;
        size_t len = f->v[i].len;
        if (p - from > 1 || *from > ' ')
            put_statements(from, p, out, report);
        if (memchr(p, '/', len))
            put_statements(p, p + len, NULL, report);
        step_put_lean(p, len, out);
        buf_putc(out, '\n');
        from = p + len;
    }
    put_statements(from, text + f->end, out, report);
    step_free(f);
    return true;
}

static int restore_named(const char *name, const char *text, size_t n, struct buf *out, struct step_restore_report *report)
{
    if (restore_whole(name, text, n, out, report))
        return ERR_OK;
    if (n >= UINT32_MAX)
        return err_set(ERR_NOMEM, "%s: %zu bytes is over the limit of 4 GiB", name, n);
    struct mend m = {.text = text, .end = text + n, .report = report};
    if (n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
        m.text += 3;
    cut(&m);

    size_t base = out->n, n_lines = 0, n_seen = 16;
    while (n_seen < 2 * m.n)
        n_seen *= 2;
    struct seen *seen = xcalloc(n_seen, sizeof *seen);
    uint32_t *line_off = xcalloc(m.n + 8, sizeof *line_off);
    buf_grow(out, n);
    if (m.n && !begins(step_skip_space(m.text, m.end), m.end, "ISO-10303-21")) {
        report->header = true;
        step_put_standard_header(out);
        n_lines = 6;
        if (!begins(step_skip_space(m.text, m.end), m.end, "DATA")) {
            buf_puts(out, "DATA;\n");
            n_lines++;
        }
    }
    size_t from = 0;
    for (size_t i = 0; i < m.n; i++) {
        struct key *keys = NULL;
        size_t n_keys = 0, at = out->n;
        if (m.v[i].placeholders && m.n_keys) {
            size_t next = i + 1;
            while (next < m.n && !m.v[next].placeholders)
                next++;
            keys = keys_of(&m, i, next, &from, &n_keys);
        }
        put(&m, &m.v[i], keys, n_keys, out);
        if (m.v[i].id && repeats(seen, n_seen, m.v[i].id, out, at)) {
            out->n = at;
            report->duplicates++;
            continue;
        }
        line_off[n_lines++] = m.v[i].off + (uint32_t)(m.text - text);
    }
    out->s[out->n] = 0;

    struct step_file *f;
    int rc = step_parse(name, out->s + base, out->n - base, 0, &f);
    if (rc < 0)
        rc = relocate(name, text, n, line_off, n_lines);
    else
        step_free(f);
    free(line_off);
    free(seen);
    free(m.used.v);
    free(m.keys);
    free(m.v);
    return rc;
}

int step_restore(const char *name, const char *text, size_t n, struct buf *out, struct step_restore_report *report)
{
    *report = (struct step_restore_report){0};
    if (!step_is_compact(text, n))
        return restore_named(name, text, n, out, report);
    struct buf named = BUF_INIT;
    report->compact = true;
    step_expand(text, n, &named);
    int rc = restore_named(name, named.s, named.n, out, report);
    buf_release(&named);
    return rc;
}
