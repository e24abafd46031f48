"""The simulator as differentiable dynamics, against the environments themselves."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

pytest.importorskip("mujoco")

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sb3_pwm import PWM, SHAC, Planner, TrueDynamicsPWM
from sb3_pwm.imagination import imagine
from sb3_pwm.nn.scales import RewardScale
from sb3_pwm.simulator.dynamics import MARGIN_WIDTH, TrueDynamics
from sb3_pwm.simulator.steps import MujocoSteps

ENVS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5", "InvertedPendulum-v5")
TINY: dict[str, Any] = {
    "learning_starts": 20,
    "batch_size": 4,
    "critic_batch_size": 8,
    "buffer_size": 500,
    "policy_kwargs": {"net_arch": [16]},
    "device": "cpu",
    "seed": 0,
}


def steps_of(env_id: str, **kwargs: Any) -> MujocoSteps:
    return MujocoSteps(gym.make(env_id, **kwargs).spec.to_json())


@pytest.fixture(scope="module")
def all_steps() -> dict[str, MujocoSteps]:
    return {env_id: steps_of(env_id) for env_id in ENVS}


def visited(env_id: str, steps: MujocoSteps, count: int = 40) -> list[np.ndarray]:
    """States of random episodes, the actions there, and what the environment itself made of them."""
    env: Any = gym.make(env_id).unwrapped
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        state = np.concatenate([env.data.qpos, env.data.qvel])
        action = rng.uniform(-1, 1, steps.nu)
        low, high = env.action_space.low.astype(float), env.action_space.high.astype(float)
        observation, reward, terminated, _, _ = env.step(low + (action + 1) / 2 * (high - low))
        following = np.concatenate([env.data.qpos, env.data.qvel])
        rows.append((state, action, following, observation, reward, terminated))
        if terminated:
            env.reset()
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("env_id", ENVS)
def test_steps_are_those_of_the_environment(env_id: str, all_steps: dict[str, MujocoSteps]) -> None:
    states, actions, following, observations, rewards, terminated = visited(env_id, all_steps[env_id])
    outcome = all_steps[env_id].step(states, actions)
    np.testing.assert_allclose(outcome.states, following, atol=1e-6)
    np.testing.assert_allclose(outcome.observations, observations, atol=1e-6)
    assert ((outcome.margins <= 0) == terminated).all()
    if env_id == "Ant-v5":  # where its torso was one MuJoCo step before comes from its velocity
        assert np.abs(outcome.rewards - rewards)[1:].mean() < 0.1
    else:
        np.testing.assert_allclose(outcome.rewards, rewards, atol=1e-6)


def moved(steps: MujocoSteps, states: np.ndarray, actions: np.ndarray, column: int, size: float) -> Any:
    """Return states and actions after one small step along an input, in MuJoCo's tangent space."""
    states, actions = states.copy(), actions.copy()
    if column < steps.nv:
        direction = np.zeros(steps.nv)
        direction[column] = 1
        for row in states:
            position = row[: steps.nq].copy()
            steps._mujoco.mj_integratePos(steps._model, position, direction, size)
            row[: steps.nq] = position
    elif column < 2 * steps.nv:
        states[:, steps.nq + column - steps.nv] += size
    else:
        actions[:, column - 2 * steps.nv] += size
    return steps.step(states, actions)


def difference(steps: MujocoSteps, later: Any, earlier: Any) -> np.ndarray:
    tangents = np.zeros((len(later.states), steps.nv))
    for row, start, end in zip(tangents, earlier.states, later.states, strict=True):
        steps._mujoco.mj_differentiatePos(steps._model, row, 1.0, start[: steps.nq], end[: steps.nq])
    others = [
        later.states[:, steps.nq :] - earlier.states[:, steps.nq :],
        later.observations - earlier.observations,
        (later.rewards - earlier.rewards)[:, None],
        (later.margins - earlier.margins)[:, None],
    ]
    return np.concatenate([tangents, *others], 1)


