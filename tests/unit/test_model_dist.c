/* dist.c: processes of one host that sum, agree and die together. */
#include "tests/unit/testutil.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/log.h"
#include "model/dist.h"

static void clear_env(void)
{
    static const char *const all[] = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_JOB_ID", "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID",
        "MPI_LOCALNRANKS", "PMIX_NAMESPACE", "CUDA_VISIBLE_DEVICES"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        unsetenv(all[i]);
}

static void set(const char *name, const char *value)
{
    setenv(name, value, 1);
}

static void the_environment_of_each_launcher_is_understood(void **state)
{
    (void)state;
    struct dist_env e;
    clear_env();
    assert_int_equal(dist_env_read(&e), 0);
    assert_int_equal(e.size, 1);

    set("RANK", "3"), set("WORLD_SIZE", "4"), set("LOCAL_RANK", "1"), set("MASTER_ADDR", "node7"), set("MASTER_PORT", "1234");
    assert_int_equal(dist_env_read(&e), 0);
    assert_true(e.rank == 3 && e.size == 4 && e.local_rank == 1 && e.port == 1234);
    assert_string_equal(e.host, "node7");
    set("TORCHELASTIC_RUN_ID", "x"); /* torchrun's own store has that port */
    assert_int_equal(dist_env_read(&e), 0);
    assert_int_equal(e.port, 1235);
    set("RANK", "4");
    assert_int_equal(dist_env_read(&e), ERR_USAGE);
    set("RANK", "x");
    assert_int_equal(dist_env_read(&e), ERR_USAGE);

    clear_env();
    set("SLURM_PROCID", "0"), set("SLURM_JOB_ID", "77"), set("SLURM_JOB_NODELIST", "gpu[1-2]");
    assert_int_equal(dist_env_read(&e), 0); /* in the batch script itself: alone */
    assert_int_equal(e.size, 1);
    set("SLURM_PROCID", "5"), set("SLURM_STEP_NUM_TASKS", "8"), set("SLURM_LOCALID", "1"), set("SLURM_STEP_NODELIST", "gpu[03-04,09]");
    assert_int_equal(dist_env_read(&e), 0);
    assert_true(e.rank == 5 && e.size == 8 && e.local_rank == 1 && e.port >= 20000);
    assert_string_equal(e.host, "gpu03");
    assert_string_equal(e.launcher, "Slurm");

    clear_env();
    set("OMPI_COMM_WORLD_RANK", "1"), set("OMPI_COMM_WORLD_SIZE", "2"), set("OMPI_COMM_WORLD_LOCAL_RANK", "1"), set("OMPI_COMM_WORLD_LOCAL_SIZE", "2");
    assert_int_equal(dist_env_read(&e), 0);
    assert_true(e.rank == 1 && e.size == 2 && e.local_rank == 1);
    assert_string_equal(e.host, "127.0.0.1");
    set("OMPI_COMM_WORLD_LOCAL_SIZE", "1"); /* two hosts, and none named */
    assert_int_equal(dist_env_read(&e), ERR_USAGE);
    assert_non_null(strstr(err_text(), "MASTER_ADDR"));
    clear_env();
}

