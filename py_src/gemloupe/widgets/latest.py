"""Tasks of which only the latest matters, one at a time, on a thread that lives while there is work."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

_log = logging.getLogger(__name__)


class Cancellable(Protocol):
    def cancel(self) -> None: ...


C = TypeVar("C", bound=Cancellable)


class Task:
    """Something to do that can be given up. `work(task)` looks at `cancelled`, and puts its jobs through `follow`."""

    def __init__(self, work: Callable[[Task], None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._job: Cancellable | None = None
        self._cancelled = False
        self.ended = threading.Event()
        self.about: Any = None
        """What the work says of itself to others."""

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def job(self) -> Any:
        """The job that was followed last."""
        return self._job

    def follow(self, job: C) -> C:
        """Cancel `job` when this task is cancelled, at once if it already is."""
        with self._lock:
            self._job = job
            late = self._cancelled
        if late:
            job.cancel()
        return job

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            job = self._job
        if job is not None:
            job.cancel()

    def run(self) -> None:
        self._work(self)


class Latest:
    """Runs tasks in order. A new one cancels those before it; they still run, to say that they were cancelled."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._now: Task | None = None
        self._waiting: deque[Task] = deque()
        self._idle = threading.Event()
        self._idle.set()

    @property
    def now(self) -> Task | None:
        """The task that runs."""
        return self._now

    def submit(self, task: Task) -> Task:
        with self._lock:
            before = self._all()
            self._waiting.append(task)
            if self._idle.is_set():
                self._idle.clear()
                # With the caller's context, prints land in the cell that asked.
                context = contextvars.copy_context()
                threading.Thread(target=context.run, args=(self._loop,), name=self._name, daemon=True).start()
        for one in before:
            one.cancel()
        return task

    def cancel(self) -> None:
        """Give up what runs and what waits. Safe from any thread, any number of times."""
        with self._lock:
            everything = self._all()
        for one in everything:
            one.cancel()

    def _all(self) -> list[Task]:
        return [*self._waiting, *([] if self._now is None else [self._now])]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; whether that happened in time."""
        return self._idle.wait(timeout)

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._now = task = self._waiting.popleft() if self._waiting else None
                if task is None:
                    self._idle.set()
                    return
            try:
                task.run()
            except Exception:  # the next task must still run
                _log.exception("%s: a task failed", self._name)
            finally:
                task.ended.set()


class Pace:
    """Says when it is time for the next update: at most `most` a second, fewer when updates are large."""

    def __init__(self, most: float = 30.0, bytes_per_second: float = 1e6) -> None:
        self._shortest, self._per_byte = 1.0 / most, 1.0 / bytes_per_second
        self._next = 0.0

    def due(self, size: int = 0) -> bool:
        """Whether to send now an update of about `size` bytes. True begins the next interval."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + max(self._shortest, size * self._per_byte)
        return True
