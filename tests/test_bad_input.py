import math
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import ACTIONS, BOX, SpaceEnv, make, same, space_envs
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pwm import PWM
from sb3_pwm import learner as learner_module

DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})


class BadEnv(SpaceEnv):
    """Give ``value`` as ``where`` in step number ``bad_step``, or at the first reset after it."""

    def __init__(self, where, value=math.nan, bad_step=30, observation_space=BOX):
        super().__init__(observation_space)
        self.where, self.value, self.bad_step, self.steps = where, value, bad_step, 0

    def spoil(self, observation, where):
        if self.where == where and self.steps >= self.bad_step:
            (observation["a"] if isinstance(observation, dict) else observation)[1] = self.value
        return observation

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return self.spoil(observation, "reset"), info

    def step(self, action):
        self.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.where == "reward" and self.steps >= self.bad_step:
            reward = self.value
        where = "terminal" if terminated or truncated else "observation"
        return self.spoil(observation, where), reward, terminated, truncated, info


def bad_envs(*args, **kwargs):
    return DummyVecEnv([lambda: SpaceEnv(*args[3:]), lambda: BadEnv(*args, **kwargs), lambda: SpaceEnv(*args[3:])])


def is_finite(buffer):
    arrays = buffer.next_observations, buffer.observations
    parts = [part for array in arrays for part in (array.values() if isinstance(array, dict) else [array])]
    return all(np.isfinite(part).all() for part in [*parts, buffer.rewards, buffer.actions])


def check_usable(model, good_env, tmp_path):
    """Save, load, and continue both with a good environment."""
    model.save(tmp_path / "model")
    for other in (model, PWM.load(tmp_path / "model", device="cpu")):
        other.set_env(good_env)
        n_updates = other._n_updates
        other.learn(48, reset_num_timesteps=False)
        assert other._n_updates > n_updates
        assert is_finite(other.replay_buffer)
        assert all(torch.isfinite(p).all() for p in other.policy.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("where", "message", "steps"),
    [
        ("observation", "the observation", 90),
        ("reward", "the reward", 90),
        ("terminal", "the terminal observation", 105),  # the first episode's end behind it
        ("reset", "the observation", 105),
    ],
)
def test_environment_gives_what_is_not_finite(tmp_path, where, message, value, steps):
    model = make(bad_envs(where, value))
    with pytest.raises(ValueError, match=rf"{message} of environment 1 at step {steps} is {value}"):
        model.learn(200)
    assert model.replay_buffer.n_transitions == steps - 3
    assert is_finite(model.replay_buffer)
    check_usable(model, space_envs(3), tmp_path)


@pytest.mark.parametrize(("where", "message"), [("observation", "observation 'a'"), ("terminal", "terminal .* 'a'")])
def test_dict_observation_is_not_finite(tmp_path, where, message):
    model = make(bad_envs(where, math.nan, 30, DICT), "MultiInputPolicy")
    with pytest.raises(ValueError, match=rf"{message} of environment 1 at step"):
        model.learn(200)
    check_usable(model, space_envs(3, DICT), tmp_path)


