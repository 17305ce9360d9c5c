#include "lib/tfevents.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"

struct tfevents {
    FILE *f;
    char *path;
};

uint32_t crc32c(const void *p, size_t n)
{
    static uint32_t table[256];
    const uint8_t *s = p;
    uint32_t c = 0xffffffffu;
    if (!table[1])
        for (uint32_t i = 256; i-- > 0;) { /* table[1] last: it tells that all are there */
            uint32_t x = i;
            for (int k = 0; k < 8; k++)
                x = x & 1 ? x >> 1 ^ 0x82f63b78u : x >> 1; /* Castagnoli's polynomial, reflected */
            table[i] = x;
        }
    for (size_t i = 0; i < n; i++)
        c = table[(c ^ s[i]) & 255] ^ c >> 8;
    return ~c;
}

static void put_le(struct buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        buf_putc(b, (char)(v >> 8 * i & 255));
}

static void put_varint(struct buf *b, uint64_t v)
{
    for (; v >= 128; v >>= 7)
        buf_putc(b, (char)((v & 127) | 128));
    buf_putc(b, (char)v);
}

static void put_bytes(struct buf *b, int field, const void *p, size_t n)
{
    put_varint(b, (uint64_t)field << 3 | 2);
    put_varint(b, n);
    buf_add(b, p, n);
}

static void put_double(struct buf *b, int field, double v)
{
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    put_varint(b, (uint64_t)field << 3 | 1);
    put_le(b, u, 8);
}

static uint32_t masked(const void *p, size_t n)
{
    uint32_t c = crc32c(p, n);
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

static int write_event(struct tfevents *t, const struct buf *event)
{
    struct buf r = BUF_INIT;
    put_le(&r, event->n, 8);
    put_le(&r, masked(r.s, 8), 4);
    buf_add(&r, event->s, event->n);
    put_le(&r, masked(event->s, event->n), 4);
    size_t done = fwrite(r.s, 1, r.n, t->f);
    int rc = done == r.n ? ERR_OK : err_set(ERR_IO, "%s: %s", t->path, strerror(errno));
    buf_release(&r);
    return rc;
}

int tfevents_open(const char *dir, int64_t resumed, struct tfevents **out)
{
    char host[128] = "host";
    struct tfevents *t = xcalloc(1, sizeof *t);
    struct buf e = BUF_INIT;
    gethostname(host, sizeof host - 1);
    *out = NULL;
    t->path = xasprintf("%s/events.out.tfevents.%.0f.%s.%ld.0", dir, wall_clock_s(), host, (long)getpid());
    int rc = mkdir_p(dir);
    if (rc == ERR_OK && !(t->f = fopen(t->path, "wb")))
        rc = err_set(ERR_IO, "%s: %s", t->path, strerror(errno));
    put_double(&e, 1, wall_clock_s());
    put_bytes(&e, 3, "brain.Event:2", 13);
    if (rc == ERR_OK)
        rc = write_event(t, &e);
    if (rc == ERR_OK && resumed >= 0) {
        const char start[] = {1 << 3, 1}; /* SessionLog { status = 1: START } */
        buf_clear(&e);
        put_double(&e, 1, wall_clock_s());
        put_varint(&e, 2 << 3);
        put_varint(&e, (uint64_t)resumed + 1);
        put_bytes(&e, 7, start, sizeof start);
        rc = write_event(t, &e);
    }
    buf_release(&e);
    if (rc == ERR_OK)
        rc = tfevents_flush(t);
    if (rc == ERR_OK)
        *out = t;
    else
        tfevents_close(t);
    return rc;
}

int tfevents_scalar(struct tfevents *t, int64_t step, const char *tag, double value)
{
    struct buf v = BUF_INIT, s = BUF_INIT, e = BUF_INIT;
    float f = (float)value;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    put_bytes(&v, 1, tag, strlen(tag));
    put_varint(&v, 2 << 3 | 5);
    put_le(&v, u, 4);
    put_bytes(&s, 1, v.s, v.n);
    put_double(&e, 1, wall_clock_s());
    put_varint(&e, 2 << 3);
    put_varint(&e, (uint64_t)step);
    put_bytes(&e, 5, s.s, s.n);
    int rc = write_event(t, &e);
    buf_release(&v);
    buf_release(&s);
    buf_release(&e);
    return rc;
}

int tfevents_flush(struct tfevents *t)
{
    return fflush(t->f) == 0 ? ERR_OK : err_set(ERR_IO, "%s: %s", t->path, strerror(errno));
}

void tfevents_close(struct tfevents *t)
{
    if (!t)
        return;
    if (t->f)
        fclose(t->f);
    free(t->path);
    free(t);
}
