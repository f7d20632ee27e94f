"""No constant leaves its type: networks whose values hardly vary, limits of the option record, damaged C projects."""

import dataclasses
import re
import subprocess

import keras
import numpy as np
import pytest
from export_models import assert_every_tensor_equal, images_like
from test_export import constants_of, weighted

import tflm_export
from saaug_keras import layers as ours
from tflm_export import firmware, flatbuffer, native, reference, runner

L = keras.layers


def opposite(x):
    """Two tensors whose sum is 0, whose product is not."""
    first, second = L.Conv2D(2, 1, use_bias=False), L.Conv2D(2, 1, use_bias=False)
    pair = first(x), second(x)
    second.kernel.assign(-first.kernel)
    return pair


def apart(x):
    """Two large tensors of which one is 0 wherever the other is not, on images that `balanced` gives."""
    return [L.ReLU()(L.Conv2D(1, 1, kernel_initializer=_of([row]))(x)) for row in ((500.0, 0.0), (0.0, 500.0))]


def _of(rows):
    return keras.initializers.Constant(np.array(rows, "float32").T[None, None])


def dead(layer, gain=0.0, bias=-5.0):
    """The layer, a batch norm that makes a constant of it, and a ReLU that makes 0 of that."""

    def apply(x):
        norm = L.BatchNormalization(
            gamma_initializer=keras.initializers.Constant(gain), beta_initializer=keras.initializers.Constant(bias)
        )
        return L.ReLU()(norm(layer(x)))

    return apply


def alternating(x):
    """A tensor of large values whose mean over the image is 0, on images that `balanced` gives."""
    large = L.Conv2D(2, 1, use_bias=False, kernel_initializer=_of([(500.0, 0.0), (0.0, 500.0)]))
    return L.GlobalAveragePooling2D(keepdims=True)(large(x))


STILL = {
    "softmax of zeros": lambda x: L.Softmax()(L.Dense(4, kernel_initializer="zeros")(L.Flatten()(x))),
    "softmax of next to nothing": lambda x: L.Softmax()(
        L.Dense(4, kernel_initializer=keras.initializers.RandomNormal(stddev=1e-10))(L.Flatten()(x))
    ),
    "softmax of what a shift layer gives": lambda x: L.Softmax()(
        ours.ShiftDense(4, kernel_initializer="zeros", weight_bits=4)(L.Flatten()(x))
    ),
    "sum of opposites": lambda x: L.Add()(opposite(x)),
    "product of which one is 0": lambda x: L.Multiply()(apart(x)),
    "mean of balanced values": alternating,
    "h-swish of zeros": lambda x: L.Activation("hard_swish")(L.Add()(opposite(x))),
    "pooled sum of opposites": lambda x: L.MaxPooling2D(2)(L.Add()(opposite(x))),
    "dead conv": dead(L.Conv2D(3, 1)),
    "dead depthwise": dead(L.DepthwiseConv2D(1)),
    "dead shift": dead(ours.ShiftConv2D(3, 1)),
    "dead adder": dead(ours.AdderConv2D(3, 1)),
    "very dead conv": dead(L.Conv2D(3, 1), 1e-3, -1e6),
    "very dead shift": dead(ours.ShiftConv2D(3, 1), 1e-3, -1e6),
    "very dead shift depthwise": dead(ours.ShiftDepthwiseConv2D(1), 1e-3, -1e6),
    "very dead adder": dead(ours.AdderConv2D(3, 1), 1e-3, -1e6),
}


