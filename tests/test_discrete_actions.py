import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import BOX, SMALL, SMALL_POLICY, NoHostReads, SpaceEnv, make, same, space_envs
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn
from torch.distributions import Categorical
from torch.testing import assert_close

from sb3_pwm import PWM, Planner
from sb3_pwm.actions import action_codes
from sb3_pwm.imagination import imagine
from sb3_pwm.learner import Learner
from sb3_pwm.losses import behaviour_loss, critic_gap, pessimistic_values, replay_targets, state_values
from sb3_pwm.multitask.policies import MultiTaskPolicy
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.networks import CategoricalActor, CriticEnsemble
from sb3_pwm.nn.action_codes import ActionCodes
from sb3_pwm.replay import statistics
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.world_model import WorldModel

DISCRETE, MULTI, BITS = spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)
SPACES = (DISCRETE, MULTI, BITS)
SHIFTED = (spaces.Discrete(3, start=-2), spaces.MultiDiscrete([2, 3], start=[4, -1]))
every_space = pytest.mark.parametrize("space", SPACES, ids=str)
LATENT_DIM = 5
CONTINUOUS = {  # sums of absolute parameters, at revision 725696a
    "world_model.dynamics.0.3.weight": 0.783765,
    "actor.net.0.weight": 31.613350,
    "actor.net.3.weight": 7.726461,
    "critics.critics.1.0.weight": 79.373377,
    "entropy_coefficient.log_ent_coef": 1.616285,
}


def actor_of(codes: ActionCodes, latent_dim: int = LATENT_DIM, hidden: tuple[int, ...] = (10,)) -> CategoricalActor:
    """A small actor that prefers some actions."""
    actor = CategoricalActor(latent_dim, codes, hidden).double()
    for parameter in actor.parameters():
        nn.init.normal_(parameter, std=0.7)
    return actor


def critics_of(codes: ActionCodes, number: int = 3) -> CriticEnsemble:
    critics = CriticEnsemble(LATENT_DIM + codes.size, [10], number).double()
    for parameter in critics.parameters():
        nn.init.normal_(parameter, std=0.7)
    return critics


def random_codes() -> ActionCodes:
    """Codes of 1 to 4 components with 1 to 5 categories, which start anywhere."""
    count = np.random.randint(1, 5)
    sizes, starts = np.random.randint(1, 6, count), np.random.randint(-3, 4, count)
    if np.random.rand() < 0.4:  # all alike
        sizes[:], starts[:] = sizes[0], starts[0]
    return ActionCodes(tuple(sizes.tolist()), tuple(starts.tolist()))


def all_integers(codes: ActionCodes) -> torch.Tensor:
    ranges = [range(start, start + size) for size, start in zip(codes.sizes, codes.starts, strict=True)]
    return torch.tensor(list(itertools.product(*ranges)))


# Codes


