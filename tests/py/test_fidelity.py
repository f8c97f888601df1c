"""How well SAEs fit a text: the figures against their definitions, and the wrong tensor red."""

import math

import gemloupe as gl
import numpy as np
import pytest
import torch
from gemloupe.engine.local import LocalEngine
from gemloupe.errors import Refusal
from gemloupe.fidelity import LEAST_TOKENS, Fidelities, Fidelity
from gemloupe.load.model import load_model
from gemloupe.load.sae import Sae, Transcoder
from gemloupe.run import capture
from gemloupe.run.capture import body, reading
from gemloupe.run.fidelity import OUTLIER, target_of
from gemloupe.site import Site
from gemloupe.trace import Trace
from gemloupe.widgets.token_heatmap import TokenHeatmap
from tiny import TEXT

RIVER = (
    "The Rhine is one of the major European rivers. It rises in the Swiss canton of Graubünden in the southeastern "
    "Swiss Alps and flows in a mostly northerly direction through Germany and the Netherlands to the North Sea."
)


def tensors(loupe, ids, *sites):
    seen = {}
    model = loupe.engine.loaded.model
    with torch.inference_mode(), reading(model, sites, lambda site, x: seen.update({site: x[0].double()})):
        body(model)(torch.tensor([list(ids)]), use_cache=False)
    return seen


# ---- figures


@pytest.mark.parametrize("length", [40, 300])
def test_the_figures_are_their_definitions(tiny_folders, length):
    model, scope = tiny_folders["gemma2"]
    from gemloupe.load.scope import Scope

    engine = LocalEngine(load_model(model, device="cpu"), Scope.open(scope), chunk=1000)
    with gl.Loupe(engine) as loupe:
        trace = loupe.read(TEXT[:length])
        ids = [token.id for token in trace.tokens]
        kept = torch.tensor([not token.special for token in trace.tokens])
        for site in trace.sites:
            if site.kind == "transcoder":
                continue
            x, sae = tensors(loupe, ids, site)[site], loupe.engine.sae(site)
            norms = x.norm(dim=1)
            inside = kept & (norms <= OUTLIER * norms[kept].median())
            rows = x[inside]
            pre = rows @ sae.encoder.double().T + sae.b_enc
            acts = pre * (pre > sae.threshold)
            error = (acts @ sae.decoder.double() + sae.b_dec - rows).pow(2).sum()
            found = trace.fidelity[site]
            assert found.tokens == int(inside.sum()) and found.outliers == int(kept.sum() - inside.sum())
            assert found.l0 == pytest.approx(float((acts > 0).sum(1).double().mean()))
            assert found.fvu == pytest.approx(float(error / len(rows) / rows.var(0).sum()), rel=1e-4)
            assert found.norm_explained == pytest.approx(float(1 - error / rows.pow(2).sum()), rel=1e-4)
            assert found.declared_l0 == 10.0 and found.declared_fvu is None and found.delta_loss is None


def test_a_text_in_chunks_is_judged_as_a_whole(tiny_folders):
    from gemloupe.load.scope import Scope

    model, scope = tiny_folders["gemma3"]
    found = []
    for chunk in (1000, 37):
        with gl.Loupe(LocalEngine(load_model(model, device="cpu"), Scope.open(scope), chunk=chunk)) as loupe:
            found.append(loupe.fidelity(TEXT[:200], sites="att.1")["att.1"])
    whole, parts = found
    assert abs(whole.tokens - parts.tokens) <= 5  # the median that sinks are told by is a chunk's
    assert whole.l0 == pytest.approx(parts.l0, rel=0.1) and whole.fvu == pytest.approx(parts.fvu, rel=0.15)


