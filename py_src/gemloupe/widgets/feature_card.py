"""FeatureCard: what a feature means, on one card. The other half is js/widgets/feature-card.ts.

What the index knows is read when a card turns to a feature. What takes the model (the user's own text, an ablation,
passages beyond what the index keeps) runs on threads of the card that live while there is work.
"""

from __future__ import annotations

import html
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import anywidget
import numpy as np
import traitlets

from ..edits import Edit, clamp
from ..engine.protocol import Engine, FeatureFacts, PromoteRequest, ReadRequest, TogetherRequest
from ..errors import Refusal, refuse
from ..evidence import Example, FeatureEvidence
from ..feature import FeatureId, whole
from ..label import Label
from ..study.ablation import EXAMPLES, Ablation, ablation
from ..study.index.layout import BESIDE
from ..study.neighbours import OTHER, OWN, Neighbour
from ..trace import Trace
from ..wire.rpc import Handler
from ..words import here, say
from . import card_wire as wire
from .colour import PALETTES, opacity
from .latest import Latest, Task
from .live import STATIC, LiveWidget, refusing_traits

_log = logging.getLogger(__name__)

CONTEXTS = (5, 10, 20, 50, None)
_TOGETHER = 2  # passages read in one pass: a text that is typed meanwhile does not wait for more
_PICTURED = 10  # examples in the picture without scripts


class Source(Protocol):
    """What a card asks; a `Loupe` is one."""

    engine: Engine

    @property
    def labels(self) -> Any: ...
    @property
    def index_in_use(self) -> Any: ...
    def evidence(self, feature: FeatureId | str, context: int | None = 10) -> FeatureEvidence: ...
    def neighbours(
        self, feature: FeatureId | str, k: int = 10, *, same_site: bool | None = None
    ) -> tuple[Neighbour, ...]: ...
    def kept_neighbours(self, feature: FeatureId, k: int, same_site: bool) -> tuple[Neighbour, ...] | None: ...
    def steer(self, given: Any = "", edits: Any = (), **options: Any) -> Any: ...


