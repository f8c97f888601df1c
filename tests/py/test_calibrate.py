"""Maxima for SAEs that come without: measured on text the model writes, or imported from Neuronpedia's export."""

import gzip
import json
from dataclasses import replace

import gemloupe as gl
import numpy as np
import pytest
from gemloupe.load import neuronpedia
from gemloupe.load.gemma_scope import GemmaScope
from gemloupe.load.scope import ModelFacts
from gemloupe.site import Site
from hubs import HubCache, entry
from huggingface_hub import constants
from refusal import refused

SITE = Site("res", 2)
NAME = "gemma-scope-2b-pt-res-canonical/layer_2/width_16k/canonical"
SOURCE = "gemma-2-2b/2-gemmascope-res-16k"


@pytest.fixture
def opened(tiny_folders, tmp_path, monkeypatch):
    """Opens a tiny model with an SAE laid out as Gemma Scope's, which has no statistics; no network."""
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    one = replace(entry(NAME, width=96, d_in=48), site=SITE)
    assert one.neuronpedia == SOURCE
    HubCache(tmp_path / "hub").add(one)
    scope = GemmaScope("x", ModelFacts("gemma-2-2b", "gemma2", 4, 48, None, 64), {SITE: one})
    monkeypatch.setattr("gemloupe.load.gemma_scope.gemma_scope", lambda *_, **__: scope)
    return lambda: gl.open(tiny_folders["gemma2"][0], scope="gemma-scope-2b-pt-res-canonical", device="cpu")


def test_what_was_calibrated_is_what_reading_the_same_text_gives_and_is_kept(opened, monkeypatch):
    with opened() as loupe:
        assert np.isnan(loupe.engine.maxima(SITE)).all() and loupe.feature("res.2/3").maximum is None
        edit = next(gl.clamp(f"res.2/{index}", 1) for index in range(96))
        assert "loupe.calibrate()" in refused("maximum-unknown", lambda: loupe.generate("The cat", edit))
        asked = []
        generate = loupe.engine.generate
        monkeypatch.setattr(loupe.engine, "generate", lambda request: (asked.append(request), generate(request))[1])
        said = []
        assert loupe.calibrate(tokens=150, seed=3, progress=lambda doing, share: said.append(share)) == (SITE,)
        assert said and all(0 <= share < 1 for share in said)
        most, fired, tokens = np.zeros(96), np.zeros(96), 0
        for request in asked:
            made = generate(request).result()[0]
            ids = [token.id for token in (*made.prompt, *made.tokens)]
            acts = loupe.read(ids)[SITE]
            np.maximum.at(most, acts.indices, acts.values)
            np.add.at(fired, acts.indices, 1)
            tokens += sum(not token.special for token in (*made.prompt, *made.tokens))
        assert tokens >= 150 and (most > 0).any()
        kept = loupe.engine.maxima(SITE)
        np.testing.assert_allclose(kept[most > 0], most[most > 0], rtol=1e-4)
        np.testing.assert_allclose(loupe.engine.stats(SITE).density, fired / tokens, rtol=1e-6)
        assert np.isnan(kept[most == 0]).all(), "what did not fire stays unknown"
        loud = int(np.argmax(most))
        loupe.generate("The cat", gl.clamp(f"res.2/{loud}", 1), max_new_tokens=2)
        [note] = [note for note in loupe.about.notes if "calibrated" in note]
        assert "res.2" in note and f"{tokens:,}" in note and "seed 3" in note and note in repr(loupe)
    with opened() as again:
        np.testing.assert_array_equal(again.engine.maxima(SITE), kept)
        assert note in again.about.notes
        assert again.feature(f"res.2/{loud}").maximum == pytest.approx(most[loud], rel=1e-4)


def test_the_same_seed_measures_the_same_and_another_another(opened):
    with opened() as loupe:
        found = []
        for seed in (1, 1, 2):
            loupe.calibrate("res.2", tokens=60, seed=seed)
            found.append(loupe.engine.maxima(SITE))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2], equal_nan=True)


def test_a_damaged_file_is_measured_again(opened, tmp_path):
    with opened() as loupe:
        loupe.calibrate(tokens=30)
    [file] = (tmp_path / "ours" / "statistics").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with opened() as loupe:
        assert np.isnan(loupe.engine.maxima(SITE)).all()
        assert not any("calibrated" in note for note in loupe.about.notes)
        assert loupe.calibrate(tokens=30) == (SITE,)


