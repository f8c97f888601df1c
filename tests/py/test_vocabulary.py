"""Sites, features and sparse activations: names that mean one thing, arrays that lose nothing."""

from itertools import pairwise

import numpy as np
import pytest
from gemloupe.feature import FeatureId, whole
from gemloupe.site import KINDS, MEANING, Site, in_words
from gemloupe.sparse import SparseActs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from refusal import refused

# sites


@given(st.sampled_from(KINDS), st.integers(0, 9999))
def test_a_site_reads_as_it_is_written(kind, layer):
    site = Site(kind, layer)
    assert Site.of(str(site)) == site == Site.of(site)
    assert hash(Site.of(str(site))) == hash(site)
    assert site.meaning == MEANING[kind]


@pytest.mark.parametrize(
    "given",
    ["", "res", "res.", "res12", "res.-1", "res.01", "res. 1", " res.1", "res.1 ", "res.1\n", "RES.1", "res.1.5",
     "resid.1", "res.٣", "res.²", "res.99999", "res.1/2", None, 12, 1.5, True, ("res", 12), b"res.12"],
)  # fmt: skip
def test_what_is_no_site_is_refused(given):
    assert repr(given) in refused("site-unreadable", lambda: Site.of(given))


@pytest.mark.parametrize(("kind", "layer"), [("res", -1), ("res", True), ("res", 1.0), ("res", "1"), ("nope", 1)])
def test_a_site_cannot_be_made_wrong(kind, layer):
    refused("site-unreadable", lambda: Site(kind, layer))


def test_many_sites_are_said_in_few_words():
    assert in_words([]) == "none"
    assert in_words([Site("res", 12), Site("att", 0)]) == "res.12, att.0"
    every = [Site(kind, layer) for layer in range(18) for kind in ("att", "mlp", "res")]
    assert in_words(every) == "res.0 to res.17, mlp.0 to mlp.17, att.0 to att.17"
    some = [Site("res", layer) for layer in (0, 1, 3, 5, 6, 7, 20, 22, 23)]
    assert in_words(reversed(some)) == "res.0, res.1, res.3, res.5 to res.7, res.20, res.22, res.23"


def test_sites_sort_as_the_forward_pass_reaches_them():
    shuffled = ["res.10", "mlp.2", "res.2", "att.2", "transcoder.2", "att.10", "res.0"]
    assert list(map(str, sorted(map(Site.of, shuffled)))) == [
        "res.0", "att.2", "transcoder.2", "mlp.2", "res.2", "att.10", "res.10",
    ]  # fmt: skip


# features


@given(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 2**31))
def test_a_feature_reads_as_it_is_written(kind, layer, index):
    feature = FeatureId(Site(kind, layer), index)
    assert FeatureId.of(str(feature)) == feature == FeatureId.of(feature)


def test_feature_zero_is_a_feature():
    assert FeatureId.of("res.0/0") == FeatureId(Site("res", 0), 0)
    assert str(FeatureId(Site("res", 0), np.uint32(0))) == "res.0/0"
    assert FeatureId(Site("res", 0), 0).within(1).index == 0


@pytest.mark.parametrize(
    "given",
    ["", "res.12", "res.12/", "res.12/-1", "res.12/1.5", "res.12/7x", "res.12/ 7", "res.12/7 ", "res.12/+7",
     "res.12/1_0", "res.12/٣", "res.12/²", "res.12/1e3", "res.12/7/8", "/7", None, 7, 1.5, True, ("res.12", 7),
     b"res.12/7"],
)  # fmt: skip
def test_what_is_no_feature_is_refused(given):
    code = "site-unreadable" if given == "/7" else "feature-unreadable"
    refused(code, lambda: FeatureId.of(given))


@pytest.mark.parametrize("index", [-1, np.int64(-1), True, np.True_, 1.0, 1.5, float("nan"), "7", None])
def test_an_index_is_a_whole_number(index):
    refused("feature-unreadable", lambda: FeatureId(Site("res", 12), index))


@pytest.mark.parametrize("index", [24, 25, 2**31, 2**70])
def test_one_past_the_end_is_refused_with_the_range(index):
    message = refused("feature-out-of-range", lambda: FeatureId(Site("res", 12), index).within(24))
    assert str(index) in message and "0 to 23" in message
    with pytest.raises(IndexError):
        FeatureId(Site("res", 12), index).within(24)


def test_features_sort_by_place_then_index():
    names = ["res.2/10", "res.2/9", "mlp.2/99", "res.1/0"]
    assert list(map(str, sorted(map(FeatureId.of, names)))) == ["res.1/0", "mlp.2/99", "res.2/9", "res.2/10"]


def test_whole_numbers():
    assert [whole(x) for x in (0, -3, np.uint8(7), 2**80)] == [0, -3, 7, 2**80]
    assert [whole(x) for x in (True, np.False_, 1.0, "1", None, 1j, np.float32(2))] == [None] * 7


