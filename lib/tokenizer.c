#define PCRE2_CODE_UNIT_WIDTH 8
#include "lib/tokenizer.h"

#include <pcre2.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"

enum {
    FILE_MAX = 256 * 1024 * 1024, /* of a tokenizer.json: the largest known are 35 MB */
    ID_MAX = 1 << 24,
    STAGES_MAX = 16,
    SHORT_WORD = 48,              /* bytes up to which merging by scanning beats the heap */
    CACHED_WORD = 256,
    CACHE_SLOTS = 1 << 16,
    CACHE_BYTES = 8 << 20,
};

enum { T_PRESENT = 1, T_SPECIAL = 2, T_PLAIN = 4 /* spelt in the byte alphabet: BPE can make it */ };

struct entry {
    const char *spelt; /* as in the file */
    const char *bytes; /* what it stands for */
    uint32_t n;
    uint8_t flags;
};

struct added {
    const char *s; /* what to look for */
    uint32_t n;
    int32_t id;
    bool lstrip, rstrip, single_word;
};

/* Added tokens of one kind, by first byte, longest first. */
struct added_set {
    struct added *v;
    size_t n, cap;
    uint16_t from[257]; /* v[from[b]..from[b+1]) start with byte b */
    bool starts[256];
};

struct merge {
    uint64_t pair; /* left id << 32 | right id; NO_PAIR: free slot */
    uint32_t rank;
    int32_t id;
};
#define NO_PAIR UINT64_MAX

enum behaviour { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

/* One step of the pre-tokenizer.  The pattern for ASCII text works on bytes, with bit maps for
 * classes: four times as fast as the one for any text. */
enum { ANY_TEXT, ASCII_TEXT };
struct stage {
    pcre2_code *re[2]; /* NULL: only the prefix space; [ASCII_TEXT] NULL: as ANY_TEXT */
    bool jit[2];
    enum behaviour behaviour;
    bool invert, prefix_space;
};

/* What one encoding call works with; kept for the next one. */
struct cached {
    uint64_t hash; /* 0: free */
    uint32_t at;   /* in arena: the ids, then the word */
    uint16_t n_word, n_ids;
};
struct heap_item {
    uint32_t rank, at;
};
struct symbol {
    int32_t id;
    int32_t prev, next; /* -1 at the ends */
};
struct scratch {
    struct scratch *next;
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
    pcre2_match_data *match;
    struct buf clean, norm, prefixed[STAGES_MAX];
    int32_t *points;
    size_t cap_points;
    struct cached *cache;
    size_t n_cached;
    char *arena;
    size_t n_arena;
    struct symbol *symbols;
    size_t cap_symbols;
    struct heap_item *heap;
    size_t n_heap, cap_heap;
    struct tok_ids word;
};

struct tok {
    char *path;
    struct arena arena;
    struct entry *v;
    int32_t n;
    uint32_t *by_spelling, *by_bytes; /* open addressing; id + 1; by_bytes holds T_PLAIN ones */
    uint32_t name_mask;
    struct merge *merges;
    uint32_t merge_mask;
    int32_t byte_id[256];
    bool ignore_merges, nfc;
    struct added_set raw, normalized;
    struct stage stages[STAGES_MAX];
    int n_stages;
    struct tok_ids before, after; /* what the post-processor puts around a text */
    struct tok_ids stops;
    int32_t bos, eos, pad;
    pthread_mutex_t lock;
    struct scratch *idle;
};

void tok_ids_add(struct tok_ids *l, int32_t id)
{
    ARRAY_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n++] = id;
}

void tok_ids_release(struct tok_ids *l)
{
    free(l->v);
    *l = (struct tok_ids){0};
}

/* ---- UTF-8 ---- */

/* Length of the well-formed character at p (Unicode 15, table 3-7), or minus the length of the
 * maximal ill-formed piece; *cut when that is the start of a character which p[n] might finish. */
static int utf8_char(const unsigned char *p, size_t n, bool *cut)
{
    unsigned char c = p[0], lo = 0x80, hi = 0xbf;
    int due;
    *cut = false;
    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf)
        due = 2;
    else if (c >= 0xe0 && c <= 0xef)
        due = 3;
    else if (c >= 0xf0 && c <= 0xf4)
        due = 4;
    else
        return -1;
    if (c == 0xe0)
        lo = 0xa0;
    else if (c == 0xed)
        hi = 0x9f;
    else if (c == 0xf0)
        lo = 0x90;
    else if (c == 0xf4)
        hi = 0x8f;
    for (int i = 1; i < due; i++) {
        if ((size_t)i == n) {
            *cut = true;
            return -i;
        }
        if (p[i] < lo || p[i] > hi)
            return -i;
        lo = 0x80;
        hi = 0xbf;
    }
    return due;
}

static size_t ascii_run(const char *s, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t w;
        memcpy(&w, s + i, 8);
        if (w & 0x8080808080808080u)
            break;
    }
    while (i < n && !(s[i] & 0x80))
        i++;
    return i;
}

/* Bytes at the start of s that are well-formed. */
static size_t utf8_run(const char *s, size_t n)
{
    bool cut;
    for (size_t i = 0;;) {
        i += ascii_run(s + i, n - i);
        if (i == n)
            return n;
        int k = utf8_char((const unsigned char *)s + i, n - i, &cut);
        if (k < 0)
            return i;
        i += (size_t)k;
    }
}

/* Appends s with each ill-formed piece as U+FFFD. */
static void add_lossy(struct buf *out, const char *s, size_t n)
{
    bool cut;
    for (size_t i = 0; i < n;) {
        size_t k = utf8_run(s + i, n - i);
        buf_add(out, s + i, k);
        i += k;
        if (i < n) {
            buf_puts(out, "\xef\xbf\xbd");
            i += (size_t)-utf8_char((const unsigned char *)s + i, n - i, &cut);
        }
    }
}

/* ---- normal form C ---- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Canonical ordering of one run of marks: a stable sort by combining class.  Runs are short, but
 * a hostile text may be one run, hence no quadratic sort. */
static void sort_marks(int32_t *c, size_t n)
{
    if (n < 2)
        return;
    if (n <= 16) {
        for (size_t i = 1; i < n; i++) {
            int32_t x = c[i];
            int k = utf8proc_get_property(x)->combining_class;
            size_t j = i;
            for (; j > 0 && utf8proc_get_property(c[j - 1])->combining_class > k; j--)
                c[j] = c[j - 1];
            c[j] = x;
        }
        return;
    }
    uint64_t *key = xmalloc(n * sizeof *key);
    int32_t *copy = xmalloc(n * sizeof *copy);
    memcpy(copy, c, n * sizeof *copy);
    for (size_t i = 0; i < n; i++)
        key[i] = (uint64_t)utf8proc_get_property(c[i])->combining_class << 32 | i;
    qsort(key, n, sizeof *key, by_value);
    for (size_t i = 0; i < n; i++)
        c[i] = copy[(uint32_t)key[i]];
    free(copy);
    free(key);
}

/* Marks (and one composition) newer than Unicode 9.  Hugging Face's tables end there, so to them these
 * characters neither move nor combine; and models were trained on what they made. */
