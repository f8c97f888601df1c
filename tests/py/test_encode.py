"""JumpReLU in the hook: both ways give what the definition gives, and the int8 screen never loses a feature."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from gemloupe.errors import Refusal
from gemloupe.load.sae import Sae
from gemloupe.site import Site
from hypothesis import given, settings
from hypothesis import strategies as st

# the package's attribute of this name is the function
encoding = importlib.import_module("gemloupe.run.encode")
dense, encode, screened = encoding.dense, encoding.encode, encoding.screened

SITE = Site("res", 3)
needs_vnni = pytest.mark.skipif(not encoding.can_screen(), reason="this CPU has no int8 products in hardware (VNNI)")
both_ways = pytest.mark.parametrize("way", [dense, pytest.param(screened, marks=needs_vnni)])


def make_sae(width=200, d_in=80, *, seed=0, packed=False, level=1.5):
    """A random SAE; on standard normal input its features fire above `level` standard deviations."""
    random = torch.Generator().manual_seed(seed)
    encoder = torch.randn(width, d_in, generator=random) * (0.2 + torch.rand(width, 1, generator=random))
    norms = encoder.norm(dim=1)
    int8 = scale = None
    if packed:
        scale = encoder.abs().amax(1) / 127
        int8 = (encoder / scale[:, None]).round().to(torch.int8)
        encoder = int8.to(torch.float32) * scale[:, None]
    b_enc = 0.1 * torch.randn(width, generator=random)
    threshold = norms * level * (0.8 + 0.4 * torch.rand(width, generator=random))
    return Sae(SITE, encoder, b_enc, threshold, encoder, torch.zeros(d_in), int8, scale)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_dense(part, width):
    """(counts, columns, values) of a block as float32 [row, feature]; columns must ascend within each row."""
    counts, columns, values = part
    assert len(columns) == len(values) == counts.sum()
    rows = np.repeat(np.arange(len(counts)), counts)
    assert (np.diff(rows * width + columns.astype(np.int64)) > 0).all()
    found = np.zeros((len(counts), width), np.float32)
    found[rows, columns] = values
    return found


def check(way, sae, x, *, some_on=True):
    """`way` against the definition in float64. Only entries within float32's rounding of the threshold may differ."""
    found = as_dense(way(sae, x), sae.width)
    pre = (x.double() @ sae.encoder.double().T + sae.b_enc.double()).numpy()
    threshold = sae.threshold.double().clamp_min(0).numpy()
    size = (x.double().norm(dim=1)[:, None] * sae.encoder.double().norm(dim=1) + sae.b_enc.double().abs()).numpy()
    expected = np.where(pre > threshold, pre, 0)
    unsure = np.abs(pre - threshold) <= 1e-6 * size
    assert ((found > 0) == (expected > 0))[~unsure].all()
    on = (found > 0) & (expected > 0)
    assert (np.abs(found - expected)[on] <= 2e-6 * size[on]).all()
    assert on.any() == some_on
    return found


@both_ways
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("d_in", [1, 7, 31, 33, 80, 640])
def test_random(way, packed, d_in):
    sae = make_sae(d_in=d_in, packed=packed)
    found = check(way, sae, normal(50, d_in))
    assert 0.01 < (found > 0).mean() < 0.3


@both_ways
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x.index_fill_(1, torch.tensor([5, 60]), 3e4), id="huge constant dimensions"),
        pytest.param(lambda x: x.mul_(torch.logspace(-3, 4, 80)), id="dimensions of every size"),
        pytest.param(lambda x: x.mul_(torch.logspace(-6, 5, 40)[:, None]), id="tokens of every size"),
        pytest.param(lambda x: x.add_(1000 * normal(80, seed=9)), id="a mean much longer than the rest"),
        pytest.param(lambda x: x[7:9].zero_(), id="zero tokens"),
        pytest.param(lambda x: x[:, 3].mul_(1e6), id="one loud dimension"),
        pytest.param(lambda x: x.copy_(x[:1].expand(40, 80) * 3), id="all tokens equal"),
        pytest.param(lambda x: x[0].mul_(2e4), id="a first token like BOS"),
    ],
)
def test_adversarial_input(way, change, packed):
    sae, x = make_sae(packed=packed), normal(40, 80)
    change(x)
    check(way, sae, x)


@both_ways
def test_all_zero_input(way):
    sae = make_sae(level=0.05)
    found = check(way, sae, torch.zeros(4, 80))
    assert (found[0] == found).all()
    check(way, replace(sae, b_enc=-sae.b_enc.abs()), torch.zeros(4, 80), some_on=False)


