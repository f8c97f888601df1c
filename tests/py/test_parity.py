"""The tensors and features here are those of Hugging Face, TransformerLens and SAELens, on the same weights.

Slow to start: importing the two libraries takes some twenty seconds, once for this file.
"""

import importlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from gemloupe.errors import Refusal
from gemloupe.load.sae import hook_name
from gemloupe.run.capture import body, reading
from gemloupe.run.read import read
from gemloupe.site import Site
from tiny import TEXT

encoding = importlib.import_module("gemloupe.run.encode")

KINDS = ("res", "mlp", "att")
CANONICAL = {"res": "hook_out", "mlp": "ln2_post.hook_out", "att": "attn.o.hook_in"}


@dataclass
class Case:
    """A loupe, one text, and every tensor of it: ours before and after the bridge was made, and TransformerLens'."""

    loupe: object
    ids: list
    layers: tuple
    ours: dict
    inputs: dict  # what each layer's submodules were given, by Hugging Face name
    hidden_states: tuple
    acts: dict
    pointers: set
    bridge: object = None
    cache: dict = field(default_factory=dict)

    @property
    def model(self):
        return self.loupe.engine.loaded.model

    @property
    def sites(self):
        return [Site(kind, layer) for layer in self.layers for kind in KINDS]

    def theirs(self, site):
        """The tensor by its name in TransformerLens' bridge, [token, width]."""
        return self.cache[f"blocks.{site.layer}.{CANONICAL[site.kind]}"][0].flatten(1)


def captured(loupe, ids, sites):
    seen = {}
    with torch.inference_mode(), reading(loupe.engine.loaded.model, sites, lambda site, x: seen.update({site: x[0]})):
        body(loupe.engine.loaded.model)(torch.tensor([ids]), use_cache=False)
    return seen


def features(loupe, ids, sites=None):
    loaded = loupe.engine.loaded
    return read(
        loaded.model, ids, loupe.sites if sites is None else sites, loupe.engine.sae, special=loaded.special
    ).acts


def opened(request, kind):
    import gemloupe as gl

    if kind != "builtin":
        model, scope = request.getfixturevalue("tiny_folders")[kind]
        return gl.open(model, scope=scope, device="cpu")
    try:
        return gl.open(device="cpu")
    except Refusal as refusal:
        if refusal.code == "builtin-missing":
            pytest.skip(str(refusal))
        raise


@pytest.fixture(scope="module", params=["gemma2", "gemma3", "builtin"])
def case(request):
    # A loupe of its own: the bridge puts TransformerLens' modules into the model.
    loupe = opened(request, request.param)
    loaded = loupe.engine.loaded
    text = TEXT[:90] if request.param == "builtin" else TEXT[:300]
    ids = [loaded.bos, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]
    layers = (0, 5, 17) if request.param == "builtin" else (0, 1, 3)
    sites = [Site(kind, layer) for layer in layers for kind in KINDS]
    inputs, hooks = {}, []
    for layer in layers:
        block = body(loaded.model).layers[layer]
        for name in ("input_layernorm", "pre_feedforward_layernorm"):
            hooks.append(
                getattr(block, name).register_forward_pre_hook(
                    lambda _m, args, key=(layer, name): inputs.update({key: args[0][0]})
                )
            )
    with torch.inference_mode():
        states = loaded.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    made = Case(
        loupe,
        ids,
        layers,
        captured(loupe, ids, sites),
        inputs,
        tuple(state[0] for state in states),
        features(loupe, ids),
        {parameter.data_ptr() for parameter in loaded.model.parameters()},
    )
    made.bridge = loupe.bridge
    with torch.inference_mode():
        made.cache = made.bridge.run_with_cache(torch.tensor([ids]))[1]
    yield made
    loupe.close()


def equal(one, two, within=1e-5):
    """Equal but for float32's rounding, relative to the largest entry of each token."""
    return one.shape == two.shape and bool(((one - two).abs() <= within * two.abs().amax(-1, keepdim=True)).all())


# --- tensors ---


def test_the_bridge_holds_the_very_same_weights(case):
    parameters = {parameter.data_ptr(): parameter for parameter in case.bridge.parameters()}
    assert parameters.keys() >= case.pointers
    # TransformerLens gives the unembedding a bias, of zeros
    added = [parameters[pointer] for pointer in parameters.keys() - case.pointers]
    assert [(one.ndim, bool(one.any())) for one in added] == [(1, False)]
    assert case.loupe.bridge is case.bridge


def test_every_site_is_transformer_lens_tensor(case):
    for site in case.sites:
        assert equal(case.ours[site], case.theirs(site), 1e-6), site
        assert equal(case.ours[site], case.cache[hook_name(site)][0].flatten(1), 1e-6), site


def test_the_residual_stream_is_hugging_faces_hidden_state(case):
    last = len(body(case.model).layers) - 1
    for layer in case.layers:
        ours = case.ours[Site("res", layer)]
        assert equal(ours, case.hidden_states[layer + 1]) == (layer < last)
    norm = getattr(body(case.model).norm, "original_component", body(case.model).norm)
    with torch.inference_mode():
        assert equal(norm(case.ours[Site("res", last)]), case.hidden_states[-1])


