"""What led to a target: gradient times activation, in one pass forward and one back, and by taking features out.

Every site's tensor is h = sum of f d + bias + error, with f the activations, d the decoder rows and the error what the
SAE misses. The model runs as it is, errors and all, and so is the gradient g of the target by h: it goes through the
model, not through the SAEs. A feature's effect is f (d . g) and the error's is error . g, so at every site they add up
to h . g: nothing is lost, and nothing of one site is counted within another. An effect is therefore a total one: what
the feature does by way of everything that comes after it, to first order; which is what taking it out measures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..load.sae import Sae, Transcoder
from ..site import Site
from ..sparse import SparseActs
from .capture import Enough, body, reading, replacing
from .encode import encode
from .fidelity import reconstruct, target_of, without_gain

# Entries whose decoder rows are gathered at a time.
_ENTRIES = 1 << 14
# Copies of the text that are read together when features are taken out.
_ROWS = 8


@dataclass(frozen=True)
class FeatureTarget:
    """A feature's activation, before the threshold: what an SAE makes of the tensor at its site."""

    site: Site
    index: int


@dataclass(frozen=True)
class TokenTarget:
    """The logit of a next token, soft-capped where the model does that; less that of another if one is given."""

    id: int
    against: int | None = None


Target = FeatureTarget | TokenTarget


@dataclass(frozen=True, eq=False)
class Effects:
    """What every part of every earlier site did to the target.

    `features` float64 [nnz] per site, in the order of its `acts`; `errors` and `biases` float64 [token] per site.
    Special tokens are not encoded: all of their tensor counts as error.
    """

    position: int
    value: float
    acts: dict[Site, SparseActs]
    features: dict[Site, np.ndarray]
    errors: dict[Site, np.ndarray]
    biases: dict[Site, np.ndarray]


@dataclass
class _Seen:
    """Tensors of one pass. `writes` names for each site the one whose tensor its SAE gives back."""

    tensors: dict[Site, torch.Tensor] = field(default_factory=dict)
    writes: dict[Site, Site] = field(default_factory=dict)
    final: torch.Tensor | None = None


def attribute(
    model: Any,
    ids: Sequence[int],
    sites: Sequence[Site],
    sae: Callable[[Site], Any],
    target: Target,
    position: int | None,
    *,
    special: Collection[int],
    checkpoint: Callable[[float], None] = lambda share: None,
) -> Effects:
    """Effects on `target` at `position` of everything at those of `sites` that come before it: one pass and one back.

    Position None is where the feature fires most, or the last token. Refuses 'target-silent' where the feature does not
    fire and 'gradient-not-finite'. `checkpoint` is called between steps; it may raise.
    """
    checkpoint(0.0)
    before = earlier(sites, target)
    kept = torch.tensor([ident not in special for ident in ids])
    with torch.inference_mode(False), torch.enable_grad():
        seen = _forward(model, [list(ids)], before, target, sae, graph=True)
        checkpoint(0.3)
        if isinstance(target, FeatureTarget):
            own = sae(target.site)
            pre = _pre(own, target.index, seen.tensors[target.site][0])
            position = _where(own, target, pre.detach(), kept.to(pre.device), position)
            goal = pre[position]
        else:
            position = len(ids) - 1 if position is None else position
            assert seen.final is not None
            goal = _logits(model, seen.final[0, position][None], target)[0]
        value = float(goal.detach())
        if not np.isfinite(value):
            raise refuse("gradient-not-finite", what="the target itself", why="numbers overflow before it")
        tensors = [seen.tensors[seen.writes[site]] for site in before]
        gradients = torch.autograd.grad(goal, tensors, allow_unused=True) if tensors else ()
    found = Effects(position, value, {}, {}, {}, {})
    for number, (site, gradient) in enumerate(zip(before, gradients, strict=True)):
        checkpoint(0.5 + 0.5 * number / len(before))
        x, y = seen.tensors[site].detach()[0], seen.tensors[seen.writes[site]].detach()[0]
        g = torch.zeros_like(y) if gradient is None else gradient[0]
        if not bool(torch.isfinite(g).all()):
            raise refuse("gradient-not-finite", what=f"the gradient at {site}", why="a step after it overflows")
        _split(found, site, sae(site), x, y.to(torch.float32), g.to(torch.float32), kept)
    checkpoint(1.0)
    return found


