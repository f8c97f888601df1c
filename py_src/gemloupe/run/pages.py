"""SAEs where they are needed, within a budget: on disk, on the host, on the device.

All of Gemma Scope's SAEs of one model are tens of gigabytes; a forward pass needs them one after the other. A `Pager`
holds as many as a budget in bytes allows, the least recently used leaves first, and while one encodes, threads
load those that come next. What it hands out is the same SAE whatever the budget: only the time differs.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..budget import said
from ..errors import Refusal, refuse
from ..load import cache
from ..load.artifact import read_json, verify
from ..load.memory import free_bytes
from ..load.sae import Sae, Transcoder
from ..site import Site
from .encode import norms, screen_bytes
from .staging import Staging

_log = logging.getLogger(__name__)

# Changes when what a page holds changes; older pages are then written anew.
_FORMAT = 1
_PAGE, _ABOUT = "sae.safetensors", "page.json"
# SAEs loaded at once while another encodes. Unpacking one takes longer than encoding with one, and keeps one core busy.
_AHEAD = 2
# Bytes of SAEs up to which all that a pass lacks is loaded before it begins.
_AT_ONCE = 2 << 30


def footprint(width: int, d_in: int, device: torch.device | str, d_out: int | None = None) -> int:
    """Bytes that an SAE of `width` features takes on `device`, with what encoding on a CPU keeps beside it."""
    out = d_in if d_out is None else d_out
    return 4 * (width * (d_in + out + 2) + out) + beside(width, d_in, device)


def beside(width: int, d_in: int, device: torch.device | str) -> int:
    """Bytes that encoding keeps beside an SAE: on a CPU the encoder rounded to int8."""
    return screen_bytes(width, d_in) if torch.device(device).type == "cpu" else 0


class Pager:
    """Hands out SAEs by site and keeps within `budget` bytes what it holds. Safe to use from several threads.

    `load(site)` brings an SAE from below (the disk, or the pager `below`, which is closed with this one); `size(site)`
    says beforehand how many bytes it takes on `device`. An SAE that a caller still uses stays alive for it, whatever
    the pager lets go of.
    """

    def __init__(
        self,
        load: Callable[[Site], Sae],
        size: Callable[[Site], int],
        *,
        budget: int,
        device: torch.device | str = "cpu",
        below: Pager | None = None,
    ) -> None:
        self._below = below
        self.budget, self.device = budget, torch.device(device)
        self.loads = 0
        """How often an SAE had to be brought from below."""
        self._load, self._size = load, size
        self._shelf: OrderedDict[Site, Sae] = OrderedDict()  # least recently used first
        self._coming: dict[Site, Future[Sae]] = {}
        self._in_use: Site | None = None
        self._after: dict[Site, Site] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._ahead: ThreadPoolExecutor | None = None
        self._stream: Any = None
        self._staging: Any = None

    @property
    def held(self) -> int:
        """Bytes of the SAEs that are here or on their way; never above `budget`."""
        with self._changed:
            return sum(map(self._size, [*self._shelf, *self._coming]))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites whose SAE is here, the least recently used first."""
        with self._changed:
            return tuple(self._shelf)

    def expect(self, order: Iterable[Site]) -> None:
        """The order in which SAEs will be asked for, over and over: whenever one is, the next are loaded ahead."""
        with self._changed:
            sites = tuple(order)
            self._after = dict(zip(sites, sites[1:] + sites[:1], strict=True)) if len(sites) > 1 else {}
            if not sites and self._ahead is not None:
                # Their threads end: what pools torch made for them would slow all others (see `encode.norms`).
                self._ahead.shutdown(wait=False)
                self._ahead = None

    @contextmanager
    def round(self, order: Iterable[Site], checkpoint: Callable[[], object] = lambda: None) -> Iterator[None]:
        """A pass that asks for the SAEs in this order, again and again. `checkpoint()` may raise to stop."""
        sites = tuple(order)
        self.expect(sites)
        try:
            self._gather(sites, checkpoint)
            yield
        finally:
            self.expect(())

    def _gather(self, sites: tuple[Site, ...], checkpoint: Callable[[], object]) -> None:
        """Load what is not here yet, several at once, where all of it has room and is soon there.

        In mid-pass a layer would often wait for its SAE, and the threads that multiply, which OpenMP keeps spinning for
        a while after each product, would take the cores from those that load.
        """
        if self.device.type != "cpu":
            return
        with self._changed:
            missing = [site for site in sites if site not in self._shelf and site not in self._coming]
            sizes = {site: self._size(site) for site in sites}
            if len(missing) < 2 or sum(sizes.values()) > self.budget or sum(sizes[site] for site in missing) > _AT_ONCE:
                return
            for site in missing:
                if self._closed or not self._make_room(site, keep=sites):
                    break
                self._load_ahead(site)
        for site in missing:
            checkpoint()
            with self._changed:
                while site in self._coming and not self._closed:  # what cannot be loaded is told to who asks for it
                    self._changed.wait()

    def get(self, site: Site) -> Sae:
        """The SAE at `site`, on the device. Waits while it is loaded; what loading refuses is raised here."""
        with self._changed:
            self._in_use = site
            while True:
                if self._closed:
                    raise refuse("engine-closed")
                if (sae := self._shelf.get(site)) is not None:
                    self._shelf.move_to_end(site)
                    self._load_next(site)
                    return sae
                if site not in self._coming and self._make_room(site):
                    mine: Future[Sae] = Future()
                    self._coming[site] = mine
                    break
                # Someone else loads it, or what is being loaded ahead holds the room it needs.
                self._changed.wait()
        sae = self._bring(site, mine)
        with self._changed:
            self._load_next(site)
        return sae

    def _bring(self, site: Site, promise: Future[Sae]) -> Sae:
        """Load `site`, for which there is room, and put it on the shelf; called without the lock."""
        try:
            sae = self._moved(self._load(site))
        except BaseException as error:
            with self._changed:
                del self._coming[site]
                self._changed.notify_all()
            promise.set_exception(error)
            raise
        with self._changed:
            del self._coming[site]
            self.loads += 1
            if not self._closed:
                self._shelf[site] = sae
            self._changed.notify_all()
        promise.set_result(sae)
        return sae

    def _moved(self, sae: Sae) -> Sae:
        if self.device.type == "cpu":
            # A mapped encoder is read from the disk here, not while it is multiplied with; the decoder may never be.
            norms(sae)
            return sae
        if self.device.type != "cuda":
            return sae.to(self.device)
        # On a stream of its own the copy runs beside the encoding of the SAE before.
        with self._changed:
            if self._stream is None:
                self._stream, self._staging = torch.cuda.Stream(self.device), Staging(self.device)
            staging = self._staging
        with torch.cuda.stream(self._stream):
            tensors = {name: one for name, one in vars(sae).items() if isinstance(one, torch.Tensor)}
            moved = replace(sae, **{name: staging.copy(one) for name, one in tensors.items()})
        self._stream.synchronize()
        for tensor in vars(moved).values():
            if isinstance(tensor, torch.Tensor):
                # Memory that is given back must not be filled again before the model's stream has read it.
                tensor.record_stream(torch.cuda.default_stream(self.device))
        return moved

    def _make_room(self, site: Site, *, keep: Collection[Site] = ()) -> bool:
        """Let go of what was used least recently, but not of `keep`, until `site` fits; False if that is not to be had
        now."""
        need = self._size(site)
        if need > self.budget:
            raise refuse("budget-too-small", budget=said(self.budget), site=site, need=said(need))
        taken = sum(map(self._size, [*self._shelf, *self._coming]))
        leaving = []
        for other in self._shelf:
            if taken + need <= self.budget:
                break
            if other == site or other in keep:
                continue
            leaving.append(other)
            taken -= self._size(other)
        if taken + need > self.budget:
            return False
        for other in leaving:
            del self._shelf[other]
        return True

    def _load_next(self, site: Site) -> None:
        """Begin to load what comes after `site`, unless it is here or there is no room beside `site`."""
        # Loading ahead must neither push out the SAE that encodes now nor, where a whole round fits, the next ones.
        keep = [site] if self._in_use is None else [site, self._in_use]
        following: Site | None = site
        for _ in range(_AHEAD):
            following = self._after.get(following) if following is not None else None
            if following is None or following == site or self._closed:
                return
            if following not in self._shelf and following not in self._coming:
                if not self._make_room(following, keep=keep):
                    return
                self._load_ahead(following)
            keep.append(following)

    def _load_ahead(self, site: Site) -> None:
        promise: Future[Sae] = Future()
        self._coming[site] = promise

        def load() -> None:
            try:
                self._bring(site, promise)
            except BaseException:
                # Whoever asks for it loads it again, and is told then.
                _log.debug("loading %s ahead failed", site, exc_info=True)

        if self._ahead is None:
            # Copies to a GPU share one staging buffer.
            self._ahead = ThreadPoolExecutor(_AHEAD if self.device.type == "cpu" else 1, "gemloupe-pages")
        self._ahead.submit(load)

    def close(self) -> None:
        """Let go of everything; what is being loaded is dropped when it comes."""
        with self._changed:
            self._closed = True
            self._shelf.clear()
            ahead, self._ahead = self._ahead, None
            self._changed.notify_all()
        if ahead is not None:
            ahead.shutdown(wait=True, cancel_futures=True)
        if self._below is not None:
            self._below.close()


