"""Edits: what steering writes into the model, as plain frozen values.

With h the tensor at a site, f a feature's activation on h, d its decoder row and m its own largest known activation:

    add(feature, s)         h + s·m·d
    clamp(feature, s)       h + (s·m − f)·d     the SAE's error term stays
    scale(feature, k)       h + (k − 1)·f·d
    ablate(feature)         h − f·d             the same as clamp to 0 and scale by 0
    add_vector(site, v, s)  h + s·v

Edits at one site all act on the tensor as it arrives there: each f is measured before any of them is applied, and
what they add is summed. That is what a splice of the SAE with changed activations and its error term does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from .errors import refuse
from .feature import FeatureId, whole
from .site import Site

KINDS = ("add", "clamp", "scale", "ablate", "add_vector")
WHERE = ("all", "prompt", "generated")
# Kinds that decide what a feature's activation becomes; two of those on one feature would contradict each other.
DECIDING = ("clamp", "scale", "ablate")
# In units of the feature's own maximum. A few units already break the text; this only keeps numbers sane.
MOST = 1000.0
# Length of an added vector, in raw units. The longest residuals of Gemma 3 are near 1e5.
LONGEST = 1e8

Where = str | tuple[int, ...]


@dataclass(frozen=True)
class When:
    """A condition: `feature` is above `above` (in units of its own maximum) at the same token.

    It is measured where the feature's site is passed, before the edits at that site. The site must come no later
    in the forward pass than the edit's own.
    """

    feature: FeatureId
    above: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature", FeatureId.of(self.feature))
        object.__setattr__(self, "above", _number(self.above, f"the condition on {self.feature}"))

    def __str__(self) -> str:
        return f"while {self.feature} > {self.above:g}"


@dataclass(frozen=True, eq=False)
class Edit:
    """One change to one site; make it with `add`, `clamp`, `scale`, `ablate` or `add_vector`.

    `strength` is in units of the feature's own maximum (`add`, `clamp`), a factor (`scale`), a factor of `vector`
    (`add_vector`), and not used by `ablate`. `where`: 'all', 'prompt', 'generated', or token positions counted from
    the beginning of the prompt (0 is BOS). Special tokens are left alone unless `specials`.
    """

    kind: str
    site: Site
    feature: FeatureId | None = None
    strength: float = 1.0
    vector: np.ndarray | None = None
    where: Where = "all"
    when: When | None = None
    specials: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.kind not in KINDS:
            raise refuse("edit-unreadable", given=self.kind, why=f"the kinds of edit are {', '.join(KINDS)}")
        put("site", Site.of(self.site))
        if self.kind == "add_vector":
            if self.feature is not None:
                raise refuse("edit-unreadable", given=self.kind, why="it adds a vector, and takes no feature")
            put("vector", _vector(self.vector, self.site))
        else:
            if self.feature is None or self.vector is not None:
                raise refuse("edit-unreadable", given=self.kind, why="it takes a feature, and no vector")
            put("feature", FeatureId.of(self.feature))
            if self.feature.site != self.site:
                raise refuse("edit-unreadable", given=self.kind, why=f"{self.feature} is not at {self.site}")
        put("strength", 0.0 if self.kind == "ablate" else _number(self.strength, self._target))
        if self.vector is not None:
            length = abs(self.strength) * float(np.linalg.norm(self.vector.astype(np.float64)))
            if length > LONGEST:
                raise refuse("strength-enormous", given=self.strength, target=self._target, most=f"length {LONGEST:g}")
        elif abs(self.strength) > MOST:
            raise refuse("strength-enormous", given=self.strength, target=self._target, most=f"{MOST:g}")
        put("where", _where(self.where))
        if self.when is not None and not isinstance(self.when, When):
            raise refuse(
                "edit-unreadable", given=self.when, why="a condition is written gl.when('res.12/834', above=0.2)"
            )
        if not isinstance(self.specials, (bool, np.bool_)):
            raise refuse("edit-unreadable", given=self.specials, why="specials is True or False")
        put("specials", bool(self.specials))

    @property
    def _target(self) -> str:
        return str(self.feature if self.feature is not None else self.site)

    def formula(self, maximum: float | None = None) -> str:
        """What it does to h: in symbols, or with the numbers filled in for a feature whose largest activation is
        `maximum` (`add_vector`: for a vector; any number will do)."""
        if maximum is None:
            s, k, m = "s", "k", "m"
        else:
            s, k, m = f"{self.strength:.4g}", f"{self.strength:.4g}", f"{maximum:.4g}"
        return {
            "add": f"h + {s}·{m}·d",
            "clamp": f"h + ({s}·{m} − f)·d",
            "scale": f"h + ({k} − 1)·f·d",
            "ablate": "h − f·d",
            "add_vector": f"h + {s}·v",
        }[self.kind]

    def covers(self, position: int, prompt: int) -> bool:
        """Whether `where` takes in a token `position`, after a prompt of `prompt` tokens."""
        if isinstance(self.where, tuple):
            return position in self.where
        return self.where == "all" or (self.where == "prompt") == (position < prompt)

    def with_strength(self, strength: float) -> Edit:
        return replace(self, strength=strength)

    # ---- as data

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        when = None if self.when is None else {"feature": str(self.when.feature), "above": self.when.above}
        return {
            "kind": self.kind,
            "site": str(self.site),
            "feature": None if self.feature is None else str(self.feature),
            "strength": self.strength,
            "vector": None if self.vector is None else [float(x) for x in self.vector],
            "where": list(self.where) if isinstance(self.where, tuple) else self.where,
            "when": when,
            "specials": self.specials,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Edit:
        """From `to_dict`'s form; anything else is refused."""
        try:
            fields = dict(given)
            unknown = fields.keys() - cls.__dataclass_fields__.keys()
            if unknown:
                raise refuse("edit-unreadable", given=sorted(unknown)[0], why="an edit has no such field")
            if fields.get("when") is not None:
                fields["when"] = When(fields["when"]["feature"], fields["when"].get("above", 0.0))
            if isinstance(fields.get("where"), list):
                fields["where"] = tuple(fields["where"])
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            if hasattr(error, "code"):
                raise
            raise refuse("edit-unreadable", given=given, why="it is not what Edit.to_dict() writes") from error

    def _key(self) -> tuple[Any, ...]:
        vector = None if self.vector is None else self.vector.tobytes()
        return self.kind, self.site, self.feature, self.strength, vector, self.where, self.when, self.specials

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        """As it is written in code: `gl.clamp('res.12/834', 2.0)`. A vector is named, not spelt out."""
        first = f"{self._target!r}" if self.vector is None else f"{self._target!r}, v"
        given = [first] + ([] if self.kind == "ablate" else [repr(self.strength)])
        if self.where != "all":
            given.append(f"where={self.where!r}")
        if self.when is not None:
            given.append(f"when=gl.when({str(self.when.feature)!r}, above={self.when.above!r})")
        if self.specials:
            given.append("specials=True")
        return f"gl.{self.kind}({', '.join(given)})"

    __repr__ = __str__


