"""The SAE trainer: it finds what is there, its gradients are the formulas, and a kill costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gemloupe.load.sae import Sae
from gemloupe.run.capture import reading
from gemloupe.run.promote import listable_tokens, promoted_tokens
from gemloupe.site import Site
from gemloupe.train import activations, jumprelu, text
from gemloupe.train.evaluate import evaluate, feature_stats, replacing
from gemloupe.train.recipe import Scaling, Settings, train
from refusal import refused
from tiny import tiny_model

SITE = Site("res", 2)
SPECIAL = [0, 1, 2, 3, 4, 5, 6]


def planted(rows=40_000, d_in=32, features=48, active=3.0, seed=0):
    """Activations that are sparse sums of known unit directions, on a large mean, with two massive dimensions."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d_in, generator=random)
    directions /= directions.norm(dim=1, keepdim=True)
    on = torch.rand(rows, features, generator=random) < active / features
    acts = on * (0.5 + torch.rand(rows, features, generator=random))
    x = acts @ directions + 0.01 * torch.randn(rows, d_in, generator=random)
    return x + 0.3, directions


SMALL = Settings(
    width=48,
    l0=3,
    epochs=12,
    batch=256,
    learning_rate=5e-3,
    penalty_warm_up=0.5,
    decay=0.4,
    dense=0.2,
    dead_after=5000,
    revive_every=50,
    dtype="float32",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # bit-identical results are promised for equal numbers of threads
    yield
    torch.set_num_threads(before)


# what training finds


@pytest.fixture(scope="module")
def trained():
    x, directions = planted()
    seen = []
    sae = train(x[:-2000], x[-2000:], SITE, SMALL, progress=seen.append)
    return sae, directions, x, seen


def test_planted_features_are_recovered(trained):
    sae, directions, x, _ = trained
    similarity = sae.decoder @ directions.T
    best = similarity.max(0).values
    assert (best > 0.95).float().mean() > 0.9, best
    start = jumprelu.initial(x[:2048] - x.mean(0), 48, 3, seed=0).decoder @ directions.T
    assert (start.max(0).values > 0.95).float().mean() < 0.1  # they were not there to begin with


def test_target_l0_is_reached_and_the_error_is_small(trained):
    sae, _, x, seen = trained
    acts = sae.encode_dense(x[:4000])
    assert 2 < float(acts.count_nonzero()) / 4000 < 4.5
    error = (sae.decode(acts) - x[:4000]).pow(2).sum() / (x[:4000] - x.mean(0)).pow(2).sum()
    assert error < 0.1
    assert seen[-1]["fvu"] == pytest.approx(float(error), abs=0.05)


def test_decoder_rows_are_unit_and_progress_counts(trained):
    sae, _, _, seen = trained
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(48))
    assert (sae.threshold > 0).all()
    assert [report["step"] for report in seen] == sorted({report["step"] for report in seen})
    assert seen[-1]["step"] == seen[-1]["of"]
    assert seen[-1]["tokens"] == seen[-1]["step"] * SMALL.batch
    assert set(seen[0]) == {
        "step", "of", "tokens", "loss", "l0", "fvu", "held_out_l0", "dead", "tokens_per_second", "seconds_left",
    }  # fmt: skip


def test_same_seed_same_sae_other_seed_another():
    x, _ = planted(4000)
    quick = {**SMALL.__dict__, "epochs": 0.5}
    one, two = (train(x, x[:500], SITE, Settings(**quick)) for _ in range(2))
    other = train(x, x[:500], SITE, Settings(**{**quick, "seed": 1}))
    assert torch.equal(one.encoder, two.encoder)
    assert not torch.equal(one.encoder, other.encoder)


# the formulas


class JumpReLU(torch.autograd.Function):
    """The published estimator, dense, for autograd."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() / ctx.bandwidth < 0.5).to(pre)
        return grad * (pre > threshold), (-(threshold / ctx.bandwidth) * near * grad).sum(0), None


class Count(torch.autograd.Function):
    """H(pre - threshold), whose derivative only the threshold sees."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() / ctx.bandwidth < 0.5).to(pre)
        return None, (-near / ctx.bandwidth * grad).sum(0), None


