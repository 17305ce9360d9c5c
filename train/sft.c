/* sft: supervised fine-tuning of a causal language model on pair records: LoRA or all weights. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "lib/curvelog.h"
#include "lib/prompt.h"
#include "lib/random.h"
#include "lib/tool.h"
#include "model/dataset.h"
#include "model/dist.h"
#include "model/optim.h"
#include "shim/kernels.h"

static const char *model_dir, *data_dir, *out_dir, *tokenizer_dir, *adapter_dir;
static const char *method = "lora", *init = "pretrained", *schedule = "linear", *overlong = "drop";
static const char *device_name = "auto", *dtype_name = "auto", *optimizer = "adamw", *memory = "auto", *precision = "bf16";
static const char *final = "last", *on_spike = "warn";
static bool resume, rag = true, rslora, deterministic, train_embeddings, curves = true;
static int64_t lora_r = 16, batch = 2, accumulation = 4, warmup_steps = 1200, epochs = 1, max_steps, pass_tokens, max_tokens = 16384,
               save_steps = 300, keep_checkpoints = 3, logging_steps = 1, eval_steps, seed = 3407, global_batch, peer_timeout = 120;
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
    {.name = "train-embeddings", .type = OPT_FLAG, .value = &train_embeddings, .help = "embedding and head, too (default: with --method full only)"},
    {.name = "optimizer", .type = OPT_STR, .value = &optimizer, .choices = "adamw|adamw8bit", .help = "adamw8bit: state in 8 bits, as bitsandbytes"},
    {.name = "lr", .type = OPT_REAL, .value = &lr, .arg = "X", .help = "learning rate", .min = 0, .max = 10},
    {.name = "schedule", .type = OPT_STR, .value = &schedule, .choices = "linear|cosine|constant", .help = "of the learning rate"},
    {.name = "warmup-steps", .type = OPT_INT, .value = &warmup_steps, .arg = "N", .help = "steps from 0 to lr", .min = 0, .max = 1e9},
    {.name = "warmup-ratio", .type = OPT_REAL, .value = &warmup_ratio, .arg = "X", .help = "the same as a share of all steps; overrides", .min = 0, .max = 1},
    {.name = "batch-size", .type = OPT_INT, .value = &batch, .arg = "N", .help = "records of a step, with --accumulation and the number of processes", .min = 1, .max = 65536},
    {.name = "accumulation", .type = OPT_INT, .value = &accumulation, .arg = "N", .help = "a step is of batch-size times N records a process", .min = 1, .max = 65536},
    {.name = "global-batch", .type = OPT_INT, .value = &global_batch, .arg = "N", .help = "records of a step over all processes; sets --accumulation", .min = 0, .max = 1e9},
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
    {.name = "keep-checkpoints", .type = OPT_INT, .value = &keep_checkpoints, .arg = "N", .help = "how many of the last are kept (0: all), and the best", .min = 0, .max = 1e9, .flags = OPT_NO_KEY},
    {.name = "final", .type = OPT_STR, .value = &final, .choices = "last|best", .help = "what --out holds at the end: the last step, or that of the least loss on val.json"},
    {.name = "eval-steps", .type = OPT_INT, .value = &eval_steps, .arg = "N", .help = "loss on val.json every N steps (0: never)", .min = 0, .max = 1e9},
    {.name = "logging-steps", .type = OPT_INT, .value = &logging_steps, .arg = "N", .help = "report every N steps", .min = 1, .max = 1e9, .flags = OPT_NO_KEY},
    {.name = "curves", .type = OPT_FLAG, .value = &curves, .help = "write OUT/metrics.csv and OUT/tensorboard/", .flags = OPT_NO_KEY},
    {.name = "on-spike", .type = OPT_STR, .value = &on_spike, .choices = "warn|skip|stop", .help = "a step whose loss is over three times the average plus one: say which record, make no step, end"},
    {.name = "precision", .type = OPT_STR, .value = &precision, .choices = "bf16|fp8", .help = "fp8: frozen weights, but for those of the first two layers and the last, and what they are multiplied with in 8 bits, a scale a row: 1.2 times the speed, nearly the same loss (for CUDA; a CPU imitates it, slowly)"},
    {.name = "memory", .type = OPT_STR, .value = &memory, .choices = "auto|low|high", .help = "activations kept for the backward pass: what there is room for; each layer's input alone, half more time; all"},
    {.name = "device", .type = OPT_STR, .value = &device_name, .choices = "auto|cpu|cuda", .help = "where to compute"},
    {.name = "dtype", .type = OPT_STR, .value = &dtype_name, .choices = "auto|float32|bfloat16", .help = "of weights and activations (auto: bfloat16 on CUDA)"},
    {.name = "deterministic", .type = OPT_FLAG, .value = &deterministic, .help = "the same bits on every run (CUDA: slower)"},
    {.name = "peer-timeout", .type = OPT_INT, .value = &peer_timeout, .arg = "S", .help = "several processes: how long to wait for one that does not come, or is silent", .min = 1, .max = 86400, .flags = OPT_NO_KEY},
    {0},
};

static const struct tool_spec spec = {
    .name = "sft",
    .args = "--model DIR --data DIR --out DIR",
    .summary = "Fine-tunes a Qwen2 or Llama model on pair records; the loss covers only the response.",
    .details = "Writes OUT/adapter_model.safetensors (PEFT's layout) or OUT/model.safetensors at the end, and\n"
               "OUT/checkpoint-STEP/ on the way.  --json prints a line a logged step.  SIGTERM and SIGINT let the step\n"
               "end, save it and exit with 3; --resume goes on there, with the bits of a run that was not stopped.\n\n"
               "Started by torchrun, srun or mpirun (or scripts/launch.sh) as several processes, each takes a GPU and its share\n"
               "of every step; process 0 writes.  --resume may be of another number of processes with the same --global-batch.\n\n"
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
    int64_t step, steps, steps_per_epoch, each; /* each: records of a step, over all processes */
    double loss_average;    /* running, to notice spikes */
    uint64_t tokens_seen;
    double best_loss;       /* least loss on val.json, NAN: none yet, ... */
    int64_t best_step;      /* ... and the checkpoint that had it */
    bool owed;              /* a signal came while that loss was measured: it is to be, before the next step */
    struct curvelog *log;   /* process 0's */
    /* several processes */
    struct dist_env env;
    struct dist *d;         /* NULL: alone */
    int64_t *layer_from;    /* [layers]: where a layer's gradients begin */
    int64_t reduced_from;   /* gradients from here on are on their way */
    int reduce_rc;
};

