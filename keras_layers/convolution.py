"""What the convolution layers share: weights, index maps, and the way through a call."""

import tensorflow as tf
from espace_tf.keras_layers.arguments import ArgumentsMixin
from espace_tf.keras_layers.chain import ChainMaps, Link, chain_maps
from espace_tf.kernels.index_map import IndexMap
from espace_tf.kernels.reference import ACTIVATIONS

from espace_tf import kernels


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
    """

    fade = None

    def _chain(self) -> list[Link]:
        raise NotImplementedError

    def __setattr__(self, name, value):
        if name == "fade":  # past what either library tracks
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def build(self, input_shape):
        """Makes the weights and, where the map's size is known, the index maps."""
        _, *size, channels = input_shape
        if channels is None or channels % self.groups:
            raise ValueError(
                "The number of input channels must be known and divisible by groups. "
                f"Received: input shape {tuple(input_shape)}, groups={self.groups}"
            )
        self.input_spec = self._keras.layers.InputSpec(ndim=4, axes={-1: channels})
        self._add_weights(channels)
        self._build_maps(tuple(size))
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

    def _build_maps(self, size: tuple[int | None, int | None]):
        self._maps = None
        if None not in size:
            self._maps = chain_maps(self._chain(), size, self.positions)
        if self.positions is None:
            return
        if self._maps is None:
            raise ValueError(
                f"positions need an input of known height and width. Received: {size}; give the "
                "model an Input of fixed size, or positions=None"
            )
        if self._map_size not in (None, self._maps.output_size):
            raise ValueError(
                f"positions were chosen on an output map of {self._map_size}; an input of {size} "
                f"gives a map of {self._maps.output_size}: choose them again for this size"
            )
        self._map_size = self._maps.output_size

    def call(self, inputs, training=None):
        """The outputs [B, OH, OW, filters] of inputs [B, H, W, C]; see `fade` for training."""
        route, size = self._maps, tuple(inputs.shape[1:3])
        if route is None or (self.positions is None and size != route.input_size):
            return self._run(inputs, None)  # a dense convolution takes any size
        if not inputs.shape[1:3].is_compatible_with(route.input_size):
            raise ValueError(
                f"{self.name} keeps positions of an input of height and width {route.input_size}. "
                f"Received: {size}"
            )
        if None in size:  # a pipeline that hides its sizes
            inputs = tf.ensure_shape(inputs, [None, *route.input_size, None])
        if self.fade is None or not training or route.shown is None:
            return self._run(inputs, route)
        dense = self._run(inputs, None)
        masked = tf.reshape(dense, [-1, len(route.shown), self.filters])
        masked = tf.gather(masked, route.shown, axis=1)
        masked = tf.reshape(masked, [-1, *route.output_size, self.filters])
        fade = self.fade() if callable(self.fade) else self.fade
        fade = tf.cast(tf.convert_to_tensor(fade), dense.dtype)
        return fade * masked + (1 - fade) * dense

    def _run(self, values, route: ChainMaps | None):
        """The chain through its index maps, or (None) densely on a map of any size."""
        links, fused = self._chain(), self._fused_activation()
        for index, link in enumerate(links):
            last = index == len(links) - 1
            bias = self.bias if last else None
            values = self._convolve(
                values, link, bias, fused if last and fused else "none", route and route.maps[index]
            )
        if route is not None:
            values = tf.reshape(values, [-1, *route.output_size, self.filters])
        return values if fused else self.activation(values)

    def _convolve(self, values, link: Link, bias, activation: str, index_map: IndexMap | None):
        weight = tf.convert_to_tensor(getattr(self, link.weight))  # in the compute dtype
        bias = None if bias is None else tf.convert_to_tensor(bias)
        options = {"activation": activation, "groups": self.groups}
        if index_map is None:
            steps = {"strides": link.strides, "dilation_rate": link.dilation_rate}
            return kernels.conv2d(values, weight, bias, padding=link.padding, **steps, **options)
        values = kernels.apply_map(values, weight, bias, index_map, **options)
        if index_map.geometry is None:
            return values  # packed
        return tf.reshape(values, [-1, *index_map.geometry.output_size, link.filters])

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
        for link in self._chain():
            size = [link.output_length(length, axis) for axis, length in enumerate(size)]
        return (batch, *size, self.filters)
