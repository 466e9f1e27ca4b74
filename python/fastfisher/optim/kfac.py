# SPDX-License-Identifier: Apache-2.0
"""K-FAC as an optimiser of torch, or as a preconditioner of another one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Literal

import torch

from fastfisher._numbers import integer
from fastfisher._pool import Pool
from fastfisher.likelihoods import Likelihood, likelihood_of
from fastfisher.optim._adapt import DampingRule
from fastfisher.optim._blocks import (
    Fault,
    State,
    invert,
    restored,
    restored_mean,
    saved,
    saved_mean,
    sizes_of,
    times_inverses,
)
from fastfisher.optim._curvature import Curvature
from fastfisher.optim._factors import Collector
from fastfisher.optim._options import (
    Groups,
    count,
    function_or_none,
    groups_of,
    member,
    module_of,
    names_of,
    number,
    own_state,
)
from fastfisher.optim._preconditioned import Preconditioned
from fastfisher.optim._sites import Site, find_sites

__all__ = ["KFAC"]

_FACTORED = 3
"""Most steps between inversions for which Cholesky factors are kept instead of inverses. They take
a third of the time to make; a product with them takes a tenth longer, in each step."""


class KFAC(Preconditioned):
    """Natural gradient with Kronecker factors, ``W <- W - lr (G + rho_G)^-1 V (A + rho_A)^-1``.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU or a GPU, all of it on one device; not compiled. Factors of its linear,
        convolution and embedding layers are collected by hooks while its ordinary forward and
        backward passes run.
    params : iterable of tensors or of groups, optional
        Parameters of the model to train, as torch takes them. Groups may have their own ``lr``,
        ``momentum``, ``weight_decay`` and ``decoupled``.
    lr : float
        Learning rate.
    kind : "empirical" | "mc" | "exact"
        Which Fisher matrix. ``empirical``: gradients of the loss, no extra pass. ``mc``: of labels
        drawn from the model, one more backward pass to the layers. ``exact``: of all outputs, as
        many passes as the likelihood has columns. The last two need a `likelihood`, and the hook of
        the model runs them before the model returns.
    likelihood : "gaussian" | "categorical" | "bernoulli" | Likelihood, optional
        What the loss is the negative logarithm of, for "mc" and "exact".
    damping : float
        rho, in units of the curvature, loss / parameter^2.
    split : "pi" | "plain"
        How rho goes to both factors: ``sqrt(rho) pi`` and ``sqrt(rho) / pi`` with the ratio pi^2 of
        their mean eigenvalues (Martens and Grosse 2015, section 6.3), or rho to each.
    adaptive : bool
        Levenberg-Marquardt rule for the damping every fifth step (section 6.5 there); needs
        ``step(closure)``, which evaluates the closure once more then.
    ema_decay : float
        Of the running means of the factors, at least 0 and below 1; corrected for their start.
    factor_every, inverse_every : int
        Steps between estimates of factors, and between their inverses.
    momentum : float
        Of the preconditioned gradients, at least 0 and below 1.
    weight_decay : float
    decoupled : bool
        Whether weight decay shrinks parameters by ``1 - lr weight_decay``, or is added to their
        gradients before these are preconditioned.
    kl_clip : float or None
        Norm constraint: steps d are shrunk so that ``lr^2 sum of d times gradient`` is at most
        that, a trust region in units of the loss (Ba, Grosse and Martens 2017). None: no bound;
        then the first steps, which have factors of few samples, may diverge.
    weight_sharing : "expand" | "reduce"
        As in `fastfisher.fisher`, for weights used at several positions.
    others : "gradient" | "diagonal"
        What parameters without factors get: their gradient, or the gradient over the running mean
        of N times its square plus rho, which estimates the diagonal of the empirical Fisher matrix.
    loss_reduction : "mean" | "sum"
        What the loss is over the samples of all passes between two steps. With accumulated
        gradients "mean" asks for losses that are divided by the number of passes, as usual.
    batch_axes : int
        Leading axes of the outputs that count samples: 2 for tokens of a language model.
    select : callable, optional
        From what the model returns to the tensor of outputs.
    draws, seed : int
        Labels drawn for each sample by "mc", and the seed.
    exclude : collection of str
        Modules or parameters that get no factors.
    max_dim : int
        Largest side of a factor; larger layers get none.
    on_nonfinite : "raise" | "skip"
        What NaN or infinity in gradients, inputs or outputs does. Skipped steps change nothing, the
        running means least of all, and are counted in `skipped`.
    grad_scaler : torch.amp.GradScaler, optional
        Needed for "empirical" where gradients are unscaled before the scaler's step, to clip them,
        and with `precondition`; otherwise the scaler's own step says the scale.

    Attributes
    ----------
    treated : dict of str to str
        How each parameter is treated.
    faults : list of Fault
        Factors that could not be inverted; each also warns.
    damping : float
    skipped, steps : int

    Raises
    ------
    ValueError, TypeError
        Options that do not fit, a compiled model, a layer with a gradient whose factors are
        missing.
    NonFiniteError
        See `on_nonfinite`.

    Notes
    -----
    ``A = mean of a a^T``, ``G = N sum of g g^T`` with the gradients g of the mean loss; the block
    of a layer is ``G (x) A`` (Martens and Grosse 2015; convolutions Grosse and Martens 2016; shared
    weights Eschenhagen et al. 2023). Inverses are made all in one call, on the CPU with
    ``inverse_every <= 3`` as Cholesky factors; what fails leaves its layer at its last good one.
    Weights used also outside of the modules that own them (a functional call) have the factors of
    these modules only, and so have losses with gradients of gradients only what reaches the outputs
    of layers. Per step n^3 / 2 multiply-adds for an inverse, n^3 / 6 for a Cholesky factor, n^2 a
    sample for a factor, o i (o + i) for a layer's gradient.

    On a GPU everything stays there: a step waits for it to read whether gradients, inputs, factors
    and updates are finite, the traces for the "pi" split, and what the inverses say of themselves.
    Indices of embeddings are copied to the host; random numbers of "mc" come from there.

    Examples
    --------
    >>> import torch
    >>> import fastfisher as ff
    >>> torch.manual_seed(0) and None
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
    >>> optimizer = ff.optim.KFAC(model, lr=0.3, kind="mc", likelihood="categorical")
    >>> losses = []
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.cross_entropy(model(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    ...     losses.append(loss.item())
    >>> losses[-1] < 0.8 * losses[0]
    True

    Before the step of another optimiser:

    >>> adam = torch.optim.Adam(model.parameters())
    >>> kfac = ff.optim.KFAC(model)
    >>> torch.nn.functional.cross_entropy(model(x), y).backward()
    >>> kfac.precondition()
    >>> adam.step()
    """

    _needs_records: ClassVar[bool] = False

    def __init__(
        self,
        model: torch.nn.Module,
        params: Groups = None,
        *,
        lr: float = 0.1,
        kind: Literal["empirical", "mc", "exact"] = "empirical",
        likelihood: str | Likelihood | None = None,
        damping: float = 1e-3,
        split: Literal["pi", "plain"] = "pi",
        adaptive: bool = False,
        ema_decay: float = 0.95,
        factor_every: int = 1,
        inverse_every: int = 1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        kl_clip: float | None = 1e-3,
        weight_sharing: Literal["expand", "reduce"] = "expand",
        others: Literal["gradient", "diagonal"] = "gradient",
        loss_reduction: Literal["mean", "sum"] = "mean",
        batch_axes: int = 1,
        select: Callable[[Any], torch.Tensor] | None = None,
        draws: int = 1,
        seed: int = 0,
        exclude: Collection[str] = (),
        max_dim: int = 8192,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        grad_scaler: Any = None,
    ) -> None:
        self.model = module_of(model)
        refuse_compiled(model)
        member("kind", kind, ("empirical", "mc", "exact"))
        if (likelihood is None) != (kind == "empirical"):
            got = "None" if likelihood is None else "one"
            expected = "one" if likelihood is None else "None"
            raise ValueError(f"likelihood: expected {expected} with kind={kind!r}, got {got}")
        self.split = member("split", split, ("pi", "plain"))
        self.factor_every = count("factor_every", factor_every)
        self.inverse_every = count("inverse_every", inverse_every)
        self.kl_clip = None if kl_clip is None else number("kl_clip", kl_clip, above=True)
        self.others = member("others", others, ("gradient", "diagonal"))
        self.on_nonfinite = member("on_nonfinite", on_nonfinite, ("raise", "skip"))
        if grad_scaler is not None and not hasattr(grad_scaler, "get_scale"):
            raise TypeError(f"grad_scaler: expected a GradScaler, got {grad_scaler!r}")
        self.grad_scaler = grad_scaler
        self.rule = DampingRule(number("damping", damping), adaptive=bool(adaptive))
        decay = number("ema_decay", ema_decay)
        for name, value in (("ema_decay", decay), ("momentum", number("momentum", momentum))):
            if value >= 1:
                raise ValueError(f"{name}: expected a number below 1, got {value!r}")
        defaults = {
            "lr": number("lr", lr),
            "momentum": float(momentum),
            "weight_decay": number("weight_decay", weight_decay),
            "decoupled": bool(decoupled),
        }
        groups = groups_of(self.model, params)
        trained = names_of(self.model, groups)
        sites, why = find_sites(self.model, trained, exclude, count("max_dim", max_dim))
        self.treated = {
            name: f"{others}: {why[name]}" if name in why else "factors" for name in trained
        }
        collector = Collector(
            self.model, sites, kind, None if likelihood is None else likelihood_of(likelihood),
            select=function_or_none("select", select),
            batch_axes=count("batch_axes", batch_axes), draws=count("draws", draws),
            seed=integer("seed", seed, least=0),
        )  # fmt: skip
        self.pool = Pool()
        self.curvature = Curvature(
            collector, sites,
            decay=decay,
            sharing=member("weight_sharing", weight_sharing, ("expand", "reduce")),
            mean=member("loss_reduction", loss_reduction, ("mean", "sum")) == "mean",
            keep_records=self._needs_records,
        )  # fmt: skip
        self.faults: list[Fault] = []
        self.steps = self.skipped = 0
        super().__init__(groups, defaults)

    @property
    def damping(self) -> float:
        """rho, as it is now."""
        return self.rule.damping

    def state_dict(self) -> dict[str, Any]:
        """State of torch's optimisers, and factors, inverses, damping and counts of this one."""
        names = {p: name for name, p in self.model.named_parameters()}
        own = {
            "type": type(self).__name__,
            "steps": self.steps,
            "skipped": self.skipped,
            "damping": self.rule.damping,
            "estimates": self.curvature.collector.estimates,
            "samples": self.curvature.samples,
            "sites": {site.names[0]: saved(one) for site, one in self.curvature.states.items()},
            "seconds": {names[p]: saved_mean(one) for p, one in self.curvature.seconds.items()},
        }
        return {**super().state_dict(), "kfac": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; training goes on bit for bit.

        Not on a processor with other kernels: Cholesky factors of another form are left out, and
        made of the running means in the next step.
        """
        own = state_dict.get("kfac")
        if own is None or own["type"] != type(self).__name__:
            got = "none of its state" if own is None else f"one of {own['type']}"
            raise ValueError(f"state_dict: expected one of {type(self).__name__}, got {got}")
        sites = {site.names[0]: site for site in self.curvature.sites}
        for name, one in own["sites"].items():
            if name not in sites:
                raise ValueError(f"state_dict: factors of {name!r}, which has none here")
            found, expected = sizes_of(one), sites[name].sizes
            if found is not None and found != expected:
                raise ValueError(
                    f"state_dict: expected factors of {expected[0]} inputs and {expected[1]} "
                    f"outputs for {name!r}, got some of {found[0]} and {found[1]}"
                )
        super().load_state_dict({key: v for key, v in state_dict.items() if key != "kfac"})
        self.steps, self.skipped = int(own["steps"]), int(own["skipped"])
        self.rule.damping = float(own["damping"])
        self.curvature.collector.estimates = int(own["estimates"])
        self.curvature.samples = int(own["samples"])
        named = dict(self.model.named_parameters())
        self.curvature.seconds = {
            named[name]: restored_mean(one, named[name].device)
            for name, one in own["seconds"].items()
        }
        self.curvature.states = {
            sites[name]: restored(one, sites[name].weight.device)
            for name, one in own["sites"].items()
        }
        self.curvature.drop(self._due())

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and files all but passes under way; a copy follows the copied model."""
        return {**super().__getstate__(), "own": own_state(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a copied state, or one of torch's."""
        self.__dict__.update(state.get("own", {}))
        super().__setstate__({k: v for k, v in state.items() if k != "own"})

    def remove_hooks(self) -> None:
        """Take all hooks off the model; factors stay as they are from then on."""
        self.curvature.collector.remove()

    def _refresh(self) -> None:
        """Invert factors where that is due, or a layer has no inverse yet."""
        states = self.curvature.states
        if self.steps % self.inverse_every:
            states = {site: one for site, one in states.items() if not self._ready(one)}
        if states:
            self._reported(
                invert(
                    states, self.damping, self.split, self.steps,
                    factored=self.inverse_every <= _FACTORED,
                )
            )  # fmt: skip

    def _ready(self, state: State) -> bool:
        return state.ready

    def _solved(
        self, ready: list[tuple[Site, State]], slopes: dict[torch.Tensor, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Precondition the gradients of sites: pairs (parameter, direction)."""
        return times_inverses(ready, slopes)

    def _reported(self, faults: list[Fault]) -> None:
        self.faults += faults
        for one in faults:
            warnings.warn(
                f"layer {one.layer!r}, factor {one.factor}, step {one.step}: {one.reason}; goes on "
                f"with its {one.fallback}",
                RuntimeWarning,
                stacklevel=2,
            )


def refuse_compiled(model: torch.nn.Module) -> None:
    """Refuse modules whose hooks do not run one by one."""
    for name, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"model: expected one that is not compiled, got a compiled {name or 'model'!r}; "
                "its layers' hooks do not run. Pass the module that it was made from, and train "
                "that one"
            )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            raise ValueError(f"model: expected one process, got {world}: factors are not reduced")
