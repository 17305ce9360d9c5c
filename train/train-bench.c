/* train-bench: times whole training steps on made-up tokens, shows where the time goes, and writes one pass's loss and gradients
 * for comparison with another implementation's. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/safetensors.h"
#include "lib/tool.h"
#include "model/dataset.h"
#include "model/optim.h"

static const char *model_dir, *ids_file, *dump, *lengths_file, *adapter_dir;
static const char *init = "random", *method = "lora", *memory = "auto", *device_name = "auto", *dtype_name = "auto", *optimizer = "adamw8bit";
static const char *precision = "bf16";
static bool profile;
static int64_t batch = 2, seq = 4096, steps = 8, warm = 3, lora_r = 16, accumulation = 1, pass_tokens = 32768;
static double response = 0.5, lora_alpha = 16, rate = 5e-5, peak_tflops = 989;

static struct opt options[] = {
    {.name = "model", .type = OPT_STR, .value = &model_dir, .arg = "DIR", .help = "config.json, and weights for --init pretrained", .flags = OPT_REQUIRED},
    {.name = "init", .type = OPT_STR, .value = &init, .choices = "pretrained|random", .help = "where the weights come from (random: drawn on the device)"},
    {.name = "adapter", .type = OPT_STR, .value = &adapter_dir, .arg = "DIR", .help = "train this adapter"},
    {.name = "method", .type = OPT_STR, .value = &method, .choices = "lora|full", .help = "train adapters of rank --lora.r, or all weights"},
    {.name = "lora.r", .type = OPT_INT, .value = &lora_r, .arg = "N", .help = "rank", .min = 1, .max = 4096},
    {.name = "lora.alpha", .type = OPT_REAL, .value = &lora_alpha, .arg = "X", .help = "the adapter counts alpha / r", .min = 1e-6, .max = 1e6},
    {.name = "batch-size", .type = OPT_INT, .value = &batch, .arg = "N", .help = "sequences a pass", .min = 1, .max = 1e6},
    {.name = "length", .type = OPT_INT, .value = &seq, .arg = "N", .help = "tokens of each", .min = 2, .max = 1e7},
    {.name = "lengths", .type = OPT_STR, .value = &lengths_file, .arg = "FILE", .help = "tokens of each, one number a line, instead; --batch-size of them a step"},
    {.name = "pass-tokens", .type = OPT_INT, .value = &pass_tokens, .arg = "N", .help = "with --lengths: those of a step are packed into passes of up to N tokens", .min = 2, .max = 1e9},
    {.name = "response", .type = OPT_REAL, .value = &response, .arg = "X", .help = "share of them, at the end, that the loss covers", .min = 0.0001, .max = 1},
    {.name = "ids", .type = OPT_STR, .value = &ids_file, .arg = "FILE", .help = "their ids, int32, instead of random ones"},
    {.name = "accumulation", .type = OPT_INT, .value = &accumulation, .arg = "N", .help = "passes a step", .min = 1, .max = 65536},
    {.name = "steps", .type = OPT_INT, .value = &steps, .arg = "N", .help = "steps timed, of which the median counts", .min = 1, .max = 1e6},
    {.name = "warm", .type = OPT_INT, .value = &warm, .arg = "N", .help = "steps ahead of them", .min = 0, .max = 1e6},
    {.name = "lr", .type = OPT_REAL, .value = &rate, .arg = "X", .help = "learning rate", .min = 0, .max = 10},
    {.name = "optimizer", .type = OPT_STR, .value = &optimizer, .choices = "adamw|adamw8bit", .help = "as sft's"},
    {.name = "precision", .type = OPT_STR, .value = &precision, .choices = "bf16|fp8", .help = "as sft's"},
    {.name = "memory", .type = OPT_STR, .value = &memory, .choices = "auto|low|high", .help = "as sft's"},
    {.name = "device", .type = OPT_STR, .value = &device_name, .choices = "auto|cpu|cuda", .help = "where to compute"},
    {.name = "dtype", .type = OPT_STR, .value = &dtype_name, .choices = "auto|float32|bfloat16", .help = "of weights and activations"},
    {.name = "peak", .type = OPT_REAL, .value = &peak_tflops, .arg = "X", .help = "the chip's TFLOP/s, for MFU", .min = 0.001, .max = 1e6},
    {.name = "profile", .type = OPT_FLAG, .value = &profile, .help = "then time the phases of a step"},
    {.name = "dump", .type = OPT_STR, .value = &dump, .arg = "FILE", .help = "write loss and gradients of one pass as safetensors, and time nothing"},
    {0},
};

static const struct tool_spec spec = {
    .name = "train-bench",
    .args = "--model DIR",
    .summary = "Times training steps of a model on made-up sequences.",
    .details = "  train-bench --model configs/qwen2.5-3b --batch-size 2 --length 16384 --profile\n",
    .options = options,
    .flags = TOOL_READS,
};

struct bench {
    struct tool *t;
    struct model *m;
    struct adamw *opt;
    struct sequence *v;   /* all; a step takes the next `batch` of them, `accumulation` times */
    int32_t *ids;
    size_t n;
    enum th_device device;
};

