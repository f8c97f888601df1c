"""Torch beside the engine: on threads that end, so that no pool of theirs slows the engine afterwards."""

import os
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest
from gemloupe.run.apart import apart

_asked = ContextVar("asked", default="nothing")


def test_it_is_the_same_call_on_a_thread_that_ends():
    @apart
    def work(one, *, two):
        """What it does."""
        return one + two, threading.current_thread(), _asked.get()

    _asked.set("here")
    found, thread, asked = work(1, two=2)
    assert found == 3 and asked == "here" and work.__doc__ == "What it does."
    assert thread is not threading.current_thread() and not thread.is_alive()


def test_what_it_raises_is_raised():
    @apart
    def work():
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        work()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_no_pool_is_left_beside_the_engine(builtin):
    """Of the threads of the process, those that Python does not know are of pools."""
    code = """
import os, time
import gemloupe as gl

def pools():
    import threading
    return len(os.listdir("/proc/self/task")) - threading.active_count()

with gl.open() as loupe:
    text = "The City of Light is Paris"
    loupe.generate(text, max_new_tokens=3)
    loupe.read(text[:8], sites="res.0")
    import sae_lens  # what it imports, and pyarrow, which reads the neighbours that are kept, have pools of their own
    loupe.neighbours("res.12/834", k=2)
    before = pools()
    loupe.read(text)
    loupe.neighbours("res.12/834", k=40)
    loupe.sae("res.12")
    end = time.monotonic() + 20
    while pools() > before and time.monotonic() < end:
        time.sleep(0.05)
    print(before, pools())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split()[-2:])
    assert after <= before
