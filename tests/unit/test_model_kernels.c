/* The training step's kernels (kernels/train.h) against ATen's operators in float32: on the CPU the twins of model/train_twin.c, with
 * TEST_DEVICE=cuda those of kernels/train.cu.  Both types, sizes that fill whole blocks and sizes that do not. */
#include "tests/unit/testutil.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/train.h"
#include "lib/err.h"
#include "lib/mem.h"
#include "shim/kernels.h"
#include "shim/torch.h"

static enum th_device device = TH_CPU;
static const struct train_kernels *kernels;
static struct tk tk;
static enum th_dtype type;

static th_tensor *random2(int64_t rows, int64_t cols)
{
    int64_t shape[2] = {rows, cols};
    th_tensor *x = th_empty(2, shape, TH_F32, TH_CPU);
    assert_int_equal(th_normal_(x, 0, 1), 0);
    return th_to(x, type, TH_CPU);
}

static th_tensor *on_device(th_tensor *x) { return th_clone(th_to(x, th_dtype_of(x), device)); }
static th_tensor *f32(th_tensor *x) { return th_to(x, TH_F32, TH_CPU); }

static th_tensor *made(int64_t rows, int64_t cols, enum th_dtype t)
{
    int64_t shape[2] = {rows, cols};
    th_tensor *x = th_empty(2, shape, t, device);
    assert_int_equal(th_fill_(x, NAN), 0); /* what is not written shows */
    return x;
}

static th_tensor *ints(const int32_t *v, int64_t n)
{
    return th_from(v, 1, &n, TH_I32, device);
}

/* ||got - want|| / ||want|| */
static void close_to(const char *what, th_tensor *got, th_tensor *want, double f32_limit)
{
    if (!got || !want)
        fail_msg("%s: %s", what, err_text());
    assert_int_equal(th_numel(got), th_numel(want));
    double limit = type == TH_BF16 && th_dtype_of(got) == TH_BF16 ? 4e-3 : f32_limit;
    th_tensor *w = f32(want), *g = f32(got);
    int64_t shape[1] = {-1};
    g = th_reshape(g, 1, shape);
    w = th_reshape(w, 1, shape);
    double off = th_item(th_norm(th_add(g, w, -1))) / (th_item(th_norm(w)) + 1e-30);
    if (!(off < limit))
        fail_msg("%s (%s) is off by %g", what, type == TH_BF16 ? "bfloat16" : "float32", off);
}

static void ok(int code)
{
    if (code)
        fail_msg("%s", kernels->error(code));
}

static th_tensor *eight(int64_t rows, int64_t cols)
{
    int64_t shape[2] = {rows, cols};
    return th_empty(2, shape, TH_F8, device);
}

/* q qs is x, rounded to e4m3 by ATen, with rows that reach up to 448. */
static void eight_bits(const char *what, th_tensor *q, th_tensor *qs, th_tensor *x)
{
    int64_t rows = th_size(x, 0), n = th_size(x, 1);
    float *v = xmalloc((size_t)(rows * n) * sizeof *v), *scale = xmalloc((size_t)rows * sizeof *scale);
    assert_int_equal(th_read(f32(x), v), 0);
    assert_int_equal(th_read(f32(qs), scale), 0);
    for (int64_t i = 0; i < rows; i++) {
        float top = 0;
        for (int64_t j = 0; j < n; j++)
            top = fmaxf(top, fabsf(v[i * n + j]));
        if (!(fabsf(scale[i] - top / 448) <= 1e-6f * top))
            fail_msg("%s: row %d's scale is %g, its largest is %g", what, (int)i, scale[i], top);
        for (int64_t j = 0; j < n; j++)
            v[i * n + j] *= 448 / top;
    }
    const int64_t shape[2] = {rows, n};
    th_tensor *want = f32(th_to(th_borrow(v, 2, shape, TH_F32), TH_F8, TH_CPU)), *got = f32(q);
    double off = th_item(th_norm(th_add(got, want, -1))) / th_item(th_norm(want));
    if (!(off < 1e-3)) /* none but those that fall on a tie */
        fail_msg("%s: 8-bit values are off by %g", what, off);
    free(v);
    free(scale);
}

