#include "tests/unit/testutil.h"

#include <stdio.h>

#include "lib/csv.h"
#include "lib/mem.h"
#include "lib/pairs.h"

static struct pairs *open_text(void **state, const char *text)
{
    const char *path = in_dir(state, "p.json");
    struct pairs *r;
    assert_int_equal(file_write(path, text, strlen(text), false), ERR_OK);
    if (pairs_open(path, &r) < 0)
        fail_msg("%s", err_text());
    return r;
}

static void records_are_written_as_python_writes_them(void **state)
{
    const char *path = in_dir(state, "sub/p.json");
    struct pairs_writer *w;
    struct file_map m;
    assert_int_equal(pairs_create(path, &w), ERR_OK);
    assert_false(path_exists(path)); /* only whole */
    assert_int_equal(pairs_put(w, &(struct pair){.id_original = "00000050", .caption = "\xc3\xb8 \"6\" \xf0\x9f\x94\xa7",
                                                 .id_retrieve = "7", .retrieved = "a\tb", .output = "x\n\\y"}), ERR_OK);
    assert_int_equal(pairs_put(w, &(struct pair){.id_original = "2", .caption = "", .output = "\x7f\x01"}), ERR_OK);
    assert_int_equal(pairs_commit(w), ERR_OK);
    assert_int_equal(file_map(path, 0, &m), ERR_OK);
    const char *want = "[\n    {\n        \"id_original\": \"00000050\",\n        \"caption\": \"\\u00f8 \\\"6\\\" \\ud83d\\udd27\",\n"
                       "        \"id_retrieve\": \"7\",\n        \"relavant_step_file\": \"a\\tb\",\n"
                       "        \"output\": \"x\\n\\\\y\"\n    },\n    {\n        \"id_original\": \"2\",\n"
                       "        \"caption\": \"\",\n        \"output\": \"\x7f\\u0001\"\n    }\n]";
    assert_int_equal(m.size, strlen(want));
    assert_memory_equal(m.data, want, m.size);
    file_unmap(&m);
    assert_int_equal(pairs_create(path, &w), ERR_OK);
    assert_int_equal(pairs_commit(w), ERR_OK);
    assert_int_equal(file_map(path, 0, &m), ERR_OK);
    assert_int_equal(m.size, 2); /* [] */
    file_unmap(&m);
}

static void any_spelling_of_json_is_read(void **state)
{
    struct pairs *r = open_text(state,
        "\xef\xbb\xbf [ {\"output\":\"o\\u00e9\\ud83d\\udd27\\ud800x\\/\",\"caption\":\"c\",\"more\":{\"a\":[1,-2.5e3,true,"
        "{\"b\":[]}],\"c\":{}},\"id_original\":50,\"id_retrieve\":null}\r\n,\t{\"id_original\":\"b\",\"caption\":"
        "\"\\b\\f\\n\\r\\t\\\"\\\\\",\"relavant_step_file\":\"R\",\"id_retrieve\":-7,\"output\":\"\"}] \n");
    struct pair p;
    assert_int_equal(pairs_next(r, &p), 1);
    assert_string_equal(p.id_original, "50");
    assert_string_equal(p.output, "o\xc3\xa9\xf0\x9f\x94\xa7\xef\xbf\xbdx/");
    assert_null(p.id_retrieve);
    assert_null(p.retrieved);
    assert_int_equal(p.index, 0);
    uint64_t first = p.offset;
    assert_int_equal(pairs_next(r, &p), 1);
    assert_string_equal(p.caption, "\b\f\n\r\t\"\\");
    assert_string_equal(p.id_retrieve, "-7");
    assert_string_equal(p.retrieved, "R");
    assert_int_equal(p.index, 1);
    uint64_t second = p.offset;
    assert_int_equal(pairs_next(r, &p), 0);
    assert_int_equal(pairs_next(r, &p), 0);
    pairs_seek(r, second, 1);
    assert_int_equal(pairs_next(r, &p), 1);
    assert_string_equal(p.id_original, "b");
    pairs_seek(r, first, 0);
    assert_int_equal(pairs_next(r, &p), 1);
    assert_string_equal(p.id_original, "50");
    pairs_close(r);
    r = open_text(state, "[ ]");
    assert_int_equal(pairs_next(r, &p), 0);
    assert_int_equal(pairs_next(r, &p), 0);
    pairs_close(r);
}

