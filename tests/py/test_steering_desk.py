"""The SteeringDesk without a browser and without a model: what it asks of the engine, shows, and refuses."""

import json
import threading
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gemloupe as gl
import numpy as np
import pytest
import traitlets
from gemloupe.engine.protocol import (
    Cancelled,
    Comparison,
    Description,
    Effect,
    Failed,
    FeatureFacts,
    GenerateRequest,
    Generation,
    NewToken,
    Value,
)
from gemloupe.errors import Refusal, refuse
from gemloupe.feature import FeatureId
from gemloupe.site import Site
from gemloupe.sparse import SparseActs
from gemloupe.study.preset import SAMPLING, Preset
from gemloupe.trace import Trace, join_bytes
from gemloupe.widgets.latest import Latest, Pace, Task
from gemloupe.widgets.steering_desk import SteeringDesk
from gemloupe.wire import arrays

WIDTH, D = 50, 8
OPEN = (Site("res", 5), Site("res", 12))
ABOUT = {
    "model": "fake",
    "model_digest": "a" * 64,
    "scope": "fakes",
    "sae_digests": {"res.5": "b" * 64, "res.12": "c" * 64},
}
WORDS = ["sea", "sky", "sun", "sand", "salt", "wind", "wave"]
EDIT = gl.clamp("res.12/3", 1.0)


class FakeJob:
    """Emits a token per row whenever `gate` lets it, on the thread that iterates."""

    def __init__(self, engine, request):
        self.engine, self.request, self.rows = engine, request, request.rows
        self.look = isinstance(request.given, tuple) and isinstance(request.given[0], int)
        self.cancelled = threading.Event()
        self.done = False
        self.changes = []

    def cancel(self):
        self.cancelled.set()
        self.engine.step.set()

    def change(self, rows):
        for row in rows:
            self.engine.check(row)
        self.rows = rows
        self.changes.append(rows)

    def _word(self, index, row):
        pushed = sum(edit.strength for edit in row)
        return 3 + (index + 3 * round(abs(pushed) * 10)) % len(WORDS)

    def events(self):
        made = [[] for _ in self.request.rows]
        try:
            for index in range(self.request.max_new_tokens):
                if not self.look:
                    self.engine.pace(index)
                if self.cancelled.is_set():
                    yield Cancelled(self._value(made, "cancelled"))
                    return
                if self.engine.fault is not None and not self.look and index == self.engine.fault_at:
                    yield Failed(self.engine.fault)
                    return
                for place, row in enumerate(self.rows):
                    ident = self._word(index, row)
                    made[place].append(ident)
                    yield NewToken(index, ident, -0.5, place, f" {WORDS[ident - 3]}")
            yield Value(self._value(made, "length"))
        finally:
            self.done = True

    def result(self, timeout=None):
        for event in self.events():
            if isinstance(event, Value):
                return event.value
            if isinstance(event, Failed):
                raise event.error
        raise refuse("cancelled")

    def _value(self, made, stopped):
        given = self.request.given if self.look else (2, 99)
        prompt = join_bytes([(2, b"", True, "<bos>"), *((i, b"Hello", False, "Hello") for i in given[1:])])
        found = []
        for row, ids in zip(self.rows, made, strict=True):
            tokens = join_bytes([(i, f" {WORDS[i - 3]}".encode(), False, "") for i in ids])
            count = len(prompt) + len(tokens)
            dense = np.zeros((count, WIDTH), np.float32)
            dense[1:, 3] = 2.0 + sum(edit.strength for edit in row)
            after = dense.copy()
            after[1:, 4] = len(row)
            acts = {site: SparseActs.from_dense(one) for site, one in zip(OPEN, (dense, after), strict=True)}
            maxima = {site: np.full(WIDTH, 4.0, np.float32) for site in OPEN}
            trace = Trace(prompt + tokens, acts, maxima) if self.request.sites is None else None
            effects = tuple(self._effect(edit, count) for edit in row)
            found.append(Generation(prompt, tokens, (-0.5,) * len(ids), trace, effects, row, 0, stopped))
        return tuple(found)

    def _effect(self, edit, count):
        silent = edit.feature is not None and edit.feature.index == 7
        norm = np.zeros(count) if silent else np.full(count, 2.0)
        return Effect(edit, norm > 0, norm / 4, norm, norm / 10, "its feature is never active here" if silent else "")


