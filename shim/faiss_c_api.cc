// faiss_c_api.cc: the functions of FAISS's C API that faiss_index.c calls, under their own names and signatures.
//
// Debian's libfaiss-dev ships the headers of the C API and not one of its objects.  These are compiled against those headers, so
// a signature that differs is a compiler's error, and where FAISS itself is built with its C API this file may be left out
// (make FAISS_C_API=-lfaiss_c).  One thing is done otherwise: FAISS keeps the exception as a copy of its base class, which
// loses the text of what is no FaissException; here the text is kept.
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_io_c.h>

#include <faiss/IndexFlat.h>
#include <faiss/impl/FaissException.h>
#include <faiss/index_io.h>

#include <cstdio>
#include <memory>
#include <string>

namespace {

thread_local std::string last_error;

int keep(int code, const char *text) noexcept
{
    try {
        last_error = text;
    } catch (...) {
        last_error.clear();
    }
    return code;
}

template <typename F> int guard(F &&f) noexcept
{
    try {
        f();
        return OK;
    } catch (const faiss::FaissException &e) {
        return keep(FAISS_EXCEPT, e.what());
    } catch (const std::exception &e) {
        return keep(STD_EXCEPT, e.what());
    } catch (...) {
        return keep(UNKNOWN_EXCEPT, "unknown exception");
    }
}

faiss::Index *of(FaissIndex *i) { return reinterpret_cast<faiss::Index *>(i); }
const faiss::Index *of(const FaissIndex *i) { return reinterpret_cast<const faiss::Index *>(i); }

} // namespace

extern "C" {

const char *faiss_get_last_error()
{
    return last_error.c_str();
}

void faiss_Index_free(FaissIndex *index)
{
    delete of(index);
}

int faiss_Index_d(const FaissIndex *index) { return of(index)->d; }
idx_t faiss_Index_ntotal(const FaissIndex *index) { return of(index)->ntotal; }

int faiss_Index_add(FaissIndex *index, idx_t n, const float *x)
{
    return guard([&] { of(index)->add(n, x); });
}

int faiss_Index_search(const FaissIndex *index, idx_t n, const float *x, idx_t k, float *distances, idx_t *labels)
{
    return guard([&] { of(index)->search(n, x, k, distances, labels); });
}

int faiss_Index_reconstruct(const FaissIndex *index, idx_t key, float *recons)
{
    return guard([&] { of(index)->reconstruct(key, recons); });
}

int faiss_IndexFlatIP_new_with(FaissIndexFlatIP **p_index, idx_t d)
{
    return guard([&] { *p_index = reinterpret_cast<FaissIndexFlatIP *>(static_cast<faiss::Index *>(new faiss::IndexFlatIP(d))); });
}

FaissIndexFlat *faiss_IndexFlat_cast(FaissIndex *index)
{
    return dynamic_cast<faiss::IndexFlat *>(of(index)) ? index : nullptr;
}

void faiss_IndexFlat_xb(FaissIndexFlat *index, float **p_xb, size_t *p_size)
{
    auto *flat = dynamic_cast<faiss::IndexFlat *>(of(index));
    *p_xb = flat->get_xb();
    *p_size = flat->codes.size() / sizeof **p_xb;
}

int faiss_write_index(const FaissIndex *idx, FILE *f)
{
    return guard([&] { faiss::write_index(of(idx), f); });
}

int faiss_read_index_fname(const char *fname, int io_flags, FaissIndex **p_out)
{
    return guard([&] { *p_out = reinterpret_cast<FaissIndex *>(faiss::read_index(fname, io_flags)); });
}

} // extern "C"