def test_first_reset_is_not_finite(tmp_path):
    model = make(bad_envs("reset", math.nan, 0))
    with pytest.raises(ValueError, match="the observation of environment 1 at step 0 is nan"):
        model.learn(200)
    for env in model.env.envs:
        env.where = None
    model.learn(40, reset_num_timesteps=False)  # the environment has recovered: it is reset again
    check_usable(model, space_envs(3), tmp_path)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("where", ["observation", "reward", "reset"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vec_normalize_hides_nothing(tmp_path, where, value, training):
    model = make(VecNormalize(bad_envs(where, value), training=training))
    with pytest.raises(ValueError, match=f"environment 1 at step .* is {value}"):
        model.learn(200)
    assert is_finite(model.replay_buffer)
    check_usable(model, VecNormalize(space_envs(3)), tmp_path)


class BadNoise(ActionNoise):
    """Give NaN in call number 10 of environment 1 (the noise of each environment is a copy)."""

    copies = 0

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __deepcopy__(self, memo):
        copied = BadNoise()
        copied.bad = BadNoise.copies == 1
        BadNoise.copies += 1
        return copied

    def __call__(self):
        self.calls += 1
        return np.full(2, math.nan if self.bad and self.calls == 10 else 0.1)


def test_action_noise_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(BadNoise, "copies", 0)
    model = make(space_envs(3), action_noise=BadNoise())
    seen = []
    monkeypatch.setattr(model.env, "step_async", lambda a, step=model.env.step_async: (seen.append(a), step(a)))
    with pytest.raises(ValueError, match="the action of environment 1 at step 27 is nan"):
        model.learn(200)
    assert model.replay_buffer.n_transitions == 27
    assert np.isfinite(seen).all()  # the environment never saw it
    model.action_noise = None
    check_usable(model, space_envs(3), tmp_path)


def test_policy_gives_what_is_not_finite(monkeypatch):
    model = make(space_envs(2))
    predict = model.predict

    def bad(*args, **kwargs):
        actions, state = predict(*args, **kwargs)
        actions[1, 0] = math.inf
        return actions, state

    monkeypatch.setattr(model, "predict", bad)
    with pytest.raises(ValueError, match="the action of environment 1 at step 20 is inf"):
        model.learn(200)
    assert is_finite(model.replay_buffer)


# --- losses ---


def spoil_loss(monkeypatch, name):
    """Make a loss NaN from now on."""
    loss = getattr(learner_module, name)

    def spoilt(*args, **kwargs):
        value, metrics = loss(*args, **kwargs)
        return value * math.nan, metrics

    monkeypatch.setattr(learner_module, name, spoilt)


@pytest.mark.parametrize(
    ("name", "key"), [("world_model_loss", "world_model"), ("actor_loss", "actor"), ("critic_loss", "critics")]
)
def test_updates_that_are_not_finite_are_skipped(monkeypatch, name, key):
    model = make(critic_updates=1).learn(40)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    spoil_loss(monkeypatch, name)
    model.learn(40, reset_num_timesteps=False, log_interval=None)
    assert model.n_skipped_updates == 10
    model.dump_logs()
    assert model.ep_info_buffer is not None
    after = model.policy.state_dict()
    frozen = [k for k in after if k.startswith(f"{key}.") and ".features." not in k]
    assert frozen
    assert all(torch.equal(after[k], before[k]) for k in frozen)
    assert all(torch.isfinite(v).all() for v in after.values())
    monkeypatch.undo()
    model.learn(8, reset_num_timesteps=False)
    assert model.n_skipped_updates == 10
    assert not all(torch.equal(model.policy.state_dict()[k], before[k]) for k in frozen)


@pytest.mark.parametrize(("name", "network"), [("world_model_loss", "model"), ("actor_loss", "actor")])
def test_too_many_skipped_updates(monkeypatch, tmp_path, name, network):
    model = make(gradient_steps=8).learn(40)
    spoil_loss(monkeypatch, name)  # the other networks' updates go on
    with pytest.raises(FloatingPointError, match=rf"100 updates in a row .* {network}"):
        model.learn(2_000)
    assert model.n_skipped_updates == 100
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
    monkeypatch.undo()
    check_usable(model, space_envs(), tmp_path)


def test_skipped_updates_are_counted_in_a_row(monkeypatch):
    model = make().learn(60)
    for _ in range(3):
        with monkeypatch.context() as patch:
            spoil_loss(patch, "world_model_loss")
            model.train(60, 8)
        model.train(1, 8)
    assert model.n_skipped_updates == 180


# --- arguments ---

BAD_VALUES = [
    ("gamma", [0, -0.1, 1.1, math.nan, math.inf], r"\(0, 1\]"),
    ("td_lambda", [-0.1, 1.1, math.nan], r"\[0, 1\]"),
    ("tau", [0, 1.5, math.nan], r"\(0, 1\]"),
    *[
        (name, [-1, math.nan, math.inf], r"\[0, inf\)")
        for name in ("ent_coef", "consistency_coef", "reward_coef", "termination_coef")
    ],
    ("policy_updates", [0, -1, math.inf], r"\(0, inf\)"),
    *[
        (name, [0, -3], "1 or more")
        for name in (
            *("horizon", "sequence_length", "batch_size", "critic_batch_size", "critic_updates"),
            *("buffer_size", "train_freq"),
        )
    ],
    ("learning_starts", [-1], "0 or more"),
    ("pretrain_steps", [-1], "0 or more"),
    ("gradient_steps", [-2], "-1 or more"),
    *[
        (name, [-1e-3, math.nan, math.inf], r"\[0, inf\)")
        for name in ("learning_rate", "critic_learning_rate", "model_learning_rate")
    ],
    ("critic", ["w"], '"q" and "v"'),
    ("train_freq", [(0, "step"), (4, "epoch")], "episode"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [(name, value, allowed) for name, values, allowed in BAD_VALUES for value in values]
)
def test_arguments_out_of_range(name, value, allowed):
    with pytest.raises(ValueError, match=rf"{name}=.*allowed.*{allowed}") as error:
        make(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("gamma", "tau", "ent_coef", "policy_updates") for value in ("auto", True, None)],
        *[(name, value) for name in ("horizon", "batch_size", "gradient_steps") for value in (2.5, "3", True, None)],
        *[(name, value) for name in ("learning_rate", "critic_learning_rate") for value in ("3e-4", True, [1])],
        ("train_freq", "episode"),
        ("train_freq", (2.5, "step")),
        ("train_freq", (1, "episode", 2)),
        ("replay_buffer_class", ReplayBuffer),
        ("policy", SAC.policy_aliases["MlpPolicy"]),
    ],
)
def test_arguments_of_the_wrong_kind(name, value):
    with pytest.raises(TypeError, match=name) as error:
        make(**{name: value})
    assert (value.__name__ if isinstance(value, type) else repr(value)) in str(error.value)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"net_arch": {"vf": [8]}}, r"net_arch has unknown keys \['vf'\]; allowed: .*'qf'"),
        ({"latent_dim": 12}, "latent_dim=12 must be a positive multiple of simnorm_dim=8"),
        ({"reward_bins": 1}, "reward_bins=1: allowed"),
        ({"n_critics": 0}, "n_critics=0"),
        ({"critic": "v"}, "critic.* argument of PWM"),
    ],
)
def test_policy_arguments_out_of_range(policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(policy_kwargs=policy_kwargs)


@pytest.mark.parametrize("name", ["use_sde", "use_sde_at_warmup", "n_steps", "optimize_memory_usage", "typo"])
def test_unknown_arguments(tmp_path, name):
    with pytest.raises(TypeError, match=name):
        make(**{name: True})
    make().save(tmp_path / "model")
    with pytest.raises(TypeError, match=rf"unknown keywords \['{name}'\]; allowed: .*'gamma'"):
        PWM.load(tmp_path / "model", **{name: True})


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", 2), ("horizon", 0), ("learning_rate", -1.0), ("train_freq", 0), ("batch_size", 501)]
)
def test_bad_arguments_of_load(tmp_path, name, value):
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        PWM.load(tmp_path / "model", **{name: value})


