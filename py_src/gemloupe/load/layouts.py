"""The forms in which one SAE lies on disk, and the one form it has in memory.

`packed`   cfg.json + sae_int8.safetensors     ours: int8 with one scale per feature
`saelens`  cfg.json + sae_weights.safetensors  SAELens 6
`scope1`   params.npz                          Gemma Scope
`scope2`   config.json + params.safetensors    Gemma Scope 2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import refuse
from ..site import Site
from .artifact import PICKLED, check_shapes, read_json, read_npz, read_safetensors
from .sae import Sae, site_of_hook

FILES = {
    "packed": ("cfg.json", "sae_int8.safetensors"),
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "scope1": ("params.npz",),
    "scope2": ("config.json", "params.safetensors"),
}
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
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


def find(folder: Path, site: Site | None = None) -> Found:
    """The SAE in `folder`, from its config. `site` says where it reads, if the files do not; it wins over a guess."""
    layout = next((form for form, files in FILES.items() if all((folder / file).exists() for file in files)), None)
    if layout is None:
        pickled = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICKLED) if folder.is_dir() else []
        if pickled:
            raise refuse("scope-pickled", file=pickled[0])
        wanted = " or ".join(" + ".join(files) for files in FILES.values())
        raise refuse("scope-not-found", given=folder, why=f"no manifest.json there, nor {wanted}")
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
    if kind not in ("jumprelu", "standard"):
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
        model_name=model_name if isinstance(model_name, str) else None,
    )


def _find_scope1(folder: Path, layout: str, site: Site | None) -> Found:
    file = folder / "params.npz"
    if site is None:
        path = str(file.absolute()).replace("\\", "/")
        layer = re.search(r"/layer_(\d{1,4})/", path)
        kind = re.search(r"gemma-scope-[a-z0-9-]*-(res|mlp|att)\b", path)
        if layer is None or kind is None:
            why = "its path does not say which site it reads; give it: Scope.open(folder, site='res.12')"
            raise refuse("file-unreadable", file=file, kind="scope", why=why)
        site = Site(kind[1], int(layer[1]))
    # widths stand only in the arrays; a first look reads nothing but headers' worth when it fails
    tensors = read_npz(file, _NAMES)
    if tensors["W_enc"].ndim != 2:
        raise refuse("scope-damaged", file=file, why=f"W_enc has shape {tuple(tensors['W_enc'].shape)}")
    d_in, width = tensors["W_enc"].shape
    return Found(folder, layout, site, width, d_in)


def _find_scope2(folder: Path, layout: str, site: Site | None) -> Found:
    file = folder / "config.json"
    config = read_json(file)
    hook = re.fullmatch(r"model\.layers\.(\d{1,4})\.(.+)", str(config.get("hf_hook_point_in", "")))
    if site is None and hook is not None and hook[2] in _SCOPE2_HOOKS:
        site = Site(_SCOPE2_HOOKS[hook[2]], int(hook[1]))
    if site is None:
        raise refuse(
            "file-unreadable", file=file, kind="SAE", why=f"hook {hook and hook[0]!r} is not one gemloupe reads"
        )
    if config.get("affine_connection"):
        raise refuse("file-unreadable", file=file, kind="SAE", why="it has an affine skip connection")
    model_name = config.get("model_name")
    return Found(
        folder,
        layout,
        site,
        _count(file, config, "width"),
        model_name=model_name if isinstance(model_name, str) else None,
    )


def _count(file: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value <= 0:
        raise refuse("scope-damaged", file=file, why=f"{name} is {value!r}, expected a whole number above 0")
    return value


def read(found: Found, *, model: object = "this scope") -> Sae:
    """The SAE, checked: names, shapes, finite numbers, thresholds that are not negative."""
    file = found.folder / FILES[found.layout][-1]
    if found.layout == "packed":
        return _read_packed(file, found, model)
    if found.layout == "scope1":
        tensors = read_npz(file, _NAMES)
    elif found.layout == "scope2":
        lower = {name.lower(): name for name in _NAMES}
        tensors = {lower[name]: value for name, value in read_safetensors(file, lower).items()}
    else:
        tensors = read_safetensors(file, _NAMES[:4] if found.no_threshold else _NAMES)
    for name, value in tensors.items():
        if value.dtype not in _FLOATS:
            raise refuse("scope-damaged", file=file, why=f"{name} holds {value.dtype}, expected torch.float32")
    width, d_in = found.width, found.d_in or tensors["b_dec"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, width),
        "b_enc": (width,),
        "W_dec": (width, d_in),
        "b_dec": (d_in,),
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
    tensors = read_safetensors(file, shapes)
    for name, value in tensors.items():
        expected = torch.int8 if name in ("W_enc", "W_dec") else torch.float32
        if value.dtype != expected:
            raise refuse("scope-damaged", file=file, why=f"{name} holds {value.dtype}, expected {expected}")
    check_shapes(file, tensors, shapes, site=found.site, model=model)
    _check_threshold(file, tensors["threshold"])
    return Sae(
        found.site,
        encoder=tensors["W_enc"].float() * tensors["W_enc_scale"][:, None],
        b_enc=tensors["b_enc"],
        threshold=tensors["threshold"],
        decoder=tensors["W_dec"].float() * tensors["W_dec_scale"][:, None],
        b_dec=tensors["b_dec"],
        encoder_int8=tensors["W_enc"],
        encoder_scale=tensors["W_enc_scale"],
    )


def pack(sae: Sae) -> dict[str, torch.Tensor]:
    """The tensors of the packed form: a quarter of the size, each weight within half a step of its feature's scale.

    Packing what was unpacked gives the same integers. Decoder rows keep their length, and the encoder bias makes up
    for the rounding at x = b_dec, which is near the mean activation: Gemma's mean is large, and an error there would
    shift every pre-activation.
    """
    tensors = {"b_enc": sae.b_enc, "threshold": sae.threshold, "b_dec": sae.b_dec}
    for name, rows in (("W_enc", sae.encoder), ("W_dec", sae.decoder)):
        step = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        whole = (rows / step).round()
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
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
