"""Labels, notes and stars in their file: kept, ranked, found again, shared by processes, never lost."""

import json
import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import gemloupe
import numpy as np
import pytest
from gemloupe.evidence import Example, FeatureEvidence
from gemloupe.feature import FeatureId
from gemloupe.label import SOURCES, Label
from gemloupe.site import Site
from gemloupe.study.automatic import automatic, automatic_rows, peaks, read_fires, tokens_of, write_fires
from gemloupe.study.index.build import build
from gemloupe.study.labels import CURATED, Known, Labels, fill, labels_of
from refusal import refused

SHIPPED = Path(gemloupe.__file__).parent / "scopes" / "gemma-3-270m"


@pytest.fixture
def labels(tmp_path):
    with_widths = {Site.of(name): Known(1000, "a" * 64) for name in ("res.5", "res.12", "mlp.9")}
    found = Labels.open(tmp_path / "labels.sqlite", saes=with_widths)
    yield found
    found.close()


def example(tokens, peak, value=5.0):
    acts = np.zeros(len(tokens), np.float32)
    acts[peak] = value
    return Example(tuple(tokens), tuple(range(len(tokens))), acts, peak, value, 0, peak, True)


def evidence(feature, *top):
    none = np.zeros(0)
    return FeatureEvidence(FeatureId.of(feature), 1000, len(top), 5.0, 2.0, none, none, tuple(top), (), (), (), "mine")


# ---- what is kept


def test_labels_come_best_first_and_keep_their_source(labels):
    feature = FeatureId.of("res.12/834")
    labels.put_automatic(feature.site, "1", [(834, "on “ dog”", "dog")], "counts")
    labels.keep(Label(feature, "pets", "explained", 0.8, "2025-01-02T00:00:00Z", "model at host"))
    labels.put_curated("1", {feature: "barking", FeatureId.of("res.16/1"): "of a site that is not open"})
    labels.keep(Label(feature, "animals", "Neuronpedia", 0.4, "", "gpt"))
    labels.keep(Label(feature, "dogs", "Neuronpedia", 0.9, "", "other"))
    labels.set(feature, "  my\n dogs ")
    found = labels.of("res.12/834")
    assert [(one.source, one.text) for one in found] == [
        ("user", "my dogs"),
        ("Neuronpedia", "dogs"),
        ("Neuronpedia", "animals"),
        ("curated", "barking"),
        ("explained", "pets"),
        ("automatic", "on “ dog”"),
    ]
    assert {one.source for one in found} == set(SOURCES)
    assert found[4].score == 0.8 and found[4].by == "model at host" and found[4].made == "2025-01-02T00:00:00Z"
    assert all(one.feature == feature for one in found) and labels.of("res.12/833") == ()
    labels.set(feature, "mine")
    assert [one.text for one in labels.of(feature) if one.source == "user"] == ["mine"]
    assert labels.search("my") == (), "a label that was replaced is not found"
    labels.remove(feature)
    assert labels.of(feature)[0].source == "Neuronpedia"
    assert labels.best([feature, "res.5/0"]) == {feature: labels.of(feature)[0]}


def test_labels_that_came_with_a_scope_are_replaced_by_the_next_edition(labels):
    feature = FeatureId.of("res.12/834")
    labels.set(feature, "my dogs")
    labels.put_curated("1", {feature: "barking", FeatureId.of("mlp.9/0"): "zero"})
    labels.put_curated("1", {feature: "of the same edition, so it is not even looked at"})
    assert [one.text for one in labels.of(feature)] == ["my dogs", "barking"] and labels.of("mlp.9/0")[0].text == "zero"
    labels.put_curated("2", {feature: "howling", FeatureId.of("mlp.9/0"): "zero"})
    assert [one.text for one in labels.of(feature)] == ["my dogs", "howling"]
    assert not labels.search("barking") and labels.search("howling")[0].feature == feature


def test_the_built_in_features_that_were_read_have_names():
    texts = json.loads((SHIPPED / CURATED).read_text())
    widths = {
        str(site): known["width"] for site, known in json.loads((SHIPPED / "manifest.json").read_text())["saes"].items()
    }
    assert len(texts) >= 100
    for name, text in texts.items():
        feature = FeatureId.of(name)
        assert feature.index < widths[str(feature.site)] and text == text.strip() and 0 < len(text) < 80, name
    with gemloupe.open() as loupe:
        assert loupe.labels.of("res.12/1401")[0] == Label(
            FeatureId.of("res.12/1401"),
            "names of cities",
            "curated",
            None,
            loupe.labels.of("res.12/1401")[0].made,
            "gemloupe",
        )


