#include "model/draft.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mem.h"

/* ---- what is known ----
 *
 * The text is read as symbols: keywords, punctuation, strings, numbers, references.  A number or reference is a class
 * of its own, and what value it has is a second question.  For both, many experts say what came last time in a context of
 * theirs ("the second reference of an EDGE_CURVE behind a VERTEX_POINT"); of references and numbers they remember not
 * the value, but what it was in some respect ("three lines back", "the oldest face that nothing refers to yet").  How often an
 * expert was right of late is its weight, and the sum of weights behind an answer says, by experience, how likely it is. */

enum {
    TABLE_BITS = 16, SYMBOL_BITS = 15, PAST_BITS = 14, MAX_SYMBOLS = 1 << (SYMBOL_BITS - 1), MAX_ID = 1 << 22, N_TYPES = 4, N_CLASSES = 12,
    LONGEST = 200, RECENT = 12, RUNS = 8, MAX_VOTES = 64, SECOND = 80, N_EXPERTS = 2 * SECOND, FIT = 64, WEIGHT_BITS = 7, TAIL = 64, MAX_GUESS = 64, INCIDENT = 4, POINTS = 6
};

static const float START = 0.4f, STEP = 0.015f; /* of weights */

/* Classes ahead of those of literals. */
enum { NONE, REFERENCE, NUMBER, DEFINITION, FIRST_LITERAL };

enum lexeme { NOTHING, WORD, HASH, NUMERAL, STRING, DOT, SLASH, COMMENT };

/* Literals that say how entities hang together; interned first, so that their class is FIRST_LITERAL + place. */
enum {
    EMPTY = FIRST_LITERAL, DATA, POINT, DIRECTION, VERTEX, EDGE, ORIENTED, LOOP, LINE, VECTOR, CIRCLE, TRUE_, FALSE_, OPEN, CLOSE, COMMA, SEMICOLON, EQUALS, NEWLINE, FIRST_OTHER
};
static const char *const words[] = {"", "DATA", "CARTESIAN_POINT", "DIRECTION", "VERTEX_POINT", "EDGE_CURVE", "ORIENTED_EDGE", "EDGE_LOOP", "LINE", "VECTOR", "CIRCLE",
                                    ".T.", ".F.", "(", ")", ",", ";", "=", "\n"};

struct symbol {
    uint32_t at, n; /* of names */
    double value;   /* of a number */
};

struct entity {
    int64_t id, ref[3];      /* its first references */
    uint32_t type, number[3];
    int32_t uses, before, behind; /* list of those that nothing refers to, indices + 1 */
    int32_t incident[INCIDENT]; /* of a vertex: edges, + 1 */
    int8_t n_refs, n_numbers, flag; /* flag: the last .T. (1) or .F. (2) */
    int8_t sense;            /* flag of the ORIENTED_EDGE that used it last */
    bool linked;
};

struct past {
    uint32_t class;
    int32_t value;           /* number: symbol; reference: id */
    int32_t owner, target;   /* entities, + 1 */
};

/* Where the text is: copied ahead of a guess, and put back. */
struct place {
    int64_t line, named, highest; /* ids: of the entity begun last, ahead of '=', the highest seen */
    int64_t ref;                  /* the last reference of this entity; 0: none */
    int64_t loop_from, loop_to;   /* vertices of the loop in the making */
    uint32_t type, sub, begin_word; /* keywords: of the entity, the last in it, the line's first */
    uint32_t c[N_CLASSES], types[N_TYPES], number[4];
    int depth, field, item, n_refs, n_numbers, loop_edges, symbols; /* symbols: of this line */
    bool compact;
    int32_t top, first, points[POINTS], edge; /* entities + 1: latest that nothing refers to; first of this part; the loop's last edge */
    size_t n_entities, n_past, match[2], length[2];
};

struct slot {
    uint32_t check;
    int32_t value[2];
    uint8_t run, filled;
};

struct draft {
    const struct tok *t;
    struct place p;
    struct past *past;
    struct entity *entity;
    int32_t *by_id;          /* entity + 1 */
    struct symbol *symbol;
    size_t past_cap, entity_cap, n_ids, n_symbols, symbol_cap;
    struct buf names, text, more; /* more: a guess, from the line's begin on */
    enum lexeme lexeme;
    size_t lexeme_at;        /* in text */
    int32_t tail[TAIL];      /* the last tokens, and where in text they end */
    size_t tail_end[TAIL], n_tokens;
    uint16_t right[N_EXPERTS][RUNS], ends[16];
    float weight[1 << WEIGHT_BITS][N_EXPERTS];
    struct { uint32_t type; int64_t id[RECENT]; } recent[64];
    struct { int32_t entity; int8_t what, sense; } *undo;
    size_t n_undo, undo_cap;
    bool guessing;
    struct tok_ids ids;
    uint32_t symbols[1 << SYMBOL_BITS], last[2][1 << PAST_BITS];
    struct slot table[1 << TABLE_BITS];
};

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint32_t intern(struct draft *d, const char *s, size_t n)
{
    uint64_t h = 7;
    for (size_t i = 0; i < n; i++)
        h = mix(h, (unsigned char)s[i]);
    uint32_t at = (uint32_t)(h >> 32) & ((1u << SYMBOL_BITS) - 1);
    for (uint32_t k; (k = d->symbols[at]); at = (at + 1) & ((1u << SYMBOL_BITS) - 1))
        if (d->symbol[k - 1].n == n && !memcmp(d->names.s + d->symbol[k - 1].at, s, n))
            return FIRST_LITERAL + k - 1;
    if (d->n_symbols == MAX_SYMBOLS)
        return EMPTY;
    ARRAY_GROW(d->symbol, d->symbol_cap, d->n_symbols + 1);
    d->symbol[d->n_symbols] = (struct symbol){(uint32_t)d->names.n, (uint32_t)n, n && n < 40 ? strtod(s, NULL) : 0};
    buf_add(&d->names, s, n);
    buf_putc(&d->names, 0);
    d->symbols[at] = (uint32_t)++d->n_symbols;
    return FIRST_LITERAL + (uint32_t)d->n_symbols - 1;
}

static const char *literal(const struct draft *d, uint32_t class, size_t *n)
{
    bool known = class >= FIRST_LITERAL && class - FIRST_LITERAL < d->n_symbols; /* another context may have the same hash */
    const struct symbol *s = &d->symbol[known ? class - FIRST_LITERAL : 0];
    *n = s->n;
    return d->names.s + s->at;
}

