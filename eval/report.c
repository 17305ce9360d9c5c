/* report: the tables of the paper for the runs in the database, and a page with every part. */
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>
#include <zlib.h>

#include "lib/asset.h"
#include "lib/chart.h"
#include "lib/isolate.h"
#include "lib/part.h"
#include "lib/render.h"
#include "lib/scores.h"
#include "lib/table.h"
#include "lib/tool.h"
#include "shim/occt.h"

static const char *format = "text", *out_file, *which = "all";
static struct opt_list labels;
static bool status;
static int64_t last = 20, curve, resamples = 2000, seed = 3407, n_previews = 200, n_meshes = 100, size = 240, memory = 2000000000;
static double max_mb = 18, timeout = 30;

static struct opt options[] = {
    {.name = "format", .type = OPT_STR, .value = &format, .arg = "FORMAT", .choices = "text|csv|markdown|latex|html",
     .help = "of the tables; html is a page with curves and every part, too"},
    {.name = "out", .type = OPT_STR, .value = &out_file, .arg = "FILE", .help = "write to FILE, not to standard output", .flags = OPT_NO_KEY},
    {.name = "label", .type = OPT_LIST, .value = &labels, .flags = OPT_HIDDEN}, /* here a choice, so the common one is shadowed */
    {.name = "table", .type = OPT_STR, .value = &which, .arg = "WHICH",
     .choices = "all|scores|ablations|missing|distances|failures|entities|loss|training", .help = "only this table"},
    {.name = "status", .type = OPT_FLAG, .value = &status, .help = "what ran, is running or failed, and why"},
    {.name = "last", .type = OPT_INT, .value = &last, .arg = "N", .help = "runs that --status shows", .min = 1, .max = 1e6},
    {.name = "curve", .type = OPT_INT, .value = &curve, .arg = "RUN", .help = "the loss curve of that run alone, as SVG", .min = 0, .max = 9e15},
    {.name = "resamples", .type = OPT_INT, .value = &resamples, .arg = "N", .help = "of the bootstrap", .min = 40, .max = 1e6},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "of the bootstrap"},
    {.name = "parts", .type = OPT_INT, .value = &n_previews, .arg = "N", .help = "html: parts of a label with pictures", .min = 0, .max = 1e6},
    {.name = "meshes", .type = OPT_INT, .value = &n_meshes, .arg = "N", .help = "html: of these, parts that turn in 3D", .min = 0, .max = 1e6},
    {.name = "max-mb", .type = OPT_REAL, .value = &max_mb, .arg = "MB", .help = "html: size of all pictures and meshes", .min = 0, .max = 2000},
    {.name = "size", .type = OPT_INT, .value = &size, .arg = "PIXELS", .help = "html: width of a picture", .min = RENDER_MIN_SIZE, .max = 2000},
    {.name = "timeout", .type = OPT_REAL, .value = &timeout, .arg = "S", .help = "html: seconds a part may take to draw", .min = 0.01, .max = 86400},
    {.name = "memory", .type = OPT_INT, .value = &memory, .arg = "BYTES", .help = "html: memory a part may take", .min = 64e6, .max = 1e13},
    {0},
};

static const struct tool_spec spec = {
    .name = "report",
    .args = "[--format FORMAT] [--out FILE] [--label L]... | --status | --curve RUN --out FILE.svg",
    .summary = "The paper's tables from the run database, with the paper's own figures beside ours.",
    .details = "A row is what the evaluators recorded under one --label; here --label, which may be repeated, shows only\n"
               "those rows.  Numbers are of each tool's newest finished run.\n\n"
               "  report\n"
               "  report --format html --out runs/report.html\n"
               "  report --format latex --table scores --label 'SFT with RAG' --label Text2CAD\n"
               "  report --curve 12 --out curve.svg\n",
    .options = options,
    .flags = TOOL_READS,
};

ASSET(report_css, "eval/report.css");
ASSET(report_js, "eval/report.js");
ASSET(view3d_js, "lib/view3d.js");

struct report {
    struct tool *t;
    sqlite3 *sq;           /* NULL: there is no database */
    enum table_format format;
    struct scores scores;
    struct isolate *pool;
    struct buf out;
};

static int sq_err(const struct report *r)
{
    return err_set(ERR_IO, "%s: %s", r->t->db_path, sqlite3_errmsg(r->sq));
}

static const char *text_at(sqlite3_stmt *s, int i)
{
    const char *t = (const char *)sqlite3_column_text(s, i);
    return t ? t : "";
}

static double real_at(sqlite3_stmt *s, int i)
{
    return sqlite3_column_type(s, i) == SQLITE_NULL ? NAN : sqlite3_column_double(s, i);
}

static bool wanted(const char *table)
{
    return !strcmp(which, "all") || !strcmp(which, table);
}

static bool label_wanted(const char *label)
{
    for (size_t i = 0; i < labels.n; i++)
        if (!strcmp(labels.v[i], label))
            return true;
    return !labels.n;
}

/* A table with nothing in it is left out, unless it was asked for by name. */
static void emit(struct report *r, struct table *t, bool even_empty)
{
    if (table_rows(t) || even_empty) {
        if (r->out.n && r->format != TABLE_JSON)
            buf_putc(&r->out, '\n');
        table_put(t, r->format, &r->out);
    }
    table_free(t);
}

/* ---- the paper ---- */

/* Rows of the paper, as far as its figures are known here (arXiv 2601.12641; NaN: not known), and how to fill
 * them.  A label belongs to a row if it is the row's or begins with it: "SFT with RAG, Qwen". */
static const struct paper_row {
    const char *label, *shown;
    double cr, rr, mscd, aec;
    const char *command; /* %s: the label */
} paper[] = {
    {"ground truth", "ground truth", NAN, NAN, NAN, 265.64, "make eval PARTS=datasets/work/abc/truth LABEL='%s'"},
    {"Text2CAD", "Text2CAD", NAN, 98.38, 3.99, 390.41, "make eval PARTS=DIR-OF-ITS-PARTS LABEL='%s'"},
    {"SFT with RAG", "STEP-LLM, SFT with RAG", 97.00, 95.18, 0.53, 240.99, "make train MODEL=qwen && make eval CKPT=runs/qwen LABEL='%s'"},
    {"SFT with RAG, Qwen", "STEP-LLM on Qwen2.5-3B, SFT with RAG", NAN, NAN, NAN, NAN, "make train MODEL=qwen && make eval CKPT=runs/qwen LABEL='%s'"},
    {"SFT with RAG, Llama", "STEP-LLM on Llama-3.2-3B, SFT with RAG", NAN, NAN, NAN, NAN, "make train MODEL=llama && make eval CKPT=runs/llama LABEL='%s'"},
    {"SFT without RAG", "STEP-LLM, SFT without RAG", NAN, NAN, NAN, NAN, "make train MODEL=qwen OUT=runs/no-rag ARGS='-o rag=false' && make eval CKPT=runs/no-rag LABEL='%s'"},
    {"SFT without DFS", "STEP-LLM, SFT without DFS", NAN, NAN, NAN, NAN, "make data NAME=no-dfs ORDER=original && make train MODEL=qwen DATA=datasets/work/no-dfs OUT=runs/no-dfs && make eval CKPT=runs/no-dfs DATA=datasets/work/no-dfs LABEL='%s'"},
    {"GRPO", "STEP-LLM, GRPO", 99.00, 92.00, 0.098, NAN, "make eval CKPT=ADAPTER-OF-GRPO LABEL='%s'"},
};

