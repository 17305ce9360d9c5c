#include "lib/step.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"

/* ---- lexer ---- */

/* C_PLAIN: stands for itself wherever it is. */
enum { C_SPACE = 1, C_DIGIT = 2, C_UPPER = 4, C_LOWER = 8, C_HEX = 16, C_PLAIN = 32 };
static const unsigned char class[256] = {
    [0 ... 32] = C_SPACE, [127] = C_SPACE,
    ['0' ... '9'] = C_DIGIT | C_HEX | C_PLAIN, ['A' ... 'F'] = C_UPPER | C_HEX | C_PLAIN,
    ['G' ... 'Z'] = C_UPPER | C_PLAIN, ['_'] = C_UPPER | C_PLAIN, ['a' ... 'z'] = C_LOWER,
    ['('] = C_PLAIN, [')'] = C_PLAIN, [','] = C_PLAIN, ['.'] = C_PLAIN, ['-'] = C_PLAIN, ['+'] = C_PLAIN, ['$'] = C_PLAIN,
};
#define IS(c, classes) (class[(unsigned char)(c)] & (classes))

/* Eight bytes at a time: runs of digits and keywords are short and of changing length, and a loop's wrongly guessed end costs more
 * than all of its turns.  The first byte is the lowest. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "eight() counts from the lowest byte");
#define BYTES(c) ((uint64_t)(c) * 0x0101010101010101u)

static inline uint64_t eight(const char *p)
{
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
}

/* How many digits w begins with. */
static inline int digits_of(uint64_t w)
{
    uint64_t x = w ^ BYTES('0'), other = ((x + BYTES(0x76)) | x) & BYTES(0x80); /* right up to the first that is none */
    return other ? __builtin_ctzll(other) >> 3 : 8;
}

/* The number that the first n (1 to 8) of them spell. */
static inline uint32_t number_of(uint64_t w, int n)
{
    uint64_t x = (w & BYTES(15)) << (64 - 8 * n);
    x = x * 10 + (x >> 8);
    return (uint32_t)(((x & 0xff000000ffu) * (100 + (1000000ull << 32)) + ((x >> 16) & 0xff000000ffu) * (1 + (10000ull << 32))) >> 32);
}

/* Where c stands among w's bytes; 8: nowhere. */
static inline int place_of(uint64_t w, char c)
{
    uint64_t x = w ^ BYTES(c), found = (x - BYTES(1)) & ~x & BYTES(0x80);
    return found ? __builtin_ctzll(found) >> 3 : 8;
}

/* Apostrophes at q directly behind the directive \S\: the one that follows may be its
 * character (6.4.3.1) or the string's end, doubled or not.  What comes after decides. */
static bool ends_after_page(const char *s, const char *q, const char *end, const char **after)
{
    const char *back = q - 4; /* a backslash is itself only if an even number stand before it */
    while (back > s && *back == '\\')
        back--;
    if ((q - 4 - back) % 2)
        return false;
    const char *p = q;
    while (p < end && *p == '\'')
        p++;
    *after = p;
    while (p < end && IS(*p, C_SPACE))
        p++;
    if (p < end && *p != ',' && *p != ')' && *p != '/')
        *after = NULL; /* goes on */
    return true;
}

const char *step_string_end(const char *s, const char *end)
{
    const char *p = s + 1;
    for (;;) {
        /* Most strings are empty or a few bytes: a loop beats memchr(). */
        while (p < end && *p != '\'')
            p++;
        if (p >= end)
            return NULL;
        const char *after;
        if (p - s > 3 && p[-1] == '\\' && p[-2] == 'S' && p[-3] == '\\' && ends_after_page(s, p, end, &after)) {
            if (after)
                return after;
            while (p < end && *p == '\'')
                p++;
            continue;
        }
        if (p + 1 >= end || p[1] != '\'')
            return p + 1;
        p += 2;
    }
}

static inline const char *space_end(const char *p, const char *end)
{
    while (p < end) {
        if (IS(*p, C_SPACE)) {
            p++;
        } else if (*p == '/' && p + 1 < end && p[1] == '*') {
            const char *q = memmem(p + 2, (size_t)(end - p - 2), "*/", 2);
            if (!q)
                return p;
            p = q + 2;
        } else if (*p == '\\' && end - p >= 3 && (p[1] == 'N' || p[1] == 'F') && p[2] == '\\') {
            p += 3;
        } else {
            break;
        }
    }
    return p;
}

/* A comment that never ends: whoever scans damaged text stops here, or it would look
 * for the end again and again. */
static inline bool open_comment(const char *p, const char *end)
{
    return end - p >= 2 && p[0] == '/' && p[1] == '*';
}

const char *step_skip_space(const char *p, const char *end)
{
    return space_end(p, end);
}

uint64_t step_ref_id(const char *hash)
{
    uint64_t id = 0;
    for (const char *p = hash + 1; IS(*p, C_DIGIT) && p - hash <= 18; p++)
        id = id * 10 + (uint64_t)(*p - '0');
    return id;
}

static inline enum step_kind bad(struct step_token *t, const char *why)
{
    t->why = why;
    return STEP_BAD;
}

/* [sign] digits [. digits] [E [sign] digits], with a digit somewhere ahead of the E. */
static inline enum step_kind lex_number(const char **pp, const char *end, struct step_token *t)
{
    const char *p = *pp;
    bool real = false, digits = false;
    if (*p == '+' || *p == '-')
        p++;
    for (; p < end && IS(*p, C_DIGIT); p++)
        digits = true;
    if (p < end && *p == '.') {
        real = true;
        for (p++; p < end && IS(*p, C_DIGIT); p++)
            digits = true;
    }
    if (!digits)
        return bad(t, "a number without digits");
    if (p < end && (*p == 'E' || *p == 'e')) {
        real = true;
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        if (p >= end || !IS(*p, C_DIGIT))
            return bad(t, "an exponent without digits");
        while (p < end && IS(*p, C_DIGIT))
            p++;
    }
    if (p < end && (IS(*p, C_UPPER | C_LOWER) || *p == '.'))
        return bad(t, "a number runs into other text");
    *pp = p;
    return real ? STEP_REAL : STEP_INT;
}

