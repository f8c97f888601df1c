"""The layer picture without a browser: its wire, selection, attribution, card, and static twin."""

import json
import re
import threading
import time

import gemloupe as gl
import numpy as np
import pytest
import traitlets
from gemloupe.errors import Refusal
from gemloupe.evolution import Attribution, Edge
from gemloupe.feature import FeatureId
from gemloupe.trace import Token
from gemloupe.widgets import layer_evolution
from gemloupe.widgets.evolution_wire import shown_features, wire_evolution, wire_guesses
from gemloupe.widgets.layer_evolution import LayerEvolution
from gemloupe.wire import arrays

TEXT = "The City of Light is Paris"


@pytest.fixture(scope="module")
def evolution(tiny3):
    return tiny3.evolve(TEXT, 4)


@pytest.fixture
def widget(evolution):
    return LayerEvolution(evolution)


def refused(code, run):
    with pytest.raises(Refusal) as caught:
        run()
    assert caught.value.code == code, caught.value


def blocks_of(wire, tokens):
    """[(site, token, feature, value)] as the browser reads them."""
    counts = arrays.read_array(wire["counts"]).reshape(len(wire["sites"]), tokens)
    features, values = arrays.read_array(wire["features"]), arrays.read_array(wire["values"]).astype(float)
    scales = arrays.read_array(wire["scales"])
    found, at = [], 0
    for s, site in enumerate(wire["sites"]):
        for token in range(tokens):
            for _ in range(counts[s, token]):
                found.append((site, token, int(features[at]), values[at] * scales[s]))
                at += 1
    assert at == len(features)
    return found


# ---- the wire


def test_every_block_of_every_ordinary_token_crosses(evolution, widget):
    tokens = evolution.trace.tokens
    found = blocks_of(widget.layers, len(tokens))
    expected = [
        (str(site.site), column.position, block.feature.index, block.value)
        for column in evolution.columns
        if not tokens[column.position].special
        for site in column.sites
        for block in site.blocks
    ]
    assert len(expected) > 20 and len(found) == len(expected)
    # the wire runs over sites first, the columns over tokens
    by_value = sorted(found, key=lambda one: one[:3])
    for ours, theirs in zip(by_value, sorted(expected, key=lambda one: one[:3]), strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3] == pytest.approx(theirs[3], rel=2e-3)
    assert not any(token == 0 for _, token, _, _ in found)


def test_the_maxima_are_those_of_the_features_shown(evolution, widget):
    wire = widget.layers
    shown = {(site, feature) for site, _, feature, _ in blocks_of(wire, len(evolution.trace))}
    expected = [
        float(evolution.trace.maxima[gl.Site.of(site)][feature])
        for site in wire["sites"]
        for feature in sorted(f for s, f in shown if s == site)
    ]
    np.testing.assert_allclose(arrays.read_array(wire["maxima"]), expected, rtol=1e-6)


def test_measures_and_guesses_cross(evolution, widget):
    wire, tokens = widget.layers, len(evolution.trace)
    l0 = arrays.read_array(wire["l0"]).reshape(-1, tokens)
    norms = arrays.read_array(wire["norms"]).astype(float).reshape(-1, tokens)
    norms *= arrays.read_array(wire["normScales"])[:, None]
    for column in evolution.columns:
        for s, site in enumerate(column.sites):
            assert l0[s, column.position] == site.l0
            assert norms[s, column.position] == pytest.approx(site.norm, rel=2e-3, abs=1e-2)
    guesses = widget.guesses
    places = arrays.read_array(guesses["tokens"])
    last = evolution.columns[-1].guesses
    assert [guesses["texts"][i] for i in places[-1, :, 0]] == [guess.tokens[0][1] for guess in last]
    assert arrays.read_array(guesses["entropies"])[-1] == pytest.approx(last[-1].entropy, rel=2e-3)
    without = wire_guesses(tiny_without_guesses(evolution))
    assert without["texts"] == [] and not arrays.read_array(without["positions"]).size


