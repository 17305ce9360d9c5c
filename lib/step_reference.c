#define PCRE2_CODE_UNIT_WIDTH 8
#include "lib/step_reference.h"

#include <pcre2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"

/* ---- text as Python has it ---- */

/* Length of the UTF-8 character at p, or minus the length of the invalid piece (as
 * Unicode's "maximal subpart", which is what Python drops). */
static int utf8_length(const char *p, const char *end)
{
    unsigned char c = (unsigned char)*p, lo = 0x80, hi = 0xbf;
    int n = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    if (!n)
        return -1;
    if (c == 0xe0)
        lo = 0xa0;
    if (c == 0xed)
        hi = 0x9f;
    if (c == 0xf0)
        lo = 0x90;
    if (c == 0xf4)
        hi = 0x8f;
    for (int i = 1; i < n; i++) {
        if (p + i >= end || (unsigned char)p[i] < lo || (unsigned char)p[i] > hi)
            return -i;
        lo = 0x80;
        hi = 0xbf;
    }
    return n;
}

static uint32_t code_point(const char *p, int len)
{
    const unsigned char *s = (const unsigned char *)p;
    switch (len) {
    case 1: return s[0];
    case 2: return (s[0] & 31u) << 6 | (s[1] & 63u);
    case 3: return (s[0] & 15u) << 12 | (s[1] & 63u) << 6 | (s[2] & 63u);
    default: return (s[0] & 7u) << 18 | (s[1] & 63u) << 12 | (s[2] & 63u) << 6 | (s[3] & 63u);
    }
}

/* Characters beyond ASCII are rare: PCRE2's Unicode tables answer one at a time. */
static pcre2_code *word_class, *digit_class;

static void compile_classes(void)
{
    int code;
    PCRE2_SIZE at;
    word_class = pcre2_compile((PCRE2_SPTR) "[\\p{L}\\p{N}]", PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &code, &at, NULL);
    digit_class = pcre2_compile((PCRE2_SPTR) "\\p{Nd}", PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &code, &at, NULL);
}

static bool in_class(const char *p, int len, bool digit)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, compile_classes);
    pcre2_match_data *md = pcre2_match_data_create(1, NULL);
    int rc = pcre2_match(digit ? digit_class : word_class, (PCRE2_SPTR)p, (PCRE2_SIZE)len, 0, 0, md, NULL);
    pcre2_match_data_free(md);
    return rc >= 0;
}

static inline bool ascii_digit(char c)
{
    return c >= '0' && c <= '9';
}

static inline bool ascii_word(char c)
{
    return ascii_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
}

/* Length of the digit, word character or space at p; 0: none there. */
static inline int digit_at(const char *p, const char *end)
{
    if (p >= end)
        return 0;
    if ((unsigned char)*p < 0x80)
        return ascii_digit(*p);
    int len = utf8_length(p, end);
    return in_class(p, len, true) ? len : 0;
}

static inline int word_at(const char *p, const char *end)
{
    if (p >= end)
        return 0;
    if ((unsigned char)*p < 0x80)
        return ascii_word(*p);
    int len = utf8_length(p, end);
    return in_class(p, len, false) ? len : 0;
}

static inline int space_at(const char *p, const char *end)
{
    if (p >= end)
        return 0;
    unsigned char c = (unsigned char)*p;
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
    int len = utf8_length(p, end);
    uint32_t u = code_point(p, len);
    return u == 0x85 || u == 0xa0 || u == 0x1680 || (u >= 0x2000 && u <= 0x200a) || u == 0x2028 || u == 0x2029 ||
           u == 0x202f || u == 0x205f || u == 0x3000 ? len : 0;
}

/* Start of the character that ends at p. */
static inline const char *back(const char *p, const char *start)
{
    p--;
    while (p > start && ((unsigned char)*p & 0xc0) == 0x80)
        p--;
    return p;
}

static const char *skip_space(const char *p, const char *end)
{
    int len;
    while ((len = space_at(p, end)))
        p += len;
    return p;
}

static const char *skip_digits(const char *p, const char *end)
{
    int len;
    while ((len = digit_at(p, end)))
        p += len;
    return p;
}

/* Decimal digits come in tens, runs of them after each other. */
static int digit_value(const char *p, int len)
{
    if (len == 1)
        return *p - '0';
    uint32_t c = code_point(p, len), first = c;
    char t[4];
    memcpy(t, p, (size_t)len);
    while (((unsigned char)t[len - 1]) > 0x80 && first > c - 50) { /* runs do not cross 64s but for the mathematical ones */
        t[len - 1]--;
        if (!in_class(t, len, true))
            break;
        first--;
    }
    if (c >= 0x1d7ce && c <= 0x1d7ff)
        first = 0x1d7ce;
    return (int)(c - first) % 10;
}

/* The digits at p as ASCII, leading zeros cut off ("0" at least). */
static const char *ascii_number(const char *p, const char *end, struct buf *out)
{
    size_t first = out->n;
    int len;
    while ((len = digit_at(p, end))) {
        int v = digit_value(p, len);
        if (v || out->n > first)
            buf_putc(out, (char)('0' + v));
        p += len;
    }
    if (out->n == first)
        buf_putc(out, '0');
    return p;
}

/* The number at p: where it ends (p itself if there is none).  The original's have no limit: beyond 18
 * digits, v is the first 18 mixed with the others, above all smaller numbers. */
static inline const char *number(const char *p, const char *end, uint64_t *v)
{
    int len;
    const char *s = p;
    uint64_t plain = 0;
    for (; p < end && ascii_digit(*p) && p - s < 18; p++)
        plain = plain * 10 + (uint64_t)(*p - '0');
    *v = plain;
    if (p >= end || (!ascii_digit(*p) && (unsigned char)*p < 0x80))
        return p;
    p = s;
    *v = 0;
    while ((len = digit_at(p, end))) {
        uint64_t digit = (uint64_t)digit_value(p, len);
        *v = *v < 100000000000000000u ? *v * 10 + digit : (*v * 0x9e3779b97f4a7c15u + digit) | (uint64_t)1 << 63;
        p += len;
    }
    return p;
}

