"""Text that the built-in model writes itself, to index features over: token ids, sampled with recorded seeds.

Each batch begins with openings in many languages and kinds of text, has its own seed, and is one file; a batch that is
there already is not made again.

    python benchmarks/write_text.py folder --batches 12
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch

OPENINGS = """
The history of the|A short guide to|In the city of|She opened the door and|He had never seen such|My grandmother used to
The government announced on|Scientists have found that|According to a new|The company said that|Once upon a time there
It was a cold night|Dear Sir or Madam|To make the soup you|Preheat the oven to|The patient was given a
In mathematics, a group is|The theorem says that|Let x be a number|The chemical formula of|Water boils at
The river flows through|The capital of France is|The island lies in the|During the Second World War|In the 19th century
The football team won|The singer released her|The film tells the story|The bird is a species|The cell membrane is
How do I install the|Question: What is the|Answer: The reason is|I love this product because
This book was a disappointment
The court held that the|Article 1. All human|The contract shall be|The stock market fell by|Interest rates are expected
def read_file(path):|import numpy as np|for (int i = 0;|SELECT name FROM users|function render(props) {
<div class="container">|#include <stdio.h>|public static void main|{"name": "John",|$ git commit -m
The teacher asked the children|"Where are you going?"|Roses are red,|And God said unto|The bus leaves at 7:45
List of countries by|Name, age, city, phone|1. First, open the|Monday, Tuesday,|Happy birthday to you
The moon is about|The doctor told him to|Her mother was born in|The king and the queen|The cat sat on the
I am so angry that|We are very happy to|He was sad because the|She laughed and said,|They were afraid of the
Le gouvernement a annoncé|Il était une fois|La ville de Paris est|El presidente dijo que|En un lugar de la
La casa es muy|Die Stadt liegt am|Der Hund lief schnell|Es war einmal ein|Il presidente della
La mia famiglia vive|O governo do Brasil|A cidade de Lisboa|De stad ligt aan|Het weer is vandaag
Это было в начале|Город расположен на берегу|Я люблю читать книги|今天的天气很好，我们|中国的首都是北京
科学家发现了一种新的|从前有一个小男孩|日本の首都は東京で|私は毎朝コーヒーを|彼女は学校へ行って
한국의 수도는 서울이며|오늘은 날씨가 좋아서|भारत की राजधानी नई दिल्ली|मैं हर सुबह चाय|عاصمة مصر هي القاهرة
كان يا ما كان في|Türkiye'nin başkenti Ankara|Bugün hava çok güzel|Stolicą Polski jest Warszawa
Dzisiaj jest piękna pogoda
Hà Nội là thủ đô|Ibu kota Indonesia adalah|Η Αθήνα είναι η πρωτεύουσα|Hlavní město je Praha|Huvudstaden i Sverige är
The recipe needs two cups|The dog barked at|The car would not start|The experiment showed a|The equation can be written
Police arrested a man|The election results were|The church was built in|The museum has a|Mount Everest is the
""".strip().replace("\n", "|").split("|")  # fmt: skip

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
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    where = builtin_model()
    tokenizer = AutoTokenizer.from_pretrained(where)
    openings = [ids[: PROMPT + 1] for ids in tokenizer(OPENINGS)["input_ids"]]
    assert all(len(ids) == PROMPT + 1 for ids in openings), "an opening is shorter than the others"
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, attn_implementation="eager").eval()
    for seed in range(asked.batches):
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
