import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import ACTIONS, BOX, MIXED, NoHostReads, flat_state, make, same, truth_envs
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm import SequenceReplayBuffer
from sb3_pwm.buffers import sequence_buffer_class
from sb3_pwm.datasets import from_replay_buffer
from sb3_pwm.replay.device_copy import DeviceCopy, free_memory, record_type
from sb3_pwm.type_aliases import SequenceSamples

CPU = torch.device("cpu")
SPACES: dict[str, spaces.Space[Any]] = {
    "vector": BOX,
    "image": spaces.Box(0, 255, (3, 5, 2), np.uint8),  # 30 bytes, not a whole number of words
    "discrete": spaces.Discrete(7),
    "bits": spaces.MultiBinary(3),
    "mixed": spaces.Dict({**MIXED.spaces, "image": spaces.Box(0, 255, (3, 5, 2), np.uint8), "a/b": BOX}),
}


def let_cpu_have_copies(monkeypatch: pytest.MonkeyPatch, free: int = 2**40) -> None:
    """Let the CPU pass for a device that gets a copy of the buffer."""
    monkeypatch.setattr("sb3_pwm.buffers.COPY_DEVICES", ("cpu",))
    monkeypatch.setattr("sb3_pwm.buffers.free_memory", lambda device: free)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    let_cpu_have_copies(monkeypatch)


def as_tensors(values: Any) -> Any:
    return (
        {key: torch.as_tensor(part) for key, part in values.items()}
        if isinstance(values, dict)
        else torch.as_tensor(values)
    )


