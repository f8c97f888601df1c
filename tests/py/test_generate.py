"""Generation without edits: the tokens and log-probabilities are Hugging Face's, however they are made."""

import importlib

import pytest
import torch
from gemloupe.engine.job import Stop
from gemloupe.run.choose import Full, Sampling, Screened, pick
from gemloupe.run.decode import Lean, untouched
from gemloupe.run.generate import generate
from gemloupe.run.product import product
from gemloupe.run.steer import Steering
from tiny import TEXT, VOCABULARY, WINDOW

generation = importlib.import_module("gemloupe.run.generate")
choosing = importlib.import_module("gemloupe.run.choose")


def text_ids(loupe, count=60):
    loaded = loupe.engine.loaded
    ids = [loaded.bos, *loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]][:count]
    assert len(ids) == count > 3 * WINDOW
    return ids


def nothing(rows=1, prompt=0):
    steered = Steering(((),) * rows, prompt=prompt, special=(), sae=None, maximum=None)
    return lambda: steered


def generated(loupe, ids, count=12, temperature=0.0, seed=0, stop=(), rows=1, top_k=None, top_p=None, **options):
    """[(id, log-probability)] of the first row; all rows must be the same."""
    made = [[] for _ in range(rows)]
    steps = generate(
        loupe.engine.loaded.model,
        ids,
        nothing(rows, len(ids)),
        max_new_tokens=count,
        sampling=Sampling(temperature, top_k, top_p),
        seed=seed,
        stop=stop,
        **options,
    )
    for step in steps:
        for one in step:
            made[one.row].append((one.id, one.logprob))
    assert all([name for name, _ in row] == [name for name, _ in made[0]] for row in made)
    return made[0]


def names(made):
    return [name for name, _ in made]


def hugging_face(model, ids, count=12, seed=None, **options):
    """(new ids, log-probability of each under the model) by `model.generate`."""
    given = torch.tensor([ids])
    if seed is None:
        options |= {"do_sample": False}
    else:
        options = {"do_sample": True, "top_k": 0, "top_p": 1.0} | options
        torch.manual_seed(seed)
    with torch.inference_mode():
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            min_new_tokens=None,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
    new = out.sequences[0, len(ids) :].tolist()
    shares = [float(row[0].float().log_softmax(-1)[name]) for row, name in zip(out.logits, new, strict=True)]
    return new, shares


@pytest.fixture(params=["modules", "lean", "ahead"])
def way(request):
    return request.param


SAMPLINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.6, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.7},
]


def test_greedy_is_hugging_faces(tiny_loupe, way):
    ids = text_ids(tiny_loupe)
    made = generated(tiny_loupe, ids, 24, way=way)
    expected, shares = hugging_face(tiny_loupe.engine.loaded.model, ids, 24)
    assert names(made) == expected
    assert [share for _, share in made] == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
def test_sampled_is_hugging_faces_with_the_same_generator(tiny_loupe, way, options):
    ids = text_ids(tiny_loupe)
    for seed in range(3):
        made = generated(tiny_loupe, ids, 12, seed=seed, way=way, **options)
        expected, shares = hugging_face(tiny_loupe.engine.loaded.model, ids, 12, seed=seed, **options)
        assert names(made) == expected
        assert [share for _, share in made] == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("chunk", [7, 33, 512])
def test_each_step_is_what_the_whole_text_without_a_cache_gives(tiny_loupe, monkeypatch, chunk, temperature, way):
    monkeypatch.setattr(generation, "CHUNK", chunk)
    ids = text_ids(tiny_loupe, 50)
    steps = generated(tiny_loupe, ids, temperature=temperature, seed=3, way=way)
    assert len(steps) == 12
    with torch.inference_mode():
        logits = tiny_loupe.engine.loaded.model(torch.tensor([ids + names(steps)]), use_cache=False).logits[0]
    for index, (name, share) in enumerate(steps):
        row = logits[49 + index]
        assert share == pytest.approx(float(row.log_softmax(-1)[name]), abs=1e-5)  # whatever the temperature
        if temperature == 0:
            assert name == int(row.argmax())


