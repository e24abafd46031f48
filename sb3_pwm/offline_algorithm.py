"""Learning from a replay buffer alone, with SB3's callbacks and logger."""

import pathlib
import time
from collections import deque
from typing import Any, TypeVar

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm.auto import tqdm

from sb3_pwm.buffers import check_replay_buffer
from sb3_pwm.checkpoints import Checkpoint, is_published, load_checkpoint, parse, read_file
from sb3_pwm.checks import check_integer
from sb3_pwm.evaluation import SelfEvaluatingAlgorithm
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.sequence_algorithm import close_progress_bars

SelfOffline = TypeVar("SelfOffline", bound="OfflineAlgorithm")

OFFLINE_PRETRAIN_STEPS = 10_000  # for each task: nothing improves the world model afterwards
# No environment corrects a policy that exploits the errors of one network, or values that promise too much.
OFFLINE_POLICY = {"n_dynamics": 3, "n_critics": 3}
# What learning from data was measured with; reading observations from latents was not.
OFFLINE_ARGUMENTS = {"batch_size": 128, "critic_batch_size": 256, "observation_coef": 0.0}


class SpacesOnlyEnv(gym.Env[Any, Any]):
    """Stands where SB3 wants an environment while a model learns from data; it cannot be acted in.

    :param observation_space: space of the observations.
    :param action_space: space of the actions.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Refuse.

        :raises RuntimeError: always.
        """
        raise RuntimeError("this model was made from data and has no environment to act in; call set_env(env) first")

    def step(self, action: Any) -> Any:
        """Refuse.

        :raises RuntimeError: always.
        """
        return self.reset()


def spaces_only(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int) -> DummyVecEnv:
    """Return ``n_envs`` environments that have spaces and nothing else."""
    return DummyVecEnv([lambda: SpacesOnlyEnv(observation_space, action_space)] * n_envs)


