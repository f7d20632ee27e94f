/* A bounds-checked walk over a .tflite file. Slot numbers are those of version 3 of the TensorFlow Lite schema. */
#include "saaug_model.h"

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
    const uint32_t offset = has(f, place, 4) ? read32(f, place) : 0;
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

/* A scalar field of four bytes. @return 0 if it lies outside of the file. */
static int scalar(const file *f, uint32_t table, uint32_t slot, int32_t *value)
{
    const uint32_t place = field(f, table, slot);
    *value = 0;
    if (place != 0) {
        if (!has(f, place, 4)) {
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

static const char *check_tensor(const file *f, uint32_t tensor, const vector *buffers)
{
    vector shape, data, scale, zero_point;
    uint64_t bytes;
    uint32_t quantization, i;
    const uint32_t type = field(f, tensor, 1);
    int32_t buffer;
    if (!elements(f, tensor, 0, 4, &shape) || !scalar(f, tensor, 2, &buffer) || !is_text(f, tensor, 3)) {
        return "a tensor's fields are outside of the file";
    }
    bytes = element_bytes(type != 0 ? f->bytes[type] : 0);
    if (bytes == 0) {
        return "a tensor's type has no size";
    }
    for (i = 0; i < shape.count; ++i) {
        const uint32_t size = read32(f, shape.place + 4 * i);
        bytes *= size;
        if (size > INT32_MAX || bytes > INT32_MAX) {
            return "a tensor's shape is negative or beyond 2^31 - 1 bytes";
        }
    }
    if (buffer < 0 || (uint32_t)buffer >= buffers->count) {
        return "a tensor's buffer does not exist";
    }
    if (!elements(f, table_of(f, buffers, (uint32_t)buffer), 0, 1, &data)) {
        return "a buffer is outside of the file";
    }
    if (data.count != 0 && data.count < bytes) {
        return "a tensor's buffer is shorter than its shape";
    }
    if (field(f, tensor, 4) != 0) {
        quantization = follow(f, field(f, tensor, 4));
        if (!is_table(f, quantization) || !elements(f, quantization, 2, 4, &scale) ||
            !elements(f, quantization, 3, 8, &zero_point) || scale.count != zero_point.count) {
            return "a tensor's quantization is damaged";
        }
    }
    return NULL;
}

/* Do all elements name one of `tensors` tensors, or none? */
static int are_tensors(const file *f, const vector *indices, uint32_t tensors)
{
    uint32_t i;
    for (i = 0; i < indices->count; ++i) {
        const int32_t tensor = (int32_t)read32(f, indices->place + 4 * i);
        if (tensor < -1 || (tensor >= 0 && (uint32_t)tensor >= tensors)) {
            return 0;
        }
    }
    return 1;
}

static const char *check_operator(const file *f, uint32_t operation, uint32_t codes, uint32_t tensors)
{
    vector inputs, outputs, options, intermediates;
    int32_t code;
    if (!scalar(f, operation, 0, &code) || !elements(f, operation, 1, 4, &inputs) ||
        !elements(f, operation, 2, 4, &outputs) || !elements(f, operation, 5, 1, &options) ||
        !elements(f, operation, 8, 4, &intermediates)) {
        return "an operator's fields are outside of the file";
    }
    if (code < 0 || (uint32_t)code >= codes) {
        return "an operator's code does not exist";
    }
    if (!are_tensors(f, &inputs, tensors) || !are_tensors(f, &outputs, tensors) ||
        !are_tensors(f, &intermediates, tensors)) {
        return "an operator's tensor does not exist";
    }
    if (field(f, operation, 4) != 0 && !is_table(f, follow(f, field(f, operation, 4)))) {
        return "an operator's options are outside of the file";
    }
    return NULL;
}

static const char *check_subgraph(const file *f, uint32_t subgraph, const vector *buffers, uint32_t codes, int32_t *index)
{
    vector tensors, inputs, outputs, operations;
    const char *fault;
    uint32_t i;
    if (!elements(f, subgraph, 0, 4, &tensors) || !elements(f, subgraph, 1, 4, &inputs) ||
        !elements(f, subgraph, 2, 4, &outputs) || !elements(f, subgraph, 3, 4, &operations) ||
        !is_text(f, subgraph, 4)) {
        return "a subgraph's fields are outside of the file";
    }
    for (i = 0; i < tensors.count; ++i) {
        const uint32_t tensor = table_of(f, &tensors, i);
        *index = (int32_t)i;
        fault = tensor != 0 ? check_tensor(f, tensor, buffers) : "a tensor is outside of the file";
        if (fault != NULL) {
            return fault;
        }
    }
    for (i = 0; i < operations.count; ++i) {
        const uint32_t operation = table_of(f, &operations, i);
        *index = (int32_t)i;
        fault = operation != 0 ? check_operator(f, operation, codes, tensors.count) : "an operator is outside of the file";
        if (fault != NULL) {
            return fault;
        }
    }
    *index = -1;
    return are_tensors(f, &inputs, tensors.count) && are_tensors(f, &outputs, tensors.count)
               ? NULL
               : "a subgraph's input or output does not exist";
}

const char *saaug_check_model(const void *model, size_t length, int32_t *index)
{
    file f;
    vector codes, subgraphs, buffers;
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
        !elements(&f, root, 2, 4, &subgraphs) || !elements(&f, root, 4, 4, &buffers)) {
        return "the model's fields are outside of the file";
    }
    if (version != 3) {
        return "the model's version is not 3";
    }
    if (subgraphs.count == 0 || buffers.count == 0) {
        return "the model has no subgraph or no buffer";
    }
    for (i = 0; i < codes.count; ++i) {
        const uint32_t code = table_of(&f, &codes, i);
        int32_t number;
        if (code == 0 || !is_text(&f, code, 1) || !scalar(&f, code, 2, &number) || !scalar(&f, code, 3, &number)) {
            *at = (int32_t)i;
            return "an operator code is outside of the file";
        }
    }
    for (i = 0; i < buffers.count; ++i) {
        if (table_of(&f, &buffers, i) == 0) {
            *at = (int32_t)i;
            return "a buffer is outside of the file";
        }
    }
    for (i = 0; i < subgraphs.count; ++i) {
        const uint32_t subgraph = table_of(&f, &subgraphs, i);
        const char *const fault = subgraph != 0 ? check_subgraph(&f, subgraph, &buffers, codes.count, at)
                                                : "a subgraph is outside of the file";
        if (fault != NULL) {
            return fault;
        }
    }
    return NULL;
}
