"""Cards without a browser: what they show of a feature, where they lead, what they measure, and their static twins."""

import html.parser
import json
import math
import threading

import gemloupe as gl
import numpy as np
import pytest
import torch
from conftest import NEVER_FIRES, SCOPE_WIDTH
from gemloupe.edits import ablate
from gemloupe.engine.protocol import CompareRequest, PromoteRequest
from gemloupe.errors import refuse
from gemloupe.feature import FeatureId
from gemloupe.run.promote import promoted_tokens
from gemloupe.site import Site
from gemloupe.study.ablation import AFTER, EXAMPLES, ablation
from gemloupe.study.index.build import build
from gemloupe.widgets.card_wire import wire_example
from gemloupe.widgets.feature_card import FeatureCard
from gemloupe.widgets.feature_cards import FeatureCards
from gemloupe.widgets.search_results import SearchResults
from gemloupe.widgets.token_heatmap import TokenHeatmap
from refusal import refused
from tiny import TEXT

LENGTH = 60
WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[i : i + 3 + i % 50]) for i in range(0, len(WORDS), 2)]
OWN = "The City of Light is Paris"
SOON = 60


def opened(tiny_folders, kind="gemma3"):
    model, scope = tiny_folders[kind]
    return gl.open(model, scope=scope, device="cpu")


@pytest.fixture(scope="module")
def loupe(tiny_folders, tmp_path_factory):
    """A loupe of this file's own, with an index of TEXTS in use."""
    with opened(tiny_folders) as one:
        folder = tmp_path_factory.mktemp("card") / "index"
        one.use(build(one.engine, TEXTS, folder, name="mine", length=LENGTH))
        yield one


@pytest.fixture(scope="module")
def firing(loupe):
    """A feature of res.2 that fires often, but not everywhere."""
    density = loupe.index_in_use.density("res.2")
    return FeatureId(Site("res", 2), int(np.flatnonzero((density > 0.05) & (density < 0.5))[0]))


@pytest.fixture
def card(loupe, firing):
    one = loupe.card(firing)
    yield one
    one.close()


class Ends:
    """The browser's end of a widget: what it would have been sent."""

    def __init__(self, widget, monkeypatch):
        self.widget, self.replies = widget, []
        self.arrived = threading.Condition()
        monkeypatch.setattr(widget._calls, "_send", self._reply)

    def _reply(self, message):
        with self.arrived:
            self.replies.append(message)
            self.arrived.notify_all()

    def ask(self, method, **params):
        ident = len(self.replies) + 1
        self.widget._handle_custom_msg({"kind": "call", "id": ident, "method": method, "params": params}, [])
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.replies) == ident, SOON), "no reply"
        assert self.replies[-1]["id"] == ident
        return self.replies[-1]


@pytest.fixture
def browser(card, monkeypatch):
    return Ends(card, monkeypatch)


# ---- what is shown


def test_a_card_shows_what_the_index_knows(loupe, card, firing):
    evidence, shown = loupe.evidence(firing), card.shown
    assert isinstance(card, FeatureCard) and card.feature == firing
    assert shown["feature"] == str(firing) and shown["width"] == SCOPE_WIDTH and shown["why"] == ""
    found = shown["evidence"]
    assert (found["index"], found["tokens"], found["fired"]) == ("mine", evidence.tokens, evidence.fired)
    assert found["maximum"] == pytest.approx(evidence.maximum, rel=1e-5)
    assert sum(found["counts"]) == evidence.fired and len(found["edges"]) == len(found["counts"]) + 1
    assert shown["density"] == pytest.approx(evidence.density, rel=1e-4)
    assert shown["maximum"] == pytest.approx(loupe.feature(firing).maximum, rel=1e-5)
    assert found["on"] == [[one.text, one.count] for one in evidence.on]
    assert [row[0] for row in found["together"]] == [str(one.feature) for one in evidence.together]
    assert shown["promotes"][0][0] == loupe.feature(firing).promotes[0][0]
    assert [one["value"] for one in card.examples["top"]] == pytest.approx(
        [one.value for one in evidence.top], rel=1e-3
    )
    assert [len(one["examples"]) for one in card.examples["intervals"]] == [
        len(one.examples) for one in evidence.intervals
    ]
    assert card.evidence.fired == evidence.fired
    assert card.facts is None and card.protocol == 1 and card.about["model"] == "gemma3"


