/* The reads of plain sockets, as wire.py's LoopReading does them, by a thread that needs no Python for a token. */
#include "_reader_types.h"

#include <errno.h>
#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

#define AT_ONCE 256

typedef struct {
    PyObject_HEAD
    Reader reader;
} ReaderObject;

/* --- Reading: one plain socket, read by the thread while somebody listens --- */

struct reading {
    PyObject_HEAD
    ReaderObject *of;
    PyObject *take, *wake; /* while somebody listens */
    Steady *answer;        /* whose own method `take` is, or NULL: borrowed from `take` */
    PyObject *before, *after; /* what the thread's form points into */
    Stream stream;
    char has_ended; /* the listener was told */
};

static PyTypeObject reader_type;

static PyObject *reading_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    static char *names[] = {"reader", "number", NULL};
    PyObject *of;
    int number;
    if (!PyArg_ParseTupleAndKeywords(args, named, "O!i", names, &reader_type, &of, &number)) return NULL;
    Reading *self = (Reading *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->of = (ReaderObject *)Py_NewRef(of);
    self->stream.number = number;
    return (PyObject *)self;
}

static int reading_traverse(Reading *self, visitproc visit, void *arg) {
    Py_VISIT(self->of);
    Py_VISIT(self->take);
    Py_VISIT(self->wake);
    return 0;
}

static void leave(Reading *self) {
    if (self->of) stream_disarm(&self->of->reader, &self->stream);
    if (self->answer) self->answer->reading = NULL;
    self->answer = NULL;
    Py_CLEAR(self->take);
    Py_CLEAR(self->wake);
    Py_CLEAR(self->before);
    Py_CLEAR(self->after);
}

static int reading_clear(Reading *self) {
    leave(self);
    return 0;
}

