"""Steering: every edit does exactly what its formula says, in every row of a batch, and leaves nothing behind."""

import html
import threading

import gemloupe as gl
import numpy as np
import pytest
import torch
from conftest import NEVER_FIRES, UNKNOWN
from gemloupe.edits import Edit, When
from gemloupe.engine.protocol import Cancelled, CompareRequest, GenerateRequest, MeanRequest, NewToken
from gemloupe.errors import Refusal
from gemloupe.feature import FeatureId
from gemloupe.load.sae import hook_name
from gemloupe.run.capture import body, reading
from gemloupe.run.steer import Now, Steering, tapped
from gemloupe.site import Site
from refusal import refused
from tiny import CONTEXT, WINDOW

TEXT = "The City of Light is Paris, and the cat sat on the mat."
SOON = 30


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def tiny_loupe(tiny_loupe):
    """A loupe that must be left without hooks."""
    yield tiny_loupe
    assert hooks(tiny_loupe.engine.loaded.model) == 0


def strong(loupe, site, text=TEXT, most=3):
    """Features at a site that are on in a text and whose maximum is known, strongest first."""
    trace = loupe.read(text)
    found = [one.feature for one in trace.top(most + 20, site=site) if not np.isnan(one.maximum)]
    assert len(found) >= most
    return found[:most]


def run(loupe, edits=(), text=TEXT, rows=None, **options):
    """Generations by the engine, one per row."""
    rows = (tuple(edits),) if rows is None else rows
    made = loupe.engine.generate(GenerateRequest(text, rows=rows, **({"max_new_tokens": 8} | options))).result(SOON)
    return made[0] if len(rows) == 1 else made


def tensors(loupe, edits, ids, read_at):
    """The tensor at a site as later modules see it, and what arrived there, float32 [token, width], on one pass."""
    loaded = loupe.engine.loaded
    steered = Steering(
        [edits],
        prompt=len(ids),
        special=loaded.special,
        sae=loupe.engine.sae,
        maximum=lambda f: float(loupe.engine.maxima(f.site)[f.index]),
    )
    steered.begin(Now(0, [ids]))
    seen = {}
    taps = dict(steered.taps)
    write = taps.get(read_at, lambda x: None)

    def tap(x):
        seen["arrived"] = x[0].clone()
        new = write(x)
        seen["left"] = (x if new is None else new)[0].clone()
        return new

    taps[read_at] = tap
    with torch.inference_mode(), tapped(loaded.model, taps):
        body(loaded.model)(torch.tensor([ids]), use_cache=False)
    return seen["arrived"], seen["left"], steered


# --- formulas ---


@pytest.mark.parametrize("site", ["res.2", "att.1", "mlp.1"])
@pytest.mark.parametrize("kind", ["add", "clamp", "scale", "ablate", "add_vector"])
def test_each_edit_is_its_formula(tiny_loupe, site, kind):
    engine = tiny_loupe.engine
    sae = engine.sae(Site.of(site))
    ids = [token.id for token in engine.tokenize(TEXT)]
    arrived, _, _ = tensors(tiny_loupe, (), ids, Site.of(site))
    acts = sae.encode_dense(arrived)
    index = int((acts[1:] > 0).sum(0).argmax())  # on at most tokens
    if site == "mlp.1" and kind in ("add", "clamp"):  # no statistics there: strengths have no unit
        name = f"{site}/{index}"
        refused("maximum-unknown", lambda: run(tiny_loupe, [getattr(gl, kind)(name, 2.0)]))
        return
    f, d = acts[:, index : index + 1], sae.decoder[index]
    m = float(engine.maxima(Site.of(site))[index])
    vector = torch.randn(sae.d_in, generator=torch.Generator().manual_seed(0))
    name, s = f"{site}/{index}", 1.5
    edit, delta = {
        "add": (gl.add(name, s), s * m * d.expand_as(arrived)),
        "clamp": (gl.clamp(name, s), (s * m - f) * d),
        "scale": (gl.scale(name, s), (s - 1) * f * d),
        "ablate": (gl.ablate(name), -f * d),
        "add_vector": (gl.add_vector(site, vector, s), s * vector.expand_as(arrived)),
    }[kind]
    _, left, steered = tensors(tiny_loupe, (edit,), ids, Site.of(site))
    assert torch.equal(left[0], arrived[0])  # BOS is not steered
    assert torch.allclose(left[1:], (arrived + delta)[1:], atol=1e-5)
    ((_, effect),) = steered.effects(0, len(ids))
    assert np.allclose(effect["norm"][1:], delta[1:].norm(dim=1), atol=1e-4) and effect["norm"][0] == 0
    assert np.allclose(effect["share"][1:], (delta.norm(dim=1) / arrived.norm(dim=1))[1:], atol=1e-4)
    if kind != "add_vector":
        assert np.allclose(effect["activation"], f[:, 0], atol=1e-4)
    assert np.array_equal(effect["fired"], effect["norm"] > 0)


