"""Plan and LayerPlan: what becomes of every convolution, as data that `apply` only carries out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from espace_tf.checks import check_choice, check_number, check_text
from espace_tf.files import checked_path, output_path
from espace_tf.records import saving
from espace_tf.records.comparison import Comparison
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.uniform import DATA_FREE, uniform_layer

_NUMBERS = ("speedup", "dense_ms", "predicted_ms", "measured_speedup", "measured_error")
_FIELDS = ("skipped", "fingerprint", "profile", *_NUMBERS, "times")


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One convolution of a plan, for tables; None is not known.

    Args:
        before_ms, after_ms: predicted milliseconds of the layer, all calls together.
        rank: of the pair; None: not decomposed.
        order: which half of the pair comes first; None where that makes no difference.
        family: the mask family, if any.
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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
        measured_error: of that, relative to it, two standard errors: what another measurement in
            the same process may differ by.
        comparison: what its network answers on held-out images, as `compress` compared it.
        times: path -> (before, after), predicted milliseconds of the layer, all calls together.

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
    measured_error: float | None = None
    comparison: Comparison | None = None
    times: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("layers", "skipped", "times"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(
                    f"{name} must be a dictionary by layer path. Received: {getattr(self, name)!r}"
                )
        for path in (*self.layers, *self.skipped, *self.times):
            check_text(path, "a layer path")
        for path, layer in self.layers.items():
            if not isinstance(layer, LayerPlan):
                raise TypeError(f"layers[{path!r}] must be a LayerPlan. Received: {layer!r}")
        for path, reason in self.skipped.items():
            check_text(reason, f"skipped[{path!r}]")
        both = sorted(set(self.layers) & set(self.skipped))
        if both:
            raise ValueError(f"a layer is either planned or skipped. Received both for: {both}")
        if not isinstance(self.comparison, Comparison | None):
            raise TypeError(f"comparison must be a Comparison. Received: {self.comparison!r}")
        check_text(self.profile, "profile")
        if self.fingerprint is not None:
            check_text(self.fingerprint, "fingerprint")
        for name in _NUMBERS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_number(value, name, 0.0))
        times = {path: _checked_pair(path, pair) for path, pair in self.times.items()}
        object.__setattr__(self, "times", times)

    def __repr__(self) -> str:
        return f"Plan({self.headline()})"

    def __str__(self) -> str:
        from espace_tf.reports import tables

        return tables.as_text(tables.summary_table(self))

    def headline(self) -> str:
        """Speed and times as far as they are known, and how many layers get what."""
        layers = self.layers.values()
        known = {"asked": self.speedup, "measured": self.measured_speedup}
        parts = [f"speedup {name} {value:.4g}" for name, value in known.items() if value]
        if self.measured_speedup and self.measured_error is not None:
            parts[-1] += f" ± {self.measured_error:.0%}"
        if self.predicted_ms is not None:
            before = "" if self.dense_ms is None else f" instead of {self.dense_ms:.4g}"
            parts.append(f"{self.predicted_ms:.4g} ms predicted{before}")
        parts.append(f"{sum(layer.rank is not None for layer in layers)} decomposed")
        parts.append(f"{sum(layer.positions is not None for layer in layers)} masked")
        parts.append(f"{len(self.skipped)} left")
        if self.comparison is not None:
            parts.append(str(self.comparison))
        return ", ".join(parts)

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
        known = {"path": path, "before_ms": before, "after_ms": after}
        layer = self.layers.get(path)
        if layer is None:
            return SummaryRow(**known, reason=self.skipped.get(path))
        return SummaryRow(
            **known,
            rank=layer.rank,
            order=layer.order if layer.rank and not layer.is_pointwise else None,
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
        from espace_tf.network import graph
        from espace_tf.network.normal_form import normal
        from espace_tf.network.sites import read_sites

        if rank_ratio is not None:
            check_number(rank_ratio, "rank_ratio", 1e-6, 1.0)
        check_number(keep, "keep", 1e-6, 1.0)
        check_choice(mask, "mask", DATA_FREE)
        model = normal(model)
        sites = read_sites(model)
        if not sites:
            raise ValueError(
                f"model {model.name!r} has no convolution: there is nothing to compress"
            )
        found = {site.path: uniform_layer(site, rank_ratio, keep, mask) for site in sites}
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
            TypeError, ValueError: path is no path, empty, or that of a file which holds something
                else than a plan.
            OSError: the folder does not exist or cannot be written; nothing is left there.
        """
        path, arrays, layers = output_path(path), {}, {}
        for index, (name, layer) in enumerate(self.layers.items()):
            layers[name], stored = layer.to_json(index)
            arrays.update(stored)
        body = {key: getattr(self, key) for key in _FIELDS}
        body["comparison"] = self.comparison and self.comparison.to_json()
        saving.write(path, saving.PLAN, {**body, "layers": layers}, arrays)

    @classmethod
    def load(cls, path: str | PathLike) -> "Plan":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: one of the two files is missing; the message says which.
            ValueError: corrupt or truncated, edited into something that makes no sense, no plan,
                or of a newer version; the message says which, and names the layer and field.
        """
        path = checked_path(path)
        document, arrays = saving.read(path, saving.PLAN)
        try:
            document = {"measured_error": None, **document}  # earlier files have none
            body = saving.fields(document, ("layers", "comparison", *_FIELDS))
            entries = saving.entries(body.pop("layers"), "layers")
            layers = {name: _layer(name, entry, arrays) for name, entry in entries.items()}
            compared = body["comparison"]
            body["comparison"] = compared and Comparison(**saving.entries(compared, "comparison"))
            return cls(layers=layers, **body)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is corrupt, or was edited wrongly: {error}") from error


def _layer(path: str, entry: Any, arrays: Mapping[str, Any]) -> LayerPlan:
    try:
        return LayerPlan.from_json(entry, arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {path!r}: {error}") from error


def _checked_pair(path: str, pair: Any) -> tuple[float, float]:
    """(before, after) milliseconds of a layer."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"times[{path!r}] must be (before, after). Received: {pair!r}")
    return tuple(check_number(value, f"times[{path!r}]", 0.0) for value in pair)
