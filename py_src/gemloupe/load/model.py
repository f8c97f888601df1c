"""Opens Gemma 2 and Gemma 3 text models: the built-in one, a folder, or a Hugging Face id."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..budget import said
from ..errors import refuse
from ..words import say
from . import hub
from .builtin import BUILTIN_DIGEST, BUILTIN_ID, STAMP, Progress, builtin_model
from .memory import free_bytes, free_memory, weights_bytes

# model_type in config.json -> (transformers' class, the architecture's name here)
_READABLE = {
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3_text": ("Gemma3ForCausalLM", "gemma3_text"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),  # with a vision tower: its text half is read
}
# Where checkpoints with a vision tower keep the text half: the spelling on the Hub, then transformers 5's own.
_TEXT_HALF = {r"^language_model\.model\.": "model.", r"^model\.language_model\.": "model."}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_WORTH_SAYING = 2_000_000_000  # bytes; what is smaller is there in seconds
_DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what must be known of it.

    `architecture` is 'gemma2' or 'gemma3_text'; `context` the most tokens it takes; `special` the ids of all special
    tokens, chat markers among them; `digest` the sha256 of the weights' source, None where it is not known;
    `revision` the commit of a model from Hugging Face; `notes` are sentences for the user.
    """

    model: Any
    tokenizer: Any
    id: str
    folder: Path
    revision: str | None
    architecture: str
    device: str
    dtype: str
    context: int
    special: frozenset[int]
    bos: int
    digest: str | None
    notes: tuple[str, ...]