class FakeEngine:
    def __init__(self):
        self.requests, self.jobs, self.looks = [], [], []
        self.fault, self.fault_at = None, 0
        self.step = threading.Event()
        self.hold = False
        self.delay = 0.0

    def pace(self, index):
        """Waits for `go()` before every token while `hold` is set."""
        if self.hold:
            assert self.step.wait(10), "nobody let the fake engine go on"
            self.step.clear()
        elif self.delay:
            time.sleep(self.delay)

    def go(self):
        self.step.set()

    def check(self, row):
        for edit in row:
            if edit.site not in OPEN:
                raise refuse("site-not-open", site=edit.site, open="res.5, res.12")
        features = [edit.feature for edit in row if edit.kind == "clamp"]
        for feature in features:
            if features.count(feature) > 1:
                one, two = [edit for edit in row if edit.feature == feature][:2]
                raise refuse("edits-conflict", one=one, two=two, feature=feature)

    def describe(self):
        return Description("fake", "fakes", "cpu", "float32", 512, dict.fromkeys(OPEN, WIDTH), (), ABOUT)

    def facts(self, features):
        for feature in features:
            if feature.site not in OPEN:
                raise refuse("site-not-open", site=feature.site, open="res.5, res.12")
            feature.within(WIDTH)
        return tuple(
            FeatureFacts(f, maximum=None if f.index == 9 else 4.0, promotes=((" salt", 2.0), ("<b>", float("nan"))))
            for f in features
        )

    def maxima(self, site):
        return np.full(WIDTH, 4.0, np.float32)

    def direction(self, feature):
        return np.full(D, 1 / np.sqrt(D), np.float32)

    def generate(self, request):
        if request.given == "":
            raise refuse("text-empty")
        for row in request.rows:
            self.check(row)
        job = FakeJob(self, request)
        (self.looks if job.look else self.requests).append(request)
        if not job.look:
            self.jobs.append(job)
        return job

    def read(self, request):
        self.looks.append(request)
        job = FakeJob(self, GenerateRequest(request.given, 1, sites=None))
        whole = job.result
        job.result = lambda timeout=None: whole(timeout)[0].trace
        return job

    def compare(self, request):
        kl = [sum(abs(edit.strength) for edit in row) for row in request.rows]
        found = tuple(Comparison(np.full(len(request.tokens), x), np.zeros(len(request.tokens))) for x in kl)
        return SimpleNamespace(result=lambda timeout=None: found, cancel=lambda: None, done=True)


@pytest.fixture
def engine():
    return FakeEngine()


class Ends:
    """The browser's end: every state of `current` that it was sent, and the answers to its calls."""

    def __init__(self, desk):
        self.desk, self.states, self.replies = desk, [], {}
        self.arrived = threading.Condition()
        desk.observe(lambda change: self.states.append(change["new"]), "current")
        desk._calls._send = self._reply
        self.ident = 0

    def _reply(self, message):
        with self.arrived:
            self.replies[message["id"]] = message
            self.arrived.notify_all()

    def ask(self, method, **params):
        self.ident += 1
        self.desk._handle_custom_msg({"kind": "call", "id": self.ident, "method": method, "params": params}, [])
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.ident in self.replies, 10), "no answer"
        return self.replies[self.ident]


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def arms(desk):
    return {arm["name"]: "".join(token["text"] for token in arm["tokens"]) for arm in desk.current["arms"]}


def desk_of(engine, prompt="Hello", edits=EDIT, **options):
    return SteeringDesk(engine, prompt, edits, **options)


# ---- runs


def test_default_and_steered_run_as_one_batch(engine):
    desk = desk_of(engine, max_new_tokens=4)
    desk.wait(10)
    (request,) = engine.requests
    assert request.rows == ((), (EDIT,)) and request.sites == ()
    assert desk.current["state"] == "finished"
    assert arms(desk) == {"default": desk.default.text, "steered": desk.steered.text}
    assert desk.default.text == " sea sky sun sand" != desk.steered.text
    assert desk.wait() is desk.steered


def test_without_edits_only_the_default_runs(engine):
    desk = desk_of(engine, edits=(), max_new_tokens=2)
    assert desk.wait(10) is desk.default
    assert list(arms(desk)) == ["default"] and desk.rows == []


def test_nothing_runs_before_it_is_asked(engine):
    for options in ({"prompt": ""}, {"run": False}):
        desk = desk_of(engine, **options)
        assert desk.current["state"] == "idle" and engine.requests == []
        desk.close()


def test_tokens_stream_at_most_thirty_times_a_second(engine):
    engine.delay = 0.004
    began = time.monotonic()
    desk = desk_of(engine, max_new_tokens=60, run=False)
    browser = Ends(desk)
    desk.run()
    desk.wait(20)
    took = time.monotonic() - began
    running = [state for state in browser.states if state["state"] == "running"]
    assert 2 <= len(running) <= 30 * took + 2
    counts = [len(state["arms"][1]["tokens"]) for state in browser.states]
    assert counts == sorted(counts) and counts[-1] == 60
    assert all(state["id"] == 1 for state in browser.states)
    json.dumps(browser.states, allow_nan=False)


