/* The passes of augment.fuse.passes: one image after another through all steps, so that it stays in the cache.

   Images are planes of floats, [channels][height][width]. A step reads its row of the table of parameters; what each
   row holds is written above each function. The order of additions is fixed and no step reads another image, so the
   same image gets the same result in any batch and with any number of threads.

   Clamps are written as comparisons: compilers make single vector instructions of them. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { READ, JITTER, GRAY, SOLARIZE, LINEAR, BLUR, ERASE };
enum { ZEROS, BORDER, REFLECTION, SYMMETRIC };

typedef struct {
    int64_t kind, start;  /* which step, and where its numbers start in the row */
    int64_t first, second; /* READ: padding; BLUR: lengths of the kernels; LINEAR: clamps */
} Step;

static inline float unit(float x) {
    x = x > 0.0f ? x : 0.0f;
    return x < 1.0f ? x : 1.0f;
}

/* --- Reading: x = across * column + left, y = down * row + top ------------------------------------------------- */

static int64_t folded(int64_t at, int64_t size, int padding) {
    if (padding == BORDER || size == 1) return at < 0 ? 0 : at >= size ? size - 1 : at;
    int64_t period = padding == REFLECTION ? 2 * (size - 1) : 2 * size;
    at = ((at % period) + period) % period;
    return at < size ? at : period - (padding == SYMMETRIC) - at;
}

/* Which two of `size` pixels make each of `count`, and how much of each. */
static void taps(double scale, double shift, int64_t count, int64_t size, int padding, int32_t *from, int32_t *to,
                 float *near, float *far) {
    for (int64_t n = 0; n < count; n++) {
        double at = scale * (double)n + shift;
        if (!(fabs(at) < 1e15)) at = at < 0 ? -1e15 : 1e15; /* NaN, or too large for an integer */
        double low = floor(at);
        int64_t a = (int64_t)low, b = a + 1;
        float part = (float)(at - low), rest = (float)(1.0 - (at - low));
        if (padding == ZEROS) {
            if (a < 0 || a >= size) a = 0, rest = 0.0f;
            if (b < 0 || b >= size) b = 0, part = 0.0f;
        } else {
            a = folded(a, size, padding), b = folded(b, size, padding);
        }
        from[n] = (int32_t)a, to[n] = (int32_t)b, near[n] = rest, far[n] = part;
    }
}

typedef struct {
    int32_t *from[2], *to[2];
    float *near[2], *far[2], *line;
} Reader;

#define READ_FROM(NAME, TYPE)                                                                                        \
    static void NAME(const TYPE *source, int64_t channels, int64_t H, int64_t W, float *image, int64_t h, int64_t w, \
                     float value, const Reader *r) {                                                                 \
        int64_t first = W, last = -1;                                                                                \
        for (int64_t x = 0; x < w; x++) {                                                                            \
            if (r->from[1][x] < first) first = r->from[1][x];                                                        \
            if (r->to[1][x] < first) first = r->to[1][x];                                                            \
            if (r->from[1][x] > last) last = r->from[1][x];                                                          \
            if (r->to[1][x] > last) last = r->to[1][x];                                                              \
        }                                                                                                            \
        float *restrict line = r->line;                                                                              \
        const int32_t *restrict from = r->from[1], *restrict to = r->to[1];                                          \
        const float *restrict near = r->near[1], *restrict far = r->far[1];                                          \
        for (int64_t c = 0; c < channels; c++)                                                                       \
            for (int64_t y = 0; y < h; y++) {                                                                        \
                const TYPE *restrict above = source + (c * H + r->from[0][y]) * W;                                   \
                const TYPE *restrict below = source + (c * H + r->to[0][y]) * W;                                     \
                float upper = r->near[0][y], lower = r->far[0][y];                                                   \
                for (int64_t x = first; x <= last; x++)                                                              \
                    line[x] = upper * (value * (float)above[x]) + lower * (value * (float)below[x]);                 \
                float *restrict row = image + (c * h + y) * w;                                                       \
                for (int64_t x = 0; x < w; x++) row[x] = near[x] * line[from[x]] + far[x] * line[to[x]];             \
            }                                                                                                        \
    }
