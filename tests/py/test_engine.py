"""What every engine must do, written against the `Engine` protocol only; and below, what only the local one does.

To hold another engine to the first part, add its name to ENGINES and a branch to `engine`.
"""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import gemloupe
import numpy as np
import pytest
import torch
from conftest import NEVER_FIRES, SCOPE_WIDTH, UNKNOWN
from gemloupe.engine.job import ThreadJob, Worker
from gemloupe.engine.local import LocalEngine
from gemloupe.engine.protocol import (
    TERMINAL,
    Cancelled,
    Description,
    Engine,
    Failed,
    GenerateRequest,
    Generation,
    Job,
    NewToken,
    Progress,
    ReadRequest,
    Value,
)
from gemloupe.feature import FeatureId
from gemloupe.site import Site
from gemloupe.trace import Trace
from refusal import refused

ENGINES = ["local-gemma2", "local-gemma3"]
TEXT = "The City of Light is Paris, and the cat sat on the mat."
LONG = "The cat sat on the mat. " * 25
SOON = 20  # seconds; nothing here takes one


class Maker:
    """Makes engines, and can hold the model that they run, wherever it runs."""

    def __init__(self, model, make):
        self._model, self._make = model, make

    def __call__(self):
        return self._make()

    @contextmanager
    def held(self):
        """While open, every forward pass waits in its second layer. Yields (a pass waits, let go): two events."""
        waits, go = threading.Event(), threading.Event()
        layer = self._model.model.layers[1]
        handle = layer.register_forward_pre_hook(lambda *_: (waits.set(), go.wait(SOON))[:0] or None)
        try:
            yield waits, go
        finally:
            go.set()
            handle.remove()


@pytest.fixture(scope="session", params=ENGINES)
def make_engine(request, tiny_folders):
    """Makes engines of one kind: a tiny instruction-tuned model with a scope (`conftest.tiny_scope`)."""
    where, _, kind = request.param.partition("-")
    assert where == "local"
    from gemloupe.load.model import load_model
    from gemloupe.load.scope import Scope

    model, scope = tiny_folders[kind]
    loaded = load_model(model, device="cpu")
    # chunks so small that every text has several checkpoints and a cache
    return Maker(loaded.model, lambda: LocalEngine(loaded, Scope.open(scope), chunk=8))


@pytest.fixture(scope="session")
def shared(make_engine):
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture
def engine(shared):
    """An engine that must work after the test as it did before."""
    yield shared
    assert isinstance(shared.read(ReadRequest("after")).result(SOON), Trace)


@pytest.fixture
def blocked(engine, make_engine):
    """A context in which the engine is in the middle of a request; leaving cancels that."""

    @contextmanager
    def context():
        with make_engine.held() as (waits, go):
            job = engine.generate(GenerateRequest("The cat", 100))
            assert waits.wait(SOON)
            yield job
            job.cancel()
            go.set()
            assert isinstance(ends(job)[-1], Cancelled)

    return context


def ends(job):
    """All events of a job, checked: exactly one is terminal, and it is the last."""
    events = list(job.events())
    assert [isinstance(event, TERMINAL) for event in events] == [False] * (len(events) - 1) + [True]
    assert job.done
    return events


# ---- every engine


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)
    job = engine.read(ReadRequest(TEXT))
    assert isinstance(job, Job)
    job.result(SOON)


def test_it_says_what_it_holds(engine):
    about = engine.describe()
    assert isinstance(about, Description)
    assert about.device == "cpu" and about.dtype == "float32" and about.context == 256
    assert list(map(str, about.widths)) == ["res.0", "att.1", "mlp.1", "transcoder.2", "res.2"]
    assert set(about.widths.values()) == {SCOPE_WIDTH}


