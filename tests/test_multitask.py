import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import SMALL, SpaceEnv
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch.testing import assert_close

from sb3_pwm import PWM
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets import from_arrays, from_tasks
from sb3_pwm.imagination import imagine
from sb3_pwm.learner import MAX_GRAD_NORM
from sb3_pwm.multitask.envs import single_task_env, task_vec_env
from sb3_pwm.multitask.extraction import of_task, spaces_of_task
from sb3_pwm.multitask.policies import ExtractedPolicy
from sb3_pwm.multitask.tasks import Task, TaskSet, check_folder_names
from sb3_pwm.networks import Actor, EntropyCoefficient
from sb3_pwm.nn.scales import LATENT_STD_FLOOR, ReturnScale, RewardScale
from sb3_pwm.nn.task_context import TaskContext, TaskFeatures
from sb3_pwm.observations import at_steps
from sb3_pwm.type_aliases import SequenceSamples


def space_env(n_observations: int, n_actions: int) -> SpaceEnv:
    return SpaceEnv(spaces.Box(-1, 1, (n_observations,), np.float32), spaces.Box(-2, 2, (n_actions,), np.float32))


TASKS = TaskSet([Task("small", partial(space_env, 2, 1), 2, 1), Task("large", partial(space_env, 4, 3), 4, 3)])
TINY = {"net_arch": [16], "latent_dim": 16, "task_embedding_dim": 5, "task_set": TASKS}


def model_of(steps: int = 0, **kwargs: Any) -> PWM:
    model = PWM("MultiTaskPolicy", task_vec_env(TASKS, seed=0), policy_kwargs=TINY, **(SMALL | kwargs))
    return model.learn(steps) if steps else model


def observations_of(tasks: list[int]) -> dict[str, torch.Tensor]:
    """Random padded observations."""
    values = torch.rand(len(tasks), 4) * TASKS_MASK[tasks]
    return {"observation": values, "task": torch.tensor(tasks)[:, None]}


TASKS_MASK = torch.as_tensor(TASKS.observation_masks)


def test_context_by_hand() -> None:
    context = TaskContext(torch.tensor([[1, 0, 0], [1, 1, 1]]), 2)
    context.embedding.data = torch.tensor([[0.3, 0.4], [3.0, 4.0]])  # 0.5 and 5 long
    expected = torch.tensor([[0.6, 0.8, 1, 1, 1], [0.3, 0.4, 1, 0, 0]])
    assert_close(context(observations_of([1, 0])), expected)
    assert context.size == 5


def test_context_of_a_task_alone() -> None:
    context = TaskContext(torch.tensor([[1, 0, 0], [1, 1, 1]]), 2, task=1)
    assert_close(context(torch.rand(3, 4)), context(observations_of([1, 1, 1])))


def test_features_have_each_tasks_statistics() -> None:
    features = TaskFeatures(2, 3)
    values = torch.tensor([[1.0, 7, 0], [3.0, 7, 0], [10.0, 20, 30]])
    observations = {"observation": values, "task": torch.tensor([[0], [0], [1]])}
    features.set_statistics(observations)
    assert_close(features.mean, torch.tensor([[2.0, 7, 0], [10, 20, 30]]).double())
    assert_close(features.std, torch.tensor([[1.0, 0, 0], [0, 0, 0]]).double())
    assert_close(features(observations), torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, 0, 0]]))
    features.set_statistics({"observation": values[:2] + 1, "task": torch.zeros(2, 1)})
    assert_close(features.mean[1], torch.tensor([10.0, 20, 30]).double())  # no data of this task


def test_features_pad_a_task_of_its_own() -> None:
    features = TaskFeatures(2, 4, task=1)
    features.set_statistics(torch.tensor([[1.0, 2], [3, 2]]))
    assert_close(features.mean[1], torch.tensor([2.0, 2, 0, 0]).double())
    assert_close(features(torch.tensor([[4.0, 2]])), torch.tensor([[2.0, 0, 0, 0]]))
    assert_close(features.mean[0], torch.zeros(4).double())


def test_features_of_a_task_in_any_unit_and_with_any_offset() -> None:
    features = TaskFeatures(2, 4, task=1)
    own = torch.tensor([[5e7, 1e-5], [5e7 + 2, 3e-5]], dtype=torch.float64)
    features.set_statistics(own)
    assert_close(features(own), torch.tensor([[-1.0, -1, 0, 0], [1, 1, 0, 0]]))


