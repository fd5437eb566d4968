/* What workers/steady.py and the reads of wire.py do, in C: a thread reads, dates and recognises without Python.
 *
 * A read that is nothing but tokens of the known form is dated and forgotten. Every other one becomes `bytes`
 * and goes to Attempt._take_other, as in Python: there is one reader of answers, and this is only its short cut.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

#include "_reader_thread.h"

#define AT_ONCE 256

static PyObject *name_of_take_other, *name_of_date_tokens, *name_of_date_reads;

typedef struct {
    PyObject_HEAD
    Reader reader;
} ReaderObject;

typedef struct reading Reading;

/* --- Steady: the part of an attempt that knows what its next token looks like --- */

typedef struct {
    PyObject_HEAD
    PyObject *reply;
    PyObject *form; /* the EventForm, or None; these two are its bytes, or NULL */
    PyObject *before, *after;
    Reading *reading; /* that listens for it now, or NULL: borrowed */
    long long read_bytes, bytes_max;
} Steady;

static int steady_init(Steady *self, PyObject *args, PyObject *named) {
    static char *names[] = {"reply", "bytes_max", NULL};
    PyObject *reply;
    if (!PyArg_ParseTupleAndKeywords(args, named, "OL", names, &reply, &self->bytes_max)) return -1;
    Py_XSETREF(self->reply, Py_NewRef(reply));
    Py_XSETREF(self->form, Py_NewRef(Py_None));
    return 0;
}

static int steady_traverse(Steady *self, visitproc visit, void *arg) {
    Py_VISIT(self->reply);
    Py_VISIT(self->form);
    return 0;
}

static int steady_clear(Steady *self) {
    Py_CLEAR(self->reply);
    Py_CLEAR(self->form);
    Py_CLEAR(self->before);
    Py_CLEAR(self->after);
    return 0;
}

static void steady_dealloc(Steady *self) {
    PyObject_GC_UnTrack(self);
    steady_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *steady_expect(Steady *self, PyObject *form) {
    PyObject *before = NULL, *after = NULL;
    if (form != Py_None) {
        before = PyObject_GetAttrString(form, "before");
        after = before ? PyObject_GetAttrString(form, "after") : NULL;
        if (after && !(PyBytes_Check(before) && PyBytes_Check(after)))
            PyErr_SetString(PyExc_TypeError, "a form is of bytes");
        if (PyErr_Occurred()) {
            Py_XDECREF(before);
            Py_XDECREF(after);
            return NULL;
        }
    }
    Py_XSETREF(self->before, before);
    Py_XSETREF(self->after, after);
    Py_XSETREF(self->form, Py_NewRef(form));
    Py_RETURN_NONE;
}

static Form form_of(PyObject *before, PyObject *after) {
    if (before == NULL) return (Form){0};
    return (Form){
        .before = (const byte *)PyBytes_AS_STRING(before),
        .after = (const byte *)PyBytes_AS_STRING(after),
        .before_bytes = PyBytes_GET_SIZE(before),
        .after_bytes = PyBytes_GET_SIZE(after),
    };
}

/* One read: True when nothing more will come. `data` is the same bytes as an object, or NULL where none was made. */
static PyObject *folded(Steady *self, const void *read, Py_ssize_t size, PyObject *data, PyObject *at_ns) {
    self->read_bytes += size;
    if (self->before && self->read_bytes <= self->bytes_max) {
        Form form = form_of(self->before, self->after);
        const byte *at = read;
        PyObject *count = PyLong_FromSsize_t(ullage_tokens_of_read(at, at + size, &form));
        if (count == NULL) return NULL;
        int is_known = PyObject_IsTrue(count);
        PyObject *done = !is_known ? Py_NewRef(Py_None)
                                   : PyObject_CallMethodObjArgs(self->reply, name_of_date_tokens, count, at_ns, NULL);
        Py_DECREF(count);
        if (done == NULL) return NULL;
        Py_DECREF(done);
        if (is_known) Py_RETURN_FALSE;
    }
    data = data ? Py_NewRef(data) : PyBytes_FromStringAndSize(read, size);
    if (data == NULL) return NULL;
    PyObject *done = PyObject_CallMethodObjArgs((PyObject *)self, name_of_take_other, data, at_ns, NULL);
    Py_DECREF(data);
    return done;
}

static PyObject *steady_take(Steady *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "take(data: bytes, at_ns: int)");
        return NULL;
    }
    return folded(self, PyBytes_AS_STRING(args[0]), PyBytes_GET_SIZE(args[0]), args[0], args[1]);
}

