/*
 * A bounds-checked walk over a .tflite file, and the rules of its operators. Slot numbers and enumerations are those of version
 * 3 of the TensorFlow Lite schema. tflm_export/checking.py is its twin on a host, which knows the same rules and a few more.
 */
#include "saaug_model.h"

#include <float.h>

#include <string.h>

/* A place in the file is an offset from its start; 0, where the root offset lies, says that there is none. */
typedef struct {
    const uint8_t *bytes;
    uint32_t length;
} file;

/* A vector: the place of its first element, and how many there are. Absent: count 0, place 0. */
typedef struct {
    uint32_t place, count;
} vector;

static uint32_t read16(const file *f, uint32_t place)
{
    return (uint32_t)f->bytes[place] | (uint32_t)f->bytes[place + 1] << 8;
}

static uint32_t read32(const file *f, uint32_t place) { return read16(f, place) | read16(f, place + 2) << 16; }

static int has(const file *f, uint32_t place, uint64_t bytes) { return place <= f->length && bytes <= f->length - place; }

/* Where an offset at `place` leads, or 0 if that is outside of the file or not aligned to words. */
static uint32_t follow(const file *f, uint32_t place)
{
    const uint32_t offset = has(f, place, 4) && place % 4 == 0 ? read32(f, place) : 0;
    const uint64_t to = (uint64_t)place + offset;
    return offset != 0 && to <= f->length - 4 && to % 4 == 0 ? (uint32_t)to : 0;
}

/* Is there a table with its table of fields? */
static int is_table(const file *f, uint32_t table)
{
    int64_t fields;
    uint32_t bytes, i;
    if (table == 0 || !has(f, table, 4)) {
        return 0;
    }
    fields = (int64_t)table - (int32_t)read32(f, table);
    if (fields < 0 || fields % 2 != 0 || !has(f, (uint32_t)(fields > f->length ? f->length : fields), 4)) {
        return 0;
    }
    bytes = read16(f, (uint32_t)fields);
    if (bytes < 4 || bytes % 2 != 0 || !has(f, (uint32_t)fields, bytes) ||
        !has(f, table, read16(f, (uint32_t)fields + 2))) {
        return 0;
    }
    for (i = 4; i < bytes; i += 2) {
        if (read16(f, (uint32_t)fields + i) >= read16(f, (uint32_t)fields + 2)) {
            return 0;
        }
    }
    return 1;
}

/* Place of field `slot` of a table that is_table() accepted, or 0 if it is absent. */
static uint32_t field(const file *f, uint32_t table, uint32_t slot)
{
    const uint32_t fields = (uint32_t)((int64_t)table - (int32_t)read32(f, table));
    const uint32_t entry = 4 + 2 * slot;
    const uint32_t offset = entry + 2 <= read16(f, fields) ? read16(f, fields + entry) : 0;
    return offset != 0 ? table + offset : 0;
}

/* A scalar field of four bytes. @return 0 if it lies outside of the file or is not aligned. */
static int scalar(const file *f, uint32_t table, uint32_t slot, int32_t *value)
{
    const uint32_t place = field(f, table, slot);
    *value = 0;
    if (place != 0) {
        if (!has(f, place, 4) || place % 4 != 0) {
            return 0;
        }
        *value = (int32_t)read32(f, place);
    }
    return 1;
}

/* A vector field, whose elements have `size` bytes. @return 0 if it lies outside of the file. */
static int elements(const file *f, uint32_t table, uint32_t slot, uint32_t size, vector *result)
{
    const uint32_t place = field(f, table, slot);
    uint32_t to;
    result->place = 0;
    result->count = 0;
    if (place == 0) {
        return 1;
    }
    to = follow(f, place);
    if (to == 0 || !has(f, to, 4) || !has(f, to + 4, (uint64_t)read32(f, to) * size)) {
        return 0;
    }
    result->place = to + 4;
    result->count = read32(f, to);
    return 1;
}

