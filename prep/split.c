/* split: pair records into train, test and validation sets. */
#include <stdlib.h>

#include "lib/pairs.h"
#include "lib/random.h"
#include "lib/tool.h"

static const char *in, *out, *ratios = "70,20,10", *group_by, *mode = "strict", *steps, *parts_file;
static int64_t seed = 3407, n_test, n_val;
static bool unique;

static struct opt options[] = {
    {.name = "in", .type = OPT_STR, .value = &in, .arg = "FILE", .help = "pair records to read", .flags = OPT_REQUIRED},
    {.name = "out", .type = OPT_STR, .value = &out, .arg = "DIR",
     .help = "folder for train.json, test.json and val.json", .flags = OPT_REQUIRED},
    {.name = "ratios", .type = OPT_STR, .value = &ratios, .arg = "A,B,C",
     .help = "percent of train, test and val; whole numbers that make 100"},
    {.name = "test", .type = OPT_INT, .value = &n_test, .arg = "N", .help = "so many test records, instead of --ratios", .max = 1e12},
    {.name = "val", .type = OPT_INT, .value = &n_val, .arg = "N", .help = "and so many val records; train gets the others", .max = 1e12},
    {.name = "unique", .type = OPT_FLAG, .value = &unique, .help = "a record whose output an earlier one has, too, is left out"},
    {.name = "parts", .type = OPT_STR, .value = &parts_file, .arg = "FILE", .help = "what `synth --json` printed, for --group-by sizes"},
    {.name = "seed", .type = OPT_INT, .value = &seed, .arg = "N", .help = "another number, another split", .min = 0,
     .max = 9e15},
    {.name = "group-by", .type = OPT_STR, .value = &group_by, .arg = "KEY", .choices = "caption|sizes|none",
     .help = "caption: records of one caption stay together; sizes: parts of one family and the same sizes do, told or "
             "not; none: each record by itself "
             "(default: caption in strict mode, none in reference mode)"},
    {.name = "mode", .type = OPT_STR, .value = &mode, .arg = "MODE", .choices = "strict|reference",
     .help = "reference: sizes as the original computes them, in floating point, and no groups"},
    {.name = "steps", .type = OPT_STR, .value = &steps, .arg = "DIR",
     .help = "the parts as they were at first: those of the test set are copied to truth/ID.step in --out"},
    {0},
};

static const struct tool_spec spec = {
    .name = "split",
    .args = "--in FILE --out DIR",
    .summary = "Splits pair records into train, test and validation sets, by a seed.",
    .details = "Of n records train gets n*70/100 and test n*20/100, rounded down, and val the rest; so does the\n"
               "original.  A caption that many records share would tell the answer of a test record if it were\n"
               "in train as well: they stay together, and the sizes come out as said if enough captions are\n"
               "unique.  How many test and val captions are in train is reported either way.\n\n"
               "  split --in fit.json --out data/ --steps raw/steps\n"
               "  split --in fit.json --out data/ --test 1000 --val 200 --unique --group-by sizes --parts synth.jsonl\n",
    .options = options,
};

enum { TRAIN, TEST, VAL, N_SETS };
static const char *const set_names[N_SETS] = {"train", "test", "val"};

struct record {
    uint64_t offset, key; /* place in the file; hash of the caption, or of what --group-by says */
    uint64_t content;     /* hash of the output */
    size_t index;
    int set;
};

struct group {
    size_t from, n; /* records, when sorted by key */
    uint64_t order; /* random */
};

/* Uniform in 0..n-1. */
static uint64_t random_below(uint64_t *state, uint64_t n)
{
    uint64_t x, limit = UINT64_MAX - UINT64_MAX % n;
    do
        x = random_u64(state);
    while (x >= limit);
    return x % n;
}

