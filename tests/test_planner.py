import copy
import gc
import math
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import SMALL, SMALL_POLICY, PictureEnv, SpaceEnv, make, space_envs
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.testing import assert_close

from sb3_pwm import PWM, Planner, Task, TaskSet, task_vec_env
from sb3_pwm.benchmark import worker
from sb3_pwm.benchmark.plan import make_plan
from sb3_pwm.benchmark.results import FINISHED, read_run
from sb3_pwm.benchmark.specs import RunSpec
from sb3_pwm.planning import planner
from sb3_pwm.planning.mppi import MPPISettings, fitted_gaussian, mppi, policy_sequences, sequence_returns
from sb3_pwm.planning.planner import PlanningPWM
from sb3_pwm.video import record_video
from sb3_pwm.world_model import WorldModel

FEW: dict[str, Any] = {"horizon": 2, "n_samples": 16, "n_elites": 4, "n_policy_trajectories": 3, "n_iterations": 2}
GAMMA = 0.9
# z' = A z + B a, with the reward -(z Q z + a R a)
A = torch.tensor([[1.0, 0.2], [0.0, 0.9]])
B = torch.tensor([[0.0], [0.3]])
Q = torch.diag(torch.tensor([1.0, 0.1]))
R = torch.tensor([[0.2]])
START = torch.tensor([[0.5, -0.2], [-0.3, 0.4]])


@pytest.fixture(scope="module")
def model() -> PWM:
    return make().learn(60)


class StandIn:
    """World model, actor and critics in one, of functions that are known."""

    outcomes = WorldModel.outcomes

    def __init__(
        self,
        step: Callable[..., Any],
        reward: Callable[..., Any],
        value: Callable[..., Any],
        continuation: Callable[..., Any] | None = None,
        n_dynamics: int = 1,
    ) -> None:
        self.step, self.rewards, self.value, self.continuations = step, reward, value, continuation
        self.dynamics = [None] * n_dynamics

    def all_next_latents(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.step(own, actions, k) for k, own in enumerate(latents)])

    def returns(
        self, latents: torch.Tensor, actions: torch.Tensor, gamma: float = GAMMA, q_critic: bool = False
    ) -> torch.Tensor:
        def critics(latents: torch.Tensor, actions: torch.Tensor | None = None) -> torch.Tensor:
            return torch.stack([self.value(latents), self.value(latents) + (0 if actions is None else actions[..., 0])])

        own: Any = self
        actor: Any = SimpleNamespace(mode=lambda latents: torch.full((*latents.shape[:-1], 1), 4.0))
        values: Any = critics
        terminations = self.continuations is not None
        settings: dict[str, Any] = {"gamma": gamma, "terminations": terminations, "q_critic": q_critic}
        return sequence_returns(own, actor, values, latents, actions, **settings)


