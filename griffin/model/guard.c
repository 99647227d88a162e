/* A guard for mapped files that another process truncates.

   Reading a page beyond a file's new end is a bus error, which ends the process. Here such a page reads as zeros
   instead, and is counted. guard.py looks at the count after each use, and rejects the result if it has grown.
*/

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

static atomic_llong lost;
static struct sigaction former;
static uintptr_t page_bytes;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    const int saved = errno;
    void *page = (void *)((uintptr_t)info->si_addr & ~(page_bytes - 1));
    if (info->si_code == BUS_ADRERR &&
        mmap(page, page_bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
        atomic_fetch_add(&lost, 1);
        errno = saved;
        return;
    }
    /* For another kind of error, the instruction runs again with the former handler. */
    sigaction(SIGBUS, &former, NULL);
}

/* Begin to count lost pages. Called once. */
API int32_t griffin_guard(void) {
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct sigaction action = {0};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &former);
}

API int64_t griffin_lost_pages(void) { return atomic_load(&lost); }