/* ---- order: a pure function of seed and epoch, so that a resumed run needs no state ---- */

static void shuffle(struct trainer *tr, int64_t epoch)
{
    if (tr->order_epoch == epoch)
        return;
    uint64_t s = (uint64_t)seed * 0x9e3779b97f4a7c15u + (uint64_t)epoch;
    for (size_t i = 0; i < tr->train.n; i++)
        tr->order[i] = i;
    for (size_t i = tr->train.n; i > 1; i--) {
        size_t j = random_u64(&s) % i, x = tr->order[j];
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
    if (!strcmp(method, "lora")) {
        char base[24];
        snprintf(base, sizeof base, "%016llx", (unsigned long long)model_digest(tr->m));
        jw_kv_str(&j, "base", base);
    }
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

/* Of what a checkpoint was made with: what cannot be otherwise when it is gone on from, and that whose change is told. */
static const char *const binding[] = {"method", "lora.r", "lora.alpha", "lora.rslora", "lora.target", "train-embeddings"};
static const char *const told[] = {"seed",  "lr",    "schedule", "warmup-steps",  "warmup-ratio", "weight-decay", "beta1",
                                   "beta2", "eps",   "max-grad-norm", "precision", "dtype"};

/* A setting's value; the caller frees. */
static char *setting(const char *name)
{
    struct buf b = BUF_INIT;
    const struct opt *o = options;
    while (strcmp(o->name, name))
        o++;
    opt_value(o, &b);
    return buf_detach(&b);
}

static void write_settings(struct jw *j, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char *value = setting(names[i]);
        jw_kv_str(j, names[i], value);
        free(value);
    }
}

/* "lr was 5e-05, now it is 1e-05; ..." for those that a checkpoint's settings have otherwise. */
static void changed_settings(const json_t *was, const char *const *names, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        const char *old = json_string_value(json_object_get(was, names[i]));
        char *now = setting(names[i]);
        if (old && strcmp(old, now))
            buf_printf(out, "%s%s was %s, now it is %s", out->n ? "; " : "", names[i], *old ? old : "all", *now ? now : "all");
        free(now);
    }
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
    jw_kv_int(&j, "global_batch", tr->each);
    jw_kv_int(&j, "tokens", (int64_t)tr->tokens_seen);
    jw_kv_real(&j, "loss_average", tr->loss_average);
    jw_kv_int(&j, "best_step", tr->best_step);
    jw_kv_real(&j, "best_loss", tr->best_loss);
    if (tr->owed)
        jw_kv_bool(&j, "evaluation_due", true);
    jw_key(&j, "settings");
    jw_object(&j);
    write_settings(&j, binding, ARRAY_LEN(binding));
    write_settings(&j, told, ARRAY_LEN(told));
    jw_end(&j);
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

/* A checkpoint's folder is whole under its name, until it is taken out of its name: killed at any moment, what stays is
 * a dot-folder, which the next start clears. */
static int drop_checkpoint(int64_t step)
{
    char *dir = checkpoint_dir(step), *old = xasprintf("%s/.checkpoint-%lld.old", out_dir, (long long)step);
    int rc = remove_tree(old);
    if (rc == ERR_OK && rename(dir, old) < 0 && errno != ENOENT)
        rc = err_set(ERR_IO, "%s: %s", dir, strerror(errno));
    if (rc == ERR_OK)
        rc = remove_tree(old);
    free(dir);
    free(old);
    return rc;
}

/* Makes --out this process's, as long as it runs. */
static int take_folder(void)
{
    int rc = mkdir_p(out_dir), fd = rc == ERR_OK ? open(out_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (rc == ERR_OK && (fd < 0 || access(out_dir, W_OK) < 0))
        return err_set(ERR_IO, "%s: %s", out_dir, strerror(errno));
    if (rc == ERR_OK && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
        return err_set(ERR_USAGE, "--out %s: another sft is at work there", out_dir);
    return rc;
}

static int clear_leftovers(void)
{
    DIR *dir = opendir(out_dir);
    int rc = ERR_OK;
    for (struct dirent *e; dir && rc == ERR_OK && (e = readdir(dir));)
        if (!strncmp(e->d_name, ".checkpoint-", 12)) {
            char *path = path_join(out_dir, e->d_name);
            rc = remove_tree(path);
            free(path);
        }
    if (dir)
        closedir(dir);
    return rc;
}

/* The oldest go but for the last ones and the best. */
static int prune(const struct trainer *tr)
{
    int64_t *steps;
    size_t n;
    int rc = keep_checkpoints ? list_checkpoints(&steps, &n) : ERR_OK;
    if (rc < 0 || !keep_checkpoints)
        return rc;
    for (size_t i = 0; i + (size_t)keep_checkpoints < n && rc == ERR_OK; i++)
        if (steps[i] != tr->best_step)
            rc = drop_checkpoint(steps[i]);
    free(steps);
    return rc;
}

static int save_checkpoint(struct trainer *tr)
{
    if (tr->env.rank)
        return ERR_OK;
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
        rc = drop_checkpoint(tr->step);
    if (rc == ERR_OK && rename(part, dir) < 0)
        rc = err_set(ERR_IO, "%s cannot be put in place: %s", dir, strerror(errno));
    if (rc == ERR_OK)
        rc = tool_artifact(tr->t, dir, "checkpoint");
    free(dir);
    free(part);
    return rc < 0 ? rc : prune(tr);
}

static int load_checkpoint(struct trainer *tr, int64_t step)
{
    char *dir = checkpoint_dir(step), *path = path_join(dir, "trainer_state.json"), *opt = path_join(dir, "optimizer.safetensors");
    json_t *o = NULL;
    char digest[24];
    struct buf other = BUF_INIT, note = BUF_INIT;
    int rc = json_read_file(path, 1 << 20, &o);
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)tr->train.digest);
    changed_settings(json_object_get(o, "settings"), binding, ARRAY_LEN(binding), &other);
    changed_settings(json_object_get(o, "settings"), told, ARRAY_LEN(told), &note);
    const char *was = rc == ERR_OK ? json_string_value(json_object_get(o, "data_digest")) : NULL;
    int64_t each = json_integer_value(json_object_get(o, "global_batch"));
    if (rc == ERR_OK && (!was || strcmp(was, digest)))
        rc = err_set(ERR_USAGE, "%s: the training data, tokenizer or prompt changed since this checkpoint; start anew in another --out", dir);
    if (rc == ERR_OK && each && each != tr->each)
        rc = err_set(ERR_USAGE, "%s: was made with %lld records a step, now they are %lld (%d processes x batch-size %lld x accumulation %lld): "
                     "--global-batch %lld goes on", dir, (long long)each, (long long)tr->each, tr->env.size, (long long)batch,
                     (long long)accumulation, (long long)each);
    if (rc == ERR_OK && other.n)
        rc = err_set(ERR_USAGE, "%s: %s; start anew in another --out", dir, other.s);
    if (rc == ERR_OK && (rc = lora_check_base(tr->m, dir)) < 0)
        rc = err_wrap("%s", dir);
    if (rc == ERR_OK && note.n && !tr->env.rank)
        log_warn("going on with other settings than %s has: %s", dir, note.s);
    if (rc == ERR_OK && json_integer_value(json_object_get(o, "steps")) != tr->steps && !tr->env.rank)
        log_warn("the run now has %lld steps, it had %lld: the learning rate follows the new length", (long long)tr->steps,
                 (long long)json_integer_value(json_object_get(o, "steps")));
    if (rc == ERR_OK)
        rc = adamw_load(tr->opt, opt);
    if (rc == ERR_OK) {
        const json_t *best = json_object_get(o, "best_loss");
        tr->step = step;
        tr->tokens_seen = (uint64_t)json_integer_value(json_object_get(o, "tokens"));
        tr->loss_average = json_number_value(json_object_get(o, "loss_average"));
        tr->best_step = json_integer_value(json_object_get(o, "best_step"));
        tr->best_loss = json_is_number(best) ? json_number_value(best) : NAN;
        tr->owed = eval_steps && json_is_true(json_object_get(o, "evaluation_due"));
        log_note("going on after step %lld of %lld", (long long)step, (long long)tr->steps);
        if (tr->t->db)
            rc = rundb_metrics_cut(tr->t->db, step);
    }
    buf_release(&other);
    buf_release(&note);
    json_decref(o);
    free(dir);
    free(path);
    free(opt);
    return rc;
}

/* ---- several processes ---- */

/* The share of a step's n records (pos: their places in the order) that falls to each process: the longest first, each
 * to the one that has least to do.  Returns how many of this process's are in pos, in their order. */
static size_t my_share(const struct trainer *tr, size_t *pos, size_t n)
{
    int size = tr->env.size;
    if (size == 1)
        return n;
    double *load = xcalloc((size_t)size, sizeof *load);
    int *of = xmalloc(n * sizeof *of);
    for (size_t i = 0; i < n; i++)
        of[i] = -1;
    for (size_t k = 0; k < n; k++) {
        size_t longest = n;
        int least = 0;
        for (size_t i = 0; i < n; i++)
            if (of[i] < 0 && (longest == n || tr->train.v[tr->order[pos[i]]].n > tr->train.v[tr->order[pos[longest]]].n))
                longest = i;
        for (int r = 1; r < size; r++)
            least = load[r] < load[least] ? r : least;
        double tokens = (double)tr->train.v[tr->order[pos[longest]]].n;
        of[longest] = least;
        load[least] += tokens * (1 + tokens / 24000); /* attention's share, about, of a 3B model */
    }
    size_t mine = 0;
    for (size_t i = 0; i < n; i++)
        if (of[i] == tr->env.rank)
            pos[mine++] = pos[i];
    free(load);
    free(of);
    return mine;
}

enum { BUCKET = 4 << 20 }; /* elements that are worth a reduction of their own */

/* The backward pass has a layer's gradients, and all that lie behind them: sent on their way in buckets. */
static void layer_done(void *ctx, int64_t layer)
{
    struct trainer *tr = ctx;
    int64_t from = tr->layer_from[layer];
    if (tr->reduce_rc < 0 || from < 0 || (tr->reduced_from - from < BUCKET && layer > 0))
        return;
    tr->reduce_rc = dist_reduce(tr->d, tr->opt->grad, from, tr->reduced_from - from);
    tr->reduced_from = from;
}

static int finish_reducing(struct trainer *tr)
{
    tr->m->layer_done = NULL;
    int rc = tr->reduce_rc < 0 ? tr->reduce_rc : dist_reduce(tr->d, tr->opt->grad, 0, tr->reduced_from);
    return rc < 0 ? rc : dist_wait(tr->d);
}

static void find_layers(struct trainer *tr)
{
    tr->layer_from = xmalloc((size_t)tr->m->cfg.n_layers * sizeof *tr->layer_from);
    for (int64_t i = 0; i < tr->m->cfg.n_layers; i++)
        tr->layer_from[i] = -1;
    for (size_t i = tr->opt->n; i-- > 0;) {
        const char *at = strstr(tr->opt->params[i]->name, "model.layers.");
        long long layer;
        if (at && sscanf(at, "model.layers.%lld.", &layer) == 1 && layer < tr->m->cfg.n_layers)
            tr->layer_from[layer] = tr->opt->offset[i];
    }
}

/* ---- steps ---- */

/* Floating-point operations that a step's mathematics asks for: 2 a weight and token forward, as much for the gradient of the
 * input, as much for that of a trained weight; attention forward and 2.5 times that backward. */
static double operations(const struct trainer *tr, const size_t *pos, size_t n)
{
    const struct model_config *c = &tr->m->cfg;
    double q = (double)(c->n_heads * c->head_dim), kv = (double)(c->n_kv_heads * c->head_dim), d = (double)c->d_model;
    double layer = d * (2 * q + 2 * kv) + 3 * d * (double)c->d_ff, head = d * (double)c->vocab, sum = 0;
    bool full = !strcmp(method, "full");
    for (size_t i = 0; i < n; i++) {
        const struct sequence *v = &tr->train.v[tr->order[pos[i]]];
        double tokens = (double)v->n, covered = (double)(v->n - v->response);
        sum += (full ? 6 : 4) * layer * (double)c->n_layers * tokens + (tr->m->head->trained ? 6 : 4) * head * covered;
        sum += 3.5 * 2 * q * tokens * tokens * (double)c->n_layers;
    }
    return sum;
}

/* The loss on val.json; NAN, and it stays owed, if a signal does not let it end.  Processes meet every few records, so that a signal to one of them, or
 * the end of one, is known to all. */
static int evaluate(struct trainer *tr, double *out)
{
    enum { ROUND = 8 };
    const size_t size = (size_t)tr->env.size;
    double sum[2] = {0, 0}; /* of losses, of tokens */
    int rc = ERR_OK;
    tr->owed = false;
    for (size_t from = 0; from < tr->val.n && !tr->owed; from += ROUND * size) {
        double part[3] = {0, 0, 0}; /* ..., processes that were told to stop */
        for (size_t i = from + (size_t)tr->env.rank; i < tr->val.n && i < from + ROUND * size && !stop_requested(); i += size) {
            double loss;
            size_t n;
            if (model_loss(tr->m, &tr->val.v[i], 1, false, 1, &loss, &n) < 0)
                return err_wrap("val.json: %s", tr->val.id[i]);
            if (!isfinite(loss))
                return err_set(ERR_FORMAT, "step %lld: the loss of record %s of val.json is not finite", (long long)tr->step, tr->val.id[i]);
            part[0] += loss;
            part[1] += (double)n;
        }
        part[2] = stop_requested();
        if ((rc = dist_sum(tr->d, part, 3)) < 0)
            return rc;
        sum[0] += part[0];
        sum[1] += part[1];
        tr->owed = part[2] > 0;
    }
    *out = tr->owed ? NAN : sum[0] / sum[1];
    if (tr->owed)
        return rc;
    bool best = !(*out >= tr->best_loss);
    log_note("step %lld: loss on val.json %.4f%s", (long long)tr->step, *out, best && isfinite(tr->best_loss) ? ", the least so far" : "");
    if (best) {
        tr->best_loss = *out;
        tr->best_step = tr->step;
    }
    return tool_metric(tr->t, tr->step, "loss_val", *out);
}

/* What a step was like. */
struct outcome {
    double loss, lr, grad_norm, loss_val, seconds, mfu;
    size_t tokens;
    bool skipped;
};
static const char *const columns[] = {"epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "loss_val"};

static int report_step(struct trainer *tr, const struct outcome *o)
{
    const double epoch = (double)tr->step / (double)tr->steps_per_epoch, speed = (double)o->tokens / o->seconds;
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_int(&j, "step", tr->step);
    jw_kv_real(&j, "epoch", epoch);
    jw_kv_real(&j, "loss", o->loss);
    jw_kv_real(&j, "lr", o->lr);
    jw_kv_real(&j, "grad_norm", o->grad_norm);
    jw_kv_int(&j, "tokens", (int64_t)tr->tokens_seen);
    jw_kv_real(&j, "tokens_per_s", speed);
    if (o->mfu > 0)
        jw_kv_real(&j, "mfu", o->mfu);
    if (isfinite(o->loss_val))
        jw_kv_real(&j, "loss_val", o->loss_val);
    if (o->skipped)
        jw_kv_bool(&j, "skipped", true);
    jw_end(&j);
    tool_json_line(tr->t, b.s);
    buf_release(&b);
    const double values[] = {epoch, o->loss, o->lr, o->grad_norm, (double)tr->tokens_seen, speed, o->loss_val};
    int rc = tr->log ? curvelog_row(tr->log, tr->step, values) : ERR_OK;
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "loss", o->loss);
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "lr", o->lr);
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "grad_norm", o->grad_norm);
    if (rc == ERR_OK)
        rc = tool_metric(tr->t, tr->step, "tokens_per_s", speed);
    return rc;
}

