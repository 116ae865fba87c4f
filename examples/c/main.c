/* classify PHOTO.ppm LABELS.txt: the five classes that the model finds most probable. */
#include "classifier.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SIDE = CLASSIFIER_INPUT_IMAGE_DIM_3, PIXELS = SIDE * SIDE, CLASSES = CLASSIFIER_OUTPUT_LOGITS_DIM_1 };

static unsigned char pixels[PIXELS][3];
static float image[CLASSIFIER_INPUT_IMAGE_SIZE], logits[CLASSIFIER_OUTPUT_LOGITS_SIZE];
static char labels[CLASSES][128];

static int fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    return 1;
}

/* A binary PPM file of the size that the model takes; 0 where it is none. */
static int read_photo(const char *path) {
    int width = 0, height = 0, most = 0;
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    int good = fscanf(file, "P6 %d %d %d", &width, &height, &most) == 3 && fgetc(file) != EOF &&
               width == SIDE && height == SIDE && most == 255 && fread(pixels, sizeof pixels, 1, file) == 1;
    fclose(file);
    return good;
}

static int read_labels(const char *path) {
    FILE *file = fopen(path, "r");
    int count = 0;
    while (file && count < CLASSES && fscanf(file, " %127[^\n]", labels[count]) == 1) count++;
    if (file) fclose(file);
    return count == CLASSES;
}

int main(int argc, char **argv) {
    if (argc != 3) return fail("classify PHOTO.ppm LABELS.txt");
    if (!read_photo(argv[1])) return fail("the photo must be a binary PPM file of the model's size");
    if (!read_labels(argv[2])) return fail("the labels must be a text file with a line for each class");

    /* channels first, and as the model was trained: (pixel - 127) / 128 */
    for (int i = 0; i < PIXELS; i++)
        for (int c = 0; c < 3; c++) image[c * PIXELS + i] = ((float)pixels[i][c] - 127) / 128;

    void *room = malloc(CLASSIFIER_WORKSPACE_BYTES + MINIFER_ALIGNMENT);
    int32_t status = room ? classifier_call(image, logits, minifer_aligned(room)) : MINIFER_STATUS_WORKSPACE;
    free(room);
    if (status != MINIFER_STATUS_OK) return fail(classifier_status_text(status));

    double sum = 0;
    for (int i = 0; i < CLASSES; i++) sum += logits[i] = expf(logits[i]);
    for (int place = 0; place < 5; place++) {
        int best = 0;
        for (int i = 1; i < CLASSES; i++)
            if (logits[i] > logits[best]) best = i;
        printf("%5.1f %%  %s\n", 100 * logits[best] / sum, labels[best]);
        logits[best] = -1;
    }
    return 0;
}
