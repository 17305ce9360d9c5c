#include "lib/scores.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"

const char *const score_tools[SCORE_TOOLS] = {"complete-ratio", "renderability", "chamfer", "entity-stats"};

/* A growing list of numbers. */
struct numbers {
    double *v;
    size_t n, cap;
};

static void add_number(struct numbers *l, double v)
{
    ARRAY_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n++] = v;
}

/* ---- rows of SQLite ---- */

static int sq_err(sqlite3 *sq)
{
    return err_set(ERR_IO, "run database: %s", sqlite3_errmsg(sq));
}

static double real_at(sqlite3_stmt *s, int i)
{
    return sqlite3_column_type(s, i) == SQLITE_NULL ? NAN : sqlite3_column_double(s, i);
}

/* "" for NULL. */
static const char *text_at(sqlite3_stmt *s, int i)
{
    const char *t = (const char *)sqlite3_column_text(s, i);
    return t ? t : "";
}

static char *copy_at(sqlite3_stmt *s, int i)
{
    const char *t = (const char *)sqlite3_column_text(s, i);
    return t && *t ? xstrdup(t) : NULL;
}

/* A path as a tool got it, in its folder, as it can be opened here; the same file has one path. */
static char *resolve(const char *cwd, const char *path)
{
    char real[PATH_MAX], *joined = *path == '/' || !*cwd ? xstrdup(path) : path_join(cwd, path);
    if (realpath(joined, real) || realpath(path, real)) { /* the latter: recorded elsewhere */
        free(joined);
        return xstrdup(real);
    }
    return joined;
}

/* ---- parts, found by their file ---- */

static uint32_t *slot_of(struct score_label *l, const char *key)
{
    size_t at = (size_t)fnv1a(FNV_INIT, key, strlen(key)) & (l->n_slots - 1);
    for (;; at = (at + 1) & (l->n_slots - 1)) {
        const struct score_part *p = l->slot[at] ? &l->part[l->slot[at] - 1] : NULL;
        if (!p || !strcmp(p->file ? p->file : p->truth, key))
            return &l->slot[at];
    }
}

static struct score_part *find_part(struct score_label *l, const char *key)
{
    uint32_t *slot = l->n_slots ? slot_of(l, key) : NULL;
    return slot && *slot ? &l->part[*slot - 1] : NULL;
}

/* The part whose file (or, if is_truth, whose truth) is key, made if there is none.  Takes key. */
static struct score_part *part_of(struct score_label *l, char *key, bool is_truth)
{
    if (2 * l->n_parts >= l->n_slots) {
        free(l->slot);
        l->n_slots = l->n_slots ? 4 * l->n_slots : 64;
        l->slot = xcalloc(l->n_slots, sizeof *l->slot);
        for (size_t i = 0; i < l->n_parts; i++)
            *slot_of(l, l->part[i].file ? l->part[i].file : l->part[i].truth) = (uint32_t)i + 1;
    }
    uint32_t *slot = slot_of(l, key);
    if (*slot) {
        free(key);
        return &l->part[*slot - 1];
    }
    ARRAY_GROW(l->part, l->cap_parts, l->n_parts + 1);
    *slot = (uint32_t)++l->n_parts;
    struct score_part *p = &l->part[l->n_parts - 1];
    *p = (struct score_part){.complete = -1, .renderable = -1, .scd = NAN, .scd_two_sided = NAN, .f_score = NAN,
                             .volume_ratio = NAN, .entities = NAN, .tokens = NAN, .name = path_stem(key)};
    if (is_truth)
        p->truth = key;
    else
        p->file = key;
    return p;
}

/* ---- reasons ---- */

/* "12:4: ',' is due" -> "',' is due"; "invalid: ..." -> "invalid"; for chamfer "pred_failed: timeout: over
 * 30 s" -> "pred_failed: timeout". */
