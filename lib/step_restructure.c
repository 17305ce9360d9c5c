#include "lib/step_prep.h"

#include <stdlib.h>

#include "lib/err.h"

/* Sections whose place is fixed, as in the original; other types of roots follow in the
 * order in which the file brings them. */
static const char *const leading[] = {
    "PRODUCT_CATEGORY_RELATIONSHIP",
    "APPLICATION_PROTOCOL_DEFINITION",
    "MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION",
    "SHAPE_DEFINITION_REPRESENTATION",
};

struct group {
    const char *title; /* the roots' type */
    size_t roots;
    uint32_t first, last; /* chain of its roots */
    uint32_t begin;       /* place of its first instance in the order */
};
struct frame {
    uint32_t entity, next; /* next reference to follow */
};
enum { UNSEEN, OPEN, DONE };
struct walk {
    const struct step_file *f;
    bool parent_first;
    uint32_t last_first[2]; /* types whose last reference is followed first */
    uint8_t *state; /* UNSEEN, OPEN, DONE */
    uint32_t *order; /* instances in the order of the output */
    size_t n;
    struct frame *stack;
    struct step_restructure_report *report;
};

static void close_cycle(struct walk *w, uint32_t from, uint32_t to)
{
    if (!w->report->cyclic++) {
        w->report->cycle[0] = w->f->v[from].id;
        w->report->cycle[1] = w->f->v[to].id;
    }
}

static void walk_from(struct walk *w, uint32_t root)
{
    const struct step_file *f = w->f;
    size_t depth = 0;
    w->stack[depth++] = (struct frame){.entity = root};
    w->state[root] = OPEN;
    if (w->parent_first)
        w->order[w->n++] = root;
    while (depth) {
        struct frame *top = &w->stack[depth - 1];
        const struct step_entity *e = &f->v[top->entity];
        if (top->next == e->n_ref) {
            w->state[top->entity] = DONE;
            if (!w->parent_first)
                w->order[w->n++] = top->entity;
            depth--;
            continue;
        }
        uint32_t k = top->next++;
        if (e->type == w->last_first[0] || e->type == w->last_first[1])
            k = k ? k - 1 : e->n_ref - 1;
        uint32_t child = f->refs[e->ref + k].target;
        if (child == STEP_NONE)
            continue;
        if (w->state[child] == OPEN)
            close_cycle(w, top->entity, child);
        if (w->state[child] != UNSEEN)
            continue;
        w->state[child] = OPEN;
        if (w->parent_first)
            w->order[w->n++] = child;
        w->stack[depth++] = (struct frame){.entity = child};
    }
}

/* ---- ids ---- */

