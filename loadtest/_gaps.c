/* What is done with the gaps of each request, in C: the same as Reply.sorted_gaps_ns and Gaps._count do. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS 7 /* as in stream_counts.py */

static int compared(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

static PyObject *list_of(const int64_t *values, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (value)
            PyList_SET_ITEM(list, i, value);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *sorted_gaps(PyObject *module, PyObject *times) {
    Py_buffer view;
    PyObject *list = NULL;
    (void)module;
    if (PyObject_GetBuffer(times, &view, PyBUF_CONTIG_RO | PyBUF_FORMAT) < 0) return NULL;
    if (view.itemsize != sizeof(int64_t) || strcmp(view.format, "q")) {
        PyErr_SetString(PyExc_TypeError, "times are an array of 'q'");
    } else {
        const int64_t *at = view.buf;
        Py_ssize_t count = view.len / view.itemsize - 1;
        int64_t *gaps = count > 0 ? PyMem_New(int64_t, count) : NULL;
        if (count > 0 && gaps == NULL) {
            PyErr_NoMemory();
        } else {
            for (Py_ssize_t i = 0; i < count; i++) gaps[i] = at[i + 1] - at[i];
            if (gaps) qsort(gaps, count, sizeof *gaps, compared);
            list = list_of(gaps, count > 0 ? count : 0);
        }
        PyMem_Free(gaps);
    }
    PyBuffer_Release(&view);
    return list;
}

static long long slot_of(long long gap_ns) {
    int shift = 0;
    while (gap_ns >> shift >= 1 << DIGITS) shift++;
    return ((long long)shift << (DIGITS - 1)) + (gap_ns >> shift);
}

static int add_to(PyObject *slots, long long slot, Py_ssize_t more) {
    PyObject *key = PyLong_FromLongLong(slot), *count = NULL;
    PyObject *before = key ? PyDict_GetItemWithError(slots, key) : NULL;
    Py_ssize_t so_far = before ? PyLong_AsSsize_t(before) : 0;
    if (!PyErr_Occurred()) count = PyLong_FromSsize_t(so_far + more);
    int failed = count == NULL || PyDict_SetItem(slots, key, count) < 0;
    Py_XDECREF(key);
    Py_XDECREF(count);
    return failed ? -1 : 0;
}

/* A whole number of 128 binary digits: the squares of a request's gaps need more than 64. */
static PyObject *wide(unsigned __int128 value) {
    PyObject *high = PyLong_FromUnsignedLongLong((unsigned long long)(value >> 64));
    PyObject *low = PyLong_FromUnsignedLongLong((unsigned long long)value);
    PyObject *digits = PyLong_FromLong(64), *shifted = NULL, *whole = NULL;
    if (high && low && digits) shifted = PyNumber_Lshift(high, digits);
    if (shifted) whole = PyNumber_Or(shifted, low);
    Py_XDECREF(high);
    Py_XDECREF(low);
    Py_XDECREF(digits);
    Py_XDECREF(shifted);
    return whole;
}

static PyObject *count_gaps(PyObject *module, PyObject *args) {
    PyObject *gaps, *slots;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &gaps, &PyDict_Type, &slots)) return NULL;
    unsigned __int128 sum_ns = 0, squares_ns2 = 0;
    long long slot = 0;
    Py_ssize_t alike = 0; /* gaps before this one that share its slot: neighbours, as they are sorted */
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(gaps); i++) {
        long long gap_ns = PyLong_AsLongLong(PyList_GET_ITEM(gaps, i));
        if (gap_ns < 0 || gap_ns >> 55) { /* so that no sum of squares passes 128 digits */
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a gap is not negative, and less than a year");
            return NULL;
        }
        sum_ns += gap_ns;
        squares_ns2 += (unsigned __int128)gap_ns * gap_ns;
        long long its = slot_of(gap_ns);
        if (alike && its != slot) {
            if (add_to(slots, slot, alike) < 0) return NULL;
            alike = 0;
        }
        slot = its;
        alike++;
    }
    if (alike && add_to(slots, slot, alike) < 0) return NULL;
    return Py_BuildValue("NN", wide(sum_ns), wide(squares_ns2));
}

static PyMethodDef functions[] = {
    {"sorted_gaps", sorted_gaps, METH_O, "The differences of an array('q') of times, the least first."},
    {"count_gaps", count_gaps, METH_VARARGS, "Adds sorted gaps to a dict by slot; returns their sum and that of squares."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef gaps_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "loadtest._gaps",
    .m_doc = "The gaps of one request, in C.",
    .m_size = 0,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__gaps(void) { return PyModule_Create(&gaps_module); }