static int move_times(Reading *self);

static PyObject *steady_catch_up(Steady *self, PyObject *none) {
    (void)none;
    if (self->reading && move_times(self->reading) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef steady_methods[] = {
    {"take", (PyCFunction)(void (*)(void))steady_take, METH_FASTCALL, "One read; True when nothing more will come."},
    {"catch_up", (PyCFunction)steady_catch_up, METH_NOARGS, "The reply has all tokens that were only dated."},
    {"_expect", (PyCFunction)steady_expect, METH_O, "What the next tokens look like; None where nothing is known."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef steady_members[] = {
    {"read_bytes", T_LONGLONG, offsetof(Steady, read_bytes), 0, "Of the whole answer, as far as it is caught up."},
    {"steady", T_OBJECT, offsetof(Steady, form), READONLY, "The EventForm that is expected, or None."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject steady_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "loadtest.workers._reader.Steady",
    .tp_basicsize = sizeof(Steady),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)steady_init,
    .tp_traverse = (traverseproc)steady_traverse,
    .tp_clear = (inquiry)steady_clear,
    .tp_dealloc = (destructor)steady_dealloc,
    .tp_methods = steady_methods,
    .tp_members = steady_members,
};

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
    return form_of(self->before, self->after);
}

/* What was dated goes to the reply, before anything that came later; -1 with an exception. */
static int move_times(Reading *self) {
    Times times = stream_take_times(&self->of->reader, &self->stream);
    if (times.count == 0) return 0; /* nor is anything to be freed */
    self->answer->read_bytes += times.read_bytes;
    PyObject *read = PyBytes_FromStringAndSize((char *)times.at_ns, times.count * sizeof *times.at_ns);
    PyObject *coalesced = PyLong_FromLongLong(times.coalesced_reads), *done = NULL;
    free(times.at_ns);
    if (read && coalesced)
        done = PyObject_CallMethodObjArgs(self->answer->reply, name_of_date_reads, read, coalesced, NULL);
    Py_XDECREF(read);
    Py_XDECREF(coalesced);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* 1 when the listener has enough, -1 with an exception. */
static int give(Reading *self, const Kept *one) {
    PyObject *at_ns = PyLong_FromLongLong(one->at_ns), *done = NULL;
    PyObject *take = Py_NewRef(self->take); /* it may stop this reading */
    if (at_ns)
        done = self->answer ? folded(self->answer, one->data, one->size, NULL, at_ns)
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
    if (move_times(self) < 0) return -1;
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
    if (PyCFunction_Check(take) && PyCFunction_GET_FUNCTION(take) == (PyCFunction)(void (*)(void))steady_take) {
        self->answer = (Steady *)PyCFunction_GET_SELF(take);
        self->answer->reading = self;
    }
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
    if (self->take && !self->has_ended) {
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
    name_of_take_other = PyUnicode_InternFromString("_take_other");
    name_of_date_tokens = PyUnicode_InternFromString("date_tokens");
    name_of_date_reads = PyUnicode_InternFromString("date_reads");
    if (!name_of_take_other || !name_of_date_tokens || !name_of_date_reads) return NULL;
    PyObject *module = PyModule_Create(&reader_module);
    if (module == NULL) return NULL;
    if (PyModule_AddType(module, &steady_type) < 0 || PyModule_AddType(module, &reading_type) < 0 ||
        PyModule_AddType(module, &reader_type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
