"""Gemma Scope from folders laid out as Hugging Face's cache is: fetched, checked, converted once, and then mapped."""

import json
import multiprocessing
import os
from dataclasses import replace

import gemloupe as gl
import numpy as np
import pytest
import torch
from gemloupe.budget import said
from gemloupe.load import cache as our_cache
from gemloupe.load import gemma_scope as module
from gemloupe.load import hub
from gemloupe.load.find import find_scope
from gemloupe.load.gemma_scope import GemmaScope, gemma_scope
from gemloupe.load.sae import Transcoder
from gemloupe.load.scope import ModelFacts, Scope
from gemloupe.site import Site
from hubs import COMMIT, HubCache, arrays, bomb, config, entry, weights
from huggingface_hub import constants
from refusal import refused

RES = "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical"
ATT = "gemma-scope-2b-pt-att-canonical/layer_3/width_16k/canonical"
MLP = "gemma-scope-2b-pt-mlp-canonical/layer_4/width_16k/canonical"
TRANSCODER = "gemma-scope-2b-pt-transcoders/layer_19/width_16k/average_l0_12"
RES2 = "gemma-scope-2-270m-pt-res/layer_12_width_16k_l0_medium"
ATT2 = "gemma-scope-2-270m-it-att/layer_9_width_16k_l0_small"
TRANSCODER2 = "gemma-scope-2-270m-it-transcoders/transcoder/layer_9_width_16k_l0_small_affine"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty Hugging Face cache and an empty cache of ours; no network."""
    for name, value in (("GEMLOUPE_CACHE", "ours"), ("HF_HUB_CACHE", "hub")):  # for processes that a test starts
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return HubCache(tmp_path / "hub")


def small(name, width=96, d_in=16):
    return entry(name, width=width, d_in=d_in)


def scope_of(*entries):
    return GemmaScope("x", ModelFacts(entries[0].model), {one.site: one for one in entries})


@pytest.mark.parametrize("name", [RES, ATT, MLP, RES2, ATT2])
def test_every_kind_of_sae_comes_as_it_was_written(places, name):
    one = small(name)
    places.add(one)
    assert one.cached
    scope = scope_of(one)
    theirs = {key.replace("w_", "W_"): value for key, value in arrays(one).items()}
    for opening in range(2):  # converted, then mapped
        sae = scope.load(one.site)
        assert not isinstance(sae, Transcoder) and sae.site == one.site
        for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
            np.testing.assert_array_equal(getattr(sae, key).numpy(), theirs[key], f"{key}, opening {opening}")
    assert sae.encoder.is_contiguous() and sae.decoder.is_contiguous()
    facts = scope.facts(one.site)
    assert (facts["l0"], facts["revision"], facts["neuronpedia"] if name == RES else 0) == (
        one.l0,
        COMMIT,
        one.neuronpedia if name == RES else 0,
    )


@pytest.mark.parametrize("name", [TRANSCODER, TRANSCODER2])
def test_transcoders_are_no_saes(places, name):
    one = small(name)
    places.add(one)
    scope = scope_of(one)
    theirs = {key.lower(): torch.from_numpy(value) for key, value in arrays(one).items()}
    x = torch.randn(5, one.d_in, generator=torch.Generator().manual_seed(1))
    pre = x @ theirs["w_enc"] + theirs["b_enc"]
    acts = torch.where(pre > theirs["threshold"], pre, 0.0)
    out = acts @ theirs["w_dec"] + theirs["b_dec"]
    if one.affine:
        out = out + x @ theirs["affine_skip_connection"]
    for _ in range(2):
        sae = scope.load(one.site)
        assert isinstance(sae, Transcoder) and sae.d_out == one.d_in
        assert sae.before_gain == (one.generation == 1)  # the two generations read different tensors
        torch.testing.assert_close(sae.encode_dense(x), acts)
        torch.testing.assert_close(sae.predict(x), out)
        refused("transcoder-reconstructs-nothing", lambda sae=sae: sae.reconstruct(x))
        refused("transcoder-reconstructs-nothing", lambda sae=sae: sae.decode(acts))
    assert isinstance(sae.to("cpu"), Transcoder)


@pytest.mark.parametrize("name", [TRANSCODER, TRANSCODER2])
def test_sae_lens_gets_a_transcoder_that_names_its_tensor(places, tmp_path, name):
    from gemloupe.load.scope import save_sae_lens
    from sae_lens.saes.sae import SAE

    one = small(name)
    places.add(one)
    sae = scope_of(one).load(one.site)
    x = torch.randn(5, one.d_in, generator=torch.Generator().manual_seed(1))
    theirs = sae.as_sae_lens(one.model)
    torch.testing.assert_close(theirs(x), sae.predict(x))
    hook = "ln2.hook_normalized" if one.generation == 1 else "mlp.hook_in"
    assert theirs.cfg.metadata.hook_name == f"blocks.{one.layer}.{hook}"
    folder = save_sae_lens(sae, tmp_path / "saved", model_name=one.model)
    torch.testing.assert_close(SAE.load_from_disk(str(folder))(x), sae.predict(x))
    again = Scope.open(folder).load(one.site)
    assert isinstance(again, Transcoder) and again.before_gain == sae.before_gain
    torch.testing.assert_close(again.predict(x), sae.predict(x))


def test_sae_lens_reads_the_same_file_alike(places):
    """SAELens' own loader on the same cached npz: the same numbers."""
    from sae_lens.loading.pretrained_sae_loaders import gemma_2_sae_huggingface_loader

    one = replace(small(RES), width=16384)
    places.add(one)
    _, state, _ = gemma_2_sae_huggingface_loader(one.repo, one.path)
    sae = scope_of(one).load(one.site)
    for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        assert torch.equal(getattr(sae, key), state[key])


