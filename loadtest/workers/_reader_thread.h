/* One thread that reads, dates and recognises what listened streams receive. Nothing here knows Python.
 *
 * A read that is nothing but tokens of the expected form leaves their times. Any other one is kept, with its
 * time, and so is all that follows it until Python has looked: what was kept may change the form.
 * Every field of a Stream belongs to the Reader's lock while the stream is armed.
 */
#ifndef ULLAGE_READER_THREAD_H
#define ULLAGE_READER_THREAD_H

#include "_reader_form.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#define READ_BYTES 65536
#define KEPT_BYTES_MAX (1 << 20)        /* of one stream: then it is not read until Python has looked */
#define ALL_KEPT_BYTES_MAX (64 << 20)   /* of all of them */

typedef struct kept {
    struct kept *next;
    int64_t at_ns;
    ptrdiff_t size; /* 0: the peer has ended the stream */
    byte data[];
} Kept;

typedef struct {
    int64_t *at_ns;
    ptrdiff_t count, room;
    int64_t coalesced_reads, read_bytes; /* of the reads that had these tokens */
} Times;

typedef struct stream {
    int number;
    char is_armed;    /* the thread may read it */
    char is_polled;   /* the epoll has it: not while too much is kept, nor after its end */
    char is_over;     /* its end or an error was read */
    char is_waiting;  /* in the list of those that have something for Python */
    char is_held;     /* Python looks at what was kept: nothing is recognised meanwhile */
    int error;        /* of the system, after all that was kept; 0 for none */
    Form form;
    int64_t room_bytes; /* how much more may be recognised */
    Times times;
    Kept *first, *last;
    ptrdiff_t kept_bytes;
    struct stream *before, *after; /* in that list */
} Stream;

typedef struct {
    pthread_mutex_t lock;
    pthread_t thread;
    pid_t process; /* a fork has a copy of this, but neither the thread nor a say in the epoll */
    char is_running;
    int poll, bell, quit;
    Stream **streams; /* by number */
    int streams_max;
    Stream *first, *last; /* those that have something for Python: the bell rings when there is a first */
    ptrdiff_t kept_bytes;
    int64_t reads, told_every;
    int told; /* where a byte goes after each `told_every` reads */
    byte buffer[READ_BYTES];
} Reader;

/* 0 or an errno, as in all that may fail. */
int reader_open(Reader *self);
void reader_close(Reader *self);
int reader_is_mine(const Reader *self);
Stream *reader_next_waiting(Reader *self); /* held then, by Python; NULL when none waits */
int reader_has_waiting(Reader *self);
void reader_ring(Reader *self);
void reader_tell_of_reads(Reader *self, int number, int64_t every);

/* Called by the thread itself. */
void reader_go_first(void);

/* The thread begins to read it; what is still kept from before comes first. The bytes of `form` must stay until
 * the stream is held or disarmed. */
int stream_arm(Reader *self, Stream *stream, const Form *form, int64_t room_bytes);
/* The thread touches neither the file nor the stream any more when this returns. */
void stream_disarm(Reader *self, Stream *stream);
/* The oldest read that was kept, to be freed by the caller; NULL when there is none, or an error is next. */
Kept *stream_next_kept(Reader *self, Stream *stream);
/* What was dated since the last call, to be freed by the caller. */
Times stream_take_times(Reader *self, Stream *stream);
/* What ended it, after all that was kept; 0 if nothing did, or when it was asked for before. */
int stream_take_error(Reader *self, Stream *stream);
/* Python has looked at all: True, and the thread recognises by `form` again; False when more was kept meanwhile. */
int stream_release(Reader *self, Stream *stream, const Form *form, int64_t room_bytes);
/* Python has not: it will come back. */
void stream_put_back(Reader *self, Stream *stream);
void stream_clear(Reader *self, Stream *stream);

#endif
