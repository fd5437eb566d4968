/* A server that is never the bottleneck: streams precomputed bytes at true times and counts its own lateness.
 *
 * server PORT TTFT_MS ITL_MS TOKENS CORE; CORE -1 is any, shared with others. One thread, one epoll.
 * Headers go out at once; TTFT after the request's last byte come a role chunk and the first token; then one
 * token each ITL, each its own HTTP chunk and its own send(); with the last come usage and [DONE]. Due times
 * are absolute: lateness never adds up. GET /counters tells what was sent since it was last asked, times by
 * tens of microseconds; the bytes are those of vLLM 0.32.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define STREAMS_MAX (1 << 20) /* Linux's own ceiling for open files, unless it was raised */
#define REQUEST_BYTES_MAX (1 << 20)
#define SENDS_AT_ONCE 64
#define BINS (1 << 20) /* ten seconds; what is longer is in the last */
#define BIN_NS 10000
#define SECOND_NS 1000000000LL

#define HEAD "HTTP/1.1 200 OK\r\nserver: uvicorn\r\n" \
    "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
#define ID "\"id\":\"chatcmpl-a7de13c548330797\",\"object\":\"chat.completion.chunk\"," \
    "\"created\":1795236677,\"model\":\"tiny\""
#define CHOICE(delta, finish) \
    "{" ID ",\"choices\":[{\"index\":0,\"delta\":{" delta "},\"logprobs\":null,\"finish_reason\":" finish \
    ",\"token_ids\":null}]}"
#define USAGE \
    "{" ID ",\"choices\":[],\"usage\":{\"prompt_tokens\":32,\"total_tokens\":%d,\"completion_tokens\":%d}}"
#define WORD "\"content\":\" word\""
#define MODELS "{\"data\": [{\"id\": \"tiny\", \"max_model_len\": 8192}]}"
#define TOLD "{\"requests\": %ld, \"chunks\": %ld, \"blocked\": %ld, \"first_request_ns\": "
#define ANSWER "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s"

typedef struct { size_t size; char data[1024]; } Text;

/* The bins in use are a list: to be asked must not cost the time of many tokens. */
typedef struct { int used_count, used[BINS]; long counts[BINS]; } Bins;

TAILQ_HEAD(Queue, Stream);

typedef struct Stream {
    TAILQ_ENTRY(Stream) near;
    struct Queue *queue; /* the one it waits in */
    int left;
    long long due_ns, last_ns; /* last_ns: when its request had come, and then when its last token went */
    size_t size;
    char *heard; /* room for the longest request and a NUL: pages never touched cost nothing */
} Stream;

static int poll_number, tokens;
static long long ttft_ns, itl_ns;
static Text first_text, token_text, last_text;
static Stream streams[STREAMS_MAX]; /* by the number of the socket */
/* Each is in order of due time: what joins comes a constant time after what was last due. */
static struct Queue firsts = TAILQ_HEAD_INITIALIZER(firsts), nexts = TAILQ_HEAD_INITIALIZER(nexts);
static struct { long requests, chunks, blocked; long long first_ns; } counters;
static Bins ttft, gap;

