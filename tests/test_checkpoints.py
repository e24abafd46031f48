"""Published world models: what is read equals an implementation of TD-MPC2's architecture that shares no code."""

import copy
import itertools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import SMALL, SpaceEnv, make, same, space_envs
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sb3_pwm import PWM, Planner, presets
from sb3_pwm.datasets import from_tdmpc2
from sb3_pwm.multitask.envs import task_vec_env
from sb3_pwm.multitask.extraction import spaces_of_task
from sb3_pwm.multitask.policies import ExtractedPolicy, MultiTaskPolicy
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.published import checkpoint_policy_kwargs, read_checkpoint
from sb3_pwm.suites import mt30, mt80
from sb3_pwm.world_model import WorldModel

LATENTS, TASK_DIM, BINS = 24, 5, 11
ENCODER, HIDDEN = [20, 18], [14, 13]


class Normed(nn.Module):
    """Linear, LayerNorm and an activation, with the names that files have."""

    def __init__(self, n_in: int, n_out: int, activation: Callable[..., Any]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n_out, n_in) / n_in**0.5), nn.Parameter(torch.randn(n_out))
        self.ln = nn.LayerNorm(n_out)
        nn.init.normal_(self.ln.weight, 1, 0.5)
        nn.init.normal_(self.ln.bias)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.ln(F.linear(x, self.weight, self.bias)))


def mish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(torch.log1p(x.exp()))


