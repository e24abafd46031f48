"""A task joins a trained model of many tasks."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import SMALL, SpaceEnv, same
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from test_multitask import TASKS, TINY, data_of, observations_of, space_env
from torch.testing import assert_close

from sb3_pwm import PWM, SequenceReplayBuffer, Task, TaskSet
from sb3_pwm.datasets import from_arrays, from_tasks
from sb3_pwm.multitask.data import beside, fill, new_buffer
from sb3_pwm.multitask.envs import task_vec_env
from sb3_pwm.multitask.extraction import of_task, spaces_of_task
from sb3_pwm.multitask.growth import mixed_windows
from sb3_pwm.nn.growth import grown, places
from sb3_pwm.observations import at_steps

EQUAL = Task("equal", lambda: space_env(4, 2), 4, 2)
LARGER = Task("larger", lambda: space_env(6, 5), 6, 5)
CONTEXT = 16 + 5 + 3  # latents, embedding and action mask of the model before
KINDS: dict[str, dict[str, Any]] = {
    "q": {},
    "v": {"critic": "v"},
    "other": {"policy_kwargs": TINY | {"net_arch": {"pi": [], "qf": [8, 8]}, "state_dependent_std": False}},
}


def trained(steps: int = 60, kind: Any = "q", env: Any = None, **kwargs: Any) -> Any:
    env = env or task_vec_env(TASKS, seed=0)
    model = PWM("MultiTaskPolicy", env, **(SMALL | {"policy_kwargs": TINY} | KINDS[kind] | kwargs))
    return model.learn(steps) if steps else model


def data(task: Any, n_steps: Any = 50) -> Any:
    return data_of(task, n_steps, 0)[1]


@torch.no_grad()
def outputs(policy: Any, observations: Any) -> Any:
    """All that the networks say of observations, without what only larger tasks have."""
    size = policy.task_set.observation_size
    values = observations["observation"]
    observations = {**observations, "observation": torch.nn.functional.pad(values, (0, size - values.shape[-1]))}
    world_model = policy.world_model
    latents = world_model.encode(observations)
    actions = policy.actor.mode(latents)
    inputs = (latents, actions) if policy.q_critic else (latents,)
    return [
        latents[:, :CONTEXT],
        world_model.next_latents(latents, actions)[:, :CONTEXT],
        world_model.rewards(latents, actions),
        world_model.continuations(latents),
        world_model.observation(latents)[:, :4],
        *(part[:, :3] for part in policy.actor.distribution(latents)),
        policy.critics(*inputs),
        policy.critics_target(*inputs),
        *([policy.behaviour_value(latents)] if policy.q_critic else []),
    ]


@pytest.fixture
def exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products summed in float64: the order of the terms, which depends on their number, leaves no trace in float32."""

    def linear(inputs: Any, weight: Any, bias: Any) -> Any:
        return (inputs.double() @ weight.double().T + bias.double()).to(inputs.dtype)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)