def test_the_first_tokens_of_all_arms_are_shown_together(engine):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=3, run=False)
    ends = Ends(desk)
    desk.run()
    engine.go()
    until(lambda: any(state["state"] == "running" for state in ends.states))
    shown = next(state for state in ends.states if state["state"] == "running")
    assert [len(arm["tokens"]) for arm in shown["arms"]] == [1, 1]
    engine.hold = False
    engine.go()
    desk.wait(10)


def test_effects_stand_at_their_rows(engine):
    desk = desk_of(engine, edits=[gl.clamp("res.12/3", 1), gl.scale("res.5/7", 2)], max_new_tokens=3)
    desk.wait(10)
    first, second = (desk.current["effects"][str(row["key"])] for row in desk.rows)
    assert first == {
        "silent": False,
        "why": None,
        "fired": 5,
        "of": 5,
        "share": 0.2,
        "norm": 2.0,
        "peak": 0.5,
        "timeline": None,
    }
    assert second["silent"] and second["why"] == "its feature is never active here"


def test_a_condition_has_a_timeline(engine):
    desk = desk_of(engine, edits=gl.clamp("res.12/3", 1, when=gl.when("res.5/1", above=0.2)), max_new_tokens=2)
    desk.wait(10)
    (effect,) = desk.current["effects"].values()
    assert effect["timeline"] == "1111"
    assert desk.rows[0]["when"] == "while res.5/1 > 0.2"


def test_movers_come_with_a_run(engine):
    desk = desk_of(engine, max_new_tokens=3)
    desk.wait(10)
    assert [one["layer"] for one in desk.current["movers"]] == [5, 12]
    first, second = (one["features"] for one in desk.current["movers"])
    assert [one["feature"] for one in first] == ["res.5/3"] and first[0]["to"] > first[0]["from"]
    assert [one["feature"] for one in second] == ["res.12/4"], "the edited feature itself is no news"


def test_a_known_default_is_not_run_again(engine):
    desk = desk_of(engine, max_new_tokens=3)
    desk.wait(10)
    desk.edits = [gl.clamp("res.12/3", 2.0)]
    desk.wait(10)
    assert [len(request.rows) for request in engine.requests] == [2, 1]
    assert arms(desk)["default"] == " sea sky sun"
    desk.sampling = {**desk.sampling, "seed": 5}
    desk.run()
    desk.wait(10)
    assert len(engine.requests[-1].rows) == 2


def test_tokens_of_an_old_run_never_mix(engine):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=40)
    browser = Ends(desk)
    engine.go()
    until(lambda: desk.current["state"] == "running")
    for strength in (1.5, 2.0, 2.5):
        assert browser.ask("edit", key=1, strength=strength)["kind"] == "value"
    engine.hold = False
    engine.go()
    desk.wait(10)
    assert desk.current["state"] == "finished" and desk.current["id"] == 4
    last = [state for state in browser.states if state["id"] == 4]
    fourth = engine.jobs[-1]
    expected = "".join(f" {WORDS[fourth._word(i, fourth.rows[-1]) - 3]}" for i in range(40))
    for state in last:
        text = "".join(token["text"] for token in state["arms"][1]["tokens"])
        assert expected.startswith(text)
    ids = [state["id"] for state in browser.states]
    assert ids == sorted(ids), "an old run was shown after a new one"


def test_stop_keeps_the_text(engine):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=30)
    browser = Ends(desk)
    for _ in range(3):
        engine.go()
        time.sleep(0.03)
    assert browser.ask("stop")["kind"] == "value"
    desk.wait(10)
    assert desk.current["state"] == "stopped" and arms(desk)["steered"]
    assert desk.current["arms"][1]["stopped"] == "cancelled"
    engine.hold = False
    desk.run()
    desk.wait(10)
    assert desk.current["state"] == "finished"


def test_a_run_stopped_while_it_waits_is_stopped(engine):
    engine.hold = True
    desk = desk_of(engine)
    until(lambda: engine.jobs)
    desk.run()
    desk.run()
    desk.stop()
    desk.wait(10)
    assert desk.current["state"] == "stopped"


def test_from_the_next_token_on(engine):
    engine.hold = True
    desk = desk_of(engine, follow="next", max_new_tokens=6)
    browser = Ends(desk)
    engine.go()
    until(lambda: desk.current["state"] == "running")
    browser.ask("edit", key=1, strength=3.0)
    assert len(engine.requests) == 1
    assert engine.jobs[0].changes == [((), (gl.clamp("res.12/3", 3.0),))]
    engine.hold = False
    engine.go()
    desk.wait(10)
    assert desk.current["id"] == 1
    browser.ask("edit", key=1, strength=1.0)  # nothing streams: it starts over
    desk.wait(10)
    assert len(engine.requests) == 2


