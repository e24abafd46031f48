"""Figures for comparing algorithms over few seeds (after Agarwal et al., arXiv 2108.13264).

Scores come as *strata*: one array of (n_seeds,) scores per environment, of any lengths.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sb3_pwm.extras import missing_extra

Strata = Sequence[np.ndarray]
N_RESAMPLES = 5_000


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean without the lowest and the highest quarter of the scores, rounded down to whole scores.

    So do Agarwal et al. in rliable: of three scores none is left out, of four to seven one at either end.

    :param scores: (..., n) scores.
    :return: (...) means.
    :raises ImportError: if SciPy is not installed.
    """
    try:
        from scipy.stats import trim_mean
    except ImportError as error:
        raise missing_extra("an interquartile mean", "SciPy", "plot") from error
    result: np.ndarray = trim_mean(scores, 0.25, axis=-1)
    return result


def mean_interval(
    values: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and bounds of the bootstrap 95 % interval over the first axis; NaN bounds for fewer than two values.

    The bounds never leave the range of the values.

    :param values: (n, ...) values, independent of each other.
    :param n_resamples: number of resamples.
    :param seed: of the resamples.
    """
    values = np.asarray(values, float)
    n, shape = len(values), values.shape[1:]
    if n < 2:
        return values.mean(0), np.full(shape, np.nan), np.full(shape, np.nan)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples) / n
    with np.errstate(invalid="ignore"):
        low, high = percentile_interval((weights @ values.reshape(n, -1)).reshape(n_resamples, *shape))
        # rounding alone could leave the range
        return values.mean(0), np.maximum(low, values.min(0)), np.minimum(high, values.max(0))


def resample(strata: Strata, n_resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw seeds with replacement within each environment.

    :return: (n_resamples, n_seeds) scores per environment.
    """
    return [scores[rng.integers(0, len(scores), (n_resamples, len(scores)))] for scores in strata]


def percentile_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds that leave 2.5 % of the values (first axis) on either side."""
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low, high


def bootstrap_interval(
    strata: Strata, statistic: Callable[[np.ndarray], np.ndarray], n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the stratified-bootstrap 95 % interval of a statistic of all scores.

    :param strata: scores per environment.
    :param statistic: from (n_resamples, n) scores to (n_resamples,) values.
    :param n_resamples: number of resamples.
    :param seed: of the resamples.
    """
    drawn = resample(strata, n_resamples, np.random.default_rng(seed))
    low, high = percentile_interval(statistic(np.concatenate(drawn, axis=1)))
    return float(low), float(high)


def probability_of_improvement(first: Strata, second: Strata) -> float:
    """Return the probability that a run of ``first`` scores above one of ``second`` in the same environment.

    Ties count one half; it is Mann and Whitney's U over the number of pairs, a mean over the environments.
    """
    return float(_probability([x[None] for x in first], [y[None] for y in second])[0])


def _probability(first: Strata, second: Strata) -> np.ndarray:
    """Compute it from (n_resamples, n_seeds) scores per environment to (n_resamples,) probabilities."""
    each = []
    for x, y in zip(first, second, strict=True):
        pairs = x[:, :, None], y[:, None, :]
        each.append((np.greater(*pairs) + 0.5 * np.equal(*pairs)).mean(axis=(1, 2)))
    result: np.ndarray = np.mean(each, axis=0)
    return result


def probability_interval(
    first: Strata, second: Strata, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the stratified-bootstrap 95 % interval of :func:`probability_of_improvement`."""
    rng = np.random.default_rng(seed)
    drawn = resample(first, n_resamples, rng), resample(second, n_resamples, rng)
    low, high = percentile_interval(_probability(*drawn))
    return float(low), float(high)


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the fraction of scores above each threshold.

    :param scores: (..., n) scores.
    :param thresholds: (m,) thresholds.
    :return: (..., m) fractions.
    """
    result: np.ndarray = (scores[..., None, :] > thresholds[:, None]).mean(axis=-1)
    return result


def profile_interval(
    strata: Strata, thresholds: np.ndarray, n_resamples: int = 1_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (m,) bounds of the stratified-bootstrap 95 % interval of a profile, threshold by threshold."""
    drawn = resample(strata, n_resamples, np.random.default_rng(seed))
    return percentile_interval(performance_profile(np.concatenate(drawn, axis=1), thresholds))


def first_reaching(values: Sequence[float], target: float) -> int | None:
    """Return the index of the first value that is at least ``target``; None if there is none."""
    return next((index for index, value in enumerate(values) if value >= target), None)
