"""Write the policy of a saved model as ONNX, TorchScript or page, with normalisation and action scaling inside.

With ``--format web`` the output is a folder: a page on which the policy moves its robot, simulated by MuJoCo in the
browser, and the robot can be pushed. It needs two packages of npm, and then no network:

    npm install --no-save @mujoco/mujoco@3.14.0 onnxruntime-web@1.30.0
    sb3-pwm export model.zip --format web --env HalfCheetah-v5 --out page
    python -m http.server --directory page
"""

import argparse
import pathlib

from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm import offline
from sb3_pwm.files.export import SUFFIXES, export_policy
from sb3_pwm.files.models import load_normalizer
from sb3_pwm.pwm import PWM
from sb3_pwm.video import policy_page

WEB = "web"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL.zip", help="file that model.save() wrote")
    parser.add_argument("--format", choices=[*SUFFIXES, WEB], default="onnx", help="(default: onnx)")
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="PATH", help="file, or folder of the page (default: the model's name)"
    )
    parser.add_argument("--stochastic", action="store_true", help="draw actions, from an input that is noise")
    parser.add_argument(
        "--vec-normalize",
        type=pathlib.Path,
        metavar="FILE",
        help="statistics that VecNormalize.save() wrote; a pickle runs code: only files that you trust",
    )
    parser.add_argument("--env", metavar="ID", help="for a page: id of a Gymnasium environment, or mymodule:ID")
    parser.add_argument(
        "--packages",
        type=pathlib.Path,
        default="node_modules",
        metavar="FOLDER",
        help="for a page: where npm has installed its packages (default: node_modules)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print the file and its inputs, or the page.

    :param args: as :func:`add_arguments` parses them.
    :return: exit code.
    :raises ValueError: if a file holds something else, or options do not fit the format.
    :raises OSError: if a file cannot be read or written.
    """
    is_page = args.format == WEB
    if is_page != (args.env is not None):
        raise ValueError("--format web needs --env, the environment of the page; the other formats take none")
    if is_page and args.stochastic:
        raise ValueError("the policy of a page acts deterministically; leave out --stochastic")
    file = args.model if args.model.is_file() else pathlib.Path(f"{args.model}.zip")
    out = args.out or file.with_suffix("" if is_page else SUFFIXES[args.format])
    if file.exists() and out.exists() and out.samefile(file):
        raise ValueError(f"{out} is the model, which would be lost; name another file with --out")
    model = PWM.load(args.model, device="cpu")
    normalizer: VecNormalize | None = None
    if args.vec_normalize:
        spaces = offline.spaces_only(model.observation_space, model.action_space, 1)
        normalizer = load_normalizer(args.vec_normalize, spaces, "this model")
    if is_page:
        print(policy_page(model, args.env, out, packages=args.packages, normalizer=normalizer))
        return 0
    names = export_policy(model, out, format=args.format, deterministic=not args.stochastic, normalizer=normalizer)
    print(f"{out}: {', '.join(names)} -> action")
    return 0
