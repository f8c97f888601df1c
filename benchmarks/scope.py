"""Reading with all of Gemma Scope's SAEs of Gemma 2 2B: memory and time, all of them resident or within a budget.

    python benchmarks/scope.py                  # on this CPU: pages on disk, a budget of ten SAEs
    python benchmarks/scope.py --device cuda    # the ratios aimed at: 1.3 for the residual sites, 2 for all 78

The model has Gemma 2 2B's real shape and random weights in bfloat16; the SAEs are random, of the real shape (16,384
features, float32), with thresholds set so that about eighty features are on per token. Sites of one kind share
`--files` files on disk, which the system may keep in memory: what a disk costs is reported beside it.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from gemloupe.budget import said
from gemloupe.load.sae import Sae
from gemloupe.run import pages
from gemloupe.run.capture import body, reading, width_of
from gemloupe.run.pages import Pager, footprint
from gemloupe.run.read import logits, read
from gemloupe.site import Site
from gemloupe.sparse import SparseActs

TOKENS, WIDTH, L0, KINDS = 128, 16384, 80, ("att", "mlp", "res")
SHAPES = {
    "2b": {"hidden_size": 2304, "num_hidden_layers": 26, "intermediate_size": 9216, "vocab_size": 256000}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    # for trying this file out
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 512, "vocab_size": 2000}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
}


def random_model(shape: str, device: str):
    """A Gemma 2 of that shape whose blocks all matter: every matrix is scaled by its width."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**SHAPES[shape], attn_implementation="eager")
    with torch.device("meta"):
        model = Gemma2ForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    model.tie_weights()
    random = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.zero_()  # Gemma's norms multiply by 1 + weight
        else:
            parameter.normal_(0, 1 if "embed" in name else parameter.shape[1] ** -0.5, generator=random)
    # What no parameter holds was left empty too.
    fresh = type(body(model).rotary_emb)(config=model.config).to(device)
    body(model).rotary_emb = fresh
    scale = getattr(body(model).embed_tokens, "embed_scale", None)
    if isinstance(scale, torch.Tensor):
        body(model).embed_tokens.embed_scale = torch.full_like(scale, model.config.hidden_size**0.5, device=device)
    return model


def random_sae(site: Site, x: torch.Tensor, seed: int, width: int) -> Sae:
    """Random directions, thresholds at which about `L0` features are on for a token of `x` [token, d_in]."""
    random = torch.Generator(x.device).manual_seed(seed)
    rows = torch.randn(width, x.shape[1], generator=random, device=x.device) * x.shape[1] ** -0.5
    pre = x.float() @ rows.T
    threshold = (pre.mean(0) + pre.std(0) * torch.special.ndtri(torch.tensor(1 - L0 / width))).clamp_min(1e-3)
    zeros = [torch.zeros(size, device=x.device) for size in (width, x.shape[1])]
    return Sae(site, rows, zeros[0], threshold, rows.clone(), zeros[1]).to("cpu")


def seen(model, ids: list[int], sites: set[Site]) -> dict[Site, torch.Tensor]:
    """The tensor [token, width] at each site."""
    found: dict[Site, torch.Tensor] = {}
    with torch.inference_mode(), reading(model, sites, lambda site, x: found.update({site: x[0].clone()})):
        body(model)(torch.tensor([ids], device=next(model.parameters()).device), use_cache=False)
    return found


def written(model, ids: list[int], sites: list[Site], folder: Path, files: int, width: int) -> dict[Site, Path]:
    """One page per file; sites of a kind take turns with them. Returns the page of each site."""
    made: dict[tuple[str, int], Path] = {}
    first = {(site.kind, site.layer % files): site for site in reversed(sites)}
    inputs = seen(model, ids, set(first.values()))
    for number, (key, site) in enumerate(first.items()):
        source = folder / f"{key[0]}-{key[1]}.source"
        source.write_text(str(number))
        sae = random_sae(site, inputs.pop(site), number, width)
        pages.mapped(source, Site(site.kind, 0), lambda sae=sae: sae, folder / "pages")
        made[key] = source
        del sae
        gc.collect()
    return {site: made[site.kind, site.layer % files] for site in sites}


@torch.inference_mode()
def wrong(model, ids: list[int], sites: list[Site], sae: Callable[[Site], Sae], acts: dict[Site, SparseActs]) -> int:
    """Entries of `acts` at `sites` that float64 contradicts, beyond what float32 can round off."""
    found = 0
    for site, x in seen(model, ids, set(sites)).items():
        page, x = sae(site), x[1:].double()  # the first token is special
        pre = x @ page.encoder.double().T + page.b_enc
        least = page.threshold.double().clamp_min(0)
        size = x.norm(dim=1, keepdim=True) * page.encoder.double().norm(dim=1)
        ours = torch.from_numpy(acts[site].to_dense()[1:]).to(x.device).double()
        edge = (pre - least).abs() <= 1e-6 * size
        found += int((((ours > 0) != (pre > least)) & ~edge).sum())
        found += int(((ours - pre).abs() > 1e-6 * size)[(ours > 0) & ~edge].sum())
    return found


