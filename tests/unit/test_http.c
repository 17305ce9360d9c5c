/* Addresses, and paths that come from outside.  Transfers are tested by tests/e2e/t80-fetch.sh and on. */
#include "lib/http.h"

#include <stdlib.h>

#include "lib/err.h"
#include "lib/files.h"
#include "tests/unit/testutil.h"

static void shown(const char *url, const char *want)
{
    char *got = http_shown_url(url);
    assert_string_equal(got, want);
    free(got);
}

static void shown_urls_have_no_credentials(void **state)
{
    (void)state;
    shown("https://host/a", "https://host/a");
    shown("https://me:secret@host/a", "https://host/a");
    shown("https://me:se@cret@host:80?x=@y", "https://host:80?x=@y");
    shown("https://host/a@b", "https://host/a@b");
    shown("no url", "no url");
}

static void paths_are_encoded_byte_by_byte(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    http_put_path(&b, "sub dir/\xc3\xa4#b?c%d~e-f_g.h");
    assert_string_equal(b.s, "sub%20dir/%C3%A4%23b%3Fc%25d~e-f_g.h");
    buf_release(&b);
}

static void paths_that_stay_in_the_folder_are_safe(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "a/b.step", "a..b/..c", "...", ".hidden", "a/b/", "\xc3\xa4"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_null(path_unsafe(good[i]));
}

static void paths_that_leave_the_folder_are_not(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "/a", "..", "../a", "a/../b", "a/..", "./a", "a//b", "C:x", "c:/x", "a\\..\\b",
                                      "a\nb", "a\x7f"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_non_null(path_unsafe(bad[i]));
    char *longer = xmalloc(2000);
    memset(longer, 'a', 1999);
    longer[1999] = 0;
    assert_non_null(path_unsafe(longer));
    longer[300] = 0; /* one part */
    assert_non_null(path_unsafe(longer));
    free(longer);
}

static void a_server_that_is_not_there_is_an_error_with_the_address(void **state)
{
    (void)state;
    struct http *h = http_new(&(struct http_opts){.tries = 2, .backoff_s = 0.01, .token = "secret"});
    struct buf b = BUF_INIT;
    assert_int_equal(http_get(h, "http://me:pw@127.0.0.1:1/x", 100, &b), ERR_IO);
    assert_non_null(strstr(err_text(), "http://127.0.0.1:1/x: "));
    assert_null(strstr(err_text(), "pw"));
    assert_int_equal(http_last(h).status, 0);
    assert_int_equal(http_get(h, "file:///etc/passwd", 100000, &b), ERR_IO); /* http and https only */
    assert_int_equal(b.n, 0);
    buf_release(&b);
    http_free(h);
}

static void a_folder_that_cannot_be_made_is_the_disks_fault(void **state)
{
    (void)state;
    struct http *h = http_new(&(struct http_opts){.tries = 1});
    struct http_file f = {.url = "http://127.0.0.1:1/x", .path = "/dev/null/x", .size = -1};
    assert_int_equal(http_download(h, &f), ERR_IO);
    assert_true(http_last(h).disk);
    http_free(h);
    http_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shown_urls_have_no_credentials),
        cmocka_unit_test(paths_are_encoded_byte_by_byte),
        cmocka_unit_test(paths_that_stay_in_the_folder_are_safe),
        cmocka_unit_test(paths_that_leave_the_folder_are_not),
        cmocka_unit_test(a_server_that_is_not_there_is_an_error_with_the_address),
        cmocka_unit_test(a_folder_that_cannot_be_made_is_the_disks_fault),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
