"""Hybrid layers: the equations of the method against slow NumPy loops, dynamic widths, the gate, the cut-out target."""

import keras
import numpy as np
import pytest
import reference
from contract import array, assert_layer_contract, gradients, random_inputs

import saaug_keras
from saaug_keras import HybridBatchNormalization, HybridConv2D, HybridDense, HybridDepthwise

# 3 of 5 input channels and 4 of 7 filters are the target's.
SHAPE = (2, 6, 5, 5)
CONV = {"filters": 7, "kernel_size": (3, 2), "target_filters": 4, "target_channels": 3, "strides": (2, 1)}
DEPTHWISE = {"kernel_size": (2, 3), "target_channels": 3, "strides": (1, 2), "padding": "valid"}
DENSE = {"units": 4, "target_channels": 3}
RANGE = (-0.7, 1.9)


def built(cls, kwargs, shape=SHAPE, **options):
    layer = cls(**kwargs, **options)
    layer.build(shape)
    for variable in (layer.input_range, layer.augmented_range):
        if variable is not None:
            variable.assign(RANGE)
    if layer.bias is not None:
        layer.bias.assign(random_inputs(layer.bias.shape, 9))
    return layer


def tensorflow_function(function):
    import tensorflow as tf

    return tf.function(function)


def slow_free(operator, run, x, kernel, upstream, window):
    """The target's operator with fake-quantized inputs, by loops."""
    quantized, inside, step = reference.fake_quantized(x, *RANGE)
    if operator == "adder":
        y, dx, dk = run(quantized, np.round(kernel / step) * step, *window, upstream, adder=True)
    else:
        axes = (-1,) if run is reference.convolution else (-2, -1)
        rounded = {"shift": reference.powers_of_two, "binary": reference.signs}[operator](kernel, channel_axes=axes)
        y, dx, dk = run(quantized, rounded, *window, upstream)
    return y, dx * inside, dk


@pytest.mark.parametrize("operator", ["shift", "adder", "binary"])
@pytest.mark.parametrize("filters", [None, 4, 6, 7])
def test_conv_is_the_sum_of_its_parts_with_every_gradient(operator, filters):
    layer = built(HybridConv2D, CONV, operator=operator, remap=False, use_bias=True)
    x = random_inputs(SHAPE) if filters else random_inputs(SHAPE)[..., :3]
    n, m = 3, 4
    call = {"augmented": filters is not None, "filters": filters}
    output, (dx, dk, db), upstream = gradients(lambda x, *_: layer(x, **call), x, layer.kernel, layer.bias)

    kernel, window = array(layer.kernel).astype("float64"), (layer.strides, "same", (1, 1))
    count = filters or m
    free, free_dx, free_dk = slow_free(
        operator, reference.convolution, x[..., :n], kernel[:, :, :n, :m], upstream[..., :m], window
    )
    want = np.zeros(output.shape)
    want[..., :m] += free
    want_dk, want_dx = np.zeros_like(kernel), np.zeros(x.shape)
    want_dk[:, :, :n, :m] += free_dk
    want_dx[..., :n] += free_dx
    if filters:
        quantized, inside, _ = reference.fake_quantized(x[..., :n], *RANGE)
        # Y_t += M(X_a)
        y, d_image, d_kernel = reference.convolution(x[..., n:], kernel[:, :, n:, :m], *window, upstream[..., :m])
        want[..., :m] += y
        want_dx[..., n:] += d_image
        want_dk[:, :, n:, :m] += d_kernel
        if filters > m:  # Y_a = M([q(X_t), X_a])
            both = np.concatenate([quantized, x[..., n:]], axis=-1)
            y, d_image, d_kernel = reference.convolution(both, kernel[..., m:count], *window, upstream[..., m:])
            want[..., m:] += y
            want_dx += d_image * np.concatenate([inside, np.ones_like(x[..., n:], bool)], axis=-1)
            want_dk[..., m:count] += d_kernel
    want += array(layer.bias)[:count]
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dk, want_dk, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(db[:count], upstream.sum(axis=(0, 1, 2)), rtol=1e-4, atol=1e-4)
    assert not db[count:].any()


