"""The command ``sb3-pwm``: its subcommands are registered here."""

import sys

from sb3_pwm.cli.subcommands import Lazy, run_command_line

COMMANDS = {
    "benchmark": Lazy(
        "sb3_pwm.cli.benchmark",
        "Compare algorithms: environments x algorithms x seeds, each run in a separate process.",
    ),
    "export": Lazy(
        "sb3_pwm.cli.export",
        "Write the policy of a saved model as ONNX, TorchScript or page, with normalisation and action scaling inside.",
    ),
    "extract": Lazy(
        "sb3_pwm.cli.extract",
        "Extract a policy for each task from a model of many tasks, each in a separate process.",
    ),
    "record": Lazy(
        "sb3_pwm.cli.record",
        "Record a saved model: a video of its episodes, or of what its world model imagines beside them.",
    ),
    "report": Lazy(
        "sb3_pwm.benchmark.report",
        "Show what a benchmark found: one self-contained web page, figures as PNG and SVG, tables for papers.",
    ),
    "suite": Lazy(
        "sb3_pwm.cli.suite",
        "From a suite of tasks to a policy for each, in five stages: collect, train, extract, baselines, evaluate.",
    ),
}


def main() -> int:
    """Run the command line of this process and return the exit code."""
    return run_command_line(COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
