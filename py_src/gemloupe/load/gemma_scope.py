"""Gemma Scope as a scope: SAEs of the catalogue, each fetched, checked and opened when it is first asked for.

What was downloaded is converted once into our cache: the encoder by rows, as it is used, in a safetensors file that
later openings only map into memory.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from ..budget import said
from ..errors import Refusal, refuse
from ..site import Site, in_words
from ..words import say
from . import cache, hub, layouts
from .artifact import read_json, sha256, verify
from .catalog import (
    DIMENSIONS,
    Catalog,
    Entry,
    base_model,
    borrowed,
    catalog,
    choose,
    named,
    nearest_names,
    spelled,
)
from .sae import FeatureStats, Sae, Transcoder
from .scope import ModelFacts

if TYPE_CHECKING:
    from .builtin import Progress

CONVERTER = 1  # raised when the copy would come out different
_TENSORS = ("encoder", "b_enc", "threshold", "decoder", "b_dec")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class GemmaScope:
    """SAEs of Gemma Scope, one per site; the same use as a `Scope`. `entries` says what each is, and what it weighs.

    Nothing is read or fetched before `load`; `notes` are sentences for the user.
    """

    id: str
    model: ModelFacts
    entries: Mapping[Site, Entry]
    notes: tuple[str, ...] = ()
    progress: Progress | None = field(default=None, repr=False, compare=False)
    _turn: Any = field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def made_with(self) -> Mapping[str, Any]:
        return MappingProxyType({"repositories": sorted({entry.repo for entry in self.entries.values()})})

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites there are SAEs for, in the order a forward pass reaches them."""
        return tuple(self.entries)

    def entry(self, site: Site | str) -> Entry:
        site = Site.of(site)
        if site not in self.entries:
            raise refuse("site-not-open", site=site, open=in_words(self.sites))
        return self.entries[site]

    def width(self, site: Site | str) -> int:
        """Number of features of the SAE at `site`."""
        return self.entry(site).width

    def facts(self, site: Site | str) -> dict[str, Any]:
        """What is declared of this SAE: l0, where it is from, and the commit once it was opened."""
        entry = self.entry(site)
        stamp = _stamp(entry) or {}
        about = {
            "l0": entry.l0,
            "release": entry.release,
            "sae_id": entry.id,
            "repo": entry.repo,
            "path": entry.path,
            "revision": stamp.get("revision") or entry.revision,
            "sha256": stamp.get("source"),
            "neuronpedia": entry.neuronpedia,
            "trained_on": entry.model,
        }
        return {key: value for key, value in about.items() if value is not None}

    def digest(self, site: Site | str) -> str | None:
        """sha256 of the file that was fetched for `site`; None before that."""
        return (_stamp(self.entry(site)) or {}).get("source")

    def check_model(self, model: ModelFacts) -> None:
        """Refuses a model these SAEs were not trained on ('scope-other-model'). What is unknown is not compared."""
        for what in ("architecture", "n_layers", "d_model", "z_width"):
            theirs, ours = getattr(self.model, what), getattr(model, what)
            if theirs is not None and ours is not None and theirs != ours:
                raise refuse("scope-other-model", scope=self.id, theirs=self.model, ours=model)

    def load(self, site: Site | str, model: ModelFacts | None = None) -> Sae:
        """The SAE at `site`, mapped from our cache; fetched, checked and converted the first time.

        The tensors are read from disk as they are touched: copy or move them before they are used again and again.
        All SAEs of one repository are of one commit, that of the first, wherever it can be reached.
        """
        entry = self.entry(site)
        if model is not None:
            self.check_model(model)
        if (here := opened(entry)) is not None:
            return here
        with self._turn:  # the first one's commit is known before the second is asked for
            return convert(self._pinned(entry), self.progress)

    def _pinned(self, entry: Entry) -> Entry:
        """`entry` at the commit that its neighbours from the same repository are of; as it is where that is not known.

        Without the network, what the cache holds of another commit is better than nothing.
        """
        if entry.revision is not None:
            return entry
        stamps = (_stamp(one) or {} for one in self.entries.values() if one.repo == entry.repo)
        commits = Counter(commit for stamp in stamps if (commit := stamp.get("revision")) is not None)
        if not commits:
            return entry
        pinned = replace(entry, revision=commits.most_common(1)[0][0])
        if hub.local_file(pinned) is None and not _can_fetch_again() and hub.local_file(entry) is not None:
            return entry
        return pinned

    def cached(self, site: Site | str) -> bool:
        """Whether the SAE at `site` opens without the network."""
        return self.entry(site).cached

    def stats(self, site: Site | str) -> FeatureStats:
        """Gemma Scope comes without statistics of its features: all None."""
        self.entry(site)
        return FeatureStats()

    def verify(self) -> None:
        """Compares every copy in our cache with the digest it was given when it was made."""
        for entry in self.entries.values():
            stamp = _stamp(entry)
            if stamp is not None:
                verify(hub.copy_folder(entry) / hub.WEIGHTS, stamp["sha256"])


