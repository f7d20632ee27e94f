"""Channels that move in the place of a depthwise sum: the operator. Its plain layer is in `channelshift_layers`."""

from saaug_keras.operators.operator import Operator, dataclass

GROUP = 4  # channels that move together: a word of int8 values


@dataclass(frozen=True)
class ChannelShift(Operator):
    """Moves in the place of depthwise sums: a channel is read at one place of its window, that of `tap_of_channels`.

        y[m, n, c] = x[m + i(c), n + j(c), c]

    It has neither weights nor arithmetic. No batch norm or activation follows it, so that nothing but memory moves.

    Source: ShiftNet, Wu et al. 2017, arXiv:1711.08141, where all places have the same number of channels and what is left
        over stays. Here the places are spread evenly over groups of four channels, which are words of memory.
    """

    family = "channelshift"
    kinds = ("depthwise",)
    moves = True
    inputs_bits = None
    deployed_as = "channelshift"
    tap = None
    paper_bits = 16

    def arguments(self):
        return {}

    def layers(self):
        from saaug_keras.operators.channelshift_layers import ChannelShift2D

        return {"depthwise": ChannelShift2D}

    def make_layer(self, kind, *sizes, use_bias=False, **options):
        if use_bias:
            raise ValueError(f"operator '{self}': `use_bias` must be False, it computes nothing. Received: use_bias=True.")
        return super().make_layer(kind, *sizes, **options)

    @property
    def weight_bytes(self):
        return 0

    def round(self, kernel, channel_axes=(-1,)):
        """1 at the place that a channel is read at and 0 elsewhere, whatever the kernel is, which gets no gradient."""
        from keras import ops as K

        height, width, channels, _ = kernel.shape
        return K.cast(K.convert_to_tensor(kernel_of(height, width, channels)), kernel.dtype)


def tap_of_channels(channels: int, taps: int):
    """The place in a window that each channel is read at; neighbours share one, and a single group stays in the middle.

        tap(c) = floor((2 g + 1) * taps / (2 * groups)),    g = floor(c / 4),    groups = ceil(channels / 4)

    Args:
        channels: how many there are.
        taps: places in the window, counted row by row.
    Returns:
        int array (channels,).
    """
    import numpy as np

    groups = -(-channels // GROUP)
    return (2 * (np.arange(channels) // GROUP) + 1) * taps // (2 * groups)


def kernel_of(height: int, width: int, channels: int):
    """The depthwise kernel (height, width, channels, 1), float32, of zeros and ones that makes the same moves."""
    import numpy as np

    kernel = np.zeros((height * width, channels, 1), "float32")
    kernel[tap_of_channels(channels, height * width), np.arange(channels)] = 1
    return kernel.reshape(height, width, channels, 1)
