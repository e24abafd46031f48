"""What files may hold: values that no checksum of a file refuses, and files of earlier revisions."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_toys import ACTIONS, OBSERVATIONS, THREE, flat
from gymnasium import spaces
from helpers import SMALL_POLICY, make, same, space_envs
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_pwm import PWM
from sb3_pwm.datasets import from_npz, from_replay_buffer
from sb3_pwm.files.replay_buffers import HEAD, MARK, save_replay_buffer

KEYS = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(3)})


def put(name: str, value: Any, row: int = 3) -> Callable[..., Any]:
    """Return what changes a value of a buffer's array."""

    def change(buffer: Any) -> None:
        array = getattr(buffer, name)
        (array["a"] if isinstance(array, dict) else array)[row] = value

    return change


def give(name: str, value: Any) -> Callable[..., Any]:
    """Return what changes an attribute of a buffer; a function makes it of the present value."""
    return lambda buffer: setattr(buffer, name, value(getattr(buffer, name)) if callable(value) else value)


BUFFERS = [
    (put("rewards", np.nan), "rewards are not finite in row 3"),
    (put("rewards", np.inf), "rewards are not finite in row 3"),
    (put("observations", np.nan), r"observations.* are not finite in row 3"),
    (put("next_observations", -np.inf), r"next_observations.* are not finite in row 3"),
    (put("actions", np.nan), "actions are not finite in row 3"),
    (put("actions", 1.5), "actions, which SB3 stores .* are outside the bounds in row 3"),
    (put("dones", 0.5), r"dones are 0\.5 in row 3; allowed: 0 and 1"),
    (put("timeouts", np.nan), "timeouts are nan in row 3"),
    (give("pos", 10**6), r"pos is 1000000; allowed: an integer from 0 to 249"),
    (give("pos", -1), "pos is -1; allowed"),
    (give("pos", 2.5), r"pos is 2\.5; allowed"),
    (give("full", 1), "full is 1; allowed: True, False"),
    (give("buffer_size", 0), "buffer_size is 0"),
    (give("n_envs", "2"), "n_envs is '2'"),
    (give("rewards", lambda rewards: rewards[:30]), r"rewards have the shape \(30, 2\), expected \(250, 2\)"),
    (
        give("actions", lambda actions: actions[..., :1]),
        r"actions have the shape \(250, 2, 1\), expected \(250, 2, 2\)",
    ),
    (give("dones", lambda dones: dones.astype(str)), r"dones are of type <U\d+, expected such as float32"),
    (give("dones", lambda dones: dones.tolist()), "dones is list, expected an array"),
    (give("next_observations", None), "next_observations"),
    (lambda buffer: delattr(buffer, "rewards"), "has no rewards"),
    (lambda buffer: delattr(buffer, "handle_timeout_termination"), "handle_timeout_termination"),
]


@pytest.fixture(scope="module", params=["vector", "keys"])
def collected(request: pytest.FixtureRequest) -> PWM:
    if request.param == "vector":
        return make(space_envs(2)).learn(60)
    return make(space_envs(2, KEYS), "MultiInputPolicy").learn(60)


@pytest.mark.parametrize(("change", "message"), BUFFERS)
def test_a_buffer_that_pwm_saved_is_checked_like_any_other(
    collected: PWM, tmp_path: Path, change: Any, message: str
) -> None:
    model = copy.deepcopy(collected)
    known: Any = model.replay_buffer
    buffer = copy.deepcopy(known)
    change(buffer)
    save_replay_buffer(buffer, tmp_path / "buffer")
    with pytest.raises(ValueError, match=message) as first:
        model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=message) as second:
        from_replay_buffer(tmp_path / "buffer.pkl")
    assert all("buffer.pkl" in str(error.value) for error in (first, second))
    assert model.replay_buffer is known


def test_buffers_of_earlier_revisions_and_for_sb3(tmp_path: Path) -> None:
    model = make().learn(40)
    with (tmp_path / "old.pkl").open("wb") as file:
        pickle.dump(model.replay_buffer, file)
    other = make()
    other.load_replay_buffer(tmp_path / "old")
    np.testing.assert_array_equal(other.replay_buffer.rewards, model.replay_buffer.rewards)
    model.save_replay_buffer(tmp_path / "new")
    sac = SAC("MlpPolicy", space_envs(), buffer_size=500, device="cpu")
    sac.load_replay_buffer(tmp_path / "new")
    np.testing.assert_array_equal(sac.replay_buffer.rewards, model.replay_buffer.rewards)


