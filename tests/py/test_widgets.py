"""Widgets without a browser: their traits, what they refuse, what they answer, and their static twins."""

import html.parser
import json
import re
import threading

import numpy as np
import pytest
import traitlets
from conftest import NEVER_FIRES, SCOPE_WIDTH, UNKNOWN
from gemloupe.feature import FeatureId
from gemloupe.site import Site
from gemloupe.sparse import SparseActs
from gemloupe.trace import Guess, Token, Trace, join_bytes
from gemloupe.widgets.colour import PALETTES, opacity
from gemloupe.widgets.feature_table import FeatureTable
from gemloupe.widgets.live import LiveWidget
from gemloupe.widgets.selection import Selection, read_selection
from gemloupe.widgets.token_heatmap import TokenHeatmap
from gemloupe.wire import arrays
from refusal import refused

TEXT = "The City of Light is Paris"
BOTH = [TokenHeatmap, FeatureTable]


@pytest.fixture(scope="module")
def trace(tiny3):
    return tiny3.read(TEXT, guesses=5)


@pytest.fixture(params=BOTH, ids=lambda kind: kind.__name__)
def widget(request, trace, tiny3):
    return request.param(trace, tiny3.engine.facts)


def on(trace, site="res.2", token=2):
    """A feature that is on at a token."""
    return f"{site}/{trace[site].row(token)[0][0]}"


# ---- traits


def test_a_heatmap_has_as_many_guesses_as_asked_for(tiny3):
    assert {len(some) for some in tiny3.heatmap(TEXT, guesses=2).guesses} == {2}
    assert {len(some) for some in tiny3.heatmap(TEXT).guesses} == {5}
    assert tiny3.heatmap(TEXT, guesses=0).guesses is None
    refused("count-unreadable", lambda: tiny3.heatmap(TEXT, guesses=-1))


def test_a_heatmap_sends_the_trace(tiny3, trace):
    heatmap = tiny3.heatmap(trace)
    assert isinstance(heatmap, TokenHeatmap)
    assert heatmap.protocol == 1 and heatmap.palette == "blue" and heatmap.facts is None
    assert [token["text"] for token in heatmap.tokens] == ["<bos>", "The", " City", " of", " Light", " is", " Paris"]
    assert heatmap.tokens[0] == {"id": 2, "text": "<bos>", "start": 0, "end": 0, "special": True}
    assert heatmap.sites == ["res.0", "att.1", "mlp.1", "transcoder.2", "res.2"]
    assert heatmap.site == "res.2"  # high in the residual stream
    assert heatmap.selection == {"token": None, "feature": None}
    about = {"model": "gemma3", "scope": "tiny-gemma3_text", "device": "cpu", "dtype": "float32", "note": ""}
    assert heatmap.about == about
    np.testing.assert_allclose(arrays.read_sparse(heatmap.acts).to_dense(), trace["res.2"].to_dense(), rtol=1e-3)
    assert len(heatmap.guesses) == len(trace) and all(len(guess) == 5 for guess in heatmap.guesses)
    text, share = heatmap.guesses[1][0]
    assert isinstance(text, str) and 0 < share <= 1


def test_pieces_of_a_character_send_their_bytes(tiny3):
    tokens = tiny3.heatmap("a🦜").tokens
    assert [token.get("bytes") for token in tokens] == [None, None, "f0", "9f", "a6", "9c"]
    assert [token["text"] for token in tokens[2:]] == [""] * 4


def test_a_text_or_a_trace(tiny3, trace):
    assert tiny3.heatmap(TEXT).tokens == tiny3.heatmap(trace).tokens
    assert tiny3.table(TEXT).tokens == tiny3.table(trace).tokens
    assert tiny3.heatmap(trace).trace is trace


def test_everything_that_is_sent_is_json(widget):
    state = arrays.as_json({name: getattr(widget, name) for name in widget.static_state()})
    json.dumps(state, allow_nan=False)