def test_one_of_real_shape(places):
    one = entry(RES)
    places.add(one)
    scope = gemma_scope("gemma-2-2b", "gemma-scope-2b-pt-res-canonical", layers=12)
    assert scope.entries == {Site("res", 12): one} and scope.width("res.12") == 16384
    sae = scope.load("res.12", ModelFacts("gemma-2-2b", "gemma2", 26, 2304, None, 2048))
    np.testing.assert_array_equal(sae.W_enc.numpy(), arrays(one)["W_enc"])
    # mapped: the second opening reads neither the download nor the weights
    next((places.folder / "models--google--gemma-scope-2b-pt-res" / "blobs").iterdir()).unlink()
    before = os.times()
    again = scope.load("res.12")
    assert os.times().user - before.user < 5  # converting takes seconds of arithmetic, hashing one
    assert torch.equal(again.decoder[:3], sae.decoder[:3]) and one.cached
    scope.verify()


def test_the_second_opening_reads_no_digest(places, monkeypatch):
    one = small(RES)
    places.add(one)
    scope = scope_of(one)
    scope.load(one.site)
    monkeypatch.setattr(module, "sha256", lambda file: pytest.fail("hashed"))
    monkeypatch.setattr(module, "convert", lambda *_: pytest.fail("converted"))
    scope.load(one.site)