@both_ways
@pytest.mark.parametrize("seed", range(3))
def test_one_token(way, seed):
    check(way, make_sae(seed=seed), normal(1, 80, seed=seed))


@both_ways
@pytest.mark.parametrize("threshold", [0.0, 1e-30, 1e-6])
def test_tiny_thresholds(way, threshold):
    sae = replace(make_sae(), threshold=torch.full((200,), threshold))
    found = check(way, sae, normal(30, 80))
    assert 0.3 < (found > 0).mean() < 0.7


@both_ways
def test_a_negative_threshold_lets_nothing_negative_through(way):
    sae = make_sae()
    negative = check(way, replace(sae, threshold=-sae.threshold), normal(30, 80))
    zero = as_dense(way(replace(sae, threshold=torch.zeros(200)), normal(30, 80)), 200)
    assert (negative == zero).all() and negative.min() == 0


@both_ways
def test_features_that_read_nothing(way):
    sae = make_sae()
    sae.encoder[10:20] = 0
    sae.b_enc[10:12] = sae.threshold[10:12] + 1
    sae.b_enc[12:20] = sae.threshold[12:20] - 1e-3
    found = check(way, sae, normal(30, 80))
    assert (found[:, 10:12] > 0).all() and not found[:, 12:20].any()


@both_ways
def test_the_threshold_itself_is_off(way):
    """Small whole numbers, so that every way of summing is exact."""
    random = np.random.default_rng(0)
    x = torch.tensor(random.integers(-9, 10, (20, 50)), dtype=torch.float32)
    sae = make_sae(width=60, d_in=50)
    encoder = torch.tensor(random.integers(-9, 10, (60, 50)), dtype=torch.float32)
    bias = torch.tensor(random.integers(-9, 10, 60), dtype=torch.float32)
    pre = x @ encoder.T + bias
    row = int(pre.amax(1).argmax())
    threshold = pre[row].clone()
    assert (threshold > 0).sum() > 10
    at = as_dense(way(replace(sae, encoder=encoder, b_enc=bias, threshold=threshold), x), 60)
    assert not at[row].any()
    assert (at == np.where(pre > threshold.clamp_min(0), pre, 0)).all()
    below = torch.nextafter(threshold, torch.tensor(-torch.inf))
    just = as_dense(way(replace(sae, encoder=encoder, b_enc=bias, threshold=below), x), 60)
    assert (just[row] == threshold.clamp_min(0).numpy()).all()


@both_ways
def test_enormous_numbers_that_are_finite(way):
    """Their squares overflow float32, and so does their sum; the activations do not."""
    sae = make_sae(level=0)
    sae.encoder.mul_(1e-6)
    x = normal(12, 80).sign() * 3e38
    found = as_dense(way(sae, x), 200)
    expected = (x.double() @ sae.encoder.double().T + sae.b_enc).clamp_min(0).numpy()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert np.isfinite(found).all() and 0.3 < (found > 0).mean() < 0.7


@needs_vnni
@pytest.mark.parametrize("packed", [False, True])
def test_the_screen_set_up_on_one_text_serves_any_other(packed):
    sae = make_sae(packed=packed)
    check(screened, sae, normal(30, 80))
    for other in (normal(30, 80, seed=5) + 300, normal(30, 80, seed=6) * torch.logspace(3, -3, 80), normal(1, 80) * 50):
        check(screened, sae, other)


# --- the bound ---


def missed(sae, x, screen):
    """Entries that are active by the float32 definition and are no candidates, and the share that are candidates."""
    rows, columns = encoding._candidates(screen, x)
    kept = np.zeros((len(x), sae.width), bool)
    kept[rows.numpy(), columns.numpy()] = True
    on = as_dense(dense(sae, x), sae.width) > 0
    return int((on & ~kept).sum()), kept.mean()


@needs_vnni
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    d_in=st.integers(1, 200),
    tokens=st.integers(1, 30),
    spread=st.floats(0, 5),
    shift=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    size=st.sampled_from([1e-12, 1e-3, 1.0, 1e4]),
    packed=st.booleans(),
    on_the_edge=st.booleans(),
)
def test_no_active_feature_is_ever_missed(seed, d_in, tokens, spread, shift, size, packed, on_the_edge):
    sae = make_sae(width=64, d_in=d_in, seed=seed, packed=packed, level=1.0)
    x = size * (normal(tokens, d_in, seed=seed) * torch.logspace(0, spread, d_in) + shift)
    if on_the_edge:  # every threshold just below an activation, where the least error in the bound would show
        pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
        row = torch.randint(tokens, (64,), generator=torch.Generator().manual_seed(seed))
        sae = replace(sae, threshold=torch.nextafter(pre[row, torch.arange(64)], torch.tensor(-torch.inf)))
    built_on = x if seed % 2 else normal(20, d_in, seed=seed + 1)
    assert missed(sae, x, encoding._screen(sae, built_on))[0] == 0


