"""What a user is told before the first log, and when there was nothing to learn."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import make, make_by_fours, space_envs
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from test_multitask import model_of

from sb3_pwm import PWM

NOTHING = "nothing was learnt"


@pytest.mark.parametrize("n_envs", [1, 2])
def test_verbose_tells_what_happens_from_the_first_step(capfd: pytest.CaptureFixture[str], n_envs: int) -> None:
    model = make(space_envs(n_envs), verbose=1)
    seen = []

    class Listener(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(capfd.readouterr().out)
            return True

    capfd.readouterr()
    model.learn(80, callback=Listener())
    output = "".join(seen) + capfd.readouterr().out
    assert seen[0].startswith("Collecting 20 random steps before the first update")
    trained = r"Training the world model alone: 3 updates \.\.\.\n\.\.\. took [\d.]+ seconds\n"
    begun = next(i for i, text in enumerate(seen) if "Training" in text)
    assert begun * n_envs >= 20  # told when it happened, not before
    assert re.search(trained, seen[begun])
    assert len(re.findall(trained, output)) == 1
    assert output.index("Training the world model") < output.index("world_model_loss")


def test_nothing_is_told_about_what_does_not_happen(capfd: pytest.CaptureFixture[str]) -> None:
    model = make(verbose=0).learn(40)
    model.pretrain(2)
    model.learn_offline(2)
    assert capfd.readouterr().out == ""
    model.verbose = 1
    model.learn(4, log_interval=1_000, reset_num_timesteps=False)
    model.pretrain(0)
    assert capfd.readouterr().out == ""
    model.pretrain(2)
    assert "alone: 2 updates" in capfd.readouterr().out


def test_a_model_that_has_learnt_collects_with_its_policy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(verbose=1).learn(40).save(tmp_path / "model")
    capfd.readouterr()
    PWM.load(tmp_path / "model", env=space_envs()).learn(40)
    assert "Collecting 20 steps before the first update" in capfd.readouterr().out


@pytest.mark.parametrize(
    "make_model",
    [make_by_fours, lambda: make_by_fours(space_envs(2)), partial(model_of, train_freq=4)],
    ids=["one", "two", "tasks"],
)
@pytest.mark.parametrize("steps", [8, 16])
def test_too_few_steps_are_told(make_model: Callable[[], PWM], steps: int) -> None:
    model = make_model()
    expected = rf"{NOTHING} in {steps} steps.* learning_starts=20.* it holds {steps},.* reset_num_timesteps=False"
    with pytest.warns(UserWarning, match=expected) as found:
        model.learn(steps)
    assert len(found) == 1
    assert found[0].filename == __file__
    model.learn(24 - steps, reset_num_timesteps=False)  # what was collected counts: no warning
    assert model._n_updates > 0


def test_a_loaded_world_model_is_not_a_policy_that_learns(tmp_path: Path) -> None:
    make().learn(40).save_world_model(tmp_path / "world_model.pt")
    model = make().load_world_model(tmp_path / "world_model.pt")
    with pytest.warns(UserWarning, match=NOTHING):
        model.learn(12)


def test_whoever_wants_no_update_is_not_told() -> None:
    make(gradient_steps=0, pretrain_steps=0).learn(40)
    make(gradient_steps=0).learn(40).learn(4)
    make().learn(40).learn(4)  # without an update in the four steps, but with many before
    make().learn(100, callback=StopTrainingOnMaxEpisodes(1))  # stopped before the first update