def test_a_reading_is_plain_values(engine):
    trace = engine.read(ReadRequest(TEXT, guesses=3)).result(SOON)
    assert trace.text == TEXT
    assert list(trace.acts) == list(engine.describe().widths)
    for site, acts in trace.acts.items():
        assert acts.shape == (len(trace), SCOPE_WIDTH)
        assert acts.l0[0] == 0 and acts.l0[1:].min() > 0  # BOS is masked, the rest is not
        assert isinstance(acts.values, np.ndarray) and acts.checked()
        np.testing.assert_array_equal(trace.maxima[site], engine.maxima(site))
    assert len(trace.guesses) == len(trace)
    for guess in trace.guesses:
        shares = [one.probability for one in guess]
        assert len(guess) == 3 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    assert trace.about["model"] == engine.describe().model


def test_asking_for_some_sites_reads_those(engine):
    every = engine.read(ReadRequest(TEXT)).result(SOON)
    some = engine.read(ReadRequest(TEXT, (Site("res", 0), Site("mlp", 1)))).result(SOON)
    assert list(map(str, some.acts)) == ["res.0", "mlp.1"]
    for site in some.acts:
        np.testing.assert_array_equal(some.acts[site].to_dense(), every.acts[site].to_dense())
    assert engine.read(ReadRequest(TEXT, ())).result(SOON).acts == {}
    assert some.guesses is None


def test_the_same_request_gives_the_same_reading(engine):
    one, two = (engine.read(ReadRequest(TEXT, guesses=2)).result(SOON) for _ in range(2))
    assert one.guesses == two.guesses and one.tokens == two.tokens
    for site in one.acts:
        np.testing.assert_array_equal(one.acts[site].to_dense(), two.acts[site].to_dense())


def test_facts_are_in_the_order_asked_for(engine):
    names = tuple(FeatureId.of(f"res.2/{index}") for index in (3, 0, NEVER_FIRES, UNKNOWN, SCOPE_WIDTH - 1))
    facts = engine.facts(names)
    assert tuple(one.feature for one in facts) == names
    maxima = engine.maxima(Site("res", 2))
    assert maxima.shape == (SCOPE_WIDTH,) and maxima.dtype == np.float32
    assert np.flatnonzero(np.isnan(maxima)).tolist() == [NEVER_FIRES, UNKNOWN]  # 0 is not a maximum
    assert facts[0].maximum == pytest.approx(maxima[3]) and facts[1].maximum == pytest.approx(maxima[0])
    assert facts[3].maximum is None and facts[0].density is not None
    assert len(facts[0].promotes) == len(facts[0].suppresses) == 10
    assert all(isinstance(text, str) and text for text, _ in facts[0].promotes)
    logits = [logit for _, logit in facts[0].promotes]
    assert logits == sorted(logits, reverse=True)
    assert engine.facts(()) == ()


def test_what_is_not_known_is_none(engine):
    (facts,) = engine.facts((FeatureId.of("mlp.1/0"),))  # this site has no statistics
    assert (facts.maximum, facts.density, facts.mean_active, facts.promotes) == (None, None, None, ())
    assert np.isnan(engine.maxima(Site("mlp", 1))).all()


def test_facts_of_what_is_not_there_are_refused(engine):
    assert f"0 to {SCOPE_WIDTH - 1}" in refused(
        "feature-out-of-range", lambda: engine.facts((FeatureId.of(f"res.2/{SCOPE_WIDTH}"),))
    )
    refused("site-not-open", lambda: engine.facts((FeatureId.of("res.3/0"),)))
    refused("site-not-open", lambda: engine.maxima(Site("res", 3)))


def test_generation_streams_what_it_returns(engine):
    job = engine.generate(GenerateRequest("The cat", 12))
    events = ends(job)
    new = [event for event in events if isinstance(event, NewToken)]
    (value,) = events[-1].value
    assert isinstance(value, Generation) and job.result()[0] is value
    assert [event.index for event in new] == list(range(len(new)))
    assert [event.id for event in new] == [token.id for token in value.tokens]
    assert [event.logprob for event in new] == list(value.logprobs)
    assert all(share <= 0 for share in value.logprobs)
    assert 1 <= len(new) <= 12
    assert "".join(token.text for token in value.prompt) == "<bos>The cat"


