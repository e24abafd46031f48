"""Compiled and captured updates; where there is no GPU, captures are replayed by a stand-in."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import NO_UPDATES, make, same, space_envs, truth_envs
from torch.testing import assert_close
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_pwm import PWM
from sb3_pwm.compute.compilation import WARM_UP_UPDATES, usable_compiler
from sb3_pwm.compute.optimizers import set_learning_rate
from sb3_pwm.learner import Learner
from sb3_pwm.nn.layers import Mish
from sb3_pwm.type_aliases import SequenceSamples


@pytest.fixture
def fast_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Compile in seconds: the graph is traced, differentiated and run, but no machine code is made."""
    compiled = []

    def compile_with_aot(function: Callable[..., Any], **kwargs: Any) -> Any:
        compiled.append(getattr(function, "__name__", ""))
        return original(function, backend="aot_eager", **kwargs)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with_aot)
    usable_compiler.cache_clear()
    yield compiled
    torch.compiler.reset()
    usable_compiler.cache_clear()


class StandInGraph(TorchDispatchMode):
    """What a CUDA graph is, without a GPU: the operations of a capture, repeated on the same memory without Python.

    A real capture only notes the operations; here they run at once, and the first replay leaves them at that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.replays = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        for func, args, kwargs, outputs in self.calls:
            anew = func(*args, **kwargs)
            for before, after in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(anew), strict=True):
                if isinstance(before, torch.Tensor) and before.data_ptr() != after.data_ptr():
                    before.copy_(after)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let captures work without a GPU; the graphs."""
    graphs = []

    @contextmanager
    def capture(graph: Any) -> Iterator[None]:
        graphs.append(graph)
        with graph:
            yield

    class Stream:
        def wait_stream(self, stream: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandInGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return graphs


def update(model: PWM, rounds: int, batch_size: int = 16, rate: float = 2**-10, **settings: Any) -> None:
    """Update on windows and with noise that are always the same."""
    for i in range(rounds):
        torch.manual_seed(i)
        for name, optimizer in model.policy.optimizers.items():
            set_learning_rate(optimizer, rate * (i + 1) * len(name), on_device=model._learner.acceleration.captures)
        drawn: Any = model.sequences.spread_sequences(batch_size + i, model.sequence_length)
        samples = SequenceSamples(*(values[:, i:].contiguous() for values in drawn))  # or each round is compiled anew
        transitions = (model.sequences.spread_sequences(batch_size, model.n_steps),) if model.policy.q_critic else ()
        model._learner.update_policy(samples, transitions, model._learner.update_model(samples), **settings)


def close(first: Any, second: Any, **tolerances: Any) -> None:
    first, second = first.policy.state_dict(), second.policy.state_dict()
    for name, value in first.items():
        assert_close(value, second[name], msg=partial("{}: {}".format, name), **tolerances)


@pytest.mark.parametrize("critic", ["q", pytest.param("v", marks=pytest.mark.slow)])
def test_compiled_updates_are_the_eager_ones(fast_compiler: Any, critic: Literal["q", "v"]) -> None:
    eager, compiled = (
        make(truth_envs(), torch_compile=choice, critic=critic, **NO_UPDATES).learn(20) for choice in (False, True)
    )
    for model in (eager, compiled):
        update(model, 3, bc_coef=0.1)
    assert set(fast_compiler) >= {"_model_objective", "_imagined", "_critic_objective"}
    close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_compiled_mish(fast_compiler: Any) -> None:
    x = torch.linspace(-5, 5, 11, requires_grad=True)
    compiled, eager = torch.compile(Mish())(x), Mish()(x)
    assert_close(compiled, eager)
    assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (compiled, eager)))


def test_a_compiled_model_is_saved_copied_and_loaded(fast_compiler: Any, tmp_path: Path) -> None:
    model = make(torch_compile=True).learn(24)
    twin = copy.deepcopy(model)
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=space_envs())
    assert loaded.torch_compile is True
    assert same(loaded.get_parameters(), model.get_parameters())
    twin.set_parameters(tmp_path / "model")
    for other in (twin, loaded):
        other.learn(24)
    model.learn(4, reset_num_timesteps=False)
    assert not same(twin.get_parameters(), model.get_parameters())


def test_without_a_compiler_there_is_one_warning_and_eager_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no C++ compiler found\nmuch more")

    monkeypatch.setattr(torch, "compile", broken)
    usable_compiler.cache_clear()
    with pytest.warns(UserWarning, match="nothing is compiled: no C\\+\\+ compiler found$") as caught:
        models = [make(torch_compile=True).learn(40) for _ in range(2)]
    assert len([warning for warning in caught if "compiled" in str(warning.message)]) == 1
    usable_compiler.cache_clear()
    plain = make(torch_compile=False).learn(40)
    assert all(same(model.policy.state_dict(), plain.policy.state_dict()) for model in models)


