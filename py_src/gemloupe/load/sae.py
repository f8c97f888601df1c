"""One sparse autoencoder: its numbers, its arithmetic, its name in other libraries."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch.nn.functional import linear

from ..errors import refuse
from ..site import Site

# TransformerLens' names of Gemma Scope's tensors: the alias first, then the canonical name of its bridge.
# `blocks.L.mlp.hook_out` is not here: it is read before the post-norm, and a Gemma Scope SAE means nothing there.
_HOOKS = {
    "res": ("hook_resid_post", "hook_out"),
    "mlp": ("hook_mlp_out", "ln2_post.hook_out"),
    "att": ("attn.hook_z", "attn.o.hook_in"),
    "transcoder": ("mlp.hook_in", "ln2.hook_out"),
}
# What Gemma Scope's transcoders read, where those of Gemma Scope 2 read the norm's output: the same without its gain.
BEFORE_GAIN = "ln2.hook_normalized"
_HOOK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.([a-z0-9_.]+)")


def hook_name(site: Site) -> str:
    """The TransformerLens name of the tensor at `site`, for example 'blocks.12.hook_resid_post'."""
    return f"blocks.{site.layer}.{_HOOKS[site.kind][0]}"


def site_of_hook(name: Any) -> Site | None:
    """The site whose tensor TransformerLens calls `name`, or None if no site reads that tensor."""
    match = _HOOK.fullmatch(name) if isinstance(name, str) else None
    for kind, names in _HOOKS.items():
        if match is not None and (match[2] in names or (kind, match[2]) == ("transcoder", BEFORE_GAIN)):
            return Site(kind, int(match[1]))
    return None


@dataclass(frozen=True, eq=False)
class Sae:
    """A JumpReLU sparse autoencoder in float32, for raw activations, with unscaled input and output.

    `encoder` [d_sae, d_in] holds the encoder by rows, so that one feature is one contiguous vector; `decoder`
    [d_sae, d_in], `b_enc` [d_sae], `threshold` [d_sae], `b_dec` [d_in]. If the SAE came packed, `encoder_int8`
    [d_sae, d_in] times `encoder_scale` [d_sae] equals `encoder` exactly.
    """

    site: Site
    encoder: torch.Tensor
    b_enc: torch.Tensor
    threshold: torch.Tensor
    decoder: torch.Tensor
    b_dec: torch.Tensor
    encoder_int8: torch.Tensor | None = None
    encoder_scale: torch.Tensor | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    @property
    def d_in(self) -> int:
        return self.encoder.shape[1]

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def W_enc(self) -> torch.Tensor:
        """The encoder as [d_in, d_sae]: a view."""
        return self.encoder.T

    @property
    def W_dec(self) -> torch.Tensor:
        return self.decoder

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_sae], before the threshold, in float32 whatever the dtype of `x`."""
        return linear(x.to(self.encoder.dtype), self.encoder, self.b_enc)

    def encode_dense(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_sae]: relu(pre) where pre > threshold (strictly), else 0."""
        pre = self.pre_activations(x)
        return pre.relu() * (pre > self.threshold)

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        """[..., d_sae] -> [..., d_in]."""
        return acts.to(self.decoder.dtype) @ self.decoder + self.b_dec

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_in]: what the active features say `x` was."""
        return self.decode(self.encode_dense(x))

    def to(self, device: torch.device | str) -> Self:
        """The same SAE with its tensors on `device`."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def as_sae_lens(self, model_name: str | None = None) -> Any:
        """An `sae_lens` SAE with the same numbers.

        At `att` sites it expects heads apart, [..., heads, head_dim], as TransformerLens gives them.
        """
        from sae_lens import SAE
        from sae_lens.saes import JumpReLUSAEConfig

        described = JumpReLUSAEConfig.from_dict({**sae_lens_config(self, model_name), "device": str(self.device)})
        theirs = SAE.get_sae_class_for_architecture("jumprelu")(described)
        theirs.load_state_dict(self._state())
        return theirs

    def _state(self) -> dict[str, torch.Tensor]:
        """The tensors under SAELens' names."""
        return {
            "W_enc": self.W_enc.contiguous(),
            "b_enc": self.b_enc,
            "threshold": self.threshold,
            "W_dec": self.decoder,
            "b_dec": self.b_dec,
        }


