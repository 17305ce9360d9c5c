#include "lib/grammar.h"

#include <pthread.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"

/* ==== the entity table, flat ==== */

enum { NONE = 0xffff, INF = 0xf000 }; /* no index; no way out */
enum { ALPHABET = 66, MAX_FRAMES = SCHEMA_MAX_DEPTH + 2, MAX_DIGITS = 6, TEXT_DIGITS = 40, INT_DIGITS = 18 };

struct pat {
    uint16_t kinds, elem, min, max; /* max 0: any number */
    uint16_t enums, typed;          /* roots of words */
    uint16_t tset;                  /* what may be referred to */
};
struct sig {
    uint16_t pat, n;                /* parameters: pats[pat] .. */
    uint64_t counts;                /* bit n - 1: n of them may stand; bit 63: none */
    uint16_t rest;                  /* avail.rest[rest + i]: to close behind i parameters */
    uint16_t type;                  /* of a simple instance */
    uint16_t tset[32];              /* of each bit */
    uint8_t n_bits;
    bool colour, presentation;      /* the reference form has its ways with these two */
};
/* Words: one pool of tries over A-Z 0-9 _ ! + a-z. */
struct word {
    uint16_t next[ALPHABET];
    uint16_t term;                  /* keyword: sig; value of an enumeration: 0; typed: pattern; else NONE */
    uint16_t part;                  /* keyword of a complex instance: the place behind it; else NONE */
    uint16_t rest;                  /* bytes to the nearest end of a word (values and titles) */
};
/* A place between the parts of complex instances. */
struct part {
    uint16_t words;                 /* keywords that may follow */
    uint16_t type;                  /* of the instance when it may end here; else NONE */
};
/* What the types defined so far allow, and what it then takes to close. */
struct avail {
    uint64_t hash;
    uint8_t *have;                  /* a type set is not empty */
    bool any;                       /* one of them */
    uint16_t *word;                 /* from inside a keyword to the end of its instance */
    uint16_t *value;                /* least of each pattern */
    uint16_t *rest;                 /* see sig.rest */
    uint16_t *part;                 /* from between parts to the end */
};

/* ==== the automaton ==== */

enum mode {
    M_LINE, M_DATA, M_DEF, M_EQ, M_HEAD, M_KEY, M_KEYWS, M_VALUE, M_AFTER, M_REF0, M_REF, M_PLACEHOLDER, M_NUMBER, M_STRING,
    M_ENUM, M_BINARY, M_TYPED, M_TYPEDWS, M_PART, M_SEMI, M_NL, M_NOTE, M_COMMENT, M_END, M_DONE, N_MODES
};
static const char *const awaits[N_MODES] = {
    "an instance, a comment or ENDSEC", "DATA;", "the number of the instance", "'='", "a keyword", "a keyword", "'('", "a value", "',' or ')'",
    "the number of an instance", "the number of an instance", "#ID_n", "a number", "a string", "a value of an enumeration", "a binary",
    "a typed value", "'('", "a part of a complex instance", "';'", "a line break", "an annotation", "a comment", "ENDSEC; END-ISO-10303-21;",
    "the end of the text",
};
enum { AFTER_NOTE = 2, FULL = 4, ENDABLE = 8, IN_COMPLEX = 16, FIRST_PART = 32, COMMIT = 64 };

struct frame {
    uint16_t pat;
    uint8_t count;
    bool typed;
};
/* The automaton's state.  Up to `num` it decides what may come (with avail where keywords may); behind, what depends
 * on the instances that there are. */
struct lex {
    uint8_t mode, sub, flags, depth;
    uint16_t sig, param, pat, node, part;
    uint8_t back, back_sub; /* of a comment: where it stands */
    uint8_t canon;          /* place in the shortest instance, plus 1; 0: off it */
    uint8_t spare[3];
    uint32_t refok;
    struct frame frame[MAX_FRAMES];
    /* not in the key */
    uint32_t num;           /* digits of an instance's number so far */
    uint32_t n;             /* instances defined */
    uint32_t highest;       /* number promised */
    uint16_t avail;
    uint8_t n_digits, length;
};
#define KEY_BYTES offsetof(struct lex, num)

enum step { FAIL, OK, ASK }; /* ASK: it depends on the instances */

static const char data_text[] = "DATA;\n", end_text[] = "ENDSEC;\nEND-ISO-10303-21;";
static const char note_open[] = "/* ", note_mid[] = " Section - ", note_one[] = " root */\n", note_many[] = " roots */\n";

/* ==== tokens ==== */

struct node {
    uint32_t child; /* children are child .. child + n - 1, by byte */
    uint16_t n;
    uint8_t byte;
    int32_t token;  /* -1: none ends here */
};

struct dependent {
    uint32_t node;  /* token trie: the child whose byte depends */
    struct lex x;   /* ahead of it */
};
struct mask {
    unsigned char key[KEY_BYTES + 4];
    uint64_t hash;
    uint32_t *bits;
    uint16_t most;  /* need of the dearest token */
    struct dependent *dep;
    size_t n_dep, dep_cap;
};

/* Inside a string or a comment nearly every token may come: what they do there is computed once. */
struct inside {
    uint32_t *bits;         /* tokens that end inside, in the state they began in */
    struct end {
        uint32_t node;
        uint8_t sub;        /* ... in another one */
    } *end;
    size_t n_end, end_cap;
    uint32_t *exit;         /* nodes whose byte is the first that ends it */
    size_t n_exit, exit_cap;
};

struct grammar {
    const struct tok *tok;
    bool promises, loose, typed, compact;
    pthread_mutex_t lock;
    /* table */
    struct pat *pat;
    struct sig *sig;
    struct word *word;
    struct part *part;
    size_t n_pat, pat_cap, n_sig, sig_cap, n_word, word_cap, n_part, part_cap, n_rest;
    const char **type;      /* names; parts joined for complex ones */
    size_t n_type, type_cap;
    uint8_t *tset;          /* [n_tset][n_type] */
    size_t n_tset, tset_cap;
    uint16_t keywords, titles; /* words */
    uint16_t endsec[7];     /* compact form: E, EN, ... among the keywords, since instances begin with theirs */
    struct avail *avail;
    size_t n_avail, avail_cap;
    uint32_t generation;    /* of avail: old numbers mean nothing in the next */
    /* the shortest instance: "=DIRECTION('',(0.,0.));\n", and tokens from each place on */
    struct buf canon;
    uint16_t *canon_need;
    uint16_t end_need[sizeof end_text], line_need; /* a whole instance, with the longest number */
    /* tokens */
    struct node *node;
    size_t n_node, node_cap;
    int32_t *same;          /* next token of the same bytes, or -1 */
    int32_t *stop;          /* what ends the text */
    size_t n_stop;
    int32_t n_ids;
    size_t words;
    struct inside inside[2]; /* strings, comments */
    /* masks */
    struct mask **table;    /* open addressing */
    size_t n_masks, table_size, max_masks;
};

struct grammar_state {
    struct grammar *g;
    struct lex x;
    int64_t left;
    uint32_t generation;
    uint16_t *type;         /* of instance i: type[i - 1]; typed only */
    uint32_t *first;        /* of each type set: the first instance in it; 0: none */
    size_t type_cap;
};

static int symbol(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= '0' && c <= '9' ? c - '0' + 26 : c == '_' ? 36 : c == '!' ? 37 : c == '+' ? 38 : c >= 'a' && c <= 'z' ? c - 'a' + 39 : -1;
}

static bool is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static int hex(unsigned char c)
{
    return is_digit(c) || (c >= 'A' && c <= 'F');
}