def test_waiting_for_run(engine):
    desk = desk_of(engine, follow="wait", run=False)
    Ends(desk).ask("edit", key=1, strength=3.0)
    assert engine.requests == [] and desk.rows[0]["strength"] == 3.0
    assert desk.edits == (gl.clamp("res.12/3", 3.0),)


def test_controls_run_beside_the_steered_text(engine):
    desk = desk_of(engine, edits=[gl.clamp("res.12/3", 1.5), gl.add("res.5/9", 1)], controls=True, max_new_tokens=3)
    desk.wait(10)
    assert list(arms(desk)) == ["default", "steered", "random", "flipped"]
    assert desk.current["state"] == "finished" and len(engine.requests) == 1
    _, _, (random,), (flipped,) = engine.requests[0].rows
    assert random.kind == "add_vector" and flipped == gl.clamp("res.12/3", -1.5)
    assert abs(random.strength) * np.linalg.norm(random.vector) == pytest.approx(1.5 * 4)
    # the maximum of res.5/9 is not known, so how long its control should be is not known either
    assert desk.rows[0]["error"] is None and "res.5/9" in desk.rows[1]["error"]
    desk.edits = gl.add("res.5/9", 1)
    desk.wait(10)
    assert list(arms(desk)) == ["default", "steered"] and desk.current["state"] == "finished"


def test_texts_are_read_again_with_the_edits_where_they_were(engine):
    edits = [gl.clamp("res.12/3", 1, where="generated"), gl.add("res.5/1", 1, where="prompt"), gl.ablate("res.5/2")]
    desk = desk_of(engine, edits=edits, max_new_tokens=3)
    desk.wait(10)
    steered, default = engine.looks
    assert default.given == (2, 99, *(token.id for token in desk.default.tokens))
    assert steered.given == (2, 99, *(token.id for token in desk.steered.tokens)) and steered.sites is None
    assert [edit.where for edit in steered.rows[0]] == [(2, 3, 4), (0, 1), "all"]
    for generation in (desk.default, desk.steered):
        assert len(generation.trace) == 5 == generation.trace["res.5"].shape[0]
    assert desk.steered.edits == tuple(edits)  # it is still the generation that was made
    desk.edits = gl.ablate("res.5/2")
    desk.wait(10)
    assert len(engine.looks) == 3, "the default text was read before"


def test_a_moved_slider_ends_the_second_reading(engine, monkeypatch):
    began, gate = threading.Event(), threading.Event()
    whole = FakeEngine.read

    def slow(self, request):
        began.set()
        gate.wait(10)
        return whole(self, request)

    monkeypatch.setattr(FakeEngine, "read", slow)
    desk = desk_of(engine, max_new_tokens=2)
    assert began.wait(10)
    assert desk.current["state"] == "finished" and desk.current["movers"] == []
    desk.edits = gl.clamp("res.12/3", 2)
    assert desk.current["id"] == 2
    gate.set()
    desk.wait(10)
    assert desk.current["id"] == 2 and desk.current["movers"]


def test_a_fault_in_measuring_does_not_lose_the_run(engine, monkeypatch, caplog):
    monkeypatch.setattr("gemloupe.widgets.steering_desk.movers", lambda *given: 1 / 0)
    desk = desk_of(engine, max_new_tokens=2)
    desk.wait(10)
    assert desk.current["state"] == "finished" and arms(desk)["steered"]
    assert "a task failed" in caplog.text


# ---- colour


def test_texts_are_coloured_by_any_feature(engine):
    desk = desk_of(engine, max_new_tokens=3)
    browser = Ends(desk)
    desk.wait(10)
    assert desk.colour["feature"] == "res.12/3"
    assert desk.colour["arms"] == {"default": [0.5] * 3, "steered": [0.75] * 3}, desk.colour
    assert desk.colour["options"][0] == {"feature": "res.12/3", "label": "", "promotes": [" salt", "<b>"]}
    browser.ask("colour", feature="res.5/4")
    assert desk.colour["arms"]["steered"] == [0.0] * 3
    assert browser.ask("colour", feature="res.5/99")["code"] == "feature-out-of-range"
    assert browser.ask("colour", feature=None)["kind"] == "value"
    assert desk.colour["feature"] is None and desk.colour["arms"] == {}


# ---- rows


def test_features_carry_their_labels(engine):
    """Rows, movers and what colours may be chosen from know what a loupe calls a feature."""

    def named(features):
        return tuple(replace(one, label=f"about {one.feature.index}") for one in engine.facts(features))

    desk = desk_of(engine, facts_of=named)
    desk.wait(10)
    assert desk.rows[0]["label"] == "about 3"
    until(lambda: desk.current["movers"])
    assert {one["label"] for layer in desk.current["movers"] for one in layer["features"]} <= {"about 3", "about 4"}
    assert "about 3" in [one["label"] for one in desk.colour["options"]]
    assert desk_of(engine, run=False).rows[0]["label"] == ""