def test_one_episode_needs_one_environment():
    with pytest.raises(ValueError, match=r"train_freq=\(1, 'episode'\).* 2 environments"):
        make(space_envs(2), train_freq=(1, "episode"))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_discrete_actions_are_refused(space):
    with pytest.raises(AssertionError, match=r"only supports .*Box.* as action spaces"):
        make(space_envs(action_space=space))


def test_infinite_action_bounds_are_refused():
    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        make(space_envs(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32)))


def test_dict_observations_need_multi_input_policy():
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make(space_envs(observation_space=DICT))


# --- too little data ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"buffer_size": 8, "sequence_length": 9}, "sequence_length=9 .*buffer_size=8"),
        ({"buffer_size": 7}, "batch_size=8 .*buffer_size=7"),
        ({"buffer_size": 11, "batch_size": 10, "n_envs": 3}, "batch_size=10 .* 3 environments; allowed: at most 9"),
    ],
)
def test_buffer_is_too_small_for_a_batch(kwargs, message):
    env = space_envs(kwargs.pop("n_envs", 1))
    with pytest.raises(ValueError, match=message):
        make(env, **kwargs)


@pytest.mark.parametrize(
    ("n_envs", "kwargs", "message"),
    [
        (1, {"learning_starts": 9}, "batch_size=13 .* 12 transitions"),  # 3 collections of 4 steps
        (1, {"learning_starts": 0}, "windows of 3 steps .* holds 0 steps"),  # pre-training comes first
        (1, {"learning_starts": 0, "pretrain_steps": 0}, "batch_size=13 .* 4 transitions"),
        (2, {"learning_starts": 8, "sequence_length": 5}, "windows of 5 steps .* holds 4 steps"),
    ],
)
def test_too_few_steps_are_refused_before_the_first_one(n_envs, kwargs, message):
    model = make(space_envs(n_envs), batch_size=13, **kwargs)
    with pytest.raises(ValueError, match=message):
        model.learn(100)
    assert model.num_timesteps == 0
    assert model.replay_buffer.n_transitions == 0
    model.batch_size, model.sequence_length, model.learning_starts = 8, 3, 20
    model.learn(40, reset_num_timesteps=False)
    assert model._n_updates > 0


