"""The user's cache folder: where it is, one writer at a time, whole files or none."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import refuse


def folder() -> Path:
    """`$GEMLOUPE_CACHE`, else the platform's cache folder for gemloupe."""
    given = os.environ.get("GEMLOUPE_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("gemloupe", appauthor=False))


@contextmanager
def explained(need: str, where: Path | None = None) -> Iterator[None]:
    """Turns 'read-only' and 'disk full' into a refusal that names the folder and the space needed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = os.strerror(error.errno)
            raise refuse("cache-not-writable", folder=where or folder(), why=why, need=need) from error
        raise


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds a lock file beside `path`; a second process waits until the first is done or dead."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """`path` holds all of `data` afterwards, or is as it was."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_atomically(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; it becomes `target` when the block ends well, and disappears when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield made
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