def test_everything_that_is_sent_is_json(card):
    card.text = OWN
    card.wait(SOON)
    json.dumps(card.static_state(), allow_nan=False)


def test_feature_zero_and_one_without_statistics(loupe):
    card = loupe.card("mlp.1/0")
    assert card.feature == FeatureId.of("mlp.1/0") and card.shown["promotes"] == []
    fired = card.shown["evidence"]["fired"]
    assert fired > 0 and card.shown["maximum"] == pytest.approx(card.evidence.maximum, rel=1e-5)
    card._complete()
    assert len(card.more["promotes"]) == len(card.more["suppresses"]) == 10
    assert card.more["threshold"] == pytest.approx(float(loupe.engine.sae(Site("mlp", 1)).threshold[0]))


def test_a_dead_feature_says_so(loupe):
    card = loupe.card(f"res.2/{NEVER_FIRES}")
    assert card.shown["evidence"]["fired"] == 0 and card.examples == {"context": 10, "top": [], "intervals": []}
    assert "never fires on the" in repr(card) and "never fires on the" in card.static_picture()
    card.ablate()
    card.wait(SOON)
    assert card.ablated["state"] == "failed" and "never fired in the index" in card.ablated["error"]
    assert card.ablation is None


def test_without_an_index_it_says_how_to_make_one(tiny_folders):
    with opened(tiny_folders) as loupe:
        card = loupe.card("res.2/0", text=OWN)
        assert card.evidence is None and "loupe.index(texts, name=...)" in card.shown["why"]
        assert card.shown["density"] == pytest.approx(loupe.feature("res.2/0").density, rel=1e-4)
        assert card.examples["top"] == [] and "loupe.index(" in card.to_html()
        refused("index-none", card.ablate)
        card.wait(SOON)
        assert len(card.reading["acts"]) == len(loupe.read(OWN))


def test_an_index_without_the_site_says_so(tiny_folders, tmp_path):
    model, scope = tiny_folders["gemma3"]
    with gl.open(model, scope=scope, sites=["res.0"], device="cpu") as narrow:
        build(narrow.engine, TEXTS, tmp_path / "index", name="narrow", length=LENGTH)
    with opened(tiny_folders) as loupe:
        loupe.use(tmp_path / "index")
        assert loupe.card("res.0/0").evidence is not None
        assert "has nothing of res.2" in loupe.card("res.2/0").shown["why"]


WRONG = [
    ("res.2/-1", "feature-unreadable"),
    ("res.2", "feature-unreadable"),
    (None, "feature-unreadable"),
    (3, "feature-unreadable"),
    ("res.1/0", "site-not-open"),
    (f"res.2/{SCOPE_WIDTH}", "feature-out-of-range"),
]


@pytest.mark.parametrize(("given", "code"), WRONG)
def test_features_that_cannot_be_are_refused(loupe, card, browser, firing, given, code):
    refused(code, lambda: loupe.card(given))
    refused(code, lambda: card.go(given))
    refused(code, lambda: setattr(card, "feature", given))
    reply = browser.ask("go", feature=given)
    assert (reply["kind"], reply["code"]) == ("error", code) and reply["message"]
    assert card.feature == firing and card.trail == []


def test_unknown_options_are_named(loupe):
    with pytest.raises(TypeError, match=r"FeatureCard has no trait pallette"):
        loupe.card("res.2/0", pallette="blue")


# ---- walking


def test_walking_and_coming_back(loupe, card, browser, firing):
    assert browser.ask("go", feature="res.0/7")["kind"] == "value"
    assert str(card.feature) == "res.0/7" and card.trail == [str(firing)]
    assert card.shown["feature"] == "res.0/7"
    browser.ask("next")
    assert str(card.feature) == "res.0/8" and card.trail == [str(firing)]  # a step is no jump
    card.go("res.0/8")
    assert card.trail == [str(firing)]
    card.go("res.2/0")
    assert card.trail == [str(firing), "res.0/8"]
    browser.ask("previous")
    assert str(card.feature) == f"res.2/{SCOPE_WIDTH - 1}"
    card.next()
    assert str(card.feature) == "res.2/0"
    browser.ask("back")
    assert str(card.feature) == "res.0/8" and card.trail == [str(firing)]
    card.back().back()
    assert card.feature == firing and card.trail == []


