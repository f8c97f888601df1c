"""The catalogue: complete, as SAELens has it, addressable both ways, and light."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import gemloupe as gl
import pytest
from gemloupe.budget import said
from gemloupe.errors import Refusal
from gemloupe.load import catalog as module
from gemloupe.load.catalog import CORRECTIONS, DIMENSIONS, Catalog, Entry, base_model, choose, named
from gemloupe.site import Site


@pytest.fixture(scope="module")
def everything():
    return gl.catalog()


def refused(code, run):
    with pytest.raises(Refusal) as caught:
        run()
    assert caught.value.code == code
    return str(caught.value)


def test_the_announcements_saes_are_all_there():
    """Over 400 SAEs, over 30 million features: the canonical pretrained ones of 2B and 9B."""
    canonical = [one for model in ("gemma-2-2b", "gemma-2-9b") for one in gl.catalog(model) if one.canonical]
    assert len(canonical) == 420
    assert sum(one.width for one in canonical) == 32_702_464
    assert Catalog(tuple(canonical)).features == 32_702_464


def test_nothing_of_the_registry_is_lost(everything):
    registry = {name: about for name, about in module._registry().items() if name.startswith("gemma-scope-")}
    theirs = Counter({name: len(about["saes"]) for name, about in registry.items()})
    assert Counter(one.release for one in everything) == theirs
    assert len({(one.release, one.id) for one in everything}) == len(everything)
    assert sum(one.site is None for one in everything) == 8  # the embeddings' SAEs of 2B and 9B


def test_entries_are_what_sae_lens_says(everything):
    """Compared with SAELens's own reading of its registry, but for the corrections."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    canonical_page = {(one.repo, one.path): one.neuronpedia for one in everything if one.canonical}
    for one in everything:
        theirs = directory[one.release]
        fixed = CORRECTIONS.get((one.release, one.id), {})
        assert (one.repo, one.path) == (theirs.repo_id, theirs.saes_map[one.id])
        if "neuronpedia" not in fixed:
            page = theirs.neuronpedia_id[one.id] or canonical_page.get((one.repo, one.path))
            assert one.neuronpedia == page
        if theirs.expected_l0[one.id] and "l0" not in fixed:
            assert one.l0 == theirs.expected_l0[one.id]
        assert one.l0 and one.l0 > 0


def test_shapes_and_sites_are_what_sae_lens_says(everything):
    """SAELens works these out of a path, for Gemma Scope without the network."""
    from gemloupe.load.sae import site_of_hook
    from sae_lens.loading.pretrained_sae_loaders import get_gemma_2_config_from_hf

    checked = 0
    for one in everything:
        if one.generation == 1 and one.kind in ("res", "mlp", "att"):
            theirs = get_gemma_2_config_from_hf(one.repo, one.path, "cpu")
            assert (one.d_in, one.width) == (theirs["d_in"], theirs["d_sae"])
            assert site_of_hook(theirs["hook_name"]) == one.site
            assert theirs["model_name"] == one.model
            checked += 1
    assert checked > 2_000


@pytest.mark.parametrize("model", DIMENSIONS)
def test_dimensions_are_what_transformer_lens_says(model):
    import inspect
    import re

    from transformer_lens import loading_from_pretrained as loading

    source = inspect.getsource(loading)
    name = model.removesuffix("-pt")
    block = source[source.index(f'official_model_name.startswith("google/{name}') :][:1500]
    theirs = {key: int(re.search(rf'"{key}": (\d+)', block)[1]) for key in ("d_model", "n_layers", "n_heads", "d_head")}
    ours = DIMENSIONS[model]
    assert (ours.d_model, ours.n_layers) == (theirs["d_model"], theirs["n_layers"])
    assert ours.z_width == theirs["n_heads"] * theirs["d_head"]


@pytest.mark.parametrize("key", CORRECTIONS, ids=str)
def test_corrections_are_still_needed(key):
    """Fails when SAELens has fixed it: then the row can go."""
    release, identity = key
    about = module._registry()[release]
    row = about if identity is None else next(one for one in about["saes"] if one["id"] == identity)
    for field, (theirs, ours) in CORRECTIONS[key].items():
        assert row.get(field) == theirs != ours
        for one in gl.catalog():
            if one.release == release and identity in (None, one.id):
                assert getattr(one, field) == ours