def test_rows_show_units_and_formulas(engine):
    v = np.ones(D, np.float32)
    edits = [
        gl.clamp("res.12/3", 2.0, where="prompt", specials=True),
        gl.add("res.5/9", 1),
        gl.add_vector("res.5", v, 3),
    ]
    rows = desk_of(engine, edits=edits, run=False).rows
    assert rows[0]["formula"] == "h + (2·4 − f)·d" and rows[0]["raw"] == 8.0 and rows[0]["maximum"] == 4.0
    assert rows[0]["where"] == "in the prompt only · special tokens too"
    assert rows[1]["maximum"] is None and rows[1]["raw"] is None and rows[1]["formula"] == "h + s·m·d"
    assert rows[2]["feature"] is None and rows[2]["raw"] == pytest.approx(3 * np.sqrt(D), rel=1e-3)
    json.dumps(rows, allow_nan=False)


def test_the_browser_edits_rows(engine):
    desk = desk_of(engine, max_new_tokens=2)
    browser = Ends(desk)
    assert browser.ask("add", feature="res.5/0")["kind"] == "value"  # index 0 is a feature
    assert [row["feature"] for row in desk.rows] == ["res.12/3", "res.5/0"]
    key = desk.rows[1]["key"]
    browser.ask("edit", key=key, strength=2.5)
    browser.ask("edit", key=key, kind="ablate")
    assert str(desk.edits[1]) == "gl.ablate('res.5/0')"
    browser.ask("edit", key=key, kind="add")  # the slider stood at 2.5
    assert desk.edits[1] == gl.add("res.5/0", 2.5)
    browser.ask("remove", key=desk.rows[0]["key"])
    browser.ask("remove", key=key)
    assert desk.edits == ()
    desk.wait(10)
    assert list(arms(desk)) == ["default"]


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("add", {"feature": "res.7/1"}, "site-not-open"),
        ("add", {"feature": "res.12/50"}, "feature-out-of-range"),
        ("add", {"feature": "834"}, "feature-unreadable"),
        ("edit", {"key": 1, "strength": None}, "strength-unreadable"),
        ("edit", {"key": 1, "strength": 1e30}, "strength-enormous"),
        ("edit", {"key": 1, "kind": "wipe"}, "edit-unreadable"),
        ("edit", {"key": 99, "strength": 1}, "row-gone"),
        ("sweep", {"key": 99}, "row-gone"),
        ("option", {"name": "about", "value": {}}, "option-unknown"),
        ("sampling", {"heat": 1}, "option-unknown"),
    ],
)
def test_what_the_browser_may_not_do_changes_nothing(engine, method, params, code):
    desk = desk_of(engine, run=False)
    before = (desk.edits, desk.sampling, desk.about)
    reply = Ends(desk).ask(method, **params)
    assert (reply["kind"], reply.get("code")) == ("error", code)
    assert (desk.edits, desk.sampling, desk.about) == before


def test_a_conflict_stands_at_both_rows(engine):
    desk = desk_of(engine, edits=[gl.clamp("res.12/3", 1), gl.clamp("res.12/3", 2), gl.add("res.5/1", 1)])
    desk.wait(10)
    assert desk.current["state"] == "failed" and desk.current["error"] is None
    one, two, three = (row["error"] for row in desk.rows)
    assert one == two and "gl.clamp('res.12/3', 1.0)" in one and "2.0" in one
    assert three is None
    desk.edits = [gl.clamp("res.12/3", 1)]
    desk.wait(10)
    assert desk.current["state"] == "finished" and desk.rows[0]["error"] is None


def test_what_no_row_is_to_blame_for_stands_above(engine):
    desk = desk_of(engine, run=False)
    desk.run("")
    desk.wait(10)
    assert desk.current["state"] == "failed" and "empty" in desk.current["error"]
    assert desk.rows[0]["error"] is None


def test_a_fault_in_mid_run_keeps_the_text(engine):
    engine.fault, engine.fault_at = MemoryError("no room"), 2
    desk = desk_of(engine)
    desk.wait(10)
    assert desk.current["state"] == "failed" and desk.current["error"] == "MemoryError: no room"
    assert arms(desk)["default"] == " sea sky"
    engine.fault = None
    desk.run()
    desk.wait(10)
    assert desk.current["state"] == "finished"


