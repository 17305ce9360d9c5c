#include "lib/schema.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/asset.h"
#include "lib/err.h"

/* The table of the source tree is part of the program. */
ASSET(schema_table, "lib/schema.tsv");

struct schema *schema_new(void)
{
    return xcalloc(1, sizeof(struct schema));
}

static void pattern_release(struct schema_pattern *p)
{
    for (size_t i = 0; i < p->n_enums; i++)
        free(p->enums[i]);
    for (size_t i = 0; i < p->n_types; i++)
        free(p->types[i]);
    for (size_t i = 0; i < p->n_typed; i++) {
        free(p->typed[i].name);
        pattern_release(p->typed[i].value);
        free(p->typed[i].value);
    }
    if (p->elem)
        pattern_release(p->elem);
    free(p->elem);
    free(p->enums);
    free(p->types);
    free(p->typed);
}

void schema_free(struct schema *s)
{
    for (size_t i = 0; s && i < s->n; i++) {
        for (size_t k = 0; k < s->v[i].n_params; k++)
            pattern_release(&s->v[i].param[k]);
        free(s->v[i].param);
        free(s->v[i].name);
    }
    if (s)
        free(s->v);
    free(s);
}

/* ---- sorted sets ---- */

static int compare(const char *a, const char *b, size_t n)
{
    int c = strncmp(a, b, n);
    return c ? c : a[n] ? 1 : 0;
}

static void add_name(char ***v, size_t *n, size_t *cap, const char *s, size_t len)
{
    size_t lo = 0, hi = *n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = compare((*v)[mid], s, len);
        if (!c)
            return;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    ARRAY_GROW(*v, *cap, *n + 1);
    memmove(*v + lo + 1, *v + lo, (*n - lo) * sizeof **v);
    (*v)[lo] = xstrndup(s, len);
    (*n)++;
}

static struct schema_pattern *add_typed(struct schema_pattern *p, const char *s, size_t len)
{
    size_t i = 0;
    for (; i < p->n_typed; i++) {
        int c = compare(p->typed[i].name, s, len);
        if (!c)
            return p->typed[i].value;
        if (c > 0)
            break;
    }
    ARRAY_GROW(p->typed, p->typed_cap, p->n_typed + 1);
    memmove(p->typed + i + 1, p->typed + i, (p->n_typed - i) * sizeof *p->typed);
    p->typed[i] = (struct schema_typed){.name = xstrndup(s, len), .value = xcalloc(1, sizeof *p->typed[i].value)};
    p->n_typed++;
    return p->typed[i].value;
}

