"""Site: what the planner must know of one convolution, without the model it stands in."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from espace_tf.kernels.index_map import Geometry, conv_table, rows_read
from espace_tf.numerics.factors import ORDERS

Size = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One convolution layer of a model and every call of it.

    Args:
        path: layer names from the outermost model to the layer, joined by "/".
        kind: "conv", "depthwise", "separable", "transpose" or another word for what it is.
        kernel_size, strides, dilation_rate: one integer per spatial axis.
        padding: "valid" or "same".
        groups: of the channels; not used of a depthwise convolution.
        in_channels, filters: channels read and written.
        use_bias: whether it has a bias.
        activation: the name of its activation.
        policy: the name of its dtype policy.
        input_sizes, output_sizes: map sizes (H, W), one per call in the order of execution; None
            where a length is not known before the data come.
        skip: why the layer cannot be decomposed, masked or otherwise touched; None: it can.
        mask_skip: why its output cannot be masked; None: it can.

    Example:
        >>> site = Site(path="conv", kind="conv", kernel_size=(3, 3), in_channels=16, filters=32,
        ...             padding="same", input_sizes=((8, 8),), output_sizes=((8, 8),))
        >>> site.macs(), site.macs(rank=8), site.full_rank()
        (294912, 73728, 48)
    """

    path: str
    kind: str
    kernel_size: tuple[int, ...]
    in_channels: int
    filters: int
    input_sizes: tuple[Size, ...]
    output_sizes: tuple[Size, ...]
    strides: tuple[int, ...] = (1, 1)
    dilation_rate: tuple[int, ...] = (1, 1)
    padding: str = "valid"
    groups: int = 1
    use_bias: bool = True
    activation: str = "linear"
    policy: str = "float32"
    skip: str | None = None
    mask_skip: str | None = None

    def geometry(self) -> Geometry:
        """Where it reads and writes, if all its calls are of one known size.

        Raises:
            ValueError: the layer cannot be masked: it has no single geometry.
        """
        if self.skip or self.mask_skip:
            raise ValueError(f"{self.path} has no single geometry: {self.skip or self.mask_skip}")
        return self.geometry_of(self.input_sizes[0])

    def full_rank(self, order: str = "vertical") -> int:
        """The largest rank of its separable pair, per group: that of the matrix factored."""
        axis = _axis(order)
        reads = self.kernel_size[axis] * self.in_channels // self.groups
        return min(reads, self.kernel_size[1 - axis] * self.filters // self.groups)

    def break_even_rank(self, order: str = "vertical") -> float:
        """The rank, per group, at which the pair takes as many multiply-accumulates as the layer.

        Raises:
            ValueError: a map size is not known.
        """
        return self.macs() / self.macs(rank=1, order=order)

    def macs(
        self,
        rank: int | None = None,
        order: str = "vertical",
        positions: np.ndarray | None = None,
    ) -> int:
        """Multiply-accumulates per image, all calls together.

        Args:
            rank: of the separable pair, per group; None: not decomposed.
            order: which half of the pair comes first.
            positions: computed output positions; None: all. The first half of a pair computes what
                the second half reads.

        Raises:
            ValueError: a map size is not known, or a rank or a mask where none is possible.
        """
        if any(None in size for size in (*self.input_sizes, *self.output_sizes)):
            raise ValueError(
                f"the multiply-accumulates of {self.path} depend on its input size, which is not "
                f"known. Received: input sizes {self.input_sizes}"
            )
        calls = zip(self.input_sizes, self.output_sizes, strict=True)
        if rank is not None:
            return sum(self._pair_macs(rank, order, size, positions) for size, _ in calls)
        if positions is not None:
            return len(positions) * len(self.output_sizes) * self._macs_per_position()
        counted = self.input_sizes if self.kind == "transpose" else self.output_sizes
        return sum(math.prod(size) for size in counted) * self._macs_per_position()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Site":
        """The site of fields that JSON held.

        Raises:
            ValueError: a field is missing or unknown.
        """
        try:
            return cls(**{name: _to_tuple(value) for name, value in fields.items()})
        except TypeError as error:
            raise ValueError(f"not the description of a convolution: {error}") from error

    def geometry_of(self, input_size: Size) -> Geometry:
        """Where a call on a map of this size reads and writes."""
        return Geometry.of(self, input_size)

    def _macs_per_position(self) -> int:
        taps = math.prod(self.kernel_size)
        if self.kind == "depthwise":
            return taps * self.filters
        if self.kind == "separable":
            return self.in_channels * (taps + self.filters)
        return taps * (self.in_channels // self.groups) * self.filters

    def _pair_macs(
        self, rank: int, order: str, input_size: Size, positions: np.ndarray | None
    ) -> int:
        """Multiply-accumulates of one call of the pair: thin first half, thin second half."""
        axis = _axis(order)
        whole = self.geometry_of(input_size)
        between = list(input_size)
        between[axis] = whole.output_size[axis]

        def along(values: tuple[int, int]) -> tuple[int, int]:
            return tuple(1 if index == axis else value for index, value in enumerate(values))

        second = Geometry(
            kernel_size=along(self.kernel_size),
            input_size=tuple(between),
            strides=along(self.strides),
            dilation_rate=along(self.dilation_rate),
            padding=self.padding,
        )
        if positions is None:
            rows_first, rows_second = second.rows_in, second.rows_out
        else:
            rows_first = len(rows_read(conv_table(second, positions)))
            rows_second = len(positions)
        first = rows_first * self.kernel_size[axis] * self.in_channels * rank
        return first + rows_second * self.kernel_size[1 - axis] * rank * self.filters


def is_known(site: Site) -> bool:
    """Whether it is called, on maps of known sizes alone."""
    sizes = (*site.input_sizes, *site.output_sizes)
    return bool(sizes) and all(None not in size for size in sizes)


def no_mask(site: Site, least: int) -> str | None:
    """Why the output of this convolution is not masked; None: it can be.

    Args:
        least: a map whose height or width is below this is not masked.
    """
    if site.mask_skip or min(site.output_sizes[0]) >= least:
        return site.mask_skip
    height, width = site.output_sizes[0]
    return f"its {height} x {width} map is too small to mask: below {least} x {least}"


def _axis(order: str) -> int:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}. Received: {order!r}")
    return ORDERS.index(order)


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list | tuple) else value
