"""VecEnvs that give tensors: what is stored is what a NumPy environment would give, and tensors stay tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make, same
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from tensor_toys import AsArrays, PointEnv, as_arrays
from test_device_copy import let_cpu_have_copies

from sb3_pwm import PWM
from sb3_pwm.planning.planner import PlanningPWM
from sb3_pwm.replay.device_copy import DeviceCopy
from sb3_pwm.replay.watched_env import OwnArrays

pytestmark = pytest.mark.filterwarnings("ignore:nothing was learnt")
POLICIES = pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])


def stored(model: Any) -> dict[str, Any]:
    """Return a copy of all that a model's replay buffer holds."""
    buffer = model.replay_buffer
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return {name: torch_copy(getattr(buffer, name)) for name in names} | {"place": (buffer.pos, buffer.full)}


def torch_copy(values: Any) -> Any:
    return {key: torch_copy(part) for key, part in values.items()} if isinstance(values, dict) else torch.tensor(values)


def learnt(env: Any, policy: str = "MlpPolicy", steps: int = 72, **kwargs: Any) -> PWM:
    return make(env, policy, **({"buffer_size": 60, "pretrain_steps": 1} | kwargs)).learn(steps)


# --- what is stored ---


@POLICIES
@pytest.mark.parametrize("kind", ["numbers", "noise", "discrete"])
def test_learning_is_that_with_arrays(policy: str, kind: str) -> None:
    spaces = {"as_dict": policy == "MultiInputPolicy", "discrete": kind == "discrete"}
    noise = NormalActionNoise(np.zeros(2), np.full(2, 0.1)) if kind == "noise" else None
    env = PointEnv(**spaces)
    tensors = learnt(env, policy, action_noise=noise)
    arrays = learnt(AsArrays(PointEnv(**spaces)), policy, action_noise=noise)
    assert all(isinstance(actions, torch.Tensor) for actions in env.received)
    assert same(stored(tensors), stored(arrays))
    assert same(tensors.policy.state_dict(), arrays.policy.state_dict())
    assert tensors._n_updates > 0
    timeouts = stored(tensors)["timeouts"]
    assert 0 < timeouts.sum() < stored(tensors)["dones"].sum()  # both kinds of ends
    assert list(tensors.ep_info_buffer or []) == list(arrays.ep_info_buffer or []) != []
    assert list(tensors.ep_success_buffer or []) == list(arrays.ep_success_buffer or [])
    assert set(tensors.ep_success_buffer or []) == {False, True}


class Coarse(PointEnv):
    """Gives its observations in bfloat16, or what is left of them in float32."""

    dtype = torch.bfloat16

    def observe(self) -> Any:
        return super().observe().bfloat16().to(self.dtype)


class Rounded(Coarse):
    dtype = torch.float32


def test_bfloat16_is_stored_as_float32() -> None:
    model, arrays = learnt(Coarse(), steps=30), learnt(AsArrays(Rounded()), steps=30)
    assert same(stored(model), stored(arrays))
    assert model.sequences.observations.dtype == np.float32


