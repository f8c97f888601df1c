"""Ten ways to read the wrong tensor without an error. Each has a test here that fails if it comes back.

Slow to start: TransformerLens and SAELens are imported, once for this file.
"""

import socket
from dataclasses import dataclass
from types import SimpleNamespace

import gemloupe as gl
import numpy as np
import pytest
import torch
from conftest import tiny_scope
from gemloupe.errors import Refusal
from gemloupe.load.model import load_model
from gemloupe.load.sae import Transcoder, hook_name, sae_lens_config, site_of_hook
from gemloupe.run.capture import before_gain, body, reading
from gemloupe.run.read import read
from gemloupe.site import Site
from tiny import TEXT, tiny_model

LAYERS = 4
SITES = [f"{kind}.{layer}" for layer in range(LAYERS) for kind in ("att", "transcoder", "mlp", "res")]
# Where TransformerLens has them: by the bridge's own name, and the name everybody writes.
THEIRS = {
    "res": ("hook_out", "hook_resid_post"),
    "mlp": ("ln2_post.hook_out", "hook_mlp_out"),
    "att": ("attn.o.hook_in", "attn.hook_z"),
    "transcoder": ("mlp.hook_in", "ln2.hook_out"),
}


@dataclass
class Case:
    kind: str
    loupe: object
    ids: list
    ours: dict
    bare: dict  # transcoder sites without the norm's gain
    plain: dict  # tensors by Hugging Face module and side, from hooks of this file
    states: tuple
    bridge: object
    cache: dict

    @property
    def model(self):
        return self.loupe.engine.loaded.model

    def their(self, layer, name):
        return self.cache[f"blocks.{layer}.{name}"][0].flatten(1)


def captured(model, ids, sites, **options):
    seen = {}
    with torch.inference_mode(), reading(model, sites, lambda site, x: seen.update({site: x[0].clone()}), **options):
        body(model)(torch.tensor([ids]), use_cache=False)
    return seen