static char *reason_class(enum score_tool tool, const char *reason)
{
    const char *p = reason, *end;
    while (isdigit((unsigned char)*p) || (p > reason && *p == ':'))
        p++;
    p += strspn(p, " ");
    if (!*p)
        p = reason;
    end = p + strlen(p);
    const char *colon = strstr(p, ": ");
    if (colon && tool == SCORE_CD && strstr(colon + 2, ": "))
        colon = strstr(colon + 2, ": ");
    else if (tool == SCORE_CD)
        colon = NULL;
    if (colon && tool != SCORE_CR)
        end = colon;
    size_t n = (size_t)(end - p), at = 1;
    while (at < n && !(p[at - 1] == ' ' && strchr("#0123456789", p[at])))
        at++;
    n = at; /* what follows a number is of one file alone */
    n = n > 60 ? 60 : n;
    while (n && (p[n - 1] == ' ' || p[n - 1] == ','))
        n--;
    while (n && ((unsigned char)p[n] & 0xc0) == 0x80) /* not amid a character */
        n--;
    return xstrndup(p, n);
}

static void count_reason(struct score_row *r, enum score_tool tool, const char *reason)
{
    char *class = reason_class(tool, reason && *reason ? reason : "no reason given");
    size_t i = 0;
    while (i < r->n_reasons && (r->reason[i].tool != tool || strcmp(r->reason[i].reason, class)))
        i++;
    if (i == r->n_reasons) {
        ARRAY_GROW(r->reason, r->cap_reasons, r->n_reasons + 1);
        r->reason[r->n_reasons++] = (struct score_reason){tool, class, 0};
    } else {
        free(class);
    }
    r->reason[i].n++;
}

static int by_tool_and_number(const void *a, const void *b)
{
    const struct score_reason *x = a, *y = b;
    if (x->tool != y->tool)
        return x->tool < y->tool ? -1 : 1;
    if (x->n != y->n)
        return x->n > y->n ? -1 : 1;
    return strcmp(x->reason, y->reason);
}

/* ---- the tools' items ---- */

#define FIELD(name) "CASE WHEN json_valid(result) THEN json_extract(result,'$." name "') END"

static const char *const item_sql[SCORE_TOOLS] = {
    [SCORE_CR] = "SELECT item,state,reason," FIELD("complete") " FROM items WHERE run_id=?",
    [SCORE_RR] = "SELECT item,state,reason," FIELD("renderable") " FROM items WHERE run_id=?",
    [SCORE_CD] = "SELECT item,state,reason," FIELD("status") "," FIELD("pred") "," FIELD("truth") "," FIELD("scd") ","
                 FIELD("scd_two_sided") "," FIELD("f_score") "," FIELD("volume_ratio") "," FIELD("rotation") ","
                 FIELD("translation") " FROM items WHERE run_id=?",
    [SCORE_AEC] = "SELECT item,state,reason," FIELD("entities") " FROM items WHERE run_id=?",
};

struct reading {
    sqlite3 *sq;
    const struct scores_request *q;
    struct score_row *row;
    struct score_label *label; /* NULL: no parts of this run are wanted */
    const char *cwd;
    size_t k, n;               /* successes of n */
    struct numbers a, b, f;
};

static void read_place(struct score_part *p, const char *rotation, const char *translation)
{
    const char *s[2] = {rotation, translation};
    int n = 0;
    for (int i = 0; i < 2; i++)
        for (const char *at = s[i]; *at && n < 12;) {
            char *end;
            double v = strtod(at + 1, &end); /* past '[' or ',' */
            if (end == at + 1 || !isfinite(v))
                break;
            p->place[n++] = v;
            at = end;
        }
    p->placed = n == 12;
}