/* '#' digits spaces '=' at p: behind the '=', or NULL. */
static const char *definition(const char *p, const char *end, uint64_t *id)
{
    if (p >= end || *p != '#')
        return NULL;
    const char *q = number(p + 1, end, id);
    if (q == p + 1)
        return NULL;
    q = skip_space(q, end);
    return q < end && *q == '=' ? q + 1 : NULL;
}

/* What kinds of bytes a text holds: a loop that the compiler makes 32 bytes wide. */
static void survey(const char *text, size_t n, bool *ascii, bool *cr, bool *breaks)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char any = 0, is_cr = 0, is_break = 0; /* VT, FF, FS, GS, RS */
    for (size_t i = 0; i < n; i++) {
        unsigned char c = s[i];
        any |= c;
        is_cr |= (unsigned char)(c == '\r');
        is_break |= (unsigned char)((unsigned char)(c - 11) < 2) | (unsigned char)((unsigned char)(c - 28) < 3);
    }
    *ascii = any < 0x80;
    *cr = is_cr;
    *breaks = is_break;
}

enum bad_bytes { DROP, LATIN1, FAIL };

/* The text as valid UTF-8: itself, or made anew in store. */
static int decode(const char **text, size_t *n, enum bad_bytes bad, bool newlines, struct buf *store)
{
    const char *s = *text, *end = s + *n, *p = s;
    bool valid = true, cr, ascii, breaks;
    survey(s, *n, &ascii, &cr, &breaks);
    while (p < end && !ascii) {
        if ((unsigned char)*p < 0x80) {
            p++;
            continue;
        }
        int len = utf8_length(p, end);
        valid &= len > 0;
        p += abs(len);
    }
    if (valid && !(cr && newlines))
        return ERR_OK;
    if (!valid && bad == FAIL)
        return ERR_FORMAT;
    buf_grow(store, *n + *n / 8);
    bool after_cr = false; /* also when dropped bytes stand between CR and LF */
    for (p = s; p < end;) {
        int len = utf8_length(p, end);
        if (newlines && (*p == '\r' || (*p == '\n' && after_cr))) {
            if ((after_cr = *p++ == '\r'))
                buf_putc(store, '\n');
            continue;
        }
        after_cr &= len <= 0 && bad == DROP;
        if (valid || len == 1 || (bad == DROP && len > 0)) {
            buf_add(store, p, (size_t)len);
            p += len;
        } else if (bad == DROP) {
            p += -len;
        } else {
            unsigned char c = (unsigned char)*p++;
            buf_putc(store, (char)(0xc0 | c >> 6));
            buf_putc(store, (char)(0x80 | (c & 63)));
        }
    }
    *text = store->s;
    *n = store->n;
    return ERR_OK;
}

/* ---- round ---- */

/* "%.*f" of the nearest double of the mantissa at s (whole digits, '.', fraction), without
 * going through one where the decimal digits tell the result. */
static void put_fixed(const char *s, size_t whole, size_t fraction, int decimals, struct buf *out)
{
    while (whole > 1 && *s == '0') {
        s++;
        whole--;
    }
    const char *f = s + whole + 1;
    size_t d = (size_t)decimals;
    if (whole <= 5 && d <= 6 && decimals > 0) {
        unsigned tail = 0; /* the four digits behind the cut */
        for (size_t i = d; i < d + 4; i++)
            tail = tail * 10 + (unsigned)(i < fraction ? f[i] - '0' : 0);
        if (fraction <= d || (tail != 5000 && tail != 4999)) {
            char t[16];
            memcpy(t, s, whole + 1);
            for (size_t i = 0; i < d; i++)
                t[whole + 1 + i] = i < fraction ? f[i] : '0';
            size_t i = whole + 1 + d;
            bool up = fraction > d && tail > 5000;
            while (up && i-- > 0) {
                if (t[i] == '.')
                    continue;
                up = t[i] == '9';
                t[i] = up ? '0' : (char)(t[i] + 1);
            }
            if (up)
                buf_putc(out, '1');
            buf_add(out, t, whole + 1 + d);
            return;
        }
    }
    char *copy = xstrndup(s, whole + 1 + fraction);
    buf_printf(out, "%.*f", decimals, strtod(copy, NULL));
    free(copy);
}

/* Where the exponent or sign behind a mantissa ends (mantissa_end: no tail); NULL: the
 * whole is no number.  *signed_tail: a sign without E, which keeps the text as it is. */
static const char *tail_end(const char *p, const char *end, bool *signed_tail)
{
    *signed_tail = false;
    char c = p < end ? *p : 0;
    if (p < end && c == 'E') {
        const char *q = p + 1;
        if (q < end && (*q == '+' || *q == '-')) {
            const char *r = skip_digits(q + 1, end);
            if (r > q + 1 && !word_at(r, end))
                return r;
            return word_at(q + 1, end) ? q + 1 : q;
        }
        q = skip_digits(q, end);
        return word_at(q, end) ? NULL : q;
    }
    if (p < end && (c == '+' || c == '-')) {
        const char *r = skip_digits(p + 1, end);
        *signed_tail = true;
        if (r > p + 1 && !word_at(r, end))
            return r;
        if (word_at(p + 1, end))
            return p + 1;
        *signed_tail = false;
        return p;
    }
    return word_at(p, end) ? NULL : p;
}

