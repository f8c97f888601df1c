"""The kernel end of the sidebar without a browser: a fake comm asks, and hears."""

import ast
import threading
import time
import warnings

import pytest
from gemloupe import lab as lab_room
from gemloupe.edits import clamp
from gemloupe.lab import Lab, digests, opened
from gemloupe.loupe import Loupe, running
from gemloupe.widgets.live import alive
from gemloupe.widgets.token_heatmap import TokenHeatmap

TEXT = "The City of Light is Paris"


class Comm:
    """A browser's end: what it was sent, and a call that waits for its answer."""

    def __init__(self, lab):
        self.sent, self.heard, self.number = [], threading.Condition(), 0
        lab.connect(self)

    def on_msg(self, listener):
        self.receive = listener

    def on_close(self, listener):
        self.closed = listener

    def send(self, data):
        with self.heard:
            self.sent.append(data)
            self.heard.notify_all()

    def until(self, wanted, seconds=60):
        end = time.monotonic() + seconds
        with self.heard:
            while True:
                for message in self.sent:
                    if wanted(message):
                        return message
                assert self.heard.wait(end - time.monotonic()), self.sent

    def ask(self, name, /, **params):
        self.number += 1
        ident = self.number
        call = {"kind": "call", "id": ident, "method": name, "params": params}
        self.receive({"content": {"data": call}})
        return self.until(lambda message: message.get("id") == ident and message["kind"] != "event")

    def value(self, name, /, **params):
        reply = self.ask(name, **params)
        assert reply["kind"] == "value", reply
        return reply["value"]

    def events(self, name):
        return [message for message in self.sent if message.get("event") == name]


@pytest.fixture
def lab():
    return Lab()


@pytest.fixture
def comm(lab):
    return Comm(lab)


def test_it_finds_loupes_that_run(comm, tiny3):
    state = comm.value("state")
    assert state["protocol"] == lab_room.PROTOCOL and state["opening"] is None and state["views"] == []
    mine = next(one for one in state["loupes"] if one["number"] == tiny3.number)
    assert mine["model"] == tiny3.about.model and {"heatmap", "steer", "card"} <= set(mine["methods"])
    assert tiny3 in running()


def test_a_closed_loupe_runs_no_longer(tiny3):
    other = Loupe(tiny3.engine)
    assert other in running() and other.number > tiny3.number
    other.engine = type("Engine", (), {"close": lambda self: None})()
    other.close()
    assert other not in running()


def test_a_view_is_made_told_and_closed(comm, lab, tiny3):
    other = Comm(lab)
    view = comm.value("view", loupe=tiny3.number, method="heatmap", given=TEXT)
    assert view["method"] == "heatmap" and view["given"] == TEXT
    assert comm.value("state")["views"] == [view] == other.value("state")["views"]
    assert other.events("views")
    assert view["own"] and view["loupe"] == tiny3.number and view["feature"] is None
    assert TEXT.split()[-1] in comm.value("html", id=view["id"])
    widget = lab._views[view["id"]].widget
    comm.value("close", id=view["id"])
    assert comm.value("state")["views"] == [] and widget not in alive()
    assert comm.ask("code", id=view["id"])["code"] == "view-gone"
    assert comm.ask("html", id=view["id"])["code"] == "view-gone"


def test_what_cannot_be_shown_is_said(comm, tiny3):
    assert comm.ask("view", loupe=10**6, method="heatmap")["code"] == "loupe-gone"
    assert comm.ask("view", loupe=tiny3.number, method="close")["code"] == "view-unknown"
    assert comm.ask("view", loupe=tiny3.number, method="card", given="res.99/1")["code"] == "site-not-open"


def test_a_feature_goes_to_the_desk_that_is_open(comm, lab, tiny3):
    ask = {"loupe": tiny3.number, "method": "steer", "prompt": TEXT}
    first = comm.value("view", given="res.2/1", **ask)
    again = comm.value("view", given="res.2/2", **ask)
    comm.value("view", given="res.2/2", **ask)
    assert again == first
    desk = lab._views[first["id"]].widget
    assert [str(edit.feature) for edit in desk.edits] == ["res.2/1", "res.2/2"] and desk.prompt == TEXT
    comm.value("stop")
    desk.wait(60)
    assert "loupe.steer" in comm.value("code", id=first["id"])