def test_the_copy_is_made_anew_when_it_is_not_as_it_was_written(places):
    one = small(RES)
    places.add(one)
    scope = scope_of(one)
    good = scope.load(one.site).encoder.clone()
    file = hub.copy_folder(one) / hub.WEIGHTS
    data = bytearray(file.read_bytes())
    for damage in (data[:-5], data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(damage)
        os.utime(file, ns=(1, 1))  # another time
        assert module.opened(one) is None
        assert torch.equal(scope.load(one.site).encoder, good)
    stamp = file.with_name(hub.STAMP)
    for about in ("", "{}", "[1]", stamp.read_text().replace('"converter": 1', '"converter": 0')):
        stamp.write_text(about)
        assert torch.equal(scope.load(one.site).encoder, good)
    stat = file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # what only a digest sees
    refused("scope-damaged", scope.verify)


def test_another_revision_is_another_copy(places):
    one = small(RES)
    places.add(one)
    scope_of(one).load(one.site)
    other = replace(one, revision="b" * 40)
    assert module.opened(other) is None
    refused("sae-not-fetched", lambda: scope_of(other).load(one.site))
    places.add(one, weights(one, arrays(one, seed=7)), commit="b" * 40)
    sae = scope_of(other).load(one.site)
    np.testing.assert_array_equal(sae.W_dec.numpy(), arrays(one, seed=7)["W_dec"])
    assert scope_of(other).facts(one.site)["revision"] == "b" * 40


# ---- bad files


def spoiled(name, value):
    def change(tensors):
        tensors[name][(3,) if tensors[name].ndim == 1 else (3, 2)] = value
        return tensors

    return change


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (spoiled("threshold", np.nan), "scope-not-finite"),
        (spoiled("threshold", -0.5), "scope-damaged"),
        (spoiled("W_enc", np.inf), "scope-not-finite"),
        (lambda t: {**t, "W_dec": t["W_dec"][:-1]}, "scope-other-shape"),
        (lambda t: {**t, "W_dec": np.ascontiguousarray(t["W_dec"].T)}, "scope-other-shape"),
        (lambda t: {**t, "b_enc": t["b_enc"][:-1]}, "scope-other-shape"),
        (without("threshold"), "scope-damaged"),
        (lambda t: {**t, "more": t["b_enc"]}, "scope-damaged"),
        (lambda t: {**t, "scaling_factor": t["b_enc"]}, "file-unreadable"),
        (lambda t: {**t, "b_enc": t["b_enc"].astype(object)}, "scope-pickled"),
        (lambda t: {**t, "b_enc": t["b_enc"].astype(np.int64)}, "scope-damaged"),
    ],
)
def test_wrong_arrays_are_refused_and_nothing_is_kept(places, change, code):
    one = small(RES)
    places.add(one, weights(one, change(arrays(one))))
    refused(code, lambda: scope_of(one).load(one.site))
    assert not hub.copy_folder(one).exists()
    assert not list(our_cache.folder().rglob("*.safetensors"))


def test_harmless_variants_of_the_npz_are_read(places):
    one = small(RES)
    tensors = arrays(one)
    lower = {key.replace("W_", "w_"): value for key, value in tensors.items()}
    places.add(one, weights(one, {**lower, "scaling_factor": np.ones(one.width, np.float32)}))
    np.testing.assert_array_equal(scope_of(one).load(one.site).W_enc.numpy(), tensors["W_enc"])


class Canary:
    def __reduce__(self):
        return os.mkdir, (os.environ["CANARY"],)


def test_a_pickled_array_never_runs(places, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "ran"))
    one = small(RES)
    tensors = {**arrays(one), "b_enc": np.array([Canary()] * one.width, dtype=object)}
    places.add(one, weights(one, tensors))
    refused("scope-pickled", lambda: scope_of(one).load(one.site))
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_refused_before_it_is_inflated(places):
    import tracemalloc

    one = replace(small(RES), width=16384, d_in=512)
    data = bomb(one)
    assert len(data) < one.bytes / 50
    places.add(one, data)
    tracemalloc.start()
    message = refused("scope-damaged", lambda: scope_of(one).load(one.site))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "inflate" in message and peak < 3_000_000


@pytest.mark.parametrize("name", [RES, RES2])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_file_that_was_cut_short_is_refused(places, name, keep):
    one = small(name)
    data = weights(one)
    link = places.add(one)
    link.resolve().write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    message = refused("scope-damaged", lambda: scope_of(one).load(one.site))
    assert str(link.resolve()) in message
    assert not hub.copy_folder(one).exists()


def test_a_flipped_bit_is_seen_by_the_digest_in_the_blobs_name(places):
    one = small(RES2)
    link = places.add(one)
    data = bytearray(weights(one))
    data[-3] ^= 1  # a finite, plausible number
    link.resolve().write_bytes(data)
    assert "sha256" in refused("scope-damaged", lambda: scope_of(one).load(one.site))


@pytest.mark.parametrize(
    "change", [{"hf_hook_point_in": "model.layers.13.output"}, {"hf_hook_point_in": "x"}, {"architecture": "topk"}]
)
def test_weights_whose_config_reads_another_tensor_are_refused(places, change):
    one = small(RES2)
    places.add(one)
    places.add(one, config(one, **change), name=f"{one.path}/config.json")
    refused("scope-damaged", lambda: scope_of(one).load(one.site))


