/* FAISS through its C API: neighbours, what is saved and read again, damaged files. */
#include "tests/unit/testutil.h"

#include "shim/faiss.h"

enum { N = 50, DIM = 8 };

static void fill(float *x, unsigned seed)
{
    for (int i = 0; i < N * DIM; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / (1 << 24) - 0.5f;
    }
}

static vindex *made(const float *x)
{
    vindex *v;
    assert_int_equal(vindex_new(DIM, &v), ERR_OK);
    assert_int_equal(vindex_add(v, N, x), ERR_OK);
    return v;
}

static void neighbours_are_those_of_a_plain_search(void **state)
{
    float x[N * DIM], score[3], got[DIM];
    int64_t id[N + 2];
    float all[N + 2];
    (void)state;
    fill(x, 1);
    vindex *v = made(x);
    assert_int_equal(vindex_count(v), N);
    assert_int_equal(vindex_dim(v), DIM);
    for (int q = 0; q < N; q++) {
        int best = -1;
        float most = -1e30f;
        for (int i = 0; i < N; i++) {
            float s = 0;
            for (int d = 0; d < DIM; d++)
                s += x[q * DIM + d] * x[i * DIM + d];
            if (s > most)
                most = s, best = i;
        }
        assert_int_equal(vindex_search(v, 1, x + q * DIM, 3, score, id), ERR_OK);
        assert_int_equal(id[0], best);
        assert_true(score[0] >= score[1] && score[1] >= score[2]);
        assert_true(score[0] - most < 1e-5f && most - score[0] < 1e-5f);
    }
    assert_int_equal(vindex_search(v, 1, x, N + 2, all, id), ERR_OK); /* fewer than asked for */
    assert_true(id[N - 1] >= 0);
    assert_int_equal(id[N], -1);
    assert_int_equal(vindex_get(v, 7, got), ERR_OK);
    assert_memory_equal(got, x + 7 * DIM, sizeof got);
    assert_int_equal(vindex_get(v, N, got), ERR_USAGE);
    vindex_free(v);
    assert_int_equal(vindex_new(0, &v), ERR_USAGE);
    assert_null(v);
    vindex_free(NULL);
}

static void what_is_saved_is_read_again(void **state)
{
    const char *path = in_dir(state, "x.faiss");
    float x[N * DIM], y[N * DIM];
    vindex *v, *again;
    fill(x, 2);
    fill(y, 3);
    v = made(x);
    assert_int_equal(vindex_save(v, path), ERR_OK);
    assert_int_equal(vindex_load(path, &again), ERR_OK);
    assert_true(vindex_holds(again, N, DIM, x));
    assert_false(vindex_holds(again, N, DIM, y));
    assert_false(vindex_holds(again, N - 1, DIM, x));
    assert_false(vindex_holds(again, N * 2, DIM / 2, x));
    vindex_free(again);
    assert_int_equal(vindex_save(v, in_dir(state, "x.faiss/y.faiss")), ERR_IO); /* below a file */
    vindex_free(v);
}

static void a_damaged_index_is_refused(void **state)
{
    const char *path = in_dir(state, "x.faiss"), *bad = in_dir(state, "bad.faiss");
    float x[N * DIM];
    struct file_map m;
    vindex *v;
    fill(x, 4);
    v = made(x);
    assert_int_equal(vindex_save(v, path), ERR_OK);
    vindex_free(v);
    assert_int_equal(vindex_load(bad, &v), ERR_IO);
    assert_null(v);
    assert_int_equal(file_map(path, 0, &m), ERR_OK);
    for (size_t n = 0; n < m.size; n += 1 + n / 8) { /* cut anywhere */
        assert_int_equal(file_write(bad, m.data, n, false), ERR_OK);
        assert_int_equal(vindex_load(bad, &v), ERR_FORMAT);
        assert_non_null(strstr(err_text(), "bad.faiss"));
    }
    char *copy = malloc(m.size);
    for (size_t at = 0; at < 45; at++) /* every byte of its head: refused, or of no consequence */
        for (int bit = 0; bit < 8; bit++) {
            memcpy(copy, m.data, m.size);
            copy[at] ^= (char)(1 << bit);
            assert_int_equal(file_write(bad, copy, m.size, false), ERR_OK);
            int rc = vindex_load(bad, &v);
            assert_true(rc == ERR_FORMAT || (rc == ERR_OK && vindex_holds(v, N, DIM, x)));
            vindex_free(v);
        }
    free(copy);
    file_unmap(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_are_those_of_a_plain_search),
        TEST_IN_DIR(what_is_saved_is_read_again),
        TEST_IN_DIR(a_damaged_index_is_refused),
    };
    return cmocka_run_group_tests_name("faiss", tests, NULL, NULL);
}
