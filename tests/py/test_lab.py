"""The kernel end of the sidebar without a browser: a fake comm asks, and hears."""

import threading
import time
import warnings

import pytest
from gemloupe import lab as lab_room
from gemloupe.lab import Lab, digests, opened
from gemloupe.loupe import Loupe, running

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
    assert {"id": view["id"], "method": "TokenHeatmap", "mine": True} in comm.value("widgets")
    assert TEXT.split()[-1] in comm.value("html", id=view["id"])
    comm.value("close", id=view["id"])
    assert comm.value("state")["views"] == []
    assert view["id"] not in [one["id"] for one in comm.value("widgets")]
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
    assert comm.events("selection")[-1] == {
        "kind": "event", "event": "selection", "id": ident, "token": 5, "feature": None
    }  # fmt: skip


def test_the_cell_makes_the_same_view(comm, lab, tiny3, monkeypatch):
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny"})
    ident = comm.value("view", loupe=tiny3.number, method="heatmap", given=TEXT)["id"]
    mine = lab._views[ident].widget
    feature = f"res.0/{mine.trace['res.0'].row(2)[0][0]}"
    mine.selected = (2, feature)
    cell = comm.value("code", id=ident)
    *statements, last = cell.splitlines()
    space = {}
    exec("\n".join(statements), space)
    assert space["loupe"] is tiny3
    made = eval(last, space)
    assert (made.trace.text, made.site, made.selection) == (TEXT, mine.site, mine.selection)
    monkeypatch.setattr(tiny3, "opened_with", {"model": "tiny", "scope": object()})
    assert comm.ask("code", id=ident)["code"] == "cell-not-possible"


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
