"""Firmware projects: a folder that builds a network and classifies sample images on a microcontroller.

`write_c` writes plain C calls of our kernels with a static memory plan; `write_tflm` a TFLite Micro application.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import textwrap
from dataclasses import dataclass

import numpy as np

from tflm_export import ends, flatbuffer, native, plan, records, reference
from tflm_export.fixed_point import effective_scale, quantize_multiplier
from tflm_export.packaging import Project, write_project
from tflm_export.quantize import Network
from tflm_export.report import count_macs

# As SAAUG_<VERSION> of saaug_internal.h; the portable one works on columns of 4 or 8 words, as the core has registers.
VERSIONS = ("reference", "portable4", "portable8", "dsp", "helium")
_LAYOUT_NAMES = ("SAAUG_LAYOUT_NIBBLE", "SAAUG_LAYOUT_BYTE", "SAAUG_LAYOUT_OFFSET", "SAAUG_LAYOUT_BIT", "SAAUG_LAYOUT_NONE")
_REQUANT_NAMES = ("SAAUG_REQUANT_Q31", "SAAUG_REQUANT_POWER_OF_TWO")


class _Options(ctypes.Structure):
    """saaug_options of saaug_nn.h."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "op",
            "layout",
            "requant",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
            "pad_top",
            "pad_left",
            "depth_multiplier",
            "input_zero_point",
            "output_zero_point",
            "act_min",
            "act_max",
        )
    ]


