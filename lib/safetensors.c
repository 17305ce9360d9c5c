#include "lib/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/json.h"
#include "lib/mem.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian and is used in place"
#endif

enum { HEADER_MAX = 100 * 1000 * 1000, INDEX_MAX = 64 * 1024 * 1024 };

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [ST_BOOL] = {"BOOL", 1},       [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_I16] = {"I16", 2},
    [ST_U16] = {"U16", 2},         [ST_F16] = {"F16", 2},         [ST_BF16] = {"BF16", 2},
    [ST_I32] = {"I32", 4},         [ST_U32] = {"U32", 4},         [ST_F32] = {"F32", 4},
    [ST_F64] = {"F64", 8},         [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
};

size_t st_dtype_size(enum st_dtype d)
{
    return dtypes[d].size;
}

const char *st_dtype_name(enum st_dtype d)
{
    return dtypes[d].name;
}

/* ---- reading ---- */

struct st_file {
    char *path;
    struct file_map map;
    json_t *header; /* owns the names */
};

struct st {
    char *path;
    struct st_file *files;
    size_t n_files, cap_files;
    struct st_tensor *v; /* sorted by name */
    size_t n, cap;
    json_t *index;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Bytes of a tensor of that type and shape; false if over 2^62. */
static bool tensor_bytes(enum st_dtype dtype, int rank, const int64_t *shape, uint64_t *out)
{
    uint64_t n = dtypes[dtype].size;
    bool zero = false;
    for (int i = 0; i < rank; i++) {
        if (shape[i] == 0)
            zero = true;
        else if (__builtin_mul_overflow(n, (uint64_t)shape[i], &n) || n >> 62)
            return false;
    }
    *out = zero ? 0 : n;
    return true;
}

static int parse_tensor(const struct st_file *f, const char *data, uint64_t n_data, const char *name,
                        const json_t *j, struct st_tensor *t)
{
    const json_t *shape = json_object_get(j, "shape"), *offsets = json_object_get(j, "data_offsets");
    const char *dtype = json_string_value(json_object_get(j, "dtype"));
    *t = (struct st_tensor){.name = name};
    if (!dtype)
        return err_set(ERR_FORMAT, "%s: tensor %.200s: no dtype", f->path, name);
    size_t d = 0;
    while (d < ARRAY_LEN(dtypes) && strcmp(dtypes[d].name, dtype))
        d++;
    if (d == ARRAY_LEN(dtypes))
        return err_set(ERR_FORMAT, "%s: tensor %.200s: unknown dtype %.40s", f->path, name, dtype);
    t->dtype = (enum st_dtype)d;
    if (!json_is_array(shape) || json_array_size(shape) > ST_MAX_RANK)
        return err_set(ERR_FORMAT, "%s: tensor %.200s: shape is no list of at most %d numbers", f->path, name,
                       ST_MAX_RANK);
    t->rank = (int)json_array_size(shape);
    for (int i = 0; i < t->rank; i++) {
        const json_t *v = json_array_get(shape, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return err_set(ERR_FORMAT, "%s: tensor %.200s: bad shape", f->path, name);
        t->shape[i] = json_integer_value(v);
    }
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return err_set(ERR_FORMAT, "%s: tensor %.200s: data_offsets is no pair of numbers", f->path, name);
    json_int_t a = json_integer_value(from), b = json_integer_value(to);
    if (a < 0 || b < a || (uint64_t)b > n_data)
        return err_set(ERR_FORMAT, "%s: tensor %.200s: data_offsets %lld..%lld lie outside the file's %" PRIu64
                       " data bytes (cut short?)", f->path, name, (long long)a, (long long)b, n_data);
    uint64_t want;
    if (!tensor_bytes(t->dtype, t->rank, t->shape, &want) || want != (uint64_t)(b - a))
        return err_set(ERR_FORMAT, "%s: tensor %.200s: %lld bytes do not hold its shape as %s", f->path, name,
                       (long long)(b - a), dtype);
    t->data = data + a;
    t->bytes = (size_t)want;
    return ERR_OK;
}

/* Maps a file and appends its tensors to v. */
static int read_file(struct st *s, const char *path, struct st_tensor **v, size_t *n, size_t *cap)
{
    ARRAY_GROW(s->files, s->cap_files, s->n_files + 1);
    struct st_file *f = &s->files[s->n_files++];
    *f = (struct st_file){.path = xstrdup(path)};
    int rc = file_map(path, 0, &f->map);
    if (rc < 0)
        return rc;
    uint64_t n_header = 0;
    if (f->map.size < 8)
        return err_set(ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", path, f->map.size);
    memcpy(&n_header, f->map.data, 8);
    if (n_header > HEADER_MAX)
        return err_set(ERR_FORMAT, "%s: not a safetensors file (header of %" PRIu64 " bytes)", path, n_header);
    if (n_header > f->map.size - 8)
        return err_set(ERR_FORMAT, "%s: cut short: its header is of %" PRIu64 " bytes, the file of %zu", path,
                       n_header, f->map.size);
    json_error_t e;
    f->header = json_loadb(f->map.data + 8, (size_t)n_header, JSON_REJECT_DUPLICATES, &e);
    if (!f->header)
        return err_set(ERR_FORMAT, "%s: header, byte %d: %s", path, 8 + e.position, e.text);
    if (!json_is_object(f->header))
        return err_set(ERR_FORMAT, "%s: the header is no JSON object", path);

    const char *data = f->map.data + 8 + n_header, *name, *key;
    uint64_t n_data = f->map.size - 8 - n_header;
    json_t *j, *value;
    size_t first = *n;
    json_object_foreach(f->header, name, j) {
        if (!strcmp(name, "__metadata__")) {
            if (!json_is_object(j))
                return err_set(ERR_FORMAT, "%s: __metadata__ is no object", path);
            json_object_foreach(j, key, value)
                if (!json_is_string(value))
                    return err_set(ERR_FORMAT, "%s: __metadata__: %.100s is no string", path, key);
            continue;
        }
        ARRAY_GROW(*v, *cap, *n + 1);
        if ((rc = parse_tensor(f, data, n_data, name, j, &(*v)[*n])) < 0)
            return rc;
        ++*n;
    }
    /* The tensors fill the data exactly: overlaps and holes are how such files hide things. */
    if (*n > first)
        qsort(*v + first, *n - first, sizeof **v, by_offset);
    const char *at = data;
    for (size_t i = first; i < *n; i++) {
        const struct st_tensor *t = &(*v)[i];
        if (t->data != at)
            return err_set(ERR_FORMAT, "%s: tensor %.200s: %s the one before it", path, t->name,
                           (const char *)t->data < at ? "overlaps" : "leaves a gap after");
        at += t->bytes;
    }
    if (at != data + n_data)
        return err_set(ERR_FORMAT, "%s: %td bytes after the last tensor", path, data + n_data - at);
    return ERR_OK;
}

static int read_index(struct st *s, const char *path)
{
    int rc = json_read_file(path, INDEX_MAX, &s->index);
    if (rc < 0)
        return rc;
    json_t *map = json_object_get(s->index, "weight_map"), *j;
    if (!json_is_object(map))
        return err_set(ERR_FORMAT, "%s: no weight_map", path);
    char *dir = path_dirname(path);
    json_t *seen = json_object(); /* file -> index of its first tensor in `all`, and after its last */
    struct st_tensor *all = NULL;
    size_t n_all = 0, cap_all = 0;
    const char *name;
    json_object_foreach(map, name, j) {
        const char *file = json_string_value(j);
        if (!file || !*file || strchr(file, '/') || file[0] == '.') {
            rc = err_set(ERR_FORMAT, "%s: %.200s: is not in a file beside the index", path, name);
            break;
        }
        json_t *range = json_object_get(seen, file);
        if (!range) {
            char *p = path_join(dir, file);
            size_t first = n_all;
            rc = read_file(s, p, &all, &n_all, &cap_all);
            free(p);
            if (rc < 0)
                break;
            if (n_all > first)
                qsort(all + first, n_all - first, sizeof *all, by_name);
            range = json_pack("[II]", (json_int_t)first, (json_int_t)n_all);
            json_object_set_new(seen, file, range);
        }
        size_t from = (size_t)json_integer_value(json_array_get(range, 0));
        size_t to = (size_t)json_integer_value(json_array_get(range, 1));
        struct st_tensor key = {.name = name};
        struct st_tensor *t = to > from ? bsearch(&key, all + from, to - from, sizeof *all, by_name) : NULL;
        if (!t) {
            rc = err_set(ERR_FORMAT, "%s: %.200s is not in %s, where the index has it", path, name, file);
            break;
        }
        ARRAY_GROW(s->v, s->cap, s->n + 1);
        s->v[s->n++] = *t;
    }
    json_decref(seen);
    free(all);
    free(dir);
    return rc;
}

int st_open(const char *path, struct st **out)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "adapter_model.safetensors"};
    struct st *s = xcalloc(1, sizeof *s);
    int rc;
    if (path_is_dir(path)) {
        for (size_t i = 0; i < ARRAY_LEN(names) && !s->path; i++) {
            s->path = path_join(path, names[i]);
            if (!path_exists(s->path)) {
                free(s->path);
                s->path = NULL;
            }
        }
        if (!s->path) {
            rc = err_set(ERR_IO, "%s: holds no model.safetensors", path);
            goto out;
        }
    } else {
        s->path = xstrdup(path);
    }
    rc = path_has_suffix(s->path, ".json") ? read_index(s, s->path) : read_file(s, s->path, &s->v, &s->n, &s->cap);
    if (rc == ERR_OK && s->n)
        qsort(s->v, s->n, sizeof *s->v, by_name);
out:
    if (rc < 0) {
        st_close(s);
        s = NULL;
    }
    *out = s;
    return rc;
}

void st_close(struct st *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_files; i++) {
        file_unmap(&s->files[i].map);
        json_decref(s->files[i].header);
        free(s->files[i].path);
    }
    json_decref(s->index);
    free(s->files);
    free(s->v);
    free(s->path);
    free(s);
}

