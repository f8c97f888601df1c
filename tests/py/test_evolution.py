"""A text from layer to layer: blocks, measures, guesses and ribbons against what is computed apart; grids; figures."""

import threading
import time
from dataclasses import replace
from functools import partial

import gemloupe as gl
import numpy as np
import pytest
import torch
from conftest import tiny_scope
from gemloupe.engine import layers as requests
from gemloupe.evolution import Evolution, Grid
from gemloupe.evolution_figures import chains
from gemloupe.feature import FeatureId
from gemloupe.load.model import load_model
from gemloupe.run import evolve as run
from gemloupe.site import Site
from gemloupe.study import matches as study
from gemloupe.study.evolve import guessed
from refusal import refused

TEXT = "The City of Light is Paris and the river runs through it"
CHAIN = ("res.0", "res.1", "res.2", "res.3")
PLANTED = 30  # in every layer of CHAIN, a little turned


@pytest.fixture(scope="module")
def evolution(tiny3):
    return tiny3.evolve(TEXT, 6)


@pytest.fixture(scope="module")
def chained(tiny_folders, tmp_path_factory):
    """A loupe with one feature in every layer."""
    model, _ = tiny_folders["gemma2"]
    first = []

    def plant(name, decoder):
        first.append(decoder[PLANTED].clone())
        row = first[0] + 0.1 * decoder[PLANTED]
        decoder[PLANTED] = row / row.norm()

    folder = tiny_scope(load_model(model, device="cpu"), tmp_path_factory.mktemp("chain"), CHAIN, plant=plant)
    with gl.open(model, scope=folder, device="cpu") as loupe:
        yield loupe


# ---- one column


def test_blocks_are_the_strongest_and_l0_counts_all(tiny_loupe):
    evolution = tiny_loupe.evolve(TEXT, 6)
    trace = tiny_loupe.read(TEXT)
    assert len(evolution.columns) == len(trace)
    for position in range(1, len(trace)):
        for at in evolution.columns[position].sites:
            wanted = trace.top(6, token=position, site=at.site)
            assert [block.feature for block in at.blocks] == [one.feature for one in wanted]
            for block, one in zip(at.blocks, wanted, strict=True):
                assert block.value == pytest.approx(one.value, rel=1e-4)
                strength = np.nan if block.strength is None else block.strength
                assert strength == pytest.approx(one.strength, rel=1e-4, nan_ok=True)
            assert at.l0 == trace.acts[at.site].l0[position]


def test_norms_and_guesses_are_hugging_faces(tiny_loupe):
    evolution = tiny_loupe.evolve(TEXT, guesses=3)
    model = tiny_loupe.engine.loaded.model
    ids = torch.tensor([[token.id for token in evolution.trace.tokens]])
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    cap = getattr(model.config, "final_logit_softcapping", None)
    for column in evolution.columns:
        for at in column.sites:
            if at.site.kind == "res":
                assert at.norm == pytest.approx(float(seen[at.site.layer][0, column.position].norm()), rel=1e-4)
        assert [guess.layer for guess in column.guesses] == list(range(len(seen)))
        for guess in column.guesses:
            with torch.no_grad():
                logits = model.lm_head(model.model.norm(seen[guess.layer][0, column.position])).double()
            if cap:
                logits = cap * torch.tanh(logits / cap)
            chances = logits.softmax(0)
            top = chances.topk(3)
            assert [ident for ident, *_ in guess.tokens] == top.indices.tolist()
            np.testing.assert_allclose([p for *_, p in guess.tokens], top.values, rtol=1e-3)
            assert guess.entropy == pytest.approx(float(-(chances * chances.log()).sum()), rel=1e-3)


def test_fvu_is_the_share_of_the_variance_that_is_missed(tiny3, evolution):
    trace, site = evolution.trace, Site("res", 2)
    sae, seen = tiny3.engine.sae(site), []
    module = tiny3.engine.loaded.model.model.layers[2]
    hook = module.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        tiny3.engine.loaded.model(torch.tensor([[token.id for token in trace.tokens]]), use_cache=False)
    hook.remove()
    rows = seen[0][0, 1:].double()
    made = torch.from_numpy(trace["res.2"].to_dense()[1:]).double() @ sae.decoder.double() + sae.b_dec.double()
    missed = (rows - made).pow(2).sum(1)
    # Tokens many times longer than the others are no measure of the variance.
    usual = rows[rows.norm(dim=1) <= run.OUTLIER * rows.norm(dim=1).median()]
    variance = (usual - usual.mean(0)).pow(2).sum() / (len(usual) - 1)
    found = [next(at.fvu for at in column.sites if at.site == site) for column in evolution.columns]
    assert found[0] is None, "a special token"
    np.testing.assert_allclose(found[1:], missed / variance, rtol=1e-3)