void step_reference_round(const char *text, size_t n, int decimals, struct buf *out)
{
    struct buf store = BUF_INIT, ascii = BUF_INIT;
    decode(&text, &n, DROP, true, &store);
    const char *end = text + n, *from = text; /* not yet copied */
    const char *free_from = text;             /* behind the last match: none begins earlier */
    buf_grow(out, n + n / 16);
    /* Every number has a point between two digits. */
    for (const char *dot = text; dot < end && (dot = memchr(dot, '.', (size_t)(end - dot))); dot++) {
        const char *s = dot, *prev;
        if (dot == text || !digit_at(dot + 1, end))
            continue;
        while (s > free_from && digit_at(prev = back(s, text), end))
            s = prev;
        if (s == dot || (s > text && word_at(back(s, text), end)))
            continue;
        const char *m = skip_digits(dot + 1, end);
        bool as_is;
        const char *stop = tail_end(m, end, &as_is);
        if (!stop)
            continue;
        free_from = stop;
        if (!as_is && !(s > text && s[-1] == '#')) {
            buf_add(out, from, (size_t)(s - from));
            from = m;
            bool plain = true;
            for (const char *p = s; p < m; p++)
                plain &= (unsigned char)*p < 0x80;
            if (plain) {
                put_fixed(s, (size_t)(dot - s), (size_t)(m - dot - 1), decimals, out);
            } else {
                buf_clear(&ascii);
                ascii_number(s, dot, &ascii);
                size_t whole = ascii.n;
                buf_putc(&ascii, '.');
                for (const char *p = dot + 1; p < m;) {
                    int len = digit_at(p, m);
                    buf_putc(&ascii, (char)('0' + digit_value(p, len)));
                    p += len;
                }
                put_fixed(ascii.s, whole, ascii.n - whole - 1, decimals, out);
            }
        }
        dot = stop - 1;
    }
    buf_add(out, from, (size_t)(end - from));
    buf_release(&store);
    buf_release(&ascii);
}

/* ---- a map of numbers ---- */

/* Keys below eight times their count, which are nearly all of a file's, stand in a table; the others are hashed.  UINT32_MAX is
 * no value. */
struct map {
    struct {
        uint64_t key;
        uint32_t value;
        bool used;
    } *v;
    size_t n, cap; /* cap: a power of two */
    uint32_t *table;
    size_t n_table, keys;
};

static void map_free(struct map *m)
{
    free(m->v);
    free(m->table);
}

static uint32_t *hash_at(struct map *m, uint64_t key, bool add)
{
    if (add && 2 * (m->n + 1) > m->cap) {
        struct map old = *m;
        m->cap = old.cap ? old.cap * 2 : 64;
        m->n = 0;
        m->v = xcalloc(m->cap, sizeof *m->v);
        for (size_t i = 0; i < old.cap; i++)
            if (old.v[i].used)
                *hash_at(m, old.v[i].key, true) = old.v[i].value;
        free(old.v);
    }
    if (!m->cap)
        return NULL;
    /* Numbers come nearly in order: 64 neighbours stay together in memory. */
    size_t i = ((size_t)mix64(key >> 6) << 6 | (key & 63)) & (m->cap - 1);
    for (; m->v[i].used; i = (i + 1) & (m->cap - 1))
        if (m->v[i].key == key)
            return &m->v[i].value;
    if (!add)
        return NULL;
    m->v[i].used = true;
    m->v[i].key = key;
    m->v[i].value = UINT32_MAX;
    m->n++;
    return &m->v[i].value;
}

/* Where the key's value is, or, if it has none yet, is to be put; else NULL. */
static inline uint32_t *map_at(struct map *m, uint64_t key, bool add)
{
    if (key < m->n_table && m->table[key] != UINT32_MAX)
        return &m->table[key];
    uint32_t *hashed = m->n ? hash_at(m, key, false) : NULL;
    if (hashed || !add)
        return hashed;
    m->keys++;
    if (key >= 8 * (uint64_t)m->keys + 1024)
        return hash_at(m, key, true);
    if (key >= m->n_table) {
        size_t n = key < 512 ? 1024 : 2 * (size_t)key;
        m->table = xrealloc(m->table, n * sizeof *m->table);
        memset(m->table + m->n_table, 0xff, (n - m->n_table) * sizeof *m->table);
        m->n_table = n;
    }
    return &m->table[key];
}

/* ---- restructure: reading ---- */

struct span {
    const char *s;
    size_t n;
};
struct entity {
    uint64_t id;
    struct span simple, type, params; /* simple.s NULL: there is none */
    struct span complex;
    uint32_t ref, n_ref;
    bool named;   /* by another entity */
    bool printed, replaced;
    bool closed;  /* it and all that can be reached from it are printed */
    uint8_t depth_ever, depth_now; /* least depth of expansion, in the epoch or walk of the next two */
    uint32_t epoch_ever, epoch_now;
    uint32_t seen; /* walk * 2, + 1 if only cut so far */
    bool on_path;
};

enum { MAX_DEPTH = 20 };
static const char mdgpr[] = "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION";

struct doc {
    struct entity *v;
    size_t n, cap;
    struct map ids; /* id -> index */
    uint32_t *refs;
    size_t n_refs, ref_cap;
    uint32_t walk, epoch;
    bool partial;    /* the walk may have missed something that can be reached */
    uint32_t *order; /* what a walk met, uncut, in its order */
    size_t n_order;
    struct buf items; /* the output, one item after the other, old numbers */
    size_t *item;     /* where they end */
    size_t n_items, item_cap;
    struct step_reference_report *report;
};

static struct entity *entity_of(struct doc *d, uint64_t id)
{
    uint32_t *at = map_at(&d->ids, id, true);
    if (*at == UINT32_MAX) {
        ARRAY_GROW(d->v, d->cap, d->n + 1);
        *at = (uint32_t)d->n;
        d->v[d->n++] = (struct entity){.id = id};
    }
    return &d->v[*at];
}

/* KEYWORD '(' at p, white space ahead of the parenthesis allowed: behind it, or NULL. */
static const char *keyword(const char *p, const char *end, struct span *word)
{
    word->s = p;
    if (p >= end || !((*p >= 'A' && *p <= 'Z') || *p == '_'))
        return NULL;
    while (p < end && ((*p >= 'A' && *p <= 'Z') || *p == '_' || ascii_digit(*p)))
        p++;
    word->n = (size_t)(p - word->s);
    p = skip_space(p, end);
    return p < end && *p == '(' ? p + 1 : NULL;
}

