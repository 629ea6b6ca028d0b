/* A disk that fails, stops and tells, for the files whose path begins as disk_watch says. Preloaded (LD_PRELOAD). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char watched[4096];
static char failing[64]; /* letters of the operations that fail: r(ead) w(rite) s(ync) t(runcate) u(nlink) */
static int failure;      /* errno */
static atomic_long calls, kill_at, fail_from;
static int torn;
static int record = -1;
static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;

void disk_watch(const char *prefix) { snprintf(watched, sizeof watched, "%s", prefix); }
long disk_calls(void) { return calls; }

/* Fail those operations with that errno, but for the first `after` calls from now. "" heals the disk. */
void disk_fail(const char *operations, int error, long after) {
    fail_from = calls + after;
    failure = error;
    snprintf(failing, sizeof failing, "%s", operations);
}

/* Kill the process at the n-th changing call from now (1 is the next); `half`: a write is done by half before. */
void disk_kill(long n, int half) {
    torn = half;
    kill_at = calls + n;
}

/* Append each change to a log: operation, path length, offset, length (int64 each), path, bytes. */
void disk_record(const char *log) {
    record = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_watched(int descriptor, char *path, size_t size) {
    if (!watched[0]) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, watched, strlen(watched)) == 0;
}

static void put_down(char operation, const char *path, int64_t offset, const void *bytes, int64_t length) {
    if (record < 0) return;
    int64_t head[4] = {operation, (int64_t)strlen(path), offset, length};
    __typeof__(&write) put = REAL(write);
    pthread_mutex_lock(&recording);
    put(record, head, sizeof head);
    put(record, path, head[1]);
    if (bytes) put(record, bytes, length);
    pthread_mutex_unlock(&recording);
}

/* Count the call; whether it is to fail (errno is set). Kills the process if it is its turn; a write is done by half. */
static int goes_wrong(char operation, int descriptor, const void *bytes, size_t length, off_t offset) {
    if (operation != 'r') {
        long n = ++calls;
        if (kill_at && n == kill_at) {
            if (torn && operation == 'w') {
                if (offset < 0) REAL(write)(descriptor, bytes, length / 2);
                else REAL(pwrite64)(descriptor, bytes, length / 2, offset);
            }
            kill(getpid(), SIGKILL);
        }
    }
    if (strchr(failing, operation) && calls + (operation == 'r') > fail_from) {
        errno = failure;
        return 1;
    }
    return 0;
}

static ssize_t put_at(int descriptor, const void *bytes, size_t length, off_t offset, int positioned) {
    char path[4096];
    if (is_watched(descriptor, path, sizeof path)) {
        if (goes_wrong('w', descriptor, bytes, length, positioned ? offset : -1)) return -1;
        put_down('w', path, positioned ? offset : lseek(descriptor, 0, SEEK_CUR), bytes, length);
    }
    return positioned ? REAL(pwrite64)(descriptor, bytes, length, offset) : REAL(write)(descriptor, bytes, length);
}

ssize_t write(int descriptor, const void *bytes, size_t length) { return put_at(descriptor, bytes, length, 0, 0); }
ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    return put_at(descriptor, bytes, length, offset, 1);
}
ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t offset) {
    return put_at(descriptor, bytes, length, offset, 1);
}

static int sync_it(int descriptor, int (*real)(int)) {
    char path[4096];
    if (is_watched(descriptor, path, sizeof path)) {
        if (goes_wrong('s', descriptor, NULL, 0, 0)) return -1;
        put_down('s', path, 0, NULL, 0);
    }
    return real(descriptor);
}

int fsync(int descriptor) { return sync_it(descriptor, REAL(fsync)); }
int fdatasync(int descriptor) { return sync_it(descriptor, REAL(fdatasync)); }

static int truncate_it(int descriptor, off64_t length) {
    char path[4096];
    if (is_watched(descriptor, path, sizeof path)) {
        if (goes_wrong('t', descriptor, NULL, 0, 0)) return -1;
        put_down('t', path, length, NULL, 0);
    }
    return REAL(ftruncate64)(descriptor, length);
}

int ftruncate(int descriptor, off_t length) { return truncate_it(descriptor, length); }
int ftruncate64(int descriptor, off64_t length) { return truncate_it(descriptor, length); }

static ssize_t get_at(int descriptor, void *bytes, size_t length, off64_t offset) {
    char path[4096];
    if (is_watched(descriptor, path, sizeof path) && goes_wrong('r', descriptor, NULL, 0, 0)) return -1;
    return REAL(pread64)(descriptor, bytes, length, offset);
}

ssize_t pread(int descriptor, void *bytes, size_t length, off_t offset) {
    return get_at(descriptor, bytes, length, offset);
}
ssize_t pread64(int descriptor, void *bytes, size_t length, off64_t offset) {
    return get_at(descriptor, bytes, length, offset);
}

int unlink(const char *path) {
    if (watched[0] && strncmp(path, watched, strlen(watched)) == 0) {
        if (goes_wrong('u', -1, NULL, 0, 0)) return -1;
        put_down('u', path, 0, NULL, 0);
    }
    return REAL(unlink)(path);
}
