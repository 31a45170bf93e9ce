"""The parts of analyze(): statistics, options and their times, what changes cost."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.analysis import damages, offers
from espace_tf.analysis import statistics as moments
from espace_tf.analysis.result_cache import Arrays, ResultCache
from espace_tf.analysis.trials import WhatIf
from espace_tf.checks import check_choice
from espace_tf.config import EspaceConfig, usable
from espace_tf.data import batches as user_data
from espace_tf.data.arrays import count, describe
from espace_tf.data.forms import understood
from espace_tf.data.sizes import fitted
from espace_tf.distribution.replicas import Replicas, find_strategy
from espace_tf.kernels.loader import operations_now
from espace_tf.network import costs, graph
from espace_tf.network.copies.cloning import private_copy
from espace_tf.network.layer_rules import rule
from espace_tf.network.network import Network
from espace_tf.objectives import targets
from espace_tf.progress import ANALYSIS, Progress, shown
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option
from espace_tf.records.site import Site, no_mask
from espace_tf.rewriting.fuse import check_not_fused, fuse
from espace_tf.timing import measure, runtimes, steps
from espace_tf.timing.layer_times import LayerTimes
from espace_tf.timing.reference import Reference

# Images per batch of statistics, and bytes of all their maps at once: the backward pass takes three
# times as many.
_BATCH, _MEMORY = 16, 6e8
# Bytes of decompositions that stay in memory between two uses.
_DECOMPOSITIONS = 7.5e8
# Seconds for building and calling all layers' options; what one layer leaves, the others get.
_TIMING_SECONDS = 80.0


def analyze(
    model: Any,
    data: Any = None,
    *,
    config: EspaceConfig | None = None,
    loss: Any = None,
    verbose: int = 1,
    strategy: tf.distribute.Strategy | None = None,
) -> Analysis:
    """Everything that the planner must know of a trained model, from a few hundred images.

    Streams over the data twice (what goes into each convolution; what the loss feels of its
    output), times every layer and its options on config.runtime, and finds what one rank and one
    mask of each layer would cost by the curvature of the loss, and those of a whole plan by trying
    them. A layer whose compressed form will run in a fused graph (see `strip`) is timed as steps of
    one, others as single operations. With config.cache_dir every finished part is kept there, and
    a run that was interrupted goes on where it stopped.

    Args:
        model: of Keras 3 or tf_keras; it is not changed. A subclassed one must have been called.
        data: a tf.data.Dataset of batches, (x, y) or x, or what else gives such batches; or arrays.
            None: the weights alone decide.
        config: None: EspaceConfig().
        loss: what the model was trained with; None: the compiled loss, else inferred. Without
            labels a classifier's labels are drawn from its own output distribution.
        verbose: 0 silent; 1, or 2 as in `fine_tune`, one display of progress with the time left.
        strategy: a MirroredStrategy, whose devices share the work of the statistics. All else is
            done on one device, in the process that calls.

    Raises:
        TypeError: not a Keras model, data of another kind, or no strategy.
        ValueError: a model without a convolution that can be analysed, one that `strip` made,
            weights that are not finite, empty data, data of another shape, labels whose loss is not
            known, or a strategy of several processes.
        ImportError: config.runtime is not installed.

    Example:
        >>> analysis = analyze(model, (images, labels))
        >>> analysis.save("analysis.json")
    """
    check_not_fused(model)
    config = usable(config)
    check_choice(verbose, "verbose", (0, 1, 2))
    devices = Replicas(strategy and find_strategy(model, strategy))
    if devices.workers > 1:
        raise ValueError(
            "strategy must be of one process, such as tf.distribute.MirroredStrategy(): times are "
            f"of one machine. Received: {type(strategy).__name__} of {devices.workers} processes"
        )
    network = Network.read(model)
    check_network(network, config)
    data = understood(data, user_data.named_inputs(network.model))
    config = fitted(network.model, data, config)
    network = network.copied(config.input_size)
    with shown(verbose, ANALYSIS) as progress:
        reference = Reference(network.model, config)
        return run(network, data, config, loss, progress, reference, devices=devices)


def run(
    network: Network,
    data: Any,
    config: EspaceConfig,
    loss: Any,
    progress: Progress,
    reference: Reference,
    seen: int | None = None,
    devices: Replicas | None = None,
) -> Analysis:
    """What `espace_tf.analyze` does, to a private copy of the model, whose layers it watches.

    Args:
        seen: how many images it may read; None: config.calibration_images.
        devices: what shares the work of the statistics; None: one device.
    """
    if seen is not None:
        config = dataclasses.replace(config, calibration_images=seen)
    model = network.model
    touched = [site for site in network.sites if _why_not(site, config) is None]
    kernels = {site.path: _weights(network.layers[site.path]) for site in touched}
    key = None if config.cache_dir is None else _key(network, data, config, loss)
    cache = ResultCache(key and config.cache_dir, key)
    images, inputs = 0, user_data.named_inputs(model)
    together = costs.images_within(model, _MEMORY, _BATCH, config.input_size)

    def batches(limit: int) -> Iterator[tuple[Any, Any]]:
        return user_data.batches(data, limit, together, inputs=inputs)

    found: Arrays = {}
    resolved = sample = None
    if data is not None:
        first = next(batches(_BATCH))
        resolved, sample = targets.resolve(model, loss, first, config.seed), _picture(first[0])
        images = _count(data, config.calibration_images)
        found = _statistics(
            *(model, touched, config, cache, progress, resolved.target, images),
            *(lambda: batches(images), devices or Replicas()),
        )
    sites = {
        site.path: SiteAnalysis(
            site=site,
            kernel=kernels[site.path][0],
            bias=kernels[site.path][1],
            config=config,
            **{name: found.get(f"{site.path}|{name}") for name in _STATISTICS},
        )
        for site in touched
    }
    _let_last(sites.values())
    times = _time(reference, sites, cache, config, progress)
    if data is not None:
        tried = damages.changeable(sites)
        probes = [x for x, _ in batches(min(config.damage_images, images))]
        what_if = functools.cache(lambda: WhatIf(model, tried, probes, outputs=resolved.outputs))
        with progress("what changes cost", len(tried)) as advance:
            damages.calibrate(sites, what_if, cache, advance)
    else:
        damages.guess(sites)
    return Analysis(
        fingerprint=network.fingerprint,
        config=config,
        sites=sites,
        skipped={site.path: reason for site in network.sites if (reason := _why_not(site, config))},
        **times,
        target="no data" if resolved is None else resolved.name,
        images=images,
        sample=sample,
    )


def _let_last(sites: Iterable[SiteAnalysis]) -> None:
    """Lets decompositions stay in memory as far as there is room, those that take longest first."""
    room = _DECOMPOSITIONS
    for site in sorted(sites, key=lambda each: each.decomposition_bytes, reverse=True):
        site.lasting = site.decomposition_bytes <= room
        room -= site.decomposition_bytes if site.lasting else 0


def _statistics(
    model: Any,
    sites: list[Site],
    config: EspaceConfig,
    cache: ResultCache,
    progress: Progress,
    target: targets.Target,
    images: int,
    batches: Callable[[], Iterator[tuple[Any, Any]]],
    devices: Replicas,
) -> Arrays:
    """What goes into each convolution and what the loss feels of its output, by "path|name"."""
    with devices.scope():
        shared = model if devices.count == 1 else private_copy(model)
    found: Arrays = {}
    with progress("input statistics", images) as advance:
        seen = _told(batches(), advance)
        found |= cache.get(
            "moments",
            lambda: _flat(moments.input_moments(shared, sites, seen, images, config.seed, devices)),
        )

    def masked(site: Site) -> bool:
        return no_mask(site, config.min_map) is None

    with (
        progress("loss gradients", images) as advance,
        devices.losses_of_whole_batches(graph.library(model)),
    ):
        seen = _told(batches(), advance)
        found |= cache.get(
            "outputs",
            lambda: _flat(moments.output_statistics(shared, sites, seen, target, masked, devices)),
        )
    return found


_STATISTICS = ("mean", "covariance", "gradient", "impact", "damage_table")


def _why_not(site: Site, config: EspaceConfig) -> str | None:
    """Why a convolution is not analysed; None: it is."""
    return site.skip or (None if config.selects(site.path) else "excluded by the configuration")


def check_network(network: Network, config: EspaceConfig) -> None:
    """Raises ValueError for weights that are not finite, or if nothing may be touched."""
    for path, layer in network.layers.items():
        for weight in layer.weights:
            if not np.isfinite(np.asarray(weight, np.float32)).all():
                raise ValueError(
                    f"layer {path!r} has NaN or infinite values in its weight {weight.name!r}: "
                    "the model must be trained and sound"
                )
    reasons = {site.path: _why_not(site, config) for site in network.sites}
    if None not in reasons.values():
        why = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        raise ValueError(
            f"model {network.model.name!r} has no convolution that may be touched: "
            + (why or "it has none")
        )


def _weights(layer: Any) -> tuple[np.ndarray, np.ndarray | None]:
    kernel, *bias = (np.asarray(weight, np.float32) for weight in layer.get_weights())
    return kernel, bias[0] if layer.use_bias else None


def _key(network: Network, data: Any, config: EspaceConfig, loss: Any) -> str | None:
    """What decides the result, but for the folder it is kept in and how a plan is made from it.

    None if that cannot be told: of data that `describe` does not know, of a user's runtime.
    """
    if not isinstance(config.runtime, str):
        return None
    digest = hashlib.sha256()
    for weight in network.model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    settings = dataclasses.replace(config, cache_dir=None, rounds=1, tolerance=0.1, reconstruct=0)
    loss = [loss, None] if loss is not None else graph.compiled_loss(network.model)
    loss = _described(loss)
    described = describe(data)
    parts = (network.fingerprint, digest.hexdigest(), described, settings, loss)
    return None if described is None else repr(parts)


def _described(loss: Any) -> Any:
    """A loss by its name and settings: the same in another process, unlike its repr.

    A lambda or inner function has no name of its own: it never is what another process meant.
    """
    if isinstance(loss, dict):
        return {name: _described(each) for name, each in sorted(loss.items())}
    if isinstance(loss, list | tuple):
        return [_described(each) for each in loss]
    if hasattr(loss, "get_config"):
        return f"{type(loss).__name__} {loss.get_config()}"
    name = getattr(loss, "__qualname__", "<")
    return repr(loss) if "<" in name else f"{loss.__module__}.{name}"


def _picture(x: Any) -> np.ndarray | None:
    """The first image of a batch as people see it, uint8 [H, W, 3]; None if it is no picture."""
    arrays = tf.nest.flatten(x)
    if len(arrays) > 1 or len(arrays[0].shape) != 4 or arrays[0].shape[-1] not in (1, 3):
        return None
    image = np.array(arrays[0][0], float)
    image = (image - image.min()) / max(float(np.ptp(image)), 1e-9)
    return np.broadcast_to(255 * image, (*image.shape[:2], 3)).round().astype(np.uint8)


def _count(data: Any, limit: int) -> int:
    """How many images a pass reads; a dataset that does not say is read once to know."""
    known = count(data)
    if known is None:
        return sum(len(tf.nest.flatten(x)[0]) for x, _ in user_data.batches(data, limit, _BATCH))
    return min(known, limit)


def _flat(found: dict[str, dict[str, np.ndarray]]) -> Arrays:
    arrays = {f"{path}|{name}": a for path, each in found.items() for name, a in each.items()}
    bad = sorted({name.split("|")[0] for name, a in arrays.items() if not np.isfinite(a).all()})
    if bad:
        raise ValueError(
            "data, labels and loss must give finite activations and gradients. Received: NaN or "
            f"infinite ones at {', '.join(bad)}"
        )
    return arrays


def _told(batches: Iterator, advance: Callable[[int], None]) -> Iterator:
    """The batches, telling `advance` of each one that is done."""
    for x, y in batches:
        yield x, y
        advance(len(tf.nest.flatten(x)[0]))


def _time(
    reference: Reference,
    sites: dict[str, SiteAnalysis],
    cache: ResultCache,
    config: EspaceConfig,
    progress: Progress,
) -> dict[str, float]:
    """Fills dense_ms and options; returns the times of the whole stripped model, by field."""
    cache = cache.of_this_machine()
    plain = reference.stripped
    fused = _fused(plain, config)
    outside = set(graph.layers(plain if fused is None else fused))
    lasting = isinstance(config.runtime, str)  # of an object nobody knows what it is another day
    known = LayerTimes.of_this_machine() if lasting else LayerTimes()
    end = time.perf_counter() + _TIMING_SECONDS
    with progress("times of layers", len(sites)) as advance:
        for index, (path, site) in enumerate(sites.items()):
            seconds = max(end - time.perf_counter(), 0.0) / (len(sites) - index)
            inside = path not in outside
            stored = cache.get(
                f"{'fused-' if inside else ''}times-{path}",
                lambda site=site, left=seconds, inside=inside: _timed(site, known, left, inside),
            )
            entries = json.loads(str(stored["options"]))
            site.options = tuple(Option(**entry) for entry in entries)
            site.dense_ms = site.options[0].ms
            site.release()
            advance(1)

    where = (config.runtime, config.batch_size, config.threads, config.input_size)
    inside = set(sites) - outside
    network = repr((graph.fingerprint(reference.model), where, sorted(inside)))
    network = hashlib.sha256(network.encode()).hexdigest()[:16]

    def measured(name: str, function: Callable[[], list[float]]) -> list[float]:
        """Kept like the layers': plans of two calls are the same then."""
        key = f"{name} {network}"
        if known.get(key) is None:
            first, *others = cache.get(name, lambda: {"ms": np.array(function())})["ms"].tolist()
            parts = {str(i): max(ms / first, 1e-9) for i, ms in enumerate(others)}
            known.add(key, first, parts)
            return [first, *others]
        found = [known.get(key), *(known.get(key, str(i)) for i in range(2))]
        return [ms for ms in found if ms is not None]

    if fused is None:
        (model_ms,) = measured("model", lambda: measure.alternate([reference.call]))
        return {"model_ms": model_ms}
    model_ms, fused_ms, other_ms = measured(
        "fused-model", lambda: steps.network_times(reference.call, fused, inside, config)
    )
    # In which are still the convolutions that stay single operations.
    other_ms -= sum(sites[path].dense_ms for path in outside & set(sites))
    return {"model_ms": model_ms, "fused_ms": fused_ms, "other_ms": max(other_ms, 0.0)}


def _fused(plain: Any, config: EspaceConfig) -> Any | None:
    """The stripped model with fused graphs, as its compressed form will run; None: it will not."""
    threads = runtimes.find(config.runtime).step_threads(config.threads)
    library = graph.library(plain).__name__
    if threads is None or library != "keras" or operations_now() is None:
        return None
    fused = fuse(plain)
    kinds = [rule(layer).kind for layer in graph.layers(fused).values()]
    return fused if "fused" in kinds else None


def _timed(site: SiteAnalysis, known: LayerTimes, seconds: float, fused: bool) -> Arrays:
    options = offers.timed(site, offers.offered(site), known, seconds, fused=fused)
    return {"options": np.array(json.dumps([dataclasses.asdict(option) for option in options]))}