static size_t place(const struct schema *s, char kind, const char *name, size_t n, bool *found)
{
    size_t lo = 0, hi = s->n;
    *found = false;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = s->v[mid].kind - kind;
        c = c ? c : compare(s->v[mid].name, name, n);
        if (!c) {
            *found = true;
            return mid;
        }
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const struct schema_entity *schema_find(const struct schema *s, char kind, const char *name, size_t n)
{
    bool found;
    size_t i = place(s, kind, name, n, &found);
    return found ? &s->v[i] : NULL;
}

static struct schema_entity *entity(struct schema *s, char kind, const char *name, size_t n)
{
    bool found;
    size_t i = place(s, kind, name, n, &found);
    if (!found) {
        ARRAY_GROW(s->v, s->cap, s->n + 1);
        memmove(s->v + i + 1, s->v + i, (s->n - i) * sizeof *s->v);
        s->v[i] = (struct schema_entity){.kind = kind, .name = xstrndup(name, n)};
        s->n++;
    }
    return &s->v[i];
}

static uint64_t count_bit(size_t n)
{
    return n ? (uint64_t)1 << (n - 1) : (uint64_t)1 << 63;
}

static void grow_params(struct schema_entity *e, size_t n)
{
    if (n <= e->n_params)
        return;
    e->param = xrealloc(e->param, n * sizeof *e->param);
    memset(e->param + e->n_params, 0, (n - e->n_params) * sizeof *e->param);
    e->n_params = n;
}

/* ---- learning ---- */

/* The value at *p (its first token in t, already read): its kind and what is inside it. */
static bool learn_value(struct schema_pattern *p, const struct step_file *f, const char **at, const char *end,
                        enum step_kind kind, struct step_token t, const struct step_ref **ref, int depth)
{
    if (depth > SCHEMA_MAX_DEPTH)
        return false;
    switch (kind) {
    case STEP_OMITTED: p->kinds |= SCHEMA_OMITTED; return true;
    case STEP_DERIVED: p->kinds |= SCHEMA_DERIVED; return true;
    case STEP_INT: p->kinds |= SCHEMA_INT; return true;
    case STEP_REAL: p->kinds |= SCHEMA_REAL; return true;
    case STEP_STRING: p->kinds |= SCHEMA_STRING; return true;
    case STEP_BINARY: p->kinds |= SCHEMA_BINARY; return true;
    case STEP_ENUM:
        p->kinds |= SCHEMA_ENUM;
        add_name(&p->enums, &p->n_enums, &p->enum_cap, t.s + 1, t.n - 2);
        if (t.n == 3 && (t.s[1] == 'T' || t.s[1] == 'F')) {
            add_name(&p->enums, &p->n_enums, &p->enum_cap, "F", 1);
            add_name(&p->enums, &p->n_enums, &p->enum_cap, "T", 1);
        }
        return true;
    case STEP_REF:
        p->kinds |= SCHEMA_REF;
        if ((*ref)->target != STEP_NONE) {
            const char *type = step_type(f, f->v[(*ref)->target].type);
            add_name(&p->types, &p->n_types, &p->type_cap, type, strlen(type));
        }
        ++*ref;
        return true;
    case STEP_KEYWORD: {
        p->kinds |= SCHEMA_TYPED;
        struct schema_pattern *v = add_typed(p, t.s, t.n);
        if (step_lex(at, end, &t) != STEP_OPEN)
            return false;
        kind = step_lex(at, end, &t);
        return learn_value(v, f, at, end, kind, t, ref, depth + 1) && step_lex(at, end, &t) == STEP_CLOSE;
    }
    case STEP_OPEN: {
        bool first = !(p->kinds & SCHEMA_LIST);
        uint32_t n = 0;
        p->kinds |= SCHEMA_LIST;
        if (!p->elem)
            p->elem = xcalloc(1, sizeof *p->elem);
        kind = step_lex(at, end, &t);
        for (; kind != STEP_CLOSE; n++) {
            if (!learn_value(p->elem, f, at, end, kind, t, ref, depth + 1))
                return false;
            kind = step_lex(at, end, &t);
            if (kind == STEP_COMMA)
                kind = step_lex(at, end, &t);
            else if (kind != STEP_CLOSE)
                return false;
        }
        p->min = first || n < p->min ? n : p->min;
        p->max = n > p->max ? n : p->max;
        return true;
    }
    default: return false;
    }
}

static bool learn_params(struct schema_entity *e, const struct step_file *f, const char *s, size_t n,
                         const struct step_ref **ref)
{
    const char *end = s + n;
    struct step_token t;
    size_t k = 0;
    enum step_kind kind;
    while ((kind = step_lex(&s, end, &t)) > STEP_BAD) {
        if (k == SCHEMA_MAX_PARAMS - 1)
            return false;
        grow_params(e, ++k);
        if (!learn_value(&e->param[k - 1], f, &s, end, kind, t, ref, 0))
            return false;
        step_lex(&s, end, &t); /* comma, or the end */
    }
    e->counts |= count_bit(k);
    return true;
}

size_t schema_learn(struct schema *s, const struct step_file *f)
{
    size_t left_out = 0;
    for (size_t i = 0; i < f->n; i++) {
        const struct step_entity *e = &f->v[i];
        const struct step_ref *ref = f->refs + e->ref;
        const char *type = step_type(f, e->type), *p = NULL;
        struct step_token keyword, params;
        if (!e->complex) {
            left_out += !learn_params(entity(s, 's', type, strlen(type)), f, f->text + e->par, e->par_len, &ref);
            continue;
        }
        bool good = true;
        while (good && step_part(f, e, &p, &keyword, &params))
            good = learn_params(entity(s, 'p', keyword.s, keyword.n), f, params.s, params.n, &ref);
        if (good)
            entity(s, 'c', type, strlen(type));
        left_out += !good;
    }
    return left_out;
}

/* ---- the table ---- */

static void put_pattern(const struct schema_pattern *p, struct buf *out)
{
    static const struct {
        unsigned kind;
        const char *word;
    } plain[] = {{SCHEMA_OMITTED, "$"}, {SCHEMA_DERIVED, "*"}, {SCHEMA_INT, "int"},
                 {SCHEMA_REAL, "real"}, {SCHEMA_STRING, "str"}, {SCHEMA_BINARY, "bin"}};
    size_t from = out->n;
#define BAR() (out->n > from ? buf_putc(out, '|') : (void)0)
    for (size_t i = 0; i < ARRAY_LEN(plain); i++)
        if (p->kinds & plain[i].kind) {
            BAR();
            buf_puts(out, plain[i].word);
        }
    for (size_t i = 0; i < p->n_enums; i++) {
        BAR();
        buf_printf(out, ".%s.", p->enums[i]);
    }
    for (size_t i = 0; i < p->n_types; i++) {
        BAR();
        buf_printf(out, "#%s", p->types[i]);
    }
    if (p->kinds & SCHEMA_REF && !p->n_types) {
        BAR();
        buf_putc(out, '#');
    }
    for (size_t i = 0; i < p->n_typed; i++) {
        BAR();
        buf_printf(out, "%s(", p->typed[i].name);
        put_pattern(p->typed[i].value, out);
        buf_putc(out, ')');
    }
    if (p->kinds & SCHEMA_LIST) {
        bool numbers = p->elem->kinds && !(p->elem->kinds & ~(unsigned)(SCHEMA_INT | SCHEMA_REAL)) && p->max <= 3;
        BAR();
        buf_printf(out, "[%u,%u:", numbers ? p->min : p->min > 1 ? 1 : p->min, numbers ? p->max : 0);
        put_pattern(p->elem, out);
        buf_putc(out, ']');
    }
#undef BAR
}

void schema_write(const struct schema *s, struct buf *out)
{
    for (size_t i = 0; i < s->n; i++) {
        const struct schema_entity *e = &s->v[i];
        if (e->kind != 'c' && !e->counts)
            continue; /* nothing of it could be read */
        buf_printf(out, "%c\t%s", e->kind, e->name);
        if (e->kind != 'c') {
            const char *sep = "\t";
            for (size_t n = 0; n < 64; n++)
                if (e->counts & count_bit(n)) {
                    buf_printf(out, "%s%zu", sep, n);
                    sep = ",";
                }
        }
        for (size_t k = 0; k < e->n_params; k++) {
            buf_putc(out, '\t');
            put_pattern(&e->param[k], out);
        }
        buf_putc(out, '\n');
    }
}

static size_t word_length(const char *p, const char *end)
{
    const char *s = p;
    while (p < end && ((*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '_' || *p == '!'))
        p++;
    return (size_t)(p - s);
}

static bool take_number(const char **p, const char *end, uint32_t *out)
{
    const char *s = *p;
    for (*out = 0; *p < end && **p >= '0' && **p <= '9' && *p - s < 9; ++*p)
        *out = *out * 10 + (uint32_t)(**p - '0');
    return *p > s;
}

/* One pattern from *p on; false: malformed. */
static bool read_pattern(struct schema_pattern *p, const char **at, const char *end, int depth)
{
    static const struct {
        const char *word;
        unsigned kind;
    } plain[] = {{"$", SCHEMA_OMITTED}, {"*", SCHEMA_DERIVED}, {"int", SCHEMA_INT}, {"real", SCHEMA_REAL},
                 {"str", SCHEMA_STRING}, {"bin", SCHEMA_BINARY}};
    if (depth > SCHEMA_MAX_DEPTH)
        return false;
    for (;;) {
        const char *s = *at;
        size_t n;
        if (s >= end)
            return false;
        if (*s == '.') {
            n = word_length(s + 1, end);
            if (!n || s + n + 1 >= end || s[n + 1] != '.')
                return false;
            p->kinds |= SCHEMA_ENUM;
            add_name(&p->enums, &p->n_enums, &p->enum_cap, s + 1, n);
            *at = s + n + 2;
        } else if (*s == '#') {
            const char *q = s + 1;
            for (n = 1; n && (n = word_length(q, end));) {
                q += n;
                if (q < end && *q == '+')
                    q++;
                else
                    n = 0;
            }
            p->kinds |= SCHEMA_REF;
            if (q > s + 1)
                add_name(&p->types, &p->n_types, &p->type_cap, s + 1, (size_t)(q - s - 1));
            *at = q;
        } else if (*s == '[') {
            uint32_t min, max;
            ++*at;
            if (!take_number(at, end, &min) || *at >= end || *(*at)++ != ',' || !take_number(at, end, &max) ||
                *at >= end || *(*at)++ != ':' || (max && max < min))
                return false;
            bool first = !(p->kinds & SCHEMA_LIST);
            p->kinds |= SCHEMA_LIST;
            p->min = first || min < p->min ? min : p->min;
            p->max = !max || (!first && !p->max) ? 0 : max > p->max ? max : p->max;
            if (!p->elem)
                p->elem = xcalloc(1, sizeof *p->elem);
            /* A list that was always empty has elements of no kind. */
            if (*at < end && **at != ']' && !read_pattern(p->elem, at, end, depth + 1))
                return false;
            if (*at >= end || *(*at)++ != ']')
                return false;
        } else if ((n = word_length(s, end))) {
            *at = s + n;
            if (*at >= end || *(*at)++ != '(')
                return false;
            p->kinds |= SCHEMA_TYPED;
            if (!read_pattern(add_typed(p, s, n), at, end, depth + 1) || *at >= end || *(*at)++ != ')')
                return false;
        } else {
            size_t i = 0;
            for (; i < ARRAY_LEN(plain); i++) {
                n = strlen(plain[i].word);
                if ((size_t)(end - s) >= n && !memcmp(s, plain[i].word, n))
                    break;
            }
            if (i == ARRAY_LEN(plain))
                return false;
            p->kinds |= plain[i].kind;
            *at = s + n;
        }
        if (*at >= end || **at != '|')
            return true;
        ++*at;
    }
}

static bool read_line(struct schema *s, const char *p, const char *end)
{
    char kind = p < end ? *p++ : 0;
    if ((kind != 's' && kind != 'p' && kind != 'c') || p >= end || *p++ != '\t')
        return false;
    const char *name = p;
    while (p < end && *p != '\t')
        p++;
    size_t n = (size_t)(p - name);
    for (const char *q = name; q < p; q++)
        if (!word_length(q, q + 1) && (kind != 'c' || *q != '+' || q == name || q + 1 == p))
            return false;
    if (!n)
        return false;
    if (kind == 'c') {
        entity(s, 'c', name, n);
        return p == end;
    }
    struct schema_entity *e = entity(s, kind, name, n);
    do {
        uint32_t count;
        p++;
        if (!take_number(&p, end, &count) || count >= SCHEMA_MAX_PARAMS)
            return false;
        e->counts |= count_bit(count);
        grow_params(e, count);
    } while (p < end && *p == ',');
    for (size_t k = 0; k < e->n_params || p < end; k++) {
        if (p == end)
            break; /* fewer patterns than an earlier line has */
        if (*p++ != '\t' || k >= SCHEMA_MAX_PARAMS - 1)
            return false;
        grow_params(e, k + 1);
        if (!read_pattern(&e->param[k], &p, end, 0))
            return false;
    }
    return true;
}

/* Every count has its patterns, every complex instance its parts. */
static int check(const struct schema *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++) {
        const struct schema_entity *e = &s->v[i];
        for (size_t k = 0; k < e->n_params; k++)
            if (!e->param[k].kinds)
                return err_set(ERR_FORMAT, "%s: %s: no pattern for parameter %zu", name, e->name, k + 1);
        for (const char *p = e->name; e->kind == 'c' && p;) {
            const char *plus = strchr(p, '+');
            size_t n = plus ? (size_t)(plus - p) : strlen(p);
            if (!schema_find(s, 'p', p, n))
                return err_set(ERR_FORMAT, "%s: %s: its part %.*s is not in the table", name, e->name, (int)n, p);
            p = plus ? plus + 1 : NULL;
        }
    }
    return ERR_OK;
}

int schema_read(struct schema *s, const char *name, const char *text, size_t n)
{
    const char *end = text + n;
    size_t line = 1;
    for (const char *p = text; p < end; line++) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        stop = stop ? stop : end;
        if (stop > p && *p != '#' && !read_line(s, p, stop))
            return err_set(ERR_FORMAT, "%s:%zu: no line of an entity table (see lib/schema.h)", name, line);
        p = stop + 1;
    }
    return check(s, name);
}

static struct schema *known;

static void read_known(void)
{
    known = schema_new();
    if (schema_read(known, "lib/schema.tsv", schema_table, strlen(schema_table)) < 0) {
        fprintf(stderr, "%s\n", err_text()); /* a test keeps this from ever being built */
        abort();
    }
}

const struct schema *schema_known(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_known);
    return known;
}
