"""A 2-D convolution of low rank: two thin ones, one along each axis."""

import keras

from espace_tf.checks import check_count
from espace_tf.keras_layers.arguments import lower_choice
from espace_tf.keras_layers.chain import Link
from espace_tf.keras_layers.convolution import ConvolutionMixin
from espace_tf.numerics.factors import ORDERS


class DecomposedConv2DMixin(ConvolutionMixin):
    """Two convolutions with thin kernels; see `DecomposedConv2D`."""

    def __init__(self, filters, kernel_size, rank: int, order: str = "vertical", *args, **kwargs):
        super().__init__(filters, kernel_size, *args, **kwargs)
        self.rank = check_count(rank, "rank")
        self.order = lower_choice(order, "order", ORDERS)

    def _add_weights(self, channels: int):
        axis = ORDERS.index(self.order)
        reads = self.kernel_size[axis] * channels // self.groups
        writes = self.kernel_size[1 - axis] * self.filters // self.groups
        if self.rank > min(reads, writes):
            raise ValueError(
                f"rank must be at most {min(reads, writes)}, the full rank of a {self.order}-first "
                f"kernel (of each group). Received: {self.rank}"
            )
        super()._add_weights(channels)

    def _chain(self) -> list[Link]:
        axis = ORDERS.index(self.order)

        def link(weight: str, filters: int, axis: int) -> Link:
            pairs = {
                name: tuple(n if i == axis else 1 for i, n in enumerate(getattr(self, name)))
                for name in ("kernel_size", "strides", "dilation_rate")
            }
            return Link(weight=weight, filters=filters, padding=self.padding, **pairs)

        between = self.rank * self.groups
        return [link("first_kernel", between, axis), link("second_kernel", self.filters, 1 - axis)]

    def get_config(self):
        """Everything that the constructor takes."""
        return {**super().get_config(), "rank": self.rank, "order": self.order}


@keras.saving.register_keras_serializable("espace_tf")
class DecomposedConv2D(DecomposedConv2DMixin, keras.layers.Layer):
    """A Conv2D whose kernel is the product of a vertical and a horizontal one, through `rank` maps.

    order="vertical": first kh x 1 (stride sh, dilation dh) from the input to `rank` channels (a
    group), then 1 x kw (stride sw, dilation dw) from those to the filters, the bias and the
    activation; "horizontal": first 1 x kw, then kh x 1. Between them there is neither bias nor
    nonlinearity, so that it equals a Conv2D with kernel
    W[a, b, c, n] = sum_k first[a, 0, c, k] second[0, b, k, n] (vertical).
    With positions, the second one computes the kept positions of the output only, every other one
    shows the nearest kept one, and the first one computes just the rows that the second one reads.

    Input shape: [B, H, W, C]; H and W must be known when the layer is built if positions are given.
    Output shape: [B, OH, OW, filters].
    Weights, vertical: first_kernel [kh, 1, C / groups, rank * groups], second_kernel
    [1, kw, rank, filters], bias [filters]; horizontal: [1, kw, ...], [kh, 1, ...].

    Args:
        filters, kernel_size, strides, ..., bias_constraint: as in `keras.layers.Conv2D` (channels
            last); kernel_* hold for both kernels.
        rank: channels between the two convolutions, of each group.
        order: "vertical" or "horizontal", the first one's axis.
        positions: kept output positions y * OW + x; None keeps all.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Raises:
        ValueError: an argument, a position or an input shape that makes no sense.
        TypeError: positions that are not integers.

    Source: Jaderberg et al., BMVC 2014 (arXiv:1405.3866); Tai et al., ICLR 2016
    (arXiv:1511.06067); with positions: ESPACE (AAAI 2017), Figurnov et al., NIPS 2016.

    Example:
        >>> layer = DecomposedConv2D(8, 3, rank=4, order="horizontal", padding="same")
        >>> layer(keras.ops.ones((1, 6, 6, 3))).shape, layer.first_kernel.shape
        (TensorShape([1, 6, 6, 8]), TensorShape([1, 3, 3, 4]))
    """

    _keras = keras
