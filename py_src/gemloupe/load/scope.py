"""A scope: a folder of SAEs of one model, with a manifest that lets every file be checked before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..errors import refuse
from ..site import Site, in_words
from . import layouts
from .artifact import DEFLATED, Content, check_file, deflate, read_json, verify
from .cache import explained, folder_atomically
from .sae import FeatureStats, Sae, sae_lens_config
from .statistics import NAMES as _STATS
from .statistics import read_stats, small_stats, stats_tensors

FORMAT = 2  # 1 had no compressed files
_PLAIN = ("saelens", "scope1", "scope2")  # layouts that hold floats as they are
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFacts:
    """What a scope must know of a model to refuse another one. None is unknown.

    `architecture` is transformers' model_type, `digest` the sha256 of the weights file, `z_width` the width of
    the concatenated attention heads.
    """

    id: str
    architecture: str | None = None
    n_layers: int | None = None
    d_model: int | None = None
    digest: str | None = None
    z_width: int | None = None

    def width(self, site: Site) -> int | None:
        """Width of the tensor at `site`."""
        return self.z_width if site.kind == "att" else self.d_model

    def __str__(self) -> str:
        parts = [
            self.architecture,
            f"{self.n_layers} layers" if self.n_layers is not None else None,
            f"width {self.d_model}" if self.d_model is not None else None,
            f"weights {self.digest[:12]}" if self.digest else None,
        ]
        return f"{self.id} ({', '.join(part for part in parts if part)})" if any(parts) else self.id


@dataclass(frozen=True)
class _Entry:
    folder: Path
    files: Mapping[str, str] | None  # sha256 by name; None: nothing to compare with
    width: int
    facts: Mapping[str, Any]
    found: layouts.Found | None = None
    contents: Mapping[str, Content] = field(default_factory=dict)  # by name of the compressed file


@dataclass(frozen=True)
class Scope:
    """SAEs of one model in one folder. Opening reads the manifest only; `load` reads and checks one SAE."""

    folder: Path
    id: str
    model: ModelFacts | None
    made_with: Mapping[str, Any] = field(repr=False)
    _entries: Mapping[Site, _Entry] = field(repr=False)

    @classmethod
    def open(cls, given: str | os.PathLike[str], *, site: Site | str | None = None) -> Scope:
        """The scope in a folder with manifest.json, a single SAE (SAELens checkpoint, Gemma Scope params), or a folder
        of such SAEs, one per site.

        `site` is only needed for a lone Gemma Scope file whose path does not say which tensor it reads. Refuses
        'scope-not-found', 'scope-two-at-site', 'scope-site-unknown', 'file-unreadable', 'scope-damaged'.
        """
        path = Path(given)
        if not path.exists():
            raise refuse("scope-not-found", given=path, why="nothing is there")
        if path.is_file():
            check_file(path)
            names = {name for files in layouts.FILES.values() for name in files}
            if path.name not in names | {"manifest.json"}:
                raise refuse("file-unreadable", file=path, kind="scope", why="give the folder of the SAE or scope")
            path = path.parent
        if (path / "manifest.json").exists():
            return cls._from_manifest(path)
        if layouts.layout_of(path) is None and (below := layouts.within(path)):
            return cls._bare(path, [layouts.find(folder) for folder in below])
        return cls._bare(path, [layouts.find(path, None if site is None else Site.of(site))])

    @classmethod
    def _bare(cls, folder: Path, found: list[layouts.Found]) -> Scope:
        """SAEs without a manifest."""
        at: dict[Site, layouts.Found] = {}
        for one in sorted(found, key=lambda one: one.site):
            if (other := at.setdefault(one.site, one)) is not one:
                two = " and ".join(str(each.folder.relative_to(folder)) for each in (other, one))
                raise refuse("scope-two-at-site", folder=folder, site=one.site, two=two)
        entries = {site: _Entry(one.folder, None, one.width, MappingProxyType({}), one) for site, one in at.items()}
        names = {one.model_name for one in found} - {None}
        model = ModelFacts(str(names.pop())) if len(names) == 1 else None
        return cls(folder, folder.absolute().name, model, MappingProxyType({}), MappingProxyType(entries))

    @classmethod
    def _from_manifest(cls, folder: Path) -> Scope:
        file = folder / "manifest.json"
        manifest = read_json(file)
        theirs = manifest.get("format")
        if type(theirs) is not int or theirs < 1:
            raise refuse("scope-damaged", file=file, why=f"its format is {theirs!r}")
        if theirs > FORMAT:
            raise refuse("scope-newer", file=file, theirs=theirs, ours=FORMAT)
        try:
            entries = {Site.of(name): _entry(file, folder, about) for name, about in manifest["saes"].items()}
            model = _model(manifest["model"])
            name, made_with = str(manifest["id"]), dict(manifest.get("made_with") or {})
        except (KeyError, TypeError, AttributeError) as error:
            raise refuse("scope-damaged", file=file, why=f"the manifest is incomplete ({error})") from error
        if not entries:
            raise refuse("scope-damaged", file=file, why="it names no SAE")
        ordered = MappingProxyType({site: entries[site] for site in sorted(entries)})
        return cls(folder, name, model, MappingProxyType(made_with), ordered)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites there are SAEs for, in the order a forward pass reaches them."""
        return tuple(self._entries)

    def _entry(self, site: Site | str) -> _Entry:
        site = Site.of(site)
        if site not in self._entries:
            raise refuse("site-not-open", site=site, open=in_words(self.sites))
        return self._entries[site]

    def width(self, site: Site | str) -> int:
        """Number of features of the SAE at `site`."""
        return self._entry(site).width

    def facts(self, site: Site | str) -> dict[str, Any]:
        """What the scope declares of this SAE: l0, fvu and whatever else was measured. Empty if nothing."""
        return dict(self._entry(site).facts)

    def digest(self, site: Site | str) -> str | None:
        """sha256 of the file with the weights at `site`; None where no manifest says it."""
        files = self._entry(site).files or {}
        return next((files[name] for name in (form[-1] for form in layouts.FILES.values()) if name in files), None)

    def check_model(self, model: ModelFacts) -> None:
        """Refuses a model this scope was not trained on ('scope-other-model'). What is unknown is not compared."""
        for site in self.sites:
            if model.n_layers is not None and site.layer >= model.n_layers:
                raise refuse(
                    "scope-other-model", scope=self.id, theirs=self.model or f"a model with {site}", ours=model
                )
        if self.model is None:
            return
        for what in ("architecture", "n_layers", "d_model", "digest"):
            theirs, ours = getattr(self.model, what), getattr(model, what)
            if theirs is not None and ours is not None and theirs != ours:
                raise refuse("scope-other-model", scope=self.id, theirs=self.model, ours=model)

    def load(self, site: Site | str, model: ModelFacts | None = None) -> Sae:
        """The SAE at `site`, every file compared with the manifest and every tensor checked.

        With `model`, a scope of another model and an SAE of another width are refused too.
        """
        site = Site.of(site)
        entry = self._entry(site)
        if model is not None:
            self.check_model(model)
        found = entry.found
        if found is None:
            form = next(
                (f for f in ("deflated", "packed", "saelens") if set(layouts.FILES[f]) <= set(entry.files or ())), None
            )
            if form is None:
                raise refuse("scope-damaged", file=self.folder / "manifest.json", why=f"{site} names no weights")
            for name in layouts.FILES[form]:
                verify(entry.folder / name, (entry.files or {})[name])
            found = layouts.find(entry.folder, site)
            if found.layout != form:  # a file beside the listed ones must not be read in their place
                raise refuse("scope-damaged", file=entry.folder, why="it holds weights that the manifest does not name")
            found = replace(found, content=entry.contents.get(layouts.FILES[form][-1]))
        sae = layouts.read(found, model=self.model or "this scope")
        file = found.folder / layouts.FILES[found.layout][-1]
        widths = [(model or self.model), self.model]
        expected = next((w for m in widths if m is not None and (w := m.width(site)) is not None), sae.d_in)
        if (sae.width, sae.d_in) != (entry.width, expected):
            raise refuse(
                "scope-other-shape",
                file=file,
                tensor="W_enc",
                got=(sae.d_in, sae.width),
                expected=(expected, entry.width),
                site=site,
                model=model or self.model or "this scope",
            )
        return sae

    def source(self, site: Site | str) -> Path | None:
        """The file that holds the weights at `site` as plain floats; None if they are packed, or not here yet."""
        entry = self._entry(site)
        forms = [entry.found.layout] if entry.found is not None else [f for f in layouts.FILES if f in _PLAIN]
        for form in forms:
            file = (entry.found.folder if entry.found is not None else entry.folder) / layouts.FILES[form][-1]
            if form in _PLAIN and file.is_file() and (entry.files is None or file.name in entry.files):
                return file
        return None

    def stats(self, site: Site | str) -> FeatureStats:
        """Statistics of the features at `site`; all None if the scope has none."""
        entry = self._entry(site)
        for name in _STATS:
            file = entry.folder / name
            if entry.files is not None and name in entry.files:
                verify(file, entry.files[name])
            elif entry.files is not None or not file.exists():
                continue
            return read_stats(file, Site.of(site), entry.width, entry.contents.get(name))
        return FeatureStats()

    def verify(self) -> None:
        """Compares every file of the scope with the manifest."""
        for entry in self._entries.values():
            for name, digest in (entry.files or {}).items():
                verify(entry.folder / name, digest)

    def unpack(self, folder: str | os.PathLike[str]) -> Scope:
        """The same scope in float32 in `folder`; each of its site folders opens with `sae_lens.SAE.load_from_disk`."""
        every = ((self.load(site), self.stats(site), self.facts(site)) for site in self.sites)
        model = self.model or ModelFacts("unknown")
        return write_scope(folder, every, id=self.id, model=model, made_with=self.made_with, packed=False)


