"""A request on a worker thread: events out, cancellation in, one terminal event."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from ..errors import refuse
from .protocol import TERMINAL, Cancelled, Event, Failed, Value

T = TypeVar("T")

_log = logging.getLogger(__name__)


_follower: contextvars.ContextVar[Callable[[ThreadJob[Any]], Any] | None] = contextvars.ContextVar(
    "follower", default=None
)


@contextmanager
def followed(by: Callable[[ThreadJob[Any]], Any]) -> Iterator[None]:
    """Tells `by` of every job that this thread makes inside, so that somebody else can cancel it."""
    token = _follower.set(by)
    try:
        yield
    finally:
        _follower.reset(token)


class Stop(BaseException):
    """Unwinds a cancelled request. Not an Exception, so that no `except Exception` on the way swallows it.

    Its argument, if it has one, is what was made so far.
    """


class ThreadJob(Generic[T]):
    """A job whose `work(job)` runs on a `Worker`. `work` calls `job.emit(...)` and `job.checkpoint()`."""

    def __init__(self, work: Callable[[ThreadJob[T]], T]) -> None:
        self._work = work
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._end: Event | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._then: list[Callable[[Event], None]] = []
        if (follower := _follower.get()) is not None:
            follower(self)

    def emit(self, event: Event) -> None:
        """Publish an event; after the terminal one, nothing more is published."""
        with self._lock:
            if self._end is not None:
                return
            if isinstance(event, TERMINAL):
                self._end = event
                self._ended.set()  # before anyone can read that it ended
            self._events.put(event)
            then = self._then if self._end is not None else []
        if self._end is not None:
            for call in then:
                try:
                    call(event)
                except Exception:  # a listener's fault must not end the worker's thread
                    _log.exception("a listener failed")

    def checkpoint(self) -> None:
        """Raises `Stop` if the request has been cancelled. Work calls this between steps."""
        if self._stop.is_set():
            raise Stop

    def cancel(self) -> None:
        self._stop.set()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def when_done(self, call: Callable[[Event], None]) -> None:
        """Call with the terminal event, at once if it has already happened; else on the worker's thread."""
        with self._lock:
            if self._end is None:
                self._then.append(call)
                return
        call(self._end)

    def events(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            if isinstance(event, TERMINAL):
                self._events.put(event)  # whoever iterates again gets the end, and does not wait for ever
                yield event
                return
            yield event

    def result(self, timeout: float | None = None) -> T:
        try:
            if not self._ended.wait(timeout):
                raise TimeoutError(f"The request did not finish within {timeout} seconds; it goes on.")
        except KeyboardInterrupt:
            # Wait for the worker to let go, so that the next request finds no half-run pass and no hook.
            self.cancel()
            self._ended.wait(10)
            raise
        match self._end:
            case Value(value):
                return value
            case Failed(error):
                raise error
            case Cancelled(partial):
                raise refuse("cancelled", partial=partial)
        raise AssertionError(self._end)

    def run(self) -> None:
        """Do the work, here and now."""
        try:
            self.checkpoint()
            value = self._work(self)
        except Stop as stop:
            self.emit(Cancelled(*stop.args))
        except BaseException as error:
            self.emit(Failed(error))
        else:
            self.emit(Value(value))


class Worker:
    """One thread that runs jobs in order. It starts with the first job and dies with the process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[ThreadJob, contextvars.Context] | None] = queue.SimpleQueue()
        self._open: list[ThreadJob] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: ThreadJob[T]) -> ThreadJob[T]:
        with self._lock:
            if self._closed:
                raise refuse("engine-closed")
            self._open = [one for one in self._open if not one.done] + [job]
            # With the caller's context, prints from the worker land in the cell that asked.
            self._jobs.put((job, contextvars.copy_context()))
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()
        return job

    @property
    def waited_for(self) -> bool:
        """Whether another job waits for the one that runs."""
        return not self._jobs.empty()

    def _loop(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, context = item
            context.run(job.run)

    def close(self, timeout: float = 10.0) -> None:
        """Cancel everything, then let the thread end."""
        with self._lock:
            self._closed = True
            waiting = list(self._open)
        for job in waiting:
            job.cancel()
        self._jobs.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
