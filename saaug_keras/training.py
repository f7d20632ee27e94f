"""Joint training of a target network and its augmented networks with `model.fit`.

`augment(spec, ...)` gives an `AugmentedModel`. Every training step draws the augmented network's widths, runs target
and augmented network over the shared layers, and makes one optimizer step on the sum of both losses' gradients.
"""

from __future__ import annotations

import keras
import numpy as np

from saaug_keras import _backend, _validate
from saaug_keras._backend import portable
from saaug_keras.augmentation import HybridNetwork
from saaug_keras.backbones import NetSpec
from saaug_keras.operators.gradients import rules_of, scale_gradients

_DRAWS = 8192  # a run repeats its sequence of widths after as many steps


def augment(
    spec: NetSpec,
    *,
    width=(1.0, 1.6, 2.2),
    expand=(1.0, 1.6, 2.2, 2.8),
    aug_loss_weight: float = 1.0,
    normalize_loss: bool = False,
    distill_weight: float = 0.0,
    distill_temperature: float = 1.0,
    remap: bool = True,
    mutable: bool = False,
    layer_options: dict | None = None,
    clip_adder_kernels: bool = False,
    settle: bool = False,
    seed: int = 0,
    dtype=None,
) -> AugmentedModel:
    """A model whose `fit` trains the network of `spec` inside a larger multiplicative one.

        L = L(target) + aug_loss_weight * L(augmented) [+ distill_weight * T^2 * KL(augmented || target)]

    Args:
        spec: the target; its blocks with `kept=False` are depth augmentation (see `callbacks.DepthDecay`).
        width: factors of all channel counts, each >= 1; one is drawn per step.
        expand: further factors inside the blocks, each >= 1; one is drawn per step and block.
        aug_loss_weight: weight of the augmented loss, in [0, 100]. 0 trains the target directly, at direct cost.
        normalize_loss: divide the sum by 1 + aug_loss_weight. The plain sum, as in NetAug, doubles the gradient of
            shared weights and so acts as a larger learning rate.
        distill_weight, distill_temperature: the augmented network as a teacher of the target; no gradient to it.
        remap: whether the target sees its weights through the Gaussian-to-Laplace remap.
        mutable: layers can be switched between multiplicative and multiplication-free (see `callbacks.BlockMutation`).
        layer_options: options of single layers or operators, as in `HybridNetwork`.
        clip_adder_kernels: after every step, clip the add kernels to the range of their inputs and half a step of its
            grid. A weight outside of it adds a constant, which the batch norm takes away again: nothing else would
            draw it back.
        settle: after every step, draw the kernels of shift and binary layers towards what they are rounded to, by the share
            `pull` of the model (0 at first; see `callbacks.Settling`). Without it a weight between two powers of two swings
            from one to the other with every few steps, at any learning rate, and the others never see a network at rest.
        seed: of the drawn widths; with the same seed a run that is resumed draws the same.
        dtype: a Keras dtype policy, for example "mixed_float16".
    Raises:
        ValueError: a factor below 1, a weight out of range, or `clip_adder_kernels` with add kernels that are remapped
            or whose inputs are not quantized, or `settle` where no kernel is on a coarse grid.
    """
    return AugmentedModel(
        spec,
        width=width,
        expand=expand,
        aug_loss_weight=aug_loss_weight,
        normalize_loss=normalize_loss,
        distill_weight=distill_weight,
        distill_temperature=distill_temperature,
        remap=remap,
        mutable=mutable,
        layer_options=layer_options,
        clip_adder_kernels=clip_adder_kernels,
        settle=settle,
        seed=seed,
        dtype=dtype,
    )


