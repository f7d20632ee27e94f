"""Small Keras models with lively weights, and the comparison of an exported network with TFLite Micro."""

import keras
import numpy as np

import tflm_export
from saaug_keras import backbones
from tflm_export import flatbuffer, reference, runner


def images_like(shape, count, seed=0):
    """float32 images in [0, 1] that lie on pixels and reach both ends."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape))
    images[:, 0, 0], images[:, -1, -1] = 0, 255
    return (images / 255).astype("float32")


def settle(model, images, seed=0):
    """Gives batch norms random scales (some negative, one zero), and statistics and input ranges of real data."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma = rng.uniform(0.5, 1.5, layer.gamma.shape) * rng.choice([1, 1, 1, -1], layer.gamma.shape)
            gamma[-1] = 0
            layer.gamma.assign(gamma)
            layer.beta.assign(rng.normal(size=layer.beta.shape) * 0.5)
            layer.momentum = 0.0
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(size=layer.bias.shape) * 0.2)
    model(images, training=True)
    return model


def shrink(spec, blocks):
    """The spec with only the first `blocks` blocks."""
    import dataclasses

    return dataclasses.replace(spec, blocks=spec.blocks[:blocks])


def small_backbone(name, operator, *, shape=(20, 17, 3), blocks=4, classes=7, count=8, seed=0, segmentation=False):
    """(settled model, images) of the beginning of a backbone."""
    keras.utils.set_random_seed(seed)
    spec = shrink(backbones.spec(name, input_shape=shape, num_classes=classes, operator=operator), blocks)
    if segmentation:
        spec = spec.with_segmentation(filters=8, output_stride=8, skip_stride=4)
    images = images_like(shape, count, seed)
    return settle(backbones.build(spec), images, seed), images


def assert_every_tensor_equal(network, images, count=2):
    """Every tensor of the reference equals TFLite Micro's, bit for bit. Returns the reference's tensors."""
    stored = network.input.quantize(images[:count])
    expected = reference.run(network, stored)
    interpreter = runner.Interpreter(flatbuffer.write(network), keep_tensors=True)
    for index in range(count):
        found = interpreter.tensors(stored[index])
        assert set(found) == set(expected)
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name][index], err_msg=f"tensor {name}, image {index}")
    return expected


def compile_and_compare(model, images, **options):
    """Compiles a model, compares it with TFLite Micro, and returns (network, reference tensors)."""
    network = tflm_export.compile_network(model, images, **options)
    return network, assert_every_tensor_equal(network, images)


def layer_by_layer(model, network, tensors):
    """Yields (step, steps of difference): each Keras layer on the very int8 inputs that the exported one had."""
    for step in network.steps:
        values = [tensor.dequantize(tensors[tensor.name]) for tensor in step.inputs]
        for position, name in enumerate(step.op.layers):
            layer = model.get_layer(name)
            if isinstance(layer, keras.layers.Dense):
                values = [v.reshape(len(v), -1) for v in values]
            values = [layer(values if position == 0 and len(values) > 1 else values[0])]
        expected = np.asarray(values[0]).reshape(-1, *step.output.shape)
        expected = np.clip(expected / step.output.scale + step.output.zero_point, -128, 127)
        yield step, np.abs(tensors[step.output.name] - expected)


PADDINGS = [((1, 1), (1, 1)), ((3, 3), (3, 3)), ((0, 4), (2, 0)), ((5, 0), (0, 1))]  # of ZeroPadding2D
WINDOWS = [
    (kernel, strides, padding)
    for kernel in (1, 3, (1, 2))
    for strides, padding in ((1, "valid"), (2, "valid"), (1, "same"), (2, "same"))
]


def padded_model(families, paddings=PADDINGS, windows=WINDOWS, shape=(5, 6, 2)):
    """ZeroPadding2D before every kind of window, side by side; the sum of what they give, on average over the image."""
    keras.utils.set_random_seed(4)
    image, total, L = keras.Input(shape), None, keras.layers
    for family in families:
        for zeros in paddings:
            for kernel, strides, padding in windows:
                options = {"strides": strides, "padding": padding, "bias_initializer": "normal"}
                depthwise = "Depthwise" in family.__name__
                layer = family(kernel, **options) if depthwise else family(2, kernel, **options)
                x = L.GlobalAveragePooling2D()(layer(L.ZeroPadding2D(zeros)(image)))
                total = x if total is None else L.Add()([total, x])
    return keras.Model(image, total)