def test_facts_carry_the_label_that_someone_gave(tiny3):
    assert tiny3.feature("res.2/0").label == ""
    tiny3.labels.set("res.2/0", "zero <b>")
    assert tiny3.feature("res.2/0").label == "zero <b>"
    assert tiny3.engine.facts((FeatureId.of("res.2/0"),))[0].label == ""
    shown = tiny3.heatmap("a text")._facts("res.2", [0, 1])
    assert shown["0"]["label"] == "zero <b>" and "label" not in shown["1"]
    assert set(tiny3.labels.named(["res.2/0", "res.2/1"])) == {FeatureId.of("res.2/0")}
    tiny3.labels.remove("res.2/0")
    assert tiny3.feature("res.2/0").label == ""


def test_the_same_writer_replaces_its_label(labels):
    for text in ("one", "two"):
        labels.keep(Label(FeatureId.of("res.5/1"), text, "explained", None, "", "model"))
    assert [one.text for one in labels.of("res.5/1")] == ["two"]


def test_notes_and_stars_survive_a_new_index(labels):
    feature = FeatureId.of("mlp.9/17")
    labels.note(feature, "fires on code\nlook again")
    labels.star(feature)
    labels.star("res.5/3")
    labels.star("res.5/3", False)
    labels.set(feature, "code")
    for stamp in ("first", "second"):
        labels.put_automatic(feature.site, stamp, [(17, f"{stamp} label", "def"), (18, "other", "class")], stamp)
    assert labels.note_of(feature) == "fires on code\nlook again" and labels.starred() == (feature,)
    assert [one.text for one in labels.of(feature)] == ["code", "second label"]
    assert labels.search("first") == () and labels.stamp(feature.site) == "second"
    assert labels.noted() == {feature: "fires on code\nlook again"}
    labels.note(feature, "")
    assert labels.note_of(feature) == "" and labels.noted() == {}


def test_labels_are_those_of_the_same_sae(tmp_path):
    path, site = tmp_path / "l.sqlite", Site.of("res.12")
    Labels.open(path, saes={site: Known(1000, "a" * 64)}).set("res.12/1", "of the first")
    other = Labels.open(path, saes={site: Known(1000, "b" * 64)})
    assert other.of("res.12/1") == () and other.search("first") == ()
    other.set("res.12/1", "of the second")
    assert Labels.open(path, saes={site: Known(1000, "a" * 64)}).of("res.12/1")[0].text == "of the first"
    unknown = Labels.open(path, saes={site: Known(1000)})
    assert unknown.of("res.12/1")[0].text == "of the second", "where the digest is not known, the last one used"


def test_they_are_there_after_opening_again(tmp_path):
    one = Labels.open(tmp_path / "new" / "l.sqlite")
    one.set("res.12/834", "dogs")
    one.close()
    refused("engine-closed", lambda: one.of("res.12/834"))
    assert Labels.open(tmp_path / "new" / "l.sqlite").of("res.12/834")[0].text == "dogs"


# ---- words


TEXTS = {
    "res.5/1": "idioms and sayings",
    "res.5/2": "the idiom 'break a leg'",
    "res.12/3": "idiomatic English",
    "res.12/4": "raining cats and dogs",
    "mlp.9/5": "中文成语和谚语",
    "mlp.9/6": "中国的城市",
    "mlp.9/7": "a leg to stand on; what to break",
    "mlp.9/8": "Café in Zürich",
    "mlp.9/9": "한국어 문장, ภาษาไทย",
}


