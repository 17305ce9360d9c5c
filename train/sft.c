/* sft: supervised fine-tuning of a causal language model on pair records: LoRA or all weights. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/tool.h"
#include "model/dataset.h"
#include "model/optim.h"

static const char *model_dir, *data_dir, *out_dir, *tokenizer_dir, *adapter_dir;
static const char *method = "lora", *init = "pretrained", *schedule = "linear", *overlong = "drop";
static const char *device_name = "auto", *dtype_name = "auto", *optimizer = "adamw", *memory = "auto";
static bool resume, rag = true, rslora, deterministic;
static int64_t lora_r = 16, batch = 2, accumulation = 4, warmup_steps = 1200, epochs = 1, max_steps, pass_tokens, max_tokens = 16384,
               save_steps = 300, keep_checkpoints = 3, logging_steps = 1, eval_steps, seed = 3407;
static double lora_alpha = 16, lr = 5e-5, warmup_ratio, weight_decay = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8,
              max_grad_norm = 1;
static struct opt_list targets;

static struct opt options[] = {
    {.name = "model", .type = OPT_STR, .value = &model_dir, .arg = "DIR", .help = "base model, a Hugging Face folder", .flags = OPT_REQUIRED},
    {.name = "data", .type = OPT_STR, .value = &data_dir, .arg = "DIR", .help = "folder with train.json and, for --eval-steps, val.json", .flags = OPT_REQUIRED},
    {.name = "out", .type = OPT_STR, .value = &out_dir, .arg = "DIR", .help = "adapter (or model) and checkpoints", .flags = OPT_REQUIRED},
    {.name = "resume", .type = OPT_FLAG, .value = &resume, .help = "go on from the last checkpoint in --out", .flags = OPT_NO_KEY},
    {.name = "tokenizer", .type = OPT_STR, .value = &tokenizer_dir, .arg = "DIR", .help = "tokenizer (default: the model's)"},
    {.name = "method", .type = OPT_STR, .value = &method, .choices = "lora|full", .help = "train adapters, or all weights"},
    {.name = "init", .type = OPT_STR, .value = &init, .choices = "pretrained|random", .help = "random: from config.json alone, with --method full"},
    {.name = "adapter", .type = OPT_STR, .value = &adapter_dir, .arg = "DIR", .help = "go on training this adapter"},
    {.name = "rag", .type = OPT_FLAG, .value = &rag, .help = "the prompt shows the retrieved part"},
    {.name = "lora.r", .type = OPT_INT, .value = &lora_r, .arg = "N", .help = "rank", .min = 1, .max = 4096},
    {.name = "lora.alpha", .type = OPT_REAL, .value = &lora_alpha, .arg = "X", .help = "the adapter counts alpha / r", .min = 1e-6, .max = 1e6},
    {.name = "lora.rslora", .type = OPT_FLAG, .value = &rslora, .help = "alpha / sqrt(r) instead"},
    {.name = "lora.target", .type = OPT_LIST, .value = &targets, .arg = "NAME", .help = "q_proj, ... (default: all seven projections)"},
    {.name = "optimizer", .type = OPT_STR, .value = &optimizer, .choices = "adamw|adamw8bit", .help = "adamw8bit: state in 8 bits, as bitsandbytes"},
    {.name = "lr", .type = OPT_REAL, .value = &lr, .arg = "X", .help = "learning rate", .min = 0, .max = 10},
    {.name = "schedule", .type = OPT_STR, .value = &schedule, .choices = "linear|cosine|constant", .help = "of the learning rate"},
    {.name = "warmup-steps", .type = OPT_INT, .value = &warmup_steps, .arg = "N", .help = "steps from 0 to lr", .min = 0, .max = 1e9},
    {.name = "warmup-ratio", .type = OPT_REAL, .value = &warmup_ratio, .arg = "X", .help = "the same as a share of all steps; overrides", .min = 0, .max = 1},
    {.name = "batch-size", .type = OPT_INT, .value = &batch, .arg = "N", .help = "records of a step, with --accumulation", .min = 1, .max = 65536},
    {.name = "accumulation", .type = OPT_INT, .value = &accumulation, .arg = "N", .help = "a step is of batch-size times N records", .min = 1, .max = 65536},
    {.name = "pass-tokens", .type = OPT_INT, .value = &pass_tokens, .arg = "N", .help = "the records of a step are packed, without padding, into passes of up to N tokens (0: batch-size times max-tokens)", .min = 0, .max = 1e9},
    {.name = "epochs", .type = OPT_INT, .value = &epochs, .arg = "N", .help = "passes over the data", .min = 1, .max = 1e6},
    {.name = "max-steps", .type = OPT_INT, .value = &max_steps, .arg = "N", .help = "stop after N steps (0: by epochs); overrides", .min = 0, .max = 1e9},
    {.name = "max-tokens", .type = OPT_INT, .value = &max_tokens, .arg = "N", .help = "context length", .min = 2, .max = 1e7},
    {.name = "overlong", .type = OPT_STR, .value = &overlong, .choices = "drop|truncate", .help = "what becomes of longer records"},
    {.name = "weight-decay", .type = OPT_REAL, .value = &weight_decay, .arg = "X", .help = "AdamW's, of matrices", .min = 0, .max = 10},
    {.name = "beta1", .type = OPT_REAL, .value = &beta1, .arg = "X", .help = "AdamW's", .min = 0, .max = 0.99999},
    {.name = "beta2", .type = OPT_REAL, .value = &beta2, .arg = "X", .help = "AdamW's", .min = 0, .max = 0.9999999},
    {.name = "eps", .type = OPT_REAL, .value = &eps, .arg = "X", .help = "AdamW's", .min = 1e-15, .max = 1},
    {.name = "max-grad-norm", .type = OPT_REAL, .value = &max_grad_norm, .arg = "X", .help = "gradients are clipped to this norm (0: not)", .min = 0, .max = 1e9},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "of order and initialisation"},
    {.name = "save-steps", .type = OPT_INT, .value = &save_steps, .arg = "N", .help = "checkpoint every N steps (0: only at the end)", .min = 0, .max = 1e9},
    {.name = "keep-checkpoints", .type = OPT_INT, .value = &keep_checkpoints, .arg = "N", .help = "how many of the last are kept (0: all)", .min = 0, .max = 1e9, .flags = OPT_NO_KEY},
    {.name = "eval-steps", .type = OPT_INT, .value = &eval_steps, .arg = "N", .help = "loss on val.json every N steps (0: never)", .min = 0, .max = 1e9},
    {.name = "logging-steps", .type = OPT_INT, .value = &logging_steps, .arg = "N", .help = "report every N steps", .min = 1, .max = 1e9, .flags = OPT_NO_KEY},
    {.name = "memory", .type = OPT_STR, .value = &memory, .choices = "auto|low|high", .help = "activations kept for the backward pass: what there is room for; each layer's input alone, half more time; all"},
    {.name = "device", .type = OPT_STR, .value = &device_name, .choices = "auto|cpu|cuda", .help = "where to compute"},
    {.name = "dtype", .type = OPT_STR, .value = &dtype_name, .choices = "auto|float32|bfloat16", .help = "of weights and activations (auto: bfloat16 on CUDA)"},
    {.name = "deterministic", .type = OPT_FLAG, .value = &deterministic, .help = "the same bits on every run (CUDA: slower)"},
    {0},
};

static const struct tool_spec spec = {
    .name = "sft",
    .args = "--model DIR --data DIR --out DIR",
    .summary = "Fine-tunes a Qwen2 or Llama model on pair records; the loss covers only the response.",
    .details = "Writes OUT/adapter_model.safetensors (PEFT's layout) or OUT/model.safetensors at the end, and\n"
               "OUT/checkpoint-STEP/ on the way.  --json prints a line a logged step.\n\n"
               "  sft --config configs/qwen.conf --model models/Qwen2.5-3B --data datasets/work/abc --out runs/qwen\n",
    .options = options,
    .flags = TOOL_KEEP_DONE,
};

struct trainer {
    struct tool *t;
    struct tok *tok;
    struct model *m;
    struct lora_config lora;
    struct adamw *opt;
    struct dataset train, val;
    size_t *order;          /* of the present epoch */
    int64_t order_epoch;
    int64_t step, steps, steps_per_epoch;
    double loss_average;    /* running, to notice spikes */
    uint64_t tokens_seen;
};

