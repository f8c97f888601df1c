"""One pass over a text, in chunks or not: checked against Hugging Face's own forward pass."""

import copy
import importlib
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gemloupe.engine.job import Stop
from gemloupe.errors import Refusal
from gemloupe.load.sae import Sae
from gemloupe.run.capture import Enough, body, reading, replacing, width_of
from gemloupe.run.read import read
from gemloupe.site import Site
from tiny import TEXT, WINDOW, tiny_config


def text_ids(loupe, count=60):
    loaded = loupe.engine.loaded
    ids = [loaded.bos, *loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]][:count]
    assert len(ids) == count > 3 * WINDOW
    return ids


def read_with(loupe, ids, sites=None, **options):
    loaded = loupe.engine.loaded
    options = {"special": loaded.special} | options
    return read(loaded.model, ids, loupe.sites if sites is None else sites, loupe.engine.sae, **options)


def hugging_face(model, ids):
    """float32 logits [token, vocabulary]."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def close(found, expected, saes, within=1e-4):
    """The same features on, the same values; only at a threshold's very edge may an entry be on in one of them."""
    assert found.keys() == expected.keys()
    for site in expected:
        one, two = found[site].to_dense(), expected[site].to_dense()
        edge = saes(site).threshold.numpy() * (1 + within) + within
        apart = (one > 0) != (two > 0)
        assert (np.maximum(one, two) <= edge)[apart].all() and apart.mean() < 1e-3
        assert np.allclose(one[~apart], two[~apart], rtol=within, atol=within)
        assert (two > 0).sum() > len(two)


# --- chunks ---


@pytest.mark.parametrize("chunk", [1, 7, 16, 33, 59, 60, 61])
def test_a_text_read_in_chunks_is_the_same_text(tiny_loupe, chunk):
    """Longer than the sliding window, so that a chunk must see what left the window of the one before."""
    ids = text_ids(tiny_loupe)
    whole = read_with(tiny_loupe, ids, guesses=3)
    parts = read_with(tiny_loupe, ids, guesses=3, chunk=chunk)
    close(parts.acts, whole.acts, tiny_loupe.engine.sae)
    assert parts.guesses.keys() == whole.guesses.keys() == set(range(60))
    for position, guesses in whole.guesses.items():
        ours = parts.guesses[position]
        assert [name for name, _ in ours] == [name for name, _ in guesses]
        assert np.allclose([share for _, share in ours], [share for _, share in guesses], atol=1e-5)


def test_the_past_matters(tiny_loupe):
    """What the chunks above would get wrong if the cache or the positions were: the test above can fail."""
    ids = text_ids(tiny_loupe)
    whole = read_with(tiny_loupe, ids).acts
    alone = read_with(tiny_loupe, ids[33:]).acts
    for site in whole:
        assert not np.allclose(whole[site].to_dense()[33:], alone[site].to_dense(), atol=0.1)


def test_special_tokens_are_masked_wherever_they_stand(tiny_loupe):
    ids = text_ids(tiny_loupe)
    ids[20], ids[45] = ids[0], 5  # <bos> again, <start_of_turn>
    for chunk in (7, 100):
        for acts in read_with(tiny_loupe, ids, chunk=chunk).acts.values():
            on = acts.l0 > 0
            assert not on[[0, 20, 45]].any() and on.sum() >= 50


def test_sites_are_encoded_once_each_as_float32_rows(tiny_loupe):
    seen = []

    class Counted:
        def __init__(self, sae):
            self.sae = sae

        def __getattr__(self, name):
            return getattr(self.sae, name)

    def sae(site):
        seen.append(site)
        return Counted(tiny_loupe.engine.sae(site))

    loaded = tiny_loupe.engine.loaded
    twice = [*tiny_loupe.sites, *reversed(tiny_loupe.sites)]
    found = read(loaded.model, text_ids(tiny_loupe), twice, sae, special=loaded.special, chunk=30)
    assert seen == list(tiny_loupe.sites) * 2
    assert list(found.acts) == list(tiny_loupe.sites)


# --- guesses ---


