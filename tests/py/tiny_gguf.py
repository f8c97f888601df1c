"""A tiny Gemma 3 as a GGUF file in two installed-looking packages: what the built-in model is made of, in small."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gemloupe.load.builtin import Part, Source
from tiny import SPECIALS, tiny_vocabulary

D_MODEL, HEADS, HEAD_DIM, MLP, LAYERS = 64, 4, 32, 96, 7  # multiples of 32, the block of Q8_0 and Q5_0


def write_gguf(path: Path, seed: int = 0) -> Path:
    """A GGUF file with the fields and tensor names of the built-in model; embeddings Q8_0, matrices Q5_0 and F16."""
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

    vocabulary = [*list(tiny_vocabulary()[0])[:-1], "\u2581\u2581"]
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(16)
    writer.add_tokenizer_model("llama")
    # as the real file has them: runs of spaces as spaces
    tokens = [" " * len(name) if set(name) == {"\u2581"} and len(name) > 1 else name for name in vocabulary]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    kinds = {name: TokenType.CONTROL for name in SPECIALS} | {"\n\n": TokenType.USER_DEFINED}
    byte = TokenType.BYTE
    writer.add_token_types(
        [kinds.get(name, byte if name.startswith("<0x") else TokenType.NORMAL) for name in vocabulary]
    )
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)

    def add(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
        values = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)

    q8, q5, f16, f32 = (getattr(GGMLQuantizationType, name) for name in ("Q8_0", "Q5_0", "F16", "F32"))
    add("output_norm.weight", (D_MODEL,), f32)
    add("token_embd.weight", (len(tokens), D_MODEL), q8)
    for layer in range(LAYERS):
        for name, shape, kind in (
            ("attn_k", (HEAD_DIM, D_MODEL), q5),
            ("attn_k_norm", (HEAD_DIM,), f32),
            ("attn_norm", (D_MODEL,), f32),
            ("attn_output", (D_MODEL, HEADS * HEAD_DIM), q8),
            ("attn_q", (HEADS * HEAD_DIM, D_MODEL), q5),
            ("attn_q_norm", (HEAD_DIM,), f32),
            ("attn_v", (HEAD_DIM, D_MODEL), f16),
            ("ffn_down", (D_MODEL, MLP), q8),
            ("ffn_gate", (MLP, D_MODEL), q5),
            ("ffn_norm", (D_MODEL,), f32),
            ("ffn_up", (MLP, D_MODEL), f16),
            ("post_attention_norm", (D_MODEL,), f32),
            ("post_ffw_norm", (D_MODEL,), f32),
        ):
            add(f"blk.{layer}.{name}.weight", shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install(site: Path, data: bytes, n_parts: int = 2) -> Source:
    """Packages in the folder `site` that hold `data` in parts, and the `Source` that describes them.

    Their __init__ fails, so a test fails if it is ever run.
    """
    size = -(-len(data) // n_parts)
    parts = []
    for number in range(n_parts):
        piece = data[number * size : (number + 1) * size]
        part = Part(f"tiny-part{number}", f"tiny_part{number}", f"tiny.gguf.part{number:02}", _sha256(piece))
        (site / part.module / "data").mkdir(parents=True)
        (site / part.module / "__init__.py").write_text("raise AssertionError('the package was run')")
        (site / part.module / "data" / part.file).write_bytes(piece)
        parts.append(part)
    return Source("tiny", _sha256(data), tuple(parts))


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


# In a process of its own: convert and, at the n-th report of progress, say so and wait to be interrupted or killed.
RUN = """
import json, os, signal, sys, time
from pathlib import Path
from gemloupe.errors import Refusal
from gemloupe.load import builtin

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it

facts = json.loads(sys.argv[1])
source = builtin.Source(facts["id"], facts["digest"], tuple(builtin.Part(*part) for part in facts["parts"]))
pause, log = facts.get("pause"), Path(facts["log"])
if limit := facts.get("file_size"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
reports = 0

def report(stage, share):
    global reports
    reports += 1
    with log.open("a") as file:
        file.write(f"{os.getpid()} {stage}\\n")
    if reports == pause:
        print("paused", flush=True)
        time.sleep(60)

try:
    print(builtin.builtin_model(report, source=source), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
except Refusal as refusal:
    print(refusal.code, refusal, flush=True)
    sys.exit(3)
"""


def command(source: Source, log: Path, **facts: Any) -> list[str]:
    """The command line of a process that runs `RUN`."""
    import json

    parts = [[part.package, part.module, part.file, part.sha256] for part in source.parts]
    told = {"id": source.id, "digest": source.digest, "parts": parts, "log": str(log), **facts}
    return [sys.executable, "-c", RUN, json.dumps(told)]
