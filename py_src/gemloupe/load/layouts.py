"""The forms in which one SAE lies on disk, and the one form it has in memory.

`deflated` cfg.json + sae_int8.safetensors.zlib  ours: int8 with one scale per feature, compressed
`packed`   cfg.json + sae_int8.safetensors       the same, not compressed
`saelens`  cfg.json + sae_weights.safetensors    SAELens 6
`scope1`   params.npz                            Gemma Scope
`scope2`   config.json + params.safetensors      Gemma Scope 2
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import refuse
from ..site import Site
from .artifact import DEFLATED, PICKLED, Content, check_shapes, npz_shapes, read_json, read_npz, read_safetensors
from .sae import BEFORE_GAIN, Sae, Transcoder, site_of_hook

FILES = {
    "deflated": ("cfg.json", f"sae_int8.safetensors{DEFLATED}"),
    "packed": ("cfg.json", "sae_int8.safetensors"),
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "scope1": ("params.npz",),
    "scope2": ("config.json", "params.safetensors"),
}
# int8 steps to a weight's deviation. Coarser grids compress better; at the five sites measured, these moved FVU by at
# most .0012 and L0 by at most .1. The decoder bears more: its errors average out over some forty active features.
ENCODER_STEPS, DECODER_STEPS = 14.0, 6.0
_DEEPEST = 4  # folders below the one that is given: a repository of Gemma Scope has three
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_ONES = ("scaling_factor",)  # of a fine-tuning that Gemma Scope did not do; some files carry it
_SKIP = "affine_skip_connection"  # [d_in, d_out]
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SCOPE2_HOOKS = {
    "output": "res",
    "self_attn.o_proj.input": "att",
    "post_feedforward_layernorm.output": "mlp",
    "pre_feedforward_layernorm.output": "transcoder",
}


@dataclass(frozen=True)
class Found:
    """One SAE on disk: where, in which form, for which site, how wide. `d_in` may be unknown until it is read."""

    folder: Path
    layout: str
    site: Site
    width: int
    d_in: int | None = None
    fold_b_dec: bool = False  # the encoder reads x - b_dec
    no_threshold: bool = False  # plain ReLU
    model_name: str | None = None
    content: Content | None = None  # of the weights, if they are compressed and a manifest says it
    transcoder: bool = False
    before_gain: bool = False  # the transcoder reads the norm's output without its gain
    affine: bool = False  # the transcoder has a linear path past its features


def layout_of(folder: Path) -> str | None:
    """The form of the SAE whose files lie in `folder` itself; None if none do."""
    return next((form for form, files in FILES.items() if all((folder / file).exists() for file in files)), None)


def within(folder: Path) -> list[Path]:
    """The folders below `folder` that hold an SAE each, as repositories of Gemma Scope and trainings lay them out."""
    found = []
    for place, inside, _ in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        if layout_of(Path(place)) is not None:
            found.append(Path(place))
            inside.clear()
        elif len(Path(place).relative_to(folder).parts) == _DEEPEST:
            inside.clear()
    return found


def find(folder: Path, site: Site | None = None) -> Found:
    """The SAE in `folder`, from its config. `site` says where it reads, if the files do not; it wins over a guess."""
    layout = layout_of(folder)
    if layout is None:
        pickled = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICKLED) if folder.is_dir() else []
        if pickled:
            raise refuse("scope-pickled", file=pickled[0])
        wanted = " or ".join(" + ".join(files) for files in FILES.values())
        raise refuse("scope-not-found", given=folder, why=f"no manifest.json there, nor {wanted}, nor in folders below")
    return {"scope1": _find_scope1, "scope2": _find_scope2}.get(layout, _find_saelens)(folder, layout, site)


def _find_saelens(folder: Path, layout: str, site: Site | None) -> Found:
    file = folder / "cfg.json"
    config = read_json(file)
    about = config.get("metadata")
    about = about if isinstance(about, dict) else config
    name = about.get("hook_name")
    named = site_of_hook(name)
    if site is not None and named is not None and named != site:
        raise refuse(
            "file-unreadable", file=file, kind="SAE", why=f"it reads {name!r}, which is {named} and not {site}"
        )
    if (site or named) is None:
        raise refuse("file-unreadable", file=file, kind="SAE", why=f"hook {name!r} is not a tensor gemloupe reads")
    kind = config.get("architecture", "standard")
    transcoder = kind in ("jumprelu_transcoder", "jumprelu_skip_transcoder")
    if kind not in ("jumprelu", "standard") and not transcoder:
        raise refuse("file-unreadable", file=file, kind="SAE", why=f"its architecture is {kind!r}, expected 'jumprelu'")
    scaling = config.get("normalize_activations", "none")
    if scaling != "none":
        why = f"it normalises activations ({scaling!r}); fold that into its weights first"
        raise refuse("file-unreadable", file=file, kind="SAE", why=why)
    model_name = about.get("model_name")
    return Found(
        folder,
        layout,
        (site or named),  # type: ignore[arg-type]
        _count(file, config, "d_sae"),
        _count(file, config, "d_in"),
        fold_b_dec=config.get("apply_b_dec_to_input", True) is not False,  # SAELens' default is True
        no_threshold=kind == "standard",
        transcoder=transcoder,
        before_gain=transcoder and isinstance(name, str) and name.endswith(BEFORE_GAIN),
        affine=kind == "jumprelu_skip_transcoder",
        model_name=model_name if isinstance(model_name, str) else None,
    )


def _find_scope1(folder: Path, layout: str, site: Site | None) -> Found:
    file = folder / "params.npz"
    if site is None:
        path = str(file.absolute()).replace("\\", "/")
        layer = re.search(r"/layer_(\d{1,4})/", path)
        kind = re.search(r"gemma-scope-[a-z0-9-]*-(res|mlp|att|transcoder)s?\b", path)
        if layer is None or kind is None:
            raise refuse("scope-site-unknown", file=file)
        site = Site(kind[1], int(layer[1]))
    shape = npz_shapes(file, _NAMES, optional=_ONES)["W_enc"]
    if len(shape) != 2:
        raise refuse("scope-damaged", file=file, why=f"W_enc has shape {shape}")
    d_in, width = shape
    transcoder = site.kind == "transcoder"
    return Found(folder, layout, site, width, d_in, transcoder=transcoder, before_gain=transcoder)


def _find_scope2(folder: Path, layout: str, site: Site | None) -> Found:
    file = folder / "config.json"
    config = read_json(file)
    site = site or scope2_site(config)
    if site is None:
        why = f"hook {config.get('hf_hook_point_in')!r} is not one gemloupe reads"
        raise refuse("file-unreadable", file=file, kind="SAE", why=why)
    model_name = config.get("model_name")
    return Found(
        folder,
        layout,
        site,
        _count(file, config, "width"),
        transcoder=site.kind == "transcoder",
        affine=bool(config.get("affine_connection")),
        model_name=model_name if isinstance(model_name, str) else None,
    )


def scope2_site(config: dict[str, Any]) -> Site | None:
    """The site that the config.json of Gemma Scope 2 names; None if it is none of ours."""
    hook = re.fullmatch(r"model\.layers\.(\d{1,4})\.(.+)", str(config.get("hf_hook_point_in", "")))
    return Site(_SCOPE2_HOOKS[hook[2]], int(hook[1])) if hook and hook[2] in _SCOPE2_HOOKS else None


def _count(file: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value <= 0:
        raise refuse("scope-damaged", file=file, why=f"{name} is {value!r}, expected a whole number above 0")
    return value


def read(found: Found, *, model: object = "this scope") -> Sae:
    """The SAE, checked: names, shapes, finite numbers, thresholds that are not negative."""
    file = found.folder / FILES[found.layout][-1]
    if found.layout in ("deflated", "packed"):
        return _read_packed(file, found, model)
    if found.layout == "scope1":
        tensors = read_npz(file, _NAMES, optional=_ONES)
        for name in _ONES:
            if name in tensors and not bool((tensors.pop(name) == 1).all()):
                raise refuse("file-unreadable", file=file, kind="SAE", why=f"its {name} is not 1 throughout")
    elif found.layout == "scope2":
        lower = {name.lower(): name for name in _NAMES} | ({_SKIP: _SKIP} if found.affine else {})
        tensors = {lower[name]: value for name, value in read_safetensors(file, lower).items()}
    else:
        names = _NAMES[:4] if found.no_threshold else _NAMES
        tensors = read_safetensors(file, (*names, "W_skip") if found.affine else names)
        if found.affine:
            tensors[_SKIP] = tensors.pop("W_skip").T
    for name, value in tensors.items():
        if value.dtype not in _FLOATS:
            raise refuse("scope-damaged", file=file, why=f"{name} holds {value.dtype}, expected torch.float32")
    # A transcoder of Gemma reads and writes tensors of one width, so both kinds have the same shapes.
    width, d_in = found.width, found.d_in or tensors["b_dec"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, width),
        "b_enc": (width,),
        "W_dec": (width, d_in),
        "b_dec": (d_in,),
        **({_SKIP: (d_in, d_in)} if _SKIP in tensors else {}),
        "threshold": (width,),
    }
    if found.no_threshold:
        tensors["threshold"] = torch.zeros(width)
    check_shapes(file, tensors, shapes, site=found.site, model=model)
    _check_threshold(file, tensors["threshold"])
    tensors = {name: value.float() for name, value in tensors.items()}
    encoder = tensors["W_enc"].T.contiguous()
    b_enc = tensors["b_enc"]
    if found.fold_b_dec:
        b_enc = b_enc - encoder @ tensors["b_dec"]
    if found.transcoder:
        return Transcoder(
            found.site,
            encoder,
            b_enc,
            tensors["threshold"],
            tensors["W_dec"].contiguous(),
            tensors["b_dec"],
            skip=tensors[_SKIP].T.contiguous() if _SKIP in tensors else None,
            before_gain=found.before_gain,
        )
    return Sae(found.site, encoder, b_enc, tensors["threshold"], tensors["W_dec"].contiguous(), tensors["b_dec"])


def _check_threshold(file: Path, threshold: torch.Tensor) -> None:
    low = int(threshold.argmin())
    if threshold[low] < 0:
        raise refuse("scope-damaged", file=file, why=f"the threshold of feature {low} is {float(threshold[low])}")


def _read_packed(file: Path, found: Found, model: object) -> Sae:
    width, d_in = found.width, found.d_in or 0
    vector: tuple[int, ...] = (width,)
    shapes = {
        "W_enc": (width, d_in),
        "W_enc_scale": vector,
        "W_dec": (width, d_in),
        "W_dec_scale": vector,
        "b_enc": vector,
        "threshold": vector,
        "b_dec": (d_in,),
    }
    tensors = read_safetensors(file, shapes, content=found.content)
    for name, value in tensors.items():
        expected = torch.int8 if name in ("W_enc", "W_dec") else torch.float32
        if value.dtype != expected:
            raise refuse("scope-damaged", file=file, why=f"{name} holds {value.dtype}, expected {expected}")
    check_shapes(file, tensors, shapes, site=found.site, model=model)
    _check_threshold(file, tensors["threshold"])
    return Sae(
        found.site,
        encoder=_unpacked(tensors["W_enc"], tensors["W_enc_scale"]),
        b_enc=tensors["b_enc"],
        threshold=tensors["threshold"],
        decoder=_unpacked(tensors["W_dec"], tensors["W_dec_scale"]),
        b_dec=tensors["b_dec"],
        encoder_int8=tensors["W_enc"],
        encoder_scale=tensors["W_enc_scale"],
    )


def _unpacked(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """By numpy: a thread that loads must not start a pool of torch's (see `encode.norms`), and it is quicker."""
    made = rows.numpy().astype(np.float32)
    made *= scale.numpy()[:, None]
    return torch.from_numpy(made)


