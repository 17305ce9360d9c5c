#include "lib/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/err.h"

const char *const STEP_SUFFIXES[] = {".step", ".stp", NULL};

static int64_t mtime_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

static _Thread_local int last_errno; /* of errno_set() */

static int errno_set(const char *path)
{
    last_errno = errno;
    return err_set(errno == ENOMEM ? ERR_NOMEM : ERR_IO, "%s: %s", path, strerror(errno));
}

static int too_big(const char *path, size_t size, size_t max)
{
    return err_set(ERR_NOMEM, "%s: %zu bytes is over the limit of %zu", path, size, max);
}

enum { STREAM_MAX = 1 << 30 }; /* of what has no size, /dev/zero say, if the caller sets no limit */

static int read_stream(const char *path, int fd, size_t max, struct file_map *out)
{
    struct buf b = BUF_INIT;
    max = max ? max : STREAM_MAX;
    for (;;) {
        buf_grow(&b, 1 << 16);
        ssize_t n = read(fd, b.s + b.n, b.cap - b.n - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            buf_release(&b);
            return errno_set(path);
        }
        if (n == 0)
            break;
        b.n += (size_t)n;
        if (b.n > max) {
            size_t got = b.n;
            buf_release(&b);
            return too_big(path, got, max);
        }
    }
    out->size = b.n;
    out->data = out->heap = buf_detach(&b);
    return ERR_OK;
}

/* A regular file's n bytes, or fewer if it shrank meanwhile.  A read is cheaper than a mapping's page faults
 * for the usual STEP file. */
static int read_whole(const char *path, int fd, size_t n, struct file_map *out)
{
    char *data = xmalloc(n + 1);
    size_t got = 0;
    while (got < n) {
        ssize_t k = read(fd, data + got, n - got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0) {
            free(data);
            return errno_set(path);
        }
        if (!k)
            break;
        got += (size_t)k;
    }
    out->data = out->heap = data;
    out->size = got;
    return ERR_OK;
}

int file_map(const char *path, size_t max, struct file_map *out)
{
    struct stat st;
    int rc = ERR_OK;
    *out = (struct file_map){.data = ""};
    if (!strcmp(path, "-"))
        return read_stream("standard input", 0, max, out);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno_set(path);
    if (fstat(fd, &st) < 0) {
        rc = errno_set(path);
    } else if (S_ISDIR(st.st_mode)) {
        rc = err_set(ERR_IO, "%s: is a directory, a file is due", path);
    } else if (!S_ISREG(st.st_mode)) {
        rc = read_stream(path, fd, max, out);
    } else if (max && (size_t)st.st_size > max) {
        rc = too_big(path, (size_t)st.st_size, max);
    } else {
        if (st.st_size > 0 && st.st_size < 256 * 1024) {
            rc = read_whole(path, fd, (size_t)st.st_size, out);
        } else if (st.st_size > 0) {
            void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
            if (p == MAP_FAILED) {
                rc = errno_set(path);
            } else {
                madvise(p, (size_t)st.st_size, MADV_SEQUENTIAL);
                *out = (struct file_map){.data = p, .size = (size_t)st.st_size, .mapped = true};
            }
        }
        out->stamp = (struct file_stamp){(uint64_t)st.st_size, mtime_ns(&st), true};
    }
    close(fd);
    return rc;
}

void file_unmap(struct file_map *m)
{
    if (m->mapped)
        munmap((void *)m->data, m->size);
    else
        free(m->heap);
    *m = (struct file_map){.data = ""};
}

bool path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool path_same(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool path_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int file_stamp(const char *path, uint64_t *size, int64_t *when)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return errno_set(path);
    *size = (uint64_t)st.st_size;
    *when = mtime_ns(&st);
    return ERR_OK;
}

char *path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);
    if (!n || *name == '/')
        return xstrdup(name);
    return xasprintf("%s%s%s", dir, dir[n - 1] == '/' ? "" : "/", name);
}

char *path_dirname(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return xstrdup(".");
    return slash == path ? xstrdup("/") : xstrndup(path, (size_t)(slash - path));
}

