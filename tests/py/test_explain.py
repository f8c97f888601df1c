"""Labels from a language model that the user names: what is asked, how answers are scored, where the key goes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from gemloupe.errors import Refusal
from gemloupe.evidence import Example, FeatureEvidence
from gemloupe.feature import FeatureId
from gemloupe.study import explain
from gemloupe.study.explain import Server
from gemloupe.study.labels import Labels, labels_of

SITE = "res.2"
KEY = "sk-secret-0123456789"
TEXTS = [
    f"{who} {what} {where}."
    for who in ("The cat", "The dog", "The king", "She")
    for what in ("sat", "ran", "walked")
    for where in ("on the mat", "to the market", "in the evening")
]


def refused(code, run):
    with pytest.raises(Refusal) as caught:
        run()
    assert caught.value.code == code, caught.value
    assert KEY not in str(caught.value) and KEY not in repr(caught.value.facts)
    return str(caught.value)


@pytest.fixture(scope="module")
def evidence(tiny2):
    """What an index of TEXTS would say, without one."""
    traces = [tiny2.read(text) for text in TEXTS]

    def of(feature):
        top = []
        for document, trace in enumerate(traces):
            values = trace[feature]
            if values.any():
                peak, texts = int(values.argmax()), tuple(token.text for token in trace.tokens[1:])
                ids = tuple(token.id for token in trace.tokens[1:])
                top.append(Example(texts, ids, values[1:], peak - 1, float(values[peak]), document, peak, True))
        top.sort(key=lambda one: -one.value)
        none = np.zeros(0)
        largest = top[0].value if top else 0.0
        return FeatureEvidence(feature, 400, len(top), largest, 1.0, none, none, tuple(top), (), (), (), "texts")

    return of


@pytest.fixture(scope="module")
def feature(evidence):
    """One that fires in some of the texts, and not in others."""
    counts = {index: len(evidence(FeatureId.of(f"{SITE}/{index}")).top) for index in range(96)}
    index = next(index for index, count in counts.items() if 12 <= count <= 24)
    return FeatureId.of(f"{SITE}/{index}")


@pytest.fixture
def labels(tiny2, evidence, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_DATA", str(tmp_path))
    monkeypatch.setattr(explain, "_PAUSE", 0.0)
    found = labels_of(tiny2.engine, evidence)
    yield found
    found.close()


@pytest.fixture
def server():
    """A server whose `answer(body)` gives (status, answer); `asked` has every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.asked.append((self.path, dict(self.headers), body))
            status, answer = here.answer(body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://localhost:{here.server_port}/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.asked = []
    here.url = f"http://127.0.0.1:{here.server_port}/v1"
    thread = threading.Thread(target=here.serve_forever, daemon=True)
    thread.start()
    yield here
    here.shutdown()
    here.server_close()


def said(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def judging(firing, *, right):
    """Explains, then names the passages that fire (or, if not `right`, the others)."""

    def answer(body):
        task, text = (message["content"] for message in body["messages"])
        if "numbered passages" not in task:
            return said('"Sentences that walk."\nand more')
        passages = {int(number): passage for number, _, passage in (line.partition(". ") for line in text.split("\n"))}
        return said(f"I think {[n for n, passage in passages.items() if (passage in firing) == right]}")

    return answer


@pytest.mark.parametrize(("right", "score"), [(True, 1.0), (False, 0.0)])
def test_a_label_is_asked_for_scored_and_kept(labels, evidence, feature, server, right, score):
    server.answer = judging({one.text for one in evidence(feature).top}, right=right)
    (label,) = labels.explain(feature, endpoint=server.url, model="small", key=KEY)
    assert label.text == "Sentences that walk" and label.source == "explained" and label.score == score
    assert label.by == f"small at 127.0.0.1:{server.server_port}"
    assert label in labels.of(feature)
    (path, headers, first), (_, _, second) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}" and first["model"] == "small"
    shown, tested = first["messages"][1]["content"], second["messages"][1]["content"]
    assert "<<" in shown and "likelier" in shown and "<<" not in tested
    assert "Sentences that walk" in second["messages"][0]["content"]
    plain = shown.replace("<<", "").replace(">>", "")
    firing = {one.text for one in evidence(feature).top}
    passages = [line.partition(". ")[2] for line in tested.split("\n")]
    assert not any(passage in plain for passage in passages if passage in firing), "held out means not shown before"
    silent = [passage for passage in passages if passage not in firing]
    assert silent and len(silent) <= len(passages) / 2 + 1


def test_the_key_is_kept_nowhere(labels, feature, server, tmp_path):
    server.answer = lambda body: said("a phrase [1]")
    labels.explain([feature], endpoint=server.url + "/", model="m", key=KEY)
    labels.close()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in repr(Server(server.url, "m", KEY))


def test_without_a_score_only_the_label_is_asked_for(labels, feature, server):
    server.answer = lambda body: said("a phrase")
    (label,) = labels.explain(str(feature), endpoint=server.url, model="m", score=False)
    assert label.score is None and len(server.asked) == 1 and "Authorization" not in server.asked[0][1]


def test_a_judgement_that_is_no_list_gives_no_score(labels, feature, server):
    server.answer = lambda body: said("words only")
    (label,) = labels.explain(feature, endpoint=server.url, model="m")
    assert label.text == "words only" and label.score is None and len(server.asked) == 2


def test_a_busy_server_is_asked_again(labels, feature, server):
    answers = iter([(429, b""), (503, b"")])
    server.answer = lambda body: next(answers, said("a phrase"))
    (label,) = labels.explain(feature, endpoint=server.url, model="m", score=False)
    assert label.text == "a phrase" and len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, b"the key sk-secret-0123456789 is wrong"), "status 401"),
        ((503, b""), "status 503"),
        ((302, b""), "status 302"),
        ((200, b"<html>"), "not that of a chat completion"),
        ((200, {"choices": []}), "not that of a chat completion"),
        ((200, b"[" * 100_000), "not that of a chat completion"),
        ((200, b" " * (2 << 20)), "longer than a megabyte"),
        (said(" ** "), "no words"),
        (said(None), "not that of a chat completion"),
    ],
)
def test_a_server_that_answers_badly_is_refused(labels, feature, server, answer, says):
    server.answer = lambda body: answer
    assert says in refused("endpoint-failed", lambda: labels.explain(feature, endpoint=server.url, model="m", key=KEY))
    assert not [one for one in labels.of(feature) if one.source == "explained"]
    assert all(path == "/v1/chat/completions" for path, _, _ in server.asked), "no redirect is followed"


