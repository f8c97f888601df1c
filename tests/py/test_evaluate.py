"""The evaluator against slow, direct computations on tiny models, and the figures drawn from it."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_scope
from gemloupe.load.layouts import pack
from gemloupe.load.model import load_model
from gemloupe.load.sae import Sae
from gemloupe.load.scope import Scope
from gemloupe.run.capture import body, reading, replacing
from gemloupe.site import Site
from gemloupe.train import figures
from gemloupe.train.evaluate import Evaluation, evaluate
from gemloupe.train.partway import Layers, starting_at
from gemloupe.train.uniformity import gradients, uniformity
from refusal import refused
from tiny import tiny_model

SPECIAL = [0, 1, 2, 3, 4, 5, 6]
SITES = ("res.2", "res.0", "mlp.1", "att.1")


@pytest.fixture(scope="module", params=["gemma2", "gemma3"])
def opened(request, tmp_path_factory):
    """(model, scope of four sites)"""
    folder = tmp_path_factory.mktemp("evaluate")
    loaded = load_model(tiny_model(request.param, folder / "model"), device="cpu")
    return loaded.model, Scope.open(tiny_scope(loaded, folder / "scope", sites=SITES))


@pytest.fixture(scope="module")
def tokens():
    random = np.random.default_rng(0)
    rows = random.integers(7, 500, (7, 20)).astype(np.int32)
    rows[:, 0] = 2
    rows[3, 5] = 1  # a special token inside a text
    return rows


def direct(model, tokens, sae, outlier=3.0):
    """The definitions, one context at a time through the whole model, all activations held."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    kept = torch.from_numpy(~np.isin(tokens, SPECIAL))
    found = []

    def loss(row, keep):
        logp = model(row[None]).logits[0, :-1].log_softmax(-1)
        return float(-logp[torch.arange(len(row) - 1), row[1:]][keep[:-1]].mean())

    with torch.inference_mode():
        base = []
        for row, keep in zip(ids, kept, strict=True):
            with reading(model, [sae.site], lambda _, x: found.append(x[0])):
                base.append(loss(row, keep))
        x = torch.stack(found)
        norms = x.norm(dim=2)
        inside = kept & (norms <= outlier * norms[kept].median())
        rows = x[inside]
        acts = sae.encode_dense(rows)
        error = (sae.decode(acts) - rows).pow(2)
        variance = (rows - rows.mean(0)).pow(2)
        ordinary = rows.std(0) <= 4 * rows.std(0).median()
        rises = {}
        for name, stand_in in (("sae", lambda r: sae.decode(sae.encode_dense(r))), ("mean", lambda r: rows.mean(0))):
            rises[name] = []
            for i, row in enumerate(ids):

                def put(tensor, i=i, stand_in=stand_in):
                    out = tensor.clone()
                    out[0, inside[i]] = stand_in(tensor[0, inside[i]])
                    return out

                with replacing(model, sae.site, put):
                    rises[name].append(loss(row, kept[i]) - base[i])
    return {
        "tokens": int(inside.sum()),
        "l0": float((acts > 0).sum() / len(rows)),
        "fvu": float(error.sum() / variance.sum()),
        "fvu_other_dims": float(error[:, ordinary].sum() / variance[:, ordinary].sum()),
        "loss": float(np.mean(base)),
        "delta_loss_mean": float(np.mean(rises["sae"])),
        "delta_loss_median": float(np.median(rises["sae"])),
        "mean_delta_loss": float(np.mean(rises["mean"])),
        "loss_recovered": 1 - float(np.mean(rises["sae"]) / np.mean(rises["mean"])),
        "dead": float(((acts > 0).sum(0) == 0).float().mean()),
        "frequent": float(((acts > 0).float().mean(0) > 0.1).float().mean()),
    }, {"base": base, "rises": rises["sae"], "frequency": (acts > 0).float().mean(0), "inside": inside, "x": x}


def test_every_figure_is_the_one_its_definition_gives(opened, tokens):
    model, scope = opened
    got = evaluate(model, tokens, scope, special=SPECIAL, batch=3)
    assert list(got) == sorted(Site.of(site) for site in SITES)
    for site, ours in got.items():
        expected, parts = direct(model, tokens, scope.load(site))
        for name, value in expected.items():
            assert getattr(ours, name) == pytest.approx(value, rel=2e-4, abs=2e-6), (site, name)
        np.testing.assert_allclose(ours.delta_loss, parts["rises"], atol=1e-5)
        np.testing.assert_allclose(ours.frequency, parts["frequency"], atol=1e-6)
        assert ours.width == scope.width(site)
        assert ours.contexts == 7
        assert ours.uniformity is None


