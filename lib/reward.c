#include "lib/reward.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/chamfer.h"
#include "lib/err.h"
#include "lib/files.h"
#include "lib/isolate.h"
#include "lib/pool.h"

/* A truth's part, kept between batches; the least recently used goes first. */
struct truth {
    char *path, *failure;
    struct part part;
    uint64_t used; /* number of the batch */
};

struct loaded {
    char *failure;
    struct part part;
};

struct reward {
    struct reward_opts o;
    struct chamfer_opts chamfer;
    struct part_request request;
    struct isolate *pool;
    struct truth *truth;
    size_t n_truths, cap_truths;
    uint64_t batch;
};

struct batch {
    struct reward *r;
    const struct reward_item *items;
    size_t n;
    size_t *truth_of;   /* index into r->truth */
    size_t first_new;   /* truths from here on are to be loaded */
    struct loaded *pred;
    struct reward_score *out;
};

int reward_open(const struct reward_opts *opts, struct reward **out)
{
    struct reward *r = xcalloc(1, sizeof *r);
    r->o = *opts;
    if (!r->o.lower && !r->o.upper)
        r->o.lower = 0.01, r->o.upper = 0.5;
    r->o.seconds = r->o.seconds > 0 ? r->o.seconds : 10;
    r->o.threads = r->o.threads > 0 ? r->o.threads : pool_cores();
    r->o.keep_truths = r->o.keep_truths ? r->o.keep_truths : 512;
    r->chamfer = (struct chamfer_opts){.reference = !r->o.hardened, .points = r->o.points};
    r->request = chamfer_request(&r->chamfer);
    *out = NULL;
    int rc = r->o.lower < r->o.upper ? ERR_OK : err_set(ERR_USAGE, "reward: lower bound %g is not below upper bound %g", r->o.lower, r->o.upper);
    if (rc == ERR_OK)
        rc = isolate_open(&(struct isolate_opts){.workers = r->o.threads, .seconds = r->o.seconds, .memory = r->o.memory, .work = r->o.work},
                          &r->pool);
    if (rc == ERR_OK)
        *out = r;
    else
        free(r);
    return rc;
}

static void truth_release(struct truth *t)
{
    free(t->path);
    if (!t->failure)
        part_release(&t->part);
    free(t->failure);
}

void reward_close(struct reward *r)
{
    if (!r)
        return;
    isolate_close(r->pool);
    for (size_t i = 0; i < r->n_truths; i++)
        truth_release(&r->truth[i]);
    free(r->truth);
    free(r);
}

static size_t find_truth(struct reward *r, const char *path)
{
    size_t i = 0;
    while (i < r->n_truths && strcmp(r->truth[i].path, path))
        i++;
    if (i == r->n_truths) {
        ARRAY_GROW(r->truth, r->cap_truths, i + 1);
        r->truth[r->n_truths++] = (struct truth){.path = xstrdup(path)};
    }
    r->truth[i].used = r->batch;
    return i;
}

/* Jobs: the new truths, then the candidates. */
static int make_job(void *ctx, size_t i, struct buf *out)
{
    struct batch *b = ctx;
    size_t n_new = b->r->n_truths - b->first_new;
    if (i < n_new) {
        part_job(&b->r->request, b->r->truth[b->first_new + i].path, out);
    } else {
        const struct reward_item *it = &b->items[i - n_new];
        part_job_text(&b->r->request, it->name, it->text, it->n, out);
    }
    return 0;
}

static int take(void *ctx, const struct isolate_result *res)
{
    struct batch *b = ctx;
    size_t n_new = b->r->n_truths - b->first_new, i = res->index;
    struct part *p = i < n_new ? &b->r->truth[b->first_new + i].part : &b->pred[i - n_new].part;
    char **failure = i < n_new ? &b->r->truth[b->first_new + i].failure : &b->pred[i - n_new].failure;
    if (res->code < 0 || part_decode(res->data, res->n, p) < 0) {
        *failure = xstrdup(res->code < 0 ? res->error : err_text());
    } else if (p->status != PART_OK) {
        *failure = xstrdup(p->reason);
        part_release(p);
    }
    return ERR_OK;
}

