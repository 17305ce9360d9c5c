#include "model/draft.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

enum { TABLE_BITS = 16, CHAIN = 96, LONGEST = 48 };

struct draft {
    int32_t *text, *before;  /* before: the last earlier place whose two tokens hash alike, + 1 */
    size_t n, cap;
    int32_t last[1 << TABLE_BITS];
};

static uint32_t pair_hash(int32_t a, int32_t b)
{
    return ((uint32_t)a * 0x9e3779b1u ^ (uint32_t)b * 0x85ebca77u) >> (32 - TABLE_BITS);
}

struct draft *draft_new(void)
{
    return xcalloc(1, sizeof(struct draft));
}

void draft_free(struct draft *d)
{
    if (!d)
        return;
    free(d->text);
    free(d->before);
    free(d);
}

void draft_add(struct draft *d, int32_t id)
{
    size_t cap = d->cap;
    ARRAY_GROW(d->text, cap, d->n + 1);
    ARRAY_GROW(d->before, d->cap, d->n + 1);
    d->text[d->n] = id;
    d->before[d->n] = 0;
    if (d->n > 0) {
        int32_t *slot = &d->last[pair_hash(d->text[d->n - 1], id)];
        d->before[d->n] = *slot;
        *slot = (int32_t)d->n + 1;
    }
    d->n++;
}

/* How many tokens before and at a equal those before and at b. */
static size_t common(const int32_t *text, size_t a, size_t b)
{
    size_t n = 0;
    while (n <= b && n < LONGEST && text[a - n] == text[b - n])
        n++;
    return n;
}

size_t draft_guess(const struct draft *d, int32_t *out, size_t n)
{
    if (d->n < 2)
        return 0;
    size_t end = d->n - 1, best = 0, at = 0;
    int tries = 0;
    for (int32_t p = d->before[end]; p > 0 && tries < CHAIN; p = d->before[p - 1], tries++) {
        size_t k = common(d->text, end, (size_t)p - 1);
        if (k > best) { /* of equals the latest */
            best = k;
            at = (size_t)p;
        }
    }
    if (best < 2)
        return 0;
    if (n > d->n - at)
        n = d->n - at;
    memcpy(out, d->text + at, n * sizeof *out);
    return n;
}
