"""SAEs within a budget: what is held, what leaves, what is loaded ahead; and that what is read never depends on it."""

import gc
import threading
import time
import weakref
from dataclasses import fields

import gemloupe as gl
import numpy as np
import pytest
import torch
from conftest import tiny_scope
from gemloupe.budget import bytes_of
from gemloupe.errors import Refusal
from gemloupe.load import cache
from gemloupe.load.memory import free_memory
from gemloupe.load.sae import Sae, Transcoder
from gemloupe.load.scope import Scope
from gemloupe.run import pages
from gemloupe.run.pages import Pager, footprint, mapped
from gemloupe.run.staging import Staging
from gemloupe.site import Site
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXT, tiny_model

SIZE = 100
SOON = 20


def site(number):
    return Site("res", number)


def make_sae(where, width=8, d_in=4):
    random = torch.Generator().manual_seed(where.layer)
    rows = torch.randn(width, d_in, generator=random)
    return Sae(where, rows, torch.zeros(width), torch.full((width,), 0.5), rows.clone(), torch.zeros(d_in))


class Source:
    """What a pager loads from: counts, and can be held up or made to fail."""

    def __init__(self):
        self.asked = []
        self.made = weakref.WeakSet()
        self.gate = threading.Event()
        self.gate.set()
        self.slow = set()
        self.broken = set()

    def load(self, where):
        self.asked.append(where.layer)
        if where.layer in self.slow:
            assert self.gate.wait(SOON)
        if where.layer in self.broken:
            raise OSError(f"cannot read {where}")
        sae = make_sae(where)
        self.made.add(sae)
        return sae


@pytest.fixture
def source():
    return Source()


def pager(source, room, size=lambda _: SIZE):
    return Pager(source.load, size, budget=room * SIZE)


def until(true):
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_what_is_held_is_not_loaded_again(source):
    one = pager(source, 3)
    assert one.get(site(0)) is one.get(site(0))
    assert source.asked == [0] and one.held == SIZE and one.loads == 1


def test_the_least_recently_used_leaves_first(source):
    one = pager(source, 3)
    for number in (0, 1, 2, 0, 3):
        one.get(site(number))
    assert one.sites == (site(2), site(0), site(3))
    one.get(site(1))
    assert one.sites == (site(0), site(3), site(1))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=4, max_size=4),
    asked=st.lists(st.integers(0, 3), max_size=30),
    budget=st.integers(50, 120),
    ahead=st.booleans(),
)
def test_never_more_than_the_budget_and_always_the_right_one(sizes, asked, budget, ahead):
    source, most = Source(), []

    def load(where):
        most.append(one.held)
        return source.load(where)

    one = Pager(load, lambda where: sizes[where.layer], budget=budget)
    if ahead:
        one.expect(map(site, range(4)))
    for number in asked:
        assert one.get(site(number)).site == site(number)
        most.append(one.held)
    one.close()
    assert max(most, default=0) <= budget


def test_the_memory_of_what_leaves_is_freed(source):
    one = pager(source, 2)
    for number in range(6):
        one.get(site(number))
    gc.collect()
    assert {sae.site for sae in source.made} == set(one.sites) == {site(4), site(5)}
    one.close()
    gc.collect()
    assert not source.made


def test_what_a_caller_holds_stays_alive_for_it(source):
    one = pager(source, 1)
    mine = one.get(site(0))
    one.get(site(1))
    assert one.sites == (site(1),)
    assert torch.equal(mine.encoder, make_sae(site(0)).encoder)


def test_the_next_one_loads_while_this_one_is_used(source):
    one = pager(source, 2)
    one.expect([site(0), site(1), site(2)])
    one.get(site(0))
    until(lambda: one.sites == (site(0), site(1)))
    one.get(site(1))
    until(lambda: site(2) in one.sites)
    assert source.asked == [0, 1, 2] and one.sites == (site(1), site(2))


def test_two_load_at_once_while_one_is_used_and_their_threads_end(source):
    one = pager(source, 4)
    source.slow = {1, 2}
    source.gate.clear()
    one.expect(map(site, range(5)))
    one.get(site(0))
    until(lambda: {1, 2} <= set(source.asked))
    assert 3 not in source.asked and one.held == 3 * SIZE
    source.gate.set()
    one.get(site(1))
    until(lambda: site(3) in one.sites)
    threads = one._ahead._threads
    one.expect(())
    until(lambda: not any(thread.is_alive() for thread in threads))
    one.expect(map(site, range(5)))
    assert one.get(site(4)).site == site(4)


