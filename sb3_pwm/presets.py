"""Settings as keyword arguments of :class:`sb3_pwm.PWM`: ``PWM("MlpPolicy", env, **presets.paper_single_task)``.

``large`` has wide networks, for a GPU. :func:`paper_multi_task` gives the settings of the multi-task experiments.

``paper_single_task`` holds the single-task settings of the PWM paper (arXiv 2407.02466) and its code, as far as the
arguments of this package can say them. It is there for comparisons; it is not the default because the default learns
from fewer steps (see the README).

The same as in the paper:

- the sizes of all networks, their activation (Mish) and the order of layers in actor and critics
- latents of 512 SimNorm features in groups of 8; a scalar reward head
- a state-independent standard deviation with its start and floor; no entropy bonus; no random exploration noise
- the horizon, discount and lambda; V critics on TD(lambda) targets; the minimum of three critics in the targets
- per collection of 16 steps in each environment: 8 model updates of 256 windows of 16 steps, 1 actor update and 32
  critic updates of 256 states
- the three learning rates, which fall linearly to 1e-5, and the gradient clips
- the ratio of the model's latent to its reward error, 1 to 1/16 (the paper divides the reward error twice by H)

What differs:

- The number of environments is the caller's: the paper has 64 to 128 (``make_vec_env(env_id, n_envs=64)``) and
  15,000 collections, which is 15 to 31 million steps.
- Imagined rollouts start from 256 replayed states, the first states of the window batch. In the paper they start from
  the present state of each environment and follow its episode; so its 32 critic updates pass 8 times over 64 x 16
  states, and these pass twice over 256 x 16.
- The first 1,000 steps are random (``learning_starts``). The paper acts with its policy from the start.
- Windows may reach beyond the end of an episode and are masked there, and the model's loss is a plain mean over the
  remaining steps. The paper weights step t by gamma^t and drops shorter windows.
- A termination head is trained, and its probabilities discount imagined returns. The paper cuts imagined rollouts
  where the real episode ended.
- The last value of a rollout is the mean over the critics, not their minimum, and discounted by gamma^H, not
  gamma^(H + 1); an episode that ends on the last step counts.
- Target critics are kept, which the paper does not have. ``tau=1.0`` removes them: they then equal the critics.
- Rewards are divided by their scale and not shifted, observations are standardised; the paper shifts and scales
  rewards and leaves observations as they are. The scale of returns is a moving, not an all-time, average.
- Actor and critics see latents standardised by moving statistics; in the paper they see them as they are.
- The last layers of encoder and dynamics have no LayerNorm in front of SimNorm.
- The critics' networks put out values in units of 10, and their last layers start smaller; critic losses are summed,
  not averaged, over the ensemble.
- ``optimizer_kwargs`` holds for all three optimizers. The paper's betas (0.7, 0.95) are those of actor and critics
  only; its model has Adam's (0.9, 0.999).
"""

from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.nn.layers import Mish
from sb3_pwm.published import POLICY_SIZES, SETTINGS

paper_single_task: dict[str, Any] = {
    "learning_rate": LinearSchedule(5e-4, 1e-5, end_fraction=1.0),
    "critic_learning_rate": LinearSchedule(5e-4, 1e-5, end_fraction=1.0),
    "model_learning_rate": LinearSchedule(3e-4, 1e-5, end_fraction=1.0),
    "buffer_size": 1_000_000,
    "learning_starts": 1_000,
    "pretrain_steps": 0,
    "batch_size": 256,
    "sequence_length": 16,
    "actor_batch_size": None,
    "horizon": 16,
    "infer_noise": False,
    "critic": "v",
    "critic_updates": 32,
    "critic_batch_size": 256,
    "gamma": 0.99,
    "td_lambda": 0.95,
    "pessimism": 1.0,
    "tau": 0.01,  # not in the paper
    "ent_coef": 0.0,
    "consistency_coef": 1.0,
    "reward_coef": 1 / 16,
    "termination_coef": 1 / 16,  # not in the paper; here as large as the reward's
    "observation_coef": 0.0,
    "train_freq": 16,
    "gradient_steps": 8,
    "policy_updates": 1 / 8,
    "policy_kwargs": {
        "net_arch": {
            "encoder": [256],
            "dynamics": [512, 512],
            "reward": [512, 512],
            "termination": [512, 512],  # not in the paper; here as large as the reward's
            "pi": [400, 200, 100],
            "qf": [400, 200],
        },
        "activation_fn": Mish,
        "latent_dim": 512,
        "simnorm_dim": 8,
        "reward_bins": 0,
        "residual_dynamics": False,
        "n_critics": 3,
        "state_dependent_std": False,
        "norm_after_activation": True,
        "optimizer_kwargs": {"betas": (0.7, 0.95)},
    },
}
"""Keyword arguments of :class:`sb3_pwm.PWM`; the module's text says what they share with the paper and what not."""

