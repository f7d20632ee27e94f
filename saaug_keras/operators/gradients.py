"""What becomes of a kernel's gradient before the optimizer sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops as K


@dataclass(frozen=True)
class AdaptiveRate:
    """AdderNet's adaptive learning rate: the gradient keeps its direction and gets a length.

        g <- loss_scale * g * eta * sqrt(numel) / ||g||

    Args:
        eta: number >= 0.
        block: (axis, size) pairs: the leading block of a latent kernel that the add operator uses. It alone is scaled;
            the multiplicative rest keeps its gradient. None for the whole kernel.
    Source: AdderNet, arXiv:1912.13200, eq. 13; eta = 0.2 there.
    """

    eta: float
    block: tuple | None = None

    def scaled(self, gradient, loss_scale=1.0):
        """The gradient that is applied. One of zeros stays so; infinities become NaN, which a LossScaleOptimizer skips.

        Args:
            gradient: of the kernel, summed and raw.
            loss_scale: what the optimizer will divide the gradients by; with a `keras.optimizers.LossScaleOptimizer` its
                `dynamic_scale`. A norm forgets the scale of the loss, so it has to be put back.
        """
        gradient = K.convert_to_tensor(gradient)
        value = K.cast(gradient, "float32")
        if self.block is None:
            return K.cast(value * self._rate(value, loss_scale), gradient.dtype)
        mask = np.ones((1,) * len(value.shape), bool)
        block = [slice(None)] * len(value.shape)
        for axis, channels in self.block:
            line = [-1 if each == axis else 1 for each in range(mask.ndim)]
            mask = mask & (np.arange(value.shape[axis]) < channels).reshape(line)
            block[axis] = slice(channels)
        factor = K.where(mask, self._rate(value[tuple(block)], loss_scale), 1.0)
        return K.cast(value * factor, gradient.dtype)

    def _rate(self, gradient, loss_scale):
        # Divided by its largest entry, a gradient's squares neither overflow nor vanish.
        largest = K.max(K.abs(gradient))
        safe = K.where(largest == 0, 1.0, largest)
        norm = K.sqrt(K.sum(K.square(gradient / safe))) * safe
        rate = self.eta * float(np.sqrt(np.prod(gradient.shape))) * loss_scale / norm
        return K.where(largest == 0, 0.0, rate)


def rules_of(layers) -> dict:
    """{id of a kernel: its rule} of those of built layers that have one."""
    return {id(layer.kernel): layer.gradient_rule for layer in layers if getattr(layer, "gradient_rule", None) is not None}


def scale_gradients(rules, variables, gradients, *, loss_scale=1.0) -> list:
    """Gradients by the rules of their variables; those without a rule, and None, stay as they are.

    Args:
        rules: of `rules_of`.
        variables, gradients: in the same order.
        loss_scale: as of `AdaptiveRate.scaled`.
    """
    return [
        gradient if gradient is None or (rule := rules.get(id(variable))) is None else rule.scaled(gradient, loss_scale)
        for variable, gradient in zip(variables, gradients, strict=True)
    ]
