import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from compare_made import all_runs, make_run, recorded

from sb3_pwm.benchmark.results import read_runs

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from sb3_pwm.benchmark import figures, report, tables
from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.results import FAILED, FINISHED, RUNNING, read_curve, write_curve, write_json
from sb3_pwm.benchmark.specs import ALGORITHMS
from sb3_pwm.benchmark.texts import estimate, number
from sb3_pwm.cli.subcommands import run_command_line


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(all_runs(), "pwm", "sac")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes the most time by far; where the page's words are looked at, it can be left out."""
    monkeypatch.setattr(figures, "saved", lambda figure, kind: b"")


def write_runs(folder: Path, runs: list[Any]) -> Path:
    for run in runs:
        own = run.spec.folder(folder)
        own.mkdir(parents=True)
        write_json(own / "run.json", run.record)
        write_curve(own, run.rows)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Any:
    others = [make_run("A-v0", "sac", 7, 5, FAILED), make_run("B-v0", "td3", 8, 5, RUNNING)]
    return write_runs(tmp_path / "results", all_runs() + others)


def test_intervals_are_drawn_no_wider_than_they_are() -> None:
    comparison = Comparison(all_runs(), "pwm", "sac")
    figure: Any = figures.aggregate(comparison)
    bar = figure.axes[0].lines[0]
    estimate = comparison.iqm(comparison.algos[0])
    assert list(bar.get_xdata()) == [estimate.low, estimate.high]
    assert bar.get_solid_capstyle() == "butt"


def test_the_shipped_algorithms_look_different() -> None:
    runs = [make_run("A-v0", algo, 0, 1) for algo in ALGORITHMS]
    comparison = Comparison(runs, "pwm", "sac")
    assert len({tuple(figures.style_of(comparison, algo).values()) for algo in ALGORITHMS}) == len(ALGORITHMS)


def test_a_run_out_of_its_place_is_refused(results: Path) -> None:
    shutil.move(results / "A-v0" / "td3", results / "A-v0" / "td3_old")
    with pytest.raises(ValueError, match=r"td3_old.* holds the run that belongs into .*A-v0/td3/0; move it out of"):
        read_runs(results)


def test_logged_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = make_run("A-v0", "pwm", 0, 8.0).rows
    logged = {"train/b": 0.1, 'train/"loss", mean': 1.5}
    rows = [rows[0], *(replace(row, logged=logged | {"train/a": float(i)}) for i, row in enumerate(rows[1:]))]
    write_curve(tmp_path, rows)
    assert read_curve(tmp_path) == rows


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (12345.6, "12,346"), (-123.4, "-123"), (12.34, "12.3"), (0.456, "0.46")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: Any) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def without_data(source: Any) -> Any:
    """A page without its pictures, and without the name of SVG's elements, which a browser does not look up."""
    return re.sub(r"base64,[\w+/=]+", "", source).replace("http://www.w3.org/2000/svg", "")


