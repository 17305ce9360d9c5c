#include "model/draft.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

enum { TABLE_BITS = 16, CHAIN = 128, LONGEST = 64, DIGITS = 12 };

/* Symbols: tokens are themselves, numbers of entities are distances. */
enum { FAR = 900000, DEFINED = -10000000, REFERRED = -2000000 };

struct draft {
    const struct tok *t;
    int32_t *text, *before;  /* symbols; before: the last earlier place whose two symbols hash alike, + 1 */
    size_t n, cap;
    bool number;             /* behind a '#': what comes are digits, these so far: */
    char digits[DIGITS + 1];
    size_t n_digits;
    int64_t line;            /* the entity defined last */
    int32_t last[1 << TABLE_BITS];
};

static uint32_t pair_hash(int32_t a, int32_t b)
{
    return ((uint32_t)a * 0x9e3779b1u ^ (uint32_t)b * 0x85ebca77u) >> (32 - TABLE_BITS);
}

struct draft *draft_new(const struct tok *t)
{
    struct draft *d = xcalloc(1, sizeof *d);
    d->t = t;
    return d;
}

void draft_free(struct draft *d)
{
    if (!d)
        return;
    free(d->text);
    free(d->before);
    free(d);
}

static void push(struct draft *d, int32_t symbol)
{
    size_t cap = d->cap;
    ARRAY_GROW(d->text, cap, d->n + 1);
    ARRAY_GROW(d->before, d->cap, d->n + 1);
    d->text[d->n] = symbol;
    d->before[d->n] = 0;
    if (d->n > 0) {
        int32_t *slot = &d->last[pair_hash(d->text[d->n - 1], symbol)];
        d->before[d->n] = *slot;
        *slot = (int32_t)d->n + 1;
    }
    d->n++;
}

static int32_t symbol_of(int32_t base, int64_t distance)
{
    distance = distance > FAR ? FAR : distance < -FAR ? -FAR : distance;
    return base - (int32_t)distance;
}

void draft_add(struct draft *d, int32_t id)
{
    size_t n = 0;
    const char *s = d->t ? tok_bytes(d->t, id, &n) : NULL;
    if (d->number) {
        size_t k = 0;
        while (k < n && s[k] >= '0' && s[k] <= '9')
            k++;
        if (n > 0 && k == n && d->n_digits + n <= DIGITS) {
            memcpy(d->digits + d->n_digits, s, n);
            d->n_digits += n;
            d->digits[d->n_digits] = 0;
            return;
        }
        if (d->n_digits > 0) {
            int64_t v = atoll(d->digits);
            bool definition = n > 0 && *s == '=';
            push(d, definition ? symbol_of(DEFINED, v - d->line) : symbol_of(REFERRED, d->line - v));
            d->line = definition ? v : d->line;
        }
        d->number = false;
        d->n_digits = 0;
    }
    push(d, id);
    d->number = n > 0 && s[n - 1] == '#';
}

/* How many symbols before and at a equal those before and at b. */
static size_t common(const int32_t *text, size_t a, size_t b)
{
    size_t n = 0;
    while (n <= b && n < LONGEST && text[a - n] == text[b - n])
        n++;
    return n;
}

/* The number that a symbol stands for in the line of `line`; negative when it is none. */
static int64_t number_of(int32_t symbol, int64_t line)
{
    if (symbol <= DEFINED + FAR)
        return line + (DEFINED - symbol);
    return symbol <= REFERRED + FAR ? line - (REFERRED - symbol) : -1;
}

/* What followed place `at` there, in terms of here. */
static size_t follow(const struct draft *d, size_t at, int32_t *out, size_t n)
{
    size_t k = 0, have = d->n_digits;
    int64_t line = d->line;
    for (; at < d->n && k < n; at++) {
        int32_t s = d->text[at];
        if (s >= 0) {
            if (have)
                return k; /* digits here, none there */
            out[k++] = s;
            continue;
        }
        int64_t v = number_of(s, line);
        char digits[24];
        struct tok_ids ids = {0};
        if (v <= 0)
            return k;
        snprintf(digits, sizeof digits, "%lld", (long long)v);
        if (have && strncmp(digits, d->digits, have))
            return k;
        if (tok_encode(d->t, digits + have, strlen(digits + have), false, &ids) == 0)
            for (size_t i = 0; i < ids.n && k < n; i++)
                out[k++] = ids.v[i];
        tok_ids_release(&ids);
        have = 0;
        line = s <= DEFINED + FAR ? v : line;
    }
    return k;
}

size_t draft_guess(const struct draft *d, int32_t *out, size_t n)
{
    if (d->n < 2 || !n)
        return 0;
    size_t end = d->n - 1, best = 0, got = 0;
    int32_t other[64];
    int tries = 0;
    n = n < 64 ? n : 64;
    for (int32_t p = d->before[end]; p > 0 && tries < CHAIN; p = d->before[p - 1], tries++) {
        size_t k = common(d->text, end, (size_t)p - 1), m;
        if (k > best && k >= 2 && (m = follow(d, (size_t)p, other, n)) > 0) { /* of equals the latest */
            best = k;
            got = m;
            memcpy(out, other, m * sizeof *out);
        }
    }
    return got;
}
