"""Draw README's moving picture: a trained policy beside what its world model imagines.

    python examples/research/readme_picture.py

Trains PWM on a CPU for some minutes, records an mp4 video (``--video``), and makes a gif of it (``--out``) that is
small enough for a page. With ``--from-video`` only the latter.
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from PIL import Image

from sb3_pwm import PWM
from sb3_pwm.video import record_imagination, use_headless_rendering
from sb3_pwm.video.frames import read_video

COLORS = 96  # files are small, and what is drawn has few colours
SIZE: dict[str, Any] = {"width": 320, "height": 240}


def make_env() -> gym.Env[Any, Any]:
    return gym.make("HalfCheetah-v5", render_mode="rgb_array", **SIZE)


def record(video: Path, steps: int, seed: int, video_steps: int, horizon: int) -> None:
    """Train, and record the policy beside the model's predictions."""
    torch.set_num_threads(1)  # more gain little, and lose much on a busy machine
    use_headless_rendering()
    model = PWM("MlpPolicy", "HalfCheetah-v5", seed=seed, device="cpu").learn(steps)
    [episode] = record_imagination(model, make_env, video, horizon=horizon, seed=seed, max_steps=video_steps)
    print(f"return of {video_steps} steps {episode.episode_return:.1f}, imagined {episode.imagined_return:.1f}")
    print(f"model error {episode.errors.mean():.2f} standard deviations on average")


def write_gif(video: Path, out: Path, n_frames: int) -> None:
    """Write the first frames with one palette; then frames differ only where something moves."""
    fps, frames = read_video(video)
    images = [Image.fromarray(frame) for frame in islice(frames, n_frames)]
    palette = images[len(images) // 2].quantize(COLORS, Image.Quantize.MAXCOVERAGE)  # keeps the rare colours
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    out.parent.mkdir(parents=True, exist_ok=True)
    duration = 10 * round(100 / fps)  # a gif counts hundredths of seconds
    drawn[0].save(out, save_all=True, append_images=drawn[1:], duration=duration, loop=0, optimize=True)
    print(f"{out}: {len(drawn)} frames, {out.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15_000, help="environment steps of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video-steps", type=int, default=120, help="steps in the video")
    parser.add_argument("--horizon", type=int, default=40, help="steps until the prediction starts again")
    parser.add_argument("--video", type=Path, default=Path("videos/policy_and_imagination.mp4"))
    parser.add_argument("--gif-steps", type=int, default=80, help="of them in the gif")
    parser.add_argument("--from-video", action="store_true", help="the video is there already")
    parser.add_argument("--out", type=Path, default=Path("docs/images/policy_and_imagination.gif"))
    args = parser.parse_args()
    if not args.from_video:
        record(args.video, args.steps, args.seed, args.video_steps, args.horizon)
    write_gif(args.video, args.out, args.gif_steps + 1)


if __name__ == "__main__":
    main()