def test_every_layer_of_a_name_agrees_with_the_rest(everything):
    """What is said twice is said alike: the page's layer and width, the path's L0, the layers there are."""
    for one in everything:
        if one.neuronpedia is not None and one.site is not None:
            source = one.neuronpedia.partition("/")[2]
            assert source.startswith(f"{one.layer}-gemmascope-"), one
            assert module._said_width(one.width) in source, one
        if one.site is not None:
            assert one.layer < DIMENSIONS[base_model(one.model)].n_layers
        if one.generation == 1:
            assert one.path.endswith(f"_{one.l0:g}")


def test_names_lead_both_ways(everything):
    table = {}
    for one in everything:
        assert table.setdefault(str(one), one) is one
    for one in everything[::97]:
        assert everything.find(str(one)) == one
    paged = [one for one in everything if one.neuronpedia is not None]
    assert len({one.neuronpedia for one in paged}) == 888
    for one in paged[::50]:
        found = everything.find(one.neuronpedia)
        assert (found.repo, found.path) == (one.repo, one.path)
    dogs = everything.find("https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/12082?embed=true")
    assert (dogs.site, dogs.width, dogs.l0) == (Site("res", 20), 16384, 71)
    assert dogs == everything.find("gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical")
    [same] = gl.catalog("gemma-2-2b").filter("res.20", width="16k", l0="canonical")
    assert same == dogs


def test_known_entries():
    [one] = gl.catalog("google/gemma-2-2b").filter("res.12", width=16384, l0=82, release="gemma-scope-2b-pt-res")
    assert one.file == "layer_12/width_16k/average_l0_82/params.npz"
    assert one.bytes == 4 * (2 * 2304 * 16384 + 2 * 16384 + 2304)
    assert one.neuronpedia == "gemma-2-2b/12-gemmascope-res-16k"
    [two] = (
        gl.catalog("gemma-3-4b-it")
        .filter("transcoder.17", width="16k", l0="big", affine=True)
        .filter(release="gemma-scope-2-4b-it-transcoders")
    )
    assert two.file == "transcoder/layer_17_width_16k_l0_big_affine/params.safetensors"
    assert two.affine and two.bytes == 4 * (2 * 2560 * 16384 + 2 * 16384 + 2560 + 2560**2)
    assert gl.catalog("gemma-2-2b").filter("att")[0].d_in == 2048  # not the model's width


def test_a_chat_model_gets_its_base_models_and_is_told():
    table = gl.catalog("gemma-2-2b-it")
    assert table.entries == gl.catalog("gemma-2-2b").entries
    assert "not on the chat model gemma-2-2b-it" in repr(table) and "not on the chat model" in table._repr_html_()
    assert {one.model for one in gl.catalog("gemma-2-9b-it")} == {"gemma-2-9b-it"}


@pytest.mark.parametrize("given", ["gemma-3-1b", "google/gemma-3-1b-pt", "gemma-3-1b-pt"])
def test_spellings_of_gemma_3(given):
    assert {one.model for one in gl.catalog(given)} == {"gemma-3-1b-pt"}