@pytest.mark.parametrize("prompt", [2, WINDOW - 1, WINDOW, WINDOW + 1])
def test_the_window_is_crossed_while_decoding(tiny_loupe, prompt, way):
    ids = text_ids(tiny_loupe)[:prompt]
    made = generated(tiny_loupe, ids, 3 * WINDOW, way=way)
    expected, shares = hugging_face(tiny_loupe.engine.loaded.model, ids, 3 * WINDOW)
    assert names(made) == expected
    assert [share for _, share in made] == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize("rows", [2, 3, 9])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_a_batch_is_the_row_alone(tiny_loupe, rows, temperature):
    ids = text_ids(tiny_loupe)
    alone = generated(tiny_loupe, ids, 20, temperature, seed=5)
    batch = generated(tiny_loupe, ids, 20, temperature, seed=5, rows=rows)
    assert names(batch) == names(alone)
    assert [share for _, share in batch] == pytest.approx([share for _, share in alone], abs=1e-5)


def test_the_seed_decides(tiny_loupe):
    ids = text_ids(tiny_loupe)
    one = generated(tiny_loupe, ids, temperature=1.0, seed=1)
    torch.manual_seed(99)  # the user's own stream of random numbers neither matters nor moves
    state = torch.get_rng_state()
    assert generated(tiny_loupe, ids, temperature=1.0, seed=1) == one
    assert torch.equal(torch.get_rng_state(), state)
    others = {tuple(generated(tiny_loupe, ids, temperature=1.0, seed=seed)) for seed in range(2, 6)}
    assert len(others | {tuple(one)}) == 5
    assert generated(tiny_loupe, ids, seed=1) == generated(tiny_loupe, ids, seed=2)


def test_samples_follow_the_probabilities(tiny_loupe):
    ids = text_ids(tiny_loupe)
    with torch.inference_mode():
        row = tiny_loupe.engine.loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    shares = (row / 0.8).softmax(-1)
    drawn = [generated(tiny_loupe, ids, 1, 0.8, seed)[0][0] for seed in range(300)]
    likeliest = int(shares.argmax())
    expected, share = float(shares[likeliest]), drawn.count(likeliest) / 300
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5 + 1e-9
    assert len(set(drawn)) > 1


def test_top_k_and_top_p_leave_out(tiny_loupe):
    shares, noise = torch.randn(1, 64).mul(3), torch.empty(64)
    for k, p in ((1, None), (None, 1e-9), (5, None), (None, 0.5)):
        chosen = {
            int(pick(shares, noise.exponential_(generator=torch.Generator().manual_seed(n)), Sampling(3.0, k, p))[0])
            for n in range(300)
        }
        ordered = shares[0].argsort(descending=True).tolist()
        allowed = k or int((torch.softmax(shares[0][ordered] / 3, -1).cumsum(-1) < p).sum()) + 1
        assert chosen <= set(ordered[:allowed]) and (len(chosen) > 1 or allowed == 1)


def test_it_ends_with_a_stop_token_or_at_the_limit(tiny_loupe):
    ids = text_ids(tiny_loupe)
    free = generated(tiny_loupe, ids)
    stop = free[4][0]
    first = names(free).index(stop)
    assert generated(tiny_loupe, ids, stop={stop}) == free[: first + 1]
    assert len(generated(tiny_loupe, ids, 1)) == 1


def test_it_asks_whether_to_go_on_before_every_pass(tiny_loupe):
    asked = []

    def checkpoint():
        asked.append(1)
        if len(asked) == 4:
            raise Stop

    model = tiny_loupe.engine.loaded.model
    steps = generate(
        model, text_ids(tiny_loupe), nothing(), max_new_tokens=10, sampling=Sampling(), checkpoint=checkpoint
    )
    made = []
    with pytest.raises(Stop):
        made.extend(iter(steps))
    assert len(made) == 3
    assert untouched(model) and not torch.is_inference_mode_enabled()


