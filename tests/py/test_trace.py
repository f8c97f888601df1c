"""Traces: what is saved is what is loaded, and `top` tells the truth about ties, unknowns and places."""

import contextlib
import json
from itertools import pairwise

import numpy as np
import pytest
from gemloupe.errors import Refusal
from gemloupe.feature import FeatureId
from gemloupe.site import Site
from gemloupe.sparse import SparseActs
from gemloupe.trace import Activations, Guess, Token, Trace, join_bytes
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused

RES, MLP = Site("res", 1), Site("mlp", 0)
NAN = float("nan")


def make(**changes):
    """<bos> ' Paris' 'is' ' ' 🦜 in two pieces, ' Paris'; feature 0 is on everywhere but at <bos>."""
    parrot = "🦜".encode()
    tokens = join_bytes(
        [
            (2, b"", True, "<bos>"),
            (10, b" Paris", False, " Paris"),
            (11, b"is", False, "is"),
            (12, b" ", False, " "),
            (240, parrot[:1], False, "<0xF0>"),
            (241, parrot[1:], False, "?"),
            (10, b" Paris", False, " Paris"),
        ]
    )
    res = np.zeros((7, 6), np.float32)
    res[1:, 0] = [1, 2, 3, 4, 5, 6]
    res[1, 3], res[6, 3] = 8, 8
    res[2, 4] = 100
    res[6, 5] = 7
    mlp = np.zeros((7, 3), np.float32)
    mlp[6, 2] = 3
    facts = {
        "tokens": tokens,
        "acts": {RES: SparseActs.from_dense(res), MLP: SparseActs.from_dense(mlp)},
        "maxima": {RES: np.array([12, 1, 1, 8, NAN, NAN], np.float32), MLP: np.array([1, 1, 3], np.float32)},
        "guesses": (None, (Guess(0, "<pad>", 0.5), Guess(11, "is", 0.25)), (), None, None, None, None),
        "about": {"model": "tiny", "note": "naïve ▁"},
    }
    return Trace(**(facts | changes))


def same(one, two):
    assert two.tokens == one.tokens
    assert two.sites == one.sites
    for site in one.sites:
        np.testing.assert_array_equal(two.acts[site].to_dense(), one.acts[site].to_dense())
        np.testing.assert_array_equal(two.maxima[site], one.maxima[site])  # nan equals nan here
        assert two.maxima[site].dtype == np.float32
    assert two.guesses == one.guesses
    assert dict(two.about) == dict(one.about)


# what it holds


def test_a_trace_is_tokens_and_acts():
    trace = make()
    assert len(trace) == 7
    assert trace.text == " Parisis 🦜 Paris"
    assert trace.sites == (MLP, RES)  # forward order, whatever order was given
    assert trace["res.1"] is trace[RES] is trace.acts[RES]
    np.testing.assert_array_equal(trace["res.1/0"], [0, 1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(trace[FeatureId(RES, 1)], np.zeros(7))
    assert "7 tokens" in repr(trace) and "res.1" in repr(trace)


def test_tokens_know_what_they_are():
    bos, paris, _, _, first, second, _ = make().tokens
    assert bos == Token(2, "<bos>", b"", 0, 0, True) and not bos.partial
    assert (paris.text, paris.start, paris.end, paris.partial) == (" Paris", 0, 6, False)
    assert first.partial and second.partial and first.text == second.text == ""
    assert (first.start, first.end) == (second.start, second.end) == (9, 10)  # both touch the one parrot


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.lists(st.integers(0, 80), max_size=20))
def test_any_cut_of_any_text_keeps_bytes_and_spans(text, cuts):
    raw = text.encode()
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    pieces = [(5, raw[a:b], False, "") for a, b in pairwise(edges)]
    tokens = join_bytes([(2, b"", True, "<bos>"), *pieces])
    assert b"".join(token.bytes for token in tokens) == raw
    touched = set()
    for token in tokens[1:]:
        assert 0 <= token.start <= token.end <= len(text)
        if token.partial:
            assert token.bytes in text[token.start : token.end].encode()
        else:
            assert token.text == text[token.start : token.end] == token.bytes.decode()
        touched |= set(range(token.start, token.end))
    assert touched == set(range(len(text)))


@pytest.mark.parametrize("raw", [b"\x80", b"\xff\xfe", b"\xc3", b"a\x80b", b"\xf0\x9f\xa6"])
def test_bytes_that_are_no_text_still_join(raw):
    tokens = join_bytes([(2, b"", True, "<bos>"), (3, raw, False, ""), (4, b"x", False, "")])
    assert b"".join(token.bytes for token in tokens) == raw + b"x"
    assert tokens[1].partial and 0 <= tokens[1].start <= tokens[1].end


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("res.9", "site-not-open"),
        ("res.9/0", "site-not-open"),
        ("res.1/6", "feature-out-of-range"),
        ("res.1/-1", "feature-unreadable"),
        ("nope", "site-unreadable"),
        (3, "site-unreadable"),
        (True, "site-unreadable"),
        (None, "site-unreadable"),
    ],
)
def test_what_is_not_in_it_is_refused(key, code):
    message = refused(code, lambda: make()[key])
    assert code != "site-not-open" or "mlp.0, res.1" in message