/* Stores the candidate s..end ("#n = ... ;"), or drops it. */
static void take_candidate(struct doc *d, const char *s, const char *end)
{
    bool is_complex = false;
    uint64_t id;
    const char *p, *q;
    d->report->statements++;
    for (p = s; !is_complex && p < end && (p = memchr(p, '#', (size_t)(end - p))); p++)
        if ((q = definition(p, end, &id))) {
            q = skip_space(q, end);
            is_complex = q < end && *q == '(';
        }
    /* All places of the candidate share its end: one ')' ahead of the ';', or a line end. */
    const char *last = end - 1;
    while (last > s && space_at(back(last, s), end))
        last = back(last, s);
    const char *close = last > s && last[-1] == ')' ? last - 1 : NULL;
    const char *last_break = memrchr(s, '\n', (size_t)(end - s));
    for (p = s; p < end && (p = memchr(p, '#', (size_t)(end - p))); p++) {
        struct span word;
        if (!(q = definition(p, end, &id)))
            continue;
        q = skip_space(q, end);
        if (is_complex) {
            if (last_break && last_break >= q)
                continue;
            entity_of(d, id)->complex = (struct span){s, (size_t)(end - s)};
            return;
        }
        if (!(q = keyword(q, end, &word)) || !close || close < q)
            continue;
        struct entity *e = entity_of(d, id);
        e->simple = (struct span){s, (size_t)(end - s)};
        e->type = word;
        e->params = (struct span){q, (size_t)(close - q)};
        return;
    }
}

static void read_candidates(struct doc *d, const char *s, const char *end)
{
    uint64_t id;
    for (const char *p = s; p < end && (p = memchr(p, '#', (size_t)(end - p)));) {
        const char *q = definition(p, end, &id);
        const char *stop = q ? memchr(q, ';', (size_t)(end - q)) : NULL;
        if (q && !stop)
            break;
        if (!q || stop == q) {
            p++;
            continue;
        }
        take_candidate(d, p, stop + 1);
        p = stop + 1;
    }
}

static void find_references(struct doc *d)
{
    for (size_t i = 0; i < d->n; i++) {
        struct entity *e = &d->v[i];
        struct span s = e->simple.s ? e->params : e->complex;
        e->ref = (uint32_t)d->n_refs;
        const char *end = s.s + s.n;
        for (const char *p = s.s; p && p < end && (p = memchr(p, '#', (size_t)(end - p)));) {
            uint64_t id;
            const char *q = number(p + 1, end, &id);
            uint32_t *at = q > p + 1 ? map_at(&d->ids, id, false) : NULL;
            if (at && *at != i) {
                ARRAY_GROW(d->refs, d->ref_cap, d->n_refs + 1);
                d->refs[d->n_refs++] = *at;
                d->v[*at].named = true;
            }
            p = q;
        }
        e->n_ref = (uint32_t)d->n_refs - e->ref;
    }
}

static bool is_type(const struct entity *e, const char *type)
{
    return e->simple.s && e->type.n == strlen(type) && !memcmp(e->type.s, type, e->type.n);
}

static bool is_face(const struct entity *e)
{
    return is_type(e, "ADVANCED_FACE") || is_type(e, "FACE_SURFACE") || is_type(e, "FACE");
}

/* ---- restructure: walks ---- */

/* The original expands the whole tree under a root, 20 levels deep, and cuts where an
 * entity is already on the path.  Only first appearances matter, so an entity need be
 * expanded again only at a lesser depth than before:
 * EVER  than in any walk of this epoch, since all it reached has been printed;
 * NOW   than in this walk (nothing is printed);
 * CUTS  as NOW, and an entity whose first appearance is cut never counts. */
enum walk_kind { EVER, NOW, CUTS };

static bool expand(struct doc *d, struct entity *e, uint8_t depth, enum walk_kind kind)
{
    bool ever = e->epoch_ever == d->epoch, now = e->epoch_now == d->walk;
    if (e->closed && kind != NOW)
        return false;
    if (kind == EVER) {
        if (ever && e->depth_ever <= depth)
            return false;
        e->epoch_ever = d->epoch;
        e->depth_ever = depth;
        return true;
    }
    if (now && e->depth_now <= depth)
        return false;
    if (kind == CUTS && ever && e->depth_ever < depth) {
        d->partial = true;
        return false;
    }
    e->epoch_now = d->walk;
    e->depth_now = depth;
    return true;
}

/* Pre-order from root into d->order.  prune: products' formations and contexts are leaves. */
static void walk(struct doc *d, uint32_t root, enum walk_kind kind, bool prune)
{
    struct {
        uint32_t entity, next, end;
    } path[MAX_DEPTH + 1];
    int depth = 0;
    uint32_t at = root;
    d->walk++;
    d->n_order = 0;
    d->partial = false;
    for (;;) {
        struct entity *e = &d->v[at];
        bool cut = depth > MAX_DEPTH || e->on_path, unseen = e->seen / 2 != d->walk;
        d->partial |= depth > MAX_DEPTH;
        if (cut && unseen)
            e->seen = d->walk * 2 + 1;
        if (!cut) {
            if (unseen || (e->seen % 2 && kind != CUTS)) {
                e->seen = d->walk * 2;
                d->order[d->n_order++] = at;
            }
            bool leaf = prune && (is_type(e, "PRODUCT_DEFINITION_FORMATION_WITH_SPECIFIED_SOURCE") ||
                                  is_type(e, "PRODUCT_DEFINITION_CONTEXT"));
            if (e->n_ref && !leaf && expand(d, e, (uint8_t)depth, kind)) {
                path[depth].entity = at;
                path[depth].next = e->ref;
                path[depth].end = e->ref + e->n_ref;
                e->on_path = true;
                depth++;
            }
        }
        while (depth && path[depth - 1].next == path[depth - 1].end)
            d->v[path[--depth].entity].on_path = false;
        if (!depth)
            return;
        at = d->refs[path[depth - 1].next++];
    }
}

