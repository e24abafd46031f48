"""World models that TD-MPC2 and PWM have published, read into this package's.

TD-MPC2 (arXiv 2310.16828) publishes ``.pt`` files of models of one task and of many, with 1 to 317 million
parameters; PWM's multi-task models (arXiv 2407.02466) are such models, trained over longer windows. A file holds
``{"model": tensors by name}``. What PWM's own code saves has ``"world_model"`` instead, and ``_encoder.0`` where
TD-MPC2 has ``_encoder.state.0``. The tensors of layer ``i`` are ``i.weight`` and ``i.bias``, those of its LayerNorm
``i.ln.weight`` and ``i.ln.bias``.

=======================  ====================  ==================================================================
published                here                  what changes
=======================  ====================  ==================================================================
``_encoder.state.i``     ``encoder.0``         inputs: zeros for the action mask; the last layer's rows in our order
``_dynamics.i``          ``dynamics.0``        inputs: latents in our order, zeros for the mask; rows as above
``_reward.i``            ``reward``            inputs as above
``_termination.i``       ``termination``       inputs as above; only files of tasks whose episodes end have it
``_task_emb.weight``     ``context.embedding``
``_action_masks``        ``context.masks``     compared, not read; files from before November 2024 lack it
``_pi``, ``_Qs``, ...                          left out: this package learns policies and critics of its own
=======================  ====================  ==================================================================

Linear layer ``i`` of a network is number ``3 i`` here and its LayerNorm ``3 i + 1``. Two things must match that no
shape shows: a SimNorm group is eight neighbours there and has a stride here (:class:`sb3_pwm.nn.layers.SimNorm`), so
latents are reordered; and the settings in :data:`SETTINGS`.
"""

import pathlib
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from sb3_pwm.files.tensors import check_tensor_file, check_tensors, reason
from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.nn.layers import Mish
from sb3_pwm.policies import PWMPolicy

SETTINGS: dict[str, Any] = {
    "activation_fn": Mish,
    "simnorm_dim": 8,
    "latent_layer_norm": True,
    "residual_dynamics": False,
    "n_dynamics": 1,
    "standardize": False,
}
"""Arguments of :class:`sb3_pwm.PWMPolicy` that every published world model needs."""
POLICY_SIZES = {"pi": [400, 200, 100], "qf": [400, 200]}  # PWM's, for policies in these world models


class Network(NamedTuple):
    """One network in a published file and here."""

    published: str
    here: str
    inputs: tuple[str, ...]
    ends_in_simnorm: bool


NETWORKS = {
    "encoder": Network("_encoder.state", "encoder.0", ("observations", "task"), True),
    "dynamics": Network("_dynamics", "dynamics.0", ("latents", "task", "actions"), True),
    "reward": Network("_reward", "reward", ("latents", "task", "actions"), False),
    "termination": Network("_termination", "termination", ("latents", "task"), False),
}
LAYER_NAMES = {"weight": (0, "weight"), "bias": (0, "bias"), "ln.weight": (1, "weight"), "ln.bias": (1, "bias")}
EMBEDDING, MASKS = "_task_emb.weight", "_action_masks"
# Actor, critics and their target, before November 2024 numbered (_Qs.params.0), since then named (_Qs.params.0.weight).
LEFT_OUT = ("_pi.", "_Qs.", "_target_Qs", "_detach_Qs", "log_std_")


class Unread:
    """Stands for an object of a file that is neither needed nor run."""


UNREAD: list[Any] = [(Unread, "pwm.utils.running_mean_std.RunningMeanStd")]  # PWM's running scale of returns


