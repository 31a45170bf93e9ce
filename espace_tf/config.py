"""EspaceConfig: every knob of a compression, checked when it is built."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from espace_tf.checks import (
    MOST_SEED,
    check_choice,
    check_count,
    check_number,
    check_threads,
    require,
)
from espace_tf.numerics.masks import BY_LAYER

PROFILES = ("default", "faithful")


@dataclass(frozen=True)
class KnownRuntime:
    """What is known of a runtime without importing it.

    Args:
        title: what people call it.
        extra: of this package, that installs it; None: nothing has to be installed.
        packages: distribution -> module, of what it needs.
    """

    title: str
    extra: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


# What each of them does is in `timing.runtimes`, under the same names.
_LITERT = {"ai-edge-litert": "ai_edge_litert"}
_ONNX = {"onnx": "onnx", "tf2onnx": "tf2onnx"}
RUNTIMES = {
    "tf": KnownRuntime("TensorFlow"),
    "litert": KnownRuntime("LiteRT", "litert", _LITERT),
    "litert-fused": KnownRuntime("LiteRT with native kernels", "litert", _LITERT),
    "litert-int8": KnownRuntime("LiteRT, int8", "litert", _LITERT),
    "onnxruntime": KnownRuntime("ONNX Runtime", "onnx", _ONNX | {"onnxruntime": "onnxruntime"}),
    "openvino": KnownRuntime("OpenVINO", "openvino", _ONNX | {"openvino": "openvino"}),
}
RUNTIME_METHODS = ("prepare", "run", "outputs")

Pattern = str | Callable[[str], bool] | Sequence[str | Callable[[str], bool]] | None


class EspaceWarning(UserWarning):
    """Something was done otherwise than asked; the message says what and why."""


@dataclass(frozen=True, kw_only=True)
class EspaceConfig:
    """How to compress; every field has a default that is meant to be right.

    Args:
        profile: "default", the best known; "faithful", the published method's nearest
            proxies (plain factors, ranks by energy, one keep for all impact masks).
        runtime: what the time is measured on: "tf" (a traced tf.function), "litert" (TFLite),
            "litert-fused" (the same with the delegate of `espace_tf.litert`), "litert-int8" (with
            weights and activations in 8 bits), "onnxruntime", "openvino", or an object with the
            three methods of `espace_tf.timing.runtimes.Runtime`.
        batch_size: images per call when time is measured.
        threads: CPU threads when time is measured; None leaves the runtime's own choice.
        input_size: (H, W) that time is measured at, of inputs whose size the model leaves open;
            None: the size of the data.
        include: which layers may be touched, by path: a regular expression (found anywhere in the
            path), a callable path -> bool, or several of these of which one must match; None: all.
        exclude: which layers must not be touched, in the same forms; wins over include.
        seed: of everything random, below 2**32.
        calibration_images: how many images each pass of statistics reads.
        damage_images: how many images it is taken on what changes of the layers cost.
        energy: share of a kernel's energy that the ranks of the faithful profile keep.
        keeps: shares of the output positions that masks are offered with.
        mask_families: which masks are offered, of "impact", "rows", "columns", "grid", "lattice",
            "runs"; none of them if empty.
        shrinkage: how far the patch covariance is drawn towards a multiple of the identity.
        max_gap: a mask of the default profile leaves no hole wider than this many positions.
        min_map: a map whose height or width is below this is never masked.
        rounds: how often `compress` plans again after it has measured the whole network, at most.
        reconstruct: about how many seconds (of two cores) `compress` trains the network at most to
            imitate the given one, without labels, after its layers were refitted, see
            `reconstruct`; less where the statistics take less than twice that; 0: neither.
        tolerance: how far the measured speed-up may lie from the asked one, relative to it.
        cache_dir: a folder where finished parts of `analyze` are kept, so that it can resume.

    Raises:
        TypeError, ValueError: a field that makes no sense; the message names it.

    Example:
        >>> EspaceConfig(include="block[12]/", exclude="shortcut").selects("block1/conv")
        True
    """

    profile: str = "default"
    runtime: Any = "tf"
    batch_size: int = 1
    threads: int | None = None
    input_size: tuple[int, int] | None = None
    include: Pattern = None
    exclude: Pattern = None
    seed: int = 0
    calibration_images: int = 512
    damage_images: int = 64
    energy: float = 0.9
    keeps: tuple[float, ...] = (0.75, 0.5, 0.35, 0.25)
    mask_families: tuple[str, ...] = ("impact", "rows", "columns", "grid")
    shrinkage: float = 1e-3
    max_gap: int = 2
    min_map: int = 8
    rounds: int = 3
    reconstruct: float = 60.0
    tolerance: float = 0.05
    cache_dir: str | PathLike | None = None

    def __post_init__(self):
        checked = {
            "profile": check_choice(self.profile, "profile", PROFILES),
            "runtime": check_runtime(self.runtime),
            "threads": check_threads(self.threads),
            "seed": check_count(self.seed, "seed", 0, MOST_SEED),
            "min_map": check_count(self.min_map, "min_map", least=2),
            "energy": check_number(self.energy, "energy", 1e-6, 1.0),
            "shrinkage": check_number(self.shrinkage, "shrinkage", 0.0, 1.0),
            "tolerance": check_number(self.tolerance, "tolerance", 0.001, 1.0),
            "reconstruct": check_number(self.reconstruct, "reconstruct", 0.0),
            "keeps": tuple(
                check_number(keep, "keeps", 0.01, 0.99) for keep in _several(self.keeps, "keeps")
            ),
            "mask_families": tuple(
                check_choice(family, "mask_families", BY_LAYER)
                for family in _several(self.mask_families, "mask_families")
            ),
            "include": _check_pattern(self.include, "include"),
            "exclude": _check_pattern(self.exclude, "exclude"),
        }
        for name in ("batch_size", "calibration_images", "damage_images", "max_gap", "rounds"):
            checked[name] = check_count(getattr(self, name), name)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.input_size is not None:
            object.__setattr__(self, "input_size", _size(self.input_size))
        if self.cache_dir is not None and not isinstance(self.cache_dir, str | PathLike):
            raise TypeError(f"cache_dir must be a path or None. Received: {self.cache_dir!r}")

    def selects(self, path: str) -> bool:
        """Whether the layer at this path may be touched."""
        wanted = self.include is None or _matches(self.include, path)
        return wanted and not (self.exclude is not None and _matches(self.exclude, path))


def usable(config: Any) -> EspaceConfig:
    """The configuration, None being the default one; raises unless it is one that can be used."""
    config = EspaceConfig() if config is None else config
    if not isinstance(config, EspaceConfig):
        raise TypeError(f"config must be an EspaceConfig or None. Received: {config!r}")
    require_runtime(config.runtime)
    return config


def check_runtime(value: Any) -> Any:
    """The name of a runtime, or an object with the methods of one; raises if it is neither."""
    if isinstance(value, str) and value in RUNTIMES:
        return str(value)
    methods = [callable(getattr(value, name, None)) for name in RUNTIME_METHODS]
    if isinstance(value, type) or not all(methods):
        raise ValueError(
            f"runtime must be one of {', '.join(RUNTIMES)}, or an object with the methods "
            f"{', '.join(RUNTIME_METHODS)} (see espace_tf.timing.runtimes.Runtime). "
            f"Received: {value!r}"
        )
    return value


def require_runtime(runtime: Any) -> None:
    """Raises ImportError, saying what to install, unless what runs networks there is installed."""
    if isinstance(runtime, str) and RUNTIMES[runtime].extra:
        require(RUNTIMES[runtime].extra, *RUNTIMES[runtime].packages.values())


def runtime_title(runtime: Any) -> str:
    """What people call a runtime; of an object its `name`, if it has one, else its class."""
    if isinstance(runtime, str):
        return RUNTIMES[runtime].title
    return str(getattr(runtime, "name", type(runtime).__name__))


def _several(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list or tuple. Received: {value!r}")
    return value


def _size(value: Any) -> tuple[int, int]:
    """A height and a width."""
    lengths = tuple(check_count(length, "input_size") for length in _several(value, "input_size"))
    if len(lengths) != 2:
        raise ValueError(f"input_size must be a height and a width. Received: {value!r}")
    return lengths


def _check_pattern(value: Any, name: str) -> Pattern:
    """The pattern with a list turned into a tuple, so that the configuration can be hashed."""
    if isinstance(value, list | tuple):
        return tuple(_check_pattern(item, name) for item in value)
    if value is None or callable(value):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be a regular expression, a callable path -> bool, or a list of these. "
            f"Received: {value!r}"
        )
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{name} {value!r} is no regular expression: {error}") from error
    return value


def _matches(pattern: Pattern, path: str) -> bool:
    if isinstance(pattern, tuple):
        return any(_matches(item, path) for item in pattern)
    return bool(pattern(path)) if callable(pattern) else re.search(pattern, path) is not None
