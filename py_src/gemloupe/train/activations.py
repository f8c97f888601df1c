"""One pass over the model for many sites: activations on disk, resumable after a kill.

Layout of the folder: `plan.json` (what is being collected, from which tokens) and per site `<site>.bf16`, raw
bfloat16 rows [token, width] in the order of the tokens. Special tokens are never written: SAEs do not see them.
A kill leaves at most one batch half written; the next run cuts every file back to the last whole batch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..load.cache import write_atomically
from ..run.capture import Enough, body, reading, width_of
from ..site import Site

Progress = Callable[[dict[str, float]], None]


def _plan(model: Any, tokens: np.ndarray, sites: Sequence[Site], special: Sequence[int], batch: int) -> dict[str, Any]:
    return {
        "tokens": hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest(),
        "shape": list(tokens.shape),
        "model": {"layers": len(body(model).layers), "width": body(model).config.hidden_size},
        "dtype": str(next(model.parameters()).dtype),
        "special": sorted(special),
        "batch": batch,
        "sites": {str(site): width_of(model, site) for site in sites},
    }


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    file = folder / "plan.json"
    if not file.exists():
        write_atomically(file, json.dumps(plan, indent=1).encode())
        return
    before = json.loads(file.read_text())
    for what, ours in plan.items():
        if before.get(what) != ours:
            raise refuse("training-other-plan", file=file, what=what, theirs=before.get(what), ours=ours)


def collect(
    model: Any,
    tokens: np.ndarray,
    sites: Iterable[Site],
    folder: str | Path,
    *,
    special: Sequence[int],
    batch: int = 8,
    progress: Progress | None = None,
) -> Path:
    """Run `tokens` [context, position] through `model` once and write the activations of `sites` into `folder`.

    Contexts go through in batches of `batch`; layers after the last site are not run. Call again with the same
    arguments to go on after a kill; other arguments are refused.
    """
    sites, folder = sorted(set(sites)), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(model, tokens, sites, special, batch)
    _check_plan(folder, plan)
    keep = ~np.isin(tokens, special)
    ends = np.cumsum([int(keep[i : i + batch].sum()) for i in range(0, len(tokens), batch)])
    with ExitStack() as opened:
        files = {site: opened.enter_context((folder / f"{site}.bf16").open("ab")) for site in sites}
        rows = min(files[site].tell() // (2 * plan["sites"][str(site)]) for site in sites)
        done = int(np.searchsorted(ends, rows, side="right"))
        for site, file in files.items():
            file.truncate(2 * plan["sites"][str(site)] * int(ends[done - 1] if done else 0))
        started, before = time.monotonic(), done
        for index in range(done, len(ends)):
            ids = torch.from_numpy(tokens[index * batch : (index + 1) * batch].astype(np.int64))
            kept = torch.from_numpy(keep[index * batch : (index + 1) * batch])

            def write(site: Site, x: torch.Tensor, kept: torch.Tensor = kept) -> None:
                # rows of bfloat16 as raw 16-bit integers: numpy has no bfloat16
                files[site].write(x[kept.to(x.device)].to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())

            with torch.inference_mode(), reading(model, sites, write, stop=True), suppress(Enough):
                body(model)(ids.to(next(model.parameters()).device), use_cache=False)
            for file in files.values():
                file.flush()
            if progress is not None:
                seconds = time.monotonic() - started
                speed = (index + 1 - before) * batch * tokens.shape[1] / seconds
                left = (len(ends) - index - 1) * batch * tokens.shape[1] / speed
                progress(
                    {"done": int(ends[index]), "of": int(ends[-1]), "tokens_per_second": speed, "seconds_left": left}
                )
    return folder


def hold(
    model: Any,
    tokens: np.ndarray,
    sites: Iterable[Site],
    *,
    special: Sequence[int],
    batch: int = 8,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> dict[Site, torch.Tensor]:
    """As `collect`, but into memory: bfloat16 [token, width] for each site, on `device` (by default the model's).

    All tokens take two bytes for each of the sites' dimensions, reserved at once.
    """
    sites, where = sorted(set(sites)), next(model.parameters()).device
    keep = ~np.isin(tokens, special)
    count, done, started = int(keep.sum()), 0, time.monotonic()
    held = {
        site: torch.empty(count, width_of(model, site), dtype=torch.bfloat16, device=device or where) for site in sites
    }
    for first in range(0, len(tokens), batch):
        ids = torch.from_numpy(tokens[first : first + batch].astype(np.int64)).to(where)
        kept = torch.from_numpy(keep[first : first + batch]).to(where)
        here = int(keep[first : first + batch].sum())

        def write(site: Site, x: torch.Tensor, kept: torch.Tensor = kept, done: int = done, here: int = here) -> None:
            held[site][done : done + here] = x[kept].to(torch.bfloat16)

        with torch.inference_mode(), reading(model, sites, write, stop=True), suppress(Enough):
            body(model)(ids, use_cache=False)
        done += here
        if progress is not None:
            speed = done / (time.monotonic() - started)
            progress({"done": done, "of": count, "tokens_per_second": speed, "seconds_left": (count - done) / speed})
    return held


def load(folder: str | Path, site: Site) -> torch.Tensor:
    """The collected activations of `site`, bfloat16 [token, width], mapped from disk rather than read."""
    folder = Path(folder)
    width = json.loads((folder / "plan.json").read_text())["sites"][str(site)]
    raw = np.memmap(folder / f"{site}.bf16", dtype=np.int16, mode="c")
    return torch.from_numpy(raw[: len(raw) // width * width]).view(torch.bfloat16).view(-1, width)
