"""Labels of Neuronpedia's export, and the pages of features."""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gemloupe as gl
import pytest
from gemloupe.errors import Refusal
from gemloupe.feature import FeatureId
from gemloupe.load import neuronpedia
from gemloupe.load.neuronpedia import best, fetch_labels, page, read_labels
from huggingface_hub import constants
from refusal import refused

SOURCE = "gemma-2-2b/20-gemmascope-res-16k"


def line(index, text, **more):
    about = {
        "id": f"c{index}",
        "modelId": "gemma-2-2b",
        "layer": "20-gemmascope-res-16k",
        "index": str(index),
        "description": text,
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
        "embedding": [0.25] * 256,
        "createdAt": "2024-08-05T10:00:00.000Z",
    }
    return json.dumps(about | more)


LINES = [
    line(12082, "references to dogs"),
    line(12082, "animals", createdAt="2025-01-05T10:00:00.000Z"),
    line(7, "first", scoreV2=0.4),
    line(7, "second ", scoreV1=0.9, createdAt="2023-01-05T10:00:00.000Z"),
    line(7, "third", scoreV2=None, scoreV1=None),
    line(9, " "),
    line(8, None),
    line(0, "the zeroth feature", explanationModelName=None),
    "",
]


def export(folder, lines=LINES, name="batch-0.jsonl.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    data = "\n".join(lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


@pytest.mark.parametrize("name", ["batch-0.jsonl.gz", "batch-0.jsonl"])
def test_labels_are_read_best_first(tmp_path, name):
    folder = export(tmp_path / "explanations", name=name)
    for place in (folder, tmp_path, folder / name, str(folder)):
        labels = read_labels(place)
        assert [(str(one.feature), one.text) for one in labels] == [
            ("res.20/0", "the zeroth feature"),
            ("res.20/7", "second"),
            ("res.20/7", "first"),
            ("res.20/7", "third"),
            ("res.20/12082", "animals"),
            ("res.20/12082", "references to dogs"),
        ]
    assert labels[1].score == 0.9 and labels[3].score is None
    assert labels[0].source == "oai_token-act-pair" and labels[1].source == "gpt-4o-mini oai_token-act-pair"
    assert labels[4].created == "2025-01-05T10:00:00.000Z"
    chosen = best(labels)
    assert chosen[FeatureId.of("res.20/7")].text == "second"
    assert chosen[FeatureId.of("res.20/12082")].text == "animals" and len(chosen) == 3


def test_activations_beside_them_are_not_taken_for_labels(tmp_path):
    export(tmp_path / "explanations")
    export(tmp_path / "activations", ["[1, 2]"])
    export(tmp_path / "features", ["[1, 2]"])
    assert len(read_labels(tmp_path)) == 6


def test_the_site_is_the_catalogues_or_the_users(tmp_path):
    mine = [line(3, "x", modelId="mine", layer="20-own-16k")]
    folder = export(tmp_path, mine)
    assert "site=" in refused("labels-unreadable", lambda: read_labels(folder))
    assert read_labels(folder, "mlp.20")[0].feature == FeatureId.of("mlp.20/3")
    assert "mlp.19" in refused("labels-unreadable", lambda: read_labels(folder, "mlp.19"))
    att = export(tmp_path / "att", [line(3, "x", layer="5-gemmascope-att-16k")])
    assert read_labels(att)[0].feature == FeatureId.of("att.5/3")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([LINES[0], "{"], "line 2"),
        (["[1]"], "line 1 is not a JSON object"),
        ([line("x", "text")], "line 1"),
        ([line(-3, "text")], "-3"),
        ([json.dumps({"description": "x"})], "index"),
        (["[" * 100_000], "line 1"),
        ([line(1, "x" * (1 << 20))], "longer than a megabyte"),
    ],
)
def test_damaged_lines_are_refused_by_their_place(tmp_path, lines, says):
    folder = export(tmp_path, lines, "a.jsonl")
    with pytest.raises(Refusal) as caught:
        read_labels(folder)
    assert says in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    refused("labels-unreadable", lambda: read_labels(tmp_path))
    refused("labels-unreadable", lambda: read_labels(tmp_path / "absent.jsonl"))
    file = export(tmp_path) / "batch-0.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])
    assert "cut short" in refused("labels-unreadable", lambda: read_labels(tmp_path))
    file.write_bytes(b"no gzip at all")
    refused("labels-unreadable", lambda: read_labels(tmp_path))


def test_a_gzip_bomb_is_refused_at_its_first_line(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(bytes(200_000_000), 1))
    assert "longer than a megabyte" in refused("labels-unreadable", lambda: read_labels(tmp_path))


def test_pages():
    assert page(SOURCE, 12082) == "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/12082"
    assert page(None, 3) is None


def test_features_of_other_scopes_have_no_page(tiny2):
    assert tiny2.feature("res.2/7").neuronpedia is None


@contextmanager
def bucket(files):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            if self.path.startswith("/?"):
                keys = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in files)
                data = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{keys}</ListBucketResult>'.encode()
            else:
                data = files.get(self.path[1:])
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_labels_are_fetched_when_asked_for_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCANARY")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    prefix = f"v1/{SOURCE}/explanations/"
    data = gzip.compress("\n".join(LINES).encode())
    files = {f"{prefix}batch-0.jsonl.gz": data, f"{prefix}../../evil.jsonl": b"x", f"{prefix}readme.txt": b"x"}
    with bucket(files) as (address, asked):
        monkeypatch.setattr(neuronpedia, "EXPORT", address)
        entry = gl.catalog("gemma-2-2b").find(SOURCE)
        said = []
        folder = fetch_labels(entry, progress=lambda doing, share: said.append((doing, share)))
        assert [file.name for file in folder.iterdir()] == ["batch-0.jsonl.gz"]
        assert len(read_labels(folder)) == 6 and SOURCE in said[0][0]
        assert len(asked) == 2 and "hf_canary" not in str(asked)
        assert fetch_labels(SOURCE) == folder and len(asked) == 2
        assert "no labels" in refused("labels-not-fetched", lambda: fetch_labels("gemma-2-2b/3-gemmascope-res-16k"))
        files[f"v1/{SOURCE.replace('20', '21')}/explanations/batch-0.jsonl"] = None
        refused("labels-not-fetched", lambda: fetch_labels(SOURCE.replace("20", "21")))
        assert [one.name for one in folder.parent.iterdir() if one.is_dir()] == [folder.name]
    refused("labels-not-fetched", lambda: fetch_labels("gemma-2-2b/4-gemmascope-res-16k"))


def test_nothing_is_fetched_offline_or_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(neuronpedia, "_get", lambda url: pytest.fail("fetched"))
    assert "HF_HUB_OFFLINE" in refused("labels-not-fetched", lambda: fetch_labels(SOURCE))
    refused("labels-not-fetched", lambda: fetch_labels("../../etc/passwd"))
    plain = next(one for one in gl.catalog("gemma-2-2b") if one.neuronpedia is None)
    refused("labels-not-fetched", lambda: fetch_labels(plain))