READ_FROM(read_bytes, uint8_t)
READ_FROM(read_floats, float)

/* --- Color ----------------------------------------------------------------------------------------------------- */

static const float LUMA[3] = {0.299f, 0.587f, 0.114f};

static void blended(float *restrict x, int64_t count, float factor, float other) {
    for (int64_t n = 0; n < count; n++) x[n] = unit(factor * x[n] + other);
}

static double sum(const float *x, int64_t count) {
    double total = 0.0;
    for (int64_t start = 0; start < count; start += 4096) {
        float lanes[16] = {0};
        int64_t end = start + 4096 < count ? start + 4096 : count, n = start;
        for (; n + 16 <= end; n += 16)
            for (int k = 0; k < 16; k++) lanes[k] += x[n + k];
        for (; n < end; n++) lanes[0] += x[n];
        for (int k = 0; k < 16; k++) total += lanes[k];
    }
    return total;
}

static void contrast(float *x, int64_t channels, int64_t pixels, float factor) {
    double mean = 0.0;
    for (int64_t c = 0; c < channels; c++)
        mean += (channels == 3 ? (double)LUMA[c] : 1.0 / (double)channels) * sum(x + c * pixels, pixels);
    mean /= (double)pixels;
    blended(x, channels * pixels, factor, (float)((1.0 - (double)factor) * mean));
}

static void saturation(float *x, int64_t channels, int64_t pixels, float factor) {
    if (channels != 3) { /* a single channel is its own luma */
        blended(x, channels * pixels, 1.0f, 0.0f);
        return;
    }
    float *restrict r = x, *restrict g = x + pixels, *restrict b = x + 2 * pixels, rest = 1.0f - factor;
    for (int64_t n = 0; n < pixels; n++) {
        float gray = rest * (LUMA[0] * r[n] + LUMA[1] * g[n] + LUMA[2] * b[n]);
        r[n] = unit(factor * r[n] + gray), g[n] = unit(factor * g[n] + gray), b[n] = unit(factor * b[n] + gray);
    }
}

/* A channel centered at c sixths: least + spread * unit(2 - |hue + turns - c|), the difference around the circle. */
static inline float channel(float hue, float center, float least, float spread) {
    float away = hue - center;
    away = fabsf(away - floorf(away + 0.5f));
    return least + spread * unit(2.0f - 6.0f * away);
}

static void hue(float *x, int64_t pixels, float turns) {
    float *restrict r = x, *restrict g = x + pixels, *restrict b = x + 2 * pixels;
    for (int64_t n = 0; n < pixels; n++) {
        float red = r[n], green = g[n], blue = b[n];
        float top = red > green ? red : green, least = red < green ? red : green;
        top = top > blue ? top : blue, least = least < blue ? least : blue;
        float spread = top - least;
        float scale = 1.0f / (6.0f * (spread > 1e-30f ? spread : 1e-30f));
        float at = (red - green) * scale + 4.0f / 6.0f;
        at = green < top ? at : (blue - red) * scale + 2.0f / 6.0f;
        at = red < top ? at : (green - blue) * scale;
        at += turns;
        r[n] = channel(at, 0.0f, least, spread);
        g[n] = channel(at, 1.0f / 3.0f, least, spread);
        b[n] = channel(at, 2.0f / 3.0f, least, spread);
    }
}

/* drawn, how many steps, then (step, factor) each: 0 brightness, 1 contrast, 2 saturation, 3 hue, else none */
static void jitter(float *x, int64_t channels, int64_t pixels, const double *row) {
    blended(x, channels * pixels, 1.0f, 0.0f);
    for (int64_t n = 0; n < (int64_t)row[1]; n++) {
        float factor = (float)row[3 + 2 * n];
        switch ((int)row[2 + 2 * n]) {
            case 0: blended(x, channels * pixels, factor, 0.0f); break;
            case 1: contrast(x, channels, pixels, factor); break;
            case 2: saturation(x, channels, pixels, factor); break;
            case 3: hue(x, pixels, factor); break;
        }
    }
}

