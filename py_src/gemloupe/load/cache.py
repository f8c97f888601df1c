"""The user's cache folder: where it is, one writer at a time, whole files or none."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import refuse

# What the system says when the user may not, or cannot, write there. ENOTDIR and EEXIST: a file is in the folder's
# place. EFBIG: a limit on file size.
CANNOT_WRITE = frozenset(
    {
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOTDIR,
        errno.EEXIST,
    }
)

# Left free on the disk by what only saves time, which is not worth filling the disk for.
KEPT_FREE = 2 << 30


def folder() -> Path:
    """`$GEMLOUPE_CACHE`, else the platform's cache folder for gemloupe."""
    given = os.environ.get("GEMLOUPE_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("gemloupe", appauthor=False))


def data_folder() -> Path:
    """`$GEMLOUPE_DATA`, else the platform's folder for a user's own data: what no download brings back."""
    given = os.environ.get("GEMLOUPE_DATA")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("gemloupe", appauthor=False))


@contextmanager
def explained(need: str, where: Path | None = None) -> Iterator[None]:
    """Turns 'read-only' and 'disk full' into a refusal that names the folder and the space needed."""
    try:
        yield
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            why = os.strerror(error.errno)
            raise refuse("cache-not-writable", folder=where or folder(), why=why, need=need) from error
        raise


def require_space(size: int, where: Path) -> None:
    """Raises ENOSPC ahead of the work if fewer than `size` bytes are free at `where`, a folder that exists."""
    if shutil.disk_usage(where).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))


@contextmanager
def alone(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock file beside `path`; a second process waits until the first is done or dead.

    `waiting` is called once if there is a wait.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """`path` holds all of `data` afterwards, or is as it was. Without `durable` not if the power fails: for files whose
    content is checked when they are read, and that can be made again."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(name).replace(path)
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
        put_in_place(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put_in_place(made: Path, target: Path) -> None:
    """Renames the folder `made` to `target`, replacing what is there; files already open keep their old content."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    try:
        made.replace(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
