#include "lib/step_prep.h"

#include <stdlib.h>

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

/* ---- points as differences ---- */

enum { POINT_DIGITS = 9 }; /* behind the point, and ahead of it */
static const int64_t point_unit = 1000000000;
static const char point_word[] = "CARTESIAN_POINT('";

/* A number as put_coordinate() spells it: then the value is all there is to it. */
static bool coordinate(const char **p, const char *end, int64_t *v)
{
    const char *s = *p;
    bool minus = s < end && *s == '-';
    s += minus;
    const char *digits = s;
    int64_t whole = 0, part = 0;
    for (; s < end && is_digit(*s) && s - digits < POINT_DIGITS; s++)
        whole = whole * 10 + (*s - '0');
    if (s == digits || (*digits == '0' && s - digits > 1) || s == end || *s != '.')
        return false;
    const char *behind = ++s;
    int64_t unit = point_unit;
    for (; s < end && is_digit(*s) && s - behind < POINT_DIGITS; s++)
        part += (*s - '0') * (unit /= 10);
    if ((s > behind && s[-1] == '0') || (minus && !whole && !part))
        return false;
    *p = s;
    *v = whole * point_unit + part;
    *v = minus ? -*v : *v;
    return true;
}

static void put_coordinate(int64_t v, struct buf *out)
{
    if (v < 0)
        buf_putc(out, '-');
    uint64_t u = v < 0 ? -(uint64_t)v : (uint64_t)v, part = u % (uint64_t)point_unit;
    buf_put_u64(out, u / (uint64_t)point_unit);
    buf_putc(out, '.');
    for (uint64_t unit = (uint64_t)point_unit / 10; part; part %= unit, unit /= 10)
        buf_putc(out, (char)('0' + part / unit));
}

/* CARTESIAN_POINT('...',(1.,2.,3.)); as it stands.  *name: behind the opening quote. */
static bool read_point(const char *s, size_t n, struct step_point *out, const char **name, const char **name_end)
{
    const char *end = s + n, *p = s + sizeof point_word - 1;
    if (n < sizeof point_word || memcmp(s, point_word, sizeof point_word - 1))
        return false;
    *name = p;
    p = step_string_end(p - 1, end);
    if (!p || end - p < 3 || p[0] != ',' || p[1] != '(')
        return false;
    *name_end = p - 1;
    for (p += 2, out->n = 0; out->n < 3 && coordinate(&p, end, &out->v[out->n]);) {
        out->n++;
        if (p == end || *p != ',')
            break;
        p++;
    }
    return out->n && end - p == 3 && !memcmp(p, "));", 3);
}

static void put_point(const struct step_point *v, const char *mark, const char *name, const char *name_end, struct buf *out)
{
    buf_puts(out, point_word);
    buf_puts(out, mark);
    buf_add(out, name, (size_t)(name_end - name));
    buf_puts(out, "',(");
    for (int i = 0; i < v->n; i++) {
        if (i)
            buf_putc(out, ',');
        put_coordinate(v->v[i], out);
    }
    buf_puts(out, "));");
}

static bool begins(const char *s, size_t n, const char *word)
{
    size_t w = strlen(word);
    return n > w && !memcmp(s, word, w);
}

void step_points_meet(struct step_points *p, uint64_t self, const char *s, size_t n)
{
    if (self >= UINT32_MAX)
        return;
    if (self >= p->cap) {
        size_t cap = self * 2 + 64;
        p->of = xrealloc(p->of, cap * sizeof *p->of);
        memset(p->of + p->cap, 0, (cap - p->cap) * sizeof *p->of);
        p->cap = cap;
    }
    if (p->n_points + 1 >= p->cap_points)
        p->point = xrealloc(p->point, (p->cap_points = p->cap_points * 2 + 64) * sizeof *p->point);
    const char *name, *name_end, *end = s + n;
    if (read_point(s, n, &p->point[p->n_points + 1], &name, &name_end)) {
        p->last = (uint32_t)++p->n_points;
        p->of[self].start = p->of[self].end = p->last;
        return;
    }
    bool edge = begins(s, n, "EDGE_CURVE("), turned = begins(s, n, "ORIENTED_EDGE(") && n > 6 && !memcmp(end - 6, ",.F.);", 6);
    uint32_t start = 0, stop = 0;
    int met = 0, wanted = edge ? 2 : 1;
    for (const char *q = s; q < end && met < wanted;) {
        if (*q == '\'') {
            q = over_string(q, end);
            continue;
        }
        if (*q++ != '#')
            continue;
        uint64_t d = 0;
        for (; q < end && is_digit(*q) && d < UINT32_MAX; q++)
            d = d * 10 + (uint64_t)(*q - '0');
        if (!d || d >= self || !p->of[self - d].end)
            continue;
        stop = turned ? p->of[self - d].start : p->of[self - d].end;
        start = met++ ? start : stop;
    }
    if (!stop)
        return;
    p->of[self].start = start;
    p->of[self].end = p->last = stop;
}