size_t st_count(const struct st *s)
{
    return s->n;
}

const struct st_tensor *st_at(const struct st *s, size_t i)
{
    return &s->v[i];
}

const struct st_tensor *st_find(const struct st *s, const char *name)
{
    struct st_tensor key = {.name = name};
    return s->n ? bsearch(&key, s->v, s->n, sizeof *s->v, by_name) : NULL;
}

static void shape_text(int rank, const int64_t *shape, char *out, size_t n)
{
    size_t k = 0;
    out[0] = 0;
    for (int i = 0; i < rank && k < n; i++)
        k += (size_t)snprintf(out + k, n - k, "%s%" PRId64, i ? " x " : "", shape[i]);
    if (!rank)
        snprintf(out, n, "scalar");
}

int st_get(const struct st *s, const char *name, int rank, const int64_t *shape, const struct st_tensor **out)
{
    const struct st_tensor *t = *out = st_find(s, name);
    if (!t)
        return err_set(ERR_FORMAT, "%s: has no tensor %s", s->path, name);
    if (rank >= 0 && (t->rank != rank || memcmp(t->shape, shape, (size_t)rank * sizeof *shape))) {
        char is[200], due[200];
        shape_text(t->rank, t->shape, is, sizeof is);
        shape_text(rank, shape, due, sizeof due);
        *out = NULL;
        return err_set(ERR_FORMAT, "%s: tensor %s is %s, %s is due", s->path, name, is, due);
    }
    return ERR_OK;
}

