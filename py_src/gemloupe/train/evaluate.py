"""How good an SAE is, measured in the model it reads: reconstruction, cost in loss, and statistics of every feature.

Two kinds of token are never replaced and never counted: special tokens, which no SAE here was trained on, and outliers
("sinks"), tokens far longer than the others whose activations say little about the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..load.sae import FeatureStats, Sae
from ..run.capture import body, module_of, reading
from ..site import Site

Replacement = Callable[[torch.Tensor], torch.Tensor]

_UNUSED = re.compile(r"<unused[0-9]+>")
_LISTED = 10


@dataclass(frozen=True)
class Evaluation:
    """Figures of one SAE on held-out text.

    `fvu` is the share of variance (around the mean of these tokens) that the reconstruction misses; `fvu_other_dims`
    leaves out the massive dimensions, those whose deviation is above four medians. `delta_loss` is the rise in
    next-token loss (nats) when the reconstruction stands in for the activation: mean and median over contexts.
    `loss_recovered` is 1 at no rise and 0 where the mean activation does as well (Gemma's residual stream must not be
    set to zero: that costs more than knowing nothing, and would flatter every SAE).
    """

    tokens: int
    contexts: int
    l0: float
    fvu: float
    fvu_other_dims: float
    outliers: float
    loss: float
    delta_loss_mean: float
    delta_loss_median: float
    mean_delta_loss: float
    loss_recovered: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@contextmanager
def replacing(model: Any, site: Site, replacement: Replacement):
    """While this is open, the tensor at `site` [batch, token, width] is `replacement` of itself."""
    module, side, _ = module_of(model, site)

    def before(_module: Any, args: tuple) -> tuple:
        return (replacement(args[0]), *args[1:])

    def after(_module: Any, _args: Any, out: Any) -> Any:
        return (replacement(out[0]), *out[1:]) if isinstance(out, tuple) else replacement(out)

    hook = module.register_forward_pre_hook(before) if side == "input" else module.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


def evaluate(
    model: Any,
    tokens: np.ndarray,
    saes: Iterable[Sae],
    *,
    special: Sequence[int],
    outlier: float = 3.0,
    loss_contexts: int | None = None,
) -> dict[Site, Evaluation]:
    """Figures for each SAE on held-out `tokens` [context, position] of a causal language model.

    The loss is measured on the first `loss_contexts` contexts (all by default): two passes per SAE and context.
    Outliers are tokens whose norm at the site is above `outlier` medians.
    """
    by_site = {sae.site: sae for sae in saes}
    count = len(tokens) if loss_contexts is None else min(loss_contexts, len(tokens))
    kept = torch.from_numpy(~np.isin(tokens, list(special)))
    ids = torch.from_numpy(tokens.astype(np.int64))
    found: dict[Site, list[torch.Tensor]] = {site: [] for site in by_site}
    base = torch.zeros(count, dtype=torch.float64)
    with torch.inference_mode():
        for i in range(len(ids)):
            with reading(model, by_site, lambda site, x: found[site].append(x[0].float())):
                if i < count:
                    base[i] = _loss(model, ids[i], kept[i])
                else:
                    body(model)(ids[i : i + 1], use_cache=False)
        done = {}
        for site, sae in by_site.items():
            x = torch.stack(found[site])
            norms = x.norm(dim=2)
            cut = float(outlier * norms[kept].median())
            inside = kept & (norms <= cut)
            quality = reconstruction(sae, x[inside])
            average = x[inside].mean(0)
            stand_ins: dict[str, Replacement] = {
                "sae": lambda rows, sae=sae: sae.decode(sae.encode_dense(rows)),  # type: ignore[misc]
                "mean": lambda rows, average=average: average.expand_as(rows),  # type: ignore[misc]
            }
            rises = {}
            for name, stand_in in stand_ins.items():
                rise = torch.zeros(count, dtype=torch.float64)
                for i in range(count):
                    with replacing(model, site, _splice(stand_in, inside[i])):
                        rise[i] = _loss(model, ids[i], kept[i]) - base[i]
                rises[name] = rise
            ceiling, mean = float(rises["mean"].mean()), float(rises["sae"].mean())
            done[site] = Evaluation(
                tokens=int(inside.sum()),
                contexts=count,
                outliers=float(1 - inside.sum() / kept.sum()),
                loss=float(base.mean()),
                delta_loss_mean=mean,
                delta_loss_median=float(rises["sae"].quantile(0.5)),
                mean_delta_loss=ceiling,
                loss_recovered=1 - mean / ceiling,
                **quality,
            )
    return done


def _loss(model: Any, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of one context, over predictions made from tokens that are `kept`."""
    logits = model(ids[None], use_cache=False).logits[0, :-1]
    return cross_entropy(logits[kept[:-1]].float(), ids[1:][kept[:-1]])


