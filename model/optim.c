#include "model/optim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/err.h"
#include "lib/mem.h"
#include "lib/safetensors.h"

static int shape_of(const th_tensor *x, int64_t shape[TH_MAX_RANK])
{
    for (int i = 0; i < th_rank(x); i++)
        shape[i] = th_size(x, i);
    return th_rank(x);
}

int adamw_new(struct model *m, double beta1, double beta2, double eps, double weight_decay, struct adamw **out)
{
    struct adamw *o = xcalloc(1, sizeof *o);
    int rc = ERR_OK;
    *out = NULL;
    *o = (struct adamw){.beta1 = beta1, .beta2 = beta2, .eps = eps, .weight_decay = weight_decay, .m = m};
    o->params = xcalloc(m->n_params, sizeof *o->params);
    o->moment1 = xcalloc(m->n_params, sizeof *o->moment1);
    o->moment2 = xcalloc(m->n_params, sizeof *o->moment2);
    size_t scope = th_scope_begin();
    for (size_t i = 0; i < m->n_params && rc == ERR_OK; i++) {
        if (!m->params[i]->trained)
            continue;
        int64_t shape[TH_MAX_RANK];
        int rank = shape_of(m->params[i]->master, shape);
        o->params[o->n] = m->params[i];
        o->moment1[o->n] = th_keep(th_zeros(rank, shape, TH_F32, m->device));
        o->moment2[o->n] = th_keep(th_zeros(rank, shape, TH_F32, m->device));
        rc = o->moment1[o->n] && o->moment2[o->n] ? ERR_OK : err_code();
        o->n++;
    }
    th_scope_end(scope);
    if (rc == ERR_OK)
        *out = o;
    else
        adamw_free(o);
    return rc;
}

void adamw_free(struct adamw *o)
{
    if (!o)
        return;
    for (size_t i = 0; i < o->n; i++) {
        th_free(o->moment1[i]);
        th_free(o->moment2[i]);
    }
    free(o->params);
    free(o->moment1);
    free(o->moment2);
    free(o);
}

int adamw_clip(struct adamw *o, double max_norm, double *norm)
{
    int rc = ERR_OK;
    size_t scope = th_scope_begin();
    int64_t one = 1;
    th_tensor **norms = xcalloc(o->n, sizeof *norms);
    for (size_t i = 0; i < o->n; i++)
        norms[i] = th_reshape(th_norm(o->params[i]->grad), 1, &one);
    *norm = th_item(th_norm(th_cat(norms, (int)o->n, 0)));
    free(norms);
    if (isnan(*norm) && err_code() < 0)
        rc = err_code();
    if (max_norm > 0 && *norm > max_norm)
        for (size_t i = 0; i < o->n && rc == ERR_OK; i++)
            rc = th_scale_(o->params[i]->grad, max_norm / (*norm + 1e-6));
    th_scope_end(scope);
    return rc;
}

int adamw_step(struct adamw *o, double lr)
{
    int rc = ERR_OK;
    o->step++;
    double fix1 = 1 - pow(o->beta1, (double)o->step), fix2 = 1 - pow(o->beta2, (double)o->step);
    for (size_t i = 0; i < o->n && rc == ERR_OK; i++) {
        struct param *p = o->params[i];
        th_tensor *m = o->moment1[i], *v = o->moment2[i];
        size_t scope = th_scope_begin();
        if (p->decay && o->weight_decay > 0)
            rc = th_scale_(p->master, 1 - lr * o->weight_decay);
        if (rc == ERR_OK && (rc = th_scale_(m, o->beta1)) == ERR_OK)
            rc = th_add_(m, p->grad, 1 - o->beta1);
        if (rc == ERR_OK && (rc = th_scale_(v, o->beta2)) == ERR_OK)
            rc = th_addcmul_(v, p->grad, p->grad, 1 - o->beta2);
        /* sqrt(v / fix2) + eps = (sqrt(v) + eps sqrt(fix2)) / sqrt(fix2) */
        if (rc == ERR_OK)
            rc = th_addcdiv_(p->master, m, th_sqrt_plus(v, o->eps * sqrt(fix2)), -lr * sqrt(fix2) / fix1);
        if (rc == ERR_OK && p->master != p->w)
            rc = th_copy_(p->w, p->master);
        th_scope_end(scope);
    }
    return rc;
}