static bool belongs(const char *label, const struct paper_row *p)
{
    size_t n = strlen(p->label);
    return !strncasecmp(label, p->label, n) && (!label[n] || strchr(" ,;:(/-_", label[n]));
}

/* The row of the paper that a label fills: the one that says most of it; NULL: none. */
static const struct paper_row *row_of(const char *label)
{
    const struct paper_row *best = NULL;
    for (size_t i = 0; i < ARRAY_LEN(paper); i++)
        if (belongs(label, &paper[i]) && (!best || strlen(paper[i].label) > strlen(best->label)))
            best = &paper[i];
    return best;
}

/* Rows of scripts/ablation.sh: its name of a row, and the label. */
static const char *const ablations[][2] = {
    {"named", "children first"}, {"retrieval", "children first, with retrieval"}, {"parent", "parents first"},
    {"bare", "children first, no annotations"}, {"compact", "children first, compact"}, {"lean-tokens", "compact, no annotations, lean tokens"},
    {"geometry-first", "compact, no annotations, lean tokens, geometry first"}, {"shipped", "compact, geometry first, points as differences"},
    {"native", "OpenCASCADE's file, its order"}, {"native-children", "OpenCASCADE's file, children first"},
    {"native-reference", "OpenCASCADE's file, children first, reference rounding"},
};

static bool is_ablation(const char *label)
{
    for (size_t i = 0; i < ARRAY_LEN(ablations); i++)
        if (!strcmp(ablations[i][1], label))
            return true;
    return false;
}

/* ---- tables of scores ---- */

static const char *way(const struct score_row *s)
{
    return s->reference ? "reference" : "strict";
}

static void add_score_row(struct table *t, const struct score_row *s)
{
    table_row(t, "ours");
    table_text(t, "%s", s->label);
    table_text(t, "%s", way(s));
    table_interval(t, &s->cr, 100);
    table_interval(t, &s->rr, 100);
    table_interval(t, &s->mscd, 1);
    table_interval(t, &s->mscd_worst, 1);
    table_interval(t, &s->aec, 1);
    if (s->cr.n == s->rr.n && s->cr.n == s->mscd.n && s->cr.n == s->aec.n)
        table_text(t, "%zu", s->cr.n);
    else
        table_text(t, "%zu/%zu/%zu/%zu", s->cr.n, s->rr.n, s->mscd.n, s->aec.n);
}

static void add_paper_row(struct table *t, const struct paper_row *p)
{
    const double v[] = {p->cr, p->rr, p->mscd, NAN, p->aec};
    bool known = !(isnan(p->cr) && isnan(p->rr) && isnan(p->mscd) && isnan(p->aec));
    table_row(t, "paper");
    table_text(t, "%s", p->shown);
    table_text(t, known ? "reported in the paper" : "in the paper, figures not kept here");
    for (size_t i = 0; i < ARRAY_LEN(v); i++)
        table_interval(t, &(struct stats_interval){v[i], NAN, NAN, 0}, 1);
}

static void scores_notes(const struct report *r, struct table *t)
{
    table_note(t, "CR complete ratio, RR renderability rate, MSCD median scaled Chamfer distance (one-sided), AEC average entity count.");
    if (!r->scores.n) {
        table_note(t, "%s: no evaluation with a label is recorded there yet; make eval CKPT=... LABEL=... makes a row.", r->t->db_path);
        return;
    }
    table_note(t, "In brackets 95 %% bootstrap intervals (%lld resamples, seed %lld; Wilson's where all or none succeed).",
               (long long)resamples, (long long)seed);
    table_note(t, "MSCD is over the pairs that have a distance; in 'failed = worst' every failed or missing part counts as infinitely far.");
    table_note(t, "N: parts behind CR/RR/MSCD/AEC.  'reference' is scored as the original does, to compare with the paper; 'strict' as is right.");
    for (size_t i = 0; i < r->scores.n; i++) {
        const struct score_row *s = &r->scores.v[i];
        if (s->pred_failed + s->pred_missing + s->truth_failed + s->truth_missing)
            table_note(t, "%s (%s): no distance for %zu failed and %zu missing parts (worst), %zu unreadable and %zu missing truths (left out).",
                       s->label, way(s), s->pred_failed, s->pred_missing, s->truth_failed, s->truth_missing);
        if (s->shards_missing)
            table_note(t, "%s (%s): %zu shards are not finished, and their parts not in these numbers.", s->label, way(s), s->shards_missing);
        if (s->unread)
            table_note(t, "%s (%s): %zu files could not be read and are not in CR.", s->label, way(s), s->unread);
        if (s->unparsed)
            table_note(t, "%s (%s): %zu files could not be parsed and are not in AEC.", s->label, way(s), s->unparsed);
    }
    for (size_t i = 0; i < r->scores.n_labels; i++)
        if (r->scores.label[i].not_generated)
            table_note(t, "%s: %zu captions gave no file at all (see report --status); CR, RR and AEC are over the files there are.",
                       r->scores.label[i].label, r->scores.label[i].not_generated);
}

static struct table *score_table(const char *name, const char *title)
{
    static const struct table_column columns[] = {
        {"method", "method", TABLE_TEXT_CELLS, 0}, {"scored", "scored", TABLE_TEXT_CELLS, 0}, {"cr", "CR %", TABLE_INTERVAL, 2},
        {"rr", "RR %", TABLE_INTERVAL, 2}, {"mscd", "MSCD", TABLE_INTERVAL, -3}, {"mscd_failed_worst", "failed = worst", TABLE_INTERVAL, -3},
        {"aec", "AEC", TABLE_INTERVAL, 2}, {"n", "N", TABLE_TEXT_CELLS, 0}};
    return table_new(name, title, columns, ARRAY_LEN(columns));
}

static void table_scores(struct report *r)
{
    struct table *t = score_table("scores", "Scores");
    for (size_t p = 0; p < ARRAY_LEN(paper); p++) {
        add_paper_row(t, &paper[p]);
        for (size_t i = 0; i < r->scores.n; i++)
            if (row_of(r->scores.v[i].label) == &paper[p])
                add_score_row(t, &r->scores.v[i]);
    }
    for (size_t i = 0; i < r->scores.n; i++)
        if (!row_of(r->scores.v[i].label) && !is_ablation(r->scores.v[i].label))
            add_score_row(t, &r->scores.v[i]);
    scores_notes(r, t);
    emit(r, t, true);
}

static void table_ablations(struct report *r)
{
    struct table *t = score_table("ablations", "Ablations: small models that differ in one thing (scripts/ablation.sh)");
    for (size_t k = 0; k < ARRAY_LEN(ablations); k++)
        for (size_t i = 0; i < r->scores.n; i++)
            if (!strcmp(r->scores.v[i].label, ablations[k][1]))
                add_score_row(t, &r->scores.v[i]);
    emit(r, t, !strcmp(which, "ablations"));
}