def test_codes_are_one_hot_and_come_back() -> None:
    for _ in range(60):
        codes = random_codes()
        actions = all_integers(codes)
        encoded = codes.encode(actions)
        assert encoded.shape == (codes.n_joint, codes.size)
        assert encoded.dtype == torch.float32
        assert set(encoded.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(torch.cat([part.sum(-1) for part in codes.groups(encoded)], -1), torch.ones(actions.shape))
        assert torch.equal(codes.decode(encoded), actions)
        assert torch.equal(codes.all_codes(), encoded)  # in the same order
        assert len(encoded.unique(dim=0)) == codes.n_joint
        folded = actions.expand(2, *actions.shape)
        assert torch.equal(codes.decode(codes.encode(folded)), folded)
        assert not codes.encode(torch.tensor([[start - 1 for start in codes.starts]])).any()
        assert codes.max_entropy == pytest.approx(math.log(codes.n_joint))


@pytest.mark.parametrize("space", [*SPACES, *SHIFTED], ids=str)
def test_codes_of_spaces(space: spaces.Space[Any]) -> None:
    codes = action_codes(space)
    space.seed(0)
    actions = np.array([space.sample() for _ in range(50)])
    stored = torch.as_tensor(actions.reshape(50, -1))
    assert torch.equal(codes.decode(codes.encode(stored)), stored.long())


def test_numbers_have_no_codes() -> None:
    assert action_codes(BOX) is None


# The actor


@pytest.mark.parametrize("codes", [ActionCodes((3,), (0,)), ActionCodes((2, 2), (0, 0)), ActionCodes((2, 3), (0, 0))])
def test_entropy_and_probabilities_are_those_of_torch(codes: ActionCodes) -> None:
    actor, latents = actor_of(codes), torch.randn(4, LATENT_DIM, dtype=torch.float64)
    logits = actor.net(latents).split(list(codes.sizes), -1)
    parts = [Categorical(logits=part) for part in logits]
    actions, log_probs = actor.sample_with_log_prob(latents)
    assert_close(log_probs, -sum(part.entropy() for part in parts))
    chosen = codes.decode(actions)
    expected = sum(part.log_prob(chosen[:, i]) for i, part in enumerate(parts))
    assert_close(actor.log_prob(latents, actions), expected)
    assert torch.equal(codes.decode(actor.mode(latents)), torch.stack([part.logits.argmax(-1) for part in parts], -1))
    assert_close(actor.distance(latents, actions), -expected / len(codes.sizes))


def test_actions_are_drawn_with_their_probabilities() -> None:
    codes = ActionCodes((2, 3), (0, 0))
    actor, count = actor_of(codes), 40_000
    latents = torch.randn(1, LATENT_DIM, dtype=torch.float64)
    drawn = actor.sample(latents.expand(count, -1)).detach()
    assert set(drawn.unique().tolist()) == {0.0, 1.0}  # exactly
    every: Any = actor.all_actions(latents)
    joint, log_probs = every
    frequencies = (drawn @ joint.T == len(codes.sizes)).double().mean(0)
    probs = log_probs.exp()[0]
    assert_close(probs.sum(), torch.ones((), dtype=torch.float64))
    assert ((frequencies - probs).abs() < 5 * (probs / count).sqrt()).all()


def test_an_untrained_actor_prefers_nothing() -> None:
    actor = CategoricalActor(LATENT_DIM, ActionCodes((2, 3), (0, 0)), [10])
    _, log_probs = actor.sample_with_log_prob(torch.randn(7, LATENT_DIM))
    assert_close(log_probs, torch.full((7,), -math.log(6)))


def test_many_actions_are_not_enumerated() -> None:
    actor = CategoricalActor(LATENT_DIM, ActionCodes((65,), (0,)), [10])
    assert actor.all_actions(torch.randn(1, LATENT_DIM)) is None
    critics = CriticEnsemble(LATENT_DIM + 65, [10], 2)
    latents = torch.randn(6, LATENT_DIM)
    torch.manual_seed(3)
    values, log_probs = state_values(critics, actor, latents, q_critic=True)
    torch.manual_seed(3)
    assert torch.equal(values, critics(latents, actor.sample(latents)).mean(0))
    assert_close(log_probs, torch.full((6,), -math.log(65)))


# Gradients through rollouts


class Table:
    """A world model whose latents are one-hot states: all is linear in state and code."""

    def __init__(self, n_states: int, n_actions: int, square: bool = False) -> None:
        self.transitions = torch.rand(n_states, n_actions, n_states, dtype=torch.float64).softmax(-1)
        self.reward = torch.randn(n_states, n_actions, dtype=torch.float64)
        self.value = torch.randn(n_states, n_actions, dtype=torch.float64)
        self.square = square

    def next_latents(self, latents: torch.Tensor, actions: torch.Tensor, step: int) -> torch.Tensor:
        return torch.einsum("bs,ba,sat->bt", latents, actions, self.transitions)

    def outcomes(
        self, latents: torch.Tensor, actions: torch.Tensor, *, terminations: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rewards = torch.einsum("hbs,hba,sa->hb", latents[:-1], actions, self.reward)
        rewards = rewards.square() if self.square else rewards
        return rewards, torch.ones_like(rewards)

    def critics(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...s,...a,sa->...", latents, actions, self.value)[None]

    def expected_return(self, probs: torch.Tensor, state: torch.Tensor, horizon: int, gamma: float) -> torch.Tensor:
        """The return of a policy that does not look at the state, from the value of every action."""
        if not horizon:
            return probs @ self.value.T @ state
        reward = (self.reward.square() if self.square else self.reward).T @ state
        following = torch.einsum("s,sat->at", state, self.transitions)
        later = torch.stack([self.expected_return(probs, each, horizon - 1, gamma) for each in following])
        return probs @ (reward + gamma * later)


def blind_actor(codes: ActionCodes, n_states: int) -> CategoricalActor:
    """An actor whose probabilities depend on its bias alone."""
    actor = CategoricalActor(n_states, codes, ()).double()
    last: Any = actor.net[-1]
    nn.init.normal_(last.bias)
    return actor


def straight_through_gradient(
    table: Any, actor: Any, count: int, horizon: int, gamma: float = 0.9
) -> tuple[torch.Tensor, torch.Tensor]:
    start = torch.zeros(count, len(table.reward), dtype=torch.float64)
    start[:, 0] = 1
    rollout = imagine(table, actor, start, horizon)
    values, _ = state_values(table.critics, actor, rollout.latents[-1], q_critic=True)
    returns = imagined_returns(rollout.rewards, continuation_weights(rollout.continuations), values, gamma)
    bias = actor.net[-1].bias
    halves = torch.stack([torch.autograd.grad(half.mean(), bias, retain_graph=True)[0] for half in returns.chunk(40)])
    return halves.mean(0), halves.std(0) / math.sqrt(len(halves))


def finite_difference(table: Table, actor: Any, horizon: int, gamma: float = 0.9, step: float = 1e-5) -> torch.Tensor:
    bias, start = actor.net[-1].bias.detach(), torch.eye(len(table.reward), dtype=torch.float64)[0]
    returns = [
        [table.expected_return((bias + sign * shift).softmax(-1), start, horizon, gamma) for sign in (1, -1)]
        for shift in step * torch.eye(len(bias), dtype=torch.float64)
    ]
    return torch.tensor([(up - down) / (2 * step) for up, down in returns], dtype=torch.float64)


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_straight_through_gradients_are_exact_where_all_is_linear_in_the_code(horizon: int) -> None:
    """And the policy does not look at the state: the rollout's gradient does not flow through what it sees."""
    table, actor = Table(4, 3), blind_actor(ActionCodes((3,), (0,)), 4)
    found, error = straight_through_gradient(table, actor, 20_000, horizon)
    expected = finite_difference(table, actor, horizon)
    assert expected.abs().max() > 0.05
    assert ((found - expected).abs() < 4 * error + 1e-7).all()
    assert horizon or error.max() < 1e-12  # all actions' values: no noise


def test_straight_through_gradients_are_off_by_no_more_than_the_curvature() -> None:
    """Of (w a)^2 the slope at a drawn action k misses the difference to action a by (w_a - w_k)^2."""
    table = Table(2, 3, square=True)
    actor: Any = blind_actor(ActionCodes((3,), (0,)), 2)
    table.value.zero_()
    found, error = straight_through_gradient(table, actor, 20_000, 1)
    expected = finite_difference(table, actor, 1)
    probs, weights = actor.net[-1].bias.detach().softmax(-1), table.reward[0]
    slopes = torch.diag(probs) - probs[:, None] * probs  # of p_a with respect to bias i
    missed = (weights[:, None] - weights).square() @ probs  # of action a, on average over the drawn k
    assert_close(found, expected - slopes @ missed, rtol=0, atol=float(5 * error.max()))
    assert ((found - expected).abs() <= slopes.abs() @ missed + 4 * error).all()
    assert ((found - expected).abs() > 8 * error).any()


def test_rollouts_hold_codes_and_entropies(make_world_model: Callable[..., WorldModel]) -> None:
    codes = ActionCodes((2,), (0,))  # as many numbers as the fixture's actions have
    actor = actor_of(codes, latent_dim=8).float()
    rollout = imagine(make_world_model(), actor, torch.rand(6, 8), 3)
    assert rollout.actions.shape == (3, 6, 2)
    assert set(rollout.actions.unique().tolist()) == {0.0, 1.0}
    assert_close(rollout.log_probs, actor.sample_with_log_prob(rollout.latents[:-1])[1])
    gradients = torch.autograd.grad(rollout.rewards[-1].sum(), list(actor.parameters()))
    assert all(gradient.any() for gradient in gradients)


# Values


def every_action_in_turn(
    critics: CriticEnsemble, actor: Any, latents: torch.Tensor, reduce: Callable[..., Any]
) -> torch.Tensor:
    """Sum over all actions, one after the other, of probability and reduced value."""
    codes = actor.codes
    total: Any = 0
    for action in all_integers(codes):
        code = codes.encode(action).double().expand(len(latents), -1)
        total = total + actor.log_prob(latents, code).exp() * reduce(critics(latents, code))
    return total


@pytest.mark.parametrize("codes", [ActionCodes((4,), (0,)), ActionCodes((2, 3), (0, 1)), ActionCodes((2, 2), (0, 0))])
def test_values_are_means_over_all_actions(codes: ActionCodes) -> None:
    actor, critics = actor_of(codes), critics_of(codes)
    latents = torch.randn(5, LATENT_DIM, dtype=torch.float64)
    values, log_probs = state_values(critics, actor, latents, q_critic=True)
    expected = every_action_in_turn(critics, actor, latents, lambda values: values.mean(0))
    assert_close(values, expected)
    assert_close(log_probs, actor.sample_with_log_prob(latents)[1])
    parameters = list(actor.parameters())
    for found, wanted in zip(
        torch.autograd.grad(values.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        assert_close(found, wanted)


@pytest.mark.parametrize("pessimism", [0.0, 0.5, 1.0])
def test_targets_hold_the_mean_over_all_actions(pessimism: float) -> None:
    codes = ActionCodes((2, 3), (0, 0))
    actor, critics = actor_of(codes), critics_of(codes)
    last = torch.randn(4, LATENT_DIM, dtype=torch.float64)
    rewards = torch.randn(1, 4, dtype=torch.float64)
    terminations = torch.tensor([[0, 0, 1, 0]], dtype=torch.float64)
    samples = SequenceSamples(torch.empty(0), torch.empty(0), rewards, terminations, torch.ones_like(rewards))
    targets, metrics = replay_targets(critics, actor, samples, rewards, last, gamma=0.9, pessimism=pessimism)
    with torch.no_grad():
        values = every_action_in_turn(critics, actor, last, lambda values: pessimistic_values(values, pessimism))
        spreads = every_action_in_turn(critics, actor, last, lambda values: values.amax(0) - values.amin(0))
        sizes = every_action_in_turn(critics, actor, last, lambda values: values.mean(0).abs())
    assert_close(targets, rewards[0] + 0.9 * (1 - terminations[0]) * values)
    assert_close(metrics["critic_gap"], spreads.mean() / (0.1 * sizes.mean()))


def test_the_gap_of_all_actions_is_weighted() -> None:
    values = torch.tensor([[[1.0, 5.0]], [[3.0, 9.0]]])
    assert_close(critic_gap(values, 0.9, torch.tensor([[1.0, 0.0]])), critic_gap(values[..., 0], 0.9))


def test_the_behaviour_loss_is_the_likelihood_of_good_actions() -> None:
    codes = ActionCodes((2, 3), (0, 0))
    actor, latents = actor_of(codes), torch.randn(2, 4, LATENT_DIM, dtype=torch.float64)
    actions = codes.encode(torch.stack([torch.randint(2, (2, 4)), torch.randint(3, (2, 4))], -1)).double()
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.float64)
    advantages = torch.tensor([[1, -1, 2, 0], [3, 1, -1, 1]], dtype=torch.float64)
    samples = SequenceSamples(torch.empty(0), actions, mask, mask, mask)
    found = behaviour_loss(actor, latents, samples, advantages)
    log_probs = actor.log_prob(latents, actions)
    assert_close(found, -(log_probs[0, 0] + log_probs[0, 2] + log_probs[1, 0]) / (2 * mask.sum()))
    before = found.item()
    optimizer = torch.optim.Adam(actor.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        behaviour_loss(actor, latents, samples, advantages).backward()
        optimizer.step()
    assert behaviour_loss(actor, latents, samples, advantages).item() < before / 4


# As an SB3 algorithm


@pytest.mark.parametrize("n_envs", [1, 3])
@every_space
def test_predict_gives_what_sb3_gives(space: Any, n_envs: int) -> None:
    model = make(space_envs(n_envs, action_space=space))
    sb3: list[BaseAlgorithm] = []
    sb3.append(PPO("MlpPolicy", space_envs(n_envs, action_space=space), n_steps=2, batch_size=2, device="cpu"))
    if space is DISCRETE:
        sb3.append(DQN("MlpPolicy", space_envs(n_envs, action_space=space), buffer_size=10, device="cpu"))
    observations: Any = model.get_env().reset()
    for other, deterministic, seen in itertools.product(sb3, [True, False], [observations, observations[0]]):
        expected, _ = other.predict(seen, deterministic=deterministic)
        found, _ = model.predict(seen, deterministic=deterministic)
        assert type(found) is type(expected)
        assert found.shape == expected.shape
        # PPO gives bits as float32; here all steps have the space's type, as the random ones do.
        assert found.dtype == space.dtype
        assert space is BITS or found.dtype == expected.dtype
        assert all(space.contains(each) for each in found.reshape(-1, *space.shape))
    assert len(np.unique([model.predict(observations[0])[0] for _ in range(60)], axis=0)) > 1


@pytest.mark.parametrize("space", SHIFTED, ids=str)
def test_spaces_that_start_elsewhere(space: Any) -> None:
    model = make(space_envs(2, action_space=space)).learn(60)  # the environment refuses others
    size = model.replay_buffer.size()
    stored = model.replay_buffer.actions[:size].reshape(-1, *space.shape)
    assert all(space.contains(each) for each in stored)
    actions = torch.as_tensor(model.replay_buffer.actions[0])
    assert torch.equal(model.policy.action_codes.decode(model.policy.encode_actions(actions)), actions)


@pytest.mark.parametrize("critic", ["q", "v"])
@every_space
def test_learning_stores_integers(space: Any, critic: Literal["q", "v"]) -> None:
    model = make(space_envs(2, action_space=space), critic=critic)
    before = {name: value.clone() for name, value in model.policy.actor.state_dict().items()}
    model.learn(80)
    assert model._n_updates > 0
    assert model.n_skipped_updates == 0
    buffer = model.replay_buffer
    assert buffer.actions.dtype == np.dtype(space.dtype)
    assert buffer.actions.shape[2:] == (max(1, math.prod(space.shape)),)
    assert all(space.contains(each) for each in buffer.actions[: buffer.size()].reshape(-1, *space.shape))
    assert len(np.unique(buffer.actions[:10].reshape(20, -1), axis=0)) > 1  # random ones
    assert any(not torch.equal(before[name], value) for name, value in model.policy.actor.state_dict().items())
    assert model.logger.name_to_value.get("train/entropy", 1.0) > 0


@pytest.mark.parametrize("horizon", [0, 3])
def test_many_discrete_actions_learn_too(horizon: int) -> None:
    model = make(space_envs(action_space=spaces.Discrete(100)), horizon=horizon).learn(60)
    assert model._n_updates > 0
    assert model.n_skipped_updates == 0


@pytest.mark.parametrize("space", [DISCRETE, MULTI, spaces.Discrete(100)], ids=str)
def test_the_host_reads_nothing_within_an_update(space: spaces.Space[Any]) -> None:
    """So that a CUDA graph can hold the whole update."""
    model = make(space_envs(action_space=space)).learn(40)
    learner, samples, transitions = model._learner, model._sample(model.batch_size), model._critic_samples()
    own: Any = Learner
    with NoHostReads():
        latents = own.update_model.__wrapped__(learner, samples)
        own.update_policy.__wrapped__(learner, samples, transitions, latents, bc_coef=0.5)


@every_space
def test_save_and_load(space: spaces.Space[Any], tmp_path: Path) -> None:
    model = make(space_envs(action_space=space)).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    observations = np.stack([BOX.sample() for _ in range(5)])
    for weights_only in (False, True):
        loaded = PWM.load(tmp_path / "model", env=space_envs(action_space=space), weights_only=weights_only)
        assert same(loaded.get_parameters(), model.get_parameters())
        expected, _ = model.predict(observations, deterministic=True)
        assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
        loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.learn(20, reset_num_timesteps=False)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(str(tmp_path / "policy"))
    assert np.array_equal(policy.predict(observations, deterministic=True)[0], expected)
    actor = type(model.policy.actor).load(str(tmp_path / "policy"))
    assert np.array_equal(actor.predict(observations, deterministic=True)[0], expected)


def test_a_world_model_with_other_actions_is_refused(tmp_path: Path) -> None:
    make(space_envs(action_space=DISCRETE)).save_world_model(tmp_path / "model.pt")
    make(space_envs(action_space=DISCRETE)).load_world_model(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not fit"):
        make(space_envs(action_space=spaces.Discrete(4))).load_world_model(tmp_path / "model.pt")


@pytest.fixture
def dqn_buffer(tmp_path: Path) -> Path:
    dqn = DQN("MlpPolicy", space_envs(action_space=DISCRETE), buffer_size=200, learning_starts=50, device="cpu", seed=0)
    dqn.learn(120)
    dqn.save_replay_buffer(tmp_path / "dqn")
    return tmp_path / "dqn.pkl"


def test_a_buffer_of_dqn_is_learnt_from(dqn_buffer: Path) -> None:
    model = make(space_envs(action_space=DISCRETE))
    model.load_replay_buffer(dqn_buffer)
    assert model.sequences.n_transitions == 120
    samples = model._sample(30)
    assert samples.actions.shape == (SMALL["sequence_length"], 30, 3)
    assert torch.equal(samples.actions.sum(-1), torch.ones(samples.actions.shape[:2]))
    model.learn(40)
    assert model._n_updates > 0
    with pytest.raises(ValueError, match="action_space is"):
        make(space_envs(action_space=spaces.Discrete(4))).load_replay_buffer(dqn_buffer)


def test_stored_actions_are_checked() -> None:
    buffer = ReplayBuffer(10, BOX, DISCRETE, device="cpu")
    for _ in range(6):
        buffer.add(BOX.sample(), BOX.sample(), np.array([1]), np.zeros(1), np.ones(1), [{}])
    buffer.actions[4] = 3
    model = make(space_envs(action_space=DISCRETE))
    model.replay_buffer = buffer
    with pytest.raises(ValueError, match=r"actions hold 3 in row 4; allowed: whole numbers from 0 to 2"):
        model.learn_offline(1)


@pytest.mark.parametrize("critic", ["q", "v"])
@every_space
def test_learning_from_data(space: spaces.Space[Any], critic: Literal["q", "v"], tmp_path: Path) -> None:
    data: Any = make(space_envs(2, action_space=space), learning_starts=100).learn(100).replay_buffer
    kwargs: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "buffer_size"}
    model = PWM.from_dataset(data, policy_kwargs=SMALL_POLICY, critic=critic, **kwargs)
    model.learn_offline(10, log_interval=None)
    assert model.n_skipped_updates == 0
    metrics = model._learner.pop_metrics()
    assert metrics["behaviour_loss"] > 0 or critic == "q"  # perhaps no action was better than the average
    assert model.predict(BOX.sample())[0].shape == space.shape


def test_the_behaviour_weight_holds_the_policy_to_the_data() -> None:
    """All recorded actions are the same, and with V critics all count."""
    env = space_envs(action_space=MULTI)
    data = ReplayBuffer(200, BOX, MULTI, device="cpu")
    for _ in range(200):
        data.add(BOX.sample(), BOX.sample(), np.array([[1, 2]]), np.random.randn(1), np.ones(1), [{}])
    model = make(env, critic="v", bc_coef=100.0, learning_rate=3e-3)
    model.replay_buffer = data
    model.learn_offline(60, log_interval=None)
    actions, _ = model.predict(np.stack([BOX.sample() for _ in range(20)]), deterministic=True)
    assert (actions == [1, 2]).all()


@every_space
def test_sacs_names(space: Any) -> None:
    model = make(space_envs(2, action_space=space)).learn(60)
    observations = torch.as_tensor(model.get_env().reset())
    actions = model.actor(observations)
    assert actions.shape == (2, *space.shape)
    assert torch.equal(model.actor(observations, deterministic=True), model.actor(observations, True))
    for given in (actions, actions.reshape(2, -1)):  # as the policy gives them, and as buffers hold them
        values = model.critic(observations, given)
        assert len(values) == 2
        assert values[0].shape == (2, 1)
    drawn, log_probs = model.actor.action_log_prob(observations)
    assert drawn.shape == (2, *space.shape)
    assert log_probs.shape == (2,)
    assert (log_probs < 0).all()
    assert (log_probs > -30).all()
    with pytest.raises(ValueError, match="are not integers of"):
        model.critic(observations, torch.full_like(actions, 9))
    with pytest.raises(ValueError, match="are not integers of"):
        model.critic(observations, torch.zeros(2, 7))


def test_diagnostics() -> None:
    env = space_envs(action_space=MULTI)
    model = make(env).learn(150)
    buffer: Any = model.replay_buffer
    errors = model.model_errors(buffer, horizon=3, n_windows=50)
    assert np.isfinite(errors["latent"]).all()
    for deterministic in (True, False):
        estimate = model.estimate_return(buffer, n_updates=20, deterministic=deterministic)
        assert estimate.low < estimate.mean < estimate.high
    calibration = model.value_calibration(space_envs(2, action_space=MULTI), n_episodes=4)
    assert np.isfinite(calibration)
    assert np.isfinite(model.model_gap(space_envs(action_space=MULTI), n_episodes=2))


def test_actions_of_environments_become_codes() -> None:
    model = make(space_envs(action_space=MULTI))
    found = model.policy.actions_for_networks(np.array([[1, 0], [0, 2]]))
    assert found.tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    box = make(space_envs(action_space=spaces.Box(-2, 4, (1, 2), np.float64)))
    assert_close(box.policy.actions_for_networks(np.array([[[1.0, 4.0]]])), torch.tensor([[0.0, 1.0]]))


def test_dict_observations_and_many_envs() -> None:
    observation_space = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
    env = space_envs(3, observation_space, spaces.Discrete(2))
    model = make(env, policy="MultiInputPolicy").learn(90)
    model.set_env(space_envs(2, observation_space, spaces.Discrete(2)))
    model.learn(40, reset_num_timesteps=False)


@pytest.mark.parametrize(("space", "largest"), [(DISCRETE, math.log(3)), (MULTI, math.log(6)), (BITS, math.log(8))])
def test_the_target_entropy_is_a_share_of_the_largest(space: spaces.Space[Any], largest: float) -> None:
    actor = make(space_envs(action_space=space)).policy.actor
    assert actor.target_entropy(torch.zeros(1, 16)) == pytest.approx(0.15 * largest)


# What cannot be


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({"a": DISCRETE, "b": BOX}), r"action_space is Dict.*allowed: Box, Discrete.*ActionWrapper"),
        (spaces.Tuple([DISCRETE, DISCRETE]), r"action_space is Tuple.*MultiDiscrete"),
        (spaces.Text(3), "allowed: Box, Discrete, MultiDiscrete, MultiBinary"),
        (spaces.Discrete(10_001), r"10,001 discrete actions; allowed: 10,000 or fewer.*MultiDiscrete.*Box"),
        (spaces.MultiDiscrete([5_001, 5_000]), "10,001 discrete actions"),
        (spaces.MultiBinary([2, 3]), "with 2 axes; allowed: one. Flatten it to MultiBinary"),
        (spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])), "with 2 axes; allowed: one. Flatten it to MultiDiscrete"),
    ],
)
def test_other_action_spaces_are_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(space_envs(action_space=space))
    with pytest.raises(ValueError, match=message):
        PWM("MlpPolicy", SpaceEnv(action_space=space))


