import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ACTION_DIM, HIDDEN, LATENT_DIM, OBS_DIM
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sb3_pwm.nn.two_hot import symexp, two_hot
from sb3_pwm.world_model import WorldModel

LEADING = [(5,), (4, 5)]


class HalvedDict(nn.Module):
    """Features of Dict observations, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.factor * torch.cat([observations["a"], observations["b"]], -1)


def latents_and_actions(*leading: Any) -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(*leading, LATENT_DIM).softmax(-1)
    return latents, torch.rand(*leading, ACTION_DIM) * 2 - 1


def group_sums(latents: torch.Tensor, group_size: int) -> torch.Tensor:
    return latents.unflatten(-1, (group_size, -1)).sum(-2)


def test_latents_are_simplices(world_model: WorldModel) -> None:
    latents = world_model.encode(torch.randn(6, OBS_DIM))
    assert latents.shape == (6, LATENT_DIM)
    following = world_model.next_latents(latents, torch.zeros(6, ACTION_DIM))
    for simplices in (latents, following):
        assert_close(group_sums(simplices, 4), torch.ones(6, LATENT_DIM // 4))


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("reward_bins", [0, 11])
def test_shapes(make_world_model: Callable[..., WorldModel], leading: tuple[int, ...], reward_bins: int) -> None:
    model = make_world_model(reward_bins=reward_bins)
    latents, actions = latents_and_actions(*leading)
    assert model.next_latents(latents, actions).shape == (*leading, LATENT_DIM)
    assert model.rewards(latents, actions).shape == leading
    assert model.reward_error(latents, actions, torch.ones(leading)).shape == leading
    assert model.termination_logits(latents).shape == leading
    assert model.continuations(latents).shape == leading
    assert model.termination_error(latents, torch.ones(leading)).shape == leading


def test_every_row_is_predicted_for_itself(world_model: WorldModel) -> None:
    latents, actions = latents_and_actions(4, 5)
    together = world_model.next_latents(latents, actions), world_model.rewards(latents, actions)
    alone = world_model.next_latents(latents[2, 3], actions[2, 3]), world_model.rewards(latents[2, 3], actions[2, 3])
    assert_close((together[0][2, 3], together[1][2, 3]), alone)


@pytest.mark.parametrize("reward_bins", [0, 11])
def test_a_new_model_predicts_no_reward_and_even_odds(reward_bins: int) -> None:
    model = WorldModel(
        nn.Identity(), OBS_DIM, ACTION_DIM, latent_dim=LATENT_DIM, simnorm_dim=4, reward_bins=reward_bins, **HIDDEN
    )
    latents, actions = latents_and_actions(5)
    assert_close(model.rewards(latents, actions), torch.zeros(5), atol=1e-6, rtol=0)
    assert_close(model.continuations(latents), torch.full((5,), 0.5))
    assert_close(model.observation_error(latents, torch.full((5, OBS_DIM), 3.0)), torch.full((5,), 9.0))
    assert_close(model.termination_error(latents, torch.ones(5)), torch.full((5,), math.log(2)))
    weights = [layer.weight for layer in model.dynamics.modules() if isinstance(layer, nn.Linear)]
    assert all(0 < weight.std() < 0.03 for weight in weights[:-1])


def test_observations_are_read_from_latents_by_a_linear_head(world_model: WorldModel) -> None:
    latents, features = latents_and_actions(4, 5)[0], torch.randn(4, 5, OBS_DIM)
    observation: Any = world_model.observation
    (head,) = observation
    errors = latents @ head.weight.T + head.bias - features
    assert_close(world_model.observation_error(latents, features), (errors**2) @ world_model.observation_weights)


def test_observations_are_weighted_by_how_predictable_they_are(world_model: WorldModel) -> None:
    observations, actions = torch.randn(200, OBS_DIM), torch.rand(200, ACTION_DIM)
    following = torch.randn(200, OBS_DIM)
    following[:, 0] = observations[:, 1] - 2 * actions[:, 0]
    following[:, 1] = observations[:, 0] + torch.randn(200)  # half of its variance is noise
    world_model.weigh_observations(observations, actions, following)
    weights = world_model.observation_weights
    assert_close(weights[:2], torch.tensor([2 / 3, 1 / 3]), atol=0.1, rtol=0)
    assert weights[2:].sum() < 0.1
    assert_close(weights.sum(), torch.tensor(1.0))
    following[:, 0] = 0
    world_model.weigh_observations(observations, actions, following)
    assert_close(weights.sum(), torch.tensor(0.5), atol=0.1, rtol=0)  # not more than a number's own share


@pytest.mark.parametrize(("numbers", "weight"), [(20, 1 / 20), (30, 1 / 30), (90, 1 / 30)])
def test_of_many_numbers_each_counts_as_much_as_one_of_thirty(numbers: int, weight: float) -> None:
    sizes: dict[str, Any] = {"latent_dim": LATENT_DIM, "simnorm_dim": 4, **HIDDEN}
    model = WorldModel(nn.Identity(), numbers, ACTION_DIM, **sizes)
    observations = torch.randn(1_000, numbers)
    model.weigh_observations(observations, torch.rand(1_000, ACTION_DIM), observations.flip(-1))
    assert_close(model.observation_weights, torch.full((numbers,), weight), atol=1e-4, rtol=0)


def test_trained_features_are_not_read_from_latents(make_world_model: Callable[..., WorldModel]) -> None:
    # they could become anything that is easy to read
    model = make_world_model(features=nn.Linear(OBS_DIM, OBS_DIM))
    assert model.observation is None
    with pytest.raises(RuntimeError, match="not read from latents"):
        model.observation_error(latents_and_actions(5)[0], torch.zeros(5, OBS_DIM))


def new_model(*, residual: bool, layer_norm: bool = False) -> WorldModel:
    sizes: dict[str, Any] = {"latent_dim": LATENT_DIM, "simnorm_dim": 4, **HIDDEN}
    options: dict[str, Any] = {"residual_dynamics": residual, "latent_layer_norm": layer_norm}
    return WorldModel(nn.Identity(), OBS_DIM, ACTION_DIM, **sizes, **options)


def test_layer_norm_in_front_of_simnorm() -> None:
    model = new_model(residual=False, layer_norm=True)
    latents, actions = latents_and_actions(5)
    dynamics: Any = model.dynamics[0]
    encoder: Any = model.encoder[0]
    for network in (encoder, dynamics):
        network[-1].weight.data.fill_(2)
        network[-1].bias.data.copy_(torch.arange(LATENT_DIM) / LATENT_DIM)
    logits = dynamics[:-1](torch.cat([latents, actions], -1))
    centred = logits - logits.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = model.simnorm(2 * normed + torch.arange(LATENT_DIM) / LATENT_DIM)
    assert_close(model.next_latents(latents, actions), expected)
    assert isinstance(encoder[-1], nn.LayerNorm)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_new_residual_dynamics_keep_the_latents_up_to_the_offset(layer_norm: bool) -> None:
    latents, actions = latents_and_actions(5)
    groups = latents.unflatten(-1, (4, -1))
    latents = (groups / groups.sum(-2, keepdim=True)).flatten(-2)
    following = new_model(residual=True, layer_norm=layer_norm).next_latents(latents, actions)
    # softmax(log(z + 0.1)) in groups of 4 whose z sum to 1
    assert_close(following, (latents + 0.1) / 1.4)


def test_new_plain_dynamics_forget_the_latents() -> None:
    latents, actions = latents_and_actions(5)
    following = new_model(residual=False).next_latents(latents, actions)
    assert (following - 0.25).abs().max() < 0.05  # small weights: nearly even groups
    assert following.std() > 0


def member(model: WorldModel, k: int) -> WorldModel:
    """The same model with its k-th dynamics network alone."""
    alone = copy.deepcopy(model)
    alone.dynamics = nn.ModuleList([alone.dynamics[k]])
    return alone


@pytest.mark.parametrize(
    ("rows", "step", "members"),
    [
        (6, 0, [0, 0, 1, 1, 2, 2]),
        (6, 1, [1, 1, 2, 2, 0, 0]),
        (6, 5, [2, 2, 0, 0, 1, 1]),
        (7, 0, [0, 0, 0, 1, 1, 1, 2]),
        (2, 2, [2, 0]),
        (1, 1, [1]),
    ],
)
def test_dynamics_networks_take_turns(
    make_world_model: Callable[..., WorldModel], rows: int, step: int, members: list[int]
) -> None:
    model = make_world_model(n_dynamics=3)
    latents, actions = latents_and_actions(rows)
    following = model.next_latents(latents, actions, step)
    for row, k in enumerate(members):
        assert_close(following[row], member(model, k).next_latents(latents[row], actions[row]))


def test_every_dynamics_network_predicts_its_own_rows(make_world_model: Callable[..., WorldModel]) -> None:
    model = make_world_model(n_dynamics=3)
    latents, actions = latents_and_actions(3, 5)
    following = model.all_next_latents(latents, actions[0])
    for k in range(3):
        assert_close(following[k], member(model, k).next_latents(latents[k], actions[0]))


@pytest.mark.parametrize("residual", [False, True])
def test_dynamics_stay_finite_where_a_latent_is_zero(
    make_world_model: Callable[..., WorldModel], residual: bool
) -> None:
    model = make_world_model(residual_dynamics=residual)
    latents = torch.zeros(1, LATENT_DIM, requires_grad=True)
    following = model.next_latents(latents, torch.zeros(1, ACTION_DIM))
    (gradient,) = torch.autograd.grad(following.square().sum(), latents)
    assert torch.isfinite(following).all()
    assert torch.isfinite(gradient).all()


def test_dynamics_and_rewards_depend_on_latents_and_actions(world_model: WorldModel) -> None:
    latents, actions = latents_and_actions(5)
    others, other_actions = latents_and_actions(5)
    for predict in (world_model.next_latents, world_model.rewards):
        base = predict(latents, actions)
        assert (predict(others, actions) - base).abs().max() > 1e-3
        assert (predict(latents, other_actions) - base).abs().max() > 1e-3


def test_scalar_reward_error_is_the_squared_error(world_model: WorldModel) -> None:
    latents, actions = latents_and_actions(5)
    rewards = torch.randn(5)
    expected = (world_model.rewards(latents, actions) - rewards) ** 2
    assert_close(world_model.reward_error(latents, actions, rewards), expected)


def test_two_hot_reward_error_is_the_cross_entropy(make_world_model: Callable[..., WorldModel]) -> None:
    model = make_world_model(reward_bins=11)
    latents, actions = latents_and_actions(5)
    rewards = 5 * torch.randn(5)
    logits = model.reward(torch.cat([latents, actions], -1))
    expected = F.cross_entropy(logits, two_hot(rewards, model.bins), reduction="none")
    assert_close(model.reward_error(latents, actions, rewards), expected)
    assert_close(model.rewards(latents, actions), symexp(logits.softmax(-1) @ model.bins))


@pytest.mark.parametrize("reward", [0.0, 0.5, -3.0, 200.0])
def test_a_two_hot_head_can_learn_a_reward(make_world_model: Callable[..., WorldModel], reward: float) -> None:
    model = make_world_model(reward_bins=11)
    latents, actions = latents_and_actions(1)
    optimizer = torch.optim.Adam(model.reward.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        model.reward_error(latents, actions, torch.tensor([reward])).sum().backward()
        optimizer.step()
    assert model.rewards(latents, actions).item() == pytest.approx(reward, rel=0.05, abs=0.02)


@pytest.mark.parametrize(("logit", "continuation"), [(0.0, 0.5), (math.log(3), 0.25), (-math.log(9), 0.9)])
def test_terminations_by_hand(world_model: WorldModel, logit: float, continuation: float) -> None:
    last: Any = world_model.termination[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, logit)
    latents, _ = latents_and_actions(2)
    assert_close(world_model.continuations(latents), torch.full((2,), continuation))
    errors = world_model.termination_error(latents, torch.tensor([0.0, 1.0]))
    assert_close(errors, torch.tensor([-math.log(continuation), -math.log(1 - continuation)]))


def test_features_are_part_of_the_model(make_world_model: Callable[..., WorldModel]) -> None:
    features = HalvedDict()
    model = make_world_model(features=features)
    observations = {"a": torch.ones(4, 1), "b": torch.randn(4, OBS_DIM - 1)}
    latents = model.encode(observations)
    assert latents.shape == (4, LATENT_DIM)
    latents[:, 0].sum().backward()
    assert features.factor.grad.abs() > 0
    assert "features.factor" in dict(model.named_parameters())


def test_bins_are_not_saved(make_world_model: Callable[..., WorldModel]) -> None:
    model = make_world_model(reward_bins=11)
    assert "bins" not in model.state_dict()
    assert_close(model.bins, torch.linspace(-10, 10, 11))