def test_without_any_site_tokens_and_guesses_are_shown(trace):
    bare = Trace(trace.tokens, {}, guesses=trace.guesses)
    for kind in BOTH:
        widget = kind(bare)
        assert (widget.site, widget.sites, widget.acts, widget.maxima) == ("", [], None, None)
        refused("site-not-open", lambda widget=widget: setattr(widget, "selected", "res.0/1"))
        widget.selected = 2
        assert "Light" in widget.to_html()
        assert (widget.strengths() == 0).all()


def test_without_guesses_there_are_none(tiny3, trace):
    bare = Trace(trace.tokens, trace.acts, trace.maxima)
    assert TokenHeatmap(bare).guesses is None
    some = Trace(trace.tokens, trace.acts, guesses=(None, (Guess(0, "<pad>", 0.5),), *[()] * 5))
    assert TokenHeatmap(some).guesses == [[], [["<pad>", 0.5]], [], [], [], [], []]


def test_options_are_set_first(tiny3, trace):
    feature = on(trace, "res.0")
    heatmap = tiny3.heatmap(trace, site="res.2", palette="grey", selected=" Paris")
    assert (heatmap.site, heatmap.palette, heatmap.selection["token"]) == ("res.2", "grey", 6)
    assert tiny3.heatmap(trace, selected=feature).site == "res.0"
    both = tiny3.heatmap(trace, selected=feature, site="res.2")  # the feature cannot be shown at another site
    assert both.site == "res.0" and str(both.selected.feature) == feature
    np.testing.assert_allclose(arrays.read_sparse(both.acts).to_dense(), trace["res.0"].to_dense(), rtol=1e-3)


@pytest.mark.parametrize("kind", BOTH)
def test_unknown_options_are_named(kind, trace):
    with pytest.raises(TypeError, match=rf"{kind.__name__} has no trait colour, pallette\. It has: .*palette"):
        kind(trace, pallette="blue", colour=3)


def test_wrong_values_are_refused(widget, trace):
    for name, bad in (("palette", "pink"), ("palette", None), ("protocol", "x"), ("site", 3), ("selection", "x")):
        with pytest.raises(traitlets.TraitError):
            setattr(widget, name, bad)
    refused("site-not-open", lambda: type(widget)(trace, site="res.1"))
    refused("site-unreadable", lambda: type(widget)(trace, site="nope"))
    refused("position-out-of-range", lambda: type(widget)(trace, selected=99))


# ---- sites


def test_changing_the_site_changes_what_is_shown(widget, trace):
    for site in ("res.0", "att.1", "res.2"):
        widget.site = site
        np.testing.assert_allclose(arrays.read_sparse(widget.acts).to_dense(), trace[site].to_dense(), rtol=1e-3)
        wire = widget.maxima
        known = arrays.read_array(wire["values"]).astype(np.float32) * np.float32(wire["scale"])
        np.testing.assert_allclose(known, trace.maxima[Site.of(site)][trace[site].features], rtol=1e-3)


def test_changing_the_site_drops_a_feature_of_another(widget, trace):
    widget.selected = (3, on(trace, "res.2", 3))
    widget.site = "res.2"
    assert widget.selected.feature is not None
    widget.site = "res.0"
    assert widget.selection == {"token": 3, "feature": None}
    widget.selected = (3, on(trace, "res.2", 3))
    widget.site = ""  # no site: nothing to colour by
    assert widget.selection == {"token": 3, "feature": None} and widget.acts is None


def test_selecting_a_feature_brings_its_site(widget, trace):
    widget.site = "res.0"
    widget.selected = on(trace, "res.2")
    assert widget.site == "res.2"
    np.testing.assert_allclose(arrays.read_sparse(widget.acts).to_dense(), trace["res.2"].to_dense(), rtol=1e-3)


@pytest.mark.parametrize("given", ["res.1", "res.99", "nope", "res.2/3"])
def test_sites_that_are_not_open_are_refused(widget, given):
    before = widget.site
    refused(
        "site-unreadable" if given in ("nope", "res.2/3") else "site-not-open", lambda: setattr(widget, "site", given)
    )
    assert widget.site == before and widget.acts is not None