def test_nothing_is_compiled_on_a_cpu_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().learn(40)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_choice_that_does_not_exist(value: str | int | None) -> None:
    with pytest.raises(ValueError, match=f'torch_compile={value!r}; allowed: True, False, "auto"'):
        make(torch_compile=value)


def captured_and_eager(**settings: Any) -> list[PWM]:
    pair = [make(truth_envs(), **settings).learn(60) for _ in range(2)]
    pair[0]._learner.acceleration.captures = True
    return pair


@pytest.mark.parametrize("settings", [{}, {"critic": "v", "ent_coef": 0.1, "policy_kwargs": {"reward_bins": 11}}])
def test_captured_updates_are_the_eager_ones(graphs: Any, settings: dict[str, Any]) -> None:
    captured, eager = captured_and_eager(**settings)
    rounds = WARM_UP_UPDATES + 3
    for model in (captured, eager):
        update(model, rounds)
        assert model.n_skipped_updates == 0
    assert [graph.replays for graph in graphs] == [3, 3]
    close(captured, eager, rtol=0, atol=0)
    means = captured._learner.pop_metrics()
    assert means == pytest.approx(eager._learner.pop_metrics())
    # a batch of another size, or with another term in the loss, is another update
    for model in (captured, eager):
        update(model, rounds, batch_size=12, bc_coef=0.5)
    assert [graph.replays for graph in graphs] == [3, 3, 3, 3]
    close(captured, eager, rtol=0, atol=0)


def test_captured_updates_are_skipped_and_counted(graphs: Any) -> None:
    model, _ = captured_and_eager()
    update(model, WARM_UP_UPDATES + 1)
    before = copy.deepcopy(model.get_parameters())
    samples = model.sequences.spread_sequences(16, model.sequence_length)
    model._learner.update_model(samples._replace(rewards=samples.rewards * torch.nan))
    assert model.n_skipped_updates == 1
    assert same(model.get_parameters(), before)


def test_what_cannot_be_captured_goes_on_as_it_is(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refuse(graph: Any) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    captured, eager = captured_and_eager()
    with pytest.warns(UserWarning, match="cannot be captured .* operation not permitted") as caught:
        update(captured, WARM_UP_UPDATES + 3)
    assert len(caught) == 2  # the world model's update, and the policy's
    update(eager, WARM_UP_UPDATES + 3)
    close(captured, eager, rtol=0, atol=0)


@pytest.mark.parametrize("choice", [False, "auto", True])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop])
def test_what_is_compiled_and_captured(
    monkeypatch: pytest.MonkeyPatch, choice: bool | Literal["auto"], optimizer: type[torch.optim.Optimizer]
) -> None:
    """Captured: on a GPU, unless the optimizer must ask the host whether to skip."""
    monkeypatch.setattr("sb3_pwm.compute.compilation.usable_compiler", lambda device_type: True)
    model = make(torch_compile=choice, policy_kwargs={"optimizer_class": optimizer})
    assert (model._learner.acceleration.compiles, model._learner.acceleration.captures) == (choice is True, False)
    model.device = torch.device("cuda")
    monkeypatch.setattr(torch, "zeros", lambda *shape, **kwargs: None)  # on a device that is not there
    used = Learner(model).acceleration
    assert used.compiles == (choice is True)
    assert used.captures == (choice is not False and optimizer is torch.optim.Adam)


def test_graphs_are_captured_anew_for_loaded_optimizers(graphs: Any) -> None:
    captured, eager = captured_and_eager()
    start = copy.deepcopy(eager.get_parameters())
    for model in (captured, eager):
        update(model, WARM_UP_UPDATES + 1)
        model.set_parameters(copy.deepcopy(start))
        update(model, WARM_UP_UPDATES + 2)
    assert [graph.replays for graph in graphs] == [1, 1, 2, 2]
    close(captured, eager, rtol=0, atol=0)


def test_a_model_with_graphs_is_freed(graphs: Any) -> None:
    model, _ = captured_and_eager()
    update(model, WARM_UP_UPDATES + 1)
    learner, actor = weakref.ref(model._learner), weakref.ref(model.policy.actor)
    gc.collect()
    gc.disable()
    try:
        graphs.clear()
        del model, _
        assert learner() is None
        assert actor() is None
    finally:
        gc.enable()


def test_a_model_with_graphs_is_copied_and_saved(graphs: Any, tmp_path: Path) -> None:
    model, _ = captured_and_eager()
    update(model, WARM_UP_UPDATES + 1)
    twin = copy.deepcopy(model)
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=model.env)
    loaded.replay_buffer = model.replay_buffer
    for other in (twin, loaded, model):
        update(other, WARM_UP_UPDATES + 1)
    close(twin, model, rtol=0, atol=0)
    close(loaded, model, rtol=0, atol=0)
    assert len({id(graph) for graph in graphs}) == 4  # two of the model, two of its twin; none of one on a CPU
