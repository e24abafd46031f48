"""What only a GPU can show; skipped where there is none."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MIXED, make, same, space_envs, truth_envs
from torch.testing import assert_close

from sb3_pwm import PWM, TaskSet
from sb3_pwm.compute.compilation import WARM_UP_UPDATES
from sb3_pwm.compute.optimizers import set_learning_rate
from sb3_pwm.compute.precision import Precision
from sb3_pwm.compute.streams import side_by_side
from sb3_pwm.datasets import from_tasks
from sb3_pwm.multitask.tasks import Task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

ROUNDS = WARM_UP_UPDATES + 5


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A capture that fails, or a buffer that does not fit, is a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(captured|compiled|does not fit|no room|no precision).*")
        yield


def update(model: PWM, rounds: int = ROUNDS, **settings: Any) -> None:
    """Update on windows and with noise that are always the same."""
    for i in range(rounds):
        torch.manual_seed(i)
        for name, optimizer in model.policy.optimizers.items():
            set_learning_rate(optimizer, 2**-12 * (i + 1) * len(name), on_device=True)
        samples = model.policy.for_networks(model.sequences.spread_sequences(16, model.sequence_length))
        spread = model.policy.for_networks(model.sequences.spread_sequences(16, model.n_steps))
        transitions = (spread,) * model.critic_updates if model.policy.q_critic else ()
        model._learner.update_policy(samples, transitions, model._learner.update_model(samples), **settings)


def graphs(model: PWM) -> list[Any]:
    return [update._graph for update in model._learner.acceleration._graphs.values() if update._graph is not None]


def assert_close_parameters(first: Any, second: Any, **tolerances: Any) -> None:
    first, second = first.policy.state_dict(), second.policy.state_dict()
    for name, value in first.items():
        assert_close(value, second[name], msg=functools.partial("{}: {}".format, name), **tolerances)


def twins(env: Any = None, *, learnt: int = 40, **settings: Any) -> tuple[PWM, PWM]:
    """Return two equal models that have learnt, the second without graphs."""
    env = env or truth_envs()
    model = make(env, device="cuda", **(settings | {"torch_compile": False})).learn(learnt)
    captured = make(env, device="cuda", **settings)
    captured.set_parameters(copy.deepcopy(model.get_parameters()))
    captured.replay_buffer = model.replay_buffer
    model._learner.pop_metrics()
    return captured, model


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({}, {"bc_coef": 0.5}),
        ({"critic": "v", "ent_coef": 0.1, "critic_updates": 3, "policy_kwargs": {"reward_bins": 11}}, {}),
        ({"policy_kwargs": {"n_dynamics": 3}}, {"bc_coef": 3.0}),
    ],
)
def test_captured_updates_are_the_eager_ones(settings: dict[str, Any], options: dict[str, Any]) -> None:
    captured, eager = twins(**settings)
    for model in (captured, eager):
        update(model, **options)
    assert len(graphs(captured)) == 2
    assert not graphs(eager)
    assert_close_parameters(captured, eager, rtol=1e-3, atol=1e-4)
    first, second = (model._learner.pop_metrics() for model in (captured, eager))
    assert first == pytest.approx(second, rel=1e-2, abs=1e-3)
    assert captured.n_skipped_updates == 0


def test_updates_on_a_gpu_are_those_on_a_cpu() -> None:
    """But for the noise, which a GPU draws in another way: the world model's updates have none."""
    gpu, _ = twins()
    cpu = make(truth_envs())
    cpu.set_parameters(copy.deepcopy(gpu.get_parameters()))
    cpu.replay_buffer = copy.deepcopy(gpu.replay_buffer)
    cpu.replay_buffer.device = torch.device("cpu")
    for model in (gpu, cpu):
        for optimizer in model.policy.optimizers.values():
            set_learning_rate(optimizer, 1e-3, on_device=model is gpu)
        for _ in range(ROUNDS):
            samples = model.sequences.spread_sequences(16, model.sequence_length)
            model._learner.update_model(samples)
    first, second = gpu.policy.world_model.state_dict(), cpu.policy.world_model.state_dict()
    for name, value in first.items():
        assert_close(value.cpu(), second[name], rtol=1e-3, atol=1e-4)
    assert graphs(gpu)


def test_captured_updates_that_are_not_finite_are_skipped_and_counted() -> None:
    model, _ = twins()
    update(model)
    before = copy.deepcopy(model.get_parameters())
    samples = model.sequences.spread_sequences(16, model.sequence_length)
    model._learner.update_model(samples._replace(rewards=samples.rewards * torch.nan))
    model._learner.count_skips()
    assert model.n_skipped_updates == 1
    assert same(model.get_parameters(), before)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("choice", [False, "auto"])
