/* What of workers/steady.py each token passes, in C: the part of an attempt that knows what its next one looks like.
 *
 * A read that is nothing but tokens of the known form is dated and forgotten. Every other one becomes `bytes`
 * and goes to Attempt._take_other, as in Python: there is one reader of answers, and this is only its short cut.
 */
#include "_reader_types.h"

#include <stddef.h>
#include <structmember.h>

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

Form ullage_form_of(PyObject *before, PyObject *after) {
    if (before == NULL) return (Form){0};
    return (Form){
        .before = (const byte *)PyBytes_AS_STRING(before),
        .after = (const byte *)PyBytes_AS_STRING(after),
        .before_bytes = PyBytes_GET_SIZE(before),
        .after_bytes = PyBytes_GET_SIZE(after),
    };
}

PyObject *ullage_folded(Steady *self, const void *read, Py_ssize_t size, PyObject *data, PyObject *at_ns) {
    self->read_bytes += size;
    if (self->before && self->read_bytes <= self->bytes_max) {
        Form form = ullage_form_of(self->before, self->after);
        const byte *at = read;
        Py_ssize_t count = ullage_tokens_of_read(at, at + size, &form);
        if (count) {
            PyObject *done = PyObject_CallMethod(self->reply, "date_tokens", "nO", count, at_ns);
            if (done == NULL) return NULL;
            Py_DECREF(done);
            Py_RETURN_FALSE;
        }
    }
    data = data ? Py_NewRef(data) : PyBytes_FromStringAndSize(read, size);
    if (data == NULL) return NULL;
    PyObject *done = PyObject_CallMethod((PyObject *)self, "_take_other", "OO", data, at_ns);
    Py_DECREF(data);
    return done;
}

static PyObject *steady_take(Steady *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "take(data: bytes, at_ns: int)");
        return NULL;
    }
    return ullage_folded(self, PyBytes_AS_STRING(args[0]), PyBytes_GET_SIZE(args[0]), args[0], args[1]);
}

Steady *ullage_steady_of(PyObject *take) {
    if (!PyCFunction_Check(take)) return NULL;
    if (PyCFunction_GET_FUNCTION(take) != (PyCFunction)(void (*)(void))steady_take) return NULL;
    return (Steady *)PyCFunction_GET_SELF(take);
}

static PyObject *steady_catch_up(Steady *self, PyObject *none) {
    (void)none;
    if (self->reading && ullage_move_times(self->reading) < 0) return NULL;
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

PyTypeObject ullage_steady_type = {
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