# places


def test_positions_of_tokens():
    trace = make()
    assert trace.positions(" Paris") == [1, 6]
    assert trace.positions("Paris") == [1, 6]  # without the space, where nothing matches exactly
    assert trace.positions("is") == [2]
    assert trace.positions(" ") == [3]
    assert trace.positions("<bos>") == [0]
    assert trace.positions(0) == [0] and trace.positions(-1) == [6] and trace.positions(np.int64(-7)) == [0]


@pytest.mark.parametrize("given", ["", "Par", "🦜", "paris", "1"])
def test_tokens_that_are_not_there_are_refused(given):
    assert "' Paris'" in refused("token-not-found", lambda: make().positions(given))


@pytest.mark.parametrize("given", [7, -8, True, False, 1.0, NAN, None, b"is", [1]])
def test_places_outside_are_refused(given):
    assert "0 to 6" in refused("position-out-of-range", lambda: make().positions(given))


# top


def names(activations):
    return [(str(a.feature), a.position) for a in activations]


def test_top_sorts_by_strength_each_feature_once():
    top = make().top(10)
    # mlp.0/2 and res.1/3 are both at their maximum: the site that comes first wins, and of two places the first.
    # res.1/4 and /5 have no known maximum: last, by raw value, though 100 is the largest number here.
    assert names(top) == [("mlp.0/2", 6), ("res.1/3", 1), ("res.1/0", 6), ("res.1/4", 2), ("res.1/5", 6)]
    np.testing.assert_allclose([a.strength for a in top], [1, 1, 0.5, NAN, NAN])
    assert [a.value for a in top] == [3, 8, 6, 100, 7]
    assert top[1].token == " Paris" and top[1].maximum == 8
    assert isinstance(top, Activations)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, np.int64(2)])
def test_top_k_is_the_first_k(k):
    assert names(make().top(k)) == names(make().top(10))[:k]


def test_top_where():
    trace = make()
    at_paris = [("mlp.0/2", 6), ("res.1/3", 1), ("res.1/0", 6), ("res.1/5", 6)]
    assert names(trace.top(10, token=" Paris")) == at_paris
    assert names(trace.top(token=1)) == [("res.1/3", 1), ("res.1/0", 1)]
    assert names(trace.top(token=-1)) == [("mlp.0/2", 6), ("res.1/3", 6), ("res.1/0", 6), ("res.1/5", 6)]
    assert names(trace.top(token=0)) == []  # <bos>: nothing is read there
    assert names(trace.top(site="mlp.0")) == names(trace.top(site=MLP)) == [("mlp.0/2", 6)]
    assert names(trace.top(site="mlp.0", token=1)) == []


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "3", None])
def test_top_needs_a_count(k):
    refused("count-unreadable", lambda: make().top(k))


