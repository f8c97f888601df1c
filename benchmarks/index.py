"""What indexing costs: all features of all built-in sites, against the bare forward pass on the same tokens.

    OMP_NUM_THREADS=1 python benchmarks/index.py [--tokens 16384] [--parts speed,dense,dashboard,memory,open]
                                                 [--dashboard PYTHON] [--index FOLDER]

Prints one table for each part. Times are CPU seconds of one thread, which other programs disturb least; give
OMP_NUM_THREADS=1. `speed`: on the text of the index that ships, or on TEXT (a folder of token ids from write_text.py).
`dense`: a straightforward version: some features of one site at a time, their dense activations kept, then feature by
feature its figures and examples. `dashboard`: SAEDashboard itself, with PYTHON, which has it (`dashboard.py` says how).
`memory`: a tiny random model, to a million tokens. `open`: opening an index (FOLDER, or the one that ships), and
features of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gemloupe as gl
import numpy as np
import psutil
import torch
from gemloupe.run.capture import body, reading
from gemloupe.run.read import logits
from gemloupe.run.together import read_together
from gemloupe.site import Site
from gemloupe.study.index import Index, scale
from gemloupe.study.index.build import Report, build
from gemloupe.study.index.tally import Tally, place_of

LENGTH, TOGETHER = 256, 1024
SHIPPED = Path(gl.__file__).parent / "scopes" / "gemma-3-270m" / "index"


def passages(folder: Path | None, tokens: int) -> list[list[int]]:
    rows = -(-tokens // LENGTH)
    files = sorted(folder.glob("*.npy")) if folder is not None else []
    if files:
        return np.concatenate([np.load(file) for file in files[: 1 + rows // 128]])[:rows].tolist()
    index = Index.open(SHIPPED)
    return [index.passage(number).tolist() for number in range(min(rows, index.about.passages))]


class Clock:
    """CPU seconds by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, name: str, call: Any) -> Any:
        began = time.process_time()
        found = call()
        self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - began
        return found


