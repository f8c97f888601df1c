"""Scope folders: what is written is what is read, and nothing damaged, foreign or dangerous is opened."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import gemloupe
import numpy as np
import pytest
import torch
from gemloupe.errors import Refusal
from gemloupe.load import artifact, layouts
from gemloupe.load.artifact import deflate
from gemloupe.load.layouts import DECODER_STEPS, ENCODER_STEPS, grid
from gemloupe.load.sae import FeatureStats, Sae, hook_name, site_of_hook
from gemloupe.load.scope import ModelFacts, Scope, save_sae_lens, write_scope
from gemloupe.site import Site
from refusal import refused
from safetensors.torch import load, load_file, save, save_file

COMPRESSED = "sae_int8.safetensors.zlib"
WIDTH, D_IN, D_Z = 24, 16, 32
MODEL = ModelFacts("tiny", "gemma3_text", n_layers=18, d_model=D_IN, digest="a" * 64, z_width=D_Z)


def make(site="res.12", seed=0):
    random = torch.Generator().manual_seed(seed)
    d_in = D_Z if site.startswith("att") else D_IN
    decoder = torch.randn(WIDTH, d_in, generator=random)
    decoder /= decoder.norm(dim=1, keepdim=True)
    return Sae(
        Site.of(site),
        encoder=decoder * 1.3 + 0.1 * torch.randn(WIDTH, d_in, generator=random),
        b_enc=torch.randn(WIDTH, generator=random),
        threshold=torch.rand(WIDTH, generator=random),
        decoder=decoder,
        b_dec=torch.randn(d_in, generator=random),
    )


def stats():
    random = np.random.default_rng(0)
    maximum = random.random(WIDTH, dtype=np.float32) + 1
    maximum[3] = np.nan
    return FeatureStats(
        maximum=maximum,
        density=random.random(WIDTH, dtype=np.float32),
        promotes=random.integers(0, 500, (WIDTH, 10), dtype=np.int32),
        promotes_logit=random.random((WIDTH, 10)).astype(np.float16),
    )


@pytest.fixture
def folder(tmp_path):
    write_scope(
        tmp_path / "scope",
        [(make("res.12"), stats(), {"l0": 39.5, "fvu": 0.19}), (make("att.3"), None, {}), (make("mlp.3"), None, {})],
        id="tiny-scope",
        model=MODEL,
        made_with={"seed": 0},
        packed=False,
    )
    return tmp_path / "scope"


def rewrite(folder, change, site="res.12", weights="sae_weights.safetensors", sign=True):
    """Changes the tensors of one site, and signs the manifest again so that only the content is wrong."""
    file = folder / site / weights
    tensors = change(dict(load_file(file)))
    save_file(tensors, file)
    if sign:
        resign(folder, site)


def resign(folder, site="res.12"):
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["saes"][site]["files"]
    for name in files:
        files[name] = hashlib.sha256((folder / site / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# what is written is what is read


def test_float_scope_round_trip_is_exact(folder):
    scope = Scope.open(folder)
    assert [str(site) for site in scope.sites] == ["att.3", "mlp.3", "res.12"]  # forward order
    assert scope.width("res.12") == WIDTH
    assert scope.facts("res.12") == {"l0": 39.5, "fvu": 0.19}
    assert scope.model == MODEL
    for name in ("encoder", "b_enc", "threshold", "decoder", "b_dec"):
        assert torch.equal(getattr(scope.load("res.12", MODEL), name), getattr(make("res.12"), name))
    assert scope.load("att.3", MODEL).d_in == D_Z
    np.testing.assert_array_equal(scope.stats("res.12").maximum, stats().maximum)
    np.testing.assert_array_equal(scope.stats("res.12").promotes, stats().promotes)
    assert scope.stats("res.12").suppresses is None
    assert scope.stats("att.3").maximum is None
    scope.verify()


def test_packed_error_is_within_half_a_step_and_packing_again_changes_nothing(tmp_path):
    sae = make()
    scope = write_scope(tmp_path / "a", [(sae, None, {})], id="x", model=MODEL, packed=True)
    packed = scope.load("res.12")
    for ours, theirs, steps in (
        (packed.encoder, sae.encoder, ENCODER_STEPS),
        (packed.decoder, sae.decoder, DECODER_STEPS),
    ):
        step = grid(theirs, steps)
        assert ((ours - theirs).abs() <= 0.51 * step + 0.02 * theirs.abs()).all()
        assert (ours != theirs).any()
    assert torch.equal(packed.encoder_int8.float() * packed.encoder_scale[:, None], packed.encoder)
    torch.testing.assert_close(packed.decoder.norm(dim=1), torch.ones(WIDTH), atol=1e-6, rtol=0)
    torch.testing.assert_close(packed.pre_activations(sae.b_dec), sae.pre_activations(sae.b_dec), atol=1e-5, rtol=1e-5)
    again = write_scope(tmp_path / "b", [(packed, None, {})], id="x", model=MODEL, packed=True).load("res.12")
    assert torch.equal(again.encoder_int8, packed.encoder_int8)
    torch.testing.assert_close(again.decoder, packed.decoder, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.b_enc, packed.b_enc, atol=1e-5, rtol=0)


def test_rounding_is_finer_than_the_largest_weight_suggests():
    """A few massive dimensions must not set the step of all others, nor be cut off."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 400, generator=random)
    rows[:, 7] = 9.0
    rows[1, 7] = 60.0
    step = grid(rows, 6.0)[:, 0]
    assert 0.1 < step[0] < 0.3 and 0.1 < step[2] < 0.3
    assert step[1] == pytest.approx(60 / 127)
    assert torch.equal(grid(torch.zeros(1, 4), 6.0).isnan(), torch.tensor([[False]]))
    zero = make()
    zero.encoder[4] = zero.decoder[4] = 0
    tensors = layouts.pack(zero)
    assert not tensors["W_enc"][4].any() and tensors["W_enc_scale"][4] == 0