@keras.saving.register_keras_serializable(package="saaug_keras")
class CoupledSGD(keras.optimizers.SGD):
    """SGD whose weight decay is the gradient of l2 / 2 * |w|^2, so that momentum applies to it.

        g <- g + l2 * w;    m <- momentum * m - rate * g;    w <- w + (momentum * m - rate * g with Nesterov, else m)

    The `weight_decay` of `keras.optimizers.SGD` is decoupled, w <- w - rate * weight_decay * w, which at momentum 0.9
    acts ten times weaker than the same number here. Papers on SGD quote this one.

    Args:
        l2: number in [0, 1]. `exclude_from_weight_decay` names the variables that it leaves out.
        learning_rate, momentum, nesterov, **kwargs: as `keras.optimizers.SGD`, but for `weight_decay`.
    """

    def __init__(self, learning_rate=0.01, *, l2=0.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.l2 = _validate.number_in("CoupledSGD", "l2", l2, 0, 1)
        if self.weight_decay is not None:
            raise ValueError(
                f"CoupledSGD: `weight_decay` must be None; `l2` is the decay. Received: weight_decay={self.weight_decay}."
            )

    def update_step(self, gradient, variable, learning_rate):
        if self.l2 and self._use_weight_decay(variable):
            gradient = keras.ops.cast(gradient, variable.dtype) + self.l2 * keras.ops.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable(package="saaug_keras")
class AugmentedModel(keras.Model):
    """A target network that is trained inside an augmented one; built by `augment`, which explains the arguments.

    `fit` logs `loss` (the sum that is minimised), `target_loss`, with augmentation `augmented_loss`, and the metrics of
    the target. `evaluate`, `predict` and a plain call speak of the target, whose loss is then `loss`; no augmented
    network, whose widths are drawn and which nobody deploys, is evaluated. `call_augmented` computes one.

    A compiled model that was saved and loaded goes on training as if it had not stopped.
    """

    def __init__(
        self,
        spec,
        *,
        width,
        expand,
        aug_loss_weight,
        normalize_loss,
        distill_weight,
        distill_temperature,
        remap,
        mutable,
        layer_options,
        seed,
        clip_adder_kernels=False,
        settle=False,
        **kwargs,
    ):
        kwargs.setdefault("name", "augmented_model")
        super().__init__(**kwargs)
        owner = "augment"
        _validate.number_in(owner, "aug_loss_weight", aug_loss_weight, 0, 100)
        _validate.number_in(owner, "distill_weight", distill_weight, 0, 100)
        _validate.number_in(owner, "distill_temperature", distill_temperature, 0.1, 100)
        _validate.int_in(owner, "seed", seed, 0, 2**32 - 1)
        self.network = HybridNetwork(
            spec, width=width, expand=expand, remap=remap, mutable=mutable, layer_options=layer_options, dtype=self.dtype_policy
        )
        self.aug_loss_weight = aug_loss_weight
        self.normalize_loss = normalize_loss
        self.distill_weight = distill_weight
        self.distill_temperature = distill_temperature
        self.seed = seed
        self.clip_adder_kernels = _validate.one_of(owner, "clip_adder_kernels", clip_adder_kernels, (True, False))
        self._alone = False
        self._lesson = None
        self._clipped = self._clipped_layers() if clip_adder_kernels else []
        self.settle = _validate.one_of(owner, "settle", settle, (True, False))
        self._settling = self._settling_layers() if settle else []
        # One row a step: index of the width factor, then of every block's expand factor.
        generator = np.random.default_rng(seed)
        self.draws = np.concatenate(
            [
                generator.integers(len(self.network.width), size=(_DRAWS, 1)),
                generator.integers(len(self.network.expand), size=(_DRAWS, max(1, len(self.spec.blocks)))),
            ],
            axis=1,
        ).astype("int32")
        self._target_tracker = keras.metrics.Mean(name="target_loss")
        self._augmented_tracker = keras.metrics.Mean(name="augmented_loss") if self.is_augmented else None
        self.build()  # the spec says all shapes

    @property
    def spec(self) -> NetSpec:
        """The `NetSpec` of the target."""
        return self.network.spec

    @property
    def is_augmented(self) -> bool:
        """Whether training runs an augmented network beside the target."""
        return not self._alone and (self.aug_loss_weight > 0 or self.distill_weight > 0)

    def train_alone(self, alone: bool = True):
        """Says whether steps from now on train the target alone, at direct cost, whatever the losses weigh.

        For callbacks at the beginning of an epoch; a `fit` under way makes its step anew. No part of the configuration or
        of the weights: a model that was loaded trains as it was built.
        """
        if alone != self._alone:
            self._alone = alone
            if getattr(self, "train_function", None) is not None:
                self.make_train_function(force=True)

    @property
    def gradient_rules(self) -> dict:
        """{id of a kernel: what becomes of its gradient} of the built model; see `operators.gradients`."""
        return rules_of(self.network.weighted.values())

    def _clipped_layers(self):
        """The add layers; their kernels must be stored as they are compared with the inputs."""
        found = [layer for layer in self.network.weighted.values() if layer.operator.distance]
        for layer in found:
            if layer.remap or layer.activation_bits is None:
                raise ValueError(
                    "augment: `clip_adder_kernels` must be False where add kernels are remapped or their inputs are not "
                    f"quantized. Received: layer '{layer.name}', remap={layer.remap}, "
                    f"activation_bits={layer.activation_bits}. Pass remap=False, or for add layers alone "
                    "layer_options={'adder': {'remap': False}}."
                )
        return found

    def _settling_layers(self):
        found = [layer for layer in self.network.weighted.values() if layer.operator.settles]
        if not found:
            raise ValueError(
                "augment: `settle` must be False where no kernel is rounded to signed powers of two or to signs. Received: "
                "settle=True."
            )
        return found

    def _adjusted(self):
        """[(kernel, its value after a step of the optimizer)] of the layers that have more to do than that."""
        return [(layer.kernel, layer.clipped_kernel()) for layer in self._clipped] + [
            (layer.kernel, layer.settled_kernel(self.pull.value)) for layer in self._settling
        ]

    def build(self, input_shape=None):
        if self.built:
            return
        self.network.build((None, *self.spec.input_shape))
        # In the weights, so that a resumed run goes on drawing where it stopped.
        options = {"shape": (), "trainable": False, "aggregation": "only_first_replica"}
        self.step = self.add_weight(name="step", dtype="int32", initializer="zeros", **options)
        self.width_enabled = self.add_weight(name="width_enabled", dtype="int32", initializer="ones", **options)
        self.expand_enabled = self.add_weight(name="expand_enabled", dtype="int32", initializer="ones", **options)
        if self.settle:
            self.pull = self.add_weight(name="pull", initializer="zeros", **options)
        self.built = True

    def compile(self, optimizer="sgd", loss=None, metrics=None, **kwargs):
        """As `keras.Model.compile`; the default loss is sparse categorical cross-entropy on logits, with accuracy.

        The loss is one Keras loss instance, whose reduction applies to target and augmented alike.
        """
        if loss is None:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            metrics = ["accuracy"] if metrics is None else metrics
        loss = keras.losses.get(loss)
        if not isinstance(loss, keras.losses.Loss):
            raise TypeError(
                "AugmentedModel.compile: `loss` must be a keras.losses.Loss or the name of one of its classes, for "
                f"example keras.losses.CategoricalCrossentropy(from_logits=True). Received: loss={loss}."
            )
        self._has_state = False
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def get_compile_config(self):
        """As Keras's, with the variables that have no weight decay, which a Keras optimizer forgets."""
        config = super().get_compile_config()
        if config and self.optimizer is not None:
            inner = _inner(self.optimizer)
            config["undecayed"] = [
                index
                for index, variable in enumerate(self.variables)
                if variable.trainable and not inner._use_weight_decay(variable)
            ]
        return config

    def compile_from_config(self, config):
        """Compiles as `get_compile_config` says, and makes the optimizer's variables so that they can be loaded."""
        config = keras.saving.deserialize_keras_object(config)
        undecayed = [self.variables[index] for index in config.pop("undecayed", ())]
        self.compile(**config)
        if undecayed:
            _inner(self.optimizer).exclude_from_weight_decay(var_list=undecayed)
        self.optimizer.build(self.trainable_variables)

    def draw(self):
        """The `choice` of the current step: a pure function of the seed and the number of steps made."""
        row = keras.ops.take(keras.ops.convert_to_tensor(self.draws), self.step.value % _DRAWS, axis=0)
        width = row[0] * self.width_enabled.value
        expand = row[1:] * self.expand_enabled.value
        return width, [expand[index] for index in range(len(self.spec.blocks))]

    def call(self, inputs, training=None):
        """Target logits; while training with augmentation, (target logits, augmented logits)."""
        target = self.network(inputs, training=training)
        if not training or not self.is_augmented:
            return target
        augmented = self.network(inputs, choice=self.draw(), training=training)
        self.step.assign_add(1)
        return target, augmented

    def call_augmented(self, inputs, *, choice=None, training=False):
        """Logits of an augmented network: of `choice`, by default the largest."""
        choice = self.network.largest_choice() if choice is None else choice
        return self.network(keras.ops.convert_to_tensor(inputs), choice=choice, training=training)

    def learn_from(self, teacher, *, weight: float = 1.0, temperature: float = 2.0):
        """Adds what a trained network says of the images to the loss that training minimises.

            L + weight * T^2 * KL(softmax(teacher / T) || softmax(target / T))

        The teacher learns nothing, is no part of this model and is not saved with it.

        Args:
            teacher: function of images, (N, H, W, C) as this model's, that gives logits of the target's shape: a Keras
                model, for example; it is called with training=False. None for no teacher.
            weight: in [0, 100]; temperature: T, in [0.1, 100].
        Raises:
            ValueError: a number out of range, or a Keras model of other images or outputs than the target's.
        """
        owner = "AugmentedModel.learn_from"
        _validate.number_in(owner, "weight", weight, 0, 100)
        _validate.number_in(owner, "temperature", temperature, 0.1, 100)
        if isinstance(teacher, keras.Model):
            theirs, mine = (teacher.input_shape[1:], teacher.output_shape[-1]), (self.spec.input_shape, self.spec.num_classes)
            if theirs != mine:
                raise ValueError(
                    f"{owner}: `teacher` must be a network for images {mine[0]} of {mine[1]} classes. Received: one for "
                    f"{theirs[0]} of {theirs[1]}."
                )
        # In a function, where Keras finds no layer to take over.
        self._lesson = None if teacher is None else (lambda x: teacher(x, training=False), weight, temperature)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The joint loss, and its parts in the logs; on target logits alone the target's loss."""
        loss = self._joint_loss(x, y, y_pred, sample_weight, training)
        if not training or self._lesson is None:
            return loss
        teacher, weight, temperature = self._lesson
        return loss + weight * self._divergence(temperature)(teacher(x), _target_of(y_pred), sample_weight=sample_weight)

    def _divergence(self, temperature):
        return _Divergence(temperature, name="divergence", reduction=self.loss.reduction)

    def _joint_loss(self, x, y, y_pred, sample_weight, training):
        if not isinstance(y_pred, (tuple, list)):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            if training:
                self._target_tracker.update_state(loss * _replicas())
            return loss
        target_logits, augmented_logits = y_pred
        target = super().compute_loss(x, y, target_logits, sample_weight, training)  # regularizers counted once, here
        augmented = self.loss(y, augmented_logits, sample_weight=sample_weight)
        self._target_tracker.update_state(target * _replicas())
        self._augmented_tracker.update_state(augmented * _replicas())
        total = target + self.aug_loss_weight * augmented
        if self.distill_weight:
            divergence = self._divergence(self.distill_temperature)
            total += self.distill_weight * divergence(augmented_logits, target_logits, sample_weight=sample_weight)
        return total / (1 + self.aug_loss_weight) if self.normalize_loss else total

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The metrics of the target."""
        return super().compute_metrics(x, y, _target_of(y_pred), sample_weight)

    def get_metrics_result(self):
        """As Keras's; no loss of an augmented network where none runs."""
        results = super().get_metrics_result()
        if not self.is_augmented:
            results.pop("augmented_loss", None)
        return results

    @property
    def variables_without_decay(self) -> list:
        """Trainable variables that no weight decay should shrink: of batch norms, biases, and kernels whose gradients have
        a rule (add kernels)."""
        rules = self.gradient_rules
        return [
            variable
            for variable in self.trainable_variables
            if variable.name in ("gamma", "beta", "bias") or id(variable) in rules
        ]

    def test_step(self, *args):
        """One step of evaluation, without the two losses that training alone measures."""
        result = super().test_step(*args)
        logs = result[0] if isinstance(result, tuple) else result  # JAX also returns its state
        for name in ("target_loss", "augmented_loss"):
            logs.pop(name, None)
        return result

    def train_step(self, *args):
        """One step on the summed gradients; the gradients of add kernels are scaled after the sum."""
        _backend.need("AugmentedModel", "jax", "tensorflow")
        return self._train_step(*args)

    def make_train_function(self, force=False):
        """As Keras's; on TensorFlow it makes the variables of optimizer and metrics before it traces a step.

        Keras leaves them to the first step, and TensorFlow throws away a trace in which variables are made, and begins anew.
        """
        before = self.train_function
        super().make_train_function(force)
        if _backend.name() == "tensorflow" and self.train_function is not before:
            step = self.train_function

            def with_state(iterator):
                if not self._has_state:
                    self._has_state = True
                    self._make_state(iterator)
                return step(iterator)

            self.train_function = with_state

    def _make_state(self, iterator):
        """The variables of the optimizer, and of metrics where the shapes of labels are known."""
        import tensorflow as tf

        if self.distribute_strategy.num_replicas_in_sync > 1:  # Keras makes those of a strategy
            return
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        labels = keras.utils.unpack_x_y_sample_weight(getattr(iterator, "element_spec", None))[1]
        if isinstance(labels, tf.TensorSpec) and labels.shape[1:].is_fully_defined():
            one = keras.ops.zeros([1, *labels.shape[1:]], labels.dtype)
            logits = self.network.layer_specs[-1].output_shape[0 if self.spec.segmentation else 2 :]
            self.compute_metrics(None, one, keras.ops.zeros((1, *logits)))
            self.reset_metrics()  # nothing was counted yet

    def _loss_scale(self):
        """What a LossScaleOptimizer multiplies the loss with; 1 for any other optimizer."""
        return getattr(self.optimizer, "dynamic_scale", 1.0)

    @portable
    def _train_step(self, data):
        import tensorflow as tf

        # There is no Python control flow on tensors in here, and AutoGraph would double the time to trace.
        return tf.autograph.experimental.do_not_convert(self._eager_train_step)(data)

    def _eager_train_step(self, data):
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        self._loss_metric().update_state(loss * _replicas(), sample_weight=keras.ops.shape(x)[0])
        gradients = tape.gradient(scaled, self.trainable_variables)
        gradients = _scale_over_replicas(self.gradient_rules, self.trainable_variables, gradients, self._loss_scale())
        self.optimizer.apply(gradients, self.trainable_variables)
        for kernel, value in self._adjusted():
            _assign_in_replica(kernel, value)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    @_train_step.on("jax")
    def _functional_train_step(self, state, data):
        import jax

        trainable, non_trainable, optimizer_variables, metric_variables = state
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        (_, results), gradients = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)(
            trainable,
            non_trainable,
            metric_variables,
            x,
            y,
            sample_weight,
            training=True,
            optimizer_variables=optimizer_variables,
        )
        loss, y_pred, non_trainable, metric_variables = results
        with keras.StatelessScope(zip(self.optimizer.variables, optimizer_variables, strict=True)):
            gradients = scale_gradients(self.gradient_rules, self.trainable_variables, gradients, loss_scale=self._loss_scale())
        trainable, optimizer_variables = self.optimizer.stateless_apply(optimizer_variables, gradients, trainable)
        if self._clipped or self._settling:
            trainable = self._adjust_stateless(trainable, non_trainable)
        with keras.StatelessScope(zip(self.metrics_variables, metric_variables, strict=True)) as scope:
            self._loss_metric().update_state(loss, sample_weight=x.shape[0])
            logs = self.compute_metrics(x, y, y_pred, sample_weight)
            metric_variables = [
                new if (new := scope.get_current_value(variable)) is not None else old
                for variable, old in zip(self.metrics_variables, metric_variables, strict=True)
            ]
        return logs, (trainable, non_trainable, optimizer_variables, metric_variables)

    def _adjust_stateless(self, trainable, non_trainable):
        """The trainable values with adjusted kernels."""
        values = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
        ]
        with keras.StatelessScope(values) as scope:
            for kernel, value in self._adjusted():
                kernel.assign(value)
            return [scope.get_current_value(variable) for variable in self.trainable_variables]

    def _loss_metric(self):
        return next(metric for metric in self.metrics if metric.name == "loss")

    def export_target(self) -> keras.Model:
        """The deployed network: a functional model of plain layers whose outputs are those of this model.

        Raises:
            ValueError: depth augmentation or block-variant training has not ended.
        """
        return self.network.export_target()

    def get_config(self):
        network = self.network.get_config()
        return {
            "name": self.name,
            "dtype": network["dtype"],
            **{key: network[key] for key in ("spec", "width", "expand", "remap", "mutable", "layer_options")},
            "aug_loss_weight": self.aug_loss_weight,
            "normalize_loss": self.normalize_loss,
            "distill_weight": self.distill_weight,
            "distill_temperature": self.distill_temperature,
            "clip_adder_kernels": self.clip_adder_kernels,
            "settle": self.settle,
            "seed": self.seed,
        }