@pytest.mark.parametrize("how", ["shown", "waited for", "closed", "neither"])
def test_a_picture_that_is_late_does_not_wait_for_guesses(evolution, how, monkeypatch):
    """Nor do they hold it up: they begin when it is there."""
    monkeypatch.setattr(layer_evolution, "_PATIENCE", 0.5)
    asked = threading.Event()

    def more(follow):
        asked.set()
        return evolution

    made = LayerEvolution(evolution, more=more, begun=time.monotonic() - 10)
    assert not asked.wait(0.1) and made.guessing
    if how == "shown":
        made._repr_mimebundle_()
    elif how == "closed":
        made.close()
    elif how == "waited for":
        assert made.wait(10) and not made.guessing
    assert asked.wait(10)


def test_the_other_tokens_guesses_follow(tiny3, monkeypatch):
    from gemloupe.study import evolve

    go, make = threading.Event(), evolve.guessed

    def late(*given):
        assert go.wait(10)
        return make(*given)

    monkeypatch.setattr(evolve, "guessed", late)
    shown = tiny3.evolution(TEXT, token=" City")
    assert arrays.read_array(shown.guesses["positions"]).tolist() == [2] and shown.guessing
    early = shown._repr_mimebundle_()[0]["text/html"]
    assert '"guessing": true' in early
    go.set()
    complete = shown.evolution  # waits
    assert arrays.read_array(shown.guesses["positions"]).tolist() == list(range(7)) and not shown.guessing
    whole = tiny3.evolve(TEXT)
    for ours, theirs in zip(complete.columns, whole.columns, strict=True):
        assert [g.tokens for g in ours.guesses] == [g.tokens for g in theirs.guesses]
    assert complete.ribbons == whole.ribbons and complete.notes == whole.notes


def test_closing_gives_up_the_guesses_that_are_still_to_come(tiny3):
    shown = tiny3.evolution(TEXT)
    shown.close()
    assert shown.wait(10)


def tiny_without_guesses(evolution):
    from dataclasses import replace

    from gemloupe.evolution import Columns

    columns = evolution.columns
    return replace(evolution, columns=Columns(evolution.trace, columns.k, columns.norms, columns.fvus, {}))


def test_a_site_that_is_missing_is_named(widget):
    assert widget.layers["missing"] == ["res.1"]
    assert widget.layers["sites"] == ["res.0", "att.1", "mlp.1", "transcoder.2", "res.2"]


def test_one_site_is_enough(tiny3):
    shown = tiny3.evolution(TEXT, sites="res.2")
    assert shown.layers["sites"] == ["res.2"] and shown.layers["missing"] == []
    assert len(shown.evolution.columns[-1].sites) == 1 and "1 sites" in repr(shown)


def test_what_is_kept_of_a_long_text(evolution):
    tokens = len(evolution.trace)
    wire = wire_evolution(evolution, range(2, 4))
    assert {token for _, token, _, _ in blocks_of(wire, tokens)} == {2, 3}
    assert wire["kept"] == [2, 4]
    assert arrays.read_array(wire["l0"]).size == tokens * 5


# ---- selection


def test_the_last_ordinary_token_is_shown_first(evolution, widget):
    assert widget.selection == {"token": len(evolution.trace) - 1, "feature": None}
    assert LayerEvolution(evolution, token=0).selection["token"] == 0
    assert LayerEvolution(evolution, token=" City").selected.position == 2
    refused("position-out-of-range", lambda: LayerEvolution(evolution, token=99))


def test_a_feature_chosen_keeps_the_token(widget):
    widget.selected = "res.2/0"
    assert widget.selection == {"token": 6, "feature": "res.2/0"}
    widget.selected = (" City", "res.2/0")
    assert widget.selected.position == 2 and widget.selected.feature == FeatureId.of("res.2/0")


def test_the_browser_cannot_choose_what_is_not_there(widget):
    before = widget.selection
    with pytest.raises(traitlets.TraitError):
        widget.selection = {"token": 99, "feature": None}
    assert widget.selection == before


# ---- names


def test_names_come_later_the_shown_token_first(tiny3, evolution):
    asked, go = [], threading.Event()

    def names_of(features):
        go.wait(10)
        asked.append(list(features))
        return {feature: gl.Label(feature, f"about {feature.index}", "automatic") for feature in features}

    shown = LayerEvolution(evolution, names_of=names_of)
    assert shown.names == {}
    go.set()
    assert shown.wait(10)
    here = [block.feature for site in evolution.columns[-1].sites for block in site.blocks]
    assert asked[0][: len(here)] == list(dict.fromkeys(here))
    assert shown.names[str(here[0])] == [f"about {here[0].index}", False]
    shown.close()


