"""A plan of trainings: jobs in any process, killed at any moment, end where one unbroken run ends."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gemloupe.load.scope import Scope
from gemloupe.train import jumprelu, plan
from gemloupe.train.recipe import Continued, Scaling, Settings, Start, train
from refusal import refused
from tiny import tiny_model

SPECIAL = [0, 1, 2, 3, 4, 5, 6]
PARTS, CONTEXTS, LENGTH = 3, 48, 65
SETTINGS = Settings(
    width=64, l0=6, epochs=1.5, batch=128, report_every=1, checkpoint_every=5, dtype="float32", dead_after=2000,
    dense=0.4, seed=3,
)  # fmt: skip
SITES = {
    "res.1": plan.SitePlan(SETTINGS),
    "res.2": plan.SitePlan(SETTINGS, start="res.1"),
    "att.0": plan.SitePlan(SETTINGS),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # bit-identical results are promised for equal numbers of threads
    yield
    torch.set_num_threads(before)


def texts(rows, seed=0):
    tokens = np.random.default_rng(seed).integers(7, 500, (rows, LENGTH)).astype(np.int32)
    tokens[:, 0] = 2
    return tokens


def make(folder, model, **others):
    given = {"special": SPECIAL, "model": str(model), "dtype": "float32", "parts": PARTS, **others}
    return plan.make(folder, texts(PARTS * CONTEXTS), texts(8, seed=1), SITES, **given)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("gemma3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def unbroken(model, tmp_path_factory):
    """(plan after one uninterrupted run, what was on the disk whenever there was progress)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make(tmp_path_factory.mktemp("whole"), model)
    held, seen = set(), []

    def watch(job, figures):
        held.add(tuple(sorted(path.name for path in (made.folder / "parts").iterdir())))
        seen.append((job.name, figures))

    made.run(watch)
    torch.set_num_threads(before)
    return made, held, seen


def results(made):
    return {
        str(file.relative_to(made.folder)): file.read_bytes()
        for file in sorted((made.folder / "sites").rglob("*.safetensors"))
        if "checkpoint" not in file.name
    }


def test_every_site_ends_as_an_sae_that_sae_lens_opens(unbroken):
    from sae_lens import SAE

    made, _, seen = unbroken
    for site in SITES:
        folder = made.folder / "sites" / site / "sae"
        theirs = SAE.load_from_disk(str(folder))
        ours = Scope.open(folder).load(site)
        assert torch.equal(theirs.W_dec, ours.decoder)
        assert ours.decoder.shape == (64, 64 if site == "att.0" else 48)
        assert (made.folder / "sites" / site / "stats.safetensors").exists()
    assert {name for name, _ in seen} == {job.name for job in made.jobs if job.kind in ("capture", "fit")}
    figures = dict(seen)["fit/res.1/2"]
    assert figures["step"] == figures["of"]
    assert {"loss", "l0", "fvu", "seconds_left", "tokens_per_second"} <= set(figures)


def test_what_sae_lens_writes_a_training_can_start_from(unbroken, tmp_path):
    from sae_lens import SAE

    made, _, _ = unbroken
    theirs = SAE.load_from_disk(str(made.folder / "sites" / "res.1" / "sae"))
    theirs.save_model(str(tmp_path / "theirs"))
    ours = Scope.open(tmp_path / "theirs").load("res.1")
    assert torch.equal(ours.encoder, theirs.W_enc.T)


def test_the_set_opens_as_one_scope(unbroken, model):
    import gemloupe as gl

    made, _, _ = unbroken
    scope = Scope.open(made.folder / "scope")
    assert {str(site) for site in scope.sites} == set(SITES)
    assert scope.stats("res.1").maximum.shape == (64,) and scope.stats("res.1").promotes.shape == (64, 10)
    assert scope.facts("res.1")["train_tokens"] > 0 and scope.facts("res.1")["l0"] > 0
    with gl.open(model, scope=made.folder / "scope", device="cpu") as loupe:
        assert loupe.read("one two")["res.2"].shape[1] == 64