static int by_id(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

struct missing {
    uint64_t *id; /* sorted, distinct */
    size_t n;
    uint64_t above; /* the largest new id of an instance */
};

static void find_missing(const struct step_file *f, struct missing *m)
{
    if (!f->n_dangling)
        return;
    m->id = xmalloc(f->n_dangling * sizeof *m->id);
    size_t n = 0;
    for (size_t i = 0; i < f->n_refs; i++)
        if (f->refs[i].target == STEP_NONE)
            m->id[n++] = step_ref_id(f->text + f->refs[i].off);
    qsort(m->id, n, sizeof *m->id, by_id);
    for (size_t i = 0; i < n; i++)
        if (!i || m->id[i] != m->id[i - 1])
            m->id[m->n++] = m->id[i];
}

/* A reference to nothing must not come to name something else. */
static uint64_t missing_id(void *ctx, uint64_t old)
{
    struct missing *m = ctx;
    uint64_t *at = bsearch(&old, m->id, m->n, sizeof old, by_id);
    return m->above + 1 + (uint64_t)(at - m->id);
}

/* ---- writing ---- */

struct groups {
    struct group *v;
    size_t n;
};

/* Which points are written as differences. */
struct relating {
    struct step_points points;
    bool *vertex, *origin; /* a vertex's, and a placement's: which comes first */
    struct buf alike;      /* of relate() */
};

static void find_uses(const struct step_file *f, struct relating *r)
{
    uint32_t vertex = step_type_find(f, "VERTEX_POINT"), placement = step_type_find(f, "AXIS2_PLACEMENT_3D");
    r->vertex = xcalloc(f->n + 1, sizeof *r->vertex);
    r->origin = xcalloc(f->n + 1, sizeof *r->origin);
    for (size_t i = 0; i < f->n; i++) {
        const struct step_entity *e = &f->v[i];
        uint32_t target = e->n_ref ? f->refs[e->ref].target : STEP_NONE;
        if (target == STEP_NONE)
            continue;
        if (e->type == vertex)
            r->vertex[target] = true;
        else if (e->type == placement)
            r->origin[target] = true;
    }
}

/* The instance at from in out, which was just written: a vertex tells more as a difference, since its edge has said
 * where it leads; the centre of a hole does so where it lies on an axis of the last point, the pole of a spline where that is shorter. */
static void relate(struct relating *r, uint32_t entity, uint64_t self, size_t from, struct buf *out)
{
    int zeros[2];
    const char *s = out->s + from;
    size_t n = out->n - from;
    r->alike.n = 0;
    bool less = step_point_relative(&r->points, s, n, &r->alike, zeros) &&
                (r->vertex[entity] || (r->origin[entity] ? zeros[1] > zeros[0] : r->alike.n < n));
    step_points_meet(&r->points, self, s, n);
    if (less) {
        out->n = from;
        buf_add(out, r->alike.s, r->alike.n);
    }
}

/* The group that holds a place of the order. */
static size_t group_of_place(const struct groups *g, uint32_t place)
{
    size_t lo = 0, hi = g->n;
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        if (g->v[mid].begin <= place)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* The instances of a section stand at place[0..n) of the order. */
static void put_section(const struct walk *w, const struct groups *g, const struct step_ids *ids, uint16_t section, const uint32_t *place,
                        size_t n, struct relating *relating, struct buf *out)
{
    const struct step_file *f = w->f;
    const struct step_section *s = &f->sections[section];
    buf_puts(out, "DATA");
    if (s->par) {
        buf_putc(out, '(');
        step_put_lean(f->text + s->par, s->par_len, out);
        buf_putc(out, ')');
    }
    buf_puts(out, ";\n");
    size_t next = 0; /* where another group begins */
    for (size_t i = 0; i < n; i++) {
        uint32_t entity = w->order[place[i]];
        if (place[i] >= next) {
            size_t k = group_of_place(g, place[i]);
            next = k + 1 < g->n ? g->v[k + 1].begin : w->n;
            if (g->v[k].title)
                buf_printf(out, "/* %s Section - %zu root%s */\n", g->v[k].title, g->v[k].roots, g->v[k].roots == 1 ? "" : "s");
        }
        size_t from = out->n;
        step_put(f, &f->v[entity], ids, out);
        if (ids->compact)
            step_point_mark(from, out);
        if (relating)
            relate(relating, entity, ids->of[entity], from, out);
        buf_putc(out, '\n');
    }
    buf_puts(out, "ENDSEC;\n");
}

static void chain(struct group *g, uint32_t *next, uint32_t root)
{
    next[root] = STEP_NONE;
    if (g->roots++)
        next[g->last] = root;
    else
        g->first = root;
    g->last = root;
}

/* Sections of roots and the order of everything. */
static struct groups arrange(struct walk *w)
{
    const struct step_file *f = w->f;
    bool *referenced = xcalloc(f->n + 1, sizeof *referenced);
    uint32_t *next = xmalloc((f->n + 1) * sizeof *next);         /* root of the same group */
    uint32_t *group_of = xmalloc((f->n_types + 1) * sizeof *group_of); /* by type */
    struct groups g = {.v = xcalloc(f->n_types + ARRAY_LEN(leading) + 2, sizeof *g.v)};

    for (size_t i = 0; i < f->n; i++)
        for (uint32_t k = 0; k < f->v[i].n_ref; k++) {
            uint32_t target = f->refs[f->v[i].ref + k].target;
            if (target != STEP_NONE && target != i)
                referenced[target] = true;
        }
    memset(group_of, 0xff, f->n_types * sizeof *group_of);
    for (; g.n < ARRAY_LEN(leading); g.n++) {
        g.v[g.n].title = leading[g.n];
        uint32_t type = step_type_find(f, leading[g.n]);
        if (type != STEP_NONE)
            group_of[type] = (uint32_t)g.n;
    }
    struct group apart = {.title = "Unattached"};
    for (uint32_t i = 0; i < f->n; i++) {
        if (referenced[i])
            continue;
        uint32_t *in = &group_of[f->v[i].type];
        w->report->roots++;
        if (!f->v[i].n_ref) {
            chain(&apart, next, i);
            continue;
        }
        if (*in == STEP_NONE) {
            *in = (uint32_t)g.n;
            g.v[g.n++].title = step_type(f, f->v[i].type);
        }
        chain(&g.v[*in], next, i);
    }
    size_t kept = 0;
    for (size_t k = 0; k < g.n; k++) {
        if (!g.v[k].roots)
            continue;
        g.v[k].begin = (uint32_t)w->n;
        for (uint32_t r = g.v[k].first; r != STEP_NONE; r = next[r])
            walk_from(w, r);
        g.v[kept++] = g.v[k];
    }
    g.n = kept;
    /* What no root reaches hangs on a cycle: enter it where the file does. */
    struct group cycles = {.title = "Cyclic", .begin = (uint32_t)w->n};
    for (uint32_t i = 0; i < f->n; i++)
        if (w->state[i] == UNSEEN && referenced[i]) {
            walk_from(w, i);
            cycles.roots++;
        }
    if (cycles.roots)
        g.v[g.n++] = cycles;
    if (apart.roots) {
        apart.begin = (uint32_t)w->n;
        for (uint32_t r = apart.first; r != STEP_NONE; r = next[r])
            walk_from(w, r);
        g.v[g.n++] = apart;
    }
    free(referenced);
    free(next);
    free(group_of);
    return g;
}

/* As the file has them: one chain without a title. */
static struct groups keep(struct walk *w)
{
    struct groups g = {.v = xcalloc(1, sizeof *g.v), .n = 1};
    bool *referenced = xcalloc(w->f->n + 1, sizeof *referenced);
    for (; w->n < w->f->n; w->n++)
        w->order[w->n] = (uint32_t)w->n;
    for (size_t i = 0; i < w->f->n; i++)
        for (uint32_t k = 0; k < w->f->v[i].n_ref; k++) {
            uint32_t target = w->f->refs[w->f->v[i].ref + k].target;
            if (target != STEP_NONE && target != i)
                referenced[target] = true;
        }
    for (size_t i = 0; i < w->f->n; i++)
        w->report->roots += !referenced[i];
    free(referenced);
    return g;
}

/* Places data sections so that what one refers to stands ahead of it, where they do not refer to each other in a ring. */
static uint16_t *order_sections(const struct step_file *f, bool sort)
{
    size_t n = f->n_sections, at = 0;
    uint16_t *order = xmalloc((n + 1) * sizeof *order);
    struct frame *stack = xmalloc((n + 1) * sizeof *stack); /* an instance of each section that is entered, and its next reference */
    bool *entered = xcalloc(n + 1, sizeof *entered);
    for (size_t s = 0; s < n; s++) {
        size_t depth = 0;
        if (!entered[s])
            stack[depth++] = (struct frame){.entity = f->sections[s].first};
        uint16_t section = (uint16_t)s;
        entered[s] = true;
        while (depth) {
            struct frame *top = &stack[depth - 1];
            const struct step_section *in = &f->sections[section];
            if (!sort || top->entity == in->first + in->n) {
                order[at++] = section;
                if (--depth)
                    section = f->v[stack[depth - 1].entity].section;
            } else if (top->next == f->v[top->entity].n_ref) {
                *top = (struct frame){.entity = top->entity + 1};
            } else {
                uint32_t target = f->refs[f->v[top->entity].ref + top->next++].target;
                if (target == STEP_NONE || entered[f->v[target].section])
                    continue;
                section = f->v[target].section;
                entered[section] = true;
                stack[depth++] = (struct frame){.entity = f->sections[section].first};
            }
        }
    }
    free(entered);
    free(stack);
    return order;
}

int step_restructure(const char *name, const char *text, size_t n, const struct step_restructure_opts *opts,
                     struct buf *out, struct step_restructure_report *report)
{
    struct step_file *f;
    int rc = step_parse(name, text, n, STEP_NO_HEADER, &f);
    if (rc < 0)
        return rc;
    *report = (struct step_restructure_report){.entities = f->n, .dangling = f->n_dangling, .skipped = f->n_skipped};
    struct walk w = {.f = f, .parent_first = opts->order == STEP_PARENT_FIRST, .report = report};
    w.last_first[0] = opts->geometry_first ? step_type_find(f, "EDGE_CURVE") : STEP_NONE;
    w.last_first[1] = opts->geometry_first ? step_type_find(f, "ADVANCED_FACE") : STEP_NONE;
    w.state = xcalloc(f->n + 1, sizeof *w.state);
    w.order = xmalloc((f->n + 1) * sizeof *w.order);
    w.stack = xmalloc((f->n + 1) * sizeof *w.stack);
    struct groups g = opts->order == STEP_ORIGINAL ? keep(&w) : arrange(&w);
    for (size_t k = 0; k < g.n && opts->bare; k++)
        g.v[k].title = NULL;

    uint64_t *id = xmalloc((f->n + 1) * sizeof *id);
    uint32_t *place = xmalloc((f->n + 1) * sizeof *place), *first = xmalloc((f->n_sections + 1) * sizeof *first); /* section by section */
    uint16_t *sections = order_sections(f, opts->order == STEP_CHILDREN_FIRST);
    for (uint32_t s = 0, sum = 0; s < f->n_sections; sum += f->sections[sections[s++]].n)
        first[sections[s]] = sum;
    for (uint32_t i = 0; i < w.n; i++) {
        uint32_t k = first[f->v[w.order[i]].section]++;
        place[k] = i;
        id[w.order[i]] = k + 1;
    }
    for (size_t i = 0; i < f->n; i++)
        for (uint32_t k = 0; k < f->v[i].n_ref; k++) {
            uint32_t target = f->refs[f->v[i].ref + k].target;
            if (target == STEP_NONE || id[target] <= id[i])
                continue;
            report->forward++;
            if (opts->forward && opts->order == STEP_CHILDREN_FIRST) {
                struct step_forward r = {id[i], id[target], f->v[i].id, f->v[target].id};
                buf_add(opts->forward, &r, sizeof r);
            }
        }
    struct missing missing = {.above = f->n};
    find_missing(f, &missing);
    struct step_ids ids = {.f = f, .of = id, .dangling = missing_id, .ctx = &missing, .compact = opts->compact};

    struct relating relating = {.alike = BUF_INIT};
    bool relative = opts->compact && opts->relative;
    if (relative)
        find_uses(f, &relating);

    buf_grow(out, n);
    if (f->n_header)
        step_put_header(f, out);
    for (size_t s = 0, k = 0; s < f->n_sections; k += f->sections[sections[s++]].n)
        put_section(&w, &g, &ids, sections[s], place + k, f->sections[sections[s]].n, relative ? &relating : NULL, out);
    buf_puts(out, "END-ISO-10303-21;\n");

    step_points_release(&relating.points);
    buf_release(&relating.alike);
    free(relating.vertex);
    free(relating.origin);
    free(sections);
    free(first);
    free(place);
    free(missing.id);
    free(id);
    free(g.v);
    free(w.state);
    free(w.order);
    free(w.stack);
    step_free(f);
    return ERR_OK;
}