def test_generation_keeps_the_prompt_as_typed(engine):
    (value,) = engine.generate(GenerateRequest("a ▁ b", 2)).result(SOON)
    assert b"".join(token.bytes for token in value.prompt).decode() == "a ▁ b"
    end = len("a ▁ b")
    assert value.tokens[0].special or value.tokens[0].start >= end - 1


def test_generation_is_repeatable_by_seed(engine):
    def text(**options):
        return engine.generate(GenerateRequest("The", 16, **options)).result(SOON)[0].tokens

    assert text() == text(seed=5)  # temperature 0: no chance in it
    assert text(temperature=1e-12) == text()
    assert text(temperature=1.0, seed=1) == text(temperature=1.0, seed=1)
    assert len({text(temperature=1.0, seed=seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        *[({"max_new_tokens": bad}, "count-unreadable") for bad in (0, -1, 1.5, True, "3", None, float("nan"))],
        *[({"seed": bad}, "count-unreadable") for bad in (-1, 1.5, True, None, 2**70)],
        *[
            ({"temperature": bad}, "temperature-unreadable")
            for bad in (-1, float("nan"), float("inf"), "1", None, True, 10**400)
        ],
        ({"max_new_tokens": 10**9}, "text-too-long"),
        ({"given": ""}, "text-empty"),
        ({"given": 3}, "text-not-text"),
    ],
)
def test_bad_generations_are_refused_at_once(engine, blocked, options, code):
    with blocked():  # also while another request runs: a refusal does not wait for it
        refused(code, lambda: engine.generate(GenerateRequest(**{"given": "The"} | options)))


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ReadRequest(""), "text-empty"),
        (ReadRequest(3), "text-not-text"),
        (ReadRequest(TEXT, (Site("res", 3),)), "site-not-open"),
        *[(ReadRequest(TEXT, guesses=bad), "count-unreadable") for bad in (-1, True, 1.5, "3", None)],
    ],
)
def test_bad_readings_are_refused_at_once(engine, blocked, request_, code):
    with blocked():
        refused(code, lambda: engine.read(request_))


def test_more_guesses_than_words_are_all_words(engine):
    trace = engine.read(ReadRequest("The", guesses=10**9)).result(SOON)
    assert {len(guess) for guess in trace.guesses} == {512}


def test_any_temperature_that_is_a_number_works(engine):
    for temperature in (1e-300, 5e-324, 1e30, 1e300, np.float32(0.5), 1):
        assert engine.generate(GenerateRequest("The", 2, temperature)).result(SOON)[0].tokens


# events


def test_a_reading_ends_once(engine):
    job = engine.read(ReadRequest(LONG))
    events = ends(job)
    shares = [event.share for event in events[:-1]]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert isinstance(events[-1], Value) and job.result(0) is events[-1].value
    assert list(job.events()) == [events[-1]]  # asked again: the end, and no wait


def test_requests_run_in_the_order_they_were_made(engine, blocked):
    with blocked():
        jobs = [engine.read(ReadRequest(f"{n} {TEXT}")) for n in range(5)]
        assert not any(job.done for job in jobs)
    for n, job in enumerate(jobs):
        assert job.result(SOON).text.startswith(str(n))
        assert all(earlier.done for earlier in jobs[:n])


def test_a_timeout_says_so_and_the_request_goes_on(engine, blocked):
    with blocked():
        job = engine.read(ReadRequest(TEXT))
        with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
            job.result(0.01)
        assert not job.done
    assert job.result(SOON).text == TEXT


# cancelling


def cancelled(job):
    assert isinstance(ends(job)[-1], Cancelled)
    refused("cancelled", lambda: job.result(SOON))