/* drawn, weights by channel */
static void gray(float *x, int64_t channels, int64_t pixels, const double *row) {
    float *restrict total = x;
    float weight = (float)row[1];
    for (int64_t n = 0; n < pixels; n++) total[n] *= weight;
    for (int64_t c = 1; c < channels; c++) {
        const float *restrict other = x + c * pixels;
        weight = (float)row[1 + c];
        for (int64_t n = 0; n < pixels; n++) total[n] += weight * other[n];
    }
    for (int64_t c = 1; c < channels; c++) memcpy(x + c * pixels, x, (size_t)pixels * sizeof(float));
}

/* drawn, threshold, addition */
static void solarize(float *restrict x, int64_t count, const double *row) {
    float threshold = (float)row[1], addition = (float)row[2];
    for (int64_t n = 0; n < count; n++) {
        float moved = unit(unit(x[n]) + addition);
        x[n] = moved < threshold ? moved : 1.0f - moved;
    }
}

/* drawn, scales by channel, shifts by channel; clamps: 1 before, 2 after */
static void linear(float *x, int64_t channels, int64_t pixels, const double *row, int64_t clamps) {
    for (int64_t c = 0; c < channels; c++) {
        float *restrict plane = x + c * pixels, scale = (float)row[1 + c], shift = (float)row[1 + channels + c];
        if (clamps & 1)
            for (int64_t n = 0; n < pixels; n++) plane[n] = unit(plane[n]);
        for (int64_t n = 0; n < pixels; n++) plane[n] = scale * plane[n] + shift;
        if (clamps & 2)
            for (int64_t n = 0; n < pixels; n++) plane[n] = unit(plane[n]);
    }
}

/* --- Blur ------------------------------------------------------------------------------------------------------- */

#define NEGLIGIBLE 1e-9 /* as in augment.fuse.blur */

/* The middle part of a kernel that has any weight: its reach, and where it begins. */
static int64_t reach(const double *kernel, int64_t length) {
    int64_t half = length / 2, used = 0;
    for (int64_t n = 0; n < length; n++) {
        int64_t away = n > half ? n - half : half - n;
        if (fabs(kernel[n]) > NEGLIGIBLE && away > used) used = away;
    }
    return used;
}

/* Eight floats at once; where a machine has fewer, compilers take two. */
typedef float Lanes __attribute__((vector_size(32)));
enum { LANES = 8, BLOCK = 4 * LANES };

static inline Lanes lanes(const float *from) {
    Lanes values;
    memcpy(&values, from, sizeof values);
    return values;
}

/* result[n] = sum of weights[k] * rows[k][n]. The sums of a block stay in registers. */
static void weighted(float *result, const float *const *rows, const float *weights, int64_t count, int64_t w) {
    int64_t n = 0;
    for (; n + BLOCK <= w; n += BLOCK) {
        Lanes sums[4] = {{0}, {0}, {0}, {0}};
        for (int64_t k = 0; k < count; k++)
            for (int j = 0; j < 4; j++) sums[j] += weights[k] * lanes(rows[k] + n + j * LANES);
        memcpy(result + n, sums, sizeof sums);
    }
    for (; n < w; n++) {
        float total = 0.0f;
        for (int64_t k = 0; k < count; k++) total += weights[k] * rows[k][n];
        result[n] = total;
    }
}

typedef struct {
    float *plane, *line, *weights;
    const float **rows;
} Filter;

/* drawn, vertical kernel, horizontal kernel; reflected about the middle of the border pixels */
static void blur(float *x, int64_t channels, int64_t h, int64_t w, const double *row, const Step *step,
                 const Filter *f) {
    const double *vertical = row + 1, *horizontal = row + 1 + step->first;
    int64_t up = reach(vertical, step->first), left = reach(horizontal, step->second);
    float *down = f->weights, *across = f->weights + 2 * up + 1;
    for (int64_t k = 0; k <= 2 * up; k++) down[k] = (float)vertical[step->first / 2 - up + k];
    for (int64_t k = 0; k <= 2 * left; k++) across[k] = (float)horizontal[step->second / 2 - left + k];
    for (int64_t c = 0; c < channels; c++) {
        float *image = x + c * h * w;
        for (int64_t y = 0; y < h; y++) {
            memcpy(f->line + left, image + y * w, (size_t)w * sizeof(float));
            for (int64_t k = 1; k <= left; k++) {
                f->line[left - k] = image[y * w + k];
                f->line[left + w - 1 + k] = image[y * w + w - 1 - k];
            }
            for (int64_t k = 0; k <= 2 * left; k++) f->rows[k] = f->line + k;
            weighted(f->plane + y * w, f->rows, across, 2 * left + 1, w);
        }
        for (int64_t y = 0; y < h; y++) {
            for (int64_t k = -up; k <= up; k++) f->rows[k + up] = f->plane + folded(y + k, h, REFLECTION) * w;
            weighted(image + y * w, f->rows, down, 2 * up + 1, w);
        }
    }
}