@pytest.fixture
def worded(labels):
    for feature, text in TEXTS.items():
        labels.set(feature, text)
    return labels


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("idioms", ["res.5/1", "res.5/2"]),
        ("Idiom", ["res.5/1", "res.5/2", "res.12/3"]),
        ("rain dog", ["res.12/4"]),
        ('"break a leg"', ["res.5/2"]),
        ("break leg", ["res.5/2", "mlp.9/7"]),
        ("成语", ["mlp.9/5"]),
        ("语", ["mlp.9/5"]),
        ("中", ["mlp.9/5", "mlp.9/6"]),
        ("中文成语", ["mlp.9/5"]),
        ("城市 中国", ["mlp.9/6"]),
        ("cafe zurich", ["mlp.9/8"]),
        ("국어", ["mlp.9/9"]),
        ("ไทย", ["mlp.9/9"]),
        ("diomat", ["res.12/3"]),
        ("dogs AND nothinglikethis", ["res.5/1", "res.12/4"]),
        ("xylophone", []),
        ("nosuch* NEAR(", []),
    ],
)
def test_words_are_found(worded, query, found):
    assert {str(one.feature) for one in worded.search(query)} == set(found)


def test_many_features_are_asked_for_at_once_and_get_what_each_would(labels):
    sites = [Site.of(name) for name in ("res.5", "res.12", "mlp.9")]
    for site in sites:
        labels.put_automatic(site, "1", [(i, f"on {i}", "x") for i in range(0, 1000, 2)], "counts")
    labels.set("res.5/4", "four")
    labels.keep(Label(FeatureId.of("res.12/999"), "late", "explained", 0.3, "", "model"))
    labels.keep(Label(FeatureId.of("res.12/999"), "better", "explained", 0.9, "", "other"))
    names = [FeatureId(site, i) for site in sites for i in range(1000)]
    found = labels.best(names[::-1] + names)
    assert found == {name: labels.of(name)[0] for name in names if labels.of(name)}
    assert len(found) == 1501 and next(iter(found)) == FeatureId.of("mlp.9/998")
    assert found[FeatureId.of("res.5/4")].text == "four" and found[FeatureId.of("res.12/999")].text == "better"
    assert set(map(str, labels.named(names))) == {"res.5/4", "res.12/999"}
    assert labels.best([]) == {} == labels.named(())


def test_the_best_answer_comes_first(worded):
    worded.put_automatic(Site.of("res.12"), "1", [(50, "on “idioms” · near “English”", "idioms"), (4, "x", "y")], "")
    found = worded.search("idioms")
    assert [str(one.feature) for one in found][:2] == ["res.5/1", "res.5/2"]
    assert found[0].words == ("idioms",) and found[0].label.text == "idioms and sayings" and found[0].complete
    assert len({one.feature for one in found}) == len(found), "each feature once"
    assert [str(one.feature) for one in worded.search("y")] == ["res.12/4"], "tokens of examples are searched"
    assert worded.search("y")[0].label.source == "examples"
    worded.note("res.5/77", "idioms?")
    assert worded.search("idioms")[0].label.source == "note"


def test_a_search_may_be_of_some_sites(worded):
    assert {str(one.feature) for one in worded.search("idiom", sites="res.12")} == {"res.12/3"}
    assert len(worded.search("idiom", sites=["res.12", "res.5"], limit=2)) == 2
    assert "res.7" in refused("site-not-open", lambda: worded.search("idiom", sites=["res.7"]))


def test_a_word_that_everyone_has_is_sampled_from_every_sae(tmp_path):
    sites = [Site("res", layer) for layer in range(30)]
    labels = Labels.open(tmp_path / "many.sqlite", saes={site: Known(200) for site in sites})
    for site in sites:
        labels.put_automatic(site, "1", ((i, f"common word {i}", "") for i in range(200)))
    found = labels.search("common", limit=2000)
    assert {one.feature.site for one in found} == set(sites) and not found[0].complete
    assert labels.search("common 77")[0].label.text == "common word 77"
    assert len(labels.search("77", limit=100)) == 30


@pytest.mark.parametrize("query", ["", "  ", '* ( ) " -', "→ ==", None, 7, "x" * 2000])
def test_a_query_without_words_is_refused(worded, query):
    assert "loupe.search('idioms')" in refused("query-empty", lambda: worded.search(query))


# ---- bad input


@pytest.mark.parametrize("text", ["", " \n", "x" * 501, None, 5, "a\ud800b", "\x00"])
def test_a_label_that_is_none_is_refused(labels, text):
    refused("label-unusable", lambda: labels.set("res.5/1", text))
    assert labels.of("res.5/1") == ()


