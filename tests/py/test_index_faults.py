"""Indexing when things go wrong: killed at any point, a full disk, two at once, text that is none."""

import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from gemloupe.engine.job import ThreadJob
from gemloupe.study.index import Index, build
from gemloupe.study.index.sources import Source
from test_index import LENGTH, TEXTS, refused

SETTINGS = {"length": LENGTH, "shard": 500, "together": 256}


def make(loupe, folder, texts=TEXTS, **options):
    return build.build(loupe.engine, texts, folder, **(SETTINGS | options))


def contents(folder):
    """sha256 of every file, by name; folders by name only."""
    files = sorted(Path(folder).iterdir())
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() if one.is_file() else "" for one in files}


@pytest.fixture(autouse=True)
def one_day(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(scope="module")
def whole(tiny3, tmp_path_factory):
    """The files of a run that nothing disturbed."""
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    folder = tmp_path_factory.mktemp("undisturbed") / "index"
    make(tiny3, folder, name="index")
    return contents(folder)


# ---- killed


@pytest.mark.skipif(os.name != "posix", reason="forks, and kills itself")
def test_killed_at_twenty_points(tiny_folders, tmp_path):
    """The points are steps of the work drawn at random, so that they hit every part of it: passes, parts half written,
    the finishing, the clearing up. What is there in the end is what a run gives that was never killed."""
    model, scope = tiny_folders["gemma3"]
    texts, folder, reference = (tmp_path / name for name in ("texts.json", "index", "reference"))
    texts.write_text(json.dumps(TEXTS))
    script = Path(__file__).parent / "kill_index.py"
    command = [sys.executable, str(script), str(model), str(scope), str(texts)]
    draw, killed = random.Random(0), []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:

        def run(place, steps):
            maker.stdin.write(f"{place} {steps}\n")
            maker.stdin.flush()
            return maker.stdout.readline().strip()

        assert run(reference, 0) == "finished"
        undisturbed = contents(reference)
        while len(killed) < 20:
            steps = draw.randrange(1, 60)
            said = run(folder, steps)
            if said == "killed":
                killed.append(steps)
                assert not (folder / "manifest.json").exists() or contents(folder).items() >= undisturbed.items()
                continue
            assert said == "finished" and contents(folder) == undisturbed
            shutil.rmtree(folder)
        assert run(folder, 0) == "finished"
    assert contents(folder) == undisturbed


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_from_outside(tiny_folders, whole, tmp_path):
    """While the model runs; then `gemloupe index` goes on with it."""
    model, scope = tiny_folders["gemma3"]
    texts, folder = tmp_path / "texts.jsonl", tmp_path / "index"
    texts.write_text("\n".join(json.dumps({"text": one}) for one in TEXTS))
    command = [sys.executable, "-m", "gemloupe.cli", "index", "index", str(texts), "--folder", str(folder)]
    command += ["--model", str(model), "--scope", str(scope), "--device", "cpu", "--passage", str(LENGTH)]
    command += ["--part", "500", "--together", "256"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as one:
        until = time.monotonic() + 120
        while not (folder / "shards" / "000001").exists() and time.monotonic() < until:
            time.sleep(0.005)
        one.kill()
    assert one.returncode == -signal.SIGKILL
    with refused("index-unfinished"):
        Index.open(folder)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and str(folder) in done.stdout, done.stderr
    assert contents(folder) == whole


def test_interrupted_and_continued(tiny3, whole, tmp_path):
    """Ctrl-C in a notebook: the loupe stays usable, and the same call goes on."""
    passed = 0

    def stop(report):
        nonlocal passed
        passed += 1
        if passed == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tiny3, tmp_path / "index", name="index", tell=stop)
    assert tiny3.read("The City of Light").sites
    begun = len(list((tmp_path / "index" / "shards").iterdir()))
    assert begun > 0
    reports = []
    make(tiny3, tmp_path / "index", name="index", tell=reports.append)
    assert contents(tmp_path / "index") == whole
    assert reports[0].tokens > 500, "what was done was done again"


@pytest.mark.parametrize("fault", ["cut", "flipped", "missing", "manifest"])
def test_a_part_that_is_damaged_is_made_again(tiny3, whole, tmp_path, fault):
    folder = tmp_path / "index"

    def stop(report):
        if report.tokens > 1600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tiny3, folder, name="index", tell=stop)
    shards = sorted((folder / "shards").iterdir())
    assert len(shards) >= 3
    file = shards[1] / ("done.json" if fault == "manifest" else "examples.parquet")
    data = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        half = len(data) // 2
        file.write_bytes(
            data[:half] if fault != "flipped" else data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        )
    make(tiny3, folder, name="index")
    assert contents(folder) == whole


