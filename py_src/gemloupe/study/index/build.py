"""Making an index: text goes through the model once, and what is known of every feature grows part by part.

A run that is killed goes on where it was: parts that are whole are kept and not read again, and since what is kept of
two parts does not depend on how the text was cut or in how many runs it was read, the files come out the same to the
byte.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.protocol import TogetherRequest
from ...errors import Refusal, refuse
from ...feature import whole
from ...load import cache
from ...site import Site
from . import scale
from .finish import finish_site, finish_text
from .layout import FORMAT, MANIFEST
from .passages import Cutter, Shard, passes
from .sources import Source
from .store import Index, check_same, read_json
from .tally import DRAWN, FIRINGS, INTERVALS, TOP, WINDOW, Tally, place_of
from .work import Done, commit, committed, sync

if TYPE_CHECKING:
    from ...engine.local import LocalEngine

_PLAN, _SHARDS, _MADE = "plan.json", "shards", "made"


@dataclass(frozen=True)
class Report:
    """How far an index is. `tokens` ordinary tokens are done, `rate` of them each second; `share` of the text (0 to 1)
    and `seconds_left` are None where the text's length is not known."""

    doing: str
    tokens: int
    rate: float
    share: float | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        said = f"{self.doing}: {self.tokens:,} tokens"
        if self.rate:
            said += f", {self.rate:,.0f} a second"
        if self.share is not None:
            said += f", {self.share:.0%}"
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            said += f", {minutes}:{seconds:02d} left"
        return said


Tell = Callable[[Report], None]


@contextmanager
def shown(progress: Tell | None) -> Iterator[Tell]:
    """`progress` itself, or a bar: in a notebook a widget, in a terminal a line."""
    if progress is not None:
        yield progress
        return
    from tqdm.auto import tqdm

    with tqdm(total=100, desc="indexing", bar_format="{desc} |{bar}| {elapsed}") as bar:

        def show(report: Report) -> None:
            bar.set_description_str(str(report), refresh=False)
            bar.update(max(0, round(100 * (report.share or 0)) - bar.n))

        yield show


def build(
    engine: LocalEngine,
    given: Any,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    length: int = 256,
    most: int | None = None,
    seed: int = 0,
    shard: int = 16384,
    together: int | None = None,
    tell: Tell = lambda report: None,
) -> Index:
    """The index of the text `given` in `folder`, made or finished there.

    `length`: tokens in a passage, BOS included, at most the model's context. `most`: ordinary tokens to stop after.
    `seed` chooses the random examples. `shard`: tokens worked on between two commits; a run that is killed loses no
    more. `together`: tokens that go through the model at once.

    Refuses 'index-busy' (another process makes it), 'index-no-text', 'index-no-files', 'index-source-unreadable',
    'index-other-text' (begun or made from another text), 'index-other-model', 'index-other-sae', 'index-other-plan',
    'index-paused' (the disk is full; what is done stays, and the same call goes on).
    """
    folder = Path(folder)
    about = engine.describe()
    if not about.widths:
        raise refuse("index-no-sites")
    most = None if most is None else _count("tokens", most, 1)
    shard, seed = _count("shard", shard, 1), _count("seed", seed, 0)
    together = None if together is None else _count("together", together, 1)
    loaded = engine.loaded
    length = min(_count("passage", length, 2), loaded.context)
    cutter = Cutter(loaded.tokenizer, loaded.bos, loaded.special, loaded.model.lm_head.out_features, length)
    together = together or (1024 if loaded.device == "cpu" else 16384)
    source = Source(given)
    with _alone(folder), _paused(folder):
        if (folder / MANIFEST).is_file():
            return _again(folder, about, cutter, source, most, tell)
        plan = _plan(folder, name or folder.name, about, length, seed, shard, together)
        run = _Run(engine, folder, plan, tell)
        done = run.read(cutter.shards(source, plan["shard"], most))
        run.finish(done, source)
    return Index.open(folder, made_for=about.about)


