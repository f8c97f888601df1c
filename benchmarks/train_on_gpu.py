"""The whole set of SAEs on one GPU within a given time, and back in pieces small enough to copy.

    python benchmarks/train_on_gpu.py pack corpus.npz TEXTS [--tokens 8000000]
    python benchmarks/train_on_gpu.py write written.npz [--batches 6]
    python benchmarks/train_on_gpu.py train WORK corpus.npz [written.npz ...] --minutes 25 [--stop-after 9]
                                      [--start SCOPE] [--wide 4096]
                                      [--curve res.5,res.9,res.12 --curve-l0 10,20,80,160]
    python benchmarks/train_on_gpu.py pieces WORK/result OUT --megabytes 15 [--first 0 --count 4]
    python benchmarks/train_on_gpu.py join OUT FOLDER

`write` has the model write text itself, in many languages, as a corpus of the same kind: what the texts are short of.
With --start, SAEs of a scope are trained on instead of begun, so that their features keep their numbers.

`train` reads the packed corpora, measures how fast the pass over the model and each stack of SAEs are on this machine,
and chooses from that how much text and how many epochs fit into --minutes; the choice is written to WORK/plan.json and
kept. The text goes through --passes times, each in another order, in parts whose activations of all sites fit into
--gigabytes; each part is trained on for --epochs. Run the same command again after a kill, or after --stop-after (exit
status 3): it goes on from the last checkpoint, which is written every --keep-every parts. WORK/result then holds one
scope for each set (main, wide, l0-20, ...) and evaluation.json with what was measured on the held-out contexts.

`pieces` and `join` carry any folder: model weights to the machine as well as SAEs back from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemloupe.load.cache import write_atomically
from gemloupe.load.model import LoadedModel, load_model
from gemloupe.load.sae import FeatureStats, Sae
from gemloupe.load.scope import Scope, write_scope
from gemloupe.run.capture import body, model_facts, width_of
from gemloupe.run.promote import listable_tokens, promoted_tokens
from gemloupe.site import KINDS, Site
from gemloupe.train import activations
from gemloupe.train.evaluate import evaluate, feature_stats
from gemloupe.train.recipe import Continued, Run, Settings
from gemloupe.train.stack import Stack
from gemloupe.train.text import held_out, pack_labelled, read_labelled

STOPPED = 3
PROMPT = 3  # tokens that a written text begins with
SHARE = 0.8  # of the time that is planned with: evaluation and what was misjudged have the rest
TRIAL_STEPS = 12
MANIFEST = "pieces.json"


@dataclass(frozen=True)
class Target:
    """One SAE to train: where it is, in which set it goes, and how."""

    set: str
    site: Site
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.set}.{self.site}"


# ---- the corpus


def pack_corpus(asked: argparse.Namespace) -> None:
    texts = list(read_labelled(asked.texts, asked.label))
    loaded = load_model(asked.model, device="cpu")
    packed = partial(pack_labelled, tokenizer=loaded.tokenizer, bos=loaded.bos, context=asked.context)
    train, _ = packed([one for one in texts if not held_out(one[0])])
    test, labels = packed([one for one in texts if held_out(one[0])])
    most = len(train) if asked.tokens is None else max(1, asked.tokens // (asked.context - 1))
    np.savez_compressed(asked.corpus, train=train[:most], held_out=test, labels=np.array(labels))
    print(f"{asked.corpus}: {len(train[:most])} contexts to train on, {len(test)} held out, of {asked.context} tokens")


@torch.inference_mode()
def continued(
    model: Any, prompts: torch.Tensor, length: int, *, temperature: float, top_k: int, seed: int
) -> torch.Tensor:
    """[row, length]: `prompts` [row, token] continued, each token drawn from the `top_k` likeliest."""
    from transformers import DynamicCache

    random = torch.Generator(prompts.device).manual_seed(seed)
    rows, cache = prompts, DynamicCache(config=model.config)
    given = prompts
    while rows.shape[1] < length:
        logits = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        likeliest = logits.float().topk(top_k)
        chances = (likeliest.values / temperature).softmax(-1)
        given = likeliest.indices.gather(1, torch.multinomial(chances, 1, generator=random))
        rows = torch.cat([rows, given], 1)
    return rows


def write_corpus(asked: argparse.Namespace) -> None:
    from openings import OPENINGS, SPOKEN

    loaded = load_model(asked.model, device=asked.device, dtype=asked.dtype)
    started = [(ids[:PROMPT], name) for name, some in SPOKEN.items() for ids in _openings(loaded, some)]
    general = [(ids[:PROMPT], "written") for ids in _openings(loaded, OPENINGS)]
    alone = [([], "written")]
    texts, labels = [], []
    for batch in range(asked.batches):
        # a third each: languages, kinds of text, and whatever comes to the model's mind
        for third, (one, size) in enumerate(zip((started, general, alone), (PROMPT, PROMPT, 0), strict=True)):
            count = asked.rows // 3
            chosen = [one[(batch * count + row) % len(one)] for row in range(count)]
            prompts = torch.tensor([[loaded.bos, *ids] for ids, _ in chosen], device=asked.device)
            assert prompts.shape[1] == 1 + size
            texts.append(
                continued(
                    loaded.model,
                    prompts,
                    asked.context,
                    temperature=0.95,
                    top_k=300,
                    seed=asked.seed + 3 * batch + third,
                )
                .cpu()
                .numpy()
                .astype(np.int32)
            )
            labels += [name for _, name in chosen]
        print(f"batch {batch}: {sum(map(len, texts))} contexts", flush=True)
    tokens, named = np.concatenate(texts), np.array(labels)
    kept = np.random.default_rng(asked.seed).random(len(tokens)) < 1 / asked.one_in
    np.savez_compressed(asked.corpus, train=tokens[~kept], held_out=tokens[kept], labels=named[kept])
    print(f"{asked.corpus}: {int((~kept).sum())} contexts to train on, {int(kept.sum())} held out")


def _openings(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    found = loaded.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [ids for ids in found if len(ids) >= PROMPT]


def corpora(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training, held-out, labels of the held-out) contexts of all of `files`, in one order for them all."""
    parts: dict[str, list[np.ndarray]] = {"train": [], "held_out": [], "labels": []}
    for file in files:
        with np.load(file, allow_pickle=False) as corpus:
            for name, some in parts.items():
                some.append(corpus[name])
    train, test, labels = (np.concatenate(parts[name]) for name in parts)
    random = np.random.default_rng(0)
    order = random.permutation(len(test))
    return train[random.permutation(len(train))], test[order], labels[order]


