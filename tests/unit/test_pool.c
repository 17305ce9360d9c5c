/* pool.c: order, error text across threads, skipping, stopping. */
#include "tests/unit/testutil.h"

#include <unistd.h>

#include "lib/pool.h"

enum { N = 500 };

struct trial {
    size_t next, failed, stop_at;
    bool skip_odd;
};

static void *square(void *ctx, size_t i, int worker, int *code)
{
    (void)ctx;
    (void)worker;
    if (i % 7 == 3)
        *code = err_set(ERR_FORMAT, "item %zu is bad", i);
    if (i % 50 == 0)
        usleep(2000); /* later items finish first */
    size_t *r = xmalloc(sizeof *r);
    *r = i * i;
    return r;
}

static int in_order(void *ctx, const struct pool_item *it)
{
    struct trial *t = ctx;
    assert_int_equal(it->index, t->next);
    assert_int_equal(*(size_t *)it->result, it->index * it->index);
    t->next += t->skip_odd ? 2 : 1;
    if (it->code < 0) {
        char want[32];
        snprintf(want, sizeof want, "item %zu is bad", it->index);
        assert_string_equal(it->error, want);
        t->failed++;
    }
    free(it->result);
    return t->stop_at && it->index == t->stop_at ? ERR_CANCELLED : 0;
}

static bool odd(void *ctx, size_t i)
{
    (void)ctx;
    return i % 2;
}

static void results_come_in_order_with_their_errors(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads += 3) {
        struct trial t = {0};
        struct pool_job job = {.n = N, .threads = threads, .window = 16, .work = square, .done = in_order, .ctx = &t};
        assert_int_equal(pool_run(&job), 0);
        assert_int_equal(t.next, N);
        assert_int_equal(t.failed, 71);
    }
}

static void skipped_items_are_not_worked_on(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads += 3) {
        struct trial t = {.skip_odd = true};
        struct pool_job job = {.n = N, .threads = threads, .work = square, .done = in_order, .skip = odd, .ctx = &t};
        assert_int_equal(pool_run(&job), 0);
        assert_int_equal(t.next, N);
    }
}

static void a_refusal_stops_the_job(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads += 3) {
        struct trial t = {.stop_at = 20};
        struct pool_job job = {.n = N, .threads = threads, .window = 8, .work = square, .done = in_order, .ctx = &t};
        assert_int_equal(pool_run(&job), ERR_CANCELLED);
        assert_true(t.next < 40);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_come_in_order_with_their_errors),
        cmocka_unit_test(skipped_items_are_not_worked_on),
        cmocka_unit_test(a_refusal_stops_the_job),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
