"""Every refusal in the table: it says something, is used somewhere, and is the exception it claims to be."""

import pickle
import re
from pathlib import Path
from string import Formatter

import gemloupe
import pytest
from gemloupe.errors import REFUSALS, Refusal, refuse
from gemloupe.site import Site

SOURCE = {
    path: path.read_text(encoding="utf-8")
    for path in Path(gemloupe.__file__).parent.rglob("*.py")
    if path.name != "errors.py"
}


def facts(code):
    """A sample value for every name in a message; strange on purpose."""
    return {name: "a{b}c" for _, name, _, _ in Formatter().parse(REFUSALS[code][1]) if name}


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_speaks(code):
    base, _ = REFUSALS[code]
    error = refuse(code, **facts(code))
    assert isinstance(error, Refusal) and isinstance(error, base)
    assert error.code == code and error.facts == facts(code)
    message = str(error).replace("a{b}c", "")
    assert not re.search(r"{\w+(!r)?}", message), "a value was not filled in"
    assert len(message.split()) > 4, "it says too little"


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_survives_a_pickle(code):
    error = refuse(code, **facts(code))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.code, again.facts, again.args, str(again)) == (code, error.facts, error.args, str(error))


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_is_used(code):
    assert any(f'"{code}"' in text for text in SOURCE.values()), f"no file refuses {code}"


def test_every_refusal_used_is_in_the_table():
    for path, text in SOURCE.items():
        for code in re.findall(r"refuse\(\s*\"([a-z-]+)\"", text):
            assert code in REFUSALS, f"{path.name} refuses {code}, which has no row"


def test_every_call_gives_all_facts():
    """A message whose facts are missing would be shown with its braces."""
    for path, text in SOURCE.items():
        for match in re.finditer(r"refuse\(\s*\"([a-z-]+)\"", text):
            depth, end = 1, match.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                end += 1
            call = text[match.start() : end]
            for wanted in facts(match[1]):
                assert re.search(rf"\b{wanted}=|\*\*", call), f"{path.name}: {call} lacks {wanted}"


def test_a_refused_key_reads_as_a_sentence():
    error = refuse("site-not-open", site=Site("res", 12), open="none")
    assert isinstance(error, KeyError)
    assert str(error) == "Site res.12 is not open. Open here: none. Open more with gl.open(..., scope=...)."


def test_an_unknown_code_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        refuse("no-such-code")
