# SPDX-License-Identifier: Apache-2.0
"""T6.6 and T6.7 with the optimiser NGD, reduced."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastfisher.optim import NGD  # noqa: E402
from test_theory_6_training import predictor  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_T6_6_training_follows_theory() -> None:
    """T6.6, reduced: the loss of a wide network falls by (1 - c)^2 a step, for every structure."""
    for structure, tolerance in (("full", 0.1), ("layer", 0.1), ("tridiagonal", 0.15)):
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Linear(50, 1024, bias=False), torch.nn.ReLU(),
            torch.nn.Linear(1024, 1024, bias=False), torch.nn.ReLU(),
            torch.nn.Linear(1024, 1, bias=False),
        ).double()  # fmt: skip
        for module in model[::2]:
            torch.nn.init.normal_(module.weight, std=(2 / module.in_features) ** 0.5)
        x = torch.randn(20, 50).double()
        y = torch.tanh(x @ torch.randn(50, 1).double() / 50**0.5)
        optimizer = NGD(model, c=0.5, structure=structure, relative_damping=1e-9)
        losses = [float(optimizer.step(x=x, y=y)) for _ in range(5)]
        assert losses[4] / losses[0] == pytest.approx(0.5**8, rel=4 * tolerance)
        assert losses[1] / losses[0] == pytest.approx(0.25, rel=tolerance)


class Wide(torch.nn.Module):
    """ReLU network of depth 3 in NTK parameterisation, sigma_w2 = 2, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (50, width, width, 1)
        generator = torch.Generator().manual_seed(4)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(i, o, bias=False, dtype=torch.float64)
            for i, o in itertools.pairwise(widths)
        )
        for layer in self.layers:
            torch.nn.init.normal_(layer.weight, generator=generator)

    def forward(self, x: Any) -> Any:
        for k, layer in enumerate(self.layers):
            x = layer((x if k == 0 else x.relu()) * (2 / layer.in_features) ** 0.5)
        return x


@pytest.mark.parametrize("structure", ["full", "layer"])
def test_T6_7_wider_networks_are_closer(structure: str) -> None:
    """Reduced: the change at other samples tends to kernel regression with the analytic kernel."""
    rng = np.random.default_rng(1000)
    x, z = rng.standard_normal((40, 50)), rng.standard_normal((100, 50))
    y = np.tanh(x @ rng.standard_normal(50) / 50**0.5)[:, None]
    found = predictor(x, z, structure)
    alpha = found.values[-1]
    errors = []
    for width in (256, 2048):
        model = Wide(width)
        inputs, others = torch.from_numpy(x), torch.from_numpy(z)
        with torch.no_grad():
            e, f = model(inputs).numpy() - y, model(others).numpy()
        optimizer = NGD(model, c=0.5, structure=structure, relative_damping=1e-9)
        for _ in range(4):
            optimizer.step(x=inputs, y=torch.from_numpy(y))
        assert optimizer.last["alpha"] == pytest.approx(alpha, rel=1e-9)
        expected = found.prediction_curve(e, lr=0.5 / alpha, steps=4)[-1]
        got = model(others).detach().numpy() - f
        errors.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    assert errors[1] < 0.7 * errors[0]
