"""Passages read together give what each gives alone."""

import numpy as np
import pytest
from gemloupe.engine.protocol import TogetherRequest
from gemloupe.errors import Refusal
from gemloupe.site import Site

BOS = 2
ROWS = [BOS, 300, 301, 302], [BOS, *range(280, 330)], [BOS, 1, 300], [BOS]
PASSAGES = tuple(np.array(ids, np.int32) for ids in ROWS)


def test_as_each_alone(tiny_loupe):
    found = tiny_loupe.engine.together(TogetherRequest(PASSAGES)).result()
    assert set(found) == set(tiny_loupe.sites)
    traces = [tiny_loupe.read(ids.tolist()) for ids in PASSAGES[:3]]
    for site, acts in found.items():
        assert acts.shape[0] == sum(map(len, PASSAGES))
        alone = np.concatenate([trace[site].to_dense() for trace in traces])
        np.testing.assert_allclose(acts.to_dense()[:-1], alone, atol=1e-4)
        assert acts.l0[[0, 4, 55, 56, 58]].tolist() == [0] * 5, "special tokens are masked wherever they stand"


def test_only_some_sites(tiny3):
    found = tiny3.engine.together(TogetherRequest(PASSAGES, (Site.of("res.0"),))).result()
    assert list(found) == [Site.of("res.0")]


@pytest.mark.parametrize(
    ("passages", "sites", "code"),
    [
        ((), None, "text-empty"),
        ((np.zeros(300, np.int32),), None, "text-too-long"),
        (PASSAGES, (Site("res", 3),), "site-not-open"),
        (PASSAGES, (), "index-no-sites"),
    ],
)
def test_what_is_refused(tiny3, passages, sites, code):
    with pytest.raises(Refusal) as caught:
        tiny3.engine.together(TogetherRequest(passages, sites))
    assert caught.value.code == code


def test_it_leaves_no_hook_and_can_be_cancelled(tiny3):
    request = TogetherRequest(tuple(np.full(250, 300, np.int32) for _ in range(40)))
    blocker = tiny3.engine.together(request)
    job = tiny3.engine.together(request)
    job.cancel()
    with pytest.raises(Refusal) as caught:
        job.result()
    assert caught.value.code == "cancelled"
    blocker.result()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny3.engine.loaded.model.modules())
