"""
Train, write the policy with its normalisation to an ONNX file, and run it without PyTorch (pip install '.[onnx]').
"""

import os

import gymnasium as gym
import onnxruntime

import sb3_trpo

STEPS = int(os.environ.get("STEPS", "100_000"))

model = sb3_trpo.make("Pendulum-v1", seed=0, n_timesteps=STEPS, normalize=True, device="cpu")
model.learn()
sb3_trpo.export_onnx(model, "pendulum.onnx")

session = onnxruntime.InferenceSession("pendulum.onnx")
env = gym.make("Pendulum-v1")
observation, _ = env.reset(seed=1_000_000)
total, is_over = 0.0, False
while not is_over:
    (actions,) = session.run(["action"], {"observation": observation[None]})
    observation, reward, terminated, truncated, _ = env.step(actions[0])
    total += reward
    is_over = terminated or truncated
print(f"Return of the file: {total:.0f}")