def test_outliers_are_neither_counted_nor_replaced(opened, tokens):
    model, scope = opened
    site = Site.of("res.0")
    sae = scope.load(site)
    expected, _ = direct(model, tokens, sae, outlier=1.05)
    assert 0 < expected["tokens"] < 6 * 19
    got = evaluate(model, tokens, [sae], special=SPECIAL, outlier=1.05)[site]
    assert got.tokens == expected["tokens"]
    assert got.delta_loss_mean == pytest.approx(expected["delta_loss_mean"], abs=1e-5)
    assert got.fvu == pytest.approx(expected["fvu"], rel=1e-4)
    assert got.outliers == pytest.approx(1 - expected["tokens"] / (7 * 19 - 1), abs=1e-6)


def test_the_batch_and_the_number_of_loss_contexts_change_nothing_else(opened, tokens):
    model, scope = opened
    one, two = (
        evaluate(model, tokens, scope, special=SPECIAL, sites=["res.2"], batch=batch, loss_contexts=count)
        for batch, count in ((1, 5), (4, 5))
    )
    (site,) = one
    for name, value in one[site].as_dict().items():
        assert getattr(two[site], name) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert one[site].contexts == len(one[site].delta_loss) == 5
    whole = evaluate(model, tokens, scope, special=SPECIAL, sites=["res.2"])[site]
    np.testing.assert_allclose(whole.delta_loss[:5], one[site].delta_loss, atol=1e-5)
    assert whole.l0 == one[site].l0


def test_uniformity_is_that_of_a_direct_computation(opened, tokens):
    """Gradients by moving one coordinate at a time; the entropy by a loop."""
    model, scope = opened
    got = evaluate(model, tokens, scope, special=SPECIAL, importance_contexts=2)
    assert all(1 / 96 <= figures.uniformity <= 1 for figures in got.values())
    for name in ("mlp.1", "att.1"):
        site, values = Site.of(name), []
        sae = scope.load(site)
        _, parts = direct(model, tokens, sae)
        for context in range(2):
            row = torch.from_numpy(tokens[context].astype(np.int64))
            kept = ~torch.isin(row, torch.tensor(SPECIAL))

            def total(add, row=row, kept=kept, site=site):
                with torch.no_grad(), replacing(model, site, lambda tensor: tensor + add):
                    logits = model(row[None]).logits[0, :-1].double()
                centred = logits[torch.arange(len(row) - 1), row[1:]] - logits.mean(1)
                return float(centred[kept[:-1]].sum())

            x = parts["x"][context]
            gradient = gradients(model, row, kept, [site])[site]
            for position, dim in ((1, 0), (9, 5), (17, 30)):  # one by one would take long; these three stand for all
                step = torch.zeros_like(x)
                step[position, dim] = 2e-2
                slope = (total(step) - total(-step)) / 4e-2
                assert float(gradient[position, dim]) == pytest.approx(slope, rel=2e-2, abs=2e-3)
            for position in range(len(row) - 1):
                if not parts["inside"][context, position]:
                    continue
                acts = sae.encode_dense(x[position])
                y = [float(f * (sae.decoder[i] @ gradient[position])) for i, f in enumerate(acts) if f > 0]
                if y:
                    share = [abs(one) / sum(map(abs, y)) for one in y]
                    values.append(math.exp(-sum(p * math.log(p) for p in share if p)) / len(y))
        assert got[site].uniformity == pytest.approx(np.mean(values), rel=1e-3)


def test_uniformity_at_its_ends():
    eye = torch.eye(4)
    sae = Sae(Site.of("res.0"), eye, torch.zeros(4), torch.zeros(4), eye, torch.zeros(4))
    x = torch.tensor([[2.0, 2, 2, 2], [5, 1e-9, 1e-9, 1e-9], [1, 1, 0, 0], [0, 0, 0, 0]])
    ones = torch.ones(4, 4)
    torch.testing.assert_close(uniformity(sae, x, ones), torch.tensor([1.0, 0.25, 1.0]))
    torch.testing.assert_close(uniformity(sae, x[:1], torch.tensor([[1.0, -1, 0, 0]])), torch.tensor([1.0]))


