"""A JumpReLU SAE while it is trained: parameters, loss and hand-written gradients.

    pre = (x - b_dec) W_enc + b_enc        f = pre * H(pre - threshold)        y = f W_dec + b_dec
    loss = mean |y - x|^2 + penalty * target * (L0 / target - 1)^2
                          + dense_penalty * dense * sum_i max(0, density_i / dense - 1)^2

L0 is the mean number of active features and density_i the share of tokens on which feature i is active. The first
penalty is quadratic in the batch's mean L0, so that training settles at a chosen L0; the second keeps features from
being active so often that they mean nothing to a reader (both as in Gemma Scope 2).

H is the step function. Its derivative is taken as a rectangle of width `bandwidth` (Rajamanoharan et al. 2024), and
only the thresholds see it:  d f / d threshold = -(threshold / bandwidth) K,  d L0 / d threshold = -K / bandwidth,
K = 1 where |pre - threshold| < bandwidth / 2. Gradients are written out: autograd would visit dense [batch, width]
tensors.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from math import sqrt

import torch
from torch.nn.functional import embedding_bag

LOWEST_THRESHOLD = 1e-3  # keeps H from opening at pre <= 0, where JumpReLU would no longer be a ReLU


@dataclass
class Parameters:
    """float32 tensors in the scaled space: encoder and decoder [width, d_in], the rest vectors."""

    encoder: torch.Tensor
    b_enc: torch.Tensor
    threshold: torch.Tensor
    decoder: torch.Tensor
    b_dec: torch.Tensor

    def named(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, d_in] -> [batch, width]."""
        pre = torch.addmm(self.b_enc, x - self.b_dec, self.encoder.T)
        return pre * (pre > self.threshold)

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts @ self.decoder + self.b_dec


@dataclass
class Step:
    """Gradients and figures of one batch. `fired` [width] counts the tokens each feature was active on."""

    gradients: dict[str, torch.Tensor]
    loss: float
    error: float
    l0: float
    fired: torch.Tensor
    residual: torch.Tensor  # y - x


@dataclass
class Steps:
    """`Step` of several SAEs of one shape: every tensor has them as its first dimension, and so have loss and l0."""

    gradients: dict[str, torch.Tensor]
    loss: torch.Tensor
    l0: torch.Tensor
    fired: torch.Tensor
    residual: torch.Tensor


def initial(sample: torch.Tensor, width: int, l0: float, seed: int) -> Parameters:
    """Random unit decoder rows, a tied encoder scaled by least squares, thresholds that start near twice the target L0.

    `sample` is [token, d_in] in the scaled space, at least a few hundred tokens.
    """
    random = torch.Generator().manual_seed(seed)
    decoder = torch.rand(width, sample.shape[1], generator=random) * 2 - 1
    decoder = (decoder / decoder.norm(dim=1, keepdim=True)).to(sample.device)
    sample = sample[:2048]
    pre = sample @ decoder.T
    active = pre * (pre > torch.quantile(pre, 1 - min(0.2, l0 / width), dim=0))
    rebuilt = active @ decoder
    alpha = float((rebuilt * sample).sum() / rebuilt.pow(2).sum().clamp_min(1e-12))
    threshold = torch.quantile(pre * alpha, 1 - min(0.2, 2 * l0 / width), dim=0)
    return Parameters(
        encoder=decoder * alpha,
        b_enc=sample.new_zeros(width),
        threshold=threshold.clamp_min(LOWEST_THRESHOLD),
        decoder=decoder,
        b_dec=sample.new_zeros(sample.shape[1]),
    )


def carried(sample: torch.Tensor, encoder: torch.Tensor, decoder: torch.Tensor, density: torch.Tensor) -> Parameters:
    """Parameters that begin where another SAE ended: its directions, rescaled by least squares on `sample`.

    `sample` [token, d_in] and the rows [width, d_in] are in the scaled space; the thresholds are set so that each
    feature fires here about as often as there (`density` [width], share of tokens).
    """
    length = decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)
    decoder, encoder = decoder / length, encoder * length
    share = density.clamp(1 / len(sample), 0.2)
    rank = (share * len(sample)).long().clamp_min(1)
    threshold = sample.new_empty(len(encoder))
    for block in torch.arange(len(encoder)).split(256):
        highest = (sample @ encoder[block].T).topk(int(rank[block].max()), dim=0).values
        threshold[block] = highest.gather(0, rank[block][None] - 1)[0]
    pre = sample[:4096] @ encoder.T
    active = pre.relu() * (pre > threshold)
    rebuilt = active @ decoder
    alpha = float((rebuilt * sample[:4096]).sum() / rebuilt.pow(2).sum().clamp_min(1e-12))
    return Parameters(
        encoder=encoder * alpha,
        b_enc=sample.new_zeros(len(encoder)),
        threshold=(threshold * alpha).clamp_min(LOWEST_THRESHOLD),
        decoder=decoder.contiguous(),
        b_dec=sample.new_zeros(sample.shape[1]),
    )