def test_noise_is_refused(tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    env = space_envs(action_space=DISCRETE)
    with pytest.raises(ValueError, match=r"action_noise cannot be added to discrete actions, Discrete\(3\)"):
        make(env, action_noise=noise)
    make(env).save(tmp_path / "model")
    with pytest.raises(ValueError, match="action_noise cannot be added"):
        PWM.load(tmp_path / "model", action_noise=noise)


def test_planning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"planning searches among numbers, not in Discrete\(3\)"):
        Planner(make(space_envs(action_space=DISCRETE)))


def test_tasks_with_discrete_actions_are_refused() -> None:
    tasks = TaskSet([Task("a", None, 3, 2)])
    with pytest.raises(ValueError, match=r"several tasks have Box actions, not MultiDiscrete"):
        MultiTaskPolicy(tasks.observation_space, MULTI, lambda _: 1e-3, task_set=tasks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the action space must be a Box"):
        Task.from_env("a", lambda: SpaceEnv(action_space=DISCRETE))


def test_continuous_runs_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run computed before there were discrete actions: the same random numbers, the same parameters."""
    take = statistics.take_scales
    taken: list[bool] = []  # once, as in that run

    def take_once(*args: Any, **kwargs: Any) -> bool:
        taken.append(not taken and take(*args, **kwargs))
        return taken[-1]

    monkeypatch.setattr(statistics, "take_scales", take_once)
    model = make(space_envs(2), actor_batch_size=None, critic_updates=2, infer_noise=False, train_freq=4).learn(120)
    drawn = float(torch.rand(())), np.random.rand()
    assert drawn == (0.3190423846244812, 0.7652705837982595)
    sums = {name: value.double().abs().sum().item() for name, value in model.policy.named_parameters()}
    for name, total in CONTINUOUS.items():
        assert sums[name] == pytest.approx(total, rel=1e-4)  # processors round differently


# Learning


class MatchEnv(gym.Env[Any, Any]):
    """Shows the codes of all actions in turn, and pays for the share of components that are taken."""

    def __init__(self, space: Any) -> None:
        self.action_space = space
        codes: Any = action_codes(space)
        self.codes = codes
        self.actions = all_integers(codes)
        self.observation_space = spaces.Box(0, 1, (self.codes.size,), np.float32)

    def show(self) -> Any:
        self.wanted = self.actions[self.place % len(self.actions)]
        return self.codes.encode(self.wanted).numpy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.place = 0, int(self.np_random.integers(len(self.actions)))
        return self.show(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time, self.place = self.time + 1, self.place + 1
        reward = float(np.mean(np.reshape(action, -1) == self.wanted.numpy()))
        return self.show(), reward, False, self.time == 10, {}


class GridEnv(gym.Env[Any, Any]):
    """Walk from one corner to the opposite one, in 4 steps at best; other steps cost 0.1, and 20 are too many."""

    observation_space = spaces.MultiDiscrete([3, 3])
    action_space = spaces.Discrete(4)
    MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = np.zeros(2, np.int64), 0
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.place = np.clip(self.place + self.MOVES[action], 0, 2)
        arrived = bool((self.place == 2).all())
        return self.place.copy(), 1.0 if arrived else -0.1, arrived, self.time == 20, {}


QUICK: dict[str, Any] = {
    "learning_starts": 200,
    "pretrain_steps": 100,
    "train_freq": 4,
    "horizon": 2,
    "seed": 0,
    "device": "cpu",
}
QUICK_POLICY = {"net_arch": [48], "latent_dim": 32}


@pytest.mark.parametrize(
    ("env", "kwargs", "enough"),
    [(MatchEnv, {"space": spaces.MultiDiscrete([2, 3], start=[1, -1])}, 9), (GridEnv, {}, 0.65)],
)
def test_toys_are_learnt(env: Callable[..., Any], kwargs: dict[str, Any], enough: float) -> None:
    """All components of 10 actions are right, and a grid is crossed: 3 steps for 0.1 each, and 1."""
    made = make_vec_env(env, seed=0, env_kwargs=kwargs)
    model = PWM("MlpPolicy", made, 3e-3, policy_kwargs=QUICK_POLICY, **QUICK).learn(1_200)
    found: Any = evaluate_policy(model, make_vec_env(env, seed=1, env_kwargs=kwargs), 12)[0]
    assert found > enough


@pytest.mark.slow
def test_the_pole_is_balanced() -> None:
    model = PWM("MlpPolicy", make_vec_env("CartPole-v1", seed=0), seed=0, device="cpu").learn(10_000)
    found: Any = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1_000), 10)[0]
    assert found > 475


UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)


@pytest.mark.parametrize("kind", UNSIGNED)
def test_unsigned_integers(kind: Any) -> None:
    """PyTorch knows nearly no operation of those with more than a byte."""
    space = spaces.MultiDiscrete([3, 4], dtype=kind, start=np.array([1, 2], kind))
    model = make(space_envs(observation_space=space, action_space=space)).learn(40)
    assert model._n_updates > 0
    action, _ = model.predict(space.sample())
    assert space.contains(action)


def test_discrete_observations_below_their_start() -> None:
    model = make(space_envs(observation_space=spaces.Discrete(4, start=3)))
    model.predict(np.array(3))
    for below in (np.array(2), np.array([3, -1])):
        with pytest.raises(ValueError, match=rf"the observation holds {below.min()}, but its space starts at 3"):
            model.predict(below)


def test_a_world_model_of_other_actions_is_refused(tmp_path: Path) -> None:
    """Their codes may have the same size."""
    pairs = spaces.MultiDiscrete([2, 2])
    make(space_envs(action_space=pairs)).save_world_model(tmp_path / "model")
    for other in (spaces.Discrete(4), spaces.Box(-1, 1, (4,), np.float32)):
        with pytest.raises(ValueError, match=r"its actions is choices among \(2, 2\), this model's is"):
            make(space_envs(action_space=other)).load_world_model(tmp_path / "model")
    for same_codes in (pairs, spaces.MultiBinary(2)):
        make(space_envs(action_space=same_codes)).load_world_model(tmp_path / "model")