static const int32_t later_marks[][2] = {
    {0x7fd, 0x7fd}, {0x898, 0x89f}, {0x8ca, 0x8d3}, {0x9fe, 0x9fe}, {0xc3c, 0xc3c}, {0xd3b, 0xd3c},
    {0xeba, 0xeba}, {0x1715, 0x1715}, {0x1abf, 0x1ace}, {0x1df6, 0x1dfa}, {0xa82c, 0xa82c}, {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11930}, {0x11938, 0x11938},
    {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
    {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef},
};

static bool later_mark(int32_t c)
{
    size_t lo = 0, hi = ARRAY_LEN(later_marks);
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c > later_marks[mid][1])
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < ARRAY_LEN(later_marks) && c >= later_marks[lo][0];
}

/* Orders and composes the m decomposed characters in s->points. */
static void add_composed(struct scratch *s, size_t m, struct buf *out)
{
    for (size_t i = 0; i < m;) {
        size_t j = i;
        while (j < m && utf8proc_get_property(s->points[j])->combining_class)
            j++;
        sort_marks(s->points + i, j - i);
        i = j + 1;
    }
    utf8proc_ssize_t k = utf8proc_normalize_utf32(s->points, (utf8proc_ssize_t)m,
                                                  UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < k; i++) {
        utf8proc_uint8_t u[4];
        buf_add(out, u, (size_t)utf8proc_encode_char(s->points[i], u));
    }
}

/* Appends the normal form C of one run that starts and ends at a normalisation boundary. */
static void add_nfc_run(struct scratch *s, const char *p, size_t n, struct buf *out)
{
    size_t m = 0;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        size_t from = i;
        i += (size_t)utf8proc_iterate((const utf8proc_uint8_t *)p + i, (utf8proc_ssize_t)(n - i), &c);
        if (later_mark(c)) {
            add_composed(s, m, out);
            buf_add(out, p + from, i - from);
            m = 0;
            continue;
        }
        ARRAY_GROW(s->points, s->cap_points, m + 32);
        int last_class = 0;
        utf8proc_ssize_t k = utf8proc_decompose_char(c, s->points + m, 32, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE,
                                                     &last_class);
        if (k < 1 || k > 32) { /* not a character of its tables */
            s->points[m] = c;
            k = 1;
        }
        m += (size_t)k;
    }
    add_composed(s, m, out);
}

/* Appends the normal form C of s.  ASCII characters never combine with what stands before them,
 * so each run of others, with the one ASCII character ahead of it, is a text by itself. */
static void add_nfc(struct scratch *sc, const char *s, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n;) {
        size_t k = ascii_run(s + i, n - i);
        if (i + k == n) {
            buf_add(out, s + i, k);
            return;
        }
        if (k > 1)
            buf_add(out, s + i, k - 1);
        size_t from = i + (k ? k - 1 : 0), to = i + k;
        while (to < n && (s[to] & 0x80))
            to++;
        add_nfc_run(sc, s + from, to - from, out);
        i = to;
    }
}

/* ---- hashing ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    unsigned __int128 r = (unsigned __int128)a * b;
    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

static uint64_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = n * 0x9e3779b97f4a7c15u, w;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = mix(h ^ w, 0xe7037ed1a0b428dbu);
    }
    w = 0;
    memcpy(&w, s, n);
    return mix(h ^ w, 0xa0761d6478bd642fu);
}

static int32_t find_bytes(const struct tok *t, const char *s, size_t n)
{
    for (uint32_t i = (uint32_t)hash_bytes(s, n) & t->name_mask; t->by_bytes[i]; i = (i + 1) & t->name_mask) {
        int32_t id = (int32_t)t->by_bytes[i] - 1;
        if (t->v[id].n == n && !memcmp(t->v[id].bytes, s, n))
            return id;
    }
    return -1;
}

static int32_t find_spelling(const struct tok *t, const char *s, size_t n)
{
    for (uint32_t i = (uint32_t)hash_bytes(s, n) & t->name_mask; t->by_spelling[i]; i = (i + 1) & t->name_mask) {
        int32_t id = (int32_t)t->by_spelling[i] - 1;
        if (!strncmp(t->v[id].spelt, s, n) && !t->v[id].spelt[n])
            return id;
    }
    return -1;
}

static void table_put(uint32_t *table, uint32_t mask, const char *s, size_t n, int32_t id)
{
    uint32_t i = (uint32_t)hash_bytes(s, n) & mask;
    while (table[i])
        i = (i + 1) & mask;
    table[i] = (uint32_t)id + 1;
}

static inline const struct merge *find_merge(const struct tok *t, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint32_t i = (uint32_t)mix(pair, 0x9e3779b97f4a7c15u) & t->merge_mask;; i = (i + 1) & t->merge_mask) {
        if (t->merges[i].pair == pair)
            return &t->merges[i];
        if (t->merges[i].pair == NO_PAIR)
            return NULL;
    }
}

/* ---- merging ---- */

/* Few bytes: the lowest rank by looking at all of them each time. */
static size_t merge_short(const struct tok *t, int32_t *id, size_t n)
{
    uint32_t rank[SHORT_WORD];
    int32_t made[SHORT_WORD];
    const struct merge *m;
    for (size_t i = 0; i + 1 < n; i++) {
        m = find_merge(t, id[i], id[i + 1]);
        rank[i] = m ? m->rank : UINT32_MAX;
        made[i] = m ? m->id : 0;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == UINT32_MAX)
            break;
        id[best] = made[best];
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
        if (best + 1 < n) {
            memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof *rank);
            memmove(made + best + 1, made + best + 2, (n - best - 2) * sizeof *made);
            m = find_merge(t, id[best], id[best + 1]);
            rank[best] = m ? m->rank : UINT32_MAX;
            made[best] = m ? m->id : 0;
        }
        if (best > 0) {
            m = find_merge(t, id[best - 1], id[best]);
            rank[best - 1] = m ? m->rank : UINT32_MAX;
            made[best - 1] = m ? m->id : 0;
        }
    }
    return n;
}

static inline bool heap_less(struct heap_item a, struct heap_item b)
{
    return a.rank < b.rank || (a.rank == b.rank && a.at < b.at);
}

static void heap_push(struct scratch *s, struct heap_item x)
{
    ARRAY_GROW(s->heap, s->cap_heap, s->n_heap + 1);
    size_t i = s->n_heap++;
    for (; i > 0 && heap_less(x, s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = x;
}

static struct heap_item heap_pop(struct scratch *s)
{
    struct heap_item top = s->heap[0], x = s->heap[--s->n_heap];
    size_t n = s->n_heap, i = 0;
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && heap_less(s->heap[c + 1], s->heap[c]))
            c++;
        if (!heap_less(s->heap[c], x))
            break;
        s->heap[i] = s->heap[c];
    }
    s->heap[i] = x;
    return top;
}

static void push_pair(const struct tok *t, struct scratch *s, int32_t left)
{
    int32_t right = s->symbols[left].next;
    const struct merge *m = right < 0 ? NULL : find_merge(t, s->symbols[left].id, s->symbols[right].id);
    if (m)
        heap_push(s, (struct heap_item){m->rank, (uint32_t)left});
}

/* Many bytes: a linked list of symbols and a heap of the pairs that may merge.  A pair in the
 * heap may have gone since: its rank tells. */
