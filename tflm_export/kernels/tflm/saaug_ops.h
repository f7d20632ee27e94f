/**
 * @file saaug_ops.h
 * The custom operators of exported models for TensorFlow Lite for Microcontrollers.
 *
 *     tflite::MicroMutableOpResolver<2> resolver;
 *     resolver.AddCustom("SHIFT_CONV_2D", saaug::Register_SHIFT_CONV_2D());
 *
 * Prepare checks everything that can be wrong with a node, prints the tensor at fault and returns an error; Eval trusts. An
 * operator keeps some 120 bytes in the arena's tail, and its kernel's scratch in the head. What lies outside of a node, such as
 * a truncated file, is found by saaug_check_model() of saaug_model.h before the interpreter reads it.
 */
#ifndef SAAUG_OPS_H
#define SAAUG_OPS_H

#include "saaug_op_list.h"
#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_common.h"

/* TFLM's types are in the global namespace or in tflite::micro, depending on its version. */
namespace tflite {
namespace micro {}
}  // namespace tflite

namespace saaug {
namespace tflm {
using namespace ::tflite;         // NOLINT(build/namespaces)
using namespace ::tflite::micro;  // NOLINT(build/namespaces)
using Registration = TFLMRegistration;
}  // namespace tflm

/** Register_SHIFT_CONV_2D(), Register_ADDER_CONV_2D(), ... of every operator in saaug_op_list.h. */
#define SAAUG_DECLARE_REGISTER(NAME, name, number, KIND, TERMS) const tflm::Registration* Register_##NAME();
SAAUG_FOR_EACH_OP(SAAUG_DECLARE_REGISTER)
#undef SAAUG_DECLARE_REGISTER

}  // namespace saaug

#endif  // SAAUG_OPS_H
