/* Recognising tokens by their form: bytes alone, nothing of Python. */
#ifndef ULLAGE_READER_FORM_H
#define ULLAGE_READER_FORM_H

#include <stddef.h>

typedef unsigned char byte;

/* What a token's event has before and after its text. `before` is NULL where no form is expected. */
typedef struct {
    const byte *before, *after;
    ptrdiff_t before_bytes, after_bytes;
} Form;

/* How many events of that form a read is, each alone in its chunk; 0 if it is anything else. */
ptrdiff_t ullage_tokens_of_read(const byte *at, const byte *end, const Form *form);

#endif