@pytest.mark.parametrize("mkl", [True, False])
def test_gradients_equal_those_of_the_published_estimator(mkl, monkeypatch):
    if not mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=random)
    p = jumprelu.Parameters(
        torch.randn(20, 12, generator=random) * 0.3,
        torch.randn(20, generator=random) * 0.1,
        torch.rand(20, generator=random) * 0.5 + 0.05,
        torch.randn(20, 12, generator=random),
        torch.randn(12, generator=random) * 0.1,
    )
    penalty, l0, bandwidth = 0.7, 4.0, 0.2
    got = jumprelu.step(p, x, penalty=penalty, l0=l0, bandwidth=bandwidth, dense=0.3, dense_penalty=0.3)

    leaves = {name: value.clone().requires_grad_() for name, value in p.named().items()}
    pre = (x - leaves["b_dec"]) @ leaves["encoder"].T + leaves["b_enc"]
    acts = JumpReLU.apply(pre, leaves["threshold"], bandwidth)
    active = Count.apply(pre, leaves["threshold"], bandwidth)
    count, excess = active.sum(1).mean(), (active.mean(0) / 0.3 - 1).clamp_min(0)
    assert 3 < (excess > 0).sum() < 20
    error = (acts @ leaves["decoder"] + leaves["b_dec"] - x).pow(2).sum(1).mean()
    loss = error + penalty * l0 * (count / l0 - 1) ** 2 + 0.3 * 0.3 * excess.pow(2).sum()
    loss.backward()

    assert ((pre - p.threshold).abs() < bandwidth / 2).sum() > 20  # the kernel has something to see
    assert got.loss == pytest.approx(loss.item(), rel=1e-5)
    assert got.l0 == pytest.approx(count.item())
    for name, leaf in leaves.items():
        torch.testing.assert_close(got.gradients[name], leaf.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert (leaves["threshold"].grad.abs() > 0.01).any()


def test_projected_gradient_keeps_rows_unit_to_first_order():
    random = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(5, 7, generator=random), dim=1)
    gradient = jumprelu.project(torch.randn(5, 7, generator=random), decoder)
    torch.testing.assert_close((gradient * decoder).sum(1), torch.zeros(5), atol=1e-6, rtol=0)
    assert gradient.norm() > 1


def test_folding_back_changes_no_number():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 16, generator=random) * 30 + 100
    x[:, 3] *= 40
    scaling = Scaling.measure(x)
    z = scaling(x)
    assert z.pow(2).sum(1).mean() == pytest.approx(1, rel=0.02)
    assert z.mean(0).abs().max() < 1e-3
    p = jumprelu.initial(z, 24, 4, seed=0)
    p.b_dec += 0.05
    p.b_enc += 0.03
    sae = scaling.fold(p, SITE)
    length = (p.decoder / scaling.gain).norm(dim=1)
    scaled, raw = p.encode(z), sae.encode_dense(x)
    assert (scaled > 0).sum() > 500
    torch.testing.assert_close(raw, scaled * length, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(scaling(sae.decode(raw)), p.decode(scaled), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(24))


def test_outliers_are_not_learned_from():
    x, _ = planted(4000)
    spoiled = x.clone()
    spoiled[::100] = 500.0
    cut = Scaling.measure(spoiled).cut
    assert cut < 20
    settings = Settings(**{**SMALL.__dict__, "epochs": 0.5})
    assert train(spoiled, x[:500], SITE, settings).b_dec.abs().max() < 5


def test_revived_features_point_at_the_error():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=random)
    p = jumprelu.initial(x, 12, 3, seed=0)
    residual = torch.zeros(300, 8)
    residual[7] = torch.tensor([-3.0, 0, 0, 0, 0, 0, 0, 0])
    before = p.decoder.clone()
    jumprelu.revive(p, torch.tensor([2, 5]), x, residual, 3, seed=0)
    assert torch.equal(p.decoder[2], torch.eye(8)[0])
    assert torch.equal(p.decoder[5], torch.eye(8)[0])
    assert torch.equal(p.decoder[3], before[3])
    assert (p.encode(x)[:, 2] > 0).any()


# kills and checkpoints