def _entry(file: Path, folder: Path, about: Mapping[str, Any]) -> _Entry:
    names = [about["folder"], *about["files"]]
    for name in names:
        if not (isinstance(name, str) and _PLAIN_NAME.fullmatch(name)):
            raise refuse("scope-damaged", file=file, why=f"it names {name!r}, which is not a plain file name")
    for name, digest in about["files"].items():
        if not (isinstance(digest, str) and _HEX.fullmatch(digest)):
            raise refuse("scope-damaged", file=file, why=f"the sha256 of {name} is {digest!r}")
    width = about["width"]
    if type(width) is not int or width <= 0:
        raise refuse("scope-damaged", file=file, why=f"a width is {width!r}")
    contents = {}
    for name in about["files"]:
        if name.endswith(DEFLATED):
            size, digest = about["inflated"][name]["bytes"], about["inflated"][name]["sha256"]
            if type(size) is not int or size < 0 or not (isinstance(digest, str) and _HEX.fullmatch(digest)):
                raise refuse("scope-damaged", file=file, why=f"inside {name} it expects {size!r} bytes, {digest!r}")
            contents[name] = Content(size, digest)
    facts = {key: value for key, value in about.items() if key not in ("folder", "width", "files", "inflated")}
    return _Entry(
        folder / about["folder"],
        MappingProxyType(dict(about["files"])),
        width,
        MappingProxyType(facts),
        contents=MappingProxyType(contents),
    )