@pytest.mark.parametrize("chunk", [16, 100])
def test_guesses_are_hugging_faces_own_probabilities_at_the_asked_positions(tiny_loupe, chunk):
    model, ids = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe)
    shares = hugging_face(model, ids).softmax(-1)
    rows = []
    counter = model.lm_head.register_forward_hook(lambda _m, args, _out: rows.append(args[0].shape[:-1].numel()))
    try:
        found = read_with(tiny_loupe, ids, guesses=4, positions=[0, 17, 59], chunk=chunk).guesses
    finally:
        counter.remove()
    assert sum(rows) == 3  # logits of the asked positions and of no others
    assert found.keys() == {0, 17, 59}
    for position, guesses in found.items():
        best = shares[position].topk(4)
        assert [name for name, _ in guesses] == best.indices.tolist()
        assert np.allclose([share for _, share in guesses], best.values, atol=1e-6)


def test_gemma_2s_soft_cap_is_applied(tiny2, monkeypatch):
    ids = text_ids(tiny2)
    capped = read_with(tiny2, ids, [], guesses=1).guesses
    monkeypatch.setattr(body(tiny2.engine.loaded.model).config, "final_logit_softcapping", None)
    bare = read_with(tiny2, ids, [], guesses=1).guesses
    assert max(abs(capped[p][0][1] - bare[p][0][1]) for p in capped) > 1e-3


def test_many_positions_go_through_the_head_a_few_at_a_time(tiny_loupe, monkeypatch):
    module = importlib.import_module("gemloupe.run.read")
    monkeypatch.setattr(module, "_LOGIT_ROWS", 9)
    model, ids, rows = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe), []
    counter = model.lm_head.register_forward_hook(lambda _m, args, _out: rows.append(tuple(args[0].shape)))
    try:
        found = read_with(tiny_loupe, ids, [], guesses=2).guesses
    finally:
        counter.remove()
    assert [count for count, _ in rows] == [9] * 6 + [6]  # and two-dimensional
    assert found == read_with(tiny_loupe, ids, guesses=2).guesses


def test_without_guesses_there_are_none(tiny_loupe):
    assert read_with(tiny_loupe, text_ids(tiny_loupe), positions=[3]).guesses == {}
    empty = read_with(tiny_loupe, text_ids(tiny_loupe), [])
    assert empty.acts == {} and empty.guesses == {}


# --- stopping early ---


def layers_run(model, act):
    ran = []
    counters = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(body(model).layers)
    ]
    try:
        act()
    finally:
        for counter in counters:
            counter.remove()
    return ran


@pytest.mark.parametrize(("site", "last"), [("res.0", 0), ("mlp.1", 0), ("att.1", 0), ("res.2", 2)])
def test_layers_above_the_last_site_are_not_run_and_nothing_else_changes(tiny_loupe, site, last):
    """`mlp.1` and `att.1` are read inside layer 1, so its end is not reached."""
    model, ids, site = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe), Site.of(site)
    full = read_with(tiny_loupe, ids)
    found = []
    ran = layers_run(model, lambda: found.append(read_with(tiny_loupe, ids, [site])))
    assert max(ran, default=-1) <= max(last, site.layer) and 3 not in ran
    assert np.array_equal(found[0].acts[site].to_dense(), full.acts[site].to_dense())
    with_guesses = []
    ran = layers_run(model, lambda: with_guesses.append(read_with(tiny_loupe, ids, [site], guesses=1)))
    assert ran == [0, 1, 2, 3] and len(with_guesses[0].guesses) == 60


def test_earlier_chunks_are_run_to_the_end_for_the_cache(tiny_loupe):
    model, ids = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe)
    ran = layers_run(model, lambda: read_with(tiny_loupe, ids, [Site("res", 0)], chunk=30))
    assert ran.count(0) == 2 and ran.count(3) == 1


# --- hooks ---


def bypass(monkeypatch, model, layer):
    """What a library does that brings its own attention: W_O is never called."""
    attention = body(model).layers[layer].self_attn
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (torch.zeros_like(hidden_states), None))


