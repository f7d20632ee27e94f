// Damages a model many times over and shows each copy to saaug_check_model(), Prepare and Eval, under sanitizers. All memory has
// its exact size. An error must name what is wrong; whatever is accepted must run without touching anything else.
//
// Usage: fuzz_prepare MODEL MUTANTS SEED. Prints how many copies met which end; status 0 if every end was a good one.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "saaug_model.h"
#include "saaug_nn.h"
#include "saaug_ops.h"
#include "tflm_stub.h"

using namespace tflite;         // NOLINT
using namespace tflite::micro;  // NOLINT

namespace {

constexpr size_t kArenaBytes = 256 * 1024;  // for one layer: as a microcontroller would, refuse what does not fit

std::string last_message;

struct Random {
  uint64_t state;
  uint32_t Next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  uint32_t Below(uint32_t bound) { return bound == 0 ? 0 : Next() % bound; }
};

// Reads a model that saaug_check_model() has accepted.
struct Reader {
  const uint8_t* bytes;
  uint32_t U16(uint32_t at) const { return bytes[at] | bytes[at + 1] << 8; }
  uint32_t U32(uint32_t at) const { return U16(at) | U16(at + 2) << 16; }
  uint32_t Field(uint32_t table, int slot) const {
    const uint32_t fields = table - U32(table);
    const uint32_t entry = 4 + 2 * slot;
    const uint32_t offset = entry + 2 <= U16(fields) ? U16(fields + entry) : 0;
    return offset == 0 ? 0 : table + offset;
  }
  uint32_t Scalar(uint32_t table, int slot) const { return Field(table, slot) == 0 ? 0 : U32(Field(table, slot)); }
  uint32_t Follow(uint32_t table, int slot) const {
    const uint32_t at = Field(table, slot);
    return at == 0 ? 0 : at + U32(at);
  }
  uint32_t Count(uint32_t vector) const { return vector == 0 ? 0 : U32(vector); }
  uint32_t Table(uint32_t vector, uint32_t i) const { return vector + 4 + 4 * i + U32(vector + 4 + 4 * i); }
};

struct IntArray {
  std::vector<int> words;
  TfLiteIntArray* Get() { return reinterpret_cast<TfLiteIntArray*>(words.data()); }
};

// One layer's world: tensors as TFLM makes them of the file, activations and scratch of their exact size.
class World : public MicroContext {
 public:
  World(const Reader& reader, uint32_t subgraph, uint32_t buffers) : reader_(reader) {
    tensors_ = reader.Follow(subgraph, 0);
    buffers_ = buffers;
  }
  ~World() override {
    for (void* memory : owned_) {
      free(memory);
    }
  }
  int temporary = 0;  // tensors that were lent and not given back
  size_t used = 0;    // bytes of the arena

