"""``python -m sb3_pwm.benchmark`` is ``sb3-pwm benchmark``."""

import sys

from sb3_pwm.cli import benchmark as command
from sb3_pwm.cli.subcommands import run_command_line

if __name__ == "__main__":
    sys.exit(run_command_line({"benchmark": command}, ["benchmark", *sys.argv[1:]]))
