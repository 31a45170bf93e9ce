"""Plans and analyses on disk: readable JSON that names its array file and the checksum of it.

The array file bears its checksum in its name, plan.<checksum>.npz, and is written first; the JSON
that names it then replaces the former one in a single step. So a crash at any moment leaves the
former pair or the new one. The former arrays are removed last, unless a copy of the former JSON in
the same folder still names them.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.files import atomic_write, in_words

PLAN, ANALYSIS = "espace_tf plan", "espace_tf analysis"
VERSION = 2
_READERS = {PLAN: "Plan.load", ANALYSIS: "Analysis.load"}


def write(path: Path, form: str, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `body` as JSON at `path` and the arrays beside it, as one consistent pair.

    Args:
        path: of the JSON file.
        form: PLAN or ANALYSIS.
        body: what JSON can hold, NumPy's numbers and paths.
        arrays: by name.

    Raises:
        ValueError: a file stands at `path` that is no document of this form.
        OSError: the folder does not exist or cannot be written; nothing is left there.
    """
    check_replaceable(path, form)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    beside = path.with_name(f"{path.stem}.{digest[:12]}.npz")
    entry = {"file": beside.name, "sha256": digest}
    document = {"format": form, "version": VERSION, "arrays": entry, **body}
    text = json.dumps(document, indent=1, default=_plain)
    former = None
    with contextlib.suppress(OSError, ValueError):
        former = _arrays_of(path, _parse(path, form))
    try:
        with atomic_write(beside) as temporary:
            temporary.write_bytes(content)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except BaseException:
        _remove_unnamed(beside, digest)
        raise
    if former is not None:
        _remove_unnamed(*former)


def read(path: Path, form: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write` wrote: the JSON document and the arrays by name.

    Raises:
        FileNotFoundError: one of the two files is missing; the message says which.
        ValueError: corrupt or truncated, of another form, or of a newer version; the message says
            which.
    """
    kind = form.split()[-1]
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} at {path}")
    document = _parse(path, form)
    beside, digest = _arrays_of(path, document)
    if not beside.is_file():
        raise FileNotFoundError(
            f"{beside}, the array file of the {kind} {path.name}, is missing: copy both files"
        )
    content = beside.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{beside} is corrupt or truncated, or belongs to another {kind}: its checksum is not "
            f"the one that {path.name} names"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return document, dict(stored)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{beside} is no array file of an {form}: {error}") from error


def check_replaceable(path: Path, form: str) -> None:
    """Raises ValueError if a file stands at `path` that is no document of this form.

    Args:
        path: where the document is to go; an empty file may stand there.
        form: PLAN or ANALYSIS.
    """
    if not path.is_file():
        return
    with in_words(path), open(path, "rb") as file:
        start = file.read(200)
    if start and not re.match(rb'\{\s*"format":\s*"%s"' % form.encode(), start):
        raise ValueError(
            f"path must be a new file, or one that holds an {form}, to be replaced. Received: "
            f"{str(path)!r}, which holds something else; give another path or remove it first"
        )


def entries(value: Any, name: str) -> dict[str, Any]:
    """The value, if it is a JSON object; raises TypeError, which names it, if it is none."""
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


def _plain(value: Any) -> Any:
    """What json.dumps does not know: NumPy's numbers as Python's, paths as texts."""
    return value.item() if isinstance(value, np.generic) else os.fspath(value)


def _parse(path: Path, form: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is corrupt or truncated: {error}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != form:
        remedy = f"; read it with {_READERS[found]}" if found in (PLAN, ANALYSIS) else ""
        raise ValueError(f"{path} must hold an {form}. Received: the format {found!r}{remedy}")
    version = document.get("version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} is corrupt: version must be a number. Received: {version!r}")
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer espace_tf: its version is {version}, this one reads up "
            f"to {VERSION}. Upgrade espace_tf, or make the {form.split()[-1]} again"
        )
    return document


def _arrays_of(path: Path, document: Mapping[str, Any]) -> tuple[Path, str]:
    """The array file that a document names, and its checksum."""
    entry = document.get("arrays")
    names = (entry.get("file"), entry.get("sha256")) if isinstance(entry, dict) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is corrupt: it names no array file with its checksum")
    return path.with_name(Path(names[0]).name), names[1]


def _remove_unnamed(beside: Path, digest: str) -> None:
    """Removes an array file of this checksum if no JSON in its folder names that."""
    with contextlib.suppress(OSError):  # What cannot be read may name it.
        others = (other for other in beside.parent.iterdir() if other.is_file())
        own = hashlib.sha256(beside.read_bytes()).hexdigest() == digest
        if own and not any(_names(other, digest) for other in others):
            beside.unlink()


def _names(other: Path, digest: str) -> bool:
    with open(other, "rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        return start.startswith(b"{") and digest.encode() in start + file.read()
