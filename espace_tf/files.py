"""Files that are either whole or not there, and words for paths that cannot be written."""

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "remove the file that stands where a folder must",
    errno.EEXIST: "remove the file that stands where a folder must",
    errno.EACCES: "allow writing there",
    errno.EPERM: "allow writing there",
    errno.EROFS: "allow writing there",
    errno.ENAMETOOLONG: "shorten it",
}


@contextlib.contextmanager
def in_words(path: str | os.PathLike, name: str = "path") -> Iterator[None]:
    """Turns an OSError of the block into one of the same kind that names the argument.

    Args:
        path: what cannot be written then.
        name: the argument that the user gave it by.

    Example:
        >>> with in_words("gone/notes.txt"):
        ...     open("gone/notes.txt", "w")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] path 'gone/notes.txt' cannot be written (No such file or
        directory): make its folder first, or give another path
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, "look at that place")
        words = (
            f"{name} {str(path)!r} cannot be written ({error.strerror or error}): {remedy}, or "
            f"give another {name}"
        )
        code = () if error.errno is None else (error.errno,)
        raise type(error)(*code, words) from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, name: str = "path") -> Iterator[Path]:
    """A temporary path in the folder of `path` that replaces `path` when the block ends well.

    The block creates the file at the temporary path, which has the suffix of `path`. Then it is
    flushed to the disk and renamed, so that whoever opens `path` sees the former file or the new
    one, never a part. If the block raises, `path` is untouched and the temporary file is removed.

    Args:
        path: the file to write; its folder must exist.
        name: the argument that the user gave it by, for errors.

    Raises:
        FileNotFoundError: the folder does not exist, or the block wrote nothing.
        OSError: the folder cannot be written.

    Example:
        >>> with atomic_write("notes.txt") as temporary:
        ...     temporary.write_text("whole")
        5
    """
    path = Path(path)
    _check_parent(path, name)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    with in_words(path, name):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def checked_path(path: Any, name: str = "path") -> Path:
    """The path that a user gave.

    Raises:
        TypeError: no path.
        ValueError: empty; the message names the argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} must be a path, a text or pathlib's. Received: {path!r}")
    if not os.fspath(path) or "\0" in str(path):
        raise ValueError(f"{name} must be a path that is not empty. Received: {path!r}")
    return Path(path)


def output_path(
    path: Any, name: str = "path", *, suffix: str = "", allow_folder: bool = False
) -> Path:
    """The path of a file that can be written, as far as that can be told without writing.

    Args:
        path: what the user gave.
        name: the argument that it was given by.
        suffix: what it must end in; empty: anything.
        allow_folder: whether a folder may stand there already.

    Raises:
        TypeError: no path.
        ValueError: empty, or of another suffix.
        OSError: its folder is not there or cannot be written, or a folder is in its place.
    """
    path = checked_path(path, name)
    if suffix and path.suffix != suffix:
        raise ValueError(f"{name} must end in {suffix!r}. Received: {str(path)!r}")
    if path.is_dir() and not allow_folder:
        raise IsADirectoryError(
            f"{name} must be that of a file. Received: {str(path)!r}, a folder; add a file's name"
        )
    _check_parent(path, name)
    return path


def output_folder(path: Any, name: str) -> Path:
    """A folder for results, made with those above it if it is not there, and tried.

    Args:
        path: what the user gave.
        name: the argument that it was given by.

    Raises:
        TypeError: no path.
        ValueError: empty.
        OSError: it cannot be made or written.
    """
    path = checked_path(path, name)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"{name} must be a folder. Received: {str(path)!r}, a file; give another {name}"
        )
    with in_words(path, name):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


def _check_parent(path: Path, name: str) -> None:
    """Raises OSError unless a file can be made beside `path`."""
    parent = path.parent
    if not parent.is_dir():
        there = os.path.lexists(parent)
        raise (NotADirectoryError if there else FileNotFoundError)(
            f"{name} must lie in an existing folder. Received: {str(path)!r}; {str(parent)!r} "
            + ("is a file: give another path" if there else "does not exist: make it first")
        )
    if not os.access(parent, os.W_OK):
        raise PermissionError(
            f"{name} must lie in a folder that can be written. Received: {str(path)!r}; "
            f"{str(parent)!r} is read-only: give another path"
        )


def _flush_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut, where the system offers that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
