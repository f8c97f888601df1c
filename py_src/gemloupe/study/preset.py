"""A steering run as a small file and as code: prompt, edits, sampling, and what model and SAEs it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..edits import Edit, edits_of
from ..errors import refuse
from ..words import say

FORMAT = 1
KIND = "steering preset"
SAMPLING = {"max_new_tokens": 32, "temperature": 0.0, "top_k": None, "top_p": None, "seed": 0}
"""The sampling settings and what holds where nothing is said."""

Prompt = str | tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Preset:
    """What reproduces a steering run. `made_with` holds `model`, `model_digest`, `scope` and `sae_digests`."""

    prompt: Prompt
    edits: tuple[Edit, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", edits_of(self.edits))
        object.__setattr__(self, "sampling", {**SAMPLING, **self.sampling})
        object.__setattr__(self, "made_with", dict(self.made_with))

    def to_json(self) -> str:
        """The file's text."""
        whole = {
            "format": FORMAT,
            "kind": KIND,
            "prompt": self.prompt if isinstance(self.prompt, str) else [dict(one) for one in self.prompt],
            "edits": [edit.to_dict() for edit in self.edits],
            "sampling": dict(self.sampling),
            "made_with": dict(self.made_with),
        }
        return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        path = Path(path)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Preset:
        """Read what `save` wrote. Another kind of file, or a damaged one, is refused."""
        path = Path(path)
        if not path.is_file():
            raise refuse("file-unreadable", file=path, kind=KIND, why="there is no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise refuse("file-unreadable", file=path, kind=KIND, why=str(error).rstrip(".")) from error
        return cls.from_json(text, path)

    @classmethod
    def from_json(cls, text: str, file: Any = "the text") -> Preset:
        """Read what `to_json` wrote; `file` is what a refusal calls it."""
        try:
            whole = json.loads(text)
            if whole["kind"] != KIND:
                raise ValueError(f"it says that it is a {whole['kind']!r}")
            if whole["format"] > FORMAT:
                raise refuse("scope-newer", file=file, theirs=whole["format"], ours=FORMAT)
            prompt = whole["prompt"]
            if not isinstance(prompt, str):
                prompt = tuple({"role": str(one["role"]), "content": str(one["content"])} for one in prompt)
            unknown = whole["sampling"].keys() - SAMPLING.keys()
            if unknown:
                raise ValueError(f"it has a sampling setting {sorted(unknown)[0]!r}")
            edits = tuple(Edit.from_dict(one) for one in whole["edits"])
            return cls(prompt, edits, whole["sampling"], dict(whole["made_with"]))
        except KeyError as error:
            raise refuse("file-unreadable", file=file, kind=KIND, why=f"it has no {error}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if getattr(error, "code", "") == "scope-newer":
                raise
            raise refuse("file-unreadable", file=file, kind=KIND, why=str(error).rstrip(".")) from error

    def differences(self, about: Mapping[str, Any]) -> list[str]:
        """How the open model and SAEs (`about`, as in `loupe.about.about`) differ from `made_with`, in sentences.

        What either side does not know is not compared. SAEs are compared at the sites that are edited.
        """
        found = []
        names = {"model": say("The model"), "model_digest": say("The model file"), "scope": say("The set of SAEs")}
        for key, name in names.items():
            found += _difference(name, self.made_with.get(key), about.get(key))
        theirs, ours = self.made_with.get("sae_digests") or {}, about.get("sae_digests") or {}
        for site in sorted({str(edit.site) for edit in self.edits}):
            found += _difference(say("The SAE at {site}", site=site), theirs.get(site), ours.get(site))
        return found

    def code(self, opening: str | None = None, options: Mapping[str, Any] | None = None) -> str:
        """A notebook cell that makes the same run, and says so if model or SAEs are others.

        `opening` is the expression that gives the loupe, by default a call of `gl.open`; `options` go to `loupe.steer`.
        """
        imports = ["import gemloupe as gl"]
        vectors: list[str] = []
        edits: list[str] = []
        for edit in self.edits:
            text = str(edit)
            if edit.vector is not None:
                name = f"v{len(vectors) + 1}"
                numbers = ", ".join(str(np.float32(x)) for x in edit.vector)
                vectors.append(f'{name} = np.array([{numbers}], dtype="float32")')
                text = text.replace(", v,", f", {name},", 1)
            edits.append(text)
        if vectors:
            imports.insert(0, "import numpy as np")
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(one) for one in self.prompt]
        lines = [
            *imports,
            "",
            f"loupe = {opening or self._opening()}",
            *vectors,
            "desk = loupe.steer(",
            f"    {prompt!r},",
        ]
        lines += ["    [", *(f"        {text}," for text in edits), "    ],"] if edits else ["    [],"]
        lines += [f"    {name}={value!r}," for name, value in self.sampling.items() if value != SAMPLING[name]]
        lines += [f"    {name}={value!r}," for name, value in (options or {}).items()]
        if self.made_with:
            lines += ["    made_with={", *(f"        {k!r}: {v!r}," for k, v in self._needed().items()), "    },"]
        return "\n".join([*lines, ")", "desk"])

    def _opening(self) -> str:
        if self.made_with.get("scope") == BUILTIN_SCOPE:
            return "gl.open()"
        named = self.made_with.get("model")
        scope = f", scope={self.made_with['scope']!r}" if self.made_with.get("scope") else ""
        return f"gl.open({named!r}{scope})" if named else "gl.open()"

    def _needed(self) -> dict[str, Any]:
        """`made_with`, with SAEs only where there are edits."""
        sites = {str(edit.site) for edit in self.edits}
        kept = {key: self.made_with[key] for key in ("model", "model_digest", "scope") if self.made_with.get(key)}
        digests = {site: d for site, d in (self.made_with.get("sae_digests") or {}).items() if site in sites}
        return kept | ({"sae_digests": digests} if digests else {})


BUILTIN_SCOPE = "gemma-3-270m-builtin"


def _difference(name: str, theirs: Any, ours: Any) -> list[str]:
    if theirs is None or ours is None or theirs == ours:
        return []
    short = [value[:12] if len(str(value)) == 64 else value for value in (str(theirs), str(ours))]
    return [
        say("{name} is {here} here, and was {there} when this run was saved.", name=name, here=short[1], there=short[0])
    ]
