"""Checks of what comes into a public operator: in Python where it is known, else in the graph."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from espace_tf.kernels.index_map import PADDED, check_indices, check_range
from espace_tf.kernels.reference import ACTIVATIONS, size_of

FLOATS = (tf.float32, tf.float16, tf.bfloat16, tf.float64)
Checks = list[tf.Operation]


@dataclass(frozen=True)
class Argument:
    """One argument of an operator.

    Args:
        name: as the caller wrote it.
        axes: what its axes are; a letter is one size in all arguments.
    """

    name: str
    axes: tuple[str, ...]

    @property
    def layout(self) -> str:
        """Words that begin every complaint about the shape."""
        return f"{self.name} must be [{', '.join(self.axes)}]"

    def tensor(self, value: object, dtype: tf.DType | None = None) -> tf.Tensor:
        """A tensor of this type (None: any float) and of the argument's rank.

        Raises:
            TypeError: not a tensor, or of another type.
            ValueError: of another rank.
        """
        try:
            hint = None if hasattr(value, "dtype") else dtype  # a hint would cast an array
            tensor = tf.convert_to_tensor(value, dtype_hint=hint)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self.name} must be a tensor or an array. Received: {value!r:.80}"
            ) from error
        allowed = FLOATS if dtype is None else (dtype,)
        if tensor.dtype not in allowed:
            names = ", ".join(one.name for one in allowed)
            words = names if len(allowed) == 1 else f"one of {names}"
            raise TypeError(f"{self.name} must be {words}. Received: dtype {tensor.dtype.name}")
        rank = len(self.axes)
        if tensor.shape.rank is None:
            # Graph optimisation would fold tf.debugging.assert_rank away: a shape is known below.
            name = f"{self.name}_must_have_rank_{rank}"
            return tf.ensure_shape(tensor, [None] * rank, name=name)
        if tensor.shape.rank != rank:
            raise ValueError(f"{self.layout}. Received: shape {tensor.shape}")
        return tensor

    def indices(self, value: object) -> np.ndarray | tf.Tensor:
        """The values, int32, if they are known now, else the tensor.

        Raises:
            TypeError: not int32.
            ValueError: of another rank, empty, or beyond int32.
        """
        if not isinstance(value, np.ndarray):
            if not hasattr(value, "dtype"):
                self._check_listed(value)
            tensor = self.tensor(value, tf.int32)
            value = tf.get_static_value(tensor)
            if value is None:
                return tensor
        check_indices(value, self.name, len(self.axes))
        return value

    def _check_listed(self, values: object) -> None:
        """Raises unless a list's integers fit into int32: TensorFlow would wrap them silently."""
        flat = tf.nest.flatten(values)
        if flat and all(type(each) is int for each in flat):
            flat = [min(flat), max(flat)]  # the others lie between
        for each in flat:
            if tf.is_tensor(each):
                continue
            array = np.asarray(each)
            if array.dtype.kind == "b":
                raise TypeError(f"{self.name} must be int32. Received: truth values")
            known = array.dtype.kind in "iu" or isinstance(each, int)
            limits = np.iinfo(np.int32)
            if known and ((array < limits.min) | (array > limits.max)).any():
                raise ValueError(
                    f"{self.name} must be int32, from {limits.min} to {limits.max}. "
                    f"Received: {each!r:.80}"
                )

    def must_agree(
        self, value: np.ndarray | tf.Tensor, axis: int, wanted: int | tf.Tensor, other: str
    ) -> Checks:
        """Raises, or returns the check to run, unless an axis has the size that `other` has."""
        size = size_of(value, axis)
        if not isinstance(size, int) or not isinstance(wanted, int):
            message = f"{self.layout} with {self.axes[axis]} as in {other}"
            return [tf.debugging.assert_equal(size, wanted, message=message)]
        if size != wanted:
            raise ValueError(
                f"{self.layout} with {self.axes[axis]} = {wanted} as in {other}. "
                f"Received: shape {tuple(value.shape)}"
            )
        return []

    def must_lie(self, indices: np.ndarray | tf.Tensor, low: int, size: int | tf.Tensor) -> Checks:
        """Raises, or returns the checks to run, unless all indices lie in [low, size)."""
        name = self.name
        if isinstance(indices, np.ndarray) and isinstance(size, int):
            check_range(indices, name, low, size)
            return []
        below = f"{name} must lie below the number of rows"
        return [
            tf.debugging.assert_positive(tf.size(indices), message=f"{name} must not be empty"),
            tf.debugging.assert_greater_equal(
                indices, low, message=f"{name} must be at least {low}"
            ),
            tf.debugging.assert_less(indices, size, message=below),
        ]


ROWS = Argument("rows", ("B", "M", "C"))
FILTER = Argument("filter", ("taps", "C", "N"))
DEPTHWISE = Argument("filter", ("taps", "C", "multiplier"))
TABLE = Argument("table", ("Q", "taps"))
SPREAD = Argument("spread", ("R",))


def convolution(
    layout: Argument, rows: object, filter: object, bias: object, table: object, spread: object
) -> tuple[tuple, Checks]:
    """The operands of a convolution, and the checks that the graph must run.

    Args:
        layout: FILTER or DEPTHWISE.
        rows, filter, bias, table, spread: as the caller gave them.
    """
    (rows, table, spread), checks = pooling(rows, table, spread)
    filter = layout.tensor(filter, rows.dtype)
    checks += layout.must_agree(filter, 1, size_of(rows, 2), "rows")
    checks += TABLE.must_agree(table, 1, size_of(filter, 0), "filter")
    if bias is not None:
        columns, name = size_of(filter, 2), "N"
        if layout is DEPTHWISE:
            columns, name = size_of(filter, 1) * columns, "C * multiplier"
        argument = Argument("bias", (name,))
        bias = argument.tensor(bias, rows.dtype)
        checks += argument.must_agree(bias, 0, columns, "filter")
    return (rows, filter, bias, table, spread), checks


def pooling(rows: object, table: object, spread: object) -> tuple[tuple, Checks]:
    """As `convolution`, of what is left without a filter."""
    rows = ROWS.tensor(rows)
    table = TABLE.indices(table)
    spread = None if spread is None else SPREAD.indices(spread)
    checks = TABLE.must_lie(table, PADDED, size_of(rows, 1))
    if spread is not None:
        checks += SPREAD.must_lie(spread, 0, size_of(table, 0))
    return (rows, table, spread), checks


def check_activation(activation: str) -> None:
    """Raises ValueError unless this is a key of ACTIVATIONS."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}. Received: {activation!r}")