# ---- as the user writes them


def add(
    feature: FeatureId | str, s: float, *, where: Any = "all", when: When | None = None, specials: bool = False
) -> Edit:
    """h + s·m·d: push along a feature's decoder row, `s` times its own maximum."""
    return _of("add", feature, s, where, when, specials)


def clamp(
    feature: FeatureId | str, s: float, *, where: Any = "all", when: When | None = None, specials: bool = False
) -> Edit:
    """h + (s·m − f)·d: hold a feature at `s` times its own maximum. What the SAE does not explain stays as it is."""
    return _of("clamp", feature, s, where, when, specials)


def scale(
    feature: FeatureId | str, k: float, *, where: Any = "all", when: When | None = None, specials: bool = False
) -> Edit:
    """h + (k − 1)·f·d: multiply a feature by `k` where it is active; where it is not, nothing changes."""
    return _of("scale", feature, k, where, when, specials)


def ablate(feature: FeatureId | str, *, where: Any = "all", when: When | None = None, specials: bool = False) -> Edit:
    """h − f·d: take a feature out. The same as `clamp(feature, 0)` and `scale(feature, 0)`."""
    return _of("ablate", feature, 0.0, where, when, specials)


def add_vector(
    site: Site | str, v: Any, s: float = 1.0, *, where: Any = "all", when: When | None = None, specials: bool = False
) -> Edit:
    """h + s·v: add any vector as wide as the site's tensor, in raw units. The site needs no SAE."""
    return Edit("add_vector", Site.of(site), None, s, v, where, when, specials)