const char *st_metadata(const struct st *s, const char *key)
{
    const json_t *m = s->n_files ? json_object_get(s->files[0].header, "__metadata__") : NULL;
    return json_string_value(json_object_get(m, key));
}

const char *st_path(const struct st *s)
{
    return s->path;
}

uint64_t st_digest(const struct st *s)
{
    uint64_t h = FNV_INIT;
    for (size_t i = 0; i < st_count(s); i++) {
        const struct st_tensor *t = st_at(s, i);
        size_t n = t->bytes < 64 ? t->bytes : 64;
        h = fnv1a(h, t->name, strlen(t->name) + 1);
        h = fnv1a(h, st_dtype_name(t->dtype), strlen(st_dtype_name(t->dtype)));
        h = fnv1a(h, t->shape, sizeof *t->shape * (size_t)t->rank);
        for (int k = 0; k < 3; k++)
            h = fnv1a(h, (const char *)t->data + (t->bytes - n) / 2 * (size_t)k, n);
    }
    return h;
}

/* ---- writing ---- */

/* The tensors v[at[0..n)], in file order, make the file. */
static int write_tensors(const char *path, const struct st_tensor *v, const size_t *at, size_t n, st_get_fn *get,
                         void *ctx, const char *const *metadata)
{
    static const char *const pt[] = {"format", "pt", NULL};
    static const size_t sizes[] = {8, 4, 2, 1};
    size_t *order = xmalloc((n + 1) * sizeof *order), m = 0;
    for (size_t k = 0; k < ARRAY_LEN(sizes); k++)
        for (size_t i = 0; i < n; i++)
            if (dtypes[v[at[i]].dtype].size == sizes[k])
                order[m++] = at[i];

    struct atomic_file a = {0};
    struct buf h = BUF_INIT;
    struct jw j = JW_INIT(&h);
    uint64_t offset = 0, bytes;
    int rc = ERR_OK;
    jw_object(&j);
    jw_key(&j, "__metadata__");
    jw_object(&j);
    for (const char *const *p = metadata ? metadata : pt; *p; p += 2)
        jw_kv_str(&j, p[0], p[1]);
    jw_end(&j);
    for (size_t i = 0; i < n; i++) {
        const struct st_tensor *t = &v[order[i]];
        if (!tensor_bytes(t->dtype, t->rank, t->shape, &bytes)) {
            rc = err_set(ERR_USAGE, "%s: tensor %s is too large", path, t->name);
            goto out;
        }
        jw_key(&j, t->name);
        jw_object(&j);
        jw_kv_str(&j, "dtype", dtypes[t->dtype].name);
        jw_key(&j, "shape");
        jw_array(&j);
        for (int k = 0; k < t->rank; k++)
            jw_int(&j, t->shape[k]);
        jw_end(&j);
        jw_key(&j, "data_offsets");
        jw_array(&j);
        jw_int(&j, (int64_t)offset);
        jw_int(&j, (int64_t)(offset += bytes));
        jw_end(&j);
        jw_end(&j);
    }
    jw_end(&j);
    while (h.n % 8)
        buf_putc(&h, ' '); /* the data starts aligned */

    if ((rc = atomic_open(&a, path)) < 0)
        goto out;
    uint64_t n_header = h.n;
    fwrite(&n_header, 8, 1, a.f);
    fwrite(h.s, 1, h.n, a.f);
    for (size_t i = 0; i < n && rc == ERR_OK && !ferror(a.f); i++) {
        const struct st_tensor *t = &v[order[i]];
        const void *data = t->data;
        tensor_bytes(t->dtype, t->rank, t->shape, &bytes);
        if (!data && bytes)
            rc = get ? get(ctx, order[i], &data) : err_set(ERR_USAGE, "%s: tensor %s has no data", path, t->name);
        if (rc == ERR_OK && bytes)
            fwrite(data, 1, (size_t)bytes, a.f);
    }
    if (rc == ERR_OK)
        rc = atomic_commit(&a, true);
    else
        atomic_abort(&a);
out:
    buf_release(&h);
    free(order);
    return rc;
}