static void take_pair(struct reading *r, sqlite3_stmt *s)
{
    struct score_row *row = r->row;
    const char *status = text_at(s, 3), *pred = text_at(s, 4), *truth = text_at(s, 5);
    bool ok = !strcmp(status, "ok");
    if (ok) {
        add_number(&r->a, real_at(s, 6));
        add_number(&r->b, real_at(s, 7));
        if (!isnan(real_at(s, 8)))
            add_number(&r->f, real_at(s, 8));
    } else {
        row->truth_failed += !strcmp(status, "truth_failed");
        row->truth_missing += !strcmp(status, "no_truth");
        row->pred_missing += !strcmp(status, "no_pred");
        row->pred_failed += strcmp(status, "truth_failed") && strcmp(status, "no_truth") && strcmp(status, "no_pred");
        count_reason(row, SCORE_CD, text_at(s, 2));
    }
    if (!r->label || (!*pred && !*truth))
        return;
    struct score_part *p = part_of(r->label, resolve(r->cwd, *pred ? pred : truth), !*pred);
    if (*pred && *truth && !p->truth)
        p->truth = resolve(r->cwd, truth);
    p->scd = ok ? real_at(s, 6) : NAN;
    p->scd_two_sided = ok ? real_at(s, 7) : NAN;
    p->f_score = real_at(s, 8);
    p->volume_ratio = real_at(s, 9);
    if (!ok && !p->no_distance)
        p->no_distance = copy_at(s, 2);
    read_place(p, text_at(s, 10), text_at(s, 11));
}

static void take_item(struct reading *r, enum score_tool tool, sqlite3_stmt *s)
{
    struct score_row *row = r->row;
    const char *state = text_at(s, 1), *reason = text_at(s, 2);
    bool done = !strcmp(state, "done");
    double v = real_at(s, 3);
    if (!strcmp(state, "skipped")) /* not counted by the tool either */
        return;
    struct score_part *p = r->label ? part_of(r->label, resolve(r->cwd, text_at(s, 0)), false) : NULL;
    if (tool == SCORE_AEC) {
        if (done && !isnan(v)) {
            add_number(&r->a, v);
            if (p)
                p->entities = v;
        } else {
            row->unparsed++;
        }
        return;
    }
    bool yes = done && v == 1;
    if (tool == SCORE_CR && !done) {
        row->unread++;
    } else {
        r->n++;
        r->k += yes;
    }
    if (!yes)
        count_reason(row, tool, reason);
    if (!p)
        return;
    char **why = tool == SCORE_CR ? &p->not_complete : &p->not_renderable;
    *(tool == SCORE_CR ? &p->complete : &p->renderable) = yes;
    if (!yes && !*why)
        *why = *reason ? xstrdup(reason) : NULL;
}

static uint64_t seed_of(const struct reading *r, const char *metric)
{
    uint64_t h = fnv1a(FNV_INIT + r->q->seed, r->row->label, strlen(r->row->label));
    return fnv1a(h, metric, strlen(metric)); /* the same for both ways: their intervals compare */
}

static void summarise(struct reading *r, enum score_tool tool)
{
    struct score_row *row = r->row;
    size_t times = r->q->resamples;
    if (tool == SCORE_CR)
        row->cr = stats_proportion(r->k, r->n, times, seed_of(r, "cr"));
    if (tool == SCORE_RR)
        row->rr = stats_proportion(r->k, r->n, times, seed_of(r, "rr"));
    if (tool == SCORE_AEC) {
        row->aec = stats_bootstrap(STATS_MEAN, r->a.v, r->a.n, times, seed_of(r, "aec"));
        row->entities = r->a.v;
        r->a = (struct numbers){0};
    }
    if (tool == SCORE_CD) {
        row->mscd = stats_bootstrap(STATS_MEDIAN, r->a.v, r->a.n, times, seed_of(r, "cd"));
        row->mscd2 = stats_bootstrap(STATS_MEDIAN, r->b.v, r->b.n, times, seed_of(r, "cd"));
        row->f_score = stats_bootstrap(STATS_MEAN, r->f.v, r->f.n, times, seed_of(r, "f"));
        for (size_t i = 0; i < row->pred_failed + row->pred_missing; i++) {
            add_number(&r->a, INFINITY);
            add_number(&r->b, INFINITY);
        }
        row->mscd_worst = stats_bootstrap(STATS_MEDIAN, r->a.v, r->a.n, times, seed_of(r, "worst"));
        row->mscd2_worst = stats_bootstrap(STATS_MEDIAN, r->b.v, r->b.n, times, seed_of(r, "worst"));
    }
    free(r->a.v);
    free(r->b.v);
    free(r->f.v);
    r->a = r->b = r->f = (struct numbers){0};
    r->k = r->n = 0;
}

