import functools
import os
import re
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3, HerReplayBuffer
from torch import nn

from sb3_pwm import PWM
from sb3_pwm.benchmark.engines import RayEngine, import_paths
from sb3_pwm.benchmark.plan import check_env, find_algorithm, make_plan, registered_id
from sb3_pwm.benchmark.segments import check_models, make_model
from sb3_pwm.benchmark.settings import find_hyperparameters, interpret, parse_expression, parse_schedule, read_entry
from sb3_pwm.benchmark.specs import ALGORITHMS, RunSpec
from sb3_pwm.cli.benchmark import own_files

yaml = pytest.importorskip("yaml")

MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")
PLAN: dict[str, Any] = {
    "steps": 10,
    "eval_every": 10,
    "eval_episodes": 1,
    "checkpoint_every": 10,
    "threads": 1,
    "device": "cpu",
    "hyperparameters": {},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(net_arch=[64, 64], log_std_init=-3.67)", {"net_arch": [64, 64], "log_std_init": -3.67}),
        ("dict(net_arch=dict(pi=[1], qf=(2, 3)), x=None)", {"net_arch": {"pi": [1], "qf": (2, 3)}, "x": None}),
        ("dict(activation_fn=nn.ReLU)", {"activation_fn": nn.ReLU}),
        (" {'norm_obs': True, 'act': th.nn.Tanh}", {"norm_obs": True, "act": nn.Tanh}),
        ("dict()", {}),
        ("HerReplayBuffer", HerReplayBuffer),
    ],
)
def test_expressions_are_read(text: str, value: dict[str, Any]) -> None:
    assert parse_expression(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "dict(a=open('x'))",
        "dict(**{'a': 1})",
        "{**{'a': 1}}",
        "dict([(1, 2)])",
        "[x for x in (1, 2)]",
        "nn.functional",
        "nn.Module.__subclasses__",
        "os.environ",
        "ReplayBuffer",
        "2 ** 9",
        "dict(",
    ],
)
def test_expressions_are_never_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_expression(text)


def test_schedules() -> None:
    assert parse_schedule(3e-4) == 3e-4
    assert parse_schedule("3e-4") == 3e-4
    schedule = parse_schedule("lin_3e-4")
    assert [schedule(progress) for progress in (1, 0.5, 0)] == pytest.approx([3e-4, 1.5e-4, 0])
    for text in ("cos_3e-4", "lin_x", "lin_"):
        with pytest.raises(ValueError, match="is not a schedule"):
            parse_schedule(text)


def test_an_entry_becomes_arguments() -> None:
    settings = interpret(
        {
            "n_timesteps": 1e6,
            "policy": "MlpPolicy",
            "n_envs": 4,
            "normalize": "{'norm_obs': True, 'norm_reward': False}",
            "gamma": 0.9,
            "learning_rate": "lin_1e-3",
            "policy_kwargs": "dict(net_arch=[8])",
        },
        PPO,
    )
    assert settings.policy == "MlpPolicy"
    assert settings.n_envs == 4
    assert settings.normalize == {"gamma": 0.9, "norm_obs": True, "norm_reward": False}
    assert settings.noise is None
    assert settings.arguments.pop("learning_rate")(0.5) == pytest.approx(5e-4)
    assert settings.arguments == {"gamma": 0.9, "policy_kwargs": {"net_arch": [8]}}


def test_pwms_own_rates_have_schedules_too() -> None:
    entry = {"critic_learning_rate": "lin_1e-3", "model_learning_rate": "3e-4", "learning_rate": None}
    rates = interpret(entry, PWM).arguments
    assert rates.pop("critic_learning_rate")(0.25) == pytest.approx(2.5e-4)
    assert rates == {"model_learning_rate": 3e-4, "learning_rate": None}