def test_a_hook_that_does_not_fire_is_refused(tiny_loupe, monkeypatch):
    model, ids = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe)
    bypass(monkeypatch, model, 1)
    before = hooks(model)
    for options in ({}, {"guesses": 1}, {"chunk": 16}):
        for sites in ([Site("att", 1)], list(tiny_loupe.sites)):
            with pytest.raises(Refusal) as refused:
                read_with(tiny_loupe, ids, sites, **options)
            assert refused.value.code == "hook-silent"
            assert "att.1" in str(refused.value) and "layers.1.self_attn.o_proj" in str(refused.value)
            assert hooks(model) == before
    monkeypatch.undo()
    assert read_with(tiny_loupe, ids, [Site("att", 1)]).acts[Site("att", 1)].nnz > 0


def test_a_site_the_model_does_not_have_is_refused(tiny_loupe):
    with pytest.raises(Refusal) as refused:
        read_with(tiny_loupe, text_ids(tiny_loupe), [Site("res", 4)])
    assert refused.value.code == "site-not-in-model" and refused.value.facts["last"] == 3


class Raised(Exception):
    pass


@pytest.mark.parametrize("stage", range(6))
@pytest.mark.parametrize("error", [Raised, Stop, KeyboardInterrupt])
def test_no_hook_outlives_a_cancelled_pass(tiny_loupe, stage, error):
    model, ids, calls = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe), []
    before = hooks(model)

    def checkpoint(share):
        calls.append(share)
        if len(calls) == 1 + 3 * stage:
            raise error

    with pytest.raises(error):
        read_with(tiny_loupe, ids, guesses=1, chunk=16, checkpoint=checkpoint)
    assert hooks(model) == before
    assert read_with(tiny_loupe, ids).acts[Site("res", 0)].nnz > 0


def test_no_hook_outlives_an_error_or_a_success(tiny_loupe):
    model, ids = tiny_loupe.engine.loaded.model, text_ids(tiny_loupe)
    before = hooks(model)
    read_with(tiny_loupe, ids, guesses=1)
    read_with(tiny_loupe, ids, [Site("res", 0)])
    assert hooks(model) == before

    def broken(site):
        raise Raised

    with pytest.raises(Raised):
        read(model, ids, tiny_loupe.sites, broken, special=())
    with pytest.raises(IndexError):
        read_with(tiny_loupe, [2, 10**6])
    assert hooks(model) == before


def test_a_cancelled_request_leaves_no_hook_and_the_engine_usable(tiny_loupe):
    from gemloupe.engine.protocol import Cancelled, Progress, ReadRequest

    engine = tiny_loupe.engine
    model, before = engine.loaded.model, hooks(engine.loaded.model)
    inside, go = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert go.wait(60)

    handle = model.model.layers[0].register_forward_hook(wait)  # in the middle: it cannot end before it is cancelled
    try:
        job = engine.read(ReadRequest(tuple(text_ids(tiny_loupe)), None, 1))
        assert inside.wait(60)
        job.cancel()
        go.set()
        *begun, last = job.events()
    finally:
        go.set()
        handle.remove()
    assert isinstance(last, Cancelled) and all(isinstance(event, Progress) for event in begun)
    assert hooks(model) == before
    assert tiny_loupe.read(TEXT[:80])["res.0"].nnz > 0


def test_progress_only_grows_and_ends_at_one(tiny_loupe):
    shares = []
    read_with(tiny_loupe, text_ids(tiny_loupe), guesses=1, chunk=16, checkpoint=shares.append)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(set(shares)) == 5