def test_cancelled_before_it_starts(engine, blocked):
    with blocked():
        job = engine.read(ReadRequest(TEXT))
        job.cancel()
        job.cancel()
    cancelled(job)
    assert len(list(job.events())) == 1  # it never began


def test_cancelled_while_it_generates(engine):
    job = engine.generate(GenerateRequest("The cat", 200))
    stream = job.events()
    assert isinstance(next(stream), NewToken)
    job.cancel()
    assert isinstance(list(stream)[-1], (Cancelled, Value))  # which one, the scheduler decides; below, it cannot


@pytest.mark.parametrize("kind", ["read", "generate"])
def test_cancelled_in_the_middle(engine, make_engine, kind):
    request = {"read": ReadRequest(LONG), "generate": GenerateRequest("The cat", 100)}[kind]
    with make_engine.held() as (waits, go):
        job = getattr(engine, kind)(request)
        assert waits.wait(SOON)
        job.cancel()
        assert not job.done
        go.set()
        cancelled(job)


def test_cancelled_after_the_end_changes_nothing(engine):
    job = engine.read(ReadRequest(TEXT))
    value = job.result(SOON)
    job.cancel()
    assert job.done and job.result(SOON) is value
    assert [type(event) for event in ends(job)][-1] is Value


def test_cancelled_from_other_threads(engine, make_engine):
    with make_engine.held() as (waits, go):
        job = engine.generate(GenerateRequest("The cat", 100))
        assert waits.wait(SOON)
        threads = [threading.Thread(target=job.cancel) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        go.set()
        refused("cancelled", lambda: job.result(SOON))
        cancelled(job)


def test_a_cancelled_request_does_not_hurt_its_neighbours(engine):
    expected = engine.read(ReadRequest(TEXT, guesses=2)).result(SOON)
    jobs = [engine.read(ReadRequest(TEXT, guesses=2)) for _ in range(6)]
    for job in jobs[::2]:
        job.cancel()
    for job in jobs[1::2]:
        trace = job.result(SOON)
        assert trace.guesses == expected.guesses
        for site in trace.acts:
            np.testing.assert_array_equal(trace.acts[site].to_dense(), expected.acts[site].to_dense())


# several at once


def test_requests_from_several_threads_get_their_own_answers(engine):
    texts = [f"{n} apples and {n * 7} fish" for n in range(4)]
    expected = {text: engine.read(ReadRequest(text)).result(SOON) for text in texts}
    wrong, done = [], []

    def work(text):
        for _ in range(5):
            trace = engine.read(ReadRequest(text)).result(SOON)
            same = all(
                np.array_equal(trace.acts[site].to_dense(), expected[text].acts[site].to_dense()) for site in trace.acts
            )
            if trace.text != text or not same:
                wrong.append(text)
            done.append(text)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and len(done) == 20


# closing


def test_closing_cancels_and_refuses(make_engine):
    engine = make_engine()
    with make_engine.held() as (waits, go):
        running = engine.generate(GenerateRequest("The cat", 100))
        waiting = [engine.read(ReadRequest(TEXT)) for _ in range(3)]
        assert waits.wait(SOON)
        threading.Timer(0.2, go.set).start()
        engine.close()
    for job in (running, *waiting):
        assert job.done
        refused("cancelled", lambda job=job: job.result(SOON))
    engine.close()
    for call in (
        engine.describe,
        lambda: engine.read(ReadRequest(TEXT)),
        lambda: engine.generate(GenerateRequest(TEXT)),
        lambda: engine.facts((FeatureId.of("res.2/0"),)),
        lambda: engine.maxima(Site("res", 2)),
    ):
        refused("engine-closed", call)


def test_closing_an_engine_that_did_nothing(make_engine):
    make_engine().close()


def test_what_was_read_stays_after_closing(make_engine):
    engine = make_engine()
    job = engine.read(ReadRequest(TEXT))
    trace = job.result(SOON)
    engine.close()
    assert job.result(SOON) is trace and trace.top(3)


# ---- the local engine


@pytest.fixture
def local(engine):
    if not isinstance(engine, LocalEngine):
        pytest.skip("about the engine in this process")
    return engine


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def digest(model):
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def test_an_error_in_one_request_does_not_hurt_the_next(local, monkeypatch):
    def broken(site):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(local, "sae", broken)
        job = local.read(ReadRequest(TEXT))
        last = ends(job)[-1]
    assert isinstance(last, Failed) and isinstance(last.error, OSError)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            job.result(SOON)
    assert hooks(local.loaded.model) == 0
    assert local.read(ReadRequest(TEXT)).result(SOON).top(1)


def test_reading_leaves_no_trace_in_the_model(local, make_engine):
    model = local.loaded.model
    before = digest(model)
    local.read(ReadRequest(LONG, guesses=2)).result(SOON)
    local.generate(GenerateRequest("The", 8)).result(SOON)
    with make_engine.held() as (waits, go):
        job = local.read(ReadRequest(LONG))
        assert waits.wait(SOON)
        job.cancel()
        go.set()
        cancelled(job)
    assert hooks(model) == 0
    assert digest(model) == before
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_hooks_of_others_stay(local):
    seen = []
    handle = local.loaded.model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    try:
        local.read(ReadRequest("The cat")).result(SOON)
        assert seen and hooks(local.loaded.model) == 1
    finally:
        handle.remove()


def test_a_hook_that_cannot_fire_is_an_error(local, monkeypatch):
    """Another library that replaces a module must not turn into zeros."""
    layer = local.loaded.model.model.layers[0]
    monkeypatch.setattr(layer, "_call_impl", layer.forward)  # runs, and calls no hook
    monkeypatch.setattr(type(layer), "__call__", lambda self, *a, **k: self.forward(*a, **k))
    refused("hook-silent", lambda: local.read(ReadRequest("The cat")).result(SOON))
    assert hooks(local.loaded.model) == 0


def test_activations_that_are_not_finite_are_an_error(local):
    weights = local.loaded.model.model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        kept = weights[0, 0].item()
        weights[0, 0] = float("nan")
        try:
            message = refused("not-finite", lambda: local.read(ReadRequest("The cat")).result(SOON))
        finally:
            weights[0, 0] = kept
    assert "res.2" in message


@pytest.mark.parametrize("grad", [True, False])
def test_the_callers_grad_mode_is_the_callers(local, grad):
    with torch.set_grad_enabled(grad):
        local.read(ReadRequest(TEXT)).result(SOON)
        for _ in local.generate(GenerateRequest("The", 3)).events():
            assert torch.is_grad_enabled() is grad and not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled() is grad
        assert (torch.ones(1, requires_grad=True) * 2).requires_grad is grad


def test_other_settings_of_torch_stay(local):
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state())
    local.generate(GenerateRequest("The", 4, 1.0, 3)).result(SOON)
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[:2]
    assert torch.equal(torch.random.get_rng_state(), before[2])  # the user's own randomness is not touched