const char *path_basename(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *path_stem(const char *path)
{
    const char *base = path_basename(path), *dot = strrchr(base, '.');
    return dot && dot != base ? xstrndup(base, (size_t)(dot - base)) : xstrdup(base);
}

bool path_has_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), k = strlen(suffix);
    return n >= k && !strcasecmp(path + n - k, suffix);
}

const char *path_unsafe(const char *rel)
{
    if (!*rel || strlen(rel) > 1000)
        return "empty or too long";
    bool drive = ((rel[0] | 32) >= 'a' && (rel[0] | 32) <= 'z') && rel[1] == ':';
    if (*rel == '/' || drive || strchr(rel, '\\'))
        return "absolute";
    for (const char *p = rel; *p; p++)
        if ((unsigned char)*p < 32 || *p == 127)
            return "control characters";
    for (const char *p = rel; *p;) {
        size_t n = strcspn(p, "/");
        if ((n == 2 && !strncmp(p, "..", 2)) || (n == 1 && *p == '.'))
            return "leads out of the folder";
        if (!n || n > 250)
            return "an empty or too long part";
        p += n + (p[n] == '/');
    }
    return NULL;
}

int mkdir_p(const char *dir)
{
    if (path_is_dir(dir))
        return ERR_OK;
    char *copy = xstrdup(dir);
    int rc = ERR_OK;
    for (char *p = copy + 1; rc == ERR_OK; p++) {
        if (*p && *p != '/')
            continue;
        char c = *p;
        *p = 0;
        if (mkdir(copy, 0777) < 0 && (errno != EEXIST || !path_is_dir(copy)))
            rc = errno == EEXIST ? err_set(ERR_IO, "%s: is a file, a directory is due", copy) : errno_set(copy);
        *p = c;
        if (!c)
            break;
    }
    free(copy);
    return rc;
}

