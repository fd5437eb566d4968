/* The thread of _reader_thread.h, and what may be done to its streams meanwhile. */
#define _GNU_SOURCE
#include "_reader_thread.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AT_ONCE 256
#define TIMES_FIRST 64
#define REST_NS 200000 /* to wake for each token would cost more than to read it: so late one may be dated */

static int64_t now_ns(void) { /* the clock of time.perf_counter_ns */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void lock(Reader *self) { pthread_mutex_lock(&self->lock); }
static void unlock(Reader *self) { pthread_mutex_unlock(&self->lock); }

/* --- Under the lock --- */

static void start_waiting(Reader *self, Stream *stream) {
    if (stream->is_waiting || stream->is_held) return;
    stream->is_waiting = 1;
    stream->after = NULL;
    stream->before = self->last;
    if (self->last) self->last->after = stream;
    self->last = stream;
    if (self->first) return;
    self->first = stream;
    reader_ring(self);
}

static void stop_waiting(Reader *self, Stream *stream) {
    if (!stream->is_waiting) return;
    stream->is_waiting = 0;
    *(stream->before ? &stream->before->after : &self->first) = stream->after;
    *(stream->after ? &stream->after->before : &self->last) = stream->before;
}

static int start_polling(Reader *self, Stream *stream) {
    struct epoll_event wish = {.events = EPOLLIN, .data.fd = stream->number};
    if (stream->is_polled) return 0;
    if (epoll_ctl(self->poll, EPOLL_CTL_ADD, stream->number, &wish)) return errno;
    stream->is_polled = 1;
    return 0;
}

static void stop_polling(Reader *self, Stream *stream) {
    if (stream->is_polled) epoll_ctl(self->poll, EPOLL_CTL_DEL, stream->number, NULL);
    stream->is_polled = 0;
}

static void end_with(Reader *self, Stream *stream, int error) {
    stream->error = error;
    stream->is_over = 1;
    stop_polling(self, stream);
    start_waiting(self, stream);
}

static int date(Times *times, ptrdiff_t count, int64_t at_ns) {
    if (times->room - times->count < count) {
        ptrdiff_t room = times->room ? 2 * times->room : TIMES_FIRST;
        while (room - times->count < count) room *= 2;
        int64_t *more = realloc(times->at_ns, room * sizeof *more);
        if (more == NULL) return 0;
        times->at_ns = more;
        times->room = room;
    }
    for (ptrdiff_t i = 0; i < count; i++) times->at_ns[times->count++] = at_ns;
    times->coalesced_reads += count > 1;
    return 1;
}

static int is_dated(Reader *self, Stream *stream, ptrdiff_t size, int64_t at_ns) {
    if (stream->form.before == NULL || stream->first || stream->is_held || size > stream->room_bytes) return 0;
    ptrdiff_t count = ullage_tokens_of_read(self->buffer, self->buffer + size, &stream->form);
    if (count == 0 || !date(&stream->times, count, at_ns)) return 0;
    stream->times.read_bytes += size;
    stream->room_bytes -= size;
    return 1;
}

static void keep(Reader *self, Stream *stream, ptrdiff_t size, int64_t at_ns) {
    Kept *one = malloc(sizeof *one + size);
    if (one == NULL) {
        end_with(self, stream, ENOMEM);
        return;
    }
    one->next = NULL;
    one->at_ns = at_ns;
    one->size = size;
    memcpy(one->data, self->buffer, size);
    *(stream->first ? &stream->last->next : &stream->first) = one;
    stream->last = one;
    stream->kept_bytes += sizeof *one + size;
    self->kept_bytes += sizeof *one + size;
    if (size == 0) stream->is_over = 1;
    if (size == 0 || stream->kept_bytes > KEPT_BYTES_MAX || self->kept_bytes > ALL_KEPT_BYTES_MAX)
        stop_polling(self, stream);
    start_waiting(self, stream);
}

static void tell_of_reads(Reader *self) {
    self->reads++;
    if (self->told_every && self->reads % self->told_every == 0 && write(self->told, ".", 1) < 0)
        self->told_every = 0; /* nobody listens any more */
}

static void read_once(Reader *self, Stream *stream) {
    ssize_t size = recv(stream->number, self->buffer, READ_BYTES, MSG_DONTWAIT);
    if (size < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) end_with(self, stream, errno);
        return;
    }
    int64_t at_ns = now_ns();
    if (!is_dated(self, stream, size, at_ns)) keep(self, stream, size, at_ns);
    tell_of_reads(self);
}

/* --- The thread --- */

static void *read_on(void *of) {
    Reader *self = of;
    struct epoll_event ready[AT_ONCE];
    struct timespec rest = {.tv_nsec = REST_NS};
    int count = AT_ONCE;
    reader_go_first();
    for (;;) {
        if (count < AT_ONCE) nanosleep(&rest, NULL);
        count = epoll_wait(self->poll, ready, AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            int number = ready[i].data.fd;
            if (number == self->quit) return NULL;
            lock(self);
            /* it may have been disarmed since, or be the number of another: then nothing is there to read */
            Stream *stream = number < self->streams_max ? self->streams[number] : NULL;
            if (stream && stream->is_polled) read_once(self, stream);
            unlock(self);
        }
    }
}

