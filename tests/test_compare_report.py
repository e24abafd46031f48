import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from sb3_pwm.benchmark import figures, report
from sb3_pwm.benchmark.alignment import cut
from sb3_pwm.benchmark.cautions import cautions
from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.origins import origins
from sb3_pwm.benchmark.report import estimate, number
from sb3_pwm.benchmark.results import (
    FAILED,
    FINISHED,
    FORMAT,
    RUNNING,
    CurveRow,
    Run,
    read_curve,
    write_curve,
    write_json,
)
from sb3_pwm.benchmark.specs import ALGORITHMS, RunSpec
from sb3_pwm.cli.subcommands import run_command_line

# final returns by environment, algorithm and seed
FINALS = {
    "A-v0": {"pwm": [200, 260, 320], "sac": [90, 100, 110], "td3": [120, 130, 140]},
    "B-v0": {"pwm": [40, 50, 60], "sac": [50, 50, 50], "td3": [5, 10, 15]},
}

# what becomes of runs of 400 steps, of which the unfinished ones have got to 200
CUTS = {(FINISHED, 200): FINISHED, (FINISHED, 500): RUNNING, (RUNNING, 200): FINISHED, (RUNNING, 300): RUNNING}
CUTS |= {(FAILED, 200): FINISHED, (FAILED, 300): FAILED}


def make_run(env, algo, seed, final, state=FINISHED, **changes):
    """A run whose return grows evenly to ``final`` over four evaluations; a step costs 0.1 CPU seconds."""
    spec = RunSpec(
        env=env,
        algo=algo,
        seed=seed,
        steps=400,
        eval_every=100,
        eval_episodes=5,
        checkpoint_every=100,
        threads=1,
        device="cpu",
        hyperparameters={},
        source="test",
    )
    rows = [CurveRow(100 * i, 20.0 * i, 10.0 * i, final * i / 4, 1.0, 50.0, 5, 0.0) for i in range(1, 5)]
    record = {
        "format": FORMAT,
        "state": state,
        "specification": spec.to_dict(),
        "command": "sb3-pwm benchmark --env A-v0 B-v0",
        "versions": {"torch": "1.2.3"},
        "git_revision": "abc123",
        "processor": "Some <Processor>",
        "random_return": 10.0,
        "model": {"gamma": 0.99},
        "traceback": "Traceback: <it> broke" if state == FAILED else None,
    }
    return Run(replace(spec, **changes), state, rows if state == FINISHED else rows[:2], record)


def all_runs():
    return [
        make_run(env, algo, seed, final)
        for env, by_algo in FINALS.items()
        for algo, finals in by_algo.items()
        for seed, final in enumerate(finals)
    ]


@pytest.fixture
def comparison():
    return Comparison(all_runs(), "pwm", "sac")


@pytest.fixture
def results(tmp_path):
    others = [make_run("A-v0", "sac", 7, 5, FAILED), make_run("B-v0", "td3", 8, 5, RUNNING)]
    for run in all_runs() + others:
        folder = run.spec.folder(tmp_path / "results")
        folder.mkdir(parents=True)
        write_json(folder / "run.json", run.record)
        write_curve(folder, run.rows)
    return tmp_path / "results"


def test_scores_are_returns_in_units_of_the_baseline(comparison):
    assert comparison.algos == ["pwm", "sac", "td3"]
    assert [list(scores) for scores in comparison.scores("pwm")] == [[2, 2.6, 3.2], [0.8, 1, 1.2]]
    # of 0.8, 1, 1.2, 2, 2.6, 3.2 one is left out on either side
    assert comparison.iqm("pwm").value == pytest.approx((1 + 1.2 + 2 + 2.6) / 4)
    assert comparison.iqm("sac").value == pytest.approx(1)
    # A: always above. B: 40 below, 50 ties, 60 above three times 50
    assert comparison.improvement("sac").value == pytest.approx((1 + 0.5) / 2)


def test_a_random_policy_can_be_the_zero():
    comparison = Comparison(all_runs(), "pwm", "sac", random_zero=True)
    assert comparison.scores("td3")[1] == pytest.approx([-5 / 40, 0, 5 / 40])