bool step_point_relative(const struct step_points *p, const char *s, size_t n, struct buf *out, int zeros[2])
{
    struct step_point v;
    const char *name, *name_end;
    if (!p->last || !read_point(s, n, &v, &name, &name_end))
        return false;
    const struct step_point *base = &p->point[p->last];
    if (v.n != base->n)
        return false;
    zeros[0] = zeros[1] = 0;
    for (int i = 0; i < v.n; i++) {
        zeros[0] += !v.v[i];
        v.v[i] -= base->v[i];
        zeros[1] += !v.v[i];
        if (v.v[i] <= -point_unit * point_unit || v.v[i] >= point_unit * point_unit)
            return false;
    }
    put_point(&v, "+", name, name_end, out);
    return true;
}

void step_points_release(struct step_points *p)
{
    free(p->point);
    free(p->of);
    *p = (struct step_points){0};
}

void step_point_mark(size_t from, struct buf *out)
{
    size_t at = from + sizeof point_word - 1;
    if (at >= out->n || memcmp(out->s + from, point_word, sizeof point_word - 1) || (out->s[at] != '+' && out->s[at] != '-'))
        return;
    buf_putc(out, 0);
    memmove(out->s + at + 1, out->s + at, out->n - at - 1);
    out->s[at] = '-';
}

/* The point at s, an instance in the compact form, as it is; false: it is as it is already. */
static bool put_sum(const struct step_points *p, const char *s, size_t n, struct buf *out)
{
    size_t w = sizeof point_word - 1;
    if (n <= w || memcmp(s, point_word, w) || (s[w] != '+' && s[w] != '-'))
        return false;
    struct step_point v;
    const char *name, *name_end;
    if (s[w] == '+' && p->last && read_point(s, n, &v, &name, &name_end) && v.n == p->point[p->last].n) {
        bool fits = true;
        for (int i = 0; i < v.n; i++) {
            v.v[i] += p->point[p->last].v[i];
            fits = fits && v.v[i] > -point_unit * point_unit && v.v[i] < point_unit * point_unit;
        }
        if (fits) {
            put_point(&v, "", name + 1, name_end, out);
            return true;
        }
    }
    buf_add(out, s, w); /* damage: without its mark, as it stands */
    buf_add(out, s + w + 1, n - w - 1);
    return true;
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
    struct step_points points = {0};
    struct buf sum = BUF_INIT;
    while (p < end) {
        const char *s = step_skip_space(p, end);
        enum statement_kind kind = kind_of(s, end, place);
        const char *stop = statement_end(s, end);
        place = kind == OPENS ? INSIDE : kind == CLOSES ? OUTSIDE : place;
        buf_add(out, p, (size_t)(s - p));
        if (kind == INSTANCE) {
            const char *from = s, *to = stop;
            sum.n = 0;
            if (put_sum(&points, s, (size_t)(stop - s), &sum))
                from = sum.s, to = sum.s + sum.n;
            step_points_meet(&points, ++self, from, (size_t)(to - from));
            put_instance(from, to, self, n_all, out);
        } else
            buf_add(out, s, (size_t)(stop - s));
        p = stop;
        if (kind == CLOSES && is_word(s, end, "END-ISO-10303-21", ';')) {
            buf_add(out, p, (size_t)(end - p));
            break;
        }
    }
    buf_release(&sum);
    step_points_release(&points);
}
