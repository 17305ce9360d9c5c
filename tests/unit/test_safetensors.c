#include "tests/unit/testutil.h"

#include <stdio.h>

#include "lib/mem.h"
#include "lib/safetensors.h"

/* A file of the given header text and n data bytes. */
static const char *make(void **state, const char *header, size_t n)
{
    const char *path = in_dir(state, "x.safetensors");
    struct buf b = BUF_INIT;
    uint64_t len = strlen(header);
    buf_add(&b, &len, 8);
    buf_puts(&b, header);
    for (size_t i = 0; i < n; i++)
        buf_putc(&b, (char)i);
    assert_int_equal(file_write(path, b.s, b.n, false), ERR_OK);
    buf_release(&b);
    return path;
}

static void what_is_written_reads_back_aligned(void **state)
{
    static const uint8_t bytes[3] = {1, 2, 3};
    static const uint16_t halves[4] = {0x3f80, 0x4000, 5, 6};
    static const float floats[6] = {1, 2, 3, 4, 5, 6};
    static const int64_t scalar = -7;
    const struct st_tensor v[] = {
        {.name = "mask", .dtype = ST_BOOL, .rank = 1, .shape = {3}, .data = bytes},
        {.name = "a.half", .dtype = ST_BF16, .rank = 2, .shape = {2, 2}, .data = halves},
        {.name = "w \"quoted\" \xc3\xa9", .dtype = ST_F32, .rank = 3, .shape = {1, 2, 3}, .data = floats},
        {.name = "step", .dtype = ST_I64, .rank = 0, .data = &scalar},
        {.name = "none", .dtype = ST_F32, .rank = 2, .shape = {0, 4}},
    };
    const char *const metadata[] = {"format", "pt", "note", "hello", NULL};
    const char *path = in_dir(state, "out.safetensors");
    struct st *s;
    assert_int_equal(st_write(path, v, ARRAY_LEN(v), NULL, NULL, metadata), ERR_OK);
    assert_int_equal(st_open(path, &s), ERR_OK);
    assert_int_equal(st_count(s), ARRAY_LEN(v));
    assert_string_equal(st_metadata(s, "note"), "hello");
    assert_null(st_metadata(s, "other"));
    assert_string_equal(st_at(s, 0)->name, "a.half");
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        const struct st_tensor *t = st_find(s, v[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, v[i].dtype);
        assert_int_equal(t->rank, v[i].rank);
        assert_memory_equal(t->shape, v[i].shape, sizeof t->shape);
        assert_int_equal((uintptr_t)t->data % st_dtype_size(t->dtype), 0);
        if (v[i].data)
            assert_memory_equal(t->data, v[i].data, t->bytes);
    }
    assert_int_equal(st_find(s, "step")->bytes, 8);
    assert_int_equal(st_find(s, "none")->bytes, 0);
    const struct st_tensor *t;
    assert_int_equal(st_get(s, "a.half", 2, (const int64_t[]){2, 2}, &t), ERR_OK);
    assert_int_equal(st_get(s, "a.half", 2, (const int64_t[]){2, 3}, &t), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "2 x 2, 2 x 3 is due"));
    assert_int_equal(st_get(s, "lacking", -1, NULL, &t), ERR_FORMAT);
    st_close(s);
}

static int supply(void *ctx, size_t i, const void **data)
{
    float *v = ctx;
    for (int k = 0; k < 4; k++)
        v[k] = (float)(10 * i) + (float)k;
    *data = v;
    return i == 99 ? err_set(ERR_EXTERN, "no more") : ERR_OK;
}

static void a_model_is_sharded_by_size_and_read_as_one(void **state)
{
    char names[10][24];
    struct st_tensor v[10];
    float room[4];
    struct st *s;
    for (int i = 0; i < 10; i++) {
        snprintf(names[i], sizeof names[i], "layer.%d", i);
        v[i] = (struct st_tensor){.name = names[i], .dtype = ST_F32, .rank = 1, .shape = {4}};
    }
    assert_int_equal(st_write_model(*state, v, 10, supply, room, 0), ERR_OK);
    assert_true(path_exists(in_dir(state, "model.safetensors")));
    assert_int_equal(st_write_model(*state, v, 10, supply, room, 50), ERR_OK); /* three of 16 bytes a file */
    assert_false(path_exists(in_dir(state, "model.safetensors")));
    assert_true(path_exists(in_dir(state, "model-00004-of-00004.safetensors")));
    assert_int_equal(st_open(*state, &s), ERR_OK);
    assert_int_equal(st_count(s), 10);
    for (int i = 0; i < 10; i++)
        assert_true(((const float *)st_find(s, names[i])->data)[3] == (float)(10 * i + 3));
    st_close(s);
    /* A shard that lacks what the index has in it, or is gone, is told. */
    assert_int_equal(remove(in_dir(state, "model-00002-of-00004.safetensors")), 0);
    assert_int_equal(st_open(*state, &s), ERR_IO);
    assert_int_equal(st_write(in_dir(state, "model-00002-of-00004.safetensors"), v, 1, supply, room, NULL), ERR_OK);
    assert_int_equal(st_open(*state, &s), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "layer.3"));
}