static void the_first_host_of_a_node_list_is_found(void **state)
{
    (void)state;
    static const char *const all[][2] = {{"gpu[003-007,9],x1", "gpu003"}, {"a,b", "a"}, {"n1", "n1"}, {"r[1,4]n-ib,z", "r1n-ib"}, {"c[12]", "c12"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char out[64];
        dist_first_host(all[i][0], out, sizeof out);
        assert_string_equal(out, all[i][1]);
    }
}

static void a_process_takes_its_own_gpu(void **state)
{
    (void)state;
    struct dist_env e = {.rank = 5, .size = 8, .local_rank = 1};
    assert_int_equal(dist_choose_gpu(&e), 0);
    assert_string_equal(getenv("CUDA_VISIBLE_DEVICES"), "1");
    set("CUDA_VISIBLE_DEVICES", "4,6,7");
    assert_int_equal(dist_choose_gpu(&e), 0);
    assert_string_equal(getenv("CUDA_VISIBLE_DEVICES"), "6");
    set("CUDA_VISIBLE_DEVICES", "4,6");
    e.local_rank = 2;
    assert_int_equal(dist_choose_gpu(&e), ERR_USAGE);
    assert_non_null(strstr(err_text(), "has GPUs 4,6"));
    set("CUDA_VISIBLE_DEVICES", ""); /* hidden: they stay so */
    assert_int_equal(dist_choose_gpu(&e), 0);
    assert_string_equal(getenv("CUDA_VISIBLE_DEVICES"), "");
    clear_env();
}

/* ---- processes ---- */

typedef int child_fn(struct dist *d);

static int port(void)
{
    static int next;
    return 21000 + (int)(getpid() % 2000) * 8 + next++;
}

/* Starts n processes with f and returns their exit codes. */
static void run(int n, double timeout, child_fn *f, int *code)
{
    struct dist_env e = {.size = n, .host = "127.0.0.1", .port = port()};
    pid_t pid[8];
    for (e.rank = 0; e.rank < n; e.rank++)
        if (!(pid[e.rank] = fork())) {
            struct dist *d = NULL;
            alarm(60);
            int rc = dist_open(&e, timeout, &d);
            if (rc == ERR_OK)
                rc = f(d);
            if (rc < 0)
                fprintf(stderr, "  %d: %s\n", e.rank, err_text());
            dist_close(d, rc < 0 ? err_text() : NULL);
            _exit(rc < 0 ? 3 : rc);
        }
    for (int i = 0; i < n; i++) {
        int status;
        waitpid(pid[i], &status, 0);
        code[i] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

static float term(int rank, int64_t i)
{
    return (float)sin((double)(i * 7 + rank * 1001)) * powf(10, (float)(i % 5));
}

/* Sums a vector in three parts at once, twice: near the sum in double, and with the same bits everywhere. */
static int sums(struct dist *d)
{
    enum { N = 100003 };
    static float x[N];
    int64_t n = N;
    int size = dist_size(d);
    uint64_t first = 0;
    size_t scope = th_scope_begin();
    for (int round = 0; round < 2; round++) {
        for (int64_t i = 0; i < N; i++)
            x[i] = term(dist_rank(d), i);
        th_tensor *t = th_borrow(x, 1, &n, TH_F32);
        if (dist_reduce(d, t, 60000, N - 60000) || dist_reduce(d, t, 1, 59999) || dist_reduce(d, t, 0, 1) || dist_wait(d))
            return 10;
        for (int64_t i = 0; i < N; i++) {
            double want = 0, scale = 0;
            for (int r = 0; r < size; r++) {
                want += term(r, i);
                scale += fabs(term(r, i));
            }
            if (fabs(x[i] - want) > 1e-6 * scale)
                return 11;
        }
        uint64_t digest = fnv1a(FNV_INIT, x, sizeof x);
        if (dist_agree(d, "the sum", digest) || (round && digest != first))
            return 12;
        first = digest;
    }
    th_scope_end(scope);
    double v[2] = {dist_rank(d), 0.5};
    int32_t me = dist_rank(d) * 10, all[8];
    if (dist_sum(d, v, 2) || v[0] != size * (size - 1) / 2 || v[1] != size / 2.0 || dist_gather(d, &me, sizeof me, all))
        return 13;
    for (int r = 0; r < size; r++)
        if (all[r] != r * 10)
            return 14;
    return 0;
}

static void sums_have_the_same_bits_everywhere(void **state)
{
    (void)state;
    for (int n = 2; n <= 5; n++) {
        int code[8];
        run(n, 30, sums, code);
        for (int i = 0; i < n; i++)
            assert_int_equal(code[i], 0);
    }
}

static int disagrees(struct dist *d)
{
    int rc = dist_agree(d, "the training data", dist_rank(d) == 1);
    return rc == ERR_USAGE && strstr(err_text(), "the training data of process 1 is not that of process 0") ? 0 : 20;
}

static void what_differs_is_named(void **state)
{
    (void)state;
    int code[3];
    run(3, 30, disagrees, code);
    for (int i = 0; i < 3; i++)
        assert_int_equal(code[i], 0);
}

/* Process 1 dies in the middle of a sum that the others wait for. */
static int dies(struct dist *d)
{
    static float x[1000];
    int64_t n = 1000;
    if (dist_rank(d) == 1)
        raise(SIGKILL);
    size_t scope = th_scope_begin();
    int rc = dist_reduce(d, th_borrow(x, 1, &n, TH_F32), 0, n);
    if (rc == ERR_OK)
        rc = dist_wait(d);
    th_scope_end(scope);
    if (rc == ERR_OK)
        return 30;
    return strstr(err_text(), "process 1 of 3") ? 31 : rc;
}

static void a_killed_process_ends_all(void **state)
{
    (void)state;
    int code[3];
    double t0 = now_s();
    run(3, 30, dies, code);
    assert_int_equal(code[0], 31);
    assert_int_equal(code[1], 128 + SIGKILL);
    assert_int_equal(code[2], 31);
    assert_true(now_s() - t0 < 15);
}

static int fails(struct dist *d)
{
    double v = 0;
    if (dist_rank(d) == 2)
        return err_set(ERR_FORMAT, "record 0042 is odd");
    int rc = dist_sum(d, &v, 1);
    if (rc == ERR_OK || !strstr(err_text(), "process 2 of 3: record 0042 is odd"))
        return fprintf(stderr, "%d: %s\n", dist_rank(d), err_text()), 40;
    return 41;
}

static void an_error_of_one_is_told_to_all(void **state)
{
    (void)state;
    int code[3];
    run(3, 30, fails, code);
    assert_int_equal(code[0], 41);
    assert_int_equal(code[1], 41);
    assert_int_equal(code[2], 3);
}

static int stops(struct dist *d)
{
    double v = 0;
    if (dist_rank(d) == 1) {
        raise(SIGSTOP);
        return 0;
    }
    int rc = dist_sum(d, &v, 1);
    return rc < 0 && strstr(err_text(), "process 1 of 2 on ") && strstr(err_text(), " has been silent for 2 s") ? 51 : 50;
}

static void a_silent_process_is_noticed(void **state)
{
    (void)state;
    struct dist_env e = {.size = 2, .host = "127.0.0.1", .port = port()};
    pid_t pid[2];
    int status;
    for (e.rank = 0; e.rank < 2; e.rank++)
        if (!(pid[e.rank] = fork())) {
            struct dist *d;
            alarm(60);
            int rc = dist_open(&e, 2, &d);
            rc = rc < 0 ? rc : stops(d);
            dist_close(d, "x");
            _exit(rc < 0 ? 3 : rc);
        }
    waitpid(pid[0], &status, 0);
    assert_int_equal(WEXITSTATUS(status), 51);
    kill(pid[1], SIGKILL);
    waitpid(pid[1], &status, 0);
}

static void who_does_not_come_is_named(void **state)
{
    (void)state;
    struct dist_env e = {.size = 2, .host = "127.0.0.1", .port = port()};
    struct dist *d;
    assert_int_equal(dist_open(&e, 0.3, &d), ERR_EXTERN);
    assert_null(d);
    assert_non_null(strstr(err_text(), "only 1 of 2 processes are here, without 1"));
    e.rank = 1;
    assert_int_equal(dist_open(&e, 0.3, &d), ERR_EXTERN);
    assert_non_null(strstr(err_text(), "process 0 is not at 127.0.0.1"));
}

static void another_number_of_processes_is_refused(void **state)
{
    (void)state;
    struct dist_env e = {.size = 2, .host = "127.0.0.1", .port = port()};
    struct dist *d;
    pid_t pid = fork();
    int status;
    if (!pid) {
        e.rank = 1;
        e.size = 3;
        alarm(60);
        int rc = dist_open(&e, 10, &d);
        _exit(rc < 0 && strstr(err_text(), "was told of 3 processes, process 0 of 2") ? 0 : 1);
    }
    assert_int_equal(dist_open(&e, 10, &d), ERR_USAGE);
    assert_non_null(strstr(err_text(), "was told of 3 processes"));
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

static void alone_everything_is_trivial(void **state)
{
    (void)state;
    double v = 3;
    int32_t me = 7, all = 0;
    assert_int_equal(dist_sum(NULL, &v, 1), 0);
    assert_int_equal(dist_gather(NULL, &me, sizeof me, &all), 0);
    assert_true(v == 3 && all == 7 && dist_size(NULL) == 1 && dist_rank(NULL) == 0);
    assert_int_equal(dist_reduce(NULL, NULL, 0, 0), 0);
    assert_int_equal(dist_wait(NULL), 0);
    dist_close(NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_environment_of_each_launcher_is_understood),
        cmocka_unit_test(the_first_host_of_a_node_list_is_found),
        cmocka_unit_test(a_process_takes_its_own_gpu),
        cmocka_unit_test(sums_have_the_same_bits_everywhere),
        cmocka_unit_test(what_differs_is_named),
        cmocka_unit_test(a_killed_process_ends_all),
        cmocka_unit_test(an_error_of_one_is_told_to_all),
        cmocka_unit_test(a_silent_process_is_noticed),
        cmocka_unit_test(who_does_not_come_is_named),
        cmocka_unit_test(another_number_of_processes_is_refused),
        cmocka_unit_test(alone_everything_is_trivial),
    };
    return cmocka_run_group_tests_name("dist", tests, NULL, NULL);
}
