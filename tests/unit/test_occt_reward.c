/* reward.c: both kinds on real parts, text and files, and candidates that hang, crash or are no parts. */
#include "tests/unit/testutil.h"
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/chamfer.h"
#include "lib/log.h"
#include "lib/part.h"
#include "lib/reward.h"
#include "shim/occt.h"
#include "shim/occt_build.h"

/* occ_work(), but for names that say what else is to happen. */
static int work(void *ctx, const char *job, size_t n, struct buf *out)
{
    struct part_request q;
    const char *name, *text;
    size_t text_n;
    if (part_job_decode(job, n, &q, &name, &text, &text_n) == ERR_OK && !strncmp(name, "hang", 4))
        for (;;)
            pause();
    if (!strncmp(name, "crash", 5))
        raise(SIGSEGV);
    return occ_work(ctx, job, n, out);
}

/* A plate with a hole, or its box; malloc()ed. */
static char *plate(double x, double hole, size_t *n)
{
    struct occ_build *b = occ_build_new();
    struct occ_part_info info;
    char *text = NULL;
    int part = occ_box(b, 0, 0, 5, x, 40, 10);
    if (hole > 0)
        part = occ_cut(b, part, occ_cylinder(b, OCC_Z(10, 5, -1), hole, 30));
    assert_int_equal(occ_finish(b, &part, &info), ERR_OK);
    assert_int_equal(occ_step_text(b, part, "plate", "plate", 6, &text, n), ERR_OK);
    occ_build_free(b);
    return text;
}

struct fixture {
    char *truth, *text[3]; /* the part, its box, another length */
    size_t n[3];
};

static void make_files(void **state, struct fixture *f)
{
    f->text[0] = plate(80, 12, &f->n[0]);
    f->text[1] = plate(80, 0, &f->n[1]);
    f->text[2] = plate(50, 12, &f->n[2]);
    f->truth = strdup(in_dir(state, "truth.step"));
    assert_int_equal(file_write(f->truth, f->text[0], f->n[0], false), ERR_OK);
}

static void free_files(struct fixture *f)
{
    for (int i = 0; i < 3; i++)
        free(f->text[i]);
    free(f->truth);
}

static struct reward *open_reward(bool hardened, double seconds)
{
    struct reward *r;
    assert_int_equal(reward_open(&(struct reward_opts){.hardened = hardened, .threads = 2, .seconds = seconds, .work = work}, &r), ERR_OK);
    return r;
}

static void the_part_earns_all_and_others_less(void **state)
{
    struct fixture f;
    make_files(state, &f);
    for (int hardened = 0; hardened < 2; hardened++) {
        struct reward *r = open_reward(hardened, 30);
        struct reward_item items[4];
        struct reward_score s[4], again[4];
        for (int i = 0; i < 3; i++)
            items[i] = (struct reward_item){.truth = f.truth, .name = "candidate", .text = f.text[i], .n = f.n[i]};
        items[3] = (struct reward_item){.truth = f.truth, .name = f.truth};
        assert_int_equal(reward_batch(r, items, 4, s), ERR_OK);
        assert_int_equal(reward_batch(r, items, 4, again), ERR_OK);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(s[i].status, REWARD_OK);
            assert_true(s[i].reward == again[i].reward); /* and the truth was kept */
        }
        assert_true(s[0].reward > 0.999 && s[3].reward > 0.999);
        if (hardened) {
            assert_true(s[0].closed && s[0].valid && fabs(s[0].volume_ratio - 1) < 1e-6);
            assert_true(s[1].reward < 0.999 && s[2].reward < s[1].reward);
        } else {
            assert_true(s[1].reward > 0.99); /* one-sided: a box that covers the truth */
        }
        reward_close(r);
    }
    free_files(&f);
}

static void a_gap_that_the_reader_bridges_is_no_validity(void **state)
{
    struct fixture f;
    make_files(state, &f);
    /* A vertex far from its edges: OpenCASCADE takes a tolerance that covers the gap, and finds the part valid. */
    char *whole = xstrndup(f.text[0], f.n[0]), *vertex = strstr(whole, "VERTEX_POINT('',#");
    assert_non_null(vertex);
    char *id = xasprintf("#%ld=CARTESIAN_POINT('',(", strtol(vertex + 17, NULL, 10)), *point = strstr(whole, id);
    assert_non_null(point);
    char *x = point + strlen(id), *torn = xasprintf("%.*s7.%s", (int)(x - whole), whole, x + strcspn(x, ","));
    struct reward *r = open_reward(true, 30);
    struct reward_item items[2] = {{.truth = f.truth, .name = "whole", .text = whole, .n = f.n[0]},
                                   {.truth = f.truth, .name = "torn", .text = torn, .n = strlen(torn)}};
    struct reward_score s[2];
    assert_int_equal(reward_batch(r, items, 2, s), ERR_OK);
    assert_true(s[0].valid && s[0].reward > 0.999);
    assert_int_equal(s[1].status, REWARD_OK);
    assert_true(!s[1].valid && s[1].reward <= 0.5);
    reward_close(r);
    free(whole);
    free(torn);
    free(id);
    free_files(&f);
}