static double value_of(const struct draft *d, uint32_t number)
{
    return number >= FIRST_LITERAL && number - FIRST_LITERAL < d->n_symbols ? d->symbol[number - FIRST_LITERAL].value : 0;
}

struct draft *draft_new(const struct tok *t, const struct draft *like)
{
    struct draft *d = xcalloc(1, sizeof *d);
    d->t = t;
    buf_init(&d->names);
    buf_init(&d->text);
    buf_init(&d->more);
    if (like && like->t == t) {
        memcpy(d->right, like->right, sizeof d->right);
        memcpy(d->ends, like->ends, sizeof d->ends);
        memcpy(d->weight, like->weight, sizeof d->weight);
        memcpy(d->symbols, like->symbols, sizeof d->symbols);
        memcpy(d->table, like->table, sizeof d->table);
        buf_add(&d->names, like->names.s, like->names.n);
        ARRAY_GROW(d->symbol, d->symbol_cap, like->n_symbols);
        memcpy(d->symbol, like->symbol, like->n_symbols * sizeof *d->symbol);
        d->n_symbols = like->n_symbols;
        return d;
    }
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        intern(d, words[i], strlen(words[i]));
    for (int i = 0; i < N_EXPERTS; i++)
        for (int k = 0; k < RUNS; k++)
            d->right[i][k] = (uint16_t)(65535 * (k + 0.7) / (k + 2.0));
    for (int k = 0; k < 1 << WEIGHT_BITS; k++)
        for (int i = 0; i < N_EXPERTS; i++)
            d->weight[k][i] = START;
    for (int i = 0; i < 16; i++)
        d->ends[i] = i == 6 ? 60000 : 12000;
    return d;
}

void draft_free(struct draft *d)
{
    if (!d)
        return;
    free(d->past);
    free(d->entity);
    free(d->by_id);
    free(d->symbol);
    free(d->undo);
    buf_release(&d->names);
    buf_release(&d->text);
    buf_release(&d->more);
    tok_ids_release(&d->ids);
    free(d);
}

/* ---- entities ---- */

/* The entity of an id in this part; NULL: none yet. */
static struct entity *entity_of(const struct draft *d, int64_t id)
{
    if (id <= 0 || (size_t)id >= d->n_ids)
        return NULL;
    int32_t k = d->by_id[id];
    return k > 0 && (size_t)k <= d->p.n_entities && k >= d->p.first && d->entity[k - 1].id == id ? &d->entity[k - 1] : NULL;
}

enum { LINKED, UNLINKED, SENSE };

static void note(struct draft *d, int32_t e, int what)
{
    if (!d->guessing)
        return;
    ARRAY_GROW(d->undo, d->undo_cap, d->n_undo + 1);
    d->undo[d->n_undo].entity = e;
    d->undo[d->n_undo].what = (int8_t)what;
    d->undo[d->n_undo++].sense = d->entity[e].sense;
}

static void link_entity(struct draft *d, int32_t e)
{
    d->entity[e].before = d->p.top;
    d->entity[e].behind = 0;
    if (d->p.top)
        d->entity[d->p.top - 1].behind = e + 1;
    d->p.top = e + 1;
    d->entity[e].linked = true;
    note(d, e, LINKED);
}

static void use_entity(struct draft *d, struct entity *k)
{
    int32_t e = (int32_t)(k - d->entity);
    k->uses++;
    if (k->linked) {
        k->linked = false;
        if (k->behind)
            d->entity[k->behind - 1].before = k->before;
        else
            d->p.top = k->before;
        if (k->before)
            d->entity[k->before - 1].behind = k->behind;
        note(d, e, UNLINKED);
    } else {
        note(d, e, SENSE);
    }
}

static void take_back(struct draft *d, const struct place *p)
{
    while (d->n_undo > 0) {
        d->n_undo--;
        int32_t e = d->undo[d->n_undo].entity;
        struct entity *k = &d->entity[e];
        if (d->undo[d->n_undo].what == LINKED) {
            if (k->before)
                d->entity[k->before - 1].behind = 0;
            continue;
        }
        k->sense = d->undo[d->n_undo].sense;
        k->uses--;
        if (d->undo[d->n_undo].what == UNLINKED) {
            k->linked = true;
            if (k->behind)
                d->entity[k->behind - 1].before = e + 1;
            if (k->before)
                d->entity[k->before - 1].behind = e + 1;
        }
    }
    d->p = *p;
}

static void begin_part(struct place *p)
{
    p->first = (int32_t)p->n_entities + 1;
    p->line = p->highest = 0;
    p->top = p->edge = 0;
    p->loop_edges = 0;
    p->loop_from = p->loop_to = 0;
    memset(p->points, 0, sizeof p->points);
}

static void begin_entity(struct draft *d, uint32_t type)
{
    struct place *p = &d->p;
    bool named = p->named > 0;
    if (named && p->named <= p->line)
        begin_part(p);
    p->compact = !named;
    p->line = named ? p->named : p->line + 1;
    p->highest = p->highest > p->line ? p->highest : p->line;
    p->type = p->sub = type;
    p->field = p->item = p->n_refs = p->n_numbers = 0;
    p->ref = 0;
    size_t n = p->n_entities++;
    ARRAY_GROW(d->entity, d->entity_cap, n + 1);
    d->entity[n] = (struct entity){.id = p->line, .type = type};
    if (p->line < MAX_ID) {
        if ((size_t)p->line >= d->n_ids) {
            size_t had = d->n_ids;
            ARRAY_GROW(d->by_id, d->n_ids, (size_t)p->line + 1);
            memset(d->by_id + had, 0, (d->n_ids - had) * sizeof *d->by_id);
        }
        d->by_id[p->line] = (int32_t)n + 1;
    }
}

static void use_recently(struct draft *d, uint32_t type, int64_t id)
{
    int i = 0;
    if (d->guessing)
        return;
    int64_t *v = d->recent[type & 63].id;
    if (d->recent[type & 63].type != type)
        memset(v, 0, sizeof d->recent->id);
    d->recent[type & 63].type = type;
    while (i < RECENT - 1 && v[i] != id)
        i++;
    memmove(v + 1, v, (size_t)i * sizeof *v);
    v[0] = id;
}