class _Divergence(keras.losses.Loss):
    """T^2 * KL(teacher || student) of logits, a value per row, to be weighted and reduced as the loss is."""

    def __init__(self, temperature, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        teacher = keras.ops.stop_gradient(keras.ops.log_softmax(y_true / self.temperature))
        student = keras.ops.log_softmax(y_pred / self.temperature)
        return self.temperature**2 * keras.ops.sum(keras.ops.exp(teacher) * (teacher - student), axis=-1)


def _inner(optimizer):
    """The optimizer that updates: the one inside a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@portable
def _replicas() -> int:
    """Replicas of a TensorFlow distribution strategy. Keras divides every replica's loss by it; logs undo that."""
    return 1


@_replicas.on("tensorflow")
def _replicas_of_tensorflow():
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context is not None else 1


def _assign_in_replica(variable, value):
    """Assigns what every replica has computed alike; a mirrored variable takes no plain assignment in a replica."""
    if _replicas() == 1:
        variable.assign(value)
        return
    import tensorflow as tf

    def update(strategy, value):
        strategy.extended.update(variable.value, lambda each, new: each.assign(new), args=(value,))

    tf.distribute.get_replica_context().merge_call(update, args=(value,))


def _scale_over_replicas(rules, variables, gradients, loss_scale):
    """`scale_gradients`, so that the optimizer's sum over replicas is the mean of their scaled gradients."""
    scaled = scale_gradients(rules, variables, gradients, loss_scale=loss_scale)
    return [new if new is old else new / _replicas() for new, old in zip(scaled, gradients, strict=True)]


def _target_of(y_pred):
    return y_pred[0] if isinstance(y_pred, (tuple, list)) else y_pred
