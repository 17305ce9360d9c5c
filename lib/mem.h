/* mem.h: growing byte buffers, arenas and checked allocation.
 *
 * Small control structures use xmalloc() and friends, which end the program
 * with a message when memory is out: there is nothing better to do with a
 * failed 40-byte allocation.  Whatever is sized by an input (a file, a tensor)
 * is limited or allocated with a function that reports ERR_NOMEM.
 *
 *     struct buf b = BUF_INIT;
 *     buf_printf(&b, "#%d=", id);
 *     buf_puts(&b, "CARTESIAN_POINT");
 *     fwrite(b.s, 1, b.n, stdout);
 *     buf_release(&b);
 */
#ifndef LIB_MEM_H
#define LIB_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void *xmalloc(size_t n);
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t n);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
/* printf into fresh memory; the caller frees. */
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- growing buffer: s is always NUL-terminated, n excludes the NUL ---- */
struct buf {
    char *s;
    size_t n, cap;
};
extern char buf_slop[1];
#define BUF_INIT ((struct buf){.s = buf_slop})

void buf_init(struct buf *b);
void buf_release(struct buf *b);             /* frees; b is empty and usable */
void buf_grow(struct buf *b, size_t extra);  /* room for extra bytes and the NUL */
void buf_add(struct buf *b, const void *p, size_t n);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
char *buf_detach(struct buf *b);             /* the caller frees; b is empty */

static inline void buf_clear(struct buf *b)
{
    b->n = 0;
    if (b->cap)
        b->s[0] = 0;
}

static inline void buf_puts(struct buf *b, const char *s)
{
    buf_add(b, s, strlen(s));
}

static inline void buf_putc(struct buf *b, char c)
{
    if (b->n + 1 >= b->cap)
        buf_grow(b, 1);
    b->s[b->n++] = c;
    b->s[b->n] = 0;
}

/* Decimal digits of v, faster than printf. */
void buf_put_u64(struct buf *b, uint64_t v);

/* ---- arena: many small allocations, freed together ----
 * One arena a record; reset, not freed, between records. */
struct arena_block;
struct arena {
    struct arena_block *head;
    char *p, *end;
    size_t block_size; /* of the next ordinary block; 0 = 64 KiB */
    size_t total;      /* bytes held */
};
#define ARENA_INIT ((struct arena){0})

/* n bytes aligned to 16, uninitialised. */
void *arena_alloc(struct arena *a, size_t n);
char *arena_strndup(struct arena *a, const char *s, size_t n);
void arena_reset(struct arena *a);   /* keeps the largest block for reuse */
void arena_release(struct arena *a);

/* Grows a plain array to hold at least need elements: ARRAY_GROW(v, cap, n + 1). */
#define ARRAY_GROW(v, cap, need)                                                 \
    do {                                                                         \
        if ((size_t)(need) > (size_t)(cap)) {                                    \
            size_t new_cap_ = (size_t)(cap) < 8 ? 16 : (size_t)(cap) * 2;        \
            if (new_cap_ < (size_t)(need))                                       \
                new_cap_ = (size_t)(need);                                       \
            (v) = xrealloc((v), new_cap_ * sizeof *(v));                         \
            (cap) = new_cap_;                                                    \
        }                                                                        \
    } while (0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof *(a))

/* ---- UTF-8 ---- */
/* Length of the valid UTF-8 sequence at s (1..4) and its code point; 0 if none.  n > 0 bytes are there. */
int utf8_at(const unsigned char *s, size_t n, uint32_t *cp);
/* Whether s is well-formed UTF-8 (no surrogates, no overlong forms). */
bool utf8_valid(const char *s, size_t n);

#endif