class Handing(SAC):
    """Hands on whatever it gets."""

    def __init__(self, *args: Any, mine: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mine = mine


def test_arguments_that_a_subclass_hands_on() -> None:
    assert interpret({"gamma": 0.9, "mine": 3}, Handing).arguments == {"gamma": 0.9, "mine": 3}
    with pytest.raises(ValueError, match="Handing's batch_size must be int"):
        interpret({"batch_size": 2.5}, Handing)
    with pytest.raises(ValueError, match=r"no hyperparameters \['args'\]"):
        interpret({"args": 1}, Handing)


def test_what_sb3_annotates_is_checked() -> None:
    entry = {"batch_size": 64, "tau": 1, "use_sde": False, "gradient_steps": -1, "ent_coef": "auto"}
    assert interpret(entry, SAC).arguments == entry


def test_noise_and_training_frequency() -> None:
    settings = interpret({"noise_type": "normal", "noise_std": 0.2, "train_freq": [1, "episode"]}, TD3)
    assert settings.arguments == {"train_freq": (1, "episode")}
    noise = settings.action_noise(spaces.Box(-1, 1, (3,)))
    assert np.array_equal(noise._sigma, 0.2 * np.ones(3))


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"bach_size": 8}, r"SAC has no hyperparameters \['bach_size'\]"),
        ({"env_wrapper": "mywrapper"}, "env_wrapper"),
        ({"seed": 3}, "seed"),
        ({"n_envs": 0}, "n_envs=0"),
        ({"normalize": "yes please"}, "cannot read"),
        ({"noise_type": "pink"}, "noise_type='pink'"),
        ({"learning_rate": "cos_1e-3"}, "learning_rate: 'cos_1e-3' is not a schedule"),
        ({"batch_size": 64.5}, "SAC's batch_size must be int, not 64.5"),
        ({"batch_size": True}, "SAC's batch_size must be int, not True"),
        ({"replay_buffer_class": "Her"}, "cannot read 'Her'"),
        ({"use_sde": 1}, "SAC's use_sde must be bool, not 1"),
        ({"gamma": None}, "SAC's gamma must be float, not None"),
        ({"tau": "5e-3"}, "SAC's tau must be float, not '5e-3'; YAML reads 5e-3 as text and 5.0e-3 as a number"),
    ],
)
def test_bad_entries_are_refused(entry: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        interpret(entry, SAC)


def test_the_newest_version_of_an_environment_serves_another() -> None:
    text = "default: {gamma: 0}\nHopper-v3: {gamma: 3}\nHopper-v10: {gamma: 10}\nHopper-v4x: {gamma: 5}"
    assert read_entry(text, "Hopper-v3") == ("Hopper-v3", {"gamma": 3})
    assert read_entry(text, "Hopper-v5") == ("Hopper-v10", {"gamma": 10})
    assert read_entry(text, "Ant-v5") == ("default", {"gamma": 0})
    assert read_entry(text, "mine:Hopper-v3", "Hopper-v3") == ("Hopper-v3", {"gamma": 3})
    assert read_entry(text, "Hopper", "Hopper-v5") == ("Hopper-v10", {"gamma": 10})
    assert read_entry(text, "hop", "hop") == ("default", {"gamma": 0})
    assert read_entry("Hopper-v3: {gamma: 3}", "Ant-v5") is None
    with pytest.raises(ValueError, match="must map"):
        read_entry("- 3", "Ant-v5")


@pytest.mark.parametrize("algo", sorted(set(ALGORITHMS) - {"pwm"}))
def test_shipped_hyperparameters_fit_their_algorithms(algo: str) -> None:
    if ":" in ALGORITHMS[algo] and "contrib" in ALGORITHMS[algo]:
        pytest.importorskip("sb3_contrib")
    text = (resources.files("sb3_pwm.benchmark") / "hyperparameters" / f"{algo}.yml").read_text(encoding="utf-8")
    for env, entry in yaml.safe_load(text).items():
        source, values = find_hyperparameters(algo, env)
        assert (source, values) == (f"RL Baselines3 Zoo, {algo}.yml: {env}", entry)
        interpret(values, find_algorithm(algo))
    for env in (*MUJOCO, "Pendulum-v1") if algo != "dqn" else ():
        source, _ = find_hyperparameters(algo, env)
        assert source == f"RL Baselines3 Zoo, {algo}.yml: {env.replace('-v5', '-v4')}"
    assert find_hyperparameters(algo, "dm_control/cheetah-run-v0")[0] == f"RL Baselines3 Zoo, {algo}.yml: default"


def test_what_the_zoo_says() -> None:
    """Spot checks against the Zoo's own files."""
    assert find_hyperparameters("sac", "HalfCheetah-v5")[1]["learning_starts"] == 10_000
    assert find_hyperparameters("td3", "Ant-v5")[1]["policy_kwargs"] == "dict(net_arch=[400, 300])"
    assert find_hyperparameters("tqc", "Hopper-v5")[1]["top_quantiles_to_drop_per_net"] == 5
    assert find_hyperparameters("crossq", "Walker2d-v5")[1]["policy_delay"] == 3
    assert find_hyperparameters("ppo", "Hopper-v5")[1]["learning_rate"] == 9.80828e-05
    assert find_hyperparameters("sac", "MountainCarContinuous-v0")[1]["gamma"] == 0.9999
    assert find_hyperparameters("dqn", "LunarLander-v3")[1]["exploration_fraction"] == 0.12


def test_pwm_and_own_algorithms_have_their_own_defaults() -> None:
    assert find_hyperparameters("pwm", "Hopper-v5") == ("constructor's defaults", {})
    assert find_hyperparameters("compare_toys:MySAC", "Hopper-v5") == ("constructor's defaults", {})


def test_algorithms_by_short_name_and_import_path() -> None:
    assert find_algorithm("pwm") is PWM
    assert issubclass(find_algorithm("compare_toys:MySAC"), SAC)
    with pytest.raises(ValueError, match="unknown algorithm 'sacc'; did you mean sac"):
        find_algorithm("sacc")
    with pytest.raises(ValueError, match="cannot import algorithm 'no_such_package:Thing'"):
        find_algorithm("no_such_package:Thing")
    with pytest.raises(ValueError, match="cannot import algorithm 'compare_toys:MySCA'"):
        find_algorithm("compare_toys:MySCA")
    with pytest.raises(TypeError, match="must be a class derived from SB3's BaseAlgorithm"):
        find_algorithm("compare_toys:Failing")


def test_unknown_environments_get_the_nearest_names() -> None:
    check_env("compare_toys:Global-v0")
    with pytest.raises(ValueError, match="unknown environment 'Pendlum-v1'; did you mean Pendulum-v1"):
        check_env("Pendlum-v1")
    with pytest.raises(ValueError, match="one of your own is mymodule:Tank-v0"):
        check_env("Tank-v0")
    with pytest.raises(ValueError, match="cannot make environment 'Pendulum-v77'"):
        check_env("Pendulum-v77")
    with pytest.raises(ValueError, match="cannot make environment 'no_such_module:X-v0'"):
        check_env("no_such_module:X-v0")
    with pytest.raises(ValueError, match="did you mean compare_toys:toys/Global-v0 or"):
        check_env("compare_toys:toys/Globa-v0")


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [("Pendulum-v1", "Pendulum-v1"), ("Pendulum", "Pendulum-v1"), ("gymnasium:HalfCheetah", "HalfCheetah-v5")],
)
def test_ids_without_a_version_or_with_a_module(env_id: str, expected: str) -> None:
    assert registered_id(env_id) == expected


