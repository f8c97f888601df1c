"""What a loupe says of itself."""

from gemloupe.loupe import _runs
from gemloupe.site import Site


def test_sites_of_one_kind_and_width_are_said_together():
    widths = {Site("res", layer): 2048 for layer in range(12)} | {Site("att", 3): 1024, Site("att", 5): 1024}
    widths |= {Site("mlp", 0): 1280, Site("mlp", 1): 1280, Site("mlp", 2): 2048}
    assert list(_runs(widths)) == [
        "res.0 to res.11 (2,048)",
        "mlp.0 to mlp.1 (1,280)",
        "mlp.2 (2,048)",
        "att.3 (1,024)",
        "att.5 (1,024)",
    ]
    assert list(_runs({})) == []
