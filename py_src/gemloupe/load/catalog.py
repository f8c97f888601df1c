"""Which Gemma Scope SAEs there are. SAELens's registry says so; nothing of it is typed again here.

The registry is read from its file, not through `import sae_lens`, which would load torch and TransformerLens too.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..budget import said
from ..errors import refuse
from ..site import Site
from ..words import say

if TYPE_CHECKING:
    import pandas

# What the registry calls a width, in features.
WIDTHS = {f"{2**power // 1000}k": 2**power for power in range(12, 20)} | {"1m": 2**20}
LEVELS = ("small", "medium", "big")  # Gemma Scope 2 names its L0s
_SHOWN = 20  # rows of a printed table
_SHOWN_HTML = 200


@dataclass(frozen=True)
class Dimensions:
    """What must be known of a model before any of it is here. `z_width` is heads x head_dim, the width of att sites."""

    architecture: str
    n_layers: int
    d_model: int
    z_width: int


# By the name of the base model. The registry knows these only for Gemma 2, and in code; tests compare them with what
# SAELens and TransformerLens say.
DIMENSIONS = {
    "gemma-2-2b": Dimensions("gemma2", 26, 2304, 2048),
    "gemma-2-9b": Dimensions("gemma2", 42, 3584, 4096),
    "gemma-2-27b": Dimensions("gemma2", 46, 4608, 4096),
    "gemma-3-270m": Dimensions("gemma3_text", 18, 640, 1024),
    "gemma-3-1b-pt": Dimensions("gemma3_text", 26, 1152, 1024),
    "gemma-3-4b-pt": Dimensions("gemma3_text", 34, 2560, 2048),
    "gemma-3-12b-pt": Dimensions("gemma3_text", 48, 3840, 4096),
    "gemma-3-27b-pt": Dimensions("gemma3_text", 62, 5376, 4096),
}

# Where the registry of SAELens 6.54 is wrong: (release, id or None for the whole release) -> field -> (theirs, ours).
# A test fails as soon as a row no longer differs from the registry; then it can go.
CORRECTIONS: dict[tuple[str, str | None], dict[str, tuple[Any, Any]]] = {
    # the folder is average_l0_48, and the folder is what is fetched
    ("gemma-scope-9b-pt-res-canonical", "layer_20/width_524k/canonical"): {"l0": (78, 48)},
    # trained on the chat model, as the repository's name and the canonical release say
    ("gemma-scope-9b-it-res", None): {"model": ("gemma-2-9b", "gemma-2-9b-it")},
    # that page is of layer 20, 131k, L0 10, which the registry does not list
    ("gemma-scope-9b-pt-res", "layer_2/width_16k/average_l0_8"): {
        "neuronpedia": ("gemma-2-9b/20-gemmascope-res-131k__l0-10", None)
    },
}

_SCOPE1 = re.compile(r"(?:layer_(?P<layer>\d+)|embedding)/width_(?P<width>\d+[km])/average_l0_(?P<l0>\d+)")
_SCOPE2 = re.compile(
    r"(?P<folder>resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(?P<layer>\d+)_width_(?P<width>\d+[km])"
    r"_l0_(?P<level>small|medium|big)(?P<affine>_affine)?(?:_seed_(?P<seed>\d+))?"
)
_KIND = re.compile(r"-(res|mlp|att|transcoder)s?(?:-all|-canonical)?$")


@dataclass(frozen=True)
class Entry:
    """One SAE of Gemma Scope, as SAELens's registry has it.

    `site` is None for the SAEs of the embeddings, which no site reads. `width` is the number of features, `d_in` what
    the encoder reads. `l0` is the declared mean number of active features per token; Gemma Scope 2 also names it
    (`level`: small, medium, big). `path` is the folder in `repo`; `revision` a commit of it, None for the newest.
    `affine` transcoders also have a linear path past the features; `seed` tells repeated trainings apart.
    `neuronpedia` is the source's id there, None where it has no pages.
    """

    release: str
    id: str
    model: str
    site: Site | None
    width: int
    l0: float | None
    repo: str
    path: str
    d_in: int
    neuronpedia: str | None = None
    revision: str | None = None
    level: str | None = None
    affine: bool = False
    seed: int = 0

    @property
    def kind(self) -> str:
        """res, mlp, att, transcoder, or embedding."""
        return "embedding" if self.site is None else self.site.kind

    @property
    def layer(self) -> int | None:
        return None if self.site is None else self.site.layer

    @property
    def generation(self) -> int:
        """1: Gemma Scope (Gemma 2), 2: Gemma Scope 2 (Gemma 3)."""
        return 1 if self.level is None else 2

    @property
    def canonical(self) -> bool:
        """Whether Google's table of recommended L0s has it (near 100); Gemma Scope 2 has no such table."""
        return self.id.endswith("/canonical")

    @property
    def file(self) -> str:
        """The weights' name in `repo`."""
        return f"{self.path}/params.{'npz' if self.generation == 1 else 'safetensors'}"

    @property
    def parameters(self) -> int:
        """Numbers in it, all tensors together."""
        return self.width * (2 * self.d_in + 2) + self.d_in + (self.d_in**2 if self.affine else 0)

    @property
    def bytes(self) -> int:
        """Size in float32: of the download, but for a header of about a kilobyte, and in memory."""
        return 4 * self.parameters

    @property
    def cached(self) -> bool:
        """Whether it opens without the network."""
        from .hub import cached

        return cached(self)

    def __str__(self) -> str:
        return f"{self.release}/{self.id}"