_CHILD = """
import sys, time, torch
sys.path[:0] = {path!r}
torch.set_num_threads(1)
from test_train import SITE, broken_settings, planted
from gemloupe.train.recipe import train
x, _ = planted(6000)
train(x, x[:500], SITE, broken_settings(), checkpoint={folder!r}, progress=lambda report: time.sleep(0.02))
"""


def broken_settings():
    return Settings(**{**SMALL.__dict__, "epochs": 5, "checkpoint_every": 10, "report_every": 1, "dead_after": 600})


def test_killed_training_resumes_to_the_same_bits(tmp_path):
    x, _ = planted(6000)
    unbroken = train(x, x[:500], SITE, broken_settings())
    folder = tmp_path / "run"
    code = _CHILD.format(path=[*sys.path, str(Path(__file__).parent)], folder=str(folder))
    saved = folder / "checkpoint.safetensors"
    for _ in range(2):
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
        while not saved.exists() or saved.stat().st_mtime_ns == before:
            assert child.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        time.sleep(0.1)  # some steps past the checkpoint
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    steps = []
    resumed = train(x, x[:500], SITE, broken_settings(), checkpoint=folder, progress=lambda r: steps.append(r["step"]))
    assert 20 <= steps[0] - 1 < steps[-1]  # it went on, it did not start again
    for name in ("encoder", "b_enc", "threshold", "decoder", "b_dec"):
        assert torch.equal(getattr(resumed, name), getattr(unbroken, name)), name
    again = train(x, x[:500], SITE, broken_settings(), checkpoint=folder)  # finished: nothing left to do
    assert torch.equal(again.encoder, unbroken.encoder)


def test_checkpoint_of_another_plan_is_refused(tmp_path):
    x, _ = planted(4000)
    settings = {**SMALL.__dict__, "epochs": 0.2}
    train(x, x[:500], SITE, Settings(**settings), checkpoint=tmp_path)
    rate = Settings(**{**settings, "learning_rate": 1e-3})
    assert "learning_rate" in refused("training-other-plan", lambda: train(x, x[:500], SITE, rate, checkpoint=tmp_path))
    same = Settings(**settings)
    assert "data" in refused("training-other-plan", lambda: train(x + 1, x[:500], SITE, same, checkpoint=tmp_path))
    refused("training-other-plan", lambda: train(x, x[:500], "res.3", same, checkpoint=tmp_path))


