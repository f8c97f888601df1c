"""Torch on another thread than the engine's, without slowing the engine ever after.

Each thread that computes with torch on a CPU gets a pool of OpenMP threads, which lives as long as it does. Once all
pools together have more threads than there are cores, OpenMP puts every one of them to sleep between products, and a
decoding step, made of hundreds of small ones, takes half as long again. So what the notebook's own thread asks for is
computed on one that ends with it.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(function: Callable[P, T]) -> Callable[P, T]:
    """`function` on a thread that lives as long as a call, which waits for it and raises what it raises."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        found: Future[T] = Future()

        def work() -> None:
            try:
                found.set_result(function(*args, **kwargs))
            except BaseException as error:
                found.set_exception(error)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,), name="gemloupe-apart", daemon=True)
        thread.start()
        result = found.result()
        thread.join()  # its pool is gone when this returns
        return result

    return called