static void show_progress(const struct trainer *tr, const struct outcome *o)
{
    size_t used, peak, left;
    char mfu[32] = "", mem[48] = "", bytes[32];
    th_memory(tr->m->device, &used, &peak, &left);
    if (o->mfu > 0)
        snprintf(mfu, sizeof mfu, ", MFU %.0f %%", 100 * o->mfu);
    if (peak)
        snprintf(mem, sizeof mem, ", %s of memory", human_bytes(bytes, (double)peak));
    progress_text("loss %.4f, %.0f tokens/s%s%s", tr->loss_average, (double)o->tokens / o->seconds, mfu, mem);
    progress_add(1, 0);
}

/* ---- what went wrong, and where ---- */

/* The records, of those at pos, whose own loss (or gradient) is no number; and the one of the greatest loss a token. */
struct culprit {
    double loss;
    char id[160];  /* of that one */
    char bad[160]; /* "a, b, ..." */
};

static int find_culprits(struct trainer *tr, const size_t *pos, size_t n, bool gradients, struct culprit *out)
{
    struct buf b = BUF_INIT;
    int rc = ERR_OK;
    *out = (struct culprit){.loss = -1};
    for (size_t i = 0; i < n && rc == ERR_OK; i++) {
        size_t r = tr->order[pos[i]], tokens;
        double loss, norm = 0;
        if (gradients)
            rc = adamw_zero_grad(tr->opt);
        if (rc == ERR_OK)
            rc = model_loss(tr->m, &tr->train.v[r], 1, gradients, 1, &loss, &tokens);
        if (rc == ERR_OK && gradients) {
            size_t scope = th_scope_begin();
            norm = th_item(th_norm(tr->opt->grad));
            th_scope_end(scope);
        }
        if (rc == ERR_OK && !(isfinite(loss) && isfinite(norm)) && b.n + strlen(tr->train.id[r]) < sizeof out->bad - 8)
            buf_printf(&b, "%s%s", b.n ? ", " : "", tr->train.id[r]);
        if (rc == ERR_OK && loss / (double)tokens > out->loss) {
            out->loss = loss / (double)tokens;
            snprintf(out->id, sizeof out->id, "%s", tr->train.id[r]);
        }
    }
    snprintf(out->bad, sizeof out->bad, "%s", b.s);
    buf_release(&b);
    return rc;
}

