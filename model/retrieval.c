#include "model/retrieval.h"

#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
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

/* Tells texts and encoder apart from others. */
static int digest_of(const char *encoder_dir, const char *const *texts, size_t n, char hex[17])
{
    char *weights = path_join(encoder_dir, "model.safetensors");
    uint64_t size = 0, h = FNV_INIT;
    int64_t mtime;
    int rc = file_stamp(weights, &size, &mtime);
    free(weights);
    h = fnv1a(h, &size, sizeof size);
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