def test_a_full_disk_pauses_it(tiny3, whole, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    from gemloupe.study.index import work

    writes, sound = 0, work.write_synced

    def full(file, data):
        nonlocal writes
        writes += 1
        if writes > 9:
            file.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sound(file, data)

    monkeypatch.setattr(work, "write_synced", full)
    with refused("index-paused") as caught:
        make(tiny3, folder, name="index")
    assert str(folder) in str(caught.value) and "space" in str(caught.value)
    assert [place.name for place in (folder / "shards").iterdir()] == ["000000"], "half a part is left over"
    monkeypatch.undo()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    make(tiny3, folder, name="index")
    assert contents(folder) == whole


# ---- two at once, and again


def test_two_at_once(tiny3, whole, tmp_path):
    folder, busy, go = tmp_path / "index", threading.Event(), threading.Event()

    def wait(report):
        busy.set()
        assert go.wait(60)

    first = threading.Thread(target=lambda: make(tiny3, folder, name="index", tell=wait))
    first.start()
    try:
        assert busy.wait(60)
        with refused("index-busy") as caught:
            make(tiny3, folder, name="index")
        assert str(folder) in str(caught.value)
    finally:
        go.set()
        first.join(60)
    assert contents(folder) == whole


def test_again_with_the_same_text_is_there_at_once(tiny3, whole, tmp_path):
    folder = tmp_path / "index"
    make(tiny3, folder, name="index")
    reports = []
    make(tiny3, folder, name="index", tell=reports.append)
    assert [report.doing for report in reports] == ["ready"]
    assert contents(folder) == whole


def test_another_text_under_the_same_name_is_refused(tiny3, tmp_path):
    folder = tmp_path / "index"

    def stop(report):
        if report.tokens > 1100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tiny3, folder, tell=stop)
    for texts in (["Another text.", *TEXTS], TEXTS[:3]):
        with refused("index-other-text"):
            make(tiny3, folder, texts)
    with refused("index-other-plan"):
        make(tiny3, folder, seed=1)
    make(tiny3, folder)
    with refused("index-other-text"):
        make(tiny3, folder, TEXTS[1:])
    with refused("index-other-plan"):
        make(tiny3, folder, length=30)


def test_another_model_under_the_same_name_is_refused(tiny2, tiny3, tmp_path):
    make(tiny3, tmp_path / "index", TEXTS[:5])
    with refused("index-other-model"):
        make(tiny2, tmp_path / "index", TEXTS[:5])


# ---- text


@pytest.mark.parametrize("texts", [[], [""], ["  \n"], [[]], [None], [["a", "b"]], [{"title": "no text"}], [b"bytes"]])
def test_no_text(tiny3, tmp_path, texts):
    with refused("index-no-text"):
        make(tiny3, tmp_path / "index", texts)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("given", [b"bytes", {"text": "x"}, 7, None, pandas.DataFrame({"words": ["x"]})])
def test_what_cannot_be_gone_through(tiny3, tmp_path, given):
    with refused("index-source-unreadable"):
        make(tiny3, tmp_path / "index", given)


