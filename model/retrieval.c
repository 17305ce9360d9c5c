#include "model/retrieval.h"

#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/pairs.h"
#include "lib/pool.h"
#include "lib/safetensors.h"

struct keyed {
    const char *text;
    size_t index;
};

static int by_text(const void *a, const void *b)
{
    const struct keyed *x = a, *y = b;
    int c = strcmp(x->text, y->text);
    return c ? c : x->index < y->index ? -1 : 1;
}

/* Encoders of one kind are of one size: some of the weights tell them apart. */
static int last_bytes(const char *path, uint64_t *h)
{
    struct file_map m;
    int rc = file_map(path, 0, &m);
    if (rc < 0)
        return rc;
    size_t n = m.size < 65536 ? m.size : 65536;
    *h = fnv1a(*h, m.data + m.size - n, n);
    file_unmap(&m);
    return ERR_OK;
}

/* Tells texts and encoder apart from others. */
static int digest_of(const char *encoder_dir, const char *const *texts, size_t n, char hex[17])
{
    char *weights = path_join(encoder_dir, "model.safetensors");
    uint64_t size = 0, h = FNV_INIT;
    int64_t mtime;
    int rc = file_stamp(weights, &size, &mtime);
    h = fnv1a(h, &size, sizeof size);
    if (rc == ERR_OK)
        rc = last_bytes(weights, &h);
    free(weights);
    for (size_t i = 0; i < n; i++)
        h = fnv1a(h, texts[i], strlen(texts[i]) + 1);
    snprintf(hex, 17, "%016llx", (unsigned long long)h);
    return rc;
}

static bool read_cache(const char *cache, const char *digest, size_t n, int dim, float *out)
{
    struct st *st;
    const int64_t shape[2] = {(int64_t)n, dim};
    const struct st_tensor *t;
    if (!path_exists(cache) || st_open(cache, &st) < 0)
        return false;
    const char *was = st_metadata(st, "digest");
    bool ok = was && !strcmp(was, digest) && st_get(st, "embeddings", 2, shape, &t) == ERR_OK && t->dtype == ST_F32;
    if (ok)
        memcpy(out, t->data, t->bytes);
    st_close(st);
    return ok;
}

static int advance(size_t done)
{
    static size_t before;
    progress_add(done >= before ? done - before : done, 0);
    before = done;
    return stop_requested() ? err_set(ERR_CANCELLED, "stopped by a signal while embedding captions") : ERR_OK;
}

static int embed_distinct(struct encoder *e, const char *const *texts, size_t n, float *out)
{
    size_t dim = (size_t)encoder_dim(e), m = 0;
    struct keyed *k = xmalloc(n * sizeof *k);
    const char **distinct = xmalloc(n * sizeof *distinct);
    for (size_t i = 0; i < n; i++)
        k[i] = (struct keyed){texts[i], i};
    qsort(k, n, sizeof *k, by_text);
    for (size_t i = 0; i < n; i++)
        if (!i || strcmp(k[i].text, k[i - 1].text))
            distinct[m++] = k[i].text;
    float *rows = xmalloc(m * dim * sizeof *rows);
    progress_start("embedding", m, "captions");
    int rc = encoder_embed(e, distinct, m, rows, advance);
    progress_end();
    for (size_t i = 0, row = 0; i < n && rc == ERR_OK; i++) {
        row += i && strcmp(k[i].text, k[i - 1].text);
        memcpy(out + k[i].index * dim, rows + row * dim, dim * sizeof *out);
    }
    free(rows);
    free(distinct);
    free(k);
    return rc;
}

int retrieval_embed(struct encoder *e, const char *encoder_dir, const char *const *texts, size_t n, const char *cache, float **out)
{
    char digest[17];
    int dim = encoder_dim(e), rc = digest_of(encoder_dir, texts, n, digest);
    *out = NULL;
    if (rc < 0)
        return rc;
    float *v = xmalloc(n * (size_t)dim * sizeof *v);
    if (!cache || !read_cache(cache, digest, n, dim, v)) {
        rc = embed_distinct(e, texts, n, v);
        if (rc == ERR_OK && cache) {
            const struct st_tensor t = {.name = "embeddings", .dtype = ST_F32, .rank = 2, .shape = {(int64_t)n, dim}, .data = v};
            rc = st_write(cache, &t, 1, NULL, NULL, (const char *const[]){"digest", digest, NULL});
        }
    }
    if (rc < 0)
        free(v);
    else
        *out = v;
    return rc;
}