static bool space(unsigned char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* ---- the table is made flat ---- */

static uint16_t new_word(struct grammar *g)
{
    ARRAY_GROW(g->word, g->word_cap, g->n_word + 1);
    struct word *w = &g->word[g->n_word];
    memset(w, 0xff, sizeof *w);
    return (uint16_t)g->n_word++;
}

/* The end of s below root, which is made if it is not there; NONE: a character that no word has, or no room. */
static uint16_t add_word(struct grammar *g, uint16_t root, const char *s, size_t n)
{
    uint16_t at = root;
    for (size_t i = 0; i < n; i++) {
        int c = symbol((unsigned char)s[i]);
        if (c < 0 || g->n_word >= INF)
            return NONE;
        if (g->word[at].next[c] == NONE) {
            uint16_t next = new_word(g); /* moves the pool */
            g->word[at].next[c] = next;
        }
        at = g->word[at].next[c];
    }
    return at;
}

/* Children have higher numbers than their parents. */
static void word_rests(struct grammar *g)
{
    for (size_t i = g->n_word; i-- > 0;) {
        struct word *w = &g->word[i];
        w->rest = w->term != NONE ? 0 : INF;
        for (int c = 0; c < ALPHABET; c++)
            if (w->next[c] != NONE && g->word[w->next[c]].rest + 1 < w->rest)
                w->rest = (uint16_t)(g->word[w->next[c]].rest + 1);
    }
}

static uint16_t type_index(struct grammar *g, const char *name)
{
    for (size_t i = 0; i < g->n_type; i++)
        if (!strcmp(g->type[i], name))
            return (uint16_t)i;
    return NONE;
}

static uint16_t add_tset(struct grammar *g, const struct schema_pattern *p)
{
    uint8_t *set = xcalloc(g->n_type + 1, 1);
    if (!g->typed || !p->n_types)
        memset(set, 1, g->n_type);
    for (size_t i = 0; i < p->n_types; i++) {
        uint16_t t = type_index(g, p->types[i]);
        if (t != NONE)
            set[t] = 1;
    }
    size_t i = 0;
    while (i < g->n_tset && memcmp(g->tset + i * g->n_type, set, g->n_type))
        i++;
    if (i == g->n_tset) {
        size_t bytes = (g->n_tset + 1) * g->n_type;
        ARRAY_GROW(g->tset, g->tset_cap, bytes);
        memcpy(g->tset + i * g->n_type, set, g->n_type);
        g->n_tset++;
    }
    free(set);
    return (uint16_t)i;
}

static void set_bit(struct sig *s, uint16_t tset)
{
    uint8_t i = 0;
    while (i < s->n_bits && s->tset[i] != tset)
        i++;
    if (i < 32 && i == s->n_bits) /* more kinds of references than bits: see needs_avail() */
        s->tset[s->n_bits++] = tset;
}

static void new_pattern(struct grammar *g)
{
    ARRAY_GROW(g->pat, g->pat_cap, g->n_pat + 1);
    g->pat[g->n_pat++] = (struct pat){0};
}

static void fill_pattern(struct grammar *g, size_t at, const struct schema_pattern *p, struct sig *s)
{
    struct pat f = {.kinds = (uint16_t)p->kinds, .elem = NONE, .enums = NONE, .typed = NONE, .tset = NONE};
    if (p->kinds & SCHEMA_REF) {
        f.tset = add_tset(g, p);
        set_bit(s, f.tset);
    }
    if (p->kinds & SCHEMA_ENUM) {
        f.enums = new_word(g);
        for (size_t i = 0; i < p->n_enums; i++) {
            uint16_t w = add_word(g, f.enums, p->enums[i], strlen(p->enums[i]));
            if (w != NONE)
                g->word[w].term = 0;
        }
    }
    if (p->kinds & SCHEMA_LIST) {
        f.min = (uint16_t)(p->min > 200 ? 200 : p->min);
        f.max = (uint16_t)(p->max > 200 ? 0 : p->max);
        f.elem = (uint16_t)g->n_pat;
        new_pattern(g);
        fill_pattern(g, f.elem, p->elem, s);
        if (!p->elem->kinds) /* only ever empty */
            f.elem = NONE;
    }
    if (p->kinds & SCHEMA_TYPED) {
        f.typed = new_word(g);
        for (size_t i = 0; i < p->n_typed; i++) {
            uint16_t inner = (uint16_t)g->n_pat, w;
            new_pattern(g);
            fill_pattern(g, inner, p->typed[i].value, s);
            w = add_word(g, f.typed, p->typed[i].name, strlen(p->typed[i].name));
            if (w != NONE)
                g->word[w].term = inner;
        }
    }
    g->pat[at] = f;
}

static uint16_t add_sig(struct grammar *g, const struct schema_entity *e)
{
    struct sig s = {.pat = (uint16_t)g->n_pat, .n = (uint16_t)e->n_params, .counts = e->counts, .rest = (uint16_t)g->n_rest, .type = NONE,
                    .colour = e->kind == 's' && !strcmp(e->name, "COLOUR_RGB"),
                    .presentation = e->kind == 's' && !strcmp(e->name, "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION")};
    g->n_rest += e->n_params + 1;
    for (size_t i = 0; i < e->n_params; i++)
        new_pattern(g);
    for (size_t i = 0; i < e->n_params; i++)
        fill_pattern(g, s.pat + i, &e->param[i], &s);
    if (e->kind == 's')
        s.type = type_index(g, e->name);
    ARRAY_GROW(g->sig, g->sig_cap, g->n_sig + 1);
    g->sig[g->n_sig] = s;
    return (uint16_t)g->n_sig++;
}

static uint16_t new_part(struct grammar *g)
{
    uint16_t words = new_word(g);
    ARRAY_GROW(g->part, g->part_cap, g->n_part + 1);
    g->part[g->n_part] = (struct part){.words = words, .type = NONE};
    return (uint16_t)g->n_part++;
}

static int flatten(struct grammar *g, const struct schema *s)
{
    uint16_t *part_sig = xcalloc(s->n + 1, sizeof *part_sig);
    for (size_t i = 0; i < s->n; i++)
        if (s->v[i].kind != 'p') {
            ARRAY_GROW(g->type, g->type_cap, g->n_type + 1);
            g->type[g->n_type++] = s->v[i].name;
        }
    add_tset(g, &(struct schema_pattern){0}); /* there is one at least */
    g->keywords = new_word(g);
    for (size_t i = 1; g->compact && i < ARRAY_LEN(g->endsec); i++)
        g->endsec[i] = add_word(g, g->keywords, "ENDSEC", i);
    g->titles = new_word(g);
    new_part(g); /* 0: behind the parenthesis that opens a complex instance */
    bool room = true;
    for (size_t i = 0; i < s->n; i++)
        if (s->v[i].kind != 'c') {
            part_sig[i] = add_sig(g, &s->v[i]);
            if (s->v[i].kind == 's') {
                uint16_t w = add_word(g, g->keywords, s->v[i].name, strlen(s->v[i].name));
                if (w != NONE)
                    g->word[w].term = part_sig[i];
            }
        }
    for (size_t i = 0; i < s->n; i++) {
        const char *name = s->v[i].name;
        if (s->v[i].kind == 'p')
            continue;
        uint16_t title = add_word(g, g->titles, name, strlen(name));
        room &= title != NONE;
        if (title != NONE)
            g->word[title].term = 0;
        if (s->v[i].kind != 'c')
            continue;
        uint16_t at = 0;
        for (const char *p = name; p;) {
            const char *plus = strchr(p, '+');
            size_t n = plus ? (size_t)(plus - p) : strlen(p);
            uint16_t w = add_word(g, g->part[at].words, p, n);
            if (w == NONE) {
                room = false;
                break;
            }
            if (g->word[w].part == NONE) {
                uint16_t behind = new_part(g);
                g->word[w].part = behind;
                g->word[w].term = part_sig[schema_find(s, 'p', p, n) - s->v];
            }
            at = g->word[w].part;
            p = plus ? plus + 1 : NULL;
        }
        g->part[at].type = type_index(g, name);
    }
    static const char *const others[] = {"Cyclic", "Unattached"};
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        uint16_t w = add_word(g, g->titles, others[i], strlen(others[i]));
        if (w != NONE)
            g->word[w].term = 0;
    }
    free(part_sig);
    word_rests(g);
    if (!room || g->n_pat >= INF || g->n_rest >= INF || g->n_tset >= INF)
        return err_set(ERR_FORMAT, "the entity table is too large (over 60,000 places)");
    return ERR_OK;
}

/* ---- the way out ---- */

static uint16_t plus(uint32_t a, uint32_t b)
{
    return (uint16_t)(a >= INF || b >= INF || a + b >= INF ? INF : a + b);
}

static uint16_t least(uint16_t a, uint32_t b)
{
    return b < a ? (uint16_t)b : a;
}

/* Of a typed value, from inside its keyword: the rest of the word, parentheses and value. */
static uint16_t typed_need(const struct grammar *g, const struct avail *a, uint16_t w)
{
    const struct word *p = &g->word[w];
    uint16_t n = p->term != NONE ? plus(a->value[p->term], 2) : INF;
    for (int c = 0; c < ALPHABET; c++)
        if (p->next[c] != NONE)
            n = least(n, plus(typed_need(g, a, p->next[c]), 1));
    return n;
}

/* Bytes of the shortest value.  Where there is one without a reference that is taken, though one with may be
 * shorter: a bound from above is wanted, and references need something to refer to. */
static uint16_t value_need(const struct grammar *g, const struct avail *a, const struct pat *p)
{
    uint16_t n = INF;
    if (p->kinds & (SCHEMA_OMITTED | SCHEMA_DERIVED | SCHEMA_INT))
        n = 1;
    if (p->kinds & (SCHEMA_REAL | SCHEMA_STRING))
        n = least(n, 2);
    if (p->kinds & SCHEMA_BINARY)
        n = least(n, 3);
    if (p->kinds & SCHEMA_ENUM)
        n = least(n, plus(g->word[p->enums].rest, 2));
    if (p->kinds & SCHEMA_LIST) {
        uint32_t each = p->elem == NONE ? INF : a->value[p->elem];
        n = least(n, p->min == 0 ? 2 : each >= INF ? INF : 1 + p->min * (each + 1));
    }
    if (p->kinds & SCHEMA_TYPED)
        n = least(n, typed_need(g, a, p->typed));
    if (p->kinds & SCHEMA_REF && n == INF && a->have[p->tset])
        n = 1 + MAX_DIGITS;
    return n;
}

static uint16_t part_need(const struct grammar *g, struct avail *a, uint16_t i);

/* From inside a keyword to the end of the instance, ";\n" included. */
static uint16_t word_need(const struct grammar *g, struct avail *a, uint16_t i)
{
    const struct word *w = &g->word[i];
    uint16_t n = INF;
    if (w->term != NONE)
        n = plus(1u + a->rest[g->sig[w->term].rest], w->part == NONE ? 2 : part_need(g, a, w->part));
    for (int c = 0; c < ALPHABET; c++)
        if (w->next[c] != NONE)
            n = least(n, plus(word_need(g, a, w->next[c]), 1));
    return a->word[i] = n;
}

static uint16_t part_need(const struct grammar *g, struct avail *a, uint16_t i)
{
    uint16_t n = word_need(g, a, g->part[i].words);
    if (g->part[i].type != NONE)
        n = least(n, 3);
    return a->part[i] = n;
}

static bool count_ok(uint64_t counts, size_t n)
{
    return n == 0 ? counts >> 63 : n < 64 && counts >> (n - 1) & 1;
}

/* true: n parameters stand, and there may be more */
static bool more_ok(uint64_t counts, size_t n)
{
    counts &= ~((uint64_t)1 << 63);
    return n < 63 && counts >> n;
}

static void avail_fill(const struct grammar *g, struct avail *a)
{
    a->word = xmalloc(g->n_word * sizeof *a->word);
    a->value = xmalloc((g->n_pat + 1) * sizeof *a->value);
    a->rest = xmalloc((g->n_rest + 1) * sizeof *a->rest);
    a->part = xmalloc(g->n_part * sizeof *a->part);
    memset(a->word, 0xff, g->n_word * sizeof *a->word);
    for (size_t i = g->n_pat; i-- > 0;) /* elements and typed values have higher numbers than what holds them */
        a->value[i] = value_need(g, a, &g->pat[i]);
    for (size_t i = 0; i < g->n_sig; i++) {
        const struct sig *s = &g->sig[i];
        for (size_t k = s->n + 1u; k-- > 0;) {
            uint16_t n = count_ok(s->counts, k) ? 1 : INF;
            if (k < s->n && more_ok(s->counts, k))
                n = least(n, plus(plus(a->value[s->pat + k], k ? 1 : 0), a->rest[s->rest + k + 1]));
            a->rest[s->rest + k] = n;
        }
    }
    word_need(g, a, g->keywords);
    part_need(g, a, 0);
}

