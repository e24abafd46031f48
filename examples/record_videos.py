"""Train PWM for some minutes and record it: while it learns, before beside after, and what it imagines.

    python examples/record_videos.py                                          # HalfCheetah-v5
    python examples/record_videos.py --env Hopper-v5 --steps 10000 --out hopper

Writes to ``--out``: a video after each third of the training (``training/``), ``untrained.mp4`` and ``trained.mp4``,
both side by side (``grid.mp4``), the world model's prediction beside what happened (``imagined.mp4``), and frames of
its first prediction (``imagined.png``).
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sb3_pwm import PWM
from sb3_pwm.video import (
    RecordVideoCallback,
    frame_strip,
    grid_video,
    record_imagination,
    record_video,
    use_headless_rendering,
)
from sb3_pwm.video.frames import read_video

MIN_STEPS = 1_000  # from which the decoder learns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="a MuJoCo environment whose observation is its state")
    parser.add_argument("--steps", type=int, default=8_000, help=f"environment steps, at least {MIN_STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video-steps", type=int, default=150, help="steps in a video")
    parser.add_argument("--horizon", type=int, default=50, help="steps until the prediction starts again")
    parser.add_argument("--out", type=Path, default=Path("videos"), help="folder")
    args = parser.parse_args()
    if args.steps < MIN_STEPS:
        parser.error(f"--steps must be at least {MIN_STEPS}")

    torch.set_num_threads(1)  # more gain little, and lose much on a busy machine
    use_headless_rendering()
    options: dict[str, Any] = {"seed": args.seed, "max_steps": args.video_steps}
    warm_up = min(1_000, args.steps // 2)
    model = PWM("MlpPolicy", args.env, learning_starts=warm_up, pretrain_steps=warm_up, seed=args.seed, device="cpu")
    [untrained] = record_video(model, args.env, args.out / "untrained.mp4", **options)
    model.learn(
        args.steps, callback=RecordVideoCallback(args.env, args.out / "training", max(1, args.steps // 3), **options)
    )
    [trained] = record_video(model, args.env, args.out / "trained.mp4", **options)
    print(f"return of {args.video_steps} steps or less: untrained {untrained:.1f}, trained {trained:.1f}")
    names = ("untrained", "trained")
    grid_video([(name, args.out / f"{name}.mp4") for name in names], args.out / "grid.mp4")

    [episode] = record_imagination(model, args.env, args.out / "imagined.mp4", horizon=args.horizon, **options)
    print(f"return {episode.episode_return:.1f}, imagined {episode.imagined_return:.1f}")
    print(f"model error {episode.errors.mean():.2f} standard deviations on average")
    print("decoder's held-out R^2:", " ".join(f"{value:.2f}" for value in episode.decoder_r2))
    first = islice(read_video(args.out / "imagined.mp4")[1], args.horizon + 1)
    frame_strip(first, args.out / "imagined.png", 6, columns=2, width=600)
    print(f"videos: {args.out}")


if __name__ == "__main__":
    main()