static int read_items(struct reading *r, enum score_tool tool, int64_t run)
{
    sqlite3_stmt *s = NULL;
    int sq = sqlite3_prepare_v2(r->sq, item_sql[tool], -1, &s, NULL);
    sqlite3_bind_int64(s, 1, run);
    while (sq == SQLITE_OK && (sq = sqlite3_step(s)) == SQLITE_ROW) {
        if (tool == SCORE_CD)
            take_pair(r, s);
        else
            take_item(r, tool, s);
        sq = SQLITE_OK;
    }
    int rc = sq == SQLITE_DONE ? ERR_OK : sq_err(r->sq);
    sqlite3_finalize(s);
    return rc;
}

struct run_found {
    int64_t id; /* 0: none */
    char *cwd;
    int shard, shards; /* of shards; 1 of 1: all items */
};

/* The newest finished run of tool under the label, scored that way; shard: that one of so many, NULL: any. */
static int find_run(sqlite3 *sq, const char *label, bool reference, enum score_tool tool, const char *shard, struct run_found *out)
{
    static const char sql[] =
        "SELECT id,cwd,config FROM runs WHERE tool=?1 AND label=?2 AND state='done' AND"
        " (instr(char(10)||config,char(10)||?3||' = \"reference\"')>0)=?4 AND"
        " (?5 IS NULL OR instr(char(10)||config,char(10)||'shard = \"'||?5||'\"')>0) ORDER BY ended DESC,id DESC LIMIT 1";
    sqlite3_stmt *s = NULL;
    *out = (struct run_found){.shard = 1, .shards = 1};
    if (sqlite3_prepare_v2(sq, sql, -1, &s, NULL) != SQLITE_OK)
        return sq_err(sq);
    sqlite3_bind_text(s, 1, score_tools[tool], -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 2, label, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 3, tool == SCORE_CD ? "align" : "mode", -1, SQLITE_STATIC);
    sqlite3_bind_int(s, 4, reference);
    sqlite3_bind_text(s, 5, shard, -1, SQLITE_STATIC);
    int sq_rc = sqlite3_step(s);
    if (sq_rc == SQLITE_ROW) {
        const char *line = strstr(text_at(s, 2), "shard = \"");
        out->id = sqlite3_column_int64(s, 0);
        out->cwd = xstrdup(text_at(s, 1));
        if (line && sscanf(line, "shard = \"%d/%d\"", &out->shard, &out->shards) != 2)
            out->shard = out->shards = 1;
    }
    sqlite3_finalize(s);
    return sq_rc == SQLITE_ROW || sq_rc == SQLITE_DONE ? ERR_OK : sq_err(sq);
}

/* The items of the newest run or, if it worked on a shard, of the newest of every shard. */
static int read_tool(struct reading *r, const char *label, enum score_tool tool, bool *any)
{
    struct score_row *row = r->row;
    struct run_found f;
    int rc = find_run(r->sq, label, row->reference, tool, NULL, &f);
    int shards = f.shards;
    row->run[tool] = f.id;
    *any |= f.id != 0;
    for (int k = 1; rc == ERR_OK && f.id && k <= shards; k++) {
        if (shards > 1) {
            char shard[32];
            snprintf(shard, sizeof shard, "%d/%d", k, shards);
            free(f.cwd);
            rc = find_run(r->sq, label, row->reference, tool, shard, &f);
            if (rc == ERR_OK && !f.id) {
                row->shards_missing++;
                f.id = row->run[tool]; /* on to the next */
                continue;
            }
        }
        r->cwd = f.cwd;
        if (rc == ERR_OK)
            rc = read_items(r, tool, f.id);
    }
    if (rc == ERR_OK && row->run[tool])
        summarise(r, tool);
    free(f.cwd);
    return rc;
}

