"""A policy in the browser: a folder in which MuJoCo and the policy run, and the robot can be pushed."""

import importlib.resources
import json
import pathlib
import shutil
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm.checks import name_of
from sb3_pwm.files.atomic import Path, whole_file, write_text
from sb3_pwm.files.export import export_policy
from sb3_pwm.pwm import PWM
from sb3_pwm.video.rendering import EnvFactory, check_spaces, make_env, use_headless_rendering

TEMPLATE = "interactive.html"
DATA = "{{DATA}}"  # where the template takes it
SCRIPTS = ("interactive.js", "simulation.js")
# npm's packages, and what the page needs of them
PACKAGES = {
    "@mujoco/mujoco": ("mujoco.js", "mujoco.wasm"),
    "onnxruntime-web": ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
}
# Environments whose observations, rewards and ends simulation.js knows, by their module in Gymnasium
MODULES = {
    f"gymnasium.envs.mujoco.{name}_v5": title
    for name, title in (
        ("ant", "Ant-v5"),
        ("half_cheetah", "HalfCheetah-v5"),
        ("hopper", "Hopper-v5"),
        ("swimmer", "Swimmer-v5"),
        ("walker2d", "Walker2d-v5"),
    )
}
NEUTRAL = (OrderEnforcing, PassiveEnvChecker, TimeLimit, Monitor)  # wrappers that change neither end of a step
CLIPPED = ("HopperEnv", "Walker2dEnv")  # whose velocities are observed
VELOCITIES = (-10.0, 10.0)  # within these, as they have it in their code
NORMAL = ("AntEnv", "HalfCheetahEnv")  # whose velocities begin with normal noise; with the others it is uniform
STATE_FROM = 2  # the first entry of a Hopper's state that its bounds are for


def policy_page(
    model: PWM,
    env: EnvFactory,
    folder: Path,
    *,
    packages: Path = "node_modules",
    normalizer: VecNormalize | None = None,
) -> pathlib.Path:
    """Write a page on which a policy moves a robot, simulated by MuJoCo in the browser, that can be pushed.

    The folder needs no network: any static server will do (``python -m http.server``). Observations, actions, rewards
    and ends are those of the environment; MuJoCo's version may be another one, and the page says which.

    :param model: the model; its policy acts deterministically.
    :param env: id, or function that makes the environment: HalfCheetah-v5, Hopper-v5, Walker2d-v5, Ant-v5 or
        Swimmer-v5, with any of their arguments.
    :param folder: where the page is written; it is created, and files of the same names are replaced.
    :param packages: folder in which npm has installed ``@mujoco/mujoco`` and ``onnxruntime-web``.
    :param normalizer: see :func:`sb3_pwm.files.export.export_policy`.
    :return: the page, ``index.html`` in the folder.
    :raises ValueError: if the environment is another one, is wrapped in what changes it, or differs from the model's.
    :raises FileNotFoundError: if npm's packages are not there.
    :raises ImportError: if a package for ONNX is not installed.
    :raises OSError: if a file cannot be written.
    """
    folder, packages = pathlib.Path(folder), pathlib.Path(packages)
    versions = _check_packages(packages)
    use_headless_rendering()
    with closing(make_env(env)) as made:
        task = _task(made)
        check_spaces(model, made)
        xml = _robot(made)
    import mujoco

    task["versions"] = versions | {"python": mujoco.__version__}
    export_policy(model, folder / "policy.onnx", normalizer=normalizer)
    write_text(folder / "robot.xml", xml)
    for name, files in PACKAGES.items():
        for file in files:
            _copy(packages / name / file, folder)
    ours = importlib.resources.files("sb3_pwm.video")
    for script in SCRIPTS:
        write_text(folder / script, ours.joinpath(script).read_text(encoding="utf-8"))
    template = ours.joinpath(TEMPLATE).read_text(encoding="utf-8")
    write_text(folder / "index.html", template.replace(DATA, json.dumps(task, allow_nan=False).replace("</", "<\\/")))
    return folder / "index.html"


def _check_packages(packages: pathlib.Path) -> dict[str, str]:
    """Return the versions of npm's packages, by the last part of their names."""
    versions = {}
    for name, files in PACKAGES.items():
        missing = next((file for file in ("package.json", *files) if not (packages / name / file).is_file()), None)
        if missing is not None:
            raise FileNotFoundError(
                f"there is no {packages / name / missing}: run npm install --no-save {' '.join(PACKAGES)}, and give "
                "the node_modules that it fills with --packages"
            )
        described = json.loads((packages / name / "package.json").read_text(encoding="utf-8"))
        versions[name.split("/")[-1].removesuffix("-web")] = str(described["version"])
    return versions