def test_damaged_checkpoint_is_refused(tmp_path):
    x, _ = planted(4000)
    settings = Settings(**{**SMALL.__dict__, "epochs": 0.2})
    train(x, x[:500], SITE, settings, checkpoint=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused("scope-damaged", lambda: train(x, x[:500], SITE, settings, checkpoint=tmp_path))


# bad input


def test_diverging_training_stops_and_names_the_last_good_checkpoint(tmp_path):
    x, _ = planted(4000)
    settings = Settings(**{**SMALL.__dict__, "learning_rate": 1e30, "warm_up": 1.0, "checkpoint_every": 1, "epochs": 1})
    message = refused("training-diverged", lambda: train(x, x[:500], SITE, settings, checkpoint=tmp_path))
    assert str(tmp_path / "checkpoint.safetensors") in message or "none" in message
    if (tmp_path / "checkpoint.safetensors").exists():
        from safetensors.torch import load_file

        assert all(torch.isfinite(v).all() for v in load_file(tmp_path / "checkpoint.safetensors").values())
    refused("training-diverged", lambda: train(x, x[:500], SITE, settings))


def test_a_loss_that_is_not_finite_stops_at_its_step_and_the_checkpoint_before_it_goes_on(tmp_path, monkeypatch):
    x, _ = planted(6000)
    unbroken = train(x, x[:500], SITE, broken_settings())
    step, calls = jumprelu.step, []

    def spoiled(*given, **how):
        calls.append(1)
        result = step(*given, **how)
        if len(calls) == 38:
            result.loss = float("nan")
        return result

    monkeypatch.setattr(jumprelu, "step", spoiled)
    message = refused("training-diverged", lambda: train(x, x[:500], SITE, broken_settings(), checkpoint=tmp_path))
    assert "step 37 of res.2" in message
    assert str(tmp_path / "checkpoint.safetensors") in message
    steps = []
    resumed = train(
        x, x[:500], SITE, broken_settings(), checkpoint=tmp_path, progress=lambda report: steps.append(report["step"])
    )
    assert steps[0] == 31  # after the checkpoint at step 30
    assert torch.equal(resumed.encoder, unbroken.encoder)


def test_too_few_repeated_or_broken_activations_are_refused():
    x, _ = planted(4000)
    refused("training-no-text", lambda: train(x[:100], x, SITE, SMALL))
    refused("training-no-text", lambda: train(x[:0], x, SITE, SMALL))
    refused("training-repeated", lambda: train(x[:1].repeat(4000, 1), x, SITE, SMALL))
    broken = x.clone()
    broken[1234, 5] = torch.nan
    assert "1234" in refused("not-finite", lambda: train(broken, x, SITE, SMALL))
    refused("count-unreadable", lambda: Settings(width=0))


class Words:
    """A tokenizer that is one id per letter."""

    def __call__(self, texts, add_special_tokens):
        assert add_special_tokens is False
        return {"input_ids": [[10 + ord(letter) % 200 for letter in text] for text in texts]}


def test_packing_refuses_no_text_and_one_line_repeated():
    refused("training-no-text", lambda: text.pack([], Words(), bos=2, context=16))
    refused("training-no-text", lambda: text.pack(["short"], Words(), bos=2, context=16))
    refused("training-repeated", lambda: text.pack(["abc" * 5] * 100, Words(), bos=2, context=16))


def test_one_line_repeated_in_one_file_is_seen_though_no_two_contexts_are_the_same():
    line = "".join(chr(33 + (i * i) % 89) for i in range(96)) + "\n"
    assert "meaningless" in refused("training-repeated", lambda: text.pack([line * 60], Words(), bos=2, context=64))
    varied = ["".join(chr(33 + (i * i * k) % 89) for i in range(70)) for k in range(1, 60)]
    assert len(text.pack(varied, Words(), bos=2, context=64)) == 59


def test_packing_starts_every_row_with_bos_and_is_seeded():
    texts = ["".join(chr(65 + (i * j) % 50) for j in range(100)) for i in range(1, 30)]
    rows = text.pack(texts, Words(), bos=2, context=16)
    assert rows.shape[1] == 16
    assert (rows[:, 0] == 2).all()
    assert np.array_equal(rows, text.pack(texts, Words(), bos=2, context=16))
    assert not np.array_equal(rows, text.pack(texts, Words(), bos=2, context=16, seed=1))


# the model's side


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model("gemma3", tmp_path_factory.mktemp("tiny"))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return loaded, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokens():
    random = np.random.default_rng(0)
    rows = random.integers(7, 500, (10, 20)).astype(np.int32)
    rows[:, 0] = 2
    rows[3, 5] = 1  # a special token inside a text
    return rows


def identity(site, width):
    eye = torch.eye(width)
    return Sae(
        Site.of(site),
        encoder=torch.cat([eye, -eye]),
        b_enc=torch.zeros(2 * width),
        threshold=torch.zeros(2 * width),
        decoder=torch.cat([eye, -eye]),
        b_dec=torch.zeros(width),
    )


def test_interrupted_collection_goes_on_to_the_same_bytes(model, tokens, tmp_path):
    sites = [Site.of("res.1"), Site.of("att.2")]
    whole = activations.collect(model[0], tokens, sites, tmp_path / "a", special=SPECIAL, batch=2)
    broken = activations.collect(model[0], tokens, sites, tmp_path / "b", special=SPECIAL, batch=2)
    for site, keep in (("res.1", 3001), ("att.2", 9000)):  # as a kill leaves them: uneven, inside a row
        file = broken / f"{site}.bf16"
        file.write_bytes(file.read_bytes()[:keep])
    activations.collect(model[0], tokens, sites, broken, special=SPECIAL, batch=2)
    for site in sites:
        assert (whole / f"{site}.bf16").read_bytes() == (broken / f"{site}.bf16").read_bytes()
        assert activations.load(whole, site).shape == (10 * 19 - 1, 48 if site.kind == "res" else 64)
    refused(
        "training-other-plan",
        lambda: activations.collect(model[0], tokens[:5], sites, whole, special=SPECIAL, batch=2),
    )


@pytest.mark.parametrize(("site", "width"), [("res.1", 48), ("mlp.1", 48), ("att.2", 64)])
def test_a_perfect_sae_costs_nothing_and_an_empty_one_everything(model, tokens, site, width):
    perfect = identity(site, width)
    got = evaluate(model[0], tokens, [perfect], special=SPECIAL, outlier=100)[perfect.site]
    assert got.fvu < 1e-6
    assert got.tokens == 10 * 19 - 1
    assert abs(got.delta_loss_mean) < 1e-4
    assert got.loss_recovered == pytest.approx(1, abs=1e-3)
    rows = got_rows(model[0], tokens, perfect.site)
    zero = torch.zeros(2 * width, width)
    mean = Sae(perfect.site, zero, zero[:, 0], zero[:, 0], zero, rows.mean(0))
    got = evaluate(model[0], tokens, [mean], special=SPECIAL, outlier=100, loss_contexts=4)[perfect.site]
    assert got.l0 == 0
    assert got.fvu == pytest.approx(1, abs=1e-4)
    assert got.contexts == 4
    assert got.delta_loss_mean == pytest.approx(got.mean_delta_loss, abs=1e-5)
    assert abs(got.delta_loss_mean) > 1e-3
    assert got.loss_recovered == pytest.approx(0, abs=1e-2)


def got_rows(model, tokens, site):
    """Activations at `site` of the tokens that are not special."""
    found = []
    with torch.inference_mode(), reading(model, [site], lambda _, x: found.append(x)):
        model(torch.from_numpy(tokens.astype(np.int64)))
    return found[0][torch.from_numpy(~np.isin(tokens, SPECIAL))]


def test_replacing_reaches_the_model_and_lets_go(model, tokens):
    ids = torch.from_numpy(tokens[:1].astype(np.int64))
    with torch.inference_mode():
        before = model[0](ids).logits
        for site in ("res.1", "mlp.1", "att.1"):
            with replacing(model[0], Site.of(site), torch.zeros_like):
                assert not torch.allclose(model[0](ids).logits, before)
        assert torch.equal(model[0](ids).logits, before)


def test_feature_statistics_are_those_of_the_tokens_that_are_no_outliers():
    sae = identity("res.0", 4)
    rows = torch.tensor([[1.0, 0, 0, 0], [3.0, 0, -2.0, 0], [0, 0, 0, 0], [0, 1000.0, 0, 0]])
    got = feature_stats(sae, rows.to(torch.bfloat16), cut=100)
    np.testing.assert_allclose(got.maximum, [3, np.nan, np.nan, np.nan, np.nan, np.nan, 2, np.nan])
    np.testing.assert_allclose(got.density, [2 / 3, 0, 0, 0, 0, 0, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(got.mean_active, [2, np.nan, np.nan, np.nan, np.nan, np.nan, 2, np.nan])


def test_promoted_tokens_are_those_the_unembedding_says(model):
    loaded, tokenizer = model
    listable = listable_tokens(tokenizer)
    assert not listable[SPECIAL].any()
    assert listable.sum() > 300
    row = torch.nn.functional.normalize(loaded.get_output_embeddings().weight[100].detach().float(), dim=0)
    sae = Sae(Site("res", 3), row[None], torch.zeros(1), torch.zeros(1), row[None], torch.zeros(48))
    got = promoted_tokens(loaded, sae, listable)
    logits = loaded.lm_head.weight.detach() @ (row * (1 + loaded.model.norm.weight.detach()))
    logits = logits[: len(listable)] - logits[: len(listable)][listable].mean()
    assert got["promotes"].shape == (1, 10)
    for names, values in (("promotes", "promotes_logit"), ("suppresses", "suppresses_logit")):
        np.testing.assert_allclose(got[values][0], logits[got[names][0]], rtol=2e-3, atol=2e-3)
        assert listable[got[names][0]].all()
    assert got["promotes_logit"][0, 0] == pytest.approx(float(logits[listable].max()), rel=2e-3)
    assert got["suppresses_logit"][0, 0] == pytest.approx(float(logits[listable].min()), rel=2e-3)


def test_plan_is_readable(tmp_path):
    x, _ = planted(4000)
    train(x, x[:500], SITE, Settings(**{**SMALL.__dict__, "epochs": 0.2}), checkpoint=tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["site"] == "res.2"
    assert plan["l0"] == 3
