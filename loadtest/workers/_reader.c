/* The read of one token in C: what workers/steady.py and SocketWire._read do, with the same result.
 *
 * A read that is nothing but tokens of the known form is dated and forgotten. Every other one becomes `bytes`
 * and goes to Attempt._take_other, as in Python: there is one reader of answers, and this is only its short cut.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <unistd.h>

#define READ_BYTES 65536

typedef unsigned char byte;

static PyObject *name_of_take_other;

/* --- Recognising: bytes alone, nothing of Python --- */

static int in(byte b, byte first, byte last) { return first <= b && b <= last; }

static int hex_of(byte b) {
    if (in(b, '0', '9')) return b - '0';
    if (in(b, 'a', 'f')) return b - 'a' + 10;
    if (in(b, 'A', 'F')) return b - 'A' + 10;
    return -1;
}

static int is_plain(byte b) { return in(b, 0x20, 0x7f) && b != '"' && b != '\\'; }

/* The bytes of the escape at `at`, 0 if it is none (RFC 8259). */
static Py_ssize_t escape_bytes(const byte *at, const byte *end) {
    if (end - at < 2) return 0;
    if (at[1] && strchr("\"\\/bfnrt", at[1])) return 2;
    if (at[1] != 'u' || end - at < 6) return 0;
    for (int i = 2; i < 6; i++)
        if (hex_of(at[i]) < 0) return 0;
    return 6;
}

/* The bytes of the character of two to four bytes at `at`, 0 if it is none (RFC 3629, table 3-7 of Unicode). */
static Py_ssize_t character_bytes(const byte *at, const byte *end) {
    byte lead = at[0], low = 0x80, high = 0xbf;
    Py_ssize_t size = in(lead, 0xc2, 0xdf) ? 2 : in(lead, 0xe0, 0xef) ? 3 : in(lead, 0xf0, 0xf4) ? 4 : 0;
    if (size == 0 || end - at < size) return 0;
    if (lead == 0xe0) low = 0xa0;  /* shorter forms exist */
    if (lead == 0xed) high = 0x9f; /* surrogates */
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f; /* beyond U+10FFFF */
    if (!in(at[1], low, high)) return 0;
    for (Py_ssize_t i = 2; i < size; i++)
        if (!in(at[i], 0x80, 0xbf)) return 0;
    return size;
}

/* Something that may stand between the quotes of a JSON string. */
static int is_text(const byte *at, const byte *end) {
    while (at < end) {
        Py_ssize_t size = is_plain(*at) ? 1 : *at == '\\' ? escape_bytes(at, end) : character_bytes(at, end);
        if (size == 0) return 0;
        at += size;
    }
    return 1;
}

/* Where the body of the whole chunk at `at` begins; *body_end is where it ends. NULL if there is no such chunk. */
static const byte *chunk_body(const byte *at, const byte *end, const byte **body_end) {
    Py_ssize_t size = 0;
    const byte *digits = at;
    for (; at < end && at - digits < 8 && hex_of(*at) >= 0; at++) size = size * 16 + hex_of(*at);
    if (at == digits || size == 0 || end - at < 4 || size > end - at - 4) return NULL;
    if (memcmp(at, "\r\n", 2) || memcmp(at + 2 + size, "\r\n", 2)) return NULL;
    *body_end = at + 2 + size;
    return at + 2;
}

/* How many events of the form before-text-after a read is, each alone in its chunk; 0 if it is anything else. */
static Py_ssize_t tokens_of_read(const byte *at, const byte *end, PyObject *before, PyObject *after) {
    Py_ssize_t count = 0, head = PyBytes_GET_SIZE(before), tail = PyBytes_GET_SIZE(after);
    for (; at < end; count++) {
        const byte *body_end, *body = chunk_body(at, end, &body_end);
        if (body == NULL || body_end - body <= head + tail) return 0; /* an empty text is no example */
        if (memcmp(body, PyBytes_AS_STRING(before), head)) return 0;
        if (memcmp(body_end - tail, PyBytes_AS_STRING(after), tail)) return 0;
        if (!is_text(body + head, body_end - tail)) return 0;
        at = body_end + 2;
    }
    return count;
}

/* --- Steady: the part of an attempt that knows what its next token looks like --- */

typedef struct {
    PyObject_HEAD
    PyObject *date_one;  /* (at_ns): one token */
    PyObject *date_many; /* (count, at_ns): several of one read */
    PyObject *form;      /* the EventForm, or None; these two are its bytes, or NULL */
    PyObject *before, *after;
    long long read_bytes, bytes_max;
} Steady;

static int steady_init(Steady *self, PyObject *args, PyObject *named) {
    static char *names[] = {"date_one", "date_many", "bytes_max", NULL};
    PyObject *one, *many;
    if (!PyArg_ParseTupleAndKeywords(args, named, "OOL", names, &one, &many, &self->bytes_max)) return -1;
    Py_XSETREF(self->date_one, Py_NewRef(one));
    Py_XSETREF(self->date_many, Py_NewRef(many));
    Py_XSETREF(self->form, Py_NewRef(Py_None));
    return 0;
}

static int steady_traverse(Steady *self, visitproc visit, void *arg) {
    Py_VISIT(self->date_one);
    Py_VISIT(self->date_many);
    Py_VISIT(self->form);
    return 0;
}