def step(
    p: Parameters,
    x: torch.Tensor,
    *,
    penalty: float,
    l0: float,
    bandwidth: float,
    dense_penalty: float = 0.0,
    dense: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Step:
    """Loss and gradients on `x` [batch, d_in] (float32). Pre-activations are multiplied out in `dtype`.

    Only a few per cent of [batch, width] is active or near its threshold, and only there is any gradient. So one dense
    product finds those entries, and all that follows is a list of (token, feature, value): three times faster on a CPU.
    On another device it is `steps`, where dense products are cheaper than lists.
    """
    if x.device.type != "cpu":
        return _dense(p, x, penalty, l0, bandwidth, dense_penalty, dense, dtype)
    batch, width = len(x), len(p.encoder)
    centred = x - p.b_dec
    pre = torch.addmm(p.b_enc.to(dtype), centred.to(dtype), p.encoder.to(dtype).T)
    low = (p.threshold - bandwidth / 2).to(dtype)
    token, feature = (pre > low).nonzero(as_tuple=True)
    value = pre[token, feature].float()
    threshold = p.threshold[feature]
    active = value > threshold
    near = (value - threshold).abs() < bandwidth / 2
    rows = torch.arange(batch + 1)
    on = active.nonzero()[:, 0]
    token_on, feature_on, value_on = token[on], feature[on], value[on]

    residual = sums(p.decoder, feature_on, value_on, torch.searchsorted(token_on, rows)).add_(p.b_dec).sub_(x)
    fired = torch.bincount(feature_on, minlength=width).float()
    mean_l0 = float(fired.sum()) / batch
    error = float(residual.pow(2).sum()) / batch
    excess = (fired / (batch * dense) - 1).clamp_min(0)
    loss = error + penalty * l0 * (mean_l0 / l0 - 1) ** 2 + dense_penalty * dense * float(excess.pow(2).sum())
    slope = 2 * (penalty * (mean_l0 / l0 - 1) + dense_penalty * excess)  # d loss / d (mean activity of each feature)

    d_out = residual * (2 / batch)
    d_value = products(d_out, p.decoder, token, feature, torch.searchsorted(token, rows))
    at_threshold = (d_value * threshold + slope[feature] / batch) * near
    d_threshold = torch.zeros(width).index_add_(0, feature, at_threshold).div_(-bandwidth)

    feature_on, order = feature_on.sort(stable=True)  # lists by feature, for the gradients of its rows
    token_on = token_on[order]
    bags = torch.searchsorted(feature_on, torch.arange(width + 1))
    d_pre = d_value[on[order]]
    d_b_enc = torch.zeros(width).index_add_(0, feature_on, d_pre)
    gradients = {
        "encoder": sums(centred, token_on, d_pre, bags),
        "b_enc": d_b_enc,
        "threshold": d_threshold,
        "decoder": sums(d_out, token_on, value_on[order], bags),
        "b_dec": d_out.sum(0) - d_b_enc @ p.encoder,
    }
    return Step(gradients, loss, error, mean_l0, fired, residual)


def _dense(
    p: Parameters,
    x: torch.Tensor,
    penalty: float,
    l0: float,
    bandwidth: float,
    dense_penalty: float,
    dense: float,
    dtype: torch.dtype,
) -> Step:
    one = steps(
        Parameters(**{name: tensor[None] for name, tensor in p.named().items()}),
        x[None],
        penalty=penalty,
        l0=x.new_tensor([l0]),
        bandwidth=bandwidth,
        dense_penalty=dense_penalty,
        dense=x.new_tensor([dense]),
        dtype=dtype,
    )
    gradients = {name: tensor[0] for name, tensor in one.gradients.items()}
    error = float(one.residual.pow(2).sum()) / len(x)
    return Step(gradients, float(one.loss[0]), error, float(one.l0[0]), one.fired[0], one.residual[0])


def steps(
    p: Parameters,
    x: torch.Tensor,
    *,
    penalty: float,
    l0: torch.Tensor,
    bandwidth: float,
    dense_penalty: float = 0.0,
    dense: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> Steps:
    """`step` for several SAEs at once, in dense products, without a single number brought to the host.

    Parameters are stacked: encoder and decoder [sae, width, d_in], vectors [sae, n]; `x` is [sae, batch, d_in], `l0`
    and `dense` [sae]. All five large products are in `dtype`, sums and gradients in float32.
    """
    batch = x.shape[1]

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.bmm(left.to(dtype), right.to(dtype)).float()

    centred = x - p.b_dec[:, None]
    pre = product(centred, p.encoder.mT).add_(p.b_enc[:, None])
    distance = pre - p.threshold[:, None]
    active = distance > 0
    near = distance.abs_() < bandwidth / 2
    acts = pre * active
    residual = product(acts, p.decoder).add_(p.b_dec[:, None]).sub_(x)
    fired = active.sum(1, dtype=torch.float32)
    mean_l0 = fired.sum(1) / batch
    excess = (fired / (batch * dense[:, None]) - 1).clamp_min(0)
    loss = residual.pow(2).sum((1, 2)) / batch + penalty * l0 * (mean_l0 / l0 - 1) ** 2
    loss = loss + dense_penalty * dense * excess.pow(2).sum(1)
    slope = 2 * (penalty * (mean_l0 / l0 - 1)[:, None] + dense_penalty * excess)

    d_out = residual * (2 / batch)
    d_acts = product(d_out, p.decoder.mT)
    at_threshold = (d_acts * p.threshold[:, None] + slope[:, None] / batch).mul_(near)
    d_pre = d_acts.mul_(active)
    d_b_enc = d_pre.sum(1)
    gradients = {
        "encoder": product(d_pre.mT, centred),
        "b_enc": d_b_enc,
        "threshold": at_threshold.sum(1).div_(-bandwidth),
        "decoder": product(acts.mT, d_out),
        "b_dec": d_out.sum(1) - torch.bmm(d_b_enc[:, None], p.encoder)[:, 0],
    }
    return Steps(gradients, loss, mean_l0, fired, residual)


def sums(table: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor, bags: torch.Tensor) -> torch.Tensor:
    """Row i of the result is the sum of weights[k] * table[rows[k]] over bags[i] <= k < bags[i + 1]."""
    return embedding_bag(rows, table, bags[:-1], mode="sum", per_sample_weights=weights)


def products(
    left: torch.Tensor, right: torch.Tensor, row: torch.Tensor, column: torch.Tensor, bags: torch.Tensor
) -> torch.Tensor:
    """left[row] . right[column] for every entry, rows ascending."""
    if not torch.backends.mkl.is_available():
        return (left @ right.T)[row, column]
    with warnings.catch_warnings():  # torch calls its CSR tensors beta, once per process
        warnings.simplefilter("ignore", UserWarning)
        size = (len(left), len(right))
        pattern = torch.sparse_csr_tensor(bags, column, torch.zeros(len(row)), size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()


def project(gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
    """`gradient` without its component along each (unit) decoder row, in place."""
    return gradient.sub_((gradient * decoder).sum(-1, keepdim=True) * decoder)


def constrain(p: Parameters) -> None:
    """Decoder rows back to unit length, thresholds back above zero."""
    p.decoder.div_(p.decoder.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    p.threshold.clamp_(min=LOWEST_THRESHOLD)


def revive(p: Parameters, dead: torch.Tensor, x: torch.Tensor, residual: torch.Tensor, l0: float, seed: int) -> None:
    """Points the `dead` features (indices) at tokens of `x` that are badly rebuilt, chosen by squared error."""
    random = torch.Generator().manual_seed(seed)
    weight = residual.pow(2).sum(1).cpu()  # drawn on the host, so that a seed means the same on every device
    chosen = torch.multinomial(weight, len(dead), replacement=True, generator=random).to(x.device)
    rows = -residual[chosen]
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    alive = torch.ones(len(p.encoder), dtype=torch.bool, device=x.device)
    alive[dead] = False
    length = p.encoder[alive].norm(dim=1).median() if alive.any() else x.new_tensor(1 / sqrt(x.shape[1]))
    p.decoder[dead] = rows
    p.encoder[dead] = rows * length
    p.b_enc[dead] = 0.0
    pre = (x - p.b_dec) @ p.encoder[dead].T
    p.threshold[dead] = torch.quantile(pre[:2048], 1 - min(0.2, l0 / len(p.encoder)), dim=0).clamp_min(LOWEST_THRESHOLD)