def earlier(sites: Sequence[Site], target: Target) -> list[Site]:
    """Those of `sites` that the target can depend on."""
    return sorted({site for site in sites if isinstance(target, TokenTarget) or site < target.site})


def _split(
    found: Effects, site: Site, page: Sae, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor, kept: torch.Tensor
) -> None:
    """Divide what the tensor `y` [token, width] did, with gradient `g`, among features, bias and error."""
    with torch.no_grad():
        acts = encode(page, x, kept.to(x.device), site)
        rows = torch.from_numpy(acts.rows).to(g.device)
        columns = torch.from_numpy(acts.indices.astype(np.int64)).to(g.device)
        dots = [
            torch.linalg.vecdot(page.decoder[columns[i : i + _ENTRIES]].to(torch.float32), g[rows[i : i + _ENTRIES]])
            for i in range(0, acts.nnz, _ENTRIES)
        ]
        effects = np.zeros(0) if not dots else torch.cat(dots).cpu().numpy().astype(np.float64) * acts.values
        whole = torch.linalg.vecdot(y.double(), g.double()).cpu().numpy()
        error = torch.linalg.vecdot((y - reconstruct(page, x, acts)).double(), g.double()).cpu().numpy()
    of_features = np.bincount(acts.rows, effects, minlength=len(kept))
    ordinary = kept.numpy()
    found.acts[site], found.features[site] = acts, effects
    found.errors[site] = np.where(ordinary, error, whole)
    found.biases[site] = np.where(ordinary, whole - error - of_features, 0.0)


@torch.inference_mode()
def without_each(
    model: Any,
    ids: Sequence[int],
    sae: Callable[[Site], Any],
    target: Target,
    position: int,
    sources: Sequence[tuple[Site, int, int]],
    *,
    checkpoint: Callable[[float], None] = lambda share: None,
) -> list[float]:
    """What the target at `position` loses without each of `sources` (site, feature, position), taken out one at a time.

    h becomes h - f d at that token: the SAE's error stays, everything after is computed anew. Read in batches.
    """
    found: list[float] = []
    for start in range(0, len(sources), _ROWS):
        checkpoint(start / len(sources))
        some = sources[start : start + _ROWS]
        rows = [list(ids)] * (len(some) + 1)  # the last one is as it is
        with ExitStack() as hooks:
            for site in sorted({source[0] for source in some}):
                hooks.enter_context(_taking_out(model, sae(site), site, [s if s[0] == site else None for s in some]))
            seen = _forward(model, rows, [], target, sae, graph=False)
        if isinstance(target, FeatureTarget):
            x = seen.tensors[target.site][:, position]
            values = _pre(sae(target.site), target.index, x)
        else:
            assert seen.final is not None
            values = _logits(model, seen.final[:, position], target)
        found += (values[-1] - values[:-1]).tolist()
    checkpoint(1.0)
    return found


@contextmanager
def _taking_out(model: Any, page: Sae, site: Site, of_row: Sequence[tuple[Site, int, int] | None]):
    """While this is open, each row of a batch is without the feature that `of_row` names for it."""
    read: dict[str, torch.Tensor] = {}

    def change(y: torch.Tensor) -> torch.Tensor:
        x = read.pop("x", y)
        out = y.clone()
        for row, source in enumerate(of_row):
            if source is not None:
                _, index, position = source
                pre = _pre(page, index, x[row, position])
                if bool(pre > page.threshold[index].clamp_min(0)):
                    out[row, position] -= (pre * page.decoder[index]).to(y.dtype)
        return out

    with ExitStack() as hooks:
        if isinstance(page, Transcoder):
            reader = reading(model, [site], lambda _, x: read.update(x=x), without_gain=lambda _: page.before_gain)
            hooks.enter_context(reader)
        hooks.enter_context(replacing(model, _writes(page, site), change))
        yield