static void merge_long(const struct tok *t, struct scratch *s, const unsigned char *p, size_t n, struct tok_ids *out)
{
    ARRAY_GROW(s->symbols, s->cap_symbols, n);
    struct symbol *y = s->symbols;
    for (size_t i = 0; i < n; i++)
        y[i] = (struct symbol){t->byte_id[p[i]], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
    s->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++)
        push_pair(t, s, (int32_t)i);
    while (s->n_heap) {
        struct heap_item top = heap_pop(s);
        int32_t a = (int32_t)top.at, b = y[a].next;
        if (y[a].id < 0 || b < 0)
            continue;
        const struct merge *m = find_merge(t, y[a].id, y[b].id);
        if (!m || m->rank != top.rank)
            continue;
        y[a].id = m->id;
        y[a].next = y[b].next;
        y[b].id = -1;
        if (y[a].next >= 0)
            y[y[a].next].prev = a;
        if (y[a].prev >= 0)
            push_pair(t, s, y[a].prev);
        push_pair(t, s, a);
    }
    for (int32_t i = 0; i >= 0; i = y[i].next)
        tok_ids_add(out, y[i].id);
}

/* ---- encoding ---- */

struct encoder {
    const struct tok *t;
    struct scratch *s;
    struct tok_ids *out;
    const char *base; /* of the text that is being cut into words */
    size_t mark;      /* offset from base; SIZE_MAX: not in there, or passed */
    bool ascii;
    bool found;
    size_t first;
    void (*word)(void *ctx, const char *p, size_t n); /* instead of ids */
    void *ctx;
};

static void add_id(struct encoder *e, int32_t id)
{
    tok_ids_add(e->out, id);
}

static void cache_word(struct scratch *s, struct cached *slot, uint64_t hash, const char *p, size_t n,
                       const int32_t *ids, size_t n_ids)
{
    size_t bytes = (n_ids * sizeof *ids + n + 3) & ~(size_t)3;
    if (s->n_cached >= CACHE_SLOTS / 2 || s->n_arena + bytes > CACHE_BYTES) {
        memset(s->cache, 0, CACHE_SLOTS * sizeof *s->cache); /* rare: just begin again */
        s->n_cached = s->n_arena = 0;
        slot = &s->cache[hash & (CACHE_SLOTS - 1)];
    }
    *slot = (struct cached){hash, (uint32_t)s->n_arena, (uint16_t)n, (uint16_t)n_ids};
    memcpy(s->arena + s->n_arena, ids, n_ids * sizeof *ids);
    memcpy(s->arena + s->n_arena + n_ids * sizeof *ids, p, n);
    s->n_arena += bytes;
    s->n_cached++;
}

static int word_ids(struct encoder *e, const char *p, size_t n)
{
    const struct tok *t = e->t;
    struct scratch *s = e->s;
    struct cached *slot = NULL;
    uint64_t hash = 0;
    if (n == 1 && t->byte_id[(unsigned char)*p] >= 0) {
        add_id(e, t->byte_id[(unsigned char)*p]);
        return ERR_OK;
    }
    if (n <= CACHED_WORD) {
        hash = hash_bytes(p, n) | 1;
        slot = &s->cache[hash & (CACHE_SLOTS - 1)];
        for (; slot->hash; slot = slot == s->cache + CACHE_SLOTS - 1 ? s->cache : slot + 1) {
            const char *ids = s->arena + slot->at;
            if (slot->hash == hash && slot->n_word == n && !memcmp(ids + slot->n_ids * sizeof(int32_t), p, n)) {
                ARRAY_GROW(e->out->v, e->out->cap, e->out->n + slot->n_ids);
                memcpy(e->out->v + e->out->n, ids, slot->n_ids * sizeof(int32_t));
                e->out->n += slot->n_ids;
                return ERR_OK;
            }
        }
    }
    size_t from = e->out->n;
    int32_t whole = t->ignore_merges ? find_bytes(t, p, n) : -1;
    if (whole >= 0) {
        add_id(e, whole);
    } else {
        for (size_t i = 0; i < n; i++)
            if (t->byte_id[(unsigned char)p[i]] < 0)
                return err_set(ERR_FORMAT, "%s: has no token for byte 0x%02x", t->path, (unsigned char)p[i]);
        if (n <= SHORT_WORD) {
            int32_t ids[SHORT_WORD];
            for (size_t i = 0; i < n; i++)
                ids[i] = t->byte_id[(unsigned char)p[i]];
            size_t m = merge_short(t, ids, n);
            for (size_t i = 0; i < m; i++)
                add_id(e, ids[i]);
        } else {
            merge_long(t, s, (const unsigned char *)p, n, e->out);
        }
    }
    if (slot)
        cache_word(s, slot, hash, p, n, e->out->v + from, e->out->n - from);
    return ERR_OK;
}

/* The word's ids, and the mark if it lies in or ahead of it. */
static int add_word(struct encoder *e, const char *p, size_t n)
{
    if (!n)
        return ERR_OK;
    if (e->word) {
        e->word(e->ctx, p, n);
        return ERR_OK;
    }
    size_t at = (size_t)(p - e->base), from = e->out->n;
    int rc = word_ids(e, p, n);
    if (rc < 0 || at + n <= e->mark || e->found)
        return rc;
    while (from < e->out->n && at < e->mark)
        at += e->t->v[e->out->v[from++]].n;
    e->found = true;
    e->first = from;
    return rc;
}

static int run_stage(struct encoder *e, int k, const char *p, size_t n);

/* A piece that stage k made goes through the stages after it. */
static int add_piece(struct encoder *e, int k, const char *p, size_t n)
{
    if (!n)
        return ERR_OK;
    return k + 1 < e->t->n_stages ? run_stage(e, k + 1, p, n) : add_word(e, p, n);
}

struct piece {
    size_t from, to;
    bool match;
};

/* The behaviours but Isolated join or drop the pieces of a split (tokenizers' SplitDelimiterBehavior). */
static int add_joined(struct encoder *e, int k, const char *p, struct piece *v, size_t n)
{
    const struct stage *g = &e->t->stages[k];
    size_t m = 0;
    bool previous = false;
    if (g->behaviour == MERGED_WITH_NEXT) {
        m = n;
        for (size_t i = n; i-- > 0; previous = v[i].match) {
            if (v[i].match && !previous && m < n)
                v[m].from = v[i].from;
            else
                v[--m] = v[i];
        }
        v += m;
        m = n - m;
    } else {
        for (size_t i = 0; i < n; i++) {
            bool match = v[i].match;
            bool join = g->behaviour == CONTIGUOUS ? match == previous
                                                   : g->behaviour == MERGED_WITH_PREVIOUS && match && !previous;
            if (g->behaviour == REMOVED && match)
                continue;
            if (join && m)
                v[m - 1].to = v[i].to;
            else
                v[m++] = v[i];
            previous = match;
        }
    }
    int rc = ERR_OK;
    for (size_t i = 0; i < m && rc == ERR_OK; i++)
        rc = add_piece(e, k, p + v[i].from, v[i].to - v[i].from);
    return rc;
}

static int next_match(struct encoder *e, int k, const char *p, size_t n, size_t at, size_t *from, size_t *to)
{
    const struct stage *g = &e->t->stages[k];
    int kind = e->ascii && g->re[ASCII_TEXT] ? ASCII_TEXT : ANY_TEXT;
    int (*match)(const pcre2_code *, PCRE2_SPTR, PCRE2_SIZE, PCRE2_SIZE, uint32_t, pcre2_match_data *,
                 pcre2_match_context *) = g->jit[kind] ? pcre2_jit_match : pcre2_match;
    int rc = match(g->re[kind], (PCRE2_SPTR)p, n, at, PCRE2_NO_UTF_CHECK, e->s->match, e->s->context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        char text[128];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)text, sizeof text);
        return err_set(ERR_FORMAT, "%s: pre-tokenizer pattern: %s", e->t->path, text);
    }
    size_t *o = pcre2_get_ovector_pointer(e->s->match);
    *from = o[0];
    *to = o[1];
    return 1;
}

