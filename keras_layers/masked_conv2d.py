"""A 2-D convolution that computes only the kept positions of its output."""

import keras

from espace_tf.keras_layers.chain import Link
from espace_tf.keras_layers.convolution import ConvolutionMixin


class MaskedConv2DMixin(ConvolutionMixin):
    """One convolution with one kernel; see `MaskedConv2D`."""

    def _chain(self) -> list[Link]:
        return [
            Link(
                weight="kernel",
                filters=self.filters,
                kernel_size=self.kernel_size,
                strides=self.strides,
                dilation_rate=self.dilation_rate,
                padding=self.padding,
            )
        ]


@keras.saving.register_keras_serializable("espace_tf")
class MaskedConv2D(MaskedConv2DMixin, keras.layers.Layer):
    """A Conv2D that computes the kept positions; every other one shows the nearest kept one.

    y[p] = activation(sum over taps of W[tap] x[input row of q and tap] + b), q = the kept position
    nearest to p (Euclidean, the lowest of equally near ones). The map of positions is fixed: it is
    looked up, not computed, in a call. With positions=None it equals `keras.layers.Conv2D`.

    Input shape: [B, H, W, C]; H and W must be known when the layer is built if positions are given.
    Output shape: [B, OH, OW, filters].
    Weights: kernel [kh, kw, C / groups, filters], bias [filters].

    Args:
        filters, kernel_size, ..., bias_constraint: as in `keras.layers.Conv2D`; channels last.
        positions: kept output positions y * OW + x; None keeps all.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Raises:
        ValueError: an argument, a position or an input shape that makes no sense.
        TypeError: positions that are not integers.

    Source: perforated convolutions (Figurnov et al., NIPS 2016, arXiv:1504.08362); ESPACE
    (AAAI 2017).

    Example:
        >>> layer = MaskedConv2D(8, 3, padding="same", positions=range(0, 36, 2))
        >>> layer(keras.ops.ones((1, 6, 6, 3))).shape
        TensorShape([1, 6, 6, 8])
    """

    _keras = keras
