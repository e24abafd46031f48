import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ACTION_DIM, LATENT_DIM, N_CRITICS, OBS_DIM
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sb3_pwm.compute.optimizers import apply_gradients
from sb3_pwm.imagination import imagine
from sb3_pwm.losses import (
    actor_loss,
    behaviour_loss,
    critic_gap,
    critic_loss,
    entropy_coefficient_loss,
    imagined_targets,
    masked_mean,
    pessimistic_values,
    relative_size,
    replay_targets,
    state_values,
    world_model_loss,
)
from sb3_pwm.networks import Actor, CriticEnsemble
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.type_aliases import ImaginedRollout, SequenceSamples
from sb3_pwm.world_model import WorldModel

LENGTH, BATCH, HORIZON = 4, 6, 3
COEFFICIENTS: dict[str, Any] = {
    "consistency_coef": 20.0,
    "reward_coef": 2.0,
    "termination_coef": 3.0,
    "observation_coef": 0.5,
}
ONE = torch.tensor(1.0)


def tensor(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.fixture
def samples() -> SequenceSamples:
    # windows of 4, 4, 3, 2, 1 and 1 valid steps; those of 3 and 1 end with a termination
    lengths = torch.tensor([4, 4, 3, 2, 1, 1])
    mask = (torch.arange(LENGTH)[:, None] < lengths).float()
    terminations = torch.zeros(LENGTH, BATCH)
    terminations[2, 2] = terminations[0, 4] = 1
    return SequenceSamples(
        observations=torch.empty(0),
        actions=torch.rand(LENGTH, BATCH, ACTION_DIM) * 2 - 1,
        rewards=torch.randn(LENGTH, BATCH),
        terminations=terminations,
        mask=mask,
    )


def simplices(*leading: Any) -> torch.Tensor:
    return torch.randn(*leading, LATENT_DIM).softmax(-1)


def some_features() -> torch.Tensor:
    return torch.randn(LENGTH + 1, BATCH, OBS_DIM)


def test_masked_mean_by_hand() -> None:
    # (1 + 2 + 3) / 3, the 100 is masked
    assert_close(masked_mean(tensor([1, 2], [3, 100]), tensor([1, 1], [1, 0])), torch.tensor(2.0))


@pytest.mark.parametrize("reward_bins", [0, 11])
def test_world_model_loss_is_that_of_a_plain_loop(
    make_world_model: Callable[..., WorldModel], samples: SequenceSamples, reward_bins: int
) -> None:
    model = make_world_model(reward_bins=reward_bins)
    latents, targets, features = simplices(BATCH), simplices(LENGTH, BATCH), some_features()
    loss, metrics = world_model_loss(model, samples, samples.rewards, latents, targets, features, **COEFFICIENTS)

    def observation_error(state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        assert model.observation is not None
        return model.observation_weights @ (model.observation(state) - features) ** 2

    errors: dict[str, Any] = {
        "consistency_loss": 0.0,
        "reward_loss": 0.0,
        "termination_loss": 0.0,
        "observation_loss": 0.0,
    }
    count = 0
    for b in range(BATCH):
        state = latents[b]
        errors["observation_loss"] += observation_error(state, features[0, b])
        for t in range(LENGTH):
            if not samples.mask[t, b]:
                break
            action = samples.actions[t, b]
            errors["reward_loss"] += model.reward_error(state, action, samples.rewards[t, b])
            state = model.next_latents(state, action)
            errors["consistency_loss"] += F.mse_loss(state, targets[t, b])
            errors["observation_loss"] += observation_error(state, features[t + 1, b])
            ended = torch.sigmoid(model.termination_logits(state))
            errors["termination_loss"] += F.binary_cross_entropy(ended, samples.terminations[t, b])
            count += 1
    means = {name: error / count for name, error in errors.items()}
    total = 20 * means["consistency_loss"] + 2 * means["reward_loss"] + 3 * means["termination_loss"]
    total = total + 0.5 * means["observation_loss"]
    assert_close(loss, total)
    assert_close(metrics, {name: mean.detach() for name, mean in means.items()} | {"world_model_loss": loss.detach()})


@pytest.mark.parametrize("reward_bins", [0, 11])
def test_world_model_loss_of_several_dynamics_networks(
    make_world_model: Callable[..., WorldModel], samples: SequenceSamples, reward_bins: int
) -> None:
    model = make_world_model(n_dynamics=3, reward_bins=reward_bins)
    latents, targets, features = simplices(BATCH), simplices(LENGTH, BATCH), some_features()
    total, means = world_model_loss(model, samples, samples.rewards, latents, targets, features, **COEFFICIENTS)
    parts = []
    for dynamics in model.dynamics:
        alone = copy.deepcopy(model)
        alone.dynamics = nn.ModuleList([dynamics])
        parts.append(world_model_loss(alone, samples, samples.rewards, latents, targets, features, **COEFFICIENTS))
    sums = {name: sum(metrics[name] for _, metrics in parts) for name in means}
    assert_close(means["consistency_loss"], sums["consistency_loss"])
    assert_close(means["reward_loss"], sums["reward_loss"] / 3)
    assert_close(means["termination_loss"], sums["termination_loss"] / 3)
    assert_close(means["observation_loss"], sums["observation_loss"] / 3)
    assert_close(total, sum(weight * means[name.replace("_coef", "_loss")] for name, weight in COEFFICIENTS.items()))


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_coefficient_of_zero_switches_its_part_off(
    world_model: WorldModel, samples: SequenceSamples, name: str
) -> None:
    latents, targets, features = simplices(BATCH), simplices(LENGTH, BATCH), some_features()

    def loss(**coefficients: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return world_model_loss(world_model, samples, samples.rewards, latents, targets, features, **coefficients)

    (full, metrics), (without, _) = loss(**COEFFICIENTS), loss(**COEFFICIENTS | {name: 0.0})
    part = COEFFICIENTS[name] * metrics[name.replace("_coef", "_loss")]
    assert part > 0
    assert_close(full - without, part)


@pytest.mark.parametrize("reward_bins", [0, 11])
def test_masked_steps_have_no_influence(
    make_world_model: Callable[..., WorldModel], samples: SequenceSamples, reward_bins: int
) -> None:
    model = make_world_model(reward_bins=reward_bins)
    latents, targets = simplices(BATCH).requires_grad_(), simplices(LENGTH, BATCH)
    masked = samples.mask == 0
    changed = samples._replace(
        actions=torch.where(masked[..., None], torch.tensor(-9.0), samples.actions),
        rewards=torch.where(masked, torch.tensor(1e4), samples.rewards),
        terminations=torch.where(masked, ONE, samples.terminations),
    )
    changed_targets = torch.where(masked[..., None], torch.tensor(1e4), targets)
    features = some_features()
    changed_features = features.clone()
    changed_features[1:][masked] = 1e4

    def loss_and_gradients(
        batch: SequenceSamples, batch_targets: torch.Tensor, batch_features: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        loss, _ = world_model_loss(model, batch, batch.rewards, latents, batch_targets, batch_features, **COEFFICIENTS)
        networks = (model.dynamics, model.reward, model.termination, model.observation)
        inputs = [*(parameter for network in networks for parameter in network.parameters()), latents]
        return loss, torch.autograd.grad(loss, inputs)

    assert_close(
        loss_and_gradients(changed, changed_targets, changed_features), loss_and_gradients(samples, targets, features)
    )


def test_every_valid_step_has_influence(world_model: WorldModel, samples: SequenceSamples) -> None:
    latents, targets = simplices(BATCH), simplices(LENGTH, BATCH).requires_grad_()
    rewards = samples.rewards.clone().requires_grad_()
    features = some_features().requires_grad_()
    loss, _ = world_model_loss(world_model, samples, rewards, latents, targets, features, **COEFFICIENTS)
    to_targets, to_rewards, to_features = torch.autograd.grad(loss, [targets, rewards, features])
    assert to_features[0].ne(0).all()
    assert (to_features[1:].abs().sum(-1).gt(0) == samples.mask.bool()).all()
    assert (to_targets.abs().sum(-1).gt(0) == samples.mask.bool()).all()
    assert (to_rewards.ne(0) == samples.mask.bool()).all()


def test_state_values_are_the_critics_mean(q_critics: CriticEnsemble, v_critics: CriticEnsemble, actor: Actor) -> None:
    latents = simplices(4, 5)
    values, log_probs = state_values(v_critics, actor, latents, q_critic=False)
    assert_close(values, v_critics(latents).mean(0))
    assert log_probs is None
    torch.manual_seed(1)
    values, log_probs = state_values(q_critics, actor, latents, q_critic=True)
    torch.manual_seed(1)
    actions, expected = actor.sample_with_log_prob(latents)
    assert_close(log_probs, expected)
    assert_close(values, q_critics(latents, actions).mean(0))


def test_state_values_send_no_gradient_through_what_the_actor_sees(q_critics: CriticEnsemble, actor: Actor) -> None:
    latents = simplices(5).requires_grad_()
    torch.manual_seed(1)
    values, _ = state_values(q_critics, actor, latents, q_critic=True)
    torch.manual_seed(1)
    actions = actor.sample(latents).detach()
    expected = torch.autograd.grad(q_critics(latents, actions).mean(0).sum(), latents)
    assert_close(torch.autograd.grad(values.sum(), latents), expected)


def test_actor_loss_by_hand() -> None:
    # return: (2 + 4) / 2; entropy: -(1 * 1 + 1 * 2 + 0.5 * 3 + 0 * 4) / 4; both over the scale 2
    loss, metrics = actor_loss(
        tensor(2, 4), tensor([1, 2], [3, 4]), tensor([1, 1], [0.5, 0]), torch.tensor(2.0), ent_coef=0.1
    )
    assert_close(loss, torch.tensor(-(3 - 0.1 * 1.125) / 2))
    expected = {"actor_loss": loss, "entropy": torch.tensor(-1.125), "imagined_return": torch.tensor(3.0)}
    assert_close(metrics, expected)


def test_the_entropy_bonus_does_not_reward_living_longer() -> None:
    weights = torch.ones(2, 3, requires_grad=True)
    log_probs = torch.randn(2, 3, requires_grad=True)
    loss, _ = actor_loss(log_probs.sum(0), log_probs, weights, ONE, ent_coef=0.1)
    loss.backward()
    assert weights.grad is None
    assert log_probs.grad is not None


def test_behaviour_loss_by_hand() -> None:
    samples: Any = SimpleNamespace(actions=torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 0.0], [9.0, 9.0]]]))
    samples.mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    actor: Any = SimpleNamespace(mode=lambda latents: latents[..., :2], n_actions=lambda latents: 2)
    actor.distance = functools.partial(Actor.distance, actor)
    latents = torch.zeros(2, 2, 4)
    # squared distances, averaged over action dimensions: 0.5, 0.25, 0, and one that does not count
    assert_close(behaviour_loss(actor, latents, samples, None), tensor(0.25)[0])
    # where the second task's second dimension is padding: 0.5, (0.5 + 0) / 1, 0
    actor.n_actions = lambda latents: torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    samples.actions[0, 1, 1] = 0
    assert_close(behaviour_loss(actor, latents, samples, None), tensor(0.25)[0])


