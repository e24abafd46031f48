"""Print a hash of everything that a short run learnt, to see whether two revisions compute the same bits.

    python examples/research/fingerprint.py                                # this revision
    PYTHONPATH=/path/to/other/checkout python examples/research/fingerprint.py

The same lines on the same machine: the same parameters, buffers, replayed steps and log, bit for bit.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch

import sb3_pwm
from sb3_pwm import PWM


def fingerprint(model: PWM) -> str:
    """Return a hash of the networks, the optimizers' states and the stored steps of a model."""
    digest = hashlib.sha256()
    for tensor in model.policy.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    for _, optimizer in sorted(model.policy.optimizers.items()):
        for state in optimizer.state.values():
            for value in state.values():
                digest.update(np.asarray(value).tobytes())
    size = model.replay_buffer.size()
    for name in ("observations", "actions", "rewards", "dones"):
        digest.update(getattr(model.replay_buffer, name)[:size].tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["Pendulum-v1", "HalfCheetah-v5"])
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--save", type=Path, help="folder for the models and their replay buffers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# sb3_pwm {sb3_pwm.__version__}, torch {torch.__version__}")
    for env in options.env:
        model = PWM("MlpPolicy", env, seed=0, device="cpu").learn(options.steps)
        print(f"{env} after {options.steps} steps: {fingerprint(model)}", flush=True)
        if options.save:
            model.save(options.save / env)
            model.save_replay_buffer(options.save / f"{env}-buffer")
            model.save_world_model(options.save / f"{env}-world-model.pt")


if __name__ == "__main__":
    main()