/* Table number `i` of a vector of tables, or 0 if it is damaged. */
static uint32_t table_of(const file *f, const vector *tables, uint32_t i)
{
    const uint32_t table = follow(f, tables->place + 4 * i);
    return is_table(f, table) ? table : 0;
}

/* Text must end with a zero. */
static int is_text(const file *f, uint32_t table, uint32_t slot)
{
    vector text;
    return elements(f, table, slot, 1, &text) &&
           (text.place == 0 || (has(f, text.place + text.count, 1) && f->bytes[text.place + text.count] == 0));
}

/* Bytes of an element of a tensor, by the schema's numbers; 0 for those of unknown or variable size. */
static uint32_t element_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {4, 2, 4, 1, 8, 0, 1, 2, 8, 1, 8, 16, 8, 0, 0, 4, 2};
    return type < sizeof bytes ? bytes[type] : 0;
}

static float real_at(const file *f, uint32_t place)
{
    const uint32_t bits = read32(f, place);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A tensor, as its operators see it. */
typedef struct {
    vector shape, scale;
    uint32_t type, data_place;
    int32_t zero_point, axis; /* of the first scale */
} tensor;

enum { TYPE_INT32 = 2, TYPE_INT8 = 9, MOST_DIMENSIONS = 6, MOST_ACTIVATION_BYTES = 1 << 28 };

static int32_t size_of(const file *f, const tensor *t, uint32_t dimension)
{
    return (int32_t)read32(f, t->shape.place + 4 * dimension);
}

static int64_t values_of(const file *f, const tensor *t)
{
    int64_t product = 1;
    uint32_t i;
    for (i = 0; i < t->shape.count; ++i) {
        product *= size_of(f, t, i);
    }
    return product;
}

/* Reads a tensor and checks what does not depend on who uses it. */
static const char *check_tensor(const file *f, uint32_t table, const vector *buffers, tensor *t)
{
    vector data, zero_point;
    uint64_t bytes;
    uint32_t i;
    const uint32_t type = field(f, table, 1), variable = field(f, table, 5);
    int32_t buffer;
    if (!elements(f, table, 0, 4, &t->shape) || !scalar(f, table, 2, &buffer) || !is_text(f, table, 3)) {
        return "a tensor's fields are outside of the file";
    }
    t->type = type != 0 ? f->bytes[type] : 0;
    bytes = element_bytes(t->type);
    if (bytes == 0) {
        return "a tensor's type has no size";
    }
    if (t->shape.count == 0 || t->shape.count > MOST_DIMENSIONS) {
        return "a tensor has no dimensions, or more than 6";
    }
    for (i = 0; i < t->shape.count; ++i) {
        const int32_t size = size_of(f, t, i);
        bytes *= size > 0 ? (uint32_t)size : 0;
        if (bytes == 0 || bytes > INT32_MAX) {
            return "a tensor's shape is not positive, or beyond 2^31 - 1 bytes";
        }
    }
    if (variable != 0 && f->bytes[variable] != 0) {
        return "a tensor is a variable";
    }
    if (buffer < 0 || (uint32_t)buffer >= buffers->count) {
        return "a tensor's buffer does not exist";
    }
    if (!elements(f, table_of(f, buffers, (uint32_t)buffer), 0, 1, &data)) {
        return "a buffer is outside of the file";
    }
    t->data_place = data.count != 0 ? data.place : 0;
    if (data.count != 0 && data.count != bytes) {
        return data.count < bytes ? "a tensor's buffer is shorter than its shape"
                                  : "a tensor's buffer is longer than its shape";
    }
    t->scale.count = 0;
    t->zero_point = t->axis = 0;
    if (field(f, table, 4) != 0) {
        const uint32_t quantization = follow(f, field(f, table, 4));
        if (!is_table(f, quantization) || !elements(f, quantization, 2, 4, &t->scale) ||
            !elements(f, quantization, 3, 8, &zero_point) || t->scale.count != zero_point.count ||
            !scalar(f, quantization, 6, &t->axis)) {
            return "a tensor's quantization is damaged";
        }
        if (t->scale.count > 1 && (t->axis < 0 || (uint32_t)t->axis >= t->shape.count ||
                                   (uint32_t)size_of(f, t, (uint32_t)t->axis) != t->scale.count)) {
            return "a tensor's scales are not as many as its channels";
        }
        for (i = 0; i < t->scale.count; ++i) {
            const float scale = real_at(f, t->scale.place + 4 * i);
            const int32_t low = (int32_t)read32(f, zero_point.place + 8 * i);
            const int32_t high = (int32_t)read32(f, zero_point.place + 8 * i + 4);
            t->zero_point = i == 0 ? low : t->zero_point;
            if (!(scale >= FLT_MIN && scale <= FLT_MAX)) {
                return "a tensor's scale is not positive and finite";
            }
            if (low < -128 || low > 127 || high != (low < 0 ? -1 : 0)) {
                return "a tensor's zero point is not in [-128, 127]";
            }
        }
    }
    return NULL;
}

/* Do all elements name one of `tensors` tensors? From index `optional` on, -1 may say that there is none. */
static int are_tensors(const file *f, const vector *indices, uint32_t tensors, uint32_t optional)
{
    uint32_t i;
    for (i = 0; i < indices->count; ++i) {
        const int32_t index = (int32_t)read32(f, indices->place + 4 * i);
        if (index < (i >= optional ? -1 : 0) || (index >= 0 && (uint32_t)index >= tensors)) {
            return 0;
        }
    }
    return 1;
}

/* ---- The built-in operators that exported models have ---- */

enum {
    ADD = 0, AVERAGE_POOL_2D = 1, CONV_2D = 3, DEPTHWISE_CONV_2D = 4, FULLY_CONNECTED = 9, MAX_POOL_2D = 17, MUL = 18,
    RESHAPE = 22, RESIZE_BILINEAR = 23, SOFTMAX = 25, CUSTOM = 32, PAD = 34, MEAN = 40, HARD_SWISH = 117,
    CONCATENATION = 2, LOGISTIC = 14, LEAKY_RELU = 98
};

/* The number of an operator's kind of options in the file. */
static uint32_t options_of(int32_t code)
{
    static const uint8_t kinds[][2] = {
        {ADD, 11}, {AVERAGE_POOL_2D, 5}, {CONV_2D, 1}, {DEPTHWISE_CONV_2D, 2}, {FULLY_CONNECTED, 8}, {MAX_POOL_2D, 5},
        {MUL, 21}, {RESHAPE, 17}, {RESIZE_BILINEAR, 15}, {SOFTMAX, 9}, {PAD, 22}, {MEAN, 27}, {HARD_SWISH, 91},
        {CONCATENATION, 10}, {LEAKY_RELU, 75}, /* LOGISTIC has none */
    };
    uint32_t i;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i) {
        if (kinds[i][0] == code) {
            return kinds[i][1];
        }
    }
    return 0;
}

