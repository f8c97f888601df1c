"""Makes a `Plan`: what a model with its SAEs will cost, from shapes alone, before anything is loaded or fetched."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..budget import Plan, bytes_of, said
from ..errors import Refusal
from ..load import hub
from ..load.builtin import BUILTIN_ID, part_paths
from ..load.catalog import DIMENSIONS, base_model, spelled
from ..load.find import find_scope
from ..load.memory import free_bytes
from ..load.scope import Scope
from ..site import Site
from ..words import say
from .encodings import waiting_bytes
from .pages import beside, default_budget, footprint
from .read import CHUNK

# A text as long as those the field measures with.
TOKENS = 128
# Bytes a second at which a page that is not in memory is taken to come from the disk, or over the bus to a GPU.
_DISK, _BUS = 1.0e9, 1.0e10
_LOGIT_ROWS = 128
_BUILTIN_SIZE = 250_000_000  # of its packages


@dataclass(frozen=True)
class Shape:
    """The sizes of a Gemma 2 or 3 text model that its number of parameters follows from."""

    n_layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    qk_norm: bool = False

    @property
    def z_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def block(self) -> int:
        """Parameters of all layers, with the final norm."""
        attention = 2 * self.d_model * (self.z_width + self.kv_heads * self.head_dim)
        norms = 4 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        return self.n_layers * (attention + 3 * self.d_model * self.mlp + norms) + self.d_model

    @property
    def parameters(self) -> int:
        """All of them; the unembedding is the embedding."""
        return self.block + self.vocabulary * self.d_model

    def width(self, site: Site) -> int:
        return self.z_width if site.kind == "att" else self.d_model


# heads, kv heads, head width, MLP width, vocabulary of the models whose layers and width the catalogue knows; tests
# compare them with TransformerLens' table.
_MORE = {
    "gemma-2-2b": (8, 4, 256, 9216, 256000),
    "gemma-2-9b": (16, 8, 256, 14336, 256000),
    "gemma-2-27b": (32, 16, 128, 36864, 256000),
    "gemma-3-270m": (4, 1, 256, 2048, 262144),
    "gemma-3-1b-pt": (4, 1, 256, 6912, 262144),
    "gemma-3-4b-pt": (8, 4, 256, 10240, 262208),
    "gemma-3-12b-pt": (16, 8, 256, 15360, 262208),
    "gemma-3-27b-pt": (32, 16, 128, 21504, 262208),
}
SHAPES = {
    name: Shape(
        DIMENSIONS[name].n_layers, DIMENSIONS[name].d_model, *more, qk_norm=DIMENSIONS[name].architecture != "gemma2"
    )
    for name, more in _MORE.items()
}
# Parameters of the vision half, which is fetched with the text half of the larger Gemma 3 models and not opened.
_VISION = 420_000_000
_WITH_VISION = ("gemma-3-4b-pt", "gemma-3-12b-pt", "gemma-3-27b-pt")


def plan(
    model: str | os.PathLike[str] | None = None,
    *,
    scope: Any = None,
    sites: Any = None,
    layers: Any = None,
    width: Any = None,
    l0: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    budget: int | str | None = None,
) -> Plan:
    """What `gl.open` with the same arguments will cost. Needs no network for a model that is known or here."""
    from ..load.model import _dtype_of

    allowed, wanted = bytes_of(budget), _dtype_of(dtype)
    opened = find_scope(model, scope, sites=sites, layers=layers, width=width, l0=l0)
    place, here = _device(device)
    kept = wanted or ("float32" if place in ("cpu", "mps") else "bfloat16")
    name, shape, folder, notes = _shape(model)
    number = 2 if kept == "bfloat16" else 4
    weights = None if shape is None else number * shape.parameters

    sizes: dict[Site, int] = {}
    fetched = copies = 0
    unknown = False
    for site in () if opened is None else opened.sites:
        entries = getattr(opened, "entries", None)
        if entries is not None:
            entry = entries[site]
            sizes[site] = entry.bytes + beside(entry.width, entry.d_in, place)
            copied = (hub.copy_folder(entry) / hub.STAMP).is_file()
            fetched += 0 if entry.cached else entry.bytes
            # what was downloaded stays, and a copy that can be mapped is made of it
            copies += entry.bytes * (1 if copied and hub.local_file(entry) is None else 2)
            continue
        assert opened is not None
        d_in = None if shape is None else shape.width(site)
        if d_in is None:
            unknown = True
            continue
        out = shape.d_model if shape is not None and site.kind == "transcoder" else None
        sizes[site] = footprint(opened.width(site), d_in, place, d_out=out)
        if isinstance(opened, Scope) and opened.source(site) is not None:
            copies += footprint(opened.width(site), d_in, "meta", d_out=out)
    if unknown:
        notes += (say("The size of the SAEs is unknown, since the model's is."),)

    free = free_bytes(place) if here else None
    every, largest = sum(sizes.values()), max(sizes.values(), default=0)
    if allowed is not None:
        limit, source = allowed, say("given")
        if largest > allowed:
            worst = max(sizes, key=sizes.__getitem__)
            notes += (
                say("This budget is too small: the SAE at {site} alone takes {size}.", site=worst, size=said(largest)),
            )
    elif here:
        after = max(0, (free or 0) - (weights or 0)) // 2
        limit, source = max(after, largest), say("half of what is free once the model is loaded")
    else:
        limit, source = every, say("{device} is not here to be asked, so all are taken to fit", device=place)

    held = min(every, limit)
    waiting = 0 if opened is None else waiting_bytes(CHUNK, [opened.width(site) for site in sizes], torch.device(place))
    if free is not None:
        waiting = min(waiting, max(0, free - (weights or 0) - held) // 4)
    working = None if shape is None else _working(shape, number) + waiting
    at_work = None if weights is None or working is None else weights + held + working
    host = at_work if place == "cpu" else None
    if place != "cpu" and weights is not None:
        # the weights pass through the host when they are opened, and what does not fit the device is kept there
        host = max(weights, 0 if every <= limit else min(every, max(default_budget("cpu"), largest)))
    download, disk = _model_files(model, name, shape, folder)
    seconds, how = _seconds(shape, opened, sizes, limit, place, here, kept)
    return Plan(
        model=name,
        scope=None if opened is None else opened.id,
        device=place,
        dtype=kept,
        model_bytes=weights,
        sae_bytes=sizes,
        budget=limit,
        budget_from=source,
        download=None if download is None else download + fetched,
        disk=None if disk is None else disk + copies,
        host_bytes=host,
        device_bytes=at_work,
        free=free,
        seconds=seconds,
        tokens=TOKENS,
        how=how,
        notes=notes + tuple(getattr(opened, "notes", ())),
    )


def _device(given: str | None) -> tuple[str, bool]:
    """(device, is it here): a plan may be made for a machine that is elsewhere."""
    from ..load.model import _place

    if given is None:
        return _place(torch, None, None)[0], True
    if re.fullmatch(r"cuda(:\d+)?", str(given)):
        return str(given), torch.cuda.is_available() and (torch.device(given).index or 0) < torch.cuda.device_count()
    return _place(torch, given, None)[0], True


def _shape(model: Any) -> tuple[str, Shape | None, Path | None, tuple[str, ...]]:
    """(name, shape, folder if it is one, notes) of a model as given to `gl.open`."""
    if model is None:
        return BUILTIN_ID, SHAPES[BUILTIN_ID], None, ()
    folder = Path(model).expanduser()
    if folder.is_dir():
        try:
            return folder.resolve().name, _from_config(json.loads((folder / "config.json").read_bytes())), folder, ()
        except (OSError, ValueError, KeyError, TypeError):
            return (
                folder.name,
                None,
                folder,
                (say("The size of {folder} is unknown: no config.json there can be read.", folder=folder),),
            )
    name = spelled(str(model))
    known = SHAPES.get(base_model(name))
    return (
        name,
        known,
        None,
        () if known else (say("The size of {model} is unknown here; SAEs are counted without it.", model=name),),
    )


def _from_config(config: dict[str, Any]) -> Shape:
    config = config.get("text_config", config)
    return Shape(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
        config["intermediate_size"],
        config["vocab_size"],
        qk_norm=config["model_type"] != "gemma2",
    )


def _model_files(model: Any, name: str, shape: Shape | None, folder: Path | None) -> tuple[int | None, int | None]:
    """(bytes to download, bytes on disk) of the model's own weights."""
    if folder is not None:
        there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return 0, there
    if shape is None:
        return None, None
    if model is None:
        try:
            packed = sum(path.stat().st_size for path in part_paths())
        except Refusal:  # not installed
            return _BUILTIN_SIZE, _BUILTIN_SIZE + 4 * shape.parameters
        return 0, packed + 4 * shape.parameters
    base = base_model(name)
    # Gemma 2's base models are published in float32, everything else in bfloat16.
    number = 4 if base.startswith("gemma-2-") and name == base else 2
    size = number * shape.parameters + (2 * _VISION if base in _WITH_VISION else 0)
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE, f"models--google--{name}", "snapshots")
    here = 0
    for snapshot in sorted(snapshots.iterdir()) if snapshots.is_dir() else ():
        here = max(here, sum(file.stat().st_size for file in snapshot.glob("*.safetensors")))
    return max(0, size - here), max(size, here)


