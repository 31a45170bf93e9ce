"""The constructor arguments of the convolution layers and their way into a configuration."""

from collections.abc import Callable, Sequence

from espace_tf.checks import check_choice, check_count
from espace_tf.keras_layers.texts import read_positions, write_positions
from espace_tf.kernels.index_map import Geometry

SERIALIZED = {  # constructor argument -> the Keras family that serializes it
    "activation": "activations",
    "kernel_initializer": "initializers",
    "bias_initializer": "initializers",
    "kernel_regularizer": "regularizers",
    "bias_regularizer": "regularizers",
    "activity_regularizer": "regularizers",
    "kernel_constraint": "constraints",
    "bias_constraint": "constraints",
}
PLAIN = (
    *("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups"),
    *("data_format", "use_bias"),
)


def lower_choice(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """The value in lower case, or ValueError if it is not one of those allowed."""
    value = value.lower() if isinstance(value, str) else value
    check_choice(value, name, allowed)
    return value


class ArgumentsMixin:
    """The arguments of `keras.layers.Conv2D`, in its order, then `positions`.

    `_keras` is the library (keras or tf_keras) of the Layer class that this is mixed into.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        *,
        positions: Sequence[int] | dict | None = None,
        **kwargs,
    ):
        keras = self._keras
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"{type(self).__name__} needs Keras on TensorFlow: set KERAS_BACKEND=tensorflow. "
                f"Received: the backend {keras.backend.backend()!r}"
            )
        super().__init__(
            activity_regularizer=keras.regularizers.get(activity_regularizer), **kwargs
        )
        data_format = data_format or keras.backend.image_data_format()
        self.data_format = lower_choice(data_format, "data_format", ("channels_last",))
        self.filters = check_count(filters, "filters")
        self.groups = check_count(groups, "groups")
        if filters % groups:
            raise ValueError(f"groups must divide filters. Received: {filters=}, {groups=}")
        self._set_steps(kernel_size, strides, dilation_rate)
        self.padding = lower_choice(padding, "padding", ("valid", "same"))
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.positions, self._map_size = read_positions(positions)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def _set_steps(self, kernel_size, strides, dilation_rate):
        # A geometry checks the three pairs; with "same" padding any kernel fits a single position.
        steps = Geometry(
            kernel_size=kernel_size,
            input_size=(1, 1),
            strides=strides,
            dilation_rate=dilation_rate,
            padding="same",
        )
        if max(steps.strides) > 1 and max(steps.dilation_rate) > 1:
            raise ValueError(
                "strides and dilation_rate cannot both be greater than 1. Received: "
                f"strides={steps.strides}, dilation_rate={steps.dilation_rate}"
            )
        self.kernel_size, self.strides = steps.kernel_size, steps.strides
        self.dilation_rate = steps.dilation_rate

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(OH, OW) of the map that `positions` are of; None while it is not known."""
        return self._map_size

    def get_config(self):
        """Everything that the constructor takes."""
        config = {name: getattr(self, name) for name in PLAIN}
        for name, family in SERIALIZED.items():
            config[name] = getattr(self._keras, family).serialize(getattr(self, name))
        config["positions"] = write_positions(self.positions, self._map_size)
        return {**super().get_config(), **config}
