/* geometry-reward: the reward of candidates against one true part. */
#include <math.h>
#include <stdlib.h>

#include "lib/chamfer.h"
#include "lib/reward.h"
#include "lib/step_score.h"
#include "lib/tool.h"
#include "shim/occt.h"

static const char *truth, *candidates, *kind = "hardened";
static double lower = 0.01, upper = 0.5, timeout = 10;
static int64_t points = 2000, memory = 2000000000;

static struct opt options[] = {
    {.name = "truth", .type = OPT_STR, .value = &truth, .arg = "FILE", .help = "the true part", .flags = OPT_REQUIRED},
    {.name = "candidates", .type = OPT_STR, .value = &candidates, .arg = "DIR", .help = "generated parts, or one file", .flags = OPT_REQUIRED},
    {.name = "kind", .type = OPT_STR, .value = &kind, .arg = "KIND", .choices = "paper|hardened",
     .help = "paper: one-sided distance by the original's registration; hardened: both directions, validity, volume"},
    {.name = "lower", .type = OPT_REAL, .value = &lower, .arg = "X", .help = "scaled distance that earns 1", .max = 1e9},
    {.name = "upper", .type = OPT_REAL, .value = &upper, .arg = "X", .help = "scaled distance that earns 0", .max = 1e9},
    {.name = "points", .type = OPT_INT, .value = &points, .arg = "N", .help = "points sampled of each part", .min = 16, .max = 1e6},
    {.name = "timeout", .type = OPT_REAL, .value = &timeout, .arg = "S", .help = "seconds a file may take to read and mesh", .min = 0.01, .max = 86400},
    {.name = "memory", .type = OPT_INT, .value = &memory, .arg = "BYTES", .help = "memory a file may take (2G)", .min = 64e6, .max = 1e13},
    {0},
};

static const struct tool_spec spec = {
    .name = "geometry-reward",
    .args = "--truth FILE --candidates DIR",
    .summary = "Scores many candidates against one true part with the reward that reinforcement learning uses.",
    .details = "A candidate that cannot be read, hangs or crashes earns 0, with its reason.\n\n"
               "  geometry-reward --truth truth.step --candidates samples/ --json\n",
    .options = options,
};

static int record(struct tool *t, const char *path, const struct reward_score *s, double seconds)
{
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    const char *reason = s->reason[0] ? s->reason : NULL;
    jw_object(&j);
    jw_kv_str(&j, "candidate", path);
    jw_kv_str(&j, "truth", truth);
    jw_kv_str(&j, "kind", kind);
    jw_kv_str(&j, "status", s->status == REWARD_OK ? "ok" : "pred_failed");
    jw_kv_str(&j, "reason", reason);
    jw_kv_real(&j, "reward", s->reward);
    jw_kv_real(&j, "scd", s->scd);
    jw_kv_real(&j, "scd_two_sided", s->scd_two_sided);
    if (!strcmp(kind, "hardened")) {
        jw_kv_real(&j, "scd_worse", s->worse);
        jw_kv_bool(&j, "closed", s->closed);
        jw_kv_bool(&j, "valid", s->valid);
        jw_kv_real(&j, "volume_ratio", s->volume_ratio);
    }
    jw_end(&j);
    tool_print(t, "%s: %.6f%s%s\n", path, s->reward, reason ? "  " : "", reason ? reason : "");
    char *input = xasprintf("%s\n%s", truth, path);
    int rc = tool_item(t, &(struct run_item){.item = path, .state = "done", .reason = reason, .seconds = seconds, .input = input, .result = line.s});
    free(input);
    buf_release(&line);
    return rc;
}

enum { BATCH = 64 }; /* recorded together: what a kill may cost */

static int score(struct tool *t, struct reward *r)
{
    struct file_list l = {0};
    size_t *left = NULL, n_left = 0, failed = 0;
    double sum = 0, seconds = 0;
    struct reward_item *items = NULL;
    struct reward_score *out = NULL;
    int rc = path_is_dir(truth) ? err_set(ERR_IO, "%s: is a folder; one true part is due for all candidates", truth)
             : !path_exists(truth) ? err_set(ERR_IO, "%s: no such file", truth) : score_files(&l, candidates);
    if (rc == ERR_OK && !l.n)
        rc = err_set(ERR_IO, "%s: holds no .step or .stp file", candidates);
    if (rc < 0)
        goto done;
    items = xcalloc(l.n, sizeof *items);
    out = xcalloc(l.n, sizeof *out);
    left = xcalloc(l.n, sizeof *left);
    for (size_t i = 0; i < l.n; i++) {
        char *input = xasprintf("%s\n%s", truth, l.v[i].path);
        json_t *was = tool_item_earlier(t, l.v[i].path, input, NULL);
        free(input);
        if (!was) {
            items[n_left] = (struct reward_item){.truth = truth, .name = l.v[i].path};
            left[n_left++] = i;
            continue;
        }
        out[i].reward = json_number_value(json_object_get(was, "reward"));
        failed += strcmp(json_string_value(json_object_get(was, "status")), "ok") != 0;
        json_decref(was);
    }
    for (size_t at = 0; at < n_left && rc == ERR_OK; at += BATCH) {
        size_t n = n_left - at < BATCH ? n_left - at : BATCH;
        struct reward_score batch[BATCH];
        double start = now_s();
        rc = reward_batch(r, items + at, n, batch);
        double took = now_s() - start;
        seconds += took;
        if (rc == ERR_OK && batch[0].status == REWARD_TRUTH_FAILED)
            rc = err_set(ERR_FORMAT, "%s: the true part cannot be used: %s", truth, batch[0].reason);
        for (size_t i = 0; i < n && rc == ERR_OK; i++) {
            out[left[at + i]] = batch[i];
            failed += batch[i].status != REWARD_OK;
            rc = record(t, l.v[left[at + i]].path, &batch[i], took / (double)n);
        }
    }
    if (rc < 0)
        goto done;
    for (size_t i = 0; i < l.n; i++)
        sum += out[i].reward;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "kind", kind);
    jw_kv_int(&j, "n_total", (int64_t)l.n);
    jw_kv_int(&j, "n_pred_failed", (int64_t)failed);
    jw_kv_real(&j, "mean_reward", sum / (double)l.n);
    jw_kv_real(&j, "candidates_per_second", n_left ? (double)n_left / seconds : NAN);
    jw_end(&j);
    tool_json_line(t, line.s);
    buf_release(&line);
    tool_print(t, "mean reward %.6f over %zu candidates, %zu of them failed\n", sum / (double)l.n, l.n, failed);
    rc = tool_metric(t, 0, "mean_reward", sum / (double)l.n);
    if (rc == ERR_OK)
        rc = tool_metric(t, 0, "n_total", (double)l.n);
    if (rc == ERR_OK)
        rc = tool_metric(t, 0, "n_pred_failed", (double)failed);
done:
    free(items);
    free(left);
    free(out);
    file_list_release(&l);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    chamfer_keep_memory();
    struct reward *r = NULL;
    int rc = reward_open(&(struct reward_opts){.hardened = !strcmp(kind, "hardened"), .lower = lower, .upper = upper, .points = (size_t)points,
                                               .threads = t.threads, .seconds = timeout, .memory = (size_t)memory, .what = "scoring", .work = occ_work},
                         &r);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = score(&t, r);
    reward_close(r);
    return tool_finish(&t, rc);
}