@pytest.mark.parametrize("site", ["res.2", "att.1"])
def test_ablate_is_clamp_to_0_is_scale_by_0(tiny_loupe, site):
    name = strong(tiny_loupe, site, most=1)[0]
    one, two, three = (
        run(tiny_loupe, [edit], sites=None) for edit in (gl.ablate(name), gl.clamp(name, 0), gl.scale(name, 0))
    )
    default = run(tiny_loupe, sites=None)
    assert [t.id for t in one.tokens] == [t.id for t in two.tokens] == [t.id for t in three.tokens]
    assert one.logprobs == two.logprobs == three.logprobs != default.logprobs


def test_edits_at_one_site_act_on_the_same_tensor(tiny_loupe):
    """Each activation is measured before any of them is changed, and what they add is summed."""
    site = Site.of("res.2")
    engine = tiny_loupe.engine
    sae, ids = engine.sae(site), [token.id for token in engine.tokenize(TEXT)]
    arrived, _, _ = tensors(tiny_loupe, (), ids, site)
    one, two, three = strong(tiny_loupe, "res.2")
    f = sae.encode_dense(arrived)
    m = engine.maxima(site)
    delta = (2 * m[one.index] - f[:, [one.index]]) * sae.decoder[one.index]
    delta = delta - f[:, [two.index]] * sae.decoder[two.index] + m[three.index] * sae.decoder[three.index]
    for order in (1, -1):
        edits = [gl.clamp(one, 2), gl.ablate(two), gl.add(three, 1)][::order]
        _, left, _ = tensors(tiny_loupe, edits, ids, site)
        assert torch.allclose(left[1:], (arrived + delta)[1:], atol=1e-4)


def test_a_later_edit_sees_what_an_earlier_one_did(tiny_loupe):
    """Across sites there is an order: that of the forward pass."""
    first, second = strong(tiny_loupe, "res.0", most=1)[0], strong(tiny_loupe, "res.2", most=1)[0]
    alone = run(tiny_loupe, [gl.scale(second, 0.5)])
    both = run(tiny_loupe, [gl.scale(second, 0.5), gl.clamp(first, 4)])
    assert not np.allclose(alone.effects[0].activation, both.effects[0].activation)


@pytest.mark.parametrize("kind", ["res", "mlp", "att"])
def test_clamp_is_sae_lens_splice_with_error_term(tiny_loupe, kind):
    """x + (W_dec f' - W_dec f): what SAELens puts in the tensor's place when the error term is kept."""
    site = {"res": "res.2", "mlp": "mlp.1", "att": "att.1"}[kind]
    engine = tiny_loupe.engine
    theirs, ids = tiny_loupe.sae(site), [token.id for token in engine.tokenize(TEXT)]
    arrived, _, _ = tensors(tiny_loupe, (), ids, Site.of(site))
    heads = arrived.unflatten(-1, (-1, 16)) if kind == "att" else arrived
    with torch.no_grad():
        acts = theirs.encode(heads.clone())
        index = int((acts[1:] > 0).sum(0).argmax())
        plain = theirs.decode(acts.clone())
        error = heads - plain
        changed = acts.clone()
        changed[:, index] = 0.0 if kind == "mlp" else 2.0 * float(engine.maxima(Site.of(site))[index])
        theirs.encode(heads.clone())  # reshaping hooks keep state between encode and decode
        spliced = (theirs.decode(changed) + error).reshape(arrived.shape)
    edit = gl.ablate(f"{site}/{index}") if kind == "mlp" else gl.clamp(f"{site}/{index}", 2.0)
    _, left, _ = tensors(tiny_loupe, (edit,), ids, Site.of(site))
    assert theirs.cfg.metadata.hook_name == hook_name(Site.of(site))
    assert torch.allclose(left[1:], spliced[1:], atol=1e-4)
    assert not torch.allclose(left[1:], arrived[1:], atol=1e-2)


# --- where, when, specials ---


def positions(effect):
    return np.flatnonzero(effect.fired).tolist()