static void a_failing_supplier_leaves_no_file(void **state)
{
    struct st_tensor v = {.name = "x", .dtype = ST_F32, .rank = 1, .shape = {4}};
    const char *path = in_dir(state, "out.safetensors");
    assert_int_equal(st_write(path, &v, 1, NULL, NULL, NULL), ERR_USAGE);
    assert_false(path_exists(path));
}

static void an_index_may_not_lead_elsewhere(void **state)
{
    static const char *const files[] = {"../x.safetensors", "/etc/passwd", "", ".hidden", "sub/x.safetensors"};
    const char *path = in_dir(state, "model.safetensors.index.json");
    struct st *s;
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"weight_map\":{\"w\":\"%s\"}}", files[i]);
        file_write(path, text, strlen(text), false);
        assert_int_equal(st_open(*state, &s), ERR_FORMAT);
        assert_non_null(strstr(err_text(), "beside the index"));
    }
    file_write(path, "{}", 2, false);
    assert_int_equal(st_open(path, &s), ERR_FORMAT);
    assert_int_equal(st_open(in_dir(state, "none"), &s), ERR_IO);
}

static void headers_are_not_believed(void **state)
{
    static const struct {
        const char *header, *says;
        size_t n;
    } cases[] = {
        {"", "header", 0},
        {"[]", "no JSON object", 0},
        {"{\"a\":1}", "no dtype", 0},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "outside", 4},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,9]}}", "do not hold", 9},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", "F33", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", "bad shape", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", "bad shape", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", "shape", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", "shape", 4},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", "do not hold", 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,8]}}", "do not hold", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", "outside", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", "outside", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", "no pair", 8},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
         "\"data_offsets\":[2,6]}}", "overlaps", 6},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
         "\"data_offsets\":[5,9]}}", "gap", 9},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "after the last", 9},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"U8\",\"shape\":[0],"
         "\"data_offsets\":[0,0]}}", "duplicate", 0},
        {"{\"__metadata__\":3}", "__metadata__", 0},
        {"{\"__metadata__\":{\"a\":1}}", "__metadata__", 0},
    };
    struct st *s;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *path = make(state, cases[i].header, cases[i].n);
        if (st_open(path, &s) != ERR_FORMAT || s || !strstr(err_text(), cases[i].says) ||
            !strstr(err_text(), "x.safetensors"))
            fail_msg("case %zu: %s", i, err_text());
    }
    const char *path = in_dir(state, "x.safetensors");
    static const struct {
        const char *bytes, *says;
        size_t n;
    } raw[] = {{"", "too few", 0}, {"\1\0\0", "too few", 3}, {"\xff\0\0\0\0\0\0\0{}", "cut short", 10},
               {"\0\0\0\0\0\0\0\x80", "not a safetensors", 8}, {"<!DOCTYPE html>", "not a safetensors", 15}};
    for (size_t i = 0; i < ARRAY_LEN(raw); i++) {
        file_write(path, raw[i].bytes, raw[i].n, false);
        assert_int_equal(st_open(path, &s), ERR_FORMAT);
        if (!strstr(err_text(), raw[i].says))
            fail_msg("raw %zu: %s", i, err_text());
    }
}

static void a_file_cut_or_damaged_anywhere_never_crashes(void **state)
{
    static const float floats[6] = {1, 2, 3, 4, 5, 6};
    const struct st_tensor v[] = {{.name = "a", .dtype = ST_F32, .rank = 1, .shape = {6}, .data = floats},
                                  {.name = "b", .dtype = ST_I64, .rank = 1, .shape = {2}, .data = floats}};
    const char *path = in_dir(state, "x.safetensors");
    struct file_map m;
    struct st *s;
    assert_int_equal(st_write(path, v, 2, NULL, NULL, NULL), ERR_OK);
    assert_int_equal(file_map(path, 0, &m), ERR_OK);
    for (size_t n = 0; n < m.size; n++) {
        assert_int_equal(file_write(path, m.data, n, false), ERR_OK);
        assert_int_equal(st_open(path, &s), ERR_FORMAT);
    }
    char *copy = xmalloc(m.size);
    for (size_t at = 0; at < m.size - 40; at++)
        for (int k = 0; k < 6; k++) {
            memcpy(copy, m.data, m.size);
            copy[at] = "9\"[}\0\xff"[k];
            file_write(path, copy, m.size, false);
            if (st_open(path, &s) == ERR_OK)
                for (size_t i = 0; i < st_count(s); i++) { /* touch all it says is there */
                    const unsigned char *p = st_at(s, i)->data;
                    for (size_t b = 0; b < st_at(s, i)->bytes; b++)
                        copy[0] ^= (char)p[b];
                }
            st_close(s);
        }
    free(copy);
    file_unmap(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_IN_DIR(what_is_written_reads_back_aligned),
        TEST_IN_DIR(a_model_is_sharded_by_size_and_read_as_one),
        TEST_IN_DIR(a_failing_supplier_leaves_no_file),
        TEST_IN_DIR(an_index_may_not_lead_elsewhere),
        TEST_IN_DIR(headers_are_not_believed),
        TEST_IN_DIR(a_file_cut_or_damaged_anywhere_never_crashes),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
