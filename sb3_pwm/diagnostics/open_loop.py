"""How well a world model predicts windows that it has not learnt from."""

import torch

from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.world_model import WorldModel, encode_windows


@torch.no_grad()
def open_loop_errors(
    world_model: WorldModel, samples: SequenceSamples, rewards: torch.Tensor
) -> dict[str, torch.Tensor]:
    r"""Return the errors of predicting t = 1 ... T steps ahead with the windows' actions.

    .. math:: E_t = \frac{\sum_b m_t |\hat z_t - e(o_t)|^2}{\sum_b m_t |e(o_0) - e(o_t)|^2},
        \quad R_t = \frac{\mathrm{mean}_b\, m_t (\hat r_t - r_t)^2}{\mathrm{var}(r)},
        \quad D_t = \mathrm{mean}_b\, m_t\, \mathrm{BCE}(\hat d_t, d_t)

    with means over the B windows in which step t exists.

    :param world_model: the model.
    :param samples: windows of T steps.
    :param rewards: (T, B) the samples' rewards in reward scales.
    :return: three (T,) tensors. ``latent`` E: 0 is perfect, 1 no better than predicting that nothing changes;
        ``reward`` R: 0 is perfect, 1 no better than predicting the mean; ``termination`` D: cross-entropy in nats.
        NaN for steps that no window has, and where there is nothing to compare with.
    """
    latents = encode_windows(world_model, samples.observations)
    states = [latents[0]]
    for step, actions in enumerate(samples.actions):
        states.append(world_model.next_latents(states[-1], actions, step))
    predicted, mask = torch.stack(states), samples.mask

    def total(errors: torch.Tensor) -> torch.Tensor:
        return (errors * mask).sum(1)

    count = mask.sum(1)
    missed = total((predicted[1:] - latents[1:]).square().sum(-1))
    changed = total((latents[:1] - latents[1:]).square().sum(-1))
    reward = total((world_model.rewards(predicted[:-1], samples.actions) - rewards).square()) / count
    variance = rewards[mask > 0].var(correction=0)
    return {
        "latent": missed / changed.where(changed > 0, torch.nan),
        "reward": reward / variance.where(variance > 0, torch.nan),
        "termination": total(world_model.termination_error(predicted[1:], samples.terminations)) / count,
    }