enum { MOST_INPUTS = 10 }; /* of a concatenation; others have up to 3 */

/* An operator with its tensors; `in[i]` is there for i < inputs. */
typedef struct {
    uint32_t options; /* its table, or 0 */
    uint32_t inputs;
    tensor in[MOST_INPUTS], out;
} operation;

/* A field of the options, of one byte or of four; `absent` where it is not there. A wide one that cannot be read is -1. */
static int32_t option(const file *f, const operation *op, uint32_t slot, uint32_t width, int32_t absent)
{
    const uint32_t place = op->options != 0 ? field(f, op->options, slot) : 0;
    if (place == 0) {
        return absent;
    }
    if (width == 1) {
        return f->bytes[place];
    }
    return has(f, place, 4) && place % 4 == 0 ? (int32_t)read32(f, place) : -1;
}

static int same_shape(const file *f, const tensor *a, const tensor *b)
{
    return a->shape.count == b->shape.count &&
           memcmp(f->bytes + a->shape.place, f->bytes + b->shape.place, (size_t)4 * a->shape.count) == 0;
}

static int is_activation(const tensor *t) { return t->type == TYPE_INT8 && t->data_place == 0 && t->scale.count == 1; }

static int is_constant(const file *f, const operation *op, uint32_t input, uint32_t type, int64_t values)
{
    const tensor *const t = &op->in[input];
    return input < op->inputs && t->type == type && t->data_place != 0 && (values == 0 || values_of(f, t) == values);
}

