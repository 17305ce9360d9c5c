#include "lib/opt.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"

static bool same_name(const char *a, const char *b)
{
    for (; *a && *b; a++, b++)
        if ((*a == '_' ? '-' : *a) != (*b == '_' ? '-' : *b))
            return false;
    return *a == *b;
}

static struct opt *find(struct opt *const tables[], int n, const char *name)
{
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++)
            if (same_name(o->name, name))
                return o;
    return NULL;
}

static struct opt *find_letter(struct opt *const tables[], int n, char c)
{
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++)
            if (o->letter == c)
                return o;
    return NULL;
}

/* Levenshtein distance, for "did you mean". */
static int distance(const char *a, const char *b)
{
    int row[64], n = (int)strlen(b);
    if (n > 62)
        return 99;
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diag = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int up = row[j], best = diag + (a[i - 1] != b[j - 1]);
            if (up + 1 < best)
                best = up + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diag = up;
            row[j] = best;
        }
    }
    return row[n];
}

static size_t common_prefix(const char *a, const char *b)
{
    size_t n = 0;
    while (a[n] && a[n] == b[n])
        n++;
    return n;
}

static int unknown(struct opt *const tables[], int n, const char *where, const char *prefix, const char *name)
{
    const char *best = NULL;
    int least = 99;
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++) {
            int d = distance(name, o->name);
            bool nearer = d < least || (d == least && best && common_prefix(name, o->name) > common_prefix(name, best));
            if (nearer && !(o->flags & OPT_HIDDEN)) {
                least = d;
                best = o->name;
            }
        }
    if (best && least <= 2 + (int)strlen(name) / 3)
        return err_set(ERR_USAGE, "%sunknown option '%s%s' (nearest: '%s%s')", where, prefix, name, prefix, best);
    return err_set(ERR_USAGE, "%sunknown option '%s%s' (see --help)", where, prefix, name);
}

static int bad_value(const struct opt *o, const char *where, const char *value, const char *want)
{
    return err_set(ERR_USAGE, "%s'%s' is no value for %s: %s", where, value, o->name, want);
}

static int in_range(const struct opt *o, const char *where, const char *value, double v)
{
    if ((o->min != 0 || o->max != 0) && !(v >= o->min && v <= o->max)) {
        char want[96];
        snprintf(want, sizeof want, isinf(o->max) ? "at least %g" : "must lie in %g to %g", o->min, o->max);
        return bad_value(o, where, value, want);
    }
    return ERR_OK;
}

static int is_choice(const struct opt *o, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = o->choices; p; p = strchr(p, '|')) {
        if (*p == '|')
            p++;
        if (!strncmp(p, value, n) && (p[n] == '|' || !p[n]))
            return 1;
    }
    return 0;
}

static int set_value(struct opt *o, const char *where, const char *value)
{
    char *end;
    int rc = ERR_OK;
    errno = 0;
    switch (o->type) {
    case OPT_FLAG:
        if (!strcasecmp(value, "true") || !strcmp(value, "1") || !strcasecmp(value, "yes") || !strcasecmp(value, "on"))
            *(bool *)o->value = true;
        else if (!strcasecmp(value, "false") || !strcmp(value, "0") || !strcasecmp(value, "no") || !strcasecmp(value, "off"))
            *(bool *)o->value = false;
        else
            return bad_value(o, where, value, "true or false");
        break;
    case OPT_INT: {
        long long v = strtoll(value, &end, 10), scale = 1;
        if (end != value && *end && !end[1])
            scale = *end == 'k' ? 1000 : *end == 'M' ? 1000000 : *end == 'G' ? 1000000000 : 0;
        if (end == value || errno || (*end && (end[1] || !scale)))
            return bad_value(o, where, value, "a whole number");
        if (scale > 1 && (v > INT64_MAX / scale || v < INT64_MIN / scale))
            return bad_value(o, where, value, "too large");
        if ((rc = in_range(o, where, value, (double)v * (double)scale)) < 0)
            return rc;
        *(int64_t *)o->value = v * scale;
        break;
    }
    case OPT_REAL: {
        double v = strtod(value, &end);
        if (end == value || *end || !isfinite(v))
            return bad_value(o, where, value, "a number");
        if ((rc = in_range(o, where, value, v)) < 0)
            return rc;
        *(double *)o->value = v;
        break;
    }
    case OPT_STR:
        if (o->choices && !is_choice(o, value))
            return bad_value(o, where, value, o->choices);
        *(const char **)o->value = xstrdup(value); /* lives as long as the process */
        break;
    case OPT_LIST: {
        struct opt_list *l = o->value;
        ARRAY_GROW(l->v, l->cap, l->n + 1);
        l->v[l->n++] = xstrdup(value);
        break;
    }
    }
    o->set = true;
    return ERR_OK;
}