def test_a_pass_begins_when_what_it_lacks_is_here(source):
    one, asked = pager(source, 4), []
    one.get(site(1))
    with one.round(map(site, range(4)), lambda: asked.append(1)):
        assert set(one.sites) == set(map(site, range(4))) and sorted(source.asked) == [0, 1, 2, 3]
    assert len(asked) == 3
    with one.round(map(site, range(4))):
        assert len(source.asked) == 4
    with one.round(map(site, range(2, 7))):
        assert len(source.asked) == 4, "they do not all have room: each is loaded when it is its turn"
    assert one.held <= 4 * SIZE


def test_a_pass_that_is_stopped_while_its_saes_load_does_not_begin(source):
    one = pager(source, 4)

    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with pytest.raises(Stopped), one.round(map(site, range(4)), stop):
        raise AssertionError
    assert one.get(site(3)).site == site(3) and not one._after


def test_a_pager_that_is_closed_while_a_pass_gathers_lets_it_go(source):
    source.slow = set(range(4))
    source.gate.clear()
    one, ended = pager(source, 4), threading.Event()

    def work():
        with one.round(map(site, range(4))):
            pass
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    until(lambda: len(source.asked) == 2)
    threading.Timer(0.05, source.gate.set).start()
    one.close()
    assert ended.wait(SOON)


def test_a_fault_while_a_pass_gathers_is_told_by_the_site_that_has_it(source):
    source.broken = {1}
    one = pager(source, 4)
    with one.round(map(site, range(3))):
        assert one.get(site(0)).site == site(0)
        with pytest.raises(OSError, match=r"res\.1"):
            one.get(site(1))


def test_what_is_next_is_not_pushed_out_by_what_comes_after(source):
    one = pager(source, 3)
    one.expect(map(site, range(6)))
    for number in range(6):
        one.get(site(number))
        until(lambda: not one._coming)
    assert source.asked[:6] == list(range(6)), "each once, in order"


def test_an_sae_on_its_way_is_waited_for_and_not_loaded_twice(source):
    source.slow = {1}
    source.gate.clear()
    one = pager(source, 2)
    one.expect([site(0), site(1)])
    one.get(site(0))
    until(lambda: 1 in source.asked)
    threading.Timer(0.02, source.gate.set).start()
    assert one.get(site(1)).site == site(1)
    assert source.asked == [0, 1]


def test_nothing_is_loaded_ahead_where_that_would_push_out_what_is_used(source):
    one = pager(source, 1)
    one.expect([site(0), site(1)])
    one.get(site(0))
    assert one._ahead is None
    assert one.sites == (site(0),) and source.asked == [0]


def test_many_threads_get_what_they_ask_for(source):
    one, wrong = pager(source, 3), []

    def work(seed):
        random = np.random.default_rng(seed)
        for number in random.integers(0, 8, 50):
            if one.get(site(int(number))).site != site(int(number)):
                wrong.append(number)

    one.expect(map(site, range(8)))
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert not wrong and not any(thread.is_alive() for thread in threads) and one.held <= 3 * SIZE


def test_a_fault_is_told_to_whoever_asks_and_may_pass(source):
    source.broken = {1}
    one = pager(source, 2)
    one.expect([site(0), site(1)])
    one.get(site(0))  # loading 1 ahead fails, and nobody has asked for it
    for _ in range(2):
        with pytest.raises(OSError, match=r"res\.1"):
            one.get(site(1))
    source.broken = set()
    assert one.get(site(1)).site == site(1) and one.held <= 2 * SIZE


def test_an_sae_larger_than_the_budget_is_refused(source):
    one = Pager(source.load, lambda _: SIZE, budget=SIZE - 1)
    with pytest.raises(Refusal) as refused:
        one.get(site(3))
    assert refused.value.code == "budget-too-small" and "res.3" in str(refused.value)


