"""Plan and LayerPlan: what becomes of every convolution, as data that `apply` only carries out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf import masks, plan_files
from espace_tf.config import MASK_FAMILIES, EspaceConfig, check_choice, check_count, check_number
from espace_tf.kernels.index_map import check_positions
from espace_tf.low_rank import Factors
from espace_tf.sites import ORDERS, Site

_LARGEST = np.iinfo(np.int32).max
_FACTORS = ("first", "second", "bias")


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What becomes of one convolution; valid once built.

    Args:
        rank: of the separable pair, per group; None: not decomposed.
        order: "vertical" (kh x 1 first) or "horizontal" (1 x kw first).
        positions: kept output positions y * OW + x, sorted int32; None: all are computed.
        interpolation: how a position that is not kept gets its value: "nearest".
        factors: the pair's weights and bias; None with a rank: the plain SVD of the layer's own.
        family: the mask family that the positions come from, if any.
        output_size: (OH, OW) of the map that the positions lie on; `keep` needs it.
        damage: predicted increase of the loss per sample, if known.
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
    interpolation: str = "nearest"
    factors: Factors | None = None
    family: str | None = field(default=None, kw_only=True)
    output_size: tuple[int, int] | None = field(default=None, kw_only=True)
    damage: float | None = field(default=None, kw_only=True)
    note: str | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.rank is not None:
            check_count(self.rank, "rank")
            object.__setattr__(self, "rank", int(self.rank))
        check_choice(self.order, "order", ORDERS)
        check_choice(self.interpolation, "interpolation", ("nearest",))
        if self.output_size is not None:
            object.__setattr__(self, "output_size", tuple(map(int, self.output_size)))
        if self.positions is not None:
            size = _LARGEST if self.output_size is None else math.prod(self.output_size)
            object.__setattr__(self, "positions", check_positions(self.positions, size))
        if self.factors is not None:
            _check_factors(self.factors, self.rank)

    @property
    def keep(self) -> float | None:
        """Share of the output positions computed; None if the map's size is not known."""
        if self.positions is None:
            return 1.0
        return len(self.positions) / math.prod(self.output_size) if self.output_size else None


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One convolution of a plan, for tables; None is not known.

    Args:
        before_ms, after_ms: predicted milliseconds of the layer, all calls together.
        keep: share of the output positions computed.
        reason: why it was left alone, or why only a part was done.
    """

    path: str
    before_ms: float | None = None
    after_ms: float | None = None
    rank: int | None = None
    order: str | None = None
    family: str | None = None
    keep: float | None = 1.0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What becomes of every convolution of a model: what `plan` chooses and `apply` does.

    Args:
        layers: path -> what is done there.
        skipped: path -> why nothing is done there.
        fingerprint: of the model's architecture (graph.fingerprint); None: not checked by `apply`.
        profile: the profile it was made with, or "uniform".
        speedup: what was asked for, if anything.
        dense_ms, predicted_ms: milliseconds of one call of the whole model before and after.
        measured_speedup: time of the whole model before over after, as `compress` measured it.
        times: path -> (before, after), predicted milliseconds of the layer, all calls together.
        packed: whether `apply` makes packed regions, in which masked convolutions hand on only the
            rows that they compute.

    Example:
        >>> plan = Plan(layers={"conv2": LayerPlan(rank=8)}, skipped={"conv1": "kernel too small"})
        >>> [(row.path, row.rank, row.reason) for row in plan.summary()]
        [('conv2', 8, None), ('conv1', None, 'kernel too small')]
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    profile: str = "default"
    speedup: float | None = None
    dense_ms: float | None = None
    predicted_ms: float | None = None
    measured_speedup: float | None = None
    times: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    packed: bool = False

    def __post_init__(self):
        for path, layer in self.layers.items():
            if not isinstance(layer, LayerPlan):
                raise TypeError(f"layers[{path!r}] must be a LayerPlan. Received: {layer!r}")
        both = sorted(set(self.layers) & set(self.skipped))
        if both:
            raise ValueError(f"a layer is either planned or skipped. Received both for: {both}")

    @property
    def predicted_speedup(self) -> float | None:
        """Dense time over predicted time; None if the times are not known."""
        return self.dense_ms / self.predicted_ms if self.dense_ms and self.predicted_ms else None

    def summary(self) -> list[SummaryRow]:
        """One row per convolution, in order of execution as far as that is known."""
        paths = dict.fromkeys([*self.times, *self.layers, *self.skipped])
        return [self._row(path) for path in paths]

    def _row(self, path: str) -> SummaryRow:
        before, after = self.times.get(path, (None, None))
        layer = self.layers.get(path)
        if layer is None:
            reason = self.skipped.get(path)
            return SummaryRow(path=path, before_ms=before, after_ms=after, reason=reason)
        return SummaryRow(
            path=path,
            before_ms=before,
            after_ms=after,
            rank=layer.rank,
            order=layer.order if layer.rank else None,
            family=layer.family,
            keep=layer.keep,
            reason=layer.note,
        )

    @classmethod
    def uniform(
        cls,
        model: Any,
        *,
        rank_ratio: float | None = 1.0,
        keep: float = 1.0,
        mask: str = "grid",
    ) -> "Plan":
        """The same rank ratio and the same mask for every convolution; needs no data.

        Args:
            model: a Keras or tf_keras model.
            rank_ratio: the rank over the full rank, rounded up, of every convolution with a kernel
                larger than 1 x 1. 1.0 decomposes without any loss; None does not decompose.
            keep: share of the output positions computed where a mask is possible and the map is at
                least 8 x 8; 1.0: no masks.
            mask: the mask family: "rows", "columns", "grid", "lattice" or "runs".

        Raises:
            TypeError: not a Keras model.
            ValueError: an argument out of its range, or a model without convolutions.

        Example:
            >>> small = apply(model, Plan.uniform(model, rank_ratio=0.25, keep=0.5))
        """
        from espace_tf import graph

        if rank_ratio is not None:
            check_number(rank_ratio, "rank_ratio", 1e-6, 1.0)
        check_number(keep, "keep", 1e-6, 1.0)
        check_choice(mask, "mask", _DATA_FREE)
        sites = graph.sites(model)
        if not sites:
            raise ValueError(
                f"model {model.name!r} has no convolution: there is nothing to compress"
            )
        found = {site.path: _uniform_layer(site, rank_ratio, keep, mask) for site in sites}
        return cls(
            layers={path: made for path, made in found.items() if isinstance(made, LayerPlan)},
            skipped={path: made for path, made in found.items() if isinstance(made, str)},
            fingerprint=graph.fingerprint(model),
            profile="uniform",
        )

    def save(self, path: str | PathLike) -> None:
        """Writes JSON at `path` and the arrays beside it, as plan.<checksum>.npz.

        The JSON may be read and edited: take a layer out, change an order or a rank (set "factors"
        to [] then, for the plain factors of that rank).

        Raises:
            OSError: the folder does not exist or cannot be written; nothing is left there.
        """
        arrays, layers = {}, {}
        for index, (name, layer) in enumerate(self.layers.items()):
            stored = {} if layer.positions is None else {"positions": layer.positions}
            for part in _FACTORS if layer.factors is not None else ():
                if getattr(layer.factors, part) is not None:
                    stored[part] = getattr(layer.factors, part)
            arrays.update({f"{index}/{part}": array for part, array in stored.items()})
            layers[name] = {
                **{key: getattr(layer, key) for key in _LAYER_FIELDS},
                "index": index,
                "positions": layer.positions is not None,
                "factors": [part for part in _FACTORS if part in stored],
            }
        body = {key: getattr(self, key) for key in (*_PLAN_FIELDS, "packed")}
        plan_files.write(Path(path), {**body, "layers": layers}, arrays)

    @classmethod
    def load(cls, path: str | PathLike) -> "Plan":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: one of the two files is missing; the message says which.
            ValueError: corrupt or truncated, no plan, or of a newer version; the message says
                which.
        """
        path = Path(path)
        body, arrays = plan_files.read(path)
        try:
            layers = {
                name: _layer_from_json(entry, arrays) for name, entry in body["layers"].items()
            }
            times = {name: tuple(pair) for name, pair in body["times"].items()}
            fields = {key: body[key] for key in _PLAN_FIELDS}
            fields["packed"] = bool(body.get("packed", False))  # older plans do not say
            return cls(**{**fields, "layers": layers, "times": times})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is corrupt: {error!r}") from error