def balanced(shape, count):
    """Images on the grid of (-1, 1) whose right half is the negative of the left, and channel 1 of channel 0."""
    half = np.random.default_rng(5).integers(-120, 121, (count, shape[0], shape[1] // 2, 1))
    half = np.concatenate([half, -half], axis=3)
    return (np.concatenate([half, -half], axis=2) / 127.5).astype("float32")


def still_model(name):
    keras.utils.set_random_seed(6)
    image = keras.Input((4, 4, 2))
    return keras.Model(image, STILL[name](image)), balanced((4, 4, 2), 4)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", STILL)
def test_values_that_hardly_vary_are_exported_bit_for_bit(name, tmp_path):
    """In every flavour, and other images than the representative ones compute the same everywhere, too."""
    model, images = still_model(name)
    model(images, training=True)
    stored = np.random.default_rng(7).uniform(-1, 1, (2, 4, 4, 2)).astype("float32")
    for flavour, requantization in (("builtin", "q31"), ("custom", "q31"), ("custom", "power-of-two")):
        if flavour == "builtin" and "adder" in name:
            continue
        options = {"flavour": flavour, "requantization": requantization, "input_range": (-1.0, 1.0)}
        network = tflm_export.compile_network(model, images, **options)
        assert_every_tensor_equal(network, images)
        assert_every_tensor_equal(network, stored)
        writer = firmware._CWriter(network, "net")
        for index, step in enumerate(network.steps):
            writer.step(index, step)
        numbers = [int(number) for line in writer.statics for number in re.findall(r"-?\b\d+\b", line.split("=")[1])]
        assert numbers and max(map(abs, numbers)) < 2**31


@pytest.fixture(scope="module")
def run_project(tmp_path_factory):
    """Builds a C project with sanitizers, the kernels' included, and runs it: folder -> (exit status, what it printed)."""
    objects = tmp_path_factory.mktemp("kernels")

    def compile(folder, *words):
        flags = ["-std=c99", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        include = [f"-I{path}" for path in (folder, folder / "kernels/include", folder / "kernels/src")]
        command = [str(word) for word in (native.find_compiler(), *flags, *include, *words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=objects)
        assert done.returncode == 0, done.stderr[-2000:]

    def run(folder):
        if not list(objects.glob("*.o")):  # the kernels are the same in every project
            compile(folder, "-c", *sorted(folder.glob("kernels/src/**/*.c")))
        compile(folder, *sorted(folder.glob("*.c")), *sorted(objects.glob("*.o")), "-o", folder / "program")
        ran = subprocess.run([str(folder / "program")], capture_output=True, text=True, timeout=20)
        assert ran.returncode in (0, 100), ran.stdout + ran.stderr[-2000:]
        return ran.returncode, ran.stdout

    return run


def test_c_project_of_logits_that_hardly_vary_ends(tmp_path, run_project):
    model, images = still_model("softmax of zeros")
    tflm_export.export(model, images, tmp_path / "net", target="c", name="net", input_range=(-1.0, 1.0))
    assert run_project(tmp_path / "net")[0] == 0


@pytest.mark.parametrize("activation", [None, "hard_sigmoid"])
def test_c_project_of_a_single_output_prints_the_class_of_the_interpreter(activation, tmp_path, run_project):
    keras.utils.set_random_seed(9)
    image = keras.Input((4, 4, 2))
    model, images = keras.Model(image, L.Dense(1, activation=activation)(L.Flatten()(image))), balanced((4, 4, 2), 8)
    tflm_export.export(model, images, tmp_path / "net", target="c", name="net", input_range=(-1.0, 1.0), samples=8)
    network = tflm_export.compile_network(model, images, flavour="custom", input_range=(-1.0, 1.0))
    found = runner.Interpreter(flatbuffer.write(network)).classify(images)
    status, text = run_project(tmp_path / "net")
    assert status == 0 and 0 < found.sum() < 8
    assert [int(number) for number in re.findall(r"class (\d)", text)] == found.tolist()


def test_c_project_sees_damaged_options_and_constants_before_it_runs(tmp_path, run_project):
    """One number changed at a time, in whatever step: the check names the step, and nothing runs."""
    keras.utils.set_random_seed(8)
    image = x = keras.Input((4, 4, 2))
    x = ours.ShiftConv2D(2, 3, padding="same", name="a_b")(x)
    x = ours.ShiftConv2D(2, 1, weight_bits=5, name="A_B")(x)
    x = L.Conv2D(2, 2, name="a_B")(x)  # one identifier, three layers
    model = keras.Model(image, ours.ShiftDense(3)(L.Flatten()(x)))
    model.get_layer("A_B").kernel.assign(np.array([1.0, -(2.0**-13), 0.5, 1.0]).reshape(1, 1, 2, 2))
    images = images_like((4, 4, 2), 4)
    model(images, training=True)
    tflm_export.export(model, images, tmp_path / "net", target="c", name="main", samples=1)
    folder = tmp_path / "net"
    code, data = folder / "net_main.c", folder / "net_main_data.c"
    assert run_project(folder)[0] == 0

    def params(index, row):
        """Replaces the first channel's (bias, multiplier, shift) of a step."""
        return data, rf"(net_main_{index}_params\[\d+\] = {{\s*)-?\d+, -?\d+, -?\d+", rf"\g<1>{row}"

    def weights(index, word):
        return data, rf"(net_main_{index}_weights\[\d+\] = {{\s*)0x[0-9A-F]+u", rf"\g<1>{word}"

    faults = {
        "pad beyond reach": (1, code, r"(layer_0_options = {[^}]*, 3, 3, 1, 1, 1, 1, )1, 1", r"\g<1>3, 1"),
        "layout": (2, code, r"(layer_1_options = {SAAUG_\w+, )SAAUG_LAYOUT_BYTE", r"\g<1>SAAUG_LAYOUT_OFFSET"),
        "shape": (1, code, r"(layer_0_shape = {1, 4, 4, 2, )4, 4", r"\g<1>4, 9"),
        "shift": (1, *params(0, "0, 1073741824, 31")),
        "overflow": (2, *params(1, "1073741823, 1073741824, 5")),
        "code 17": (2, *weights(1, "0x00001101u")),
        "code 128": (2, *weights(1, "0x00008001u")),
        "negative zero": (1, *weights(0, "0x88888888u")),
        "conv shift": (3, *params(2, "0, 1073741824, 99")),
        "conv overflow": (3, *params(2, "2147483647, 1073741824, 5")),
        "conv stride": (3, code, r"(layer_2 = {{3?4?, ?[^}]*2, 2, )1, 1, 1, 1", r"\g<1>0, 1, 1, 1"),
        "multiplier": (4, *params(3, "0, (-2147483647 - 1), 5")),
    }
    for name, (step, file, pattern, replacement) in faults.items():
        text = file.read_text()
        damaged, count = re.subn(pattern, replacement, text, count=1)
        assert count == 1 and damaged != text, name
        file.write_text(damaged)
        status, printed = run_project(folder)
        assert status == 100 and f"step {step} is damaged" in printed, name
        file.write_text(text)


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": (1, 300)}, {"kernel_size": 1, "strides": 300}, {"kernel_size": (2, 1), "dilation_rate": (299, 1)}],
)
def test_window_that_the_option_record_cannot_hold_is_refused_by_name(options, tmp_path):
    image = keras.Input((302, 302, 1))
    model = keras.Model(image, ours.ShiftConv2D(1, name="wide", **options)(image))
    with pytest.raises(ValueError, match=r"layer 'wide': `\w+` must be at most 255 for our kernels. Received: \w+=\d"):
        tflm_export.export(model, np.zeros((1, 302, 302, 1), "uint8"), tmp_path / "out", flavour="custom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"bias": 2**32}, {"bias": -(2**32)}, {"multiplier": 2**40}, {"shift": 2**32}, {"weights": 200}]
)
@pytest.mark.parametrize("kind", ["conv", "shift", "adder"])
def test_constant_outside_its_type_is_never_written(kind, change):
    image = keras.Input((4, 3, 2))
    family = {"conv": L.Conv2D, "shift": ours.ShiftConv2D, "adder": ours.AdderConv2D}[kind]
    images = images_like((4, 3, 2), 3)
    model = keras.Model(image, family(2, 1, name="layer")(image))
    model(images, training=True)
    network = tflm_export.compile_network(model, images, flavour="custom")
    step = network.steps[0]
    ((name, value),) = change.items()
    if name == "weights" and kind != "conv":
        return  # packed in codes of their own
    wrong = getattr(step.constants, name).astype("int64")
    wrong.flat[-1] = value
    step = dataclasses.replace(step, constants=dataclasses.replace(step.constants, **{name: wrong}))
    network = dataclasses.replace(network, steps=(step,))
    writer = firmware._CWriter(dataclasses.replace(network, steps=()), "net")
    writer.network = network
    writers = [lambda: writer.step(0, step)]
    if kind != "conv" or name in ("bias", "weights"):  # the file holds no multipliers of built-in operators
        writers.append(lambda: flatbuffer.write(network))
    for write in writers:
        with pytest.raises(ValueError, match=r"layer 'layer': a constant of -?[\d,]+ must be int"):
            write()


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_scale_that_is_no_number_above_zero_is_never_written(scale):
    image = keras.Input((4, 3, 2))
    network = tflm_export.compile_network(keras.Model(image, L.Conv2D(2, 1)(image)), images_like((4, 3, 2), 3))
    tensors = {name: dataclasses.replace(tensor, scale=scale) for name, tensor in network.tensors.items()}
    with pytest.raises(ValueError, match="must be float32, finite and above 0"):
        flatbuffer.write(dataclasses.replace(network, tensors=tensors))


def test_softmax_of_an_input_that_is_too_fine_is_refused():
    image = keras.Input((4, 3, 2))
    with pytest.raises(ValueError, match="cannot read steps as fine as the input's.*`input_range`"):
        tflm_export.compile_network(keras.Model(image, L.Softmax()(image)), np.zeros((2, 4, 3, 2)), input_range=(-1e-7, 1e-7))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bias", [1e13, -1e13])
@pytest.mark.parametrize("gain", [1e-12, 8.0, 1e4, -8.0])
@pytest.mark.parametrize("operator", ["shift", "adder", "conv"])
def test_bias_beyond_the_accumulator_saturates_every_output(operator, gain, bias):
    """No input moves the channel off its end, so a smaller bias that keeps it there is exact."""
    kernel = np.array([2.0**-3, 2.0**-9], "float32").reshape(1, 1, 1, 2)
    constants, _ = constants_of(weighted(operator, kernel, gain, bias), channels=np.array([[bias], [bias], [bias]]))
    assert abs(int(constants.bias[0])) < 2**31
    least = 0 if operator == "adder" else -255 * int(np.abs(constants.weights).sum())
    most = 256 * 255 * 2 if operator == "adder" else -least
    for moved in (least, 0, most):
        acc = int(constants.bias[0]) + moved
        shift = int(constants.shift[0])
        assert -(2**31) <= acc << max(-shift, 0) < 2**31
        assert reference.requantize(acc, constants.multiplier, constants.shift)[0] * np.sign(bias) >= 255
