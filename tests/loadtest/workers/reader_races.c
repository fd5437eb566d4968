/* Threads and streams of the reader in C, without Python: to be built with a sanitizer and run to its end.
 *
 * One thread speaks on every socket, the reader's own reads, and this one looks, stops, listens again and closes
 * at any time. What was said must have come, in order, with times that never go back.
 */
#include "_reader_thread.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAMS 24
#define WORDS 400

static const char token[] = "5\r\n<ab>!\r\n";
static const char odd[] = "4\r\n<a>?\r\n";
static const Form known = {(const byte *)"<", (const byte *)">!", 1, 2};

typedef struct {
    Stream stream;
    int peer, is_listened;
    unsigned seed;
    int64_t tokens, odd_bytes, last_ns;
} One;

static One all[STREAMS];
static Reader reader;
static int turn;

static void fail(const char *why) {
    fprintf(stderr, "turn %d: %s\n", turn, why);
    exit(1);
}

static void *speak(void *none) {
    for (int word = 0; word < WORDS; word++) {
        for (int i = 0; i < STREAMS; i++) {
            const char *said = rand_r(&all[i].seed) % 8 ? token : odd;
            if (write(all[i].peer, said, strlen(said)) < 0) fail("nobody listens");
        }
        sched_yield();
    }
    for (int i = 0; i < STREAMS; i++) shutdown(all[i].peer, SHUT_WR);
    return none;
}

static void see(One *one, int64_t at_ns) {
    if (at_ns < one->last_ns) fail("a time went back");
    one->last_ns = at_ns;
}

/* As Python does; what was kept is counted by its bytes, for reads may hold several words. */
static int look(One *one) {
    Times times = stream_take_times(&reader, &one->stream);
    for (ptrdiff_t i = 0; i < times.count; i++) see(one, times.at_ns[i]);
    one->tokens += times.count;
    free(times.at_ns);
    do {
        Kept *kept;
        while ((kept = stream_next_kept(&reader, &one->stream))) {
            ptrdiff_t size = kept->size;
            see(one, kept->at_ns);
            one->odd_bytes += size;
            free(kept);
            if (size == 0) return 1;
        }
        if (stream_take_error(&reader, &one->stream)) fail("an error");
    } while (!stream_release(&reader, &one->stream, &known, 1 << 30));
    return 0;
}

static int64_t said_bytes(unsigned seed) {
    int64_t bytes = 0;
    for (int word = 0; word < WORDS; word++) bytes += strlen(rand_r(&seed) % 8 ? token : odd);
    return bytes;
}

int main(int count, char **words) {
    pthread_t speaker;
    unsigned dice = 1;
    int64_t recognised = 0;
    if (count != 2 || reader_open(&reader)) return 2;
    for (turn = 0; turn < atoi(words[1]); turn++) {
        int left = STREAMS;
        memset(all, 0, sizeof all);
        for (int i = 0; i < STREAMS; i++) {
            int ends[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 3;
            all[i].stream.number = ends[0];
            all[i].peer = ends[1];
            all[i].seed = turn * STREAMS + i;
        }
        pthread_create(&speaker, NULL, speak, NULL);
        while (left) {
            One *one = &all[rand_r(&dice) % STREAMS];
            int does = rand_r(&dice) % 4, has_ended = 0;
            if (one->stream.number < 0) continue;
            if (!one->is_listened) {
                if (stream_arm(&reader, &one->stream, &known, 1 << 30)) fail("not armed");
                one->is_listened = 1;
            } else if (does == 0) {
                stream_disarm(&reader, &one->stream);
                one->is_listened = 0;
                has_ended = look(one);
            } else if (does == 1) {
                Times times = stream_take_times(&reader, &one->stream);
                for (ptrdiff_t i = 0; i < times.count; i++) see(one, times.at_ns[i]);
                one->tokens += times.count;
                free(times.at_ns);
            } else {
                Stream *stream = reader_next_waiting(&reader);
                if (stream == NULL) continue;
                one = (One *)stream; /* its first member */
                if (does == 3 && rand_r(&dice) % 2) stream_put_back(&reader, stream);
                else has_ended = look(one);
            }
            if (has_ended) {
                stream_disarm(&reader, &one->stream);
                close(one->stream.number);
                close(one->peer);
                stream_clear(&reader, &one->stream);
                one->stream.number = -1;
                left--;
            }
        }
        pthread_join(speaker, NULL);
        for (int i = 0; i < STREAMS; i++) {
            int64_t token_bytes = all[i].tokens * (int64_t)strlen(token);
            if (token_bytes + all[i].odd_bytes != said_bytes(turn * STREAMS + i)) fail("bytes were lost");
            recognised += all[i].tokens;
        }
    }
    if (recognised == 0) fail("nothing was recognised");
    if (reader.kept_bytes || reader.first) fail("something was left");
    reader_close(&reader);
    printf("%lld\n", (long long)recognised);
    return 0;
}