@pytest.mark.parametrize("operator", ["shift", "adder"])
@pytest.mark.parametrize("channels", [3, 4, 5])
def test_depthwise_concatenates_its_parts_with_every_gradient(operator, channels):
    layer = built(HybridDepthwise, DEPTHWISE, operator=operator, remap=False)
    x, n, augmented = random_inputs(SHAPE)[..., :channels], 3, channels > 3
    output, (dx, dk), upstream = gradients(lambda x, _: layer(x, augmented=augmented), x, layer.kernel)
    kernel, window = array(layer.kernel).astype("float64"), (layer.strides, "valid", (1, 1))
    parts = [slow_free(operator, reference.depthwise, x[..., :n], kernel[:, :, :n], upstream[..., :n], window)]
    parts.append(reference.depthwise(x[..., n:], kernel[:, :, n:channels], *window, upstream[..., n:]))
    (y, d_image, d_kernel), extra = parts
    want, want_dx = np.concatenate([y, extra[0]], axis=3), np.concatenate([d_image, extra[1]], axis=3)
    want_dk = np.concatenate([d_kernel, extra[2]], axis=2)
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dk[:, :, :channels], want_dk, rtol=1e-4, atol=1e-4)
    assert not dk[:, :, channels:].any()


@pytest.mark.parametrize("channels", [3, 4, 5])
def test_dense_adds_its_parts_with_every_gradient(channels):
    layer = built(HybridDense, DENSE, (6, 5), remap=False)
    x, augmented = random_inputs((6, 5))[:, :channels], channels > 3
    output, (dx, dk, db), upstream = gradients(lambda x, *_: layer(x, augmented=augmented), x, layer.kernel, layer.bias)
    kernel = array(layer.kernel).astype("float64")[:channels]
    used = np.concatenate([reference.powers_of_two(kernel[:3]), kernel[3:]])
    quantized, inside, _ = reference.fake_quantized(x[:, :3], *RANGE)
    both = np.concatenate([quantized, x[:, 3:]], axis=1)
    np.testing.assert_allclose(output, both @ used + array(layer.bias), rtol=1e-5, atol=1e-5)
    want_dx = upstream @ used.T
    want_dx[:, :3] *= inside
    np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dk[:channels], both.T @ upstream, rtol=1e-5, atol=1e-5)
    assert not dk[channels:].any()
    np.testing.assert_allclose(db, upstream.sum(axis=0), rtol=1e-5, atol=1e-5)


CASES = [
    pytest.param(HybridConv2D, CONV, {"augmented": True, "filters": 6}, id="conv"),
    pytest.param(HybridConv2D, {**CONV, "kernel_size": 1}, {"augmented": True, "filters": 6}, id="pointwise"),
    pytest.param(HybridDepthwise, DEPTHWISE, {"augmented": True}, id="depthwise"),
    pytest.param(HybridDense, DENSE, {"augmented": True}, id="dense"),
]
PLAIN = {
    ("HybridConv2D", "shift"): "ShiftConv2D",
    ("HybridConv2D", "adder"): "AdderConv2D",
    ("HybridDepthwise", "shift"): "ShiftDepthwiseConv2D",
    ("HybridDepthwise", "adder"): "AdderDepthwiseConv2D",
    ("HybridDense", "shift"): "ShiftDense",
}


def plain_twin(layer):
    """The layer that is deployed in the place of a hybrid one."""
    options = {"use_bias": layer.use_bias}
    if isinstance(layer, HybridDense):
        return layer.operator.make_layer("dense", layer.units, **options)
    options |= {"strides": layer.strides, "padding": layer.padding, "kernel_size": layer.kernel_size}
    if isinstance(layer, HybridDepthwise):
        return layer.operator.make_layer("depthwise", **options)
    return layer.operator.make_layer("conv", layer.target_filters, **options)