/* Rows of the paper that no label fills, and labels that lack a tool's run. */
static void table_missing(struct report *r)
{
    static const struct table_column columns[] = {{"method", "method", TABLE_TEXT_CELLS, 0}, {"lacks", "lacks", TABLE_TEXT_CELLS, 0},
                                                  {"command", "command that would fill it", TABLE_TEXT_CELLS, 0}};
    static const char *const args[SCORE_TOOLS] = {"DIR", "DIR", "--pred DIR --truth DIR", "DIR"};
    struct table *t = table_new("missing", "Not measured yet", columns, ARRAY_LEN(columns));
    for (size_t p = 0; p < ARRAY_LEN(paper) && !labels.n; p++) {
        bool have = false;
        for (size_t i = 0; i < r->scores.n; i++)
            have |= row_of(r->scores.v[i].label) == &paper[p];
        if (have)
            continue;
        const char *mark = strstr(paper[p].command, "%s");
        char *command = xasprintf("%.*s%s%s", (int)(mark - paper[p].command), paper[p].command, paper[p].label, mark + 2);
        table_row(t, "");
        table_text(t, "%s", paper[p].shown);
        table_text(t, "all");
        table_text(t, "%s", command);
        free(command);
    }
    for (size_t k = 0; k < ARRAY_LEN(ablations) && !labels.n; k++) {
        bool have = false;
        for (size_t i = 0; i < r->scores.n; i++)
            have |= !strcmp(r->scores.v[i].label, ablations[k][1]);
        if (have)
            continue;
        table_row(t, "");
        table_text(t, "ablation: %s", ablations[k][1]);
        table_text(t, "all");
        table_text(t, "ROWS=%s DB=%s scripts/ablation.sh", ablations[k][0], r->t->db_path);
    }
    for (size_t l = 0; l < r->scores.n_labels; l++) {
        const char *label = r->scores.label[l].label;
        bool have[SCORE_TOOLS] = {false};
        for (size_t i = 0; i < r->scores.n; i++)
            for (int k = 0; k < SCORE_TOOLS; k++)
                have[k] |= !strcmp(r->scores.v[i].label, label) && r->scores.v[i].run[k];
        for (int k = 0; k < SCORE_TOOLS; k++) {
            /* The true parts have nothing to be compared with. */
            if (have[k] || (k == SCORE_CD && belongs(label, &paper[0])))
                continue;
            table_row(t, "");
            table_text(t, "%s", label);
            table_text(t, "%s", score_tools[k]);
            table_text(t, "build/bin/%s --label '%s' %s", score_tools[k], label, args[k]);
        }
    }
    emit(r, t, !strcmp(which, "missing"));
}

static void table_distances(struct report *r)
{
    static const struct table_column columns[] = {
        {"method", "method", TABLE_TEXT_CELLS, 0}, {"scored", "scored", TABLE_TEXT_CELLS, 0},
        {"one_sided", "one-sided", TABLE_INTERVAL, -3}, {"one_sided_failed_worst", "failed = worst", TABLE_INTERVAL, -3},
        {"two_sided", "two-sided", TABLE_INTERVAL, -3}, {"two_sided_failed_worst", "failed = worst", TABLE_INTERVAL, -3},
        {"f_score", "mean F-score", TABLE_INTERVAL, 3}, {"pairs", "pairs", TABLE_NUMBER, 0}, {"failed", "failed", TABLE_NUMBER, 0},
        {"missing", "missing", TABLE_NUMBER, 0}, {"no_truth", "no truth", TABLE_NUMBER, 0}};
    struct table *t = table_new("distances", "Distances: medians of the scaled Chamfer distance", columns, ARRAY_LEN(columns));
    for (size_t i = 0; i < r->scores.n; i++) {
        const struct score_row *s = &r->scores.v[i];
        if (!s->run[SCORE_CD])
            continue;
        table_row(t, "");
        table_text(t, "%s", s->label);
        table_text(t, s->reference ? "reference" : "best alignment");
        table_interval(t, &s->mscd, 1);
        table_interval(t, &s->mscd_worst, 1);
        table_interval(t, &s->mscd2, 1);
        table_interval(t, &s->mscd2_worst, 1);
        table_interval(t, &s->f_score, 1);
        table_number(t, (double)s->mscd.n);
        table_number(t, (double)s->pred_failed);
        table_number(t, (double)s->pred_missing);
        table_number(t, (double)(s->truth_failed + s->truth_missing));
    }
    table_note(t, "One-sided looks from the truth to the generated part alone, as the original does; two-sided adds the way back, "
                  "so that extra material counts.");
    emit(r, t, !strcmp(which, "distances"));
}

static void table_failures(struct report *r)
{
    static const struct table_column columns[] = {
        {"method", "method", TABLE_TEXT_CELLS, 0}, {"scored", "scored", TABLE_TEXT_CELLS, 0}, {"tool", "tool", TABLE_TEXT_CELLS, 0},
        {"reason", "reason", TABLE_TEXT_CELLS, 0}, {"n", "parts", TABLE_NUMBER, 0}};
    enum { MOST = 12 };
    struct table *t = table_new("failures", "Failures by reason", columns, ARRAY_LEN(columns));
    for (size_t i = 0; i < r->scores.n; i++) {
        const struct score_row *s = &r->scores.v[i];
        size_t of_tool = 0, rest = 0;
        for (size_t k = 0; k < s->n_reasons; k++) {
            const struct score_reason *e = &s->reason[k];
            bool ends = k + 1 == s->n_reasons || e[1].tool != e->tool;
            of_tool = k && e[-1].tool == e->tool ? of_tool + 1 : 1;
            if (of_tool <= MOST) {
                table_row(t, "");
                table_text(t, "%s", s->label);
                table_text(t, "%s", way(s));
                table_text(t, "%s", score_tools[e->tool]);
                table_text(t, "%s", e->reason);
                table_number(t, (double)e->n);
            } else {
                rest += e->n;
            }
            if (ends && rest) {
                table_row(t, "");
                table_text(t, "%s", s->label);
                table_text(t, "%s", way(s));
                table_text(t, "%s", score_tools[e->tool]);
                table_text(t, "other reasons");
                table_number(t, (double)rest);
                rest = 0;
            }
        }
    }
    emit(r, t, !strcmp(which, "failures"));
}

static void table_entities(struct report *r)
{
    static const struct table_column columns[] = {
        {"method", "method", TABLE_TEXT_CELLS, 0}, {"scored", "scored", TABLE_TEXT_CELLS, 0}, {"n", "files", TABLE_NUMBER, 0},
        {"median", "median", TABLE_NUMBER, 1}, {"below_100", "<100 %", TABLE_NUMBER, 1}, {"to_200", "100-200 %", TABLE_NUMBER, 1},
        {"to_300", "200-300 %", TABLE_NUMBER, 1}, {"to_400", "300-400 %", TABLE_NUMBER, 1}, {"to_500", "400-500 %", TABLE_NUMBER, 1},
        {"above_500", ">500 %", TABLE_NUMBER, 1}};
    struct table *t = table_new("entities", "Entity classes: share of files by their number of entities", columns, ARRAY_LEN(columns));
    for (size_t i = 0; i < r->scores.n; i++) {
        const struct score_row *s = &r->scores.v[i];
        size_t in[6] = {0};
        if (!s->aec.n)
            continue;
        for (size_t k = 0; k < s->aec.n; k++)
            in[s->entities[k] >= 500 ? 5 : (size_t)(s->entities[k] / 100)]++;
        table_row(t, "");
        table_text(t, "%s", s->label);
        table_text(t, "%s", way(s));
        table_number(t, (double)s->aec.n);
        table_number(t, stats_median(s->entities, s->aec.n));
        for (size_t k = 0; k < ARRAY_LEN(in); k++)
            table_number(t, 100 * (double)in[k] / (double)s->aec.n);
    }
    emit(r, t, !strcmp(which, "entities"));
}

/* ---- losses ---- */

/* The number at a checkpoint's name's end ("checkpoint-300"); NaN if there is none. */
static double step_of(const char *name)
{
    size_t n = strlen(name), from = n;
    while (from && name[from - 1] >= '0' && name[from - 1] <= '9')
        from--;
    return from < n ? strtod(name + from, NULL) : NAN;
}

