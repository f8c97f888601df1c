"""Tiny random Gemma models with a real tokenizer, as Hugging Face folders: the test suite's stand-in for weights.

    folder = tiny_model("gemma2", tmp_path / "tiny")          # then AutoModelForCausalLM / AutoTokenizer open it
    folder = tiny_model("gemma3", tmp_path / "it", instruct=True)

The numbers mean nothing, but nothing is degenerate either: norms are random (not zero), the attention width (64)
differs from d_model (48), the sliding window (16) is shorter than a paragraph, Gemma 2's soft-caps are on.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

D_MODEL, HEADS, KV_HEADS, HEAD_DIM, MLP, WINDOW, CONTEXT = 48, 4, 2, 16, 96, 16, 256
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
VOCABULARY = 512

TEXT = """The City of Light is Paris, and the river runs through it on its way to the sea.
In the morning I like to walk to the market, where they sell bread and apples and fish.
She said that the answer was in the book; he read the book twice and found nothing there.
The cat sat on the mat. The dog ran after the cat. They were both asleep before the evening.
There is a light in the window, and the window is open, and the night is warm.
When the king of the mountain came down, the people of the town thought that he was a shepherd.
def add(one, two):
    return one + two

for number in range(10):
    print(number, add(number, 1))
Water boils at 100 degrees; ice melts at 0. In 1969 people walked on the moon.
"""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_model(
    kind: str = "gemma2", folder: str | Path = "tiny", *, instruct: bool = False, layers: int = 4, seed: int = 0
) -> Path:
    """Writes a complete model folder and returns it; the same arguments write the same bytes.

    kind: 'gemma2' or 'gemma3'. instruct: with a chat template, as the -it models have.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(kind, layers)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tiny_weights(kind, layers, seed), folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder, instruct=instruct)
    return folder


def tiny_config(kind: str, layers: int = 4) -> dict[str, Any]:
    """config.json of a tiny model: the fields of the real one, smaller."""
    config: dict[str, Any] = {
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": D_MODEL,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": WINDOW,
    }
    if kind == "gemma2":
        full = [layer % 2 == 1 for layer in range(layers)]
        config |= {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "rope_theta": 10000.0,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        }
    elif kind == "gemma3":
        full = [layer % 4 == 3 for layer in range(layers)]
        config |= {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }
    else:
        raise ValueError(f"no tiny model of kind {kind!r}")
    config["layer_types"] = ["full_attention" if one else "sliding_attention" for one in full]
    return config


def tiny_weights(kind: str, layers: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 tensors under their Hugging Face names, scaled so that every block matters and logits are of order one."""
    random = np.random.default_rng(seed)

    def matrix(out: int, into: int) -> np.ndarray:
        return (random.standard_normal((out, into)) / np.sqrt(into)).astype(np.float32)

    def norm(width: int) -> np.ndarray:
        return (0.3 * random.standard_normal(width)).astype(np.float32)

    embeddings = matrix(VOCABULARY, D_MODEL) / 4  # small beside the blocks, or the model only repeats its input
    embeddings[: len(SPECIALS) + len(BYTES)] /= 3  # so that guesses are mostly words
    tensors = {"model.embed_tokens.weight": embeddings}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, D_MODEL),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, D_MODEL),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, D_MODEL),
            "self_attn.o_proj": (D_MODEL, HEADS * HEAD_DIM),
            "mlp.gate_proj": (MLP, D_MODEL),
            "mlp.up_proj": (MLP, D_MODEL),
            "mlp.down_proj": (D_MODEL, MLP),
        }
        block = {f"{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            block[f"{name}_layernorm.weight"] = norm(D_MODEL)
        if kind == "gemma3":
            block |= {"self_attn.q_norm.weight": norm(HEAD_DIM), "self_attn.k_norm.weight": norm(HEAD_DIM)}
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in block.items()}
    return tensors | {"model.norm.weight": 9 + norm(D_MODEL)}  # sharper guesses


@cache
def tiny_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges) of a BPE trained here: specials, 256 byte tokens, characters, then merges."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    letters = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS) - len(BYTES), initial_alphabet=letters, show_progress=False
    )
    trained.train_from_iterator([TEXT] + ["The City of Light is Paris, I like Paris.\n"] * 8, trainer)
    model = json.loads(trained.to_str())["model"]
    names = [*SPECIALS, *BYTES, *sorted(model["vocab"], key=model["vocab"].get)]
    assert len(names) == VOCABULARY
    return {name: index for index, name in enumerate(names)}, [(one, two) for one, two in model["merges"]]


def save_tokenizer(folder: Path, *, instruct: bool = False) -> None:
    """tokenizer.json and tokenizer_config.json, made as Gemma's are: byte fallback, no prefix space, <bos> added."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary, merges = tiny_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    if instruct:
        config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