def test_work_runs_in_the_callers_context():
    """So that what a request prints lands in the cell that asked."""
    import contextvars

    cell = contextvars.ContextVar("cell", default="none")
    worker = Worker("test")
    jobs = []
    for name in ("first", "second"):
        cell.set(name)
        jobs.append(worker.submit(ThreadJob(lambda job: (cell.get(), threading.current_thread().name))))
    assert [job.result(SOON) for job in jobs] == [("first", "test"), ("second", "test")]
    worker.close()


def test_listeners_hear_the_end_and_cannot_break_the_worker():
    worker, heard = Worker("test"), []

    def listen(event):
        heard.append(event)
        raise ValueError("a listener's own fault")

    go = threading.Event()
    job = worker.submit(ThreadJob(lambda job: go.wait(SOON)))
    job.when_done(listen)
    go.set()
    assert job.result(SOON) is True
    assert worker.submit(ThreadJob(lambda job: 7)).result(SOON) == 7  # the thread lives
    assert heard == [Value(True)]
    job.when_done(heard.append)  # after the end: at once
    assert heard == [Value(True)] * 2
    worker.close()


def test_nothing_is_published_after_the_end():
    worker = Worker("test")
    job = worker.submit(ThreadJob(lambda job: 1))
    job.result(SOON)
    job.emit(Progress(0.5))
    job.emit(Failed(ValueError()))
    assert list(job.events()) == [Value(1)] and job.result() == 1
    worker.close()


