"""Record Meta-World's scripted experts, with and without noise: data for ``multitask_offline.py``.

    python examples/research/metaworld_data.py --episodes 100 --seed 0 --out metaworld

This writes ``metaworld/mw-reach.npz`` and so on for the tasks of ``sb3_pwm.suites.mt10()``, in the D4RL layout, and
needs the simulators (make install-multitask). The episodes are those of the suite: each action is taken twice, and the
time is out after 100 steps. The expert as it is, the expert with Gaussian noise of several sizes and random actions
take turns, an episode each. Printed is how many episodes were successful at their last step, and how many at any: the
expert of mw-door-open, for one, does not stay where it has succeeded.
"""

import argparse
from pathlib import Path

import numpy as np

from sb3_pwm.suites import mt10
from sb3_pwm.suites.experts import record_expert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = mt10()
    names = tasks.names
    parser.add_argument("--task", nargs="+", default=names, choices=names, metavar="NAME", help="(default: all ten)")
    parser.add_argument("--episodes", type=int, default=100, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.task:
        data, rates = record_expert(tasks[tasks.task_id(name)], args.episodes, args.seed)
        np.savez_compressed(args.out / f"{name}.npz", allow_pickle=False, **data)
        print(f"{name}: {len(data['rewards'])} steps; success at the last step, at any step")
        for noise, (last, once) in rates.items():
            what = "random actions" if noise is None else f"expert with noise {noise}" if noise else "expert"
            print(f"  {what}: {last:.2f}, {once:.2f}", flush=True)


if __name__ == "__main__":
    main()
