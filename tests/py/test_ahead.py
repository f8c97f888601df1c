"""Decoding one step ahead in fixed buffers: the steps that a GPU replays as a graph give what all others give."""

import importlib

import gemloupe as gl
import numpy as np
import pytest
import torch
from gemloupe.engine.protocol import GenerateRequest
from gemloupe.run import ahead
from gemloupe.run.ahead import Ahead
from test_steer import TEXT, positions, strong
from test_steer import run as generated

SOON = 30
module = importlib.import_module("gemloupe.run.generate")
generate_of = module.generate


@pytest.fixture
def both(monkeypatch):
    """run(...) -> (what the engine makes one token at a time, what it makes one step ahead)."""

    def run(loupe, *args, **options):
        made = []
        for way in ("lean", "ahead"):
            monkeypatch.setattr(
                "gemloupe.engine.generation.generate", lambda *a, way=way, **k: generate_of(*a, way=way, **k)
            )
            made.append(generated(loupe, *args, **options))
        return made

    return run


def same(one, two):
    assert [t.id for t in one.tokens] == [t.id for t in two.tokens]
    assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
    assert (one.stopped, one.not_finite, one.edits) == (two.stopped, two.not_finite, two.edits)
    for first, second in zip(one.effects, two.effects, strict=True):
        assert first.edit == second.edit and first.why == second.why
        np.testing.assert_array_equal(first.fired, second.fired)
        for name in ("activation", "norm", "share"):
            np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-5)
    for site in one.trace.sites if one.trace is not None else ():
        mine, theirs = one.trace[site], two.trace[site]
        np.testing.assert_array_equal(mine.indptr, theirs.indptr)
        np.testing.assert_array_equal(mine.indices, theirs.indices)
        np.testing.assert_allclose(mine.values, theirs.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 4}])
def test_every_kind_of_edit(tiny_loupe, both, sampled):
    one, two = strong(tiny_loupe, "res.2", most=2)
    other = strong(tiny_loupe, "att.1", most=1)[0]
    prompt = len(tiny_loupe.engine.tokenize(TEXT))
    vector = np.linspace(-1, 1, 48)
    rows = (
        (),
        (gl.clamp(one, 2), gl.add(two, -0.5), gl.add(two, 0.25)),
        (gl.scale(one, 3), gl.ablate(other), gl.add_vector("mlp.3", vector, 4)),
        (gl.clamp(two, 1, where="prompt"), gl.clamp(two, -1, where=(prompt + 2, prompt + 4))),
        (gl.add(one, 1, when=gl.when(other, above=0.05)), gl.ablate(two, specials=True, where="generated")),
    )
    for left, right in zip(*both(tiny_loupe, rows=rows, max_new_tokens=24, sites=None, **sampled), strict=True):
        assert left.trace is not None
        same(left, right)


def test_blocks_of_what_is_recorded_join(tiny_loupe, both, monkeypatch):
    monkeypatch.setattr(ahead, "_BLOCK", 5)
    name = strong(tiny_loupe, "res.2", most=1)[0]
    for count in (5, 6, 7, 17):
        same(*both(tiny_loupe, [gl.clamp(name, 1)], max_new_tokens=count, sites=None, temperature=1.0, seed=2))


@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 20])
def test_single_tokens_are_encoded_together_and_stay_in_order(tiny_loupe, both, monkeypatch, count):
    """As if each were encoded by itself, also where the prompt is a single token."""
    name = strong(tiny_loupe, "res.2", most=1)[0]
    for text in (TEXT, (300,)):
        options = {"text": text, "max_new_tokens": count, "sites": None, "temperature": 1.0, "seed": 2}
        made = both(tiny_loupe, rows=((), (gl.clamp(name, 1),)), **options)
        monkeypatch.setattr(module, "_TOGETHER", 1)
        alone, _ = both(tiny_loupe, rows=((), (gl.clamp(name, 1),)), **options)
        monkeypatch.undo()
        for left, *others in zip(alone, *made, strict=True):
            assert len(left.trace) == len(left.prompt) + len(left.tokens)
            for other in others:
                same(left, other)


def test_rows_end_by_themselves(tiny_loupe):
    ids = [t.id for t in tiny_loupe.engine.tokenize(TEXT)]
    model, name = tiny_loupe.engine.loaded.model, strong(tiny_loupe, "res.2", most=1)[0]
    steered = tiny_loupe.engine.generate(GenerateRequest(ids, 12, rows=((), (gl.clamp(name, 3),)))).result(SOON)
    stop = {steered[0].tokens[5].id}
    found = []
    for way in ("modules", "ahead"):
        made = ([], [])
        for step in generate_of(model, ids, lambda: nothing(), max_new_tokens=12, stop=stop, way=way):
            for one in step:
                made[one.row].append(one.id)
        found.append(made)
    assert found[0] == found[1]
    assert found[0][0][-1] in stop and len(found[0][0]) <= 6