def test_no_except_in_the_work_swallows_a_cancellation():
    worker, started = Worker("test"), threading.Event()

    def work(job):
        while True:
            try:
                started.set()
                time.sleep(0.001)
                job.checkpoint()
            except Exception:
                pass

    job = worker.submit(ThreadJob(work))
    started.wait(SOON)
    job.cancel()
    refused("cancelled", lambda: job.result(SOON))
    worker.close()


def test_a_worker_that_is_closed_from_its_own_thread_does_not_wait_for_itself():
    worker = Worker("test")
    job = worker.submit(ThreadJob(lambda job: worker.close()))
    assert job.result(SOON) is None
    refused("engine-closed", lambda: worker.submit(ThreadJob(lambda job: 1)))


def test_an_engine_refuses_a_scope_of_another_model(tiny_folders):
    from gemloupe.load.model import load_model
    from gemloupe.load.scope import Scope

    loaded = load_model(tiny_folders["gemma2"][0], device="cpu")
    message = refused("scope-other-model", lambda: LocalEngine(loaded, Scope.open(tiny_folders["gemma3"][1])))
    assert "gemma2" in message and "gemma3" in message


def test_without_a_scope_texts_are_read_without_features(tiny_folders):
    import gemloupe as gl

    with gl.open(tiny_folders["gemma3"][0], device="cpu") as loupe:
        assert loupe.sites == () and "texts only" in repr(loupe)
        trace = loupe.read(TEXT, guesses=2)
        assert trace.sites == () and trace.text == TEXT and len(trace.guesses[0]) == 2
        refused("site-not-open", lambda: loupe.read(TEXT, sites=["res.0"]))
        refused("site-not-open", lambda: loupe.feature("res.0/0"))
        refused("site-not-open", lambda: loupe.sae("res.0"))


# ---- Ctrl-C

INTERRUPTED = """
    import os, signal, sys, threading, time
    import gemloupe as gl

    loupe = gl.open(sys.argv[1], scope=sys.argv[2], device="cpu")
    from gemloupe.engine.local import LocalEngine
    loupe.engine = LocalEngine(loupe.engine.loaded, loupe.engine.scope, chunk=4)
    loupe.read("warm up")
    model = loupe.engine.loaded.model
    layer, begun = model.model.layers[1], threading.Event()
    slow = layer.register_forward_hook(lambda *_: (begun.set(), time.sleep(0.05))[0])

    def interrupt():
        begun.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    for call in (lambda: loupe.read("The cat sat. " * 40), lambda: loupe.generate("The", max_new_tokens=200)):
        begun.clear()
        threading.Thread(target=interrupt).start()
        started = time.monotonic()
        try:
            call()
        except KeyboardInterrupt:
            took = time.monotonic() - started
        else:
            sys.exit("it was not interrupted")
        print(f"stopped after {took:.2f} s")
        assert took < 2.5, took
        left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        assert left == 1, f"{left - 1} hooks are left"
    slow.remove()
    assert loupe.read("The cat").top(1)
    assert loupe.generate("The", max_new_tokens=2).tokens
    loupe.close()
    print("usable")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_stops_the_request_and_the_loupe_stays_usable(tiny_folders):
    model, scope = tiny_folders["gemma3"]
    environment = os.environ | {"PYTHONPATH": str(Path(gemloupe.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(model), str(scope)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("stopped after") == 2 and out.endswith("usable\n")