static inline enum step_kind lex(const char **pp, const char *end, struct step_token *t)
{
    const char *p = *pp;
    enum step_kind kind;
    while (p < end && IS(*p, C_SPACE))
        p++;
    if (p < end && (*p == '/' || *p == '\\'))
        p = space_end(p, end);
    t->s = p;
    t->n = 0;
    if (p >= end) {
        *pp = p;
        return STEP_END;
    }
    switch (*p) {
    case '(': kind = STEP_OPEN; p++; break;
    case ')': kind = STEP_CLOSE; p++; break;
    case ',': kind = STEP_COMMA; p++; break;
    case ';': kind = STEP_SEMI; p++; break;
    case '=': kind = STEP_EQUALS; p++; break;
    case '$': kind = STEP_OMITTED; p++; break;
    case '*': kind = STEP_DERIVED; p++; break;
    case '#':
        for (p++; p < end && IS(*p, C_DIGIT); p++)
            ;
        if (p - t->s < 2)
            return bad(t, "'#' without a number");
        if (p - t->s > 19)
            return bad(t, "an instance name of more than 18 digits");
        if (p < end && IS(*p, C_UPPER | C_LOWER))
            return bad(t, "an instance name runs into other text");
        kind = STEP_REF;
        break;
    case '\'':
        p = step_string_end(p, end);
        if (!p)
            return bad(t, "a string without its end");
        kind = STEP_STRING;
        break;
    case '"':
        for (p++; p < end && IS(*p, C_SPACE); p++)
            ;
        if (p >= end || *p < '0' || *p > '3') /* how many bits of the second digit do not count */
            return bad(t, "a malformed binary");
        while (p < end && IS(*p, C_HEX | C_SPACE))
            p++;
        if (p >= end || *p != '"')
            return bad(t, "a malformed binary");
        p++;
        kind = STEP_BINARY;
        break;
    case '.':
        if (p + 1 < end && IS(p[1], C_DIGIT)) {
            kind = lex_number(&p, end, t);
            break;
        }
        for (p++; p < end && IS(*p, C_UPPER | C_LOWER | C_DIGIT); p++)
            ;
        if (p >= end || *p != '.' || p - t->s < 2)
            return bad(t, "a malformed enumeration value");
        p++;
        kind = STEP_ENUM;
        break;
    case '0' ... '9': case '+': case '-':
        kind = lex_number(&p, end, t);
        break;
    case 'A' ... 'Z': case '_': case '!':
        for (p++; p < end && IS(*p, C_UPPER | C_DIGIT); p++)
            ;
        if (p < end && IS(*p, C_LOWER))
            return bad(t, "a keyword with a small letter");
        kind = STEP_KEYWORD;
        break;
    case '/':
        return bad(t, p + 1 < end && p[1] == '*' ? "a comment without its end" : "an unexpected character");
    default:
        return bad(t, IS(*p, C_LOWER) ? "a keyword with a small letter" : "an unexpected character");
    }
    t->n = (size_t)(p - t->s);
    *pp = p;
    return kind;
}

enum step_kind step_lex(const char **p, const char *end, struct step_token *t)
{
    return lex(p, end, t);
}

/* ---- strings ---- */

static void put_utf8(struct buf *b, uint32_t c)
{
    if (c >= 0xd800 && (c < 0xe000 || c > 0x10ffff))
        c = 0xfffd;
    if (c < 0x80) {
        buf_putc(b, (char)c);
    } else if (c < 0x800) {
        buf_putc(b, (char)(0xc0 | c >> 6));
        buf_putc(b, (char)(0x80 | (c & 63)));
    } else if (c < 0x10000) {
        buf_putc(b, (char)(0xe0 | c >> 12));
        buf_putc(b, (char)(0x80 | (c >> 6 & 63)));
        buf_putc(b, (char)(0x80 | (c & 63)));
    } else {
        buf_putc(b, (char)(0xf0 | c >> 18));
        buf_putc(b, (char)(0x80 | (c >> 12 & 63)));
        buf_putc(b, (char)(0x80 | (c >> 6 & 63)));
        buf_putc(b, (char)(0x80 | (c & 63)));
    }
}

/* n hex digits at p. */
static bool hex(const char *p, const char *end, int n, uint32_t *out)
{
    *out = 0;
    if (end - p < n)
        return false;
    for (int i = 0; i < n; i++) {
        if (!IS(p[i], C_HEX))
            return false;
        *out = *out << 4 | (uint32_t)(p[i] <= '9' ? p[i] - '0' : p[i] - 'A' + 10);
    }
    return true;
}

/* One directive at p (a backslash): where it ends, or NULL if it is none. */
static const char *directive(const char *p, const char *end, struct buf *out)
{
    uint32_t c, low;
    size_t left = (size_t)(end - p);
    if (left >= 2 && p[1] == '\\') {
        buf_putc(out, '\\');
        return p + 2;
    }
    if (left >= 4 && !memcmp(p, "\\S\\", 3)) { /* the upper half of ISO 8859-1 */
        put_utf8(out, (unsigned char)p[3] | 0x80);
        return p + 4;
    }
    if (left >= 4 && p[1] == 'P' && p[3] == '\\' && IS(p[2], C_UPPER)) /* names the page of \S\; 8859-1 is supposed */
        return p + 4;
    if (left >= 5 && !memcmp(p, "\\X\\", 3) && hex(p + 3, end, 2, &c)) {
        put_utf8(out, c);
        return p + 5;
    }
    if (left < 8 || p[1] != 'X' || (p[2] != '2' && p[2] != '4') || p[3] != '\\')
        return NULL;
    int digits = p[2] == '2' ? 4 : 8;
    const char *stop = p + 4; /* not memmem(): it would look through all that follows for every directive that is not closed */
    while (hex(stop, end, digits, &c))
        stop += digits;
    if (end - stop < 4 || memcmp(stop, "\\X0\\", 4))
        return NULL;
    for (const char *q = p + 4; q < stop; q += digits) {
        hex(q, stop, digits, &c);
        /* Writers put UTF-16 into \X2\. */
        if (digits == 4 && c >= 0xd800 && c < 0xdc00 && q + 8 <= stop && hex(q + 4, stop, 4, &low) && low >= 0xdc00 &&
            low < 0xe000) {
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            q += 4;
        }
        put_utf8(out, c);
    }
    return stop + 4;
}

bool step_string_decode(const char *s, size_t n, struct buf *out)
{
    bool good = true;
    if (n < 2)
        return false;
    for (const char *p = s + 1, *end = s + n - 1; p < end;) {
        if (*p == '\\') {
            const char *next = directive(p, end, out);
            if (next) {
                p = next;
                continue;
            }
            good = false;
        }
        if ((unsigned char)*p < 32) { /* 5.2: not part of the text */
            p++;
            continue;
        }
        if (*p == '\'' && p + 1 < end && p[1] == '\'')
            p++;
        buf_putc(out, *p++);
    }
    return good;
}

