"""The pass over a prompt, begun where the last one may be trusted: a moved slider changes nothing before its layer.

On a CPU reading the prompt is most of the wait for the first token. What the layers before the first edit made of it is
kept for the last prompt and its number of rows, so that a pass from there on gives bit for bit what a whole one does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import torch

from ..site import Site
from .capture import body
from .decode import HuggingFace
from .steer import Tap

# Tokens in all rows: with Gemma 3 270M's 18 layers this many keep up to 25 MB.
_MOST = 512


@dataclass(frozen=True)
class _Kept:
    key: Any
    """The rows' ids, and which weights read them."""
    inputs: list[torch.Tensor]
    """Of layers 0 to the last that is known, [row, token, d_model]."""
    caches: list[Any]
    """Keys and values of the layers before that one."""


_last: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()


@contextmanager
def starting_at(model: Any, layer: int, hidden: torch.Tensor | None) -> Iterator[None]:
    """While this is open, a pass begins at `layer`, whose input is `hidden` [batch, token, d_model].

    The token ids of the pass must be those `hidden` was made from: masks and positions come from them. With None,
    the pass is an ordinary one, and so are those of other threads.
    """
    skipped = [] if hidden is None else list(body(model).layers[:layer])
    before = [vars(module).get("forward") for module in skipped]
    mine = get_ident()

    def given(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: hidden if get_ident() == mine else forward(*args, **named)

    for module in skipped:
        module.forward = given(module.forward)
    try:
        yield
    finally:
        for module, own in zip(skipped, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


def read_prompt(model: Any, steps: HuggingFace, ids: Sequence[Sequence[int]], taps: Mapping[Site, Tap]) -> torch.Tensor:
    """`steps.feed(ids, taps)` for a whole prompt of a model that nobody has hooked; only for decoding by `Lean`."""
    device = next(model.parameters()).device
    if device.type != "cpu" or sum(map(len, ids)) > _MOST:
        return steps.feed(ids, taps)
    layers = body(model).layers
    # As far as an unsteered row would have come; the last layer is always run.
    first = min((site.layer for site in taps), default=len(layers) - 1)
    key = (tuple(map(tuple, ids)), tuple((weight.data_ptr(), weight._version) for weight in model.parameters()))
    kept = _last.get(model)
    if kept is None or kept.key != key:
        kept = _Kept(key, [], [])
    start = min(first, len(kept.caches))
    seen: list[torch.Tensor] = []
    mine = get_ident()
    with ExitStack() as hooks:
        if first > len(kept.caches):
            for layer in layers[start : first + 1]:
                hook = layer.register_forward_pre_hook(
                    lambda _layer, args: seen.append(args[0]) if get_ident() == mine else None
                )
                hooks.callback(hook.remove)
        hooks.enter_context(starting_at(model, start, kept.inputs[start] if start else None))
        hidden = steps.feed(ids, taps)
    steps.cache.layers[:start] = kept.caches[:start]
    if seen:
        made = steps.cache.layers[start:first]
        caches = [SimpleNamespace(keys=one.keys, values=one.values) for one in made]
        _last[model] = _Kept(key, kept.inputs[:start] + seen, kept.caches[:start] + caches)
    return hidden