/* ---- order: a pure function of seed and epoch, so that a resumed run needs no state ---- */

static uint64_t splitmix(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(struct trainer *tr, int64_t epoch)
{
    if (tr->order_epoch == epoch)
        return;
    uint64_t s = (uint64_t)seed * 0x9e3779b97f4a7c15u + (uint64_t)epoch;
    for (size_t i = 0; i < tr->train.n; i++)
        tr->order[i] = i;
    for (size_t i = tr->train.n; i > 1; i--) {
        size_t j = splitmix(&s) % i, x = tr->order[j];
        tr->order[j] = tr->order[i - 1];
        tr->order[i - 1] = x;
    }
    tr->order_epoch = epoch;
}

/* ---- checkpoints ---- */

static int write_weights(struct trainer *tr, const char *dir)
{
    if (!strcmp(method, "lora"))
        return lora_save(tr->m, &tr->lora, dir, model_dir);
    int rc = mkdir_p(dir);
    return rc < 0 ? rc : model_save(tr->m, dir, TH_BF16);
}

static int copy_file(const char *from_dir, const char *name, const char *to_dir)
{
    char *from = path_join(from_dir, name), *to = path_join(to_dir, name);
    struct file_map f;
    int rc = ERR_OK;
    if (path_exists(from) && (rc = file_map(from, 256 << 20, &f)) == ERR_OK) {
        rc = file_write(to, f.data, f.size, true);
        file_unmap(&f);
    }
    free(from);
    free(to);
    return rc;
}

/* What a folder needs besides its weights to be used: how it was prompted, and for a whole model its
 * configuration and tokenizer. */
static int write_companions(const struct trainer *tr, const char *dir)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"};
    struct buf b = BUF_INIT;
    struct jw j = {.out = &b, .indent = 2};
    jw_object(&j);
    jw_kv_str(&j, "template", rag ? "retrieval" : "plain");
    jw_kv_int(&j, "max_tokens", max_tokens);
    jw_kv_str(&j, "form", tr->train.compact ? "compact" : "named");
    jw_end(&j);
    char *path = path_join(dir, "prompt.json");
    int rc = file_write(path, b.s, b.n, true);
    free(path);
    buf_release(&b);
    if (!strcmp(method, "full") && rc == ERR_OK) {
        rc = copy_file(model_dir, "config.json", dir);
        for (size_t i = 0; i < ARRAY_LEN(names) && rc == ERR_OK; i++)
            rc = copy_file(tokenizer_dir, names[i], dir);
    }
    return rc;
}

