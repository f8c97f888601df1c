"""Nearest features by decoder cosine: exact, both ways, from the decoders and from the file."""

import gemloupe
import numpy as np
import pytest
from gemloupe.feature import FeatureId
from gemloupe.site import Site
from gemloupe.study import neighbours as study
from gemloupe.study.neighbours import NeighbourFile, comparable, matches, neighbours, write_neighbours
from refusal import refused


@pytest.fixture(scope="module")
def rows(tiny2):
    """Unit decoder rows by site, computed apart."""
    found = {}
    for site in tiny2.sites:
        decoder = tiny2.engine.sae(site).decoder.double().numpy()
        found[site] = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    return found


def expected(rows, feature, k, same_site):
    found = []
    for site, theirs in rows.items():
        if not comparable(feature.site, site) or (same_site is not None and same_site != (site == feature.site)):
            continue
        for i, cosine in enumerate(theirs @ rows[feature.site][feature.index]):
            if FeatureId(site, i) != feature:
                found.append((-cosine, FeatureId(site, i)))
    return sorted(found)[:k]


@pytest.mark.parametrize("same_site", [True, False, None])
@pytest.mark.parametrize("name", ["res.2/3", "mlp.1/0", "att.1/95", "transcoder.2/7"])
def test_neighbours_are_the_nearest(tiny2, rows, name, same_site):
    feature = FeatureId.of(name)
    found = tiny2.neighbours(name, k=7, same_site=same_site)
    wanted = expected(rows, feature, 7, same_site)
    assert [one.feature for one in found] == [feature for _, feature in wanted]
    assert [one.cosine for one in found] == pytest.approx([-cosine for cosine, _ in wanted], abs=1e-5)


def test_attention_heads_of_another_layer_are_no_neighbours(tiny2):
    assert tiny2.neighbours("att.1/3", same_site=False) == ()
    assert not comparable(Site("att", 1), Site("att", 2)) and comparable(Site("res", 1), Site("mlp", 2))


@pytest.mark.parametrize("block", [1 << 25, 1000])
def test_matches_of_every_pair(tiny2, rows, monkeypatch, block):
    monkeypatch.setattr(study, "_BLOCK", block)
    found = {(one.site, one.other): one for one in matches(tiny2.engine, 4)}
    streams = [site for site in tiny2.sites if site.kind != "att"]
    assert set(found) == {(one, two) for one in streams for two in streams} | {(Site("att", 1),) * 2}
    for (one, two), match in found.items():
        scores = rows[one] @ rows[two].T
        if one == two:
            np.fill_diagonal(scores, -np.inf)
        assert match.features.dtype == np.int32 and match.cosines.dtype == np.float32
        np.testing.assert_allclose(match.cosines, -np.sort(-scores, 1)[:, :4], atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(scores, match.features, 1), match.cosines, atol=1e-5)


def test_fewer_than_asked_for_are_padded(tiny2):
    (match,) = matches(tiny2.engine, 200, ["res.2"])
    assert match.features.shape == (96, 200)
    assert (match.features[:, 95:] == -1).all() and np.isnan(match.cosines[:, 95:]).all()
    assert (match.features[:, :95] >= 0).all()
    assert len(tiny2.neighbours("res.2/1", k=500, same_site=True)) == 95


def test_the_file_says_the_same(tiny2, tmp_path):
    file = NeighbourFile(write_neighbours(tiny2.engine, tmp_path / "index"))
    about = tiny2.about
    assert file.fits(about.widths, about.about["sae_digests"])
    assert not file.fits(about.widths, about.about["sae_digests"] | {"res.2": "0" * 64})
    assert not file.fits({Site("res", 2): 95}, {})
    for name in ("res.0/0", "mlp.1/95", "att.1/4", "transcoder.2/50"):
        feature = FeatureId.of(name)
        for k, same_site in ((5, True), (10, False), (5, None)):
            kept, computed = file.of(feature, k, same_site), neighbours(tiny2.engine, feature, k, same_site)
            assert [one.cosine for one in kept] == pytest.approx([one.cosine for one in computed], abs=6e-4)
            assert {one.feature for one in kept} == {one.feature for one in computed}
    assert file.of(FeatureId.of("res.0/0"), 6, True) is None
    refused("feature-out-of-range", lambda: file.of(FeatureId.of("res.0/96"), 5))
    assert not list((tmp_path / "index").glob(".*"))


def test_of_sites_that_are_closed_nothing_is_shown(tmp_path):
    """The file that comes along is of all sites; what is near in one that is not open cannot be looked at."""
    with gemloupe.open(sites=["res.12", "res.11"]) as loupe:
        found = loupe.neighbours("res.12/0", 10, same_site=False)
        assert len(found) == 10 and {one.feature.site for one in found} == {Site.of("res.11")}
        kept = [one.feature for one in loupe.kept_neighbours(FeatureId.of("res.12/0"), 10, False) or ()]
        assert kept == [one.feature for one in found[: len(kept)]]
        assert len(loupe.search(near="res.12/0", k=4)) == 4
        assert len(loupe.kept_neighbours(FeatureId.of("res.12/0"), 5, True)) == 5


def test_files_that_are_none_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    refused("file-unreadable", lambda: NeighbourFile(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("x" * 100)
    refused("file-unreadable", lambda: NeighbourFile(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"own": [1]}), tmp_path / "other.parquet")
    refused("file-unreadable", lambda: NeighbourFile(tmp_path / "other.parquet"))


def test_bad_input_is_refused(tiny2):
    refused("count-unreadable", lambda: tiny2.neighbours("res.2/1", k=0))
    refused("feature-out-of-range", lambda: tiny2.neighbours("res.2/96"))
    refused("site-not-open", lambda: tiny2.neighbours("res.1/0"))
    refused("site-not-open", lambda: list(matches(tiny2.engine, 3, ["res.7"])))
    refused("feature-unreadable", lambda: tiny2.neighbours("res.2"))
