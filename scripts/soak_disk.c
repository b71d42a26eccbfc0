/* Fails system calls on chosen files: loaded into the processes of a soak test by LD_PRELOAD.
 *
 * The file that SOAK_FAULTS names says which: "s/orders.db" fails what syncs a file whose path has
 * "/orders.db" in it, by EIO; "w/orders.db" what writes to one, by ENOSPC. While it is not there,
 * nothing fails.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_to_fail(int fd, char kind)
{
    const char *faults = getenv("SOAK_FAULTS");
    int saved = errno, is_hit = 0;
    int file = faults == NULL ? -1 : open(faults, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        char said[128], link[64], path[1024];
        ssize_t size = read(file, said, sizeof said - 1);
        close(file);
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (size > 1 && length > 0) {
            said[size] = 0;
            path[length] = 0;
            is_hit = said[0] == kind && strstr(path, said + 1) != NULL;
        }
    }
    errno = saved;
    return is_hit;
}

int fsync(int fd)
{
    static int (*real)(int);
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (is_to_fail(fd, 's')) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (is_to_fail(fd, 's')) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (real == NULL)
        real = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    if (is_to_fail(fd, 'w')) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (real == NULL)
        real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    if (is_to_fail(fd, 'w')) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, from, size, at);
}
