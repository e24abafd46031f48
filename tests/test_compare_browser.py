"""The page of a report in a browser: it draws, it answers, and nothing goes wrong. Needs Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from compare_made import all_runs, make_run, recorded

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from sb3_pwm.benchmark import figures
from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

HELPERS = """
const all = (selector) => [...document.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);
const names = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const ticks = () => all("#charts figure:first-child svg text").map((text) => text.textContent);
function choose(id, property, value) {
  one(id)[property] = value;
  one(id).dispatchEvent(new Event("change"));
}
"""


def browse(page: Any, script: Any) -> Any:
    """Open a page, run a script that returns a value, and return the value; anything on the console is an error."""
    report = f"<script>{HELPERS} document.body.dataset.result = JSON.stringify((() => {{ {script} }})());</script>"
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text().replace("</body>", report + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,900"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [BROWSER, *options, profile, "--dump-dom", copy.as_uri()]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []
    [result] = re.findall(r'data-result="(.*?)"', ended.stdout)
    return json.loads(html.unescape(result))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(figures, "saved", lambda figure, kind: b"")  # the browser draws
    runs = [*all_runs(), make_run("C-v0", "pwm", 0, -50), recorded(make_run("C-v0", "sac", 0, 50), processor="Other")]
    runs = [recorded(run, git_revision=f"{run.spec.seed}" * 40) for run in runs]
    write_report(Comparison(runs, "pwm", "sac"), tmp_path, "")
    return tmp_path / "index.html"


def test_the_page_answers(page: Any) -> None:
    found = browse(
        page,
        """
        const lines = () => ["seed", "mean", "band"].map((kind) => all(`#charts .${kind}`).length);
        const found = { lines: lines(), milliseconds: performance.now() };
        const path = all("#charts .seed")[0], box = path.ownerSVGElement.getBoundingClientRect();
        const [x, y] = path.getAttribute("d").split("L")[3].split(" ").map((v) => v * box.width / 380);
        const place = { clientX: box.left + x, clientY: box.top + y, bubbles: true };
        path.ownerSVGElement.dispatchEvent(new PointerEvent("pointermove", place));
        found.tip = one("#tip").hidden ? null : one("#tip").textContent;
        found.hot = all(".hot").length;
        path.ownerSVGElement.parentNode.dispatchEvent(new PointerEvent("pointerleave"));
        found.left = [one("#tip").hidden, all(".hot").length];
        one('#legend [data-algo="td3"]').click();
        found.toggled = [lines(), all('tr[data-algo="td3"]').every((row) => row.hidden)];
        one('#legend [data-algo="td3"]').click();
        found.again = lines();
        found.linear = ticks();
        choose("#log-x", "checked", true);
        choose("#log-y", "checked", true);
        found.log = ticks();
        choose("#log-x", "checked", false);
        choose("#log-y", "checked", false);
        choose("#x", "value", "cpu_seconds");
        found.time = [ticks().at(-1), all("#charts figure:last-child svg text").map((text) => text.textContent)];
        const table = all("table.sortable").find((each) => each.caption.textContent.includes("target 130"));
        found.unsorted = names(table);
        const button = table.tHead.rows[0].cells[1].querySelector("button");
        button.click();
        found.falling = [names(table), table.tHead.rows[0].cells[1].getAttribute("aria-sort")];
        button.click();
        found.rising = names(table);
        return found;
        """,
    )
    assert found["lines"] == found["again"] == [20, 6, 6]  # in C one seed each, without mean and band
    assert found["milliseconds"] < 2_000
    assert found["tip"] == "pwm, seed 0: 200 after 400 environment steps"
    assert found["hot"] == 1
    assert found["left"] == [True, 0]
    assert found["toggled"] == [[14, 4, 4], True]
    assert found["linear"] == [*("100", "200", "300"), *("0", "100", "200", "300", "400"), "environment steps"]
    assert found["log"] == [*("10", "100"), *("100", "200"), "environment steps"]
    assert found["time"] == ["CPU seconds of training", ["left out: not one device and processor"]]
    assert found["unsorted"] == ["pwm", "sac", "td3", "random actions"]
    assert found["falling"] == [["pwm", "td3", "sac", "random actions"], "descending"]
    assert found["rising"] == ["random actions", "sac", "td3", "pwm"]


@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_is_wider_than_the_page(page: Any, width: int) -> None:
    # Chromium's windows are at least 500 wide.
    found = browse(
        page,
        f"""
        document.body.style.width = "{width}px";
        return all("main, main > ul, #charts figure").map((part) => part.scrollWidth - part.clientWidth);
        """,
    )
    assert len(found) == 5
    assert all(extra <= 0 for extra in found)


def test_errors_are_noticed(page: Any) -> None:
    with pytest.raises(AssertionError, match="CONSOLE"):
        browse(page, "console.error('broken'); return 0;")