static int32_t number_of(const file *f, const tensor *t, uint32_t index)
{
    return (int32_t)read32(f, t->data_place + 4 * index);
}

static double scale_of(const file *f, const tensor *t, uint32_t index)
{
    return (double)real_at(f, t->scale.place + 4 * index);
}

/* A factor from here on would be rounded to 1 in 31 bits: the interpreter stops where it must be below. */
#define ALMOST_ONE (1.0 - 1.0 / 4294967296.0)
#define MOST_GAIN 1073741824.0

/* Does the output's size follow along one axis? */
static int window_fits(const file *f, const operation *op, uint32_t axis, int32_t kernel, int32_t stride, int32_t dilation,
                       int32_t padding)
{
    const int64_t reach = padding == 0 ? 0 : ((int64_t)kernel - 1) * dilation;
    const int64_t room = size_of(f, &op->in[0], axis) - reach;
    return kernel > 0 && kernel < 65536 && stride > 0 && stride < 65536 && dilation > 0 && dilation < 65536 &&
           (padding == 0 || padding == 1) && room > 0 && size_of(f, &op->out, axis) == (room + stride - 1) / stride;
}

static int activation_fits(const file *f, const operation *op, int32_t activation)
{
    return activation == 0 ||
           ((activation == 1 || activation == 3) && 6.0 / scale_of(f, &op->out, 0) < MOST_GAIN); /* relu, relu6 */
}

/* Weights, bias and their scales: one for all, or one for each channel on `axis`. */
static int weights_fit(const file *f, const operation *op, int32_t channels, int32_t axis)
{
    const tensor *const weights = &op->in[1];
    const double ratio = scale_of(f, &op->in[0], 0) / scale_of(f, &op->out, 0);
    uint32_t i;
    if (!is_constant(f, op, 1, TYPE_INT8, 0) || weights->scale.count == 0 || weights->zero_point != 0 ||
        (weights->scale.count > 1 && (weights->axis != axis || weights->scale.count != (uint32_t)channels)) ||
        (op->inputs > 2 && !is_constant(f, op, 2, TYPE_INT32, channels))) {
        return 0;
    }
    for (i = 0; i < weights->scale.count; ++i) {
        if (!(ratio * scale_of(f, weights, i) < MOST_GAIN)) {
            return 0;
        }
    }
    return 1;
}

static int convolution_fits(const file *f, const operation *op, int depthwise)
{
    const tensor *const x = &op->in[0], *const weights = &op->in[1], *const y = &op->out;
    const uint32_t later = depthwise ? 1 : 0; /* the depth multiplier comes before the activation */
    int32_t in_c, out_c;
    if (op->inputs < 2 || x->shape.count != 4 || y->shape.count != 4 || weights->shape.count != 4) {
        return 0;
    }
    in_c = size_of(f, x, 3);
    out_c = size_of(f, y, 3);
    if (depthwise ? size_of(f, weights, 0) != 1 || size_of(f, weights, 3) != out_c ||
                        (int64_t)in_c * option(f, op, 3, 4, 0) != out_c
                  : size_of(f, weights, 0) != out_c || size_of(f, weights, 3) != in_c) {
        return 0;
    }
    return size_of(f, x, 0) == size_of(f, y, 0) && weights_fit(f, op, out_c, depthwise ? 3 : 0) &&
           activation_fits(f, op, option(f, op, 3 + later, 1, 0)) &&
           window_fits(f, op, 1, size_of(f, weights, 1), option(f, op, 2, 4, 0), option(f, op, 5 + later, 4, 1),
                       option(f, op, 0, 1, 0)) &&
           window_fits(f, op, 2, size_of(f, weights, 2), option(f, op, 1, 4, 0), option(f, op, 4 + later, 4, 1),
                       option(f, op, 0, 1, 0));
}