class _Shape(ctypes.Structure):
    """saaug_shape of saaug_nn.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ("batches", "in_h", "in_w", "in_c", "out_h", "out_w", "out_c")]


def _image(tensor, flat=False):
    """(h, w, c) of a tensor."""
    size = int(np.prod(tensor.shape))
    return (1, 1, size) if flat or len(tensor.shape) == 1 else tensor.shape


def _shape_of(step):
    flat = step.op.kind == "dense"
    return (1, *_image(step.inputs[0], flat), *_image(step.output, flat))


def scratch_bytes(network: Network) -> dict[str, list[int]]:
    """Bytes of scratch of every step, by version of the kernels; the kernels themselves are asked.

    Raises:
        FileNotFoundError: no C compiler on this machine.
    """
    library = native.load()
    sizes = {version: [0] * len(network.steps) for version in VERSIONS}
    for index, step in enumerate(network.steps):
        if not flatbuffer.is_ours(step):
            continue
        layer = flatbuffer.custom_layer(step)
        options = _Options(*(getattr(layer.record, name) for name, _ in _Options._fields_))
        shape = _Shape(*_shape_of(step))
        for version in VERSIONS:
            getter = getattr(library, f"saaug_{layer.name.lower()}_s8_{version}_size")
            getter.restype = ctypes.c_int64
            sizes[version][index] = int(getter(ctypes.byref(options), ctypes.byref(shape)))
    return sizes


# ---------------------------------------------------------------------------------------------------------------------
# C text


def identifier(name):
    """A C identifier from a model's name, and the stem of its files; none of the project's own is taken."""
    word = re.sub(r"\W", "_", name)
    return "net_" + word if word[0].isdigit() or word in ("main", "samples") or word.startswith("saaug_") else word


def _text(name):
    """A C string of any name."""
    plain = set(range(32, 127)) - set(b'"\\?')  # two ? may begin a trigraph
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in name.encode()) + '"'


def _array(name, values):
    numbers = textwrap.fill(", ".join(map(str, values.ravel().tolist())), 116)
    return f"const int32_t {name}[{values.size}] = {{\n{textwrap.indent(numbers, '    ')}}};\n"


def _words(data):
    """Bytes as 32-bit words, little-endian: an array of words is aligned on every compiler."""
    data = np.ascontiguousarray(data).view("uint8").ravel()
    return np.pad(data, (0, -data.size % 4)).view("<u4")


def _word_array(name, data):
    words = _words(data)
    numbers = textwrap.fill(", ".join(f"0x{int(word):08X}u" for word in words), 116)
    return f"const uint32_t {name}[{words.size}] = {{\n{textwrap.indent(numbers, '    ')}}};\n"


class _CWriter:
    """The C of one network."""

    def __init__(self, network: Network, name):
        self.network, self.name = network, identifier(name)
        self.scratch = scratch_bytes(network)
        self.plans = {version: plan.make_plan(network, self.scratch[version]) for version in self.scratch}
        self.places = {tensor: number for number, tensor in enumerate(network.tensors)}
        self.data, self.declarations, self.statics, self.calls, self.checks = [], [], [], [], []
        self.profiled = []  # a row per layer
        self.layer = name  # whose constants are being written

    def at(self, tensor):
        """The C expression of an activation."""
        if tensor.name == self.network.input.name:
            return "image"
        if tensor.name == self.network.output.name:
            return "output"
        return f"arena + {self.offset(tensor.name)}"

    def offset(self, name):
        """The C name of an activation's place; two names may be one identifier, so each has its number."""
        return f"AT_{self.places[name]}_{identifier(name).upper()}"

    def constant(self, index, suffix, data, words=False):
        """A constant of step `index`, as int32 or as bytes in aligned words; returns its C name."""
        name = f"{self.name}_{index}_{suffix}"
        if words:
            self.data.append(_word_array(name, data))
            self.declarations.append(f"extern const uint32_t {name}[{_words(data).size}];")
        else:
            data = flatbuffer.exact(data, "int32", self.network.steps[index].op.name)
            self.data.append(_array(name, data))
            self.declarations.append(f"extern const int32_t {name}[{data.size}];")
        return name

    def static(self, kind, index, values):
        """A static constant struct of numbers, names and further structs; returns its C name."""
        name = f"layer_{index}"
        self.statics.append(f"static const {kind} {name} = {self.braces(values)};")
        return name

    def braces(self, values):
        return "{" + ", ".join(self.braces(v) if isinstance(v, tuple) else self.number(v) for v in values) + "}"

    def number(self, value):
        return value if isinstance(value, str) else str(int(flatbuffer.exact(value, "int32", self.layer)))

    def call(self, function, *arguments):
        self.calls.append(f"{function}({', '.join(arguments)});")

    def check(self, index, condition):
        """`NAME_check` returns the number of step `index` where a condition does not hold."""
        self.checks.append(f"if (!({condition})) {{\n    return {index + 1}; /* {self.layer} */\n}}")

    def step(self, index, step):
        out = self.at(step.output)
        inputs = [self.at(tensor) for tensor in step.inputs]
        self.layer = step.op.name
        self.calls.append(f"/* {step.op.name} */")
        if flatbuffer.is_ours(step):
            self.ours(index, step, inputs[0], out)
        elif step.constants is not None:
            self.convolution(index, step, inputs[0], out)
        else:
            getattr(self, step.op.kind)(index, step, inputs, out)
        self.calls.append(f"PROFILE_LAYER({index})")
        words = (_text(self.name), _text(step.op.name), _text(flatbuffer.operator_name(step, self.network.flavour)))
        self.profiled.append(f"    {{{', '.join(words)}, {index}, {count_macs(step)}}},")

    def ours(self, index, step, source, out):
        layer = flatbuffer.custom_layer(step)
        record = layer.record
        rest = (getattr(record, name) for name, _ in _Options._fields_[3:])
        options = self.static(
            "saaug_options",
            f"{index}_options",
            (f"SAAUG_{layer.name}", _LAYOUT_NAMES[record.layout], _REQUANT_NAMES[record.requant], *rest),
        )
        shape = self.static("saaug_shape", f"{index}_shape", _shape_of(step))
        weights, params, sizes = "NULL", "NULL", "0, NULL, 0"
        if layer.weights.size:
            weights = f"(const uint8_t *){self.constant(index, 'weights', layer.weights, words=True)}"
            params = self.constant(index, "params", layer.params)
            sizes = (
                f"sizeof {weights.rpartition(')')[2]}, {params},\n"
                f"                            sizeof {params} / sizeof {params}[0]"
            )
        function = f"saaug_{layer.name.lower()}_s8"
        self.calls.append(f"status = {function}(&{options}, &{shape}, {source}, {weights}, {params}, {out}, SCRATCH_{index});")
        self.calls.append("if (status != SAAUG_OK) {\n    return (int)status;\n}")
        self.check(index, f"saaug_check(&{options}, &{shape}) == SAAUG_OK")
        self.check(index, f"{function}_get_buffer_size(&{options}, &{shape}) <= SCRATCH_BYTES_{index}")
        self.check(index, f"saaug_check_constants(&{options}, &{shape}, {weights}, {sizes}, NULL) == SAAUG_OK")

    def window(self, step):
        op = step.op
        return (
            *_image(step.inputs[0], op.kind == "dense"),
            *_image(step.output, op.kind == "dense"),
            *op.kernel_size,
            *op.strides,
            *op.dilation,
            *op.pads[:2],
        )

    def convolution(self, index, step, source, out):
        constants, zero_point = step.constants, step.inputs[0].zero_point
        rows = constants.weights.reshape(len(constants.weights), -1)
        bias = constants.bias.astype("int64") - zero_point * rows.sum(axis=1, dtype="int64")
        weights = self.constant(index, "weights", flatbuffer.exact(rows, "int8", self.layer), words=True)
        params = self.constant(index, "params", np.stack([bias, constants.multiplier, constants.shift], axis=1))
        layer = self.static(
            "saaug_plain_conv", index, (self.window(step), zero_point, step.output.zero_point, step.act_min, step.act_max)
        )
        function = "saaug_plain_depthwise_conv_2d" if step.op.kind == "depthwise" else "saaug_plain_conv_2d"
        self.call(function, f"&{layer}", source, f"(const int8_t *){weights}", params, out)
        taps = rows.shape[1]
        self.check(
            index,
            f"sizeof {weights} >= {len(rows)}u * {taps}u &&\n      saaug_plain_check_conv(&{layer}, "
            f"(const int8_t *){weights}, {taps}, {params})",
        )

    def add(self, index, step, inputs, out):
        function, order, numbers = addition(step)
        layer = self.static("saaug_plain_add", index, numbers)
        self.call(function, f"&{layer}", *(inputs[i] for i in order), out)

    def multiply(self, index, step, inputs, out):
        first, second = step.inputs
        scale = quantize_multiplier(effective_scale(first.scale, second.scale, step.output.scale))
        layer = self.static(
            "saaug_plain_multiply",
            index,
            (
                _count(step),
                int(np.prod(second.shape)),
                (first.zero_point, second.zero_point),
                step.output.zero_point,
                step.act_min,
                step.act_max,
                _scale(*scale),
            ),
        )
        self.call("saaug_plain_multiply_tensors", f"&{layer}", *inputs, out)

    def mean(self, index, step, inputs, out):
        source = step.inputs[0]
        positions = source.shape[0] * source.shape[1]
        scale = reference.mean_multiplier(source.scale, step.output.scale, positions)
        layer = self.static(
            "saaug_plain_mean", index, (positions, source.shape[2], source.zero_point, step.output.zero_point, scale)
        )
        self.call("saaug_plain_mean_over_image", f"&{layer}", *inputs, out)

    def resize(self, index, step, inputs, out):
        layer = self.static("saaug_plain_resize", index, (*step.inputs[0].shape[:2], *step.output.shape))
        self.call("saaug_plain_resize_bilinear", f"&{layer}", *inputs, out)

    def max_pool(self, index, step, inputs, out):
        layer = self.static("saaug_plain_window", index, self.window(step))
        self.call(f"saaug_plain_{step.op.kind}", f"&{layer}", *inputs, out)

    average_pool = max_pool

    def pad(self, index, step, inputs, out):
        top, left, bottom, right = step.op.pads
        numbers = (*step.inputs[0].shape, top, left, bottom, right, step.output.zero_point)
        layer = self.static("saaug_plain_pad", index, numbers)
        self.call("saaug_plain_pad_image", f"&{layer}", *inputs, out)

    def reshape(self, index, step, inputs, out):
        outside = {self.network.input.name, self.network.output.name}
        if not ({step.inputs[0].name, step.output.name} & outside):
            offsets = {p.tensors[step.inputs[0].name] == p.tensors[step.output.name] for p in self.plans.values()}
            if offsets == {True}:
                self.calls[-1] = f"/* {step.op.name}: the same bytes */"
                return
        self.call("memcpy", out, inputs[0], str(_count(step)))

    def hard_swish(self, index, step, inputs, out):
        output, gate = reference.hard_swish_constants(step.inputs[0].scale, step.output.scale)
        numbers = (_count(step), step.inputs[0].zero_point, step.output.zero_point, *output, *gate)
        layer = self.static("saaug_plain_hard_swish", index, numbers)
        self.call("saaug_plain_hard_swish_tensor", f"&{layer}", *inputs, out)

    def look_up(self, index, step, inputs, out):
        """A function of one value: a table of what the reference gives for each."""
        values = np.arange(-128, 128, dtype="int8").reshape(1, 1, 1, 256)
        table = self.constant(index, "table", reference.run_step(step, [values]).ravel(), words=True)
        self.call("saaug_plain_look_up", str(_count(step)), f"(const int8_t *){table}", *inputs, out)
        self.check(index, f"sizeof {table} == 256u")

    leaky_relu = sigmoid = look_up

    def concatenate(self, index, step, inputs, out):
        inner = [int(np.prod(tensor.shape[step.op.axis :])) for tensor in (*step.inputs, step.output)]
        rows, start = _count(step) // inner[-1], 0
        for part, (source, size) in enumerate(zip(inputs, inner, strict=False)):
            layer = self.static("saaug_plain_rows", f"{index}_{part}", (rows, size, inner[-1], start))
            self.call("saaug_plain_copy_rows", f"&{layer}", source, out)
            start += size

    def softmax(self, index, step, inputs, out):
        multiplier, left, least = reference.softmax_constants(step.inputs[0].scale)
        depth = step.output.shape[-1]
        layer = self.static("saaug_plain_softmax", index, (_count(step) // depth, depth, multiplier, left, least))
        self.call("saaug_plain_softmax_rows", f"&{layer}", *inputs, out)


def _count(step):
    return int(np.prod(step.output.shape))


def addition(step):
    """(function of plain C, order of its two inputs, the numbers of its saaug_plain_add) of a sum of tensors."""
    *scales, output = reference.add_scales(step)
    function, order = reference.add_function(step), (0, 1)
    if function == "saaug_plain_add_tensors":
        order = tuple(sorted(order, key=lambda i: -scales[i][1]))  # the coarser grid first
    numbers = (
        _count(step),
        tuple(step.inputs[i].zero_point for i in order),
        step.output.zero_point,
        step.act_min,
        step.act_max,
        tuple(_scale(*scales[i]) for i in order),
        _scale(*output),
    )
    return function, order, numbers


def _scale(multiplier, shift):
    """The numbers of a saaug_plain_scale of `quantize_multiplier`'s pair, whose shift is to the left."""
    return multiplier, -shift


# ---------------------------------------------------------------------------------------------------------------------
# Projects


@dataclass(frozen=True, eq=False)
class Samples:
    """Images for the project's main: int8 (N, H, W, C), and what the reference interpreter gives for them."""

    images: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, network, images):
        """From images as `export` takes them."""
        source = network.input
        stored = ends.to_stored(images, source.scale, source.zero_point, owner="tflm_export", name="images")
        return cls(stored, reference.run(network, stored)[network.output.name])


def c_files(network: Network, name) -> tuple[dict[str, int], dict[str, str]]:
    """(bytes of the activation arena by version of the kernels, the network's own C files: texts by name)."""
    writer = _CWriter(network, name)
    for index, step in enumerate(network.steps):
        writer.step(index, step)
    word = writer.name
    texts = {
        f"{word}.h": _network_header(network, word),
        f"{word}.c": _network_source(writer),
        f"{word}_data.h": _guarded(f"{word}_data", _lines(writer.declarations)),
        f"{word}_data.c": f'#include "{word}_data.h"\n\n' + "\n".join(writer.data),
    }
    return {version: made.arena_bytes for version, made in writer.plans.items()}, texts


def write_c(network: Network, name, samples: Samples, folder, *, packaging="plain", files=None):
    """Writes the project of plain C calls into a folder.

    Args:
        packaging: name of the layout, of `packaging.LAYOUTS`.
        files: what `c_files` gives, where it is there already.
    Returns:
        As `c_files`.
    """
    arenas, own = files or c_files(network, name)
    word = identifier(name)
    plain = _texts(native.PLAIN)
    headers = {file: plain.pop(file) for file in sorted(plain) if file.endswith(".h")}
    project = Project(
        word=word,
        headers={f"{word}.h": own[f"{word}.h"], **headers},
        sources={**{file: text for file, text in own.items() if file != f"{word}.h"}, **plain},
        kernel_headers=_texts(native.KERNELS / "include"),
        kernel_sources=_texts(native.KERNELS / "src"),
        samples=_sample_files(samples, "c"),
        facts={
            "CLASS": _class_of_c(network, word),
            "SHAPE": " x ".join(map(str, network.input.shape)),
            "ARENAS": "\n".join(f"| {version} | {size:,} |" for version, size in arenas.items()),
        },
    )
    write_project(project, packaging, folder)
    return arenas, own


def _texts(folder):
    """The files of a folder and of those in it, by path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}


def write_tflm(network: Network, name, model: bytes, arena_bytes, samples: Samples, folder):
    """Writes the TFLite Micro application into a folder. `arena_bytes`: of its tensor arena."""
    word = identifier(name)
    declarations = f"extern const unsigned char {word}_model[];\nextern const unsigned int {word}_model_size;\n"
    (folder / f"{word}_model.h").write_text(_guarded(f"{word}_model", declarations))
    numbers = textwrap.fill(", ".join(f"0x{byte:02x}" for byte in model), 116)
    (folder / f"{word}_model.cc").write_text(
        f'#include "{word}_model.h"\n\nalignas(16) const unsigned char {word}_model[] = {{\n'
        f"{textwrap.indent(numbers, '    ')}}};\nconst unsigned int {word}_model_size = {len(model)};\n"
    )
    for file, text in _sample_files(samples, "cc").items():
        (folder / file).write_text(text)
    operators = flatbuffer.operator_names(network)
    custom = [operator for operator in operators if operator in records.CUSTOM]
    main = _MAIN_TFLM.replace("NETWORK", word).replace("ARENA_BYTES_VALUE", str(arena_bytes))
    main = main.replace("OPERATOR_COUNT", str(len(operators))).replace("// CLASS\n", _class_of_tflm(network))
    main = main.replace("// REGISTER\n", "".join(f"  {_registration(operator)}\n" for operator in operators))
    main = main.replace("// INCLUDE\n", '#include "saaug_model.h"\n#include "saaug_ops.h"\n' if custom else "")
    main = main.replace("// CHECK\n", _CHECK_TFLM.replace("NETWORK", word) if custom else "")
    (folder / "main.cc").write_text(main)
    ours = _CMAKE_TFLM_KERNELS if custom else ("", "", "")
    cmake = _CMAKE_TFLM
    for mark, text in zip(("# KERNELS\n", " SOURCES", " INCLUDES"), ours, strict=True):
        cmake = cmake.replace(mark, text)
    (folder / "CMakeLists.txt").write_text(cmake.replace("NETWORK", word))
    (folder / "README.md").write_text(_readme_tflm(word, arena_bytes, operators, custom))
    (folder / f"{word}.tflite").write_bytes(model)
    if custom:
        for part in ("include", "src", "tflm"):
            shutil.copytree(native.KERNELS / part, folder / "kernels" / part)


def _registration(operator):
    if operator in records.CUSTOM:
        return f'if (resolver.AddCustom("{operator}", saaug::Register_{operator}()) != kTfLiteOk) return false;'
    method = "Add" + "".join(part.capitalize() for part in operator.split("_")).replace("2d", "2D")
    return f"if (resolver.{method}() != kTfLiteOk) return false;"


def _lines(lines):
    return "".join(line + "\n" for line in lines)


def _guarded(name, text):
    """A header of declarations, for C and C++."""
    guard = f"{name.upper()}_H"
    return (
        f'#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n\n#ifdef __cplusplus\nextern "C" {{\n#endif\n\n{text}\n'
        "#ifdef __cplusplus\n}\n#endif\n#endif\n"
    )


def _network_header(network, word):
    upper, source, output = word.upper(), network.input, network.output
    grids = [f"real value = {float(t.scale):.9g} * (stored - ({t.zero_point}))" for t in (source, output)]
    sizes = [", ".join(map(str, tensor.shape)) for tensor in (source, output)]
    return _guarded(
        word,
        f"""#define {upper}_INPUT_BYTES {int(np.prod(source.shape))}
#define {upper}_OUTPUT_BYTES {int(np.prod(output.shape))}
#define {upper}_CLASSES {output.shape[-1]}

/**
 * Runs the network once. Not reentrant: the activations are static.
 * @param[in]  image   int8 [{sizes[0]}]; {grids[0]}
 * @param[out] output  int8 [{sizes[1]}]; {grids[1]}
 * @return 0, or a saaug_status.
 */
int {word}_run(const int8_t *image, int8_t *output);

/**
 * One pass over the constants, before the first run: 0 if all is sound, else the number of a step, from 1, whose options or
 * constants are damaged, or that wants more scratch than the plan for the kernels compiled in has.
 */
int {word}_check(void);

/** Bytes of the static arena of activations and scratch. */
uint32_t {word}_arena_bytes(void);
""",
    )


def _network_source(writer):
    word = writer.name
    blocks = []
    for number, (version, made) in enumerate(writer.plans.items()):
        lines = [f"#{'el' if number else ''}if defined(SAAUG_{version.upper()})"]
        lines.append("enum {")
        lines += [f"    {writer.offset(tensor)} = {offset}," for tensor, offset in made.tensors.items()]
        lines += [f"    ARENA_BYTES = {max(made.arena_bytes, plan.ALIGNMENT)}", "};"]
        for index, step in enumerate(writer.network.steps):
            if flatbuffer.is_ours(step):
                where = f"(arena + {made.scratch[index]})" if index in made.scratch else "NULL"
                lines.append(f"#define SCRATCH_{index} {where}")
                lines.append(f"#define SCRATCH_BYTES_{index} {writer.scratch[version][index]}")
        blocks.append("\n".join(lines))
    plans = "\n".join(blocks) + '\n#else\n#error "no memory plan for this version of the kernels"\n#endif'
    ours = any(flatbuffer.is_ours(step) for step in writer.network.steps)
    body = textwrap.indent("\n".join(writer.calls), "    ")
    checks = textwrap.indent("\n".join(writer.checks), "    ")
    status = "    saaug_status status;\n" if ours else ""
    return f"""#include "{word}.h"

#include <stddef.h>
#include <string.h>

#include "{word}_data.h"
#include "saaug_internal.h" /* which version of the kernels is compiled in */
#include "saaug_nn.h"
#include "saaug_plain.h"

/* Where every activation and scratch buffer lies; buffers whose lives do not overlap share bytes. */
{plans}

static union {{
    int64_t alignment;
    int8_t bytes[ARENA_BYTES];
}} memory;

{_lines(writer.statics)}
#ifdef SAAUG_PROFILE
#include "saaug_profile.h"

static const saaug_profile_layer profiled[] = {{
{_lines(writer.profiled)}}};
#define PROFILE_BEGIN uint32_t begun = saaug_ticks_begin();
#define PROFILE_LAYER(index) begun = saaug_profile_next(&profiled[index], begun);
#else
#define PROFILE_BEGIN
#define PROFILE_LAYER(index)
#endif

uint32_t {word}_arena_bytes(void) {{ return ARENA_BYTES; }}

int {word}_check(void)
{{
{checks}
    return 0;
}}

int {word}_run(const int8_t *image, int8_t *output)
{{
    int8_t *const arena = memory.bytes;
{status}    PROFILE_BEGIN
    (void)arena;
{body}
    return 0;
}}
"""


def _sample_files(samples, suffix):
    """samples.h and samples.c (or .cc): images and the outputs that they must give."""
    count, image_bytes = len(samples.images), samples.images[0].size
    output_bytes = samples.outputs[0].size
    linkage = "extern " if suffix == "cc" else ""
    header = _guarded(
        "samples",
        f"#define SAMPLE_COUNT {count}\n\n"
        f"extern const int8_t sample_images[SAMPLE_COUNT][{image_bytes}];\n"
        "/* what the exporter's reference interpreter gave for them */\n"
        f"extern const int8_t sample_outputs[SAMPLE_COUNT][{output_bytes}];\n",
    )
    text = '#include "samples.h"\n'
    for name, values, size in (("images", samples.images, image_bytes), ("outputs", samples.outputs, output_bytes)):
        rows = []
        for row in values.reshape(count, -1):
            numbers = textwrap.fill(", ".join(map(str, row.tolist())), 112)
            rows.append(f"    {{\n{textwrap.indent(numbers, '        ')}}}")
        text += f"\n{linkage}const int8_t sample_{name}[SAMPLE_COUNT][{size}] = {{\n" + ",\n".join(rows) + "};\n"
    return {"samples.h": header, f"samples.{suffix}": text}


def _class_of_single(output):
    """The C expression of the class, 0 or 1, of a single output."""
    classes = ends.classes_of(np.arange(-128, 128).astype("int8")[:, None], output.scale, output.zero_point)
    least = 128 - int(classes.sum())  # of class 1; the grid may end below
    return f"output[0] >= {least}" if least < 128 else "0"


def _class_of_c(network, word):
    """The C expression of the class."""
    output = network.output
    if output.shape[-1] == 1:
        return _class_of_single(output)
    return f"(long)saaug_plain_argmax(output, {word.upper()}_CLASSES)"


_MAIN_TFLM = """// Classifies the sample images with TFLite Micro; the exit status is the number of wrong outputs.
#include <cstdio>
#include <cstring>

#include "NETWORK_model.h"
#include "samples.h"
// INCLUDE
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

// Measured by the exporter in TFLite Micro itself on a 64-bit host, where its own records are larger, plus the scratch
// of the hungriest version of the kernels. After AllocateTensors(), arena_used_bytes() says what is needed.
constexpr int kArenaBytes = ARENA_BYTES_VALUE;
alignas(16) uint8_t arena[kArenaBytes];

using Resolver = tflite::MicroMutableOpResolver<OPERATOR_COUNT>;

bool Register(Resolver& resolver) {
// REGISTER
  return true;
}

}  // namespace