def _model(about: Mapping[str, Any]) -> ModelFacts:
    text = {key: about.get(key) for key in ("architecture", "digest")}
    counts = {key: about.get(key) for key in ("n_layers", "d_model", "z_width")}
    if any(value is not None and not isinstance(value, str) for value in text.values()):
        raise TypeError(f"model is {dict(about)!r}")
    if any(value is not None and (type(value) is not int or value <= 0) for value in counts.values()):
        raise TypeError(f"model is {dict(about)!r}")
    return ModelFacts(str(about["id"]), **text, **counts)


def _save(tensors: dict[str, torch.Tensor], file: Path) -> Content | None:
    """Writes a safetensors file; compressed if its name says so, and then what it holds is returned."""
    from safetensors.torch import save

    data = save(tensors)
    if file.suffix != DEFLATED:
        file.write_bytes(data)
        return None
    file.write_bytes(deflate(data))
    return Content.of(data)


def save_sae_lens(sae: Sae, folder: str | os.PathLike[str], *, model_name: str | None = None) -> Path:
    """Writes `sae` as a folder that `sae_lens.SAE.load_from_disk` opens; returns the folder."""
    target = Path(folder)
    with explained("the size of the SAE", target), folder_atomically(target) as made:
        made.chmod(0o755)
        _write_sae(sae, made, model_name, packed=False)
    return target


def _write_sae(sae: Sae, folder: Path, model_name: str | None, *, packed: bool) -> dict[str, Content | None]:
    config, weights = layouts.FILES["deflated" if packed else "saelens"]
    (folder / config).write_text(json.dumps(sae_lens_config(sae, model_name), indent=1) + "\n", encoding="utf-8")
    return {weights: _save(layouts.pack(sae) if packed else layouts.plain(sae), folder / weights)}


def write_scope(
    folder: str | os.PathLike[str],
    saes: Iterable[tuple[Sae, FeatureStats | None, Mapping[str, Any]]],
    *,
    id: str,
    model: ModelFacts,
    made_with: Mapping[str, Any] | None = None,
    packed: bool = True,
) -> Scope:
    """Writes SAEs with their statistics and declared facts (l0, fvu, ...) as a scope, all of it or nothing.

    `packed` stores int8 with one scale per feature, and the statistics' lists of tokens in small types, both
    compressed; otherwise everything as it is, the weights in SAELens' form. What was in `folder` before is replaced.
    Returns the scope as opened.
    """
    target = Path(folder)
    about: dict[str, Any] = {}
    with explained("the size of the scope", target), folder_atomically(target) as made:
        made.chmod(0o755)
        for sae, stats, facts in saes:
            place = made / str(sae.site)
            place.mkdir()
            contents = _write_sae(sae, place, model.id, packed=packed)
            if stats is not None and (tensors := small_stats(stats) if packed else stats_tensors(stats)):
                name = _STATS[0 if packed else 1]
                contents[name] = _save(tensors, place / name)
            inflated = {name: {"bytes": c.size, "sha256": c.sha256} for name, c in contents.items() if c is not None}
            files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(place.iterdir())}
            about[str(sae.site)] = {"folder": place.name, "width": sae.width, "files": files, **facts}
            if inflated:
                about[str(sae.site)]["inflated"] = inflated
        known = {key: value for key, value in vars(model).items() if key != "z_width" or value is not None}
        ordered = {str(site): about[str(site)] for site in sorted(map(Site.of, about))}
        manifest = {"format": FORMAT, "id": id, "made_with": dict(made_with or {}), "model": known, "saes": ordered}
        text = json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False)
        (made / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return Scope.open(target)