@pytest.mark.parametrize("env_id", ENVS[:5])
def test_jacobians_are_central_differences(env_id: str, all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps[env_id]
    states, actions, *_ = (column[4::6] for column in visited(env_id, steps))
    found = steps.jacobian(states, actions, steps.step(states, actions))
    expected, size = np.zeros_like(found), 1e-7
    for column in range(found.shape[2]):
        ends = (moved(steps, states, actions, column, sign * size) for sign in (1, -1))
        expected[:, :, column] = difference(steps, *ends) / (2 * size)
    errors = np.linalg.norm((found - expected).reshape(len(states), -1), axis=1)
    relative = errors / np.linalg.norm(expected.reshape(len(states), -1), axis=1)
    assert np.median(relative) <= 1e-5
    assert relative.max() <= 1e-3  # a contact may begin or end between the points


def test_jacobians_are_mujocos_own_where_it_has_them(all_steps: dict[str, MujocoSteps]) -> None:
    """MuJoCo differentiates single steps of its Euler integrator; five of them in a row are HalfCheetah's step."""
    steps = all_steps["HalfCheetah-v5"]
    mujoco, model = steps._mujoco, steps._model
    states, actions, *_ = (column[3::9] for column in visited("HalfCheetah-v5", steps))
    found = steps.jacobian(states, actions, steps.step(states, actions))
    nv, nu, data = steps.nv, steps.nu, mujoco.MjData(model)
    for state, action, jacobian in zip(states, actions, found, strict=True):
        data.qpos[:], data.qvel[:] = state[: steps.nq], state[steps.nq :]
        data.ctrl[:] = action  # of [-1, 1]
        total = np.eye(2 * nv + nu)
        for _ in range(steps._env.frame_skip):
            by_state, by_control = np.zeros((2 * nv, 2 * nv)), np.zeros((2 * nv, nu))
            mujoco.mjd_transitionFD(model, data, 1e-8, True, by_state, by_control, None, None)
            step = np.eye(2 * nv + nu)
            step[: 2 * nv] = np.concatenate([by_state, by_control], 1)
            total = step @ total
            mujoco.mj_step(model, data)
        expected = total[: 2 * nv]
        assert np.linalg.norm(jacobian[: 2 * nv] - expected) <= 1e-3 * np.linalg.norm(expected)


def test_actions_at_their_bounds_have_one_sided_derivatives(all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps["Swimmer-v5"]
    states = np.zeros((2, steps.nq + steps.nv))
    actions = np.array([[1.0, -1.0], [1.0 - 1e-4, -1.0 + 1e-4]])
    at_bound, inside = steps.jacobian(states, actions, steps.step(states, actions))[:, :, -2:]
    np.testing.assert_allclose(at_bound, inside, atol=2e-3)
    assert np.abs(at_bound).max() > 0.1


def test_derivatives_by_actions_alone(all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps["Hopper-v5"]
    states, actions, *_ = (column[:3] for column in visited("Hopper-v5", steps))
    outcome = steps.step(states, actions)
    everything = steps.jacobian(states, actions, outcome)
    actions_only = steps.jacobian(states, actions, outcome, of_states=False)
    np.testing.assert_array_equal(actions_only[:, :, -3:], everything[:, :, -3:])
    assert not actions_only[:, :, :-3].any()


def test_margins_are_distances_to_the_bounds(all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps["Hopper-v5"]
    state = np.zeros(12)
    state[1] = 1.25
    upright, falling = state.copy(), state.copy()
    falling[2] = 0.25  # 0.2 rad is the bound
    margins = steps.step(np.stack([upright, falling]), np.zeros((2, 3))).margins
    assert 0.15 < margins[0] <= 0.2
    assert margins[1] == pytest.approx(-0.05, abs=0.02)
    cheetah = all_steps["HalfCheetah-v5"]
    assert cheetah.step(np.zeros((1, 18)), np.zeros((1, 6))).margins[0] == 1  # which never ends


def dynamics_of(steps: MujocoSteps, scale: float = 2.0) -> TrueDynamics:
    reward_scale = RewardScale()
    reward_scale.scale.fill_(scale)
    return TrueDynamics(torch.nn.Identity(), steps.observation_dim, steps, reward_scale).double()


class Ramp(torch.nn.Module):
    """An actor whose actions are parameters, one per step."""

    def __init__(self, actions: Any) -> None:
        super().__init__()
        self.actions = torch.nn.Parameter(torch.as_tensor(actions))
        self.action_dim = self.actions.shape[-1]
        self.step = 0

    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        action = self.actions[self.step].expand(len(latents), -1)
        self.step += 1
        return action, action.sum(-1)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5"])
def test_gradients_of_a_rollout_are_finite_differences(env_id: str, all_steps: dict[str, MujocoSteps]) -> None:
    """Through four steps: a chain of Jacobians, also in MuJoCo's tangent space where there is a free joint."""
    steps = all_steps[env_id]
    dynamics: Any = dynamics_of(steps)
    state = visited(env_id, steps, 12)[0][-1]
    actions = np.random.default_rng(3).uniform(-0.5, 0.5, (4, steps.nu))

    def start() -> torch.Tensor:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return torch.cat([torch.zeros(steps.observation_dim), torch.as_tensor(state), ends])[None]

    def earned(values: np.ndarray) -> float:
        actor: Any = Ramp(values)
        return imagine(dynamics, actor, start(), 4).rewards.sum().item()

    actor: Any = Ramp(actions)
    rollout = imagine(dynamics, actor, start(), 4)
    rollout.rewards.sum().backward()
    expected = np.zeros_like(actions)
    for index in np.ndindex(actions.shape):
        up, down = actions.copy(), actions.copy()
        up[index] += 1e-5
        down[index] -= 1e-5
        expected[index] = (earned(up) - earned(down)) / 2e-5
    found = actor.actions.grad.numpy()
    assert np.linalg.norm(found - expected) <= 1e-2 * np.linalg.norm(expected)
    assert np.abs(found[0]).max() > 0


def test_rewards_are_in_scales_and_terminations_have_a_slope(all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps["Hopper-v5"]
    dynamics = dynamics_of(steps, scale=2.0)
    columns: Any = (torch.as_tensor(column[:3]) for column in visited("Hopper-v5", steps))
    states, actions, *_ = columns
    start = torch.cat([torch.zeros(3, 11), states, torch.zeros(3, 2)], 1)
    found = dynamics.next_latents(start, actions)[:, -2]
    np.testing.assert_allclose(found, steps.step(states, actions).rewards / 2)
    latents = torch.zeros(3, 2, dynamics.latent_dim, dtype=torch.float64)
    margins = torch.tensor([[0.1, -0.01], [0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    latents[1:, :, -1] = margins
    latents[1:, :, -2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    rewards, continuations = dynamics.outcomes(latents, torch.zeros(2, 2, 3), terminations=True)
    assert rewards.tolist() == [[1, 2], [3, 4]]
    assert continuations.tolist() == [[1, 0], [1, 1]]
    continuations.sum().backward()
    soft = torch.sigmoid(margins.detach() / MARGIN_WIDTH)
    torch.testing.assert_close(margins.grad, soft * (1 - soft) / MARGIN_WIDTH)
    _, never = dynamics.outcomes(latents, torch.zeros(2, 2, 3), terminations=False)
    assert never.tolist() == [[1, 1], [1, 1]]


def test_start_states_come_from_observations(all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps["HalfCheetah-v5"]
    states, _, _, observations, *_ = visited("HalfCheetah-v5", steps, 5)
    latents = dynamics_of(steps).encode(torch.as_tensor(observations))
    state = latents[:-1, steps.observation_dim : -2].numpy()
    np.testing.assert_allclose(state[:, 1:], states[1:, 1:], atol=1e-5)
    assert not state[:, 0].any()  # x, which no observation holds


@pytest.mark.parametrize("algorithm", [TrueDynamicsPWM, SHAC])
def test_they_learn_save_and_load_as_pwm_does(algorithm: type[TrueDynamicsPWM], tmp_path: Path) -> None:
    settings: dict[str, Any] = TINY | ({"horizon": 3} if algorithm is SHAC else {})
    model = algorithm("MlpPolicy", "Hopper-v5", **settings).learn(90)
    assert model._n_updates > 0
    dynamics: Any = model.policy.world_model
    assert dynamics.steps.n_steps > 0
    before = model.policy.state_dict()
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")  # without an environment
    observation: Any = model.get_env().reset()
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    mean: Any = evaluate_policy(loaded, gym.make("Hopper-v5"), 1, warn=False)[0]
    assert mean > 0
    loaded.set_env(make_vec_env("Hopper-v5", 2))
    loaded.learn(60)
    assert any(not torch.equal(value, before[name]) for name, value in loaded.policy.state_dict().items())


def test_the_same_seed_gives_the_same_model() -> None:
    models = [TrueDynamicsPWM("MlpPolicy", "InvertedPendulum-v5", **TINY).learn(40) for _ in range(2)]
    first, second = (model.policy.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shac_starts_from_the_newest_states() -> None:
    model = SHAC("MlpPolicy", make_vec_env("InvertedPendulum-v5", 2), **TINY | {"horizon": 2})
    model.learn(60)
    samples: Any = model._sample(4)
    buffer = model.replay_buffer
    rows = [(buffer.pos - 1) % buffer.buffer_size, (buffer.pos - 2) % buffer.buffer_size]
    expected = np.concatenate([buffer.observations[row] for row in rows])
    np.testing.assert_array_equal(samples.observations[0].numpy(), expected)


def test_actors_see_through_observations_in_shac_only(all_steps: dict[str, MujocoSteps]) -> None:
    dynamics: Any = dynamics_of(all_steps["InvertedPendulum-v5"])
    seen = []

    class Watching(Ramp):
        def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(latents.requires_grad)
            return super().sample_with_log_prob(latents)

    start = torch.zeros(1, dynamics.latent_dim, dtype=torch.float64)
    for through in (False, True):
        actor: Any = Watching(np.zeros((2, 1)))
        imagine(dynamics, actor, start, 2, through_observations=through)
    assert seen == [False, False, False, True]


class Noisy(HopperEnv):
    def step(self, action: np.ndarray) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward + np.random.standard_normal(), *rest


gym.register("NoisyHopper-v0", f"{__name__}:Noisy")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Pendulum-v1", "does not say where it holds positions"),
        ("Reacher-v5", "does not say where it holds positions"),
        ("NoisyHopper-v0", "led to other rewards"),
    ],
)
def test_what_cannot_be_differentiated_is_refused(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrueDynamicsPWM("MlpPolicy", env_id, **TINY)


def test_wrappers_and_normalisation_are_refused() -> None:
    wrapped = gym.wrappers.TransformReward(gym.make("Hopper-v5"), lambda reward: -float(reward))
    with pytest.raises(ValueError, match="wrapped in TransformReward"):
        TrueDynamicsPWM("MlpPolicy", wrapped, **TINY)
    with pytest.raises(ValueError, match="VecNormalize"):
        TrueDynamicsPWM("MlpPolicy", VecNormalize(make_vec_env("Hopper-v5")), **TINY)
    with pytest.raises(ValueError, match="allowed: 0 and False"):
        TrueDynamicsPWM("MlpPolicy", "Hopper-v5", **TINY | {"pretrain_steps": 5})
    model = TrueDynamicsPWM("MlpPolicy", "Hopper-v5", **TINY)
    model._learner._value_and_differentiate()  # what precision="auto" measures
    with pytest.raises(ValueError, match="not the one whose steps"):
        model.set_env(gym.make("Hopper-v5", healthy_z_range=(0.5, 2.0)))
    with pytest.raises(ValueError, match="has no world model"):
        model.save_world_model("nowhere")


def test_as_another_algorithm_it_acts_and_does_not_learn(tmp_path: Path) -> None:
    model = TrueDynamicsPWM("MlpPolicy", "Hopper-v5", **TINY)
    model.save(tmp_path / "model")
    other = PWM.load(tmp_path / "model", env=gym.make("Hopper-v5"), device="cpu")
    observation = np.zeros(11)
    assert np.array_equal(
        other.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    with pytest.raises(ValueError, match="there is no world model"):
        other.learn(100)
    with pytest.raises(ValueError, match="made by TrueDynamicsPWM or SHAC"):
        Planner(model).predict(observation)


class Shifted(VecEnvWrapper):
    """Gives other rewards than its simulator."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 100 * rewards - 5, dones, infos


class TimeLimit(gym.RewardWrapper, gym.utils.RecordConstructorArgs):
    """Has the name of a wrapper that changes nothing."""

    def __init__(self, env: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reward(self, reward: Any) -> Any:
        return -reward


def test_what_a_vector_or_a_wrapper_changes_is_refused() -> None:
    plain = make_vec_env("InvertedPendulum-v5")
    for env in (Shifted(plain), VecFrameStack(plain, 2)):
        with pytest.raises(ValueError, match=f"wrapped in {type(env).__name__}, which its simulator knows nothing of"):
            TrueDynamicsPWM("MlpPolicy", env, **TINY)
    with pytest.raises(ValueError, match="wrapped in TimeLimit of test_true_dynamics"):
        TrueDynamicsPWM("MlpPolicy", TimeLimit(gym.make("InvertedPendulum-v5")), **TINY)
    monitored = VecMonitor(DummyVecEnv([lambda: gym.make("InvertedPendulum-v5")]))
    TrueDynamicsPWM("MlpPolicy", monitored, **TINY)


def test_time_limits_may_differ(tmp_path: Path) -> None:
    """They change no step."""
    model = TrueDynamicsPWM("MlpPolicy", "InvertedPendulum-v5", **TINY)
    model.set_env(gym.make("InvertedPendulum-v5", max_episode_steps=30))
    model.save(tmp_path / "model")
    TrueDynamicsPWM.load(tmp_path / "model", env=gym.make("InvertedPendulum-v5", max_episode_steps=50))
    TrueDynamicsPWM("MlpPolicy", gym.make("InvertedPendulum-v5", reset_noise_scale=np.float32(0.5)), **TINY)


def test_the_arguments_of_the_environment_count() -> None:
    cheap, dear = (steps_of("HalfCheetah-v5", ctrl_cost_weight=weight) for weight in (0.0, 1.0))
    states, actions = np.zeros((1, 18)), np.full((1, 6), 0.5)
    difference = cheap.step(states, actions).rewards - dear.step(states, actions).rewards
    np.testing.assert_allclose(difference, 6 * 0.25)


def test_steps_can_be_copied(all_steps: dict[str, MujocoSteps]) -> None:
    steps = all_steps["InvertedPendulum-v5"]
    states, actions = np.full((1, 4), 0.01), np.full((1, 1), 0.3)
    for other in (copy.deepcopy(steps), pickle.loads(pickle.dumps(steps))):
        np.testing.assert_array_equal(other.step(states, actions).states, steps.step(states, actions).states)