def test_a_feature_that_is_not_there_is_refused(labels):
    refused("feature-out-of-range", lambda: labels.set("res.5/1000", "x"))
    refused("site-not-open", lambda: labels.of("res.7/1"))
    refused("feature-unreadable", lambda: labels.star("res.5"))
    refused("label-unusable", lambda: labels.note("res.5/1", None))
    refused("label-unusable", lambda: labels.note("res.5/1", "x" * 20_001))
    refused("count-unreadable", lambda: labels.search("x", limit=0))
    refused("index-none", lambda: labels.explain("res.5/1", endpoint="http://localhost", model="m"))


# ---- the file


def test_a_damaged_file_is_set_aside(tmp_path):
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.warns(UserWarning, match="set aside"):
        labels = Labels.open(path)
    (aside,) = tmp_path.glob("l.damaged-*.sqlite")
    assert aside.read_bytes() == b"not a database at all" * 500
    labels.set("res.5/1", "x")
    assert labels.of("res.5/1")[0].text == "x" and len(labels.notes) == 1


def test_the_users_own_words_are_taken_over_from_a_damaged_file(tmp_path):
    path = tmp_path / "l.sqlite"
    labels = Labels.open(path)
    labels.put_automatic(Site.of("res.5"), "1", [(i, f"automatic label {i}", "words") for i in range(3000)])
    labels.set("res.5/1", "my own")
    labels.note("res.5/2", "a note")
    labels.star("res.5/3")
    labels.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'found_idx'").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : page * size] = b"\x77" * size
    path.write_bytes(data)
    labels = Labels.open(path)
    with pytest.warns(UserWarning, match="3 labels, notes and stars"):
        assert [str(one.feature) for one in labels.search("own")] == ["res.5/1"]
    assert labels.note_of("res.5/2") == "a note" and labels.starred() == (FeatureId.of("res.5/3"),)
    assert list(tmp_path.glob("l.damaged-*.sqlite"))


