#include "lib/sibling.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/err.h"
#include "lib/files.h"
#include "lib/log.h"

extern char **environ;

static char *path_of(const char *tool)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *dir = path_dirname(self), *path = path_join(dir, tool);
    free(dir);
    return path;
}

bool sibling_there(const char *tool)
{
    char *path = path_of(tool);
    bool there = access(path, X_OK) == 0;
    free(path);
    return there;
}

/* Everything that comes out of fd until it ends or time is up. */
static bool drain(int fd, double until, struct buf *out)
{
    char part[65536];
    for (;;) {
        double left = until - now_s();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0)
            return false;
        int rc = poll(&p, 1, left > 1 ? 1000 : (int)(left * 1e3) + 1);
        if (rc < 0 && errno != EINTR)
            return false;
        if (rc <= 0)
            continue;
        ssize_t n = read(fd, part, sizeof part);
        if (n == 0 || (n < 0 && errno != EINTR))
            return true;
        if (n > 0 && out)
            buf_add(out, part, (size_t)n);
    }
}

int sibling_run(const char *tool, const char *const *args, double seconds, struct buf *out, int *exit_code)
{
    char *path = path_of(tool);
    size_t n = 0;
    int fd[2], status = 0, rc = ERR_OK;
    pid_t pid;
    double until = now_s() + seconds;
    while (args[n])
        n++;
    const char **argv = xmalloc((n + 2) * sizeof *argv);
    argv[0] = path;
    memcpy(argv + 1, args, (n + 1) * sizeof *argv);
    if (pipe2(fd, O_CLOEXEC) < 0) {
        rc = err_set(ERR_IO, "pipe: %s", strerror(errno));
        goto out;
    }
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    sigset_t none, usual;
    sigemptyset(&none);
    sigfillset(&usual);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&fa, fd[1], 1);
    posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addclosefrom_np(&fa, 3);
    posix_spawnattr_init(&at);
    posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&at, &none);
    posix_spawnattr_setsigdefault(&at, &usual);
    int e = posix_spawn(&pid, path, &fa, &at, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&at);
    close(fd[1]);
    if (e) {
        close(fd[0]);
        rc = err_set(ERR_IO, "%s: %s", path, strerror(e));
        goto out;
    }
    bool ended = drain(fd[0], until, out);
    close(fd[0]);
    if (!ended)
        kill(-pid, SIGKILL); /* its workers, too */
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (!ended)
        rc = err_set(ERR_CANCELLED, "%s: over %.0f s", tool, seconds);
out:
    free(argv);
    free(path);
    return rc;
}
