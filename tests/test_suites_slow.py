"""All environments of the suites; they need the extra ``multitask`` (make test-multitask)."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_pwm import PWM
from sb3_pwm.callbacks import TaskLogCallback
from sb3_pwm.multitask.envs import single_task_env, task_vec_env
from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.suites import mt80
from sb3_pwm.suites.dmcontrol import SUITE_TASKS, VARIANT_TASKS, make_dmcontrol
from sb3_pwm.suites.experts import has_expert, record_expert
from sb3_pwm.suites.metaworld import MT10_NAMES, MT50_NAMES, make_metaworld
from sb3_pwm.video import use_headless_rendering

use_headless_rendering()
pytest.importorskip("dm_control", reason="needs the extra multitask", exc_type=ImportError)
pytest.importorskip("metaworld", reason="needs the extra multitask", exc_type=ImportError)
pytestmark = pytest.mark.slow

MT80 = mt80()
every_task = pytest.mark.parametrize("name", MT80.names)


def is_metaworld(name: str) -> bool:
    return name.startswith("mw-")


@every_task
def test_one_episode(name: str) -> None:
    task_id = MT80.task_id(name)
    task = MT80[task_id]  # make_env compares its sizes with the environment's
    env = single_task_env(MT80, name)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for step in range(1, task.episode_length + 1):
        assert env.observation_space.contains(observation)
        assert observation["observation"].shape == (39,)
        assert observation["task"] == task_id
        assert np.isfinite(observation["observation"]).all()
        np.testing.assert_array_equal(observation["observation"] * (1 - MT80.observation_masks[task_id]), 0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert 0 <= float(reward) <= (20 if is_metaworld(name) else 2)  # two steps' rewards
        assert (terminated, truncated) == (False, step == task.episode_length)
        assert ("is_success" in info) == is_metaworld(name)
    assert info["episode"]["l"] == task.episode_length
    env.close()


@every_task
def test_seeds_and_masks(name: str) -> None:
    """The same seed gives the same episode, whatever the masked actions are; then the starts differ."""
    task_id, actions = MT80.task_id(name), np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype(np.float32)
    episodes = []
    for padding in (-1, 1):
        env = single_task_env(MT80, name)
        observations = [env.reset(seed=1)[0]["observation"]]
        for action in actions:
            masked = np.where(MT80.action_masks[task_id] == 1, action, padding)
            observations.append(env.step(masked.astype(np.float32))[0]["observation"])
        observations.append(env.reset()[0]["observation"])
        episodes.append(np.array(observations))
        env.close()
    np.testing.assert_array_equal(episodes[0], episodes[1])
    assert (episodes[0][0] != episodes[0][-1]).any()
    assert (episodes[0][0] != episodes[0][1]).any()


@every_task
def test_every_action_dimension_has_an_effect(name: str) -> None:
    task = MT80[MT80.task_id(name)]
    seen = set()
    for action in (np.zeros(task.action_size), *np.eye(task.action_size)):
        env = task.make_env()
        env.reset(seed=0)
        for _ in range(3):
            observation, *_ = env.step(action.astype(np.float32))
        seen.add(observation.tobytes())
        env.close()
    assert len(seen) == 1 + task.action_size


@pytest.mark.parametrize("name", ["cheetah-run", "pendulum-spin", "mw-reach", "mw-hand-insert"])
def test_environments_by_id(name: str) -> None:
    """They are those of the set, and the time limit is a truncation."""
    env, own = gym.make(f"sb3_pwm.suites:mt80/{name}-v0"), MT80[MT80.task_id(name)].make_env()
    assert env.observation_space == own.observation_space
    first, second = env.reset(seed=3)[0], own.reset(seed=3)[0]
    env.action_space.seed(0)
    steps, ended = 0, False
    while not ended:
        np.testing.assert_array_equal(first, second)
        action = env.action_space.sample()
        first, reward, terminated, ended, _ = env.step(action)
        second, expected, *_ = own.step(action)
        steps += 1
        assert (reward, terminated) == (expected, False)
    assert steps == (100 if is_metaworld(name) else 500)
    env.close(), own.close()


@pytest.mark.parametrize("name", ["cheetah-run", "mw-reach"])
def test_render_modes_of_ids(name: str) -> None:
    env_id = f"sb3_pwm.suites:mt80/{name}-v0"
    with pytest.raises(ValueError, match="render_mode='human'"):
        gym.make(env_id, render_mode="human")
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    try:
        picture = env.render()
    except Exception as error:  # a matter of the machine
        pytest.skip(f"no renderer: {error}")
    assert picture.std() > 10
    env.close()


@every_task
def test_pictures(name: str) -> None:
    env = single_task_env(MT80, name, "rgb_array")
    env.reset(seed=0)
    try:
        picture = env.render()
    except Exception as error:  # a matter of the machine
        pytest.skip(f"no renderer: {error}")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.std() > 10  # not of one colour
    env.close()


def test_sizes_and_order_against_the_simulators() -> None:
    from dm_control import suite
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert [f"{name}-v3" for name in MT10_NAMES] == list(MT10_V3)
    assert sorted(f"{name}-v3" for name in MT50_NAMES) == sorted(ALL_V3_ENVIRONMENTS)
    envs: dict[str, Any] = {task.name: task.env for task in MT80}
    read = TaskSet.from_envs(envs)
    np.testing.assert_array_equal(read.observation_masks, MT80.observation_masks)
    np.testing.assert_array_equal(read.action_masks, MT80.action_masks)
    original = {f"{domain}-{task}".replace("_", "-").replace("ball-in-", "") for domain, task in suite.ALL_TASKS}
    assert set(SUITE_TASKS) <= original
    assert not set(VARIANT_TASKS) & original


def test_other_tasks_of_the_suite_and_unknown_ones() -> None:
    assert make_dmcontrol("humanoid-CMU-run").observation_space.shape == (137,)
    with pytest.raises(ValueError, match="has no task 'walker-fly'"):
        make_dmcontrol("walker-fly")
    with pytest.raises(ValueError, match="has no task 'fly'"):
        make_metaworld("fly")


def test_observations_keep_dm_controls_order() -> None:
    """Orientations, height, velocity; in alphabetical order height would come first."""
    env: Any = make_dmcontrol("walker-walk")
    observation, _ = env.reset(seed=0)
    physics = env.unwrapped.environment.physics
    expected = [*physics.orientations(), physics.torso_height(), *physics.velocity()]
    np.testing.assert_allclose(observation, expected, rtol=1e-6)


def test_an_action_is_taken_twice_and_rewards_add_up() -> None:
    once, twice = make_dmcontrol("walker-stand").unwrapped, make_dmcontrol("walker-stand")
    once.reset(seed=0), twice.reset(seed=0)
    action = np.full(6, 0.5, np.float32)
    rewards = [float(once.step(action)[1]) for _ in range(2)]
    assert twice.step(action)[1] == sum(rewards)


class Pose:
    """A variant whose state is set by hand."""

    def __init__(self, name: str) -> None:
        env: Any = make_dmcontrol(name).unwrapped
        self.environment = env.environment
        self.environment.reset()
        self.physics = self.environment.physics

    def reward(self, qpos: Any = None, qvel: Any = None, **target: Any) -> float:
        """Return the reward at rest in the model's own pose, but for what is given by joint."""
        with self.physics.reset_context():
            for joint, value in (qpos or {}).items():
                self.physics.named.data.qpos[joint] = value
            for joint, value in (qvel or {}).items():
                self.physics.named.data.qvel[joint] = value
            for axis, value in target.items():
                self.physics.named.model.geom_pos["target", axis] = value
        return self.environment.task.get_reward(self.physics)

    def height(self, body: str) -> float:
        return self.physics.named.data.xpos[body, "z"]


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        # (1 + 5 x) / 6 with x = 1 at the target, 1/2 at half of it and 0 at rest, while standing upright
        ("walker-walk-backwards", {-2: 1, -1: 1, -0.5: 3.5 / 6, 0: 1 / 6, 1: 1 / 6}),
        ("walker-run-backwards", {-10: 1, -8: 1, -4: 3.5 / 6, -2: 2.25 / 6, 0: 1 / 6, 8: 1 / 6}),
        ("cheetah-run-backwards", {-10: 1, -8: 1, -4: 0.5, -2: 0.25, 0: 0, 8: 0}),
        ("hopper-hop-backwards", {-2: 1, -1: 1, -0.75: 0.75, -0.5: 0.5, 0: 0, 2: 0}),
    ],
)
def test_backwards(name: str, rewards: dict[str, Any]) -> None:
    pose = Pose(name)
    assert {v: pose.reward(qvel={"rootx": v}) for v in rewards} == pytest.approx(rewards)


