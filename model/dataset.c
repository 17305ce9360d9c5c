#include "model/dataset.h"

#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/pairs.h"
#include "lib/prompt.h"
#include "lib/step_prep.h"

static void add(struct dataset *d, const struct pair *p, const struct tok_ids *ids, size_t response, int64_t max, bool truncate)
{
    size_t n = ids->n;
    if ((int64_t)n > max) {
        d->n_long++;
        if (!truncate)
            return;
        n = (size_t)max;
    }
    if (!*p->output || response < 1 || response >= n) {
        d->n_empty++;
        return;
    }
    size_t cap_id = d->cap;
    ARRAY_GROW(d->v, d->cap, d->n + 1);
    ARRAY_GROW(d->id, cap_id, d->n + 1);
    int32_t *copy = xmalloc(n * sizeof *copy);
    memcpy(copy, ids->v, n * sizeof *copy);
    d->id[d->n] = xstrdup(p->id_original);
    d->v[d->n++] = (struct sequence){.ids = copy, .n = n, .response = response};
    d->n_tokens += n;
    d->digest = fnv1a(d->digest, copy, n * sizeof *copy);
    d->digest = fnv1a(d->digest, p->id_original, strlen(p->id_original));
}

int dataset_read(const char *path, const struct tok *t, bool rag, int64_t max_tokens, bool truncate, struct dataset *out)
{
    struct pairs *r;
    struct pair p;
    struct tok_ids ids = {0};
    *out = (struct dataset){.digest = FNV_INIT};
    int rc = pairs_open(path, &r);
    if (rc < 0)
        return rc;
    while ((rc = pairs_next(r, &p)) > 0) {
        size_t response;
        if (rag && !p.retrieved) {
            rc = err_set(ERR_FORMAT, "%s: record %zu (%s) has no retrieved part; train without retrieval (-o rag=false)", path,
                         p.index + 1, p.id_original);
            break;
        }
        bool compact = step_is_compact(p.output, strlen(p.output));
        if (!p.index)
            out->compact = compact;
        if (*p.output && compact != out->compact) {
            rc = err_set(ERR_FORMAT, "%s: record %zu (%s) is in the %s form, the first is not; use one form for all", path, p.index + 1,
                         p.id_original, compact ? "compact" : "named");
            break;
        }
        ids.n = 0;
        if ((rc = prompt_encode_training(t, p.caption, rag ? p.retrieved : NULL, p.output, &ids, &response)) < 0) {
            rc = err_wrap("%s: record %zu (%s)", path, p.index + 1, p.id_original);
            break;
        }
        add(out, &p, &ids, response, max_tokens, truncate);
    }
    pairs_close(r);
    tok_ids_release(&ids);
    if (rc < 0)
        dataset_release(out);
    return rc;
}

void dataset_release(struct dataset *d)
{
    for (size_t i = 0; i < d->n; i++) {
        free((int32_t *)d->v[i].ids);
        free(d->id[i]);
    }
    free(d->v);
    free(d->id);
    *d = (struct dataset){0};
}

size_t dataset_pack(const struct sequence *v, size_t n, size_t max_tokens, size_t *pass)
{
    size_t *order = xmalloc((n + 1) * sizeof *order), *used = xcalloc(n + 1, sizeof *used), passes = 0;
    for (size_t i = 0; i < n; i++) { /* by length, falling; equal ones in their order */
        size_t at = i;
        for (; at > 0 && v[order[at - 1]].n < v[i].n; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    for (size_t i = 0; i < n; i++) {
        size_t k = 0, len = v[order[i]].n;
        while (k < passes && used[k] + len > max_tokens)
            k++;
        passes += k == passes;
        used[k] += len;
        pass[order[i]] = k;
    }
    free(order);
    free(used);
    return passes;
}