static int write_state(struct trainer *tr, const char *dir)
{
    struct buf b = BUF_INIT;
    struct jw j = {.out = &b, .indent = 2};
    char digest[24];
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)tr->train.digest);
    jw_object(&j);
    jw_kv_int(&j, "step", tr->step);
    jw_kv_int(&j, "steps", tr->steps);
    jw_kv_str(&j, "data_digest", digest);
    jw_kv_int(&j, "tokens", (int64_t)tr->tokens_seen);
    jw_kv_real(&j, "loss_average", tr->loss_average);
    jw_end(&j);
    char *path = path_join(dir, "trainer_state.json"), *opt = path_join(dir, "optimizer.safetensors");
    int rc = adamw_save(tr->opt, opt);
    if (rc == ERR_OK)
        rc = file_write(path, b.s, b.n, true);
    free(path);
    free(opt);
    buf_release(&b);
    return rc;
}

static char *checkpoint_dir(int64_t step)
{
    return xasprintf("%s/checkpoint-%lld", out_dir, (long long)step);
}

/* Steps of the complete checkpoints in --out, ascending; the caller frees. */
static int list_checkpoints(int64_t **out, size_t *n)
{
    struct file_list l = {0};
    size_t cap = 0;
    *out = NULL;
    *n = 0;
    static const char *const suffixes[] = {"trainer_state.json", NULL};
    int rc = path_is_dir(out_dir) ? file_list_add(&l, out_dir, suffixes) : ERR_OK;
    for (size_t i = 0; i < l.n; i++) {
        long long step;
        char tail[64];
        if (sscanf(l.v[i].rel, "checkpoint-%lld/%63s", &step, tail) != 2 || strcmp(tail, "trainer_state.json"))
            continue;
        ARRAY_GROW(*out, cap, *n + 1);
        size_t at = (*n)++;
        for (; at > 0 && (*out)[at - 1] > step; at--)
            (*out)[at] = (*out)[at - 1];
        (*out)[at] = step;
    }
    file_list_release(&l);
    return rc;
}

