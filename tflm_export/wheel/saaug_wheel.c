/**
 * @file saaug_wheel.c
 * Our operators inside the interpreter of the tflite-micro Python wheel, for host-side runs and tests.
 *
 * The wheel looks a registerer up by name and calls it with its op resolver. No header of TFLite Micro is used: the few
 * structs below are the prefixes that this file reads or writes, the same in the wheels of February to October 2026. On
 * a wheel whose structs look different the registerer returns false and writes nothing.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "saaug_nn.h"

typedef struct {
    int size;
    int data[];
} int_array;

typedef struct {
    void *data;
    int_array *dims;
    int type;
} eval_tensor;

typedef struct {
    int_array *inputs, *outputs, *intermediates;
    void *user_data;
} node_prefix;

typedef struct {
    void *(*init)(void *context, const char *buffer, size_t length);
    void (*free)(void *context, void *buffer);
    int (*prepare)(void *context, node_prefix *node);
    int (*invoke)(void *context, node_prefix *node);
    void (*reset)(void *context, void *buffer);
    int32_t builtin_code;
    const char *custom_name;
} registration;

enum { RESOLVER_SIZE = 200, STATE_MAGIC = 0x53414147 };
enum { BUILTIN_CUSTOM = 32, TYPE_INT32 = 2, TYPE_UINT8 = 3, TYPE_INT8 = 9 }; /* of the file and of the runtime */

typedef struct {
    void *vtable;
    registration registrations[RESOLVER_SIZE];
    unsigned int length;
} resolver_prefix;

typedef struct {
    int magic;
    int checked;
    size_t length;
    const char *record;
} state;

typedef eval_tensor *get_input(const void *context, const node_prefix *node, int index);
typedef eval_tensor *get_output(const void *context, const node_prefix *node, int index);

static get_input *input_of;
static get_output *output_of;

/** Addresses of tflite::micro::GetEvalInput and GetEvalOutput of the loaded wheel. */
void saaug_wheel_set_accessors(void *input_address, void *output_address)
{
    memcpy(&input_of, &input_address, sizeof input_of);
    memcpy(&output_of, &output_address, sizeof output_of);
}

static void *start(void *context, const char *buffer, size_t length)
{
    state *const made = malloc(sizeof *made);
    (void)context;
    if (made != NULL) {
        made->magic = STATE_MAGIC;
        made->checked = 0;
        made->length = length;
        made->record = buffer;
    }
    return made;
}

static void finish(void *context, void *buffer)
{
    (void)context;
    free(buffer);
}

static int complain(const char *what, saaug_status status)
{
    fprintf(stderr, "saaug: %s (status %d)\n", what, (int)status);
    return 1;
}

/* How many elements a tensor has, or 0 where its sizes are not positive or have a product beyond 2^31 - 1. */
static int32_t elements(const eval_tensor *tensor)
{
    int64_t product = tensor->dims->size > 0;
    int i;
    for (i = 0; i < tensor->dims->size; ++i) {
        const int size = tensor->dims->data[i];
        product = size > 0 && product <= INT32_MAX / size ? product * size : 0;
    }
    return (int32_t)product;
}

/* An activation as a batch of images, or of rows where it is flat. @return 0 if it is neither. */
static int sizes(const eval_tensor *tensor, int flat, int32_t *n, int32_t *h, int32_t *w, int32_t *c)
{
    if (elements(tensor) == 0 || (flat ? tensor->dims->size < 2 : tensor->dims->size != 4)) {
        return 0;
    }
    *n = tensor->dims->data[0];
    *h = flat ? 1 : tensor->dims->data[1];
    *w = flat ? 1 : tensor->dims->data[2];
    *c = flat ? elements(tensor) / *n : tensor->dims->data[3];
    return 1;
}

/* One of our operators, as the table has them. */
typedef struct {
    int32_t number;
    const char *name;
    saaug_layer *run;
    saaug_layer_size *scratch_bytes;
    int flat;   /* reads what it is given as rows of values */
    int inputs; /* 3 with weights and params, 1 without */
} operator_row;