@needs_vnni
def test_the_bound_is_needed_and_is_not_slack():
    sae, x = make_sae(width=2000, d_in=640, level=2.5), normal(100, 640)
    pre = torch.addmm(sae.b_enc, x, sae.encoder.T)
    on_the_edge = replace(sae, threshold=torch.nextafter(pre[0], torch.tensor(-torch.inf)))
    screen = encoding._screen(sae, x)
    lost, share = missed(sae, x, screen)
    assert lost == 0 and share < 0.05  # about 0.7 % are active
    screen = encoding._screen(on_the_edge, x)
    assert missed(on_the_edge, x, screen)[0] == 0
    bare = screen.lines.clone()
    bare[1:3] = 0
    assert missed(on_the_edge, x, replace(screen, lines=bare))[0] > 100


@needs_vnni
@pytest.mark.parametrize("kind", ["weights", "tokens"])
def test_the_bound_holds_where_every_rounding_error_points_the_same_way(kind):
    """Random errors mostly cancel; these add up to what the bound allows, and half of it would be too little."""
    sae = make_sae(width=64, d_in=640, packed=kind == "tokens")
    screen = encoding._screen(sae, torch.zeros(2, 640))
    if kind == "weights":  # tokens that are whole int8 numbers, along what the rounding of one feature's weights lost
        lost = sae.encoder - screen.weights.T.float() * screen.scale[:, None]
        lost[:, screen.outliers] = 0
        x = (lost / lost.abs().amax(1, keepdim=True) * 127).round()
    else:  # weights that are whole int8 numbers, and tokens that lose almost half a step along one feature's weights
        x = torch.randint(-100, 101, (64, 640), generator=torch.Generator().manual_seed(0)).float()
        x += 0.49 * sae.encoder.sign()
        x[:, screen.outliers] = 0
        x[:, int(screen.outliers[-1]) + 1] = 127
    on_the_edge = replace(sae, threshold=torch.addmm(sae.b_enc, x, sae.encoder.T).diag() - 1e-3)
    screen = encoding._screen(on_the_edge, torch.zeros(2, 640))
    assert missed(on_the_edge, x, screen)[0] == 0
    halved = screen.lines.clone()
    halved[1 if kind == "tokens" else 2] /= 2
    assert missed(on_the_edge, x, replace(screen, lines=halved))[0] > 0


# --- encode ---


def counted(monkeypatch, name):
    calls, real = [], getattr(encoding, name)
    monkeypatch.setattr(encoding, name, lambda sae, x: calls.append(len(x)) or real(sae, x))
    return calls


def everything(x):
    return torch.ones(len(x), dtype=torch.bool)


def same(one, two):
    return one.shape == two.shape and all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in ("indptr", "indices", "values")
    )


def test_masked_tokens_stay_empty_and_in_place():
    sae, x = make_sae(), normal(30, 80)
    kept = torch.arange(30) % 3 != 0
    acts, whole = encode(sae, x, kept, SITE), encode(sae, x, everything(x), SITE)
    assert acts.shape == (30, 200)
    expected = whole.to_dense() * kept.numpy()[:, None]
    assert np.allclose(acts.to_dense(), expected, rtol=1e-5)
    assert not acts.l0[::3].any() and acts.l0[1] > 0


def test_all_tokens_masked():
    x = normal(5, 80)
    x[2] = torch.nan
    acts = encode(make_sae(), x, ~everything(x), SITE)
    assert acts.shape == (5, 200) and acts.nnz == 0 and acts.l0.tolist() == [0] * 5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_by_its_token(bad):
    x = normal(30, 80)
    x[17, 4] = bad
    kept = torch.arange(30) > 4  # the position in the text is named, not the row among the kept
    with pytest.raises(Refusal) as refused:
        encode(make_sae(), x, kept, SITE)
    assert refused.value.code == "not-finite" and refused.value.facts == {"site": SITE, "position": 17}
    assert "res.3" in str(refused.value) and "token 17" in str(refused.value)
    kept[17] = False  # what is never encoded cannot spoil anything
    assert encode(make_sae(), x, kept, SITE).nnz > 0


def test_plus_and_minus_infinity_do_not_cancel():
    x = normal(6, 80)
    x[2, 0], x[4, 0] = torch.inf, -torch.inf
    with pytest.raises(Refusal) as refused:
        encode(make_sae(), x, everything(x), SITE)
    assert refused.value.facts["position"] == 2