int st_write(const char *path, const struct st_tensor *v, size_t n, st_get_fn *get, void *ctx,
             const char *const *metadata)
{
    size_t *at = xmalloc((n + 1) * sizeof *at);
    for (size_t i = 0; i < n; i++)
        at[i] = i;
    int rc = write_tensors(path, v, at, n, get, ctx, metadata);
    free(at);
    return rc;
}

static int write_index(const char *dir, const struct st_tensor *v, size_t n, const uint32_t *shard, uint32_t n_shards,
                       uint64_t total)
{
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    j.indent = 2;
    jw_object(&j);
    jw_key(&j, "metadata");
    jw_object(&j);
    jw_kv_int(&j, "total_size", (int64_t)total);
    jw_end(&j);
    jw_key(&j, "weight_map");
    jw_object(&j);
    for (size_t i = 0; i < n; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05u-of-%05u.safetensors", shard[i] + 1, n_shards);
        jw_kv_str(&j, v[i].name, name);
    }
    jw_end(&j);
    jw_end(&j);
    buf_putc(&b, '\n');
    char *path = path_join(dir, "model.safetensors.index.json");
    int rc = file_write(path, b.s, b.n, true);
    free(path);
    buf_release(&b);
    return rc;
}

int st_write_model(const char *dir, const struct st_tensor *v, size_t n, st_get_fn *get, void *ctx,
                   uint64_t max_shard_bytes)
{
    uint64_t limit = max_shard_bytes ? max_shard_bytes : 5000000000u, total = 0, in_shard = 0, bytes;
    uint32_t *shard = xmalloc((n + 1) * sizeof *shard), n_shards = 1;
    size_t *at = xmalloc((n + 1) * sizeof *at);
    char *single = path_join(dir, "model.safetensors"), *index = path_join(dir, "model.safetensors.index.json");
    int rc = ERR_OK;
    for (size_t i = 0; i < n; i++) {
        if (!tensor_bytes(v[i].dtype, v[i].rank, v[i].shape, &bytes)) {
            rc = err_set(ERR_USAGE, "%s: tensor %s is too large", dir, v[i].name);
            goto out;
        }
        if (in_shard && in_shard + bytes > limit) {
            n_shards++;
            in_shard = 0;
        }
        shard[i] = n_shards - 1;
        in_shard += bytes;
        total += bytes;
    }
    for (uint32_t k = 0; k < n_shards && rc == ERR_OK; k++) {
        size_t m = 0;
        for (size_t i = 0; i < n; i++)
            if (shard[i] == k)
                at[m++] = i;
        char name[64] = "model.safetensors";
        if (n_shards > 1)
            snprintf(name, sizeof name, "model-%05u-of-%05u.safetensors", k + 1, n_shards);
        char *path = path_join(dir, name);
        rc = write_tensors(path, v, at, m, get, ctx, NULL);
        free(path);
    }
    if (rc == ERR_OK && n_shards > 1)
        rc = write_index(dir, v, n, shard, n_shards, total);
    /* A model of the other layout that stood here must not be read instead of this one. */
    if (rc == ERR_OK)
        remove(n_shards > 1 ? single : index);
out:
    free(single);
    free(index);
    free(shard);
    free(at);
    return rc;
}