static int dense_fits(const file *f, const operation *op)
{
    const tensor *const weights = &op->in[1], *const y = &op->out;
    int32_t channels;
    if (op->inputs < 2 || weights->shape.count != 2 || option(f, op, 1, 1, 0) != 0) {
        return 0;
    }
    channels = size_of(f, weights, 0);
    return size_of(f, y, y->shape.count - 1) == channels &&
           values_of(f, &op->in[0]) == values_of(f, y) / channels * size_of(f, weights, 1) &&
           weights_fit(f, op, channels, 0) && activation_fits(f, op, option(f, op, 0, 1, 0));
}

static int pool_fits(const file *f, const operation *op)
{
    const tensor *const x = &op->in[0], *const y = &op->out;
    return x->shape.count == 4 && y->shape.count == 4 && size_of(f, x, 0) == size_of(f, y, 0) &&
           size_of(f, x, 3) == size_of(f, y, 3) && activation_fits(f, op, option(f, op, 5, 1, 0)) &&
           window_fits(f, op, 1, option(f, op, 4, 4, 0), option(f, op, 2, 4, 0), 1, option(f, op, 0, 1, 0)) &&
           window_fits(f, op, 2, option(f, op, 3, 4, 0), option(f, op, 1, 4, 0), 1, option(f, op, 0, 1, 0));
}

static int pair_fits(const file *f, const operation *op, int add)
{
    const tensor *const x = &op->in[0], *const other = &op->in[1], *const y = &op->out;
    double one, two, out, widest;
    if (op->inputs != 2 || !is_activation(other) || !same_shape(f, x, y) || !activation_fits(f, op, option(f, op, 0, 1, 0))) {
        return 0;
    }
    one = scale_of(f, x, 0);
    two = scale_of(f, other, 0);
    out = scale_of(f, y, 0);
    widest = 2.0 * (one > two ? one : two);
    if (add) {
        return same_shape(f, x, other) && widest / (1048576.0 * out) < ALMOST_ONE;
    }
    return one * two / out < MOST_GAIN &&
           (same_shape(f, x, other) ||
            (y->shape.count == 4 && other->shape.count == 4 && size_of(f, other, 0) == size_of(f, y, 0) &&
             size_of(f, other, 1) == 1 && size_of(f, other, 2) == 1 && size_of(f, other, 3) == size_of(f, y, 3)));
}

static int mean_fits(const file *f, const operation *op)
{
    const tensor *const x = &op->in[0], *const y = &op->out, *const axes = &op->in[1];
    int32_t first, second;
    if (x->shape.count != 4 || !is_constant(f, op, 1, TYPE_INT32, 2)) {
        return 0;
    }
    first = number_of(f, axes, 0);
    second = number_of(f, axes, 1);
    return ((first == 1 && second == 2) || (first == 2 && second == 1)) && size_of(f, y, 0) == size_of(f, x, 0) &&
           y->shape.count == (option(f, op, 0, 1, 0) != 0 ? 4u : 2u) &&
           size_of(f, y, y->shape.count - 1) == size_of(f, x, 3) &&
           values_of(f, y) == (int64_t)size_of(f, x, 0) * size_of(f, x, 3) &&
           scale_of(f, x, 0) / scale_of(f, y, 0) < MOST_GAIN;
}

static int resize_fits(const file *f, const operation *op)
{
    const tensor *const x = &op->in[0], *const y = &op->out;
    uint32_t i;
    if (x->shape.count != 4 || y->shape.count != 4 || !is_constant(f, op, 1, TYPE_INT32, 2) ||
        size_of(f, x, 0) != size_of(f, y, 0) || size_of(f, x, 3) != size_of(f, y, 3) ||
        (option(f, op, 2, 1, 0) != 0 && option(f, op, 3, 1, 0) != 0)) {
        return 0;
    }
    for (i = 0; i < 2; ++i) {
        if (size_of(f, y, 1 + i) != number_of(f, &op->in[1], i) || size_of(f, y, 1 + i) > INT16_MAX ||
            size_of(f, x, 1 + i) > INT16_MAX) {
            return 0;
        }
    }
    return 1;
}