def never() -> Sae:
    raise AssertionError("every page was written before")


class Peak:
    """The most memory this process takes while it is open: what is mapped counts as far as it was touched."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> Peak:
        import threading

        self.most, self._done = 0, threading.Event()
        process = psutil.Process()

        def watch() -> None:
            while not self._done.wait(0.02):
                self.most = max(self.most, process.memory_info().rss)

        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.device_most = 0 if self.device == "cpu" else torch.cuda.max_memory_allocated()


@dataclass
class Timed:
    """Seconds per round of a plain forward and of the contender after it, and what the contender gave last."""

    plain: list[float]
    run: list[float]
    out: Any

    @property
    def ratio(self) -> float:
        """Median over rounds of the ratio within the round: other work on the machine slows both."""
        return statistics.median(b / a for a, b in zip(self.plain, self.run, strict=True))


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    begun = time.perf_counter()
    out = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, out


def in_turn(plain: Callable[[], Any], run: Callable[[], Any], rounds: int, device: str) -> Timed:
    found = Timed([], [], None)
    for _ in range(rounds):
        found.plain.append(seconds(plain, device)[0])
        took, found.out = seconds(run, device)
        found.run.append(took)
    return found


def products(sites: list[Site], sae: Callable[[Site], Sae], device: str) -> float:
    """Seconds of the encoders' float32 products alone: no reading of these sites can be faster."""
    saes = [sae(site) for site in sites]
    inputs = [torch.randn(TOKENS - 1, one.d_in, device=device) for one in saes]

    @torch.inference_mode()
    def multiply() -> None:
        for x, one in zip(inputs, saes, strict=True):
            torch.addmm(one.b_enc, x, one.encoder.T)

    multiply()
    return min(seconds(multiply, device)[0] for _ in range(1 if device == "cpu" else 5))


