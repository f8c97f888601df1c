"""What crosses to the browser: arrays that lose nothing, golden frames that both halves read, calls answered once.

`python tests/py/test_wire.py` writes tests/wire/*.json anew.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from gemloupe.errors import refuse
from gemloupe.sparse import SparseActs
from gemloupe.widgets.colour import opacity
from gemloupe.wire import arrays
from gemloupe.wire.rpc import Calls
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

GOLDEN = Path(__file__).parents[1] / "wire"


# golden frames


def frames():
    """name -> SparseActs: the cases a decoder gets wrong first."""
    random = np.random.default_rng(0)
    many = random.random((8, 60)) * (random.random((8, 60)) < 0.1)
    wide = np.zeros((3, 70_000), np.float32)
    wide[0, 0], wide[0, 65_535], wide[1, 65_536], wide[2, 69_999] = 1, 2, 3, 0.5
    large = np.zeros((3, 8), np.float32)
    large[0, 1], large[1, 0], large[2, 7], large[2, 0] = 1e6, 70_000, 65_505, 1e-3
    edges = np.zeros((5, 4), np.float32)
    edges[1, 3], edges[3, 0] = 1, 0.25
    zero = np.zeros((4, 3), np.float32)
    zero[1:, 0] = [1, 2, 3]
    return {
        "empty-rows": SparseActs.from_dense(edges),
        "feature-zero": SparseActs.from_dense(zero),
        "many": SparseActs.from_dense(many.astype(np.float32)),
        "wide-indices": SparseActs.from_dense(wide),
        "large-scale": SparseActs.from_dense(large),
        "weak": SparseActs((1, 3), [0, 3], [0, 1, 2], [1e5, 1e-4, 6e-5]),  # down to the smallest float16 there is
        "nothing-on": SparseActs((3, 5), [0, 0, 0, 0], [], []),
        "no-tokens": SparseActs((0, 5), [0], [], []),
        "one-row": SparseActs((1, 2), [0, 2], [0, 1], [0.5, 1.5]),
    }


def golden(name, acts):
    """A frame as JSON: what is sent, and (unless it is wide) what must come out of it."""
    sent = arrays.sparse(acts)
    dense = arrays.read_sparse(sent).to_dense()
    entries = [[int(t), int(f), float(dense[t, f])] for t, f in zip(*np.nonzero(dense), strict=True)]
    frame = {"name": name, "acts": arrays.as_json(sent), "entries": entries}
    if dense.size < 10_000:
        frame["dense"] = [[float(x) for x in row] for row in dense]
    return frame


def colour():
    strength = [-1.0, 0.0, 1e-9, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5, 100.0]
    return {"strength": strength, "opacity": [float(x) for x in opacity(np.array(strength))]}


def files():
    every = {f"{name}.json": golden(name, acts) for name, acts in frames().items()} | {"colour.json": colour()}
    return {name: json.dumps(content, indent=None) + "\n" for name, content in every.items()}


@pytest.mark.parametrize("name", files())
def test_golden_frames_are_what_is_sent(name):
    assert (GOLDEN / name).read_text(encoding="utf-8") == files()[name], "stale: run python tests/py/test_wire.py"


def test_no_other_golden_frames_are_left():
    assert {path.name for path in GOLDEN.glob("*.json")} == set(files())


@pytest.mark.parametrize("name", frames())
def test_golden_frames_hold_the_truth(name):
    """Against the activations themselves, so that an encoder that is wrong both ways is seen."""
    acts, frame = frames()[name], json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    decoded = np.zeros(acts.shape, np.float32)
    for token, feature, value in frame["entries"]:
        decoded[token, feature] = value
    truth = acts.to_dense()
    largest = truth.max(initial=0)
    np.testing.assert_allclose(decoded, truth, rtol=2**-10, atol=largest * 2**-24)
    assert ((decoded > 0) == (truth > 0)).all()  # nothing appears, nothing vanishes
    assert frame["acts"]["indices"]["dtype"] == ("u4" if name == "wide-indices" else "u2")
    if "dense" in frame:
        np.testing.assert_array_equal(np.array(frame["dense"]).reshape(acts.shape), decoded)


# arrays


@given(st.data(), st.sampled_from(["u1", "u2", "u4", "i4", "f2", "f4"]))
def test_any_array_crosses(data, dtype):
    shape = data.draw(stnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    given = data.draw(stnp.arrays(np.dtype(dtype).newbyteorder(">"), shape))
    sent = arrays.array(given, dtype)
    assert sent["dtype"] == dtype and tuple(sent["shape"]) == shape
    assert isinstance(sent["data"], memoryview) and sent["data"].format == "B" and sent["data"].ndim == 1
    assert len(sent["data"]) == given.size * given.itemsize
    np.testing.assert_array_equal(arrays.read_array(sent), given)
    np.testing.assert_array_equal(arrays.read_array(json.loads(json.dumps(arrays.as_json(sent)))), given)


def test_arrays_are_little_endian_and_in_rows():
    assert bytes(arrays.array([1, 258], "u2")["data"]) == b"\x01\x00\x02\x01"
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert bytes(arrays.array(fortran, "u1")["data"]) == bytes(range(6))
    assert bytes(arrays.array(np.arange(10)[::2], "u1")["data"]) == bytes([0, 2, 4, 6, 8])


def test_whole_numbers_take_the_narrowest_type():
    assert arrays.whole_numbers([])["dtype"] == "u2"
    assert arrays.whole_numbers([0, 65_535])["dtype"] == "u2"
    assert arrays.whole_numbers([65_536])["dtype"] == "u4"


on = st.floats(2.0**-30, 2.0**30, width=32)
dense = stnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 9)), elements=st.one_of(st.just(0.0), on))


@given(dense)
@settings(max_examples=200)
def test_any_acts_cross(array):
    acts = SparseActs.from_dense(array)
    sent = arrays.sparse(acts)
    again = arrays.read_sparse(sent)
    assert again.shape == acts.shape
    np.testing.assert_array_equal(again.indptr, acts.indptr)
    np.testing.assert_array_equal(again.indices, acts.indices)
    np.testing.assert_allclose(again.values, acts.values, rtol=2**-11, atol=array.max(initial=0) * 2**-24)
    assert (again.values > 0).all() and np.isfinite(again.values).all()
    assert arrays.read_array(sent["values"]).max(initial=0) <= 1
    json.dumps(sent["scale"], allow_nan=False)


def test_values_beyond_float16_cross():
    acts = SparseActs((1, 2), [0, 2], [0, 1], [65_520, 3e38])
    assert np.isfinite(arrays.read_sparse(arrays.sparse(acts)).values).all()
    assert arrays.read_sparse(arrays.sparse(acts)).values[1] == pytest.approx(3e38)


def test_maxima_of_what_is_on():
    acts = SparseActs.from_dense(np.array([[1, 0, 0, 2], [0, 0, 0, 5]], np.float32))
    sent = arrays.maxima(acts, np.array([4, 5, 6, np.nan], np.float32))
    np.testing.assert_array_equal(arrays.read_array(sent["values"]) * sent["scale"], [4, np.nan])


def test_one_layer_of_128_tokens_crosses_in_under_60_kilobytes():
    random = np.random.default_rng(0)
    dense = np.zeros((128, 16_384), np.float32)
    for row in dense:  # 82 on per token, as Gemma Scope's canonical layer 12 of 2B
        row[random.choice(16_384, 82, replace=False)] = random.random(82) + 1
    acts = SparseActs.from_dense(dense)
    known = np.full(16_384, 3.0, np.float32)
    assert arrays.size(arrays.sparse(acts)) + arrays.size(arrays.maxima(acts, known)) < 60_000


def test_static_state_is_json_whatever_lies_in_it():
    state = {
        "a": [arrays.array([1], "u1"), {"b": (arrays.array([], "f2"), None, True, "x", 0)}],
        "data": "not a buffer",
    }
    again = json.loads(json.dumps(arrays.as_json(state), allow_nan=False))
    assert arrays.read_array(again["a"][0]).tolist() == [1]
    assert again["a"][1]["b"][1:] == [None, True, "x", 0] and again["data"] == "not a buffer"
    assert arrays.size(state) == 1


# calls


class Browser:
    """Collects replies. `ask` waits for the reply to one call."""

    def __init__(self, **methods):
        self.replies, self._more = [], threading.Condition()
        self.calls = Calls(methods, self._receive)

    def _receive(self, message):
        with self._more:
            self.replies.append(message)
            self._more.notify_all()

    def ask(self, method, params=None, ident=1):
        assert self.calls.receive({"kind": "call", "id": ident, "method": method, "params": params or {}})
        return self.reply(ident)

    def reply(self, ident):
        with self._more:
            assert self._more.wait_for(lambda: any(r["id"] == ident for r in self.replies), 10), "no reply"
            return next(r for r in self.replies if r["id"] == ident)


def test_a_call_gets_its_value():
    browser = Browser(add=lambda a, b: a + b, nothing=lambda: None)
    assert browser.ask("add", {"a": 1, "b": 0}, 7) == {"kind": "value", "id": 7, "value": 1}
    assert browser.ask("nothing", ident=0) == {"kind": "value", "id": 0, "value": None}  # 0 is an id, None a value


def test_a_refusal_keeps_its_code():
    def refusing():
        raise refuse("text-empty")

    reply = Browser(read=refusing).ask("read")
    assert (reply["kind"], reply["code"]) == ("error", "text-empty") and "nothing to read" in reply["message"]


def test_an_error_is_an_answer(caplog):
    def broken():
        raise ValueError("half a sentence")

    reply = Browser(read=broken).ask("read")
    assert reply == {"kind": "error", "id": 1, "code": "failed", "message": "ValueError: half a sentence"}
    assert "half a sentence" in caplog.text  # and in the log for us


@pytest.mark.parametrize("method", ["nope", "", None, 3, ["ping"], "__init__"])
def test_unknown_methods_are_an_answer(method):
    reply = Browser(ping=lambda: None).ask(method)
    assert (reply["kind"], reply["code"]) == ("error", "no-such-method")


@pytest.mark.parametrize("params", [{"b": 1}, [1, 2], "ab", 3, {"a": 1, "b": 2}])
def test_wrong_arguments_are_an_answer(params):
    assert Browser(one=lambda a: a).ask("one", params)["kind"] == "error"


@pytest.mark.parametrize(
    "message",
    [None, 3, "call", [], {}, {"kind": "call"}, {"kind": "value", "id": 1},
     {"kind": "call", "id": [1], "method": "ping"}, {"kind": "cancel", "id": {}}, {"kind": ["call"], "id": 1},
     {"kind": "call", "id": None, "method": "ping"}],
)  # fmt: skip
def test_what_is_no_call_is_left_alone(message):
    browser = Browser(ping=lambda: None)
    assert browser.calls.receive(message) is False
    assert browser.replies == []


def test_a_cancelled_call_is_answered_as_cancelled_once():
    begun, go = threading.Event(), threading.Event()
    browser = Browser(slow=lambda: (begun.set(), go.wait(10)), ping=lambda: None)
    assert browser.calls.receive({"kind": "call", "id": 1, "method": "slow"})
    assert begun.wait(10)
    for _ in range(3):
        assert browser.calls.receive({"kind": "cancel", "id": 1})
    assert browser.calls.receive({"kind": "cancel", "id": 99})  # ended long ago, or never was
    go.set()
    assert browser.reply(1) == {"kind": "cancelled", "id": 1}
    assert browser.calls.receive({"kind": "cancel", "id": 1})
    assert browser.ask("ping", ident=2)["kind"] == "value"
    assert [reply["id"] for reply in browser.replies] == [1, 2]


def test_a_call_sent_twice_is_answered_once():
    begun, go, times = threading.Event(), threading.Event(), []
    browser = Browser(slow=lambda: (times.append(1), begun.set(), go.wait(10)))
    for _ in range(2):
        assert browser.calls.receive({"kind": "call", "id": 1, "method": "slow"})
        assert begun.wait(10)
    go.set()
    browser.reply(1)
    time.sleep(0.05)
    assert len(browser.replies) == len(times) == 1


def test_many_calls_at_once_get_one_answer_each():
    browser = Browser(double=lambda x: 2 * x)
    for ident in range(200):
        browser.calls.receive({"kind": "call", "id": ident, "method": "double", "params": {"x": ident}})
    assert [browser.reply(ident)["value"] for ident in range(200)] == [2 * ident for ident in range(200)]
    assert len(browser.replies) == 200


def test_handlers_do_not_run_in_the_comm_handler():
    """On some kernels that is the main thread; a slow answer there would hold up every widget."""
    browser = Browser(where=lambda: threading.current_thread().name)
    assert browser.ask("where")["value"] != threading.current_thread().name


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, content in files().items():
        (GOLDEN / name).write_text(content, encoding="utf-8")