/* A pass of this process had a loss that is no number: which records alone have. */
static int not_finite_loss(struct trainer *tr, const size_t *pos, size_t n)
{
    struct culprit c;
    int rc = find_culprits(tr, pos, n, false, &c);
    if (rc < 0)
        return rc;
    if (*c.bad)
        return err_set(ERR_FORMAT, "step %lld: the loss is not finite for record %s of train.json; no step was made of it", (long long)tr->step + 1, c.bad);
    return err_set(ERR_FORMAT, "step %lld: the loss is not finite for %zu records together, from %s on, though each by itself has one; "
                   "no step was made of them", (long long)tr->step + 1, n, tr->train.id[tr->order[pos[0]]]);
}

/* All processes see that the gradients' norm is no number, and ask their own records. */
static int not_finite_gradient(struct trainer *tr, const size_t *pos, size_t n)
{
    struct culprit mine, *all = xcalloc((size_t)tr->env.size, sizeof *all);
    struct buf b = BUF_INIT;
    int rc = find_culprits(tr, pos, n, true, &mine);
    if (rc == ERR_OK)
        rc = dist_gather(tr->d, &mine, sizeof mine, all);
    for (int r = 0; r < tr->env.size && rc == ERR_OK; r++)
        if (*all[r].bad)
            buf_printf(&b, "%s%s", b.n ? ", " : "", all[r].bad);
    if (rc == ERR_OK)
        rc = err_set(ERR_FORMAT, "step %lld: the gradient is not finite%s%s; no step was made: lower the learning rate, or leave the record out",
                     (long long)tr->step + 1, b.n ? " for record " : "", b.s);
    buf_release(&b);
    free(all);
    return rc;
}

