"""Fixtures shared by the suite: loupes on tiny random models, and the built-in one.

`tiny_scope` writes random SAEs at every kind of site, so that tests see activations everywhere without any download.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny import VOCABULARY, tiny_model

# Not in the order of the forward pass, on purpose.
SITES = ("res.2", "res.0", "mlp.1", "att.1", "transcoder.2")
SCOPE_WIDTH = 96
NEVER_FIRES = 5  # at every tiny site: known to be silent, so its maximum is unknown
UNKNOWN = 7  # at every tiny site: its maximum was not measured


def tiny_scope(loaded, folder, sites=SITES, seed=0, plant=lambda name, decoder: None):
    """Random JumpReLU SAEs for a loaded tiny model, with statistics; `mlp.1` has none. Returns the folder.

    `plant(name, decoder)` may change the unit rows of a decoder before it is used."""
    import torch
    from gemloupe.load.sae import FeatureStats, Sae
    from gemloupe.load.scope import write_scope
    from gemloupe.run.capture import model_facts, width_of
    from gemloupe.site import Site

    random = torch.Generator().manual_seed(seed)
    saes = []
    for name in sites:
        site = Site.of(name)
        d_in = width_of(loaded.model, site)
        decoder = torch.randn(SCOPE_WIDTH, d_in, generator=random)
        decoder /= decoder.norm(dim=1, keepdim=True)
        plant(name, decoder)
        threshold = torch.rand(SCOPE_WIDTH, generator=random) + 0.2
        threshold[NEVER_FIRES] = 1e9
        sae = Sae(
            site,
            encoder=decoder * 1.2,
            b_enc=0.1 * torch.randn(SCOPE_WIDTH, generator=random),
            threshold=threshold,
            decoder=decoder,
            b_dec=torch.zeros(d_in),
        )
        draw = np.random.default_rng(seed)
        maximum = draw.uniform(1, 8, SCOPE_WIDTH).astype(np.float32)
        maximum[NEVER_FIRES] = 0
        maximum[UNKNOWN] = np.nan
        tokens = draw.integers(0, VOCABULARY, (SCOPE_WIDTH, 10), dtype=np.int32)
        logits = np.sort(draw.standard_normal((SCOPE_WIDTH, 10)), axis=1)[:, ::-1].astype(np.float16)
        stats = FeatureStats(
            maximum=maximum,
            density=draw.random(SCOPE_WIDTH).astype(np.float32),
            mean_active=(maximum / 2).astype(np.float32),
            promotes=tokens,
            promotes_logit=logits,
            suppresses=tokens[:, ::-1],
            suppresses_logit=-logits,
        )
        saes.append((sae, None if name == "mlp.1" else stats, {"l0": 10.0}))
    write_scope(folder, saes, id=f"tiny-{loaded.architecture}", model=model_facts(loaded))
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_data(tmp_path_factory):
    """Labels and notes of tests must not end up among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMLOUPE_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """kind -> (model folder, scope folder). The models are instruction-tuned ones: they have a chat template."""
    from gemloupe.load.model import load_model

    root = tmp_path_factory.mktemp("tiny")
    folders = {}
    for kind in ("gemma2", "gemma3"):
        model = tiny_model(kind, root / kind, instruct=True)
        folders[kind] = (model, tiny_scope(load_model(model, device="cpu"), root / f"{kind}-scope"))
    return folders


def _open(tiny_folders, kind):
    import gemloupe as gl

    model, scope = tiny_folders[kind]
    return gl.open(model, scope=scope, device="cpu")


@pytest.fixture(scope="session")
def tiny2(tiny_folders):
    with _open(tiny_folders, "gemma2") as loupe:
        yield loupe


@pytest.fixture(scope="session")
def tiny3(tiny_folders):
    with _open(tiny_folders, "gemma3") as loupe:
        yield loupe


@pytest.fixture(scope="session", params=["gemma2", "gemma3"])
def tiny_loupe(request):
    """A tiny loupe of each kind in turn."""
    return request.getfixturevalue({"gemma2": "tiny2", "gemma3": "tiny3"}[request.param])


@pytest.fixture(scope="session")
def builtin():
    """The built-in loupe; the tests that use it are skipped only where its package is not installed."""
    import gemloupe as gl
    from gemloupe.errors import Refusal

    try:
        loupe = gl.open()
    except Refusal as refusal:
        if refusal.code == "builtin-missing":
            pytest.skip(str(refusal))
        raise
    with loupe:
        yield loupe