def test_behaviour_loss_counts_replayed_actions_with_an_advantage() -> None:
    actions = torch.tensor([[[1.0], [0.5], [-2.0]], [[3.0], [-1.0], [9.0]]])
    samples: Any = SimpleNamespace(actions=actions, mask=torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))
    actor: Any = SimpleNamespace(mode=lambda latents: latents, n_actions=lambda latents: 1)
    actor.distance = functools.partial(Actor.distance, actor)
    latents = torch.zeros(2, 3, 1, requires_grad=True)
    # those of 1, 0.5 and 3 count, -2 and -1 do not, 9 is masked
    advantages = torch.tensor([[0.1, 7.0, 0.0], [0.2, -3.0, 1.0]])
    loss = behaviour_loss(actor, latents, samples, advantages)
    assert_close(loss, torch.tensor((1 + 0.25 + 9) / 5))
    loss.backward()
    assert_close(latents.grad, -2 / 5 * torch.tensor([[[1.0], [0.5], [0.0]], [[3.0], [0.0], [0.0]]]))


def test_relative_size_by_hand() -> None:
    returns = torch.tensor([3.0, -4.0, 0.0, 5.0], requires_grad=True)
    size = relative_size(returns, torch.tensor(0.5))
    assert_close(size, torch.tensor(50 / 4).sqrt() / 0.5)
    assert not size.requires_grad
    # two tasks with scales of their own: (6, 1, 0, 5)
    scales = torch.tensor([0.5, 4.0, 1.0, 1.0])
    assert_close(relative_size(returns, scales), torch.tensor((36 + 1 + 0 + 25) / 4).sqrt())