static int save_checkpoint(struct trainer *tr)
{
    char *dir = checkpoint_dir(tr->step), *part = xasprintf("%s/.checkpoint-%lld.part", out_dir, (long long)tr->step);
    int rc = tr->t->db ? rundb_flush(tr->t->db) : ERR_OK; /* what is resumed from has its curve recorded */
    if (rc == ERR_OK)
        rc = remove_tree(part);
    if (rc == ERR_OK)
        rc = write_weights(tr, part);
    if (rc == ERR_OK)
        rc = write_companions(tr, part);
    if (rc == ERR_OK)
        rc = write_state(tr, part);
    if (rc == ERR_OK)
        rc = remove_tree(dir);
    if (rc == ERR_OK && rename(part, dir) < 0)
        rc = err_set(ERR_IO, "%s: cannot be put in place", dir);
    if (rc == ERR_OK)
        rc = tool_artifact(tr->t, dir, "checkpoint");
    free(dir);
    free(part);
    int64_t *steps;
    size_t n;
    if (rc < 0 || !keep_checkpoints || (rc = list_checkpoints(&steps, &n)) < 0)
        return rc;
    for (size_t i = 0; i + (size_t)keep_checkpoints < n && rc == ERR_OK; i++) {
        char *old = checkpoint_dir(steps[i]);
        rc = remove_tree(old);
        free(old);
    }
    free(steps);
    return rc;
}

static int load_checkpoint(struct trainer *tr, int64_t step)
{
    char *dir = checkpoint_dir(step), *path = path_join(dir, "trainer_state.json"), *opt = path_join(dir, "optimizer.safetensors");
    json_t *o = NULL;
    char digest[24];
    int rc = json_read_file(path, 1 << 20, &o);
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)tr->train.digest);
    const char *was = rc == ERR_OK ? json_string_value(json_object_get(o, "data_digest")) : NULL;
    if (rc == ERR_OK && (!was || strcmp(was, digest)))
        rc = err_set(ERR_USAGE, "%s: the training data, tokenizer or prompt changed since this checkpoint; start anew in another --out", dir);
    if (rc == ERR_OK && json_integer_value(json_object_get(o, "steps")) != tr->steps)
        log_warn("the run now has %lld steps, it had %lld: the learning rate follows the new length", (long long)tr->steps,
                 (long long)json_integer_value(json_object_get(o, "steps")));
    if (rc == ERR_OK)
        rc = adamw_load(tr->opt, opt);
    if (rc == ERR_OK) {
        tr->step = step;
        tr->tokens_seen = (uint64_t)json_integer_value(json_object_get(o, "tokens"));
        tr->loss_average = json_number_value(json_object_get(o, "loss_average"));
        log_note("going on after step %lld of %lld", (long long)step, (long long)tr->steps);
        if (tr->t->db)
            rc = rundb_metrics_cut(tr->t->db, step);
    }
    json_decref(o);
    free(dir);
    free(path);
    free(opt);
    return rc;
}

/* ---- steps ---- */

static int evaluate(struct trainer *tr)
{
    double total = 0;
    size_t tokens = 0;
    for (size_t i = 0; i < tr->val.n; i++) {
        double loss;
        size_t n;
        int rc = model_loss(tr->m, &tr->val.v[i], 1, false, 1, &loss, &n);
        if (rc < 0)
            return err_wrap("val.json: %s", tr->val.id[i]);
        total += loss;
        tokens += n;
    }
    if (!tokens)
        return ERR_OK;
    log_note("step %lld: loss on val.json %.4f", (long long)tr->step, total / (double)tokens);
    return tool_metric(tr->t, tr->step, "loss_val", total / (double)tokens);
}

static int report_step(struct trainer *tr, double loss, double rate, double norm, size_t tokens, double seconds)
{
    double epoch = (double)tr->step / (double)tr->steps_per_epoch;
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_int(&j, "step", tr->step);
    jw_kv_real(&j, "epoch", epoch);
    jw_kv_real(&j, "loss", loss);
    jw_kv_real(&j, "lr", rate);
    jw_kv_real(&j, "grad_norm", norm);
    jw_kv_int(&j, "tokens", (int64_t)tr->tokens_seen);
    jw_kv_real(&j, "tokens_per_s", (double)tokens / seconds);
    jw_end(&j);
    tool_json_line(tr->t, b.s);
    buf_release(&b);
    int rc = tool_metric(tr->t, tr->step, "loss", loss);
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "lr", rate);
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "grad_norm", norm);
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "tokens_per_s", (double)tokens / seconds);
    return rc;
}