static int pad_fits(const file *f, const operation *op)
{
    const tensor *const x = &op->in[0], *const y = &op->out;
    uint32_t i;
    if (x->shape.count != 4 || y->shape.count != 4 || !is_constant(f, op, 1, TYPE_INT32, 8)) {
        return 0;
    }
    for (i = 0; i < 4; ++i) {
        const int32_t before = number_of(f, &op->in[1], 2 * i), after = number_of(f, &op->in[1], 2 * i + 1);
        if (before < 0 || after < 0 || (int64_t)size_of(f, x, i) + before + after != size_of(f, y, i)) {
            return 0;
        }
    }
    return 1;
}

static int reshape_fits(const file *f, const operation *op)
{
    const tensor *const y = &op->out;
    uint32_t i;
    if (op->inputs != 2 || !is_constant(f, op, 1, TYPE_INT32, y->shape.count) || values_of(f, &op->in[0]) != values_of(f, y)) {
        return 0;
    }
    for (i = 0; i < y->shape.count; ++i) {
        const int32_t size = number_of(f, &op->in[1], i);
        if (size != -1 && size != size_of(f, y, i)) {
            return 0;
        }
    }
    return 1;
}

static int softmax_fits(const file *f, const operation *op)
{
    const uint32_t beta = op->options != 0 ? field(f, op->options, 0) : 0;
    return same_shape(f, &op->in[0], &op->out) && beta != 0 && has(f, beta, 4) && real_at(f, beta) == 1.0f &&
           scale_of(f, &op->in[0], 0) * 67108864.0 > 1.0; /* 2^26 */
}

static int hard_swish_fits(const file *f, const operation *op)
{
    const double fine = scale_of(f, &op->in[0], 0) / 128.0;
    return same_shape(f, &op->in[0], &op->out) && fine / scale_of(f, &op->out, 0) < ALMOST_ONE &&
           fine / (3.0 / 32768.0) < 32768.0 && fine * 536870912.0 >= 1.0; /* 2^29: input steps of 2^-22 */
}

static int concatenation_fits(const file *f, const operation *op)
{
    const tensor *const y = &op->out;
    const int32_t axis = option(f, op, 0, 4, 0);
    int64_t joined = 0;
    uint32_t i, at;
    if (axis < 1 || (uint32_t)axis >= y->shape.count || option(f, op, 1, 1, 0) != 0) {
        return 0;
    }
    for (i = 0; i < op->inputs; ++i) {
        const tensor *const x = &op->in[i];
        if (!is_activation(x) || x->shape.count != y->shape.count || scale_of(f, x, 0) != scale_of(f, y, 0) ||
            x->zero_point != y->zero_point) {
            return 0;
        }
        for (at = 0; at < y->shape.count; ++at) {
            if (at != (uint32_t)axis && size_of(f, x, at) != size_of(f, y, at)) {
                return 0;
            }
        }
        joined += size_of(f, x, (uint32_t)axis);
    }
    return joined == size_of(f, y, (uint32_t)axis);
}

static int leaky_relu_fits(const file *f, const operation *op)
{
    const uint32_t place = op->options != 0 ? field(f, op->options, 0) : 0;
    const float slope = place != 0 && has(f, place, 4) ? real_at(f, place) : 0.0f;
    const double gain = scale_of(f, &op->in[0], 0) / scale_of(f, &op->out, 0);
    return same_shape(f, &op->in[0], &op->out) && slope >= 0.0009765625f && slope <= 1024.0f &&
           gain * (slope > 1.0f ? (double)slope : 1.0) < 2097152.0; /* 2^21 */
}

static int logistic_fits(const file *f, const operation *op)
{
    const double scale = scale_of(f, &op->in[0], 0);
    return same_shape(f, &op->in[0], &op->out) && scale_of(f, &op->out, 0) == 1.0 / 256.0 && op->out.zero_point == -128 &&
           scale * 67108864.0 > 1.0 && scale < 1048576.0; /* 2^-26, 2^20 */
}