def test_gemma_scope_2_opens_without_its_config(places):
    one = small(RES2)
    link = places.add(one)
    link.with_name("config.json").unlink()
    assert scope_of(one).load(one.site).width == one.width


# ---- models


@pytest.mark.parametrize("model", ["gemma-2-2b", "google/gemma-2-2b-it", "gemma-3-4b-it"])
def test_saes_of_a_larger_model_are_refused_before_anything_is_fetched(model):
    message = refused("scope-other-model", lambda: gl.open(model, scope="gemma-scope-9b-pt-res-canonical"))
    assert "gemma-2-9b" in message


def test_a_model_in_a_folder_is_compared_by_its_dimensions(tiny_folders, places):
    folder, _ = tiny_folders["gemma2"]
    message = refused("scope-other-model", lambda: gl.open(folder, scope="gemma-scope-2b-pt-res-canonical"))
    assert "gemma-2-2b" in message and "4 layers" in message


def test_the_chat_model_is_said_aloud():
    scope = find_scope("gemma-2-2b-it")
    assert len(scope.sites) == 78 and "not on the chat model gemma-2-2b-it" in scope.notes[0]
    assert find_scope("gemma-2-2b").notes == ()
    assert find_scope("google/gemma-3-4b-it").notes == ()  # has its own


def test_forms_of_the_scope():
    wide = find_scope("gemma-2-9b", "gemma-scope-9b-pt-res-canonical", width="131k", layers=range(18, 24))
    assert [str(site) for site in wide.sites] == [f"res.{layer}" for layer in range(18, 24)]
    assert {wide.width(site) for site in wide.sites} == {131072}
    one = find_scope("gemma-2-2b", "gemma-2-2b/20-gemmascope-res-16k")
    assert one.sites == (Site("res", 20),)
    table = gl.catalog("gemma-2-2b").filter("mlp", layer=(3, 4), width="16k", l0="canonical")
    assert find_scope("gemma-2-2b", table).sites == (Site("mlp", 3), Site("mlp", 4))
    assert find_scope("gemma-2-2b", table[0]).sites == (Site("mlp", 3),)
    assert find_scope("gemma-2-2b", list(table)).sites == (Site("mlp", 3), Site("mlp", 4))
    assert find_scope("gemma-2-2b", sites="res", layers=12, l0=41).facts("res.12")["l0"] == 41
    assert find_scope("gemma-2-2b", False) is None
    assert find_scope("someone/llama") is None
    refused("catalog-nothing", lambda: find_scope("gemma-2-2b", layers=30))
    refused("catalog-nothing", lambda: find_scope("gemma-2-2b", width="17k"))
    refused("catalog-nothing", lambda: find_scope("someone/llama", layers=3))
    refused("catalog-unknown", lambda: find_scope("gemma-2-2b", "gemma-scope-2b-res"))
    refused("catalog-empty", lambda: find_scope("gemma-2-2b", gl.catalog("gemma-2-2b")[:0]))
    refused("catalog-two-models", lambda: find_scope(None, [entry(RES), entry(RES2)]))
    refused("scope-unreadable", lambda: find_scope("gemma-2-2b", 7))
    refused("scope-unreadable", lambda: find_scope("gemma-2-2b", [7]))
    embedding = [one for one in gl.catalog("gemma-2-2b") if one.site is None]
    refused("embedding-not-a-site", lambda: find_scope("gemma-2-2b", embedding))


def test_a_folder_of_ones_own_can_be_narrowed(tiny_folders):
    model, folder = tiny_folders["gemma2"]
    assert find_scope(model, folder, sites="res").sites == (Site("res", 0), Site("res", 2))
    assert find_scope(model, str(folder), layers=1).sites == (Site("att", 1), Site("mlp", 1))
    refused("site-not-open", lambda: find_scope(model, folder, layers=9))
    refused("scope-without-choice", lambda: find_scope(model, folder, width="16k"))
    assert find_scope(model) is None
    assert find_scope(model, find_scope(model, folder), sites="att").sites == (Site("att", 1),)


