"""Search by words, by a text, by contrast; and its results as a widget and a table."""

import json
import math

import gemloupe as gl
import numpy as np
import pytest
from gemloupe.errors import Refusal
from gemloupe.feature import FeatureId
from gemloupe.study.search import DENSE
from gemloupe.widgets.search_results import SearchResults
from refusal import refused

TEXT = "The City of Light is Paris"
OTHER = "In the morning I like to walk"


def brute(trace, how, positions=None, relative=True):
    """{feature: (strength, raw)} computed densely."""
    found = {}
    for site in trace.sites:
        dense = trace.acts[site].to_dense()
        if positions is not None:
            dense = dense[positions]
        raw = dense.max(0) if how == "max" else dense.astype(np.float64).sum(0)
        for index in np.flatnonzero(raw):
            found[FeatureId(site, int(index))] = (raw[index] / trace.maxima[site][index], raw[index])
    return found


def order(found, relative):
    return sorted(
        found,
        key=lambda f: (
            (math.isnan(found[f][0]), -found[f][0] if not math.isnan(found[f][0]) else -found[f][1])
            if relative
            else -found[f][1]
        ),
    )


# ---- by a text


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("how", ["max", "sum"])
def test_a_text_finds_what_fires_strongest_over_all_layers(tiny_loupe, how, relative):
    trace = tiny_loupe.read(TEXT)
    wanted = brute(trace, how)
    found = tiny_loupe.search(text=TEXT, by=how, relative=relative, dense=True, k=40)
    assert isinstance(found, SearchResults) and len(found) == 40 and found.hits.hidden == 0
    assert len({hit.feature.site for hit in found}) > 1
    for hit in found:
        assert hit.strength == pytest.approx(wanted[hit.feature][0], rel=1e-5, nan_ok=True)
        assert hit.raw == pytest.approx(wanted[hit.feature][1], rel=1e-5)
    key = 0 if relative else 1
    best = [wanted[feature][key] for feature in order(wanted, relative)[:40]]
    assert [wanted[hit.feature][key] for hit in found] == pytest.approx(best, rel=1e-5, nan_ok=True)


def test_the_token_named_is_where_it_fires_most(tiny2):
    trace = tiny2.read(TEXT)
    for hit in tiny2.search(text=trace, dense=True, k=20):
        column = trace[hit.feature]
        assert column[hit.position] == column.max() and trace.tokens[hit.position].text == hit.token


def test_only_some_tokens(tiny2):
    trace = tiny2.read(TEXT)
    (position,) = trace.positions(" Paris") if " Paris" in [t.text for t in trace.tokens] else (len(trace) - 1,)
    found = tiny2.search(text=TEXT, tokens=[position], dense=True, k=15)
    wanted = brute(trace, "max", [position])
    assert {hit.feature for hit in found} <= set(wanted) and {hit.position for hit in found} == {position}
    several = tiny2.search(text=TEXT, tokens=[1, trace.tokens[2].text, -1], by="sum", dense=True, k=1000)
    here = sorted({1, len(trace) - 1, *trace.positions(trace.tokens[2].text)})
    assert {hit.feature for hit in several} == set(brute(trace, "sum", here))


def test_dense_features_are_hidden_unless_asked_for(tiny2):
    every = tiny2.search(text=TEXT, dense=True, k=1000)
    sparse = tiny2.search(text=TEXT, k=1000)
    densities = {hit.feature: hit.density for hit in every}
    assert any(one is not None and one > DENSE for one in densities.values())
    kept = [feature for feature in every.features if densities[feature] is None or densities[feature] <= DENSE]
    assert list(sparse.features) == kept and sparse.hidden == len(every) - len(sparse)
    half = tiny2.search(text=TEXT, k=1000, dense=0.5)
    assert max(hit.density for hit in half if hit.density is not None) <= 0.5 and len(sparse) < len(half) < len(every)


def test_a_search_is_of_the_sites_asked_for(tiny2):
    assert {str(hit.feature.site) for hit in tiny2.search(text=TEXT, sites="mlp.1", dense=True)} == {"mlp.1"}


