"""A conversation twice: with the model as it is, and steered; each keeps its own history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..edits import Edit, edits_of
from ..engine.protocol import Engine, GenerateRequest, Generation


@dataclass(frozen=True, eq=False)
class Turn:
    """What the user said, and both answers."""

    said: str
    default: Generation
    steered: Generation


class Chat:
    """`say(text)` gives a `Turn`; `default` and `steered` are the two histories, as chat messages.

    Messages go through the tokenizer's own template, and an answer ends at its end-of-turn token. While both
    histories are the same, both answers are made in one batch.
    """

    def __init__(self, engine: Engine, edits: Edit | Iterable[Edit] = (), **options: Any) -> None:
        self._engine, self.edits, self._options = engine, edits_of(edits), options
        self.default: tuple[dict[str, str], ...] = ()
        self.steered: tuple[dict[str, str], ...] = ()

    def say(self, text: str) -> Turn:
        """The next turn. If it is refused or cancelled, both histories stay as they were."""
        asked = {"role": "user", "content": text}
        default, steered = (*self.default, asked), (*self.steered, asked)
        if default == steered:
            one, two = self._run(default, ((), self.edits))
        else:
            (one,), (two,) = self._run(default, ((),)), self._run(steered, (self.edits,))
        self.default, self.steered = (*default, _answer(one)), (*steered, _answer(two))
        return Turn(text, one, two)

    def _run(self, messages: tuple[dict[str, str], ...], rows: Any) -> tuple[Generation, ...]:
        return self._engine.generate(GenerateRequest(messages, rows=rows, **self._options)).result()


def _answer(generation: Generation) -> dict[str, str]:
    return {"role": "assistant", "content": generation.text}