def test_delta_loss_is_the_rise_of_the_cross_entropy(tiny2):
    site = Site("res", 2)
    (found,) = tiny2.fidelity(TEXT[:120], sites=site, delta_loss=True).values()
    model, trace = tiny2.engine.loaded.model, tiny2.read(TEXT[:120], sites=())
    ids = torch.tensor([[token.id for token in trace.tokens]])
    kept = torch.tensor([not token.special for token in trace.tokens])
    sae = tiny2.engine.sae(site)

    def loss():
        logits = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        chosen = logits.gather(1, ids[0, 1:, None])[:, 0]
        return -float(chosen[kept[:-1]].mean())

    def spliced(_module, _args, out):
        out = out.clone()
        norms = out[0].norm(dim=1)
        inside = kept & (norms <= OUTLIER * norms[kept].median())
        out[0, inside] = sae.decode(sae.encode_dense(out[0, inside]))
        return out

    with torch.inference_mode():
        plain = loss()
        hook = body(model).layers[2].register_forward_hook(spliced)
        after = loss()
        hook.remove()
    assert found.loss == pytest.approx(plain, abs=1e-4)
    assert found.delta_loss == pytest.approx(after - plain, abs=1e-4) and abs(found.delta_loss) > 1e-3


def test_special_tokens_do_not_count(tiny2):
    bos = tiny2.engine.loaded.bos
    ids = [bos, *[token.id for token in tiny2.read(TEXT[:80]).tokens[1:]]]
    one = tiny2.fidelity(ids, sites="res.0")["res.0"]
    assert one.tokens + one.outliers == len(ids) - 1


# ---- the light


def judged(**more):
    return Fidelity(Site("res", 1), **{"tokens": 50, "l0": 80.0, "fvu": 0.2, "declared_l0": 85.0, **more})


@pytest.mark.parametrize(
    ("more", "light", "says"),
    [
        ({}, "green", "80 features on per token, 85 declared"),
        ({"fvu": 0.26, "l0": 81.0}, "green", "26%"),  # Gemma Scope's layer 4 MLP on its tensor, as measured elsewhere
        ({"fvu": 9.8, "l0": 8.0}, "red", "8 features on per token, 85 declared"),  # and before the norm
        ({"fvu": 1.2}, "red", "no better than the mean"),
        ({"fvu": 500.0}, "red", "many times"),
        ({"fvu": 0.7}, "amber", "70%"),
        ({"fvu": 0.45, "declared_fvu": 0.12}, "amber", "(12% declared)"),
        ({"l0": 190.0}, "amber", "190 features on per token, 85 declared"),
        ({"l0": 400.0}, "red", "400 features"),
        ({"l0": 0.0, "fvu": 1.0}, "red", "no feature is on"),
        ({"declared_l0": None}, "green", "80 features on per token"),
        ({"fvu": None}, "amber", "hardly vary"),
        ({"tokens": LEAST_TOKENS - 1, "fvu": 9.0}, "unknown", f"{LEAST_TOKENS - 1} ordinary tokens"),
        ({"tokens": 1}, "unknown", "1 ordinary token,"),
        ({"tokens": 0, "l0": 0.0, "fvu": None}, "unknown", "too few tokens"),
    ],
)
def test_the_light_and_its_reason(more, light, says):
    one = judged(**more)
    assert one.light == light and says in one.reason


def test_a_short_text_is_not_judged(tiny2):
    one = tiny2.read("The city").fidelity["res.0"]
    assert one.light == "unknown" and "too few tokens" in one.reason


# ---- in a trace


def test_a_trace_is_measured_site_by_site_when_asked(tiny2, monkeypatch):
    asked = []
    read = tiny2.engine.read
    monkeypatch.setattr(tiny2.engine, "read", lambda request: asked.append(request.fidelity) or read(request))
    trace = tiny2.read(TEXT[:100])
    assert asked == [()]  # reading itself measures nothing
    one = trace.fidelity["res.0"]
    assert trace.fidelity[Site("res", 0)] is one and asked == [(), (Site("res", 0),)]
    assert set(trace.fidelity) == set(trace.sites) and len(trace.fidelity) == len(trace.sites)
    assert len(asked) == 3 and set(asked[2]) == set(trace.sites) - {Site("res", 0)}
    table = repr(trace.fidelity)
    assert "res.0" in table and "light" in table and "<table>" in trace.fidelity._repr_html_()
    with pytest.raises(Refusal):
        trace.fidelity["res.3"]