def test_walker_and_hopper_must_stand() -> None:
    walker, hopper = Pose("walker-walk-backwards"), Pose("hopper-hop-backwards")
    # On its head 0.1 above the ground it is nothing; lying at 0.6 it is half upright, and its height counts 0.1
    assert walker.reward({"rooty": np.pi, "rootz": -1.2}, {"rootx": -1}) < 0.01
    assert walker.reward({"rooty": np.pi / 2, "rootz": -0.7}, {"rootx": -1}) == pytest.approx((3 * 0.1 + 0.5) / 4)
    assert hopper.reward({"rooty": np.pi / 2}, {"rootx": -2}) == 0


@pytest.mark.parametrize(("name", "lifted", "pitch"), [("front", "bfoot", 1), ("back", "ffoot", -1)])
def test_cheetah_on_one_foot(name: str, lifted: str, pitch: int) -> None:
    """With torso and the lifted foot above 1.2, the reward is (1 + 5 speed / 6) / 6."""
    pose = Pose(f"cheetah-run-{name}")
    rewards = {6: 1, 8: 1, 3: 3.5 / 6, 0: 1 / 6, -6: 1 / 6}
    state = {"rootz": 0.6, "rooty": pitch * np.pi / 2}
    assert {v: pose.reward(state, {"rootx": v}) for v in rewards} == pytest.approx(rewards)
    grounded = {"bfoot": "ffoot", "ffoot": "bfoot"}[lifted]
    assert pose.height(lifted) > 1.2 > pose.height(grounded)
    # The other way round the torso counts fully, 2/5, and the foot as a Gaussian that is 0.1 at a height of 0.6
    wrong = pose.reward({"rootz": 0.6, "rooty": -pitch * np.pi / 2}, {"rootx": 6})
    assert pose.height(lifted) < 0.9
    assert wrong == pytest.approx(0.4 + 0.6 * 0.1 ** ((1.2 - pose.height(lifted)) / 0.6) ** 2)


