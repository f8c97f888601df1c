"""Opening models: the right class, precision and place; every refusal before anything wrong can run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gemloupe
import huggingface_hub
import pytest
import torch
import transformers
from gemloupe.errors import Refusal
from gemloupe.load import builtin, memory
from gemloupe.load import model as loading
from gemloupe.load.builtin import BUILTIN_DIGEST, builtin_model
from gemloupe.load.model import _named_by_digest, load_model
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, SPECIALS, tiny_config, tiny_model

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123"


@pytest.fixture(scope="session", params=["gemma2", "gemma3"])
def folder(request, tmp_path_factory):
    return tiny_model(request.param, tmp_path_factory.mktemp("model") / request.param, instruct=True)


@pytest.fixture
def copy(tmp_path):
    """A tiny Gemma 3 folder that a test may spoil."""
    return tiny_model("gemma3", tmp_path / "tiny")


def refusal(code, *args, **kwargs):
    with pytest.raises(Refusal) as caught:
        load_model(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return str(caught.value)


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- a folder ---


def test_in_hugging_faces_cache_the_digest_is_the_files_name(folder, tmp_path):
    weights = (folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (snapshot / file.name).write_bytes(file.read_bytes())
    (tmp_path / "blobs" / digest).write_bytes(weights)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / digest)
    assert load_model(snapshot, device="cpu").digest == digest
    two = [snapshot / f"part-{n}.safetensors" for n in (1, 2)]
    for part in two:
        part.symlink_to(tmp_path / "blobs" / digest)
    (snapshot / "model.safetensors").unlink()
    assert _named_by_digest(snapshot) == hashlib.sha256((digest * 2).encode()).hexdigest()
    two[1].unlink()
    two[1].write_bytes(weights)
    assert _named_by_digest(snapshot) is None


def test_folder_opens_ready_to_run(folder):
    loaded = load_model(folder, device="cpu")
    assert loaded.architecture == {"gemma2": "gemma2", "gemma3": "gemma3_text"}[folder.name]
    assert (loaded.id, loaded.folder, loaded.revision) == (folder.name, folder, None)
    assert (loaded.device, loaded.dtype, loaded.context, loaded.bos) == ("cpu", "float32", CONTEXT, 2)
    assert loaded.digest is None  # reading gigabytes only for that would take too long
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.config._attn_implementation == "eager"
    assert any("cpu" in note and "float32" in note for note in loaded.notes)


def test_every_special_token_counts_as_special(folder):
    assert load_model(folder, device="cpu").special == frozenset(range(len(SPECIALS)))


def test_numbers_are_transformers_own(folder):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([[2, 300, 310, 320, 330, 340]])
    with torch.inference_mode():
        assert torch.equal(load_model(str(folder), device="cpu").model(ids).logits, theirs(ids).logits)


def test_soft_caps_of_gemma_2_are_on(tmp_path):
    """With soft-caps left out the logits pass 30; so does an attention score of this model pass 50."""
    folder = tiny_model("gemma2", tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 50
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] *= 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[2, *range(300, 330)]])
    found = {}
    for caps in ("both", "final", "none"):
        if caps == "final":
            edit(folder, attn_logit_softcapping=None)
        elif caps == "none":
            edit(folder, attn_logit_softcapping=None, final_logit_softcapping=None)
        with torch.inference_mode():
            found[caps] = load_model(folder, device="cpu").model(ids).logits
    assert found["both"].abs().max() <= 30
    assert found["none"].abs().max() > 30
    assert not torch.allclose(found["both"], found["final"], atol=1e-2)


def test_bfloat16_on_request(folder):
    for asked in ("bfloat16", "bf16", torch.bfloat16):
        loaded = load_model(folder, device="cpu", dtype=asked)
        assert loaded.dtype == "bfloat16"
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_sharded_weights(folder, tmp_path):
    model = load_model(folder, device="cpu").model
    shards = tmp_path / "shards"
    shutil.copytree(folder, shards, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    ids = torch.tensor([[2, 300, 310]])
    with torch.inference_mode():
        assert torch.equal(load_model(shards, device="cpu").model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("layout", ["hub", "transformers 5"])
def test_text_half_of_a_model_with_vision(copy, layout):
    """The larger Gemma 3 keep their text half under a prefix; none of it may be lost or left random."""
    ids = torch.tensor([[2, 300, 310, 320]])
    with torch.inference_mode():
        expected = load_model(copy, device="cpu").model(ids).logits
    weights = load_file(copy / "model.safetensors")
    prefix = {"hub": "language_model.model.", "transformers 5": "model.language_model."}[layout]
    moved = {prefix + name.removeprefix("model."): tensor for name, tensor in weights.items()}
    moved["vision_tower.vision_model.post_layernorm.weight"] = torch.ones(8)
    save_file(moved, copy / "model.safetensors", metadata={"format": "pt"})
    text = tiny_config("gemma3")
    (copy / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {}}))
    loaded = load_model(copy, device="cpu")
    assert loaded.architecture == "gemma3_text"
    assert any("text half" in note for note in loaded.notes)
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, expected)


def test_loading_says_nothing_of_its_own(folder, capfd):
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()
    load_model(folder, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == transformers.logging.WARNING  # the user's setting is as it was
    assert transformers.utils.logging.is_progress_bar_enabled()


# --- precision and device ---


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "fp16", "half", "int8", "float64", 16])
def test_other_precisions_are_refused(folder, dtype):
    message = refusal("dtype-unsupported", folder, dtype=dtype)
    assert str(dtype).removeprefix("torch.") in message
    assert "'bfloat16' or 'float32'" in message


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "gpu", "meta", "", "cpu:x"])
def test_absent_devices_are_refused(folder, device):
    message = refusal("device-unavailable", folder, device=device)
    assert repr(device) in message
    assert "cpu" in message


def test_device_is_refused_before_anything_is_converted(monkeypatch):
    monkeypatch.setattr(loading, "builtin_model", lambda progress: pytest.fail("converted"))
    refusal("device-unavailable", device="cuda:99")
    refusal("dtype-unsupported", dtype="float16")


class _Cuda:
    """torch, as on a machine with GPUs."""

    backends = torch.backends
    device = torch.device

    def __init__(self, *capabilities):
        self.cuda, self._capabilities = self, capabilities

    def is_available(self):
        return bool(self._capabilities)

    def device_count(self):
        return len(self._capabilities)

    def get_device_capability(self, name):
        return self._capabilities[int(name.removeprefix("cuda:"))]

    def get_device_name(self, name):
        return "Some GPU"


@pytest.mark.parametrize(
    ("capabilities", "device", "dtype", "expected"),
    [
        (((9, 0),), None, None, ("cuda:0", "bfloat16")),
        (((9, 0),), "cpu", None, ("cpu", "float32")),
        (((9, 0),), "cuda", "float32", ("cuda:0", "float32")),
        (((9, 0), (7, 5)), "cuda:1", None, ("cuda:1", "float32")),  # a T4 has no bfloat16 of its own
        (((7, 5),), None, "bfloat16", ("cuda:0", "bfloat16")),
    ],
)
def test_choice_of_device_and_precision(capabilities, device, dtype, expected):
    *chosen, notes = loading._place(_Cuda(*capabilities), device, dtype)
    assert tuple(chosen) == expected
    assert expected[0] in notes[0]
    assert expected[1] in notes[0]
    emulated = capabilities[-1] == (7, 5) and dtype == "bfloat16"
    assert any("emulates" in note for note in notes) == emulated


# --- memory ---


def test_memory_is_counted_from_the_headers(folder, copy):
    model = load_model(folder, device="cpu").model
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert memory.weights_bytes(folder, "float32") == (4 * numbers, True)
    assert memory.weights_bytes(folder, "bfloat16") == (2 * numbers, False)
    next(copy.glob("*.safetensors")).write_bytes(b"nothing")
    assert memory.weights_bytes(copy, "float32")[0] == 0


@pytest.mark.parametrize(
    ("free", "dtype", "says"),
    [
        (100, "bfloat16", "in main memory. Close other programs"),  # must be copied, since float32 is stored
        (100, "float32", None),  # is mapped, and slow
        (1 << 40, "bfloat16", None),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_loaded(folder, monkeypatch, free, dtype, says):
    monkeypatch.setattr(loading, "free_memory", lambda: free)
    monkeypatch.setattr(loading, "free_bytes", lambda device: free)
    if says is not None:
        monkeypatch.setattr(loading, "_weights", lambda *_: pytest.fail("loaded"))
        assert says in refusal("model-too-large", folder, device="cpu", dtype=dtype)
        return
    notes = load_model(folder, device="cpu", dtype=dtype).notes
    assert any("may be slow" in note for note in notes) == (free == 100)


def test_a_gpu_that_is_too_small_is_said_with_what_to_do(folder, monkeypatch):
    monkeypatch.setattr(loading, "free_bytes", lambda device: 100)
    for dtype, instead in (("float32", "dtype='bfloat16'"), ("bfloat16", "a smaller model")):
        with pytest.raises(Refusal) as refused:
            loading._room(folder, "gemma-2-9b", "cuda:0", dtype, None)
        assert refused.value.code == "model-too-large" and instead in str(refused.value)
        assert "gemma-2-9b" in str(refused.value) and "on cuda:0" in str(refused.value)


def test_memory_is_said_before_a_large_model_is_loaded(folder, monkeypatch, capfd):
    monkeypatch.setattr(loading, "_WORTH_SAYING", 100)
    heard = []
    load_model(folder, device="cpu", progress=lambda doing, share: heard.append(doing))
    assert "in float32 on cpu, where" in heard[0] and capfd.readouterr() == ("", "")
    load_model(folder, device="cpu")
    assert "in float32 on cpu, where" in capfd.readouterr().err


# --- what is no model, or not one of ours ---


@pytest.mark.parametrize("kind", ["llama", "gemma", "gemma3n", "gpt2", None])
def test_other_models_are_refused(copy, kind):
    edit(copy, model_type=kind)
    message = refusal("model-unsupported", copy)
    assert (kind or "nameless") in message
    assert "Gemma 2 and Gemma 3" in message


@pytest.mark.parametrize(
    "given", ["./no/such/folder", "/no/such/folder", "~/nowhere/at/all", "a b", "a/b/c", Path("x")]
)
def test_no_such_folder(given):
    message = refusal("model-not-found", given)
    assert "no such folder" in message
    assert str(given) in message
    assert "nothing for the built-in model" in message


@pytest.mark.parametrize("given", [0, "", 3.5, ["gemma-2-2b"]])
def test_no_name_at_all(given):
    assert repr(given) in refusal("model-not-found", given)


def test_a_file_is_no_folder(copy):
    assert "a file, not a folder" in refusal("model-not-found", copy / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_incomplete_folder(copy, name):
    (copy / name).unlink()
    assert name in refusal("model-not-found", copy)


def test_pickled_weights_are_not_opened(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickles" in refusal("model-not-found", copy)
    (copy / "pytorch_model.bin").unlink()
    assert "no safetensors weights" in refusal("model-not-found", copy)


def test_code_in_a_folder_is_never_run(copy):
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    edit(copy, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_model(copy, device="cpu").architecture == "gemma3_text"


@pytest.mark.parametrize("damage", ["missing", "shape", "truncated", "not safetensors"])
def test_damaged_weights_are_refused(copy, damage):
    """transformers fills missing tensors with random numbers, which would look like a model."""
    path = copy / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.2.mlp.down_proj.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "shape":
        weights[name] = torch.ones(3, 3)
    save_file(weights, path, metadata={"format": "pt"})
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 100)
    elif damage == "not safetensors":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    message = refusal("model-damaged", copy)
    if damage in ("missing", "shape"):
        assert name in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_settings_are_refused(copy, name):
    (copy / name).write_text('{"model_type": "gem')
    assert "read" in refusal("model-damaged", copy)


# --- the Hub ---


def response(status):
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


def hub_errors():
    import httpx

    return {
        "gated": (errors.GatedRepoError("gated", response=response(403)), "accept its licence"),
        "absent": (errors.RepositoryNotFoundError("404", response=response(404)), "no such model"),
        "offline": (errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
        "no network": (httpx.ConnectError("name resolution"), "cannot be reached"),
        "timeout": (TimeoutError("timed out"), "cannot be reached"),
        "refused": (ConnectionRefusedError(111, "refused"), "cannot be reached"),
        "empty": (errors.RemoteEntryNotFoundError("404", response=response(404)), "no config.json"),
        "busy": (errors.HfHubHTTPError("429", response=response(429)), "slow down"),
        "down": (errors.HfHubHTTPError("503", response=response(503)), "status 503"),
        "full": (OSError(28, "No space left on device"), "No space left on device"),
    }


@pytest.mark.parametrize("case", sorted(hub_errors()))
def test_the_hubs_answers_are_told_apart(monkeypatch, case):
    error, said = hub_errors()[case]

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    message = refusal("model-not-found", "someone/model")
    assert said in message
    assert sum(other in message for other in {said for _, said in hub_errors().values()}) == 1
    assert "'someone/model'" in message


def test_an_unknown_error_is_not_dressed_up(monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(ZeroDivisionError):
        load_model("someone/model")


def test_weights_are_not_fetched_for_another_kind_of_model(copy, monkeypatch):
    edit(copy, model_type="llama")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(copy / "config.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    refusal("model-unsupported", "someone/model")


@pytest.mark.parametrize(
    ("given", "asked", "id"),
    [
        ("gemma-2-2b", "google/gemma-2-2b", "gemma-2-2b"),
        ("google/gemma-2-2b", "google/gemma-2-2b", "gemma-2-2b"),
        ("someone/gemma-2-2b-mine", "someone/gemma-2-2b-mine", "someone/gemma-2-2b-mine"),
    ],
)
def test_hub_id_opens_the_snapshot(copy, monkeypatch, given, asked, id):
    snapshot = copy.rename(copy.parent / "0123abcd")
    seen = []

    def config(identifier, name):
        seen.append((identifier, name))
        return str(snapshot / name)

    def weights(identifier, *, revision, allow_patterns):
        seen.append((identifier, revision))
        assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", config)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", weights)
    loaded = load_model(given, device="cpu")
    assert seen == [(asked, "config.json"), (asked, "0123abcd")]
    assert (loaded.id, loaded.revision) == (id, "0123abcd")


def test_truly_offline(tmp_path):
    """The Hub's own code, told to stay offline, with an empty cache."""
    program = "from gemloupe.load.model import load_model; load_model('google/gemma-2-2b')"
    environment = os.environ | {
        "PYTHONPATH": str(Path(gemloupe.__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": TOKEN,
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No model at 'google/gemma-2-2b': Hugging Face cannot be reached" in done.stderr
    assert TOKEN not in done.stderr + done.stdout


@pytest.mark.parametrize("given", [TOKEN, f"https://user:{TOKEN}@huggingface.co/google/gemma-2-2b", f"./{TOKEN}/x"])
def test_tokens_never_reach_a_message(given, monkeypatch):
    def fails(*_, **__):
        raise errors.RepositoryNotFoundError("404", response=response(404))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    assert TOKEN not in refusal("model-not-found", given)


# --- the built-in model ---


@pytest.fixture(scope="module")
def real():
    return load_model(device="cpu")


def test_builtin_is_what_it_says(real):
    assert (real.id, real.architecture, real.digest) == ("gemma-3-270m", "gemma3_text", BUILTIN_DIGEST)
    assert (real.context, real.bos, real.dtype) == (32768, 2, "float32")
    assert {0, 1, 2, 3, 105, 106} <= real.special
    assert not {107, 108, 138, 236746} & real.special  # newlines, two spaces, 'a'
    assert any("Q4_K_M" in note for note in real.notes)


def test_builtin_tokenizer_reads_any_text(real):
    tokens = real.tokenizer("The City of Light is Paris").input_ids
    assert tokens == [2, 818, 4085, 529, 10847, 563, 9079]
    for text in ("a  b\n\n\nc\td", " leading", "trailing ", "日本語 👩‍🚀 مرحبا", "\u202ez\u0301\u0301", "\x00\x7f"):
        assert real.tokenizer.decode(real.tokenizer(text).input_ids[1:]) == text


def test_builtin_continues_as_the_model_does(real):
    ids = real.tokenizer("Paris is the capital of", return_tensors="pt")
    with torch.inference_mode():
        out = real.model.generate(**ids, max_new_tokens=6, do_sample=False)
    assert real.tokenizer.decode(out[0, ids.input_ids.shape[1] :]).startswith(" France")


def test_builtin_folder_is_recognised_when_named(real):
    assert (load_model(real.folder, device="cpu").id, real.folder) == ("gemma-3-270m", builtin_model())


def test_builtin_opens_in_seconds_without_reading_its_weights_twice(real, monkeypatch):
    monkeypatch.setattr(builtin, "_sha256", lambda path: pytest.fail("the weights were read to the end"))
    monkeypatch.setattr(builtin, "_convert", lambda *_: pytest.fail("converted again"))
    assert load_model(device="cpu").digest == BUILTIN_DIGEST


def test_importing_the_room_imports_no_torch():
    program = (
        "import sys, gemloupe.load.model, gemloupe.load.builtin; print({'torch', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(gemloupe.__file__).parents[1])}
    assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True) == "set()\n"
