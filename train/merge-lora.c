/* merge-lora: a LoRA adapter folded into its base model, tensor by tensor. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "lib/prompt.h"
#include "lib/safetensors.h"
#include "lib/tool.h"
#include "model/transformer.h"

static const char *model_dir, *adapter_dir, *out_dir;
static int64_t max_shard = 5000000000, check = 32;

static struct opt options[] = {
    {.name = "model", .type = OPT_STR, .value = &model_dir, .arg = "DIR", .help = "base model, a Hugging Face folder", .flags = OPT_REQUIRED},
    {.name = "adapter", .type = OPT_STR, .value = &adapter_dir, .arg = "DIR", .help = "LoRA adapter in PEFT's layout", .flags = OPT_REQUIRED},
    {.name = "out", .type = OPT_STR, .value = &out_dir, .arg = "DIR", .help = "the merged model", .flags = OPT_REQUIRED},
    {.name = "max-shard", .type = OPT_INT, .value = &max_shard, .arg = "BYTES", .help = "a larger model is written as several files", .min = 1000, .max = 1e15},
    {.name = "check", .type = OPT_INT, .value = &check, .arg = "N", .help = "compare the logits of the result with those of base and adapter on N tokens (0: not)", .min = 0, .max = 16384},
    {0},
};

static const struct tool_spec spec = {
    .name = "merge-lora",
    .args = "--model DIR --adapter DIR --out DIR",
    .summary = "Writes the model that a base model and its adapter make together.",
    .details = "Every tensor keeps its type; the sum W + scale B A is formed in float32.  Works through the files, so\n"
               "memory is that of the largest weight; only --check holds the model, once before and once after.  An --out that is there is replaced only with --force.\n\n"
               "  merge-lora --model models/Qwen2.5-3B --adapter runs/qwen --out models/qwen-step\n",
    .options = options,
    .flags = TOOL_KEEP_DONE,
};

struct merge {
    struct tool *t;
    struct st *base, *adapter;
    struct model *m;       /* the base's weights where they lie, to check the adapter against */
    struct st_tensor *v;   /* the output's tensors; data NULL: to be merged */
    struct linear **of;    /* whose weight v[i] is; NULL: carried over */
    size_t n, n_merged, n_replaced; /* replaced: embedding and head that the adapter holds whole */
    double off;            /* how far the logits are apart, NAN: not looked */
    void *bytes;           /* of the merged tensor last asked for */
};

static int dtype_of(const struct st *s, const struct st_tensor *t, enum th_dtype *out)
{
    switch (t->dtype) {
    case ST_F32: *out = TH_F32; return ERR_OK;
    case ST_BF16: *out = TH_BF16; return ERR_OK;
    case ST_F16: *out = TH_F16; return ERR_OK;
    case ST_F64: *out = TH_F64; return ERR_OK;
    default: return err_set(ERR_FORMAT, "%s: tensor %s: weights of type %s cannot be merged into", st_path(s), t->name, st_dtype_name(t->dtype));
    }
}

/* A file's tensor as float32, a handle of the caller's scope. */
static th_tensor *load(const struct st *s, const char *name)
{
    const struct st_tensor *t;
    enum th_dtype d = TH_F32;
    if (st_get(s, name, -1, NULL, &t) < 0 || dtype_of(s, t, &d) < 0)
        return NULL;
    return th_to(th_borrow(t->data, t->rank, t->shape, d), TH_F32, TH_CPU);
}

/* The adapter's own tensor for a weight of the base (modules_to_save); NULL: none. */
static const struct st_tensor *whole(const struct merge *g, const char *name)
{
    char *full = xasprintf("base_model.model.%s", name);
    const struct st_tensor *t = st_find(g->adapter, full);
    free(full);
    return t;
}

