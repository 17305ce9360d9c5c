/* tfevents.c: the bytes that TensorBoard expects. */
#include "tests/unit/testutil.h"

#include <stdio.h>

#include "lib/tfevents.h"

static void the_checksum_is_crc_32c(void **state)
{
    (void)state;
    uint8_t zero[32] = {0};
    assert_int_equal(crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c(zero, 32), 0x8a9136aau); /* RFC 3720, B.4 */
    assert_int_equal(crc32c("", 0), 0);
}

static uint64_t le(const uint8_t *p, int n)
{
    uint64_t v = 0;
    for (int i = n; i-- > 0;)
        v = v << 8 | p[i];
    return v;
}

static void records_hold_events(void **state)
{
    struct tfevents *t;
    struct file_list l = {0};
    struct file_map f;
    assert_int_equal(tfevents_open(in_dir(state, "tb"), 41, &t), 0);
    assert_int_equal(tfevents_scalar(t, 300, "train/loss", 0.25), 0);
    tfevents_close(t);
    assert_int_equal(file_list_add(&l, in_dir(state, "tb"), NULL), 0);
    assert_int_equal(l.n, 1);
    assert_non_null(strstr(l.v[0].path, "/events.out.tfevents."));
    assert_int_equal(file_map(l.v[0].path, 0, &f), 0);
    const uint8_t *p = (const uint8_t *)f.data;
    size_t at = 0, n = 0;
    const uint8_t *event[3];
    size_t size[3];
    while (at < f.size) {
        size[n] = le(p + at, 8);
        uint32_t c = crc32c(p + at, 8), d = crc32c(p + at + 12, size[n]);
        assert_int_equal(le(p + at + 8, 4), (uint32_t)((c >> 15 | c << 17) + 0xa282ead8u));
        assert_int_equal(le(p + at + 12 + size[n], 4), (uint32_t)((d >> 15 | d << 17) + 0xa282ead8u));
        event[n++] = p + at + 12;
        at += 16 + size[n - 1];
    }
    assert_int_equal(at, f.size);
    assert_int_equal(n, 3);
    assert_memory_equal(event[0] + 9, "\x1a\x0d" "brain.Event:2", 15);
    assert_memory_equal(event[1] + 9, "\x10\x2a\x3a\x02\x08\x01", 6);                      /* step 42, a start */
    assert_int_equal(size[2], 9 + 3 + 2 + 2 + 12 + 5);
    assert_memory_equal(event[2] + 9, "\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x80\x3e", 24);
    file_unmap(&f);
    file_list_release(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_checksum_is_crc_32c),
        TEST_IN_DIR(records_hold_events),
    };
    return cmocka_run_group_tests_name("tfevents", tests, NULL, NULL);
}