def test_learning_saving_and_loading(tmp_path: Path, choice: bool | str, precision: Precision) -> None:
    model = make(truth_envs(2), device="cuda", torch_compile=choice, precision=precision).learn(80)
    assert len(graphs(model)) == (0 if choice is False else 2)
    model.dump_logs()
    assert model.n_skipped_updates == 0
    model.save(tmp_path / "model")
    observations = np.stack([model.observation_space.sample() for _ in range(3)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the device cpu has no precision")
        on_cpu = PWM.load(tmp_path / "model", env=model.env, device="cpu")
    on_gpu = PWM.load(tmp_path / "model", env=model.env, device="cuda")
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_allclose(on_cpu.predict(observations, deterministic=True)[0], expected, atol=1e-4)
    np.testing.assert_allclose(on_gpu.predict(observations, deterministic=True)[0], expected, atol=1e-4)
    on_gpu.learn(80)
    twin = copy.deepcopy(model)
    twin.learn(40, reset_num_timesteps=False)
    for other in (on_gpu, twin):
        assert len(graphs(other)) == len(graphs(model))


def test_compiled_objectives_in_graphs() -> None:
    captured, eager = twins(torch_compile=True)
    for model in (captured, eager):
        update(model)
    assert captured._learner.acceleration._compiled
    assert len(graphs(captured)) == 2
    assert captured.n_skipped_updates == 0
    # A compiler draws other noise, and only the world model's updates have none.
    first, second = (model.policy.world_model.state_dict() for model in (captured, eager))
    for name, value in first.items():
        assert_close(value, second[name], rtol=1e-3, atol=1e-4)


def test_pictures_and_dictionaries() -> None:
    model = make(space_envs(2, MIXED), "MultiInputPolicy", device="cuda").learn(80)
    assert len(graphs(model)) == 2


@pytest.mark.parametrize("as_dict", [False, True])
def test_windows_from_the_copy_on_the_gpu_are_those_of_the_host(as_dict: bool) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = make(truth_envs(3, as_dict), policy, device="cuda", buffer_size=120).learn(300)
    assert model.sequences._device_copy is not None
    copied = model.sequences.spread_sequences(50, 4)
    host = copy.deepcopy(model.sequences)
    host.device = torch.device("cpu")
    assert same(
        copied._asdict(), {name: to_gpu(value) for name, value in host.spread_sequences(50, 4)._asdict().items()}
    )


def to_gpu(value: Any) -> Any:
    return {k: v.cuda() for k, v in value.items()} if isinstance(value, dict) else value.cuda()


def test_a_policy_is_extracted_from_a_model_of_several_tasks() -> None:
    from sb3_pwm.speed.measure import Shape, make_model

    tasks = TaskSet([Task("first", None, 5, 2), Task("second", None, 3, 1)])
    data = {
        task.name: make_model(Shape(task.observation_size, task.action_size, {}), "cpu").sequences for task in tasks
    }
    model = PWM.from_dataset(
        from_tasks(tasks, data),
        "MultiTaskPolicy",
        device="cuda",
        batch_size=16,
        policy_kwargs={"task_set": tasks, "latent_dim": 16, "net_arch": [16]},
        seed=0,
    )
    model.learn_offline(ROUNDS, pretrain_steps=ROUNDS)
    assert len(graphs(model)) == 2
    extracted = model.extract("second", ROUNDS)
    assert len(graphs(extracted)) == 1
    assert extracted.predict(np.zeros(3, np.float32))[0].shape == (1,)


def test_works_on_streams_of_their_own_and_their_gradients() -> None:
    device = torch.device("cuda")
    weights = [torch.randn(256, 256, device=device, requires_grad=True) for _ in range(3)]
    x = torch.randn(512, 256, device=device, requires_grad=True)

    def outputs(run: Callable[..., Any]) -> torch.Tensor:
        return torch.stack(run([functools.partial(network, x, weight) for weight in weights], device))

    def network(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            x = torch.tanh(x @ weight / 16)
        return x

    for _ in range(20):
        expected = outputs(lambda works, device: [work() for work in works])
        found = outputs(side_by_side)
        assert_close(found, expected, rtol=0, atol=0)
        for first, second in zip(
            *(torch.autograd.grad(y.sum(), [x, *weights]) for y in (found, expected)), strict=True
        ):
            assert_close(first, second)