class OfflineAlgorithm(SelfEvaluatingAlgorithm):
    """Algorithm that also learns without an environment; a subclass says what an update is."""

    pretrain_steps: int
    sequence_length: int
    n_model_updates: int
    termination_coef: float

    def pretrain(self: SelfOffline, gradient_steps: int, progress_bar: bool = False) -> SelfOffline:
        """Update the world model alone."""
        raise NotImplementedError

    def _train_offline(self) -> None:
        """Update actor and critics once."""
        raise NotImplementedError

    @classmethod
    def from_dataset(
        cls: type[SelfOffline], dataset: ReplayBuffer, policy: str | type[PWMPolicy] = "MlpPolicy", **kwargs: Any
    ) -> SelfOffline:
        """Make a model for a data set, without an environment.

        :param dataset: replay buffer, see :mod:`sb3_pwm.datasets`; the model goes on with it, it is not copied.
        :param policy: as for the constructor.
        :param kwargs: constructor arguments; ``env`` and ``buffer_size`` are the data set's, the default of
            ``pretrain_steps`` is 10,000 for each task, those of ``batch_size`` and ``critic_batch_size`` are 128 and
            256, that of ``observation_coef`` is 0, and those of ``n_dynamics`` and ``n_critics`` in ``policy_kwargs``
            are 3.
        :return: the model; :meth:`learn_offline` trains it, ``set_env`` and ``learn`` go on in an environment.
        :raises TypeError: if ``dataset`` is no replay buffer, or ``kwargs`` hold what the data set decides.
        :raises ValueError: if windows cannot be drawn from it, or its images have their channels last.
        """
        check_replay_buffer(dataset)
        decided = sorted({"env", "buffer_size"} & set(kwargs))
        if decided:
            raise TypeError(f"from_dataset() takes {' and '.join(decided)} from the data set; leave out the argument")
        env = cls._wrap_env(spaces_only(dataset.observation_space, dataset.action_space, dataset.n_envs))
        if env.observation_space != dataset.observation_space:  # SB3 has put VecTransposeImage around it
            raise ValueError(
                f"the data set's images have their channels last, {dataset.observation_space}; SB3's networks want "
                f"them first: give the importer np.moveaxis(images, -1, -3) and the space {env.observation_space}"
            )
        kwargs = OFFLINE_ARGUMENTS | kwargs
        kwargs["policy_kwargs"] = OFFLINE_POLICY | (kwargs.get("policy_kwargs") or {})
        size = dataset.buffer_size * dataset.n_envs
        model = cls(policy, env, buffer_size=size, **(kwargs | {"_init_setup_model": False}))
        model.replay_buffer = dataset  # so that no other of its size is made
        model._setup_model()
        model._take_over_buffer(dataset)
        if "pretrain_steps" not in kwargs:
            model.pretrain_steps = OFFLINE_PRETRAIN_STEPS * model.policy.n_tasks
        return model

    def _setup_offline(self, total_updates: int, callback: MaybeCallback, tb_log_name: str) -> BaseCallback:
        """Do what SB3 does before learning, but for the reset of the environment."""
        if self.env is None:
            self.env = spaces_only(self.observation_space, self.action_space, self.n_envs)
        self.start_time = time.time_ns()
        self.num_timesteps = self._num_timesteps_at_start = self._episode_num = 0
        self._total_timesteps = total_updates
        self.ep_info_buffer = deque(maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        self._last_obs = None  # what comes next in an environment does not follow what came last
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, True)
        return self._init_callback(callback)

    def learn_offline(
        self: SelfOffline,
        total_updates: int,
        *,
        pretrain_steps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        tb_log_name: str = "PWM_offline",
        progress_bar: bool = False,
    ) -> SelfOffline:
        """Learn from the present replay buffer: the world model first, then the policy in imagination.

        No environment is reset or stepped, and the world model no longer changes while the policy learns. In
        callbacks, schedules and the log ``num_timesteps`` counts policy updates. :meth:`learn` goes on from here.

        :param total_updates: policy updates.
        :param pretrain_steps: world-model updates before them; None for what is left of the model's
            ``pretrain_steps``.
        :param callback: SB3 callback, list of callbacks or function.
        :param log_interval: policy updates between logs; None for no logs.
        :param tb_log_name: name of the run in TensorBoard.
        :param progress_bar: show progress.
        :return: the model.
        :raises ValueError: if a number is out of range, the replay buffer holds too little, or the environment's
            ``VecNormalize`` has not seen what it holds.
        """
        check_integer("total_updates", total_updates, 0)
        if log_interval is not None:
            check_integer("log_interval", log_interval, 1)
        if pretrain_steps is None:
            pretrain_steps = max(0, self.pretrain_steps - self.n_model_updates)
        check_integer("pretrain_steps", pretrain_steps, 0)
        self.sequences.check_size(self.batch_size, self.sequence_length)
        self._check_normalizer_known()
        total_timesteps = total_updates  # the name under which callbacks look for it
        callback = self._setup_offline(total_updates, callback, tb_log_name)
        self._update_current_progress_remaining(0, max(1, total_timesteps))
        callback.on_training_start(locals(), globals())
        try:
            self.pretrain(pretrain_steps, progress_bar=progress_bar)
            # SB3's own bar would count a step of every environment at each update.
            for _ in tqdm(range(total_timesteps), "policy", disable=not progress_bar):
                self._train_offline()
                self.num_timesteps += 1
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                callback.update_locals(locals())
                if not callback.on_step():
                    break
                if log_interval is not None and self.num_timesteps % log_interval == 0:
                    self.dump_logs()
        except BaseException:
            close_progress_bars(callback)
            raise
        callback.on_training_end()
        return self

    def save_world_model(self, path: str | pathlib.Path) -> None:
        """Save the world model and the scales of observations and rewards, without the policy.

        :param path: file; missing folders are made.
        """
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(self._world_model_content(), path)

    def load_world_model(self: SelfOffline, path: str | pathlib.Path) -> SelfOffline:
        """Take over a world model; actor and critics stay as they are.

        One world model so serves many policies: of other sizes, or with other settings. It comes from
        :meth:`save_world_model`, or from a file that TD-MPC2 or PWM has published, see :mod:`sb3_pwm.checkpoints`; such
        a model counts as pre-trained.

        :param path: file; nothing in it is run.
        :return: the model.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if the file is damaged, or its world model has other sizes or needs other settings; nothing
            is changed then.
        """
        content = read_file(path)
        if is_published(content):
            self._load_published(parse(content, path))
        else:
            self._load_own(content, path)
        return self

    def _load_published(self, checkpoint: Checkpoint) -> None:
        if "termination" not in checkpoint.layers and self.termination_coef:
            raise ValueError(
                f"the world model in {checkpoint.path} has no termination head, so imagined episodes cannot end: this "
                f"model needs termination_coef=0, not {self.termination_coef}"
            )
        load_checkpoint(self.policy, checkpoint)
        self.n_model_updates = max(self.n_model_updates, self.pretrain_steps)

    def _load_own(self, content: Any, path: str | pathlib.Path) -> None:
        own = self._world_model_content()
        if not isinstance(content, dict) or kinds(content) != kinds(own):
            raise ValueError(f"{path} holds no world model of this version of the package")
        for part in ("settings", "world_model", "reward_scale"):
            expected, found = ({name: described(value) for name, value in c[part].items()} for c in (own, content))
            differing = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
            if differing:
                name = differing[0]
                raise ValueError(
                    f"the world model in {path} does not fit: its {name} is {found.get(name)}, this model's is "
                    f"{expected.get(name)} ({len(differing)} of {part} differ; see policy_kwargs and spaces)"
                )
        for name in ("n_model_updates", "statistics_size"):
            check_integer(f"{name} in {path}", content[name], 0)
        if self.termination_coef and not content["termination_coef"]:
            raise ValueError(
                f"the world model in {path} was trained with termination_coef=0: its termination head knows nothing; "
                f"this model needs termination_coef=0 too, not {self.termination_coef}"
            )
        self.policy.world_model.load_state_dict(content["world_model"])
        self.policy.reward_scale.load_state_dict(content["reward_scale"])
        self.policy.statistics_size.fill_(content["statistics_size"])
        self.n_model_updates = content["n_model_updates"]

    def _world_model_content(self) -> dict[str, Any]:
        policy, settings = self.policy, self.policy.model_settings
        return {
            "world_model": dict(policy.world_model.state_dict()),
            "reward_scale": dict(policy.reward_scale.state_dict()),
            "statistics_size": int(policy.statistics_size),
            "settings": {name: str(getattr(value, "__qualname__", value)) for name, value in settings.items()},
            "termination_coef": float(self.termination_coef),
            "n_model_updates": self.n_model_updates,
        }


def kinds(content: dict[str, Any]) -> dict[str, type]:
    """Return the class of each value."""
    return {name: type(value) for name, value in content.items()}


def described(value: Any) -> Any:
    """Return what two values must agree in: tensors in their shape."""
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else value