static void norms(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{3, 64}, {37, 520}, {50, 2048}, {2050, 512}, {9, 3072}, {5, 8192}};
    for (size_t c = 0; c < ARRAY_LEN(sizes); c++)
        for (int added = 0; added < 2; added++) {
            int64_t n = sizes[c][0], d = sizes[c][1], ld = d + 64, partials[2] = {TK_PARTIALS, d};
            size_t scope = th_scope_begin();
            th_tensor *x = random2(n, d), *a = random2(n, d), *w = random2(1, d), *dh = random2(n, ld), *dy = random2(n, ld), *r, *dw;
            th_tensor *gx = on_device(x), *ga = on_device(a), *gw = on_device(w), *gdh = on_device(dh), *gdy = on_device(dy);
            th_tensor *sum = made(n, d, type), *y = made(n, ld, type), *rstd = made(n, 1, TH_F32), *q = eight(n, d + 48), *qs = made(n, 1, TH_F32);
            ok(kernels->rms_norm(&tk, n, d, th_data(gx), added ? th_data(ga) : NULL, th_data(gw), 1e-6f, th_data(sum), th_data(y), ld, th_data(rstd), th_data(q), d + 48, th_data(qs)));
            int64_t vector[1] = {d};
            th_tensor *s = added ? f32(th_to(th_add(f32(x), f32(a), 1), type, TH_CPU)) : f32(x), *w1 = th_reshape(f32(w), 1, vector);
            th_tensor *want = th_rms_norm(s, w1, 1e-6, &r);
            close_to("sum", sum, s, 1e-6);
            close_to("rms_norm", th_narrow(y, 1, 0, d), want, 1e-5);
            close_to("rstd", rstd, r, 1e-5);
            eight_bits("rms_norm", th_narrow(q, 1, 0, d), qs, th_narrow(y, 1, 0, d));
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                bool with_q = accumulate != added; /* each way with and without */
                th_tensor *q2 = eight(n, d + 16);
                assert_int_equal(th_fill_(qs, NAN), 0);
                th_tensor *dx = accumulate ? gdy : made(n, ld, type), *partial = th_empty(2, partials, TH_F32, device), *gdw = made(1, d, TH_F32);
                assert_int_equal(th_fill_(gdw, 0), 0);
                ok(kernels->rms_norm_backward(&tk, n, d, th_data(gdh), ld, th_data(sum), th_data(gw), th_data(rstd), accumulate, th_data(dx), ld,
                                              with_q ? th_data(q2) : NULL, with_q ? d + 16 : 0, with_q ? th_data(qs) : NULL, accumulate ? NULL : th_data(partial)));
                th_tensor *back = th_rms_norm_backward(th_contiguous(th_narrow(f32(dh), 1, 0, d)), f32(sum), w1, f32(rstd), &dw);
                if (accumulate)
                    back = th_add(back, th_narrow(f32(dy), 1, 0, d), 1);
                close_to("rms_norm_backward", th_narrow(dx, 1, 0, d), back, 1e-5);
                if (with_q)
                    eight_bits("rms_norm_backward", th_narrow(q2, 1, 0, d), qs, th_narrow(dx, 1, 0, d));
                if (accumulate)
                    continue;
                ok(kernels->column_sums(&tk, TK_PARTIALS, d, th_data(partial), th_data(gdw)));
                ok(kernels->column_sums(&tk, TK_PARTIALS, d, th_data(partial), th_data(gdw)));
                close_to("the weight's gradient, twice", gdw, th_scale(dw, 2), 1e-4);
            }
            th_scope_end(scope);
        }
}

static th_tensor *heads(th_tensor *x, int64_t from, int64_t n, int64_t d)
{
    return th_unflatten(th_narrow(x, 1, from * d, n * d), 1, n);
}

