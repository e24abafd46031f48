"""The page on which a policy moves its robot; in a browser it needs Chromium and npm's packages (make browser)."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from browser import CHROMIUM, NODE_MODULES, browse
from gymnasium.wrappers import TransformReward
from helpers import make

from sb3_pwm.cli.main import COMMANDS
from sb3_pwm.cli.subcommands import run_command_line
from sb3_pwm.files.atomic import write_text
from sb3_pwm.video import interactive, policy_page

pytest.importorskip("onnxscript")
pytest.importorskip("mujoco")

STEPS = 20
# Arguments with which episodes end early and the bounds of contact forces matter
CASES: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {},
    "Hopper-v5": {"healthy_angle_range": (-0.01, 0.01)},
    "Walker2d-v5": {},
    "Swimmer-v5": {"max_episode_steps": 15},
    "Ant-v5": {"contact_force_range": (-2.0, 2.0)},
}
BLANK = '<html><head><link rel="icon" href="data:,"></head><body></body></html>'
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None or not (NODE_MODULES / "@mujoco").exists() or not (NODE_MODULES / "onnxruntime-web").exists(),
    reason="needs Chromium and make browser",
)

ENDS = {("Hopper-v5", "terminated"), ("Swimmer-v5", "truncated")}  # within these steps


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """npm's folder, with files that hold their names; policies are not traced, which takes seconds."""
    monkeypatch.setattr(interactive, "export_policy", lambda model, path, **_: write_text(path, "policy"))
    files = ("mujoco.js", "mujoco.wasm"), ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")
    for package, names, version in zip(("@mujoco/mujoco", "onnxruntime-web"), files, ("3.1", "1.2"), strict=True):
        for name in names:
            file = tmp_path / "npm" / package / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(file.name)
        (tmp_path / "npm" / package / "package.json").write_text(json.dumps({"version": version}))
    return tmp_path / "npm"


