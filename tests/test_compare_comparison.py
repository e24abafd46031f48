import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from compare_made import all_runs, make_run, recorded, updates, with_untrained

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from sb3_pwm.benchmark import figures
from sb3_pwm.benchmark.alignment import cut
from sb3_pwm.benchmark.cautions import cautions
from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.origins import origins
from sb3_pwm.benchmark.page import chart_data, settings_of
from sb3_pwm.benchmark.results import FAILED, FINISHED, RUNNING

# what becomes of runs of 400 steps, of which the unfinished ones have got to 200
CUTS = {(FINISHED, 200): FINISHED, (FINISHED, 500): RUNNING, (RUNNING, 200): FINISHED, (RUNNING, 300): RUNNING}
CUTS |= {(FAILED, 200): FINISHED, (FAILED, 300): FAILED}


@pytest.fixture
def comparison() -> Any:
    return Comparison(all_runs(), "pwm", "sac")


def test_scores_are_returns_in_units_of_the_baseline(comparison: Any) -> None:
    assert comparison.algos == ["pwm", "sac", "td3"]
    assert [list(scores) for scores in comparison.scores("pwm")] == [[2, 2.6, 3.2], [0.8, 1, 1.2]]
    # of 0.8, 1, 1.2, 2, 2.6, 3.2 one is left out on either side
    assert comparison.iqm("pwm").value == pytest.approx((1 + 1.2 + 2 + 2.6) / 4)
    assert comparison.iqm("sac").value == pytest.approx(1)
    # A: always above. B: 40 below, 50 ties, 60 above three times 50
    assert comparison.improvement("sac").value == pytest.approx((1 + 0.5) / 2)


def test_a_random_policy_can_be_the_zero() -> None:
    comparison = Comparison(all_runs(), "pwm", "sac", random_zero=True)
    assert comparison.scores("td3")[1] == pytest.approx([-5 / 40, 0, 5 / 40])


def test_labels_are_algorithms_of_their_own() -> None:
    runs = [make_run("A-v0", "pwm", seed, 100) for seed in range(2)]
    runs += [make_run("A-v0", "pwm", seed, 200, label="wide") for seed in range(2)]
    comparison = Comparison(runs, "wide", "pwm")
    assert comparison.algos == ["wide", "pwm"]
    assert comparison.iqm("wide").value == 2
    assert [entry["algo"] for entry in settings_of(runs)] == ["pwm", "wide=pwm"]
    with pytest.raises(ValueError, match="wide in A-v0 is pwm in some runs and sac in others"):
        Comparison([*runs, make_run("A-v0", "sac", 2, 1, label="wide")], "wide", "pwm")


def test_target_is_the_best_of_the_others(comparison: Any) -> None:
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


def test_curves(comparison: Any) -> None:
    curve = comparison.curve("B-v0", "td3")
    assert list(curve.env_steps) == [100, 200, 300, 400]
    assert curve.cpu_seconds.tolist() == [[10, 20, 30, 40]] * 3
    assert curve.returns.tolist() == [[1.25, 2.5, 3.75, 5], [2.5, 5, 7.5, 10], [3.75, 7.5, 11.25, 15]]
    assert list(curve.mean) == [2.5, 5, 7.5, 10]
    assert np.all((curve.low >= curve.returns.min(0)) & (curve.high <= curve.returns.max(0)))


def test_a_missing_evaluation_is_not_made_up() -> None:
    """Algorithms that ask their callbacks once per episode may be evaluated less often."""
    first, second = make_run("A-v0", "pwm", 0, 100), make_run("A-v0", "pwm", 1, 300)
    second = replace(second, rows=[second.rows[0], second.rows[3]])
    comparison = Comparison([first, second], "pwm", "pwm")
    curve = comparison.curve("A-v0", "pwm")
    assert list(curve.env_steps) == [100, 400]
    assert list(curve.mean) == [(25 + 75) / 2, (100 + 300) / 2]
    missing = "seed 1 of pwm has no evaluation at 200, 300 steps; pwm's curve leaves them out"
    assert cautions(comparison) == [f"A-v0: {missing}"]


def test_a_run_without_its_last_evaluation_does_not_count() -> None:
    first, second = make_run("A-v0", "pwm", 0, 100), make_run("A-v0", "pwm", 1, 300)
    comparison = Comparison([first, replace(second, rows=second.rows[:3])], "pwm", "pwm")
    assert list(comparison.finals("A-v0", "pwm")) == [100]
    assert [(run.spec.seed, run.state) for run in comparison.others] == [(1, RUNNING)]
    [origin] = origins([*comparison.finished, *comparison.others], ["pwm"])
    assert (origin.finished, origin.unfinished) == (1, 1)


