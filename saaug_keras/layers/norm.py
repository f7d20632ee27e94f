"""Batch normalization of a target and of the larger layer that it lives in."""

import keras
import numpy as np
from keras import ops as K

from saaug_keras import _validate
from saaug_keras._backend import portable, subgraph
from saaug_keras.operators.layer import PersistAllWeights, channels_of


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridBatchNormalization(PersistAllWeights, keras.layers.Layer):
    """Batch normalisation with shared scale and offset, and running statistics for target and augmented apart.

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    Args:
        target_channels: channels of the target, a leading slice.
        momentum: number in [0, 1] of the running statistics; epsilon: number > 0 added to the variance.
    Call:
        inputs (N, H, W, c); augmented: whose statistics to use and update; the target has c = target_channels, an
        augmented network any leading slice of the channels. filters: an int tensor where only so many leading channels
        are there and the others are zeros, as on JAX, whose shapes are static: their statistics stay. A frozen layer
        (`trainable` False) uses its running statistics while training, too, and leaves them.
    """

    def __init__(self, target_channels, *, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        owner = "HybridBatchNormalization"
        self.target_channels = _validate.int_in(owner, "target_channels", target_channels, 1, 1 << 20)
        self.momentum = _validate.number_in(owner, "momentum", momentum, 0, 1)
        self.epsilon = _validate.number_in(owner, "epsilon", epsilon, 1e-12, 1)

    def build(self, input_shape):
        channels, target = input_shape[-1], self.target_channels
        state = {"trainable": False, "autocast": False, "aggregation": "mean"}
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)
        self.moving_mean = self.add_weight(name="moving_mean", shape=(target,), initializer="zeros", **state)
        self.moving_variance = self.add_weight(name="moving_variance", shape=(target,), initializer="ones", **state)
        self.augmented_moving_mean = self.add_weight(
            name="augmented_moving_mean", shape=(channels,), initializer="zeros", **state
        )
        self.augmented_moving_variance = self.add_weight(
            name="augmented_moving_variance", shape=(channels,), initializer="ones", **state
        )
        self.built = True

    def call(self, inputs, augmented=False, training=None, filters=None):
        c = channels_of(inputs) if augmented else self.target_channels
        mean, variance = (
            (self.augmented_moving_mean, self.augmented_moving_variance)
            if augmented
            else (self.moving_mean, self.moving_variance)
        )
        gamma, beta = self.gamma.value[:c], self.beta.value[:c]
        if not (training and self.trainable):
            return _normalize(inputs, gamma, beta, mean.value[:c], variance.value[:c], self.epsilon)
        out, *batch = _normalize_batch(inputs, gamma, beta, self.epsilon)
        new = moved_statistics(mean.value, variance.value, *batch, momentum=float(self.momentum))
        if filters is not None:
            there = K.arange(mean.shape[0]) < filters
            new = [K.where(there, moved, old.value) for moved, old in zip(new, (mean, variance), strict=True)]
        mean.assign(new[0])
        variance.assign(new[1])
        return out

    def start_from(self, layer):
        """Takes scale, offset and statistics of a plain batch norm for the target's; the augmented ones start with them."""
        channels = slice(self.target_channels)
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            given = K.convert_to_numpy(getattr(layer, name))
            for mine in (name, f"augmented_{name}"):
                if hasattr(self, mine):
                    values = np.array(K.convert_to_numpy(getattr(self, mine)))
                    values[channels] = given
                    getattr(self, mine).assign(values)

    def reset_target_statistics(self):
        """The target's running statistics as at the start."""
        self.moving_mean.assign(K.zeros_like(self.moving_mean.value))
        self.moving_variance.assign(K.ones_like(self.moving_variance.value))

    def get_config(self):
        return {
            **super().get_config(),
            "target_channels": self.target_channels,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


@subgraph(any_shape=True)
def moved_statistics(mean, variance, batch_mean, batch_variance, *, momentum):
    """Running statistics moved by a batch's, in their leading channels where the batch has fewer."""
    moved = []
    for old, batch in ((mean, batch_mean), (variance, batch_variance)):
        count = K.shape(batch)[0]
        new = momentum * old[:count] + (1 - momentum) * K.stop_gradient(batch)
        moved.append(K.concatenate([new, old[count:]], axis=0))
    return moved


@portable
def _normalize(inputs, gamma, beta, mean, variance, epsilon):
    factor = gamma * K.rsqrt(variance + epsilon)
    return K.cast((K.cast(inputs, "float32") - mean) * factor + beta, inputs.dtype)


@portable
def _normalize_batch(inputs, gamma, beta, epsilon):
    # Not K.moments: on JAX it takes E[x^2] - E[x]^2, which far from 0 is less than nothing.
    values, axes = K.cast(inputs, "float32"), tuple(range(len(inputs.shape) - 1))
    mean = K.mean(values, axis=axes)
    variance = K.mean(K.square(values - mean), axis=axes)
    return _normalize.anywhere(inputs, gamma, beta, mean, variance, epsilon), mean, variance


@_normalize.on("tensorflow")
def _fused_inference(inputs, gamma, beta, mean, variance, epsilon):
    import tensorflow as tf

    if len(inputs.shape) != 4:
        return _normalize.anywhere(inputs, gamma, beta, mean, variance, epsilon)
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y


@_normalize_batch.on("tensorflow")
def _fused_training(inputs, gamma, beta, epsilon):
    """TensorFlow's fused kernel. Keras keeps the biased variance, which the kernel does not give directly."""
    import tensorflow as tf

    if len(inputs.shape) != 4:
        return _normalize_batch.anywhere(inputs, gamma, beta, epsilon)
    out = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=(), variance=(), epsilon=epsilon, is_training=True
    )
    return out.y, out.batch_mean, biased_variance(out.batch_variance, tf.shape(inputs))


@subgraph(any_shape=True)
def biased_variance(unbiased, shape):
    """The variance of a batch divided by its count, from the one divided by its count - 1."""
    import tensorflow as tf

    count = tf.cast(tf.reduce_prod(shape[:-1]), tf.float32)
    return unbiased * (count - 1) / count
