"""A plan on disk: readable JSON that names its array file and the checksum of it."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.files import atomic_write

FORMAT = "espace_tf plan"
VERSION = 1


def write(path: Path, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `body` as JSON at `path` and the arrays beside it, as one consistent pair.

    The array file bears its checksum in its name, plan.<checksum>.npz, and is written first; the
    JSON that names it then replaces the former one in a single step. So a crash at any moment
    leaves the former pair or the new one, and the former arrays are removed last.

    Raises:
        OSError: the folder does not exist or cannot be written; nothing is left there.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    checksum = hashlib.sha256(content).hexdigest()
    beside = path.with_name(f"{path.stem}.{checksum[:12]}.npz")
    document = {
        "format": FORMAT,
        "version": VERSION,
        **body,
        "arrays": {"file": beside.name, "sha256": checksum},
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    former, existed = _former_arrays(path), beside.exists()
    with atomic_write(beside) as temporary:
        temporary.write_bytes(content)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    except BaseException:
        if not existed:
            beside.unlink(missing_ok=True)
        raise
    if former is not None and former != beside:
        former.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write` wrote: the JSON document and the arrays by name.

    Raises:
        FileNotFoundError: one of the two files is missing; the message says which.
        ValueError: corrupt or truncated, no plan, or of a newer version; the message says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no plan at {path}")
    document = _parse(path)
    entry = document.get("arrays")
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        raise ValueError(f"{path} is corrupt: it names no array file")
    beside = path.with_name(Path(entry["file"]).name)
    if not beside.is_file():
        raise FileNotFoundError(
            f"{beside}, the array file of the plan {path.name}, is missing: copy both files"
        )
    content = beside.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise ValueError(
            f"{beside} is corrupt or truncated: its checksum is not the one that {path.name} names"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return document, dict(stored)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{beside} is no array file of a plan: {error}") from error


def entries(value: Any, name: str) -> dict[str, Any]:
    """The value, if it is a JSON object.

    Raises:
        TypeError: it is none; the message names it.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a JSON object {{...}}. Received: {value!r}")
    return value


def fields(value: Any, names: Sequence[str]) -> dict[str, Any]:
    """These fields of a JSON object.

    Raises:
        TypeError: no JSON object.
        ValueError: a field is missing; the message names it.
    """
    missing = [name for name in names if name not in entries(value, "what holds the fields")]
    if missing:
        raise ValueError(f"the field {missing[0]!r} is missing")
    return {name: value[name] for name in names}


def _parse(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is corrupt or truncated: {error}") from error
    form = document.get("format") if isinstance(document, dict) else None
    if form != FORMAT:
        remedy = "; read it with Analysis.load" if form == "espace_tf analysis" else ""
        raise ValueError(
            f"{path} is no plan: its format is not {FORMAT!r}. Received: {form!r}{remedy}"
        )
    version = document.get("version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} is corrupt: version must be a number. Received: {version!r}")
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer espace_tf: its version is {version}, this one reads up "
            f"to {VERSION}. Upgrade espace_tf, or plan again"
        )
    return document


def _former_arrays(path: Path) -> Path | None:
    """The array file of the plan that is at `path` already, if it is one of ours."""
    try:
        name = _parse(path)["arrays"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    own = re.fullmatch(re.escape(path.stem) + r"\.[0-9a-f]{12}\.npz", str(name))
    return path.with_name(name) if own else None