@pytest.mark.parametrize(
    ("narrow", "nearest"),
    [
        ({"width": "17k"}, "16k"),
        ({"width": 16000}, "16k"),
        ({"layer": 26}, "25"),
        ({"layer": range(24, 28)}, "25"),
        ({"site": "res.26"}, "res.2"),
        ({"site": "attn"}, "att"),
        ({"site": "res.12", "width": "16k", "l0": 80}, "82"),
        ({"l0": "medium"}, "canonical"),
        ({"release": "gemma-scope-2b-res"}, "gemma-scope-2b-pt-res"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(narrow, nearest):
    message = refused("catalog-nothing", lambda: gl.catalog("gemma-2-2b").filter(**narrow))
    assert nearest in message.partition("nearest there is: ")[2].partition(". gl.")[0].split(", ")


def test_unknown_names_are_refused_with_the_nearest(everything):
    assert "gemma-2-2b" in refused("catalog-nothing", lambda: gl.catalog("gemma-2-2c"))
    refused("catalog-nothing", lambda: gl.catalog("llama-3"))
    refused("catalog-nothing", lambda: gl.catalog(7))
    message = refused("catalog-unknown", lambda: everything.find("gemma-2-2b/20-gemmascope-res-17k"))
    assert "gemma-2-2b/20-gemmascope-res-16k" in message
    assert "gemma-scope-2b-pt-res" in module.nearest_names("gemma-scope-2b-pt-rez")
    assert named("gemma-scope-2b-pt-rez") is None


def test_a_registry_that_is_not_installed_is_said(monkeypatch):
    module._registry.cache_clear()
    try:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        refused("registry-missing", module._registry)
    finally:
        module._registry.cache_clear()


def test_the_table_prints_and_becomes_a_frame(everything):
    table = gl.catalog("gemma-2-2b").filter("res", layer=12)
    text = repr(table)
    assert "12-gemmascope-res-16k__l0-176" in text and "302 MB" in text
    assert text.startswith(f"{len(table)} SAEs, {table.features:,} features, {said(table.bytes)}; ")
    assert "… and " in repr(everything) and len(repr(everything).splitlines()) < 30
    frame = table.to_pandas()
    assert len(frame) == len(table) and list(frame.columns) == list(module._COLUMNS)
    assert set(frame["layer"]) == {12} and frame["width"].min() == 16384
    html = table._repr_html_()
    assert "https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k" in html
    wild = Catalog((replace(table[0], id="<script>alert(1)</script>"),))
    assert "<script>" not in wild._repr_html_()
    assert len(table[:2]) == 2 and isinstance(table[:2], Catalog) and isinstance(table[0], Entry)


@pytest.mark.parametrize(
    ("model", "count", "first", "releases"),
    [
        ("gemma-2-2b", 78, 16384, {f"gemma-scope-2b-pt-{kind}-canonical" for kind in ("res", "mlp", "att")}),
        ("gemma-2-9b", 126, 16384, {f"gemma-scope-9b-pt-{kind}-canonical" for kind in ("res", "mlp", "att")}),
        ("gemma-2-9b-it", 3, 16384, {"gemma-scope-9b-it-res-canonical"}),
        ("gemma-2-27b", 3, 131072, {"gemma-scope-27b-pt-res-canonical"}),
        ("gemma-3-270m", 54, 16384, {f"gemma-scope-2-270m-pt-{kind}-all" for kind in ("res", "mlp", "att")}),
    ],
)
def test_what_a_model_opens_with(model, count, first, releases):
    chosen = choose(gl.catalog(model))
    assert len(chosen) == count == len({one.site for one in chosen})
    assert {one.width for one in chosen} == {first}
    assert {one.release for one in chosen} == releases
    assert [one.site for one in chosen] == sorted(one.site for one in chosen)


def test_choosing_prefers_canonical_then_near_100_then_medium():
    two = gl.catalog("gemma-2-2b")
    [one] = choose(two, sites="res", layers=12)
    assert one.canonical and one.l0 == 82
    [wide] = choose(two, sites="res", layers=12, width="131k")  # has no canonical one
    assert not wide.canonical
    others = two.filter("res.12", width="131k")
    assert abs(wide.l0 - 100) <= min(abs(other.l0 - 100) for other in others) * 1.5
    [transcoder] = choose(two, sites="transcoder", layers=19)
    assert transcoder.neuronpedia == "gemma-2-2b/19-gemmascope-transcoder-16k"
    [medium] = choose(gl.catalog("gemma-3-270m"), sites="res", layers=12, width="65k")
    assert medium.level == "medium" and medium.neuronpedia
    assert len(choose(gl.catalog("gemma-2-9b"), sites="res", layers=range(18, 24), width="131k")) == 6
    with pytest.raises(Refusal, match="embeddings"):
        choose(Catalog(tuple(one for one in two if one.site is None)))


def test_the_catalogue_is_light():
    heavy = "{'torch', 'transformers', 'sae_lens', 'transformer_lens', 'pandas'}"
    code = (
        "import sys, gemloupe as gl; c = gl.catalog('gemma-2-2b'); repr(c); c._repr_html_(); "
        f"sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