# --- the lean way ---


def test_anybody_elses_hook_is_called(tiny_loupe):
    """A model that somebody has hooked or patched runs through its modules."""
    model = tiny_loupe.engine.loaded.model
    assert untouched(model)
    seen = []
    handle = model.model.layers[2].mlp.register_forward_hook(lambda *_: seen.append(1))
    try:
        assert not untouched(model)
        generated(tiny_loupe, text_ids(tiny_loupe), 5)
    finally:
        handle.remove()
    assert len(seen) == 5
    layer = model.model.layers[1].mlp
    kept = layer.down_proj
    layer.down_proj = torch.nn.Sequential(kept)
    try:
        assert not untouched(model)
    finally:
        layer.down_proj = kept
    assert untouched(model)


def test_the_lean_way_is_taken(tiny_loupe, monkeypatch):
    fed = []
    feed = Lean.feed
    monkeypatch.setattr(Lean, "feed", lambda self, *args: fed.append(1) or feed(self, *args))
    generated(tiny_loupe, text_ids(tiny_loupe), 6)
    assert len(fed) == 5  # all but the prompt


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("shape", [(48, 96), (96, 48)])
def test_products_are_products(rows, shape):
    x, weight = torch.randn(rows, shape[1]), torch.randn(shape)
    assert torch.allclose(product(x, weight), x @ weight.T, atol=1e-5)
    assert torch.equal(
        product(x.bfloat16(), weight.bfloat16()), torch.nn.functional.linear(x.bfloat16(), weight.bfloat16())
    )


# --- the int8 head ---


@pytest.fixture
def screened(tiny_loupe, monkeypatch):
    """The head of a tiny model in int8, with so few logits computed again that the bound has to do its work."""
    monkeypatch.setattr(choosing, "_AGAIN", 8)
    model = tiny_loupe.engine.loaded.model
    return Screened(model), Full(model), model.model.config.hidden_size


@pytest.mark.parametrize("sampling", [Sampling(), *(Sampling(**options) for options in SAMPLINGS)], ids=str)
@pytest.mark.parametrize("size", [0.3, 1.0, 30.0])
def test_int8_finds_what_float32_would_choose(screened, sampling, size):
    quick, full, width = screened
    random = torch.Generator().manual_seed(7)
    for _ in range(20):
        hidden = torch.randn(3, width, generator=random) * size
        hidden[:, 5] *= 40  # as in Gemma
        noise = torch.empty(VOCABULARY).exponential_(generator=random) if sampling.temperature else None
        with torch.inference_mode():
            ours, theirs = quick(hidden, noise, sampling), full(hidden, noise, sampling)
        assert ours[0] == theirs[0]


def test_int8_never_loses_a_logit_beyond_its_bound(screened):
    quick, _, width = screened
    hidden = torch.randn(50, width, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 50)[:, None]
    hidden[:, 3] *= 100
    with torch.inference_mode():
        near, error = quick._near(hidden)
        exact = (hidden.double() @ quick._weight.double().T).float()
    assert ((near - exact).abs() <= error).all()
    assert (near - exact).abs().max() > 0


def test_changed_weights_are_rounded_again(tiny_loupe):
    head = torch.nn.Linear(48, 64, bias=False)
    first = choosing._round(head)
    assert choosing._round(head) is first
    with torch.no_grad():
        head.weight *= 2
    assert torch.allclose(choosing._round(head).scale, first.scale * 2)


def test_the_built_in_model_is_hugging_faces(builtin):
    """Greedy and sampled, on the real vocabulary, where the int8 head is taken."""
    loaded = builtin.engine.loaded
    ids = [token.id for token in builtin.engine.tokenize("In the morning I like to walk by the sea, because")]
    for options in ({}, {"temperature": 1.0, "seed": 4}):
        made = generated(builtin, ids, 8, **options)
        expected, shares = hugging_face(loaded.model, ids, 8, **options)
        assert names(made) == expected
        assert [share for _, share in made] == pytest.approx(shares, abs=1e-3)
