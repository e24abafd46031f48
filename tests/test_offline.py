import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import BOX, MIXED, SMALL, SMALL_POLICY, SpaceEnv, count_updates, make, make_by_fours, same, space_envs
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_pwm import PWM
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets import from_arrays
from sb3_pwm.policies import PWMPolicy

OFFLINE: dict[str, Any] = {
    name: value for name, value in SMALL.items() if name not in ("buffer_size", "learning_starts")
}


def dataset(n_envs: int = 1, space: spaces.Space[Any] = BOX) -> Any:
    """Fifty-two random steps of each environment, in a buffer with room for a hundred."""
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    only_collect: dict[str, Any] = {"learning_starts": 1_000, "gradient_steps": 0, "pretrain_steps": 0}
    model = make_by_fours(space_envs(n_envs, space), policy, buffer_size=100 * n_envs, **only_collect)
    return model.learn(52 * n_envs).replay_buffer


def from_dataset(buffer: Any, policy: str = "MlpPolicy", **kwargs: Any) -> PWM:
    return PWM.from_dataset(buffer, policy, **({"policy_kwargs": SMALL_POLICY} | OFFLINE | kwargs))


def networks(model: PWM) -> dict[str, Any]:
    policy = model.policy
    return {
        name: copy.deepcopy(getattr(policy, name).state_dict())
        for name in ("world_model", "actor", "critics", "critics_target", "behaviour_value")
    }


@pytest.mark.parametrize("n_envs", [1, 3])
def test_learning_from_data_alone(n_envs: int) -> None:
    buffer = dataset(n_envs)
    before = copy.deepcopy(buffer.__dict__)
    model = from_dataset(buffer)
    counts = count_updates(model)
    seen = []
    model.learn_offline(12, callback=lambda local, _: seen.append(local["self"].num_timesteps) or True)
    assert counts == {"model": SMALL["pretrain_steps"], "policy": 12}
    assert seen == list(range(1, 13))
    assert (model.num_timesteps, model._current_progress_remaining) == (12, 0)
    assert same(model.replay_buffer.observations.tolist(), before["observations"].tolist())
    assert model.predict(BOX.sample())[0].shape == (2,)


def test_a_model_made_from_data_learns_its_world_model_longer() -> None:
    assert PWM.from_dataset(dataset(), batch_size=8).pretrain_steps == 10_000
    assert PWM.from_dataset(dataset(), batch_size=8, pretrain_steps=7).pretrain_steps == 7


def test_a_model_made_from_data_has_other_defaults() -> None:
    model = PWM.from_dataset(dataset(n_envs=3))
    assert (model.batch_size, model.observation_coef, model.gamma, model.pessimism) == (128, 0, 0.995, 1)
    given = PWM.from_dataset(dataset(), batch_size=8, observation_coef=0.5)
    assert (given.batch_size, given.observation_coef) == (8, 0.5)
    online = PWM("MlpPolicy", "Pendulum-v1")
    assert (online.batch_size, online.observation_coef, online.gamma, online.pessimism) == (64, "auto", 0.99, 0.5)


def test_default_numbers_of_networks() -> None:
    given = {"latent_dim": 16}
    model = PWM.from_dataset(dataset(), batch_size=8, policy_kwargs=given)
    assert len(model.policy.world_model.dynamics) == len(model.policy.critics.critics) == 3
    online = make().policy
    assert (len(online.world_model.dynamics), len(online.critics.critics)) == (1, 2)
    assert model.policy.latent_dim == 16
    assert given == {"latent_dim": 16}  # the caller's own
    assert len(from_dataset(dataset(), policy_kwargs={"n_dynamics": 1}).policy.world_model.dynamics) == 1


def test_the_world_model_stays_while_the_policy_learns() -> None:
    model = from_dataset(dataset()).learn_offline(0)
    assert model.n_model_updates == SMALL["pretrain_steps"]
    before = networks(model)
    model.learn_offline(5)
    after = networks(model)
    assert {name: same(before[name], after[name]) for name in before} == {
        "world_model": True,
        "actor": False,
        "critics": False,
        "critics_target": False,
        "behaviour_value": False,
    }
    model.learn_offline(0, pretrain_steps=2)
    assert model.n_model_updates == SMALL["pretrain_steps"] + 2


