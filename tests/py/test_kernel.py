"""A widget in a real kernel, without a browser: what it answers while a cell runs.

JupyterLab sends a widget's messages on a subshell where the kernel has those (ipykernel 7). ipykernel 7.4 puts them
back onto the shell that last sent on the comm, unless `keep_subshell` tells it not to; ipykernel 6 has one shell.
"""

import queue
import time

import ipykernel
import pytest
from ipykernel.comm.comm import BaseComm
from jupyter_client.manager import start_new_kernel

SUBSHELLS = int(ipykernel.__version__.split(".")[0]) >= 7
REROUTED = hasattr(BaseComm, "_reply_subshell_for")
SOON = 60

MAKE = """
from pathlib import Path
import time
from gemloupe.widgets.live import LiveWidget
class Probe(LiveWidget):
    _esm = "export default { render() {} }"
probe = Probe()
print(probe.comm.comm_id)
"""
# Sends on the comm first: that is what 7.4 takes as the shell to answer on.
BUSY = """
probe.send("from the cell")
end = time.monotonic() + 50
while not Path({flag!r}).exists() and time.monotonic() < end:
    time.sleep(0.01)
"""


class Kernel:
    def __init__(self):
        self.manager, self.client = start_new_kernel(startup_timeout=SOON)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code):
        """Run a cell to its end; what it printed."""
        printed = []
        reply = self.client.execute_interactive(
            code,
            timeout=SOON,
            output_hook=lambda m: (
                printed.append(m["content"].get("text", "") or "\n".join(m["content"]["traceback"]))
                if m["msg_type"] in ("stream", "error")
                else None
            ),
        )
        assert reply["content"]["status"] == "ok", printed
        return "".join(printed).strip()

    def subshell(self):
        """A new subshell's id."""
        request = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(request)
        while (reply := self.client.get_control_msg(timeout=SOON))["msg_type"] != "create_subshell_reply":
            pass
        return reply["content"]["subshell_id"]

    def ping(self, comm, subshell=None):
        """What the browser half of a widget sends to ask something."""
        call = {"kind": "call", "id": 7, "method": "ping", "params": {}}
        content = {"comm_id": comm, "data": {"method": "custom", "content": call}}
        message = self.client.session.msg("comm_msg", content)
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)

    def next(self, cell, seconds):
        """'cell began', 'cell ended' or 'answered', whatever comes next; None if nothing does for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                message = self.client.get_iopub_msg(timeout=left)
            except queue.Empty:
                return None
            kind, content = message["msg_type"], message["content"]
            if kind == "comm_msg":
                data = content["data"]
                if data.get("method") == "custom" and data["content"] == "from the cell":
                    return "cell began"
                if data.get("method") == "custom" and data["content"].get("id") == 7:
                    assert data["content"]["kind"] == "value"
                    return "answered"
            if kind == "status" and content["execution_state"] == "idle" and message["parent_header"]["msg_id"] == cell:
                return "cell ended"
        return None


@pytest.fixture(scope="module")
def kernel():
    one = Kernel()
    yield one
    one.close()


def order(kernel, tmp_path, *, patience, setup="", subshells=SUBSHELLS):
    """What happened first when a widget is asked something while a cell runs: its answer, or the cell's end.

    The cell is let go when the answer is there, or after `patience` seconds without one.
    """
    flag = tmp_path / "go"
    comm = kernel.run(setup + MAKE)
    subshell = kernel.subshell() if subshells else None
    cell = kernel.client.execute(BUSY.format(flag=str(flag)))
    assert kernel.next(cell, SOON) == "cell began"
    kernel.ping(comm, subshell)
    first = kernel.next(cell, patience)
    flag.touch()
    return [first or kernel.next(cell, SOON), kernel.next(cell, SOON)]


@pytest.mark.skipif(not SUBSHELLS, reason=f"ipykernel {ipykernel.__version__} has no subshells")
def test_a_widget_answers_while_a_cell_runs(kernel, tmp_path):
    assert order(kernel, tmp_path, patience=SOON) == ["answered", "cell ended"]


@pytest.mark.skipif(not REROUTED, reason=f"ipykernel {ipykernel.__version__} does not reroute comm messages")
def test_without_the_patch_it_would_wait_for_the_cell(kernel, tmp_path):
    """If this fails, ipykernel no longer needs `keep_subshell`."""
    undo = "import gemloupe.widgets.live as live\nkeep, live.keep_subshell = live.keep_subshell, lambda comm: None\n"
    try:
        assert order(kernel, tmp_path, patience=1.5, setup=undo) == ["cell ended", "answered"]
    finally:
        kernel.run("live.keep_subshell = keep")


def test_on_one_shell_the_answer_comes_when_the_cell_is_over(kernel, tmp_path):
    """ipykernel 6, and front ends that use no subshells: late, but not lost."""
    assert order(kernel, tmp_path, patience=1.5, subshells=False) == ["cell ended", "answered"]


@pytest.mark.skipif(SUBSHELLS, reason=f"ipykernel is {ipykernel.__version__}; this is what 6.x does")
def test_ipykernel_6_answers_between_cells(kernel, tmp_path):
    """No subshell exists there, and asking for one must not be needed."""
    comm = kernel.run(MAKE)
    kernel.ping(comm)
    assert kernel.next("", SOON) == "answered"
    assert kernel.run("print(hasattr(probe.comm, '_reply_subshell_for'))") == "False"