size_t retrieval_nearest(const float *vectors, size_t n, int dim, const float *q, size_t k, size_t *index, float *score)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        const float *v = vectors + i * (size_t)dim;
        float s = 0;
        for (int d = 0; d < dim; d++)
            s += v[d] * q[d];
        if (found == k && s <= score[k - 1])
            continue;
        size_t at = found < k ? found++ : k - 1;
        for (; at > 0 && score[at - 1] < s; at--) {
            score[at] = score[at - 1];
            index[at] = index[at - 1];
        }
        score[at] = s;
        index[at] = i;
    }
    return found;
}

/* ---- a library of parts ---- */

struct retrieval {
    struct encoder *e;
    char **id, **caption, **part;
    size_t n, cap;
    float *x;
};

static int read_records(struct retrieval *l, const char *pairs)
{
    struct pairs *r;
    struct pair p;
    int rc = pairs_open(pairs, &r);
    if (rc < 0)
        return rc;
    while ((rc = pairs_next(r, &p)) > 0) {
        size_t cap = l->cap, cap2 = l->cap;
        ARRAY_GROW(l->id, l->cap, l->n + 1);
        ARRAY_GROW(l->caption, cap, l->n + 1);
        ARRAY_GROW(l->part, cap2, l->n + 1);
        l->id[l->n] = xstrdup(p.id_original);
        l->caption[l->n] = xstrdup(p.caption);
        l->part[l->n++] = xstrdup(p.output ? p.output : "");
    }
    pairs_close(r);
    return rc == ERR_OK && !l->n ? err_set(ERR_FORMAT, "%s: holds no record", pairs) : rc;
}

int retrieval_open(const char *pairs, const char *encoder_dir, struct retrieval **out)
{
    struct retrieval *l = xcalloc(1, sizeof *l);
    int rc = encoder_dir ? read_records(l, pairs) : err_set(ERR_USAGE, "--rag needs --encoder DIR");
    *out = NULL;
    if (rc == ERR_OK)
        rc = encoder_load(encoder_dir, &l->e);
    if (rc == ERR_OK) {
        char *cache = xasprintf("%s.embeddings.safetensors", pairs);
        rc = retrieval_embed(l->e, encoder_dir, (const char *const *)l->caption, l->n, cache, &l->x);
        free(cache);
    }
    if (rc < 0)
        retrieval_close(l);
    else
        *out = l;
    return rc;
}

void retrieval_close(struct retrieval *l)
{
    if (!l)
        return;
    for (size_t i = 0; i < l->n; i++) {
        free(l->id[i]);
        free(l->caption[i]);
        free(l->part[i]);
    }
    free(l->id);
    free(l->caption);
    free(l->part);
    free(l->x);
    encoder_free(l->e);
    free(l);
}

int retrieval_find(struct retrieval *l, const char *caption, const char *self, struct retrieval_hit hit[RETRIEVAL_NEAREST],
                   size_t *n, int *use)
{
    size_t index[RETRIEVAL_NEAREST];
    float score[RETRIEVAL_NEAREST], *x = xmalloc((size_t)encoder_dim(l->e) * sizeof *x);
    int rc = encoder_embed(l->e, &caption, 1, x, NULL);
    *n = rc == ERR_OK ? retrieval_nearest(l->x, l->n, encoder_dim(l->e), x, RETRIEVAL_NEAREST, index, score) : 0;
    *use = -1;
    for (size_t k = 0; k < *n; k++) {
        hit[k] = (struct retrieval_hit){.id = l->id[index[k]], .caption = l->caption[index[k]], .part = l->part[index[k]], .cosine = score[k]};
        if (*use < 0 && *hit[k].part && !(self && !strcmp(self, hit[k].id)))
            *use = (int)k;
    }
    free(x);
    return rc;
}