int main() {
  tflite::InitializeTarget();
// CHECK
  static Resolver resolver;
  if (!Register(resolver)) {
    std::printf("an operator could not be registered\\n");
    return 100;
  }
  static tflite::MicroInterpreter interpreter(tflite::GetModel(NETWORK_model), resolver, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::printf("the tensors could not be allocated\\n");
    return 101;
  }
  std::printf("arena: %u of %d bytes\\n", static_cast<unsigned>(interpreter.arena_used_bytes()), kArenaBytes);
  int wrong = 0;
  for (int i = 0; i < SAMPLE_COUNT; ++i) {
    std::memcpy(interpreter.input(0)->data.int8, sample_images[i], sizeof sample_images[i]);
    const bool ran = interpreter.Invoke() == kTfLiteOk;
    const int8_t* const output = interpreter.output(0)->data.int8;
    const bool same = ran && std::memcmp(output, sample_outputs[i], sizeof sample_outputs[i]) == 0;
// CLASS
    std::printf("sample %d: class %u, output %sas expected\\n", i, static_cast<unsigned>(best), same ? "" : "NOT ");
    wrong += !same;
  }
  return wrong;
}
"""


def _class_of_tflm(network):
    """The statements that find the class: of the first pixel, if there are many."""
    output = network.output
    if output.shape[-1] == 1:
        return f"    const int best = {_class_of_single(output)}; // a single output\n"
    return f"""    std::size_t best = 0;
    for (std::size_t c = 1; c < {output.shape[-1]}; ++c) {{
      if (output[c] > output[best]) best = c;
    }}