def test_gradients_of_all_sites_come_from_one_pass(opened, tokens):
    model, _ = opened
    row = torch.from_numpy(tokens[0].astype(np.int64))
    kept = ~torch.isin(row, torch.tensor(SPECIAL))
    sites = [Site.of(site) for site in SITES]
    together = gradients(model, row, kept, sites)
    for site in sites:
        torch.testing.assert_close(together[site], gradients(model, row, kept, [site])[site], atol=1e-5, rtol=1e-4)
        assert together[site].abs().max() > 1e-4
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())


def test_starting_at_a_layer_gives_the_same_logits_and_lets_go(opened, tokens):
    model, _ = opened
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.inference_mode():
        whole = model(ids).logits
        layers = Layers(model, ids, 3)
        layers.read((), lambda *_: None, to=1)
        layers.read((), lambda *_: None, to=3)
        calls = []
        hook = body(model).layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
        for start, some, hidden in layers:
            with starting_at(model, 3, hidden):
                torch.testing.assert_close(model(some).logits, whole[start : start + 3], atol=1e-4, rtol=1e-4)
        assert not calls
        assert torch.equal(model(ids).logits, whole)
        hook.remove()
        with pytest.raises(ZeroDivisionError), starting_at(model, 2, torch.zeros(7, 20, 48)):
            1 / 0
        assert torch.equal(model(ids).logits, whole)


def test_the_rounded_and_the_unrounded_sae_are_measured_side_by_side(opened, tokens):
    model, scope = opened
    site = Site.of("res.2")
    before = scope.load(site)
    # off the grid, then rounded coarsely: the two must differ
    before = replace(before, encoder=before.encoder * 1.01 + 1e-3, encoder_int8=None, encoder_scale=None)
    tensors = pack(before)
    after = replace(
        before,
        encoder=tensors["W_enc"].float() * tensors["W_enc_scale"][:, None],
        decoder=tensors["W_dec"].float() * tensors["W_dec_scale"][:, None],
        b_enc=tensors["b_enc"],
    )
    both = evaluate(model, tokens, [after], special=SPECIAL, unrounded=[before])[site]
    alone = evaluate(model, tokens, [before], special=SPECIAL)[site]
    assert both.unrounded == pytest.approx({key: getattr(alone, key) for key in both.unrounded})
    assert set(both.unrounded) == {"l0", "fvu", "fvu_other_dims", "delta_loss_mean", "delta_loss_median"}
    assert both.fvu != alone.fvu
    assert both.row()["fvu_unrounded"] == both.unrounded["fvu"]


def test_groups_share_out_the_contexts(opened, tokens):
    model, scope = opened
    labels = ["de", "en", "de", "en", "zh", "en", "de"]
    (got,) = evaluate(model, tokens, scope, special=SPECIAL, sites=["mlp.1"], groups=labels, loss_contexts=6).values()
    assert set(got.groups) == {"de", "en", "zh"}
    for label, rows in (("de", [0, 2]), ("en", [1, 3, 5]), ("zh", [4])):
        assert got.groups[label]["contexts"] == len(rows)
        assert got.groups[label]["delta_loss_mean"] == pytest.approx(got.delta_loss[rows].mean())
        assert got.groups[label]["delta_loss_median"] == pytest.approx(np.median(got.delta_loss[rows]))
    assert got.row()["delta_loss_mean[zh]"] == pytest.approx(got.delta_loss[4])
    assert "delta_loss" not in got.as_dict()


def test_progress_counts_to_the_end(opened, tokens):
    model, scope = opened
    seen = []
    evaluate(model, tokens, scope, special=SPECIAL, importance_contexts=2, loss_contexts=5, progress=seen.append)
    assert set(seen[0]) == {"done", "of", "seconds_left"}
    done = [report["done"] for report in seen]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(seen[-1]["of"], rel=1e-6)
    assert seen[-1]["seconds_left"] == pytest.approx(0, abs=1e-6)


def test_activations_of_one_layer_at_a_time(opened, tokens, monkeypatch):
    """The SAEs of a scope are loaded when their layer is reached, and nothing but one layer's input is kept."""
    model, scope = opened
    order = []
    load = Scope.load
    monkeypatch.setattr(Scope, "load", lambda self, site, *rest: order.append(str(site)) or load(self, site, *rest))
    evaluate(model, tokens, scope, special=SPECIAL, loss_contexts=1)
    assert order == ["res.0", "att.1", "mlp.1", "res.2"]


