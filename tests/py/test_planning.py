"""What opening will cost, said before anything is loaded: against the shapes of real models and of real files."""

import gemloupe as gl
import pytest
import torch
from conftest import tiny_scope
from gemloupe.budget import Plan, said
from gemloupe.errors import Refusal
from gemloupe.load.catalog import DIMENSIONS
from gemloupe.load.model import load_model
from gemloupe.load.scope import Scope
from gemloupe.run import planning
from gemloupe.run.planning import SHAPES
from gemloupe.site import Site
from tiny import tiny_model

# Parameters, embeddings among them, as the reports and model cards count them (text half only).
PARAMETERS = {
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-pt": 999_885_952,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    import socket

    def refuse_all(*_args, **_options):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse_all)
    monkeypatch.setattr(planning, "_speed", lambda place, dtype: 1e11)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_model_of_the_catalogue_has_a_shape():
    assert SHAPES.keys() == DIMENSIONS.keys()
    for name, shape in SHAPES.items():
        known = DIMENSIONS[name]
        assert (shape.n_layers, shape.d_model, shape.z_width) == (known.n_layers, known.d_model, known.z_width)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_as_published(name):
    assert SHAPES[name].parameters == PARAMETERS[name]


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_parameters_are_those_of_the_model(tiny_folders, kind):
    loaded = load_model(tiny_folders[kind][0], device="cpu")
    one = gl.plan(tiny_folders[kind][0], scope=tiny_folders[kind][1], device="cpu")
    assert one.model_bytes == sum(p.nbytes for p in loaded.model.parameters())
    assert gl.plan(tiny_folders[kind][0], device="cpu", dtype="bf16").model_bytes == one.model_bytes // 2


def test_the_plan_of_gemma_2_2b():
    one = gl.plan("gemma-2-2b", device="cpu", dtype="bfloat16", budget="4 GB")
    assert isinstance(one, Plan) and len(one.sae_bytes) == 78
    assert one.model_bytes == 2 * PARAMETERS["gemma-2-2b"]
    # 16,384 features of 2,304 numbers, twice, and three vectors, in float32; on a CPU an int8 encoder beside it
    plain = 4 * (2 * 16384 * 2304 + 2 * 16384 + 2304)
    assert plain + 16384 * 2304 < one.sae_bytes[Site("res", 12)] < 1.15 * plain
    assert one.paged and one.resident == 4_000_000_000 // max(one.sae_bytes.values())
    assert one.download == 4 * PARAMETERS["gemma-2-2b"] + 52 * plain + 26 * 4 * (2 * 16384 * 2048 + 2 * 16384 + 2048)
    assert one.device_bytes == one.host_bytes > one.model_bytes + one.budget
    assert one.seconds is not None and one.seconds > 0 and "paging" in one.how
    assert one.fits in (True, False)


def test_a_plan_for_a_machine_that_is_elsewhere():
    if torch.cuda.is_available():
        pytest.skip("this machine has the device that the test needs missing")
    one = gl.plan("gemma-2-9b", device="cuda")
    assert one.dtype == "bfloat16" and not one.paged and one.budget == sum(one.sae_bytes.values())
    assert one.free is None and one.fits is None and one.seconds is None and "not here" in one.how
    few = gl.plan("gemma-2-9b", device="cuda", budget="10 GB", width="131k", sites="res", layers=range(18, 24))
    assert len(few.sae_bytes) == 6 and few.paged and few.resident == 2
    # on a GPU an SAE takes what its file holds, and nothing beside it
    assert set(few.sae_bytes.values()) == {4 * (2 * 131072 * 3584 + 2 * 131072 + 3584)}


def test_the_plan_says_what_opening_then_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMLOUPE_CACHE", str(tmp_path / "cache"))
    model = tiny_model("gemma2", tmp_path / "model")
    packed = tiny_scope(load_model(model, device="cpu"), tmp_path / "packed", sites=["res.0", "att.1", "mlp.2"])
    scope = Scope.open(packed).unpack(tmp_path / "plain").folder
    one = gl.plan(model, scope=scope, device="cpu", budget=10**9)
    assert one.download == 0 and not one.paged
    with gl.open(model, scope=scope, device="cpu", budget=10**9) as loupe:
        assert dict(one.sae_bytes) == {site: loupe.engine._size(site) for site in loupe.sites}
        loupe.read("The City of Light is Paris")
        assert loupe.engine.pages.held == sum(one.sae_bytes.values())
    written = sum(file.stat().st_size for file in (tmp_path / "cache" / "pages").rglob("*.safetensors"))
    weights = (model / "model.safetensors").stat().st_size
    assert one.disk == pytest.approx(weights + written, rel=0.02)


def test_the_built_in_model_needs_no_download():
    try:
        one = gl.plan(device="cpu")
    except Refusal as refusal:
        pytest.skip(str(refusal))
    assert one.model_bytes == 4 * PARAMETERS["gemma-3-270m"] and one.sae_bytes and not one.paged
    assert one.download in (0, planning._BUILTIN_SIZE)


def test_a_plan_prints_as_a_table():
    one = gl.plan("gemma-2-2b", device="cpu", budget="4 GB")
    text, page = repr(one), one._repr_html_()
    for what in ("model", "SAEs", "budget", "download", "disk", "host memory", "device memory", "a read of 128 tokens"):
        assert what in text and what in page
    assert said(one.download) in text and "paged" in text and page.count("<tr>") == len(one.rows())


def test_what_a_budget_cannot_hold_is_said():
    assert "too small" in repr(gl.plan("gemma-2-2b", device="cpu", budget="100 MB"))


def test_a_model_nobody_knows_is_planned_as_far_as_it_can_be(tmp_path):
    one = gl.plan("someone/their-gemma", device="cpu")
    assert one.model_bytes is None and one.download is None and one.seconds is None and "unknown" in repr(one)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"budget": "much"}, "budget-unreadable"),
        ({"dtype": "float16"}, "dtype-unsupported"),
        ({"width": "17k"}, "catalog-nothing"),
        ({"device": "abacus"}, "device-unavailable"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, code):
    with pytest.raises(Refusal) as refused:
        gl.plan("gemma-2-2b", **options)
    assert refused.value.code == code