def test_the_page(results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run_command_line({"report": report}, ["report", str(results), "--out", str(out)]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    source = (out / "index.html").read_text()
    page = Page(source)

    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|\bfetch|\bimport\b", without_data(source))
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert all(re.fullmatch(r"#\w+", a["href"] or "") for a in page.all("a"))
    images = page.all("img")
    names = {"curves_env_steps", "curves_cpu_seconds", "curves_wall_seconds", "iqm", "profiles", "improvement"}
    assert len(images) == len(names)
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert {path.stem for path in out.glob("*.png")} == {path.stem for path in out.glob("*.svg")} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    assert {path.name for path in out.glob("table.*")} == {"table.md", "table.tex"}

    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("caption")) == len(page.all("table")) == 4

    text = " ".join(page.text.split())
    for expected in (
        "3 algorithms in 2 environments, 3 seeds each; 18 finished runs",
        "1 failed and 1 unfinished runs",
        "A-v0, sac, seed 7: failed Traceback: <it> broke",
        "B-v0, td3, seed 8: unfinished, last evaluation at 200 of 400 steps",
        "400 environment steps; target 130 (td3)",
        "is 1 at the mean final return of sac and 0 at a return of 0",
        "without the lowest and the highest quarter, rounded down to whole runs (of 3 none, of 6 one at either end)",
        "Some <Processor> 1 abc123 6 finished, 1 failed A-v0, B-v0",
        "A-v0: 1 of 4 runs of sac failed, and its figures leave them out.",
        "random actions 10.0 - 10.0 to 10.0",
        "torch 1.2.3, git revision abc123",
        "sb3-pwm benchmark --env A-v0 B-v0",
        f"sb3-pwm report {results} --out {out}",
        '"gamma": 0.99',
    ):
        assert expected in text
    assert "Some runs were longer" not in text
    comparison = Comparison(all_runs(), "pwm", "sac")
    assert estimate(comparison.iqm("pwm")) in text
    assert "1.70 [" in text


def test_the_page_shows_times_of_one_machine_only(tmp_path: Path, no_pictures: Any) -> None:
    runs = all_runs()
    report.write_report(Comparison(runs, "pwm", "sac"), tmp_path / "one", "")
    page = Page((tmp_path / "one" / "index.html").read_text())
    assert "CPU s to it" in page.text
    assert [option["value"] for option in page.all("option")] == ["env_steps", "cpu_seconds", "wall_seconds"]
    runs = [recorded(run, processor="Other") if run.spec.algo == "sac" else run for run in runs]
    report.write_report(Comparison(runs, "pwm", "sac"), tmp_path / "two", "")
    page = Page((tmp_path / "two" / "index.html").read_text())
    assert "CPU s" not in page.text
    assert not page.all("option")
    reason = "A-v0, B-v0: times are left out: the runs were not all on one device and processor with as many threads."
    assert reason in " ".join(page.text.split())
    assert [path.name for path in (tmp_path / "two").glob("curves_*.png")] == ["curves_env_steps.png"]


def test_the_page_shows_success_where_it_is_known(tmp_path: Path, no_pictures: Any) -> None:
    run = make_run("A-v0", "pwm", 0, 8.0)
    logged = {"eval/success_rate": 0.25, "eval/success_once_rate": 0.75}
    knowing = replace(run, rows=[replace(row, logged=logged) for row in run.rows])
    report.write_report(Comparison([knowing, make_run("A-v0", "sac", 0, 4.0)], "pwm", "sac"), tmp_path / "one", "")
    page = (tmp_path / "one" / "index.html").read_text()
    assert "success at the end" in page
    assert '<td data-value="0.25">25%</td>' in page
    assert '<td data-value="0.75">75%</td>' in page
    report.write_report(Comparison([run], "pwm", "pwm"), tmp_path / "two", "")
    assert "success at the end" not in (tmp_path / "two" / "index.html").read_text()


def test_names_for_readers(results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: Any) -> None:
    arguments = ["report", str(results), "--out", str(tmp_path / "out"), "--label", "pwm=PWM & <co>", "sac=SAC"]
    assert run_command_line({"report": report}, arguments) == 0
    text = " ".join(Page((tmp_path / "out" / "index.html").read_text()).text.split())
    assert "PWM & <co> compared" in text
    assert "400 environment steps; target 50.0 (SAC)" in text
    assert "1 of 4 runs of SAC failed" in text
    capsys.readouterr()
    for labels, message in (
        (["pvm=PWM"], "unknown algorithm of --label 'pvm'; did you mean pwm?"),
        (["pwm"], "--label pwm: allowed: NAME=TEXT, such as pwm=PWM"),
        (["pwm=_x"], "--label pwm=_x: allowed: NAME=TEXT"),
        (["pwm=sac"], "--label gives two algorithms one name"),
    ):
        with pytest.raises(SystemExit):
            run_command_line({"report": report}, [*arguments[:5], *labels])
        assert message in capsys.readouterr().err


def test_tables_for_papers(comparison: Any) -> None:
    assert tables.markdown(comparison).splitlines() == [
        "|  | A-v0, 400 steps | B-v0, 400 steps |",
        "| --- | ---: | ---: |",
        "| pwm | 260 [200, 320] (3) | 50.0 [40.0, 60.0] (3) |",
        "| sac | 100 [90.0, 110] (3) | 50.0 [50.0, 50.0] (3) |",
        "| td3 | 130 [120, 140] (3) | 10.0 [5.00, 15.0] (3) |",
        "| random actions | 10.0 | 10.0 |",
        "",
        tables.NOTE,
    ]
    lines = tables.latex(comparison).splitlines()
    assert lines[1] == r"\begin{tabular}{lrr}"
    assert lines[5] == r"pwm & 260 [200, 320] (3) & 50.0 [40.0, 60.0] (3) \\"
    assert tables.escaped("a_b & 5 % \\") == r"a\_b \& 5 \% \textbackslash{}"
    assert tables.escaped("[ours]") == "{[ours]}"  # else the length of the line break before it


def test_untrained_policies_of_a_file(
    results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: Any
) -> None:
    file = tmp_path / "more" / "untrained.csv"
    file.parent.mkdir()
    file.write_text("algorithm,environment,seed,return_mean\nuntrained,A-v0,0,3\nuntrained,A-v0,1,5\n")
    arguments = ["report", str(results), str(file.parent), "--out", str(tmp_path / "out")]
    assert run_command_line({"report": report}, arguments) == 0
    assert "untrained 4.00 2 3.00 to 5.00" in " ".join(Page((tmp_path / "out" / "index.html").read_text()).text.split())
    file.write_text("algorithm,seed\nuntrained,0\n")
    with pytest.raises(SystemExit):
        run_command_line({"report": report}, arguments)
    assert f"{file} holds no returns of untrained policies: KeyError('environment')" in capsys.readouterr().err


def test_the_headline_from_raw_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the page that one command makes of the committed runs, docs/results."""
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    folders = [f"docs/results/{name}" for name in ("default", "baselines-100k", "crossq", "tqc", "untrained")]
    labels = ["--label", "pwm=PWM", "crossq_graphs=CrossQ", "ppo=PPO", "sac=SAC", "tqc_graphs=TQC"]
    assert run_command_line({"report": report}, ["report", *folders, *labels, "--out", str(tmp_path)]) == 0
    source = (tmp_path / "index.html").read_text()
    page = Page(source)
    text = " ".join(page.text.split())
    assert "AMD EPYC 1 b78fb183a2 2 finished" in text
    assert not re.search(r"CPU s\b|wall s\b", text)  # CrossQ ran on a GPU, the others on CPUs of several kinds
    assert not page.all("option")
    assert "times are left out: the runs were not all on one device" in text
    assert len(re.findall(r"random actions -?\d", text)) == len(re.findall(r"untrained PWM -?\d", text)) == 5
    below = "untrained PWM (754.7) and its first evaluation after 5,000 steps"
    assert f"Ant-v5: SAC ends at 583.8, below {below}" in text
    assert "Humanoid-v5 seeds: PWM 3, CrossQ 3, PPO 3, SAC 1, TQC 3" in text
    assert re.search(r"PWM 3 [\d.]+ \[[\d., ]+\] - CrossQ 3 [\d.]+ \[", text)  # seeds, estimate and interval
    assert "Ant-v5: the runs of PWM are of 3 revisions" in text
    assert "the target, SAC's 583.8, says little" not in text  # CrossQ's is the highest there
    assert len(re.findall(r"-v5 seeds: ", text)) == 1  # the others have three of each algorithm
    assert len(source) < 3_000_000


def test_a_page_at_fewer_steps(
    results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: Any
) -> None:
    arguments = ["report", str(results), "--out", str(tmp_path / "out"), "--steps"]
    with pytest.raises(SystemExit):
        run_command_line({"report": report}, [*arguments, "0"])
    assert "--steps=0 is out of range; allowed: 1 or more" in capsys.readouterr().err
    assert run_command_line({"report": report}, [*arguments, "200"]) == 0
    text = " ".join(Page((tmp_path / "out" / "index.html").read_text()).text.split())
    for expected in (
        "3 algorithms in 2 environments, 3 to 4 seeds each; 20 finished runs",  # also the killed and the failed run
        "Some runs were longer, or were to be",
        "200 environment steps; target 65.0 (td3)",
    ):
        assert expected in text
    assert "Not everything finished" not in text


def test_a_page_of_some_environments(
    results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: Any
) -> None:
    arguments = ["report", str(results), "--out", str(tmp_path / "out"), "--env"]
    with pytest.raises(SystemExit):
        run_command_line({"report": report}, [*arguments, "B-v0", "C-v0"])
    assert "no run in --env C-v0; there are runs in A-v0, B-v0" in capsys.readouterr().err
    assert run_command_line({"report": report}, [*arguments, "B-v0"]) == 0
    page = Page((tmp_path / "out" / "index.html").read_text())
    text = " ".join(page.text.split())
    assert "3 algorithms in 1 environment, 3 seeds each; 9 finished runs" in text
    assert "A-v0" not in text.replace("sb3-pwm benchmark --env A-v0 B-v0", "")


def test_a_page_without_scores(tmp_path: Path, no_pictures: Any) -> None:
    comparison = Comparison([make_run("C-v0", "sac", 0, -100)], "sac", "sac")
    report.write_report(comparison, tmp_path, "command")
    text = " ".join(Page((tmp_path / "index.html").read_text()).text.split())
    assert "No normalised return can be computed: C-v0: sac's mean final return is not above 0" in text
    assert "1 seed each" in text
    assert "--zero random puts the zero" in text
    assert "target -100 (sac's own)" in text
    assert not (tmp_path / "iqm.png").exists()


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "scipy.stats"])
def test_what_is_not_installed_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, comparison: Comparison
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install .*'\.\[plot\]'"):
        report.write_report(comparison, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_folders_without_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run_command_line({"report": report}, ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert "holds no runs of sb3-pwm benchmark" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_curves_are_refused(results: Path) -> None:
    path = next(results.glob("*/*/*/curve.csv"))
    path.write_text(path.read_text().replace("return_mean", "mean_return"))
    with pytest.raises(ValueError, match="holds no evaluations of a run"):
        read_runs(results)


@pytest.mark.parametrize(
    ("algos", "options", "expected"),
    [
        (("pwm",), [], ("pwm", "pwm")),
        (("pwm", "td3"), [], ("pwm", "td3")),
        (("ppo", "td3"), [], ("ppo", "td3")),
        (("pwm", "sac", "ppo"), [], ("pwm", "sac")),
        (("pwm", "sac", "ppo"), ["--method", "sac"], ("sac", "ppo")),
        (("pwm", "td3"), ["--label", "pwm=PWM", "td3=TD3"], ("PWM", "TD3")),
        (("ddpg", "td3"), ["--baseline", "ddpg"], ("td3", "ddpg")),
        (("failed", "pwm", "td3"), [], ("pwm", "td3")),
    ],
)
def test_who_is_compared_with_whom_if_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algos: tuple[str, ...], options: list[str], expected: Any
) -> None:
    results = write_runs(
        tmp_path / "results",
        [make_run("A-v0", algo, 0, 4.0, FAILED if algo == "failed" else FINISHED) for algo in algos],
    )
    seen: list[Comparison] = []
    monkeypatch.setattr(report, "write_report", lambda comparison, *_: seen.append(comparison))
    assert run_command_line({"report": report}, ["report", str(results), *options, "--out", str(tmp_path / "out")]) == 0
    assert (seen[0].method, seen[0].baseline) == expected


def test_a_file_in_the_place_of_the_report(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        run_command_line({"report": report}, ["report", str(results), "--out", str(tmp_path / "page")])
    assert "error: [Errno 17] File exists" in capsys.readouterr().err