int opt_assign(struct opt *const tables[], int n, const char *where, const char *name, const char *value)
{
    struct opt *o = find(tables, n, name);
    return o ? set_value(o, where, value) : unknown(tables, n, where, "", name);
}

static int assign_pair(struct opt *const tables[], int n, const char *pair)
{
    const char *eq = strchr(pair, '=');
    if (!eq)
        return err_set(ERR_USAGE, "-o %s: key=value is due", pair);
    char *name = xstrndup(pair, (size_t)(eq - pair));
    int rc = opt_assign(tables, n, "-o: ", name, eq + 1);
    free(name);
    return rc;
}

static int long_option(struct opt *const tables[], int n, const char *word, int argc, char **argv, int *i)
{
    const char *eq = strchr(word, '=');
    char *name = eq ? xstrndup(word, (size_t)(eq - word)) : xstrdup(word);
    struct opt *o = find(tables, n, name);
    int rc;
    if (!o && !strncmp(name, "no-", 3) && !eq && (o = find(tables, n, name + 3)) && o->type == OPT_FLAG)
        rc = set_value(o, "", "false");
    else if (!o || (!strncmp(name, "no-", 3) && o->type != OPT_FLAG && !find(tables, n, name)))
        rc = unknown(tables, n, "", "--", name);
    else if (eq)
        rc = set_value(o, "", eq + 1);
    else if (o->type == OPT_FLAG)
        rc = set_value(o, "", "true");
    else if (*i + 1 >= argc)
        rc = err_set(ERR_USAGE, "--%s needs a value (%s)", o->name, o->arg);
    else
        rc = set_value(o, "", argv[++*i]);
    free(name);
    return rc;
}

static int short_options(struct opt *const tables[], int n, const char *word, int argc, char **argv, int *i)
{
    for (; *word; word++) {
        const char *value = word[1] ? word + 1 : NULL;
        if (*word == 'o') {
            if (!value && *i + 1 >= argc)
                return err_set(ERR_USAGE, "-o needs key=value");
            return assign_pair(tables, n, value ? value : argv[++*i]);
        }
        struct opt *o = find_letter(tables, n, *word);
        if (!o)
            return err_set(ERR_USAGE, "unknown option '-%c' (see --help)", *word);
        if (o->type != OPT_FLAG) {
            if (!value && *i + 1 >= argc)
                return err_set(ERR_USAGE, "-%c needs a value (%s)", *word, o->arg);
            return set_value(o, "", value ? value : argv[++*i]);
        }
        int rc = set_value(o, "", "true");
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

int opt_parse(struct opt *const tables[], int n, int argc, char **argv, struct opt_args *args)
{
    bool only_args = false;
    for (int i = 1; i < argc; i++) {
        const char *w = argv[i];
        int rc = ERR_OK;
        if (only_args || w[0] != '-' || !w[1]) {
            ARRAY_GROW(args->v, args->cap, args->n + 1);
            args->v[args->n++] = w;
        } else if (!strcmp(w, "--")) {
            only_args = true;
        } else if (w[1] == '-') {
            rc = long_option(tables, n, w + 2, argc, argv, &i);
        } else {
            rc = short_options(tables, n, w + 1, argc, argv, &i);
        }
        if (rc < 0)
            return rc;
    }
    return ERR_OK;
}

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    char *e = s + strlen(s);
    while (e > s && isspace((unsigned char)e[-1]))
        e--;
    *e = 0;
    return s;
}

/* Cuts a comment: '#' at the line's start or after white space, outside quotes. */
static void cut_comment(char *s)
{
    bool quoted = false;
    for (char *p = s; *p; p++) {
        if (*p == '"')
            quoted = !quoted;
        if (*p == '#' && !quoted && (p == s || isspace((unsigned char)p[-1]))) {
            *p = 0;
            return;
        }
    }
}

static int config_line(struct opt *const tables[], int n, const bool *was_set, const char *where, bool strict, char *line)
{
    char *eq = strchr(line, '=');
    if (!eq)
        return err_set(ERR_USAGE, "%s'%s': key = value or [tool] is due", where, line);
    *eq = 0;
    char *key = trim(line), *value = trim(eq + 1);
    size_t len = strlen(value);
    if (len >= 2 && value[0] == '"' && value[len - 1] == '"') {
        value[len - 1] = 0;
        value++;
    }
    size_t at = 0;
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++, at++)
            if (same_name(o->name, key))
                return was_set[at] ? ERR_OK : set_value(o, where, value);
    return strict ? unknown(tables, n, where, "", key) : ERR_OK;
}

