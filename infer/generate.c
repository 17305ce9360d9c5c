/* generate: captions to STEP files. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/answer.h"
#include "lib/csv.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "lib/sibling.h"
#include "lib/tool.h"
#include "model/session.h"

enum { MAX_CAPTION = 65536 }; /* bytes: of a longer one no model makes anything */

static struct session_options use = {.device = "auto", .dtype = "auto", .grammar = "off", .order = "auto"};
static const char *caption, *captions_file, *out_dir, *preview = "auto";
static int64_t batch = 1, max_new_tokens = 14000, top_k, seed = 3407, limit;
static double temperature, top_p = 1;
static bool retrieve_only, no_rag;

static struct opt options[] = {
    SESSION_OPTIONS(use),
    {.name = "caption", .type = OPT_STR, .value = &caption, .arg = "TEXT", .help = "one caption"},
    {.name = "captions", .type = OPT_STR, .value = &captions_file, .arg = "FILE", .help = "a captions CSV, or pair records (test.json)"},
    {.name = "no-retrieval", .type = OPT_FLAG, .value = &no_rag, .help = "leave out what records have retrieved: the plain prompt"},
    {.name = "retrieve-only", .type = OPT_FLAG, .value = &retrieve_only, .help = "show what --rag would retrieve, and stop"},
    {.name = "out", .type = OPT_STR, .value = &out_dir, .arg = "DIR", .help = "ID.step, and the raw text as raw/ID.txt (--caption: default parts)"},
    {.name = "batch", .type = OPT_INT, .value = &batch, .arg = "N", .help = "sequences decoded together", .min = 1, .max = 1024},
    {.name = "max-new-tokens", .type = OPT_INT, .value = &max_new_tokens, .arg = "N", .help = "tokens at most for a part", .min = 1, .max = 1e6},
    {.name = "temperature", .type = OPT_REAL, .value = &temperature, .arg = "X", .help = "0: greedy", .min = 0, .max = 100},
    {.name = "top-p", .type = OPT_REAL, .value = &top_p, .arg = "X", .help = "sample from the likeliest tokens that hold this share", .min = 0.0001, .max = 1},
    {.name = "top-k", .type = OPT_INT, .value = &top_k, .arg = "K", .help = "sample from the K likeliest tokens (0: all)", .min = 0, .max = 1e6},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "of sampling; with the part's id it decides its text"},
    {.name = "limit", .type = OPT_INT, .value = &limit, .arg = "N", .help = "only the first N captions (0: all)", .min = 0, .max = 1e9},
    {.name = "preview", .type = OPT_STR, .value = &preview, .choices = "auto|on|off",
     .help = "draw each part as ID.png with step-render, and examine it (auto: with --caption)", .flags = OPT_NO_KEY},
    {0},
};

static const struct tool_spec spec = {
    .name = "generate",
    .args = "--model DIR [--caption TEXT | --captions FILE] [--out DIR]",
    .summary = "Generates a STEP file for each caption.",
    .details = "Without a caption, on a terminal, it asks for one, and again after each part.\n\n"
               "  generate --model models/demo --caption 'A round flange with six bolt holes.' --out parts\n"
               "  generate --model models/Qwen2.5-3B --adapter runs/qwen --captions test.json --out runs/qwen/gen\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
};

struct request {
    char *id, *caption;
    char *retrieve_id, *retrieved; /* NULL: none */
    char *why;                     /* it cannot be generated */
};

struct row {
    const struct request *q;
    struct tok_ids prompt;
    struct buf text;          /* the raw continuation */
    struct tok_stream stream;
    uint64_t random;
    int64_t n;                /* tokens so far */
    int32_t last;
    const char *finish;       /* NULL: going on */
    struct grammar_state *grammar; /* NULL: off */
    int64_t changed;          /* tokens that were the grammar's choice, not the model's */
    double started;
};

struct generator {
    struct tool *t;
    struct session s;
    struct kv_cache *kv;
    int64_t rows;             /* of kv */
    bool draws, asks;
    struct request *q;
    size_t n, cap, next;
    float *logits;
    uint32_t *order;          /* scratch of sampling */
    uint32_t *mask;           /* scratch of the grammar */
    int64_t n_tokens, n_changed;
    double told;              /* when progress was last shown */
};

/* ---- what is asked for ---- */