/* ---- state ---- */

static const char *const KIND[3] = {"exp_avg", "exp_avg_sq", "weight"};

static th_tensor *state_of(const struct adamw *o, size_t i)
{
    size_t p = i / 3;
    return i % 3 == 0 ? o->moment1[p] : i % 3 == 1 ? o->moment2[p] : o->params[p]->master;
}

struct reader {
    struct adamw *o;
    void *bytes;
};

static int read_state(void *ctx, size_t i, const void **data)
{
    struct reader *r = ctx;
    th_tensor *x = state_of(r->o, i);
    free(r->bytes);
    r->bytes = xmalloc((size_t)th_numel(x) * 4 + 1);
    *data = r->bytes;
    return th_read(x, r->bytes);
}

int adamw_save(struct adamw *o, const char *path)
{
    struct reader r = {.o = o};
    struct st_tensor *t = xcalloc(3 * o->n, sizeof *t);
    char step[24];
    for (size_t i = 0; i < 3 * o->n; i++) {
        t[i].name = xasprintf("%s.%s", KIND[i % 3], o->params[i / 3]->name);
        t[i].dtype = ST_F32;
        t[i].rank = shape_of(state_of(o, i), t[i].shape);
    }
    snprintf(step, sizeof step, "%lld", (long long)o->step);
    const char *const metadata[] = {"format", "pt", "step", step, NULL};
    int rc = st_write(path, t, 3 * o->n, read_state, &r, metadata);
    for (size_t i = 0; i < 3 * o->n; i++)
        free((char *)t[i].name);
    free(t);
    free(r.bytes);
    return rc;
}

int adamw_load(struct adamw *o, const char *path)
{
    struct st *st;
    int rc = st_open(path, &st);
    if (rc < 0)
        return rc;
    const char *step = st_metadata(st, "step");
    if (!step)
        rc = err_set(ERR_FORMAT, "%s: is no optimiser state", path);
    for (size_t i = 0; i < 3 * o->n && rc == ERR_OK; i++) {
        int64_t shape[TH_MAX_RANK];
        th_tensor *x = state_of(o, i);
        int rank = shape_of(x, shape);
        const struct st_tensor *t;
        char *name = xasprintf("%s.%s", KIND[i % 3], o->params[i / 3]->name);
        size_t scope = th_scope_begin();
        if ((rc = st_get(st, name, rank, shape, &t)) == ERR_OK && t->dtype != ST_F32)
            rc = err_set(ERR_FORMAT, "%s: %s is not float32", path, name);
        if (rc == ERR_OK)
            rc = th_copy_(x, th_borrow(t->data, rank, shape, TH_F32));
        if (rc == ERR_OK && i % 3 == 2 && o->params[i / 3]->master != o->params[i / 3]->w)
            rc = th_copy_(o->params[i / 3]->w, x);
        th_scope_end(scope);
        free(name);
    }
    if (rc == ERR_OK)
        o->step = strtoll(step, NULL, 10);
    st_close(st);
    return rc;
}

double schedule_factor(enum schedule s, int64_t step, int64_t warmup, int64_t total)
{
    if (step < warmup)
        return (double)step / (double)(warmup > 0 ? warmup : 1);
    if (s == SCHEDULE_CONSTANT)
        return 1;
    double left = total > warmup ? (double)(total - step) / (double)(total - warmup) : 0;
    left = left < 0 ? 0 : left;
    return s == SCHEDULE_LINEAR ? left : 0.5 * (1 + cos(M_PI * (1 - left)));
}
