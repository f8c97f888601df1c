"""SAEs trained in a stack are those that are trained one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gemloupe.load.model import load_model
from gemloupe.site import Site
from gemloupe.train import activations, jumprelu
from gemloupe.train.recipe import Run, Settings, train
from gemloupe.train.stack import Stack
from refusal import refused
from tiny import tiny_model

SETTINGS = Settings(
    width=40, l0=4, epochs=3, batch=128, dense=0.3, dead_after=400, revive_every=10, report_every=7, checkpoint_every=9,
    dtype="float32", outlier=100, learning_rate=4e-3, penalty=0.3,
)  # fmt: skip


def rows(seed, count=4000, d_in=24):
    random = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(36, d_in, generator=random), dim=1)
    on = torch.rand(count, 36, generator=random) < 0.08
    return (on * (0.5 + torch.rand(count, 36, generator=random))) @ directions + 0.3


def tasks():
    """(activations, site, settings): two sites, and one of them again with another L0."""
    return [
        (rows(0), "res.1", SETTINGS),
        (rows(1), "res.2", replace(SETTINGS, seed=3)),
        (rows(0), "res.1", replace(SETTINGS, l0=8.0, dense=0.5)),
    ]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_stack_makes_the_saes_that_are_trained_alone(parts, tmp_path):
    alone, reports = [], []
    for index, (x, site, settings) in enumerate(tasks()):
        for part in range(parts):
            sae = train(x, x[:500], site, settings, checkpoint=tmp_path / f"a{index}", part=part, parts=parts)
        alone.append(sae)
    with torch.inference_mode():
        for part in range(parts):
            runs = [
                Run(x, x[:500], site, settings, checkpoint=tmp_path / f"s{index}", part=part, parts=parts)
                for index, (x, site, settings) in enumerate(tasks())
            ]
            together = Stack(runs).go(lambda site, report: reports.append((str(site), report)))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.site == theirs.site
        for name in ("encoder", "b_enc", "threshold", "decoder", "b_dec"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=2e-3, rtol=2e-2, msg=name)
    assert not torch.allclose(together[0].encoder, together[2].encoder, atol=5e-3, rtol=2e-2)
    last = [report for _, report in reports[-3:]]
    assert [site for site, _ in reports[-3:]] == ["res.1", "res.2", "res.1"]
    assert all(report["step"] == report["of"] for report in last)
    assert last[2]["held_out_l0"] > 1.2 * last[0]["held_out_l0"]


def test_a_stack_goes_on_from_its_checkpoints(tmp_path):
    def build(folder):
        return Stack(
            [Run(x, x[:500], s, how, checkpoint=tmp_path / folder / str(i)) for i, (x, s, how) in enumerate(tasks())]
        )

    class Killed(Exception):
        pass

    def kill(site, report):
        if report["step"] == 35:
            raise Killed

    with torch.inference_mode():
        whole = build("whole").go()
        with pytest.raises(Killed):
            build("broken").go(kill)
        steps = []
        again = build("broken").go(lambda site, report: steps.append(report["step"]))
    assert steps[0] == 28  # the first report after the checkpoint at step 27
    for ours, theirs in zip(again, whole, strict=True):
        torch.testing.assert_close(ours.encoder, theirs.encoder, atol=1e-6, rtol=1e-5)


def test_a_stack_is_of_one_shape(tmp_path):
    x = rows(0)
    with torch.inference_mode():
        one = Run(x, x, "res.1", SETTINGS)
        for other in (
            Run(x, x, "res.2", replace(SETTINGS, width=41)),
            Run(rows(0, d_in=23), x[:, :23], "res.2", SETTINGS),
            Run(x, x, "res.2", replace(SETTINGS, learning_rate=1e-4)),
        ):
            assert "res.2" in refused("training-stack", lambda other=other: Stack([one, other]))


def test_a_stack_keeps_pace_with_the_shortest(tmp_path):
    x = rows(0)
    with torch.inference_mode():
        runs = [Run(x, x[:500], "res.1", SETTINGS), Run(x[:2000], x[:500], "res.2", SETTINGS)]
        assert runs[0].steps > runs[1].steps
        Stack(runs).go()
    assert runs[0].done == runs[0].steps == runs[1].steps == 3 * (2000 // 128)


def test_a_diverging_stack_names_the_step_and_the_site():
    x = rows(0)
    wild = replace(SETTINGS, learning_rate=1e30, warm_up=1.0)
    with torch.inference_mode():
        calm = Stack([Run(x, x, "res.1", replace(wild, l0=5.0)), Run(x, x, "res.2", wild)])
        message = refused("training-diverged", calm.go)
    assert "res.1" in message or "res.2" in message
    alone = refused("training-diverged", lambda: train(x, x, "res.1", replace(wild, l0=5.0)))
    assert message.split("step ")[1].split()[0] == alone.split("step ")[1].split()[0]


def test_dense_steps_are_the_sparse_ones():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 12, generator=random)
    stacked = jumprelu.Parameters(
        torch.randn(2, 20, 12, generator=random) * 0.3,
        torch.randn(2, 20, generator=random) * 0.1,
        torch.rand(2, 20, generator=random) * 0.5 + 0.05,
        torch.randn(2, 20, 12, generator=random),
        torch.randn(2, 12, generator=random) * 0.1,
    )
    l0, dense = torch.tensor([4.0, 7.0]), torch.tensor([0.3, 0.2])
    got = jumprelu.steps(stacked, x, penalty=0.7, l0=l0, bandwidth=0.2, dense_penalty=0.3, dense=dense)
    for index in range(2):
        p = jumprelu.Parameters(**{name: tensor[index] for name, tensor in stacked.named().items()})
        one = jumprelu.step(
            p, x[index], penalty=0.7, l0=float(l0[index]), bandwidth=0.2, dense_penalty=0.3, dense=float(dense[index])
        )
        assert float(got.loss[index]) == pytest.approx(one.loss, rel=1e-5)
        assert float(got.l0[index]) == pytest.approx(one.l0)
        torch.testing.assert_close(got.fired[index], one.fired)
        torch.testing.assert_close(got.residual[index], one.residual, atol=1e-4, rtol=1e-4)
        for name, gradient in one.gradients.items():
            torch.testing.assert_close(got.gradients[name][index], gradient, atol=1e-5, rtol=1e-4, msg=name)
            assert gradient.abs().max() > 0.01


def test_activations_in_memory_are_those_on_disk(tmp_path):
    loaded = load_model(tiny_model("gemma3", tmp_path / "model"), device="cpu")
    tokens = np.random.default_rng(0).integers(7, 500, (5, 20)).astype(np.int32)
    tokens[:, 0], tokens[2, 7] = 2, 1
    sites = [Site.of(name) for name in ("res.1", "att.2", "mlp.0")]
    given = {"special": sorted(loaded.special), "batch": 2}
    activations.collect(loaded.model, tokens, sites, tmp_path / "disk", **given)
    seen = []
    held = activations.hold(loaded.model, tokens, sites, **given, progress=seen.append)
    for site in sites:
        assert torch.equal(held[site], activations.load(tmp_path / "disk", site))
    assert seen[-1]["done"] == seen[-1]["of"] == 5 * 19 - 1
