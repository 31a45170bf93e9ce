"""Files that are either whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path in the folder of `path` that replaces `path` when the block ends well.

    The block creates the file at the temporary path, which has the suffix of `path`. Then it is
    flushed to the disk and renamed, so that whoever opens `path` sees the former file or the new
    one, never a part. If the block raises, `path` is untouched and the temporary file is removed.

    Args:
        path: the file to write; its folder must exist.

    Raises:
        FileNotFoundError: the folder does not exist, or the block wrote nothing.
        OSError: the folder cannot be written.

    Example:
        >>> with atomic_write("notes.txt") as temporary:
        ...     temporary.write_text("whole")
        5
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of {path.name} does not exist: make it")
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut, where the system offers that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