def test_entropy_coefficient_loss_by_hand() -> None:
    # entropy: -(1 * 1 + 1 * 2 + 0.5 * 3 + 0 * 4) / 2.5 = -1.8, 0.8 below the target of -1: the coefficient must grow
    log_ent_coef = torch.tensor(0.5, requires_grad=True)
    weights = tensor([1, 1], [0.5, 0]).requires_grad_()
    log_probs = tensor([1, 2], [3, 4]).requires_grad_()
    loss, metrics = entropy_coefficient_loss(log_ent_coef, log_probs, weights, -1.0)
    loss.backward()
    assert_close(loss, torch.tensor(0.5 * -0.8))
    assert_close(log_ent_coef.grad, torch.tensor(-0.8))
    assert_close(metrics, {"ent_coef": torch.tensor(0.5).exp()})
    assert weights.grad is None
    assert log_probs.grad is None


def fixed_critics(*values: Any) -> Any:
    return lambda *inputs: tensor(*values)


fixed_actor: Any = SimpleNamespace(
    sample=lambda latents: torch.zeros(*latents.shape[:-1], ACTION_DIM), all_actions=lambda latents: None
)


def windows(rewards: torch.Tensor, terminations: torch.Tensor, mask: torch.Tensor) -> SequenceSamples:
    return SequenceSamples(torch.empty(0), torch.empty(0), rewards, terminations, mask)


