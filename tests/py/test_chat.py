"""Chat: two histories, the tokenizer's own template, one BOS."""

import gemloupe as gl
import numpy as np
import pytest
from gemloupe.errors import Refusal

OPTIONS = {"max_new_tokens": 6, "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def edit(tiny3):
    name = next(a.feature for a in tiny3.read("The cat sat on the mat.").top(40, site="res.2") if a.maximum > 0)
    assert not np.isnan(tiny3.engine.maxima(name.site)[name.index])
    return gl.clamp(name, 5)


def messages(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]


def test_both_histories_are_kept(tiny3, edit):
    chat = tiny3.chat(edit, **OPTIONS)
    first = chat.say("The cat sat.")
    second = chat.say("And then?")
    assert (first.said, second.said) == ("The cat sat.", "And then?")
    assert first.default.text != first.steered.text, "choose another seed"
    for one, two, edits in ((first.default, second.default, ()), (first.steered, second.steered, (edit,))):
        history = messages("The cat sat.", one.text, "And then?")
        alone = tiny3.generate(history, edits, **OPTIONS)
        assert two.tokens == alone.tokens and two.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert two.edits == edits
        ids = [token.id for token in two.prompt]
        assert ids == tiny3.engine.loaded.tokenizer.apply_chat_template(
            history, add_generation_prompt=True, return_dict=False
        )
        assert ids.count(tiny3.engine.loaded.bos) == 1
    assert [m["role"] for m in chat.default] == ["user", "assistant"] * 2
    assert chat.default[1]["content"] == first.default.text and chat.steered[1]["content"] == first.steered.text


def test_the_first_answers_are_one_batch(tiny3, edit, monkeypatch):
    asked = []
    generate = tiny3.engine.generate
    monkeypatch.setattr(tiny3.engine, "generate", lambda request: asked.append(request.rows) or generate(request))
    chat = tiny3.chat(edit, **OPTIONS)
    chat.say("The cat sat.")
    chat.say("And then?")
    assert asked == [((), (edit,)), ((),), ((edit,),)]


def test_a_turn_that_fails_leaves_the_histories(tiny3, edit):
    chat = tiny3.chat(edit, **OPTIONS)
    chat.say("The cat sat.")
    before = chat.default, chat.steered
    with pytest.raises(Refusal) as caught:
        chat.say("x " * 400)
    assert caught.value.code == "text-too-long"
    assert (chat.default, chat.steered) == before


def test_a_model_without_a_template_has_no_chat(builtin):
    with pytest.raises(Refusal) as caught:
        builtin.chat().say("Hi")
    assert caught.value.code == "chat-without-template"
