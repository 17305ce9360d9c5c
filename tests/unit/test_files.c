/* files.c and mem.c: atomic writing, walks, limits. */
#include "tests/unit/testutil.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static void files_appear_whole_or_not_at_all(void **state)
{
    struct atomic_file a;
    const char *path = in_dir(state, "deep/er/f.txt");
    assert_int_equal(atomic_open(&a, path), 0);
    fputs("half", a.f);
    assert_false(path_exists(path));
    atomic_abort(&a);
    assert_false(path_exists(path));
    assert_int_equal(file_write(path, "whole", 5, true), 0);
    struct file_map m;
    assert_int_equal(file_map(path, 0, &m), 0);
    assert_int_equal(m.size, 5);
    file_unmap(&m);
    assert_int_equal(file_map(path, 4, &m), ERR_NOMEM);
    assert_int_equal(file_map(in_dir(state, "deep"), 0, &m), ERR_IO);
    assert_non_null(strstr(err_text(), "a file is due"));
    assert_int_equal(file_write(in_dir(state, "deep/er/f.txt/g"), "x", 1, false), ERR_IO);
    assert_int_equal(file_write(in_dir(state, "deep"), "x", 1, false), ERR_IO);
}

static void a_full_disk_is_an_error_and_leaves_nothing(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    struct atomic_file a;
    const char *path = in_dir(state, "f");
    assert_int_equal(atomic_open(&a, path), 0);
    fclose(a.f);
    a.f = fopen("/dev/full", "w");
    fputs("data", a.f);
    assert_int_equal(atomic_commit(&a, false), ERR_IO);
    assert_non_null(strstr(err_text(), "No space"));
    assert_false(path_exists(path));
}

static void two_that_write_one_file_do_not_mix(void **state)
{
    struct atomic_file first, second;
    char *path = xstrdup(in_dir(state, "f.step"));
    struct file_map m;
    assert_int_equal(atomic_open(&first, path), 0);
    fputs("the first", first.f);
    fflush(first.f);
    assert_int_equal(file_write(path, "another", 7, false), 0);
    assert_int_equal(file_map(path, 0, &m), 0);
    assert_int_equal(m.size, 7);
    file_unmap(&m);
    assert_int_equal(atomic_open(&second, path), 0);
    fputs("2", second.f);
    fputs(" goes on", first.f);
    assert_int_equal(atomic_commit(&first, false), 0);
    assert_int_equal(file_map(path, 0, &m), 0);
    assert_memory_equal(m.data, "the first goes on", 17);
    file_unmap(&m);
    assert_int_equal(atomic_commit(&second, false), 0);
    assert_int_equal(file_map(path, 0, &m), 0);
    assert_int_equal(m.size, 1);
    file_unmap(&m);
    /* What a killed process left is taken over, and nothing of it stays. */
    file_write(in_dir(state, ".f.step.part"), "much that was left", 18, false);
    assert_int_equal(file_write(path, "new", 3, false), 0);
    assert_int_equal(file_map(path, 0, &m), 0);
    assert_int_equal(m.size, 3);
    file_unmap(&m);
    assert_false(path_exists(in_dir(state, ".f.step.part")));
    free(path);
}

static void walks_are_sorted_filtered_and_sharded(void **state)
{
    const char *const names[] = {"b/2.STEP", "a.step", "b/1.stp", "c.txt", ".hidden.step", "b/.x.step.part", "d/e/f/g.step"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        assert_int_equal(file_write(in_dir(state, names[i]), "", 0, false), 0);
    assert_int_equal(symlink(".", in_dir(state, "loop")), 0);
    struct file_list l = {0};
    assert_int_equal(file_list_add(&l, *state, STEP_SUFFIXES), 0);
    assert_int_equal(l.n, 4);
    assert_string_equal(l.v[0].rel, "a.step");
    assert_string_equal(l.v[1].rel, "b/1.stp");
    assert_string_equal(l.v[3].rel, "d/e/f/g.step");
    file_list_shard(&l, 2, 3);
    assert_int_equal(l.n, 1);
    assert_string_equal(l.v[0].rel, "b/1.stp");
    file_list_release(&l);
    assert_int_equal(file_list_add(&l, in_dir(state, "nowhere"), NULL), ERR_IO);
}

static void remove_tree_does_not_follow_links(void **state)
{
    assert_int_equal(file_write(in_dir(state, "keep/f"), "x", 1, false), 0);
    assert_int_equal(mkdir_p(in_dir(state, "gone/sub")), 0);
    assert_int_equal(symlink("../keep", in_dir(state, "gone/link")), 0);
    assert_int_equal(remove_tree(in_dir(state, "gone")), 0);
    assert_false(path_exists(in_dir(state, "gone")));
    assert_true(path_exists(in_dir(state, "keep/f")));
}

static void digests_are_sha256(void **state)
{
    char hex[65], hex2[65];
    sha256_mem("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    file_write(in_dir(state, "f"), "abc", 3, false);
    assert_int_equal(sha256_file(in_dir(state, "f"), hex2), 0);
    assert_string_equal(hex, hex2);
}

static void arenas_align_and_reset(void **state)
{
    (void)state;
    struct arena a = ARENA_INIT;
    for (int round = 0; round < 3; round++) {
        for (size_t n = 0; n < 3000; n++) {
            char *p = arena_alloc(&a, n);
            assert_int_equal((uintptr_t)p % 16, 0);
            memset(p, 1, n);
        }
        arena_reset(&a);
    }
    assert_string_equal(arena_strndup(&a, "hello", 4), "hell");
    arena_release(&a);
}

static void what_has_no_size_is_not_read_for_ever(void **state)
{
    (void)state;
    struct file_map m;
    assert_int_equal(file_map("/dev/zero", 1 << 20, &m), ERR_NOMEM);
    assert_int_equal(file_map("/dev/zero", 0, &m), ERR_NOMEM);
    assert_int_equal(file_map("/dev/null", 0, &m), ERR_OK);
    assert_int_equal(m.size, 0);
    file_unmap(&m);
}

static void devices_are_written_to_not_replaced(void **state)
{
    const char *pipe = in_dir(state, "pipe");
    assert_int_equal(mkfifo(pipe, 0600), 0);
    int fd = open(pipe, O_RDONLY | O_NONBLOCK);
    assert_true(fd >= 0);
    assert_int_equal(file_write(pipe, "abc", 3, true), ERR_OK);
    char got[4];
    assert_int_equal(read(fd, got, sizeof got), 3);
    close(fd);
    struct stat st;
    assert_int_equal(stat(pipe, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    assert_int_equal(file_write("/dev/full", "abc", 3, false), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_IN_DIR(files_appear_whole_or_not_at_all),
        TEST_IN_DIR(a_full_disk_is_an_error_and_leaves_nothing),
        TEST_IN_DIR(two_that_write_one_file_do_not_mix),
        TEST_IN_DIR(devices_are_written_to_not_replaced),
        TEST_IN_DIR(walks_are_sorted_filtered_and_sharded),
        TEST_IN_DIR(remove_tree_does_not_follow_links),
        TEST_IN_DIR(digests_are_sha256),
        cmocka_unit_test(arenas_align_and_reset),
        cmocka_unit_test(what_has_no_size_is_not_read_for_ever),
    };
    return cmocka_run_group_tests_name("files", tests, NULL, NULL);
}