def test_bad_input_is_refused(opened, tokens):
    model, scope = opened
    sae = scope.load("res.0")
    refused("evaluate-no-text", lambda: evaluate(model, tokens[:0], [sae], special=SPECIAL))
    refused("evaluate-no-text", lambda: evaluate(model, np.full((3, 9), 2), [sae], special=SPECIAL))
    refused("evaluate-no-text", lambda: evaluate(model, tokens[:, :1], [sae], special=SPECIAL))
    refused("evaluate-groups", lambda: evaluate(model, tokens, [sae], special=SPECIAL, groups=["en"]))
    refused("site-not-open", lambda: evaluate(model, tokens, scope, special=SPECIAL, sites=["res.1"]))
    far = replace(sae, site=Site.of("res.9"))
    refused("site-not-in-model", lambda: evaluate(model, tokens, [far], special=SPECIAL))
    other = replace(sae, site=Site.of("att.0"))
    refused("evaluate-other-width", lambda: evaluate(model, tokens, [other], special=SPECIAL))
    with torch.no_grad():
        weight = body(model).layers[0].post_feedforward_layernorm.weight
        before = float(weight[3])
        weight[3] = torch.nan
        try:
            refused("not-finite", lambda: evaluate(model, tokens, [sae], special=SPECIAL))
        finally:
            weight[3] = before


# figures


def figure_of(l0, delta, width=2048, fvu=0.2):
    return Evaluation(
        tokens=10, contexts=2, l0=l0, fvu=fvu, fvu_other_dims=fvu + 0.1, outliers=0.0, loss=3.0, delta_loss_mean=delta,
        delta_loss_median=delta / 2, mean_delta_loss=5.0, loss_recovered=0.9, width=width,
    )  # fmt: skip


SMALL = {
    Site.of("res.1"): figure_of(40, 0.3),
    Site.of("res.0"): figure_of(38, 0.2, fvu=0.1),
    Site.of("mlp.0"): figure_of(30, -0.01),
}


def test_csv_has_one_row_for_each_site(tmp_path):
    from types import MappingProxyType

    grouped = {**SMALL, Site.of("att.0"): replace(figure_of(9, 0.1), groups=MappingProxyType({"fr": {"loss": 2.5}}))}
    figures.write_csv(grouped, tmp_path / "x" / "table.csv")
    with (tmp_path / "x" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["site"] for row in rows] == ["att.0", "mlp.0", "res.0", "res.1"]
    assert float(rows[2]["fvu"]) == 0.1
    assert rows[0]["loss[fr]"] == "2.5" and rows[1]["loss[fr]"] == ""


def test_l0_against_delta_loss_on_log_axes_shows_every_site():
    figure = figures.l0_and_delta_loss(SMALL)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    points = {text: (x, y) for trace in figure.data for text, x, y in zip(trace.text, trace.x, trace.y, strict=True)}
    assert points["res.1"] == (40, 0.15)
    assert points["mlp.0"][1] > 0  # no rise at all has no place on a log axis: it stands at the lower edge
    assert [trace.name for trace in figure.data] == ["res", "mlp"]
    mean = figures.l0_and_delta_loss(SMALL, by="mean")
    assert mean.data[0].y[-1] == 0.3
    two = figures.l0_and_delta_loss(SMALL, {Site.of("res.1"): figure_of(80, 0.1)}, names=["narrow", "wide"])
    assert [trace.name for trace in two.data] == ["narrow, res", "narrow, mlp", "wide, res"]
    figure.update_layout(title="mine")
    assert figure.layout.title.text == "mine"


def test_fvu_by_layer_has_a_line_for_each_kind():
    figure = figures.fvu_by_layer(SMALL)
    lines = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert lines["res"] == ([0, 1], [0.1, 0.2])
    assert lines["res, without massive dimensions"][1] == pytest.approx([0.2, 0.3])
    assert lines["mlp"] == ([0], [0.2])


def test_a_figure_is_saved_as_one_page_that_asks_for_nothing(tmp_path):
    import re

    page = figures.save(figures.fvu_by_layer(SMALL), tmp_path / "deep" / "fvu.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