static uint16_t avail_find(struct grammar *g, const uint8_t *have)
{
    uint64_t h = fnv1a(FNV_INIT, have, g->n_tset);
    for (size_t i = g->n_avail; i-- > 0;)
        if (g->avail[i].hash == h && !memcmp(g->avail[i].have, have, g->n_tset))
            return (uint16_t)i;
    ARRAY_GROW(g->avail, g->avail_cap, g->n_avail + 1);
    struct avail *a = &g->avail[g->n_avail];
    *a = (struct avail){.hash = h, .have = xmalloc(g->n_tset + 1)};
    memcpy(a->have, have, g->n_tset);
    a->any = memchr(have, 1, g->n_tset) != NULL;
    avail_fill(g, a);
    return (uint16_t)g->n_avail++;
}

static void avail_release(struct grammar *g)
{
    for (size_t i = 0; i < g->n_avail; i++) {
        struct avail *a = &g->avail[i];
        free(a->have);
        free(a->word);
        free(a->value);
        free(a->rest);
        free(a->part);
    }
    g->n_avail = 0;
}

/* ==== one byte ==== */

static const char hex_need[] = {
    /* inside strings, by sub: bytes to the closing quote, it included */
    [0] = 1, [1] = 0, [2] = 2, [3] = 3, [4] = 2, [5] = 3, [6] = 2, [7] = 4, [8] = 3, [9] = 2, [10] = 10, [11] = 14,
    [12] = 9, [13] = 8, [14] = 7, [15] = 6, [16] = 13, [17] = 12, [18] = 11, [19] = 10, [20] = 9, [21] = 8, [22] = 7, [23] = 6,
    [24] = 4, [25] = 3, [26] = 2, [27] = 5, [28] = 5,
    [32] = 2, [33] = 3, [34] = 4, [35] = 3, [36] = 3, [37] = 4, [38] = 4,
};

static enum step to(struct lex *x, enum mode m, uint8_t sub)
{
    x->mode = (uint8_t)m;
    x->sub = sub;
    return OK;
}

/* A value begins: pattern p. */
static enum step value(struct lex *x, uint16_t pat)
{
    x->pat = pat;
    return to(x, M_VALUE, 0);
}

static void enter(const struct grammar *g, struct lex *x, uint16_t sig)
{
    const struct sig *s = &g->sig[sig];
    const struct avail *a = &g->avail[x->avail];
    x->sig = sig;
    x->param = 0;
    x->depth = 0;
    x->refok = 0;
    for (int i = 0; i < s->n_bits; i++)
        x->refok |= (uint32_t)a->have[s->tset[i]] << i;
    value(x, s->n ? s->pat : NONE);
    x->sub = count_ok(s->counts, 0); /* may close at once */
}

static enum step string_byte(const struct grammar *g, struct lex *x, unsigned char c)
{
    uint8_t s = x->sub;
    if (s == 0) {
        if (c == '\'')
            x->sub = 1;
        else if (c == '\\')
            x->sub = 2;
        else if (c >= 0xc2 && c < 0xe0)
            x->sub = 32;
        else if (c >= 0xe0 && c < 0xf0)
            x->sub = c == 0xe0 ? 35 : c == 0xed ? 36 : 33;
        else if (c >= 0xf0 && c < 0xf5)
            x->sub = c == 0xf0 ? 37 : c == 0xf4 ? 38 : 34;
        else if ((c < ' ' && !(g->loose && space(c))) || c > '~')
            return FAIL;
        return OK;
    }
    switch (s) {
    case 2: x->sub = c == '\\' ? 0 : c == 'S' ? 3 : c == 'P' ? 5 : c == 'X' ? 7 : 255; break;
    case 3: x->sub = c == '\\' ? 4 : 255; break;
    case 4: x->sub = c >= ' ' && c <= '~' && c != '\'' ? 0 : 255; break;
    case 5: x->sub = c >= 'A' && c <= 'I' ? 6 : 255; break;
    case 6: x->sub = c == '\\' ? 0 : 255; break;
    case 7: x->sub = c == '\\' ? 8 : c == '2' ? 10 : c == '4' ? 11 : 255; break;
    case 8: x->sub = hex(c) ? 9 : 255; break;
    case 9: x->sub = hex(c) ? 0 : 255; break;
    case 10: x->sub = c == '\\' ? 12 : 255; break;
    case 11: x->sub = c == '\\' ? 16 : 255; break;
    case 12: case 13: case 14: x->sub = hex(c) ? (uint8_t)(s + 1) : 255; break;
    case 15: x->sub = hex(c) ? 27 : 255; break;
    case 27: x->sub = hex(c) ? 13 : c == '\\' ? 24 : 255; break;
    case 16: /* four bytes, of which the first two are 0000 or 0001 ... 0010 */
    case 17: x->sub = c == '0' ? (uint8_t)(s + 1) : 255; break;
    case 18: x->sub = c == '0' || c == '1' ? (uint8_t)(s + 1) : 255; break;
    case 19: case 20: case 21: case 22: x->sub = hex(c) ? (uint8_t)(s + 1) : 255; break;
    case 23: x->sub = hex(c) ? 28 : 255; break;
    case 28: x->sub = c == '0' ? 17 : c == '\\' ? 24 : 255; break;
    case 24: x->sub = c == 'X' ? 25 : 255; break;
    case 25: x->sub = c == '0' ? 26 : 255; break;
    case 26: x->sub = c == '\\' ? 0 : 255; break;
    case 32: x->sub = c >= 0x80 && c < 0xc0 ? 0 : 255; break;
    case 33: x->sub = c >= 0x80 && c < 0xc0 ? 32 : 255; break;
    case 34: x->sub = c >= 0x80 && c < 0xc0 ? 33 : 255; break;
    case 35: x->sub = c >= 0xa0 && c < 0xc0 ? 32 : 255; break;
    case 36: x->sub = c >= 0x80 && c < 0xa0 ? 32 : 255; break;
    case 37: x->sub = c >= 0x90 && c < 0xc0 ? 33 : 255; break;
    case 38: x->sub = c >= 0x80 && c < 0x90 ? 33 : 255; break;
    default: return FAIL;
    }
    return x->sub == 255 ? FAIL : OK;
}

/* Numbers, by sub: 0 sign, 1 digits, 2 behind the point, 3 E, 4 its sign, 5 a digit 0 or 1 of the exponent, 8 another
 * digit, 6 and 7 the next ones (7 and 9: no more). */
static enum step number_byte(const struct grammar *g, struct lex *x, unsigned char c)
{
    unsigned kinds = g->pat[x->pat].kinds;
    bool d = is_digit(c);
    if (d && x->sub <= 2 && x->flags & FULL)
        return FAIL;
    switch (x->sub) {
    case 0: return d ? (x->length++, to(x, M_NUMBER, 1)) : FAIL;
    case 1:
        if (d) {
            x->length++;
            return OK;
        }
        if (c == '.' && kinds & SCHEMA_REAL)
            return to(x, M_NUMBER, 2);
        break;
    case 2:
        if (d) {
            x->length++;
            return OK;
        }
        if (c == 'E')
            return to(x, M_NUMBER, 3);
        break;
    case 3:
        if (c == '+' || c == '-')
            return to(x, M_NUMBER, 4);
        return d ? to(x, M_NUMBER, c <= '1' ? 5 : 8) : FAIL;
    case 4: return d ? to(x, M_NUMBER, c <= '1' ? 5 : 8) : FAIL;
    case 5: case 6:
        if (d)
            return to(x, M_NUMBER, x->sub == 5 ? 6 : 7);
        break;
    case 8:
        if (d)
            return to(x, M_NUMBER, 9);
        break;
    default: break;
    }
    return ASK; /* not part of it: the number ends here, if it may */
}

static bool number_may_end(const struct grammar *g, const struct lex *x)
{
    return x->sub == 2 || x->sub >= 5 || (x->sub == 1 && g->pat[x->pat].kinds & SCHEMA_INT);
}

/* ---- numbers of instances: only with the instances in hand ---- */

static bool is_target(const struct grammar_state *s, const struct lex *x, uint32_t v, uint16_t tset)
{
    const struct grammar *g = s->g;
    if (!v)
        return false;
    if (g->compact)
        return v <= x->n && (!g->typed || tset == NONE || g->tset[tset * g->n_type + s->type[x->n - v]]);
    if (v > x->n) /* itself, too: real files do that */
        return g->promises;
    return !g->typed || tset == NONE || g->tset[tset * g->n_type + s->type[v - 1]];
}

/* Some target's number begins with v, which has n digits. */
static bool leads_to_target(const struct grammar_state *s, const struct lex *x, uint32_t v, int n, uint16_t tset)
{
    if (!v || n > MAX_DIGITS)
        return false;
    if (s->g->promises)
        return true;
    if (!s->g->typed || tset == NONE)
        return v <= x->n;
    for (uint32_t from = v, span = 1; from <= x->n; from *= 10, span *= 10)
        for (uint32_t k = from; k < from + span && k <= x->n; k++)
            if (is_target(s, x, k, tset))
                return true;
    return false;
}

static uint32_t promised(const struct lex *x)
{
    uint32_t v = x->highest;
    if (x->mode == M_REF || (x->mode == M_COMMENT && x->sub == 8)) {
        v = x->num > v ? x->num : v;
    }
    return v;
}

/* A digit of a reference. */
static enum step ref_digit(const struct grammar_state *s, struct lex *x, unsigned char c, uint16_t tset)
{
    if (!s)
        return ASK;
    uint32_t v = x->num * 10 + (uint32_t)(c - '0');
    if (!leads_to_target(s, x, v, x->n_digits + 1, tset))
        return FAIL;
    x->num = v;
    x->n_digits++;
    x->flags &= (uint8_t)~ENDABLE;
    return OK;
}

/* The reference ends here, if it may. */
static enum step ref_end(const struct grammar_state *s, struct lex *x, uint16_t tset)
{
    if (s ? !is_target(s, x, x->num, tset) : !(x->flags & ENDABLE))
        return s ? FAIL : ASK;
    if (s && x->num > x->highest && x->num > x->n + 1)
        x->highest = x->num;
    x->flags &= (uint8_t)~ENDABLE;
    return OK;
}

/* ---- comments ---- */