def test_replay_targets_by_hand() -> None:
    # four windows of two steps: one goes on, two end in their first and second step, one times out in its first
    rewards = tensor([1, 1, 1, 2], [3, 100, 4, 100])
    targets, metrics = replay_targets(
        fixed_critics([10, 10, 10, 3], [6, 8, 10, 9]),
        fixed_actor,
        windows(rewards, tensor([0, 1, 0, 0], [0, 0, 1, 0]), tensor([1, 1, 1, 1], [1, 0, 1, 0])),
        rewards,
        simplices(4),
        gamma=0.5,
        pessimism=0.5,
    )
    # the values are 7, 8.5, 10 and 4.5: 1 + 0.5 * (3 + 0.5 * 7);  1, it has ended;  1 + 0.5 * 4;  2 + 0.5 * 4.5
    assert_close(targets, tensor(4.25, 1, 3, 4.25))
    # distances of 4, 2, 0 and 6, mean values of 8, 9, 10 and 6: 3 / (0.5 * 8.25)
    assert_close(metrics, {"critic_gap": torch.tensor(3 / (0.5 * 8.25))})


def test_the_critics_gap_without_a_discount_is_finite() -> None:
    assert_close(critic_gap(tensor([1, 3], [2, 2]), 1.0), torch.tensor(1.0 / (1e-3 * 2)))
    assert torch.isfinite(critic_gap(torch.zeros(2, 3), 0.9))


def test_pessimistic_values_by_hand() -> None:
    values = tensor([10, 2], [6, 4], [2, 12])
    assert_close(pessimistic_values(values, 0.0), tensor(6, 6))
    assert_close(pessimistic_values(values, 0.25), tensor(5, 5))
    assert_close(pessimistic_values(values, 1.0), tensor(2, 2))


