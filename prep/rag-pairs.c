/* rag-pairs: for each captioned part the other part with the most similar caption, as training records. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/csv.h"
#include "lib/pairs.h"
#include "lib/step.h"
#include "lib/tool.h"
#include "model/retrieval.h"
#include "shim/faiss.h"
#include "shim/torch.h"

static const char *captions_csv, *steps_dir, *encoder_dir, *out_path;
static int64_t top_k = 1;

static struct opt options[] = {
    {.name = "captions", .type = OPT_STR, .value = &captions_csv, .arg = "CSV", .help = "model_id, isDescribable, description", .flags = OPT_REQUIRED},
    {.name = "steps", .type = OPT_STR, .value = &steps_dir, .arg = "DIR", .help = "restructured STEP files, named by model id", .flags = OPT_REQUIRED},
    {.name = "encoder", .type = OPT_STR, .value = &encoder_dir, .arg = "DIR", .help = "sentence encoder (all-MiniLM-L6-v2)"},
    {.name = "out", .type = OPT_STR, .value = &out_path, .arg = "FILE", .help = "pair records (JSON)", .flags = OPT_REQUIRED},
    {.name = "top-k", .type = OPT_INT, .value = &top_k, .arg = "K",
     .help = "records for each part, with the K nearest others (0: one without any, and no encoder is needed)", .min = 0, .max = 100},
    {0},
};

static const struct tool_spec spec = {
    .name = "rag-pairs",
    .args = "--captions CSV --steps DIR --encoder DIR --out pairs.json",
    .summary = "Pairs each captioned part with the most similar other part, by caption.",
    .details = "A file belongs to the model id that is its name, or the part of its name ahead of the first '_'.\n"
               "Embeddings are kept as FILE.embeddings.safetensors and the index as FILE.faiss; both are used again\n"
               "as long as captions and encoder are the same.\n",
    .options = options,
};

struct entry {
    const char *id, *caption; /* in work.text; no caption where no file has this id */
    const char *path; /* borrowed from the file list; NULL: no file */
    int64_t first, second; /* the two lowest entries with this caption; -1: none */
    bool written; /* its records are in the file */
};

struct work {
    struct tool *t;
    struct entry *v; /* sorted by id */
    size_t n, cap;
    struct file_list files;
    struct arena text;
    const char **ids; /* that files have, sorted */
    size_t n_ids;
};

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->id, ((const struct entry *)b)->id);
}

/* 1: yes; 0: no; -1: it is neither. */
static int truth(const char *s)
{
    if (!strcasecmp(s, "true") || !strcmp(s, "1"))
        return 1;
    return !strcasecmp(s, "false") || !strcmp(s, "0") || !*s ? 0 : -1;
}

static int fail_item(struct work *w, const char *item, const char *reason)
{
    return tool_item(w->t, &(struct run_item){.item = item, .state = "failed", .reason = reason});
}