def _splice(stand_in: Replacement, inside: torch.Tensor) -> Replacement:
    """Replaces the tokens `inside` [token] of one context by `stand_in` of their activations."""

    def replacement(x: torch.Tensor) -> torch.Tensor:
        out = x.clone()
        out[0, inside] = stand_in(x[0, inside]).to(x.dtype)
        return out

    return replacement


def reconstruction(sae: Sae, rows: torch.Tensor) -> dict[str, float]:
    """`l0`, `fvu` and `fvu_other_dims` of an SAE on raw activations [token, d_in]."""
    rows = rows.float()
    mean, spread = rows.mean(0), rows.std(0)
    ordinary = spread <= 4 * spread.median()
    error, active = torch.zeros_like(mean), 0
    for x in rows.split(4096):
        acts = sae.encode_dense(x)
        active += int(acts.count_nonzero())
        error += (sae.decode(acts) - x).pow(2).sum(0)
    variance = (rows - mean).pow(2).sum(0)
    return {
        "l0": active / len(rows),
        "fvu": float(error.sum() / variance.sum()),
        "fvu_other_dims": float(error[ordinary].sum() / variance[ordinary].sum()),
    }


def feature_stats(sae: Sae, rows: torch.Tensor, *, cut: float = float("inf")) -> FeatureStats:
    """Maximum, density and mean activation of every feature over raw activations [token, d_in].

    Tokens with a norm above `cut` are left out: one outlier would set the maxima of the features it happens to excite.
    """
    maximum = torch.zeros(sae.width)
    total = torch.zeros(sae.width, dtype=torch.float64)
    fired = torch.zeros(sae.width, dtype=torch.float64)
    seen = 0
    with torch.inference_mode():
        for chunk in rows.split(8192):
            x = chunk.float()
            acts = sae.encode_dense(x[x.norm(dim=1) <= cut])
            seen += len(acts)
            maximum = torch.maximum(maximum, acts.amax(0))
            total += acts.sum(0)
            fired += (acts > 0).sum(0, dtype=torch.int32)
    never = fired == 0
    unknown = torch.tensor(torch.nan)
    maximum, mean = torch.where(never, unknown, maximum), torch.where(never, unknown.double(), total / fired)
    return FeatureStats(
        maximum=maximum.numpy(),
        density=(fired / max(seen, 1)).float().numpy(),
        mean_active=mean.float().numpy(),
    )


def listable_tokens(tokenizer: Any) -> torch.Tensor:
    """bool [vocabulary]: the ids worth naming in a list, so neither special nor reserved (`<unused7>`)."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    mask = torch.ones(max(vocabulary.values()) + 1, dtype=torch.bool)
    for text, index in vocabulary.items():
        if _UNUSED.fullmatch(text):
            mask[index] = False
    mask[list(tokenizer.all_special_ids)] = False
    mask[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = False
    return mask


def promoted_tokens(model: Any, sae: Sae, listable: torch.Tensor) -> dict[str, np.ndarray]:
    """The ten tokens whose logit each feature raises most directly, and the ten it lowers most, with the change.

    The decoder row goes through the final norm's gain and the unembedding (`att` rows through W_O and the
    post-attention norm's gain first), without the norms' division, and relative to the vocabulary's mean.
    """
    stack = body(model)
    rows = sae.decoder.float()
    with torch.inference_mode():
        if sae.site.kind == "att":
            layer = stack.layers[sae.site.layer]
            rows = rows @ layer.self_attn.o_proj.weight.float().T * (1 + layer.post_attention_layernorm.weight.float())
        rows = rows * (1 + stack.norm.weight.float())
        unembedding = model.get_output_embeddings().weight.float()[: len(listable)]
        lists: dict[str, list[torch.Tensor]] = {key: [] for key in ("up", "up_id", "down", "down_id")}
        for some in rows.split(64):
            logits = some @ unembedding.T
            logits -= logits[:, listable].mean(1, keepdim=True)
            for name, sign in (("up", 1), ("down", -1)):
                signed = (logits * sign).masked_fill_(~listable, -torch.inf)
                values, indices = signed.topk(_LISTED, dim=1)
                lists[name].append(values * sign)
                lists[f"{name}_id"].append(indices)
    joined = {name: torch.cat(parts) for name, parts in lists.items()}
    return {
        "promotes": joined["up_id"].to(torch.int32).numpy(),
        "promotes_logit": joined["up"].half().numpy(),
        "suppresses": joined["down_id"].to(torch.int32).numpy(),
        "suppresses_logit": joined["down"].half().numpy(),
    }
