"""The pass over a prompt begun in the middle: bit for bit what a whole pass gives, and never of another prompt."""

import threading

import gemloupe as gl
import pytest
import torch
from gemloupe.engine.protocol import GenerateRequest
from gemloupe.run import prefix
from test_steer import TEXT, strong
from test_steer import run as generated


@pytest.fixture
def passed(tiny_loupe):
    """How many layers are run on a prompt in each run, in a list that grows; nothing is known at the beginning."""
    prefix._last.clear()
    counts = []
    model = tiny_loupe.engine.loaded.model
    read = prefix.HuggingFace.feed

    def feed(self, ids, taps):
        counts.append(sum("forward" not in vars(layer) for layer in model.model.layers))
        return read(self, ids, taps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix.HuggingFace, "feed", feed)
        yield counts
    prefix._last.clear()


def fresh(loupe, **options):
    prefix._last.clear()
    return generated(loupe, **options)


def test_a_moved_slider_runs_what_comes_after_it(tiny_loupe, passed):
    name = strong(tiny_loupe, "res.2", most=1)[0]
    rows = [((), (gl.clamp(name, strength),)) for strength in (1, 2, -1)]
    made = [generated(tiny_loupe, rows=one, max_new_tokens=20, temperature=1.0, seed=2) for one in rows]
    assert passed == [4, 2, 2]
    for one, known in zip(rows, made, strict=True):
        for left, right in zip(
            fresh(tiny_loupe, rows=one, max_new_tokens=20, temperature=1.0, seed=2), known, strict=True
        ):
            assert left.tokens == right.tokens and left.logprobs == right.logprobs  # to the last bit
            assert [list(e.norm) for e in left.effects] == [list(e.norm) for e in right.effects]


def test_an_edit_before_what_is_known_runs_more_and_one_after_extends_it(tiny_loupe, passed):
    early, late = strong(tiny_loupe, "res.0", most=1)[0], strong(tiny_loupe, "res.2", most=1)[0]
    middle = strong(tiny_loupe, "att.1", most=1)[0]
    order = (middle, middle, late, late, early, late, middle)
    made = [generated(tiny_loupe, [gl.clamp(name, 2)], max_new_tokens=6) for name in order]
    assert passed == [4, 3, 3, 2, 4, 2, 3]
    for name, known in zip(order, made, strict=True):
        assert fresh(tiny_loupe, edits=[gl.clamp(name, 2)], max_new_tokens=6).logprobs == known.logprobs


def test_a_condition_counts_where_it_is_read(tiny_loupe, passed):
    early, late = strong(tiny_loupe, "res.0", most=1)[0], strong(tiny_loupe, "res.2", most=1)[0]
    for _ in range(2):
        generated(tiny_loupe, [gl.clamp(late, 1)], max_new_tokens=2)
    made = generated(tiny_loupe, [gl.clamp(late, 1, when=gl.when(early))], max_new_tokens=2)
    assert passed == [4, 2, 4] and made.effects[0].fired.any()


def test_nothing_is_kept_of_another_prompt_or_number_of_rows(tiny_loupe, passed):
    edit = (gl.clamp(strong(tiny_loupe, "res.2", most=1)[0], 1),)
    for text, rows in ((TEXT, (edit,)), (TEXT[:-1], (edit,)), (TEXT, (edit,)), (TEXT, ((), edit)), (TEXT, (edit,))):
        generated(tiny_loupe, text=text, rows=rows, max_new_tokens=2)
    assert passed == [4] * 5


def test_changed_weights_and_other_peoples_hooks_are_seen(tiny_loupe, passed):
    edits, model = [gl.clamp(strong(tiny_loupe, "res.2", most=1)[0], 1)], tiny_loupe.engine.loaded.model
    before = generated(tiny_loupe, edits, max_new_tokens=4)
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight *= 2
    try:
        changed = generated(tiny_loupe, edits, max_new_tokens=4)
        assert changed.logprobs != before.logprobs
        assert changed.logprobs == fresh(tiny_loupe, edits=edits, max_new_tokens=4).logprobs
    finally:
        with torch.no_grad():
            weight /= 2
    seen = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    try:
        assert generated(tiny_loupe, edits, max_new_tokens=4).logprobs == pytest.approx(before.logprobs, abs=1e-5)
    finally:
        handle.remove()
    assert len(seen) == 4
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_a_run_that_is_stopped_keeps_nothing_half_done(tiny_loupe, passed):
    edits = (gl.clamp(strong(tiny_loupe, "res.2", most=1)[0], 1),)

    def fails(*_):
        raise OSError("the disk is gone")

    sae = tiny_loupe.engine.sae
    job = tiny_loupe.engine.generate(GenerateRequest(TEXT, 4, rows=(edits,), sites=None))
    job.result(30)  # what is recorded at the first layer needs all of them
    tiny_loupe.engine.sae = fails
    try:
        with pytest.raises(OSError, match="disk"):
            generated(tiny_loupe, edits, max_new_tokens=4)
    finally:
        tiny_loupe.engine.sae = sae
    generated(tiny_loupe, edits, max_new_tokens=4)
    assert passed == [4, 4]


def test_a_pass_of_another_thread_is_its_own(tiny_loupe, passed):
    """A cell that uses the model while a desk streams gets neither edits nor kept states."""
    name = strong(tiny_loupe, "res.2", most=1)[0]
    model, ids = tiny_loupe.engine.loaded.model, torch.tensor([[2, 300, 301, 302]])
    with torch.inference_mode():
        plain = model(ids, use_cache=False).logits
    generated(tiny_loupe, [gl.clamp(name, 4)], max_new_tokens=2)
    inside, theirs = [], []
    layer = type(model.model.layers[3])
    forward = layer.forward

    def beside(self, *args, **named):
        """In the middle of the worker's pass, another thread's."""
        if self is model.model.layers[3] and not inside:
            inside.append(1)
            other = threading.Thread(target=lambda: theirs.append(model(ids, use_cache=False).logits.detach()))
            other.start()
            other.join(30)
        return forward(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "forward", beside)
        made = generated(tiny_loupe, [gl.clamp(name, 4)], max_new_tokens=2)
    assert passed == [4, 2] and made.effects[0].fired.any()
    assert torch.equal(theirs[0], plain)
