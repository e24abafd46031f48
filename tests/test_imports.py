import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sb3_pwm
from sb3_pwm.multitask.policies import ExtractedPolicy, MultiTaskPolicy

PACKAGE = Path(sb3_pwm.__file__).parent
# From the bottom to the top; a unit (a room's module, or a whole room at the top) may import from the lines above its
# own here, that is, only downwards.
LEVELS = (
    {
        "extras",
        "type_aliases",
        "returns",
        "nn/two_hot",
        "nn/scales",
        "nn/growth",
        "compute/distributed",
        "compute/hardware",
    },
    {"files/atomic"},
    {"files/archives"},
    {"files/tensors"},
    {"compute/metrics", "compute/optimizers", "compute/precision", "compute/random_state", "compute/streams"},
    {"compute/live"},
    {"compute/progress"},
    {"observations", "nn/action_codes", "nn/predictability", "nn/rescaling"},
    {"compute/compilation", "nn/layers", "nn/task_context", "replay/windows", "replay/watched_env", "cli/subcommands"},
    {"checks", "replay/device_copy", "world_model", "networks", "diagnostics/start_values"},
    {
        "actions",
        "imagination",
        "losses",
        "sac_names",
        "nn/observation_features",
        "multitask/tasks",
        "replay/checks",
        "replay/ownership",
        "video/decoder",
        "simulator/mujoco_state",
        "simulator/terminations",
    },
    {"simulator/steps"},
    {"simulator/dynamics"},
    {"benchmark", "planning/mppi"},
    {"buffers", "policies", "multitask/envs", "diagnostics/open_loop"},
    {"replay/columns", "replay/her", "simulator/policy", "multitask/policies", "files/replay_buffers"},
    {"files/plain"},
    {"files/models"},
    {"learner", "sequence_algorithm", "diagnostics/evaluation", "diagnostics/fitted_q", "replay/statistics"},
    {"multitask/data"},
    {"multitask_policies", "multitask/extraction", "multitask/growth", "offline", "published"},
    {"files/world_models", "multitask/adding"},
    {"pwm"},
    {"files/export", "planning/planner", "simulator/algorithms"},
    {"presets", "rl_zoo", "video", "datasets", "callbacks", "suites"},
    {"speed", "suites/stages"},
    {"cli/benchmark", "cli/export", "cli/extract", "cli/record", "cli/suite"},
    {"cli/main", "benchmark/__main__"},
    {"__init__"},
)
PURE_FILES = {
    "type_aliases",
    "observations",
    "returns",
    "imagination",
    "losses",
    "planning/mppi",
    "world_model",
    "networks",
    "video/decoder",
}
PURE_FILES |= {"replay/windows", "replay/device_copy", "diagnostics/open_loop", "diagnostics/start_values"}
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
every_file = pytest.mark.parametrize("file", sorted(TREES))


def unit_of(file: str) -> str:
    """The unit that a file belongs to: a module of a room whose modules have levels, else the room or module."""
    path = file.removesuffix(".py")
    return path if path in LEVEL_OF else path.split("/")[0]


PURE = PURE_FILES | {unit for unit in map(unit_of, TREES) if unit.startswith(("nn/", "compute/"))}
PURE -= {"nn/observation_features", "compute/live", "compute/progress"}  # they read spaces, and callbacks


def imports_of(tree: ast.Module) -> Iterator[Any]:
    """Dotted names, also of imports inside functions, but for what only type checkers import."""
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in set(ast.walk(tree)) - {inner for block in typed for inner in ast.walk(block)}:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports_of(tree: ast.Module) -> Iterator[str]:
    """Units of this package; a name of the package itself comes from its ``__init__``."""
    for name in imports_of(tree):
        root, *rest = name.split(".")
        if root == "sb3_pwm":
            path = next(("/".join(rest[:n]) for n in (2, 1) if f"{'/'.join(rest[:n])}.py" in TREES), None)
            yield unit_of(path or (rest[0] if f"{'/'.join(rest[:1])}/__init__.py" in TREES else "__init__"))


@every_file
def test_imports_point_downwards(file: str) -> None:
    unit = unit_of(file)
    if file.endswith("/__init__.py") and unit not in LEVEL_OF:
        assert not set(own_imports_of(TREES[file]))  # of a room
        return
    assert unit in LEVEL_OF, f"give {unit} a level in LEVELS"
    for imported in own_imports_of(TREES[file]):
        within_subpackage = imported == unit and "/" in file and "/" not in unit
        assert within_subpackage or LEVEL_OF[imported] < LEVEL_OF[unit], f"{file} imports {imported}"


def test_every_level_names_existing_modules() -> None:
    assert set(LEVEL_OF) <= {unit_of(file) for file in TREES}


@pytest.mark.parametrize("unit", sorted(PURE))
def test_pure_modules_know_neither_sb3_nor_gymnasium(unit: str) -> None:
    tree = TREES[f"{unit}.py"]
    assert not {name.split(".")[0] for name in imports_of(tree)} & {"stable_baselines3", "gymnasium", "gym"}
    assert set(own_imports_of(tree)) <= PURE


def test_all_is_what_the_package_imports() -> None:
    tree = TREES["__init__.py"]
    typed: Any = next(node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    imported = {alias.name: node.module for node in typed.body for alias in node.names}
    assert set(sb3_pwm.__all__) == imported.keys() | {"__version__"}
    assert imported == sb3_pwm._MODULES
    assert set(sb3_pwm.__all__) <= set(dir(sb3_pwm))
    with pytest.raises(AttributeError, match="no attribute 'SAC'"):
        _ = sb3_pwm.SAC
    assert len(set(sb3_pwm.__all__)) == len(sb3_pwm.__all__)
    namespace: dict[str, Any] = {}
    exec("from sb3_pwm import *", namespace)
    assert set(sb3_pwm.__all__) <= set(namespace)


def definitions_of(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from definitions_of(node)


@every_file
def test_public_names_are_documented(file: str) -> None:
    assert ast.get_docstring(TREES[file])
    undocumented = [node.name for node in definitions_of(TREES[file]) if not ast.get_docstring(node)]
    assert not undocumented


@every_file
def test_functions_are_annotated(file: str) -> None:
    missing = []
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            missing += [f"{node.name}({name})" for name in untyped]
            missing += [f"{node.name}() ->"] if node.returns is None else []
    assert not missing


def test_the_type_annotations_are_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_saved_files_find_their_classes() -> None:
    """Files hold classes by their path: these paths stay."""
    for module, names in {
        "policies": ("PWMPolicy", "CnnPolicy", "MultiInputPolicy"),
        "buffers": ("SequenceReplayBuffer", "DictSequenceReplayBuffer"),
    }.items():
        for name in names:
            assert getattr(importlib.import_module(f"sb3_pwm.{module}"), name).__module__ == f"sb3_pwm.{module}"
    former = importlib.import_module("sb3_pwm.multitask_policies")
    assert (former.MultiTaskPolicy, former.ExtractedPolicy) == (MultiTaskPolicy, ExtractedPolicy)
