# SPDX-License-Identifier: Apache-2.0
"""The isotropic condition as a diagnosis: predictions from ranks, conditions, the cheapest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastfisher as ff

EVERY: tuple[Any, ...] = (
    "full", "layer", "tridiagonal", "kfac", "unit", ("block", 5), "diagonal"
)  # fmt: skip


def network(widths: tuple[int, ...], activation: str = "tanh", **options: Any) -> ff.models.MLP:
    return ff.models.MLP(widths, activation=activation, parameterization="ntk", **options)  # type: ignore[arg-type]


def samples(n: int, m: int, dtype: str = "float64") -> Any:
    return np.random.default_rng(100).standard_normal((n, m)).astype(dtype)


def test_structures_are_told_apart() -> None:
    n = 20
    mlp, x = network((60, 120, 120, 1), sigma_w2=3.0), samples(n, 60)
    found = ff.diagnostics.isotropy(mlp, x, structures=EVERY)
    for structure, alpha in (("full", 1), ("layer", 3), ("tridiagonal", 1), ("kfac", 2 * n + 1)):
        row = found[structure]
        assert row.predicted == alpha
        assert row.alpha == pytest.approx(alpha, rel=1e-3)
        assert row.defect < 1e-3
        assert all(row.conditions.values())
    assert found["unit"].predicted == 241
    assert found["unit"].alpha == pytest.approx(241, rel=0.05)
    assert found["diagonal"].defect > 0.3 > 0.1 > found["unit"].defect
    assert found["diagonal"].condition_number > 2 > found["unit"].condition_number
    for structure in ("diagonal", ("block", 5)):
        assert found[structure].conditions["blocks of N inputs or more"] is False
    assert found["diagonal"].cost < found["unit"].cost
    good = [row for row in found.rows if row.defect <= found.threshold]
    assert found.cheapest == min(good, key=lambda row: row.cost).structure
    strict = ff.diagnostics.isotropy(mlp, x, structures=("diagonal",), threshold=0.01)
    assert strict.cheapest is None
    table = str(found)
    assert table.count("\n") == len(EVERY) + 1
    assert "blocks of N inputs or more" in table
    assert table.endswith(f"cheapest with a defect up to 0.1: {found.cheapest}")


@pytest.mark.parametrize(
    ("widths", "n", "activation"),
    [((15, 200, 200, 1), 30, "relu"), ((40, 90, 90, 3), 10, "relu"), ((40, 90, 2), 10, "tanh")],
    ids=["few inputs", "three outputs", "two layers"],
)
def test_alpha_follows_from_ranks(widths: tuple[int, ...], n: int, activation: str) -> None:
    mlp = network(widths, activation)
    found = ff.diagnostics.isotropy(mlp, samples(n, widths[0]), structures=EVERY[:-2])
    for row in found.rows:
        assert row.alpha == pytest.approx(row.predicted, rel=0.02)
    few = n > widths[0]
    assert found["kfac"].conditions["inputs of each layer of rank N"] is not few
    if few:
        assert found["kfac"].predicted == n * (len(widths) - 3) + widths[0] + 1
        assert found["kfac"].condition_number > 1.1


def test_repeated_samples_take_the_rank_away() -> None:
    x = np.repeat(samples(5, 30), 2, 0)
    found = ff.diagnostics.isotropy(network((30, 60, 60, 1)), x, structures=EVERY[:4])
    assert not any(all(row.conditions.values()) for row in found.rows)
    assert found["full"].predicted == 0.5
    assert found["layer"].predicted == 1.5
    assert found["tridiagonal"].predicted is None
    assert found.cheapest is None
    for structure in ("full", "layer"):
        assert found[structure].alpha == pytest.approx(found[structure].predicted, rel=1e-3)


def test_float32_torch_and_shared_weights() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 2)
    )
    found = ff.diagnostics.isotropy(model, torch.randn(6, 1, 6, 6), structures=EVERY)
    assert found.relative_damping == 1e-4
    assert found["full"].alpha == pytest.approx(1, rel=1e-2)
    assert found["kfac"].predicted is None
    assert found["kfac"].conditions == {"weights used at one position": False}
    assert np.isfinite([row.alpha for row in found.rows]).all()
    assert all(row.cost > 0 for row in found.rows)


@pytest.mark.parametrize("n", [0, 1])
def test_few_samples(n: int) -> None:
    found = ff.diagnostics.isotropy(network((4, 5, 2)), samples(n, 4), structures=EVERY)
    assert all(np.isfinite(row.defect) for row in found.rows)
    assert str(found)


def test_zero_jacobian() -> None:
    """Outputs that no parameter moves: no structure is isotropic, and none is the cheapest."""
    J = ff.Jacobian.from_factors([ff.Dense(np.zeros((4, 3)), np.zeros((4, 1, 5)), bias=True)])
    found = ff.diagnostics.isotropy(J, structures=EVERY)
    for row in found.rows:
        assert (row.alpha == 0 and row.predicted in (0, None)) or row.note
        assert row.defect == np.inf
        assert row.condition_number == np.inf
    assert any(row.alpha == 0 for row in found.rows)
    assert found.cheapest is None
    assert ff.diagnostics.isotropy(J, structures=EVERY, threshold=1e300).cheapest is None
    assert str(found).endswith("cheapest with a defect up to 0.1: None")


def test_structures_are_a_sequence() -> None:
    """Letters of a name are no structures."""
    with pytest.raises(TypeError, match="structures: expected a sequence of names, got 'full'"):
        ff.diagnostics.isotropy(network((4, 5, 1)), samples(3, 4), structures="full")


def test_mistakes() -> None:
    mlp, x = network((4, 5, 1)), samples(3, 4)
    for options, match in (
        ({"threshold": -1.0}, "threshold"),
        ({"relative_damping": -1.0}, "relative_damping"),
        ({"structures": ("ekfac2",)}, "structure"),
        ({"structures": ("ekfac",)}, "structures: expected names among"),
        ({"structures": (("block", "2"),)}, r"\('block', b\) with an integer b >= 1"),
        ({"threshold": None}, "threshold: expected a number"),
    ):
        with pytest.raises(ValueError, match=match):
            ff.diagnostics.isotropy(mlp, x, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: expected None"):
        ff.diagnostics.isotropy(mlp.jacobian(x), x)
    with pytest.raises(TypeError, match="unexpected with a Jacobian: verify"):
        ff.diagnostics.isotropy(mlp.jacobian(x), verify=True)
    with pytest.raises(KeyError, match="expected one of"):
        ff.diagnostics.isotropy(mlp, x, structures=("full",))["layer"]
