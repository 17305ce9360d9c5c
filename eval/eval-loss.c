/* eval-loss: the loss of a model, an adapter or a row of checkpoints on held-out pair records. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/csv.h"
#include "lib/prompt.h"
#include "lib/tool.h"
#include "model/dataset.h"
#include "model/engine.h"

static const char *model_dir, *adapter_dir, *checkpoints_dir, *data_file, *tokenizer_dir, *csv_file;
static const char *device_name = "auto", *dtype_name = "auto", *weights_kind = "native";
static bool rag = true;
static int64_t max_tokens = 16384, limit;

static struct opt options[] = {
    {.name = "model", .type = OPT_STR, .value = &model_dir, .arg = "DIR", .help = "base model, a Hugging Face folder", .flags = OPT_REQUIRED},
    {.name = "adapter", .type = OPT_STR, .value = &adapter_dir, .arg = "DIR", .help = "LoRA adapter in PEFT's layout"},
    {.name = "checkpoints", .type = OPT_STR, .value = &checkpoints_dir, .arg = "DIR", .help = "sft's --out: each DIR/checkpoint-STEP, adapter or whole model"},
    {.name = "data", .type = OPT_STR, .value = &data_file, .arg = "FILE", .help = "pair records (test.json)", .flags = OPT_REQUIRED},
    {.name = "rag", .type = OPT_FLAG, .value = &rag, .help = "the prompt shows the retrieved part (default: as the weights were trained)"},
    {.name = "tokenizer", .type = OPT_STR, .value = &tokenizer_dir, .arg = "DIR", .help = "tokenizer (default: the model's)"},
    {.name = "max-tokens", .type = OPT_INT, .value = &max_tokens, .arg = "N", .help = "longer records are left out, and counted", .min = 2, .max = 1e7},
    {.name = "limit", .type = OPT_INT, .value = &limit, .arg = "N", .help = "only the first N records (0: all)", .min = 0, .max = 1e9},
    {.name = "csv", .type = OPT_STR, .value = &csv_file, .arg = "FILE", .help = "also write the figures as a table", .flags = OPT_NO_KEY},
    {.name = "weights", .type = OPT_STR, .value = &weights_kind, .choices = "native|fp8",
     .help = "fp8: merged and rounded to 8 bits, as generate --weights fp8 computes with them"},
    {.name = "device", .type = OPT_STR, .value = &device_name, .choices = "auto|cpu|cuda", .help = "where to compute"},
    {.name = "dtype", .type = OPT_STR, .value = &dtype_name, .choices = "auto|float32|bfloat16", .help = "of weights and activations (auto: bfloat16 on CUDA)"},
    {0},
};

static const struct tool_spec spec = {
    .name = "eval-loss",
    .args = "--model DIR [--adapter DIR | --checkpoints DIR] --data test.json",
    .summary = "Mean loss of the response tokens, for a model, an adapter, or each checkpoint of a training run.",
    .details = "loss is the mean over all response tokens, loss_example the mean of each record's own mean.  Checkpoints\n"
               "come in the order of their steps; a run that was stopped goes on with those that are left.\n\n"
               "  eval-loss --model models/Qwen2.5-3B --checkpoints runs/qwen --data datasets/work/test.json\n",
    .options = options,
};

struct checkpoint {
    char *dir;
    int64_t step;       /* 0: not one of a row */
    bool whole;         /* a model, not an adapter */
    double loss, loss_example;
};

struct evaluation {
    struct tool *t;
    struct tok *tok;
    struct dataset data;
    size_t n_records;   /* the first so many of it */
    char digest[24];    /* of the records as tokens */
    struct checkpoint *v;
    size_t n, cap;
    enum th_device device;
    enum th_dtype dtype;
};

/* ---- what is asked for ---- */

static bool holds(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    bool yes = path_exists(path);
    free(path);
    return yes;
}

static bool whole_model(const char *dir)
{
    return holds(dir, "model.safetensors") || holds(dir, "model.safetensors.index.json");
}

static int by_step(const void *a, const void *b)
{
    const struct checkpoint *x = a, *y = b;
    return x->step < y->step ? -1 : x->step > y->step;
}

static void add(struct evaluation *e, const char *dir, int64_t step)
{
    ARRAY_GROW(e->v, e->cap, e->n + 1);
    e->v[e->n++] = (struct checkpoint){.dir = xstrdup(dir), .step = step, .whole = whole_model(dir), .loss = NAN, .loss_example = NAN};
}

static int find_checkpoints(struct evaluation *e)
{
    static const char *const suffixes[] = {"adapter_config.json", "model.safetensors", "model.safetensors.index.json", NULL};
    struct file_list l = {0};
    int rc = path_is_dir(checkpoints_dir) ? file_list_add(&l, checkpoints_dir, suffixes)
                                          : err_set(ERR_IO, "%s: no such folder", checkpoints_dir);
    for (size_t i = 0; i < l.n; i++) {
        long long step;
        int at = 0;
        if (sscanf(l.v[i].rel, "checkpoint-%lld/%n", &step, &at) != 1 || !at || strchr(l.v[i].rel + at, '/') || step < 0)
            continue;
        char *dir = path_dirname(l.v[i].path);
        if (!e->n || strcmp(e->v[e->n - 1].dir, dir)) /* sorted: the files of a folder lie together */
            add(e, dir, step);
        free(dir);
    }
    file_list_release(&l);
    if (e->n)
        qsort(e->v, e->n, sizeof *e->v, by_step);
    return rc < 0 || e->n ? rc : err_set(ERR_IO, "%s: holds no checkpoint-STEP with weights", checkpoints_dir);
}