def test_only_common_evaluations_count() -> None:
    often = [make_run("A-v0", "pwm", seed, 100) for seed in range(2)]
    seldom = [make_run("A-v0", "sac", seed, 60, eval_every=200) for seed in range(2)]
    seldom = [replace(run, rows=run.rows[1::2]) for run in seldom]
    comparison = Comparison(often + seldom, "pwm", "sac")
    assert list(comparison.curve("A-v0", "pwm").env_steps) == [200, 400]
    assert comparison.cell("A-v0", "pwm").steps_to_target == 400  # 75 at 300 steps, when SAC was not looked at
    each = "every 100 pwm, every 200 sac"
    assert cautions(comparison) == [f"A-v0: evaluated at different steps ({each}); only the common ones are used"]


@pytest.mark.parametrize(
    "model", [{"learning_starts": 100, "n_steps": 1, "n_envs": 1}, {"n_steps": 50, "n_envs": 2}, {}]
)
def test_what_was_not_learnt_reaches_no_target(model: Any) -> None:
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


def test_untrained_policies_are_references() -> None:
    runs = [with_untrained(make_run("A-v0", "pwm", seed, 100), value) for seed, value in enumerate((5, 7))]
    comparison = Comparison(runs, "pwm", "pwm", untrained={"A-v0": {"untrained": [1.0]}, "B-v0": {"untrained": [9.0]}})
    found = {name: list(values) for name, values in comparison.references("A-v0").items()}
    assert found == {"random actions": [10], "untrained pwm": [5, 7], "untrained": [1]}
    assert list(comparison.curve("A-v0", "pwm").env_steps) == [0, 100, 200, 300, 400]
    # where the runs have fewer seeds of them than a file, those of the file count
    more = {"A-v0": {"untrained pwm": [1.0, 2.0, 3.0]}}
    assert list(Comparison(runs, "pwm", "pwm", untrained=more).references("A-v0")["untrained pwm"]) == [1, 2, 3]
    # an algorithm without that evaluation leaves it out of the curves
    comparison = Comparison([*runs, make_run("A-v0", "sac", 0, 50)], "pwm", "sac")
    assert list(comparison.curve("A-v0", "pwm").env_steps) == [100, 200, 300, 400]
    assert list(comparison.references("A-v0")["untrained pwm"]) == [5, 7]
    assert cautions(comparison) == ["A-v0: one seed of sac: it says nothing of the next, and there is no interval"]


def test_an_end_below_the_beginning_is_a_caution() -> None:
    worse = make_run("A-v0", "pwm", 0, 100)
    worse = replace(worse, rows=[*worse.rows[:3], replace(worse.rows[3], return_mean=8.0)])
    first = "A-v0: pwm ends at 8.0, below random actions (10.0) and its first evaluation after 100 steps (25.0)"
    assert cautions(Comparison([worse], "pwm", "pwm"))[0] == first
    first = "A-v0: pwm ends at 8.0, below random actions (10.0) and untrained pwm (9.0)"
    assert cautions(Comparison([with_untrained(worse, 9.0)], "pwm", "pwm"))[0] == first


def test_a_target_that_needs_no_learning_is_a_caution() -> None:
    runs = [make_run("A-v0", "pwm", 0, 100), with_untrained(make_run("A-v0", "sac", 0, 20), 30.0)]
    text = "A-v0: the target, sac's 20.0, says little: without learning untrained sac had as much"
    assert text in cautions(Comparison(runs, "pwm", "sac"))


def test_revisions_that_differ_from_one_environment_to_another_are_a_caution() -> None:
    runs = [recorded(make_run(env, "pwm", 0, 100), git_revision=of) for env, of in (("A-v0", "abc"), ("B-v0", "def"))]
    text = "A-v0, B-v0: the runs of pwm are of other revisions than elsewhere (abc, def in all)"
    assert text in cautions(Comparison(runs, "pwm", "pwm"))


def test_one_seed_of_the_method_has_no_interval() -> None:
    runs = [run for run in all_runs() if run.spec.algo != "pwm" or run.spec.seed == 0]
    comparison = Comparison(runs, "pwm", "sac")
    assert comparison.improvement("td3").value == 1.0  # 200 of 120 to 140, 40 of 5 to 15
    assert np.isnan(comparison.improvement("td3").low)
    assert not np.isnan(comparison.iqm("td3").low)


def test_runs_of_several_origins_are_told_apart() -> None:
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


def test_times_are_compared_on_one_machine_only() -> None:
    runs = [make_run("A-v0", "pwm", 0, 100), make_run("A-v0", "sac", 0, 100)]
    assert Comparison(runs, "pwm", "sac").why_no_times("A-v0") is None
    for changes in ({"processor": "Other"}, {"model": {"device": "cuda"}, "gpu": "Some GPU"}):
        reason = Comparison([runs[0], recorded(runs[1], **changes)], "pwm", "sac").why_no_times("A-v0")
        assert reason == "the runs were not all on one device and processor with as many threads"
    gpus = [recorded(run, model={"device": "cuda"}) for run in runs]
    assert Comparison(gpus, "pwm", "sac").why_no_times("A-v0") == "the name of the GPU was not recorded"
    gpus = [recorded(run, gpu="Some GPU") for run in gpus]
    assert Comparison(gpus, "pwm", "sac").why_no_times("A-v0") is None