/* The sequences v of a step, packed into passes; which of them, in `order` of the passes, and the passes' bounds [passes + 1]. */
static size_t make_passes(const struct sequence *v, size_t n, size_t *order, size_t *bound)
{
    size_t *pass = xmalloc((n + 1) * sizeof *pass), at = 0;
    size_t passes = dataset_pack(v, n, (size_t)(pass_tokens ? pass_tokens : batch * max_tokens), pass);
    for (size_t p = 0; p < passes; p++) {
        bound[p] = at;
        for (size_t i = 0; i < n; i++)
            if (pass[i] == p)
                order[at++] = i;
    }
    bound[passes] = at;
    free(pass);
    return passes;
}

/* Queues the passes over n records, whose gradients count 1 / n_cover a token.  Nothing waits for the device. */
static int queue_passes(struct trainer *tr, const struct sequence *v, const size_t *order, const size_t *bound, size_t passes, size_t n_cover)
{
    int rc = ERR_OK;
    for (size_t p = 0; p < passes && rc == ERR_OK; p++) {
        size_t k = bound[p + 1] - bound[p], covered, tokens = 0;
        struct sequence *in = xmalloc(k * sizeof *in);
        for (size_t i = 0; i < k; i++) {
            in[i] = v[order[bound[p] + i]];
            tokens += in[i].n;
        }
        rc = model_loss(tr->m, in, k, true, 1.0 / (double)n_cover, NULL, &covered);
        if (rc == ERR_NOMEM)
            rc = err_wrap("a pass of %zu records, %zu tokens: lower --pass-tokens to %zu or less, or use --memory low", k, tokens, tokens / 2);
        free(in);
    }
    return rc;
}

/* The sum of the passes' losses; an error that names the first records of the one whose loss is no number. */
static int read_losses(struct trainer *tr, const size_t *order, const size_t *bound, size_t passes, size_t from, double *total)
{
    double *loss = xmalloc(passes * sizeof *loss);
    int rc = model_losses(tr->m, loss, passes);
    *total = 0;
    for (size_t p = 0; p < passes && rc == ERR_OK; p++) {
        *total += loss[p];
        if (isfinite(loss[p]))
            continue;
        struct buf b = BUF_INIT;
        for (size_t i = bound[p]; i < bound[p + 1] && i < bound[p] + 8; i++)
            buf_printf(&b, "%s%s", i > bound[p] ? ", " : "", tr->train.id[tr->order[from + order[i]]]);
        rc = err_set(ERR_FORMAT, "step %lld: the loss is not finite among the records %s%s (%zu of them); weights are as before that step",
                     (long long)tr->step + 1, b.s, bound[p + 1] - bound[p] > 8 ? ", ..." : "", bound[p + 1] - bound[p]);
        buf_release(&b);
    }
    free(loss);
    return rc;
}