def test_labels_that_came_before_a_failure_are_kept(labels, feature, server):
    answers = iter([said("the first")])
    server.answer = lambda body: next(answers, (400, b""))
    two = [feature, FeatureId.of(f"{SITE}/{(feature.index + 1) % 96}")]
    with pytest.raises(Refusal):
        labels.explain(two, endpoint=server.url, model="m", score=False)
    assert [one.text for one in labels.of(feature) if one.source == "explained"] == ["the first"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "localhost:8000",
        "ftp://host/v1",
        "http://user:pw@host/v1",
        "http://",
        "http://h:99999",
        None,
        "http://h/?k=1",
    ],
)
def test_an_address_that_is_none_is_refused(labels, feature, endpoint):
    message = refused("endpoint-unusable", lambda: labels.explain(feature, endpoint=endpoint, model="m"))
    assert "pw" not in message


def test_a_key_is_not_sent_in_the_clear(labels, feature):
    ask = {"model": "m", "key": KEY}
    refused("endpoint-unusable", lambda: labels.explain(feature, endpoint="http://example.org/v1", **ask))
    for key in ("", "a\nb", "ключ", 5):
        refused("endpoint-unusable", lambda key=key: Server("https://example.org", "m", key))
    refused("endpoint-unusable", lambda: Server("https://example.org", " "))
    refused("count-unreadable", lambda: Server("https://example.org", "m", timeout=0))


def test_what_has_no_evidence_is_not_explained(labels, tiny2, tmp_path, server):
    ask = {"endpoint": server.url, "model": "m"}
    refused("explain-no-evidence", lambda: labels.explain(f"{SITE}/5", **ask))  # never fires
    refused("feature-out-of-range", lambda: labels.explain(f"{SITE}/96", **ask))
    refused("index-none", lambda: labels_of(tiny2.engine).explain(f"{SITE}/1", **ask))
    refused("index-none", lambda: Labels.open(tmp_path / "x.sqlite").explain(f"{SITE}/1", **ask))
    assert server.asked == []


def test_nobody_listening_is_said(labels, feature):
    refused("endpoint-failed", lambda: labels.explain(feature, endpoint="http://127.0.0.1:9", model="m", key=KEY))