/* A row that is none: the others are read on. */
static int fail_row(struct work *w)
{
    const char *text = err_text(), *colon = strstr(text, ": ");
    char *item = xstrndup(text, colon ? (size_t)(colon - text) : strlen(text)), *reason = xasprintf("bad_row: %s", colon ? colon + 2 : text);
    int rc = fail_item(w, item, reason);
    free(item);
    free(reason);
    return rc < 0 ? rc : 1;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The ids that the files' names may mean: a table of captions may be far larger than a folder of parts. */
static int list_files(struct work *w)
{
    int rc = file_list_add(&w->files, steps_dir, STEP_SUFFIXES);
    w->ids = xmalloc((2 * w->files.n + 1) * sizeof *w->ids);
    for (size_t i = 0; i < w->files.n; i++) {
        char *stem = path_stem(w->files.v[i].path);
        size_t n = strlen(stem), ahead = strcspn(stem, "_");
        w->ids[w->n_ids++] = arena_strndup(&w->text, stem, n);
        if (ahead < n)
            w->ids[w->n_ids++] = arena_strndup(&w->text, stem, ahead);
        free(stem);
    }
    qsort(w->ids, w->n_ids, sizeof *w->ids, by_text);
    return rc;
}

static int read_captions(struct work *w)
{
    struct csv *c;
    struct csv_row row;
    int id = 0, ok = 0, text = 0, rc = csv_open(captions_csv, &c);
    if (rc < 0)
        return rc;
    if ((rc = id = csv_column(c, "model_id")) >= 0 && (rc = ok = csv_column(c, "isDescribable")) >= 0)
        rc = text = csv_column(c, "description");
    size_t no_text = 0, unknown = 0, first_unknown = 0;
    while (rc >= 0 && (rc = csv_next(c, &row)) != 0) {
        if (rc == ERR_FORMAT) {
            rc = fail_row(w);
            continue;
        }
        if (rc < 0)
            break;
        int able = truth(row.field[ok]);
        if (able < 0 && !unknown++)
            first_unknown = row.line;
        if (able <= 0 || !*row.field[text]) {
            no_text++;
            continue;
        }
        ARRAY_GROW(w->v, w->cap, w->n + 1);
        struct entry *e = &w->v[w->n++];
        *e = (struct entry){.id = arena_strndup(&w->text, row.field[id], strlen(row.field[id]))};
        if (bsearch(&e->id, w->ids, w->n_ids, sizeof *w->ids, by_text))
            e->caption = arena_strndup(&w->text, row.field[text], strlen(row.field[text]));
    }
    csv_close(c);
    if (rc < 0)
        return rc;
    qsort(w->v, w->n, sizeof *w->v, by_id);
    size_t kept = 0, nth = 1;
    for (size_t i = 0; i < w->n && rc == ERR_OK; i++) {
        if (kept && !strcmp(w->v[i].id, w->v[kept - 1].id)) {
            /* An item of its own: the first caption's may well be done. */
            char *again = xasprintf("%s (caption %zu)", w->v[i].id, ++nth);
            rc = fail_item(w, again, "duplicate_id: a caption of this id stands before");
            free(again);
        } else {
            nth = 1;
            w->v[kept++] = w->v[i];
        }
    }
    w->n = kept;
    if (unknown)
        log_warn("%s: isDescribable is neither True nor False in %zu rows, which are left out; the first begins on line %zu", captions_csv,
                 unknown, first_unknown);
    log_note("%zu captions, %zu rows that are not describable left out", w->n, no_text);
    return w->n ? rc : err_set(ERR_FORMAT, "%s: holds no describable caption", captions_csv);
}

static struct entry *find(struct work *w, const char *name, size_t n)
{
    char *id = xstrndup(name, n);
    struct entry key = {.id = id}, *e = bsearch(&key, w->v, w->n, sizeof *w->v, by_id);
    free(id);
    return e;
}

/* Gives entries their files; reports captions without a file and files without a caption. */
static int match_files(struct work *w)
{
    int rc = ERR_OK;
    size_t unused = 0, lacking = 0;
    for (size_t i = 0; i < w->files.n && rc == ERR_OK; i++) {
        char *stem = path_stem(w->files.v[i].path);
        struct entry *e = find(w, stem, strlen(stem));
        if (!e)
            e = find(w, stem, strcspn(stem, "_"));
        if (!e) {
            unused++;
            rc = fail_item(w, w->files.v[i].rel, "no_caption: a STEP file without a describable caption");
        } else if (e->path) {
            rc = fail_item(w, w->files.v[i].rel, "duplicate_file: its model id has a file already");
        } else {
            e->path = w->files.v[i].path;
        }
        free(stem);
    }
    size_t kept = 0;
    for (size_t i = 0; i < w->n && rc == ERR_OK; i++) {
        if (w->v[i].path) {
            w->v[kept++] = w->v[i];
            continue;
        }
        lacking++;
        rc = fail_item(w, w->v[i].id, "no_file: a caption without a STEP file");
    }
    if (rc < 0)
        return rc;
    w->n = kept;
    if (unused || lacking)
        log_warn("%zu STEP files without caption, %zu captions without STEP file", unused, lacking);
    return kept > 1 ? ERR_OK : err_set(ERR_IO, "%s: fewer than two parts have a caption in %s", steps_dir, captions_csv);
}

/* The data section of a file, into b. */
static int read_part(const char *path, struct buf *b)
{
    struct file_map f;
    const char *part;
    size_t n;
    int rc = file_map(path, (size_t)2 << 30, &f);
    if (rc < 0)
        return rc;
    buf_clear(b);
    if (step_data_part(f.data, f.size, &part, &n))
        buf_add(b, part, n);
    else
        rc = err_set(ERR_FORMAT, "%s: has no DATA section", path);
    file_unmap(&f);
    return rc;
}

/* Of the others that score as candidate j does, the one of the lowest id (entries are sorted by id).  FAISS may
 * have returned any few of many equal captions, so each candidate stands for all that share its caption. */
static int64_t lowest_of_equals(const struct work *w, const int64_t *near, const float *score, int64_t j, int64_t k, size_t i)
{
    int64_t best = near[j];
    for (int64_t l = j; l < k && score[l] == score[j]; l++) {
        if (near[l] < 0)
            continue;
        int64_t first = w->v[near[l]].first;
        if (first == (int64_t)i)
            first = w->v[near[l]].second;
        if (first >= 0 && first < best)
            best = first;
    }
    return best;
}

/* A record for entry i and each of its nearest others. */
static int write_records(struct work *w, struct pairs_writer *out, size_t i, const int64_t *near, const float *score, int64_t k)
{
    struct buf own = BUF_INIT, other = BUF_INIT;
    int64_t written = 0;
    int rc = read_part(w->v[i].path, &own);
    for (int64_t j = 0; j < k && written < top_k && rc == ERR_OK; j++) {
        if (near[j] < 0 || near[j] == (int64_t)i)
            continue;
        int64_t best = written ? near[j] : lowest_of_equals(w, near, score, j, k, i);
        const struct entry *e = &w->v[best];
        if ((rc = read_part(e->path, &other)) == ERR_OK)
            rc = pairs_put(out, &(struct pair){.id_original = w->v[i].id, .caption = w->v[i].caption, .id_retrieve = e->id,
                                               .retrieved = other.s, .output = own.s});
        written++;
    }
    if (!top_k && rc == ERR_OK)
        rc = pairs_put(out, &(struct pair){.id_original = w->v[i].id, .caption = w->v[i].caption, .output = own.s});
    buf_release(&own);
    buf_release(&other);
    if (rc == ERR_FORMAT) /* this part's text, not the run's fault */
        return fail_item(w, w->v[i].id, err_text());
    w->v[i].written = rc == ERR_OK;
    return rc;
}

/* write_records() as a step of the bar, where a signal ends the run. */
static int write_part(struct work *w, struct pairs_writer *out, size_t i, const int64_t *near, const float *score, int64_t k)
{
    int rc = write_records(w, out, i, near, score, k);
    progress_add(1, 0);
    return rc == ERR_OK && stop_requested() ? err_set(ERR_CANCELLED, "stopped by a signal") : rc;
}

/* No part is done before the file that holds all of them stands: a start that is killed earlier must find
 * nothing recorded as done.  (One killed amid this recording leaves the rest to the next.) */
static int record_written(struct work *w)
{
    for (size_t i = 0; i < w->n; i++)
        if (w->v[i].written && tool_item_current(w->t, w->v[i].id, NULL, out_path))
            w->v[i].written = false;
    int rc = ERR_OK;
    for (size_t i = 0; i < w->n && rc == ERR_OK; i++)
        if (w->v[i].written)
            rc = tool_item(w->t, &(struct run_item){.item = w->v[i].id, .state = "done", .output = out_path});
    return rc;
}

static int finish(struct work *w, struct pairs_writer *out, int rc)
{
    progress_end();
    if (rc == ERR_OK)
        rc = pairs_commit(out);
    else
        pairs_abort(out);
    if (rc == ERR_OK)
        rc = record_written(w);
    return rc == ERR_OK ? tool_artifact(w->t, out_path, "pairs") : rc;
}

/* Records that retrieve nothing. */
static int write_plain(struct work *w)
{
    struct pairs_writer *out;
    int rc = pairs_create(out_path, &out);
    if (rc < 0)
        return rc;
    progress_start("writing", w->n, "parts");
    for (size_t i = 0; i < w->n && rc == ERR_OK; i++)
        rc = write_part(w, out, i, NULL, NULL, 0);
    return finish(w, out, rc);
}

static int by_caption(const void *a, const void *b)
{
    const struct entry *x = *(struct entry *const *)a, *y = *(struct entry *const *)b;
    int c = strcmp(x->caption, y->caption);
    return c ? c : x < y ? -1 : 1;
}

static void group_captions(struct work *w)
{
    struct entry **p = xmalloc(w->n * sizeof *p);
    for (size_t i = 0; i < w->n; i++)
        p[i] = &w->v[i];
    qsort(p, w->n, sizeof *p, by_caption);
    for (size_t i = 0, from = 0; i < w->n; i++) {
        if (strcmp(p[i]->caption, p[from]->caption))
            from = i;
        p[i]->first = p[from] - w->v;
        p[i]->second = from + 1 < w->n && !strcmp(p[from + 1]->caption, p[from]->caption) ? p[from + 1] - w->v : -1;
    }
    free(p);
}

/* The index over x: the saved one when it holds these very vectors, else a new one, which is saved. */
static int open_index(const float *x, int64_t n, int dim, const char *path, vindex **out)
{
    if (path_exists(path)) {
        if (vindex_load(path, out) < 0) {
            log_warn("%s: built anew", err_text());
        } else if (vindex_holds(*out, n, dim, x)) {
            log_note("%s: the index of an earlier run, of the same captions", path);
            return ERR_OK;
        } else {
            log_note("%s: of other captions, or by another encoder: built anew", path);
        }
        vindex_free(*out);
    }
    int rc = vindex_new(dim, out);
    if (rc == ERR_OK)
        rc = vindex_add(*out, n, x);
    return rc == ERR_OK ? vindex_save(*out, path) : rc;
}

static int pair_all(struct work *w, const float *x, int dim)
{
    /* So many more than asked for that the part itself and a tie at the end do not matter. */
    int64_t k = top_k + 32 < (int64_t)w->n ? top_k + 32 : (int64_t)w->n, chunk = 256;
    char *index_path = xasprintf("%s.faiss", out_path);
    struct pairs_writer *out = NULL;
    vindex *index = NULL;
    float *score = xmalloc((size_t)(chunk * k) * sizeof *score);
    int64_t *near = xmalloc((size_t)(chunk * k) * sizeof *near);
    group_captions(w);
    int rc = open_index(x, (int64_t)w->n, dim, index_path, &index);
    if (rc == ERR_OK)
        rc = pairs_create(out_path, &out);
    progress_start("pairing", w->n, "parts");
    for (size_t at = 0; at < w->n && rc == ERR_OK; at += (size_t)chunk) {
        int64_t m = (int64_t)(w->n - at) < chunk ? (int64_t)(w->n - at) : chunk;
        rc = vindex_search(index, m, x + at * (size_t)dim, k, score, near);
        for (int64_t i = 0; i < m && rc == ERR_OK; i++)
            rc = write_part(w, out, at + (size_t)i, near + i * k, score + i * k, k);
    }
    rc = finish(w, out, rc);
    vindex_free(index);
    free(score);
    free(near);
    free(index_path);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    struct work w = {.t = &t};
    struct encoder *e = NULL;
    float *x = NULL;
    tool_start(&t, &spec, argc, argv);
    th_set_threads(t.threads);
    int rc = !top_k ? ERR_OK : encoder_dir ? encoder_load(encoder_dir, &e) : err_set(ERR_USAGE, "--encoder DIR is due (or --top-k 0)");
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = list_files(&w);
    if (rc == ERR_OK)
        rc = read_captions(&w);
    if (rc == ERR_OK)
        rc = match_files(&w);
    if (rc == ERR_OK && top_k) {
        const char **texts = xmalloc(w.n * sizeof *texts);
        char *cache = xasprintf("%s.embeddings.safetensors", out_path), *dir = path_dirname(out_path);
        for (size_t i = 0; i < w.n; i++)
            texts[i] = w.v[i].caption;
        rc = mkdir_p(dir);
        if (rc == ERR_OK)
            rc = retrieval_embed(e, encoder_dir, texts, w.n, cache, &x);
        free(texts);
        free(cache);
        free(dir);
    }
    if (rc == ERR_OK)
        rc = top_k ? pair_all(&w, x, encoder_dim(e)) : write_plain(&w);
    int code = tool_finish(&t, rc);
    free(w.v);
    free(w.ids);
    arena_release(&w.text);
    free(x);
    file_list_release(&w.files);
    encoder_free(e);
    return code;
}