def test_features_without_standardisation_are_padded_only() -> None:
    features = TaskFeatures(2, 4, task=1, standardize=False)
    assert_close(features(torch.tensor([[400.0, -2]])), torch.tensor([[400.0, -2, 0, 0]]))
    assert not features.state_dict()


def test_reward_scales_by_hand() -> None:
    scale = RewardScale(3)
    scale.set_statistics(torch.tensor([1.0, 3, -20, 20, 0]), torch.tensor([0, 0, 2, 2, 2]))
    assert_close(scale.scale, torch.tensor([1.0, 1, (800 / 3) ** 0.5]))
    scale.set_statistics(torch.tensor([0.0, 0, 9]), torch.tensor([0, 2, 1]))  # nothing but 0 changes nothing
    assert_close(scale.scale, torch.tensor([1.0, 9 / 4, (800 / 3) ** 0.5]))
    scale.set_statistics(torch.tensor([3.0, 5]), torch.tensor([1, 1]))
    assert_close(scale.scale[1], torch.tensor(17**0.5 / 4))
    scale.scale[1] = 1
    rewards = torch.tensor([[2.0, 4], [6, 8]])
    assert_close(scale(rewards, torch.tensor([1, 0])), rewards)
    assert_close(scale(rewards, torch.tensor([2, 0]))[:, 0], rewards[:, 0] / (800 / 3) ** 0.5)


def test_return_scales_by_hand() -> None:
    scale = ReturnScale(0.5, n_tasks=3)
    tasks = torch.tensor([0, 0, 2, 1, 1])
    scale.update(torch.tensor([1.0, 3, 9, 10, 10]), tasks)
    assert_close(scale.variance, torch.tensor([1.0, 0, 1]))  # the third has one return, and keeps its start value
    assert scale.initialized.tolist() == [True, True, False]
    scale.update(torch.tensor([0.0, 6, 9, torch.nan, 10]), tasks)  # not finite: changes nothing
    assert_close(scale.variance, torch.tensor([1.0, 0, 1]))
    scale.update(torch.tensor([0.0, 6, 9, 10, 10]), tasks)
    assert_close(scale.variance, torch.tensor([5.0, 0, 1]))  # (1 + 9) / 2
    assert_close(scale.of(tasks), (scale.variance + 1e-5).sqrt()[tasks])


def test_padded_actions_are_zero_and_have_no_density() -> None:
    actor = Actor(7, 3, [8], masked=True)
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    latents = torch.cat([torch.rand(2, 4), torch.tensor([[1.0, 0, 0], [1, 1, 1]])], -1)
    for actions in (actor.sample(latents), actor.mode(latents), actor.sample_with_log_prob(latents)[0]):
        assert (actions.eq(0) == latents[:, 4:].eq(0)).all()
    assert actor.n_actions(latents).tolist() == [1, 3]
    # the density of the action that exists, from an actor of which nothing is padded
    plain = copy.deepcopy(actor)
    plain.masked = False
    torch.manual_seed(0)
    actions, log_probs = actor.sample_with_log_prob(latents)
    torch.manual_seed(0)
    mean, log_std = plain.distribution(latents)
    noise = torch.randn_like(mean)
    u = mean + log_std.exp() * noise
    densities = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - (1 - torch.tanh(u).square()).log()
    assert_close(log_probs, torch.stack([densities[0, 0], densities[1].sum()]), rtol=1e-3, atol=1e-3)
    assert_close(actions[1], torch.tanh(u[1]))


def test_imagined_steps_keep_the_context() -> None:
    policy = model_of().policy
    latents = policy.world_model.encode(observations_of([0, 1, 1]))
    rollout = imagine(policy.world_model, policy.actor, latents, 3)
    assert_close(rollout.latents[..., 16:], latents[:, 16:].expand(4, -1, -1))
    assert (rollout.actions[:, 0, 1:] == 0).all()
    assert (rollout.actions[:, 1:] != 0).all()
    assert_close(rollout.latents[1:, :, :16].sum(-1), torch.full((3, 3), 2.0))  # two groups of eight


