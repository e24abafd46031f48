"""What is stored of an environment that others step, that keeps things to itself, or that uses its arrays again."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import NO_UPDATES, TruthEnv, make, space_envs, truth_envs
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from sb3_pwm import PWM
from sb3_pwm.replay.watched_env import WatchedEnv

pytestmark = pytest.mark.filterwarnings("ignore:nothing was learnt")

WARNING = "somebody else has stepped or reset the training environment"


def stored(buffer: Any, key: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps before, steps after, dones), oldest first: the observations of :class:`TruthEnv` count its steps."""
    order = (buffer.oldest + np.arange(buffer.size())) % buffer.buffer_size
    first, following = buffer.observations, buffer.next_observations
    if isinstance(first, dict):
        first, following = first["place"], following["place"]
    return first[order][..., key], following[order][..., key], buffer.dones[order]


def check_every_window(buffer: Any) -> None:
    """Every step takes one step, and whatever follows another in a window begins where that ended."""
    before, after, dones = stored(buffer)
    np.testing.assert_array_equal(after, before + 1)
    running = dones[:-1] == 0
    np.testing.assert_array_equal(before[1:][running], after[:-1][running])


class Evaluation(BaseCallback):
    """Do something with the training environment at every 7th step."""

    def __init__(self, act: Callable[..., Any]) -> None:
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        if self.n_calls % 7 == 0:
            self.act(self.model, self.training_env)
        return True


def episode_by_hand(model: PWM, env: Any) -> None:
    observations, done = env.reset(), False
    while not done:
        observations, _, dones, _ = env.step(model.predict(observations)[0])
        done = dones[0]


def episode_below(model: PWM, env: Any) -> None:
    """With the environment that the user made, which knows nothing of SB3."""
    below = env.unwrapped.envs[0].unwrapped
    below.reset()
    below.step(np.zeros(1, np.float32))


