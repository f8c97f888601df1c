"""Which tokens a feature's decoder row makes likelier and which less likely, where it acts on the output directly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..load.sae import Sae
from ..site import Site
from .capture import body

LISTED = 10
_PART = 1 << 15  # vocabulary entries whose weights are in float32 at a time
_UNUSED = re.compile(r"<unused[0-9]+>")


def listable_tokens(tokenizer: Any) -> torch.Tensor:
    """bool [vocabulary]: the ids worth naming in a list, so neither special nor reserved (`<unused7>`)."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    mask = torch.ones(max(vocabulary.values()) + 1, dtype=torch.bool)
    for text, index in vocabulary.items():
        if _UNUSED.fullmatch(text):
            mask[index] = False
    mask[list(tokenizer.all_special_ids)] = False
    mask[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = False
    return mask


def promoted_tokens(model: Any, sae: Sae, listable: torch.Tensor) -> dict[str, np.ndarray]:
    """The ten tokens whose logit each feature raises most directly, and the ten it lowers most, with the change.

    See `promoted`, which this is for every feature of an SAE; the changes are float16.
    """
    rows = sae.decoder.to(next(model.parameters()).device)
    unembedding = model.get_output_embeddings().weight.detach().float()  # once for all of them
    lists = [promoted(model, sae.site, some, listable, LISTED, unembedding) for some in rows.split(64)]
    up_id, up, down_id, down = (torch.cat(parts).cpu() for parts in zip(*lists, strict=True))
    return {
        "promotes": up_id.to(torch.int32).numpy(),
        "promotes_logit": up.half().numpy(),
        "suppresses": down_id.to(torch.int32).numpy(),
        "suppresses_logit": down.half().numpy(),
    }


@torch.inference_mode()
def promoted(
    model: Any,
    site: Site,
    rows: torch.Tensor,
    listable: torch.Tensor,
    k: int = LISTED,
    unembedding: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids raised most, by how much, ids lowered most, by how much), each [row, k], for decoder `rows` at `site`.

    The row goes through the final norm's gain and the unembedding (`att` rows through W_O and the post-attention
    norm's gain first), without the norms' division, relative to the mean over `listable` tokens, and through the
    model's soft-cap where it has one.
    """
    stack = body(model)
    rows, listable = rows.float(), listable.to(rows.device)
    if site.kind == "att":
        layer = stack.layers[site.layer]
        rows = rows @ layer.self_attn.o_proj.weight.float().T * (1 + layer.post_attention_layernorm.weight.float())
    rows = rows * (1 + stack.norm.weight.float())
    weight = model.get_output_embeddings().weight if unembedding is None else unembedding
    logits = torch.cat([rows @ part.float().T for part in weight[: len(listable)].split(_PART)], 1)
    logits -= logits[:, listable].mean(1, keepdim=True)
    cap = getattr(stack.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    raised, ids = logits.masked_fill(~listable, -torch.inf).topk(k, dim=1)
    lowered, low_ids = (-logits).masked_fill(~listable, -torch.inf).topk(k, dim=1)
    return ids, raised, low_ids, -lowered