@POLICIES
def test_observations_and_actions_stay_on_the_device(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_dict = policy == "MultiInputPolicy"
    arrays = learnt(AsArrays(PointEnv(as_dict=as_dict)), policy)
    let_cpu_have_copies(monkeypatch)
    converted = []
    to_numpy = torch.Tensor.numpy

    def numpy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
        converted.append(tuple(tensor.shape))
        return to_numpy(tensor, *args, **kwargs)

    def bring_up_to_date(copy: DeviceCopy, *_: Any) -> None:
        assert copy.n_stale == 0  # nothing is sent from the arrays

    env = PointEnv(as_dict=as_dict)
    model: Any = make(env, policy, buffer_size=60, pretrain_steps=1)
    with monkeypatch.context() as counting:
        counting.setattr(torch.Tensor, "numpy", numpy)
        counting.setattr(DeviceCopy, "bring_up_to_date", bring_up_to_date)
        model.learn(72)
    assert set(converted) == {(), (3,)}  # figures of episodes, and rewards and dones of the three environments
    assert converted.count((3,)) == 2 * 24
    assert not vars(model.replay_buffer)["actions"].any()
    assert same(stored(model), stored(arrays))
    assert same(model.policy.state_dict(), arrays.policy.state_dict())


def test_several_learns_go_on() -> None:
    """Also after somebody else has moved the environment."""
    models = []
    for env in (PointEnv(), AsArrays(PointEnv())):
        model = learnt(env, steps=48).learn(24, reset_num_timesteps=False)
        env.reset()
        with pytest.warns(UserWarning, match="somebody else"):
            models.append(model.learn(24, reset_num_timesteps=False))
    assert same(stored(models[0]), stored(models[1]))


def test_the_step_at_which_a_callback_stops_is_stored() -> None:
    steps = []

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            steps.append({name: self.locals[name] for name in ("new_obs", "rewards", "dones", "infos")})
            return self.n_calls < 9

    model: Any = make(PointEnv()).learn(100, Stop())
    buffer = model.replay_buffer
    assert buffer.pos == 9
    assert isinstance(steps[-1]["new_obs"], torch.Tensor)
    assert [type(steps[-1][name]) for name in ("rewards", "dones")] == [np.ndarray] * 2
    assert np.array_equal(buffer.rewards[:9], [step["rewards"] for step in steps])  # none is overwritten later
    for step, row in zip(steps, buffer.next_observations, strict=False):
        ended = {i: info["terminal_observation"] for i, info in enumerate(step["infos"]) if step["dones"][i]}
        expected = [ended.get(i, seen) for i, seen in enumerate(step["new_obs"])]
        assert np.array_equal(row, torch.stack(expected))


@pytest.mark.parametrize("where", ["observation", "terminal observation"])
def test_what_is_not_finite_is_refused(where: str) -> None:
    class Broken(PointEnv):
        def step_wait(self) -> Any:
            step = super().step_wait()
            if where == "observation" and self.times[1] == 3:
                self.state[1, 2] = torch.inf
            if where != "observation" and step[2][1]:
                step[3][1]["terminal_observation"][2] = torch.inf
            return step

    with pytest.raises(ValueError, match=f"the {where} of environment 1 at step .* is inf"):
        make(Broken()).learn(60)


def test_arrays_and_tensors_can_be_mixed() -> None:
    class Mixed(PointEnv):
        def reset(self) -> Any:
            return {**super().reset(), "time": self.times[:, None].float().numpy()}

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            for info in infos[1:]:
                if info:
                    info["terminal_observation"] = as_arrays(info["terminal_observation"])
            return {**observations, "time": observations["time"].numpy()}, rewards.numpy(), dones, infos

    mixed = learnt(Mixed(as_dict=True), "MultiInputPolicy")
    assert same(stored(mixed), stored(learnt(PointEnv(as_dict=True), "MultiInputPolicy")))


# --- what else a model does with such an environment ---


@POLICIES
def test_predict_takes_tensors(policy: str) -> None:
    env = PointEnv(as_dict=policy == "MultiInputPolicy")
    model: Any = make(env, policy)
    observations = env.reset()
    for deterministic in (True, False):
        torch.manual_seed(0)
        actions, _ = model.predict(observations, deterministic=deterministic)
        torch.manual_seed(0)
        assert np.array_equal(actions, model.predict(as_arrays(observations), deterministic=deterministic)[0])
    one = {key: part[0] for key, part in observations.items()} if isinstance(observations, dict) else observations[0]
    assert model.predict(one)[0].shape == (2,)
    wrong = {**one, "state": torch.zeros(4)} if isinstance(one, dict) else torch.zeros(3, 4)
    with pytest.raises(ValueError, match="shape"):
        model.predict(wrong)


def test_planning_takes_tensors() -> None:
    kwargs = {"planner_kwargs": {"n_samples": 8, "n_elites": 2, "n_policy_trajectories": 2, "n_iterations": 1}}
    settings: Any = {"buffer_size": 60, "learning_starts": 10, "pretrain_steps": 1, "batch_size": 4, "device": "cpu"}
    env = PointEnv()
    model = PlanningPWM("MlpPolicy", env, seed=0, **settings, **kwargs).learn(18)
    assert model.predict(env.reset())[0].shape == (3, 2)
    assert all(isinstance(actions, torch.Tensor) for actions in env.received)


def test_evaluations_take_tensors() -> None:
    model = learnt(PointEnv())
    found = []
    for env in (PointEnv(), AsArrays(PointEnv())):
        torch.manual_seed(0)
        found.append((model.value_calibration(env, 4), model.model_gap(env, 4)))
    assert found[0] == found[1]


@pytest.mark.parametrize("weights_only", [False, True])
def test_models_are_saved_without_tensors_of_the_environment(weights_only: bool, tmp_path: Path) -> None:
    env = PointEnv()
    model: Any = learnt(env)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    again = PWM.load(tmp_path / "model", env, force_reset=False, weights_only=weights_only)
    assert again._last_obs is None
    again.load_replay_buffer(tmp_path / "buffer")
    again.learn(9, reset_num_timesteps=False)
    model.load_replay_buffer(tmp_path / "buffer")
    buffer = model.replay_buffer
    assert not buffer.dones[buffer.pos - 1].all()  # its episodes go on
    model._last_obs = model._last_original_obs + 1
    model._last_original_obs = model._last_obs
    model.load_replay_buffer(tmp_path / "buffer")
    buffer = model.replay_buffer
    assert buffer.dones[buffer.pos - 1].all()


def test_what_takes_arrays_alone_says_so() -> None:
    for env, policy in ((PointEnv(), "MlpPolicy"), (PointEnv(as_dict=True), "MultiInputPolicy")):
        with pytest.raises(TypeError, match=r"gives tensors, and VecNormalize takes arrays only.*OwnArrays"):
            make(VecNormalize(env, norm_obs=False, norm_reward=False), policy).learn(30)
        with pytest.raises(TypeError, match=r"gives tensors, and VecMonitor takes arrays only.*OwnArrays"):
            make(VecMonitor(env), policy).learn(30)
    arrays = learnt(VecNormalize(AsArrays(PointEnv())))
    assert same(stored(learnt(VecNormalize(OwnArrays(PointEnv())))), stored(arrays))
    assert same(stored(learnt(VecMonitor(OwnArrays(PointEnv())))), stored(learnt(VecMonitor(AsArrays(PointEnv())))))