static void rotary_positions(void **state)
{
    (void)state;
    const int64_t dims[] = {8, 64, 128};
    for (size_t c = 0; c < ARRAY_LEN(dims); c++) {
        int64_t n = 71, h = 6, kv = 2, d = dims[c], shape[3] = {n, 1, d};
        int32_t pos[71];
        size_t scope = th_scope_begin();
        for (int i = 0; i < n; i++)
            pos[i] = (i * 7) % 50;
        th_tensor *table[2] = {random2(50, d / 2), random2(50, d / 2)}, *full[2], *gt[2], *index = th_to(th_from(pos, 1, &n, TH_I32, TH_CPU), TH_I64, TH_CPU);
        for (int i = 0; i < 2; i++) {
            table[i] = f32(table[i]);
            gt[i] = on_device(table[i]);
            full[i] = th_reshape(th_index_select(th_cat((th_tensor *[]){table[i], table[i]}, 2, 1), 0, index), 3, shape);
        }
        th_tensor *x = random2(n, (h + 2 * kv) * d), *gx = on_device(x), *dx = made(n, (h + 2 * kv) * d, type), *gp = ints(pos, n);
        ok(kernels->rope(&tk, n, h + kv, d, th_data(gx), (h + 2 * kv) * d, th_data(gp), th_data(gt[0]), th_data(gt[1])));
        close_to("rope", heads(gx, 0, h + kv, d), th_rope(heads(f32(x), 0, h + kv, d), full[0], full[1], false), 1e-5);
        close_to("v", heads(gx, h + kv, kv, d), heads(x, h + kv, kv, d), 1e-9);
        th_tensor *q = th_contiguous(heads(x, 0, h, d)), *k = th_contiguous(heads(x, h, kv, d)), *v = th_contiguous(heads(x, h + kv, kv, d));
        th_tensor *gq = on_device(q), *gk = on_device(k), *gv = on_device(v);
        ok(kernels->rope_backward(&tk, n, h, kv, d, th_data(gq), th_data(gk), th_data(gv), th_data(dx), th_data(gp), th_data(gt[0]), th_data(gt[1]), NULL, 0, NULL));
        close_to("rope_backward", heads(dx, 0, h + kv, d), th_rope(heads(f32(x), 0, h + kv, d), full[0], full[1], true), 1e-5);
        close_to("dv", heads(dx, h + kv, kv, d), v, 1e-9);
        int64_t width = (h + 2 * kv) * d;
        th_tensor *again = made(n, width, type), *e = eight(n, width + 16), *es = made(n, 1, TH_F32);
        ok(kernels->rope_backward(&tk, n, h, kv, d, th_data(gq), th_data(gk), th_data(gv), th_data(again), th_data(gp), th_data(gt[0]), th_data(gt[1]), th_data(e),
                                  width + 16, th_data(es)));
        close_to("rope_backward, with 8 bits", again, dx, 1e-6);
        eight_bits("rope_backward", th_narrow(e, 1, 0, width), es, again);
        th_scope_end(scope);
    }
}

static void gated_activations(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{5, 48}, {33, 1376}, {3, 11008}};
    for (size_t c = 0; c < ARRAY_LEN(sizes); c++) {
        int64_t n = sizes[c][0], f = sizes[c][1], ld = f + 64;
        size_t scope = th_scope_begin();
        th_tensor *gu = random2(n, 2 * f), *d = random2(n, f), *ggu = on_device(gu), *gd = on_device(d), *act = made(n, ld, type), *again = made(n, ld, type);
        th_tensor *g = th_contiguous(th_narrow(f32(gu), 1, 0, f)), *u = th_narrow(f32(gu), 1, f, f), *want = th_mul(th_silu(g), u);
        th_tensor *q = eight(n, f + 48), *qs = made(n, 1, TH_F32), *q2 = eight(n, 2 * f + 96);
        ok(kernels->swiglu(&tk, n, f, th_data(ggu), th_data(act), ld, NULL, 0, NULL));
        close_to("swiglu", th_narrow(act, 1, 0, f), want, 1e-5);
        assert_int_equal(th_fill_(act, NAN), 0);
        ok(kernels->swiglu(&tk, n, f, th_data(ggu), th_data(act), ld, th_data(q), f + 48, th_data(qs)));
        eight_bits("swiglu", th_narrow(q, 1, 0, f), qs, th_narrow(act, 1, 0, f));
        close_to("swiglu", th_narrow(act, 1, 0, f), want, 1e-5);
        th_tensor *whole = th_clone(ggu);
        ok(kernels->swiglu_backward(&tk, n, f, th_data(ggu), th_data(gd), th_data(again), ld, th_data(q2), 2 * f + 96, th_data(qs)));
        close_to("swiglu, again", th_narrow(again, 1, 0, f), want, 1e-5);
        eight_bits("swiglu_backward", th_narrow(q2, 1, 0, 2 * f), qs, ggu);
        ok(kernels->swiglu_backward(&tk, n, f, th_data(whole), th_data(gd), th_data(again), ld, NULL, 0, NULL));
        close_to("both ways", whole, ggu, 1e-3);
        close_to("gate's gradient", th_narrow(ggu, 1, 0, f), th_silu_backward(th_mul(f32(d), u), g), 1e-5);
        close_to("up's gradient", th_narrow(ggu, 1, f, f), th_mul(f32(d), th_silu(g)), 1e-5);
        th_scope_end(scope);
    }
}

static void rows_in_eight_bits(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{3, 64}, {17, 2560}, {7, 11008}, {6, 16384}, {5, 22016}, {2, 40960}, {2, 60000}};
    for (size_t c = 0; c < ARRAY_LEN(sizes); c++) {
        int64_t n = sizes[c][0], d = sizes[c][1];
        size_t scope = th_scope_begin();
        th_tensor *x = random2(n, d + 64), *gx = on_device(x), *q = eight(n, d + 16), *qs = made(n, 1, TH_F32);
        assert_int_equal(th_scale_(th_narrow(gx, 0, 1, 1), 1e-4), 0);
        ok(kernels->quantize(&tk, n, d, th_data(gx), d + 64, th_data(q), d + 16, th_data(qs)));
        eight_bits("quantize", th_narrow(q, 1, 0, d), qs, th_narrow(gx, 1, 0, d));
        th_scope_end(scope);
    }
}