def test_random_is_of_those_that_fire(loupe, card, browser):
    density = loupe.index_in_use.density("res.2")
    seen = set()
    for seed in range(20):
        before = card.feature
        card.random(seed)
        assert card.feature.site == Site("res", 2) and card.feature != before and density[card.feature.index] > 0
        seen.add(card.feature)
    assert len(seen) > 5
    assert browser.ask("random")["kind"] == "value"


# ---- labels, notes, stars


def test_what_the_user_says_is_kept(loupe, card, browser, firing):
    assert card.label.source == "automatic" and card.said["labels"][0]["by"].endswith("mine")
    assert browser.ask("label", value="idioms of tea")["kind"] == "value"
    assert loupe.labels.of(firing)[0].text == "idioms of tea" == card.said["labels"][0]["text"]
    assert [one["source"] for one in card.said["labels"]] == ["user", "automatic"]
    browser.ask("note", value="two\nlines")
    browser.ask("starred", value=True)
    assert (card.note, card.starred) == ("two\nlines", True) == (card.said["note"], card.said["starred"])
    assert loupe.labels.starred() == (firing,) and loupe.labels.note_of(firing) == "two\nlines"
    again = loupe.card(firing)
    assert again.said == card.said
    assert browser.ask("label", value="x" * 600)["code"] == "label-unusable"
    assert card.label.text == "idioms of tea"
    card.label, card.note, card.starred = None, "", False
    assert card.label.source == "automatic" and card.said["note"] == "" and loupe.labels.starred() == ()


# ---- examples


def test_the_context_is_from_nothing_to_the_whole_passage(loupe, card, browser):
    assert max(len(one["tokens"]) for one in card.examples["top"]) == 21
    browser.ask("context", value=5)
    assert card.context == card.examples["context"] == 5
    assert max(len(one["tokens"]) for one in card.examples["top"]) == 11
    browser.ask("context", value=None)
    for by in ("strongest", "interval"):
        assert browser.ask("fill", by=by)["kind"] == "value"
        card.wait(SOON)
    index = loupe.index_in_use
    every = [*card.examples["top"], *(one for part in card.examples["intervals"] for one in part["examples"])]
    assert any(len(one["tokens"]) > 21 for one in every)
    for one in every:
        ids = index.passage(one["document"])
        assert len(one["tokens"]) == len(ids) and one["peak"] == one["position"] and one["known"] is None
        np.testing.assert_allclose(one["acts"], loupe.read(ids.tolist())[card.feature], rtol=2e-3, atol=1e-3)
    for bad in (-1, 1.5, "ten", True):
        assert browser.ask("context", value=bad)["code"] in ("count-unreadable", "failed")
        assert card.context is None
    refused("count-unreadable", lambda: loupe.card("res.2/0", context=-1))
    assert loupe.card("res.2/0", context=3).examples["context"] == 3


def test_before_a_passage_is_read_it_says_what_is_known(loupe, card):
    card.context = None
    evidence = loupe.evidence(card.feature, None)
    partly = [(wire, one) for wire, one in zip(card.examples["top"], evidence.top, strict=True) if not one.complete]
    assert partly
    for wire, one in partly:
        start, end = wire["known"]
        assert (start, end) == (max(0, one.peak - 10), min(len(one.tokens), one.peak + 11))
        assert not any(wire["acts"][:start]) and not any(wire["acts"][end:])


def test_one_example_as_its_whole_passage(loupe, card, browser):
    one = card.examples["top"][1]
    wire = browser.ask("whole", document=one["document"], position=one["position"])["value"]
    ids = loupe.index_in_use.passage(one["document"])
    assert len(wire["tokens"]) == len(ids) and wire["known"] is None
    np.testing.assert_allclose(wire["acts"], loupe.read(ids.tolist())[card.feature], rtol=2e-3, atol=1e-3)
    json.dumps(wire, allow_nan=False)
    assert browser.ask("whole", document=10**6, position=0)["code"] == "example-gone"


# ---- one's own text


def test_a_text_is_read_as_it_is_typed(loupe, card):
    card.set_state({"text": OWN})  # as the browser does
    card.wait(SOON)
    trace = loupe.read(OWN)
    assert card.reading["text"] == OWN and card.reading["error"] is None
    assert [token["text"] for token in card.reading["tokens"]] == [token.text for token in trace.tokens]
    np.testing.assert_allclose(card.reading["acts"], trace[card.feature], rtol=1e-3, atol=1e-4)
    assert card.trace.text == OWN
    card.go("res.0/3")
    card.wait(SOON)
    assert card.reading["feature"] == "res.0/3"
    np.testing.assert_allclose(card.reading["acts"], trace["res.0/3"], rtol=1e-3, atol=1e-4)
    card.text = ""
    card.wait(SOON)
    assert card.reading is None