large: dict[str, Any] = {
    "batch_size": 256,
    "critic_updates": 4,
    "critic_batch_size": 512,
    "policy_kwargs": {
        "net_arch": {
            "encoder": [512],
            "dynamics": [512, 512],
            "reward": [512, 512],
            "termination": [512],
            "pi": [512, 512],
            "qf": [512, 512, 512, 512],
        },
        "latent_dim": 512,
    },
}
"""Keyword arguments for a GPU, where the default's networks leave most of it idle: wide networks, critics as deep and
batches as large as those of SimbaV2 (arXiv 2502.15280) and FlashSAC (arXiv 2604.04539), and two critic updates for each
environment step. What it learns has not been measured."""

# name, from the millions of parameters that TD-MPC2 has with actor and critics -> latents, encoder, other networks
MODEL_SIZES: dict[str, tuple[int, list[int], list[int]]] = {
    "1M": (128, [256], [384, 384]),
    "5M": (512, [256], [512, 512]),
    "19M": (768, [1024] * 2, [1024] * 2),
    "48M": (768, [1792] * 3, [1792] * 2),
    "317M": (1376, [4096] * 4, [4096] * 2),
}


def paper_multi_task(size: str, task_set: TaskSet) -> dict[str, Any]:
    """Return the PWM paper's multi-task settings with one of TD-MPC2's model sizes (arXiv 2310.16828).

    World models have TD-MPC2's architecture, so they fit its published ones; those of MT30 have embeddings of 64
    features in the sizes 5M, 19M and 48M, and 512 latents in the size 19M, see
    :func:`sb3_pwm.published.checkpoint_policy_kwargs`. Actor and critics, rates, horizon, discount, lambda and batch
    are the PWM paper's: 10,000 policy updates with a frozen model, each on 512 imagined rollouts of 16 steps, with 32
    critic updates of a quarter of their states.

    What differs is as in :data:`paper_single_task`, and:

    - The world model comes from a file or from ``learn_offline(..., pretrain_steps=n)``, which trains it for
      consistency and reward with TD-MPC2's weights 20 and 0.1, but not for values: it has no critics of its own.
    - Rewards in imagined returns are in the environment's units; the paper leaves out the last step of decoding them,
      symexp, in the actor's objective.
    - Padded action dimensions are masked.
    - There is no termination head in use (``termination_coef=0``): no task of MT30 and MT80 terminates.

    :param size: ``"1M"``, ``"5M"``, ``"19M"``, ``"48M"`` or ``"317M"``.
    :param task_set: the tasks.
    :return: keyword arguments of ``PWM("MultiTaskPolicy", env, ...)`` and of
        ``PWM.from_dataset(dataset, "MultiTaskPolicy", ...)``.
    :raises ValueError: if there is no such size.
    """
    if size not in MODEL_SIZES:
        raise ValueError(f"size={size!r}: allowed are {', '.join(map(repr, MODEL_SIZES))}")
    latent_dim, encoder, hidden = MODEL_SIZES[size]
    networks = {"encoder": encoder, "dynamics": hidden, "reward": hidden, "termination": []}
    shared = {name: value for name, value in paper_single_task.items() if name != "buffer_size"}  # the data set decides
    return shared | {
        "batch_size": 512,
        "critic_batch_size": 2_048,
        "consistency_coef": 20.0,
        "reward_coef": 0.1,
        "termination_coef": 0.0,
        "bc_coef": 0.0,
        "policy_kwargs": paper_single_task["policy_kwargs"]
        | SETTINGS
        | {
            "net_arch": networks | POLICY_SIZES,
            "latent_dim": latent_dim,
            "reward_bins": 101,
            "task_set": task_set,
            "task_embedding_dim": 96,
        },
    }
