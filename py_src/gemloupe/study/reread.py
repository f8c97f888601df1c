"""The features of a text that was generated before, with its edits made again: one pass instead of one per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..edits import Edit
from ..engine.protocol import Engine, GenerateRequest, Generation, ReadRequest
from ..site import Site
from ..sparse import SparseActs
from ..trace import Trace


def reread(
    engine: Engine,
    generation: Generation,
    sites: tuple[Site, ...] | None = None,
    *,
    follow: Callable[[Any], Any] = lambda job: job,
) -> Generation:
    """`generation` with a trace over prompt and new tokens at `sites` (None: all open ones).

    The text is read at once with the same edits at the same tokens, which gives what the KV cache gave token by token,
    and the last token's activations too. Recording while generating would cost a pass through every SAE per token.
    `follow(job)` is handed the job as it starts, so that it can be cancelled.
    """
    tokens = (*generation.prompt, *generation.tokens)
    ids = tuple(token.id for token in tokens)
    if generation.edits:
        edits = tuple(_fixed(edit, len(generation.prompt), len(ids)) for edit in generation.edits)
        request = GenerateRequest(ids, max_new_tokens=1, rows=(edits,), sites=sites)
        found = follow(engine.generate(request)).result()[0].trace
        assert found is not None
    else:
        found = follow(engine.read(ReadRequest(ids, sites))).result()
    acts = {site: _first(acts, len(ids)) for site, acts in found.acts.items()}
    return replace(generation, trace=Trace(tokens, acts, found.maxima, about=found.about))


def _fixed(edit: Edit, prompt: int, count: int) -> Edit:
    """The edit at the same tokens when all of them are the prompt."""
    if edit.where == "all" or isinstance(edit.where, tuple):
        return edit
    covered = tuple(range(prompt)) if edit.where == "prompt" else tuple(range(prompt, count))
    return replace(edit, where=covered)


def _first(acts: SparseActs, count: int) -> SparseActs:
    """The first rows."""
    end = int(acts.indptr[count])
    return SparseActs((count, acts.shape[1]), acts.indptr[: count + 1], acts.indices[:end], acts.values[:end])
