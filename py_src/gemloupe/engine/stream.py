"""A generation as the user holds it while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..edits import Edit, edits_of
from .protocol import GenerateJob, Generation, NewToken


class Stream:
    """Iterate it for `NewToken`s as they come; `result()` waits for the `Generation`. One continuation."""

    def __init__(self, job: GenerateJob) -> None:
        self._job = job

    def __iter__(self) -> Iterator[NewToken]:
        for event in self._job.events():
            if isinstance(event, NewToken):
                yield event
        self._job.result(0)  # a failure is the reader's too

    def result(self, timeout: float | None = None) -> Generation:
        """The whole, waiting for it. Ctrl-C stops the generation; the loupe stays usable."""
        return self._job.result(timeout)[0]

    def change(self, edits: Edit | Iterable[Edit]) -> None:
        """Other edits, from the next token on."""
        self._job.change((edits_of(edits),))

    def cancel(self) -> None:
        """Stop after the current token. `result()`, and iterating, are then refused with 'cancelled'; the refusal's
        `facts["partial"]` holds the generations so far."""
        self._job.cancel()

    @property
    def done(self) -> bool:
        return self._job.done
