"""A command line of subcommands, each a module of the same form."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast


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


class Lazy(NamedTuple):
    """A subcommand that is imported only when it is called, so that ``--help`` needs not wait for torch."""

    module: str
    help: str
    """The first paragraph of the module's docstring."""


def run_command_line(commands: Mapping[str, Command | Lazy], arguments: Sequence[str] | None = None) -> int:
    """Run one of the subcommands of ``sb3-pwm``; bad input ends the process with exit code 2, as argparse does.

    :param commands: subcommands by name.
    :param arguments: name of a subcommand and its arguments; None for the process's own.
    :return: exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="sb3-pwm")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, given in commands.items():
        if isinstance(given, Lazy) and arguments[:1] != [name]:
            subparsers.add_parser(name, help=given.help)
            continue
        command = cast(Command, importlib.import_module(given.module)) if isinstance(given, Lazy) else given
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
