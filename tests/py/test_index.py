"""An index against brute force: every figure of every feature, and every example that is kept."""

import contextlib
import subprocess
import sys

import gemloupe as gl
import numpy as np
import pytest
from conftest import NEVER_FIRES
from gemloupe.errors import Refusal
from gemloupe.feature import FeatureId
from gemloupe.site import Site
from gemloupe.sparse import SparseActs
from gemloupe.study.index import Index, scale
from gemloupe.study.index.build import build
from gemloupe.study.index.layout import BESIDE, LEVELS
from gemloupe.study.index.tally import DRAWN, FIRINGS, INTERVALS, TOP, WINDOW, Tally, place_of
from tiny import TEXT

LENGTH = 40
WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[i : i + 3 + i % 50]) for i in range(0, len(WORDS), 2)]
# Numbers of two batches with other lengths differ in the last bits.
NEAR_ENOUGH = 1e-4


@pytest.fixture(scope="module")
def made(tiny3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "one"
    return build(tiny3.engine, TEXTS, folder, length=LENGTH, shard=700, together=256)


@pytest.fixture(scope="module")
def read(tiny3, made):
    """Passage by passage: (ids, trace)."""
    passages = [made.passage(number) for number in range(made.about.passages)]
    return [(ids, tiny3.read(ids.tolist())) for ids in passages]


def dense(read, site):
    """float32 [ordinary token, feature], and (passage, position) of each row."""
    special = [np.array([token.special for token in trace.tokens]) for _, trace in read]
    acts = np.concatenate([trace[site].to_dense()[~s] for (_, trace), s in zip(read, special, strict=True)])
    places = [(number, int(at)) for number, s in enumerate(special) for at in np.flatnonzero(~s)]
    return acts, places


def test_passages_are_the_text(tiny3, made):
    """BOS and up to LENGTH - 1 tokens of one document, none lost, none twice."""
    found = []
    for text in TEXTS:
        ids = [token.id for token in tiny3.read(text).tokens][1:]
        found += [[tiny3.engine.loaded.bos, *ids[i : i + LENGTH - 1]] for i in range(0, len(ids), LENGTH - 1)]
    assert [made.passage(number).tolist() for number in range(made.about.passages)] == found
    assert made.about.documents == len(TEXTS) < made.about.passages
    assert made.about.tokens == sum(len(ids) - 1 for ids in found)


@pytest.mark.parametrize("site", ["res.2", "res.0", "mlp.1", "att.1", "transcoder.2"])
def test_figures(made, read, site):
    acts, _ = dense(read, site)
    maxima, density = made.maxima(site), made.density(site)
    np.testing.assert_allclose(maxima, acts.max(0), atol=NEAR_ENOUGH)
    np.testing.assert_allclose(density, (acts > 0).mean(0), atol=2 / len(acts))
    assert made.about.tokens == len(acts)
    for index in range(0, acts.shape[1], 7):
        found = made.evidence(f"{site}/{index}")
        values = acts[acts[:, index] > 0, index]
        assert abs(found.fired - len(values)) <= 1 and found.density == found.fired / len(acts)
        if not len(values):
            continue
        assert found.mean == pytest.approx(values.mean(), rel=1e-2)
        assert found.maximum == maxima[index]
        assert found.histogram.sum() == found.fired and len(found.edges) == len(found.histogram) + 1
        assert found.edges[0] <= values.min() + NEAR_ENOUGH and found.edges[-1] > values.max() - NEAR_ENOUGH
        expected = np.histogram(values, found.edges.astype(np.float64))[0]
        assert np.abs(expected - found.histogram).sum() <= 4  # some stand on an edge


@pytest.mark.parametrize("site", ["res.2", "mlp.1", "att.1"])
def test_the_strongest(made, read, site):
    acts, places = dense(read, site)
    at = {place: row for row, place in enumerate(places)}
    for index in range(0, acts.shape[1], 5):
        found = made.evidence(f"{site}/{index}")
        column = acts[:, index]
        best = np.sort(column[column > 0])[::-1][:TOP]
        mine = [column[at[one.document, one.position]] for one in found.top]
        np.testing.assert_allclose(mine, best, atol=NEAR_ENOUGH)
        assert len({(one.document, one.position) for one in found.top}) == len(best)
        for one, value in zip(found.top, best, strict=True):
            assert one.value == pytest.approx(value, abs=found.maximum / 200)


@pytest.mark.parametrize("site", ["res.2", "mlp.1", "att.1"])
def test_random_examples_of_each_interval(made, read, site):
    """Five where there are five, all where there are fewer; those with the smallest numbers."""
    acts, places = dense(read, site)
    at = {place: row for row, place in enumerate(places)}
    numbers = scale.of_token(place_of(*np.array(places).T), 0)
    exact = total = 0
    drawn = []
    for index in range(0, acts.shape[1], 5):
        found = made.evidence(f"{site}/{index}")
        column = acts[:, index]
        if not found.fired:
            assert found.intervals == ()
            continue
        assert len(found.intervals) == INTERVALS
        assert [round(one.low / found.maximum, 4) for one in found.intervals] == [0, 0.2, 0.4, 0.6, 0.8]
        assert found.intervals[-1].high == pytest.approx(found.maximum)
        for one in found.intervals:
            inside = np.flatnonzero((column > one.low + NEAR_ENOUGH) & (column <= one.high - NEAR_ENOUGH))
            rows = [at[example.document, example.position] for example in one.examples]
            assert len(rows) == len(set(rows)) <= DRAWN
            assert all(one.low - NEAR_ENOUGH < column[row] <= one.high + NEAR_ENOUGH for row in rows)
            assert all(one.low <= example.value <= one.high for example in one.examples)
            drawn.append((len(rows), min(DRAWN, len(inside))))
            number = scale.of_firing(numbers[inside], np.full(len(inside), index), site)
            smallest = set(inside[np.argsort(number)[:DRAWN]].tolist())
            exact += len(smallest & set(rows))
            total += len(smallest)
    assert total > 200 and exact / total > 0.9  # the borders of intervals cut through groups: see tally.py
    missing = [wanted - got for got, wanted in drawn]
    assert np.mean([some > 0 for some in missing]) < 0.05 and sum(missing) < 0.03 * total, drawn


def test_what_is_around(made, read):
    """Near a peak every activation is there, to a level; silence is 0."""
    for feature in ("res.2/8", "mlp.1/30", "att.1/50"):
        feature = FeatureId.of(feature)
        for context, found in [(n, made.evidence(feature, context=n)) for n in (WINDOW, BESIDE)]:
            drawn = [example for part in found.intervals for example in part.examples]
            assert found.top and len(drawn) > 5
            for one in [*found.top, *(drawn if context == BESIDE else [])]:
                ids, trace = read[one.document]
                start, end = max(0, one.position - context), min(len(ids), one.position + context + 1)
                assert one.peak == one.position - start and one.ids == tuple(ids[start:end].tolist())
                assert one.tokens == tuple(token.text for token in trace.tokens[start:end])
                true = trace[feature][start:end]
                assert one.complete and one.activations.dtype == np.float32 and len(one.activations) == len(one.ids)
                np.testing.assert_array_equal(one.activations > 0, true > 0)
                off = np.sqrt(one.activations / found.maximum) - np.sqrt(true / found.maximum)
                assert np.abs(off).max() < 0.5 / LEVELS + 0.025
                assert one.activations[one.peak] == np.float32(one.value)


def test_what_is_not_kept_is_said(made, read):
    """Random examples have their activations for five tokens on each side; beyond, special tokens are known too."""
    found = made.evidence("res.2/8", context=WINDOW)
    strongest = {(one.document, one.position) for one in found.top}
    drawn = [one for part in found.intervals for one in part.examples if (one.document, one.position) not in strongest]
    assert drawn and not all(one.complete for one in drawn)
    for one in drawn:
        _, trace = read[one.document]
        left, right = one.position - BESIDE, one.position + BESIDE
        shown = range(one.position - one.peak, one.position - one.peak + len(one.ids))
        assert one.complete == all(left <= at <= right or trace.tokens[at].special for at in shown)


def test_context_and_the_whole_passage(tiny3, made, read):
    few = made.evidence("res.2/8", context=2)
    whole = made.evidence("res.2/8", context=None)
    for short, long in zip(few.top, whole.top, strict=True):
        ids, _ = read[long.document]
        assert len(short.ids) <= 5 and short.complete
        assert long.ids == tuple(ids.tolist()) and long.peak == long.position
        assert short.ids == long.ids[long.peak - short.peak :][: len(short.ids)]
    unknown = [one for one in whole.top if not one.complete]
    assert unknown
    tiny3.use(made)
    known = tiny3.whole("res.2/8", unknown[0])
    assert known.complete and known.ids == unknown[0].ids
    np.testing.assert_allclose(known.activations, read[known.document][1]["res.2/8"], atol=NEAR_ENOUGH)


def test_tokens_it_fires_on(made, read):
    """Exact for a feature whose firings are all looked at; a sample of them otherwise."""
    site = Site.of("res.2")
    density = made.density(site) * made.about.tokens
    rare = [i for i in np.flatnonzero(density) if density[i] < FIRINGS][:5]
    acts, places = dense(read, site)
    for index in [*rare, int(density.argmax())]:
        found = made.evidence(FeatureId(site, int(index)))
        assert found.looked_at == min(found.fired, FIRINGS)
        fired = [int(read[p][0][at]) for (p, at), value in zip(places, acts[:, index], strict=True) if value > 0]
        assert [one.count for one in found.on] == sorted((one.count for one in found.on), reverse=True)
        for one in found.on:
            true = fired.count(one.id)
            assert one.count == true if index in rare else 1 <= one.count <= true
            assert one.text == made.text(one.id)


def test_features_that_fire_together(made, read):
    """The share is the Jaccard index: close for the nearest, and the nearest are among the nearest."""
    acts, _ = dense(read, "res.2")
    on = (acts > 0).astype(np.float64)
    both = on.T @ on
    either = on.sum(0)[:, None] + on.sum(0) - both
    jaccard = both / np.maximum(either, 1)
    np.fill_diagonal(jaccard, 0)
    far = []
    for index in range(0, acts.shape[1], 6):
        found = made.evidence(f"res.2/{index}")
        shares = [one.share for one in found.together]
        assert shares == sorted(shares, reverse=True) and index not in [one.feature.index for one in found.together]
        far += [abs(one.share - jaccard[index, one.feature.index]) for one in found.together]
        if found.together and jaccard[index].max() > 0.3:
            assert max(jaccard[index, one.feature.index] for one in found.together) > 0.7 * jaccard[index].max()
    assert np.mean(far) < 0.07


def test_a_feature_that_never_fires(made):
    found = made.evidence(f"res.2/{NEVER_FIRES}")
    assert found.dead and found.fired == 0 and found.density == 0 and found.maximum == 0 and found.mean == 0
    assert found.top == found.intervals == found.on == found.together == ()
    assert len(found.histogram) == len(found.edges) == 0


def test_the_loupe_makes_and_uses_it(tiny3, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path))
    reports = []
    index = tiny3.index(TEXTS[:30], name="mine", progress=reports.append)
    assert index.folder == tmp_path / "indexes" / "mine"
    assert tiny3.evidence("res.2/8").index == "mine"
    assert reports[-1].share == 1 and reports[-1].tokens == index.about.tokens
    assert [report.tokens for report in reports] == sorted(report.tokens for report in reports)
    with gl.open(tiny3.engine.loaded.folder, scope=tiny3.engine.scope.folder, device="cpu") as other:
        with pytest.raises(Refusal) as caught:
            other.evidence("res.2/8")
        assert caught.value.code == "index-none"
        assert other.use("mine").about.name == "mine"
        assert other.evidence("res.2/8").fired == tiny3.evidence("res.2/8").fired


