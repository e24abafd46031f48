"""Write the policy of a saved model as ONNX or TorchScript, with normalisation and action scaling inside."""

import argparse
import pathlib

from sb3_pwm import offline
from sb3_pwm.files.export import SUFFIXES, export_policy
from sb3_pwm.files.models import load_normalizer
from sb3_pwm.pwm import PWM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL.zip", help="file that model.save() wrote")
    parser.add_argument("--format", choices=list(SUFFIXES), default="onnx", help="(default: onnx)")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="(default: the model's name with its suffix)")
    parser.add_argument("--stochastic", action="store_true", help="draw actions, from an input that is noise")
    parser.add_argument(
        "--vec-normalize",
        type=pathlib.Path,
        metavar="FILE",
        help="statistics that VecNormalize.save() wrote; a pickle runs code: only files that you trust",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print the file and its inputs.

    :param args: as :func:`add_arguments` parses them.
    :return: exit code.
    :raises ValueError: if a file holds something else.
    :raises OSError: if a file cannot be read or written.
    """
    out = args.out or args.model.with_suffix(SUFFIXES[args.format])
    model = PWM.load(args.model, device="cpu")
    normalizer = None
    if args.vec_normalize:
        spaces = offline.spaces_only(model.observation_space, model.action_space, 1)
        normalizer = load_normalizer(args.vec_normalize, spaces, "this model")
    names = export_policy(model, out, format=args.format, deterministic=not args.stochastic, normalizer=normalizer)
    print(f"{out}: {', '.join(names)} -> action")
    return 0
