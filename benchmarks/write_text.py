"""Text that the built-in model writes itself, to index features over: token ids, sampled with recorded seeds.

Each batch begins with openings in many languages and kinds of text, has its own seed, and is one file; a batch that is
there already is not made again.

    python benchmarks/write_text.py folder --batches 12
    python benchmarks/write_text.py folder --batches 12 --spoken all     # everyday sentences in many languages
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from openings import OPENINGS, SPOKEN

LENGTH, PROMPT, ROWS = 256, 3, 128
TEMPERATURE, TOP_K = 0.9, 200


@torch.inference_mode()
def write(model, prompts: list[list[int]], seed: int) -> np.ndarray:
    """[row, LENGTH] int32: `prompts` (all of one length) continued, each token drawn from the TOP_K likeliest."""
    from gemloupe.run.choose import _cap, _capped
    from gemloupe.run.decode import HuggingFace, Lean
    from gemloupe.run.product import product

    random = torch.Generator().manual_seed(seed)
    steps = HuggingFace(model, len(prompts))
    hidden = steps.feed(prompts, {})
    steps = Lean(model, steps, LENGTH)
    rows = [list(row) for row in prompts]
    while True:
        likeliest = _capped(product(hidden, model.lm_head.weight).float(), _cap(model)).topk(TOP_K)
        chances = (likeliest.values / TEMPERATURE).softmax(-1)
        picked = torch.multinomial(chances, 1, generator=random)
        for row, ident in zip(rows, likeliest.indices.gather(1, picked)[:, 0].tolist(), strict=True):
            row.append(ident)
        if len(rows[0]) == LENGTH:
            return np.array(rows, np.int32)
        hidden = steps.feed([row[-1:] for row in rows], {})


def main() -> None:
    from gemloupe.load.builtin import builtin_model
    from gemloupe.load.cache import write_atomically
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=12, help=f"of {ROWS} texts with {LENGTH} tokens each")
    parser.add_argument("--first", type=int, default=0, help="seed of the first batch")
    parser.add_argument(
        "--spoken", metavar="LANGUAGES", help="begin with everyday sentences in these (Hindi,Arabic,...), or in 'all'"
    )
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    where = builtin_model()
    tokenizer = AutoTokenizer.from_pretrained(where)
    texts = OPENINGS
    if asked.spoken:
        languages = SPOKEN if asked.spoken == "all" else asked.spoken.split(",")
        # one language after the other, so that every batch has them all
        texts = [SPOKEN[language][turn % len(SPOKEN[language])] for turn in range(24) for language in languages]
    openings = [ids[: PROMPT + 1] for ids in tokenizer(texts)["input_ids"]]
    assert all(len(ids) == PROMPT + 1 for ids in openings), "an opening is shorter than the others"
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, attn_implementation="eager").eval()
    for seed in range(asked.first, asked.first + asked.batches):
        file = asked.folder / f"{seed}.npy"
        if file.exists():
            continue
        started = time.perf_counter()
        prompts = [openings[(seed * ROWS + row) % len(openings)] for row in range(ROWS)]
        ids = write(model, prompts, seed)
        packed = io.BytesIO()
        np.save(packed, ids)
        write_atomically(file, packed.getvalue())
        print(json.dumps({"seed": seed, "tokens/s": round(ids.size / (time.perf_counter() - started))}), flush=True)


if __name__ == "__main__":
    main()