@pytest.mark.parametrize("env_id", ["HalfCheetah", "gymnasium:HalfCheetah-v5", "HalfCheetah-v5"])
def test_an_environment_has_its_settings_whatever_it_is_called(env_id: str) -> None:
    (spec,) = make_plan([env_id], ["td3"], [0], **PLAN)
    assert spec.source == "RL Baselines3 Zoo, td3.yml: HalfCheetah-v4"
    assert spec.hyperparameters["learning_starts"] == 10_000


def test_required_arguments_of_an_environment(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("compare_toys:Sized-v0: {env_kwargs: {size: 3}}\nPendulum-v1: {}")
    plan = functools.partial(make_plan, ["compare_toys:Sized-v0"], seeds=[0])
    (spec,) = plan(["sac"], **PLAN | {"hyperparameters": {"sac": file}})
    assert make_model(spec).observation_space.shape == (3,)
    with pytest.raises(ValueError, match=r"pwm in .*: cannot make environment 'compare_toys:Sized-v0'.*'size'"):
        plan(["pwm"], **PLAN)


def test_environments_of_one_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="would have the same folder"):
        make_plan(["compare_toys:toys/Global-v0", "compare_toys:toys-Global-v0"], ["sac"], [0], **PLAN)


@pytest.mark.parametrize(("entry", "gamma"), [({}, 0.99), ({"gamma": 0.9}, 0.9)])
def test_normalisation_has_the_algorithms_discount(entry: dict[str, Any], gamma: float) -> None:
    assert interpret({"normalize": True} | entry, PWM).normalize == {"gamma": gamma}
    assert interpret({"normalize": "{'gamma': 0.5}"} | entry, PWM).normalize == {"gamma": 0.5}