/* Breadth first from all roots at once. */
static void walk_levels(struct doc *d, const uint32_t *roots, size_t n_roots)
{
    d->walk++;
    d->n_order = 0;
    for (size_t i = 0; i < n_roots; i++) {
        d->v[roots[i]].seen = d->walk * 2;
        d->order[d->n_order++] = roots[i];
    }
    size_t level_end = d->n_order;
    uint8_t depth = 0;
    for (size_t i = 0; i < d->n_order; i++) {
        if (i == level_end) {
            level_end = d->n_order;
            depth++;
        }
        struct entity *e = &d->v[d->order[i]];
        expand(d, e, depth, EVER);
        for (uint32_t k = 0; k < e->n_ref && depth < MAX_DEPTH; k++) {
            struct entity *c = &d->v[d->refs[e->ref + k]];
            if (c->seen == d->walk * 2)
                continue;
            c->seen = d->walk * 2;
            d->order[d->n_order++] = d->refs[e->ref + k];
        }
    }
}

/* ---- restructure: items ---- */

static void end_item(struct doc *d)
{
    ARRAY_GROW(d->item, d->item_cap, d->n_items + 1);
    d->item[d->n_items++] = d->items.n;
}

static void put_entity(struct doc *d, struct entity *e)
{
    struct span s = e->simple.s ? e->simple : e->complex;
    buf_add(&d->items, s.s, s.n);
    e->printed = true;
    end_item(d);
}

/* Likewise, with each token of a replaced colour turned into the unified one. */
static void put_recoloured(struct doc *d, struct entity *e, const struct buf *unified)
{
    struct span s = e->simple.s ? e->simple : e->complex;
    const char *p = s.s, *end = p + s.n, *from = p;
    while (p < end && (p = memchr(p, '#', (size_t)(end - p)))) {
        uint64_t id;
        const char *q = number(p + 1, end, &id);
        uint32_t *at = q > p + 1 && !word_at(q, end) ? map_at(&d->ids, id, false) : NULL;
        if (at && d->v[*at].replaced) {
            buf_add(&d->items, from, (size_t)(p - from));
            buf_putc(&d->items, '#');
            buf_add(&d->items, unified->s, unified->n);
            from = q;
        }
        p = q;
    }
    buf_add(&d->items, from, (size_t)(end - from));
    e->printed = true;
    end_item(d);
}

static void put_order(struct doc *d)
{
    for (size_t i = 0; i < d->n_order; i++)
        if (!d->v[d->order[i]].printed)
            put_entity(d, &d->v[d->order[i]]);
}

/* The digits of a simple entity's number. */
static void put_id(const struct entity *e, struct buf *out)
{
    const char *end = e->simple.s + e->simple.n;
    for (const char *p = e->simple.s; p < end && (p = memchr(p, '#', (size_t)(end - p))); p++) {
        uint64_t id;
        if (definition(p, end, &id) && id == e->id) {
            ascii_number(p + 1, end, out);
            return;
        }
    }
}

#define NOTE(d, ...) (buf_printf(&(d)->items, __VA_ARGS__), end_item(d))

static void put_presentation(struct doc *d, uint32_t root)
{
    const struct entity *r = &d->v[root];
    size_t n_styled = 0, n_complex = 0, n_colours = 0;
    struct buf unified = BUF_INIT; /* the number of the colour that stands for all */
    for (uint32_t k = 0; k < r->n_ref; k++) {
        const struct entity *c = &d->v[d->refs[r->ref + k]];
        n_styled += is_type(c, "STYLED_ITEM");
        n_complex += c->complex.s != NULL;
    }
    NOTE(d, "/* %s Section - %zu STYLED_ITEM, %zu COMPLEX_ENTITY */", mdgpr, n_styled, n_complex);
    put_entity(d, &d->v[root]);

    walk(d, root, NOW, false);
    uint32_t *colours = xmalloc((d->n_order + 1) * sizeof *colours);
    for (size_t i = 0; i < d->n_order; i++)
        if (is_type(&d->v[d->order[i]], "COLOUR_RGB"))
            colours[n_colours++] = d->order[i];
    if (n_colours) {
        put_id(&d->v[colours[0]], &unified);
        NOTE(d, "#%s=COLOUR_RGB( , 0.5, 0.5, 0.5 );", unified.s);
        d->v[colours[0]].printed = true;
        d->report->colours++;
        for (size_t i = 1; i < n_colours; i++)
            d->v[colours[i]].replaced = true;
    }
    size_t nth = 0;
    for (uint32_t k = 0; k < r->n_ref; k++) {
        uint32_t c = d->refs[r->ref + k];
        if (!is_type(&d->v[c], "STYLED_ITEM"))
            continue;
        NOTE(d, "/* BEGIN STYLED_ITEM %zu */", ++nth);
        walk(d, c, EVER, false);
        for (size_t i = 0; i < d->n_order; i++) {
            struct entity *e = &d->v[d->order[i]];
            if (!e->printed && !e->replaced)
                put_recoloured(d, e, &unified);
        }
        NOTE(d, "/* END STYLED_ITEM %zu */", nth);
    }
    if (n_colours > 1) /* the replaced ones were met but not printed */
        d->epoch++;
    nth = 0;
    for (uint32_t k = 0; k < r->n_ref; k++) {
        uint32_t c = d->refs[r->ref + k];
        if (!d->v[c].complex.s)
            continue;
        NOTE(d, "/* BEGIN COMPLEX_ENTITY %zu */", ++nth);
        walk(d, c, CUTS, false);
        put_order(d);
        for (size_t i = 0; i < d->n_order && !d->partial; i++)
            d->v[d->order[i]].closed = true;
        NOTE(d, "/* END COMPLEX_ENTITY %zu */", nth);
    }
    for (size_t i = 1; i < n_colours; i++)
        d->v[colours[i]].replaced = false;
    buf_release(&unified);
    free(colours);
}

