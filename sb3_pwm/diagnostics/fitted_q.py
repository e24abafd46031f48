"""What a policy would earn, estimated from recorded episodes alone (fitted Q evaluation)."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.auto import tqdm

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_boolean, check_integer
from sb3_pwm.compute.optimizers import apply_gradients, move_average, set_learning_rate
from sb3_pwm.compute.random_state import untouched_generators
from sb3_pwm.networks import CriticEnsemble
from sb3_pwm.nn.scales import LatentScale, RewardScale
from sb3_pwm.observations import ends_of_windows
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.replay.columns import lost_beginnings

N_NETWORKS = 8
HIDDEN = (64, 64)
BATCH_SIZE = 256
RATES = (1e-3, 1e-4)  # of learning, at the start and at the end
# Large, because a value that is wrong everywhere by the same amount loses TAU (1 - gamma) of it in an update.
TAU = 0.2
SCALE_STEPS = 2_000  # from which the scale of the latents is taken
N_ACTIONS = 10  # of a stochastic policy in every start state
HELD_OUT = 4  # at least so many whole episodes on either side; where there are many, one in four is held out
STUDENT = {4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # 97.5 % quantile of Student's t for so many values


class ReturnEstimate(NamedTuple):
    """A policy's mean discounted return from the start of an episode, in the units of the environment's rewards.

    The interval holds how much the estimate varies with the episodes to which the Q functions are fitted (each network
    has another resample of them) and with the starts of the held-out episodes. It does not hold an error that all
    networks share: nothing shows it where the policy acts unlike the data, or the world model's latents hide what
    matters. A time-out does not end an episode here: the policy is thought to go on until it terminates.
    """

    mean: float
    """The estimate."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    data_return: float
    """What the held-out episodes did earn, on average, also discounted. Where a time-out ended one, the estimate of
    what the policy would earn from there is added: a policy whose mean is higher is estimated to beat the data."""
    n_episodes: int
    """Number of held-out episodes."""


class Episodes(NamedTuple):
    """Where the E episodes of a replay buffer lie. Steps are counted column by column, from the oldest of each."""

    first: NDArray[np.int64]
    """(E,) first step."""
    length: NDArray[np.int64]
    """(E,) number of steps."""
    whole: NDArray[np.bool_]
    """(E,) whether both its beginning and its end are stored."""


def find_episodes(buffer: SequenceReplayBuffer) -> Episodes:
    """Find the episodes of a replay buffer.

    A full buffer may have lost the beginning of the oldest episode of each column, which so never counts as whole;
    neither does one that was cut when the buffer was made for another number of environments.

    :param buffer: holds at least one step.
    """
    ends = in_columns(buffer, buffer.dones) != 0
    begins = np.roll(ends, 1, 1)
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    length = np.diff(first, append=begins.size)
    has_beginning = ~np.isin(first, [column * buffer.size() + age for age, column in lost_beginnings(buffer)])
    return Episodes(first, length, has_beginning & ends.ravel()[first + length - 1])