def test_labels_are_algorithms_of_their_own():
    runs = [make_run("A-v0", "pwm", seed, 100) for seed in range(2)]
    runs += [make_run("A-v0", "pwm", seed, 200, label="wide") for seed in range(2)]
    comparison = Comparison(runs, "wide", "pwm")
    assert comparison.algos == ["wide", "pwm"]
    assert comparison.iqm("wide").value == 2
    assert [entry["algo"] for entry in report.settings_of(runs)] == ["pwm", "wide=pwm"]
    with pytest.raises(ValueError, match="wide in A-v0 is pwm in some runs and sac in others"):
        Comparison([*runs, make_run("A-v0", "sac", 2, 1, label="wide")], "wide", "pwm")


def test_target_is_the_best_of_the_others(comparison):
    assert comparison.target("A-v0") == ("td3", 130)
    assert comparison.target("B-v0") == ("sac", 50)
    cell = comparison.cell("A-v0", "pwm")
    # 200: 50, 100, 150; 260: 65, 130; 320: 80, 160: reached at 300, 200, 200
    assert (cell.reached, cell.seeds) == (3, 3)
    assert (cell.steps_to_target, cell.cpu_seconds_to_target, cell.wall_seconds_to_target) == (200, 20, 40)
    assert (cell.final.value, cell.lowest, cell.highest) == (260, 200, 320)
    assert (cell.final.low, cell.final.high) == (200, 320)  # in 1 of 27 resamples of three all are the lowest
    cell = comparison.cell("A-v0", "sac")
    assert (cell.reached, cell.steps_to_target) == (0, None)
    cell = comparison.cell("B-v0", "pwm")
    assert (cell.reached, cell.steps_to_target) == (2, 400)


def test_curves(comparison):
    curve = comparison.curve("B-v0", "td3")
    assert list(curve.env_steps) == [100, 200, 300, 400]
    assert curve.cpu_seconds.tolist() == [[10, 20, 30, 40]] * 3
    assert curve.returns.tolist() == [[1.25, 2.5, 3.75, 5], [2.5, 5, 7.5, 10], [3.75, 7.5, 11.25, 15]]
    assert list(curve.mean) == [2.5, 5, 7.5, 10]
    assert np.all((curve.low >= curve.returns.min(0)) & (curve.high <= curve.returns.max(0)))


def test_a_missing_evaluation_is_not_made_up():
    """Algorithms that ask their callbacks once per episode may be evaluated less often."""
    first, second = make_run("A-v0", "pwm", 0, 100), make_run("A-v0", "pwm", 1, 300)
    second = replace(second, rows=[second.rows[0], second.rows[3]])
    comparison = Comparison([first, second], "pwm", "pwm")
    curve = comparison.curve("A-v0", "pwm")
    assert list(curve.env_steps) == [100, 400]
    assert list(curve.mean) == [(25 + 75) / 2, (100 + 300) / 2]
    missing = "seed 1 of pwm has no evaluation at 200, 300 steps; pwm's curve leaves them out"
    assert cautions(comparison) == [f"A-v0: {missing}"]


def test_a_run_without_its_last_evaluation_does_not_count():
    first, second = make_run("A-v0", "pwm", 0, 100), make_run("A-v0", "pwm", 1, 300)
    comparison = Comparison([first, replace(second, rows=second.rows[:3])], "pwm", "pwm")
    assert list(comparison.finals("A-v0", "pwm")) == [100]
    assert [run.spec.seed for run in comparison.others] == [1]


def test_only_common_evaluations_count():
    often = [make_run("A-v0", "pwm", seed, 100) for seed in range(2)]
    seldom = [make_run("A-v0", "sac", seed, 60, eval_every=200) for seed in range(2)]
    seldom = [replace(run, rows=run.rows[1::2]) for run in seldom]
    comparison = Comparison(often + seldom, "pwm", "sac")
    assert list(comparison.curve("A-v0", "pwm").env_steps) == [200, 400]
    assert comparison.cell("A-v0", "pwm").steps_to_target == 400  # 75 at 300 steps, when SAC was not looked at
    each = "pwm every 100, sac every 200"
    assert cautions(comparison) == [f"A-v0: evaluated at different steps ({each}); only the common ones are used"]


def with_untrained(run, value, **logged):
    """The same run with an evaluation before its first step."""
    first = replace(run.rows[0], env_steps=0, return_mean=value, cpu_seconds=0.0, wall_seconds=0.0)
    return replace(run, rows=[replace(first, logged=dict(logged)), *run.rows])