def test_the_behaviour_term_pulls_the_policy_to_the_data() -> None:
    buffer = dataset()
    distances = {}
    for bc_coef in (0, 1000):
        # Without Q critics no recorded action is left out.
        model = from_dataset(copy.deepcopy(buffer), bc_coef=bc_coef, seed=0, learning_rate=1e-2, critic="v")
        model.replay_buffer.actions[:] = 0.75
        model.learn_offline(60)
        observations, _ = model.policy.obs_to_tensor(buffer.observations[:20, 0])
        actions = model.policy.actor.mode(model.policy.world_model.encode(observations)).detach().numpy()
        distances[bc_coef] = np.abs(actions - 0.75).mean()
        logged = "behaviour_loss" in model._learner.pop_metrics()
        assert logged == bool(bc_coef)
    assert distances[1000] < 0.1 < distances[0]


def bandit() -> SequenceReplayBuffer:
    """Episodes of one step: the action's first entry, -0.5 or 0.75 at random, is the reward."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (300, 2)).astype(np.float32)
    actions[:, 0] = np.where(rng.random(300) < 0.5, 0.75, -0.5)
    arrays: dict[str, np.ndarray] = {"observations": rng.normal(size=(300, 4)), "actions": actions}
    arrays["rewards"] = actions[:, 0]
    arrays |= {"next_observations": np.zeros((300, 4)), "terminals": np.ones(300)}
    return from_arrays(arrays, spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Box(-1, 1, (2,), np.float32))


def test_the_policy_imitates_the_better_half_of_the_data() -> None:
    rates: dict[str, Any] = {"learning_rate": 3e-3, "critic_learning_rate": 3e-4}
    model = from_dataset(bandit(), bc_coef=1000, seed=0, sequence_length=1, **rates).learn_offline(150)
    policy: Any = model.policy
    buffer = model.replay_buffer
    latents = policy.world_model.encode(torch.as_tensor(buffer.observations[:300, 0]))
    # values of the data's behaviour lie between those of its two kinds of actions
    scale = policy.reward_scale.scale
    values = policy.behaviour_value(latents)[0] * scale
    q_values = policy.critics(latents, torch.as_tensor(buffer.actions[:300, 0])).mean(0) * scale
    better = torch.as_tensor(buffer.rewards[:300, 0] > 0)
    assert abs(values.mean() - buffer.rewards[:300].mean()) < 0.1
    assert q_values[better].mean() - 0.3 > values.mean() > q_values[~better].mean() + 0.3
    # the average action is about 0.1; only the better ones are imitated
    assert (policy.actor.mode(latents)[:, 0] - 0.75).abs().mean() < 0.1


def test_the_behaviour_term_is_for_learning_offline_only() -> None:
    model = from_dataset(dataset(), bc_coef=1000, learning_starts=20).learn_offline(2)
    model._learner.pop_metrics()
    before = networks(model)
    model.set_env(space_envs())
    model.learn(20)
    metrics = model._learner.pop_metrics()
    assert "actor_loss" in metrics
    assert "behaviour_loss" not in metrics
    after = networks(model)
    for name, changes in (("behaviour_value", False), ("critics", True)):
        states = [{k: v for k, v in state[name].items() if "latent_scale" not in k} for state in (before, after)]
        assert same(*states) is not changes


def test_the_behaviours_value_changes_no_other_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers() -> tuple[dict[str, Any], list[float]]:
        return make(space_envs(), seed=0).policy.actor.state_dict(), torch.rand(3).tolist()

    actor, following = numbers()
    monkeypatch.setattr(PWMPolicy, "_make_behaviour_value", lambda self, hidden: None)
    other, others = numbers()
    assert same(actor, other)
    assert following == others


def test_v_critics_have_no_value_of_the_behaviour() -> None:
    assert from_dataset(dataset(), critic="v").policy.behaviour_value is None


def test_dict_observations() -> None:
    model = from_dataset(dataset(space=MIXED), "MultiInputPolicy").learn_offline(2)
    assert model._n_updates == 2


def test_no_environment_is_touched() -> None:
    env = SpaceEnv()
    model = make(env)
    model.replay_buffer = dataset()
    model.learn_offline(3)
    assert env.episode == -1
    model.learn(30)
    assert env.episode >= 0


def test_going_on_in_an_environment_adds_to_the_data() -> None:
    model = from_dataset(dataset(), train_freq=4, learning_starts=20).learn_offline(5)
    with pytest.raises(RuntimeError, match="no environment to act in; call set_env"):
        model.learn(10)
    model.set_env(space_envs())
    counts = count_updates(model)
    model.learn(20)
    assert model.num_timesteps == 20
    assert model.replay_buffer.size() == 72
    assert model.replay_buffer.timeouts[51, 0] == 1
    assert counts == {"model": 5, "policy": 5}  # no second pre-training, no random steps
    assert model.n_model_updates == SMALL["pretrain_steps"] + 5


def test_the_first_online_actions_are_the_policys() -> None:
    model = from_dataset(dataset(), train_freq=4, learning_starts=1_000).learn_offline(5)
    model.set_env(space_envs())
    model.predict = lambda *args, **kwargs: (np.full((1, 2), 0.125, np.float32), None)
    model.learn(8)
    np.testing.assert_array_equal(model.replay_buffer.actions[52:60, 0], 0.125)


def test_callbacks_logger_and_progress_bar(tmp_path: Path) -> None:
    model = from_dataset(dataset())
    model.set_logger(configure(str(tmp_path), ["csv"]))
    evaluate = EvalCallback(space_envs(), n_eval_episodes=1, eval_freq=4, log_path=str(tmp_path), verbose=0)
    checkpoint = CheckpointCallback(save_freq=5, save_path=str(tmp_path))
    model.learn_offline(10, callback=[evaluate, checkpoint], log_interval=2, progress_bar=True)
    assert evaluate.evaluations_timesteps == [4, 8]
    assert {path.name for path in tmp_path.glob("rl_model*")} == {"rl_model_5_steps.zip", "rl_model_10_steps.zip"}
    log = (tmp_path / "progress.csv").read_text()
    for name in ("train/actor_loss", "train/critic_loss", "train/world_model_loss", "eval/mean_reward"):
        assert name in log
    loaded = PWM.load(tmp_path / "rl_model_10_steps.zip", device="cpu")
    assert loaded.env is None
    loaded.replay_buffer = model.replay_buffer
    loaded.learn_offline(2, callback=EvalCallback(space_envs(), eval_freq=1, n_eval_episodes=1, verbose=0))
    assert loaded._n_updates == 12


def test_the_progress_bar_counts_updates(capfd: pytest.CaptureFixture[str]) -> None:
    model = from_dataset(dataset(n_envs=3)).learn_offline(10, progress_bar=True)
    output = "".join(capfd.readouterr())
    assert "policy: 100%" in output
    assert "10/10" in output
    assert "30/" not in output
    assert model.num_timesteps == 10
    model.learn_offline(10, progress_bar=True, callback=lambda local, _: local["self"].num_timesteps < 4)
    assert model.num_timesteps == 4


def test_no_logs(tmp_path: Path) -> None:
    model = from_dataset(dataset())
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn_offline(10, log_interval=None)  # SB3's way to say so
    assert (tmp_path / "progress.csv").read_text() == ""
    model.learn_offline(1, log_interval=1)
    assert "train/actor_loss" in (tmp_path / "progress.csv").read_text()


def test_a_callback_can_stop_it() -> None:
    model = from_dataset(dataset()).learn_offline(10, callback=lambda local, _: local["self"].num_timesteps < 4)
    assert model.num_timesteps == model._n_updates == 4


def test_tensorboard(tmp_path: Path) -> None:
    model = from_dataset(dataset(), tensorboard_log=str(tmp_path))
    model.learn_offline(2, log_interval=1).learn_offline(2, log_interval=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PWM_offline_1", "PWM_offline_2"]


def test_vec_normalize_normalizes_the_data() -> None:
    env = VecNormalize(make_vec_env(SpaceEnv, 2))
    model = make(env).learn(60)
    before = copy.deepcopy(env.obs_rms.__dict__)
    model.learn_offline(3)
    assert same(
        {k: np.asarray(v).tolist() for k, v in before.items()},
        {k: np.asarray(v).tolist() for k, v in env.obs_rms.__dict__.items()},
    )
    assert model.num_timesteps == 3


def test_a_normalizer_that_does_not_know_the_data_is_refused(tmp_path: Path) -> None:
    make(make_vec_env(SpaceEnv, 2)).learn(64).save_replay_buffer(tmp_path / "buffer")
    env = VecNormalize(make_vec_env(SpaceEnv, 2))
    model = make(env)
    model.load_replay_buffer(tmp_path / "buffer")
    for learn in (model.learn_offline, model.pretrain):
        with pytest.raises(ValueError, match=r"has seen 0 steps, the replay buffer holds 64: .*leave it out"):
            learn(1)
    assert model.n_model_updates == 0
    model.learn(60)  # collects first
    model.learn_offline(1)
    fixed = make(VecNormalize(make_vec_env(SpaceEnv, 2), training=False))
    fixed.load_replay_buffer(tmp_path / "buffer")
    fixed.learn_offline(1)


def test_no_second_buffer_is_made_beside_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset()
    made = []
    monkeypatch.setattr(SequenceReplayBuffer, "__init__", lambda self, *_args, **_kwargs: made.append(self))
    model = from_dataset(data)
    assert made == []
    assert model.replay_buffer.observations is data.observations
    assert model.buffer_size == data.buffer_size


DISCRETE = spaces.Discrete(4, start=2)
MULTI = spaces.MultiDiscrete([3, 4], start=[-1, 2])


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (DISCRETE, 3, [0, 1, 0, 0]),
        (MULTI, np.array([1, 2]), [0, 0, 1, 1, 0, 0, 0]),
        (spaces.Dict(b=DISCRETE, c=MULTI), {"b": 5, "c": np.array([-1, 5])}, [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1]),
    ],
    ids=["one", "several", "keys"],
)
def test_discrete_observations_that_do_not_start_at_zero(
    space: spaces.Space[Any], observation: Any, expected: list[int]
) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = make(SpaceEnv(observation_space=space), policy).learn(60)
    assert model.n_skipped_updates == 0
    assert model.policy.features(model.policy.obs_to_tensor(observation)[0])[0].tolist() == expected


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, ()), spaces.Dict(a=spaces.Box(-1, 1, ()), b=BOX)], ids=["one", "key"]
)
def test_observations_without_axes(space: spaces.Space[Any]) -> None:
    model = make(SpaceEnv(space), "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy").learn(60)
    assert model.n_skipped_updates == 0
    assert model.predict(space.sample())[0].shape == (2,)


def test_the_same_seed_gives_the_same_policy() -> None:
    first, second = (networks(from_dataset(dataset()).learn_offline(5)) for _ in range(2))
    assert same(first, second)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"total_updates": -1}, ValueError, "total_updates=-1 is out of range; allowed: 0 or more"),
        ({"total_updates": 2.5}, TypeError, "total_updates must be an integer"),
        ({"total_updates": 1, "log_interval": 0}, ValueError, "log_interval=0"),
        ({"total_updates": 1, "pretrain_steps": -1}, ValueError, "pretrain_steps=-1"),
    ],
)
def test_bad_numbers(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = from_dataset(dataset())
    with pytest.raises(error, match=message):
        model.learn_offline(**arguments)
    assert model.n_model_updates == 0


def test_bad_data_sets() -> None:
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        from_dataset(ReplayBuffer(10, BOX, spaces.Box(-1, 1, (2,)), device="cpu")).learn_offline(1)
    with pytest.raises(TypeError, match="ReplayBuffer, not list"):
        from_dataset([1])
    for arguments in ({"env": None}, {"buffer_size": 3}):
        with pytest.raises(TypeError, match=rf"takes {next(iter(arguments))} from the data set"):
            from_dataset(dataset(), **arguments)


PICTURE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
PICTURE_FIRST = spaces.Box(0, 255, (3, 36, 36), np.uint8)


@pytest.mark.parametrize(
    ("space", "policy"),
    [(PICTURE, "CnnPolicy"), (PICTURE, "MlpPolicy"), (spaces.Dict(a=BOX, b=PICTURE), "MultiInputPolicy")],
)
def test_images_with_channels_last_are_refused_with_a_way_out(space: spaces.Space[Any], policy: str) -> None:
    kind: Any = DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer
    with pytest.raises(ValueError, match=r"channels last.*np\.moveaxis.*\(3, 36, 36\)"):
        from_dataset(kind(10, space, spaces.Box(-1, 1, (2,)), device="cpu"), policy)


def test_images_with_channels_first() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, *PICTURE.shape), np.uint8)
    data = {
        "observations": np.moveaxis(pictures, -1, -3),
        "actions": rng.uniform(-1, 1, (40, 2)),
        "rewards": rng.normal(size=40),
        "terminals": np.zeros(40),
        "timeouts": np.arange(40) % 10 == 9,
    }
    model = from_dataset(from_arrays(data, PICTURE_FIRST), "CnnPolicy").learn_offline(1)
    model.set_env(space_envs(observation_space=PICTURE))  # SB3 moves its axis
    assert model.predict(PICTURE.sample())[0].shape == (2,)


def test_a_world_model_serves_another_policy(tmp_path: Path) -> None:
    buffer = dataset()
    first = from_dataset(buffer).learn_offline(4)
    first.save_world_model(tmp_path / "world.pt")
    other = PWM.from_dataset(buffer, policy_kwargs=SMALL_POLICY | {"net_arch": {"pi": [8], **arch()}}, **OFFLINE)
    other.load_world_model(tmp_path / "world.pt")
    assert same(first.policy.world_model.state_dict(), other.policy.world_model.state_dict())
    assert same(first.policy.reward_scale.state_dict(), other.policy.reward_scale.state_dict())
    counts = count_updates(other)
    before = networks(other)["world_model"]
    other.learn_offline(2)
    assert counts == {"model": 0, "policy": 2}
    assert same(before, networks(other)["world_model"])


def arch() -> dict[str, list[int]]:
    return {name: [16] for name in ("encoder", "dynamics", "reward", "termination", "qf")}


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"residual_dynamics": False}, "its residual_dynamics is False, this model's is True"),
        ({"simnorm_dim": 4}, "its simnorm_dim is 4, this model's is 8"),
        ({"activation_fn": nn.ELU}, r"its activation_fn is ELU, this model's is SiLU"),
        ({"standardize": False}, r"its standardize is False, this model's is True"),
    ],
)
def test_world_models_with_other_settings(tmp_path: Path, policy_kwargs: dict[str, Any], message: str) -> None:
    """No shape shows the difference."""
    make(policy_kwargs=SMALL_POLICY | policy_kwargs).save_world_model(tmp_path / "world.pt")
    with pytest.raises(ValueError, match=message):
        make().load_world_model(tmp_path / "world.pt")


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"activation_fn": functools.partial(nn.LeakyReLU, 0.1)},
        {"activation_fn": lambda: nn.ELU()},
        {"simnorm_dim": np.int64(8)},
    ],
)
def test_world_models_with_unusual_arguments(tmp_path: Path, policy_kwargs: dict[str, Any]) -> None:
    model = make(policy_kwargs=SMALL_POLICY | policy_kwargs)
    model.save_world_model(tmp_path / "world.pt")
    make(seed=1, policy_kwargs=SMALL_POLICY | policy_kwargs).load_world_model(tmp_path / "world.pt")


def test_world_models_know_an_extractor_of_another_module(tmp_path: Path) -> None:
    """A script's class is of the module __main__, also where another script imports it."""
    kinds = [type("Own", (FlattenExtractor,), {"__module__": module}) for module in ("__main__", "script")]
    first, second = (make(policy_kwargs=SMALL_POLICY | {"features_extractor_class": kind}) for kind in kinds)
    first.save_world_model(tmp_path / "world.pt")
    second.load_world_model(tmp_path / "world.pt")