def test_labels_come_along(tiny2):
    feature = tiny2.search(text=TEXT, dense=True)[3].feature
    tiny2.labels.set(feature, "named by me")
    hit = tiny2.search(text=TEXT, dense=True)[3]
    assert hit.feature == feature and hit.label.text == "named by me"
    tiny2.labels.remove(feature)


# ---- by words


def test_words_find_labels_and_promoted_tokens(tiny2):
    tiny2.labels.set("res.2/50", "古诗 and idioms")
    assert [str(feature) for feature in tiny2.search("idiom").features] == ["res.2/50"]
    assert [str(feature) for feature in tiny2.search("古诗").features] == ["res.2/50"]
    known = next(
        one for i in range(96) for one in [tiny2.feature(f"res.0/{i}")] if one.promotes[0][0].strip().isalpha()
    )
    word = known.promotes[0][0].strip()
    assert known.feature in tiny2.search(word, k=1000).features
    assert all(hit.label.source in ("automatic", "user") for hit in tiny2.search(word))
    tiny2.labels.remove("res.2/50")


def test_neighbours_are_results_too(tiny2):
    found = tiny2.search(near="res.2/3", k=6)
    assert found.features == tuple(one.feature for one in tiny2.neighbours("res.2/3", 6))
    assert found.to_dataframe()["cosine"].is_monotonic_decreasing


# ---- contrast


def test_a_contrast_sorts_features_into_three_groups(tiny_loupe):
    one, two = (brute(tiny_loupe.read(text), "max") for text in (TEXT, OTHER))
    found = tiny_loupe.contrast(TEXT, OTHER, dense=True, k=500)
    groups = {name: [hit for hit in found if hit.group == name] for name in ("only a", "only b", "changed")}
    assert {hit.feature for hit in groups["only a"]} == set(one) - set(two)
    assert {hit.feature for hit in groups["only b"]} == set(two) - set(one)
    both = {feature for feature in set(one) & set(two) if one[feature][1] != two[feature][1]}
    assert {hit.feature for hit in groups["changed"]} == both
    for hits in groups.values():
        sizes = [abs(hit.strength) for hit in hits if not math.isnan(hit.strength)]
        assert sizes == sorted(sizes, reverse=True) and sizes
    for hit in found:
        assert hit.raw == pytest.approx(two.get(hit.feature, (0, 0))[1] - one.get(hit.feature, (0, 0))[1], rel=1e-5)


def test_sets_of_texts_are_averaged(tiny2):
    texts = [TEXT, "The cat sat on the mat"]
    each = [brute(tiny2.read(text), "max") for text in texts]
    found = tiny2.contrast(texts, [OTHER], dense=True, k=500)
    hit = next(hit for hit in found if hit.group == "only a" and all(hit.feature in one for one in each))
    assert hit.a[1] == pytest.approx(sum(one[hit.feature][1] for one in each) / 2, rel=1e-5)
    assert hit.b[1] == 0


def test_a_contrast_steers_one_text_towards_the_other(tiny2):
    found = tiny2.contrast(TEXT, OTHER, dense=True)
    only_a = next(hit for hit in found if hit.group == "only a" and not math.isnan(hit.a[0]))
    only_b = next(hit for hit in found if hit.group == "only b" and not math.isnan(hit.b[0]))
    assert found.edit(only_a.feature) == (OTHER, gl.clamp(only_a.feature, round(only_a.a[0], 2)))
    assert found.edit(only_b.feature) == (TEXT, gl.clamp(only_b.feature, round(only_b.b[0], 2)))
    unknown = next((hit for hit in found if math.isnan(hit.a[0]) and hit.group == "only a"), None)
    if unknown is not None:  # nothing to clamp to, so it is taken away where it is
        assert found.edit(unknown.feature) == (TEXT, gl.ablate(unknown.feature))


# ---- the widget


def test_ranking_again_changes_what_is_shown(tiny2):
    found = tiny2.search(text=TEXT, k=10)
    before = found.features
    assert found.relative and not found.dense and found.hidden == found.hits.hidden > 0
    found.rank(relative=False)
    assert found.features == tiny2.search(text=TEXT, k=10, relative=False).features != before
    assert [row["feature"] for row in found.rows] == [str(feature) for feature in found.features]
    found.rank(dense=True)
    assert found.dense and not found.relative and found.hidden == 0
    assert found.rank(relative=True, dense=False).features == before


