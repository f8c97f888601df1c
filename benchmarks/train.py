"""What training costs: the pass over the model for all 54 sites, one site's training, and SAELens's trainer beside it.

    python benchmarks/train.py [--contexts 8] [--steps 60] [--site res.9] [--width 2048] [--threads 2]

Prints one table; asserts nothing. What is compared runs in turn, round after round, and medians are given, so that a
busy machine slows all rows alike. The text is Python's own documentation. The model is the built-in one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from gemloupe.load.model import LoadedModel, load_model
from gemloupe.run.capture import body, width_of
from gemloupe.site import Site
from gemloupe.train import activations, jumprelu
from gemloupe.train.recipe import Scaling, Settings, train
from gemloupe.train.text import pack

ROUNDS = 3


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(*works: Callable[[], Any]) -> list[float]:
    """Median seconds of each, taken in turn over the rounds; the first call of each is not counted."""
    for work in works:
        work()
    taken = [[seconds(work) for work in works] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def resident() -> float:
    """MB of memory the process holds now; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def row(what: str, speed: float | None, ratio: str = "") -> None:
    print(f"{what:<64}{'' if speed is None else f'{speed:>12,.0f}'}{ratio:>18}", flush=True)


def capture(loaded: LoadedModel, tokens: np.ndarray, batch: int) -> None:
    depth = len(body(loaded.model).layers)
    sites = [Site(kind, layer) for layer in range(depth) for kind in ("att", "mlp", "res")]
    ids = torch.from_numpy(tokens.astype(np.int64)).to(loaded.device)

    def bare() -> None:
        with torch.inference_mode():
            for some in ids.split(batch):
                body(loaded.model)(some, use_cache=False)

    def collected() -> None:
        with tempfile.TemporaryDirectory() as folder:
            activations.collect(loaded.model, tokens, sites, folder, special=sorted(loaded.special), batch=batch)

    plain, ours = in_turn(bare, collected)
    row("body of the model, forward", tokens.size / plain)
    row(f"activations of {len(sites)} sites onto the disk", tokens.size / ours, f"{plain / ours:.2f}")


def timed_training(rows: torch.Tensor, site: Site, settings: Settings) -> tuple[float, list[float]]:
    """(tokens a second, MB resident at each report), without what comes before the first report."""
    seen: list[tuple[float, float, float]] = []
    train(
        rows,
        rows[:2048],
        site,
        settings,
        progress=lambda report: seen.append((time.perf_counter(), report["tokens"], resident())),
    )
    return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]), [memory for _, _, memory in seen]


