import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ACTION_DIM, OBS_DIM
from gymnasium import spaces
from torch.testing import assert_close

from sb3_pwm import PWM
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.diagnostics.open_loop import open_loop_errors
from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.world_model import WorldModel

BOX = spaces.Box(-1, 1, (2,), np.float32)


class Counting(torch.nn.Module):
    """A world model of one latent: the observation itself; every step adds the action; the reward is the latent."""

    def encode(self, observations: torch.Tensor) -> torch.Tensor:
        return observations

    def next_latents(self, latents: torch.Tensor, actions: torch.Tensor, step: int) -> torch.Tensor:
        return latents + actions

    def rewards(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return latents.squeeze(-1)

    def termination_error(self, latents: torch.Tensor, terminations: torch.Tensor) -> torch.Tensor:
        return torch.full_like(terminations, math.log(2))


def windows(observations: Any, actions: Any, rewards: Any, mask: Any) -> SequenceSamples:
    return SequenceSamples(
        observations=torch.tensor(observations)[:, :, None],
        actions=torch.tensor(actions)[:, :, None],
        rewards=torch.tensor(rewards),
        terminations=torch.zeros(len(mask), len(mask[0])),
        mask=torch.tensor(mask),
    )


def test_errors_in_numbers() -> None:
    samples = windows(
        observations=[[0.0, 0.0], [2.0, 1.0], [4.0, 50.0]],
        actions=[[1.0, 1.0], [1.0, 1.0]],
        rewards=[[0.0, 2.0], [2.0, 9.0]],
        mask=[[1.0, 1.0], [1.0, 0.0]],
    )
    counting: Any = Counting()
    errors = open_loop_errors(counting, samples, samples.rewards)
    # predicted 1 and 1, then 2: missed 1 and 0 of the changes 2 and 1, then 2 of 4
    assert_close(errors["latent"], torch.tensor([1 / 5, 4 / 16]))
    # predicted rewards 0 and 0, then 1; the three rewards 0, 2, 2 have the variance 8 / 9
    assert_close(errors["reward"], torch.tensor([(0 + 4) / 2 / (8 / 9), 1 / (8 / 9)]))
    assert_close(errors["termination"], torch.full((2,), math.log(2)))


def test_no_change_has_error_one_and_masked_steps_count_for_nothing(world_model: WorldModel) -> None:
    observations = torch.randn(4, 6, OBS_DIM)
    mask = torch.ones(3, 6)
    mask[1:, 2:] = 0
    samples = SequenceSamples(observations, torch.rand(3, 6, ACTION_DIM), torch.randn(3, 6), torch.zeros(3, 6), mask)
    expected = open_loop_errors(world_model, samples, samples.rewards)
    observations[2:, 2:] = 7.0
    samples.rewards[1:, 2:] = 7.0
    samples.terminations[1:, 2:] = 1.0
    assert_close(open_loop_errors(world_model, samples, samples.rewards), expected)
    still: Any = world_model
    still.next_latents = lambda latents, actions, step: latents
    assert_close(open_loop_errors(world_model, samples, samples.rewards)["latent"], torch.ones(3))


def dataset(n_envs: int = 1, space: spaces.Space[Any] = BOX, steps: int = 120) -> SequenceReplayBuffer:
    """Noisy circles: two observations turn at a speed that the action sets."""
    rng = np.random.default_rng(0)
    buffer = SequenceReplayBuffer(steps * n_envs, space, spaces.Box(-1, 1, (1,)), "cpu", n_envs)
    angles = rng.uniform(0, 6, n_envs)
    for t in range(steps):
        actions = rng.uniform(-1, 1, (n_envs, 1))
        following = angles + 0.3 * actions[:, 0] + 0.3
        done = np.full(n_envs, t % 20 == 19)
        pair = [np.stack([np.cos(a), np.sin(a)], -1) for a in (angles, following)]
        buffer.add(*pair, actions, np.cos(following), done, [{"TimeLimit.truncated": True}] * n_envs)
        angles = following
    return buffer


def numpys_numbers() -> np.ndarray:
    state: Any = np.random.get_state()
    numbers: np.ndarray = state[1].copy()
    return numbers


def model_of(buffer: Any) -> PWM:
    return PWM.from_dataset(
        buffer, seed=0, device="cpu", policy_kwargs={"net_arch": [64], "latent_dim": 16}, batch_size=64
    )


def test_errors_fall_with_learning_and_nothing_else_changes() -> None:
    held_out, model = dataset(n_envs=2), model_of(dataset())
    model.pretrain(1)
    before = model.model_errors(held_out, horizon=4, n_windows=100)
    state, numbers = torch.get_rng_state(), numpys_numbers()
    parameters = {name: value.clone() for name, value in model.policy.state_dict().items()}
    again = model.model_errors(held_out, horizon=4, n_windows=100)
    for name, values in before.items():
        assert values.shape == (4,)
        np.testing.assert_array_equal(values, again[name])
    assert torch.equal(state, torch.get_rng_state())
    assert (numbers == numpys_numbers()).all()
    assert all(torch.equal(value, parameters[name]) for name, value in model.policy.state_dict().items())
    model.pretrain(300)
    after = model.model_errors(held_out, horizon=4, n_windows=100)
    assert (after["latent"] < 0.5).all()
    assert (after["reward"] < 0.2 * before["reward"]).all()
    assert (after["termination"] < 0.1).all()


def test_windows_of_data_on_another_device_come_to_the_models() -> None:
    held_out, model = dataset(), model_of(dataset())
    expected = model.model_errors(held_out, horizon=4)
    held_out.device = torch.device("meta")  # tensors there have no values
    before = dict(vars(held_out))
    errors = model.model_errors(held_out, horizon=4)
    for name, values in expected.items():
        np.testing.assert_array_equal(errors[name], values)
    assert vars(held_out) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((object(),), TypeError, "ReplayBuffer, not object"),
        ((dataset(space=spaces.Box(-2, 2, (2,))),), ValueError, "observation_space is Box"),
        ((dataset(), 0), ValueError, "horizon=0"),
        ((dataset(), 121), ValueError, "horizon=121 is more than the 120 steps of the data set"),
        ((dataset(), 4, 0), ValueError, "n_windows=0"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model_of(dataset()).model_errors(*arguments)


def test_errors_of_what_does_not_vary_mean_nothing() -> None:
    data = dataset()
    data.rewards[:] = 1
    data.observations[:] = data.next_observations[:] = 0.5
    errors = model_of(data).model_errors(data, horizon=2)
    assert np.isnan(errors["reward"]).all()
    assert np.isnan(errors["latent"]).all()
    assert np.isfinite(errors["termination"]).all()
