import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sb3_pwm.compute.precision import FullPrecisionLinear
from sb3_pwm.nn.layers import Mish, SimNorm, mlp, orthogonal_init, truncated_normal_init


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mish_is_torch_mish(dtype: Any) -> None:
    values = [-1000, -88, -30, -3, -0.1, 0, 0.1, 3, 19.99, 20, 20.01, 88, 1000]
    x, same = (torch.tensor(values, dtype=dtype, requires_grad=True) for _ in range(2))
    assert_close(Mish()(x), F.mish(same))
    Mish()(x).sum().backward()
    F.mish(same).sum().backward()
    assert_close(x.grad, same.grad)
    assert_close(x.detach(), torch.tensor(values, dtype=dtype))  # nothing was changed in place
    assert Mish()(torch.tensor(math.nan)).isnan()
    assert Mish()(torch.tensor(math.inf)) == math.inf


def test_gradient_of_mish() -> None:
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Mish(), x)


def test_simnorm_by_hand() -> None:
    # two groups of two: features 0 and 2, features 1 and 3; softmax(0, log 3) = (1/4, 3/4)
    x = torch.tensor([[0, 5, math.log(3), 5]])
    assert_close(SimNorm(2)(x), torch.tensor([[0.25, 0.5, 0.75, 0.5]]))


@pytest.mark.parametrize(("group_size", "features"), [(1, 3), (4, 4), (2, 8), (8, 96)])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_simnorm_groups_are_strided_simplices(group_size: int, features: int, leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, features)
    y = SimNorm(group_size)(x)
    assert y.shape == x.shape
    n_groups = features // group_size
    for group in range(n_groups):
        members = [i for i in range(features) if i % n_groups == group]
        assert len(members) == group_size
        assert_close(y[..., members], x[..., members].softmax(-1))
        assert_close(y[..., members].sum(-1), torch.ones(leading))


@pytest.mark.parametrize(
    ("norm_after_activation", "expected"),
    [
        (False, [nn.Linear, nn.LayerNorm, nn.Mish, nn.Linear, nn.LayerNorm, nn.Mish, nn.Linear]),
        (True, [nn.Linear, nn.Mish, nn.LayerNorm, nn.Linear, nn.Mish, nn.LayerNorm, nn.Linear]),
    ],
)
def test_mlp_order(norm_after_activation: bool, expected: list[Any]) -> None:
    net = mlp(3, [4, 5], 2, nn.Mish, norm_after_activation=norm_after_activation, full_precision_output=False)
    assert [type(layer) for layer in net] == expected
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(net)] == [(3, 4), (4, 5), (5, 2)]
    assert net(torch.zeros(6, 7, 3)).shape == (6, 7, 2)


def test_mlp_with_a_norm_behind_its_last_layer() -> None:
    net = mlp(3, [4], 2, nn.Mish, norm_output=True)
    assert [type(layer) for layer in net] == [nn.Linear, nn.LayerNorm, nn.Mish, FullPrecisionLinear, nn.LayerNorm]
    assert_close(net(torch.randn(6, 3)).mean(-1), torch.zeros(6), atol=1e-6, rtol=0)


def test_mlp_without_hidden_layers_is_linear() -> None:
    net = mlp(3, [], 2)
    assert [type(layer) for layer in net] == [FullPrecisionLinear]


def test_truncated_normal_init() -> None:
    net = mlp(200, [200], 200)
    truncated_normal_init(net)
    for layer in linear_layers(net):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert abs(layer.weight.mean().item()) < 5 * 0.02 / 200
        assert (layer.bias == 0).all()


def test_orthogonal_init() -> None:
    net = mlp(6, [5, 4], 3)
    orthogonal_init(net, last_gain=0.1)
    # W W^T = gain^2 I
    for layer, gain in zip(linear_layers(net), [2**0.5, 2**0.5, 0.1], strict=True):
        assert_close(layer.weight @ layer.weight.T, gain**2 * torch.eye(layer.out_features), atol=1e-5, rtol=0)
        assert (layer.bias == 0).all()
