"""Asking a language model what a feature means, through any OpenAI-compatible server, and checking its answer.

Nothing here runs unless it is called with an address. What is sent: passages of the indexed text around places where
the feature fires and where it does not, and the tokens its decoder promotes. The key goes into one header of requests
to that address, over TLS or to this machine, and nowhere else.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..engine.protocol import Engine, ReadRequest
from ..errors import Refusal, refuse
from ..evidence import Example, FeatureEvidence
from ..feature import FeatureId
from ..label import Label

SHOWN, HELD_OUT = 10, 10  # examples to explain by, and of each kind (with the feature and without) to score by
_LONGEST_ANSWER = 1 << 20  # bytes
_TRIES, _PAUSE = 3, 2.0  # of a request that the server is too busy for; seconds, doubled each time

_ASK = """You look at examples of text in which one unit of a neural network is active. Tokens on which it is active \
stand between << and >>; the strongest come first. Say in one short phrase of at most 12 words what the examples have \
in common: what the unit stands for. Answer with that phrase only."""
_JUDGE = """A unit of a neural network is described as: {label}

Below are {count} numbered passages. Which of them contain what the description names, so that the unit would be \
active there? Answer with a JSON list of their numbers only, for example [1, 4], or [] for none."""


class Explainer:
    """Labels features of what an engine has open, from the evidence of an index."""

    def __init__(self, engine: Engine, evidence: Callable[[FeatureId], FeatureEvidence | None]) -> None:
        self._engine, self._evidence = engine, evidence

    def explain(
        self,
        features: Iterable[FeatureId],
        *,
        endpoint: str,
        model: str,
        key: str | None = None,
        score: bool = True,
        seed: int = 0,
        timeout: float = 60.0,
    ) -> Iterator[Label]:
        """A label for each feature, as it arrives.

        With `score` false the second request, which scores the first one's answer, is left out. `seed` chooses the
        passages without the feature and their order; `timeout` is of one request, in seconds. Refuses features that
        fire too rarely ('explain-no-evidence'), an address that is none, or to which a key would go in the clear
        ('endpoint-unusable'), and a server that does not answer as expected ('endpoint-failed').
        """
        asked = list(features)
        server = Server(endpoint, model, key, timeout)
        for feature in asked:
            yield self._one(feature, server, score, np.random.default_rng([seed, feature.index]))

    def _one(self, feature: FeatureId, server: Server, score: bool, draw: np.random.Generator) -> Label:
        found = self._evidence(feature)
        if found is None:
            raise refuse("index-none")
        examples = _distinct(found)
        held_out = min(HELD_OUT, len(examples) // 2) if score else 0
        if len(examples) < (4 if score else 1):
            raise refuse("explain-no-evidence", feature=feature, examples=len(examples), least=4 if score else 1)
        # Every second one is held out, so that strong and weak examples are in both parts.
        kept = [one for i, one in enumerate(examples) if not (i % 2 and i // 2 < held_out)]
        tested = [one for i, one in enumerate(examples) if i % 2 and i // 2 < held_out]
        promoted = ", ".join(repr(text) for text, _ in self._engine.facts((feature,))[0].promotes[:8])
        lines = [f"{i}. {_marked(one)}" for i, one in enumerate(kept[:SHOWN], 1)]
        if promoted:
            lines.append(f"It makes these tokens likelier to come next: {promoted}")
        text = _phrase(server.ask(_ASK, "\n".join(lines)))
        by = f"{server.model} at {server.host}"
        found_score = self._score(feature, text, tested, server, draw) if tested else None
        return Label(feature, text, "explained", found_score, "", by)

    def _score(
        self, feature: FeatureId, label: str, fires: list[Example], server: Server, draw: np.random.Generator
    ) -> float | None:
        """Balanced accuracy: the mean of the share of passages with the feature that were named, and of those
        without that were not. None where no passage without the feature was found, or the answer is no list."""
        silent = self._silent(feature, len(fires), draw)
        if not silent:
            return None
        passages = [(one.text, True) for one in fires] + [(text, False) for text in silent]
        order = draw.permutation(len(passages))
        lines = [f"{i}. {passages[place][0]}" for i, place in enumerate(order, 1)]
        answer = server.ask(_JUDGE.format(label=label, count=len(passages)), "\n".join(lines))
        named = _numbers(answer, len(passages))
        if named is None:
            return None
        said = [i in named for i in range(1, len(passages) + 1)]
        true = [passages[place][1] for place in order]
        hit = sum(s for s, t in zip(said, true, strict=True) if t) / sum(true)
        kept = sum(not s for s, t in zip(said, true, strict=True) if not t) / (len(true) - sum(true))
        return (hit + kept) / 2

    def _silent(self, feature: FeatureId, count: int, draw: np.random.Generator) -> list[str]:
        """Passages of other features of the site, read to be sure that this one is silent there."""
        width = self._engine.describe().widths[feature.site]
        found: list[str] = []
        for index in draw.permutation(width)[: 10 * count].tolist():
            if len(found) == count:
                break
            other = self._evidence(FeatureId(feature.site, index)) if index != feature.index else None
            if other is None or not other.top:
                continue
            example = other.top[int(draw.integers(len(other.top)))]
            trace = self._engine.read(ReadRequest(example.ids, (feature.site,))).result()
            if not trace[feature].any():
                found.append(example.text)
        return found


def _distinct(evidence: FeatureEvidence) -> list[Example]:
    """Its examples, strongest first, each passage once."""
    every = [*evidence.top, *(one for interval in reversed(evidence.intervals) for one in interval.examples)]
    first: dict[str, Example] = {}
    for one in sorted(every, key=lambda one: -one.value):
        first.setdefault(one.text, one)
    return list(first.values())


def _marked(example: Example) -> str:
    """An example with the tokens that fire between marks."""
    largest = float(np.max(example.activations, initial=0.0))
    parts = [
        f"<<{token}>>" if largest and value > 0.3 * largest else token
        for token, value in zip(example.tokens, example.activations, strict=True)
    ]
    return "".join(parts).replace("\n", " ")


def _phrase(answer: str) -> str:
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    text = (lines[0] if lines else "").strip("\"'“”*. ")[:300]
    if not any(c.isalnum() for c in text):
        raise refuse("endpoint-failed", host="the server", why="the answer has no words")
    return text


def _numbers(answer: str, count: int) -> set[int] | None:
    """The list of numbers in an answer; None if it has none."""
    lists = re.findall(r"\[[\s\d,]*\]", answer)
    if not lists:
        return None
    return {int(number) for number in re.findall(r"\d{1,4}", lists[-1])} & set(range(1, count + 1))


class Server:
    """One OpenAI-compatible server, and what is asked of it."""

    def __init__(self, endpoint: Any, model: Any, key: Any = None, timeout: Any = 60.0) -> None:
        if not isinstance(endpoint, str) or not isinstance(model, str) or not model.strip():
            why = "give the address and the name of a model there"
            raise refuse("endpoint-unusable", endpoint=endpoint if isinstance(endpoint, str) else "it", why=why)
        try:
            parts = urlsplit(endpoint.strip())
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise refuse("endpoint-unusable", endpoint="the address", why=str(error)) from None
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            why = "an address may hold no user, password, query or fragment; give a key as key="
            raise refuse("endpoint-unusable", endpoint=f"{parts.scheme}://{host}", why=why)
        if parts.scheme not in ("http", "https") or not host:
            raise refuse("endpoint-unusable", endpoint=endpoint, why="it must begin with http:// or https://")
        if key is not None and (not isinstance(key, str) or not key.isascii() or not key.isprintable() or not key):
            raise refuse("endpoint-unusable", endpoint=host, why="the key is no line of plain characters")
        if key is not None and parts.scheme == "http" and not _here(host):
            raise refuse(
                "endpoint-unusable", endpoint=endpoint, why="a key would be sent without encryption; use https"
            )
        seconds = timeout if isinstance(timeout, (int, float)) and not isinstance(timeout, bool) else 0
        if not 0 < seconds < float("inf"):
            raise refuse("count-unreadable", name="timeout", given=timeout, least=1)
        base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.host = host if port is None else f"{host}:{port}"
        self.model = model.strip()
        self._timeout = float(seconds)
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def __repr__(self) -> str:
        return f"Server({self.url!r}, {self.model!r})"

    def ask(self, task: str, text: str) -> str:
        """What the model answers. Refuses 'endpoint-failed'."""
        messages = [{"role": "system", "content": task}, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "temperature": 0.0, "max_tokens": 200}
        for tried in range(1, _TRIES + 1):
            status, data, wait = self._post(body)
            if status not in (429, 500, 502, 503, 504) or tried == _TRIES:
                break
            time.sleep(min(_PAUSE * 2 ** (tried - 1) if wait is None else wait, 30.0))
        if status != 200:
            raise refuse("endpoint-failed", host=self.host, why=f"it answered with status {status}")
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise refuse("endpoint-failed", host=self.host, why="its answer is not that of a chat completion")
        return content

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes, float | None]:
        """(status, body, seconds to wait if it says so). Follows no redirect: a key must not travel on."""
        import httpx

        try:
            with (
                httpx.Client(timeout=self._timeout, follow_redirects=False) as client,
                client.stream("POST", self.url, json=body, headers=self._headers) as answer,
            ):
                data = bytearray()
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > _LONGEST_ANSWER:
                        raise refuse("endpoint-failed", host=self.host, why="its answer is longer than a megabyte")
                told = answer.headers.get("Retry-After", "")
                return answer.status_code, bytes(data), float(told) if told.isdigit() else None
        except Refusal:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # The library's own message and its request (with the key) stay out of what is shown.
            raise refuse("endpoint-failed", host=self.host, why=type(error).__name__) from None


def _here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