static void end_entity(struct draft *d)
{
    struct place *p = &d->p;
    int32_t n = (int32_t)p->n_entities;
    struct entity *e = &d->entity[n - 1];
    if (!e->uses)
        link_entity(d, n - 1);
    use_recently(d, e->type, e->id);
    if (e->type == POINT) {
        memmove(p->points + 1, p->points, sizeof p->points - sizeof *p->points);
        p->points[0] = n;
    } else if (e->type == EDGE && !d->guessing) {
        for (int i = 0; i < 2; i++) {
            struct entity *v = entity_of(d, e->ref[i]);
            if (v) {
                memmove(v->incident + 1, v->incident, sizeof v->incident - sizeof *v->incident);
                v->incident[0] = n;
            }
        }
    } else if (e->type == ORIENTED) {
        struct entity *edge = entity_of(d, e->ref[0]);
        if (edge && edge->type == EDGE) {
            edge->sense = e->flag;
            p->edge = (int32_t)(edge - d->entity) + 1;
            if (!p->loop_edges++)
                p->loop_from = edge->ref[e->flag == 2];
            p->loop_to = edge->ref[e->flag != 2];
        }
    } else if (e->type == LOOP) {
        p->loop_edges = 0;
        p->loop_from = p->loop_to = 0;
        p->edge = 0;
    }
    memmove(p->types + 1, p->types, sizeof p->types - sizeof *p->types);
    p->types[0] = e->type;
}

/* ---- a symbol more ---- */

static uint64_t hash_past(const struct place *p, int which)
{
    uint64_t h = (uint64_t)which;
    for (int i = 0; i < (which ? 10 : 6); i++)
        h = mix(h, p->c[i]);
    for (int i = 0; i < (which ? 0 : 4); i++)
        h = mix(h, p->types[i]);
    return h >> (64 - PAST_BITS);
}

static void advance(struct draft *d, uint32_t class, int64_t value)
{
    struct place *p = &d->p;
    struct entity *e = p->n_entities ? &d->entity[p->n_entities - 1] : NULL, *target = NULL;
    bool inside = e && p->depth > 0;
    struct past here = {.class = class, .value = (int32_t)value};
    switch (class) {
    case DEFINITION:
        p->named = value;
        break;
    case REFERENCE:
        if (!inside)
            break;
        here.owner = (int32_t)p->n_entities;
        if ((target = entity_of(d, value))) {
            here.target = (int32_t)(target - d->entity) + 1;
            use_entity(d, target);
            use_recently(d, target->type, value);
        }
        if (e->n_refs < 3)
            e->ref[e->n_refs++] = value;
        p->n_refs++;
        p->ref = value;
        p->highest = p->highest > value ? p->highest : value;
        break;
    case NUMBER:
        if (!inside)
            break;
        here.owner = (int32_t)p->n_entities;
        if (e->n_numbers < 3)
            e->number[e->n_numbers++] = (uint32_t)value;
        memmove(p->number + 1, p->number, sizeof p->number - sizeof *p->number);
        p->number[0] = (uint32_t)value;
        p->n_numbers++;
        break;
    case TRUE_:
    case FALSE_:
        if (inside)
            e->flag = class == TRUE_ ? 1 : 2;
        break;
    case OPEN:
        if (p->depth++ == 0 && (p->named || (p->symbols == 1 && p->begin_word) || (p->symbols == 0 && p->compact && p->line)))
            begin_entity(d, p->begin_word ? p->begin_word : OPEN);
        else if (p->depth == 1)
            p->depth = 0; /* of no entity */
        p->item = 0;
        break;
    case CLOSE:
        p->depth -= p->depth > 0;
        break;
    case COMMA:
        if (p->depth == 1)
            p->field++, p->item = 0;
        else
            p->item++;
        break;
    case SEMICOLON:
        if (p->symbols > 1 && p->line && p->type && e && p->depth == 0)
            end_entity(d);
        if (p->begin_word == DATA && p->symbols == 1)
            begin_part(p);
        p->type = p->sub = 0;
        p->named = 0;
        break;
    case NEWLINE:
        p->symbols = -1;
        p->begin_word = 0;
        p->named = 0;
        p->depth = 0;
        p->type = p->sub = 0;
        memset(p->number, 0, sizeof p->number);
        p->n_refs = p->n_numbers = p->field = p->item = 0;
        break;
    default:
        if (class >= FIRST_OTHER || class < TRUE_) {
            if (!p->begin_word && (p->symbols == 0 || p->c[0] == EQUALS))
                p->begin_word = class;
            if (p->depth > 0)
                p->sub = class;
        }
    }
    p->symbols++;
    memmove(p->c + 1, p->c, sizeof p->c - sizeof *p->c);
    p->c[0] = class;
    ARRAY_GROW(d->past, d->past_cap, p->n_past + 1);
    d->past[p->n_past++] = here;
    for (int k = 0; k < 2; k++) {
        uint32_t *slot = &d->last[k][hash_past(p, k)];
        if (p->match[k] && d->past[p->match[k] - 1].class == class && p->match[k] < p->n_past) {
            p->match[k]++;
            p->length[k]++;
        } else {
            p->match[k] = 0;
            p->length[k] = 0;
        }
        if (!p->match[k] && *slot && *slot < p->n_past) {
            p->match[k] = *slot + 1;
            p->length[k] = 0;
        }
        if (!d->guessing)
            *slot = (uint32_t)p->n_past;
    }
}

/* ---- experts ---- */

/* What a reference or number is remembered as. */
enum respect {
    ITSELF, DISTANCE, FROM_TOP, BEHIND, RUN_START, RECENTLY, NEWEST, LOOP_VERTEX, LOOP_EDGE, COPIED
};

struct vote {
    int64_t value[2];
    struct slot *slot;       /* NULL: not remembered but found */
    uint8_t expert, respect, run;
};

struct votes {
    int n;
    struct vote v[MAX_VOTES];
};

/* The k-th entity from the top of those that nothing refers to. */
static struct entity *from_top(const struct draft *d, int k)
{
    int32_t e = d->p.top;
    while (e && k-- > 0)
        e = d->entity[e - 1].before;
    return e ? &d->entity[e - 1] : NULL;
}

/* The first of the entities of one type, unreferred to, that end at the k-th from the top. */
static struct entity *run_start(const struct draft *d, int k)
{
    struct entity *e = from_top(d, k);
    for (int i = 0; i < 1000 && e && e->before && d->entity[e->before - 1].type == e->type; i++)
        e = &d->entity[e->before - 1];
    return e;
}

/* The one after the last reference (whose link is left as it was). */
static struct entity *behind_ref(const struct draft *d)
{
    const struct entity *r = d->p.ref ? entity_of(d, d->p.ref) : NULL;
    struct entity *e = r && r->behind && (size_t)r->behind <= d->p.n_entities ? &d->entity[r->behind - 1] : NULL;
    return e && e > r && e->linked ? e : NULL;
}