static enum step note_byte(const struct grammar *g, struct lex *x, unsigned char c)
{
    const char *text;
    switch (x->sub) {
    case 0:
        if (c != (unsigned char)note_open[x->param])
            return FAIL;
        if (!note_open[++x->param]) {
            x->sub = 1;
            x->node = g->titles;
            x->param = 0;
        }
        return OK;
    case 1: {
        const struct word *w = &g->word[x->node];
        if (c == ' ' && w->term != NONE) {
            x->sub = 2;
            x->param = 1;
            x->node = 0;
            return OK;
        }
        int k = symbol(c);
        if (k < 0 || w->next[k] == NONE)
            return FAIL;
        x->node = w->next[k];
        return OK;
    }
    case 2:
        if (c != (unsigned char)note_mid[x->param])
            return FAIL;
        if (!note_mid[++x->param])
            x->sub = 3;
        return OK;
    case 3:
        if (c < '1' || c > '9')
            return FAIL;
        x->sub = c == '1' ? 4 : 5;
        x->param = 1;
        return OK;
    case 4: case 5:
        if (is_digit(c) && x->param < MAX_DIGITS) {
            x->param++;
            x->sub = 5;
            return OK;
        }
        if (c != ' ')
            return FAIL;
        x->sub = x->sub == 4 ? 6 : 7;
        x->param = 1;
        return OK;
    default:
        text = x->sub == 6 ? note_one : note_many;
        if (c != (unsigned char)text[x->param])
            return FAIL;
        if (!text[++x->param]) {
            x->flags |= AFTER_NOTE;
            x->param = 0;
            x->node = 0;
            return to(x, M_LINE, 0);
        }
        return OK;
    }
}

/* Comments of the reference form: any, but the text of a key must be one. */
static enum step comment_byte(const struct grammar_state *s, struct lex *x, unsigned char c)
{
    static const char id[] = "ID_";
    switch (x->sub) {
    case 0: return c == '*' ? (x->sub = 1, OK) : FAIL;
    case 1: case 2: case 3:
        if (x->sub == 1 && space(c))
            return OK;
        x->sub = c == (unsigned char)id[x->sub - 1] ? (uint8_t)(x->sub + 1) : c == '*' ? 21 : 20;
        break;
    case 4: x->sub = is_digit(c) ? 5 : c == '*' ? 21 : 20; x->length = 1; break;
    case 5:
        if (is_digit(c))
            return ++x->length < 9 ? OK : FAIL;
        x->sub = space(c) ? 6 : c == '=' ? 7 : 255;
        break;
    case 6: x->sub = space(c) ? 6 : c == '=' ? 7 : 255; break;
    case 7:
        if (space(c))
            return OK;
        if (!is_digit(c))
            return FAIL;
        x->num = 0;
        x->n_digits = 0;
        x->sub = 8;
        return ref_digit(s, x, c, NONE);
    case 8: {
        if (is_digit(c))
            return ref_digit(s, x, c, NONE);
        enum step e = ref_end(s, x, NONE);
        if (e != OK)
            return e;
        x->sub = space(c) ? 9 : c == '*' ? 10 : 255;
        break;
    }
    case 9: x->sub = space(c) ? 9 : c == '*' ? 10 : 255; break;
    case 20: x->sub = c == '*' ? 21 : 20; break;
    default: /* 10, 21: behind a star */
        if (c == '/') {
            enum mode m = (enum mode)x->back;
            uint8_t sub = x->back_sub;
            x->back = x->back_sub = 0;
            return to(x, m, sub);
        }
        if (x->sub == 10)
            return FAIL;
        x->sub = c == '*' ? 21 : 20;
        break;
    }
    return x->sub == 255 || (c < ' ' && !space(c)) || c == 127 ? FAIL : OK;
}

/* ---- all ---- */

static enum step close_value(const struct grammar *g, struct lex *x, unsigned char c);
static uint32_t local_need(const struct grammar *g, const struct lex *x);

/* Compact form: how many letters of ENDSEC the keyword in hand may be. */
static int ending(const struct grammar *g, const struct lex *x)
{
    for (int i = 1; g->compact && !(x->flags & IN_COMPLEX) && i < (int)ARRAY_LEN(g->endsec); i++)
        if (g->endsec[i] == x->node)
            return g->avail[x->avail].any ? i : 0;
    return 0;
}

static enum step keyword_byte(const struct grammar *g, struct lex *x, unsigned char c)
{
    int k = symbol(c);
    if (k < 0 || g->word[x->node].next[k] == NONE)
        return FAIL;
    x->node = g->word[x->node].next[k];
    return g->avail[x->avail].word[x->node] < INF || ending(g, x) ? to(x, M_KEY, 0) : FAIL;
}

/* The parenthesis behind a keyword: what must be there for this instance has to be. */
static enum step open_params(const struct grammar *g, struct lex *x)
{
    const struct word *w = &g->word[x->node];
    const struct avail *a = &g->avail[x->avail];
    if (w->term == NONE || plus(a->rest[g->sig[w->term].rest], w->part == NONE ? 2 : a->part[w->part]) >= INF)
        return FAIL;
    x->part = w->part;
    x->node = 0;
    enter(g, x, w->term);
    return OK;
}

/* s NULL: the instances are not known, and ASK is said where they decide. */
static enum step byte(const struct grammar *g, const struct grammar_state *s, struct lex *x, unsigned char c)
{
    const struct pat *p;
    int k;
    enum step e;
    if (x->canon) {
        if ((unsigned char)g->canon.s[x->canon - 1] == c)
            x->canon++;
        else
            x->canon = 0;
        if (x->canon > g->canon.n)
            x->canon = 0;
    }
    /* White space and comments between the parts of an instance */
    if (g->loose && (space(c) || c == '/')) {
        switch (x->mode) {
        case M_REF:
            if ((e = ref_end(s, x, g->pat[x->pat].tset)) != OK)
                return e;
            to(x, M_AFTER, 0);
            break;
        case M_NUMBER:
            if (!number_may_end(g, x))
                return FAIL;
            to(x, M_AFTER, 0);
            break;
        case M_STRING:
            if (x->sub == 1)
                to(x, M_AFTER, 0);
            break;
        case M_PLACEHOLDER:
            if (x->sub < 3)
                return FAIL;
            to(x, M_AFTER, 0);
            break;
        case M_KEY:
            to(x, M_KEYWS, 0);
            if (g->word[x->node].term == NONE || local_need(g, x) >= INF)
                return FAIL;
            break;
        case M_TYPED:
            if (g->word[x->node].term == NONE || g->avail[x->avail].value[g->word[x->node].term] >= INF)
                return FAIL;
            to(x, M_TYPEDWS, 0);
            break;
        default: break;
        }
        switch (x->mode) {
        case M_LINE: case M_EQ: case M_HEAD: case M_KEYWS: case M_VALUE: case M_AFTER: case M_TYPEDWS: case M_PART: case M_SEMI:
            if (c == '/') {
                x->back = x->mode;
                x->back_sub = x->sub;
                return to(x, M_COMMENT, 0);
            }
            return OK;
        default: break;
        }
    }
    switch ((enum mode)x->mode) {
    case M_LINE:
        if (g->compact && x->flags & COMMIT && !s) /* what may come has changed with the instance that ended */
            return ASK;
        if (g->compact && c != '/') {
            to(x, M_HEAD, 0);
            return byte(g, s, x, c);
        }
        if (c == '#') {
            x->flags = 0;
            x->num = 0;
            x->n_digits = 0;
            return to(x, M_DEF, 0);
        }
        if (c == '/' && !(x->flags & AFTER_NOTE)) { /* strict: white space was seen to above */
            x->flags = 0;
            x->param = 1;
            return to(x, M_NOTE, 0);
        }
        if (c == 'E' && !(x->flags & AFTER_NOTE)) {
            if (!s)
                return ASK;
            if (!x->n || x->n < x->highest)
                return FAIL;
            x->flags = 0;
            return to(x, M_END, 1);
        }
        return FAIL;
    case M_DATA:
        if (g->loose && x->sub == 5)
            return space(c) ? to(x, M_LINE, 0) : FAIL;
        if (c != (unsigned char)data_text[x->sub])
            return FAIL;
        return data_text[++x->sub] ? OK : to(x, M_LINE, 0);
    case M_DEF: {
        if (!s)
            return ASK;
        uint32_t due = x->n + 1, scale = 1;
        int n = 1;
        for (uint32_t v = due; v >= 10; v /= 10, n++)
            scale *= 10;
        for (int i = 0; i < x->sub; i++)
            scale /= 10;
        if (c != '0' + due / scale % 10)
            return FAIL;
        if (++x->sub == n) { /* never in the compact form */
            x->canon = 1;
            return to(x, M_EQ, 0);
        }
        return OK;
    }
    case M_EQ: return c == '=' ? to(x, M_HEAD, 0) : FAIL;
    case M_HEAD:
        if (c == '(') {
            if (g->avail[x->avail].part[0] >= INF)
                return FAIL;
            x->flags = IN_COMPLEX | FIRST_PART;
            x->part = 0;
            return to(x, M_PART, 0);
        }
        x->flags = 0;
        x->node = g->keywords;
        return keyword_byte(g, x, c);
    case M_PART:
        if (c == ')' && !(x->flags & FIRST_PART) && g->part[x->part].type != NONE)
            return to(x, M_SEMI, 0);
        x->flags &= (uint8_t)~FIRST_PART;
        x->node = g->part[x->part].words;
        return keyword_byte(g, x, c);
    case M_KEY:
        if (c == ';' && ending(g, x) == 6) {
            x->node = 0;
            return to(x, M_END, 7);
        }
        return c == '(' ? open_params(g, x) : keyword_byte(g, x, c);
    case M_KEYWS: return c == '(' ? open_params(g, x) : FAIL;
    case M_VALUE:
        if (c == ')' && x->sub)
            return close_value(g, x, c);
        if (x->pat == NONE)
            return FAIL;
        p = &g->pat[x->pat];
        if (c == '$')
            return p->kinds & SCHEMA_OMITTED ? to(x, M_AFTER, 0) : FAIL;
        if (c == '*')
            return p->kinds & SCHEMA_DERIVED ? to(x, M_AFTER, 0) : FAIL;
        if (c == '\'')
            return p->kinds & SCHEMA_STRING ? to(x, M_STRING, 0) : FAIL;
        if (c == '"')
            return p->kinds & SCHEMA_BINARY ? to(x, M_BINARY, 0) : FAIL;
        if (c == '#') {
            if (!(p->kinds & SCHEMA_REF) || !g->avail[x->avail].have[p->tset])
                return FAIL;
            x->num = 0;
            x->n_digits = 0;
            return to(x, M_REF0, 0);
        }
        if (c == '.') {
            x->node = p->enums;
            return p->kinds & SCHEMA_ENUM ? to(x, M_ENUM, 0) : FAIL;
        }
        if (c == '(') {
            if (!(p->kinds & SCHEMA_LIST) || x->depth == MAX_FRAMES)
                return FAIL;
            x->frame[x->depth++] = (struct frame){.pat = x->pat};
            /* What the elements need may be lacking: then only the empty list is left. */
            bool any = p->elem != NONE && (g->avail[x->avail].value[p->elem] < INF);
            if (p->min && !any)
                return FAIL;
            value(x, any ? p->elem : NONE);
            x->sub = p->min == 0;
            return OK;
        }
        if (is_digit(c) || c == '+' || c == '-') {
            if (!(p->kinds & (SCHEMA_INT | SCHEMA_REAL)))
                return FAIL;
            x->length = is_digit(c);
            x->flags &= (uint8_t)~FULL;
            return to(x, M_NUMBER, is_digit(c));
        }
        if (c == ',' && g->loose && g->sig[x->sig].colour && x->param == 0 && !x->depth) { /* COLOUR_RGB( , 0.5, ...) */
            to(x, M_AFTER, 0);
            return close_value(g, x, c);
        }
        k = symbol(c);
        if (k >= 0 && p->kinds & SCHEMA_TYPED && x->depth < MAX_FRAMES) {
            x->node = g->word[p->typed].next[k];
            if (x->node == NONE || typed_need(g, &g->avail[x->avail], x->node) >= INF)
                return FAIL;
            return to(x, M_TYPED, 0);
        }
        return FAIL;
    case M_TYPED:
        k = symbol(c);
        if (k >= 0) {
            uint16_t next = g->word[x->node].next[k];
            if (next == NONE || typed_need(g, &g->avail[x->avail], next) >= INF)
                return FAIL;
            x->node = next;
            return OK;
        }
        /* fall through */
    case M_TYPEDWS: {
        uint16_t inner = g->word[x->node].term;
        if (c != '(' || inner == NONE || g->avail[x->avail].value[inner] >= INF)
            return FAIL;
        x->frame[x->depth++] = (struct frame){.pat = x->pat, .typed = true};
        x->node = 0;
        return value(x, inner);
    }
    case M_REF0:
        if (c == 'I' && g->loose && g->sig[x->sig].presentation)
            return to(x, M_PLACEHOLDER, 0);
        if (!is_digit(c))
            return FAIL;
        if ((e = ref_digit(s, x, c, g->pat[x->pat].tset)) == OK)
            to(x, M_REF, 0);
        return e;
    case M_REF:
        if (is_digit(c))
            return ref_digit(s, x, c, g->pat[x->pat].tset);
        if ((e = ref_end(s, x, g->pat[x->pat].tset)) != OK)
            return e;
        return close_value(g, x, c);
    case M_PLACEHOLDER: { /* #ID_7 */
        static const char rest[] = "D_";
        if (x->sub < 2)
            return c == (unsigned char)rest[x->sub] ? (x->sub++, OK) : FAIL;
        if (is_digit(c))
            return x->sub < 8 ? (x->sub++, OK) : FAIL;
        return x->sub > 2 ? close_value(g, x, c) : FAIL;
    }
    case M_NUMBER:
        e = number_byte(g, x, c);
        return e == ASK ? (number_may_end(g, x) ? close_value(g, x, c) : FAIL) : e;
    case M_STRING:
        if (x->sub == 1) {
            if (c == '\'')
                return to(x, M_STRING, 0);
            return close_value(g, x, c);
        }
        return string_byte(g, x, c);
    case M_ENUM:
        if (c == '.') {
            if (g->word[x->node].term == NONE)
                return FAIL;
            x->node = 0;
            return to(x, M_AFTER, 0);
        }
        k = symbol(c);
        if (k < 0 || g->word[x->node].next[k] == NONE)
            return FAIL;
        x->node = g->word[x->node].next[k];
        return OK;
    case M_BINARY:
        if (x->sub == 0)
            return c >= '0' && c <= '3' ? (x->sub = 1, OK) : FAIL;
        return c == '"' ? to(x, M_AFTER, 0) : hex(c) ? OK : FAIL;
    case M_AFTER: return close_value(g, x, c);
    case M_SEMI:
        if (c != ';')
            return FAIL;
        x->flags = COMMIT;
        x->n++;
        return to(x, g->loose ? M_LINE : M_NL, 0);
    case M_NL: return c == '\n' ? to(x, M_LINE, 0) : FAIL;
    case M_NOTE: return note_byte(g, x, c);
    case M_COMMENT: return comment_byte(s, x, c);
    case M_END:
        if (g->loose && (x->sub == 7 || x->sub == 8) && space(c))
            return to(x, M_END, 8);
        if (c != (unsigned char)end_text[x->sub])
            return FAIL;
        return end_text[++x->sub] ? OK : to(x, M_DONE, 0);
    case M_DONE: return c == '\n' && x->sub < 2 ? (x->sub++, OK) : FAIL;
    default: return FAIL;
    }
}