# ---- what is to be trained


def targets(asked: argparse.Namespace, model: Any) -> list[Target]:
    depth = len(body(model).layers)
    widths = {"res": asked.width_res, "mlp": asked.width_mlp, "att": asked.width_att}
    aims = {"res": asked.l0, "mlp": asked.l0_mlp or asked.l0, "att": asked.l0_att or asked.l0}
    begun = Scope.open(asked.start) if asked.start else None

    def how(site: Site, width: int, l0: float, *, on: bool = False) -> Settings:
        share = 2 * l0 / width
        return Settings(
            width=width,
            l0=l0,
            dense=min(share, asked.dense) if asked.dense and site.kind == "res" else share,
            learning_rate=(1.5e-3 if site.kind == "res" else 2e-3) * (asked.slower if on else 1.0),
            penalty_warm_up=0.0 if on else 0.2,
            batch=asked.batch,
            seed=asked.seed,
            dead_after=asked.dead_after,
            checkpoint_every=1_000_000,
            report_every=200,
            dtype="float32" if asked.device == "cpu" else "bfloat16",  # a CPU has no fast batched product in bfloat16
        )

    def named(given: str) -> list[Site]:
        every = [Site(kind, layer) for kind in widths for layer in range(depth)]
        found = [
            s for name in given.split(",") for s in ([one for one in every if one.kind == name] or [Site.of(name)])
        ]
        return list(dict.fromkeys(found)) if given else []

    sites = named(asked.sites)
    found = [
        Target("main", site, how(site, begun.width(site), aims[site.kind], on=True))
        if begun is not None and site in begun.sites
        else Target("main", site, how(site, widths[site.kind], aims[site.kind]))
        for site in sites
    ]
    if asked.wide:
        found += [Target("wide", s, how(s, asked.wide, asked.l0)) for s in sites if s.kind == "res"]
    for l0 in (float(one) for one in asked.curve_l0.split(",") if one):
        found += [Target(f"l0-{l0:g}", s, how(s, widths[s.kind], l0)) for s in named(asked.curve)]
    for target in found:
        width_of(model, target.site)  # refuses a site that the model does not have
    return found


