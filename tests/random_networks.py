"""Networks drawn at random, for what must hold of any network."""

import numpy as np

from saaug_keras import backbones
from saaug_keras.backbones import BlockSpec, HeadSpec, NetSpec, StemSpec


def random_network(number):
    """A network with residuals, squeeze-excite, hard-swish and odd sizes; every fourth labels pixels."""
    rng = np.random.default_rng(number)
    operator = "adder" if number == 10 else ("conv", "shift", "shift5")[number % 3]
    filters = int(rng.integers(3, 9)) * 2
    activations = ("relu6", "hard_swish")
    stem = StemSpec(filters, strides=int(rng.integers(1, 3)), activation=str(rng.choice(activations)))
    blocks = []
    for _ in range(int(rng.integers(2, 6))):
        out = filters + int(rng.choice([0, 0, 0, 4, 9]))
        strides = int(rng.integers(1, 3)) if out != filters or rng.random() < 0.4 else 1
        blocks.append(
            BlockSpec(
                out,
                filters * int(rng.integers(1, 7)),
                int(rng.choice([3, 5, 7])),
                strides,
                residual=strides == 1 and out == filters,
                activation=str(rng.choice(activations)),
                squeeze_excite=int(rng.choice([0, 0, 8])),
            )
        )
        filters = out
    head = (HeadSpec(int(rng.integers(20, 60)), "hard_swish"),) if rng.random() < 0.4 else ()
    height, width, channels, classes = (int(n) for n in rng.integers((12, 12, 1, 2), (40, 40, 4, 12)))
    net = NetSpec(f"random{number}", (height, width, channels), classes, stem, tuple(blocks), head)
    if number % 5 == 4:
        net = net.with_segmentation(filters=8, skip_stride=stem.strides if blocks[0].strides == 1 else None)
    return net.with_operator(operator)


def settled_model(spec):
    """(Keras model whose batch norms have the statistics of random images, as if trained; the images)."""
    images = np.random.default_rng(1).random((8, *spec.input_shape), "float32")
    model = backbones.build(spec)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            layer.momentum = 0.0
    model(images, training=True)
    return model, images
