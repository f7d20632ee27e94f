"""The SuperNet: one set of weights for every network of a `SearchSpace`, and the evaluation of candidates on it."""

from __future__ import annotations

import keras
import numpy as np

from saaug_keras import backbones, operators, ops, remap
from saaug_keras.operators.shift_layers import assign_kernel
from saaug_keras.search.space import OPERATORS, SearchSpace

_ROWS = 4096  # drawn candidates; training goes round them
GRADIENT_SCALE = 0.2  # AdderNet's eta
# Of add kernels: narrower than the layers' own, whose width was chosen for networks of add layers alone.
LAPLACE_SCALE = float(0.5 / np.sqrt(2))
_PER_SLOT = 5  # active, kernel, expanded, filters, operator


class _Place:
    """The sizes of one block: Python ints where they are fixed, scalar tensors where they are chosen at run time."""

    def __init__(self, active, kernel, expanded, filters, operator):
        self.active, self.kernel, self.expanded = active, kernel, expanded
        self.filters, self.operator = filters, operator


class _Choice:
    """A candidate, as the forward pass reads it; see `SuperNet.encode` for the vector behind it."""

    def __init__(self, vector, static=None):
        def pick(index):
            return vector[index] if static is None else int(static[index])

        self.resolution, self.stem, self.head = pick(0), pick(1), pick(2)
        self.stem_operator, self.head_operator, self.classifier_operator = vector[3], vector[4], vector[5]
        self.places = []
        for start in range(6, vector.shape[0], _PER_SLOT):
            sizes = [pick(start + 1), pick(start + 2), pick(start + 3)]
            empty = static is not None and not static[start]
            # Of a fixed SubNet, what stays and what operates is still chosen at run time.
            self.places.append(_Place(False if empty else vector[start], *sizes, vector[start + 4]))


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
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "SuperNet: the Keras backend must be 'tensorflow' (slices are chosen at run time). "
                f"Received: backend={keras.backend.backend()!r}."
            )
        super().__init__(**kwargs)
        self.space = space
        self.slots = space.slots()
        self.random_candidates = random_candidates
        self.distill = distill
        self.seed = seed
        self.subnet = None  # values of the SubNet that `adapt_to` fixed
        self.traces = 0  # how often a graph was built
        self._static = None
        self._functions = {}
        # Operators by their numbers in `encode`: those of one name, then the mixed ones of this space.
        self._texts = tuple(dict.fromkeys((*OPERATORS, *space.operators)))
        self._block_operators = {text: operators.parse_block(text) for text in space.operators}
        self._initializer = keras.initializers.HeNormal(seed=keras.random.SeedGenerator(seed))
        self._parameters, self._statistics = {}, {}
        options, width = space.options, space.widths[-1]
        stem = space.channels(options["stem"], width)
        self._add_conv("stem", (options["stem_kernel_size"],) * 2 + (options["channels"], stem))
        for slot in self.slots:
            if slot.has_expansion:
                self._add_conv(slot.name + "_expand", (1, 1, slot.max_inputs, slot.max_expanded))
            self._add_conv(slot.name + "_depthwise", (slot.max_kernel,) * 2 + (slot.max_expanded, 1), slot.max_expanded)
            self._add_conv(slot.name + "_project", (1, 1, slot.max_expanded, slot.max_filters))
        last = self.slots[-1].max_filters
        if options["head"]:
            head = space.channels(options["head"], width)
            self._add_conv("head0", (1, 1, last, head))
            last = head
        classes = options["num_classes"]
        self._parameters["classifier_kernel"] = self.add_weight(
            name="classifier_kernel", shape=(last, classes), initializer=self._initializer
        )
        self._parameters["classifier_bias"] = self.add_weight(name="classifier_bias", shape=(classes,), initializer="zeros")
        size = 6 + _PER_SLOT * len(self.slots)
        self.selected = self.add_weight(name="selected", shape=(size,), dtype="int32", initializer="zeros", trainable=False)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.largest_accuracy = keras.metrics.SparseCategoricalAccuracy(name="largest_accuracy")
        self.smallest_accuracy = keras.metrics.SparseCategoricalAccuracy(name="smallest_accuracy")
        self._draw_rows()
        self.select(space.largest())
        self.built = True

    def _add_conv(self, name, shape, channels=None):
        channels = channels or shape[-1]
        # A depthwise kernel is as good as an ordinary one of one input channel.
        fan = shape if channels == shape[-1] else (shape[0], shape[1], 1, channels)
        weight = self.add_weight(name=name + "_kernel", shape=shape, initializer="zeros")
        weight.assign(keras.ops.reshape(self._initializer(fan), shape))
        self._parameters[name + "_kernel"] = weight
        if any(part.distance for parts in self._block_operators.values() for part in parts):
            own = self.add_weight(name=name + "_adder_kernel", shape=shape, initializer="zeros")
            own.trainable = False  # until `adapt_to`; a variable that is made untrainable is never watched by a tape
            self._parameters[name + "_adder_kernel"] = own
        self._parameters[name + "_gamma"] = self.add_weight(name=name + "_gamma", shape=(channels,), initializer="ones")
        self._parameters[name + "_beta"] = self.add_weight(name=name + "_beta", shape=(channels,), initializer="zeros")
        for moment, start in (("mean", "zeros"), ("variance", "ones")):
            self._statistics[f"{name}_{moment}"] = self.add_weight(
                name=f"{name}_{moment}", shape=(channels,), initializer=start, trainable=False
            )

    # Candidates

    def encode(self, values: dict) -> np.ndarray:
        """A candidate as int32 numbers: resolution, stem and head filters, operators of stem, head and classifier, then
        for each slot whether it is active, its kernel size, expanded channels, filters and operator."""
        spec = self.space.candidate_spec(values)
        multiplicative = values.get("stage", 1) == 1

        def code(operator):
            return 0 if multiplicative else self._texts.index(operators.to_text(operator))

        head = spec.head[0] if spec.head else None
        vector = [
            spec.input_shape[0],
            spec.stem.filters,
            head.filters if head else 0,
            code(spec.stem.operator),
            code(head.operator) if head else 0,
            code(spec.classifier_operator),
        ]
        blocks = dict(zip(self.space.occupied(values), spec.blocks, strict=True))
        for place in range(len(self.slots)):
            block = blocks.get(place)
            vector += (
                [0, 3, 1, 1, 0]
                if block is None
                else [int(block.kept), block.kernel_size, block.expanded, block.filters, code(block.operator)]
            )
        return np.array(vector, np.int32)

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
        options = self.space.options
        # What the policy gives the layers around the blocks.
        found = {"conv", "shift", *(str(part) for parts in self._block_operators.values() for part in parts)}
        around = {text: operators.parse(text) for text in self._texts if text in found}
        convs = {text: operator for text, operator in around.items() if "conv" in operator.kinds}
        dense = {text: operator for text, operator in around.items() if "dense" in operator.kinds}
        x = self._conv(
            "stem", x, choice.stem, choice.stem_operator, norm, convs, strides=options["stem_strides"], activate=True
        )
        inputs = choice.stem
        for slot, place in zip(self.slots, choice.places, strict=True):
            if place.active is False:
                continue

            def block(x=x, slot=slot, place=place, inputs=inputs):
                y = x
                expand, depthwise, project = (
                    {text: parts[index] for text, parts in self._block_operators.items()} for index in range(3)
                )
                if slot.has_expansion:
                    y = self._conv(slot.name + "_expand", y, place.expanded, place.operator, norm, expand, activate=True)
                y = self._depthwise(slot, y, place, norm, depthwise)
                y = self._conv(slot.name + "_project", y, place.filters, place.operator, norm, project)
                return x + y if slot.residual else y

            if slot.optional and self._static is not None:
                # Of a fixed SubNet most blocks stay. TensorFlow cannot nest the choice of an operator in another one.
                active = tf.cast(place.active, x.dtype)
                x = x + active * (block() - x)
            elif slot.optional:
                shape = x.shape
                x = tf.cond(place.active > 0, block, lambda x=x: x)
                x.set_shape(shape)
            else:
                x = block()
            inputs = place.filters
        if options["head"]:
            x = self._conv("head0", x, choice.head, choice.head_operator, norm, convs, activate=True)
        x = tf.reduce_mean(x, axis=[1, 2])
        kernels = self._kernels("classifier", np.s_[: tf.shape(x)[1]])
        logits = self._operate(x, kernels, choice.classifier_operator, dense, (-1,), tf.matmul, None)
        return logits + self._parameters["classifier_bias"].value

    def _conv(self, name, x, filters, operator, norm, by_text, *, strides=1, activate=False):
        import tensorflow as tf

        inputs = tf.shape(x)[-1] if x.shape[-1] is None else x.shape[-1]
        y = self._operate(
            x,
            self._kernels(name, np.s_[:, :, :inputs, :filters]),
            operator,
            by_text,
            (-1,),
            multiply=lambda x, k: ops.conv2d(x, k, strides=(strides, strides)),
            apply=lambda distance, x, k: distance.apply("conv", x, k, strides=strides),
        )
        return norm(name, y, filters, self.space.options["activation"] if activate else None)

    def _depthwise(self, slot, x, place, norm, by_text):
        import tensorflow as tf

        border = (slot.max_kernel - place.kernel) // 2
        inside = slice(border, slot.max_kernel - border)
        kernels = self._kernels(slot.name + "_depthwise", np.s_[inside, inside, : place.expanded])
        y = self._operate(
            x,
            kernels,
            place.operator,
            by_text,
            (-2, -1),
            multiply=lambda x, k: ops.depthwise_conv2d(x, k, strides=(slot.strides,) * 2),
            apply=lambda distance, x, k: distance.apply("depthwise", x, k, strides=slot.strides),
        )
        normalised = norm(slot.name + "_depthwise", y, place.expanded, self.space.options["activation"])
        moving = [text in by_text and by_text[text].moves for text in self._texts]
        if self._static is None or not any(moving):
            return normalised
        return tf.where(tf.gather(tf.constant(moving), place.operator), y, normalised)  # nothing follows a move

    def _kernels(self, name, part):
        """A part of a layer's kernel, and of that of its own as an add layer where the space has any."""
        keys = (name + "_kernel", name + "_adder_kernel")
        return tuple(self._parameters[key].value[part] for key in keys if key in self._parameters)

    def _operate(self, x, kernels, number, by_text, channel_axes, multiply, apply):
        """A layer under one of the operators of `by_text` {text of a block's operators: the layer's}, chosen by the text's
        number; in the first stage all multiply, and the graph has no other."""
        import tensorflow as tf

        if self._static is None:
            return multiply(x, kernels[0])

        def layer(operator):
            if operator.distance:
                return lambda x, _, own: apply(operator, x, _adaptive(own))
            return lambda x, shared, *_: multiply(x, operator.round(shared, channel_axes))

        known = list(dict.fromkeys(by_text[text] for text in self._texts if text in by_text))
        if len(known) == 1:
            return layer(known[0])(x, *kernels)
        places = [known.index(by_text[text]) if text in by_text else 0 for text in self._texts]
        return _switch(tf.gather(tf.constant(places), number), list(map(layer, known)), x, *kernels)

    def call(self, inputs, training=None):
        """Logits of the selected candidate: by the batch's statistics in training, else by those recalibrated."""
        return self._forward(inputs, self._choice(self.selected.value), "batch" if training else "stored")

    def _choice(self, vector):
        return _Choice(vector, self._static)

    # Training

    def compile(self, optimizer="sgd", loss=None, *, jit_compile=False, **kwargs):
        """As `keras.Model.compile`. Without XLA: on a CPU its depthwise convolution is many times slower."""
        loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        super().compile(optimizer, loss, jit_compile=jit_compile, **kwargs)

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
        places = dict(zip(self.space.occupied(values), spec.blocks, strict=True))
        names = {"stem": "stem", "head0": "head0"}
        kernels = {}
        for index, place in enumerate(places):
            for part in ("expand", "depthwise", "project"):
                names[f"block{index}_{part}"] = f"{self.slots[place].name}_{part}"
                kernels[f"block{index}_{part}"] = spec.blocks[index].kernel_size if part == "depthwise" else 1
        for layer in backbones.lower(spec):
            if layer.name in names:
                self._copy(names[layer.name], layer, kernels.get(layer.name), model)
        classifier = model.get_layer("classifier")
        inputs = classifier.kernel.shape[0]
        assign_kernel(classifier, keras.ops.convert_to_numpy(self._parameters["classifier_kernel"])[:inputs])
        classifier.bias.assign(self._parameters["classifier_bias"])
        return model

    def _copy(self, source, layer, size, model):
        if layer.operator.moves:
            return
        own = "_adder" if layer.operator.distance else ""
        kernel = keras.ops.convert_to_numpy(self._parameters[f"{source}{own}_kernel"])
        inputs, outputs = layer.input_shape[2], layer.output_shape[2]
        if layer.kind == "depthwise":
            border = (kernel.shape[0] - size) // 2
            kernel = kernel[border : border + size, border : border + size, :outputs]
        else:
            kernel = kernel[:, :, :inputs, :outputs]
        assign_kernel(model.get_layer(layer.name), kernel)
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
