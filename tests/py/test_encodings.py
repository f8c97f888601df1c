"""Sites that wait for each other give what each gives alone. The queue is a GPU's; here a CPU runs the same code."""

import importlib

import numpy as np
import pytest
import torch
from gemloupe.errors import Refusal
from gemloupe.run.encode import dense, exactly
from gemloupe.run.encodings import Encodings
from gemloupe.run.read import read
from gemloupe.run.together import read_together
from gemloupe.site import Site
from test_encode import make_sae, normal
from test_read import close, text_ids

module = importlib.import_module("gemloupe.run.encodings")
CPU = torch.device("cpu")
SITES = [Site("att", 0), Site("res", 0), Site("transcoder", 1), Site("res", 1)]


def queued(monkeypatch, entries=1 << 20):
    """From here on, as on a GPU. Returns how many rows each listing had."""
    listed = []
    begin, flush = Encodings.__init__, Encodings._flush

    def init(self, tokens, sites, device):
        begin(self, tokens, sites, device, together=True)

    def counted(self):
        if self._waiting:
            listed.append(sum(len(piece.tokens) for piece in self._waiting))
        flush(self)

    monkeypatch.setattr(Encodings, "__init__", init)
    monkeypatch.setattr(Encodings, "_flush", counted)
    monkeypatch.setattr(module, "ENTRIES", entries)
    return listed


def kept_of(tokens, how):
    kept = torch.ones(tokens, dtype=torch.bool)
    match how:
        case "all but the first":
            kept[0] = False
        case "holes":
            kept[[0, 4, 5, 17, -1]] = False
        case "none":
            kept[:] = False
        case "the last":
            kept[:-1] = False
    return kept


@pytest.mark.parametrize("how", ["all", "all but the first", "holes", "the last", "none"])
@pytest.mark.parametrize("entries", [1 << 20, 5000, 700, 1])
@pytest.mark.parametrize("chunk", [30, 11])
def test_sites_that_wait_are_encoded_as_by_the_definition(monkeypatch, how, entries, chunk):
    """SAEs of different widths, also wider than what may wait."""
    listed = queued(monkeypatch, entries)
    saes = {
        site: make_sae(width, 80, seed=n)
        for n, (site, width) in enumerate(zip(SITES, (200, 500, 500, 64), strict=True))
    }
    inputs = {site: normal(30, 80, seed=n) for n, site in enumerate(SITES)}
    kept, encodings = kept_of(30, how), Encodings(30, len(SITES), CPU)
    for start in range(0, 30, chunk):
        end = min(30, start + chunk)
        encodings.begin(kept[start:end], start)
        for site in SITES:
            encodings.add(site, saes[site], inputs[site][start:end])
    found = encodings.finish()
    assert list(found) == sorted(SITES)
    for site, acts in found.items():
        counts, columns, values = dense(saes[site], inputs[site])
        whole = np.zeros(acts.shape, np.float32)
        whole[np.repeat(np.arange(30), counts), columns] = values
        assert np.allclose(acts.checked().to_dense(), whole * kept.numpy()[:, None], atol=1e-5)
        assert acts.shape == (30, saes[site].width) and (acts.nnz > 0) == bool(kept.any())
    assert sum(listed) == int(kept.sum()) * len(SITES)
    if kept.sum() > 1:
        assert len(listed) <= 2 if entries == 1 << 20 else len(listed) > 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("chunk", [30, 7])
def test_what_is_not_finite_is_refused_by_its_place_in_the_text(monkeypatch, bad, chunk):
    queued(monkeypatch)
    x, sae, kept = normal(30, 80), make_sae(), kept_of(30, "holes")
    x[17] = bad  # a token that is not kept harms nobody

    def encoded(other):
        encodings = Encodings(30, 2, CPU)
        for start in range(0, 30, chunk):
            encodings.begin(kept[start : start + chunk], start)
            for site, rows in zip(SITES, (x, other), strict=False):
                encodings.add(site, sae, rows[start : start + chunk])
        return encodings.finish()

    assert all(acts.nnz for acts in encoded(x).values())
    other = x.clone()
    other[21, 3] = bad
    with pytest.raises(Refusal) as refused:
        encoded(other)
    assert refused.value.code == "not-finite" and refused.value.facts == {"site": SITES[1], "position": 21}


def test_finite_numbers_whose_products_overflow_are_read(monkeypatch):
    queued(monkeypatch)
    sae = make_sae(level=0)
    sae.encoder.mul_(1e-6)
    encodings = Encodings(12, 1, CPU)
    encodings.begin(torch.ones(12, dtype=torch.bool))
    encodings.add(SITES[0], sae, normal(12, 80).sign().abs() * 3e38)
    assert encodings.finish()[SITES[0]].nnz > 0


@pytest.mark.parametrize("chunk", [16, 100])
@pytest.mark.parametrize("entries", [1 << 24, 6000])
def test_a_text_reads_the_same(tiny_loupe, monkeypatch, chunk, entries):
    loaded, sites = tiny_loupe.engine.loaded, tiny_loupe.sites
    ids = text_ids(tiny_loupe)
    ids[20] = ids[0]
    rest = {"special": loaded.special, "chunk": chunk, "measure": sites[1:3]}
    each = read(loaded.model, ids, sites, tiny_loupe.engine.sae, **rest)
    listed = queued(monkeypatch, entries)
    together = read(loaded.model, ids, sites, tiny_loupe.engine.sae, **rest)
    close(together.acts, each.acts, tiny_loupe.engine.sae)
    assert together.measured == each.measured
    assert len(listed) == 1 if entries == 1 << 24 else len(listed) > 2


def test_passages_read_together_read_the_same(tiny_loupe, monkeypatch):
    loaded, ids = tiny_loupe.engine.loaded, text_ids(tiny_loupe)
    rows = [ids[:20], ids[:7], [ids[0], *ids[30:]]]
    each = read_together(loaded.model, rows, tiny_loupe.sites, tiny_loupe.engine.sae, special=loaded.special)
    listed = queued(monkeypatch)
    together = read_together(loaded.model, rows, tiny_loupe.sites, tiny_loupe.engine.sae, special=loaded.special)
    close(together, each, tiny_loupe.engine.sae)
    assert listed


def test_a_later_chunk_names_the_token_in_the_text(tiny_loupe):
    """Each site at once, as on a CPU."""
    x = normal(9, 80)
    x[4, 2] = torch.nan
    encodings = Encodings(30, 1, CPU)
    encodings.begin(torch.ones(9, dtype=torch.bool), 21)
    with pytest.raises(Refusal) as refused:
        encodings.add(SITES[0], make_sae(), x)
    assert refused.value.facts["position"] == 25


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
def test_tf32_is_off_while_encoding_and_as_it_was_afterwards(allowed):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        with exactly():
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
        assert torch.get_float32_matmul_precision() == allowed
        assert torch.backends.cuda.matmul.allow_tf32 == (allowed != "highest")
    finally:
        torch.set_float32_matmul_precision(before)