def grid(rows: torch.Tensor, steps: float) -> torch.Tensor:
    """The step [row, 1] on which each of `rows` [row, d_in] is rounded to int8: `steps` of them to its deviation.

    The deviation is the one its middle half suggests, so that the few weights of massive dimensions, which can be ten
    times larger, do not set it; it is widened where the largest weight would pass 127 steps. Rows that lie on a grid
    already, because they were packed before, keep it.
    """
    size = rows.abs()
    largest = size.amax(1, keepdim=True)
    deviation = size.median(1, keepdim=True).values / 0.6745  # of a normal distribution
    step = torch.maximum(deviation / steps, largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    smallest = torch.where(size > 0, size, torch.inf).amin(1, keepdim=True)
    for parts in range(8, 0, -1):  # the smallest weight of a packed row is one step, in short rows a few
        known = smallest / parts
        ratio = rows / known
        on_it = ((ratio - ratio.round()).abs().amax(1, keepdim=True) < 1e-3) & (largest < 127.5 * known)
        step = torch.where(on_it, known, step)
    return step


def pack(sae: Sae) -> dict[str, torch.Tensor]:
    """The tensors of the packed form: int8, each weight within half a step of its feature's grid.

    Packing what was unpacked gives the same integers. Decoder rows keep their length, and the encoder bias makes up
    for the rounding at x = b_dec, which is near the mean activation: Gemma's mean is large, and an error there would
    shift every pre-activation.
    """
    if isinstance(sae, Transcoder):
        raise refuse("transcoder-not-packed", site=sae.site)
    tensors = {"b_enc": sae.b_enc, "threshold": sae.threshold, "b_dec": sae.b_dec}
    for name, rows, steps in (("W_enc", sae.encoder, ENCODER_STEPS), ("W_dec", sae.decoder, DECODER_STEPS)):
        whole = (rows / grid(rows, steps)).round().clamp_(-127, 127)
        energy = whole.pow(2).sum(1)
        if name == "W_enc":
            scale = (whole * rows).sum(1) / energy  # least squares
        else:
            scale = rows.norm(dim=1) / energy.sqrt()
        tensors[name] = whole.to(torch.int8)
        tensors[f"{name}_scale"] = torch.where(energy > 0, scale, torch.zeros_like(scale))
    unpacked = tensors["W_enc"].float() * tensors["W_enc_scale"][:, None]
    tensors["b_enc"] = sae.b_enc + (sae.encoder - unpacked) @ sae.b_dec
    return {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}


def plain(sae: Sae) -> dict[str, torch.Tensor]:
    """The tensors of the SAELens form, float32."""
    tensors = {
        "W_enc": sae.W_enc,
        "b_enc": sae.b_enc,
        "W_dec": sae.decoder,
        "b_dec": sae.b_dec,
        "threshold": sae.threshold,
    }
    if isinstance(sae, Transcoder) and sae.skip is not None:
        tensors["W_skip"] = sae.skip
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