/* The records of the next step: mean loss over all their covered tokens, as Transformers has it for accumulated batches. */
static int train_step(struct trainer *tr)
{
    int64_t epoch = tr->step / tr->steps_per_epoch, each = batch * accumulation;
    size_t from = (size_t)((tr->step % tr->steps_per_epoch) * each), to = from + (size_t)each, n_cover = 0, n_tokens = 0;
    double total = 0, norm, t0 = now_s();
    shuffle(tr, epoch);
    to = to > tr->train.n ? tr->train.n : to;
    size_t n = to - from;
    struct sequence *v = xmalloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        v[i] = tr->train.v[tr->order[from + i]];
        n_cover += v[i].n - v[i].response;
        n_tokens += v[i].n;
    }
    size_t *order = xmalloc(n * sizeof *order), *bound = xmalloc((n + 1) * sizeof *bound), passes = make_passes(v, n, order, bound);
    int rc = adamw_zero_grad(tr->opt);
    if (rc == ERR_OK)
        rc = queue_passes(tr, v, order, bound, passes, n_cover);
    int64_t warm = warmup_ratio > 0 ? (int64_t)ceil(warmup_ratio * (double)tr->steps) : warmup_steps;
    enum schedule s = !strcmp(schedule, "linear") ? SCHEDULE_LINEAR : !strcmp(schedule, "cosine") ? SCHEDULE_COSINE : SCHEDULE_CONSTANT;
    double rate = lr * schedule_factor(s, tr->step, warm, tr->steps);
    if (rc == ERR_OK)
        rc = adamw_step(tr->opt, rate, max_grad_norm);
    if (rc == ERR_OK)
        rc = read_losses(tr, order, bound, passes, from, &total);
    free(v);
    free(order);
    free(bound);
    if (rc < 0 || (rc = adamw_norm(tr->opt, &norm)) < 0)
        return rc;
    double loss = total / (double)n_cover;
    if (!isfinite(norm))
        return err_set(ERR_FORMAT, "step %lld: the gradient is not finite; lower the learning rate", (long long)tr->step + 1);
    if (tr->step > 20 && loss > 3 * tr->loss_average + 1)
        log_warn("step %lld: loss %.3f after an average of %.3f, among the records from %s on", (long long)tr->step + 1, loss,
                 tr->loss_average, tr->train.id[tr->order[from]]);
    tr->loss_average = tr->step ? 0.95 * tr->loss_average + 0.05 * loss : loss;
    tr->step++;
    tr->tokens_seen += n_tokens;
    double took = now_s() - t0;
    progress_text("loss %.4f, %.0f tokens/s", tr->loss_average, (double)n_tokens / took);
    progress_add(1, 0);
    if (tr->step % logging_steps == 0 || tr->step == tr->steps)
        rc = report_step(tr, loss, rate, norm, n_tokens, took);
    return rc;
}

static int train_all(struct trainer *tr)
{
    int rc = ERR_OK;
    int64_t saved = tr->step;
    progress_start("training", (uint64_t)tr->steps, "steps");
    progress_add((uint64_t)tr->step, 0);
    while (rc == ERR_OK && tr->step < tr->steps && !stop_requested()) {
        rc = train_step(tr);
        if (rc == ERR_OK && eval_steps && (tr->step % eval_steps == 0 || tr->step == tr->steps))
            rc = evaluate(tr);
        if (rc == ERR_OK && save_steps && tr->step % save_steps == 0 && (rc = save_checkpoint(tr)) == ERR_OK)
            saved = tr->step;
    }
    progress_end();
    if (rc == ERR_OK && tr->step > saved)
        rc = save_checkpoint(tr); /* stopped, or at the end */
    if (rc == ERR_OK && tr->step < tr->steps)
        return err_set(ERR_CANCELLED, "stopped by a signal after step %lld of %lld, which is saved (--resume)", (long long)tr->step,
                       (long long)tr->steps);
    if (rc == ERR_OK)
        rc = write_weights(tr, out_dir);
    if (rc == ERR_OK)
        rc = write_companions(tr, out_dir);
    if (rc == ERR_OK)
        rc = tool_artifact(tr->t, out_dir, !strcmp(method, "lora") ? "adapter" : "model");
    return rc;
}

/* ---- setting up ---- */

static int read_split(const char *name, struct tok *tok, struct dataset *d)
{
    char *path = path_join(data_dir, name);
    int rc = dataset_read(path, tok, rag, max_tokens, !strcmp(overlong, "truncate"), d);
    if (rc == ERR_OK) {
        log_note("%s: %zu records, %llu tokens", path, d->n, (unsigned long long)d->n_tokens);
        if (d->n_long)
            log_warn("%s: %zu records of more than %lld tokens %s", path, d->n_long, (long long)max_tokens,
                     !strcmp(overlong, "truncate") ? "were cut" : "were dropped");
        if (d->n_empty)
            log_warn("%s: %zu records without a token of output were dropped", path, d->n_empty);
        if (!d->n)
            rc = err_set(ERR_FORMAT, "%s: no record is left to train on", path);
    }
    free(path);
    return rc;
}

static int choose_targets(struct lora_config *c)
{
    *c = (struct lora_config){.r = lora_r, .alpha = lora_alpha, .rslora = rslora};
    for (int k = 0; k < LORA_TARGETS; k++)
        c->target[k] = !targets.n;
    for (size_t i = 0; i < targets.n; i++) {
        int k = 0;
        while (k < LORA_TARGETS && strcmp(targets.v[i], lora_target_names[k]))
            k++;
        if (k == LORA_TARGETS)
            return err_set(ERR_USAGE, "lora.target '%s': q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj is due", targets.v[i]);
        c->target[k] = true;
    }
    return ERR_OK;
}

