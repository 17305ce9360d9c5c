#include "shim/faiss.h"

#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_io_c.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"

struct vindex {
    FaissIndex *index; /* an IndexFlat of inner products */
};

static int failed(const char *what)
{
    const char *text = faiss_get_last_error();
    return err_set(strstr(text, "bad_alloc") ? ERR_NOMEM : ERR_EXTERN, "FAISS, %s: %s", what, text);
}

int vindex_new(int dim, vindex **out)
{
    vindex *v = NULL;
    *out = NULL;
    if (dim < 1)
        return err_set(ERR_USAGE, "an index of %d dimensions", dim);
    v = xcalloc(1, sizeof *v);
    if (faiss_IndexFlatIP_new_with(&v->index, dim) != OK) {
        free(v);
        return failed("a new index");
    }
    *out = v;
    return ERR_OK;
}

void vindex_free(vindex *v)
{
    if (v)
        faiss_Index_free(v->index);
    free(v);
}

int vindex_add(vindex *v, int64_t n, const float *x)
{
    return faiss_Index_add(v->index, n, x) == OK ? ERR_OK : failed("adding vectors");
}

int64_t vindex_count(const vindex *v)
{
    return faiss_Index_ntotal(v->index);
}

int vindex_dim(const vindex *v)
{
    return faiss_Index_d(v->index);
}

int vindex_search(const vindex *v, int64_t n, const float *x, int64_t k, float *score, int64_t *id)
{
    return faiss_Index_search(v->index, n, x, k, score, id) == OK ? ERR_OK : failed("searching");
}

int vindex_get(const vindex *v, int64_t id, float *x)
{
    if (id < 0 || id >= vindex_count(v))
        return err_set(ERR_USAGE, "vector %lld of %lld", (long long)id, (long long)vindex_count(v));
    return faiss_Index_reconstruct(v->index, id, x) == OK ? ERR_OK : failed("reading a vector");
}

bool vindex_holds(const vindex *v, int64_t n, int dim, const float *x)
{
    float *own;
    size_t size;
    if (vindex_count(v) != n || vindex_dim(v) != dim)
        return false;
    faiss_IndexFlat_xb(v->index, &own, &size);
    return size == (size_t)n * (size_t)dim && !memcmp(own, x, size * sizeof *x);
}

int vindex_save(const vindex *v, const char *path)
{
    struct atomic_file a;
    int rc = atomic_open(&a, path);
    if (rc < 0)
        return rc;
    if (faiss_write_index(v->index, a.f) != OK) {
        atomic_abort(&a);
        return err_set(ERR_IO, "%s: cannot be written: %s", path, faiss_get_last_error());
    }
    return atomic_commit(&a, false);
}

/* A flat index is "IxF" and "I" (inner product) or others, dimensions, vectors, two numbers of no use, a flag, the metric, and how
 * many floats follow.  FAISS takes these at their word, and would ask for as much memory as a damaged file says. */
static int check_size(const char *path)
{
    enum { DIM = 4, COUNT = 8, METRIC = 33, FLOATS = 37, HEAD = 45 };
    struct file_map m;
    int rc = file_map(path, 0, &m);
    if (rc < 0)
        return rc;
    int32_t dim = 0, metric = 0;
    int64_t count = 0, floats = 0;
    bool ok = m.size >= HEAD && !memcmp(m.data, "IxF", 3);
    if (ok) {
        memcpy(&dim, m.data + DIM, sizeof dim);
        memcpy(&count, m.data + COUNT, sizeof count);
        memcpy(&metric, m.data + METRIC, sizeof metric);
        memcpy(&floats, m.data + FLOATS, sizeof floats);
        ok = dim > 0 && metric == METRIC_INNER_PRODUCT && count >= 0 && (m.size - HEAD) % sizeof(float) == 0 &&
             (uint64_t)floats == (m.size - HEAD) / sizeof(float) && floats % dim == 0 && floats / dim == count;
    }
    file_unmap(&m);
    return ok ? ERR_OK : err_set(ERR_FORMAT, "%s: is no whole flat index of FAISS by inner product", path);
}

int vindex_load(const char *path, vindex **out)
{
    FaissIndex *index = NULL;
    *out = NULL;
    int rc = check_size(path);
    if (rc < 0)
        return rc;
    if (faiss_read_index_fname(path, 0, &index) != OK)
        return err_set(ERR_FORMAT, "%s: %s", path, faiss_get_last_error());
    if (!faiss_IndexFlat_cast(index)) {
        faiss_Index_free(index);
        return err_set(ERR_FORMAT, "%s: is no flat index", path);
    }
    *out = xcalloc(1, sizeof **out);
    (*out)->index = index;
    return ERR_OK;
}
