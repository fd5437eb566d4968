/* The floor: what one thread of C spends to read the same streams, date every read and find every end.
 *
 * reader PORT STREAMS SECONDS: opens STREAMS connections, asks again whenever an answer has ended, and prints
 * one line of JSON: time to first token and gaps between reads, counted by tens of microseconds. It scans for
 * the end of the body only; it reads no JSON. A floor, not a client.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define BINS 200000
#define BIN_NS 10000

struct stream { int fd, reads; long long sent_ns, last_ns; };

static long ttft[BINS], gap[BINS];
static char buffer[1 << 18];
static char request[256];

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void count(long *bins, long long ns) {
    long bin = ns / BIN_NS;
    bins[bin < BINS ? bin : BINS - 1]++;
}

static void ask(struct stream *s) {
    s->reads = 0;
    if (write(s->fd, request, strlen(request)) < 0) exit(3);
    s->sent_ns = now_ns();
}

static int take(struct stream *s) {
    ssize_t n = read(s->fd, buffer, sizeof buffer);
    long long at_ns = now_ns();
    if (n <= 0) exit(4);
    if (s->reads == 0 && memmem(buffer, n, "\"content\":\" word\"", 17) == NULL) return 0; /* headers alone */
    if (s->reads++ == 0) count(ttft, at_ns - s->sent_ns);
    else count(gap, at_ns - s->last_ns);
    s->last_ns = at_ns;
    return n >= 5 && memcmp(buffer + n - 5, "0\r\n\r\n", 5) == 0;
}

static void tell(const char *name, long *bins, const char *end) {
    const char *comma = "";
    printf("\"%s\": {", name);
    for (long i = 0; i < BINS; i++)
        if (bins[i]) { printf("%s\"%ld\": %ld", comma, i, bins[i]); comma = ", "; }
    printf("}%s", end);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int streams = atoi(argv[2]), poll = epoll_create1(0), on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    strcpy(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
    struct stream *all = calloc(streams, sizeof *all);
    long long end_ns = now_ns() + (long long)(atof(argv[3]) * 1e9);
    for (int i = 0; i < streams; i++) {
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(all[i].fd, (struct sockaddr *)&to, sizeof to)) return 3;
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event wish = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &wish);
    }
    for (int i = 0; i < streams; i++) ask(&all[i]);
    struct epoll_event ready[256];
    while (now_ns() < end_ns) {
        int n = epoll_wait(poll, ready, 256, 100);
        for (int i = 0; i < n; i++)
            if (take(ready[i].data.ptr)) ask(ready[i].data.ptr);
    }
    printf("{");
    tell("ttft", ttft, ", ");
    tell("gap", gap, "}\n");
    return 0;
}