static void reading_dealloc(Reading *self) {
    PyObject_GC_UnTrack(self);
    leave(self);
    stream_clear(&self->of->reader, &self->stream);
    Py_CLEAR(self->of);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* What the thread may recognise from now on; it must not be recognising while this is called. */
static Form form_of_answer(Reading *self, int64_t *room_bytes) {
    Steady *answer = self->answer;
    if (answer == NULL || answer->before == NULL) return (Form){0};
    Py_XSETREF(self->before, Py_NewRef(answer->before));
    Py_XSETREF(self->after, Py_NewRef(answer->after));
    *room_bytes = answer->bytes_max - answer->read_bytes;
    return ullage_form_of(self->before, self->after);
}

int ullage_move_times(Reading *self) {
    if (!reader_is_mine(&self->of->reader)) return 0; /* a fork: whoever held the lock is not in this process */
    Times times = stream_take_times(&self->of->reader, &self->stream);
    if (times.count == 0) return 0; /* nor is anything to be freed */
    self->answer->read_bytes += times.read_bytes;
    PyObject *done = PyObject_CallMethod(self->answer->reply, "date_reads", "y#L", (char *)times.at_ns,
                                         (Py_ssize_t)(times.count * sizeof *times.at_ns),
                                         (long long)times.coalesced_reads);
    free(times.at_ns);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* 1 when the listener has enough, -1 with an exception. */
static int give(Reading *self, const Kept *one) {
    PyObject *at_ns = PyLong_FromLongLong(one->at_ns), *done = NULL;
    PyObject *take = Py_NewRef(self->take); /* it may stop this reading */
    if (at_ns)
        done = self->answer ? ullage_folded(self->answer, one->data, one->size, NULL, at_ns)
                            : PyObject_CallFunction(take, "y#O", one->data, (Py_ssize_t)one->size, at_ns);
    Py_DECREF(take);
    Py_XDECREF(at_ns);
    int has_enough = done ? PyObject_IsTrue(done) : -1;
    Py_XDECREF(done);
    return has_enough;
}

/* Gives the listener all that was read; 1 when it has enough and the rest is kept, -1 with an exception. */
static int look(Reading *self) {
    Reader *reader = &self->of->reader;
    Form form;
    int64_t room_bytes = 0;
    if (ullage_move_times(self) < 0) return -1;
    do {
        Kept *one;
        while ((one = stream_next_kept(reader, &self->stream))) {
            int ended = give(self, one);
            free(one);
            if (ended) return ended;
        }
        int error = stream_take_error(reader, &self->stream);
        if (error) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        form = form_of_answer(self, &room_bytes);
    } while (!stream_release(reader, &self->stream, &form, room_bytes));
    return 0;
}

/* The greenlet that listens wakes, and stops this reading. */
static PyObject *wake_with(Reading *self, PyObject *ended) {
    PyObject *wake = Py_NewRef(self->wake);
    self->has_ended = 1;
    PyObject *done = PyObject_CallOneArg(wake, ended);
    Py_DECREF(wake);
    return done;
}

/* What goes wrong wakes the greenlet it belongs to; the loop goes on for the others. */
static PyObject *wake_with_error(Reading *self) {
    PyObject *type, *error, *trace;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) { /* Ctrl-C is nobody's answer */
        stream_put_back(&self->of->reader, &self->stream);
        return NULL;
    }
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace) PyException_SetTraceback(error, trace);
    PyObject *done = wake_with(self, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return done;
}

static PyObject *hear(Reading *self) {
    int ended = look(self);
    if (ended < 0) return wake_with_error(self);
    return ended ? wake_with(self, Py_None) : Py_NewRef(Py_None);
}

static PyObject *reading_listen(Reading *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || self->take) {
        PyErr_SetString(PyExc_TypeError, "listen(take, wake), by one at a time");
        return NULL;
    }
    int64_t room_bytes = 0;
    PyObject *take = args[0];
    self->take = Py_NewRef(take);
    self->wake = Py_NewRef(args[1]);
    self->has_ended = 0;
    self->answer = ullage_steady_of(take);
    if (self->answer) self->answer->reading = self;
    Form form = form_of_answer(self, &room_bytes);
    int error = stream_arm(&self->of->reader, &self->stream, &form, room_bytes);
    if (error) {
        leave(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *reading_stop(Reading *self, PyObject *none) {
    (void)none;
    int ended = 0;
    stream_disarm(&self->of->reader, &self->stream);
    if (self->take && !self->has_ended && reader_is_mine(&self->of->reader)) {
        self->has_ended = 1;
        ended = look(self);
    }
    leave(self);
    return ended < 0 ? NULL : PyBool_FromLong(ended);
}

static PyMethodDef reading_methods[] = {
    {"listen", (PyCFunction)(void (*)(void))reading_listen, METH_FASTCALL,
     "Every read goes to `take`; `wake` gets None when that has enough, or what it raised."},
    {"stop", (PyCFunction)reading_stop, METH_NOARGS,
     "The file is not touched any more. What was read before is given; True when that was enough."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject reading_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "loadtest.workers._reader.Reading",
    .tp_basicsize = sizeof(Reading),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = reading_new,
    .tp_traverse = (traverseproc)reading_traverse,
    .tp_clear = (inquiry)reading_clear,
    .tp_dealloc = (destructor)reading_dealloc,
    .tp_methods = reading_methods,
};

/* --- Reader: the thread, and what the event loop calls when its bell rings --- */

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    (void)args, (void)named;
    ReaderObject *self = (ReaderObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    int error = reader_open(&self->reader);
    if (error) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)self;
}

static void reader_dealloc(ReaderObject *self) {
    reader_close(&self->reader);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *reader_fileno(ReaderObject *self, PyObject *none) {
    (void)none;
    return PyLong_FromLong(self->reader.bell);
}

static PyObject *reader_hear(ReaderObject *self, PyObject *none) {
    (void)none;
    uint64_t rung;
    Stream *stream;
    if (read(self->reader.bell, &rung, sizeof rung) < 0 && errno != EAGAIN && errno != EINTR)
        return PyErr_SetFromErrno(PyExc_OSError);
    for (int i = 0; i < AT_ONCE && (stream = reader_next_waiting(&self->reader)); i++) {
        Reading *one = (Reading *)((char *)stream - offsetof(Reading, stream));
        Py_INCREF(one);
        PyObject *done = hear(one);
        Py_DECREF(one);
        if (done == NULL) {
            reader_ring(&self->reader);
            return NULL;
        }
        Py_DECREF(done);
    }
    if (reader_has_waiting(&self->reader)) reader_ring(&self->reader); /* after the greenlets' turn */
    Py_RETURN_NONE;
}

static PyObject *reader_tell(ReaderObject *self, PyObject *args) {
    int number;
    long long every;
    if (!PyArg_ParseTuple(args, "iL", &number, &every)) return NULL;
    reader_tell_of_reads(&self->reader, number, every);
    Py_RETURN_NONE;
}

static PyMethodDef reader_methods[] = {
    {"fileno", (PyCFunction)reader_fileno, METH_NOARGS, "Readable when `hear` has something to do."},
    {"hear", (PyCFunction)reader_hear, METH_NOARGS, "Gives the listeners what was read and was no mere token."},
    {"tell", (PyCFunction)reader_tell, METH_VARARGS, "Writes one byte to the file after each so many reads."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef reader_members[] = {
    {"reads", T_LONGLONG, offsetof(ReaderObject, reader.reads), READONLY, "Of all streams so far."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject reader_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "loadtest.workers._reader.Reader",
    .tp_basicsize = sizeof(ReaderObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = reader_new,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_methods = reader_methods,
    .tp_members = reader_members,
};

static struct PyModuleDef reader_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "loadtest.workers._reader",
    .m_doc = "The read of one token, in C.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__reader(void) {
    PyObject *module = PyModule_Create(&reader_module);
    if (module == NULL) return NULL;
    if (PyModule_AddType(module, &ullage_steady_type) < 0 || PyModule_AddType(module, &reading_type) < 0 ||
        PyModule_AddType(module, &reader_type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