_DATA_FREE = tuple(name for name in MASK_FAMILIES if name not in ("impact", "pooling"))
_PLAN_FIELDS = (
    *("skipped", "fingerprint", "profile", "speedup", "dense_ms", "predicted_ms"),
    *("measured_speedup", "times"),
)
_LAYER_FIELDS = ("rank", "order", "interpolation", "family", "output_size", "damage", "note")


def no_mask(site: Site, least: int) -> str | None:
    """Why the output of this convolution is not masked; None: it can be.

    Args:
        least: a map whose height or width is below this is not masked.
    """
    if site.mask_skip or min(site.output_sizes[0]) >= least:
        return site.mask_skip
    height, width = site.output_sizes[0]
    return f"its {height} x {width} map is too small to mask: below {least} x {least}"


def _uniform_layer(site: Site, rank_ratio: float | None, keep: float, mask: str) -> LayerPlan | str:
    """What Plan.uniform does to one convolution, or why it leaves it alone."""
    if site.skip:
        return site.skip
    rank = positions = None
    reasons = []
    if rank_ratio is not None and site.kind == "conv" and math.prod(site.kernel_size) > 1:
        # A hair less before rounding up: 0.1 * 30 is 3.0000000000000004 in binary.
        rank = math.ceil(rank_ratio * site.full_rank() * (1 - 1e-12))
    elif rank_ratio is not None:
        reasons.append(f"a {site.kind} kernel of size {site.kernel_size} is not decomposed")
    if keep < 1:
        reason = no_mask(site, EspaceConfig().min_map)
        if reason is None:
            positions = masks.kept(mask, site.output_sizes[0], keep)
        else:
            reasons.append(reason)
    note = "; ".join(reasons) or None
    if rank is None and positions is None:
        return note or "rank_ratio is None and keep is 1: nothing was asked for"
    return LayerPlan(
        rank=rank,
        positions=positions,
        family=None if positions is None else mask,
        output_size=None if positions is None else site.output_sizes[0],
        note=note,
    )


def _layer_from_json(entry: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> LayerPlan:
    factors = None
    if entry["factors"]:
        parts = {part: arrays[f"{entry['index']}/{part}"] for part in entry["factors"]}
        factors = Factors(**{"bias": None, **parts})
    positions = arrays[f"{entry['index']}/positions"] if entry["positions"] else None
    fields = {key: entry[key] for key in _LAYER_FIELDS}
    return LayerPlan(**fields, positions=positions, factors=factors)


def _check_factors(factors: Factors, rank: int | None) -> None:
    if rank is None:
        raise ValueError("factors were given without a rank: pass their rank too")
    first, second = np.shape(factors.first), np.shape(factors.second)
    if len(first) != 4 or len(second) != 4 or second[2] != rank or first[3] % rank:
        raise ValueError(
            f"factors must be [., ., channels, rank * groups] and [., ., rank, filters] of rank "
            f"{rank}. Received: shapes {first} and {second}"
        )
