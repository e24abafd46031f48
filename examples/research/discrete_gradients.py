r"""How gradients of discrete actions compare, in the world models of trained policies.

    python examples/research/discrete_gradients.py --env CartPole-v1 --models results/CartPole-v1/pwm/*/model.zip \
      --states 100 --draws 50 --out docs/research/discrete_gradients.csv

The gradient is that of the actor's objective, the imagined return of H steps ended by the critics' value, by an offset
added to the logits: one number per category and start state. There are few enough sequences of actions to sum over all
of them, which gives the truth, in the model. Estimates, each drawn many times in every state:

- straight-through: PWM's, of drawn actions.
- Gumbel: straight-through, with the gradient of a Gumbel-softmax (arXiv 1611.01144) of a temperature.
- first action exact: the mean over all first actions, then straight-through.
"""

import argparse
import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from does_the_model_help import visited_observations

from sb3_pwm import PWM
from sb3_pwm.imagination import imagine
from sb3_pwm.losses import values_of_all
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.returns import continuation_weights, imagined_returns

HORIZONS = (1, 2, 4)
Draw = Callable[[torch.Tensor, int], torch.Tensor]  # (N, K) log-probabilities and the step -> (N, K) codes


class OffsetActor(torch.nn.Module):
    """The policy with an offset for each of N rollouts, and actions drawn as told; it keeps their log-probabilities.

    :param policy: the policy.
    :param offsets: (N, K) offsets of the logits.
    :param draw: how codes come from log-probabilities.
    """

    def __init__(self, policy: PWMPolicy, offsets: torch.Tensor, draw: Draw) -> None:
        super().__init__()
        self.policy, self.offsets, self.draw = policy, offsets, draw
        self.action_dim = offsets.shape[-1]
        self.log_probs: list[torch.Tensor] = []

    def log_prob_of_first(self, count: int) -> torch.Tensor:
        """Return the (N,) log-probabilities of the first actions together."""
        return torch.stack(self.log_probs[:count]).sum(0)

    def all_log_probs(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) log-probabilities in (N, Z) latents."""
        return (self.policy.actor.distribution(latents.detach()) + self.offsets).log_softmax(-1)  # type: ignore[operator]

    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, K) codes, and their (N,) log-probabilities."""
        log_probs = self.all_log_probs(latents)
        codes = self.draw(log_probs, len(self.log_probs))
        self.log_probs.append((log_probs * codes.detach()).sum(-1))
        return codes, self.log_probs[-1]


def straight_through(log_probs: torch.Tensor, _: int) -> torch.Tensor:
    """Draw codes with the gradient of the probabilities."""
    codes = torch.nn.functional.one_hot(torch.distributions.Categorical(logits=log_probs).sample(), log_probs.shape[-1])
    return codes + log_probs.exp() - log_probs.exp().detach()


def gumbel(temperature: float) -> Draw:
    """Return how codes are drawn with the gradient of a Gumbel-softmax."""
    return lambda log_probs, _: torch.nn.functional.gumbel_softmax(log_probs, temperature, hard=True)


def given(sequence: tuple[int, ...], rest: Draw = straight_through) -> Draw:
    """Return how the actions of a sequence are taken, and those after it drawn."""

    def draw(log_probs: torch.Tensor, step: int) -> torch.Tensor:
        if step >= len(sequence):
            return rest(log_probs, step)
        return torch.eye(log_probs.shape[-1])[sequence[step]].expand_as(log_probs)

    return draw


def returns_of(model: PWM, actor: OffsetActor, starts: torch.Tensor, horizon: int) -> torch.Tensor:
    """Return the (N,) imagined returns of rollouts from (N, Z) latents."""
    policy = model.policy
    rollout = imagine(policy.world_model, actor, starts, horizon)  # type: ignore[arg-type]
    last = rollout.latents[-1]
    values = values_of_all(policy.critics, last, torch.eye(actor.action_dim)).mean(0)
    value = (actor.all_log_probs(last).exp() * values).sum(-1)
    return imagined_returns(rollout.rewards, continuation_weights(rollout.continuations), value, model.gamma)


def gradients(model: PWM, starts: torch.Tensor, horizon: int) -> dict[str, np.ndarray]:
    """Return the (N, K) gradients of each estimate; the first is the truth."""
    n, n_actions = len(starts), model.policy.actor.action_dim

    def gradient(*terms: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        offsets = torch.zeros(n, n_actions, requires_grad=True)
        for term in terms:  # one by one, to hold one graph at a time
            term(offsets).sum().backward()
        assert offsets.grad is not None
        return offsets.grad.double().numpy()

    def drawn(draw: Draw) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda offsets: returns_of(model, OffsetActor(model.policy, offsets, draw), starts, horizon)

    def term(sequence: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
        def weighted(offsets: torch.Tensor) -> torch.Tensor:
            actor = OffsetActor(model.policy, offsets, given(sequence))
            returns = returns_of(model, actor, starts, horizon)
            return actor.log_prob_of_first(len(sequence)).exp() * returns

        return weighted

    def mean_over(length: int) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        return [term(sequence) for sequence in itertools.product(range(n_actions), repeat=length)]

    return {
        "truth": gradient(*mean_over(horizon)),
        "straight-through": gradient(drawn(straight_through)),
        "Gumbel, temperature 1": gradient(drawn(gumbel(1.0))),
        "Gumbel, temperature 0.5": gradient(drawn(gumbel(0.5))),
        "first action exact": gradient(*mean_over(1)),
    }


def visited_latents(model: PWM, env_id: str, count: int, seed: int) -> torch.Tensor:
    """Return the (count, Z) latents of states that the stochastic policy visits, of several episodes."""
    observations = visited_observations(model, env_id, count, seed, every=5)
    with torch.no_grad():
        return model.policy.world_model.encode(torch.as_tensor(observations))


def compared(each: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return cosine, bias and noise of an estimate; the last two in sizes (root mean squares) of the truth.

    :param each: (S, M, K) estimates in S states, drawn M times.
    :param truth: (S, K) what their means should be.
    :return: the cosine of the means to the truth, over all states; the size of their difference, less what M draws
        leave of the noise; and the standard deviation of a single estimate.
    """
    means, variances = each.mean(1), each.var(1, ddof=1)
    size = np.sqrt((truth**2).mean())
    cosine = float((means * truth).sum() / np.linalg.norm(means) / np.linalg.norm(truth))
    squared_bias = ((means - truth) ** 2 - variances / each.shape[1]).mean()
    return cosine, float(np.sqrt(max(squared_bias, 0)) / size), float(np.sqrt(variances.mean()) / size)


def main() -> None:
    """Write one row for each model, horizon and estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, metavar="ID")
    parser.add_argument("--models", required=True, nargs="+", type=Path, metavar="MODEL.zip")
    parser.add_argument("--states", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200, help="per state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    rows = []
    for path in options.models:
        torch.manual_seed(options.seed)
        model = PWM.load(path, device="cpu")
        model.policy.set_training_mode(False)
        starts = visited_latents(model, options.env, options.states, options.seed).repeat_interleave(options.draws, 0)
        for horizon in HORIZONS:
            found = gradients(model, starts, horizon)
            truth = found.pop("truth").reshape(options.states, options.draws, -1)
            for name, each in found.items():
                figures = compared(each.reshape(truth.shape), truth[:, 0])
                rows.append([options.env, model.seed, horizon, name, *(f"{number:.3g}" for number in figures)])
                print(*rows[-1], sep=",", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("env", "seed", "horizon", "estimate", "cosine", "bias", "noise"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