def test_replay_targets_are_those_of_a_plain_loop(
    actor: Actor, q_critics: CriticEnsemble, samples: SequenceSamples
) -> None:
    # what the mask hides must not matter
    samples = samples._replace(rewards=torch.where(samples.mask > 0, samples.rewards, torch.tensor(1e6)))
    last = simplices(BATCH)
    torch.manual_seed(1)
    targets, _ = replay_targets(q_critics, actor, samples, samples.rewards, last, gamma=0.9, pessimism=0.3)
    torch.manual_seed(1)
    values = q_critics(last, actor.sample(last))
    values = 0.7 * values.mean(0) + 0.3 * values.min(0).values
    for b in range(BATCH):
        expected: Any = 0.0
        discount: Any = 1.0
        for t in range(int(samples.mask[:, b].sum())):
            expected = expected + discount * samples.rewards[t, b]
            discount = discount * 0.9 * (1 - samples.terminations[t, b])
        assert_close(targets[b], expected + discount * values[b])
    assert not targets.requires_grad


def test_imagined_targets_by_hand() -> None:
    rollout = ImaginedRollout(
        latents=simplices(3, 1),
        actions=torch.zeros(2, 1, ACTION_DIM),
        log_probs=tensor([-1], [1]),
        rewards=tensor([1], [2]),
        continuations=tensor([0.5], [0]),
    )
    targets, weights = imagined_targets(
        fixed_critics([[4], [6]], [[5], [7]]), rollout, gamma=0.5, td_lambda=0.5, pessimism=1.0
    )
    # discounts 0.5 * 0.5 and 0; G_1 = 2;  G_0 = 1 + 0.25 * (0.5 * 4 + 0.5 * 2) = 1.75
    assert_close(targets, tensor([1.75], [2]))
    assert_close(weights, tensor([1], [0.5]))


def test_imagined_targets_use_the_value_of_the_state_after_each_step(
    world_model: WorldModel, actor: Actor, v_critics: CriticEnsemble
) -> None:
    rollout = imagine(world_model, actor, simplices(BATCH), HORIZON)
    targets, _ = imagined_targets(v_critics, rollout, gamma=0.9, td_lambda=0.0, pessimism=1.0)
    following = v_critics(rollout.latents[1:]).min(0).values
    assert_close(targets, (rollout.rewards + 0.9 * rollout.continuations * following).detach())
    assert not targets.requires_grad


def test_critic_loss_by_hand() -> None:
    # squared errors (1, 1) and (9, 9); weighted sums 1 + 0.5 and 9 + 4.5, over 1 + 0.5
    loss, metrics = critic_loss(tensor([1, 2], [3, 4]), tensor(0, 1), tensor(1, 0.5))
    assert_close(loss, torch.tensor(10.0))
    assert_close(metrics, {"critic_loss": loss, "value": torch.tensor(2.5)})


def test_values_without_weight_have_no_influence() -> None:
    values = torch.randn(N_CRITICS, 4, requires_grad=True)
    weights = tensor(1, 0, 0.5, 0)
    loss, _ = critic_loss(values, torch.randn(4), weights)
    gradient = torch.autograd.grad(loss, values)[0]
    assert (gradient.ne(0) == weights.ne(0)).all()


def test_a_minibatch_without_any_weight_teaches_nothing() -> None:
    values = torch.randn(N_CRITICS, 2, requires_grad=True)
    loss, _ = critic_loss(values, torch.randn(2), torch.zeros(2))
    loss.backward()
    assert loss == 0
    assert (values.grad == 0).all()


@pytest.fixture
def networks(
    world_model: WorldModel, actor: Actor, q_critics: CriticEnsemble, v_critics: CriticEnsemble
) -> dict[str, Any]:
    return {
        "world_model": world_model,
        "actor": actor,
        "q_critics": q_critics,
        "v_critics": v_critics,
        "q_target": copy.deepcopy(q_critics),
        "v_target": copy.deepcopy(v_critics),
    }


def model_objective(n: dict[str, Any], samples: SequenceSamples, observations: torch.Tensor) -> torch.Tensor:
    latents = n["world_model"].encode(observations.flatten(0, 1)).view(LENGTH + 1, BATCH, LATENT_DIM)
    return world_model_loss(
        n["world_model"], samples, samples.rewards, latents[0], latents[1:].detach(), observations, **COEFFICIENTS
    )[0]