@dataclass(frozen=True)
class Checkpoint:
    """A published world model.

    :param path: where it comes from, for messages.
    :param tensors: the world model's tensors by their published names.
    :param sizes: number of ``observations``, ``latents``, ``task`` features (0 for one task), ``actions``.
    :param layers: output sizes of the layers of each of :data:`NETWORKS` that the file has.
    """

    path: str
    tensors: dict[str, torch.Tensor]
    sizes: dict[str, int]
    layers: dict[str, list[int]]

    @property
    def n_tasks(self) -> int:
        """Number of tasks; 0 if the model knows no tasks."""
        return len(self.tensors[EMBEDDING]) if EMBEDDING in self.tensors else 0

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the sizes imply, by published names."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, outputs in self.layers.items():
            network = NETWORKS[name]
            inputs = [sum(self.sizes[part] for part in network.inputs), *outputs[:-1]]
            for i, (n_in, n_out) in enumerate(zip(inputs, outputs, strict=True)):
                shapes[f"{network.published}.{i}.weight"] = (n_out, n_in)
                normed = i < len(outputs) - 1 or network.ends_in_simnorm
                for vector in ("bias", "ln.weight", "ln.bias") if normed else ("bias",):
                    shapes[f"{network.published}.{i}.{vector}"] = (n_out,)
        if self.n_tasks:
            shapes[EMBEDDING] = (self.n_tasks, self.sizes["task"])
            if MASKS in self.tensors:
                shapes[MASKS] = (self.n_tasks, self.sizes["actions"])
        return shapes

    def policy_kwargs(self) -> dict[str, Any]:
        """Return the arguments of a policy with the same world model, but for its tasks."""
        hidden: dict[str, list[int]] = {"termination": []} | {
            name: outputs[:-1] for name, outputs in self.layers.items()
        }
        return SETTINGS | {
            "net_arch": hidden | POLICY_SIZES,
            "latent_dim": self.sizes["latents"],
            "reward_bins": self.layers["reward"][-1],
        }

    def converted(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield the published name, the name in :class:`sb3_pwm.world_model.WorldModel` and its tensor."""
        # Feature j here is member j // G of group j % G, which has the number 8 (j % G) + j // G there.
        order = torch.arange(self.sizes["latents"]).view(-1, SETTINGS["simnorm_dim"]).T.flatten()
        for name, outputs in self.layers.items():
            network = NETWORKS[name]
            for i in range(len(outputs)):
                for suffix, (offset, own_suffix) in LAYER_NAMES.items():
                    source = f"{network.published}.{i}.{suffix}"
                    if source not in self.tensors:
                        continue  # the LayerNorm that the last layer of a head does not have
                    tensor = self.tensors[source]
                    if i == 0 and suffix == "weight":
                        tensor = self._columns(network, tensor, order)
                    if i == len(outputs) - 1 and network.ends_in_simnorm:
                        tensor = tensor[order]
                    yield source, f"{network.here}.{3 * i + offset}.{own_suffix}", tensor
        if self.n_tasks:
            yield EMBEDDING, "context.embedding", self.tensors[EMBEDDING]

    def _columns(self, network: Network, weight: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Return the (out, in) weights of a first layer with the columns of our inputs."""
        columns = torch.split(weight, [self.sizes[part] for part in network.inputs], 1)
        parts = dict(zip(network.inputs, columns, strict=True))
        if "latents" in parts:
            parts["latents"] = parts["latents"][:, order]
        if self.n_tasks:  # the action mask, which published networks do not see
            mask = weight.new_zeros(len(weight), self.sizes["actions"])
            parts["task"] = torch.cat([parts["task"], mask], 1)
        return torch.cat(list(parts.values()), 1)


def read_file(path: str | pathlib.Path) -> Any:
    """Read a file of tensors; nothing in it is run.

    :param path: file.
    :return: what it holds, in the memory of the CPU.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged or holds objects of unknown classes.
    """
    check_tensor_file(path)
    try:
        with torch.serialization.safe_globals(UNREAD):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read {path} as a world model: {reason(error)}") from error


def is_published(content: Any) -> bool:
    """Return whether the content of a file looks like a published world model."""
    return any(
        name.startswith(tuple(f"{network.published}." for network in NETWORKS.values())) for name in _named(content)
    )


def read_checkpoint(path: str | pathlib.Path) -> Checkpoint:
    """Read a world model that TD-MPC2 or PWM has published.

    :param path: file; nothing in it is run.
    :return: its world model; actor and critics are left out.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged or no such file, or a tensor is missing, unknown or of a wrong shape.
    """
    return parse(read_file(path), path)


def parse(content: Any, path: str | pathlib.Path) -> Checkpoint:
    """Find the world model in a published file's content, see :func:`read_checkpoint`."""
    if not is_published(content):
        raise ValueError(f"{path} holds no world model of TD-MPC2 or PWM")
    for scale in ("obs_rms", "rew_rms"):
        if content.get(scale) is not None:
            raise ValueError(f"the world model in {path} was trained with running scales ({scale}), which are not read")
    tensors = {name: value for name, value in _named(content).items() if not name.startswith(LEFT_OUT)}
    biases = [value for name, value in tensors.items() if name.startswith("_termination.") and name.endswith(".bias")]
    if not any(isinstance(bias, torch.Tensor) and bias.any() for bias in biases):
        # In spring 2025 every file got a termination head, also where it was not trained: biases start at 0.
        tensors = {name: value for name, value in tensors.items() if not name.startswith("_termination.")}
    checkpoint = _measured(str(path), tensors)
    expected = checkpoint.expected_shapes()
    for name, shape in expected.items():
        found = tuple(_tensor(checkpoint, name).shape)
        if found != shape:
            raise ValueError(f"{path}: {name} has the shape {found}; the other tensors need {shape}")
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise ValueError(f"{path} holds unknown tensors: {', '.join(unknown)}")
    check_tensors(f"{path}", {name: tensors[name] for name in expected})
    if checkpoint.layers["reward"][-1] < 2:
        raise ValueError(f"{path}: the reward head has one output; only two-hot heads of 2 or more bins are read")
    return checkpoint


def checkpoint_policy_kwargs(path: str | pathlib.Path, task_set: TaskSet | None = None) -> dict[str, Any]:
    """Return the ``policy_kwargs`` of a model that fits a published world model.

    :param path: file, see :func:`read_checkpoint`.
    :param task_set: the tasks that the world model was trained on, in the same order, such as
        :func:`sb3_pwm.suites.mt30`; None for a model of one task.
    :return: arguments of :class:`sb3_pwm.PWMPolicy`; with a task set, of ``"MultiTaskPolicy"`` and, with the further
        argument ``task``, of :class:`sb3_pwm.multitask.policies.ExtractedPolicy`. Actor and critics have the sizes of
        the PWM paper.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file cannot be read, or its tasks are not those of the set.
    """
    checkpoint = read_checkpoint(path)
    check_tasks(checkpoint, task_set)
    if task_set is None:
        return checkpoint.policy_kwargs()
    own = {"task_set": task_set, "task_embedding_dim": checkpoint.sizes["task"]}
    return checkpoint.policy_kwargs() | own


def check_tasks(checkpoint: Checkpoint, task_set: TaskSet | None) -> None:
    """Check that a world model knows the tasks of a set.

    :param checkpoint: the world model.
    :param task_set: the set; None for a model of one task.
    :raises ValueError: if numbers, sizes or action masks differ.
    """
    if task_set is None:
        if checkpoint.n_tasks:
            raise ValueError(f"the world model in {checkpoint.path} knows {checkpoint.n_tasks} tasks: give their set")
        return
    expected = (checkpoint.n_tasks, checkpoint.sizes["observations"], checkpoint.sizes["actions"])
    found = (len(task_set), task_set.observation_size, task_set.action_size)
    if found != expected:
        raise ValueError(
            f"the world model in {checkpoint.path} knows {expected[0]} tasks, with {expected[1]} observations and "
            f"{expected[2]} actions; the task set has {found[0]}, with {found[1]} and {found[2]}"
        )
    masks = checkpoint.tensors.get(MASKS, torch.as_tensor(task_set.action_masks))
    for number, (task, has, should) in enumerate(zip(task_set, masks, task_set.action_masks, strict=True)):
        if not torch.equal(has.float(), torch.as_tensor(should)):
            raise ValueError(
                f"{MASKS} in {checkpoint.path} gives task {number} {int(has.sum())} actions; task {number} of the set, "
                f"{task.name!r}, has {task.action_size}"
            )


def load_checkpoint(policy: PWMPolicy, checkpoint: Checkpoint, termination_coef: float) -> None:
    """Give a policy a published world model; a termination head that the file lacks stays as it is.

    :param policy: policy with the arguments of :func:`checkpoint_policy_kwargs`.
    :param checkpoint: the world model.
    :param termination_coef: the model's; without a termination head in the file it must be 0.
    :raises ValueError: if a setting, the tasks or a tensor's shape differ; nothing is changed then.
    """
    if "termination" not in checkpoint.layers and termination_coef:
        raise ValueError(
            f"the world model in {checkpoint.path} has no termination head, so imagined episodes cannot end: this "
            f"model needs termination_coef=0, not {termination_coef}"
        )
    for name, needed in SETTINGS.items():
        value = getattr(policy, name)
        if not (value == needed or (name == "activation_fn" and issubclass(value, nn.Mish))):
            raise ValueError(
                f"the world model in {checkpoint.path} needs {name}={needed!r}, this model has {value!r}; "
                "see checkpoint_policy_kwargs"
            )
    if any(True for _ in policy.features.parameters()):
        raise ValueError(f"the world model in {checkpoint.path} needs vectors as observations, this model has others")
    check_tasks(checkpoint, getattr(policy, "task_set", None))
    own = policy.world_model.state_dict()
    own_heads = ("observation",) if "termination" in checkpoint.layers else ("observation", "termination.")
    kept = ("features.", "context.masks", *own_heads)
    state = {name: tensor for name, tensor in own.items() if name.startswith(kept)}
    for source, name, tensor in checkpoint.converted():
        here = tuple(own[name].shape) if name in own else None
        if here != tuple(tensor.shape):
            raise ValueError(
                f"the world model in {checkpoint.path} does not fit: {source} gives {name} the shape "
                f"{tuple(tensor.shape)}, this model's has {here}; see checkpoint_policy_kwargs"
            )
        state[name] = tensor
    more = sorted(own.keys() - state.keys())
    if more:
        raise ValueError(
            f"the world model in {checkpoint.path} does not fit: it has nothing for {', '.join(more)} of this model; "
            "see checkpoint_policy_kwargs"
        )
    policy.world_model.load_state_dict(state)
    policy.reward_scale.scale.fill_(1)


def _named(content: Any) -> dict[str, Any]:
    """Return the world model's entries in a file's content by TD-MPC2's names; empty if there are none."""
    for key in ("model", "world_model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        return {}
    return {re.sub(r"^_encoder\.(?=\d)", "_encoder.state.", str(name)): value for name, value in content.items()}


def _measured(path: str, tensors: dict[str, Any]) -> Checkpoint:
    """Read the sizes off the shapes, without checking that they agree."""
    checkpoint = Checkpoint(path, tensors, {}, {})
    for name, network in NETWORKS.items():
        pattern = re.compile(rf"{re.escape(network.published)}\.(\d+)\.")
        numbers = [int(match[1]) for match in map(pattern.match, tensors) if match]
        if numbers or name != "termination":
            layers = [f"{network.published}.{i}.bias" for i in range(max(numbers, default=0) + 1)]
            checkpoint.layers[name] = [len(_tensor(checkpoint, layer)) for layer in layers]
    sizes = checkpoint.sizes
    sizes["latents"] = checkpoint.layers["encoder"][-1]
    sizes["task"] = _tensor(checkpoint, EMBEDDING).shape[-1] if {EMBEDDING, MASKS} & tensors.keys() else 0
    for part, name in (("observations", "encoder"), ("actions", "dynamics")):
        network = NETWORKS[name]
        width = _tensor(checkpoint, f"{network.published}.0.weight").shape[-1]
        sizes[part] = width - sum(sizes.get(other, 0) for other in network.inputs if other != part)
        if sizes[part] < 1:
            raise ValueError(f"{path}: {network.published}.0.weight has {width} columns, too few to leave any {part}")
    if sizes["latents"] % SETTINGS["simnorm_dim"]:
        raise ValueError(
            f"{path}: the encoder has {sizes['latents']} outputs, no multiple of {SETTINGS['simnorm_dim']}"
        )
    return checkpoint


def _tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = checkpoint.tensors.get(name)
    if not isinstance(tensor, torch.Tensor) or not tensor.ndim:
        raise ValueError(f"{checkpoint.path} lacks the tensor {name}")
    return tensor
