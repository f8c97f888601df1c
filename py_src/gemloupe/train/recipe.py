"""From collected activations to an SAE: settings, scaling, the training loop, checkpoints.

What Gemma Scope's recipe needed to start at all on a small Gemma: tokens far longer than the others ("sinks") are left
out, the mean is subtracted, and the few dimensions that carry most of the variance are shrunk. All of that is folded
back, so that the finished SAE reads and writes raw activations and has unit decoder rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import refuse
from ..load.artifact import read_safetensors
from ..load.cache import write_atomically
from ..load.sae import Sae
from ..site import Site
from . import jumprelu
from .jumprelu import Parameters

Progress = Callable[[dict[str, float]], None]

_SAMPLE = 65536  # rows from which the scaling is measured
_BLOCK = 65536
_LEAST = 8  # batches


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, besides the activations. Shares are of the whole run."""

    width: int = 2048
    l0: float = 40.0
    epochs: float = 3.0
    batch: int = 1024
    seed: int = 0
    learning_rate: float = 1.5e-3
    threshold_rate: float = 0.3  # thresholds learn this much slower, or the penalties make them swing
    warm_up: float = 0.02  # share over which the learning rate rises
    decay: float = 0.8  # share over which it falls to zero
    penalty: float = 0.05
    penalty_warm_up: float = 0.2
    bandwidth: float = 0.03
    dense: float = 0.04  # density above which a feature pays dense_penalty; about twice l0 / width
    dense_penalty: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.999
    outlier: float = 3.0  # tokens longer than this many median norms are left out
    massive: float = 4.0  # dimensions whose deviation is above this many medians are shrunk to it
    dead_after: int = 200_000  # tokens without firing
    revive_every: int = 100  # steps; 0 never
    revive_until: float = 0.6  # share of the run after which dead features are left alone
    dtype: str = "bfloat16"  # of the one large matrix product
    report_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("batch", 1), ("report_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise refuse("count-unreadable", name=name, given=getattr(self, name), least=least)


@dataclass(frozen=True)
class Scaling:
    """x -> (x - mean) * gain, after which E|x|^2 = 1; rows with a norm above `cut` are outliers."""

    mean: torch.Tensor
    gain: torch.Tensor
    cut: float

    @classmethod
    def measure(cls, rows: torch.Tensor, *, outlier: float = 3.0, massive: float = 4.0) -> Scaling:
        """From a sample of raw activations [token, d_in]."""
        rows = rows.float()
        norms = rows.norm(dim=1)
        cut = float(outlier * norms.median())
        rows = rows[norms <= cut]
        mean = rows.mean(0)
        rows = rows - mean
        spread = rows.std(0)
        gain = (massive * spread.median() / spread.clamp_min(1e-12)).clamp(max=1.0)
        gain = gain / (rows * gain).pow(2).sum(1).mean().sqrt()
        return cls(mean, gain, cut)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows.float() - self.mean).mul_(self.gain)

    def fold(self, p: Parameters, site: Site) -> Sae:
        """`p`, which lives in the scaled space, as an SAE for raw activations with unit decoder rows.

        Its activations are those of `p` times the length of the raw decoder row; the reconstruction is the same.
        """
        decoder = p.decoder / self.gain
        length = decoder.norm(dim=1)
        encoder = p.encoder * self.gain
        b_enc = p.b_enc - p.encoder @ p.b_dec - encoder @ self.mean
        return Sae(
            site,
            encoder=encoder * length[:, None],
            b_enc=b_enc * length,
            threshold=p.threshold * length,
            decoder=decoder / length[:, None],
            b_dec=p.b_dec / self.gain + self.mean,
        )


