"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scalekv.errors import InvalidInput


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well, and vanishes when it does not.

    Raises:
        InvalidInput: the folder does not exist or cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=path.suffix or ".tmp", dir=path.parent)
    except OSError as error:
        raise InvalidInput(f"Cannot write {path}: {error.strerror or error}; choose a writable place.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, path)
    except OSError as error:
        raise InvalidInput(f"Cannot write {path}: {error.strerror or error}; choose another place.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    try:
        temporary.replace(path)
    except OSError as error:
        raise InvalidInput(f"Cannot write {path}: {error.strerror or error}; choose another name.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Raises:
        InvalidInput: the folder does not exist or cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
