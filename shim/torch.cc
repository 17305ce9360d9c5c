// torch.cc: the tensor shim over ATen.  See torch.h.
#include "shim/torch.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include <vector>

#include "lib/err.h"

struct th_tensor {
    at::Tensor t;
};

namespace {

thread_local std::vector<th_tensor *> stack; // handles of the open scopes, oldest first

at::ScalarType scalar(th_dtype t)
{
    switch (t) {
    case TH_F32: return at::kFloat;
    case TH_BF16: return at::kBFloat16;
    case TH_F16: return at::kHalf;
    case TH_F64: return at::kDouble;
    case TH_I64: return at::kLong;
    case TH_I32: return at::kInt;
    case TH_U8: return at::kByte;
    case TH_BOOL: return at::kBool;
    case TH_F8: return at::kFloat8_e4m3fn;
    }
    return at::kFloat;
}

at::Device device(th_device d)
{
    return d == TH_CUDA ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

at::TensorOptions options(th_dtype t, th_device d)
{
    return at::TensorOptions().dtype(scalar(t)).device(device(d));
}

th_tensor *own(at::Tensor &&t)
{
    th_tensor *h = new th_tensor{std::move(t)};
    stack.push_back(h);
    return h;
}

// The one place where C++ exceptions become codes: the text is copied where it is caught.
int caught() noexcept
{
    try {
        throw;
    } catch (const c10::OutOfMemoryError &e) {
        return err_set(ERR_NOMEM, "out of device memory: %s", e.what_without_backtrace());
    } catch (const c10::Error &e) {
        const char *text = e.what_without_backtrace();
        if (strstr(text, "out of memory")) // of CUDA itself, not of the allocator; advice for debugging follows in further lines
            return err_set(ERR_NOMEM, "out of device memory: %.*s: end what else is on the GPU, or take --device cpu", static_cast<int>(strcspn(text, "\n")), text);
        return err_set(ERR_EXTERN, "libtorch: %s", text);
    } catch (const std::bad_alloc &) {
        return err_set(ERR_NOMEM, "out of memory");
    } catch (const std::exception &e) {
        return err_set(ERR_EXTERN, "libtorch: %s", e.what());
    } catch (...) {
        return err_set(ERR_EXTERN, "libtorch: unknown exception");
    }
}

// Runs f, which returns a tensor, below autograd: nothing here needs its bookkeeping.
template <typename F> th_tensor *op(F &&f) noexcept
{
    try {
        at::AutoDispatchBelowADInplaceOrView guard;
        return own(f());
    } catch (...) {
        caught();
        return nullptr;
    }
}

template <typename F> int run(F &&f) noexcept
{
    try {
        at::AutoDispatchBelowADInplaceOrView guard;
        f();
        return ERR_OK;
    } catch (...) {
        return caught();
    }
}

int failed()
{
    return err_code() < 0 ? err_code() : err_set(ERR_EXTERN, "an operand is missing");
}

at::IntArrayRef dims(int rank, const int64_t *shape)
{
    return at::IntArrayRef(shape, (size_t)rank);
}

} // namespace

#define NEED1(a) do { if (!(a)) { failed(); return nullptr; } } while (0)
#define NEED2(a, b) do { if (!(a) || !(b)) { failed(); return nullptr; } } while (0)
#define NEED3(a, b, c) do { if (!(a) || !(b) || !(c)) { failed(); return nullptr; } } while (0)
#define HAVE2(a, b) do { if (!(a) || !(b)) return failed(); } while (0)
#define HAVE3(a, b, c) do { if (!(a) || !(b) || !(c)) return failed(); } while (0)

extern "C" {

/* ---- process ---- */

// libtorch's OpenMP threads spin for milliseconds at every barrier.  On a machine with other work that makes small
// products a hundred times slower (seen: 14 s for 1.4 s), so the spin is cut short, unless the user set it.
// The variable is read when libgomp is loaded, before any code of ours: hence the second start.
__attribute__((constructor)) static void calm_openmp(int, char **argv, char **)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "3000", 1) != 0)
        return;
    execv("/proc/self/exe", argv);
}

int th_device_open(const char *name, th_device *out)
{
    // Each operator's result is a fresh block: taken from and given back to the system each time,
    // clearing its pages was a fifth of a training step's time on the CPU.
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    mallopt(M_TOP_PAD, 64 << 20);
    bool any = !strcmp(name, "auto");
    *out = TH_CPU;
    if (!strcmp(name, "cpu"))
        return ERR_OK;
    if (!any && strcmp(name, "cuda"))
        return err_set(ERR_USAGE, "device '%s': cpu, cuda or auto is due", name);
    static void *lib;
    if (!lib)
        lib = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
    if (!lib)
        return any ? ERR_OK : err_set(ERR_EXTERN, "no GPU can be used, libtorch's CUDA part does not load: %s: take --device cpu, or see make info", dlerror());
    int rc = run([&] {
        at::globalContext().lazyInitDevice(at::kCUDA);
        if (at::globalContext().hasCUDA() && at::detail::getCUDAHooks().deviceCount() > 0)
            *out = TH_CUDA;
    });
    if (rc == ERR_OK && *out != TH_CUDA)
        rc = err_set(ERR_EXTERN, "no CUDA device is visible: take --device cpu");
    return any ? ERR_OK : rc;
}