static int read_lengths(int64_t **out, size_t *n)
{
    struct file_map f;
    size_t cap = 0;
    *n = 0;
    int rc = file_map(lengths_file, 64 << 20, &f);
    if (rc < 0)
        return rc;
    char *text = xstrndup((const char *)f.data, f.size), *end;
    for (char *at = text;; at = end) {
        long long v = strtoll(at, &end, 10);
        if (end == at)
            break;
        if (v < 2)
            rc = err_set(ERR_FORMAT, "%s: number %zu is %lld: lengths of at least 2 are due", lengths_file, *n + 1, v);
        ARRAY_GROW(*out, cap, *n + 1);
        (*out)[(*n)++] = v;
    }
    free(text);
    file_unmap(&f);
    return rc < 0 || *n ? rc : err_set(ERR_FORMAT, "%s: no lengths", lengths_file);
}

static int make_sequences(struct bench *b)
{
    int64_t *length = NULL, total = 0, vocab = b->m->cfg.vocab;
    int rc = ERR_OK;
    b->n = (size_t)batch;
    if (lengths_file && (rc = read_lengths(&length, &b->n)) < 0)
        return rc;
    if (!length) {
        length = xmalloc(b->n * sizeof *length);
        for (size_t i = 0; i < b->n; i++)
            length[i] = seq;
    }
    for (size_t i = 0; i < b->n; i++)
        total += length[i];
    b->ids = xmalloc((size_t)total * sizeof *b->ids);
    b->v = xmalloc(b->n * sizeof *b->v);
    uint64_t s = 88172645463325252u; /* xorshift64 (Marsaglia 2003) */
    for (int64_t i = 0; i < total; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        b->ids[i] = (int32_t)(s % (uint64_t)vocab);
    }
    struct file_map f;
    if (ids_file && (rc = file_map(ids_file, (size_t)1 << 32, &f)) == ERR_OK) {
        if (f.size < (size_t)total * 4)
            rc = err_set(ERR_FORMAT, "%s: holds %zu ids, %lld are due", ids_file, f.size / 4, (long long)total);
        else
            memcpy(b->ids, f.data, (size_t)total * 4);
        file_unmap(&f);
    }
    int64_t at = 0;
    for (size_t i = 0; i < b->n; i++) {
        int64_t prompt = (int64_t)((double)length[i] * (1 - response));
        b->v[i] = (struct sequence){.ids = b->ids + at, .n = (size_t)length[i], .response = (size_t)(prompt < 1 ? 1 : prompt)};
        at += length[i];
    }
    free(length);
    return rc;
}

/* Floating-point operations that the steps' passes need: none for what is computed again, the head only where the loss looks. */
static double needed(const struct model *m, const struct sequence *v, size_t n)
{
    const struct model_config *c = &m->cfg;
    double q = (double)(c->n_heads * c->head_dim), kv = (double)(c->n_kv_heads * c->head_dim), d = (double)c->d_model, all = 0;
    double passes = !strcmp(method, "full") ? 6 : 4; /* forward, gradient of the input, gradient of the weight: 2 each */
    for (size_t i = 0; i < n; i++) {
        double t = (double)v[i].n;
        all += passes * t * (double)c->n_layers * (d * (q + 2 * kv) + q * d + 3 * d * (double)c->d_ff);
        all += passes * (double)(v[i].n - v[i].response) * d * (double)c->vocab;
        all += 3.5 * 2 * t * t * q * (double)c->n_layers; /* causal: half of 4 t^2 q, and 2.5 times that backward */
    }
    return all;
}

/* The i-th `batch` sequences. */
static void sequences_of(const struct bench *b, int64_t i, const struct sequence **v, size_t *n)
{
    size_t each = (size_t)batch < b->n ? (size_t)batch : b->n, passes = b->n / each;
    *v = b->v + (size_t)i % passes * each;
    *n = each;
}

