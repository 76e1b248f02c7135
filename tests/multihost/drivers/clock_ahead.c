/* A host whose clock is AHEAD seconds fast, for one process: preload it. Waits until a time of that clock still end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += AHEAD;
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int failed = syscall(SYS_gettimeofday, now, zone);
  if (!failed) now->tv_sec += AHEAD;
  return failed;
}

time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}

/* The kernel waits by its own clock. Times of the monotonic clock lie far before any of the other and stay. */
static struct timespec kernels(const struct timespec *until) {
  struct timespec now, then = *until;
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
  if (then.tv_sec > now.tv_sec + AHEAD / 2) then.tv_sec -= AHEAD;
  return then;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  struct timespec then = kernels(until);
  return real(cond, mutex, &then);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  struct timespec then = kernels(until);
  return sem_clockwait(semaphore, CLOCK_REALTIME, &then);
}