static int table_loss(struct report *r)
{
    static const struct table_column columns[] = {
        {"run", "run", TABLE_NUMBER, 0}, {"label", "label", TABLE_TEXT_CELLS, 0}, {"checkpoint", "checkpoint", TABLE_TEXT_CELLS, 0},
        {"step", "step", TABLE_NUMBER, 0}, {"loss", "loss", TABLE_NUMBER, 4}, {"tokens", "tokens", TABLE_NUMBER, 0},
        {"state", "state", TABLE_TEXT_CELLS, 0}};
    static const char sql[] =
        "SELECT runs.id,label,CASE WHEN json_valid(result) THEN coalesce(json_extract(result,'$.checkpoint'),item) ELSE item END,"
        "CASE WHEN json_valid(result) THEN json_extract(result,'$.loss') END,"
        "CASE WHEN json_valid(result) THEN json_extract(result,'$.tokens') END,items.state,reason"
        " FROM runs JOIN items ON run_id=runs.id WHERE tool='eval-loss' ORDER BY runs.id,length(item),item";
    struct table *t = table_new("loss", "Loss on held-out data by checkpoint", columns, ARRAY_LEN(columns));
    sqlite3_stmt *s = NULL;
    int sq = r->sq ? sqlite3_prepare_v2(r->sq, sql, -1, &s, NULL) : SQLITE_DONE;
    while (sq == SQLITE_OK && (sq = sqlite3_step(s)) == SQLITE_ROW) {
        sq = SQLITE_OK;
        if (!label_wanted(text_at(s, 1)))
            continue;
        table_row(t, "");
        table_number(t, sqlite3_column_double(s, 0));
        table_text(t, "%s", text_at(s, 1));
        table_text(t, "%s", text_at(s, 2));
        table_number(t, step_of(text_at(s, 2)));
        table_number(t, real_at(s, 3));
        table_number(t, real_at(s, 4));
        table_text(t, *text_at(s, 6) ? "%s: %s" : "%s", text_at(s, 5), text_at(s, 6));
    }
    sqlite3_finalize(s);
    emit(r, t, !strcmp(which, "loss"));
    return sq == SQLITE_DONE ? ERR_OK : sq_err(r);
}

/* ---- training runs and their curves ---- */

struct series {
    double *step, *value;
    size_t n, cap;
};

static int read_series(const struct report *r, int64_t run, const char *name, struct series *out)
{
    sqlite3_stmt *s = NULL;
    int sq = sqlite3_prepare_v2(r->sq, "SELECT step,value FROM metrics WHERE run_id=? AND name=? ORDER BY step", -1, &s, NULL);
    memset(out, 0, sizeof *out);
    sqlite3_bind_int64(s, 1, run);
    sqlite3_bind_text(s, 2, name, -1, SQLITE_STATIC);
    while (sq == SQLITE_OK && (sq = sqlite3_step(s)) == SQLITE_ROW) {
        sq = SQLITE_OK;
        size_t cap = out->cap;
        ARRAY_GROW(out->step, cap, out->n + 1);
        ARRAY_GROW(out->value, out->cap, out->n + 1);
        out->step[out->n] = sqlite3_column_double(s, 0);
        out->value[out->n++] = real_at(s, 1);
    }
    sqlite3_finalize(s);
    return sq == SQLITE_DONE ? ERR_OK : sq_err(r);
}

static void series_release(struct series *s)
{
    free(s->step);
    free(s->value);
}

static int table_training(struct report *r)
{
    static const struct table_column columns[] = {
        {"run", "run", TABLE_NUMBER, 0}, {"label", "label", TABLE_TEXT_CELLS, 0}, {"state", "state", TABLE_TEXT_CELLS, 0},
        {"steps", "steps", TABLE_NUMBER, 0}, {"loss", "last loss", TABLE_NUMBER, 4}, {"loss_val", "last validation loss", TABLE_NUMBER, 4},
        {"loss_val_least", "least", TABLE_NUMBER, 4}, {"tokens_per_s", "tokens/s", TABLE_NUMBER, 0}, {"adapter", "adapter", TABLE_TEXT_CELLS, 0}};
    static const char sql[] =
        "SELECT id,label,state,(SELECT max(step) FROM metrics WHERE run_id=id AND name='loss'),"
        "(SELECT value FROM metrics WHERE run_id=id AND name='loss' ORDER BY step DESC LIMIT 1),"
        "(SELECT value FROM metrics WHERE run_id=id AND name='loss_val' ORDER BY step DESC LIMIT 1),"
        "(SELECT min(value) FROM metrics WHERE run_id=id AND name='loss_val'),"
        "(SELECT avg(value) FROM metrics WHERE run_id=id AND name='tokens_per_s'),"
        "(SELECT path FROM artifacts WHERE run_id=id AND kind='adapter' ORDER BY created DESC LIMIT 1)"
        " FROM runs WHERE tool='sft' ORDER BY id";
    struct table *t = table_new("training", "Training", columns, ARRAY_LEN(columns));
    sqlite3_stmt *s = NULL;
    int sq = r->sq ? sqlite3_prepare_v2(r->sq, sql, -1, &s, NULL) : SQLITE_DONE;
    while (sq == SQLITE_OK && (sq = sqlite3_step(s)) == SQLITE_ROW) {
        sq = SQLITE_OK;
        if (!label_wanted(text_at(s, 1)))
            continue;
        table_row(t, "");
        table_number(t, sqlite3_column_double(s, 0));
        table_text(t, "%s", text_at(s, 1));
        table_text(t, "%s", text_at(s, 2));
        for (int k = 3; k < 8; k++)
            table_number(t, real_at(s, k));
        table_text(t, "%s", text_at(s, 8));
    }
    sqlite3_finalize(s);
    emit(r, t, !strcmp(which, "training"));
    return sq == SQLITE_DONE ? ERR_OK : sq_err(r);
}

/* Loss of training, as logged and smoothed, and of validation. */
static int put_loss_curve(struct report *r, int64_t run, const char *title)
{
    struct series train = {0}, val = {0};
    int rc = read_series(r, run, "loss", &train);
    if (rc == ERR_OK)
        rc = read_series(r, run, "loss_val", &val);
    double *smooth = xcalloc(train.n + 1, sizeof *smooth);
    chart_smooth(train.value, train.n, 1 - 1 / fmax(2, (double)train.n / 30), smooth);
    const struct chart_series s[] = {
        {.name = "training", .colour = "#2563eb", .x = train.step, .y = train.value, .n = train.n, .thin = true},
        {.name = "smoothed", .colour = "#2563eb", .x = train.step, .y = smooth, .n = train.n},
        {.name = "validation", .colour = "#ea580c", .x = val.step, .y = val.value, .n = val.n, .dots = val.n < 60},
    };
    if (rc == ERR_OK)
        chart_svg(&(struct chart){.title = title, .x_label = "step", .y_label = "loss per token", .series = s, .n = ARRAY_LEN(s)}, &r->out);
    free(smooth);
    series_release(&train);
    series_release(&val);
    return rc;
}

static int put_small_curve(struct report *r, int64_t run, const char *metric, const char *title)
{
    struct series v;
    int rc = read_series(r, run, metric, &v);
    if (rc == ERR_OK && v.n > 1) {
        const struct chart_series s = {.colour = "#475569", .x = v.step, .y = v.value, .n = v.n};
        chart_svg(&(struct chart){.title = title, .x_label = "step", .width = 380, .height = 220, .series = &s, .n = 1}, &r->out);
    }
    series_release(&v);
    return rc;
}