static int start(Reader *self) {
    sigset_t all, before;
    if (self->is_running) return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are Python's */
    int error = pthread_create(&self->thread, NULL, read_on, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    self->is_running = error == 0;
    return error;
}

/* --- For Python --- */

int reader_open(Reader *self) {
    self->process = getpid();
    self->poll = epoll_create1(EPOLL_CLOEXEC);
    self->bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    self->quit = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event wish = {.events = EPOLLIN, .data.fd = self->quit};
    if (self->poll < 0 || self->bell < 0 || self->quit < 0) return errno;
    if (epoll_ctl(self->poll, EPOLL_CTL_ADD, self->quit, &wish)) return errno;
    return pthread_mutex_init(&self->lock, NULL);
}

void reader_close(Reader *self) {
    uint64_t one = 1;
    if (self->is_running && reader_is_mine(self) && write(self->quit, &one, sizeof one) > 0)
        pthread_join(self->thread, NULL);
    if (self->poll >= 0) close(self->poll);
    if (self->bell >= 0) close(self->bell);
    if (self->quit >= 0) close(self->quit);
    free(self->streams);
}

int reader_is_mine(const Reader *self) { return self->process == getpid(); }

void reader_ring(Reader *self) {
    uint64_t one = 1;
    while (write(self->bell, &one, sizeof one) < 0 && errno == EINTR) continue;
}

Stream *reader_next_waiting(Reader *self) {
    lock(self);
    Stream *stream = self->first;
    if (stream) {
        stop_waiting(self, stream);
        stream->is_held = 1;
    }
    unlock(self);
    return stream;
}

int reader_has_waiting(Reader *self) {
    lock(self);
    int is_any = self->first != NULL;
    unlock(self);
    return is_any;
}

void reader_tell_of_reads(Reader *self, int number, int64_t every) {
    lock(self);
    self->told = number;
    self->told_every = every;
    unlock(self);
}

static int seat(Reader *self, Stream *stream) {
    if (stream->number >= self->streams_max) {
        int most = 2 * stream->number + 64;
        Stream **more = realloc(self->streams, most * sizeof *more);
        if (more == NULL) return ENOMEM;
        memset(more + self->streams_max, 0, (most - self->streams_max) * sizeof *more);
        self->streams = more;
        self->streams_max = most;
    }
    self->streams[stream->number] = stream;
    return 0;
}

int stream_arm(Reader *self, Stream *stream, const Form *form, int64_t room_bytes) {
    if (!reader_is_mine(self)) return ECHILD;
    int error = start(self);
    if (error) return error;
    lock(self);
    stream->is_over = stream->is_held = 0;
    error = seat(self, stream);
    if (error == 0) {
        stream->is_armed = 1;
        stream->form = *form;
        stream->room_bytes = room_bytes;
        if (stream->first || stream->error) start_waiting(self, stream);
        error = start_polling(self, stream);
    }
    unlock(self);
    if (error) stream_disarm(self, stream);
    return error;
}

void stream_disarm(Reader *self, Stream *stream) {
    if (!stream->is_armed || !reader_is_mine(self)) return;
    lock(self);
    stop_polling(self, stream);
    stop_waiting(self, stream);
    self->streams[stream->number] = NULL;
    stream->is_armed = 0;
    stream->form.before = NULL;
    unlock(self);
}

Kept *stream_next_kept(Reader *self, Stream *stream) {
    lock(self);
    Kept *one = stream->first;
    if (one) {
        stream->first = one->next;
        stream->kept_bytes -= sizeof *one + one->size;
        self->kept_bytes -= sizeof *one + one->size;
    }
    unlock(self);
    return one;
}

Times stream_take_times(Reader *self, Stream *stream) {
    lock(self);
    Times times = stream->times;
    stream->times = (Times){0};
    unlock(self);
    return times;
}

int stream_take_error(Reader *self, Stream *stream) {
    lock(self);
    int error = stream->first ? 0 : stream->error;
    if (error) stream->error = 0;
    unlock(self);
    return error;
}

int stream_release(Reader *self, Stream *stream, const Form *form, int64_t room_bytes) {
    lock(self);
    int is_all = stream->first == NULL && stream->error == 0;
    if (is_all && stream->is_armed) {
        stream->is_held = 0;
        stream->form = *form;
        stream->room_bytes = room_bytes;
        int error = stream->is_over ? 0 : start_polling(self, stream);
        if (error) end_with(self, stream, error);
    }
    unlock(self);
    return is_all;
}

void stream_put_back(Reader *self, Stream *stream) {
    lock(self);
    stream->is_held = 0;
    if (stream->is_armed && (stream->first || stream->error)) start_waiting(self, stream);
    unlock(self);
}

void stream_clear(Reader *self, Stream *stream) {
    Kept *one;
    if (!reader_is_mine(self)) return; /* whoever held the lock is not in this process */
    stream_disarm(self, stream);
    while ((one = stream_next_kept(self, stream))) free(one);
    free(stream_take_times(self, stream).at_ns);
}