static void errors_name_record_and_byte(void **state)
{
#define GOOD "{\"id_original\":\"a\",\"caption\":\"b\",\"output\":\"c\"}"
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"[" GOOD, "record 2, byte 47: the file ends"},
        {"[" GOOD ",]", "record 2"},
        {"[" GOOD GOOD "]", "',' or ']'"},
        {"[" GOOD "] x", "after the end"},
        {"[1]", "record 1, byte 1"},
        {"[{}]", "has no id_original"},
        {"[{\"id_original\":\"a\",\"output\":\"c\"}]", "has no caption"},
        {"[{\"id_original\":\"a\",\"caption\":null,\"output\":\"c\"}]", "has no caption"},
        {"[{\"id_original\":\"a\",\"caption\":5,\"output\":\"c\"}]", "caption is no string"},
        {"[{\"id_original\":true,\"caption\":\"\",\"output\":\"c\"}]", "id_original is no string"},
        {"[{\"id_original\":\"a", "inside a string"},
        {"[{\"id_original\":\"a\\", "inside a string"},
        {"[{\"id_original\":\"a\\u12", "four hexadecimal"},
        {"[{\"id_original\":\"a\\u0000\"}]", "NUL"},
        {"[{\"id_original\":\"a\\q\"}]", "escape"},
        {"[{\"id_original\":\"a\nb\"}]", "control"},
        {"[{\"id_original\" \"a\"}]", "':'"},
        {"[{\"id_original\":\"a\",}]", "a key is due"},
        {"[{\"x\":}]", "JSON value"},
        {"[{\"x\":[1 2]}]", "bracket"},
        {"[{", "inside a record"},
    };
    struct pair p;
    struct pairs *r;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        r = open_text(state, cases[i].text);
        int rc = 1;
        while (rc > 0)
            rc = pairs_next(r, &p);
        if (rc != ERR_FORMAT || !strstr(err_text(), cases[i].says) || !strstr(err_text(), "p.json: record"))
            fail_msg("case %zu: %d %s", i, rc, rc < 0 ? err_text() : "");
        pairs_close(r);
    }
    struct buf deep = BUF_INIT;
    buf_puts(&deep, "[{\"x\":");
    for (int i = 0; i < 100000; i++)
        buf_putc(&deep, '[');
    r = open_text(state, deep.s);
    assert_int_equal(pairs_next(r, &p), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "nested"));
    pairs_close(r);
    buf_release(&deep);
    file_write(in_dir(state, "p.json"), "{}", 2, false);
    assert_int_equal(pairs_open(in_dir(state, "p.json"), &r), ERR_FORMAT);
    file_write(in_dir(state, "p.json"), "", 0, false);
    assert_int_equal(pairs_open(in_dir(state, "p.json"), &r), ERR_FORMAT);
    assert_int_equal(pairs_open(*state, &r), ERR_IO);
}

static void tables_are_read_by_rfc_4180(void **state)
{
    const char *path = in_dir(state, "t.csv");
    const char *text = "\xef\xbb\xbfmodel_id,isDescribable,description\r\n"
                       "1,True,\"a, \"\"b\"\"\r\nc\"\n\n"
                       "2,,6\" pipe\r"
                       "\"3\",False,\"\"\n"
                       "4,x\n"
                       "6,\"q\"x,y\n"
                       "5,True,\"never closed\n"
                       "7,True,last";
    struct csv *c;
    struct csv_row row;
    file_write(path, text, strlen(text), false);
    assert_int_equal(csv_open(path, &c), ERR_OK);
    assert_int_equal(csv_column(c, "description"), 2);
    assert_int_equal(csv_column(c, "nothing"), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "it has: model_id, isDescribable, description"));
    static const struct {
        const char *id, *description, *error;
        size_t line;
    } want[] = {
        {"1", "a, \"b\"\r\nc", NULL, 2}, {"2", "6\" pipe", NULL, 5}, {"3", "", NULL, 6},
        {NULL, NULL, "t.csv:7: the row has 2 fields, the header 3", 0}, {NULL, NULL, "t.csv:8: text after the closing quote of field 2", 0},
        {NULL, NULL, "t.csv:9: a quote is not closed", 0}, {"7", "last", NULL, 10},
    };
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        int rc = csv_next(c, &row);
        if (want[i].error) {
            assert_int_equal(rc, ERR_FORMAT);
            assert_non_null(strstr(err_text(), want[i].error));
            continue;
        }
        assert_int_equal(rc, 1);
        assert_string_equal(row.field[0], want[i].id);
        assert_string_equal(row.field[2], want[i].description);
        assert_int_equal(row.line, want[i].line);
    }
    assert_int_equal(csv_next(c, &row), 0);
    assert_int_equal(csv_position(c), csv_size(c));
    csv_close(c);
    file_write(path, "a,b\nx,y\0z\n", 10, false);
    assert_int_equal(csv_open(path, &c), ERR_OK);
    assert_int_equal(csv_next(c, &row), ERR_FORMAT);
    assert_int_equal(csv_next(c, &row), 0);
    csv_close(c);
    file_write(path, "\n\n", 2, false);
    assert_int_equal(csv_open(path, &c), ERR_FORMAT);
    assert_int_equal(csv_open(in_dir(state, "none"), &c), ERR_IO);
}

static void the_real_caption_files_are_read_whole(void **state)
{
    (void)state;
    const char *shared = getenv("SHARED") ? getenv("SHARED") : "../shared";
    static const char *const names[] = {"cad_captions_0-500.csv", "cad_captions_500-1000.csv"};
    char path[4096];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/captions/%s", shared, names[i]);
        if (!path_exists(path)) {
            printf("SKIP: %s is absent\n", path);
            skip();
        }
        struct csv *c;
        struct csv_row row;
        size_t n = 0;
        int rc, id = 0, describable = 0;
        assert_int_equal(csv_open(path, &c), ERR_OK);
        assert_true((id = csv_column(c, "model_id")) >= 0 && (describable = csv_column(c, "isDescribable")) >= 0 &&
                    csv_column(c, "description") >= 0);
        while ((rc = csv_next(c, &row)) > 0) {
            n++;
            assert_true(*row.field[id] >= '0' && *row.field[id] <= '9');
            assert_true(!strcmp(row.field[describable], "True") || !strcmp(row.field[describable], "False"));
        }
        assert_int_equal(rc, 0);
        assert_true(n > 10000);
        csv_close(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_IN_DIR(records_are_written_as_python_writes_them),
        TEST_IN_DIR(any_spelling_of_json_is_read),
        TEST_IN_DIR(errors_name_record_and_byte),
        TEST_IN_DIR(tables_are_read_by_rfc_4180),
        cmocka_unit_test(the_real_caption_files_are_read_whole),
    };
    return cmocka_run_group_tests_name("pairs", tests, NULL, NULL);
}