# ---- models


def base_model(model: str) -> str:
    """The pretrained model behind a name: 'gemma-2-2b-it' -> 'gemma-2-2b', 'google/gemma-3-1b' -> 'gemma-3-1b-pt'."""
    return spelled(re.sub(r"-it$", "", model.removeprefix("google/")))


def spelled(model: str) -> str:
    """A model's name as Hugging Face spells it, without google/: Gemma 3's base models end in -pt, except 270m."""
    model = model.removeprefix("google/")
    bare = model.removesuffix("-pt")
    return next((name for name in (model, bare, f"{bare}-pt") if name in DIMENSIONS), model)


# ---- reading the registry


@cache
def _registry() -> Mapping[str, Any]:
    from importlib.util import find_spec

    import yaml

    package = find_spec("sae_lens")
    places = package.submodule_search_locations if package else None
    file = Path(next(iter(places)), "pretrained_saes.yaml") if places else None
    if file is None or not file.is_file():
        raise refuse("registry-missing")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_bytes(), Loader=loader)


@cache
def _entries() -> tuple[Entry, ...]:
    found = []
    for release, about in _registry().items():
        if release.startswith("gemma-scope-") and _KIND.search(release):
            found += [entry for row in about["saes"] if (entry := _entry(release, about, row))]
    # Canonical SAEs are listed twice, and only once with their page.
    pages = {(entry.repo, entry.path): entry.neuronpedia for entry in found if entry.canonical}
    paged = [replace(e, neuronpedia=e.neuronpedia or pages.get((e.repo, e.path))) for e in found]
    return tuple(sorted(paged, key=_order))


def _order(entry: Entry) -> tuple[Any, ...]:
    """The most used first: models by size, then canonical SAEs, then series with every layer."""
    models = tuple(DIMENSIONS)
    return (
        models.index(base_model(entry.model)),
        entry.model.endswith("-it"),
        not entry.canonical,
        not entry.release.endswith("-all"),
        ("res", "mlp", "att", "transcoder", "embedding").index(entry.kind),
        entry.width,
        entry.layer or 0,
        entry.l0 or 0.0,
        entry.affine,
        entry.seed,
    )


def _entry(release: str, about: Mapping[str, Any], row: Mapping[str, Any]) -> Entry | None:
    """None if the path is of a form that did not exist when this was written."""
    path = str(row["path"])
    parts = _SCOPE1.fullmatch(path) or _SCOPE2.fullmatch(path)
    kind = _KIND.search(release)
    model = _corrected(release, None, "model", about["model"])
    dimensions = DIMENSIONS.get(base_model(model))
    if parts is None or kind is None or dimensions is None or parts["width"] not in WIDTHS:
        return None
    named = parts.groupdict()
    identity = row["id"]
    site = Site(kind[1], int(named["layer"])) if named["layer"] is not None else None
    declared = _corrected(release, identity, "l0", row.get("l0"))
    if declared is None and "l0" in named:
        declared = int(named["l0"])
    return Entry(
        release=release,
        id=identity,
        model=spelled(model),
        site=site,
        width=WIDTHS[named["width"]],
        l0=None if declared is None else float(declared),
        repo=about["repo_id"],
        path=path,
        d_in=dimensions.z_width if kind[1] == "att" else dimensions.d_model,
        neuronpedia=_corrected(release, identity, "neuronpedia", row.get("neuronpedia")),
        level=named.get("level"),
        affine=named.get("affine") is not None,
        seed=int(named.get("seed") or 0),
    )


