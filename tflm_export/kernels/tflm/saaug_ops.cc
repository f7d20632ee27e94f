#include "saaug_ops.h"

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "saaug_nn.h"
#include "tensorflow/lite/micro/kernels/kernel_util.h"
#include "tensorflow/lite/micro/micro_context.h"
#include "tensorflow/lite/micro/micro_log.h"

namespace saaug {
namespace tflm {
namespace {

constexpr int kInput = 0, kWeights = 1, kParams = 2, kOutput = 0;

/** What an operator remembers between its calls. */
struct Layer {
  saaug_options options;
  saaug_shape shape;
  bool options_read;
  int scratch;  // handle, or -1
};
// Exported projects make room for so much of each operator, with the arena's alignment: ADAPTER_BYTES of the exporter.
static_assert(sizeof(Layer) <= 112, "an exported project's arena would be too small");

/** The operators as types, so that each has its own functions. */
template <int32_t>
struct Op;
#define SAAUG_DEFINE_OP(NAME, name, number, KIND, TERMS)                                           \
  template <>                                                                                      \
  struct Op<number> {                                                                              \
    static constexpr int32_t kOp = number;                                                         \
    static constexpr bool kDense = Kind::KIND == Kind::DENSE;                                      \
    static constexpr int kInputs = Terms::TERMS == Terms::MOVES ? 1 : 3;                           \
    static constexpr const char* Name() { return #NAME; }                                          \
    static constexpr saaug_layer* Run() { return saaug_##name##_s8; }                              \
    static constexpr saaug_layer_size* ScratchBytes() { return saaug_##name##_s8_get_buffer_size; } \
  };
enum class Kind { CONV, DEPTHWISE, DENSE };
enum class Terms { SHIFT, ADDER, MOVES };
SAAUG_FOR_EACH_OP(SAAUG_DEFINE_OP)
#undef SAAUG_DEFINE_OP

void* Init(TfLiteContext* context, const char* buffer, size_t length) {
  void* memory = GetMicroContext(context)->AllocatePersistentBuffer(sizeof(Layer));
  if (memory != nullptr) {
    Layer* layer = static_cast<Layer*>(memory);
    layer->options_read = saaug_parse_options(buffer, length, &layer->options) == SAAUG_OK;
    layer->scratch = -1;
  }
  return memory;
}

/** The tensors of a node, given back when this goes out of scope; weights and params are nullptr where it has none. */
class Tensors {
 public:
  Tensors(MicroContext* context, const TfLiteNode* node)
      : context_(context),
        input(context->AllocateTempInputTensor(node, kInput)),
        weights(node->inputs->size > kWeights ? context->AllocateTempInputTensor(node, kWeights) : nullptr),
        params(node->inputs->size > kParams ? context->AllocateTempInputTensor(node, kParams) : nullptr),
        output(context->AllocateTempOutputTensor(node, kOutput)) {}
  ~Tensors() {
    for (TfLiteTensor* tensor : {output, params, weights, input}) {
      if (tensor != nullptr) {
        context_->DeallocateTempTfLiteTensor(tensor);
      }
    }
  }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

 private:
  MicroContext* const context_;

 public:
  TfLiteTensor* const input;
  TfLiteTensor* const weights;
  TfLiteTensor* const params;
  TfLiteTensor* const output;
};

/** Reads the sizes of an activation; a fully connected layer reads an image, or what it is given, as rows of values. */
bool ReadActivation(const char* op, const char* name, const TfLiteTensor* tensor, bool rows, int32_t zero_point,
                    int32_t* sizes) {
  if (tensor->type != kTfLiteInt8) {
    MicroPrintf("%s: `%s` must be of type int8. Received: type=%d.", op, name, static_cast<int>(tensor->type));
    return false;
  }
  const TfLiteIntArray* dims = tensor->dims;
  const int rank = dims == nullptr ? 0 : dims->size;
  if (rows ? rank < 2 || rank > 4 : rank != 4) {
    MicroPrintf("%s: `%s` must have %s. Received: %d dimensions.", op, name,
                rows ? "2 to 4 dimensions" : "4 dimensions, NHWC", rank);
    return false;
  }
  for (int i = 0; i < rank; ++i) {
    if (dims->data[i] < 1 || dims->data[i] > 65535) {
      MicroPrintf("%s: `%s` must have sizes in [1, 65535]. Received: size %d in dimension %d.", op, name, dims->data[i],
                  i);
      return false;
    }
  }
  if (rows) {
    int64_t count = 1;
    for (int i = 1; i < rank && count <= 65535; ++i) {
      count *= dims->data[i];
    }
    if (count > 65535) {
      MicroPrintf("%s: `%s` must have rows of at most 65535 values.", op, name);
      return false;
    }
    sizes[0] = dims->data[0];
    sizes[1] = sizes[2] = 1;
    sizes[3] = static_cast<int32_t>(count);
  } else {
    for (int i = 0; i < 4; ++i) {
      sizes[i] = dims->data[i];
    }
  }
  if (tensor->params.zero_point != zero_point) {
    MicroPrintf("%s: `%s` must have the zero point of the options, %d. Received: zero_point=%d.", op, name,
                static_cast<int>(zero_point), static_cast<int>(tensor->params.zero_point));
    return false;
  }
  if (!(tensor->params.scale > 0.0f && tensor->params.scale < 3.4e38f)) {
    MicroPrintf("%s: `%s` must have a positive, finite scale.", op, name);
    return false;
  }
  return true;
}

/** A constant that the kernels can read: in the model, of the right type, aligned to words. */
bool IsReadable(const char* op, const char* name, const TfLiteTensor* tensor, TfLiteType type, const char* type_name) {
  if (tensor->type != type) {
    MicroPrintf("%s: `%s` must be of type %s. Received: type=%d.", op, name, type_name, static_cast<int>(tensor->type));
    return false;
  }
  if (tensor->allocation_type != kTfLiteMmapRo || tensor->data.data == nullptr) {
    MicroPrintf("%s: `%s` must be a constant of the model.", op, name);
    return false;
  }
  if ((reinterpret_cast<uintptr_t>(tensor->data.data) & 3u) != 0) {
    MicroPrintf("%s: `%s` must be aligned to 4 bytes.", op, name);
    return false;
  }
  return true;
}

const char* TensorOf(saaug_status status) {
  switch (status) {
    case SAAUG_BAD_INPUT:
      return "input";
    case SAAUG_BAD_WEIGHTS:
      return "weights";
    case SAAUG_BAD_PARAMS:
      return "params";
    case SAAUG_BAD_OUTPUT:
      return "output";
    default:
      return "options";
  }
}

template <class TheOp>
bool Check(const Tensors& tensors, Layer* layer) {
  const char* const op = TheOp::Name();
  const saaug_options& options = layer->options;
  const bool has_weights = TheOp::kInputs > 1;
  if (tensors.input == nullptr || tensors.output == nullptr ||
      (has_weights && (tensors.weights == nullptr || tensors.params == nullptr))) {
    MicroPrintf("%s: a tensor is missing.", op);
    return false;
  }
  const bool rows = TheOp::kDense;
  int32_t in[4], out[4];
  if (!ReadActivation(op, "input", tensors.input, rows, options.input_zero_point, in) ||
      !ReadActivation(op, "output", tensors.output, rows, options.output_zero_point, out)) {
    return false;
  }
  if (in[0] != out[0]) {
    MicroPrintf("%s: `output` must have the batches of `input`, %d. Received: %d.", op, static_cast<int>(in[0]),
                static_cast<int>(out[0]));
    return false;
  }
  layer->shape = {in[0], in[1], in[2], in[3], out[1], out[2], out[3]};
  saaug_status status = saaug_check(&options, &layer->shape);
  if (status != SAAUG_OK) {
    MicroPrintf("%s: `%s` does not fit the options: %dx%dx%d to %dx%dx%d, kernel %dx%d.", op, TensorOf(status),
                static_cast<int>(in[1]), static_cast<int>(in[2]), static_cast<int>(in[3]), static_cast<int>(out[1]),
                static_cast<int>(out[2]), static_cast<int>(out[3]), static_cast<int>(options.kernel_h),
                static_cast<int>(options.kernel_w));
    return false;
  }
  if (!has_weights) {
    if (tensors.input->params.scale != tensors.output->params.scale) {
      MicroPrintf("%s: `output` must have the scale of `input`.", op);
      return false;
    }
    return true;
  }
  if (!IsReadable(op, "weights", tensors.weights, kTfLiteUInt8, "uint8") ||
      !IsReadable(op, "params", tensors.params, kTfLiteInt32, "int32")) {
    return false;
  }
  int32_t channel = -1;
  status = saaug_check_constants(&options, &layer->shape, static_cast<const uint8_t*>(tensors.weights->data.data),
                                 tensors.weights->bytes, static_cast<const int32_t*>(tensors.params->data.data),
                                 tensors.params->bytes / sizeof(int32_t), &channel);
  if (status != SAAUG_OK && channel < 0) {
    MicroPrintf("%s: `%s` must have at least %d bytes. Received: %d bytes.", op, TensorOf(status),
                static_cast<int>(status == SAAUG_BAD_WEIGHTS ? saaug_weights_bytes(&options, &layer->shape)
                                                             : 12 * layer->shape.out_c),
                static_cast<int>(status == SAAUG_BAD_WEIGHTS ? tensors.weights->bytes : tensors.params->bytes));
    return false;
  }
  if (status != SAAUG_OK) {
    MicroPrintf("%s: `%s` has a value out of its range in output channel %d.", op, TensorOf(status),
                static_cast<int>(channel));
    return false;
  }
  return true;
}

template <class TheOp>
TfLiteStatus Prepare(TfLiteContext* context, TfLiteNode* node) {
  MicroContext* const micro_context = GetMicroContext(context);
  Layer* const layer = static_cast<Layer*>(node->user_data);
  if (layer == nullptr) {
    MicroPrintf("%s: the arena is too small.", TheOp::Name());
    return kTfLiteError;
  }
  if (!layer->options_read || layer->options.op != TheOp::kOp) {
    MicroPrintf("%s: `options` must be a record of this operator, version 1.", TheOp::Name());
    return kTfLiteError;
  }
  if (node->inputs == nullptr || node->inputs->size != TheOp::kInputs || node->outputs == nullptr ||
      node->outputs->size != 1) {
    MicroPrintf("%s: there must be %d inputs and 1 output.", TheOp::Name(), TheOp::kInputs);
    return kTfLiteError;
  }
  {
    const Tensors tensors(micro_context, node);
    if (!Check<TheOp>(tensors, layer)) {
      return kTfLiteError;
    }
  }
  const int32_t bytes = TheOp::ScratchBytes()(&layer->options, &layer->shape);
  if (bytes < 0) {
    MicroPrintf("%s: the scratch memory would exceed 2^31 - 1 bytes.", TheOp::Name());
    return kTfLiteError;
  }
  if (bytes > 0) {
    return micro_context->RequestScratchBufferInArena(static_cast<size_t>(bytes), &layer->scratch);
  }
  return kTfLiteOk;
}

/** The data of a constant, nullptr where the operator has none. */
template <class TheOp, class T>
const T* ConstantOf(TfLiteContext* context, TfLiteNode* node, int index) {
  return TheOp::kInputs > index
             ? static_cast<const T*>(::tflite::micro::GetEvalInput(context, node, index)->data.data)
             : nullptr;
}

template <class TheOp>
TfLiteStatus Eval(TfLiteContext* context, TfLiteNode* node) {
  const Layer* const layer = static_cast<const Layer*>(node->user_data);
  void* const scratch = layer->scratch < 0 ? nullptr : GetMicroContext(context)->GetScratchBuffer(layer->scratch);
  const saaug_status status =
      TheOp::Run()(&layer->options, &layer->shape,
                static_cast<const int8_t*>(::tflite::micro::GetEvalInput(context, node, kInput)->data.data),
                ConstantOf<TheOp, uint8_t>(context, node, kWeights), ConstantOf<TheOp, int32_t>(context, node, kParams),
                static_cast<int8_t*>(::tflite::micro::GetEvalOutput(context, node, kOutput)->data.data), scratch);
  return status == SAAUG_OK ? kTfLiteOk : kTfLiteError;
}

template <class TheOp>
const Registration* Registered() {
  static const Registration registration = {Init, nullptr, Prepare<TheOp>, Eval<TheOp>, nullptr, 0, TheOp::Name()};
  return &registration;
}

}  // namespace
}  // namespace tflm

#define SAAUG_DEFINE_REGISTER(NAME, name, number, KIND, TERMS) \
  const tflm::Registration* Register_##NAME() { return tflm::Registered<tflm::Op<number>>(); }
SAAUG_FOR_EACH_OP(SAAUG_DEFINE_REGISTER)
#undef SAAUG_DEFINE_REGISTER

}  // namespace saaug