def test_cheetah_jump() -> None:
    """5/6 for height, 1/6 for keeping to a speed of 0.5 (none from 1 on)."""
    pose = Pose("cheetah-jump")
    up = {"rootz": 1.2}
    rewards = {0: 1, 0.5: 1, -0.5: 1, 0.75: 5.5 / 6, 1: 5 / 6, -1: 5 / 6, 5: 5 / 6}
    assert {v: pose.reward(up, {"rootx": v}) for v in rewards} == pytest.approx(rewards)
    assert (pose.height("torso") + min(pose.height("bfoot"), pose.height("ffoot"))) / 2 > 1.2
    # Standing: torso 0.7 and feet near 0.2, mean 0.45: exp(-ln(10) (0.75 / 0.6)^2) is 0.03
    assert pose.reward() == pytest.approx(1 / 6, abs=0.05)
    assert pose.reward() < pose.reward({"rootz": 0.5}) < pose.reward(up)


def test_pendulum_spin() -> None:
    pose = Pose("pendulum-spin")
    rewards = {9: 1, -9: 1, 12: 1, 4.5: 0.5, -6.75: 0.75, 0: 0}
    assert {v: pose.reward(qvel={"hinge": v}) for v in rewards} == pytest.approx(rewards)


def test_cup_spin() -> None:
    """The ball, 0.35 below the cup's middle at rest: 1/3 for a distance of 0.5, 2/3 for a speed of 6."""
    pose = Pose("cup-spin")
    beside = {"ball_z": 0.35, "ball_x": 0.5}
    assert pose.reward(beside, {"ball_x": 6}) == pytest.approx(1)
    assert pose.reward(beside, {"ball_x": 3.6, "ball_z": -4.8}) == pytest.approx(1)  # 6 in all
    assert pose.reward(beside, {"ball_z": 3}) == pytest.approx(2 / 3)
    assert pose.reward(beside) == pytest.approx(1 / 3)
    assert pose.reward({**beside, "ball_x": 0.25}, {"ball_x": 6}) == pytest.approx(2.5 / 3)
    assert pose.reward({"ball_z": 0.35}, {"ball_x": 6}) == 0  # in the cup


