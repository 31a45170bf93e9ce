"""LayerPlan: what becomes of one convolution, and its form in a plan's file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espace_tf.checks import check_choice, check_count, check_number, check_text
from espace_tf.kernels.index_map import check_positions
from espace_tf.numerics.factors import ORDERS, Factors
from espace_tf.records import saving

_LARGEST = np.iinfo(np.int32).max
_PARTS = ("first", "second", "bias")
_FIELDS = ("rank", "order", "family", "output_size", "damage", "note")


@dataclass(frozen=True, eq=False, repr=False)
class LayerPlan:
    """What becomes of one convolution; valid once built.

    Args:
        rank: of the separable pair, per group; None: not decomposed.
        order: "vertical" (kh x 1 first) or "horizontal" (1 x kw first).
        positions: kept output positions y * OW + x, sorted int32; None: all are computed.
        factors: the pair's weights and bias, of this rank and order; None with a rank: the plain
            SVD of the layer's own.
        family: the mask family that the positions come from, if any.
        output_size: (OH, OW) of the map that the positions lie on; `keep` needs it.
        damage: predicted increase of the loss, if known: nats per image where the outputs are
            classes, else the relative squared error of the outputs.
        note: why only a part was done, such as no mask on a small map.

    Raises:
        TypeError, ValueError: a field that makes no sense; the message names it.

    Example:
        >>> LayerPlan(rank=8, positions=[0, 2, 5, 7], output_size=(4, 2)).keep
        0.5
    """

    rank: int | None = None
    order: str = "vertical"
    positions: np.ndarray | None = None
    factors: Factors | None = None
    family: str | None = field(default=None, kw_only=True)
    output_size: tuple[int, int] | None = field(default=None, kw_only=True)
    damage: float | None = field(default=None, kw_only=True)
    note: str | None = field(default=None, kw_only=True)

    def __post_init__(self):
        def put(name: str, check: Callable, *limits: Any) -> None:
            if getattr(self, name) is not None or name == "order":
                object.__setattr__(self, name, check(getattr(self, name), *limits))

        put("rank", check_count, "rank")
        put("order", check_choice, "order", ORDERS)
        put("family", check_text, "family")
        put("note", check_text, "note")
        put("damage", check_number, "damage", -math.inf)
        put("output_size", _checked_size)
        put("positions", check_positions, math.prod(self.output_size or (_LARGEST,)))
        if self.factors is not None:
            _check_factors(self.factors, self.rank, self.order)

    def __repr__(self) -> str:
        shown = {"rank": self.rank}
        if self.rank is not None:
            shown["order"] = self.order
        if self.positions is not None:
            shown["positions"] = f"<{len(self.positions)} kept>"
        optional = ("family", "output_size", "damage", "note", "factors")
        shown |= {name: getattr(self, name) for name in optional}
        given = ", ".join(
            f"{name}={value if name == 'positions' else repr(value)}"
            for name, value in shown.items()
            if value is not None
        )
        return f"LayerPlan({given})"

    @property
    def keep(self) -> float | None:
        """Share of the output positions computed; None if the map's size is not known."""
        if self.positions is None:
            return 1.0
        return len(self.positions) / math.prod(self.output_size) if self.output_size else None

    @property
    def is_pointwise(self) -> bool:
        """Whether its factors are those of a 1 x 1 kernel, of which both orders are the same."""
        pair = self.factors
        return pair is not None and {*np.shape(pair.first)[:2], *np.shape(pair.second)[:2]} == {1}

    def to_json(self, index: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What JSON holds of it, and its arrays by the names "index/part"."""
        stored = {} if self.positions is None else {"positions": self.positions}
        for part in _PARTS if self.factors is not None else ():
            if getattr(self.factors, part) is not None:
                stored[part] = getattr(self.factors, part)
        entry = {
            **{key: getattr(self, key) for key in _FIELDS},
            "index": index,
            "positions": self.positions is not None,
            "factors": [part for part in _PARTS if part in stored],
        }
        return entry, {f"{index}/{part}": array for part, array in stored.items()}

    @classmethod
    def from_json(cls, entry: Any, arrays: Mapping[str, np.ndarray]) -> "LayerPlan":
        """What `to_json` gave, after a way through a file and an editor.

        Raises:
            TypeError, ValueError: a field that is missing or makes no sense; the message names it.
        """
        own = saving.fields(entry, (*_FIELDS, "index", "positions", "factors"))
        check_count(own["index"], "index", 0)
        check_choice(own["positions"], "positions", (True, False))
        if own["factors"] not in ([], list(_PARTS[:2]), list(_PARTS)):
            raise ValueError(
                'factors must be [], ["first", "second"] or ["first", "second", "bias"]. '
                f"Received: {own['factors']!r}"
            )
        parts = [*own["factors"], *["positions"] * own["positions"]]
        missing = [part for part in parts if f"{own['index']}/{part}" not in arrays]
        if missing:
            raise ValueError(f"index {own['index']} has no {missing[0]} in the plan's array file")
        stored = {part: arrays[f"{own['index']}/{part}"] for part in parts}
        return cls(
            **{key: own[key] for key in _FIELDS},
            positions=stored.pop("positions", None),
            factors=Factors(**stored) if stored else None,
        )


def _checked_size(size: Any) -> tuple[int, int]:
    """(OH, OW) as Python integers."""
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"output_size must be two integers (OH, OW). Received: {size!r}")
    return check_count(size[0], "output_size"), check_count(size[1], "output_size")


def _check_factors(factors: Any, rank: int | None, order: str) -> None:
    """Raises unless the factors are a pair of this rank and order.

    A pair says both by its shapes: vertical first it is [kh, 1, ...] and [1, kw, rank, ...],
    horizontal first [1, kw, ...] and [kh, 1, rank, ...].
    """
    if not isinstance(factors, Factors):
        raise TypeError(f"factors must be Factors or None. Received: {factors!r}")
    if rank is None:
        raise ValueError("factors were given without a rank: pass their rank too")
    first, second = np.shape(factors.first), np.shape(factors.second)
    if len(first) != 4 or len(second) != 4 or not second[2] or first[3] % second[2]:
        raise ValueError(
            "factors must be [., ., channels, rank * groups] and [., ., rank, filters]. "
            f"Received: shapes {first} and {second}"
        )
    orders = [
        name
        for name, (whole, single) in zip(ORDERS, ((0, 1), (1, 0)), strict=True)
        if first[single] == second[whole] == 1
    ]
    if second[2] != rank or order not in orders:
        raise ValueError(
            f"rank {rank} and order {order!r} do not go with the factors, whose shapes {first} and "
            f"{second} are those of rank {second[2]}, {' or '.join(orders) or 'no order'} first: "
            'set factors to None (in plan.json: "factors": []) to have plain SVD factors computed'
        )
    for name in _PARTS:
        values = getattr(factors, name)
        if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
            raise ValueError(f"factors must be finite. Received: NaN or infinity in {name!r}")