def updates(run, *numbers):
    rows = [replace(row, logged={"train/n_updates": float(n)}) for row, n in zip(run.rows, numbers, strict=True)]
    return replace(run, rows=rows)


@pytest.mark.parametrize(
    "model", [{"learning_starts": 100, "n_steps": 1, "n_envs": 1}, {"n_steps": 50, "n_envs": 2}, {}]
)
def test_what_was_not_learnt_reaches_no_target(model):
    """SAC "reached" the target of Ant before its first update."""
    target = make_run("A-v0", "pwm", 0, 20)
    run = make_run("A-v0", "sac", 0, 80)  # 20 at 100 steps
    run = replace(run, record=run.record | {"model": model})
    cell = Comparison([run, target], "sac", "pwm").cell("A-v0", "sac")
    assert cell.steps_to_target == (200 if model else 100)
    # newer runs say how many updates there were
    cell = Comparison([updates(run, 0, 0, 5, 10), target], "sac", "pwm").cell("A-v0", "sac")
    assert cell.steps_to_target == 300
    cell = Comparison([updates(run, 0, 0, 0, 0), target], "sac", "pwm").cell("A-v0", "sac")  # not counted at all
    assert cell.steps_to_target == (200 if model else 100)


def test_untrained_policies_are_references():
    runs = [with_untrained(make_run("A-v0", "pwm", seed, 100), value) for seed, value in enumerate((5, 7))]
    comparison = Comparison(runs, "pwm", "pwm", untrained={"A-v0": {"untrained": [1.0]}, "B-v0": {"untrained": [9.0]}})
    found = {name: list(values) for name, values in comparison.references("A-v0").items()}
    assert found == {"random actions": [10], "untrained pwm": [5, 7], "untrained": [1]}
    assert list(comparison.curve("A-v0", "pwm").env_steps) == [0, 100, 200, 300, 400]
    # an algorithm without that evaluation leaves it out of the curves
    comparison = Comparison([*runs, make_run("A-v0", "sac", 0, 50)], "pwm", "sac")
    assert list(comparison.curve("A-v0", "pwm").env_steps) == [100, 200, 300, 400]
    assert list(comparison.references("A-v0")["untrained pwm"]) == [5, 7]
    assert cautions(comparison) == ["A-v0: one seed of sac: it says nothing of the next, and there is no interval"]


def test_an_end_below_the_beginning_is_a_caution():
    worse = make_run("A-v0", "pwm", 0, 100)
    worse = replace(worse, rows=[*worse.rows[:3], replace(worse.rows[3], return_mean=8.0)])
    first = "A-v0: pwm ends at 8.0, below random actions (10.0) and its first evaluation after 100 steps (25.0)"
    assert cautions(Comparison([worse], "pwm", "pwm"))[0] == first
    first = "A-v0: pwm ends at 8.0, below random actions (10.0) and untrained pwm (9.0)"
    assert cautions(Comparison([with_untrained(worse, 9.0)], "pwm", "pwm"))[0] == first


def recorded(run, **changes):
    return replace(run, record=run.record | changes)


def test_runs_of_several_origins_are_told_apart():
    runs = [make_run("A-v0", "pwm", seed, 100) for seed in range(4)]
    runs[1] = recorded(runs[1], git_revision="0123456789abcdef-dirty")
    runs[2] = recorded(runs[2], model={"device": "cuda:0"}, gpu="Some GPU")
    runs[3] = recorded(make_run("A-v0", "pwm", 3, 1, FAILED), earlier=[runs[0].record | {"processor": "Other"}])
    comparison = Comparison(runs, "pwm", "pwm")
    found = [
        (each.device, each.processor, each.revision, each.finished, each.failed) for each in origins(runs, ["pwm"])
    ]
    assert found == [
        ("CPU", "Some <Processor>", "abc123", 1, 0),
        ("CPU", "Some <Processor>", "0123456789 with changes", 1, 0),
        ("GPU (Some GPU)", "Some <Processor>", "abc123", 1, 0),
        ("CPU", "Other, then Some <Processor>", "abc123", 0, 1),
    ]
    assert cautions(comparison) == [
        "A-v0: 1 of 4 runs of pwm failed, and its figures leave them out",
        "A-v0: the runs of pwm are of 2 revisions (0123456789 with changes, abc123)",
    ]


