"""Hooks on the Hugging Face modules: the tensor each site names, and nothing else.

The modules are those Gemma Scope was trained on (report, section 3.1). Two names are easy to get wrong:
`mlp` is the output of the norm *after* the MLP, not of the MLP; `att` is the *input* of W_O. And `transcoder` is two
tensors: Gemma Scope 2 reads what the norm before the MLP puts out, Gemma Scope the same without the norm's gain,
which was folded into the MLP when it was trained. Which of the two, the transcoder itself says (`before_gain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch

from ..errors import refuse
from ..site import Site

if TYPE_CHECKING:
    from ..load.model import LoadedModel
    from ..load.scope import ModelFacts

Reader = Callable[[Site, torch.Tensor], None]
Replacement = Callable[[torch.Tensor], torch.Tensor]


class Enough(Exception):
    """Raised by a hook when every site has been read, so that the rest of the forward pass is not run."""


def body(model: Any) -> Any:
    """The decoder stack of a causal language model: embeddings, layers and final norm, without the unembedding."""
    return getattr(model, "language_model", None) or model.model


def module_of(model: Any, site: Site) -> tuple[torch.nn.Module, str, str]:
    """(module, 'input' or 'output', dotted name) of the tensor at `site`."""
    layers = body(model).layers
    if site.layer >= len(layers):
        raise refuse("site-not-in-model", site=site, last=len(layers) - 1)
    layer, name = layers[site.layer], f"layers.{site.layer}"
    match site.kind:
        case "res":
            return layer, "output", name
        case "mlp":
            return layer.post_feedforward_layernorm, "output", f"{name}.post_feedforward_layernorm"
        case "att":
            return layer.self_attn.o_proj, "input", f"{name}.self_attn.o_proj"
        case _:
            return layer.pre_feedforward_layernorm, "output", f"{name}.pre_feedforward_layernorm"


def width_of(model: Any, site: Site) -> int:
    """Width of the tensor at `site`: d_model, or heads x head_dim for att (they differ)."""
    module, side, _ = module_of(model, site)
    return int(module.in_features) if side == "input" else body(model).config.hidden_size  # type: ignore[arg-type]


def model_facts(loaded: LoadedModel) -> ModelFacts:
    """What a scope checks before its SAEs are used with this model."""
    from ..load.scope import ModelFacts

    return ModelFacts(
        id=loaded.id,
        architecture=loaded.architecture,
        n_layers=len(body(loaded.model).layers),
        d_model=body(loaded.model).config.hidden_size,
        digest=loaded.digest,
        z_width=width_of(loaded.model, Site("att", 0)),
    )


def before_gain(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """What Gemma's RMSNorm `norm` makes of its input `x` [..., width] before it multiplies by its gain, in float32."""
    x = x.to(torch.float32)
    eps = getattr(norm, "original_component", norm).eps  # TransformerLens' bridge wraps the norm
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@contextmanager
def reading(
    model: Any,
    sites: Iterable[Site],
    reader: Reader,
    *,
    stop: bool = False,
    without_gain: Callable[[Site], bool] = lambda site: False,
):
    """While this is open, each forward pass calls `reader(site, tensor[batch, token, width])` for every site.

    `without_gain(site)`, asked when a transcoder's hook fires: does it read the norm's output without the gain?
    Yields a set that is emptied as hooks fire. On leaving without an error, a site whose hook never fired is
    refused ('hook-silent'). With `stop`, the pass raises `Enough` after the last site, skipping later layers. Passes of
    other threads (a cell that uses the bridge) are let alone.
    """
    sites = sorted(set(sites))
    waiting = set(sites)
    mine = get_ident()

    def see(site: Site, tensor: torch.Tensor) -> None:
        if get_ident() != mine:
            return
        waiting.discard(site)
        reader(site, tensor)
        if stop and not waiting:
            raise Enough

    with ExitStack() as hooks:
        names = {}
        for site in sites:
            module, side, names[site] = module_of(model, site)
            if side == "input":
                hook = module.register_forward_pre_hook(lambda _m, args, site=site: see(site, args[0]))
            elif site.kind == "transcoder":
                hook = module.register_forward_hook(
                    lambda norm, args, out, site=site: (
                        see(site, before_gain(norm, args[0]) if without_gain(site) else out)
                        if get_ident() == mine
                        else None
                    )
                )
            else:
                # transformers 5 layers return a tensor, 4.x a tuple
                hook = module.register_forward_hook(
                    lambda _m, _a, out, site=site: see(site, out[0] if isinstance(out, tuple) else out)
                )
            hooks.callback(hook.remove)
        yield waiting
    for site in sorted(waiting):
        raise refuse("hook-silent", site=site, module=names[site])


@contextmanager
def replacing(model: Any, site: Site, replacement: Replacement):
    """While this is open, the tensor at `site` [batch, token, width] is `replacement` of itself, in this thread."""
    module, side, _ = module_of(model, site)
    mine = get_ident()

    def before(_module: Any, args: tuple) -> tuple | None:
        return (replacement(args[0]), *args[1:]) if get_ident() == mine else None

    def after(_module: Any, _args: Any, out: Any) -> Any:
        if get_ident() != mine:
            return None
        return (replacement(out[0]), *out[1:]) if isinstance(out, tuple) else replacement(out)

    hook = module.register_forward_pre_hook(before) if side == "input" else module.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()
