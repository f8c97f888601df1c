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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

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
_HELD_OUT = 8192  # rows that the figures come from
_LEAST = 8  # batches
_MOMENTS = ("exp_avg", "exp_avg_sq")
_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Start:
    """Where a training begins: raw encoder and decoder rows [width, d_in] of another SAE, and how often each fires."""

    name: str
    encoder: torch.Tensor
    decoder: torch.Tensor
    density: torch.Tensor


@dataclass(frozen=True, eq=False)
class Continued:
    """A finished SAE of the same site and width that is trained on: it begins as exactly that SAE."""

    name: str
    sae: Sae


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

    def unfold(self, sae: Sae) -> Parameters:
        """The inverse of `fold`: `sae` in the scaled space."""
        sae = sae.to(self.gain.device)
        decoder = sae.decoder * self.gain
        length = 1 / decoder.norm(dim=1).clamp_min(1e-12)
        encoder = sae.encoder / self.gain / length[:, None]
        b_dec = (sae.b_dec - self.mean) * self.gain
        return Parameters(
            encoder=encoder,
            b_enc=sae.b_enc / length + encoder @ b_dec + (encoder * self.gain) @ self.mean,
            threshold=(sae.threshold / length).clamp_min(jumprelu.LOWEST_THRESHOLD),
            decoder=decoder * length[:, None],
            b_dec=b_dec,
        )


def train(
    activations: torch.Tensor,
    held_out: torch.Tensor,
    site: Site | str,
    settings: Settings | None = None,
    *,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    part: int = 0,
    parts: int = 1,
    start: Start | Continued | None = None,
    device: torch.device | str | None = None,
) -> Sae:
    """An SAE for raw `activations` [token, d_in] (float or bfloat16, may be mapped from disk); the figures come from
    `held_out`, which it never learns from.

    With `checkpoint`, a folder, the state is saved there, and the same call goes on from it after a kill, to the same
    result bit for bit (on the same machine, with as many threads); another plan is refused. `progress` gets step, of,
    tokens, loss, l0, fvu and held_out_l0 (held-out, scaled space), dead, tokens_per_second, seconds_left.

    Text whose activations do not fit on the disk comes in `parts` calls that share a checkpoint, each with other
    activations: `part` 0 first, which also fixes the scaling and how many steps each part takes. The SAE returned is
    finished after the last part. `start` begins from another SAE instead of from random directions. `device` is where
    it is computed (by default where the activations are); the SAE returned is on the host.
    """
    with torch.inference_mode():
        return Run(
            activations, held_out, site, settings, checkpoint=checkpoint, part=part, parts=parts, start=start,
            device=device,
        ).go(progress)  # fmt: skip


def started_from(checkpoint: str | Path, name: str, memo: str | Path) -> Start:
    """Where another training is after its first part, as a start. Kept in the folder `memo`, because that goes on."""
    from safetensors.torch import save

    memo = Path(memo)
    memo.mkdir(parents=True, exist_ok=True)
    file = memo / f"{name}.safetensors"
    if not file.exists():
        saved = _saved(Path(checkpoint))
        gain = saved["scaling.gain"]
        start = {
            "encoder": saved["encoder"] * gain,
            "decoder": saved["decoder"] / gain,
            "density": saved["density"],
        }
        write_atomically(file, save({key: value.contiguous() for key, value in start.items()}))
    return Start(name, **read_safetensors(file, ["encoder", "decoder", "density"]))