def test_windows_have_no_padded_actions() -> None:
    model = model_of(steps=40, learning_starts=1000, gradient_steps=0, pretrain_steps=0)
    assert (model.replay_buffer.actions[:20, 0, 1:] != 0).all()  # random actions fill all dimensions
    samples = model._sample(8)
    first: Any = at_steps(samples.observations, 0)
    tasks = first["task"].flatten()
    assert set(tasks.tolist()) == {0, 1}
    assert (samples.actions[:, tasks == 0, 1:] == 0).all()
    exists = samples.mask.bool()
    assert (samples.actions[..., 0] != 0)[exists].all()
    assert (samples.actions[:, tasks == 1] != 0)[exists[:, tasks == 1]].all()


def test_updates_reach_each_tasks_own_parameters_only() -> None:
    """What only one task uses changes only when this task is in the batch."""
    model = model_of(steps=40, learning_starts=1000, gradient_steps=0, pretrain_steps=0)
    model._prepare_updates()
    policy: Any = model.policy
    samples = model._sample(8)
    first: Any = at_steps(samples.observations, 0)
    of_small = first["task"].flatten() == 0
    keep = of_small.nonzero().flatten()[:2].repeat(4)

    def only(samples: SequenceSamples, steps: int) -> SequenceSamples:
        observations = {key: values[: steps + 1, keep] for key, values in samples.observations.items()}
        return type(samples)(observations, *(tensor[:steps, keep] for tensor in samples[1:]))

    transitions = (only(samples, 1),)
    samples = only(samples, model.sequence_length)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    latents = model._learner.update_model(samples)
    model._learner.update_policy(samples, transitions, latents)
    embedding = policy.world_model.context.embedding
    assert (embedding[0] != before["world_model.context.embedding"][0]).any()
    assert_close(embedding[1], before["world_model.context.embedding"][1])
    coefficient = policy.entropy_coefficient.log_ent_coef
    assert coefficient[0] != before["entropy_coefficient.log_ent_coef"][0]
    assert coefficient[1] == before["entropy_coefficient.log_ent_coef"][1]
    assert set(MAX_GRAD_NORM) == {"actor", "critic", "model", "entropy"}
    for part in ("actor.", "critics.", "world_model.dynamics", "world_model.encoder"):
        changed = [(p != before[n]).any() for n, p in policy.named_parameters() if n.startswith(part)]
        assert any(changed), part


def test_entropy_coefficients() -> None:
    coefficient = EntropyCoefficient(3)
    coefficient.log_ent_coef.data[:] = torch.tensor([1.0, 2, 3])
    assert coefficient.of(torch.tensor([2, 0])).tolist() == [3, 1]


def test_learning_saving_and_acting(tmp_path: Path) -> None:
    model = model_of(steps=120)
    policy: Any = model.policy
    assert policy.world_model.features.std.ne(1).any()
    observation: Any = model.get_env().reset()
    actions, _ = model.predict(observation, deterministic=True)
    assert actions.shape == (2, 3)
    assert (actions[0, 1:] == 0).all()
    model.save(tmp_path / "model.zip")
    loaded = PWM.load(tmp_path / "model.zip", env=task_vec_env(TASKS))
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], actions)
    assert loaded.policy_kwargs["task_set"] == TASKS.to_dict()
    loaded.learn(40)


