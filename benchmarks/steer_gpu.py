"""What steering costs on a GPU: tokens per second at Gemma 2 2B's shape with random weights, beside Hugging Face.

    python benchmarks/steer_gpu.py [--tokens 192] [--seconds 150] [--no-compile] [--device cpu --small]

Prints tables: whether the tokens are the same however they are made, then tokens per second for one stream and for
eight, decoding only (prompt and the first sixteen tokens are left out) and for the whole call. Needs torch and
transformers and no others. `--device cpu --small` goes through all of it with a tiny model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "py_src"))

import torch

SITES = ("res.5", "mlp.9", "att.12", "res.16", "res.21")
FEATURES, WIDE = 16, 16384
PROMPT, SKIPPED = 32, 16
GOALS = {1: 220, 8: 1400}

started = time.perf_counter()


def say(*parts: Any) -> None:
    print(*parts, flush=True)


def random_model(device: str, dtype: torch.dtype, small: bool) -> Any:
    """Gemma 2 2B's shape. Weights are scaled so that every block matters and the text does not repeat its input."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    shape = {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }
    if small:
        shape |= {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "sliding_window": 24}
        shape |= {"query_pre_attn_scalar": 16}
    config = Gemma2Config(**shape, hidden_activation="gelu_pytorch_tanh")
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                scale = weight.shape[1] ** -0.5 / (4 if "embed" in name else 1)
                weight.normal_(0, scale, generator=random)
            else:
                weight.normal_(9 if name == "model.norm.weight" else 0, 0.3, generator=random)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


