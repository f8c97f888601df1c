"""The seam: requests in, plain values and events out.

An engine may live in this kernel or behind HTTP; either way a request is data, a reply is data, and every request
ends in exactly one of `Value`, `Failed` or `Cancelled`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..edits import Edit
from ..evolution import Attribution, Evolution
from ..feature import FeatureId
from ..site import Site
from ..sparse import SparseActs
from ..trace import Token, Trace

Given = str | tuple[int, ...] | tuple[Mapping[str, str], ...]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ReadRequest:
    """Read `given`: text, a tuple of token ids, or a tuple of chat messages.

    `sites` None means all open sites. `guesses` is how many next-token guesses to keep after each token. At the
    sites in `fidelity` the trace also says how well the SAE fits this text, which costs a sparse product each; with
    `delta_loss` also what its reconstruction costs the model: one pass, and one more per site.
    """

    given: Given
    sites: tuple[Site, ...] | None = None
    guesses: int = 0
    fidelity: tuple[Site, ...] = ()
    delta_loss: bool = False


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `given`, once for each of `rows`, all in one batch.

    A row is the tuple of edits that steer it; () is the model as it is. Each row's text is the one it would have
    alone: rows do not see each other, and each has its own stream of random numbers from the same `seed`.

    Temperature 0 takes the likeliest token each time; otherwise a token is drawn from the `top_k` likeliest (None:
    from all), of those from the fewest that hold a share `top_p` of the probability (None: all of it).

    `sites`: whose activations are kept, for the prompt and the new tokens. None means all open sites.
    """

    given: Given
    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    rows: tuple[tuple[Edit, ...], ...] = ((),)
    sites: tuple[Site, ...] | None = ()


@dataclass(frozen=True)
class CompareRequest:
    """How far each of `rows` moves the model's predictions of `tokens` (ids) after `given`.

    `tokens` are a continuation, usually the one without edits; at each of them the distribution with the row's
    edits is compared with the one without, or with that of row `reference`.
    """

    given: Given
    tokens: tuple[int, ...]
    rows: tuple[tuple[Edit, ...], ...]
    reference: int | None = None


@dataclass(frozen=True)
class MeanRequest:
    """The mean of the tensor at `site` over the ordinary tokens of `given`. The site needs no SAE."""

    given: Given
    site: Site


@dataclass(frozen=True, eq=False)
class TogetherRequest:
    """Read several passages of token ids in one pass, at `sites` (None: all open): what an index is made from.

    Passages are taken as they are, BOS included, and may not be longer than the context.
    """

    passages: tuple[np.ndarray, ...]
    sites: tuple[Site, ...] | None = None


@dataclass(frozen=True)
class PromoteRequest:
    """The `k` tokens whose logit a feature's decoder row raises most and lowers most, for scopes that keep no lists.

    The row is taken through the model's final norm (its gain; an attention row through W_O first), the unembedding
    and the soft-cap, relative to the mean over the vocabulary. No layer in between has a say.
    """

    feature: FeatureId
    k: int = 10


@dataclass(frozen=True)
class EvolveRequest:
    """Follow `given` from layer to layer, in one pass.

    At every one of `sites` (None: all open), the `k` strongest features of each token, the tensor's length and what
    its SAE misses of it. After every layer, the `guesses` likeliest next tokens at `positions` (None: at the last 64).
    The reply is an `Evolution` without ribbons: those take what is known of many texts. With `gives_way` the request
    ends as cancelled once another one waits.
    """

    given: Given
    k: int = 8
    guesses: int = 5
    positions: tuple[int, ...] | None = None
    sites: tuple[Site, ...] | None = None
    gives_way: bool = False


@dataclass(frozen=True)
class AttributeRequest:
    """Which features at earlier `sites` (None: all open) raised or lowered `target`: the `k` strongest effects.

    `target` is a feature, or the next token after `position`: a vocabulary id, or text that is one token. `against`,
    only with a token, is another one, and the target then the difference of their logits. `position` None is where
    the feature fires most, or the last token.
    """

    given: Given
    target: FeatureId | int | str
    position: int | None = None
    against: int | str | None = None
    k: int = 60
    sites: tuple[Site, ...] | None = None


@dataclass(frozen=True)
class WithoutRequest:
    """What `target` at `position` loses when each of `sources`, a feature and the position where it is on, is taken
    out, one at a time. Target and `against` as of an `AttributeRequest`."""

    given: Given
    target: FeatureId | int
    position: int
    sources: tuple[tuple[FeatureId, int], ...]
    against: int | None = None


@dataclass(frozen=True, eq=False)
class FeatureFacts:
    """What is known of one feature. None is unknown; `promotes` and `suppresses` are (token text, logit) pairs.

    `neuronpedia` is the address of its page there, None where it has none. `label` is what someone says it is about,
    empty where nobody did: an engine knows none, a loupe fills it in.
    """

    feature: FeatureId
    maximum: float | None = None
    density: float | None = None
    mean_active: float | None = None
    promotes: tuple[tuple[str, float], ...] = ()
    suppresses: tuple[tuple[str, float], ...] = ()
    neuronpedia: str | None = None
    label: str = ""


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


@dataclass(frozen=True, eq=False)
class Effect:
    """What one edit did, at every token of prompt and continuation that the model has read.

    `fired` bool [token]: it acted there. `activation` float32 [token]: its feature's activation before the edit, in
    raw units (0 where it did not look; a vector has none). `norm` float32 [token]: the length of what was added;
    `share`: that length by the length of the tensor it was added to. The last generated token has not been read.
    """

    edit: Edit
    fired: np.ndarray
    activation: np.ndarray
    norm: np.ndarray
    share: np.ndarray
    why: str = ""

    @property
    def silent(self) -> bool:
        """Whether it changed nothing anywhere; `why` then says how that came."""
        return not bool(self.norm.any())