def test_the_disk_never_holds_more_parts_than_promised(unbroken):
    made, held, _ = unbroken
    assert max(len(set(names) - {"held_out"}) for names in held) == made.ahead == 2
    assert sorted(path.name for path in (made.folder / "parts").iterdir()) == ["held_out"]


def test_needs_are_earlier_jobs_and_one_pass_serves_all_sites(unbroken):
    made, _, _ = unbroken
    names = [job.name for job in made.jobs]
    assert names.count("capture/1") == 1
    assert len(names) == 1 + PARTS * (2 + len(SITES)) + 1
    for job in made.jobs:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
    assert "fit/res.1/0" in next(job.needs for job in made.jobs if job.name == "fit/res.2/0")


_CHILD = """
import os, random, signal, sys, time
sys.path[:0] = {path!r}
import torch, transformers, safetensors.torch, sae_lens
torch.set_num_threads(1)
import gemloupe.load.scope, gemloupe.train.evaluate, gemloupe.load.model
from gemloupe.train.plan import Plan

draw = random.Random({seed})
for _ in range({kills}):  # fork: every run is a process of its own, without importing torch again
    reports, tell = os.pipe()
    child = os.fork()
    if child == 0:
        Plan.open({folder!r}).run(lambda job, figures: os.write(tell, b"."))
        os._exit(0)
    os.close(tell)
    for _ in range(draw.randrange(3, 25)):
        os.read(reports, 1)
    time.sleep(draw.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reports)
    done = [name for name in os.listdir({folder!r} + "/done") if name.endswith(".json")]
    print("killed" if killed else "finished", len(done), flush=True)
"""


def child(folder, *, kills=10, seed=0):
    path = [*sys.path, str(Path(__file__).parent)]
    return _CHILD.format(path=path, folder=str(folder), seed=seed, kills=kills)