/* st_get_fn: W + scale B A, or the adapter's own weight, rounded once. */
static int merged(void *ctx, size_t i, const void **data)
{
    struct merge *g = ctx;
    const struct linear *l = g->of[i];
    enum th_dtype d = TH_F32;
    int rc = dtype_of(g->base, &g->v[i], &d);
    if (rc < 0)
        return rc;
    if (stop_requested())
        return err_set(ERR_CANCELLED, "stopped by a signal");
    size_t scope = th_scope_begin();
    th_tensor *w;
    if (l) {
        th_tensor *delta = th_matmul(load(g->adapter, l->lora_b->name), load(g->adapter, l->lora_a->name));
        rc = th_scale_(delta, g->m->lora_scale);
        w = rc == ERR_OK ? th_add(load(g->base, g->v[i].name), delta, 1) : NULL;
    } else {
        w = load(g->adapter, whole(g, g->v[i].name)->name);
    }
    double sum = th_item(th_sum_all(w));
    if (!w)
        rc = err_code();
    else if (!isfinite(sum))
        rc = err_set(ERR_FORMAT, "%s: not all numbers are finite after adding %s", g->v[i].name, adapter_dir);
    free(g->bytes);
    g->bytes = xmalloc(g->v[i].bytes + 1);
    if (rc == ERR_OK)
        rc = th_read(th_to(w, d, TH_CPU), g->bytes);
    th_scope_end(scope);
    *data = g->bytes;
    progress_add(1, 0);
    return rc;
}

static struct linear *linear_named(struct model *m, const char *name)
{
    for (int64_t i = 0; i < m->cfg.n_layers; i++)
        for (int k = 0; k < LORA_TARGETS; k++) {
            struct linear *l = &m->layers[i].proj[k];
            if (l->lora_a && !strcmp(l->w->name, name))
                return l;
        }
    return NULL;
}

/* What the adapter holds beyond A and B of the projections would be lost: say so instead. */
static int check_all_used(const struct merge *g)
{
    for (size_t i = 0; i < st_count(g->adapter); i++) {
        const char *name = st_at(g->adapter, i)->name;
        bool used = g->m->cfg.tied && !strcmp(name, "base_model.model.lm_head.weight"); /* the embedding again */
        for (size_t k = 0; k < g->m->n_params && !used; k++) {
            const struct param *p = g->m->params[k];
            used = !strcmp(p->name, name) || (!strncmp(name, "base_model.model.", 17) && !strcmp(p->name, name + 17) && (p == g->m->embed || p == g->m->head));
        }
        if (!used)
            return err_set(ERR_FORMAT, "%s: tensor %s has no place in %s", st_path(g->adapter), name, model_dir);
    }
    return ERR_OK;
}

/* An adapter of a sister model of the same shape (Base, Instruct) fits, and is still wrong. */
static void warn_of_other_base(void)
{
    char *path = path_join(adapter_dir, "adapter_config.json"), *mine = xstrdup(model_dir);
    json_t *o = NULL;
    for (size_t n = strlen(mine); n > 1 && mine[n - 1] == '/'; n--)
        mine[n - 1] = 0;
    if (json_read_file(path, 1 << 20, &o) == ERR_OK) {
        const char *base = json_string_value(json_object_get(o, "base_model_name_or_path"));
        if (base && *base && strcasecmp(path_basename(base), path_basename(mine)))
            log_warn("%s was trained on '%s'; is %s the same model?", adapter_dir, base, model_dir);
    }
    json_decref(o);
    free(mine);
    free(path);
}

static int open_both(struct merge *g)
{
    const struct st_tensor *t;
    enum th_dtype d = TH_F32;
    char *weights = path_join(adapter_dir, "adapter_model.safetensors");
    int rc = path_is_dir(model_dir) ? ERR_OK : err_set(ERR_IO, "%s: no such model folder", model_dir);
    if (rc == ERR_OK && !path_is_dir(adapter_dir))
        rc = err_set(ERR_IO, "%s: no such adapter folder", adapter_dir);
    if (rc == ERR_OK)
        rc = st_open(model_dir, &g->base);
    if (rc == ERR_OK && (rc = st_get(g->base, "model.embed_tokens.weight", -1, NULL, &t)) == ERR_OK)
        rc = dtype_of(g->base, t, &d);
    if (rc == ERR_OK && (rc = model_load(model_dir, d, TH_CPU, &g->m)) == ERR_OK)
        rc = lora_load(g->m, adapter_dir, false, NULL);
    if (rc == ERR_OK && (rc = st_open(weights, &g->adapter)) == ERR_OK)
        rc = check_all_used(g);
    free(weights);
    return rc;
}

/* How the adapter was prompted goes for the model now; which base it was of does not matter any more. */
static int write_prompt(const char *dir)
{
    char *from = path_join(adapter_dir, "prompt.json"), *to = path_join(dir, "prompt.json");
    const struct prompt_release *release = prompt_released(adapter_dir);
    json_t *o = NULL;
    int rc = ERR_OK;
    if (path_exists(from))
        rc = json_read_file(from, 1 << 20, &o);
    else if (release)
        o = json_pack("{ss}", "template", release->retrieval ? "retrieval" : "plain");
    if (rc == ERR_OK && o) {
        json_object_del(o, "base");
        if (release)
            json_object_set_new(o, "release", json_string(release->repo));
        char *text = json_dumps(o, JSON_INDENT(2));
        rc = file_write(to, text, strlen(text), true);
        free(text);
    }
    json_decref(o);
    free(from);
    free(to);
    return rc;
}