def test_a_text_that_broke_off_says_where(engine, monkeypatch):
    edit = gl.clamp("res.12/3", 1)
    whole = FakeJob._value

    def broken(self, made, stopped):
        from dataclasses import replace

        return tuple(replace(one, stopped="not-finite", not_finite=(4, edit)) for one in whole(self, made, stopped))

    monkeypatch.setattr(FakeJob, "_value", broken)
    desk = desk_of(engine, max_new_tokens=3)
    desk.wait(10)
    arm = desk.current["arms"][1]
    assert arm["stopped"] == "not-finite"
    assert "new token 5" in arm["notes"][0] and "gl.clamp('res.12/3', 1.0)" in arm["notes"][0]


# ---- the end of it


def test_closing_in_mid_run_frees_the_worker(engine):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=30)
    engine.go()
    until(lambda: desk.current["state"] == "running")
    desk.close()
    assert desk._latest.wait(5)
    assert engine.jobs[0].cancelled.is_set() and engine.jobs[0].done


def test_the_last_view_leaving_stops_the_run(engine):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=30)
    until(lambda: engine.jobs)
    Ends(desk).ask("left")
    assert desk._latest.wait(5) and desk.current["state"] == "stopped"


def test_ctrl_c_while_waiting_stops_the_run(engine, monkeypatch):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=30)
    until(lambda: engine.jobs)
    real, calls = desk._latest.wait, []

    def interrupted(timeout=None):
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(timeout)

    monkeypatch.setattr(desk._latest, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        desk.wait()
    assert desk.current["state"] == "stopped" and engine.jobs[0].done


def test_ctrl_c_does_not_wait_for_measurements(engine, monkeypatch):
    engine.hold = True
    desk = desk_of(engine, max_new_tokens=30)
    until(lambda: engine.jobs)
    looking, go = threading.Event(), threading.Event()
    monkeypatch.setattr(desk, "_look", lambda *_: looking.set() or go.wait(10))
    real = desk._latest.wait
    monkeypatch.setattr(desk._latest, "wait", lambda timeout=None: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        desk.wait()
    assert desk.current["state"] == "stopped" and looking.wait(10) and not real(0)
    go.set()
    assert real(10)


def test_waiting_too_long_says_so(engine):
    engine.hold = True
    desk = desk_of(engine)
    with pytest.raises(TimeoutError, match="it goes on"):
        desk.wait(0.01)
    desk.close()


# ---- chat


def test_both_histories_are_kept(engine):
    desk = desk_of(engine, [{"role": "user", "content": "Hi"}], max_new_tokens=2)
    browser = Ends(desk)
    desk.wait(10)
    assert desk.chat and desk.prompt == "Hi" and desk.turns == []
    assert engine.requests[0].given == ({"role": "user", "content": "Hi"},)
    first = arms(desk)
    browser.ask("run", prompt="And then?")
    desk.wait(10)
    assert desk.turns == [{"user": "Hi", "default": first["default"], "steered": first["steered"]}]
    steered, default = engine.requests[1:]
    for request, name in ((steered, "steered"), (default, "default")):
        assert [message["content"] for message in request.given] == ["Hi", first[name], "And then?"]
    assert steered.rows == (desk.edits,) and default.rows == ((),)
    browser.ask("edit", key=1, strength=2.0)  # the last turn is answered again, the history stays
    desk.wait(10)
    assert len(desk.turns) == 1 and engine.requests[-1].given[-1]["content"] == "And then?"
    browser.ask("forget")
    assert desk.turns == [] and desk.current["state"] == "idle"


def test_earlier_messages_are_history(engine):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    desk = desk_of(engine, messages)
    assert desk.prompt == "" and engine.requests == []
    assert desk.turns == [{"user": "Hi", "default": "Hello.", "steered": "Hello."}]  # to be seen, not only to be sent
    desk.run("How are you?")
    desk.wait(10)
    assert [m["content"] for m in engine.requests[0].given] == ["Hi", "Hello.", "How are you?"]
    assert desk.preset.prompt == engine.requests[0].given


@pytest.mark.parametrize("given", [3, None, [1, 2], [], [{"role": "user"}], b"x"])
def test_prompts_that_are_none(engine, given):
    with pytest.raises(Refusal) as caught:
        desk_of(engine, given)
    assert caught.value.code == "prompt-unreadable"


# ---- the dose strip


def test_the_dose_strip(engine):
    desk = desk_of(engine, edits=[gl.clamp("res.12/3", 1), gl.add("res.5/1", 0.5)], max_new_tokens=12, scorer=len)
    browser = Ends(desk)
    desk.wait(10)
    assert browser.ask("sweep", key=1)["kind"] == "value"
    desk.wait(10)
    assert desk.dose["state"] == "finished" and desk.dose["key"] == 1, desk.dose
    rows = desk.dose["rows"]
    assert 7 <= len(rows) <= 9 and [row["strength"] for row in rows] == sorted(row["strength"] for row in rows)
    for row in rows:
        assert row["band"] in ("none", "works", "breaks") and row["kl"] is not None
        assert row["safety"] == len("".join(token["text"] for token in row["tokens"]))
    assert all(gl.add("res.5/1", 0.5) in row for row in engine.requests[-1].rows if row)
    assert desk.swept is not None
    json.dumps(desk.dose, allow_nan=False)
    browser.ask("edit", key=1, strength=2)  # its own strength is what was varied
    assert desk.dose is not None
    browser.ask("edit", key=2, strength=2)
    assert desk.dose is None, "measured under other conditions"


def test_a_sweep_can_be_stopped_and_a_scorer_may_fail(engine):
    def scorer(text):
        raise ValueError("no")

    desk = desk_of(engine, max_new_tokens=4, scorer=scorer)
    desk.wait(10)
    engine.hold = True
    desk.sweep("res.12/3")
    until(lambda: len(engine.jobs) == 2)
    desk.stop()
    desk.wait(10)
    assert desk.dose["state"] == "stopped" and desk.dose["rows"] == []
    engine.hold = False
    desk.sweep()
    desk.wait(10)
    assert {row["safety"] for row in desk.dose["rows"]} == {None}
    with pytest.raises(Refusal, match=r"edits of: res\.12/3"):
        desk.sweep("res.5/1")


# ---- presets and code


def test_a_preset_comes_back_as_it_was(engine, tmp_path):
    v = np.linspace(-1, 1, D).astype(np.float32) / 3
    edits = [gl.clamp("res.12/3", 2.0, where=(1, 2)), gl.add_vector("res.5", v, 0.1)]
    desk = desk_of(engine, edits=edits, temperature=0.7, seed=5, top_k=40, run=False)
    path = desk.save(tmp_path / "a.json")
    again = Preset.load(path)
    assert again == desk.preset and again.edits == tuple(edits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = SteeringDesk(engine, again, run=False)
    assert opened.edits == desk.edits and opened.sampling == desk.sampling and opened.notes == []


def test_the_browser_saves_and_opens_presets(engine):
    desk = desk_of(engine, edits=[gl.clamp("res.12/3", 2.0)], temperature=0.7, seed=5)
    desk.wait(10)
    ends = Ends(desk)
    text = ends.ask("preset")["value"]
    other = desk_of(engine, "Other", edits=[gl.add("res.5/1", 1), gl.add("res.5/2", 1)], run=False)
    ends = Ends(other)
    assert ends.ask("open", text="nonsense", name="a.json")["code"] == "file-unreadable"
    assert other.prompt == "Other" and len(other.edits) == 2
    changed = text.replace('"res.12/3"', '"res.9/3"').replace('"site": "res.12"', '"site": "res.9"')
    assert ends.ask("open", text=changed, name="a.json")["code"] == "site-not-open"
    assert other.prompt == "Other" and len(other.edits) == 2
    assert ends.ask("open", text=text, name="a.json")["kind"] == "value"
    other.wait(10)
    assert other.preset == desk.preset and other.notes == []
    assert arms(other) == arms(desk) and other.colour["feature"] == "res.12/3"
    ends.ask("open", text=text.replace(ABOUT["model_digest"], "e" * 64), name="a.json")
    assert len(other.notes) == 1


def test_a_preset_of_a_chat_brings_its_history(engine, tmp_path):
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "So"},
    ]
    path = Preset(said, EDIT).save(tmp_path / "chat.json")
    desk = desk_of(engine, run=False)
    desk.load(path)
    desk.wait(10)
    assert desk.chat and desk.prompt == "So" and engine.requests[-1].given == tuple(said)
    assert desk.turns == [{"user": "Hi", "default": "Ho", "steered": "Ho"}]
    desk.load(Preset("Hello", EDIT))
    desk.wait(10)
    assert not desk.chat and engine.requests[-1].given == "Hello"


def test_another_model_or_sae_is_said(engine):
    preset = Preset("Hello", (gl.clamp("res.12/3", 1),), made_with={**ABOUT, "sae_digests": {"res.12": "d" * 64}})
    with pytest.warns(UserWarning, match=r"The SAE at res\.12 is cccccccccccc here, and was dddddddddddd"):
        desk = SteeringDesk(engine, preset, run=False)
    assert len(desk.notes) == 1
    other = {**ABOUT, "model_digest": "e" * 64, "sae_digests": {"res.5": "d" * 64}}
    assert [note.split(" is ")[0] for note in Preset("x", made_with=other).differences(ABOUT)] == ["The model file"]


def test_the_code_makes_the_same_desk(engine):
    v = np.linspace(-1, 1, D).astype(np.float32) / 3
    edits = [gl.clamp("res.12/3", 2.0, when=gl.when("res.5/1", above=0.2)), gl.add_vector("res.5", v, 0.1)]
    desk = desk_of(engine, 'It\'s "so"\n', edits=edits, temperature=0.5, seed=3, run=False)
    code = desk.code()
    made = {}
    loupe = SimpleNamespace(steer=lambda *given, **options: SteeringDesk(engine, *given, run=False, **options))
    fake = SimpleNamespace(
        **{name: getattr(gl, name) for name in ("clamp", "add_vector", "when")}, open=lambda *a, **k: loupe
    )
    exec(code.replace("import gemloupe as gl", ""), {"gl": fake}, made)
    assert made["desk"].edits == desk.edits and made["desk"].prompt == desk.prompt
    assert made["desk"].sampling == desk.sampling and made["desk"].notes == []
    assert "res.12" in code and "seed=3" in code and "top_k" not in code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        "{}",
        '{"kind": "steering preset", "format": 1}',
        '{"kind": "trace", "format": 1}',
        '{"kind": "steering preset", "format": 1, "prompt": 3, "edits": [], "sampling": {}, "made_with": {}}',
        '{"kind": "steering preset", "format": 1, "prompt": "x", "edits": [{}], "sampling": {}, "made_with": {}}',
        '{"kind": "steering preset", "format": 1, "prompt": "x", "edits": [], "sampling": {"x": 1}, "made_with": {}}',
    ],
)
def test_files_that_are_no_presets(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(Refusal) as caught:
        Preset.load(path)
    assert caught.value.code == "file-unreadable"


def test_a_file_of_something_else_says_what_it_lacks():
    with pytest.raises(Refusal, match=r"^package\.json is not a gemloupe steering preset: it has no 'kind'\.$"):
        Preset.from_json('{"name": "x"}', "package.json")


def test_missing_and_newer_presets(tmp_path):
    with pytest.raises(Refusal, match="there is no such file"):
        Preset.load(tmp_path / "none.json")
    path = Preset("x").save(tmp_path / "x.json")
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(Refusal) as caught:
        Preset.load(path)
    assert caught.value.code == "scope-newer"


# ---- traits and the twin


def test_unknown_and_wrong_options(engine):
    with pytest.raises(TypeError, match="has no trait heat"):
        desk_of(engine, heat=1)
    for name, bad in (("follow", "now"), ("palette", "pink"), ("sampling", {"heat": 1}), ("controls", "x")):
        desk = desk_of(engine, run=False)
        with pytest.raises(traitlets.TraitError):
            setattr(desk, name, bad)
    assert desk.sampling == SAMPLING


def test_the_twin_shows_the_finished_texts(engine):
    hostile = "</script><img src=x onerror=alert(1)>"
    desk = desk_of(engine, hostile, max_new_tokens=3)
    desk.wait(10)
    page = desk.to_html()
    data = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])
    assert data["current"]["state"] == "finished" and data["facts"] == {} and data["prompt"] == hostile
    assert desk.steered.text.strip() in page and "<img" not in page
    json.dumps(arrays.as_json(desk.static_state()), allow_nan=False)