static int choose(struct evaluation *e)
{
    if (adapter_dir && checkpoints_dir)
        return err_set(ERR_USAGE, "--adapter and --checkpoints exclude each other");
    if (checkpoints_dir)
        return find_checkpoints(e);
    if (adapter_dir && !path_is_dir(adapter_dir))
        return err_set(ERR_IO, "%s: no such adapter folder", adapter_dir);
    add(e, adapter_dir ? adapter_dir : model_dir, 0);
    e->v[0].whole = !adapter_dir;
    return ERR_OK;
}

/* The template the weights know (prompt.json); all must agree with --rag or --no-rag where one is given. */
static int choose_template(struct evaluation *e)
{
    bool asked = false, settled = false;
    for (const struct opt *o = options; o->name; o++)
        asked = asked || (o->value == &rag && o->set);
    for (size_t i = 0; i < e->n; i++) {
        bool known, retrieval;
        int rc = prompt_template_read(e->v[i].dir, &known, &retrieval);
        if (rc < 0)
            return rc;
        if (!known)
            continue;
        if ((asked || settled) && rag != retrieval)
            return err_set(ERR_USAGE, "%s was trained with the %s prompt: %s", e->v[i].dir, retrieval ? "retrieval" : "plain",
                           settled && !asked ? "checkpoints before it were not" : retrieval ? "leave out --no-rag" : "give --no-rag");
        rag = retrieval;
        settled = true;
    }
    return ERR_OK;
}

static int read_data(struct evaluation *e)
{
    struct dataset *d = &e->data;
    int rc = dataset_read(data_file, e->tok, rag, max_tokens, false, d);
    if (rc < 0)
        return rc;
    if (d->n_long)
        log_warn("%s: %zu records of more than %lld tokens are left out", data_file, d->n_long, (long long)max_tokens);
    if (d->n_empty)
        log_warn("%s: %zu records without a token of output are left out", data_file, d->n_empty);
    e->n_records = limit && (size_t)limit < d->n ? (size_t)limit : d->n;
    snprintf(e->digest, sizeof e->digest, "%016llx", (unsigned long long)d->digest);
    return d->n ? ERR_OK : err_set(ERR_FORMAT, "%s: no record is left to score", data_file);
}

/* ---- scoring ---- */

static int load(struct evaluation *e, const struct checkpoint *c, struct model **m)
{
    const char *dir = c->whole ? c->dir : model_dir;
    int rc = model_load(dir, e->dtype, e->device, m);
    if (rc == ERR_OK && tok_n_ids(e->tok) > (*m)->cfg.vocab)
        rc = err_set(ERR_FORMAT, "%s has %d ids, %s only %lld: tokenizer and model do not fit", tokenizer_dir, (int)tok_n_ids(e->tok), dir,
                     (long long)(*m)->cfg.vocab);
    if (rc == ERR_OK && !c->whole)
        rc = lora_load(*m, c->dir, false, NULL);
    if (rc == ERR_OK && !strcmp(weights_kind, "fp8") && (rc = lora_merge(*m)) == ERR_OK)
        rc = engine_round_fp8(*m);
    return rc;
}

static int score(struct evaluation *e, struct checkpoint *c, size_t *n_tokens)
{
    struct model *m = NULL;
    double total = 0, of_means = 0;
    int rc = load(e, c, &m);
    *n_tokens = 0;
    for (size_t i = 0; i < e->n_records && rc == ERR_OK; i++) {
        double loss;
        size_t n;
        /* One at a time: no padding, and each record's own mean. */
        if ((rc = model_loss(m, &e->data.v[i], 1, false, 1, &loss, &n)) < 0)
            rc = err_wrap("%s: record %s of %zu tokens", data_file, e->data.id[i], e->data.v[i].n);
        else if (!isfinite(loss))
            rc = err_set(ERR_FORMAT, "not_finite: the loss of record %s is not finite", e->data.id[i]);
        else if (stop_requested())
            rc = err_set(ERR_CANCELLED, "stopped by a signal");
        total += loss;
        of_means += n ? loss / (double)n : 0;
        *n_tokens += n;
        progress_add(1, 0);
    }
    model_free(m);
    c->loss = total / (double)*n_tokens;
    c->loss_example = of_means / (double)e->n_records;
    return rc;
}

static void print(const struct evaluation *e, const struct checkpoint *c, size_t n_tokens)
{
    tool_print(e->t, "%s: loss %.6f, mean of the records' %.6f, %zu tokens of %zu records\n", c->dir, c->loss, c->loss_example, n_tokens,
               e->n_records);
}