def actor_objective(
    n: dict[str, Any], samples: SequenceSamples, observations: torch.Tensor, *, q_critic: bool
) -> torch.Tensor:
    rollout = imagine(n["world_model"], n["actor"], n["world_model"].encode(observations[0]), HORIZON)
    critics = n["q_critics" if q_critic else "v_critics"]
    values, _ = state_values(critics, n["actor"], rollout.latents[-1], q_critic=q_critic)
    weights = continuation_weights(rollout.continuations)
    returns = imagined_returns(rollout.rewards, weights, values, 0.9)
    return actor_loss(returns, rollout.log_probs, weights[:-1], ONE, ent_coef=0.1)[0]


def q_objective(n: dict[str, Any], samples: SequenceSamples, observations: torch.Tensor) -> torch.Tensor:
    latents = n["world_model"].encode(observations.flatten(0, 1)).view(LENGTH + 1, BATCH, LATENT_DIM)
    targets, _ = replay_targets(
        n["q_target"], n["actor"], samples, samples.rewards, latents[-1], gamma=0.9, pessimism=0.5
    )
    return critic_loss(n["q_critics"](latents[0], samples.actions[0]), targets, samples.mask[0])[0]


def v_objective(n: dict[str, Any], samples: SequenceSamples, observations: torch.Tensor) -> torch.Tensor:
    rollout = imagine(n["world_model"], n["actor"], n["world_model"].encode(observations[0]), HORIZON)
    targets, weights = imagined_targets(n["v_target"], rollout, gamma=0.9, td_lambda=0.5, pessimism=0.5)
    values = n["v_critics"](rollout.latents[:-1].flatten(0, 1))
    return critic_loss(values, targets.flatten(), weights.flatten())[0]


@pytest.mark.parametrize(
    ("trained", "objective"),
    [
        ("world_model", model_objective),
        ("actor", lambda *args: actor_objective(*args, q_critic=True)),
        ("actor", lambda *args: actor_objective(*args, q_critic=False)),
        ("q_critics", q_objective),
        ("v_critics", v_objective),
    ],
    ids=["world model", "actor with Q", "actor with V", "Q", "V"],
)
def test_each_loss_changes_its_own_network_and_no_other(
    networks: dict[str, Any], samples: SequenceSamples, trained: str, objective: Callable[..., Any]
) -> None:
    # every network gets a gradient unless something prevents it: nothing here is frozen or detached by the test
    before = copy.deepcopy({name: network.state_dict() for name, network in networks.items()})
    observations = torch.randn(LENGTH + 1, BATCH, 3)
    optimizer = torch.optim.Adam(networks[trained].parameters(), lr=0.01)
    loss = objective(networks, samples, observations)
    assert apply_gradients(optimizer, loss, networks[trained].parameters(), 100.0)
    for name, network in networks.items():
        if name == trained:
            assert all((p != before[name][key]).any() for key, p in network.named_parameters())
        else:
            assert all(p.grad is None for p in network.parameters())
            assert_close(network.state_dict(), before[name], rtol=0, atol=0)


@pytest.mark.parametrize("objective", [q_objective, v_objective])
def test_targets_carry_no_gradient(
    networks: dict[str, Any], samples: SequenceSamples, objective: Callable[..., Any]
) -> None:
    loss = objective(networks, samples, torch.randn(LENGTH + 1, BATCH, 3))
    parameters = [*networks["q_target"].parameters(), *networks["v_target"].parameters()]
    assert set(torch.autograd.grad(loss, parameters, allow_unused=True)) == {None}


def test_metrics_are_detached(
    world_model: WorldModel, actor: Actor, v_critics: CriticEnsemble, samples: SequenceSamples
) -> None:
    parts = [
        world_model_loss(
            world_model,
            samples,
            samples.rewards,
            simplices(BATCH),
            simplices(LENGTH, BATCH),
            some_features(),
            **COEFFICIENTS,
        ),
        actor_loss(nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), torch.ones(2), ONE, ent_coef=0.1),
        critic_loss(v_critics(simplices(BATCH)), torch.zeros(BATCH), torch.ones(BATCH)),
    ]
    for loss, metrics in parts:
        assert loss.requires_grad
        assert loss.shape == ()
        assert all(value.shape == () and not value.requires_grad for value in metrics.values())
