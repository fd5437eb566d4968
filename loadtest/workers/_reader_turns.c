/* When the thread of _reader_thread.h has its turn on a core. */
#define _GNU_SOURCE
#include "_reader_thread.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TURN_NS 100000 /* the shortest that Linux gives */

struct attributes { /* of sched_setattr(2), of which not every libc knows */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

/* Shares a core with Python: what it reads must not wait for the end of Python's turn. */
void reader_go_first(void) {
    struct sched_param own;
    prctl(PR_SET_TIMERSLACK, 1); /* its rests are short */
    int policy = sched_getscheduler(0);
    if (policy == SCHED_FIFO || policy == SCHED_RR) {
        if (sched_getparam(0, &own)) return;
        own.sched_priority++;
        sched_setscheduler(0, policy, &own);
        return;
    }
    /* since Linux 6.12 anybody may ask for short turns, and then has them sooner; a better place needs a right */
    int nice = getpriority(PRIO_PROCESS, 0);
    struct attributes wish = {.size = sizeof wish, .policy = policy, .nice = nice - 5, .runtime_ns = TURN_NS};
    if (syscall(SYS_sched_setattr, 0, &wish, 0) == 0) return;
    wish.nice = nice;
    syscall(SYS_sched_setattr, 0, &wish, 0);
}
