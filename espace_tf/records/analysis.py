"""Analysis: what one look at a trained model and its data tells the planner."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.config import EspaceConfig, runtime_title
from espace_tf.files import checked_path, output_path
from espace_tf.numerics import low_rank, masks
from espace_tf.numerics.factors import Factors
from espace_tf.records import saving
from espace_tf.records.option import Option
from espace_tf.records.site import Site

_ARRAYS = ("kernel", "bias", "mean", "covariance", "gradient", "impact", "damage_table")


def _by_group(moments: np.ndarray | None) -> np.ndarray | list[np.ndarray] | None:
    """[g, ...] as low_rank wants it: the array itself for one group, else one array a group."""
    if moments is None:
        return None
    return moments[0] if len(moments) == 1 else list(moments)


@dataclass(eq=False, kw_only=True)
class SiteAnalysis:
    """What is known of one convolution that may be touched.

    With g groups and d = kernel height * kernel width * input channels / g:

    Args:
        site: the convolution.
        kernel: [kh, kw, Cin / g, Cout] float32.
        bias: [Cout] or None.
        mean: [g, d] mean input patch, ordered (a, b, c) like the kernel; None without data.
        covariance: [g, d, d] covariance of the input patches; None without data.
        gradient: [Cout, Cout] second moment of the loss gradient at the output, per sample and
            position; None without data.
        impact: [OH, OW], E sum_c |y dL/dy| per sample; None without data or if never masked.
        damage_table: [24, OH, OW], E sum_c |dL/dy (y_p - y_{p+offset})| for masks.OFFSETS.
        dense_ms: milliseconds of the untouched layer, all calls together.
        options: every option, the dense one first.
        rank_probes, mask_probes: (predicted error, loss increase) pairs, the latter as the loss's
            curvature tells it.
        lasting: whether the decomposition stays in memory between two uses.
    """

    site: Site
    kernel: np.ndarray
    bias: np.ndarray | None = None
    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    gradient: np.ndarray | None = None
    impact: np.ndarray | None = None
    damage_table: np.ndarray | None = None
    dense_ms: float = 0.0
    options: tuple[Option, ...] = ()
    rank_probes: tuple[tuple[float, float], ...] = ()
    mask_probes: tuple[tuple[float, float], ...] = ()
    config: EspaceConfig = field(default_factory=EspaceConfig)
    lasting: bool = field(default=False, repr=False)
    _cached: dict[str, low_rank.Decomposition] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[str, float], np.ndarray] = field(default_factory=dict, repr=False)
    _factors: dict[tuple[int, str], Factors] = field(default_factory=dict, repr=False)

    def decomposition(self, order: str) -> low_rank.Decomposition:
        """Factors and predicted errors of every rank; computed when first asked for."""
        if order not in self._cached:
            self._cached[order] = low_rank.decompose(
                self.kernel,
                order,
                self.site.groups,
                bias=self.bias,
                mean=_by_group(self.mean),
                covariance=_by_group(self.covariance),
                gradient=self.gradient,
                shrinkage=self.config.shrinkage,
            )
        return self._cached[order]

    def release(self, other_than: str | None = None) -> None:
        """Forgets the decompositions, several times as large as the moments, but for a lasting one.

        Args:
            other_than: the order that is going to be used; None: all that were made are.
        """
        kept = [each for each in self._cached if self.lasting and other_than in (None, each)]
        self._cached = {order: self._cached[order] for order in kept}

    @property
    def decomposition_bytes(self) -> int:
        """About what a decomposition takes."""
        taps, per_group = max(self.site.kernel_size), math.prod(self.kernel.shape[:3])
        rows = per_group // taps
        return 8 * self.site.groups * per_group * (per_group + 2 * rows + 2 * self.site.filters)

    def factors(self, rank: int, order: str) -> Factors:
        """The pair of this rank with its corrected bias."""
        if (rank, order) not in self._factors:
            self._factors[rank, order] = self.decomposition(order).factors(rank)
        return self._factors[rank, order]

    def positions(self, family: str, keep: float) -> np.ndarray:
        """The kept output positions, sorted int32; nested: a smaller keep gives a subset.

        The faithful profile keeps the largest impact; the default one skips first what is shown
        best by a neighbour, and leaves no hole wider than config.max_gap.
        """
        if (family, keep) not in self._masks:
            faithful = self.config.profile == "faithful"
            options: dict[str, Any] = {"max_gap": None if faithful else self.config.max_gap}
            if faithful or self.damage_table is None:
                options["impact"] = self.impact
            else:
                options["table"] = self.damage_table
            keeps = self.config.keeps if keep in self.config.keeps else (keep,)
            found = masks.nested(family, self.site.output_sizes[0], keeps, **options)
            self._masks |= {(family, k): each for k, each in zip(keeps, found, strict=True)}
        return self._masks[family, keep]

    @property
    def score(self) -> np.ndarray | None:
        """[OH, OW] expected damage of showing a neighbour instead of the position itself.

        The mean over the eight nearest neighbours, the default score: what counts is the cost
        of interpolating, not of zeroing.
        """
        if self.damage_table is None:
            return None
        near = [max(abs(y), abs(x)) == 1 for y, x in masks.OFFSETS]
        return self.damage_table[near].mean(axis=0)

    def position_damage(self, positions: np.ndarray) -> float | None:
        """Predicted loss increase of this mask by first order; None without data."""
        if self.damage_table is None:
            return None
        return masks.damage(positions, self.site.output_sizes[0], self.damage_table)


@dataclass(eq=False, kw_only=True)
class Analysis:
    """What `analyze` found: one SiteAnalysis per convolution that may be touched.

    Args:
        fingerprint: of the model's architecture (graph.fingerprint).
        config: the configuration it was made with.
        sites: by path, in execution order.
        skipped: path -> why this convolution stays as it is.
        model_ms: milliseconds of one call of the whole model, stripped.
        fused_ms: the same with fused graphs, in which its compressed forms will run; None where
            they will not.
        other_ms: of these, what is not spent in convolutions of `sites`; None: what these leave of
            the whole.
        target: what the gradients belong to: "labels", "drawn labels", "projections", "no data".
        images: how many images the statistics come from.
        sample: uint8 [H, W, 3], one of them as people see it, for pictures; None without data, or
            if inputs are no pictures.
    """

    fingerprint: str
    config: EspaceConfig
    sites: dict[str, SiteAnalysis]
    skipped: dict[str, str] = field(default_factory=dict)
    model_ms: float = 0.0
    fused_ms: float | None = None
    other_ms: float | None = None
    target: str = "no data"
    images: int = 0
    sample: np.ndarray | None = None

    def release(self) -> None:
        """Frees what is kept in memory to make the next plan sooner, up to 750 MB."""
        for site in self.sites.values():
            site.lasting = False
            site.release()

    def save(self, path: str | Path) -> None:
        """Writes JSON at `path` and the arrays beside it, as analysis.<checksum>.npz.

        Raises:
            TypeError, ValueError: path is no path, empty, or that of a file which holds something
                else than an analysis.
            OSError: the folder does not exist or cannot be written; nothing is left there.
        """
        path, sites = output_path(path), list(self.sites.values())
        arrays = {
            f"{index}/{name}": array
            for index, site in enumerate(sites)
            for name, array in _arrays_of(site).items()
        }
        if self.sample is not None:
            arrays["sample"] = self.sample
        body = {
            **{name: getattr(self, name) for name in _FIELDS},
            "config": _config_to_json(self.config),
            "sites": [_site_to_json(site) for site in sites],
        }
        saving.write(path, saving.ANALYSIS, body, arrays)

    @classmethod
    def load(cls, path: str | Path, *, model: Any = None) -> "Analysis":
        """Reads what `save` wrote; needs no TensorFlow unless a model is given.

        Args:
            path: of the JSON file; the arrays lie beside it.
            model: the Keras model that the analysis must belong to; None: not checked here.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: corrupt or truncated, no analysis, of a newer version, or of another model;
                the message says which.
        """
        path = checked_path(path)
        document, arrays = saving.read(path, saving.ANALYSIS)
        try:
            own = saving.fields(document, (*_FIELDS, "config", "sites"))
            config = _config_from_json(own["config"])
            sites = [_site_from_json(*each, arrays, config) for each in enumerate(own["sites"])]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is corrupt, or was edited wrongly: {error}") from error
        if model is not None:
            _check_model(path, own["fingerprint"], model)
        body = {name: own[name] for name in _FIELDS}
        by_path = {site.site.path: site for site in sites}
        return cls(config=config, sites=by_path, sample=arrays.get("sample"), **body)


_FIELDS = ("fingerprint", "skipped", "model_ms", "fused_ms", "other_ms", "target", "images")


def _check_model(path: Path, fingerprint: str, model: Any) -> None:
    from espace_tf.network import graph

    expected = graph.fingerprint(model)
    if expected != fingerprint:
        raise ValueError(
            f"{path} belongs to another model: it was made for fingerprint {fingerprint}, "
            f"the model {model.name!r} has {expected}"
        )


def _arrays_of(site: SiteAnalysis) -> dict[str, np.ndarray]:
    """What is known of a site as float32 arrays; a covariance as its upper triangle."""
    known = {name: getattr(site, name) for name in _ARRAYS if getattr(site, name) is not None}
    if "covariance" in known:
        rows, columns = np.triu_indices(site.covariance.shape[-1])
        known["covariance"] = site.covariance[:, rows, columns]
    return {name: np.asarray(array, np.float32) for name, array in known.items()}


def _unpack_triangle(triangle: np.ndarray, size: int) -> np.ndarray:
    full = np.zeros((len(triangle), size, size), triangle.dtype)
    rows, columns = np.triu_indices(size)
    full[:, rows, columns] = triangle
    full[:, columns, rows] = triangle
    return full


def _site_to_json(analysis: SiteAnalysis) -> dict[str, Any]:
    return {
        "site": dataclasses.asdict(analysis.site),
        "dense_ms": analysis.dense_ms,
        "options": [dataclasses.asdict(option) for option in analysis.options],
        "rank_probes": analysis.rank_probes,
        "mask_probes": analysis.mask_probes,
    }


def _site_from_json(index: int, entry: Any, arrays: dict, config: EspaceConfig) -> SiteAnalysis:
    own = saving.fields(entry, ("site", "dense_ms", "options", "rank_probes", "mask_probes"))
    found = {name: arrays[f"{index}/{name}"] for name in _ARRAYS if f"{index}/{name}" in arrays}
    if "covariance" in found:
        found["covariance"] = _unpack_triangle(found["covariance"], found["mean"].shape[-1])
    return SiteAnalysis(
        site=Site.from_json(own["site"]),
        dense_ms=own["dense_ms"],
        options=tuple(Option(**option) for option in own["options"]),
        rank_probes=tuple(map(tuple, own["rank_probes"])),
        mask_probes=tuple(map(tuple, own["mask_probes"])),
        config=config,
        **found,
    )


def _config_to_json(config: EspaceConfig) -> dict[str, Any]:
    """Its fields; a callable include or exclude cannot be stored: its choice is in the sites.

    Of a runtime that is an object what it is called is stored.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if not isinstance(config.runtime, str):
        fields["runtime"] = {"name": runtime_title(config.runtime)}
    for name in ("include", "exclude"):
        value = fields[name]
        if callable(value) or (isinstance(value, tuple) and any(map(callable, value))):
            fields[name] = None
    return fields


def _config_from_json(fields: dict[str, Any]) -> EspaceConfig:
    given = {**fields}
    if isinstance(given.get("runtime"), dict):
        given["runtime"] = _AbsentRuntime(str(given["runtime"]["name"]))
    return EspaceConfig(**given)


@dataclass(frozen=True)
class _AbsentRuntime:
    """A runtime that another process was given: plans can be made for it, nothing can be run."""

    name: str

    def prepare(self, model: Any, inputs: Any, threads: int | None) -> Any:
        """Raises ValueError."""
        raise ValueError(
            f"config.runtime {self.name!r} was an object in the process that saved this analysis: "
            "give it again, with dataclasses.replace(config, runtime=...)"
        )

    run = outputs = prepare