/* A loss far above the running average: which record it is of, and what --on-spike says. */
static int spike(struct trainer *tr, const size_t *pos, size_t n, double loss, bool *skip)
{
    struct culprit mine, *all = xcalloc((size_t)tr->env.size, sizeof *all);
    int rc = find_culprits(tr, pos, n, false, &mine), worst = 0;
    if (rc == ERR_OK)
        rc = dist_gather(tr->d, &mine, sizeof mine, all);
    for (int r = 1; r < tr->env.size && rc == ERR_OK; r++)
        worst = all[r].loss > all[worst].loss ? r : worst;
    char text[512];
    snprintf(text, sizeof text, "step %lld: loss %.3f after an average of %.3f; most of it is record %s, with %.3f", (long long)tr->step + 1, loss,
             tr->loss_average, all[worst].id, all[worst].loss);
    *skip = !strcmp(on_spike, "skip");
    if (rc == ERR_OK && !strcmp(on_spike, "stop"))
        rc = err_set(ERR_FORMAT, "%s (--on-spike stop)", text);
    else if (rc == ERR_OK && !tr->env.rank)
        log_warn("%s%s", text, *skip ? "; no step is made of it" : "");
    free(all);
    return rc;
}

/* The text of an ERR_NOMEM becomes one that says what to lower, and by how much. */
static int out_of_memory(const struct trainer *tr, size_t records, size_t tokens, size_t longest)
{
    size_t used, peak, left;
    char beside[64] = "", bytes[2][32];
    th_memory(tr->m->device, &used, &peak, &left);
    if (peak)
        snprintf(beside, sizeof beside, " beside %s of weights and state (%s at the highest)", human_bytes(bytes[0], (double)used),
                 human_bytes(bytes[1], (double)peak));
    if (records > 1)
        return err_wrap("a pass of %zu records, %zu tokens, finds no room%s: --pass-tokens %zu halves it (the step stays the same)%s", records, tokens, beside,
                        tokens / 2 > longest ? tokens / 2 : longest, strcmp(memory, "low") ? ", or --memory low" : "");
    if (strcmp(memory, "low"))
        return err_wrap("a record of %zu tokens finds no room%s: --memory low keeps least, --max-tokens %zu halves it", tokens, beside, tokens / 2);
    return err_wrap("a record of %zu tokens finds no room%s: lower --max-tokens to %zu%s", tokens, beside, tokens / 2,
                    strcmp(optimizer, "adamw8bit") ? ", or try --optimizer adamw8bit" : "");
}

/* ---- one step ---- */

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

/* Queues the passes over this process's records, whose gradients count 1 / n_cover a token; during the last one the sums over
 * all processes begin.  Nothing waits for the device. */
static int queue_passes(struct trainer *tr, const struct sequence *v, const size_t *order, const size_t *bound, size_t passes, size_t n_cover)
{
    int rc = ERR_OK;
    for (size_t p = 0; p < passes && rc == ERR_OK; p++) {
        size_t k = bound[p + 1] - bound[p], covered, tokens = 0, longest = 0;
        struct sequence *in = xmalloc(k * sizeof *in);
        for (size_t i = 0; i < k; i++) {
            in[i] = v[order[bound[p] + i]];
            tokens += in[i].n;
            longest = in[i].n > longest ? in[i].n : longest;
        }
        tr->m->layer_done = tr->d && p + 1 == passes ? layer_done : NULL;
        rc = model_loss(tr->m, in, k, true, 1.0 / (double)n_cover, NULL, &covered);
        if (rc == ERR_NOMEM)
            rc = out_of_memory(tr, k, tokens, longest);
        free(in);
    }
    return rc < 0 ? rc : finish_reducing(tr);
}

/* The sum of the passes' losses; an error that names the records of one whose loss is no number. */
static int read_losses(struct trainer *tr, const size_t *pos, const size_t *order, const size_t *bound, size_t passes, double *total)
{
    double *loss = xmalloc((passes + 1) * sizeof *loss);
    int rc = passes ? model_losses(tr->m, loss, passes) : ERR_OK;
    *total = 0;
    for (size_t p = 0; p < passes && rc == ERR_OK; p++) {
        *total += loss[p];
        if (isfinite(loss[p]))
            continue;
        size_t n = bound[p + 1] - bound[p], *of = xmalloc(n * sizeof *of);
        for (size_t i = 0; i < n; i++)
            of[i] = pos[order[bound[p] + i]];
        rc = not_finite_loss(tr, of, n);
        free(of);
    }
    free(loss);
    return rc;
}

static double rate_of(const struct trainer *tr)
{
    int64_t warm = warmup_ratio > 0 ? (int64_t)ceil(warmup_ratio * (double)tr->steps) : warmup_steps;
    enum schedule s = !strcmp(schedule, "linear") ? SCHEDULE_LINEAR : !strcmp(schedule, "cosine") ? SCHEDULE_COSINE : SCHEDULE_CONSTANT;
    return lr * schedule_factor(s, tr->step, warm, tr->steps);
}