# ---- selection


def test_selected_in_all_its_forms(widget, trace):
    feature = on(trace, "res.2")
    name = FeatureId.of(feature)
    both = {"token": 2, "feature": feature}
    forms = [
        (2, {"token": 2, "feature": None}),
        (0, {"token": 0, "feature": None}),
        (np.int64(2), {"token": 2, "feature": None}),
        (" Paris", {"token": 6, "feature": None}),
        ("Paris", {"token": 6, "feature": None}),
        (feature, {"token": None, "feature": feature}),
        (name, {"token": None, "feature": feature}),
        ("res.2/0", {"token": None, "feature": "res.2/0"}),
        ((2, feature), both),
        ([" City", name], both),
        ((2, None), {"token": 2, "feature": None}),
        ((None, feature), {"token": None, "feature": feature}),
        (both, both),
        ({"token": 2}, {"token": 2, "feature": None}),
        ({}, {"token": None, "feature": None}),
        (Selection(2, trace.tokens[2], name), both),
        (None, {"token": None, "feature": None}),
    ]
    for given, expected in forms:
        widget.selected = given
        assert widget.selection == expected, given
        found = widget.selected
        assert found.position == expected["token"]
        assert found.token == (None if found.position is None else trace.tokens[found.position])
        assert found.feature == (expected["feature"] and FeatureId.of(expected["feature"]))
        json.dumps(widget.selection)


def test_a_token_that_looks_like_a_feature_is_the_token():
    tokens = join_bytes([(2, b"", True, "<bos>"), (3, b"res.0/1", False, "")])
    trace = Trace(tokens, {Site("res", 0): SparseActs.from_dense(np.ones((2, 3), np.float32))})
    assert read_selection("res.0/1", trace).position == 1
    assert read_selection("res.0/2", trace).feature == FeatureId.of("res.0/2")


WRONG = [
    (7, "position-out-of-range"),
    (-1, "position-out-of-range"),
    (True, "position-out-of-range"),
    (1.0, "position-out-of-range"),
    (float("nan"), "position-out-of-range"),
    ("London", "token-not-found"),
    ("", "token-not-found"),
    (f"res.2/{SCOPE_WIDTH}", "feature-out-of-range"),
    ("res.2/-1", "feature-unreadable"),
    ("res.2/x", "feature-unreadable"),
    ("res.1/0", "site-not-open"),
    ("/", "feature-unreadable"),
    ((7, None), "position-out-of-range"),
    ((2, "res.2/-1"), "feature-unreadable"),
    ((2, 3), "feature-unreadable"),
    ((1, 2, 3), "position-out-of-range"),
    ({"token": 99}, "position-out-of-range"),
    ({"feature": 5}, "feature-unreadable"),
    ({"feature": "res.1/0"}, "site-not-open"),
]


@pytest.mark.parametrize(("given", "code"), WRONG)
def test_selections_that_cannot_be_are_refused(widget, trace, given, code):
    widget.selected = before = (2, on(trace))
    refused(code, lambda: setattr(widget, "selected", given))
    assert widget.selection == {"token": 2, "feature": before[1]}
    if isinstance(given, dict):
        refused(code, lambda: setattr(widget, "selection", given))
        assert widget.selection == {"token": 2, "feature": before[1]}


# ---- the browser's end


class Ends:
    """The browser's end of a widget: what it would have been sent."""

    def __init__(self, widget, monkeypatch):
        self.widget, self.replies, self.states = widget, [], []
        self.arrived = threading.Condition()
        monkeypatch.setattr(widget._calls, "_send", self._reply)
        monkeypatch.setattr(widget, "send_state", lambda key=None: self.states.append(key))

    def _reply(self, message):
        with self.arrived:
            self.replies.append(message)
            self.arrived.notify_all()

    def ask(self, method, **params):
        ident = len(self.replies) + 1
        self.widget._handle_custom_msg({"kind": "call", "id": ident, "method": method, "params": params}, [])
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.replies) == ident, 10), "no reply"
        assert self.replies[-1]["id"] == ident
        return self.replies[-1]