class FeatureCard(LiveWidget):
    """What is known of a feature: label, density, histogram, promoted tokens, examples, neighbours, companions.

    `card.feature` may be read and set; `card.next()`, `card.previous()`, `card.random()` and `card.back()` go on from
    there. `card.label`, `card.note` and `card.starred` may be set: they are kept in the loupe's labels. `card.text` is
    your own text, and `card.trace` what was read in it; `card.ablate()` measures what the model loses without the
    feature, `card.ablation` is the result. `card.wait()` waits for both. `card.steer()` opens a desk under the card.
    """

    _esm = STATIC / "feature-card.js"
    _css = STATIC / "feature-card.css"
    _name = "feature-card"

    about = traitlets.Dict().tag(sync=True)
    """Model, scope, device, dtype and a note: the quiet line under the card."""
    shown: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    """The feature and what is known of it at once, as `card_wire.wire_feature` writes it."""
    said: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    """Labels, best first, the user's note and star: {"labels", "note", "starred"}."""
    examples: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    """The strongest examples and those of each interval, as `card_wire.wire_examples` writes them."""
    near: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """The nearest features by decoder cosine, {"state", "error", "own", "others"}; None until they are asked for."""
    more: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    """What is known a moment later: {"feature", "threshold", "names" of other features, "promotes", "suppresses"}."""
    text = traitlets.Unicode("").tag(sync=True)
    """The user's own text."""
    reading: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """The text as it was read: {"text", "feature", "tokens", "acts", "error"}; None without a text."""
    ablated: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """What an ablation measured, as `card_wire.wire_ablation` writes it; None until it is asked for."""
    trail = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Features to go back to, the last one last."""
    context = traitlets.Int(10, allow_none=True).tag(sync=True)
    """Tokens shown on each side of an example's peak; None shows the passage."""
    desk = anywidget.WidgetTrait().tag(sync=True)
    """The SteeringDesk that is open under the card; None without."""
    palette = traitlets.Enum(tuple(PALETTES), "blue").tag(sync=True)
    facts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """None while there is a kernel to ask; the static twin has a dict."""

    def __init__(
        self, source: Source, feature: FeatureId | str, *, text: str | Trace | None = None, **traits: Any
    ) -> None:
        """`text` is marked in the histogram; a `Trace` is not read again."""
        self._source, self._engine = source, source.engine
        self._lock = threading.RLock()
        self._texts, self._work = Latest("gemloupe-card-text"), Latest("gemloupe-card-ablation")
        self._passages, self._near = Latest("gemloupe-card-passages"), Latest("gemloupe-card-neighbours")
        self._trace = text if isinstance(text, Trace) else None
        self._read: dict[int, np.ndarray] = {}
        self._ablations: dict[FeatureId, Ablation] = {}
        self._evidence: FeatureEvidence | None = None
        self._index: Any = None
        described = self._engine.describe()
        self._widths = described.widths
        name = self._within(feature)
        self._feature = name
        context = self._checked_context(traits.pop("context", 10))
        about = {key: getattr(described, key) for key in ("model", "scope", "device", "dtype")} | {"note": ""}
        super().__init__(about=about, context=context, **self._of(name, context), **traits)
        if isinstance(text, Trace):
            text = text.text
        if text is not None:
            self.text = text

    # ---- the feature

    def _within(self, given: FeatureId | str) -> FeatureId:
        name = FeatureId.of(given)
        if name.site not in self._widths:
            raise refuse("site-not-open", site=name.site, open=", ".join(map(str, self._widths)) or "none")
        return name.within(self._widths[name.site])

    def _of(self, name: FeatureId, context: int | None) -> dict[str, Any]:
        """The traits that show a feature."""
        facts, evidence, why = self._engine.facts((name,))[0], None, ""
        try:
            self._index = self._source.index_in_use
            evidence = self._source.evidence(name, context)
        except Refusal as refusal:
            if not refusal.code.startswith("index-"):
                raise
            why = str(refusal)
        self._evidence, self._read = evidence, {}
        measured = self._ablations.get(name)
        own, others = (self._source.kept_neighbours(name, k, same) for k, same in ((OWN, True), (OTHER, False)))
        return {
            "shown": wire.wire_feature(name, self._widths[name.site], facts, evidence, why),
            "said": self._said(name),
            "examples": wire.wire_examples(evidence, context, self._known),
            "near": None if own is None or others is None else wire.wire_near(own, others),
            "more": {},
            "ablated": None if measured is None else wire.wire_ablation(measured, len(measured.followed), "finished"),
        }

    @property
    def feature(self) -> FeatureId:
        """The feature shown. Set it to a feature or its name; `back()` then returns."""
        return self._feature

    @feature.setter
    def feature(self, given: FeatureId | str) -> None:
        self.go(given)

    def go(self, feature: FeatureId | str) -> FeatureCard:
        """Show another feature. Refused: 'feature-unreadable', 'site-not-open', 'feature-out-of-range'."""
        with self._lock:
            name, before = self._within(feature), self._feature
            if name != before:
                self._turn(name, [*self.trail, str(before)])
        return self

    def back(self) -> FeatureCard:
        """Show the feature that was there before the last `go` or `random`, if there is one."""
        with self._lock:
            if self.trail:
                self._turn(FeatureId.of(self.trail[-1]), self.trail[:-1])
        return self

    def next(self) -> FeatureCard:
        """Show the feature with the next number; after the last comes the first."""
        return self._step(1)

    def previous(self) -> FeatureCard:
        """Show the feature with the number before; before the first comes the last."""
        return self._step(-1)

    def _step(self, by: int) -> FeatureCard:
        with self._lock:
            here = self._feature
            width = self._widths[here.site]
            self._turn(FeatureId(here.site, (here.index + by) % width), self.trail)
        return self

    def random(self, seed: int | None = None) -> FeatureCard:
        """Show any other feature of the site, where there is an index one that fires."""
        with self._lock:
            here, index = self._feature, self._source.index_in_use
            among = np.arange(self._widths[here.site])
            if index is not None and here.site in index.sites:
                firing = np.flatnonzero(index.density(here.site) > 0)
                among = firing if len(firing) else among
            others = among[among != here.index]
            if len(others):
                self.go(FeatureId(here.site, int(random.Random(seed).choice(others.tolist()))))
        return self

    def _turn(self, name: FeatureId, trail: list[str]) -> None:
        traits = self._of(name, self.context)
        for work in (self._work, self._passages, self._near):
            work.cancel()
        self._feature = name
        with self.hold_sync():
            self.trail = trail
            for trait, value in traits.items():
                setattr(self, trait, value)
        self._read_text()

    @property
    def evidence(self) -> FeatureEvidence | None:
        """What the index in use knows of the feature; None without an index of its site."""
        return self._evidence

    # ---- what the user says of it

    def _said(self, name: FeatureId) -> dict[str, Any]:
        labels = self._source.labels
        return {
            "labels": [wire.wire_label(label) for label in labels.of(name)],
            "note": labels.note_of(name),
            "starred": name in labels.starred(),
        }

    @property
    def label(self) -> Label | None:
        """The best label there is. Set it to a text to give your own, or to None or '' to take that away."""
        return next(iter(self._source.labels.of(self._feature)), None)

    @label.setter
    def label(self, text: str | None) -> None:
        with self._lock:
            if text is None or (isinstance(text, str) and not text.strip()):
                self._source.labels.remove(self._feature)
            else:
                self._source.labels.set(self._feature, text)
            self.said = self._said(self._feature)

    @property
    def note(self) -> str:
        """Your note on the feature; empty if there is none. May be set."""
        return self._source.labels.note_of(self._feature)

    @note.setter
    def note(self, text: str) -> None:
        with self._lock:
            self._source.labels.note(self._feature, text)
            self.said = self._said(self._feature)

    @property
    def starred(self) -> bool:
        """Whether you starred the feature. May be set."""
        return self._feature in self._source.labels.starred()

    @starred.setter
    def starred(self, on: bool) -> None:
        with self._lock:
            self._source.labels.star(self._feature, bool(on))
            self.said = self._said(self._feature)

    # ---- examples

    @staticmethod
    def _checked_context(given: Any) -> int | None:
        sides = None if given is None else whole(given)
        if given is not None and (sides is None or sides < 0):
            raise refuse("count-unreadable", name="context", given=given, least=0)
        return sides

    @traitlets.validate("context")
    def _check_context(self, proposal: Any) -> int | None:
        with refusing_traits():
            return self._checked_context(proposal["value"])

    @traitlets.observe("context")
    def _context_changed(self, _change: Any) -> None:
        if "_feature" not in vars(self) or not self.shown:  # still being made
            return
        with self._lock:
            if self._evidence is None or self.examples.get("context") == self.context:
                return
            self._evidence = self._index.evidence(self._feature, self.context)
            self._passages.cancel()
            self._show_examples()

    def _show_examples(self) -> None:
        evidence = self._evidence
        if evidence is not None and self._read:
            evidence = replace(
                evidence,
                top=tuple(map(self._filled, evidence.top)),
                intervals=tuple(
                    replace(one, examples=tuple(map(self._filled, one.examples))) for one in evidence.intervals
                ),
            )
        self.examples = wire.wire_examples(evidence, self.context, self._known)

    def _filled(self, example: Example) -> Example:
        """With all activations, if its passage was read meanwhile."""
        acts = self._read.get(example.document)
        if acts is None or example.complete:
            return example
        start = example.position - example.peak
        return replace(example, activations=acts[start : start + len(example.tokens)], complete=True)

    def _known(self, example: Example) -> tuple[int, int] | None:
        """Between which tokens of an example its activations are known; None if they are everywhere."""
        if example.complete:
            return None
        window = int(self._index.manifest["settings"]["window"])
        strongest = self._evidence is not None and any(
            one.document == example.document and one.position == example.position for one in self._evidence.top
        )
        kept = window if strongest else min(window, BESIDE)
        return max(0, example.peak - kept), min(len(example.tokens), example.peak + kept + 1)

    def fill(self, by: str = "strongest") -> None:
        """Read, in the background, the passages of examples that show more tokens than the index keeps activations of.

        `by` is 'strongest' or 'interval'. Of 5 tokens on each side all are kept, of 10 those of the strongest. The
        browser asks for this when it shows such examples; nothing is read for a card that nobody looks at.
        """
        with self._lock:
            evidence, feature, index = self._evidence, self._feature, self._index
        if evidence is None:
            return
        shown = evidence.top if by == "strongest" else [one for part in evidence.intervals for one in part.examples]
        wanted = dict.fromkeys(one.document for one in shown if not one.complete)
        missing = [document for document in wanted if document not in self._read]
        if missing:
            self._passages.submit(Task(lambda task: self._fill_in(task, feature, index, missing)))
        else:
            self._passages.cancel()

    def _fill_in(self, task: Task, feature: FeatureId, index: Any, documents: list[int]) -> None:
        for start in range(0, len(documents), _TOGETHER):
            part = documents[start : start + _TOGETHER]
            passages = tuple(index.passage(document) for document in part)
            if task.cancelled:
                return
            try:
                request = TogetherRequest(passages, (feature.site,))
                acts = task.follow(self._engine.together(request)).result()[feature.site].column(feature.index)
            except Refusal as refusal:
                if refusal.code != "cancelled":
                    _log.warning("passages of %s cannot be read: %s", feature, refusal)
                return
            ends = np.cumsum([len(passage) for passage in passages])
            with self._lock:
                if task.cancelled or self._feature != feature:
                    return
                self._read.update(zip(part, np.split(acts, ends[:-1]), strict=True))
                self._show_examples()

    def _whole(self, document: int, position: int) -> dict[str, Any]:
        """An example as its whole passage, for the browser."""
        with self._lock:
            evidence, feature, index = self._evidence, self._feature, self._index
        every = () if evidence is None else (*evidence.top, *(e for part in evidence.intervals for e in part.examples))
        one = next((one for one in every if (one.document, one.position) == (document, position)), None)
        if one is None:
            raise refuse("example-gone", feature=feature)
        ids = index.passage(document)
        acts = self._read.get(document)
        if acts is None:
            acts = self._engine.read(ReadRequest(tuple(ids.tolist()), (feature.site,))).result()[feature]
            with self._lock:
                if self._feature == feature:
                    self._read[document] = acts
        texts = tuple(index.text(ident) for ident in ids.tolist())
        return wire.wire_example(
            replace(one, tokens=texts, ids=tuple(ids.tolist()), activations=acts, peak=position, complete=True)
        )

    # ---- the user's own text

    @traitlets.observe("text")
    def _text_changed(self, _change: Any) -> None:
        self._read_text()

    def _read_text(self) -> None:
        """Read the text in the background; of several, only the latest is shown."""
        text, feature = self.text, self._feature
        if not text:
            self._texts.cancel()
            self.reading = None
            return
        self._texts.submit(Task(lambda task: self._reread(task, text, feature)))

    def _reread(self, task: Task, text: str, feature: FeatureId) -> None:
        try:
            with self._lock:
                trace = self._trace
            if trace is None or trace.text != text or feature.site not in trace.acts:
                if task.cancelled:
                    return
                trace = task.follow(self._engine.read(ReadRequest(text, (feature.site,)))).result()
            found = wire.wire_reading(text, trace, feature)
        except Refusal as refusal:
            if refusal.code == "cancelled":
                return
            trace, found = None, self._unread(text, feature, str(refusal))
        except Exception as error:  # whatever happened, the box must say it
            _log.exception("reading a card's text failed")
            trace, found = None, self._unread(text, feature, f"{type(error).__name__}: {error}")
        with self._lock:
            if not task.cancelled and (self.text, self._feature) == (text, feature):
                self._trace, self.reading = trace, found

    @staticmethod
    def _unread(text: str, feature: FeatureId, error: str) -> dict[str, Any]:
        return {"text": text, "feature": str(feature), "tokens": [], "acts": [], "error": error}

    @property
    def trace(self) -> Trace | None:
        """What was read in `text`, at the feature's site at least; None without."""
        return self._trace

    # ---- what is known a moment later

    def _complete(self, *, ask: bool = True) -> None:
        """Threshold, names of the features beside this one and, with `ask`, promoted tokens that no file holds."""
        with self._lock:
            feature, shown, near = self._feature, self.shown, self.near
            more = dict(self.more)
        if more.get("feature") != str(feature):
            more = {"feature": str(feature), "threshold": self._engine.threshold(feature), "names": {}}
        missing = [one for one in wire.mentioned(shown, near) if str(one) not in more["names"]]
        missing = [one for one in missing if one.site in self._widths]
        if missing:
            labels = self._source.labels.best(missing)
            facts = self._engine.facts(tuple(missing))
            named = {str(one.feature): wire.wire_name(labels.get(one.feature), one) for one in facts}
            more |= {"names": more["names"] | named}
        if ask and not shown["promotes"] and "promotes" not in more:
            found: FeatureFacts = self._engine.promote(PromoteRequest(feature)).result()
            listed = wire.wire_feature(feature, 0, found, None, "")
            more |= {name: listed[name] for name in ("promotes", "suppresses")}
        with self._lock:
            if self._feature == feature:
                self.more = more

    def compare(self) -> None:
        """Find the nearest features in the background, where no file holds them: reads every open decoder."""
        feature = self._feature
        self.near = {"state": "running", "error": None, "own": [], "others": []}

        def work(task: Task) -> None:
            try:
                found = wire.wire_near(
                    self._source.neighbours(feature, OWN, same_site=True),
                    self._source.neighbours(feature, OTHER, same_site=False),
                )
            except Exception as error:  # the list must say it
                found = {"state": "failed", "error": _said(error), "own": [], "others": []}
            with self._lock:
                if not task.cancelled and self._feature == feature:
                    self.near = found
            self._complete(ask=False)

        self._near.submit(Task(work))

    # ---- what the model loses without it

    def ablate(self) -> None:
        """Measure, in the background, how the loss on the feature's strongest examples changes without it."""
        with self._lock:
            feature, evidence, index = self._feature, self._evidence, self._index
            if evidence is None:
                raise refuse("index-none")
            if self.ablated is not None and self.ablated["state"] == "running":
                return
            self.ablated = wire.wire_ablation(None, min(len(evidence.top), EXAMPLES), "running")
        self._work.submit(Task(lambda task: self._measure(task, feature, evidence, index)))

    def _measure(self, task: Task, feature: FeatureId, evidence: FeatureEvidence, index: Any) -> None:
        so_far: Ablation | None = None
        of = min(len(evidence.top), EXAMPLES)

        def show(found: Ablation | None, state: str, error: str | None = None) -> None:
            with self._lock:
                if self._feature == feature:
                    self.ablated = wire.wire_ablation(found, of, state, error)

        def progress(found: Ablation) -> None:
            nonlocal so_far
            so_far = found
            if not task.cancelled:
                show(found, "running")

        try:
            found = ablation(self._engine, index, evidence, follow=task.follow, progress=progress)
        except Exception as error:  # whatever happened, the card must not stay at work
            if getattr(error, "code", "") == "cancelled" or task.cancelled:
                show(so_far, "stopped")
                return
            show(so_far, "failed", _said(error))
            return
        with self._lock:
            self._ablations[feature] = found
        show(found, "finished")

    @property
    def ablation(self) -> Ablation | None:
        """What the last finished ablation of this feature measured, or None."""
        return self._ablations.get(self._feature)

    def stop(self) -> None:
        """Stop the ablation; what it has measured stays."""
        self._work.cancel()

    def wait(self, timeout: float | None = None) -> FeatureCard:
        """Wait until nothing runs in the background, for each part at most `timeout` seconds."""
        for work in (self._texts, self._work, self._passages, self._near):
            if not work.wait(timeout):
                raise TimeoutError(f"The card was not done within {timeout} seconds; it goes on.")
        return self

    # ---- steering

    def steer(self, edit: Edit | None = None) -> Any:
        """A `SteeringDesk` under the card that continues `text`, with the feature clamped to its maximum or `edit`."""
        desk = self._source.steer(self.text, clamp(self._feature, 1.0) if edit is None else edit)
        before, self.desk = self.desk, desk
        if before is not None:
            before.close()
        return desk

    def _close_desk(self) -> None:
        before, self.desk = self.desk, None
        if before is not None:
            before.close()

    # ---- calls from the browser

    def methods(self) -> Mapping[str, Handler]:
        def put(name: str) -> Handler:
            return lambda value: setattr(self, name, value)

        def quietly(run: Callable[..., Any]) -> Handler:
            """What a method returns stays here; the browser sees it in the traits."""

            def handler(**params: Any) -> None:
                run(**params)

            return handler

        return {
            **{name: quietly(getattr(self, name)) for name in ("go", "next", "previous", "back", "compare")},
            **{name: quietly(getattr(self, name)) for name in ("ablate", "stop", "steer", "fill")},
            "random": lambda: quietly(self.random)(),
            **{name: put(name) for name in ("label", "note", "starred", "context")},
            "more": self._complete,
            "whole": self._whole,
            "unsteer": self._close_desk,
        }

    # ---- the end

    def close(self) -> None:
        self._cancel()
        super().close()

    def open(self) -> None:
        super().open()
        if hasattr(self.comm, "on_close"):
            self.comm.on_close(lambda _message: self._cancel())

    def _cancel(self) -> None:
        for work in (self._texts, self._work, self._passages, self._near):
            work.cancel()

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        with suppress(Refusal):  # the loupe is closed: what is known stays
            self._complete(ask=False)
        return super().static_state() | {"desk": None, "facts": {}}

    def static_picture(self) -> str:
        shown, said = self.shown, self.said
        lines = [f"<h3 style='margin:4px 0'>{html.escape(shown['feature'])}</h3>"]
        for label in said["labels"][:1]:
            lines.append(f"<div>{html.escape(label['text'])} <small>({html.escape(label['source'])})</small></div>")
        lines += [f"<div>{html.escape(here(line))}</div>" for line in _lines(self)]
        maximum = shown["maximum"] or 1.0
        for example in self.examples["top"][:_PICTURED]:
            lines.append(
                f'<div dir="auto" style="line-height:1.9">{"".join(_spans(self.palette, example, maximum))}</div>'
            )
        return "".join(lines)

    def __repr__(self) -> str:
        label = self.label
        head = [f"FeatureCard of {self._feature}" + ("" if label is None else f": {label.text} ({label.source})")]
        return "\n".join(head + [f"  {line}" for line in _lines(self)])