@pytest.mark.parametrize("as_tuple", [False, True])
def test_layers_that_return_a_tuple_are_read_like_those_that_return_a_tensor(as_tuple):
    """transformers 4 and 5 differ in this."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            return (x + 1, "weights") if as_tuple else x + 1

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
                x = x[0] if isinstance(x, tuple) else x
            return x

    model, seen = torch.nn.Module(), {}
    model.model = Body()
    x = torch.zeros(1, 2, 3)
    with reading(model, [Site("res", 1), Site("res", 0)], seen.__setitem__) as waiting:
        assert waiting == {Site("res", 0), Site("res", 1)}
        model.model(x)
        assert not waiting
    assert torch.equal(seen[Site("res", 0)], x + 1) and torch.equal(seen[Site("res", 1)], x + 2)
    with pytest.raises(Enough), reading(model, [Site("res", 0)], seen.__setitem__, stop=True):
        model.model(x)
    assert hooks(model) == 0


# --- other numbers ---


def test_a_bfloat16_model_is_read(tiny_loupe):
    loaded, ids = tiny_loupe.engine.loaded, text_ids(tiny_loupe)
    model = copy.deepcopy(loaded.model).to(torch.bfloat16)
    exact = read_with(tiny_loupe, ids, guesses=3)
    for chunk in (16, 100):
        found = read(
            model, ids, tiny_loupe.sites, tiny_loupe.engine.sae, special=loaded.special, guesses=3, chunk=chunk
        )
        for site, acts in exact.acts.items():
            one, two = acts.to_dense().ravel(), found.acts[site].to_dense().ravel()
            assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.99
            assert not np.array_equal(one, two)
        shares = hugging_face(model, ids).softmax(-1)
        for position, guesses in found.guesses.items():
            for name, share in guesses:
                assert abs(share - float(shares[position, name])) < 0.05


def long_model(layers=2):
    """The built-in model's heads (4 of 256, one key-value head) on a body small enough for a long text."""
    config = tiny_config("gemma3", layers) | {
        "head_dim": 256,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = transformers.Gemma3TextConfig(**config)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return transformers.Gemma3ForCausalLM(config).eval().requires_grad_(False)


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's memory from /proc")
def test_a_text_of_8000_tokens_needs_far_less_than_its_attention_scores():
    model, count = long_model(), 8000
    site = Site("res", 1)
    encoder = torch.randn(64, 48)
    sae = Sae(site, encoder, torch.zeros(64), torch.full((64,), 9.0), encoder, torch.zeros(48))
    ids = [2, *np.random.default_rng(0).integers(300, 500, count - 1).tolist()]
    read(model, ids[:600], [site], lambda _: sae, special=(2,))  # so that first-time costs are not counted
    before, peak, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = read(model, ids, [site], lambda _: sae, special=(2,))
    finally:
        done.set()
        watcher.join()
    scores = 4 * count * count * 4  # heads x tokens x tokens, float32: 1 GB
    assert 0 < peak[0] - before < scores / 3
    assert found.acts[site].shape == (count, 64) and found.acts[site].nnz > 0


def test_widths_are_those_of_the_tensors(tiny_loupe):
    model, seen = tiny_loupe.engine.loaded.model, {}
    sites = [Site(kind, 1) for kind in ("res", "mlp", "att", "transcoder")]
    with reading(model, sites, lambda site, x: seen.update({site: x.shape[-1]})):
        body(model)(torch.tensor([text_ids(tiny_loupe)]))
    assert seen == {site: width_of(model, site) for site in sites}
    assert seen[Site("att", 1)] == 64 != seen[Site("res", 1)] == 48


# --- beside other passes ---


@pytest.mark.parametrize("site", ["res.1", "att.1"])
def test_passes_of_other_threads_are_let_alone(tiny_loupe, site):
    """A cell may run the model, or the bridge over it, while the engine's thread reads or measures."""
    model, site = tiny_loupe.engine.loaded.model, Site.of(site)
    ids = text_ids(tiny_loupe, 50)
    expected, seen, theirs = hugging_face(model, ids), [], []
    run = threading.Thread(target=lambda: theirs.append(hugging_face(model, ids)))
    with reading(model, [site], lambda _, x: seen.append(x), stop=True), replacing(model, site, torch.zeros_like):
        run.start()
        run.join()
        assert seen == [] and torch.equal(theirs[0], expected)
        with pytest.raises(Enough):
            hugging_face(model, ids[:7])
    assert [x.shape[1] for x in seen] == [7] and hooks(model) == 0
