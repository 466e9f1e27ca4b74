# SPDX-License-Identifier: Apache-2.0
"""Words, pictures and tables of Fig. 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastfisher.plot import plot_methods, plot_training_curves
from fastfisher.report._compare import Comparison, comparison_table
from fastfisher.report._section import Figure, Plot, Table, Text
from fastfisher.report.binary import BinarySplit
from fastfisher.report.sections._fig3_runs import BLOCK_SAMPLES, BLOCK_WIDTHS, GRADIENT, NEAR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLOCKS", "NAMES", "PUBLISHED", "Results", "blocks"]

Floats = NDArray[np.float64]
Found = dict[str, Floats]
SIZE = (5.6, 4.2)
UNIT = "(output²)"

NAMES: dict[str, str] = {
    "full": "exact",
    "layer": "layer-wise",
    "tridiagonal": "block tri-diagonal",
    "kfac": "K-FAC",
    "unit": "unit-wise",
    GRADIENT: "gradient descent",
}
# Inputs of a unit in a block: as many as samples, half, a fifth, a tenth, one.
BLOCKS = (30, 15, 6, 3, 1)
# Exact natural gradient in the public code of Karakida and Osawa (2020): MNIST 0 and 1, width 4096,
# learning rate 1, losses after 0, 1 and 2 steps.
PUBLISHED = {"train": [0.1343, 2.03e-4, 1.35e-7], "test": [0.1284, 0.00423, 0.00402]}


class Results(NamedTuple):
    """What the page shows."""

    pairs: dict[str, BinarySplit]
    found: dict[str, dict[str, Found]]
    row: Found
    coarse: dict[int, Found]
    rows: Sequence[Comparison]
    width: int
    row_width: int
    scale: float


def blocks(results: Results) -> tuple[Text | Figure | Table, ...]:
    """Describe the section."""
    steps = next(iter(results.found["digits"].values()))["train"].shape[1] - 1
    return (
        Text(
            "Each method updates the parameters by &minus;&eta; G<sup>&minus;1</sup> &nabla;E with "
            "its own approximation G of the Fisher matrix. In wide networks all of those with "
            "&Theta;<sub>G</sub> = J G<sup>&minus;1</sup> J<sup>T</sup> / N = &alpha; I (see the "
            "section on the isotropic condition) fit the training samples in the same way, "
            "f<sub>t</sub> = y + (1 &minus; &alpha;&eta;)<sup>t</sup> (f<sub>0</sub> &minus; y), "
            "whatever the data; gradient descent is held up by the small eigenvalues of the "
            "tangent kernel. At other samples the methods differ: each ends at the regression of a "
            "kernel of its own."
        ),
        *(_figure(results, data, steps) for data in results.found),
        _published(results),
        Figure(
            (
                Plot(
                    "blocks",
                    "Training loss against steps for blocks of fewer and fewer inputs of a unit.",
                    _coarse(results.coarse),
                    SIZE,
                ),
            ),
            "Over-coarse approximations: blocks of 30 to 1 inputs of each unit, "
            f"{BLOCK_SAMPLES} Gaussian samples, ReLU network "
            f"({', '.join(map(str, BLOCK_WIDTHS))}), random targets at {NEAR:g} from the first "
            "outputs, &eta; = 1 / &lambda;<sub>max</sub>(&Theta;<sub>G</sub>). With fewer inputs "
            "in a block than samples the isotropic condition fails and the slowest mode shrinks by "
            "1 &minus; 1/&kappa; only, &kappa; the condition number of &Theta;<sub>G</sub>. Marks: "
            "networks. Dashed: linear theory from the first Jacobian.",
        ),
        comparison_table(
            f"Losses after {steps} steps at &eta; = {results.scale:g} / &alpha;, width "
            f"{results.width}; theory: kernels of infinite width, from each network's own first "
            "outputs. At finite width the kernels change by O(M<sup>&minus;1/2</sup>) during the "
            "first steps, most with K-FAC.",
            results.rows,
        ),
    )


def _figure(results: Results, data: str, steps: int) -> Figure:
    pair, each = results.pairs[data], results.found[data]
    networks = len(next(iter(each.values()))["train"])
    name = data.lower()
    return Figure(
        (
            Plot(
                f"{name}-train",
                f"Training loss against steps, {data}, with theory.",
                _curves(each, "train"),
                SIZE,
            ),
            Plot(
                f"{name}-test",
                f"Test loss against steps, {data}, with theory.",
                _curves(each, "test"),
                SIZE,
            ),
            Plot(
                f"{name}-kernels",
                f"Last test loss of each method beside its kernel regression, {data}.",
                _limits(each, steps),
                SIZE,
            ),
        ),
        f"{_title(results, data)}: {len(pair.x)} to train, {len(pair.test_x)} to test, "
        f"{pair.x.shape[1]} inputs. ReLU networks of three layers of width {results.width} without "
        f"biases, &sigma;<sub>w</sub><sup>2</sup> = 2, {_count(networks)}; &eta; = "
        f"{results.scale:g} / &alpha;, gradient descent {results.scale:g} / "
        "&lambda;<sub>max</sub>(&Theta;/N). Left: all isotropic methods share one line of theory "
        "(grey). Middle: marks networks, dashed kernels of infinite width (grey where two "
        "coincide); unit-wise blocks have no such limit at other samples, their marks are "
        "joined. Right: test loss after the last step beside the method's kernel regression "
        "(infinitely many steps), which gradient descent is far from.",
    )


def _title(results: Results, data: str) -> str:
    title = results.pairs[data].title
    return f"digits 0 and 1 of {title}" if data == "digits" else title


def _count(networks: int) -> str:
    return "one network" if networks == 1 else f"means over {networks} networks"


def _curves(each: dict[str, Found], kind: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_training_curves(
            {NAMES[name]: one[kind].mean(0) for name, one in each.items()},
            predicted={
                NAMES[name]: one[f"{kind}_predicted"].mean(0)
                for name, one in each.items()
                if np.isfinite(one[f"{kind}_predicted"]).all()
            },
            label=f"{'training' if kind == 'train' else 'test'} loss  {UNIT}",
            ax=ax,
        )

    return draw


def _limits(each: dict[str, Found], steps: int) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        plot_methods(
            {NAMES[name]: one["test"][:, -1] for name, one in each.items()},
            predicted={
                NAMES[name]: float(one["limit"].mean())
                for name, one in each.items()
                if np.isfinite(one["limit"]).all()
            },
            label=f"test loss after {steps} steps  {UNIT}",
            theory="kernel regression",
            ax=ax,
        )

    return draw


def _coarse(coarse: dict[int, Found]) -> Callable[[Axes], None]:
    named = {f"{block}: κ = {float(one['condition']):.3g}": one for block, one in coarse.items()}

    def draw(ax: Axes) -> None:
        plot_training_curves(
            {name: one["train"] for name, one in named.items()},
            predicted={name: one["train_predicted"] for name, one in named.items()},
            label=f"training loss  {UNIT}",
            ax=ax,
        )

    return draw


def _published(results: Results) -> Table:
    row = results.row
    off = row["test"] - row["test_predicted"]

    def cells(step: int) -> tuple[str, ...]:
        spread = f" ± {off[:, step].std(ddof=1):.1g}" if len(off) > 1 else ""
        return (
            str(step),
            f"{row['train'][:, step].mean():.3g}",
            f"{row['train_predicted'][:, step].mean():.3g}",
            f"{PUBLISHED['train'][step]:.3g}",
            f"{row['test'][:, step].mean():.4g}{spread}",
            f"{row['test_predicted'][:, step].mean():.4g} ± "
            f"{row['test_sampling'][:, step].mean():.1g}",
            f"{row['test'][:, step].mean() / row['test_predicted'][:, step].mean():.3f}",
            f"{PUBLISHED['test'][step]:.3g}",
        )

    return Table(
        f"Exact natural gradient at &eta; = 1 / &alpha; on {_title(results, 'digits')}, width "
        f"{results.row_width}, {_count(len(off))}; &plusmn; of the network: deviation of "
        "measured &minus; infinite width over networks, of infinite width: sampling error of so "
        "few test images. Published: the public code of Karakida and Osawa (2020) at "
        "width 4096, other images of MNIST.",
        (
            "step",
            "training loss",
            "infinite width",
            "published",
            "test loss",
            "infinite width",
            "ratio",
            "published",
        ),
        tuple(cells(step) for step in range(row["test"].shape[1])),
    )