/* Behind a value: ',' or ')'. */
static enum step close_value(const struct grammar *g, struct lex *x, unsigned char c)
{
    bool none = x->mode == M_VALUE; /* "()" */
    x->flags &= (uint8_t)~FULL;
    if (x->depth) {
        struct frame *f = &x->frame[x->depth - 1];
        const struct pat *p = &g->pat[f->pat];
        uint32_t n = none ? 0 : f->count + 1u;
        if (f->typed) {
            if (c != ')')
                return FAIL;
        } else if (c == ',') {
            if (none || (p->max && n >= p->max))
                return FAIL;
            uint32_t cap = p->max > p->min ? p->max : p->min; /* more is not told apart */
            f->count = (uint8_t)(n < cap ? n : cap);
            return value(x, p->elem);
        } else if (c != ')' || n < p->min) {
            return FAIL;
        }
        x->pat = f->pat;
        *f = (struct frame){0};
        x->depth--;
        return to(x, M_AFTER, 0);
    }
    const struct sig *s = &g->sig[x->sig];
    size_t n = none ? 0 : x->param + 1u;
    if (c == ',') {
        if (none || g->avail[x->avail].rest[s->rest + n] >= INF || !more_ok(s->counts, n))
            return FAIL;
        x->param++;
        return value(x, (uint16_t)(s->pat + x->param));
    }
    if (c != ')' || !count_ok(s->counts, n))
        return FAIL;
    x->refok = 0;
    x->param = 0;
    x->pat = 0;
    return to(x, x->flags & IN_COMPLEX ? M_PART : M_SEMI, 0);
}

/* ==== tokens still needed ==== */

static uint32_t digits(uint32_t v)
{
    uint32_t n = 1;
    for (; v >= 10; v /= 10)
        n++;
    return n;
}

/* Instances from to up to and with `last`, each the shortest. */
static uint64_t lines_need(const struct grammar *g, uint32_t from, uint32_t last)
{
    uint64_t sum = 0;
    if (g->compact)
        return last < from ? 0 : (uint64_t)(last - from + 1) * g->line_need;
    for (uint32_t scale = 1, n = 1; from <= last && n < 10; scale *= 10, n++) {
        uint32_t top = scale * 10 - 1 < last ? scale * 10 - 1 : last;
        if (from <= top) {
            sum += (uint64_t)(top - from + 1) * (1 + n + g->canon_need[0]);
            from = top + 1;
        }
    }
    return sum;
}

/* Behind a value of the list or instance in hand, to the end of the instance. */
static uint32_t after_need(const struct grammar *g, const struct lex *x)
{
    const struct avail *a = &g->avail[x->avail];
    uint32_t sum = 0;
    for (int i = x->depth; i-- > 0;) {
        const struct frame *f = &x->frame[i];
        const struct pat *p = &g->pat[f->pat];
        if (!f->typed && f->count + 1u < p->min)
            sum += (p->min - f->count - 1u) * (1u + a->value[p->elem]);
        sum += 1;
    }
    sum += a->rest[g->sig[x->sig].rest + x->param + 1];
    return sum + (x->flags & IN_COMPLEX ? a->part[x->part] : 2);
}

/* "()" instead of a value, where it may close; else the value and what comes behind. */
static uint32_t value_way(const struct grammar *g, const struct lex *x)
{
    const struct avail *a = &g->avail[x->avail];
    uint32_t best = INF;
    if (x->pat != NONE && a->value[x->pat] < INF)
        best = a->value[x->pat] + after_need(g, x);
    if (x->sub) {
        struct lex y = *x;
        if (close_value(g, &y, ')') == OK) {
            uint32_t n = 1 + (y.mode == M_AFTER ? after_need(g, &y) : y.mode == M_PART ? a->part[y.part] : 2);
            best = n < best ? n : best;
        }
    }
    return best;
}