# ---- on disk


def mapped(source: Path, site: Site, load: Callable[[], Sae], folder: Path | None = None) -> Sae:
    """The SAE that `load()` reads from the file `source`, as a page: float32 in the order it is used in, mapped.

    The page is written to `folder` (default: 'pages' in the cache folder) the first time. It is compared with its
    sha256 once per process; a damaged one is written anew from the source. Where there is no space, or no way to
    write, the SAE is kept in memory instead, and a warning says so.
    """
    about = source.stat()
    identity = [os.path.realpath(source), about.st_size, about.st_mtime_ns, str(site), _FORMAT]
    place = (cache.folder() / "pages" if folder is None else folder) / sha256(json.dumps(identity).encode()).hexdigest()
    if place.exists():
        try:
            return _open(place)
        except (Refusal, OSError) as error:
            _log.warning("gemloupe: a page of %s is damaged and is written anew (%s)", site, error)
    sae = load()
    tensors = {f.name: getattr(sae, f.name) for f in fields(sae) if isinstance(getattr(sae, f.name), torch.Tensor)}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        cache.require_space(sum(t.nbytes for t in tensors.values()) + cache.KEPT_FREE, place.parent)
        with cache.alone(place), cache.folder_atomically(place) as made:
            _write(made, sae, tensors)
        return _open(place)
    except (Refusal, OSError) as error:
        _log.warning("gemloupe: no page of %s could be kept; it is read from its source each time (%s)", site, error)
        return sae


