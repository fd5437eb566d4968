/* As workers/event_form.py recognises reads of whole chunks: the same reads, and no others. */
#include "_reader_form.h"

#include <string.h>

static int in(byte b, byte first, byte last) { return first <= b && b <= last; }

static int hex_of(byte b) {
    if (in(b, '0', '9')) return b - '0';
    if (in(b, 'a', 'f')) return b - 'a' + 10;
    if (in(b, 'A', 'F')) return b - 'A' + 10;
    return -1;
}

static int is_plain(byte b) { return in(b, 0x20, 0x7f) && b != '"' && b != '\\'; }

/* The bytes of the escape at `at`, 0 if it is none (RFC 8259). */
static ptrdiff_t escape_bytes(const byte *at, const byte *end) {
    if (end - at < 2) return 0;
    if (at[1] && strchr("\"\\/bfnrt", at[1])) return 2;
    if (at[1] != 'u' || end - at < 6) return 0;
    for (int i = 2; i < 6; i++)
        if (hex_of(at[i]) < 0) return 0;
    return 6;
}

/* The bytes of the character of two to four bytes at `at`, 0 if it is none (RFC 3629, table 3-7 of Unicode). */
static ptrdiff_t character_bytes(const byte *at, const byte *end) {
    byte lead = at[0], low = 0x80, high = 0xbf;
    ptrdiff_t size = in(lead, 0xc2, 0xdf) ? 2 : in(lead, 0xe0, 0xef) ? 3 : in(lead, 0xf0, 0xf4) ? 4 : 0;
    if (size == 0 || end - at < size) return 0;
    if (lead == 0xe0) low = 0xa0;  /* shorter forms exist */
    if (lead == 0xed) high = 0x9f; /* surrogates */
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f; /* beyond U+10FFFF */
    if (!in(at[1], low, high)) return 0;
    for (ptrdiff_t i = 2; i < size; i++)
        if (!in(at[i], 0x80, 0xbf)) return 0;
    return size;
}

/* Something that may stand between the quotes of a JSON string. */
static int is_text(const byte *at, const byte *end) {
    while (at < end) {
        ptrdiff_t size = is_plain(*at) ? 1 : *at == '\\' ? escape_bytes(at, end) : character_bytes(at, end);
        if (size == 0) return 0;
        at += size;
    }
    return 1;
}

/* Where the body of the whole chunk at `at` begins; *body_end is where it ends. NULL if there is no such chunk. */
static const byte *chunk_body(const byte *at, const byte *end, const byte **body_end) {
    ptrdiff_t size = 0;
    const byte *digits = at;
    for (; at < end && at - digits < 8 && hex_of(*at) >= 0; at++) size = size * 16 + hex_of(*at);
    if (at == digits || size == 0 || end - at < 4 || size > end - at - 4) return NULL;
    if (memcmp(at, "\r\n", 2) || memcmp(at + 2 + size, "\r\n", 2)) return NULL;
    *body_end = at + 2 + size;
    return at + 2;
}

ptrdiff_t ullage_tokens_of_read(const byte *at, const byte *end, const Form *form) {
    ptrdiff_t count = 0, head = form->before_bytes, tail = form->after_bytes;
    for (; at < end; count++) {
        const byte *body_end, *body = chunk_body(at, end, &body_end);
        if (body == NULL || body_end - body <= head + tail) return 0; /* an empty text is no example */
        if (memcmp(body, form->before, head) || memcmp(body_end - tail, form->after, tail)) return 0;
        if (!is_text(body + head, body_end - tail)) return 0;
        at = body_end + 2;
    }
    return count;
}
