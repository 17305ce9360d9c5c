/* testutil.h: cmocka in the order it wants, and a temporary folder a test. */
#ifndef TESTUTIL_H
#define TESTUTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "lib/err.h"
#include "lib/files.h"

/* Fixtures: *state is the folder's path; it is removed again. */
static inline int temp_dir_setup(void **state)
{
    char t[] = "/tmp/step-llm-test-XXXXXX";
    if (!mkdtemp(t))
        return -1;
    *state = strdup(t);
    return 0;
}

static inline int temp_dir_teardown(void **state)
{
    int rc = remove_tree(*state);
    free(*state);
    return rc;
}

/* A path inside the folder; valid until the eighth call after. */
static inline const char *in_dir(void **state, const char *name)
{
    static char paths[8][512];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, 512, "%s/%s", (const char *)*state, name);
    return p;
}

#define TEST_IN_DIR(f) cmocka_unit_test_setup_teardown(f, temp_dir_setup, temp_dir_teardown)

#endif
