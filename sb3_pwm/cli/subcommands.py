"""A command line of subcommands, each a module of the same form."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol


class Command(Protocol):
    """A module that is a subcommand; the first paragraph of its docstring is its help."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Carry out the command; ``options.arguments`` are the arguments as they were given.

        :return: exit code.
        :raises ValueError, TypeError, ImportError, OSError: if what was asked for is not possible.
        """
        ...


def run_command_line(commands: Mapping[str, Command], arguments: Sequence[str] | None = None) -> int:
    """Run one of the subcommands of ``sb3-pwm``; bad input ends the process with exit code 2, as argparse does.

    :param commands: subcommands by name.
    :param arguments: name of a subcommand and its arguments; None for the process's own.
    :return: exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="sb3-pwm")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.items():
        text = str(command.__doc__)
        subparser = subparsers.add_parser(
            name,
            help=text.partition("\n\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command, subparser=subparser)
    options = parser.parse_args(arguments)
    options.arguments = arguments[1:]
    sys.path.insert(0, os.getcwd())  # for environments, algorithms and networks by import path, as with python -m
    try:
        return int(options.command.run(options))
    except (ValueError, TypeError, ImportError, OSError) as error:
        options.subparser.exit(2, f"{options.subparser.prog}: error: {error}\n")
        raise
