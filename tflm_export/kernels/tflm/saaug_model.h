/**
 * @file saaug_model.h
 * A check of a .tflite file before TensorFlow Lite for Microcontrollers reads it.
 *
 * The interpreter follows the offsets of the file wherever they lead, takes the length of a constant from its tensor's
 * shape, and stops the processor where a scale is out of proportion. This finds that first: a walk over what the interpreter
 * follows (codes, subgraph, tensors, their quantization and buffers, operators and their options), then the rules of every
 * built-in operator that exported models have: its inputs, its options, the size of its output. Other built-in operators are
 * refused. Our own operators check themselves, in their Prepare.
 */
#ifndef SAAUG_MODEL_H
#define SAAUG_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * @param model   the file, aligned to 16 bytes as the interpreter wants it.
 * @param length  of the file, in bytes.
 * @param index   the tensor, operator or other element at fault, or -1; may be NULL.
 * @return NULL if the file is sound, else what is wrong with it, in words.
 */
const char *saaug_check_model(const void *model, size_t length, int32_t *index);

#ifdef __cplusplus
}
#endif

#endif /* SAAUG_MODEL_H */