@pytest.fixture(scope="module", params=["gemma2", "gemma3"])
def case(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    folder = tiny_model(request.param, root / "model", layers=LAYERS, instruct=True)
    scope = tiny_scope(load_model(folder, device="cpu"), root / "scope", sites=SITES)
    loupe = gl.open(folder, scope=scope, device="cpu")
    model = loupe.engine.loaded.model
    ids = [token.id for token in loupe.read(TEXT[:200], sites=()).tokens]
    plain, hooks = {}, []
    for number, layer in enumerate(body(model).layers):
        for name in ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"):
            hooks.append(
                layer.get_submodule(name).register_forward_hook(
                    lambda _m, args, out, key=(number, name): plain.update(
                        {(*key, "in"): args[0][0], (*key, "out"): out[0]}
                    )
                )
            )
    with torch.inference_mode():
        states = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    sites = [Site.of(name) for name in SITES]
    transcoders = [site for site in sites if site.kind == "transcoder"]
    ours = captured(model, ids, sites)
    bare = captured(model, ids, transcoders, without_gain=lambda _: True)
    bridge = loupe.bridge
    with torch.inference_mode():
        cache = bridge.run_with_cache(torch.tensor([ids]))[1]
    states = tuple(state[0] for state in states)
    yield Case(request.param, loupe, ids, ours, bare, plain, states, bridge, cache)
    loupe.close()


def equal(one, two, within=1e-5):
    return one.shape == two.shape and bool(((one - two).abs() <= within * two.abs().amax(-1, keepdim=True)).all())


def test_1_a_hook_that_never_fires_is_an_error_and_every_name_we_give_out_fires(case):
    for site in case.ours:
        for name in (hook_name(site), *(f"blocks.{site.layer}.{one}" for one in THEIRS[site.kind])):
            assert equal(case.cache[name][0].flatten(1), case.ours[site], 1e-6), name
            assert site_of_hook(name) == site
    silent = SimpleNamespace(layers=[torch.nn.Identity() for _ in range(LAYERS)])
    with pytest.raises(Refusal) as refused, reading(SimpleNamespace(model=silent), [Site("res", 1)], lambda *_: None):
        pass
    assert refused.value.code == "hook-silent"


def test_2_a_transcoder_never_names_sae_lens_hook_mlp_in(case):
    random = torch.randn(8, 48)
    for bare, name in ((False, "mlp.hook_in"), (True, "ln2.hook_normalized")):
        one = Transcoder(Site("transcoder", 1), random, torch.zeros(8), torch.ones(8), random, torch.zeros(48))
        one = Transcoder(**{**vars(one), "before_gain": bare})
        named = sae_lens_config(one)["metadata"]["hook_name"]
        assert named == f"blocks.1.{name}"
        expected = (case.bare if bare else case.ours)[one.site]
        assert equal(case.cache[named][0], expected, 1e-5)
    assert site_of_hook("blocks.1.hook_mlp_in") is None  # SAELens' name: un-normalised, and silent unless switched on


def test_3_the_mlp_site_is_after_the_post_norm(case):
    for layer in range(LAYERS):
        ours = case.ours[Site("mlp", layer)]
        assert equal(ours, case.plain[layer, "post_feedforward_layernorm", "out"], 0)
        for wrong in (case.plain[layer, "mlp", "out"], case.their(layer, "mlp.hook_out")):
            assert ours.shape == wrong.shape and not equal(ours, wrong, 0.1)
    assert site_of_hook("blocks.1.mlp.hook_out") is None


def test_4_the_two_transcoders_read_two_tensors(case):
    for layer in range(LAYERS):
        site = Site("transcoder", layer)
        entering = case.plain[layer, "pre_feedforward_layernorm", "in"]
        by_hand = entering / (entering.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        with_gain, without = case.ours[site], case.bare[site]
        assert equal(with_gain, case.plain[layer, "pre_feedforward_layernorm", "out"], 0)
        assert equal(with_gain, case.plain[layer, "mlp", "in"], 0)
        assert equal(with_gain, case.their(layer, "mlp.hook_in"), 1e-6)
        assert equal(without, by_hand) and equal(without, case.their(layer, "ln2.hook_normalized"))
        stream = case.their(layer, "ln2.hook_in")
        assert equal(stream, entering, 1e-6)
        for one, two in ((with_gain, without), (with_gain, stream), (without, stream)):
            assert not equal(one, two, 0.1)


def test_4_each_transcoder_is_given_its_own(case):
    """Through the whole way of a reading: what each generation's features are computed from."""
    site, model = Site("transcoder", 2), case.model
    random = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 48, generator=random) / 7
    found = {}
    for bare in (False, True):
        one = Transcoder(site, rows, torch.zeros(64), torch.full((64,), 0.5), rows, torch.zeros(48), before_gain=bare)
        found[bare] = read(
            model, case.ids, [site], lambda _, one=one: one, special=case.loupe.engine.loaded.special
        ).acts
        x = (case.bare if bare else case.ours)[site]
        expected = one.encode_dense(x).numpy()
        expected[[ident in case.loupe.engine.loaded.special for ident in case.ids]] = 0
        assert np.allclose(found[bare][site].to_dense(), expected, atol=1e-5) and (expected > 0).sum() > 50
    assert not np.allclose(found[False][site].to_dense(), found[True][site].to_dense(), atol=0.1)


def test_4_the_norm_without_its_gain_survives_the_bridge_and_bfloat16(case):
    site = Site("transcoder", 1)
    again = captured(case.model, case.ids, [site], without_gain=lambda _: True)[site]
    assert equal(again, case.bare[site], 1e-6)  # the bridge has wrapped the norm by now
    norm = SimpleNamespace(eps=1e-6)
    x = torch.randn(5, 48) * 300
    assert before_gain(norm, x.bfloat16()).dtype == torch.float32
    assert equal(before_gain(norm, x), x / x.pow(2).mean(-1, keepdim=True).sqrt())


def test_att_is_what_enters_w_o(case):
    for layer in range(LAYERS):
        ours = case.ours[Site("att", layer)]
        assert equal(ours, case.plain[layer, "self_attn.o_proj", "in"], 0)
        assert equal(ours, case.their(layer, "attn.hook_z"), 1e-6)
        assert ours.shape[1] == 64 != case.plain[layer, "self_attn.o_proj", "out"].shape[1]


def test_5_special_tokens_have_no_features_and_count_for_nothing(case):
    loupe, special = case.loupe, case.loupe.engine.loaded.special
    inside = [*case.ids[:10], loupe.engine.loaded.bos, *case.ids[10:20]]  # masked by id, wherever it stands
    trace = loupe.read(inside)
    masked = [i for i, ident in enumerate(inside) if ident in special]
    assert masked == [0, 10]
    for site in trace.sites:
        assert not trace[site].l0[masked].any() and trace[site].l0.any()
    assert loupe.fidelity(inside, sites="res.1")["res.1"].tokens <= len(inside) - 2


def test_6_a_chat_has_one_bos(case):
    loaded = case.loupe.engine.loaded
    chat = [{"role": "user", "content": "Where is the City of Light?"}]
    for given in (chat, "Where is it?"):
        ids = [token.id for token in case.loupe.read(given, sites=()).tokens]
        assert ids.count(loaded.bos) == 1 and ids[0] == loaded.bos


def test_7_the_last_layer_is_read_before_the_final_norm(case):
    for layer in range(LAYERS):
        same = equal(case.ours[Site("res", layer)], case.states[layer + 1])
        assert same == (layer < LAYERS - 1)
    assert case.ours[Site("res", LAYERS - 1)].shape == case.states[-1].shape


def test_8_layers_may_return_a_tuple_and_attention_is_eager(case):
    class Layer(torch.nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.wrap = wrap

        def forward(self, x):
            return (x + 1, None) if self.wrap else x + 1

    for wrap in (False, True):
        layer, seen = Layer(wrap), {}
        model = SimpleNamespace(model=SimpleNamespace(layers=[layer]))
        with reading(model, [Site("res", 0)], seen.__setitem__):
            layer(torch.zeros(1, 2, 3))
        assert torch.equal(seen[Site("res", 0)], torch.ones(1, 2, 3))
    assert body(case.model).config._attn_implementation == "eager"


def test_9_nothing_that_is_here_needs_the_network(case, monkeypatch, tmp_path):
    def refuse_all(*_args, **_options):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse_all)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_all)
    engine = case.loupe.engine
    with gl.open(engine.loaded.folder, scope=engine.scope.folder, device="cpu") as again:
        assert again.read("The City").sites == case.loupe.sites


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "half"])
def test_10_float16_is_refused_and_saes_stay_in_float32(case, dtype):
    with pytest.raises(Refusal) as refused:
        gl.open(case.loupe.engine.loaded.folder, device="cpu", dtype=dtype)
    assert refused.value.code == "dtype-unsupported"
    engine = case.loupe.engine
    with gl.open(engine.loaded.folder, scope=engine.scope.folder, device="cpu", dtype="bfloat16") as half:
        sae = half.engine.sae(Site("res", 1))
        assert {sae.encoder.dtype, sae.threshold.dtype, sae.decoder.dtype} == {torch.float32}
        assert half.read("The City").acts[Site("res", 1)].values.dtype == np.float32