def test_finite_numbers_whose_sum_overflows_are_read():
    sae = make_sae(level=0)
    sae.encoder.mul_(1e-6)
    x = normal(12, 80).sign().abs() * 3e38
    assert not torch.isfinite(x.sum())
    assert encode(sae, x, everything(x), SITE).nnz > 0


def test_bfloat16_input_is_encoded_in_float32():
    sae, x = make_sae(), normal(30, 80).bfloat16()
    assert same(encode(sae, x, everything(x), SITE), encode(sae, x.float(), everything(x), SITE))


@pytest.mark.parametrize("rows", [1, 3, 7, 30, 31])
def test_blocks_bound_the_work_and_change_nothing(monkeypatch, rows):
    sae, x = make_sae(), normal(30, 80)
    kept = torch.arange(30) != 11
    whole = encode(sae, x, kept, SITE)
    monkeypatch.setattr(encoding, "_BLOCK", rows * sae.width + sae.width // 2)
    calls = counted(monkeypatch, "_block")
    parts = encode(sae, x, kept, SITE)
    assert max(calls) == min(rows, 29) and sum(calls) == 29 and len(calls) == -(-29 // rows)
    assert np.array_equal(parts.indptr, whole.indptr) and np.array_equal(parts.indices, whole.indices)
    assert np.allclose(parts.values, whole.values, rtol=1e-5)


def test_an_sae_wider_than_a_block_is_read_token_by_token(monkeypatch):
    sae, x = make_sae(), normal(4, 80)
    monkeypatch.setattr(encoding, "_BLOCK", 10)
    calls = counted(monkeypatch, "_block")
    assert encode(sae, x, everything(x), SITE).nnz > 0
    assert calls == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("vnni", "least", "which"), [(True, 0, "screened"), (True, 10**9, "dense"), (False, 0, "dense")]
)
def test_the_screen_is_used_where_it_pays(monkeypatch, vnni, least, which):
    monkeypatch.setattr(encoding, "can_screen", lambda: vnni)
    monkeypatch.setattr(encoding, "_WORTH_SCREENING", least)
    calls = {name: counted(monkeypatch, name) for name in ("dense", "unscreened", "screened")}
    x, sae = normal(9, 80), make_sae()
    encode(sae, x, everything(x), SITE)
    encode(sae, x, everything(x), SITE)
    # An SAE that is not packed is rounded at its second use only: it may be paged out before.
    twice = {"dense": [9, 9], "unscreened": [], "screened": []}
    assert calls == ({"dense": [], "unscreened": [9], "screened": [9]} if which == "screened" else twice)


@needs_vnni
@pytest.mark.parametrize("d_in", [17, 80, 640])
def test_with_and_without_the_screen_all_bits_are_the_same(d_in):
    """So that what is read does not depend on whether an SAE was paged out in between."""
    sae = make_sae(d_in=d_in)
    x = normal(200, d_in, seed=3)
    x[:, 2] *= 1e4  # a massive dimension
    one, two = encoding.unscreened(sae, x), screened(sae, x)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)) and len(one[1]) > 100


def test_a_packed_sae_is_screened_from_the_first_use(monkeypatch):
    monkeypatch.setattr(encoding, "can_screen", lambda: True)
    monkeypatch.setattr(encoding, "_WORTH_SCREENING", 0)
    calls = {name: counted(monkeypatch, name) for name in ("dense", "screened")}
    x = normal(9, 80)
    encode(make_sae(packed=True), x, everything(x), SITE)
    assert calls == {"dense": [], "screened": [9]}


@needs_vnni
def test_buffers_are_reused_in_and_out_of_inference_mode_and_never_returned(monkeypatch):
    monkeypatch.setattr(encoding, "_WORTH_SCREENING", 0)
    sae, x = make_sae(), normal(30, 80)
    with torch.inference_mode():
        first = encode(sae, x, everything(x), SITE)
    kept = first.to_dense()
    second = encode(sae, normal(90, 80, seed=4), everything(normal(90, 80)), SITE)
    third = encode(sae, x, everything(x), SITE)
    assert same(first, third) and second.nnz > first.nnz
    assert (first.to_dense() == kept).all()


@needs_vnni
def test_threads_do_not_share_buffers(monkeypatch):
    monkeypatch.setattr(encoding, "_WORTH_SCREENING", 0)
    saes = [make_sae(width=600, seed=seed) for seed in range(4)]
    texts = [normal(60, 80, seed=seed) for seed in range(4)]

    def once(number):
        return encode(saes[number % 4], texts[number % 4], everything(texts[0]), SITE)

    expected = [once(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(once, range(80))):
            assert same(found, expected[number % 4])