def old_scope(folder, sae, stats):
    """A packed scope as format 1 wrote it: int8 safetensors and statistics, not compressed."""
    written = write_scope(folder, [(sae, stats, {"l0": 3.0})], id="old", model=MODEL, packed=False).folder
    place = written / str(sae.site)
    (place / "sae_weights.safetensors").unlink()
    save_file(layouts.pack(sae), place / "sae_int8.safetensors")

    def older(manifest):
        manifest["format"] = 1
        manifest["saes"][str(sae.site)]["files"] = dict.fromkeys([file.name for file in place.iterdir()], "a" * 64)

    edit_manifest(written, older)
    resign(written, str(sae.site))
    return written


def test_a_scope_of_format_1_opens_and_holds_the_same_numbers(tmp_path):
    scope = Scope.open(old_scope(tmp_path / "old", make(), stats()))
    new = write_scope(tmp_path / "new", [(make(), stats(), {"l0": 3.0})], id="new", model=MODEL)
    assert scope.facts("res.12") == new.facts("res.12") == {"l0": 3.0}
    for name in ("encoder", "b_enc", "threshold", "decoder", "b_dec", "encoder_int8", "encoder_scale"):
        assert torch.equal(getattr(scope.load("res.12"), name), getattr(new.load("res.12"), name))
    np.testing.assert_array_equal(scope.stats("res.12").promotes_logit, stats().promotes_logit)


def test_compressed_statistics_hold_the_same_numbers(tmp_path):
    given = stats()
    given = replace(
        given, promotes=given.promotes * 500, suppresses=given.promotes, suppresses_logit=-given.promotes_logit
    )
    got = write_scope(tmp_path / "s", [(make(), given, {})], id="x", model=MODEL).stats("res.12")
    for name in ("maximum", "density", "promotes", "suppresses"):
        np.testing.assert_array_equal(getattr(got, name), getattr(given, name))
        assert getattr(got, name).dtype == getattr(given, name).dtype
    assert got.mean_active is None
    for name in ("promotes_logit", "suppresses_logit"):
        ours, theirs = getattr(got, name), getattr(given, name).astype(np.float32)
        assert ours.dtype == np.float16
        assert (np.abs(ours - theirs) <= 0.005 * np.abs(theirs).max(1, keepdims=True)).all()
        assert (ours != theirs).any()


def test_compression_saves_a_quarter_and_more(tmp_path):
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 128, generator=random)
    rows /= rows.norm(dim=1, keepdim=True)
    sae = Sae(Site.of("res.1"), rows * 2, torch.zeros(256), torch.ones(256), rows, torch.zeros(128))
    write_scope(tmp_path / "s", [(sae, None, {})], id="x", model=ModelFacts("x"))
    assert sorted(file.name for file in (tmp_path / "s/res.1").iterdir()) == ["cfg.json", COMPRESSED]
    assert (tmp_path / "s/res.1" / COMPRESSED).stat().st_size < 0.75 * 2 * 256 * 128 + 16 * 256


