"""SAEDashboard on the same tokens as `index.py`, which runs this with a Python that has it and reads what it prints.

    python -m venv dash; dash/bin/pip install sae-dashboard 'pyarrow<22' torch
    python benchmarks/index.py --parts speed,dashboard --dashboard dash/bin/python

In FOLDER lie the SAE as SAELens keeps it, and the tokens. It makes as many examples as an index keeps: the 20 strongest
and 5 of each of 5 intervals, with 10 tokens on each side. Nothing of gemloupe is imported here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--features", type=int, default=128)
    asked = parser.parse_args()

    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        Column,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import SaeVisLayoutConfig
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    tokenizer.init_kwargs["name_or_path"] = str(asked.model)  # TransformerLens asks for it
    huggingface = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32, attn_implementation="eager")
    model = HookedSAETransformer.from_pretrained_no_processing(
        "google/gemma-3-270m", hf_model=huggingface, tokenizer=tokenizer, device="cpu"
    )
    sae = SAE.load_from_disk(str(asked.folder / "sae"), device="cpu")
    tokens = torch.from_numpy(np.load(asked.folder / "tokens.npy").astype(np.int64))
    layout = SaeVisLayoutConfig(
        columns=[
            Column(FeatureTablesConfig()),
            Column(ActsHistogramConfig(), LogitsTableConfig(), LogitsHistogramConfig()),
            Column(SequencesConfig(buffer=(10, 10), n_quantiles=5, stack_mode="stack-none")),
        ]
    )
    config = SaeVisConfig(
        hook_point=sae.cfg.metadata.hook_name,
        features=range(asked.features),
        minibatch_size_tokens=4,
        feature_centric_layout=layout,
    )
    wall, spent = time.perf_counter(), time.process_time()
    SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    said = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - spent}
    print(json.dumps(said | {"tokens": tokens.numel(), "features": asked.features}))


if __name__ == "__main__":
    main()