def nothing():
    from gemloupe.run.steer import Steering

    return Steering(((), ()), prompt=0, special=(), sae=None, maximum=None)


def test_numbers_that_overflow_blame_the_edit(tiny_loupe, both, monkeypatch):
    mild, prompt = strong(tiny_loupe, "res.0", most=1)[0], len(tiny_loupe.engine.tokenize(TEXT))
    monkeypatch.setattr("gemloupe.edits.LONGEST", float("inf"))
    wild = gl.add_vector("res.2", [3e38] + [0] * 47, 10, where=(prompt + 2,))
    rows = ((), (gl.add(mild, 0.1), wild))
    for left, right in zip(*both(tiny_loupe, rows=rows, temperature=1.0, seed=3, sites=None), strict=True):
        assert left.stopped == right.stopped and left.not_finite == right.not_finite
        assert [t.id for t in left.tokens] == [t.id for t in right.tokens]
    assert right.not_finite == (3, wild)


def test_other_edits_take_over(tiny_loupe, monkeypatch):
    """What each step was steered by is what is said of it, though steps run ahead of the reader."""
    name = strong(tiny_loupe, "res.2", most=1)[0]
    first, second = gl.add(name, 0.5), gl.add(name, -0.5)
    launch, launched = Ahead.launch, []

    def then(self):
        launch(self)
        launched.append(1)
        if len(launched) == 4:
            job.change(((second,),))

    monkeypatch.setattr(Ahead, "launch", then)
    monkeypatch.setattr("gemloupe.engine.generation.generate", lambda *a, **k: generate_of(*a, way="ahead", **k))
    job = tiny_loupe.engine.generate(GenerateRequest(TEXT, 10, temperature=1.0, seed=3, rows=((first,),)))
    (made,) = job.result(SOON)
    assert made.stopped == "length", "choose another seed"
    prompt = len(made.prompt)
    new, old = made.effects
    assert (new.edit, old.edit) == (second, first)
    assert positions(old) == list(range(1, prompt + 4)) and positions(new) == list(range(prompt + 4, prompt + 9))


def test_the_first_token_does_not_wait_for_the_beginning(tiny_loupe, monkeypatch):
    begun, begin = [], Ahead.__init__
    monkeypatch.setattr(Ahead, "__init__", lambda self, *args: begun.append(1) or begin(self, *args))
    model, ids = tiny_loupe.engine.loaded.model, [t.id for t in tiny_loupe.engine.tokenize(TEXT)]
    steps = generate_of(model, ids, lambda: nothing(), max_new_tokens=3, way="ahead")
    assert next(steps) and not begun
    assert len(list(steps)) == 2 and begun == [1]


def test_a_model_that_is_hooked_goes_through_its_modules(tiny_loupe, monkeypatch):
    monkeypatch.setattr(Ahead, "__init__", lambda *_: pytest.fail("it must not be taken"))
    model = tiny_loupe.engine.loaded.model
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    try:
        ids = [t.id for t in tiny_loupe.engine.tokenize(TEXT)]
        assert len(list(generate_of(model, ids, lambda: nothing(), max_new_tokens=3, way="ahead"))) == 3
    finally:
        handle.remove()


def test_where_it_cannot_begin_the_text_comes_all_the_same(tiny_loupe, monkeypatch, caplog):
    """On a GPU whatever goes wrong with a capture is logged once, and the plain way is taken."""
    model, ids = tiny_loupe.engine.loaded.model, [t.id for t in tiny_loupe.engine.tokenize(TEXT)]

    def fails(*_):
        raise RuntimeError("no graphs today")

    monkeypatch.setattr(module, "_has_graphs", lambda device: True)
    monkeypatch.setattr(module, "Ahead", fails)
    monkeypatch.setattr(ahead, "_said", set())
    for _ in range(2):
        made = list(generate_of(model, ids, lambda: nothing(), max_new_tokens=20))
        assert len(made) <= 20 and all(one.id is not None for step in made for one in step)
    assert [record.getMessage().count("no graphs today") for record in caplog.records] == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", ["", "1"])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 4}])
def test_a_graph_replays_what_the_steps_do(tiny_folders, monkeypatch, compiled, sampled):
    monkeypatch.setenv(ahead.COMPILE, compiled)
    model, scope = tiny_folders["gemma2"]
    with gl.open(model, scope=scope, device="cuda", dtype="float32") as loupe:
        one, two = strong(loupe, "res.2", most=2)
        rows = ((), (gl.clamp(one, 2), gl.add(two, 0.5, when=gl.when(one))))
        options = {"rows": rows, "max_new_tokens": 40, "sites": None} | sampled
        replays = []
        replay = torch.cuda.CUDAGraph.replay
        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
        made = generated(loupe, **options)
        replayed = len(replays)
        monkeypatch.setattr(module, "_has_graphs", lambda device: False)
        for left, right in zip(generated(loupe, **options), made, strict=True):
            same(left, right)
        assert len(replays) == replayed > 0
