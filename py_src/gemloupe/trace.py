"""A Trace: the tokens of one text and the features that were on at each of them."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .errors import refuse
from .feature import FeatureId, whole
from .fidelity import Fidelities, Fidelity
from .site import Site, in_words
from .sparse import SparseActs

if TYPE_CHECKING:
    import pandas

FORMAT = 1


@dataclass(frozen=True)
class Token:
    """One token: vocabulary `id`; its exact `bytes`; `start` and `end`, the characters it touches in the text.

    A piece of a character (a byte-fallback token inside an emoji) keeps its bytes and has no text of its own.
    Special tokens (BOS, turn markers) take no room in the text: their span is empty and they have no bytes.
    """

    id: int
    text: str
    bytes: bytes
    start: int
    end: int
    special: bool = False

    @property
    def partial(self) -> bool:
        """Whether this token is a piece of a character."""
        return bool(self.bytes) and not self.text


@dataclass(frozen=True)
class Guess:
    """A token the model expects next, and how likely it finds it (0 to 1)."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Activation:
    """One feature at one token. `value` is raw; `strength` is value / maximum (nan where no maximum is known)."""

    feature: FeatureId
    position: int
    token: str
    value: float
    maximum: float

    @property
    def strength(self) -> float:
        return self.value / self.maximum


class Activations(tuple[Activation, ...]):
    """Activations, strongest first; a table in a notebook."""

    __slots__ = ()

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        for a in self:
            strength = "?" if np.isnan(a.strength) else f"{a.strength:.2f}"
            yield str(a.feature), strength, f"{a.value:.4g}", str(a.position), repr(a.token)

    _HEAD = ("feature", "strength", "raw", "position", "token")

    def __repr__(self) -> str:
        rows = [self._HEAD, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in self._HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, eq=False)