@pytest.fixture
def browser(widget, monkeypatch):
    return Ends(widget, monkeypatch)


def test_the_browser_may_ask_for_facts(browser, tiny3):
    reply = browser.ask("facts", site="res.2", features=[0, 3, UNKNOWN, NEVER_FIRES])
    assert reply["kind"] == "value" and list(reply["value"]) == ["0", "3", str(UNKNOWN), str(NEVER_FIRES)]
    facts, known = reply["value"]["0"], tiny3.feature("res.2/0")
    assert (
        facts["maximum"] == known.maximum and facts["density"] == known.density and facts["mean"] == known.mean_active
    )
    assert len(facts["promotes"]) == len(facts["suppresses"]) == 10
    assert facts["promotes"][0] == [known.promotes[0][0], round(known.promotes[0][1], 3)]
    assert reply["value"][str(UNKNOWN)]["maximum"] is None
    json.dumps(reply, allow_nan=False)
    unmeasured = browser.ask("facts", site="mlp.1", features=[0])["value"]["0"]
    assert unmeasured == {"density": None, "maximum": None, "mean": None, "promotes": [], "suppresses": []}
    assert browser.ask("facts", site="res.2", features=[])["value"] == {}


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"site": "res.2", "features": [SCOPE_WIDTH]}, "feature-out-of-range"),
        ({"site": "res.2", "features": [-1]}, "feature-unreadable"),
        ({"site": "res.2", "features": [1.5]}, "feature-unreadable"),
        ({"site": "res.2", "features": [True]}, "feature-unreadable"),
        ({"site": "res.2", "features": ["7"]}, "feature-unreadable"),
        ({"site": "res.1", "features": [0]}, "site-not-open"),
        ({"site": None, "features": [0]}, "site-unreadable"),
        ({"site": "res.2", "features": None}, "failed"),
        ({"site": "res.2"}, "failed"),
        ({}, "failed"),
    ],
)
def test_questions_that_cannot_be_are_answered_with_an_error(browser, params, code):
    reply = browser.ask("facts", **params)
    assert (reply["kind"], reply["code"]) == ("error", code)
    assert browser.ask("ping")["kind"] == "value"


def test_the_browser_may_change_the_site(browser, widget, trace):
    widget.selected = (1, on(trace, "res.2"))
    reply = browser.ask("site", site="res.0")
    assert reply["kind"] == "value" and reply["value"] is None
    assert widget.site == "res.0" and widget.selection == {"token": 1, "feature": None}
    np.testing.assert_allclose(arrays.read_sparse(widget.acts).to_dense(), trace["res.0"].to_dense(), rtol=1e-3)
    assert browser.ask("site", site="res.1")["code"] == "site-not-open"
    assert widget.site == "res.0"


def test_ping_and_unknown_methods(browser):
    assert browser.ask("ping") == {"kind": "value", "id": 1, "value": None}
    assert browser.ask("generate")["code"] == "no-such-method"


def test_the_browser_may_select(browser, widget, trace):
    feature = on(trace, "res.0")
    widget.set_state({"selection": {"token": 3, "feature": feature}})
    assert widget.selected.position == 3 and str(widget.selected.feature) == feature
    assert widget.site == "res.0"
    widget.set_state({"selection": {"token": None, "feature": None}})
    assert widget.selected == Selection()
    widget.set_state({"palette": "orange"})
    assert widget.palette == "orange"


@pytest.mark.parametrize(
    "state",
    [
        {"selection": {"token": 99, "feature": None}},
        {"selection": {"token": None, "feature": "res.1/0"}},
        {"selection": {"token": None, "feature": "res.2/-1"}},
        {"selection": {"token": True, "feature": None}},
        {"selection": 3},
        {"selection": None},
        {"site": "res.1"},
        {"site": "nope"},
        {"palette": "pink"},
        {"palette": "orange", "selection": {"token": 99}},
    ],
)
def test_what_the_browser_may_not_set_is_put_back(browser, widget, trace, state):
    """A page of another version, or a hand-made message: the kernel keeps what is right and says so."""
    widget.selected = before = (2, on(trace))
    widget.set_state(state)  # does not raise: that would be a traceback in somebody's cell
    assert widget.selection == {"token": 2, "feature": before[1]}
    assert widget.selected.position == 2 and widget.site == "res.2" and widget.palette == "blue"
    assert browser.states[-1] == list(state)  # both sides agree again