/* Of the instance or comment in hand. */
static uint32_t local_need(const struct grammar *g, const struct lex *x)
{
    const struct avail *a = &g->avail[x->avail];
    if (x->canon)
        return g->canon_need[x->canon - 1];
    switch ((enum mode)x->mode) {
    case M_DATA: return (uint32_t)sizeof data_text - 1 - x->sub;
    case M_EQ: return 1u + least(a->word[g->keywords], plus(a->part[0], 1));
    case M_HEAD: return least(a->word[g->keywords], plus(a->part[0], 1));
    case M_KEY: return a->word[x->node]; /* ENDSEC of the compact form: see need() */
    case M_KEYWS: { /* the word is this one, not one that begins so */
        const struct word *w = &g->word[x->node];
        return plus(1u + a->rest[g->sig[w->term].rest], w->part == NONE ? 2 : a->part[w->part]);
    }
    case M_PART: return x->flags & FIRST_PART ? a->word[g->part[x->part].words] : a->part[x->part];
    case M_VALUE: return value_way(g, x);
    case M_REF0: return MAX_DIGITS + after_need(g, x);
    case M_REF: return (x->flags & ENDABLE ? 0 : (uint32_t)(MAX_DIGITS - x->n_digits)) + after_need(g, x);
    case M_PLACEHOLDER: return (x->sub < 3 ? 3u - x->sub : 0) + after_need(g, x);
    case M_NUMBER: {
        uint32_t n = number_may_end(g, x) ? 0 : x->sub == 0 ? (g->pat[x->pat].kinds & SCHEMA_INT ? 1 : 2) : 1;
        return n + after_need(g, x);
    }
    case M_STRING: return (uint32_t)hex_need[x->sub] + after_need(g, x);
    case M_ENUM: return g->word[x->node].rest + 1u + after_need(g, x);
    case M_BINARY: return (x->sub ? 1 : 2) + after_need(g, x);
    case M_TYPED: return typed_need(g, a, x->node) + after_need(g, x);
    case M_TYPEDWS: return a->value[g->word[x->node].term] + 2u + after_need(g, x);
    case M_AFTER: return after_need(g, x);
    case M_SEMI: return 2;
    case M_NL: return 1;
    case M_NOTE:
        switch (x->sub) {
        case 0: return (uint32_t)(sizeof note_open - 1 - x->param + g->word[g->titles].rest + sizeof note_mid - 1 + sizeof note_one);
        case 1: return (uint32_t)(g->word[x->node].rest + sizeof note_mid - 1 + sizeof note_one);
        case 2: return (uint32_t)(sizeof note_mid - 1 - x->param + sizeof note_one);
        case 3: return sizeof note_one;
        case 4: return sizeof note_one - 1;
        case 5: return sizeof note_many - 1;
        case 6: return (uint32_t)(sizeof note_one - 1 - x->param);
        default: return (uint32_t)(sizeof note_many - 1 - x->param);
        }
    default: return 0;
    }
}

static bool awaits_line(const struct lex *x)
{
    return x->mode == M_LINE || x->mode == M_DATA || x->mode == M_NL || x->mode == M_NOTE;
}

static uint64_t need(const struct grammar *g, const struct lex *x)
{
    if (x->mode == M_DONE)
        return 1;
    if (x->mode == M_END)
        return g->end_need[x->sub] + 1u;
    struct lex y;
    uint32_t last = promised(x), behind = 0;
    if (x->mode == M_COMMENT) { /* closes, then goes on */
        static const uint8_t close[] = {[0] = 3, [1] = 2, [2] = 2, [3] = 2, [4] = 2, [5] = 2 + 1 + MAX_DIGITS, [6] = 2 + 1 + MAX_DIGITS,
                                        [7] = 2 + MAX_DIGITS, [8] = 2, [9] = 2, [10] = 1, [20] = 2, [21] = 1};
        behind = close[x->sub];
        y = *x;
        y.mode = x->back;
        y.sub = x->back_sub;
        x = &y;
    }
    uint32_t n = x->n; /* instances that are paid for */
    uint64_t sum = behind;
    if (awaits_line(x)) {
        sum += local_need(g, x);
        if (x->mode == M_NOTE || x->flags & AFTER_NOTE || !n)
            last = last > n ? last : n + 1;
    } else if (x->mode == M_DEF) {
        n++;
        sum += digits(n) - x->sub + (uint64_t)g->canon_need[0];
    } else {
        int i = x->mode == M_KEY ? ending(g, x) : 0;
        uint32_t local = local_need(g, x);
        if (i && g->end_need[i] + 1u < local)
            return g->end_need[i] + 1u;
        n++;
        sum += local;
    }
    return sum + lines_need(g, n + 1, last) + g->end_need[0] + 1;
}

/* ==== masks ==== */

static void set_token(const struct grammar *g, uint32_t *bits, int32_t id)
{
    for (; id >= 0; id = g->same[id])
        bits[(uint32_t)id / 32] |= (uint32_t)1 << ((uint32_t)id % 32);
}

/* Whether a reference that could end here may. */
static void settle(const struct grammar_state *s, struct lex *x)
{
    const struct grammar *g = s->g;
    x->flags &= (uint8_t)~ENDABLE;
    if (x->mode == M_REF && is_target(s, x, x->num, g->pat[x->pat].tset))
        x->flags |= ENDABLE;
    if (x->mode == M_COMMENT && x->sub == 8 && is_target(s, x, x->num, NONE))
        x->flags |= ENDABLE;
}

static uint16_t type_of(const struct grammar *g, const struct lex *x)
{
    return x->part != NONE ? g->part[x->part].type : g->sig[x->sig].type;
}

/* Puts the instance that x is about to end (';' comes next) into s. */
static void define(struct grammar_state *s, const struct lex *x)
{
    const struct grammar *g = s->g;
    if (!g->typed)
        return;
    uint32_t id = x->n + 1;
    ARRAY_GROW(s->type, s->type_cap, id);
    uint16_t t = s->type[id - 1] = type_of(g, x);
    for (size_t i = 0; i < g->n_tset; i++)
        if (!s->first[i] && g->tset[i * g->n_type + t])
            s->first[i] = id;
}

static void undefine(struct grammar_state *s, uint32_t id)
{
    for (size_t i = 0; s->g->typed && i < s->g->n_tset; i++)
        if (s->first[i] == id)
            s->first[i] = 0;
}

static uint16_t avail_now(struct grammar_state *s, uint32_t n)
{
    struct grammar *g = s->g;
    if (!g->typed)
        return n || g->promises ? 1 : 0;
    uint8_t have[4096];
    for (size_t i = 0; i < g->n_tset; i++)
        have[i] = s->first[i] != 0;
    return avail_find(g, have);
}

/* One byte with the instances in hand; *defined counts what was put into s on the way. */
static bool walk(struct grammar_state *s, struct lex *x, unsigned char c, int *defined)
{
    struct lex y = *x;
    if (byte(s->g, s, x, c) != OK)
        return false;
    if (x->flags & COMMIT) {
        define(s, &y);
        x->flags = 0;
        x->avail = avail_now(s, x->n);
        ++*defined;
    }
    return true;
}

/* Every token below `at` (whose byte is behind x already) that may come, with the instances in hand. */
static void search(struct grammar_state *s, const struct lex *x, uint32_t at, uint32_t *bits)
{
    const struct grammar *g = s->g;
    const struct node *t = &g->node[at];
    if (t->token >= 0) {
        struct lex y = *x;
        settle(s, &y);
        if ((int64_t)need(g, &y) < s->left)
            set_token(g, bits, t->token);
    }
    for (uint32_t i = t->child; i < t->child + t->n; i++) {
        struct lex y = *x;
        int defined = 0;
        if (walk(s, &y, g->node[i].byte, &defined))
            search(s, &y, i, bits);
        if (defined)
            undefine(s, y.n);
    }
}

/* need() less what instances promised and the end of the text take; not below it. */
static uint32_t bound(const struct grammar *g, const struct lex *x)
{
    struct lex y = *x;
    if (x->mode == M_COMMENT) {
        y.mode = x->back;
        y.sub = x->back_sub;
        return 3 + 2 + MAX_DIGITS + bound(g, &y);
    }
    if (x->mode == M_END || x->mode == M_DONE)
        return x->mode == M_END ? g->end_need[x->sub] : 0;
    if (x->mode == M_KEY && ending(g, x)) {
        uint32_t n = local_need(g, x), end = g->end_need[ending(g, x)] + 1u;
        return n < end ? n : end;
    }
    return x->mode == M_NOTE || x->mode == M_DEF || x->flags & AFTER_NOTE ? local_need(g, x) + g->line_need : local_need(g, x);
}

/* The same without the instances: what depends on them is put down. */
static void sketch(const struct grammar *g, struct mask *m, const struct lex *x, uint32_t at)
{
    const struct node *t = &g->node[at];
    if (t->token >= 0) {
        set_token(g, m->bits, t->token);
        uint32_t n = bound(g, x);
        m->most = n > m->most ? (uint16_t)(n < INF ? n : INF) : m->most;
    }
    for (uint32_t i = t->child; i < t->child + t->n; i++) {
        struct lex y = *x;
        switch (byte(g, NULL, &y, g->node[i].byte)) {
        case OK:
            y.flags &= (uint8_t)(g->compact ? 0xff : ~COMMIT);
            sketch(g, m, &y, i);
            break;
        case ASK:
            ARRAY_GROW(m->dep, m->dep_cap, m->n_dep + 1);
            m->dep[m->n_dep++] = (struct dependent){.node = i, .x = *x};
            break;
        default: break;
        }
    }
}

static const struct inside *inside_of(const struct grammar *g, const struct lex *x)
{
    return x->mode == M_STRING && x->sub == 0 ? &g->inside[0] : x->mode == M_COMMENT && x->sub == 20 ? &g->inside[1] : NULL;
}

/* The state behind an exit's byte. */
static struct lex leave(const struct grammar *g, const struct inside *in, const struct lex *x, uint32_t exit)
{
    struct lex y = *x;
    const struct node *root = &g->node[0];
    if (exit >= root->child && exit < root->child + root->n) { /* a single byte */
        byte(g, NULL, &y, g->node[exit].byte);
        return y;
    }
    y.canon = 0;
    if (in == &g->inside[0]) {
        y.sub = 1;
    } else {
        y.mode = x->back;
        y.sub = x->back_sub;
        y.back = y.back_sub = 0;
    }
    return y;
}

static bool needs_avail(const struct grammar *g, const struct lex *x)
{
    return x->mode == M_EQ || x->mode == M_HEAD || x->mode == M_KEY || x->mode == M_KEYWS || x->flags & IN_COMPLEX ||
           g->sig[x->sig].n_bits == 32 || (g->compact && awaits_line(x));
}

/* Every token that may come. */
static void search_all(struct grammar_state *s, const struct lex *x, uint32_t *bits)
{
    const struct grammar *g = s->g;
    const struct inside *in = inside_of(g, x);
    memset(bits, 0, g->words * sizeof *bits);
    if (!in) {
        search(s, x, 0, bits);
        return;
    }
    struct lex y = *x;
    y.canon = 0;
    if ((int64_t)need(g, &y) < s->left)
        memcpy(bits, in->bits, g->words * sizeof *bits);
    for (size_t k = 0; k < in->n_end; k++) {
        y.sub = in->end[k].sub;
        if ((int64_t)need(g, &y) < s->left)
            set_token(g, bits, g->node[in->end[k].node].token);
    }
    for (size_t k = 0; k < in->n_exit; k++) {
        y = leave(g, in, x, in->exit[k]);
        search(s, &y, in->exit[k], bits);
    }
}

