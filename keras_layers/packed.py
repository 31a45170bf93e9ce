"""Layers of a packed region beside its convolutions: gathering rows, pooling, global average.

Keras 3 only: a packed region is made by inserting layers into a graph, which tf_keras's
`clone_model` does not do.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from espace_tf import kernels
from espace_tf.keras_layers.chain import check_option
from espace_tf.keras_layers.packing import ZEROS, as_rows, encode_rows
from espace_tf.kernels.index_map import PADDED, check_range


class _Rows(keras.layers.Layer):
    """What the layers here share: [B, H, W, C] or packed rows [B, M, 1, C] come in as rows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def _check(self, rows: np.ndarray, input_shape) -> None:
        _, height, width, _ = input_shape
        if None in (height, width):
            raise ValueError(
                f"{self.name} needs an input of known size. Received: {tuple(input_shape)}"
            )
        check_range(rows, f"the rows that {self.name} reads", PADDED, height * width)

    def build(self, input_shape):
        """Checks that the input has the rows that are read."""
        self._check(self._read, input_shape)
        super().build(input_shape)

    def tables(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Which input rows are read, and which of the computed rows are shown; None: all."""
        return self._read, getattr(self, "_spread", None)

    @staticmethod
    def _flat(inputs):
        return tf.reshape(inputs, [-1, inputs.shape[1] * inputs.shape[2], inputs.shape[3]])


@keras.saving.register_keras_serializable("espace_tf")
class GatherRows(_Rows):
    """Rows of a map, or a map out of rows: where a packed region begins, is repacked or ends.

    output[b, r] = input[b, rows[r]] over flattened positions, zeros where rows[r] is -1.

    Input shape: [B, H, W, C] or packed rows [B, M, 1, C].
    Output shape: [B, *output_size, C].

    Args:
        rows: integers [R], or as the configuration has them.
        output_size: (OH, OW) with OH * OW = R; None: (R, 1), packed rows.
        **kwargs: `name`, `dtype` of a Keras layer.

    Raises:
        ValueError: rows that the input does not have, or of another number than the output.

    Example:
        >>> GatherRows([1, 1, 0, 1], (2, 2))(keras.ops.ones((3, 2, 1, 5))).shape
        TensorShape([3, 2, 2, 5])
    """

    def __init__(self, rows: str | Sequence[int], output_size=None, **kwargs):
        super().__init__(**kwargs)
        self._read = as_rows(rows, "rows")
        height, width = output_size or (len(self._read), 1)
        self.output_size = (int(height), int(width))
        if height * width != len(self._read):
            raise ValueError(
                f"output_size must have {len(self._read)} positions, one a row. "
                f"Received: {self.output_size}"
            )

    def call(self, inputs):
        """[B, *output_size, C]."""
        rows, read = self._flat(inputs), self._read
        if read.min() < 0:
            rows, read = tf.pad(rows, [[0, 0], [1, 0], [0, 0]]), read + 1
        return tf.reshape(tf.gather(rows, read, axis=1), [-1, *self.output_size, inputs.shape[3]])

    def compute_output_shape(self, input_shape):
        """(B, *output_size, C)."""
        return (input_shape[0], *self.output_size, input_shape[3])

    def get_config(self):
        """Everything that the constructor takes."""
        own = {"rows": encode_rows(self._read), "output_size": list(self.output_size)}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("espace_tf")
class PackedPooling2D(_Rows):
    """A pooling whose windows are a table of rows: on packed rows, to packed rows or a map.

    Each computed row is the largest, or the average, of the input rows in its line of the table; -1
    reads nothing, and an average is over what is read. At least one row of a line is read.

    Input shape: [B, H, W, C] or packed rows [B, M, 1, C].
    Output shape: [B, Q, 1, C], or [B, *output_size, C] with a spread.

    Args:
        pooling: "max" or "average".
        table: integers [Q, taps], or flat as the configuration has them.
        taps: of a table that is given flat.
        spread: integers [OH * OW], the computed row that each output position shows; None: the
            computed rows as they are.
        output_size: (OH, OW) of a spread.
        **kwargs: `name`, `dtype` of a Keras layer.

    Raises:
        ValueError: tables that the input or each other does not fit.

    Example:
        >>> layer = PackedPooling2D("max", [[0, 1], [2, -1]])
        >>> layer(keras.ops.ones((3, 3, 1, 5))).shape
        TensorShape([3, 2, 1, 5])
    """

    def __init__(self, pooling, table, taps=None, spread=None, output_size=None, **kwargs):
        super().__init__(**kwargs)
        self.pooling = check_option(pooling, "pooling", ("max", "average"))
        if not isinstance(table, str):
            taps = np.shape(table)[-1]
        flat = as_rows(table if isinstance(table, str) else np.ravel(table), "table")
        self._read = flat.reshape(-1, taps)
        if (self._read.max(axis=1) < 0).any():
            raise ValueError("table must read at least one row in each line. Received: all -1")
        self._spread = None if spread is None else as_rows(spread, "spread")
        self.output_size = (len(self._read), 1)
        if spread is not None:
            check_range(self._spread, "spread", 0, len(self._read))
            self.output_size = tuple(int(length) for length in output_size)

    def call(self, inputs):
        """The pooled rows, or the map that they are spread over."""
        pool = kernels.max_pool if self.pooling == "max" else kernels.avg_pool
        rows = pool(self._flat(inputs), self._read, self._spread)
        return tf.reshape(rows, [-1, *self.output_size, inputs.shape[3]])

    def compute_output_shape(self, input_shape):
        """(B, Q, 1, C) or (B, *output_size, C)."""
        return (input_shape[0], *self.output_size, input_shape[3])

    def get_config(self):
        """Everything that the constructor takes."""
        spread = None if self._spread is None else encode_rows(self._spread)
        own = {"pooling": self.pooling, "table": encode_rows(self._read.ravel())}
        own |= {"taps": self._read.shape[1], "spread": spread}
        own["output_size"] = None if spread is None else list(self.output_size)
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("espace_tf")
class PackedGlobalAveragePooling2D(_Rows):
    """The mean over the map that packed rows stand for: each row counts as often as it is shown.

    Input shape: packed rows [B, M, 1, C].
    Output shape: [B, C], or [B, 1, 1, C] with keepdims.

    Args:
        shown: integers [H * W], the row that each position shows, -1 for zeros.
        keepdims: as in `keras.layers.GlobalAveragePooling2D`.
        **kwargs: `name`, `dtype` of a Keras layer.

    Raises:
        ValueError: rows that the input does not have.

    Example:
        >>> rows = keras.ops.reshape(keras.ops.arange(2.0), (1, 2, 1, 1))
        >>> float(PackedGlobalAveragePooling2D([0, 1, 1, 1])(rows)[0, 0])
        0.75
    """

    def __init__(self, shown: str | Sequence[int], keepdims: bool = False, **kwargs):
        super().__init__(**kwargs)
        self._read, self.keepdims = as_rows(shown, "shown"), bool(keepdims)

    def call(self, inputs):
        """[B, C] or [B, 1, 1, C]."""
        rows = self._flat(inputs)
        counts = np.bincount(self._read[self._read != ZEROS], minlength=rows.shape[1])
        shares = tf.constant(counts / len(self._read), rows.dtype)
        mean = tf.reduce_sum(rows * shares[:, None], axis=1)
        return tf.reshape(mean, [-1, 1, 1, inputs.shape[3]]) if self.keepdims else mean

    def compute_output_shape(self, input_shape):
        """(B, C) or (B, 1, 1, C)."""
        batch, *_, channels = input_shape
        return (batch, 1, 1, channels) if self.keepdims else (batch, channels)

    def get_config(self):
        """Everything that the constructor takes."""
        own = {"shown": encode_rows(self._read), "keepdims": self.keepdims}
        return {**super().get_config(), **own}