def test_of_several_texts_the_latest_wins(loupe, card):
    texts = [OWN[: 1 + i] for i in range(len(OWN))]
    for text in texts:
        card.text = text
    card.wait(SOON)
    assert card.reading["text"] == texts[-1] == card.text
    card.text = OWN + " again"
    card.text = ""
    card.wait(SOON)
    assert card.reading is None


def test_what_cannot_be_read_is_said(card):
    card.text = "word " * 400
    card.wait(SOON)
    assert "tokens" in card.reading["error"] and card.reading["acts"] == []
    card.text = "fine"
    card.wait(SOON)
    assert card.reading["error"] is None


def test_a_trace_is_not_read_again(loupe, firing, monkeypatch):
    trace = loupe.read(OWN)
    monkeypatch.setattr(loupe.engine, "read", lambda request: pytest.fail("it was read again"))
    card = loupe.card(firing, text=trace)
    card.wait(SOON)
    assert card.text == OWN and card.trace is trace
    np.testing.assert_allclose(card.reading["acts"], trace[firing], rtol=1e-3, atol=1e-4)


# ---- a moment later


def test_names_of_the_features_beside_it(loupe, card, browser, firing):
    other = FeatureId.of(card.shown["evidence"]["together"][0][0])
    loupe.labels.set(other, "the other one")
    assert browser.ask("more")["kind"] == "value"
    assert card.more["feature"] == str(firing)
    assert card.more["threshold"] == pytest.approx(float(loupe.engine.sae(firing.site).threshold[firing.index]))
    assert card.more["names"][str(other)]["label"] == "the other one"
    assert all(one["promotes"] for one in card.more["names"].values())
    loupe.labels.remove(other)


def test_neighbours_are_found_on_request(loupe, card, browser, firing):
    assert card.near is None  # no file holds them
    assert browser.ask("compare")["kind"] == "value"
    card.wait(SOON)
    own, others = loupe.neighbours(firing, 5, same_site=True), loupe.neighbours(firing, 10, same_site=False)
    assert card.near["state"] == "known"
    for found, wanted in ((card.near["own"], own), (card.near["others"], others)):
        assert [row[0] for row in found] == [str(one.feature) for one in wanted]
        assert [row[1] for row in found] == pytest.approx([one.cosine for one in wanted], abs=1e-3)
    assert {row[0] for row in card.near["own"]} <= card.more["names"].keys()
    card.go("res.0/0")
    assert card.near is None


@pytest.mark.parametrize("name", ["res.2/3", "mlp.1/0", "att.1/5", "transcoder.2/1"])
def test_promoted_tokens_are_computed_as_for_all(tiny_loupe, name):
    feature = FeatureId.of(name)
    engine = tiny_loupe.engine
    found = engine.promote(PromoteRequest(feature, 7)).result(SOON)
    listed = promoted_tokens(engine.loaded.model, engine.sae(feature.site), engine._listable)
    assert len(found.promotes) == len(found.suppresses) == 7 and found.maximum is None
    logits = [logit for _, logit in found.promotes]
    assert logits == pytest.approx(listed["promotes_logit"][feature.index][:7].astype(float), rel=2e-3)
    assert logits == sorted(logits, reverse=True) and found.suppresses[0][1] < 0 < logits[0]
    cap = getattr(engine.loaded.model.config, "final_logit_softcapping", None)
    assert cap is None or abs(found.suppresses[0][1]) < cap
    refused("count-unreadable", lambda: engine.promote(PromoteRequest(feature, 0)))
    refused("feature-out-of-range", lambda: engine.promote(PromoteRequest(FeatureId(feature.site, 96))))
    refused("site-not-open", lambda: engine.promote(PromoteRequest(FeatureId.of("res.1/0"))))
    refused("feature-out-of-range", lambda: engine.threshold(FeatureId(feature.site, 96)))


# ---- an ablation


