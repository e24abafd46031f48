"""Compare the return of imagined rollouts with the value of the states where they start.

    python examples/research/imagined_gain.py model.zip --env Ant-v5 --out gain.csv

Lets a trained policy collect steps, and starts rollouts of 1 to 8 steps at them. For the same stochastic policy three
means should be equal, up to what the critics do not know:

- value: of the start states;
- imagined: the return of rollouts in which the policy chooses every action, ended by the value of the last state;
- recorded: the same with the actions that the policy took in the environment from there.

"imagined" far above the other two means that the policy has learnt actions, at imagined states only, that lead the
model to latents which the critics value too highly. All are in reward scales.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from stable_baselines3.common.env_util import make_vec_env

from sb3_pwm import PWM
from sb3_pwm.imagination import imagine
from sb3_pwm.losses import state_values
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.world_model import encode_windows

HORIZONS = (1, 2, 4, 8)
COLUMNS = ("env", "seed", "horizon", "windows", "value", "imagined", "recorded")


def ended(
    policy: PWMPolicy, gamma: float, latents: torch.Tensor, rewards: torch.Tensor, continuations: torch.Tensor
) -> torch.Tensor:
    """Return the (B,) returns of rollouts with (H + 1, B, Z) latents, ended by the critics' values."""
    values, _ = state_values(policy.critics, policy.actor, latents[-1], q_critic=policy.q_critic)
    return imagined_returns(rewards, continuation_weights(continuations), values, gamma)


def measure(policy: PWMPolicy, samples: SequenceSamples, gamma: float, horizon: int) -> dict[str, float]:
    """Return the three means over whole windows of ``horizon`` steps."""
    whole = samples.mask.min(0).values > 0
    start = encode_windows(policy.world_model, samples.observations[:1])[0]  # type: ignore[index]
    values, _ = state_values(policy.critics, policy.actor, start, q_critic=policy.q_critic)
    rollout = imagine(policy.world_model, policy.actor, start, horizon)
    imagined = ended(policy, gamma, rollout.latents, rollout.rewards, rollout.continuations)
    states = [start]
    for step in range(horizon):
        states.append(policy.world_model.next_latents(states[-1], samples.actions[step], step))
    latents = torch.stack(states)
    outcomes = policy.world_model.outcomes(latents, samples.actions, terminations=True)
    recorded = ended(policy, gamma, latents, *outcomes)
    means = {"value": values, "imagined": imagined, "recorded": recorded}
    return {"windows": int(whole.sum())} | {name: round(float(each[whole].mean()), 2) for name, each in means.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--steps", type=int, default=4_000, help="of the policy, with its noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="CSV to which rows are added")
    args = parser.parse_args()
    torch.set_num_threads(1)
    venv = make_vec_env(args.env, seed=args.seed)
    model = PWM.load(args.model, venv, device="cpu", gradient_steps=0, learning_starts=0)
    model.set_random_seed(args.seed)
    model.learn(args.steps, reset_num_timesteps=False)
    model.policy.set_training_mode(False)
    new = not args.out.exists()
    with args.out.open("a", newline="") as file, torch.no_grad():
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for horizon in HORIZONS:
            samples = model._sample(2_000, length=horizon)
            row = measure(model.policy, samples, model.gamma, horizon)
            print(f"{args.env}, {horizon} steps: {row}")
            writer.writerow({"env": args.env, "seed": args.seed, "horizon": horizon} | row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