# sparse activations

values = st.one_of(st.just(0.0), st.floats(2.0**-140, 2.0**120, width=32))
dense = stnp.arrays(np.float32, stnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9), elements=values)


@given(dense)
@settings(max_examples=200)
def test_dense_round_trip(array):
    acts = SparseActs.from_dense(array)
    np.testing.assert_array_equal(acts.to_dense(), array)
    assert acts.to_dense().shape == array.shape
    assert acts.nnz == np.count_nonzero(array)
    np.testing.assert_array_equal(acts.l0, np.count_nonzero(array, axis=1))
    np.testing.assert_array_equal(acts.features, np.flatnonzero(array.any(axis=0)))
    assert acts.checked() is acts
    for feature in range(array.shape[1]):
        np.testing.assert_array_equal(acts.column(feature), array[:, feature])
    for token in range(array.shape[0]):
        features, strengths = acts.row(token)
        assert (np.diff(features.astype(int)) > 0).all()
        np.testing.assert_array_equal(features, np.flatnonzero(array[token]))
        np.testing.assert_array_equal(strengths, array[token][features])


@given(dense, st.randoms(use_true_random=False))
def test_entries_may_come_in_any_order(array, random):
    rows, columns = np.nonzero(array)
    order = list(range(len(rows)))
    random.shuffle(order)
    order = np.array(order, int)
    acts = SparseActs.from_entries(array.shape, rows[order], columns[order], array[rows, columns][order])
    np.testing.assert_array_equal(acts.to_dense(), array)
    assert acts.checked()


@given(
    stnp.arrays(np.float32, st.tuples(st.integers(0, 12), st.just(5)), elements=values), st.lists(st.integers(0, 12))
)
def test_stacked_chunks_are_the_whole(array, cuts):
    edges = [0, *sorted(min(cut, len(array)) for cut in cuts), len(array)]
    parts = [SparseActs.from_dense(array[a:b]) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(SparseActs.stack(parts).to_dense(), array)


def test_empty_rows_at_both_ends():
    acts = SparseActs((4, 3), [0, 0, 2, 2, 2], [0, 2], [1.5, 2.5])
    assert acts.l0.tolist() == [0, 2, 0, 0]
    assert acts.row(0)[0].size == 0 and acts.row(3)[0].size == 0
    assert acts.column(0).tolist() == [0, 1.5, 0, 0]
    assert (acts.indptr.dtype, acts.indices.dtype, acts.values.dtype) == (np.uint32, np.uint32, np.float32)


def test_acts_cannot_be_changed():
    source = np.array([1.0], np.float32)
    acts = SparseActs((1, 1), [0, 1], [0], source)
    source[0] = 9
    assert acts.values[0] == 1
    with pytest.raises(ValueError):
        acts.values[0] = 2


@pytest.mark.parametrize("feature", [-1, 3, True, 1.0, "1", None, 2**40])
def test_columns_outside_are_refused(feature):
    refused("feature-out-of-range", lambda: SparseActs.from_dense(np.ones((2, 3), np.float32)).column(feature))


@pytest.mark.parametrize("token", [-1, 2, True, 1.0, "1", None])
def test_rows_outside_are_refused(token):
    refused("position-out-of-range", lambda: SparseActs.from_dense(np.ones((2, 3), np.float32)).row(token))


@pytest.mark.parametrize(
    ("shape", "indptr", "indices", "values"),
    [
        ((2, 3), [0, 1], [0], [1.0]),  # a row is missing
        ((2, 3), [1, 1, 1], [0], [1.0]),  # does not begin at 0
        ((2, 3), [0, 2, 1], [0], [1.0]),  # goes backwards
        ((2, 3), [0, 1, 2], [0], [1.0]),  # promises more than is there
        ((2, 3), [0, 1, 2], [0, 3], [1.0, 1.0]),  # feature one past the end
        ((2, 3), [0, 1, 2], np.array([0, -1]), [1.0, 1.0]),  # below 0
        ((2, 3), [0, 1, 2], [0, 1], [1.0]),  # a value is missing
        ((1, 3), [0, 2**32 - 1], [0], [1.0]),
    ],
)
def test_parts_that_do_not_fit_are_refused(shape, indptr, indices, values):
    refused("file-unreadable", lambda: SparseActs(shape, np.array(indptr), np.array(indices), np.array(values)))


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        ([1, 0], [1, 1]),
        ([1, 1], [1, 1]),
        ([0, 1], [1, np.nan]),
        ([0, 1], [np.inf, 1]),
        ([0, 1], [1, 0]),
        ([0, 1], [1, -1]),
    ],
)
def test_entries_from_a_file_are_checked(indices, values):
    refused("file-unreadable", SparseActs((1, 2), [0, 2], indices, values).checked)
    SparseActs((2, 2), [0, 1, 2], [1, 0], [1, 1]).checked()  # a new row may begin lower