static int read_label(sqlite3 *sq, const struct scores_request *q, struct score_label *label, struct scores *out)
{
    bool have_parts[SCORE_TOOLS] = {false};
    int rc = ERR_OK;
    for (int reference = 0; reference < 2 && rc == ERR_OK; reference++) {
        struct score_row row = {.label = label->label, .reference = reference};
        struct stats_interval *const all[] = {&row.cr, &row.rr, &row.aec, &row.mscd, &row.mscd_worst, &row.mscd2,
                                              &row.mscd2_worst, &row.f_score};
        for (size_t i = 0; i < ARRAY_LEN(all); i++)
            *all[i] = (struct stats_interval){NAN, NAN, NAN, 0};
        bool any = false;
        for (int tool = 0; tool < SCORE_TOOLS && rc == ERR_OK; tool++) {
            struct reading r = {.sq = sq, .q = q, .row = &row, .label = q->parts && !have_parts[tool] ? label : NULL};
            rc = read_tool(&r, label->label, tool, &any);
            have_parts[tool] |= row.run[tool] != 0;
        }
        if (row.n_reasons)
            qsort(row.reason, row.n_reasons, sizeof *row.reason, by_tool_and_number);
        if (!any)
            continue;
        row.label = xstrdup(label->label);
        ARRAY_GROW(out->v, out->cap, out->n + 1);
        out->v[out->n++] = row;
    }
    return rc;
}

/* ---- captions, from generate's items ---- */

struct caption {
    char *id, *text;
};

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct caption *)a)->id, ((const struct caption *)b)->id);
}

/* A part not made by generate gets the caption of the record of its name, if all runs agree on it. */
static void caption_by_name(struct scores *out, struct caption *v, size_t n)
{
    if (!n)
        return;
    qsort(v, n, sizeof *v, by_id);
    for (size_t l = 0; l < out->n_labels; l++)
        for (size_t i = 0; i < out->label[l].n_parts; i++) {
            struct score_part *p = &out->label[l].part[i];
            struct caption key = {.id = p->name}, *c = p->caption ? NULL : bsearch(&key, v, n, sizeof *v, by_id);
            bool agreed = c;
            for (struct caption *o = c; agreed && o > v && !strcmp(o[-1].id, c->id); o--)
                agreed = !strcmp(o[-1].text, c->text);
            for (struct caption *o = c; agreed && o + 1 < v + n && !strcmp(o[1].id, c->id); o++)
                agreed = !strcmp(o[1].text, c->text);
            if (agreed)
                p->caption = xstrdup(c->text);
        }
}

static int read_captions(sqlite3 *sq, struct scores *out)
{
    static const char sql[] =
        "SELECT item,cwd," FIELD("caption") "," FIELD("file") "," FIELD("tokens") " FROM items JOIN runs ON runs.id=run_id"
        " WHERE tool='generate' AND items.state='done' ORDER BY runs.id DESC";
    struct caption *v = NULL;
    size_t n = 0, cap = 0;
    sqlite3_stmt *s = NULL;
    int sq_rc = sqlite3_prepare_v2(sq, sql, -1, &s, NULL);
    while (sq_rc == SQLITE_OK && (sq_rc = sqlite3_step(s)) == SQLITE_ROW) {
        sq_rc = SQLITE_OK;
        if (!*text_at(s, 2))
            continue;
        char *file = resolve(text_at(s, 1), text_at(s, 3));
        for (size_t l = 0; l < out->n_labels; l++) {
            struct score_part *p = find_part(&out->label[l], file);
            if (p && !p->caption) { /* the newest run's */
                p->caption = copy_at(s, 2);
                p->tokens = real_at(s, 4);
            }
        }
        free(file);
        ARRAY_GROW(v, cap, n + 1);
        v[n++] = (struct caption){xstrdup(text_at(s, 0)), xstrdup(text_at(s, 2))};
    }
    int rc = sq_rc == SQLITE_DONE ? ERR_OK : sq_err(sq);
    sqlite3_finalize(s);
    caption_by_name(out, v, n);
    for (size_t i = 0; i < n; i++) {
        free(v[i].id);
        free(v[i].text);
    }
    free(v);
    return rc;
}

