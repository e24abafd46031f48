import ast
from pathlib import Path

import pytest

import sb3_pwm

PACKAGE = Path(sb3_pwm.__file__).parent
# From the bottom to the top; a module may import from the lines above its own here, that is, only downwards.
LEVELS = (
    {
        "subcommands",
        "type_aliases",
        "returns",
        "two_hot",
        "precision",
        "compilation",
        "sequences",
        "calibration",
        "parallel",
        "generators",
        "streams",
        "predictability",
    },
    {"layers", "checks", "multitask", "device_copy"},
    {"world_model", "networks", "normalization", "tasks", "buffer_checks"},
    {"imagination", "losses", "updates", "buffers", "task_envs", "decoder", "observation_features"},
    {"policies", "diagnostics"},
    {"learner", "sequence_algorithm", "multitask_policies", "checkpoints"},
    {"learning_rates"},
    {"scales"},
    {"evaluation"},
    {"offline_algorithm"},
    {"multitask_algorithm"},
    {"pwm"},
    {"presets", "video", "datasets", "callbacks", "suites"},
    {"benchmark"},
    {"extraction", "record"},
    {"cli"},
    {"__init__"},
)
PURE = {
    "type_aliases",
    "streams",
    "predictability",
    "returns",
    "two_hot",
    "precision",
    "compilation",
    "layers",
    "sequences",
    "multitask",
    "parallel",
    "device_copy",
    "world_model",
    "networks",
    "normalization",
    "imagination",
    "losses",
    "updates",
    "diagnostics",
    "decoder",
}
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
every_file = pytest.mark.parametrize("file", sorted(TREES))


def unit_of(file):
    return file.removesuffix(".py").split("/")[0]


def imports_of(tree):
    """Dotted names, also of imports inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports_of(tree):
    """Units of this package; a name of the package itself comes from its ``__init__``."""
    for name in imports_of(tree):
        root, *rest = name.split(".")
        if root == "sb3_pwm":
            units = {unit_of(file) for file in TREES}
            yield rest[0] if rest and rest[0] in units else "__init__"


@every_file
def test_imports_point_downwards(file):
    unit = unit_of(file)
    assert unit in LEVEL_OF, f"give {unit} a level in LEVELS"
    for imported in own_imports_of(TREES[file]):
        within_subpackage = imported == unit and "/" in file
        assert within_subpackage or LEVEL_OF[imported] < LEVEL_OF[unit], f"{file} imports {imported}"


def test_every_level_names_existing_modules():
    assert set(LEVEL_OF) <= {unit_of(file) for file in TREES}


@pytest.mark.parametrize("unit", sorted(PURE))
def test_pure_modules_know_neither_sb3_nor_gymnasium(unit):
    tree = TREES[f"{unit}.py"]
    assert not {name.split(".")[0] for name in imports_of(tree)} & {"stable_baselines3", "gymnasium", "gym"}
    assert set(own_imports_of(tree)) <= PURE


def test_all_is_what_the_package_imports():
    tree = TREES["__init__.py"]
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(sb3_pwm.__all__) == imported | {"__version__"}
    assert len(set(sb3_pwm.__all__)) == len(sb3_pwm.__all__)
    namespace = {}
    exec("from sb3_pwm import *", namespace)
    assert set(sb3_pwm.__all__) <= set(namespace)


def definitions_of(tree):
    """Public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from definitions_of(node)


@every_file
def test_public_names_are_documented(file):
    assert ast.get_docstring(TREES[file])
    undocumented = [node.name for node in definitions_of(TREES[file]) if not ast.get_docstring(node)]
    assert not undocumented


@every_file
def test_functions_are_annotated(file):
    missing = []
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            missing += [f"{node.name}({name})" for name in untyped]
            missing += [f"{node.name}() ->"] if node.returns is None else []
    assert not missing


def test_the_type_annotations_are_shipped():
    assert (PACKAGE / "py.typed").exists()