def task_of(page: Path) -> Any:
    [text] = re.findall(r'<script id="task" type="application/json">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def test_the_folder_has_all_that_the_page_loads(tmp_path: Path, packages: Path) -> None:
    page = policy_page(make("Hopper-v5"), "Hopper-v5", tmp_path / "new" / "page", packages=packages)
    found = {path.name for path in page.parent.iterdir()}
    named = set()
    for file in (page, page.with_name("interactive.js"), page.with_name("simulation.js")):
        assert "://" not in file.read_text()
        named |= set(re.findall(r'"(?:\./)?([\w.-]+\.(?:js|mjs|onnx|xml))"', file.read_text()))
    loaded = {"interactive.js", "simulation.js", "mujoco.js", "ort.wasm.bundle.min.mjs", "policy.onnx", "robot.xml"}
    assert named == loaded
    assert found == loaded | {"index.html", "mujoco.wasm", "ort-wasm-simd-threaded.wasm"}
    assert page.with_name("mujoco.wasm").read_text() == "mujoco.wasm"
    task = task_of(page)
    assert (task["maxSteps"], task["frameSkip"], task["healthy"][0]) == (1_000, 4, ["qpos", 1, 2, 0.7, None])
    assert (task["versions"]["mujoco"], task["versions"]["onnxruntime"]) == ("3.1", "1.2")


def test_the_arguments_of_the_environment_are_kept(tmp_path: Path, packages: Path) -> None:
    def env() -> gym.Env[Any, Any]:
        kwargs: Any = {"include_cfrc_ext_in_observation": False, "healthy_z_range": (0.3, 2.0), "frame_skip": 5}
        return gym.make("Ant-v5", max_episode_steps=7, exclude_current_positions_from_observation=False, **kwargs)

    task = task_of(policy_page(make(env()), env, tmp_path / "page", packages=packages))
    assert task["observation"] == [["qpos", 0, None, None], ["qvel", 0, None, None]]
    assert task["healthy"] == [["qpos", 2, 3, 0.3, 2.0]]
    assert task["maxSteps"] == 7


def test_what_the_page_cannot_show_is_refused(tmp_path: Path, packages: Path) -> None:
    hopper, out = make("Hopper-v5"), tmp_path / "page"
    for env in ("Humanoid-v5", "Hopper-v4", "Pendulum-v1"):
        with pytest.raises(ValueError, match=rf"rewards of {env}; allowed: Ant-v5, HalfCheetah-v5, Hopper-v5, Swim"):
            policy_page(hopper, env, out, packages=packages)
    with pytest.raises(ValueError, match="Hopper-v5 is wrapped in TransformReward"):
        policy_page(hopper, lambda: TransformReward(gym.make("Hopper-v5"), float), out, packages=packages)
    with pytest.raises(ValueError, match="the observations of Ant-v5 are"):
        policy_page(hopper, "Ant-v5", out, packages=packages)
    (packages / "onnxruntime-web" / "package.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*onnxruntime-web/package.json: run npm install .*@mujoco/mujoco"):
        policy_page(hopper, "Hopper-v5", out, packages=packages)
    assert not out.exists()


@pytest.mark.parametrize(
    ("geom", "message"),
    [
        ('<geom type="box" size="1 1 1"/>', "has geoms of the kinds mjGEOM_BOX"),
        ('<include file="more.xml"/>', "includes other files"),
    ],
)
def test_robots_that_the_page_cannot_draw(tmp_path: Path, packages: Path, geom: str, message: str) -> None:
    import gymnasium.envs.mujoco as rooms

    xml = (Path(rooms.__file__).parent / "assets" / "hopper.xml").read_text()
    (tmp_path / "robot.xml").write_text(xml.replace("<worldbody>", f"<worldbody>{geom}"))
    (tmp_path / "more.xml").write_text('<mujoco><light pos="0 0 1"/></mujoco>')

    def env() -> gym.Env[Any, Any]:
        return gym.make("Hopper-v5", xml_file=str(tmp_path / "robot.xml"))

    with pytest.raises(ValueError, match=message):
        policy_page(make("Hopper-v5"), env, tmp_path / "page", packages=packages)


def test_the_command(tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("Swimmer-v5").save(tmp_path / "model")
    command = ["export", str(tmp_path / "model.zip"), "--format", "web", "--packages", str(packages)]
    assert run_command_line(COMMANDS, [*command, "--env", "Swimmer-v5"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model' / 'index.html'}\n"
    for wrong, message in (
        (command, "--format web needs --env"),
        (["export", str(tmp_path / "model.zip"), "--env", "Swimmer-v5"], "--format web needs --env"),
        ([*command, "--env", "Swimmer-v5", "--stochastic"], "leave out --stochastic"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_command_line(COMMANDS, wrong)
        assert message in capsys.readouterr().err


def linear_policy(env: gym.Env[Any, Any]) -> np.ndarray:
    """Return weights of a policy that is written and computed quicker than a PWM's."""
    (n,), (m,) = env.observation_space.shape or (), env.action_space.shape or ()
    return np.random.default_rng(0).normal(0, 0.1, (n, m)).astype(np.float32)


def write_linear(weights: np.ndarray, path: Path) -> None:
    """Write tanh(observation @ weights) as an exported policy has it, from observations in 64 bits."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Cast", ["observation"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "weights"], ["y"]),
        helper.make_node("Tanh", ["y"], ["action"]),
    ]
    seen, done = (
        helper.make_tensor_value_info(name, kind, ["n", size])
        for name, kind, size in zip(("observation", "action"), (11, 1), weights.shape, strict=True)
    )
    graph = helper.make_graph(nodes, "policy", [seen], [done], [numpy_helper.from_array(weights, "weights")])
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))


def lying_ant(env: gym.Env[Any, Any]) -> None:
    """Let an ant come to rest on its feet, so that there are contact forces after one step."""
    for _ in range(60):
        env.step(np.zeros(8, np.float32))


def followed(weights: np.ndarray, env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the state in which an episode begins, and what the policy sees, does and gets."""
    env.reset(seed=0)
    base: Any = env.unwrapped
    if env.spec and env.spec.id == "Ant-v5":
        lying_ant(env)
    state = base.data.qpos.copy(), base.data.qvel.copy()
    env.reset(seed=0)  # no forces of before
    base.set_state(*state)
    seen: dict[str, Any] = {"state": [each.tolist() for each in state], "observations": [base._get_obs()]}
    seen |= {"actions": [], "rewards": []}
    done = False
    while not done and len(seen["actions"]) < STEPS:
        seen["actions"].append(np.tanh(seen["observations"][-1].astype(np.float32) @ weights))
        observation, reward, terminated, truncated, _ = env.step(seen["actions"][-1])
        seen["observations"].append(observation)
        seen["rewards"].append(reward)
        seen |= {"terminated": bool(terminated), "truncated": bool(truncated)}
        done = terminated or truncated
    return seen


PLAY = """
const found = {}, cases = JSON.parse(document.body.dataset.cases);
const scripts = ["simulation.js", "mujoco.js", "ort.wasm.bundle.min.mjs"];  // once, since they are large
const modules = await Promise.all(scripts.map((name) => import(new URL(`${cases[0][0]}/${name}`, location.href).href)));
const [{Simulation}, {default: loadMujoco}, ort] = modules;
ort.env.wasm.numThreads = 1;
const mujoco = await loadMujoco({printErr: () => {}});
for (const [name, state, steps] of cases) {
  const text = (file) => fetch(`${name}/${file}`).then((response) => response.text());
  const page = new DOMParser().parseFromString(await text("index.html"), "text/html");
  const session = await ort.InferenceSession.create(`${name}/policy.onnx`);
  const task = JSON.parse(page.getElementById("task").textContent);
  const simulation = new Simulation(mujoco, session, await text("robot.xml"), task);
  simulation.reset(...state);
  const seen = {observations: [simulation.observation()], actions: [], rewards: []};
  while (!simulation.ended && seen.actions.length < steps) {
    await simulation.step();
    seen.observations.push(simulation.observation());
    seen.actions.push(Array.from(simulation.control));
    seen.rewards.push(simulation.reward);
  }
  const {terminated, truncated} = simulation;
  found[name] = {...seen, terminated, truncated, return: simulation.return};
}
tell(found);
"""


@in_a_browser
def test_the_page_sees_and_does_what_python_sees_and_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {}
    for name, kwargs in CASES.items():
        env = functools.partial(gym.make, name, **kwargs)
        weights = linear_policy(env())
        monkeypatch.setattr(
            interactive, "export_policy", lambda *given, weights=weights, **_: write_linear(weights, given[1])
        )
        (tmp_path / "pages" / name).mkdir(parents=True)
        policy_page(make(env()), env, tmp_path / "pages" / name, packages=NODE_MODULES)
        expected[name] = followed(weights, env())
    cases = json.dumps([[name, seen["state"], STEPS] for name, seen in expected.items()])
    page = BLANK.replace("<body>", f"<body data-cases='{cases}'>")
    found = browse(tmp_path / "pages", page, PLAY)
    for name, seen in expected.items():
        # An ant moves a little differently in MuJoCo 3 and 4.
        steps, error = (1, 1e-3) if name == "Ant-v5" else (10, 1e-4)
        np.testing.assert_allclose(found[name]["actions"][0], seen["actions"][0], atol=1e-5, err_msg=name)
        for part, length in (("observations", steps + 1), ("actions", steps), ("rewards", steps)):
            values = found[name][part][:length], seen[part][:length]
            np.testing.assert_allclose(*values, atol=error, err_msg=f"{name}: {part}")
        assert found[name]["return"] == pytest.approx(sum(found[name]["rewards"]))
        if name != "Ant-v5":
            assert len(found[name]["rewards"]) == len(seen["rewards"])
            for end in ("terminated", "truncated"):
                assert found[name][end] == seen[end] == ((name, end) in ENDS)
    forces = np.abs(expected["Ant-v5"]["observations"][1][27:])
    assert forces.max() == 2
    assert np.any((forces > 0.2) & (forces < 1.8))


USE = """
import {Simulation} from "./simulation.js";
import * as ort from "./ort.wasm.bundle.min.mjs";
const at = (id) => document.getElementById(id);
const number = (id) => parseFloat(at(id).textContent);
const until = async (holds) => { for (let i = 0; i < 400 && !holds(); i++) await wait(50); };
const picture = () => at("view").toDataURL();
const told = {problem: undefined};
await until(() => number("steps") > 3);
told.running = number("steps") > 3;
at("pause").click();
await wait(500);  // longer than a step takes
const paused = number("steps"), before = picture();
await wait(500);
told.paused = number("steps") === paused;
at("pause").click();
at("forward").click();
await until(() => number("speed") > 1);
told.pushed = number("speed") > 1;
told.moved = picture() !== before;
at("reset").click();
await until(() => number("steps") < paused);
told.reset = number("steps") < paused;
document.body.style.width = "376px";
await wait(200);
const session = await ort.InferenceSession.create("policy.onnx");
const observation = JSON.parse(document.body.dataset.observation);
told.action = Array.from(await Simulation.prototype.action.call({session}, observation));
told.wide = [...document.querySelectorAll("body, canvas, .controls, .values")].map((part) => part.scrollWidth);
told.problem = at("problem").hidden ? undefined : at("problem").textContent;
tell(told);
"""


@in_a_browser
def test_the_policy_acts_and_the_robot_can_be_pushed(tmp_path: Path) -> None:
    model = make("HalfCheetah-v5")
    page = policy_page(model, "HalfCheetah-v5", tmp_path / "page", packages=NODE_MODULES)
    observation = np.random.default_rng(0).normal(size=17)
    body = f"<body data-observation='{json.dumps(observation.tolist())}'>"
    told = browse(page.parent, page.read_text().replace("<body>", body), USE)
    np.testing.assert_allclose(told.pop("action"), model.predict(observation, deterministic=True)[0], atol=1e-5)
    assert max(told.pop("wide")) <= 376 + 24
    assert told == {"running": True, "paused": True, "pushed": True, "moved": True, "reset": True}
