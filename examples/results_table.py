"""Print the tables of docs/results.md from the CSV files that examples/learning_curve.py wrote.

    python examples/results_table.py docs/results/online

Each cell is the mean over the seeds of the evaluations' mean return, with the lowest and the highest seed. "lowest" is
the worst evaluation in the second half of a run, a mean over the seeds; "average actor" says what the same evaluations
gave with the average of the last 100 actors, where that was measured.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

Row = dict[str, str]

COLUMNS = (1_000, 1_500, 2_000, 2_500, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 75_000, 100_000)


def read_rows(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows.extend(csv.DictReader(file))
    return rows


def cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    returns = [float(row["return_mean"]) for row in rows]
    text = f"{mean(returns):,.0f}"
    return text if len(returns) == 1 else f"{text} ({min(returns):,.0f} to {max(returns):,.0f})"


def calibration(rows: list[Row]) -> str:
    values = [float(row["value_calibration"]) for row in rows if row["value_calibration"]]
    return ", ".join(f"{value:.2f}" for value in values)


def lowest(rows: list[Row], column: str) -> str:
    """Return the mean over the seeds of the lowest evaluation in the second half of a run."""
    by_seed: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(row)
    minima = []
    for own in by_seed.values():
        last = max(int(row["env_steps"]) for row in own)
        values = [float(row[column]) for row in own if 2 * int(row["env_steps"]) > last and row.get(column)]
        minima.extend([min(values)] if values else [])
    return f"{mean(minima):,.0f}" if minima else ""


def print_table(environment: str, rows: list[Row]) -> None:
    by_algorithm: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_algorithm[row["algorithm"]].append(row)
    steps = sorted({int(row["env_steps"]) for row in rows} & set(COLUMNS))
    print(f"### {environment}\n")
    header = ["algorithm", "seeds", *[f"{step:,}" for step in steps], "lowest", "lowest, average actor"]
    header += ["CPU s at the end", "calibration at the end"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for algorithm, own in sorted(by_algorithm.items()):
        at = {step: [row for row in own if int(row["env_steps"]) == step] for step in steps}
        last = max(int(row["env_steps"]) for row in own)
        final = [row for row in own if int(row["env_steps"]) == last]
        cells = [
            algorithm,
            ", ".join(sorted({row["seed"] for row in own})),
            *[cell(at[step]) for step in steps],
            lowest(own, "return_mean"),
            lowest(own, "average_actor_return"),
            f"{mean(float(row['cpu_seconds']) for row in final):,.0f}",
            calibration(final),
        ]
        print("| " + " | ".join(cells) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/results/online"))
    rows = read_rows(parser.parse_args().folder)
    for environment in sorted({row["environment"] for row in rows}):
        print_table(environment, [row for row in rows if row["environment"] == environment])


if __name__ == "__main__":
    main()