static int steady_clear(Steady *self) {
    Py_CLEAR(self->date_one);
    Py_CLEAR(self->date_many);
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

/* One read: True when nothing more will come. `data` is the same bytes as an object, or NULL where none was made. */
static PyObject *folded(Steady *self, const char *read, Py_ssize_t size, PyObject *data, PyObject *at_ns) {
    PyObject *done;
    self->read_bytes += size;
    if (self->before && self->read_bytes <= self->bytes_max) {
        const byte *at = (const byte *)read;
        Py_ssize_t count = tokens_of_read(at, at + size, self->before, self->after);
        if (count) {
            done = count == 1 ? PyObject_CallOneArg(self->date_one, at_ns)
                              : PyObject_CallFunction(self->date_many, "nO", count, at_ns);
            if (done == NULL) return NULL;
            Py_DECREF(done);
            Py_RETURN_FALSE;
        }
    }
    data = data ? Py_NewRef(data) : PyBytes_FromStringAndSize(read, size);
    if (data == NULL) return NULL;
    done = PyObject_CallMethodObjArgs((PyObject *)self, name_of_take_other, data, at_ns, NULL);
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

static PyMethodDef steady_methods[] = {
    {"take", (PyCFunction)(void (*)(void))steady_take, METH_FASTCALL, "One read; True when nothing more will come."},
    {"_expect", (PyCFunction)steady_expect, METH_O, "What the next tokens look like; None where nothing is known."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef steady_members[] = {
    {"read_bytes", T_LONGLONG, offsetof(Steady, read_bytes), 0, "Of the whole answer so far."},
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

/* --- Reading: what the ear calls when a plain socket has something to read --- */

typedef struct {
    PyObject_HEAD
    PyObject *take, *clock, *wake;
    Steady *answer; /* whose own method `take` is, or NULL: borrowed from `take` */
    int number;
} Reading;

static PyObject *reading_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    static char *names[] = {"number", "take", "clock", "wake", NULL};
    PyObject *take, *clock, *wake;
    int number;
    if (!PyArg_ParseTupleAndKeywords(args, named, "iOOO", names, &number, &take, &clock, &wake)) return NULL;
    Reading *self = (Reading *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->number = number;
    self->take = Py_NewRef(take);
    self->clock = Py_NewRef(clock);
    self->wake = Py_NewRef(wake);
    if (PyCFunction_Check(take) && PyCFunction_GET_FUNCTION(take) == (PyCFunction)(void (*)(void))steady_take)
        self->answer = (Steady *)PyCFunction_GET_SELF(take);
    return (PyObject *)self;
}

static int reading_traverse(Reading *self, visitproc visit, void *arg) {
    Py_VISIT(self->take);
    Py_VISIT(self->clock);
    Py_VISIT(self->wake);
    return 0;
}

static int reading_clear(Reading *self) {
    self->answer = NULL;
    Py_CLEAR(self->take);
    Py_CLEAR(self->clock);
    Py_CLEAR(self->wake);
    return 0;
}

static void reading_dealloc(Reading *self) {
    PyObject_GC_UnTrack(self);
    reading_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* One read and what comes of it; NULL with an exception. */
static PyObject *read_once(Reading *self) {
    char buffer[READ_BYTES]; /* only what is read is touched */
    ssize_t size = read(self->number, buffer, READ_BYTES);
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) Py_RETURN_FALSE; /* it stays ready */
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyObject *at_ns = PyObject_CallNoArgs(self->clock);
    if (at_ns == NULL) return NULL;
    PyObject *done = self->answer ? folded(self->answer, buffer, size, NULL, at_ns)
                                  : PyObject_CallFunction(self->take, "y#O", buffer, (Py_ssize_t)size, at_ns);
    Py_DECREF(at_ns);
    return done;
}

/* What goes wrong wakes the greenlet it belongs to; the loop goes on for the others. */
static PyObject *wake_with_error(Reading *self) {
    PyObject *type, *error, *trace, *done;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return NULL; /* Ctrl-C is nobody's answer */
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace) PyException_SetTraceback(error, trace);
    done = PyObject_CallOneArg(self->wake, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return done;
}

static PyObject *reading_call(Reading *self, PyObject *args, PyObject *named) {
    (void)args, (void)named;
    PyObject *done = read_once(self);
    if (done == NULL) return wake_with_error(self);
    int has_enough = PyObject_IsTrue(done);
    Py_DECREF(done);
    if (has_enough < 0) return wake_with_error(self);
    if (has_enough) return PyObject_CallOneArg(self->wake, Py_None);
    Py_RETURN_NONE;
}

static PyTypeObject reading_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "loadtest.workers._reader.Reading",
    .tp_basicsize = sizeof(Reading),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = reading_new,
    .tp_call = (ternaryfunc)reading_call,
    .tp_traverse = (traverseproc)reading_traverse,
    .tp_clear = (inquiry)reading_clear,
    .tp_dealloc = (destructor)reading_dealloc,
};

static struct PyModuleDef reader_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "loadtest.workers._reader",
    .m_doc = "The read of one token, in C.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__reader(void) {
    name_of_take_other = PyUnicode_InternFromString("_take_other");
    PyObject *module = name_of_take_other ? PyModule_Create(&reader_module) : NULL;
    if (module == NULL) return NULL;
    if (PyModule_AddType(module, &steady_type) < 0 || PyModule_AddType(module, &reading_type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
