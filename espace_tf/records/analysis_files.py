"""An analysis on disk: JSON with a checksum of itself, and the arrays beside it with theirs."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.files import atomic_write, check_replaceable

FORMAT = "espace_tf analysis"
VERSION = 1


def write(path: Path, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `body` as JSON at `path` and the arrays beside it, at `path` + ".npz".

    Raises:
        ValueError: something else than an analysis is at one of the two places.
        OSError: the folder does not exist or cannot be written; nothing is left there.
    """
    beside, buffer = _arrays_path(path), io.BytesIO()
    check_replaceable(path, FORMAT)
    existed = beside.exists()
    if existed and not path.exists():
        raise ValueError(
            "path must be one beside which the arrays may be written. Received: "
            f"{str(path)!r}, beside which {beside.name!r} belongs to something else; give another "
            "path or remove that file first"
        )
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    body = {**body, "arrays_sha256": hashlib.sha256(content).hexdigest()}
    document = {"format": FORMAT, "version": VERSION, "sha256": _digest(body), "body": body}
    try:
        # Both are whole on the disk before the first of them takes its place.
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(document))
            with atomic_write(beside) as file:
                file.write_bytes(content)
    except BaseException:
        if not existed:
            beside.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write` wrote: the body and the arrays by name.

    Raises:
        FileNotFoundError: one of the two files is missing; the message says which.
        ValueError: corrupt or truncated, of another format or a newer version; the message says
            which.
    """
    _check_is_there(path)
    body, beside = _read_body(path), _arrays_path(path)
    _check_is_there(beside)
    content = beside.read_bytes()
    if hashlib.sha256(content).hexdigest() != body["arrays_sha256"]:
        raise ValueError(
            f"{beside} is corrupt or truncated, or belongs to another analysis: its checksum is "
            f"not the one that {path} names. Analyse again"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return body, dict(stored)


def _arrays_path(path: Path) -> Path:
    return path.with_name(path.name + ".npz")


def _check_is_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: an analysis is a JSON file and its arrays beside it"
        )


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_body(path: Path) -> dict:
    try:
        document = json.loads(path.read_text())
        form, version = document["format"], int(document["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is corrupt or truncated, or no saved analysis: {error}. Analyse again"
        ) from error
    if form != FORMAT:
        remedy = "; read it with Plan.load" if form == "espace_tf plan" else ""
        raise ValueError(f"{path} must hold an analysis ({FORMAT!r}). Received: {form!r}{remedy}")
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer espace_tf (format {version}, this one reads up to "
            f"{VERSION}): upgrade espace_tf or analyse again"
        )
    if _digest(document.get("body", {})) != document.get("sha256"):
        raise ValueError(f"{path} is corrupt: its content is not what its checksum says")
    return document["body"]
