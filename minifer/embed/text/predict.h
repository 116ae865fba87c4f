/* Made by minifer from the model $name: UTF-8 in, label and score out. Include it in place of $name.h. */
#ifndef ${NAME}_TEXT_H
#define ${NAME}_TEXT_H
#include "$name.h"

$tokenizer
enum { SENTIMENT_NEGATIVE, SENTIMENT_NEUTRAL, SENTIMENT_POSITIVE };

typedef struct {
    int label;              /* SENTIMENT_NEGATIVE, ... */
    float score;            /* probability of the label */
    float rating;           /* from -4, most negative, to 4, as people would rate it on average */
    float probabilities[3]; /* of the labels in order */
} sentiment_prediction;

static inline const char *sentiment_label(int label) {
    static const char *const labels[] = {"negative", "neutral", "positive"};
    return label >= 0 && label < 3 ? labels[label] : "";
}

/* The sentiment of `bytes` bytes of UTF-8. `workspace`: ${NAME}_WORKSPACE_BYTES that begin at a multiple of 64 bytes.
   Returns a status, as ${name}_run does. */
static inline int32_t predict_sentiment(const char *text, size_t bytes, void *workspace$weights,
                                        sentiment_prediction *prediction) {
    int32_t tokens[SENTIMENT_LENGTH];
    sentiment_tokens((const uint8_t *)text, bytes, tokens);
    int32_t status = ${name}_call(tokens, prediction->probabilities, &prediction->rating, workspace$given);
    if (status != 0) return status;
    prediction->label = 0;
    for (int i = 1; i < 3; i++)
        if (prediction->probabilities[i] > prediction->probabilities[prediction->label]) prediction->label = i;
    prediction->score = prediction->probabilities[prediction->label];
    return 0;
}
#endif
