"""A jeweller's loupe for Gemma: see which features a language model holds at each token, in JupyterLab."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use, so that `import gemloupe` costs no torch and no transformers.
_WHERE = {
    "open": "loupe",
    "Loupe": "loupe",
    "Site": "site",
    "FeatureId": "feature",
    "SparseActs": "sparse",
    "Trace": "trace",
    "Token": "trace",
    "Refusal": "errors",
    "TokenHeatmap": "widgets.token_heatmap",
    "FeatureTable": "widgets.feature_table",
}

__all__ = [
    "FeatureId",
    "FeatureTable",
    "Loupe",
    "Refusal",
    "Site",
    "SparseActs",
    "Token",
    "TokenHeatmap",
    "Trace",
    "__version__",
    "open",
]

if TYPE_CHECKING:
    from .errors import Refusal
    from .feature import FeatureId
    from .loupe import Loupe, open
    from .site import Site
    from .sparse import SparseActs
    from .trace import Token, Trace
    from .widgets.feature_table import FeatureTable
    from .widgets.token_heatmap import TokenHeatmap


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
