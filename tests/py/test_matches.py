"""The same feature one layer on: against brute force, with what fires together, from decoders and from the file."""

import gemloupe as gl
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SCOPE_WIDTH, tiny_scope
from gemloupe.evolution import alike
from gemloupe.feature import FeatureId
from gemloupe.load.model import load_model
from gemloupe.site import Site
from gemloupe.study import matches as study
from gemloupe.study.matches import (
    MatchFile,
    Pair,
    assigned,
    mutual,
    neighbours_of,
    pairs,
    passages_of,
    write_matches,
)
from refusal import refused
from tiny import TEXT

# res.2 is not there: nothing may be joined across it.
SITES = ("res.0", "res.1", "res.3", "att.0", "att.1", "mlp.1", "mlp.2", "mlp.3")
PLANTED = {("res.1", 40): ("res.0", 11), ("mlp.2", 0): ("mlp.1", 7), ("mlp.3", 95): ("mlp.2", 0)}


@pytest.fixture(scope="module")
def loupe(tiny_folders, tmp_path_factory):
    model, _ = tiny_folders["gemma3"]
    decoders = {}

    def plant(name, decoder):
        """Copies of a feature in the next layer, a little turned."""
        decoders[name] = decoder
        for (site, index), (of, original) in PLANTED.items():
            if site == name:
                row = decoders[of][original] + 0.05 * decoder[index]
                decoder[index] = row / row.norm()

    folder = tiny_scope(load_model(model, device="cpu"), tmp_path_factory.mktemp("matches"), SITES, plant=plant)
    with gl.open(model, scope=folder, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def indexed(loupe, tmp_path_factory):
    """The loupe with an index in use and a file of matches beside it."""
    words = TEXT.split()
    texts = [" ".join(words[i : i + 30]) for i in range(0, len(words), 5)]
    index = loupe.index(texts, name="tiny", folder=tmp_path_factory.mktemp("index") / "one", passage=32)
    loupe.write_matches()
    return index


@pytest.fixture(scope="module")
def rows(loupe):
    """What each feature writes to the stream, unit length, computed apart: float64 [feature, d_model] by site."""
    found = {}
    for site in loupe.sites:
        decoder = loupe.engine.sae(site).decoder.double()
        if site.kind == "att":
            layer = loupe.engine.loaded.model.model.layers[site.layer]
            decoder = decoder @ layer.self_attn.o_proj.weight.double().T
            decoder = decoder * (1 + layer.post_attention_layernorm.weight.double())
        found[site] = (decoder / decoder.norm(dim=1, keepdim=True)).numpy()
    return found


def nearest(cosines, k):
    """[(feature, cosine)] of each row's k largest."""
    return [[(int(i), row[i]) for i in np.argsort(-row)[:k]] for row in cosines]


# ---- brute force


def test_every_pair_is_that_of_brute_force(loupe, rows):
    made = {(str(pair.one), str(pair.two)): pair for pair in pairs(loupe.engine, 3)}
    assert set(made) == {("res.0", "res.1"), ("att.0", "att.1"), ("mlp.1", "mlp.2"), ("mlp.2", "mlp.3")}
    for (one, two), pair in made.items():
        cosines = rows[Site.of(one)] @ rows[Site.of(two)].T
        for (features, values), wanted in ((pair.there, nearest(cosines, 3)), (pair.back, nearest(cosines.T, 3))):
            assert features.tolist() == [[i for i, _ in row] for row in wanted]
            np.testing.assert_allclose(values, [[value for _, value in row] for row in wanted], atol=1e-5)
        there, back = cosines.argmax(1), cosines.argmax(0)
        one_to_one = [j if back[j] == i else -1 for i, j in enumerate(there)]
        assert pair.mutual.tolist() == one_to_one
        joined = [j for j in one_to_one if j >= 0]
        assert len(joined) == len(set(joined)) > 0


@pytest.mark.parametrize("name", ["res.0/11", "res.1/0", "att.1/95", "mlp.2/0", "mlp.3/50"])
def test_one_feature_as_brute_force(loupe, rows, name):
    feature = FeatureId.of(name)
    found = study.matches(loupe.engine, feature, 4)
    wanted = []
    for other in neighbours_of(feature.site, loupe.sites):
        if other is not None:
            cosines = rows[feature.site] @ rows[other].T
            for rank, (index, cosine) in enumerate(nearest(cosines, 4)[feature.index]):
                home = rank == 0 and cosines[:, index].argmax() == feature.index
                wanted.append((str(other), index, pytest.approx(cosine, abs=1e-5), home))
    assert [(str(m.feature.site), m.feature.index, m.cosine, m.mutual) for m in found] == wanted


def test_a_planted_copy_is_found(loupe):
    for (site, index), (of, original) in PLANTED.items():
        copy, source = FeatureId(Site.of(site), index), FeatureId(Site.of(of), original)
        forward = [one for one in loupe.matches(source, 1) if one.feature.site == copy.site]
        assert [(one.feature, one.mutual, one.same) for one in forward] == [(copy, True, True)]
        assert forward[0].cosine > 0.95
        assert source in [one.feature for one in loupe.matches(copy, 1)]


def test_a_trail_leads_through_all_copies_and_never_over_a_gap(loupe):
    evolution = loupe.evolve("The City of Light")
    for name in ("mlp.1/7", "mlp.2/0", "mlp.3/95"):
        assert [str(one) for one in evolution.trail(name)] == ["mlp.1/7", "mlp.2/0", "mlp.3/95"]
    assert [str(one) for one in evolution.trail("res.1/40")] == ["res.0/11", "res.1/40"]
    assert not [one for one in loupe.matches("res.1/40") if one.feature.site.layer > 1]
    assert Site("res", 2) in evolution.missing


# ---- what counts as the same


def test_near_is_not_enough():
    assert alike([0.9, 0.9, 0.97, 0.2], [np.nan, 0.4, 0.01, 0.4]).tolist() == [True, True, False, False]


def pair_of(there, cosines, back, cosines_back):
    one, two = Site.of("res.0"), Site.of("res.1")
    sides = (np.array(there, np.int32), np.float32(cosines)), (np.array(back, np.int32), np.float32(cosines_back))
    return Pair(one, two, *sides)


def test_one_thing_is_chosen_by_cosine_and_co_activation_each_feature_once():
    # 0 is nearest to 1, but fires with 0; 1 is nearest to 1 and fires with it; 2 is near what never fires with it.
    pair = pair_of(
        [[1, 0], [1, 2], [3, 0]],
        [[0.9, 0.8], [0.85, 0.4], [0.97, 0.1]],
        [[0, 2], [0, 1], [1, 0], [2, 1]],
        [[0.8, 0.1], [0.9, 0.85], [0.4, 0.2], [0.97, 0.1]],
    )
    there = np.float32([[0.06, 0.5], [0.6, 0.1], [0.0, 0.5]])
    back = np.float32([[0.5, 0.5], [0.06, 0.6], [0.1, 0.1], [0.0, 0.1]])
    partner, cosine, share = assigned(pair, (there, back))
    assert partner.tolist() == [0, 1, -1]
    np.testing.assert_allclose(cosine[:2], [0.8, 0.85], atol=1e-6)
    np.testing.assert_allclose(share[:2], [0.5, 0.6], atol=1e-6)


def test_without_co_activation_mutual_nearest_stay_together():
    random = np.random.default_rng(3)
    rows = [random.standard_normal((40, 8)).astype(np.float32) for _ in range(2)]
    rows = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows]
    cosines = rows[0] @ rows[1].T
    sides = []
    for table in (cosines, cosines.T):
        order = np.argsort(-table, axis=1)[:, :2]
        sides += [order, np.take_along_axis(table, order, axis=1)]
    pair = pair_of(*sides)
    unknown = np.full((40, 2), np.nan, np.float32)
    partner, _, _ = assigned(pair, (unknown, unknown))
    joined = partner[partner >= 0]
    assert len(joined) == len(set(joined.tolist())) > (pair.mutual >= 0).sum() > 0
    assert (partner[pair.mutual >= 0] == pair.mutual[pair.mutual >= 0]).all()


