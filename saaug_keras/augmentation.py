"""A target network and the larger multiplicative network around it, over shared layers.

`HybridNetwork` holds one set of hybrid layers of the augmented size. Called plainly it computes the target, the
leading slice of every tensor; called with a `choice` it computes an augmented network of the chosen widths. The target
is cut out by `export_target`.
"""

from __future__ import annotations

import keras
import numpy as np

from saaug_keras import _backend, _validate, backbones, layers, ops

_ACTIVATIONS = {
    "relu": keras.ops.relu,
    "relu6": keras.ops.relu6,
    "hard_swish": keras.ops.hard_silu,
    "hard_sigmoid": keras.ops.hard_sigmoid,
}


def widened(channels: int, factor: float) -> int:
    """Channels of a tensor widened by `factor`: a multiple of 8 unless the factor is 1, and never fewer than before."""
    return channels if factor == 1 else max(channels, backbones.make_divisible(channels * factor))


def factors_of(owner: str, name: str, value) -> tuple[float, ...]:
    """Checks a list of augmentation factors: sorted, distinct, each in [1, 16]."""
    factors = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not factors:
        raise ValueError(f"{owner}: `{name}` must hold at least one factor in [1, 16]. Received: {name}={value}.")
    for factor in factors:
        _validate.number_in(owner, name, factor, 1, 16)
    return tuple(sorted({float(factor) for factor in factors}))


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridNetwork(keras.layers.Layer):
    """The shared layers of a target and its augmented networks.

    Args:
        spec: `NetSpec` of the target, with the blocks of depth augmentation marked `kept=False`.
        width: factors of all channel counts; expand: further factors of the channels inside each block. The latent
            kernels have the size of the largest of each.
        remap: whether the target sees its slice of the latent kernels through the Gaussian-to-Laplace remap.
        mutable: gives every multiplication-free layer a gate, 1 = multiplication-free, 0 = still multiplicative.
        layer_options: options of single layers, {layer name, or "adder", "conv" or "shift": {option: value}}; a layer's
            own go before its family's. Options are `backbones.LAYER_OPTIONS`, see `HybridConv2D`; what else a layer has,
            the spec says. The deployed network has them, too, and `cost.estimate` prices them.
    Shapes:
        inputs (N, H, W, C) -> logits (N, num_classes), or (N, H, W, num_classes) for segmentation.
    Source: ShiftAddAug, arXiv:2407.02881, sections 3 and 4; NetAug, arXiv:2110.08890.
    """

    def __init__(self, spec, *, width=(1.0,), expand=(1.0,), remap=True, mutable=False, layer_options=None, **kwargs):
        kwargs.setdefault("name", "network")
        super().__init__(**kwargs)
        self.spec = spec if isinstance(spec, backbones.NetSpec) else backbones.NetSpec.from_dict(spec)
        self.width = factors_of("HybridNetwork", "width", width)
        self.expand = factors_of("HybridNetwork", "expand", expand)
        self.remap = remap
        self.mutable = mutable
        self.layer_options = backbones.check_layer_options("HybridNetwork", layer_options, self.spec)
        self.layer_specs = backbones.lower(self.spec, all_blocks=True)
        self._sizes = {layer.name: self._sizes_of(layer) for layer in self.layer_specs}
        handed_on = self._handed_on_activations()
        self._unactivated = set(handed_on.values())
        activations = {layer.name: layer.activation for layer in self.layer_specs}
        self._input_activations = {reader: activations[name] for reader, name in handed_on.items()}
        self.weighted = {}  # layer name -> hybrid layer
        self.norms = {}  # layer name -> HybridBatchNormalization
        channels = {"input": self.spec.input_shape[2]}
        for layer in self.layer_specs:
            channels[layer.name] = int(self._sizes[layer.name].max())
            if layer.operator is not None:
                self.weighted[layer.name] = self._make(layer)
            if layer.batch_norm:
                self.norms[layer.name] = layers.HybridBatchNormalization(
                    layer.output_shape[2], momentum=0.9, epsilon=1e-5, name=layer.name + "_bn", dtype=self.dtype_policy
                )
        self._augmented_channels = channels

    def _handed_on_activations(self):
        """{reader: producer} by name, where the reader's quantizer applies the producer's activation in its own pass."""
        handed_on = {}
        for producer in self.layer_specs:
            readers = [layer for layer in self.layer_specs if producer.name in layer.inputs]
            if producer.activation in ops.CLIPS and len(readers) == 1 and readers[0].kind in ("conv", "depthwise"):
                if readers[0].operator.free:
                    handed_on[readers[0].name] = producer.name
        return handed_on

    def _sizes_of(self, layer):
        """Channel counts [width factor, expand factor] of a layer's output."""
        channels = layer.output_shape[2]
        return np.array(
            [
                [
                    channels if layer.scale == "fixed" else widened(channels, w * e if layer.scale == "expand" else w)
                    for e in self.expand
                ]
                for w in self.width
            ],
            "int32",
        )

    def _make(self, layer):
        operator = backbones.operator_of(layer, self.layer_options)
        further = backbones.options_of(layer, self.layer_options)
        options = {
            "operator": operator,
            "remap": self.remap,
            "mutable": self.mutable and operator.free,
            "target_channels": layer.input_shape[2],
            "use_bias": layer.use_bias,
            "name": layer.name,
            "dtype": self.dtype_policy,
            "input_activation": self._input_activations.get(layer.name),
            **{name: further[name] for name in further if name in backbones.LAYER_OPTIONS},
        }
        if layer.kind == "dense":
            return layers.HybridDense(layer.output_shape[2], **options)
        options |= {"strides": layer.strides, "padding": "same", "dilation_rate": layer.dilation}
        if layer.kind == "depthwise":
            return layers.HybridDepthwise(layer.kernel_size, **options)
        _validate.one_of("HybridNetwork", "kind", layer.kind, ("conv", "dense", "depthwise"))
        filters = int(self._sizes[layer.name].max())
        return layers.HybridConv2D(filters, layer.kernel_size, target_filters=layer.output_shape[2], **options)

    def build(self, input_shape=None):
        for layer in self.layer_specs:
            height, width, _ = layer.input_shape
            channels = self._augmented_channels[layer.inputs[0]]
            if layer.name in self.weighted:
                shape = (None, channels) if layer.kind == "dense" else (None, height, width, channels)
                self.weighted[layer.name].build(shape)
            if layer.name in self.norms:
                self.norms[layer.name].build((None, *layer.output_shape[:2], self._augmented_channels[layer.name]))
        # The share of the dropped blocks in the target: 1 at the start of training, 0 when they have left it.
        self.depth_gate = self.add_weight(name="depth_gate", shape=(), initializer="ones", trainable=False)
        self.built = True

    @property
    def dropped_blocks(self) -> list[int]:
        """Indices of the blocks of depth augmentation."""
        return [index for index, block in enumerate(self.spec.blocks) if not block.kept]

    def largest_choice(self) -> tuple:
        """The `choice` of the largest augmented network."""
        return len(self.width) - 1, (len(self.expand) - 1,) * len(self.spec.blocks)

    def _filters(self, layer, choice):
        """Output channels of `layer` under `choice`: an int where all choices agree or are ints, else a tensor."""
        sizes = self._sizes[layer.name]
        if sizes.min() == sizes.max():
            return int(sizes.max())
        width, expand = choice
        expand = 0 if layer.block is None else expand[layer.block]
        if isinstance(width, int) and isinstance(expand, int):
            return int(sizes[width, expand])
        return keras.ops.take(keras.ops.convert_to_tensor(sizes.reshape(-1)), width * len(self.expand) + expand)

    def call(self, inputs, choice=None, training=None, statistics=None):
        """Computes the target, or with `choice` an augmented network.

        Args:
            choice: None, or (index into `width`, sequence of an index into `expand` per block): ints or int tensors.
            training: whether input ranges are updated.
            statistics: whether batch norms use and update the batch's statistics; default: as `training`.
        """
        statistics = training if statistics is None else statistics
        tensors = {"input": keras.ops.cast(inputs, self.compute_dtype)}
        for layer in self.layer_specs:
            values = [tensors[name] for name in layer.inputs]
            filters = None if choice is None else self._filters(layer, choice)
            tensors[layer.name] = out = self._run(layer, values, filters, training, statistics)
        return keras.ops.cast(out, "float32")

    def _run(self, layer, values, filters, training, statistics):
        augmented = filters is not None
        zeroed = augmented and not isinstance(filters, int) and not _backend.has_sizes_at_run_time()
        x = values[0]
        if layer.kind == "pool":
            return keras.ops.mean(x, axis=(1, 2), keepdims=True)
        if layer.kind == "multiply":
            return x * values[1]
        if layer.kind == "resize":
            return keras.ops.image.resize(x, layer.output_shape[:2], interpolation="bilinear")
        if layer.kind == "add":
            if layer.block is None or self.spec.blocks[layer.block].kept or augmented:
                return x + values[1]
            return x + keras.ops.cast(self.depth_gate, x.dtype) * values[1]
        if layer.kind == "dense":
            x = keras.ops.squeeze(x, (1, 2))
        sizes = {"filters": filters} if layer.kind == "conv" else {}  # the others have as many as their inputs say
        out = self.weighted[layer.name](x, augmented=augmented, training=training, **sizes)
        if layer.batch_norm:
            there = filters if zeroed else None
            out = self.norms[layer.name](out, augmented=augmented, training=statistics, filters=there)
        if layer.activation and layer.name not in self._unactivated:
            out = _ACTIVATIONS[layer.activation](out)
        if zeroed:
            out = out * keras.ops.cast(keras.ops.arange(out.shape[-1]) < filters, out.dtype)
        return out

    def export_target(self) -> keras.Model:
        """The deployed network as a functional model of plain layers with the options of those in training: remap baked
        in, batch norm of the target.

        Raises:
            ValueError: a block of depth augmentation still takes part in the target, or a layer is still
                multiplicative.
        """
        gate = float(keras.ops.convert_to_numpy(self.depth_gate))
        if self.dropped_blocks and gate != 0:
            raise ValueError(
                f"export_target: the blocks {self.dropped_blocks} of depth augmentation must have left the target "
                f"(depth_gate 0). Received: depth_gate={gate:g}. Train to the end of DepthDecay's schedule first."
            )
        waiting = [name for name, layer in self.weighted.items() if self._is_multiplicative(layer)]
        if waiting:
            raise ValueError(
                "export_target: every layer must have turned multiplication-free. Received: still multiplicative: "
                f"{', '.join(waiting)}. Train to the end of BlockMutation's schedule first."
            )
        model = backbones.build(self.spec, layer_options=self.layer_options)
        for layer in backbones.lower(self.spec):
            if layer.name in self.weighted:
                self.weighted[layer.name].copy_target_to(model.get_layer(layer.name))
            if layer.name in self.norms:
                norm, channels = self.norms[layer.name], layer.output_shape[2]
                values = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
                model.get_layer(layer.name + "_bn").set_weights(
                    [keras.ops.convert_to_numpy(value)[:channels] for value in values]
                )
        return model

    def start_from(self, model) -> list[str]:
        """Takes over what fits of a trained network of plain layers, as `export_target` or `zoo.load` gives it.

        A layer of products, whether it multiplies or shifts, starts from the weights of the layer of its name and shape,
        whatever that one's operator among products; an add layer from those of an add layer. Its batch norm comes with it.

        Returns:
            The names of the layers that took weights over.
        Raises:
            ValueError: there is no such layer.
        """
        taken = []
        theirs = {layer.name: layer for layer in model.layers}
        for name, layer in self.weighted.items():
            if name not in theirs or not layer.start_from(theirs[name]):
                continue
            taken.append(name)
            if name in self.norms and name + "_bn" in theirs:
                self.norms[name].start_from(theirs[name + "_bn"])
        if not taken:
            raise ValueError(
                f"HybridNetwork.start_from: `model` must have a layer of the name, shape and kind of one of the target's. "
                f"Received: {model.name}, with {', '.join([*theirs][:5])}, ..."
            )
        return taken

    @staticmethod
    def _is_multiplicative(layer):
        gate = getattr(layer, "gate", None)
        return gate is not None and float(keras.ops.convert_to_numpy(gate)) != 1

    def get_config(self):
        return {
            **super().get_config(),
            "spec": self.spec.as_dict(),
            "width": self.width,
            "expand": self.expand,
            "remap": self.remap,
            "mutable": self.mutable,
            "layer_options": self.layer_options,
        }