def when(feature: FeatureId | str, above: float = 0.0) -> When:
    """A condition for `when=`: only at tokens where `feature` is above `above` times its own maximum."""
    return When(FeatureId.of(feature), above)


def _of(kind: str, feature: Any, strength: Any, where: Any, when: When | None, specials: bool) -> Edit:
    feature = FeatureId.of(feature)
    return Edit(kind, feature.site, feature, strength, None, where, when, specials)


# ---- several


def edits_of(given: Any) -> tuple[Edit, ...]:
    """One edit or several, as a tuple; anything else is refused."""
    if given is None:
        return ()
    if isinstance(given, Edit):
        return (given,)
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise refuse("edit-unreadable", given=given, why="write it as gl.clamp('res.12/834', 2.0), or a list of those")
    edits = tuple(given)
    for edit in edits:
        if not isinstance(edit, Edit):
            raise refuse("edit-unreadable", given=edit, why="write it as gl.clamp('res.12/834', 2.0)")
    return edits


def check_conflicts(edits: Sequence[Edit], prompt: int) -> None:
    """Refuse two edits that decide the same feature's activation at a same token, naming both.

    `prompt` is the number of tokens in the prompt. Conditions are not looked into: two edits with different
    `when=` still conflict.
    """
    deciding: dict[FeatureId, list[Edit]] = {}
    for edit in edits:
        if edit.feature is None or edit.kind not in DECIDING:
            continue
        for other in deciding.setdefault(edit.feature, []):
            if _meet(edit, other, prompt):
                raise refuse("edits-conflict", one=other, two=edit, feature=edit.feature)
        deciding[edit.feature].append(edit)


def _meet(one: Edit, two: Edit, prompt: int) -> bool:
    if isinstance(two.where, tuple):
        one, two = two, one
    if isinstance(one.where, tuple):
        return any(two.covers(position, prompt) for position in one.where)
    return one.where == two.where or "all" in (one.where, two.where)


# ---- what a value must be


def _number(given: Any, target: Any) -> float:
    try:
        value = float(given) if isinstance(given, Real) and not isinstance(given, bool) else float("nan")
    except OverflowError:
        value = float("inf")
    if not np.isfinite(value):
        raise refuse("strength-unreadable", given=given, target=target)
    return value


def _vector(given: Any, site: Site) -> np.ndarray:
    if hasattr(given, "detach"):  # a torch tensor, without importing torch
        given = given.detach().cpu().float().numpy()
    try:
        vector = np.array(given, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise refuse("vector-unreadable", site=site, why=f"it is no array of numbers ({error})") from error
    if vector.ndim != 1 or not vector.size:
        raise refuse("vector-unreadable", site=site, why=f"its shape is {vector.shape}, and one dimension is wanted")
    if not np.isfinite(vector).all():
        raise refuse("vector-unreadable", site=site, why="it holds NaN or infinite numbers")
    if not vector.any():
        raise refuse("vector-unreadable", site=site, why="it is zero everywhere, so adding it would change nothing")
    vector.flags.writeable = False
    return vector


def _where(given: Any) -> Where:
    if isinstance(given, str):
        if given in WHERE:
            return given
        raise refuse("where-unreadable", given=given)
    one = whole(given)
    listed = (given,) if one is not None else given
    if not isinstance(listed, Iterable):
        raise refuse("where-unreadable", given=given)
    positions = [whole(position) for position in listed]
    if not positions or any(position is None or position < 0 for position in positions):
        raise refuse("where-unreadable", given=given)
    return tuple(sorted({position for position in positions if position is not None}))
