"""What led to a target: against finite differences, in a linear model, by taking features out, and what is refused."""

import gemloupe as gl
import numpy as np
import pytest
import torch
from conftest import NEVER_FIRES, tiny_scope
from gemloupe.engine import layers as requests
from gemloupe.evolution import Attribution, Edge
from gemloupe.feature import FeatureId
from gemloupe.load.model import load_model
from gemloupe.run.attribution import FeatureTarget, TokenTarget, attribute, graph_bytes, without_each
from gemloupe.site import Site
from refusal import refused

TEXT = "The City of Light is Paris, and the river"
STEP = 0.02


def ids_of(loupe):
    return [token.id for token in loupe.read(TEXT).tokens]


# ---- differences, computed apart from gemloupe's own hooks


def module_of(model, site):
    """Where a site's tensor is made, written down apart: (module, whether it is its output)."""
    layer = model.model.layers[site.layer]
    return {
        "res": (layer, True),
        "mlp": (layer.post_feedforward_layernorm, True),
        "transcoder": (layer.pre_feedforward_layernorm, True),
        "att": (layer.self_attn.o_proj, False),
    }[site.kind]


def run(model, ids, change=None, upto=None):
    """The final logits [token, word], or the tensor at `upto` [token, width], with `change` (site, position, vector)
    added on the way; in double."""
    hooks, seen = [], {}
    if change is not None:
        site, position, vector = change
        module, output = module_of(model, site)

        def add(tensor):
            tensor = tensor.clone()
            tensor[0, position] += vector
            return tensor

        if output:
            hooks.append(
                module.register_forward_hook(lambda _m, _a, o: (add(o[0]), *o[1:]) if isinstance(o, tuple) else add(o))
            )
        else:
            hooks.append(module.register_forward_pre_hook(lambda _m, args: (add(args[0]), *args[1:])))
    if upto is not None:
        module, output = module_of(model, upto)

        def keep(_m, args, out=None):
            seen["x"] = (out[0] if isinstance(out, tuple) else out) if output else args[0]

        hooks.append(module.register_forward_hook(keep) if output else module.register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return logits if upto is None else seen["x"][0]


def value_of(loupe, ids, target, position, change=None):
    model = loupe.engine.loaded.model
    if isinstance(target, TokenTarget):
        logits = run(model, ids, change)[position]
        return float(logits[target.id] - (0 if target.against is None else logits[target.against]))
    sae = loupe.engine.sae(target.site)
    x = run(model, ids, change, target.site)[position]
    return float(x @ sae.encoder[target.index].double() + sae.b_enc[target.index].double())


@pytest.fixture(scope="module", params=["gemma2", "gemma3"])
def exact(request, tiny_folders):
    """A tiny loupe whose model computes in float64."""
    model, scope = tiny_folders[request.param]
    with gl.open(model, scope=scope, device="cpu") as loupe:
        loupe.engine.loaded.model.double()
        yield loupe


def slope(loupe, ids, target, position, site, token, vector):
    """The target's derivative as `vector` is added at (site, token), from four points; norms compute in float32, so
    that a smaller step would only measure their rounding."""
    one, two = (
        [value_of(loupe, ids, target, position, (site, token, sign * size * STEP * vector)) for sign in (1, -1)]
        for size in (1, 2)
    )
    return (8 * (one[0] - one[1]) - (two[0] - two[1])) / (12 * STEP)


def targets(loupe):
    trace = loupe.read(TEXT)
    feature = next(one.feature for one in trace.top(200, site="res.2") if one.feature.index != NEVER_FIRES)
    return [(TokenTarget(300, 310), 7), (TokenTarget(301), 9), (FeatureTarget(feature.site, feature.index), None)]


@pytest.mark.parametrize("number", range(3), ids=["two logits", "a logit", "a feature"])
def test_effects_are_finite_differences(exact, number):
    target, position = targets(exact)[number]
    ids, engine = ids_of(exact), exact.engine
    found = attribute(engine.loaded.model, ids, exact.sites, engine.sae, target, position, special={2})
    assert found.value == pytest.approx(value_of(exact, ids, target, found.position), rel=1e-5)
    compared = 0
    for site, acts in found.acts.items():
        decoder, effects = engine.sae(site).decoder.double(), found.features[site]
        strongest = np.argsort(-np.abs(effects))[:4]
        for i in [*strongest, *range(0, len(effects), max(1, len(effects) // 4))]:
            index, token = int(acts.indices[i]), int(acts.rows[i])
            vector = float(acts.values[i]) * decoder[index]
            expected = slope(exact, ids, target, found.position, site, token, vector)
            assert effects[i] == pytest.approx(expected, rel=2e-3, abs=1e-4), (site, index, token)
            compared += 1
    assert compared > (4 if isinstance(target, FeatureTarget) else 20)


def test_parts_add_up_to_the_gradient_times_the_tensor(exact):
    """Features, bias and error at a site are the whole of its tensor, at every token, the special one too."""
    target, position = targets(exact)[0]
    ids, engine = ids_of(exact), exact.engine
    found = attribute(engine.loaded.model, ids, exact.sites, engine.sae, target, position, special={2})
    assert set(found.errors) == set(exact.sites)
    for site in exact.sites:
        tensor = run(engine.loaded.model, ids, upto=site)
        parts = found.errors[site] + found.biases[site]
        np.add.at(parts, found.acts[site].rows, found.features[site])
        for token in (0, 3, 7):
            expected = slope(exact, ids, target, position, site, token, tensor[token])
            assert parts[token] == pytest.approx(expected, rel=2e-3, abs=3e-4), (site, token)


def test_what_was_measured_is_what_the_model_does_without_it(exact):
    target, position = targets(exact)[0]
    ids, engine = ids_of(exact), exact.engine
    found = attribute(engine.loaded.model, ids, exact.sites, engine.sae, target, position, special={2})
    sources, wanted = [], []
    whole = value_of(exact, ids, target, position)
    for site, acts in found.acts.items():
        decoder = engine.sae(site).decoder.double()
        for i in np.argsort(-np.abs(found.features[site]))[:3]:
            index, token = int(acts.indices[i]), int(acts.rows[i])
            sources.append((site, index, token))
            out = -float(acts.values[i]) * decoder[index]
            wanted.append(whole - value_of(exact, ids, target, position, (site, token, out)))
    measured = without_each(engine.loaded.model, ids, engine.sae, target, position, sources)
    np.testing.assert_allclose(measured, wanted, rtol=1e-4, atol=1e-5)


# ---- a linear model


class Mix(torch.nn.Module):
    """In attention's place: each token gets the mean of those up to it, through a matrix, and `o_proj` as before."""

    def __init__(self, attention, width, random):
        super().__init__()
        self.into = torch.nn.Linear(width, attention.o_proj.in_features, bias=False)
        self.o_proj = attention.o_proj
        with torch.no_grad():
            self.into.weight.copy_(torch.randn(self.into.weight.shape, generator=random) * 0.1)

    def forward(self, hidden_states, **_):
        counts = torch.arange(1, hidden_states.shape[1] + 1)[None, :, None]
        return self.o_proj(self.into(hidden_states.cumsum(1) / counts)), None


@pytest.fixture(scope="module")
def linear(tiny_folders, tmp_path_factory):
    """A loupe on a model in which everything is linear in the embeddings: no norms, no gates, no soft-cap."""
    model, _ = tiny_folders["gemma3"]
    sites = ("res.0", "res.1", "res.2", "mlp.1", "att.2")
    scope = tiny_scope(load_model(model, device="cpu"), tmp_path_factory.mktemp("linear"), sites)
    random = torch.Generator().manual_seed(0)
    with gl.open(model, scope=scope, device="cpu") as loupe:
        network = loupe.engine.loaded.model
        width = network.config.hidden_size
        for layer in network.model.layers:
            layer.self_attn = Mix(layer.self_attn, width, random)
            layer.mlp = torch.nn.Linear(width, width, bias=False)
            torch.nn.init.normal_(layer.mlp.weight, std=0.1, generator=random)
            for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
                setattr(layer, f"{name}_layernorm", torch.nn.Identity())
        network.model.norm = torch.nn.Identity()
        yield loupe


@pytest.mark.parametrize("target", ["token", "feature"])
def test_in_a_linear_model_edges_and_errors_are_the_whole_value(linear, target):
    """At every residual site, before the target, everything that passes is counted once."""
    if target == "feature":
        goal = next(one.feature for one in linear.read(TEXT).top(50, site="res.2"))
        constant = float(linear.engine.sae(goal.site).b_enc[goal.index])
    else:
        goal, constant = 300, 0.0
    found = linear.attribution(TEXT, goal, k=10_000)
    residual = [site for site in found.sums if site.kind == "res"]
    assert len(residual) == (2 if target == "feature" else 3)
    for site in residual:
        _, errors, biases = found.sums[site]
        edges = sum(edge.effect for edge in found.edges if edge.source.site == site)
        assert edges + errors + biases + constant == pytest.approx(found.value, rel=1e-4, abs=1e-4), site
    assert len(found.edges) == found.effects and found.explained + found.error <= 1 + 1e-6


def test_in_a_linear_model_the_prediction_is_what_is_measured(linear):
    found = linear.attribution(TEXT, 300, token=8).check(24)
    assert len([edge for edge in found.edges if edge.measured is not None]) == 24
    for edge in found.edges[:24]:
        assert edge.measured == pytest.approx(edge.effect, rel=1e-3, abs=1e-4), edge


# ---- the public half


def test_the_strongest_are_kept_and_shares_are_of_everything(tiny_loupe):
    every = tiny_loupe.attribution(TEXT, " Paris", k=100_000)
    few = tiny_loupe.attribution(TEXT, " Paris", k=12)
    assert len(few.edges) == 12 < len(every.edges) == every.effects == few.effects
    assert [(e.source, e.position, e.effect) for e in few.edges] == [
        (e.source, e.position, e.effect) for e in every.edges[:12]
    ]
    sizes = [abs(edge.effect) for edge in every.edges]
    assert sizes == sorted(sizes, reverse=True)
    assert few.explained == pytest.approx(every.explained * sum(sizes[:12]) / sum(sizes))
    assert 0 < few.explained < every.explained < 1 and 0 < few.error < 1
    assert few.target.text == " Paris" and few.position == len(few.trace) - 1
    text = repr(few)
    assert "12 of" in text and "of all effects" in text and str(few.edges[0].source) in text


def test_against_another_token_it_is_the_difference(tiny_loupe):
    one, other, both = (
        tiny_loupe.attribution(TEXT, *given, k=5, **more)
        for given, more in (((" Paris",), {}), ((" City",), {}), ((" Paris",), {"against": " City"}))
    )
    assert both.value == pytest.approx(one.value - other.value, abs=1e-3)
    assert "against ' City'" in repr(both)
    for site in both.sums:
        assert sum(both.sums[site]) == pytest.approx(sum(one.sums[site]) - sum(other.sums[site]), abs=2e-3)


def test_a_feature_where_it_fires_most(tiny3):
    trace = tiny3.read(TEXT)
    feature = trace.top(1, site="res.2")[0].feature
    values = np.where([token.special for token in trace.tokens], 0, trace[feature])
    found = tiny3.attribution(TEXT, feature)
    assert found.position == values.argmax() and found.value == pytest.approx(values.max(), rel=1e-4)
    assert all(edge.source.site < feature.site and edge.target == feature for edge in found.edges)
    assert all(edge.position <= found.position for edge in found.edges), "nothing later can have led to it"
    other = int(np.flatnonzero(values)[0])
    assert tiny3.attribution(TEXT, str(feature), token=other).position == other
    assert tiny3.attribution(TEXT, str(feature), token=other, sites="res.0").edges[0].source.site == Site("res", 0)


def test_checking_some_edges(tiny3):
    found = tiny3.attribution(TEXT, " Paris", k=20)
    third = found.edges[2]
    checked = found.check(third)
    assert [edge.measured is None for edge in checked.edges] == [i != 2 for i in range(20)]
    assert found.edges[2].measured is None, "the first one stays as it was"
    of_feature = found.check(str(third.source))
    assert all((edge.measured is not None) == (edge.source == third.source) for edge in of_feature.edges)
    assert of_feature.edges[2].measured == pytest.approx(checked.edges[2].measured, rel=1e-4, abs=1e-5)
    both = checked.check(1)
    assert [edge.measured is not None for edge in both.edges[:4]] == [True, False, True, False]
    assert "measured" in repr(both)
    refused("edge-unknown", lambda: found.check("res.0/5"))
    refused("edge-unknown", lambda: found.check(Edge(third.source, third.target, 1.0, 0)))
    refused("count-unreadable", lambda: found.check(0))
    refused("count-unreadable", lambda: found.check(None))


def test_one_pass_forward_and_one_back(tiny3, monkeypatch):
    model, passes, back = tiny3.engine.loaded.model, [], []
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: back.append(1) or grad(*a, **k))
    try:
        tiny3.attribution(TEXT, " Paris")
        assert len(passes) == len(back) == 1
    finally:
        hook.remove()


def test_nothing_is_left_behind(tiny_loupe):
    tiny_loupe.attribution(TEXT, " Paris").check(2)
    model = tiny_loupe.engine.loaded.model
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert all(one.grad is None for one in model.parameters())


def test_with_one_site_and_with_none_before(tiny3):
    found = tiny3.attribution(TEXT, " Paris", sites="res.0")
    assert {edge.source.site for edge in found.edges} == {Site("res", 0)}
    first = tiny3.read(TEXT).top(1, site="res.0")[0].feature
    alone = tiny3.attribution(TEXT, first)
    assert not alone.edges and "No open site comes before" in alone.notes[0] and alone.explained == 0
    assert len(alone.figure().data) > 0


# ---- what is refused


@pytest.mark.parametrize(
    ("target", "options", "code"),
    [
        (f"res.2/{NEVER_FIRES}", {}, "target-silent"),
        (" Paris", {"token": 99}, "position-out-of-range"),
        (" Paris", {"token": "Berlin"}, "token-not-found"),
        ("", {}, "target-unreadable"),
        (" Paris is", {}, "target-unreadable"),
        (1.5, {}, "target-unreadable"),
        (True, {}, "target-unreadable"),
        (512, {}, "token-id-unknown"),
        ("res.1/0", {}, "site-not-open"),
        ("res.2/96", {}, "feature-out-of-range"),
        ("res.2/0", {"against": " Paris"}, "target-unreadable"),
        (" Paris", {"k": 0}, "count-unreadable"),
    ],
)
def test_what_is_refused(tiny3, target, options, code):
    refused(code, lambda: tiny3.attribution(TEXT, target, **options))


def test_a_feature_that_does_not_fire_there_names_where_it_does(tiny3):
    trace = tiny3.read(TEXT)
    values = {feature: trace[f"res.2/{feature}"] for feature in range(96)}
    feature, silent = next(
        (index, int(np.flatnonzero(row[1:] == 0)[0]) + 1)
        for index, row in values.items()
        if (row[1:] > 0).any() and (row[1:] == 0).any()
    )
    said = refused("target-silent", lambda: tiny3.attribution(TEXT, f"res.2/{feature}", token=silent))
    assert f"position {silent}" in said and "it does at" in said


def test_gradients_that_are_not_finite(tiny_folders):
    model, scope = tiny_folders["gemma3"]
    with gl.open(model, scope=scope, device="cpu") as loupe:
        network = loupe.engine.loaded.model
        with torch.no_grad():
            network.model.norm.weight[0] = float("inf")
        refused("gradient-not-finite", lambda: loupe.attribution(TEXT, " Paris"))
        # The value itself is there; only the way back is not.
        with torch.no_grad():
            network.model.norm.weight[0] = 0
        hook = network.model.layers[2].register_forward_hook(
            lambda _m, _a, out: out + 0 * out.pow(2).mul(0).sqrt() if out.requires_grad else out
        )
        said = refused("gradient-not-finite", lambda: loupe.attribution(TEXT, " Paris"))
        hook.remove()
        assert "the gradient at" in said
        assert loupe.attribution(TEXT, " Paris").edges, "the loupe stays usable"


def test_a_text_too_long_for_the_way_back(tiny3, monkeypatch):
    monkeypatch.setattr(requests, "free_bytes", lambda device: 1000)
    said = refused("attribution-too-long", lambda: tiny3.attribution(TEXT, " Paris"))
    assert "Give a shorter text" in said
    model = tiny3.engine.loaded.model
    assert graph_bytes(model, 200) > 2 * graph_bytes(model, 100)


def test_without_the_loupe_that_made_it_nothing_is_checked(tiny3):
    trace = tiny3.read("The City")
    edges = (Edge(FeatureId.of("res.0/1"), FeatureId.of("res.2/0"), 1.0, 1),)
    made = Attribution(FeatureId.of("res.2/0"), 2, 1.0, edges, 0.1, 0.5, trace)
    refused("attribution-unchecked", lambda: made.check(1))


def test_a_figure_has_all_edges_and_what_was_measured(tiny3):
    found = tiny3.attribution(TEXT, " Paris", k=20).check(3)
    figure = found.figure({found.edges[0].source: "a name"})
    raises, lowers, bars, measured = figure.data
    assert len(raises.x) + len(lowers.x) == 20
    assert list(bars.x) == [edge.effect for edge in found.edges[:16]][::-1]
    assert "a name" in bars.y[-1]
    assert [x for x in measured.x if x is not None][::-1] == [edge.measured for edge in found.edges[:3]]
    assert "20 of" in figure.layout.title.text and "carry" in figure.layout.title.text