def test_times_are_compared_on_one_machine_only():
    runs = [make_run("A-v0", "pwm", 0, 100), make_run("A-v0", "sac", 0, 100)]
    assert Comparison(runs, "pwm", "sac").why_no_times("A-v0") is None
    for changes in ({"processor": "Other"}, {"model": {"device": "cuda"}, "gpu": "Some GPU"}):
        reason = Comparison([runs[0], recorded(runs[1], **changes)], "pwm", "sac").why_no_times("A-v0")
        assert reason.startswith("pwm: CPU, Some <Processor>, threads: 1; sac: ")
    gpus = [recorded(run, model={"device": "cuda"}) for run in runs]
    assert Comparison(gpus, "pwm", "sac").why_no_times("A-v0") == "the GPU was not recorded"
    gpus = [recorded(run, gpu="Some GPU") for run in gpus]
    assert Comparison(gpus, "pwm", "sac").why_no_times("A-v0") is None


def test_runs_of_different_lengths_are_compared_after_the_shortest():
    runs = [make_run("A-v0", "pwm", seed, 100) for seed in range(2)]
    short = [make_run("A-v0", "sac", seed, 100, steps=200) for seed in range(2)]
    short = [replace(run, rows=run.rows[:2]) for run in short]
    unfinished = make_run("A-v0", "pwm", 2, 100, RUNNING)  # has got to 200
    comparison = Comparison([*runs, *short, unfinished], "pwm", "sac")
    assert list(comparison.finals("A-v0", "pwm")) == [50, 50, 50]
    text = "A-v0: compared after 200 steps, as long as the shortest run; longer are runs of pwm"
    assert cautions(comparison) == [text]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("algo", ["a2c", "sac"])
def test_returns_that_are_not_finite(bad, algo, results, tmp_path):
    runs = [*all_runs(), make_run("A-v0", "a2c", 0, 1), make_run("B-v0", "a2c", 0, 1)]
    run = next(run for run in runs if run.spec.algo == algo)
    run.rows[-1] = replace(run.rows[-1], return_mean=bad)
    comparison = Comparison(runs, "pwm", "sac")
    assert comparison.scored_envs() == (["B-v0"], {"A-v0": f"a final return of {algo} is not finite"})
    assert comparison.target("A-v0") == ("td3", 130)
    assert np.isfinite(comparison.iqm("pwm").value)
    assert figures.learning_curves(comparison, "A-v0", "env_steps")


def test_intervals_are_drawn_no_wider_than_they_are(monkeypatch):
    monkeypatch.setattr(figures, "to_png", lambda figure: figure)
    comparison = Comparison(all_runs(), "pwm", "sac")
    bar = figures.aggregate(comparison).axes[0].lines[0]
    estimate = comparison.iqm(comparison.algos[0])
    assert list(bar.get_xdata()) == [estimate.low, estimate.high]
    assert bar.get_solid_capstyle() == "butt"


def test_the_shipped_algorithms_look_different():
    runs = [make_run("A-v0", algo, 0, 1) for algo in ALGORITHMS]
    comparison = Comparison(runs, "pwm", "sac")
    assert len({tuple(figures.style_of(comparison, algo).values()) for algo in ALGORITHMS}) == len(ALGORITHMS)


def test_a_run_out_of_its_place_is_refused(results):
    shutil.move(results / "A-v0" / "td3", results / "A-v0" / "td3_old")
    with pytest.raises(ValueError, match=r"td3_old.* holds the run that belongs into .*A-v0/td3/0; move it out of"):
        report.read_runs(results)