def test_a_file_of_a_newer_gemloupe_is_left_alone(tmp_path):
    path = tmp_path / "l.sqlite"
    Labels.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    refused("scope-newer", lambda: Labels.open(path))
    assert not list(tmp_path.glob("*.damaged*"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch, tiny2):
    (tmp_path / "file").write_text("in the way")
    refused("labels-not-writable", lambda: Labels.open(tmp_path / "file" / "l.sqlite"))
    monkeypatch.setenv("GEMLOUPE_DATA", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="only kept until this loupe is closed"):
        labels = labels_of(tiny2.engine)
    labels.set("res.2/1", "in memory")
    assert labels.of("res.2/1")[0].text == "in memory"


def _write_many(path, start):
    labels = Labels.open(path)
    for i in range(start, start + 40):
        labels.set(f"res.5/{i}", f"label {i}")


def test_two_processes_may_write_at_once(tmp_path):
    path = tmp_path / "l.sqlite"
    started = multiprocessing.get_context("spawn")
    writers = [started.Process(target=_write_many, args=(path, start)) for start in (0, 100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert len(Labels.open(path).search("label", limit=500)) == 120


# ---- Neuronpedia's export


def export(path, *lines):
    about = {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "typeName": "t", "explanationModelName": "m"}
    path.write_text("\n".join(json.dumps(about | {"index": str(i), "description": d}) for i, d in lines))
    return path


def test_neuronpedias_labels_are_taken_over(tmp_path):
    labels = Labels.open(tmp_path / "l.sqlite")
    labels.set("res.20/7", "mine")
    first = export(tmp_path / "a.jsonl", (7, "dogs"), (7, "animals"), (9, "比喻"))
    for _ in range(2):
        assert labels.add_neuronpedia(first) == 3
        assert [one.text for one in labels.of("res.20/7")] == ["mine", "animals", "dogs"]
        assert labels.of("res.20/7")[1].by == "m t"
    assert labels.add_neuronpedia(export(tmp_path / "b.jsonl", (7, "cats"))) == 1
    assert [one.text for one in labels.of("res.20/7")] == ["mine", "cats"]
    assert [str(one.feature) for one in labels.search("比喻")] == ["res.20/9"] and labels.search("animals") == ()


# ---- automatic labels


def test_an_automatic_label_says_what_the_examples_share():
    feature = FeatureId.of("res.5/1")
    top = [example(["I", " live", " in", " Paris", " near", " the", f" museum{'' if i else 's'}"], 3) for i in range(5)]
    label = automatic(feature, [" France", "France", " hotel", "⟨E2⟩"], evidence(feature, *top))
    assert label.source == "automatic" and label.by == "counts over the index mine"
    assert label.text == (
        "on “Paris” · after “in” · before “near” · near “live”, “museum” · promotes “France”, “hotel”"
    )
    assert peaks(evidence(feature, *top)) == ("Paris",)
    assert automatic(feature, [" tea"]).text == "promotes “tea”"
    assert automatic(feature, [" tea"]).by == "what its decoder promotes"
    assert automatic(feature) is None
    assert automatic(feature, [], evidence(feature)).text == "never fired"


def test_an_automatic_label_of_examples_that_share_nothing():
    feature = FeatureId.of("res.5/1")
    top = [example([f"a{i}", f"b{i}", f"c{i}"], 1) for i in range(5)]
    assert automatic(feature, [], evidence(feature, *top)).text == "on many tokens"
    assert "\n" not in automatic(feature, ["\n\n", "x"], evidence(feature, example(["\n", "b"], 0))).text


def test_what_examples_share_may_lie_beside_an_index(tiny2, tmp_path):
    asked = []

    def found(feature):
        asked.append(feature)
        return evidence(feature, example(["a", f" word{feature.index}", "c"], 1))

    site = Site.of("res.2")
    counted = list(automatic_rows(site, 96, tiny2.engine.facts, found))
    assert counted[7][1].startswith("on “word7”") and counted[7][2] == "word7"
    write_fires([(site, 96)], found, tmp_path)
    asked.clear()
    kept = read_fires(tmp_path)
    assert list(kept) == [site] and len(kept[site]) == 96
    again = list(automatic_rows(site, 96, tiny2.engine.facts, found, kept[site]))
    assert [row[:2] for row in again] == [row[:2] for row in counted] and not asked
    assert read_fires(tmp_path / "none") is None
    (tmp_path / "labels.parquet").write_text("damaged")
    assert read_fires(tmp_path) is None


def test_labels_are_filled_once(tiny2, tmp_path):
    labels = labels_of(tiny2.engine)
    labels.path = tmp_path / "l.sqlite"
    labels._forget()
    fill(labels, tiny2.engine, None)
    before = labels.of("res.2/3")
    assert before[0].source == "automatic" and before[0].text.startswith("promotes")
    stamp = labels.stamp(Site.of("res.2"))
    fill(labels, tiny2.engine, None)
    assert labels.of("res.2/3") == before and labels.stamp(Site.of("res.2")) == stamp, "not made again"
    assert labels.of("mlp.1/3") == (), "a site without statistics has none"
    labels.close()


def test_words_of_examples_are_found_in_the_index_in_use(tiny2, tmp_path):
    """Labels are from the larger index; what the examples peak at, from the one that is looked at."""
    large = build(tiny2.engine, [f"the cat number {i} sat" for i in range(40)], tmp_path / "large", length=16)
    small = build(tiny2.engine, ["marmalade and butter for breakfast"] * 3, tmp_path / "small", length=16)
    labels = labels_of(tiny2.engine)
    labels.path = tmp_path / "l.sqlite"
    labels._forget()
    fill(labels, tiny2.engine, large, small)
    site = Site.of("res.2")
    for index, words in enumerate(tokens_of(small, site)):
        feature = FeatureId(site, index)
        expected = peaks(replace(small.evidence(feature), on=()))
        assert {one.casefold() for one in words.split()} == {one.strip().casefold() for one in expected if one.strip()}
    automatic_labels = [labels.of(f"res.2/{index}")[0] for index in range(96)]
    assert {one.by for one in automatic_labels} == {"counts over the index large"}
    feature, word = next(
        (i, text.split()[0]) for i, text in enumerate(tokens_of(small, site)) if text.isascii() and text
    )
    found = [one for one in labels.search(word, limit=1000) if one.feature == FeatureId(site, feature)]
    assert found and word.casefold() in found[0].label.text.casefold()
    stamp = labels.stamp(site)
    fill(labels, tiny2.engine, large, large)
    assert labels.stamp(site) != stamp, "another index is in use"
    labels.close()
