"""What is shipped and documented is true: metadata, version pins, and the Python blocks of README and first pages."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata, resources
from itertools import chain
from pathlib import Path

import pytest

import sb3_pwm
from sb3_pwm import PWM
from sb3_pwm.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/quickstart.md", "docs/sb3-users.md", "docs/hyperparameters.md", "docs/how-it-works.md")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


BLOCKS = {block: f"{page}-{i}" for page in PAGES for i, block in enumerate(python_blocks(page))} | {
    block: f"docs/offline.md-{i}" for i, block in enumerate(python_blocks("docs/offline.md")) if i in (1, 2)
}  # the first one needs a file
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str = "constraints.txt") -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {normalize(name): version for name, version in pins.items()}


def names_of(requirements: Iterable[str]) -> set[str]:
    return {normalize(re.split(r"[<>=!~\[ ]", requirement)[0]) for requirement in requirements}


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_version_and_marker_of_types() -> None:
    assert metadata.version("sb3-pwm") == sb3_pwm.__version__
    assert (resources.files("sb3_pwm") / "py.typed").is_file()
    for name in [*PROJECT["license-files"], PROJECT["readme"]]:
        assert (ROOT / name).stat().st_size > 0


def test_every_direct_dependency_is_pinned() -> None:
    extras = dict(PROJECT["optional-dependencies"])
    multitask = names_of(PROJECT["dependencies"] + extras.pop("multitask"))
    assert names_of(chain(PROJECT["dependencies"], *extras.values())) <= set(pinned())
    assert multitask <= set(pinned("constraints-multitask.txt"))


def test_the_two_environments_differ_in_mujoco_only() -> None:
    main, multitask = pinned(), pinned("constraints-multitask.txt")
    assert {name for name in main.keys() & multitask.keys() if main[name] != multitask[name]} == {"mujoco"}


def test_myosuites_environment_differs_in_what_myosuite_needs_only() -> None:
    main, myosuite = pinned(), pinned("examples/requirements-myosuite.txt")
    extras = PROJECT["optional-dependencies"]
    assert names_of(PROJECT["dependencies"] + extras["benchmark"] + extras["plot"]) <= set(myosuite)
    different = {name for name, version in myosuite.items() if main.get(name) != version}
    assert different == {"gymnasium", "myosuite", "rich"}


def test_public_names_exist() -> None:
    assert all(hasattr(sb3_pwm, name) for name in sb3_pwm.__all__)


def test_import_needs_no_display_and_no_mujoco() -> None:
    code = "import sys, sb3_pwm; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


HELP = "import sys; from sb3_pwm.cli.main import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"


def help_of(*arguments: str) -> str:
    """Return what a command prints as its help, made without torch."""
    command = [sys.executable, "-c", HELP, *arguments, "--help"]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}
    ).stdout


@pytest.mark.parametrize("command", ["benchmark", "report"])
def test_the_help_says_defaults_and_an_example(command: str) -> None:
    text = help_of(command)
    assert f"    sb3-pwm {command} " in text
    options = re.split(r"^  (?=--)", text.partition("options:")[2], flags=re.M)[1:]
    assert len(options) > 5
    assert [option for option in options if "(default:" not in option and "(required)" not in option] == []


def test_the_commands_help_needs_no_torch() -> None:
    printed = help_of()
    for name, (module, text) in COMMANDS.items():
        assert name in printed
        assert (importlib.import_module(module).__doc__ or "").partition("\n\n")[0] == text


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_their_examples(page: str) -> None:
    assert python_blocks(page)


def shrink(block: str) -> str:
    """Replace numbers of steps by small ones; everything else runs as printed."""
    block = re.sub(r"learn_offline\([\d_]+", "learn_offline(20", block)
    block = re.sub(r"(from_dataset\((?:dataset|from_replay_buffer\([^)]*\)))", r"\1, pretrain_steps=20", block)
    block = re.sub(r"(learn\(|total_timesteps=)[\d_]+", r"\g<1>150", block)
    block = block.replace("n_envs=64", "n_envs=2")
    return re.sub(r"n_eval_episodes=\d+", "n_eval_episodes=1", block)


@pytest.mark.usefixtures("quick_defaults")
@pytest.mark.filterwarnings("ignore:nothing was learnt")  # in so few steps
@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    names: dict[str, object] = {}
    try:
        exec(compile(shrink(block), "block", "exec"), names)
    except RuntimeError as error:
        if "cannot render" not in str(error):
            raise
        pytest.skip(str(error))
    assert isinstance(names["model"], PWM)


def test_every_argument_is_documented_in_the_order_of_the_signature() -> None:
    documented = re.findall(r"^ *:param (\w+):", PWM.__doc__ or "", re.M)
    assert documented == list(inspect.signature(PWM).parameters)