def test_a_selection_is_shared_between_sidebar_and_notebook_only(comm, lab, tiny3):
    one, two = tiny3.heatmap(TEXT), tiny3.heatmap(TEXT)
    elsewhere = tiny3.heatmap("Another text")
    ident = comm.value("view", loupe=tiny3.number, method="heatmap", given=TEXT)["id"]
    mine = lab._views[ident].widget
    mine.selected = 3
    assert one.selected.position == two.selected.position == 3 and elsewhere.selected.position is None
    one.selected = 5
    assert mine.selected.position == 5 and two.selected.position == 3  # two of the notebook's are two choices
    layers = tiny3.evolution(TEXT)
    feature = f"res.0/{mine.trace['res.0'].row(2)[0][0]}"
    mine.selected = (2, feature)
    assert layers.selected.position == 2 and str(layers.selected.feature) == feature
    assert comm.events("selection")[-1] == {
        "kind": "event", "event": "selection", "id": ident, "feature": feature
    }  # fmt: skip
    mine.selected = None
    assert layers.selected.position == 2 and layers.selected.feature is None  # it always shows a token


def plain(value):
    """A trait's value as text, with arrays by what is in them."""
    if isinstance(value, memoryview):
        return value.tobytes()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, float):
        return f"{value:.4g}"  # a batch of another size adds up in another order
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else repr(value)


def run(cell):
    """What a cell shows."""
    *statements, last = ast.parse(cell).body
    space = {}
    exec(compile(ast.Module(statements, []), "cell", "exec"), space)
    return space, eval(compile(ast.Expression(last.value), "cell", "eval"), space)


def made(loupe, name):
    """A widget with something chosen in it, by the name of what makes it."""
    match name:
        case "heatmap":
            shown = loupe.heatmap(TEXT, palette="orange")
            shown.selected = (2, f"res.0/{shown.trace['res.0'].row(2)[0][0]}")
        case "heatmap of ids":
            shown = loupe.heatmap(loupe.read(TEXT), site="mlp.1")
        case "table":
            shown = loupe.table(loupe.heatmap(TEXT, site="res.2"))
            shown.selected = 1
        case "evolution":
            shown = loupe.evolution(TEXT, k=3, guesses=2)
            shown.selected = 3
            shown.view = "grid"
        case "evolution of a target":
            shown = loupe.evolution(loupe.evolve(TEXT))
            shown.attribute(" Paris")
        case "evolution that was checked":
            shown = loupe.evolution(TEXT)
            shown.attribute(" Paris")
            shown.check(2)
            shown.check(shown.found.edges[3])
        case "card":
            shown = loupe.card("res.2/1", text=TEXT, context=5)
            shown.go("res.0/0")
        case "cards":
            shown = loupe.card("res.2/1", "res.0/0")
        case "search":
            shown = loupe.search(text=TEXT, sites="res.2", k=7, relative=False, dense=True)
            shown.selected = shown.features[1]
            shown.palette = "purple"
        case "near":
            shown = loupe.search(near="res.2/0", k=3)
        case "contrast":
            shown = loupe.contrast(TEXT, "It rains", k=3)
    return shown


@pytest.mark.parametrize("name", [
    "heatmap", "heatmap of ids", "table", "evolution", "evolution of a target",
    "evolution that was checked", "card", "cards", "search", "near", "contrast",
])  # fmt: skip
def test_the_cell_makes_the_same_view(comm, tiny3, monkeypatch, name):
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny"})
    mine = made(tiny3, name)
    cell = comm.value("code", id=mine.model_id)
    assert "made_with={'SAEs': " in cell
    space, again = run(cell)
    assert space["loupe"] is tiny3
    assert type(again).__name__ == type(mine).__name__ and again is not mine
    parts = zip(mine, again, strict=True) if name == "cards" else [(mine, again)]
    for one, two in parts:
        for widget in (one, two):
            if hasattr(widget, "wait"):
                widget.wait(60)
        # Where a card came from is no part of what it shows; how well the SAE fits is measured when it is looked at.
        aside = {"trail", "fidelity"}
        theirs = two.static_state()
        for trait, value in one.static_state().items():
            assert plain(theirs[trait]) == plain(value) or trait in aside, trait


def test_the_cell_of_a_desk_writes_the_same_text(comm, tiny3, monkeypatch):
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny"})
    desk = tiny3.steer(TEXT, [clamp("res.2/1", 2.0)], max_new_tokens=4, seed=3, controls=True, palette="grey")
    cell = comm.value("code", id=desk.model_id)
    space, again = run(cell)
    assert space["loupe"] is tiny3 and "made_with" in cell
    assert again.wait(60).text == desk.wait(60).text
    assert (again.edits, again.sampling, again.controls, again.palette) == (desk.edits, desk.sampling, True, "grey")


def test_the_cell_of_a_desk_shows_its_chat_its_colour_and_its_dose(comm, tiny3, monkeypatch):
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny"})
    edits = [clamp("res.2/1", 8.0), clamp("res.0/2", 8.0)]
    desk = tiny3.steer([{"role": "user", "content": "Who?"}], edits, max_new_tokens=4)
    desk.wait(60)
    desk.run("And where?")
    desk.wait(60)
    assert desk.turns[0]["default"] != desk.turns[0]["steered"]
    desk.coloured = "res.0/2"
    desk.sweep("res.0/2")
    _, again = run(comm.value("code", id=desk.model_id))
    for one in (desk, again):
        one.wait(120)
    assert (again.turns, again.colour, again.default.text) == (desk.turns, desk.colour, desk.default.text)
    assert again.steered.text == desk.steered.text and again.coloured == desk.coloured
    assert again.dose["rows"] == desk.dose["rows"] and len(again.dose["rows"]) > 1