"""


# A damaged model must be found before TFLite Micro reads it.
_CHECK_TFLM = """  int32_t index = -1;
  const char* const fault = saaug_check_model(NETWORK_model, NETWORK_model_size, &index);
  if (fault != nullptr) {
    std::printf("the model is damaged: %s (%d)\\n", fault, static_cast<int>(index));
    return 102;
  }
"""

_CMAKE_TFLM_KERNELS = (  # what a project with operators of ours has more: its files, their names, their headers
    "file(GLOB KERNELS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/src/*.c ${CMAKE_CURRENT_SOURCE_DIR}/kernels/src/*/*.c)\n"
    "file(GLOB ADAPTER ${CMAKE_CURRENT_SOURCE_DIR}/kernels/tflm/*.cc ${CMAKE_CURRENT_SOURCE_DIR}/kernels/tflm/*.c)\n",
    " ${ADAPTER} ${KERNELS}",
    " kernels/include kernels/src kernels/tflm",
)

_CMAKE_TFLM = """# cmake -B build -DTFLM_ROOT=/path/to/tflm-tree [-DTFLM_LIBRARY=/path/to/libtensorflow-microlite.a]
#       [-DCMAKE_TOOLCHAIN_FILE=...] [-DBOARD_FLAGS="-mcpu=cortex-m4 -mthumb"]
# TFLM_ROOT: a tree made by TFLite Micro's create_tflm_tree.py, or a checkout after its make has fetched third_party.
cmake_minimum_required(VERSION 3.13)
project(NETWORK C CXX)
set(TFLM_ROOT "" CACHE PATH "TFLite Micro tree")
set(TFLM_LIBRARY "" CACHE FILEPATH "library of TFLite Micro, built for the same target")
set(BOARD_FLAGS "" CACHE STRING "compiler flags of the board")
if(NOT EXISTS "${TFLM_ROOT}/tensorflow/lite/micro/micro_interpreter.h")
  message(FATAL_ERROR "Set TFLM_ROOT to a TFLite Micro tree (it holds tensorflow/lite/micro/micro_interpreter.h).")
