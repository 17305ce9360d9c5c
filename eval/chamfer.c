/* chamfer: how far generated parts are from the true ones. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/chamfer.h"
#include "lib/isolate.h"
#include "lib/pairs.h"
#include "lib/part.h"
#include "lib/step_score.h"
#include "lib/tool.h"
#include "shim/occt.h"

static const char *pred_arg, *truth_arg, *captions, *align = "best", *scale = "truth", *aligned_out;
static int64_t points = 2000, memory = 2000000000, seed = -1;
static double timeout = 30, threshold = 0.1;
static bool clouds, icp_from;

static struct opt options[] = {
    {.name = "pred", .type = OPT_STR, .value = &pred_arg, .arg = "DIR", .help = "generated parts (or one file)"},
    {.name = "truth", .type = OPT_STR, .value = &truth_arg, .arg = "DIR", .help = "true parts of the same names (or one file for all)"},
    {.name = "captions", .type = OPT_STR, .value = &captions, .arg = "PAIRS",
     .help = "pair records (test.json): the error of the box is summed up also where the caption tells a size in mm"},
    {.name = "align", .type = OPT_STR, .value = &align, .arg = "HOW", .choices = "reference|best",
     .help = "best: multi-start, all roots; reference: the original's FPFH, RANSAC and ICP on the first root"},
    {.name = "points", .type = OPT_INT, .value = &points, .arg = "N", .help = "points sampled of each part", .min = 16, .max = 1e6},
    {.name = "threshold", .type = OPT_REAL, .value = &threshold, .arg = "X",
     .help = "best: distance that counts as a hit for the F-score, in the truth's RMS", .min = 1e-6, .max = 10},
    {.name = "scale", .type = OPT_STR, .value = &scale, .arg = "WHAT", .choices = "truth|average",
     .help = "reference: RMS to scale by; average is the default of the original's command"},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "reference: instead of the texts' MD5", .min = -1, .max = 4294967294.0},
    {.name = "clouds", .type = OPT_FLAG, .value = &clouds, .help = "the arguments are raw n x 3 float64 clouds: truth, prediction"},
    {.name = "icp-from", .type = OPT_FLAG, .value = &icp_from, .help = "clouds: after the original's three ICP rounds"},
    {.name = "aligned", .type = OPT_STR, .value = &aligned_out, .arg = "FILE", .help = "clouds: write the moved prediction to FILE", .flags = OPT_NO_KEY},
    {.name = "timeout", .type = OPT_REAL, .value = &timeout, .arg = "S", .help = "seconds a file may take to read and mesh", .min = 0.01, .max = 86400},
    {.name = "memory", .type = OPT_INT, .value = &memory, .arg = "BYTES", .help = "memory a file may take (2G)", .min = 64e6, .max = 1e13},
    {0},
};

static const struct tool_spec spec = {
    .name = "chamfer",
    .args = "--pred DIR --truth DIR | TRUTH PRED",
    .summary = "Scaled Chamfer distance of generated parts from the true ones.",
    .details = "Files are paired by their name less its suffix.  scd is the mean squared distance from the truth's points\n"
               "to the prediction's over the truth's RMS radius squared; scd_two_sided adds the other direction.  box_error:\n"
               "the largest relative error of an extent of the bounding box, axis by axis, as the parts stand.\n\n"
               "  chamfer --pred runs/12/generated --truth data/test --label 'SFT with RAG'\n"
               "  chamfer --align reference --json truth.step generated.step\n"
               "  chamfer --clouds --icp-from --json truth.f64 moved.f64\n",
    .options = options,
    .flags = TOOL_SHARDS,
    .max_args = 2,
};

/* ---- raw clouds ---- */

static int read_cloud(const char *path, double **xyz, size_t *n)
{
    struct file_map m;
    int rc = file_map(path, (size_t)1 << 32, &m);
    if (rc < 0)
        return rc;
    *n = m.size / 24;
    *xyz = NULL;
    if (!m.size || m.size % 24) {
        rc = err_set(ERR_FORMAT, "%s: %zu bytes are no n x 3 float64", path, m.size);
    } else {
        *xyz = xmalloc(m.size);
        memcpy(*xyz, m.data, m.size);
        if (!cloud_finite(*xyz, *n))
            rc = err_set(ERR_FORMAT, "%s: a coordinate is not finite", path);
    }
    file_unmap(&m);
    return rc;
}

