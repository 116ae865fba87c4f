/* The tokenizer of minifer's sentiment model; specified in minifer/pipelines/text.py. No allocation, no state. */
#ifndef MINIFER_TOKENIZER_H
#define MINIFER_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SENTIMENT_LENGTH 4096

static inline uint32_t sentiment_step(uint32_t hash, uint8_t byte) { return (hash ^ byte) * 0x01000193u; }

static inline void sentiment_put(int32_t *tokens, size_t *count, uint32_t hash) {
    if (*count < SENTIMENT_LENGTH) tokens[(*count)++] = (int32_t)(hash % 65535u + 1u);
}

/* The tokens of one word; `marked` is `<`, the word of `length` bytes, `>`. Returns the word's own hash. */
static inline uint32_t sentiment_word(uint8_t *marked, size_t length, uint32_t before, int32_t *tokens, size_t *count) {
    uint32_t own = 0x811C9DC5u, pair = sentiment_step(before, ' ');
    marked[0] = '<', marked[length + 1] = '>';
    for (size_t i = 1; i <= length; i++) own = sentiment_step(own, marked[i]), pair = sentiment_step(pair, marked[i]);
    sentiment_put(tokens, count, own);
    sentiment_put(tokens, count, pair);
    for (size_t start = 0; start < length; start++) {
        uint32_t hash = sentiment_step(0x811C9DC5u, '#');
        for (size_t i = start; i < start + 5 && i < length + 2; i++) {
            hash = sentiment_step(hash, marked[i]);
            if (i >= start + 2) sentiment_put(tokens, count, hash);
        }
    }
    return own;
}

/* Writes the tokens of `size` bytes of UTF-8. */
static inline void sentiment_tokens(const uint8_t *text, size_t size, int32_t tokens[SENTIMENT_LENGTH]) {
    uint8_t marked[66];
    size_t length = 0, count = 0;
    uint32_t before = 0x811C9DC5u;
    memset(tokens, 0, SENTIMENT_LENGTH * sizeof *tokens);
    for (size_t i = 0; i <= size && count < SENTIMENT_LENGTH; i++) {
        uint8_t byte = i < size ? text[i] : 0; /* a separator ends the last word */
        if (byte == 0xE2 && size - i > 2 && text[i + 1] == 0x80) {
            byte = text[i + 2] == 0x98 || text[i + 2] == 0x99 ? '\'' : ' ';
            i += 2;
        }
        if (byte >= 'A' && byte <= 'Z') byte += 'a' - 'A';
        int inside = (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte == '\'' || byte >= 0x80;
        if (length && (!inside || length == 64)) {
            before = sentiment_word(marked, length, before, tokens, &count);
            length = 0;
        }
        if (!inside && (byte <= 0x20 || byte == 0x7F)) continue;
        marked[++length] = byte;
        if (!inside) before = sentiment_word(marked, length, before, tokens, &count), length = 0;
    }
}
#endif