static double hardened(struct reward *r, const struct part *truth, const struct part *pred, struct reward_score *s)
{
    s->closed = pred->n_shells && pred->n_closed_shells == pred->n_shells && !pred->n_loose_shells;
    s->valid = pred->checked && pred->valid && !part_gaps(pred);
    s->volume_ratio = pred->volume / truth->volume;
    double v = fmin(s->volume_ratio, 1 / s->volume_ratio);
    if (!pred->n_solids || !(pred->min_solid_volume > 0) || !(v > 0)) {
        snprintf(s->reason, sizeof s->reason, "no solid of positive volume");
        return 0;
    }
    double reward = chamfer_reward(s->worse, r->o.lower, r->o.upper);
    return reward * (s->closed && s->valid ? 1 : 0.5) * (v >= 0.9 ? 1 : v / 0.9);
}

/* FNV-1a of the names: a seed that a candidate keeps in every batch. */
static uint32_t seed_of(const struct reward_item *it)
{
    uint64_t h = fnv1a(FNV_INIT, it->truth, strlen(it->truth));
    h = it->text ? fnv1a(h, it->text, it->n) : fnv1a(h, it->name, strlen(it->name));
    return (uint32_t)(h ^ h >> 32);
}

static void *score_one(void *ctx, size_t i, int worker, int *code)
{
    (void)worker;
    struct batch *b = ctx;
    const struct truth *t = &b->r->truth[b->truth_of[i]];
    struct reward_score *s = &b->out[i];
    *code = ERR_OK;
    *s = (struct reward_score){.scd = NAN, .scd_two_sided = NAN, .worse = NAN, .volume_ratio = NAN};
    const char *why = t->failure ? t->failure : b->pred[i].failure;
    if (why) {
        s->status = t->failure ? REWARD_TRUTH_FAILED : REWARD_PRED_FAILED;
        snprintf(s->reason, sizeof s->reason, "%s", why);
        return NULL;
    }
    struct chamfer_opts o = b->r->chamfer;
    struct chamfer_score c;
    o.seed = seed_of(&b->items[i]);
    if (o.reference && !b->items[i].text && chamfer_seed(t->path, b->items[i].name, &o.seed) < 0)
        o.seed = seed_of(&b->items[i]);
    chamfer_score(&t->part, &b->pred[i].part, &o, &c);
    if (!c.ok) {
        s->status = !strcmp(c.reason, "degenerate_truth") ? REWARD_TRUTH_FAILED : REWARD_PRED_FAILED;
        snprintf(s->reason, sizeof s->reason, "%s", c.reason);
        return NULL;
    }
    s->scd = c.scd;
    s->scd_two_sided = c.scd_two_sided;
    s->worse = fmax(c.scd, c.scd_two_sided - c.scd);
    s->reward = o.reference ? chamfer_reward(c.scd, b->r->o.lower, b->r->o.upper) : hardened(b->r, &t->part, &b->pred[i].part, s);
    return NULL;
}

static int scored(void *ctx, const struct pool_item *it)
{
    (void)ctx, (void)it;
    return ERR_OK;
}

int reward_batch(struct reward *r, const struct reward_item *items, size_t n, struct reward_score *out)
{
    struct batch b = {.r = r, .items = items, .n = n, .out = out};
    r->batch++;
    while (r->n_truths > r->o.keep_truths) {
        size_t old = 0;
        for (size_t i = 1; i < r->n_truths; i++)
            old = r->truth[i].used < r->truth[old].used ? i : old;
        truth_release(&r->truth[old]);
        r->truth[old] = r->truth[--r->n_truths];
    }
    b.first_new = r->n_truths;
    b.truth_of = xcalloc(n + 1, sizeof *b.truth_of);
    b.pred = xcalloc(n + 1, sizeof *b.pred);
    for (size_t i = 0; i < n; i++)
        b.truth_of[i] = find_truth(r, items[i].truth);
    int rc = isolate_run(r->pool, &(struct isolate_batch){.n = r->n_truths - b.first_new + n, .what = r->o.what, .unit = "files",
                                                          .job = make_job, .done = take, .ctx = &b});
    struct pool_job job = {.n = n, .threads = r->o.threads, .work = score_one, .done = scored, .ctx = &b};
    if (rc == ERR_OK)
        rc = pool_run(&job);
    else /* truths may not have come */
        while (r->n_truths > b.first_new)
            truth_release(&r->truth[--r->n_truths]);
    for (size_t i = 0; i < n; i++) {
        if (!b.pred[i].failure)
            part_release(&b.pred[i].part);
        free(b.pred[i].failure);
    }
    free(b.pred);
    free(b.truth_of);
    return rc;
}