static void masks_release(struct grammar *g)
{
    for (size_t i = 0; i < g->table_size; i++)
        if (g->table[i]) {
            free(g->table[i]->bits);
            free(g->table[i]->dep);
            free(g->table[i]);
            g->table[i] = NULL;
        }
    g->n_masks = 0;
}

static const struct mask *mask_find(struct grammar *g, const struct lex *x)
{
    struct {
        unsigned char key[KEY_BYTES];
        uint32_t avail;
    } key;
    memcpy(key.key, x, KEY_BYTES);
    key.avail = needs_avail(g, x) ? x->avail + 1u : 0;
    uint64_t h = fnv1a(FNV_INIT, &key, sizeof key);
    size_t i = h & (g->table_size - 1);
    for (; g->table[i]; i = (i + 1) & (g->table_size - 1))
        if (g->table[i]->hash == h && !memcmp(g->table[i]->key, &key, sizeof key))
            return g->table[i];
    if (g->n_masks >= g->max_masks) {
        masks_release(g);
        i = h & (g->table_size - 1);
    }
    struct mask *m = xcalloc(1, sizeof *m);
    memcpy(m->key, &key, sizeof key);
    m->hash = h;
    m->bits = xcalloc(g->words, sizeof *m->bits);
    struct lex y = *x;
    y.n = y.highest = 0;
    const struct inside *in = inside_of(g, x);
    if (in) {
        memcpy(m->bits, in->bits, g->words * sizeof *m->bits);
        for (size_t k = 0; k < in->n_end; k++)
            set_token(g, m->bits, g->node[in->end[k].node].token);
        y.canon = 0;
        m->most = (uint16_t)(14 + bound(g, &y)); /* a four-byte character is the dearest to close */
        for (size_t k = 0; k < in->n_exit; k++) {
            struct lex z = leave(g, in, x, in->exit[k]);
            z.n = z.highest = 0;
            sketch(g, m, &z, in->exit[k]);
        }
    } else {
        sketch(g, m, &y, 0);
    }
    g->table[i] = m;
    g->n_masks++;
    return m;
}

static void set_stops(const struct grammar *g, uint32_t *words)
{
    for (size_t i = 0; i < g->n_stop; i++)
        words[(uint32_t)g->stop[i] / 32] |= (uint32_t)1 << ((uint32_t)g->stop[i] % 32);
}

/* The numbers of `avail` are those of this generation. */
static void refresh(struct grammar_state *s)
{
    struct grammar *g = s->g;
    if (g->typed && g->n_avail > 500) {
        avail_release(g);
        masks_release(g);
        g->generation++;
    }
    if (s->generation != g->generation) {
        s->generation = g->generation;
        s->x.avail = avail_now(s, s->x.n);
    }
}

void grammar_fill(struct grammar_state *s, uint32_t *words, size_t n_words)
{
    struct grammar *g = s->g;
    if (n_words < g->words)
        return;
    pthread_mutex_lock(&g->lock);
    refresh(s);
    struct lex x = s->x;
    settle(s, &x);
    if (x.mode == M_DONE) {
        memset(words, 0, g->words * sizeof *words);
        set_stops(g, words);
    } else if (x.mode == M_DEF) {
        search_all(s, &x, words);
    } else {
        const struct mask *m = mask_find(g, &x);
        /* The instance in hand is in `most`; what a token begins, too. */
        bool between = awaits_line(&x) || x.mode == M_COMMENT;
        uint32_t last = promised(&x), from = x.n + (between ? 1 : 2);
        last = between && !x.n && !last ? 1 : last;
        uint64_t most = m->most + lines_need(g, from, last) + g->end_need[0] + 1;
        if ((int64_t)most < s->left) {
            memcpy(words, m->bits, g->words * sizeof *words);
            for (size_t i = 0; i < m->n_dep; i++) {
                struct lex y = m->dep[i].x;
                int defined = 0;
                if (y.n) /* an instance ended on the way */
                    define(s, &(struct lex){.flags = y.flags, .sig = y.sig, .part = y.part, .n = x.n});
                /* the number in hand at the start, and whether it has ended */
                bool held = (x.mode == M_REF || (x.mode == M_COMMENT && x.sub == 8)), going = held && y.mode == x.mode && y.sub == x.sub;
                y.highest = held && !going && x.num > x.n + 1 && x.num > x.highest ? x.num : x.highest;
                y.n += x.n;
                if (going) {
                    y.num = x.num;
                    y.n_digits = x.n_digits;
                }
                y.length = x.length;
                y.avail = x.avail;
                if (y.n > x.n)
                    y.avail = avail_now(s, y.n);
                if (walk(s, &y, g->node[m->dep[i].node].byte, &defined))
                    search(s, &y, m->dep[i].node, words);
                if (defined)
                    undefine(s, y.n);
                if (m->dep[i].x.n)
                    undefine(s, x.n + 1);
            }
        } else {
            search_all(s, &x, words);
        }
    }
    pthread_mutex_unlock(&g->lock);
}

/* Walks a token's bytes; undoes it again unless keep. */
static bool try_token(struct grammar_state *s, int32_t id, bool keep)
{
    struct grammar *g = s->g;
    size_t n = 0;
    int defined = 0;
    const char *p;
    if (id < 0 || id >= g->n_ids || s->left < 1)
        return false;
    if (tok_is_stop(g->tok, id))
        return s->x.mode == M_DONE;
    if (s->x.mode == M_DONE || tok_is_special(g->tok, id) || !(p = tok_bytes(g->tok, id, &n)) || !n)
        return false;
    struct lex x = s->x;
    settle(s, &x);
    uint32_t from = x.n;
    bool good = true;
    for (size_t i = 0; i < n && good; i++)
        good = walk(s, &x, (unsigned char)p[i], &defined);
    settle(s, &x);
    good = good && (int64_t)need(g, &x) < s->left;
    if (good && keep) {
        if (x.mode == M_NUMBER && x.length >= (g->pat[x.pat].kinds & SCHEMA_REAL ? TEXT_DIGITS : INT_DIGITS))
            x.flags |= FULL;
        if (awaits_line(&x) || x.mode == M_DEF || x.mode == M_EQ || x.mode == M_HEAD || x.mode == M_END || x.mode == M_DONE)
            x.sig = x.part = 0; /* done with: masks are looked up by what is left */
        s->x = x;
    } else {
        for (uint32_t k = from + 1; k <= from + (uint32_t)defined; k++)
            undefine(s, k);
    }
    return good;
}

bool grammar_permits(struct grammar_state *s, int32_t id)
{
    pthread_mutex_lock(&s->g->lock);
    refresh(s);
    bool good = try_token(s, id, false);
    pthread_mutex_unlock(&s->g->lock);
    return good;
}

bool grammar_accept(struct grammar_state *s, int32_t id)
{
    pthread_mutex_lock(&s->g->lock);
    refresh(s);
    bool good = try_token(s, id, true);
    s->left -= good;
    pthread_mutex_unlock(&s->g->lock);
    return good;
}

bool grammar_done(const struct grammar_state *s)
{
    return s->x.mode == M_DONE;
}

int64_t grammar_left(const struct grammar_state *s)
{
    return s->left;
}

int64_t grammar_need(const struct grammar_state *s)
{
    struct lex x = s->x;
    settle(s, &x);
    return (int64_t)need(s->g, &x);
}

uint64_t grammar_entities(const struct grammar_state *s)
{
    return s->x.n;
}

const char *grammar_awaits(const struct grammar_state *s)
{
    return awaits[s->x.mode];
}

/* ---- as a decoder sees it ---- */

/* A place to go back to. */
struct place {
    struct lex x;
    int64_t left;
    uint32_t generation;
};
_Static_assert(sizeof(struct place) <= TOKEN_MASK_MARK, "a place fits");

/* The decoder may have less room than was planned with, never more. */
static void tighten(struct grammar_state *s, int64_t left)
{
    s->left = left < s->left ? left : s->left;
}

static bool mask_allows(void *ctx, int32_t id, int64_t left)
{
    tighten(ctx, left);
    return grammar_permits(ctx, id);
}

static void mask_fill(void *ctx, int64_t left, uint32_t *bits)
{
    struct grammar_state *s = ctx;
    tighten(s, left);
    grammar_fill(s, bits, s->g->words);
}

static void mask_take(void *ctx, int32_t id)
{
    grammar_accept(ctx, id);
}

static bool mask_done(void *ctx)
{
    return grammar_done(ctx);
}

static void mask_mark(void *ctx, void *at)
{
    const struct grammar_state *s = ctx;
    struct place p = {.x = s->x, .left = s->left, .generation = s->generation};
    memcpy(at, &p, sizeof p);
}

static void mask_rollback(void *ctx, const void *at)
{
    struct grammar_state *s = ctx;
    struct place p;
    memcpy(&p, at, sizeof p);
    for (uint32_t id = p.x.n + 1; id <= s->x.n; id++)
        undefine(s, id);
    s->x = p.x;
    s->left = p.left;
    s->generation = p.generation; /* refresh() looks whether it is still good */
}

void grammar_token_mask(struct grammar_state *s, struct token_mask *out)
{
    *out = (struct token_mask){.ctx = s, .n_words = s->g->words, .allows = mask_allows, .fill = mask_fill, .take = mask_take,
                               .done = mask_done, .mark = mask_mark, .rollback = mask_rollback};
}

/* ==== making it ==== */

struct spelling {
    const char *s;
    size_t n;
    int32_t id;
};

static int by_bytes(const void *a, const void *b)
{
    const struct spelling *x = a, *y = b;
    size_t n = x->n < y->n ? x->n : y->n;
    int c = memcmp(x->s, y->s, n);
    return c ? c : x->n != y->n ? (x->n < y->n ? -1 : 1) : x->id < y->id ? -1 : 1;
}

/* Children of `at`, from spellings v[0..n) which share their first `depth` bytes. */
static void grow(struct grammar *g, uint32_t at, const struct spelling *v, size_t n, size_t depth)
{
    size_t i = 0;
    for (; i < n && v[i].n == depth; i++) {
        g->same[v[i].id] = g->node[at].token;
        g->node[at].token = v[i].id;
    }
    size_t kinds = 0;
    for (size_t k = i; k < n; k++)
        kinds += k == i || v[k].s[depth] != v[k - 1].s[depth];
    uint32_t child = (uint32_t)g->n_node;
    g->n_node += kinds;
    ARRAY_GROW(g->node, g->node_cap, g->n_node);
    g->node[at].child = child;
    g->node[at].n = (uint16_t)kinds;
    for (; i < n; child++) {
        size_t end = i;
        while (end < n && v[end].s[depth] == v[i].s[depth])
            end++;
        g->node[child] = (struct node){.byte = (uint8_t)v[i].s[depth], .token = -1};
        grow(g, child, v + i, end - i, depth + 1);
        i = end;
    }
}