def test_what_cannot_be_scored_is_left_out_with_a_reason():
    runs = [run for run in all_runs() if (run.spec.env, run.spec.algo) != ("B-v0", "td3")]
    negative = [make_run("C-v0", algo, 0, -100) for algo in ("pwm", "sac", "td3")]
    envs, excluded = Comparison(runs + negative, "pwm", "sac").scored_envs()
    assert envs == ["A-v0"]
    assert excluded == {
        "B-v0": "no finished run of td3",
        "C-v0": "sac's mean final return is not above 0",
    }


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        ([], "none of the 0 runs has finished"),
        ([make_run("A-v0", "sac", 0, 1, RUNNING)], "none of the 1 runs has finished 400 steps"),
        ([make_run("A-v0", "sac", 0, 1), make_run("A-v0", "sac", 0, 1)], "a seed is there more than once"),
        (
            [make_run("A-v0", "sac", 0, 1), make_run("A-v0", "sac", 1, 1, steps=7)],
            "sac in A-v0 is not evaluated after 7 steps, but every 100; choose a multiple as --steps",
        ),
        (
            [make_run("A-v0", "sac", 0, 1), make_run("A-v0", "td3", 1, 1, eval_episodes=7)],
            r"differ in eval_episodes: \[5, 7\]",
        ),
        (
            [make_run("A-v0", "sac", 0, 1), make_run("A-v0", "sac", 1, 1, hyperparameters={"gamma": 1})],
            "different hyperparameters",
        ),
        (
            [
                make_run("A-v0", "sac", 0, 1),
                make_run("A-v0", "td3", 0, 1, hyperparameters={"env_kwargs": {"g": 5.0}}),
            ],
            r"differ in the environment's arguments: none, \{'g': 5.0\}",
        ),
        (
            [make_run("A-v0", "sac", 0, 1, RUNNING), make_run("A-v0", "td3", 0, 1)],
            "no run of the method sac has finished; --steps N compares after fewer steps",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, match):
    with pytest.raises(ValueError, match=match):
        Comparison(runs, "sac", "sac")


def test_a_run_cut_at_fewer_steps():
    run = make_run("A-v0", "sac", 0, 100)
    assert [row.env_steps for row in cut(run, 200).rows] == [100, 200]
    rollouts = replace(run, rows=[replace(row, env_steps=row.env_steps + 28) for row in run.rows])
    assert [row.env_steps for row in cut(rollouts, 200).rows] == [128, 228]
    with pytest.raises(
        ValueError, match="sac in A-v0 is not evaluated after 250 steps, but every 100; choose a multiple"
    ):
        cut(run, 250)
    assert cut(run, 200).spec.steps == 200
    assert cut(run, 400) == run
    states = {(state, steps): cut(make_run("A-v0", "sac", 0, 1, state), steps).state for state, steps in CUTS}
    assert states == CUTS


def test_a_comparison_at_fewer_steps():
    seldom = [make_run("A-v0", "td3", seed, 100, eval_every=200) for seed in range(3)]
    seldom = [replace(run, rows=run.rows[1::2]) for run in seldom]
    runs = [run for run in all_runs() if run.spec.env == "A-v0" and run.spec.algo != "td3"]
    runs += [make_run("A-v0", "sac", 9, 120, RUNNING), *seldom]
    comparison = Comparison([cut(run, 200) for run in runs], "pwm", "sac")
    assert list(comparison.finals("A-v0", "sac")) == [45, 50, 55, 60]
    assert comparison.cell("A-v0", "pwm").final.value == 130
    assert list(comparison.curve("A-v0", "td3").env_steps) == [200]
    assert not comparison.others


def test_how_much_of_the_best_is_kept():
    run = make_run("A-v0", "pwm", 0, 8.0)
    longer = make_run("A-v0", "pwm", 0, 8.0, steps=700)
    returns = [1, 6, 9, 6, 3, 0, 3]
    rows = [replace(run.rows[0], env_steps=100 * i, return_mean=value) for i, value in enumerate(returns, 1)]
    assert Comparison([replace(longer, rows=rows)], "pwm", "pwm").cell("A-v0", "pwm").kept == pytest.approx(2 / 7)
    assert Comparison([run], "pwm", "pwm").cell("A-v0", "pwm").kept is None  # four evaluations: nothing to compare


def test_what_algorithms_log_of_themselves():
    def logs(run, *values):
        rows = [
            replace(row, logged={"train/value_calibration": value, "rollout/ep_len_mean": 10 * value, "train/x": 1.0})
            for row, value in zip(run.rows, values, strict=True)
        ]
        return replace(run, rows=rows)

    runs = [
        logs(make_run("A-v0", "pwm", 0, 8.0), 9, 1, 9, 2),
        logs(make_run("A-v0", "pwm", 1, 8.0), 9, 3, 9, 4),
        make_run("A-v0", "sac", 0, 4.0),
    ]
    ((env, algo, values),) = Comparison(runs, "pwm", "sac").diagnostics()
    assert (env, algo) == ("A-v0", "pwm")
    assert values["train/value_calibration"] == (2, 3)
    assert values["rollout/ep_len_mean"] == (20, 30)
    assert np.isnan(values["train/critic_gap"]).all()