def _corrected(release: str, identity: str | None, field: str, value: Any) -> Any:
    theirs, ours = CORRECTIONS.get((release, identity), {}).get(field, (None, None))
    return ours if (theirs, ours) != (None, None) and value == theirs else value


# ---- the table


@dataclass(frozen=True, eq=False, repr=False)
class Catalog(Sequence[Entry]):
    """SAEs, in order: a table that prints itself, narrows with `filter`, and becomes a DataFrame with `to_pandas`."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def filter(
        self,
        site: Any = None,
        *,
        layer: Any = None,
        width: Any = None,
        l0: Any = None,
        release: Any = None,
        affine: bool | None = None,
        cached: bool | None = None,
    ) -> Catalog:
        """The SAEs that match everything given; each may be one value or several.

        `site` is a kind ('res') or a site ('res.12'); `layer` a number or a range; `width` '16k' or 16384; `l0` a
        number, 'small', 'medium', 'big' or 'canonical'; `release` SAELens's name. `affine` keeps only transcoders
        with (True) or without (False) a skip connection, `cached` those that are here or not. A value that nothing has
        is refused ('catalog-nothing'), naming the nearest that exist.
        """
        left = self.entries
        left = _keep(left, "release", release, lambda entry: (entry.release,), str)
        left = _keep(left, "site", site, lambda entry: (entry.kind, str(entry.site or "embedding")), str)
        left = _keep(left, "layer", layer, lambda entry: (entry.layer,), lambda given: given)
        left = _keep(left, "width", width, lambda entry: (entry.width,), _width)
        left = _keep(left, "l0", l0, _l0s, _l0)
        if affine is not None:
            left = tuple(entry for entry in left if entry.affine == bool(affine))
        if cached is not None:
            left = tuple(entry for entry in left if entry.cached == bool(cached))
        return replace(self, entries=left)

    def find(self, name: str) -> Entry:
        """The SAE that a Neuronpedia source ('gemma-2-2b/20-gemmascope-res-16k'), SAELens's release and id
        ('gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71') or a Neuronpedia page of one of its features names.
        """
        given = re.sub(r"^https?://(www\.)?neuronpedia\.org/", "", name).partition("?")[0].strip("/")
        wanted = {given, re.sub(r"/\d+$", "", given)}
        for entry in self.entries:
            if str(entry) in wanted or (entry.neuronpedia is not None and entry.neuronpedia in wanted):
                return entry
        raise refuse("catalog-unknown", given=name, nearest=nearest_names(given, self.entries))

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(sorted({entry.site for entry in self.entries if entry.site is not None}))

    @property
    def bytes(self) -> int:
        """Of all of them; an SAE that is listed in two releases counts once."""
        return sum({(entry.repo, entry.path): entry.bytes for entry in self.entries}.values())

    @property
    def features(self) -> int:
        """Of all of them; an SAE that is listed in two releases counts once."""
        return sum({(entry.repo, entry.path): entry.width for entry in self.entries}.values())

    def to_pandas(self) -> pandas.DataFrame:
        """One row per SAE."""
        import pandas

        return pandas.DataFrame([_row(entry) for entry in self.entries], columns=list(_COLUMNS))

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Catalog: ...

    def __getitem__(self, index: int | slice) -> Entry | Catalog:
        if isinstance(index, slice):
            return replace(self, entries=self.entries[index])
        return self.entries[index]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def _summary(self) -> str:
        here = sum(entry.cached for entry in self.entries)
        s = "" if len(self) == 1 else "s"
        return f"{len(self):,} SAE{s}, {self.features:,} features, {said(self.bytes)}; {here:,} in the cache"

    def __repr__(self) -> str:
        rows = [[text for text, _ in _cells(entry)] for entry in self.entries[:_SHOWN]]
        table = [list(_COLUMNS), *rows]
        widest = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
        right = [column in _NUMBERS for column in _COLUMNS]
        lines = [
            "  ".join(
                text.rjust(n) if numeric else text.ljust(n)
                for text, n, numeric in zip(line, widest, right, strict=True)
            ).rstrip()
            for line in table
        ]
        return "\n".join([self._summary(), *self.notes, *lines, *_more(len(self), _SHOWN)])

    def _repr_html_(self) -> str:
        def cell(tag: str, column: str, text: str, link: str | None = None) -> str:
            inner = escape(text) if link is None else f'<a href="{escape(link)}" target="_blank">{escape(text)}</a>'
            align = "right" if column in _NUMBERS else "left"
            return f'<{tag} style="text-align:{align}">{inner}</{tag}>'

        head = "".join(cell("th", column, column) for column in _COLUMNS)
        rows = "".join(
            "<tr>" + "".join(cell("td", c, *pair) for c, pair in zip(_COLUMNS, _cells(entry), strict=True)) + "</tr>"
            for entry in self.entries[:_SHOWN_HTML]
        )
        said = "".join(f"<p>{escape(line)}</p>" for line in (self._summary(), *self.notes))
        more = "".join(f"<p>{escape(line)}</p>" for line in _more(len(self), _SHOWN_HTML))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f'{said}<div style="max-height:30em;overflow:auto">{table}</div>{more}'


_COLUMNS = ("release", "id", "site", "layer", "width", "L0", "size", "neuronpedia", "cached")
_NUMBERS = ("layer", "width", "L0", "size")


def _row(entry: Entry) -> tuple[Any, ...]:
    """In the order of `_COLUMNS`, as numbers."""
    return (
        entry.release,
        entry.id,
        str(entry.site or "embedding"),
        entry.layer,
        entry.width,
        entry.l0,
        entry.bytes,
        entry.neuronpedia,
        entry.cached,
    )


def _cells(entry: Entry) -> list[tuple[str, str | None]]:
    """(text, link) of each column, as people read them."""
    release, identity, site, layer, width, l0, many, page, here = _row(entry)
    return [
        (release, None),
        (identity, None),
        (site, None),
        ("" if layer is None else str(layer), None),
        (f"{width:,}", None),
        ("" if l0 is None else f"{l0:g}", None),
        (said(many), None),
        (page or "", page and f"https://www.neuronpedia.org/{page}"),
        ("yes" if here else "no", None),
    ]


def _more(total: int, shown: int) -> list[str]:
    if total <= shown:
        return []
    return [f"… and {total - shown:,} more; narrow it with .filter(site='res', layer=12, width='16k')"]


# ---- narrowing


def _several(given: Any) -> tuple[Any, ...]:
    if isinstance(given, (str, Site)) or not isinstance(given, Iterable):
        return (given,)
    return tuple(given)


def _keep(
    entries: tuple[Entry, ...],
    what: str,
    given: Any,
    of: Callable[[Entry], tuple[Any, ...]],
    normal: Callable[[Any], Any],
) -> tuple[Entry, ...]:
    """Entries that have one of the `given` values; refuses a value that none has, naming the nearest."""
    if given is None:
        return entries
    wanted = {normal(value): value for value in _several(given)}
    there = {value for entry in entries for value in of(entry) if value is not None}
    for value, shown in wanted.items():
        if value not in there:
            raise refuse(
                "catalog-nothing", what=what, given=shown, nearest=_nearest(value, there, _said.get(what, str))
            )
    return tuple(entry for entry in entries if not wanted.keys().isdisjoint(of(entry)))


def _width(given: Any) -> Any:
    return WIDTHS.get(given.lower(), given) if isinstance(given, str) else given


def _l0(given: Any) -> Any:
    return given.lower() if isinstance(given, str) else given


def _l0s(entry: Entry) -> tuple[Any, ...]:
    return entry.l0, entry.level, "canonical" if entry.canonical else None


def _said_width(value: Any) -> str:
    return next((name for name, count in WIDTHS.items() if count == value), str(value))


_said: dict[str, Callable[[Any], str]] = {
    "width": _said_width,
    "l0": lambda value: f"{value:g}" if isinstance(value, float) else str(value),
}


def _nearest(given: Any, there: Iterable[Any], said: Callable[[Any], str] = str, count: int = 4) -> str:
    """The values of `there` most like `given`, as text."""
    values = sorted(set(there), key=str)
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        numbers = [value for value in values if isinstance(value, (int, float))]
        best = sorted(sorted(numbers, key=lambda value: abs(value - given))[:count])
    else:
        values = [value for value in values if isinstance(value, str)] or values  # L0s have names, or numbers
        texts = {said(value): value for value in values}
        best = [texts[text] for text in difflib.get_close_matches(str(given), texts, count, cutoff=0.3)]
        best = best or values[:count]
    return ", ".join(said(value) for value in best) or "none"


# ---- asking


def catalog(model: str | None = None) -> Catalog:
    """All Gemma Scope SAEs of `model` ('gemma-2-2b', 'google/gemma-3-4b-it', ...), or of all models.

    A chat model without SAEs of its own gets its base model's, and the table says so. Needs no network.
    """
    if model is None:
        return Catalog(_entries())
    name = spelled(model) if isinstance(model, str) else model
    own = tuple(entry for entry in _entries() if entry.model == name)
    if own:
        return Catalog(own)
    base = base_model(name) if isinstance(name, str) else name
    theirs = tuple(entry for entry in _entries() if entry.model == base)
    if not theirs:
        known = {entry.model for entry in _entries()}
        raise refuse("catalog-nothing", what="model", given=model, nearest=_nearest(str(name), known))
    return Catalog(theirs, (borrowed(base, name),))


def borrowed(base: str, model: str) -> str:
    """What is said when a base model's SAEs are used on its chat model."""
    return say(
        "These SAEs were trained on {base}, not on the chat model {model}. Gemma Scope's report found that they carry "
        "over with little loss; the error of their reconstruction is larger.",
        base=base,
        model=model,
    )


