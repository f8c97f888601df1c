"""Downloading, from a hub on this machine: progress, resuming, what is cut short or gated; and no token anywhere."""

import logging
import traceback

import numpy as np
import pytest
from gemloupe.errors import Refusal
from gemloupe.load import hub
from gemloupe.load.gemma_scope import GemmaScope
from gemloupe.load.model import load_model
from gemloupe.load.scope import ModelFacts
from hubs import COMMIT, FakeHub, arrays, entry, serving, weights
from huggingface_hub import constants

TOKEN = "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"
RES = "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical"
MLP = "gemma-scope-2b-pt-mlp-canonical/layer_4/width_16k/canonical"
RES2 = "gemma-scope-2-270m-pt-res/layer_12_width_16k_l0_medium"


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """An empty cache, and a hub that serves nothing yet; requests carry the canary as their token."""
    fake = FakeHub()
    with serving(fake) as address:
        monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "ours"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, value in {
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "DOWNLOAD_CHUNK_SIZE": 1 << 14,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield fake


def small(name=RES, width=512, d_in=64):
    return entry(name, width=width, d_in=d_in)


def scope_of(one, progress=None):
    return GemmaScope("x", ModelFacts(one.model), {one.site: one}, progress=progress)


def refused(code, run):
    with pytest.raises(Refusal) as caught:
        run()
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.mark.parametrize("name", [RES, RES2])
def test_a_download_is_followed_kept_and_pinned(theirs, name, capfd):
    one = small(name)
    theirs.put(one)
    said = []
    sae = scope_of(one, lambda doing, share: said.append((doing, share))).load(one.site)
    assert sae.width == one.width
    shares = [share for doing, share in said if "downloading" in doing]
    assert shares == sorted(shares) and len(shares) > 3 and shares[-1] == 1
    assert str(one) in said[0][0] and any("converting" in doing for doing, _ in said)
    facts = scope_of(one).facts(one.site)
    assert facts["revision"] == COMMIT and len(facts["sha256"]) == 64
    before = len(theirs.asked)
    assert scope_of(one).load(one.site).width == one.width
    assert len(theirs.asked) == before, "the second opening asks nobody"
    assert f"Bearer {TOKEN}" in {token for *_, token in theirs.asked}, "the token was there to leak"
    out = capfd.readouterr()
    assert TOKEN not in out.out + out.err


def test_a_hub_that_moves_on_does_not_mix_commits(theirs, monkeypatch):
    """Sites fetched later are of the commit that the first was of, in this process and in the next."""
    sites = [small(RES.replace("layer_12", f"layer_{layer}")) for layer in (12, 13, 14)]
    for one in sites:
        theirs.put(one)
    whole = GemmaScope("x", ModelFacts(sites[0].model), {one.site: one for one in sites})
    whole.load(sites[0].site)
    theirs.move_on("b" * 40)
    for one in sites:
        theirs.put(one, weights(one, arrays(one, seed=7)))
    sae = whole.load(sites[1].site)
    np.testing.assert_array_equal(sae.W_dec.numpy(), arrays(sites[1])["W_dec"])
    again = GemmaScope("x", ModelFacts(sites[0].model), {one.site: one for one in sites})
    again.load(sites[2].site)
    assert {again.facts(one.site)["revision"] for one in sites} == {COMMIT}
    other = small(MLP)  # another repository is not bound by it
    theirs.put(other)
    both = GemmaScope("x", ModelFacts(other.model), {one.site: one for one in (*sites, other)})
    both.load(other.site)
    assert both.facts(other.site)["revision"] == "b" * 40


def test_an_interrupted_download_goes_on_where_it_stopped(theirs, monkeypatch):
    one = small()
    theirs.put(one)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    theirs.cut = [100_000]
    sae = scope_of(one).load(one.site)
    assert sae.width == one.width
    [(_, first), (_, second)] = theirs.downloads()
    assert first is None and second.startswith("bytes=") and 0 < int(second[6:-1]) <= 100_000


def test_it_also_goes_on_in_another_process_run(theirs, monkeypatch):
    """The connection fails for good, the user tries again later: what came is not fetched twice."""
    one = small()
    theirs.put(one)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    theirs.cut = [100_000] + [0] * 10
    refused("sae-not-fetched", lambda: scope_of(one).load(one.site))
    assert not one.cached
    theirs.cut, theirs.asked = [], []
    assert scope_of(one).load(one.site).width == one.width


def test_a_file_of_the_wrong_bytes_is_never_kept_as_good(theirs):
    one = small()
    theirs.put(one)
    data = bytearray(weights(one))
    data[-60] ^= 1
    theirs.lie = bytes(data)
    error = refused("scope-damaged", lambda: scope_of(one).load(one.site))
    assert "sha256" in str(error)
    assert len(theirs.downloads()) == 2, "it was fetched once more before giving up"
    assert not hub.copy_folder(one).exists()
    theirs.lie = None
    assert scope_of(one).load(one.site).width == one.width, "the bad download is replaced"


def test_a_file_that_is_shorter_than_announced_is_not_kept(theirs, monkeypatch):
    one = small()
    theirs.put(one)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    theirs.lie = weights(one)[:-1000]
    error = refused("sae-not-fetched", lambda: scope_of(one).load(one.site))
    assert "cut short" in str(error)
    assert not one.cached and not hub.copy_folder(one).exists()


def test_offline_what_is_cached_opens_and_the_rest_is_said(theirs, monkeypatch):
    one, other = small(), small(RES2)
    theirs.put(one)
    hub.fetch(one)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(theirs.asked)
    assert scope_of(one).load(one.site).width == one.width
    error = refused("sae-not-fetched", lambda: scope_of(other).load(other.site))
    assert "HF_HUB_OFFLINE" in str(error) and len(theirs.asked) == before


def test_no_space_for_the_download_is_said_before_it_begins(theirs, monkeypatch):
    one = small()
    theirs.put(one)
    monkeypatch.setattr(hub.cache.shutil, "disk_usage", lambda where: type("Usage", (), {"free": 10})())
    error = refused("sae-not-fetched", lambda: scope_of(one).load(one.site))
    assert "No space left" in str(error) and "HF_HOME" in str(error) and not theirs.asked


GATED = [
    (401, "GatedRepo", "accept its licence at https://huggingface.co/{repo}", "hf auth login"),
    (403, "GatedRepo", "accept its licence at https://huggingface.co/{repo}", "hf auth login"),
    (403, "Other", "accept its licence at https://huggingface.co/{repo}", "gated repositories"),
    (404, "RepoNotFound", "no such model", "not logged in"),
    (429, "Other", "slow down", "429"),
    (500, "Other", "500", "status"),
]


@pytest.mark.parametrize(("status", "code", "first", "second"), GATED)
@pytest.mark.parametrize("what", ["model", "sae"])
def test_refusals_name_the_page_and_the_command_and_never_the_token(
    theirs, monkeypatch, caplog, capfd, status, code, first, second, what
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    theirs.status, theirs.code = status, code
    one = small()
    if what == "model":
        repo, error = "google/gemma-2-2b", refused("model-not-found", lambda: load_model("gemma-2-2b"))
    else:
        repo, error = one.repo, refused("sae-not-fetched", lambda: scope_of(one).load(one.site))
    assert first.format(repo=repo) in str(error) and second in str(error)
    out = capfd.readouterr()
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error.facts) + caplog.text + out.out + out.err
    assert TOKEN not in told
    assert f"Bearer {TOKEN}" in {token for *_, token in theirs.asked}, "the token was there to leak"


def test_no_token_in_a_widget_or_a_description(tiny2, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    heatmap = tiny2.heatmap("The City of Light")
    shown = [heatmap.to_html(), str(heatmap.get_state()), repr(tiny2), str(tiny2.about), str(tiny2.read("Paris").about)]
    assert not any(TOKEN in text for text in shown) and all(shown)


def test_a_token_in_the_cause_hides_the_cause(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        try:
            raise OSError(f"Authorization: Bearer {TOKEN}")
        except OSError as inner:
            raise ValueError("outer") from inner
    except ValueError as outer:
        assert hub.shown(outer) is None
    error = ValueError("nothing secret")
    assert hub.shown(error) is error


def test_network_errors_of_either_http_library_are_told():
    import importlib

    for library in ("httpx", "httpx2"):
        try:
            found = importlib.import_module(library)
        except ImportError:
            continue
        assert "cannot be reached" in hub.why(found.ConnectError("no route"), "x/y")
    assert hub.why(ZeroDivisionError(), "x/y") is None