  void* Own(size_t bytes) {
    used += bytes;
    void* memory = used <= kArenaBytes ? malloc(bytes) : nullptr;
    if (memory != nullptr) {
      memset(memory, 0x5A, bytes);
      owned_.push_back(memory);
    }
    return memory;
  }
  void* AllocatePersistentBuffer(size_t bytes) override { return Own(bytes); }
  TfLiteStatus RequestScratchBufferInArena(size_t bytes, int* index) override {
    scratch_ = Own(bytes);
    *index = 7;
    if (scratch_ == nullptr) {
      last_message = "the arena is too small";
    }
    return scratch_ == nullptr ? kTfLiteError : kTfLiteOk;
  }
  void* GetScratchBuffer(int index) override { return index == 7 ? scratch_ : nullptr; }
  TfLiteTensor* AllocateTempTfLiteTensor(int index) override {
    if (index < 0) {
      return nullptr;
    }
    ++temporary;
    TfLiteTensor* tensor = new TfLiteTensor();
    const uint32_t table = reader_.Table(tensors_, static_cast<uint32_t>(index));
    const uint32_t type = reader_.Field(table, 1);
    tensor->dims = Dims(index);
    tensor->bytes = 1;
    for (int i = 0; i < tensor->dims->size; ++i) {
      tensor->bytes *= static_cast<size_t>(tensor->dims->data[i]);
    }
    switch (type == 0 ? 0 : reader_.bytes[type]) {  // the file's numbers to the runtime's
      case 0:
        tensor->type = kTfLiteFloat32;
        tensor->bytes *= 4;
        break;
      case 2:
        tensor->type = kTfLiteInt32;
        tensor->bytes *= 4;
        break;
      case 3:
        tensor->type = kTfLiteUInt8;
        break;
      case 9:
        tensor->type = kTfLiteInt8;
        break;
      default:
        tensor->type = kTfLiteNoType;
    }
    tensor->data.data = Constant(index);
    tensor->allocation_type = tensor->data.data == nullptr ? kTfLiteArenaRw : kTfLiteMmapRo;
    const uint32_t quantization = reader_.Follow(table, 4);
    if (quantization != 0 && reader_.Count(reader_.Follow(quantization, 2)) > 0) {
      memcpy(&tensor->params.scale, reader_.bytes + reader_.Follow(quantization, 2) + 4, 4);
      tensor->params.zero_point = static_cast<int32_t>(reader_.U32(reader_.Follow(quantization, 3) + 4));
    }
    return tensor;
  }
  void DeallocateTempTfLiteTensor(TfLiteTensor* tensor) override {
    --temporary;
    delete tensor;
  }
  // Activations of the size that their shape says; nullptr if the arena is too small.
  TfLiteEvalTensor* GetEvalTensor(int index) override {
    TfLiteEvalTensor& tensor = eval_[index];
    if (tensor.data.data == nullptr) {
      tensor.dims = Dims(index);
      tensor.data.data = Constant(index);
      size_t bytes = 1;
      for (int i = 0; i < tensor.dims->size; ++i) {
        bytes *= static_cast<size_t>(tensor.dims->data[i]);
      }
      if (tensor.data.data == nullptr) {
        tensor.data.data = Own(bytes);
      }
    }
    return &tensor;
  }

 private:
  TfLiteIntArray* Dims(int index) {
    IntArray& dims = dims_[index];
    if (dims.words.empty()) {
      const uint32_t shape = reader_.Follow(reader_.Table(tensors_, static_cast<uint32_t>(index)), 0);
      dims.words.push_back(static_cast<int>(reader_.Count(shape)));
      for (uint32_t i = 0; i < reader_.Count(shape); ++i) {
        dims.words.push_back(static_cast<int>(reader_.U32(shape + 4 + 4 * i)));
      }
    }
    return dims.Get();
  }
  void* Constant(int index) {
    const uint32_t buffer = reader_.Scalar(reader_.Table(tensors_, static_cast<uint32_t>(index)), 2);
    const uint32_t data = reader_.Follow(reader_.Table(buffers_, buffer), 0);
    return reader_.Count(data) == 0 ? nullptr : const_cast<uint8_t*>(reader_.bytes + data + 4);
  }