static int score_clouds(struct tool *t)
{
    double *g = NULL, *p = NULL;
    size_t n_g, n_p;
    struct icp_round round[3];
    double start = now_s();
    int rc = read_cloud(t->args.v[0], &g, &n_g);
    if (rc == ERR_OK)
        rc = read_cloud(t->args.v[1], &p, &n_p);
    if (rc < 0)
        goto out;
    if (icp_from)
        reg_icp_rounds(p, n_p, g, n_g, round);
    double cd = chamfer_one_sided(g, n_g, p, n_p), back = chamfer_one_sided(p, n_p, g, n_g);
    double rms = cloud_rms(g, n_g), over = rms > 0 ? rms * rms : 1;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "pred", t->args.v[1]);
    jw_kv_str(&j, "truth", t->args.v[0]);
    jw_kv_str(&j, "status", "ok");
    jw_kv_str(&j, "reason", NULL);
    jw_kv_real(&j, "cd", cd);
    jw_kv_real(&j, "scale", rms);
    jw_kv_real(&j, "scd", cd / over);
    jw_kv_real(&j, "scd_two_sided", (cd + back) / over);
    jw_kv_real(&j, "cd_two_sided", cd + back);
    jw_kv_real(&j, "cd_back", back);
    jw_kv_real(&j, "scale_pred", cloud_rms(p, n_p));
    if (icp_from) {
        jw_key(&j, "icp");
        jw_array(&j);
        for (int k = 0; k < 3; k++) {
            jw_array(&j);
            jw_real(&j, round[k].fitness);
            jw_real(&j, round[k].rmse);
            jw_end(&j);
        }
        jw_end(&j);
    }
    jw_end(&j);
    tool_print(t, "cd %.9g  scale %.9g  scd %.9g  two-sided %.9g\n", cd, rms, cd / over, (cd + back) / over);
    rc = tool_item(t, &(struct run_item){.item = t->args.v[1], .state = "done", .seconds = now_s() - start, .result = line.s});
    buf_release(&line);
    if (rc == ERR_OK && aligned_out)
        rc = file_write(aligned_out, p, n_p * 24, false);
out:
    free(g);
    free(p);
    return rc;
}

/* ---- pairs of files ---- */

/* A file, read when the first pair needs it and let go after the last. */
struct source {
    const char *path;
    size_t uses;
    bool loaded;
    char *failure; /* why there is no part; NULL: part is there */
    struct part part;
};

struct match {
    size_t truth, pred; /* sources, or SIZE_MAX: unmatched */
    const char *name;
    bool stands; /* an earlier start of this run scored it */
};

struct scoring {
    struct tool *tool;
    struct chamfer_opts opts;
    struct part_request request;
    struct isolate *pool;
    struct file_list truth_files, pred_files;
    struct source *source;
    struct match *pair;
    size_t n_sources, n_pairs;
    size_t *load, n_load; /* sources of the batch in hand */
    size_t first;         /* pair it begins with */
    double *scd, *scd2, *shape2, *box, *box_told;
    size_t n_told;
    json_t *tells; /* ids whose caption tells a size; NULL: not asked for */
    size_t n_ok, n_pred_failed, n_truth_failed, n_degenerate, n_no_pred, n_no_truth;
};

enum { BATCH = 128 };

static char *less_suffix(const char *rel)
{
    const char *dot = strrchr(rel, '.');
    return dot && !strchr(dot, '/') ? xstrndup(rel, (size_t)(dot - rel)) : xstrdup(rel);
}

