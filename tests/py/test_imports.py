"""The order of the rooms: data flows one way, and so do imports. Reads the source; runs only what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import gemloupe
import pytest

PACKAGE = Path(gemloupe.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# From the top: a file imports from its own room and from rooms above it.
ROOMS = (
    "vocabulary",
    "wire",
    "load",
    "run",
    "engine",
    "study",
    "safety",
    "train",
    "loupe",
    "widgets",
    "lab",
    "serve",
    "cli",
)
VOCABULARY = (
    "errors",
    "site",
    "feature",
    "sparse",
    "fidelity",
    "trace",
    "edits",
    "budget",
    "evidence",
    "label",
    "evolution",
    "evolution_figures",
    "words",
)
TORCH_ROOMS = ("load", "run", "train")
OTHER_LIBRARIES = ("sae_lens", "transformer_lens")


def room(module):
    """Room of a dotted name below gemloupe; the package itself ('') has none."""
    first = module.partition(".")[0]
    return "vocabulary" if first in VOCABULARY else first


def imports(path):
    """(module, where) of every import in a file; where is 'module', 'function' or 'typing'.

    Names below gemloupe begin with a dot, whatever the file wrote: 'from ..site import Site' is '.site'.
    """
    here = ("gemloupe", *path.relative_to(PACKAGE).with_suffix("").parts)
    package = here[:-1]

    def inside(names):
        if names[:1] != ("gemloupe",):
            return ".".join(names)
        return "." + ".".join(names[1:])

    def walk(node, where):
        for child in ast.iter_child_nodes(node):
            there = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                there = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                there = "typing"
            elif isinstance(child, ast.Import):
                for name in child.names:
                    yield inside(tuple(name.name.split("."))), where
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                base += tuple((child.module or "").split(".")) if child.module else ()
                if base == ("gemloupe",) or (child.level and child.module is None):
                    for name in child.names:  # from . import static
                        yield inside((*base, name.name)), where
                else:
                    yield inside(base), where
            yield from walk(child, there)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "module")


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def home(path):
    return room(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_up(path):
    mine = home(path)
    if mine == "__init__":  # the package's door: it names everything, and imports on first use
        assert not [m for m, where in imports(path) if m.startswith(".") and where == "module"]
        return
    assert mine in ROOMS, f"{name(path)} is in no room of the design"
    for module, where in imports(path):
        if not module.startswith("."):
            continue
        theirs = room(module[1:])
        if theirs in ("", "__version__") or where == "typing":
            continue
        # The one exception: the loupe shows widgets, and imports each when it is asked for.
        if mine == "loupe" and theirs == "widgets" and where == "function":
            continue
        assert theirs in ROOMS, f"{name(path)} imports {module}, which is in no room"
        assert ROOMS.index(theirs) <= ROOMS.index(mine), f"{name(path)} ({mine}) imports {module} ({theirs}) below it"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_torch_stays_in_its_rooms(path):
    heavy = {m.partition(".")[0]: where for m, where in imports(path) if not m.startswith(".") and where != "typing"}
    mine = home(path)
    if mine not in TORCH_ROOMS:
        assert heavy.get("torch") != "module" and heavy.get("transformers") != "module"
    if mine in ("vocabulary", "wire", "widgets"):
        assert "torch" not in heavy and "transformers" not in heavy


@pytest.mark.parametrize("path", FILES, ids=name)
def test_other_libraries_stay_behind_their_doors(path):
    if home(path) not in ("load", "train"):
        found = [m for m, _ in imports(path) if m.partition(".")[0] in OTHER_LIBRARIES]
        assert not found, f"{name(path)} imports {found}"


def test_this_walk_sees_imports(tmp_path, monkeypatch):
    """A checker that finds nothing would pass everywhere."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "wire").mkdir()
    file = tmp_path / "wire" / "x.py"
    file.write_text(
        "import torch.nn\nfrom ..site import Site\nfrom .. import errors\nfrom . import arrays\n"
        "from gemloupe.run.read import read\ndef f():\n    from ..widgets import colour\n"
        "if TYPE_CHECKING:\n    from ..loupe import Loupe\n"
    )
    assert set(imports(file)) == {
        ("torch.nn", "module"),
        (".site", "module"),
        (".errors", "module"),
        (".wire.arrays", "module"),
        (".run.read", "module"),
        (".widgets", "function"),
        (".loupe", "typing"),
    }


@pytest.mark.parametrize(
    "line",
    [
        "import gemloupe",
        "import gemloupe.loupe",
        "import gemloupe.widgets.token_heatmap",
        "import gemloupe.engine.protocol",
        "from gemloupe import TokenHeatmap, FeatureTable, Trace, SparseActs, Site, FeatureId, Refusal, Loupe, open",
    ],
)
def test_light_imports_stay_light(line):
    heavy = "{'torch', 'transformers', 'sae_lens', 'transformer_lens', 'pandas', 'plotly'}"
    code = f"import sys; {line}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr


def _environment():
    import os

    return os.environ | {"PYTHONPATH": str(PACKAGE.parent)}


def test_every_public_name_is_there():
    for public in gemloupe.__all__:
        assert getattr(gemloupe, public) is not None
    assert set(gemloupe.__all__) <= set(dir(gemloupe))
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        gemloupe.opne