def _write(folder: Path, sae: Sae, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _PAGE)
    with (folder / _PAGE).open("rb") as file:
        digest = _digest(file)
    about: dict[str, Any] = {"site": str(sae.site), "sha256": digest}
    if isinstance(sae, Transcoder):
        about |= {"transcoder": True, "before_gain": sae.before_gain}
    (folder / _ABOUT).write_text(json.dumps(about))


def _digest(file: Any) -> str:
    import hashlib

    return hashlib.file_digest(file, "sha256").hexdigest()


def _open(folder: Path) -> Sae:
    """The page in `folder`, mapped: its bytes are read when they are used, and the system may take them back."""
    from safetensors import SafetensorError, safe_open

    about = read_json(folder / _ABOUT)
    file = folder / _PAGE
    verify(file, str(about.get("sha256")))
    try:
        with safe_open(file, framework="pt") as opened:
            tensors: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        site = Site.of(about["site"])
        if about.get("transcoder"):
            return Transcoder(site, before_gain=bool(about["before_gain"]), **tensors)
        return Sae(site, **tensors)
    except (SafetensorError, KeyError, TypeError) as error:
        raise refuse("scope-damaged", file=file, why=str(error)) from error


# ---- budgets


def default_budget(device: torch.device | str) -> int:
    """Half of what is free on `device`: the rest is for the pass itself, longer texts and other programs."""
    return free_bytes(device) // 2