static int read_not_generated(sqlite3 *sq, struct score_label *l)
{
    static const char sql[] = "SELECT count(*) FROM items WHERE state='failed' AND run_id="
                              "(SELECT max(id) FROM runs WHERE tool='generate' AND label=? AND state='done')";
    sqlite3_stmt *s = NULL;
    if (sqlite3_prepare_v2(sq, sql, -1, &s, NULL) != SQLITE_OK)
        return sq_err(sq);
    sqlite3_bind_text(s, 1, l->label, -1, SQLITE_STATIC);
    int sq_rc = sqlite3_step(s);
    l->not_generated = sq_rc == SQLITE_ROW ? (size_t)sqlite3_column_int64(s, 0) : 0;
    sqlite3_finalize(s);
    return sq_rc == SQLITE_ROW ? ERR_OK : sq_err(sq);
}

static void add_label(struct scores *out, const char *name)
{
    out->label = xrealloc(out->label, (out->n_labels + 1) * sizeof *out->label);
    out->label[out->n_labels++] = (struct score_label){.label = xstrdup(name)};
}

static int list_labels(sqlite3 *sq, struct scores *out)
{
    static const char sql[] = "SELECT label FROM runs WHERE label<>'' AND tool IN('complete-ratio','renderability','chamfer',"
                              "'entity-stats') GROUP BY label ORDER BY min(id)";
    sqlite3_stmt *s = NULL;
    int sq_rc = sqlite3_prepare_v2(sq, sql, -1, &s, NULL);
    while (sq_rc == SQLITE_OK && (sq_rc = sqlite3_step(s)) == SQLITE_ROW) {
        add_label(out, text_at(s, 0));
        sq_rc = SQLITE_OK;
    }
    sqlite3_finalize(s);
    return sq_rc == SQLITE_DONE ? ERR_OK : sq_err(sq);
}

static int by_name(const void *a, const void *b)
{
    const struct score_part *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : strcmp(x->file ? x->file : "", y->file ? y->file : "");
}

int scores_read(sqlite3 *sq, const struct scores_request *q, struct scores *out)
{
    int rc = ERR_OK;
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < q->n_labels; i++)
        add_label(out, q->labels[i]);
    if (!q->labels)
        rc = list_labels(sq, out);
    for (size_t i = 0; i < out->n_labels && rc == ERR_OK; i++)
        if ((rc = read_label(sq, q, &out->label[i], out)) == ERR_OK)
            rc = read_not_generated(sq, &out->label[i]);
    if (rc == ERR_OK && q->parts)
        rc = read_captions(sq, out);
    for (size_t i = 0; i < out->n_labels; i++) {
        struct score_label *l = &out->label[i];
        free(l->slot); /* sorting moves the parts */
        l->slot = NULL;
        l->n_slots = 0;
        if (l->n_parts)
            qsort(l->part, l->n_parts, sizeof *l->part, by_name);
    }
    if (rc < 0)
        scores_release(out);
    return rc;
}

void scores_release(struct scores *s)
{
    for (size_t i = 0; i < s->n; i++) {
        struct score_row *r = &s->v[i];
        for (size_t k = 0; k < r->n_reasons; k++)
            free(r->reason[k].reason);
        free(r->reason);
        free(r->entities);
        free(r->label);
    }
    for (size_t i = 0; i < s->n_labels; i++) {
        struct score_label *l = &s->label[i];
        for (size_t k = 0; k < l->n_parts; k++) {
            struct score_part *p = &l->part[k];
            free(p->name);
            free(p->file);
            free(p->truth);
            free(p->caption);
            free(p->not_complete);
            free(p->not_renderable);
            free(p->no_distance);
        }
        free(l->part);
        free(l->slot);
        free(l->label);
    }
    free(s->v);
    free(s->label);
    memset(s, 0, sizeof *s);
}
