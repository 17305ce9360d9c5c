#include "lib/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

char buf_slop[1];

static void *check(void *p, size_t n)
{
    if (!p) {
        fprintf(stderr, "out of memory (asked for %zu bytes)\n", n);
        exit(3);
    }
    return p;
}

void *xmalloc(size_t n)
{
    return check(malloc(n ? n : 1), n);
}

void *xcalloc(size_t n, size_t size)
{
    return check(calloc(n ? n : 1, size ? size : 1), n * size);
}

void *xrealloc(void *p, size_t n)
{
    return check(realloc(p, n ? n : 1), n);
}

char *xstrdup(const char *s)
{
    return xstrndup(s, strlen(s));
}

char *xstrndup(const char *s, size_t n)
{
    char *p = xmalloc(n + 1);
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

char *xasprintf(const char *fmt, ...)
{
    char *s;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return check(n < 0 ? NULL : s, 0);
}

void buf_init(struct buf *b)
{
    *b = BUF_INIT;
}

void buf_release(struct buf *b)
{
    if (b->cap)
        free(b->s);
    buf_init(b);
}

void buf_grow(struct buf *b, size_t extra)
{
    size_t need = b->n + extra + 1;
    if (need <= b->cap)
        return;
    size_t cap = b->cap ? b->cap + b->cap / 2 : 64;
    if (cap < need)
        cap = need;
    if (b->cap) {
        b->s = xrealloc(b->s, cap);
    } else {
        b->s = xmalloc(cap);
        b->s[0] = 0;
    }
    b->cap = cap;
}

void buf_add(struct buf *b, const void *p, size_t n)
{
    buf_grow(b, n);
    if (n)
        memcpy(b->s + b->n, p, n);
    b->n += n;
    b->s[b->n] = 0;
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    buf_grow(b, 64);
    va_start(ap, fmt);
    int n = vsnprintf(b->s + b->n, b->cap - b->n, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    if ((size_t)n >= b->cap - b->n) {
        buf_grow(b, (size_t)n);
        va_start(ap, fmt);
        vsnprintf(b->s + b->n, b->cap - b->n, fmt, ap);
        va_end(ap);
    }
    b->n += (size_t)n;
}

char *buf_detach(struct buf *b)
{
    buf_grow(b, 0);
    char *s = b->s;
    buf_init(b);
    return s;
}

void buf_put_u64(struct buf *b, uint64_t v)
{
    char tmp[20];
    int i = sizeof tmp;
    do
        tmp[--i] = (char)('0' + v % 10);
    while (v /= 10);
    buf_add(b, tmp + i, sizeof tmp - (size_t)i);
}

struct arena_block {
    struct arena_block *next;
    size_t size;
    _Alignas(16) char data[];
};

void *arena_alloc(struct arena *a, size_t n)
{
    n = (n + 15) & ~(size_t)15;
    if ((size_t)(a->end - a->p) < n || !a->p) {
        size_t size = a->block_size ? a->block_size : 64 * 1024;
        if (size < n)
            size = n;
        struct arena_block *blk = xmalloc(sizeof *blk + size);
        blk->size = size;
        blk->next = a->head;
        a->head = blk;
        a->p = blk->data;
        a->end = blk->data + size;
        a->total += size;
        if (a->block_size < 8 * 1024 * 1024) /* few blocks for big records */
            a->block_size = 2 * size;
    }
    void *p = a->p;
    a->p += n;
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    char *p = arena_alloc(a, n + 1);
    if (n)
        memcpy(p, s, n);
    p[n] = 0;
    return p;
}

void arena_reset(struct arena *a)
{
    struct arena_block *keep = NULL, *next;
    for (struct arena_block *blk = a->head; blk; blk = next) {
        next = blk->next;
        if (!keep || blk->size > keep->size) {
            free(keep);
            keep = blk;
        } else {
            free(blk);
        }
    }
    a->head = keep;
    a->total = 0;
    a->p = a->end = NULL;
    if (keep) {
        keep->next = NULL;
        a->p = keep->data;
        a->end = keep->data + keep->size;
        a->total = keep->size;
    }
}

void arena_release(struct arena *a)
{
    struct arena_block *next;
    for (struct arena_block *blk = a->head; blk; blk = next) {
        next = blk->next;
        free(blk);
    }
    *a = ARENA_INIT;
}

/* ---- UTF-8 ---- */

int utf8_at(const unsigned char *s, size_t n, uint32_t *cp)
{
    if (s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    int len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || (size_t)len > n)
        return 0;
    uint32_t c = s[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    if ((len == 3 && c < 0x800) || (len == 4 && (c < 0x10000 || c > 0x10ffff)) || (c >= 0xd800 && c < 0xe000))
        return 0;
    *cp = c;
    return len;
}

bool utf8_valid(const char *s, size_t n)
{
    uint32_t cp;
    for (size_t i = 0; i < n;) {
        int len = utf8_at((const unsigned char *)s + i, n - i, &cp);
        if (!len)
            return false;
        i += (size_t)len;
    }
    return true;
}