/* Are the operator's inputs, options and output as the interpreter takes them for granted? */
static int operator_fits(const file *f, const operation *op, int32_t code)
{
    if (code == CUSTOM) {
        return 1; /* our operators look for themselves */
    }
    if (op->inputs == 0 || !is_activation(&op->in[0]) || !is_activation(&op->out)) {
        return 0;
    }
    switch (code) {
    case ADD:
    case MUL:
        return pair_fits(f, op, code == ADD);
    case AVERAGE_POOL_2D:
    case MAX_POOL_2D:
        return pool_fits(f, op);
    case CONV_2D:
    case DEPTHWISE_CONV_2D:
        return convolution_fits(f, op, code == DEPTHWISE_CONV_2D);
    case FULLY_CONNECTED:
        return dense_fits(f, op);
    case RESHAPE:
        return reshape_fits(f, op);
    case RESIZE_BILINEAR:
        return resize_fits(f, op);
    case SOFTMAX:
        return softmax_fits(f, op);
    case PAD:
        return pad_fits(f, op);
    case MEAN:
        return mean_fits(f, op);
    case HARD_SWISH:
        return hard_swish_fits(f, op);
    case CONCATENATION:
        return concatenation_fits(f, op);
    case LEAKY_RELU:
        return leaky_relu_fits(f, op);
    case LOGISTIC:
        return logistic_fits(f, op);
    default:
        return 0;
    }
}

/* The number of an operator by its code's table: older files have it in a byte alone. */
static int32_t builtin_code(const file *f, uint32_t code)
{
    const uint32_t place = field(f, code, 0);
    const int32_t old = place != 0 ? (int8_t)f->bytes[place] : 0;
    int32_t number;
    (void)scalar(f, code, 3, &number); /* the codes were checked */
    return number > old ? number : old;
}

static const char *check_operator(const file *f, uint32_t table, const vector *codes, const vector *tensors,
                                  const vector *buffers)
{
    vector inputs, outputs, options, intermediates;
    operation op;
    int32_t code;
    uint32_t i;
    if (!scalar(f, table, 0, &code) || !elements(f, table, 1, 4, &inputs) || !elements(f, table, 2, 4, &outputs) ||
        !elements(f, table, 5, 1, &options) || !elements(f, table, 8, 4, &intermediates)) {
        return "an operator's fields are outside of the file";
    }
    if (code < 0 || (uint32_t)code >= codes->count) {
        return "an operator's code does not exist";
    }
    code = builtin_code(f, table_of(f, codes, (uint32_t)code));
    if (inputs.count == 0 || inputs.count > (code == CONCATENATION ? MOST_INPUTS : 3) || outputs.count != 1 ||
        intermediates.count != 0) {
        return "an operator must have 1 output, and 1 to 3 inputs or of a concatenation 10";
    }
    if (!are_tensors(f, &inputs, tensors->count, code == CUSTOM || code == CONCATENATION ? MOST_INPUTS : 2) || !are_tensors(f, &outputs, tensors->count, 1)) {
        return "an operator's tensor does not exist";
    }
    op.options = field(f, table, 4) != 0 ? follow(f, field(f, table, 4)) : 0;
    if (field(f, table, 4) != 0 && !is_table(f, op.options)) {
        return "an operator's options are outside of the file";
    }
    i = field(f, table, 3);
    if ((i != 0 ? f->bytes[i] : 0) != options_of(code)) {
        return "an operator's options are those of another";
    }
    op.inputs = 0;
    for (i = 0; i < inputs.count; ++i) { /* all tensors were checked before */
        const int32_t index = (int32_t)read32(f, inputs.place + 4 * i);
        if (index >= 0) {
            (void)check_tensor(f, table_of(f, tensors, (uint32_t)index), buffers, &op.in[i]);
            op.inputs = i + 1;
        }
    }
    (void)check_tensor(f, table_of(f, tensors, read32(f, outputs.place)), buffers, &op.out);
    if (op.out.data_place != 0) {
        return "an operator's output is a constant";
    }
    return operator_fits(f, &op, code) ? NULL : "an operator's tensors do not fit its options";
}