static int split(struct encoder *e, int k, const char *p, size_t n)
{
    const struct stage *g = &e->t->stages[k];
    bool isolated = g->behaviour == ISOLATED;
    struct piece *v = NULL;
    size_t m = 0, cap = 0, done = 0, at = 0, from = 0, to = 0;
    int rc = ERR_OK;
    while (at <= n && (rc = next_match(e, k, p, n, at, &from, &to)) > 0) {
        if (isolated) {
            if ((rc = add_piece(e, k, p + done, from - done)) < 0 || (rc = add_piece(e, k, p + from, to - from)) < 0)
                break;
        } else {
            ARRAY_GROW(v, cap, m + 2);
            if (from > done)
                v[m++] = (struct piece){done, from, g->invert};
            v[m++] = (struct piece){from, to, !g->invert};
        }
        done = at = to;
        if (from == to) { /* an empty match: on by one character */
            at++;
            while (at < n && ((unsigned char)p[at] & 0xc0) == 0x80)
                at++;
        }
    }
    if (rc >= 0 && done < n) {
        if (isolated) {
            rc = add_piece(e, k, p + done, n - done);
        } else {
            ARRAY_GROW(v, cap, m + 1);
            v[m++] = (struct piece){done, n, g->invert};
        }
    }
    if (rc >= 0 && m)
        rc = add_joined(e, k, p, v, m);
    free(v);
    return rc;
}

static int run_stage(struct encoder *e, int k, const char *p, size_t n)
{
    const struct stage *g = &e->t->stages[k];
    if (!g->prefix_space || *p == ' ')
        return g->re[0] ? split(e, k, p, n) : add_piece(e, k, p, n);
    /* A copy with a space in front takes the text's place for the stages from here on. */
    struct buf *b = &e->s->prefixed[k];
    buf_clear(b);
    buf_putc(b, ' ');
    buf_add(b, p, n);
    const char *base = e->base;
    size_t mark = e->mark, at = (size_t)(p - base);
    e->base = b->s;
    if (mark != SIZE_MAX)
        e->mark = mark <= at ? 0 : mark >= at + n ? SIZE_MAX : mark - at + 1;
    int rc = g->re[0] ? split(e, k, b->s, b->n) : add_piece(e, k, b->s, b->n);
    e->base = base;
    e->mark = mark;
    return rc;
}

static bool word_char_at(const char *s, size_t n, size_t at)
{
    utf8proc_int32_t c;
    if (at >= n || utf8proc_iterate((const utf8proc_uint8_t *)s + at, (utf8proc_ssize_t)(n - at), &c) <= 0)
        return false;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

static bool space_at(const char *s, size_t n, size_t at, size_t *len)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s + at, (utf8proc_ssize_t)(n - at), &c);
    *len = k > 0 ? (size_t)k : 1;
    return k > 0 && ((c >= 9 && c <= 13) || c == 0x85 || utf8proc_category(c) == UTF8PROC_CATEGORY_ZS ||
                     c == 0x2028 || c == 0x2029);
}

static size_t back_one(const char *s, size_t at)
{
    do
        at--;
    while (at && ((unsigned char)s[at] & 0xc0) == 0x80);
    return at;
}

/* The longest added token that stands at s[at]; NULL if none. */
static const struct added *added_at(const struct added_set *set, const char *s, size_t n, size_t at)
{
    unsigned char b = (unsigned char)s[at];
    for (size_t i = set->from[b]; i < set->from[b + 1]; i++)
        if (set->v[i].n <= n - at && !memcmp(set->v[i].s, s + at, set->v[i].n))
            return &set->v[i];
    return NULL;
}

/* Cuts s at the added tokens of the set; what is between goes to plain(). */
static int split_added(struct encoder *e, const struct added_set *set, const char *s, size_t n, size_t mark,
                       int (*plain)(struct encoder *e, const char *p, size_t n, size_t mark))
{
    size_t done = 0, at = 0, k;
    int rc = ERR_OK;
    while (set->n && at < n) {
        if (!set->starts[(unsigned char)s[at]]) {
            at++;
            continue;
        }
        const struct added *a = added_at(set, s, n, at);
        if (!a) {
            at++;
            continue;
        }
        size_t from = at, to = at + a->n;
        at = to;
        if (a->single_word && ((from && word_char_at(s, n, back_one(s, from))) || word_char_at(s, n, to)))
            continue;
        while (a->lstrip && from > done && space_at(s, n, back_one(s, from), &k))
            from = back_one(s, from);
        while (a->rstrip && to < n && space_at(s, n, to, &k))
            to += k;
        if (from > done && (rc = plain(e, s + done, from - done,
                                       mark <= done ? 0 : mark >= from ? SIZE_MAX : mark - done)) < 0)
            return rc;
        if (!e->found && from >= mark) {
            e->found = true;
            e->first = e->out->n;
        }
        add_id(e, a->id);
        done = to;
        at = to;
    }
    return done < n ? plain(e, s + done, n - done, mark <= done ? 0 : mark >= n ? SIZE_MAX : mark - done) : ERR_OK;
}

static int cut_words(struct encoder *e, const char *p, size_t n, size_t mark)
{
    e->base = p;
    e->mark = mark;
    e->ascii = ascii_run(p, n) == n;
    return run_stage(e, 0, p, n);
}

static int normalize(struct encoder *e, const char *p, size_t n, size_t mark)
{
    if (e->t->nfc && ascii_run(p, n) < n) {
        struct buf *b = &e->s->norm;
        size_t head = mark == SIZE_MAX ? n : mark;
        buf_clear(b);
        add_nfc(e->s, p, head, b);
        if (mark != SIZE_MAX) {
            mark = b->n;
            add_nfc(e->s, p + head, n - head, b);
        }
        p = b->s;
        n = b->n;
    }
    return split_added(e, &e->t->normalized, p, n, mark, cut_words);
}

static struct scratch *scratch_get(const struct tok *ct)
{
    struct tok *t = (struct tok *)ct; /* the free list is the only part that changes */
    pthread_mutex_lock(&t->lock);
    struct scratch *s = t->idle;
    if (s)
        t->idle = s->next;
    pthread_mutex_unlock(&t->lock);
    if (s)
        return s;
    s = xcalloc(1, sizeof *s);
    s->context = pcre2_match_context_create(NULL);
    s->jit_stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, NULL);
    pcre2_jit_stack_assign(s->context, NULL, s->jit_stack);
    buf_init(&s->clean);
    buf_init(&s->norm);
    for (int i = 0; i < STAGES_MAX; i++)
        buf_init(&s->prefixed[i]);
    s->match = pcre2_match_data_create(1, NULL);
    s->cache = xcalloc(CACHE_SLOTS, sizeof *s->cache);
    s->arena = xmalloc(CACHE_BYTES);
    return s;
}

static void scratch_put(const struct tok *ct, struct scratch *s)
{
    struct tok *t = (struct tok *)ct;
    pthread_mutex_lock(&t->lock);
    s->next = t->idle;
    t->idle = s;
    pthread_mutex_unlock(&t->lock);
}

