/* token-filter: pair records that fit a model's context. */
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "lib/tool.h"

static const char *tokenizer, *in, *out;
static int64_t max_tokens = 16384;
static bool rag = true;

static struct opt options[] = {
    {.name = "tokenizer", .type = OPT_STR, .value = &tokenizer, .arg = "DIR",
     .help = "folder with the model's tokenizer.json and tokenizer_config.json, or the former", .flags = OPT_REQUIRED},
    {.name = "max-tokens", .type = OPT_INT, .value = &max_tokens, .arg = "N",
     .help = "tokens a record may have: prompt, output and EOS", .min = 1, .max = 1e9},
    {.name = "rag", .type = OPT_FLAG, .value = &rag,
     .help = "count the retrieved example, where a record has one (--no-rag: train without)"},
    {.name = "in", .type = OPT_STR, .value = &in, .arg = "FILE", .help = "pair records to read", .flags = OPT_REQUIRED},
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "FILE", .help = "pair records to write", .flags = OPT_REQUIRED},
    {0},
};

static const struct tool_spec spec = {
    .name = "token-filter",
    .args = "--tokenizer DIR --in FILE --out FILE",
    .summary = "Keeps the pair records whose prompt, output and end token fit in a number of tokens.",
    .details = "Counts are exact: what sft would train on, template and BOS included.  What is dropped is told by\n"
               "name, and in the run database.\n\n"
               "  token-filter --tokenizer models/qwen --max-tokens 16384 --in pairs.json --out fit.json\n",
    .options = options,
    .flags = TOOL_KEEP_DONE,
};

struct record {
    uint64_t offset;
    int64_t tokens; /* -1: not counted yet */
    bool known;     /* counted by an earlier start */
};

struct filter {
    struct tool *tool;
    struct tok *tok;
    struct record *v;
    size_t n, cap;
    struct pairs **readers;       /* one a worker */
    struct tok_ids *ids;          /* one a worker */
    struct pairs *reader;         /* of the calling thread, for writing */
    struct pairs_writer *writer;
    size_t kept, dropped;
    int64_t kept_tokens, max_seen;
};

static char *item_name(size_t index, const struct pair *p)
{
    return xasprintf("%zu %s", index + 1, p->id_original); /* ids need not be unique */
}

/* Where the records are, and what an earlier start has counted. */
static int scan(struct filter *f)
{
    struct pair p;
    int rc;
    uint64_t told = 0;
    progress_start("reading records", pairs_size(f->reader), "B");
    while ((rc = pairs_next(f->reader, &p)) > 0) {
        ARRAY_GROW(f->v, f->cap, f->n + 1);
        f->v[f->n] = (struct record){.offset = p.offset, .tokens = -1};
        if (f->tool->resumed) {
            char *item = item_name(p.index, &p);
            json_t *earlier = tool_item_recorded(f->tool, item, in, NULL), *tokens = json_object_get(earlier, "tokens");
            f->v[f->n].known = json_is_integer(tokens);
            if (f->v[f->n].known)
                f->v[f->n].tokens = json_integer_value(tokens);
            json_decref(earlier);
            free(item);
        }
        f->n++;
        progress_add(p.offset - told, 0);
        told = p.offset;
        if (stop_requested()) {
            rc = err_set(ERR_CANCELLED, "stopped");
            break;
        }
    }
    progress_end();
    return rc;
}

static void *count(void *ctx, size_t index, int worker, int *code)
{
    struct filter *f = ctx;
    struct tok_ids *ids = &f->ids[worker];
    struct pair p;
    size_t response;
    if (f->v[index].tokens >= 0)
        return NULL;
    pairs_seek(f->readers[worker], f->v[index].offset, index);
    ids->n = 0;
    if ((*code = pairs_next(f->readers[worker], &p)) > 0)
        *code = prompt_encode_training(f->tok, p.caption, rag ? p.retrieved : NULL, p.output, ids, &response);
    if (*code == ERR_OK)
        f->v[index].tokens = (int64_t)ids->n;
    return NULL;
}