def _lines(card: FeatureCard) -> Iterator[str]:
    """What a card says, as lines of text."""
    shown = card.shown
    found = shown["evidence"]
    tokens = "" if found is None else f"{found['tokens']:,}"
    if found is None:
        yield shown["why"]
    elif not found["fired"]:
        yield say("never fires on the {tokens} tokens of the index {index}", tokens=tokens, index=found["index"])
    else:
        yield say(
            "fires on {share} of {tokens} tokens of the index {index}, at most {maximum}",
            share=f"{shown['density']:.3%}",
            tokens=tokens,
            index=found["index"],
            maximum=f"{found['maximum']:.4g}",
        )
        yield say("on {tokens}", tokens=", ".join(repr(text) for text, _ in found["on"][:5]))
    for name in ("promotes", "suppresses"):
        listed = ", ".join(repr(text) for text, _ in (shown[name] or card.more.get(name) or [])[:5])
        if listed:
            yield (
                say("promotes {tokens}", tokens=listed)
                if name == "promotes"
                else say("suppresses {tokens}", tokens=listed)
            )
    if card.reading is not None and not card.reading["error"]:
        most = max(card.reading["acts"], default=0.0)
        yield say("on your text at most {maximum}", maximum=f"{most:.4g}")


def _spans(palette: str, example: Mapping[str, Any], maximum: float) -> Iterator[str]:
    red, green, blue = PALETTES[palette]
    shade = opacity(np.array(example["acts"]) / maximum)
    for text, alpha in zip(example["tokens"], shade, strict=True):
        style = f"background-color:rgba({red}, {green}, {blue}, {alpha:.3f});border-radius:5px;white-space:pre-wrap"
        yield f'<span style="{style}">{html.escape(text)}</span>'


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