def test_cup_spin_starts_in_the_cup() -> None:
    environment = Pose("cup-spin").environment
    environment.task.random.seed(0)
    inside = 0
    for _ in range(200):
        environment.reset()
        inside += environment.physics.in_target()
        assert environment.physics.data.ncon == 0
    assert 168 <= inside <= 194  # of 200 episodes 90 %, three standard deviations of 4.2


def test_reacher_three() -> None:
    easy, hard = Pose("reacher-three-easy"), Pose("reacher-three-hard")
    physics = easy.physics
    assert physics.model.nq == physics.model.nu == 3
    # Stretched out, the finger is 3 x 0.09 from the middle; target radius 0.05 or 0.015, finger radius 0.01
    for distance, rewards in {0.02: (1, 1), 0.05: (1, 0), 0.07: (0, 0)}.items():
        assert (easy.reward(x=0.27 - distance, y=0), hard.reward(x=0.27 - distance, y=0)) == rewards
    assert hard.reward({"elbow": np.pi / 2}, x=0.09, y=0.18) == 1
    assert hard.reward({"shoulder": np.pi / 2, "wrist": np.pi / 2}, x=-0.09, y=0.18) == 1
    np.testing.assert_allclose(np.rad2deg(physics.model.jnt_range[1:]), [[-80, 80]] * 2)
    assert physics.model.jnt_limited.tolist() == [0, 1, 1]
    assert [physics.model.id2name(joint, "joint") for joint in physics.model.actuator_trnid[:, 0]] == [
        "shoulder",
        "elbow",
        "wrist",
    ]
    for episode in range(20):
        easy.environment.task.random.seed(episode)
        easy.environment.reset()
        assert (np.abs(physics.data.qpos[1:]) <= np.deg2rad(80)).all()


@pytest.mark.filterwarnings("ignore:Constant")  # Meta-World's policies ask for more than is possible
def test_scripted_experts_succeed() -> None:
    """Three of Meta-World's own policies, on actions taken twice: at least two of three episodes."""
    from metaworld.policies import ENV_POLICY_MAP

    for name in ("reach", "drawer-close", "window-open"):
        env, successes = single_task_env(MT80, f"mw-{name}"), 0
        for episode in range(3):
            observation, _ = env.reset(seed=episode)
            policy, truncated = ENV_POLICY_MAP[f"{name}-v3"](), False
            while not truncated:
                action = np.clip(policy.get_action(observation["observation"].astype(np.float64)), -1, 1)
                observation, _, _, truncated, info = env.step(np.pad(action, (0, 2)).astype(np.float32))
            successes += info["is_success"]
        assert successes >= 2, name


def test_pwm_learns_over_both_suites() -> None:
    names = ("pendulum-spin", "reacher-three-easy", "mw-reach")
    tasks = TaskSet([MT80[MT80.task_id(name)] for name in names])
    model = PWM("MultiInputPolicy", task_vec_env(tasks, seed=0), learning_starts=300, pretrain_steps=20, seed=0)
    model.learn(900, callback=TaskLogCallback())
    assert model.replay_buffer.observations["task"][:300].squeeze(-1).tolist() == [[0, 1, 2]] * 300
    assert model.n_model_updates > 50
    assert {episode["task"] for episode in model.ep_info_buffer} == {"mw-reach"}  # the others have 500 steps


@pytest.mark.filterwarnings("ignore:Constant")
def test_data_of_scripted_experts() -> None:
    assert [task.name for task in MT80 if has_expert(task)] == list(MT80.names[30:])
    data, rates = record_expert(MT80[MT80.task_id("mw-reach")], 6, seed=0)
    assert data["observations"].shape == (600, 39)
    assert np.flatnonzero(data["timeouts"]).tolist() == list(range(99, 600, 100))
    assert rates[0.0] == rates[0.1] == (1, 1)
    assert rates[None] == (0, 0)