def test_a_lone_compressed_sae_opens_without_a_manifest(tmp_path):
    scope = write_scope(tmp_path / "s", [(make(), stats(), {})], id="x", model=MODEL)
    lone = Scope.open(tmp_path / "s" / "res.12")
    assert torch.equal(lone.load("res.12").encoder, scope.load("res.12").encoder)
    np.testing.assert_array_equal(lone.stats("res.12").maximum, stats().maximum)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data + b"more", "follows"),
        (lambda data: b"", ""),
        (lambda data: zlib.compress(zlib.decompress(data)[:-4]), "the manifest says"),
        (lambda data: zlib.compress(zlib.decompress(data)[:-1] + b"\x7f"), "the manifest says"),
        (lambda data: zlib.compress(zlib.decompress(data) + bytes(9)), "inflate to more than"),
        (lambda data: zlib.compress(bytes(50_000_000)), "inflate to more than"),
        (lambda data: data[:50] + bytes([data[50] ^ 255]) + data[51:], ""),
        (lambda data: zlib.decompress(data), ""),
    ],
)
def test_damaged_compressed_weights_are_refused_before_they_take_memory(tmp_path, damage, says):
    folder = write_scope(tmp_path / "s", [(make(), None, {})], id="x", model=MODEL).folder
    file = folder / "res.12" / COMPRESSED
    file.write_bytes(damage(file.read_bytes()))
    assert "sha256" in refused("scope-damaged", lambda: Scope.open(folder).load("res.12"))
    resign(folder)
    import tracemalloc

    tracemalloc.start()
    message = refused("scope-damaged", lambda: Scope.open(folder).load("res.12"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert says in message and str(file) in message
    assert peak < 2_000_000
    refused(
        "scope-damaged",
        lambda: (
            Scope.open(folder / "res.12").load("res.12")
            if says != "the manifest says"
            else Scope.open(folder).load("res.12")
        ),
    )


def test_what_takes_long_to_inflate_is_kept_and_compared_each_time(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artifact, "_WORTH_KEEPING", 1)
    inflated = []
    real = artifact._inflated
    monkeypatch.setattr(artifact, "_inflated", lambda *given: inflated.append(1) or real(*given))
    scope = write_scope(tmp_path / "s", [(make(), None, {})], id="x", model=MODEL)
    first = scope.load("res.12")
    (kept,) = (tmp_path / "cache" / "inflated").iterdir()
    data = kept.read_bytes()
    assert artifact.Content.of(data).sha256 == kept.name
    assert torch.equal(scope.load("res.12").encoder, first.encoder) and len(inflated) == 1
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
        kept.write_bytes(damaged)
        assert torch.equal(scope.load("res.12").encoder, first.encoder)
        assert kept.read_bytes() == data, "written anew"
    assert len(inflated) == 4
    kept.unlink()
    monkeypatch.setattr(artifact.cache, "KEPT_FREE", 1 << 60)  # as on a disk that is nearly full
    assert torch.equal(scope.load("res.12").encoder, first.encoder) and not kept.exists()
    monkeypatch.setattr(artifact.cache, "KEPT_FREE", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "file"))  # nothing can be written below a file
    assert torch.equal(scope.load("res.12").encoder, first.encoder)


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ({}, "scope-damaged"),
        ({"bytes": 10**15, "sha256": "a" * 64}, "scope-damaged"),
        ({"bytes": -1, "sha256": "a" * 64}, "scope-damaged"),
        ({"bytes": "9", "sha256": "a" * 64}, "scope-damaged"),
        ({"bytes": 9, "sha256": "a"}, "scope-damaged"),
        ({"bytes": 9, "sha256": 7}, "scope-damaged"),
    ],
)
def test_a_manifest_that_lies_about_what_is_inside_is_refused(tmp_path, inside, code):
    folder = write_scope(tmp_path / "s", [(make(), None, {})], id="x", model=MODEL).folder
    edit_manifest(folder, set_in("saes", "res.12", "inflated", COMPRESSED, value=inside))
    refused(code, lambda: Scope.open(folder).load("res.12"))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "promotes": t["promotes"][:2].clone()},
        lambda t: {**t, "promotes": t["promotes"].to(torch.int32)},
        lambda t: {**t, "promotes_logit": t["promotes_logit"].float()},
        lambda t: {k: v for k, v in t.items() if k != "promotes_logit_largest"},
        lambda t: {k: v for k, v in t.items() if k != "promotes_logit"},
        lambda t: {**t, "maximum": -t["maximum"]},
        lambda t: {**t, "promotes_logit_largest": t["promotes_logit_largest"] * float("inf")},
        lambda t: {**t, "more": torch.zeros(1)},
    ],
)
def test_wrong_compressed_statistics_are_refused(tmp_path, change):
    folder = write_scope(tmp_path / "s", [(make(), stats(), {})], id="x", model=MODEL).folder
    file = folder / "res.12" / "features.safetensors.zlib"
    file.write_bytes(deflate(save(change(load(zlib.decompress(file.read_bytes()))))))
    with pytest.raises(Refusal):
        Scope.open(folder / "res.12").stats("res.12")


