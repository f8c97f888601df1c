"""Everything a person may give by mistake: refused in a sentence that names it, and the next request works.

Damaged, foreign and pickled SAE files are in test_scope.py; sites and features by name in test_vocabulary.py.
"""

import pickle
import re

import numpy as np
import pandas
import pytest
import torch
from conftest import SCOPE_WIDTH, tiny_scope
from gemloupe.errors import Refusal
from tiny import CONTEXT, VOCABULARY, tiny_model


@pytest.fixture
def loupe(tiny3):
    """A loupe that must still work after whatever the test gave it."""
    yield tiny3
    assert tiny3.read("The cat").top(1)


def refused(code, run):
    with pytest.raises(Refusal) as caught:
        run()
    message = str(caught.value)
    assert caught.value.code == code, message
    assert "\n" not in message and not re.search(r"{\w+(!r)?}", message)
    return message


WAYS = {
    "read": lambda loupe, given: loupe.read(given),
    "generate": lambda loupe, given: loupe.generate(given),
    "heatmap": lambda loupe, given: loupe.heatmap(given),
    "table": lambda loupe, given: loupe.table(given),
}


@pytest.fixture(params=WAYS)
def give(request, loupe):
    return lambda given: WAYS[request.param](loupe, given)


# ---- nothing


@pytest.mark.parametrize("given", ["", [], (), np.array([], int), torch.tensor([], dtype=torch.long)], ids=repr)
def test_nothing_is_refused(give, given):
    assert "empty" in refused("text-empty", lambda: give(given))


@pytest.mark.parametrize("given", [[2], [2, 2], [2, 5, 6], [1], np.array([2])], ids=repr)
def test_only_special_tokens_are_refused(give, given):
    message = refused("text-only-special", lambda: give(given))
    assert "special" in message and ("<bos>" in message)


def test_whitespace_is_something(loupe):
    for text in (" ", "\n", "\t", "\0", "\u200b", "\ufeff"):
        assert loupe.read(text).text == text


# ---- too much


def ids(count):
    """So many token ids, BOS not among them."""
    return [300 + n % 100 for n in range(count)]


def test_the_longest_text_is_read_and_one_token_more_is_refused(give, loupe):
    assert len(loupe.read(ids(CONTEXT - 1))) == CONTEXT
    message = refused("text-too-long", lambda: give(ids(CONTEXT)))
    assert str(CONTEXT + 1) in message and str(CONTEXT) in message and "by 1 token." in message


def test_a_long_text_is_refused_with_both_counts(loupe):
    text = "The cat sat. " * 5000
    count = len(loupe.engine.loaded.tokenizer(text)["input_ids"])
    message = refused("text-too-long", lambda: loupe.read(text))
    assert str(count) in message and f"{count - CONTEXT} tokens." in message


def test_no_room_for_what_would_be_generated(loupe):
    full = ids(CONTEXT - 1)
    assert str(CONTEXT + 1) in refused("text-too-long", lambda: loupe.generate(full, max_new_tokens=1))
    assert loupe.generate(full[:-1], max_new_tokens=1).tokens


# ---- not text


@pytest.mark.parametrize(
    "given",
    [0, 7, 1.5, float("nan"), True, None, b"bytes", bytearray(b"b"), memoryview(b"b"), {"role": "user"}, {}, {1, 2},
     object(), pandas.NA, iter("abc"), np.array(3), np.float32(1), torch.tensor(3), str, ...],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_is_not_text_is_refused_by_its_type(give, given):
    message = refused("text-not-text", lambda: give(given))
    assert message.startswith("Cannot read a ")


@pytest.mark.parametrize("given", ["\ud800", "a\udfff", "The \ud83d cat"])
def test_lone_surrogates_are_refused_by_their_place(give, given):
    message = refused("text-surrogate", lambda: give(given))
    at = next(i for i, char in enumerate(given) if "\ud800" <= char <= "\udfff")
    assert f"Character {at} " in message and f"U+{ord(given[at]):04X}" in message


def test_surrogates_in_a_chat_are_refused(give):
    refused("text-surrogate", lambda: give([{"role": "user", "content": "\ud800"}]))


@pytest.mark.parametrize(
    "bad", [-1, VOCABULARY, 2**31, 2**70, True, 1.0, 1.5, float("nan"), "7", "The", None, b"x", [3]], ids=repr
)
def test_ids_outside_the_vocabulary_are_refused_by_their_place(give, bad):
    message = refused("token-id-unknown", lambda: give([300, 301, bad]))
    assert "position 2" in message and f"0 to {VOCABULARY - 1}" in message


@pytest.mark.parametrize(
    "given", [np.array([1.5]), np.array([[300, 301]]), torch.tensor([[300]]), torch.tensor([0.5])], ids=repr
)
def test_arrays_that_are_no_ids_are_refused(give, given):
    refused("token-id-unknown", lambda: give(given))


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": 3, "content": "x"}],
        [{"role": "user", "content": "x"}, "y"],
        [{"role": "user", "content": "x"}, {}],
    ],
    ids=repr,
)
def test_chats_that_are_none_are_refused(give, messages):
    message = refused("chat-unreadable", lambda: give(messages))
    assert f"message {len(messages) - 1} is" in message