def test_top_refuses_what_is_not_there():
    refused("site-not-open", lambda: make().top(site="res.0"))
    refused("token-not-found", lambda: make().top(token="London"))
    refused("position-out-of-range", lambda: make().top(token=7))


def test_without_any_maximum_top_is_by_raw_value():
    trace = make(maxima={})
    assert names(trace.top(3)) == [("res.1/4", 2), ("res.1/3", 1), ("res.1/5", 6)]
    assert np.isnan(trace.maxima[RES]).all() and trace.maxima[RES].shape == (6,)


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_top_is_what_a_plain_sort_finds(seed, k):
    random = np.random.default_rng(seed)
    dense = random.integers(0, 4, (4, 8)).astype(np.float32)  # many ties
    maximum = random.integers(1, 4, 8).astype(np.float32)
    trace = make(tokens=make().tokens[:4], acts={RES: SparseActs.from_dense(dense)}, maxima={RES: maximum})
    best = sorted(((dense[:, f].max() / maximum[f]) for f in range(8) if dense[:, f].any()), reverse=True)[:k]
    np.testing.assert_allclose([a.strength for a in trace.top(k)], best)
    for a in trace.top(k):
        assert a.value == dense[a.position, a.feature.index] == dense[:, a.feature.index].max()
        assert a.position == dense[:, a.feature.index].argmax()  # of equal places the first


def test_tables_show_strength_and_raw_and_escape():
    hostile = "<img src=x onerror=alert(1)>"
    trace = make(tokens=(Token(2, hostile, b"x", 0, 1), *make().tokens[1:]))
    dense = np.zeros((7, 6), np.float32)
    dense[0, 4], dense[1, 0] = 5, 6
    top = Trace(trace.tokens, {RES: SparseActs.from_dense(dense)}, make().maxima).top()
    assert hostile not in top._repr_html_() and "&lt;img" in top._repr_html_()
    head, first, second = repr(top).splitlines()
    assert head.split() == ["feature", "strength", "raw", "position", "token"]
    assert first.split()[:4] == ["res.1/0", "0.50", "6", "1"]
    assert second.split()[:3] == ["res.1/4", "?", "5"]  # unknown, and said so
    assert repr(make().top(token=0)).split() == head.split()  # an empty table is a table


# pandas


def test_to_pandas_has_a_row_per_activation():
    trace = make()
    frame = trace.to_pandas()
    assert list(frame.columns) == ["position", "token", "site", "feature", "index", "value", "strength"]
    assert len(frame) == sum(acts.nnz for acts in trace.acts.values())
    row = frame[(frame.feature == "res.1/3") & (frame.position == 6)].iloc[0]
    assert (row.token, row.site, row["index"], row.value, row.strength) == (" Paris", "res.1", 3, 8, 1)
    assert frame[frame.feature == "res.1/4"].strength.isna().all()
    assert (frame[frame.feature == "res.1/0"]["index"] == 0).all()
    np.testing.assert_array_equal(frame[frame.site == "res.1"].value.sum(), trace["res.1"].to_dense().sum())


def test_a_trace_without_sites_is_a_trace(tmp_path):
    trace = make(acts={}, maxima={}, guesses=None)
    assert trace.sites == () and "no open site" in repr(trace)
    assert trace.top() == () and trace.to_pandas().empty and len(trace.to_pandas().columns) == 7
    assert "none" in refused("site-not-open", lambda: trace["res.1"])
    same(trace, Trace.load(trace.save(tmp_path / "t")))


# files


def test_what_is_saved_is_what_is_loaded(tmp_path):
    trace = make()
    path = trace.save(tmp_path / "a.safetensors")
    assert path == tmp_path / "a.safetensors"
    same(trace, Trace.load(path))
    same(trace, Trace.load(str(path)))
    same(make(guesses=None), Trace.load(make(guesses=None).save(path)))


def test_a_reading_survives_its_file(tiny_loupe, tmp_path):
    trace = tiny_loupe.read("The 🦜 of\r\n\tParis\0 ▁ is", guesses=3)
    same(trace, Trace.load(trace.save(tmp_path / "t")))
    assert names(Trace.load(tmp_path / "t").top(20)) == names(trace.top(20))


