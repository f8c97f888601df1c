"""A JupyterLab of our own on this machine, and what a test does in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Page

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The toolbar says "idle" before the kernel's websocket is there, and a cell run then is lost without a word.
_READY = """() => {
  const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
  return !!(kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle');
}"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def lab(root: Path, home: Path, settings: dict[str, Any] | None = None) -> Iterator[str]:
    """JupyterLab serving `root`, with its own empty settings in `home`; yields its address."""
    chosen = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    for name, value in (chosen | (settings or {})).items():
        package, _, plugin = name.partition(":")
        file = home / "settings" / package / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    port, log = _free_port(), home / "lab.log"
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PATH": str(root / ".jupyter"),  # where a test may put a kernel of its own
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"),
        *(f"--ServerApp.root_dir={root}", "--IdentityProvider.token=", "--ServerApp.password="),
        *("--ServerApp.disable_check_xsrf=True", "--LabApp.news_url=", "--LabApp.extension_manager=readonly"),
        *("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.expose_app_in_browser=True"),
    ]
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/api", timeout=1).read()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() - started > 90:
                    raise RuntimeError(log.read_text()) from None
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(20)


class Notebook:
    """One notebook open in a page."""

    def __init__(self, page: Page, url: str, name: str) -> None:
        self.page, self.url, self.name = page, url, name

    def open(self) -> Notebook:
        self.page.goto(f"{self.url}/lab/tree/{self.name}?reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(_READY, timeout=60_000)

    def command(self, name: str, **arguments: Any) -> None:
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)", [name, arguments]
        )

    def run(self, index: int, *, wait: bool = True) -> None:
        self.page.evaluate(
            """async ([index, wait]) => {
              const app = window.jupyterapp;
              const content = app.shell.currentWidget.content;
              content.activeCellIndex = index;
              content.deselectAll();
              const ran = app.commands.execute('notebook:run-cell');
              if (wait) await ran;
              return null;
            }""",
            [index, wait],
        )

    def cell(self, index: int) -> Any:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def text(self, index: int) -> str:
        return "\n".join(self.cell(index).locator(".jp-OutputArea-output").all_inner_texts())

    def run_in_kernel(self, code: str) -> str:
        """Run code outside any cell and return what it printed."""
        return self.page.evaluate(
            """async (code) => {
              const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
              for (;;) {
                const future = kernel.requestExecute({ code, store_history: false });
                let printed = '';
                future.onIOPub = (m) => {
                  if (m.header.msg_type === 'stream') printed += m.content.text;
                  if (m.header.msg_type === 'error') printed += m.content.traceback.join('\\n');
                };
                const reply = await future.done;
                // a kernel drops what comes right after a cell that failed
                if (reply.content.status !== 'aborted') return printed;
              }
            }""",
            code,
        )

    def wait_for_kernel(self, expression: str, *, seconds: float = 10) -> None:
        """Until `expression` is true in the kernel: what a click changed there arrives a moment later."""
        end = time.monotonic() + seconds
        while (printed := self.run_in_kernel(f"print({expression})").strip()) != "True":
            assert time.monotonic() < end, f"{expression} stayed {printed}"
            time.sleep(0.05)

    def save(self) -> None:
        self.command("docmanager:save")

    def shut_down(self) -> None:
        self.page.evaluate("window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown?.()")


def write_notebook(path: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip("\n")) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path