def test_site_and_selection_at_once_end_consistent(browser, widget, trace):
    for site, feature in (("res.0", "res.2/3"), ("res.2", "res.2/3"), ("att.1", None)):
        widget.set_state({"site": site, "selection": {"token": 1, "feature": feature}})
        chosen = widget.selected.feature
        assert widget.site == site  # what was asked for; a feature of another site goes
        assert chosen is None or str(chosen.site) == site
        np.testing.assert_allclose(arrays.read_sparse(widget.acts).to_dense(), trace[widget.site].to_dense(), rtol=1e-3)
    assert widget.site == "att.1"


def test_messages_of_others_are_left_alone(browser, widget):
    for message in ({}, {"kind": "value", "id": 3}, {"event": "click"}):
        widget._handle_custom_msg(message, [])
    assert browser.replies == []


# ---- two views


@pytest.fixture
def pair(tiny3, trace):
    heatmap = tiny3.heatmap(trace, palette="purple")
    return heatmap, tiny3.table(heatmap)


def agree(one, two):
    assert (one.site, one.selection, one.palette) == (two.site, two.selection, two.palette)
    for widget in (one, two):
        feature = widget.selected.feature
        assert feature is None or str(feature.site) == widget.site
        np.testing.assert_array_equal(arrays.read_array(widget.acts["indices"]), widget.trace[widget.site].indices)


def test_a_table_beside_a_heatmap_begins_as_it_is(pair, tiny3, trace):
    heatmap, table = pair
    assert isinstance(table, FeatureTable) and table.trace is heatmap.trace
    agree(heatmap, table)
    assert table.palette == "purple"
    selected = tiny3.heatmap(trace, selected=(1, on(trace, "res.0")))
    agree(selected, tiny3.table(selected))


def test_a_table_beside_a_heatmap_shows_what_it_is_given_in_both(tiny3, trace):
    heatmap = tiny3.heatmap(trace, selected=(1, on(trace, "res.0")))
    table = tiny3.table(heatmap, site="res.2", palette="orange")
    assert (heatmap.site, heatmap.palette, heatmap.selection) == ("res.2", "orange", {"token": 1, "feature": None})
    agree(heatmap, table)
    feature = on(trace, "att.1")
    table = tiny3.table(heatmap, selected=feature)
    assert heatmap.selection["feature"] == feature
    agree(heatmap, table)
    refused("site-not-open", lambda: tiny3.table(heatmap, site="res.99"))
    with pytest.raises(TypeError, match="no trait sight"):
        tiny3.table(heatmap, sight="res.2")
    assert heatmap.selection["feature"] == feature


def test_two_views_follow_each_other(pair, trace):
    heatmap = pair[0]
    features = [on(trace, site) for site in ("res.0", "att.1", "res.2")]
    for one, two in (pair, pair[::-1]):
        for feature in features:  # each at another site than the last
            one.selected = feature
            assert str(one.selected.feature) == feature  # it is not lost on the way
            agree(one, two)
        one.selected = (1, features[0])
        agree(one, two)
        one.site = "mlp.1"
        assert one.selection == {"token": 1, "feature": None}
        agree(one, two)
        one.palette = "grey" if one is heatmap else "orange"
        agree(one, two)
        one.selected = None
        agree(one, two)


def test_a_refused_selection_leaves_both_as_they_were(pair, trace):
    heatmap, table = pair
    heatmap.selected = feature = on(trace)
    refused("position-out-of-range", lambda: setattr(table, "selected", 99))
    agree(heatmap, table)
    assert str(table.selected.feature) == feature
    table.set_state({"selection": {"token": 99, "feature": None}})
    agree(heatmap, table)
    assert str(heatmap.selected.feature) == feature