def test_a_lone_file_reads_where_the_user_says_unless_its_path_says_it(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "gemma-scope-2b-pt-res" / "layer_20"
    for folder in (mine, theirs):
        folder.mkdir(parents=True)
        (folder / "params.npz").write_bytes(weights(entry(RES, width=8, d_in=4)))
    assert find_scope("gemma-2-2b", mine / "params.npz", sites="res.12").sites == (Site("res", 12),)
    assert find_scope("gemma-2-2b", str(mine), sites=[Site("mlp", 3)]).sites == (Site("mlp", 3),)
    for sites in (None, "res", ["res.1", "res.2"]):
        refused("scope-site-unknown", lambda sites=sites: find_scope("gemma-2-2b", mine, sites=sites))
    refused("site-not-open", lambda: find_scope("gemma-2-2b", theirs, sites="res.12"))


def test_reading_with_gemma_scope(tiny_folders, places, monkeypatch):
    """From the hub's layout to features in a trace, on a model small enough; and each feature's page."""
    model, _ = tiny_folders["gemma2"]
    res, att = small(RES, 96, 48), small(ATT, 96, 64)
    res, att = replace(res, site=Site("res", 2)), replace(att, site=Site("att", 1))
    for one in (res, att):
        places.add(one)
    scope = GemmaScope("x", ModelFacts("gemma-2-2b", "gemma2", 4, 48, None, 64), {att.site: att, res.site: res})
    monkeypatch.setattr("gemloupe.load.gemma_scope.gemma_scope", lambda *_, **__: replace(scope, notes=("Said.",)))
    with gl.open(model, scope="gemma-scope-2b-pt-res-canonical", device="cpu") as loupe:
        assert "Said." in loupe.about.notes and "Said." in repr(loupe)
        trace = loupe.read("The City of Light is Paris")
        assert trace["res.2"].indptr[-1] > 0 and trace["att.1"].indptr[-1] > 0
        page = loupe.feature("res.2/7").neuronpedia
        assert page == f"https://www.neuronpedia.org/{res.neuronpedia}/7"


# ---- the cache


def test_no_space_is_said_with_what_is_needed(places, monkeypatch):
    one = small(RES)
    places.add(one)
    monkeypatch.setattr(our_cache.shutil, "disk_usage", lambda where: type("Usage", (), {"free": 10})())
    message = refused("cache-not-writable", lambda: scope_of(one).load(one.site))
    assert str(our_cache.folder()) in message and "No space left" in message and said(one.bytes) in message
    assert not hub.copy_folder(one).exists()


def test_an_interrupted_conversion_leaves_nothing(places, monkeypatch):
    one = small(RES)
    places.add(one)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("safetensors.torch.save_file", dies)
        scope_of(one).load(one.site)
    assert [file.name for file in hub.copy_folder(one).parent.iterdir() if not file.name.endswith(".lock")] == []
    assert scope_of(one).load(one.site).width == one.width


def _load_in_process(name, start, results):
    written = []
    write = module._write
    module._write = lambda *given: (written.append(1), write(*given))
    one = small(name)
    start.wait()
    sae = module.opened(one) or module.convert(one)
    results.put((len(written), float(sae.encoder.sum())))


def test_two_processes_make_one_copy(places):
    one = small(RES)
    places.add(one)
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Event(), spawn.Queue()
    both = [spawn.Process(target=_load_in_process, args=(RES, start, results)) for _ in range(2)]
    for process in both:
        process.start()
    start.set()
    answers = [results.get(timeout=120) for _ in both]
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    assert sorted(count for count, _ in answers) == [0, 1]
    assert len({total for _, total in answers}) == 1


def test_what_the_stamp_says(places):
    one = small(RES)
    link = places.add(one)
    scope_of(one).load(one.site)
    stamp = json.loads((hub.copy_folder(one) / hub.STAMP).read_text())
    assert (stamp["repo"], stamp["file"], stamp["revision"]) == (one.repo, one.file, COMMIT)
    assert stamp["source"] == link.resolve().name