def _saved(folder: Path | None) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, or none."""
    if folder is None or not (folder / _CHECKPOINT).exists():
        return {}
    named = [field.name for field in fields(Parameters)]
    moments = [f"{name}.{moment}" for name in named for moment in _MOMENTS]
    scaling = ["scaling.mean", "scaling.gain", "scaling.cut"]
    return read_safetensors(folder / _CHECKPOINT, [*named, *moments, *scaling, "silent", "done", "each", "density"])


class Run:
    """One training; `train` is its ordinary use. Make and use it in inference mode.

    There is no hidden random state: every draw is seeded by the settings and where it happens, and made on the host, so
    that a seed means the same on every device.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        held_out: torch.Tensor,
        site: Site | str,
        settings: Settings | None = None,
        *,
        checkpoint: str | Path | None = None,
        part: int = 0,
        parts: int = 1,
        start: Start | Continued | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.site, self.settings = site, settings = Site.of(site), settings or Settings()
        self.folder = folder = None if checkpoint is None else Path(checkpoint)
        if not 0 <= part < parts:
            raise refuse("count-unreadable", name="part", given=part, least=0)
        if part and (folder is None or not (folder / _CHECKPOINT).exists()):
            raise refuse("training-part-missing", part=part, site=site, before=part - 1)
        self.rows, self.part, self.parts = rows, part, parts
        self.device = rows.device if device is None else torch.device(device)
        self._check_rows()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_plan(folder / "plan.json", parts, start)
        saved = {name: tensor.to(self.device) for name, tensor in _saved(folder).items()}
        sample = self._rows(self._draw("sample", len(rows))[:_SAMPLE].sort().values)
        if saved:
            self.scaling = Scaling(saved["scaling.mean"], saved["scaling.gain"], float(saved["scaling.cut"]))
        else:
            self.scaling = Scaling.measure(sample, outlier=settings.outlier, massive=settings.massive)
        self.kept = self._inliers(rows)
        self.batches = len(self.kept) // settings.batch
        if self.batches < _LEAST:
            raise refuse("training-no-text", tokens=len(self.kept), least=_LEAST * settings.batch)
        self.take(int(saved["each"]) if saved else max(1, round(settings.epochs * self.batches)))
        spread = held_out[:: max(1, len(held_out) // _HELD_OUT)].to(self.device)
        self.held_out = self.scaling(spread[spread.float().norm(dim=1) <= self.scaling.cut])
        self.variance = float((self.held_out - self.held_out.mean(0)).pow(2).sum(1).mean())
        self.silent = torch.zeros(settings.width, dtype=torch.int64, device=self.device)  # tokens since a feature fired
        self.done = 0
        inside = self.scaling(sample[sample.float().norm(dim=1) <= self.scaling.cut])
        if saved:
            self.parameters = Parameters(**{field.name: saved[field.name] for field in fields(Parameters)})
        elif isinstance(start, Continued):
            if start.sae.encoder.shape != (settings.width, rows.shape[1]):
                raise refuse(
                    "training-start-shape",
                    start=start.name,
                    theirs=tuple(start.sae.encoder.shape),
                    site=site,
                    ours=(settings.width, rows.shape[1]),
                )
            self.parameters = self.scaling.unfold(start.sae)
        elif start is not None:
            gain = self.scaling.gain
            encoder, decoder, density = (one.to(self.device) for one in (start.encoder, start.decoder, start.density))
            self.parameters = jumprelu.carried(inside, encoder / gain, decoder * gain, density)
        else:
            self.parameters = jumprelu.initial(inside, settings.width, settings.l0, settings.seed)
        self.moments = {
            name: {moment: saved.get(f"{name}.{moment}", torch.zeros_like(tensor)) for moment in _MOMENTS}
            for name, tensor in self.parameters.named().items()
        }
        if saved:
            self.silent, self.done = saved["silent"], int(saved["done"])
            if not self.first <= self.done <= self.last:
                raise refuse("training-part-missing", part=part, site=site, before=(self.done - 1) // self.each)

    def take(self, steps: int) -> None:
        """Each part is `steps` steps long, less than it would be by itself, say, to keep pace with other trainings."""
        self.each, self.steps = steps, self.parts * steps
        self.first, self.last = self.part * steps, (self.part + 1) * steps

    def turn(self, rows: torch.Tensor, part: int) -> None:
        """The activations of the next part in place of this one's. All else stays in memory, where `train` would come
        back to it by the checkpoint.
        """
        if part != self.part + 1 or self.done != self.last:
            raise refuse("training-part-missing", part=part, site=self.site, before=part - 1)
        self.rows, self.part = rows, part
        self._check_rows()
        self.kept = self._inliers(rows)
        self.batches = len(self.kept) // self.settings.batch
        if self.batches < _LEAST:
            raise refuse("training-no-text", tokens=len(self.kept), least=_LEAST * self.settings.batch)
        self.take(self.each)

    def _rows(self, order: torch.Tensor) -> torch.Tensor:
        """Raw activations of these (host) indices, on the device."""
        return self.rows[order.to(self.rows.device)].to(self.device)

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
            norms = rows[start : start + _BLOCK].to(self.device).float().norm(dim=1).cpu()
            if not torch.isfinite(norms).all():
                raise refuse("not-finite", site=self.site, position=start + int((~torch.isfinite(norms)).nonzero()[0]))
            kept.append((norms <= self.scaling.cut).nonzero()[:, 0] + start)
        return torch.cat(kept)

    def _plan(self) -> dict[str, Any]:
        some = self.rows[:: max(1, len(self.rows) // 1024)].cpu().to(torch.float32).contiguous()
        data = hashlib.sha256(some.numpy().tobytes()).hexdigest()
        return {"site": str(self.site), "rows": list(self.rows.shape), "data": data, **asdict(self.settings)}

    def _check_plan(self, file: Path, parts: int, start: Start | Continued | None) -> None:
        plan = {**self._plan(), "parts": parts, "start": None if start is None else start.name}
        here = {what: plan.pop(what) for what in ("rows", "data")}
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {**plan, "seen": {}}
        for what, ours in plan.items():
            if before.get(what) != ours:
                raise refuse("training-other-plan", file=file, what=what, theirs=before.get(what), ours=ours)
        seen = before["seen"].setdefault(str(self.part), here)
        for what, ours in here.items():
            if seen.get(what) != ours:
                raise refuse("training-other-plan", file=file, what=what, theirs=seen.get(what), ours=ours)
        write_atomically(file, json.dumps(before, indent=1).encode())

    def go(self, progress: Progress | None) -> Sae:
        settings, p = self.settings, self.parameters
        optimizer = Optimizer(settings, p, self.moments, self.done)
        started, first = time.monotonic(), self.done
        for x in self.inputs():
            result = jumprelu.step(
                p,
                x,
                l0=settings.l0,
                dense=settings.dense,
                **self.penalties(),
                bandwidth=settings.bandwidth,
                dtype=getattr(torch, settings.dtype),
            )
            if not math.isfinite(result.loss):
                self.stop(self.done, result.loss)
            optimizer.step(result.gradients, self.rate())
            self.silent.add_(settings.batch).masked_fill_(result.fired > 0, 0)
            if self.reviving():
                self.revive(x, result.residual)
            self.done += 1
            if self.done % settings.checkpoint_every == 0 or self.done == self.last:
                self.save()
            if progress is not None and (self.done % settings.report_every == 0 or self.done == self.last):
                speed = (self.done - first) * settings.batch / (time.monotonic() - started)
                progress(self.report(result.loss, result.l0, speed))
        return self.finished()

    def finished(self) -> Sae:
        """The SAE as it is now, for raw activations, on the host."""
        return self.scaling.fold(self.parameters, self.site).to("cpu")

    def report(self, loss: float, l0: float, speed: float) -> dict[str, float]:
        return {
            "step": self.done,
            "of": self.steps,
            "tokens": self.done * self.settings.batch,
            "loss": loss,
            "l0": l0,
            **self._figures(),
            "dead": float((self.silent > self.settings.dead_after).float().mean()),
            "tokens_per_second": speed,
            "seconds_left": (self.last - self.done) * self.settings.batch / speed,
        }

    def stop(self, step: int, loss: float) -> NoReturn:
        """The refusal of a loss that is not finite."""
        saved = self.folder / _CHECKPOINT if self.folder is not None else None
        last = saved if saved is not None and saved.exists() else "none (no checkpoint was saved)"
        raise refuse("training-diverged", step=step, site=self.site, loss=loss, checkpoint=last)

    def penalties(self) -> dict[str, float]:
        """penalty and dense_penalty of this step, which rise over the first share of the run."""
        ramp = min(1.0, self.done / max(1.0, self.settings.penalty_warm_up * self.steps))
        return {"penalty": self.settings.penalty * ramp, "dense_penalty": self.settings.dense_penalty * ramp}

    def inputs(self) -> Iterator[torch.Tensor]:
        """Scaled batches from here to the end of this part; every epoch is one permutation of all its rows."""
        size, order, epoch = self.settings.batch, torch.empty(0, dtype=torch.int64), -1
        for step in range(self.done, self.last):
            here = step - self.first
            if here // self.batches != epoch:
                epoch = here // self.batches
                order = self.kept[self._draw(f"part {self.part} epoch {epoch}", len(self.kept))].to(self.rows.device)
            at = here % self.batches * size
            some = order[at : at + size]
            if some.device.type == "cpu":
                some = some.sort().values  # one sweep through the mapped file
            yield self.scaling(self.rows[some].to(self.device))

    def rate(self) -> float:
        """The learning rate of this step, as a share of the setting."""
        left = (self.steps - self.done) / max(1.0, self.settings.decay * self.steps)
        rise = (self.done + 1) / max(1.0, self.settings.warm_up * self.steps)
        return min(1.0, left, rise)

    def reviving(self) -> bool:
        """Whether dead features are looked for after this step."""
        every = self.settings.revive_every
        return bool(every) and (self.done + 1) % every == 0 and self.done <= self.settings.revive_until * self.steps

    def revive(self, x: torch.Tensor, residual: torch.Tensor) -> None:
        """Points dead features at the worst rebuilt tokens of `x`, and forgets their moments."""
        settings = self.settings
        dead = (self.silent > settings.dead_after).nonzero()[:, 0]
        if len(dead) == 0:
            return
        jumprelu.revive(self.parameters, dead, x, residual, settings.l0, self._seed(f"revive {self.done}"))
        for name, moments in self.moments.items():
            if name != "b_dec":
                for moment in moments.values():
                    moment[dead] = 0.0
        self.silent[dead] = 0

    def _density(self) -> torch.Tensor:
        """Share of held-out tokens on which each feature fires."""
        fired = torch.zeros(self.settings.width, device=self.device)
        for x in self.held_out.split(2048):
            fired += (self.parameters.encode(x) > 0).sum(0)
        return fired / len(self.held_out)

    def _figures(self) -> dict[str, float]:
        """fvu and held_out_l0; before the last step from a quarter of the held-out rows, or this would take a tenth of
        the time."""
        error = active = 0.0
        some = self.held_out if self.done == self.steps else self.held_out[::4]
        for x in some.split(2048):
            acts = self.parameters.encode(x)
            error += float((self.parameters.decode(acts) - x).pow(2).sum())
            active += int(acts.count_nonzero())
        return {"fvu": error / len(some) / self.variance, "held_out_l0": active / len(some)}

    def save(self) -> None:
        """Writes the checkpoint, unless a parameter is no longer finite: then the last good one stays."""
        if self.folder is None:
            return
        from safetensors.torch import save

        named = self.parameters.named()
        if not all(torch.isfinite(tensor).all() for tensor in named.values()):
            return
        state = {
            "silent": self.silent,
            "done": torch.tensor(self.done),
            "density": self._density(),
            "each": torch.tensor(self.each),
            "scaling.mean": self.scaling.mean,
            "scaling.gain": self.scaling.gain,
            "scaling.cut": torch.tensor(self.scaling.cut, dtype=torch.float64),
        }
        for name, tensor in named.items():
            state[name] = tensor
            for moment, value in self.moments[name].items():
                state[f"{name}.{moment}"] = value
        write_atomically(self.folder / _CHECKPOINT, save({k: v.cpu().contiguous() for k, v in state.items()}))


class Optimizer:
    """Adam over the parameters of one SAE or of a stack of them, then the constraints; the moments are the caller's."""

    def __init__(
        self, settings: Settings, p: Parameters, moments: dict[str, dict[str, torch.Tensor]], done: int
    ) -> None:
        self.settings, self.parameters, self.named = settings, p, p.named()
        for tensor in self.named.values():
            tensor.grad = torch.zeros_like(tensor)
        self.adam = torch.optim.Adam(
            [{"params": [tensor]} for tensor in self.named.values()],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )
        for name, tensor in self.named.items():
            self.adam.state[tensor] = {"step": torch.tensor(float(done), device=tensor.device), **moments[name]}

    def step(self, gradients: dict[str, torch.Tensor], rate: float) -> None:
        """`rate` is the share of the learning rate; the decoder's gradient is projected in place."""
        jumprelu.project(gradients["decoder"], self.parameters.decoder)
        for (name, tensor), group in zip(self.named.items(), self.adam.param_groups, strict=True):
            slower = self.settings.threshold_rate if name == "threshold" else 1.0
            group["lr"] = self.settings.learning_rate * slower * rate
            tensor.grad = gradients[name]
        self.adam.step()
        jumprelu.constrain(self.parameters)