void th_set_threads(int n)
{
    run([&] { at::set_num_threads(n); });
}

int th_get_threads(void)
{
    return at::get_num_threads();
}

void th_seed(uint64_t seed)
{
    run([&] { at::manual_seed(seed); });
}

void th_deterministic(bool on)
{
    run([&] {
        at::globalContext().setDeterministicAlgorithms(on, false);
        at::globalContext().setDeterministicCuDNN(on);
    });
}

void th_sync(th_device d)
{
    if (d == TH_CUDA)
        run([] { c10::impl::VirtualGuardImpl(at::kCUDA).synchronizeDevice(0); });
}

void th_memory(th_device d, size_t *used, size_t *peak, size_t *free_bytes)
{
    *used = *peak = *free_bytes = 0;
    if (d != TH_CUDA)
        return;
    run([&] {
        auto *a = c10::getDeviceAllocator(at::kCUDA);
        auto s = a->getDeviceStats(0);
        *used = (size_t)s.allocated_bytes[0].current;
        *peak = (size_t)s.allocated_bytes[0].peak;
        *free_bytes = a->getMemoryInfo(0).first;
    });
}

void th_memory_reset_peak(th_device d)
{
    if (d == TH_CUDA)
        run([] { c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0); });
}

size_t th_memory_reserved(th_device d)
{
    size_t n = 0;
    if (d == TH_CUDA)
        run([&] { n = (size_t)c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).reserved_bytes[0].peak; });
    return n;
}

size_t th_memory_available(th_device d)
{
    size_t n = 0;
    if (d == TH_CUDA)
        run([&] {
            auto *a = c10::getDeviceAllocator(at::kCUDA);
            auto s = a->getDeviceStats(0);
            n = a->getMemoryInfo(0).first + (size_t)(s.reserved_bytes[0].current - s.allocated_bytes[0].current);
        });
    return n;
}

void th_parallel(int64_t n, int64_t grain, void (*fn)(void *, int64_t, int64_t), void *ctx)
{
    at::parallel_for(0, n, grain, [&](int64_t from, int64_t to) { fn(ctx, from, to); });
}

struct th_mark {
    c10::Event e;
};

th_mark *th_mark_new(th_device d)
{
    th_mark *m = nullptr;
    if (d == TH_CUDA)
        run([&] {
            m = new th_mark{c10::Event(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT)};
            m->e.record(c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device(d)));
        });
    return m;
}

void th_mark_free(th_mark *m)
{
    delete m;
}

double th_mark_seconds(const th_mark *from, const th_mark *to)
{
    double ms = 0;
    if (from && to)
        run([&] {
            to->e.synchronize();
            ms = from->e.elapsedTime(to->e);
        });
    return ms / 1000;
}

// The copies have a stream of their own.  A tensor that another stream still reads or writes is told to the allocator, which then
// does not give its memory away before.
struct th_aside {
    at::Tensor host, back;
    c10::Event there{at::kCUDA}, here{at::kCUDA};
};

} // extern "C"

namespace {

// Runs f with the copies' stream as the present one.
template <typename F> void beside(F &&f)
{
    const c10::impl::VirtualGuardImpl g(at::kCUDA);
    static const c10::Stream side = g.getStreamFromGlobalPool(device(TH_CUDA), false);
    c10::Stream main = g.getStream(device(TH_CUDA));
    c10::Event ready{at::kCUDA};
    ready.record(main);
    ready.block(side);
    g.exchangeStream(side);
    try {
        f(g, main, side);
    } catch (...) {
        g.exchangeStream(main);
        throw;
    }
    g.exchangeStream(main);
}

} // namespace

