/*
 * faultshim: counts the calls by which a process changes what lies below one folder, and spoils one of them.
 *
 * Loaded by LD_PRELOAD; does nothing until faultshim_arm() is called, and nothing in forks of the process that called
 * it. Calls are numbered from 1 in the order in which they are made. Each is written to the log, as
 * "number call path bytes", before it happens. The actions, at the wanted number:
 *
 *   none         nothing: the log enumerates the points
 *   kill-before  SIGKILL instead of the call
 *   kill-after   SIGKILL once it is done
 *   eio, enospc  the call does nothing and fails with this error
 *   full         ENOSPC at this and at every later call that needs room on the disk
 *   short        a write writes half (at least one byte) of what it should, as write(2) may
 *
 * stdio is interposed at fopen, fwrite, fflush and fclose, since libc's own calls to write() pass no PLT. What is
 * written through a shared mapping is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NONE, KILL_BEFORE, KILL_AFTER, EIO_ONCE, ENOSPC_ONCE, FULL, SHORT };
static const char *const names[] = {"none", "kill-before", "kill-after", "eio", "enospc", "full", "short"};

static char folder[PATH_MAX];
static size_t folder_length;
static int log_fd = -1;
static enum action action;
static long point;
static pid_t armed; /* 0: nobody */
static atomic_long calls;

/* What is to be done about one call. */
enum verdict { GO, FAIL, CUT, DIE };

void faultshim_arm(const char *below, const char *log, const char *what, long number)
{
    strncpy(folder, below, sizeof folder - 1);
    folder_length = strlen(folder);
    /* Out of the way of those who close all low descriptors. */
    int opened = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    log_fd = fcntl(opened, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, opened);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(what, names[i]) == 0)
            action = (enum action)i;
    point = number;
    armed = getpid();
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Whether a path lies below the folder; a lexical question, so the folder is given without links. */
static int below(const char *path)
{
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

/* The path of a descriptor into `path`; 0 where it has none. */
static int path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return path[0] == '/';
}

/* A name beside a directory's descriptor, made whole. */
static void whole(int directory, const char *name, char *path)
{
    char base[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (directory == AT_FDCWD)
        syscall(SYS_getcwd, base, sizeof base);
    else
        path_of(directory, base);
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX)
        path[0] = 0;
}

/* Count one call; errno is set where it is to fail. */
static enum verdict judge_path(const char *call, const char *path, long bytes, int needs_room)
{
    if (!below(path))
        return GO;
    long number = atomic_fetch_add(&calls, 1) + 1;
    char line[PATH_MAX + 100];
    int length = snprintf(line, sizeof line, "%ld %s .%s %ld\n", number, call, path + folder_length, bytes);
    syscall(SYS_write, log_fd, line, (size_t)length);
    if (action == FULL && number >= point && needs_room) {
        errno = ENOSPC;
        return FAIL;
    }
    if (number != point)
        return GO;
    switch (action) {
    case KILL_BEFORE:
        die();
        return GO;
    case KILL_AFTER:
        return DIE;
    case EIO_ONCE:
        errno = EIO;
        return FAIL;
    case ENOSPC_ONCE:
        errno = ENOSPC;
        return FAIL;
    case SHORT:
        return CUT;
    default:
        return GO;
    }
}

/* Whether a stream was opened to be written: closing any other loses nothing. */
static int written(FILE *file)
{
    return (fcntl(fileno(file), F_GETFL) & O_ACCMODE) != O_RDONLY;
}

static int watching(void)
{
    return armed != 0 && armed == getpid();
}

static enum verdict judge_at(const char *call, int directory, const char *name, int needs_room)
{
    char path[PATH_MAX];
    if (!watching() || name == NULL)
        return GO;
    whole(directory, name, path);
    return judge_path(call, path, 0, needs_room);
}

static enum verdict judge_fd(const char *call, int fd, long bytes, int needs_room)
{
    char path[PATH_MAX];
    if (!watching() || !path_of(fd, path))
        return GO;
    return judge_path(call, path, bytes, needs_room);
}

/* The next definition of the function that this is in. */
#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);

#define CALL(type, judgement, failed, expression) \
    do { \
        enum verdict decided = (judgement); \
        if (decided == FAIL) \
            return failed; \
        type result = (expression); \
        if (decided == DIE) \
            die(); \
        return result; \
    } while (0)

static size_t cut(size_t size)
{
    return size > 1 ? size / 2 : size;
}

/* Writing. */

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t)
    enum verdict verdict = judge_fd("write", fd, (long)size, 1);
    CALL(ssize_t, verdict, -1, real(fd, data, verdict == CUT ? cut(size) : size));
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) \
    { \
        REAL(ssize_t, name, int, const void *, size_t, off_t) \
        enum verdict verdict = judge_fd("pwrite", fd, (long)size, 1); \
        CALL(ssize_t, verdict, -1, real(fd, data, verdict == CUT ? cut(size) : size, offset)); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int)
    enum verdict verdict = judge_fd("writev", fd, count, 1);
    CALL(ssize_t, verdict, -1, real(fd, parts, verdict == CUT && count > 1 ? count / 2 : count));
}

