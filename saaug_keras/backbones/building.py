"""The one builder that turns networks into Keras models."""

from __future__ import annotations

from saaug_keras import _validate
from saaug_keras.backbones.layer_options import check_layer_options, operator_of
from saaug_keras.backbones.lowering import KINDS, LayerSpec, lower
from saaug_keras.backbones.records import ACTIVATIONS, NetSpec


def build(spec: NetSpec, *, name: str | None = None, layer_options: dict | None = None):
    """A functional Keras model of the deployed network; its outputs are logits.

    Layers are named as `lower` names them, with "_bn" and "_act" behind the batch norm's and the activation's. Blocks
    of depth augmentation are left out.

    Args:
        spec: the network.
        name: of the model; default: the spec's.
        layer_options: as for `augment`: what it was trained with is what is built. Options of training alone are ignored.
    Shapes:
        inputs (N, H, W, C) float32 in [0, 1] -> (N, num_classes), or (N, H, W, num_classes) for segmentation.
    """
    import keras

    layer_options = check_layer_options("backbones.build", layer_options, spec)
    image = keras.Input(spec.input_shape, name="image")
    tensors = {"input": image}
    for layer in lower(spec):
        inputs = [tensors[name] for name in layer.inputs]
        if layer.kind == "dense":
            inputs = [keras.layers.Flatten(name="flatten")(inputs[0])]
        out = make_layer(layer, layer_options)(inputs if len(inputs) > 1 else inputs[0])
        if layer.batch_norm:
            out = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=layer.name + "_bn")(out)
        if layer.activation:
            out = make_activation(layer.activation, layer.name + "_act")(out)
        tensors[layer.name] = out
    return keras.Model(image, out, name=name or spec.name.replace(".", "_"))


def make_activation(activation: str, name: str):
    """The Keras layer of an activation's name."""
    import keras

    _validate.one_of("make_activation", "activation", activation, ACTIVATIONS)
    if activation == "relu6":
        return keras.layers.ReLU(max_value=6.0, name=name)
    if activation == "relu":
        return keras.layers.ReLU(name=name)
    return keras.layers.Activation(activation, name=name)


def make_layer(layer: LayerSpec, layer_options: dict | None = None):
    """The plain (deployed) Keras layer of one `LayerSpec`, without its batch norm and activation.

    Raises:
        ValueError: a kind, or an operator of that kind, that there is no layer for.
    """
    import keras

    if layer.kind == "pool":
        return keras.layers.GlobalAveragePooling2D(keepdims=True, name=layer.name)
    if layer.kind == "add":
        return keras.layers.Add(name=layer.name)
    if layer.kind == "multiply":
        return keras.layers.Multiply(name=layer.name)
    if layer.kind == "resize":
        return keras.layers.Resizing(*layer.output_shape[:2], interpolation="bilinear", name=layer.name)
    _validate.one_of("make_layer", "kind", layer.kind, KINDS)
    options = {"use_bias": layer.use_bias, "name": layer.name}
    if layer.kind != "dense":
        options |= {
            "kernel_size": layer.kernel_size,
            "strides": layer.strides,
            "padding": "same",
            "dilation_rate": layer.dilation,
        }
    channels = () if layer.kind == "depthwise" else (layer.output_shape[2],)
    return operator_of(layer, layer_options).make_layer(layer.kind, *channels, **options)