static void add_request(struct generator *g, const char *id, const char *text, const char *retrieve_id, const char *retrieved)
{
    ARRAY_GROW(g->q, g->cap, g->n + 1);
    g->q[g->n++] = (struct request){.id = xstrdup(id), .caption = xstrdup(text), .retrieve_id = retrieve_id ? xstrdup(retrieve_id) : NULL,
                                    .retrieved = retrieved ? xstrdup(retrieved) : NULL};
    struct request *q = &g->q[g->n - 1];
    size_t n = strlen(text);
    if (n > MAX_CAPTION)
        q->why = xasprintf("too_long: the caption has %zu bytes, %d are the most", n, MAX_CAPTION);
    else if (!utf8_valid(text, n))
        q->why = xstrdup("not_utf8: the caption is not UTF-8");
}

static int read_records(struct generator *g)
{
    struct pairs *r;
    struct pair p;
    int rc = pairs_open(captions_file, &r);
    while (rc >= 0 && (rc = pairs_next(r, &p)) > 0)
        add_request(g, p.id_original, p.caption, no_rag ? NULL : p.id_retrieve, no_rag ? NULL : p.retrieved);
    if (rc >= 0 || g->n)
        pairs_close(r);
    return rc;
}

static int read_csv(struct generator *g)
{
    struct csv *c;
    struct csv_row row;
    int id, text = 0, rc = csv_open(captions_file, &c);
    if (rc < 0)
        return rc;
    if ((rc = id = csv_column(c, "model_id")) >= 0)
        rc = text = csv_column(c, "description");
    while (rc >= 0 && (rc = csv_next(c, &row)) > 0)
        if (*row.field[text])
            add_request(g, row.field[id], row.field[text], NULL, NULL);
    csv_close(c);
    return rc;
}

/* Names of files come from ids, which come from outside. */
static int check_id(const char *id)
{
    if (!*id || *id == '.' || strpbrk(id, "/\\\n") || strlen(id) > 200)
        return err_set(ERR_FORMAT, "%s: the id '%s' cannot name a file", captions_file, id);
    return ERR_OK;
}

static int read_requests(struct generator *g)
{
    int rc = ERR_OK;
    if (caption && captions_file)
        return err_set(ERR_USAGE, "either --caption or --captions is due, not both");
    if (!caption && !captions_file)
        return g->asks ? ERR_OK : err_set(ERR_USAGE, "--caption or --captions is due");
    if (caption && !caption[strspn(caption, " \t\r\n")])
        return err_set(ERR_USAGE, "the caption is empty");
    if (caption) {
        add_request(g, "part", caption, NULL, NULL);
        if (g->q[0].why)
            return err_set(ERR_USAGE, "--caption: %s", strchr(g->q[0].why, ' ') + 1);
    } else
        rc = path_has_suffix(captions_file, ".json") ? read_records(g) : read_csv(g);
    for (size_t i = 0; i < g->n && rc == ERR_OK; i++)
        rc = check_id(g->q[i].id);
    if (rc == ERR_OK && !g->n)
        rc = err_set(ERR_FORMAT, "%s: holds no caption", captions_file);
    size_t kept = 0;
    for (size_t i = 0; i < g->n; i++)
        if ((int)(i % (size_t)g->t->shard_n) == g->t->shard_i - 1 && (!limit || (int64_t)kept < limit))
            g->q[kept++] = g->q[i];
    if (rc == ERR_OK)
        g->n = kept; /* those left out live as long as the process */
    return rc;
}

/* ---- retrieval ---- */

static void show_retrieved(struct generator *g, const struct request *q, const struct retrieval_hit *hit, size_t n, int taken)
{
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_str(&j, "id", q->id);
    jw_kv_str(&j, "caption", q->caption);
    jw_key(&j, "id_retrieve");
    jw_str(&j, taken < 0 ? NULL : hit[taken].id);
    jw_key(&j, "caption_retrieve");
    jw_str(&j, taken < 0 ? NULL : hit[taken].caption);
    if (taken >= 0)
        jw_kv_real(&j, "cosine", hit[taken].cosine);
    jw_key(&j, "nearest");
    jw_array(&j);
    for (size_t k = 0; k < n; k++) {
        jw_object(&j);
        jw_kv_str(&j, "id", hit[k].id);
        jw_kv_real(&j, "cosine", hit[k].cosine);
        jw_kv_bool(&j, "has_part", *hit[k].part != 0);
        jw_end(&j);
    }
    jw_end(&j);
    jw_end(&j);
    tool_json_line(g->t, b.s);
    if (taken >= 0)
        tool_print(g->t, "%s  %.4f  %s  (%s)\n", q->id, hit[taken].cosine, hit[taken].id, hit[taken].caption);
    buf_release(&b);
}

