"""What SB3's replay buffers may hold before windows are drawn from them."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_pwm import PWM
from sb3_pwm.datasets import from_replay_buffer
from sb3_pwm.replay import checks as buffer_checks

SPACE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-2, 2, (1,), np.float32)
SMALL: dict[str, Any] = {
    "batch_size": 4,
    "sequence_length": 2,
    "policy_kwargs": {"net_arch": [8], "latent_dim": 8},
    "device": "cpu",
}


def counting(
    n_envs: int, steps: int, capacity: int, breaks: Any = frozenset(), ends: Any = frozenset(), *, keys: bool = False
) -> Any:
    """Observations count up; before the steps in ``breaks`` (step, environment) they jump, as after a hidden reset."""
    space = spaces.Dict(a=SPACE, b=spaces.Discrete(10**6)) if keys else SPACE
    kind: Any = DictReplayBuffer if keys else ReplayBuffer
    buffer = kind(capacity * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs)
    count = np.arange(n_envs) * 10_000
    for step in range(steps):
        count += [1000 * ((step, env) in breaks) for env in range(n_envs)]
        first, second = (np.repeat(x[:, None], 2, 1) for x in (count, count + 1))
        done = np.array([(step, env) in ends for env in range(n_envs)])
        before, after = ({"a": 0 * x, "b": x[:, 0]} if keys else x for x in (first, second))
        buffer.add(before, after, np.zeros((n_envs, 1)), np.ones(n_envs), done, [{}] * n_envs)
        count += 1
    return buffer


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_episodes_end_where_they_break_off(data: st.DataObject) -> None:
    n_envs, capacity = data.draw(st.integers(1, 3)), data.draw(st.integers(4, 9))
    steps = data.draw(st.integers(4, 20))
    places = st.frozensets(st.tuples(st.integers(0, steps - 1), st.integers(0, n_envs - 1)), max_size=3)
    breaks, ends, keys = data.draw(places), data.draw(places), data.draw(st.booleans())
    buffer = counting(n_envs, steps, capacity, breaks, ends, keys=keys)
    times = range(max(0, steps - capacity), steps)
    broken = {(t - 1, env) for t, env in breaks if t - 1 in times and (t - 1, env) not in ends}
    if len(broken) > 0.5 * sum((t, env) not in ends for t in times[:-1] for env in range(n_envs)):
        with pytest.raises(ValueError, match="rows must be in the order"):
            from_replay_buffer(buffer)
        return
    result = from_replay_buffer(buffer)
    model = PWM.from_dataset(buffer, "MultiInputPolicy" if keys else "MlpPolicy", **SMALL)
    for env in range(n_envs):
        last = {(times[-1], env)} - ends
        timed_out = [(t, env) in broken | last for t in times]
        rows = slice(env * len(times), (env + 1) * len(times))
        np.testing.assert_array_equal(result.timeouts[rows, 0], timed_out)
        ended = [(t, env) in broken | last | ends for t in times]
        np.testing.assert_array_equal(result.dones[rows, 0], ended)
        order = [t % capacity for t in times]
        np.testing.assert_array_equal(model.replay_buffer.timeouts[order, env], timed_out)
    assert not buffer.timeouts.any()


def test_blocks_do_not_change_where_breaks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = counting(2, 15, 20, {(4, 0), (5, 1), (9, 1)})
    whole = buffer_checks.find_breaks(buffer, "it")
    assert np.argwhere(whole).tolist() == [[3, 0], [4, 1], [8, 1]]
    for values in (1, 4, 12, 40):
        monkeypatch.setattr(buffer_checks, "BLOCK_VALUES", values)
        np.testing.assert_array_equal(buffer_checks.find_breaks(buffer, "it"), whole)


def test_rows_in_another_order_are_refused() -> None:
    buffer = counting(1, 20, 20)
    order = np.random.default_rng(0).permutation(20)
    buffer.observations, buffer.next_observations = buffer.observations[order], buffer.next_observations[order]
    message = r"next_observations in row 0 are not the observations in row 1 .* of 19 steps; rows must be in the order"
    for use in (from_replay_buffer, lambda x: PWM.from_dataset(x, **SMALL)):
        with pytest.raises(ValueError, match=message):
            use(buffer)


@pytest.mark.parametrize("field", ["observations", "next_observations", "rewards", "actions"])
def test_what_is_not_finite_never_reaches_a_model(field: str) -> None:
    model = PWM.from_dataset(counting(1, 20, 20), **SMALL)
    known = model.replay_buffer
    buffer = counting(1, 20, 20)
    getattr(buffer, field)[7] = np.nan
    message = f"the replay buffer: {field} are not finite in row 7"
    with pytest.raises(ValueError, match=message):
        PWM.from_dataset(buffer, **SMALL)
    with pytest.raises(ValueError, match=message):
        model.model_errors(buffer, horizon=2)
    model.replay_buffer = buffer
    with pytest.raises(ValueError, match=message):
        model.pretrain(1)
    model.replay_buffer = known
    model.pretrain(1)


def test_actions_in_the_environments_units_are_refused() -> None:
    buffer = counting(1, 20, 20)
    buffer.actions[5] = 1.00001
    PWM.from_dataset(buffer, **SMALL)
    buffer.actions[5] = -1.5
    for use in (from_replay_buffer, lambda x: PWM.from_dataset(x, **SMALL)):
        with pytest.raises(ValueError, match=r"rescaled to \[-1, 1\], are outside the bounds in row 5: .*-1\.5"):
            use(buffer)


def test_measuring_errors_does_not_change_the_data() -> None:
    model = PWM.from_dataset(counting(1, 20, 20), **SMALL)
    buffer = counting(1, 20, 20, {(10, 0)})
    assert np.isfinite(model.model_errors(buffer, horizon=2)["latent"]).all()
    assert not buffer.dones.any()