# ---- colour


def test_strength_is_of_the_feature_or_the_strongest(trace):
    heatmap = TokenHeatmap(trace, site="res.2")
    dense, maxima = trace["res.2"].to_dense(), trace.maxima[Site("res", 2)].copy()
    for feature in (UNKNOWN, NEVER_FIRES):
        maxima[feature] = dense[:, feature].max() or 1  # unknown: the largest value here stands in
    np.testing.assert_allclose(heatmap.strengths(), (dense / maxima).max(1), rtol=1e-6)
    heatmap.selected = on(trace)
    index = heatmap.selected.feature.index
    np.testing.assert_allclose(heatmap.strengths(), dense[:, index] / maxima[index], rtol=1e-6)
    for silent in (NEVER_FIRES,):
        heatmap.selected = f"res.2/{silent}"
        assert (heatmap.strengths() == 0).all()
    assert heatmap.strengths()[0] == 0  # BOS


def test_opacity_is_one_scale():
    assert opacity(np.array([0.0, -1, np.nan])).tolist() == [0, 0, 0]
    assert opacity(np.array(1.0)) == opacity(np.array(7.0)) == opacity(np.array(np.inf)) == 1
    rising = opacity(np.linspace(1e-6, 1, 100))
    assert (np.diff(rising) > 0).all() and rising[0] >= 0.05
    assert set(PALETTES) == {"blue", "orange", "purple", "grey"}


# ---- static twins

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "--></style><svg onload=alert(1)>",
    "\"'><iframe srcdoc=x>",
    "&lt;b&gt;",
    "{fragment}{0}%s${x}",
    "\u2028\u2029\u202e",
]