def test_an_index_that_comes_with_the_saes(tiny_folders, tiny3, made, tmp_path):
    import shutil

    model, scope = tiny_folders["gemma3"]
    shutil.copytree(scope, tmp_path / "scope")
    shutil.copytree(made.folder, tmp_path / "scope" / "index")
    with gl.open(model, scope=tmp_path / "scope", device="cpu") as loupe:
        assert loupe.evidence("res.2/8").index == made.about.name


def test_opening_reads_the_manifest_only(made, tmp_path):
    (tmp_path / "manifest.json").write_bytes((made.folder / "manifest.json").read_bytes())
    opened = Index.open(tmp_path)
    assert opened.sites == made.sites and opened.about == made.about
    with pytest.raises(Refusal) as caught:
        opened.evidence("res.2/8")
    assert caught.value.code == "index-damaged" and "res.2.parquet" in str(caught.value)


def test_no_torch_is_needed(made):
    code = (
        "import sys; from gemloupe.study.index import Index\n"
        f"index = Index.open({str(made.folder)!r})\n"
        "assert index.evidence('res.2/8').top and index.density('mlp.1').any()\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_pandas_reads_it(made):
    import pandas

    table = pandas.read_parquet(made.folder / "res.2.parquet")
    assert len(table) == made.width("res.2")
    assert table["fired"].sum() == sum(made.evidence(f"res.2/{i}").fired for i in range(len(table)))
    passages = pandas.read_parquet(made.folder / "passages.parquet")
    first = table.loc[8]
    top = made.evidence("res.2/8").top[0]
    assert passages["ids"][first["passage"][0]][first["position"][0]] == top.ids[top.peak]


def test_unknown_sites_features_and_passages(made):
    for ask, code in [
        (lambda: made.evidence("res.9/0"), "index-without-site"),
        (lambda: made.evidence("res.2/96"), "feature-out-of-range"),
        (lambda: made.evidence("res.2/8", context=-1), "count-unreadable"),
        (lambda: made.passage(-1), "index-without-passage"),
        (lambda: made.passage(made.about.passages), "index-without-passage"),
        (lambda: made.density("mlp.3"), "index-without-site"),
    ]:
        with pytest.raises(Refusal) as caught:
            ask()
        assert caught.value.code == code


def test_reading_from_several_threads(made):
    from concurrent.futures import ThreadPoolExecutor

    alone = [made.evidence(f"res.0/{i}").fired for i in range(40)]
    again = Index.open(made.folder)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: again.evidence(f"res.0/{i}").fired, range(40))) == alone