int opt_config(struct opt *const tables[], int n, const char *path, const char *tool, const char *const *known_tools)
{
    struct file_map m;
    int rc = file_map(path, 1 << 20, &m);
    if (rc < 0)
        return rc;
    /* What the command line set stays; a list in a file must still be able to grow. */
    size_t total = 0;
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++)
            total++;
    bool *was_set = xcalloc(total, sizeof *was_set);
    size_t at = 0;
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++)
            was_set[at++] = o->set;
    for (size_t i = 0, line = 1; i < m.size && rc == ERR_OK; i++) {
        unsigned char c = (unsigned char)m.data[i];
        line += c == '\n';
        if ((c < 32 && c != '\n' && c != '\r' && c != '\t') || c == 127)
            rc = err_set(ERR_USAGE, "%s:%zu: is no text: a byte %d", path, line, c);
    }
    char *text = xstrndup(m.data, m.size), *save = text;
    file_unmap(&m);
    bool mine = true, in_section = false;
    for (int no = 1; rc == ERR_OK && save; no++) {
        char *raw = save, where[600];
        if ((save = strchr(save, '\n')))
            *save++ = 0;
        cut_comment(raw);
        char *line = trim(raw);
        size_t len = strlen(line);
        snprintf(where, sizeof where, "%s:%d: ", path, no);
        if (!len)
            continue;
        if (*line == '[' && line[len - 1] == ']') {
            line[len - 1] = 0;
            char *name = trim(line + 1);
            bool known = false;
            for (const char *const *k = known_tools; k && *k; k++)
                known |= !strcmp(*k, name);
            if (!known && known_tools)
                rc = err_set(ERR_USAGE, "%sthere is no tool '%s'", where, name);
            in_section = true;
            mine = !strcmp(name, tool);
        } else if (mine) {
            rc = config_line(tables, n, was_set, where, in_section, line);
        }
    }
    free(text);
    free(was_set);
    return rc;
}

int opt_check_required(struct opt *const tables[], int n)
{
    for (int t = 0; t < n; t++)
        for (struct opt *o = tables[t]; o && o->name; o++)
            if ((o->flags & OPT_REQUIRED) && (!o->set || (o->type == OPT_STR && !**(const char **)o->value)))
                return err_set(ERR_USAGE, "--%s %s is missing (see --help)", o->name, o->arg ? o->arg : "");
    return ERR_OK;
}

void opt_value(const struct opt *o, struct buf *out)
{
    char tmp[32];
    switch (o->type) {
    case OPT_FLAG: buf_puts(out, *(bool *)o->value ? "true" : "false"); break;
    case OPT_INT: buf_printf(out, "%lld", (long long)*(int64_t *)o->value); break;
    case OPT_REAL:
        snprintf(tmp, sizeof tmp, "%.15g", *(double *)o->value);
        buf_puts(out, tmp);
        break;
    case OPT_STR: buf_puts(out, *(const char **)o->value ? *(const char **)o->value : ""); break;
    case OPT_LIST: {
        const struct opt_list *l = o->value;
        for (size_t i = 0; i < l->n; i++)
            buf_printf(out, "%s%s", i ? " " : "", l->v[i]);
        break;
    }
    }
}

void opt_help(const struct opt *table, struct buf *out)
{
    for (const struct opt *o = table; o && o->name; o++) {
        if (o->flags & OPT_HIDDEN)
            continue;
        struct buf left = BUF_INIT, def = BUF_INIT;
        if (o->letter)
            buf_printf(&left, "  -%c, --%s", o->letter, o->name);
        else
            buf_printf(&left, "      --%s", o->name);
        if (o->type != OPT_FLAG)
            buf_printf(&left, " %s", o->arg ? o->arg : o->choices ? o->choices : "VALUE");
        buf_printf(out, "%-32s ", left.s);
        if (left.n > 32)
            buf_printf(out, "\n%33s", "");
        buf_puts(out, o->help);
        if (o->type != OPT_LIST)
            opt_value(o, &def);
        if (o->flags & OPT_REQUIRED)
            buf_puts(out, " (required)");
        else if (def.n && strcmp(def.s, "false") && o->letter != 'h') /* --help itself is on by now */
            buf_printf(out, " [%s]", def.s);
        buf_putc(out, '\n');
        buf_release(&left);
        buf_release(&def);
    }
}

void opt_dump(const struct opt *table, bool for_key, struct buf *out)
{
    for (const struct opt *o = table; o && o->name; o++) {
        if (for_key && (o->flags & OPT_NO_KEY))
            continue;
        if (o->type == OPT_LIST) {
            const struct opt_list *l = o->value;
            for (size_t i = 0; i < l->n; i++)
                buf_printf(out, "%s = \"%s\"\n", o->name, l->v[i]);
            continue;
        }
        buf_printf(out, "%s = ", o->name);
        if (o->type == OPT_STR)
            buf_putc(out, '"');
        opt_value(o, out);
        if (o->type == OPT_STR)
            buf_putc(out, '"');
        buf_putc(out, '\n');
    }
}