static void one_that_hangs_or_crashes_costs_only_itself(void **state)
{
    struct fixture f;
    make_files(state, &f);
    struct reward *r = open_reward(true, 2);
    enum { N = 12 };
    struct reward_item items[N];
    struct reward_score s[N];
    for (int i = 0; i < N; i++)
        items[i] = (struct reward_item){.truth = f.truth, .name = "candidate", .text = f.text[i % 3], .n = f.n[i % 3]};
    items[0].name = items[5].name = "hang";
    items[3].name = "crash";
    items[7].text = "ISO-10303-21; no more", items[7].n = 21;
    double start = now_s();
    assert_int_equal(reward_batch(r, items, N, s), ERR_OK);
    double took = now_s() - start;
    for (int i = 0; i < N; i++) {
        bool bad = i == 0 || i == 3 || i == 5 || i == 7;
        assert_int_equal(s[i].status, bad ? REWARD_PRED_FAILED : REWARD_OK);
        if (bad)
            assert_true(s[i].reward == 0 && isnan(s[i].scd) && s[i].reason[0]);
        else
            assert_true(i % 3 || s[i].reward > 0.999);
    }
    assert_non_null(strstr(s[0].reason, "timeout"));
    assert_non_null(strstr(s[3].reason, "crash"));
    if (took > 20) /* two limits of 2 s on two workers, and the parts; a busy machine is given its time */
        fail_msg("took %.1f s", took);
    reward_close(r);
    free_files(&f);
}

static void a_truth_that_cannot_be_read_is_no_fault_of_the_candidate(void **state)
{
    struct fixture f;
    make_files(state, &f);
    assert_int_equal(file_write(in_dir(state, "junk.step"), "junk", 4, false), ERR_OK);
    struct reward *r = open_reward(true, 30);
    struct reward_item items[] = {{.truth = in_dir(state, "junk.step"), .name = f.truth}, {.truth = f.truth, .name = in_dir(state, "junk.step")},
                                  {.truth = in_dir(state, "none.step"), .name = f.truth}, {.truth = f.truth, .name = f.truth}};
    struct reward_score s[4];
    assert_int_equal(reward_batch(r, items, 4, s), ERR_OK);
    assert_int_equal(s[0].status, REWARD_TRUTH_FAILED);
    assert_int_equal(s[1].status, REWARD_PRED_FAILED);
    assert_int_equal(s[2].status, REWARD_TRUTH_FAILED);
    assert_int_equal(s[3].status, REWARD_OK);
    reward_close(r);
    free_files(&f);
}

static void what_is_not_a_number_earns_nothing(void **state)
{
    (void)state;
    assert_true(chamfer_reward(NAN, 0.01, 0.5) == 0);
    assert_true(chamfer_reward(INFINITY, 0.01, 0.5) == 0);
    assert_true(chamfer_reward(0.01, 0.01, 0.5) == 1 && chamfer_reward(0, 0.01, 0.5) == 1);
    assert_true(chamfer_reward(0.5, 0.01, 0.5) == 0 && fabs(chamfer_reward(0.255, 0.01, 0.5) - 0.5) < 1e-12);
    struct reward *r;
    assert_int_equal(reward_open(&(struct reward_opts){.lower = 0.5, .upper = 0.01, .work = occ_work}, &r), ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_IN_DIR(the_part_earns_all_and_others_less),
        TEST_IN_DIR(a_gap_that_the_reader_bridges_is_no_validity),
        TEST_IN_DIR(one_that_hangs_or_crashes_costs_only_itself),
        TEST_IN_DIR(a_truth_that_cannot_be_read_is_no_fault_of_the_candidate),
        cmocka_unit_test(what_is_not_a_number_earns_nothing),
    };
    return cmocka_run_group_tests_name("reward", tests, NULL, NULL);
}