def test_ten_kills_at_any_moment_change_no_bit(model, unbroken, tmp_path):
    made = make(tmp_path, model)
    out = subprocess.run(
        [sys.executable, "-c", child(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = out.stdout.split("\n")[:-1]
    assert out.returncode == 0, out.stderr
    assert [line.split()[0] for line in lines] == ["killed"] * 10, out.stdout
    assert len({line.split()[1] for line in lines}) > 2, "the kills must not all fall into the same job"
    made.run()
    whole, broken = results(unbroken[0]), results(made)
    assert list(whole) == list(broken)
    assert len(whole) == 2 * len(SITES)
    for name, content in whole.items():
        assert content == broken[name], name


def test_two_processes_share_the_jobs(model, unbroken, tmp_path):
    made = make(tmp_path, model)
    code = (
        f"import sys; sys.path[:0] = {[*sys.path]!r}\nimport torch; torch.set_num_threads(1)\n"
        f"from gemloupe.train.plan import Plan\n"
        f"Plan.open({str(tmp_path)!r}).run(lambda job, f: print(job.name, flush=True))"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=-1)
        for _ in range(2)
    ]
    did = [{*worker.communicate(timeout=300)[0].decode().split()} for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    assert not did[0] & did[1], "a job ran in both"
    assert results(made) == results(unbroken[0])


def test_a_full_disk_stops_with_a_refusal_and_costs_nothing(model, unbroken, tmp_path, monkeypatch):
    import resource

    made = make(tmp_path, model)
    limit = 100_000  # bytes a file may have: one site's activations are larger
    code = (
        f"import sys; sys.path[:0] = {[*sys.path]!r}\nimport torch; torch.set_num_threads(1)\n"
        f"from gemloupe.train.plan import Plan\nimport gemloupe.errors\n"
        f"try: Plan.open({str(tmp_path)!r}).run()\n"
        f"except gemloupe.errors.Refusal as refusal: print(refusal.code, refusal)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.stdout.startswith("cache-not-writable"), out.stdout + out.stderr
    assert str(tmp_path) in out.stdout
    made.run()
    assert results(made) == results(unbroken[0])


def test_another_plan_or_model_or_no_plan_is_refused(model, tmp_path):
    make(tmp_path / "a", model)
    make(tmp_path / "a", model)  # the same again is fine
    assert "parts" in refused("training-other-plan", lambda: make(tmp_path / "a", model, parts=2))
    other = make(tmp_path / "b", model, digest="f" * 64)
    assert "ffffffffffff" in refused("training-other-model", other.run)
    refused("training-no-plan", lambda: plan.Plan.open(tmp_path / "c"))
    refused("training-no-text", lambda: make(tmp_path / "d", model, parts=1000))
    for start in ("res.3", "res.1"):
        sites = {"res.1": plan.SitePlan(SETTINGS, start=start)}
        refused(
            "training-start-unknown",
            lambda sites=sites: plan.make(tmp_path / "e", texts(9), texts(2), sites, special=SPECIAL),
        )


def test_a_site_the_model_lacks_is_refused(model, tmp_path):
    sites = {"res.40": plan.SitePlan(SETTINGS)}
    made = plan.make(tmp_path, texts(48), texts(8), sites, special=SPECIAL, model=str(model), dtype="float32")
    assert "0 to 3" in refused("site-not-in-model", made.run)


def test_parts_run_in_order(tmp_path):
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    settings = Settings(width=24, l0=4, batch=128, epochs=0.5, dtype="float32", dense=0.5)
    assert "part 1" in refused(
        "training-part-missing",
        lambda: train(x, x, "res.1", settings, checkpoint=tmp_path, part=2, parts=3),
    )
    train(x, x, "res.1", settings, checkpoint=tmp_path, part=0, parts=3)
    refused("training-part-missing", lambda: train(x, x, "res.1", settings, checkpoint=tmp_path, part=2, parts=3))
    refused("count-unreadable", lambda: train(x, x, "res.1", settings, checkpoint=tmp_path, part=3, parts=3))
    other = lambda: train(x + 1, x, "res.1", settings, checkpoint=tmp_path, part=0, parts=3)  # noqa: E731
    refused("training-other-plan", other)


def test_a_start_carries_directions_and_how_often_they_fire():
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, 24, generator=draw), dim=1)
    on = torch.rand(20_000, 40, generator=draw) < 0.08
    x = (on * (1 + torch.rand(20_000, 40, generator=draw))) @ directions
    density = on.float().mean(0)
    carried = jumprelu.carried(x, 5 * directions, 3 * directions, density)
    torch.testing.assert_close(carried.decoder, directions, atol=1e-5, rtol=1e-5)
    fired = (carried.encode(x) > 0).float().mean(0)
    torch.testing.assert_close(fired, density, atol=2e-3, rtol=0.05)

    settings = Settings(width=40, l0=4, batch=256, epochs=0.3, dtype="float32", dense=0.3, report_every=1)
    begun = {}
    for name, start in (("random", None), ("carried", Start("x", directions, directions, density))):
        seen = []
        train(x + 3, x[:2000] + 3, "res.1", settings, progress=seen.append, start=start)
        begun[name] = seen[0]["fvu"]
    assert begun["carried"] < 0.6 * begun["random"]


def test_an_sae_that_is_trained_on_begins_as_itself():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 24, generator=draw) * torch.linspace(0.5, 20, 24) + 3
    settings = Settings(width=40, l0=4, batch=256, epochs=1, dtype="float32", dense=0.3)
    sae = train(x, x[:2000], "res.1", settings)
    scaling = Scaling.measure(2 * x[:1000] - 1)  # another text has another scaling
    again = scaling.fold(scaling.unfold(sae), sae.site)
    for name in ("encoder", "b_enc", "threshold", "decoder", "b_dec"):
        torch.testing.assert_close(getattr(again, name), getattr(sae, name), rtol=1e-4, atol=1e-4)
    seen = []
    still = replace(settings, epochs=0.1, learning_rate=1e-9, revive_every=0, report_every=1)
    after = train(x, x[:2000], "res.1", still, progress=seen.append, start=Continued("it", sae))
    torch.testing.assert_close(after.decoder, sae.decoder, rtol=1e-4, atol=1e-4)
    assert seen[0]["fvu"] < 0.5
    with pytest.raises(ValueError, match="Train on with the same width"):
        train(x, x, "res.1", replace(settings, width=32), start=Continued("it", sae))
