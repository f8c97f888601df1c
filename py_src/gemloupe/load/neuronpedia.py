"""Neuronpedia: a feature's page, and labels and maxima of its bulk export, from files or fetched on request."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np

from ..errors import Refusal, refuse
from ..feature import FeatureId
from ..site import Site
from . import cache
from .catalog import Entry, catalog

T = TypeVar("T")

SITE = "https://www.neuronpedia.org"
EXPORT = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
_LINE_LIMIT = 1 << 20  # bytes; a line with its embedding is about 6 kB
_FILE_LIMIT = 1 << 30  # bytes downloaded; the labels of 16k features are some 30 MB
_SOURCE = re.compile(r"[a-z0-9.-]+/[0-9]+-[a-z0-9_-]+", re.IGNORECASE)


@dataclass(frozen=True)
class Label:
    """What someone, mostly a language model, says a feature is about.

    `source` names the model and the method that wrote it; `score` is Neuronpedia's, None where it has none; `created`
    is an ISO date and time, empty if not known.
    """

    feature: FeatureId
    text: str
    source: str
    score: float | None
    created: str


def page(source: str | None, index: int) -> str | None:
    """The page of a feature of Neuronpedia's `source` ('gemma-2-2b/20-gemmascope-res-16k'); None without a source."""
    return None if source is None else f"{SITE}/{source}/{index}"


def read_labels(place: str | os.PathLike[str], site: Site | str | None = None) -> tuple[Label, ...]:
    """The labels in a file or folder of the bulk export: 'batch-0.jsonl' or '.jsonl.gz' of explanations.

    Several labels per feature are normal, and all are kept, in the order of the features, the best first: by score,
    then the newest. The site is the one that the catalogue has for the lines' source, unless `site` is given; with it,
    lines of another layer are refused. Empty labels are left out. Refuses 'labels-unreadable', naming file and line.
    """
    path = Path(place).expanduser()
    files = sorted(file for file in path.rglob("*") if _is_export(file)) if path.is_dir() else [path]
    if not files:
        raise refuse("labels-unreadable", place=path, why="there is no .jsonl or .jsonl.gz file in it")
    wanted = None if site is None else Site.of(site)
    sites: dict[str, Site] = {}
    found = [label for file in files for label in _labels(file, wanted, sites)]
    return tuple(sorted(found, key=_best_first))


def _is_export(file: Path) -> bool:
    # An export's folder also has activations and features, which are other tables, and far larger.
    return file.name.endswith((".jsonl", ".jsonl.gz")) and file.parent.name not in ("activations", "features")


def best(labels: tuple[Label, ...]) -> dict[FeatureId, Label]:
    """One label per feature: the one with the highest score, and among those the newest."""
    chosen: dict[FeatureId, Label] = {}
    for label in sorted(labels, key=_best_first):
        chosen.setdefault(label.feature, label)
    return chosen


def _best_first(label: Label) -> tuple[Any, ...]:
    score = -math.inf if label.score is None else label.score
    try:
        age = -datetime.fromisoformat(label.created).timestamp()
    except ValueError:
        age = math.inf
    return label.feature, -score, age, label.text


def _labels(file: Path, site: Site | None, sites: dict[str, Site]) -> Iterator[Label]:
    for number, about in _lines(file):
        text = about.get("description")
        if not isinstance(text, str) or not text.strip():
            continue
        try:
            index = int(str(about["index"]))  # a string in the export
            source = f"{about['modelId']}/{about['layer']}"
        except (KeyError, ValueError) as error:
            raise refuse("labels-unreadable", place=file, why=f"line {number} has no usable {error}") from error
        if source not in sites:
            sites[source] = _site_of(source, site, file, number)
        writer = " ".join(str(about[key]) for key in ("explanationModelName", "typeName") if about.get(key))
        score = next((about[k] for k in ("scoreV2", "scoreV1") if isinstance(about.get(k), (int, float))), None)
        yield Label(
            FeatureId(sites[source], index),
            text.strip(),
            writer or "Neuronpedia",
            float(score) if score is not None and math.isfinite(score) else None,
            str(about.get("createdAt") or ""),
        )


def _site_of(source: str, site: Site | None, file: Path, number: int) -> Site:
    layer = re.match(r"[^/]+/(\d+)-", source)
    if site is not None:
        if layer is None or int(layer[1]) != site.layer:
            raise refuse("labels-unreadable", place=file, why=f"line {number} is of {source}, which is not {site}")
        return site
    entry = next((entry for entry in catalog() if entry.neuronpedia == source), None)
    if entry is None or entry.site is None:
        why = f"line {number} is of {source}, which the catalogue does not know; say which site it is with site="
        raise refuse("labels-unreadable", place=file, why=why)
    return entry.site


