"""Files on the Hugging Face Hub: are they here, and if not, bring them, or say why that cannot be."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..budget import said
from ..errors import refuse
from ..words import say
from . import cache
from .catalog import Entry

if TYPE_CHECKING:
    from .builtin import Progress

# Of our own copy of an SAE: the weights, ready to be mapped into memory, and what they were made of.
WEIGHTS, STAMP = "sae.safetensors", "sae.json"

_OFFLINE = "Hugging Face cannot be reached (or HF_HUB_OFFLINE is set), and the {what} is not in the local cache"
_CUT_SHORT = "the download was cut short; what came is kept but not used, so try again and it goes on from there"


# ---- what is here


def copy_folder(entry: Entry) -> Path:
    """Where our own copy of `entry` lies, once it was opened."""
    return cache.folder() / "saes" / entry.repo.replace("/", "--") / entry.path.replace("/", "--")


def cached(entry: Entry) -> bool:
    """Whether `entry` opens without the network."""
    return (copy_folder(entry) / STAMP).is_file() or local_file(entry) is not None


def local_file(entry: Entry, name: str | None = None) -> Path | None:
    """The weights of `entry` (or the file `name` of its repository) in Hugging Face's cache, or None.

    Without a revision in the entry, the one the cache holds is as good as any: released weights do not change.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    name = name or entry.file
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{entry.repo.replace('/', '--')}", "snapshots")
    if not snapshots.is_dir():  # most of a catalogue ends here
        return None
    found = try_to_load_from_cache(entry.repo, name, revision=entry.revision)
    if isinstance(found, str):
        return Path(found)
    if entry.revision is None:
        return next((file for folder in sorted(snapshots.iterdir()) if (file := folder / name).is_file()), None)
    return None


def revision_of(file: Path, entry: Entry) -> str | None:
    """The commit that `file`, in Hugging Face's cache, is of."""
    depth = entry.file.count("/") + 1
    parents = file.parents
    return parents[depth - 1].name if len(parents) > depth and parents[depth].name == "snapshots" else None


# ---- bringing it


def fetch(entry: Entry, *, progress: Progress | None = None, again: bool = False) -> Path:
    """The weights of `entry` in Hugging Face's cache, downloaded if they are not there. Resumes what was interrupted.

    `progress` is called with what is being done and the share that is done; without it Hugging Face's own bar is
    shown. `again` downloads even what is there. Refuses 'sae-not-fetched' and says why.
    """
    import huggingface_hub
    from huggingface_hub import constants

    here = None if again else local_file(entry)
    if here is not None:
        return here
    options: dict[str, Any] = {"force_download": True} if again else {}
    if progress is not None and "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters:
        options["tqdm_class"] = _bar(progress, say("downloading {what}", what=entry))
    try:
        if not constants.HF_HUB_OFFLINE:
            place = Path(constants.HF_HUB_CACHE)
            place.mkdir(parents=True, exist_ok=True)
            cache.require_space(entry.bytes, place)
        return Path(huggingface_hub.hf_hub_download(entry.repo, entry.file, revision=entry.revision, **options))
    except Exception as error:
        because = why(error, entry.repo, what="SAE", missing=f"the repository has no {entry.file}")
        if because is None:
            raise
        raise refuse("sae-not-fetched", entry=entry, size=said(entry.bytes), repo=entry.repo, why=because) from shown(
            error
        )


def fetch_config(entry: Entry, revision: str | None) -> Path | None:
    """config.json beside the weights of Gemma Scope 2, None where there is none or no network: it only confirms."""
    import huggingface_hub

    name = f"{entry.path}/config.json"
    here = local_file(entry, name)
    if here is not None:
        return here
    try:
        return Path(huggingface_hub.hf_hub_download(entry.repo, name, revision=revision or entry.revision))
    except Exception as error:
        if why(error, entry.repo, what="SAE") is None:
            raise
        return None


def _bar(progress: Progress, doing: str) -> type:
    """A silent progress bar that passes the share on."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.came, self.whole = options.get("initial") or 0, options.get("total")
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.came += n or 0
            if self.whole:
                progress(doing, min(1.0, self.came / self.whole))

    return Bar


# ---- why not


def why(
    error: BaseException, repo: str, *, what: str = "model", missing: str = "there is no such file in it"
) -> str | None:
    """Why the Hub gave nothing, as a sentence without its stop; None for an error that is not the Hub's.

    Its own messages are long, differ by release, and may name what should not be shown.
    """
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    offline = _OFFLINE.format(what=what)
    if isinstance(error, errors.GatedRepoError):
        return f"access is restricted; accept its licence at {page} and log in once with 'hf auth login'"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "Hugging Face has no such model, or it is private and you are not logged in"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        # The Hub's library says "not in the cache" also when the Hub did answer, with an error.
        answered = isinstance(error.__cause__, errors.HfHubHTTPError)
        return why(error.__cause__, repo, what=what, missing=missing) if answered and error.__cause__ else offline
    if isinstance(error, errors.EntryNotFoundError):
        return missing
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        return {
            401: "the login on this machine is not valid; log in again with 'hf auth login'",
            403: f"your login may not read it; accept its licence at {page}, and let the access token read gated "
            "repositories",
            429: "Hugging Face asks to slow down (429); try again in a few minutes",
        }.get(status or 0, f"Hugging Face answered with status {status}")
    if isinstance(error, errors.HFValidationError):
        return "that is no Hugging Face id"
    if isinstance(error, OSError) and error.errno in cache.CANNOT_WRITE:
        also = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"it cannot be kept in the Hugging Face cache ({error.strerror}){also}, or name another place in HF_HOME"
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return _CUT_SHORT
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or library.rstrip("0123456789") in ("httpx", "httpcore", "requests", "urllib3"):
        return offline
    return None


def shown(error: BaseException) -> BaseException | None:
    """`error` as the cause to be shown, or None if the access token stands in it."""
    from huggingface_hub import get_token

    token = get_token()
    link: BaseException | None = error
    while token and link is not None:
        if token in f"{link} {link.args}":
            return None
        link = link.__cause__ or link.__context__
    return error