def _forward(
    model: Any, rows: list[list[int]], before: Sequence[Site], target: Target, sae: Any, *, graph: bool
) -> _Seen:
    """One pass up to the target, which keeps the tensors at `before`, what they are judged by, and the target's."""
    device = next(model.parameters()).device
    seen = _Seen()
    own = [target.site] if isinstance(target, FeatureTarget) else []
    wanted = {*before, *map(target_of, before), *own}
    seen.writes = {site: site for site in before}

    mine = get_ident()

    def root(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor | None:
        # Nothing in the model is trained, so the graph begins here; not that of another thread's pass.
        return out.detach().requires_grad_() if get_ident() == mine else None

    def gain(site: Site) -> bool:
        # Asked at sites of transcoders only, before their tensor is made.
        page = sae(site)
        if site in seen.writes:
            seen.writes[site] = _writes(page, site)
        return without_gain(page)

    with ExitStack() as hooks:
        if graph:
            hooks.callback(body(model).embed_tokens.register_forward_hook(root).remove)
        stop = isinstance(target, FeatureTarget)
        hooks.enter_context(reading(model, wanted, seen.tensors.__setitem__, stop=stop, without_gain=gain))
        with suppress(Enough):
            out = body(model)(torch.tensor(rows, device=device), use_cache=False)
            seen.final = out.last_hidden_state
    return seen


def _writes(page: Sae, site: Site) -> Site:
    """A transcoder gives back the MLP's output; an SAE, also one that reads where transcoders do, its own input."""
    return target_of(site) if isinstance(page, Transcoder) else site


def _pre(page: Sae, index: int, x: torch.Tensor) -> torch.Tensor:
    """A feature's activation before the threshold on `x` [..., d_in]."""
    # A copy: what was loaded while nothing was to be differentiated cannot take part in it.
    return x.to(torch.float32) @ page.encoder[index].clone().to(torch.float32) + page.b_enc[index].clone()


def _where(page: Sae, target: FeatureTarget, pre: torch.Tensor, kept: torch.Tensor, position: int | None) -> int:
    fires = kept & (pre > page.threshold[target.index].clamp_min(0))
    name = f"{target.site}/{target.index}"
    if position is None:
        if not bool(fires.any()):
            raise refuse("target-silent", feature=name, where="at any token of this text")
        return int(torch.where(fires, pre, -torch.inf).argmax())
    if not bool(fires[position]):
        elsewhere = fires.nonzero()[:, 0].tolist()
        hint = f" (it does at {', '.join(map(str, elsewhere[:8]))})" if elsewhere else ""
        raise refuse("target-silent", feature=name, where=f"at position {position}{hint}")
    return position


def _logits(model: Any, final: torch.Tensor, target: TokenTarget) -> torch.Tensor:
    """The target's logit from final, normed states [row, d_model], without all the others: float32 [row]."""
    cap = getattr(body(model).config, "final_logit_softcapping", None)

    def one(ident: int) -> torch.Tensor:
        raw = (final @ model.lm_head.weight[ident].clone()).to(torch.float32)
        return raw if cap is None else torch.tanh(raw / cap) * cap

    return one(target.id) if target.against is None else one(target.id) - one(target.against)


def graph_bytes(model: Any, tokens: int) -> int:
    """About what one pass keeps for the way back: attention's scores, and each layer's tensors."""
    config = body(model).config
    size = next(model.parameters()).element_size()
    scores = 4 * config.num_attention_heads * tokens * tokens * max(size, 4)
    rows = tokens * (24 * config.hidden_size + 5 * config.intermediate_size) * max(size, 4)
    return len(body(model).layers) * (scores + rows)