static void scratch_free(struct scratch *s)
{
    for (int i = 0; i < STAGES_MAX; i++)
        buf_release(&s->prefixed[i]);
    pcre2_match_data_free(s->match);
    pcre2_jit_stack_free(s->jit_stack);
    pcre2_match_context_free(s->context);
    buf_release(&s->clean);
    buf_release(&s->norm);
    free(s->points);
    free(s->cache);
    free(s->arena);
    free(s->symbols);
    free(s->heap);
    free(s);
}

int tok_encode_mark(const struct tok *t, const char *text, size_t n, bool add_special, size_t mark,
                    struct tok_ids *out, size_t *first)
{
    if (n >= INT32_MAX)
        return err_set(ERR_NOMEM, "a text of %zu bytes is over the tokenizer's limit of 2 GiB", n);
    struct scratch *s = scratch_get(t);
    struct encoder e = {.t = t, .s = s, .out = out, .mark = SIZE_MAX};
    size_t from = out->n;
    if (mark > n)
        mark = SIZE_MAX;
    if (utf8_run(text, n) < n) {
        size_t head = mark == SIZE_MAX ? n : mark;
        buf_clear(&s->clean);
        add_lossy(&s->clean, text, head);
        if (mark != SIZE_MAX) {
            mark = s->clean.n;
            add_lossy(&s->clean, text + head, n - head);
        }
        text = s->clean.s;
        n = s->clean.n;
    }
    for (size_t i = 0; add_special && i < t->before.n; i++)
        add_id(&e, t->before.v[i]);
    int rc = n ? split_added(&e, &t->raw, text, n, mark, normalize) : ERR_OK;
    if (!e.found)
        e.first = out->n;
    for (size_t i = 0; add_special && i < t->after.n; i++)
        add_id(&e, t->after.v[i]);
    scratch_put(t, s);
    if (rc < 0)
        out->n = from;
    else if (first)
        *first = e.first;
    return rc;
}

int tok_words(const struct tok *t, const char *text, size_t n, void (*word)(void *ctx, const char *p, size_t n),
              void *ctx)
{
    struct scratch *s = scratch_get(t);
    struct tok_ids none = {0};
    struct encoder e = {.t = t, .s = s, .out = &none, .mark = SIZE_MAX, .word = word, .ctx = ctx};
    if (utf8_run(text, n) < n) {
        buf_clear(&s->clean);
        add_lossy(&s->clean, text, n);
        text = s->clean.s;
        n = s->clean.n;
    }
    int rc = n ? split_added(&e, &t->raw, text, n, SIZE_MAX, normalize) : ERR_OK;
    tok_ids_release(&none);
    scratch_put(t, s);
    return rc;
}

int tok_encode(const struct tok *t, const char *text, size_t n, bool add_special, struct tok_ids *out)
{
    return tok_encode_mark(t, text, n, add_special, SIZE_MAX, out, NULL);
}

/* ---- decoding ---- */

int tok_stream_push(const struct tok *t, struct tok_stream *s, int32_t id, bool skip_special, struct buf *out)
{
    if (id < 0 || id >= t->n)
        return err_set(ERR_FORMAT, "%s: no token has id %d", t->path, (int)id);
    const struct entry *e = &t->v[id];
    if (!e->flags || (skip_special && (e->flags & T_SPECIAL)))
        return ERR_OK;
    const char *p = e->bytes;
    size_t n = e->n;
    bool cut = false;
    int k = 0;
    /* First what completes, or breaks, the character that is pending. */
    while (s->n_pending && n) {
        s->pending[s->n_pending++] = (unsigned char)*p++;
        n--;
        k = utf8_char(s->pending, (size_t)s->n_pending, &cut);
        if (k > 0) {
            buf_add(out, s->pending, (size_t)k);
            s->n_pending = 0;
        } else if (!cut) { /* the last byte does not belong to it: look at it afresh */
            buf_puts(out, "\xef\xbf\xbd");
            s->n_pending = 0;
            p--;
            n++;
        }
    }
    while (n) {
        size_t run = utf8_run(p, n);
        buf_add(out, p, run);
        p += run;
        n -= run;
        if (!n)
            break;
        k = -utf8_char((const unsigned char *)p, n, &cut);
        if (cut) {
            memcpy(s->pending, p, n);
            s->n_pending = (int)n;
            break;
        }
        buf_puts(out, "\xef\xbf\xbd");
        p += k;
        n -= (size_t)k;
    }
    return ERR_OK;
}

void tok_stream_end(struct tok_stream *s, struct buf *out)
{
    if (s->n_pending)
        buf_puts(out, "\xef\xbf\xbd");
    s->n_pending = 0;
}

int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct buf *out)
{
    struct tok_stream s = {0};
    for (size_t i = 0; i < n; i++) {
        int rc = tok_stream_push(t, &s, ids[i], skip_special, out);
        if (rc < 0)
            return rc;
    }
    tok_stream_end(&s, out);
    return ERR_OK;
}

/* ---- loading ---- */

/* GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on.
 * Either may be NULL. */
static void byte_alphabet(int16_t byte_of[324], int16_t char_of[256])
{
    int next = 256;
    for (int i = 0; byte_of && i < 324; i++)
        byte_of[i] = -1;
    for (int b = 0; b < 256; b++) {
        bool self = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        int c = self ? b : next++;
        if (byte_of)
            byte_of[c] = (int16_t)b;
        if (char_of)
            char_of[b] = (int16_t)c;
    }
}

void tok_spell(const char *bytes, size_t n, struct buf *out)
{
    int16_t char_of[256];
    byte_alphabet(NULL, char_of);
    for (size_t i = 0; i < n; i++) {
        utf8proc_uint8_t u[4];
        buf_add(out, u, (size_t)utf8proc_encode_char(char_of[(unsigned char)bytes[i]], u));
    }
}

/* The bytes a spelling stands for; false (and the spelling itself) when it is not in the alphabet. */
static bool spelling_bytes(const int16_t byte_of[324], const char *s, size_t n, struct buf *out)
{
    buf_clear(out);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0 || c >= 324 || byte_of[c] < 0) {
            buf_clear(out);
            buf_add(out, s, n);
            return false;
        }
        buf_putc(out, (char)byte_of[c]);
        i += (size_t)k;
    }
    return true;
}

static const char *type_of(const json_t *j)
{
    const char *s = json_string_value(json_object_get(j, "type"));
    return s ? s : "";
}