/* x w^T + u b^T of rows in 8 bits with u and b beside them: what the parts of u and b that are lost amount to is bfloat16's loss, not e4m3's; also
 * where u or b is far larger than x or w, or these are 0. */
static void adapters_in_eight_bits(void **state)
{
    (void)state;
    const int64_t sizes[][4] = {{5, 7, 64, 4}, {40, 33, 512, 16}, {9, 50, 2048, 48}}; /* rows of x, of w, their columns, ranks */
    const double factor[][2] = {{1, 1}, {1e-2, 1}, {30, 1}, {1, 50}, {900, 0}};       /* of u and b; 0: x and w are 0 */
    for (size_t c = 0; c < ARRAY_LEN(sizes) * ARRAY_LEN(factor); c++) {
        const int64_t *z = sizes[c % ARRAY_LEN(sizes)], n = z[0], m = z[1], k = z[2], r = z[3], ld = k + (3 * r + 15) / 16 * 16;
        const double *by = factor[c / ARRAY_LEN(sizes)];
        size_t scope = th_scope_begin();
        th_tensor *x = random2(n, k), *w = random2(m, k), *u = random2(n, r + 8), *bt = random2(r, m + 3); /* b transposed: its values lie a row apart */
        assert_int_equal(th_scale_(u, by[0]), 0);
        assert_int_equal(th_scale_(bt, by[1] ? by[1] : 1), 0);
        assert_int_equal(th_scale_(x, by[1] ? 1 : 0), 0);
        assert_int_equal(th_scale_(w, by[1] ? 1 : 0), 0);
        th_tensor *gx = on_device(x), *gw = on_device(w), *gu = on_device(u), *gb = on_device(bt);
        th_tensor *q = eight(n, ld), *qs = made(n, 1, TH_F32), *p = eight(m, ld), *ps = made(m, 1, TH_F32), *before, *after;
        ok(kernels->quantize(&tk, n, k, th_data(gx), k, th_data(q), ld, th_data(qs)));
        ok(kernels->quantize(&tk, m, k, th_data(gw), k, th_data(p), ld, th_data(ps)));
        before = th_mul(f32(th_narrow(q, 1, 0, k)), f32(qs));
        ok(kernels->quantize_beside(&tk, n, k, th_data(gu), r + 8, 1, r, 0, th_data(q), ld, th_data(qs)));
        ok(kernels->quantize_beside(&tk, m, k, th_data(gb), 1, m + 3, r, 1, th_data(p), ld, th_data(ps)));
        after = th_mul(f32(th_narrow(q, 1, 0, k)), f32(qs));
        close_to("x, with other scales", after, before, by[0] < 1 ? 1e-9 : 2e-3); /* some become subnormal where u is larger than x */
        th_tensor *a = th_mul(f32(q), f32(qs)), *b = th_mul(f32(p), f32(ps));
        th_tensor *got = th_matmul(th_narrow(a, 1, k, ld - k), th_transpose(th_narrow(b, 1, k, ld - k), 0, 1));
        close_to("u b^T", got, th_matmul(th_narrow(f32(u), 1, 0, r), th_narrow(f32(bt), 1, 0, m)), 4e-3);
        th_scope_end(scope);
    }
}

static void cross_entropy(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{7, 97}, {40, 1536}, {3, 151936}};
    for (size_t c = 0; c < ARRAY_LEN(sizes); c++) {
        int64_t n = sizes[c][0], v = sizes[c][1], shape[2] = {n, 1};
        int32_t *target = xmalloc((size_t)n * sizeof *target);
        size_t scope = th_scope_begin();
        for (int64_t i = 0; i < n; i++)
            target[i] = (int32_t)((i * 7919 + 3) % v);
        th_tensor *x = random2(n, v), *gx = on_device(x), *t = ints(target, n), *loss = made(n, 1, TH_F32);
        th_tensor *index = th_reshape(th_to(th_from(target, 1, &n, TH_I32, TH_CPU), TH_I64, TH_CPU), 2, shape);
        th_tensor *logp = th_log_softmax(f32(x)), *p = th_softmax(f32(x), 1), *one = th_empty(2, shape, TH_F32, TH_CPU);
        ok(kernels->cross_entropy(&tk, n, v, th_data(gx), th_data(t), 0, 0, th_data(loss)));
        close_to("loss", loss, th_scale(th_gather(logp, 1, index), -1), 1e-5);
        close_to("untouched", gx, x, 1e-9);
        ok(kernels->cross_entropy(&tk, n, v, th_data(gx), th_data(t), 1, 0.25f, th_data(loss)));
        close_to("loss", loss, th_scale(th_gather(logp, 1, index), -1), 1e-5);
        assert_int_equal(th_fill_(one, -1), 0);
        assert_int_equal(th_scatter_add_(p, 1, index, one), 0);
        close_to("its gradient", gx, th_scale(p, 0.25), 1e-5);
        th_scope_end(scope);
        free(target);
    }
}