static const char *check_subgraph(const file *f, uint32_t subgraph, const vector *buffers, const vector *codes, int32_t *index)
{
    vector tensors, inputs, outputs, operations;
    const char *fault;
    int64_t activations = 0;
    uint32_t i;
    if (!elements(f, subgraph, 0, 4, &tensors) || !elements(f, subgraph, 1, 4, &inputs) ||
        !elements(f, subgraph, 2, 4, &outputs) || !elements(f, subgraph, 3, 4, &operations) ||
        !is_text(f, subgraph, 4)) {
        return "a subgraph's fields are outside of the file";
    }
    for (i = 0; i < tensors.count; ++i) {
        const uint32_t table = table_of(f, &tensors, i);
        tensor found;
        *index = (int32_t)i;
        fault = table != 0 ? check_tensor(f, table, buffers, &found) : "a tensor is outside of the file";
        if (fault != NULL) {
            return fault;
        }
        activations += found.data_place == 0 ? values_of(f, &found) * element_bytes(found.type) : 0;
        if (activations > MOST_ACTIVATION_BYTES) {
            return "the activations take more than 2^28 bytes";
        }
    }
    for (i = 0; i < operations.count; ++i) {
        const uint32_t table = table_of(f, &operations, i);
        *index = (int32_t)i;
        fault = table != 0 ? check_operator(f, table, codes, &tensors, buffers) : "an operator is outside of the file";
        if (fault != NULL) {
            return fault;
        }
    }
    *index = -1;
    if (inputs.count != 1 || outputs.count != 1 || !are_tensors(f, &inputs, tensors.count, 1) ||
        !are_tensors(f, &outputs, tensors.count, 1)) {
        return "a subgraph's input or output does not exist, or is not one";
    }
    return NULL;
}

const char *saaug_check_model(const void *model, size_t length, int32_t *index)
{
    file f;
    vector codes, subgraphs, buffers, metadata, name;
    uint32_t root, i;
    int32_t version, ignored;
    int32_t *const at = index != NULL ? index : &ignored;
    *at = -1;
    if (model == NULL || length < 12 || length > INT32_MAX) {
        return "this is not a model: its length";
    }
    f.bytes = model;
    f.length = (uint32_t)length;
    if (memcmp(f.bytes + 4, "TFL3", 4) != 0) {
        return "this is not a model: its identifier";
    }
    root = follow(&f, 0);
    if (!is_table(&f, root) || !scalar(&f, root, 0, &version) || !elements(&f, root, 1, 4, &codes) ||
        !elements(&f, root, 2, 4, &subgraphs) || !elements(&f, root, 4, 4, &buffers) ||
        !elements(&f, root, 6, 4, &metadata)) {
        return "the model's fields are outside of the file";
    }
    if (version != 3) {
        return "the model's version is not 3";
    }
    if (subgraphs.count != 1 || buffers.count == 0) {
        return "the model has no buffer, or not one subgraph";
    }
    if (metadata.count != 0) {
        return "the model has metadata, which may move the interpreter's memory about";
    }
    for (i = 0; i < codes.count; ++i) {
        const uint32_t code = table_of(&f, &codes, i);
        int32_t number;
        if (code == 0 || !is_text(&f, code, 1) || !scalar(&f, code, 2, &number) || !scalar(&f, code, 3, &number)) {
            *at = (int32_t)i;
            return "an operator code is outside of the file";
        }
        if (builtin_code(&f, code) == CUSTOM && (!elements(&f, code, 1, 1, &name) || name.count == 0)) {
            *at = (int32_t)i;
            return "a custom operator has no name";
        }
    }
    for (i = 0; i < buffers.count; ++i) {
        if (table_of(&f, &buffers, i) == 0) {
            *at = (int32_t)i;
            return "a buffer is outside of the file";
        }
    }
    i = table_of(&f, &subgraphs, 0);
    return i != 0 ? check_subgraph(&f, i, &buffers, &codes, at) : "a subgraph is outside of the file";
}