/* Gives requests from `from` on what --rag finds for them. */
static int retrieve(struct generator *g, size_t from)
{
    int rc = session_open_library(&use, &g->s);
    for (size_t i = from; i < g->n && rc == ERR_OK && g->s.library; i++) {
        struct request *q = &g->q[i];
        struct retrieval_hit hit[RETRIEVAL_NEAREST];
        size_t n;
        int taken;
        if (q->retrieved || q->why)
            continue;
        if ((rc = retrieval_find(g->s.library, q->caption, q->id, hit, &n, &taken)) < 0)
            break;
        if (taken >= 0) {
            q->retrieve_id = xstrdup(hit[taken].id);
            q->retrieved = xstrdup(hit[taken].part);
        } else {
            q->why = xasprintf("nothing_retrieved: none of the %zu nearest in %s may be used", n, use.rag);
        }
        if (retrieve_only)
            show_retrieved(g, q, hit, n, taken);
        if (retrieve_only && q->why)
            rc = tool_item(g->t, &(struct run_item){.item = q->id, .state = "failed", .reason = q->why});
        if (rc == ERR_OK && stop_requested())
            rc = err_set(ERR_CANCELLED, "stopped by a signal");
    }
    return rc;
}

/* ---- choosing a token ---- */

static double uniform(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static const float *ranked;

static int by_logit(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return ranked[x] > ranked[y] ? -1 : ranked[x] < ranked[y] ? 1 : x < y ? -1 : 1;
}

static int32_t choose_any(struct generator *g, struct row *r, const float *v)
{
    int64_t n = tok_n_ids(g->s.tok), best = 0; /* a model may have more rows than there are tokens */
    for (int64_t i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    if (temperature <= 0)
        return (int32_t)best;
    int64_t keep = top_k && top_k < n ? top_k : n;
    double sum = 0, part = 0;
    for (int64_t i = 0; i < n; i++)
        g->order[i] = (uint32_t)i;
    ranked = v;
    qsort(g->order, (size_t)n, sizeof *g->order, by_logit);
    for (int64_t i = 0; i < keep; i++)
        sum += exp((v[g->order[i]] - v[best]) / temperature);
    if (top_p < 1) {
        int64_t i = 0;
        for (; i < keep && part < top_p * sum; i++)
            part += exp((v[g->order[i]] - v[best]) / temperature);
        keep = i;
        sum = part;
    }
    double u = uniform(&r->random) * sum;
    for (int64_t i = 0; i < keep; i++)
        if ((u -= exp((v[g->order[i]] - v[best]) / temperature)) < 0)
            return (int32_t)g->order[i];
    return (int32_t)g->order[keep - 1];
}

/* The model's choice, if the grammar permits it; else again among what it permits. */
static int32_t choose(struct generator *g, struct row *r, float *v)
{
    int32_t id = choose_any(g, r, v);
    if (!r->grammar || grammar_permits(r->grammar, id))
        return id;
    grammar_fill(r->grammar, g->mask, grammar_words(g->s.grammar));
    for (int64_t i = 0, n = tok_n_ids(g->s.tok); i < n; i++)
        if (!(g->mask[i / 32] >> (i % 32) & 1))
            v[i] = -INFINITY;
    r->changed++;
    return choose_any(g, r, v);
}

/* ---- rows ---- */

static char *out_path(const char *id, const char *sub, const char *suffix)
{
    return xasprintf("%s/%s%s%s", out_dir, sub, id, suffix);
}

/* Takes the token chosen for r and sees whether the part is done. */
static int push(struct generator *g, struct row *r, int32_t id)
{
    static const char end[] = "END-ISO-10303-21;";
    r->last = id;
    r->n++;
    g->n_tokens++;
    if (r->grammar)
        grammar_accept(r->grammar, id);
    if (now_s() - g->told > 0.1) {
        g->told = now_s();
        if (g->rows == 1)
            progress_text("%lld tokens, %.0f tokens/s", (long long)r->n, (double)r->n / (g->told - r->started));
        else
            progress_text("%lld tokens", (long long)g->n_tokens);
        progress_add(0, 0);
    }
    if (tok_is_stop(g->s.tok, id)) {
        r->finish = "stop";
        return ERR_OK;
    }
    int rc = tok_stream_push(g->s.tok, &r->stream, id, true, &r->text);
    size_t from = r->text.n > 256 ? r->text.n - 256 : 0;
    if (strstr(r->text.s + from, end))
        r->finish = "stop";
    else if (r->n >= max_new_tokens)
        r->finish = "length";
    return rc;
}

static int finish(struct generator *g, struct row *r)
{
    struct buf line = BUF_INIT;
    struct answer a;
    struct jw j = JW_INIT(&line);
    char *path = out_path(r->q->id, "", ".step"), *raw = out_path(r->q->id, "raw/", ".txt"), *png = NULL;
    double seconds = now_s() - r->started;
    tok_stream_end(&r->stream, &r->text);
    answer_make(path, r->text.s, r->text.n, &a);
    int rc = file_write(raw, r->text.s, r->text.n, false);
    if (rc == ERR_OK)
        rc = file_write(path, a.step.s, a.step.n, false);
    if (rc == ERR_OK && g->draws && a.valid) {
        answer_examine(path, 60, &a);
        png = out_path(r->q->id, "", ".png");
        if (answer_draw(path, 800, 60, png, NULL) < 0) {
            log_warn("%s: no picture: %s", r->q->id, err_text());
            unlink(png);
            free(png);
            png = NULL;
        }
    }
    jw_object(&j);
    jw_kv_str(&j, "id", r->q->id);
    jw_kv_str(&j, "caption", r->q->caption);
    if (r->q->retrieve_id)
        jw_kv_str(&j, "id_retrieve", r->q->retrieve_id);
    jw_kv_int(&j, "prompt_tokens", (int64_t)r->prompt.n);
    jw_kv_int(&j, "tokens", r->n);
    jw_kv_str(&j, "finish_reason", r->finish);
    if (r->grammar) {
        jw_kv_int(&j, "changed", r->changed);
        jw_kv_real(&j, "changed_share", r->n ? (double)r->changed / (double)r->n : 0);
    }
    jw_kv_real(&j, "seconds", seconds);
    jw_key(&j, "text");
    jw_strn(&j, r->text.s, r->text.n);
    jw_kv_str(&j, "file", path);
    jw_kv_bool(&j, "valid", a.valid);
    jw_kv_int(&j, "entities", (int64_t)a.entities);
    jw_kv_int(&j, "dangling", (int64_t)a.dangling);
    jw_kv_str(&j, "checks", a.checks.s);
    if (png)
        jw_kv_str(&j, "picture", png);
    jw_end(&j);
    g->n_changed += r->changed;
    progress_text("%lld tokens", (long long)g->n_tokens);
    progress_add(1, 0);
    if (rc == ERR_OK)
        rc = tool_item(g->t, &(struct run_item){.item = r->q->id, .state = "done", .seconds = seconds, .output = path, .result = line.s});
    if (rc == ERR_OK && (caption || g->asks)) {
        progress_end();
        tool_print(g->t, "%s  (%lld tokens, %.1f s; %s%s)\n", path, (long long)r->n, seconds, a.checks.s,
                   strcmp(r->finish, "length") ? "" : "; cut at the token limit");
        if (png)
            tool_print(g->t, "%s\n", png);
    }
    grammar_state_free(r->grammar);
    r->grammar = NULL;
    answer_release(&a);
    buf_release(&line);
    free(path);
    free(raw);
    free(png);
    return rc;
}

static int fail(struct generator *g, const struct request *q, const char *why)
{
    progress_add(1, 1);
    return tool_item(g->t, &(struct run_item){.item = q->id, .state = "failed", .reason = why});
}

/* Puts the next caption that needs work into row i; r->q stays NULL when none is left. */
static int refill(struct generator *g, struct row *r, int64_t i)
{
    int rc = ERR_OK;
    r->q = NULL;
    grammar_state_free(r->grammar);
    r->grammar = NULL;
    while (rc == ERR_OK && !r->q && g->next < g->n && !stop_requested()) {
        const struct request *q = &g->q[g->next++];
        char *path = out_path(q->id, "", ".step");
        bool current = tool_item_current(g->t, q->id, NULL, path);
        free(path);
        if (current) {
            progress_add(1, 0);
            continue;
        }
        if (q->why) {
            rc = fail(g, q, q->why);
            continue;
        }
        buf_clear(&r->text);
        r->prompt.n = 0;
        r->changed = 0;
        r->n = 0;
        r->finish = NULL;
        r->stream = (struct tok_stream){0};
        r->random = fnv1a((uint64_t)seed * 0x9e3779b97f4a7c15u + FNV_INIT, q->id, strlen(q->id));
        r->started = now_s();
        if ((rc = prompt_encode(g->s.tok, q->caption, q->retrieved, &r->prompt)) < 0)
            break;
        int64_t room = g->kv->capacity - (int64_t)r->prompt.n;
        if (room < 1) {
            char why[160];
            snprintf(why, sizeof why, "too_long: the prompt has %zu tokens, the context %lld", r->prompt.n, (long long)g->kv->capacity);
            rc = fail(g, q, why);
            continue;
        }
        if (g->s.grammar && grammar_state_new(g->s.grammar, room < max_new_tokens ? room : max_new_tokens, &r->grammar) < 0) {
            char *why = xasprintf("too_long: %s", err_text());
            rc = fail(g, q, why);
            free(why);
            continue;
        }
        g->kv->length[i] = 0;
        size_t scope = th_scope_begin();
        th_tensor *y = model_prefill(g->s.m, g->kv, i, r->prompt.v, r->prompt.n);
        rc = y ? th_read(y, g->logits) : err_code();
        th_scope_end(scope);
        if (rc < 0)
            break;
        r->q = q;
        rc = push(g, r, choose(g, r, g->logits));
        if (rc == ERR_OK && r->finish) {
            rc = finish(g, r);
            r->q = NULL;
        }
    }
    return rc;
}

static int decode_all(struct generator *g)
{
    int64_t vocab = g->s.m->cfg.vocab, rows = g->rows;
    struct row *r = xcalloc((size_t)rows, sizeof *r);
    int32_t *ids = xcalloc((size_t)rows, sizeof *ids);
    int rc = ERR_OK;
    g->logits = xmalloc((size_t)(rows * vocab) * sizeof *g->logits);
    g->order = xmalloc((size_t)vocab * sizeof *g->order);
    g->mask = xmalloc(((size_t)vocab / 32 + 1) * sizeof *g->mask);
    for (int64_t i = 0; i < rows; i++)
        buf_init(&r[i].text);
    progress_start("generating", g->n, "parts");
    for (int64_t i = 0; i < rows && rc == ERR_OK; i++)
        rc = refill(g, &r[i], i);
    while (rc == ERR_OK) {
        int64_t busy = 0;
        for (int64_t i = 0; i < rows; i++) {
            busy = r[i].q ? i + 1 : busy; /* rows up to the last busy one */
            ids[i] = r[i].q ? r[i].last : 0;
            if (!r[i].q)
                g->kv->length[i] = 1; /* an idle row decodes into its own first places */
        }
        if (!busy)
            break;
        size_t scope = th_scope_begin();
        th_tensor *y = model_decode(g->s.m, g->kv, busy, ids);
        rc = y ? th_read(y, g->logits) : err_code();
        th_scope_end(scope);
        for (int64_t i = 0; i < busy && rc == ERR_OK; i++) {
            if (!r[i].q)
                continue;
            rc = push(g, &r[i], choose(g, &r[i], g->logits + i * vocab));
            if (rc == ERR_OK && !r[i].finish && g->kv->length[i] >= g->kv->capacity)
                r[i].finish = "length";
            if (rc == ERR_OK && r[i].finish && (rc = finish(g, &r[i])) == ERR_OK)
                rc = refill(g, &r[i], i);
        }
        if (stop_requested() && rc == ERR_OK)
            rc = err_set(ERR_CANCELLED, "stopped by a signal");
    }
    progress_end();
    for (int64_t i = 0; i < rows; i++) {
        buf_release(&r[i].text);
        tok_ids_release(&r[i].prompt);
        grammar_state_free(r[i].grammar);
    }
    free(r);
    free(ids);
    free(g->logits);
    free(g->order);
    free(g->mask);
    return rc;
}

/* A cache for the requests from `from` on: the longest prompt and its part, within what the model knows. */
static int open_cache(struct generator *g, size_t from)
{
    struct tok_ids ids = {0};
    int64_t longest = 0, max = g->s.m->cfg.max_positions;
    int rc = ERR_OK;
    for (size_t i = from; i < g->n && rc == ERR_OK; i++) {
        ids.n = 0;
        if (g->q[i].why)
            continue;
        if ((rc = session_check_prompt(&use, &g->s, g->q[i].retrieved != NULL, g->q[i].id)) == ERR_OK)
            rc = prompt_encode(g->s.tok, g->q[i].caption, g->q[i].retrieved, &ids);
        if ((int64_t)ids.n < max) /* a longer one fails by itself */
            longest = (int64_t)ids.n > longest ? (int64_t)ids.n : longest;
    }
    tok_ids_release(&ids);
    if (rc < 0)
        return rc;
    int64_t capacity = longest + max_new_tokens < max ? longest + max_new_tokens : max;
    kv_cache_free(g->kv);
    g->kv = NULL;
    g->rows = batch < (int64_t)(g->n - from) ? batch : (int64_t)(g->n - from);
    rc = kv_cache_new(g->s.m, g->rows, capacity, &g->kv);
    return rc == ERR_NOMEM ? err_wrap("a cache for %lld sequences of %lld tokens: lower --batch or --max-new-tokens",
                                      (long long)g->rows, (long long)capacity) : rc;
}

/* What can be said without the weights is said before they are read. */
static int check_requests(struct generator *g)
{
    int rc = ERR_OK;
    for (size_t i = 0; i < g->n && rc == ERR_OK; i++)
        if (!g->q[i].why)
            rc = session_check_prompt(&use, &g->s, g->q[i].retrieved || use.rag, g->q[i].id);
    return rc;
}

static int run(struct generator *g, size_t from)
{
    int rc = retrieve(g, from);
    if (rc == ERR_OK)
        rc = open_cache(g, from);
    return rc == ERR_OK ? decode_all(g) : rc;
}

/* A caption a line, until there is none.  Parts are numbered on from those that lie there. */
static int ask(struct generator *g)
{
    char *line = NULL;
    size_t cap = 0;
    int rc = ERR_OK, number = 1;
    while (rc == ERR_OK && !stop_requested()) {
        fputs("caption (empty: end)> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0 || !line[strspn(line, " \t\r\n")])
            break;
        line[strcspn(line, "\r\n")] = 0;
        char id[32], *path = NULL;
        do {
            free(path);
            snprintf(id, sizeof id, "part-%d", number++);
            path = out_path(id, "", ".step");
        } while (path_exists(path));
        free(path);
        add_request(g, id, line, NULL, NULL);
        if ((rc = run(g, g->n - 1)) == ERR_USAGE || rc == ERR_FORMAT) { /* of this caption alone */
            log_error("%s", err_text());
            rc = ERR_OK;
        }
    }
    free(line);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct generator g = {.t = &t};
    tool_start(&t, &spec, argc, argv);
    g.asks = !caption && !captions_file && isatty(0) && isatty(2);
    int rc = read_requests(&g);
    if (rc == ERR_OK && retrieve_only) {
        rc = use.rag ? retrieve(&g, 0) : err_set(ERR_USAGE, "--retrieve-only needs --rag PAIRS");
        goto out;
    }
    if (!out_dir && (caption || g.asks))
        out_dir = "parts";
    g.draws = (!strcmp(preview, "on") || (!strcmp(preview, "auto") && (caption || g.asks)));
    if (g.draws && !sibling_there("step-render")) {
        if (!strcmp(preview, "on") && rc == ERR_OK)
            rc = err_set(ERR_USAGE, "--preview on: there is no step-render beside this program");
        g.draws = false;
    }
    if (rc == ERR_OK && !out_dir)
        rc = err_set(ERR_USAGE, "--out DIR is due");
    if (rc == ERR_OK)
        rc = session_check(&use, &g.s);
    if (rc == ERR_OK)
        rc = check_requests(&g);
    if (rc == ERR_OK) {
        use.threads = t.threads;
        rc = session_open(&use, &g.s);
    }
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    double t0 = now_s();
    if (rc == ERR_OK)
        rc = g.asks ? ask(&g) : run(&g, 0);
    if (rc == ERR_OK && g.n_tokens) {
        double rate = (double)g.n_tokens / (now_s() - t0);
        if (!g.asks)
            log_note("%lld tokens in %.1f s, %.0f tokens/s", (long long)g.n_tokens, now_s() - t0, rate);
        rc = tool_metric(&t, 0, "tokens_per_s", rate);
        if (rc == ERR_OK && g.s.grammar)
            rc = tool_metric(&t, 0, "grammar_changed_share", (double)g.n_changed / (double)g.n_tokens);
    }
out:;
    int code = tool_finish(&t, rc);
    kv_cache_free(g.kv);
    session_close(&g.s);
    return code;
}