@pytest.mark.parametrize("operator, variant", [("shift", "q"), ("shift", "ps"), ("adder", "q"), ("conv", "q"), ("binary", "q")])
@pytest.mark.parametrize("cls, kwargs, call", CASES)
def test_the_target_cut_out_is_a_plain_layer_with_the_same_outputs(cls, kwargs, call, operator, variant):
    if cls is HybridDense and operator == "adder":
        pytest.skip("a classifier has no adder operator")
    shape = (6, 5) if cls is HybridDense else (2, 9, 8, 5)
    layer = built(cls, kwargs, shape, operator=operator, variant=variant, use_bias=True)
    if layer.fc_kernel is not None:
        layer.fc_bias.assign(0.01 * random_inputs(layer.fc_bias.shape))
    x = random_inputs(shape)[..., :3]
    plain = plain_twin(layer)
    plain.build(x.shape)
    layer.copy_target_to(plain)
    np.testing.assert_allclose(array(plain(x)), array(layer(x)), rtol=1e-5, atol=1e-5)
    if operator != "conv":
        np.testing.assert_allclose(array(plain.quantized_kernel()), array(layer.quantized_kernel()), rtol=1e-6)


@pytest.mark.parametrize(
    "cls, kwargs, call, operator",
    [
        pytest.param(*CASES[0].values, "shift", id="conv-shift"),
        pytest.param(*CASES[1].values, "adder", id="pointwise-adder"),
        pytest.param(*CASES[2].values, "adder", id="depthwise-adder"),
        pytest.param(*CASES[2].values, "conv", id="depthwise-conv"),
        pytest.param(*CASES[3].values, "shift", id="dense-shift"),
    ],
)
def test_layer_contract(cls, kwargs, call, operator, tmp_path):
    shape = (6, 5) if cls is HybridDense else (2, 9, 8, 5)
    options = {"operator": operator, "use_bias": True, "mutable": operator == "shift"}
    assert_layer_contract(cls, {**kwargs, **options}, shape, tmp_path, call=call)