def test_encode_is_strict_and_never_negative():
    sae = make()
    sae = Sae(sae.site, torch.eye(2), torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2), torch.zeros(2))
    x = torch.tensor([[1.0, -3.0], [1.5, 0.0], [2.0, 1e-3]])
    assert torch.equal(sae.encode_dense(x), torch.tensor([[0.0, 0.0], [1.5, 0.0], [2.0, 1e-3]]))


def test_writing_replaces_a_scope_whole_or_not_at_all(folder):
    before = sorted(file.name for file in folder.rglob("*"))

    def broken():
        yield make("res.5"), None, {}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_scope(folder, broken(), id="x", model=MODEL)
    assert sorted(file.name for file in folder.rglob("*")) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_hook_names_both_ways():
    for name in ("res.12", "mlp.3", "att.0", "transcoder.7"):
        assert site_of_hook(hook_name(Site.of(name))) == Site.of(name)
    assert hook_name(Site.of("att.0")) == "blocks.0.attn.hook_z"
    assert site_of_hook("blocks.4.hook_out") == Site.of("res.4")
    assert site_of_hook("blocks.4.mlp.hook_out") is None  # before the post-norm: another tensor
    assert site_of_hook(None) is None


# SAELens


def test_unpacked_scope_opens_in_sae_lens_with_the_same_numbers(tmp_path):
    from sae_lens import SAE

    packed = write_scope(
        tmp_path / "p", [(make("res.12"), stats(), {"l0": 3.0}), (make("att.3"), None, {})], id="x", model=MODEL
    )
    packed.unpack(tmp_path / "u")
    ours = packed.load("res.12")
    theirs = SAE.load_from_disk(str(tmp_path / "u" / "res.12"))
    assert theirs.cfg.metadata.hook_name == "blocks.12.hook_resid_post"
    assert theirs.cfg.metadata.model_name == "tiny"
    assert torch.equal(theirs.W_enc, ours.W_enc)
    assert torch.equal(theirs.W_dec, ours.W_dec)
    assert torch.equal(theirs.threshold, ours.threshold)
    x = 3 * torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(theirs.encode(x), ours.encode_dense(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.decode(theirs.encode(x)), ours.decode(ours.encode_dense(x)), atol=1e-5, rtol=1e-5)
    heads = SAE.load_from_disk(str(tmp_path / "u" / "att.3"))
    z = torch.randn(2, 5, 4, D_Z // 4, generator=torch.Generator().manual_seed(2))
    expected = packed.load("att.3").encode_dense(z.flatten(-2))
    torch.testing.assert_close(heads.encode(z), expected, atol=1e-5, rtol=1e-5)
    assert Scope.open(tmp_path / "u").facts("res.12") == {"l0": 3.0}


def test_sae_lens_checkpoint_opens_as_a_scope_of_one_site(tmp_path):
    make().as_sae_lens("tiny").save_model(tmp_path / "theirs")
    scope = Scope.open(tmp_path / "theirs")
    assert [str(site) for site in scope.sites] == ["res.12"]
    assert scope.model is not None and scope.model.id == "tiny"
    assert torch.equal(scope.load("res.12", MODEL).encoder, make().encoder)
    save_sae_lens(make("mlp.3"), tmp_path / "ours", model_name="tiny")
    assert torch.equal(Scope.open(tmp_path / "ours").load("mlp.3").decoder, make("mlp.3").decoder)


def test_sae_lens_b_dec_applied_to_input_is_folded(tmp_path):
    save_sae_lens(make(), tmp_path / "a")
    config = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps({**config, "apply_b_dec_to_input": True}))
    from sae_lens import SAE

    x = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1))
    expected = SAE.load_from_disk(str(tmp_path / "a")).encode(x)
    got = Scope.open(tmp_path / "a").load("res.12").encode_dense(x)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got != make().encode_dense(x)).any()


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "topk"},
        {"normalize_activations": "layer_norm"},
        {"metadata": {"hook_name": "blocks.3.mlp.hook_out"}},
        {"metadata": {}},
    ],
)
def test_sae_lens_checkpoints_of_another_kind_are_refused(tmp_path, change):
    save_sae_lens(make(), tmp_path / "a")
    config = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps({**config, **change}))
    refused("file-unreadable", lambda: Scope.open(tmp_path / "a"))