/* An edge at the loop's end that another loop has gone along. */
static struct entity *loop_edge(const struct draft *d, int k)
{
    struct entity *v = d->p.loop_to ? entity_of(d, d->p.loop_to) : NULL;
    for (int i = 0; v && i < INCIDENT; i++) {
        struct entity *e = v->incident[i] ? &d->entity[v->incident[i] - 1] : NULL;
        if (e && e->uses == 1 && v->incident[i] != d->p.edge && k-- == 0)
            return e;
    }
    return NULL;
}

static int64_t id_of(const struct entity *e)
{
    return e ? e->id : -1;
}

/* The reference that is `code` in some respect; -1: none. */
static int64_t decode(const struct draft *d, int respect, int64_t code)
{
    const struct place *p = &d->p;
    switch (respect) {
    case DISTANCE:
        return p->line - code;
    case FROM_TOP:
        return id_of(from_top(d, (int)code));
    case BEHIND:
        return id_of(behind_ref(d));
    case RUN_START:
        return id_of(run_start(d, (int)code));
    case RECENTLY: {
        uint32_t type = (uint32_t)(code >> 5);
        return type && (code & 31) < RECENT && d->recent[type & 63].type == type ? d->recent[type & 63].id[code & 31] : -1;
    }
    case NEWEST:
        return p->highest + code;
    case LOOP_VERTEX:
        return code ? p->loop_from : p->loop_to;
    case LOOP_EDGE:
        return id_of(loop_edge(d, (int)code));
    case COPIED: {
        const struct entity *e = code > 0 && code <= POINTS && p->points[code - 1] && p->item < 3 ? &d->entity[p->points[code - 1] - 1] : NULL;
        return e && e->number[p->item] ? (int64_t)e->number[p->item] : -1;
    }
    default:
        return code;
    }
}

/* The code that decode() makes value of. */
static bool encode(const struct draft *d, int respect, int64_t value, int64_t *code)
{
    const struct place *p = &d->p;
    int n = 0;
    switch (respect) {
    case DISTANCE:
        *code = p->line - value;
        return true;
    case BEHIND:
        n = 1;
        break;
    case FROM_TOP:
        n = 8;
        break;
    case RUN_START:
        n = 3;
        break;
    case LOOP_VERTEX:
        n = 2;
        break;
    case LOOP_EDGE:
        n = INCIDENT;
        break;
    case COPIED:
        for (n = 1; n <= POINTS; n++)
            if (decode(d, COPIED, n) == value)
                break;
        *code = n;
        return n <= POINTS;
    case NEWEST:
        *code = value - p->highest;
        return *code > 0;
    case RECENTLY: {
        const struct entity *e = entity_of(d, value);
        if (!e || d->recent[e->type & 63].type != e->type)
            return false;
        for (int i = 0; i < RECENT; i++)
            if (d->recent[e->type & 63].id[i] == value) {
                *code = (int64_t)e->type << 5 | i;
                return true;
            }
        return false;
    }
    default:
        *code = value;
        return true;
    }
    for (*code = 0; *code < n; ++*code)
        if (decode(d, respect, *code) == value)
            return true;
    return false;
}

static void ask(struct draft *d, struct votes *v, int expert, int respect, uint64_t context)
{
    uint64_t h = mix(mix(context, (uint64_t)expert), 0x5bd1e995);
    struct slot *s = &d->table[h >> (64 - TABLE_BITS)];
    uint32_t check = (uint32_t)h | 1;
    if (s->check != check) {
        if (d->guessing)
            return;
        *s = (struct slot){.check = check};
    }
    struct vote *k = &v->v[v->n++];
    *k = (struct vote){.value = {-1, -1}, .slot = s, .expert = (uint8_t)expert, .respect = (uint8_t)respect, .run = s->run};
    for (int i = 0; i < s->filled; i++)
        k->value[i] = decode(d, respect, s->value[i]);
}

/* What is not remembered, but follows. */
static void say(struct votes *v, int expert, int run, int64_t value)
{
    if (value > 0)
        v->v[v->n++] = (struct vote){.value = {value, -1}, .expert = (uint8_t)expert, .run = (uint8_t)(run < RUNS ? run : RUNS - 1)};
}

static int log_run(size_t n)
{
    int k = 0;
    while (n > 0 && k < RUNS - 1)
        n >>= 1, k++;
    return k;
}

static uint64_t position(const struct place *p)
{
    uint64_t h = mix(mix(p->type, p->sub), (uint64_t)(p->depth * 64 + (p->field < 15 ? p->field : 15)));
    return mix(h, (uint64_t)(p->item < 3 ? p->item : 3));
}

/* What is being put together: the types of what nothing refers to yet. */
static uint64_t stack_hash(const struct draft *d, int n)
{
    uint64_t h = 0;
    int32_t e = d->p.top;
    for (int i = 0; i < n && e; i++, e = d->entity[e - 1].before)
        h = mix(h, d->entity[e - 1].type);
    return h;
}

static int loop_state(const struct draft *d)
{
    const struct place *p = &d->p;
    if (!p->loop_edges)
        return 0;
    return 1 + (p->loop_from == p->loop_to) + 2 * (loop_edge(d, 0) != NULL) + 4 * (p->loop_edges < 3 ? p->loop_edges : 3);
}

/* Which way the edge of an ORIENTED_EDGE is gone along: other than before, or on from the loop's end. */
static int way_along(const struct draft *d)
{
    const struct place *p = &d->p;
    if (p->type != ORIENTED || !p->n_entities)
        return 0;
    const struct entity *edge = entity_of(d, d->entity[p->n_entities - 1].ref[0]);
    if (!edge)
        return 0;
    if (edge->sense)
        return 3 - edge->sense;
    return !p->loop_edges ? 3 : p->loop_to == edge->ref[0] ? 1 : p->loop_to == edge->ref[1] ? 2 : 0;
}