def test_an_sae_with_maxima_of_its_own_is_left_alone(tiny_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path))
    model, scope = tiny_folders["gemma2"]
    with gl.open(model, scope=scope, device="cpu") as loupe:
        before = loupe.engine.maxima(SITE).copy()
        assert "res.2" in refused("calibrate-known", lambda: loupe.calibrate("res.2"))
        refused("calibrate-known", lambda: loupe.import_maxima("res.2", tmp_path))
        assert loupe.calibrate(tokens=40) == (Site("mlp", 1),), "the one site of this scope without"
        np.testing.assert_array_equal(loupe.engine.maxima(SITE), before)
        assert np.isfinite(loupe.engine.maxima(Site("mlp", 1))).any()


@pytest.mark.parametrize("tokens", [0, -3, 1.5, "many", None])
def test_a_number_of_tokens_that_is_none_is_refused(opened, tokens):
    with opened() as loupe:
        refused("count-unreadable", lambda: loupe.calibrate(tokens=tokens))
        refused("site-not-open", lambda: loupe.calibrate("res.3"))


# ---- Neuronpedia


def line(index, most, often=0.25, **more):
    about = {"modelId": "gemma-2-2b", "layer": "2-gemmascope-res-16k", "index": str(index)}
    return json.dumps(about | {"maxActApprox": most, "frac_nonzero": often} | more)


def batch(folder, lines, name="batch-0.jsonl.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    data = "\n".join(lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def test_maxima_of_the_export_are_used(opened, tmp_path):
    folder = batch(tmp_path / "features", [line(index, index / 2) for index in range(90)])
    batch(tmp_path / "features", [line(90, 7), line(91, None)], "batch-1.jsonl")
    with opened() as loupe:
        assert loupe.import_maxima("res.2", folder) == 90, "0 is no maximum, and one has none"
        assert loupe.feature("res.2/8").maximum == 4 and loupe.feature("res.2/90").maximum == 7
        assert loupe.feature("res.2/0").maximum is None and loupe.feature("res.2/95").maximum is None
        assert any("Neuronpedia" in note and SOURCE in note for note in loupe.about.notes)
        assert loupe.read("The cat").maxima[SITE][8] == 4
        loupe.generate("The cat", gl.clamp("res.2/8", 1), max_new_tokens=1)
    with opened() as again:
        assert again.feature("res.2/8").maximum == 4


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (line(96, 1), "'96'"),
        (line(-1, 1), "'-1'"),
        (line("x", 1), "'x'"),
        (line(1, -2), "maxActApprox -2"),
        (line(1, float("nan")), "nan"),
        (line(1, "9"), "'9'"),
        (line(1, 1, often=True), "frac_nonzero"),
        (line(1, 1, layer="3-gemmascope-res-16k"), "3-gemmascope-res-16k"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_line_that_cannot_be_right_is_refused_and_nothing_is_used(opened, tmp_path, bad, says):
    folder = batch(tmp_path / "features", [line(0, 1), bad])
    with opened() as loupe:
        message = refused("statistics-unreadable", lambda: loupe.import_maxima("res.2", folder))
        assert says in message and "line 2" in message
        assert np.isnan(loupe.engine.maxima(SITE)).all()


def test_files_without_maxima_are_refused(opened, tmp_path):
    with opened() as loupe:
        refused("statistics-unreadable", lambda: loupe.import_maxima("res.2", tmp_path / "nowhere"))
        (tmp_path / "empty").mkdir()
        refused("statistics-unreadable", lambda: loupe.import_maxima("res.2", tmp_path / "empty"))
        silent = batch(tmp_path / "silent", [line(0, None)])
        assert "maxActApprox" in refused("statistics-unreadable", lambda: loupe.import_maxima("res.2", silent))


def test_they_are_fetched_only_when_asked_and_never_offline(opened, monkeypatch):
    features = gzip.compress(line(5, 3).encode())
    asked = []

    def get(url):
        asked.append(url)
        key = f"v1/{SOURCE}/features/batch-0.jsonl.gz"
        return features if url.endswith(key) else f"<r><Key>{key}</Key></r>".encode()

    monkeypatch.setattr(neuronpedia, "_get", get)
    with opened() as loupe:
        loupe.read("The cat")
        assert "HF_HUB_OFFLINE" in refused("labels-not-fetched", lambda: loupe.import_maxima("res.2"))
        assert not asked
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert loupe.import_maxima("res.2") == 1 and loupe.feature("res.2/5").maximum == 3
        count = len(asked)
        assert loupe.import_maxima("res.2") == 1 and len(asked) == count, "what was fetched is kept"
