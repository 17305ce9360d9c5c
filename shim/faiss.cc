// faiss.cc: see faiss.h.
#include "shim/faiss.h"

#include <faiss/IndexFlat.h>
#include <faiss/impl/FaissException.h>
#include <faiss/index_io.h>

#include <cstdio>
#include <memory>
#include <string>

#include "lib/err.h"

struct vindex {
    std::unique_ptr<faiss::IndexFlat> index;
};

namespace {

template <typename F> int guard(F &&f) noexcept
{
    try {
        return f();
    } catch (const faiss::FaissException &e) {
        return err_set(ERR_EXTERN, "FAISS: %s", e.what());
    } catch (const std::bad_alloc &) {
        return err_set(ERR_NOMEM, "out of memory");
    } catch (const std::exception &e) {
        return err_set(ERR_EXTERN, "FAISS: %s", e.what());
    } catch (...) {
        return err_set(ERR_EXTERN, "FAISS: unknown exception");
    }
}

} // namespace

extern "C" {

int vindex_new(int dim, vindex **out)
{
    *out = nullptr;
    if (dim < 1)
        return err_set(ERR_USAGE, "an index of %d dimensions", dim);
    return guard([&]() -> int {
        *out = new vindex{std::make_unique<faiss::IndexFlatIP>(dim)};
        return ERR_OK;
    });
}

void vindex_free(vindex *v)
{
    delete v;
}

int vindex_add(vindex *v, int64_t n, const float *x)
{
    return guard([&]() -> int {
        v->index->add(n, x);
        return ERR_OK;
    });
}

int64_t vindex_count(const vindex *v) { return v->index->ntotal; }
int vindex_dim(const vindex *v) { return (int)v->index->d; }

int vindex_search(const vindex *v, int64_t n, const float *x, int64_t k, float *score, int64_t *id)
{
    return guard([&]() -> int {
        v->index->search(n, x, k, score, id);
        return ERR_OK;
    });
}

int vindex_get(const vindex *v, int64_t id, float *x)
{
    if (id < 0 || id >= v->index->ntotal)
        return err_set(ERR_USAGE, "vector %lld of %lld", (long long)id, (long long)v->index->ntotal);
    return guard([&]() -> int {
        v->index->reconstruct(id, x);
        return ERR_OK;
    });
}

int vindex_save(const vindex *v, const char *path)
{
    std::string part = std::string(path) + ".part";
    return guard([&]() -> int {
        faiss::write_index(v->index.get(), part.c_str());
        if (std::rename(part.c_str(), path) != 0)
            return err_set(ERR_IO, "%s: cannot be put in place", path);
        return ERR_OK;
    });
}

int vindex_load(const char *path, vindex **out)
{
    *out = nullptr;
    return guard([&]() -> int {
        std::unique_ptr<faiss::Index> any(faiss::read_index(path));
        auto *flat = dynamic_cast<faiss::IndexFlat *>(any.get());
        if (!flat || flat->metric_type != faiss::METRIC_INNER_PRODUCT)
            return err_set(ERR_FORMAT, "%s: is no flat inner-product index", path);
        any.release();
        *out = new vindex{std::unique_ptr<faiss::IndexFlat>(flat)};
        return ERR_OK;
    });
}

} // extern "C"