def test_what_was_measured_is_kept_in_the_file(tiny2, tmp_path):
    trace = tiny2.read(TEXT[:100])
    before = trace.fidelity["res.0"]
    again = Trace.load(trace.save(tmp_path / "one.safetensors"))
    assert again.fidelity["res.0"] == before
    with pytest.raises(Refusal) as refused:
        again.fidelity["res.2"]
    assert refused.value.code == "fidelity-unknown"


def test_measuring_changes_nothing_that_is_read(tiny_loupe):
    plain = tiny_loupe.read(TEXT[:200])
    beside = tiny_loupe.fidelity(plain)
    assert isinstance(beside, Fidelities)
    again = tiny_loupe.read(TEXT[:200])
    assert all(np.array_equal(plain[site].values, again[site].values) for site in plain.sites)


def test_the_heatmap_has_the_light_of_what_it_shows_without_another_pass(tiny2, monkeypatch):
    asked = []
    read = tiny2.engine.read
    monkeypatch.setattr(tiny2.engine, "read", lambda request: asked.append(request) or read(request))
    one = tiny2.heatmap(TEXT[:100], site="mlp.1")
    assert len(asked) == 1 and one.fidelity["site"] == "mlp.1"
    assert one.fidelity["light"] in one.static_picture() and "fidelity" in one.static_state()
    assert tiny2.heatmap(TEXT[:100], selected="att.1/3").fidelity["site"] == "att.1"
    # another site: nothing of the last one stays, and the browser's request brings its own
    one.site = "res.0"
    assert one.fidelity is None
    one.methods()["fidelity"]("res.0")
    assert one.fidelity["site"] == "res.0"


def test_a_trace_from_a_file_has_a_heatmap_without_a_light(tiny2, tmp_path):
    trace = Trace.load(tiny2.read(TEXT[:100]).save(tmp_path / "one.safetensors"))
    shown = TokenHeatmap(trace)
    assert shown.fidelity is None
    with pytest.raises(Refusal) as refused:
        shown.methods()["fidelity"](shown.site)
    assert refused.value.code == "fidelity-unknown"


# ---- the wrong tensor


def wrongly(monkeypatch, swap):
    """Every site of a kind in `swap` reads what swap[kind](layer) gives: (module, 'input' or 'output')."""
    real = capture.module_of

    def module_of(model, site):
        if site.kind not in swap:
            return real(model, site)
        module, side = swap[site.kind](body(model).layers[site.layer])
        if not hasattr(module, "in_features"):  # a norm; its width is asked for as a projection's would be
            monkeypatch.setattr(module, "in_features", body(model).config.hidden_size, raising=False)
        return module, side, real(model, site)[2]

    monkeypatch.setattr(capture, "module_of", module_of)