def _count(name: str, given: Any, least: int) -> int:
    found = whole(given)
    if found is None or not least <= found < 1 << 63:
        raise refuse("count-unreadable", name=name, given=given, least=least)
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    with cache.explained("the size of the index", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise refuse("index-busy", folder=folder) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _paused(folder: Path) -> Iterator[None]:
    """A disk that takes no more ends the run with a sentence; what is committed stays."""
    try:
        yield
    except Refusal:
        raise
    except OSError as error:
        if error.errno not in cache.CANNOT_WRITE:
            raise
        raise refuse("index-paused", folder=folder, why=os.strerror(error.errno)) from error


# ---- what is to be made


def _plan(folder: Path, name: str, about: Any, length: int, seed: int, shard: int, together: int) -> dict[str, Any]:
    """What the index in `folder` was begun with, or from now on is."""
    facts = about.about
    wanted = {
        "format": FORMAT,
        "name": name,
        "made": _today(),
        "model": {"id": about.model, "digest": facts.get("model_digest"), "dtype": about.dtype},
        "scope": about.scope,
        "sites": {str(s): {"width": w, "sae": facts["sae_digests"].get(str(s))} for s, w in about.widths.items()},
        "seed": seed,
        "length": length,
        "shard": shard,
        "together": together,
    }
    file = folder / _PLAN
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        cache.write_atomically(file, json.dumps(wanted).encode())
        return wanted
    plan = read_json(file)
    if plan.get("format") != FORMAT:
        raise refuse("index-other-plan", folder=folder, what="format", theirs=plan.get("format"), ours=FORMAT)
    check_same(folder, plan, facts)
    for what in ("seed", "length"):
        if plan[what] != wanted[what]:
            raise refuse("index-other-plan", folder=folder, what=what, theirs=plan[what], ours=wanted[what])
    theirs, ours = ", ".join(plan["sites"]), ", ".join(wanted["sites"])
    if theirs != ours:
        raise refuse("index-other-plan", folder=folder, what="sites", theirs=theirs, ours=ours)
    return plan


def _today() -> str:
    """The date, or the one that reproducible builds are given."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return time.strftime("%Y-%m-%d", time.gmtime(int(given) if given and given.isdigit() else None))


# ---- making it


class _Run:
    def __init__(self, engine: LocalEngine, folder: Path, plan: Mapping[str, Any], tell: Tell) -> None:
        self._engine, self._folder, self._plan, self._tell = engine, folder, plan, tell
        self._sites = {Site.of(name): int(facts["width"]) for name, facts in plan["sites"].items()}
        self._tallies = {site: Tally(str(site), width, plan["seed"]) for site, width in self._sites.items()}
        self._began, self._tokens, self._fresh = time.monotonic(), 0, 0
        self._share_began = self._share_done = 0.0

    def read(self, shards: Iterator[Shard]) -> list[Done]:
        """Every shard of the text, done before or now."""
        place = self._folder / _SHARDS
        before = dict(committed(place))
        done: list[Done] = []
        for shard in shards:
            earlier = before.pop(shard.number, None)
            if earlier is not None and earlier.digest != shard.digest:
                raise refuse("index-other-text", folder=self._folder, name=self._plan["name"])
            if earlier is None:
                earlier = self._shard(place, shard)
            else:
                for number, tally in enumerate(self._tallies.values()):
                    tally.know(*earlier.kept(number))
                self._tokens += shard.tokens
                self._share_began = shard.share or 0.0
            self._share_done = shard.share or 0.0
            done.append(earlier)
        if before:  # the text was longer then
            raise refuse("index-other-text", folder=self._folder, name=self._plan["name"])
        self._tallies.clear()
        return done

    def _shard(self, place: Path, shard: Shard) -> Done:
        gone = 0.0
        for numbers, acts in self._passes(shard):
            ids = [shard.ids[number] for number in numbers]
            passage = np.repeat(np.array(numbers) + shard.first, [len(one) for one in ids])
            where = place_of(passage, np.concatenate([np.arange(len(one)) for one in ids]))
            number, flat = scale.of_token(where, self._plan["seed"]), np.concatenate(ids).astype(np.uint32)
            # In the order of the text, which is what tallies expect of tokens.
            for site, tally in self._tallies.items():
                tally.add(acts[site], where, number, flat)
            fresh = sum(shard.ordinary[number] for number in numbers)
            self._fresh += fresh
            self._tokens += fresh
            gone += len(numbers) / len(shard.ids)
            before, after = self._share_done, shard.share
            self._say(None if after is None else before + (after - before) * gone)
        return commit(place, shard, {site: tally.take() for site, tally in self._tallies.items()})

    def _passes(self, shard: Shard) -> Iterator[tuple[list[int], Mapping[Site, Any]]]:
        """Activations pass by pass. The next pass is on its way while one is worked on; others may come between."""
        waiting: deque[tuple[list[int], Any]] = deque()
        sites = tuple(self._sites)
        try:
            for numbers in passes(shard.ids, self._plan["together"]):
                request = TogetherRequest(tuple(shard.ids[number] for number in numbers), sites)
                waiting.append((numbers, self._engine.together(request)))
                if len(waiting) > 1:
                    ready, job = waiting.popleft()
                    yield ready, job.result()
            while waiting:
                ready, job = waiting.popleft()
                yield ready, job.result()
        finally:
            for _, job in waiting:
                job.cancel()

    def _say(self, share: float | None) -> None:
        passed = time.monotonic() - self._began
        rate = self._fresh / passed if passed else 0.0
        left = None
        if share is not None:
            gone = share - self._share_began
            left = passed * (1 - share) / gone if gone > 0 else None
        self._tell(Report("indexing", self._tokens, rate, share, left))

    # ---- finishing

    def finish(self, done: list[Done], source: Source) -> None:
        """The files the index is read from, then the manifest, which makes it one."""
        from ... import __version__
        from ...run.tokens import token_text

        if not done:
            shutil.rmtree(self._folder, ignore_errors=True)
            why = ", ".join(f"{reason}: {count}" for reason, count in sorted(source.skipped.items())) or "it is empty"
            raise refuse("index-no-text", why=why)
        folder, plan, loaded = self._folder, self._plan, self._engine.loaded
        shutil.rmtree(folder / _MADE, ignore_errors=True)
        made = folder / _MADE
        made.mkdir()

        def text_of(ident: int) -> tuple[str, bool]:
            special = ident in loaded.special
            name = loaded.tokenizer.convert_ids_to_tokens(ident) if special else token_text(loaded.tokenizer, ident)
            return name, special

        files = finish_text(made, done, text_of)
        sites = {}
        for number, (site, width) in enumerate(self._sites.items()):
            self._tell(Report(f"writing {site}", self._tokens, 0.0, number / len(self._sites)))
            files[f"{site}.parquet"] = finish_site(made / f"{site}.parquet", site, number, width, done, plan["seed"])
            sites[str(site)] = plan["sites"][str(site)]
        manifest = {
            "format": FORMAT,
            "name": plan["name"],
            "made": plan["made"],
            "gemloupe": __version__,
            "model": plan["model"],
            "scope": plan["scope"],
            "tokens": sum(one.tokens for one in done),
            "documents": sum(one.documents for one in done),
            "passages": sum(one.passages for one in done),
            "text": _digest_of([one.digest for one in done]),
            "skipped": dict(sorted(source.skipped.items())),
            "settings": {
                "seed": plan["seed"],
                "length": plan["length"],
                "shard": plan["shard"],
                "top": TOP,
                "random": DRAWN,
                "intervals": INTERVALS,
                "window": WINDOW,
                "firings": FIRINGS,
            },
            "sites": sites,
            "files": files,
        }
        for file in made.iterdir():
            file.replace(folder / file.name)
        sync(folder)
        # From here on the index is whole; what it was made from is no longer needed.
        cache.write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
        (folder / MANIFEST).chmod(0o644)
        _clear(folder)
        self._tell(Report("ready", self._tokens, 0.0, 1.0, 0.0))


def _digest_of(digests: list[str]) -> str:
    from hashlib import sha256

    return sha256("".join(digests).encode()).hexdigest()


def _clear(folder: Path) -> None:
    (folder / _PLAN).unlink(missing_ok=True)
    for name in (_SHARDS, _MADE):
        shutil.rmtree(folder / name, ignore_errors=True)


def _again(folder: Path, about: Any, cutter: Cutter, source: Source, most: int | None, tell: Tell) -> Index:
    """A finished index, if it is of this model and this text."""
    _clear(folder)
    index = Index.open(folder, made_for=about.about)
    settings = index.manifest["settings"]
    if settings["length"] != cutter.length:
        raise refuse("index-other-plan", folder=folder, what="length", theirs=settings["length"], ours=cutter.length)
    digests = [shard.digest for shard in cutter.shards(source, settings["shard"], most)]
    if _digest_of(digests) != index.manifest["text"]:
        raise refuse("index-other-text", folder=folder, name=index.about.name)
    tell(Report("ready", index.about.tokens, 0.0, 1.0, 0.0))
    return index