#define SENDFILE(name) \
    ssize_t name(int to, int from, off_t *offset, size_t size) \
    { \
        REAL(ssize_t, name, int, int, off_t *, size_t) \
        enum verdict verdict = judge_fd("sendfile", to, (long)size, 1); \
        CALL(ssize_t, verdict, -1, real(to, from, offset, size)); \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int from, off_t *start, int to, off_t *offset, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off_t *, int, off_t *, size_t, unsigned)
    CALL(ssize_t, judge_fd("copy_file_range", to, (long)size, 1), -1, real(from, start, to, offset, size, flags));
}

#define TRUNCATE(name) \
    int name(int fd, off_t size) \
    { \
        REAL(int, name, int, off_t) \
        CALL(int, judge_fd("ftruncate", fd, (long)size, 0), -1, real(fd, size)); \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define ALLOCATE(name) \
    int name(int fd, off_t offset, off_t size) \
    { \
        REAL(int, name, int, off_t, off_t) \
        CALL(int, judge_fd("fallocate", fd, (long)size, 1), errno, real(fd, offset, size)); \
    }
ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)

size_t fwrite(const void *data, size_t size, size_t count, FILE *file)
{
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *)
    CALL(size_t, judge_fd("fwrite", fileno(file), (long)(size * count), 1), 0, real(data, size, count, file));
}

int fflush(FILE *file)
{
    REAL(int, fflush, FILE *)
    CALL(int, file && written(file) ? judge_fd("fflush", fileno(file), 0, 1) : GO, EOF, real(file));
}

int fclose(FILE *file)
{
    REAL(int, fclose, FILE *)
    enum verdict verdict = written(file) ? judge_fd("fclose", fileno(file), 0, 1) : GO;
    int error = errno, result = real(file);
    if (verdict == DIE)
        die();
    if (verdict == FAIL) {
        errno = error;
        return EOF;
    }
    return result;
}

/* Syncing. */

#define SYNC(name) \
    int name(int fd) \
    { \
        REAL(int, name, int) \
        CALL(int, judge_fd(#name, fd, 0, 0), -1, real(fd)); \
    }
SYNC(fsync)
SYNC(fdatasync)
SYNC(syncfs)

/* Names. */

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *)
    CALL(int, judge_at("rename", AT_FDCWD, to, 1), -1, real(from, to));
}

int renameat(int at, const char *from, int onto, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *)
    CALL(int, judge_at("rename", onto, to, 1), -1, real(at, from, onto, to));
}

int renameat2(int at, const char *from, int onto, const char *to, unsigned flags)
{
    REAL(int, renameat2, int, const char *, int, const char *, unsigned)
    CALL(int, judge_at("rename", onto, to, 1), -1, real(at, from, onto, to, flags));
}

int link(const char *from, const char *to)
{
    REAL(int, link, const char *, const char *)
    CALL(int, judge_at("link", AT_FDCWD, to, 1), -1, real(from, to));
}

int linkat(int at, const char *from, int onto, const char *to, int flags)
{
    REAL(int, linkat, int, const char *, int, const char *, int)
    CALL(int, judge_at("link", onto, to, 1), -1, real(at, from, onto, to, flags));
}

int symlink(const char *from, const char *to)
{
    REAL(int, symlink, const char *, const char *)
    CALL(int, judge_at("symlink", AT_FDCWD, to, 1), -1, real(from, to));
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *)
    CALL(int, judge_at("unlink", AT_FDCWD, path, 0), -1, real(path));
}

int unlinkat(int directory, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int)
    CALL(int, judge_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", directory, path, 0), -1, real(directory, path, flags));
}

int rmdir(const char *path)
{
    REAL(int, rmdir, const char *)
    CALL(int, judge_at("rmdir", AT_FDCWD, path, 0), -1, real(path));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t)
    CALL(int, judge_at("mkdir", AT_FDCWD, path, 1), -1, real(path, mode));
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    REAL(int, mkdirat, int, const char *, mode_t)
    CALL(int, judge_at("mkdir", directory, path, 1), -1, real(directory, path, mode));
}

int chmod(const char *path, mode_t mode)
{
    REAL(int, chmod, const char *, mode_t)
    CALL(int, judge_at("chmod", AT_FDCWD, path, 0), -1, real(path, mode));
}

int fchmod(int fd, mode_t mode)
{
    REAL(int, fchmod, int, mode_t)
    CALL(int, judge_fd("chmod", fd, 0, 0), -1, real(fd, mode));
}

int fchmodat(int directory, const char *path, mode_t mode, int flags)
{
    REAL(int, fchmodat, int, const char *, mode_t, int)
    CALL(int, judge_at("chmod", directory, path, 0), -1, real(directory, path, mode, flags));
}

/* Opening, where it makes a file. */

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        MODE(flags) \
        REAL(int, name, const char *, int, ...) \
        CALL(int, flags &O_CREAT ? judge_at("open", AT_FDCWD, path, 1) : GO, -1, real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        MODE(flags) \
        REAL(int, name, int, const char *, int, ...) \
        CALL(int, flags &O_CREAT ? judge_at("open", directory, path, 1) : GO, -1, real(directory, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) \
    { \
        REAL(FILE *, name, const char *, const char *) \
        CALL(FILE *, mode[0] == 'r' ? GO : judge_at("open", AT_FDCWD, path, 1), NULL, real(path, mode)); \
    }
FOPEN(fopen)
FOPEN(fopen64)
