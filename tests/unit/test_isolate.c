/* isolate.c: a worker's crash, hang and runaway allocation cost one worker. */
#include "tests/unit/testutil.h"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/isolate.h"
#include "lib/log.h"

/* The job's first letter says what the worker does. */
static int work(void *ctx, const char *job, size_t n, struct buf *out)
{
    (void)ctx;
    switch (job[0]) {
    case 'e':
        buf_add(out, job + 1, n - 1);
        return ERR_OK;
    case 'f':
        return err_set(ERR_FORMAT, "no good: %s", job + 1);
    case 'c':
        raise(SIGSEGV);
        return ERR_OK;
    case 'x':
        _exit(7);
    case 'h':
        for (;;)
            pause();
    case 'm':
        for (size_t k = 0;; k++) {
            volatile char *p = malloc(1 << 20);
            if (!p)
                return err_set(ERR_NOMEM, "no more");
            p[k % 1000] = 1;
        }
    case 'p':
        printf("noise on stdout\n");
        fflush(stdout);
        buf_puts(out, "quiet");
        return ERR_OK;
    default: { /* a result of that many bytes */
        size_t size = strtoul(job, NULL, 10);
        buf_grow(out, size);
        memset(out->s, 'z', size);
        out->n = size;
        return ERR_OK;
    }
    }
}

struct expected {
    const char **jobs;
    size_t seen;
    enum isolate_end end[512];
    char text[512][64];
    size_t n[512];
};

static int make(void *ctx, size_t i, struct buf *out)
{
    struct expected *e = ctx;
    if (e->jobs[i][0] == 's')
        return 1;
    buf_puts(out, e->jobs[i]);
    return 0;
}

static int take(void *ctx, const struct isolate_result *r)
{
    struct expected *e = ctx;
    e->end[r->index] = r->end;
    e->n[r->index] = r->n;
    snprintf(e->text[r->index], 64, "%s", r->end == ISOLATE_OK && !r->code ? r->data : r->error);
    e->seen++;
    return ERR_OK;
}

/* A crash under AddressSanitizer takes its time to be told: seconds, with names looked up. */
#ifdef __SANITIZE_ADDRESS__
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "symbolize=0";
}
#define LIMIT 4
#define LIMIT_TEXT "timeout: over 4 s"
#else
#define LIMIT 0.5
#define LIMIT_TEXT "timeout: over 0.5 s"
#endif

static struct isolate *open_pool(int workers)
{
    struct isolate *p;
    assert_int_equal(isolate_open(&(struct isolate_opts){.workers = workers, .seconds = LIMIT, .memory = 256 << 20,
                                                         .max_result = 8 << 20, .jobs_a_worker = 50, .work = work},
                                  &p), ERR_OK);
    return p;
}

static void each_kind_of_failure_is_its_items_verdict_and_no_more(void **state)
{
    (void)state;
    const char *jobs[] = {"ehello", "c", "eone", "h", "etwo", "fbad", "x", "s", "p", "5000000", "9000000", "ethree"};
    struct expected e = {.jobs = jobs};
    struct isolate *p = open_pool(2);
    for (int round = 0; round < 2; round++) { /* the pool is whole again after it */
        e.seen = 0;
        assert_int_equal(isolate_run(p, &(struct isolate_batch){.n = ARRAY_LEN(jobs), .job = make, .done = take, .ctx = &e}),
                         ERR_OK);
        assert_int_equal(e.seen, ARRAY_LEN(jobs) - 1);
        assert_string_equal(e.text[0], "hello");
        assert_int_equal(e.end[1], ISOLATE_CRASH);
        assert_non_null(strstr(e.text[1], "crash: "));
        assert_string_equal(e.text[2], "one");
        assert_int_equal(e.end[3], ISOLATE_TIMEOUT);
        assert_string_equal(e.text[3], LIMIT_TEXT);
        assert_string_equal(e.text[4], "two");
        assert_string_equal(e.text[5], "no good: bad");
        assert_string_equal(e.text[6], "crash: exit with status 7");
        assert_string_equal(e.text[8], "quiet");
        assert_int_equal(e.n[9], 5000000);
        assert_int_equal(e.end[10], ISOLATE_MEMORY);
        assert_string_equal(e.text[11], "three");
    }
    isolate_close(p);
}

static void a_runaway_allocation_is_stopped(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* no address space limit under ASan */
#endif
    const char *jobs[] = {"m", "eafter"};
    struct expected e = {.jobs = jobs};
    struct isolate *p = open_pool(1);
    assert_int_equal(isolate_run(p, &(struct isolate_batch){.n = 2, .job = make, .done = take, .ctx = &e}), ERR_OK);
    assert_int_equal(e.end[0], ISOLATE_MEMORY);
    assert_string_equal(e.text[1], "after");
    isolate_close(p);
}

static void many_jobs_come_back_in_order_though_workers_are_replaced(void **state)
{
    (void)state;
    static char text[512][16];
    static const char *jobs[512];
    static struct expected e;
    for (int i = 0; i < 512; i++) {
        snprintf(text[i], 16, i % 37 == 5 ? "c" : "e%d", i);
        jobs[i] = text[i];
    }
    e.jobs = jobs;
    struct isolate *p = open_pool(3), *other = open_pool(1);
    assert_int_equal(isolate_run(p, &(struct isolate_batch){.n = 512, .job = make, .done = take, .ctx = &e}), ERR_OK);
    assert_int_equal(e.seen, 512);
    for (int i = 0; i < 512; i++) {
        if (i % 37 == 5)
            assert_int_equal(e.end[i], ISOLATE_CRASH);
        else
            assert_string_equal(e.text[i], text[i] + 1);
    }
    isolate_close(p); /* though the other's supervisor holds copies of its sockets */
    isolate_close(other);
}

static int stop_at_three(void *ctx, const struct isolate_result *r)
{
    (void)ctx;
    return r->index == 3 ? err_set(ERR_IO, "enough") : ERR_OK;
}

static void an_error_of_the_caller_ends_the_batch(void **state)
{
    (void)state;
    const char *jobs[] = {"e", "e", "e", "e", "e", "e", "e", "e"};
    struct expected e = {.jobs = jobs};
    struct isolate *p = open_pool(2);
    assert_int_equal(isolate_run(p, &(struct isolate_batch){.n = 8, .job = make, .done = stop_at_three, .ctx = &e}), ERR_IO);
    assert_string_equal(err_text(), "enough");
    e.seen = 0;
    assert_int_equal(isolate_run(p, &(struct isolate_batch){.n = 8, .job = make, .done = take, .ctx = &e}), ERR_OK);
    assert_int_equal(e.seen, 8);
    isolate_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_of_failure_is_its_items_verdict_and_no_more),
        cmocka_unit_test(a_runaway_allocation_is_stopped),
        cmocka_unit_test(many_jobs_come_back_in_order_though_workers_are_replaced),
        cmocka_unit_test(an_error_of_the_caller_ends_the_batch),
    };
    return cmocka_run_group_tests_name("isolate", tests, NULL, NULL);
}