/* The records of the next step: mean loss over all their covered tokens, as Transformers has it for accumulated batches.
 * *stop: a process was told to end. */
static int train_step(struct trainer *tr, struct outcome *o, bool *stop)
{
    size_t from = (size_t)((tr->step % tr->steps_per_epoch) * tr->each), to = from + (size_t)tr->each, n_cover = 0;
    double total = 0, t0 = now_s(), peak = tr->m->device == TH_CUDA ? kernel_device_peak() : 0;
    shuffle(tr, tr->step / tr->steps_per_epoch);
    to = to > tr->train.n ? tr->train.n : to;
    size_t n = to - from, *pos = xmalloc(n * sizeof *pos);
    *o = (struct outcome){.loss_val = NAN, .lr = rate_of(tr)};
    for (size_t i = 0; i < n; i++) {
        const struct sequence *v = &tr->train.v[tr->order[from + i]];
        pos[i] = from + i;
        n_cover += v->n - v->response;
        o->tokens += v->n;
    }
    double work = operations(tr, pos, n);
    n = my_share(tr, pos, n);
    struct sequence *v = xmalloc((n + 1) * sizeof *v);
    size_t *order = xmalloc((n + 1) * sizeof *order), *bound = xmalloc((n + 1) * sizeof *bound);
    for (size_t i = 0; i < n; i++)
        v[i] = tr->train.v[tr->order[pos[i]]];
    size_t passes = make_passes(v, n, order, bound);
    tr->reduced_from = tr->opt->offset[tr->opt->n];
    tr->reduce_rc = ERR_OK;
    int rc = adamw_zero_grad(tr->opt);
    if (rc == ERR_OK)
        rc = queue_passes(tr, v, order, bound, passes, n_cover);
    if (rc == ERR_OK)
        rc = read_losses(tr, pos, order, bound, passes, &total);
    double sum[2] = {total, stop_requested()};
    if (rc == ERR_OK)
        rc = dist_sum(tr->d, sum, 2);
    o->loss = sum[0] / (double)n_cover;
    *stop = sum[1] > 0;
    if (rc == ERR_OK && tr->step > 20 && o->loss > 3 * tr->loss_average + 1)
        rc = spike(tr, pos, n, o->loss, &o->skipped);
    if (rc == ERR_OK && !o->skipped) {
        rc = adamw_step(tr->opt, o->lr, max_grad_norm);
        if (rc == ERR_OK)
            rc = adamw_norm(tr->opt, &o->grad_norm);
        if (rc == ERR_OK && !isfinite(o->grad_norm))
            rc = not_finite_gradient(tr, pos, n);
    }
    free(v);
    free(order);
    free(bound);
    free(pos);
    if (rc < 0)
        return rc;
    if (!o->skipped)
        tr->loss_average = tr->step ? 0.95 * tr->loss_average + 0.05 * o->loss : o->loss;
    tr->step++;
    tr->tokens_seen += o->tokens;
    o->seconds = now_s() - t0;
    o->mfu = peak > 0 ? work / o->seconds / peak / tr->env.size : 0;
    return rc;
}

/* The weights of the checkpoint with the least loss, where --final best asks for them. */
static int choose_final(struct trainer *tr)
{
    if (strcmp(final, "best") || !tr->best_step || tr->best_step == tr->step)
        return ERR_OK;
    char *dir = checkpoint_dir(tr->best_step), *opt = path_join(dir, "optimizer.safetensors");
    int rc = adamw_load(tr->opt, opt); /* it holds the weights in float32 */
    if (rc == ERR_OK)
        log_note("%s has the least loss on val.json, %.4f: its weights are the result", dir, tr->best_loss);
    free(dir);
    free(opt);
    return rc;
}

static int train_all(struct trainer *tr)
{
    int rc = ERR_OK;
    int64_t saved = tr->step;
    bool stop = false;
    progress_start("training", (uint64_t)tr->steps, "steps");
    progress_earlier((uint64_t)tr->step);
    if (tr->owed) {
        double loss_val;
        rc = evaluate(tr, &loss_val);
        if (rc == ERR_OK && !tr->owed)
            rc = save_checkpoint(tr);
    }
    while (rc == ERR_OK && tr->step < tr->steps && !stop && !tr->owed) {
        struct outcome o;
        rc = train_step(tr, &o, &stop);
        if (rc < 0)
            break;
        bool last = tr->step == tr->steps, evaluated = eval_steps && (tr->step % eval_steps == 0 || last);
        show_progress(tr, &o);
        if (evaluated)
            rc = evaluate(tr, &o.loss_val);
        if (rc == ERR_OK && !tr->env.rank && (tr->step % logging_steps == 0 || last || evaluated))
            rc = report_step(tr, &o);
        if (rc == ERR_OK && ((save_steps && tr->step % save_steps == 0) || (evaluated && tr->best_step == tr->step)) &&
            (rc = save_checkpoint(tr)) == ERR_OK)
            saved = tr->step;
    }
    progress_end();
    if (rc == ERR_OK && tr->step > saved)
        rc = save_checkpoint(tr); /* stopped, or at the end */
    if (rc == ERR_OK && (tr->step < tr->steps || tr->owed))
        return err_set(ERR_CANCELLED, "stopped by a signal after step %lld of %lld, which is saved (--resume)", (long long)tr->step,
                       (long long)tr->steps);
    if (rc < 0 || tr->env.rank)
        return rc;
    rc = choose_final(tr);
    if (rc == ERR_OK)
        rc = write_weights(tr, out_dir);
    if (rc == ERR_OK)
        rc = write_companions(tr, out_dir);
    if (rc == ERR_OK)
        rc = tool_artifact(tr->t, out_dir, !strcmp(method, "lora") ? "adapter" : "model");
    return rc;
}

/* ---- setting up ---- */