# Gemma Scope's own files


def gemma_scope(folder, sae=None, **changes):
    sae = sae or make()
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "W_enc": sae.W_enc.numpy(),
        "b_enc": sae.b_enc.numpy(),
        "W_dec": sae.decoder.numpy(),
        "b_dec": sae.b_dec.numpy(),
        "threshold": sae.threshold.numpy(),
        **changes,
    }
    np.savez(folder / "params.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def test_lone_gemma_scope_npz_opens_and_its_path_names_the_site(tmp_path):
    folder = gemma_scope(tmp_path / "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")
    scope = Scope.open(folder / "params.npz")
    assert [str(site) for site in scope.sites] == ["res.12"]
    assert torch.equal(scope.load("res.12").encoder, make().encoder)
    elsewhere = gemma_scope(tmp_path / "elsewhere")
    assert "sites=" in refused("scope-site-unknown", lambda: Scope.open(elsewhere))
    assert Scope.open(elsewhere, site="mlp.3").load("mlp.3").width == WIDTH


def test_a_repository_or_a_folder_of_checkpoints_is_a_scope(tmp_path):
    repository = tmp_path / "gemma-scope-2b-pt-res"
    for layer, l0 in ((12, 82), (3, 59)):
        gemma_scope(repository / f"layer_{layer}/width_16k/average_l0_{l0}")
    (repository / ".git").mkdir()
    scope = Scope.open(repository)
    assert [str(site) for site in scope.sites] == ["res.3", "res.12"] and scope.id == "gemma-scope-2b-pt-res"
    assert torch.equal(scope.load("res.12").encoder, make().encoder)
    assert scope.source("res.3") == repository / "layer_3/width_16k/average_l0_59/params.npz"
    gemma_scope(repository / "layer_12/width_16k/average_l0_41")
    says = refused("scope-two-at-site", lambda: Scope.open(repository))
    assert "res.12" in says and "average_l0_41" in says and "average_l0_82" in says

    trained = tmp_path / "trained"
    for name in ("mlp.1", "att.0"):
        save_sae_lens(make(name), trained / f"run-{name}", model_name="tiny")
    scope = Scope.open(trained)
    assert [str(site) for site in scope.sites] == ["att.0", "mlp.1"] and scope.model == ModelFacts("tiny")
    assert torch.equal(scope.load("mlp.1").decoder, make("mlp.1").decoder)
    refused("scope-not-found", lambda: Scope.open(tmp_path / "trained" / ".." / "empty"))
    (tmp_path / "empty" / "a" / "b" / "c" / "d" / "e").mkdir(parents=True)
    refused("scope-not-found", lambda: Scope.open(tmp_path / "empty"))


def test_gemma_scope_2_folder_opens(tmp_path):
    sae, folder = make("att.3"), tmp_path / "layer_3"
    folder.mkdir()
    config = {"hf_hook_point_in": "model.layers.3.self_attn.o_proj.input", "width": WIDTH, "model_name": "tiny"}
    (folder / "config.json").write_text(json.dumps(config))
    names = {"w_enc": sae.W_enc, "b_enc": sae.b_enc, "w_dec": sae.decoder, "b_dec": sae.b_dec}
    names["threshold"] = sae.threshold
    save_file({name: value.contiguous() for name, value in names.items()}, folder / "params.safetensors")
    assert torch.equal(Scope.open(folder).load("att.3").encoder, sae.encoder)


def test_npz_bomb_is_refused_before_it_is_inflated(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res/layer_12/x"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "params.npz", W_enc=np.zeros((4096, 4096), np.float32), **zeros(4096))
    import tracemalloc

    tracemalloc.start()
    refused("scope-damaged", lambda: Scope.open(folder))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def zeros(width):
    return {"b_enc": np.zeros(width), "W_dec": np.zeros((1, 1)), "b_dec": np.zeros(1), "threshold": np.zeros(width)}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"b_enc": np.array([print] * WIDTH, dtype=object)}, "scope-pickled"),
        ({"b_enc": None}, "scope-damaged"),
        ({"extra": np.zeros(3)}, "scope-damaged"),
        ({"b_enc": np.zeros(WIDTH, np.int32)}, "scope-damaged"),
        ({"b_enc": np.zeros(WIDTH + 1, np.float32)}, "scope-other-shape"),
        ({"b_enc": np.full(WIDTH, np.nan, np.float32)}, "scope-not-finite"),
        ({"threshold": np.full(WIDTH, -0.5, np.float32)}, "scope-damaged"),
        ({"W_enc": np.zeros(WIDTH, np.float32)}, "scope-damaged"),
    ],
)
def test_npz_with_wrong_content_is_refused(tmp_path, changes, code):
    folder = gemma_scope(tmp_path / "s", **changes)
    refused(code, lambda: Scope.open(folder, site="res.12").load("res.12"))


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", b"(((", b""]
)
def test_npz_with_a_lying_header_is_refused(tmp_path, header):
    gemma_scope(tmp_path / "s")
    raw = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "s/params.npz") as old, zipfile.ZipFile(raw, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "b_enc.npy":
                data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
            new.writestr(name, data)
    (tmp_path / "s/params.npz").write_bytes(raw.getvalue())
    refused("scope-damaged", lambda: Scope.open(tmp_path / "s", site="res.12"))


# damage


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "res.12" / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "sha256" in refused("scope-damaged", lambda: Scope.open(folder).load("res.12"))
    resign(folder)
    refused("scope-damaged", lambda: Scope.open(folder).load("res.12"))


def test_one_flipped_bit_is_refused_even_after_a_good_load(folder):
    scope = Scope.open(folder)
    scope.load("res.12")
    file = folder / "res.12" / "sae_weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    refused("scope-damaged", lambda: scope.load("res.12"))
    refused("scope-damaged", scope.verify)


def test_statistics_are_checked(folder):
    file = folder / "res.12" / "features.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "density": tensors["density"][:-1].clone()}, file)
    refused("scope-damaged", lambda: Scope.open(folder).stats("res.12"))
    resign(folder)
    refused("scope-other-shape", lambda: Scope.open(folder).stats("res.12"))
    save_file({**tensors, "density": torch.full((WIDTH,), torch.nan)}, file)
    resign(folder)
    refused("scope-not-finite", lambda: Scope.open(folder).stats("res.12"))


def change_one(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name])
        return tensors

    return change


def poke(number):
    def value(tensor):
        tensor.view(-1)[0] = number
        return tensor

    return value


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (change_one("W_enc", poke(float("nan"))), "scope-not-finite"),
        (change_one("b_dec", poke(float("inf"))), "scope-not-finite"),
        (change_one("threshold", poke(-1e-3)), "scope-damaged"),
        (change_one("W_dec", lambda t: t[:, :-1].contiguous()), "scope-other-shape"),
        (change_one("b_enc", lambda t: t.to(torch.int32)), "scope-damaged"),
        (lambda tensors: {**tensors, "more": torch.zeros(1)}, "scope-damaged"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "b_enc"}, "scope-damaged"),
    ],
)
def test_wrong_tensors_are_refused(folder, change, code):
    rewrite(folder, change)
    refused(code, lambda: Scope.open(folder).load("res.12"))