class Elements(html.parser.HTMLParser):
    """Names and attributes of all elements, and the text inside each kind."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.inside, self.stack = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag != "meta":
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, "elements do not nest: something broke out"

    def handle_data(self, data):
        if self.stack:
            self.inside.setdefault(self.stack[-1], []).append(data)


def hostile_trace():
    tokens = [(2, b"", True, "<bos></script>")]
    tokens += [(10 + i, text.encode(), False, text) for i, text in enumerate(HOSTILE)]
    tokens = join_bytes(tokens)
    acts = SparseActs.from_dense(np.ones((len(tokens), 3), np.float32))
    guesses = tuple((Guess(1, HOSTILE[0], 0.5),) for _ in tokens)
    about = {"model": HOSTILE[0], "scope": HOSTILE[2]}
    return Trace(tokens, {Site("res", 0): acts}, guesses=guesses, about=about)


def hostile_facts(features):
    from gemloupe.engine.protocol import FeatureFacts

    return tuple(FeatureFacts(f, promotes=((HOSTILE[0], 1.0), (HOSTILE[1], float("nan")))) for f in features)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("page", [True, False])
def test_hostile_text_stays_text(kind, page):
    widget = kind(hostile_trace(), hostile_facts)
    elements = Elements(widget.to_html(page=page))
    names = [tag for tag, _ in elements.found]
    assert set(names) <= {"html", "head", "meta", "title", "style", "body", "div", "span", "script"}
    assert names.count("script") == 2 and not elements.stack
    for _, attributes in elements.found:
        assert not any(name.startswith("on") or name in ("src", "href", "srcdoc") for name in attributes)
    data = json.loads(elements.inside["script"][0])
    assert [token["text"] for token in data["tokens"][1:]] == HOSTILE
    assert data["about"]["model"] == HOSTILE[0]
    assert data["facts"]["0"]["promotes"] == [[HOSTILE[0], 1.0], [HOSTILE[1], None]]
    shown = "".join(elements.inside["span"])
    assert all(text in shown for text in HOSTILE[:-1])


def test_a_static_twin_needs_no_network(widget):
    page = widget.to_html()
    elements = Elements(page)
    loads = {"src", "href", "srcset", "data", "action", "poster"}
    assert not [one for _, attributes in elements.found for one in attributes if one in loads]
    assert not re.search(r"@import|url\((?!['\"]?data:)|\bfetch\(|XMLHttpRequest|import\(|WebSocket", page)
    for address in re.findall(r"https?://[^\s\"'`)]+", page):
        assert address.startswith("http://www.w3.org/"), f"{address} would be loaded"  # the names of SVG and XHTML
    assert page.startswith("<!doctype html>") and 'charset="utf-8"' in page


def test_a_static_twin_holds_the_last_state(widget, trace):
    feature = on(trace, "res.0", 3)
    widget.selected = (3, feature)
    widget.palette = "orange"
    data = json.loads(Elements(widget.to_html()).inside["script"][0])
    assert data["site"] == "res.0" and data["selection"] == {"token": 3, "feature": feature}
    assert data["palette"] == "orange" and data["protocol"] == 1
    np.testing.assert_allclose(arrays.read_sparse(data["acts"]).to_dense(), trace["res.0"].to_dense(), rtol=1e-3)
    # the strongest features of every token have their facts, for nobody can be asked later
    for token in range(1, len(trace)):
        for one in trace.top(5, token=token, site="res.0"):
            assert str(one.feature.index) in data["facts"]


def test_the_picture_colours_tokens_and_leaves_specials_alone(trace):
    heatmap = TokenHeatmap(trace, site="res.2")
    spans = [attributes for tag, attributes in Elements(heatmap.static_picture()).found if tag == "span"]
    assert len(spans) >= len(trace)
    shades = [
        float(re.search(r"rgba\(\d+,\s*\d+,\s*\d+,\s*([\d.]+)\)", one["style"])[1]) for one in spans[: len(trace)]
    ]
    assert shades[0] == 0
    np.testing.assert_allclose(shades, opacity(heatmap.strengths()), atol=1e-3)


def test_files_and_pages(widget, tmp_path):
    path = widget.save_html(tmp_path / "a.html")
    assert path.read_text(encoding="utf-8") == widget.to_html()
    assert "<html" not in widget.to_html(page=False)


def test_a_notebook_keeps_html(widget):
    data, _ = widget._repr_mimebundle_()
    assert data["text/html"] == widget.to_html(page=False)
    assert "application/vnd.jupyter.widget-view+json" in data


def test_what_was_made_is_shown_after_closing_and_from_files(tiny_folders, tmp_path):
    import gemloupe as gl

    model, scope = tiny_folders["gemma3"]
    with gl.open(model, scope=scope, device="cpu") as loupe:
        heatmap = loupe.heatmap(TEXT)
        saved = heatmap.trace.save(tmp_path / "t")
    for widget in (heatmap, TokenHeatmap(Trace.load(saved)), FeatureTable(Trace.load(saved))):
        widget.site = "res.0"
        widget.selected = " Paris"
        assert "Paris" in widget._repr_mimebundle_()[0]["text/html"]


def test_an_empty_token_list_is_no_error():
    empty = Trace((Token(2, "<bos>", b"", 0, 0, True),), {Site("res", 0): SparseActs((1, 4), [0, 0], [], [])})
    for kind in BOTH:
        assert "bos" in kind(empty).to_html()


# ---- what all widgets share


def test_a_widget_leaves_messages_on_the_shell_the_browser_chose():
    from gemloupe.widgets.live import keep_subshell

    class Comm:
        _reply_subshell_for = None

    comm = Comm()
    keep_subshell(comm)
    assert comm._reply_subshell_for({}, "subshell-1") == "subshell-1"
    keep_subshell(None)
    keep_subshell(object())  # other ipykernels have no such hook


def test_many_widgets_keep_nothing_of_the_model(tiny3, trace):
    model = tiny3.engine.loaded.model
    for _ in range(50):
        tiny3.heatmap(trace).to_html(page=False)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_live_widgets_answer_pings_only():
    assert LiveWidget.methods(LiveWidget.__new__(LiveWidget)) == {}