@pytest.mark.parametrize(
    ("kwargs", "total"),
    [
        ({"learning_starts": 10}, 100),  # 12 steps before the first update
        ({"learning_starts": 4, "gradient_steps": 0, "pretrain_steps": 0}, 100),  # there is no update
        ({"learning_starts": 4, "train_freq": (2, "episode")}, 100),  # not known; 14 in fact
        ({"learning_starts": 9}, 8),  # never reached
    ],
)
def test_enough_steps_are_not_refused(kwargs, total):
    assert make(batch_size=12, **kwargs).learn(total).num_timesteps >= total


def test_stored_steps_count_as_data():
    model = make(learning_starts=0, batch_size=12, pretrain_steps=0, gradient_steps=0).learn(12)
    model.gradient_steps = 1
    model.learn(4)
    assert model._n_updates == 1


@pytest.mark.parametrize("method", [lambda m: m.pretrain(1), lambda m: m.train(1, 8)])
def test_updates_need_data(method):
    with pytest.raises(ValueError, match=r"replay buffer .*empty"):
        method(make())


# --- foreign files ---


def buffer_file(path, space=BOX, n_envs=1, **kwargs):
    buffer = ReplayBuffer(50, space, ACTIONS, n_envs=n_envs, **kwargs)
    with open(path, "wb") as file:
        pickle.dump(buffer, file)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"space": spaces.Box(-1, 1, (4,))}, r"observation_space is Box\(.*\(4,\).* model's is Box\(.*\(3,\)"),
        ({"n_envs": 2}, "n_envs is 2, the model's is 1"),
        ({"optimize_memory_usage": True, "handle_timeout_termination": False}, "optimize_memory_usage=True"),
        ({"handle_timeout_termination": False}, "handle_timeout_termination=False"),
        (None, "not dict"),
    ],
)
def test_buffers_that_do_not_fit(tmp_path, kwargs, message):
    path = tmp_path / "buffer.pkl"
    if kwargs is None:
        path.write_bytes(pickle.dumps({"a": 1}))
    else:
        buffer_file(path, **kwargs)
    model = make().learn(10)
    buffer, dones = model.replay_buffer, model.replay_buffer.dones.copy()
    with pytest.raises(TypeError if kwargs is None else ValueError, match=message):
        model.load_replay_buffer(path)
    assert model.replay_buffer is buffer
    np.testing.assert_array_equal(buffer.dones, dones)
    model.learn(40, reset_num_timesteps=False)


def test_own_buffer_needs_time_outs():
    with pytest.raises(ValueError, match="handle_timeout_termination=False"):
        make(replay_buffer_kwargs={"handle_timeout_termination": False})


@pytest.mark.parametrize("algorithm", [SAC, TD3, PPO])
def test_models_of_other_algorithms(tmp_path, algorithm):
    algorithm("MlpPolicy", space_envs(), policy_kwargs={"net_arch": [4]}, device="cpu").save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"policy .*PWMPolicy"):
        PWM.load(tmp_path / "model")


@pytest.mark.parametrize("kwargs", [{"critic": "v"}, {"custom_objects": {"policy_kwargs": {"latent_dim": 8}}}])
def test_models_of_other_sizes(tmp_path, kwargs):
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"(?s)cannot load .*size mismatch"):
        PWM.load(tmp_path / "model", **kwargs)


def test_missing_parameters_are_named():
    model = make()
    parameters = model.get_parameters()
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    del parameters["policy.model_optimizer"]
    with pytest.raises(ValueError, match=r"policy\.model_optimizer"):
        model.set_parameters(parameters)
    assert same(before, dict(model.policy.state_dict()))


def test_interrupted_model_is_usable(tmp_path):
    model = make()
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=lambda local, _: local["self"].num_timesteps < 50 or interrupt())
    model.save_replay_buffer(tmp_path / "buffer")
    check_usable(model, space_envs(), tmp_path)
    loaded = PWM.load(tmp_path / "model", env=space_envs())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, callback=CheckpointCallback(10, tmp_path), reset_num_timesteps=False)
    assert loaded.num_timesteps == 70


def interrupt():
    raise KeyboardInterrupt