static int parse_ratios(int percent[N_SETS])
{
    char rest;
    if (sscanf(ratios, "%d,%d,%d%c", &percent[0], &percent[1], &percent[2], &rest) != 3 || percent[0] < 0 ||
        percent[1] < 0 || percent[2] < 0 || percent[0] > 100 || percent[1] > 100 ||
        percent[0] + percent[1] + percent[2] != 100)
        return err_set(ERR_USAGE, "--ratios %s: three percentages that make 100 are due, as in 70,20,10", ratios);
    return ERR_OK;
}

static size_t share(size_t n, int percent, bool reference)
{
    return reference ? (size_t)((double)n * (percent / 100.0)) : (size_t)((unsigned __int128)n * (unsigned)percent / 100);
}

static int by_key(const void *a, const void *b)
{
    const struct record *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int by_size_then_order(const void *a, const void *b)
{
    const struct group *x = a, *y = b;
    if (x->n != y->n)
        return x->n > y->n ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* Large groups first, each into a set drawn by the room left in those it fits in; single records
 * fill what remains, so that the sizes come out exact unless there are too few of them. */
static void assign(struct record *v, size_t n, bool grouped, const size_t size[N_SETS], uint64_t *rng)
{
    struct group *g = xmalloc((n + 1) * sizeof *g);
    size_t n_groups = 0, room[N_SETS];
    if (grouped)
        qsort(v, n, sizeof *v, by_key);
    for (size_t i = 0, j; i < n; i = j) {
        for (j = i + 1; grouped && j < n && v[j].key == v[i].key;)
            j++;
        g[n_groups++] = (struct group){i, j - i, random_u64(rng)};
    }
    qsort(g, n_groups, sizeof *g, by_size_then_order);
    memcpy(room, size, sizeof room);
    for (size_t k = 0; k < n_groups; k++) {
        size_t fit = 0;
        int set = VAL;
        for (int s = 0; s < N_SETS; s++)
            fit += room[s] >= g[k].n ? room[s] : 0;
        if (fit) {
            uint64_t x = random_below(rng, fit);
            for (set = 0; room[set] < g[k].n || x >= room[set]; set++)
                x -= room[set] >= g[k].n ? room[set] : 0;
        } else {
            for (int s = 0; s < N_SETS; s++)
                set = room[s] > room[set] ? s : set;
        }
        room[set] -= g[k].n < room[set] ? g[k].n : room[set];
        for (size_t i = 0; i < g[k].n; i++)
            v[g[k].from + i].set = set;
    }
    free(g);
}

struct leak {
    size_t keys, shared;    /* distinct captions (or other keys); those in train and elsewhere */
    size_t records[N_SETS]; /* records of test and val whose key is in train */
};

static struct leak find_leak(struct record *v, size_t n)
{
    struct leak l = {0};
    qsort(v, n, sizeof *v, by_key);
    for (size_t i = 0, j; i < n; i = j) {
        size_t in_set[N_SETS] = {0};
        for (j = i; j < n && v[j].key == v[i].key; j++)
            in_set[v[j].set]++;
        l.keys++;
        if (in_set[TRAIN] && (in_set[TEST] || in_set[VAL])) {
            l.shared++;
            l.records[TEST] += in_set[TEST];
            l.records[VAL] += in_set[VAL];
        }
    }
    return l;
}

static int by_index(const void *a, const void *b)
{
    const struct record *x = a, *y = b;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int write_sets(struct tool *t, struct pairs *r, const struct record *v, size_t n)
{
    struct pairs_writer *w[N_SETS] = {0};
    struct pair p;
    int rc = ERR_OK;
    for (int s = 0; s < N_SETS && rc == ERR_OK; s++) {
        char *path = xasprintf("%s/%s.json", out, set_names[s]);
        rc = pairs_create(path, &w[s]);
        free(path);
    }
    progress_start("writing", n, "records");
    for (size_t i = 0; i < n && rc == ERR_OK; i++) {
        pairs_seek(r, v[i].offset, v[i].index);
        if ((rc = pairs_next(r, &p)) > 0)
            rc = pairs_put(w[v[i].set], &p);
        if (rc == ERR_OK && stop_requested())
            rc = err_set(ERR_CANCELLED, "stopped");
        progress_add(1, 0);
    }
    progress_end();
    for (int s = 0; s < N_SETS; s++) {
        if (rc == ERR_OK) {
            char *path = xasprintf("%s/%s.json", out, set_names[s]);
            rc = pairs_commit(w[s]);
            if (rc == ERR_OK)
                rc = tool_artifact(t, path, "pairs");
            free(path);
        } else {
            pairs_abort(w[s]);
        }
    }
    return rc;
}

/* ---- the true parts of the test set, for the evaluators ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The id among v whose file is called stem, as rag-pairs has it: all of it, or what stands ahead of the first '_'. */
static const char *id_of(char **v, size_t n, char *stem)
{
    char **p = bsearch(&stem, v, n, sizeof *v, by_text);
    if (!p) {
        stem[strcspn(stem, "_")] = '\0';
        p = bsearch(&stem, v, n, sizeof *v, by_text);
    }
    return p ? *p : NULL;
}

static int copy_files(struct tool *t, char **id, size_t n, const char *dir)
{
    struct file_list l = {0};
    size_t n_copied = 0;
    int rc = file_list_add(&l, steps, STEP_SUFFIXES);
    if (rc == ERR_OK && (rc = remove_tree(dir)) == ERR_OK)
        rc = mkdir_p(dir);
    for (size_t i = 0; i < l.n && rc == ERR_OK && !stop_requested(); i++) {
        char *stem = path_stem(l.v[i].path);
        const char *which = id_of(id, n, stem);
        if (which && !strpbrk(which, "/") && *which != '.') {
            char *to = xasprintf("%s/%s.step", dir, which);
            if (!path_exists(to)) {
                rc = file_copy(l.v[i].path, to, false);
                n_copied++;
            }
            free(to);
        }
        free(stem);
    }
    file_list_release(&l);
    if (rc == ERR_OK && stop_requested())
        return err_set(ERR_CANCELLED, "stopped");
    if (rc == ERR_OK && n_copied < n)
        log_warn("%zu of %zu test records have no file in %s", n - n_copied, n, steps);
    return rc < 0 ? rc : tool_artifact(t, dir, "truth");
}

static int write_truth(struct tool *t, struct pairs *r, const struct record *v, size_t n)
{
    char **id = xcalloc(n + 1, sizeof *id), *dir = path_join(out, "truth");
    struct pair p;
    size_t n_ids = 0, kept = 0;
    int rc = ERR_OK;
    for (size_t i = 0; i < n && rc >= 0; i++) {
        if (v[i].set != TEST)
            continue;
        pairs_seek(r, v[i].offset, v[i].index);
        if ((rc = pairs_next(r, &p)) > 0)
            id[n_ids++] = xstrdup(p.id_original);
    }
    qsort(id, n_ids, sizeof *id, by_text);
    for (size_t i = 0; i < n_ids; i++) { /* --top-k makes several records of a part */
        if (kept && !strcmp(id[i], id[kept - 1]))
            free(id[i]);
        else
            id[kept++] = id[i];
    }
    rc = rc < 0 ? rc : copy_files(t, id, kept, dir);
    for (size_t i = 0; i < kept; i++)
        free(id[i]);
    free(id);
    free(dir);
    return rc;
}

static int report(struct tool *t, const size_t got[N_SETS], const size_t size[N_SETS], const struct leak *l, size_t repeated)
{
    const char *what = group_by && !strcmp(group_by, "sizes") ? "sizes" : "captions";
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    for (int s = 0; s < N_SETS; s++)
        jw_kv_int(&j, set_names[s], (int64_t)got[s]);
    jw_kv_int(&j, what, (int64_t)l->keys);
    jw_kv_int(&j, *what == 's' ? "shared_sizes" : "shared_captions", (int64_t)l->shared);
    if (unique)
        jw_kv_int(&j, "repeated", (int64_t)repeated);
    jw_kv_int(&j, "leaked_test", (int64_t)l->records[TEST]);
    jw_kv_int(&j, "leaked_val", (int64_t)l->records[VAL]);
    jw_end(&j);
    tool_json_line(t, b.s);
    buf_release(&b);
    tool_print(t, "%zu train, %zu test, %zu val; %zu distinct %s, %zu of them in train and elsewhere "
               "(%zu test and %zu val records)\n", got[TRAIN], got[TEST], got[VAL], l->keys, what, l->shared,
               l->records[TEST], l->records[VAL]);
    if (unique)
        tool_print(t, "%zu records repeated the output of another and were left out\n", repeated);
    if (l->shared)
        log_warn("%zu test and %zu val records have %s that %s in train, too (--group-by %s keeps them apart)", l->records[TEST],
                 l->records[VAL], *what == 's' ? "sizes" : "a caption", *what == 's' ? "are" : "is", *what == 's' ? what : "caption");
    if (memcmp(got, size, N_SETS * sizeof *got))
        log_warn("too many records share %s: %zu, %zu, %zu were due", what, size[TRAIN], size[TEST], size[VAL]);
    int rc = ERR_OK;
    for (int s = 0; s < N_SETS && rc == ERR_OK; s++)
        rc = tool_metric(t, 0, set_names[s], (double)got[s]);
    return rc < 0 ? rc : tool_metric(t, 0, "shared_captions", (double)l->shared);
}

/* ---- sizes of made parts ---- */

struct sizes {
    json_t *key_of; /* part id: "family\nsize\nsize" */
};

/* Lines of `synth --json`: {"id", "family", "sizes": [...]}. */
static int read_sizes(struct sizes *s)
{
    struct file_map f;
    *s = (struct sizes){.key_of = json_object()};
    int rc = file_map(parts_file, 0, &f);
    if (rc < 0)
        return rc;
    const char *p = f.data, *end = p + f.size;
    for (size_t line = 1; p < end && rc == ERR_OK; line++) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        stop = stop ? stop : end;
        json_t *o = NULL;
        if ((rc = json_read_mem(parts_file, p, (size_t)(stop - p), &o)) == ERR_OK) {
            const char *id = json_string_value(json_object_get(o, "id")), *family = json_string_value(json_object_get(o, "family"));
            json_t *sizes = json_object_get(o, "sizes"), *one;
            size_t i;
            struct buf key = BUF_INIT;
            if (id && family && json_is_array(sizes)) {
                buf_puts(&key, family);
                json_array_foreach(sizes, i, one)
                    buf_printf(&key, "\n%s", json_is_string(one) ? json_string_value(one) : "");
                json_object_set_new(s->key_of, id, json_string(key.s));
            } else {
                rc = err_set(ERR_FORMAT, "%s:%zu: no id, family and sizes, as `synth --json` prints them", parts_file, line);
            }
            buf_release(&key);
        }
        json_decref(o);
        p = stop + 1;
    }
    file_unmap(&f);
    return rc;
}

static int key_of(const struct sizes *s, const struct pair *p, uint64_t *key)
{
    const char *text = p->caption;
    if (s->key_of && !(text = json_string_value(json_object_get(s->key_of, p->id_original))))
        return err_set(ERR_FORMAT, "%s: record %zu: %s does not tell of part %s", in, p->index + 1, parts_file, p->id_original);
    *key = fnv1a(FNV_INIT, text, strlen(text));
    return ERR_OK;
}

static int by_content(const void *a, const void *b)
{
    const struct record *x = a, *y = b;
    if (x->content != y->content)
        return x->content < y->content ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

/* Keeps the first record of each output; returns how many are left. */
static size_t drop_repeated(struct record *v, size_t n)
{
    size_t kept = 0;
    qsort(v, n, sizeof *v, by_content);
    for (size_t i = 0; i < n; i++)
        if (!i || v[i].content != v[i - 1].content)
            v[kept++] = v[i];
    qsort(v, kept, sizeof *v, by_index);
    return kept;
}

static int run(struct tool *t, const int percent[N_SETS])
{
    bool reference = !strcmp(mode, "reference");
    bool grouped = group_by ? strcmp(group_by, "none") != 0 : !reference;
    struct pairs *r;
    struct pair p;
    struct record *v = NULL;
    struct sizes sizes = {0};
    size_t n = 0, cap = 0, n_read;
    uint64_t rng = (uint64_t)seed, told = 0;
    int rc = group_by && !strcmp(group_by, "sizes") ? read_sizes(&sizes) : ERR_OK;
    if (rc == ERR_OK)
        rc = pairs_open(in, &r);
    if (rc < 0) {
        json_decref(sizes.key_of);
        return rc;
    }
    progress_start("reading records", pairs_size(r), "B");
    while ((rc = pairs_next(r, &p)) > 0) {
        struct record own = {.offset = p.offset, .content = fnv1a(FNV_INIT, p.output, strlen(p.output)), .index = p.index};
        if ((rc = key_of(&sizes, &p, &own.key)) < 0)
            break;
        ARRAY_GROW(v, cap, n + 1);
        v[n++] = own;
        progress_add(p.offset - told, 0);
        told = p.offset;
    }
    progress_end();
    if (!v)
        v = xcalloc(1, sizeof *v); /* nothing to sort is still sorted */
    size_t size[N_SETS], got[N_SETS] = {0};
    n_read = n;
    if (rc == ERR_OK) {
        if (unique)
            n = drop_repeated(v, n);
        size[TRAIN] = share(n, percent[TRAIN], reference);
        size[TEST] = share(n, percent[TEST], reference);
        size[VAL] = n - size[TRAIN] - size[TEST];
        if (n_test || n_val) {
            if ((size_t)(n_test + n_val) > n)
                rc = err_set(ERR_USAGE, "--test %lld and --val %lld of %zu records", (long long)n_test, (long long)n_val, n);
            size[TEST] = (size_t)n_test;
            size[VAL] = (size_t)n_val;
            size[TRAIN] = n - size[TEST] - size[VAL];
        }
    }
    if (rc == ERR_OK) {
        assign(v, n, grouped, size, &rng);
        struct leak l = find_leak(v, n);
        for (size_t i = 0; i < n; i++)
            got[v[i].set]++;
        qsort(v, n, sizeof *v, by_index);
        for (size_t i = n; i > 1; i--) { /* Fisher and Yates: any head of a file is a fair sample */
            size_t k = (size_t)random_below(&rng, i);
            struct record x = v[i - 1];
            v[i - 1] = v[k];
            v[k] = x;
        }
        rc = write_sets(t, r, v, n);
        if (rc == ERR_OK && steps)
            rc = write_truth(t, r, v, n);
        if (rc == ERR_OK)
            rc = report(t, got, size, &l, n_read - n);
    }
    pairs_close(r);
    json_decref(sizes.key_of);
    free(v);
    return rc;
}

/* Before anything is written. */
static int check_steps(void)
{
    struct file_list l = {0};
    int rc = !steps ? ERR_OK : !path_is_dir(steps) ? err_set(ERR_IO, "%s: is no folder of STEP files", steps) : file_list_add(&l, steps, STEP_SUFFIXES);
    if (rc == ERR_OK && steps && !l.n)
        rc = err_set(ERR_IO, "%s: holds no .step or .stp file", steps);
    file_list_release(&l);
    return rc;
}

int main(int argc, char **argv)
{
    struct tool t;
    int percent[N_SETS];
    tool_start(&t, &spec, argc, argv);
    int rc = parse_ratios(percent);
    if (rc == ERR_OK && !!parts_file != (group_by && !strcmp(group_by, "sizes")))
        rc = err_set(ERR_USAGE, "--group-by sizes and --parts FILE go together");
    if (rc == ERR_OK)
        rc = check_steps();
    if (rc == ERR_OK)
        rc = tool_begin(&t);
    if (rc == ERR_OK)
        rc = run(&t, percent);
    return tool_finish(&t, rc);
}