/* Truths by a name: relative and less suffix, or base name. */
struct named {
    char *name;
    size_t file;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

struct names {
    struct named *whole, *stem;
    size_t n;
};

static struct names names_of(const struct file_list *l)
{
    struct names s = {xcalloc(l->n, sizeof *s.whole), xcalloc(l->n, sizeof *s.stem), l->n};
    for (size_t i = 0; i < l->n; i++) {
        s.whole[i] = (struct named){less_suffix(l->v[i].rel), i};
        s.stem[i] = (struct named){path_stem(l->v[i].rel), i};
    }
    qsort(s.whole, s.n, sizeof *s.whole, by_name);
    qsort(s.stem, s.n, sizeof *s.stem, by_name);
    return s;
}

static void names_release(struct names *s)
{
    for (size_t i = 0; i < s->n; i++) {
        free(s->whole[i].name);
        free(s->stem[i].name);
    }
    free(s->whole);
    free(s->stem);
}

/* The file of that relative name less suffix; else the only one of that base name; else SIZE_MAX. */
static size_t find_partner(const struct names *s, const char *rel)
{
    struct named whole = {.name = less_suffix(rel)}, stem = {.name = path_stem(rel)};
    const struct named *hit = bsearch(&whole, s->whole, s->n, sizeof *s->whole, by_name);
    if (!hit) {
        hit = bsearch(&stem, s->stem, s->n, sizeof *s->stem, by_name);
        if (hit && ((hit > s->stem && !by_name(hit - 1, &stem)) || (hit + 1 < s->stem + s->n && !by_name(hit + 1, &stem))))
            hit = NULL; /* one of several */
    }
    free(whole.name);
    free(stem.name);
    return hit ? hit->file : SIZE_MAX;
}

static int make_pairs(struct scoring *s, const char *truth, const char *pred)
{
    int rc = score_files(&s->truth_files, truth);
    if (rc == ERR_OK)
        rc = score_files(&s->pred_files, pred);
    if (rc < 0)
        return rc;
    size_t n_t = s->truth_files.n, n_p = s->pred_files.n;
    if (!n_t || !n_p)
        return err_set(ERR_IO, "%s: holds no .step or .stp file", n_t ? pred : truth);
    s->n_sources = n_t + n_p;
    s->source = xcalloc(s->n_sources, sizeof *s->source);
    s->pair = xcalloc(n_t + n_p, sizeof *s->pair);
    bool *used = xcalloc(n_t, sizeof *used), one_truth = !path_is_dir(truth);
    struct names names = names_of(&s->truth_files);
    const size_t shards = (size_t)s->tool->shard_n, mine = (size_t)s->tool->shard_i - 1;
    for (size_t i = 0; i < n_t; i++)
        s->source[i].path = s->truth_files.v[i].path;
    for (size_t i = 0; i < n_p; i++) {
        size_t t = one_truth ? 0 : find_partner(&names, s->pred_files.v[i].rel);
        s->source[n_t + i].path = s->pred_files.v[i].path;
        if (t != SIZE_MAX)
            used[t] = true;
        if (i % shards != mine)
            continue;
        s->pair[s->n_pairs++] = (struct match){.truth = t, .pred = n_t + i, .name = s->pred_files.v[i].path};
        if (t == SIZE_MAX)
            continue;
        s->source[t].uses++;
        s->source[n_t + i].uses++;
    }
    for (size_t i = 0; i < n_t; i++)
        if (!used[i] && i % shards == mine)
            s->pair[s->n_pairs++] = (struct match){.truth = i, .pred = SIZE_MAX, .name = s->truth_files.v[i].path};
    free(used);
    names_release(&names);
    return ERR_OK;
}

static int make_job(void *ctx, size_t i, struct buf *out)
{
    struct scoring *s = ctx;
    part_job(&s->request, s->source[s->load[i]].path, out);
    return 0;
}

static int take_part(void *ctx, const struct isolate_result *r)
{
    struct scoring *s = ctx;
    struct source *f = &s->source[s->load[r->index]];
    f->loaded = true;
    if (r->code < 0) {
        f->failure = xstrdup(r->error);
    } else if (part_decode(r->data, r->n, &f->part) < 0) {
        f->failure = xstrdup(err_text());
    } else if (f->part.status != PART_OK) {
        f->failure = f->part.status == PART_EXCEPTION ? xasprintf("exception: %s", f->part.reason) : xstrdup(f->part.reason);
        part_release(&f->part);
    }
    return ERR_OK;
}

static void let_go(struct source *f)
{
    if (--f->uses)
        return;
    if (!f->failure)
        part_release(&f->part);
    free(f->failure);
    f->failure = NULL;
    f->loaded = false;
}

static bool matched(const struct match *p)
{
    return p->truth != SIZE_MAX && p->pred != SIZE_MAX;
}

static void *score_pair(void *ctx, size_t i, int worker, int *code)
{
    (void)worker;
    struct scoring *s = ctx;
    const struct match *p = &s->pair[s->first + i];
    struct chamfer_score *out = xcalloc(1, sizeof *out);
    *code = ERR_OK;
    if (!matched(p) || p->stands || s->source[p->truth].failure || s->source[p->pred].failure)
        return out;
    struct chamfer_opts o = s->opts;
    if (o.reference && seed >= 0)
        o.seed = (uint32_t)seed;
    else if (o.reference)
        *code = chamfer_seed(s->source[p->truth].path, s->source[p->pred].path, &o.seed);
    if (*code == ERR_OK)
        chamfer_score(&s->source[p->truth].part, &s->source[p->pred].part, &o, out);
    return out;
}

/* The largest relative error of an extent, axis by axis: parts are not turned or moved. */
static double box_error(const struct part *truth, const struct part *pred)
{
    double worst = 0;
    for (int k = 0; k < 3; k++) {
        double is = pred->box[k + 3] - pred->box[k], due = truth->box[k + 3] - truth->box[k];
        worst = fmax(worst, fabs(is - due) / fmax(due, 1e-9));
    }
    return worst;
}

static void add_box(struct scoring *s, double error, bool told)
{
    s->box[s->n_ok] = error;
    if (told)
        s->box_told[s->n_told++] = error;
}

static bool tells_size(const struct scoring *s, const char *name)
{
    char *stem = path_stem(name);
    bool told = s->tells && json_object_get(s->tells, stem);
    free(stem);
    return told;
}

/* Names of the records whose caption has "12 mm" or "12mm". */
static int read_captions(struct scoring *s)
{
    struct pairs *r;
    struct pair p;
    int rc = pairs_open(captions, &r);
    if (rc < 0)
        return rc;
    s->tells = json_object();
    while ((rc = pairs_next(r, &p)) > 0)
        for (const char *c = p.caption; (c = strstr(c, "mm")) != NULL; c += 2) {
            const char *before = c > p.caption && c[-1] == ' ' ? c - 1 : c;
            if (before > p.caption && before[-1] >= '0' && before[-1] <= '9')
                json_object_set_new(s->tells, p.id_original, json_true());
        }
    pairs_close(r);
    return rc;
}

static int pair_done(void *ctx, const struct pool_item *it)
{
    struct scoring *s = ctx;
    struct match *p = &s->pair[s->first + it->index];
    struct chamfer_score *r = it->result;
    if (p->stands) {
        free(r);
        let_go(&s->source[p->truth]);
        let_go(&s->source[p->pred]);
        progress_add(1, 0);
        return ERR_OK;
    }
    struct source *g = p->truth == SIZE_MAX ? NULL : &s->source[p->truth], *q = p->pred == SIZE_MAX ? NULL : &s->source[p->pred];
    const char *status = "ok", *reason = NULL;
    bool both = g && q, told = tells_size(s, p->name);
    if (!q)
        status = "no_pred", reason = "no prediction of that name", s->n_no_pred++;
    else if (!g)
        status = "no_truth", reason = "no truth of that name, or several", s->n_no_truth++;
    else if (g->failure)
        status = "truth_failed", reason = g->failure, s->n_truth_failed++;
    else if (q->failure)
        status = "pred_failed", reason = q->failure, s->n_pred_failed++;
    else if (it->code < 0)
        status = "pred_failed", reason = it->error, s->n_pred_failed++;
    else if (!r->ok)
        status = "degenerate", reason = r->reason, s->n_degenerate++;
    const struct chamfer_opts o = s->opts;
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    jw_object(&j);
    jw_kv_str(&j, "pred", q ? q->path : NULL);
    jw_kv_str(&j, "truth", g ? g->path : NULL);
    jw_kv_str(&j, "status", status);
    jw_kv_str(&j, "reason", reason);
    if (both && !g->failure && !q->failure)
        chamfer_put(&j, &g->part, &q->part, &o, r);
    double box = !reason ? box_error(&g->part, &q->part) : INFINITY;
    if (!reason)
        jw_kv_real(&j, "box_error", box);
    if (s->tells)
        jw_kv_bool(&j, "size_told", told);
    jw_kv_real(&j, "seconds", it->seconds);
    jw_end(&j);
    if (!reason) {
        add_box(s, box, told);
        s->scd[s->n_ok] = r->scd;
        s->scd2[s->n_ok] = r->scd_two_sided;
        s->shape2[s->n_ok++] = o.reference ? r->scd_two_sided : r->best.shape_forward + r->best.shape_backward;
        tool_print(s->tool, "%s: scd %.6g, two-sided %.6g\n", p->name, r->scd, r->scd_two_sided);
    }
    char *why = !reason ? NULL : g && g->failure ? xasprintf("%s: %s (%s)", status, reason, g->path) : xasprintf("%s: %s", status, reason);
    char *input = both ? xasprintf("%s\n%s", g->path, q->path) : NULL;
    int rc = tool_item(s->tool, &(struct run_item){.item = p->name, .state = !reason ? "done" : both ? "failed" : "skipped", .reason = why,
                                                   .seconds = it->seconds, .input = input, .result = line.s});
    free(input);
    if (why && !both)
        log_warn("%s: %s", p->name, why);
    free(why);
    buf_release(&line);
    free(r);
    if (both) {
        let_go(g);
        let_go(q);
    }
    progress_add(1, both && reason);
    return rc;
}

/* What an earlier start of this run found stands, and counts. */
static bool pair_stands(struct scoring *s, const struct match *p)
{
    char *input = xasprintf("%s\n%s", s->source[p->truth].path, s->source[p->pred].path);
    json_t *was = tool_item_earlier(s->tool, p->name, input, NULL);
    free(input);
    if (!was)
        return false;
    const json_t *shape = json_object_get(was, "shape_scd_two_sided");
    add_box(s, json_number_value(json_object_get(was, "box_error")), tells_size(s, p->name));
    s->scd[s->n_ok] = json_number_value(json_object_get(was, "scd"));
    s->scd2[s->n_ok] = json_number_value(json_object_get(was, "scd_two_sided"));
    s->shape2[s->n_ok++] = json_number_value(shape ? shape : json_object_get(was, "scd_two_sided"));
    json_decref(was);
    return true;
}

static int run_batch(struct scoring *s, size_t n)
{
    s->n_load = 0;
    for (size_t i = s->first; i < s->first + n; i++) {
        s->pair[i].stands = matched(&s->pair[i]) && pair_stands(s, &s->pair[i]);
        if (s->pair[i].stands)
            continue;
        size_t of[2] = {s->pair[i].truth, s->pair[i].pred};
        for (int k = 0; k < 2 && matched(&s->pair[i]); k++) {
            bool have = s->source[of[k]].loaded;
            for (size_t l = 0; l < s->n_load && !have; l++)
                have = s->load[l] == of[k];
            if (!have)
                s->load[s->n_load++] = of[k];
        }
    }
    int rc = isolate_run(s->pool, &(struct isolate_batch){.n = s->n_load, .job = make_job, .done = take_part, .ctx = s});
    if (rc < 0)
        return rc;
    struct pool_job job = {.n = n, .threads = s->tool->threads, .work = score_pair, .done = pair_done, .ctx = s};
    return pool_run(&job);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of n_ok numbers and n_failed that count as infinite. */
static double median(double *v, size_t n_ok, size_t n_failed)
{
    size_t n = n_ok + n_failed;
    if (!n)
        return NAN;
    qsort(v, n_ok, sizeof *v, ascending);
    size_t lo = (n - 1) / 2, hi = n / 2;
    return hi < n_ok ? (v[lo] + v[hi]) / 2 : INFINITY;
}

static int summary(struct scoring *s)
{
    size_t failed = s->n_pred_failed + s->n_degenerate + s->n_no_pred;
    const struct {
        const char *name;
        double value;
    } m[] = {
        {"MSCD", median(s->scd, s->n_ok, 0)},
        {"MSCD_two_sided", median(s->scd2, s->n_ok, 0)},
        {"MSCD_shape_two_sided", median(s->shape2, s->n_ok, 0)},
        {"MSCD_failures_infinite", median(s->scd, s->n_ok, failed)},
        {"MSCD_two_sided_failures_infinite", median(s->scd2, s->n_ok, failed)},
        {"box_error", median(s->box, s->n_ok, 0)},
        {"box_error_told", median(s->box_told, s->n_told, 0)},
        {"n_told", (double)s->n_told},
        {"n_total", (double)(s->n_ok + failed + s->n_truth_failed)},
        {"n_ok", (double)s->n_ok},
        {"n_pred_failed", (double)s->n_pred_failed},
        {"n_truth_failed", (double)s->n_truth_failed},
        {"n_degenerate", (double)s->n_degenerate},
        {"n_no_pred", (double)s->n_no_pred},
        {"n_no_truth", (double)s->n_no_truth},
    };
    struct buf line = BUF_INIT;
    struct jw j = JW_INIT(&line);
    int rc = ERR_OK;
    jw_object(&j);
    jw_kv_str(&j, "align", align);
    for (size_t i = 0; i < ARRAY_LEN(m) && rc == ERR_OK; i++) {
        if (!s->tells && strstr(m[i].name, "told"))
            continue;
        if (m[i].name[0] == 'n')
            jw_kv_int(&j, m[i].name, (int64_t)m[i].value);
        else
            jw_kv_real(&j, m[i].name, m[i].value);
        if (isfinite(m[i].value))
            rc = tool_metric(s->tool, 0, m[i].name, m[i].value);
    }
    jw_end(&j);
    tool_json_line(s->tool, line.s);
    buf_release(&line);
    tool_print(s->tool, "MSCD: %.6g one-sided, %.6g two-sided, over %zu pairs; failed: %zu predictions, %zu truths, %zu degenerate; "
               "unmatched: %zu truths, %zu predictions\n", m[0].value, m[1].value, s->n_ok, s->n_pred_failed, s->n_truth_failed,
               s->n_degenerate, s->n_no_pred, s->n_no_truth);
    if (s->tells)
        tool_print(s->tool, "box: median error %.4g, of the %zu parts whose caption tells a size %.4g\n", m[5].value, s->n_told, m[6].value);
    return rc;
}

static int score_files_of(struct scoring *s, const char *truth, const char *pred)
{
    int rc = make_pairs(s, truth, pred);
    if (rc == ERR_OK && captions)
        rc = read_captions(s);
    if (rc < 0)
        return rc;
    s->load = xmalloc(2 * BATCH * sizeof *s->load);
    s->scd = xmalloc(5 * s->n_pairs * sizeof *s->scd);
    s->box = s->scd + 3 * s->n_pairs;
    s->box_told = s->box + s->n_pairs;
    s->scd2 = s->scd + s->n_pairs;
    s->shape2 = s->scd2 + s->n_pairs;
    progress_start("scoring", s->n_pairs, "pairs");
    for (s->first = 0; s->first < s->n_pairs && rc == ERR_OK; s->first += BATCH)
        rc = run_batch(s, s->n_pairs - s->first < BATCH ? s->n_pairs - s->first : BATCH);
    progress_end();
    return rc == ERR_OK ? summary(s) : rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    chamfer_keep_memory();
    struct scoring s = {.tool = &t, .opts = {.reference = !strcmp(align, "reference"), .points = (size_t)points, .threshold = threshold,
                                             .average_scale = !strcmp(scale, "average")}};
    s.request = chamfer_request(&s.opts);
    const char *truth = t.args.n ? t.args.v[0] : truth_arg, *pred = t.args.n > 1 ? t.args.v[1] : pred_arg;
    int rc = ERR_OK;
    if ((t.args.n && (pred_arg || truth_arg)) || t.args.n == 1 || !truth || !pred)
        rc = err_set(ERR_USAGE, "either --pred and --truth, or two files are due: the true one, the generated one");
    else if ((icp_from || aligned_out) && !clouds)
        rc = err_set(ERR_USAGE, "--icp-from and --aligned go with --clouds");
    else if (clouds && t.args.n != 2)
        rc = err_set(ERR_USAGE, "--clouds: two files are due: the true cloud, the generated one");
    if (rc == ERR_OK && !clouds)
        rc = isolate_open(&(struct isolate_opts){.workers = t.threads, .seconds = timeout, .memory = (size_t)memory, .work = occ_work},
                          &s.pool);
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = clouds ? score_clouds(&t) : score_files_of(&s, truth, pred);
    isolate_close(s.pool);
    for (size_t i = 0; i < s.n_sources; i++)
        if (s.source[i].loaded) {
            free(s.source[i].failure);
            part_release(&s.source[i].part);
        }
    free(s.source);
    free(s.pair);
    free(s.load);
    free(s.scd);
    json_decref(s.tells);
    file_list_release(&s.truth_files);
    file_list_release(&s.pred_files);
    return tool_finish(&t, rc);
}
