/* What is done with the gaps of each request, in C: the same as Reply.sorted_gaps_ns and Gaps.add do. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define DIGITS 7 /* as in stream_counts.py */
#define SECOND_NS INT64_C(1000000000)

/* Shell's way, with the steps that Ciura measured: qsort() calls a function for each comparison. */
static void sort(int64_t *values, Py_ssize_t count) {
    static const int steps[] = {701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        for (Py_ssize_t i = steps[s]; i < count; i++) {
            int64_t value = values[i];
            Py_ssize_t at = i;
            for (; at >= steps[s] && values[at - steps[s]] > value; at -= steps[s]) values[at] = values[at - steps[s]];
            values[at] = value;
        }
    }
}

/* 0 with the numbers of an array('q'), to be released; -1 with an exception. */
static int look_at(PyObject *array, Py_buffer *view, int flags) {
    if (PyObject_GetBuffer(array, view, flags | PyBUF_FORMAT | PyBUF_ND) < 0) return -1;
    if (view->itemsize == sizeof(int64_t) && strcmp(view->format, "q") == 0) return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_TypeError, "nanoseconds are an array of 'q'");
    return -1;
}

static PyObject *sort_gaps(PyObject *module, PyObject *args) {
    PyObject *times;
    long long before_ns;
    Py_buffer view;
    (void)module;
    if (!PyArg_ParseTuple(args, "OL", &times, &before_ns) || look_at(times, &view, PyBUF_WRITABLE) < 0) return NULL;
    int64_t *at = view.buf;
    Py_ssize_t count = view.len / view.itemsize;
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t time_ns = at[i];
        at[i] -= before_ns;
        before_ns = time_ns;
    }
    sort(at, count);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static long long slot_of(long long gap_ns) {
    int shift = 0;
    while (gap_ns >> shift >= 1 << DIGITS) shift++;
    return ((long long)shift << (DIGITS - 1)) + (gap_ns >> shift);
}

static int add_to(PyObject *counts, long long of, Py_ssize_t more) {
    PyObject *key = PyLong_FromLongLong(of), *count = NULL;
    PyObject *before = key ? PyDict_GetItemWithError(counts, key) : NULL;
    Py_ssize_t so_far = before ? PyLong_AsSsize_t(before) : 0;
    if (!PyErr_Occurred()) count = PyLong_FromSsize_t(so_far + more);
    int failed = count == NULL || PyDict_SetItem(counts, key, count) < 0;
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

static PyObject *counted(const int64_t *gaps_ns, Py_ssize_t count, PyObject *slots) {
    unsigned __int128 sum_ns = 0, squares_ns2 = 0;
    long long slot = 0;
    Py_ssize_t alike = 0; /* gaps before this one that share its slot: neighbours, as they are sorted */
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t gap_ns = gaps_ns[i];
        if (gap_ns < 0 || gap_ns >> 55) { /* so that no sum of squares passes 128 digits */
            PyErr_SetString(PyExc_ValueError, "a gap is not negative, and less than a year");
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

static PyObject *count_gaps(PyObject *module, PyObject *args) {
    PyObject *gaps, *slots;
    Py_buffer view;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO!", &gaps, &PyDict_Type, &slots) || look_at(gaps, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *sums = counted(view.buf, view.len / view.itemsize, slots);
    PyBuffer_Release(&view);
    return sums;
}

static PyObject *count_seconds(PyObject *module, PyObject *args) {
    PyObject *times, *chunks;
    Py_buffer view;
    int failed = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO!", &times, &PyDict_Type, &chunks) || look_at(times, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    const int64_t *at = view.buf, *end = at + view.len / view.itemsize;
    while (at < end && !failed) {
        const int64_t *first = at;
        int64_t second = *first / SECOND_NS;
        while (at < end && *at / SECOND_NS == second) at++;
        failed = add_to(chunks, second, at - first) < 0;
    }
    PyBuffer_Release(&view);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"sort_gaps", sort_gaps, METH_VARARGS, "Makes an array('q') of times the gaps between them, the least first."},
    {"count_gaps", count_gaps, METH_VARARGS, "Adds sorted gaps to a dict by slot; returns their sum and that of squares."},
    {"count_seconds", count_seconds, METH_VARARGS, "Adds times to a dict by the second of the clock they are in."},
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
