/* LD_PRELOAD: fsync and fdatasync as the file in SLOW_DISK says, read at each call, so that it can change while a server runs.
 *
 * The file has two numbers: milliseconds that a sync takes, and the errno that it fails with (0: none). After each good sync
 * the size of what is then on disk is noted in SLOW_DISK.d/<inode>: a power cut keeps that much of a file that only grows.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int sync_as_told(int fd, const char *name)
{
    const char *told = getenv("SLOW_DISK");
    long ms = 0, fails = 0;
    struct stat before;
    FILE *file;
    int known = fstat(fd, &before) == 0 && S_ISREG(before.st_mode); /* before: what is written meanwhile is not safe */
    if (told && (file = fopen(told, "re"))) {
        if (fscanf(file, "%ld %ld", &ms, &fails) < 1)
            ms = 0;
        fclose(file);
    }
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (ms && nanosleep(&left, &left) && errno == EINTR)
        ;
    if (fails) {
        errno = (int)fails;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int done = real(fd);
    if (done == 0 && known && told) {
        char path[4096], size[32];
        snprintf(path, sizeof path, "%s.d/%lu", told, (unsigned long)before.st_ino);
        int note = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        /* One write of one width, over the note before: a kill leaves the old one or the new one. */
        if (note >= 0) {
            if (write(note, size, snprintf(size, sizeof size, "%020lld", (long long)before.st_size)) < 0)
                done = 0;
            close(note);
        }
    }
    return done;
}

int fsync(int fd) { return sync_as_told(fd, "fsync"); }
int fdatasync(int fd) { return sync_as_told(fd, "fdatasync"); }