def hold_out(whole: NDArray[np.bool_], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide episodes at random into those to fit and those to evaluate at.

    :param whole: (E,) which episodes are whole; only such are held out.
    :param rng: draws them.
    :return: numbers of the episodes to fit, and of the held-out ones.
    :raises ValueError: if there are too few.
    """
    candidates = rng.permutation(np.flatnonzero(whole))
    if len(candidates) < 2 * HELD_OUT:
        raise ValueError(
            f"the data hold {len(candidates)} whole episodes; needed: {2 * HELD_OUT} or more (of a full buffer the "
            "oldest episode of each environment may lack its beginning, and does not count)"
        )
    held_out = candidates[: max(HELD_OUT, len(candidates) // 4)]
    return np.setdiff1d(np.arange(len(whole)), held_out), held_out


class Batch(NamedTuple):
    """Some steps as the networks see them."""

    latents: torch.Tensor
    """(B, Z), before the steps."""
    actions: torch.Tensor
    """(B, A), in [-1, 1]."""
    rewards: torch.Tensor
    """(B,), divided by their size."""
    goes_on: torch.Tensor
    """(B,), 0 only at a true terminal step."""
    following: torch.Tensor
    """(B, Z) latents behind the steps."""


class Steps:
    """The N steps of a replay buffer, column by column.

    :param policy: encodes the observations.
    :param buffer: holds the steps, and gives tensors on the policy's device.
    :param normalizer: ``VecNormalize`` through which the policy sees observations. Rewards stay as the environment gave
        them: it would clip them.
    """

    def __init__(self, policy: PWMPolicy, buffer: SequenceReplayBuffer, normalizer: VecNormalize | None) -> None:
        self._policy, self._buffer, self._normalizer = policy, buffer, normalizer
        self.rewards = in_columns(buffer, buffer.rewards).ravel()
        """(N,) rewards in the environment's units."""
        self.goes_on = 1 - in_columns(buffer, buffer.dones * (1 - buffer.timeouts)).ravel()
        """(N,) 0 only at a true terminal step."""
        scale = RewardScale()
        scale.set_statistics(torch.as_tensor(self.rewards))
        self.reward_scale = float(scale.scale)

    @torch.no_grad()
    def batch(self, places: NDArray[np.int64]) -> Batch:
        """Return the steps with the (B,) numbers ``places``, on the policy's device."""
        columns, ages = np.divmod(places, self._buffer.size())
        samples = self._policy.for_networks(self._buffer.sequences_at(ages, columns, 1, self._normalizer))
        latents, following = (self._policy.world_model.encode(ends) for ends in ends_of_windows(samples))
        numbers = np.stack([self.rewards[places] / self.reward_scale, self.goes_on[places]])
        rewards, goes_on = torch.as_tensor(numbers, dtype=latents.dtype, device=latents.device)
        return Batch(latents, samples.actions[0], rewards, goes_on, following)

    def batches(self, places: NDArray[np.int64]) -> Iterator[Batch]:
        """Yield any number of steps in batches that are not too large."""
        for start in range(0, len(places), BATCH_SIZE):
            yield self.batch(places[start : start + BATCH_SIZE])


def fit(
    critics: CriticEnsemble,
    draw: Callable[[], tuple[Batch, torch.Tensor]],
    act: Callable[[torch.Tensor], torch.Tensor],
    *,
    gamma: float,
    n_updates: int,
    progress_bar: bool = False,
) -> None:
    r"""Fit Q functions to a policy.

    .. math:: Q_k(z_t, a_t) \leftarrow r_t + \gamma (1 - d_t)\, \bar Q_k(z_{t+1}, a'),\quad a' \sim \pi(z_{t+1})

    (Le et al., arXiv 1903.08738, algorithm 3, with a moving average of the network instead of the last iteration's.)
    Each network follows its own target, so that they differ by as much as their data let them.

    :param critics: K networks Q(latents, actions), which are changed.
    :param draw: returns B steps, and the (K, B) weights that each network gives them.
    :param act: returns the policy's (B, A) actions in (B, Z) latents.
    :param gamma: discount in (0, 1].
    :param n_updates: number of updates.
    :param progress_bar: show progress.
    :raises FloatingPointError: if a loss or gradient is not finite.
    """
    targets = copy.deepcopy(critics).requires_grad_(False)
    parameters, averages = list(critics.parameters()), list(targets.parameters())
    optimizer = torch.optim.Adam(parameters, fused=True)
    finite = torch.ones((), dtype=torch.bool, device=parameters[0].device)
    for update in tqdm(range(n_updates), "fitted Q", disable=not progress_bar, leave=False):
        set_learning_rate(optimizer, RATES[0] + (RATES[1] - RATES[0]) * update / n_updates, on_device=False)
        batch, weights = draw()
        with torch.no_grad():
            values = targets(batch.following, act(batch.following))
        errors = critics(batch.latents, batch.actions) - (batch.rewards + gamma * batch.goes_on * values)
        # Not clipped: the networks have nothing to do with each other.
        finite &= apply_gradients(optimizer, (weights * errors.square()).mean(1).sum(), parameters, math.inf)
        move_average(averages, parameters, 1 - TAU)
    if not finite:
        raise FloatingPointError("a loss or gradient of the Q functions is not finite; are all rewards?")


def new_networks(policy: PWMPolicy, steps: Steps) -> CriticEnsemble:
    """Return untrained Q networks for a policy.

    The latents' scale is that of the data: the policy's own may come from other states, or from none.
    """
    spread = np.linspace(0, len(steps.rewards) - 1, SCALE_STEPS).astype(np.int64)
    latents = torch.cat([batch.latents for batch in steps.batches(spread)])
    scale = LatentScale(latents.shape[-1], policy.actor.action_dim)
    critics = CriticEnsemble(len(scale.mean), HIDDEN, N_NETWORKS, latent_scale=scale).to(policy.device)
    scale.update(latents)
    return critics


def resampled(
    steps: Steps, episodes: Episodes, fitted: NDArray[np.int64], rng: np.random.Generator
) -> Callable[[], tuple[Batch, torch.Tensor]]:
    """Return a function that draws steps, and how often each network's resample of the episodes holds them.

    :param steps: the steps.
    :param episodes: their episodes.
    :param fitted: (n,) numbers of the episodes to draw from; each network resamples these n.
    :param rng: draws.
    """
    counts = np.zeros((N_NETWORKS, len(episodes.first)), np.float32)
    counts[:, fitted] = rng.multinomial(len(fitted), np.full(len(fitted), 1 / len(fitted)), N_NETWORKS)
    owner = np.repeat(np.arange(len(episodes.first)), episodes.length)
    places = np.flatnonzero(np.isin(owner, fitted))

    def draw() -> tuple[Batch, torch.Tensor]:
        drawn = rng.choice(places, BATCH_SIZE)
        batch = steps.batch(drawn)
        return batch, torch.as_tensor(counts[:, owner[drawn]], device=batch.latents.device)

    return draw


def half_width(values: NDArray[np.float64], n_fitted: int) -> float:
    r"""Return how far a 95 % interval goes to either side of the mean of all values.

    .. math:: \sqrt{\left(t_K\, s_K \sqrt{\tfrac{n}{n - 1}}\right)^2 + \left(t_m\, s_m / \sqrt{m}\right)^2}

    s_K is the standard deviation of the K networks' means over the m start states: what an estimate varies by from one
    set of n episodes to another (Hao et al., arXiv 2102.03607), but for n / (n - 1), by which a resample varies too
    little. s_m is the standard deviation of the start states' means over the networks. t are quantiles of Student's t.
    Half-widths of independent parts add up in squares (Howe, 1974, JASA 69:789).

    :param values: (K, m) values.
    :param n_fitted: number n of episodes from which the networks' resamples were drawn.
    """
    count = values.shape[1]
    networks = student(min(len(values), n_fitted)) * values.mean(1).std(ddof=1) * math.sqrt(n_fitted / (n_fitted - 1))
    starts = student(count) * values.mean(0).std(ddof=1) / math.sqrt(count)
    return math.hypot(networks, starts)


def student(count: int) -> float:
    """Return the 97.5 % quantile of Student's t for the mean of ``count`` values; for many, one that is too large."""
    return STUDENT[min(count, max(STUDENT))]


def discounted(rewards: NDArray[np.float32], gamma: float) -> float:
    """Return the discounted sum of (T,) rewards."""
    return float(rewards.astype(np.float64) @ gamma ** np.arange(len(rewards)))


def in_columns(buffer: SequenceReplayBuffer, array: np.ndarray) -> np.ndarray:
    """Return what a buffer holds in one of its (capacity, n_envs) arrays as (n_envs, size), oldest first."""
    return array[(buffer.oldest + np.arange(buffer.size())) % buffer.buffer_size].T


def default_updates(gamma: float) -> int:
    """Return how many updates leave less than 1 % of an error that all values share, for ``gamma`` up to 0.999.

    See ``TAU``; at least 5,000, so that the networks learn what differs between values too.
    """
    return max(5_000, round(5 / (TAU * max(1 - gamma, 1e-3))))


def estimate_return(
    policy: PWMPolicy,
    buffer: SequenceReplayBuffer,
    normalizer: VecNormalize | None,
    gamma: float,
    n_updates: int | None = None,
    deterministic: bool = True,
    seed: int = 0,
    progress_bar: bool = False,
) -> ReturnEstimate:
    """Estimate what a policy would earn per episode from data alone.

    (Fitted Q evaluation, Le et al., arXiv 1903.08738, which Paine et al., arXiv 2007.09055, recommend for the choice of
    hyperparameters from data alone.) One whole episode in four is held out; the Q functions are fitted to the others.
    :meth:`sb3_pwm.PWM.estimate_return` takes any replay buffer of the model's spaces as its ``dataset``.

    :param policy: acts, and encodes observations; it is not changed.
    :param buffer: 8 whole episodes or more, of one task; it gives tensors on the policy's device.
    :param normalizer: ``VecNormalize`` through which the policy sees observations.
    :param gamma: discount in (0, 1].
    :param n_updates: of the Q functions; None for 5,000, or more where ``gamma`` is above 0.995.
    :param deterministic: evaluate the deterministic policy, which is what one usually deploys; else the stochastic one.
    :param seed: of all that is drawn, the global generators stay as they are; compare policies with the same one.
    :param progress_bar: show progress.
    :return: estimate and interval.
    :raises TypeError: if the data set is not a replay buffer.
    :raises ValueError: if a number is out of range, the spaces differ, or there are too few whole episodes or several
        tasks.
    :raises FloatingPointError: if a loss or gradient of the Q functions is not finite.
    """
    n_updates = default_updates(gamma) if n_updates is None else n_updates
    check_integer("n_updates", n_updates, 1)
    check_integer("seed", seed, 0, 2**32 - 1)
    check_boolean("deterministic", deterministic)
    buffer.check_not_empty()
    if policy.task_key is not None and len(set(buffer.all_of(policy.task_key).tolist())) > 1:
        raise ValueError("the data hold several tasks; estimate the return of a model that extract() made for one task")
    rng = np.random.default_rng(seed)
    episodes = find_episodes(buffer)
    fitted, held_out = hold_out(episodes.whole, rng)
    policy.set_training_mode(False)
    steps = Steps(policy, buffer, normalizer)
    act = policy.actor.mode if deterministic else policy.actor.sample
    with untouched_generators():
        torch.manual_seed(seed)
        critics = new_networks(policy, steps)
        draw = resampled(steps, episodes, fitted, rng)
        fit(critics, draw, act, gamma=gamma, n_updates=n_updates, progress_bar=progress_bar)

        @torch.no_grad()
        def values(latents: torch.Tensor) -> torch.Tensor:
            """Return every network's (K, B) values of (B, Z) latents, in the environment's units."""
            latents = latents.expand(1 if deterministic else N_ACTIONS, *latents.shape)
            of_networks: torch.Tensor = critics(latents, act(latents)).mean(1)
            return steps.reward_scale * of_networks

        first, length = episodes.first[held_out], episodes.length[held_out]
        starts = [values(batch.latents) for batch in steps.batches(first)]
        rests = [batch.goes_on * values(batch.following).mean(0) for batch in steps.batches(first + length - 1)]
    start_values, rest = (torch.cat(parts, -1).cpu().numpy().astype(np.float64) for parts in (starts, rests))
    recorded = [discounted(steps.rewards[start : start + n], gamma) for start, n in zip(first, length, strict=True)]
    mean, margin = float(start_values.mean()), half_width(start_values, len(fitted))
    data_return = float(np.mean(recorded + gamma**length * rest))
    return ReturnEstimate(mean, mean - margin, mean + margin, data_return, len(held_out))