def add(buffer: Any, steps: int = 1, seed: int = 0, given: Callable[[Any], Any] = lambda values: values) -> None:
    """Store random steps, of which a fifth end an episode."""
    random, n_envs = np.random.default_rng(seed), buffer.n_envs
    buffer.observation_space.seed(seed)

    def observe() -> Any:
        samples = [buffer.observation_space.sample() for _ in range(n_envs)]
        if isinstance(samples[0], dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
        return np.stack(samples)

    for _ in range(steps):
        infos = [{"TimeLimit.truncated": bool(random.integers(2))} for _ in range(n_envs)]
        actions, rewards = random.uniform(-1, 1, (n_envs, 2)), random.normal(size=n_envs)
        step = [given(values) for values in (observe(), observe(), actions)]
        buffer.add(*step, rewards, random.random(n_envs) < 0.2, infos)


def filled(space: str = "vector", steps: int = 20, n_envs: int = 2, capacity: int = 30) -> SequenceReplayBuffer:
    buffer = sequence_buffer_class(SPACES[space])(capacity * n_envs, SPACES[space], ACTIONS, CPU, n_envs)
    add(buffer, steps)
    return buffer


def on_host(buffer: Any) -> SequenceReplayBuffer:
    """Return a buffer with the same arrays that stays on the host."""
    reference = SequenceReplayBuffer.from_replay_buffer(buffer)
    reference._stays_on_host = True
    return reference


def sample(buffer: Any, batch_size: int = 8, length: int = 3, seed: int = 0) -> SequenceSamples:
    np.random.seed(seed)
    return buffer.sample_sequences(batch_size, length)


def equal(first: Any, second: Any) -> bool:
    first, second = flat_state(first._asdict()), flat_state(second._asdict())
    return same(first, second) and all(first[key].dtype == second[key].dtype for key in second)


OPERATIONS = st.lists(
    st.sampled_from(["add", "add more", "add tensors", "end", "sample", "spread", "pickle", "deepcopy", "take over"]),
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(1, 3), st.integers(2, 9), OPERATIONS, st.integers(1, 300))
def test_windows_are_those_of_the_host(
    space: str, n_envs: int, capacity: int, operations: list[Any], sent_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        let_cpu_have_copies(monkeypatch)
        monkeypatch.setattr("sb3_pwm.replay.device_copy.SENT_BYTES", sent_bytes)
        buffer, twin = filled(space, 2, n_envs, capacity), filled(space, 2, n_envs, capacity)
        for seed, operation in enumerate([*operations, "sample"]):
            if operation == "add":
                add(buffer, 1, seed)
                add(twin, 1, seed)
            elif operation in ("add more", "add tensors"):
                steps = 1 + 5 * seed % 13  # sometimes more than the capacity
                add(buffer, steps, seed, as_tensors if operation == "add tensors" else lambda values: values)
                add(twin, steps, seed)
            elif operation == "end":
                buffer.end_trajectories()
                twin.end_trajectories()
            elif operation == "sample":
                assert equal(sample(buffer, 2, 2, seed), sample(on_host(twin), 2, 2, seed))
                assert buffer._device_copy is not None
            elif operation == "spread":
                assert equal(buffer.spread_sequences(5, 2), on_host(twin).spread_sequences(5, 2))
            elif operation == "pickle":
                buffer = pickle.loads(pickle.dumps(buffer))
            elif operation == "deepcopy":
                buffer = copy.deepcopy(buffer)
            else:
                buffer = SequenceReplayBuffer.from_replay_buffer(buffer)
        assert same(as_lists(buffer), as_lists(twin))


def as_lists(buffer: Any) -> dict[str, Any]:
    """Return all arrays of a buffer, as whoever reads them finds them."""
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return {
        path: values.tolist() for path, values in flat_state({name: getattr(buffer, name) for name in names}).items()
    }


@pytest.mark.parametrize("end", ["reset", "move", "forget", "no memory"])
def test_tensors_get_into_the_arrays_before_the_copy_goes(
    copies: None, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    buffer, twin = filled("mixed", 0), filled("mixed", 20)
    add(buffer, 20, given=as_tensors)
    assert buffer._device_copy is not None
    assert not vars(buffer)["observations"]["a/b"].any()
    assert buffer.rewards[:20].all()
    assert equal(sample(buffer), sample(on_host(twin)))
    assert same(buffer.statistics_sample(), twin.statistics_sample())
    assert not vars(buffer)["observations"]["a/b"].any()
    if end == "reset":
        buffer.reset()
    elif end == "move":
        buffer.device = torch.device("cpu", 0)
        sample(buffer)
    elif end == "forget":
        buffer.drop_device_copy()
    else:
        monkeypatch.setattr(DeviceCopy, "gather", fail)
        with pytest.warns(UserWarning, match="ran out of memory"):
            sample(buffer)
    assert vars(buffer)["observations"]["a/b"].any()
    assert same(as_lists(buffer), as_lists(twin))


@pytest.mark.parametrize("written", [False, True])
def test_an_interrupted_step_of_tensors_is_stored_whole(
    copies: None, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    buffer, twin = (filled("mixed", 0, capacity=10) for _ in range(2))
    for seed, steps in enumerate((12, 1)):
        add(twin, steps, seed)
    add(buffer, 12, 0, as_tensors)
    write, calls = DeviceCopy.write, []

    def interrupted(self: DeviceCopy, *args: Any) -> None:
        calls.append(args)
        if len(calls) > 1 or written:
            write(self, *args)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(DeviceCopy, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(buffer, 1, 1, as_tensors)
    assert (buffer.pos, buffer.full) == (twin.pos, twin.full) == (3, True)
    assert same(as_lists(buffer), as_lists(twin))


def test_windows_after_a_reset_hold_the_new_steps(copies: None) -> None:
    buffer = filled(steps=20)
    sample(buffer)
    add(buffer, 3, seed=1)
    buffer.reset()
    add(buffer, 8, seed=2)
    samples: Any = sample(buffer)
    expected: Any = sample(on_host(buffer))
    valid = expected.mask.bool()
    assert torch.equal(samples.mask, expected.mask)
    assert torch.equal(samples.rewards[valid], expected.rewards[valid])
    assert torch.equal(samples.observations[1:][valid], expected.observations[1:][valid])


def test_a_copy_is_one_and_not_the_arrays_themselves(copies: None) -> None:
    buffer = filled(steps=30, capacity=30)
    before = sample(buffer)
    buffer.rewards += 1
    assert equal(sample(buffer), before)
    buffer.drop_device_copy()
    assert torch.equal(sample(buffer).rewards, sample(on_host(buffer)).rewards)
    assert not torch.equal(sample(buffer).rewards, before.rewards)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_learning_is_the_same(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    states = []
    for free in (0, 2**40):
        let_cpu_have_copies(monkeypatch, free)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make(truth_envs(2, policy == "MultiInputPolicy"), policy, buffer_size=64).learn(60)
            model.learn(30)
        assert (model.replay_buffer._device_copy is not None) == (free > 0)
        assert model.replay_buffer.full
        states.append(model.policy.state_dict())
    assert same(*states)


def test_new_steps_travel_in_one_copy(copies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = filled(steps=10, capacity=12)
    sent = []

    def staged(array: np.ndarray, device: Any) -> torch.Tensor:
        sent.append(len(array))
        return torch.as_tensor(array)

    monkeypatch.setattr("sb3_pwm.replay.device_copy.staged", staged)
    sample(buffer)
    assert sent == [10]
    sample(buffer)
    buffer.end_trajectories()
    sample(buffer)
    assert sent == [10, 1]
    add(buffer, 1)
    buffer.end_trajectories()
    sample(buffer)
    assert sent == [10, 1, 1]
    add(buffer, 5)  # the rows 11, 0, 1, 2, 3
    sample(buffer)
    assert sent == [10, 1, 1, 1, 4]
    add(buffer, 40)
    sample(buffer)
    assert sum(sent) == 17 + 12


def test_sampling_reads_nothing_from_the_device(copies: None) -> None:
    buffer = filled("mixed")
    with NoHostReads():
        sample(buffer)


def test_a_copy_is_neither_saved_nor_copied(copies: None, tmp_path: Path) -> None:
    model = make(truth_envs()).learn(30)
    buffer: Any = model.replay_buffer
    kept = vars(filled()).keys()
    assert buffer._device_copy is not None
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    copied = [pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer), copy.deepcopy(model).replay_buffer]
    assert all(vars(other).keys() - {"_borrowed", "lost_beginnings"} == kept - {"lost_beginnings"} for other in copied)
    for other in (*copied, model.replay_buffer, SequenceReplayBuffer.from_replay_buffer(buffer)):
        assert other._device_copy is None
        assert equal(sample(other), sample(on_host(other)))
    assert buffer._device_copy is not None
    assert model.learn(30, reset_num_timesteps=False).replay_buffer._device_copy is not None


def test_a_copy_that_does_not_fit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    # two float32 observations of 3, an action of 2, reward, done and time-out, each in whole words: 64 bytes
    buffer = filled(capacity=50_000)
    let_cpu_have_copies(monkeypatch, free=12_799_999)
    expected = sample(on_host(buffer))
    with pytest.warns(UserWarning, match=r"needs 6 MB, allowed are 50% of the 13 MB .*buffer_size=100000") as caught:
        samples = [sample(buffer) for _ in range(2)]
    assert len(caught) == 1
    assert all(equal(own, expected) for own in samples)
    assert buffer._device_copy is None
    buffer.drop_device_copy()
    monkeypatch.setattr("sb3_pwm.buffers.free_memory", lambda device: 12_800_000)
    assert equal(sample(buffer), expected)
    assert buffer._device_copy is not None


def fail(*args: Any, **kwargs: Any) -> None:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("when", ["__init__", "bring_up_to_date", "gather"])
def test_out_of_memory_goes_on_from_the_host(copies: None, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    buffer = filled(capacity=50_000)
    if when != "__init__":
        sample(buffer)

    monkeypatch.setattr(DeviceCopy, when, fail)
    with pytest.warns(UserWarning, match="cpu ran out of memory with a copy of 6 MB") as caught:
        samples = [sample(buffer) for _ in range(2)]
    assert len(caught) == 1
    assert all(equal(own, sample(on_host(buffer))) for own in samples)
    assert buffer._device_copy is None


def test_arrays_in_files_are_not_copied(copies: None, tmp_path: Path) -> None:
    buffer = from_replay_buffer(filled(), directory=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(buffer)
    assert buffer._device_copy is None


def test_vec_normalize_works_on_the_host(copies: None) -> None:
    env = VecNormalize(truth_envs(2))
    model = make(env).learn(40)
    assert model.replay_buffer._device_copy is None
    samples, raw = model._sample(8), model.replay_buffer.sample_sequences(8, 3)
    assert samples.observations.max() < 11 < raw.observations.max()


def test_a_cpu_has_no_copy() -> None:
    buffer = filled()
    sample(buffer)
    assert buffer._device_copy is None


def test_a_buffer_that_moves_gets_another_copy(copies: None) -> None:
    buffer = filled()
    sample(buffer)
    first = buffer._device_copy
    buffer.device = torch.device("cpu", 0)
    assert equal(sample(buffer), sample(on_host(buffer)))
    assert buffer._device_copy is not first
    buffer.device = torch.device("meta")
    sample(buffer)
    assert buffer._device_copy is None


def test_records_by_hand() -> None:
    record: Any = record_type(
        {"a": np.zeros((0, 1, 3), np.uint8), "b": np.zeros((0, 1), np.float32), "c": np.zeros((0, 1, 2, 2), int)}
    )
    assert {name: record.fields[name][1] for name in record.names} == {"a": 0, "b": 8, "c": 16}
    assert record.itemsize == 48
    assert record["b"] == np.float32
    held = DeviceCopy(record, 4, 1, CPU, n_stale=2)
    rows = {"a": [[1, 2, 3], [4, 5, 6]], "b": [0.5, 1.5], "c": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}
    both = {name: np.array(values)[:, None] for name, values in rows.items()}

    def read(rows: slice) -> dict[str, Any]:  # around the ring: first row 3, then row 0
        return {name: values[:1] if rows.start == 3 else values[1:] for name, values in both.items()}

    held.bring_up_to_date(1, read)
    places = torch.tensor([[0, 3, 2]])
    assert held.gather(places, ["a", "b"])["a"].tolist() == [[[4, 5, 6], [1, 2, 3], [0, 0, 0]]]
    assert held.gather(places, ["b", "c"])["b"].tolist() == [[1.5, 0.5, 0]]
    assert held.gather(places, ["c"])["c"][0, 0].tolist() == [[5, 6], [7, 8]]
    assert held.n_stale == 0


def test_free_memory_counts_what_torch_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory(torch.device("cuda")) == 130