void step_string_encode(const char *s, size_t n, struct buf *out)
{
    buf_putc(out, '\'');
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        if (c < 0x80) {
            if (c == '\'' || c == '\\')
                buf_putc(out, (char)c);
            if (c < 32 || c == 127)
                buf_printf(out, "\\X\\%02X", c);
            else
                buf_putc(out, (char)c);
            i++;
            continue;
        }
        int more = c >= 0xf0 && c < 0xf8 ? 3 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xc0 && c < 0xe0 ? 1 : 0;
        uint32_t code = more == 3 ? c & 7 : more == 2 ? c & 15 : c & 31;
        size_t k = 1;
        while (k <= (size_t)more && i + k < n && (s[i + k] & 0xc0) == 0x80)
            code = code << 6 | (s[i + k++] & 63);
        if (!more || k <= (size_t)more)
            code = 0xfffd; /* not UTF-8 */
        buf_printf(out, code < 0x10000 ? "\\X2\\%04X\\X0\\" : "\\X4\\%08X\\X0\\", code);
        i += k;
    }
    buf_putc(out, '\'');
}

/* ---- the index ---- */

struct type_slot {
    uint64_t hash;
    uint32_t type; /* STEP_NONE: free */
    uint32_t n;    /* length of the name */
    bool keyword;  /* not the joined name of a complex instance */
};
struct step_index {
    struct arena arena; /* type names */
    const char **type_names;
    size_t type_cap;
    struct type_slot *slots;
    size_t n_slots;
    /* ids: dense[id], or an open hash of instance indexes */
    uint32_t *ids;
    size_t n_ids; /* length of ids; of the hash a power of two */
    bool dense;
};

/* Of a name: a sum over its words, so that no product waits for the one before. */
static inline uint64_t hash_word(uint64_t w, size_t at)
{
    return (w ^ w >> 32) * (0x9e3779b97f4a7c15u + 2 * at);
}

static inline uint64_t hash_end(uint64_t h, size_t n)
{
    h = (h ^ h >> 32 ^ n) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint64_t name_hash(const char *s, size_t n)
{
    uint64_t h = 0, w = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        h += hash_word(eight(s + i), i);
    memcpy(&w, s + i, n - i);
    return hash_end(h + hash_word(w, i), n);
}

/* A name's end is its last eight bytes once more. */
static inline bool same_name(const char *a, const char *b, size_t n)
{
    if (n < 8)
        return !memcmp(a, b, n);
    for (size_t i = 0; i + 8 < n; i += 8)
        if (eight(a + i) != eight(b + i))
            return false;
    return eight(a + n - 8) == eight(b + n - 8);
}

static inline uint32_t type_slot(const struct step_index *x, uint64_t h, const char *s, size_t n)
{
    for (size_t i = h & (x->n_slots - 1);; i = (i + 1) & (x->n_slots - 1)) {
        uint32_t type = x->slots[i].type;
        if (type == STEP_NONE || (x->slots[i].hash == h && x->slots[i].n == n && same_name(x->type_names[type], s, n)))
            return (uint32_t)i;
    }
}

static void grow_slots(struct step_index *x, size_t n)
{
    struct type_slot *old = x->slots;
    size_t n_old = x->n_slots;
    x->n_slots = n;
    x->slots = xmalloc(n * sizeof *x->slots);
    for (size_t i = 0; i < n; i++)
        x->slots[i].type = STEP_NONE;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i].type == STEP_NONE)
            continue;
        size_t k = old[i].hash & (n - 1);
        while (x->slots[k].type != STEP_NONE)
            k = (k + 1) & (n - 1);
        x->slots[k] = old[i];
    }
    free(old);
}

static uint32_t intern_hashed(struct step_file *f, uint64_t h, const char *s, size_t n, bool keyword)
{
    struct step_index *x = f->index;
    if (f->n_types * 2 >= x->n_slots)
        grow_slots(x, x->n_slots * 2);
    struct type_slot *slot = &x->slots[type_slot(x, h, s, n)];
    if (slot->type != STEP_NONE)
        return slot->type;
    ARRAY_GROW(x->type_names, x->type_cap, f->n_types + 1);
    x->type_names[f->n_types] = arena_strndup(&x->arena, s, n);
    *slot = (struct type_slot){.hash = h, .type = (uint32_t)f->n_types, .n = (uint32_t)n, .keyword = keyword};
    return (uint32_t)f->n_types++;
}

static uint32_t intern(struct step_file *f, const char *s, size_t n, bool keyword)
{
    return intern_hashed(f, name_hash(s, n), s, n, keyword);
}

const char *step_type(const struct step_file *f, uint32_t type)
{
    return type < f->n_types ? f->index->type_names[type] : "";
}

uint32_t step_type_find(const struct step_file *f, const char *name)
{
    size_t n = strlen(name);
    return f->index->slots[type_slot(f->index, name_hash(name, n), name, n)].type;
}

static inline size_t id_slot(const struct step_index *x, uint64_t id)
{
    return (size_t)mix64(id) & (x->n_ids - 1);
}

uint32_t step_find(const struct step_file *f, uint64_t id)
{
    const struct step_index *x = f->index;
    if (x->dense)
        return id < x->n_ids ? x->ids[id] : STEP_NONE;
    for (size_t i = id_slot(x, id);; i = (i + 1) & (x->n_ids - 1))
        if (x->ids[i] == STEP_NONE || f->v[x->ids[i]].id == id)
            return x->ids[i];
}

static int index_ids(struct step_file *f, unsigned flags)
{
    struct step_index *x = f->index;
    x->dense = f->max_id < 8 * (uint64_t)f->n + 1024;
    x->n_ids = x->dense ? (size_t)f->max_id + 1 : 16;
    while (!x->dense && x->n_ids < 2 * f->n)
        x->n_ids *= 2;
    x->ids = xmalloc(x->n_ids * sizeof *x->ids);
    memset(x->ids, 0xff, x->n_ids * sizeof *x->ids);
    for (size_t i = 0; i < f->n; i++) {
        uint64_t id = f->v[i].id;
        size_t k = x->dense ? (size_t)id : id_slot(x, id);
        while (!x->dense && x->ids[k] != STEP_NONE && f->v[x->ids[k]].id != id)
            k = (k + 1) & (x->n_ids - 1);
        if (x->ids[k] == STEP_NONE)
            x->ids[k] = (uint32_t)i;
        else if (!(flags & STEP_REPEATS))
            return step_error(f->name, f->text, f->text_n, f->v[i].off, "#%llu is defined a second time",
                              (unsigned long long)id);
    }
    size_t dangling = 0;
    for (struct step_ref *r = f->refs, *end = r + f->n_refs; r < end; r++) {
        if (x->dense && r->target < x->n_ids)
            r->target = x->ids[r->target];
        else
            r->target = step_find(f, r->target != STEP_NONE ? r->target : step_ref_id(f->text + r->off));
        dangling += r->target == STEP_NONE;
    }
    f->n_dangling = dangling;
    return ERR_OK;
}