def test_extracting_a_policy(tmp_path: Path) -> None:
    model = model_of(steps=120)
    before = copy.deepcopy(model.policy.state_dict())
    env = space_env(2, 1)
    own = model.extract("small", 5, env=env, policy_kwargs={"net_arch": {"pi": [7]}})
    assert own.observation_space == env.observation_space
    assert own.action_space == env.action_space
    assert_close(own.policy.world_model.state_dict(), model.policy.world_model.state_dict())
    assert own.policy.reward_scale.scale == model.policy.reward_scale.scale[0]
    assert own.replay_buffer.n_envs == 1
    assert own.num_timesteps == 5
    assert next(p.shape[0] for p in own.policy.actor.parameters()) == 7
    assert_close(model.policy.state_dict(), before)  # the shared model is as it was
    # the same state, seen by both
    observation = torch.tensor([[0.3, -0.2]])
    padded = {"observation": torch.tensor([[0.3, -0.2, 0, 0]]), "task": torch.tensor([[0]])}
    own.policy.set_training_mode(False)
    shared, alone = model.policy.world_model, own.policy.world_model
    latents = shared.encode(padded)
    assert_close(alone.encode(observation), latents)
    actions = torch.tensor([[0.5]])
    padded_actions = torch.tensor([[0.5, 0, 0]])
    assert_close(alone.next_latents(latents, actions), shared.next_latents(latents, padded_actions))
    assert_close(alone.rewards(latents, actions), shared.rewards(latents, padded_actions))
    # acts in the task's own environment, can be saved, and goes on learning there
    action, _ = own.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)
    own.save(tmp_path / "own.zip")
    loaded = PWM.load(tmp_path / "own.zip", env=env)
    np.testing.assert_array_equal(
        loaded.predict(np.array([0.3, -0.2]), deterministic=True)[0],
        own.predict(np.array([0.3, -0.2]), deterministic=True)[0],
    )
    own.set_env(env)
    own.learn(20)


def test_an_extracted_policy_sees_the_tasks_own_latents_standardised() -> None:
    """Its context, the same in all of its latents, is nothing to it."""
    own = model_of(steps=120).extract("large", 3)
    policy = own.policy
    observations = own.sequences.statistics_sample()
    latents = policy.world_model.encode(observations).detach()
    scale, size, own_dim = policy.latent_scale, latents.shape[1], policy.world_model.own_dim
    assert_close(scale.mean[:size], latents.mean(0), rtol=0, atol=0.005)
    assert_close(scale.std[:size], latents.std(0).clamp(min=LATENT_STD_FLOOR), rtol=0, atol=0.005)
    context = policy.actor.latent_scale(latents)[:, own_dim:]
    assert_close(context, torch.zeros_like(context), rtol=0, atol=1e-4)


def test_extraction_is_reproducible() -> None:
    model = model_of(steps=120)
    first, second = (model.extract("large", 3) for _ in range(2))
    assert_close(first.policy.state_dict(), second.policy.state_dict(), atol=0, rtol=0)


def test_extracted_models_have_the_settings_of_theirs() -> None:
    settings: dict[str, Any] = {
        "learning_starts": 30,
        "train_freq": 2,
        "gradient_steps": 3,
        "policy_updates": 0.5,
        "bc_coef": 0.3,
    }
    model = model_of(steps=40, tensorboard_log=None, stats_window_size=7, **settings)
    own = model.extract("small", 0)
    assert {name: getattr(own, name) for name in settings} == {name: getattr(model, name) for name in settings}
    assert own._stats_window_size == 7
    assert model.extract("small", 0, gradient_steps=1).gradient_steps == 1


def test_extracted_scales_stay(tmp_path: Path) -> None:
    """The shared world model knows the parent's scales, also after a save without the buffer."""
    env = space_env(2, 1)
    own = model_of(steps=120, learning_starts=100).extract("small", 2, env=env, learning_starts=20)
    mean, scale = own.policy.features.mean.clone(), own.policy.reward_scale.scale.clone()
    own.save(tmp_path / "own")
    loaded = PWM.load(tmp_path / "own", env=env).learn(40)
    assert loaded.n_model_updates > own.n_model_updates
    assert_close(loaded.policy.features.mean, mean)
    assert_close(loaded.policy.reward_scale.scale, scale)


def test_extracted_scales_follow_the_tasks_own_data() -> None:
    model = model_of(steps=400, learning_starts=300)
    env = space_env(2, 1)
    own = model.extract("small", 1, env=env, learning_starts=20)
    assert own.policy.statistics_size == own.replay_buffer.size() < model.policy.statistics_size
    own.replay_buffer.observations += 50
    own.set_env(env)
    own.learn(40)
    assert own.policy.features.mean[0, 0] > 20


def test_arguments_that_are_the_models_own_can_be_given() -> None:
    model = model_of(steps=40)
    own = {"simnorm_dim": 8, "residual_dynamics": True, "task_set": TASKS, "net_arch": {"reward": [16]}}
    assert model.extract("small", 0, policy_kwargs=own).policy.simnorm_dim == 8


REVERSED = TaskSet(list(TASKS)[::-1])


