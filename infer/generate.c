/* generate: captions to STEP files. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/answer.h"
#include "lib/csv.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "lib/sibling.h"
#include "lib/tool.h"
#include "model/engine.h"
#include "model/session.h"

enum { MAX_CAPTION = 65536 }; /* bytes: of a longer one no model makes anything */

static struct session_options use = {.device = "auto", .dtype = "auto", .grammar = "off", .order = "auto"};
static const char *caption, *captions_file, *out_dir, *preview = "auto", *layout = "flat", *weights = "native";
static int64_t batch = 1, max_new_tokens = 14000, samples = 1, draft = 31, top_k, seed = 3407, limit;
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
    {.name = "samples", .type = OPT_INT, .value = &samples, .arg = "N", .help = "parts for each caption (with a temperature)", .min = 1, .max = 10000},
    {.name = "temperature", .type = OPT_REAL, .value = &temperature, .arg = "X", .help = "0: greedy", .min = 0, .max = 100},
    {.name = "top-p", .type = OPT_REAL, .value = &top_p, .arg = "X", .help = "sample from the likeliest tokens that hold this share", .min = 0.0001, .max = 1},
    {.name = "top-k", .type = OPT_INT, .value = &top_k, .arg = "K", .help = "sample from the K likeliest tokens (0: all)", .min = 0, .max = 1e6},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "of sampling; with the part's id and the sample's number it decides its text"},
    {.name = "draft", .type = OPT_INT, .value = &draft, .arg = "N",
     .help = "tokens guessed ahead from prompt and own text, and verified in one step (0: none); changes nothing but the speed", .min = 0, .max = 63},
    {.name = "weights", .type = OPT_STR, .value = &weights, .choices = "native|fp8", .help = "fp8: weights in 8 bits (CUDA), faster, and a little worse"},
    {.name = "layout", .type = OPT_STR, .value = &layout, .choices = "flat|original", .help = "original: ID/gen/ID.step, and with records ID/gt/ID.step"},
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
    char *truth;                   /* what the record has as output; for --layout original */
    char *why;                     /* it cannot be generated */
};

struct part {
    struct generator *g;
    const struct request *q;
    int64_t sample;
    char *item;
    size_t n_prompt;
    char digest[20];          /* of weights and prompt */
    struct buf text;          /* the raw continuation */
    struct tok_stream stream;
    int64_t n;                /* tokens so far */
    struct grammar_state *grammar; /* NULL: off */
    struct token_mask mask;
    double started;
};

struct generator {
    struct tool *t;
    struct session s;
    struct engine *e;
    int64_t rows;             /* decoded together */
    bool draws, asks;
    struct request *q;
    size_t n, cap, next;
    int64_t sample, n_open;   /* of q[next]; parts in the engine */
    int rc;                   /* of the engine's callbacks */
    int64_t n_tokens, n_changed, n_steps;
    double started, told;     /* told: when progress was last shown */
};

/* ---- what is asked for ---- */

static void add_request(struct generator *g, const char *id, const char *text, const char *retrieve_id, const char *retrieved)
{
    ARRAY_GROW(g->q, g->cap, g->n + 1);
    g->q[g->n++] = (struct request){.id = xstrdup(id), .caption = xstrdup(text), .retrieve_id = retrieve_id ? xstrdup(retrieve_id) : NULL,
                                    .retrieved = retrieved ? xstrdup(retrieved) : NULL};
    struct request *q = &g->q[g->n - 1];
    size_t n = strlen(text);
    if (!text[strspn(text, " \t\r\n")])
        q->why = xstrdup("empty: the caption is empty");
    else if (n > MAX_CAPTION)
        q->why = xasprintf("too_long: the caption has %zu bytes, %d are the most", n, MAX_CAPTION);
    else if (!utf8_valid(text, n))
        q->why = xstrdup("not_utf8: the caption is not UTF-8");
}

static void request_release(struct request *q)
{
    free(q->id);
    free(q->caption);
    free(q->retrieve_id);
    free(q->retrieved);
    free(q->truth);
    free(q->why);
}