def test_mutual_is_one_to_one():
    random = np.random.default_rng(0)
    there, back = random.integers(-1, 20, 30), random.integers(-1, 30, 20)
    found = mutual(there, back)
    assert [(i, j) for i, j in enumerate(found) if j >= 0] == [
        (i, j) for i, j in enumerate(there) if j >= 0 and back[j] == i
    ]


# ---- the file


def farther(match, computed):
    """Whether a match is only listed because it is the same thing."""
    return match.same and match.feature not in [one.feature for one in computed]


def test_what_is_the_same_leads_back(loupe, indexed):
    joined = 0
    for site in loupe.sites:
        for index in range(SCOPE_WIDTH):
            for match in loupe.matches(FeatureId(site, index)):
                if match.same:
                    joined += 1
                    back = [one for one in loupe.matches(match.feature) if one.same]
                    mine = [one for one in back if one.feature.site == site]
                    assert [one.feature.index for one in mine] == [index], "one to one"
                    assert mine[0].cosine == match.cosine and mine[0].coactivation == match.coactivation
    assert joined > 20


def test_the_file_says_what_the_decoders_say(loupe, indexed):
    file = MatchFile(indexed.folder / study.FILE)
    assert file.fits(loupe.about.widths, loupe.about.about["sae_digests"])
    assert file.tokens == indexed.about.tokens + indexed.about.passages, "with each passage's <bos>"
    for site in loupe.sites:
        for index in range(0, SCOPE_WIDTH, 7):
            feature = FeatureId(site, index)
            computed = study.matches(loupe.engine, feature, 2)
            known = [match for match in file.of(feature, 2) if not farther(match, computed)]
            assert [(m.feature, m.mutual) for m in known] == [(m.feature, m.mutual) for m in computed]
            np.testing.assert_allclose([m.cosine for m in known], [m.cosine for m in computed], atol=6e-4)