WRONG = {
    "mlp before the post-norm": ("mlp", lambda layer: (layer.mlp, "output")),
    "mlp: the stream between the sublayers": ("mlp", lambda layer: (layer.pre_feedforward_layernorm, "input")),
    "mlp: what the MLP reads": ("mlp", lambda layer: (layer.pre_feedforward_layernorm, "output")),
    "res: what attention adds": ("res", lambda layer: (layer.post_attention_layernorm, "output")),
    "res: the MLP's output": ("res", lambda layer: (layer.post_feedforward_layernorm, "output")),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_built_in_saes_are_red_on_the_wrong_tensor_and_green_on_theirs(builtin, monkeypatch, name):
    kind, swap = WRONG[name]
    sites = [site for site in builtin.sites if site.kind == kind]
    right = builtin.fidelity(RIVER, sites=sites)
    fits = [one.light for one in right.values()]
    assert "red" not in fits and fits.count("green") >= 0.9 * len(fits), right
    wrongly(monkeypatch, {kind: swap})
    lights = [one.light for one in builtin.fidelity(RIVER, sites=sites).values()]
    # The first layers' stream is little more than what its MLP put there.
    assert "green" not in lights and lights.count("red") >= 0.9 * len(lights), lights


def test_attention_read_at_its_output_is_refused_for_its_width(builtin, monkeypatch):
    site = next(site for site in builtin.sites if site.kind == "att")
    assert builtin.fidelity(RIVER, sites=site)[site].light in ("green", "amber")
    wrongly(monkeypatch, {"att": lambda layer: (layer.self_attn.o_proj, "output")})
    with pytest.raises(RuntimeError):  # 640 numbers where the SAE reads 1,024
        builtin.fidelity(RIVER, sites=site)


# ---- transcoders: the tensor they read, and the one they are compared with


def perfect_transcoder(site, x, y, *, before_gain):
    """One feature per token of x [token, d]: exactly that token turns it on, and it gives back the token's y."""
    width = 2 * len(x)
    encoder = torch.zeros(width, x.shape[1])
    encoder[: len(x)] = torch.linalg.pinv(x).T
    decoder = torch.zeros(width, y.shape[1])
    decoder[: len(y)] = y - y.mean(0)
    one = torch.full((width,), 0.5)
    return Transcoder(site, encoder, torch.zeros(width), one, decoder, y.mean(0), before_gain=before_gain)


class OneSae:
    """A scope of one SAE that is not on disk."""

    id, model, notes = "one", None, ()

    def __init__(self, sae):
        self.sae, self.sites = sae, (sae.site,)

    def check_model(self, model):
        pass

    def width(self, site):
        return self.sae.width

    def facts(self, site):
        return {"l0": 1.0}

    def digest(self, site):
        return None

    def load(self, site, model=None):
        return self.sae

    def stats(self, site):
        from gemloupe.load.sae import FeatureStats

        return FeatureStats()


@pytest.mark.parametrize("before_gain", [True, False], ids=["Gemma Scope", "Gemma Scope 2"])
@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_a_transcoder_is_green_on_its_tensor_and_red_on_the_others(tiny_folders, monkeypatch, kind, before_gain):
    loaded, site = load_model(tiny_folders[kind][0], device="cpu"), Site("transcoder", 1)
    # As in the real ones: a stream far longer than what its norm makes of it, and gains far from 1.
    random = torch.Generator().manual_seed(1)
    loaded.model.get_input_embeddings().weight.data *= 100
    gain = body(loaded.model).layers[1].pre_feedforward_layernorm.weight.data
    gain += 3 * torch.randn(gain.shape, generator=random)
    with gl.Loupe(LocalEngine(loaded)) as bare:
        tokens = bare.read(TEXT[:75]).tokens
    ids = [token.id for token in tokens]
    seen = {}
    with (
        torch.inference_mode(),
        reading(loaded.model, [site, target_of(site)], seen.__setitem__, without_gain=lambda _: before_gain),
    ):
        body(loaded.model)(torch.tensor([ids]), use_cache=False)
    ordinary = [i for i, token in enumerate(tokens) if not token.special]
    assert LEAST_TOKENS < len(ordinary) <= 48
    x, y = (seen[one][0, ordinary].float() for one in (site, Site("mlp", 1)))
    sae = perfect_transcoder(site, x, y, before_gain=before_gain)

    def light(sae):
        with gl.Loupe(LocalEngine(loaded, OneSae(sae))) as loupe:
            return loupe.fidelity(ids, delta_loss=True)[site]

    right = light(sae)
    assert right.light == "green" and right.fvu < 1e-3 and right.l0 == pytest.approx(1.0)
    assert abs(right.delta_loss) < 1e-3  # it gives back what the MLP gives
    # the same weights on the other generation's tensor, and on the stream itself
    other = Transcoder(**{**vars(sae), "before_gain": not before_gain})
    assert light(other).light == "red"
    wrongly(monkeypatch, {"transcoder": lambda layer: (layer.post_attention_layernorm, "input")})
    plain = Sae(**{name: value for name, value in vars(sae).items() if name not in ("skip", "before_gain")})
    assert light(plain).light == "red"


def test_a_transcoder_is_compared_with_the_mlps_output():
    assert target_of(Site("transcoder", 3)) == Site("mlp", 3)
    assert target_of(Site("res", 3)) == Site("res", 3)


def test_numbers_that_are_none_are_not_declared():
    from gemloupe.engine.local import _number

    assert [_number(x) for x in (None, "82", math.nan, 0, -1, True, 82)] == [None] * 6 + [82.0]
