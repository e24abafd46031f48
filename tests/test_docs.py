"""The documentation is whole: every page can be reached, links lead somewhere, what is said twice is the same."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import sb3_pwm

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ARCHIVE = sorted((DOCS / "research").glob("*.md"))  # not on the site
PAGES = [page for page in sorted(DOCS.glob("**/*.md")) if page not in ARCHIVE]
LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")


def text_of(page: Path) -> str:
    """Return a page without its blocks of code, in which brackets mean other things."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Return what the page's headings are called in links, as on the sites where repositories are browsed."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path if path else page).resolve()
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
        elif page in PAGES and target in ARCHIVE:
            broken.append(f"{link} is not on the site")
    return broken


def test_every_page_is_in_the_navigation() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (DOCS / "index.md").read_text(), re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES]
    assert sorted([*listed, "index"]) == pages


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *ARCHIVE], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One `two_three`, four\n```\n# no heading\n[x](in-code.md)\n```\n")
    page.write_text(
        "# Here\n[a](other.md#one-two_three-four) [b](#here) [c](https://x.org/y) [d](no.md) [e](#no-heading)"
    )
    assert broken_links(page) == ["no.md", "#no-heading"]
    page.write_text("[e](other.md#no-heading)\n![f](.)")
    assert broken_links(page) == ["other.md#no-heading", "."]


def test_the_api_page_lists_all_public_names() -> None:
    page = (DOCS / "api.md").read_text()
    names = set(sb3_pwm.__all__) - {"__version__"}
    assert {name for name in names if not re.search(rf"\bsb3_pwm\.{name}\b|`{name}`", page)} == set()


def test_figures_have_texts_for_those_who_do_not_see_them() -> None:
    for figure in DOCS.glob("images/*.svg"):
        text = figure.read_text()
        assert 'role="img"' in text
        assert re.search(r"<title .*?>.+</title>", text)
        assert re.search(r"<desc .*?>.+</desc>", text, re.S)


COMPARED = [f"docs/results/{name}" for name in ("default", "baselines-100k", "crossq", "tqc")]


@pytest.mark.parametrize(
    "arguments",
    [
        *([*COMPARED, "--final", "return_mean", "--at", str(steps)] for steps in range(20_000, 100_001, 20_000)),
        ["docs/results/dmcontrol", "--final", "return_mean"],
        ["docs/results/pixels", "--final", "return_mean"],
    ],
    ids=" ".join,
)
def test_the_tables_of_results_are_those_that_the_script_prints(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "examples" / "research" / "results_table.py"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script.name, *arguments])
    page = (DOCS / "results.md").read_text()
    assert f"    python examples/research/results_table.py {' '.join(arguments)}\n" in page
    runpy.run_path(str(script), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[:-1]  # without the mean over the environments
    assert len(rows) > 2
    assert "\n".join(rows) in page


def test_only_cited_results_are_kept() -> None:
    cited = "".join(page.read_text() for page in [ROOT / "README.md", *PAGES, *ARCHIVE])
    assert [path.name for path in (DOCS / "results").iterdir() if f"results/{path.name}" not in cited] == []


def test_the_readme_has_the_final_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    script = ROOT / "examples" / "research" / "results_table.py"
    arguments = [f"docs/results/{name}" for name in ("default", "baselines-100k", "crossq", "tqc", "untrained")]
    arguments += ["--final", "return_mean"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script.name, *arguments])
    runpy.run_path(str(script), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[:-1]  # without the mean over the environments
    assert len(rows) == 2 + 5
    assert "\n".join(rows) in readme
    assert f"    python examples/research/results_table.py {' '.join(arguments)}\n" in readme


def test_final_results_are_the_means_of_the_last_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["algorithm,environment,seed,updates,transitions,data,return_mean,success_rate"]
    lines += [
        f"one,a:b/{env}-v0,{seed},{n},9,d,{n + seed},0.{seed}" for env in "xy" for seed in (1, 3) for n in (8, 90)
    ]
    lines += [f"two,a:b/{env}-v0,1,90,9,d,{value},1" for env, value in (("x", 1_000), ("y", 3_000))]
    lines += ["who knows,a:b/x-v0,1,90,9,d,7,"]  # and not y
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    script = ROOT / "examples" / "research" / "results_table.py"
    returns = ["x-v0 | 92 (91 to 93) | 1,000 | 7", "y-v0 | 92 (91 to 93) | 3,000", "mean | 92 | 2,000 | 7"]
    rates = [*(f"{name} | 0.20 (0.10 to 0.30) | 1.00" for name in ("x-v0", "y-v0")), "mean | 0.20 | 1.00"]
    for column, expected in (
        ("return_mean", ["task | one | two | who knows", *returns]),
        ("success_rate", ["task | one | two", *rates]),
    ):
        monkeypatch.setattr(sys, "argv", [script.name, str(tmp_path), "--final", column])
        runpy.run_path(str(script), run_name="__main__")
        assert [line.strip("| ") for line in capsys.readouterr().out.splitlines() if "---" not in line] == expected