class CachedMethods(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._step, self._reset = env.step, env.reset

    def step(self, action: np.ndarray) -> Any:
        return self._step(action)

    def reset(self, **kwargs: Any) -> Any:
        return self._reset(**kwargs)


WAYS = {
    "evaluate_policy": lambda model, env: evaluate_policy(model, env, 1, warn=False),
    "reset": lambda model, env: env.reset(),
    "episode": episode_by_hand,
    "another wrapper": lambda model, env: VecNormalize(env.unwrapped).reset(),
    "env_method": lambda model, env: env.env_method("reset"),
}
IN_PROCESS = WAYS | {"below": episode_below}
ENVS = {
    "one": truth_envs,
    "three": lambda: truth_envs(3),
    "dict": lambda: truth_envs(2, as_dict=True),
    "processes": lambda: SubprocVecEnv([TruthEnv, TruthEnv], start_method="fork"),
    "normalized": lambda: VecNormalize(truth_envs(2), clip_obs=1e9),
}


def in_a_callback(model: PWM, act: Callable[..., Any]) -> None:
    model.learn(20 * model.n_envs, callback=Evaluation(act))


def between(model: PWM, act: Callable[..., Any]) -> None:
    for _ in range(3):
        model.learn(7 * model.n_envs, reset_num_timesteps=False)
        act(model, model.get_env())
    model.learn(4, reset_num_timesteps=False)


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.parametrize("run", [in_a_callback, between])
def test_whoever_moves_the_training_environment_ends_its_episodes(kind: str, run: Callable[..., Any]) -> None:
    env = ENVS[kind]()
    policy = "MultiInputPolicy" if kind == "dict" else "MlpPolicy"
    for act in (WAYS if kind == "processes" else IN_PROCESS).values():
        model = make(env, policy, buffer_size=1_000, **NO_UPDATES)
        with pytest.warns(UserWarning, match=WARNING) as caught:
            run(model, act)
        assert len([each for each in caught if WARNING in str(each.message)]) == 1  # once for each model
        if kind == "normalized":  # what is stored comes back from normalised observations with rounding
            before, after, _ = stored(model.replay_buffer)
            np.testing.assert_allclose(after, before + 1, rtol=1e-5)
        else:
            check_every_window(model.replay_buffer)
        assert model.replay_buffer.size() >= 20
    env.close()


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.parametrize("way", ["the same", "another", "forgotten"])
@pytest.mark.parametrize("moment", ["_on_step", "_on_rollout_start", "_on_rollout_end", "_init_callback"])
def test_callbacks_may_set_an_environment(kind: str, way: str, moment: str) -> None:
    others = []

    def act(model: PWM, env: Any) -> None:
        if way == "forgotten":
            model._last_obs = None
            return
        others.append(ENVS[kind]() if way == "another" else env)
        model.set_env(others[-1])

    env = ENVS[kind]()
    policy = "MultiInputPolicy" if kind == "dict" else "MlpPolicy"
    model = make(env, policy, buffer_size=1_000, train_freq=(3, "step"), **NO_UPDATES)
    callback = Evaluation(act)
    if moment != "_on_step":
        odd = 0 if moment == "_init_callback" else 1
        setattr(callback, moment, lambda: act(model, model.get_env()) if model.num_timesteps % 2 == odd else None)
        callback.act = lambda model, env: None
    model.learn(40 * model.n_envs, callback=callback)
    if kind == "normalized":
        before, after, _ = stored(model.replay_buffer)
        np.testing.assert_allclose(after, before + 1, rtol=1e-5)
    else:
        check_every_window(model.replay_buffer)
    assert model.replay_buffer.size() == 42  # whole rollouts
    for each in {id(each): each for each in [env, *others]}.values():
        each.close()


@pytest.mark.parametrize("moment", ["_on_step", "_on_training_start", "_on_rollout_end"])
def test_callbacks_may_not_change_the_number_of_environments(moment: str) -> None:
    model = make(truth_envs(2), buffer_size=100, **NO_UPDATES)
    callback = Evaluation(lambda model, env: None)
    setattr(callback, moment, lambda: model.set_env(truth_envs(3)))
    with pytest.raises(ValueError, match=r"a callback gave the model 3 environments instead of 2; call set_env"):
        model.learn(20, callback=callback)
    model.set_env(truth_envs(3))
    model.learn(20)
    check_every_window(model.replay_buffer)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_move_before_the_first_step_is_noticed(normalized: bool) -> None:
    env: Any = VecNormalize(truth_envs(2), clip_obs=1e9) if normalized else truth_envs(2)
    model = make(env, **NO_UPDATES)
    callback = Evaluation(lambda model, env: None)
    setattr(callback, "_init_callback", lambda: env.reset())  # noqa: B010
    with pytest.warns(UserWarning, match=WARNING):
        model.learn(16, callback=callback)
    before, after, _ = stored(model.replay_buffer)
    np.testing.assert_allclose(after, before + 1, rtol=1e-5)
    assert (stored(model.replay_buffer, 2)[0][0] == stored(model.replay_buffer, 2)[1][0]).all()  # one episode


def test_a_buffer_loaded_in_a_callback_has_no_hole(tmp_path: Path) -> None:
    def act(model: PWM, env: Any) -> None:
        model.save_replay_buffer(tmp_path / "buffer")
        model.load_replay_buffer(tmp_path / "buffer")

    model = make(truth_envs(), buffer_size=1_000, train_freq=(3, "step"), **NO_UPDATES)
    model.learn(40, callback=Evaluation(act))
    check_every_window(model.replay_buffer)


def test_another_environment_is_reset_also_if_nobody_asks_for_it() -> None:
    model = make(truth_envs(), buffer_size=1_000, train_freq=(3, "step"), **NO_UPDATES)
    model.learn(16, callback=StopAndSet())
    model.learn(20, reset_num_timesteps=False)
    check_every_window(model.replay_buffer)


class StopAndSet(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls < 7:
            return True
        self.model.set_env(truth_envs(1), force_reset=False)
        return False


@pytest.mark.parametrize("name", ["reset", "step", "evaluate_policy"])
def test_callbacks_cannot_move_it_by_what_they_are_given(name: str) -> None:
    class Move(BaseCallback):
        def _on_step(self) -> bool:
            env = self.locals["env"]
            if self.n_calls % 7 == 0 and name == "evaluate_policy":
                evaluate_policy(self.model, env, 1, warn=False)
            elif self.n_calls % 7 == 0:
                env.reset() if name == "reset" else env.step(np.zeros((2, 1)))
            return True

    model = make(truth_envs(2))
    with pytest.warns(UserWarning, match=WARNING):
        model.learn(60, callback=Move())
    check_every_window(model.replay_buffer)


def test_wrappers_that_keep_the_methods_below_are_seen_through_the_vec_env() -> None:
    model = make(DummyVecEnv([lambda: CachedMethods(TruthEnv())]))
    with pytest.warns(UserWarning, match=WARNING):
        in_a_callback(model, WAYS["reset"])
    check_every_window(model.replay_buffer)


class AroundASimulator(VecEnvWrapper):
    """As wrappers of GPU simulators, whose innermost object is not a VecEnv."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    @property
    def unwrapped(self) -> Any:
        return object()


def test_what_is_below_may_be_no_vec_env() -> None:
    model = make(AroundASimulator(truth_envs())).learn(40)
    check_every_window(model.replay_buffer)


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_eval_callback_in_the_training_environment() -> None:
    model = make(truth_envs(), buffer_size=1_000)
    env: Any = model.get_env()
    with pytest.warns(UserWarning, match=WARNING):
        model.learn(60, callback=EvalCallback(env, eval_freq=7, n_eval_episodes=1, verbose=0, warn=False))
    check_every_window(model.replay_buffer)


def test_the_users_own_environment_is_watched() -> None:
    env = TruthEnv()
    model = make(env).learn(20)
    evaluate_policy(model, env, 1, warn=False)
    with pytest.warns(UserWarning, match=WARNING):
        model.learn(20, reset_num_timesteps=False)
    check_every_window(model.replay_buffer)


def test_other_environments_are_no_business_of_the_models() -> None:
    model = make(truth_envs()).learn(20, callback=EvalCallback(truth_envs(), eval_freq=7, verbose=0))
    evaluate_policy(model, truth_envs(), 1)
    dones = model.replay_buffer.dones.copy()
    model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer.dones[:20].sum() == dones[:20].sum()  # the episode went on
    check_every_window(model.replay_buffer)


def test_a_watched_environment_can_be_copied_and_pickled() -> None:
    env = TruthEnv()
    model = make(env).learn(7)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        steps = env.steps
        twin.step(np.zeros(1, np.float32))
        assert (env.steps, twin.steps) == (steps, steps + 1)
    model.learn(5, reset_num_timesteps=False)  # no warning
    again = copy.deepcopy(model)
    again.learn(5, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 16  # in fours
    check_every_window(again.replay_buffer)


class Double(VecEnvWrapper):
    """Changes what it gives, and not the space."""

    def reset(self) -> Any:
        return 2 * self.venv.reset()  # type: ignore[operator]

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return 2 * observations, *rest  # type: ignore[operator]


def test_wrappers_that_change_observations_belong_into_vec_normalize() -> None:
    images = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    outside: list[tuple[VecEnv, str, str]] = [
        (VecNormalize(space_envs(1, images), norm_obs=False), "CnnPolicy", "VecTransposeImage"),
        (VecFrameStack(VecNormalize(truth_envs()), 3), "MlpPolicy", "VecFrameStack"),
    ]
    for venv, policy, kind in outside:
        with pytest.raises(ValueError, match=rf"{kind} lies around VecNormalize.*put it inside: VecNormalize\({kind}"):
            make(venv, policy)
    inside: list[tuple[VecEnv, str]] = [
        (VecNormalize(VecTransposeImage(space_envs(1, images)), norm_obs=False), "CnnPolicy"),
        (VecNormalize(VecFrameStack(truth_envs(), 3)), "MlpPolicy"),
        (VecCheckNan(VecNormalize(truth_envs(2))), "MlpPolicy"),
    ]
    for venv, policy in inside:
        make(venv, policy, **NO_UPDATES).learn(8)
    model = make(Double(VecNormalize(DummyVecEnv([lambda: Monitor(TruthEnv(1))]))), **NO_UPDATES)
    with pytest.raises(ValueError, match=r"a wrapper around VecNormalize \(Double\) changes observations"):
        model.learn(8)


def test_a_model_with_vec_normalize_can_be_copied_after_learning() -> None:
    model = make(VecNormalize(truth_envs(2)), **NO_UPDATES).learn(8)
    observations = np.zeros((2, 5), np.float32)
    for twin in (copy.deepcopy(model), pickle.loads(cloudpickle.dumps(model))):
        np.testing.assert_array_equal(
            twin.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
        )
        with pytest.raises(ValueError, match=r"no environment \(SB3 leaves that of a VecNormalize out .* call set_env"):
            twin.learn(8)
        normalizer: Any = twin.get_vec_normalize_env()
        normalizer.set_venv(truth_envs(2))
        twin.set_env(normalizer)
        twin.learn(8)
        assert twin.replay_buffer.size() == 2 * model.replay_buffer.size()
    model.learn(8)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_step_at_which_a_callback_stops_is_stored(n_envs: int, normalized: bool) -> None:
    env = VecNormalize(truth_envs(n_envs), clip_obs=1e9) if normalized else truth_envs(n_envs)
    model = make(env, buffer_size=1_000, **NO_UPDATES)
    for count in range(1, 9):
        model.learn(100, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
        assert model.replay_buffer.n_transitions == model.num_timesteps
        newest = model.replay_buffer.dones[model.replay_buffer.pos - 1]
        assert newest.any()
        assert model._episode_num >= count
    buffer: Any = model.replay_buffer
    np.testing.assert_array_equal(buffer.rewards[: buffer.pos, 0], 1 + np.arange(buffer.pos))
    if not normalized:
        check_every_window(model.replay_buffer)


def test_a_stop_in_the_middle_of_an_episode_lets_it_go_on() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps % 3 != 0

    model = make(truth_envs())
    for _ in range(4):
        model.learn(100, callback=Stop(), reset_num_timesteps=False)
    before, after, dones = stored(model.replay_buffer)
    assert before[:, 0].tolist() == list(range(12))
    assert after[:, 0].tolist() == list(range(1, 13))
    assert np.flatnonzero(dones).tolist() == [4, 10]  # episodes of 5 and 6 steps


class Altered(VecEnvWrapper):
    """A VecEnv with habits that SB3's own do not have."""

    def reset(self) -> Any:
        return self.alter_reset(self.venv.reset())

    def step_wait(self) -> Any:
        return self.alter(*self.venv.step_wait())

    def alter_reset(self, observations: Any) -> Any:
        return observations


class FloatDones(Altered):
    def alter(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
        return observations, rewards, dones.astype(np.float32), infos


class SameArrays(Altered):
    """Gives the same arrays and dictionaries at every step, as wrappers around shared memory do."""

    def alter_reset(self, observations: Any) -> Any:
        self.kept = copy.deepcopy(observations)
        self.rewards, self.dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        self.infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        return self.kept

    def alter(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
        pairs = [(self.kept, observations)]
        if isinstance(observations, dict):
            pairs = [(self.kept[key], observations[key]) for key in observations]
        for kept, new in (*pairs, (self.rewards, rewards), (self.dones, dones)):
            kept[:] = new
        for kept, new in zip(self.infos, infos, strict=True):
            episode = kept.get("episode", {})
            kept.clear()
            kept.update(new)
            if "episode" in new:
                episode.update(new["episode"])
                kept["episode"] = episode
        return self.kept, self.rewards, self.dones, self.infos


@pytest.mark.parametrize("kind", [FloatDones, SameArrays])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("as_dict", [False, True])
def test_habits_of_other_vec_envs_change_nothing(kind: Callable[..., Any], n_envs: int, as_dict: bool) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    models: Any = (
        make(env, policy).learn(60) for env in (truth_envs(n_envs, as_dict), kind(truth_envs(n_envs, as_dict)))
    )
    plain, model = models
    check_every_window(model.replay_buffer)
    for name in ("rewards", "dones", "timeouts", "actions"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(plain.replay_buffer, name))
    assert list(model.ep_info_buffer) == [
        {**expected, "t": found["t"]}
        for expected, found in zip(plain.ep_info_buffer, model.ep_info_buffer, strict=True)
    ]
    calibrations = []
    for each, env in ((model, kind(truth_envs(n_envs, as_dict))), (plain, truth_envs(n_envs, as_dict))):
        torch.manual_seed(0)
        calibrations.append(each.value_calibration(env, 4))
    assert calibrations[0] == calibrations[1]


class WithoutTerminalObservation(Altered):
    def alter(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
        return observations, rewards, dones, [{**info, "terminal_observation": None} for info in infos]


def test_an_unknown_last_observation_is_refused_and_never_taught() -> None:
    model = make(WithoutTerminalObservation(truth_envs(2)))
    with pytest.raises(ValueError, match="environment 0 ended an episode and its info has no 'terminal_observation'"):
        model.learn(60)
    assert model.replay_buffer.size() == 4  # the fifth step ends the first episode
    check_every_window(model.replay_buffer)


def test_calls_are_counted_once_for_all_who_watch() -> None:
    env = DummyVecEnv([lambda: Monitor(TruthEnv())])
    first, second = WatchedEnv(env), WatchedEnv(env)
    first.reset()
    first.note()
    assert not first.moved_by_others
    assert second.moved_by_others
    second.note()
    second.expect_step()
    second.step(np.zeros((1, 1)))
    assert first.moved_by_others
    assert not second.moved_by_others