def quadratic(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return ((x @ matrix) * x).sum(-1)


def riccati(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the optimal gain and cost of so many steps, a = -K z; many steps are the infinite horizon."""
    cost = torch.zeros(2, 2)
    for _ in range(steps):
        gain = torch.linalg.solve(R + GAMMA * B.T @ cost @ B, GAMMA * B.T @ cost @ A)
        closed = A - B @ gain
        cost = Q + gain.T @ R @ gain + GAMMA * closed.T @ cost @ closed
    return gain, cost


def linear_quadratic(final_cost: torch.Tensor) -> StandIn:
    return StandIn(
        lambda z, a, _: z @ A.T + a @ B.T,
        lambda z, a: -quadratic(z, Q) - quadratic(a, R),
        lambda z: -quadratic(z, final_cost),
    )


def first_action(
    stand_in: StandIn, horizon: int, settings: Any, n_iterations: int = 6, n_samples: int = 512
) -> torch.Tensor:
    noise = torch.randn(n_iterations, horizon, 2, n_samples, 1, generator=torch.Generator().manual_seed(0))
    no_policy = torch.zeros(horizon, 2, 0, 1)
    return mppi(partial(stand_in.returns, START), torch.zeros(horizon, 2, 1), noise, no_policy, settings)[0][0]


SHARP = MPPISettings(n_elites=32, temperature=10.0, min_std=0.01, max_std=2.0)
DEFAULT = MPPISettings(n_elites=64, temperature=0.5, min_std=0.05, max_std=2.0)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize(("settings", "n_iterations", "tolerance"), [(SHARP, 20, 0.002), (DEFAULT, 6, 0.015)])
def test_with_the_exact_value_the_first_action_is_the_optimum(
    horizon: int, settings: Any, n_iterations: int, tolerance: float
) -> None:
    gain, cost = riccati(1_000)
    optimum = -START @ gain.T
    assert optimum.abs().max() < 0.9
    assert optimum.abs().min() > 4 * tolerance
    found = first_action(linear_quadratic(cost), horizon, settings, n_iterations)
    assert_close(found, optimum, atol=tolerance, rtol=0)


def test_without_a_value_it_is_the_optimum_of_the_horizon() -> None:
    horizon = 8
    optimum = -START @ riccati(horizon)[0].T
    found = first_action(linear_quadratic(torch.zeros(2, 2)), horizon, SHARP, n_iterations=20)
    assert_close(found, optimum, atol=0.003, rtol=0)
    short_sighted = first_action(linear_quadratic(torch.zeros(2, 2)), 1, SHARP, n_iterations=20)
    assert_close(short_sighted, torch.zeros(2, 1), atol=0.003, rtol=0)  # the first action shows in no reward


def test_the_gaussian_by_hand() -> None:
    actions = torch.tensor([[[[-1.0, 0.5], [0.0, 0.0], [1.0, 0.5]]]])  # one step, one environment, three sequences
    scores = torch.tensor([[7.0, -50.0, 8.0]])
    mean, std = fitted_gaussian(actions, scores, MPPISettings(2, math.log(2), 0.05, 2.0))  # weights 1/3 and 2/3
    assert_close(mean, torch.tensor([[[1 / 3, 0.5]]]))
    assert_close(std, torch.tensor([[[math.sqrt(8) / 3, 0.05]]]))
    _, std = fitted_gaussian(actions, scores, MPPISettings(2, math.log(2), 0.05, 0.25))
    assert_close(std, torch.tensor([[[0.25, 0.05]]]))
    mean, _ = fitted_gaussian(actions, scores, MPPISettings(1, 1e-6, 0.05, 2.0))
    assert_close(mean, torch.tensor([[[1.0, 0.5]]]))


def test_each_environment_has_its_own_elites() -> None:
    actions = torch.rand(3, 2, 5, 1)
    scores = torch.tensor([[0.0, 1, 2, 3, 4], [4.0, 3, 2, 1, 0]])
    mean, _ = fitted_gaussian(actions, scores, MPPISettings(1, 1.0, 0.05, 2.0))
    assert_close(mean, torch.stack([actions[:, 0, 4], actions[:, 1, 0]], 1))


def counting(continuation: Callable[..., Any] | None = None, n_dynamics: int = 1) -> StandIn:
    """Latents sum up the actions, times the dynamics' number; every step's reward is 1, every value 10 or 10 + a."""
    return StandIn(
        lambda z, a, k: z + (k + 1) * a, lambda z, a: torch.ones(z.shape[:-1]), lambda z: 10 + 0 * z[..., 0],
        continuation, n_dynamics,
    )  # fmt: skip


def test_what_follows_the_end_of_an_episode_earns_nothing() -> None:
    start, actions = torch.zeros(1, 1), torch.tensor([[1.0, 0, 0, 0.0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    actions = actions[:, None, :, None]  # a sequence each that ends at the first, second, third step, and never
    returns = counting(lambda z: (z[..., 0] < 1).float()).returns(start, actions)
    rewards = [1, 1 + GAMMA, 1 + GAMMA + GAMMA**2]
    assert_close(returns, torch.tensor([[*rewards, rewards[2] + 10 * GAMMA**3]]))
    assert_close(counting().returns(start, actions), torch.full((1, 4), rewards[2] + 10 * GAMMA**3))
    half = counting(lambda z: torch.full(z.shape[:-1], 0.5)).returns(start, actions)
    discount = GAMMA / 2
    assert_close(half, torch.full((1, 4), 1 + discount + discount**2 + 10 * discount**3))


def test_q_critics_value_the_policys_action() -> None:
    actions = torch.zeros(1, 1, 1, 1)
    assert_close(counting().returns(torch.zeros(1, 1), actions, q_critic=True), torch.tensor([[1 + GAMMA * 12.0]]))


def test_sequences_are_followed_in_every_dynamics_network() -> None:
    several = counting(n_dynamics=2)
    several.value = lambda z: z[..., 0] ** 2
    actions = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    expected = 1 + GAMMA * torch.tensor([[(1 + 4) / 2, (4 + 16) / 2]])
    assert_close(several.returns(torch.zeros(1, 1), actions), expected)


def test_policy_sequences_are_what_the_actor_does(model: PWM) -> None:
    policy: Any = model.policy
    latents = torch.rand(2, 16).view(2, 2, 8).softmax(-1).view(2, 16)
    noise = torch.randn(3, 2, 4, 2)
    with torch.no_grad():
        found = policy_sequences(policy.world_model, policy.actor, latents, noise)
        states = latents[1:]
        for step in range(3):
            actions = policy.actor.sample(states, noise[step, 1:, 3])
            assert_close(found[step, 1:, 3], actions)
            states = policy.world_model.next_latents(states, actions)
    assert policy_sequences(policy.world_model, policy.actor, latents, noise[:, :, :0]).shape == (3, 2, 0, 2)


def observations(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (number, 3)).astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"critic": "v"}, {"termination_coef": 0.0}])
def test_the_plan_is_worth_more_than_the_policys_actions(settings: dict[str, Any]) -> None:
    trained = make(**settings).learn(60)
    policy: Any = trained.policy
    latents = policy.world_model.encode(torch.as_tensor(observations(4)))
    with torch.no_grad():
        planned, _ = Planner(trained)._plan(latents, torch.zeros(3, 4, 2))
        modes = policy_sequences(policy.world_model, policy.actor, latents, torch.zeros(3, 4, 1, 2))
        both = torch.cat([planned.unsqueeze(2), modes], 2)
        scoring: dict[str, Any] = {
            "gamma": 0.99,
            "terminations": trained.termination_coef > 0,
            "q_critic": policy.q_critic,
        }
        returns = sequence_returns(policy.world_model, policy.actor, policy.critics, latents, both, **scoring)
    assert (returns[:, 0] >= returns[:, 1] - 1e-3).all()
    assert returns[:, 0].mean() > returns[:, 1].mean()


class NoFurther(Exception):  # noqa: N818 - no error
    """The arguments have been seen."""


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_sequences_are_scored_with_the_models_settings(
    model: PWM, monkeypatch: pytest.MonkeyPatch, coefficient: float
) -> None:
    def seen(*args: Any, **kwargs: Any) -> None:
        assert kwargs == {"gamma": 0.97, "terminations": coefficient > 0, "q_critic": True}
        raise NoFurther

    monkeypatch.setattr(planner, "sequence_returns", seen)
    monkeypatch.setattr(model, "gamma", 0.97)
    monkeypatch.setattr(model, "termination_coef", coefficient)
    with pytest.raises(NoFurther):
        Planner(model).predict(observations(1)[0])


def test_the_next_search_starts_from_the_plan_one_step_on(model: PWM, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, mean = [], torch.tensor([[[0.1, 0.2]], [[0.3, 0.4]], [[0.5, 0.6]]]).expand(3, 2, 2)
    monkeypatch.setattr(planner, "mppi", lambda _, start, *rest: (starts.append(start), (mean, 0 * mean))[1])
    both = observations(2)
    acting: Any = Planner(model)
    actions, state = acting.predict(both, None, np.array([True, True]), deterministic=True)
    np.testing.assert_allclose(actions, [[0.1, 0.2]] * 2, rtol=1e-6)
    np.testing.assert_allclose(state[0], np.array([[[0.3, 0.4], [0.5, 0.6], [0, 0]]] * 2))
    _, again = acting.predict(both, state, np.array([False, True]), deterministic=True)
    np.testing.assert_array_equal(again[0], state[0])
    acting.predict(both, state)
    assert_close(starts[0], torch.zeros(3, 2, 2))
    assert_close(starts[1], torch.as_tensor(state[0] * np.array([1, 0], np.float32)[:, None, None]).transpose(0, 1))
    assert_close(starts[2], torch.as_tensor(state[0]).transpose(0, 1))


def test_drawn_actions_are_those_of_the_gaussian(model: PWM, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std = torch.full((3, 4_000, 2), 0.2), torch.tensor([0.1, 0.0]).expand(3, 4_000, 2)
    monkeypatch.setattr(planner, "mppi", lambda *_: (mean, std))
    actions, _ = Planner(model, **FEW | {"horizon": 3, "n_iterations": 1, "n_samples": 4}).predict(observations(4_000))
    np.testing.assert_allclose(actions.mean(0), [0.2, 0.2], atol=0.01)
    np.testing.assert_allclose(actions.std(0), [0.1, 0], atol=0.01)


@pytest.mark.parametrize("n_dynamics", [1, 3])
def test_environments_do_not_change_each_others_actions(monkeypatch: pytest.MonkeyPatch, n_dynamics: int) -> None:
    trained = make(policy_kwargs={"n_dynamics": n_dynamics}).learn(40)
    several = observations(3)
    # All samples are elites: rounding, which batches change, cannot exchange one for another.
    acting: Any = Planner(trained, n_samples=64, n_elites=64)
    drawn: list[Any] = []
    draw = acting._draw
    monkeypatch.setattr(acting, "_draw", lambda *shape: (drawn.append(draw(*shape)), drawn[-1])[1])
    together, state = acting.predict(several)
    for index in range(3):
        parts = iter(each.narrow(-3 if each.ndim > 2 else 0, index, 1) for each in drawn)
        monkeypatch.setattr(acting, "_draw", lambda *shape, parts=parts: next(parts))
        alone, own_state = acting.predict(several[index])
        np.testing.assert_allclose(alone, together[index], atol=1e-5)
        np.testing.assert_allclose(own_state[0][0], state[0][index], atol=1e-5)


def test_the_same_seed_gives_the_same_actions(model: PWM) -> None:
    one = observations(1)[0]

    def actions(**kwargs: Any) -> np.ndarray:
        acting = Planner(model, **FEW, **kwargs)
        first, state = acting.predict(one)
        return np.array([first, acting.predict(one, state)[0], acting.predict(one, deterministic=True)[0]])

    torch.manual_seed(0)
    known = actions(seed=5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(actions(seed=5), known)
    assert torch.equal(torch.get_rng_state(), before)
    assert (actions(seed=6) != known).any(-1).all()  # some are at their bound
    np.testing.assert_array_equal(actions(), actions(seed=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("deterministic", [True, False])
def test_shapes_and_bounds(deterministic: bool) -> None:
    space = spaces.Box(np.array([[-3], [0.1]], np.float32), np.array([[0.7], [0.3]], np.float32))
    trained = make(space_envs(2, action_space=space)).learn(60)
    acting: Any = Planner(trained, **FEW | {"max_std": 50.0})
    action, state = acting.predict(observations(1)[0], deterministic=deterministic)
    assert (action.shape, action.dtype, state[0].shape) == ((2, 1), np.float32, (1, 2, 2))
    assert space.contains(action)
    actions, state = acting.predict(observations(40), deterministic=deterministic)
    assert (actions.shape, actions.dtype, state[0].shape) == ((40, 2, 1), np.float32, (40, 2, 2))
    assert all(space.contains(each) for each in actions)


def test_evaluation_and_videos(tmp_path: Path) -> None:
    trained: Any = make(PictureEnv(length=5)).learn(60)
    acting = Planner(trained, **FEW)
    returns: Any
    returns, lengths = evaluate_policy(acting, trained.env, 3, return_episode_rewards=True)
    assert len(returns) == 3
    assert lengths == [5] * 3
    env = PictureEnv(length=4)
    trained._last_obs = "there"
    own = trained.env.envs[0].unwrapped
    assert len(record_video(acting, own, tmp_path / "own.mp4", n_episodes=2, max_steps=3)) == 2
    assert trained._last_obs is None  # the next learn() resets it
    first = record_video(Planner(trained, **FEW), lambda: PictureEnv(length=4), tmp_path / "a.mp4", seed=1)
    assert first == record_video(Planner(trained, **FEW), env, tmp_path / "b.gif", seed=1)
    assert all((tmp_path / name).stat().st_size > 0 for name in ("own.mp4", "a.mp4", "b.gif"))


def test_videos_carry_the_state_and_normalised_observations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: Any = make(VecNormalize(DummyVecEnv([lambda: PictureEnv(length=5)]))).learn(60)
    acting, seen = Planner(trained, **FEW), []

    def watched(observation: np.ndarray, **kwargs: Any) -> Any:
        seen.append((observation, kwargs["state"], kwargs["episode_start"].tolist()))
        return Planner.predict(acting, observation, **kwargs)

    monkeypatch.setattr(acting, "predict", watched)
    record_video(acting, lambda: PictureEnv(length=3), tmp_path / "video.mp4", seed=1)
    raw = PictureEnv().reset(seed=1)[0]
    np.testing.assert_allclose(seen[0][0], trained.get_vec_normalize_env().normalize_obs(raw))
    assert [state is None for _, state, _ in seen] == [True, False, False]
    assert [start for *_, start in seen] == [[True], [False], [False]]


def space_env(n_observations: int, n_actions: int) -> SpaceEnv:
    return SpaceEnv(spaces.Box(-1, 1, (n_observations,), np.float32), spaces.Box(-2, 2, (n_actions,), np.float32))


def test_many_tasks() -> None:
    tasks = TaskSet([Task("small", partial(space_env, 2, 1), 2, 1), Task("large", partial(space_env, 4, 3), 4, 3)])
    sizes = SMALL_POLICY | {"task_embedding_dim": 5, "task_set": tasks}
    trained: Any = PWM("MultiTaskPolicy", task_vec_env(tasks, seed=0), policy_kwargs=sizes, **SMALL).learn(40)
    acting: Any = Planner(trained, **FEW)
    both = {"observation": np.random.default_rng(0).uniform(-1, 1, (2, 4)).astype(np.float32)}
    both |= {"task": np.array([[0], [1]])}
    for deterministic in (True, False):
        actions, state = acting.predict(both, (np.ones((2, 2, 3)),), None, deterministic)
        assert (actions[0, 1:] == 0).all()  # padding
        assert (state[0][0, :, 1:] == 0).all()
        assert (actions[1] != 0).all()
        assert actions[0, 0] != 0
    returns: Any = evaluate_policy(acting, trained.env, 4, return_episode_rewards=True, warn=False)[0]
    assert len(returns) == 4
    extracted = trained.extract("small", 2)
    action, _ = Planner(extracted, **FEW).predict(np.zeros(2, np.float32))
    assert action.shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon=0 is out of range; allowed: 1 or more"),
        ({"n_samples": 0}, "n_samples=0 is out of range; allowed: 1 or more"),
        ({"n_elites": 513}, "n_elites=513 is out of range; allowed: 1 to 512"),
        ({"n_elites": 0}, "n_elites=0 is out of range; allowed: 1 to 512"),
        ({"n_policy_trajectories": 513}, "n_policy_trajectories=513 is out of range; allowed: 0 to 512"),
        ({"n_iterations": 0}, "n_iterations=0 is out of range; allowed: 1 or more"),
        ({"temperature": 0}, r"temperature=0 is out of range; allowed: \(0, inf\)"),
        ({"temperature": math.nan}, "temperature=nan is out of range"),
        ({"max_std": 0}, r"max_std=0 is out of range; allowed: \(0, inf\)"),
        ({"min_std": -0.1}, r"min_std=-0.1 is out of range; allowed: \[0, 2.0\]"),
        ({"min_std": 3}, r"min_std=3 is out of range; allowed: \[0, 2.0\]"),
        ({"seed": -1}, "seed=-1 is out of range; allowed: 0 or more"),
    ],
)
def test_numbers_out_of_range(model: PWM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planner(model, **arguments)
    with pytest.raises(ValueError, match=message):
        PlanningPWM("MlpPolicy", space_envs(), planner_kwargs=arguments, **SMALL)


def test_arguments_of_the_wrong_kind(model: PWM) -> None:
    with pytest.raises(TypeError, match=r"horizon must be an integer, not 2\.5"):
        Planner(model, horizon=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="temperature must be a number, not '1'"):
        Planner(model, temperature="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an integer, not None"):
        Planner(model, seed=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'elites'"):
        PlanningPWM("MlpPolicy", space_envs(), planner_kwargs={"elites": 3}, **SMALL)
    with pytest.raises(TypeError, match="planner_kwargs must be a dictionary of Planner's arguments, not 'horizon'"):
        PlanningPWM("MlpPolicy", space_envs(), planner_kwargs="horizon", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a PWM, which has a world model, not SAC"):
        Planner(SAC("MlpPolicy", space_envs(), buffer_size=10, device="cpu"))  # type: ignore[arg-type]


def test_an_untrained_world_model_is_refused(tmp_path: Path, model: PWM) -> None:
    untrained = make()
    acting = Planner(untrained, **FEW)
    with pytest.raises(ValueError, match="planning needs a trained world model, and this one has had no update"):
        acting.predict(observations(1)[0])
    model.save_world_model(tmp_path / "world.pt")
    untrained.load_world_model(tmp_path / "world.pt")
    acting.predict(observations(1)[0])
    with pytest.warns(UserWarning, match="nothing was learnt"):
        pretrained = make(learning_starts=40).learn(30)
    with pytest.raises(ValueError, match="trained"):
        Planner(pretrained).predict(observations(1)[0])
    Planner(pretrained.pretrain(2), **FEW).predict(observations(1)[0])


def test_bad_states(model: PWM) -> None:
    acting = Planner(model, **FEW)
    with pytest.raises(ValueError, match=r"state has the shape \(2, 3, 2\); allowed: \(2, 2, 2\), or None"):
        acting.predict(observations(2), (np.zeros((2, 3, 2)),))
    for bad in (np.nan, np.inf):
        seen = observations(2)
        seen[1, 2] = bad
        with pytest.raises(ValueError, match="the observation of environment 1 is not finite"):
            acting.predict(seen)
    broken = np.zeros((2, 2, 2), np.float32)
    broken[1] = np.nan
    with pytest.raises(ValueError, match="state of environment 1 is not finite"):
        acting.predict(observations(2), (broken,))
    acting.predict(observations(2), (broken,), np.array([False, True]))  # a new episode does not ask
    with pytest.raises(ValueError, match="episode_start has 1 entries; allowed: 2, or None"):
        acting.predict(observations(2), None, np.array([True]))


def planning(**kwargs: Any) -> PlanningPWM:
    return PlanningPWM("MlpPolicy", space_envs(), policy_kwargs=SMALL_POLICY, planner_kwargs=FEW, **(SMALL | kwargs))


def test_a_planning_model_learns_as_pwm_does(model: PWM, tmp_path: Path) -> None:
    acting = planning()
    before = acting.predict(observations(1)[0], deterministic=True)
    assert before[1] is None  # the policy's
    np.testing.assert_array_equal(before[0], acting.policy.predict(observations(1)[0], deterministic=True)[0])
    acting.learn(60)
    for name, tensor in model.policy.state_dict().items():
        assert_close(acting.policy.state_dict()[name], tensor, rtol=0, atol=0)
    expected: Any = Planner(acting, **FEW, seed=SMALL["seed"]).predict(observations(1)[0])
    acting.save(tmp_path / "model.zip")
    for each in (copy.deepcopy(acting), acting, PlanningPWM.load(tmp_path / "model.zip", device="cpu")):
        state: Any
        actions, state = each.predict(observations(1)[0])
        np.testing.assert_array_equal(actions, expected[0])
        np.testing.assert_array_equal(state[0], expected[1][0])
    acting.set_random_seed(SMALL["seed"])
    np.testing.assert_array_equal(acting.predict(observations(1)[0])[0], expected[0])
    model.save(tmp_path / "pwm.zip")
    loaded = PlanningPWM.load(tmp_path / "pwm.zip", device="cpu", planner_kwargs=FEW)
    np.testing.assert_array_equal(loaded.predict(observations(1)[0])[0], expected[0])


def test_a_planning_model_is_freed_when_it_is_deleted() -> None:
    acting = planning().learn(40)
    acting.predict(observations(1)[0])
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(acting)
        del acting
        assert alive() is None
    finally:
        gc.enable()


def test_critics_are_compared_with_the_policy(model: PWM, monkeypatch: pytest.MonkeyPatch) -> None:
    acting = planning().learn(60)
    monkeypatch.setattr(Planner, "predict", None)  # would fail
    found = []
    for each in (model, acting):
        env = space_envs()
        env.seed(0)
        each.set_random_seed(3)
        found.append(each.value_calibration(env, 2))
    assert found[0] == found[1]


HYPERPARAMETERS: dict[str, Any] = SMALL | {"policy_kwargs": "dict(net_arch=[16], latent_dim=16)"}
del HYPERPARAMETERS["seed"], HYPERPARAMETERS["device"]


def spec_of(algo: str, label: str | None = None, **hyperparameters: Any) -> RunSpec:
    numbers: dict[str, Any] = {
        "seed": 3,
        "steps": 60,
        "eval_every": 15,
        "eval_episodes": 2,
        "checkpoint_every": 40,
        "threads": 1,
    }
    return RunSpec(
        env="compare_toys:Global-v0",
        algo=algo,
        label=label,
        device="cpu",
        hyperparameters=HYPERPARAMETERS | hyperparameters,
        source="here",
        **numbers,
    )


def test_a_benchmark_of_policy_and_planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    predict = Planner.predict

    def watched(
        self: Any, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        given.append((state is None, bool(episode_start[0]), deterministic))
        return predict(self, observation, state, episode_start, deterministic)

    monkeypatch.setattr(Planner, "predict", watched)
    gym.make(spec_of("pwm").env)  # registers it
    monkeypatch.setattr(gym.spec("Global-v0"), "max_episode_steps", 20)
    specs = {
        "pwm": spec_of("pwm"),
        "planning": spec_of("sb3_pwm:PlanningPWM", "planning", planner_kwargs=FEW),
    }
    curves: dict[str, Any] = {}
    for name, spec in specs.items():
        for folder in (tmp_path / name, tmp_path / f"{name} again"):
            assert worker.run_job(spec, folder, "here")
            assert read_run(folder).state == FINISHED
            curves.setdefault(name, []).append(read_run(folder).rows)
    trained = {name: [(row.env_steps, row.logged) for row in rows] for name, (rows, _) in curves.items()}
    assert repr(trained["planning"]) == repr(trained["pwm"])  # also where they are NaN
    returns = {name: [[row.return_mean for row in rows] for rows in pair] for name, pair in curves.items()}
    assert returns["planning"][0] == returns["planning"][1]
    assert returns["planning"][0][:2] == returns["pwm"][0][:2]  # at 0 and 15 steps there was no update yet
    assert all(a != b for a, b in zip(returns["planning"][0][2:], returns["pwm"][0][2:], strict=True))
    # 2 runs with 3 evaluations of 2 episodes with 20 steps: states are passed on, and forgotten between episodes
    assert len(given) == 2 * 3 * 2 * 20
    assert all(deterministic for *_, deterministic in given)
    assert sum(without for without, *_ in given) == 2 * 3
    assert sum(start for _, start, _ in given) == 2 * 3 * 2


def test_the_command_takes_it_by_its_import_path() -> None:
    numbers = {"steps": 60, "eval_every": 30, "eval_episodes": 2, "checkpoint_every": 40, "threads": 1}
    algos = ["pwm", "planning=sb3_pwm:PlanningPWM"]
    plan = make_plan(["Pendulum-v1"], algos, [0], device="cpu", hyperparameters={}, **numbers)
    assert [spec.name for spec in plan] == ["pwm", "planning"]