def test_a_buffers_checksum_covers_all_of_the_file(tmp_path: Path) -> None:
    """Also what would be read without an error: a flipped bit in a number, and an end that is missing or garbled."""
    make().learn(40).save_replay_buffer(tmp_path / "buffer.pkl")
    content = (tmp_path / "buffer.pkl").read_bytes()
    assert content.startswith(HEAD)
    assert content[-len(MARK) - 8 : -8] == MARK
    place = content.index(np.float32(make().learn(40).replay_buffer.rewards[5, 0]).tobytes())
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    garbled = content[:-30] + bytes(30)
    for damaged, message in (
        (flipped, "its checksum is wrong"),
        (content[:-5], "its end is missing"),
        (garbled, "its end is missing"),
        (content[: len(content) // 2], "its end is missing"),
        (b"", "cannot read"),
    ):
        (tmp_path / "buffer.pkl").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"buffer\.pkl is damaged: {message}|{message} .*buffer\.pkl"):
            make().load_replay_buffer(tmp_path / "buffer")


def test_world_models_that_are_damaged_or_of_earlier_revisions(tmp_path: Path) -> None:
    model, path = make().learn(40), tmp_path / "world.pt"
    model.save_world_model(path)
    content = torch.load(path)
    other = make(seed=7)
    before = copy.deepcopy(other.get_parameters())
    name = next(iter(content["world_model"]))

    def damaged(value: Any, **further: Any) -> None:
        world_model = {key: tensor.clone() for key, tensor in content["world_model"].items()}
        world_model[name].view(-1)[0] = value
        torch.save(
            {key: part for key, part in content.items() if key not in further} | {"world_model": world_model}, path
        )

    for value in (0.125, np.nan):
        damaged(value)
        with pytest.raises(ValueError, match=r"world\.pt is damaged: its checksum is wrong"):
            other.load_world_model(path)
    for value in (np.nan, np.inf):
        damaged(value, sha256=None)
        with pytest.raises(ValueError, match=rf"{name} in .*world\.pt holds 1 numbers that are not finite"):
            other.load_world_model(path)
    assert same(other.get_parameters(), before)
    del content["sha256"]
    torch.save(content, path)
    other.load_world_model(path)
    assert same(dict(other.policy.world_model.state_dict()), dict(model.policy.world_model.state_dict()))


def test_models_whose_tensors_are_not_finite(tmp_path: Path) -> None:
    model = make().learn(40)
    known = copy.deepcopy(model.get_parameters())
    for part, name in (("policy", None), ("policy.actor_optimizer", "state")):
        bad = copy.deepcopy(known)
        tensors = bad[part] if name is None else bad[part][name][0]
        key = next(key for key, value in tensors.items() if value.ndim)
        tensors[key].view(-1)[0] = torch.nan
        with pytest.raises(ValueError, match=f"{part}.*{key} in the parameters holds 1 numbers"):
            model.set_parameters(bad)
        assert same(model.get_parameters(), known)
    with torch.no_grad():
        next(model.policy.actor.parameters()).view(-1)[0] = torch.inf
    model.save(tmp_path / "model")
    for load in (PWM.load, make().set_parameters):
        with pytest.raises(
            ValueError, match=r"model\.zip: policy/actor\S+ in .*1 numbers|policy/actor\S+ in .*model\.zip .*1 n"
        ):
            load(tmp_path / "model")


class Masked(FlattenExtractor):
    """Has a buffer that is infinite by design."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    model = make(policy_kwargs=SMALL_POLICY | {"features_extractor_class": Masked})
    model.save(tmp_path / "model")
    assert same(PWM.load(tmp_path / "model").get_parameters(), model.get_parameters())
    model.save_world_model(tmp_path / "world.pt")
    model.load_world_model(tmp_path / "world.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminals": np.array([0, 0.5] * 4)}, r"terminals are 0\.5 in row 1; allowed: 0 and 1"),
        ({"timeouts": np.full(8, 2)}, "timeouts are 2 in row 0"),
        ({"rewards": np.zeros(8, complex)}, "rewards are of type complex128"),
        ({"rewards": np.zeros(8, "datetime64[s]")}, "rewards are of type datetime64"),
        ({"rewards": np.array(["a"] * 8)}, "rewards are of type <U1"),
        ({"rewards": np.array([None] * 8)}, "rewards: Object arrays cannot be loaded"),
        ({"actions": np.zeros((3, 2))}, r"actions have the shape \(3, 2\), expected \(8, 2\)"),
        ({"observations": np.full((8, 3), np.nan)}, "observations are not finite"),
    ],
)
def test_bad_arrays_in_an_npz_file(tmp_path: Path, change: Any, message: str) -> None:
    np.savez(tmp_path / "data.npz", **(flat(THREE) | change))
    with pytest.raises(ValueError, match=rf"data\.npz.*{message}"):
        from_npz(tmp_path / "data.npz", OBSERVATIONS, ACTIONS)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.save(tmp_path / "one.npy", np.zeros(3))
    make().save(tmp_path / "model.zip")
    contents = [b"", b"text", pickle.dumps({"rewards": 1}), (tmp_path / "one.npy").read_bytes()]
    for content in [*contents, (tmp_path / "model.zip").read_bytes()]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.npz"):
            from_npz(path)