enum { KIND_CONV = 0, KIND_DEPTHWISE = 0, KIND_DENSE = 1 };
enum { TERMS_SHIFT = 3, TERMS_ADDER = 3, TERMS_MOVES = 1 };
#define ROW(NAME, name, number, KIND, TERMS)                                                                           \
    {number, #NAME, saaug_##name##_s8, saaug_##name##_s8_get_buffer_size, KIND_##KIND, TERMS_##TERMS},
static const operator_row operators[] = {SAAUG_FOR_EACH_OP(ROW)};
#define OPERATORS (sizeof operators / sizeof operators[0])

static const operator_row *operator_of(int32_t number)
{
    size_t i = 0;
    while (operators[i].number != number) { /* the option record was checked */
        ++i;
    }
    return &operators[i];
}

static int invoke(void *context, node_prefix *node)
{
    state *const own = node->user_data;
    const eval_tensor *x, *weights, *params;
    eval_tensor *y;
    saaug_options options;
    saaug_shape shape;
    const operator_row *own_operator;
    saaug_status status;
    void *scratch;
    int32_t bytes, out_batches;
    int flat, has_weights;

    if (own == NULL || own->magic != STATE_MAGIC) {
        return complain("this wheel's node struct is not the one that was expected", SAAUG_OK);
    }
    status = saaug_parse_options(own->record, own->length, &options);
    if (status != SAAUG_OK) {
        return complain("bad option record", status);
    }
    own_operator = operator_of(options.op);
    flat = own_operator->flat;
    has_weights = own_operator->inputs > 1;
    if (node->inputs->size != own_operator->inputs) {
        return complain("the inputs must be as many as the operator has", SAAUG_OK);
    }
    x = input_of(context, node, 0);
    weights = has_weights ? input_of(context, node, 1) : NULL;
    params = has_weights ? input_of(context, node, 2) : NULL;
    y = output_of(context, node, 0);
    if (x == NULL || y == NULL || x->type != TYPE_INT8 || y->type != TYPE_INT8 ||
        (has_weights &&
         (weights == NULL || params == NULL || weights->type != TYPE_UINT8 || params->type != TYPE_INT32))) {
        return complain("tensors must be int8, uint8 weights, int32 params, int8 output", SAAUG_OK);
    }
    if (!sizes(x, flat, &shape.batches, &shape.in_h, &shape.in_w, &shape.in_c) ||
        !sizes(y, flat, &out_batches, &shape.out_h, &shape.out_w, &shape.out_c) || out_batches != shape.batches) {
        return complain("the shapes of input and output must be sound, and of as many batches", SAAUG_BAD_INPUT);
    }
    if (!own->checked) {
        status = saaug_check(&options, &shape);
        if (status == SAAUG_OK && has_weights) {
            status = saaug_check_constants(&options, &shape, weights->data, (size_t)elements(weights), params->data,
                                           (size_t)elements(params), NULL);
        }
        if (status != SAAUG_OK) {
            return complain("the layer's tensors do not fit its options", status);
        }
        own->checked = 1;
    }
    bytes = own_operator->scratch_bytes(&options, &shape);
    if (bytes < 0) {
        return complain("no scratch size", SAAUG_BAD_SCRATCH);
    }
    scratch = malloc((size_t)bytes + 1); /* of its own: interpreters may run in several threads */
    if (scratch == NULL) {
        return complain("out of memory", SAAUG_BAD_SCRATCH);
    }
    status = own_operator->run(&options, &shape, x->data, has_weights ? weights->data : NULL,
                               has_weights ? params->data : NULL, y->data, scratch);
    free(scratch);
    return status == SAAUG_OK ? 0 : complain("the layer failed", status);
}

/* The tensors' data is not there yet: the first invoke checks it. */
static int prepare(void *context, node_prefix *node)
{
    const state *const own = node->user_data;
    (void)context;
    if (own == NULL || own->magic != STATE_MAGIC) {
        return complain("this wheel's node struct is not known", SAAUG_OK);
    }
    if (node->inputs == NULL || node->inputs->size < 1 || node->outputs == NULL || node->outputs->size != 1) {
        return complain("there must be inputs and 1 output", SAAUG_OK);
    }
    return 0;
}

bool saaug_wheel_register(resolver_prefix *resolver)
{
    const unsigned int count = (unsigned int)OPERATORS;
    unsigned int i;
    if (input_of == NULL || output_of == NULL || sizeof(registration) != 56 || resolver->length == 0 ||
        resolver->length > RESOLVER_SIZE - count) {
        return false;
    }
    for (i = 0; i < resolver->length; ++i) {
        const registration *const known = &resolver->registrations[i];
        if (known->invoke == NULL || known->builtin_code < 0 || known->builtin_code > 300 ||
            (known->builtin_code != BUILTIN_CUSTOM && known->custom_name != NULL)) {
            return false;
        }
    }
    for (i = 0; i < count; ++i) {
        registration *const slot = &resolver->registrations[resolver->length];
        memset(slot, 0, sizeof *slot);
        slot->init = start;
        slot->free = finish;
        slot->prepare = prepare;
        slot->invoke = invoke;
        slot->builtin_code = BUILTIN_CUSTOM;
        slot->custom_name = operators[i].name;
        resolver->length += 1;
    }
    return true;
}
