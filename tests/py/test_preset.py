"""Presets: what a run was made with is written down, and said where it differs, by the engine and the code itself."""

import json
import re
import shutil
import warnings

import gemloupe as gl
import numpy as np
import pytest
from conftest import tiny_scope
from gemloupe.load.model import STAMP
from gemloupe.study.preset import Preset

PROMPT = "The City of Light is"
SHA256 = re.compile("[0-9a-f]{64}")


def edits_for(loupe):
    vector = np.linspace(-1, 1, loupe.engine.direction(gl.clamp("res.2/1", 1).feature).size, dtype=np.float32)
    condition = gl.when("res.0/2", above=0.1)
    return [
        gl.clamp("res.2/1", 1.5, where="generated"),
        gl.add("att.1/3", 0.5, when=condition),
        gl.add_vector("res.0", vector, 0.25, specials=True),
    ]


def stamped(model, folder, digest):
    """A copy of a model's folder that says which file it was converted from."""
    shutil.copytree(model, folder)
    (folder / STAMP).write_text(json.dumps({"source": digest}))
    return folder


@pytest.fixture(scope="module")
def home(tiny_folders, tmp_path_factory):
    """The loupe the run is made with."""
    model, scope = tiny_folders["gemma3"]
    with gl.open(stamped(model, tmp_path_factory.mktemp("a") / "tiny", "a" * 64), scope=scope, device="cpu") as loupe:
        yield loupe


@pytest.fixture
def other_scope(home, tmp_path):
    """The same model, with other SAEs of the same name."""
    folder = tiny_scope(home.engine.loaded, tmp_path / "scope", seed=9)
    with gl.open(home.engine.loaded.folder, scope=folder, device="cpu") as loupe:
        yield loupe


@pytest.fixture
def other_model(tiny_folders, tmp_path):
    """A model of the same name from another file, with the same SAEs."""
    model, scope = tiny_folders["gemma3"]
    with gl.open(stamped(model, tmp_path / "tiny", "b" * 64), scope=scope, device="cpu") as loupe:
        yield loupe


@pytest.fixture
def desk(home):
    made = home.steer(PROMPT, edits_for(home), max_new_tokens=5, temperature=0.9, seed=4, run=False)
    yield made
    made.close()


def test_it_names_model_and_saes_by_their_digests(desk, home):
    made_with = desk.preset.made_with
    assert made_with["model_digest"] == "a" * 64
    assert set(made_with["sae_digests"]) == {str(site) for site in home.sites}
    assert all(SHA256.fullmatch(digest) for digest in made_with["sae_digests"].values())
    assert len(set(made_with["sae_digests"].values())) == len(home.sites)


def test_a_saved_run_is_the_same_run(desk, home, tmp_path):
    path = desk.save(tmp_path / "run.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = home.steer(Preset.load(path))
    assert again.notes == [] and again.preset == desk.preset
    desk.run()
    one, two = desk.wait(30), again.wait(30)
    assert one.tokens == two.tokens and one.logprobs == two.logprobs and one.edits == two.edits
    assert one.text and one.logprobs != desk.default.logprobs
    again.close()


def test_other_saes_are_said_and_the_run_still_opens(desk, other_scope, tmp_path):
    path = desk.save(tmp_path / "run.json")
    with pytest.warns(UserWarning, match="when this run was saved"):
        again = other_scope.steer(Preset.load(path), run=False)
    # only sites that are edited, each by the digests of both sides
    edited = sorted({str(edit.site) for edit in desk.edits})
    assert [note.split(" is ")[0] for note in again.notes] == [f"The SAE at {site}" for site in edited]
    ours, theirs = other_scope.about.about["sae_digests"], desk.preset.made_with["sae_digests"]
    for site, note in zip(edited, again.notes, strict=True):
        assert ours[site] != theirs[site] and ours[site][:12] in note and theirs[site][:12] in note
    assert again.edits == desk.edits
    again.close()


def test_another_model_is_said(desk, other_model):
    with pytest.warns(UserWarning, match="The model file is bbbbbbbbbbbb here, and was aaaaaaaaaaaa"):
        again = other_model.steer(desk.preset, run=False)
    assert len(again.notes) == 1  # the SAEs are the same
    again.close()


def test_the_copied_cell_reproduces_the_run(desk, home, monkeypatch):
    """As a notebook would run it, with `gl.open` finding the same model and SAEs."""
    opened = []
    monkeypatch.setattr(gl, "open", lambda *given, **options: opened.append((given, options)) or home)
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(desk.code(), made)
    desk.run()
    one, two = desk.wait(30), made["desk"].wait(30)
    assert one.tokens == two.tokens and one.logprobs == two.logprobs and two.edits == tuple(desk.edits)
    assert made["desk"].preset == desk.preset and len(opened) == 1
    made["desk"].close()


def test_the_copied_cell_says_what_is_different(desk, other_scope, monkeypatch):
    monkeypatch.setattr(gl, "open", lambda *given, **options: other_scope)
    made = {}
    with pytest.warns(UserWarning, match=r"The SAE at att\.1 is"):
        exec(desk.code(), made)
    assert len(made["desk"].notes) == 3
    made["desk"].close()


def test_a_tampered_digest_is_said(desk, home, tmp_path):
    path = desk.save(tmp_path / "run.json")
    whole = json.loads(path.read_text())
    whole["made_with"]["model_digest"] = "0" * 64
    path.write_text(json.dumps(whole))
    (note,) = Preset.load(path).differences(home.about.about)
    assert note.startswith("The model file is") and "000000000000" in note


def test_what_is_not_known_is_not_compared(desk):
    assert desk.preset.differences({}) == []
    assert Preset(PROMPT, desk.edits).differences(desk._made_by) == []
