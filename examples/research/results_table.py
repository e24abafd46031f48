"""Print the tables of docs/results.md, trials.md and offline.md from CSV files: of the scripts here, or of a benchmark.

    python examples/research/results_table.py docs/results/default docs/results/baselines-100k --until 50000
    python examples/research/results_table.py docs/results/offline
    python examples/research/results_table.py docs/results/many-tasks/dmcontrol --final return_mean --at 2000
    python examples/research/results_table.py docs/results/default docs/results/untrained --final return_mean

Each cell is the mean over the seeds of the evaluations' mean return, with the lowest and the highest seed. "lowest" is
the worst evaluation in the second half of a run, a mean over the seeds; "average actor" says what the same evaluations
gave with the average of the last 100 actors, where that was measured. ``--final`` prints one table with the last
evaluations of all environments instead, or with those after ``--at`` updates or steps, and with the algorithms under
their proper names. ``--until`` leaves out what came after so many.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

Row = dict[str, str]

NAMES = {  # as they are written, in the order of the columns; ``_graphs`` is how they were run
    "pwm": "PWM",
    "crossq_graphs": "CrossQ",
    "tqc_graphs": "TQC",
    "sac": "SAC",
    "ppo": "PPO",
    "untrained pwm": "untrained",
}

COLUMNS: tuple[int, ...] = (1_000, 1_500, 2_000, 2_500, 4_000, 5_000, 6_000, 8_000, 10_000, 12_000, 15_000, 16_000)
COLUMNS += (20_000, 25_000, 30_000, 40_000, 50_000, 60_000, 80_000, 100_000)


def read_rows(folder: Path) -> list[Row]:
    """Read all rows of a folder, and say of each to which table and to how many steps it belongs.

    :raises SystemExit: if it holds no results.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows.extend(csv.DictReader(file))
    for path in sorted(folder.glob("*/*/*/curve.csv")):  # of sb3-pwm benchmark
        place = dict(zip(("environment", "algorithm", "seed"), path.parts[-4:-1], strict=True))
        with path.open(newline="") as file:
            rows.extend(row | place for row in csv.DictReader(file))
    if not rows:
        raise SystemExit(f"there are no results in {folder}")
    for row in rows:
        row["table"], row["step"] = row["environment"], row.get("env_steps", "0")
        if "updates" in row:  # learnt from data; what follows online has a table of its own
            online = row["step"] not in ("", "0")
            data = f"{int(row['transitions']):,} transitions of {row['data']}"
            row["table"] += f", {data}, then online: environment steps" if online else f", {data}: updates"
            row["step"] = row["step"] if online else row["updates"]
    return rows


def cell(values: list[float], digits: int = 0) -> str:
    """Write the seeds' values as their mean, the lowest and the highest."""
    if not values:
        return ""
    texts = [f"{value:,.{digits}f}" for value in (mean(values), min(values), max(values))]
    return texts[0] if len(values) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def calibration(rows: list[Row]) -> str:
    values = [float(row["value_calibration"]) for row in rows if row.get("value_calibration")]
    return ", ".join(f"{value:.2f}" for value in values)


def lowest(rows: list[Row], column: str) -> str:
    """Return the mean over the seeds of the lowest evaluation in the second half of a run."""
    by_seed: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(row)
    minima = []
    for own in by_seed.values():
        last = max(int(row["step"]) for row in own)
        values = [float(row[column]) for row in own if 2 * int(row["step"]) > last and row.get(column)]
        minima.extend([min(values)] if values else [])
    return f"{mean(minima):,.0f}" if minima else ""


def print_table(title: str, rows: list[Row]) -> None:
    by_algorithm: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_algorithm[row["algorithm"]].append(row)
    steps = sorted({int(row["step"]) for row in rows} & set(COLUMNS))
    average_actor = any(row.get("average_actor_return") for row in rows)
    print(f"### {title}\n")
    header = ["algorithm", "seeds", *[f"{step:,}" for step in steps], "lowest"]
    calibrated = any(row.get("value_calibration") for row in rows)
    header += ["lowest, average actor"] * average_actor + ["CPU s at the end"]
    header += ["calibration at the end"] * calibrated
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for algorithm, own in sorted(by_algorithm.items()):
        at = {step: [float(row["return_mean"]) for row in own if int(row["step"]) == step] for step in steps}
        last = max(int(row["step"]) for row in own)
        final = [row for row in own if int(row["step"]) == last]
        cells = [
            algorithm,
            ", ".join(sorted({row["seed"] for row in own})),
            *[cell(at[step]) for step in steps],
            lowest(own, "return_mean"),
            *[lowest(own, "average_actor_return")] * average_actor,
            f"{mean(float(row['cpu_seconds']) for row in final):,.0f}",
            *[calibration(final)] * calibrated,
        ]
        print("| " + " | ".join(cells) + " |")
    print()


def print_final(rows: list[Row], column: str) -> None:
    """Print a column of the last row of each run, its mean over the seeds: a line per environment, and their average.

    Algorithms for which the column is not known are left out.
    """
    rows = [row for row in rows if row.get(column)]
    found = {row["algorithm"] for row in rows}
    algorithms = [*(name for name in NAMES if name in found), *sorted(found - NAMES.keys())]
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    last: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:  # of a run: in the order of its steps
        last[row["environment"], row["algorithm"]][row["seed"]] = float(row[column])
    table = [[list(last[env, algorithm].values()) for algorithm in algorithms] for env in environments]
    averages = [[mean(mean(values) for values in column if values)] for column in zip(*table, strict=True)]
    names = [*(env.rpartition("/")[2] for env in environments), "mean"]
    digits = 2 if column.startswith("success") else 0
    print("| task | " + " | ".join(NAMES.get(name, name) for name in algorithms) + " |")
    print("|" + "---|" * (len(algorithms) + 1))
    for name, line in zip(names, [*table, averages], strict=True):
        print(f"| {name} | " + " | ".join(cell(values, digits) for values in line) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--final", choices=["return_mean", "success_rate", "success_once_rate"], metavar="COLUMN")
    parser.add_argument("--at", type=int, metavar="STEPS", help="with --final: not the last evaluations, but these")
    parser.add_argument("--until", type=int, metavar="STEPS", help="leave out what came after so many steps or updates")
    args = parser.parse_args()
    if args.at is not None and not args.final:
        parser.error("--at says which evaluations --final prints; give both")
    rows = [row for folder in args.folders for row in read_rows(folder)]
    rows = [row for row in rows if args.until is None or int(row["step"]) <= args.until]
    if args.final:
        rows = [row for row in rows if args.at is None or int(row["step"]) == args.at]
        print_final(rows, args.final)
        return
    for title in sorted({row["table"] for row in rows}):
        print_table(title, [row for row in rows if row["table"] == title])


if __name__ == "__main__":
    main()
