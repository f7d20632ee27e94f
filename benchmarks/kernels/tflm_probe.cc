// What benchmarks/tflite_micro.py links of TFLite Micro: a function for each operator that a resolver can name, one for the
// interpreter, and a program that allocates models and says how much of the arena they used.
#include <cstdint>
#include <cstdio>

#include "saaug_model.h"
#include "saaug_ops.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

using Resolver = tflite::MicroMutableOpResolver<24>;
using One = tflite::MicroMutableOpResolver<1>;
using Two = tflite::MicroMutableOpResolver<2>;

#define BUILTINS(X) \
  X(ADD, Add) X(AVERAGE_POOL_2D, AveragePool2D) X(CONCATENATION, Concatenation) X(CONV_2D, Conv2D) \
  X(DEPTHWISE_CONV_2D, DepthwiseConv2D) X(FULLY_CONNECTED, FullyConnected) X(HARD_SWISH, HardSwish) \
  X(LEAKY_RELU, LeakyRelu) X(LOGISTIC, Logistic) X(MAX_POOL_2D, MaxPool2D) X(MEAN, Mean) X(MUL, Mul) X(PAD, Pad) \
  X(RESHAPE, Reshape) X(RESIZE_BILINEAR, ResizeBilinear) X(SOFTMAX, Softmax)

extern "C" {

char size_interpreter[sizeof(tflite::MicroInterpreter)], size_one[sizeof(One)], size_two[sizeof(Two)];

#define BUILTIN(NAME, Method) \
  int probe_##NAME(Resolver* resolver) { return resolver->Add##Method(); }
BUILTINS(BUILTIN)

#define OURS(NAME, name, number, KIND, TERMS) \
  int probe_##NAME(Resolver* resolver) { return resolver->AddCustom(#NAME, saaug::Register_##NAME()); }
SAAUG_FOR_EACH_OP(OURS)

int probe_check(const unsigned char* data, unsigned size, int32_t* index) {
  return saaug_check_model(data, size, index) != nullptr;
}

int probe_interpreter(const void* model, One* resolver, uint8_t* arena, int size, void** input, void** output) {
  tflite::InitializeTarget();
  static tflite::MicroInterpreter interpreter(tflite::GetModel(model), *resolver, arena, size);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    return 1;
  }
  *input = interpreter.input(0)->data.data;
  *output = interpreter.output(0)->data.data;
  return interpreter.Invoke() + static_cast<int>(interpreter.arena_used_bytes());
}

}  // extern "C"

#ifdef WITH_MAIN
namespace {
alignas(16) uint8_t model[720 * 1024], arena[400 * 1024];
}

// Reads names of models from the file "list"; prints each with the bytes that it used of the arena.
int main() {
  static Resolver resolver;
  int failed = 0;
#define ADD_BUILTIN(NAME, Method) failed |= probe_##NAME(&resolver);
  BUILTINS(ADD_BUILTIN)
#define ADD_OURS(NAME, name, number, KIND, TERMS) failed |= probe_##NAME(&resolver);
  SAAUG_FOR_EACH_OP(ADD_OURS)
  char name[200];
  FILE* const list = fopen("list", "r");
  while (!failed && list != nullptr && fscanf(list, "%199s", name) == 1) {
    FILE* const file = fopen(name, "rb");
    if (file == nullptr || fread(model, 1, sizeof model, file) == 0) {
      return 1;
    }
    fclose(file);
    tflite::MicroInterpreter interpreter(tflite::GetModel(model), resolver, arena, sizeof arena);
    if (interpreter.AllocateTensors() != kTfLiteOk) {
      return 2;
    }
    printf("%s %u\n", name, static_cast<unsigned>(interpreter.arena_used_bytes()));
  }
  return failed;
}
#endif
