"""A jeweller's loupe for Gemma: see which features a language model holds at each token, in JupyterLab."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use, so that `import gemloupe` costs no torch and no transformers.
_WHERE = {
    "open": "loupe",
    "plan": "loupe",
    "Loupe": "loupe",
    "catalog": "load.catalog",
    "language": "words",
    "Site": "site",
    "FeatureId": "feature",
    "SparseActs": "sparse",
    "Fidelity": "fidelity",
    "Plan": "budget",
    "Label": "label",
    "Trace": "trace",
    "Token": "trace",
    "Refusal": "errors",
    "Edit": "edits",
    "add": "edits",
    "clamp": "edits",
    "scale": "edits",
    "ablate": "edits",
    "add_vector": "edits",
    "when": "edits",
    "Preset": "study.preset",
    "SteeringDesk": "widgets.steering_desk",
    "SearchResults": "widgets.search_results",
    "TokenHeatmap": "widgets.token_heatmap",
    "FeatureTable": "widgets.feature_table",
    "FeatureCard": "widgets.feature_card",
    "FeatureCards": "widgets.feature_cards",
    "LayerEvolution": "widgets.layer_evolution",
}

__all__ = [
    "Edit",
    "FeatureCard",
    "FeatureCards",
    "FeatureId",
    "FeatureTable",
    "Fidelity",
    "Label",
    "LayerEvolution",
    "Loupe",
    "Plan",
    "Preset",
    "Refusal",
    "SearchResults",
    "Site",
    "SparseActs",
    "SteeringDesk",
    "Token",
    "TokenHeatmap",
    "Trace",
    "__version__",
    "ablate",
    "add",
    "add_vector",
    "catalog",
    "clamp",
    "language",
    "open",
    "plan",
    "scale",
    "when",
]

if TYPE_CHECKING:
    from .budget import Plan
    from .edits import Edit, ablate, add, add_vector, clamp, scale, when
    from .errors import Refusal
    from .feature import FeatureId
    from .fidelity import Fidelity
    from .label import Label
    from .load.catalog import catalog
    from .loupe import Loupe, open, plan
    from .site import Site
    from .sparse import SparseActs
    from .study.preset import Preset
    from .trace import Token, Trace
    from .widgets.feature_card import FeatureCard
    from .widgets.feature_cards import FeatureCards
    from .widgets.feature_table import FeatureTable
    from .widgets.layer_evolution import LayerEvolution
    from .widgets.search_results import SearchResults
    from .widgets.steering_desk import SteeringDesk
    from .widgets.token_heatmap import TokenHeatmap
    from .words import language


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "gemloupe"}]