def test_an_ablation_is_the_loss_with_and_without(loupe, card, browser, firing):
    assert browser.ask("ablate")["kind"] == "value"
    card.wait(SOON)
    found, index = card.ablation, loupe.index_in_use
    assert card.ablated["state"] == "finished" and len(found.followed) == len(card.ablated["rows"])
    assert 0 < len(found.followed) <= EXAMPLES
    loaded = loupe.engine.loaded
    for one in found.followed[:3]:
        ids = index.passage(one.example.document).tolist()
        first = one.example.position + 1
        assert one.ids == tuple(ids[first : first + AFTER]) and len(one.tokens) == len(one.ids)
        with torch.inference_mode():
            plain = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        with_it = [float(plain[first - 1 + i, ident]) for i, ident in enumerate(one.ids)]
        request = CompareRequest(tuple(ids[:first]), one.ids, ((ablate(firing),),))
        (without,) = loupe.engine.compare(request).result(SOON)
        np.testing.assert_allclose(one.change, with_it - without.logprobs, atol=2e-4)
        assert np.abs(one.change).max() > 0 and (one.kl >= 0).all()
    assert found.next == pytest.approx(np.mean([one.change[0] for one in found.followed]))
    assert found.after == pytest.approx(np.concatenate([one.change for one in found.followed]).mean(), rel=1e-4)
    assert found.helped == sum(one.change[0] > 0 for one in found.followed) == card.ablated["helped"]
    assert found.tokens == sum(len(one.ids) for one in found.followed)
    assert str(firing) in repr(found) and "nats" in repr(found)
    card.go("res.0/5")
    assert card.ablated is None and card.ablation is None
    card.back()
    assert card.ablated["state"] == "finished" and card.ablation is found


def test_an_ablation_can_be_stopped(card, monkeypatch):
    begun, on = threading.Event(), threading.Event()
    real = card._engine.compare

    class Slow:
        def __init__(self, request):
            self._job = real(request)
            self._stop = False

        def cancel(self):
            self._stop = True
            on.set()

        def result(self, timeout=None):
            begun.set()
            assert on.wait(SOON)
            if self._stop:
                raise refuse("cancelled")
            return self._job.result(timeout)

    monkeypatch.setattr(card._engine, "compare", Slow)
    card.ablate()
    assert begun.wait(SOON)
    card.ablate()  # runs already
    assert card.ablated["state"] == "running"
    card.stop()
    card.wait(SOON)
    assert card.ablated["state"] == "stopped" and card.ablated["rows"] == [] and card.ablation is None


def test_a_failing_ablation_says_why(loupe):
    index = loupe.index_in_use
    reading = FeatureId(Site("transcoder", 2), int(np.flatnonzero(index.density("transcoder.2") > 0)[0]))
    card = loupe.card(reading)
    card.ablate()
    card.wait(SOON)
    assert card.ablated["state"] == "failed" and "transcoder.2" in card.ablated["error"]


def test_an_ablation_needs_something_to_follow(loupe, firing):
    nothing = loupe.evidence(f"res.2/{NEVER_FIRES}")
    refused("ablation-nothing", lambda: ablation(loupe.engine, loupe.index_in_use, nothing))
    evidence = loupe.evidence(firing)
    refused("ablation-nothing", lambda: ablation(loupe.engine, loupe.index_in_use, evidence, after=0))
    seen = []
    found = ablation(loupe.engine, loupe.index_in_use, evidence, examples=2, after=3, progress=seen.append)
    assert len(found.followed) == len(seen) == 2 and max(len(one.ids) for one in found.followed) <= 3


# ---- steering


def test_a_desk_opens_under_the_card(card, browser, firing):
    card.text = OWN
    assert browser.ask("steer")["kind"] == "value"
    desk = card.desk
    assert desk.prompt == OWN and [str(edit.feature) for edit in desk.edits] == [str(firing)]
    assert desk.edits[0].kind == "clamp" and desk.edits[0].strength == 1.0
    other = card.steer(ablate(firing))
    assert card.desk is other and other.edits[0].kind == "ablate" and desk.comm is None
    assert card.static_state()["desk"] is None
    browser.ask("unsteer")
    assert card.desk is None


# ---- two cards