class Trace:
    """What one reading of a text found.

    `acts` holds a `SparseActs` [token, feature] per open site (rows of special tokens are empty: SAEs are not
    trained on them). `maxima` holds each feature's own largest known activation, float32 [feature] with nan for
    unknown, per site. `guesses` holds the model's next-token guesses after each token, or None where they were
    not asked for. `about` says which model, scope, device and dtype made it. `known_fidelity` holds what was
    measured of the SAEs while reading; `fidelity` measures the rest when it is asked for.
    """

    tokens: tuple[Token, ...]
    acts: Mapping[Site, SparseActs]
    maxima: Mapping[Site, np.ndarray] = field(default_factory=dict)
    guesses: tuple[tuple[Guess, ...] | None, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    known_fidelity: Mapping[Site, Fidelity] = field(default_factory=dict, repr=False)
    measure: Callable[[Trace, tuple[Site, ...]], Mapping[Site, Fidelity]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        maxima = {}
        for site, acts in self.acts.items():
            given = self.maxima.get(site)
            known = np.full(acts.shape[1], np.nan) if given is None else given
            maxima[site] = np.array(known, dtype=np.float32)
            maxima[site].flags.writeable = False
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "acts", MappingProxyType({site: self.acts[site] for site in sorted(self.acts)}))
        object.__setattr__(self, "maxima", MappingProxyType(maxima))
        object.__setattr__(self, "about", MappingProxyType(dict(self.about)))
        measure = self.measure
        judge = None if measure is None else lambda sites: measure(self, sites)
        object.__setattr__(self, "_fidelity", Fidelities(tuple(self.acts), self.known_fidelity, judge))

    @property
    def text(self) -> str:
        """The text that was read, without special tokens."""
        return b"".join(token.bytes for token in self.tokens).decode("utf-8", "replace")

    @property
    def fidelity(self) -> Fidelities:
        """How well each SAE fits this text: `trace.fidelity["res.12"].light` is green, amber, red or unknown.

        A site is measured when it is first asked for, with another pass of the loupe that read the trace. A trace from
        a file, or of a loupe that is closed, only has what was measured before: 'fidelity-unknown'.
        """
        return self._fidelity  # type: ignore[attr-defined]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Open sites, in the order of the forward pass."""
        return tuple(self.acts)

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, key: Site) -> SparseActs: ...
    @overload
    def __getitem__(self, key: FeatureId) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: str) -> SparseActs | np.ndarray: ...
    def __getitem__(self, key: Any) -> SparseActs | np.ndarray:
        """`trace["res.12"]` is a SparseActs; `trace["res.12/834"]` is that feature at every token, float32 [token]."""
        if isinstance(key, FeatureId) or (isinstance(key, str) and "/" in key):
            feature = FeatureId.of(key)
            acts = self._acts(feature.site)
            return acts.column(feature.within(acts.shape[1]).index)
        return self._acts(Site.of(key))

    def _acts(self, site: Site) -> SparseActs:
        if site not in self.acts:
            raise refuse("site-not-open", site=site, open=in_words(self.acts))
        return self.acts[site]

    def positions(self, token: int | str) -> list[int]:
        """Positions of a token given as a position (negative counts from the end) or as text.

        Text matches whole tokens: exactly first (" Paris"), without surrounding spaces if that finds nothing.
        """
        if not isinstance(token, str):
            position = whole(token)
            if position is None or not -len(self) <= position < len(self):
                raise refuse("position-out-of-range", given=token, last=len(self) - 1)
            return [position % len(self)]
        for form in (str, str.strip):
            wanted = form(token)
            found = [i for i, t in enumerate(self.tokens) if wanted and form(t.text) == wanted]
            if found:
                return found
        raise refuse("token-not-found", given=token, tokens=", ".join(repr(t.text) for t in self.tokens[:40]))

    def top(self, k: int = 10, *, token: int | str | None = None, site: Site | str | None = None) -> Activations:
        """The k strongest activations, by strength (value / the feature's own maximum), each feature once.

        `token` (position or text) and `site` narrow the search. Where no maximum is known, features come after
        those with one, by raw value.
        """
        count = whole(k)
        if count is None or count < 1:
            raise refuse("count-unreadable", name="k", given=k, least=1)
        where = None if token is None else self.positions(token)
        found: list[Activation] = []
        for s in self.sites if site is None else (Site.of(site),):
            acts = self._acts(s)
            rows = acts.rows
            picked = np.arange(acts.nnz) if where is None else np.flatnonzero(np.isin(rows, where))
            with np.errstate(divide="ignore", invalid="ignore"):
                strength = acts.values[picked] / self.maxima[s][acts.indices[picked]]
            # unknown maxima sort below every known one, among themselves by raw value
            order = np.lexsort((-acts.values[picked], -np.nan_to_num(strength, nan=-1.0)))
            _, first = np.unique(acts.indices[picked][order], return_index=True)
            for i in picked[order[np.sort(first)[:count]]]:
                index, row = int(acts.indices[i]), int(rows[i])
                found.append(
                    Activation(
                        FeatureId(s, index),
                        row,
                        self.tokens[row].text,
                        float(acts.values[i]),
                        float(self.maxima[s][index]),
                    )
                )
        found.sort(key=lambda a: (np.isnan(a.strength), -a.strength if a.strength == a.strength else -a.value))
        return Activations(found[:count])

    def to_pandas(self) -> pandas.DataFrame:
        """A row per activation: position, token, site, feature, index, value, strength."""
        import pandas

        parts = []
        for site, acts in self.acts.items():
            rows = acts.rows
            parts.append(
                pandas.DataFrame(
                    {
                        "position": rows,
                        "token": [self.tokens[row].text for row in rows],
                        "site": str(site),
                        "feature": [f"{site}/{index}" for index in acts.indices],
                        "index": acts.indices.astype(np.int64),
                        "value": acts.values,
                        "strength": acts.values / self.maxima[site][acts.indices],
                    }
                )
            )
        columns = ["position", "token", "site", "feature", "index", "value", "strength"]
        return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame(columns=columns)

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file (arrays, with the rest as JSON in its header)."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {}
        for site, acts in self.acts.items():
            arrays |= {f"{site}/indptr": acts.indptr, f"{site}/indices": acts.indices, f"{site}/values": acts.values}
            arrays[f"{site}/maxima"] = self.maxima[site]
        head = {
            "format": FORMAT,
            "tokens": [[t.id, t.text, t.bytes.hex(), t.start, t.end, t.special] for t in self.tokens],
            "sites": {str(site): acts.shape[1] for site, acts in self.acts.items()},
            "guesses": None
            if self.guesses is None
            else [None if g is None else [[x.id, x.text, x.probability] for x in g] for g in self.guesses],
            "about": dict(self.about),
            "fidelity": [{**vars(one), "site": str(one.site)} for one in self.fidelity.known.values()],
        }
        path = Path(path)
        path.write_bytes(save(arrays, metadata={"gemloupe.trace": json.dumps(head)}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote. Another kind of file, or a damaged one, is refused."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise refuse("file-unreadable", file=path, kind="trace", why="there is no such file")
        try:
            with safe_open(path, framework="np") as file:
                head = json.loads((file.metadata() or {})["gemloupe.trace"])
                names = file.keys()
                arrays = {name: file.get_tensor(name) for name in names}
            if head["format"] > FORMAT:
                raise refuse("scope-newer", file=path, theirs=head["format"], ours=FORMAT)
            tokens = tuple(
                Token(int(i), str(text), bytes.fromhex(raw), int(start), int(end), bool(special))
                for i, text, raw, start, end, special in head["tokens"]
            )
            acts = {
                Site.of(name): SparseActs(
                    (len(tokens), width), *(arrays[f"{name}/{part}"] for part in ("indptr", "indices", "values"))
                ).checked()
                for name, width in head["sites"].items()
            }
            maxima = {site: arrays[f"{site}/maxima"] for site in acts}
            if any(maxima[site].shape != acts[site].shape[1:] for site in acts):
                raise ValueError("its parts do not fit together")
            guesses = head["guesses"]
            if guesses is not None:
                guesses = tuple(None if g is None else tuple(Guess(*x) for x in g) for g in guesses)
            measured = [Fidelity(**{**one, "site": Site.of(one["site"])}) for one in head.get("fidelity", ())]
            known = {one.site: one for one in measured if one.site in acts}
            return cls(tokens, acts, maxima, guesses, head["about"], known)
        except (
            SafetensorError,
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            if getattr(error, "code", "") == "scope-newer":
                raise
            raise refuse("file-unreadable", file=path, kind="trace", why=str(error) or type(error).__name__) from error

    def __repr__(self) -> str:
        sites = ", ".join(map(str, self.sites)) or "no open site"
        text = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        return f"Trace({text!r}, {len(self)} tokens, {sites})"


def join_bytes(pieces: Iterable[tuple[int, bytes, bool, str]]) -> tuple[Token, ...]:
    """Tokens with text and character spans, from (id, bytes, special, name) in order.

    `name` is what a special token is called; its bytes are not part of the text.
    """
    pieces = list(pieces)
    whole_text = b"".join(raw for _, raw, special, _ in pieces if not special)
    # characters begun before each byte: every byte that is not a UTF-8 continuation begins one
    begun = np.concatenate([[0], np.cumsum([(byte & 0xC0) != 0x80 for byte in whole_text])]).astype(int)
    tokens, at = [], 0
    for ident, raw, special, name in pieces:
        if special:
            here = int(begun[at])
            tokens.append(Token(ident, name, b"", here, here, True))
            continue
        end = at + len(raw)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        inside = bool(raw) and (raw[0] & 0xC0) == 0x80  # begins within a character that an earlier token began
        start = max(int(begun[at]) - 1, 0) if inside else int(begun[at])
        tokens.append(Token(ident, text, raw, start, int(begun[end]), False))
        at = end
    return tuple(tokens)
