"""TransformerLens' own door to the weights that are already loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import LoadedModel


def bridge(loaded: LoadedModel) -> Any:
    """A TransformerLens `TransformerBridge` that wraps the loaded modules: no second copy of the weights."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(loaded.folder),
        hf_model=loaded.model,
        tokenizer=loaded.tokenizer,
        device=loaded.device,
        dtype=next(loaded.model.parameters()).dtype,
    )