def test_two_cards_share_a_text_and_a_palette(loupe, firing):
    both = loupe.card(firing, "res.0/0", text=OWN)
    assert isinstance(both, FeatureCards) and [card.feature for card in both] == [firing, FeatureId.of("res.0/0")]
    both.wait(SOON)
    assert both.left.reading["text"] == both.right.reading["text"] == OWN
    both.right.text = "And then"
    both.left.palette = "orange"
    both.wait(SOON)
    assert both.left.reading["text"] == both.right.reading["text"] == "And then"
    assert both.right.palette == "orange"
    both.left.next()
    assert both.right.feature == FeatureId.of("res.0/0")
    state = both.static_state()
    json.dumps(state, allow_nan=False)
    assert state["right"]["shown"]["feature"] == "res.0/0" and state["facts"] == {}
    assert repr(both).count("FeatureCard of") == 2
    both.close()


def test_a_card_opens_under_a_text_and_under_results(loupe, firing, monkeypatch):
    heatmap, found = loupe.heatmap(OWN), loupe.search(text=OWN, dense=True)
    for view, name, close in ((heatmap, "below", "uncard"), (found, "desk", "unsteer")):
        browser = Ends(view, monkeypatch)
        assert browser.ask("card", feature=str(firing))["kind"] == "value"
        first = getattr(view, name)
        assert first.feature == firing and first.text == OWN
        browser.ask("card", feature="res.0/0")
        assert str(getattr(view, name).feature) == "res.0/0" and first.comm is None
        assert browser.ask("card", feature="res.1/0")["code"] == "site-not-open"
        assert str(getattr(view, name).feature) == "res.0/0"
        assert view.static_state()[name] is None
        browser.ask(close)
        assert getattr(view, name) is None


def test_a_card_opens_from_a_selection(loupe, firing):
    heatmap = loupe.heatmap(OWN)
    refused("card-of-nothing", heatmap.card)
    heatmap.selected = firing
    for view in (heatmap, loupe.table(heatmap), loupe.table(OWN, selected=str(firing))):
        card = view.card()
        assert card.feature == firing and card.trace is view.trace
    assert str(heatmap.card("res.0/0").feature) == "res.0/0"
    assert "loupe.card('res.0/0')" in refused("card-needs-loupe", lambda: TokenHeatmap(heatmap.trace).card("res.0/0"))
    found = loupe.search(text=OWN, dense=True)
    refused("card-of-nothing", found.card)
    found.selected = found[0].feature
    card = found.card()
    card.wait(SOON)
    assert card.feature == found[0].feature and max(card.reading["acts"]) == pytest.approx(found[0].raw, rel=1e-3)
    refused("card-needs-loupe", lambda: SearchResults(found.hits).card(firing))


# ---- static twins


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.inside, self.stack = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag in self.stack:
            while self.stack.pop() != tag:
                pass

    def handle_data(self, data):
        if self.stack:
            self.inside[self.stack[-1]] = self.inside.get(self.stack[-1], "") + data


def test_a_card_is_also_a_page(card, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)><!--"
    card.label = hostile
    card.text = "a <b> tag"
    card.wait(SOON)
    text = card.save_html(tmp_path / "card.html").read_text(encoding="utf-8")
    page = Elements(text)
    assert "img" not in page.found and page.found.count("script") == 2
    state = json.loads(text.split('<script type="application/json">')[1].split("</script>")[0])
    assert state["said"]["labels"][0]["text"] == hostile and state["facts"] == {} and state["desk"] is None
    assert state["more"]["threshold"] > 0 and state["reading"]["text"] == "a <b> tag"
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    bundle, _ = card._repr_mimebundle_()
    assert 'data-gemloupe-static="feature-card"' in bundle["text/html"]
    both = FeatureCards(card, card).to_html()
    assert both.count('class="gl-') == 0 and ".gl-feature-card" in both and ".gl-halves" in both
    card.label = None


def test_a_closed_loupe_leaves_the_picture(tiny_folders, tmp_path):
    with opened(tiny_folders) as loupe:
        loupe.use(build(loupe.engine, TEXTS[:20], tmp_path / "index", name="short", length=LENGTH))
        card = loupe.card("res.2/0")
    assert "res.2/0" in card.to_html()
    refused("engine-closed", lambda: card.go("res.2/1"))
    assert str(card.feature) == "res.2/0"
    card.text = "x"
    card.wait(SOON)
    assert "closed" in card.reading["error"]


def test_numbers_on_the_wire_are_finite():
    example = gl.evidence.Example(
        ("a", "b"), (1, 2), np.array([np.nan, 3.14159265], np.float32), 1, 3.14159265, 0, 5, True
    )
    wire = wire_example(example)
    assert wire["acts"] == [None, 3.142] and wire["value"] == 3.142 and not math.isnan(wire["value"])
