/* A disk that stalls, for the rows of requests alone: preloaded, because no file system here can be told to.
 *
 * SLOW_SYNC_MS: every fdatasync of a records file takes so long. SLOW_WRITE_MS: so does one write to one,
 * the SLOW_WRITE_AT-th of the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int is_records(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, "/records/") != NULL;
}

static void stall(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (is_records(fd))
        stall(number("SLOW_SYNC_MS"));
    return real(fd);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    static long written;
    if (!real)
        real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (is_records(fd) && ++written == number("SLOW_WRITE_AT"))
        stall(number("SLOW_WRITE_MS"));
    return real(fd, bytes, count);
}
