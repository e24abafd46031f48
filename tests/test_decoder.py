"""A decoder reads observations from latents, and nothing else learns from it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import make, same

from sb3_pwm import PWM
from sb3_pwm.video.decoder import fit_decoder, r_squared
from sb3_pwm.video.imagined import encode, fit_latent_decoder


@pytest.fixture(scope="module")
def pendulum() -> PWM:
    """A model of Pendulum that has seen 1,200 random steps."""
    model = PWM("MlpPolicy", "Pendulum-v1", learning_starts=1_200, pretrain_steps=150, seed=0, device="cpu")
    return model.learn(1_200)


def test_r_squared_by_hand() -> None:
    truth = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 3.0]])
    predicted = torch.tensor([[0.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    r2 = r_squared(predicted, truth)  # 1 - 1/2, no variance, 1 - 2/2
    assert r2[[0, 2]].tolist() == [0.5, 0.0]
    assert r2[1].isnan()


def test_what_never_changes_has_no_share_decoded_though_its_mean_is_rounded() -> None:
    truth = torch.full((5_000, 1), 0.1)
    assert (truth - truth.mean(0)).square().sum() > 0
    assert r_squared(truth * 1.01, truth).isnan().all()
    assert fit_decoder(torch.rand(5_000, 4), truth, updates=1).decoder.std.tolist() == [0]


def test_learns_a_linear_map_with_its_units() -> None:
    latents = torch.rand(1_000, 8)
    observations = torch.stack([1_000 * latents[:, 0], latents[:, 1] - latents[:, 2], torch.full((1_000,), 7.0)], 1)
    decoder, r2 = fit_decoder(latents, observations, updates=600, hidden=[64])
    assert r2[:2].min() > 0.98
    assert r2[2].isnan()
    torch.testing.assert_close(decoder(latents)[:, 2], torch.full((1_000,), 7.0).double())
    assert (decoder(latents)[:, 0] - observations[:, 0]).abs().mean() < 40


def test_decodes_the_differences_of_large_numbers() -> None:
    latents = torch.rand(1_000, 8)
    decoder, r2 = fit_decoder(latents, 1.7e9 + latents[:, :1].double(), updates=600, hidden=[64])
    assert r2[0] > 0.98
    assert (decoder(latents)[:, 0] - 1.7e9 - latents[:, 0]).abs().mean() < 0.04


def test_held_out_rows_are_not_learnt_from() -> None:
    latents, observations = torch.rand(500, 4), torch.randn(500, 1)
    _, r2 = fit_decoder(latents, observations, updates=500, hidden=[64])
    assert r2[0] < 0.1  # noise: learnt by heart it would be near 1
    rows = torch.arange(500) * 50 // 500 % 10 == 9
    changed = observations.clone()
    changed[rows] += 100
    first, second = (fit_decoder(latents, truth, updates=5).decoder for truth in (observations, changed))
    assert same(first.state_dict(), second.state_dict())


def test_depends_on_the_seed_alone() -> None:
    latents, observations = torch.rand(200, 4), torch.randn(200, 2)
    before = torch.get_rng_state()
    first = fit_decoder(latents, observations, updates=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, other = (fit_decoder(latents, observations, updates=5, seed=seed) for seed in (1, 2))
    assert same(first.decoder.state_dict(), second.decoder.state_dict())
    assert torch.equal(first.r2, second.r2)
    assert not torch.equal(first.r2, other.r2)
    assert not any(parameter.requires_grad for parameter in first.decoder.parameters())


def test_decodes_the_latents_of_a_real_replay_buffer(pendulum: PWM) -> None:
    _, r2 = fit_latent_decoder(pendulum, "Pendulum-v1", updates=500)
    assert r2.min() > 0.9, r2


def test_the_model_does_not_change_and_gets_no_gradient(pendulum: PWM) -> None:
    before = {name: value.clone() for name, value in pendulum.policy.state_dict().items()}
    gradients = [p.grad.clone() if p.grad is not None else None for p in pendulum.policy.parameters()]
    fit_latent_decoder(pendulum, "Pendulum-v1", updates=20)
    assert same(before, pendulum.policy.state_dict())
    parameter: Any
    for parameter, gradient in zip(pendulum.policy.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    # A latent that could carry a gradient does not
    latents = torch.rand(100, 4, requires_grad=True)
    fit_decoder(latents, torch.rand(100, 2), updates=2)
    assert latents.grad is None


def test_latents_are_those_of_the_policy(pendulum: PWM) -> None:
    observations = np.random.randn(5_000, 3).astype(np.float32)  # more than a batch
    latents = encode(pendulum, observations)
    with torch.no_grad():
        expected = pendulum.policy.world_model.encode(torch.as_tensor(observations))
    torch.testing.assert_close(latents, expected)


def test_without_recorded_steps_the_policy_takes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.video.imagined.POLICY_STEPS", 250)
    model = make(gym.make("Pendulum-v1"))
    fits = [fit_latent_decoder(model, "Pendulum-v1", updates=5) for _ in range(2)]
    assert torch.equal(fits[0].r2, fits[1].r2)
    decoder = fits[0].decoder
    assert decoder.mean.shape == (3,)
    assert decoder.std[:2].max() < 1  # cosine and sine


def test_bad_data_sets(pendulum: PWM) -> None:
    small = make(gym.make("Pendulum-v1")).learn(30).replay_buffer
    with pytest.raises(ValueError, match="dataset holds 32 steps; allowed: 1000 or more"):
        fit_latent_decoder(pendulum, "Pendulum-v1", small)
    with pytest.raises(ValueError, match="the replay buffer's observation_space is"):
        fit_latent_decoder(pendulum, "Pendulum-v1", make().replay_buffer)
    with pytest.raises(TypeError, match="must be an SB3 ReplayBuffer"):
        fit_latent_decoder(pendulum, "Pendulum-v1", [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latents have 60 rows and observations 59"):
        fit_decoder(torch.rand(60, 4), torch.rand(59, 2))
    with pytest.raises(ValueError, match="at least 50"):
        fit_decoder(torch.rand(49, 4), torch.rand(49, 2))
