"""The cache folder: whole files or none, one writer at a time, refusals that say what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import gemloupe
import pytest
from gemloupe.errors import Refusal
from gemloupe.load import cache


def test_folder_is_the_users_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.setenv("GEMLOUPE_CACHE", "~/loupe")
    assert cache.folder() == Path.home() / "loupe"
    monkeypatch.setenv("GEMLOUPE_CACHE", "")
    assert cache.folder().name == "gemloupe"


@pytest.mark.parametrize("number", sorted(cache.CANNOT_WRITE))
def test_what_the_system_says_becomes_advice(number, tmp_path):
    with pytest.raises(Refusal) as caught, cache.explained("1.2 GB", tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == "cache-not-writable"
    assert isinstance(caught.value, OSError)
    for fact in (str(tmp_path), os.strerror(number), "1.2 GB", "GEMLOUPE_CACHE"):
        assert fact in str(caught.value)


def test_other_errors_are_left_alone():
    with pytest.raises(FileNotFoundError), cache.explained("1 GB"):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_space_is_asked_for_first(tmp_path):
    cache.require_space(1, tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        cache.require_space(10**18, tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    cache.write_atomically(path, b"one")

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(os, "fsync", interrupted)
        cache.write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    cache.write_atomically(path, b"three")
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


def test_real_full_disk_leaves_nothing(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path; from gemloupe.load import cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with cache.explained('5 kB'): cache.write_atomically(Path(sys.argv[1]), bytes(5000))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(gemloupe.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Set GEMLOUPE_CACHE to a folder with 5 kB free" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "model"
    with pytest.raises(KeyboardInterrupt), cache.folder_atomically(target) as made:
        (made / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    for text in ("one", "two"):
        (target.parent / ".model.old").mkdir()
        (target.parent / ".model.old" / "left by a killed process").touch()
        with cache.folder_atomically(target) as made:
            (made / text).write_text(text)
            assert not (target / text).exists()
        assert [p.name for p in target.iterdir()] == [text]
    assert list(target.parent.iterdir()) == [target]


def test_open_files_keep_their_content_when_the_folder_is_replaced(tmp_path):
    target = tmp_path / "model"
    with cache.folder_atomically(target) as made:
        (made / "file").write_text("old")
    with (target / "file").open() as held:
        with cache.folder_atomically(target) as made:
            (made / "file").write_text("new")
        assert held.read() == "old"
    assert (target / "file").read_text() == "new"


def test_failed_replacement_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with cache.folder_atomically(target) as made:
        (made / "file").write_text("old")
    real = Path.replace

    def fails(self, other):
        if Path(other) == target and self.name.startswith(".model.") and not self.name.endswith(".old"):
            raise OSError(errno.EROFS, "read-only")
        return real(self, other)

    with (
        monkeypatch.context() as broken,
        pytest.raises(OSError, match="read-only"),
        cache.folder_atomically(target) as made,
    ):
        broken.setattr(Path, "replace", fails)
    assert (target / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_second_process_waits_and_is_told(tmp_path):
    program = (
        "import sys; from pathlib import Path; from gemloupe.load import cache\n"
        "with cache.alone(Path(sys.argv[1]), waiting=lambda: print('waiting', flush=True)): print('in', flush=True)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(gemloupe.__file__).parents[1])}
    with cache.alone(tmp_path / "deep" / "model"):
        other = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "deep" / "model")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "waiting\n"
        assert other.poll() is None
    assert other.communicate(timeout=30)[0] == "in\n"


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="inside"), cache.alone(tmp_path / "model"):
        raise ValueError("inside")
    with cache.alone(tmp_path / "model", waiting=lambda: pytest.fail("still locked")):
        pass