def simplices_of_neighbours(x: torch.Tensor) -> torch.Tensor:
    exponentials = x.exp().reshape(*x.shape[:-1], x.shape[-1] // 8, 8)
    return (exponentials / exponentials.sum(-1, keepdim=True)).reshape(x.shape)


def network(n_in: int, hidden: list[int], n_out: int, simnorm: bool = False) -> nn.Sequential:
    sizes = [n_in, *hidden]
    layers = [Normed(*pair, mish) for pair in itertools.pairwise(sizes)]
    last = Normed(sizes[-1], n_out, simplices_of_neighbours) if simnorm else nn.Linear(sizes[-1], n_out)
    return nn.Sequential(*layers, last)


class Original(nn.Module):
    """TD-MPC2's world model; its embeddings are longer and shorter than 1."""

    def __init__(self, n_tasks: int, observations: int, actions: int, *, termination: bool = False) -> None:
        super().__init__()
        task_dim = TASK_DIM if n_tasks else 0
        self.n_tasks, self.n_actions = n_tasks, actions
        if n_tasks:
            self._task_emb = nn.Embedding(n_tasks, task_dim, max_norm=1)
            with torch.no_grad():
                self._task_emb.weight *= torch.linspace(0.1, 2, n_tasks)[:, None]
        self._encoder = nn.ModuleDict({"state": network(observations + task_dim, ENCODER, LATENTS, simnorm=True)})
        self._dynamics = network(LATENTS + task_dim + actions, HIDDEN, LATENTS, simnorm=True)
        self._reward = network(LATENTS + task_dim + actions, HIDDEN, BINS)
        if termination:
            self._termination = network(LATENTS + task_dim, HIDDEN, 1)
        self._pi = network(LATENTS + task_dim, HIDDEN, 2 * actions)

    def with_task(self, x: torch.Tensor, tasks: torch.Tensor | None) -> torch.Tensor:
        return torch.cat([x, self._task_emb(tasks)], -1) if self.n_tasks else x

    def encode(self, observations: torch.Tensor, tasks: torch.Tensor | None = None) -> torch.Tensor:
        return self._encoder["state"](self.with_task(observations, tasks))

    def next(self, latents: torch.Tensor, actions: torch.Tensor, tasks: torch.Tensor | None = None) -> torch.Tensor:
        return self._dynamics(torch.cat([self.with_task(latents, tasks), actions], -1))

    def rewards(self, latents: torch.Tensor, actions: torch.Tensor, tasks: torch.Tensor | None = None) -> torch.Tensor:
        logits = self._reward(torch.cat([self.with_task(latents, tasks), actions], -1))
        expected = (logits.softmax(-1) * torch.linspace(-10, 10, BINS)).sum(-1)
        return expected.sign() * (expected.abs().exp() - 1)


def critics(prefixes: Iterable[str], names: Iterable[str]) -> dict[str, Any]:
    """Return tensors of an ensemble of two, which are not read."""
    return {f"{prefix}{name}": torch.randn(2, 3) for prefix in prefixes for name in names}


def old_file(original: Original) -> dict[str, Any]:
    """Contents of a file of 2023: the ensemble's parameters are numbered, there are no masks."""
    numbers = [str(i) for i in range(10)]
    return {"model": original.state_dict() | critics(["_Qs.params.", "_target_Qs.params."], numbers)}


def new_file(original: Original) -> dict[str, Any]:
    """Contents of a file of 2025: the ensemble's parameters are named, and there is more that is not a parameter."""
    names = [f"{i}.{name}" for i in (0, 1) for name in ("weight", "bias", "ln.weight", "ln.bias")]
    prefixes = ["_Qs.params.", "_detach_Qs_params.", "_target_Qs_params."]
    rest: dict[str, Any] = {"log_std_min": torch.tensor(-10.0), "log_std_dif": torch.tensor(12.0)}
    for prefix in prefixes:
        rest |= {f"{prefix}__batch_size": torch.Size([2]), f"{prefix}__device": torch.device("cpu")}
    if original.n_tasks:
        rest["_action_masks"] = torch.as_tensor(TASKS.action_masks)
    return {"model": OrderedDict(original.state_dict() | critics(prefixes, names) | rest)}


def pwm_file(original: Original) -> dict[str, Any]:
    """Contents of what PWM's own code saves: other names for the encoder, and a scale that is a foreign object."""
    state = {name.replace("_encoder.state.", "_encoder."): tensor for name, tensor in original.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("_pi.")}
    return {"world_model": state, "actor": {}, "critic": {}, "obs_rms": None, "rew_rms": None}


LAYOUTS = {"old": old_file, "new": new_file, "pwm": pwm_file}


def space_env(n_observations: int, n_actions: int) -> SpaceEnv:
    return SpaceEnv(spaces.Box(-1, 1, (n_observations,), np.float32), spaces.Box(-2, 2, (n_actions,), np.float32))


TASKS = TaskSet(
    [
        Task("small", lambda **_: space_env(2, 1), 2, 1),
        Task("large", lambda **_: space_env(9, 4), 9, 4),
        Task("middle", lambda **_: space_env(5, 3), 5, 3),
    ]
)


def make_original(seed: int = 0, **kwargs: Any) -> Original:
    torch.manual_seed(seed)
    return Original(len(TASKS), TASKS.observation_size, TASKS.action_size, **kwargs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "published.pt"


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def multi_task_model(path: Path | None = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> PWM:
    if policy_kwargs is None:
        assert path is not None
        policy_kwargs = checkpoint_policy_kwargs(path, TASKS)
    options: dict[str, Any] = SMALL | {"termination_coef": 0.0} | kwargs
    return PWM("MultiTaskPolicy", task_vec_env(TASKS, seed=0), policy_kwargs=policy_kwargs, **options)


def data_of(n_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observations far from their mean and beyond 10, actions, and every task; padding is 0."""
    tasks = torch.arange(n_rows) % len(TASKS)
    observations = 8 * torch.randn(n_rows, TASKS.observation_size) + 3
    observations *= torch.as_tensor(TASKS.observation_masks)[tasks]
    actions = (2 * torch.rand(n_rows, TASKS.action_size) - 1) * torch.as_tensor(TASKS.action_masks)[tasks]
    return observations, actions, tasks


def to_neighbours(latents: torch.Tensor) -> torch.Tensor:
    """Our latents in the published order: group by group."""
    groups = latents[..., :LATENTS].unflatten(-1, (8, -1))
    return groups.transpose(-1, -2).flatten(-2)


def assert_parity(
    world_model: WorldModel,
    inputs: Any,
    original: Original,
    observations: torch.Tensor,
    actions: torch.Tensor,
    tasks: torch.Tensor | None,
    own_actions: torch.Tensor | None = None,
) -> None:
    """Three steps with the same actions; latents, rewards to 1e-5."""
    own_actions = actions if own_actions is None else own_actions
    with torch.no_grad():
        theirs, ours = original.encode(observations, tasks), world_model.encode(inputs)
        assert theirs.std(0).mean() > 0.01  # they depend on the observations
        for _ in range(3):
            assert_close(to_neighbours(ours), theirs, atol=1e-5, rtol=0)
            theirs_rewards = original.rewards(theirs, actions, tasks)
            assert theirs_rewards.std() > 0.01
            assert_close(world_model.rewards(ours, own_actions), theirs_rewards, atol=1e-5, rtol=1e-5)
            theirs, ours = original.next(theirs, actions, tasks), world_model.next_latents(ours, own_actions)
        assert_close(to_neighbours(ours), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_with_an_independent_implementation(layout: str, path: Path) -> None:
    original = make_original()
    saved(path, LAYOUTS[layout](original))
    model = multi_task_model(path).load_world_model(path)
    observations, actions, tasks = data_of(60)
    inputs = {"observation": observations, "task": tasks[:, None]}
    assert_parity(model.policy.world_model, inputs, original, observations, actions, tasks)
    # what is trained must not see what published networks do not: the mask's columns are 0
    first: Any = model.policy.world_model.reward[0].weight
    assert (first[:, LATENTS + TASK_DIM : -TASKS.action_size] == 0).all()


@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.filterwarnings("ignore:nothing was learnt")
def test_parity_of_extracted_policies(task: int, path: Path, tmp_path: Path) -> None:
    """From a file and data to a policy; learning, saving and loading keep the world model as it was published."""
    original = make_original()
    saved(path, old_file(original))
    model = multi_task_model(path, learning_starts=10_000, pretrain_steps=4).learn(60).load_world_model(path)
    own = model.extract(TASKS.names[task], 2)
    own.learn_offline(2)
    own.save(tmp_path / "own.zip")
    observations, actions, tasks = data_of(60)
    rows = tasks == task
    sizes = TASKS[task].observation_size, TASKS[task].action_size
    for extracted in (own, PWM.load(tmp_path / "own.zip")):
        assert isinstance(extracted.policy, ExtractedPolicy)
        assert extracted.policy.reward_scale.scale == 1
        arguments = (observations[rows], actions[rows], tasks[rows])
        inputs, own_actions = observations[rows][:, : sizes[0]], actions[rows][:, : sizes[1]]
        assert_parity(extracted.policy.world_model, inputs, original, *arguments, own_actions)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_of_a_model_of_one_task(layout: str, path: Path) -> None:
    torch.manual_seed(0)
    original = Original(0, 3, 2)
    saved(path, LAYOUTS[layout](original))
    model = make(policy_kwargs=checkpoint_policy_kwargs(path), termination_coef=0.0).load_world_model(path)
    observations, actions = 20 * torch.randn(50, 3), 2 * torch.rand(50, 2) - 1
    assert_parity(model.policy.world_model, observations, original, observations, actions, None)
    before = copy.deepcopy(model.policy.world_model.state_dict())
    model.learn(30)  # on from there
    assert model.n_model_updates > SMALL["pretrain_steps"]
    assert not same(before, model.policy.world_model.state_dict())
    assert model.policy.reward_scale.scale == 1


def test_a_loaded_model_counts_as_trained(path: Path) -> None:
    saved(path, LAYOUTS[sorted(LAYOUTS)[0]](Original(0, 3, 2)))
    model = make(policy_kwargs=checkpoint_policy_kwargs(path), termination_coef=0.0, pretrain_steps=0)
    assert model.n_model_updates == 0
    assert model.load_world_model(path).n_model_updates == 1
    Planner(model, n_iterations=1).predict(model.observation_space.sample())


def test_termination_heads_are_read(path: Path) -> None:
    torch.manual_seed(0)
    original = Original(0, 3, 2, termination=True)
    saved(path, new_file(original))
    model = make(policy_kwargs=checkpoint_policy_kwargs(path)).load_world_model(path)
    observations = torch.randn(20, 3)
    with torch.no_grad():
        logits = model.policy.world_model.termination_logits(model.policy.world_model.encode(observations))
        assert_close(logits, original._termination(original.encode(observations)).squeeze(-1), atol=1e-5, rtol=1e-5)


def test_untrained_termination_heads_are_not_read(path: Path) -> None:
    torch.manual_seed(0)
    original = Original(0, 3, 2, termination=True)
    for name, parameter in original._termination.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    assert "termination" not in read_checkpoint(saved(path, new_file(original))).layers


def test_data_statistics_leave_a_published_model_alone(path: Path) -> None:
    """Neither what is collected nor a data set that is taken over gives observations and rewards other scales."""
    original = make_original()
    model = multi_task_model(saved(path, old_file(original))).load_world_model(path).learn(60)
    model.learn_offline(1)
    assert not any(name.startswith("features.") for name in model.policy.world_model.state_dict())
    assert (model.policy.reward_scale.scale == 1).all()
    observations = 30 * torch.randn(5, 9)
    features = model.policy.features({"observation": observations, "task": torch.ones(5, 1)})
    assert_close(features, observations, atol=0, rtol=0)


def test_policy_kwargs_of_a_file(path: Path) -> None:
    kwargs = checkpoint_policy_kwargs(saved(path, new_file(make_original())), TASKS)
    assert kwargs["net_arch"] == {
        "encoder": ENCODER,
        "dynamics": HIDDEN,
        "reward": HIDDEN,
        "termination": [],
        "pi": [400, 200, 100],
        "qf": [400, 200],
    }
    assert (kwargs["latent_dim"], kwargs["reward_bins"], kwargs["task_embedding_dim"]) == (LATENTS, BINS, TASK_DIM)
    assert kwargs["task_set"] == TASKS


def test_from_a_file_and_tdmpc2_data_to_a_policy(path: Path, tmp_path: Path) -> None:
    """The way for one task alone: no other task's data are needed."""
    tensordict = pytest.importorskip("tensordict")
    shape = (3, 9)
    rows = tensordict.TensorDict(
        {
            "obs": torch.randn(*shape, 9),
            "action": 2 * torch.rand(*shape, 4) - 1,
            "reward": torch.rand(shape),
            "task": torch.full(shape, 2),
        },
        batch_size=shape,
    )
    rows["reward"][:, 0] = torch.nan
    torch.save(rows, tmp_path / "chunk_0.pt")
    saved(path, old_file(make_original()))
    own_spaces: Any = spaces_of_task(TASKS, "middle", None)
    data = from_tdmpc2(tmp_path / "chunk_0.pt", 2, *own_spaces)
    options: dict[str, Any] = {
        key: SMALL[key] for key in ("batch_size", "sequence_length", "horizon", "critic_batch_size", "device")
    }
    settings: dict[str, Any] = presets.paper_multi_task("48M", TASKS) | options
    settings["policy_kwargs"] |= checkpoint_policy_kwargs(path, TASKS) | {"task": "middle"}
    model = PWM.from_dataset(data, ExtractedPolicy, **settings)
    before = copy.deepcopy(model.load_world_model(path).policy.world_model.state_dict())
    model.learn_offline(2)
    assert same(before, model.policy.world_model.state_dict())  # it counts as pre-trained
    assert model.predict(np.ones(5, np.float32))[0].shape == (3,)


def change(content: Any, name: str, tensor: Any) -> Any:
    content["model"][name] = tensor
    return content


def without(content: Any, name: str) -> Any:
    del content["model"][name]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda c: without(c, "_dynamics.1.ln.bias"), r"lacks the tensor _dynamics\.1\.ln\.bias"),
        (lambda c: without(c, "_dynamics.1.bias"), r"lacks the tensor _dynamics\.1\.bias"),
        (lambda c: without(c, "_reward.0.weight"), r"lacks the tensor _reward\.0\.weight"),
        (lambda c: without(c, "_task_emb.weight"), r"lacks the tensor _task_emb\.weight"),
        (
            lambda c: {"model": {name: t for name, t in c["model"].items() if not name.startswith("_reward")}},
            r"lacks the tensor _reward\.0\.bias",
        ),
        (
            lambda c: change(c, "_reward.1.weight", torch.ones(13, 15)),
            r"_reward\.1\.weight has the shape \(13, 15\); the other tensors need \(13, 14\)",
        ),
        (
            lambda c: change(c, "_reward.0.weight", torch.ones(14, 32)),
            r"_reward\.0\.weight has the shape \(14, 32\); the other tensors need \(14, 33\)",
        ),
        (
            lambda c: change(c, "_action_masks", torch.ones(2, 4)),
            r"_action_masks has the shape \(2, 4\); the other tensors need \(3, 4\)",
        ),
        (lambda c: change(c, "_dynamics.0.weight", torch.ones(14, 20)), "20 columns, too few to leave any actions"),
        (lambda c: change(c, "_encoder.state.2.bias", torch.ones(23)), "23 outputs, no multiple of 8"),
        (
            lambda c: change(change(c, "_reward.2.bias", torch.ones(1)), "_reward.2.weight", torch.ones(1, 13)),
            "the reward head has one output",
        ),
        (lambda c: change(c, "_reward.0.bias", "text"), r"lacks the tensor _reward\.0\.bias"),
        (lambda c: change(c, "_encoder.rgb.0.weight", torch.ones(3)), r"unknown tensors: _encoder\.rgb\.0\.weight"),
        (lambda c: c | {"obs_rms": {"mean": torch.ones(3)}}, r"running scales \(obs_rms\)"),
        (lambda c: {"model": {"weight": torch.ones(3)}}, "holds no world model"),
        (lambda c: [1, 2], "holds no world model"),
        (
            lambda c: change(c, "_reward.0.weight", Path("x")),
            r"holds objects of the class pathlib\.\S+, which could run",
        ),
    ],
)
def test_files_that_cannot_be_read(content: Callable[..., Any], message: str, path: Path, tmp_path: Path) -> None:
    model = multi_task_model(saved(path, new_file(make_original())))
    before = copy.deepcopy(model.get_parameters())
    bad = saved(tmp_path / "bad.pt", content(new_file(make_original())))
    with pytest.raises(ValueError, match=message):
        model.load_world_model(bad)
    with pytest.raises(ValueError, match=message):
        checkpoint_policy_kwargs(bad, TASKS)
    assert same(before, model.get_parameters())
    assert model.n_model_updates == 0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files(share: float, path: Path) -> None:
    saved(path, new_file(make_original()))
    model = multi_task_model(path)
    before = copy.deepcopy(model.get_parameters())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"cannot read .*published\.pt as a world model"):
        model.load_world_model(path)
    assert same(before, model.get_parameters())