  const Reader reader_;
  uint32_t tensors_, buffers_;
  void* scratch_ = nullptr;
  std::vector<void*> owned_;
  std::map<int, IntArray> dims_;
  std::map<int, TfLiteEvalTensor> eval_;
};

const TFLMRegistration* Find(const char* name) {
#define REGISTRATION(NAME, name, number, KIND, TERMS) saaug::Register_##NAME(),
  const TFLMRegistration* const all[] = {SAAUG_FOR_EACH_OP(REGISTRATION)};
  for (const TFLMRegistration* registration : all) {
    if (strcmp(registration->custom_name, name) == 0) {
      return registration;
    }
  }
  return nullptr;
}

struct Ends {
  long unreadable = 0, unknown = 0, refused = 0, too_large = 0, ran = 0, silent = 0, kept = 0, failed = 0;
  std::map<std::string, long> faults;
};

// The first sentence of a message, without its operator and its numbers.
std::string Kind(const std::string& message) {
  const size_t begin = message.find(": ");
  std::string kind = message.substr(begin == std::string::npos ? 0 : begin + 2);
  kind = kind.substr(0, kind.find(". Received"));
  std::string result;
  for (char letter : kind) {
    if (letter < '0' || letter > '9') {
      result += letter;
    } else if (result.empty() || result.back() != 'N') {
      result += 'N';
    }
  }
  return result;
}

IntArray Indices(const Reader& reader, uint32_t vector) {
  IntArray result;
  result.words.push_back(static_cast<int>(reader.Count(vector)));
  for (uint32_t i = 0; i < reader.Count(vector); ++i) {
    result.words.push_back(static_cast<int>(reader.U32(vector + 4 + 4 * i)));
  }
  return result;
}

void RunOperator(const Reader& reader, uint32_t subgraph, uint32_t buffers, uint32_t codes, uint32_t operation,
                 Ends* ends) {
  const uint32_t code = reader.Table(codes, reader.Scalar(operation, 0));
  const uint32_t name = reader.Follow(code, 1);
  const TFLMRegistration* const registration =
      name == 0 ? nullptr : Find(reinterpret_cast<const char*>(reader.bytes + name + 4));
  if (registration == nullptr) {
    ++ends->unknown;
    return;
  }
  World world(reader, subgraph, buffers);
  TfLiteContext context;
  context.impl_ = static_cast<MicroContext*>(&world);
  IntArray inputs = Indices(reader, reader.Follow(operation, 1)), outputs = Indices(reader, reader.Follow(operation, 2));
  TfLiteNode node;
  node.inputs = inputs.Get();
  node.outputs = outputs.Get();
  const uint32_t options = reader.Follow(operation, 5);
  node.user_data =
      registration->init(&context, options == 0 ? nullptr : reinterpret_cast<const char*>(reader.bytes + options + 4),
                         reader.Count(options));
  last_message.clear();
  const TfLiteStatus prepared = registration->prepare(&context, &node);
  ends->kept += world.temporary;
  if (prepared != kTfLiteOk) {
    ++ends->refused;
    if (last_message.empty()) {
      ++ends->silent;
    }
    ++ends->faults[Kind(last_message)];
    return;
  }
  for (int i : {inputs.words[1], outputs.words[1]}) {
    if (world.GetEvalTensor(i)->data.data == nullptr) {
      ++ends->too_large;
      return;
    }
  }
  if (registration->invoke(&context, &node) == kTfLiteOk) {
    ++ends->ran;
  } else {
    ++ends->failed;
  }
}

void Run(const std::vector<uint8_t>& model, Ends* ends) {
  // A block of its own, so that the sanitizer sees every read beyond it.
  std::unique_ptr<uint8_t, decltype(&free)> block(static_cast<uint8_t*>(malloc(model.empty() ? 1 : model.size())), &free);
  if (!model.empty()) {
    memcpy(block.get(), model.data(), model.size());
  }
  int32_t index;
  const char* const fault = saaug_check_model(block.get(), model.size(), &index);
  if (fault != nullptr) {
    ++ends->unreadable;
    ++ends->faults[fault];
    return;
  }
  const Reader reader = {block.get()};
  const uint32_t root = reader.U32(0);
  const uint32_t codes = reader.Follow(root, 1), subgraphs = reader.Follow(root, 2), buffers = reader.Follow(root, 4);
  for (uint32_t i = 0; i < reader.Count(subgraphs); ++i) {
    const uint32_t subgraph = reader.Table(subgraphs, i);
    const uint32_t operations = reader.Follow(subgraph, 3);
    for (uint32_t k = 0; k < reader.Count(operations); ++k) {
      RunOperator(reader, subgraph, buffers, codes, reader.Table(operations, k), ends);
    }
  }
}

void Put32(std::vector<uint8_t>* model, size_t at, uint32_t value) {
  for (size_t i = 0; i < 4 && at + i < model->size(); ++i) {
    (*model)[at + i] = static_cast<uint8_t>(value >> (8 * i));
  }
}

// One to four damages of a kind that occurs, or that an attacker would try.
void Damage(Random* random, std::vector<uint8_t>* model) {
  for (uint32_t count = 1 + random->Below(4); count != 0 && !model->empty(); --count) {
    const uint32_t size = static_cast<uint32_t>(model->size());
    const uint32_t at = random->Below(size);
    static const uint32_t kWords[] = {0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
                                      0xFFFFFFFF};
    switch (random->Below(8)) {
      case 0:
      case 1:
        (*model)[at] = static_cast<uint8_t>((*model)[at] ^ 1u << random->Below(8));
        break;
      case 2:
        (*model)[at] = static_cast<uint8_t>(random->Next());
        break;
      case 3:
        Put32(model, at & ~3u, kWords[random->Below(sizeof kWords / sizeof kWords[0])]);
        break;
      case 4: {  // a little more or less: shapes, counts, offsets
        const uint32_t word = at & ~3u;
        uint32_t value = 0;
        for (uint32_t i = 0; i < 4 && word + i < size; ++i) {
          value |= static_cast<uint32_t>((*model)[word + i]) << (8 * i);
        }
        Put32(model, word, value + random->Below(9) - 4);
        break;
      }
      case 5: {  // one part over another
        const uint32_t from = random->Below(size), length = random->Below(33);
        for (uint32_t i = 0; i < length && from + i < size && at + i < size; ++i) {
          (*model)[at + i] = (*model)[from + i];
        }
        break;
      }
      case 6:
        if (random->Below(4) == 0) {
          model->resize(at);
        }
        break;
      default: {  // inside the option records, which begin with their magic number
        for (uint32_t i = at; i + 32 < size; ++i) {
          if (memcmp(model->data() + i, "SAAG", 4) == 0) {
            (*model)[i + random->Below(28)] = static_cast<uint8_t>(random->Next());
            break;
          }
        }
      }
    }
  }
}

}  // namespace

