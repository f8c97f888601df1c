"""One token further: the decoder stack on a single new token per row, from the modules' own weights.

For one token a Hugging Face forward pass spends much of its time between the products: masks, cache objects, a dozen
modules per layer. Here the same arithmetic runs on the same tensors with nothing in between. It is used where the
model is exactly what it was when it was loaded; where anything has been replaced or hooked, `HuggingFace` does the
same through the modules, and every hook fires.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn.functional import rms_norm

from ..site import Site
from .capture import body
from .product import product
from .steer import Tap, check_fired, tapped

_LAYERS = ("Gemma2DecoderLayer", "Gemma3DecoderLayer")
_ATTENTION = ("Gemma2Attention", "Gemma3Attention")
_MLP = ("Gemma2MLP", "Gemma3MLP")
_NORM = ("Gemma2RMSNorm", "Gemma3RMSNorm")
_EMBEDDING = ("Gemma2TextScaledWordEmbedding", "Gemma3TextScaledWordEmbedding")


class HuggingFace:
    """Decodes through the model's own modules and key-value cache."""

    def __init__(self, model: Any, rows: int) -> None:
        from transformers import DynamicCache

        self._model, self._rows = model, rows
        self.cache: Any = DynamicCache(config=body(model).config)
        self.length = 0

    def feed(self, ids: Sequence[Sequence[int]], taps: Mapping[Site, Tap]) -> torch.Tensor:
        """Read `ids` [row, token]; the final, normed hidden states of the last token, [row, d_model]."""
        device = next(self._model.parameters()).device
        tokens = torch.tensor(ids, device=device)
        end = self.length + tokens.shape[1]
        with tapped(self._model, taps) as fired:
            out = body(self._model)(
                tokens,
                past_key_values=self.cache,
                use_cache=True,
                position_ids=torch.arange(self.length, end, device=device)[None],
            )
            check_fired(self._model, taps, fired)
        self.length = end
        return out.last_hidden_state[:, -1]