def batches(rows: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    while True:
        for order in torch.randperm(len(rows), generator=random).split(size):
            if len(order) == size:
                yield rows[order]


def sae_lens_training(rows: torch.Tensor, settings: Settings, steps: int) -> float:
    """Tokens a second of SAELens's own trainer: JumpReLU, its quadratic penalty, the same rows, width and batch."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    x = Scaling.measure(rows)(rows)
    sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=x.shape[1],
            d_sae=settings.width,
            device="cpu",
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=settings.l0,
            l0_coefficient=settings.penalty,
            jumprelu_bandwidth=settings.bandwidth,
        )
    )
    marks: list[float] = []

    def timed() -> Iterator[torch.Tensor]:
        for batch in batches(x, settings.batch):
            marks.append(time.perf_counter())
            yield batch

    how = SAETrainerConfig(
        total_training_samples=steps * settings.batch,
        train_batch_size_samples=settings.batch,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate / 10,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        SAETrainer(cfg=how, sae=sae, data_provider=timed()).fit()
    return (len(marks) - 2) * settings.batch / (marks[-1] - marks[1])


def products(rows: torch.Tensor, settings: Settings) -> dict[str, float]:
    """Tokens a second of the matrix products alone, on tensors of the size that training has.

    'own': what this trainer multiplies, in the types in which it does: one dense product of all features, and sums and
    products over the few entries that are active (at `settings.l0`). 'first': only that dense product. 'dense': the
    five products of a trainer that multiplies zeros out too (features, output, and the gradients of features, encoder
    and decoder), in float32 or in the type of the one here.
    """
    size, d_in, width = settings.batch, rows.shape[1], settings.width
    dtype = getattr(torch, settings.dtype)
    x, weights = torch.randn(size, d_in), torch.randn(width, d_in)
    low_x, low_weights, low_acts = x.to(dtype), weights.to(dtype), torch.randn(size, width).to(dtype)
    acts = torch.randn(size, width)
    token = torch.arange(size).repeat_interleave(round(settings.l0))
    feature = torch.randint(width, token.shape)
    value = torch.rand(token.shape)
    by_token = torch.searchsorted(token, torch.arange(size + 1))
    order = feature.argsort(stable=True)
    by_feature = torch.searchsorted(feature[order], torch.arange(width + 1))

    def first() -> None:
        low_x @ low_weights.T

    def own() -> None:
        first()
        jumprelu.sums(weights, feature, value, by_token)
        jumprelu.products(x, weights, token, feature, by_token)
        for _ in range(2):
            jumprelu.sums(x, token[order], value[order], by_feature)

    def dense(x: torch.Tensor, weights: torch.Tensor, acts: torch.Tensor) -> None:
        x @ weights.T, acts @ weights, x @ weights.T, acts.T @ x, acts.T @ x

    works = {
        "own": own,
        "first": first,
        "dense": lambda: dense(low_x, low_weights, low_acts),
        "dense float32": lambda: dense(x, weights, acts),
    }
    return dict(zip(works, (size / taken for taken in in_turn(*works.values())), strict=True))


def fitting(rows: torch.Tensor, site: Site, settings: Settings, steps: int) -> None:
    with torch.inference_mode():
        floor = products(rows, settings)
    ours, theirs, memory = [], [], []
    for _ in range(ROUNDS):
        speed, held = timed_training(rows, site, settings)
        ours.append(speed)
        theirs.append(sae_lens_training(rows, settings, max(4, steps // 4)))
        memory.append(held)
    speed, other = statistics.median(ours), statistics.median(theirs)
    size = f"{settings.batch} x {rows.shape[1]} x {settings.width}"
    row(f"training {site}", speed)
    row("    over its own matrix products, and nothing else", floor["own"], f"{speed / floor['own']:.2f}")
    row(f"    over one dense {settings.dtype} product, {size}", floor["first"], f"{speed / floor['first']:.2f}")
    row(f"    over a dense trainer's five, {settings.dtype}", floor["dense"], f"{speed / floor['dense']:.2f}")
    row("    over a dense trainer's five, float32", floor["dense float32"], f"{speed / floor['dense float32']:.2f}")
    row("SAELens's trainer: same rows, width and batch", other, f"{other / floor['dense float32']:.2f} of dense")
    row("    training here over SAELens's", None, f"{speed / other:.2f}")
    held = memory[-1]
    row(
        "memory at the first, middle and last report, MB",
        None,
        " ".join(f"{held[i]:,.0f}" for i in (0, len(held) // 2, -1)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=8, help="of 256 tokens, for the pass over the model")
    parser.add_argument("--rows", type=int, default=64, help="contexts whose activations the site is trained on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--site", default="res.9")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    loaded = load_model(device="cpu", dtype="float32")
    tokens = pack(topics.values(), loaded.tokenizer, bos=loaded.bos)
    print(f"{loaded.id}, {torch.get_num_threads()} threads; tokens a second, medians of {ROUNDS} rounds")
    print(f"{'':<64}{'tokens/s':>12}{'ratio':>18}")
    capture(loaded, tokens[: asked.contexts], 8)
    site = Site.of(asked.site)
    width_of(loaded.model, site)  # refuses a site that the model does not have
    with tempfile.TemporaryDirectory() as folder:
        activations.collect(loaded.model, tokens[: asked.rows], [site], folder, special=sorted(loaded.special))
        rows = activations.load(folder, site).float().clone()
    used = len(rows) // 1024 * 1024
    epochs = asked.steps * 1024 / used
    fitting(rows, site, Settings(width=asked.width, epochs=epochs, report_every=10), asked.steps)


if __name__ == "__main__":
    main()