#ifdef TFLM_TYPES_IN_MICRO
namespace tflite {
namespace micro {
#else
namespace tflite {
#endif
TfLiteTensor* MicroContext::AllocateTempInputTensor(const TfLiteNode* node, int index) {
  return AllocateTempTfLiteTensor(node->inputs->data[index]);
}
TfLiteTensor* MicroContext::AllocateTempOutputTensor(const TfLiteNode* node, int index) {
  return AllocateTempTfLiteTensor(node->outputs->data[index]);
}
#ifndef TFLM_TYPES_IN_MICRO
namespace micro {
#endif
const TfLiteEvalTensor* GetEvalInput(const TfLiteContext* context, const TfLiteNode* node, int index) {
  return GetMicroContext(context)->GetEvalTensor(node->inputs->data[index]);
}
TfLiteEvalTensor* GetEvalOutput(const TfLiteContext* context, const TfLiteNode* node, int index) {
  return GetMicroContext(context)->GetEvalTensor(node->outputs->data[index]);
}
}  // namespace micro
}  // namespace tflite

void MicroPrintf(const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  last_message = text;
}

int main(int argc, char** argv) {
  FILE* file = argc > 3 ? fopen(argv[1], "rb") : nullptr;
  if (file == nullptr) {
    fprintf(stderr, "usage: fuzz_prepare MODEL MUTANTS SEED\n");
    return 3;
  }
  std::vector<uint8_t> model;
  for (int byte = fgetc(file); byte != EOF; byte = fgetc(file)) {
    model.push_back(static_cast<uint8_t>(byte));
  }
  fclose(file);
  const long mutants = atol(argv[2]);
  Random random = {strtoull(argv[3], nullptr, 10)};
  Ends sound, ends;
  Run(model, &sound);
  for (long i = 0; i < mutants; ++i) {
    std::vector<uint8_t> mutant = model;
    Damage(&random, &mutant);
    Run(mutant, &ends);
  }
  printf("sound: %ld ran, %ld refused, %ld unreadable\n", sound.ran, sound.refused, sound.unreadable);
  for (const auto& fault : sound.faults) {
    printf("sound: %s\n", fault.first.c_str());
  }
  printf("mutants: %ld; unreadable %ld; operators: %ld ran, %ld refused, %ld too large, %ld unknown\n", mutants,
         ends.unreadable, ends.ran, ends.refused, ends.too_large, ends.unknown);
  printf("silent %ld; tensors kept %ld; failed in Eval %ld\n", ends.silent, ends.kept, ends.failed);
  for (const auto& fault : ends.faults) {
    printf("%8ld  %s\n", fault.second, fault.first.c_str());
  }
  return sound.ran == 0 || sound.refused != 0 || sound.unreadable != 0 || ends.silent != 0 || ends.kept != 0 ||
         ends.failed != 0;
}
