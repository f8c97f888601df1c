"""How evenly the active features of a token matter to what the model predicts (Gemma Scope report, Eqs 12 to 14).

    y = f(x) * (W_dec grad)        p = |y| / sum |y|        r = exp(-sum p ln p) / (number of y that are not 0)

r is 1 where all active features matter alike, and 1 / L0 where one of them does everything. `grad` is the gradient of L
with respect to the tensor x at the site, L the logit of the correct next token less the mean of all logits. Here L is
summed over the tokens of a context before it is differentiated, so that one backward pass serves all tokens and sites:
the gradient at a token counts what it does to its own prediction and to the later ones that attend to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..load.cache import explained
from ..load.sae import Sae
from ..run.capture import body, reading
from ..run.read import logits
from ..site import Site

_ROWS = 64  # positions whose logits exist at the same time, with what autograd keeps of them


def gradients(model: Any, ids: torch.Tensor, kept: torch.Tensor, sites: Iterable[Site]) -> dict[Site, torch.Tensor]:
    """The gradient of L at each of `sites`, float32 [token, width], for one context `ids` [token].

    L is summed over the tokens that are `kept` [token] and followed by another.
    """
    tensors: dict[Site, torch.Tensor] = {}

    def see(site: Site, x: torch.Tensor) -> None:
        if not x.requires_grad:
            x.requires_grad_()
        tensors[site] = x

    predicting = kept[:-1].nonzero()[:, 0]
    with torch.enable_grad(), reading(model, sites, see):
        final = body(model)(ids[None], use_cache=False).last_hidden_state[0, predicting]
        with torch.no_grad():
            start = _at_the_end(model, final, ids[predicting + 1])
        found = torch.autograd.grad(final, list(tensors.values()), start)
    return {site: gradient[0].float() for site, gradient in zip(tensors, found, strict=True)}


def _at_the_end(model: Any, final: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The gradient of L with respect to the final hidden states [token, d_model]."""
    unembedding = model.get_output_embeddings().weight
    if getattr(body(model).config, "final_logit_softcapping", None) is None:  # L is linear: no logit need be computed
        return (unembedding[targets] - unembedding.mean(0)).to(final.dtype)
    parts = []
    for rows, target in zip(final.split(_ROWS), targets.split(_ROWS), strict=True):
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            some = logits(model, leaf)
            centred = some.gather(1, target[:, None])[:, 0] - some.mean(1)
            parts.append(torch.autograd.grad(centred.sum(), leaf)[0])
    return torch.cat(parts)


def uniformity(sae: Sae, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """r of every row of `x` [token, d_in] at which some feature matters, given L's gradient [token, d_in] there."""
    acts = sae.encode_dense(x)
    effect = (acts * (gradient.to(sae.decoder.dtype) @ sae.decoder.T)).abs()
    count = effect.count_nonzero(1)
    effect, count = effect[count > 0], count[count > 0]
    share = effect / effect.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp() / count


class Gradients:
    """Gradients of a few contexts at many sites, in a temporary file: 54 sites of 256 tokens are 42 MB a context."""

    def __init__(
        self,
        model: Any,
        ids: torch.Tensor,
        kept: torch.Tensor,
        sites: Iterable[Site],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._where: dict[tuple[Site, int], tuple[int, tuple[int, ...]]] = {}
        device = next(model.parameters()).device
        sites = list(sites)
        for context, (row, keep) in enumerate(zip(ids, kept, strict=True)):
            found: Mapping[Site, torch.Tensor] = {}
            if keep[:-1].any():
                found = gradients(model, row.to(device), keep.to(device), sites)
            with explained("the gradients of a few contexts", Path(tempfile.gettempdir())):
                for site, gradient in found.items():
                    self._where[site, context] = (self._file.tell(), tuple(gradient.shape))
                    self._file.write(gradient.cpu().numpy().tobytes())
            done()

    def at(self, site: Site, context: int) -> torch.Tensor | None:
        """float32 [token, width]; None for a context that is not among them."""
        if (site, context) not in self._where:
            return None
        offset, shape = self._where[site, context]
        self._file.seek(offset)
        raw = self._file.read(4 * shape[0] * shape[1])
        return torch.from_numpy(np.frombuffer(raw, np.float32).reshape(shape).copy())

    def close(self) -> None:
        self._file.close()