@torch.inference_mode()
def speed(loupe: gl.Loupe, rows: list[list[int]]) -> float:
    """Pass by pass in turn, so that all are disturbed alike. Returns tokens a second of indexing."""
    loaded, engine = loupe.engine.loaded, loupe.engine
    tallies = {site: Tally(str(site), width, 0) for site, width in loupe.about.widths.items()}
    clock, late = Clock(), []
    many = TOGETHER // LENGTH
    for start in range(-many, len(rows), many):  # the first pass is not counted: SAEs are loaded in it
        here = rows[max(start, 0) : max(start, 0) + many]
        ids = torch.tensor(here)
        hidden = clock("forward, without logits", lambda ids=ids: body(loaded.model)(ids, use_cache=False))[0]
        clock("logits", lambda hidden=hidden: [logits(loaded.model, one) for one in hidden])
        read = lambda here=here: read_together(loaded.model, here, loupe.sites, engine.sae, special=loaded.special)  # noqa: E731
        acts = clock("forward and features", read)
        where = place_of(
            np.repeat(np.arange(start, start + len(here)) + many, LENGTH), np.tile(np.arange(LENGTH), len(here))
        )
        number, flat = scale.of_token(where, 0), np.concatenate(here).astype(np.uint32)
        before = clock.spent.get("tallies", 0.0)
        clock("tallies", lambda a=acts, n=number, f=flat, w=where: [t.add(a[s], w, n, f) for s, t in tallies.items()])
        late.append(clock.spent["tallies"] - before)
        if start < 0:
            clock.spent.clear()
    tokens = len(rows) * LENGTH
    bare = clock.spent["forward, without logits"]
    whole = clock.spent["forward and features"] + clock.spent["tallies"]
    last = statistics.mean(late[-max(1, len(late) // 4) :]) / TOGETHER
    steady = clock.spent["forward and features"] + last * tokens
    print(f"\n{tokens} tokens, {len(tallies)} sites, {sum(loupe.about.widths.values()):,} features, CPU seconds")
    print(f"{'':<44}{'tokens/s':>10}{'of bare forward':>17}{'of one with logits':>20}")
    both = bare + clock.spent["logits"]
    for name, seconds in [
        ("forward, without logits", bare),
        ("forward, with all logits", both),
        ("forward and features of all sites", clock.spent["forward and features"]),
        ("index", whole),
        ("index, tallies as in the last quarter", steady),
    ]:
        print(f"{name:<44}{tokens / seconds:>10.0f}{bare / seconds:>17.2f}{both / seconds:>20.2f}")
    return tokens / whole


@torch.inference_mode()
def dense(loupe: gl.Loupe, rows: list[list[int]], site: Site, features: int, ours: float) -> None:
    loaded, sae = loupe.engine.loaded, loupe.engine.sae(site)
    began = time.process_time()
    kept, encoder = [], sae.encoder[:features]

    def take(_: Site, x: torch.Tensor) -> None:
        pre = torch.addmm(sae.b_enc[:features], x.flatten(0, 1), encoder.T)
        kept.append(pre * (pre > sae.threshold[:features]))

    many = TOGETHER // LENGTH
    for start in range(0, len(rows), many):
        with reading(loaded.model, [site], take):
            body(loaded.model)(torch.tensor(rows[start : start + many]), use_cache=False)
    acts = torch.cat(kept)
    flat = [ident for row in rows for ident in row]
    for feature in range(features):
        column = acts[:, feature]
        top = column.topk(20).indices.tolist()
        found = [(flat[max(0, i - 10) : i + 11], column[max(0, i - 10) : i + 11].tolist()) for i in top]
        torch.histc(column[column > 0], 50)
        edges = torch.linspace(0, float(column.max()), 6)
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            inside = ((column > low) & (column <= high)).nonzero()[:, 0]
            for i in inside[torch.randperm(len(inside))[:5]].tolist():
                found.append((flat[max(0, i - 10) : i + 11], column[max(0, i - 10) : i + 11].tolist()))
        torch.corrcoef(torch.stack([column, acts[:, (feature + 1) % features]]))
    seconds = time.process_time() - began
    theirs = len(flat) * features / seconds
    mine = ours * sum(loupe.about.widths.values())
    print(f"\n{'':<44}{'feature-tokens/s':>18}")
    print(f"{f'stand-in: {features} features of {site}, dense':<44}{theirs:>18,.0f}")
    print(f"{'index: all features of all sites':<44}{mine:>18,.0f}   {mine / theirs:.0f} times as many")


def dashboard(loupe: gl.Loupe, rows: list[list[int]], site: Site, features: int, ours: float, python: str) -> None:
    """`ours` in tokens a second of one thread's CPU time; so is theirs, with one thread."""
    from gemloupe.load.builtin import builtin_model

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        loupe.sae(site).save_model(place / "sae")
        np.save(place / "tokens.npy", np.array(rows, np.int32))
        script = Path(__file__).with_name("dashboard.py")
        command = [python, str(script), str(place), str(builtin_model()), "--features", str(features)]
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"SAEDashboard did not run:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    theirs = found["tokens"] * found["features"] / found["cpu"]
    mine = ours * sum(loupe.about.widths.values())
    print(f"\n{'':<44}{'tokens/s':>10}{'feature-tokens/s':>18}")
    print(
        f"{f'SAEDashboard: {features} features of {site}':<44}{found['tokens'] / found['cpu']:>10.0f}{theirs:>18,.0f}"
    )
    print(f"{'index: all features of all sites':<44}{ours:>10.0f}{mine:>18,.0f}   {mine / theirs:.0f} times as many")


def memory(tokens: int) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "py"))
    from conftest import tiny_scope
    from gemloupe.load.model import load_model
    from tiny import VOCABULARY, tiny_model

    process, marks = psutil.Process(), [100_000, 250_000, 500_000, 1_000_000]
    print(f"\n{'tokens':>10}{'MB in memory':>14}{'tokens/s':>10}")

    def texts() -> Iterator[np.ndarray]:
        draw = np.random.default_rng(0)
        while True:
            yield draw.integers(7, VOCABULARY, 1 + int(draw.integers(20, 400)))

    def tell(report: Report) -> None:
        while marks and report.tokens >= marks[0]:
            print(f"{marks.pop(0):>10,}{process.memory_info().rss / 1e6:>14.0f}{report.rate:>10.0f}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = tiny_model("gemma3", place / "model")
        scope = tiny_scope(load_model(model, device="cpu"), place / "scope", sites=("res.1", "mlp.2"))
        with gl.open(model, scope=scope, device="cpu") as loupe:
            build(loupe.engine, texts(), place / "index", most=tokens, together=4096, tell=tell)
            print(f"{'finished':>10}{process.memory_info().rss / 1e6:>14.0f}")


def opening(folder: Path) -> None:
    began = time.perf_counter()
    index = Index.open(folder)
    opened = time.perf_counter() - began
    draw, times = random.Random(0), []
    for _ in range(200):
        site = draw.choice(index.sites)
        feature = f"{site}/{draw.randrange(index.width(site))}"
        began = time.perf_counter()
        index.evidence(feature)
        times.append(time.perf_counter() - began)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"\n{index}\n{size / 1e6:.1f} MB; opened in {1e3 * opened:.0f} ms")
    print(
        f"evidence of a feature: first {1e3 * times[0]:.0f} ms, median {1e3 * statistics.median(times):.1f} ms, "
        f"slowest of the others {1e3 * max(times[1:]):.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,dense,memory,open")
    parser.add_argument("--dashboard", metavar="PYTHON")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--most", type=int, default=1_000_000, help="tokens of the memory part")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--index", type=Path, default=SHIPPED)
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    if "dashboard" in parts and asked.dashboard is None:
        parser.error("--dashboard names the Python that has SAEDashboard")
    if {"speed", "dense", "dashboard"} & set(parts):
        with gl.open(device="cpu") as loupe:
            rows = passages(asked.text, asked.tokens)
            ours = speed(loupe, rows)
            if "dense" in parts:
                dense(loupe, rows[:16], Site.of("res.9"), 128, ours)
            if "dashboard" in parts:
                dashboard(loupe, rows[:16], Site.of("res.9"), 128, ours, asked.dashboard)
    if "memory" in parts:
        memory(asked.most)
    if "open" in parts:
        opening(asked.index)


if __name__ == "__main__":
    main()