def test_growing_by_hand() -> None:
    before, after = {"a": 2, "b": 1}, {"a": 3, "b": 2}
    assert places(("a", "b"), before, after).tolist() == [0, 1, 3]
    assert places(("a", "a"), before, after).tolist() == [0, 1, 3, 4]
    tensor = torch.tensor([[1.0, 2, 3]])
    larger = grown(tensor, torch.full((2, 5), 9.0), (("b",), ("a", "b")), before, after)
    assert_close(larger, torch.tensor([[1.0, 2, 9, 3, 9], [9, 9, 9, 9, 9]]))
    assert_close(grown(tensor, torch.zeros(1, 5), (None, ("a", "b")), before, after), torch.tensor([[1.0, 2, 0, 3, 0]]))
    assert grown(torch.tensor(3.0), torch.tensor(1.0), (), before, after) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_of_known_sizes_changes_no_bit_of_the_others(kind: Any) -> None:
    model = trained(kind=kind)
    observations = observations_of([0, 1, 1])
    before = outputs(model.policy, observations)
    assert model.add_task("equal", data(EQUAL), 0) is model
    assert same(outputs(model.policy, observations), before)
    assert_close(model.policy.reward_scale.scale.shape, torch.Size([3]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_task_changes_no_bit_of_the_others(kind: Any, exact_sums: Any) -> None:
    model = trained(kind=kind)
    observations = observations_of([0, 1, 1])
    before = outputs(model.policy, observations)
    model.add_task("larger", data(LARGER), 0)
    assert model.policy.world_model.latent_dim == CONTEXT + 2
    assert same(outputs(model.policy, observations), before)


def test_all_that_belongs_to_tasks_grows() -> None:
    model = trained()
    former, policy_before = model.policy, copy.deepcopy(model.policy)
    returns = policy_before.return_scale
    model.add_task("larger", data(LARGER), 0)
    policy = model.policy
    assert policy.task_set.names == ("small", "large", "larger")
    assert same(former.state_dict(), policy_before.state_dict())  # nothing is shared with what was
    context, features = policy.world_model.context, policy.world_model.features
    assert context.masks.tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert_close(context.embedding[:2], policy_before.world_model.context.embedding)
    nearest = [torch.equal(context.embedding[2], context.embedding[task]) for task in range(2)]
    assert sum(nearest) == 1
    coefficients = policy.entropy_coefficient.log_ent_coef
    assert_close(coefficients[:2], policy_before.entropy_coefficient.log_ent_coef)
    assert coefficients[2] == coefficients[nearest.index(True)]
    own = data(LARGER)
    assert_close(features.mean[:2, :4], policy_before.features.mean)
    assert_close(features.mean[2], torch.as_tensor(own.observations[:, 0].mean(0)).double(), rtol=1e-5, atol=1e-6)
    assert_close(policy.reward_scale.scale[:2], policy_before.reward_scale.scale)
    assert_close(policy.reward_scale.scale[2], torch.as_tensor(own.rewards.std()))
    assert_close(policy.return_scale.variance[:2], returns.variance)
    assert policy.return_scale.initialized.tolist() == [1, 1, 0]
    assert policy.world_model.observation_weights.shape == (6,)
    assert policy.statistics_size == policy_before.statistics_size + 50
    assert model.n_envs == model.replay_buffer.n_envs == 3
    assert model.buffer_size == 3 * model.replay_buffer.buffer_size


def test_the_optimizers_go_on() -> None:
    """An update on the others' windows is that of the model before."""
    model = trained(observation_coef=0.0)
    samples = model._sample(8)
    former = copy.deepcopy(model)
    model.add_task("larger", data(LARGER), 0)
    for name, optimizer in former.policy.optimizers.items():
        sums = [
            [state["exp_avg_sq"].sum() for state in each.state.values()]
            for each in (optimizer, model.policy.optimizers[name])
        ]
        assert_close(*sums)
        steps = [
            [state["step"] for state in each.state.values()] for each in (optimizer, model.policy.optimizers[name])
        ]
        assert same(*steps)
    observations = {**samples.observations, "observation": pad(samples.observations["observation"], 2)}
    larger = samples._replace(observations=observations, actions=pad(samples.actions, 2))
    for each in (former, model):
        each._prepare_updates()  # the same learning rates
    for _ in range(3):
        former._learner.update_model(samples)
        model._learner.update_model(larger)
    starts = at_steps(samples.observations, 0)
    before, after = (outputs(each.policy, starts) for each in (former, model))
    assert_close(after, before, rtol=1e-4, atol=1e-4)


def pad(values: Any, count: Any) -> Any:
    return torch.nn.functional.pad(values, (0, count))


def test_data_beside_each_other_by_hand() -> None:
    set_of_three = TaskSet([*TASKS, EQUAL])
    old = from_tasks(TASKS, {task.name: data_of(task, 3, 0)[1] for task in TASKS}, buffer_size=6)
    newest = new_buffer(set_of_three, 5, 1)
    fill(newest, slice(0, 1), data(EQUAL, 5), 2)
    merged = beside(old, set_of_three, newest)
    assert (merged.n_envs, merged.buffer_size, merged.size()) == (3, 6, 5)
    assert merged.observations["task"][:5, :, 0].tolist() == [[0, 1, 2]] * 5
    np.testing.assert_array_equal(merged.rewards[:5, :2], old.rewards[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(merged.actions[:5, :2], old.actions[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(merged.rewards[:5, 2], newest.rewards[:, 0])
    assert merged.dones[:5].T.tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 1]]


def test_a_ring_that_has_gone_round_comes_oldest_first() -> None:
    model = trained(steps=400, buffer_size=60, train_freq=20)  # 30 steps of each task
    assert model.replay_buffer.full
    assert model.replay_buffer.pos
    oldest = model.replay_buffer.oldest
    rewards = np.roll(model.replay_buffer.rewards, -oldest, 0)
    model.add_task("equal", data(EQUAL, 20), 0)
    np.testing.assert_array_equal(model.replay_buffer.rewards[:, :2], rewards)
    assert (model.replay_buffer.dones[-1, :2] == 1).all()  # what comes next will not follow


def test_half_of_the_windows_are_of_the_new_task() -> None:
    tasks = TaskSet([Task(f"task {i}", lambda: space_env(2, 1), 2, 1) for i in range(5)])
    datasets = {task.name: data_of(task, 30, i)[1] for i, task in enumerate(tasks)}
    kwargs = {"policy_kwargs": TINY | {"task_set": tasks}, "pretrain_steps": 0, "device": "cpu"}
    model: Any = PWM.from_dataset(from_tasks(tasks, datasets), "MultiTaskPolicy", **kwargs)
    model.add_task("equal", data(EQUAL, 30), 0)
    newest = new_buffer(model.policy.task_set, 30, 1)
    fill(newest, slice(0, 1), data(EQUAL, 30), 5)
    samples = mixed_windows(model.policy, model.replay_buffer, newest, 2_000, 2)
    first: Any = at_steps(samples.observations, 0)
    counts = np.bincount(first["task"].flatten().long().numpy(), minlength=6)
    assert counts.sum() == 2_000
    assert 900 < counts[5] < 1_100
    assert counts[:5].min() > 140


def test_the_world_model_learns_and_so_does_a_trained_policy(tmp_path: Path) -> None:
    model = trained()
    updates, n_steps, before = model._n_updates, model.num_timesteps, copy.deepcopy(model.policy.state_dict())
    model.add_task("larger", data(LARGER), 4)
    assert model._n_updates == updates + 4
    assert model.num_timesteps == n_steps
    after = model.policy.state_dict()
    for name in ("actor.net.3.bias", "world_model.encoder.0.0.bias", "critics.critics.0.0.bias"):
        assert not torch.equal(before[name][:1], after[name][:1])
    # the grown model can be saved, acts as before after loading, and goes on in its environments
    tasks = TaskSet([*TASKS, LARGER])
    model.set_env(task_vec_env(tasks, seed=0))
    observation = model.get_env().reset()
    actions, _ = model.predict(observation, deterministic=True)
    assert actions.shape == (3, 5)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "data")
    loaded = PWM.load(tmp_path / "model", env=task_vec_env(tasks), weights_only=True)
    loaded.load_replay_buffer(tmp_path / "data")
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], actions)
    assert loaded.learn(30).n_model_updates > model.n_model_updates
    assert loaded.policy.n_tasks == 3
    loaded.add_task("equal", data(EQUAL), 1)
    assert loaded.policy.n_tasks == 4


def test_a_policy_that_has_not_been_trained_is_left_alone() -> None:
    datasets = {task.name: data(task) for task in TASKS}
    model = PWM.from_dataset(
        from_tasks(TASKS, datasets), "MultiTaskPolicy", policy_kwargs=TINY, batch_size=8, device="cpu"
    )
    model.pretrain(2)
    before = copy.deepcopy(model.policy.actor.state_dict())
    model.add_task("equal", data(EQUAL), 2)
    assert same(model.policy.actor.state_dict(), before)
    assert (model._n_updates, model.n_model_updates) == (0, 4)


def test_a_frozen_world_model_learns_the_embedding_only(tmp_path: Path) -> None:
    trained().save(tmp_path / "model")
    model = PWM.load(tmp_path / "model")  # without the others' data
    before = copy.deepcopy(model.policy.state_dict())
    model.add_task("equal", data(EQUAL), 0, freeze_world_model=True)
    start = model.policy.world_model.context.embedding[2].clone()
    model = PWM.load(tmp_path / "model").add_task("equal", data(EQUAL), 5, freeze_world_model=True)
    after = model.policy.state_dict()
    assert not torch.equal(after["world_model.context.embedding"][2], start)
    shared = {name: tensor[:2] if after[name].shape != tensor.shape else tensor for name, tensor in before.items()}
    kept = {name: tensor[:2] if tensor.shape != before[name].shape else tensor for name, tensor in after.items()}
    del shared["statistics_size"], kept["statistics_size"]
    assert same(kept, shared)
    assert model.replay_buffer.n_envs == 1
    own = model.extract("equal", 2)
    assert own.replay_buffer.size() == 50


def test_a_task_is_added_in_its_environment_and_learnt_on_there() -> None:
    model = trained(train_freq=4)
    env = gym.wrappers.TimeLimit(space_env(5, 2), 4)
    model.add_task("new", env, 2, env_steps=30)
    assert model.replay_buffer.observations["task"][:30, 2].tolist() == [[2]] * 30
    assert (model.replay_buffer.actions[:30, 2].std(0)[:2] > 0.3).all()
    own = model.extract("new", 2, env=env)
    own.set_env(env)
    assert own.learn(20).num_timesteps == 20
    assert own.policy.world_model.context.embedding.shape == (3, 5)


@pytest.fixture(scope="module")
def left_and_right() -> Any:
    """A model of two tasks that differ in what an action does."""
    tasks = TaskSet([Task(name, None, 2, 1) for name in ("left", "right")])
    return PWM.from_dataset(
        from_tasks(tasks, {"left": moves(-0.5, 0), "right": moves(0.5, 1)}),
        "MultiTaskPolicy",
        policy_kwargs={"task_set": tasks, "net_arch": [32], "latent_dim": 32, "task_embedding_dim": 4, "n_dynamics": 1},
        batch_size=32,
        sequence_length=3,
        learning_rate=LinearSchedule(1e-2, 1e-3, 1.0),
        seed=0,
        device="cpu",
    ).pretrain(600)


@pytest.mark.parametrize(("gain", "nearest"), [(-0.5, 0), (0.5, 1)])
def test_the_nearest_task_is_the_one_that_predicts_best(left_and_right: Any, gain: Any, nearest: Any) -> None:
    model = copy.deepcopy(left_and_right).add_task("new", moves(gain, 2), 0)
    embedding = model.policy.world_model.context.embedding
    assert torch.equal(embedding[2], embedding[nearest])


def reward_error(model: Any, name: str, dataset: Any) -> Any:
    """Of windows of four steps; 1 is no better than the mean."""
    tasks = model.policy.task_set
    buffer = new_buffer(tasks, dataset.size(), 1)
    fill(buffer, slice(0, 1), dataset, tasks.task_id(name))
    return model.model_errors(buffer, 4)["reward"].mean()


@pytest.mark.parametrize(("gain", "size", "freeze"), [(-0.25, 3, False), (0.3, 2, False), (0.3, 2, True)])
def test_a_new_task_is_learnt_and_the_others_lose_little(
    left_and_right: Any, gain: Any, size: Any, freeze: Any
) -> None:
    known = {"left": moves(-0.5, 3), "right": moves(0.5, 4)}
    before = {name: reward_error(left_and_right, name, dataset) for name, dataset in known.items()}
    dataset, held_out = (moves(gain, seed, size=size) for seed in (5, 6))
    at_once, learnt = (
        copy.deepcopy(left_and_right).add_task("new", dataset, updates, freeze_world_model=freeze)
        for updates in (0, 200)
    )
    share = 1.0 if freeze else 0.3  # an embedding alone can do little
    assert reward_error(learnt, "new", held_out) < share * reward_error(at_once, "new", held_out)
    for name, dataset in known.items():
        after = reward_error(learnt, name, dataset)
        assert after == before[name] if freeze else after < before[name] + 0.03  # of the rewards' variance


def moves(gain: Any, seed: int, n_steps: Any = 500, size: Any = 2) -> Any:
    """Ten steps along a line from anywhere, seen ``size`` times; the reward is minus the distance to the middle."""
    rng = np.random.default_rng(seed)
    starts, actions = rng.uniform(-1, 1, (n_steps // 10, 1)), rng.uniform(-1, 1, (n_steps // 10, 10))
    x = np.concatenate([starts, starts + gain * actions.cumsum(1)], 1)
    observations = np.repeat(x[..., None], size, -1).astype(np.float32)
    ends = np.tile(np.arange(10) == 9, n_steps // 10)
    arrays = {
        "observations": observations[:, :-1].reshape(-1, size),
        "next_observations": observations[:, 1:].reshape(-1, size),
        "actions": actions.reshape(-1, 1).astype(np.float32),
        "rewards": -np.abs(x[:, 1:]).reshape(-1).astype(np.float32),
        "terminals": np.zeros(n_steps, bool),
        "timeouts": ends,
    }
    return from_arrays(arrays, spaces.Box(-np.inf, np.inf, (size,), np.float32), spaces.Box(-1, 1, (1,), np.float32))


def with_nan(task: Any) -> Any:
    buffer = data(task)
    buffer.rewards[7] = np.nan
    return buffer


def of_spaces(observation_space: Any, action_space: Any) -> Any:
    return SequenceReplayBuffer(5, observation_space, action_space, "cpu")


@pytest.fixture(scope="module")
def unchanged() -> Any:
    """A model that every test leaves as it was."""
    return trained(steps=40)


VECTOR, IMAGE = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(0, 255, (3, 36, 36), np.uint8)
CHOICE = spaces.Discrete(3)


@pytest.mark.parametrize(
    ("name", "source", "kwargs", "error", "message"),
    [
        ("small", data(EQUAL), {}, ValueError, r"has a task 'small' already; allowed are other names than \('small'"),
        ("", data(EQUAL), {}, ValueError, "name of a task must not be empty"),
        (3, data(EQUAL), {}, TypeError, "name of a task must be a string, not 3"),
        ("new", "Pendulum-v1", {}, TypeError, r"such as gym\.make\(id\), or a ReplayBuffer: 'Pendulum-v1'"),
        (
            "new",
            of_spaces(IMAGE, VECTOR),
            {},
            ValueError,
            r"data of task 'new' have the spaces .*allowed is a Box with",
        ),
        ("new", of_spaces(VECTOR, CHOICE), {}, ValueError, r"data of task 'new' have the spaces .*Discrete\(3\)"),
        ("new", SpaceEnv(VECTOR, CHOICE), {}, TypeError, "task 'new': the action space must be a Box with one axis"),
        ("new", of_spaces(VECTOR, VECTOR), {}, ValueError, "data of task 'new' are empty"),
        ("new", with_nan(EQUAL), {}, ValueError, "data of task 'new': rewards are not finite in row 7"),
        (
            "new",
            data(LARGER),
            {"freeze_world_model": True},
            ValueError,
            "'new' has 6 observations and 5 actions; a frozen world model takes at most its own 4 and 3",
        ),
        ("new", data(EQUAL), {"total_updates": -1}, ValueError, "total_updates=-1"),
        ("new", data(EQUAL), {"env_steps": 0}, ValueError, "env_steps=0"),
    ],
)
def test_bad_input_changes_nothing(
    unchanged: Any, name: str, source: Any, kwargs: Any, error: Any, message: str
) -> None:
    model = unchanged
    known, state = dict(vars(model)), copy.deepcopy(model.policy.state_dict())
    with pytest.raises(error, match=message):
        model.add_task(name, source, **({"total_updates": 1} | kwargs))
    assert {key for key in known if vars(model)[key] is not known[key]} == set()
    assert same(model.policy.state_dict(), state)


def test_models_that_cannot_take_a_task(tmp_path: Path) -> None:
    single = PWM("MlpPolicy", SpaceEnv(), policy_kwargs={"net_arch": [16], "latent_dim": 16}, **SMALL)
    with pytest.raises(TypeError, match=r'add_task\(\) needs a model with "MultiTaskPolicy", not PWMPolicy'):
        single.add_task("new", data(EQUAL), 1)
    with pytest.raises(ValueError, match=r"add_task\(\) cannot give .* VecNormalize"):
        trained(steps=0, env=VecNormalize(task_vec_env(TASKS), norm_obs=False)).add_task("new", data(EQUAL), 1)
    with pytest.raises(ValueError, match=r"holds no data of \['small', 'large'\], which are replayed"):
        trained(steps=0).add_task("new", data(EQUAL), 1)
    with pytest.raises(ValueError, match=r"add_task\(\) learns in the world model as it is, and this one has not"):
        trained(steps=0).add_task("new", data(EQUAL), 1, freeze_world_model=True)
    noisy = trained(steps=40, action_noise=NormalActionNoise(np.zeros(3), np.ones(3)))
    with pytest.raises(ValueError, match="action_noise is for 3 actions, and task 'larger' makes them 5"):
        noisy.add_task("larger", data(LARGER), 1)
    noisy.add_task("equal", data(EQUAL), 1)
    assert noisy.policy.n_tasks == 3


@pytest.mark.parametrize("step", ["growth.take_over", "growth.start_task", "adding.take_weights"])
def test_what_fails_on_the_way_leaves_the_model_as_it_was(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(train_freq=4, steps=40)
    known = dict(vars(model))
    monkeypatch.setattr(f"sb3_pwm.multitask.{step}", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.add_task("larger", data(LARGER), 1)
    assert {key for key in known if vars(model)[key] is not known[key]} == set()
    assert model.learn(24, reset_num_timesteps=False).num_timesteps == 64


class CtrlC(BaseCallback):
    """Press Ctrl-C after so many updates, and keep what is counted."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.seen: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        self.seen.append((self.num_timesteps, self.model._current_progress_remaining))
        if len(self.seen) == self.after:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("name", ["equal", "larger"])
def test_the_same_call_goes_on_after_ctrl_c(name: str, tmp_path: Path) -> None:
    source = data({"equal": EQUAL, "larger": LARGER}[name])
    model, counted = trained(), CtrlC(9)
    whole = copy.deepcopy(model)
    for each, callback in ((whole, counted), (model, CtrlC(3))):
        torch.manual_seed(1)
        np.random.seed(1)
        with pytest.raises(KeyboardInterrupt) if each is model else contextlib.nullcontext():
            each.add_task(name, source, 8, callback=callback)
    going_on = CtrlC(9)
    model.add_task(name, source, 8, callback=going_on)
    assert going_on.seen == counted.seen[3:]
    assert [count for count, _ in going_on.seen] == [4, 5, 6, 7, 8]
    assert model.policy.task_set.names == ("small", "large", name)
    assert same(model.policy.state_dict(), whole.policy.state_dict())  # bit for bit
    with pytest.raises(ValueError, match=f"has a task '{name}' already"):
        model.add_task(name, source, 8)


@pytest.mark.parametrize("freeze", [False, True])
def test_an_interrupted_task_goes_on_after_loading(freeze: bool, tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(KeyboardInterrupt):
        model.add_task("equal", data(EQUAL), 5, freeze_world_model=freeze, callback=CtrlC(2))
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "data")
    loaded = PWM.load(tmp_path / "model", weights_only=True)
    with pytest.raises(ValueError, match=r"holds no data of \[.*'equal'\]; call load_replay_buffer\(\) first"):
        loaded.add_task("equal", data(EQUAL), 5, freeze_world_model=freeze)
    loaded.load_replay_buffer(tmp_path / "data")
    with pytest.raises(ValueError, match="begun with 4 observations and 2 actions, and this source has 6 and 5"):
        loaded.add_task("equal", data(LARGER), 5, freeze_world_model=freeze)
    counted = CtrlC(9)
    loaded.add_task("equal", data(EQUAL), 5, freeze_world_model=freeze, callback=counted)
    assert [count for count, _ in counted.seen] == [3, 4, 5]
    assert loaded.policy.task_set.names == ("small", "large", "equal")


def test_another_task_may_come_after_an_interrupted_one() -> None:
    model = trained()
    with pytest.raises(KeyboardInterrupt):
        model.add_task("equal", data(EQUAL), 5, callback=CtrlC(2))
    model.add_task("larger", data(LARGER), 1)
    assert model.policy.task_set.names == ("small", "large", "equal", "larger")
    with pytest.raises(ValueError, match="has a task 'equal' already"):
        model.add_task("equal", data(EQUAL), 5)


@pytest.mark.parametrize("work", ["add_task", "extract"])
def test_the_seed_of_a_task_does_not_reach_what_comes_after(work: str) -> None:
    """Else the exploration after each of several tasks would be the same."""
    model: Any = trained(steps=40)
    arguments: Any = ("equal", data(EQUAL), 0) if work == "add_task" else ("small", 0)

    def drawn_after(seed: int) -> list[float]:
        torch.manual_seed(seed)
        np.random.seed(seed)
        getattr(copy.deepcopy(model), work)(*arguments)
        return [float(torch.rand(())), np.random.rand()]

    first, other = drawn_after(1), drawn_after(2)
    assert first[0] != other[0]
    assert first[1] != other[1]
    model.seed = None  # its work draws from the global generators, and two policies differ
    assert drawn_after(1) != first


def test_ages_of_steps_after_a_lost_beginning_by_hand() -> None:
    """Two columns of three rows, the oldest in row 1; the newest step of column 1 also follows a cut."""
    buffer = new_buffer(TASKS, 3, 2)
    tasks: Any = buffer.observations["task"]
    tasks[:, :, 0] = [[0, 1]] * 3
    buffer.pos, buffer.full, buffer.lost_beginnings = 1, True, ((0, 1),)
    longer = new_buffer(TASKS, 5, 3)
    fill(longer, slice(1, 3), buffer, None, 5)  # ages 0, 1, 2, 0, 1 of what was column 0 and 1
    assert sorted(longer.lost_beginnings) == [(0, 1), (0, 2), (2, 2), (3, 1), (3, 2)]
    large = of_task(buffer, TASKS, "large", *spaces_of_task(TASKS, "large", None))
    assert (large.n_envs, large.pos, large.full, large.lost_beginnings) == (1, 1, True, ((0, 0),))
    tasks[0, 1] = 0  # the newest of column 1 is of the other task: all of it comes in one column, oldest first
    small = of_task(buffer, TASKS, "small", *spaces_of_task(TASKS, "small", None))
    assert (small.size(), sorted(small.lost_beginnings)) == (4, [(0, 0), (3, 0)])
    large = of_task(buffer, TASKS, "large", *spaces_of_task(TASKS, "large", None))
    assert (large.size(), large.lost_beginnings) == (2, ((0, 0),))