static int read_tokens(struct grammar *g)
{
    bool single[256] = {false};
    size_t n = 0, len;
    struct spelling *v = xmalloc(((size_t)g->n_ids + 1) * sizeof *v);
    for (int32_t id = 0; id < g->n_ids; id++) {
        const char *p = tok_bytes(g->tok, id, &len);
        g->same[id] = -1;
        if (tok_is_stop(g->tok, id)) {
            g->stop = xrealloc(g->stop, (g->n_stop + 1) * sizeof *g->stop);
            g->stop[g->n_stop++] = id;
        } else if (p && len && !tok_is_special(g->tok, id)) {
            v[n++] = (struct spelling){p, len, id};
            if (len == 1)
                single[(unsigned char)*p] = true;
        }
    }
    qsort(v, n, sizeof *v, by_bytes);
    ARRAY_GROW(g->node, g->node_cap, 1);
    g->node[g->n_node++] = (struct node){.token = -1};
    grow(g, 0, v, n, 0);
    free(v);
    for (int c = 0; c < 256; c++)
        if (!single[c] && (c == '\n' || (c >= ' ' && c <= '~') || (c >= 0x80 && c < 0xc0)))
            return err_set(ERR_FORMAT, "the tokenizer has no token for byte %d alone: a text could not always be closed", c);
    return ERR_OK;
}

/* Fewest tokens for each ending of a text. */
static void shortest(const struct grammar *g, const char *s, size_t n, uint16_t *out)
{
    out[n] = 0;
    for (size_t i = n; i-- > 0;) {
        uint32_t at = 0;
        out[i] = INF;
        for (size_t k = i; k < n; k++) {
            const struct node *t = &g->node[at];
            uint32_t c = t->child, end = t->child + t->n;
            while (c < end && g->node[c].byte != (uint8_t)s[k])
                c++;
            if (c == end)
                break;
            at = c;
            if (g->node[at].token >= 0)
                out[i] = least(out[i], out[k + 1] + 1u);
        }
    }
}

static void inside_tokens(const struct grammar *g, struct inside *in, const struct lex *from, const struct lex *x, uint32_t at)
{
    const struct node *t = &g->node[at];
    if (t->token >= 0 && x->sub == from->sub) {
        set_token(g, in->bits, t->token);
    } else if (t->token >= 0) {
        ARRAY_GROW(in->end, in->end_cap, in->n_end + 1);
        in->end[in->n_end++] = (struct end){.node = at, .sub = x->sub};
    }
    for (uint32_t i = t->child; i < t->child + t->n; i++) {
        struct lex y = *x;
        if ((y.mode == M_STRING ? string_byte(g, &y, g->node[i].byte) : comment_byte(NULL, &y, g->node[i].byte)) != OK)
            continue;
        if (y.mode != from->mode || (y.mode == M_STRING && y.sub == 1)) {
            ARRAY_GROW(in->exit, in->exit_cap, in->n_exit + 1);
            in->exit[in->n_exit++] = i;
        } else {
            inside_tokens(g, in, from, &y, i);
        }
    }
}

/* Appends the least value of pattern i; false: it is one that is not written here (another instance will do). */
static bool put_least(const struct grammar *g, const struct avail *a, uint16_t i, struct buf *out)
{
    const struct pat *p = &g->pat[i];
    uint16_t n = a->value[i];
    bool good = true;
    if (p->kinds & SCHEMA_INT && n == 1)
        buf_putc(out, '0');
    else if (p->kinds & SCHEMA_OMITTED && n == 1)
        buf_putc(out, '$');
    else if (p->kinds & SCHEMA_DERIVED && n == 1)
        buf_putc(out, '*');
    else if (p->kinds & SCHEMA_STRING && n == 2)
        buf_puts(out, "''");
    else if (p->kinds & SCHEMA_REAL && n == 2)
        buf_puts(out, "0.");
    else if (p->kinds & SCHEMA_LIST && n == (p->min ? 1 + p->min * (1u + (p->elem == NONE ? INF : a->value[p->elem])) : 2)) {
        buf_putc(out, '(');
        for (unsigned k = 0; k < p->min && good; k++) {
            if (k)
                buf_putc(out, ',');
            good = put_least(g, a, p->elem, out);
        }
        buf_putc(out, ')');
    } else {
        good = false;
    }
    return good;
}

/* The simple instance without references that takes the fewest tokens. */
static int find_canon(struct grammar *g, uint16_t w, struct buf *name)
{
    const struct avail *a = &g->avail[0];
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_!+";
    if (g->word[w].term != NONE && a->rest[g->sig[g->word[w].term].rest] < 60) {
        const struct sig *s = &g->sig[g->word[w].term];
        struct buf text = BUF_INIT;
        uint16_t needs[256];
        bool good = true;
        buf_printf(&text, "=%s(", name->s);
        for (size_t k = 0; good && !count_ok(s->counts, k); k++) {
            if (k)
                buf_putc(&text, ',');
            good = more_ok(s->counts, k) && put_least(g, a, (uint16_t)(s->pat + k), &text);
        }
        buf_puts(&text, g->loose ? ");" : ");\n");
        if (good && text.n < 200) {
            shortest(g, text.s, text.n, needs);
            if (!g->canon.n || needs[0] < g->canon_need[0]) {
                buf_clear(&g->canon);
                buf_add(&g->canon, text.s, text.n);
                free(g->canon_need);
                g->canon_need = xmalloc((text.n + 1) * sizeof *g->canon_need);
                memcpy(g->canon_need, needs, (text.n + 1) * sizeof *needs);
            }
        }
        buf_release(&text);
    }
    for (int c = 0; letters[c]; c++)
        if (g->word[w].next[c] != NONE) {
            buf_putc(name, letters[c]);
            find_canon(g, g->word[w].next[c], name);
            name->s[--name->n] = 0;
        }
    return g->canon.n ? ERR_OK : err_set(ERR_FORMAT, "the entity table has no instance without references");
}

int grammar_new(const struct tok *t, const struct grammar_opts *o, struct grammar **out)
{
    struct grammar *g = xcalloc(1, sizeof *g);
    struct buf name = BUF_INIT;
    *out = NULL;
    g->tok = t;
    g->promises = o->promises;
    g->loose = o->reference;
    g->compact = o->compact;
    g->typed = o->typed && !o->promises;
    g->n_ids = tok_n_ids(t);
    g->words = ((size_t)g->n_ids + 31) / 32;
    g->same = xmalloc(((size_t)g->n_ids + 1) * sizeof *g->same);
    buf_init(&g->canon);
    pthread_mutex_init(&g->lock, NULL);
    g->max_masks = (size_t)192e6 / (g->words * 4) + 64;
    if (g->max_masks > 20000)
        g->max_masks = 20000;
    for (g->table_size = 1024; g->table_size < 2 * g->max_masks; g->table_size *= 2)
        ;
    g->table = xcalloc(g->table_size, sizeof *g->table);
    int rc = flatten(g, o->schema ? o->schema : schema_known());
    if (rc == ERR_OK && g->n_tset >= 4096)
        rc = err_set(ERR_FORMAT, "the entity table is too large: over 4,096 kinds of references");
    if (rc == ERR_OK)
        rc = read_tokens(g);
    if (rc == ERR_OK) {
        uint8_t *have = xcalloc(g->n_tset + 1, 1);
        avail_find(g, have);
        rc = find_canon(g, g->keywords, &name);
        memset(have, 1, g->n_tset);
        avail_find(g, have);
        free(have);
    }
    if (rc == ERR_OK) {
        shortest(g, end_text, sizeof end_text - 1, g->end_need);
        const struct avail *a = &g->avail[0];
        uint32_t head = least(a->word[g->keywords], plus(a->part[0], 1));
        g->line_need = (uint16_t)(2 + MAX_DIGITS + (head > g->canon_need[0] ? head : g->canon_need[0]));
        for (int i = 0; i < 2; i++) {
            struct lex x = {.mode = i ? M_COMMENT : M_STRING, .sub = i ? 20 : 0, .back = M_LINE};
            g->inside[i].bits = xcalloc(g->words, sizeof *g->inside[i].bits);
            inside_tokens(g, &g->inside[i], &x, &x, 0);
        }
        *out = g;
        g = NULL;
    }
    buf_release(&name);
    grammar_free(g);
    return rc;
}

void grammar_free(struct grammar *g)
{
    if (!g)
        return;
    masks_release(g);
    avail_release(g);
    pthread_mutex_destroy(&g->lock);
    buf_release(&g->canon);
    free(g->table);
    free(g->avail);
    free(g->pat);
    free(g->sig);
    free(g->word);
    free(g->part);
    free(g->type);
    free(g->tset);
    free(g->canon_need);
    free(g->node);
    free(g->same);
    free(g->stop);
    for (int i = 0; i < 2; i++) {
        free(g->inside[i].bits);
        free(g->inside[i].end);
        free(g->inside[i].exit);
    }
    free(g);
}

size_t grammar_words(const struct grammar *g)
{
    return g->words;
}

int grammar_state_new(struct grammar *g, int64_t budget, struct grammar_state **out)
{
    struct grammar_state *s = xcalloc(1, sizeof *s);
    s->g = g;
    s->x = (struct lex){.mode = M_DATA};
    s->left = budget;
    s->first = xcalloc(g->n_tset + 1, sizeof *s->first);
    pthread_mutex_lock(&g->lock);
    s->generation = g->generation;
    s->x.avail = avail_now(s, 0);
    pthread_mutex_unlock(&g->lock);
    int64_t due = grammar_need(s);
    if (due > budget) {
        grammar_state_free(s);
        *out = NULL;
        return err_set(ERR_USAGE, "%lld tokens are too few for any text: the grammar needs %lld", (long long)budget, (long long)due);
    }
    *out = s;
    return ERR_OK;
}

void grammar_state_free(struct grammar_state *s)
{
    if (!s)
        return;
    free(s->type);
    free(s->first);
    free(s);
}