def _working(shape: Shape, number: int) -> int:
    """Bytes a pass needs beside weights: attention scores and the wide layers of a chunk, logits of some positions."""
    scores = 2 * 4 * shape.heads * CHUNK * CHUNK
    wide = number * CHUNK * (3 * shape.mlp + 6 * shape.d_model)
    return scores + wide + 2 * 4 * _LOGIT_ROWS * shape.vocabulary


def _seconds(
    shape: Shape | None, opened: Any, sizes: dict[Site, int], limit: int, place: str, here: bool, dtype: str
) -> tuple[float | None, str]:
    """(estimate, how it was made) for one read of `TOKENS` tokens at all sites."""
    if shape is None or not here:
        if shape is None:
            return None, say("the model's size is unknown")
        return None, say("{device} is not here to be timed", device=place)
    passes = 2.0 * TOKENS * shape.block / _speed(place, dtype)
    encoded = sum(2.0 * TOKENS * shape.width(site) * opened.width(site) for site in sizes)
    encodes = encoded / _speed(place, "float32") if sizes else 0.0
    how = say("matrix products at the speed of one measured now")
    if sum(sizes.values()) <= limit:
        return passes + encodes, how
    # The least recently used leaves first, so a round through more than the budget holds brings every SAE anew.
    moved = sum(sizes.values()) * (0.5 if place == "cpu" else 1.0)  # of a mapped SAE only the encoder is read
    pace = _DISK if place == "cpu" else _BUS
    paging = moved / pace
    return max(passes + encodes, paging), say(
        "{how}; paging at {pace}/s, beside them: {seconds} s", how=how, pace=said(pace), seconds=f"{paging:.2g}"
    )


def _speed(place: str, dtype: str) -> float:
    """Operations a second of a matrix product on a device, from a short one: its best of three."""
    kind = getattr(torch, dtype)
    one = torch.ones(TOKENS, 2048, dtype=kind, device=place)
    two = torch.ones(2048, 2048, dtype=kind, device=place)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        product = one @ two
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2.0 * TOKENS * 2048 * 2048 / best