def test_missing_files_and_folders_are_refused(folder, tmp_path):
    refused("scope-not-found", lambda: Scope.open(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused("scope-not-found", lambda: Scope.open(tmp_path / "empty"))
    (folder / "res.12" / "cfg.json").unlink()
    refused("scope-damaged", lambda: Scope.open(folder).load("res.12"))
    refused("site-not-open", lambda: Scope.open(folder).load("res.0"))
    refused("site-unreadable", lambda: Scope.open(folder).load("res12"))


def test_weights_that_the_manifest_does_not_name_are_not_read(folder):
    packed = write_scope(folder.parent / "p", [(make(seed=9), None, {})], id="x", model=MODEL)
    (folder / "res.12" / COMPRESSED).write_bytes((packed.folder / "res.12" / COMPRESSED).read_bytes())
    refused("scope-damaged", lambda: Scope.open(folder).load("res.12"))


# the manifest


def set_in(*path, value):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (set_in("format", value=3), "scope-newer"),
        (set_in("format", value="1"), "scope-damaged"),
        (set_in("saes", value={}), "scope-damaged"),
        (set_in("saes", "res.12", "folder", value="../outside"), "scope-damaged"),
        (set_in("saes", "res.12", "folder", value="/etc"), "scope-damaged"),
        (set_in("saes", "res.12", "folder", value=".."), "scope-damaged"),
        (set_in("saes", "res.12", "files", value={"../../x": "a" * 64}), "scope-damaged"),
        (set_in("saes", "res.12", "files", "cfg.json", value="abc"), "scope-damaged"),
        (set_in("saes", "res.12", "width", value=0), "scope-damaged"),
        (set_in("saes", "res.12", value=3), "scope-damaged"),
        (set_in("saes", "nonsense", value={}), "site-unreadable"),
        (set_in("model", value=None), "scope-damaged"),
        (set_in("model", "n_layers", value="18"), "scope-damaged"),
    ],
)
def test_bad_manifests_are_refused(folder, change, code):
    edit_manifest(folder, change)
    refused(code, lambda: Scope.open(folder))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "\x00\xff"])