/* The numbers of experts only tell them apart: those of classes are below 20, of references below 50, of numbers below SECOND. */
static void ask_class(struct draft *d, struct votes *v)
{
    const struct place *p = &d->p;
    uint64_t at = mix(position(p), p->c[0]), h = at;
    v->n = 0;
    ask(d, v, 0, ITSELF, mix(mix(at, p->c[1]), p->c[2]));
    for (int i = 0; i < 3; i++) {
        h = mix(h, p->types[i]);
        if (i != 1)
            ask(d, v, 1 + i, ITSELF, h);
    }
    uint64_t stack = stack_hash(d, 3);
    int loop = p->type == 0 ? loop_state(d) : 0;
    ask(d, v, 4, ITSELF, mix(at, stack));
    ask(d, v, 5, ITSELF, mix(mix(mix(at, stack), (uint64_t)loop), p->types[0]));
    ask(d, v, 6, ITSELF, mix(mix(at, stack_hash(d, 6)), (uint64_t)loop));
    h = 0;
    for (int i = 0; i < N_CLASSES; i++) {
        h = mix(h, p->c[i]);
        if (i == 2 || i == 5 || i == N_CLASSES - 1)
            ask(d, v, 7 + i / 3, ITSELF, h); /* 7, 8, 10 */
    }
    int way = way_along(d);
    if (way)
        ask(d, v, 11, ITSELF, mix(at, (uint64_t)way));
    for (int k = 0; k < 2; k++)
        if (p->match[k])
            say(v, 12 + k, log_run(p->length[k]), d->past[p->match[k] - 1].class);
}

static uint32_t spell(struct draft *d, double x)
{
    char s[40];
    int n = snprintf(s, sizeof s, "%.6f", x);
    while (n > 0 && s[n - 1] == '0')
        s[--n] = 0;
    return !strcmp(s, "-0.") ? intern(d, "0.", 2) : intern(d, s, (size_t)n);
}

static const uint32_t *point_of(const struct draft *d, int64_t vertex)
{
    const struct entity *v = vertex ? entity_of(d, vertex) : NULL, *k = v ? entity_of(d, v->ref[0]) : NULL;
    return k && k->type == POINT && k->n_numbers == 3 ? k->number : NULL;
}

/* The vertices that the edge in the making runs between: the loop's end or a new one, a new one or the loop's begin. */
static void edge_ends(const struct draft *d, const struct entity *end[2])
{
    const struct place *p = &d->p;
    int32_t e = p->top;
    int n = 0;
    const struct entity *fresh[2] = {NULL, NULL};
    for (int i = 0; i < 8 && e && n < 2; i++, e = d->entity[e - 1].before)
        if (d->entity[e - 1].type == VERTEX)
            fresh[n++] = &d->entity[e - 1];
    end[0] = p->loop_edges ? entity_of(d, p->loop_to) : fresh[1];
    end[1] = fresh[0] ? fresh[0] : p->loop_edges ? entity_of(d, p->loop_from) : NULL;
}

/* From one end to the other, of length 1. */
static bool along_edge(const struct draft *d, double v[3])
{
    const struct entity *end[2];
    double sum = 0;
    edge_ends(d, end);
    const uint32_t *a = end[0] ? point_of(d, end[0]->id) : NULL, *b = end[1] ? point_of(d, end[1]->id) : NULL;
    if (!a || !b)
        return false;
    for (int i = 0; i < 3; i++) {
        v[i] = value_of(d, b[i]) - value_of(d, a[i]);
        sum += v[i] * v[i];
    }
    for (int i = 0; i < 3; i++)
        v[i] /= sqrt(sum);
    return sum > 0;
}

/* 0: the first of a tuple; 1: what was before it is not as thought; 2: it is. */
static int agrees(struct draft *d, const double *v, double sign)
{
    const struct place *p = &d->p;
    int run = p->item ? 2 : 0;
    for (int i = 0; i < p->item && run; i++)
        if (fabs(value_of(d, p->number[p->item - 1 - i]) - sign * v[i]) > 2e-6)
            run = 1;
    return run;
}

static void ask_reference(struct draft *d, struct votes *v)
{
    const struct place *p = &d->p;
    const struct entity *r = p->ref ? entity_of(d, p->ref) : NULL;
    uint64_t at = mix(mix(p->type, (uint64_t)(p->n_refs < 4 ? p->n_refs : 4)), (uint64_t)p->depth);
    uint64_t t1 = mix(at, p->types[0]), t3 = mix(mix(t1, p->types[1]), p->types[2]), stack = mix(at, stack_hash(d, 3));
    v->n = 0;
    ask(d, v, 21, DISTANCE, t3);
    ask(d, v, 24, FROM_TOP, t3);
    ask(d, v, 25, FROM_TOP, stack);
    ask(d, v, 26, RUN_START, at);
    ask(d, v, 27, RUN_START, stack);
    if (p->ref) {
        ask(d, v, 28, BEHIND, at);
        ask(d, v, 29, BEHIND, mix(stack, r ? r->type : 0));
        ask(d, v, 32, ITSELF, mix(mix(at, (uint64_t)p->ref), (uint64_t)p->first));
    }
    ask(d, v, 33, RECENTLY, at);
    ask(d, v, 34, RECENTLY, t1);
    ask(d, v, 35, RECENTLY, t3);
    ask(d, v, 36, RECENTLY, stack);
    ask(d, v, 37, NEWEST, t1);
    if (p->type == EDGE) {
        ask(d, v, 38, LOOP_VERTEX, mix(at, (uint64_t)loop_state(d)));
        ask(d, v, 39, LOOP_VERTEX, stack);
    }
    if (p->type == LINE) {
        const struct entity *end[2];
        edge_ends(d, end);
        for (int i = 0; i < 2 && p->n_refs == 0; i++)
            say(v, 48 + i, loop_state(d) > 0, end[i] ? end[i]->ref[0] : 0);
        double along[3];
        if (p->n_refs == 1 && along_edge(d, along) && d->recent[VECTOR & 63].type == VECTOR)
            for (int i = 0; i < RECENT; i++) {
                const struct entity *k = entity_of(d, d->recent[VECTOR & 63].id[i]), *to = k ? entity_of(d, k->ref[0]) : NULL;
                double dot = 0;
                for (int x = 0; to && to->n_numbers == 3 && x < 3; x++)
                    dot += along[x] * value_of(d, to->number[x]);
                if (fabs(dot) > 0.99999)
                    say(v, dot > 0 ? 18 : 19, i > 0, k->id);
            }
    }
    if (p->type == ORIENTED)
        ask(d, v, 40, LOOP_EDGE, mix(at, (uint64_t)loop_state(d)));
    for (int k = 0; k < 2; k++) {
        const struct past *m = p->match[k] ? &d->past[p->match[k] - 1] : NULL;
        if (!m || m->class != REFERENCE || !m->owner)
            continue;
        int run = log_run(p->length[k]);
        say(v, 42 + k, run, p->line - (d->entity[m->owner - 1].id - m->value));
        if (m->target >= p->first)
            say(v, 44 + k, run, m->value);
    }
}