static int curve_alone(struct report *r)
{
    sqlite3_stmt *s = NULL;
    if (!r->sq)
        return err_set(ERR_IO, "%s: no run database here", r->t->db_path);
    if (sqlite3_prepare_v2(r->sq, "SELECT tool,label,(SELECT count(*) FROM metrics WHERE run_id=id AND name='loss') FROM runs WHERE id=?", -1,
                           &s, NULL) != SQLITE_OK)
        return sq_err(r);
    sqlite3_bind_int64(s, 1, curve);
    int rc = ERR_OK;
    if (sqlite3_step(s) != SQLITE_ROW) {
        rc = err_set(ERR_IO, "%s: there is no run %lld (see report --status)", r->t->db_path, (long long)curve);
    } else if (!sqlite3_column_int64(s, 2)) {
        rc = err_set(ERR_IO, "%s: run %lld (%s) has recorded no loss", r->t->db_path, (long long)curve, text_at(s, 0));
    } else {
        char *title = xasprintf("%s, run %lld%s%s", text_at(s, 0), (long long)curve, *text_at(s, 1) ? ": " : "", text_at(s, 1));
        rc = put_loss_curve(r, curve, title);
        free(title);
    }
    sqlite3_finalize(s);
    return rc;
}

static int put_curves(struct report *r)
{
    enum { MOST = 8 };
    sqlite3_stmt *s = NULL;
    int rc = ERR_OK, sq = sqlite3_prepare_v2(r->sq, "SELECT id,label,state,tool FROM runs WHERE tool IN ('sft','eval-loss') AND id IN"
                                             "(SELECT run_id FROM metrics WHERE name='loss' GROUP BY run_id HAVING tool='sft' OR count(*)>1) ORDER BY id DESC", -1, &s, NULL);
    int n = 0;
    while (sq == SQLITE_OK && rc == ERR_OK && n < MOST && (sq = sqlite3_step(s)) == SQLITE_ROW) {
        sq = SQLITE_OK;
        if (!label_wanted(text_at(s, 1)))
            continue;
        int64_t run = sqlite3_column_int64(s, 0);
        char *title = xasprintf("%s %lld%s%s (%s)", strcmp(text_at(s, 3), "sft") ? "Held-out loss by checkpoint, run" : "Run", (long long)run, *text_at(s, 1) ? ": " : "", text_at(s, 1), text_at(s, 2));
        buf_puts(&r->out, n++ ? "<div class=\"charts\">\n" : "<section id=\"curves\"><h2>Training curves</h2>\n<div class=\"charts\">\n");
        rc = put_loss_curve(r, run, title);
        if (rc == ERR_OK)
            rc = put_small_curve(r, run, "lr", "learning rate");
        if (rc == ERR_OK)
            rc = put_small_curve(r, run, "grad_norm", "norm of the gradient");
        if (rc == ERR_OK)
            rc = put_small_curve(r, run, "tokens_per_s", "tokens/s");
        buf_puts(&r->out, "</div>\n");
        free(title);
    }
    if (n)
        buf_puts(&r->out, "</section>\n");
    if (rc == ERR_OK && sq != SQLITE_OK && sq != SQLITE_DONE)
        rc = sq_err(r);
    sqlite3_finalize(s);
    return rc;
}

/* ---- status ---- */

static const char *local_time(char out[32], double t)
{
    time_t whole = (time_t)t;
    struct tm tm;
    if (!localtime_r(&whole, &tm) || !strftime(out, 32, "%Y-%m-%d %H:%M", &tm))
        strcpy(out, "?");
    return out;
}

/* Why the last failed item of a run failed; fresh memory, NULL if none. */
static char *last_failure(const struct report *r, int64_t run)
{
    sqlite3_stmt *s = NULL;
    char *out = NULL;
    sqlite3_prepare_v2(r->sq, "SELECT item,reason FROM items WHERE run_id=? AND state='failed' ORDER BY attempt DESC LIMIT 1", -1, &s, NULL);
    sqlite3_bind_int64(s, 1, run);
    if (s && sqlite3_step(s) == SQLITE_ROW)
        out = xasprintf("%s: %s", path_basename(text_at(s, 0)), text_at(s, 1));
    sqlite3_finalize(s);
    return out;
}

/* What tells runs of one tool apart: the label or else the output, and whether they scored as the original does. */
static char *what_of(const char *label, const char *config)
{
    char *out = NULL;
    bool reference = false;
    for (const char *line = config; *line;) {
        size_t n = strcspn(line, "\n");
        if (!*label && !out && n > 7 && !strncmp(line, "out = \"", 7) && line[7] != '"')
            out = xstrndup(line + 7, n - 8);
        reference |= n > 14 && !strncmp(line + n - 14, " = \"reference\"", 14);
        line += n + (line[n] == '\n');
    }
    char *what = xasprintf("%s%s", *label ? label : out ? out : "", reference ? ", reference" : "");
    free(out);
    return what;
}

static int table_status(struct report *r, int64_t n_runs)
{
    static const struct table_column columns[] = {
        {"run", "run", TABLE_NUMBER, 0}, {"tool", "tool", TABLE_TEXT_CELLS, 0}, {"label", "label or output", TABLE_TEXT_CELLS, 0},
        {"state", "state", TABLE_TEXT_CELLS, 0}, {"done", "done", TABLE_NUMBER, 0}, {"failed", "failed", TABLE_NUMBER, 0},
        {"skipped", "skipped", TABLE_NUMBER, 0}, {"started", "started", TABLE_TEXT_CELLS, 0}, {"took", "took", TABLE_TEXT_CELLS, 0},
        {"note", "note", TABLE_TEXT_CELLS, 0}};
    static const char sql[] =
        "SELECT id,tool,label,state,host,pid,started,ended,heartbeat,error,argv,cwd,attempts,"
        "(SELECT count(*) FROM items WHERE run_id=id AND state='done'),(SELECT count(*) FROM items WHERE run_id=id AND state='failed'),"
        "(SELECT count(*) FROM items WHERE run_id=id AND state='skipped'),"
        "(SELECT max(step) FROM metrics WHERE run_id=id AND step>0),config FROM runs ORDER BY id DESC LIMIT ?";
    struct table *t = table_new("status", "Runs, newest first", columns, ARRAY_LEN(columns));
    sqlite3_stmt *s = NULL;
    int sq = r->sq ? sqlite3_prepare_v2(r->sq, sql, -1, &s, NULL) : SQLITE_DONE;
    size_t n_running = 0, n_broken = 0;
    if (sq == SQLITE_OK)
        sqlite3_bind_int64(s, 1, n_runs);
    while (sq == SQLITE_OK && (sq = sqlite3_step(s)) == SQLITE_ROW) {
        sq = SQLITE_OK;
        if (!label_wanted(text_at(s, 2)))
            continue;
        char when[32], took[32];
        int64_t run = sqlite3_column_int64(s, 0), n_failed = sqlite3_column_int64(s, 14);
        const char *state = text_at(s, 3), *error = text_at(s, 9);
        double started = sqlite3_column_double(s, 6), ended = real_at(s, 7), beat = sqlite3_column_double(s, 8);
        bool running = !strcmp(state, "running");
        if (running && !rundb_alive(text_at(s, 1), text_at(s, 4), sqlite3_column_int64(s, 5), beat))
            state = "interrupted";
        running = !strcmp(state, "running");
        n_running += running;
        double until = !isnan(ended) ? ended : running ? wall_clock_s() : beat;
        struct buf why = BUF_INIT;
        if (*error)
            buf_puts(&why, error);
        else if (!strcmp(state, "interrupted"))
            buf_printf(&why, "process %lld on %s is gone", (long long)sqlite3_column_int64(s, 5), text_at(s, 4));
        char *item = n_failed ? last_failure(r, run) : NULL;
        if (item)
            buf_printf(&why, "%s%s", why.n ? "; such as " : "", item);
        if (sqlite3_column_int(s, 16) > 0)
            buf_printf(&why, "%sat step %lld", why.n ? "; " : "", (long long)sqlite3_column_int64(s, 16));
        free(item);
        char *what = what_of(text_at(s, 2), text_at(s, 17));
        table_row(t, state);
        table_number(t, (double)run);
        table_text(t, "%s", text_at(s, 1));
        table_text(t, "%s", what);
        free(what);
        table_text(t, "%s", state);
        for (int k = 13; k < 16; k++)
            table_number(t, sqlite3_column_double(s, k));
        table_text(t, "%s", local_time(when, started));
        table_text(t, "%s", human_seconds(took, until > started ? until - started : 0));
        table_text(t, "%s", why.s);
        buf_release(&why);
        if (strcmp(state, "done") && !running && ++n_broken <= 5)
            table_note(t, "run %lld goes on with:  %s", (long long)run, text_at(s, 10));
    }
    sqlite3_finalize(s);
    if (!table_rows(t))
        table_note(t, "%s: nothing has run yet; make demo, or make data, make train and make eval, fill it.", r->t->db_path);
    emit(r, t, true);
    return sq == SQLITE_DONE ? ERR_OK : sq_err(r);
}

