"""SteeringDesk: features turned up and down while text is generated. The other half is js/widgets/steering-desk.ts.

Handlers only note what is wanted; one thread per desk, alive while there is work, asks the engine and shows what comes.
"""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import traitlets

from ..edits import Edit, clamp, edits_of
from ..engine.protocol import (
    Cancelled,
    Engine,
    Failed,
    FeatureFacts,
    GenerateRequest,
    Generation,
    NewToken,
    Value,
)
from ..errors import Refusal, refuse
from ..feature import FeatureId
from ..study.control import control_edits
from ..study.movers import Mover, movers
from ..study.preset import SAMPLING, Preset
from ..study.reread import reread
from ..study.sweep import Sweep, sweep
from ..wire.rpc import Handler
from ..words import here, joined, say
from . import steering_wire as wire
from .colour import PALETTES
from .latest import Latest, Pace, Task
from .live import STATIC, LiveWidget, refusing_traits

_log = logging.getLogger(__name__)

DEFAULT, STEERED, RANDOM, FLIPPED = "default", "steered", "random", "flipped"
_ARMS = {
    DEFAULT: say("default"),
    STEERED: say("steered"),
    RANDOM: say("control: random direction"),
    FLIPPED: say("control: sign flipped"),
}
_TOKEN_BYTES = 60  # of one token on the wire, nearly
_OFFERED = 16  # features offered for colouring besides the edited ones
_MOVERS = 5  # per layer
_NOTHING: dict[str, Any] = {"id": 0, "state": "idle", "error": None, "arms": [], "effects": {}, "movers": []}

_OPTIONS = ("controls", "follow", "chat", "palette", "prompt")

Scorer = Callable[[str], float]
FactsOf = Callable[[tuple[FeatureId, ...]], tuple[FeatureFacts, ...]]


@dataclass
class _Row:
    key: int
    edit: Edit
    facts: FeatureFacts | None
    strength: float
    """What the slider stands at; an ablation has no strength of its own."""
    error: str | None = None


@dataclass(frozen=True)
class _Part:
    """Arms that continue the same text, run together as one batch."""

    given: Any
    arms: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """One run: what is continued, by whom, with which edits."""

    ident: int
    parts: tuple[_Part, ...]
    rows: Mapping[str, tuple[Edit, ...]]
    keys: tuple[int, ...]
    """The desk's row of each steered edit."""
    sampling: Mapping[str, Any]
    known: Generation | None
    """The default text, where an earlier run has made it already."""

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.rows)