static int remove_at(int parent, const char *name)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -1;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d)
        return -1;
    int rc = 0;
    struct dirent *e;
    while (rc == 0 && (e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            rc = remove_at(fd, e->d_name);
    closedir(d);
    return rc ? rc : unlinkat(parent, name, AT_REMOVEDIR);
}

int remove_tree(const char *dir)
{
    return remove_at(AT_FDCWD, dir) == 0 ? ERR_OK : errno_set(dir);
}

char *temp_dir(const char *name)
{
    const char *in = getenv("TMPDIR");
    char *dir = xasprintf("%s/%s-XXXXXX", in && *in ? in : "/tmp", name);
    if (mkdtemp(dir))
        return dir;
    errno_set(dir);
    free(dir);
    return NULL;
}

/* The part of path, opened and locked: its descriptor, or -1 with errno. */
static int open_part(const char *dir, const char *base, char **tmp)
{
    struct stat mine, named;
    *tmp = xasprintf("%s/.%s.part", dir, base);
    int fd = open(*tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool left = fd < 0 && errno == EEXIST; /* by a process that was killed, or that still writes */
    if (left)
        fd = open(*tmp, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && !left)
        return -1;
    /* Where there are no locks, there are none: the system's, not the writer's, fault. */
    bool ours = fd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) && fstat(fd, &mine) == 0;
    if (ours && left) /* it may have got its name meanwhile */
        ours = stat(*tmp, &named) == 0 && named.st_ino == mine.st_ino && named.st_dev == mine.st_dev && ftruncate(fd, 0) == 0;
    else
        ours = ours && !mine.st_size;
    if (ours)
        return fd;
    if (fd >= 0)
        close(fd);
    free(*tmp);
    *tmp = xasprintf("%s/.%s.%d.part", dir, base, (int)getpid());
    return open(*tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
}

static int open_for(struct atomic_file *a, const char *path, int *fd)
{
    *a = (struct atomic_file){0};
    char *dir = path_dirname(path);
    const char *base = path_basename(path);
    int rc = ERR_OK;
    struct stat st;
    if (!*base || !strcmp(base, ".") || !strcmp(base, "..")) {
        rc = err_set(ERR_IO, "%s: is a directory, a file is due", path);
    } else if (stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
        /* A device or a pipe, /dev/null say, is written to: root's rename() would put a file in its place. */
        if ((*fd = open(path, O_WRONLY | O_CLOEXEC)) < 0)
            rc = errno_set(path);
    } else {
        *fd = open_part(dir, base, &a->tmp);
        if (*fd < 0 && (errno == ENOENT || errno == ENOTDIR) && (rc = mkdir_p(dir)) == ERR_OK) {
            free(a->tmp);
            *fd = open_part(dir, base, &a->tmp);
        }
        if (rc == ERR_OK && *fd < 0)
            rc = errno_set(a->tmp);
    }
    free(dir);
    if (rc < 0) {
        free(a->tmp);
        a->tmp = NULL;
        return rc;
    }
    a->path = xstrdup(path);
    return ERR_OK;
}

/* Gives the part its name while it is still open: closed it would be unlocked, and another process might take it over.
 * Some file systems tell only on closing what went wrong, so a copy of the descriptor is closed ahead. */
static int rename_part(struct atomic_file *a, int fd)
{
    if (!a->tmp)
        return ERR_OK;
    int copy = dup(fd);
    if (copy >= 0 && close(copy) < 0)
        return errno_set(a->path);
    if (rename(a->tmp, a->path) < 0)
        return errno == EISDIR || errno == ENOTEMPTY ? err_set(ERR_IO, "%s: is a directory, a file is due", a->path)
                                                     : errno_set(a->path);
    free(a->tmp);
    a->tmp = NULL;
    return ERR_OK;
}

static void sync_folder(const char *path)
{
    char *dir = path_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(dir);
}

int atomic_open(struct atomic_file *a, const char *path)
{
    int fd, rc = path_is_dir(path) ? err_set(ERR_IO, "%s: is a directory, a file is due", path) : open_for(a, path, &fd);
    if (rc < 0) {
        *a = (struct atomic_file){0};
        return rc;
    }
    a->f = fdopen(fd, "wb");
    if (!a->f) {
        rc = errno_set(path);
        close(fd);
        atomic_abort(a);
    }
    return rc;
}

int atomic_commit(struct atomic_file *a, bool sync)
{
    int rc = ERR_OK;
    if (fflush(a->f) != 0 || ferror(a->f) || (sync && a->tmp && fsync(fileno(a->f)) < 0))
        rc = errno_set(a->path);
    if (rc == ERR_OK)
        rc = rename_part(a, fileno(a->f));
    if (fclose(a->f) != 0 && rc == ERR_OK)
        rc = errno_set(a->path);
    a->f = NULL;
    if (rc == ERR_OK && sync) /* the name must survive too */
        sync_folder(a->path);
    atomic_abort(a);
    return rc;
}

void atomic_abort(struct atomic_file *a)
{
    if (a->f)
        fclose(a->f);
    if (a->tmp)
        unlink(a->tmp);
    free(a->tmp);
    free(a->path);
    *a = (struct atomic_file){0};
}

int file_write(const char *path, const void *data, size_t n, bool sync)
{
    struct atomic_file a;
    last_errno = 0;
    int fd, rc = open_for(&a, path, &fd);
    if (rc < 0)
        return rc;
    for (size_t at = 0; rc == ERR_OK && at < n;) {
        ssize_t k = write(fd, (const char *)data + at, n - at);
        if (k < 0 && errno != EINTR)
            rc = errno_set(path);
        at += k > 0 ? (size_t)k : 0;
    }
    if (rc == ERR_OK && sync && a.tmp && fsync(fd) < 0)
        rc = errno_set(path);
    if (rc == ERR_OK)
        rc = rename_part(&a, fd);
    if (close(fd) < 0 && rc == ERR_OK)
        rc = errno_set(path);
    if (rc == ERR_OK && sync)
        sync_folder(path);
    atomic_abort(&a);
    return rc;
}

bool file_write_hopeless(void)
{
    switch (last_errno) {
    case ENOSPC: case EDQUOT: case EFBIG: case EROFS: case EACCES: case EPERM: case EIO: return true;
    default: return false;
    }
}

int file_copy(const char *from, const char *to, bool sync)
{
    struct file_map m;
    int rc = file_map(from, 0, &m);
    if (rc == ERR_OK) {
        rc = file_write(to, m.data, m.size, sync);
        file_unmap(&m);
    }
    return rc;
}

static bool wanted(const char *name, const char *const *suffixes)
{
    if (!suffixes)
        return true;
    for (; *suffixes; suffixes++)
        if (path_has_suffix(name, *suffixes))
            return true;
    return false;
}

static void push(struct file_list *l, char *path, char *rel)
{
    ARRAY_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n].path = path;
    l->v[l->n++].rel = rel;
}

static int walk(struct file_list *l, const char *dir, const char *rel, const char *const *suffixes, int depth)
{
    if (depth > 64)
        return err_set(ERR_IO, "%s: directories nest too deeply", dir);
    DIR *d = opendir(dir);
    if (!d)
        return errno_set(dir);
    int rc = ERR_OK;
    struct dirent *e;
    while (rc == ERR_OK && (e = readdir(d))) {
        if (e->d_name[0] == '.')
            continue;
        char *path = path_join(dir, e->d_name), *sub = path_join(rel, e->d_name);
        int type = e->d_type;
        struct stat st;
        if (type == DT_UNKNOWN && lstat(path, &st) == 0)
            type = S_ISDIR(st.st_mode) ? DT_DIR : S_ISLNK(st.st_mode) ? DT_LNK : S_ISREG(st.st_mode) ? DT_REG : DT_FIFO;
        if (type == DT_LNK && (stat(path, &st) == 0 ? S_ISREG(st.st_mode) : suffixes != NULL)) /* one to nothing is a file that cannot be read */
            type = DT_REG;
        if (type == DT_REG && wanted(e->d_name, suffixes)) {
            push(l, path, sub);
            continue;
        }
        if (type == DT_DIR)
            rc = walk(l, path, sub, suffixes, depth + 1);
        free(path);
        free(sub);
    }
    closedir(d);
    return rc;
}

static int by_rel(const void *a, const void *b)
{
    const struct file_entry *x = a, *y = b;
    int c = strcmp(x->rel, y->rel);
    return c ? c : strcmp(x->path, y->path);
}

int file_list_add(struct file_list *l, const char *path, const char *const *suffixes)
{
    struct stat st;
    size_t before = l->n;
    if (stat(path, &st) < 0)
        return errno_set(path);
    if (!S_ISDIR(st.st_mode)) {
        push(l, xstrdup(path), xstrdup(path_basename(path)));
        return ERR_OK;
    }
    int rc = walk(l, path, "", suffixes, 0);
    if (l->n > before)
        qsort(l->v + before, l->n - before, sizeof *l->v, by_rel);
    return rc;
}

void file_list_release(struct file_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        free(l->v[i].path);
        free(l->v[i].rel);
    }
    free(l->v);
    *l = (struct file_list){0};
}