/* --- Erasing ---------------------------------------------------------------------------------------------------- */

static int64_t within(double at, int64_t limit) { return !(at > 0) ? 0 : at > (double)limit ? limit : (int64_t)at; }

/* drawn, top, left, height, width, values by channel */
static void erase(float *x, int64_t channels, int64_t h, int64_t w, const double *row) {
    int64_t top = within(row[1], h), bottom = within(row[1] + row[3], h);
    int64_t left = within(row[2], w), right = within(row[2] + row[4], w);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t y = top; y < bottom; y++)
            for (int64_t n = left; n < right; n++) x[(c * h + y) * w + n] = (float)row[5 + c];
}

/* --- All of it -------------------------------------------------------------------------------------------------- */

/* Images [batch][channels][H][W], bytes or floats, through the steps into [batch][channels][h][w]. The first step may
   be READ; without it the images must be in `result` already. Returns 0, or 1 if there is not enough memory. */
int run(const void *images, int64_t bytes, int64_t batch, int64_t channels, int64_t H, int64_t W, float *result,
        int64_t h, int64_t w, const Step *steps, int64_t count, const double *table, int64_t width) {
    int64_t longest = 1;
    for (int64_t s = 0; s < count; s++)
        if (steps[s].kind == BLUR) {
            if (steps[s].first > longest) longest = steps[s].first;
            if (steps[s].second > longest) longest = steps[s].second;
        }
    float *floats = malloc((size_t)(2 * (h + w) + W + h * w + w + 4 * longest + 64) * sizeof(float));
    int32_t *places = malloc((size_t)(2 * (h + w)) * sizeof(int32_t));
    const float **rows = malloc((size_t)(longest + 1) * sizeof(float *));
    int failed = !floats || !places || !rows;
    if (!failed) {
        Reader reader = {{places, places + 2 * h}, {places + h, places + 2 * h + w},
                         {floats, floats + 2 * h}, {floats + h, floats + 2 * h + w}, floats + 2 * (h + w)};
        float *plane = reader.line + W;
        Filter filter = {plane, plane + h * w, plane + h * w + w + 2 * longest, rows};
        for (int64_t n = 0; n < batch; n++) {
            float *image = result + n * channels * h * w;
            for (int64_t s = 0; s < count; s++) {
                const Step *step = steps + s;
                const double *row = table + n * width + step->start;
                if (step->kind == READ) { /* across, left, down, top */
                    int padding = (int)step->first;
                    taps(row[2], row[3], h, H, padding, reader.from[0], reader.to[0], reader.near[0], reader.far[0]);
                    taps(row[0], row[1], w, W, padding, reader.from[1], reader.to[1], reader.near[1], reader.far[1]);
                    int64_t offset = n * channels * H * W;
                    if (bytes)
                        read_bytes((const uint8_t *)images + offset, channels, H, W, image, h, w, 1.0f / 255.0f, &reader);
                    else
                        read_floats((const float *)images + offset, channels, H, W, image, h, w, 1.0f, &reader);
                    continue;
                }
                if (row[0] == 0.0) continue; /* not drawn */
                switch (step->kind) {
                    case JITTER: jitter(image, channels, h * w, row); break;
                    case GRAY: gray(image, channels, h * w, row); break;
                    case SOLARIZE: solarize(image, channels * h * w, row); break;
                    case LINEAR: linear(image, channels, h * w, row, step->first); break;
                    case BLUR: blur(image, channels, h, w, row, step, &filter); break;
                    case ERASE: erase(image, channels, h, w, row); break;
                }
            }
        }
    }
    free(floats), free(places), free((void *)rows);
    return failed;
}