@dataclass(frozen=True, eq=False)
class Transcoder(Sae):
    """Reads the input of an MLP and predicts its output after the post-norm: the tensor of the `mlp` site.

    It is encoded like an SAE, but it says nothing of what it reads: `decode` and `reconstruct` are refused
    ('transcoder-reconstructs-nothing'), and `predict` stands in their place. `decoder` is [d_sae, d_out], `b_dec`
    [d_out], and `skip` [d_out, d_in], if there, is a linear path past the features. With `before_gain` it reads the
    normalised input without the norm's gain (Gemma Scope), else with it (Gemma Scope 2).
    """

    skip: torch.Tensor | None = None
    before_gain: bool = False

    @property
    def d_out(self) -> int:
        return self.decoder.shape[1]

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_out]: the MLP's output after its post-norm, given the tensor at this site."""
        out = self.encode_dense(x) @ self.decoder + self.b_dec
        return out if self.skip is None else out + linear(x.to(self.skip.dtype), self.skip)

    def decode(self, acts: torch.Tensor) -> NoReturn:
        raise refuse("transcoder-reconstructs-nothing", site=self.site)

    def reconstruct(self, x: torch.Tensor) -> NoReturn:
        raise refuse("transcoder-reconstructs-nothing", site=self.site)

    def as_sae_lens(self, model_name: str | None = None) -> Any:
        """An `sae_lens` transcoder with the same numbers, which names the tensor it was trained on.

        SAELens' own loader names `hook_mlp_in` for Gemma Scope 2, which is another tensor.
        """
        from sae_lens.saes.transcoder import (
            JumpReLUSkipTranscoder,
            JumpReLUSkipTranscoderConfig,
            JumpReLUTranscoder,
            JumpReLUTranscoderConfig,
        )

        about = {**sae_lens_config(self, model_name), "device": str(self.device)}
        if self.skip is None:
            theirs = JumpReLUTranscoder(JumpReLUTranscoderConfig.from_dict(about))
            theirs.load_state_dict(self._state())
        else:
            theirs = JumpReLUSkipTranscoder(JumpReLUSkipTranscoderConfig.from_dict(about))
            theirs.load_state_dict(self._state() | {"W_skip": self.skip})
        return theirs


def sae_lens_config(sae: Sae, model_name: str | None = None) -> dict[str, Any]:
    """The `cfg.json` that SAELens 6 reads for `sae`."""
    metadata = {
        "sae_lens_version": "6.0.0",  # without it SAELens takes the file for an older layout and drops the hook name
        "model_name": model_name,
        "hook_name": hook_name(sae.site),
        "prepend_bos": True,
    }
    kind: dict[str, Any] = {"architecture": "jumprelu"}
    if isinstance(sae, Transcoder):
        kind = {"architecture": f"jumprelu_{'' if sae.skip is None else 'skip_'}transcoder", "d_out": sae.d_out}
        metadata["hook_name_out"] = hook_name(Site("mlp", sae.site.layer))
        if sae.before_gain:
            metadata["hook_name"] = f"blocks.{sae.site.layer}.{BEFORE_GAIN}"
    return {
        **kind,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.site.kind == "att" else "none",
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """What is known of every feature of one SAE, from a sample of text. Any of it may be None (not measured).

    `maximum` is the largest activation seen, NaN where the feature never fired; `density` the share of tokens it
    fires on; `mean_active` the mean activation where it fires. `promotes` [d_sae, 10] are the token ids whose
    logit the decoder row raises most (strongest first) and `promotes_logit` by how much; `suppresses` likewise.
    """

    maximum: np.ndarray | None = None
    density: np.ndarray | None = None
    mean_active: np.ndarray | None = None
    promotes: np.ndarray | None = None
    promotes_logit: np.ndarray | None = None
    suppresses: np.ndarray | None = None
    suppresses_logit: np.ndarray | None = None