static void ask_number(struct draft *d, struct votes *v)
{
    const struct place *p = &d->p;
    uint64_t at = position(p), t1 = mix(at, p->types[0]), t3 = mix(mix(t1, p->types[1]), p->types[2]), tuple = at;
    for (int i = 0; i < p->n_numbers && i < 4; i++)
        tuple = mix(tuple, p->number[i]);
    v->n = 0;
    ask(d, v, 50, ITSELF, at);
    ask(d, v, 51, ITSELF, tuple);
    ask(d, v, 52, ITSELF, mix(tuple, p->types[0]));
    ask(d, v, 53, ITSELF, t1);
    ask(d, v, 54, ITSELF, t3);
    ask(d, v, 56, ITSELF, mix(at, stack_hash(d, 3)));
    if (p->n_numbers)
        ask(d, v, 57, ITSELF, mix(at, p->number[0]));
    if (p->type == POINT && p->item < 3) {
        ask(d, v, 59, COPIED, mix(at, stack_hash(d, 3)));
        const uint32_t *to = point_of(d, p->loop_to), *from = point_of(d, p->loop_from);
        if (to)
            say(v, 62, p->item ? 1 + (p->number[0] == to[p->item - 1]) : 0, to[p->item]);
        if (from)
            say(v, 63, p->item ? 1 + (p->number[0] == from[p->item - 1]) : 0, from[p->item]);
    }
    if (p->type == DIRECTION && p->item < 3) {
        double x = p->item > 0 ? value_of(d, p->number[p->item - 1]) : 0, y = p->item > 1 ? value_of(d, p->number[0]) : 0, rest = 1 - x * x - y * y;
        if (p->item > 0) {
            say(v, 64, p->item, spell(d, sqrt(rest > 0 ? rest : 0)));
            say(v, 65, p->item, spell(d, -sqrt(rest > 0 ? rest : 0)));
        }
        double along[3];
        if (along_edge(d, along))
            for (int k = 0; k < 2; k++)
                say(v, 66 + k, agrees(d, along, k ? -1 : 1), spell(d, k ? -along[p->item] : along[p->item]));
    }
    const struct entity *axis = p->type == CIRCLE && p->n_entities ? entity_of(d, d->entity[p->n_entities - 1].ref[0]) : NULL;
    const struct entity *centre = axis ? entity_of(d, axis->ref[0]) : NULL;
    if (centre && centre->n_numbers == 3) {
        const struct entity *end[2];
        edge_ends(d, end);
        for (int k = 0; k < 2; k++) {
            const uint32_t *at_end = end[k] ? point_of(d, end[k]->id) : NULL;
            double sum = 0;
            for (int i = 0; i < 3 && at_end; i++)
                sum += pow(value_of(d, at_end[i]) - value_of(d, centre->number[i]), 2);
            if (sum > 0)
                say(v, 68 + k, 0, spell(d, sqrt(sum)));
        }
    }
    for (int k = 0; k < 2; k++)
        if (p->match[k] && d->past[p->match[k] - 1].class == NUMBER)
            say(v, 70 + k, log_run(p->length[k]), d->past[p->match[k] - 1].value);
}

/* ---- what they come to ---- */

struct choice {
    int64_t value;
    float score, chance;
};

static float evidence(uint16_t right)
{
    float p = ((float)right + 32) / 65600;
    return -logf(1 - p);
}

/* The answers with what speaks for them, as shares of one (something else has its share, too). */
static int count(const struct draft *d, const struct votes *v, const float *weight, struct choice *c)
{
    int n = 0;
    for (int i = 0; i < v->n; i++)
        for (int k = 0; k < 2; k++) {
            const struct vote *x = &v->v[i];
            int j = 0, e = x->expert + k * SECOND;
            if (x->value[k] < 0)
                continue;
            while (j < n && c[j].value != x->value[k])
                j++;
            if (j == n && n == FIT)
                continue;
            if (j == n)
                c[n++] = (struct choice){.value = x->value[k]};
            c[j].score += weight[e] * evidence(d->right[e][x->run]);
        }
    float most = 0, sum = 0;
    for (int i = 0; i < n; i++)
        most = c[i].score > most ? c[i].score : most;
    for (int i = 0; i < n; i++)
        sum += c[i].chance = expf(c[i].score - most);
    sum += expf(-most);
    for (int i = 0; i < n; i++)
        c[i].chance /= sum;
    return n;
}

static void adapt(uint16_t *p, bool hit, int rate)
{
    *p = (uint16_t)(hit ? *p + (65535 - *p) / rate : *p - *p / rate);
}

static float *weights(struct draft *d, int stage)
{
    const struct place *p = &d->p;
    uint64_t h = stage == 0 ? mix(p->c[0], p->type == 0) : mix(mix(p->type, (uint64_t)stage), (uint64_t)(stage == 1 ? p->n_refs : p->item));
    return d->weight[h >> (64 - WEIGHT_BITS)];
}

static void learn_from(struct draft *d, struct votes *v, int stage, int64_t value)
{
    struct choice c[FIT];
    float *weight = weights(d, stage);
    int n = count(d, v, weight, c);
    for (int i = 0; i < v->n; i++) {
        struct vote *x = &v->v[i];
        struct slot *s = x->slot;
        int64_t code;
        bool hit = x->value[0] == value;
        for (int k = 0; k < 2; k++) {
            int e = x->expert + k * SECOND, j = 0;
            if (x->value[k] < 0 || (k && hit))
                continue;
            while (j < n && c[j].value != x->value[k])
                j++;
            if (j < n)
                weight[e] += STEP * ((float)(x->value[k] == value) - c[j].chance) * evidence(d->right[e][x->run]);
            adapt(&d->right[e][x->run], x->value[k] == value, 30);
        }
        if (!s)
            continue;
        if (hit) {
            s->run += s->run < RUNS - 1;
        } else if (encode(d, x->respect, value, &code) && code == (int32_t)code) {
            s->value[1] = s->value[0];
            s->value[0] = (int32_t)code;
            s->filled += s->filled < 2;
            s->run = s->run > 4 ? 2 : 0;
        } else {
            s->run = 0;
        }
    }
}

static void learn(struct draft *d, uint32_t class, int64_t value)
{
    struct votes v;
    ask_class(d, &v);
    learn_from(d, &v, 0, class);
    if (class == REFERENCE) {
        ask_reference(d, &v);
        learn_from(d, &v, 1, value);
    } else if (class == NUMBER) {
        ask_number(d, &v);
        learn_from(d, &v, 2, value);
        size_t n;
        const char *s = literal(d, (uint32_t)value, &n), *dot = memchr(s, '.', n);
        size_t decimals = dot ? (size_t)(s + n - dot) - 1 : 0;
        for (size_t i = 0; dot && i <= decimals && i < 16; i++)
            adapt(&d->ends[i], i == decimals, 20);
    }
    advance(d, class, value);
}

