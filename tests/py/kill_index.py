"""Makes indexes for tests that kill it. Each line of stdin is 'folder steps': another process makes the index there and
is killed by itself after that many steps (0: never). A step is a report, or the beginning or end of a change of files.

    python kill_index.py MODEL SCOPE TEXTS_JSON
"""

import json
import os
import pathlib
import signal
import sys

import gemloupe as gl
import torch
from gemloupe.study.index.build import build

# One thread: a pool of threads does not survive a fork.
torch.set_num_threads(1)


class Steps:
    def __init__(self, left):
        self.left = left

    def step(self, *_):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, place, name):
        call = getattr(place, name)

        def stepping(*given, **options):
            self.step()
            found = call(*given, **options)
            self.step()
            return found

        setattr(place, name, stepping)


def main():
    model, scope, texts = sys.argv[1:]
    texts = json.loads(pathlib.Path(texts).read_text())
    loupe = gl.open(model, scope=scope, device="cpu")
    for line in sys.stdin:
        folder, left = line.split()
        if (child := os.fork()) == 0:
            steps = Steps(int(left))
            for name in ("replace", "unlink", "mkdir"):
                steps.around(pathlib.Path, name)
            steps.around(os, "fsync")
            build(loupe.engine, texts, folder, name="index", length=40, shard=500, together=256, tell=steps.step)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        ended = os.waitstatus_to_exitcode(status)
        print({0: "finished", -signal.SIGKILL: "killed"}.get(ended, ended), flush=True)


if __name__ == "__main__":
    main()