# ---- not there


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("res.2/-1", "feature-unreadable"),
        ("res.2/true", "feature-unreadable"),
        ("res.2/1.5", "feature-unreadable"),
        ("res.2", "feature-unreadable"),
        (True, "feature-unreadable"),
        (None, "feature-unreadable"),
        (f"res.2/{SCOPE_WIDTH}", "feature-out-of-range"),
        (f"res.2/{2**31}", "feature-out-of-range"),
        ("res.3/0", "site-not-open"),
        ("res.99/0", "site-not-open"),
    ],
)
def test_features_that_are_not_there_are_refused(loupe, given, code):
    message = refused(code, lambda: loupe.feature(given))
    if code == "feature-out-of-range":
        assert f"0 to {SCOPE_WIDTH - 1}" in message
    if code == "site-not-open":
        assert "res.0, att.1, mlp.1, transcoder.2, res.2" in message


@pytest.mark.parametrize(
    ("sites", "code"),
    [
        (["res.3"], "site-not-open"),
        ("res.3", "site-not-open"),
        (["res.2", "mlp.0"], "site-not-open"),
        (["layer 2"], "site-unreadable"),
        ([2], "site-unreadable"),
    ],
)
def test_sites_that_are_not_open_are_refused(loupe, sites, code):
    refused(code, lambda: loupe.read("The cat", sites=sites))


def test_one_site_may_be_given_alone(loupe):
    assert list(map(str, loupe.read("The cat", sites="res.2").acts)) == ["res.2"]
    assert list(map(str, loupe.read("The cat", sites=loupe.sites[0]).acts)) == ["res.0"]


def test_an_sae_that_is_not_open_is_refused(loupe):
    refused("site-not-open", lambda: loupe.sae("res.3"))
    refused("site-unreadable", lambda: loupe.sae("res"))


def test_the_doors_need_the_weights_here(loupe):
    from gemloupe.loupe import Loupe

    class Elsewhere:
        def describe(self):
            return loupe.about

    away = Loupe(Elsewhere())
    refused("not-local", lambda: away.bridge)
    refused("not-local", lambda: away.sae("res.2"))


# ---- scopes, at the door (their insides are in test_scope.py)


def test_a_scope_of_another_model_is_refused_before_anything_is_read(tiny_folders):
    import gemloupe as gl

    message = refused(
        "scope-other-model", lambda: gl.open(tiny_folders["gemma2"][0], scope=tiny_folders["gemma3"][1], device="cpu")
    )
    assert "gemma2" in message and "gemma3" in message


def test_a_scope_of_a_model_of_another_depth_is_refused(tiny_folders, tmp_path):
    import gemloupe as gl

    shallow = tiny_model("gemma3", tmp_path / "shallow", layers=2)
    refused("scope-other-model", lambda: gl.open(shallow, scope=tiny_folders["gemma3"][1], device="cpu"))


def test_no_scope_and_pickled_scopes_are_refused_before_the_model_is_opened(tmp_path):
    import gemloupe as gl

    nowhere = tmp_path / "model that is not looked for"
    refused("scope-not-found", lambda: gl.open(nowhere, scope=tmp_path / "none"))
    (tmp_path / "sae.pt").write_bytes(pickle.dumps({"W_enc": 1}))
    refused("scope-pickled", lambda: gl.open(nowhere, scope=tmp_path / "sae.pt"))


def test_an_sae_damaged_after_opening_is_refused_at_the_reading(tiny_folders, tmp_path):
    """SAEs are read when they are first needed; a fault then is an error of that request only."""
    import gemloupe as gl
    from gemloupe.load.model import load_model

    model = tiny_folders["gemma3"][0]
    scope = tiny_scope(load_model(model, device="cpu"), tmp_path / "scope")
    with gl.open(model, scope=scope, device="cpu") as loupe:
        file = scope / "res.2" / "sae_int8.safetensors.zlib"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert str(file) in refused("scope-damaged", lambda: loupe.read("The cat"))
        assert loupe.read("The cat", sites=["res.0", "att.1"]).top(1)