/* ---- symbols of a text ---- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || is_digit(c) || c == '_' || (unsigned char)c >= 0x80;
}

/* The symbol in text from lexeme_at is whole. */
static void finish_symbol(struct draft *d)
{
    const char *s = d->text.s + d->lexeme_at;
    size_t n = d->text.n - d->lexeme_at;
    enum lexeme k = d->lexeme;
    d->lexeme = NOTHING;
    if (k == HASH && n > 1 && n < 18 && is_digit(s[n - 1])) {
        int64_t v = atoll(s + 1);
        if (v >= MAX_ID || v <= -MAX_ID)
            learn(d, intern(d, s, n), 0);
        else if (d->p.symbols == 0 && d->p.depth == 0)
            learn(d, DEFINITION, v);
        else
            learn(d, REFERENCE, d->p.compact ? d->p.line - v : v);
    } else if (k == NUMERAL || (k == DOT && n > 1 && is_digit(s[1]))) {
        learn(d, NUMBER, intern(d, s, n));
    } else if (n) {
        learn(d, intern(d, s, n), 0);
    }
    d->lexeme_at = d->text.n;
}

static bool goes_on(const struct draft *d, char c)
{
    const char *s = d->text.s + d->lexeme_at;
    size_t n = d->text.n - d->lexeme_at;
    if (n >= LONGEST)
        return false;
    switch (d->lexeme) {
    case WORD:
        return is_word(c) || (c == '-' && d->p.symbols == 0);
    case HASH:
        return is_digit(c) || (c == '-' && n == 1);
    case NUMERAL:
        return is_digit(c) || c == '.' || c == 'E' || c == 'e' || ((c == '-' || c == '+') && (s[n - 1] == 'E' || s[n - 1] == 'e'));
    case STRING:
        return c != '\n';
    case DOT:
        return is_word(c) || (c == '.' && n > 1 && !is_digit(s[1]));
    case SLASH:
        return c == '*';
    case COMMENT:
        return true;
    default:
        return false;
    }
}

static void add_byte(struct draft *d, char c)
{
    if (d->lexeme != NOTHING && !goes_on(d, c))
        finish_symbol(d);
    if (d->lexeme == NOTHING) {
        d->lexeme_at = d->text.n;
        d->lexeme = c == '#' ? HASH : c == '\'' ? STRING : c == '.' ? DOT : c == '/' ? SLASH : is_digit(c) || c == '-' || c == '+' ? NUMERAL : is_word(c) ? WORD : NOTHING;
        buf_putc(&d->text, c);
        if (d->lexeme == NOTHING)
            finish_symbol(d);
        return;
    }
    buf_putc(&d->text, c);
    size_t n = d->text.n - d->lexeme_at;
    if ((d->lexeme == STRING && c == '\'') || (d->lexeme == DOT && c == '.') ||
        (d->lexeme == COMMENT && c == '/' && n > 3 && d->text.s[d->text.n - 2] == '*'))
        finish_symbol(d);
    else if (d->lexeme == SLASH)
        d->lexeme = COMMENT;
}

void draft_add(struct draft *d, int32_t id)
{
    size_t n = 0;
    char other[24];
    const char *s = d->t ? tok_bytes(d->t, id, &n) : NULL;
    if (!d->t) { /* tokens are words */
        n = (size_t)snprintf(other, sizeof other, "t%d ", id);
        s = other;
    }
    for (size_t i = 0; i < n; i++)
        add_byte(d, s[i]);
    d->tail[d->n_tokens % TAIL] = id;
    d->tail_end[d->n_tokens++ % TAIL] = d->text.n;
}

/* ---- a guess ---- */

/* Renders an answer; false: it does not begin with what is there already. */
static bool render(const struct draft *d, uint32_t class, int64_t value, const char *have, size_t n_have, struct buf *out)
{
    char s[32];
    const char *text = s;
    size_t n;
    if (class == REFERENCE || class == DEFINITION) {
        if (class == REFERENCE && !d->p.compact && value <= 0)
            return false;
        n = (size_t)snprintf(s, sizeof s, "#%lld", (long long)(class == REFERENCE && d->p.compact ? d->p.line - value : value));
    } else {
        text = literal(d, class == NUMBER ? (uint32_t)value : class, &n);
    }
    if (n < n_have || memcmp(text, have, n_have))
        return false;
    if (out)
        buf_add(out, text + n_have, n - n_have);
    return true;
}

/* Among answers the best that begins with what is there; its chance. */
static double best_of(struct draft *d, struct votes *v, int stage, uint32_t class, const char *have, size_t n_have, int64_t *value)
{
    struct choice c[FIT];
    int n = count(d, v, weights(d, stage), c), best = -1;
    float out = 0;
    for (int i = 0; i < n; i++) {
        uint32_t k = stage == 0 ? (uint32_t)c[i].value : class;
        bool fits = true;
        if (n_have) {
            if (stage == 0 && k == REFERENCE)
                fits = have[0] == '#' && (d->p.symbols > 0 || d->p.depth > 0);
            else if (stage == 0 && k == DEFINITION)
                fits = have[0] == '#' && d->p.symbols == 0;
            else if (stage == 0 && k == NUMBER)
                fits = is_digit(have[0]) || have[0] == '-' || have[0] == '+';
            else
                fits = render(d, k, c[i].value, have, n_have, NULL);
        }
        if (!fits)
            out += c[i].chance;
        else if (best < 0 || c[i].chance > c[best].chance)
            best = i;
    }
    if (best < 0)
        return 0;
    *value = c[best].value;
    return (double)(c[best].chance / (1 - out + 1e-6f));
}

/* The latest number (or literal) that begins with what is there; EMPTY: none. */
static uint32_t latest_like(const struct draft *d, bool number, const char *have, size_t n_have)
{
    size_t n;
    for (size_t i = d->p.n_past, k = 0; i > 0 && k < 600; i--, k++) {
        const struct past *x = &d->past[i - 1];
        uint32_t s = x->class == NUMBER ? (uint32_t)x->value : x->class;
        if ((x->class == NUMBER) != number || s < FIRST_LITERAL)
            continue;
        const char *text = literal(d, s, &n);
        if (n > n_have && !memcmp(text, have, n_have))
            return s;
    }
    return EMPTY;
}

