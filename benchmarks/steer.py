"""What steering costs: time per generated token on the built-in model, beside plain Hugging Face.

    python benchmarks/steer.py [--quick] [--threads 2] [--dtype bfloat16] [--peers]
    python benchmarks/steer.py --gpu       # Gemma 2 2B's shape on a GPU: steer_gpu.py, with its options

Prints one table. Everything runs in turn in one process, round after round, and each row is the median over rounds of
its ratio to another row of the same round, so that a busy machine slows all alike. On a very busy one only the CPU
time (with --threads 1) still means something. Time per token is decoding only:
a run of many tokens less a run of one. `--peers` adds TransformerLens and SAELens with the same weights and the same
clamp, which takes some minutes and several gigabytes.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

PROMPT = """The lighthouse keeper wrote every evening in a book with a blue cover. He noted the wind, the height of the
waves, and the ships that passed: two trawlers at noon, and"""
SHORT = "In the morning I like to"
HF, PLAIN = "Hugging Face generate", "gemloupe, no edit"

Contender = Callable[[int], Any]


def ours(loupe: Any, rows: tuple[tuple[Any, ...], ...], ids: tuple[int, ...], sites: Any = ()) -> Contender:
    from gemloupe.engine.protocol import GenerateRequest

    def run(count: int) -> list[int]:
        made = loupe.engine.generate(GenerateRequest(ids, count, rows=rows, sites=sites)).result()
        if any(len(one.tokens) != count for one in made):
            raise SystemExit("a row ended early; the figures would be of another length")
        return [token.id for token in made[0].tokens]

    return run


def hugging_face(loupe: Any, ids: tuple[int, ...]) -> Contender:
    """On the engine's thread, as everything of ours: a second thread's pool would slow both (`run/apart.py`)."""
    from gemloupe.engine.job import ThreadJob

    model = loupe.engine.loaded.model
    given = torch.tensor([ids])
    mask = torch.ones_like(given)

    def generate(count: int, job: Any) -> list[int]:
        with torch.inference_mode():
            out = model.generate(
                given, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
        return out[0, len(ids) :].tolist()

    def run(count: int) -> list[int]:
        return loupe.engine.submit(ThreadJob(partial(generate, count))).result()

    return run


def peers(loupe: Any, ids: tuple[int, ...], edit: Any) -> dict[str, Contender]:
    """TransformerLens' bridge with a clamp written as a hook, and SAELens' bridge with the SAE spliced in. A bridge
    wraps the modules of its model, which slows every pass through them: each has a copy of its own."""
    from sae_lens import SAETransformerBridge
    from transformer_lens.model_bridge import TransformerBridge

    given = torch.tensor([ids])
    name = edit.feature
    target = edit.strength * loupe.feature(name).maximum
    sae = loupe.engine.sae(name.site)
    w, b, t, d = sae.encoder[name.index], sae.b_enc[name.index], sae.threshold[name.index], sae.decoder[name.index]
    options = {"do_sample": False, "verbose": False, "stop_at_eos": False, "return_type": "tokens"}
    loaded = loupe.engine.loaded

    def bridge_of(kind: Any) -> Any:
        own = copy.deepcopy(loaded.model)
        dtype = next(own.parameters()).dtype
        return kind.boot_transformers(
            str(loaded.folder), hf_model=own, tokenizer=loaded.tokenizer, device=loaded.device, dtype=dtype
        )

    bridge, spliced, theirs = bridge_of(TransformerBridge), bridge_of(SAETransformerBridge), loupe.sae(name.site)
    spliced.add_sae(theirs, use_error_term=True)
    point = spliced.get_sae_hook_name(theirs)

    def clamp(x: torch.Tensor, hook: Any) -> torch.Tensor:
        pre = x @ w + b
        return x + (target - torch.where(pre > t, pre, 0.0))[..., None] * d

    def change(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        acts[..., name.index] = target
        return acts

    def generate(one: Any, hook: tuple[str, Any], count: int) -> list[int]:
        with torch.inference_mode(), one.hooks(fwd_hooks=[hook]):
            return one.generate(given, max_new_tokens=count, **options)[0, len(ids) :].tolist()

    return {
        "TransformerLens bridge, a clamp as a hook": partial(
            generate, bridge, (f"blocks.{name.site.layer}.hook_out", clamp)
        ),
        "SAELens bridge, SAE spliced, error term": partial(generate, spliced, (point, change)),
    }


def per_token(run: Contender, count: int) -> tuple[float, float]:
    """(seconds, CPU seconds) per token after the first."""
    marks = []
    for tokens in (1, count):
        marks.append((time.perf_counter(), time.process_time()))
        run(tokens)
    marks.append((time.perf_counter(), time.process_time()))
    (w0, c0), (w1, c1), (w2, c2) = marks
    return (w2 - w1 - (w1 - w0)) / (count - 1), (c2 - c1 - (c1 - c0)) / (count - 1)


Span = tuple[float, float]


def latencies(loupe: Any, prompt: str, edit: Any, rounds: int) -> tuple[list[Span], list[Span]]:
    """(seconds, CPU seconds) from a moved slider to the first new token, and from Stop to stopped, in the kernel's half
    of a desk. The browser adds a message each way, about 50 ms.
    """
    desk = loupe.steer(prompt, edit, max_new_tokens=400)
    seen = threading.Condition()

    def changed(_change: Any) -> None:
        with seen:
            seen.notify_all()

    def now() -> Span:
        return time.perf_counter(), time.process_time()

    def since(began: Span) -> Span:
        ended = now()
        return ended[0] - began[0], ended[1] - began[1]

    def wait(there: Callable[[], bool]) -> None:
        with seen:
            if not seen.wait_for(there, 120):
                raise SystemExit("the desk did not answer")

    def streams(ident: int, least: int) -> bool:
        run = desk.current
        return run["id"] > ident and len(run["arms"]) > 1 and len(run["arms"][1]["tokens"]) >= least

    desk.observe(changed, "current")
    first: list[Span] = []
    stopped: list[Span] = []
    wait(lambda: streams(0, 4))
    for at in range(rounds):
        ident, began = desk.current["id"], now()
        desk._on_edit(desk.rows[0]["key"], strength=0.3 + at / 100)
        wait(partial(streams, ident, 1))
        first.append(since(began))
        wait(partial(streams, ident, 4))
        began = now()
        desk.stop()
        wait(lambda: desk.current["state"] == "stopped")
        stopped.append(since(began))
        desk.wait(60)
    desk.close()
    return first, stopped


def main() -> None:
    if "--gpu" in sys.argv:
        import steer_gpu

        sys.argv.remove("--gpu")
        steer_gpu.main()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peers", action="store_true")
    given = parser.parse_args()
    if given.threads and os.environ.get("OMP_NUM_THREADS") != str(given.threads):
        # The engine has a thread of its own, which takes its number of threads from here.
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    warnings.simplefilter("ignore")
    import gemloupe as gl

    count, rounds = (9, 3) if given.quick else (33, 9)
    with gl.open(dtype=given.dtype) as loupe:
        ids = tuple(token.id for token in loupe.engine.tokenize(PROMPT))
        trace = loupe.read(PROMPT)
        best = {site: [a.feature for a in trace.top(8, site=site) if a.maximum > 0] for site in loupe.sites}
        site = next(s for s in loupe.sites if s.kind == "res" and best[s])
        one = (gl.clamp(best[site][0], 0.5),)
        spread = [s for s in loupe.sites if len(best[s]) > 1]
        spread = spread[:: max(len(spread) // 5, 1)][:5]
        ten = tuple(gl.clamp(name, 0.3) for s in spread for name in best[s][:2])
        nine = tuple((gl.clamp(best[site][0], step / 4),) for step in range(9))
        runs: dict[str, Contender] = {
            HF: hugging_face(loupe, ids),
            PLAIN: ours(loupe, ((),), ids),
            f"  one clamp ({site})": ours(loupe, (one,), ids),
            f"  {len(ten)} clamps over {len({e.site for e in ten})} sites": ours(loupe, (ten,), ids),
            "  default and steered, one batch": ours(loupe, ((), one), ids),
            "  nine rows of a sweep, one batch": ours(loupe, nine, ids),
            "  one clamp, every open site recorded": ours(loupe, (one,), ids, None),
        }
        same = runs[HF](count) == runs[PLAIN](count)
        if given.peers:
            runs |= peers(loupe, ids, one[0])
        for name, run in list(runs.items()):
            try:
                run(2)
            except Exception as error:
                print(f"{name.strip()} is left out: {type(error).__name__}: {error}")
                del runs[name]
        clamped = runs[f"  one clamp ({site})"](count)
        agree = {name: runs[name](count) == clamped for name in runs if "bridge" in name}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(per_token(run, count))
        waits = {prompt: latencies(loupe, prompt, one[0], rounds) for prompt in (SHORT, PROMPT)}
        lengths = {prompt: len(loupe.engine.tokenize(prompt)) for prompt in waits}
    threads = torch.get_num_threads()
    print(f"{loupe.about.model}, {given.dtype}, {threads} threads, {len(ids)} tokens and {count} new, {rounds} rounds.")
    print(f"Greedy tokens are {'the same as' if same else 'NOT those of'} Hugging Face.")
    for name, alike in agree.items():
        print(f"{name}: {'the same' if alike else 'OTHER'} tokens as with one clamp here.")
    print()
    width = max(map(len, runs))
    print(f"{'':{width}}  {'elapsed':^36}  {'CPU time':^36}")
    print(f"{'':{width}}  " + "  ".join(["ms/token  to Hugging Face  to no edit "] * 2))
    for name, found in times.items():
        cells = []
        for kind in (0, 1):
            mine = [one[kind] for one in found]
            to_hf, to_plain = (
                statistics.median(a / b[kind] for a, b in zip(mine, times[base], strict=True)) for base in (HF, PLAIN)
            )
            cells.append(f"{statistics.median(mine) * 1e3:8.1f}  {to_hf:15.2f}  {to_plain:10.2f} ")
        print(f"{name:{width}}  " + "  ".join(cells))
    print()
    for prompt, both in waits.items():
        print(f"A desk of two rows, {lengths[prompt]} tokens of prompt, {rounds} times:")
        for name, spans in zip(("slider to the first new token", "Stop to stopped"), both, strict=True):
            elapsed, cpu = (statistics.median(span[kind] for span in spans) * 1e3 for kind in (0, 1))
            print(f"  {name}: {elapsed:.0f} ms elapsed, {cpu:.0f} ms of CPU time")
    if not torch.cuda.is_available():
        print("\nNo GPU here: tokens per second on a GPU were not measured.")
    else:
        print("\nTokens per second on the GPU: benchmarks/steer.py --gpu")


if __name__ == "__main__":
    main()
