/* generate: captions to STEP files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/csv.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "lib/step.h"
#include "lib/step_prep.h"
#include "lib/tool.h"
#include "model/retrieval.h"
#include "model/transformer.h"

static const char *model_dir, *adapter_dir, *tokenizer_dir, *caption, *captions_file, *rag_file, *encoder_dir, *out_dir;
static const char *device_name = "auto", *dtype_name = "auto", *grammar = "off";
static int64_t batch = 1, max_new_tokens = 14000, top_k, seed = 3407, limit;
static double temperature, top_p = 1;
static bool retrieve_only, no_rag;

static struct opt options[] = {
    {.name = "model", .type = OPT_STR, .value = &model_dir, .arg = "DIR", .help = "base model, a Hugging Face folder (not for --retrieve-only)"},
    {.name = "adapter", .type = OPT_STR, .value = &adapter_dir, .arg = "DIR", .help = "LoRA adapter in PEFT's layout"},
    {.name = "tokenizer", .type = OPT_STR, .value = &tokenizer_dir, .arg = "DIR", .help = "tokenizer (default: the model's)"},
    {.name = "caption", .type = OPT_STR, .value = &caption, .arg = "TEXT", .help = "one caption"},
    {.name = "captions", .type = OPT_STR, .value = &captions_file, .arg = "FILE", .help = "a captions CSV, or pair records (test.json)"},
    {.name = "rag", .type = OPT_STR, .value = &rag_file, .arg = "PAIRS", .help = "pair records to retrieve similar parts from"},
    {.name = "encoder", .type = OPT_STR, .value = &encoder_dir, .arg = "DIR", .help = "sentence encoder, for --rag"},
    {.name = "no-retrieval", .type = OPT_FLAG, .value = &no_rag, .help = "leave out what records have retrieved: the plain prompt"},
    {.name = "retrieve-only", .type = OPT_FLAG, .value = &retrieve_only, .help = "show what --rag would retrieve, and stop"},
    {.name = "out", .type = OPT_STR, .value = &out_dir, .arg = "DIR", .help = "ID.step, and the raw text as raw/ID.txt"},
    {.name = "batch", .type = OPT_INT, .value = &batch, .arg = "N", .help = "sequences decoded together", .min = 1, .max = 1024},
    {.name = "max-new-tokens", .type = OPT_INT, .value = &max_new_tokens, .arg = "N", .help = "tokens at most for a part", .min = 1, .max = 1e6},
    {.name = "temperature", .type = OPT_REAL, .value = &temperature, .arg = "X", .help = "0: greedy", .min = 0, .max = 100},
    {.name = "top-p", .type = OPT_REAL, .value = &top_p, .arg = "X", .help = "sample from the likeliest tokens that hold this share", .min = 0.0001, .max = 1},
    {.name = "top-k", .type = OPT_INT, .value = &top_k, .arg = "K", .help = "sample from the K likeliest tokens (0: all)", .min = 0, .max = 1e6},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "of sampling; with the part's id it decides its text"},
    {.name = "limit", .type = OPT_INT, .value = &limit, .arg = "N", .help = "only the first N captions (0: all)", .min = 0, .max = 1e9},
    {.name = "grammar", .type = OPT_STR, .value = &grammar, .choices = "off|part21", .help = "constrain the text to valid Part 21"},
    {.name = "device", .type = OPT_STR, .value = &device_name, .choices = "auto|cpu|cuda", .help = "where to compute"},
    {.name = "dtype", .type = OPT_STR, .value = &dtype_name, .choices = "auto|float32|bfloat16", .help = "of weights and activations (auto: bfloat16 on CUDA)"},
    {0},
};

static const struct tool_spec spec = {
    .name = "generate",
    .args = "--model DIR (--caption TEXT | --captions FILE) --out DIR",
    .summary = "Generates a STEP file for each caption.",
    .details = "  generate --model models/demo --caption 'A round flange with six bolt holes.' --out parts\n"
               "  generate --model models/Qwen2.5-3B --adapter runs/qwen --captions test.json --out runs/qwen/gen\n",
    .options = options,
    .flags = TOOL_KEEP_DONE | TOOL_SHARDS,
};

struct request {
    char *id, *caption;
    char *retrieve_id, *retrieved; /* NULL: none */
    bool in_test;                  /* from pair records: never retrieve the part itself */
};

/* The records that --rag retrieves from. */
struct library {
    char **id, **caption, **part;
    size_t n, cap;
    float *x;
    struct encoder *e;
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
    double started;
};