static int write_folder(struct merge *g, const char *dir)
{
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                                        "tokenizer.model", "chat_template.jinja", "LICENSE"};
    g->n = st_count(g->base);
    g->v = xcalloc(g->n, sizeof *g->v);
    g->of = xcalloc(g->n, sizeof *g->of);
    for (size_t i = 0; i < g->n; i++) {
        g->v[i] = *st_at(g->base, i);
        g->of[i] = linear_named(g->m, g->v[i].name);
        if (g->of[i] || whole(g, g->v[i].name)) {
            g->v[i].data = NULL;
            g->of[i] ? g->n_merged++ : g->n_replaced++;
        }
    }
    progress_start("merging", g->n_merged + g->n_replaced, "weights");
    int rc = mkdir_p(dir);
    if (rc == ERR_OK)
        rc = st_write_model(dir, g->v, g->n, merged, g, (uint64_t)max_shard);
    progress_end();
    for (size_t i = 0; i < ARRAY_LEN(names) && rc == ERR_OK; i++) {
        char *from = path_join(model_dir, names[i]), *to = path_join(dir, names[i]);
        if (path_exists(from))
            rc = file_copy(from, to, true);
        free(from);
        free(to);
    }
    return rc < 0 ? rc : write_prompt(dir);
}

/* ---- the check: what was written gives the logits of base and adapter ---- */

static int read_logits(struct model *m, const int32_t *ids, float *out)
{
    size_t scope = th_scope_begin();
    int rc = th_read(model_logits(m, ids, (size_t)check), out);
    th_scope_end(scope);
    return rc;
}

/* Root mean square of the differences over that of the logits about their mean. */
static double distance(const float *a, const float *b, size_t n)
{
    double diff = 0, sum = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        sum += a[i];
        square += (double)a[i] * a[i];
    }
    return sqrt(diff / (square - sum * sum / (double)n));
}

static int check_logits(struct merge *g, const char *dir)
{
    enum th_dtype d = g->m->dtype;
    double allowed = d == TH_F32 ? 1e-3 : d == TH_F16 ? 0.02 : 0.05; /* roundings of the merged weights, and of what is computed with them */
    size_t n = (size_t)(check * g->m->cfg.vocab);
    int32_t *ids = xmalloc((size_t)check * sizeof *ids);
    float *want = xmalloc(n * sizeof *want), *got = xmalloc(n * sizeof *got);
    struct model *m = NULL;
    uint64_t s = 1;
    for (int64_t i = 0; i < check; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u; /* any tokens will do */
        ids[i] = (int32_t)((s >> 33) % (uint64_t)g->m->cfg.vocab);
    }
    int rc = read_logits(g->m, ids, want);
    model_free(g->m); /* not both at once */
    g->m = NULL;
    if (rc == ERR_OK && (rc = model_load(dir, d, TH_CPU, &m)) == ERR_OK)
        rc = read_logits(m, ids, got);
    if (rc == ERR_OK) {
        g->off = distance(want, got, n);
        if (!(g->off <= allowed))
            rc = err_set(ERR_EXTERN, "the merged weights give other logits than base and adapter (off by %.3g of their spread, %.3g is allowed)", g->off, allowed);
    }
    model_free(m);
    free(ids);
    free(want);
    free(got);
    return rc;
}