def test_a_missing_file_is_refused(tmp_path):
    refused("file-unreadable", lambda: Trace.load(tmp_path / "none"))
    refused("file-unreadable", lambda: Trace.load(tmp_path))


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "t"
    for content in (
        b"",
        b"{}",
        b"\x80\x04N.",
        b"PK\x03\x04",
        b"\0" * 100,
        b"\xff" * 100,
        json.dumps({"format": 1}).encode(),
    ):
        path.write_bytes(content)
        refused("file-unreadable", lambda: Trace.load(path))
    save_file({"a": np.zeros(3)}, path)  # somebody else's safetensors
    refused("file-unreadable", lambda: Trace.load(path))


def test_a_truncated_file_is_refused(tmp_path):
    path = make().save(tmp_path / "t")
    data = path.read_bytes()
    for keep in (1, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        refused("file-unreadable", lambda: Trace.load(path))


def rewrite(path, change_head=lambda head: head, change_arrays=lambda arrays: arrays):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="np") as file:
        head = json.loads(file.metadata()["gemloupe.trace"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    head, arrays = change_head(head), change_arrays(arrays)
    save_file(arrays, path, metadata={"gemloupe.trace": head if isinstance(head, str) else json.dumps(head)})
    return path


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    path = rewrite(make().save(tmp_path / "t"), lambda head: head | {"format": 2})
    message = refused("scope-newer", lambda: Trace.load(path))
    assert "format 2" in message and "Upgrade" in message


def drop(name):
    return lambda mapping: {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        *[drop(name) for name in ("format", "tokens", "sites", "guesses", "about")],
        *[lambda head, bad=bad: bad for bad in ("", "{", "[]", "3", "null", "[" * 100_000)],
        *[lambda head, bad=bad: head | {"tokens": bad} for bad in ([], 3, [[1, 2]], [[1, "a", "zz", 0, 1, False]], {})],
        *[lambda head, bad=bad: head | {"sites": bad} for bad in ([], 3, {"res.1": 7}, {"res.9": 6}, {"x": 6}, None)],
        *[lambda head, bad=bad: head | {"guesses": bad} for bad in (3, [3], [[[1]]])],
        *[lambda head, bad=bad: head | {"about": bad} for bad in (3, "ab", [1])],
        *[lambda head, bad=bad: head | {"format": bad} for bad in ("1", None, [])],
    ],
)
def test_damaged_heads_are_refused(tmp_path, change):
    path = rewrite(make().save(tmp_path / "t"), change)
    assert str(path) in refused("file-unreadable", lambda: Trace.load(path))


@pytest.mark.parametrize(
    "change",
    [
        drop("res.1/indptr"),
        drop("res.1/maxima"),
        lambda a: a | {"res.1/indptr": a["res.1/indptr"][:-1].copy()},
        lambda a: a | {"res.1/indices": a["res.1/indices"][::-1].copy()},
        lambda a: a | {"res.1/values": -a["res.1/values"]},
        lambda a: a | {"res.1/values": a["res.1/values"] * np.float32("nan")},
        lambda a: a | {"res.1/values": a["res.1/values"][:-1].copy()},
        lambda a: a | {"res.1/maxima": a["res.1/maxima"][:-1].copy()},
        lambda a: a | {"res.1/indptr": np.zeros((), np.uint32)},
    ],
)
def test_damaged_arrays_are_refused(tmp_path, change):
    refused("file-unreadable", lambda: Trace.load(rewrite(make().save(tmp_path / "t"), change_arrays=change)))


def test_no_flipped_byte_gives_anything_but_a_trace_or_a_refusal(tmp_path):
    path, random = make().save(tmp_path / "t"), np.random.default_rng(0)
    data = path.read_bytes()
    for _ in range(300):
        bad = bytearray(data)
        for place in random.integers(0, len(bad), 3):
            bad[place] = random.integers(0, 256)
        path.write_bytes(bad)
        with contextlib.suppress(Refusal):
            Trace.load(path).top()