static long long now_ns(void) { /* the clock of time.perf_counter_ns */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

static void give_up(const char *what) {
    perror(what);
    exit(1);
}

static void add_event(Text *to, const char *event) { /* as one HTTP chunk, the way uvicorn sends it */
    to->size += snprintf(to->data + to->size, sizeof to->data - to->size, "%zx\r\ndata: %s\n\n\r\n",
                         strlen(event) + strlen("data: \n\n"), event);
}

static void make_texts(void) {
    char usage[512];
    snprintf(usage, sizeof usage, USAGE, 32 + tokens, tokens);
    add_event(&first_text, CHOICE("\"role\":\"assistant\",\"content\":\"\"", "null"));
    add_event(&first_text, CHOICE(WORD, "null"));
    add_event(&token_text, CHOICE(WORD, "null"));
    add_event(&last_text, CHOICE(WORD, "\"length\""));
    add_event(&last_text, usage);
    add_event(&last_text, "[DONE]");
    last_text.size += sprintf(last_text.data + last_text.size, "0\r\n\r\n");
}

static void count(Bins *bins, long long ns) {
    int bin = ns < 1LL * BINS * BIN_NS ? ns / BIN_NS : BINS - 1;
    if (bins->counts[bin]++ == 0) bins->used[bins->used_count++] = bin;
}

static void tell_bins(FILE *to, const char *name, Bins *bins) {
    fprintf(to, ", \"%s\": {", name);
    for (int i = 0; i < bins->used_count; i++) {
        int bin = bins->used[i];
        fprintf(to, "%s\"%d\": %ld", i ? ", " : "", bin, bins->counts[bin]);
        bins->counts[bin] = 0;
    }
    fprintf(to, "}");
    bins->used_count = 0;
}

static char *told_counters(void) { /* they begin anew */
    char *body;
    size_t size;
    FILE *to = open_memstream(&body, &size);
    if (to == NULL) give_up("counters");
    fprintf(to, TOLD, counters.requests, counters.chunks, counters.blocked);
    fprintf(to, counters.first_ns ? "%lld" : "null", counters.first_ns);
    tell_bins(to, "ttft", &ttft);
    tell_bins(to, "gap", &gap);
    fprintf(to, "}");
    if (fclose(to)) give_up("counters");
    memset(&counters, 0, sizeof counters);
    return body;
}

static void start_waiting(Stream *stream, struct Queue *queue) {
    stream->queue = queue;
    TAILQ_INSERT_TAIL(queue, stream, near);
}

static void stop_waiting(Stream *stream) {
    if (stream->queue) TAILQ_REMOVE(stream->queue, stream, near);
    stream->queue = NULL;
}

static void close_stream(Stream *stream) {
    stop_waiting(stream);
    close(stream - streams);
    free(stream->heard);
    *stream = (Stream){0};
}

static int push(Stream *stream, const char *data, size_t size) {
    if (send(stream - streams, data, size, MSG_NOSIGNAL) == (ssize_t)size) return 1;
    counters.blocked++; /* a reader so far behind is not waited for: the others' times stay true */
    close_stream(stream);
    return 0;
}

static void begin(Stream *stream) {
    stream->last_ns = now_ns();
    stream->due_ns = stream->last_ns + ttft_ns;
    stream->left = tokens;
    counters.requests++;
    if (counters.first_ns == 0) counters.first_ns = stream->last_ns;
    if (push(stream, HEAD, strlen(HEAD))) start_waiting(stream, &firsts);
}

static int asks_for(const Stream *stream, const char *path) {
    const char *word = strchr(stream->heard, ' ');
    return word && strncmp(word + 1, path, strlen(path)) == 0 && word[1 + strlen(path)] == ' ';
}

static void answer(Stream *stream) {
    char *told = asks_for(stream, "/counters") ? told_counters() : NULL, *whole;
    int is_models = asks_for(stream, "/v1/models");
    int is_known = told || is_models || asks_for(stream, "/health");
    const char *body = told ? told : is_models ? MODELS : "{}";
    int size = asprintf(&whole, ANSWER, is_known ? "200 OK" : "404 Not Found", strlen(body), body);
    if (size < 0) give_up("answer");
    push(stream, whole, size);
    free(whole);
    free(told);
}

static int is_whole(const Stream *stream) {
    const char *end = memmem(stream->heard, stream->size, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    const char *length = strcasestr(stream->heard, "content-length:");
    long body = length && length < end ? strtol(strchr(length, ':') + 1, NULL, 10) : 0;
    return stream->heard + stream->size - (end + 4) >= body;
}

static void hear(Stream *stream) {
    char *to = stream->heard + stream->size;
    ssize_t size = recv(stream - streams, to, REQUEST_BYTES_MAX - stream->size, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0 || stream->left) { /* gone, too long for its room, or asks while its answer still runs */
        close_stream(stream);
        return;
    }
    stream->size += size;
    stream->heard[stream->size] = '\0';
    if (!is_whole(stream)) return;
    stream->size = 0;
    (strncmp(stream->heard, "POST ", 5) ? answer : begin)(stream);
}

static Stream *next_due(void) {
    Stream *first = TAILQ_FIRST(&firsts), *next = TAILQ_FIRST(&nexts);
    return first == NULL || (next && next->due_ns < first->due_ns) ? next : first;
}

static void send_token(Stream *stream) {
    int is_first = stream->queue == &firsts;
    const Text *text = is_first ? &first_text : stream->left > 1 ? &token_text : &last_text;
    stop_waiting(stream);
    if (!push(stream, text->data, text->size)) return;
    long long sent_ns = now_ns();
    count(is_first ? &ttft : &gap, sent_ns - stream->last_ns);
    counters.chunks++;
    stream->last_ns = sent_ns;
    stream->due_ns += itl_ns;
    if (--stream->left) start_waiting(stream, &nexts);
}

static void send_due(void) {
    long long at_ns = now_ns();
    for (int i = 0; i < SENDS_AT_ONCE; i++) {
        Stream *stream = next_due();
        if (stream == NULL || stream->due_ns > at_ns) return;
        send_token(stream);
    }
}

static void accept_all(int listener) {
    int on = 1, number;
    while ((number = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0 || errno == ECONNABORTED) {
        if (number < 0) continue;
        struct epoll_event wish = {.events = EPOLLIN, .data.fd = number};
        setsockopt(number, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        streams[number].heard = malloc(REQUEST_BYTES_MAX + 1);
        if (streams[number].heard == NULL) give_up("accept");
        if (epoll_ctl(poll_number, EPOLL_CTL_ADD, number, &wish)) give_up("accept");
    }
}

static void listen_for(int listener, long long wait_ns) {
    struct epoll_event ready[64];
    if (wait_ns > 0) {
        /* as exact as epoll_pwait2, which an older Linux, C library or sandbox does not know */
        struct pollfd wish = {.fd = poll_number, .events = POLLIN};
        struct timespec within = {.tv_sec = wait_ns / SECOND_NS, .tv_nsec = wait_ns % SECOND_NS};
        if (ppoll(&wish, 1, &within, NULL) < 1) return;
    }
    int n = epoll_wait(poll_number, ready, 64, 0);
    for (int i = 0; i < n; i++)
        if (ready[i].data.fd == listener) accept_all(listener);
        else hear(&streams[ready[i].data.fd]);
}

static int listen_on(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) give_up("listen");
    /* By edge: where no number is left for a connection it waits, and nobody spins meanwhile. */
    struct epoll_event wish = {.events = EPOLLIN | EPOLLET, .data.fd = listener};
    poll_number = epoll_create1(0);
    if (epoll_ctl(poll_number, EPOLL_CTL_ADD, listener, &wish)) give_up("epoll");
    return listener;
}

static void raise_limit(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < STREAMS_MAX ? files.rlim_max : STREAMS_MAX;
    if (setrlimit(RLIMIT_NOFILE, &files)) give_up("open files");
}

static void go_to_core(int core) {
    cpu_set_t cores;
    struct sched_param rank = {.sched_priority = 10};
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    if (sched_setaffinity(0, sizeof cores, &cores)) give_up("core");
    sched_setscheduler(0, SCHED_FIFO, &rank); /* true times need a core to themselves; not everybody may */
}

int main(int argc, char **argv) {
    if (argc != 6 || atoi(argv[4]) < 2) {
        fprintf(stderr, "server PORT TTFT_MS ITL_MS TOKENS CORE, with two tokens or more\n");
        return 2;
    }
    ttft_ns = atoll(argv[2]) * 1000000;
    itl_ns = atoll(argv[3]) * 1000000;
    tokens = atoi(argv[4]);
    if (atoi(argv[5]) >= 0) go_to_core(atoi(argv[5]));
    prctl(PR_SET_TIMERSLACK, 1); /* without a rank, waits are else 50 us too long */
    make_texts();
    raise_limit();
    int listener = listen_on(atoi(argv[1]));
    for (;;) {
        send_due();
        Stream *stream = next_due();
        listen_for(listener, stream ? stream->due_ns - now_ns() : SECOND_NS);
    }
}