def _copy(file: pathlib.Path, folder: pathlib.Path) -> None:
    with whole_file(folder / file.name) as part:
        shutil.copyfile(file, part)


def _robot(env: gym.Env[Any, Any]) -> str:
    """Return the MJCF of an environment, if it is one file and has only what the page draws."""
    import mujoco

    base: Any = env.unwrapped
    drawn = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE
    others = set(base.model.geom_type.tolist()) - set(map(int, drawn))
    if others:
        names = ", ".join(mujoco.mjtGeom(kind).name for kind in sorted(others))
        raise ValueError(f"{base.fullpath} has geoms of the kinds {names}; the page draws planes, spheres and capsules")
    xml = pathlib.Path(base.fullpath).read_text(encoding="utf-8")
    if "<include" in xml:
        raise ValueError(f"{base.fullpath} includes other files; the page takes one file only")
    return xml


def _task(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return what simulation.js needs to know of an environment; infinite bounds are None."""
    max_steps: int | None = None
    layer: gym.Env[Any, Any] = env
    while isinstance(layer, gym.Wrapper):
        if not isinstance(layer, NEUTRAL):
            raise ValueError(f"{name_of(env)} is wrapped in {type(layer).__name__}, which the page does not know")
        if isinstance(layer, TimeLimit):
            max_steps = min(layer._max_episode_steps, max_steps or layer._max_episode_steps)
        layer = layer.env
    base: Any = layer
    if type(base).__module__ not in MODULES:
        allowed = ", ".join(MODULES.values())
        raise ValueError(f"the page cannot compute the observations and rewards of {name_of(env)}; allowed: {allowed}")
    body = int(base.model.body(getattr(base, "_main_body", 1)).id)
    is_ant = type(base).__name__ == "AntEnv"
    return {
        "title": name_of(env),
        "maxSteps": max_steps,
        "frameSkip": base.frame_skip,
        "body": body,
        "observation": _observation(base),
        "progress": ["xpos", 3 * body] if is_ant else ["qpos", 0],
        "healthy": _healthy(base),
        "terminates": getattr(base, "_terminate_when_unhealthy", False),
        "weights": {
            "forward": base._forward_reward_weight,
            "control": base._ctrl_cost_weight,
            "healthy": getattr(base, "_healthy_reward", 0),
            "contact": getattr(base, "_contact_cost_weight", 0),
        },
        "contactRange": _finite(getattr(base, "_contact_force_range", (None, None))),
        "start": {
            "qpos": base.init_qpos.tolist(),
            "qvel": base.init_qvel.tolist(),
            "scale": base._reset_noise_scale,
            "velocities": "normal" if type(base).__name__ in NORMAL else "uniform",
        },
    }


def _observation(base: Any) -> list[list[Any]]:
    """Return the parts of an observation: field of MuJoCo's data, first entry, bounds to which it is clipped."""
    structure = base.observation_structure
    clipped = VELOCITIES if type(base).__name__ in CLIPPED else (None, None)
    parts: list[list[Any]] = [["qpos", structure["skipped_qpos"], None, None], ["qvel", 0, *clipped]]
    if structure.get("cfrc_ext"):
        parts.append(["cfrc_ext", 6, *_finite(base._contact_force_range)])  # without those on the world
    return parts


def _healthy(base: Any) -> list[list[Any]]:
    """Return the bounds of a healthy robot: field of MuJoCo's data, first and last entry, bounds."""
    bounds: list[list[Any]] = []
    if hasattr(base, "_healthy_z_range"):
        height = 2 if base.model.nq > base.model.nv else 1  # a free root has x, y and z, a planar one x and z
        bounds.append(["qpos", height, height + 1, *_finite(base._healthy_z_range)])
    if hasattr(base, "_healthy_angle_range"):
        bounds.append(["qpos", 2, 3, *_finite(base._healthy_angle_range)])
    if hasattr(base, "_healthy_state_range"):
        low_high = _finite(base._healthy_state_range)
        bounds += [["qpos", STATE_FROM, None, *low_high], ["qvel", 0, None, *low_high]]
    return bounds


def _finite(bounds: Any) -> list[float | None]:
    return [None if bound is None or not np.isfinite(bound) else float(bound) for bound in bounds]
