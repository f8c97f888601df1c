"""The script that trains a whole set on one device, here on the CPU with a tiny model: it ends, goes on, and comes back
in pieces."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gemloupe.load.scope import Scope
from tiny import tiny_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_on_gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_on_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_on_gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_on_gpu"]


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """(work folder, arguments of the training, exit statuses of its two calls)"""
    root = tmp_path_factory.mktemp("gpu")
    model = tiny_model("gemma3", root / "model", layers=2)
    draw = np.random.default_rng(0)
    words = [f"{one}{other}" for one in ("wa", "ter", "king", "light", "on") for other in ("s", "ed", "ing", "er")]
    lines = [
        json.dumps({"text": " ".join(draw.choice(words, 60)), "lang": ("en", "de")[number % 2]})
        for number in range(300)
    ]
    (root / "texts.jsonl").write_text("\n".join(lines))
    corpus = str(root / "corpus.npz")
    torch.set_num_threads(1)
    assert not script.main(
        ["pack", corpus, str(root / "texts.jsonl"), "--model", str(model), "--context", "33", "--label", "lang"]
    )
    given = [
        "train", str(root / "work"), corpus, "--model", str(model), "--device", "cpu", "--dtype", "float32",
        "--minutes", "3", "--width-res", "48", "--width-mlp", "40", "--width-att", "40", "--wide", "96", "--l0", "6",
        "--sites", "res,mlp.0,att.1",
        "--curve", "res.1", "--curve-l0", "3,12", "--epochs", "1", "--batch", "64", "--model-batch", "16",
        "--gigabytes", "0.002", "--contexts", "6", "--loss-contexts", "3", "--stack", "3", "--passes", "2",
        "--keep-every", "2", "--label-sites", "res.1", "--label-contexts", "4",
    ]  # fmt: skip
    return root / "work", given, [script.main([*given, "--stop-after", "0"]), script.main(given)]


def test_it_stops_when_told_and_goes_on_to_the_end(trained):
    work, _, statuses = trained
    assert statuses == [3, 0]
    plan = json.loads((work / "plan.json").read_text())
    assert plan["parts"] > 1
    sets = {folder.name for folder in (work / "result").iterdir() if folder.is_dir()}
    assert sets == {"main", "wide", "l0-3", "l0-12"}
    main = Scope.open(work / "result" / "main")
    assert [str(site) for site in main.sites] == ["mlp.0", "res.0", "att.1", "res.1"]
    assert {main.width(site) for site in main.sites} == {48, 40}
    assert Scope.open(work / "result" / "wide").width("res.1") == 96
    assert main.stats("res.0").promotes.shape == (48, 10)
    assert main.facts("res.1")["train_tokens"] > 0.5 * 32 * plan["contexts"]


def test_what_was_measured_is_in_the_manifest_and_in_a_file(trained):
    work, _, _ = trained
    figures = json.loads((work / "result" / "evaluation.json").read_text())
    by_label = figures.pop("by label")["res.1"]
    assert set(by_label) == {"en", "de"} and by_label["en"]["contexts"] == 4
    for name, sites in figures.items():
        scope = Scope.open(work / "result" / name)
        for site, one in sites.items():
            assert one["l0"] > 0 and np.isfinite(one["delta_loss_median"])
            assert scope.facts(site)["l0"] == pytest.approx(one["l0"], abs=1e-3)
    assert figures["l0-3"]["res.1"]["l0"] < figures["l0-12"]["res.1"]["l0"]


def test_a_finished_training_is_not_done_again_and_another_is_refused(script, trained, capsys):
    work, given, _ = trained
    before = {file: file.stat().st_mtime_ns for file in work.glob("checkpoints-*/**/*") if file.is_file()}
    assert before
    assert script.main(given) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(SystemExit, match="targets differs"):
        script.main([*given, "--seed", "5"])


def test_a_stopped_training_ends_as_an_unbroken_one(script, trained, tmp_path):
    work, given, _ = trained
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "plan.json").write_bytes((work / "plan.json").read_bytes())  # times differ, and so would what fits
    assert script.main(["train", str(whole), *given[2:]]) == 0
    for site in ("res.1", "mlp.0"):
        ours, theirs = (Scope.open(one / "result" / "main") for one in (work, whole))
        assert ours.digest(site) == theirs.digest(site)


def test_saes_are_trained_on_from_where_they_are(script, trained, tmp_path):
    work, given, _ = trained
    begun = Scope.open(work / "result" / "main")
    on = ["train", str(tmp_path / "on"), *given[2:], "--start", str(begun.folder), "--sites", "res", "--wide", "0"]
    assert script.main([*on, "--curve-l0", "", "--slower", "0.1", "--passes", "1"]) == 0
    after = Scope.open(tmp_path / "on" / "result" / "main")
    for site in ("res.0", "res.1"):
        before, now = (torch.nn.functional.normalize(scope.load(site).decoder, dim=1) for scope in (begun, after))
        assert begun.digest(site) != after.digest(site)
        assert (now @ before.T).argmax(1).eq(torch.arange(len(now))).float().mean() > 0.9


def test_the_model_writes_a_corpus(script, trained, tmp_path, monkeypatch):
    _, given, _ = trained
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    options = ["--model", given[given.index("--model") + 1], "--device", "cpu", "--dtype", "float32", "--context", "17"]
    for name in ("one.npz", "two.npz"):
        script.main(["write", str(tmp_path / name), *options, "--rows", "60", "--batches", "1", "--one-in", "4"])
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert one["train"].shape[1] == 17 and len(one["train"]) + len(one["held_out"]) == 60
        assert len(one["labels"]) == len(one["held_out"]) > 0
        assert (one["train"] == two["train"]).all()
        assert len(np.unique(one["train"][:, 1:5], axis=0)) > 20
    train, test, labels = script.corpora([str(tmp_path / "one.npz")] * 2)
    assert len(train) + len(test) == 120 and len(test) == len(labels)


def test_too_little_time_or_memory_is_said(script, trained, tmp_path):
    _, given, _ = trained
    for name, value in (("--minutes", "0.00001"), ("--gigabytes", "0.00001")):
        with pytest.raises(SystemExit, match="are needed"):
            script.main(["train", str(tmp_path / name), *given[2:], name, value])


def test_pieces_come_together_again(script, trained, tmp_path):
    work, _, _ = trained
    out, result = tmp_path / "out", work / "result"
    given = ["pieces", str(result), str(out), "--megabytes", "0.02"]
    script.main([*given, "--first", "0", "--count", "2"])
    assert len(list(out.glob("piece-*"))) == 2
    with pytest.raises(SystemExit, match="piece-002 is missing"):
        script.main(["join", str(out), str(tmp_path / "back")])
    script.main([*given, "--first", "2"])  # the rest, cut from the same tar
    pieces = sorted(out.glob("piece-*"))
    assert len(pieces) > 3 and all(piece.stat().st_size <= 0.02 * 2**20 for piece in pieces)
    script.main(["join", str(out), str(tmp_path / "back")])
    files = sorted(file.relative_to(result) for file in result.rglob("*") if file.is_file())
    assert files == sorted(
        file.relative_to(tmp_path / "back") for file in (tmp_path / "back").rglob("*") if file.is_file()
    )
    assert all((result / file).read_bytes() == (tmp_path / "back" / file).read_bytes() for file in files)
    broken = bytearray(pieces[1].read_bytes())
    broken[7] ^= 1
    pieces[1].write_bytes(broken)
    with pytest.raises(SystemExit, match="digest differs"):
        script.main(["join", str(out), str(tmp_path / "again")])
