"""Controls of an edit, and whose activations moved with it."""

import gemloupe as gl
import numpy as np
import pytest
from conftest import UNKNOWN
from gemloupe.errors import Refusal
from gemloupe.site import Site
from gemloupe.sparse import SparseActs
from gemloupe.study.control import control_edits
from gemloupe.study.movers import movers
from gemloupe.trace import Trace, join_bytes

TEXT = "The City of Light is Paris, and the cat sat on the mat."


@pytest.fixture(scope="module")
def feature(tiny3):
    found = [a.feature for a in tiny3.read(TEXT).top(60, site="res.2") if not np.isnan(a.maximum)]
    return found[0]


# ---- controls


@pytest.mark.parametrize("kind", ["add", "clamp", "scale", "ablate", "add_vector"])
def test_the_random_direction_is_as_long_as_the_edit(tiny3, feature, kind):
    engine = tiny3.engine
    facts, d = engine.facts((feature,))[0], np.linalg.norm(engine.direction(feature))
    options = {"where": "generated", "when": gl.when(feature, above=0.1), "specials": True}
    vector = np.linspace(-1, 2, engine.direction(feature).size)
    edit, length = {
        "add": (lambda: gl.add(feature, -1.5, **options), 1.5 * facts.maximum * d),
        "clamp": (lambda: gl.clamp(feature, 2, **options), 2 * facts.maximum * d),
        "scale": (lambda: gl.scale(feature, 3, **options), 2 * facts.mean_active * d),
        "ablate": (lambda: gl.ablate(feature, **options), facts.mean_active * d),
        "add_vector": (lambda: gl.add_vector("res.2", vector, 3, **options), 3 * np.linalg.norm(vector)),
    }[kind]
    random, flipped = control_edits(engine, edit())
    assert random.kind == "add_vector" and random.site == feature.site
    assert random.strength * np.linalg.norm(random.vector) == pytest.approx(length, rel=1e-5)
    for one in (random, flipped):
        assert (one.where, one.when, one.specials) == ("generated", options["when"], True)
    cosine = random.vector @ engine.direction(feature) / np.linalg.norm(random.vector) / d
    assert abs(cosine) < 0.6  # 48 dimensions
    assert control_edits(engine, edit())[0] == random != control_edits(engine, edit(), seed=1)[0]


def test_the_random_direction_pushes_as_hard_in_the_model(tiny3, feature):
    edit = gl.add(feature, 1.5)
    pushed = tiny3.generate(TEXT, edit, max_new_tokens=2).effects[0].norm
    control = tiny3.generate(TEXT, control_edits(tiny3.engine, edit)[0], max_new_tokens=2).effects[0].norm
    np.testing.assert_allclose(pushed[1:-1], control[1:-1], rtol=1e-4)


def test_the_sign_is_turned(tiny3, feature):
    """Flipped, an edit adds the negative of what it added."""
    for edit in (gl.add(feature, 1.5), gl.scale(feature, 3), gl.ablate(feature)):
        flipped = control_edits(tiny3.engine, edit)[1]
        f = tiny3.generate(TEXT, edit, max_new_tokens=1).effects[0]
        turned = tiny3.generate(TEXT, flipped, max_new_tokens=1).effects[0]
        np.testing.assert_allclose(f.norm, turned.norm, rtol=1e-4)
    pair = [gl.add(feature, 1.5), control_edits(tiny3.engine, gl.add(feature, 1.5))[1]]
    alone, plain = (tiny3.generate(TEXT, edits, max_new_tokens=3).logprobs for edits in (pair, ()))
    assert alone == pytest.approx(plain, abs=1e-5)
    assert control_edits(tiny3.engine, gl.clamp(feature, 2))[1] == gl.clamp(feature, -2)
    assert control_edits(tiny3.engine, gl.ablate(feature))[1] == gl.scale(feature, 2)
    assert control_edits(tiny3.engine, gl.scale(feature, 5))[1] == gl.scale(feature, -3)


def test_where_the_length_is_not_known_there_is_no_control(tiny3, feature):
    for edit in (gl.clamp(f"res.2/{UNKNOWN}", 1), gl.add("mlp.1/1", 1), gl.add(feature, 0), gl.scale(feature, 1)):
        with pytest.raises(Refusal) as caught:
            control_edits(tiny3.engine, edit)
        assert caught.value.code == "control-unknown" and str(edit) in str(caught.value)


# ---- movers


def trace_of(rows, maxima, site="res.1"):
    site = Site.of(site)
    dense = np.array(rows, np.float32)
    tokens = join_bytes([(2, b"", True, "<bos>"), *((9, b" a", False, "") for _ in rows[1:])])
    return Trace(tokens, {site: SparseActs.from_dense(dense)}, {site: np.array(maxima, np.float32)})


def test_the_largest_changes_of_the_mean_come_first():
    maxima = [10, 2, 10, np.nan, 10]
    # BOS counts for nothing, and so does a last token that the model has not read
    before = trace_of([[9, 9, 9, 9, 9], [4, 1, 0, 1, 3], [6, 1, 0, 3, 3], [0] * 5], maxima)
    after = trace_of([[0, 0, 0, 0, 0], [9, 0, 0, 8, 3], [9, 0, 3, 0, 3], [9, 0, 0, 10, 3]], maxima)
    (site, found), *rest = movers(before, after).items()
    assert str(site) == "res.1" and not rest
    assert [str(one.feature) for one in found] == ["res.1/1", "res.1/0", "res.1/2", "res.1/3"]
    half, four, little, unknown = found
    assert (half.before, half.after, half.raw) == (0.5, 0, (1, 0))
    assert (four.before, pytest.approx(four.after)) == (0.5, 0.9)
    assert little.raw == (0, 1)
    assert np.isnan(unknown.before) and unknown.raw == (2, 6)  # last, however large
    assert movers(before, after, 1) == {site: (half,)}


def test_only_what_was_generated_may_count():
    maxima = [1.0, 1.0]
    before = trace_of([[0, 0], [1, 0], [0, 1], [0, 1]], maxima)
    after = trace_of([[0, 0], [0, 1], [0, 1], [0, 1]], maxima)
    assert movers(before, after)[Site.of("res.1")] and not movers(before, after, start=2)[Site.of("res.1")]


def test_sites_that_only_one_trace_has_are_left_out():
    one, other = trace_of([[0], [1]], [1]), trace_of([[0], [2]], [1], "res.2")
    assert movers(one, other) == {}


@pytest.mark.parametrize("k", [0, -1, 1.5, None])
def test_a_count_that_is_none(k):
    trace = trace_of([[0], [1]], [1])
    with pytest.raises(Refusal) as caught:
        movers(trace, trace, k)
    assert caught.value.code == "count-unreadable"


def test_steering_moves_the_steered_feature_most(tiny3, feature):
    default, steered = (
        tiny3.generate(TEXT, edits, max_new_tokens=4, sites=feature.site) for edits in ((), gl.clamp(feature, 30))
    )
    found = movers(default.trace, steered.trace, 3)[feature.site]
    assert found[0].feature == feature and found[0].after > found[0].before