def test_runs_of_different_lengths_are_compared_after_the_shortest() -> None:
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
def test_returns_that_are_not_finite(bad: Any, algo: Any) -> None:
    runs = [*all_runs(), make_run("A-v0", "a2c", 0, 1), make_run("B-v0", "a2c", 0, 1)]
    run = next(run for run in runs if run.spec.algo == algo)
    run.rows[-1] = replace(run.rows[-1], return_mean=bad)
    comparison = Comparison(runs, "pwm", "sac")
    assert comparison.scored_envs() == (["B-v0"], {"A-v0": f"a final return of {algo} is not finite"})
    assert comparison.target("A-v0") == ("td3", 130)
    seed = run.spec.seed
    assert (
        cautions(comparison)[0] == f"A-v0: seed {seed} of {algo} ends at {bad}: {algo} has no mean, and is not a target"
    )
    assert np.isfinite(comparison.iqm("pwm").value)
    assert figures.saved(figures.learning_curves(comparison, ["A-v0"], "env_steps"), "png")
    assert json.dumps(chart_data(comparison), allow_nan=False)


def test_what_cannot_be_scored_is_left_out_with_a_reason() -> None:
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
            r"no run of the method sac has finished \(0 failed, 1 unfinished\); --steps N compares after fewer steps",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs: Any, match: Any) -> None:
    with pytest.raises(ValueError, match=match):
        Comparison(runs, "sac", "sac")


def test_equal_arguments_of_an_environment_may_be_written_in_several_ways() -> None:
    ways = [{"a": 1, "b": 2.0}, {"b": 2.0, "a": 1}, "dict(a=1, b=2.0)"]
    runs = [make_run("A-v0", f"x{i}", 0, 1, hyperparameters={"env_kwargs": way}) for i, way in enumerate(ways)]
    assert Comparison(runs, "x0", "x1").algos == ["x0", "x1", "x2"]


def test_a_run_cut_at_fewer_steps() -> None:
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


def test_a_comparison_at_fewer_steps() -> None:
    seldom = [make_run("A-v0", "td3", seed, 100, eval_every=200) for seed in range(3)]
    seldom = [replace(run, rows=run.rows[1::2]) for run in seldom]
    runs = [run for run in all_runs() if run.spec.env == "A-v0" and run.spec.algo != "td3"]
    runs += [make_run("A-v0", "sac", 9, 120, RUNNING), *seldom]
    comparison = Comparison([cut(run, 200) for run in runs], "pwm", "sac")
    assert list(comparison.finals("A-v0", "sac")) == [45, 50, 55, 60]
    assert comparison.cell("A-v0", "pwm").final.value == 130
    assert list(comparison.curve("A-v0", "td3").env_steps) == [200]
    assert not comparison.others


def test_how_much_of_the_best_is_kept() -> None:
    run = make_run("A-v0", "pwm", 0, 8.0)
    longer = make_run("A-v0", "pwm", 0, 8.0, steps=700)
    returns = [1, 6, 9, 6, 3, 0, 3]
    rows = [replace(run.rows[0], env_steps=100 * i, return_mean=value) for i, value in enumerate(returns, 1)]
    assert Comparison([replace(longer, rows=rows)], "pwm", "pwm").cell("A-v0", "pwm").kept == pytest.approx(2 / 7)
    assert Comparison([run], "pwm", "pwm").cell("A-v0", "pwm").kept is None  # four evaluations: nothing to compare


def test_what_algorithms_log_of_themselves() -> None:
    def logs(run: Any, *values: Any) -> Any:
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


def test_success_is_that_of_the_last_evaluations() -> None:
    def succeeds(run: Any, *pairs: Any) -> Any:
        names = ("eval/success_rate", "eval/success_once_rate")
        rows = [
            replace(row, logged=dict(zip(names, pair, strict=True))) for row, pair in zip(run.rows, pairs, strict=True)
        ]
        return replace(run, rows=rows)

    runs = [
        succeeds(make_run("A-v0", "pwm", 0, 8.0), (1, 1), (1, 1), (1, 1), (0.2, 0.6)),
        succeeds(make_run("A-v0", "pwm", 1, 8.0), (0, 0), (0, 0), (0, 0), (0.6, 1.0)),
        make_run("A-v0", "sac", 0, 4.0),
        make_run("B-v0", "sac", 0, 4.0),
    ]
    comparison = Comparison(runs, "pwm", "sac")
    found = comparison.cell("A-v0", "pwm")
    assert found is not None
    assert found.success == pytest.approx(0.4)
    assert found.success_once == pytest.approx(0.8)
    assert comparison.knows_success("A-v0")
    assert comparison.cell("A-v0", "sac").success is None
    assert not comparison.knows_success("B-v0")


def test_unknown_algorithms_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown baseline in these results 'sca'; did you mean sac"):
        Comparison(all_runs(), "pwm", "sca")