def read_maxima(place: str | os.PathLike[str], source: str, width: int) -> dict[str, np.ndarray]:
    """'maximum' and 'density', float32 [width], from a features batch of the bulk export, or a folder of them.

    NaN where the export has no line for a feature or no number in it. `source` ('gemma-2-2b/20-gemmascope-res-16k')
    is the SAE they must be of. Refuses 'statistics-unreadable', naming file and line.
    """
    code = "statistics-unreadable"
    path = Path(place).expanduser()
    files = sorted(file for file in path.rglob("*") if _is_features(file)) if path.is_dir() else [path]
    if not files:
        raise refuse(code, place=path, why="there is no .jsonl or .jsonl.gz file of features in it")
    found = {name: np.full(width, np.nan, np.float32) for name in ("maximum", "density")}
    for file in files:
        for number, about in _lines(file, code):
            theirs = f"{about.get('modelId')}/{about.get('layer')}"
            if theirs != source:
                raise refuse(code, place=file, why=f"line {number} is of {theirs}, not of {source}")
            text = str(about.get("index"))
            if not text.isdecimal() or int(text) >= width:
                raise refuse(code, place=file, why=f"line {number} is of feature {text!r}, of {width:,}")
            for name, theirs in (("maximum", "maxActApprox"), ("density", "frac_nonzero")):
                value = about.get(theirs)
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                    raise refuse(code, place=file, why=f"line {number} has {theirs} {value!r}")
                found[name][int(text)] = value
    if not np.isfinite(found["maximum"]).any():
        raise refuse(code, place=path, why="no line has a maxActApprox")
    return found


def _is_features(file: Path) -> bool:
    return file.name.endswith((".jsonl", ".jsonl.gz")) and file.parent.name not in ("activations", "explanations")


def _lines(file: Path, code: str = "labels-unreadable") -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number, object) of each line. Lines are read one by one, and none longer than a megabyte is taken."""
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
            while line := opened.readline(_LINE_LIMIT + 1):
                number += 1
                if len(line) > _LINE_LIMIT:
                    raise refuse(code, place=file, why=f"line {number} is longer than a megabyte")
                if not line.strip():
                    continue
                try:
                    about = json.loads(line)
                except (ValueError, RecursionError) as error:
                    why = f"line {number} is not JSON; the file may be cut short"
                    raise refuse(code, place=file, why=why) from error
                if not isinstance(about, dict):
                    raise refuse(code, place=file, why=f"line {number} is not a JSON object")
                yield number, about
    except FileNotFoundError as error:
        raise refuse(code, place=file, why="nothing is there") from error
    except Refusal:
        raise
    except (EOFError, OSError, zlib.error) as error:
        why = f"line {number + 1} cannot be read ({type(error).__name__}); the file may be cut short"
        raise refuse(code, place=file, why=why) from error


# ---- fetching, only when asked


def fetch_labels(entry: Entry | str, *, progress: Callable[[str, float], None] | None = None) -> Path:
    """Downloads the labels of one SAE from Neuronpedia's public export into the cache folder; returns their folder.

    `entry` is one of the catalogue, or a Neuronpedia source. What was fetched before is not fetched again; nothing
    else in gemloupe asks Neuronpedia for anything, but `fetch_maxima`. Refuses 'labels-not-fetched'.
    """
    return _fetched(entry, "explanations", "labels", progress)


def fetch_maxima(entry: Entry | str, *, progress: Callable[[str, float], None] | None = None) -> Path:
    """Downloads the features of one SAE, with their maxima and densities, as `fetch_labels` does its labels."""
    return _fetched(entry, "features", "features", progress)


def _fetched(entry: Entry | str, table: str, what: str, progress: Callable[[str, float], None] | None) -> Path:
    source = entry.neuronpedia if isinstance(entry, Entry) else entry
    if source is None or not _SOURCE.fullmatch(source):
        raise refuse("labels-not-fetched", what=what, source=str(entry), why="Neuronpedia has no pages for it")
    target = cache.folder() / what / source.replace("/", "--")
    prefix = f"v1/{source}/{table}/"
    with cache.explained("100 MB" if what == "labels" else "1 GB", cache.folder()), cache.alone(target):
        if target.is_dir():
            return target
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise refuse("labels-not-fetched", what=what, source=source, why="HF_HUB_OFFLINE is set")
        names = _reached(source, what, lambda: _listed(prefix))
        if not names:
            raise refuse("labels-not-fetched", what=what, source=source, why=f"the export has no {what} for it")
        with cache.folder_atomically(target) as made:
            made.chmod(0o755)
            for done, name in enumerate(names):
                if progress is not None:
                    progress(f"downloading {what} of {source}", done / len(names))
                data = _reached(source, what, lambda name=name: _get(f"{EXPORT}/{name}"))  # type: ignore[misc]
                (made / name.rpartition("/")[2]).write_bytes(data)
    return target


def _reached(source: str, what: str, ask: Callable[[], T]) -> T:
    """What `ask` gets from the network, or the refusal that says it is not to be reached."""
    from http.client import HTTPException

    try:
        return ask()
    except (OSError, HTTPException, ElementTree.ParseError) as error:
        why = f"Neuronpedia's export cannot be reached ({type(error).__name__})"
        raise refuse("labels-not-fetched", what=what, source=source, why=why) from error


def _listed(prefix: str) -> list[str]:
    """Keys of the export below `prefix`, of the form we read; names that could lead out of a folder are not taken."""
    listing = ElementTree.fromstring(_get(f"{EXPORT}/?list-type=2&prefix={prefix}"))
    keys = [element.text or "" for element in listing.iter() if element.tag.endswith("Key")]
    return [key for key in keys if re.fullmatch(re.escape(prefix) + r"batch-\d+\.jsonl(\.gz)?", key)]


def _get(url: str) -> bytes:
    from urllib.request import urlopen

    with urlopen(url, timeout=30) as answer:
        data = bytearray()
        while part := answer.read(1 << 20):
            data += part
            if len(data) > _FILE_LIMIT:
                raise OSError(f"{url} is larger than a gigabyte")
        return bytes(data)
