"""The model run from a layer on: what the layers before it did is given, and not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch

from ..run.capture import Enough, body, reading
from ..run.prefix import starting_at
from ..site import Site


class Layers:
    """All contexts at one layer, in batches; moves on to the next layer and holds no other one's activations.

    `ids` is int64 [context, token]. Memory: the input of one layer for all contexts, in the model's dtype.
    """

    def __init__(self, model: Any, ids: torch.Tensor, batch: int) -> None:
        self.model, self.ids, self.layer = model, ids, 0
        self.starts = range(0, len(ids), batch)
        self.batch = batch
        self._inputs: list[torch.Tensor | None] = [None for _ in self.starts]

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """(index of the first context, ids on the model's device, input of the layer or None at layer 0) by batch."""
        device = next(self.model.parameters()).device
        for start, hidden in zip(self.starts, self._inputs, strict=True):
            some = self.ids[start : start + self.batch].to(device)
            yield start, some, None if hidden is None else hidden.to(device)

    def read(
        self,
        sites: Iterable[Site],
        reader: Callable[[int, Site, torch.Tensor], None],
        *,
        to: int | None = None,
        done: Callable[[int], None] = lambda contexts: None,
    ) -> None:
        """Runs this layer on every batch: calls `reader(start, site, x [batch, token, width])` for each of `sites`, all
        of this layer, `start` being the batch's first context, and then `done(contexts)`.

        With `to`, the layers before that one are run too, and all contexts then stand before it.
        """
        sites = set(sites)
        last = Site("res", to - 1) if to is not None and to > self.layer else None
        wanted = sites if last is None else sites | {last}
        for index, (start, ids, hidden) in enumerate(self):

            def see(site: Site, x: torch.Tensor, index: int = index, start: int = start) -> None:
                if site in sites:
                    reader(start, site, x)
                if site == last:
                    self._inputs[index] = x.cpu()

            hooks = reading(self.model, wanted, see, stop=True)
            with starting_at(self.model, self.layer, hidden), hooks, suppress(Enough):
                body(self.model)(ids, use_cache=False)
            done(len(ids))
        if to is not None and last is not None:
            self.layer = to
