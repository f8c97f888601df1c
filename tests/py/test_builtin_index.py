"""The index that ships with the built-in SAEs: whole, small, of these SAEs, and it knows what it should."""

import hashlib
import json
from pathlib import Path

import gemloupe
import numpy as np
import pytest
from gemloupe.feature import FeatureId
from gemloupe.load.scope import Scope
from gemloupe.study.automatic import automatic
from gemloupe.study.index import Index

SCOPE = Path(gemloupe.__file__).parent / "scopes" / "gemma-3-270m"
FOLDER = SCOPE / "index"
# What is computed from the SAEs' own weights and only lies here.
OF_THE_SAES = {"neighbours.parquet", "matches.parquet"}


@pytest.fixture(scope="module")
def index():
    return Index.open(FOLDER)


def test_it_is_small_and_its_files_are_those_it_names():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(size for name, size in sizes.items() if name not in OF_THE_SAES) < 25_000_000
    assert sum(sizes.get(name, 0) for name in OF_THE_SAES) < 6_000_000
    files = json.loads((FOLDER / "manifest.json").read_text())["files"]
    assert set(sizes) - OF_THE_SAES == set(files) | {"manifest.json", "labels.parquet"}
    for name, digest in files.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_it_is_of_the_saes_that_ship(index):
    scope = Scope.open(SCOPE)
    manifest = json.loads((SCOPE / "manifest.json").read_text())
    assert index.about.tokens >= 300_000
    assert {str(site) for site in index.sites} == {str(site) for site in scope.sites}
    made_of = json.loads((FOLDER / "manifest.json").read_text())
    assert made_of["model"]["digest"] == manifest["model"]["digest"]
    assert gemloupe.open().index_in_use.about == index.about  # which compares the SAEs' digests


def test_almost_every_feature_has_examples_and_numbers_agree(index):
    """Maxima and densities were measured on other text, so they agree as figures of two samples do."""
    scope = Scope.open(SCOPE)
    for site in index.sites:
        density, known = index.density(site), scope.stats(site)
        assert (density == 0).mean() < 0.03, site
        often = known.density > 1e-3
        assert np.corrcoef(np.log(density[often] + 1e-6), np.log(known.density[often]))[0, 1] > 0.4, site
    evidence = index.evidence("res.12/1401")
    assert evidence.fired == sum(evidence.histogram) and len(evidence.top) == 20
    assert [example.value for example in evidence.top] == sorted((e.value for e in evidence.top), reverse=True)
    assert all(one.low < one.high for one in evidence.intervals)


def test_matches_are_of_the_saes_that_ship():
    with gemloupe.open() as loupe:
        assert loupe._matches is not None, "made from other SAEs: loupe.write_matches() makes them anew"
        assert loupe._matches.tokens >= 90_000, "about 100,000 tokens, in whole passages"
        beside = {}
        for layer in range(17):
            found = [loupe.matches(f"res.{layer}/{index}") for index in range(0, 1000, 25)]
            after = [[one for one in matches if one.feature.site.layer == layer + 1] for matches in found]
            assert all(len(one) >= 2 for one in after)
            beside[layer] = np.mean([any(match.same for match in one) for one in after])
        assert np.mean(list(beside.values())) > 0.5, "most features of the residual stream go on"


def without_near(label):
    """Which of several words that are equally often near is named is not the point."""
    return label and [part for part in label.text.split(" · ") if not part.startswith("near ")]


def test_automatic_labels_from_what_is_kept_are_those_of_the_evidence():
    with gemloupe.open() as loupe:
        index, compared = loupe.index_in_use, 0
        for site in index.sites[::6]:
            for number in range(0, index.width(site), 400):
                feature = FeatureId(site, number)
                made = automatic(
                    feature, [text for text, _ in loupe.feature(feature).promotes], loupe.evidence(feature)
                )
                known = next((one for one in loupe.labels.of(feature) if one.source == "automatic"), None)
                assert without_near(made) == without_near(known), feature
                compared += 1
        assert compared > 20
