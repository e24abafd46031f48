"""Count how often Meta-World pays its full reward with and without success, while the scripted experts act.

    python examples/research/metaworld_rewards.py --out docs/results/many-tasks/mt50/rewards.csv

Four episodes of each task of MT50. A policy that is learnt from rewards can hold success only where they tell the two
apart.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from sb3_pwm.suites import mt50
from sb3_pwm.suites.experts import noisy_expert, record_episode

FULL = 19.9  # of 20 that a step can give
FIELDS = ["task", "full_and_success", "full_without_success", "success_without_full"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    suite, rng = mt50(), np.random.default_rng(0)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for name in suite.names:
            env = suite[suite.task_id(name)].make_env()
            expert = noisy_expert(ENV_POLICY_MAP[f"{name.removeprefix('mw-')}-v3"](), 0.0, rng)
            counts = np.zeros(3, dtype=int)
            for episode in range(args.episodes):
                rows, successes = record_episode(env, expert, seed=episode)
                full, success = np.array([row["rewards"] for row in rows]) >= FULL, np.array(successes)
                counts += [(full & success).sum(), (full & ~success).sum(), (success & ~full).sum()]
            env.close()
            writer.writerow([name, *counts])


if __name__ == "__main__":
    main()