static int by_id(const void *a, const void *b)
{
    const struct entity *x = *(const struct entity *const *)a, *y = *(const struct entity *const *)b;
    if (!(x->id >> 63 && y->id >> 63))
        return (x->id > y->id) - (x->id < y->id);
    struct buf s = BUF_INIT, t = BUF_INIT; /* beyond 18 digits the text tells */
    put_id(x, &s);
    put_id(y, &t);
    int c = s.n != t.n ? (s.n > t.n) - (s.n < t.n) : memcmp(s.s, t.s, s.n);
    buf_release(&s);
    buf_release(&t);
    return c;
}

/* Roots of a type, ascending ids. */
static size_t roots_of(const struct doc *d, const char *type, uint32_t *out)
{
    const struct entity **v = NULL;
    size_t n = 0, cap = 0;
    for (size_t i = 0; i < d->n; i++)
        if (!d->v[i].named && is_type(&d->v[i], type)) {
            ARRAY_GROW(v, cap, n + 1);
            v[n++] = &d->v[i];
        }
    if (n)
        qsort(v, n, sizeof *v, by_id);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint32_t)(v[i] - d->v);
    free(v);
    return n;
}

/* ---- restructure: numbers and placeholders ---- */

/* Reads "#n = MDGPR (" at p. */
static bool is_presentation(const char *p, const char *end)
{
    uint64_t id;
    struct span word;
    const char *q = definition(p, end, &id);
    return q && keyword(skip_space(q, end), end, &word) && word.n == sizeof mdgpr - 1 && !memcmp(word.s, mdgpr, word.n);
}

/* Copies s..end with the tokens "#n" that new_id has renumbered; prefix "ID_" or "".  Adds the tokens
 * that it has not to *below if their number is one of 1..count, else to *above. */
static void put_renumbered(const char *s, const char *end, struct map *new_id, const char *prefix, uint64_t count,
                           size_t *below, size_t *above, struct buf *out)
{
    const char *p = s, *from = s;
    while (p < end && (p = memchr(p, '#', (size_t)(end - p)))) {
        uint64_t id;
        const char *q = number(p + 1, end, &id);
        if (q > p + 1 && !word_at(q, end)) {
            uint32_t *to = map_at(new_id, id, false);
            if (!to)
                ++*(id && id <= count ? below : above);
            if (to) {
                buf_add(out, from, (size_t)(p - from));
                buf_putc(out, '#');
                buf_puts(out, prefix);
                buf_put_u64(out, *to);
                from = q;
            }
        }
        p = q;
    }
    buf_add(out, from, (size_t)(end - from));
}

/* Placeholders of a presentation item that its key lines, 1..n_keys, will not resolve: those of higher
 * numbers, and all behind the item's first line. */
static size_t unresolved(const char *s, const char *end, size_t n_keys)
{
    size_t n = 0;
    const char *line = memchr(s, '\n', (size_t)(end - s));
    for (const char *p = s; p < end && (p = memmem(p, (size_t)(end - p), "#ID_", 4)); p += 4)
        n += (line && p > line) || strtoull(p + 4, NULL, 10) > n_keys;
    return n;
}

/* References of a presentation root that were printed, in their order: key k is [k - 1]. */
struct keys {
    uint32_t *id; /* new numbers */
    size_t n, next;
};

static void put_items(struct doc *d, const uint32_t *presentations, size_t n_presentations, struct buf *out)
{
    struct map new_id = {0};
    uint32_t count = 0;
    for (size_t i = 0, at = 0; i < d->n_items; at = d->item[i++]) {
        uint64_t id;
        if (!definition(d->items.s + at, d->items.s + d->item[i], &id))
            continue;
        uint32_t *to = map_at(&new_id, id, true);
        if (*to == UINT32_MAX)
            *to = ++count;
        else
            d->report->duplicates++;
    }
    struct keys *lists = xcalloc(n_presentations + 1, sizeof *lists);
    for (size_t i = 0; i < n_presentations; i++) {
        const struct entity *e = &d->v[presentations[i]];
        lists[i].id = xmalloc((e->n_ref + 1) * sizeof *lists[i].id);
        for (uint32_t k = 0; k < e->n_ref; k++) {
            uint32_t *to = map_at(&new_id, d->v[d->refs[e->ref + k]].id, false);
            if (to)
                lists[i].id[lists[i].n++] = *to;
        }
    }
    struct buf line = BUF_INIT, keyed = BUF_INIT;
    size_t substituted = 0, current = 0; /* presentation items seen, in either sense */
    size_t root_at = 0, root_end = 0, ignored = 0; /* of the last one with placeholders, in out */
    struct keys *root_list = NULL;
    struct step_reference_report *report = d->report;
    for (size_t i = 0, at = 0; i < d->n_items; at = d->item[i++]) {
        const char *s = d->items.s + at, *end = d->items.s + d->item[i];
        buf_clear(&line);
        put_renumbered(s, end, &new_id, "", count, &report->aliased, &report->dangling, &line);
        const struct buf *item = &line;
        if (is_presentation(line.s, line.s + line.n)) {
            if (substituted < n_presentations && lists[substituted].n) {
                struct map key_of = {0};
                for (size_t k = 0; k < lists[substituted].n; k++)
                    *map_at(&key_of, lists[substituted].id[k], true) = (uint32_t)k + 1;
                buf_clear(&keyed);
                put_renumbered(line.s, line.s + line.n, &key_of, "ID_", 0, &ignored, &ignored, &keyed);
                map_free(&key_of);
                item = &keyed;
                if (root_list)
                    report->unresolved += unresolved(out->s + root_at, out->s + root_end, root_list->next);
                root_list = &lists[substituted];
                root_at = out->n;
                root_end = out->n + keyed.n;
            }
            substituted++;
            current += is_presentation(item->s, item->s + item->n);
        }
        buf_add(out, item->s, item->n);
        buf_putc(out, '\n');
        if (line.n > 20 && (!memcmp(line.s, "/* BEGIN STYLED_ITEM ", 21) || !memcmp(line.s, "/* BEGIN COMPLEX_ENT", 20)) &&
            current && current <= n_presentations) {
            struct keys *l = &lists[current - 1];
            if (l->next < l->n) {
                buf_printf(out, "/* ID_%zu = %u */\n", l->next + 1, l->id[l->next]);
                l->next++;
            }
        }
    }
    if (root_list)
        report->unresolved += unresolved(out->s + root_at, out->s + root_end, root_list->next);
    for (size_t i = 0; i < n_presentations; i++)
        free(lists[i].id);
    free(lists);
    map_free(&new_id);
    buf_release(&line);
    buf_release(&keyed);
}