static int decide(void *ctx, const struct pool_item *item)
{
    struct filter *f = ctx;
    struct pair p;
    pairs_seek(f->reader, f->v[item->index].offset, item->index);
    int rc = pairs_next(f->reader, &p);
    if (rc < 0)
        return rc;
    char *name = item_name(item->index, &p), reason[80];
    struct run_item row = {.item = name, .state = "done", .seconds = item->seconds, .input = in};
    struct buf b = BUF_INIT;
    int64_t tokens = f->v[item->index].tokens;
    bool keep = item->code == ERR_OK && tokens <= max_tokens;
    if (item->code < 0) {
        row.state = "failed";
        row.reason = item->error;
    } else {
        struct jw j = JW_INIT(&b);
        jw_object(&j);
        jw_kv_str(&j, "id", p.id_original);
        jw_kv_int(&j, "record", (int64_t)item->index + 1);
        jw_kv_int(&j, "tokens", tokens);
        jw_kv_bool(&j, "kept", keep);
        jw_end(&j);
        row.result = b.s;
        f->max_seen = tokens > f->max_seen ? tokens : f->max_seen;
        if (!keep) {
            snprintf(reason, sizeof reason, "dropped: %lld tokens, %lld fit", (long long)tokens, (long long)max_tokens);
            row.reason = reason;
            f->dropped++;
            log_note("%s: %s", p.id_original, reason);
        }
    }
    if (f->v[item->index].known) { /* recorded by an earlier start */
        f->tool->n_current++;
        tool_json_line(f->tool, b.s);
        rc = ERR_OK;
    } else {
        rc = tool_item(f->tool, &row);
    }
    if (keep) {
        f->kept++;
        f->kept_tokens += tokens;
        if (rc == ERR_OK)
            rc = pairs_put(f->writer, &p);
    }
    buf_release(&b);
    free(name);
    return rc;
}

static int run(struct filter *f)
{
    struct tool *t = f->tool;
    int rc = tok_load(tokenizer, &f->tok);
    if (rc == ERR_OK && tok_eos(f->tok) < 0)
        rc = err_set(ERR_FORMAT, "%s: names no EOS token (tokenizer_config.json: eos_token)", tokenizer);
    if (rc == ERR_OK)
        rc = pairs_open(in, &f->reader);
    if (rc == ERR_OK)
        rc = scan(f);
    for (int i = 0; i < t->threads && rc == ERR_OK; i++)
        rc = pairs_open(in, &f->readers[i]);
    if (rc == ERR_OK)
        rc = pairs_create(out, &f->writer);
    if (rc < 0)
        return rc;
    struct pool_job job = {.n = f->n, .threads = t->threads, .what = "counting tokens", .unit = "records",
                           .work = count, .done = decide, .ctx = f};
    rc = pool_run(&job);
    if (rc == ERR_OK) {
        rc = pairs_commit(f->writer);
        f->writer = NULL;
    }
    if (rc < 0)
        return rc;
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_int(&j, "records", (int64_t)f->n);
    jw_kv_int(&j, "kept", (int64_t)f->kept);
    jw_kv_int(&j, "dropped", (int64_t)f->dropped);
    jw_kv_int(&j, "max_tokens", max_tokens);
    jw_kv_int(&j, "longest", f->max_seen);
    jw_kv_int(&j, "kept_tokens", f->kept_tokens);
    jw_end(&j);
    tool_json_line(t, b.s);
    buf_release(&b);
    tool_print(t, "%zu of %zu records kept, %zu dropped; the longest has %lld tokens, %lld fit\n", f->kept, f->n,
               f->dropped, (long long)f->max_seen, (long long)max_tokens);
    if (f->n && !f->kept)
        log_warn("no record fits in %lld tokens: %s is empty", (long long)max_tokens, out);
    rc = tool_metric(t, 0, "kept", (double)f->kept);
    if (rc == ERR_OK)
        rc = tool_metric(t, 0, "dropped", (double)f->dropped);
    return rc < 0 ? rc : tool_artifact(t, out, "pairs");
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    struct filter f = {.tool = &t};
    f.readers = xcalloc((size_t)t.threads, sizeof(struct pairs *));
    f.ids = xcalloc((size_t)t.threads, sizeof *f.ids);
    int rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = run(&f);
    pairs_abort(f.writer);
    pairs_close(f.reader);
    for (int i = 0; i < t.threads; i++) {
        pairs_close(f.readers[i]);
        tok_ids_release(&f.ids[i]);
    }
    free(f.readers);
    free(f.ids);
    free(f.v);
    tok_free(f.tok);
    return tool_finish(&t, rc);
}
