# SPDX-License-Identifier: Apache-2.0
"""K-FAC by other libraries of torch: the same estimate, inverses and one preconditioned gradient.

Each rival is a function (model, x, y, gradient, kind, damping) -> vector (P,) in the order of the
parameters, with the damping split by the traces of the factors. `missing` says why one is not
there. kfac-jax runs in a process of another interpreter (`kfac_jax_worker`): it needs a jax that
nobody else here takes.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

import fastfisher as ff

Rival = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, str, float], torch.Tensor]
OURS = "fastfisher"
_KINDS = {"mc": "fisher_mc", "exact": "fisher_exact", "empirical": "fisher_emp"}


def ours(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor, kind: str, damping: float
) -> torch.Tensor:
    """`ff.fisher` and one solve, as after the first steps of a training loop."""
    matrix = ff.fisher(
        model, x, y if kind == "empirical" else None, likelihood="categorical", kind=kind,
        structure="kfac", verify=False,
    )  # fmt: skip
    found: torch.Tensor = matrix.solve(g, damping=damping, split="pi")
    return found


def curvlinops(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor, kind: str, damping: float
) -> torch.Tensor:
    """`KFACInverseLinearOperator` of weights joined with their biases, checks off."""
    package = importlib.import_module("curvlinops")
    parameters = list(model.parameters())
    factors = package.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(x, y)],
        fisher_type={"exact": "type-2"}.get(kind, kind), check_deterministic=False,
        separate_weight_and_bias=False, num_data=len(x), num_per_example_loss_terms=1,
    )  # fmt: skip
    inverse = package.KFACInverseLinearOperator(
        factors, damping=damping, use_heuristic_damping=True
    )
    found = inverse @ _split(g, parameters)
    return torch.cat([p.detach().reshape(-1) for p in found])


def nngeometry(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor, kind: str, damping: float
) -> torch.Tensor:
    """`PMatKFAC.inverse` and a product; it has no empirical kind."""
    if kind == "empirical":
        raise NotImplementedError("it has no empirical kind")
    metrics = importlib.import_module("nngeometry.metrics")
    objects = importlib.import_module("nngeometry.object")
    layers = importlib.import_module("nngeometry.layercollection").LayerCollection.from_model(model)
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(
        data, batch_size=len(x), collate_fn=lambda _: (x.clone(), y)
    )
    make = metrics.FIM_MonteCarlo if kind == "mc" else metrics.FIM
    matrix = make(
        model=model, loader=loader, representation=objects.PMatKFAC, variant="classif_logits",
        layer_collection=layers,
    )  # fmt: skip
    vector = objects.PVector(layer_collection=layers, vector_repr=g)
    found = matrix.inverse(regul=damping, use_pi=True).mv(vector)
    return found.to_torch().detach()


def asdl(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor, kind: str, damping: float
) -> torch.Tensor:
    """Factors of the Fisher maker, Cholesky inverses; a bias gets the inverse of G alone."""
    fisher = importlib.import_module("asdl.fisher")
    maker = fisher.get_fisher_maker(
        model,
        fisher.FisherConfig(
            fisher_type=_KINDS[kind], fisher_shapes="kron", loss_type="cross_entropy"
        ),
    )
    dummy = maker.setup_model_call(model, x)
    maker.setup_logits_repr(dummy)
    maker.setup_loss_call(nn.functional.cross_entropy, dummy, y, reduction="sum")
    maker.forward_and_backward(data_size=len(x))
    start, parts = 0, []
    for module in model:
        if not isinstance(module, nn.Linear):
            continue
        o, i = module.weight.shape
        weight = g[start : start + o * i].reshape(o, i)
        bias = g[start + o * i : start + o * i + o]
        module.fisher.kron.update_inv(damping)
        parts += module.fisher.kron.mvp(weight, bias, use_inv=True)
        start += o * i + o
    maker.zero_fisher()
    return torch.cat([p.detach().reshape(-1) for p in parts])


class KfacJax:
    """The rival in a process of its own, which times itself; `python` has jax and kfac_jax."""

    def __init__(self, python: str, model: nn.Module, damping: float) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("kfac_jax_worker.py")), self.folder.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        weights = {str(k): p.detach().numpy() for k, p in enumerate(model.parameters())}
        np.savez(Path(self.folder.name) / "weights.npz", **weights)
        self.version = self._ask(damping=damping)["version"]

    def load(self, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> None:
        """Hand over a batch and a gradient."""
        np.savez(Path(self.folder.name) / "batch.npz", x=x.numpy(), y=y.numpy(), g=g.numpy())

    def result(self, kind: str, labels: torch.Tensor | None) -> torch.Tensor:
        """Vector (P,), with given labels in place of drawn ones; compiles what is timed later."""
        if labels is not None:
            np.save(Path(self.folder.name) / "labels.npy", labels.numpy())
        self._ask(kind=kind, fixed=labels is not None)
        return torch.from_numpy(np.load(Path(self.folder.name) / "result.npy"))

    def seconds(self, kind: str) -> float:
        """Wall time of one refresh."""
        return float(self._ask(kind=kind)["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.folder.cleanup()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"kfac-jax: its process ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def drawn(labels: torch.Tensor) -> Iterator[None]:
    """Make everyone here draw these labels (N,)."""

    def multinomial(p: torch.Tensor, num_samples: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert len(p) == len(labels)
        assert num_samples == 1
        return labels[:, None].clone()

    def sample(self: Any, f: Any, rng: Any) -> Any:
        return labels.numpy().copy()

    with (
        mock.patch.object(torch, "multinomial", multinomial),
        mock.patch.object(torch.Tensor, "multinomial", multinomial),
        mock.patch.object(ff.likelihoods.Categorical, "sample", sample),
    ):
        yield


def present() -> tuple[dict[str, Rival], dict[str, str]]:
    """Rivals that can be imported, and why the others cannot."""
    everyone: dict[str, tuple[str, Rival]] = {
        "ASDL": ("asdl", asdl),
        "curvlinops": ("curvlinops", curvlinops),
        "nngeometry": ("nngeometry", nngeometry),
    }
    found: dict[str, Rival] = {}
    missing = {}
    for name, (module, rival) in everyone.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # an old library may fail in any way
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = rival
    return found, missing


def _split(g: torch.Tensor, parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    parts = g.split([p.numel() for p in parameters])
    return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]