class Saes:
    """Random SAEs that know a few features of each site, or many; on the device."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device, self._made = model, device, {}

    def __call__(self, site: Any, width: int = FEATURES) -> Any:
        from gemloupe.load.sae import Sae
        from gemloupe.run.capture import width_of

        if (site, width) not in self._made:
            random = torch.Generator(self._device).manual_seed(site.layer)
            decoder = torch.randn(width, width_of(self._model, site), generator=random, device=self._device)
            decoder /= decoder.norm(dim=1, keepdim=True)
            zeros = torch.zeros(width, device=self._device)
            self._made[site, width] = Sae(
                site,
                encoder=decoder.clone(),
                b_enc=zeros,
                threshold=zeros + 3.0,
                decoder=decoder,
                b_dec=torch.zeros(decoder.shape[1], device=self._device),
            )
        return self._made[site, width]


class Bench:
    def __init__(self, model: Any, device: str, tokens: int) -> None:
        import gemloupe as gl

        self.model, self.device, self.tokens = model, device, tokens
        self.saes = Saes(model, device)
        random = torch.Generator().manual_seed(1)
        vocabulary = model.config.vocab_size
        self.prompts = [[2, *torch.randint(10, vocabulary, (PROMPT - 1,), generator=random).tolist()] for _ in range(4)]
        self.one = (gl.clamp(f"{SITES[0]}/0", 1.0),)
        self.ten = tuple(gl.clamp(f"{site}/{index}", 0.5) for site in SITES for index in (0, 1))

    def steering(self, rows: Any, prompt: int) -> Any:
        from gemloupe.run.steer import Steering

        made = Steering(
            rows, prompt=prompt, special=(0, 1, 2, 3), sae=self.saes, maximum=lambda _: 20.0, device=self.device
        )
        return lambda: made

    def ours(self, rows: Any, ids: Any, count: int, way: str | None, seed: int | None = None, sites: Any = ()) -> Any:
        """([row][(id, log-probability)], seconds at which each token came)."""
        from gemloupe.run.choose import Sampling
        from gemloupe.run.generate import Recorder, generate

        recorder = None
        if sites:
            recorder = Recorder(self.model, len(rows), sites, lambda site: self.saes(site, WIDE), (0, 1, 2, 3))
        steps = generate(
            self.model,
            ids,
            self.steering(rows, len(ids)),
            max_new_tokens=count,
            sampling=Sampling(0.0 if seed is None else 1.0),
            seed=seed or 0,
            recorder=recorder,
            way=way,
        )
        made: list[list[tuple[int | None, float]]] = [[] for _ in rows]
        times = [time.perf_counter()]
        for step in steps:
            times.append(time.perf_counter())
            for one in step:
                made[one.row].append((one.id, one.logprob))
        return made, [now - times[0] for now in times[1:]] + [time.perf_counter() - times[0]]

    def hugging_face(self, ids: Any, rows: int, count: int, scores: bool = False) -> Any:
        given = torch.tensor([ids] * rows, device=self.device)
        with torch.inference_mode():
            out = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=scores,
            )
        if self.device != "cpu":
            torch.cuda.synchronize()
        return out


@contextmanager
def without_graphs() -> Iterator[None]:
    """The very steps that are captured, run one by one."""
    from gemloupe.run.ahead import Ahead

    capture = Ahead._capture
    Ahead._capture = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Ahead._capture = capture  # type: ignore[method-assign]


@contextmanager
def compiled(on: bool) -> Iterator[None]:
    from gemloupe.run.ahead import COMPILE

    kept = os.environ.pop(COMPILE, None)
    if on:
        os.environ[COMPILE] = "1"
    try:
        yield
    finally:
        os.environ.pop(COMPILE, None)
        if kept is not None:
            os.environ[COMPILE] = kept


def alike(one: Any, two: Any) -> str:
    """How far two lists of rows of (id, log-probability) agree."""
    total = sum(len(row) for row in one)
    same = off = 0.0
    for left, right in zip(one, two, strict=True):
        agreed = next((at for at, (a, b) in enumerate(zip(left, right, strict=True)) if a[0] != b[0]), len(left))
        same += agreed
        off = max([off, *(abs(a[1] - b[1]) for a, b in zip(left[:agreed], right[:agreed], strict=True))])
    return f"{int(same)} of {total} tokens before the first difference; log-probabilities within {off:.2g} nats"


def check_graph(bench: Bench, count: int, most: int = 3) -> None:
    """Captured steps against the same steps run one by one, and against the plain path."""
    ids = bench.prompts[0]
    cases = {
        "no edit": ((),),
        "ten clamps over five sites": (bench.ten,),
        "eight rows, seven steered": ((), *((one,) for one in bench.ten[:7])),
    }
    for name, rows in list(cases.items())[:most]:
        for seed in (None, 5):
            graph, _ = bench.ours(rows, ids, count, "ahead", seed)
            with without_graphs():
                steps, _ = bench.ours(rows, ids, count, "ahead", seed)
            plain, _ = bench.ours(rows, ids, count, "lean", seed)
            how = "greedy" if seed is None else "sampled"
            say(f"  {name}, {how}:")
            say(f"    to the same steps one by one: {'identical' if graph == steps else alike(graph, steps)}")
            say(f"    to the plain path: {alike(graph, plain)}")
            if len({name for name, _ in graph[0]}) < count // 4:
                say("    (few different tokens: this says little)")


def check_hugging_face(bench: Bench, count: int) -> None:
    """Greedy tokens against `generate`; where they part, how near the choice was."""
    for number, ids in enumerate(bench.prompts):
        out = bench.hugging_face(ids, 1, count, scores=True)
        theirs = out.sequences[0, len(ids) :].tolist()
        for way in ("ahead", "lean", "modules"):
            (ours,), _ = bench.ours(((),), ids, count, way)
            mine = [name for name, _ in ours]
            at = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
            if at is None:
                say(f"  prompt {number}, {way}: all {count} tokens the same")
                continue
            row = out.logits[at][0].float()
            gap = float(row[theirs[at]] - row[mine[at]])
            step = 2.0 ** (int(torch.frexp(row[theirs[at]])[1]) - 8)
            best = float(row.topk(2).values.diff().abs())
            say(
                f"  prompt {number}, {way}: the same up to token {at}, where Hugging Face prefers its own by {gap:.3g}"
                f" (one step of bfloat16 there is {step:.3g}; its best two are {best:.3g} apart)"
            )


def speed(bench: Bench, rows: int, until: float, compile_too: bool) -> dict[str, tuple[float, float, float]]:
    """name -> (tokens per second decoding, of the whole call, seconds until the second token), medians."""
    from gemloupe.site import Site

    count = bench.tokens
    ids = bench.prompts[0]
    default, one = ((),) * rows, ((bench.one[0],) if rows == 1 else (),) * rows
    if rows > 1:
        one = tuple((edit,) for edit in bench.ten[:rows])
    ten = (bench.ten,) * rows
    sites = tuple(Site.of(site) for site in SITES)

    def timed(edits: Any, way: str | None, sites: Any = ()) -> tuple[float, float, float]:
        made, at = bench.ours(edits, ids, count, way, None, sites)
        if any(len(row) != count for row in made):
            raise RuntimeError("a row ended early")
        return rows * (count - SKIPPED) / (at[count - 1] - at[SKIPPED - 1]), rows * count / at[-1], at[1] - at[0]

    def theirs() -> tuple[float, float, float]:
        took = []
        for n in (SKIPPED, count):
            began = time.perf_counter()
            bench.hugging_face(ids, rows, n)
            took.append(time.perf_counter() - began)
        return rows * (count - SKIPPED) / (took[1] - took[0]), rows * count / took[1], float("nan")

    runs: dict[str, Callable[[], tuple[float, float, float]]] = {
        "Hugging Face generate": theirs,
        "gemloupe, plain path": lambda: timed(default, "lean"),
        "gemloupe, CUDA graph": lambda: timed(default, "ahead"),
        "  one clamp in every row": lambda: timed(one, "ahead"),
        "  ten clamps over five sites in every row": lambda: timed(ten, "ahead"),
        f"  one clamp, five sites recorded ({WIDE} wide)": lambda: timed(one, "ahead", sites),
    }

    def with_compiling(edits: Any) -> tuple[float, float, float]:
        with compiled(True):
            return timed(edits, "ahead")

    if compile_too:
        runs["gemloupe, CUDA graph, compiled"] = lambda: with_compiling(default)
        runs["  one clamp in every row, compiled"] = lambda: with_compiling(one)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for attempt in range(3):  # the first is thrown away: it loads, compiles and fills caches
        for name, run in runs.items():
            if attempt > 1 and time.perf_counter() - started > until:
                continue
            if attempt and name not in found:
                continue
            try:
                took = run()
                found.setdefault(name, [])
                if attempt:
                    found[name].append(took)
            except Exception:
                found.pop(name, None)
                say(f"  {name.strip()} failed:")
                traceback.print_exc(file=sys.stdout)
    return {
        name: tuple(statistics.median(one[n] for one in took) for n in range(3))  # type: ignore[misc]
        for name, took in found.items()
        if took
    }


def section(name: str, work: Callable[[], None]) -> None:
    began = time.perf_counter()
    say(f"\n== {name}")
    try:
        work()
    except Exception:
        traceback.print_exc(file=sys.stdout)
    say(f"   ({time.perf_counter() - began:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=150, help="no repetition begins after so long")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes half a minute")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.device == "cpu" and not given.small:
        say("No GPU here. --device cpu --small goes through everything with a tiny model.")
        return
    warnings.simplefilter("ignore")
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    logging.basicConfig(level=logging.WARNING)
    name = torch.cuda.get_device_name() if given.device != "cpu" else "CPU"
    say(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}")
    made: list[Any] = []

    def make() -> None:
        made.append(random_model(given.device, torch.bfloat16, given.small))
        size = sum(weight.numel() for weight in made[0].parameters())
        say(f"  {size / 1e9:.2f} billion random weights in bfloat16")

    section("model", make)
    if not made:
        raise SystemExit(1)
    model = made[0]
    bench = Bench(model, given.device, given.tokens)
    checked = min(48, given.tokens)
    section("the graph's tokens, bfloat16", lambda: check_graph(bench, checked))
    section("greedy tokens beside Hugging Face's, bfloat16", lambda: check_hugging_face(bench, checked))
    tables: dict[int, dict[str, tuple[float, float, float]]] = {}
    for rows in (1, 8):

        def measure(rows: int = rows) -> None:
            late = given.seconds * (0.5 if rows == 1 else 1)
            tables[rows] = speed(bench, rows, late, not given.no_compile and given.device != "cpu")

        section(f"speed, {rows} row{'s' if rows > 1 else ''}", measure)

    def in_float32() -> None:
        model.to(torch.float32)
        check_hugging_face(bench, checked)
        check_graph(bench, checked, 2)

    section("the same in float32", in_float32)
    if given.device != "cpu":
        say(f"\nMost memory taken: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    for rows, table in tables.items():
        say(
            f"\n{name}, bfloat16, {rows} row{'s' if rows > 1 else ''} of {PROMPT} tokens and {given.tokens} new; "
            f"the goal is {GOALS[rows]} tokens per second.\n"
        )
        base = table.get("Hugging Face generate", (float("nan"),) * 3)
        say(f"{'':46}  decoding          whole call        ms to the")
        say(f"{'':46}  tok/s   to HF     tok/s   to HF     second token")
        for one, (decoding, whole, second) in table.items():
            say(
                f"{one:46}  {decoding:7.1f} x{decoding / base[0]:<6.2f}  {whole:7.1f} x{whole / base[1]:<6.2f}  "
                f"{second * 1e3:8.0f}"
            )


if __name__ == "__main__":
    main()