static bool same_place(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* What a finished merge stands on, as an item's input. */
static char *inputs(void)
{
    char *index = path_join(model_dir, "model.safetensors.index.json");
    char *s = xasprintf("%s/config.json\n%s/%s\n%s/adapter_config.json\n%s/adapter_model.safetensors", model_dir, model_dir,
                        path_exists(index) ? "model.safetensors.index.json" : "model.safetensors", adapter_dir, adapter_dir);
    free(index);
    return s;
}

/* --force takes a model's folder away, and nothing else. */
static int check_out(struct tool *t)
{
    if (!path_exists(out_dir))
        return ERR_OK;
    char *state = NULL, *result = NULL;
    bool ours = t->db && t->resumed && rundb_item_get(t->db, out_dir, &state, &result) == ERR_OK && !strcmp(state, "skipped");
    free(state);
    free(result);
    if (!t->force && !ours)
        return err_set(ERR_USAGE, "%s is there already; --force replaces it", out_dir);
    char *config = path_join(out_dir, "config.json");
    bool model = path_exists(config) && !same_place(out_dir, model_dir) && !same_place(out_dir, adapter_dir);
    free(config);
    return model ? ERR_OK : err_set(ERR_USAGE, "%s: is no folder of an earlier merge, and is not replaced", out_dir);
}

/* Puts part in out_dir's place; what stood there goes only then. */
static int put_in_place(const char *part, const char *old)
{
    int rc = remove_tree(old);
    if (rc == ERR_OK && path_exists(out_dir) && rename(out_dir, old) < 0)
        rc = err_set(ERR_IO, "%s: cannot be moved away: %s", out_dir, strerror(errno));
    if (rc == ERR_OK && rename(part, out_dir) < 0)
        rc = err_set(ERR_IO, "%s: cannot be put in place: %s", out_dir, strerror(errno));
    return rc < 0 ? rc : remove_tree(old);
}

static int merge(struct merge *g)
{
    char *parent = path_dirname(out_dir), *part = xasprintf("%s/.%s.part", parent, path_basename(out_dir)),
         *old = xasprintf("%s/.%s.old", parent, path_basename(out_dir));
    double t0 = now_s(), scale = g->m->lora_scale;
    int rc = remove_tree(part);
    if (rc == ERR_OK)
        rc = write_folder(g, part);
    if (rc == ERR_OK && check)
        rc = check_logits(g, part);
    /* Whoever takes up this run, should it be killed from here on, finds an --out that is its own. */
    if (rc == ERR_OK && g->t->db)
        rc = rundb_item(g->t->db, &(struct run_item){.item = out_dir, .state = "skipped", .reason = "being put in place"});
    if (rc == ERR_OK && g->t->db)
        rc = rundb_flush(g->t->db);
    if (rc == ERR_OK)
        rc = put_in_place(part, old);
    if (rc < 0) {
        char *why = xstrdup(err_text());
        remove_tree(part);
        rc = err_set(rc, "%s", why);
        free(why);
    } else {
        struct buf b = BUF_INIT;
        struct jw j = JW_INIT(&b);
        jw_object(&j);
        jw_kv_str(&j, "out", out_dir);
        jw_kv_int(&j, "tensors", (int64_t)g->n);
        jw_kv_int(&j, "merged", (int64_t)g->n_merged);
        jw_kv_int(&j, "replaced", (int64_t)g->n_replaced);
        jw_kv_real(&j, "scale", scale);
        jw_kv_real(&j, "logits_off", g->off);
        jw_kv_real(&j, "seconds", now_s() - t0);
        jw_end(&j);
        char *in = inputs();
        rc = tool_item(g->t, &(struct run_item){.item = out_dir, .state = "done", .seconds = now_s() - t0, .input = in, .result = b.s});
        free(in);
        buf_release(&b);
        if (rc == ERR_OK)
            rc = tool_artifact(g->t, out_dir, "model");
        tool_print(g->t, "%s: %zu of %zu tensors merged, scale %g\n", out_dir, g->n_merged, g->n, scale);
        if (check)
            tool_print(g->t, "logits are within %.2g of those of base and adapter\n", g->off);
    }
    free(parent);
    free(part);
    free(old);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct merge g = {.t = &t, .off = NAN};
    tool_start(&t, &spec, argc, argv);
    th_set_threads(t.threads);
    char *out = xstrdup(out_dir); /* "models/x/" names the folder x */
    for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--)
        out[n - 1] = 0;
    out_dir = out;
    int rc = tool_begin(&t);
    char *in = inputs();
    json_t *was = rc == ERR_OK && path_exists(out_dir) ? tool_item_earlier(&t, out_dir, in, NULL) : NULL;
    free(in);
    if (was) { /* of the same weights as now */
        json_decref(was);
        tool_print(&t, "%s: is done already\n", out_dir);
        goto end;
    }
    if (rc == ERR_OK)
        rc = check_out(&t);
    if (rc == ERR_OK)
        rc = open_both(&g);
    if (rc == ERR_OK) {
        warn_of_other_base();
        rc = merge(&g);
    }
end:;
    int code = tool_finish(&t, rc);
    free(g.v);
    free(g.of);
    free(g.bytes);
    model_free(g.m);
    st_close(g.base);
    st_close(g.adapter);
    free(out);
    return code;
}