def knows(model: Any) -> bool:
    """Whether `model` is a name that Gemma Scope has SAEs for, its own or its base model's."""
    return isinstance(model, str) and base_model(model) in DIMENSIONS


def releases() -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.release for entry in _entries()))


def nearest_names(name: str, entries: Iterable[Entry] | None = None) -> str:
    """The releases, SAEs and Neuronpedia sources whose names are most like `name`."""
    among = _entries() if entries is None else tuple(entries)
    names = {str(entry) for entry in among} | {entry.neuronpedia for entry in among if entry.neuronpedia}
    return _nearest(name, {entry.release for entry in among} if "/" not in name else names)


def named(name: str) -> Catalog | None:
    """The SAEs that a release, an SAE's id or a Neuronpedia source names; None if it is no such name."""
    if name in releases():
        return Catalog(tuple(entry for entry in _entries() if entry.release == name))
    try:
        return Catalog((Catalog(_entries()).find(name),))
    except KeyError:
        return None


def choose(
    pool: Catalog, *, sites: Any = None, layers: Any = None, width: Any = None, l0: Any = None
) -> tuple[Entry, ...]:
    """One SAE per site of `pool`, in the order of a forward pass.

    Without `sites`, transcoders are left out unless there is nothing else. Without `width`, 16k, or the narrowest
    where there is no 16k. Without `l0`, the canonical one, or the one nearest 100 where none is; of Gemma Scope 2 the
    series that has every layer, and in it medium, else big.
    """
    readable = replace(pool, entries=tuple(entry for entry in pool if entry.site is not None))
    if not readable:
        raise refuse("embedding-not-a-site", given=str(pool[0]) if pool else "none")
    chosen = readable.filter(sites, layer=layers, l0=l0)
    if sites is None and any(entry.kind != "transcoder" for entry in chosen):
        chosen = replace(chosen, entries=tuple(entry for entry in chosen if entry.kind != "transcoder"))
    if width is not None:
        chosen = chosen.filter(width=width)
    at: dict[Site, list[Entry]] = {}
    for entry in chosen:
        assert entry.site is not None
        at.setdefault(entry.site, []).append(entry)
    return tuple(min(at[site], key=_preference) for site in sorted(at))


def _preference(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.width != WIDTHS["16k"],
        entry.width,
        not entry.canonical,
        entry.generation == 2 and not entry.release.endswith("-all"),
        ("medium", "big", "small").index(entry.level) if entry.level else 0,
        entry.affine,
        entry.seed,
        abs(math.log(entry.l0 / 100)) if entry.l0 else 99.0,
        str(entry),
    )
