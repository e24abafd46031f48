import copy
import csv
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, SpaceEnv, count_updates, make, make_by_fours, same, space_envs
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import ConstantSchedule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_pwm import PWM
from sb3_pwm import learner as learner_module

# --- logs ---

LOSSES = {"world_model", "consistency", "reward", "termination", "actor", "critic"}
KEYS = {f"train/{name}_loss" for name in LOSSES} | {
    f"train/{name}"
    for name in (
        *("n_skipped_updates", "value_calibration", "entropy", "imagined_return", "value"),
        *("learning_rate", "critic_learning_rate", "model_learning_rate"),
    )
}


def read_log(folder: Path) -> dict[str, list[float]]:
    with open(folder / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key] or "nan") for row in rows] for key in rows[0]}


def test_tensorboard(tmp_path: Path) -> None:
    model = make(tensorboard_log=str(tmp_path), critic_learning_rate=1e-2).learn(100)
    model.learn(20, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"PWM_1", "other_1"}
    events = EventAccumulator(str(tmp_path / "PWM_1")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= KEYS | {"rollout/ep_len_mean", "rollout/ep_rew_mean", "time/fps"}
    for key in KEYS - {"train/value_calibration"}:
        assert np.isfinite([event.value for event in events.Scalars(key)]).all()
    assert events.Scalars("train/critic_learning_rate")[0].value == pytest.approx(1e-2)
    assert [event.step for event in events.Scalars("train/actor_loss")] == [28, 56, 84]  # every fourth episode


def test_logged_losses_are_means_since_the_last_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(train_freq=1, learning_starts=8).learn(8)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model._learner.pop_metrics()
    losses, loss_of = [], vars(learner_module)["world_model_loss"]

    def recording(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = loss_of(*args, **kwargs)
        losses.append(loss.item())
        return loss, metrics

    monkeypatch.setattr(learner_module, "world_model_loss", recording)
    model.learn(14, log_interval=1, reset_num_timesteps=True)
    log = read_log(tmp_path)
    assert log["time/total_timesteps"] == [7, 14]
    # Steps 1 to 6 were followed by updates before the first log, in step 7; the next seven before the second.
    np.testing.assert_allclose(log["train/world_model_loss"], [np.mean(losses[:6]), np.mean(losses[6:13])], rtol=1e-4)


def test_custom_logger(tmp_path: Path) -> None:
    model = make()
    logger = configure(str(tmp_path), ["csv"])
    model.set_logger(logger)
    assert model.learn(60).logger is logger
    assert set(read_log(tmp_path)) >= KEYS


def test_pretraining_without_a_logger_and_with_one(tmp_path: Path) -> None:
    model = make(gradient_steps=0, pretrain_steps=0).learn(24)
    del model._logger
    model.pretrain(2)
    assert isinstance(model.logger, Logger)
    logger = configure(str(tmp_path), [])
    model.set_logger(logger)
    assert model.pretrain(2).logger is logger


@pytest.mark.parametrize("size", [2, 5])
def test_stats_window_size(size: int) -> None:
    model: Any = make(stats_window_size=size).learn(70)
    assert len(model.ep_info_buffer) == size


def test_verbosity(capfd: pytest.CaptureFixture[str]) -> None:
    make(verbose=0).learn(60)
    assert capfd.readouterr().out == ""
    make(verbose=1).learn(60)
    output = capfd.readouterr().out
    assert "world_model_loss" in output
    assert "ep_rew_mean" in output


# --- seeds ---


def run(seed: int, n_envs: int = 2) -> tuple[Any, Any, Any]:
    model = make(space_envs(n_envs), seed=seed).learn(60)
    return model.get_parameters(), model.replay_buffer.actions.copy(), model.predict(np.zeros(3))[0]


def test_seeds() -> None:
    first, again, other = run(3), run(3), run(4)
    assert same(first[0], again[0])
    assert not same(first[0], other[0])
    for i in (1, 2):
        np.testing.assert_array_equal(first[i], again[i])
        assert not np.array_equal(first[i], other[i])


def test_seed_can_be_set_later() -> None:
    actions = []
    for seed in (5, 5, 6):
        model = make_by_fours(seed=None)
        model.set_random_seed(seed)
        actions.append(model.learn(20).replay_buffer.actions.copy())
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_constructor_is_that_of_sb3() -> None:
    """A script for SAC runs with PWM: the arguments of both classes that have the same name mean the same."""
    shared: dict[str, Any] = {
        "learning_rate": 1e-3,
        "buffer_size": 200,
        "learning_starts": 20,
        "batch_size": 8,
        "tau": 0.01,
        "gamma": 0.9,
        "train_freq": (2, "step"),
        "gradient_steps": 2,
        "policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.Tanh},
        "seed": 1,
        "device": "cpu",
        "verbose": 0,
    }
    algorithms: Any = SAC, partial(PWM, pretrain_steps=3)
    for algorithm in algorithms:
        model: Any = algorithm("MlpPolicy", SpaceEnv(), **copy.deepcopy(shared))  # SAC changes policy_kwargs
        model.learn(40, log_interval=2)
        assert model.num_timesteps == 40
        assert vars(model).keys() >= shared.keys()
        assert (model.gamma, model.tau, model.train_freq.frequency, model.gradient_steps) == (0.9, 0.01, 2, 2)


def test_small_settings_are_arguments() -> None:
    model = make()
    assert all(getattr(model, name) == value for name, value in SMALL.items() if name not in ("train_freq", "device"))
    assert model.train_freq.frequency == SMALL["train_freq"]
    counts = count_updates(model)
    model.learn(40)
    assert counts == {"model": 6, "policy": 3}


@pytest.mark.parametrize("learnt", [False, True])
def test_a_model_can_be_pickled(learnt: bool) -> None:
    model = make()
    if learnt:
        model.learn(40)
    copied = pickle.loads(pickle.dumps(model))
    for each in (model, copied):
        each.set_random_seed(1)
        each.learn(48)
    assert same(model.policy.state_dict(), copied.policy.state_dict())


def test_a_callback_can_replace_the_learning_rate() -> None:
    """As with SB3's algorithms; rates that were given on their own stay."""

    def lower(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 30:
            local["self"].lr_schedule = ConstantSchedule(1e-6)
        return True

    policy = make(critic_learning_rate=1e-5).learn(40, callback=lower).policy
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in policy.optimizers.items()}
    assert rates == {"actor": 1e-6, "critic": 1e-5, "model": 1e-6, "entropy": pytest.approx(4e-6)}
