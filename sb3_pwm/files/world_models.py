"""Files of world models: the package's own, and those that TD-MPC2 and PWM have published."""

import pathlib
from typing import Any

import torch

from sb3_pwm import published
from sb3_pwm.checks import check_integer
from sb3_pwm.files.tensors import check_tensors, checksum, save_tensors
from sb3_pwm.policies import PWMPolicy


def save(policy: PWMPolicy, path: str | pathlib.Path, termination_coef: float, n_model_updates: int) -> None:
    """Save the world model and the scales of observations and rewards, without the policy.

    :param policy: holds the world model.
    :param path: file; missing folders are made, and an old file stays until the new one is whole.
    :param termination_coef: the model's.
    :param n_model_updates: number of updates that the world model has had.
    :raises OSError: if it cannot be written.
    """
    content = _content(policy, termination_coef, n_model_updates)
    save_tensors(path, content | {"sha256": checksum(content)})


def load(policy: PWMPolicy, path: str | pathlib.Path, termination_coef: float) -> int | None:
    """Take over a world model; actor and critics stay as they are.

    One world model so serves many policies: of other sizes, or with other settings. It comes from :func:`save`, or from
    a file that TD-MPC2 or PWM has published, see :mod:`sb3_pwm.published`; such a model counts as pre-trained.

    :param policy: the policy to change.
    :param path: file; nothing in it is run.
    :param termination_coef: the model's.
    :return: the number of updates that the world model has had; None for a published one.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged, or its world model has other sizes or needs other settings; nothing is
        changed then.
    """
    content = published.read_file(path)
    if published.is_published(content):
        published.load_checkpoint(policy, published.parse(content, path), termination_coef)
        return None
    return _take_over(policy, content, path, termination_coef)


def _content(policy: PWMPolicy, termination_coef: float, n_model_updates: int) -> dict[str, Any]:
    """Return what a file of a world model holds: its tensors, its scales, and what they need to be understood."""
    settings = policy.model_settings
    return {
        "world_model": dict(policy.world_model.state_dict()),
        "reward_scale": dict(policy.reward_scale.state_dict()),
        "statistics_size": int(policy.statistics_size),
        "settings": {name: str(getattr(value, "__qualname__", value)) for name, value in settings.items()},
        "termination_coef": float(termination_coef),
        "n_model_updates": n_model_updates,
    }


def _take_over(policy: PWMPolicy, content: Any, path: str | pathlib.Path, termination_coef: float) -> int:
    """Give a policy the world model of a file that :meth:`sb3_pwm.PWM.save_world_model` wrote.

    :param policy: the policy to change.
    :param content: what the file holds.
    :param path: the file, for messages.
    :param termination_coef: the model's.
    :return: the number of updates that the world model has had.
    :raises ValueError: if it does not fit; nothing is changed then.
    """
    own = _content(policy, termination_coef, 0)
    content = dict(content) if isinstance(content, dict) else {}
    known = content.pop("sha256", None)  # earlier revisions wrote none
    if known is not None and known != checksum(content):
        raise ValueError(f"the world model in {path} is damaged: its checksum is wrong")
    if isinstance(content.get("settings"), dict):  # earlier revisions did not say which actions
        content["settings"] = {"actions": own["settings"]["actions"]} | content["settings"]
    if _kinds(content) != _kinds(own):
        raise ValueError(f"{path} holds no world model of this version of the package")
    for part in ("settings", "world_model", "reward_scale"):
        expected, found = ({name: _described(value) for name, value in c[part].items()} for c in (own, content))
        differing = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"the world model in {path} does not fit: its {name} is {found.get(name)}, this model's is "
                f"{expected.get(name)} ({len(differing)} of {part} differ; see policy_kwargs and spaces)"
            )
    check_tensors(f"the world model in {path}", content, own)
    for name in ("n_model_updates", "statistics_size"):
        check_integer(f"{name} in {path}", content[name], 0)
    if termination_coef and not content["termination_coef"]:
        raise ValueError(
            f"the world model in {path} was trained with termination_coef=0: its termination head knows nothing; "
            f"this model needs termination_coef=0 too, not {termination_coef}"
        )
    policy.world_model.load_state_dict(content["world_model"])
    policy.reward_scale.load_state_dict(content["reward_scale"])
    policy.statistics_size.fill_(content["statistics_size"])
    updates: int = content["n_model_updates"]
    return updates


def _kinds(content: dict[str, Any]) -> dict[str, type]:
    """Return the class of each value."""
    return {name: type(value) for name, value in content.items()}


def _described(value: Any) -> Any:
    """Return what two values must agree in: tensors in their shape."""
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else value