int step_reference_restructure(const char *name, const char *text, size_t n, struct buf *out,
                               struct step_reference_report *report)
{
    struct buf store = BUF_INIT;
    decode(&text, &n, LATIN1, true, &store);
    const char *end = text + n;
    const char *data = memmem(text, n, "DATA;", 5), *stop = NULL;
    const char *head = memmem(text, n, "ISO-10303-21;", 13);
    const char *head_end = head ? memmem(head, (size_t)(end - head), "DATA;", 5) : NULL;
    *report = (struct step_reference_report){0};
    if (data)
        stop = memmem(data + 5, (size_t)(end - data - 5), "ENDSEC;", 7);
    if (!stop) {
        buf_release(&store);
        return err_set(ERR_FORMAT, "%s: no text between 'DATA;' and 'ENDSEC;'", name);
    }
    struct doc d = {.items = BUF_INIT, .epoch = 1, .report = report};
    read_candidates(&d, data + 5, stop);
    find_references(&d);
    d.order = xmalloc((d.n + 1) * sizeof *d.order);
    uint32_t *roots = xmalloc((d.n + 1) * sizeof *roots), *presentations = xmalloc((d.n + 1) * sizeof *presentations);

    size_t n_roots = roots_of(&d, "PRODUCT_CATEGORY_RELATIONSHIP", roots);
    if (n_roots) {
        NOTE(&d, "/* PRODUCT_CATEGORY_RELATIONSHIP Section - %zu root entities */", n_roots);
        walk_levels(&d, roots, n_roots);
        put_order(&d);
    }
    n_roots = roots_of(&d, "APPLICATION_PROTOCOL_DEFINITION", roots);
    for (size_t i = 0; i < n_roots; i++) {
        const struct entity *r = &d.v[roots[i]];
        bool usual = r->n_ref > 0; /* one level under the root */
        for (uint32_t k = 0; k < r->n_ref; k++)
            usual &= !d.v[d.refs[r->ref + k]].n_ref;
        if (!usual)
            NOTE(&d, "/* APPLICATION_PROTOCOL_DEFINITION Section - Unusual depth */");
        walk(&d, roots[i], EVER, false);
        put_order(&d);
    }
    size_t n_presentations = roots_of(&d, mdgpr, presentations);
    for (size_t i = 0; i < n_presentations; i++)
        put_presentation(&d, presentations[i]);
    n_roots = roots_of(&d, "SHAPE_DEFINITION_REPRESENTATION", roots);
    if (n_roots)
        NOTE(&d, "/* SHAPE_DEFINITION_REPRESENTATION Section - %zu subtrees */", n_roots);
    for (size_t i = 0; i < n_roots; i++) {
        NOTE(&d, "/* BEGIN SHAPE_DEFINITION_REPRESENTATION %zu */", i + 1);
        walk(&d, roots[i], EVER, true);
        put_order(&d);
        NOTE(&d, "/* END SHAPE_DEFINITION_REPRESENTATION %zu */", i + 1);
    }

    buf_grow(out, n);
    if (head_end)
        buf_add(out, head, (size_t)(head_end + 5 - head));
    buf_putc(out, '\n');
    put_items(&d, presentations, n_presentations, out);
    buf_puts(out, "ENDSEC;\nEND-ISO-10303-21;\n");

    size_t printed = 0;
    for (size_t i = 0; i < d.n; i++) {
        printed += d.v[i].printed;
        report->faces += !d.v[i].printed && is_face(&d.v[i]);
    }
    report->dropped = report->statements - printed;
    free(roots);
    free(presentations);
    free(d.v);
    map_free(&d.ids);
    free(d.refs);
    free(d.order);
    free(d.item);
    buf_release(&d.items);
    buf_release(&store);
    return ERR_OK;
}

/* ---- restore ---- */

/* Python's str.splitlines(): the end of the line at p, and where the next begins. */
static const char *line_end(const char *p, const char *end, const char **next)
{
    for (; p < end; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '\n' || (c >= 11 && c <= 12) || (c >= 28 && c <= 30)) {
            *next = p + 1;
            return p;
        }
        if (c == '\r') {
            *next = p + (p + 1 < end && p[1] == '\n' ? 2 : 1);
            return p;
        }
        if (c == 0xc2 && p + 1 < end && (unsigned char)p[1] == 0x85) { /* NEL */
            *next = p + 2;
            return p;
        }
        if (c == 0xe2 && end - p >= 3 && (unsigned char)p[1] == 0x80 && ((unsigned char)p[2] | 1) == 0xa9) { /* LS, PS */
            *next = p + 3;
            return p;
        }
    }
    *next = end;
    return end;
}

/* A whole line "/" "* ID_n = v *" "/": the digits of n and of v. */
static bool key_line(const char *p, const char *end, struct span *n, struct span *v)
{
    p = skip_space(p, end);
    if (end - p < 2 || memcmp(p, "/*", 2))
        return false;
    p = skip_space(p + 2, end);
    if (end - p < 3 || memcmp(p, "ID_", 3))
        return false;
    n->s = p + 3;
    p = skip_digits(n->s, end);
    n->n = (size_t)(p - n->s);
    p = skip_space(p, end);
    if (!n->n || p >= end || *p != '=')
        return false;
    v->s = skip_space(p + 1, end);
    p = skip_digits(v->s, end);
    v->n = (size_t)(p - v->s);
    p = skip_space(p, end);
    if (!v->n || end - p < 2 || memcmp(p, "*/", 2))
        return false;
    return skip_space(p + 2, end) == end;
}