def test_world_models_without_terminations(tmp_path: Path) -> None:
    make(termination_coef=0.0).save_world_model(tmp_path / "world.pt")
    make(termination_coef=0.0).load_world_model(tmp_path / "world.pt")
    with pytest.raises(ValueError, match=r"needs termination_coef=0 too, not 1\.0"):
        make().load_world_model(tmp_path / "world.pt")
    make().save_world_model(tmp_path / "other.pt")
    make(termination_coef=0.0).load_world_model(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("world_model", 3),
        ("world_model", {"encoder": "x"}),
        ("settings", {}),
        ("n_model_updates", "many"),
        ("n_model_updates", -1),
        ("statistics_size", True),
        ("statistics_size", -1),
    ],
)
def test_damaged_world_models(tmp_path: Path, name: str, value: int | dict[str, Any] | str) -> None:
    model = make()
    before = copy.deepcopy(model.get_parameters())
    model.save_world_model(tmp_path / "world.pt")
    torch.save(torch.load(tmp_path / "world.pt") | {name: value}, tmp_path / "world.pt")
    with pytest.raises(ValueError, match=r"world\.pt"):
        model.load_world_model(tmp_path / "world.pt")
    assert same(before, model.get_parameters())


def test_world_models_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    model = from_dataset(dataset())
    before = copy.deepcopy(model.get_parameters())
    make(policy_kwargs={"latent_dim": 8}).save_world_model(tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"small\.pt does not fit: its .* is of shape .*this model's is of shape"):
        model.load_world_model(tmp_path / "small.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no world model"):
        model.load_world_model(tmp_path / "other.pt")
    (tmp_path / "pickle.pt").write_bytes(b"not a file")
    with pytest.raises(ValueError, match=r"cannot read .*pickle\.pt"):
        model.load_world_model(tmp_path / "pickle.pt")
    with pytest.raises(FileNotFoundError):
        model.load_world_model(tmp_path / "none.pt")
    assert same(before, model.get_parameters())