def test_a_closed_pager_holds_nothing_and_refuses(source):
    source.slow = {1}
    source.gate.clear()
    one = pager(source, 2)
    one.expect([site(0), site(1)])
    one.get(site(0))
    until(lambda: 1 in source.asked)
    threading.Timer(0.02, source.gate.set).start()
    one.close()
    gc.collect()
    assert one.held == 0 and not source.made
    with pytest.raises(Refusal):
        one.get(site(0))


# ---- on disk


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "params.npz"
    path.write_bytes(b"the source")
    return path


def same(one, two):
    return type(one) is type(two) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    )


def transcoder():
    sae = make_sae(Site("transcoder", 2))
    return Transcoder(**vars(sae), skip=torch.randn(4, 4), before_gain=True)


@pytest.mark.parametrize("sae", [make_sae(site(2)), transcoder()], ids=["sae", "transcoder"])
def test_a_page_is_the_sae_and_is_read_from_the_source_once(file, tmp_path, sae):
    loads = []
    for _ in range(3):
        found = mapped(file, sae.site, lambda: loads.append(1) or sae, tmp_path / "pages")
        assert same(found, sae)
    assert len(loads) == 1


def test_another_source_is_another_page(file, tmp_path):
    one = mapped(file, site(1), lambda: make_sae(site(1)), tmp_path / "pages")
    file.write_bytes(b"another source")
    two = mapped(file, site(1), lambda: make_sae(site(1), width=9), tmp_path / "pages")
    assert (one.width, two.width) == (8, 9)


def damage_bytes(folder):
    path = folder / "sae.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(bytes(data))


def cut_short(folder):
    path = folder / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


DAMAGE = {
    "a changed byte": damage_bytes,
    "cut short": cut_short,
    "weights gone": lambda folder: (folder / "sae.safetensors").unlink(),
    "no description": lambda folder: (folder / "page.json").unlink(),
    "another description": lambda folder: (folder / "page.json").write_text('{"sha256": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_page_is_noticed_and_written_anew(file, tmp_path, caplog, damage):
    sae, loads = make_sae(site(4)), []

    def get():
        return mapped(file, sae.site, lambda: loads.append(1) or sae, tmp_path / "pages")

    get()
    (folder,) = [path for path in (tmp_path / "pages").iterdir() if path.is_dir()]
    DAMAGE[damage](folder)
    assert same(get(), sae) and len(loads) == 2
    assert "res.4 is damaged" in caplog.text
    assert same(get(), sae) and len(loads) == 2


def test_where_no_page_can_be_kept_the_sae_is_read_from_its_source(file, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pages.cache, "KEPT_FREE", 1 << 60)
    sae = make_sae(site(4))
    assert same(mapped(file, sae.site, lambda: sae, tmp_path / "pages"), sae)
    assert "no page of res.4 could be kept" in caplog.text and not list((tmp_path / "pages").iterdir())


def test_what_loading_refuses_is_refused_and_leaves_no_page(file, tmp_path):
    def load():
        raise OSError("its source is damaged")

    with pytest.raises(OSError, match="source is damaged"):
        mapped(file, site(0), load, tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


# ---- a model with more SAEs than the budget holds


LAYERS = 26
SITES = [f"{kind}.{layer}" for layer in range(LAYERS) for kind in ("att", "mlp", "res")]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """(model folder, scope folder) of 26 layers with an SAE at 78 sites, in SAELens' form."""
    from gemloupe.load.model import load_model

    root = tmp_path_factory.mktemp("deep")
    model = tiny_model("gemma2", root / "model", layers=LAYERS)
    packed = tiny_scope(load_model(model, device="cpu"), root / "packed", sites=SITES)
    Scope.open(packed).unpack(root / "plain")
    return model, root


def size_of(loupe):
    engine = loupe.engine
    return max(engine._size(one) for one in engine.sites)


@pytest.mark.parametrize("form", ["plain", "packed"])
def test_all_78_sites_within_a_budget_of_ten_are_read_exactly(deep, form, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path))
    model, root = deep
    with gl.open(model, scope=root / form, device="cpu") as whole:
        assert whole.engine.pages.loads == 0  # opening reads no weights
        expected = whole.read(TEXT[:200])
        assert len(expected.sites) == 78 and whole.engine.pages.held == sum(map(whole.engine._size, whole.sites))
        budget = 10 * size_of(whole)
    with gl.open(model, scope=root / form, device="cpu", budget=budget) as paged:
        assert any("paged" in note for note in paged.about.notes)
        held = []
        load = paged.engine.pages._load
        paged.engine.pages._load = lambda one: (held.append(paged.engine.pages.held), load(one))[1]
        for _ in range(2):
            found = paged.read(TEXT[:200])
            for one in expected.sites:
                for part in ("indptr", "indices", "values"):
                    assert np.array_equal(getattr(found[one], part), getattr(expected[one], part)), one
        assert len(held) >= 2 * 78 - 10 and max(held) <= budget
        assert len(paged.engine.pages.sites) <= budget // min(map(paged.engine._size, paged.sites))
    assert ((tmp_path / "pages").exists()) == (form == "plain")


def test_other_requests_while_sites_are_paged(deep, tmp_path, monkeypatch):
    """Reads from several threads and an SAE asked for beside them: each gets what it would have got alone."""
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path))
    model, root = deep
    with gl.open(model, scope=root / "packed", device="cpu") as whole:
        expected = {text: whole.read(text) for text in (TEXT[:60], TEXT[90:150])}
        budget = 3 * size_of(whole)
    with gl.open(model, scope=root / "packed", device="cpu", budget=budget) as paged:
        found, threads = {}, []
        for text in expected:
            threads.append(threading.Thread(target=lambda text=text: found.update({text: paged.read(text)})))
            threads[-1].start()
        for layer in range(LAYERS):
            assert paged.engine.sae(Site("res", layer)).site == Site("res", layer)
        for thread in threads:
            thread.join(60)
        for text, trace in expected.items():
            assert all(np.array_equal(trace[one].values, found[text][one].values) for one in trace.sites)


