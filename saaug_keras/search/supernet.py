"""The SuperNet: one set of weights for every network of a `SearchSpace`, and the evaluation of candidates on it."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np

from saaug_keras import _backend, backbones, operators, ops, remap
from saaug_keras.operators.shift_layers import assign_kernel
from saaug_keras.search.space import SearchSpace

_ROWS = 2048  # drawn candidates; training goes round them
GRADIENT_SCALE = 0.2  # AdderNet's eta
# Of add kernels: narrower than the layers' own, whose width was chosen for networks of add layers alone.
LAPLACE_SCALE = float(0.5 / np.sqrt(2))
_PER_LAYER = 3  # numbers of a layer in `encode`: filters, kernel size, operator


class _Choice:
    """A candidate, as the forward pass reads it: Python ints where it is fixed, scalar tensors where it is chosen at run
    time; see `SuperNet.encode` for the vector behind it."""

    def __init__(self, net, vector, static=None):
        def pick(index):
            return vector[index] if static is None else int(static[index])

        self.resolution = pick(0)
        # Of a fixed SubNet, what stays and what operates is still chosen at run time.
        self.active = [
            False if static is not None and not static[index] else vector[index] for index in range(1, 1 + net.block_count)
        ]
        self.filters, self.kernel, self.operator = {}, {}, {}
        for name, start in net.starts.items():
            self.filters[name], self.kernel[name], self.operator[name] = pick(start), pick(start + 1), vector[start + 2]


@keras.saving.register_keras_serializable(package="saaug_keras")
class SuperNet(keras.Model):
    """Every network of a space over shared weights: a candidate reads leading slices of the channels and the centre of
    the largest depthwise kernel, and skips the blocks it does not have. TensorFlow only.

    `fit` is sandwich training: each step sums the gradients of the largest, the smallest and some random candidates.
    It is multiplicative. After `adapt_to(values)` the network is that SubNet, in which every step draws the blocks that
    stay and the operator of each: the weights learn to serve multiplication-free blocks. An add layer then has a kernel
    of its own, which starts as the remap of the shared one: its gradient is of a fixed norm, which would soon wreck
    weights that others multiply by.

    Calling the model computes the candidate that `select` chose last. Which candidate it is, is data, not graph: no
    candidate costs a retrace. Statistics of batch normalisation belong to no candidate: `recalibrate` measures them.

    Args:
        space: `SearchSpace`.
        random_candidates: per step, int >= 0.
        distill: whether the others learn from the largest's outputs instead of the labels (in-place distillation).
        seed: of weights and draws.
    Shapes:
        inputs (N, H, W, C) float32 in [0, 1], any H and W: resized to the candidate's resolution
        -> logits (N, num_classes).
    Source: slimmable networks' sandwich rule, Yu & Huang 2019, arXiv:1903.05134; elastic kernel, depth and width as in
        Once-for-All, Cai et al. 2020, arXiv:1908.09791.
    """

    def __init__(self, space: SearchSpace, *, random_candidates=2, distill=False, seed=0, **kwargs):
        _backend.need("SuperNet", "tensorflow", why="slices are chosen at run time")
        super().__init__(**kwargs)
        self.space = space
        self.random_candidates = random_candidates
        self.distill = distill
        self.seed = seed
        self.subnet = None  # values of the SubNet that `adapt_to` fixed
        self.traces = 0  # how often a graph was built
        self._static = None
        self._functions = {}
        # The layers of the largest candidate have room for those of every other.
        largest = space.spec(space.largest())
        self.layers_of = backbones.lower(largest.with_operator("conv"))
        self.block_count = len(largest.blocks)
        self.optional = [block.residual for block in largest.blocks]
        weighted = [layer for layer in self.layers_of if layer.operator is not None]
        self.starts = {layer.name: 1 + self.block_count + _PER_LAYER * i for i, layer in enumerate(weighted)}
        # Operators by their numbers in `encode`, and those that each layer may have.
        parts = [part for text in space.operators for part in operators.parse_block(text)]
        places = (place for part in parts for place in (part, part.as_stem, part.as_dense))
        self._operators = tuple(dict.fromkeys((operators.parse("conv"), *places)))
        self._known = {}
        alternatives = (backbones.lower(largest.with_operator(text)) for text in space.operators)
        for layer, *others in zip(self.layers_of, *alternatives, strict=True):
            if layer.operator is not None:
                known = [other.operator for other in others]
                if layer.block is None:  # what the policy gives it depends on all blocks
                    known += [operator for operator in self._operators if layer.kind in operator.kinds]
                self._known[layer.name] = tuple(dict.fromkeys(known))
        self._initializer = keras.initializers.HeNormal(seed=keras.random.SeedGenerator(seed))
        self._parameters, self._statistics = {}, {}
        for layer in weighted:
            self._add_layer(layer, any(operator.distance for operator in parts))
        size = 1 + self.block_count + _PER_LAYER * len(weighted)
        self.selected = self.add_weight(name="selected", shape=(size,), dtype="int32", initializer="zeros", trainable=False)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.largest_accuracy = keras.metrics.SparseCategoricalAccuracy(name="largest_accuracy")
        self.smallest_accuracy = keras.metrics.SparseCategoricalAccuracy(name="smallest_accuracy")
        self._draw_rows()
        self.select(space.largest())
        self.built = True

    def _add_layer(self, layer, distances):
        """The weights of a layer; with `distances` also a kernel of its own as an add layer."""
        name, channels, size = layer.name, layer.output_shape[2], layer.kernel_size
        # A depthwise kernel is as good as an ordinary one of one input channel.
        fan = (size, size, 1 if layer.kind == "depthwise" else layer.input_shape[2], channels)
        shape = {"depthwise": (size, size, channels, 1), "dense": fan[2:]}.get(layer.kind, fan)
        kernel = self._parameters[name + "_kernel"] = self.add_weight(name=name + "_kernel", shape=shape, initializer="zeros")
        kernel.assign(keras.ops.reshape(self._initializer(fan[2:] if layer.kind == "dense" else fan), shape))
        if distances and layer.kind != "dense":
            own = self.add_weight(name=name + "_adder_kernel", shape=shape, initializer="zeros")
            own.trainable = False  # until `adapt_to`; a variable that is made untrainable is never watched by a tape
            self._parameters[name + "_adder_kernel"] = own
        if layer.use_bias:
            self._parameters[name + "_bias"] = self.add_weight(name=name + "_bias", shape=(channels,), initializer="zeros")
        if layer.batch_norm:
            self._parameters[name + "_gamma"] = self.add_weight(name=name + "_gamma", shape=(channels,), initializer="ones")
            self._parameters[name + "_beta"] = self.add_weight(name=name + "_beta", shape=(channels,), initializer="zeros")
            for moment, start in (("mean", "zeros"), ("variance", "ones")):
                self._statistics[f"{name}_{moment}"] = self.add_weight(
                    name=f"{name}_{moment}", shape=(channels,), initializer=start, trainable=False
                )

    # Candidates

    def _lowered(self, values: dict):
        """(name of the layer here, layer) of a candidate's own layers."""
        spec, places = self.space.candidate_spec(values), self.space.occupied(values)
        if values.get("stage", 1) == 1:
            spec = spec.with_operator("conv")
        for layer in backbones.lower(spec, all_blocks=True):
            of_block = f"block{layer.block}_"
            here = layer.name if layer.block is None else f"block{places[layer.block]}_{layer.name.removeprefix(of_block)}"
            yield here, layer

    def encode(self, values: dict) -> np.ndarray:
        """A candidate as int32 numbers: resolution; of each block whether it is active; of each layer with weights its
        filters, kernel size and operator. Of a block that it has not, sizes are 1."""
        vector = np.zeros(self.selected.shape, np.int32)
        spec = self.space.candidate_spec(values)
        vector[0] = spec.input_shape[0]
        for place, block in zip(self.space.occupied(values), spec.blocks, strict=True):
            vector[1 + place] = block.kept
        for start in self.starts.values():
            vector[start : start + 2] = 1
        for name, layer in self._lowered(values):
            if layer.operator is not None:
                numbers = layer.output_shape[2], layer.kernel_size, self._operators.index(layer.operator)
                vector[self.starts[name] :][:_PER_LAYER] = numbers
        return vector

    def select(self, values: dict):
        """Makes `values` the candidate that a call of the model computes."""
        self.selected.assign(self.encode(values))

    def adapt_to(self, values: dict | None):
        """Fixes the SubNet of a second stage (its values in the first), or with None frees the network again."""
        self.subnet = None if values is None else dict(values)
        self._static = None if values is None else self.encode({**values, "stage": 1})
        for name, own in self._parameters.items():
            if name.endswith("_adder_kernel"):
                own.trainable = values is not None
                if own.trainable:
                    own.assign(adder_kernel(self._parameters[name.replace("_adder_kernel", "_kernel")].value))
        self._functions.clear()
        self._draw_rows()
        self.train_function = None  # `fit` traces anew

    def _draw_rows(self):
        """The candidates of training: rows 0 and 1 are the largest and the smallest, the others are drawn."""
        rng = np.random.default_rng(self.seed)
        if self.subnet is None:
            space, extra = self.space, {}
            ends = [space.largest(), space.smallest()[0]]
        else:
            space = self.space.second_stage(self.subnet)
            extra = {"stage": 2, **self.subnet}
            ends = [space.canonical({n: 1 if n.endswith("keep") else g.choices[0] for n, g in space.genes.items()})]
            ends.append(space.smallest()[-1])
        drawn = [space.sample(rng) for _ in range(_ROWS)]
        self._rows = np.stack([self.encode({**extra, **values}) for values in (*ends, *drawn)])

    # The network

    def _forward(self, images, choice, mode, weight=None):
        """Logits. `mode`: "batch" normalises by the batch, "record" also keeps its statistics with `weight`, "stored"
        uses what was kept."""
        import tensorflow as tf

        size = tf.stack([choice.resolution, choice.resolution])
        x = tf.image.resize(images, size, method="bilinear", antialias=True)
        norm = _Normalizer(self._parameters, self._statistics, mode, weight)
        for block, layers in itertools.groupby(self.layers_of, key=lambda layer: layer.block):
            active = True if block is None else choice.active[block]
            if active is False:
                continue

            run = functools.partial(self._run, tuple(layers), x, choice, norm)

            if block is None or not self.optional[block]:
                x = run()
            elif self._static is not None:
                # Of a fixed SubNet most blocks stay. TensorFlow cannot nest the choice of an operator in another one.
                x = x + tf.cast(active, x.dtype) * (run() - x)
            else:
                shape = x.shape
                x = tf.cond(active > 0, run, lambda x=x: x)
                x.set_shape(shape)
        return x

    def _run(self, layers, x, choice, norm):
        """Layers that have one input, from outside, and one output."""
        import tensorflow as tf

        tensors = {layers[0].inputs[0]: x}
        for layer in layers:
            first, *others = (tensors[name] for name in layer.inputs)
            if layer.kind == "add":
                out = first + others[0]
            elif layer.kind == "pool":
                out = tf.reduce_mean(first, axis=[1, 2], keepdims=True)
            else:
                out = self._weighted(layer, first, choice, norm)
            tensors[layer.name] = out
        return out

    def _weighted(self, layer, x, choice, norm):
        import tensorflow as tf

        name, window = layer.name, {"strides": layer.strides}
        filters, operator = choice.filters[name], choice.operator[name]
        if layer.kind == "dense":
            x = tf.squeeze(x, (1, 2))
        inputs = tf.shape(x)[-1] if x.shape[-1] is None else x.shape[-1]
        border = (layer.kernel_size - choice.kernel[name]) // 2
        inside = slice(border, layer.kernel_size - border)
        part, multiply = {
            "conv": (np.s_[:, :, :inputs, :filters], lambda x, k: ops.conv2d(x, k, strides=(layer.strides,) * 2)),
            "depthwise": (
                np.s_[inside, inside, :filters],
                lambda x, k: ops.depthwise_conv2d(x, k, strides=(layer.strides,) * 2),
            ),
            "dense": (np.s_[:inputs], tf.matmul),
        }[layer.kind]
        y = self._operate(layer, x, self._kernels(name, part), operator, multiply, window)
        if layer.use_bias:
            y = y + self._parameters[name + "_bias"].value
        if not layer.batch_norm:
            return y
        normalised = norm(name, y, filters, layer.activation)
        moving = [each in self._known[name] and each.moves for each in self._operators]
        if self._static is None or not any(moving):
            return normalised
        return tf.where(tf.gather(tf.constant(moving), operator), y, normalised)  # nothing follows a move

    def _kernels(self, name, part):
        """A part of a layer's kernel, and of that of its own as an add layer where the space has any."""
        keys = (name + "_kernel", name + "_adder_kernel")
        return tuple(self._parameters[key].value[part] for key in keys if key in self._parameters)

    def _operate(self, layer, x, kernels, number, multiply, window):
        """A layer under one of the operators that it may have, chosen by its number; in the first stage all multiply, and
        the graph has no other."""
        import tensorflow as tf

        if self._static is None:
            return multiply(x, kernels[0])
        channel_axes = (-2, -1) if layer.kind == "depthwise" else (-1,)

        def under(operator):
            if operator.distance:
                return lambda x, _, own: operator.apply(layer.kind, x, _adaptive(own), **window)
            return lambda x, shared, *_: multiply(x, operator.round(shared, channel_axes))

        known = self._known[layer.name]
        if len(known) == 1:
            return under(known[0])(x, *kernels)
        places = [known.index(operator) if operator in known else 0 for operator in self._operators]
        return _switch(tf.gather(tf.constant(places), number), list(map(under, known)), x, *kernels)

    def call(self, inputs, training=None):
        """Logits of the selected candidate: by the batch's statistics in training, else by those recalibrated."""
        return self._forward(inputs, self._choice(self.selected.value), "batch" if training else "stored")

    def _choice(self, vector):
        return _Choice(self, vector, self._static)

    # Training

    def compile(self, optimizer="sgd", loss=None, *, jit_compile=False, **kwargs):
        """As `keras.Model.compile`. Without XLA: on a CPU its depthwise convolution is many times slower."""
        loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        super().compile(optimizer, loss, jit_compile=jit_compile, **kwargs)

    @property
    def variables_without_decay(self) -> list:
        """As of `training.AugmentedModel`."""
        kernels = [variable for name, variable in self._parameters.items() if name.endswith("_kernel")]
        decayed = {id(variable) for variable in kernels if not variable.name.endswith("_adder_kernel")}
        return [variable for variable in self.trainable_variables if id(variable) not in decayed]

    @property
    def metrics(self):
        return [self.loss_tracker, self.largest_accuracy, self.smallest_accuracy]

    def train_step(self, data):
        import tensorflow as tf

        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        rows = tf.constant(self._rows)
        count = self.random_candidates
        drawn = 2 + (tf.cast(self.optimizer.iterations.value, tf.int32) * count + tf.range(count)) % _ROWS
        step = self._function("step", self._step)
        total, gradients, teacher = 0.0, None, None
        for index in range(2 + count):
            row = rows[index] if index < 2 else rows[drawn[index - 2]]
            loss, logits, new = step(images, labels, weight, row, teacher if self.distill else None)
            gradients = new if gradients is None else [a + b for a, b in zip(gradients, new, strict=True)]
            total += loss
            if index == 0:
                teacher = tf.nn.softmax(logits)
            if index < 2:
                metric = (self.largest_accuracy, self.smallest_accuracy)[index]
                metric.update_state(labels, logits, weight)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.loss_tracker.update_state(total / (2 + count))
        return self.get_metrics_result()

    def _step(self, images, labels, weight, row, teacher):
        """Loss, logits and gradients of one candidate."""
        import tensorflow as tf

        variables = [variable.value for variable in self.trainable_variables]
        with tf.GradientTape() as tape:
            logits = self._forward(images, self._choice(row), "batch")
            if teacher is None:
                loss = self.compute_loss(images, labels, logits, weight)
            else:
                losses = tf.nn.softmax_cross_entropy_with_logits(tf.stop_gradient(teacher), logits)
                loss = tf.reduce_mean(losses if weight is None else losses * weight)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        return loss, logits, gradients

    def test_step(self, data):
        """Metrics of the largest and the smallest candidate, normalised by the batch."""
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        forward = self._function("batch", lambda x, row: self._forward(x, self._choice(row), "batch"))
        for index, metric in enumerate((self.largest_accuracy, self.smallest_accuracy)):
            logits = forward(images, self._rows[index])
            metric.update_state(labels, logits, weight)
            if index == 0:
                self.loss_tracker.update_state(self.compute_loss(images, labels, logits, weight))
        return self.get_metrics_result()

    def _function(self, key, body):
        """One graph for a body; which candidate it computes is an argument."""
        import tensorflow as tf

        if key not in self._functions:

            def counted(*args):
                self.traces += 1  # runs while the graph is built, not when it runs
                return body(*args)

            self._functions[key] = tf.function(counted, autograph=False, reduce_retracing=True)
        return self._functions[key]

    # Evaluation

    def recalibrate(self, values: dict, images, *, batch_size=128):
        """Measures the statistics of batch normalisation of one candidate, and selects it.

        Args:
            values: the candidate.
            images: float32 (N, H, W, C) in [0, 1], N a multiple of `batch_size` (what is left over is not used).
        """
        self.select(values)
        record = self._function("record", lambda x, row, w: self._forward(x, self._choice(row), "record", w))
        row = keras.ops.convert_to_tensor(self.encode(values))
        for count in range(max(1, len(images) // batch_size)):
            batch = images[count * batch_size : (count + 1) * batch_size]
            record(batch, row, keras.ops.convert_to_tensor(1 / (count + 1), "float32"))

    def logits(self, images, *, batch_size=128) -> np.ndarray:
        """Outputs of the selected candidate, by the recalibrated statistics."""
        stored = self._function("stored", lambda x, row: self._forward(x, self._choice(row), "stored"))
        row = self.selected.value
        return np.concatenate([stored(images[i : i + batch_size], row).numpy() for i in range(0, len(images), batch_size)])

    def build_model(self, values: dict) -> keras.Model:
        """A candidate by itself: the model of `backbones.build` with the weights and statistics that it has here.

        Recalibrate it first. Shift layers get the float weights, which they round; add layers those of their own.
        """
        spec = self.space.candidate_spec(values)
        if values.get("stage", 1) == 1:
            spec = spec.with_operator("conv")
        model = backbones.build(spec)
        for source, layer in self._lowered(values):
            there = layer.block is None or spec.blocks[layer.block].kept
            if there and layer.operator is not None and not layer.operator.moves:
                self._copy(source, layer, model)
        return model

    def _copy(self, source, layer, model):
        own = "_adder" if layer.operator.distance else ""
        kernel = keras.ops.convert_to_numpy(self._parameters[f"{source}{own}_kernel"])
        inputs, outputs = layer.input_shape[2], layer.output_shape[2]
        border = (kernel.shape[0] - layer.kernel_size) // 2
        inside = slice(border, border + layer.kernel_size)
        part = {"conv": np.s_[:, :, :inputs, :outputs], "depthwise": np.s_[inside, inside, :outputs], "dense": np.s_[:inputs]}[
            layer.kind
        ]
        target = model.get_layer(layer.name)
        assign_kernel(target, kernel[part])
        if layer.use_bias:
            target.bias.assign(self._parameters[source + "_bias"])
        if layer.batch_norm:
            norm = model.get_layer(layer.name + "_bn")
            norm.gamma.assign(self._parameters[source + "_gamma"][:outputs])
            norm.beta.assign(self._parameters[source + "_beta"][:outputs])
            norm.moving_mean.assign(self._statistics[source + "_mean"][:outputs])
            norm.moving_variance.assign(self._statistics[source + "_variance"][:outputs])


def _adaptive(kernel):
    """An add kernel as it is; its gradient scaled to AdderNet's adaptive rate, in each candidate's own pass."""
    import tensorflow as tf

    @tf.custom_gradient
    def identity(kernel):
        def gradient(upstream):
            norm = tf.maximum(tf.norm(upstream), 1e-12)
            return upstream * (GRADIENT_SCALE * float(np.sqrt(np.prod(kernel.shape))) / norm)

        return tf.identity(kernel), gradient

    return identity(kernel)


def _switch(place, layers, *inputs):
    """`layers[place](*inputs)`, computing no other. The chosen layer is computed again for its gradient, because
    TensorFlow's own gradient of a switch cannot reach into the custom gradients of add layers."""
    import tensorflow as tf

    @tf.custom_gradient
    def switched(*inputs):
        def gradient(upstream):
            def of(layer):
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    y = layer(*inputs)
                return tape.gradient(y, inputs, output_gradients=upstream, unconnected_gradients="zero")

            return tf.switch_case(place, [lambda layer=layer: of(layer) for layer in layers])

        return tf.switch_case(place, [lambda layer=layer: layer(*inputs) for layer in layers]), gradient

    return switched(*inputs)


class _Normalizer:
    """Batch normalisation and activation of a slice of channels; see `SuperNet._forward` for the modes."""

    def __init__(self, parameters, statistics, mode, weight):
        self.parameters, self.statistics, self.mode, self.weight = parameters, statistics, mode, weight

    def __call__(self, name, x, channels, activation):
        import tensorflow as tf

        gamma = self.parameters[name + "_gamma"].value[:channels]
        beta = self.parameters[name + "_beta"].value[:channels]
        kept = [self.statistics[f"{name}_{moment}"] for moment in ("mean", "variance")]
        if self.mode == "stored":
            mean, variance = (variable.value[:channels] for variable in kept)
            x, _, _ = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=1e-5, is_training=False)
        else:
            x, *moments = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=1e-5, is_training=True)
            if self.mode == "record":
                for variable, moment in zip(kept, moments, strict=True):
                    old = variable.value
                    new = old[:channels] + self.weight * (moment - old[:channels])
                    new = tf.concat([new, old[channels:]], 0)
                    new.set_shape(old.shape)
                    variable.assign(new)
        return ACTIVATIONS[activation](x) if activation else x


ACTIVATIONS = {"relu": keras.ops.relu, "relu6": keras.ops.relu6, "hard_swish": keras.ops.hard_silu}


def adder_kernel(kernel):
    """A multiplicative kernel as an add layer's: its Gaussian weights made Laplacian, around 0."""
    std = keras.ops.maximum(keras.ops.std(kernel), 1e-6)
    return remap.gaussian_to_laplace(kernel, mean=keras.ops.mean(kernel), std=std, scale=LAPLACE_SCALE)
