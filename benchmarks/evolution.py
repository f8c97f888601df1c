"""What following a text from layer to layer costs: picture, matches, attribution, on the built-in model.

    python benchmarks/evolution.py [--rounds 5] [--threads 2] [--device cpu]

Prints one table: the fastest round and, since that says little on a busy machine, its CPU time over all threads.
`read` is the plain pass that the picture is compared with. What the browser adds is printed by
tests/ui/test_evolution.py: from running a cell to blocks that are there, and a step of scrubbing. Matches are of two
random sites of 16,384 features, as wide as the built-in model's stream and as Gemma 2 2B's, two of each, both ways.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

TEXT = """The lighthouse keeper wrote every evening in a book with a blue cover. He noted the wind, the height of the
waves, and the ships that passed"""
TOKENS, WIDTH = 32, 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    parser.add_argument("--width", type=int, default=WIDTH, help="features of the two sites that are matched")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEMLOUPE_DATA"] = folder
        measure(asked)


def measure(asked: argparse.Namespace) -> None:
    import gemloupe as gl
    import torch
    from gemloupe.study.neighbours import nearest

    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows: list[tuple[str, float, float, str]] = []

    def timed(
        name: str,
        run: Callable[[], Any],
        note: Callable[[Any], str] = lambda found: "",
        rounds: int = 0,
        after: Callable[[Any], Any] = lambda found: None,
    ) -> Any:
        spent, found = [], None
        for _ in range(rounds or asked.rounds):
            began, busy = time.perf_counter(), time.process_time()
            found = run()
            spent.append((time.perf_counter() - began, time.process_time() - busy))
            after(found)
        rows.append((name, min(wall for wall, _ in spent), min(busy for _, busy in spent), note(found)))
        return found

    with gl.open(device=asked.device) as loupe:
        ids = tuple(token.id for token in loupe.read(TEXT, sites="res.0").tokens)[:TOKENS]
        assert len(ids) == TOKENS, len(ids)

        def picture(complete: bool = False) -> Any:
            shown = loupe.evolution(ids)
            if complete:
                shown.wait()
            return shown, sum(map(size_of, shown.get_state().values()))

        def settled(shown: Any) -> None:
            shown.wait()
            shown.close()

        say = lambda found: f"{found[1] / 1e3:,.0f} kB to the browser"  # noqa: E731
        timed("the first picture: SAEs are read", picture, say, rounds=1, after=lambda found: settled(found[0]))
        timed("a picture: evolution, ribbons, what crosses", picture, say, after=lambda found: settled(found[0]))
        timed("  until all guesses are there", lambda: picture(True), say, after=lambda found: settled(found[0]))
        timed("values alone (loupe.evolve)", lambda: loupe.evolve(ids))
        timed("  and without guesses", lambda: loupe.evolve(ids, guesses=0))
        timed("read: the same sites, features only", lambda: loupe.read(ids), lambda t: f"{len(t.sites)} sites")
        target = loupe.evolve(ids, at=-1).columns[-1].guesses[-1].tokens[0][0]
        passes = count_passes(loupe.engine.loaded.model)
        found = timed("attribution of a next token", lambda: loupe.attribution(ids, target))
        forward, back = passes()
        each = f"{forward / asked.rounds:g} forward, {back / asked.rounds:g} back; {found.effects:,} effects"
        rows[-1] = (*rows[-1][:3], each)
        timed("  checking 10 of its edges", lambda: found.check(10))
        evolution = loupe.evolve(ids)
        timed("a plotly figure of a token", lambda: evolution.figure())
        feature = evolution.ribbons[0].source
        where = "from the file" if loupe._matches is not None else "from the decoders: there is no file of matches"
        timed("matches of one feature", lambda: loupe.matches(feature), lambda _: where)
    for d in (640, 2304):
        random = torch.Generator().manual_seed(0)
        one, two = (torch.nn.functional.normalize(torch.randn(asked.width, d, generator=random)) for _ in range(2))
        timed(f"matches of two sites, {asked.width:,} x {d}", lambda: nearest(one, two, 2, both=True), rounds=3)  # noqa: B023
    wide = max(len(name) for name, *_ in rows)
    print(f"{TOKENS} tokens, {asked.device or 'cpu'}, {torch.get_num_threads()} threads, fastest of {asked.rounds}")
    for name, wall, busy, note in rows:
        print(f"{name:<{wide}} {1e3 * wall:>8,.0f} ms {1e3 * busy:>8,.0f} ms CPU  {note}")


def size_of(value: Any) -> int:
    if isinstance(value, (bytes, memoryview)):
        return memoryview(value).nbytes
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    return len(str(value))


def count_passes(model: Any) -> Callable[[], tuple[int, int]]:
    """Counts from now on; the function returned says how many passes of the model there were, and gradients taken."""
    import torch

    counts = {"forward": 0, "back": 0}
    grad = torch.autograd.grad

    def counted(*given: Any, **options: Any) -> Any:
        counts["back"] += 1
        return grad(*given, **options)

    def passed(*_: Any) -> None:
        counts["forward"] += 1

    hook = model.model.register_forward_pre_hook(passed)
    torch.autograd.grad = counted

    def stop() -> tuple[int, int]:
        hook.remove()
        torch.autograd.grad = grad
        return counts["forward"], counts["back"]

    return stop


if __name__ == "__main__":
    main()
