"""What the convolution layers share: weights, index maps, and the way through a call."""

import tensorflow as tf

from espace_tf import kernels
from espace_tf.keras_layers.arguments import ArgumentsMixin
from espace_tf.keras_layers.chain import ChainMaps, Link, chain_maps
from espace_tf.kernels.index_map import IndexMap
from espace_tf.kernels.reference import ACTIVATIONS, by_channel


class ConvolutionMixin(ArgumentsMixin):
    """A chain of bias-free convolutions, then bias and activation, computed at kept positions.

    A layer gives its chain in `_chain`; everything else is here.

    Attributes:
        positions: int32 [Q], the kept flattened output positions y * OW + x, or None for all.
        fade: None, or a scalar in [0, 1] (tensor, variable, number, or a function that returns
            one). When set, a call with training=True computes every position and returns
            fade * masked + (1 - fade) * dense: training can pass from the dense layer (0) to the
            masked one (1). Inference always uses the mask. It belongs to a training run: neither
            tracked nor saved. A traced function keeps what it found: assign to a variable to change
            the value, but set or clear the attribute before the tracing.
        between: None, or a function of what one convolution of the chain hands to the next.
        int8: whether it trains for a file of integers, which needs convolutions in the place of
            matrix products, and what is computed quantized before it is shown.
    """

    fade = None
    between = None
    int8 = False
    _maps = None

    def _chain(self) -> list[Link]:
        """The convolutions, first to last: what a layer has to say."""
        raise NotImplementedError

    def __setattr__(self, name, value):
        if name == "fade":  # past what either library tracks
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def build(self, input_shape):
        """Makes the weights and, where positions are given, the index maps."""
        _, *size, channels = input_shape
        if channels is None or channels % self.groups:
            raise ValueError(
                "The number of input channels must be known and divisible by groups. "
                f"Received: input shape {tuple(input_shape)}, groups={self.groups}"
            )
        self.compute_output_shape(input_shape)  # or an error in words
        self.input_spec = self._keras.layers.InputSpec(ndim=4, axes={-1: channels})
        self._add_weights(channels)
        self._maps = None if self.positions is None else self._make_maps(tuple(size))
        super().build(input_shape)

    def _add_weights(self, channels: int):
        for index, link in enumerate(self._chain()):
            initializer = self.kernel_initializer
            if index and hasattr(initializer, "get_config"):  # never the same draws twice
                initializer = type(initializer).from_config(initializer.get_config())
            weight = self.add_weight(
                name=link.weight,
                shape=(*link.kernel_size, channels // self.groups, link.filters),
                initializer=initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
                trainable=True,
            )
            setattr(self, link.weight, weight)
            channels = link.filters
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                trainable=True,
            )

    def _make_maps(self, size: tuple[int | None, int | None]) -> ChainMaps:
        if None in size:
            raise ValueError(
                f"positions need an input of known height and width. Received: {size}; give the "
                "model an Input of fixed size, or positions=None"
            )
        maps = chain_maps(self._chain(), size, self.positions)
        output_size = self._output_size(size)
        if self._map_size not in (None, output_size):
            raise ValueError(
                f"positions were chosen on an output map of {self._map_size}; an input of {size} "
                f"gives a map of {output_size}: choose them again for this size"
            )
        self._map_size = output_size
        return maps

    def _output_size(self, size):
        """(OH, OW) of the map that the chain makes of one of this size."""
        for link in self._chain():
            size = tuple(link.output_length(length, axis) for axis, length in enumerate(size))
        return size

    def call(self, inputs, training=None):
        """The outputs [B, OH, OW, filters] of inputs [B, H, W, C]; see `fade` for training."""
        maps, size = self._maps, tuple(inputs.shape[1:3])
        if maps is None:
            return self._run(inputs)  # on a map of any size
        self._check_size(size)
        if None in size:  # a pipeline that hides its sizes
            inputs = tf.ensure_shape(inputs, [None, *maps.input_size, None])
        if self.fade is None or not training or maps.shown is None:
            return self._run(inputs, maps)
        dense = self._run(inputs)
        masked = tf.reshape(dense, [-1, len(maps.shown), self.filters])
        masked = tf.gather(masked, maps.shown, axis=1)
        masked = tf.reshape(masked, [-1, *maps.output_size, self.filters])
        fade = self.fade() if callable(self.fade) else self.fade
        fade = tf.cast(tf.convert_to_tensor(fade), dense.dtype)
        return fade * masked + (1 - fade) * dense

    def _check_size(self, size) -> None:
        """Raises unless the kept positions are those of an input of this height and width."""
        wanted = None if self._maps is None else self._maps.input_size
        if wanted and any(a not in (None, b) for a, b in zip(size, wanted, strict=True)):
            raise ValueError(
                f"{self.name} keeps positions of an input of height and width {wanted}. "
                f"Received: {tuple(size)}"
            )

    def reads_tables(self) -> list[bool]:
        """Of each convolution of the layer whether it computes some positions only."""
        if self._maps is None:
            return [False] * len(self._chain())
        return [step.geometry is None for step in self._maps.maps]

    def index_maps(self, size: tuple[int, int]) -> list[tuple[str, int, IndexMap]]:
        """(name of its weight, output channels, index map) of each convolution, built or not.

        Args:
            size: (H, W) of the input.
        """
        maps = self._maps or chain_maps(self._chain(), size, self.positions)
        steps = zip(self._chain(), maps.maps, strict=True)
        return [(link.weight, link.filters, index_map) for link, index_map in steps]

    def _run(self, values, maps: ChainMaps | None = None):
        """The chain through its index maps, or without them at every position."""
        links, fused = self._chain(), self._fused_activation()
        if self.int8 and maps is not None and maps.shown is not None:
            return self._run_int8(values, maps)
        for index, link in enumerate(links):
            last = index == len(links) - 1
            index_map = None if maps is None else maps.maps[index]
            bias = tf.convert_to_tensor(self.bias) if last and self.use_bias else None
            values = self._convolve(
                values, link, bias, fused if last and fused else "none", index_map
            )
            if self.between is not None and not last:
                values = self.between(values)
        if maps is not None and maps.shown is not None:
            values = tf.reshape(values, [-1, *maps.output_size, self.filters])
        return values if fused else self.activation(values)

    def _run_int8(self, values, maps: ChainMaps):
        """As `_run`, with the activation right after the last convolution."""
        for link, index_map in zip(self._chain(), maps.maps, strict=True):
            last = link.weight == self._chain()[-1].weight
            spread = index_map.spread
            if last:
                index_map = IndexMap(index_map.table, None, index_map.rows_in)
            bias = tf.convert_to_tensor(self.bias) if last and self.use_bias else None
            values = self._convolve(values, link, bias, "none", index_map)
            if last:
                values = tf.gather(self.activation(values), spread, axis=1)
            elif self.between is not None:
                values = self.between(values)
        return tf.reshape(values, [-1, *maps.output_size, self.filters])

    def _convolve(self, values, link: Link, bias, activation: str, index_map: IndexMap | None):
        """One convolution; a full map runs dense and stays a map, any other one gives rows."""
        weight = tf.convert_to_tensor(getattr(self, link.weight))  # in the compute dtype
        options = {"activation": activation, "groups": self.groups}
        if index_map is not None and index_map.geometry is None:
            apply = by_channel(kernels.apply_map) if self.int8 else kernels.apply_map
            return apply(values, weight, bias, index_map, **options)
        return kernels.conv2d(
            values,
            weight,
            bias,
            strides=link.strides,
            dilation_rate=link.dilation_rate,
            padding=link.padding,
            **options,
        )

    def _fused_activation(self) -> str | None:
        """The operator's name of the activation, or None where it has to be applied after it."""
        if self.activation is self._keras.activations.linear:
            return "none"
        # Keras's losses look for the logits on what its own sigmoid returns: that one stays last.
        for name in sorted(ACTIVATIONS.keys() - {"sigmoid"}):
            if getattr(self._keras.activations, name, None) is self.activation:
                return name
        return None

    def compute_output_shape(self, input_shape):
        """(B, OH, OW, filters) for (B, H, W, C); unknown lengths stay unknown."""
        batch, *size, _ = input_shape
        self._check_size(size)
        return (batch, *self._output_size(size), self.filters)
