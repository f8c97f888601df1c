"""A sweep: one edit at several strengths, and what is measured of each, against the engine's own single runs."""

import json
import math
from types import SimpleNamespace

import gemloupe as gl
import numpy as np
import pytest
from gemloupe.engine.protocol import CompareRequest
from gemloupe.errors import Refusal
from gemloupe.study.sweep import BANDS, LOST, STRENGTHS, repetition, sweep

PROMPT = "In the morning I like to"


@pytest.fixture(scope="module")
def feature(tiny3):
    return next(a.feature for a in tiny3.read(PROMPT).top(40, site="res.2") if not np.isnan(a.maximum))


def ids(tokens):
    return tuple(token.id for token in tokens)


def test_every_row_is_the_run_alone(tiny3, feature):
    edit, other = gl.clamp(feature, 1, where="generated"), gl.scale("res.0/1", 2)
    found = tiny3.sweep(PROMPT, edit, (2, -1, 0.5), others=other, max_new_tokens=6, temperature=1.0, seed=3)
    assert [row.strength for row in found.rows] == [-1, 0.5, 2]
    options = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    default = tiny3.generate(PROMPT, other, **options)
    assert found.default.tokens == default.tokens
    for row in found.rows:
        alone = tiny3.generate(PROMPT, [other, edit.with_strength(row.strength)], **options)
        assert row.generation.tokens == alone.tokens and row.generation.edits == alone.edits
        pairs = list(zip(ids(alone.tokens), ids(default.tokens), strict=True))
        assert row.diverges == next((i for i, (one, two) in enumerate(pairs) if one != two), None)
        prompt, rows = ids(default.prompt), ((other,), alone.edits)
        kl = tiny3.engine.compare(CompareRequest(prompt, ids(default.tokens), rows, reference=0)).result()[1].kl
        assert row.kl == pytest.approx(float(kl.mean()), rel=1e-4)
        seen = tiny3.engine.compare(CompareRequest(prompt, ids(alone.tokens), ((other,),))).result()[0].logprobs
        assert row.surprise == pytest.approx(-float(seen.mean()), rel=1e-4)
    assert found.surprise == pytest.approx(-float(np.mean(default.logprobs)), abs=1e-4)


def test_a_feature_alone_is_clamped_at_seven_to_nine_strengths(tiny3, feature):
    found = tiny3.sweep(PROMPT, str(feature), max_new_tokens=2)
    assert found.edit == gl.clamp(feature, 1)
    assert tuple(row.strength for row in found.rows) == STRENGTHS and 7 <= len(STRENGTHS) <= 9
    assert sorted(s for part in found.bands.values() for s in part) == list(STRENGTHS)
    assert set(found.bands) == set(BANDS)
    text = repr(found)
    assert str(feature) in text and all(f"{s:5g}" in text for s in STRENGTHS)
    json.dumps(found.to_dict(), allow_nan=False)


class Says:
    """An engine whose figures are given: (kl, log-probability of its own text) by strength."""

    def __init__(self, texts, kl, shares):
        self.texts, self.kl, self.shares = texts, kl, shares

    def generate(self, request):
        from gemloupe.engine.protocol import Generation
        from gemloupe.trace import join_bytes

        made = tuple(
            Generation(
                join_bytes([(2, b"", True, "<bos>")]),
                join_bytes([(i, b" a", False, "") for i in self.texts[sum(edit.strength for edit in row)]]),
                (),
                edits=row,
            )
            for row in request.rows
        )
        return SimpleNamespace(result=lambda: made)

    def compare(self, request):
        from gemloupe.engine.protocol import Comparison

        text = tuple(request.tokens)
        share = next(self.shares[s] for s, given in self.texts.items() if tuple(given) == text)
        found = tuple(
            Comparison(
                np.full(len(text), self.kl[sum(edit.strength for edit in row)]), np.full(len(text), share, np.float32)
            )
            for row in request.rows
        )
        return SimpleNamespace(result=lambda: found)


def test_bands_by_what_was_measured():
    plain = list(range(10, 30))
    engine = Says(
        {
            0: plain,
            0.5: plain,
            1: [*plain[:5], *range(40, 55)],
            2: [*range(60, 80)],
            3: [90] * 20,
            4: [*range(100, 120)],
        },
        kl={0: 0.0, 0.5: 0.001, 1: 0.002, 2: 9.0, 3: 0.5, 4: 0.5},
        shares={0: -1.0, 0.5: -1.0, 1: -2.0, 2: -1.0 - LOST + 0.1, 3: -0.5, 4: -1.0 - LOST - 0.1},
    )
    found = sweep(engine, "x", gl.add("res.1/1", 1), (0.5, 1, 2, 3, 4))
    assert [row.band for row in found.rows] == ["none", "none", "works", "breaks", "breaks"]
    assert [row.diverges for row in found.rows] == [None, 5, 0, 0, 0]
    assert found.bands == {"none": (0.5, 1), "works": (2,), "breaks": (3, 4)}
    # far from the default (9 nats) is not broken as long as the text holds together; a loop is
    assert found.rows[2].kl == 9 and found.rows[3].repetition > 0.9 and found.rows[4].surprise > LOST + 1


def test_numbers_that_overflow_break(tiny3, feature, monkeypatch):
    monkeypatch.setattr("gemloupe.edits.LONGEST", math.inf)
    edit = gl.add_vector("res.2", [3e38] + [0] * 47, 0, where="generated")
    found = tiny3.sweep(PROMPT, edit, (0, 10), max_new_tokens=4)
    assert [row.band for row in found.rows] == ["none", "breaks"]
    assert found.rows[1].generation.stopped == "not-finite"
    json.dumps(found.to_dict(), allow_nan=False)


def test_repetition():
    assert repetition([]) == repetition([1, 2, 3]) == repetition(list(range(50))) == 0
    assert repetition([1, 2, 3, 4] * 5) == pytest.approx(1 - 4 / 17)
    assert repetition([7] * 13) == pytest.approx(0.9)


def test_what_cannot_be_swept(tiny3, feature):
    for edit, strengths, code in (
        (gl.ablate(feature), (1,), "edit-unreadable"),
        (feature, (), "count-unreadable"),
        (feature, (1, math.nan), "strength-unreadable"),
        ("res.7/1", (1,), "site-not-open"),
    ):
        with pytest.raises(Refusal) as caught:
            tiny3.sweep(PROMPT, edit, strengths)
        assert caught.value.code == code
    with pytest.raises(Refusal) as caught:
        tiny3.sweep(PROMPT, gl.clamp(feature, 1), (1,), others=gl.ablate(feature))
    assert caught.value.code == "edits-conflict"


def test_it_can_be_cancelled(tiny3, feature):
    jobs = []

    def follow(job):
        jobs.append(job)
        job.cancel()
        return job

    with pytest.raises(Refusal) as caught:
        sweep(tiny3.engine, PROMPT, gl.clamp(feature, 1), follow=follow, max_new_tokens=200)
    assert caught.value.code == "cancelled" and len(jobs) == 1
