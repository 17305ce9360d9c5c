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

/* A real that put_real() would write as it stands: most are 0. or 1. or have few digits.  s: behind its sign. */
static inline bool stays(const char *s, const struct step_real *r, bool minus, int decimals)
{
    const char *behind = s + r->whole + 1;
    if (!r->whole || r->whole > 15 || r->fraction > decimals || (*s == '0' && r->whole > 1))
        return false;
    if (!r->fraction)
        return !(minus && *s == '0');
    return behind[r->fraction - 1] != '0' && (*s != '0' || r->fraction <= 5 || *behind != '0');
}

/* put_real() of the usual real of too many digits.  Returns how many bytes of s are kept in o, 0 if it is none such. */
static inline size_t cut(char *o, const char *s, const struct step_real *r, int decimals)
{
    const char *behind = s + r->whole + 1;
    if (!r->whole || r->whole > 15 || r->fraction <= decimals || behind[r->fraction - 1] == '0')
        return 0;
    if (*s == '0' && (r->whole > 1 || (behind[0] == '0' && behind[1] == '0')))
        return 0;
    size_t n = (size_t)(r->whole + 1 + decimals);
    char next = behind[decimals], *last = o + n - 1;
    if (next == '5' && r->fraction == decimals + 1) /* half way */
        return 0;
    memcpy(o, s, n);
    if (next < '5') {
        while (*last == '0')
            last--;
    } else {
        while (*last == '9')
            last--;
        if (*last == '.') /* the carry goes on */
            return 0;
        ++*last;
    }
    return (size_t)(last + 1 - o);
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
    uint32_t other = STEP_NONE; /* the type seen last that is none */
    for (size_t i = 0; i < f->n; i++) {
        const struct step_entity *e = &f->v[i];
        if (!e->complex || e->type == other)
            continue;
        if (!step_is(f, e, "GLOBAL_UNIT_ASSIGNED_CONTEXT")) {
            other = e->type;
            continue;
        }
        for (uint32_t k = 0; k < e->n_ref; k++) {
            double mm = unit_mm(f, f->refs[e->ref + k].target, 0);
            if (mm > largest)
                largest = mm;
        }
    }
    return largest;
}

int step_round(const char *name, const char *text, size_t n, const struct step_round_opts *opts, struct buf *out,
               struct step_round_report *report)
{
    struct step_file *f;
    int rc = step_parse(name, text, n, STEP_NO_HEADER | STEP_REALS, &f);
    if (rc < 0)
        return rc;
    *report = (struct step_round_report){.unit_mm = file_unit_mm(f), .decimals = opts->decimals};
    if (report->unit_mm > 1)
        report->decimals += (int)ceil(log10(report->unit_mm) - 1e-9);

    bool *exact = xcalloc(f->n_types + 1, sizeof *exact);
    for (size_t i = 0; i < f->n_types; i++)
        exact[i] = strstr(step_type(f, (uint32_t)i), "MEASURE_WITH_UNIT") != NULL;

    const struct step_real *r = f->reals, *last = r + f->n_reals;
    const char *from = text; /* not yet copied */
    int decimals = report->decimals;
    /* cut() keeps decimals digits or one less that are not 0 */
    bool may_cut = opts->flush <= 0 && decimals >= 2 && decimals - 1 >= opts->significant;
    buf_grow(out, n + MAX_DIGITS + 32);
    for (size_t i = 0; i <= f->n && r < last; i++) {
        /* up to the next instance whose reals stay, and over them */
        while (i < f->n && !exact[f->v[i].type])
            i++;
        uint32_t stop = i < f->n ? f->v[i].par : UINT32_MAX;
        for (; r < last && r->off < stop; r++) {
            const char *s = text + r->off, *number = s + (*s == '-');
            size_t gap = (size_t)(s - from), kept;
            bool changed = true;
            report->reals++;
            if (opts->flush <= 0 && stays(number, r, number > s, decimals))
                continue;
            gap += number > s;
            if (may_cut && (kept = cut(out->s + out->n + gap, number, r, decimals)) > 0) {
                memcpy(out->s + out->n, from, gap);
                out->n += gap + kept;
            } else {
                gap = (size_t)(s - from);
                buf_grow(out, (size_t)(text + n - from) + MAX_DIGITS + 32);
                memcpy(out->s + out->n, from, gap);
                out->n += gap;
                put_real(s, r->len, decimals, opts, out, &changed);
            }
            from = s + r->len;
            report->changed += changed;
        }
        for (stop = i < f->n ? stop + f->v[i].par_len : stop; r < last && r->off < stop; r++)
            ;
    }
    buf_add(out, from, (size_t)(text + n - from));
    free(exact);
    step_free(f);
    return ERR_OK;
}