def test_a_cell_that_cannot_be_is_refused(comm, tiny3, monkeypatch):
    mine = tiny3.heatmap(TEXT)
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny", "scope": object()})
    assert comm.ask("code", id=mine.model_id)["code"] == "cell-not-possible"
    bare = TokenHeatmap(mine.trace)
    assert comm.ask("code", id=bare.model_id)["code"] == "cell-no-loupe"


def test_a_notebooks_widget_is_shown_too_and_lives_on(comm, tiny3):
    theirs = tiny3.search(near="res.2/0", k=3)
    view = comm.value("adopt", id=theirs.model_id)
    assert (view["method"], view["given"], view["own"]) == ("search", "res.2/0", False)
    assert comm.value("adopt", id=theirs.model_id) == view and comm.value("state")["views"] == [view]
    theirs.selected = theirs.features[0]
    assert comm.events("selection")[-1]["feature"] == str(theirs.features[0])
    comm.value("close", id=view["id"])
    assert theirs in alive() and comm.value("state")["views"] == []
    bare = TokenHeatmap(tiny3.read(TEXT))
    assert comm.value("adopt", id=bare.model_id)["loupe"] is None
    bare.close()
    assert comm.value("state")["views"] == []
    assert comm.ask("adopt", id="no such")["code"] == "view-gone"


def test_stop_ends_a_reading(comm, lab, tiny3):
    asked, go = [], threading.Event()

    class Slow:
        """An engine whose reading begins when it is told to."""

        def __getattr__(self, name):
            return getattr(tiny3.engine, name)

        def read(self, request):
            asked.append(request)
            assert go.wait(30)
            return tiny3.engine.read(request)

    loupe = Loupe(Slow())
    answer = threading.Thread(
        target=lambda: asked.append(comm.ask("view", loupe=loupe.number, method="heatmap", given=TEXT))
    )
    answer.start()
    end = time.monotonic() + 30
    while not asked and time.monotonic() < end:
        time.sleep(0.01)
    lab.stop()
    go.set()
    answer.join(30)
    assert asked[-1]["code"] == "cancelled" and comm.value("state")["views"] == []


def test_another_model_than_the_cells_is_said(tiny3, monkeypatch):
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened("tiny", made_with=digests(tiny3)) is tiny3
    with pytest.warns(UserWarning, match="other SAEs"):
        opened("tiny", made_with={"SAEs": "0123456789ab"})


class Opener:
    """`gl.open` that waits between two reports until it is told to go on."""

    def __init__(self, loupe):
        self.go, self.loupe = threading.Event(), loupe

    def __call__(self, model, progress):
        progress("loading", 0.5)
        assert self.go.wait(30)
        progress("loaded", 1.0)
        if model == "broken":
            raise ValueError("no such model")
        return self.loupe


@pytest.mark.parametrize(("model", "cancel", "end"), [
    (None, False, "opened"), (None, True, "cancelled"), ("broken", False, "failed"),
])  # fmt: skip
def test_an_opening_is_told_and_can_be_given_up(tiny3, model, cancel, end):
    opener = Opener(tiny3)
    comm = Comm(Lab(opener))
    comm.value("open", model=model)
    comm.until(lambda message: message.get("event") == "opening" and message["share"] == 0.5)
    assert comm.value("state")["opening"]["what"] == "loading"
    assert comm.ask("open", model="other")["code"] == "opening-already"
    if cancel:
        comm.value("give_up")
    opener.go.set()
    last = comm.until(lambda message: message.get("event") == "opened")
    assert last["state"] == end and comm.value("state")["opening"] is None
    if end == "failed":
        assert last["error"] == "no such model"
    if end == "opened":
        assert last["loupe"] == tiny3.number


def test_a_browser_that_left_is_told_nothing(lab, tiny3):
    gone, here = Comm(lab), Comm(lab)
    gone.closed(None)
    lab.tell("views")
    assert here.events("views") and not gone.events("views")

    def fail(data):
        raise OSError("no connection")

    here.send = fail
    other = Comm(lab)
    lab.tell("views")
    assert other.events("views")


def test_a_plan_comes_as_rows(comm):
    rows = comm.value("plan", model="gemma-2-2b")
    assert [len(row) for row in rows] == [2] * len(rows) and rows[0][0] == "model" and "gemma-2-2b" in rows[0][1]