class Arithmetic:
    """What the layers do to one new token per row, [row, d_model], from the weights themselves.

    With `compiled`, what lies between the products is compiled by torch, to a quarter of the kernels, with the same
    roundings; that takes some seconds, once.
    """

    def __init__(self, model: Any, compiled: bool = False) -> None:
        self.stack = stack = body(model)
        self._eps = stack.config.rms_norm_eps
        self._gains = {norm: 1.0 + norm.weight.float() for norm in _norms(stack)}
        made: Callable[[Any], Any] = _compiled if compiled else _as_it_is
        self._normed, self._turned = made(_normed), made(_turned)
        self._weighted, self._gated = made(_weighted), made(_gated)

    def run(
        self,
        tokens: torch.Tensor,
        caches: Sequence[Cache],
        turns: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        taps: Mapping[Site, Tap],
    ) -> torch.Tensor:
        """Final, normed hidden states [row, d_model] of `tokens` [row]; `turns`: cosine and sine by kind of layer."""
        stack = self.stack
        x = stack.embed_tokens(tokens)
        by_layer: dict[tuple[str, int], Tap] = {(site.kind, site.layer): tap for site, tap in taps.items()}
        for at, (layer, kind) in enumerate(zip(stack.layers, stack.config.layer_types, strict=True)):
            x = self._layer(layer, at, x, caches[at], turns[kind if kind in turns else ""], by_layer)
        return self._norm(stack.norm, x)

    def turns(self, first: int, last: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Rotary cosine and sine at positions `first` to `last` - 1, [position, head_dim], by kind of layer."""
        weight = self.stack.embed_tokens.weight
        positions = torch.arange(first, last, device=weight.device)[None]
        like = weight.new_empty(0)
        rotary = self.stack.rotary_emb
        if hasattr(rotary, "layer_types"):
            found = {name: rotary(like, positions, name) for name in rotary.layer_types}
        else:
            found = {"": rotary(like, positions)}
        return {kind: (cos[0], sin[0]) for kind, (cos, sin) in found.items()}

    def _norm(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        return self._normed(x, self._gains[norm], self._eps)

    def _layer(
        self,
        layer: Any,
        at: int,
        x: torch.Tensor,
        slots: Cache,
        turn: tuple[torch.Tensor, torch.Tensor],
        taps: dict[tuple[str, int], Tap],
    ) -> torch.Tensor:
        attention, mlp = layer.self_attn, layer.mlp
        z = self._attend(attention, slots, self._norm(layer.input_layernorm, x), turn)
        if ("att", at) in taps:
            z = _through(taps["att", at], z)
        x = x + self._norm(layer.post_attention_layernorm, product(z, attention.o_proj.weight))
        read = self._norm(layer.pre_feedforward_layernorm, x)
        if ("transcoder", at) in taps:
            read = _through(taps["transcoder", at], read)
        inner = self._gated(product(read, mlp.gate_proj.weight), product(read, mlp.up_proj.weight), mlp.act_fn)
        out = self._norm(layer.post_feedforward_layernorm, product(inner, mlp.down_proj.weight))
        if ("mlp", at) in taps:
            out = _through(taps["mlp", at], out)
        x = x + out
        return _through(taps["res", at], x) if ("res", at) in taps else x

    def _attend(
        self, attention: Any, slots: Cache, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Concatenated heads [row, heads x head_dim], before the output product."""
        rows, size = len(x), attention.head_dim
        q = product(x, attention.q_proj.weight).reshape(rows, -1, size)
        k = product(x, attention.k_proj.weight).reshape(rows, -1, size)
        v = product(x, attention.v_proj.weight).reshape(rows, -1, size)
        if hasattr(attention, "q_norm"):
            q, k = self._norm(attention.q_norm, q), self._norm(attention.k_norm, k)
        heads = q.shape[1]
        both = self._turned(torch.cat((q, k), 1), *turn)
        keys, values, hidden = slots.put(both[:, heads:], v)  # [row, kv head, token, head_dim]
        grouped = both[:, :heads].reshape(rows, keys.shape[1], -1, size)
        scores = torch.matmul(grouped, keys.transpose(2, 3))
        weights = self._weighted(scores, attention.scaling, attention.attn_logit_softcapping, hidden)
        return torch.matmul(weights, values).reshape(rows, -1)


class Cache(Protocol):
    """Keys and values of one layer."""

    def put(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Add one token, [row, kv head, head_dim]. Keys and values to look at, [row, kv head, token, head_dim], and
        what to add to the scores of each, [token] (-inf where there is no token yet), or None."""


class Lean:
    """Decodes one token per row from the weights themselves, continuing a `HuggingFace`'s cache."""

    def __init__(self, model: Any, prompt: HuggingFace, room: int) -> None:
        self._arithmetic = Arithmetic(model)
        self.length = prompt.length
        config = body(model).config
        self._caches = [
            WindowCache(layer.keys, layer.values, self.length, layer_window(config, at), room)
            for at, layer in enumerate(prompt.cache.layers)
        ]
        prompt.cache = None  # copied; nothing is held twice
        self._turns: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._turned = (0, 0)

    def _turn(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Rotary cosine and sine at the current position, [head_dim], by kind of layer."""
        first, last = self._turned
        if not first <= self.length < last:  # some positions ahead at a time
            first, last = self._turned = self.length, self.length + 64
            self._turns = self._arithmetic.turns(first, last)
        at = self.length - first
        return {kind: (cos[at], sin[at]) for kind, (cos, sin) in self._turns.items()}

    def feed(self, ids: Sequence[Sequence[int]], taps: Mapping[Site, Tap]) -> torch.Tensor:
        """As `HuggingFace.feed`, for one token per row."""
        device = self._arithmetic.stack.embed_tokens.weight.device
        tokens = torch.tensor([row[0] for row in ids], device=device)
        hidden = self._arithmetic.run(tokens, self._caches, self._turn(), taps)
        self.length += 1
        return hidden


class WindowCache:
    """Keys and values of one layer, [row, kv head, token, head_dim], written in place.

    With a window, a ring of that many tokens: the order within does not matter, positions are in the keys.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int, window: int | None, room: int) -> None:
        self._window, self.length = window, length
        kept = keys.shape[2] if window is None else min(keys.shape[2], window)
        size = kept + room if window is None else min(window, length + room)
        shape = (*keys.shape[:2], size, keys.shape[3])
        self._keys, self._values = keys.new_zeros(shape), values.new_zeros(shape)
        if window is None:
            self._keys[:, :, :kept], self._values[:, :, :kept] = keys, values
        else:
            places = torch.arange(length - kept, length, device=keys.device) % size
            self._keys[:, :, places], self._values[:, :, places] = keys[:, :, -kept:], values[:, :, -kept:]

    def put(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """As `Cache.put`: all that the token may look at, itself included."""
        size = self._keys.shape[2]
        if self._window is None and self.length == size:
            more = self._keys.new_empty((*self._keys.shape[:2], size, self._keys.shape[3]))
            self._keys, self._values = torch.cat([self._keys, more], 2), torch.cat([self._values, more], 2)
            size *= 2
        place = self.length % size
        self._keys[:, :, place], self._values[:, :, place] = key, value
        self.length += 1
        seen = min(self.length, size)
        return self._keys[:, :, :seen], self._values[:, :, :seen], None


def layer_window(config: Any, layer: int) -> int | None:
    """How many tokens a layer looks back on, itself included; None for all."""
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


def _through(tap: Tap, x: torch.Tensor) -> torch.Tensor:
    new = tap(x[:, None])
    return x if new is None else new[:, 0]


def _normed(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm(x.float(), gain.shape, gain, eps).to(x.dtype)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat((-two, one), -1) * sin


def _weighted(scores: torch.Tensor, scaling: float, cap: float | None, hidden: torch.Tensor | None) -> torch.Tensor:
    """What attention makes of raw scores [..., token]."""
    weights = scores * scaling
    if cap is not None:
        weights = torch.tanh(weights / cap) * cap
    if hidden is not None:
        weights = weights + hidden
    return torch.softmax(weights, -1, dtype=torch.float32).to(scores.dtype)


def _gated(gate: torch.Tensor, up: torch.Tensor, activation: Any) -> torch.Tensor:
    return activation(gate) * up


def _as_it_is(part: Any) -> Any:
    return part


@cache
def _compiled(part: Any) -> Any:
    return torch.compile(part, dynamic=False, options={"emulate_precision_casts": True})


def _norms(stack: Any) -> list[Any]:
    return [module for module in stack.modules() if type(module).__name__ in _NORM]


def untouched(model: Any) -> bool:
    """Whether the decoder stack is what transformers built: no module replaced, none hooked."""
    stack = body(model)
    if type(stack.embed_tokens).__name__ not in _EMBEDDING:  # older transformers scale embeddings elsewhere
        return False
    for module in stack.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    for layer in stack.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm, stack.norm]
        norms += [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
        if (
            type(layer).__name__ not in _LAYERS
            or type(attention).__name__ not in _ATTENTION
            or type(mlp).__name__ not in _MLP
            or any(type(norm).__name__ not in _NORM for norm in norms)
            or any(type(one) is not torch.nn.Linear or one.bias is not None for one in linears)
            or getattr(stack.config, "use_bidirectional_attention", False)
        ):
            return False
    return True