def train(
    activations: torch.Tensor,
    held_out: torch.Tensor,
    site: Site | str,
    settings: Settings | None = None,
    *,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Sae:
    """An SAE for raw `activations` [token, d_in] (float or bfloat16, may be mapped from disk); the figures come from
    `held_out`, which it never learns from.

    With `checkpoint`, a folder, the state is saved there, and the same call goes on from it after a kill, to the same
    result bit for bit (on the same machine, with as many threads); another plan is refused. `progress` gets step, of,
    tokens, loss, l0, fvu and held_out_l0 (held-out, scaled space), dead, tokens_per_second, seconds_left.
    """
    site, settings = Site.of(site), settings or Settings()
    with torch.inference_mode():
        return _Run(activations, held_out, site, settings, None if checkpoint is None else Path(checkpoint)).go(
            progress
        )


class _Run:
    """One training. There is no hidden random state: every draw is seeded by the settings and where it happens."""

    def __init__(
        self, rows: torch.Tensor, held_out: torch.Tensor, site: Site, settings: Settings, folder: Path | None
    ) -> None:
        self.rows, self.site, self.settings, self.folder = rows, site, settings, folder
        self._check_rows()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_plan(folder / "plan.json")
        sample = rows[self._draw("sample", len(rows))[:_SAMPLE].sort().values]
        self.scaling = Scaling.measure(sample, outlier=settings.outlier, massive=settings.massive)
        self.kept = self._inliers(rows)
        self.batches = len(self.kept) // settings.batch
        if self.batches < _LEAST:
            raise refuse("training-no-text", tokens=len(self.kept), least=_LEAST * settings.batch)
        self.steps = max(1, round(settings.epochs * self.batches))
        spread = held_out[:: max(1, len(held_out) // 8192)]
        self.held_out = self.scaling(spread[spread.float().norm(dim=1) <= self.scaling.cut])
        self.variance = float((self.held_out - self.held_out.mean(0)).pow(2).sum(1).mean())
        self.parameters = jumprelu.initial(
            self.scaling(sample[sample.float().norm(dim=1) <= self.scaling.cut]),
            settings.width,
            settings.l0,
            settings.seed,
        )
        self.silent = torch.zeros(settings.width, dtype=torch.int64)  # tokens since each feature last fired
        self.done = 0

    def _draw(self, purpose: str, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(self._seed(purpose)))

    def _seed(self, purpose: str) -> int:
        digest = hashlib.sha256(f"{self.settings.seed}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def _check_rows(self) -> None:
        count = len(self.rows)
        if count < _LEAST * self.settings.batch:
            raise refuse("training-no-text", tokens=count, least=_LEAST * self.settings.batch)
        some = self.rows[:: max(1, count // 4096)].float()
        for row in (~torch.isfinite(some).all(1)).nonzero():
            raise refuse("not-finite", site=self.site, position=int(row) * max(1, count // 4096))
        distinct = len(torch.unique(some, dim=0)) / len(some)
        if distinct < 0.5:
            raise refuse("training-repeated", share=f"{1 - distinct:.0%}")

    def _inliers(self, rows: torch.Tensor) -> torch.Tensor:
        kept = []
        for start in range(0, len(rows), _BLOCK):
            norms = rows[start : start + _BLOCK].float().norm(dim=1)
            if not torch.isfinite(norms).all():
                raise refuse("not-finite", site=self.site, position=start + int((~torch.isfinite(norms)).nonzero()[0]))
            kept.append((norms <= self.scaling.cut).nonzero()[:, 0] + start)
        return torch.cat(kept)

    def _plan(self) -> dict[str, Any]:
        some = self.rows[:: max(1, len(self.rows) // 1024)].to(torch.float32).contiguous()
        data = hashlib.sha256(some.numpy().tobytes()).hexdigest()
        return {"site": str(self.site), "rows": list(self.rows.shape), "data": data, **asdict(self.settings)}

    def _check_plan(self, file: Path) -> None:
        plan = self._plan()
        if not file.exists():
            write_atomically(file, json.dumps(plan, indent=1).encode())
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        for what, ours in plan.items():
            if before.get(what) != ours:
                raise refuse("training-other-plan", file=file, what=what, theirs=before.get(what), ours=ours)

    def go(self, progress: Progress | None) -> Sae:
        settings, p = self.settings, self.parameters
        named = p.named()
        for tensor in named.values():
            tensor.grad = torch.zeros_like(tensor)
        adam = torch.optim.Adam(
            [{"params": [tensor]} for tensor in named.values()],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )
        self._resume(adam)
        started, first = time.monotonic(), self.done
        for x in self._inputs(first):
            for name, group in zip(named, adam.param_groups, strict=True):
                slower = settings.threshold_rate if name == "threshold" else 1.0
                group["lr"] = settings.learning_rate * slower * self._rate()
            ramp = min(1.0, self.done / max(1.0, settings.penalty_warm_up * self.steps))
            result = jumprelu.step(
                p,
                x,
                penalty=settings.penalty * ramp,
                l0=settings.l0,
                bandwidth=settings.bandwidth,
                dense=settings.dense,
                dense_penalty=settings.dense_penalty * ramp,
                dtype=getattr(torch, settings.dtype),
            )
            if not math.isfinite(result.loss):
                saved = self.folder / "checkpoint.safetensors" if self.folder is not None else None
                last = saved if saved is not None and saved.exists() else "none (no checkpoint was saved)"
                raise refuse("training-diverged", step=self.done, site=self.site, loss=result.loss, checkpoint=last)
            jumprelu.project(result.gradients["decoder"], p.decoder)
            for name, tensor in named.items():
                tensor.grad = result.gradients[name]
            adam.step()
            jumprelu.constrain(p)
            self.silent = torch.where(result.fired > 0, 0, self.silent + settings.batch)
            self._revive(adam, x, result)
            self.done += 1
            if self.done % settings.checkpoint_every == 0 or self.done == self.steps:
                self._save(adam)
            if progress is not None and (self.done % settings.report_every == 0 or self.done == self.steps):
                speed = (self.done - first) * settings.batch / (time.monotonic() - started)
                progress(
                    {
                        "step": self.done,
                        "of": self.steps,
                        "tokens": self.done * settings.batch,
                        "loss": result.loss,
                        "l0": result.l0,
                        **self._figures(),
                        "dead": float((self.silent > settings.dead_after).float().mean()),
                        "tokens_per_second": speed,
                        "seconds_left": (self.steps - self.done) * settings.batch / speed,
                    }
                )
        return self.scaling.fold(p, self.site)

    def _inputs(self, first: int) -> Iterator[torch.Tensor]:
        """Scaled batches from step `first` on; every epoch is one permutation of all rows."""
        size, order, epoch = self.settings.batch, torch.empty(0, dtype=torch.int64), -1
        for step in range(first, self.steps):
            if step // self.batches != epoch:
                epoch = step // self.batches
                order = self.kept[self._draw(f"epoch {epoch}", len(self.kept))]
            at = step % self.batches * size
            # ascending rows: one sweep through the mapped file
            yield self.scaling(self.rows[order[at : at + size].sort().values])

    def _rate(self) -> float:
        left = (self.steps - self.done) / max(1.0, self.settings.decay * self.steps)
        rise = (self.done + 1) / max(1.0, self.settings.warm_up * self.steps)
        return min(1.0, left, rise)

    def _revive(self, adam: torch.optim.Adam, x: torch.Tensor, result: jumprelu.Step) -> None:
        settings = self.settings
        if not settings.revive_every or (self.done + 1) % settings.revive_every:
            return
        if self.done > settings.revive_until * self.steps:
            return
        dead = (self.silent > settings.dead_after).nonzero()[:, 0]
        if len(dead) == 0:
            return
        jumprelu.revive(self.parameters, dead, x, result.residual, settings.l0, self._seed(f"revive {self.done}"))
        for name, tensor in self.parameters.named().items():
            if name != "b_dec":
                for moment in ("exp_avg", "exp_avg_sq"):
                    adam.state[tensor][moment][dead] = 0.0
        self.silent[dead] = 0

    def _figures(self) -> dict[str, float]:
        error = active = 0.0
        for x in self.held_out.split(2048):
            acts = self.parameters.encode(x)
            error += float((self.parameters.decode(acts) - x).pow(2).sum())
            active += int(acts.count_nonzero())
        count = len(self.held_out)
        return {"fvu": error / count / self.variance, "held_out_l0": active / count}

    def _save(self, adam: torch.optim.Adam) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save

        named = self.parameters.named()
        if not all(torch.isfinite(tensor).all() for tensor in named.values()):
            return  # the last good checkpoint stays
        state = {"silent": self.silent, "done": torch.tensor(self.done)}
        for name, tensor in named.items():
            state[name] = tensor
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{name}.{moment}"] = adam.state[tensor][moment]
        write_atomically(self.folder / "checkpoint.safetensors", save({k: v.contiguous() for k, v in state.items()}))

    def _resume(self, adam: torch.optim.Adam) -> None:
        file = None if self.folder is None else self.folder / "checkpoint.safetensors"
        if file is None or not file.exists():
            return
        named = self.parameters.named()
        moments = [f"{name}.{moment}" for name in named for moment in ("exp_avg", "exp_avg_sq")]
        state = read_safetensors(file, [*named, *moments, "silent", "done"])
        self.silent, self.done = state["silent"], int(state["done"])
        for name, tensor in named.items():
            tensor.copy_(state[name])
            adam.state[tensor] = {
                "step": torch.tensor(float(self.done)),
                "exp_avg": state[f"{name}.exp_avg"],
                "exp_avg_sq": state[f"{name}.exp_avg_sq"],
            }
