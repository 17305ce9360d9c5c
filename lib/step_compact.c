#include "lib/step_prep.h"

/* Where the data sections are decides what is an instance: a statement of a data section is one, unless it opens or
 * ends the section.  Statements end at the ';' outside strings and comments. */

static inline bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Behind s's closing quote; an open string ends with the text. */
static const char *over_string(const char *s, const char *end)
{
    const char *q = step_string_end(s, end);
    return q ? q : end;
}

/* Behind the comment at s. */
static const char *over_comment(const char *s, const char *end)
{
    const char *q = memmem(s + 2, (size_t)(end - s - 2), "*/", 2);
    return q ? q + 2 : end;
}

static inline bool opens_comment(const char *s, const char *end)
{
    return *s == '/' && s + 1 < end && s[1] == '*';
}

static const char *statement_end(const char *p, const char *end)
{
    while (p < end && *p != ';')
        p = *p == '\'' ? over_string(p, end) : opens_comment(p, end) ? over_comment(p, end) : p + 1;
    return p < end ? p + 1 : end;
}

/* The statement at p (no space ahead) is that word and ';' (or what else may follow it). */
static bool is_word(const char *p, const char *end, const char *word, char or_else)
{
    size_t n = strlen(word);
    if ((size_t)(end - p) < n || memcmp(p, word, n))
        return false;
    p = step_skip_space(p + n, end);
    return p < end && (*p == ';' || *p == or_else);
}

enum place { OUTSIDE, INSIDE }; /* of a data section */

/* What the statement that starts at p (behind space and comments) is. */
enum statement_kind { OTHER, OPENS, CLOSES, INSTANCE };
static enum statement_kind kind_of(const char *p, const char *end, enum place place)
{
    if (place == OUTSIDE)
        return is_word(p, end, "DATA", '(') ? OPENS : OTHER;
    if (is_word(p, end, "ENDSEC", ';') || is_word(p, end, "END-ISO-10303-21", ';'))
        return CLOSES;
    return p < end && !opens_comment(p, end) ? INSTANCE : OTHER; /* a comment that does not end is the rest */
}

/* A text may begin with its header, with DATA, or with an instance. */
static enum place first_place(const char *text, const char *end)
{
    const char *p = step_skip_space(text, end);
    return is_word(p, end, "ISO-10303-21", ';') || is_word(p, end, "DATA", '(') ? OUTSIDE : INSIDE;
}

bool step_is_compact(const char *text, size_t n)
{
    const char *p = text, *end = text + n;
    if (n >= 3 && !memcmp(p, "\xef\xbb\xbf", 3))
        p += 3;
    for (enum place place = first_place(p, end); p < end;) {
        p = step_skip_space(p, end);
        switch (kind_of(p, end, place)) {
        case INSTANCE:
            return *p == '(' || *p == '!' || *p == '_' || (*p >= 'A' && *p <= 'Z');
        case OPENS:
            place = INSIDE;
            break;
        case CLOSES:
            if (is_word(p, end, "END-ISO-10303-21", ';'))
                return false; /* what follows is not expanded, either */
            place = OUTSIDE;
            break;
        default:
            break;
        }
        p = statement_end(p, end);
    }
    return false;
}

/* How many instances a text holds: what names from here on are not taken. */
static uint64_t count_instances(const char *p, const char *end)
{
    uint64_t n = 0;
    for (enum place place = first_place(p, end); p < end; p = statement_end(p, end)) {
        p = step_skip_space(p, end);
        enum statement_kind kind = kind_of(p, end, place);
        n += kind == INSTANCE;
        place = kind == OPENS ? INSIDE : kind == CLOSES ? OUTSIDE : place;
    }
    return n;
}

/* Copies an instance with its references, "#12" and "#-3", named. */
static void put_instance(const char *p, const char *end, uint64_t self, uint64_t n_all, struct buf *out)
{
    buf_putc(out, '#');
    buf_put_u64(out, self);
    buf_putc(out, '=');
    const char *from = p; /* not copied yet */
    while (p < end) {
        if (*p == '\'') {
            p = over_string(p, end);
            continue;
        }
        if (opens_comment(p, end)) {
            p = over_comment(p, end);
            continue;
        }
        if (*p++ != '#')
            continue;
        const char *digits = p + (p < end && *p == '-');
        uint64_t d = 0;
        const char *q = digits;
        for (; q < end && is_digit(*q) && q - digits < 18; q++)
            d = d * 10 + (uint64_t)(*q - '0');
        if (q == digits)
            continue; /* #ID_7, or damage: stays as it is */
        buf_add(out, from, (size_t)(p - from));
        if (*p == '-')
            buf_put_u64(out, self + d);
        else
            buf_put_u64(out, d < self ? self - d : n_all + d); /* ahead of the first instance there is none */
        from = p = q;
    }
    buf_add(out, from, (size_t)(end - from));
}

void step_expand(const char *text, size_t n, struct buf *out)
{
    const char *p = text, *end = text + n;
    uint64_t self = 0;
    if (n >= 3 && !memcmp(p, "\xef\xbb\xbf", 3))
        p += 3;
    enum place place = first_place(p, end);
    uint64_t n_all = count_instances(p, end);
    while (p < end) {
        const char *s = step_skip_space(p, end);
        enum statement_kind kind = kind_of(s, end, place);
        const char *stop = statement_end(s, end);
        place = kind == OPENS ? INSIDE : kind == CLOSES ? OUTSIDE : place;
        buf_add(out, p, (size_t)(s - p));
        if (kind == INSTANCE)
            put_instance(s, stop, ++self, n_all, out);
        else
            buf_add(out, s, (size_t)(stop - s));
        p = stop;
        if (kind == CLOSES && is_word(s, end, "END-ISO-10303-21", ';')) {
            buf_add(out, p, (size_t)(end - p));
            break;
        }
    }
}
