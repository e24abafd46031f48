from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, SpaceEnv
from stable_baselines3.common.utils import set_random_seed
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.testing import assert_close

from sb3_pwm import PWM, SequenceReplayBuffer
from sb3_pwm.compute.distributed import Part, average_gradients, own_part, share_of_weight

UPDATES = 5


def trained(batch_size: int, updates: int = UPDATES) -> tuple[PWM, list[float]]:
    """A model with data whose windows are masked unevenly, and its losses."""
    model = PWM(
        "MlpPolicy",
        SpaceEnv(length=4),
        policy_kwargs={"net_arch": [16], "latent_dim": 16, "n_dynamics": 2},
        **(SMALL | {"batch_size": batch_size, "learning_starts": 100}),
    ).learn(60)
    set_random_seed(1)
    losses = []
    for _ in range(updates):
        model.pretrain(1)
        losses.append(model._learner.pop_metrics()["world_model_loss"])
    return model, losses


def in_process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        check_exchanges(rank)
        model, losses = trained(batch_size=8)
        torch.save((model.policy.world_model.state_dict(), losses), folder / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def check_exchanges(rank: int) -> None:
    assert own_part() == Part(rank, 2)
    # weights 1 + 1 here, 1 there: the weighted mean over three rows is (2 a + b) / 3
    share = share_of_weight(torch.ones(2 - rank))
    assert_close(share, torch.tensor([2 * 2 / 3, 1 * 2 / 3][rank]))
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    parameters[1].grad = torch.tensor([[4.0]]) * rank
    average_gradients(parameters)
    assert_close(parameters[0].grad, torch.tensor([1.5, 3.0]))
    assert_close(parameters[1].grad, torch.tensor([[2.0]]))
    assert parameters[2].grad is None


@pytest.mark.filterwarnings("ignore")
def test_two_processes_do_what_one_does_with_the_double_batch(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(in_process, (port, tmp_path), nprocs=2, start_method="fork")
    (first, first_losses), (second, second_losses) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_close(first, second, atol=0, rtol=0)
    model, losses = trained(batch_size=16)
    assert_close(first, model.policy.world_model.state_dict(), atol=1e-5, rtol=1e-4)
    # the masks of the two halves differ a little, and so does the mean of their means
    np.testing.assert_allclose(np.mean([first_losses, second_losses], 0), losses, rtol=0.1)
    start, _ = trained(batch_size=16, updates=0)
    weights = start.policy.world_model.state_dict()
    assert any((first[name] - weights[name]).abs().max() > 1e-3 for name in first)  # there was something to compare


def test_without_a_group_a_process_is_alone() -> None:
    assert own_part() == Part(0, 1)


def test_parts_of_a_batch() -> None:
    settings: dict[str, Any] = SMALL | {"gradient_steps": 0, "pretrain_steps": 0}
    model = PWM("MlpPolicy", SpaceEnv(), policy_kwargs={"net_arch": [16], "latent_dim": 16}, **settings).learn(15)
    buffer = model.replay_buffer
    assert isinstance(buffer, SequenceReplayBuffer)
    np.random.seed(3)
    whole = buffer.sample_sequences(6, 3)
    parts = []
    for rank in range(3):
        np.random.seed(3)
        parts.append(buffer.sample_sequences(2, 3, part=Part(rank, 3)))
    for field in whole._fields:
        assert_close(torch.cat([getattr(part, field) for part in parts], 1), getattr(whole, field))