extern "C" {

th_aside *th_aside_new(th_tensor *x)
{
    NEED1(x);
    th_aside *a = nullptr;
    int rc = run([&] {
        a = new th_aside;
        a->host = at::empty(x->t.sizes(), x->t.options().device(at::kCPU).pinned_memory(true));
        beside([&](const c10::impl::VirtualGuardImpl &g, c10::Stream, c10::Stream side) {
            a->host.copy_(x->t, true);
            g.recordDataPtrOnStream(x->t.storage().data_ptr(), side);
            a->there.record(side);
        });
    });
    if (rc < 0) {
        delete a;
        return nullptr;
    }
    return a;
}

int th_aside_wait(th_aside *a)
{
    return a ? run([&] { a->there.synchronize(); }) : failed();
}

int th_aside_fetch(th_aside *a)
{
    if (!a || a->back.defined())
        return a ? ERR_OK : failed();
    return run([&] {
        a->back = at::empty(a->host.sizes(), a->host.options().device(device(TH_CUDA)).pinned_memory(false));
        beside([&](const c10::impl::VirtualGuardImpl &g, c10::Stream, c10::Stream side) {
            a->back.copy_(a->host, true);
            g.recordDataPtrOnStream(a->back.storage().data_ptr(), side);
            a->here.record(side);
        });
    });
}

th_tensor *th_aside_take(th_aside *a)
{
    if (th_aside_fetch(a) < 0)
        return nullptr;
    return op([&] {
        const c10::impl::VirtualGuardImpl g(at::kCUDA);
        a->here.block(g.getStream(device(TH_CUDA)));
        a->here.synchronize(); // a host far ahead of the device would ask for memory that is still in use
        return std::move(a->back);
    });
}

void th_aside_free(th_aside *a)
{
    delete a;
}

size_t th_dtype_size(th_dtype t)
{
    return c10::elementSize(scalar(t));
}

/* ---- handles ---- */

size_t th_scope_begin(void)
{
    return stack.size();
}

void th_scope_end(size_t scope)
{
    while (stack.size() > scope) {
        delete stack.back(); // kept handles left a null
        stack.pop_back();
    }
}

th_tensor *th_keep(th_tensor *x)
{
    for (size_t i = stack.size(); x && i-- > 0;)
        if (stack[i] == x) {
            stack[i] = nullptr;
            break;
        }
    return x;
}

void th_free(th_tensor *x)
{
    delete x;
}

th_tensor *th_adopt(th_tensor *x)
{
    if (x)
        stack.push_back(x);
    return x;
}

th_tensor *th_alias(th_tensor *x)
{
    NEED1(x);
    return op([&] { return x->t; });
}

int th_rank(const th_tensor *x) { return (int)x->t.dim(); }
int64_t th_size(const th_tensor *x, int dim) { return x->t.sizes()[(size_t)(dim < 0 ? dim + x->t.dim() : dim)]; }
int64_t th_stride(const th_tensor *x, int dim) { return x->t.stride(dim); }
int64_t th_numel(const th_tensor *x) { return x->t.numel(); }

th_dtype th_dtype_of(const th_tensor *x)
{
    for (int t = TH_F32; t <= TH_F8; t++)
        if (x->t.scalar_type() == scalar((th_dtype)t))
            return (th_dtype)t;
    return TH_F32;
}

/* ---- making, moving ---- */

th_tensor *th_empty(int rank, const int64_t *shape, th_dtype t, th_device d)
{
    return op([&] { return at::empty(dims(rank, shape), options(t, d)); });
}

th_tensor *th_zeros(int rank, const int64_t *shape, th_dtype t, th_device d)
{
    return op([&] { return at::zeros(dims(rank, shape), options(t, d)); });
}

th_tensor *th_borrow(const void *data, int rank, const int64_t *shape, th_dtype t)
{
    return op([&] { return at::from_blob(const_cast<void *>(data), dims(rank, shape), options(t, TH_CPU)); });
}

th_tensor *th_from(const void *data, int rank, const int64_t *shape, th_dtype t, th_device d)
{
    return op([&] {
        at::Tensor x = at::from_blob(const_cast<void *>(data), dims(rank, shape), options(t, TH_CPU));
        if (d == TH_CPU)
            return x.clone();
        // by way of page-locked memory, so that nobody waits for the device
        at::Tensor locked = at::empty(dims(rank, shape), options(t, TH_CPU).pinned_memory(true));
        memcpy(locked.data_ptr(), data, x.nbytes());
        return locked.to(device(d), scalar(t), true, true);
    });
}

th_tensor *th_to(th_tensor *x, th_dtype t, th_device d)
{
    NEED1(x);
    return op([&] { return x->t.to(device(d), scalar(t)); });
}

th_tensor *th_clone(th_tensor *x)
{
    NEED1(x);
    return op([&] { return x->t.clone(at::MemoryFormat::Contiguous); });
}

int th_copy_(th_tensor *dst, th_tensor *src)
{
    HAVE2(dst, src);
    return run([&] { dst->t.copy_(src->t); });
}

int th_fill_(th_tensor *x, double v)
{
    HAVE2(x, x);
    return run([&] { x->t.fill_(v); });
}

int th_normal_(th_tensor *x, double mean, double std)
{
    HAVE2(x, x);
    return run([&] { x->t.normal_(mean, std); });
}

int th_read(th_tensor *x, void *out)
{
    HAVE2(x, x);
    return run([&] {
        at::Tensor c = x->t.to(at::kCPU).contiguous();
        memcpy(out, c.const_data_ptr(), c.nbytes());
    });
}

double th_item(th_tensor *x)
{
    double v = NAN;
    if (x)
        run([&] { v = x->t.item().toDouble(); });
    return v;
}

void *th_data(th_tensor *x)
{
    return x ? x->t.data_ptr() : nullptr;
}

/* ---- views ---- */

th_tensor *th_reshape(th_tensor *x, int rank, const int64_t *shape)
{
    NEED1(x);
    return op([&] { return x->t.reshape(dims(rank, shape)); });
}

th_tensor *th_unflatten(th_tensor *x, int dim, int64_t n)
{
    NEED1(x);
    return op([&] { return x->t.unflatten(dim, {n, x->t.size(dim) / n}); });
}

th_tensor *th_flatten(th_tensor *x, int dim)
{
    NEED1(x);
    return op([&] { return x->t.flatten(dim, dim + 1); });
}

th_tensor *th_adjacent(th_tensor *const *v, int n)
{
    const at::Tensor &a = v[0]->t;
    int64_t rows = 0, at = a.storage_offset();
    for (int i = 0; i < n; i++) {
        const at::Tensor &x = v[i]->t;
        if (x.dim() != 2 || x.size(1) != a.size(1) || !x.is_contiguous() || !x.is_alias_of(a) || x.storage_offset() != at)
            return nullptr;
        at += x.numel();
        rows += x.size(0);
    }
    return op([&] { return a.as_strided({rows, a.size(1)}, {a.size(1), 1}); });
}

th_tensor *th_narrow(th_tensor *x, int dim, int64_t start, int64_t length)
{
    NEED1(x);
    return op([&] { return x->t.narrow(dim, start, length); });
}

th_tensor *th_transpose(th_tensor *x, int a, int b)
{
    NEED1(x);
    return op([&] { return x->t.transpose(a, b); });
}

th_tensor *th_contiguous(th_tensor *x)
{
    NEED1(x);
    return op([&] { return x->t.contiguous(); });
}

th_tensor *th_cat(th_tensor *const *v, int n, int dim)
{
    return op([&] {
        std::vector<at::Tensor> list;
        for (int i = 0; i < n; i++) {
            TORCH_CHECK(v[i], "cat: an operand is missing");
            list.push_back(v[i]->t);
        }
        return at::cat(list, dim);
    });
}

/* ---- arithmetic ---- */

th_tensor *th_add(th_tensor *a, th_tensor *b, double alpha)
{
    NEED2(a, b);
    return op([&] { return at::add(a->t, b->t, alpha); });
}

th_tensor *th_mul(th_tensor *a, th_tensor *b)
{
    NEED2(a, b);
    return op([&] { return at::mul(a->t, b->t); });
}

th_tensor *th_scale(th_tensor *a, double s)
{
    NEED1(a);
    return op([&] { return at::mul(a->t, s); });
}

th_tensor *th_sum(th_tensor *x, int dim, bool keep_dim)
{
    NEED1(x);
    return op([&] { return at::sum(x->t, {dim}, keep_dim); });
}

th_tensor *th_sum_f32(th_tensor *x, int dim)
{
    NEED1(x);
    return op([&] { return at::sum(x->t, {dim}, false, at::kFloat); });
}

th_tensor *th_sum_all(th_tensor *x)
{
    NEED1(x);
    return op([&] { return at::sum(x->t, at::kFloat); });
}

th_tensor *th_norm(th_tensor *x)
{
    NEED1(x);
    return op([&] { return at::norm(x->t, 2, at::kFloat); });
}

int th_add_(th_tensor *a, th_tensor *b, double alpha)
{
    HAVE2(a, b);
    return run([&] { a->t.add_(b->t, alpha); });
}

int th_scale_(th_tensor *a, double s)
{
    HAVE2(a, a);
    return run([&] { a->t.mul_(s); });
}

int th_addcmul_(th_tensor *a, th_tensor *b, th_tensor *c, double value)
{
    HAVE3(a, b, c);
    return run([&] { a->t.addcmul_(b->t, c->t, value); });
}

int th_addcdiv_(th_tensor *a, th_tensor *b, th_tensor *c, double value)
{
    HAVE3(a, b, c);
    return run([&] { a->t.addcdiv_(b->t, c->t, value); });
}

th_tensor *th_sqrt_plus(th_tensor *x, double eps)
{
    NEED1(x);
    return op([&] { return at::sqrt(x->t).add_(eps); });
}

/* ---- matrix products ---- */

th_tensor *th_matmul(th_tensor *a, th_tensor *b)
{
    NEED2(a, b);
    return op([&] { return at::matmul(a->t, b->t); });
}

th_tensor *th_linear(th_tensor *x, th_tensor *w, th_tensor *bias)
{
    NEED2(x, w);
    return op([&] {
        // One product of two matrices, whatever the rank of x: below autograd at::linear would
        // not fold the leading dimensions.
        auto shape = x->t.sizes().vec();
        at::Tensor m = x->t.reshape({-1, shape.back()});
        at::Tensor y = bias ? at::addmm(bias->t, m, w->t.t()) : at::mm(m, w->t.t());
        shape.back() = w->t.size(0);
        return y.reshape(shape);
    });
}

int th_addmm_(th_tensor *out, th_tensor *a, th_tensor *b, double beta, double alpha)
{
    HAVE3(out, a, b);
    return run([&] {
        if (beta == 0 && alpha == 1 && out->t.scalar_type() == a->t.scalar_type())
            at::mm_out(out->t, a->t, b->t);
        else if (out->t.scalar_type() == a->t.scalar_type())
            out->t.addmm_(a->t, b->t, beta, alpha);
        else if (out->t.is_cuda())
            at::addmm_out(out->t, out->t, a->t, b->t, out->t.scalar_type(), beta, alpha);
        else
            out->t.mul_(beta).add_(at::mm(a->t, b->t), alpha);
    });
}

int th_addmm_bias_(th_tensor *out, th_tensor *a, th_tensor *b, th_tensor *bias)
{
    HAVE3(out, a, b);
    HAVE2(bias, bias);
    return run([&] { at::addmm_out(out->t, bias->t, a->t, b->t); });
}

int th_scaled_mm_(th_tensor *out, th_tensor *a, th_tensor *sa, th_tensor *b, th_tensor *sb, th_tensor *bias)
{
    HAVE3(out, a, sa);
    HAVE2(b, sb);
    return run([&] {
        std::optional<at::Tensor> add;
        if (bias)
            add = bias->t;
        if (!a->t.is_cuda()) { // ATen has no such product by rows there
            at::Tensor y = at::mm(a->t.to(at::kFloat), b->t.to(at::kFloat).t()).mul_(sa->t).mul_(sb->t.t());
            out->t.copy_(bias ? y.add_(bias->t) : y);
            return;
        }
        at::_scaled_mm_out(out->t, a->t, b->t.t(), sa->t, sb->t.t(), add, {}, at::kBFloat16, true);
    });
}

/* ---- the transformer's ---- */

th_tensor *th_embedding(th_tensor *w, th_tensor *ids)
{
    NEED2(w, ids);
    return op([&] { return at::embedding(w->t, ids->t); });
}

th_tensor *th_rms_norm(th_tensor *x, th_tensor *w, double eps, th_tensor **rstd)
{
    NEED2(x, w);
    return op([&] {
        at::Tensor f = x->t.to(at::kFloat);
        at::Tensor r = at::rsqrt(at::mean(at::square(f), {-1}, true).add_(eps));
        // Hugging Face's order: normalise in float32, round, then weigh
        at::Tensor y = at::mul(f, r).to(x->t.scalar_type()).mul_(w->t);
        if (rstd)
            *rstd = own(std::move(r));
        return y;
    });
}

th_tensor *th_rms_norm_backward(th_tensor *dy, th_tensor *x, th_tensor *w, th_tensor *rstd, th_tensor **dw)
{
    NEED3(dy, x, w);
    NEED1(rstd);
    return op([&] {
        // n = x rstd;  dx = rstd (g - n mean(g n)), g = dy w;  dw = sum dy n
        at::Tensor n = at::mul(x->t.to(at::kFloat), rstd->t);
        at::Tensor g = at::mul(dy->t.to(at::kFloat), w->t);
        if (dw)
            *dw = own(at::mul(dy->t.to(at::kFloat), n).reshape({-1, w->t.size(0)}).sum(0).to(w->t.scalar_type()));
        at::Tensor m = at::mean(at::mul(g, n), {-1}, true);
        return g.sub_(n.mul_(m)).mul_(rstd->t).to(dy->t.scalar_type());
    });
}

th_tensor *th_layer_norm(th_tensor *x, th_tensor *w, th_tensor *b, double eps)
{
    NEED3(x, w, b);
    return op([&] { return at::layer_norm(x->t, w->t.sizes(), w->t, b->t, eps); });
}

th_tensor *th_silu(th_tensor *x)
{
    NEED1(x);
    return op([&] { return at::silu(x->t); });
}

th_tensor *th_silu_backward(th_tensor *dy, th_tensor *x)
{
    NEED2(dy, x);
    return op([&] { return at::silu_backward(dy->t, x->t); });
}

th_tensor *th_gelu(th_tensor *x)
{
    NEED1(x);
    return op([&] { return at::gelu(x->t); });
}

th_tensor *th_rope(th_tensor *x, th_tensor *cos, th_tensor *sin, bool backward)
{
    NEED3(x, cos, sin);
    return op([&] {
        int64_t half = x->t.size(-1) / 2;
        at::Tensor a = x->t.narrow(-1, 0, half), b = x->t.narrow(-1, half, half);
        at::Tensor rotated = backward ? at::cat({b, a.neg()}, -1) : at::cat({b.neg(), a}, -1);
        return at::mul(x->t, cos->t).add_(rotated.mul_(sin->t));
    });
}

th_tensor *th_softmax(th_tensor *x, int dim)
{
    NEED1(x);
    return op([&] { return at::softmax(x->t, dim); });
}

th_tensor *th_log_softmax(th_tensor *x)
{
    NEED1(x);
    return op([&] { return at::log_softmax(x->t, -1, at::kFloat); });
}

th_tensor *th_gather(th_tensor *x, int dim, th_tensor *index)
{
    NEED2(x, index);
    return op([&] { return at::gather(x->t, dim, index->t); });
}

int th_scatter_add_(th_tensor *x, int dim, th_tensor *index, th_tensor *src)
{
    HAVE3(x, index, src);
    return run([&] { x->t.scatter_add_(dim, index->t, src->t); });
}

th_tensor *th_index_select(th_tensor *x, int dim, th_tensor *index)
{
    NEED2(x, index);
    return op([&] { return at::index_select(x->t, dim, index->t); });
}

int th_index_add_(th_tensor *x, int dim, th_tensor *index, th_tensor *src)
{
    HAVE3(x, index, src);
    return run([&] { x->t.index_add_(dim, index->t, src->t); });
}

int th_index_copy_(th_tensor *x, int dim, th_tensor *index, th_tensor *src)
{
    HAVE3(x, index, src);
    return run([&] { x->t.index_copy_(dim, index->t, src->t); });
}

} // extern "C"

