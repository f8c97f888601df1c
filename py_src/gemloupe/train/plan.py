"""A training of many SAEs as a file: which jobs there are, which need which, and what is done.

The pass over the model and the training of each site are separate jobs. The text is cut into parts; one pass over a
part gives the activations of all sites, every site trains on them, and they are deleted. So the disk holds two parts
at most, however much text there is. Jobs know only the folder: any number of processes (or machines that share the
folder) may run them at the same time, each job in one process at a time, and a killed job goes on where it was.

    plan.json  tokens.npy  held_out.npy         what is to be done, fixed when the plan is made
    parts/<k>/  parts/held_out/                 activations, while they are needed
    sites/<site>/                               checkpoint, then sae/ (an SAELens checkpoint) and stats.safetensors
    scope/                                      at the end: all of them, for `gl.open(model, scope=...)`
    done/<job>.json                             how long a finished job took, and its last figures
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..load.artifact import read_safetensors
from ..load.cache import explained, folder_atomically, write_atomically
from ..site import Site
from . import activations
from .recipe import Continued, Scaling, Settings, Start, train

Progress = Callable[["Job", dict[str, float]], None]

_HELD_OUT = "held_out"


@dataclass(frozen=True)
class Job:
    """One piece of work: 'capture/<part>', 'fit/<site>/<part>', 'release/<part>' or 'scope', after all of `needs`."""

    name: str
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def site(self) -> Site:
        return Site.of(self.name.split("/")[1])

    @property
    def part(self) -> str:
        return self.name.split("/")[-1]


@dataclass(frozen=True)
class SitePlan:
    """How one site is trained. `start` names a site of the plan from whose first part this one begins, or a finished
    SAE as 'folder#site' (of the same site and width: that SAE is trained on); None begins at random.
    """

    settings: Settings
    start: str | None = None


@dataclass(frozen=True)
class Plan:
    """What plan.json says. A part is `part_contexts` contexts of the packed tokens; `ahead` parts fit on the disk."""

    folder: Path
    model: str | None
    dtype: str
    digest: str | None
    special: tuple[int, ...]
    tokens: str
    parts: int
    part_contexts: int
    sites: Mapping[Site, SitePlan]
    ahead: int = 2
    batch: int = 8

    @classmethod
    def open(cls, folder: str | Path) -> Plan:
        file = Path(folder) / "plan.json"
        if not file.exists():
            raise refuse("training-no-plan", folder=folder)
        about = json.loads(file.read_text(encoding="utf-8"))
        sites = {
            Site.of(site): SitePlan(Settings(**one["settings"]), one.get("start"))
            for site, one in about.pop("sites").items()
        }
        return cls(folder=Path(folder), **{**about, "special": tuple(about["special"])}, sites=sites)

    def as_dict(self) -> dict[str, Any]:
        about = {key: value for key, value in vars(self).items() if key not in ("folder", "sites", "jobs")}
        sites = {str(site): {"settings": asdict(one.settings), "start": one.start} for site, one in self.sites.items()}
        return {**about, "special": list(self.special), "sites": sites}

    # ---- jobs

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs, in the order in which one process alone would run them."""
        found = [Job(f"capture/{_HELD_OUT}")]
        for part in range(self.parts):
            freed = (f"release/{part - self.ahead}",) if part >= self.ahead else ()
            found.append(Job(f"capture/{part}", freed))
            fits = []
            for site, how in self.sites.items():
                needs = [f"capture/{_HELD_OUT}", f"capture/{part}"]
                if part:
                    needs.append(f"fit/{site}/{part - 1}")
                elif how.start is not None and "#" not in how.start:
                    needs.append(f"fit/{how.start}/0")
                fits.append(Job(f"fit/{site}/{part}", tuple(needs)))
            found += fits
            found.append(Job(f"release/{part}", tuple(job.name for job in fits)))
        found.append(Job("scope", tuple(job.name for job in fits)))
        return tuple(found)

    def _mark(self, job: Job | str) -> Path:
        name = job if isinstance(job, str) else job.name
        return self.folder / "done" / f"{name.replace('/', '-')}.json"

    def done(self, job: Job | str) -> bool:
        return self._mark(job).exists()

    def ready(self) -> Iterator[Job]:
        """Jobs that are not done and whose needs are; another process may be at work on some.

        Passes over the model come first, so that no other process waits for activations.
        """
        for job in sorted(self.jobs, key=lambda job: job.kind != "capture"):
            if not self.done(job) and all(self.done(need) for need in job.needs):
                yield job

    def run(self, progress: Progress | None = None) -> None:
        """Run jobs until none is left. Call it in as many processes as there are cores."""
        from filelock import FileLock, Timeout

        (self.folder / "done").mkdir(exist_ok=True)
        while not all(self.done(job) for job in self.jobs):
            for job in self.ready():
                try:
                    with FileLock(f"{self._mark(job)}.lock", timeout=0):
                        if not self.done(job):
                            self._run(job, progress)
                            break
                except Timeout:
                    continue
            else:
                time.sleep(1.0)  # others are at work on all that is ready

    def _run(self, job: Job, progress: Progress | None) -> None:
        last: dict[str, float] = {}

        def tell(figures: dict[str, float]) -> None:
            last.update(figures)
            if progress is not None:
                progress(job, figures)

        started = time.monotonic()
        with explained("the activations of one part of the text", self.folder):
            match job.kind:
                case "capture":
                    self._capture(job.part, tell)
                case "fit":
                    self._fit(job.site, int(job.part), tell)
                case "release":
                    shutil.rmtree(self.folder / "parts" / job.part, ignore_errors=True)
                case "scope":
                    self._scope()
        mark = {"seconds": round(time.monotonic() - started, 1), "threads": torch.get_num_threads(), **last}
        write_atomically(self._mark(job), json.dumps(mark, indent=1).encode())

    # ---- the pass over the model

    @cached_property
    def _loaded(self) -> Any:
        from ..load.model import load_model

        loaded = load_model(self.model, dtype=self.dtype)
        if self.digest is not None and loaded.digest != self.digest:
            ours = str(loaded.digest)[:12]
            raise refuse("training-other-model", folder=self.folder, theirs=self.digest[:12], ours=ours)
        return loaded

    def _capture(self, part: str, tell: Callable[[dict[str, float]], None]) -> None:
        if part == _HELD_OUT:
            tokens = np.load(self.folder / "held_out.npy", allow_pickle=False)
        else:
            first = int(part) * self.part_contexts
            tokens = np.load(self.folder / "tokens.npy", allow_pickle=False)[first : first + self.part_contexts]
        activations.collect(
            self._loaded.model,
            tokens,
            self.sites,
            self.folder / "parts" / part,
            special=self.special,
            batch=self.batch,
            progress=tell,
        )

    # ---- one site

    def _fit(self, site: Site, part: int, tell: Callable[[dict[str, float]], None]) -> None:
        how, folder = self.sites[site], self.folder / "sites" / str(site)
        rows = activations.load(self.folder / "parts" / str(part), site)
        start = None if how.start is None else self._start(how.start, site)
        sae = train(
            rows,
            activations.load(self.folder / "parts" / _HELD_OUT, site),
            site,
            how.settings,
            checkpoint=folder,
            progress=tell,
            part=part,
            parts=self.parts,
            start=start,
        )
        if part == 0 and any(other.start == str(site) for other in self.sites.values()):
            self._start(str(site), site)  # written down now, because this training goes on
        if part < self.parts - 1:
            return
        from safetensors.torch import save

        from ..load.scope import save_sae_lens
        from .evaluate import feature_stats

        sample = rows[:: max(1, len(rows) // 65536)]
        cut = Scaling.measure(sample, outlier=how.settings.outlier).cut
        known = vars(feature_stats(sae, rows, cut=cut))
        with folder_atomically(folder / "sae") as made:
            save_sae_lens(sae, made, model_name=self.model)
        stats = {name: torch.from_numpy(column).contiguous() for name, column in known.items() if column is not None}
        write_atomically(folder / "stats.safetensors", save(stats))

    # ---- the result

    def _scope(self) -> None:
        from ..load.sae import FeatureStats, Sae
        from ..load.scope import Scope, write_scope
        from ..run.capture import model_facts
        from ..run.promote import listable_tokens, promoted_tokens

        listable = listable_tokens(self._loaded.tokenizer)

        def made() -> Iterator[tuple[Sae, FeatureStats, dict[str, Any]]]:
            for site in self.sites:
                folder = self.folder / "sites" / str(site)
                sae = Scope.open(folder / "sae").load(site)
                columns = read_safetensors(folder / "stats.safetensors", ["maximum", "density", "mean_active"])
                known = {name: column.numpy() for name, column in columns.items()}
                promotes = promoted_tokens(self._loaded.model, sae, listable)
                last = json.loads(self._mark(f"fit/{site}/{self.parts - 1}").read_text(encoding="utf-8"))
                facts = (
                    {"l0": round(last["held_out_l0"], 1), "train_tokens": int(last["tokens"])}
                    if last.get("step")
                    else {}
                )
                yield sae, FeatureStats(**known, **promotes), facts

        recipes = {str(site): {**asdict(how.settings), "start": how.start} for site, how in self.sites.items()}
        write_scope(
            self.folder / "scope",
            made(),
            id=f"{self._loaded.id}-{self.folder.absolute().name}",
            model=model_facts(self._loaded),
            made_with={"trainer": "gemloupe.train", "recipes": recipes},
            packed=False,
        )

    def _start(self, given: str, site: Site) -> Start | Continued:
        """What the training of `site` begins from; an SAE of that very site and width is trained on as it is."""
        from ..load.scope import Scope
        from .recipe import started_from

        if "#" in given:
            where, _, name = given.rpartition("#")
            scope = Scope.open(where)
            sae, stats = scope.load(name), scope.stats(name)
            if sae.site == site and sae.width == self.sites[site].settings.width:
                return Continued(given, sae)
            if stats.density is None:
                raise refuse("training-start-unknown", given=given)
            return Start(given, sae.encoder, sae.decoder, torch.from_numpy(np.asarray(stats.density)))
        return started_from(self.folder / "sites" / given, given, self.folder / "start")


def make(
    folder: str | Path,
    tokens: np.ndarray,
    held_out: np.ndarray,
    sites: Mapping[Site | str, SitePlan],
    *,
    special: Sequence[int],
    model: str | None = None,
    digest: str | None = None,
    dtype: str = "bfloat16",
    parts: int = 1,
    ahead: int = 2,
) -> Plan:
    """Write a plan into `folder` for packed `tokens` and `held_out` [context, position]; `Plan.run` carries it out.

    The same plan may be made again; another one in the same folder is refused.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    each = len(tokens) // parts
    if each == 0:
        raise refuse("training-no-text", tokens=tokens.size, least=parts * tokens.shape[1])
    data = np.ascontiguousarray(tokens)
    plan = Plan(
        folder=folder,
        model=model,
        dtype=dtype,
        digest=digest,
        special=tuple(sorted(special)),
        tokens=hashlib.sha256(data.tobytes()).hexdigest(),
        parts=parts,
        part_contexts=each,
        sites={Site.of(site): how for site, how in sites.items()},
        ahead=ahead,
    )
    for site, how in plan.sites.items():
        if how.start is not None and "#" not in how.start and Site.of(how.start) not in plan.sites:
            raise refuse("training-start-unknown", given=how.start)
        if how.start == str(site):
            raise refuse("training-start-unknown", given=how.start)
    file, about = folder / "plan.json", plan.as_dict()
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for what, ours in json.loads(json.dumps(about)).items():
            if before.get(what) != ours:
                raise refuse("training-other-plan", file=file, what=what, theirs=before.get(what), ours=ours)
    for name, array in (("tokens", data), ("held_out", np.ascontiguousarray(held_out))):
        held = io.BytesIO()
        np.save(held, array)
        write_atomically(folder / f"{name}.npy", held.getvalue())
    write_atomically(file, json.dumps(about, indent=1).encode())
    return plan
