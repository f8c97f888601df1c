"""The seam: requests in, plain values and events out.

An engine may live in this kernel or behind HTTP; either way a request is data, a reply is data, and every request
ends in exactly one of `Value`, `Failed` or `Cancelled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..feature import FeatureId
from ..site import Site
from ..trace import Token, Trace

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ReadRequest:
    """Read `given`: text, a tuple of token ids, or a tuple of chat messages.

    `sites` None means all open sites. `guesses` is how many next-token guesses to keep after each token.
    """

    given: str | tuple[int, ...] | tuple[Mapping[str, str], ...]
    sites: tuple[Site, ...] | None = None
    guesses: int = 0


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `given`. Temperature 0 takes the likeliest token each time."""

    given: str | tuple[int, ...] | tuple[Mapping[str, str], ...]
    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FeatureFacts:
    """What is known of one feature. None is unknown; `promotes` and `suppresses` are (token text, logit) pairs."""

    feature: FeatureId
    maximum: float | None = None
    density: float | None = None
    mean_active: float | None = None
    promotes: tuple[tuple[str, float], ...] = ()
    suppresses: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Description:
    """What an engine holds: the model, its open sites with their widths, and what to tell the user."""

    model: str
    scope: str | None
    device: str
    dtype: str
    context: int
    widths: Mapping[Site, int]
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Generated:
    """A finished continuation: the prompt's tokens, the new ones, and each new one's log-probability."""

    prompt: tuple[Token, ...]
    tokens: tuple[Token, ...]
    logprobs: tuple[float, ...]

    @property
    def text(self) -> str:
        return b"".join(token.bytes for token in self.tokens).decode("utf-8", "replace")


# ---- events of a running request


@dataclass(frozen=True)
class Progress:
    """How far a request is, 0 to 1."""

    share: float


@dataclass(frozen=True)
class NewToken:
    """One generated token, by position after the prompt."""

    index: int
    id: int
    logprob: float


@dataclass(frozen=True)
class Value(Generic[T]):
    """The request ended well."""

    value: T


@dataclass(frozen=True)
class Failed:
    """The request ended with an error; the next request is not affected."""

    error: BaseException


@dataclass(frozen=True)
class Cancelled:
    """The request was cancelled before it ended."""


Event = Progress | NewToken | Value[Any] | Failed | Cancelled
TERMINAL = (Value, Failed, Cancelled)


@runtime_checkable
class Job(Protocol[T_co]):
    """A request on its way."""

    def events(self) -> Iterator[Event]:
        """Events as they happen; the last one, and only that one, is terminal. Iterated again: only that one."""
        ...

    def result(self, timeout: float | None = None) -> T_co:
        """The value, waiting for it; raises the error, or the refusal 'cancelled'. Ctrl-C cancels the request."""
        ...

    def cancel(self) -> None:
        """Ask the request to stop. Safe from any thread, any number of times, also after the end."""
        ...

    @property
    def done(self) -> bool: ...


@runtime_checkable
class Engine(Protocol):
    """What every engine can do. Requests run one after the other, in the order they were made."""

    def describe(self) -> Description: ...

    def facts(self, features: tuple[FeatureId, ...]) -> tuple[FeatureFacts, ...]:
        """What is known of these features, in order. Quick: no forward pass."""
        ...

    def maxima(self, site: Site) -> np.ndarray:
        """Each feature's own largest known activation, float32 [feature], nan where unknown."""
        ...

    def read(self, request: ReadRequest) -> Job[Trace]: ...

    def generate(self, request: GenerateRequest) -> Job[Generated]: ...

    def close(self) -> None:
        """Cancel what runs and let go of everything. Closing twice is fine; other calls then are refused."""
        ...
