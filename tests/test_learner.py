import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import NoHostReads, TruthEnv, make, same, space_envs, truth_envs
from torch.testing import assert_close

from sb3_pwm.checks import target_lengths
from sb3_pwm.learner import Learner
from sb3_pwm.observations import cut_windows
from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.world_model import encode_windows

PICTURE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
SETTINGS = [
    {},
    {"horizon": 0},
    {"critic": "v", "ent_coef": 0.1},
    {"termination_coef": 0.0, "policy_kwargs": {"reward_bins": 11}},
]


@pytest.mark.parametrize("read", [torch.Tensor.item, float, bool, torch.nonzero, lambda x: x[x > 0]])
def test_no_host_reads_notices_them(read: Callable[..., Any]) -> None:
    with NoHostReads(), pytest.raises(AssertionError, match="reads a value"):
        read(torch.ones(1))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_host_reads_nothing_within_an_update(settings: dict[str, Any]) -> None:
    """So that a GPU is never waited for, and a CUDA graph can hold the whole update."""
    model = make(truth_envs(), **settings).learn(60)
    learner, samples, transitions = model._learner, model._sample(model.batch_size), model._critic_samples()
    own: Any = Learner
    update_model, update_policy = own.update_model.__wrapped__, own.update_policy.__wrapped__
    with NoHostReads():
        latents = update_model(learner, samples)  # without what the host does after it
        update_policy(learner, samples, transitions, latents, bc_coef=0.5)
        update_policy(learner, samples, transitions, bc_coef=0.0)
        update_policy(learner, samples, transitions, latents * torch.nan, bc_coef=0.0)  # nor where updates are skipped
    learner.count_skips()
    assert model.n_skipped_updates > 0


def test_a_policy_update_encodes_its_windows_if_nobody_has() -> None:
    model = make().learn(40)
    samples, transitions = model._sample(model.batch_size), model._critic_samples()
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    model._learner.update_policy(samples, transitions)
    torch.manual_seed(0)
    latents = encode_windows(other.policy.world_model, samples.observations).detach()
    other._learner.update_policy(samples, transitions, latents)
    assert same(model.policy.state_dict(), other.policy.state_dict())


def test_the_transitions_of_a_batch_take_their_numbers_of_steps_in_turn() -> None:
    model = make(truth_envs(), n_steps=[1, 3], critic_updates=2, critic_batch_size=5).learn(60)
    for windows in model._critic_samples():
        assert windows.mask.shape == windows.rewards.shape == (3, 5)
        steps = windows.mask.sum(0)
        assert steps[::2].tolist() == [1] * 3
        ended = windows.terminations.bool().any(0)
        observations: Any = windows.observations
        places = np.diff(observations[:, :, 1].numpy(), axis=0)  # the number of steps ever taken
        assert all(ended[i] or (places[: int(steps[i]), i] == 1).all() for i in range(5))
    many = make(truth_envs(), n_steps=(1, 3), critic_batch_size=400).learn(60)._critic_samples()[0]
    steps = many.mask.sum(0)
    assert set(steps[1::2].tolist()) == {1, 2, 3}  # where an episode ends, it is fewer
    assert steps[1::2].mean() > 2
    assert target_lengths(2) == (2,)


def test_windows_are_cut_by_hand() -> None:
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]])
    windows = SequenceSamples(torch.zeros(4, 4, 2), torch.zeros(3, 4, 1), mask, 0 * mask, mask)
    cut = cut_windows(windows, (1, 2, 3))
    assert cut.mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert cut.rewards is windows.rewards
    assert cut_windows(windows, (3,)).mask.tolist() == mask.tolist()


def test_skips_are_counted_when_the_host_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make().learn(40)
    learner = model._learner
    samples: Any = model._sample(model.batch_size)
    model.device = torch.device("meta")  # not the CPU, where the host looks after every update
    bad = samples._replace(observations=samples.observations * torch.nan)
    for count in range(1, 100):
        learner.update_model(bad)
        assert model.n_skipped_updates == 0
        assert learner._skips.counts[:, 0].sum() == count
    with pytest.raises(FloatingPointError, match="100 updates in a row of the model"):
        learner.update_model(bad)
    assert model.n_skipped_updates == 100
    learner.update_model(samples)  # and goes on from there
    learner.update_model(bad)
    learner.pop_metrics()
    assert model.n_skipped_updates == 101


def test_observations_are_read_from_latents() -> None:
    model = make(truth_envs()).learn(40)
    assert "observation_loss" in model._learner.pop_metrics()
    observation: Any = model.policy.world_model.observation
    (head,) = observation
    counts = model.policy.world_model.observation_weights > 0
    assert counts.sum() >= 3  # what changes in so few steps
    assert head.weight[counts].ne(0).all()
    assert head.weight[~counts].eq(0).all()


class NoisyEnv(gym.ObservationWrapper[Any, Any, Any]):
    """Add an unpredictable number to observations."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (6,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.append(observation, self.unwrapped.np_random.normal()).astype(np.float32)


@pytest.mark.filterwarnings("ignore:nothing was learnt")
@pytest.mark.parametrize("learning_starts", [400, 1_000])
def test_unpredictable_and_constant_dimensions_count_little(learning_starts: int) -> None:
    model = make(NoisyEnv(TruthEnv()), learning_starts=learning_starts).learn(400)
    weights = model.policy.world_model.observation_weights
    if learning_starts > 400:
        assert_close(weights, torch.full((6,), 1 / 6))
        model.pretrain(1)
    constant, *_, action, noise = weights
    assert action > 0.2
    assert constant == 0
    assert noise < 0.02


@pytest.mark.parametrize(("numbers", "weight"), [(1_000, 2), (1_001, 0)])
def test_by_default_observations_are_read_where_they_are_not_too_many(numbers: int, weight: int) -> None:
    world_model = make(space_envs(1, spaces.Box(-1, 1, (numbers,)))).policy.world_model
    assert world_model.observation_weight("auto") == weight
    assert world_model.observation_weight(0.25) == 0.25
    assert make(space_envs(1, PICTURE), "CnnPolicy").policy.world_model.observation_weight(0.25) == 0


@pytest.mark.parametrize(
    "settings", [{"observation_coef": 0.0}, {"env": space_envs(1, PICTURE), "policy": "CnnPolicy"}]
)
def test_observations_are_not_read_without_a_weight_or_from_pictures(settings: dict[str, Any]) -> None:
    model = make(**settings).learn(40)
    metrics = model._learner.pop_metrics()
    assert "reward_loss" in metrics
    assert "observation_loss" not in metrics
    head: Any = model.policy.world_model.observation
    assert head is None or head[-1].weight.eq(0).all()


def test_without_imagined_steps_the_actor_follows_the_critics_at_replayed_states() -> None:
    model = make(horizon=0).learn(40)
    shape = model.observation_space.shape or ()
    latents = model.policy.world_model.encode(torch.zeros(5, *shape)).detach()
    torch.manual_seed(1)
    actions = torch.zeros(5, model.policy.actor.action_dim)
    rollout, weights, returns = model._learner._imagined(latents, actions, latents)
    torch.manual_seed(1)
    actions, log_probs = model.policy.actor.sample_with_log_prob(latents)
    assert_close(returns, model.policy.critics(latents, actions).mean(0))
    assert_close(rollout.log_probs, log_probs[None])
    assert_close(weights, torch.ones(1, 5))
