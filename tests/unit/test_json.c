/* json.c: what the writer makes. */
#include "tests/unit/testutil.h"
#include <math.h>

#include "lib/json.h"

static void nested_values_are_separated_and_escaped(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    struct jw j = JW_INIT(&b);
    jw_object(&j);
    jw_kv_str(&j, "a\"b", "x\n\xff\xc3\xa9");
    jw_key(&j, "list");
    jw_array(&j);
    jw_int(&j, -3);
    jw_real(&j, 0.1);
    jw_real(&j, NAN);
    jw_end(&j);
    jw_kv_bool(&j, "t", true);
    jw_end(&j);
    assert_string_equal(b.s, "{\"a\\\"b\":\"x\\n\xef\xbf\xbd\xc3\xa9\",\"list\":[-3,0.1,null],\"t\":true}");
    buf_release(&b);
}

static void indent_and_ascii_match_python(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    struct jw j = {.out = &b, .indent = 4, .ascii = true};
    jw_array(&j);
    jw_object(&j);
    jw_kv_str(&j, "k", "\xc3\xa9\xf0\x9f\x98\x80");
    jw_end(&j);
    jw_object(&j);
    jw_end(&j);
    jw_end(&j);
    assert_string_equal(b.s, "[\n    {\n        \"k\": \"\\u00e9\\ud83d\\ude00\"\n    },\n    {}\n]");
    buf_release(&b);
}

static void reals_print_shortest(void **state)
{
    (void)state;
    char t[32];
    assert_string_equal(real_repr(t, 1.0 / 3), "0.3333333333333333");
    assert_string_equal(real_repr(t, 5), "5.0");
    assert_string_equal(real_repr(t, 1e-7), "1e-07");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nested_values_are_separated_and_escaped),
        cmocka_unit_test(indent_and_ascii_match_python),
        cmocka_unit_test(reals_print_shortest),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