static bool flag(const json_t *j, const char *key, bool otherwise)
{
    const json_t *v = json_object_get(j, key);
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

static int unsupported(const struct tok *t, const char *what, const char *value)
{
    return err_set(ERR_FORMAT, "%s: %s %.60s is not supported (byte-level BPE is due)", t->path, what, value);
}

static int load_vocab(struct tok *t, const json_t *vocab, const json_t *added)
{
    int16_t byte_of[324];
    const char *name;
    json_t *j;
    size_t i, count = json_object_size(vocab) + json_array_size(added);
    json_int_t top = -1;
    if (!json_object_size(vocab))
        return err_set(ERR_FORMAT, "%s: model.vocab is no object of tokens", t->path);
    json_object_foreach((json_t *)vocab, name, j) {
        json_int_t id = json_is_integer(j) ? json_integer_value(j) : -1;
        if (id < 0 || id >= ID_MAX)
            return err_set(ERR_FORMAT, "%s: model.vocab: bad id of token %.60s", t->path, name);
        top = id > top ? id : top;
    }
    json_array_foreach(added, i, j) {
        const json_t *id = json_object_get(j, "id"), *content = json_object_get(j, "content");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= ID_MAX ||
            !json_string_length(content))
            return err_set(ERR_FORMAT, "%s: added_tokens[%zu]: bad id or content", t->path, i);
        top = json_integer_value(id) > top ? json_integer_value(id) : top;
    }
    t->n = (int32_t)top + 1;
    t->v = xcalloc((size_t)t->n, sizeof *t->v);
    uint32_t slots = 64;
    while (slots < 2 * count)
        slots *= 2;
    t->name_mask = slots - 1;
    t->by_spelling = xcalloc(slots, sizeof *t->by_spelling);
    t->by_bytes = xcalloc(slots, sizeof *t->by_bytes);

    struct buf b = BUF_INIT;
    byte_alphabet(byte_of, NULL);
    json_object_foreach((json_t *)vocab, name, j) {
        struct entry *e = &t->v[json_integer_value(j)];
        if (e->flags) {
            buf_release(&b);
            return err_set(ERR_FORMAT, "%s: model.vocab: tokens %.60s and %.60s have one id", t->path, e->spelt, name);
        }
        bool plain = spelling_bytes(byte_of, name, strlen(name), &b);
        e->spelt = arena_strndup(&t->arena, name, strlen(name));
        e->bytes = arena_strndup(&t->arena, b.s, b.n);
        e->n = (uint32_t)b.n;
        e->flags = T_PRESENT | (plain ? T_PLAIN : 0);
        table_put(t->by_spelling, t->name_mask, name, strlen(name), (int32_t)(e - t->v));
        if (plain)
            table_put(t->by_bytes, t->name_mask, e->bytes, e->n, (int32_t)(e - t->v));
    }
    buf_release(&b);
    for (int c = 0; c < 256; c++) {
        char byte = (char)c;
        t->byte_id[c] = find_bytes(t, &byte, 1);
    }
    return ERR_OK;
}

static int by_first_then_length(const void *a, const void *b)
{
    const struct added *x = a, *y = b;
    if (x->s[0] != y->s[0])
        return (unsigned char)x->s[0] < (unsigned char)y->s[0] ? -1 : 1;
    return x->n > y->n ? -1 : x->n < y->n;
}

static int load_added(struct tok *t, const json_t *added)
{
    json_t *j;
    size_t i;
    if (added && !json_is_null(added) && !json_is_array(added))
        return err_set(ERR_FORMAT, "%s: added_tokens is no list", t->path);
    json_array_foreach(added, i, j) {
        const json_t *content = json_object_get(j, "content");
        const char *s = json_string_value(content);
        struct entry *e = &t->v[json_integer_value(json_object_get(j, "id"))];
        bool special = flag(j, "special", false), normalized = flag(j, "normalized", !special);
        if (e->flags && strcmp(e->spelt, s))
            return err_set(ERR_FORMAT, "%s: added_tokens: %.60s has the id of token %.60s", t->path, s, e->spelt);
        if (!e->flags) {
            e->spelt = e->bytes = arena_strndup(&t->arena, s, strlen(s));
            e->n = (uint32_t)strlen(s);
            e->flags = T_PRESENT;
            table_put(t->by_spelling, t->name_mask, s, e->n, (int32_t)(e - t->v));
        }
        e->flags |= special ? T_SPECIAL : 0;
        struct added a = {.s = e->spelt, .n = (uint32_t)strlen(e->spelt), .id = (int32_t)(e - t->v),
                          .lstrip = flag(j, "lstrip", false), .rstrip = flag(j, "rstrip", false),
                          .single_word = flag(j, "single_word", false)};
        if (normalized && t->nfc) {
            struct scratch sc = {0};
            struct buf b = BUF_INIT;
            add_nfc(&sc, a.s, a.n, &b);
            a.s = arena_strndup(&t->arena, b.s, b.n);
            a.n = (uint32_t)b.n;
            buf_release(&b);
            free(sc.points);
        }
        struct added_set *set = normalized ? &t->normalized : &t->raw;
        ARRAY_GROW(set->v, set->cap, set->n + 1);
        set->v[set->n++] = a;
    }
    struct added_set *sets[] = {&t->raw, &t->normalized};
    for (size_t k = 0; k < 2; k++) {
        struct added_set *set = sets[k];
        if (set->n > UINT16_MAX)
            return err_set(ERR_FORMAT, "%s: over %d added tokens", t->path, UINT16_MAX);
        if (set->n)
            qsort(set->v, set->n, sizeof *set->v, by_first_then_length);
        for (size_t b = 0, at = 0; b <= 256; b++) {
            while (at < set->n && (unsigned char)set->v[at].s[0] < b)
                at++;
            set->from[b] = (uint16_t)at;
        }
        for (size_t b = 0; b < 256; b++)
            set->starts[b] = set->from[b + 1] > set->from[b];
    }
    return ERR_OK;
}

static int load_merges(struct tok *t, const json_t *merges)
{
    if (!json_is_array(merges))
        return err_set(ERR_FORMAT, "%s: model.merges is no list", t->path);
    size_t n = json_array_size(merges), i;
    uint32_t slots = 16;
    while (slots < 2 * n)
        slots *= 2;
    t->merge_mask = slots - 1;
    t->merges = xmalloc(slots * sizeof *t->merges);
    for (size_t k = 0; k < slots; k++)
        t->merges[k].pair = NO_PAIR;
    json_t *j;
    struct buf b = BUF_INIT;
    int rc = ERR_OK;
    json_array_foreach(merges, i, j) {
        const char *left, *right;
        size_t n_left;
        if (json_is_string(j)) {
            left = json_string_value(j);
            const char *space = strchr(left, ' ');
            right = space && !strchr(space + 1, ' ') ? space + 1 : NULL;
            n_left = space ? (size_t)(space - left) : 0;
        } else {
            left = json_string_value(json_array_get(j, 0));
            right = json_array_size(j) == 2 ? json_string_value(json_array_get(j, 1)) : NULL;
            n_left = left ? strlen(left) : 0;
        }
        if (!left || !right) {
            rc = err_set(ERR_FORMAT, "%s: model.merges[%zu] is no pair of tokens", t->path, i);
            break;
        }
        buf_clear(&b);
        buf_add(&b, left, n_left);
        buf_puts(&b, right);
        int32_t l = find_spelling(t, left, n_left), r = find_spelling(t, right, strlen(right));
        int32_t made = find_spelling(t, b.s, b.n);
        if (l < 0 || r < 0 || made < 0) {
            rc = err_set(ERR_FORMAT, "%s: model.merges[%zu]: %.*s + %.60s is of tokens that the vocabulary lacks",
                         t->path, i, (int)(n_left < 60 ? n_left : 60), left, right);
            break;
        }
        uint64_t pair = (uint64_t)(uint32_t)l << 32 | (uint32_t)r;
        uint32_t k = (uint32_t)mix(pair, 0x9e3779b97f4a7c15u) & t->merge_mask;
        while (t->merges[k].pair != NO_PAIR && t->merges[k].pair != pair)
            k = (k + 1) & t->merge_mask;
        t->merges[k] = (struct merge){pair, (uint32_t)i, made};
    }
    buf_release(&b);
    return rc;
}