def test_a_world_model_of_other_tasks_is_refused(tmp_path: Path) -> None:
    model_of(steps=40).save_world_model(tmp_path / "new" / "world.pt")
    other = PWM("MultiTaskPolicy", task_vec_env(REVERSED), policy_kwargs=TINY | {"task_set": REVERSED}, **SMALL)
    before = copy.deepcopy(other.policy.state_dict())
    with pytest.raises(ValueError, match=r"does not fit: its task_set is .*'small'.* this model's is .*'large'"):
        other.load_world_model(tmp_path / "new" / "world.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.policy.state_dict().items())
    assert model_of().load_world_model(tmp_path / "new" / "world.pt").n_model_updates > 0


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_environments_that_number_the_tasks_otherwise_are_refused(tmp_path: Path, vec_env_cls: Any) -> None:
    wrong = task_vec_env(REVERSED, vec_env_cls)
    message = "task 0 of the environment is 'large'; task 0 of the model is 'small'"
    with pytest.raises(ValueError, match=message):
        PWM("MultiTaskPolicy", wrong, policy_kwargs=TINY, **SMALL)
    model = model_of(train_freq=4)
    known = model.env
    for env in (wrong, VecNormalize(wrong, norm_obs=False)):
        with pytest.raises(ValueError, match=message):
            model.set_env(env)
    assert model.env is known
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        PWM.load(tmp_path / "model", env=wrong)
    right = task_vec_env(TASKS, vec_env_cls)
    assert PWM.load(tmp_path / "model", env=right).learn(24).num_timesteps == 24
    model.set_env(task_vec_env(TASKS))
    with pytest.raises(ValueError, match=message):
        model.set_env(single_task_env(REVERSED, "large"))
    wrong.close()
    right.close()


def test_environments_of_other_sizes_are_refused() -> None:
    """The names are the same, and so are the padded spaces."""
    small, large = TASKS
    swapped = TaskSet([Task("small", large.env, 4, 3), Task("large", small.env, 2, 1)])
    message = "task 'small' of the environment has 4 observations and 3 actions; that of the model has 2 and 1"
    with pytest.raises(ValueError, match=message):
        PWM("MultiTaskPolicy", task_vec_env(swapped), policy_kwargs=TINY, **SMALL)
    with pytest.raises(ValueError, match=message):
        model_of().set_env(task_vec_env(swapped))


def test_tasks_may_change_columns() -> None:
    """A task's steps are found by its number, and its episodes end where its environment was exchanged."""
    model = model_of(steps=40)
    for names in (["large", "small"], ["small", "large", "small", "large"]):
        model.set_env(DummyVecEnv([partial(single_task_env, TASKS, name) for name in names]))
        model.learn(20, reset_num_timesteps=False)
    buffer: Any = model.sequences
    own = of_task(buffer, TASKS, "large", *spaces_of_task(TASKS, "large", None))
    expected = []
    for column in range(buffer.n_envs):
        for age in range(buffer.size()):
            row = (buffer.oldest + age) % buffer.buffer_size
            if buffer.observations["task"][row, column] == TASKS.task_id("large"):
                expected.append(buffer.observations["observation"][row, column, :4])
    assert own.n_envs == 1
    np.testing.assert_array_equal(own.observations[: own.size(), 0], expected)
    follows = (own.next_observations[:-1] == own.observations[1:]).all(-1)
    assert (follows | (own.dones[:-1] == 1)).all()
    assert own.dones[-1] == 1
    assert model.extract("large", 2)._n_updates == 2


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_embeddings_have_a_size(size: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="task_embedding_dim"):
        PWM("MultiTaskPolicy", task_vec_env(TASKS), policy_kwargs=TINY | {"task_embedding_dim": size}, **SMALL)


def test_an_environment_of_a_larger_set_is_refused() -> None:
    larger = TaskSet([*TASKS, Task("third", partial(space_env, 2, 1), 2, 1)])
    with pytest.raises(ValueError, match="task 2 of the environment is 'third'; task 2 of the model is None"):
        model_of().set_env(task_vec_env(larger))


def test_what_cannot_be_extracted() -> None:
    model = model_of()
    with pytest.raises(ValueError, match=r"unknown task 'smal'.*'small'"):
        model.extract("smal", 1)
    with pytest.raises(ValueError, match="holds no data of task 'small'"):
        model.extract("small", 1)
    model = model_of(steps=40)
    with pytest.raises(ValueError, match=r"\(4, 3\) observations and actions; task 'small' has \(2, 1\)"):
        model.extract("small", 1, env=space_env(4, 3))
    wrapped = gym.wrappers.TransformObservation(
        space_env(2, 1), lambda x: {"x": x}, spaces.Dict({"x": spaces.Box(-1, 1, (2,))})
    )
    with pytest.raises(TypeError, match="FlattenObservation"):
        model.extract("small", 1, env=wrapped)
    with pytest.raises(ValueError, match="total_updates=-1"):
        model.extract("small", -1)
    with pytest.raises(TypeError, match=r"env must be a Gymnasium environment, such as gym\.make\(id\), not 'Pendulum"):
        model.extract("small", 1, env="Pendulum-v1")  # type: ignore[arg-type]
    for policy_kwargs, name in (
        ({"net_arch": [8]}, r"net_arch\['encoder'\]"),
        ({"net_arch": {"dynamics": [8]}}, r"net_arch\['dynamics'\]"),
        ({"latent_dim": 8}, "latent_dim"),
        ({"net_arch": {"policy": [8]}}, "unknown keys"),
    ):
        with pytest.raises(ValueError, match=name):
            model.extract("small", 1, policy_kwargs=policy_kwargs)
    normalized = PWM(
        "MultiTaskPolicy", VecNormalize(task_vec_env(TASKS), norm_obs=False), policy_kwargs=TINY, **SMALL
    ).learn(40)
    with pytest.raises(ValueError, match="VecNormalize"):
        normalized.extract("small", 1)
    single = PWM("MlpPolicy", SpaceEnv(), policy_kwargs={"net_arch": [16], "latent_dim": 16}, **SMALL)
    with pytest.raises(TypeError, match="MultiTaskPolicy"):
        single.extract("small")


def test_spaces_must_be_the_task_sets() -> None:
    three = TaskSet([*TASKS, Task("other", None, 2, 1)])
    with pytest.raises(ValueError, match="spaces are not those of the task set"):
        PWM("MultiTaskPolicy", task_vec_env(TASKS), policy_kwargs=TINY | {"task_set": three}, **SMALL)
    with pytest.raises(ValueError, match=r"task 'small' have \(2,\) and \(1,\)"):
        PWM(ExtractedPolicy, SpaceEnv(), policy_kwargs=TINY | {"task": "small"}, **SMALL)


def data_of(task: Task, n_steps: int, seed: int) -> tuple[dict[str, Any], SequenceReplayBuffer]:
    rng = np.random.default_rng(seed)
    arrays = {
        "observations": rng.uniform(-1, 1, (n_steps, task.observation_size)).astype(np.float32),
        "next_observations": rng.uniform(-1, 1, (n_steps, task.observation_size)).astype(np.float32),
        "actions": rng.uniform(-2, 2, (n_steps, task.action_size)).astype(np.float32),
        "rewards": rng.normal(size=n_steps).astype(np.float32),
        "terminals": np.arange(n_steps) % 3 == 2,
        "timeouts": np.zeros(n_steps, bool),
    }
    arrays["next_observations"][:-1] = np.where(
        arrays["terminals"][:-1, None], arrays["next_observations"][:-1], arrays["observations"][1:]
    )
    assert callable(task.env)
    env = task.env()
    return arrays, from_arrays(arrays, env.observation_space, env.action_space)


def test_merged_data_by_hand() -> None:
    (small, small_data), (large, large_data) = data_of(TASKS[0], 5, 0), data_of(TASKS[1], 8, 1)
    merged = from_tasks(TASKS, {"large": large_data, "small": small_data})
    assert (merged.n_envs, merged.buffer_size, merged.size()) == (2, 8, 8)
    rows = [0, 1, 2, 3, 4, 0, 1, 2]  # the shorter one again from its start
    np.testing.assert_array_equal(merged.observations["observation"][:, 0, :2], small["observations"][rows])
    assert (merged.observations["observation"][:, 0, 2:] == 0).all()
    np.testing.assert_array_equal(merged.next_observations["observation"][:, 1], large["next_observations"])
    np.testing.assert_allclose(merged.actions[:, 0, :1], small["actions"][rows] / 2, rtol=1e-6)
    assert (merged.actions[:, 0, 1:] == 0).all()
    np.testing.assert_array_equal(merged.rewards[:, 0], small["rewards"][rows])
    assert merged.observations["task"][:, :, 0].tolist() == [[0, 1]] * 8
    # every third step terminates; the data's end is a time-out, and so is the end of what is repeated
    assert merged.dones[:, 0].tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    assert merged.timeouts[:, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert merged.dones[:, 1].tolist() == [0, 0, 1, 0, 0, 1, 0, 1]


def test_a_shared_world_model_learns_as_long_for_each_task() -> None:
    merged = from_tasks(TASKS, {task.name: data_of(task, 20, 0)[1] for task in TASKS})
    model = PWM.from_dataset(merged, "MultiTaskPolicy", policy_kwargs=TINY, batch_size=8)
    assert model.pretrain_steps == 20_000
    own = TINY | {"task": "small"}
    alone = PWM.from_dataset(data_of(TASKS[0], 20, 0)[1], ExtractedPolicy, policy_kwargs=own, batch_size=8)
    assert alone.pretrain_steps == 10_000


def test_a_bad_size_of_merged_data() -> None:
    with pytest.raises(TypeError, match=r"buffer_size must be an integer, not 1000\.0"):
        from_tasks(TASKS, {task.name: data_of(task, 20, 0)[1] for task in TASKS}, buffer_size=1e3)  # type: ignore[arg-type]


def test_learning_from_merged_data() -> None:
    datasets = {task.name: data_of(task, 40, seed)[1] for seed, task in enumerate(TASKS)}
    options: dict[str, Any] = {
        key: SMALL[key] for key in ("batch_size", "sequence_length", "horizon", "critic_batch_size", "seed")
    }
    model = PWM.from_dataset(
        from_tasks(TASKS, datasets, buffer_size=60), "MultiTaskPolicy", policy_kwargs=TINY, pretrain_steps=3, **options
    )
    with pytest.raises(ValueError, match=r"this one has not been trained; call pretrain\(\)"):
        model.extract("large", 2)
    assert model.extract("large", 0).n_model_updates == 0
    model.learn_offline(3)
    own = model.extract("large", 2)
    assert len(own.policy.world_model.dynamics) == 3
    model.set_env(task_vec_env(TASKS))
    model.learn(20)  # there is room for 20 more steps of each task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("small"), r"no data set for 1 of 2 tasks: \['small'\]"),
        (lambda data: data.update(smal=data["small"]), "unknown task 'smal'"),
        (lambda data: data.update(small=data["large"]), r"task 'small' have observations and actions of the shapes"),
    ],
)
def test_bad_data(change: Callable[..., Any], message: str) -> None:
    datasets = {task.name: data_of(task, 9, seed)[1] for seed, task in enumerate(TASKS)}
    change(datasets)
    with pytest.raises(ValueError, match=message):
        from_tasks(TASKS, datasets)


@pytest.mark.parametrize("name", ["../esc", "/tmp/x", "a/b", "..", ".", "a\\b"])
def test_names_that_lead_out_of_a_folder(name: str) -> None:
    check_folder_names(TASKS.names, taken="world model")
    with pytest.raises(ValueError, match="needs another name"):
        check_folder_names([name])
    with pytest.raises(ValueError, match="'world model' needs another name"):
        check_folder_names(["world model"], taken="world model")


def test_more_bad_data() -> None:
    datasets = {task.name: data_of(task, 9, seed)[1] for seed, task in enumerate(TASKS)}
    with pytest.raises(ValueError, match="buffer_size=8 is less than the 9 steps"):
        from_tasks(TASKS, datasets, buffer_size=8)
    discrete = ReplayBuffer(9, datasets["small"].observation_space, spaces.MultiDiscrete([5]))
    with pytest.raises(ValueError, match=r"task 'small' have the spaces .* MultiDiscrete.*allowed is a Box"):
        from_tasks(TASKS, datasets | {"small": discrete})
    with pytest.raises(TypeError, match="ReplayBuffer"):
        from_tasks(TASKS, datasets | {"small": 3})  # type: ignore[dict-item]
    assert isinstance(datasets["small"], ReplayBuffer)