void file_list_shard(struct file_list *l, int i, int n)
{
    if (n <= 1)
        return;
    size_t kept = 0;
    for (size_t k = 0; k < l->n; k++) {
        if (k % (size_t)n == (size_t)(i - 1)) {
            l->v[kept++] = l->v[k];
        } else {
            free(l->v[k].path);
            free(l->v[k].rel);
        }
    }
    l->n = kept;
}

static void hex_of(const unsigned char *d, char hex[65])
{
    for (int i = 0; i < 32; i++)
        sprintf(hex + 2 * i, "%02x", d[i]);
}

void sha256_mem(const void *p, size_t n, char hex[65])
{
    unsigned char d[32];
    EVP_Digest(p, n, d, NULL, EVP_sha256(), NULL);
    hex_of(d, hex);
}

int sha256_file(const char *path, char hex[65])
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        return errno_set(path);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
    size_t cap = 1 << 20, n;
    char *block = xmalloc(cap);
    while ((n = fread(block, 1, cap, f)) > 0)
        EVP_DigestUpdate(ctx, block, n);
    int rc = ferror(f) ? errno_set(path) : ERR_OK;
    unsigned char d[32];
    EVP_DigestFinal_ex(ctx, d, NULL);
    EVP_MD_CTX_free(ctx);
    free(block);
    fclose(f);
    hex_of(d, hex);
    return rc;
}

uint64_t fnv1a(uint64_t h, const void *p, size_t n)
{
    const unsigned char *s = p;
    for (size_t i = 0; i < n; i++)
        h = (h ^ s[i]) * 0x100000001b3u;
    return h;
}
