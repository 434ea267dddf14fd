"""The live page: a server on this machine alone, which computes at each move of a slider."""

import errno
import socket
import time
import webbrowser
from typing import Any

from bokeh.document import Document
from bokeh.server.server import Server

from sims.engine.flags import UsageError
from sims.explore import model, page
from sims.explore.config import DIALS, MASKINGS, Config

ADDRESS = "127.0.0.1"


def start(config: Config) -> Server:
    """A server that is bound to its port, and serves as soon as its loop runs. Raises: UsageError."""
    try:
        socket.create_server((ADDRESS, config.port)).close()  # where Tornado cannot bind, it leaves a socket open
        server = Server({"/": lambda doc: fill(doc, config)}, port=config.port, address=ADDRESS)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "is not allowed"
        raise UsageError(f"--port={config.port} {why}; give another, or 0 for a free one.") from None
    server.start()
    return server


def address(server: Server) -> str:
    return f"http://localhost:{server.port}/"


def browser() -> webbrowser.BaseBrowser:
    """The browser of this machine. Raises: UsageError if there is none."""
    try:
        return webbrowser.get()
    except webbrowser.Error:
        raise UsageError("there is no browser to open; give --noopen and open the printed address yourself.") from None


def compile_all(config: Config) -> float:
    """Compile the page's program for every masking; returns the seconds that an update then takes."""
    for masking in (*MASKINGS, config.masking):
        began = time.perf_counter()
        model.view(config.at, masking, "p_spu", "mu_spu")
    return time.perf_counter() - began


def fill(doc: Document, config: Config) -> None:
    """A page of its own for each visitor, computed once for all moves that came in during the last computation."""
    made = page.build(config)
    waiting = False

    def update() -> None:
        nonlocal waiting
        waiting = False
        at = {name: DIALS[name].values[slider.categories.index(slider.value)] for name, slider in made.sliders.items()}
        shown = model.view(at, *(made.selects[name].value for name in ("masking", "x", "y")))
        numbers = {name: [array.ravel()] for name, array in shown.items()}
        made.numbers.data = {"key": [made.key()], **numbers}

    def moved(attr: str, old: Any, new: Any) -> None:
        nonlocal waiting
        if not waiting:
            waiting = True
            doc.add_next_tick_callback(update)

    for widget in made.asked:
        widget.on_change("value", moved)
    update()
    made.add_to(doc)
