"""A served folder in Chromium: run a script in a page, and get what it returns."""

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE_MODULES = Path(__file__).resolve().parents[1] / "node_modules"
SCRIPT = """<script type="module">
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const tell = (value) => fetch("/result", {{method: "POST", body: JSON.stringify(value)}});
addEventListener("error", (event) => tell({{problem: event.message}}));
addEventListener("unhandledrejection", (event) => tell({{problem: String(event.reason)}}));
{script}
</script></body>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and takes one result."""

    def __init__(self, *args: Any, results: Queue[Any], **kwargs: Any) -> None:
        self.results = results
        super().__init__(*args, **kwargs)

    def do_POST(self) -> None:
        self.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def browse(folder: Path, page: str, script: str) -> Any:
    """Serve a folder, open a page in it with a script of a module that calls ``tell``, and return what it tells.

    Anything on the console is an error.
    """
    logs, results = folder.with_name("chromium"), Queue[Any]()
    logs.mkdir(exist_ok=True)
    (folder / "tested.html").write_text(page.replace("</body>", SCRIPT.format(script=script)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, results=results, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,900"]
    options += [f"--user-data-dir={logs / 'profile'}", "--remote-debugging-port=0"]  # else it ends at once
    with (logs / "log.txt").open("w") as file:
        address = f"http://127.0.0.1:{server.server_port}/tested.html"
        browser = subprocess.Popen([str(CHROMIUM), *options, address], stdout=file, stderr=file)
        try:
            result = results.get(timeout=300)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
            server.server_close()
    assert [line for line in (logs / "log.txt").read_text().splitlines() if "CONSOLE" in line] == []
    assert "problem" not in result, result
    return result
