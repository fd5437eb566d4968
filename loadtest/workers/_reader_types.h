/* What the files of the extension share that know Python. Include it first: Python.h must be. */
#ifndef ULLAGE_READER_TYPES_H
#define ULLAGE_READER_TYPES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_reader_thread.h"

typedef struct reading Reading;

/* The part of an attempt that knows what its next token looks like. */
typedef struct {
    PyObject_HEAD
    PyObject *reply;
    PyObject *form; /* the EventForm, or None; these two are its bytes, or NULL */
    PyObject *before, *after;
    Reading *reading; /* that listens for it now, or NULL: borrowed */
    long long read_bytes, bytes_max;
} Steady;

extern PyTypeObject ullage_steady_type;

/* Whose own method `take` is; NULL where it is anybody else's. Borrowed. */
Steady *ullage_steady_of(PyObject *take);
Form ullage_form_of(PyObject *before, PyObject *after);
/* One read: True when nothing more will come. `data` is the same bytes as an object, or NULL where none was made. */
PyObject *ullage_folded(Steady *self, const void *read, Py_ssize_t size, PyObject *data, PyObject *at_ns);
/* What was dated goes to the reply, before anything that came later; -1 with an exception. */
int ullage_move_times(Reading *self);

#endif