def test_a_closed_loupe_leaves_the_picture_without_names(evolution):
    def gone(features):
        raise gl.Refusal("closed")

    shown = LayerEvolution(evolution, names_of=gone)
    assert shown.wait(10) and shown.names == {}


def test_joined_features_are_named_before_others(evolution):
    features = shown_features(evolution, 5)
    assert len(features) == 5 == len(set(features))


# ---- what leads to a target


def test_an_attribution_is_shown(evolution):
    calls = []
    block = evolution.columns[3].sites[0].blocks[0]

    def attribute(ids, target, *, token):
        calls.append((ids, target, token))
        edges = (Edge(block.feature, Token(5, " x", 0, 2, False, b" x"), 1.5, 3),)
        return Attribution(Token(5, " x", 0, 2, False, b" x"), token, 9.0, edges, 0.1, 0.5, evolution.trace)

    shown = LayerEvolution(evolution, attribute=attribute)
    shown.attribute(" x")
    assert calls[0][1:] == (" x", 6) and calls[0][0] == tuple(token.id for token in evolution.trace.tokens)
    [edge] = shown.attribution["edges"]
    assert edge["feature"] == str(block.feature) and edge["raw"] == pytest.approx(block.value)
    assert edge["strength"] is None if block.strength is None else edge["strength"] == pytest.approx(block.strength)
    assert shown.attribution["target"] == {"feature": None, "token": 5, "text": " x"}
    json.dumps(shown.attribution, allow_nan=False)
    shown.attribute(None)
    assert shown.attribution is None and shown.found is None


def test_the_loupes_own_attribution(tiny3):
    shown = tiny3.evolution(TEXT)
    guess = shown.evolution.columns[-1].guesses[-1].tokens[0][0]
    shown.methods()["attribution"](guess, 6)
    assert shown.attribution["target"]["token"] == guess and shown.attribution["position"] == 6
    assert shown.attribution["edges"]
    shown.methods()["check"](1)
    assert shown.attribution["edges"][0]["measured"] is not None


def test_without_a_loupe_nothing_more_is_computed(widget):
    refused("evolution-needs-loupe", lambda: widget.attribute(" x"))
    refused("evolution-needs-loupe", lambda: widget.open_card("res.2/0"))


# ---- a concept, a card


def test_a_concept_has_every_value_not_only_the_strongest(evolution, widget):
    trace = evolution.trace
    feature = max(range(trace["res.2"].shape[1]), key=lambda i: np.count_nonzero(trace["res.2"].column(i)[1:]))
    answer = widget.methods()["concept"](f"res.2/{feature}")
    assert f"res.2/{feature}" in answer["features"]
    on = np.flatnonzero(trace["res.2"].column(feature)[1:]) + 1
    row = answer["rows"][answer["features"].index(f"res.2/{feature}")]
    assert [position for position, _ in row] == on.tolist()
    refused("site-not-open", lambda: widget.grid("res.1/0"))


def test_a_card_opens_below_and_closes(tiny3):
    shown = tiny3.evolution(TEXT)
    card = shown.open_card("res.2/0")
    assert shown.card is card and card.feature == FeatureId.of("res.2/0")
    shown.methods()["uncard"]()
    assert shown.card is None


# ---- the static twin


def test_the_static_twin_holds_everything(tiny3):
    shown = tiny3.evolution(TEXT, token=" City")
    page = shown.to_html()
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S).group(1))
    assert state["selection"]["token"] == 2 and state["card"] is None
    assert state["layers"]["features"]["base64"] and state["facts"] is not None
    assert "not open" in shown.static_picture()
    assert "<link" not in page and "<script src" not in page


def test_a_notebook_keeps_a_part_of_a_long_text(tiny3, monkeypatch):
    from gemloupe.widgets import layer_evolution

    monkeypatch.setattr(layer_evolution, "_KEPT", 4)
    shown = tiny3.evolution(TEXT)
    fragment = shown._repr_mimebundle_()[0]["text/html"]
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', fragment, re.S).group(1))
    assert state["layers"]["kept"] == [3, 7]
    assert '"kept": null' in shown.to_html(page=False)