static char *weights_of(const struct checkpoint *c)
{
    const char *name = !c->whole ? "adapter_model.safetensors" : holds(c->dir, "model.safetensors") ? "model.safetensors"
                                                                                                    : "model.safetensors.index.json";
    return path_join(c->dir, name);
}

/* True if an earlier start of this run scored these weights on these records. */
static bool scored_before(struct evaluation *e, struct checkpoint *c, const char *weights)
{
    json_t *o = tool_item_earlier_of(e->t, c->dir, weights, NULL, "data", e->digest);
    if (!o)
        return false;
    c->loss = json_number_value(json_object_get(o, "loss"));
    c->loss_example = json_number_value(json_object_get(o, "loss_example"));
    print(e, c, (size_t)json_integer_value(json_object_get(o, "tokens")));
    progress_add(e->n_records, 0);
    json_decref(o);
    return true;
}

static int record(struct evaluation *e, const struct checkpoint *c, const char *weights, size_t n_tokens, double seconds)
{
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_str(&j, "checkpoint", c->dir);
    jw_kv_int(&j, "step", c->step);
    jw_kv_real(&j, "loss", c->loss);
    jw_kv_real(&j, "loss_example", c->loss_example);
    jw_kv_int(&j, "tokens", (int64_t)n_tokens);
    jw_kv_int(&j, "records", (int64_t)e->n_records);
    jw_kv_str(&j, "template", rag ? "retrieval" : "plain");
    jw_kv_str(&j, "data", e->digest);
    jw_kv_real(&j, "seconds", seconds);
    jw_end(&j);
    int rc = tool_metric(e->t, c->step, "loss", c->loss);
    if (rc == ERR_OK)
        rc = tool_metric(e->t, c->step, "loss_example", c->loss_example);
    if (rc == ERR_OK)
        rc = tool_item(e->t, &(struct run_item){.item = c->dir, .state = "done", .seconds = seconds, .input = weights, .result = b.s});
    print(e, c, n_tokens);
    buf_release(&b);
    return rc;
}

static int score_all(struct evaluation *e)
{
    int rc = ERR_OK;
    progress_start("scoring", e->n * e->n_records, "records");
    for (size_t i = 0; i < e->n && rc == ERR_OK; i++) {
        struct checkpoint *c = &e->v[i];
        char *weights = weights_of(c);
        size_t n_tokens;
        double t0 = now_s();
        if (!scored_before(e, c, weights)) {
            rc = score(e, c, &n_tokens);
            if (rc == ERR_OK)
                rc = record(e, c, weights, n_tokens, now_s() - t0);
            else if (e->n > 1 && rc == ERR_FORMAT) { /* a bad checkpoint does not spoil the others */
                c->loss = NAN;
                rc = tool_item(e->t, &(struct run_item){.item = c->dir, .state = "failed", .reason = err_text(), .seconds = now_s() - t0});
            }
        }
        free(weights);
    }
    progress_end();
    return rc;
}

static int write_csv(const struct evaluation *e)
{
    struct buf b = BUF_INIT;
    char number[2][32];
    buf_puts(&b, "step,checkpoint,loss,loss_example\n");
    for (size_t i = 0; i < e->n; i++)
        if (isfinite(e->v[i].loss)) {
            buf_printf(&b, "%lld,", (long long)e->v[i].step);
            csv_field(&b, e->v[i].dir);
            buf_printf(&b, ",%s,%s\n", real_repr(number[0], e->v[i].loss), real_repr(number[1], e->v[i].loss_example));
        }
    int rc = file_write(csv_file, b.s, b.n, false);
    buf_release(&b);
    return rc;
}

static void print_lowest(const struct evaluation *e)
{
    const struct checkpoint *best = NULL;
    for (size_t i = 0; i < e->n; i++)
        if (isfinite(e->v[i].loss) && (!best || e->v[i].loss < best->loss))
            best = &e->v[i];
    if (best && e->n > 1)
        tool_print(e->t, "lowest: %s\n", best->dir);
}

int main(int argc, char **argv)
{
    struct tool t;
    struct evaluation e = {.t = &t};
    tool_start(&t, &spec, argc, argv);
    if (!tokenizer_dir)
        tokenizer_dir = model_dir;
    int rc = choose(&e);
    if (rc == ERR_OK)
        rc = choose_template(&e);
    if (rc == ERR_OK)
        rc = tok_load(tokenizer_dir, &e.tok);
    if (rc == ERR_OK)
        rc = read_data(&e);
    if (rc == ERR_OK)
        rc = th_device_open(device_name, &e.device);
    e.dtype = !strcmp(dtype_name, "float32") || (!strcmp(dtype_name, "auto") && e.device == TH_CPU) ? TH_F32 : TH_BF16;
    th_set_threads(t.threads);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = score_all(&e);
    if (rc == ERR_OK)
        print_lowest(&e);
    if (rc == ERR_OK && csv_file)
        rc = write_csv(&e);
    int code = tool_finish(&t, rc);
    for (size_t i = 0; i < e.n; i++)
        free(e.v[i].dir);
    free(e.v);
    dataset_release(&e.data);
    tok_free(e.tok);
    return code;
}