@pytest.mark.parametrize("operator", ["shift", "adder", "conv"])
@pytest.mark.parametrize("kernel_size, remap", [(1, True), (3, False)])
def test_a_width_given_as_tensor_computes_what_the_number_computes(operator, kernel_size, remap):
    """In one compiled step; on JAX, the outputs that are left out are zeros.

    Compiled and eager sums differ in the last digit. Only the first layer rounds its inputs, which are the same for both:
    in the others a last digit would become a step of an int8 grid.
    """
    options = {**CONV, "kernel_size": kernel_size, "operator": operator, "remap": remap, "use_bias": True}
    inner = {"operator": operator, "target_channels": 4, "activation_bits": None}
    first = built(HybridConv2D, options)
    depthwise = built(HybridDepthwise, {**DEPTHWISE, **inner}, (2, 3, 5, 7))
    second = built(HybridConv2D, {**options, **inner}, (2, 2, 2, 7))
    x = random_inputs(SHAPE)

    def run(filters, last):
        return second(depthwise(first(x, augmented=True, filters=filters), augmented=True), augmented=True, filters=last)

    traces = []
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(filters):
            traces.append(filters)
            with tf.GradientTape() as tape:
                out = run(filters, filters)
                loss = tf.reduce_sum(out**2)
            return out, tape.gradient(loss, [first.kernel.value, depthwise.kernel.value, second.kernel.value])

        for filters in (5, 7, 4):
            out, found = step(tf.constant(filters))
            np.testing.assert_allclose(array(out), array(run(filters, filters)), rtol=1e-4, atol=1e-4)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(run(filters, filters) ** 2)
            wanted = tape.gradient(loss, [first.kernel.value, depthwise.kernel.value, second.kernel.value])
            for got, want in zip(found, wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())
    else:
        import jax

        @jax.jit
        def step(filters):
            traces.append(filters)
            wide = first(x, augmented=True, filters=filters)
            middle = depthwise(wide, augmented=True) * (jax.numpy.arange(7) < filters)  # as the caller does
            return second(middle, augmented=True, filters=filters)

        for filters in (5, 7, 4):
            out = step(jax.numpy.int32(filters))
            assert not out[..., filters:].any()
            np.testing.assert_allclose(out[..., :filters], run(filters, filters), rtol=1e-4, atol=1e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("operator", ["shift", "adder"])
@pytest.mark.parametrize("cls, kwargs, call", CASES)
def test_a_closed_gate_multiplies(cls, kwargs, call, operator):
    if cls is HybridDense and operator == "adder":
        pytest.skip("a classifier has no adder operator")
    shape = (6, 5) if cls is HybridDense else SHAPE
    layer = built(cls, kwargs, shape, operator=operator, mutable=True)
    twin = built(cls, kwargs, shape, operator="conv")
    twin.kernel.assign(layer.kernel)
    x = random_inputs(shape)
    n = layer.target_channels
    quantized = np.concatenate([reference.fake_quantized(x[..., :n], *RANGE)[0], x[..., n:]], axis=-1)
    open_ = array(layer(x, **call))
    layer.gate.assign(0.0)
    np.testing.assert_allclose(array(layer(x, **call)), array(twin(quantized.astype("float32"), **call)), atol=1e-4)
    np.testing.assert_allclose(array(layer(x[..., :n])), array(twin(quantized[..., :n].astype("float32"))), atol=1e-4)
    layer.gate.assign(1.0)
    np.testing.assert_array_equal(array(layer(x, **call)), open_)


@pytest.mark.parametrize("cls, kwargs, call", [case for case in CASES if case.values[0] is not HybridDense])
@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_a_gate_computes_one_branch_with_its_gradients(cls, kwargs, call, gate):
    """In a compiled step, too: outputs and the kernel's gradient are those of a layer that has no gate."""
    layer = built(cls, kwargs, operator="adder", mutable=True, remap=False)
    layer.gate.assign(gate)
    twin = built(cls, kwargs, operator="adder" if gate else "conv", remap=False)
    twin.kernel.assign(layer.kernel)
    x = random_inputs(SHAPE)
    n = layer.target_channels
    quantized = np.concatenate([reference.fake_quantized(x[..., :n], *RANGE)[0], x[..., n:]], axis=-1).astype("float32")
    step = (lambda each: each) if keras.backend.backend() == "jax" else tensorflow_function
    mine = gradients(step(lambda _, inputs: layer(inputs, **call)), layer.kernel, x)
    its = gradients(lambda _, inputs: twin(inputs, **call), twin.kernel, quantized)
    np.testing.assert_allclose(mine[0], its[0], atol=1e-4)
    np.testing.assert_allclose(mine[1][0], its[1][0], rtol=1e-4, atol=1e-4)
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(layer), "_distance", lambda *args: used.append("add") or args[1])
        layer(x[..., :n])
    assert used == ["add"] * bool(gate)


@pytest.mark.parametrize("operator", ["shift", "shift5", "shift-ps", "binary"])
@pytest.mark.parametrize("cls, kwargs, call", CASES)
def test_a_kernel_settles_where_it_is_rounded_to(cls, kwargs, call, operator):
    """The target's block alone, and only while it is rounded."""
    if cls is HybridDense and operator == "binary":
        pytest.skip("a classifier has no binary operator")
    shape = (6, 5) if cls is HybridDense else SHAPE
    layer = built(cls, kwargs, shape, operator=operator, remap=False, mutable=True)
    before, block = array(layer.kernel), layer._view.slices()
    expected = before.copy()
    expected[block] -= 0.25 * (before[block] - array(layer.quantized_kernel()))
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(array(layer.settled_kernel(0.25)), expected, rtol=1e-6, atol=1e-7)
    layer.gate.assign(0.0)
    np.testing.assert_array_equal(array(layer.settled_kernel(0.25)), before)


@pytest.mark.parametrize("operator", ["shift", "binary"])
@pytest.mark.parametrize("remap", [True, "learned"])
def test_a_remapped_kernel_settles_as_the_target_sees_it(operator, remap):
    layer = built(HybridConv2D, CONV, operator=operator, remap=remap)
    before = array(layer.kernel)
    apart = np.abs(array(layer.remapped_kernel()) - array(layer.quantized_kernel())).mean()
    for _ in range(60):
        layer.kernel.assign(layer.settled_kernel(0.1))
    kernel, block = array(layer.kernel), layer._view.slices()
    assert np.abs(array(layer.remapped_kernel()) - array(layer.quantized_kernel())).mean() < 0.05 * apart
    np.testing.assert_array_equal(np.sign(kernel), np.sign(before))
    rest = np.ones(kernel.shape, bool)
    rest[block] = False
    np.testing.assert_array_equal(kernel[rest], before[rest])


