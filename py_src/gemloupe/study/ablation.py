"""What a feature is worth to the model where it fires: the loss on what follows, with the feature and without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..edits import ablate
from ..engine.protocol import CompareRequest, Engine
from ..errors import refuse
from ..evidence import Example, FeatureEvidence
from ..feature import FeatureId

if TYPE_CHECKING:
    from .index import Index

EXAMPLES, AFTER = 10, 20


@dataclass(frozen=True, eq=False)
class Followed:
    """What follows one example, and what taking the feature out changes there.

    `ids` and `tokens` are those after the peak, at most 20. `change` float32 [token]: the loss without the feature less
    the loss with it, in nats; above 0 the feature helped to predict that token. `kl` float32 [token]: how far the whole
    prediction moves, KL(without || with), in nats.
    """

    example: Example
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    change: np.ndarray
    kl: np.ndarray


@dataclass(frozen=True, eq=False)
class Ablation:
    """The loss on a feature's strongest examples when it is ablated all over their passages."""

    feature: FeatureId
    followed: tuple[Followed, ...]

    @property
    def next(self) -> float:
        """Mean change of the loss on the token right after the peak, in nats; nan without any."""
        return _mean([one.change[0] for one in self.followed])

    @property
    def after(self) -> float:
        """Mean change of the loss over all tokens after the peaks that were looked at, in nats."""
        return _mean([change for one in self.followed for change in one.change])

    @property
    def helped(self) -> int:
        """In how many examples the loss right after the peak rises without the feature."""
        return sum(bool(one.change[0] > 0) for one in self.followed)

    @property
    def tokens(self) -> int:
        """How many tokens were looked at."""
        return sum(len(one.change) for one in self.followed)

    def __repr__(self) -> str:
        return (
            f"Ablation({self.feature} out of {len(self.followed)} examples: loss {self.next:+.3f} nats on the token "
            f"after the peak ({self.helped} of {len(self.followed)} rise), {self.after:+.3f} over {self.tokens} tokens)"
        )


def _mean(values: list[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")


def ablation(
    engine: Engine,
    index: Index,
    evidence: FeatureEvidence,
    *,
    examples: int = EXAMPLES,
    after: int = AFTER,
    follow: Callable[[Any], Any] = lambda job: job,
    progress: Callable[[Ablation], Any] = lambda so_far: None,
) -> Ablation:
    """Take a feature out of the passages of its strongest `examples`, and compare the loss on up to `after` tokens
    that follow each peak. Two passes of the model for each.

    `follow(job)` is handed each job as it starts, so that it can be cancelled; `progress` what is known after each.
    Refuses 'ablation-nothing' where no example is followed by a token.
    """
    feature, found = evidence.feature, Ablation(evidence.feature, ())
    for example in evidence.top[:examples]:
        ids = tuple(index.passage(example.document).tolist())
        given, tokens = ids[: example.position + 1], ids[example.position + 1 :][:after]
        if not tokens:
            continue
        request = CompareRequest(given, tokens, ((), (ablate(feature),)))
        with_it, without = follow(engine.compare(request)).result()
        texts = tuple(index.text(ident) for ident in tokens)
        change = np.asarray(with_it.logprobs - without.logprobs, np.float32)
        found = Ablation(feature, (*found.followed, Followed(example, tokens, texts, change, without.kl)))
        progress(found)
    if not found.followed:
        why = "it never fired in the index" if not evidence.top else "its examples end where it fires"
        raise refuse("ablation-nothing", feature=feature, why=why)
    return found
