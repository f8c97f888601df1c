"""Decoding that never waits for the host: every step in the same buffers, replayed as a CUDA graph, one step ahead.

A GPU runs the thousand small kernels of a decoding step faster than Python can start them. Here positions, masks,
edits, the choice of the token and what is recorded are all computed from tensors that stay in place, so that one
capture of the step serves every token; while the host handles a token, the device already makes the next. The
arithmetic is `decode.Arithmetic`'s. On a device without graphs the same steps run one by one, which the tests do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..edits import Edit
from ..site import Site
from .capture import body, width_of
from .choose import Full, Sampling
from .decode import Arithmetic, HuggingFace, WindowCache, layer_window
from .steer import FixedSteering, Now, Steering, Tap

if TYPE_CHECKING:
    from .generate import Recorder

_log = logging.getLogger(__name__)

# Set to 1 in the environment to have torch compile what lies between the products, which needs Triton and a C compiler.
COMPILE = "GEMLOUPE_COMPILE"
# Steps whose tensors are kept for the recorder before it encodes them together.
_BLOCK = 64


@dataclass(frozen=True)
class Step:
    """What one step gave every row. `blamed`: per row with numbers that are not finite, the edit that added most."""

    ids: list[int]
    shares: list[float]
    finite: list[bool]
    blamed: dict[int, Edit | None]


class _Place:
    """Where the next token goes in all caches of one size, and what their queries may not see yet."""

    def __init__(self, size: int, like: torch.Tensor) -> None:
        self._size = size
        self._slots = torch.arange(size, device=like.device)
        self._zero, self._never = like.new_zeros(()), like.new_full((), float("-inf"))
        self.index, self.hidden = self._slots[:1], like.new_zeros(size)

    def move(self, position: torch.Tensor) -> None:
        self.index = position % self._size
        # Once a ring has come round, its slots are all lower than the position: everything is seen.
        self.hidden = torch.where(self._slots <= position, self._zero, self._never)


class _FixedCache(WindowCache):
    """All slots all the time: those that hold no token yet are hidden by what is added to their scores."""

    def at(self, places: dict[int, _Place]) -> None:
        size = self._keys.shape[2]
        if size not in places:
            places[size] = _Place(size, self._keys)
        self._place = places[size]

    def put(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        self._keys.index_copy_(2, self._place.index, key[:, :, None])
        self._values.index_copy_(2, self._place.index, value[:, :, None])
        return self._keys, self._values, self._place.hidden


class Ahead:
    """Continues a prompt of which each row's first new token, `first`, is known, for up to `room` steps.

    Call `launch` for each step, one ahead of `take`, which waits for the oldest step that has not been taken; `finish`
    hands edits and recorder what the taken steps did. `random` is drawn from as `generate` does.
    """

    def __init__(
        self,
        model: Any,
        prompt: HuggingFace,
        first: Sequence[int],
        room: int,
        steering: Steering,
        recorder: Recorder | None,
        sampling: Sampling,
        random: torch.Generator,
    ) -> None:
        stack = body(model)
        config, weight = stack.config, model.lm_head.weight
        device, rows = weight.device, len(first)
        self._model, self._start, self._room = model, prompt.length, room
        self._arithmetic = Arithmetic(model, compiled=device.type == "cuda" and os.environ.get(COMPILE) == "1")
        self._head = Full(model)
        self._sampling, self._random, self._recorder = sampling, random, recorder
        self._places: dict[int, _Place] = {}
        self._caches = [
            _FixedCache(layer.keys, layer.values, self._start, layer_window(config, at), room)
            for at, layer in enumerate(prompt.cache.layers)
        ]
        for cache in self._caches:
            cache.at(self._places)
        self._turns = self._arithmetic.turns(self._start, self._start + room)
        self._token = torch.tensor(list(first), device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._noise = torch.ones(weight.shape[0], device=device)
        self._out = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._kept = {
            site: torch.zeros(rows, min(_BLOCK, room), width_of(model, site), dtype=weight.dtype, device=device)
            for site in (recorder.sites if recorder is not None else ())
        }
        self._graphs = device.type == "cuda"
        self._graph: Any = None
        # Two of each, since one step's answer may still be on its way while the next one's sets out.
        self._answers = [torch.zeros(3, rows, dtype=torch.int64, pin_memory=self._graphs) for _ in range(2)]
        self._arrived = [torch.cuda.Event() for _ in range(2)] if self._graphs else []
        self._fed = [list(first)]
        self.launched = self._taken = self._recorded = 0
        self._ready: list[Step] = []
        self._put(steering)
        if self._graphs:
            self._capture()
        prompt.cache = None  # copied; nothing is held twice

    # ---- the step

    def _put(self, steering: Steering) -> None:
        self._steering = steering
        vocabulary = self._model.lm_head.weight.shape[0]
        self._fixed = FixedSteering(steering, self._start, self._room, vocabulary, self.launched)
        self._taps: dict[Site, Tap] = dict(self._fixed.taps)
        for site in self._kept:
            self._taps[site] = self._recording(site, self._taps.get(site))
        self._graph = None

    def _recording(self, site: Site, write: Tap | None) -> Tap:
        def tap(x: torch.Tensor) -> torch.Tensor | None:
            new = None if write is None else write(x)
            self._kept[site].index_copy_(1, self._at % self._kept[site].shape[1], x if new is None else new)
            return new

        return tap

    def _step(self) -> None:
        position = self._at + self._start
        for place in self._places.values():
            place.move(position)
        self._fixed.begin(self._token, self._at)
        turns = {
            kind: (cos.index_select(0, self._at), sin.index_select(0, self._at))
            for kind, (cos, sin) in self._turns.items()
        }
        hidden = self._arithmetic.run(self._token, self._caches, turns, self._taps)
        finite = torch.isfinite(hidden).all(1)
        noise = self._noise if self._sampling.temperature > 0 else None
        chosen, shares = self._head.on_device(hidden.nan_to_num(0.0, 0.0, 0.0), noise, self._sampling)
        finite &= torch.isfinite(shares)
        self._out.copy_(torch.stack((chosen, shares.double().view(torch.int64), finite.long())))
        self._token.copy_(chosen)
        self._at.add_(1)

    def _capture(self) -> None:
        """Run the step once, so that everything it needs is loaded, take that back, and capture it."""
        token, at = self._token.clone(), self._at.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self._step()
        torch.cuda.current_stream().wait_stream(beside)
        self._token.copy_(token)
        self._at.copy_(at)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device, a pager that loads an SAE for one.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step()
        self._graph = graph

    # ---- from outside

    def steer(self, steering: Steering) -> None:
        """Use these edits from the next launch on."""
        if steering is self._steering:
            return
        while self._taken < self.launched:
            self._ready.append(self._take())
        self._fixed.collect(self._taken)
        self._put(steering)
        if self._graphs:
            try:
                self._capture()
            except Exception as error:
                say_why_not(error)
                self._graphs = False

    def launch(self) -> None:
        """Set the next step going."""
        if self._recorder is not None and self.launched - self._recorded == _BLOCK:
            self._record(self.launched)
        if self._sampling.temperature > 0:
            self._noise.exponential_(1, generator=self._random)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()
        slot = self.launched % 2
        self._answers[slot].copy_(self._out, non_blocking=True)
        if self._arrived:
            self._arrived[slot].record()
        self.launched += 1

    def take(self) -> Step:
        """What the oldest step not yet taken gave."""
        return self._ready.pop(0) if self._ready else self._take()

    def _take(self) -> Step:
        slot = self._taken % 2
        if self._arrived:
            self._arrived[slot].synchronize()
        ids, shares, finite = self._answers[slot].clone()
        self._taken += 1
        self._fed.append(ids.tolist())
        good = finite.bool().tolist()
        blamed = {}
        if not all(good):
            self._fixed.collect(self._taken)
            blamed = {row: self._steering.strongest(row) for row, fine in enumerate(good) if not fine}
        return Step(ids.tolist(), shares.view(torch.float64).tolist(), good, blamed)

    def finish(self) -> None:
        """Hand over what the steps that were taken did."""
        self._fixed.collect(self._taken)
        if self._recorder is not None and self._recorded < self._taken:
            self._record(self._taken)
        self._graph = None

    def _record(self, end: int) -> None:
        assert self._recorder is not None
        fed = self._fed[self._recorded : end]
        self._recorder.begin(Now(self._start + self._recorded, [list(row) for row in zip(*fed, strict=True)]))
        for site, kept in self._kept.items():
            self._recorder.take(site, kept[:, : len(fed)])
        self._recorded = end


_said: set[str] = set()


def say_why_not(error: Exception) -> None:
    """Log, once for each reason, that decoding goes on without a CUDA graph."""
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if why not in _said:
        _said.add(why)
        _log.warning("The decoding step could not be captured as a CUDA graph and runs more slowly without: %s", why)
