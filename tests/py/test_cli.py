"""The command line, run as a user runs it: another process, its exit code, what it prints and where."""

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_scope
from tiny import TEXT, tiny_model

REPOSITORY = Path(__file__).parents[2]


def run(*arguments, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "gemloupe.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def refused(*arguments):
    """The one line on stderr."""
    done = run(*arguments, code=2)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gemloupe")
    return line


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model, a scope of it and text in two languages."""
    from gemloupe.load.model import load_model

    folder = tmp_path_factory.mktemp("cli")
    loaded = load_model(tiny_model("gemma3", folder / "model"), device="cpu")
    tiny_scope(loaded, folder / "scope", sites=("res.2", "mlp.1"))
    words, random = TEXT.split(), np.random.default_rng(0)
    lines = [" ".join(random.choice(words, 120)) for _ in range(40)]
    with (folder / "texts.jsonl").open("w") as file:
        for number, line in enumerate(lines):
            file.write(json.dumps({"text": line, "lang": "en" if number % 2 else "fr"}) + "\n")
    (folder / "text.txt").write_text(TEXT * 2)
    return folder


def test_the_entry_point_is_this_module():
    about = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert about["project"]["scripts"] == {"gemloupe": "gemloupe.cli:main"}


def test_help_names_the_commands_and_imports_nothing_heavy():
    said = run("--help").stdout
    assert all(command in said for command in ("evaluate", "train", "doctor", "lab"))
    code = "import sys; from gemloupe.cli import main\ntry: main(['evaluate', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(', '.join({'torch', 'transformers', 'plotly', 'pandas', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_evaluate_prints_a_table_and_writes_csv_and_figures(here, tmp_path):
    said = run(
        "evaluate", here / "texts.jsonl", "--model", here / "model", "--scope", here / "scope", "--unrounded",
        here / "scope", "--context", 24, "--contexts", 12, "--loss-contexts", 6, "--importance-contexts", 2,
        "--group-by", "lang", "--csv", tmp_path / "a/out.csv", "--figures", tmp_path / "figures",
    ).stdout  # fmt: skip
    assert said.split("\n")[1].startswith("mlp.1")
    with (tmp_path / "a/out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["site"] for row in rows] == ["mlp.1", "res.2"]
    for row in rows:
        assert int(row["contexts"]) == 6
        assert row["fvu"] == row["fvu_unrounded"]
        assert 0 < float(row["uniformity"]) <= 1
        assert int(row["contexts[en]"]) + int(row["contexts[fr]"]) == 6
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["fvu.html", "l0-delta-loss.html"]


def test_evaluate_measures_the_sites_asked_for(here):
    ask = ("evaluate", here / "text.txt", "--model", here / "model", "--scope", here / "scope", "--context", 24)
    options = ("--contexts", 8, "--loss-contexts", 1, "--importance-contexts", 0)
    assert "mlp.1" not in run(*ask, *options, "--sites", "res").stdout
    assert "att.3 is not open" in refused(*ask, *options, "--sites", "att.3")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "{here}/text.txt", "--model", "{here}/model"], "--scope"),
        (["evaluate", "{here}/none.txt"], "none.txt"),
        (["evaluate", "{here}/text.txt", "--scope", "{here}/none"], "none"),
        (["evaluate", "{here}/texts.jsonl", "--group-by", "genre"], "line 1 has no 'genre'"),
        (["evaluate", "{here}/model/model.safetensors"], "cannot be read as text"),
        (["evaluate", "{here}/text.txt", "--contexts", "0"], "'0'"),
        (["evaluate"], "texts"),
        (["evaluate", "x", "--nonsense"], "--nonsense"),
        (["train", "{here}/nowhere"], "nowhere"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_what_cannot_be_done_is_one_line(here, arguments, says):
    assert says in refused(*[argument.format(here=here) for argument in arguments])


def test_too_little_text_is_refused(here, tmp_path):
    (tmp_path / "short.txt").write_text("The cat.")
    scope = ("--model", here / "model", "--scope", here / "scope", "--context", 24)
    assert "too little text" in refused("evaluate", tmp_path / "short.txt", *scope)
    (tmp_path / "same.jsonl").write_text((json.dumps({"text": TEXT[:200]}) + "\n") * 40)
    assert "same text" in refused("evaluate", tmp_path / "same.jsonl", *scope)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    assert "line 2 is not JSON" in refused("evaluate", tmp_path / "bad.jsonl", *scope)


def test_train_makes_a_plan_runs_it_and_is_done_the_second_time(here, tmp_path):
    folder = tmp_path / "run"
    ask = ("train", folder, here / "texts.jsonl", "--model", here / "model", "--context", 24)
    options = ("--sites", "res.1,mlp.0", "--width", 64, "--l0", 4, "--batch", 64, "--epochs", 1, "--dtype", "float32")
    *said, last = run(*ask, *options).stdout.splitlines()
    assert [Path(line).parts[-2:] for line in said] == [("res.1", "sae"), ("mlp.0", "sae")]
    assert str(folder / "scope") in last and (folder / "scope" / "manifest.json").exists()
    run("train", tmp_path / "on", *ask[2:], *options, "--start", folder / "scope")
    assert (tmp_path / "on" / "scope" / "manifest.json").exists()
    from sae_lens import SAE

    assert SAE.load_from_disk(said[0]).cfg.d_sae == 64
    before = (Path(said[0]) / "sae_weights.safetensors").stat().st_mtime_ns
    assert run("train", folder).stdout.splitlines() == [*said, last]
    assert (Path(said[0]) / "sae_weights.safetensors").stat().st_mtime_ns == before
    assert "another plan" in refused(*ask, *options[:-1], "bfloat16")


def test_doctor_says_what_is_there_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("doctor", code=1, GEMLOUPE_CACHE=str(tmp_path / "file" / "cache"))
    assert "NO  cache" in done.stdout
    assert "-> set GEMLOUPE_CACHE" in done.stdout
    assert "ok  packages" in done.stdout and "torch" in done.stdout
    assert "ok  built-in SAEs" in done.stdout
    assert done.stderr == ""


def test_lab_passes_its_options_on():
    from importlib.metadata import version

    assert run("lab", "--version").stdout.strip() == version("jupyterlab")