# ---- opening by name


def gemma_scope(
    model: str | None,
    scope: str | Catalog | Entry | Iterable[Entry] | None = None,
    *,
    sites: Any = None,
    layers: Any = None,
    width: Any = None,
    l0: Any = None,
    progress: Progress | None = None,
) -> GemmaScope:
    """The SAEs that `scope` names, or those made for `model`, narrowed to one per site.

    `scope` is a release, a release and id, a Neuronpedia source, or entries of a catalogue. `model` (a Hugging Face
    id, None if not known) is compared with what the SAEs were trained on, and a chat model is noted.
    """
    if scope is None:
        pool, name = catalog(model), f"gemma-scope of {spelled(model or '')}"
    elif isinstance(scope, str):
        found = named(scope)
        if found is None:
            raise refuse("catalog-unknown", given=scope, nearest=nearest_names(scope))
        pool, name = found, scope
    else:
        chosen = (scope,) if isinstance(scope, Entry) else tuple(scope)
        pool = Catalog(chosen)
        name = chosen[0].release if len({entry.release for entry in chosen}) == 1 else "a choice of Gemma Scope"
    if not len(pool):
        raise refuse("catalog-empty")
    trained = {base_model(entry.model) for entry in pool}
    if len(trained) > 1:
        raise refuse("catalog-two-models", models=", ".join(sorted(trained)))
    base = trained.pop()
    entries = choose(pool, sites=sites, layers=layers, width=width, l0=l0)
    dimensions = DIMENSIONS[base]
    theirs = sorted({entry.model for entry in entries})
    facts = ModelFacts(
        theirs[0], dimensions.architecture, dimensions.n_layers, dimensions.d_model, None, dimensions.z_width
    )
    opened = GemmaScope(name, facts, _by_site(entries), _notes(model, theirs), progress)
    if model is not None and base_model(model) in DIMENSIONS and base_model(model) != base:
        ours = DIMENSIONS[base_model(model)]
        opened.check_model(
            ModelFacts(spelled(model), ours.architecture, ours.n_layers, ours.d_model, None, ours.z_width)
        )
    return opened


def _by_site(entries: Iterable[Entry]) -> Mapping[Site, Entry]:
    return MappingProxyType({entry.site: entry for entry in entries if entry.site is not None})


def _notes(model: str | None, trained: list[str]) -> tuple[str, ...]:
    """What is said when the SAEs were trained on another model than the open one."""
    ours = None if model is None else spelled(model)
    if ours is None or base_model(ours) not in DIMENSIONS:
        return (say("The SAEs were trained on {base}; the open model is taken to be that one.", base=trained[0]),)
    others = [name for name in trained if name != ours]
    if not others:
        return ()
    if ours.endswith("-it"):
        return (borrowed(others[0], ours),)
    return (
        say(
            "These SAEs were trained on {base}, not on {model}; they may explain less here.", base=others[0], model=ours
        ),
    )


# ---- our own copy


def _stamp(entry: Entry) -> dict[str, Any] | None:
    """What our copy was made of; None if there is none, or one that another converter or revision made."""
    try:
        stamp = json.loads((hub.copy_folder(entry) / hub.STAMP).read_bytes())
        if stamp["converter"] != CONVERTER or entry.revision not in (None, stamp["revision"]):
            return None
        if (stamp["repo"], stamp["file"]) != (entry.repo, entry.file) or not _DIGEST.fullmatch(stamp["sha256"]):
            return None
        return stamp
    except (OSError, ValueError, KeyError, TypeError):
        return None