def load_model(
    given: str | os.PathLike[str] | None = None,
    *,
    device: Any = None,
    dtype: Any = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Opens `given`: None for the built-in model, a folder, or a Hugging Face id ('gemma-2-2b' is Google's).

    `device` is 'cuda', 'cuda:1', 'mps' or 'cpu' (the best one by default); `dtype` 'float32' or 'bfloat16' (bfloat16
    on GPUs that have it, else float32). Refuses 'model-not-found', 'model-unsupported', 'model-damaged',
    'dtype-unsupported', 'device-unavailable', 'model-too-large', and what `builtin_model` refuses.
    """
    wanted_dtype = _dtype_of(dtype)
    import torch

    # before anything is fetched or converted
    chosen_device, chosen_dtype, notes = _place(torch, device, wanted_dtype)
    if given is None:
        folder, name, revision = builtin_model(progress), BUILTIN_ID, None
    else:
        folder, name, revision = _find(given)
    shown = BUILTIN_ID if given is None else _unsecret(given)
    kind = _kind(folder, shown)
    notes += _room(folder, shown, chosen_device, chosen_dtype, progress)
    model = _weights(folder, kind, getattr(torch, chosen_dtype), shown)
    model.eval().requires_grad_(False)
    if chosen_device != "cpu":
        model.to(chosen_device)
    tokenizer = _tokenizer(folder, shown)
    digest = BUILTIN_DIGEST if given is None else _stamped(folder) or _named_by_digest(folder)
    if digest == BUILTIN_DIGEST:
        notes.append(say("The weights are a 4-bit quantisation (Q4_K_M) of Google's Gemma 3 270M, widened again."))
    if kind == "gemma3":
        notes.append(say("Only the text half of this model is open; its vision tower is not."))
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else model.config.bos_token_id
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=name,
        folder=folder,
        revision=revision,
        architecture=_READABLE[kind][1],
        device=chosen_device,
        dtype=chosen_dtype,
        context=int(model.config.max_position_embeddings),
        special=special_ids(tokenizer),
        bos=int(bos),
        digest=digest,
        notes=tuple(notes),
    )


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of every special token, also of those without a role of their own (chat markers, unused ones)."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | {index for index in tokenizer.all_special_ids if index is not None})


# --- where it is ---


def _find(given: Any) -> tuple[Path, str, str | None]:
    """(folder, id, revision) of a folder or a Hugging Face id."""
    if not isinstance(given, (str, os.PathLike)) or not str(given):
        raise refuse("model-not-found", given=given, why="that is no name and no folder")
    path = Path(given).expanduser()
    if path.is_dir():
        stamped = _stamped(path) == BUILTIN_DIGEST
        return path, BUILTIN_ID if stamped else path.resolve().name, None
    if path.is_file():
        raise refuse("model-not-found", given=_unsecret(given), why="that is a file, not a folder")
    if not isinstance(given, str) or not _HUB_ID.fullmatch(given):
        raise refuse("model-not-found", given=_unsecret(given), why="there is no such folder, and it is no model id")
    identifier = given if "/" in given or not given.startswith("gemma") else f"google/{given}"
    folder = _fetch(identifier, given)
    return folder, identifier.removeprefix("google/"), folder.name


def _fetch(identifier: str, given: str) -> Path:
    """The local copy of a model on the Hub, downloaded if it is not here; the config first, since it is small."""
    import huggingface_hub

    with _hub_refusals(identifier, given):
        config = Path(huggingface_hub.hf_hub_download(identifier, "config.json"))
    _kind(config.parent, _unsecret(given))
    wanted = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
    with _hub_refusals(identifier, given):
        return Path(huggingface_hub.snapshot_download(identifier, revision=config.parent.name, allow_patterns=wanted))


@contextmanager
def _hub_refusals(identifier: str, given: str) -> Iterator[None]:
    """Says in one sentence why the Hub gave nothing."""
    try:
        yield
    except Exception as error:
        why = hub.why(error, identifier, missing="there is no config.json in it")
        if why is None:
            raise
        raise refuse("model-not-found", given=_unsecret(given), why=why) from hub.shown(error)


def _unsecret(given: Any) -> str:
    """`given` for a message, without what may be an access token."""
    return re.sub(r"(hf_\w{3})\w+|(?<=//)[^/@]+@", r"\1***", str(given))


def _kind(folder: Path, shown: str) -> str:
    """model_type of config.json, refusing what cannot be read here before anything heavy is imported."""
    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except FileNotFoundError as error:
        raise refuse("model-not-found", given=shown, why="there is no config.json in it") from error
    except (ValueError, AttributeError) as error:
        raise refuse("model-damaged", given=shown, why="its config.json is not readable JSON") from error
    if kind not in _READABLE:
        raise refuse("model-unsupported", given=shown, type=kind or "nameless")
    return kind


def _stamped(folder: Path) -> str | None:
    """The source's digest in a folder that gemloupe converted."""
    try:
        return str(json.loads((folder / STAMP).read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named_by_digest(folder: Path) -> str | None:
    """sha256 of the weights in Hugging Face's cache, where files are links to what is named by its digest; of several
    files, the sha256 of theirs one after another. None elsewhere: reading gigabytes only for this would take too long.
    """
    files = sorted(folder.glob("*.safetensors"))
    names = [file.resolve().name for file in files if file.is_symlink()]
    if not names or len(names) < len(files) or not all(re.fullmatch("[0-9a-f]{64}", name) for name in names):
        return None
    return names[0] if len(names) == 1 else hashlib.sha256("".join(names).encode()).hexdigest()


# --- where it runs ---


def _dtype_of(given: Any) -> str | None:
    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    if name not in _DTYPES:
        raise refuse("dtype-unsupported", given=name)
    return _DTYPES[name]


def _place(torch: Any, device: Any, dtype: str | None) -> tuple[str, str, list[str]]:
    """(device, dtype, notes): the best device that is here, unless one is named."""
    available = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        available.append("mps")
    available.append("cpu")
    if device is None:
        chosen = available[0]
    else:
        try:
            asked = torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise refuse("device-unavailable", given=str(device), available=", ".join(available)) from error
        index = asked.index if asked.index is not None else 0
        chosen = f"cuda:{index}" if asked.type == "cuda" else asked.type
        if chosen not in available:
            raise refuse("device-unavailable", given=str(device), available=", ".join(available))
    native = chosen.startswith("cuda") and torch.cuda.get_device_capability(chosen)[0] >= 8
    kept = dtype or ("bfloat16" if native else "float32")
    name = f" ({torch.cuda.get_device_name(chosen)})" if chosen.startswith("cuda") else ""
    where = f"{chosen}{name}"
    notes = [say("Runs on {device} in {dtype}.", device=where, dtype=kept)]
    if len(available) == 1:
        notes.append(say("No GPU was found."))
    if chosen.startswith("cuda") and kept == "bfloat16" and not native:
        notes.append(say("This GPU has no bfloat16 of its own and emulates it slowly; float32 may be faster."))
    return chosen, kept, notes


def _room(folder: Path, shown: str, device: str, dtype: str, progress: Progress | None) -> list[str]:
    """Says what the weights will take before they are loaded, and refuses what would not fit; returns notes."""
    need, stored = weights_bytes(folder, dtype)
    free = free_bytes(device)
    size, left = said(need), said(free)
    smaller = "Give dtype='bfloat16', which takes half, or a smaller model." if dtype == "float32" else ""
    facts: dict[str, Any] = {"given": shown, "need": size, "dtype": dtype}
    if device.startswith("cuda") and need > free:
        instead = smaller or "Close what else uses it, or give a smaller model."
        raise refuse("model-too-large", **facts, free=left, where=f"on {device}", instead=instead)
    if not stored and need > (here := free_memory()):
        instead = smaller or "Close other programs, or give a smaller model."
        raise refuse("model-too-large", **facts, free=said(here), where="in main memory", instead=instead)
    if need > _WORTH_SAYING:
        line = say(
            "loading {model}: {size} in {dtype} on {device}, where {free} are free",
            model=shown,
            size=size,
            dtype=dtype,
            device=device,
            free=left,
        )
        if progress is None:
            print(line, file=sys.stderr)
        else:
            progress(line, 0.0)
    if need <= free:
        return []
    return [say("The weights take {size}, and {free} were free: reading may be slow.", size=size, free=left)]


# --- opening ---


def _weights(folder: Path, kind: str, dtype: Any, shown: str) -> Any:
    """The model on the CPU; refuses weights that are pickled, damaged or incomplete."""
    from safetensors import SafetensorError

    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        why = "its weights are pickles, which can run code when opened" if pickled else "it has no safetensors weights"
        raise refuse("model-not-found", given=shown, why=why)
    options: dict[str, Any] = {}
    try:
        with _quiet():
            import transformers

            Class: Any = getattr(transformers, _READABLE[kind][0])
            if kind == "gemma3":
                whole = transformers.Gemma3Config.from_pretrained(folder, local_files_only=True)
                options = {"config": whole.text_config, "key_mapping": _TEXT_HALF}
            model, report = Class.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="eager",  # the others leave out Gemma 2's soft-cap
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below by name
                **options,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise refuse("model-damaged", given=shown, why=_first_line(error)) from error
    # transformers fills what is missing with random numbers and only logs it
    misshapen = [f"{name} of the right shape" for name, *_ in report["mismatched_keys"]]
    lacking = sorted([*report["missing_keys"], *misshapen])
    if lacking:
        others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise refuse("model-damaged", given=shown, why=f"the weights lack {lacking[0]}{others}")
    return model


def _tokenizer(folder: Path, shown: str) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise refuse("model-not-found", given=shown, why="it has no tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file surfaces as a bare Exception of the tokenizers library
        why = f"its tokenizer cannot be read ({_first_line(error)})"
        raise refuse("model-damaged", given=shown, why=why) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own bar and warnings are not the user's concern here; what they report is checked above."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
