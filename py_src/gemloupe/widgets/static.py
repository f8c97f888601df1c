"""The static twin of a widget: HTML that holds its last state, its code and its style. No kernel, no network.

js/widgets/_static.ts says what the page must look like and mounts the widget in it. Where scripts do not run (an
untrusted notebook), the plain picture stays.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..wire.arrays import as_json
from ..words import tag

_FOLDER = Path(__file__).parent.parent / "static"

_PAGE = """<!doctype html>
<html lang="{lang}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>gemloupe</title>
<style>:root{{color-scheme:light dark}}body{{margin:24px;font-family:system-ui,sans-serif}}</style></head>
<body>
{fragment}
</body>
</html>
"""


@cache
def _asset(name: str) -> str:
    path = _FOLDER / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def html(name: str, state: dict[str, Any], picture: str, *, page: bool, holds: tuple[str, ...] = ()) -> str:
    """The widget `name` in `state` as HTML; `picture` is what stands there without scripts (already escaped).

    `holds` names widgets that are shown inside, whose style is then needed too.
    """
    # "<" never appears in the JSON, so that no token text can end the script element it lies in
    data = json.dumps(as_json(state), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    fragment = (
        f'<div data-gemloupe-static="{name}">'
        f"<style>{''.join(_asset(f'{one}.css') for one in (*holds, name))}</style>"
        f"<div data-gemloupe-picture>{picture}</div>"
        f'<script type="application/json">{data}</script>'
        f"<script>{_asset(f'{name}.static.js')}</script>"
        "</div>"
    )
    return _PAGE.format(fragment=fragment, lang=tag()) if page else fragment