/* A reference that begins with what is there: the latest to the type that was thought of, or what is there itself. */
static int64_t reference_like(struct draft *d, struct votes *v, const char *have, size_t n_have, double *chance)
{
    struct choice c[FIT];
    int n = count(d, v, weights(d, 1), c), best = 0;
    int64_t here = strtoll(have + 1, NULL, 10);
    for (int i = 1; i < n; i++)
        best = c[i].chance > c[best].chance ? i : best;
    const struct entity *like = n ? entity_of(d, c[best].value) : NULL;
    *chance = 0.3;
    for (size_t i = d->p.n_entities, k = 0; like && i > 0 && k < 400; i--, k++)
        if (d->entity[i - 1].type == like->type && d->entity[i - 1].id < d->p.line && (int32_t)i >= d->p.first &&
            render(d, REFERENCE, d->entity[i - 1].id, have, n_have, NULL))
            return d->entity[i - 1].id;
    return here <= 0 ? -1 : d->p.compact ? d->p.line - here : here;
}

/* The next symbol behind the n_have bytes of it that are there, appended to more; its chance. */
static double guess_symbol(struct draft *d, const char *have, size_t n_have)
{
    struct votes v;
    int64_t class = -1, value = 0;
    ask_class(d, &v);
    double chance = best_of(d, &v, 0, 0, have, n_have, &class);
    if (class < 0 && n_have) {
        class = have[0] == '#' ? (d->p.symbols || d->p.depth ? REFERENCE : DEFINITION) : is_digit(have[0]) || have[0] == '-' ? NUMBER : -1;
        chance = 0.9;
    }
    if (class < 0 && n_have) {
        class = latest_like(d, false, have, n_have);
        chance = 0.3;
    }
    if (class < 0 || class == EMPTY)
        return 0;
    if (class == REFERENCE) {
        ask_reference(d, &v);
        value = -1;
        chance *= best_of(d, &v, 1, REFERENCE, have, n_have, &value);
        if (value < 0 && n_have > 1)
            value = reference_like(d, &v, have, n_have, &chance);
    } else if (class == NUMBER) {
        ask_number(d, &v);
        value = -1;
        chance *= best_of(d, &v, 2, NUMBER, have, n_have, &value);
        if (value < 0 && n_have) { /* a new number: it may be whole, or one of before */
            const char *dot = memchr(have, '.', n_have);
            size_t decimals = dot ? (size_t)(have + n_have - dot) - 1 : 0;
            double whole = dot ? d->ends[decimals < 15 ? decimals : 15] / 65536.0 : 0;
            uint32_t other = whole < 0.5 ? latest_like(d, true, have, n_have) : EMPTY;
            chance = other != EMPTY ? 0.3 : dot ? whole : 0.3;
            value = other;
            if (other == EMPTY) {
                buf_add(&d->more, ".", !dot);
                advance(d, NUMBER, EMPTY);
                return chance;
            }
        }
    } else if (class == DEFINITION) {
        value = d->p.line + 1;
    }
    if (value < 0 || !render(d, (uint32_t)class, value, have, n_have, &d->more))
        return 0;
    advance(d, (uint32_t)class, value);
    return chance;
}

int64_t draft_wide(const int *wide, int64_t n)
{
    for (; wide && *wide; wide++)
        if (*wide >= n)
            return *wide;
    return n;
}

size_t draft_guess(struct draft *d, int32_t *out, size_t n, const struct draft_cost *cost)
{
    struct place p = d->p;
    struct { size_t end; double chance; } to[4 * MAX_GUESS];
    size_t n_to = 0, first = d->n_tokens, from = d->text.n;
    n = n < MAX_GUESS ? n : MAX_GUESS;
    if (!n || !d->n_tokens)
        return 0;
    /* Tokens do not end where symbols do: the line is tokenised with what is guessed. */
    for (size_t i = d->n_tokens; d->t && i > 0 && i + TAIL > d->n_tokens + 1; i--) {
        size_t end = d->tail_end[(i - 1) % TAIL];
        if (end > 0 && d->text.s[end - 1] == '\n') {
            first = i;
            from = end;
            break;
        }
    }
    buf_clear(&d->more);
    buf_add(&d->more, d->text.s + from, d->text.n - from);
    size_t known = d->more.n;
    d->guessing = true;
    d->n_undo = 0;
    double chance = 1, floor = cost && cost->pass > 0 ? 0.25 * cost->column / (cost->pass + cost->column) : 0;
    size_t have = d->lexeme == NOTHING ? 0 : d->text.n - d->lexeme_at;
    size_t enough = known + n * (d->text.n / d->n_tokens + 1) + 24;
    while (n_to < ARRAY_LEN(to) && d->more.n < enough) {
        char partial[LONGEST + 1];
        memcpy(partial, d->text.s + d->text.n - have, have);
        double k = guess_symbol(d, partial, have);
        if (k <= 0 || (chance *= k) <= floor)
            break;
        to[n_to].end = d->more.n;
        to[n_to++].chance = chance;
        have = 0;
    }
    take_back(d, &p);
    d->guessing = false;
    if (n_to == 0)
        return 0;
    d->more.s[d->more.n = to[n_to - 1].end] = 0;
    if (!d->t) {
        size_t got = 0;
        for (char *s = d->more.s + known; got < n && *s == 't' && strchr(s, ' '); s = strchr(s, ' ') + 1)
            out[got++] = (int32_t)atoll(s + 1);
        return got;
    }
    d->ids.n = 0;
    if (tok_encode(d->t, d->more.s, d->more.n, false, &d->ids) < 0)
        return 0;
    size_t skip = d->n_tokens - first;
    bool same = d->ids.n >= skip;
    for (size_t i = 0; i < skip && same; i++)
        same = d->ids.v[i] == d->tail[(first + i) % TAIL];
    if (!same) {
        d->ids.n = skip = 0;
        if (tok_encode(d->t, d->more.s + known, d->more.n - known, false, &d->ids) < 0)
            return 0;
    }
    size_t got = 0, take = 0, at = known, k = 0;
    double worth = 1, best = cost ? 1 / (cost->pass + cost->column * (double)draft_wide(cost->wide, 1)) : 0;
    for (size_t i = skip; i < d->ids.n && got < n; i++) {
        size_t bytes = 0;
        tok_bytes(d->t, d->ids.v[i], &bytes);
        at += bytes;
        while (k + 1 < n_to && to[k].end < at)
            k++;
        out[got++] = d->ids.v[i];
        worth += to[k].chance;
        double rate = cost ? worth / (cost->pass + cost->column * (double)draft_wide(cost->wide, (int64_t)got + 1)) : worth;
        if (rate > best) {
            best = rate;
            take = got;
        }
    }
    return take;
}
