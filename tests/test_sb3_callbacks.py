import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_by_fours as make
from helpers import space_envs
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.vec_env import VecNormalize
from tqdm import TMonitor

from sb3_pwm import PWM


def test_eval_callback(tmp_path: Path) -> None:
    paths: dict[str, Any] = {"log_path": tmp_path, "best_model_save_path": tmp_path}
    callback = EvalCallback(space_envs(), n_eval_episodes=2, eval_freq=20, verbose=0, **paths)
    make().learn(48, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [20, 40]
    assert PWM.load(tmp_path / "best_model").num_timesteps in (20, 40)


def test_eval_callback_follows_the_statistics_of_vec_normalize() -> None:
    evaluation: Any = VecNormalize(space_envs(), training=False, norm_reward=False)
    model = make(VecNormalize(space_envs())).learn(20, callback=EvalCallback(evaluation, eval_freq=20, verbose=0))
    np.testing.assert_array_equal(evaluation.obs_rms.mean, model.get_env().obs_rms.mean)
    assert evaluation.obs_rms.count > 20


def test_checkpoint_callback(tmp_path: Path) -> None:
    model = make(VecNormalize(space_envs()))
    callback = CheckpointCallback(20, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    model.learn(40, callback=callback)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"rl_model_{name}{steps}_steps.{end}"
        for steps in (20, 40)
        for name, end in (("", "zip"), ("replay_buffer_", "pkl"), ("vecnormalize_", "pkl"))
    }
    env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_20_steps.pkl"), space_envs())
    loaded = PWM.load(tmp_path / "rl_model_20_steps", env=env)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_20_steps.pkl")
    assert loaded.replay_buffer.n_transitions == 19  # SB3 calls back before it stores the step
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40
    assert loaded._n_updates > 0


def test_stopping_callbacks() -> None:
    assert make().learn(100, callback=StopTrainingOnMaxEpisodes(3)).num_timesteps == 21
    best = EvalCallback(
        space_envs(),
        eval_freq=25,
        callback_on_new_best=StopTrainingOnRewardThreshold(-100),
        verbose=0,
    )
    assert make().learn(100, callback=best).num_timesteps == 25


class Cancel(BaseCallback):
    ended = False

    def _on_step(self) -> bool:
        return self.num_timesteps < 30

    def _on_training_end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    "callback",
    [
        Cancel(),
        lambda local, _: local["self"].num_timesteps < 30,
        [StopTrainingOnMaxEpisodes(100), Cancel()],
    ],
    ids=["object", "function", "list"],
)
def test_cancelling_callbacks(callback: Any) -> None:
    model = make().learn(100, callback=callback)
    assert model.num_timesteps == 30
    if isinstance(callback, Cancel):
        assert callback.ended


class Locals(BaseCallback):
    """Remember what SB3 promises to callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.names: set[str] = set()

    def _on_training_start(self) -> None:
        self.calls.append("start")
        assert self.locals["total_timesteps"] == 24

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout")

    def _on_step(self) -> bool:
        self.names |= set(self.locals)
        return True

    def _on_training_end(self) -> None:
        self.calls.append("end")


def test_callbacks_see_what_sb3_shows() -> None:
    ours, theirs = Locals(), Locals()
    make().learn(24, callback=ours)
    SAC("MlpPolicy", space_envs(), learning_starts=100, train_freq=4, buffer_size=100).learn(24, callback=theirs)
    assert ours.calls == theirs.calls == ["start", *["rollout"] * 6, "end"]
    assert ours.names >= theirs.names


@pytest.mark.parametrize("as_argument", [True, False])
def test_progress_bars(capfd: pytest.CaptureFixture[str], as_argument: bool) -> None:
    callback = None if as_argument else ProgressBarCallback()
    model = make(pretrain_steps=30).learn(40, callback=callback, progress_bar=as_argument)
    output = "".join(capfd.readouterr())
    assert ("100%" in output) != as_argument
    assert ("world model" in output) == as_argument
    assert ("time left" in output) == as_argument
    assert model.n_model_updates == 30 + 6  # every fourth step from 20 to 40


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_nothing_draws_after_ctrl_c(nested: bool, offline: bool) -> None:
    """A thread that draws a bar while the interpreter ends can hold it up for ever."""

    def interrupt(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= 8:
            raise KeyboardInterrupt
        return True

    model = make().learn(40) if offline else make()
    bar = ProgressBarCallback()
    before = set(threading.enumerate())
    learn = model.learn_offline if offline else model.learn
    with pytest.raises(KeyboardInterrupt):
        learn(40, callback=[CallbackList([bar]) if nested else bar, ConvertCallback(interrupt)])
    # tqdm's monitor draws nothing that it would need a lock for, and lives as long as the interpreter
    drawing = [t for t in set(threading.enumerate()) - before if not isinstance(t, TMonitor)]
    for thread in drawing:
        thread.join(10)  # it has been told to end, and does so a moment later
    assert [t for t in drawing if t.is_alive()] == []
    assert bar.pbar.n > 0