def test_the_mlp_site_is_what_the_mlp_adds_to_the_stream(case):
    for layer in case.layers:
        added = case.ours[Site("res", layer)] - case.inputs[layer, "pre_feedforward_layernorm"]
        tolerance = 1e-5 * case.ours[Site("res", layer)].abs().amax(-1, keepdim=True)
        assert ((case.ours[Site("mlp", layer)] - added).abs() <= tolerance).all()


def test_the_att_site_becomes_what_attention_adds_to_the_stream(case):
    for layer in case.layers:
        block = body(case.model).layers[layer]
        into, out = (case.inputs[layer, name] for name in ("input_layernorm", "pre_feedforward_layernorm"))
        with torch.inference_mode():
            added = block.post_attention_layernorm(block.self_attn.o_proj(case.ours[Site("att", layer)][None]))[0]
        assert ((out - into) - added).abs().max() <= 1e-5 * max(out.abs().max(), into.abs().max())
        assert added.abs().max() > 0


def test_the_tensors_with_the_tempting_names_are_other_ones(case):
    for layer in case.layers:
        mlp, att = case.ours[Site("mlp", layer)], case.ours[Site("att", layer)]
        before_the_norm = case.cache[f"blocks.{layer}.mlp.hook_out"][0]
        assert before_the_norm.shape == mlp.shape and not equal(mlp, before_the_norm, 0.1)
        after_w_o = case.cache[f"blocks.{layer}.attn.hook_out"][0]
        assert (
            after_w_o.shape != att.shape == (len(case.ids), body(case.model).layers[layer].self_attn.o_proj.in_features)
        )
    last = case.ours[Site("res", len(body(case.model).layers) - 1)]
    assert last.shape == case.hidden_states[-1].shape and not equal(last, case.hidden_states[-1], 0.1)


def test_reading_goes_on_as_before_once_the_bridge_is_made(case):
    for site, tensor in captured(case.loupe, case.ids, case.sites).items():
        assert equal(tensor, case.ours[site], 1e-6), site
    for site, acts in features(case.loupe, case.ids).items():
        assert np.array_equal(acts.indices, case.acts[site].indices)
        assert np.allclose(acts.values, case.acts[site].values, rtol=1e-5)


# --- features ---

WAYS = [
    pytest.param(10**12, id="dense"),
    pytest.param(
        0,
        id="screened",
        marks=pytest.mark.skipif(not encoding.can_screen(), reason="this CPU has no int8 products in hardware (VNNI)"),
    ),
]


@pytest.mark.parametrize("least", WAYS)
def test_features_are_sae_lens_own(case, monkeypatch, record_property, least):
    monkeypatch.setattr(encoding, "_WORTH_SCREENING", least)
    loaded = case.loupe.engine.loaded
    special = np.array([ident in loaded.special for ident in case.ids])
    assert special[0] and not special.all()
    sites = [site for site in case.loupe.sites if site.kind != "transcoder"][:4]
    found, compared, largest, at_the_edge = features(case.loupe, case.ids, sites), 0, 0.0, []
    for site in sites:
        sae = case.loupe.engine.sae(site)
        x = case.cache[f"blocks.{site.layer}.{CANONICAL[site.kind]}"]
        with torch.inference_mode():
            theirs = case.loupe.sae(site).encode(x)[0].numpy()
        ours = found[site].to_dense()
        assert ours.shape == theirs.shape
        assert not ours[special].any()
        theirs = theirs * ~special[:, None]
        for token, feature in np.argwhere((ours > 0) != (theirs > 0)):
            threshold = float(sae.threshold[feature])
            pre = float(x[0, token].flatten().double() @ sae.encoder[feature].double() + sae.b_enc[feature])
            assert abs(pre - threshold) < 1e-5 * abs(threshold), (site, token, feature, pre, threshold)
            at_the_edge.append((str(site), int(token), int(feature)))
        both = (ours > 0) & (theirs > 0)
        difference = np.abs(ours[both] / theirs[both] - 1)
        assert difference.max() <= 1e-4
        compared, largest = compared + int(both.sum()), max(largest, float(difference.max()))
    record_property("compared", compared)
    record_property("at_the_edge", at_the_edge)
    print(f"{compared} entries, {len(at_the_edge)} at the edge, largest relative difference {largest:.1e}")
    assert compared > 100


def test_the_sae_lens_sae_says_where_it_reads(case):
    for site in case.loupe.sites[:4]:
        theirs = case.loupe.sae(site)
        assert theirs.cfg.metadata.hook_name == hook_name(site)
        assert theirs.cfg.metadata.hook_name in case.cache
        assert theirs.cfg.metadata.model_name == case.loupe.engine.loaded.id
        assert not theirs.cfg.apply_b_dec_to_input and theirs.cfg.normalize_activations == "none"


def test_an_sae_finds_other_features_in_the_wrong_tensor(case):
    """What parity guards against: the same SAE on the MLP's output before its norm finds other features."""
    site = next((site for site in case.loupe.sites if site.kind == "mlp"), None)
    if site is None:
        pytest.skip("this scope has no MLP site")
    right = case.theirs(site)
    wrong = case.cache[f"blocks.{site.layer}.mlp.hook_out"][0]
    sae = case.loupe.engine.sae(site)
    one, two = sae.encode_dense(right) > 0, sae.encode_dense(wrong) > 0
    assert (one & two).sum() < 0.75 * (one | two).sum()