/* ---- drawing parts, in worker processes ---- */

/* A mesh for the page, before zlib; numbers are little-endian:
 *   float32 min x, y, z and step: a coordinate is min + q * step;
 *   uint32 number of points, triangles, lines, points of lines;
 *   uint16 q of the points, all x, then all y, then all z; point numbers of the triangles, three each;
 *   where each line ends among the points of lines; q of those points.
 * Each run of uint16 is written as differences to the one before, modulo 2^16, which zlib packs better. */
enum { MESH_MOST = 65535 };

static void put_deltas(struct buf *out, const uint16_t *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t d = (uint16_t)(v[i] - (i ? v[i - 1] : 0));
        buf_putc(out, (char)(d & 255));
        buf_putc(out, (char)(d >> 8));
    }
}

static void put_points(struct buf *out, const double *p, size_t n, const double min[3], double step)
{
    uint16_t *q = xmalloc((n + 1) * sizeof *q);
    for (int k = 0; k < 3; k++) {
        for (size_t i = 0; i < n; i++)
            q[i] = (uint16_t)fmin(MESH_MOST, fmax(0, round((p[3 * i + (size_t)k] - min[k]) / step)));
        put_deltas(out, q, n);
    }
    free(q);
}

/* Empty if the mesh is too large for the format. */
static void pack_mesh(const struct part_mesh *m, struct buf *out)
{
    if (m->n_points > MESH_MOST || m->n_triangles > MESH_MOST || m->n_edge_points > MESH_MOST)
        return;
    double min[3] = {INFINITY, INFINITY, INFINITY}, max[3] = {-INFINITY, -INFINITY, -INFINITY};
    for (size_t i = 0; i < 3 * m->n_points; i++) {
        min[i % 3] = fmin(min[i % 3], m->points[i]);
        max[i % 3] = fmax(max[i % 3], m->points[i]);
    }
    double widest = fmax(max[0] - min[0], fmax(max[1] - min[1], max[2] - min[2])), step = widest > 0 ? widest / MESH_MOST : 1;
    const float head[4] = {(float)min[0], (float)min[1], (float)min[2], (float)step};
    const uint32_t counts[4] = {(uint32_t)m->n_points, (uint32_t)m->n_triangles, (uint32_t)m->n_edges, (uint32_t)m->n_edge_points};
    struct buf raw = BUF_INIT;
    buf_add(&raw, head, sizeof head);
    buf_add(&raw, counts, sizeof counts);
    put_points(&raw, m->points, m->n_points, min, step);
    size_t n = 3 * m->n_triangles > m->n_edges ? 3 * m->n_triangles : m->n_edges;
    uint16_t *v = xmalloc((n + 1) * sizeof *v);
    for (size_t i = 0; i < 3 * m->n_triangles; i++)
        v[i] = (uint16_t)m->triangles[i];
    put_deltas(&raw, v, 3 * m->n_triangles);
    for (size_t i = 0; i < m->n_edges; i++)
        v[i] = (uint16_t)m->edge[i + 1];
    put_deltas(&raw, v, m->n_edges);
    put_points(&raw, m->edge_points, m->n_edge_points, min, step);
    free(v);
    uLongf room = compressBound(raw.n);
    buf_grow(out, room);
    if (compress2((Bytef *)out->s + out->n, &room, (const Bytef *)raw.s, raw.n, 9) == Z_OK) {
        out->n += room;
        out->s[out->n] = 0;
    }
    buf_release(&raw);
}

/* In the worker.  The result: the length of the picture, the picture, the mesh. */
static int draw(void *ctx, const char *path, size_t path_n, struct buf *to)
{
    (void)ctx;
    char *name = xstrndup(path, path_n);
    struct part_request q = {.flags = PART_MESH | PART_EDGES, .deflection = 0.002, .relative = true, .angle = 0.3};
    struct part p;
    struct buf png = BUF_INIT;
    int rc = occ_load(name, NULL, 0, &q, &p);
    if (rc == ERR_OK && p.status != PART_OK)
        rc = err_set(ERR_FORMAT, "%s", p.status == PART_EXCEPTION ? p.reason : part_status_name(p.status));
    struct render_mesh m = {.points = p.mesh.points, .n_points = p.mesh.n_points, .triangles = p.mesh.triangles,
                            .n_triangles = p.mesh.n_triangles, .edge_points = p.mesh.edge_points,
                            .edge_starts = p.mesh.edge, .n_edges = p.mesh.n_edges};
    if (rc == ERR_OK)
        rc = render_png_mem(&m, &render_views[0], (int)size, &png);
    if (rc == ERR_OK) {
        uint64_t n = png.n;
        buf_add(to, &n, sizeof n);
        buf_add(to, png.s, png.n);
        pack_mesh(&p.mesh, to);
    }
    buf_release(&png);
    part_release(&p);
    free(name);
    return rc;
}

/* A STEP file of the page. */
struct drawing {
    const char *path;
    bool turns;       /* a mesh is wanted */
    char *png, *mesh; /* base64; NULL: none */
    char *why;        /* not drawn */
};

struct gallery {
    struct drawing *v;
    size_t n, cap;
    size_t bytes, budget;
    size_t n_drawn, n_failed, n_turning, n_over; /* over: left out for the budget */
};