def profiled(name: str, run: Callable[[], Any]) -> None:
    """Print where the time of one run goes on a GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    print(f"\n{name}")
    print(found.key_averages().table(sort_by="self_device_time_total", row_limit=14, max_name_column_width=60))
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=60))


def same(one: dict[Site, SparseActs], two: dict[Site, SparseActs]) -> bool:
    parts = ("indptr", "indices", "values")
    return all(np.array_equal(getattr(one[site], part), getattr(two[site], part)) for site in one for part in parts)


def cold(folder: Path) -> float:
    """Bytes a second of reading a page that the system does not hold in memory."""
    file = next(folder.rglob("sae.safetensors"))
    with file.open("rb") as opened:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        while opened.read(1 << 24):
            pass
        return file.stat().st_size / (time.perf_counter() - begun)


def shown(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{1000 * time:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="2b")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--held", type=int, default=10, help="SAEs that the budget holds")
    parser.add_argument("--files", type=int, default=2, help="files on disk for each kind of site")
    parser.add_argument("--rounds", type=int, default=None, help="default: 3 on a CPU, 20 on a GPU, 3 of what is paged")
    parser.add_argument("--folder", default=None, help="where pages are written; removed afterwards")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes on a GPU")
    options = parser.parse_args()
    device = options.device
    rounds = options.rounds or (3 if device == "cpu" else 20)

    model = random_model(options.shape, device)
    layers = len(body(model).layers)
    random = np.random.default_rng(0)
    ids = [2, *random.integers(300, SHAPES[options.shape]["vocab_size"], TOKENS - 1).tolist()]
    tokens = torch.tensor([ids], device=device)
    every = [Site(kind, layer) for layer in range(layers) for kind in KINDS]
    stream = [site for site in every if site.kind == "res"]
    weights = sum(p.nbytes for p in model.parameters())
    folder = Path(tempfile.mkdtemp(prefix="gemloupe-scope-", dir=options.folder))
    rows: list[tuple[str, Timed, str, Peak]] = []
    try:
        begun = time.perf_counter()
        place = written(model, ids, every, folder, options.files, options.width)
        on_disk = sum(file.stat().st_size for file in folder.rglob("sae.safetensors"))
        print(
            f"pages written in {time.perf_counter() - begun:.0f} s: {len(set(place.values()))} files, {said(on_disk)}"
        )

        def size(site: Site, where: str = device) -> int:
            return footprint(options.width, width_of(model, site), where)

        def from_disk(site: Site) -> Sae:
            return pages.mapped(place[site], Site(site.kind, 0), never, folder / "pages")

        def pager(sites: list[Site], budget: int) -> Pager:
            if device == "cpu":
                one = Pager(from_disk, size, budget=budget)
            else:
                host = Pager(from_disk, lambda site: size(site, "cpu"), budget=pages.default_budget("cpu"))
                one = Pager(host.get, size, budget=budget, device=device, below=host)
            one.expect(sorted(sites))
            return one

        @torch.inference_mode()
        def plain() -> None:
            hidden = body(model)(tokens, use_cache=False).last_hidden_state[0]
            logits(model, hidden)

        def reader(sae: Callable[[Site], Sae], sites: list[Site], guesses: int = 0) -> Callable[[], Any]:
            return lambda: read(model, ids, sites, sae, special={2}, guesses=guesses).acts

        for _ in range(1 if device == "cpu" else 3):
            plain()
        with Peak(device) as peak:
            base = in_turn(lambda: None, plain, rounds, device)
        rows.append(("plain forward with logits", base, "", peak))

        for name, sites in ((f"{layers} residual sites", stream), (f"all {len(every)} sites", every)):
            everything, budget = sum(map(size, sites)), options.held * max(map(size, sites))
            if device == "cpu":
                # The same tensors several times over, since all of them would not fit this memory.
                opened = {source: from_disk(site) for site, source in place.items()}
                resident = {site: replace(opened[place[site]]) for site in sites}
                get, one = resident.__getitem__, None
            else:
                one = pager(sites, everything)
                get = one.get
            run = reader(get, sites)
            begun = time.perf_counter()
            run(), run()  # the second use is when an encoder is rounded, where that pays
            print(f"{name}: read twice in {time.perf_counter() - begun:.1f} s, loading included")
            with Peak(device) as peak:
                all_here = in_turn(plain, run, rounds, device)
            rows.append((f"{name}, all resident ({said(everything)})", all_here, "0", peak))
            if device != "cpu":
                also = reader(get, sites, guesses=5)
                also()
                with Peak(device) as peak:
                    rows.append(("the same, with 5 guesses per token", in_turn(plain, also, rounds, device), "0", peak))
            floor = products(sites, get, device)
            errors = wrong(model, ids, sites[-3:], get, all_here.out)
            if options.profile:
                profiled(name, run)
            if one is not None:
                one.close()
            resident = opened = run = also = get = one = None
            gc.collect()

            one = pager(sites, budget)
            run = reader(one.get, sites)
            run()
            before, turns = one.loads, min(rounds, 3)
            with Peak(device) as peak:
                paged = in_turn(plain, run, turns, device)
            moved = (one.loads - before) / turns
            rows.append((f"{name}, a budget of {options.held} ({said(budget)})", paged, f"{moved:.0f}", peak))
            assert one.held <= budget
            one.close()
            run = one = None
            gc.collect()
            l0 = np.mean([acts.nnz / TOKENS for acts in paged.out.values()])
            exact = "the same, bit for bit" if same(all_here.out, paged.out) else "DIFFERENT"
            print(
                f"{name}: L0 {l0:.0f}; the encoders' products alone take {shown(floor)}, "
                f"{floor / middle(base.run):.2f} of the plain forward; "
                f"entries that float64 contradicts at three sites: {errors}; resident and paged: {exact}"
            )
        disk = cold(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    where = device if device == "cpu" else torch.cuda.get_device_name()
    print(f"\nGemma 2 {options.shape}, bfloat16 on {where}, {said(weights)}; {TOKENS} tokens; {rounds} rounds;")
    print(
        f"SAEs of {options.width:,} in float32; {torch.get_num_threads()} threads; a page from the disk: {said(disk)}/s"
    )
    if device == "cpu":
        print("All resident: the time is of all sites, the memory of fewer SAEs, whose tensors sites share.")
    head = ("", "median", "fastest", "ratio", "SAEs loaded", "peak host", "peak device")
    print(f"\n| {' | '.join(head)} |\n|---|---:|---:|---:|---:|---:|---:|")
    for label, times, moved, peak in rows:
        share = "1" if label.startswith("plain") else f"{times.ratio:.2f}"
        there = said(peak.device_most) if peak.device_most else ""
        took = f"{shown(middle(times.run))} | {shown(min(times.run))}"
        print(f"| {label} | {took} | {share} | {moved} | {said(peak.most)} | {there} |")


def middle(times: list[float]) -> float:
    return statistics.median(times)


if __name__ == "__main__":
    main()