endif()
if(NOT EXISTS "${TFLM_LIBRARY}")
  message(FATAL_ERROR "Set TFLM_LIBRARY to TFLite Micro's library, built for the same target.")
endif()
separate_arguments(BOARD_FLAGS)
# KERNELS
add_executable(NETWORK main.cc samples.cc NETWORK_model.cc SOURCES)
target_include_directories(NETWORK PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} INCLUDES)
target_include_directories(NETWORK SYSTEM PRIVATE
  ${TFLM_ROOT} ${TFLM_ROOT}/third_party/flatbuffers/include ${TFLM_ROOT}/third_party/gemmlowp
  ${TFLM_ROOT}/third_party/ruy ${TFLM_ROOT}/tensorflow/lite/micro/tools/make/downloads/flatbuffers/include
  ${TFLM_ROOT}/tensorflow/lite/micro/tools/make/downloads/gemmlowp
  ${TFLM_ROOT}/tensorflow/lite/micro/tools/make/downloads/ruy)
set_target_properties(NETWORK PROPERTIES C_STANDARD 99 CXX_STANDARD 17)
target_compile_definitions(NETWORK PRIVATE TF_LITE_STATIC_MEMORY)
target_compile_options(NETWORK PRIVATE ${BOARD_FLAGS} -O3 -ffunction-sections -fdata-sections
  $<$<COMPILE_LANGUAGE:CXX>:-fno-rtti -fno-exceptions>)