@pytest.mark.parametrize(("steps", "batch_size", "size"), [(50, 64, 64), (200, 64, 200), (20_000, 10_240, 20_000)])
def test_the_replay_buffer_holds_the_run_and_a_batch(steps: int, batch_size: int, size: int) -> None:
    plan: dict[str, Any] = PLAN | {"steps": steps, "hyperparameters": {}}
    (spec,) = make_plan(["Pendulum-v1"], ["pwm"], [0], **plan)
    spec = replace(spec, hyperparameters={"batch_size": batch_size})
    check_models([spec])
    model: Any = make_model(spec)
    assert model.buffer_size == size


def test_workers_find_what_this_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = os.path.join(sys.prefix, "src")  # of a virtual environment that lies in the project's root
    monkeypatch.setattr(os.path, "exists", lambda path, exists=os.path.exists: path == inside or exists(path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), inside, str(tmp_path / "none"), *sys.path])
    paths = import_paths()
    assert paths[:2] == [str(tmp_path), inside]
    assert not [path for path in paths if path == os.path.dirname(os.__file__) or "site-packages" in path]


def test_a_plan_is_every_combination() -> None:
    plan = make_plan(["Pendulum-v1"], ["pwm", "sac"], [0, 2, 0], **PLAN)
    assert [(spec.algo, spec.seed) for spec in plan] == [("pwm", 0), ("sac", 0), ("pwm", 2), ("sac", 2)]
    assert RunSpec(**plan[1].to_dict()) == plan[1]
    assert plan[1].folder(Path("results")) == Path("results/Pendulum-v1/sac/0")