static char *base64(const char *s, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *p = (const unsigned char *)s;
    char *out = xmalloc((n + 2) / 3 * 4 + 1), *o = out;
    for (size_t i = 0; i < n; i += 3) {
        unsigned v = (unsigned)p[i] << 16 | (i + 1 < n ? (unsigned)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        *o++ = digit[v >> 18];
        *o++ = digit[v >> 12 & 63];
        *o++ = i + 1 < n ? digit[v >> 6 & 63] : '=';
        *o++ = i + 2 < n ? digit[v & 63] : '=';
    }
    *o = 0;
    return out;
}

static int draw_job(void *ctx, size_t i, struct buf *out)
{
    struct gallery *g = ctx;
    buf_puts(out, g->v[i].path);
    return 0;
}

static int draw_done(void *ctx, const struct isolate_result *r)
{
    struct gallery *g = ctx;
    struct drawing *d = &g->v[r->index];
    uint64_t n;
    if (r->code < 0) {
        d->why = xasprintf("could not be drawn: %s", r->error);
        g->n_failed++;
        return ERR_OK;
    }
    memcpy(&n, r->data, sizeof n);
    size_t mesh = r->n - sizeof n - n, cost = n / 3 * 4;
    if (g->bytes + cost > g->budget) {
        g->n_over++;
        return ERR_OK;
    }
    d->png = base64(r->data + sizeof n, n);
    g->bytes += cost;
    g->n_drawn++;
    /* Pictures go ahead of meshes: those still to come need about as much as those so far. */
    size_t to_come = (g->n - r->index - 1) * cost;
    if (d->turns && mesh && g->bytes + mesh / 3 * 4 + to_come <= g->budget) {
        d->mesh = base64(r->data + sizeof n + n, mesh);
        g->bytes += mesh / 3 * 4;
        g->n_turning++;
    }
    return ERR_OK;
}

/* The number of path's drawing, made if there is none; -1 for no path. */
static int64_t drawing_of(struct gallery *g, const char *path, bool turns)
{
    if (!path)
        return -1;
    for (size_t i = 0; i < g->n; i++)
        if (!strcmp(g->v[i].path, path)) {
            g->v[i].turns |= turns;
            return (int64_t)i;
        }
    ARRAY_GROW(g->v, g->cap, g->n + 1);
    g->v[g->n++] = (struct drawing){.path = path, .turns = turns};
    return (int64_t)g->n - 1;
}

/* The true parts by themselves are no gallery: they stand beside the generated ones. */
static size_t parts_shown(const struct score_label *l)
{
    return belongs(l->label, &paper[0]) ? 0 : l->n_parts;
}

/* Parts with pictures: the same names under each label, spread over all, whatever the names' order. */
struct chosen {
    uint64_t rank;
    size_t part;
};

static int by_rank(const void *a, const void *b)
{
    const struct chosen *x = a, *y = b;
    return x->rank != y->rank ? (x->rank < y->rank ? -1 : 1) : x->part < y->part ? -1 : x->part > y->part;
}

/* file[label][part], truth[label][part]: drawings, -1: none. */
static void choose_parts(const struct scores *s, struct gallery *g, int64_t **file, int64_t **truth)
{
    struct chosen **order = xcalloc(s->n_labels + 1, sizeof *order);
    for (size_t l = 0; l < s->n_labels; l++) {
        const struct score_label *b = &s->label[l];
        size_t n = parts_shown(b);
        order[l] = xcalloc(n + 1, sizeof **order);
        file[l] = xmalloc((n + 1) * sizeof **file);
        truth[l] = xmalloc((n + 1) * sizeof **truth);
        for (size_t i = 0; i < n; i++) {
            order[l][i] = (struct chosen){fnv1a(FNV_INIT, b->part[i].name, strlen(b->part[i].name)), i};
            file[l][i] = truth[l][i] = -1;
        }
        qsort(order[l], n, sizeof **order, by_rank);
    }
    for (size_t k = 0; k < (size_t)n_previews; k++)
        for (size_t l = 0; l < s->n_labels; l++) {
            if (k >= parts_shown(&s->label[l]))
                continue;
            size_t i = order[l][k].part;
            file[l][i] = drawing_of(g, s->label[l].part[i].file, k < (size_t)n_meshes);
            truth[l][i] = drawing_of(g, s->label[l].part[i].truth, k < (size_t)n_meshes);
        }
    for (size_t l = 0; l < s->n_labels; l++)
        free(order[l]);
    free(order);
}

/* ---- the page ---- */

static void kv_known(struct jw *j, const char *key, double v)
{
    if (isfinite(v))
        jw_kv_real(j, key, v);
}

static void put_part(struct jw *j, const struct score_part *p, size_t label, int64_t file, int64_t truth)
{
    jw_object(j);
    jw_kv_int(j, "label", (int64_t)label);
    jw_kv_str(j, "name", p->name);
    if (p->caption)
        jw_kv_str(j, "caption", p->caption);
    if (p->file)
        jw_kv_bool(j, "generated", true);
    if (file >= 0)
        jw_kv_int(j, "file", file);
    if (truth >= 0)
        jw_kv_int(j, "truth", truth);
    if (p->complete >= 0)
        jw_kv_bool(j, "complete", p->complete);
    if (p->renderable >= 0)
        jw_kv_bool(j, "renderable", p->renderable);
    if (p->not_complete)
        jw_kv_str(j, "why_complete", p->not_complete);
    if (p->not_renderable)
        jw_kv_str(j, "why_renderable", p->not_renderable);
    if (p->no_distance)
        jw_kv_str(j, "why_distance", p->no_distance);
    kv_known(j, "scd", p->scd);
    kv_known(j, "scd2", p->scd_two_sided);
    kv_known(j, "f", p->f_score);
    kv_known(j, "volume", p->volume_ratio);
    if (isfinite(p->entities))
        jw_kv_int(j, "entities", (int64_t)p->entities);
    if (isfinite(p->tokens))
        jw_kv_int(j, "tokens", (int64_t)p->tokens);
    if (p->placed) {
        jw_key(j, "place");
        jw_array(j);
        for (int k = 0; k < 12; k++)
            jw_real(j, p->place[k]);
        jw_end(j);
    }
    jw_end(j);
}

static void put_data(const struct report *r, const struct gallery *g, int64_t *const *file, int64_t *const *truth, struct buf *out)
{
    struct jw j = JW_INIT(out);
    jw_object(&j);
    jw_key(&j, "labels");
    jw_array(&j);
    for (size_t l = 0; l < r->scores.n_labels; l++)
        jw_str(&j, r->scores.label[l].label);
    jw_end(&j);
    jw_key(&j, "files");
    jw_array(&j);
    for (size_t i = 0; i < g->n; i++) {
        jw_object(&j);
        if (g->v[i].png)
            jw_kv_str(&j, "png", g->v[i].png);
        if (g->v[i].mesh)
            jw_kv_str(&j, "mesh", g->v[i].mesh);
        if (g->v[i].why)
            jw_kv_str(&j, "why", g->v[i].why);
        jw_end(&j);
    }
    jw_end(&j);
    jw_key(&j, "parts");
    jw_array(&j);
    for (size_t l = 0; l < r->scores.n_labels; l++)
        for (size_t i = 0; i < parts_shown(&r->scores.label[l]); i++)
            put_part(&j, &r->scores.label[l].part[i], l, file[l][i], truth[l][i]);
    jw_end(&j);
    jw_end(&j);
}

static int put_gallery(struct report *r)
{
    size_t n_labels = r->scores.n_labels;
    struct gallery g = {.budget = (size_t)(max_mb * 1e6)};
    int64_t **file = xcalloc(n_labels + 1, sizeof *file), **truth = xcalloc(n_labels + 1, sizeof *truth);
    struct buf json = BUF_INIT;
    choose_parts(&r->scores, &g, file, truth);
    int rc = isolate_run(r->pool, &(struct isolate_batch){.n = g.n, .what = "drawing", .unit = "parts", .job = draw_job, .done = draw_done, .ctx = &g});
    if (rc < 0)
        goto out;
    put_data(r, &g, file, truth, &json);
    buf_puts(&r->out, "<section id=\"gallery\"><h2>Parts</h2>\n<p class=\"hint\">Click a part to turn it in 3D.");
    if (g.n_failed)
        buf_printf(&r->out, " %zu files could not be drawn; their cards say why.", g.n_failed);
    size_t n_parts = 0;
    for (size_t l = 0; l < n_labels; l++)
        n_parts += parts_shown(&r->scores.label[l]) > (size_t)n_previews ? parts_shown(&r->scores.label[l]) - (size_t)n_previews : 0;
    if (n_parts)
        buf_printf(&r->out, " %zu parts are without pictures (--parts %lld).", n_parts, (long long)n_previews);
    if (g.n_over)
        buf_printf(&r->out, " %zu pictures are left out (--max-mb %g).", g.n_over, max_mb);
    buf_puts(&r->out,
             "</p>\n<div id=\"controls\"><label>row <select id=\"label\"><option value=\"\">all</option></select></label>\n"
             "<label>show <select id=\"filter\"></select></label>\n<label>sort by <select id=\"sort\"></select></label>\n"
             "<input id=\"search\" type=\"search\" placeholder=\"search captions and names\" aria-label=\"search\"><span id=\"count\"></span></div>\n"
             "<div id=\"cards\"></div><button id=\"more\" hidden>Show more</button>\n</section>\n"
             "<dialog id=\"turner\"><div class=\"bar\"><b id=\"which\"></b><button id=\"before\" title=\"previous part\">←</button>"
             "<button id=\"after\" title=\"next part\">→</button><button id=\"close\">Close</button></div>\n<p id=\"asked\"></p>"
             "<div id=\"views\"></div><p class=\"hint\">Drag to turn, wheel to zoom, double click to begin again.</p></dialog>\n"
             "<script type=\"application/json\" id=\"data\">");
    for (const char *p = json.s; *p; p++) /* "</script>" in a caption must not end it */
        if (*p == '<')
            buf_puts(&r->out, "\\u003c");
        else
            buf_putc(&r->out, *p);
    buf_puts(&r->out, "</script>\n");
    log_note("%zu pictures, %zu meshes, %zu files that could not be drawn", g.n_drawn, g.n_turning, g.n_failed);
out:
    for (size_t i = 0; i < g.n; i++) {
        free(g.v[i].png);
        free(g.v[i].mesh);
        free(g.v[i].why);
    }
    free(g.v);
    for (size_t l = 0; l < n_labels; l++) {
        free(file[l]);
        free(truth[l]);
    }
    free(file);
    free(truth);
    buf_release(&json);
    return rc;
}

static int tables(struct report *r)
{
    int rc = ERR_OK;
    if (wanted("scores"))
        table_scores(r);
    if (wanted("ablations"))
        table_ablations(r);
    if (wanted("distances"))
        table_distances(r);
    if (wanted("failures"))
        table_failures(r);
    if (wanted("entities"))
        table_entities(r);
    if (wanted("loss"))
        rc = table_loss(r);
    if (rc == ERR_OK && wanted("training"))
        rc = table_training(r);
    if (rc == ERR_OK && wanted("missing") && r->format != TABLE_HTML)
        table_missing(r);
    return rc;
}

static int page(struct report *r)
{
    static const char *const places[][2] = {{"table-scores", "Scores"}, {"table-distances", "Distances"}, {"table-failures", "Failures"},
                                            {"table-training", "Training"}, {"gallery", "Parts"}, {"table-missing", "Not measured yet"},
                                            {"table-status", "Runs"}};
    char when[32];
    /* The policy keeps even a mistake here from fetching anything. */
    buf_puts(&r->out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                      "script-src 'unsafe-inline'\">\n<title>STEP-LLM: generated parts</title>\n<style>\n");
    buf_puts(&r->out, report_css);
    buf_puts(&r->out, "</style></head><body>\n<header><h1>STEP-LLM: generated parts and their scores</h1><p>");
    buf_printf(&r->out, "%s, from <code>", local_time(when, wall_clock_s()));
    put_markup(&r->out, r->t->db_path);
    buf_printf(&r->out, "</code>, by report %s (%s)</p>\n<nav>", tool_version, tool_git_rev);
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        buf_printf(&r->out, "<a href=\"#%s\">%s</a>", places[i][0], places[i][1]);
    buf_puts(&r->out, "</nav></header>\n<main>\n");
    int rc = tables(r);
    if (rc == ERR_OK && r->sq)
        rc = put_curves(r);
    if (rc == ERR_OK)
        rc = put_gallery(r);
    if (rc == ERR_OK && wanted("missing"))
        table_missing(r);
    if (rc == ERR_OK)
        rc = table_status(r, 50);
    buf_puts(&r->out, "</main>\n<footer>Figures 'reported in the paper' are of arXiv 2601.12641.</footer>\n<script>\n");
    buf_puts(&r->out, view3d_js);
    buf_puts(&r->out, report_js);
    buf_puts(&r->out, "</script></body></html>\n");
    return rc;
}

/* ---- the tool ---- */

static int make(struct report *r)
{
    if (status)
        return table_status(r, last);
    if (curve)
        return curve_alone(r);
    int rc = ERR_OK;
    if (r->sq)
        rc = scores_read(r->sq, &(struct scores_request){.labels = labels.n ? labels.v : NULL, .n_labels = labels.n, .parts = r->format == TABLE_HTML,
                                                         .resamples = (size_t)resamples, .seed = (uint64_t)seed}, &r->scores);
    if (rc == ERR_OK)
        rc = r->format == TABLE_HTML ? page(r) : tables(r);
    return rc;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"text", "csv", "markdown", "latex", "html"}; /* as enum table_format */
    struct tool t;
    tool_start(&t, &spec, argc, argv);
    struct report r = {.t = &t, .out = BUF_INIT};
    struct rundb *db = NULL;
    while (strcmp(names[r.format], format))
        r.format++;
    if (t.json)
        r.format = TABLE_JSON;
    bool html = r.format == TABLE_HTML && !status && !curve, there = path_exists(t.db_path);
    int rc = ERR_OK;
    if (status && curve)
        rc = err_set(ERR_USAGE, "--status and --curve do not go together");
    else if (html) /* forks, so ahead of the database */
        rc = isolate_open(&(struct isolate_opts){.workers = t.threads, .seconds = timeout, .memory = (size_t)memory, .work = draw}, &r.pool);
    if (rc == ERR_OK && !there)
        log_warn("%s: no run database here yet", t.db_path);
    else if (rc == ERR_OK)
        rc = rundb_open_readonly(t.db_path, &db);
    if (rc == ERR_OK && db)
        r.sq = rundb_sqlite(db);
    if (rc == ERR_OK && out_file && db) /* a look at the tables is no run; a file made of them is */
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = make(&r);
    if (rc == ERR_OK && out_file && (rc = file_write(out_file, r.out.s, r.out.n, false)) == ERR_OK) {
        log_note("wrote %s", out_file);
        rc = tool_artifact(&t, out_file, html ? "report" : curve ? "curve" : "table");
    } else if (rc == ERR_OK) {
        fwrite(r.out.s, 1, r.out.n, stdout);
    }
    isolate_close(r.pool);
    scores_release(&r.scores);
    rundb_close(db);
    buf_release(&r.out);
    return tool_finish(&t, rc);
}