static int read_records(struct generator *g)
{
    struct pairs *r;
    struct pair p;
    int rc = pairs_open(captions_file, &r);
    if (rc < 0)
        return rc;
    while ((rc = pairs_next(r, &p)) > 0) {
        add_request(g, p.id_original, p.caption, no_rag ? NULL : p.id_retrieve, no_rag ? NULL : p.retrieved);
        if (!strcmp(layout, "original"))
            g->q[g->n - 1].truth = xstrdup(p.output);
    }
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

static int by_id(const void *a, const void *b)
{
    const struct request *const *p = a, *const *q = b;
    int c = strcmp((*p)->id, (*q)->id);
    return c ? c : (*p > *q) - (*p < *q);
}

/* Parts of one id would have one file. */
static void check_twice(struct generator *g)
{
    struct request **v = xmalloc((g->n + 1) * sizeof *v);
    for (size_t i = 0; i < g->n; i++)
        v[i] = &g->q[i];
    qsort(v, g->n, sizeof *v, by_id);
    for (size_t i = g->n; i-- > 1;) /* from the last on: those ahead still have their names */
        if (!strcmp(v[i]->id, v[i - 1]->id)) { /* under a name of its own, so that the first one's row in runs.db stays */
            struct request *q = v[i];
            char *id = xasprintf("%s (caption %zu)", q->id, (size_t)(q - g->q) + 1);
            free(q->why);
            q->why = xasprintf("twice: an earlier caption has the id %s, and its file", q->id);
            free(q->id);
            q->id = id;
        }
    free(v);
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
    check_twice(g);
    if (rc == ERR_OK && !g->n)
        rc = err_set(ERR_FORMAT, "%s: holds no caption", captions_file);
    if (rc < 0)
        return rc;
    size_t kept = 0;
    for (size_t i = 0; i < g->n; i++)
        if ((int)(i % (size_t)g->t->shard_n) == g->t->shard_i - 1 && (!limit || (int64_t)kept < limit))
            g->q[kept++] = g->q[i];
        else
            request_release(&g->q[i]);
    g->n = kept;
    return ERR_OK;
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

/* ---- parts in the making ---- */

/* OUT/ID.step, or as the original has it OUT/ID/gen/ID.step; with several samples ID-1, ID-2, ... */
static char *out_path(const struct request *q, int64_t sample, const char *sub, const char *suffix)
{
    char n[24] = "";
    if (samples > 1)
        snprintf(n, sizeof n, "-%lld", (long long)sample + 1);
    if (!strcmp(layout, "original") && !*sub)
        return xasprintf("%s/%s/gen/%s%s%s", out_dir, q->id, q->id, n, suffix);
    return xasprintf("%s/%s%s%s%s", out_dir, sub, q->id, n, suffix);
}

static void part_free(struct part *r)
{
    buf_release(&r->text);
    grammar_state_free(r->grammar);
    free(r->item);
    free(r);
}

/* Takes a token; false when the part is done. */
static bool take(void *ctx, int32_t id)
{
    static const char end[] = "END-ISO-10303-21;";
    struct part *r = ctx;
    struct generator *g = r->g;
    r->n++;
    g->n_tokens++;
    if (now_s() - g->told > 0.1) {
        g->told = now_s();
        if (g->rows == 1)
            progress_text("%lld tokens, %.0f tokens/s", (long long)r->n, (double)r->n / (g->told - r->started));
        else
            progress_text("%lld tokens, %.0f tokens/s", (long long)g->n_tokens, (double)g->n_tokens / (g->told - g->started));
        progress_add(0, 0);
    }
    if (tok_is_stop(g->s.tok, id) || g->rc < 0)
        return false;
    g->rc = tok_stream_push(g->s.tok, &r->stream, id, true, &r->text);
    size_t from = r->text.n > 256 ? r->text.n - 256 : 0;
    return g->rc == ERR_OK && !strstr(r->text.s + from, end);
}

/* The true part beside the generated one, for scores of the original's scripts. */
static int write_truth(const struct request *q)
{
    struct answer a;
    if (!q->truth || strcmp(layout, "original"))
        return ERR_OK;
    char *path = xasprintf("%s/%s/gt/%s.step", out_dir, q->id, q->id);
    answer_make(path, q->truth, strlen(q->truth), &a);
    int rc = file_write(path, a.step.s, a.step.n, false);
    answer_release(&a);
    free(path);
    return rc;
}

static int finish(struct generator *g, struct part *r, const struct engine_result *e)
{
    struct buf line = BUF_INIT;
    struct answer a;
    struct jw j = JW_INIT(&line);
    char *path = out_path(r->q, r->sample, "", ".step"), *raw = out_path(r->q, r->sample, "raw/", ".txt"), *png = NULL;
    double seconds = now_s() - r->started;
    tok_stream_end(&r->stream, &r->text);
    answer_make(path, r->text.s, r->text.n, &a);
    int rc = file_write(raw, r->text.s, r->text.n, false);
    if (rc == ERR_OK)
        rc = write_truth(r->q);
    if (rc == ERR_OK)
        rc = file_write(path, a.step.s, a.step.n, false);
    if (rc == ERR_OK && g->draws && a.valid) {
        answer_examine(path, 60, &a);
        png = out_path(r->q, r->sample, "", ".png");
        if (answer_draw(path, 800, 60, png, NULL) < 0) {
            log_warn("%s: no picture: %s", r->item, err_text());
            unlink(png);
            free(png);
            png = NULL;
        }
    }
    jw_object(&j);
    jw_kv_str(&j, "id", r->q->id);
    if (samples > 1)
        jw_kv_int(&j, "sample", r->sample + 1);
    jw_kv_str(&j, "caption", r->q->caption);
    if (r->q->retrieve_id)
        jw_kv_str(&j, "id_retrieve", r->q->retrieve_id);
    jw_kv_int(&j, "prompt_tokens", (int64_t)r->n_prompt);
    jw_kv_int(&j, "tokens", r->n);
    jw_kv_str(&j, "finish_reason", e->finish == ENGINE_LENGTH ? "length" : "stop");
    if (r->grammar) {
        jw_kv_int(&j, "changed", e->changed);
        jw_kv_real(&j, "changed_share", r->n ? (double)e->changed / (double)r->n : 0);
    }
    jw_kv_int(&j, "steps", e->steps);
    jw_kv_real(&j, "seconds", seconds);
    jw_key(&j, "text");
    jw_strn(&j, r->text.s, r->text.n);
    jw_kv_str(&j, "file", path);
    jw_kv_bool(&j, "valid", a.valid);
    jw_kv_int(&j, "entities", (int64_t)a.entities);
    jw_kv_int(&j, "dangling", (int64_t)a.dangling);
    jw_kv_str(&j, "checks", a.checks.s);
    jw_kv_str(&j, "made_from", r->digest);
    if (png)
        jw_kv_str(&j, "picture", png);
    jw_end(&j);
    g->n_changed += e->changed;
    g->n_steps += e->steps;
    progress_text("%lld tokens", (long long)g->n_tokens);
    progress_add(1, 0);
    if (rc == ERR_OK)
        rc = tool_item(g->t, &(struct run_item){.item = r->item, .state = "done", .seconds = seconds, .output = path, .result = line.s});
    if (rc == ERR_OK && (caption || g->asks)) {
        progress_end();
        tool_print(g->t, "%s  (%lld tokens, %.1f s; %s%s)\n", path, (long long)r->n, seconds, a.checks.s,
                   e->finish == ENGINE_LENGTH ? "; cut at the token limit" : "");
        if (png)
            tool_print(g->t, "%s\n", png);
    }
    answer_release(&a);
    buf_release(&line);
    free(path);
    free(raw);
    free(png);
    return rc;
}

static int fail(struct generator *g, const char *item, const char *why)
{
    progress_add(1, 1);
    return tool_item(g->t, &(struct run_item){.item = item, .state = "failed", .reason = why});
}

static int feed(struct generator *g);

static void done(void *ctx, const struct engine_result *e)
{
    struct part *r = ctx;
    struct generator *g = r->g;
    g->n_open--;
    if (g->rc == ERR_OK && e->finish == ENGINE_NOT_FINITE)
        g->rc = fail(g, r->item, ENGINE_NOT_FINITE_WHY);
    else if (g->rc == ERR_OK && e->finish != ENGINE_CANCELLED)
        g->rc = finish(g, r, e);
    part_free(r);
    if (g->rc == ERR_OK)
        g->rc = feed(g);
}

/* Hands a sample of q to the engine, if it is not there already. */
static int begin(struct generator *g, const struct request *q, int64_t sample)
{
    struct tok_ids ids = {0};
    char n[24] = "", *path = out_path(q, sample, "", ".step"), *why = NULL;
    if (samples > 1)
        snprintf(n, sizeof n, "-%lld", (long long)sample + 1);
    struct part *r = xcalloc(1, sizeof *r);
    *r = (struct part){.g = g, .q = q, .sample = sample, .item = xasprintf("%s%s", q->id, n), .started = now_s()};
    buf_init(&r->text);
    int rc = q->why ? fail(g, r->item, q->why) : prompt_encode(g->s.tok, q->caption, q->retrieved, &ids);
    bool current = false;
    if (rc == ERR_OK && !q->why) {
        snprintf(r->digest, sizeof r->digest, "%016llx", (unsigned long long)fnv1a(g->s.digest, ids.v, ids.n * sizeof *ids.v));
        json_t *earlier = tool_item_earlier_of(g->t, r->item, NULL, path, "made_from", r->digest);
        current = earlier != NULL;
        json_decref(earlier);
    }
    free(path);
    if (current)
        progress_add(1, 0);
    if (rc < 0 || current || q->why) {
        tok_ids_release(&ids);
        part_free(r);
        return rc;
    }
    struct engine_request ask = {.max_new = max_new_tokens, .draft = draft, .token = take, .done = done, .ctx = r,
                                 .sampling = {.temperature = temperature, .top_p = top_p, .top_k = top_k}};
    ask.sampling.seed = fnv1a((uint64_t)(seed + sample * 1000003) * 0x9e3779b97f4a7c15u + FNV_INIT, q->id, strlen(q->id));
    struct engine_info info;
    engine_info(g->e, &info);
    int64_t room = info.max_tokens - (int64_t)ids.n;
    r->n_prompt = ids.n;
    ask.prompt = ids.v;
    ask.n_prompt = ids.n;
    if (room < 1)
        why = xasprintf("too_long: the prompt has %zu tokens, the model knows %lld", ids.n, (long long)g->s.m->cfg.max_positions);
    else if (g->s.grammar && grammar_state_new(g->s.grammar, room < max_new_tokens ? room : max_new_tokens, &r->grammar) < 0)
        why = xasprintf("too_long: %s", err_text());
    if (r->grammar && !why) {
        grammar_token_mask(r->grammar, &r->mask);
        ask.mask = &r->mask;
    }
    rc = why ? fail(g, r->item, why) : engine_submit(g->e, &ask, NULL);
    tok_ids_release(&ids);
    if (rc < 0 || why)
        part_free(r);
    else
        g->n_open++;
    free(why);
    return rc;
}

/* Keeps the engine busy: what decodes, and as much again that waits for a place. */
static int feed(struct generator *g)
{
    int rc = ERR_OK;
    while (rc == ERR_OK && g->next < g->n && g->n_open < 2 * g->rows && !stop_requested()) {
        rc = begin(g, &g->q[g->next], g->sample);
        if (++g->sample == samples) {
            g->sample = 0;
            g->next++;
        }
    }
    return rc;
}

static int decode_all(struct generator *g)
{
    int rc = ERR_OK;
    progress_start("generating", (g->n - g->next) * (size_t)samples, "parts");
    g->started = now_s();
    g->n_open = 0;
    g->rc = feed(g);
    while (g->rc == ERR_OK && (rc = engine_step(g->e)) > 0)
        if (stop_requested())
            g->rc = err_set(ERR_CANCELLED, "stopped by a signal");
    if (g->rc == ERR_OK && rc == 0 && stop_requested() && g->next < g->n)
        g->rc = err_set(ERR_CANCELLED, "stopped by a signal");
    progress_end();
    return g->rc < 0 ? g->rc : rc;
}

/* An engine for the requests from `from` on: room for the longest prompt and its part, within what the model knows. */
static int open_engine(struct generator *g, size_t from)
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
    if (rc < 0 || g->e)
        return rc;
    struct engine_options o = {.max_tokens = longest + max_new_tokens, .vocab = tok_n_ids(g->s.tok), .tok = g->s.tok, .fp8 = !strcmp(weights, "fp8"),
                               .threads = g->t->threads};
    int64_t n = (int64_t)(g->n - from) * samples;
    g->rows = o.max_batch = batch < n ? batch : n;
    if (o.max_tokens > max || g->asks) /* who asks may ask for more */
        o.max_tokens = max;
    if (o.fp8)
        rc = engine_round_fp8(g->s.m);
    return rc == ERR_OK ? engine_new(g->s.m, &o, &g->e) : rc;
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
        rc = open_engine(g, from);
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
            path = out_path(&(struct request){.id = id}, 0, "", ".step");
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
    if (rc == ERR_OK && samples > 1 && temperature <= 0)
        rc = err_set(ERR_USAGE, "--samples %lld would all be the same: give a --temperature", (long long)samples);
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
        if (rc == ERR_OK)
            rc = tool_metric(&t, 0, "tokens_per_step", (double)g.n_tokens / (double)(g.n_steps ? g.n_steps : 1));
        if (rc == ERR_OK && g.s.grammar)
            rc = tool_metric(&t, 0, "grammar_changed_share", (double)g.n_changed / (double)g.n_tokens);
    }
out:;
    int code = tool_finish(&t, rc);
    engine_free(g.e);
    session_close(&g.s);
    for (size_t i = 0; i < g.n; i++)
        request_release(&g.q[i]);
    free(g.q);
    return code;
}