struct generator {
    struct tool *t;
    struct tok *tok;
    struct model *m;
    struct kv_cache *kv;
    struct request *q;
    size_t n, cap, next;
    float *logits;
    uint32_t *order;          /* scratch of sampling */
    int64_t n_tokens;
};

/* ---- what is asked for ---- */

static void add_request(struct generator *g, const char *id, const char *text, const char *retrieve_id, const char *retrieved, bool test)
{
    ARRAY_GROW(g->q, g->cap, g->n + 1);
    g->q[g->n++] = (struct request){.id = xstrdup(id), .caption = xstrdup(text), .retrieve_id = retrieve_id ? xstrdup(retrieve_id) : NULL,
                                    .retrieved = retrieved ? xstrdup(retrieved) : NULL, .in_test = test};
}

static int read_records(struct generator *g)
{
    struct pairs *r;
    struct pair p;
    int rc = pairs_open(captions_file, &r);
    while (rc >= 0 && (rc = pairs_next(r, &p)) > 0)
        add_request(g, p.id_original, p.caption, no_rag ? NULL : p.id_retrieve, no_rag ? NULL : p.retrieved, true);
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
            add_request(g, row.field[id], row.field[text], NULL, NULL, false);
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
    if (!caption == !captions_file)
        return err_set(ERR_USAGE, "either --caption or --captions is due");
    if (caption && !*caption)
        return err_set(ERR_USAGE, "the caption is empty");
    if (caption)
        add_request(g, "part", caption, NULL, NULL, false);
    else
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

/* ---- retrieval: caption to embedding, the five nearest, the first that may be used ---- */

static int library_read(struct library *l)
{
    struct pairs *r;
    struct pair p;
    if (!encoder_dir)
        return err_set(ERR_USAGE, "--rag needs --encoder DIR");
    int rc = pairs_open(rag_file, &r);
    if (rc < 0)
        return rc;
    while ((rc = pairs_next(r, &p)) > 0) {
        size_t cap = l->cap, cap2 = l->cap;
        ARRAY_GROW(l->id, l->cap, l->n + 1);
        ARRAY_GROW(l->caption, cap, l->n + 1);
        ARRAY_GROW(l->part, cap2, l->n + 1);
        l->id[l->n] = xstrdup(p.id_original);
        l->caption[l->n] = xstrdup(p.caption);
        l->part[l->n++] = xstrdup(p.output);
    }
    pairs_close(r);
    if (rc == ERR_OK && !l->n)
        rc = err_set(ERR_FORMAT, "%s: holds no record", rag_file);
    if (rc == ERR_OK)
        rc = encoder_load(encoder_dir, &l->e);
    if (rc == ERR_OK) {
        char *cache = xasprintf("%s.embeddings.safetensors", rag_file);
        rc = retrieval_embed(l->e, encoder_dir, (const char *const *)l->caption, l->n, cache, &l->x);
        free(cache);
    }
    return rc;
}

static void library_release(struct library *l)
{
    for (size_t i = 0; i < l->n; i++) {
        free(l->id[i]);
        free(l->caption[i]);
        free(l->part[i]);
    }
    free(l->id);
    free(l->caption);
    free(l->part);
    free(l->x);
    encoder_free(l->e);
}

static int retrieve(struct generator *g)
{
    struct library l = {0};
    int rc = library_read(&l);
    for (size_t i = 0; i < g->n && rc == ERR_OK; i++) {
        struct request *q = &g->q[i];
        size_t index[5], n = 0;
        float score[5], *x = NULL;
        if (q->retrieved)
            continue;
        x = xmalloc((size_t)encoder_dim(l.e) * sizeof *x);
        if ((rc = encoder_embed(l.e, (const char *const *)&q->caption, 1, x, NULL)) == ERR_OK)
            n = retrieval_nearest(l.x, l.n, encoder_dim(l.e), x, 5, index, score);
        free(x);
        for (size_t k = 0; k < n && !q->retrieved; k++) {
            const char *id = l.id[index[k]];
            if (!*l.part[index[k]] || !strcmp(id, q->id))
                continue;
            q->retrieve_id = xstrdup(id);
            q->retrieved = xstrdup(l.part[index[k]]);
            if (retrieve_only) {
                struct buf b = BUF_INIT;
                struct jw j = JW_INIT(&b);
                jw_object(&j);
                jw_kv_str(&j, "id", q->id);
                jw_kv_str(&j, "caption", q->caption);
                jw_kv_str(&j, "id_retrieve", id);
                jw_kv_str(&j, "caption_retrieve", l.caption[index[k]]);
                jw_kv_real(&j, "cosine", score[k]);
                jw_end(&j);
                tool_json_line(g->t, b.s);
                tool_print(g->t, "%s  %.4f  %s  (%s)\n", q->id, score[k], id, l.caption[index[k]]);
                buf_release(&b);
            }
        }
        if (rc == ERR_OK && !q->retrieved)
            rc = err_set(ERR_FORMAT, "%s: none of the five nearest to '%s' may be used", rag_file, q->caption);
    }
    library_release(&l);
    return rc;
}

/* ---- the prompt an adapter was trained with ---- */

/* prompt.json beside the weights says which template they know; without it anything goes. */
static int check_template(const struct generator *g, const char *dir)
{
    bool known, retrieval;
    int rc = prompt_template_read(dir, &known, &retrieval);
    for (size_t i = 0; i < g->n && rc == ERR_OK && known; i++)
        if (retrieval != !!g->q[i].retrieved)
            rc = err_set(ERR_USAGE, "%s was trained with the %s prompt, %s would get the %s one: %s", dir, retrieval ? "retrieval" : "plain",
                         g->q[i].id, retrieval ? "plain" : "retrieval",
                         retrieval ? "give --rag PAIRS --encoder DIR" : "give --no-retrieval and no --rag");
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

static int32_t choose(struct generator *g, struct row *r, const float *v)
{
    int64_t n = tok_n_ids(g->tok), best = 0; /* a model may have more rows than there are tokens */
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
    if (tok_is_stop(g->tok, id)) {
        r->finish = "stop";
        return ERR_OK;
    }
    int rc = tok_stream_push(g->tok, &r->stream, id, true, &r->text);
    size_t from = r->text.n > 256 ? r->text.n - 256 : 0;
    if (strstr(r->text.s + from, end))
        r->finish = "stop";
    else if (r->n >= max_new_tokens)
        r->finish = "length";
    return rc;
}

static int finish(struct generator *g, struct row *r)
{
    struct buf whole = BUF_INIT, valid = BUF_INIT, line = BUF_INIT;
    struct step_restore_report report = {0};
    struct jw j = JW_INIT(&line);
    char *path = out_path(r->q->id, "", ".step"), *raw = out_path(r->q->id, "raw/", ".txt");
    double seconds = now_s() - r->started;
    tok_stream_end(&r->stream, &r->text);
    step_with_header(r->text.s, r->text.n, &whole);
    /* What cannot be restored is kept as far as it goes: the scores shall count it as what it is. */
    const struct buf *best = step_restore(path, whole.s, whole.n, &valid, &report) == ERR_OK || valid.n ? &valid : &whole;
    int rc = file_write(raw, r->text.s, r->text.n, false);
    if (rc == ERR_OK)
        rc = file_write(path, best->s, best->n, false);
    jw_object(&j);
    jw_kv_str(&j, "id", r->q->id);
    jw_kv_str(&j, "caption", r->q->caption);
    if (r->q->retrieve_id)
        jw_kv_str(&j, "id_retrieve", r->q->retrieve_id);
    jw_kv_int(&j, "prompt_tokens", (int64_t)r->prompt.n);
    jw_kv_int(&j, "tokens", r->n);
    jw_kv_str(&j, "finish_reason", r->finish);
    jw_kv_real(&j, "seconds", seconds);
    jw_key(&j, "text");
    jw_strn(&j, r->text.s, r->text.n);
    jw_kv_str(&j, "file", path);
    jw_end(&j);
    if (rc == ERR_OK)
        rc = tool_item(g->t, &(struct run_item){.item = r->q->id, .state = "done", .seconds = seconds, .output = path, .result = line.s});
    progress_text("%lld tokens", (long long)g->n_tokens);
    progress_add(1, 0);
    buf_release(&whole);
    buf_release(&valid);
    buf_release(&line);
    free(path);
    free(raw);
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
    while (rc == ERR_OK && !r->q && g->next < g->n && !stop_requested()) {
        const struct request *q = &g->q[g->next++];
        char *path = out_path(q->id, "", ".step");
        bool current = tool_item_current(g->t, q->id, NULL, path);
        free(path);
        if (current) {
            progress_add(1, 0);
            continue;
        }
        buf_clear(&r->text);
        r->prompt.n = 0;
        r->n = 0;
        r->finish = NULL;
        r->stream = (struct tok_stream){0};
        r->random = fnv1a((uint64_t)seed * 0x9e3779b97f4a7c15u + FNV_INIT, q->id, strlen(q->id));
        r->started = now_s();
        if ((rc = prompt_encode(g->tok, q->caption, q->retrieved, &r->prompt)) < 0)
            break;
        int64_t room = g->kv->capacity - (int64_t)r->prompt.n;
        if (room < 1) {
            char why[160];
            snprintf(why, sizeof why, "too_long: the prompt has %zu tokens, the context %lld", r->prompt.n, (long long)g->kv->capacity);
            rc = fail(g, q, why);
            continue;
        }
        g->kv->length[i] = 0;
        size_t scope = th_scope_begin();
        th_tensor *y = model_prefill(g->m, g->kv, i, r->prompt.v, r->prompt.n);
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
    int64_t vocab = g->m->cfg.vocab, rows = batch < (int64_t)g->n ? batch : (int64_t)g->n;
    struct row *r = xcalloc((size_t)rows, sizeof *r);
    int32_t *ids = xcalloc((size_t)rows, sizeof *ids);
    int rc = ERR_OK;
    g->logits = xmalloc((size_t)(rows * vocab) * sizeof *g->logits);
    g->order = xmalloc((size_t)vocab * sizeof *g->order);
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
        th_tensor *y = model_decode(g->m, g->kv, busy, ids);
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
    }
    free(r);
    free(ids);
    free(g->logits);
    free(g->order);
    return rc;
}

static int open_model(struct generator *g)
{
    enum th_device device;
    if (!model_dir || !out_dir)
        return err_set(ERR_USAGE, "--model DIR and --out DIR are due");
    if (!strcmp(grammar, "part21"))
        return err_set(ERR_USAGE, "--grammar part21 is not available in this version");
    int rc = tok_load(tokenizer_dir ? tokenizer_dir : model_dir, &g->tok);
    if (rc == ERR_OK)
        rc = check_template(g, adapter_dir ? adapter_dir : model_dir);
    if (rc == ERR_OK)
        rc = th_device_open(device_name, &device);
    if (rc < 0)
        return rc;
    enum th_dtype dtype = !strcmp(dtype_name, "float32") || (!strcmp(dtype_name, "auto") && device == TH_CPU) ? TH_F32 : TH_BF16;
    th_set_threads(g->t->threads);
    if ((rc = model_load(model_dir, dtype, device, &g->m)) < 0)
        return rc;
    if (tok_n_ids(g->tok) > g->m->cfg.vocab)
        return err_set(ERR_FORMAT, "tokenizer and model do not fit: %d ids, %lld rows", (int)tok_n_ids(g->tok), (long long)g->m->cfg.vocab);
    if (adapter_dir && (rc = lora_load(g->m, adapter_dir, false, NULL)) == ERR_OK)
        rc = lora_merge(g->m);
    /* Room for the longest prompt and its part, within what the model knows. */
    struct tok_ids ids = {0};
    int64_t longest = 0;
    for (size_t i = 0; i < g->n && rc == ERR_OK; i++) {
        ids.n = 0;
        rc = prompt_encode(g->tok, g->q[i].caption, g->q[i].retrieved, &ids);
        longest = (int64_t)ids.n > longest ? (int64_t)ids.n : longest;
    }
    tok_ids_release(&ids);
    int64_t capacity = longest + max_new_tokens < g->m->cfg.max_positions ? longest + max_new_tokens : g->m->cfg.max_positions;
    if (rc == ERR_OK)
        rc = kv_cache_new(g->m, batch < (int64_t)g->n ? batch : (int64_t)g->n, capacity, &g->kv);
    return rc == ERR_NOMEM ? err_wrap("a cache for %lld sequences of %lld tokens: lower --batch or --max-new-tokens",
                                      (long long)batch, (long long)capacity) : rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct generator g = {.t = &t};
    tool_start(&t, &spec, argc, argv);
    int rc = read_requests(&g);
    if (rc == ERR_OK && retrieve_only && !rag_file)
        rc = err_set(ERR_USAGE, "--retrieve-only needs --rag PAIRS");
    if (rc == ERR_OK && rag_file)
        rc = retrieve(&g);
    if (rc == ERR_OK && !retrieve_only)
        rc = open_model(&g);
    if (rc == ERR_OK && !retrieve_only)
        rc = tool_begin(&t);
    double t0 = now_s();
    if (rc == ERR_OK && !retrieve_only)
        rc = decode_all(&g);
    if (rc == ERR_OK && g.n_tokens) {
        log_note("%lld tokens in %.1f s, %.0f tokens/s", (long long)g.n_tokens, now_s() - t0, (double)g.n_tokens / (now_s() - t0));
        rc = tool_metric(&t, 0, "tokens_per_s", (double)g.n_tokens / (now_s() - t0));
    }
    int code = tool_finish(&t, rc);
    kv_cache_free(g.kv);
    model_free(g.m);
    tok_free(g.tok);
    return code;
}