/* ---- attention ---- */

namespace {

enum { FLASH_CPU = 1, CUDNN, MIXED, FLASH_CUDA, MATH };

// Without a fused kernel: the softmax's scores in float32, whole.  For what the fused kernels do
// not take (float64, float32 and masks on CUDA), and as their twin in tests.
at::Tensor scores(const at::Tensor &q, const at::Tensor &k, bool causal, const th_tensor *mask)
{
    int64_t s = q.size(2), t = k.size(2);
    at::Tensor p = at::matmul(q, k.transpose(2, 3)).mul_(1 / std::sqrt((double)q.size(3)));
    p = p.to(p.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    if (causal)
        p.masked_fill_(at::ones({s, t}, p.options().dtype(at::kBool)).triu_(1), -INFINITY);
    if (mask)
        p.masked_fill_(mask->t.logical_not(), -INFINITY);
    return p;
}

at::Tensor expand_heads(const at::Tensor &x, int64_t h)
{
    return x.size(1) == h ? x : at::repeat_interleave(x, h / x.size(1), 1);
}

// The sum of the gradients [b, h, s, d] of the query heads that shared a key or value head.
at::Tensor fold_heads(const at::Tensor &g, int64_t h)
{
    return g.size(1) == h ? g : g.reshape({g.size(0), h, g.size(1) / h, g.size(2), g.size(3)}).sum(2);
}

// [rows, h, d] as a batch of one, [1, h, rows, d], and back.
at::Tensor as_batch(const at::Tensor &x) { return x.transpose(0, 1).unsqueeze(0); }
at::Tensor as_rows(const at::Tensor &x) { return x.squeeze(0).transpose(0, 1); }

bool half_on_cuda(const at::Tensor &q)
{
    return q.is_cuda() && (q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf);
}

// cuDNN's kernels are twice as fast as the flash ones, but take a batch of equal lengths and want a plan, some tenths of a
// second's work, for each shape.  So equal sequences go as one batch; others, if one fills the chip, one by one, with their
// length rounded up: causal attention does not see what is added, and the rows it writes there are the next sequence's, which
// comes after.  The short ones at the end go together through the flash kernels.
constexpr int64_t ROUND = 256, FILLS = 65536; // rows times heads

int64_t round_up(int64_t n) { return (n + ROUND - 1) / ROUND * ROUND; }
int64_t length(const th_packing *p, int64_t i) { return p->start[i + 1] - p->start[i]; }

int packed_kernel(const at::Tensor &q, const th_packing *p)
{
    if (!half_on_cuda(q))
        return q.is_cuda() || q.scalar_type() == at::kDouble ? MATH : FLASH_CPU;
    if (at::globalContext().deterministicAlgorithms() || q.size(2) % 8)
        return FLASH_CUDA;
    bool equal = p->longest % ROUND == 0;
    for (int64_t i = 0; i < p->n && equal; i++)
        equal = length(p, i) == p->longest;
    return equal ? CUDNN : MIXED;
}

// Sequences of MIXED that go one by one: those before the first of the last, short ones.
int64_t n_long(const th_packing *p, int64_t heads)
{
    int64_t n = p->n;
    while (n > 0 && length(p, n - 1) * heads < FILLS)
        n--;
    return n;
}

// Rows from..from + n of x as a batch of b: [b, h, n / b, d].
at::Tensor batch(const at::Tensor &x, int64_t from, int64_t n, int64_t b)
{
    return x.narrow(0, from, n).unflatten(0, {b, n / b}).transpose(1, 2);
}

// A sequence of the packed rows, as a batch of one.
at::Tensor sequence(const at::Tensor &x, const th_packing *p, int64_t i)
{
    return as_batch(x.narrow(0, p->start[i], p->start[i + 1] - p->start[i]));
}

at::Tensor one_packed(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, int kernel, std::vector<at::Tensor> &lse)
{
    at::Tensor ke = expand_heads(k, q.size(1)), ve = expand_heads(v, q.size(1));
    if (kernel == MATH)
        return at::matmul(at::softmax(scores(q, ke, true, nullptr), -1).to(q.scalar_type()), ve);
    auto r = at::_scaled_dot_product_flash_attention_for_cpu(q, ke, ve, 0.0, true, {}, {});
    lse.push_back(std::get<1>(r));
    return std::move(std::get<0>(r));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> one_packed_backward(const at::Tensor &dout, const at::Tensor &q,
    const at::Tensor &k, const at::Tensor &v, const at::Tensor &out, int kernel, const at::Tensor &lse)
{
    at::Tensor ke = expand_heads(k, q.size(1)), ve = expand_heads(v, q.size(1));
    if (kernel == FLASH_CPU)
        return at::_scaled_dot_product_flash_attention_for_cpu_backward(dout, q, ke, ve, out, lse, 0.0, true, {}, {});
    // p = softmax(s), s = q k^T / sqrt(d):  ds = p (dp - sum(dp p)),  dp = dout v^T
    at::Tensor p = at::softmax(scores(q, ke, true, nullptr), -1);
    at::Tensor dp = at::matmul(dout, ve.transpose(2, 3)).to(p.scalar_type());
    at::Tensor ds = at::mul(p, dp - at::mul(dp, p).sum(-1, true)).mul_(1 / std::sqrt((double)q.size(3)));
    ds = ds.to(q.scalar_type());
    return {at::matmul(ds, ke), at::matmul(ds.transpose(2, 3), q), at::matmul(p.to(q.scalar_type()).transpose(2, 3), dout)};
}

} // namespace

extern "C" {

th_tensor *th_attention(th_tensor *q, th_tensor *k, th_tensor *v, bool causal, th_tensor *mask)
{
    NEED3(q, k, v);
    return op([&] {
        int64_t h = q->t.size(1);
        auto type = q->t.scalar_type();
        if (half_on_cuda(q->t) && !mask && q->t.size(2) > 1)
            return std::get<0>(at::_scaled_dot_product_cudnn_attention(q->t, k->t, v->t, {}, false, 0.0, causal, false, {}));
        at::Tensor ke = expand_heads(k->t, h), ve = expand_heads(v->t, h);
        if (!q->t.is_cuda() && type != at::kDouble) {
            std::optional<at::Tensor> bias;
            if (mask)
                bias = at::zeros(mask->t.sizes(), q->t.options()).masked_fill_(mask->t.logical_not(), -INFINITY);
            return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q->t, ke, ve, 0.0, causal, bias, {}));
        }
        at::Tensor p = at::softmax(scores(q->t, ke, causal, mask), -1);
        return at::matmul(p.to(type), ve);
    });
}

} // extern "C"

