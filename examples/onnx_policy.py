"""Act with an exported policy: onnxruntime and NumPy, neither torch nor Stable-Baselines3.

sb3-pwm export pwm.zip --out pwm.onnx
python examples/onnx_policy.py pwm.onnx --env Pendulum-v1
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("policy")
parser.add_argument("--env", default="Pendulum-v1")
arguments = parser.parse_args()

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(arguments.policy, options)
env = gym.make(arguments.env)
observation, _ = env.reset(seed=0)
done, total, steps, seconds = False, 0.0, 0, 0.0
while not done:
    started = time.perf_counter()
    (action,) = session.run(["action"], {"observation": np.asarray(observation, np.float32)[None]})
    seconds += time.perf_counter() - started
    observation, reward, terminated, truncated, _ = env.step(action[0])
    done, total, steps = terminated or truncated, total + float(reward), steps + 1
print(f"return {total:.1f}, {steps / seconds:,.0f} actions per second")
