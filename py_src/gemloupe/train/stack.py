"""Many trainings of one shape, stepped together: on an accelerator one SAE of 2,048 features is too small to fill it.

The SAEs become one tensor with a first dimension, so that a step costs as many calls for twenty of them as for one.
Each is the SAE that `recipe.train` makes of the same activations, settings and seed, up to rounding and to the number
of steps: a stack keeps pace with the site that has fewest rows left after its outliers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch

from ..errors import refuse
from ..load.sae import Sae
from ..site import Site
from . import jumprelu
from .jumprelu import Parameters
from .recipe import Optimizer, Run

Progress = Callable[[Site, dict[str, float]], None]

_OWN = ("l0", "dense", "seed")  # settings in which the SAEs of a stack may differ
_CHECK = 50  # steps between two looks at the losses, each of which waits for the device


class Stack:
    """Runs with the same width, input width and part, all on one device. Make and use it in inference mode.

    From then on the runs' parameters, moments and counts are views of this stack's tensors.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        first = self.runs[0]
        ours = _shape(first)
        for run in self.runs[1:]:
            for what, theirs in _shape(run).items():
                if theirs != ours[what]:
                    raise refuse(
                        "training-stack", site=run.site, first=first.site, what=what, theirs=theirs, ours=ours[what]
                    )
        shortest = min(run.each for run in self.runs)
        for run in self.runs:
            run.take(shortest)
        self.settings = first.settings
        self.parameters = Parameters(
            **{name: torch.stack([run.parameters.named()[name] for run in self.runs]) for name in first.moments}
        )
        self.moments = {
            name: {moment: torch.stack([run.moments[name][moment] for run in self.runs]) for moment in moments}
            for name, moments in first.moments.items()
        }
        self.silent = torch.stack([run.silent for run in self.runs])
        for index, run in enumerate(self.runs):
            run.parameters = Parameters(**{name: all_[index] for name, all_ in self.parameters.named().items()})
            run.moments = {
                name: {moment: all_[index] for moment, all_ in moments.items()}
                for name, moments in self.moments.items()
            }
            run.silent = self.silent[index]
        self.l0, self.dense = (
            torch.tensor([getattr(run.settings, name) for run in self.runs], device=first.device)
            for name in ("l0", "dense")
        )

    def turn(self, rows: Mapping[Site, torch.Tensor], part: int) -> None:
        """The next part's activations, by site, in place of this one's (`Run.turn`)."""
        for run in self.runs:
            run.turn(rows[run.site], part)

    def go(self, progress: Progress | None = None, *, save: bool = True) -> list[Sae]:
        """Trains to the end of the part and gives the SAEs, in the order of the runs. Checkpoints as `train` does;
        with `save` false the caller saves the runs.

        A loss that is not finite is noticed up to 50 steps later, and no checkpoint is written of such a step.
        """
        first, settings = self.runs[0], self.settings
        optimizer = Optimizer(settings, self.parameters, self.moments, first.done)
        losses: list[torch.Tensor] = []
        started, begun = time.monotonic(), first.done
        for batches in zip(*(run.inputs() for run in self.runs), strict=True):
            x = torch.stack(batches)
            result = jumprelu.steps(
                self.parameters,
                x,
                l0=self.l0,
                dense=self.dense,
                **first.penalties(),
                bandwidth=settings.bandwidth,
                dtype=getattr(torch, settings.dtype),
            )
            losses.append(result.loss)
            optimizer.step(result.gradients, first.rate())
            self.silent.add_(settings.batch).masked_fill_(result.fired > 0, 0)
            if first.reviving():
                for run, rows, residual in zip(self.runs, x, result.residual, strict=True):
                    run.revive(rows, residual)
            for run in self.runs:
                run.done += 1
            ended = first.done == first.last
            saving = save and (first.done % settings.checkpoint_every == 0 or ended)
            reporting = first.done % settings.report_every == 0 or ended
            if saving or reporting or ended or len(losses) == _CHECK:
                self._check(losses)
                losses = []
            if saving:
                for run in self.runs:
                    run.save()
            if reporting and progress is not None:
                speed = (first.done - begun) * settings.batch / (time.monotonic() - started)
                for run, loss, l0 in zip(self.runs, result.loss.tolist(), result.l0.tolist(), strict=True):
                    progress(run.site, run.report(loss, l0, speed))
        return [run.finished() for run in self.runs]

    def _check(self, losses: list[torch.Tensor]) -> None:
        values = torch.stack(losses).cpu()
        for step, index in (~torch.isfinite(values)).nonzero()[:1].tolist():
            run = self.runs[index]
            run.stop(run.done - len(losses) + step, float(values[step, index]))


def _shape(run: Run) -> dict[str, object]:
    shared = {name: value for name, value in asdict(run.settings).items() if name not in _OWN}
    here = {"d_in": run.parameters.decoder.shape[1], "device": str(run.device), "done": run.done}
    return {**shared, **here, "part": run.part, "parts": run.parts}