def test_co_activation_is_that_of_the_index(loupe, indexed):
    passages = [indexed.passage(number).tolist() for number in range(indexed.about.passages)]
    fired = {}
    for ids in passages:
        for site, acts in loupe.read(ids).acts.items():
            fired.setdefault(site, []).append(acts.to_dense() > 0)
    fired = {site: np.concatenate(parts) for site, parts in fired.items()}
    known = 0
    for site in loupe.sites:
        for index in range(SCOPE_WIDTH):
            mine = fired[site][:, index]
            for match in loupe.matches(FeatureId(site, index)):
                theirs = fired[match.feature.site][:, match.feature.index]
                if min(mine.sum(), theirs.sum()) < study.LEAST:
                    assert match.coactivation is None
                else:
                    known += 1
                    share = (mine & theirs).sum() / (mine | theirs).sum()
                    assert match.coactivation == pytest.approx(share, abs=3e-3)
    assert known > 200


def test_progress_ends_at_all_of_it(loupe, indexed, capsys):
    told = []
    loupe.write_matches(progress=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1 and len({what for what, _ in told}) > 3
    with study.shown(None) as tell:
        tell("matches", 0.5)
        tell("matches", 0.4)


def test_some_of_a_long_text_is_read_evenly(indexed):
    groups = list(passages_of(indexed, indexed.about.tokens // 3))
    read = sum(len(ids) for group in groups for ids in group)
    assert 0.2 < read / indexed.about.tokens < 0.5
    every = [indexed.passage(number).tolist() for number in range(indexed.about.passages)]
    where = [every.index(ids.tolist()) for group in groups for ids in group]
    assert where == sorted(where) and where[-1] > 0.8 * len(every)


def test_the_file_is_asked_before_any_decoder(loupe, indexed, monkeypatch):
    monkeypatch.setattr(loupe.engine, "sae", lambda site: pytest.fail(f"{site} was read"))
    found = loupe.matches("mlp.2/0")
    assert [one.feature.site.layer for one in found] == [1, 1, 3, 3]
    assert "mlp.1/7" in repr(found) and "the same thing" in repr(found)


def test_more_than_the_file_holds_comes_from_the_decoders(loupe, indexed):
    found = loupe.matches("mlp.2/0", 5)
    assert len(found) == 10
    assert {one.feature: one.coactivation for one in loupe.matches("mlp.2/0")}.items() <= {
        one.feature: one.coactivation for one in found
    }.items()


def test_a_file_of_other_saes_is_left_alone(loupe, indexed):
    file = MatchFile(indexed.folder / study.FILE)
    digests = dict(loupe.about.about["sae_digests"])
    assert not file.fits(loupe.about.widths, digests | {"res.0": "another"})
    assert not file.fits({Site.of("res.0"): 12}, digests)


def test_a_damaged_file_says_so(loupe, tmp_path):
    (tmp_path / "none").write_bytes(b"nothing of the kind")
    refused("file-unreadable", lambda: MatchFile(tmp_path / "none"))
    whole = write_matches(loupe.engine, tmp_path)
    assert MatchFile(whole).of(FeatureId.of("res.0/0"), 1)[0].coactivation is None, "no text was read"
    table = pq.read_table(whole)
    pq.write_table(table, tmp_path / "joined")
    refused("file-unreadable", lambda: MatchFile(tmp_path / "joined"))
    newer = table.schema.metadata[b"gemloupe.matches"].replace(b'"format": 1', b'"format": 9')
    pq.write_table(table.replace_schema_metadata({"gemloupe.matches": newer}), tmp_path / "newer")
    refused("scope-newer", lambda: MatchFile(tmp_path / "newer"))
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


# ---- what is refused


def test_what_is_refused(loupe, tiny3, tmp_path):
    assert "res.2" in refused("site-not-open", lambda: loupe.matches("res.2/0"))
    refused("feature-out-of-range", lambda: loupe.matches(f"res.0/{SCOPE_WIDTH}"))
    refused("count-unreadable", lambda: loupe.matches("res.0/0", 0))
    refused("feature-unreadable", lambda: loupe.matches("res.0"))
    (tmp_path / "file").write_text("in the way")
    refused("cache-not-writable", lambda: write_matches(loupe.engine, tmp_path / "file" / "folder"))


def test_where_no_layer_beside_is_open_there_are_none(tiny3):
    found = tiny3.matches("res.2/0")
    assert len(found) == 0 and "no layer beside it is open" in repr(found)
    refused("feature-out-of-range", lambda: tiny3.matches(f"res.2/{SCOPE_WIDTH}"))
    assert len(found.figure().data) == 1


def test_a_figure_of_matches(loupe, indexed):
    found = loupe.matches("mlp.2/0")
    (sankey,) = found.figure({FeatureId.of("mlp.2/0"): "a copy"}).data
    assert sankey.node.label[0] == "mlp.2/0 a copy" and len(sankey.node.label) == 5
    np.testing.assert_allclose(sankey.link.value, [max(one.cosine, 0.01) for one in found])
    assert list(sankey.link.target[:2]) == [0, 0] and list(sankey.link.source[2:]) == [0, 0]