def stacks(found: Sequence[Target], model: Any, most: int) -> list[list[Target]]:
    """Targets of one shape side by side, at most so many."""
    groups: dict[tuple[Any, ...], list[Target]] = {}
    for target in found:
        shared = replace(target.settings, l0=1.0, dense=1.0)
        groups.setdefault((width_of(model, target.site), *asdict(shared).values()), []).append(target)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


# ---- how much of it fits


def elapsed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(
    loaded: LoadedModel, tokens: np.ndarray, found: list[list[Target]], batch: int
) -> tuple[float, list[float]]:
    """Seconds of the pass over the model for one context, and of one step of each stack. Each is done twice, because
    the first time of anything on a GPU is slow.
    """
    sites = {target.site for stack in found for target in stack}
    size = max(target.settings.batch for stack in found for target in stack)
    some = tokens[: max(batch, 2 + TRIAL_STEPS * size // (tokens.shape[1] - 1))]
    held: dict[Site, torch.Tensor] = {}

    def passing() -> None:
        held.clear()
        held.update(activations.hold(loaded.model, some, sites, special=sorted(loaded.special), batch=batch))

    def step(stack: list[Target]) -> float:
        with torch.inference_mode():
            runs = [
                Run(held[target.site], held[target.site][:512], target.site, replace(target.settings, epochs=1.0))
                for target in stack
            ]
            return elapsed(Stack(runs).go) / runs[0].steps

    each = [elapsed(passing) / len(some) for _ in range(2)][-1]
    return each, [[step(stack) for _ in range(2)][-1] for stack in found]


def planned(
    asked: argparse.Namespace, loaded: LoadedModel, tokens: np.ndarray, found: list[list[Target]], file: Path
) -> dict:
    """What WORK/plan.json says, or a new plan: contexts, parts and epochs that fit into the time."""
    about = {
        "corpus": hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest(),
        "model": loaded.digest,
        "targets": {target.name: asdict(target.settings) for stack in found for target in stack},
    }
    if file.exists():
        before = json.loads(file.read_text())
        for what, ours in json.loads(json.dumps(about)).items():
            if before[what] != ours:
                raise SystemExit(
                    f"{file} is another plan: {what} differs. Use another folder, or what it was made with."
                )
        return before
    passing, steps = measured(loaded, tokens, found, asked.model_batch)
    kept = tokens.shape[1] - 1
    fitting = sum(step * kept / asked.batch for step in steps)  # one context once through every stack
    left = 60 * asked.minutes * SHARE
    epochs = min(asked.epochs, max(1.0, (left / len(tokens) - passing) / fitting))
    contexts = min(len(tokens), int(left / (passing + epochs * fitting)))
    widths = {target.site: width_of(loaded.model, target.site) for stack in found for target in stack}
    room = int(asked.gigabytes * 1e9 / (2 * kept * sum(widths.values())))
    least = -(-16 * asked.batch // kept)
    if min(contexts, room) < least:
        raise SystemExit(
            f"{asked.minutes:g} minutes and {asked.gigabytes:g} GB are enough for {min(contexts, room)} contexts at a "
            f"time, and {least} are needed. Give more of both, or fewer sites."
        )
    parts = -(-contexts // room)
    about |= {"contexts": contexts, "parts": parts, "epochs": epochs, "pass": passing, "steps": steps}
    write_atomically(file, json.dumps(about, indent=1).encode())
    return about


# ---- training


def train(asked: argparse.Namespace) -> int:
    started = time.monotonic()
    work = Path(asked.work)
    work.mkdir(parents=True, exist_ok=True)
    tokens, test, labels = corpora(asked.corpus)
    loaded = load_model(asked.model, device=asked.device, dtype=asked.dtype)
    found = stacks(targets(asked, loaded.model), loaded.model, asked.stack)
    once = len(tokens)
    random = np.random.default_rng(1)
    tokens = np.concatenate([tokens, *(tokens[random.permutation(once)] for _ in range(asked.passes - 1))])
    plan = planned(asked, loaded, tokens, found, work / "plan.json")
    sites = {target.site for stack in found for target in stack}
    say = partial(_say, started)
    say(
        f"{sum(map(len, found))} SAEs in {len(found)} stacks; {plan['contexts']} contexts ({once} different ones) in "
        f"{plan['parts']} parts, {plan['epochs']:.2f} epochs"
    )

    def tell(site: Site, report: Mapping[str, float]) -> None:
        if site == stack[0].site:
            say(
                f"{site} and {len(stack) - 1} more: step {report['step']} of {report['of']}, "
                f"L0 {report['l0']:.1f}, FVU {report['fvu']:.3f}"
            )

    hold = partial(activations.hold, loaded.model, special=sorted(loaded.special), batch=asked.model_batch)
    beside = hold(test[: asked.contexts], sites)
    going: list[Stack | None] = [None for _ in found]
    finished = work / "finished.json"  # how many parts are behind the checkpoints, and in which folder those are
    done, kept = json.loads(finished.read_text()) if finished.exists() else (0, "checkpoints-1")
    for part, where in enumerate(np.array_split(np.arange(plan["contexts"]), plan["parts"])):
        if part < done:
            continue
        rows = hold(tokens[where], sites)
        say(f"part {part}: {len(next(iter(rows.values())))} tokens at {len(sites)} sites")
        for index, stack in enumerate(found):
            going[index] = _fit(asked, work / kept, going[index], stack, rows, beside, part, plan, tell)
        late = asked.stop_after is not None and time.monotonic() - started > 60 * asked.stop_after
        last = part == plan["parts"] - 1
        if late or last or (part + 1) % asked.keep_every == 0:
            kept = "checkpoints-1" if kept == "checkpoints-0" else "checkpoints-0"
            _keep(work / kept, found, going)
            if last:
                _write_down(work, loaded, found, going, rows, plan)
            write_atomically(finished, json.dumps([part + 1, kept]).encode())
        del rows
        if late and not last:
            say("stopped; the same command goes on from here")
            return STOPPED
    going.clear()
    if asked.stop_after is not None and time.monotonic() - started > 60 * asked.stop_after:
        say("stopped; the same command measures what was made")
        return STOPPED
    _results(work, loaded, found, test, labels, plan, asked, say)
    say(f"done: {work / 'result'}")
    return 0


def _say(started: float, text: str) -> None:
    print(f"{(time.monotonic() - started) / 60:6.1f} min  {text}", flush=True)


def _fit(
    asked: argparse.Namespace,
    kept: Path,
    going: Stack | None,
    stack: list[Target],
    rows: Mapping[Site, torch.Tensor],
    beside: Mapping[Site, torch.Tensor],
    part: int,
    plan: Mapping[str, Any],
    tell: Callable[[Site, dict[str, float]], None],
) -> Stack:
    """One part of a stack, which comes from the part before, from checkpoints, or from its start."""
    with torch.inference_mode():
        if going is not None:
            going.turn(rows, part)
        else:
            begun = Scope.open(asked.start) if asked.start else None
            runs = [
                Run(
                    rows[target.site],
                    beside[target.site],
                    target.site,
                    replace(target.settings, epochs=plan["epochs"]),
                    checkpoint=kept / target.name,
                    part=part,
                    parts=plan["parts"],
                    start=_start(target, begun),
                )
                for target in stack
            ]
            going = Stack(runs)
        going.go(tell, save=False)
    return going


def _keep(folder: Path, found: list[list[Target]], going: Sequence[Stack | None]) -> None:
    """Checkpoints into one of two folders, so that a kill meanwhile leaves those in the other whole."""
    for stack, trained in zip(found, going, strict=True):
        for target, run in zip(stack, trained.runs, strict=True):  # type: ignore[union-attr]
            run.folder = folder / target.name
            run.folder.mkdir(parents=True, exist_ok=True)
            run.save()


def _start(target: Target, begun: Scope | None) -> Continued | None:
    if begun is None or target.set != "main" or target.site not in begun.sites:
        return None
    return Continued(f"{begun.id}#{target.site}", begun.load(target.site))


def _write_down(
    work: Path,
    loaded: LoadedModel,
    found: list[list[Target]],
    going: Sequence[Stack | None],
    rows: Mapping[Site, torch.Tensor],
    plan: Mapping[str, Any],
) -> None:
    """Every SAE as it is at the end, with statistics over the last part's tokens, in float32."""
    listable = listable_tokens(loaded.tokenizer)
    for stack, trained in zip(found, going, strict=True):
        for target, run in zip(stack, trained.runs, strict=True):  # type: ignore[union-attr]
            with torch.inference_mode():
                sae = run.finished()
                known = feature_stats(sae, rows[target.site], cut=run.scaling.cut)
                if target.set == "main":
                    known = replace(known, **promoted_tokens(loaded.model, sae, listable))
            facts = {
                "outlier_norm": round(run.scaling.cut, 1),
                "dead": round(float((known.density == 0).mean()), 4),
                "statistics_tokens": len(rows[target.site]),
                "train_tokens": run.done * target.settings.batch,
                "epochs": round(plan["epochs"], 3),
            }
            made = [(sae, known, facts)]
            write_scope(work / "saes" / target.name, made, id=target.name, model=model_facts(loaded), packed=False)


# ---- results


def _results(
    work: Path,
    loaded: LoadedModel,
    found: list[list[Target]],
    tokens: np.ndarray,
    labels: np.ndarray,
    plan: Mapping[str, Any],
    asked: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    """One scope in int8 for each set, measured as it is written, and the measurements in its manifest and in a file.

    Measured in float32, on the first --contexts held-out contexts; the delta loss by label on more of them, the first
    --label-contexts of each label, for the sites of --curve.
    """
    loaded.model.float()
    some = slice(0, asked.contexts)
    every = [target for stack in found for target in stack]
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(target.set for target in every):
        here = [target for target in every if target.set == name]
        folder = work / "result" / name
        made = {
            "trainer": "gemloupe.train",
            "activations": f"{loaded.dtype}, {plan['contexts']} contexts of {tokens.shape[1]}, without special tokens",
            "recipes": {str(target.site): asdict(replace(target.settings, epochs=plan["epochs"])) for target in here},
        }
        write = partial(write_scope, folder, id=f"{loaded.id}-{name}", model=model_facts(loaded), made_with=made)
        write(_finished(work, here, {}))
        measured_ = evaluate(
            loaded.model,
            tokens[some],
            Scope.open(folder),
            special=sorted(loaded.special),
            unrounded=[Scope.open(work / "saes" / target.name).load(target.site) for target in here],
            loss_contexts=asked.loss_contexts,
            importance_contexts=2 if name == "main" else 0,
            batch=asked.measure_batch,
        )
        figures[name] = {str(site): one.row() for site, one in measured_.items()}
        say(f"measured {name}")
        if name == "main":
            figures |= _by_label(loaded, folder, tokens, labels, asked)
        write(_finished(work, here, {site: _short(one.as_dict()) for site, one in measured_.items()}))
    write_atomically(work / "result" / "evaluation.json", json.dumps(figures, indent=1).encode())


def _by_label(
    loaded: LoadedModel, folder: Path, tokens: np.ndarray, labels: np.ndarray, asked: argparse.Namespace
) -> dict[str, Any]:
    scope = Scope.open(folder)
    sites = [site for site in map(Site.of, asked.label_sites.split(",")) if site in scope.sites]
    if not sites or not labels[0]:
        return {}
    chosen = np.concatenate([np.flatnonzero(labels == one)[: asked.label_contexts] for one in np.unique(labels)])
    found = evaluate(
        loaded.model, tokens[chosen], scope, special=sorted(loaded.special), sites=sites, groups=list(labels[chosen]),
        batch=asked.measure_batch,
    )  # fmt: skip
    return {"by label": {str(site): {k: dict(v) for k, v in one.groups.items()} for site, one in found.items()}}


def _finished(
    work: Path, here: Iterable[Target], facts: Mapping[Site, Mapping[str, float]]
) -> Iterable[tuple[Sae, FeatureStats, dict[str, Any]]]:
    for target in here:
        scope = Scope.open(work / "saes" / target.name)
        known = {
            key: value for key, value in scope.facts(target.site).items() if key not in ("folder", "files", "width")
        }
        yield scope.load(target.site), scope.stats(target.site), {**known, **facts.get(target.site, {})}


def _short(figures: Mapping[str, float]) -> dict[str, float]:
    names = (
        "l0",
        "fvu",
        "fvu_other_dims",
        "outliers",
        "loss",
        "delta_loss_mean",
        "delta_loss_median",
        "mean_delta_loss",
    )
    kept = {name: round(float(figures[name]), 4) for name in (*names, "loss_recovered")}
    if "uniformity" in figures:
        kept["uniformity"] = round(float(figures["uniformity"]), 3)
    return {**kept, "held_out_tokens": int(figures["tokens"]), "loss_contexts": int(figures["contexts"])}


# ---- pieces


def cut(asked: argparse.Namespace) -> None:
    """A tar of the folder in files of a size, and their digests. The tar is the same each time it is made."""
    source, out = Path(asked.folder), Path(asked.out)
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "whole.tar"

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
        return info

    with tarfile.open(whole, "w") as tar:
        for path in sorted(source.rglob("*")):
            tar.add(path, path.relative_to(source).as_posix(), recursive=False, filter=plain)
    size, pieces = int(asked.megabytes * 2**20), []
    if size < 1:
        raise SystemExit(f"{asked.megabytes} megabytes is no size of a piece. Give a larger one.")
    last = None if asked.count is None else asked.first + asked.count
    with whole.open("rb") as file:
        while block := file.read(size):
            name = f"piece-{len(pieces):03}"
            if asked.first <= len(pieces) and (last is None or len(pieces) < last):
                (out / name).write_bytes(block)
            pieces.append({"name": name, "bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()})
    whole.unlink()
    (out / MANIFEST).write_text(json.dumps(pieces, indent=1))
    print(
        f"{len(pieces)} pieces of {asked.megabytes:g} MB or less, "
        f"{sum(one['bytes'] for one in pieces) / 1e6:.1f} MB in all"
    )


def join(asked: argparse.Namespace) -> None:
    """The folder again, once every piece is there and is what it was."""
    source, folder = Path(asked.pieces), Path(asked.folder)
    if not (source / MANIFEST).exists():
        raise SystemExit(f"{source} has no {MANIFEST}. Copy it there with the pieces.")
    pieces = json.loads((source / MANIFEST).read_text())
    for one in pieces:
        file = source / one["name"]
        if not file.exists():
            raise SystemExit(f"{file} is missing: there are {len(pieces)} pieces. Copy it, then join again.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != one["sha256"]:
            raise SystemExit(f"{file} is not what was written (its digest differs). Copy it again, then join again.")
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole.tar"
    with whole.open("wb") as out:
        for one in pieces:
            out.write((source / one["name"]).read_bytes())
    with tarfile.open(whole) as tar:
        tar.extractall(folder, filter="data")
    whole.unlink()
    print(folder)


# ---- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    one = commands.add_parser("pack", help="texts into a corpus of token ids")
    one.add_argument("corpus")
    one.add_argument("texts", nargs="+")
    one.add_argument("--model")
    one.add_argument("--tokens", type=int, help="at most so many to train on")
    one.add_argument("--context", type=int, default=256)
    one.add_argument(
        "--label", metavar="FIELD", help="keep this field of the held-out lines: delta loss is also given by it"
    )
    one.set_defaults(run=pack_corpus)

    one = commands.add_parser("write", help="a corpus that the model writes itself")
    one.add_argument("corpus")
    one.add_argument("--model")
    one.add_argument("--device", default="cuda")
    one.add_argument("--dtype", default="bfloat16")
    one.add_argument("--context", type=int, default=256)
    one.add_argument("--rows", type=int, default=2048, help="in one batch")
    one.add_argument("--batches", type=int, default=6)
    one.add_argument("--one-in", type=int, default=20, help="contexts held out")
    one.add_argument("--seed", type=int, default=1000)
    one.set_defaults(run=write_corpus)

    one = commands.add_parser("train", help="train, or go on where a training stopped")
    one.add_argument("work")
    one.add_argument("corpus", nargs="+")
    one.add_argument("--minutes", type=float, required=True, help="time the whole training may take")
    one.add_argument("--stop-after", type=float, metavar="MINUTES", help="stop this call then, to be gone on with")
    one.add_argument("--model")
    one.add_argument("--device", default="cuda")
    one.add_argument("--dtype", default="bfloat16", help="of the model (default: %(default)s)")
    one.add_argument("--sites", default=",".join(kind for kind in KINDS if kind != "transcoder"))
    one.add_argument("--width-res", type=int, default=2048)
    one.add_argument("--width-mlp", type=int, default=1280)
    one.add_argument("--width-att", type=int, default=1024)
    one.add_argument("--wide", type=int, default=0, help="also a set of res SAEs of this width")
    one.add_argument("--l0", type=float, default=44.0, help="aimed at, in the residual stream")
    one.add_argument("--l0-mlp", type=float)
    one.add_argument("--l0-att", type=float)
    one.add_argument("--dense", type=float, help="density above which a residual feature pays (default: 2 L0 / width)")
    one.add_argument("--start", metavar="SCOPE", help="train its SAEs on")
    one.add_argument("--slower", type=float, default=0.7, help="share of the learning rate for what is trained on")
    one.add_argument("--dead-after", type=int, default=1_000_000, help="tokens without firing")
    one.add_argument("--passes", type=int, default=1, help="over the text")
    one.add_argument("--keep-every", type=int, default=8, metavar="PARTS", help="parts between checkpoints")
    one.add_argument("--curve", default="res.5,res.9,res.12", help="sites that are also trained for --curve-l0")
    one.add_argument("--curve-l0", default="", help="for example 10,20,80,160")
    one.add_argument("--epochs", type=float, default=3.0, help="at most")
    one.add_argument("--batch", type=int, default=1024, help="tokens in a step")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--stack", type=int, default=18, help="SAEs stepped together, at most")
    one.add_argument("--gigabytes", type=float, default=80.0, help="of device memory for activations")
    one.add_argument("--model-batch", type=int, default=64, help="contexts in one pass over the model")
    one.add_argument("--contexts", type=int, default=128, help="held-out contexts to measure on")
    one.add_argument("--loss-contexts", type=int, default=64, help="of these, for the loss")
    one.add_argument("--label-sites", default="res.2,res.5,res.9,res.12,res.16", help="delta loss by label at these")
    one.add_argument("--label-contexts", type=int, default=12, help="of each label")
    one.add_argument("--measure-batch", type=int, default=16, help="contexts in one pass of the measuring")
    one.set_defaults(run=train)

    one = commands.add_parser("pieces", help="a folder into files of a size")
    one.add_argument("folder")
    one.add_argument("out")
    one.add_argument("--megabytes", type=float, default=15.0)
    one.add_argument("--first", type=int, default=0, help="number of the first piece that is written")
    one.add_argument("--count", type=int, help="how many are written (default: all)")
    one.set_defaults(run=cut)

    one = commands.add_parser("join", help="the folder from its pieces")
    one.add_argument("pieces")
    one.add_argument("folder")
    one.set_defaults(run=join)

    asked = parser.parse_args(arguments)
    return asked.run(asked) or 0


if __name__ == "__main__":
    sys.exit(main())