def test_a_long_text_in_pieces_is_that_in_one(tiny3, evolution, monkeypatch):
    monkeypatch.setattr(requests, "evolve", partial(run.evolve, chunk=5))
    again = tiny3.evolve(TEXT, 6)
    for one, other in zip(evolution.columns, again.columns, strict=True):
        for a, b in zip(one.sites, other.sites, strict=True):
            assert [block.feature for block in a.blocks] == [block.feature for block in b.blocks]
            assert (a.l0, a.norm) == (b.l0, pytest.approx(b.norm, rel=1e-4))
        assert [g.tokens[0][0] for g in one.guesses] == [g.tokens[0][0] for g in other.guesses]


def test_guesses_only_where_they_were_asked_for(tiny3):
    found = tiny3.evolve(TEXT, at=[1, -1], guesses=2)
    assert [column.position for column in found.columns if column.guesses] == [1, len(found.columns) - 1]
    assert not any(column.guesses for column in tiny3.evolve(TEXT, guesses=0).columns)
    long = tiny3.evolve("The river runs. " * 25, guesses=1)
    assert sum(bool(column.guesses) for column in long.columns) == 64 and "last 64" in long.notes[0]


def test_guesses_that_follow_give_way_to_other_requests_and_begin_again(tiny3, monkeypatch):
    found, real, begun = tiny3.evolve(TEXT, at=-1), requests.evolve, threading.Event()
    calls = []

    def slow(*given, checkpoint, **options):
        calls.append(options["positions"])
        begun.set()
        for _ in range(2000 if len(calls) == 1 else 0):
            checkpoint(0.1)
            time.sleep(0.005)
        return real(*given, checkpoint=checkpoint, **options)

    monkeypatch.setattr(requests, "evolve", slow)
    made = []
    thread = threading.Thread(target=lambda: made.append(guessed(tiny3.engine, found, 5, lambda job: None)))
    thread.start()
    assert begun.wait(10)
    assert len(tiny3.read(TEXT)) == len(found.trace)  # not after ten seconds
    thread.join(10)
    assert len(calls) >= 2 and made[0].columns[0].guesses and made[0].ribbons == found.ribbons


def test_columns_are_found_by_position_and_text(evolution):
    last = len(evolution.columns) - 1
    assert evolution.column(-1).position == last == evolution.columns[last].position
    assert evolution.column(" Paris").position == [t.text for t in evolution.trace.tokens].index(" Paris")
    assert [column.position for column in evolution.columns[1:4]] == [1, 2, 3]
    for given in (99, -99, 1.5, None, True):
        refused("position-out-of-range", lambda given=given: evolution.columns[given])
    refused("token-not-found", lambda: evolution.column("Berlin"))


# ---- ribbons, gaps, trails


def test_a_feature_that_lasts_is_one_chain(chained):
    found = chained.evolve(TEXT, 96)
    joined = {(str(one.source), str(one.target)): one for one in found.ribbons}
    name = lambda layer: f"res.{layer}/{PLANTED}"  # noqa: E731
    on = [any(found.trace[name(layer)][1:]) for layer in range(4)]
    assert sum(on) >= 2
    for layer in range(3):
        together = np.any((found.trace[name(layer)] > 0) & (found.trace[name(layer + 1)] > 0))
        assert ((name(layer), name(layer + 1)) in joined) == bool(together)
    for one in joined.values():
        assert one.cosine >= 0.3 and one.coactivation is None
        assert chained.matches(one.source, 1)[-1].feature == one.target
    assert [str(one) for one in found.trail(name(2))] == [name(layer) for layer in range(4)]


