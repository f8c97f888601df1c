"""Words of a text, as a search knows them: of scripts that write no spaces, every pair of neighbouring characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Scripts whose words are not set apart: Thai to Burmese, Khmer, kana, Han, Hangul (whose endings join the word).
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(r"[^\W_]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")


def plain(text: str) -> str:
    """`text` in small letters without accents and compatibility forms, so that 'Café' and 'cafe' are the same."""
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", text.casefold())
    marks = "".join(c for c in apart if not (unicodedata.category(c) == "Mn" and ord(c) < 0x0E00))
    return unicodedata.normalize("NFC", marks)


def runs(plain_text: str) -> Iterator[tuple[str, bool]]:
    """(run, unspaced) of each word, or run of characters without spaces, of a plain text, in order."""
    if plain_text.isascii():
        for word in _ASCII_WORD.findall(plain_text):
            yield word, False
        return
    for word in _WORD.findall(_marks_joined(plain_text)):
        for run in _RUN.findall(word):
            yield run, _UNSPACED_RUN.match(run) is not None


def _marks_joined(text: str) -> str:
    """Vowel signs are no word characters to a regular expression, and would cut Thai and Burmese words apart."""
    return "".join("" if unicodedata.category(c) in ("Mn", "Mc") else c for c in text)


def grams(run: str) -> list[str]:
    """The terms of a run without spaces: its pairs of neighbours, or the character itself if it is alone."""
    return [run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]


def indexed(text: str) -> tuple[str, set[str]]:
    """What the full-text index is given for `text`: terms with spaces between, and its words of spaced scripts."""
    simple = plain(text)
    if simple.isascii():
        words = _ASCII_WORD.findall(simple)
        return " ".join(words), set(words)
    terms: list[str] = []
    spaced = set()
    for run, unspaced in runs(simple):
        if unspaced:
            terms += grams(run)
            if len(run) > 1:
                terms += run  # so that one character is found inside a longer run as well
        else:
            terms.append(run)
            spaced.add(run)
    return " ".join(terms), spaced
