"""Runs of a benchmark for the tests of its reports, made up rather than trained."""

from dataclasses import replace
from typing import Any

from sb3_pwm.benchmark.results import FAILED, FINISHED, FORMAT, CurveRow, Run
from sb3_pwm.benchmark.specs import RunSpec

# final returns by environment, algorithm and seed
FINALS = {
    "A-v0": {"pwm": [200, 260, 320], "sac": [90, 100, 110], "td3": [120, 130, 140]},
    "B-v0": {"pwm": [40, 50, 60], "sac": [50, 50, 50], "td3": [5, 10, 15]},
}


def make_run(env: Any, algo: Any, seed: int, final: Any, state: Any = FINISHED, **changes: Any) -> Any:
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


def all_runs() -> Any:
    return [
        make_run(env, algo, seed, final)
        for env, by_algo in FINALS.items()
        for algo, finals in by_algo.items()
        for seed, final in enumerate(finals)
    ]


def with_untrained(run: Any, value: Any, **logged: Any) -> Any:
    """The same run with an evaluation before its first step."""
    first = replace(run.rows[0], env_steps=0, return_mean=value, cpu_seconds=0.0, wall_seconds=0.0)
    return replace(run, rows=[replace(first, logged=dict(logged)), *run.rows])


def updates(run: Any, *numbers: Any) -> Any:
    rows = [replace(row, logged={"train/n_updates": float(n)}) for row, n in zip(run.rows, numbers, strict=True)]
    return replace(run, rows=rows)


def recorded(run: Any, **changes: Any) -> Any:
    return replace(run, record=run.record | changes)
