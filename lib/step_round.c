#include "lib/step_prep.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"

enum { MAX_DIGITS = 400 }; /* of one real; longer ones stay as they are */

static inline bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Rounds d[0..n) (value 0.d * 10^e) to k digits, half to even.  Returns the digits
 * left, without trailing zeros; 0: the value is zero. */
static int round_digits(char *d, int n, int k, int *e)
{
    if (k < n) {
        bool up = false;
        if (k >= 0) {
            bool tail = false;
            for (int i = k + 1; i < n; i++)
                tail |= d[i] != '0';
            up = d[k] > '5' || (d[k] == '5' && (tail || (k > 0 && (d[k - 1] - '0') % 2)));
        }
        n = k > 0 ? k : 0;
        if (up) {
            int i = n - 1;
            while (i >= 0 && d[i] == '9')
                d[i--] = '0';
            if (i >= 0) {
                d[i]++;
            } else { /* 9.99 -> 10 */
                d[0] = '1';
                n = n ? n : 1;
                (*e)++;
            }
        }
    }
    while (n > 0 && d[n - 1] == '0')
        n--;
    return n;
}

/* Shortest legal spelling of sign 0.d * 10^e. */
static char *spell(char *o, bool minus, const char *d, int n, int e)
{
    if (n == 0) {
        memcpy(o, "0.", 2);
        return o + 2;
    }
    if (minus)
        *o++ = '-';
    if (e > 15 || e < -5) { /* d.ddE<e-1> */
        *o++ = d[0];
        *o++ = '.';
        memcpy(o, d + 1, (size_t)n - 1);
        o += n - 1;
        return o + sprintf(o, "E%d", e - 1);
    }
    if (e <= 0) {
        *o++ = '0';
        *o++ = '.';
        memset(o, '0', (size_t)-e);
        o += -e;
        memcpy(o, d, (size_t)n);
        return o + n;
    }
    for (int i = 0; i < e; i++)
        *o++ = i < n ? d[i] : '0';
    *o++ = '.';
    for (int i = e; i < n; i++)
        *o++ = d[i];
    return o;
}

/* Appends the real token s rounded; there is room for MAX_DIGITS + 32 bytes. */
static void put_real(const char *s, size_t len, int decimals, const struct step_round_opts *opts, struct buf *out,
                     bool *changed)
{
    char d[MAX_DIGITS];
    const char *p = s, *end = s + len;
    int n = 0, e = 0, value_digits;
    bool minus = *p == '-', point = false;
    *changed = false;
    if (len > MAX_DIGITS) {
        buf_add(out, s, len);
        return;
    }
    if (*p == '-' || *p == '+')
        p++;
    for (; p < end && (is_digit(*p) || *p == '.'); p++) {
        if (*p == '.') {
            point = true;
        } else if (n || *p != '0') {
            d[n++] = *p;
            e += !point;
        } else if (point) {
            e--;
        }
    }
    if (p < end) { /* E */
        long x = strtol(p + 1, NULL, 10); /* a token: a comma or parenthesis stops it */
        if (labs(x) > 100000) {
            buf_add(out, s, len);
            return;
        }
        e += (int)x;
    }
    for (value_digits = n; value_digits > 0 && d[value_digits - 1] == '0'; value_digits--)
        ;
    int k = decimals + e;
    if (k < opts->significant)
        k = opts->significant;
    /* 0.d * 10^e < flush */
    if (opts->flush > 0 && n && e < 300 && (e < -300 || fabs(strtod(s, NULL)) < opts->flush))
        k = -1;
    int kept = round_digits(d, n, k, &e);
    *changed = kept < value_digits;
    out->n = (size_t)(spell(out->s + out->n, minus, d, kept, e) - out->s);
}

/* A real that put_real() would write as it stands: most are 0. or 1. or have few digits. */
static bool stays(const char *p, size_t len, int decimals)
{
    const char *end = p + len, *whole, *dot;
    bool minus = *p == '-';
    whole = p += minus;
    while (p < end && is_digit(*p))
        p++;
    dot = p;
    if (dot == whole || dot - whole > 15 || dot == end || *dot != '.' || (*whole == '0' && dot - whole > 1))
        return false;
    for (p++; p < end && is_digit(*p); p++)
        ;
    if (p < end || p - dot - 1 > decimals)
        return false;
    if (p - dot == 1)
        return !(minus && *whole == '0');
    return p[-1] != '0' && (*whole != '0' || p - dot - 1 <= 5 || dot[1] != '0');
}

/* ---- the length unit ---- */

static const struct {
    const char *prefix;
    double metres;
} prefixes[] = {
    {".EXA.", 1e18}, {".PETA.", 1e15}, {".TERA.", 1e12}, {".GIGA.", 1e9}, {".MEGA.", 1e6}, {".KILO.", 1e3},
    {".HECTO.", 1e2}, {".DECA.", 1e1}, {".DECI.", 1e-1}, {".CENTI.", 1e-2}, {".MILLI.", 1e-3}, {".MICRO.", 1e-6},
    {".NANO.", 1e-9}, {".PICO.", 1e-12}, {".FEMTO.", 1e-15}, {".ATTO.", 1e-18}, {"$", 1},
};

static uint32_t ref_target(const struct step_file *f, struct step_token t)
{
    return t.n > 1 && t.s[0] == '#' ? step_find(f, step_ref_id(t.s)) : STEP_NONE;
}