// A call of a kernel: the sequences from .. from + n, and what the backward pass wants of it.
struct th_attention_state {
    struct part {
        int kernel;
        int64_t row, rows, batch, seq, n, max_q, max_k;
        at::Tensor lse, cum_q, cum_k, seed, offset;
    };
    std::vector<part> v;
    at::Tensor cum; // of the short ones
};

namespace {

using part = th_attention_state::part;

at::Tensor cudnn_part(part &a, const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, bool save)
{
    auto r = at::_scaled_dot_product_cudnn_attention(batch(q, a.row, a.rows, a.batch), batch(k, a.row, a.rows, a.batch),
                                                     batch(v, a.row, a.rows, a.batch), {}, save, 0.0, true, false, {});
    if (save) {
        a.lse = std::move(std::get<1>(r));
        a.cum_q = std::move(std::get<2>(r)), a.cum_k = std::move(std::get<3>(r));
        a.max_q = std::get<4>(r).expect_int(), a.max_k = std::get<5>(r).expect_int();
        a.seed = std::move(std::get<6>(r)), a.offset = std::move(std::get<7>(r));
    }
    return std::get<0>(r).transpose(1, 2).flatten(0, 1);
}

at::Tensor flash_part(part &a, const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const at::Tensor &cum, int64_t longest,
                      bool save)
{
    auto r = at::_flash_attention_forward(q.narrow(0, a.row, a.rows), k.narrow(0, a.row, a.rows), v.narrow(0, a.row, a.rows), cum, cum,
                                          longest, longest, 0.0, true, false, std::optional<double>(), {}, {}, {}, {});
    a.max_q = longest;
    if (save)
        a.lse = std::move(std::get<1>(r)), a.seed = std::move(std::get<2>(r)), a.offset = std::move(std::get<3>(r));
    return std::get<0>(r);
}

at::Tensor joined(std::vector<at::Tensor> &v)
{
    return (v.size() == 1 ? v[0] : at::cat(v, 0)).contiguous();
}

// The calls that a packing takes on the GPU.
std::vector<part> parts(int kernel, const th_packing *p, int64_t heads)
{
    std::vector<part> v;
    int64_t alone = kernel == MIXED ? n_long(p, heads) : 0, rows = p->start[p->n];
    if (kernel == CUDNN)
        v.push_back({CUDNN, 0, rows, p->n, 0, p->n, 0, 0, {}, {}, {}, {}, {}});
    for (int64_t i = 0; i < alone; i++)
        v.push_back({CUDNN, p->start[i], round_up(length(p, i)), 1, i, 1, 0, 0, {}, {}, {}, {}, {}});
    if (kernel != CUDNN && alone < p->n)
        v.push_back({FLASH_CUDA, p->start[alone], rows - p->start[alone], 0, alone, p->n - alone, 0, 0, {}, {}, {}, {}, {}});
    return v;
}

} // namespace

