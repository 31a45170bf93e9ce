"""Measured times of layers, kept in a file per machine so that the next analysis need not measure.

The files are JSON in $ESPACE_TF_CACHE, else $XDG_CACHE_HOME/espace_tf, else ~/.cache/espace_tf, and
may be deleted at any time. ESPACE_TF_CACHE="" or "off" keeps nothing.
"""

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from espace_tf import keras_layers, kernels
from espace_tf.checks import warn
from espace_tf.config import RUNTIMES, EspaceWarning
from espace_tf.files import atomic_write

VARIABLE = "ESPACE_TF_CACHE"
_FORMAT = "espace_tf times 1"
OPERATORS = tuple(Path(package.__file__).parent for package in (kernels, keras_layers))
# Settings of TensorFlow that choose other kernels or another number of threads.
_SETTINGS = ("TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")


class LayerTimes:
    """Milliseconds of layers as they are, and of their options as shares of that.

    Layer and options were called in turns, so that the share is sound where the times of two runs
    are not: an option's time is always its share of the one time that is kept of the layer.

    Args:
        path: of the file; None: what is measured lasts as long as this object.

    Example:
        >>> known = LayerTimes()
        >>> known.add("3x3, 16 to 32", 2.0, {"rank 4": 0.25})
        >>> known.get("3x3, 16 to 32"), known.get("3x3, 16 to 32", "rank 4")
        (2.0, 0.5)
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self._layers: dict[str, dict] = {}
        if path is not None:
            self._layers = _read(path, told=True)

    @classmethod
    def of_this_machine(cls) -> "LayerTimes":
        """What was measured before on a machine like this, with this software."""
        folder = cache_folder()
        if folder is None:
            return cls()
        name = hashlib.sha256(json.dumps(environment()).encode()).hexdigest()[:16]
        return cls(folder / f"times-{name}.json")

    def get(self, layer: str, option: str | None = None) -> float | None:
        """Milliseconds of a layer as it is, or of an option of it; None if not known.

        Args:
            layer: all that decides the layer's time.
            option: what is done to it; None: nothing.
        """
        entry = self._layers.get(layer)
        if entry is None or option is None:
            return None if entry is None else entry["ms"]
        share = entry["shares"].get(option)
        return None if share is None else entry["ms"] * share

    def add(self, layer: str, ms: float, shares: Mapping[str, float]) -> None:
        """Keeps what was measured in one run.

        Args:
            layer: all that decides the layer's time.
            ms: of the layer as it is; not used if that is known.
            shares: option -> its time divided by the layer's, both of this run.
        """
        _merge(self._layers, {layer: {"ms": float(ms), "shares": dict(shares)}})
        if self._path is not None:
            self._save()

    def _save(self) -> None:
        """Writes all that is known here or in the file, which another process may have added to.

        Two that write at once may lose what one of them added last, never the file.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _merge(self._layers, _read(self._path))
            content = {"format": _FORMAT, "where": environment(), "layers": self._layers}
            with atomic_write(self._path, VARIABLE) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError:  # A home that cannot be written is no error: nothing is kept then.
            self._path = None


def cache_folder() -> Path | None:
    """Where files are kept; None: nowhere, because the user said so or has no home."""
    given = os.environ.get(VARIABLE)
    if given is not None:  # "~" where a shell did not replace it, as in a file of settings.
        off = given.strip().lower() in ("", "off")
        return None if off else Path(os.path.expanduser(given))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # Others are to be ignored (XDG Base Directory Specification).
        return Path(base) / "espace_tf"
    try:
        return Path.home() / ".cache" / "espace_tf"
    except RuntimeError:
        return None


def environment() -> dict[str, Any]:
    """What decides times beside the layer and the configuration: machine and software."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "gpus": [
            tf.config.experimental.get_device_details(device).get("device_name", device.name)
            for device in tf.config.list_physical_devices("GPU")
        ],
        "tensorflow": tf.__version__,
        "runtimes": {
            package: _version(package) for known in RUNTIMES.values() for package in known.packages
        },
        "operator": f"{kernels.backend()}, sources {code_digest(*OPERATORS)}",
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "jit": tf.config.optimizer.get_jit(),
        "settings": {name: os.environ.get(name) for name in _SETTINGS},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} {platform.processor()}".strip()


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def code_digest(*folders: Path) -> str:
    """A digest of the Python modules and binaries in these folders and below."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.*")):
        if path.suffix in (".py", ".so"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _merge(into: dict[str, dict], other: Mapping[str, dict]) -> None:
    """Adds what is not known yet: the first measurement of a layer or option counts."""
    for layer, entry in other.items():
        known = into.setdefault(layer, {"ms": entry["ms"], "shares": {}})
        known["shares"] = {**entry["shares"], **known["shares"]}


def _read(path: Path, told: bool = False) -> dict[str, dict]:
    """The layers in a file; none if it is not there or is something else."""
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        return {}
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and content.get("format") == _FORMAT:
        layers = content.get("layers")
        if isinstance(layers, dict) and all(map(_is_entry, layers.values())):
            return layers
    if told:
        warn(
            f"{str(path)!r} does not hold measured times; it is ignored and will be written anew",
            EspaceWarning,
        )
    return {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"ms", "shares"}:
        return False
    shares = entry["shares"]
    return isinstance(shares, dict) and all(map(_is_time, (entry["ms"], *shares.values())))


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0