def test_a_budget_too_small_for_one_sae_is_refused_on_opening(tiny_folders):
    model, scope = tiny_folders["gemma2"]
    with pytest.raises(Refusal) as refused:
        gl.open(model, scope=scope, device="cpu", budget=1000)
    assert refused.value.code == "budget-too-small"
    assert "1.0 kB" in str(refused.value) and refused.value.facts["need"] in str(refused.value)


@pytest.mark.parametrize("bad", ["four GB", "-1", "4 XB", -1, True, 1.5, "", "1e9", "NaN GB", object()])
def test_a_budget_that_is_none_is_refused(bad, tiny_folders):
    model, scope = tiny_folders["gemma2"]
    with pytest.raises(Refusal) as refused:
        gl.open(model, scope=scope, device="cpu", budget=bad)
    assert refused.value.code == "budget-unreadable"


@pytest.mark.parametrize(
    ("given", "count"),
    [(None, None), (0, 0), (123, 123), ("123", 123), ("4 GB", 4 * 10**9), ("1.5gib", 3 << 29), (" 20 MB ", 20 * 10**6)],
)
def test_budgets_are_bytes_or_text(given, count):
    assert bytes_of(given) == count


def test_a_footprint_is_what_the_tensors_take(tiny2):
    where = Site("res", 2)
    sae = tiny2.engine.sae(where)
    tensors = sum(t.nbytes for t in vars(sae).values() if isinstance(t, torch.Tensor))
    # packed, it brings the rounded encoder that other SAEs get when they are used again
    assert tensors <= footprint(sae.width, sae.d_in, "cpu") <= 1.8 * tensors
    assert footprint(sae.width, sae.d_in, "cuda") == tensors - sae.encoder_int8.nbytes - sae.encoder_scale.nbytes


def test_free_memory_is_measured():
    assert 0 < free_memory() < 1 << 50
    assert pages.default_budget("cpu") <= free_memory()
    assert cache.folder()


@pytest.mark.parametrize("size", [7, 64, 1 << 20])
def test_staged_copies_are_the_tensors(size):
    """Through buffers smaller and larger than they are; the buffers are used again while nothing waits for them."""
    staging = Staging(torch.device("cpu"), size)
    random = torch.Generator().manual_seed(0)
    for source in (
        torch.randn(33, 5, generator=random),
        torch.randn(5, 33, generator=random).T,
        torch.randint(-128, 128, (41,), dtype=torch.int8),
        torch.zeros(0, 4),
        torch.tensor(3.5),
    ):
        copy = staging.copy(source)
        assert copy.dtype == source.dtype and copy.is_contiguous() and torch.equal(copy, source)