def test_other_requests_come_between(tiny3, tmp_path):
    """A read asked for while an index is made does not wait for its end."""
    seen = []

    def look(report):
        if report.doing == "indexing" and len(seen) < 3:
            seen.append((len(tiny3.read("The City of Light").tokens), report.share))

    build(tiny3.engine, TEXTS, tmp_path / "index", shard=700, together=256, tell=look)
    assert len(seen) == 3 and all(share < 1 for _, share in seen)


def test_what_is_kept_does_not_depend_on_the_parts(tiny3, made, tmp_path):
    """One part instead of several: the same, but for what other batches change in the model's last bits."""
    other = build(tiny3.engine, TEXTS, tmp_path / "other", length=LENGTH, shard=10**6, together=256)
    assert other.about.tokens == made.about.tokens
    same = sum(
        [(o.document, o.position) for o in made.evidence(f).top]
        == [(o.document, o.position) for o in other.evidence(f).top]
        for f in (f"mlp.1/{i}" for i in range(96))
    )
    assert same > 80


def test_small_parts_raise_the_bar_too():
    """However little a part adds, later parts keep ever less: memory does not grow with the text."""
    draw, tally, kept = np.random.default_rng(0), Tally("res.0", 4, 0), []
    for part in range(40):
        row, column = np.nonzero(draw.random((2000, 4)) < 0.5)
        acts = SparseActs.from_entries((2000, 4), row, column, np.exp(draw.normal(3, 0.5, len(row))))
        place = place_of(np.full(2000, part), np.arange(2000))
        tally.add(acts, place, scale.of_token(place, 0), np.zeros(2000, np.uint32))
        found = tally.take()
        kept.append((len(found.examples), len(found.firings)))
    assert all(last < first / 4 for first, last in zip(kept[0], kept[-1], strict=True)), kept


@contextlib.contextmanager
def refused(code):
    with pytest.raises(Refusal) as caught:
        yield caught
    assert caught.value.code == code
    assert len(str(caught.value).split()) > 5


def test_another_model_or_sae_is_refused_with_both_digests(tiny3, made):
    facts = dict(tiny3.about.about)
    ours = {**facts["sae_digests"], "res.0": "f" * 64}
    with refused("index-other-sae") as caught:
        Index.open(made.folder, made_for=facts | {"sae_digests": ours})
    assert "f" * 64 in str(caught.value) and facts["sae_digests"]["res.0"] in str(caught.value)
    with refused("index-other-model") as caught:
        Index.open(made.folder, made_for=facts | {"model": "another"})
    assert "another" in str(caught.value)
