"""The command ``sb3-pwm``: its subcommands are registered here."""

import sys

from sb3_pwm.benchmark import report
from sb3_pwm.cli import benchmark, extract, record
from sb3_pwm.cli.subcommands import Command, run_command_line

COMMANDS: dict[str, Command] = {"benchmark": benchmark, "extract": extract, "record": record, "report": report}


def main() -> int:
    """Run the command line of this process and return the exit code."""
    return run_command_line(COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