/* ---- parser ---- */

int step_error(const char *name, const char *text, size_t n, size_t off, const char *fmt, ...)
{
    size_t line = 1, start = 0;
    if (off > n)
        off = n;
    for (size_t i = 0; i < off; i++) {
        if (text[i] == '\n' || (text[i] == '\r' && (i + 1 >= n || text[i + 1] != '\n'))) {
            line++;
            start = i + 1;
        }
    }
    char msg[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return err_set(ERR_FORMAT, "%s:%zu:%zu: %s", name, line, off - start + 1, msg);
}

struct parser {
    struct step_file *f;
    const char *p, *end;
    enum step_kind kind; /* the token in hand */
    struct step_token t;
    size_t cap, ref_cap, section_cap, header_cap;
    struct buf joined; /* type of a complex instance */
    size_t real_cap;
    bool reals;        /* are wanted */
};

static inline void advance(struct parser *ps)
{
    ps->kind = lex(&ps->p, ps->end, &ps->t);
}

/* The error that says what was due, and quotes what stands there instead. */
static int due(struct parser *ps, const char *what)
{
    const struct step_file *f = ps->f;
    size_t off = (size_t)(ps->t.s - f->text), n = 0;
    char seen[24];
    if (ps->kind == STEP_BAD)
        return step_error(f->name, f->text, f->text_n, off, "%s", ps->t.why);
    if (ps->kind == STEP_END)
        return step_error(f->name, f->text, f->text_n, off, "the text ends where %s is due", what);
    for (; n < sizeof seen - 1 && n < ps->t.n; n++)
        seen[n] = ps->t.s[n] >= 32 && ps->t.s[n] < 127 ? ps->t.s[n] : '?';
    seen[n] = 0;
    return step_error(f->name, f->text, f->text_n, off, "%s is due, not '%s%s'", what, seen, ps->t.n > n ? "..." : "");
}

static inline bool is_word(const struct parser *ps, const char *word)
{
    size_t n = strlen(word);
    return ps->kind == STEP_KEYWORD && ps->t.n == n && !memcmp(ps->t.s, word, n);
}

/* Takes the word and its ';' ("ENDSEC;"). */
static int take_line(struct parser *ps, const char *word)
{
    if (!is_word(ps, word))
        return due(ps, word);
    advance(ps);
    if (ps->kind != STEP_SEMI)
        return due(ps, "';'");
    return ERR_OK;
}

enum params { FIRST, VALUE, AFTER }; /* behind '(', behind ',', behind a value */

static inline void add_real(struct parser *ps, const char *s, size_t n, size_t whole, size_t fraction)
{
    struct step_file *f = ps->f;
    ARRAY_GROW(f->reals, ps->real_cap, f->n_reals + 1);
    f->reals[f->n_reals++] = (struct step_real){.off = (uint32_t)(s - f->text), .len = (uint16_t)(n < UINT16_MAX ? n : UINT16_MAX),
                                                .whole = (uint8_t)whole, .fraction = (uint8_t)fraction};
}

/* Behind the digits at p. */
static inline const char *digits_end(const char *p, const char *safe, const char *end)
{
    for (int n; p < safe; p += 8)
        if ((n = digits_of(eight(p))) < 8)
            return p + n;
    while (p < end && IS(*p, C_DIGIT))
        p++;
    return p;
}

static inline bool ends_number(char c)
{
    return c == ',' || c == ')' || IS(c, C_SPACE);
}

/* As far as parameters are the usual and well-formed ones: returns where something else stands, or the ')' that
 * closes the record.  Speed is its one reason: it takes a value straight from its first byte, where the loop of
 * parse_params() makes a token first.  Up to 2^32 - 2 a reference's number is left in its target. */
static const char *plain_params(struct parser *ps, int *depths, enum params *states)
{
    enum params state = *states;
    int depth = *depths;
    struct step_file *f = ps->f;
    const char *p = ps->p, *end = ps->end, *q;
    const char *safe = end - ps->p > 32 ? end - 32 : ps->p; /* behind a value, there are eight bytes more */
    while (p < safe) {
        q = p + 1;
        if (state == AFTER && !ends_number(*p))
            goto out;
        switch (*p) {
        case '\n': case '\r': case ' ':
            p++;
            continue;
        case ',':
            if (state != AFTER)
                goto out;
            state = VALUE;
            p++;
            continue;
        case '(':
            if (depth >= STEP_MAX_DEPTH)
                goto out;
            depth++;
            state = FIRST;
            p++;
            continue;
        case ')':
            if (state == VALUE || depth == 1)
                goto out;
            depth--;
            state = AFTER;
            p++;
            continue;
        case '#': {
            uint64_t w = eight(q), id;
            int n = digits_of(w);
            if (!n)
                goto out;
            id = number_of(w, n);
            for (q += n; n == 8 && q < end && IS(*q, C_DIGIT); q++)
                id = id * 10 + (uint64_t)(*q - '0');
            if (q - p > 19 || (q < end && IS(*q, C_UPPER | C_LOWER)))
                goto out;
            ARRAY_GROW(f->refs, ps->ref_cap, f->n_refs + 1);
            f->refs[f->n_refs++] = (struct step_ref){.off = (uint32_t)(p - f->text), .target = id < STEP_NONE ? (uint32_t)id : STEP_NONE};
            break;
        }
        case '0' ... '9': case '-': {
            const char *whole = p + (*p == '-'), *dot = digits_end(whole, safe, end);
            if (dot == whole || dot == end)
                goto out;
            q = dot;
            if (*dot == '.') {
                q = digits_end(dot + 1, safe, end);
                if (q == end || !ends_number(*q) || dot - whole >= UINT8_MAX || q - dot > UINT8_MAX)
                    goto out;
                if (ps->reals)
                    add_real(ps, p, (size_t)(q - p), (size_t)(dot - whole), (size_t)(q - dot - 1));
            } else if (!ends_number(*q)) {
                goto out;
            }
            break;
        }
        case '\'':
            if (p[1] == '\'' && p[2] != '\'')
                q = p + 2;
            else if (!(q = step_string_end(p, end)))
                goto out;
            break;
        case '.':
            while (q < end && IS(*q, C_UPPER))
                q++;
            if (q >= end || *q != '.' || q - p < 2)
                goto out;
            q++;
            break;
        case '$': case '*':
            break;
        default:
            goto out;
        }
        state = AFTER;
        p = q;
        if (p < end && *p == ',') {
            state = VALUE;
            p++;
        }
    }
out:
    *states = state;
    *depths = depth;
    return p;
}

/* The real in hand. */
static void add_token(struct parser *ps)
{
    const char *p = ps->t.s + (*ps->t.s == '-'), *end = ps->t.s + ps->t.n, *dot = p;
    while (dot < end && IS(*dot, C_DIGIT))
        dot++;
    const char *q = dot + 1;
    while (q < end && IS(*q, C_DIGIT))
        q++;
    bool plain = dot > p && *dot == '.' && q == end && dot - p < UINT8_MAX && q - dot <= UINT8_MAX;
    add_real(ps, ps->t.s, ps->t.n, plain ? (size_t)(dot - p) : 0, plain ? (size_t)(q - dot - 1) : 0);
}

/* Parameters from the token behind '(' up to the matching ')', which becomes the token
 * in hand.  Parentheses of lists and of typed parameters close alike, so a count does. */
static int parse_params(struct parser *ps)
{
    struct step_file *f = ps->f;
    int depth = 1;
    enum params state = FIRST;
    for (;;) {
        ps->p = plain_params(ps, &depth, &state);
        advance(ps);
        switch (ps->kind) {
        case STEP_COMMA:
            if (state != AFTER)
                return due(ps, "a value");
            state = VALUE;
            continue;
        case STEP_CLOSE:
            if (state == VALUE)
                return due(ps, "a value");
            if (--depth == 0)
                return ERR_OK;
            state = AFTER;
            continue;
        case STEP_KEYWORD:
            if (state == AFTER)
                return due(ps, "',' or ')'");
            advance(ps);
            if (ps->kind != STEP_OPEN)
                return due(ps, "'(' behind the keyword of a typed parameter");
            break;
        case STEP_OPEN:
            if (state == AFTER)
                return due(ps, "',' or ')'");
            break;
        case STEP_REF:
            if (state == AFTER)
                return due(ps, "',' or ')'");
            ARRAY_GROW(f->refs, ps->ref_cap, f->n_refs + 1);
            f->refs[f->n_refs++] = (struct step_ref){.off = (uint32_t)(ps->t.s - f->text), .target = STEP_NONE};
            state = AFTER;
            continue;
        case STEP_INT: case STEP_REAL: case STEP_STRING: case STEP_BINARY: case STEP_ENUM:
        case STEP_OMITTED: case STEP_DERIVED:
            if (state == AFTER)
                return due(ps, "',' or ')'");
            if (ps->kind == STEP_REAL && ps->reals)
                add_token(ps);
            state = AFTER;
            continue;
        default:
            return due(ps, state == AFTER ? "',' or ')'" : "a value");
        }
        if (++depth > STEP_MAX_DEPTH)
            return step_error(f->name, f->text, f->text_n, (size_t)(ps->t.s - f->text),
                              "parentheses nest deeper than %d", STEP_MAX_DEPTH);
        state = FIRST;
    }
}

/* KEYWORD ( ... ), with the keyword in hand; then its ')' is. */
static int parse_record(struct parser *ps, uint32_t *par, uint32_t *par_len)
{
    advance(ps);
    if (ps->kind != STEP_OPEN)
        return due(ps, "'('");
    *par = (uint32_t)(ps->p - ps->f->text);
    int rc = parse_params(ps);
    *par_len = (uint32_t)(ps->t.s - ps->f->text) - *par;
    return rc;
}

/* The instance ends where the parser stands; its references are those since e.ref. */
static inline void add_instance(struct parser *ps, struct step_entity e)
{
    struct step_file *f = ps->f;
    e.len = (uint32_t)(ps->p - f->text) - e.off;
    e.n_ref = (uint32_t)f->n_refs - e.ref;
    if (e.id > f->max_id)
        f->max_id = e.id;
    ARRAY_GROW(f->v, ps->cap, f->n + 1);
    f->v[f->n++] = e;
}

/* #n = ...; with #n in hand. */
static int parse_instance(struct parser *ps)
{
    struct step_file *f = ps->f;
    if (f->n >= STEP_NONE - 1)
        return err_set(ERR_NOMEM, "%s: too many instances", f->name);
    struct step_entity e = {.off = (uint32_t)(ps->t.s - f->text), .ref = (uint32_t)f->n_refs,
                            .section = (uint16_t)(f->n_sections - 1)};
    int rc;
    advance(ps);
    if (ps->kind != STEP_EQUALS)
        return due(ps, "'='");
    e.id = step_ref_id(f->text + e.off);
    advance(ps);
    if (ps->kind == STEP_KEYWORD) {
        e.type = intern(f, ps->t.s, ps->t.n, true);
        rc = parse_record(ps, &e.par, &e.par_len);
        if (rc < 0)
            return rc;
    } else if (ps->kind == STEP_OPEN) {
        e.complex = true;
        e.par = (uint32_t)(ps->p - f->text);
        buf_clear(&ps->joined);
        for (advance(ps); ps->kind == STEP_KEYWORD; advance(ps)) {
            uint32_t par, par_len;
            if (ps->joined.n)
                buf_putc(&ps->joined, '+');
            buf_add(&ps->joined, ps->t.s, ps->t.n);
            rc = parse_record(ps, &par, &par_len);
            if (rc < 0)
                return rc;
        }
        if (ps->kind != STEP_CLOSE || !ps->joined.n)
            return due(ps, ps->joined.n ? "a keyword or ')'" : "a keyword");
        e.par_len = (uint32_t)(ps->t.s - f->text) - e.par;
        e.type = intern(f, ps->joined.s, ps->joined.n, false);
    } else {
        return due(ps, "a keyword or '('");
    }
    advance(ps);
    if (ps->kind != STEP_SEMI)
        return due(ps, "';'");
    add_instance(ps, e);
    return ERR_OK;
}

/* Plain parameters at p, behind '(': at the ')' behind them, or NULL. */
static inline const char *plain_list(struct parser *ps, const char *p)
{
    int depth = 1;
    enum params state = FIRST;
    ps->p = p;
    p = plain_params(ps, &depth, &state);
    return p < ps->end && *p == ')' && depth == 1 && state != VALUE ? p : NULL;
}

/* The usual parts of a complex instance, p behind the '(' around them: at its ')', or NULL. */
static const char *plain_parts(struct parser *ps, const char *p)
{
    const char *end = ps->end;
    buf_clear(&ps->joined);
    for (;; p++) {
        while (p < end && IS(*p, C_SPACE))
            p++;
        const char *word = p;
        while (p < end && IS(*p, C_UPPER | C_DIGIT))
            p++;
        if (p == word)
            return p < end && *p == ')' && ps->joined.n ? p : NULL;
        if (p == end || *p != '(' || IS(*word, C_DIGIT))
            return NULL;
        if (ps->joined.n)
            buf_putc(&ps->joined, '+');
        buf_add(&ps->joined, word, (size_t)(p - word));
        if (!(p = plain_list(ps, p + 1)))
            return NULL;
    }
}

/* The usual instance, "#n = KEYWORD(plain parameters);" or "#n = ( KEYWORD(plain parameters) ... );", if it stands next: again
 * for speed alone.  False: nothing is taken. */
static bool plain_instance(struct parser *ps)
{
    struct step_file *f = ps->f;
    const char *start = ps->p, *end = ps->end, *p = start;
    while (p < end && IS(*p, C_SPACE))
        p++;
    if (end - p < 64 || *p != '#' || f->n >= STEP_NONE - 1)
        return false;
    struct step_entity e = {.off = (uint32_t)(p - f->text), .ref = (uint32_t)f->n_refs, .section = (uint16_t)(f->n_sections - 1)};
    size_t n_reals = f->n_reals;
    uint64_t w = eight(++p), h = 0;
    int n = digits_of(w);
    if (!n)
        return false;
    e.id = number_of(w, n);
    p += n;
    for (int k = n; n == 8 && k < 18 && IS(*p, C_DIGIT); k++, p++)
        e.id = e.id * 10 + (uint64_t)(*p - '0');
    while (p < end && IS(*p, C_SPACE))
        p++;
    if (end - p < 32 || *p++ != '=')
        return false;
    while (p < end && IS(*p, C_SPACE))
        p++;
    const char *word = p, *close;
    const struct type_slot *slot = NULL;
    size_t word_n = 0;
    if (*p == '(') {
        e.complex = true;
        close = plain_parts(ps, ++p);
    } else {
        for (;; p += 8) {
            if (end - p < 8)
                return false;
            if ((n = place_of(w = eight(p), '(')) < 8)
                break;
            h += hash_word(w, (size_t)(p - word));
        }
        h += hash_word(n ? w << (64 - 8 * n) >> (64 - 8 * n) : 0, (size_t)(p - word));
        p += n;
        word_n = (size_t)(p - word);
        h = hash_end(h, word_n);
        if (IS(p[-1], C_SPACE)) {
            while (word_n && IS(word[word_n - 1], C_SPACE))
                word_n--;
            h = name_hash(word, word_n);
        }
        slot = &f->index->slots[type_slot(f->index, h, word, word_n)];
        if (slot->type == STEP_NONE || !slot->keyword) { /* or it would be one */
            const char *q = word;
            while (IS(*q, C_UPPER | C_DIGIT))
                q++;
            if (!word_n || IS(*word, C_DIGIT) || q != word + word_n)
                return false;
        }
        close = plain_list(ps, ++p);
    }
    if (!close || end - close < 2 || close[1] != ';') {
        ps->p = start;
        f->n_refs = e.ref;
        f->n_reals = n_reals;
        return false;
    }
    e.par = (uint32_t)(p - f->text);
    e.par_len = (uint32_t)(close - p);
    if (e.complex)
        e.type = intern(f, ps->joined.s, ps->joined.n, false);
    else
        e.type = slot->type != STEP_NONE ? slot->type : intern_hashed(f, h, word, word_n, true);
    ps->p = close + 2;
    add_instance(ps, e);
    return true;
}

static int parse_header(struct parser *ps)
{
    struct step_file *f = ps->f;
    int rc = take_line(ps, "HEADER");
    if (rc < 0)
        return rc;
    for (advance(ps); ps->kind == STEP_KEYWORD && !is_word(ps, "ENDSEC"); advance(ps)) {
        struct step_entity e = {.off = (uint32_t)(ps->t.s - f->text), .type = intern(f, ps->t.s, ps->t.n, true)};
        rc = parse_record(ps, &e.par, &e.par_len);
        if (rc < 0)
            return rc;
        advance(ps);
        if (ps->kind != STEP_SEMI)
            return due(ps, "';'");
        e.len = (uint32_t)(ps->p - f->text) - e.off;
        ARRAY_GROW(f->header, ps->header_cap, f->n_header + 1);
        f->header[f->n_header++] = e;
    }
    f->n_refs = f->n_reals = 0; /* a header has none that count */
    return take_line(ps, "ENDSEC");
}

/* Edition 3's ANCHOR and REFERENCE sections hold tokens of their own; only their end matters here. */
static int skip_section(struct parser *ps)
{
    for (const char *p = ps->p; p < ps->end;) {
        if (*p == '\'') {
            p = step_string_end(p, ps->end);
            if (!p)
                break;
        } else if (*p == '/' || IS(*p, C_SPACE)) {
            const char *q = space_end(p, ps->end);
            if (open_comment(q, ps->end))
                break;
            p = q > p ? q : p + 1;
        } else if (*p == '<') { /* a URI may hold what elsewhere begins a string or a comment */
            while (p < ps->end && *p != '>' && !IS(*p, C_SPACE))
                p++;
        } else if (*p == 'E' && ps->end - p >= 6 && !memcmp(p, "ENDSEC", 6)) {
            ps->p = p;
            advance(ps);
            return take_line(ps, "ENDSEC");
        } else {
            p++;
        }
    }
    return due(ps, "a section that ends in ENDSEC;");
}

static int parse_data(struct parser *ps)
{
    struct step_file *f = ps->f;
    struct step_section s = {.off = (uint32_t)(ps->t.s - f->text), .first = (uint32_t)f->n};
    int rc = ERR_OK;
    if (f->n_sections >= UINT16_MAX)
        return step_error(f->name, f->text, f->text_n, s.off, "more than %d data sections", UINT16_MAX);
    advance(ps);
    if (ps->kind == STEP_OPEN) {
        s.par = (uint32_t)(ps->p - f->text);
        size_t refs = f->n_refs, reals = f->n_reals;
        rc = parse_params(ps);
        if (rc < 0)
            return rc;
        f->n_refs = refs;
        f->n_reals = reals;
        s.par_len = (uint32_t)(ps->t.s - f->text) - s.par;
        advance(ps);
    }
    if (ps->kind != STEP_SEMI)
        return due(ps, "';'");
    s.body = (uint32_t)(ps->p - f->text);
    ARRAY_GROW(f->sections, ps->section_cap, f->n_sections + 1);
    f->sections[f->n_sections++] = s;
    for (;;) {
        while (plain_instance(ps))
            ;
        advance(ps);
        if (ps->kind != STEP_REF)
            break;
        if ((rc = parse_instance(ps)) < 0)
            return rc;
    }
    struct step_section *last = &f->sections[f->n_sections - 1];
    last->n = (uint32_t)f->n - last->first;
    last->end = (uint32_t)(ps->t.s - f->text);
    if (!is_word(ps, "ENDSEC"))
        return due(ps, "an instance or ENDSEC");
    return take_line(ps, "ENDSEC");
}

/* "ISO-10303-21;" and its end are no tokens: matched as text. */
static bool take_text(struct parser *ps, const char *word)
{
    const char *p = space_end(ps->p, ps->end);
    size_t n = strlen(word);
    if ((size_t)(ps->end - p) < n || memcmp(p, word, n))
        return false;
    const char *q = space_end(p + n, ps->end);
    if (q >= ps->end || *q != ';')
        return false;
    ps->p = q + 1;
    return true;
}

static int parse_all(struct parser *ps, unsigned flags)
{
    struct step_file *f = ps->f;
    int rc;
    if (f->text_n >= 3 && !memcmp(f->text, "\xef\xbb\xbf", 3))
        ps->p += 3;
    bool headed = take_text(ps, "ISO-10303-21");
    if (!headed && !(flags & STEP_NO_HEADER)) {
        size_t off = (size_t)(space_end(ps->p, ps->end) - f->text);
        return step_error(f->name, f->text, f->text_n, off, off == f->text_n ? "holds no text" :
                          "not a STEP file: ISO-10303-21; is due");
    }
    advance(ps);
    if (headed) {
        if ((rc = parse_header(ps)) < 0)
            return rc;
        advance(ps);
    }
    while (is_word(ps, "ANCHOR") || is_word(ps, "REFERENCE")) {
        if ((rc = skip_section(ps)) < 0)
            return rc;
        f->n_skipped++;
        advance(ps);
    }
    if (!is_word(ps, "DATA"))
        return due(ps, "DATA");
    for (;;) {
        if ((rc = parse_data(ps)) < 0)
            return rc;
        if (take_text(ps, "END-ISO-10303-21"))
            break;
        advance(ps);
        if (!is_word(ps, "DATA"))
            return due(ps, "DATA or END-ISO-10303-21;");
    }
    f->end = (uint32_t)(ps->p - f->text);
    advance(ps);
    if (ps->kind != STEP_END && !is_word(ps, "SIGNATURE"))
        return step_error(f->name, f->text, f->text_n, (size_t)(ps->t.s - f->text), "text after END-ISO-10303-21;");
    f->n_skipped += ps->kind != STEP_END;
    return ERR_OK;
}

int step_parse(const char *name, const char *text, size_t n, unsigned flags, struct step_file **out)
{
    *out = NULL;
    if (n >= UINT32_MAX)
        return err_set(ERR_NOMEM, "%s: %zu bytes is over the limit of 4 GiB", name, n);
    struct step_file *f = xcalloc(1, sizeof *f);
    *f = (struct step_file){.name = name, .text = text, .text_n = n, .index = xcalloc(1, sizeof *f->index)};
    grow_slots(f->index, 64);
    f->index->arena.block_size = 4096;
    struct parser ps = {.f = f, .p = text, .end = text + n, .joined = BUF_INIT, .reals = flags & STEP_REALS};
    /* About as many as there will be: growing step by step copies all of a small file's index once more. */
    size_t guess = n < (size_t)4 << 20 ? n / 64 + 8 : 65536;
    ARRAY_GROW(f->v, ps.cap, guess);
    ARRAY_GROW(f->refs, ps.ref_cap, guess * 2);
    if (ps.reals)
        ARRAY_GROW(f->reals, ps.real_cap, guess * 2);
    int rc = parse_all(&ps, flags);
    buf_release(&ps.joined);
    if (rc == ERR_OK)
        rc = index_ids(f, flags);
    if (rc < 0) {
        step_free(f);
        return rc;
    }
    *out = f;
    return ERR_OK;
}

void step_free(struct step_file *f)
{
    if (!f)
        return;
    arena_release(&f->index->arena);
    free(f->index->type_names);
    free(f->index->slots);
    free(f->index->ids);
    free(f->index);
    free(f->v);
    free(f->refs);
    free(f->reals);
    free(f->sections);
    free(f->header);
    free(f);
}

/* ---- access ---- */

const struct step_entity *step_header(const struct step_file *f, const char *keyword)
{
    for (size_t i = 0; i < f->n_header; i++)
        if (!strcmp(step_type(f, f->header[i].type), keyword))
            return &f->header[i];
    return NULL;
}

/* Behind the ')' that closes what is open at p (p is behind its '('). */
static const char *close_of(const char *p, const char *end)
{
    struct step_token t;
    for (int depth = 1; depth > 0;) {
        enum step_kind kind = lex(&p, end, &t);
        if (kind == STEP_END || kind == STEP_BAD)
            return end;
        depth += kind == STEP_OPEN ? 1 : kind == STEP_CLOSE ? -1 : 0;
    }
    return p;
}

bool step_part(const struct step_file *f, const struct step_entity *e, const char **p, struct step_token *keyword,
               struct step_token *params)
{
    const char *end = f->text + e->par + e->par_len;
    struct step_token open;
    if (!e->complex)
        return false;
    if (!*p)
        *p = f->text + e->par;
    if (lex(p, end, keyword) != STEP_KEYWORD || lex(p, end, &open) != STEP_OPEN)
        return false;
    params->s = *p;
    *p = close_of(*p, end);
    params->n = (size_t)(*p - 1 - params->s);
    return true;
}

bool step_is(const struct step_file *f, const struct step_entity *e, const char *keyword)
{
    const char *name = step_type(f, e->type);
    if (!e->complex)
        return !strcmp(name, keyword);
    size_t n = strlen(keyword);
    for (const char *p = name;; p++) {
        if (!strncmp(p, keyword, n) && (p[n] == '+' || !p[n]))
            return true;
        if (!(p = strchr(p, '+')))
            return false;
    }
}

bool step_param(const char *params, size_t n, size_t i, struct step_token *out)
{
    const char *p = params, *end = params + n;
    struct step_token t;
    for (size_t k = 0;; k++) {
        out->s = space_end(p, end);
        const char *last = out->s; /* behind the value's last token */
        for (int depth = 0;;) {
            enum step_kind kind = lex(&p, end, &t);
            if (kind == STEP_END || kind == STEP_BAD) {
                out->n = (size_t)(last - out->s);
                return k == i && kind == STEP_END && out->n;
            }
            if (kind == STEP_COMMA && depth == 0)
                break;
            depth += kind == STEP_OPEN ? 1 : kind == STEP_CLOSE ? -1 : 0;
            last = p;
        }
        out->n = (size_t)(last - out->s);
        if (k == i)
            return true;
    }
}

/* ---- writer ---- */

static char *put_number(char *o, uint64_t v)
{
    char tmp[20];
    int i = sizeof tmp;
    do
        tmp[--i] = (char)('0' + v % 10);
    while (v /= 10);
    memcpy(o, tmp + i, sizeof tmp - (size_t)i);
    return o + sizeof tmp - i;
}

/* Writes s without white space and comments.  ref: the k-th reference met is
 * f->refs[ref + k].  The buffer must have room (20 bytes more a reference). */
static char *put_lean(char *o, const char *s, size_t n, const struct step_ids *ids, uint32_t ref)
{
    const char *p = s, *end = s + n, *start = o;
    while (p < end) {
        while (IS(*p, C_PLAIN)) {
            *o++ = *p++;
            if (p == end)
                return o;
        }
        char c = *p;
        if (IS(c, C_SPACE)) {
            p++;
        } else if (c == '\'') {
            const char *q = p + 1 < end && p[1] == '\'' && !(p + 2 < end && p[2] == '\'') ? p + 2 : step_string_end(p, end);
            for (q = q ? q : end; p < q; p++)
                if (*p != '\n' && *p != '\r')
                    *o++ = *p;
        } else if (c == '#' && ids) {
            uint32_t target = ids->f->refs[ref++].target;
            uint64_t old = step_ref_id(p);
            uint64_t id = target != STEP_NONE ? ids->of[target] : ids->dangling ? ids->dangling(ids->ctx, old) : old;
            *o++ = '#';
            if (ids->compact && id > ids->self)
                *o++ = '-';
            o = put_number(o, !ids->compact ? id : id > ids->self ? id - ids->self : ids->self - id);
            for (p++; p < end && IS(*p, C_DIGIT); p++)
                ;
        } else if (c == '/' || c == '\\') {
            const char *q = space_end(p, end);
            if (q == p && open_comment(p, end))
                end = p; /* damaged text: there is no more */
            else if (q == p) {
                if (c == '\\' && o - start >= 2 && (o[-1] == 'N' || o[-1] == 'F') && o[-2] == '\\')
                    *o++ = ' ';
                *o++ = *p++;
            }
            p = q > p ? q : p;
        } else {
            /* What stood apart must not make a comment or a directive of damaged text. */
            if (c == '*' && o > start && o[-1] == '/')
                *o++ = ' ';
            *o++ = c;
            p++;
        }
    }
    return o;
}

void step_put_lean(const char *s, size_t n, struct buf *out)
{
    buf_grow(out, n);
    out->n = (size_t)(put_lean(out->s + out->n, s, n, NULL, 0) - out->s);
    out->s[out->n] = 0;
}

void step_put(const struct step_file *f, const struct step_entity *e, const struct step_ids *ids, struct buf *out)
{
    const char *p = f->text + e->off + 1, *end = f->text + e->off + e->len;
    while (IS(*p, C_DIGIT))
        p++;
    p = space_end(p, end) + 1; /* behind '=' */
    buf_grow(out, e->len + 20 * ((size_t)e->n_ref + 2));
    char *o = out->s + out->n;
    struct step_ids own = {0};
    if (ids && ids->compact) {
        own = *ids;
        own.self = ids->of[e - f->v];
        ids = &own;
    } else {
        *o++ = '#';
        o = put_number(o, ids ? ids->of[e - f->v] : e->id);
        *o++ = '=';
    }
    o = put_lean(o, p, (size_t)(end - p), ids, e->ref);
    out->n = (size_t)(o - out->s);
    *o = 0;
}

void step_put_header(const struct step_file *f, struct buf *out)
{
    buf_puts(out, "ISO-10303-21;\nHEADER;\n");
    for (size_t i = 0; i < f->n_header; i++) {
        step_put_lean(f->text + f->header[i].off, f->header[i].len, out);
        buf_putc(out, '\n');
    }
    buf_puts(out, "ENDSEC;\n");
}

/* ---- the text a language model sees ---- */

static const char start_word[] = "DATA", end_word[] = "END-ISO-10303-21";

/* Scans words outside strings and comments from p on; the one that equals word and is
 * followed by ';' (or '(' for DATA), or NULL.  *after: behind its ';'. */
static const char *find_word(const char *p, const char *end, const char *word, const char **after)
{
    size_t n = strlen(word);
    while (p < end) {
        if (*p == '\'') {
            const char *q = step_string_end(p, end);
            if (!q)
                return NULL;
            p = q;
        } else if (*p == '/' || IS(*p, C_SPACE)) {
            const char *q = space_end(p, end);
            if (open_comment(q, end))
                return NULL;
            p = q > p ? q : p + 1;
        } else if (IS(*p, C_UPPER | C_LOWER | C_DIGIT)) {
            const char *q = p;
            while (q < end && (IS(*q, C_UPPER | C_LOWER | C_DIGIT) || *q == '-'))
                q++;
            const char *s = space_end(q, end);
            if ((size_t)(q - p) == n && !memcmp(p, word, n) && s < end && (*s == ';' || *s == '(')) {
                *after = s + 1;
                return p;
            }
            p = q;
        } else {
            p++;
        }
    }
    return NULL;
}

/* A damaged text (an odd quote) may hide the word from the scan: take it as it stands. */
static const char *find_plain(const char *p, const char *end, const char *word, const char **after)
{
    size_t n = strlen(word);
    const char *q = memmem(p, (size_t)(end - p), word, n);
    if (q)
        *after = q + n + (q + n < end && q[n] == ';');
    return q;
}

bool step_data_part(const char *text, size_t n, const char **part, size_t *part_n)
{
    const char *end = text + n, *after;
    const char *s = find_word(text, end, start_word, &after);
    if (!s && !(s = find_plain(text, end, "DATA;", &after)))
        return false;
    const char *stop;
    if (!find_word(after, end, end_word, &stop) && !find_plain(after, end, end_word, &stop))
        stop = end;
    *part = s;
    *part_n = (size_t)(stop - s);
    return true;
}

void step_put_standard_header(struct buf *out)
{
    buf_puts(out, "ISO-10303-21;\n"
                  "HEADER;\n"
                  "FILE_DESCRIPTION(('generated from a caption'),'2;1');\n"
                  "FILE_NAME('','1970-01-01T00:00:00',(''),(''),'','STEP-LLM','');\n"
                  "FILE_SCHEMA(('AUTOMOTIVE_DESIGN { 1 0 10303 214 1 1 1 1 }'));\n"
                  "ENDSEC;\n");
}

void step_with_header(const char *text, size_t n, struct buf *out)
{
    const char *part = text;
    size_t part_n = n;
    step_put_standard_header(out);
    if (!step_data_part(text, n, &part, &part_n)) {
        const char *stop;
        buf_puts(out, "DATA;\n");
        if (find_word(text, text + n, end_word, &stop) || find_plain(text, text + n, end_word, &stop))
            part_n = (size_t)(stop - text);
    }
    buf_add(out, part, part_n);
    if (!part_n || part[part_n - 1] != '\n')
        buf_putc(out, '\n');
}