def test_objects_of_pwms_files_are_not_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one foreign class of its files is left as a stand-in."""
    module: Any = type(torch)("pwm.utils.running_mean_std")

    class RunningMeanStd:
        def __init__(self) -> None:
            self.mean = torch.ones(3)

    RunningMeanStd.__module__, RunningMeanStd.__qualname__ = module.__name__, "RunningMeanStd"
    module.RunningMeanStd = RunningMeanStd
    with monkeypatch.context() as patch:
        for name in ("pwm", "pwm.utils", module.__name__):
            patch.setitem(__import__("sys").modules, name, module)
        saved(path, pwm_file(make_original()) | {"ret_rms": RunningMeanStd()})
    with zipfile.ZipFile(path) as archive:
        pickled = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert b"pwm.utils.running_mean_std" in pickled
    assert read_checkpoint(path).n_tasks == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 32}, r"_encoder\.state\.2\.weight gives \S+ the shape \(24, 18\), this model's has \(32, 18\)"),
        ({"task_embedding_dim": 6}, r"_encoder\.state\.0\.weight gives \S+ the shape"),
        ({"reward_bins": 13}, r"_reward\.2\.weight gives reward\.6\.weight the shape \(11, 13\), .* \(13, 13\)"),
        ({"net_arch": {"encoder": [20, 18, 18], "dynamics": HIDDEN, "reward": HIDDEN}}, r"encoder\.0\.6"),
        ({"net_arch": {"encoder": ENCODER, "dynamics": [*HIDDEN, LATENTS], "reward": HIDDEN}}, "it has nothing for"),
        ({"simnorm_dim": 4}, "needs simnorm_dim=8, this model has 4"),
        ({"activation_fn": nn.SiLU}, "needs activation_fn=.*Mish.*this model has .*SiLU"),
        ({"residual_dynamics": True}, "needs residual_dynamics=False, this model has True"),
        ({"latent_layer_norm": False}, "needs latent_layer_norm=True"),
        ({"standardize": True}, "needs standardize=False"),
        ({"n_dynamics": 3}, "needs n_dynamics=1, this model has 3"),
    ],
)
def test_models_that_do_not_fit_a_file(change: dict[str, Any], message: str, path: Path) -> None:
    kwargs = checkpoint_policy_kwargs(saved(path, new_file(make_original())), TASKS)
    model = multi_task_model(policy_kwargs=kwargs | change)
    before = copy.deepcopy(model.get_parameters())
    with pytest.raises(ValueError, match=message):
        model.load_world_model(path)
    assert same(before, model.get_parameters())


def test_the_termination_head_must_not_be_in_use(path: Path) -> None:
    model = multi_task_model(saved(path, new_file(make_original())), termination_coef=1.0)
    with pytest.raises(ValueError, match="needs termination_coef=0, not 1"):
        model.load_world_model(path)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([*TASKS, Task("other", None, 2, 1)], "knows 3 tasks, with 9 observations and 4 actions; the task set has 4"),
        ([TASKS[0], TASKS[2], TASKS[1]], "_action_masks .* gives task 1 4 actions; task 1 of the set, 'middle', has 3"),
        ([TASKS[0], Task("large", None, 10, 4), TASKS[2]], "the task set has 3, with 10 and 4"),
    ],
)
def test_task_sets_that_do_not_fit_a_file(tasks: list[Task], message: str, path: Path) -> None:
    saved(path, new_file(make_original()))
    with pytest.raises(ValueError, match=message):
        checkpoint_policy_kwargs(path, TaskSet(tasks))


def test_models_with_and_without_tasks(path: Path, tmp_path: Path) -> None:
    saved(path, new_file(make_original()))
    with pytest.raises(ValueError, match="knows 3 tasks: give their set"):
        checkpoint_policy_kwargs(path)
    torch.manual_seed(0)
    single = saved(tmp_path / "single.pt", new_file(Original(0, 9, 4)))
    with pytest.raises(ValueError, match="knows 0 tasks, with 9 observations"):
        checkpoint_policy_kwargs(single, TASKS)
    model = make(
        env=space_envs(observation_space=spaces.Box(-1, 1, (8,))), policy_kwargs=checkpoint_policy_kwargs(single)
    )
    model.termination_coef = 0
    with pytest.raises(ValueError, match=r"_encoder\.state\.0\.weight gives \S+ the shape \(20, 9\), .* \(20, 8\)"):
        model.load_world_model(single)
    with pytest.raises(FileNotFoundError):
        model.load_world_model(tmp_path / "none.pt")


# TD-MPC2's sizes (nicklashansen/tdmpc2, common/__init__.py): encoder, other networks, latents, encoder layers, critics.
PUBLISHED = {
    "1M": (256, 384, 128, 2, 2),
    "5M": (256, 512, 512, 2, 5),
    "19M": (1024, 1024, 768, 3, 5),
    "48M": (1792, 1792, 768, 4, 5),
    "317M": (4096, 4096, 1376, 5, 8),
}


def count(sizes: list[int], norms: int) -> int:
    """Parameters of linear layers of these sizes, with LayerNorm behind the first ``norms``."""
    linear = sum(n_in * n_out + n_out for n_in, n_out in itertools.pairwise(sizes))
    return linear + sum(2 * size for size in sizes[1 : 1 + norms])


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size: str) -> None:
    enc_dim, mlp_dim, latent_dim, num_enc_layers, num_q = PUBLISHED[size]
    tasks, observations, actions, task_dim = 80, 39, 6, 96
    hidden = [mlp_dim, mlp_dim]
    encoder = [enc_dim] * max(num_enc_layers - 1, 1)
    expected = tasks * task_dim
    expected += count([observations + task_dim, *encoder, latent_dim], len(encoder) + 1)
    expected += count([latent_dim + task_dim + actions, *hidden, latent_dim], 3)
    head = count([latent_dim + task_dim + actions, *hidden, 101], 2)
    expected += head
    actor_and_critics = num_q * head + count([latent_dim + task_dim, *hidden, 2 * actions], 2)
    # the names say how many millions all of it has
    assert (expected + actor_and_critics) / 1e6 == pytest.approx(float(size[:-1]), rel=0.05, abs=0.5)

    task_set = mt80()
    kwargs = presets.paper_multi_task(size, task_set)["policy_kwargs"]
    kwargs |= {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}  # Adam does not know this device
    with torch.device("meta"):
        policy = MultiTaskPolicy(task_set.observation_space, spaces.Box(-1, 1, (6,)), lambda _: 1e-3, **kwargs)
    model: Any = policy.world_model
    found = sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith(("termination.", "observation."))
    )
    masks = sum(actions * net[0].out_features for net in (model.encoder[0], model.dynamics[0], model.reward))
    assert found - masks == expected


def test_multi_task_preset_learns() -> None:
    small = {"net_arch": [16], "latent_dim": 16, "task_embedding_dim": 4}
    preset = presets.paper_multi_task("1M", TASKS)
    options: dict[str, Any] = SMALL | {"policy_kwargs": preset["policy_kwargs"] | small, "critic_updates": 2}
    model = PWM("MultiTaskPolicy", task_vec_env(TASKS, seed=0), **preset | options).learn(120)
    own = model.extract("middle", 2)
    assert own.critic_kind == "v"
    assert own.bc_coef == 0
    assert (own.policy.world_model.bins.shape, own.policy.standardize) == ((101,), False)
    with pytest.raises(ValueError, match="size='2M': allowed are '1M', '5M'"):
        presets.paper_multi_task("2M", TASKS)


def test_multi_task_preset_does_not_change_the_single_task_one() -> None:
    before = copy.deepcopy(presets.paper_single_task["policy_kwargs"])
    preset = presets.paper_multi_task("48M", mt30())
    assert presets.paper_single_task["policy_kwargs"] == before
    assert (preset["batch_size"], preset["horizon"], preset["gamma"], preset["td_lambda"]) == (512, 16, 0.99, 0.95)
    assert preset["policy_kwargs"]["net_arch"]["pi"] == [400, 200, 100]