class SteeringDesk(LiveWidget):
    """One row per edit, and the default continuation of a prompt beside the steered one.

    `desk.edits` and `desk.prompt` may be read and set; `desk.run()`, `desk.stop()`, `desk.wait()`; `desk.steered` and
    `desk.default` are the last `Generation`s; `desk.sweep()` measures the dose strip; `desk.coloured` is the feature
    that colours the texts. A prompt that is a list of chat messages makes it a chat: every turn is answered twice, each
    answer with its own history.
    """

    _esm = STATIC / "steering-desk.js"
    _css = STATIC / "steering-desk.css"
    _name = "steering-desk"

    about = traitlets.Dict().tag(sync=True)
    """Model, scope, device, dtype and a note: the quiet line under the desk."""
    prompt = traitlets.Unicode("").tag(sync=True)
    """What is continued; in a chat, what the user said last."""
    chat = traitlets.Bool(False).tag(sync=True)
    """Whether the prompt is a chat message."""
    turns = traitlets.List(traitlets.Dict()).tag(sync=True)
    """Earlier turns of a chat: what was said, and both answers, as {"user", "default", "steered"}."""
    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    """The edits, as `steering_wire.wire_edit` writes them."""
    sampling: traitlets.Dict[str, Any] = traitlets.Dict(dict(SAMPLING)).tag(sync=True)
    """max_new_tokens, temperature, top_k, top_p and seed."""
    follow = traitlets.Enum(("restart", "next", "wait"), "restart").tag(sync=True)
    """What a changed edit does: the text starts over, it goes on from the next token, or nothing until Run."""
    controls = traitlets.Bool(False).tag(sync=True)
    """Whether control rows run too: a random direction of the same norm, and the sign flipped."""
    current: traitlets.Dict[str, Any] = traitlets.Dict(dict(_NOTHING)).tag(sync=True)
    """The last run: its id, its state (idle, waiting, running, finished, stopped, failed), texts and effects."""
    dose: Any = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """The dose strip of one edit, or None: a row per strength, and the text without that edit they are held against."""
    colour: traitlets.Dict[str, Any] = traitlets.Dict({"feature": None, "arms": {}, "options": []}).tag(sync=True)
    """The feature that colours the texts, its strength at every new token, and what else could be chosen."""
    notes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """What the user should know of this desk, for example that a preset was made with another model."""
    palette = traitlets.Enum(tuple(PALETTES), "blue").tag(sync=True)
    facts = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """None while there is a kernel to ask; the static twin has a dict."""

    def __init__(
        self,
        engine: Engine,
        prompt: Any = "",
        edits: Edit | Iterable[Edit] = (),
        *,
        scorer: Scorer | None = None,
        facts_of: FactsOf | None = None,
        made_with: Mapping[str, Any] | None = None,
        run: bool = True,
        **options: Any,
    ) -> None:
        self._engine, self._scorer, self._facts_of = engine, scorer, facts_of or engine.facts
        self._lock = threading.RLock()
        self._latest = Latest("gemloupe-desk")
        self._ident = self._keys = 0
        self._rows: list[_Row] = []
        self._done: dict[str, Generation] = {}
        self._default: tuple[Any, Generation] | None = None
        self._sweep: Any = None
        self._coloured: FeatureId | None = None
        self._before: tuple[Mapping[str, str], ...] = ()

        if isinstance(prompt, Preset):
            edits, made_with, settings = prompt.edits, prompt.made_with, dict(prompt.sampling)
            prompt = prompt.prompt
        else:
            settings = dict(SAMPLING)
        settings |= {name: options.pop(name) for name in SAMPLING if name in options}
        said, chat = self._read_prompt(prompt)
        self._before, turns = self._history(prompt)
        self._rows = [self._new_row(edit) for edit in edits_of(edits)]
        self._coloured = next((row.edit.feature for row in self._rows if row.edit.feature is not None), None)
        described = engine.describe()
        about = dict(described.about or {})
        notes = Preset("", tuple(self.edits), {}, made_with).differences(about) if made_with else []
        super().__init__(
            about={key: getattr(described, key) for key in ("model", "scope", "device", "dtype")} | {"note": ""},
            prompt=said,
            chat=chat,
            turns=turns,
            rows=self._wire_rows(),
            sampling=settings,
            notes=notes,
            **options,
        )
        self._made_by = {key: about.get(key) for key in ("model", "model_digest", "scope", "sae_digests")}
        for note in notes:
            _warn(note)
        if run and said:
            self.run()

    # ---- what is wanted: prompt, edits, sampling

    def _read_prompt(self, given: Any) -> tuple[str, bool]:
        """(what is said now, whether it is a chat)."""
        if isinstance(given, str):
            return given, False
        messages = list(given) if isinstance(given, (list, tuple)) else None
        if not messages or not all(isinstance(one, Mapping) and "role" in one and "content" in one for one in messages):
            raise refuse("prompt-unreadable", type=type(given).__name__)
        return (str(messages[-1]["content"]) if messages[-1]["role"] == "user" else ""), True

    @staticmethod
    def _history(given: Any) -> tuple[tuple[Mapping[str, str], ...], list[dict[str, str]]]:
        """What comes before what is said now in a chat: (messages that are no turns, turns, both answers the same)."""
        messages = [] if isinstance(given, str) else [{n: str(one[n]) for n in ("role", "content")} for one in given]
        if messages and messages[-1]["role"] == "user":
            messages.pop()
        turns: list[dict[str, str]] = []
        while len(messages) > 1 and (messages[-2]["role"], messages[-1]["role"]) == ("user", "assistant"):
            said, answer = messages[-2]["content"], messages[-1]["content"]
            turns.insert(0, {"user": said, "default": answer, "steered": answer})
            del messages[-2:]
        return tuple(messages), turns

    def _new_row(self, edit: Edit) -> _Row:
        facts = None if edit.feature is None else self._facts_of((edit.feature,))[0]
        self._keys += 1
        return _Row(self._keys, edit, facts, edit.strength)

    def _wire_rows(self) -> list[dict[str, Any]]:
        return [wire.wire_edit(row.key, row.edit, row.facts, row.error) for row in self._rows]

    def _row(self, key: int) -> _Row:
        for row in self._rows:
            if row.key == key:
                return row
        raise self._no_row(f"row {key}")

    def _no_row(self, given: str) -> Refusal:
        named = ", ".join(str(row.edit.feature or row.edit.site) for row in self._rows)
        return refuse("row-gone", given=given, open=named or "nothing yet")

    def _key_of(self, feature: Any) -> int:
        """The row of a feature; None means the first."""
        name = None if feature is None else str(FeatureId.of(feature))
        for row in self._rows:
            if name is None or str(row.edit.feature) == name:
                return row.key
        raise self._no_row(name or "any feature")

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits, in the order of the rows. Setting them starts over, unless `follow` says otherwise."""
        return tuple(row.edit for row in self._rows)

    @edits.setter
    def edits(self, given: Edit | Iterable[Edit]) -> None:
        rows = [self._new_row(edit) for edit in edits_of(given)]
        with self._lock:
            self._rows = rows
            self._changed()

    @property
    def coloured(self) -> FeatureId | None:
        """The feature whose strength colours the texts; None for no colours. It may be set, also by name."""
        return self._coloured

    @coloured.setter
    def coloured(self, given: FeatureId | str | None) -> None:
        self._on_colour(None if given is None else str(FeatureId.of(given)))

    @traitlets.observe("prompt")
    def _prompt_changed(self, _change: Any) -> None:
        self.dose = None

    @traitlets.validate("sampling")
    def _check_sampling(self, proposal: Any) -> dict[str, Any]:
        unknown = sorted(proposal["value"].keys() - SAMPLING.keys())
        if unknown:
            with refusing_traits():
                raise refuse("option-unknown", given=unknown[0], known=", ".join(SAMPLING))
        return {**SAMPLING, **proposal["value"]}

    # ---- running, from Python

    def run(self, prompt: str | None = None) -> None:
        """Start a run, in place of the one that runs. It goes on in the background; `wait()` waits for it.

        In a chat, `prompt` is the next thing that is said: the answers so far become history.
        """
        with self._lock:
            if prompt is not None:
                if self.chat and self._done.keys() >= {DEFAULT} and self.current["state"] in ("finished", "stopped"):
                    self._keep_turn()
                self.prompt = prompt
            self._start()

    def stop(self) -> None:
        """Stop what runs; the text so far stays."""
        self._latest.cancel()

    def wait(self, timeout: float | None = None) -> Generation | None:
        """Wait for the end of the run and of its measurements, at most `timeout` seconds; returns the steered text.

        Ctrl-C stops the run.
        """
        try:
            if not self._latest.wait(timeout):
                raise TimeoutError(f"The run did not finish within {timeout} seconds; it goes on.")
        except KeyboardInterrupt:
            running = self._latest.now
            self.stop()
            if running is not None:  # but not for what is measured of the text that there is
                running.ended.wait(10)
            raise
        return self.steered

    @property
    def default(self) -> Generation | None:
        """The last text without edits, or None."""
        return self._done.get(DEFAULT)

    @property
    def steered(self) -> Generation | None:
        """The last steered text, or None; without edits the default one."""
        return self._done.get(STEERED) or self.default

    @property
    def generations(self) -> Mapping[str, Generation]:
        """The last texts by arm: 'default', 'steered', and with controls 'random' and 'flipped'."""
        return dict(self._done)

    def close(self) -> None:
        self._latest.cancel()
        super().close()

    def open(self) -> None:
        super().open()
        if hasattr(self.comm, "on_close"):
            self.comm.on_close(lambda _message: self._latest.cancel())

    def sweep(self, feature: FeatureId | str | None = None) -> None:
        """Measure the dose strip of a feature's edit (None: the first row) in the background, in place of what runs.

        `wait()` waits for it; `swept` is then the `Sweep`.
        """
        self._measure(self._key_of(feature))

    @property
    def swept(self) -> Sweep | None:
        """The last dose strip, or None."""
        return self._sweep

    # ---- running, inside

    def _given(self, arm: str) -> Any:
        if not self.chat:
            return self.prompt
        messages = list(self._before)
        for turn in self.turns:
            answer = turn["default" if arm == DEFAULT else "steered"]
            messages += [{"role": "user", "content": turn["user"]}, {"role": "assistant", "content": answer}]
        return (*messages, {"role": "user", "content": self.prompt})

    def _keep_turn(self) -> None:
        default, steered = self._done[DEFAULT], self._done.get(STEERED, self._done[DEFAULT])
        self.turns = [*self.turns, {"user": self.prompt, "default": default.text, "steered": steered.text}]
        self._done = {}

    def _arm_rows(self) -> dict[str, tuple[Edit, ...]]:
        edits = self.edits
        rows: dict[str, tuple[Edit, ...]] = {DEFAULT: ()}
        if edits:
            rows[STEERED] = edits
            if self.controls:
                rows |= self._control_rows()
        return rows

    def _control_rows(self) -> dict[str, tuple[Edit, ...]]:
        """For every edit a random direction of the same norm, and the edit with its sign turned."""
        found = []
        for place, row in enumerate(self._rows):
            try:
                found.append(control_edits(self._engine, row.edit, seed=place))
            except Refusal as refusal:  # the others still have theirs
                row.error = str(refusal)
        return {RANDOM: tuple(one for one, _ in found), FLIPPED: tuple(two for _, two in found)} if found else {}

    def _plan(self) -> _Plan:
        self._ident += 1
        rows = self._arm_rows()
        default = self._given(DEFAULT)
        key = (_frozen(default), tuple(sorted(self.sampling.items(), key=str)))
        known = self._default[1] if self._default is not None and self._default[0] == key else None
        left = [arm for arm in rows if arm != DEFAULT or known is None]
        same = [arm for arm in left if self._given(arm) == default]
        parts = [_Part(default, tuple(same))] if same else []
        others = [arm for arm in left if arm not in same]
        if others:  # the steered answer first: it is what one waits for
            parts.insert(0, _Part(self._given(STEERED), tuple(others)))
        return _Plan(
            self._ident,
            tuple(parts),
            rows,
            tuple(row.key for row in self._rows),
            dict(self.sampling),
            known,
        )

    def _start(self) -> None:
        with self._lock:
            for row in self._rows:
                row.error = None
            plan = self._plan()
            self.rows = self._wire_rows()
            self._latest.submit(Task(lambda task: self._generate(task, plan)))
            self._show(plan, "waiting", {arm: [] for arm in plan.arms})

    def _changed(self, *, restart: bool = False, key: int | None = None) -> None:
        """Something a run depends on is different now; `key` if it is only that edit."""
        if self.dose is not None and self.dose["key"] != key:
            self.dose = None  # it was measured under other conditions
        for row in self._rows:
            row.error = None
        self.rows = self._wire_rows()
        task = self._latest.now
        if self.follow == "next" and not restart and task is not None and task.job is not None:
            part = task.about
            rows = self._arm_rows()
            if part is not None and set(part.arms) <= rows.keys() and not task.job.done:
                try:
                    task.job.change(tuple(rows[arm] for arm in part.arms))
                except Refusal as refusal:
                    self._refused(refusal, state=None)
                return
        if self.follow != "wait" and self.prompt:
            self._start()

    def _refused(self, refusal: Refusal, *, state: str | None = "failed") -> None:
        keys = wire.rows_of(refusal.facts, [(row.key, row.edit) for row in self._rows])
        for row in self._rows:
            if row.key in keys:
                row.error = str(refusal)
        self.rows = self._wire_rows()
        if state is not None:
            self._ident += 1
            self.current = {**_NOTHING, "id": self._ident, "state": state, "error": None if keys else str(refusal)}

    def _show(
        self,
        plan: _Plan,
        state: str,
        texts: Mapping[str, list[dict[str, Any]]],
        done: Mapping[str, Generation] | None = None,
        **more: Any,
    ) -> None:
        """Publish a run, unless a later one has begun."""
        arms = [
            {
                "name": arm,
                "tokens": list(texts[arm]),
                "stopped": None if not done or arm not in done else done[arm].stopped,
                "notes": [] if not done or arm not in done else _arm_notes(done[arm]),
            }
            for arm in plan.arms
        ]
        with self._lock:
            if plan.ident == self._ident:
                self.current = {**_NOTHING, "id": plan.ident, "state": state, "arms": arms, **more}

    def _generate(self, task: Task, plan: _Plan) -> None:
        """On the desk's thread: run a plan, show what comes, and what came of it."""
        texts: dict[str, list[dict[str, Any]]] = {arm: [] for arm in plan.arms}
        done: dict[str, Generation] = {}
        pace, state = Pace(), "finished"
        fault: Exception | None = None
        if plan.known is not None:
            done[DEFAULT] = plan.known
            texts[DEFAULT] = wire.wire_tokens(plan.known.tokens, plan.known.logprobs)
        try:
            for part in plan.parts:
                if task.cancelled:
                    state = "stopped"
                    break
                request = GenerateRequest(part.given, rows=tuple(plan.rows[arm] for arm in part.arms), **plan.sampling)
                task.about = part
                job = task.follow(self._engine.generate(request))
                for event in job.events():
                    match event:
                        case NewToken():
                            texts[part.arms[event.row]].append(wire.wire_new(event.id, event.text, event.logprob))
                            # First tokens come at once: shown one by one, the second would wait its turn.
                            whole = event.index > 0 or event.row == len(part.arms) - 1
                            if whole and pace.due(_TOKEN_BYTES * sum(map(len, texts.values()))):
                                self._show(plan, "running", texts, done)
                        case Value(generations) | Cancelled(generations):
                            for arm, generation in zip(part.arms, generations or (), strict=False):
                                done[arm] = generation
                                texts[arm] = wire.wire_tokens(generation.tokens, generation.logprobs)
                            if isinstance(event, Cancelled):
                                state = "stopped"
                        case Failed(error):
                            raise error
        except Refusal as refusal:
            state, fault = "failed", refusal
        except Exception as error:
            _log.exception("a steering run failed")
            state, fault = "failed", error
        self._finish(plan, state, texts, done, fault)

    def _finish(
        self,
        plan: _Plan,
        state: str,
        texts: dict[str, list[dict[str, Any]]],
        done: dict[str, Generation],
        fault: Exception | None,
    ) -> None:
        more: dict[str, Any] = {}
        steered = done.get(STEERED)
        if steered is not None and len(steered.effects) == len(plan.keys):
            more["effects"] = {
                str(key): wire.wire_effect(effect) for key, effect in zip(plan.keys, steered.effects, strict=True)
            }
        with self._lock:
            if plan.ident != self._ident:
                return
            self._done = done
            if DEFAULT in done and done[DEFAULT].stopped in ("length", "end"):
                key = (_frozen(self._given(DEFAULT)), tuple(sorted(plan.sampling.items(), key=str)))
                self._default = (key, done[DEFAULT])
            keys: list[int] = []
            if isinstance(fault, Refusal):
                keys = wire.rows_of(fault.facts, [(row.key, row.edit) for row in self._rows])
                for row in self._rows:
                    row.error = str(fault) if row.key in keys else None
                self.rows = self._wire_rows()
            if fault is not None and not keys:
                more["error"] = str(fault) if isinstance(fault, Refusal) else f"{type(fault).__name__}: {fault}"
            self._show(plan, state, texts, done, **more)
            self._show_colour()
            # Only now, and in a task of its own: nobody should wait for it, and a moved slider ends it.
            self._latest.submit(Task(lambda task: self._look(task, plan, state, texts, done, more)))

    def _look(
        self,
        task: Task,
        plan: _Plan,
        state: str,
        texts: Mapping[str, list[dict[str, Any]]],
        done: Mapping[str, Generation],
        more: Mapping[str, Any],
    ) -> None:
        """On the desk's thread: read the finished texts once more, for colours and for what moved."""
        seen = dict(done)
        try:
            for arm in (STEERED, DEFAULT):
                one = seen.get(arm)
                if task.cancelled:
                    return
                if one is not None and one.tokens and one.trace is None and one.stopped != "not-finite":
                    seen[arm] = reread(self._engine, one, follow=task.follow)
            moved = self._movers(seen)
        except Refusal as refusal:
            if refusal.code != "cancelled":  # the text fills the context, for example
                _log.info("a steered text could not be read again: %s", refusal)
            return
        with self._lock:
            if plan.ident != self._ident:
                return
            self._done = seen
            if self._default is not None and self._default[1] is done.get(DEFAULT):
                self._default = (self._default[0], seen[DEFAULT])
            self._show(plan, state, texts, seen, **more, movers=moved)
            self._show_colour()

    def _movers(self, seen: Mapping[str, Generation]) -> list[dict[str, Any]]:
        """The largest movers of every layer, other than the edited features."""
        default, steered = seen.get(DEFAULT), seen.get(STEERED)
        if default is None or steered is None or default.trace is None or steered.trace is None:
            return []
        edited = {edit.feature for edit in steered.edits}
        layers: dict[int, list[Mover]] = {}
        for site, some in movers(default.trace, steered.trace, _MOVERS + len(edited)).items():
            layers.setdefault(site.layer, []).extend(one for one in some if one.feature not in edited)
        kept = {layer: sorted(some, key=_moved, reverse=True)[:_MOVERS] for layer, some in layers.items() if some}
        facts = {
            one.feature: one for one in self._facts_of(tuple(one.feature for some in kept.values() for one in some))
        }
        return [wire.wire_movers(layer, kept[layer], facts) for layer in sorted(kept)]

    # ---- colour

    def _show_colour(self) -> None:
        """Publish the strength of the chosen feature at every new token, and what else could be chosen."""
        steered = self.steered
        offered: list[FeatureId] = [row.edit.feature for row in self._rows if row.edit.feature is not None]
        if self._coloured is not None:
            offered.append(self._coloured)
        if steered is not None and steered.trace is not None and steered.trace.sites:
            offered += [one.feature for one in steered.trace.top(_OFFERED)]
        names = list(dict.fromkeys(offered))
        options = [
            {"feature": str(facts.feature), "label": facts.label, "promotes": [text for text, _ in facts.promotes[:3]]}
            for facts in (self._facts_of(tuple(names)) if names else ())
        ]
        arms = {}
        if self._coloured is not None:
            arms = {arm: wire.strengths(generation, self._coloured) for arm, generation in self._done.items()}
        feature = None if self._coloured is None else str(self._coloured)
        self.colour = {"feature": feature, "arms": arms, "options": options}

    # ---- the dose strip

    def _measure(self, key: int) -> None:
        with self._lock:
            row = self._row(key)
            others = tuple(one.edit for one in self._rows if one.key != key)
            given, sampling = self._given(STEERED), dict(self.sampling)
            shown = {"key": key, "state": "running", "error": None, "rows": []}
            self._latest.submit(Task(lambda task: self._dose(task, shown, given, row.edit, others, sampling)))
            self._sweep, self.dose = None, shown

    def _dose(
        self,
        task: Task,
        shown: dict[str, Any],
        given: Any,
        edit: Edit,
        others: tuple[Edit, ...],
        sampling: Mapping[str, Any],
    ) -> None:
        """On the desk's thread: run the strengths and show what they did."""
        more: dict[str, Any] = {"state": "finished"}
        try:
            if task.cancelled:
                raise refuse("cancelled")
            found = sweep(self._engine, given, edit, others=others, follow=task.follow, **sampling)
            self._sweep = found
            default = found.default
            more["default"] = wire.wire_tokens(default.tokens, default.logprobs)
            more |= {"surprise": wire.number(found.surprise), "repetition": wire.number(found.repetition)}
            more["rows"] = [wire.wire_dose(row, self._score(row.generation.text)) for row in found.rows]
        except Refusal as refusal:
            more |= {"state": "stopped"} if refusal.code == "cancelled" else {"state": "failed", "error": str(refusal)}
        except Exception as error:
            _log.exception("a sweep failed")
            more |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        with self._lock:
            if self.dose is not None and self.dose["key"] == shown["key"]:
                self.dose = {**shown, **more}

    def _score(self, text: str) -> float | None:
        if self._scorer is None:
            return None
        try:
            return float(self._scorer(text))
        except Exception:  # a scorer's fault must not cost the strip
            _log.exception("the scorer failed")
            return None

    # ---- files and code

    @property
    def preset(self) -> Preset:
        """What reproduces this desk. A chat is kept as its steered history."""
        given: Any = self.prompt
        if self.chat:
            given = self._given(STEERED)
        return Preset(given, self.edits, self.sampling, self._made_by)

    def save(self, path: Any) -> Any:
        """Write `preset` to a file; `loupe.steer(gl.Preset.load(path))` opens it."""
        return self.preset.save(path)

    def load(self, given: Any) -> None:
        """Take over what a `Preset`, or a file that `save` wrote, says: prompt, edits and sampling. It starts over.

        `notes` then says how model and SAEs differ from those it was made with. What is refused changes nothing.
        """
        preset = given if isinstance(given, Preset) else Preset.load(given)
        said, chat = self._read_prompt(preset.prompt)
        rows = [self._new_row(edit) for edit in preset.edits]
        with self._lock:
            self._latest.cancel()
            self._before, turns = self._history(preset.prompt)
            self._rows, self._done = rows, {}
            self._coloured = next((row.edit.feature for row in rows if row.edit.feature is not None), None)
            with self.hold_sync():
                self.prompt, self.chat, self.turns = said, chat, turns
                self.sampling = dict(preset.sampling)
                self.notes = preset.differences(self._made_by)
                self.dose, self.rows = None, self._wire_rows()
            if said:
                self._start()
            self._show_colour()

    def code(self) -> str:
        """The notebook cell that makes this desk."""
        return self.preset.code()

    # ---- calls from the browser

    def methods(self) -> Mapping[str, Handler]:
        return {
            "run": self._on_run,
            "stop": self.stop,
            "edit": self._on_edit,
            "add": self._on_add,
            "remove": self._on_remove,
            "sampling": self._on_sampling,
            "option": self._on_option,
            "colour": self._on_colour,
            "sweep": self._on_sweep,
            "forget": self._on_forget,
            "code": self.code,
            "preset": self._on_preset,
            "open": self._on_open,
            "fresh": self._on_fresh,
            "left": self.stop,
        }

    def _on_run(self, prompt: str | None = None) -> None:
        self.run(prompt)

    def _on_edit(self, key: int, **changes: Any) -> None:
        """A row's kind or strength. What is refused changes nothing, and is said at the row."""
        with self._lock:
            row = self._row(key)
            allowed = {name: changes[name] for name in ("kind", "strength") if name in changes}
            if "kind" in allowed and "strength" not in allowed:
                allowed["strength"] = row.strength
            edit = replace(row.edit, **allowed)
            if "strength" in changes:
                row.strength = edit.strength
            row.edit = edit
            self._changed(key=key)

    def _on_add(self, feature: str) -> None:
        row = self._new_row(clamp(feature, 1.0))
        with self._lock:
            self._rows.append(row)
            if self._coloured is None:
                self._coloured = row.edit.feature
            self._changed(restart=True)

    def _on_remove(self, key: int) -> None:
        with self._lock:
            self._rows = [row for row in self._rows if row.key != key]
            self._changed(restart=True)

    def _on_sampling(self, **changes: Any) -> None:
        with self._lock:
            if {**self.sampling, **changes} != self.sampling:
                self.sampling = {**self.sampling, **changes}
                self._changed(restart=True)

    def _on_option(self, name: str, value: Any) -> None:
        """A trait that the browser may set, by a call: a call is answered when it holds."""
        if name not in _OPTIONS:
            raise refuse("option-unknown", given=name, known=", ".join(_OPTIONS))
        with self._lock:
            setattr(self, name, value)
            if name == "controls" and self._rows:
                self._changed(restart=True)

    def _on_colour(self, feature: str | None) -> None:
        name = None if not feature else FeatureId.of(feature)
        if name is not None:
            self._engine.facts((name,))  # refused here if there is no such feature
        with self._lock:
            self._coloured = name
            self._show_colour()

    def _on_sweep(self, key: int) -> None:
        self._measure(key)

    def _on_forget(self) -> None:
        """A chat begins anew."""
        with self._lock:
            self._latest.cancel()
            self._ident += 1
            self.turns, self._before, self._done = [], (), {}
            self.current = {**_NOTHING, "id": self._ident}

    def _on_preset(self) -> str:
        return self.preset.to_json()

    def _on_open(self, text: str, name: str) -> None:
        self.load(Preset.from_json(text, name))

    def _on_fresh(self) -> None:
        """Send again what a browser may have missed."""
        self.send_state(["rows", "current", "dose", "colour", "turns"])

    # ---- the static twin

    def static_state(self) -> dict[str, Any]:
        return super().static_state() | {"facts": {}}

    def static_picture(self) -> str:
        def line(text: str, style: str = "") -> str:
            return f'<div style="{style}">{html.escape(text)}</div>'

        rows = [
            line(f"{row['kind']} {row['feature'] or row['site']} · {row['strength']:.2f} · {row['formula']}")
            for row in self.rows
        ]
        texts = []
        for arm in self.current["arms"]:
            text = "".join(token["text"] for token in arm["tokens"])
            head = line(here(_ARMS.get(arm["name"], arm["name"])), "opacity:.7;font-size:85%")
            texts.append(f'{head}<div style="white-space:pre-wrap" dir="auto">{html.escape(text)}</div>')
        return line(self.prompt, "white-space:pre-wrap;font-weight:bold") + "".join(rows + texts)


def _moved(one: Mover) -> float:
    """How far a feature moved, in units of its maximum; features without a known one come last."""
    return abs(one.after - one.before) if one.after == one.after and one.before == one.before else -1.0


def _arm_notes(generation: Generation) -> list[str]:
    notes = list(generation.notes)
    if generation.not_finite is not None:
        index, edit = generation.not_finite
        parts = [say("Stopped at new token {n}: the activations were no longer finite numbers.", n=index + 1)]
        if edit is not None:
            parts.append(say("The edit nearest to it is {edit}.", edit=edit))
        notes.append(joined(" ", parts))
    return notes


def _frozen(given: Any) -> Any:
    """A prompt as something that can be compared and kept."""
    return given if isinstance(given, str) else tuple(tuple(sorted(one.items())) for one in given)


def _warn(note: str) -> None:
    import warnings

    warnings.warn(note, UserWarning, stacklevel=4)