def test_what_is_not_open_is_a_gap(chained):
    found = chained.evolve(TEXT, 96, sites=["res.0", "res.1", "res.3"])
    assert found.missing == (Site("res", 2),) and "not open: res.2" in repr(found)
    assert all({one.source.site.layer, one.target.site.layer} == {0, 1} for one in found.ribbons)
    assert [str(one) for one in found.trail(f"res.1/{PLANTED}")] == [f"res.0/{PLANTED}", f"res.1/{PLANTED}"]
    grid = found.grid(f"res.1/{PLANTED}")
    assert [str(site) for site in grid.sites] == ["res.0", "res.1", "res.3"] and grid.features[-1] is None
    assert grid.missing == found.missing
    shown = grid.figure().data[0]
    assert list(shown.y) == [f"res.0/{PLANTED}", f"res.1/{PLANTED}", "res.2 (not open)", "res.3 (no match)"]


def test_of_one_layer_there_is_a_picture(chained):
    found = chained.evolve(TEXT, sites="res.2")
    assert found.missing == () and found.ribbons == ()
    assert found.figure().data and found.sankey().layout.title.text.endswith("goes on in the next layer")
    assert found.trail("res.2/1") == (FeatureId.of("res.2/1"),)
    assert chained.evolution(TEXT, sites="res.2").figure().data


def test_without_its_loupe_a_trail_follows_the_ribbons_shown(tiny_folders, chained):
    found = chained.evolve(TEXT, 96)
    alone = replace(found, follow=None)
    ribbon = found.ribbons[0]
    assert {ribbon.source, ribbon.target} <= set(alone.trail(ribbon.source))
    model, scope = tiny_folders["gemma3"]
    with gl.open(model, scope=scope, device="cpu") as loupe:
        kept = loupe.evolve(TEXT)
    assert kept.trail("res.0/1") == (FeatureId.of("res.0/1"),), "closed"
    assert kept.figure().data


def test_ribbons_follow_what_fires_together_where_that_is_known(chained, monkeypatch):
    """Mutual nearest that never fire on the same token are not joined."""

    class File:
        def holds(self, one, two):
            return True

        def joined(self, one, two, left, right):
            partner, cosine = study.joined(chained.engine, one, two, left, right)
            return partner, cosine, np.where(left == PLANTED, 0.5, 0.01)

    from gemloupe.engine.protocol import EvolveRequest
    from gemloupe.study.evolve import evolve

    found = evolve(chained.engine, EvolveRequest(TEXT, 96), File())
    assert found.ribbons and all(one.source.index == PLANTED for one in found.ribbons)
    assert all(one.coactivation == 0.5 for one in found.ribbons)


# ---- grids


def test_a_grid_of_a_measure(evolution):
    trace = evolution.trace
    for measure, of in (("l0", lambda at: at.l0), ("norm", lambda at: at.norm), ("fvu", lambda at: at.fvu)):
        grid = evolution.grid(measure, "res")
        assert [str(site) for site in grid.sites] == ["res.0", "res.2"] and grid.missing == (Site("res", 1),)
        for row, site in zip(grid.values, grid.sites, strict=True):
            wanted = [next(of(at) for at in column.sites if at.site == site) for column in evolution.columns]
            np.testing.assert_allclose(row[1:], np.array(wanted[1:], float), rtol=1e-5)
        assert np.isnan(grid.values[:, 0]).all(), "a special token would leave the others without colour"
    entropy = evolution.grid("entropy")
    assert entropy.values.shape == (4, len(trace)) and entropy.unit == "nats"
    assert entropy.values[2, 5] == pytest.approx(evolution.columns[5].guesses[2].entropy, rel=1e-5)
    assert evolution.grid("l0", "att").sites == (Site("att", 1),)


def test_a_grid_of_a_feature(chained):
    found = chained.evolve(TEXT)
    grid = found.grid(f"res.2/{PLANTED}")
    assert [str(one) for one in grid.features] == [f"res.{layer}/{PLANTED}" for layer in range(4)]
    for row, feature in zip(grid.values, grid.features, strict=True):
        maximum = found.trace.maxima[feature.site][feature.index]
        np.testing.assert_allclose(row[1:], found.trace[feature][1:] / maximum, rtol=1e-5)
    assert grid.measure == "strength" and "4 sites by" in repr(grid)


def test_several_features_of_one_site_have_a_row_each(evolution):
    trace = evolution.trace
    chosen = [hit.feature for hit in trace.top(3, site="res.2")]
    grid = evolution.strengths(chosen)
    shown = grid.figure().data[0]
    assert list(shown.y) == [str(one) for one in chosen] and shown.z.shape == (3, len(trace))
    for row, feature in zip(shown.z, chosen, strict=True):
        np.testing.assert_allclose(row[1:], trace[feature][1:] / trace.maxima[feature.site][feature.index], rtol=1e-5)


