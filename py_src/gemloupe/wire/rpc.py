"""The kernel's end of a call from the browser: every call gets exactly one value, error or cancellation.

The other half is js/core/rpc.ts. Handlers run on a thread of their own, never in the comm handler: on some kernels
that is the main thread, where a slow answer would hold up every widget.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import Refusal

Handler = Callable[..., Any]
Send = Callable[[dict[str, Any]], None]

_log = logging.getLogger(__name__)
_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="gemloupe-rpc")


class Calls:
    """Answers calls with `methods`, by `send`, on `threads`. One per widget; all widgets share a pool by default."""

    def __init__(self, methods: Mapping[str, Handler], send: Send, threads: ThreadPoolExecutor = _threads) -> None:
        self._methods, self._send, self._pool = dict(methods), send, threads
        self._open: dict[Any, threading.Event] = {}
        self._lock = threading.Lock()

    def receive(self, message: Any) -> bool:
        """Handle one message; whether it was one of ours."""
        if not isinstance(message, Mapping) or message.get("kind") not in ("call", "cancel") or "id" not in message:
            return False
        ident = message["id"]
        if not isinstance(ident, (int, str)):
            return False
        if message["kind"] == "cancel":
            with self._lock:
                waiting = self._open.get(ident)
            if waiting is not None:
                waiting.set()
            return True
        with self._lock:
            if ident in self._open:
                return True
            self._open[ident] = threading.Event()
        self._pool.submit(self._answer, ident, message.get("method"), message.get("params") or {})
        return True

    def _answer(self, ident: Any, method: Any, params: Mapping[str, Any]) -> None:
        with self._lock:
            cancelled = self._open[ident]
        try:
            if cancelled.is_set():
                reply = {"kind": "cancelled", "id": ident}
            elif not isinstance(method, str) or method not in self._methods:
                reply = self._error(ident, "no-such-method", f"The kernel has no method {method!r}: reload the page.")
            else:
                value = self._methods[method](**params)
                reply = {"kind": "value", "id": ident, "value": value}
                if cancelled.is_set():
                    reply = {"kind": "cancelled", "id": ident}
        except Refusal as refusal:
            reply = self._error(ident, refusal.code, str(refusal))
        except Exception as error:  # the browser must get an answer whatever happened
            _log.exception("call %r failed", method)
            reply = self._error(ident, "failed", f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._open.pop(ident, None)
        self._send(reply)

    @staticmethod
    def _error(ident: Any, code: str, message: str) -> dict[str, Any]:
        return {"kind": "error", "id": ident, "code": code, "message": message}