def test_where(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    prompt = len(run(tiny_loupe).prompt)

    def fired(where, **options):
        made = run(tiny_loupe, [gl.add(name, 0.5, where=where, **options)], max_new_tokens=6, temperature=1, seed=3)
        assert made.stopped == "length", "choose another seed"
        return positions(made.effects[0])

    read = prompt + 5  # the last new token is not read
    assert fired("all") == list(range(1, read))
    assert fired("all", specials=True) == list(range(read))
    assert fired("prompt") == list(range(1, prompt))
    assert fired("generated") == list(range(prompt, read))
    assert fired((0, 2, prompt, 10**6)) == [2, prompt]
    assert fired(3) == [3]


def test_where_generated_leaves_the_prompt_alone(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    default, steered = run(tiny_loupe), run(tiny_loupe, [gl.clamp(name, 4, where="generated")])
    assert steered.tokens[0].id == default.tokens[0].id and steered.logprobs[0] == pytest.approx(default.logprobs[0])
    assert steered.logprobs[1:] != default.logprobs[1:]


@pytest.mark.parametrize("pair", [("res.0", "res.2"), ("res.2", "res.2"), ("att.1", "mlp.1")])
def test_when_waits_for_another_feature(tiny_loupe, pair):
    at, edited = pair
    watched = strong(tiny_loupe, at, most=2)[1]
    made = run(tiny_loupe, sites=None)
    values = made.trace.acts[watched.site].column(watched.index) / made.trace.maxima[watched.site][watched.index]
    above = float(np.median(values[values > 0]))
    expected = np.flatnonzero(values > above).tolist()
    index = strong(tiny_loupe, "res.2", most=1)[0].index
    vector = np.ones(len(tiny_loupe.engine.direction(FeatureId(Site.of(edited), index))))
    edit = gl.add_vector(edited, vector, 1e-4, when=gl.when(watched, above=above))  # too weak to change the text
    steered = run(tiny_loupe, [edit])
    assert [t.id for t in steered.tokens] == [t.id for t in made.tokens]
    assert 0 < len(expected) < len(values) - 2 and positions(steered.effects[0]) == expected


def test_when_must_not_come_later(tiny_loupe):
    name, later = strong(tiny_loupe, "res.0", most=1)[0], strong(tiny_loupe, "res.2", most=1)[0]
    message = refused("when-too-late", lambda: run(tiny_loupe, [gl.ablate(name, when=gl.when(later))]))
    assert "res.2" in message and "res.0" in message


# --- rows ---


def test_rows_are_what_they_are_alone(tiny_loupe):
    one, two, three = strong(tiny_loupe, "res.2")
    other = strong(tiny_loupe, "att.1", most=1)[0]
    vector = tiny_loupe.vector("res.0", "the cat sat", "people walked on the moon")
    rows = (
        (),
        (gl.clamp(one, 3.0),),
        (gl.ablate(two), gl.add(three, 1.0, where="generated"), gl.scale(other, 3.0)),
        (gl.add_vector("res.0", vector, 2.0), gl.clamp(one, -1.0, when=gl.when(other))),
    )
    for temperature in (0.0, 1.0):
        options = {"temperature": temperature, "seed": 2, "max_new_tokens": 16, "sites": None}
        together = run(tiny_loupe, rows=rows, **options)
        for row, made in zip(rows, together, strict=True):
            alone = run(tiny_loupe, row, **options)
            assert [t.id for t in made.tokens] == [t.id for t in alone.tokens]
            assert made.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
            assert made.edits == row and len(made.effects) == len(row) and made.stopped == alone.stopped
            for ours, theirs in zip(made.effects, alone.effects, strict=True):
                for name in ("fired", "activation", "norm", "share"):
                    assert np.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4)
            for site, acts in made.trace.acts.items():
                assert np.allclose(acts.to_dense(), alone.trace.acts[site].to_dense(), atol=1e-3)
    assert len({tuple(t.id for t in made.tokens) for made in together}) > 1


def test_steering_through_the_modules_is_the_same(tiny_loupe):
    """With somebody's hook in the model, decoding takes the other way: same edits, same text."""
    edits = [gl.clamp(strong(tiny_loupe, "res.2", most=1)[0], 3.0), gl.scale(strong(tiny_loupe, "att.1", most=1)[0], 2)]
    lean = run(tiny_loupe, edits, max_new_tokens=16, sites=None)
    handle = body(tiny_loupe.engine.loaded.model).layers[0].register_forward_hook(lambda *_: None)
    try:
        modules = run(tiny_loupe, edits, max_new_tokens=16, sites=None)
    finally:
        handle.remove()
    assert [t.id for t in lean.tokens] == [t.id for t in modules.tokens]
    assert lean.logprobs == pytest.approx(modules.logprobs, abs=1e-5)
    for one, two in zip(lean.effects, modules.effects, strict=True):
        assert np.allclose(one.norm, two.norm, atol=1e-4)
    for site, acts in lean.trace.acts.items():
        assert np.allclose(acts.to_dense(), modules.trace.acts[site].to_dense(), atol=1e-3)


def test_each_steered_step_is_what_the_whole_text_without_a_cache_gives(tiny_loupe):
    """Token by token with a cache, edits at three sites and a condition; then all at once without one."""
    one, two = strong(tiny_loupe, "res.2", most=2)
    edits = (
        gl.clamp(one, 3.0),
        gl.scale(two, 3.0, where="generated"),
        gl.ablate(strong(tiny_loupe, "att.1", most=1)[0]),
        gl.add(strong(tiny_loupe, "res.0", most=1)[0], 0.5, when=gl.when(strong(tiny_loupe, "res.0", most=2)[1])),
    )
    made = run(tiny_loupe, edits, max_new_tokens=24, temperature=1.0, seed=3)
    prompt, ids = len(made.prompt), [token.id for token in (*made.prompt, *made.tokens)]
    loaded, engine = tiny_loupe.engine.loaded, tiny_loupe.engine
    steered = Steering(
        [edits],
        prompt=prompt,
        special=loaded.special,
        sae=engine.sae,
        maximum=lambda f: float(engine.maxima(f.site)[f.index]),
    )
    steered.begin(Now(0, [ids]))
    with torch.inference_mode(), tapped(loaded.model, steered.taps):
        shares = loaded.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    expected = [float(shares[prompt - 1 + at, token.id]) for at, token in enumerate(made.tokens)]
    assert made.logprobs == pytest.approx(expected, abs=1e-5) and len(made.tokens) > WINDOW
    plain = run(tiny_loupe, (), max_new_tokens=24, temperature=1.0, seed=3)
    assert [token.id for token in plain.tokens] != [token.id for token in made.tokens]
    for effect, (_, whole) in zip(made.effects, steered.effects(0, len(ids)), strict=True):
        assert effect.fired.any()
        for name in ("fired", "activation", "norm"):  # the last token has not been read
            assert np.allclose(getattr(effect, name)[:-1], whole[name][:-1], atol=1e-4)


def test_the_trace_of_a_generation_is_its_reading(tiny_loupe):
    made = run(tiny_loupe, sites=None, max_new_tokens=12)
    ids = [token.id for token in (*made.prompt, *made.tokens)]
    read = tiny_loupe.read(ids)
    assert made.trace.tokens == (*made.prompt, *made.tokens)
    for site, acts in read.acts.items():
        ours, theirs = made.trace.acts[site].to_dense(), acts.to_dense()
        assert np.allclose(ours[:-1], theirs[:-1], atol=1e-3) and not ours[-1].any()
    assert run(tiny_loupe).trace is None
    assert list(run(tiny_loupe, sites=(Site.of("res.2"),)).trace.acts) == [Site.of("res.2")]


def test_the_trace_shows_the_edit_made(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    made = run(tiny_loupe, [gl.clamp(name, 50.0)], sites=(name.site,))
    column = made.trace.acts[name.site].column(name.index)
    assert (column[1:-1] > made.effects[0].activation[1:-1]).all()


# --- nothing stays, and nothing is silent ---


def test_an_edit_without_effect_says_so(tiny_loupe):
    silent = run(tiny_loupe, [gl.ablate(f"res.2/{NEVER_FIRES}")])
    assert silent.effects[0].silent and silent.effects[0].why == "its feature is never active here"
    assert "never active" in repr(silent) and "never active" in silent._repr_html_()
    name = strong(tiny_loupe, "res.2", most=1)[0]
    for edit, why in (
        (gl.scale(name, 1), "a factor of 1"),
        (gl.add(name, 0), "strength is 0"),
        (gl.add(name, 1, where=200), "names no token"),
        (gl.add(name, 1, where=0), "is special"),
        (gl.add(name, 1, when=gl.when(f"res.0/{NEVER_FIRES}")), "condition is never met"),
    ):
        made = run(tiny_loupe, [edit])
        assert made.effects[0].silent and why in made.effects[0].why
        assert made.logprobs == pytest.approx(run(tiny_loupe).logprobs, abs=1e-6)
    loud = run(tiny_loupe, [gl.add(name, 1)]).effects[0]
    assert not loud.silent and loud.why == ""


def test_edits_are_gone_afterwards(tiny_loupe, monkeypatch):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    before = run(tiny_loupe)
    run(tiny_loupe, [gl.clamp(name, 4)])
    assert run(tiny_loupe).logprobs == before.logprobs
    # an exception in the middle
    calls = []

    def fails(*args):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return keep(*args)

    keep = Steering._write
    monkeypatch.setattr(Steering, "_write", fails)
    with pytest.raises(OSError, match="disk"):
        run(tiny_loupe, [gl.clamp(name, 4)])
    monkeypatch.undo()
    assert hooks(tiny_loupe.engine.loaded.model) == 0
    assert run(tiny_loupe).logprobs == before.logprobs


def test_cancel_keeps_what_there_was(tiny_loupe, monkeypatch):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    engine, reached, go = tiny_loupe.engine, threading.Event(), threading.Event()
    begin, passes = Steering.begin, []

    def held(self, now):
        if passes.append(1) or len(passes) == 4:
            reached.set()
            assert go.wait(SOON)
        begin(self, now)

    monkeypatch.setattr(Steering, "begin", held)
    request = GenerateRequest("The cat", 100, rows=((), (gl.clamp(name, 2),)), sites=(Site.of("res.0"),))
    job = engine.generate(request)
    assert reached.wait(SOON)
    job.cancel()
    go.set()
    *_, last = job.events()
    assert isinstance(last, Cancelled)
    default, steered = last.partial
    assert default.stopped == steered.stopped == "cancelled"
    assert 1 <= len(default.tokens) <= 4 and len(steered.tokens) == len(default.tokens)
    assert len(default.trace) == len(default.prompt) + len(default.tokens) and steered.effects[0].fired.any()
    assert hooks(engine.loaded.model) == 0
    with pytest.raises(Refusal) as caught:
        job.result(SOON)
    assert caught.value.facts["partial"] is last.partial
    assert run(tiny_loupe).stopped in ("length", "end")


def test_a_hook_that_does_not_fire_is_an_error(tiny_loupe, monkeypatch):
    layer = body(tiny_loupe.engine.loaded.model).layers[2]
    name = strong(tiny_loupe, "res.2", most=1)[0]
    monkeypatch.setattr(type(layer), "__call__", lambda self, *a, **k: self.forward(*a, **k))
    refused("hook-silent", lambda: run(tiny_loupe, [gl.clamp(name, 1)]))


def test_changes_take_effect_from_the_next_token(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    engine = tiny_loupe.engine
    first, second = gl.add(name, 0.5), gl.add(name, -0.5)
    model, passes, changed = body(engine.loaded.model), [], []

    def change(*_):
        passes.append(1)
        if len(passes) == 4:  # while the pass that makes the fourth token runs
            job.change(((second,),))
            changed.append(1)

    handle = model.layers[0].register_forward_hook(change)
    try:
        started = threading.Event()
        blocker = model.layers[0].register_forward_pre_hook(lambda *_: (started.wait(SOON), None)[1])
        job = engine.generate(GenerateRequest(TEXT, 8, temperature=1.0, seed=3, rows=((first,),)))
        started.set()
        (made,) = job.result(SOON)
        blocker.remove()
    finally:
        handle.remove()
    assert changed and made.stopped == "length", "choose another seed"
    prompt = len(made.prompt)
    assert made.edits == (second,)
    new, old = made.effects
    assert (new.edit, old.edit) == (second, first)
    assert positions(old) == list(range(1, prompt + 3)) and positions(new) == list(range(prompt + 3, prompt + 7))
    refused("rows-other-number", lambda: job.change(((), ())))
    refused("site-not-open", lambda: job.change(((gl.ablate("res.3/1"),),)))


@pytest.mark.parametrize("sites", [(), None])
def test_numbers_that_overflow_stop_the_row_and_keep_its_text(tiny_loupe, monkeypatch, sites):
    mild, prompt = strong(tiny_loupe, "res.0", most=1)[0], len(tiny_loupe.engine.tokenize(TEXT))
    monkeypatch.setattr("gemloupe.edits.LONGEST", float("inf"))
    wild = gl.add_vector("res.2", [3e38] + [0] * 47, 10, where=(prompt + 2,))
    rows = ((), (gl.add(mild, 0.1), wild))
    free = run(tiny_loupe, rows=(rows[0], rows[1][:1]), temperature=1.0, seed=3)
    default, broken = run(tiny_loupe, rows=rows, temperature=1.0, seed=3, sites=sites)
    assert broken.stopped == "not-finite" and broken.not_finite == (3, rows[1][1])
    assert [t.id for t in broken.tokens] == [t.id for t in free[1].tokens[:3]]
    assert "new token 3" in broken.notes[0] and str(wild) in broken.notes[0] and broken.text
    assert default.stopped == "length" and default.logprobs == pytest.approx(free[0].logprobs, abs=1e-5)
    assert run(tiny_loupe).notes == ()


def test_a_generation_shows_itself(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    made = run(tiny_loupe, [gl.clamp(name, 1)], text="<img src=x onerror=alert(1)> & the cat", max_new_tokens=3, seed=7)
    shown = made._repr_html_()
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; the cat" in shown and "<img" not in shown
    assert html.escape(made.text) in shown and html.escape(str(made.edits[0])) in shown
    assert "3 tokens, stopped: length · seed 7" in shown and "<bos>" not in html.unescape(shown)
    assert repr(made.text) in repr(made) and "changed nothing" not in repr(made)


# --- streaming ---


def test_a_stream_is_its_generation(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    stream = tiny_loupe.stream(TEXT, gl.clamp(name, 2), max_new_tokens=10, temperature=1.0, seed=1)
    new = list(stream)
    made = stream.result(SOON)
    assert stream.done and all(isinstance(one, NewToken) for one in new)
    assert [one.id for one in new] == [t.id for t in made.tokens]
    text = "".join(one.text for one in new)
    assert made.text.startswith(text) and len(made.text) - len(text) <= 1
    again = tiny_loupe.generate(TEXT, [gl.clamp(name, 2)], max_new_tokens=10, temperature=1.0, seed=1)
    assert again.tokens == made.tokens


def test_activations_are_read_when_they_are_asked_for(tiny_loupe, monkeypatch):
    name, asked = strong(tiny_loupe, "res.2", most=1)[0], []
    read = tiny_loupe._read_again
    monkeypatch.setattr(tiny_loupe, "_read_again", lambda made: asked.append(1) or read(made))
    for edits in ([], [gl.clamp(name, 2)], [gl.clamp(name, 2, where="prompt"), gl.add(name, 0.5)]):
        asked.clear()
        made = tiny_loupe.generate(TEXT, edits, max_new_tokens=6)
        assert repr(made) and made._repr_html_() and not asked
        trace = made.trace
        assert made.trace is trace and asked == [1] and trace.tokens == (*made.prompt, *made.tokens)
        recorded = tiny_loupe.generate(TEXT, edits, max_new_tokens=6, sites=None).trace
        assert asked == [1] and set(trace.sites) == set(recorded.sites)
        for site in recorded.sites:
            ours, theirs = (one[site].to_dense()[:-1] for one in (trace, recorded))
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert tiny_loupe.engine.generate(GenerateRequest(TEXT, 2)).result(SOON)[0].trace is None
    stream = tiny_loupe.stream(TEXT, max_new_tokens=30)
    stream.change(gl.clamp(name, 2))
    assert stream.result(SOON).trace is None  # no one pass would give it


def test_pieces_of_a_character_come_as_one(tiny_loupe, monkeypatch):
    """Byte tokens make one character only together."""
    from gemloupe.engine import generation
    from gemloupe.run.generate import Made

    names = tiny_loupe.engine.loaded.tokenizer.convert_tokens_to_ids(["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0x41>"])

    def steps(*_, **__):
        yield from ([Made(0, name, -1.0)] for name in names)

    monkeypatch.setattr(generation, "generate", steps)
    events = list(tiny_loupe.engine.generate(GenerateRequest("The", 5)).events())
    assert [one.text for one in events[:-1]] == ["", "", "", "🙂", "A"]
    assert events[-1].value[0].text == "🙂A"


def test_a_stream_can_be_stopped(tiny_loupe):
    stream = tiny_loupe.stream("The cat", max_new_tokens=CONTEXT - 20)
    first = next(iter(stream))
    assert first.index == 0
    stream.cancel()
    refused("cancelled", lambda: stream.result(SOON))
    refused("cancelled", lambda: list(stream))


# --- comparing, means, directions ---


def test_compare_is_the_divergence_of_the_two_models(tiny_loupe):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    default = run(tiny_loupe, max_new_tokens=10)
    prompt, new = tuple(t.id for t in default.prompt), tuple(t.id for t in default.tokens)
    edits = (gl.clamp(name, 2),)
    engine = tiny_loupe.engine
    same, other = engine.compare(CompareRequest(prompt, new, ((), edits))).result(SOON)
    assert np.abs(same.kl).max() < 1e-6 and same.logprobs == pytest.approx(default.logprobs, abs=1e-5)
    loaded = engine.loaded
    steered = Steering(
        [edits],
        prompt=len(prompt),
        special=loaded.special,
        sae=engine.sae,
        maximum=lambda f: float(engine.maxima(f.site)[f.index]),
    )
    ids = [*prompt, *new]
    steered.begin(Now(0, [ids]))
    with torch.inference_mode():
        plain = loaded.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        with tapped(loaded.model, steered.taps):
            moved = loaded.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    part = slice(len(prompt) - 1, len(ids) - 1)
    kl = (moved.exp() * (moved - plain)).sum(-1)[part]
    assert kl.max() > 1e-3
    np.testing.assert_allclose(other.kl, kl, atol=1e-4)
    np.testing.assert_allclose(other.logprobs, moved[part].gather(1, torch.tensor(new)[:, None])[:, 0], atol=1e-4)
    (turned,) = engine.compare(CompareRequest(prompt, new, (edits,), reference=0)).result(SOON)
    assert np.abs(turned.kl).max() < 1e-6
    refused("count-unreadable", lambda: engine.compare(CompareRequest(prompt, (), (edits,))))
    refused("rows-unreadable", lambda: engine.compare(CompareRequest(prompt, new, (edits,), reference=1)))


@pytest.mark.parametrize("site", ["res.3", "att.0", "mlp.2"])  # none of them is open
def test_a_vector_is_the_difference_of_two_means(tiny_loupe, site):
    engine, found = tiny_loupe.engine, []
    for text in ("the cat sat on the mat", "water boils at 100 degrees"):
        ids = [t.id for t in engine.tokenize(text)]
        with (
            torch.inference_mode(),
            reading(engine.loaded.model, [Site.of(site)], lambda _, x: found.append(x[0, 1:].mean(0).numpy())),
        ):
            body(engine.loaded.model)(torch.tensor([ids]))
    vector = tiny_loupe.vector(site, "the cat sat on the mat", "water boils at 100 degrees")
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, found[0] - found[1], atol=1e-5)
    made = tiny_loupe.generate(TEXT, gl.add_vector(site, vector, 3), max_new_tokens=4)
    assert not made.effects[0].silent
    refused("vector-nothing", lambda: tiny_loupe.vector(site, "the cat", "the cat"))
    refused("site-not-in-model", lambda: engine.mean(MeanRequest("a", Site("res", 9))))


def test_directions_are_decoder_rows(tiny_loupe):
    engine = tiny_loupe.engine
    np.testing.assert_array_equal(engine.direction(FeatureId.of("att.1/3")), engine.sae(Site.of("att.1")).decoder[3])
    refused("feature-out-of-range", lambda: engine.direction(FeatureId.of("att.1/96")))
    refused("site-not-open", lambda: engine.direction(FeatureId.of("att.2/1")))


# --- bad input ---


@pytest.mark.parametrize("strength", [float("inf"), float("nan"), "2", None, True, 10**400, 1j])
def test_strengths_must_be_numbers(strength):
    for make in (gl.add, gl.clamp, gl.scale):
        assert "res.2/1" in refused("strength-unreadable", lambda make=make: make("res.2/1", strength))
    refused("strength-unreadable", lambda: gl.add_vector("res.2", [1.0], strength))
    refused("strength-unreadable", lambda: gl.when("res.2/1", above=strength))


def test_enormous_strengths_are_refused():
    for make in (gl.add, gl.clamp, gl.scale):
        refused("strength-enormous", lambda make=make: make("res.2/1", 1001))
        make("res.2/1", -1000)
    refused("strength-enormous", lambda: gl.add_vector("res.2", [1e5], 1e5))


@pytest.mark.parametrize("vector", [[0.0, 0.0], [], [[1.0]], [float("nan")], "abc", None, 3.0, [1e400], [None]])
def test_vectors_must_be_vectors(vector):
    assert "res.2" in refused("vector-unreadable", lambda: gl.add_vector("res.2", vector))


@pytest.mark.parametrize("where", ["some", (), (-1,), (1.5,), None, 2.5, {"a"}, ("prompt",), (True,)])
def test_where_must_name_tokens(where):
    refused("where-unreadable", lambda: gl.ablate("res.2/1", where=where))


@pytest.mark.parametrize(
    ("edits", "code"),
    [
        ([gl.clamp("res.3/1", 1)], "site-not-open"),
        ([gl.ablate("res.2/96")], "feature-out-of-range"),
        ([gl.ablate("transcoder.2/1")], "edit-site-read-only"),
        ([gl.clamp(f"res.2/{UNKNOWN}", 1)], "maximum-unknown"),
        ([gl.add(f"res.2/{NEVER_FIRES}", 1)], "maximum-unknown"),
        ([gl.clamp("mlp.1/1", 1)], "maximum-unknown"),
        ([gl.add_vector("res.2", [1.0, 2.0])], "vector-other-width"),
        ([gl.add_vector("att.1", np.ones(48))], "vector-other-width"),
        ([gl.add_vector("res.7", np.ones(48))], "site-not-in-model"),
        ([gl.ablate("res.2/1", when=gl.when("res.1/1"))], "site-not-open"),
        ([gl.ablate("res.2/1", when=gl.when(f"res.2/{UNKNOWN}", above=0.5))], "maximum-unknown"),
        ([gl.clamp("res.2/1", 1), gl.clamp("res.2/1", 2)], "edits-conflict"),
        ([gl.clamp("res.2/1", 1), gl.ablate("res.2/1", where="prompt")], "edits-conflict"),
        ([gl.scale("res.2/1", 2, where=(1, 5)), gl.ablate("res.2/1", where=(5,))], "edits-conflict"),
        ([gl.scale("res.2/1", 2, where=(2,)), gl.ablate("res.2/1", where="prompt")], "edits-conflict"),
        (["res.2/1"], "edit-unreadable"),
        ("res.2/1", "edit-unreadable"),
        (3, "edit-unreadable"),
        ({"kind": "clamp"}, "edit-unreadable"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(tiny3, edits, code):
    message = refused(code, lambda: tiny3.generate(TEXT, edits))
    if code == "edits-conflict":
        assert str(edits[0]) in message and str(edits[1]) in message


def test_edits_that_do_not_meet_are_no_conflict(tiny3):
    prompt = len(tiny3.engine.tokenize(TEXT))
    for edits in (
        [gl.clamp("res.2/1", 1, where="prompt"), gl.clamp("res.2/1", 2, where="generated")],
        [gl.clamp("res.2/1", 1, where=(1,)), gl.clamp("res.2/1", 2, where=(2,))],
        [gl.clamp("res.2/1", 1, where="prompt"), gl.ablate("res.2/1", where=(prompt,))],
        [gl.clamp("res.2/1", 1), gl.add("res.2/1", 2), gl.add("res.2/1", 1)],
        [gl.clamp("res.2/1", 1), gl.clamp("res.0/1", 2)],
    ):
        assert len(tiny3.generate(TEXT, edits, max_new_tokens=2).effects) == len(edits)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        *[({"top_k": bad}, "sampling-unreadable") for bad in (0, -1, 1.5, True, "3")],
        *[({"top_p": bad}, "sampling-unreadable") for bad in (0, -1, 1.5, True, "3", float("nan"))],
        *[({"rows": bad}, "rows-unreadable") for bad in ((), 3, None, ("ab",), ((1,),))],
        ({"sites": (Site("res", 3),)}, "site-not-open"),
        *[({"temperature": bad}, "temperature-unreadable") for bad in (-1, float("nan"))],
        ({"max_new_tokens": 0}, "count-unreadable"),
        ({"max_new_tokens": CONTEXT}, "text-too-long"),
    ],
)
def test_bad_requests_are_refused(tiny3, options, code):
    refused(code, lambda: tiny3.engine.generate(GenerateRequest(TEXT, **options)))


# --- as data ---


EDITS = [
    gl.add("res.2/1", 0.5, where="prompt"),
    gl.clamp("att.1/3", -2, specials=True),
    gl.scale("res.0/0", 3, where=(3, 1)),
    gl.ablate("mlp.1/7", when=gl.when("res.0/1", above=0.25)),
    gl.add_vector("res.2", np.arange(4), 2.5, where="generated"),
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_edits_survive_json(edit):
    import json

    again = Edit.from_dict(json.loads(json.dumps(edit.to_dict())))
    assert again == edit and hash(again) == hash(edit) and str(again) == str(edit)
    assert again != edit.with_strength(9) or edit.kind == "ablate"


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edit_is_written_as_the_code_that_makes_it(edit):
    assert eval(str(edit), {"gl": gl, "v": edit.vector}) == edit


@pytest.mark.parametrize(
    "given",
    [{}, None, 3, {"kind": "clamp"}, {"kind": "melt", "site": "res.1"}, EDITS[0].to_dict() | {"colour": "red"}],
)
def test_other_data_is_no_edit(given):
    refused("edit-unreadable", lambda: Edit.from_dict(given))


def test_formulas_in_words():
    assert [edit.formula() for edit in EDITS] == [
        "h + s·m·d",
        "h + (s·m − f)·d",
        "h + (k − 1)·f·d",
        "h − f·d",
        "h + s·v",
    ]
    assert EDITS[1].formula(118.0) == "h + (-2·118 − f)·d" and EDITS[2].formula(1.0) == "h + (3 − 1)·f·d"


def test_edits_are_frozen():
    with pytest.raises(AttributeError):
        EDITS[0].strength = 3
    with pytest.raises(ValueError, match="read-only"):
        EDITS[4].vector[0] = 1
    assert isinstance(EDITS[3].when, When)


def test_the_built_in_features_steer(builtin):
    """On the real model: a clamp moves the text, and only where it says."""
    trace = builtin.read("In the morning I like to walk by the sea.")
    name = trace.top(1, site="res.12")[0].feature
    default = builtin.generate("In the morning I like to", max_new_tokens=6)
    steered = builtin.generate("In the morning I like to", gl.clamp(name, 2.0), max_new_tokens=6)
    effect = steered.effects[0]
    assert effect.fired[1:-1].all() and not effect.fired[0] and effect.share[1:-1].min() > 0
    m = float(builtin.engine.maxima(name.site)[name.index])
    length = float(np.linalg.norm(builtin.engine.direction(name)))
    np.testing.assert_allclose(effect.norm[1:-1], np.abs(2 * m - effect.activation[1:-1]) * length, rtol=1e-4)
    assert steered.logprobs != default.logprobs