class _WhenAsked:
    """A field that is None by default, and may be given as a function that is called when it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, made: Any, owner: Any = None) -> Any:
        if made is None:
            return None  # the default
        known = made.__dict__[self._name]
        if callable(known):
            known = made.__dict__[self._name] = known()
        return known

    def __set__(self, made: Any, value: Any) -> None:
        made.__dict__[self._name] = value


_TRACE: Any = _WhenAsked("trace")


@dataclass(frozen=True, eq=False)
class Generation:
    """One continuation: the prompt's tokens, the new ones, and each new one's log-probability.

    Log-probabilities are the steered model's own, in nats, whatever the temperature and the sampling. `trace` holds
    prompt and new tokens at the sites that were recorded, with the edits made; its row for the last token is then
    empty, since the model has not read it. What a loupe generated without recording is read again, at all open sites,
    when `trace` is first asked for; elsewhere it is None. `effects` has one `Effect` per edit, in the order of
    `edits`. `stopped`: 'length', 'end' (a special token ended it), 'cancelled', or 'not-finite'; then `not_finite`
    is (index of the first new token that could not be made, the edit closest to the fault or None). `notes` are
    sentences for the user.
    """

    prompt: tuple[Token, ...]
    tokens: tuple[Token, ...]
    logprobs: tuple[float, ...]
    trace: Trace | None = _TRACE
    effects: tuple[Effect, ...] = ()
    edits: tuple[Edit, ...] = ()
    seed: int = 0
    stopped: str = "length"
    not_finite: tuple[int, Edit | None] | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What was generated, without the prompt."""
        return b"".join(token.bytes for token in self.tokens).decode("utf-8", "replace")

    def __repr__(self) -> str:
        lines = [f"Generation({self.text!r}, {len(self.tokens)} tokens, stopped: {self.stopped})"]
        return "\n".join(lines + [f"  {line}" for line in self._said()])

    def _said(self) -> list[str]:
        """What a reader of the text should know of it: edits that did nothing, and the notes."""
        silent = [f"{effect.edit} changed nothing: {effect.why}." for effect in self.effects if effect.silent]
        return silent + list(self.notes)

    def _repr_html_(self) -> str:
        def block(text: str, style: str) -> str:
            return f'<div style="{style}">{html.escape(text)}</div>'

        given = b"".join(token.bytes for token in self.prompt).decode("utf-8", "replace")
        count = "1 token" if len(self.tokens) == 1 else f"{len(self.tokens)} tokens"
        edits = ", ".join(map(str, self.edits)) or "no edits"
        quiet = "opacity:.7;font-size:85%"
        return (
            '<div style="white-space:pre-wrap;overflow-wrap:anywhere" dir="auto">'
            f'<span style="opacity:.65">{html.escape(given)}</span>{html.escape(self.text)}</div>'
            + block(f"{count}, stopped: {self.stopped} · seed {self.seed} · {edits}", quiet)
            + "".join(block(line, quiet) for line in self._said())
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """One row of a `CompareRequest`, per token of the continuation. `kl` float32 [token]: the Kullback-Leibler
    divergence KL(with the edits || without, or with the reference's), in nats. `logprobs` float32 [token]: the token's
    log-probability with the edits."""

    kl: np.ndarray
    logprobs: np.ndarray


# ---- events of a running request


@dataclass(frozen=True)
class Progress:
    """How far a request is, 0 to 1."""

    share: float


@dataclass(frozen=True)
class NewToken:
    """One generated token of one row, by position after the prompt.

    `text` is what it adds to the row's text: "" while a character is not complete, then all of the character.
    """

    index: int
    id: int
    logprob: float
    row: int = 0
    text: str = ""


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
    """The request was cancelled before it ended. `partial` is what it had made so far: of a generation, the
    `Generation`s."""

    partial: Any = None


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
class GenerateJob(Job[tuple[Generation, ...]], Protocol):
    """A generation on its way."""

    def change(self, rows: tuple[tuple[Edit, ...], ...]) -> None:
        """Other edits for the same rows, from the next token on. Safe from any thread; refused like a request."""
        ...


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

    def direction(self, feature: FeatureId) -> np.ndarray:
        """A feature's decoder row, float32 [width of the tensor at its site]."""
        ...

    def threshold(self, feature: FeatureId) -> float:
        """The activation above which a feature is on, in the SAE's own units."""
        ...

    def read(self, request: ReadRequest) -> Job[Trace]: ...

    def generate(self, request: GenerateRequest) -> GenerateJob:
        """One `Generation` per row, in order; `NewToken`s while it runs."""
        ...

    def compare(self, request: CompareRequest) -> Job[tuple[Comparison, ...]]:
        """One `Comparison` per row, in order."""
        ...

    def mean(self, request: MeanRequest) -> Job[np.ndarray]:
        """float32 [width of the site]."""
        ...

    def promote(self, request: PromoteRequest) -> Job[FeatureFacts]:
        """`promotes` and `suppresses` of the feature; its other facts are left unknown."""
        ...

    def together(self, request: TogetherRequest) -> Job[Mapping[Site, SparseActs]]:
        """Activations [token, feature] at each site over the tokens of all passages, in order."""
        ...

    def evolve(self, request: EvolveRequest) -> Job[Evolution]: ...

    def attribute(self, request: AttributeRequest) -> Job[Attribution]: ...

    def without(self, request: WithoutRequest) -> Job[tuple[float, ...]]:
        """One number per source, in order."""
        ...

    def close(self) -> None:
        """Cancel what runs and let go of everything. Closing twice is fine; other calls then are refused."""
        ...