static int load_normalizer(struct tok *t, const json_t *j)
{
    const char *type = type_of(j);
    json_t *part;
    size_t i;
    if (!j || json_is_null(j))
        return ERR_OK;
    if (!strcmp(type, "NFC")) {
        t->nfc = true;
        return ERR_OK;
    }
    if (strcmp(type, "Sequence"))
        return unsupported(t, "normalizer", type);
    json_array_foreach(json_object_get(j, "normalizers"), i, part) {
        if (strcmp(type_of(part), "NFC"))
            return unsupported(t, "normalizer", type_of(part));
        t->nfc = true;
    }
    return ERR_OK;
}

/* White_Space of Unicode, as Oniguruma's \s; PCRE2's takes U+180E as well. */
#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

/* Letters and numbers that Unicode 16 has and PCRE2 10.42 does not know (more would do no harm). */
#define LATER_LETTERS \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}" \
    "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}" \
    "\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}" \
    "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}" \
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}" \
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define LATER_NUMBERS \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}" \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}" \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

/* A pattern in Oniguruma's Ruby syntax as PCRE2's.  The two agree on what tokenizers use, but for the
 * classes here. */
static void translate(const char *s, int kind, struct buf *out)
{
    static const struct {
        const char *name, *ranges[2];
    } classes[] = {
        {"\\p{L}", {"\\p{L}" LATER_LETTERS, "a-zA-Z"}},
        {"\\p{N}", {"\\p{N}" LATER_NUMBERS, "0-9"}},
        {"\\s", {SPACES, "\\x09-\\x0d\\x20"}},
        {"\\S", {SPACES, "\\x09-\\x0d\\x20"}},
        {"\\h", {"0-9A-Fa-f", "0-9A-Fa-f"}},
    };
    int depth = 0; /* of [ ] */
    while (*s) {
        size_t i = 0;
        while (i < ARRAY_LEN(classes) && strncmp(s, classes[i].name, strlen(classes[i].name)))
            i++;
        bool negated = s[0] == '\\' && s[1] == 'S';
        if (i < ARRAY_LEN(classes) && !(negated && depth)) {
            buf_printf(out, depth ? "%s" : negated ? "[^%s]" : "[%s]", classes[i].ranges[kind]);
            s += strlen(classes[i].name);
            continue;
        }
        if (*s == '[')
            depth++;
        else if (*s == ']' && depth)
            depth--;
        else if (*s == '\\' && s[1])
            buf_putc(out, *s++);
        buf_putc(out, *s++);
    }
}

static int add_stage(struct tok *t, const char *pattern, bool literal, enum behaviour behaviour, bool invert,
                     bool prefix_space)
{
    if (t->n_stages == STAGES_MAX)
        return err_set(ERR_FORMAT, "%s: pre_tokenizer: over %d steps", t->path, STAGES_MAX);
    struct stage *g = &t->stages[t->n_stages++];
    *g = (struct stage){.behaviour = behaviour, .invert = invert, .prefix_space = prefix_space};
    struct buf b = BUF_INIT;
    int code = 0;
    PCRE2_SIZE at = 0;
    for (int kind = ANY_TEXT; pattern && kind <= (literal ? ANY_TEXT : ASCII_TEXT); kind++) {
        /* ^ and $ are about lines in Ruby's syntax. */
        uint32_t options = literal              ? PCRE2_UTF | PCRE2_LITERAL
                           : kind == ASCII_TEXT ? PCRE2_MULTILINE
                                                : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
        buf_clear(&b);
        if (literal)
            buf_puts(&b, pattern);
        else
            translate(pattern, kind, &b);
        g->re[kind] = pcre2_compile((PCRE2_SPTR)b.s, b.n, options, &code, &at, NULL);
        if (!g->re[kind] && kind == ANY_TEXT) {
            char text[128];
            pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
            buf_release(&b);
            return err_set(ERR_FORMAT, "%s: pre_tokenizer: pattern, character %zu: %s", t->path, (size_t)at, text);
        }
        g->jit[kind] = g->re[kind] && pcre2_jit_compile(g->re[kind], PCRE2_JIT_COMPLETE) == 0;
    }
    buf_release(&b);
    return ERR_OK;
}

static int load_pre_tokenizer(struct tok *t, const json_t *j, bool *bytes)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *type = type_of(j);
    if (!j || json_is_null(j))
        return ERR_OK;
    if (*bytes)
        return unsupported(t, "pre_tokenizer after ByteLevel:", type);
    if (!strcmp(type, "Sequence")) {
        json_t *part;
        size_t i;
        int rc = ERR_OK;
        json_array_foreach(json_object_get(j, "pretokenizers"), i, part)
            if ((rc = load_pre_tokenizer(t, part, bytes)) < 0)
                return rc;
        return rc;
    }
    if (!strcmp(type, "ByteLevel")) {
        bool prefix = flag(j, "add_prefix_space", true), regex = flag(j, "use_regex", true);
        *bytes = true;
        return !prefix && !regex ? ERR_OK
               : add_stage(t, regex ? "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
                                    : NULL, false, ISOLATED, false, prefix);
    }
    if (!strcmp(type, "Digits"))
        return add_stage(t, "\\p{N}", false, flag(j, "individual_digits", false) ? ISOLATED : CONTIGUOUS, false, false);
    if (strcmp(type, "Split"))
        return unsupported(t, "pre_tokenizer", type);
    const json_t *pattern = json_object_get(j, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *string = json_string_value(json_object_get(pattern, "String"));
    const char *behaviour = json_string_value(json_object_get(j, "behavior"));
    size_t b = 0;
    while (behaviour && b < ARRAY_LEN(names) && strcmp(names[b], behaviour))
        b++;
    if ((!regex && !string) || !behaviour || b == ARRAY_LEN(names))
        return err_set(ERR_FORMAT, "%s: pre_tokenizer: Split without a known pattern and behavior", t->path);
    return add_stage(t, regex ? regex : string, !regex, (enum behaviour)b, flag(j, "invert", false), false);
}

static int add_template_id(struct tok *t, const json_t *id, struct tok_ids *out)
{
    json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;
    if (v < 0 || v >= t->n)
        return err_set(ERR_FORMAT, "%s: post_processor: bad token id", t->path);
    tok_ids_add(out, (int32_t)v);
    return ERR_OK;
}

static int load_post_processor(struct tok *t, const json_t *j)
{
    const char *type = type_of(j);
    json_t *part, *id;
    size_t i, k;
    int rc = ERR_OK;
    if (!j || json_is_null(j) || !strcmp(type, "ByteLevel"))
        return ERR_OK;
    if (!strcmp(type, "Sequence")) {
        json_array_foreach(json_object_get(j, "processors"), i, part)
            if ((rc = load_post_processor(t, part)) < 0)
                return rc;
        return rc;
    }
    if (!strcmp(type, "RobertaProcessing")) {
        if ((rc = add_template_id(t, json_array_get(json_object_get(j, "cls"), 1), &t->before)) < 0)
            return rc;
        return add_template_id(t, json_array_get(json_object_get(j, "sep"), 1), &t->after);
    }
    if (strcmp(type, "TemplateProcessing"))
        return unsupported(t, "post_processor", type);
    struct tok_ids *to = &t->before;
    json_array_foreach(json_object_get(j, "single"), i, part) {
        const char *name = json_string_value(json_object_get(json_object_get(part, "SpecialToken"), "id"));
        if (json_object_get(part, "Sequence")) {
            to = &t->after;
            continue;
        }
        const json_t *ids = json_object_get(json_object_get(json_object_get(j, "special_tokens"), name ? name : ""),
                                            "ids");
        if (!json_array_size(ids))
            return err_set(ERR_FORMAT, "%s: post_processor: single[%zu] names no special token", t->path, i);
        json_array_foreach(ids, k, id)
            if ((rc = add_template_id(t, id, to)) < 0)
                return rc;
    }
    return rc;
}

