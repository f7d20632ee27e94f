"""Firmware projects: built by host compilers with sanitizers and for emulated cores, outputs equal to the reference."""

import collections
import ctypes
import itertools
import re
import shutil
import subprocess
import types

import keras
import numpy as np
import pytest
from export_models import WINDOWS, images_like, padded_model, settle, small_backbone
from kernel_cases import sanitizers_of
from test_reference_integer import every_builtin_op

import tflm_export
from saaug_keras import layers as ours
from tflm_export import emulator, firmware, flatbuffer, native, plan, records, reference

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")


def includes(folder):
    return [folder, folder / "kernels/include", folder / "kernels/src"]


def sources(folder):
    """All C files of a project."""
    kernels = [*sorted(folder.glob("kernels/src/*.c")), *sorted(folder.glob("kernels/src/*/*.c"))]
    return [*sorted(folder.glob("*.c")), *kernels]


@pytest.fixture(scope="session")
def run_on_host(tmp_path_factory):
    """Builds a project of target c with sanitizers and runs it: (folder, version, compiler) -> what it printed.

    The kernels are the same in every project: they are compiled once for each version, without sanitizers, which their
    own tests have.
    """
    libraries = {}

    def compile(folder, *command):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]

    def run(folder, version, compiler="gcc"):
        flags = ["-std=c99", "-O1", f"-DSAAUG_FORCE_{version}", *(f"-I{path}" for path in includes(folder))]
        if version not in libraries:
            objects = tmp_path_factory.mktemp(f"kernels-{version}")
            compile(objects, "gcc", *flags, "-c", *(source for source in sources(folder) if source.parent != folder))
            libraries[version] = sorted(objects.glob("*.o"))
        own = sorted(folder.glob("*.c"))
        flags += [*WARNINGS, *sanitizers_of(compiler)]
        compile(folder, compiler, *flags, *own, *libraries[version], "-o", folder / "program")
        ran = subprocess.run([str(folder / "program")], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
        return ran.stdout

    return run


def write(folder, model, images, **options):
    return tflm_export.export(model, images, folder, target="c", name="net", **options)


def lively(network, images):
    """The samples reach different outputs; a project that always printed the same would not pass."""
    return len({bytes(row) for row in firmware.Samples.of(network, images).outputs.reshape(len(images), -1)}) > 1


MODELS = {
    "shift": lambda: small_backbone("mobilenetv2-tiny", "shift", blocks=3, shape=(11, 9, 3)),
    "shift5-segmentation": lambda: small_backbone(
        "mobilenetv3-w0.35", "shift5", blocks=5, shape=(16, 24, 3), segmentation=True
    ),
    "adder": lambda: small_backbone("mobilenetv2-tiny", "adder", blocks=2, shape=(11, 9, 3)),
    "binary": lambda: small_backbone("mcunet-in0", "binary", blocks=1, shape=(9, 11, 3)),
    "channelshift": lambda: small_backbone("mcunet-in0", "adder/channelshift/shift", blocks=2, shape=(9, 11, 3)),
    "shiftadd": lambda: small_backbone("mcunet-in0", "shiftadd", blocks=1, shape=(9, 11, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_c_project_builds_clean_and_equals_the_reference_under_sanitizers(name, tmp_path, run_on_host):
    model, images = MODELS[name]()
    report = write(tmp_path / "net", model, images)
    assert lively(tflm_export.compile_network(model, images, flavour="custom"), images)
    for version in ("REFERENCE", "PORTABLE"):
        text = run_on_host(tmp_path / "net", version)
        planned = report.plan_bytes["portable8" if version == "PORTABLE" else "reference"]
        assert f"kernels: {version.lower()}, arena: {planned} bytes" in text
        assert text.count("output as expected") == 4 and "NOT" not in text


def test_c_project_of_every_builtin_op_equals_the_reference(tmp_path, run_on_host):
    keras.utils.set_random_seed(3)
    model, images = every_builtin_op(), images_like((13, 10, 3), 8, seed=3)
    settle(model, images, seed=3)
    write(tmp_path / "net", model, images)
    source = (tmp_path / "net" / "net.c").read_text()
    calls = "conv_2d depthwise_conv_2d add_tensors multiply_tensors mean_over_image resize_bilinear max_pool "
    for call in (calls + "average_pool pad_image hard_swish_tensor softmax_rows look_up copy_rows").split():
        assert f"saaug_plain_{call}(" in source, call
    compiler = "clang" if shutil.which("clang") else "gcc"
    assert "NOT" not in run_on_host(tmp_path / "net", "REFERENCE", compiler)


def test_every_pair_of_values_is_added_as_the_reference_does(tmp_path):
    """Grids in any proportion, whichever input is the coarser, to outputs as fine or coarse as the exporter accepts."""
    library = tmp_path / "plain.so"
    command = ["gcc", "-std=c99", "-O2", "-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    subprocess.run([*command, f"-I{native.PLAIN}", native.PLAIN / "saaug_plain.c", "-o", library], check=True)
    code = ctypes.CDLL(str(library))
    grid = np.arange(-128, 128)
    a, b = (side.astype("int8").ravel() for side in np.meshgrid(grid, grid))
    ratios = (1.0, 1.0000001, 1.37, 2.0, 3.0, 255.9, 4096.0, 1.1e6)
    outputs = (2.0**-17, 0.013, 0.5, 1.0, 1.7, 90.0)  # of the coarser scale
    random = np.random.default_rng(5)
    seen = collections.Counter()
    for ratio, output, swapped in itertools.product(ratios, outputs, (False, True)):
        scales = [0.04, 0.04 / ratio][:: -1 if swapped else 1]
        zero_a, zero_b, zero_out = random.choice([-128, -3, 0, 127], 3)
        tensors = [
            types.SimpleNamespace(scale=np.float32(scale), zero_point=int(zero), shape=(1 << 16,))
            for scale, zero in zip((*scales, 0.04 * output), (zero_a, zero_b, zero_out), strict=True)
        ]
        step = types.SimpleNamespace(inputs=tensors[:2], output=tensors[2], act_min=-128, act_max=int(random.choice([127, 90])))
        function, order, numbers = firmware.addition(step)
        seen[function] += 1
        out = np.empty(1 << 16, "int8")
        layer = np.concatenate([np.ravel(each) for each in numbers]).astype("int32")
        getattr(code, function)(*(each.ctypes.data_as(ctypes.c_void_p) for each in (layer, *((a, b)[i] for i in order), out)))
        expected = np.clip(reference._add(step, a.astype("int64"), b.astype("int64")), step.act_min, step.act_max)
        np.testing.assert_array_equal(out, expected, err_msg=f"{function} {scales} {output}")
    assert seen["saaug_plain_add_tensors"] > 50 and seen["saaug_plain_add_any"] > 20


def test_c_project_of_convolutions_that_reach_beyond_the_image_equals_the_reference(tmp_path, run_on_host):
    """Dilated or not, wider than the image, of channels that come in fours and of some that do not."""
    keras.utils.set_random_seed(4)
    conv = keras.layers.Conv2D
    model = keras.Sequential(
        [
            keras.Input((5, 3, 2)),
            conv(7, (3, 5), padding="same", activation="relu"),
            conv(8, (2, 3), padding="same", dilation_rate=(1, 2), activation="relu"),
            conv(5, (3, 2), padding="same", strides=2),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    images = images_like((5, 3, 2), 8, seed=4)
    write(tmp_path / "net", model, images)
    assert lively(tflm_export.compile_network(model, images, flavour="custom"), images)
    assert "NOT" not in run_on_host(tmp_path / "net", "REFERENCE")


def test_c_project_of_a_users_own_operator_equals_the_reference(tmp_path, run_on_host):
    import users_operator  # noqa: F401  registers its name

    model, images = small_backbone("mobilenetv2-tiny", "ternary", blocks=2, shape=(11, 9, 3))
    write(tmp_path / "net", model, images)
    assert lively(tflm_export.compile_network(model, images, flavour="custom"), images)
    assert run_on_host(tmp_path / "net", "REFERENCE").count("output as expected") == 4


def test_power_of_two_project_multiplies_nothing_and_equals_the_reference(tmp_path, run_on_host):
    image = x = keras.Input((8, 8, 3))
    x = keras.layers.ReLU()(ours.ShiftConv2D(6, 3, strides=2, padding="same")(x))
    x = keras.layers.ReLU(6.0)(ours.ShiftDepthwiseConv2D(3, padding="same")(x))
    model = keras.Model(image, ours.ShiftDense(5)(keras.layers.Flatten()(x)))
    images = images_like((8, 8, 3), 8)
    settle(model, images)
    report = write(tmp_path / "net", model, images, requantization="power-of-two")
    assert (report.operations["multiplications"], report.operations["requantizations"]) == (0, 0)
    assert "NOT" not in run_on_host(tmp_path / "net", "PORTABLE")
    assert "saaug_plain_" not in (tmp_path / "net" / "net.c").read_text().replace("saaug_plain.h", "")


def test_c_project_of_zeros_wider_than_the_kernels_reach_equals_the_reference(tmp_path, run_on_host):
    families = (ours.ShiftConv2D, ours.ShiftDepthwiseConv2D, ours.AdderConv2D, ours.AdderDepthwiseConv2D)
    model, images = padded_model(families, [((3, 3), (3, 3)), ((0, 4), (2, 0))], WINDOWS[::3]), images_like((5, 6, 2), 4)
    model(images, training=True)
    write(tmp_path / "net", model, images)
    assert lively(tflm_export.compile_network(model, images, flavour="custom"), images)
    for version in ("REFERENCE", "PORTABLE"):
        assert run_on_host(tmp_path / "net", version).count("output as expected") == 4


@pytest.mark.parametrize("core", list(emulator.CORES))
def test_c_project_equals_the_reference_on_emulated_cores(core, tmp_path_factory):
    core = emulator.CORES[core]
    if emulator.missing(core):
        pytest.skip(emulator.missing(core))
    folder = tmp_path_factory.getbasetemp() / "emulated-project"
    if not folder.exists():
        write_for_cores(folder)
    optimize = ("-O1", "-ffunction-sections", "-fdata-sections")
    image = emulator.build(core, sources(folder), folder, include=includes(folder), optimize=optimize)
    result = emulator.run(core, image)
    assert result.status == 0 and result.output.count("output as expected") == 3, result.output


def write_for_cores(folder):
    """One small network with every kernel of ours and most plain ones."""
    L = keras.layers
    keras.utils.set_random_seed(7)
    image = x = keras.Input((9, 7, 3))
    x = L.ReLU(6.0)(L.BatchNormalization()(ours.ShiftConv2D(8, 3, strides=2, padding="same")(x)))
    y = L.ReLU(6.0)(L.BatchNormalization()(ours.ShiftDepthwiseConv2D((3, 2), padding="same", weight_bits=5)(x)))
    y = L.BatchNormalization()(ours.ShiftConv2D(8, 1, weight_bits=5)(y))
    x = L.Add()([x, y])
    y = L.BatchNormalization()(ours.AdderDepthwiseConv2D(3, padding="same")(x))
    y = L.Activation("hard_swish")(L.BatchNormalization()(ours.AdderConv2D(6, 1)(ours.ChannelShift2D(3)(y))))
    gate = L.Conv2D(6, 1, activation="hard_sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(y))
    y = L.Resizing(6, 5, interpolation="bilinear")(L.Multiply()([y, gate]))
    y = L.Concatenate()([y, L.LeakyReLU(0.2)(y)])
    y = L.DepthwiseConv2D(3, padding="same", activation="relu")(y)
    model = keras.Model(image, ours.ShiftDense(5)(L.Flatten()(y)))
    images = images_like((9, 7, 3), 8, seed=7)
    settle(model, images, seed=7)
    network = tflm_export.compile_network(model, images, flavour="custom")
    names = {flatbuffer.custom_layer(step).name for step in network.steps if flatbuffer.is_ours(step)}
    assert names == set(records.CUSTOM)
    write(folder, model, images, samples=3)


def test_plan_never_overlaps_what_is_alive_together():
    model, images = small_backbone("mobilenetv3-w0.35", "shift", blocks=6)
    network = tflm_export.compile_network(model, images, flavour="custom")
    scratch = [int(n) for n in np.random.default_rng(8).integers(0, 900, len(network.steps))]
    made = plan.make_plan(network, scratch)
    last = {tensor.name: index for index, step in enumerate(network.steps) for tensor in step.inputs}
    alive = {}
    for index, step in enumerate(network.steps):
        outside = {network.input.name, network.output.name}
        size = plan.tensor_bytes(step.output)
        spans = [(made.tensors[n], made.tensors[n] + b, n) for n, b in alive.items()]
        if index in made.scratch:
            spans.append((made.scratch[index], made.scratch[index] + scratch[index], "scratch"))
        if step.output.name not in outside:
            start = made.tensors[step.output.name]
            # an output may take the very place of an input that ends here
            spans = [s for s in spans if not (s[0] == start and last.get(s[2]) == index and s[2] != "scratch")]
            spans.append((start, start + size, step.output.name))
            alive[step.output.name] = size
        spans.sort()
        for (_, end, a), (start, _, b) in zip(spans, spans[1:], strict=False):
            assert end <= start, (step.op.name, a, b)
        assert all(end <= made.arena_bytes for _, end, _ in spans)
        alive = {name: b for name, b in alive.items() if last.get(name, -1) > index}
    _, needed = plan.largest_step(network, scratch)
    assert needed <= made.arena_bytes <= 1.5 * needed


def test_plan_takes_no_more_than_the_hungriest_step_where_the_largest_first_would():
    # 128, 128, 64, 192 bytes: with the 192 and the first 128 at 0, the 64 between them would have to lie above it all
    image = x = keras.Input((8, 8, 1))
    for filters, strides in ((2, 1), (2, 1), (1, 1), (3, 1), (2, 2)):
        x = ours.ShiftConv2D(filters, 3, strides=strides, padding="same")(x)
    model = keras.Model(image, ours.ShiftDense(5)(keras.layers.Flatten()(x)))
    network = tflm_export.compile_network(model, images_like((8, 8, 1), 4), flavour="custom")
    assert plan.largest_step(network)[1] == 256
    assert plan.make_plan(network).arena_bytes == 256
    assert plan.make_plan(network).tensors == plan.make_plan(network).tensors


def test_tflm_project_has_model_resolver_kernels_and_arena(tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=2, shape=(11, 9, 3))
    report = tflm_export.export(model, images, tmp_path / "net", target="tflm", name="my-net")
    folder = tmp_path / "net"
    assert {path.name for path in folder.iterdir()} == {
        "CMakeLists.txt",
        "README.md",
        "main.cc",
        "my_net.tflite",
        "my_net_model.cc",
        "my_net_model.h",
        "samples.cc",
        "samples.h",
        "kernels",
        "report.json",
    }
    data = (folder / "my_net.tflite").read_bytes()
    array = re.findall(r"0x([0-9a-f]{2})", (folder / "my_net_model.cc").read_text())
    assert bytes(int(byte, 16) for byte in array) == data
    main = (folder / "main.cc").read_text()
    for operator in ("SHIFT_CONV_2D", "SHIFT_DEPTHWISE_CONV_2D", "SHIFT_FULLY_CONNECTED"):
        assert f'resolver.AddCustom("{operator}", saaug::Register_{operator}())' in main
    assert "resolver.AddMean()" in main and "MicroMutableOpResolver<4>" in main and "AddConv2D" not in main
    arena = int(re.search(r"kArenaBytes = (\d+)", main).group(1))
    assert arena >= report.activation_bytes + report.arena_tail_host_bytes + max(report.scratch_bytes.values())
    for path in ("include/saaug_nn.h", "src/saaug_options.c", "tflm/saaug_ops.h", "tflm/saaug_ops.cc"):
        assert (folder / "kernels" / path).exists()


def test_the_arena_has_room_for_what_the_adapter_keeps_of_each_operator(tmp_path):
    """Of forty equal layers, some 4 kB: more than the margin."""
    arenas = {}
    for count in (8, 48):
        image = x = keras.Input((4, 4, 8))
        for _ in range(count):
            x = ours.ShiftConv2D(8, 1, use_bias=False)(x)
        model, images = keras.Model(image, x), images_like((4, 4, 8), 2)
        settle(model, images)
        report = tflm_export.export(model, images, tmp_path / str(count), target="tflm", name="net")
        main = (tmp_path / str(count) / "main.cc").read_text()
        counted = report.activation_bytes + report.arena_tail_host_bytes + max(report.scratch_bytes.values())
        arenas[count] = int(re.search(r"kArenaBytes = (\d+)", main).group(1)) - counted
    assert 40 * 112 <= arenas[48] - arenas[8] + 1024 <= 40 * 128 + 2 * 1024


def test_builtin_tflm_project_needs_no_kernel_of_ours(tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=3, shape=(11, 9, 3))
    tflm_export.export(model, images, tmp_path / "net", target="tflm", flavour="builtin", name="net")
    main = (tmp_path / "net" / "main.cc").read_text()
    assert "AddDepthwiseConv2D()" in main and "AddFullyConnected()" in main and "saaug" not in main


def test_builtin_tflm_project_copies_no_kernel_of_ours(tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=1, shape=(11, 9, 3))
    for flavour in ("builtin", "custom"):
        folder = tmp_path / flavour
        tflm_export.export(model, images, folder, target="tflm", flavour=flavour, name="net")
        texts = (folder / "CMakeLists.txt").read_text() + (folder / "README.md").read_text()
        assert (folder / "kernels").exists() == ("kernels" in texts) == (flavour == "custom")
        assert "add_executable(net main.cc samples.cc net_model.cc" in texts
        assert not {"KERNELS\n", "SOURCES", "INCLUDES"} & set(texts.split())


STRICT = (*WARNINGS, "-Wshadow", "-Wundef")


@pytest.fixture(scope="module")
def two_projects(tmp_path_factory):
    """Two networks of different operators, as projects of plain C: {name: (folder, an image, its output)}."""
    made = {}
    for name, operator in (("one", "shift"), ("two", "adder")):
        model, images = small_backbone("mobilenetv2-tiny", operator, blocks=1, shape=(11, 9, 3))
        folder = tmp_path_factory.mktemp(name)
        tflm_export.export(model, images, folder, target="c", name=name)
        samples = firmware.Samples.of(tflm_export.compile_network(model, images, flavour="custom"), images)
        made[name] = folder, samples.images[0].reshape(-1), samples.outputs[0].reshape(-1)
    return made


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", ["c99", "c11", "c17", "c++11", "c++14", "c++17"])
def test_headers_are_clean_in_every_standard(standard, compiler, two_projects, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    folder = two_projects["one"][0]
    headers = sorted(file.name for file in folder.glob("*.h"))
    assert {"one.h", "one_data.h", "samples.h", "saaug_plain.h"} <= set(headers)
    file = tmp_path / ("all.cc" if "+" in standard else "all.c")
    file.write_text("".join(f'#include "{header}"\n' for header in (*headers, "saaug_nn.h")) + "int unused_by_design;\n")
    words = [compiler, f"-std={standard}", "-fsyntax-only", *STRICT, *(f"-I{path}" for path in includes(folder)), file]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", ["c99", "c17"])
def test_all_c_files_are_clean(standard, compiler, two_projects):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    for name in ("one", "two"):
        folder = two_projects[name][0]
        for version in ("REFERENCE", "PORTABLE"):
            for file in sources(folder):
                words = [
                    compiler,
                    f"-std={standard}",
                    "-fsyntax-only",
                    *STRICT,
                    f"-DSAAUG_FORCE_{version}",
                    *(f"-I{path}" for path in includes(folder)),
                    file,
                ]
                done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-3000:]


def test_two_networks_run_in_one_program_of_cxx(two_projects, tmp_path):
    folder = two_projects["one"][0]
    flags = ["-O1", "-DSAAUG_FORCE_PORTABLE", *(f"-I{path}" for path in includes(folder)), f"-I{two_projects['two'][0]}"]
    files = [file for file in sources(folder) if file.name not in ("main.c", "samples.c")]
    files += [two_projects["two"][0] / "two.c", two_projects["two"][0] / "two_data.c"]
    text = '#include <cstdio>\n#include <cstring>\n#include "one.h"\n#include "two.h"\n'
    body = ""
    for name, (_, image, output) in two_projects.items():
        for part, values in (("image", image), ("output", output)):
            text += f"static const int8_t {name}_{part}[] = {{{', '.join(map(str, values))}}};\n"
        upper = name.upper()
        text += f"static int8_t {name}_found[{upper}_OUTPUT_BYTES];\n"
        body += (
            f"  if ({name}_check() || {name}_run({name}_image, {name}_found)) return 1;\n"
            f"  if (std::memcmp({name}_found, {name}_output, {upper}_OUTPUT_BYTES)) return 2;\n"
        )
    (tmp_path / "main.cc").write_text(text + f'int main() {{\n{body * 2}  std::puts("both right");\n}}\n')
    for words in (["gcc", "-std=c99", *flags, "-c", *files], ["g++", "-std=c++17", *STRICT, *flags, "-c", "main.cc"]):
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    link = ["g++", *map(str, tmp_path.glob("*.o")), "-o", "program"]
    done = subprocess.run(link, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert subprocess.run([str(tmp_path / "program")], capture_output=True, text=True).stdout == "both right\n"


def test_target_c_is_custom_only(tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=1)
    with pytest.raises(ValueError, match="`flavour` must be 'custom' for target 'c'. Received: flavour='builtin'"):
        write(tmp_path / "net", model, images, flavour="builtin")
    with pytest.raises(ValueError, match=r"bytes of RAM \(activations and scratch .* at layer '\w+'\)"):
        write(tmp_path / "net", model, images, sram_bytes=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, word", [("net", "net"), ("my-net.v2", "my_net_v2"), ("2nd", "net_2nd")])
def test_identifiers_are_c(name, word):
    assert firmware.identifier(name) == word
