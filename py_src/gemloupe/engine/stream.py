"""A generation as the user holds it while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from ..edits import Edit, edits_of
from ..trace import Trace
from .protocol import GenerateJob, Generation, NewToken


class Stream:
    """Iterate it for `NewToken`s as they come; `result()` waits for the `Generation`. One continuation."""

    def __init__(self, job: GenerateJob, read_again: Callable[[Generation], Trace | None] | None = None) -> None:
        """`read_again` gives the trace of a generation that recorded none, when somebody asks for it."""
        self._job, self._read_again = job, read_again
        self._changed = False
        self._made: Generation | None = None

    def __iter__(self) -> Iterator[NewToken]:
        for event in self._job.events():
            if isinstance(event, NewToken):
                yield event
        self._job.result(0)  # a failure is the reader's too

    def result(self, timeout: float | None = None) -> Generation:
        """The whole, waiting for it. Ctrl-C stops the generation; the loupe stays usable."""
        if self._made is None:
            made = self._job.result(timeout)[0]
            # Read again, a text has the same edits everywhere, and numbers that overflowed would overflow once more.
            again = None if self._changed or made.stopped == "not-finite" else self._read_again
            if made.trace is None and again is not None:
                made = replace(made, trace=partial(again, made))  # type: ignore[arg-type]
            self._made = made
        return self._made

    def change(self, edits: Edit | Iterable[Edit]) -> None:
        """Other edits, from the next token on."""
        self._job.change((edits_of(edits),))
        self._changed = True

    def cancel(self) -> None:
        """Stop after the current token. `result()`, and iterating, are then refused with 'cancelled'; the refusal's
        `facts["partial"]` holds the generations so far."""
        self._job.cancel()

    @property
    def done(self) -> bool:
        return self._job.done