static int one_step(struct bench *b, int64_t i, double *flops, size_t *tokens)
{
    int rc = adamw_zero_grad(b->opt);
    size_t covered = 0, all = 0;
    *flops = 0;
    for (int64_t k = 0; k < accumulation && rc == ERR_OK; k++) {
        const struct sequence *v;
        size_t n, did;
        sequences_of(b, i * accumulation + k, &v, &n);
        for (size_t j = 0; j < n; j++) {
            covered += v[j].n - v[j].response;
            all += v[j].n;
        }
        *flops += needed(b->m, v, n);
        size_t *pass = xcalloc(n, sizeof *pass), passes = lengths_file ? dataset_pack(v, n, (size_t)pass_tokens, pass) : 1;
        struct sequence *in = xmalloc(n * sizeof *in);
        for (size_t p = 0; p < passes && rc == ERR_OK; p++) {
            size_t m = 0;
            for (size_t j = 0; j < n; j++)
                if (pass[j] == p)
                    in[m++] = v[j];
            rc = model_loss(b->m, in, m, true, 1.0 / (double)covered, NULL, &did);
        }
        free(pass);
        free(in);
    }
    *tokens = all;
    return rc < 0 ? rc : adamw_step(b->opt, rate, 1);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_profile(struct bench *b, double step_s)
{
    struct phase p[32];
    size_t n = model_profile(b->m, p, ARRAY_LEN(p));
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += p[i].seconds;
    for (size_t i = 0; i < n; i++) {
        tool_print(b->t, "  %-30s %9.3f ms %5.1f %%  %lld\n", p[i].name, p[i].seconds * 1e3, 100 * p[i].seconds / sum, (long long)p[i].calls);
        struct buf s = BUF_INIT;
        struct jw j = JW_INIT(&s);
        jw_object(&j);
        jw_kv_str(&j, "phase", p[i].name);
        jw_kv_real(&j, "seconds", p[i].seconds);
        jw_end(&j);
        tool_json_line(b->t, s.s);
        buf_release(&s);
    }
    tool_print(b->t, "  %-30s %9.3f ms of %.3f\n", "together", sum * 1e3, step_s * 1e3);
}

static int time_steps(struct bench *b)
{
    double *took = xcalloc((size_t)steps, sizeof *took), flops = 0, losses[1], norm = 0, worked = 0, all = 0;
    size_t tokens = 0, used, peak, left, all_tokens = 0;
    int rc = ERR_OK;
    for (int64_t i = -warm; i < steps && rc == ERR_OK; i++) {
        if (i == 0)
            th_memory_reset_peak(b->device);
        th_sync(b->device);
        double t0 = now_s();
        rc = one_step(b, i + warm, &flops, &tokens);
        th_sync(b->device);
        if (i < 0)
            continue;
        all += took[i] = now_s() - t0;
        worked += flops;
        all_tokens += tokens;
    }
    th_memory(b->device, &used, &peak, &left);
    if (rc == ERR_OK && (rc = model_losses(b->m, losses, 1)) == ERR_OK)
        rc = adamw_norm(b->opt, &norm);
    if (rc < 0) {
        free(took);
        return rc;
    }
    qsort(took, (size_t)steps, sizeof *took, by_value);
    double median = lengths_file ? all / (double)steps : took[steps / 2], each = (double)all_tokens / (double)steps;
    double tflops = worked / (double)steps / median / 1e12;
    tool_print(b->t, "%s %s, %lld x %lld x %lld: %.0f tokens/s, %.1f ms a step (%.1f to %.1f), %.0f TFLOP/s (MFU %.1f %%), peak %.2f GiB (%.2f held), loss %.4f, norm %.4f\n",
               method, memory, (long long)accumulation, (long long)batch, (long long)(lengths_file ? 0 : seq), each / median, median * 1e3, took[0] * 1e3,
               took[steps - 1] * 1e3, tflops, 100 * tflops / peak_tflops, (double)peak / (1 << 30), (double)th_memory_reserved(b->device) / (1 << 30), losses[0], norm);
    struct buf s = BUF_INIT;
    struct jw j = JW_INIT(&s);
    jw_object(&j);
    jw_kv_str(&j, "method", method);
    jw_kv_str(&j, "memory", memory);
    jw_kv_int(&j, "batch", batch);
    jw_kv_int(&j, "length", lengths_file ? 0 : seq);
    jw_kv_real(&j, "tokens_per_s", each / median);
    jw_kv_real(&j, "step_s", median);
    jw_kv_real(&j, "tflops", tflops);
    jw_kv_real(&j, "peak_gib", (double)peak / (1 << 30));
    jw_kv_real(&j, "reserved_gib", (double)th_memory_reserved(b->device) / (1 << 30));
    jw_kv_real(&j, "loss", losses[0]);
    jw_end(&j);
    tool_json_line(b->t, s.s);
    buf_release(&s);
    if (profile) {
        b->m->profile = true;
        rc = one_step(b, warm + steps, &flops, &tokens);
        th_sync(b->device);
        b->m->profile = false;
        print_profile(b, median);
    }
    free(took);
    return rc;
}

/* ---- loss and gradients ---- */

struct dumping {
    struct param **p;
    size_t n;
    float loss;
    void *bytes;
};

static int dumped(void *ctx, size_t i, const void **data)
{
    struct dumping *d = ctx;
    if (i == d->n) {
        *data = &d->loss;
        return ERR_OK;
    }
    free(d->bytes);
    d->bytes = xmalloc((size_t)th_numel(d->p[i]->grad) * 4);
    *data = d->bytes;
    return th_read(d->p[i]->grad, d->bytes);
}

static int write_gradients(struct bench *b)
{
    struct dumping d = {.p = xcalloc(b->m->n_params, sizeof *d.p)};
    double loss;
    size_t covered;
    int rc = model_loss(b->m, b->v, b->n, true, 1, &loss, &covered);
    for (size_t i = 0; i < b->m->n_params; i++)
        if (b->m->params[i]->trained)
            d.p[d.n++] = b->m->params[i];
    struct st_tensor *t = xcalloc(d.n + 1, sizeof *t);
    for (size_t i = 0; i < d.n; i++) {
        t[i] = (struct st_tensor){.name = d.p[i]->name, .dtype = ST_F32, .rank = th_rank(d.p[i]->grad)};
        for (int k = 0; k < t[i].rank; k++)
            t[i].shape[k] = th_size(d.p[i]->grad, k);
    }
    t[d.n] = (struct st_tensor){.name = "loss", .dtype = ST_F32, .rank = 1, .shape = {1}};
    if (rc == ERR_OK) {
        d.loss = (float)(loss / (double)covered);
        tool_print(b->t, "loss %.6f over %zu tokens\n", loss / (double)covered, covered);
        rc = st_write(dump, t, d.n + 1, dumped, &d, NULL);
    }
    free(t);
    free(d.p);
    free(d.bytes);
    return rc;
}

static int make(struct bench *b)
{
    int rc = th_device_open(device_name, &b->device);
    if (rc < 0)
        return rc;
    enum th_dtype dtype = !strcmp(dtype_name, "float32") || (!strcmp(dtype_name, "auto") && b->device == TH_CPU) ? TH_F32 : TH_BF16;
    struct lora_config lora = {.r = lora_r, .alpha = lora_alpha};
    for (int k = 0; k < LORA_TARGETS; k++)
        lora.target[k] = true;
    th_set_threads(b->t->threads);
    rc = !strcmp(init, "random") ? model_init(model_dir, dtype, b->device, MODEL_DRAW_ON_DEVICE, &b->m) : model_load(model_dir, dtype, b->device, &b->m);
    if (rc < 0)
        return rc;
    b->m->fp8 = !strcmp(precision, "fp8");
    b->m->memory = !strcmp(memory, "low") ? MEMORY_LOW : !strcmp(memory, "high") ? MEMORY_HIGH : MEMORY_AUTO;
    rc = !strcmp(method, "full") ? model_train_all(b->m) : adapter_dir ? lora_load(b->m, adapter_dir, true, NULL) : lora_attach(b->m, &lora, 1);
    if (rc == ERR_OK)
        rc = make_sequences(b);
    return rc < 0 || dump ? rc : adamw_new(b->m, &(struct adamw_config){0.9, 0.999, 1e-8, 0.01, !strcmp(optimizer, "adamw8bit")}, &b->opt);
}

int main(int argc, char **argv)
{
    struct tool t;
    struct bench b = {.t = &t};
    tool_start(&t, &spec, argc, argv);
    int rc = make(&b);
    if (rc == ERR_OK)
        rc = dump ? write_gradients(&b) : time_steps(&b);
    int code = tool_finish(&t, rc);
    adamw_free(b.opt);
    free(b.v);
    free(b.ids);
    model_free(b.m);
    return code;
}
