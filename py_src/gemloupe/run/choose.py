"""From final hidden states to the next token and its log-probability.

The unembedding is most of a small model's weights. `Full` multiplies all of it. `Screened` multiplies it in int8, a
quarter of the bytes, with an error that has an exact bound per token (Cauchy-Schwarz over what rounding took away);
every token that could still be the answer is computed again in float32, so the choice is the one `Full` makes. The
log-probability needs the sum over the whole vocabulary: its 2,048 largest terms are float32, the rest int8, which
moves it by about 1e-4 nats (measured on the built-in model; tests hold it to 1e-3).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from .capture import body
from .encode import can_screen
from .product import product

# Below this many weights the int8 product's extra steps cost more than they save.
_WORTH_SCREENING = 1 << 24
_AGAIN = 2048  # tokens whose logits are always computed again
_TOO_MANY = 1 << 15  # candidates beyond which the full product is cheaper
_PART = 1 << 14  # rows of the unembedding rounded at a time


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the likeliest; `top_k` and `top_p` None leave nothing out."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


GREEDY = Sampling()


def chooser(model: Any) -> Full | Screened:
    """The quickest way for this model on this machine; both choose the same tokens."""
    weight = model.lm_head.weight
    if (
        _plain(model.lm_head)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= _WORTH_SCREENING
        and can_screen()
    ):
        return Screened(model)
    return Full(model)


def _plain(head: Any) -> bool:
    return type(head) is torch.nn.Linear and head.bias is None and not head._forward_hooks


def _cap(model: Any) -> float | None:
    return getattr(body(model).config, "final_logit_softcapping", None)


def _capped(raw: torch.Tensor, cap: float | None) -> torch.Tensor:
    return raw if cap is None else torch.tanh(raw / cap) * cap


def pick(shares: torch.Tensor, noise: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
    """The token chosen in each row of logits [row, token], int64 [row].

    `noise` [token] are draws from the exponential distribution. The largest probability / draw is a sample from the
    probabilities, and is how `torch.multinomial` draws one: the same generator gives the same token.
    """
    if noise is None:
        return shares.argmax(-1)
    scaled = shares / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, places = scaled.sort(-1)
        out = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        out[:, -1] = False  # one is always left
        scaled = scaled.masked_fill(out.scatter(-1, places, out), float("-inf"))
    return (scaled.softmax(-1) / noise).argmax(-1)


class Full:
    """Every logit, in the model's dtype."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self, hidden: torch.Tensor, noise: torch.Tensor | None, sampling: Sampling
    ) -> tuple[list[int], list[float]]:
        """(ids, log-probabilities in nats under the model) for final hidden states [row, d_model]."""
        chosen, shares = self.on_device(hidden, noise, sampling)
        return chosen.tolist(), shares.tolist()

    def on_device(
        self, hidden: torch.Tensor, noise: torch.Tensor | None, sampling: Sampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as tensors, without waiting for the device: int64 [row] and float32 [row]."""
        head = self._model.lm_head
        raw = product(hidden, head.weight) if _plain(head) else head(hidden)
        shares = _capped(raw, _cap(self._model)).to(torch.float32)  # in its own dtype, as the model does
        chosen = pick(shares, noise, sampling)
        return chosen, shares.gather(1, chosen[:, None])[:, 0] - shares.logsumexp(-1)


@dataclass(frozen=True)
class _Rounded:
    """An unembedding in int8, with what its rounding can cost; float32 [token] each."""

    weights: torch.Tensor  # int8 [token, d_model]
    scale: torch.Tensor
    length: torch.Tensor
    lost: torch.Tensor


# unembedding -> (which weights it held, those weights rounded)
_rounded: weakref.WeakKeyDictionary[torch.nn.Module, tuple[tuple[int, int], _Rounded]] = weakref.WeakKeyDictionary()


def _round(head: Any) -> _Rounded:
    """Made once per unembedding, again if its weights change; a quarter of its size stays in memory as long as it."""
    weight = head.weight.detach()
    now = weight.data_ptr(), weight._version
    if head not in _rounded or _rounded[head][0] != now:
        packed, scales, lengths, losts = [], [], [], []
        for part in weight.split(_PART):
            scale = part.abs().amax(1).clamp_min(1e-30) / 127
            small = (part / scale[:, None]).round_()
            lengths.append(part.norm(dim=1))
            packed.append(small.to(torch.int8))
            losts.append(small.mul_(scale[:, None]).sub_(part).norm(dim=1))
            scales.append(scale)
        _rounded[head] = now, _Rounded(torch.cat(packed), torch.cat(scales), torch.cat(lengths), torch.cat(losts))
    return _rounded[head][1]


class Screened:
    """Int8 finds, float32 decides."""

    def __init__(self, model: Any) -> None:
        self._model, self._cap = model, _cap(model)
        self._weight = model.lm_head.weight
        with torch.inference_mode(False):
            self._small = _round(model.lm_head)
        self._full = Full(model)

    def __call__(
        self, hidden: torch.Tensor, noise: torch.Tensor | None, sampling: Sampling
    ) -> tuple[list[int], list[float]]:
        """As `Full`."""
        if noise is not None and sampling.top_k is None and sampling.top_p is not None and sampling.top_p < 1:
            return self._full(hidden, noise, sampling)  # where the share ends depends on every logit
        near, error = self._near(hidden)
        ids, shares = [], []
        for row in range(len(hidden)):
            found = self._row(hidden[row], near[row], error[row], noise, sampling)
            if found is None:
                one, share = self._full(hidden[row : row + 1], noise, sampling)
                found = one[0], share[0]
            ids.append(found[0])
            shares.append(found[1])
        return ids, shares

    def _near(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(raw logits, how far each can be off), [row, token]."""
        small = self._small
        # In two pieces of int8, coarse and fine, a state loses nothing that matters: Gemma has a few dimensions tens of
        # times larger than the rest, and one piece would drown those. The weights are read once for both.
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-20) / 127
        coarse = (x / scale).round_()
        fine = ((x - coarse * scale) * (254 / scale)).round_().clamp_(-127, 127)
        known = (coarse + fine / 254) * scale
        pieces = torch._int_mm(torch.cat((coarse, fine)).to(torch.int8), small.weights.T)
        near, rest = pieces.to(torch.float32).chunk(2)
        near = near.add(rest, alpha=1 / 254).mul_(small.scale).mul_(scale)
        slack = 2**-22 * (x.shape[1] + 64) * x.norm(dim=1, keepdim=True)
        error = known.norm(dim=1, keepdim=True) * small.lost
        error += ((x - known).norm(dim=1, keepdim=True) + slack) * small.length
        return near, error

    def _row(
        self, x: torch.Tensor, near: torch.Tensor, error: torch.Tensor, noise: torch.Tensor | None, sampling: Sampling
    ) -> tuple[int, float] | None:
        """The choice in one row; None if too much would have to be computed again."""
        high = _capped(near + error, self._cap)
        again = near.topk(min(_AGAIN, len(near))).indices.sort().values
        exact = self._exact(again, x)
        # What the others would have to beat: the best score, or the last of the top k, among those computed again.
        tempered = None if noise is None else noise.log()
        if tempered is None:
            bar, hopes = exact.max(), high
        elif sampling.top_k is not None:
            if sampling.top_k > len(again):
                return None
            bar, hopes = exact.topk(sampling.top_k).values[-1], high
        else:
            bar, hopes = (exact / sampling.temperature - tempered[again]).max(), high / sampling.temperature - tempered
        open_ = hopes >= bar
        open_[again] = False
        more = open_.nonzero()[:, 0]
        if len(more) > _TOO_MANY:
            return None
        if len(more):
            again, order = torch.cat([again, more]).sort()
            exact = torch.cat([exact, self._exact(more, x)])[order]
        mixed = _capped(near, self._cap)
        mixed[again] = exact
        if tempered is None or sampling.top_k is not None:
            chosen = int(again[pick(exact[None], None if noise is None else noise[again], sampling)[0]])
        else:  # the sum in the softmax is the same for all, so the scores decide without it
            chosen = int(again[(exact / sampling.temperature - tempered[again]).argmax()])
        return chosen, float(mixed[chosen] - mixed.logsumexp(0))

    def _exact(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return _capped(torch.mv(self._weight[tokens], x), self._cap)
