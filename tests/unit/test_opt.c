/* opt.c: one table for command line, config and help. */
#include "tests/unit/testutil.h"

#include "lib/opt.h"

static bool flag;
static int64_t count;
static double rate;
static const char *mode;
static struct opt_list list;

static struct opt *fresh(void)
{
    static struct opt table[6];
    struct opt init[6] = {
        {.name = "flag", .letter = 'f', .type = OPT_FLAG, .value = &flag, .help = "a flag"},
        {.name = "count", .letter = 'n', .type = OPT_INT, .value = &count, .help = "how many", .min = 1, .max = 5000},
        {.name = "learning-rate", .type = OPT_REAL, .value = &rate, .help = "rate"},
        {.name = "mode", .type = OPT_STR, .value = &mode, .choices = "strict|reference", .help = "mode"},
        {.name = "mirror", .type = OPT_LIST, .value = &list, .arg = "URL", .help = "mirrors"},
    };
    flag = false;
    count = 7;
    rate = 0.5;
    mode = "strict";
    list = (struct opt_list){0};
    memcpy(table, init, sizeof table);
    return table;
}

static int parse(struct opt *t, struct opt_args *args, int argc, const char **argv)
{
    struct opt *tables[] = {t};
    *args = (struct opt_args){0};
    return opt_parse(tables, 1, argc, (char **)argv, args);
}
#define PARSE(t, args, ...) parse(t, args, (int)ARRAY_LEN(((const char *[]){"x", __VA_ARGS__})), (const char *[]){"x", __VA_ARGS__})

static void all_spellings_of_an_option_are_understood(void **state)
{
    (void)state;
    struct opt_args a;
    assert_int_equal(PARSE(fresh(), &a, "in", "-fn3k", "--learning_rate=0.25", "--mirror", "a", "-omirror=b", "--", "-z"), 0);
    assert_true(flag);
    assert_int_equal(count, 3000);
    assert_true(rate == 0.25);
    assert_int_equal(list.n, 2);
    assert_string_equal(list.v[1], "b");
    assert_int_equal(a.n, 2);
    assert_string_equal(a.v[1], "-z");
    assert_int_equal(PARSE(fresh(), &a, "--flag", "--no-flag"), 0);
    assert_false(flag);
}

static void misuse_is_named(void **state)
{
    (void)state;
    struct opt_args a;
    assert_int_equal(PARSE(fresh(), &a, "--learning-rat", "1"), ERR_USAGE);
    assert_non_null(strstr(err_text(), "nearest: '--learning-rate'"));
    assert_int_equal(PARSE(fresh(), &a, "--count", "many"), ERR_USAGE);
    assert_non_null(strstr(err_text(), "whole number"));
    assert_int_equal(PARSE(fresh(), &a, "--count", "5001"), ERR_USAGE);
    assert_int_equal(PARSE(fresh(), &a, "--count", "99999999999999999999"), ERR_USAGE);
    assert_int_equal(PARSE(fresh(), &a, "--mode", "stric"), ERR_USAGE);
    assert_int_equal(PARSE(fresh(), &a, "--mode"), ERR_USAGE);
    assert_int_equal(PARSE(fresh(), &a, "-z"), ERR_USAGE);
}

static int config(void **state, struct opt *t, const char *text)
{
    static const char *const tools[] = {"sft", "generate", NULL};
    struct opt *tables[] = {t};
    const char *path = in_dir(state, "a.conf");
    assert_int_equal(file_write(path, text, strlen(text), false), 0);
    return opt_config(tables, 1, path, "sft", tools);
}

static void config_gives_way_to_the_command_line(void **state)
{
    struct opt_args a;
    struct opt *t = fresh();
    assert_int_equal(PARSE(t, &a, "--count", "9"), 0);
    assert_int_equal(config(state, t, "count = 4  # shared\nother = 1\n[generate]\nrate = 1\n[sft]\nlearning_rate = 2e-4\n"
                                      "mode = \"reference\"\n"), 0);
    assert_int_equal(count, 9);
    assert_true(rate == 2e-4);
    assert_string_equal(mode, "reference");
}

static void config_errors_name_line_and_nearest_key(void **state)
{
    assert_int_equal(config(state, fresh(), "[sft]\n\nlearnin_rate = 1\n"), ERR_USAGE);
    assert_non_null(strstr(err_text(), "a.conf:3: "));
    assert_non_null(strstr(err_text(), "learning-rate"));
    assert_int_equal(config(state, fresh(), "[sfd]\n"), ERR_USAGE);
    assert_int_equal(config(state, fresh(), "just words\n"), ERR_USAGE);
}

static void dump_reads_back(void **state)
{
    struct opt_args a;
    struct opt *t = fresh();
    struct buf b = BUF_INIT;
    assert_int_equal(PARSE(t, &a, "--count", "12", "--mirror", "u#1", "--learning-rate", "0.1"), 0);
    opt_dump(t, false, &b);
    assert_int_equal(config(state, fresh(), b.s), 0);
    assert_int_equal(count, 12);
    assert_true(rate == 0.1);
    assert_string_equal(list.v[0], "u#1");
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_spellings_of_an_option_are_understood),
        cmocka_unit_test(misuse_is_named),
        TEST_IN_DIR(config_gives_way_to_the_command_line),
        TEST_IN_DIR(config_errors_name_line_and_nearest_key),
        TEST_IN_DIR(dump_reads_back),
    };
    return cmocka_run_group_tests_name("opt", tests, NULL, NULL);
}