@pytest.mark.parametrize("operator", ["conv", "adder"])
def test_what_is_on_no_coarse_grid_does_not_settle(operator):
    assert not built(HybridConv2D, CONV, operator=operator, remap=False).operator.settles


def test_ps_scales_the_gradient_by_the_rounding():
    layer = built(HybridDense, DENSE, (6, 5), remap=False, variant="ps")
    x = random_inputs((6, 5))[:, :3]
    _, (dk,), upstream = gradients(lambda _: layer(x), layer.kernel)
    kernel = array(layer.kernel).astype("float64")[:3]
    rounded = reference.powers_of_two(kernel)
    through = reference.fake_quantized(x, *RANGE)[0].T @ upstream
    np.testing.assert_allclose(dk[:3], through * np.where(rounded == 0, 1, rounded / kernel), rtol=1e-4, atol=1e-5)


def test_target_and_augmented_pass_have_ranges_of_their_own():
    layer = HybridConv2D(**CONV)
    x = random_inputs(SHAPE)
    layer(x, augmented=True, filters=7, training=True)
    np.testing.assert_array_equal(array(layer.input_range), [0, 0])
    np.testing.assert_allclose(array(layer.augmented_range), [x[..., :3].min(), x[..., :3].max()])
    layer(2 * x[..., :3], training=True)
    np.testing.assert_allclose(array(layer.input_range), [2 * x[..., :3].min(), 2 * x[..., :3].max()])


@pytest.mark.parametrize("operator", ["shift", "adder"])
def test_extra_same_is_multiplication_free_as_a_whole(operator):
    if operator == "adder" and keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="^HybridConv2D: `extra` must be 'multiplicative' for operator 'adder' on"):
            HybridConv2D(**CONV, operator=operator, extra="same")
        return
    layer = built(HybridConv2D, CONV, operator=operator, extra="same", remap=False)
    whole = getattr(saaug_keras, PLAIN["HybridConv2D", operator])(6, (3, 2), strides=(2, 1), padding="same", use_bias=False)
    whole.build(SHAPE)
    whole.kernel.assign(array(layer.kernel)[..., :6])
    whole.input_range.assign(RANGE)
    x = random_inputs(SHAPE)
    np.testing.assert_allclose(array(layer(x, augmented=True, filters=6)), array(whole(x)), rtol=1e-5, atol=1e-5)