static int read_split(const struct trainer *tr, const char *name, struct dataset *d)
{
    char *path = path_join(data_dir, name);
    int rc = dataset_read(path, tr->tok, rag, max_tokens, !strcmp(overlong, "truncate"), d);
    if (rc == ERR_OK) {
        log_note("%s: %zu records, %llu tokens", path, d->n, (unsigned long long)d->n_tokens);
        if (d->n_long && !dist_rank(tr->d))
            log_warn("%s: %zu records of more than %lld tokens %s", path, d->n_long, (long long)max_tokens,
                     !strcmp(overlong, "truncate") ? "were cut" : "were dropped");
        if (d->n_empty && !dist_rank(tr->d))
            log_warn("%s: %zu records without a token of output were dropped", path, d->n_empty);
        if (!d->n)
            rc = err_set(ERR_FORMAT, "%s: no record is left", path);
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

/* An adapter to go on with must have been trained with the prompt that this run has. */
static int check_adapter(const struct trainer *tr)
{
    bool known, retrieval, compact;
    int rc = prompt_check_base(adapter_dir, model_dir);
    if (rc == ERR_OK)
        rc = prompt_template_read(adapter_dir, &known, &retrieval);
    if (rc == ERR_OK && known && retrieval != rag)
        rc = err_set(ERR_USAGE, "%s was trained with the %s prompt: %s", adapter_dir, retrieval ? "retrieval" : "plain",
                     retrieval ? "leave out --no-rag" : "give --no-rag");
    if (rc == ERR_OK && known && (rc = prompt_form_read(adapter_dir, &compact)) == ERR_OK && compact != tr->train.compact)
        rc = err_set(ERR_USAGE, "%s was trained on outputs in the %s form, and %s holds the %s one", adapter_dir, compact ? "compact" : "named", data_dir,
                     tr->train.compact ? "compact" : "named");
    return rc;
}

/* Which weights learn. */
static int choose_trained(struct trainer *tr)
{
    struct model *m = tr->m;
    bool said = false, full = !strcmp(method, "full");
    int rc = ERR_OK;
    for (const struct opt *o = options; o->name; o++)
        said = said || (o->value == &train_embeddings && o->set);
    if (!said)
        train_embeddings = full;
    if (adapter_dir) {
        if ((rc = check_adapter(tr)) == ERR_OK)
            rc = lora_load(m, adapter_dir, true, &tr->lora);
    } else if (!full && (rc = choose_targets(&tr->lora)) == ERR_OK) {
        rc = lora_attach(m, &tr->lora, (uint64_t)seed);
    }
    for (size_t i = 0; full && i < m->n_params && rc == ERR_OK; i++)
        if (train_embeddings || (m->params[i] != m->embed && m->params[i] != m->head))
            rc = model_train(m, m->params[i]);
    if (rc == ERR_OK && !full && train_embeddings && (rc = model_train(m, m->embed)) == ERR_OK && (rc = model_train(m, m->head)) == ERR_OK)
        tr->lora.embeddings = true;
    return rc;
}

/* On a GPU: the largest pass that may come, now rather than in an hour. */
static int try_largest_pass(struct trainer *tr)
{
    size_t budget = (size_t)(pass_tokens ? pass_tokens : batch * max_tokens), longest = 0, tokens = 0, n = 0, covered;
    if (tr->m->device != TH_CUDA)
        return ERR_OK;
    for (size_t i = 1; i < tr->train.n; i++)
        longest = tr->train.v[i].n > tr->train.v[longest].n ? i : longest;
    struct sequence *v = xmalloc((size_t)tr->each * sizeof *v);
    size_t most = (size_t)((tr->each + tr->env.size - 1) / tr->env.size);
    while (n < most && (!n || tokens + tr->train.v[longest].n <= budget)) {
        v[n++] = tr->train.v[longest];
        tokens += tr->train.v[longest].n;
    }
    int rc = model_loss(tr->m, v, n, true, 0, NULL, &covered);
    if (rc == ERR_NOMEM)
        rc = out_of_memory(tr, n, tokens, tr->train.v[longest].n);
    free(v);
    if (rc == ERR_OK)
        th_sync(tr->m->device);
    return rc;
}

static int make_model(struct trainer *tr)
{
    enum th_device device;
    int rc = dist_choose_gpu(&tr->env);
    if (rc == ERR_OK && (rc = th_device_open(device_name, &device)) < 0 && tr->env.size > 1)
        rc = err_wrap("process %d, number %d on its host (are there as many GPUs as processes?)", tr->env.rank, tr->env.local_rank + 1);
    if (rc == ERR_OK)
        rc = dist_use(tr->d, device);
    if (rc < 0)
        return rc;
    enum th_dtype dtype = !strcmp(dtype_name, "float32") || (!strcmp(dtype_name, "auto") && device == TH_CPU) ? TH_F32 : TH_BF16;
    th_set_threads(tr->t->threads);
    th_deterministic(deterministic);
    rc = !strcmp(init, "random") ? model_init(model_dir, dtype, device, (uint64_t)seed, &tr->m) : model_load(model_dir, dtype, device, &tr->m);
    if (rc < 0)
        return rc;
    tr->m->fp8 = !strcmp(precision, "fp8");
    tr->m->memory = !strcmp(memory, "low") ? MEMORY_LOW : !strcmp(memory, "high") ? MEMORY_HIGH : MEMORY_AUTO;
    tr->m->layer_done_ctx = tr;
    if (tok_n_ids(tr->tok) > tr->m->cfg.vocab)
        return err_set(ERR_FORMAT, "%s has %d ids, %s only %lld: tokenizer and model do not fit", tokenizer_dir, (int)tok_n_ids(tr->tok),
                       model_dir, (long long)tr->m->cfg.vocab);
    rc = model_check_finite(tr->m);
    if (rc == ERR_OK)
        rc = choose_trained(tr);
    if (rc == ERR_OK)
        rc = model_check_training(tr->m);
    if (rc == ERR_OK)
        rc = adamw_new(tr->m, &(struct adamw_config){beta1, beta2, eps, weight_decay, !strcmp(optimizer, "adamw8bit")}, &tr->opt);
    if (rc == ERR_NOMEM)
        rc = err_wrap("weights and optimiser state find no room%s", strcmp(optimizer, "adamw8bit") ? ": --optimizer adamw8bit takes a quarter of the state" : "");
    if (rc == ERR_OK) {
        find_layers(tr);
        log_note("%lld trained parameters, %s on %s%s%s", (long long)model_n_trained(tr->m), dtype == TH_F32 ? "float32" : "bfloat16",
                 device == TH_CUDA ? kernel_device_name() : "the CPU", tr->env.size > 1 ? ", one of several processes by " : "", tr->env.launcher);
        rc = try_largest_pass(tr);
    }
    return rc;
}

static int check_arguments(struct trainer *tr)
{
    int64_t n_processes = tr->env.size, *steps;
    size_t n;
    if (!strcmp(init, "random") && strcmp(method, "full"))
        return err_set(ERR_USAGE, "--init random needs --method full: adapters of random weights teach nothing");
    if (adapter_dir && !strcmp(method, "full"))
        return err_set(ERR_USAGE, "--adapter goes with --method lora");
    if (!strcmp(final, "best") && !eval_steps)
        return err_set(ERR_USAGE, "--final best needs --eval-steps: the best is by the loss on val.json");
    if (global_batch && global_batch % (batch * n_processes))
        return err_set(ERR_USAGE, "--global-batch %lld is no multiple of batch-size %lld x %lld processes", (long long)global_batch, (long long)batch,
                       (long long)n_processes);
    if (global_batch)
        accumulation = global_batch / (batch * n_processes);
    tr->each = batch * accumulation * n_processes;
    if (!tokenizer_dir)
        tokenizer_dir = model_dir;
    if (path_exists(out_dir) && !path_is_dir(out_dir))
        return err_set(ERR_USAGE, "--out %s: is no folder", out_dir);
    const char *const inputs[] = {model_dir, data_dir, tokenizer_dir, adapter_dir};
    for (size_t i = 0; i < ARRAY_LEN(inputs); i++)
        if (inputs[i] && path_same(inputs[i], out_dir))
            return err_set(ERR_USAGE, "--out %s: is an input, whose files would be overwritten; name another", out_dir);
    int rc = list_checkpoints(&steps, &n);
    free(steps);
    if (rc == ERR_OK && n && !resume)
        rc = err_set(ERR_USAGE, "%s holds checkpoints: --resume goes on from them, another --out starts anew", out_dir);
    return rc;
}

/* Who takes part: the others of this host share its cores, and leave records and messages to process 0. */
static int join(struct trainer *tr)
{
    static char name[32];
    int rc = dist_env_read(&tr->env);
    if (rc < 0 || tr->env.size == 1)
        return rc;
    if (tr->t->threads == pool_cores())
        tr->t->threads = tr->t->threads > tr->env.local_size ? tr->t->threads / tr->env.local_size : 1;
    if (tr->env.rank) {
        snprintf(name, sizeof name, "sft[%d]", tr->env.rank);
        log_init(name);
        log_quiet = true;
        tr->t->json = false;
        tr->t->db_path = "none";
    }
    return ERR_OK;
}

/* What must be the same everywhere is. */
static int compare_processes(struct trainer *tr, int64_t checkpoint)
{
    struct buf b = BUF_INIT;
    opt_dump(options, true, &b);
    uint64_t config = fnv1a(FNV_INIT, b.s, b.n);
    buf_release(&b);
    int rc = dist_agree(tr->d, "the configuration", config);
    if (rc == ERR_OK)
        rc = dist_agree(tr->d, "the training data or tokenizer", tr->train.digest);
    if (rc == ERR_OK)
        rc = dist_agree(tr->d, "the validation data", tr->val.digest);
    if (rc == ERR_OK)
        rc = dist_agree(tr->d, "the base model", model_digest(tr->m));
    if (rc == ERR_OK)
        rc = dist_agree(tr->d, "the last checkpoint in --out", (uint64_t)checkpoint);
    return rc;
}

static int prepare(struct trainer *tr)
{
    int64_t *steps = NULL, last = -1;
    size_t n = 0;
    int rc = read_split(tr, "train.json", &tr->train);
    if (rc == ERR_OK && eval_steps)
        rc = read_split(tr, "val.json", &tr->val);
    if (rc == ERR_OK)
        rc = make_model(tr);
    if (rc == ERR_OK)
        rc = tool_begin(tr->t);
    if (rc == ERR_OK && (rc = list_checkpoints(&steps, &n)) == ERR_OK && n)
        last = steps[n - 1];
    free(steps);
    if (rc == ERR_OK)
        rc = compare_processes(tr, last);
    if (rc == ERR_OK && !tr->env.rank && (rc = take_folder()) == ERR_OK)
        rc = clear_leftovers();
    if (rc < 0)
        return rc;
    tr->order = xmalloc(tr->train.n * sizeof *tr->order);
    tr->steps_per_epoch = ((int64_t)tr->train.n + tr->each - 1) / tr->each;
    tr->steps = max_steps ? max_steps : epochs * tr->steps_per_epoch;
    if (last >= 0)
        rc = load_checkpoint(tr, last);
    else if (tr->t->db)
        rc = rundb_metrics_cut(tr->t->db, 0); /* the curve of an earlier start is not this one's */
    if (rc == ERR_OK && curves && !tr->env.rank)
        rc = curvelog_open(out_dir, columns, ARRAY_LEN(columns), last, &tr->log);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct trainer tr = {.t = &t, .order_epoch = -1, .best_loss = NAN};
    tool_start(&t, &spec, argc, argv);
    int rc = join(&tr);
    if (rc == ERR_OK)
        rc = check_arguments(&tr);
    if (rc == ERR_OK)
        rc = tok_load(tokenizer_dir, &tr.tok);
    if (rc == ERR_OK && tr.env.size > 1)
        rc = dist_open(&tr.env, (double)peer_timeout, &tr.d);
    if (rc == ERR_OK)
        rc = prepare(&tr);
    if (rc == ERR_OK)
        rc = train_all(&tr);
    if (rc == ERR_EXTERN && dist_failure(tr.d)) /* a GPU's error is then only what came of it */
        rc = err_set(ERR_EXTERN, "%s", dist_failure(tr.d));
    char *why = rc < 0 ? xstrdup(err_text()) : NULL;
    dist_close(tr.d, rc == ERR_CANCELLED ? NULL : why); /* a signal stops all after the same step */
    if (why)
        err_set(rc, "%s", why);
    free(why);
    int code = tool_finish(&t, rc);
    curvelog_close(tr.log);
    free(tr.order);
    free(tr.layer_from);
    adamw_free(tr.opt);
    dataset_release(&tr.train);
    dataset_release(&tr.val);
    model_free(tr.m);
    tok_free(tr.tok);
    return code;
}