static int make_model(struct trainer *tr)
{
    enum th_device device;
    int rc = th_device_open(device_name, &device);
    if (rc < 0)
        return rc;
    enum th_dtype dtype = !strcmp(dtype_name, "float32") || (!strcmp(dtype_name, "auto") && device == TH_CPU) ? TH_F32 : TH_BF16;
    th_set_threads(tr->t->threads);
    th_deterministic(deterministic);
    rc = !strcmp(init, "random") ? model_init(model_dir, dtype, device, (uint64_t)seed, &tr->m) : model_load(model_dir, dtype, device, &tr->m);
    if (rc < 0)
        return rc;
    tr->m->memory = !strcmp(memory, "low") ? MEMORY_LOW : !strcmp(memory, "high") ? MEMORY_HIGH : MEMORY_AUTO;
    if (tok_n_ids(tr->tok) > tr->m->cfg.vocab)
        return err_set(ERR_FORMAT, "%s has %d ids, %s only %lld: tokenizer and model do not fit", tokenizer_dir, (int)tok_n_ids(tr->tok),
                       model_dir, (long long)tr->m->cfg.vocab);
    if (!strcmp(method, "full"))
        rc = model_train_all(tr->m);
    else if (adapter_dir)
        rc = lora_load(tr->m, adapter_dir, true, &tr->lora);
    else if ((rc = choose_targets(&tr->lora)) == ERR_OK)
        rc = lora_attach(tr->m, &tr->lora, (uint64_t)seed);
    if (rc == ERR_OK)
        rc = adamw_new(tr->m, &(struct adamw_config){beta1, beta2, eps, weight_decay, !strcmp(optimizer, "adamw8bit")}, &tr->opt);
    if (rc == ERR_OK)
        log_note("%lld trained parameters, %s on %s", (long long)model_n_trained(tr->m), dtype == TH_F32 ? "float32" : "bfloat16",
                 device == TH_CUDA ? "CUDA" : "the CPU");
    return rc;
}

static int check_arguments(void)
{
    if (!strcmp(init, "random") && strcmp(method, "full"))
        return err_set(ERR_USAGE, "--init random needs --method full: adapters of random weights teach nothing");
    if (adapter_dir && !strcmp(method, "full"))
        return err_set(ERR_USAGE, "--adapter goes with --method lora");
    if (!tokenizer_dir)
        tokenizer_dir = model_dir;
    int64_t *steps;
    size_t n;
    int rc = list_checkpoints(&steps, &n);
    free(steps);
    if (rc == ERR_OK && n && !resume)
        rc = err_set(ERR_USAGE, "%s holds checkpoints: --resume goes on from them, another --out starts anew", out_dir);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct trainer tr = {.t = &t, .order_epoch = -1};
    int64_t *steps = NULL;
    size_t n_checkpoints = 0;
    tool_start(&t, &spec, argc, argv);
    int rc = check_arguments();
    if (rc == ERR_OK)
        rc = tok_load(tokenizer_dir, &tr.tok);
    if (rc == ERR_OK)
        rc = read_split("train.json", tr.tok, &tr.train);
    if (rc == ERR_OK && eval_steps)
        rc = read_split("val.json", tr.tok, &tr.val);
    if (rc == ERR_OK)
        rc = make_model(&tr);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK) {
        tr.order = xmalloc(tr.train.n * sizeof *tr.order);
        tr.steps_per_epoch = ((int64_t)tr.train.n + batch * accumulation - 1) / (batch * accumulation);
        tr.steps = max_steps ? max_steps : epochs * tr.steps_per_epoch;
        rc = list_checkpoints(&steps, &n_checkpoints);
    }
    if (rc == ERR_OK && n_checkpoints)
        rc = load_checkpoint(&tr, steps[n_checkpoints - 1]);
    else if (rc == ERR_OK && t.db)
        rc = rundb_metrics_cut(t.db, 0); /* the curve of an earlier start is not this one's */
    if (rc == ERR_OK)
        rc = train_all(&tr);
    int code = tool_finish(&t, rc);
    free(steps);
    free(tr.order);
    adamw_free(tr.opt);
    dataset_release(&tr.train);
    dataset_release(&tr.val);
    model_free(tr.m);
    tok_free(tr.tok);
    return code;
}
