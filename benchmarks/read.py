"""What reading costs: every residual site of the built-in model, 128 tokens, SAEs of 16,384 features.

    python benchmarks/read.py [--quick] [--threads 2] [--device cuda]

Prints one table. Everything in its first part runs in turn in one process, round after round, and is given as a
ratio to a plain Hugging Face forward pass with all logits, so that a busy machine slows all rows alike. On a very
busy one only the fastest round, and with --threads 1 the CPU time, still mean something. The SAEs are random, with
thresholds set on the model's own activations; nothing here says anything about their quality.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from gemloupe.load.find import BUILTIN_SCOPE
from gemloupe.load.model import LoadedModel, load_model
from gemloupe.load.sae import Sae
from gemloupe.load.scope import Scope
from gemloupe.run.capture import body, reading
from gemloupe.run.encode import can_screen
from gemloupe.run.read import read
from gemloupe.site import Site
from gemloupe.sparse import SparseActs
from gemloupe.wire import arrays

encoding = importlib.import_module("gemloupe.run.encode")

TOKENS, WIDTH, L0 = 128, 16384, 90.0
BASE = "Hugging Face forward, all logits"
TEXT = """The lighthouse keeper wrote every evening in a book with a blue cover. He noted the wind, the height of the
waves, and the ships that passed: two trawlers at noon, a ferry at four, and once, in March 1931, a whale. His
daughter, who studied chemistry in Lisbon, sent him letters about acids and salts, and he pressed them between the
pages. When the electric lamp came, the company offered him a pension; he asked instead for a better telescope.
"A light that needs nobody," he wrote that night, "still needs somebody to see it." The book is now in a museum,
open at that page, under a lamp that is switched on by a timer. Visitors often ask whether the whale came back."""

Acts = Mapping[Site, SparseActs]
Contender = Callable[[], Any]


def residuals(loaded: LoadedModel, ids: list[int], sites: list[Site]) -> dict[Site, torch.Tensor]:
    """float32 [token, d_model] at every site."""
    seen: dict[Site, torch.Tensor] = {}
    with torch.inference_mode(), reading(loaded.model, sites, lambda site, x: seen.update({site: x[0].float()})):
        body(loaded.model)(torch.tensor([ids], device=loaded.device), use_cache=False)
    return seen


def random_sae(site: Site, x: torch.Tensor, seed: int) -> Sae:
    """An SAE of random directions on which `x` [token, d_in] has a mean L0 near `L0`, BOS (row 0) none.

    BOS is tens of times longer than any other token, so its direction is taken out of every encoder row; how often
    features fire is log-normal, as in trained SAEs.
    """
    random = torch.Generator(x.device).manual_seed(seed)
    encoder = torch.randn(WIDTH, x.shape[1], generator=random, device=x.device)
    bos = x[0] / x[0].norm()
    encoder -= (encoder @ bos)[:, None] * bos
    encoder /= encoder.norm(dim=1, keepdim=True)
    pre = x[1:] @ encoder.T
    share = L0 / WIDTH * torch.exp(torch.randn(WIDTH, generator=random, device=x.device) - 0.5)
    threshold = pre.mean(0) + pre.std(0) * torch.special.ndtri(1 - share.clamp(1e-5, 0.2))
    low, high = -2.0, 4.0  # residuals are not normal: shift all thresholds by so many standard deviations
    for _ in range(20):
        shift = (low + high) / 2
        moved = torch.maximum(threshold + shift * pre.std(0), pre.std(0) / 2)
        low, high = (shift, high) if float((pre > moved).sum(1).float().mean()) > L0 else (low, shift)
    zeros = torch.zeros(WIDTH, device=x.device)
    return Sae(site, encoder, zeros, moved, encoder, torch.zeros(x.shape[1], device=x.device))


def ours(loaded: LoadedModel, ids: list[int], saes: dict[Site, Sae], **options: Any) -> Callable[[], Acts]:
    return lambda: read(loaded.model, ids, saes, saes.__getitem__, special=loaded.special, **options).acts


def ours_dense(loaded: LoadedModel, ids: list[int], saes: dict[Site, Sae]) -> Callable[[], Acts]:
    def run() -> Acts:
        with mock.patch.object(encoding, "can_screen", lambda: False):
            return ours(loaded, ids, saes)()

    return run


def peers(loaded: LoadedModel, ids: list[int], saes: dict[Site, Sae]) -> dict[str, Contender]:
    """SAELens and TransformerLens on weights of their own, since a bridge puts its own modules into the model."""
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformer_lens.model_bridge import TransformerBridge

    options = {"device": loaded.device, "dtype": next(loaded.model.parameters()).dtype}
    theirs = {site: sae.as_sae_lens(loaded.id) for site, sae in saes.items()}
    bridge = TransformerBridge.boot_transformers(str(loaded.folder), **options)
    spliced = SAETransformerBridge.boot_transformers(str(loaded.folder), **options)
    tokens = torch.tensor([ids], device=loaded.device)
    names = {site: f"blocks.{site.layer}.hook_out" for site in saes}

    def apart() -> list[torch.Tensor]:
        cache = bridge.run_with_cache(tokens, names_filter=list(names.values()))[1]
        return [theirs[site].encode(cache[name]) for site, name in names.items()]

    def together(error_term: bool) -> Contender:
        def run() -> Any:
            cache = spliced.run_with_cache_with_saes(
                tokens,
                saes=list(theirs.values()),
                use_error_term=error_term,
                names_filter=lambda name: name.endswith("hook_sae_acts_post"),
            )[1]
            assert len(cache) == len(saes)
            return cache

        return run

    return {
        "TransformerLens run_with_cache, then 18 SAELens encode": apart,
        "SAELens run_with_cache_with_saes, error terms kept": together(True),
        "SAELens run_with_cache_with_saes, reconstructions spliced in": together(False),
    }


@dataclass
class Timed:
    """Seconds of one contender, round by round: by the clock, and of CPU time of all threads."""

    clock: list[float]
    cpu: list[float]


def in_turn(contenders: dict[str, Contender], rounds: int, device: str) -> dict[str, Timed]:
    """The order rotates, so that none always runs after the same one."""

    def timed(run: Contender) -> tuple[float, float]:
        clock, cpu = time.perf_counter(), time.process_time()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - clock, time.process_time() - cpu

    names = list(contenders)
    for name in names:
        timed(contenders[name])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(timed(contenders[name]))
    return {name: Timed(*map(list, zip(*each, strict=True))) for name, each in times.items()}


def ratio(one: list[float], base: list[float]) -> float:
    """Median over rounds of the ratio within the round."""
    return statistics.median(a / b for a, b in zip(one, base, strict=True))


def differences(found: Acts, exact: Acts) -> tuple[int, int, float]:
    """(entries, entries that only one of the two has, largest relative difference of the others)."""
    entries = apart = 0
    largest = 0.0
    for site in exact:
        one, two = found[site].to_dense(), exact[site].to_dense()
        both = (one > 0) & (two > 0)
        entries += int((two > 0).sum())
        apart += int(((one > 0) != (two > 0)).sum())
        largest = max(largest, float(np.abs(one[both] / two[both] - 1).max(initial=0)))
    return entries, apart, largest


def in_new_process(code: str, times: int) -> list[Any]:
    """What `code` prints as JSON, in fresh interpreters."""
    results = []
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return results


IMPORT = """
import json, sys, time
start = time.perf_counter()
import gemloupe
print(json.dumps([time.perf_counter() - start, "torch" in sys.modules]))
"""
OPEN = """
import json, time
import gemloupe as gl
start = time.perf_counter()
import torch, transformers
libraries = time.perf_counter() - start
loupe = gl.open({model}device={device!r})
print(json.dumps([time.perf_counter() - start, libraries]))
"""


def wire_bytes(acts: SparseActs) -> tuple[int, float]:
    """(bytes of the buffers one layer's features take to the browser, mean L0)."""
    known = np.full(acts.shape[1], np.nan, np.float32)
    return arrays.size(arrays.sparse(acts)) + arrays.size(arrays.maxima(acts, known)), acts.nnz / acts.shape[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, no SAELens, no new processes")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: as torch chooses")
    parser.add_argument("--rounds", type=int, default=None, help="rounds, default 9 (3 with --quick)")
    parser.add_argument("--device", default="cpu", help="'cpu' (float32) or 'cuda' (bfloat16, SAEs float32)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = options.rounds or (3 if options.quick else 9)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    loaded = load_model(device=options.device, dtype="float32" if options.device == "cpu" else "bfloat16")
    ids = [loaded.bos, *loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]][:TOKENS]
    assert len(ids) == TOKENS
    sites = [Site("res", layer) for layer in range(len(body(loaded.model).layers))]
    saes = {site: random_sae(site, x, site.layer) for site, x in residuals(loaded, ids, sites).items()}
    tokens = torch.tensor([ids], device=loaded.device)

    contenders: dict[str, Contender] = {
        BASE: lambda: loaded.model(tokens, use_cache=False).logits,
        "Hugging Face forward, no logits": lambda: body(loaded.model)(tokens, use_cache=False),
        "gemloupe, 18 sites": ours(loaded, ids, saes),
        "gemloupe, 18 sites, float32 encoder": ours_dense(loaded, ids, saes),
        "gemloupe, 18 sites, guesses at the last token": ours(loaded, ids, saes, guesses=5, positions=[TOKENS - 1]),
        "gemloupe, 18 sites, guesses at all tokens": ours(loaded, ids, saes, guesses=5),
    }
    if not options.quick:
        contenders |= peers(loaded, ids, saes)
    with torch.inference_mode():
        times = in_turn(contenders, rounds, options.device)
    ratios = {name: ratio(each.clock, times[BASE].clock) for name, each in times.items()}

    how = f"{rounds} rounds, {torch.get_num_threads()} threads, int8 screen {'on' if can_screen() else 'off'}"
    print(f"\n{loaded.id}, {loaded.dtype} on {loaded.device}; {TOKENS} tokens, {len(saes)} SAEs of {WIDTH:,}; {how}\n")
    print(f"| {'':60} | ratio |   ms | fastest | CPU ratio |\n|{'-' * 62}|------:|-----:|--------:|----------:|")
    for name, each in times.items():
        median, fastest = 1000 * statistics.median(each.clock), 1000 * min(each.clock)
        cpu = ratio(each.cpu, times[BASE].cpu)
        print(f"| {name:60} | {ratios[name]:5.2f} | {median:4.0f} | {fastest:7.0f} | {cpu:9.2f} |")

    rows: list[tuple[str, str]] = []
    if not options.quick:
        logits = ratios[BASE] - ratios["Hugging Face forward, no logits"]
        mine = ratios["gemloupe, 18 sites"]
        for name in list(contenders)[-3:]:
            gain = ratios[name] - mine
            without = (ratios[name] - logits) / mine
            parts = f"{logits / gain:.0%} of the gain is skipped logits; without that part {without:.1f} x"
            rows.append((f"against {name}", f"{ratios[name] / mine:.1f} x; {parts}"))
    found, exact = ours(loaded, ids, saes)(), ours_dense(loaded, ids, saes)()
    entries, apart, largest = differences(found, exact)
    says = f"{apart} of {entries:,} entries differ, values by at most {largest:.1e} (relative)"
    rows.append(("features against the float32 product", says))
    wire = {f"{WIDTH:,} random": found[sites[len(sites) // 2]]}
    if (BUILTIN_SCOPE / "manifest.json").exists():
        scope = Scope.open(BUILTIN_SCOPE)
        site = scope.sites[len(scope.sites) // 2]
        builtin = {site: scope.load(site).to(loaded.device)}
        wire[f"{builtin[site].width:,} built-in, {site}"] = ours(loaded, ids, builtin)()[site]
    for name, acts in wire.items():
        size, mean = wire_bytes(acts)
        rows.append((f"one layer to the browser ({name})", f"{size:,} bytes, L0 {mean:.0f}"))
    if not options.quick:
        imports = in_new_process(IMPORT, 5)
        torch_too = "torch imported" if any(heavy for _, heavy in imports) else "torch not imported"
        rows.append(("import gemloupe", f"{statistics.median(t for t, _ in imports):.3f} s, {torch_too}"))
        model = "" if (BUILTIN_SCOPE / "manifest.json").exists() else f"{str(loaded.folder)!r}, "
        opens = in_new_process(OPEN.format(model=model, device=options.device), 3)
        whole, libraries = (statistics.median(column) for column in zip(*opens, strict=True))
        rows.append(("gl.open() in a new kernel", f"{whole:.1f} s, of which torch and transformers {libraries:.1f} s"))
    print()
    for name, says in rows:
        print(f"{name}: {says}")


if __name__ == "__main__":
    main()