static int load_model(struct tok *t, const json_t *root)
{
    const json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    const char *type = type_of(model);
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    bool bytes = false;
    int rc;
    if (!json_is_object(model))
        return err_set(ERR_FORMAT, "%s: not a tokenizer.json (no model)", t->path);
    if (*type && strcmp(type, "BPE"))
        return unsupported(t, "model", type);
    for (size_t i = 0; i < ARRAY_LEN(empty); i++) {
        const char *s = json_string_value(json_object_get(model, empty[i]));
        if (s && *s)
            return unsupported(t, empty[i], s);
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return unsupported(t, "model", "dropout");
    const json_t *decoder = json_object_get(root, "decoder");
    if (json_is_object(decoder) && strcmp(type_of(decoder), "ByteLevel"))
        return unsupported(t, "decoder", type_of(decoder));
    t->ignore_merges = flag(model, "ignore_merges", false);
    if ((rc = load_vocab(t, json_object_get(model, "vocab"), added)) < 0 ||
        (rc = load_merges(t, json_object_get(model, "merges"))) < 0 ||
        (rc = load_normalizer(t, json_object_get(root, "normalizer"))) < 0 || (rc = load_added(t, added)) < 0 ||
        (rc = load_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), &bytes)) < 0 ||
        (rc = load_post_processor(t, json_object_get(root, "post_processor"))) < 0)
        return rc;
    if (!bytes)
        return unsupported(t, "pre_tokenizer", "without ByteLevel");
    return t->n_stages ? ERR_OK : add_stage(t, NULL, false, ISOLATED, false, false);
}

/* Reads dir/name if it is there; *out NULL otherwise. */
static int read_config(const char *dir, const char *name, json_t **out)
{
    char *path = path_join(dir, name);
    int rc = ERR_OK;
    *out = NULL;
    if (path_exists(path))
        rc = json_read_file(path, FILE_MAX, out);
    free(path);
    return rc;
}

/* "eos_token": "x" or {"content": "x"}. */
static int32_t named_token(const struct tok *t, const json_t *config, const char *key)
{
    const json_t *j = json_object_get(config, key);
    const char *s = json_string_value(json_is_object(j) ? json_object_get(j, "content") : j);
    return s ? tok_find(t, s) : -1;
}

/* "eos_token_id": 1 or [1, 2]; adds those that exist. */
static void id_list(const struct tok *t, const json_t *config, const char *key, struct tok_ids *out)
{
    const json_t *j = json_object_get(config, key);
    size_t n = json_is_array(j) ? json_array_size(j) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(j) ? json_array_get(j, i) : j;
        if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < t->n)
            tok_ids_add(out, (int32_t)json_integer_value(id));
    }
}

static int load_special_ids(struct tok *t, const char *dir)
{
    static const char *const files[] = {"tokenizer_config.json", "generation_config.json", "config.json"};
    static const struct {
        const char *token, *id;
    } keys[] = {{"bos_token", "bos_token_id"}, {"eos_token", "eos_token_id"}, {"pad_token", "pad_token_id"}};
    int32_t *ids[] = {&t->bos, &t->eos, &t->pad};
    for (size_t f = 0; f < ARRAY_LEN(files); f++) {
        json_t *config;
        int rc = read_config(dir, files[f], &config);
        if (rc < 0)
            return rc;
        for (size_t k = 0; k < ARRAY_LEN(keys); k++) {
            struct tok_ids found = {0};
            if (f == 0 && named_token(t, config, keys[k].token) >= 0)
                tok_ids_add(&found, named_token(t, config, keys[k].token));
            id_list(t, config, keys[k].id, &found);
            if (found.n && *ids[k] < 0)
                *ids[k] = found.v[0];
            for (size_t i = 0; ids[k] == &t->eos && i < found.n; i++)
                if (!tok_is_stop(t, found.v[i]))
                    tok_ids_add(&t->stops, found.v[i]);
            tok_ids_release(&found);
        }
        json_decref(config);
    }
    return ERR_OK;
}

int tok_load_json(const char *name, const json_t *root, struct tok **out)
{
    struct tok *t = xcalloc(1, sizeof *t);
    t->path = xstrdup(name);
    t->bos = t->eos = t->pad = -1;
    pthread_mutex_init(&t->lock, NULL);
    int rc = load_model(t, root);
    if (rc < 0) {
        tok_free(t);
        t = NULL;
    }
    *out = t;
    return rc;
}

int tok_load(const char *path, struct tok **out)
{
    bool is_dir = path_is_dir(path);
    char *dir = is_dir ? xstrdup(path) : path_dirname(path);
    char *file = is_dir ? path_join(path, "tokenizer.json") : xstrdup(path);
    json_t *root = NULL;
    *out = NULL;
    int rc = json_read_file(file, FILE_MAX, &root);
    if (rc == ERR_OK)
        rc = tok_load_json(file, root, out);
    if (rc == ERR_OK && (rc = load_special_ids(*out, dir)) < 0) {
        tok_free(*out);
        *out = NULL;
    }
    json_decref(root);
    free(file);
    free(dir);
    return rc;
}

void tok_free(struct tok *t)
{
    if (!t)
        return;
    for (struct scratch *s = t->idle, *next; s; s = next) {
        next = s->next;
        scratch_free(s);
    }
    for (int i = 0; i < t->n_stages; i++)
        for (int k = 0; k < 2; k++)
            pcre2_code_free(t->stages[i].re[k]);
    pthread_mutex_destroy(&t->lock);
    tok_ids_release(&t->before);
    tok_ids_release(&t->after);
    tok_ids_release(&t->stops);
    arena_release(&t->arena);
    free(t->raw.v);
    free(t->normalized.v);
    free(t->merges);
    free(t->by_spelling);
    free(t->by_bytes);
    free(t->v);
    free(t->path);
    free(t);
}

int32_t tok_n_ids(const struct tok *t)
{
    return t->n;
}

int32_t tok_bos(const struct tok *t)
{
    return t->bos;
}

int32_t tok_eos(const struct tok *t)
{
    return t->eos;
}

int32_t tok_pad(const struct tok *t)
{
    return t->pad;
}

bool tok_is_stop(const struct tok *t, int32_t id)
{
    for (size_t i = 0; i < t->stops.n; i++)
        if (t->stops.v[i] == id)
            return true;
    return false;
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    return id >= 0 && id < t->n && (t->v[id].flags & T_SPECIAL);
}

int32_t tok_find(const struct tok *t, const char *token)
{
    return find_spelling(t, token, strlen(token));
}

const char *tok_bytes(const struct tok *t, int32_t id, size_t *n)
{
    if (id < 0 || id >= t->n || !t->v[id].flags)
        return NULL;
    *n = t->v[id].n;
    return t->v[id].bytes;
}