struct key {
    struct span n, v;
    size_t at;
};

static int by_text(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    int c = memcmp(x->n.s, y->n.s, x->n.n < y->n.n ? x->n.n : y->n.n);
    if (!c)
        c = (x->n.n > y->n.n) - (x->n.n < y->n.n);
    return c ? c : (x->at > y->at) - (x->at < y->at);
}

/* The value of key n, the last one given; NULL s: none. */
static struct span find_key(const struct key *keys, size_t n_keys, struct span n)
{
    struct key want = {.n = n, .at = SIZE_MAX};
    size_t lo = 0, hi = n_keys;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (by_text(&keys[mid], &want) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo && keys[lo - 1].n.n == n.n && !memcmp(keys[lo - 1].n.s, n.s, n.n))
        return keys[lo - 1].v;
    return (struct span){0};
}

static void put_keyed(const char *s, const char *end, const struct key *keys, size_t n_keys, struct buf *out)
{
    const char *from = s;
    for (const char *p = s; p < end && (p = memchr(p, '#', (size_t)(end - p))); p++) {
        if (end - p < 5 || memcmp(p, "#ID_", 4))
            continue;
        const char *q = skip_digits(p + 4, end);
        if (q == p + 4 || word_at(q, end))
            continue;
        struct span v = find_key(keys, n_keys, (struct span){p + 4, (size_t)(q - p - 4)});
        if (!v.s)
            continue;
        buf_add(out, from, (size_t)(p + 1 - from));
        ascii_number(v.s, v.s + v.n, out);
        from = q;
    }
    buf_add(out, from, (size_t)(end - from));
}

/* Cuts the shortest comments out of a line; nothing is left of a blank one. */
static void put_line(const char *s, const char *end, struct buf *out)
{
    size_t first = out->n;
    const char *p = s;
    while (p < end) {
        const char *open = memchr(p, '/', (size_t)(end - p));
        while (open && (open + 1 == end || open[1] != '*'))
            open = memchr(open + 1, '/', (size_t)(end - open - 1));
        const char *close = open ? memmem(open + 2, (size_t)(end - open - 2), "*/", 2) : NULL;
        buf_add(out, p, (size_t)((close ? open : end) - p));
        p = close ? close + 2 : end;
    }
    if (skip_space(out->s + first, out->s + out->n) == out->s + out->n)
        out->n = first;
    else
        buf_putc(out, '\n');
}

void step_reference_restore(const char *text, size_t n, struct buf *out)
{
    struct buf store = BUF_INIT, line = BUF_INIT;
    decode(&text, &n, LATIN1, false, &store);
    const char *end = text + n, *next;
    size_t first = out->n;
    struct key *keys = NULL;
    size_t n_keys, cap = 0;
    bool ascii, cr, breaks;
    survey(text, n, &ascii, &cr, &breaks);
    bool plain = ascii && !cr && !breaks; /* lines end at LF alone */
    buf_grow(out, n);
    const char *mark = memmem(text, n, mdgpr, sizeof mdgpr - 1); /* the next place that may be a root */
    for (const char *p = text; p < end; p = next) {
        const char *stop = plain ? memchr(p, '\n', (size_t)(end - p)) : line_end(p, end, &next);
        if (plain) {
            next = stop ? stop + 1 : end;
            stop = stop ? stop : end;
        }
        while (mark && mark < p)
            mark = memmem(p, (size_t)(end - p), mdgpr, sizeof mdgpr - 1);
        if (!mark || mark >= stop || !is_presentation(skip_space(p, stop), stop)) {
            put_line(p, stop, out);
            continue;
        }
        n_keys = 0;
        for (const char *q = next, *after; q < end; q = after) {
            const char *e = line_end(q, end, &after);
            struct key k = {.at = n_keys};
            if (is_presentation(skip_space(q, e), e))
                break;
            if (key_line(q, e, &k.n, &k.v)) {
                ARRAY_GROW(keys, cap, n_keys + 1);
                keys[n_keys++] = k;
            }
        }
        if (n_keys)
            qsort(keys, n_keys, sizeof *keys, by_text);
        buf_clear(&line);
        put_keyed(p, stop, keys, n_keys, &line);
        put_line(line.s, line.s + line.n, out);
    }
    if (out->n == first)
        buf_putc(out, '\n');
    out->s[out->n] = 0;
    free(keys);
    buf_release(&line);
    buf_release(&store);
}

/* ---- evaluation ---- */

int step_reference_complete(const char *name, const char *text, size_t n, bool *complete)
{
    static const char marker[] = "END-ISO-10303-21;";
    struct buf store = BUF_INIT;
    if (decode(&text, &n, FAIL, true, &store) < 0)
        return err_set(ERR_FORMAT, "%s: not UTF-8", name);
    const char *end = text + n;
    if (n && end[-1] == '\n')
        end--;
    const char *s = memrchr(text, '\n', (size_t)(end - text));
    s = skip_space(s ? s + 1 : text, end);
    while (end > s && space_at(back(end, s), end))
        end = back(end, s);
    *complete = (size_t)(end - s) == sizeof marker - 1 && !memcmp(s, marker, sizeof marker - 1);
    buf_release(&store);
    return ERR_OK;
}

uint64_t step_reference_max_id(const char *text, size_t n)
{
    struct buf store = BUF_INIT;
    decode(&text, &n, DROP, true, &store);
    uint64_t largest = 0, id;
    const char *end = text + n;
    for (const char *p = text, *stop; p < end; p = stop + 1) {
        stop = memchr(p, '\n', (size_t)(end - p));
        stop = stop ? stop : end;
        if (definition(skip_space(p, stop), stop, &id) && id > largest)
            largest = id;
    }
    buf_release(&store);
    return largest;
}
