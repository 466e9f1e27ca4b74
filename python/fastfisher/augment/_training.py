# SPDX-License-Identifier: Apache-2.0
"""Self-paced augmentation in a training loop of torch; torch is imported by the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastfisher.augment._selection import Selection, check_rule, mix, select

__all__ = ["SelfPaced"]


class SelfPaced:
    """Augment the samples of each batch whose loss is on one side of a threshold.

    Parameters
    ----------
    augment : callable
        Takes samples (k, ...) and returns as many of the same shape and dtype; see `mix`.
    threshold, quantile, mode
        Which samples; see `select`.
    loss : callable, optional
        Takes outputs and targets and returns one loss a sample, shape (n,), as torch's losses do
        with ``reduction="none"``. By default cross-entropy for targets of an integer dtype, and
        half the squared distance for others.

    Attributes
    ----------
    fractions : list of float
        Share of samples augmented, r_t, batch by batch.
    last : Selection or None
        Choice made for the last batch.

    Raises
    ------
    ValueError, TypeError
        As for `select`, when it is made.

    Notes
    -----
    Losses come from one more forward pass with the current weights, without gradients and with
    every module in evaluation mode: dropout is off, batch normalisation uses and keeps its running
    statistics. The pass leaves modes and torch's random numbers as they were. So a threshold of
    zero trains as augmenting every sample does, and one of infinity as augmenting none does, bit
    for bit. Cost: a forward pass, and a wait for n losses on a GPU.

    Takase, Karakida and Asoh 2021, Self-paced data augmentation for training neural networks
    (Neurocomputing 442; arXiv 2010.15434). The paper compares the loss with a threshold; which
    side and which value is left open here.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
    >>> paced = SelfPaced(lambda x: x + 0.1 * torch.randn_like(x), threshold=0.5)
    >>> loss = paced.step(model, optimizer, x, y)
    >>> len(paced.fractions)
    1
    """

    def __init__(
        self,
        augment: Callable[[Any], Any],
        *,
        threshold: float | None = None,
        quantile: float | None = None,
        mode: Literal["above", "below"] = "above",
        loss: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        check_rule(threshold, quantile, mode)
        for name, value in (("augment", augment), ("loss", _per_sample if loss is None else loss)):
            if not callable(value):
                raise TypeError(f"{name}: expected a function, got {value!r}")
        self.augment, self.loss = augment, _per_sample if loss is None else loss
        self.threshold, self.quantile, self.mode = threshold, quantile, mode
        self.fractions: list[float] = []
        self.last: Selection | None = None

    def __call__(self, model: Any, x: Any, y: Any) -> Any:
        """Batch to train on: `x` with the chosen samples augmented; logs their share.

        Parameters
        ----------
        model : torch.nn.Module or function
            Of `x`.
        x : tensor, shape (n, ...)
            Samples.
        y : tensor, shape (n, ...)
            Targets.

        Returns
        -------
        tensor, shape (n, ...)

        Raises
        ------
        ValueError
            Losses or augmented samples of a wrong shape.
        NonFiniteError
            A loss is NaN or infinite.
        """
        picked = select(
            self.losses(model, x, y),
            threshold=self.threshold,
            quantile=self.quantile,
            mode=self.mode,
        )
        mixed = mix(x, picked.chosen, self.augment)
        self.last = picked
        self.fractions.append(picked.fraction)
        return mixed

    def losses(self, model: Any, x: Any, y: Any) -> Any:
        """Loss of each sample (n,) with the current weights; changes nothing."""
        import torch

        for name, value in (("x", x), ("y", y)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"x: expected at least one sample, got shape {tuple(x.shape)}")
        modules = list(model.modules()) if hasattr(model, "modules") else []
        modes = [module.training for module in modules]
        devices = [x.device] if x.device.type == "cuda" else []
        try:
            # Set flag by flag: train() and eval() may be overridden to do more than that.
            for module in modules:
                module.training = False
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                return self._checked(self.loss(model(x), y), x)
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode

    def step(self, model: Any, optimizer: Any, x: Any, y: Any) -> float:
        """Make one update on the mixed batch.

        Parameters
        ----------
        model, x, y
            As for a call.
        optimizer : torch.optim.Optimizer
            Over the parameters of `model`; its gradients are cleared first.

        Returns
        -------
        float
            Mean loss on the mixed batch, before the update.
        """
        mixed = self(model, x, y)
        optimizer.zero_grad()
        loss = self._checked(self.loss(model(mixed), y), x).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    @staticmethod
    def _checked(values: Any, x: Any) -> Any:
        if tuple(values.shape) != (x.shape[0],):
            raise ValueError(
                f"loss: expected one value a sample, shape ({x.shape[0]},), got "
                f"{tuple(values.shape)}; torch's losses give that with reduction='none'"
            )
        return values


def _per_sample(outputs: Any, y: Any) -> Any:
    import torch

    if y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y: expected classes (integers) or real targets, got dtype {y.dtype}")
    if not y.is_floating_point():
        if outputs.ndim < 2 or outputs.shape[1] < 2:  # one class has no loss, whatever it is
            raise ValueError(
                "y: classes (an integer dtype) need outputs (n, C, ...) with C >= 2, got "
                f"{tuple(outputs.shape)}; expected floating-point targets"
            )
        values = torch.nn.functional.cross_entropy(outputs, y.long(), reduction="none")
        return values.reshape(len(y), -1).mean(1)
    if outputs.shape != y.shape:  # would broadcast to all pairs of samples
        raise ValueError(
            f"y: expected the shape of the outputs, {tuple(outputs.shape)}, got {tuple(y.shape)}"
        )
    return (outputs - y).square().reshape(len(y), -1).sum(1) / 2
