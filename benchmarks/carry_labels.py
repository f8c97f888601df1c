"""The hand-given labels of the built-in SAEs, carried over to SAEs that were trained again.

    python benchmarks/carry_labels.py BEFORE AFTER [--write]

BEFORE and AFTER are scope folders with their SAEs and an index of the same text each; BEFORE/labels.json names features
({"res.12/5": "what it is about"}). A label goes to the feature of the same site that fires most strongly at the same
places, among those whose decoder rows are nearest, if it shares at least --share of its 20 strongest examples or, at a
cosine of at least --cosine, half as many. What finds no such feature is listed, and left out. `--write` writes
AFTER/labels.json; look at the cards of what is marked `moved` first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gemloupe.feature import FeatureId
from gemloupe.load.scope import Scope
from gemloupe.study.automatic import fires
from gemloupe.study.index import Index
from gemloupe.study.neighbours import directions, nearest

NEAREST = 20  # features whose examples are compared


def places(index: Index, feature: FeatureId) -> set[tuple[int, int]]:
    """Where the strongest examples of a feature are."""
    return {(one.document, one.position) for one in index.evidence(feature, 0).top}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--cosine", type=float, default=0.7)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    old, new = Scope.open(asked.before), Scope.open(asked.after)
    then, now = Index.open(asked.before / "index"), Index.open(asked.after / "index")
    if then.manifest["text"] != now.manifest["text"]:
        raise SystemExit("the two indexes are of different texts: their examples cannot be compared")
    labels = {FeatureId.of(name): text for name, text in json.loads((asked.before / "labels.json").read_text()).items()}
    best: dict[FeatureId, tuple[float, FeatureId, str]] = {}
    lost = []
    print(f"{'before':<13}{'after':<13}{'shared':>7}{'cosine':>8}  label")
    for site in sorted({feature.site for feature in labels}):
        mine, theirs = directions(old, site), directions(new, site)
        for feature, text in labels.items():
            if feature.site != site:
                continue
            examples = places(then, feature)
            ((near, cosines),) = nearest(mine[feature.index][None], theirs, NEAREST)
            candidates = [
                (len(examples & places(now, FeatureId(site, index))) / max(1, len(examples)), cosine, index)
                for index, cosine in zip(near[0].tolist(), cosines[0].tolist(), strict=True)
            ]
            shared, cosine, index = max(candidates)
            found = FeatureId(site, index)
            good = shared >= asked.share or (cosine >= asked.cosine and shared >= asked.share / 2)
            mark = "lost" if not good else "" if found == feature else "moved"
            print(f"{feature!s:<13}{found!s:<13}{shared:>7.0%}{cosine:>8.2f}  {mark:<6}{text}")
            if not good:
                lost.append((feature, found, text))
            elif found not in best or shared + cosine > best[found][0]:
                best[found] = shared + cosine, feature, text
    carried = {str(found): text for found, (_, _, text) in sorted(best.items())}
    print(f"\n{len(carried)} of {len(labels)} labels carried over")
    for feature, found, text in lost:
        print(f"lost: {feature} {text!r}; {found} fires {fires(now.evidence(found, 6))}")
    if asked.write:
        file = asked.after / "labels.json"
        file.write_text(json.dumps(carried, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {file}")


if __name__ == "__main__":
    main()