def test_settings_of_one_algorithm_have_labels(tmp_path: Path) -> None:
    wide, base = tmp_path / "wide.yml", tmp_path / "base.yml"
    wide.write_text("default: {policy_kwargs: {latent_dim: 64}}")
    base.write_text("default: {gamma: 0.9}")

    def runs(*algos: Any, **files: Any) -> list[tuple[str, str, str, str]]:
        plan = make_plan(["Pendulum-v1"], algos, [0], **PLAN | {"hyperparameters": files})
        return [(spec.name, spec.algo, spec.source, str(spec.folder(Path()))) for spec in plan]

    assert runs("pwm", "wide=pwm", "mine=compare_toys:MySAC", "plain=sac", wide=wide) == [
        ("pwm", "pwm", "constructor's defaults", "Pendulum-v1/pwm/0"),
        ("wide", "pwm", "wide.yml: default", "Pendulum-v1/wide/0"),
        ("mine", "compare_toys:MySAC", "constructor's defaults", "Pendulum-v1/mine/0"),
        ("plain", "sac", "RL Baselines3 Zoo, sac.yml: Pendulum-v1", "Pendulum-v1/plain/0"),
    ]
    # a label without a file of its own has its algorithm's
    assert [source for *_, source, _ in runs("a=pwm", "wide=pwm", pwm=base, wide=wide)] == [
        "base.yml: default",
        "wide.yml: default",
    ]
    assert own_files([str(wide)], ["wide=pwm"]) == {"wide": wide}
    (spec,) = make_plan(["Pendulum-v1"], ["wide=pwm"], [0], **PLAN)
    assert RunSpec(**spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("algos", "error"),
    [
        (["a/b=pwm"], "'a/b' is not a label"),
        (["..=pwm"], "'..' is not a label"),
        (["=pwm"], "'' is not a label"),
        (["a b=pwm"], "'a b' is not a label"),
        (["_a=pwm"], "'_a' is not a label"),
        (["a=b=pwm"], "'a=b' is not a label"),
        (["wide=pmw"], "unknown algorithm 'pmw'; did you mean pwm"),
        (["_mine:MySAC"], "begins with an underscore: give it a label, such as mine=_mine:MySAC"),
        (["sac=pwm"], "'sac' is an algorithm's name and cannot be a label of pwm"),
        (["a=pwm", "a=sac"], "'a' is the label of pwm and of sac"),
        (["compare_toys:MySAC", "compare_toys-MySAC=sac"], "would have the same folder"),
    ],
)
def test_bad_labels_are_refused(algos: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        make_plan(["Pendulum-v1"], algos, [0], **PLAN)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"steps": 0}, "steps=0 is out of range"),
        ({"eval_every": -1}, "eval_every=-1"),
        ({"eval_episodes": 0}, "eval_episodes=0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"threads": 0}, "threads=0"),
        ({"hyperparameters": {"td3": Path("x.yml")}}, r"\['td3'\], which do not run"),
    ],
)
def test_bad_plans_are_refused(change: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        make_plan(["Pendulum-v1"], ["sac"], [0], **PLAN | change)
    with pytest.raises(ValueError, match="seed=-1"):
        make_plan(["Pendulum-v1"], ["sac"], [-1], **PLAN)


def test_own_hyperparameters(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("Pendulum-v1:\n  batch_size: 32\n")
    assert own_files([str(file)], ["sac"]) == own_files([f"sac={file}"], ["sac", "pwm"]) == {"sac": file}
    (spec,) = make_plan(["Pendulum-v1"], ["sac"], [0], **PLAN | {"hyperparameters": {"sac": file}})
    assert (spec.source, spec.hyperparameters) == ("mine.yml: Pendulum-v1", {"batch_size": 32})
    with pytest.raises(ValueError, match="for which of"):
        own_files([str(file)], ["sac", "pwm"])
    odd = tmp_path / "lr=3" / "mine.yml"
    odd.parent.mkdir()
    odd.write_text(file.read_text())
    assert own_files([str(odd)], ["sac"]) == own_files([f"sac={odd}"], ["sac"]) == {"sac": odd}
    with pytest.raises(ValueError, match="there is no file"):
        own_files(["sac=nowhere.yml"], ["sac"])
    with pytest.raises(ValueError, match="has no entry for Hopper-v5"):
        find_hyperparameters("sac", "Hopper-v5", file=file)
    file.write_text("a: [")
    with pytest.raises(ValueError, match=r"mine\.yml: is not YAML"):
        find_hyperparameters("sac", "Hopper-v5", file=file)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"pip install .*'\.\[benchmark\]'"):
        find_hyperparameters("sac", "Hopper-v5")
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"tqc needs sb3_contrib; in a checkout: pip .* '\.\[benchmark\]'"):
        find_algorithm("tqc")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install .*'\.\[ray\]'"):
        RayEngine()


def test_folders_of_one_environment_have_names_of_one_part() -> None:
    spec = make_plan(["compare_toys:toys/Global-v0"], ["compare_toys:MySAC"], [1], **PLAN)[0]
    assert spec.folder(Path()) == Path("compare_toys-toys-Global-v0/compare_toys-MySAC/1")