def test_what_was_missed_is_sent_again(engine, monkeypatch):
    desk = desk_of(engine, max_new_tokens=2)
    desk.wait(10)
    sent = []
    monkeypatch.setattr(desk, "send_state", lambda key=None: sent.append(key))
    Ends(desk).ask("fresh")
    assert sent == [["rows", "current", "dose", "colour", "turns"]]


# ---- the series of tasks


def test_only_the_latest_task_matters():
    began, ended, gate = [], [], threading.Event()
    latest = Latest("test")

    def work(name):
        def run(task):
            began.append(name)
            while not task.cancelled and not gate.wait(0.002):
                pass
            ended.append((name, task.cancelled))

        return Task(run)

    for name in "abc":
        latest.submit(work(name))
    until(lambda: began == ["a", "b", "c"])
    gate.set()
    assert latest.wait(5) and ended == [("a", True), ("b", True), ("c", False)]
    latest.submit(Task(lambda task: 1 / 0))  # logged; the next one still runs
    latest.submit(work("d"))
    assert latest.wait(5) and ended[-1] == ("d", False)


def test_a_job_followed_too_late_is_cancelled_at_once():
    cancelled = []
    task = Task(lambda task: None)
    task.cancel()
    task.follow(SimpleNamespace(cancel=lambda: cancelled.append(1)))
    assert cancelled == [1]


def test_large_updates_are_rarer():
    pace = Pace(most=1000, bytes_per_second=1e6)
    assert pace.due(20_000) and not pace.due()
    time.sleep(0.005)
    assert not pace.due()
    time.sleep(0.02)
    assert pace.due()
    assert FeatureId.of("res.12/3").index == 3