def test_logged_values_are_read_as_they_were_written(tmp_path):
    rows = make_run("A-v0", "pwm", 0, 8.0).rows
    rows = [rows[0], *(replace(row, logged={"train/b": 0.1, "train/a": float(i)}) for i, row in enumerate(rows[1:]))]
    write_curve(tmp_path, rows)
    assert read_curve(tmp_path) == rows


def test_unknown_algorithms_are_refused():
    with pytest.raises(ValueError, match="unknown baseline in these results 'sca'; did you mean sac"):
        Comparison(all_runs(), "pwm", "sca")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (12345.6, "12,346"), (-123.4, "-123"), (12.34, "12.3"), (0.456, "0.46")],
)
def test_numbers(value, text):
    assert number(value) == text


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page(results, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_command_line({"report": report}, ["report", str(results), "--out", str(out)]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    source = (out / "index.html").read_text()
    page = Page(source)

    assert not re.search(r"https?://|//[a-z]+\.|url\(|@import", re.sub(r"base64,[\w+/=]+", "", source))
    assert not page.all("script")
    assert not page.all("link")
    assert all(re.fullmatch(r"#\w+", a["href"]) for a in page.all("a"))
    images = page.all("img")
    assert len(images) == 9  # curves in 2 environments against 3 things, 3 aggregates
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert len(list(out.glob("*.png"))) == 9
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))

    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(page.all("caption")) == len(page.all("table")) == 3

    text = " ".join(page.text.split())
    for expected in (
        "3 algorithms in 2 environments, 3 seeds each; 18 finished runs",
        "1 failed and 1 unfinished runs",
        "A-v0, sac, seed 7: failed Traceback: <it> broke",
        "B-v0, td3, seed 8: unfinished, last evaluation at 200 of 400 steps",
        "400 environment steps; target 130 (td3)",
        "is 1 at the mean final return of sac and 0 at a return of 0",
        "without the lowest and the highest quarter, rounded down to whole runs (of 3 none, of 6 one at either end)",
        "Processor: Some <Processor>; threads per run: 1",
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


def test_a_page_at_fewer_steps(results, tmp_path, capsys):
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


def test_a_page_of_some_environments(results, tmp_path, capsys):
    arguments = ["report", str(results), "--out", str(tmp_path / "out"), "--env"]
    with pytest.raises(SystemExit):
        run_command_line({"report": report}, [*arguments, "B-v0", "C-v0"])
    assert "no run in --env C-v0; there are runs in A-v0, B-v0" in capsys.readouterr().err
    assert run_command_line({"report": report}, [*arguments, "B-v0"]) == 0
    page = Page((tmp_path / "out" / "index.html").read_text())
    text = " ".join(page.text.split())
    assert "3 algorithms in 1 environment, 3 seeds each; 9 finished runs" in text
    assert "A-v0" not in text.replace("sb3-pwm benchmark --env A-v0 B-v0", "")


def test_a_page_without_scores(tmp_path):
    comparison = Comparison([make_run("C-v0", "sac", 0, -100)], "sac", "sac")
    report.write_report(comparison, tmp_path, "command")
    text = " ".join(Page((tmp_path / "index.html").read_text()).text.split())
    assert "No normalised return can be computed: C-v0: sac's mean final return is not above 0" in text
    assert "1 seed each" in text
    assert "--zero random puts the zero" in text
    assert "target -100 (sac's own)" in text
    assert not (tmp_path / "iqm.png").exists()


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "scipy.stats"])
def test_what_is_not_installed_is_named(module, monkeypatch, tmp_path, comparison):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-pwm\[plot\]'"):
        report.write_report(comparison, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_folders_without_runs_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_command_line({"report": report}, ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert "holds no runs of sb3-pwm benchmark" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_curves_are_refused(results):
    path = next(results.glob("*/*/*/curve.csv"))
    path.write_text(path.read_text().replace("return_mean", "mean_return"))
    with pytest.raises(ValueError, match="holds no evaluations of a run"):
        report.read_runs(results)


def test_a_file_in_the_place_of_the_report(results, tmp_path, capsys):
    (tmp_path / "page").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        run_command_line({"report": report}, ["report", str(results), "--out", str(tmp_path / "page")])
    assert "error: [Errno 17] File exists" in capsys.readouterr().err