def test_a_desk_opens_and_closes(tiny2):
    found = tiny2.search(text=TEXT, sites="res.2", k=5)
    known = next(hit for hit in found if not math.isnan(hit.maximum))
    desk = found.steer(known.feature)
    assert desk.prompt == TEXT and desk.edits == (gl.clamp(known.feature, 1.0),) and found.desk is desk
    desk.stop()
    found._close_desk()
    assert found.desk is None
    alone = SearchResults(found.hits)
    refused("needs-loupe", lambda: alone.steer(known.feature))


def test_a_feature_may_be_chosen(tiny2):
    found = tiny2.search(text=TEXT, k=5)
    found.selected = found.features[2]
    assert found.selection == {"feature": str(found.features[2])} and found.selected == found.features[2]
    with pytest.raises(Refusal):
        found.selected = "nothing"
    assert found.selected == found.features[2]
    found.selected = None
    assert found.selected is None


def test_results_are_plain_json_and_a_page(tiny2):
    tiny2.labels.set("res.2/9", "<b>idiom</b> & </script>")
    found = tiny2.search("idiom")
    json.dumps(found.rows, allow_nan=False)
    page = found.to_html()
    assert "<b>idiom</b>" not in page and "search-results" in page and "res.2/9" in page
    data, _ = found._repr_mimebundle_()
    assert "text/html" in data
    assert "res.2/9" in repr(found)
    json.dumps(tiny2.search(text=TEXT, dense=True, k=400).rows, allow_nan=False)
    tiny2.labels.remove("res.2/9")


def test_results_are_a_data_frame(tiny2):
    for found, more in (
        (tiny2.search(text=TEXT, k=5), {"strength", "raw", "density", "token", "position"}),
        (tiny2.contrast(TEXT, OTHER, k=2), {"group", "a", "b", "raw_a", "raw_b"}),
        (tiny2.search("zzzz"), set()),
    ):
        frame = found.to_dataframe()
        assert list(frame["feature"]) == [str(feature) for feature in found.features]
        assert {"site", "index", "label", "source", "score"} | more <= set(frame.columns)


# ---- bad input


def test_what_cannot_be_searched_is_refused(tiny2):
    refused("query-empty", lambda: tiny2.search(""))
    refused("query-empty", lambda: tiny2.search('* OR-( "'.replace("OR", "")))
    refused("search-what", lambda: tiny2.search())
    refused("search-what", lambda: tiny2.search("words", text="text"))
    refused("search-what", lambda: tiny2.search("words", by="sum"))
    refused("text-empty", lambda: tiny2.search(text=""))
    refused("text-only-special", lambda: tiny2.search(text=[2, 1]))
    refused("text-only-special", lambda: tiny2.search(text=TEXT, tokens=[0]))
    refused("position-out-of-range", lambda: tiny2.search(text=TEXT, tokens=[500]))
    refused("token-not-found", lambda: tiny2.search(text=TEXT, tokens=["zebra"]))
    refused("site-not-open", lambda: tiny2.search(text=TEXT, sites="res.3"))
    refused("site-not-open", lambda: tiny2.search("idiom", sites="res.3"))
    refused("search-by-unknown", lambda: tiny2.search(text=TEXT, by="mean"))
    for dense in (0, 2, "no", math.nan, -1):
        refused("dense-unreadable", lambda dense=dense: tiny2.search(text=TEXT, dense=dense))
    for k in (0, "5", 1.5, True):
        refused("count-unreadable", lambda k=k: tiny2.search(text=TEXT, k=k))
    refused("feature-out-of-range", lambda: tiny2.search(near="res.2/96"))


def test_a_contrast_of_nothing_is_refused(tiny2):
    assert TEXT in refused("contrast-equal", lambda: tiny2.contrast(TEXT, TEXT))
    refused("contrast-equal", lambda: tiny2.contrast([TEXT, OTHER], (OTHER, TEXT)))
    refused("text-empty", lambda: tiny2.contrast(TEXT, []))
    refused("text-empty", lambda: tiny2.contrast("", TEXT))
    refused("count-unreadable", lambda: tiny2.contrast(TEXT, OTHER, k=0))