static void embeddings_gradient(void **state)
{
    (void)state;
    /* five tokens: 2 rows, 1, 3 in two segments, ... of rows 0..6 */
    const int32_t order[] = {0, 3, 1, 2, 4, 6, 5}, seg[] = {0, 2, 3, 5, 6, 7}, id[] = {1, 4, 5, 9}, of[] = {0, 1, 2, 4, 5};
    const int64_t token[] = {1, 4, 5, 1, 5, 9, 5};
    int64_t n = 7, d = 520, shape[2] = {10, d};
    size_t scope = th_scope_begin();
    th_tensor *dy = random2(n, d + 8), *gdy = on_device(dy), *grad = th_zeros(2, shape, TH_F32, device), *want = th_zeros(2, shape, TH_F32, TH_CPU);
    th_tensor *o = ints(order, 7), *s = ints(seg, 6), *i = ints(id, 4), *f = ints(of, 5), *partial = made(5, d, TH_F32);
    ok(kernels->embed_backward(&tk, d, th_data(gdy), d + 8, th_data(o), 5, th_data(s), 4, th_data(i), th_data(f), th_data(partial), th_data(grad)));
    assert_int_equal(th_index_add_(want, 0, th_from(token, 1, &n, TH_I64, TH_CPU), th_narrow(f32(dy), 1, 0, d)), 0);
    close_to("embedding's gradient", grad, want, 1e-6);
    th_scope_end(scope);
}

static void copies(void **state)
{
    (void)state;
    size_t scope = th_scope_begin();
    th_tensor *a = random2(3, 40), *b = random2(16, 5), *ga = on_device(a), *gb = on_device(b), *to = made(30, 64, type);
    assert_int_equal(th_fill_(to, 0), 0);
    th_tensor *ta = th_narrow(th_narrow(to, 0, 2, 3), 1, 1, 40), *tb = th_narrow(th_narrow(to, 0, 10, 16), 1, 50, 5);
    struct tk_copy list[2] = {{th_data(ga), th_data(ta), 3, 40, 64, 1, 0}, {th_data(gb), th_data(tb), 16, 5, 64, 0.5f, 0}};
    int64_t bytes = sizeof list;
    th_tensor *on = th_from(list, 1, &bytes, TH_U8, device);
    ok(kernels->copy(&tk, 2, th_data(on)));
    close_to("copy", ta, a, 1e-9);
    close_to("copy, scaled", tb, th_scale(f32(b), 0.5), 1e-9);
    th_scope_end(scope);
}

static int in_bfloat16(void **state)
{
    (void)state;
    type = TH_BF16;
    tk.type = TK_BF16;
    return 0;
}

static int in_float32(void **state)
{
    (void)state;
    type = TH_F32;
    tk.type = TK_F32;
    return 0;
}

#define BOTH(f) {#f ", float32", f, in_float32, NULL, NULL}, {#f ", bfloat16", f, in_bfloat16, NULL, NULL}

int main(void)
{
    const char *d = getenv("TEST_DEVICE");
    if (th_device_open(d ? d : "cpu", &device) < 0) {
        fprintf(stderr, "%s: %s\n", d, err_text());
        return 1;
    }
    kernels = train_kernels_cpu();
    if (device == TH_CUDA) {
        const struct train_kernels *(*table)(void) = (const struct train_kernels *(*)(void))kernel("train_kernels");
        if (!table) {
            fprintf(stderr, "%s\n", err_text());
            return 1;
        }
        kernels = table();
        tk.stream = kernel_stream();
    }
    const struct CMUnitTest tests[] = {BOTH(norms), BOTH(rotary_positions), BOTH(gated_activations), BOTH(rows_in_eight_bits), BOTH(adapters_in_eight_bits), BOTH(cross_entropy), BOTH(embeddings_gradient),
                                       BOTH(copies)};
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