target_link_options(NETWORK PRIVATE ${BOARD_FLAGS} -Wl,--gc-sections)
target_link_libraries(NETWORK PRIVATE ${TFLM_LIBRARY})
"""


def _readme_tflm(word, arena_bytes, operators, custom):
    scratch, kernels = "", ""
    if custom:
        scratch = ", and the kernels' scratch"
        kernels = (
            "- `kernels/` are our operators; they choose their version (Arm DSP, Helium, portable C) from the compiler's "
            "target.\n"
        )
    return f"""# {word}: an int8 network for TFLite Micro

1. Get a TFLite Micro tree: in a checkout of tflite-micro, `python3
   tensorflow/lite/micro/tools/project_generation/create_tflm_tree.py tflm-tree`, and build its library for your target.
2. `cmake -B build -DTFLM_ROOT=tflm-tree -DTFLM_LIBRARY=libtensorflow-microlite.a` with your board's
   `-DCMAKE_TOOLCHAIN_FILE` and `-DBOARD_FLAGS`, then `cmake --build build`.
3. Run it: it classifies the sample images and compares every output byte with what the exporter computed.

- `{word}_model.cc` is `{word}.tflite` as an array; keep its alignment of 16 bytes.
- `main.cc` registers exactly the operators that the model uses: {", ".join(operators)}.
- The arena is {arena_bytes:,} bytes: what TFLite Micro allocated on the exporting machine{scratch}.
  After AllocateTensors(), `arena_used_bytes()` tells what your target needs; it is less.
{kernels}"""