def opened(entry: Entry) -> Sae | None:
    """Our copy of `entry`, mapped into memory; None if there is none or it is not as it was written.

    Its bytes are compared with the digest only if its time or size changed: that is what makes it quick.
    """
    from safetensors import SafetensorError, safe_open

    stamp, file = _stamp(entry), hub.copy_folder(entry) / hub.WEIGHTS
    if stamp is None:
        return None
    try:
        about = file.stat()
        if about.st_size != stamp["bytes"]:
            return None
        if about.st_mtime_ns != stamp["mtime_ns"] and sha256(file) != stamp["sha256"]:
            return None
        with safe_open(str(file), framework="pt") as mapped:
            tensors = {name: mapped.get_tensor(name) for name in mapped.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError):
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    d_in, width = entry.d_in, entry.width
    expected: dict[str, tuple[int, ...]] = dict(
        zip(_TENSORS, [(width, d_in), (width,), (width,), (width, d_in), (d_in,)], strict=True)
    )
    if entry.affine:
        expected["skip"] = (d_in, d_in)
    if shapes != expected:
        return None
    assert entry.site is not None
    if entry.kind == "transcoder":
        return Transcoder(entry.site, **tensors, before_gain=entry.generation == 1)
    return Sae(entry.site, **tensors)


def convert(entry: Entry, progress: Progress | None = None) -> Sae:
    """Fetches `entry`, checks it, and leaves our copy in the cache; one process does it while others wait.

    Refuses 'sae-not-fetched', 'cache-not-writable', and what `layouts.read` refuses of a damaged file, of which
    nothing is kept here.
    """
    target = hub.copy_folder(entry)
    need = said(entry.bytes)
    waiting = (
        (lambda: progress(say("waiting for another process that prepares {what}", what=entry), 0.0))
        if progress
        else None
    )
    with cache.explained(need, cache.folder()), cache.alone(target, waiting=waiting):
        made = opened(entry)  # by the other process, meanwhile
        if made is None:
            file = hub.fetch(entry, progress=progress)
            cache.require_space(entry.bytes, target.parent)
            try:
                sae = _read(entry, file)
            except Refusal as refusal:
                if refusal.code != "scope-damaged" or not _can_fetch_again():
                    raise
                file = hub.fetch(entry, progress=progress, again=True)
                sae = _read(entry, file)
            if progress is not None:
                progress(say("converting {what}", what=entry), 0.0)
            _write(entry, sae, file, target)
            made = opened(entry)
        if made is None:
            raise refuse("scope-damaged", file=target, why="what was written is not what is read")
        return made


def _can_fetch_again() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE


def _read(entry: Entry, file: Path) -> Sae:
    """The downloaded file, checked in every way that is known."""
    whole = file.resolve()
    if _DIGEST.fullmatch(whole.name):  # Hugging Face's cache names large files by their sha256
        verify(whole, whole.name)
    if entry.generation == 2:
        _confirm(entry, hub.fetch_config(entry, hub.revision_of(file, entry)))
    assert entry.site is not None
    transcoder = entry.kind == "transcoder"
    found = layouts.Found(
        file.parent,
        f"scope{entry.generation}",
        entry.site,
        entry.width,
        entry.d_in,
        transcoder=transcoder,
        before_gain=transcoder and entry.generation == 1,
        affine=entry.affine,
    )
    return layouts.read(found, model=entry.model)


def _confirm(entry: Entry, config: Path | None) -> None:
    """Refuses weights whose own config says that they read another tensor than the catalogue says."""
    if config is None:
        return
    about = read_json(config)
    site = layouts.scope2_site(about)
    if "hf_hook_point_in" in about and site != entry.site:
        why = f"it reads {about['hf_hook_point_in']!r}, and the catalogue says {entry.site}"
        raise refuse("scope-damaged", file=config, why=why)
    if about.get("architecture", "jump_relu") != "jump_relu":
        raise refuse("scope-damaged", file=config, why=f"its architecture is {about['architecture']!r}")


def _write(entry: Entry, sae: Sae, source: Path, target: Path) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {name: getattr(sae, name) for name in _TENSORS}
    if isinstance(sae, Transcoder) and sae.skip is not None:
        tensors["skip"] = sae.skip
    with cache.folder_atomically(target) as made:
        made.chmod(0o755)
        file = made / hub.WEIGHTS
        save_file(tensors, file)
        with file.open("rb+") as written:
            os.fsync(written.fileno())
        about = file.stat()
        stamp = {
            "converter": CONVERTER,
            "repo": entry.repo,
            "file": entry.file,
            "revision": hub.revision_of(source, entry),
            "source": sha256(source),
            "bytes": about.st_size,
            "mtime_ns": about.st_mtime_ns,
            "sha256": sha256(file),
        }
        (made / hub.STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