def test_manifest_that_is_no_json_object_is_refused(folder, text):
    (folder / "manifest.json").write_text(text, encoding="latin1")
    refused("scope-damaged", lambda: Scope.open(folder))


# another model


@pytest.mark.parametrize(
    "other",
    [
        ModelFacts("other", "gemma2", 18, D_IN),
        ModelFacts("other", "gemma3_text", 26, D_IN),
        ModelFacts("other", "gemma3_text", 18, D_IN * 2),
        ModelFacts("other", "gemma3_text", 18, D_IN, digest="b" * 64),
        ModelFacts("other", None, 12, None),
    ],
)
def test_scope_of_another_model_is_refused(folder, other):
    scope = Scope.open(folder)
    message = refused("scope-other-model", lambda: scope.check_model(other))
    assert "other" in message and "tiny" in message
    refused("scope-other-model", lambda: scope.load("res.12", other))


def test_unknown_facts_are_not_compared(folder):
    Scope.open(folder).check_model(ModelFacts("google/gemma-3-270m", "gemma3_text", 18, D_IN, digest=None))


def test_sae_of_another_width_is_refused(folder):
    other_heads = ModelFacts("tiny", "gemma3_text", 18, D_IN, z_width=D_Z * 2)
    assert "att.3" in refused("scope-other-shape", lambda: Scope.open(folder).load("att.3", other_heads))
    edit_manifest(folder, set_in("saes", "res.12", "width", value=WIDTH + 1))
    refused("scope-other-shape", lambda: Scope.open(folder).load("res.12"))


def test_lone_sae_of_another_width_is_refused(tmp_path):
    save_sae_lens(make(), tmp_path / "a")
    refused("scope-other-shape", lambda: Scope.open(tmp_path / "a").load("res.12", ModelFacts("m", None, 18, D_IN + 1)))
    refused("scope-other-model", lambda: Scope.open(tmp_path / "a").load("res.12", ModelFacts("m", None, 5, D_IN)))


# pickles


class Canary:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "ran")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sae_weights.pt", "sae.bin", "sae.pkl"])
def test_pickles_are_refused_and_never_run(folder, tmp_path, name, protocol):
    canary = tmp_path / "canary"
    bad = pickle.dumps(Canary(canary), protocol=protocol)
    if name.endswith(".safetensors"):
        (folder / "res.12" / name).write_bytes(bad)
        resign(folder)
        refused("scope-pickled", lambda: Scope.open(folder).load("res.12"))
    else:
        lone = tmp_path / "lone"
        lone.mkdir()
        (lone / name).write_bytes(bad)
        refused("scope-pickled", lambda: Scope.open(lone / name))
        refused("scope-pickled", lambda: Scope.open(lone))
    assert not canary.exists()