def test_a_feature_whose_maximum_is_not_known_is_shown_raw(tiny3, evolution):
    feature = "mlp.1/0"
    grid = evolution.grid(feature)
    assert grid.measure == "activation" and grid.unit == "raw"
    np.testing.assert_allclose(grid.values[0, 1:], evolution.trace[feature][1:])


# ---- figures


def test_a_profile_has_every_block_ribbon_and_measure(chained):
    found = chained.evolve(TEXT, 8)
    column = found.column(" Paris")
    figure = found.figure(" Paris", {column.sites[0].blocks[0].feature: "a name"})
    bars = next(trace for trace in figure.data if trace.name == "residual" and trace.type == "bar")
    assert len(bars.x) == sum(len(at.blocks) for at in column.sites)
    assert any("a name" in said for said in bars.customdata)
    guesses = next(trace for trace in figure.data if trace.name == "guess")
    assert list(guesses.text) == [guess.tokens[0][1] for guess in column.guesses]
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert titles == ["residual", "entropy", "L0", "norm", "FVU"]
    tops = {}
    for layer, base, high in sorted(zip(bars.x, bars.base, bars.y, strict=True)):
        assert base >= tops.get(layer, 0), "blocks overlap"
        tops[layer] = base + high


def test_a_sankey_has_every_ribbon(chained):
    found = chained.evolve(TEXT, 96)
    column = max(found.columns, key=lambda one: len(joined_at(found, one)))
    (sankey,) = found.sankey(column.position).data
    shown = joined_at(found, column)
    assert len(sankey.link.source) == len(shown) > 0
    assert min(sankey.node.x) > 0 and max(sankey.node.x) < 1
    assert all("cosine" in said for said in sankey.link.customdata)


def joined_at(found, column):
    here = {block.feature for at in column.sites for block in at.blocks}
    return [one for one in found.ribbons if one.source in here and one.target in here]


def test_chains_are_in_the_order_of_the_picture(chained):
    found = chained.evolve(TEXT, 96)
    column = found.columns[-1]
    made = chains([at.blocks for at in column.sites], found.ribbons)
    blocks = [block.feature for at in column.sites for block in at.blocks]
    assert sorted(block.feature for chain in made for block in chain) == sorted(blocks)
    lengths = [len(chain) > 1 for chain in made]
    assert lengths == sorted(lengths, reverse=True), "what lasts comes first"


def test_figures_need_no_maximum_and_no_site(tiny3, evolution):
    assert evolution.grid("fvu", "mlp").figure().data[0].z.shape == (1, len(evolution.trace))
    empty = Grid(evolution.trace.tokens, (), np.zeros((0, len(evolution.trace))), "l0")
    assert empty.figure() is not None
    bare = tiny3.evolve(TEXT, sites=())
    assert bare.figure().data and isinstance(bare, Evolution)


def test_the_widgets_figure_is_what_it_shows(tiny3):
    shown = tiny3.evolution(TEXT)
    assert any(trace.name == "guess" for trace in shown.figure().data)
    shown.view = "grid"
    assert shown.figure().data[0].type == "heatmap"
    shown.view = "layers"
    shown.attribute(" Paris")
    assert "What led to ' Paris'" in shown.figure().layout.title.text


# ---- what is refused


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda e: e.grid("loss"), "measure-unknown"),
        (lambda e: e.grid("l0", "head"), "measure-unknown"),
        (lambda e: e.grid("res.1/0"), "site-not-open"),
        (lambda e: e.grid("res.0/96"), "feature-out-of-range"),
        (lambda e: e.grid("res.0/x"), "feature-unreadable"),
        (lambda e: e.trail("res.1/0"), "site-not-open"),
    ],
)
def test_what_an_evolution_refuses(evolution, ask, code):
    refused(code, lambda: ask(evolution))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"at": 99}, "position-out-of-range"),
        ({"at": [1, "x"]}, "position-out-of-range"),
        ({"k": 0}, "count-unreadable"),
        ({"guesses": -1}, "count-unreadable"),
        ({"sites": "res.1"}, "site-not-open"),
    ],
)
def test_what_is_refused(tiny3, options, code):
    refused(code, lambda: tiny3.evolve(TEXT, **options))
    refused("text-empty", lambda: tiny3.evolve(""))
    refused("text-too-long", lambda: tiny3.evolve("a b c d " * 200))