def test_the_add_kernel_moves_by_eta_where_it_is_used():
    """Of a latent kernel, the target's block has the norm eta * sqrt(numel), scaled from add to latent weights."""
    layer = built(HybridConv2D, {**CONV, "kernel_size": 1}, operator="adder")
    gradient = random_inputs(layer.kernel.shape)
    scaled = array(layer.gradient_rule.scaled(gradient))
    block = scaled[:, :, :3, :4]
    # 12 weights; He-normal latent weights of 5 inputs are read as add weights of standard deviation 3.
    assert np.linalg.norm(block) == pytest.approx(0.2 * np.sqrt(12) * np.sqrt(2 / 5) / 3, rel=1e-5)
    ratio = block / gradient[:, :, :3, :4]
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio.mean()), rtol=1e-6)
    scaled[:, :, :3, :4] = gradient[:, :, :3, :4]
    np.testing.assert_array_equal(scaled, gradient)


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("channels", [3, 5])
def test_batch_norm_is_that_of_keras_with_statistics_apart(augmented, channels):
    if not augmented and channels == 5:
        pytest.skip("the target has its own channels alone")
    layer = HybridBatchNormalization(3, momentum=0.8, epsilon=1e-3)
    layer.build((None, 6, 5, 7))
    stock = keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-3)
    stock.build((None, 6, 5, channels))
    gamma, beta = random_inputs((7,)), random_inputs((7,), 2)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    stock.gamma.assign(gamma[:channels])
    stock.beta.assign(beta[:channels])
    others = (layer.augmented_moving_mean, layer.augmented_moving_variance)
    untouched = [array(variable) for variable in others]
    for seed in (1, 2):
        x = 2 * random_inputs((2, 6, 5, channels), seed) + 0.5
        found = gradients(lambda x, *_: layer(x, augmented=augmented, training=True), x, layer.gamma, layer.beta)
        wanted = gradients(lambda x, *_: stock(x, training=True), x, stock.gamma, stock.beta)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-4)
        for got, want in zip(found[1], wanted[1], strict=True):
            np.testing.assert_allclose(got[: len(want)], want, rtol=1e-3, atol=1e-4)
    layer(x, augmented=augmented, training=True)  # gradients() on JAX keeps no state
    stock(x, training=True)
    names = ("augmented_moving_mean", "augmented_moving_variance") if augmented else ("moving_mean", "moving_variance")
    for name, want in zip(names, (stock.moving_mean, stock.moving_variance), strict=True):
        np.testing.assert_allclose(array(getattr(layer, name))[:channels], array(want), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(array(layer(x, augmented=augmented)), array(stock(x)), rtol=1e-4, atol=1e-4)
    if augmented:
        np.testing.assert_array_equal(array(layer.moving_mean), np.zeros(3))
        np.testing.assert_array_equal(array(layer.augmented_moving_mean)[channels:], np.zeros(7 - channels))
    else:
        for before, variable in zip(untouched, others, strict=True):
            np.testing.assert_array_equal(before, array(variable))
        layer.reset_target_statistics()
        np.testing.assert_array_equal(array(layer.moving_mean), np.zeros(3))
        np.testing.assert_array_equal(array(layer.moving_variance), np.ones(3))


def test_batch_norm_contract(tmp_path):
    assert_layer_contract(HybridBatchNormalization, {"target_channels": 3}, (4, 6, 5, 3), tmp_path)


def _call(layer, channels, shape=SHAPE, **call):
    return lambda: layer()(random_inputs(shape)[..., :channels], **call)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: HybridConv2D(**{**CONV, "target_filters": 8}), r"^HybridConv2D: `target_filters` must be an int"),
        (lambda: HybridConv2D(**CONV, operator="shifts"), "^HybridConv2D: `operator` must be one of 'conv', 'shift'.*'adder'"),
        (lambda: HybridConv2D(**CONV, remap=None), "^HybridConv2D: `remap` must be one of False, True, 'learned'"),
        (lambda: HybridConv2D(**CONV, laplace_scale=0), "^HybridConv2D: `laplace_scale` must be a number in"),
        (lambda: HybridConv2D(**CONV, dilation_rate=2), "^HybridConv2D: `strides` must be 1 where"),
        (lambda: HybridConv2D(**CONV, data_format="channels_first"), "^HybridConv2D: `data_format` must be one of"),
        (lambda: HybridDense(**DENSE, operator="adder"), "^HybridDense: `operator` must be one that dense layers can"),
        (_call(lambda: built(HybridConv2D, CONV), 5), "HybridConv2D: `inputs` must have 3 channels. Received: shape"),
        (_call(lambda: built(HybridConv2D, CONV), 3, filters=6), "HybridConv2D: `filters` must be None where `augmented`"),
        (_call(lambda: built(HybridConv2D, CONV), 2, augmented=True), "HybridConv2D: `inputs` must have 3 to 5 channels"),
        (_call(lambda: built(HybridConv2D, CONV), 5, augmented=True, filters=8), r"HybridConv2D: `filters` must be an int in"),
        (lambda: built(HybridConv2D, CONV, (2, 6, 5, 2)), "must have at least target_channels=3 channels"),
        (lambda: built(HybridDense, DENSE, (6, 5), remap=False).fit_fc(0, 0), "^HybridDense: `remap` must be True"),
        (lambda: HybridBatchNormalization(3, momentum=2), "^HybridBatchNormalization: `momentum` must be a number in"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