def test_a_data_frame_is_its_texts_not_its_columns():
    frame = pandas.DataFrame({"label": [1, 2], "text": ["one two", None]})
    source = Source(frame)
    assert [piece.given for piece in source.pieces()] == ["one two"]
    assert source.skipped == {"neither text nor token ids": 1}


def test_only_special_tokens(tiny3, tmp_path):
    bos = tiny3.engine.loaded.bos
    with refused("index-no-text") as caught:
        make(tiny3, tmp_path / "index", [[bos, bos, 1]])
    assert "special" in str(caught.value)


def test_ids_outside_the_vocabulary(tiny3, tmp_path):
    with refused("token-id-unknown") as caught:
        make(tiny3, tmp_path / "index", [[2, 300, 10**6]])
    assert "1000000" in str(caught.value)


def test_ids_are_taken_as_they_are(tiny3, tmp_path):
    trace = tiny3.read(TEXTS[20])
    ids = [token.id for token in trace.tokens]
    index = make(tiny3, tmp_path / "index", [np.array(ids), tuple(ids[1:]), ids])
    assert index.about.documents == 3
    assert all(index.passage(n).tolist() == ids[:LENGTH] for n in (0, index.about.passages // 3))


def test_no_site_open(tiny_folders, tmp_path):
    import gemloupe as gl

    with gl.open(tiny_folders["gemma3"][0], scope=False, device="cpu") as loupe, refused("index-no-sites"):
        make(loupe, tmp_path / "index")


def test_a_document_longer_than_the_context(tiny3, tmp_path):
    text = " ".join(TEXTS)
    assert len(tiny3.engine.loaded.tokenizer(text)["input_ids"]) > tiny3.engine.loaded.context
    index = make(tiny3, tmp_path / "index", [text], length=10**6)
    passages = [index.passage(number) for number in range(index.about.passages)]
    assert index.about.documents == 1 < len(passages)
    assert max(map(len, passages)) == tiny3.engine.loaded.context


def test_files_of_every_kind(tiny3, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(TEXTS[20], encoding="utf-8")
    (texts / "b.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in TEXTS[21:23]) + "\n\n{broken\n[1]\n")
    with gzip.open(texts / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": TEXTS[23]}))
    (texts / "d.txt").write_bytes(b"\x7fELF\0\0\0")
    (texts / "e.txt").write_bytes(b"caf\xe9 latin-1")
    (texts / "f.txt").write_text("")
    (texts / "g.jsonl.gz").write_bytes(b"no gzip")
    (texts / "h.png").write_bytes(b"\x89PNG")
    index = make(tiny3, tmp_path / "index", texts)
    assert index.about.documents == 4
    assert index.about.skipped == {
        "binary file": 1,
        "empty": 1,
        "file unreadable": 1,
        "line without a text": 2,
        "not UTF-8 text": 1,
    }
    one = make(tiny3, tmp_path / "one", str(texts / "*.txt"))
    assert one.about.documents == 1
    with refused("index-no-files") as caught:
        make(tiny3, tmp_path / "none", str(texts / "*.md"))
    assert "*.md" in str(caught.value)


def test_files_that_vanish_or_cannot_be_opened(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    source = Source(tmp_path)
    pieces = source.pieces()
    assert next(pieces).given == "a"
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").unlink()
    (tmp_path / "c.txt").mkdir()  # opening it fails, whoever one is
    assert [piece.given for piece in pieces] == []
    assert source.skipped == {"file vanished": 1, "file unreadable": 1}


def test_a_long_file_is_read_in_blocks(tmp_path, monkeypatch):
    """Cut at spaces; it stays one document, and no character is lost."""
    from gemloupe.study.index import sources

    monkeypatch.setattr(sources, "_BLOCK", 40)
    text = " ".join(TEXTS)
    (tmp_path / "long.txt").write_text(text, newline="")
    pieces = list(Source(str(tmp_path / "long.txt")).pieces())
    assert len(pieces) > 20 and "".join(piece.given for piece in pieces) == text
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    shares = [piece.share for piece in pieces]
    assert shares == sorted(shares) and shares[-1] == 1


def test_lone_surrogates_are_skipped(tiny3, tmp_path):
    index = make(tiny3, tmp_path / "index", ["good text", "bad \ud800 text"])
    assert index.about.skipped == {"not Unicode text": 1}


def test_so_many_tokens_and_no_more(tiny3, tmp_path):
    index = make(tiny3, tmp_path / "index", iter(TEXTS), most=600)
    assert 600 <= index.about.tokens < 600 + LENGTH


@pytest.mark.parametrize(
    "wrong",
    [{"most": 0}, {"most": "5k"}, {"most": True}, {"length": 1}, {"length": "x"}, {"seed": -1}, {"seed": 1 << 64}],
)
def test_numbers_that_are_none(tiny3, tmp_path, wrong):
    (name,) = wrong
    said = {"most": "tokens", "length": "passage"}.get(name, name)
    with refused("count-unreadable") as caught:
        make(tiny3, tmp_path / "other", **wrong)
    assert str(caught.value).startswith(f"{said} is ")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 97, 7, None])
def test_names_that_are_no_folder(tiny3, name):
    with refused("index-name-unusable"):
        tiny3.index(TEXTS, name=name)


# ---- opening what is not whole


def test_opening_what_is_damaged(tiny3, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    with refused("index-not-found"):
        Index.open(folder)
    with monkeypatch.context() as patch:
        patch.setenv("GEMLOUPE_CACHE", str(tmp_path / "cache"))
        make(tiny3, tmp_path / "cache/indexes/known", TEXTS[:2])
        with refused("index-not-found") as caught:
            tiny3.use("unknown")
        assert "here: known." in str(caught.value)
    make(tiny3, folder, TEXTS[:9])
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, code in [
        ({"format": 99}, "index-newer"),
        ({"format": "1"}, "index-damaged"),
        ({"sites": None}, "index-damaged"),
        ({"model": {}}, "index-damaged"),
    ]:
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with refused(code):
            Index.open(folder)
    (folder / "manifest.json").write_text("[1]")
    with refused("index-damaged"):
        Index.open(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    index = Index.open(folder)
    index.verify()
    data = (folder / "res.2.parquet").read_bytes()
    (folder / "res.2.parquet").write_bytes(data[: len(data) // 2])
    with refused("index-damaged"):
        index.verify()
    with refused("index-damaged"):
        index.evidence("res.2/8")


def test_progress_says_what_is_left(tiny3, tmp_path):
    reports = []
    make(tiny3, tmp_path / "index", tell=reports.append)
    working = [report for report in reports if report.doing == "indexing"]
    assert all(report.rate > 0 and report.seconds_left >= 0 for report in working)
    shares = [report.share for report in working]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    assert "tokens" in str(working[0]) and "left" in str(working[0])
    stream = []
    make(tiny3, tmp_path / "stream", iter(TEXTS), tell=stream.append)
    assert stream[0].share is None and stream[0].seconds_left is None  # nobody knows how long it is


def test_a_cancelled_pass_ends_it(tiny3, tmp_path):
    """As when the loupe is closed from another thread; the same call goes on afterwards."""
    asked = []

    class Cancels:
        def __getattr__(self, name):
            return getattr(tiny3.engine, name)

        def together(self, request):
            asked.append(request)
            if len(asked) != 5:
                return tiny3.engine.together(request)
            go = threading.Event()
            tiny3.engine.submit(ThreadJob(lambda job: go.wait(60)))  # so that it is cancelled before it begins
            job = tiny3.engine.together(request)
            job.cancel()
            go.set()
            return job

    with refused("cancelled"):
        build.build(Cancels(), TEXTS, tmp_path / "index", **SETTINGS)
    make(tiny3, tmp_path / "index")