extern "C" {

void th_attention_saved_free(th_attention_saved *s)
{
    delete s->state;
    *s = {};
}

int64_t th_packing_rows(const th_packing *p, th_device d)
{
    return d == TH_CUDA ? p->start[p->n] + ROUND : p->start[p->n];
}

th_tensor *th_attention_packed(th_tensor *q, th_tensor *k, th_tensor *v, const th_packing *p, th_attention_saved *saved)
{
    NEED3(q, k, v);
    return op([&] {
        int kernel = packed_kernel(q->t, p);
        th_attention_state s;
        std::vector<at::Tensor> out;
        if (kernel == FLASH_CPU || kernel == MATH) {
            for (int64_t i = 0; i < p->n; i++) {
                std::vector<at::Tensor> lse;
                out.push_back(as_rows(one_packed(sequence(q->t, p, i), sequence(k->t, p, i), sequence(v->t, p, i), kernel, lse)));
                s.v.push_back({kernel, p->start[i], length(p, i), 1, i, 1, 0, 0, lse.empty() ? at::Tensor() : lse[0], {}, {}, {}, {}});
            }
        } else {
            s.v = parts(kernel, p, q->t.size(1));
            for (part &a : s.v)
                if (a.kernel == CUDNN) {
                    out.push_back(cudnn_part(a, q->t, k->t, v->t, saved != nullptr).narrow(0, 0, p->start[a.seq + a.n] - a.row));
                } else {
                    int64_t longest = 0;
                    for (int64_t i = a.seq; i < p->n; i++)
                        longest = std::max(longest, length(p, i));
                    s.cum = p->cum->t.narrow(0, a.seq, a.n + 1);
                    if (a.seq)
                        s.cum = s.cum - (int)a.row;
                    out.push_back(flash_part(a, q->t, k->t, v->t, s.cum, longest, saved != nullptr));
                }
        }
        if (saved)
            *saved = {kernel, new th_attention_state(std::move(s))};
        return joined(out);
    });
}

int th_attention_packed_backward(th_tensor *dout, th_tensor *q, th_tensor *k, th_tensor *v, th_tensor *out, const th_packing *p,
                                 const th_attention_saved *saved, th_tensor **dq, th_tensor **dk, th_tensor **dv)
{
    HAVE3(dout, q, k);
    HAVE2(v, out);
    return run([&] {
        std::vector<at::Tensor> g[3];
        for (const part &a : saved->state->v) {
            at::Tensor x, y, z;
            if (a.kernel == CUDNN) {
                int64_t real = p->start[a.seq + a.n] - a.row;
                at::Tensor d = dout->t.narrow(0, a.row, real), o = out->t.narrow(0, a.row, real);
                if (real < a.rows) { // the gradient of what was added is zero
                    d = at::constant_pad_nd(d, {0, 0, 0, 0, 0, a.rows - real});
                    o = at::constant_pad_nd(o, {0, 0, 0, 0, 0, a.rows - real});
                }
                std::tie(x, y, z) = at::_scaled_dot_product_cudnn_attention_backward(
                    batch(d, 0, a.rows, a.batch), batch(q->t, a.row, a.rows, a.batch), batch(k->t, a.row, a.rows, a.batch),
                    batch(v->t, a.row, a.rows, a.batch), batch(o, 0, a.rows, a.batch), a.lse, a.seed, a.offset, at::Tensor(), a.cum_q, a.cum_k,
                    a.max_q, a.max_k, 0.0, true, {});
                for (at::Tensor *t : {&x, &y, &z})
                    *t = t->transpose(1, 2).flatten(0, 1).narrow(0, 0, real);
            } else if (a.kernel == FLASH_CUDA) {
                std::tie(x, y, z) = at::_flash_attention_backward(
                    dout->t.narrow(0, a.row, a.rows), q->t.narrow(0, a.row, a.rows), k->t.narrow(0, a.row, a.rows),
                    v->t.narrow(0, a.row, a.rows), out->t.narrow(0, a.row, a.rows), a.lse, saved->state->cum, saved->state->cum, a.max_q, a.max_q, 0.0,
                    true, a.seed, a.offset, {}, {}, {});
            } else {
                std::tie(x, y, z) = one_packed_backward(sequence(dout->t, p, a.seq), sequence(q->t, p, a.seq), sequence(k->t, p, a.seq),
                                                        sequence(v->t, p, a.seq), sequence(out->t, p, a.seq), a.kernel, a.lse);
                x = as_rows(x), y = as_rows(fold_heads(y, k->t.size(1))), z = as_rows(fold_heads(z, k->t.size(1)));
            }
            g[0].push_back(std::move(x)), g[1].push_back(std::move(y)), g[2].push_back(std::move(z));
        }
        th_tensor **to[3] = {dq, dk, dv};
        for (int i = 0; i < 3; i++)
            *to[i] = own(joined(g[i]));
    });
}

} // extern "C"