def test_torch_archive_renamed_to_safetensors_is_refused(folder, tmp_path):
    canary = tmp_path / "canary"
    torch.save({"W_enc": Canary(canary)}, folder / "res.12" / "sae_weights.safetensors")
    resign(folder)
    refused("scope-pickled", lambda: Scope.open(folder).load("res.12"))
    assert not canary.exists()


def test_every_damaged_byte_string_gives_a_refusal(tmp_path):
    good = gemma_scope(tmp_path / "s") / "params.npz"
    data, random = good.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(data[: random.integers(1, len(data) + 1)])
        for place in random.integers(0, len(bad), 8):
            bad[place] = random.integers(0, 256)
        good.write_bytes(bad)
        with contextlib.suppress(Refusal):
            Scope.open(good, site="res.12").load("res.12")


# the scope that ships

SHIPPED = Path(gemloupe.__file__).parent / "scopes" / "gemma-3-270m"
SENTENCES = (
    "The City of Light is Paris, and its river is the Seine; in the evening people walk along the water.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))\n",
    "On Monday the doctor asked Mary whether she had slept well, and she said that she had not.",
)


def test_shipped_scope_is_whole_small_and_sound():
    scope = Scope.open(SHIPPED)
    scope.verify()
    assert set(scope.sites) == {Site(kind, layer) for kind in ("res", "mlp", "att") for layer in range(18)}
    saes = [path for path in SHIPPED.rglob("*") if path.is_file() and path.parent.name != "index"]
    assert sum(path.stat().st_size for path in saes) < 90_000_000
    assert scope.model.digest == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    on_disk = {path.relative_to(SHIPPED).as_posix() for path in saes}
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    named = {f"{about['folder']}/{name}" for about in manifest["saes"].values() for name in about["files"]}
    assert on_disk == named | {"manifest.json", "labels.json"}
    for site in scope.sites:
        size = sum(path.stat().st_size for path in (SHIPPED / str(site)).iterdir())
        assert size < 3_000_000, f"{site} is {size} bytes"
        sae, stats, facts = scope.load(site, scope.model), scope.stats(site), scope.facts(site)
        assert sae.d_in == (1024 if site.kind == "att" else 640)
        assert sae.encoder_int8 is not None
        torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(sae.width), atol=1e-5, rtol=0)
        assert (sae.threshold > 0).all()
        fires = stats.density > 0
        assert fires.mean() > 0.9
        assert (stats.maximum[fires] > sae.threshold.numpy()[fires]).all()
        assert np.isnan(stats.maximum[~fires]).all()
        assert (stats.mean_active[fires] <= stats.maximum[fires]).all()
        assert stats.density.sum() == pytest.approx(facts["l0"], rel=0.1)
        assert stats.promotes.shape == (sae.width, 10)
        assert (np.diff(stats.promotes_logit.astype(np.float32), axis=1) <= 0).all()
        assert (np.diff(stats.suppresses_logit.astype(np.float32), axis=1) >= 0).all()


def test_shipped_scope_explains_the_builtin_model():
    from gemloupe.load.model import load_model
    from gemloupe.run.capture import reading
    from gemloupe.train.evaluate import reconstruction

    try:
        loaded = load_model(device="cpu", dtype="float32")
    except Refusal as refusal:
        if refusal.code != "builtin-missing":
            raise
        pytest.skip(str(refusal))
    scope = Scope.open(SHIPPED)
    facts = ModelFacts("gemma-3-270m", loaded.architecture, 18, 640, loaded.digest, 1024)
    rows = {site: [] for site in scope.sites}
    with torch.inference_mode():
        for sentence in SENTENCES:
            ids = loaded.tokenizer(sentence, add_special_tokens=False)["input_ids"]
            with reading(loaded.model, scope.sites, lambda site, x: rows[site].append(x[0, 1:])):
                loaded.model(torch.tensor([[loaded.bos, *ids]]))
    for site in scope.sites:
        x = torch.cat(rows[site])
        x = x[x.norm(dim=1) <= scope.facts(site)["outlier_norm"]]
        assert len(x) > 50
        got = reconstruction(scope.load(site, facts), x)
        assert got["fvu"] < 0.6, (site, got)
        assert 0.5 < got["l0"] / scope.facts(site)["l0"] < 2, (site, got)
