/* rundb.c: recording, resuming, two writers, bad databases. */
#include "tests/unit/testutil.h"

#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/rundb.h"

static const struct run_info INFO = {.tool = "t", .key = "k", .label = "", .argv = "t", .config = "", .version = "1",
                                     .git_rev = "x", .keep_done = true};

static struct rundb *begin(void **state, const struct run_info *info, bool *resumed)
{
    struct rundb *db;
    assert_int_equal(rundb_open(in_dir(state, "runs/runs.db"), &db), 0);
    assert_int_equal(rundb_begin(db, info, resumed), 0);
    return db;
}

static int64_t query(struct rundb *db, const char *sql)
{
    sqlite3_stmt *s;
    assert_int_equal(sqlite3_prepare_v2(rundb_sqlite(db), sql, -1, &s, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    int64_t v = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return v;
}

static void a_killed_run_goes_on_where_it_was(void **state)
{
    bool resumed;
    const char *in = in_dir(state, "in"), *out = in_dir(state, "out");
    file_write(in, "abc", 3, false);
    file_write(out, "abcd", 4, false);
    pid_t pid = fork();
    if (!pid) {
        struct rundb *db = begin(state, &INFO, &resumed);
        rundb_item(db, &(struct run_item){.item = "one", .state = "done", .input = in, .output = out});
        rundb_item(db, &(struct run_item){.item = "two", .state = "failed", .reason = "bad"});
        rundb_metric(db, 3, "loss", 0.25);
        rundb_flush(db);
        kill(getpid(), SIGKILL);
    }
    waitpid(pid, NULL, 0);
    struct rundb *db = begin(state, &INFO, &resumed);
    assert_true(resumed);
    assert_int_equal(query(db, "SELECT count(*) FROM runs"), 1);
    assert_int_equal(query(db, "SELECT attempts FROM runs"), 2);
    assert_true(rundb_item_current(db, "one", in, out));
    assert_false(rundb_item_current(db, "two", NULL, NULL));
    assert_false(rundb_item_current(db, "three", NULL, NULL));
    file_write(in, "abX", 3, false); /* same size, other time */
    assert_false(rundb_item_current(db, "one", in, out));
    unlink(out);
    assert_false(rundb_item_current(db, "one", NULL, out));
    rundb_metric(db, 4, "loss", 1);
    assert_int_equal(rundb_metrics_cut(db, 3), 0);
    assert_int_equal(query(db, "SELECT count(*) FROM metrics"), 1);
    assert_int_equal(rundb_finish(db, "done", 0, NULL), 0);
    rundb_close(db);
}

static void a_finished_run_stands_unless_it_keeps_files(void **state)
{
    bool resumed;
    struct run_info metric = INFO;
    metric.keep_done = false;
    for (int i = 0; i < 2; i++) {
        struct rundb *db = begin(state, &metric, &resumed);
        assert_false(resumed);
        assert_int_equal(query(db, "SELECT count(*) FROM runs"), i + 1);
        rundb_finish(db, "done", 0, NULL);
        rundb_close(db);
    }
    struct rundb *db = begin(state, &INFO, &resumed);
    assert_true(resumed);
    rundb_finish(db, "done", 0, NULL);
    rundb_close(db);
}

static void two_processes_write_at_once(void **state)
{
    enum { N = 400 };
    pid_t pid[2];
    for (int p = 0; p < 2; p++) {
        if ((pid[p] = fork()))
            continue;
        bool resumed;
        struct run_info mine = INFO;
        mine.key = p ? "b" : "a";
        struct rundb *db;
        if (rundb_open(in_dir(state, "runs/runs.db"), &db) < 0 || rundb_begin(db, &mine, &resumed) < 0)
            _exit(1);
        for (int i = 0; i < N; i++) {
            char name[16];
            snprintf(name, sizeof name, "%d", i);
            if (rundb_item(db, &(struct run_item){.item = name, .state = "done"}) < 0 || rundb_flush(db) < 0)
                _exit(2);
        }
        int rc = rundb_finish(db, "done", 0, NULL);
        rundb_close(db);
        _exit(rc < 0 ? 3 : 0);
    }
    for (int p = 0; p < 2; p++) {
        int status;
        waitpid(pid[p], &status, 0);
        assert_int_equal(status, 0);
    }
    struct rundb *db;
    assert_int_equal(rundb_open_readonly(in_dir(state, "runs/runs.db"), &db), 0);
    assert_int_equal(query(db, "SELECT count(*) FROM items WHERE state='done'"), 2 * N);
    rundb_close(db);
}

static void the_same_command_twice_at_once_is_refused(void **state)
{
    bool resumed;
    int ready[2], go[2];
    assert_int_equal(pipe(ready) | pipe(go), 0);
    pid_t pid = fork();
    char c = 0;
    if (!pid) {
        struct rundb *db;
        if (rundb_open(in_dir(state, "runs/runs.db"), &db) < 0 || rundb_begin(db, &INFO, &resumed) < 0)
            _exit(1);
        if (write(ready[1], &c, 1) != 1 || read(go[0], &c, 1) != 1)
            _exit(1);
        _exit(0);
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    struct rundb *db;
    assert_int_equal(rundb_open(in_dir(state, "runs/runs.db"), &db), 0);
    assert_int_equal(rundb_begin(db, &INFO, &resumed), ERR_USAGE);
    assert_non_null(strstr(err_text(), "running already"));
    rundb_close(db);
    assert_int_equal(write(go[1], &c, 1), 1);
    waitpid(pid, NULL, 0);
}

static void bad_databases_are_refused(void **state)
{
    struct rundb *db;
    const char *path = in_dir(state, "x.db");
    file_write(path, "this is no database, whatever its name says; it goes on for a while", 60, false);
    assert_true(rundb_open(path, &db) < 0);
    assert_null(db);
    path = in_dir(state, "new.db");
    assert_int_equal(rundb_open(path, &db), 0);
    sqlite3_exec(rundb_sqlite(db), "PRAGMA user_version=99", NULL, NULL, NULL);
    rundb_close(db);
    assert_int_equal(rundb_open(path, &db), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "newer version"));
    assert_int_equal(rundb_open_readonly(in_dir(state, "none.db"), &db), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_IN_DIR(a_killed_run_goes_on_where_it_was),
        TEST_IN_DIR(a_finished_run_stands_unless_it_keeps_files),
        TEST_IN_DIR(two_processes_write_at_once),
        TEST_IN_DIR(the_same_command_twice_at_once_is_refused),
        TEST_IN_DIR(bad_databases_are_refused),
    };
    return cmocka_run_group_tests_name("rundb", tests, NULL, NULL);
}