/* A length unit in millimetres; 0 if the instance is none. */
static double unit_mm(const struct step_file *f, uint32_t i, int depth)
{
    const char *p = NULL;
    struct step_token keyword, params, a, b;
    bool length = false;
    double mm = 0;
    if (i == STEP_NONE || depth > 8)
        return 0;
    const struct step_entity *e = &f->v[i];
    while (step_part(f, e, &p, &keyword, &params)) {
        if (keyword.n == 11 && !memcmp(keyword.s, "LENGTH_UNIT", 11))
            length = true;
        if (keyword.n == 7 && !memcmp(keyword.s, "SI_UNIT", 7) && step_param(params.s, params.n, 0, &a) &&
            step_param(params.s, params.n, 1, &b) && b.n == 7 && !memcmp(b.s, ".METRE.", 7))
            for (size_t k = 0; k < ARRAY_LEN(prefixes); k++)
                if (a.n == strlen(prefixes[k].prefix) && !memcmp(a.s, prefixes[k].prefix, a.n))
                    mm = prefixes[k].metres * 1e3;
        if (keyword.n == 21 && !memcmp(keyword.s, "CONVERSION_BASED_UNIT", 21) &&
            step_param(params.s, params.n, 1, &a)) {
            uint32_t m = ref_target(f, a); /* LENGTH_MEASURE_WITH_UNIT(LENGTH_MEASURE(25.4),#mm) */
            if (m == STEP_NONE || f->v[m].complex)
                continue;
            const char *par = f->text + f->v[m].par, *open;
            size_t n = f->v[m].par_len;
            if (step_param(par, n, 0, &a) && step_param(par, n, 1, &b) && (open = memchr(a.s, '(', a.n)))
                mm = strtod(step_skip_space(open + 1, a.s + a.n), NULL) * unit_mm(f, ref_target(f, b), depth + 1);
        }
    }
    return length ? mm : 0;
}

/* The largest length unit that a context of the file assigns. */
static double file_unit_mm(const struct step_file *f)
{
    double largest = 0;
    for (size_t i = 0; i < f->n; i++) {
        const struct step_entity *e = &f->v[i];
        if (!e->complex || !step_is(f, e, "GLOBAL_UNIT_ASSIGNED_CONTEXT"))
            continue;
        for (uint32_t k = 0; k < e->n_ref; k++) {
            double mm = unit_mm(f, f->refs[e->ref + k].target, 0);
            if (mm > largest)
                largest = mm;
        }
    }
    return largest;
}

/* The end of a real from its point or E on. */
static inline const char *real_end(const char *p, const char *end)
{
    for (p += *p == '.'; p < end && is_digit(*p); p++)
        ;
    if (p < end && (*p == 'E' || *p == 'e'))
        for (p += 2; p < end && is_digit(*p); p++) /* a sign or a digit follows */
            ;
    return p;
}

/* The next real of parameters that the parser has seen to be well formed; *p moves behind it. */
static bool next_real(const char **pp, const char *end, struct step_token *t)
{
    const char *p = *pp;
    while (p < end) {
        const char *q = p + 1;
        switch (*p) {
        case '0' ... '9': case '+': case '-': {
            t->s = p;
            while (q < end && is_digit(*q))
                q++;
            if (q < end && (*q == '.' || *q == 'E' || *q == 'e')) {
                *pp = real_end(q, end);
                t->n = (size_t)(*pp - p);
                return true;
            }
            break;
        }
        case '.': /* .T., or .5 */
            if (q < end && is_digit(*q)) {
                *pp = real_end(p, end);
                *t = (struct step_token){.s = p, .n = (size_t)(*pp - p)};
                return true;
            }
            while (q < end && *q != '.')
                q++;
            q++;
            break;
        case '#': case 'A' ... 'Z': case '_': case '!':
            while (q < end && (is_digit(*q) || (*q >= 'A' && *q <= 'Z') || *q == '_'))
                q++;
            break;
        case '\'':
            q = step_string_end(p, end);
            q = q ? q : end;
            break;
        case '"':
            while (q < end && *q != '"')
                q++;
            q++;
            break;
        case '/': case '\\':
            q = step_skip_space(p, end);
            q = q > p ? q : p + 1;
            break;
        }
        p = q;
    }
    *pp = end;
    return false;
}

int step_round(const char *name, const char *text, size_t n, const struct step_round_opts *opts, struct buf *out,
               struct step_round_report *report)
{
    struct step_file *f;
    int rc = step_parse(name, text, n, STEP_NO_HEADER, &f);
    if (rc < 0)
        return rc;
    *report = (struct step_round_report){.unit_mm = file_unit_mm(f), .decimals = opts->decimals};
    if (report->unit_mm > 1)
        report->decimals += (int)ceil(log10(report->unit_mm) - 1e-9);

    bool *exact = xcalloc(f->n_types + 1, sizeof *exact);
    for (size_t i = 0; i < f->n_types; i++)
        exact[i] = strstr(step_type(f, (uint32_t)i), "MEASURE_WITH_UNIT") != NULL;

    const char *from = text; /* not yet copied */
    buf_grow(out, n + MAX_DIGITS + 32);
    for (size_t i = 0; i < f->n; i++) {
        const struct step_entity *e = &f->v[i];
        if (!e->reals || exact[e->type])
            continue;
        const char *p = text + e->par, *end = p + e->par_len;
        struct step_token t;
        while (next_real(&p, end, &t)) {
            bool changed;
            report->reals++;
            if (opts->flush <= 0 && stays(t.s, t.n, report->decimals))
                continue;
            size_t gap = (size_t)(t.s - from);
            buf_grow(out, gap + MAX_DIGITS + 32);
            memcpy(out->s + out->n, from, gap);
            out->n += gap;
            put_real(t.s, t.n, report->decimals, opts, out, &changed);
            from = p;
            report->changed += changed;
        }
    }
    buf_add(out, from, (size_t)(text + n - from));
    free(exact);
    step_free(f);
    return ERR_OK;
}
