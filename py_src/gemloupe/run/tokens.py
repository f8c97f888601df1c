"""Text, token ids or chat messages into tokens with exact bytes and spans; refuses what cannot be read."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import refuse
from ..feature import whole
from ..trace import Token, join_bytes

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space inside a token
# How special tokens in the text are read is a setting of the tokenizer that every call writes.
_tokenizing = threading.Lock()


def tokenize(
    tokenizer: Any, given: Any, *, special: Collection[int], bos: int, context: int, vocabulary: int, model: str = ""
) -> tuple[Token, ...]:
    """Tokens of `given`, beginning with BOS.

    `given` is text (special tokens typed in it are read as ordinary characters), a list of token ids (taken as
    they are; BOS is put first if it is missing), or a list of chat messages (through the tokenizer's own
    template). Refuses what is empty, longer than `context`, outside the vocabulary, or only special tokens.
    """
    if isinstance(given, str):
        ids = text_ids(tokenizer, given)
    elif isinstance(given, Mapping) or not _listlike(given):
        raise refuse("text-not-text", type=type(given).__name__)
    elif len(given) and isinstance(given[0], Mapping):
        ids = _chat_ids(tokenizer, given, model)
    else:
        ids = [_token_id(one, position, vocabulary) for position, one in enumerate(given)]
    if not ids or ids[0] != bos:
        ids = [bos, *ids]
    if len(given) == 0:
        raise refuse("text-empty")
    if len(ids) > context:
        over = len(ids) - context
        raise refuse("text-too-long", tokens=len(ids), limit=context, over=over, s="" if over == 1 else "s")
    names = tokenizer.convert_ids_to_tokens(ids)
    if all(ident in special for ident in ids):
        raise refuse("text-only-special", count=len(ids), names=", ".join(dict.fromkeys(names)))
    pieces = [(i, _bytes(name), i in special, name) for i, name in zip(ids, names, strict=True)]
    return join_bytes(_spaces_as_written(pieces, given) if isinstance(given, str) else pieces)


def token_text(tokenizer: Any, ident: int) -> str:
    """A vocabulary entry as text; pieces of characters as ⟨F0⟩."""
    raw = _bytes(tokenizer.convert_ids_to_tokens(int(ident)))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02X}⟩" for byte in raw)


def token_bytes(tokenizer: Any, ident: int) -> bytes:
    """The exact bytes of a vocabulary entry."""
    return _bytes(tokenizer.convert_ids_to_tokens(int(ident)))


def _listlike(given: Any) -> bool:
    if isinstance(given, (bytes, bytearray, memoryview)):
        return False
    return isinstance(given, Sequence) or getattr(given, "ndim", 0) > 0  # numpy's and torch's arrays are no Sequence


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        char = f"U+{ord(text[error.start]):04X}"
        raise refuse("text-surrogate", position=error.start, char=char) from error


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` without BOS; special tokens typed in it are ordinary characters."""
    _check_encodable(text)
    return _ids(tokenizer, text, literal=True)


def _ids(tokenizer: Any, text: str, *, literal: bool) -> list[int]:
    """Ids of `text` as it is; `literal` reads the names of special tokens in it as ordinary characters."""
    with _tokenizing:
        # not verbose: it would warn of texts longer than the model's context, which are refused or cut up
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)
        return list(encoded["input_ids"])


def _chat_ids(tokenizer: Any, messages: Any, model: str) -> list[int]:
    for position, message in enumerate(messages):
        good = isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
        if not good:
            raise refuse("chat-unreadable", position=position, given=message)
    if not getattr(tokenizer, "chat_template", None):
        raise refuse("chat-without-template", model=model or "this model")
    waiting = messages[-1]["role"] == "user"  # the model's turn is next, so its turn is opened

    def rendered(contents: list[str]) -> str:
        said = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=waiting)

    contents = [message["content"] for message in messages]
    for content in contents:
        _check_encodable(content)
    try:
        text = rendered(contents)
    except Exception as error:  # templates refuse in their own words: roles that must alternate, no system role
        raise refuse("chat-refused", model=model or "this model", why=str(error)) from error
    # The template wrote <bos> itself: adding special tokens again would give two and shift every position.
    names = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(name in content for name in names for content in contents):
        return _ids(tokenizer, text, literal=False)
    # A turn marker that somebody typed is no turn marker: only the template's own words are read as special.
    marks = [f"\ue000{index}\ue001" for index in range(len(contents))]
    frame = rendered(marks)
    parts = re.split(r"\ue000(\d+)\ue001", frame)
    typed = {str(index): content for index, content in enumerate(contents)}
    for form in (str.strip, str):  # most templates trim what was said
        pieces = [form(typed[part]) if index % 2 else part for index, part in enumerate(parts)]
        if "".join(pieces) == text:
            return [i for n, piece in enumerate(pieces) for i in _ids(tokenizer, piece, literal=n % 2 == 1)]
    raise refuse("chat-refused", model=model or "this model", why="a message holds the name of a special token")


def _token_id(given: Any, position: int, vocabulary: int) -> int:
    ident = whole(given)
    if ident is None or not 0 <= ident < vocabulary:
        shown = given if isinstance(given, (int, float, str, bool)) else type(given).__name__
        raise refuse("token-id-unknown", given=shown, position=position, last=vocabulary - 1)
    return ident


def _bytes(piece: str | None) -> bytes:
    if piece is None:  # an id inside the embedding matrix that the tokenizer has no entry for
        return b""
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode("utf-8")


def _spaces_as_written(pieces: list[tuple[int, bytes, bool, str]], text: str) -> list[tuple[int, bytes, bool, str]]:
    """A ▁ typed by the user is tokenized as a space; give its own bytes back, so that bytes always equal the text."""
    if _SPACE not in text:
        return pieces
    written, at = text.encode("utf-8"), 0
    mended: list[tuple[int, bytes, bool, str]] = []
    for ident, raw, special, name in pieces:
        if special:
            mended.append((ident, raw, special, name))
            continue
        taken = bytearray()
        for byte in raw:
            mark = _SPACE.encode()
            if byte == 0x20 and written.startswith(mark, at):
                taken += mark
                at += len(mark)
            else:
                taken.append(byte)
                at += 1
        mended.append((ident, bytes(taken), special, name))
    return mended
