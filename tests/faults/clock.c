/* A clock that can be set: preloaded into a server, it adds to the time what stands in the file CLOCK (µs). */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *ahead_us;

__attribute__((constructor)) static void open_clock(void) {
    ahead_us = mmap(0, sizeof *ahead_us, PROT_READ, MAP_SHARED, open(getenv("CLOCK"), O_RDONLY), 0);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec true_time;
    clock_gettime(CLOCK_REALTIME, &true_time);
    int64_t us = true_time.tv_sec * 1000000LL + true_time.tv_nsec / 1000 + *ahead_us;
    now->tv_sec = us / 1000000;
    now->tv_usec = us % 1000000;
    return 0;
}
