# SPDX-License-Identifier: Apache-2.0
"""From a model and samples to its Jacobian and its empirical neural tangent kernel ``J J^T``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from fastfisher._arrays import Array
from fastfisher._batches import joined
from fastfisher._extras import require
from fastfisher._gram import Method, Precision
from fastfisher._gram_checks import Outputs
from fastfisher._jacobian import Jacobian
from fastfisher.models import MLP

Params = Sequence[str] | str | Callable[[str], bool] | None
Select = Callable[[Any], Array] | None
Samples = Array | Mapping[str, Array] | Iterable[Any]


def jacobian(
    model: Any,
    x: Samples,
    *,
    select: Select = None,
    params: Params = None,
    verify: bool = True,
) -> Jacobian:
    """Jacobian of all outputs of `model` for the samples `x`, as factors.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters) or fastfisher.models.MLP
        The model; with a pair, ``function(parameters, x)`` with a dict of torch tensors.
    x : array, mapping or iterable
        Samples, on the first axis. For torch models a tensor, a mapping of keyword arguments, or
        an iterable of batches such as a DataLoader (of each tuple the first entry counts).
    select : callable, optional
        From what the model returns to the tensor of outputs (N, ...), whose further axes are
        flattened into C.
    params : str, sequence of str or callable, optional
        Parameters that count: names, prefixes of names, or a predicate of the name. Parameters that
        do not require grad never count.
    verify : bool
        Whether to prove the capture: ``J^T u`` of the first samples against autograd's gradient.

    Returns
    -------
    Jacobian
        (N*C) x P, in the library and on the device of `x`. Columns are in the order of
        ``named_parameters``, zero for parameters that the outputs do not reach.

    Raises
    ------
    CaptureError
        A model without per-sample gradients: active dropout, batch normalisation in training mode,
        parameters that autograd cannot see; the message says why, and which module.
    TypeError
        A model of another kind, or samples of another library or dtype.
    ValueError
        Samples of another shape; NonFiniteError where samples, parameters or outputs hold NaN or
        infinity.

    Notes
    -----
    A torch model is run as it is, and left as it was found: no hooks, no gradients, buffers, flags
    and random states unchanged. Autograd's graph is walked from the outputs to each use of a
    parameter; the factors are the inputs that the graph saved and the gradients of the results.
    Uses that are not understood go through one run a sample.

    On a GPU all arrays stay there; the first run of a model waits for it some twenty times, to read
    whether samples, gradients and the proof of a capture are as they must be, others a few times.
    Indices of embeddings are copied to the host.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> ff.jacobian(ff.models.MLP((3, 8, 2)), np.ones((5, 3))).shape
    (10, 50)
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> J = ff.jacobian(model, torch.ones(5, 3), params="2")
    >>> J.shape, list(J.parameter_shapes)
    ((10, 18), ['2.weight', '2.bias'])
    """
    if isinstance(model, MLP):
        _only_torch(select=select, params=params)
        return model.jacobian(joined(x, "x"))
    torch_model, samples = _torch(model, x, select, params)
    from fastfisher.capture import Capture

    return Capture(torch_model, samples, verify=verify).jacobian(samples)


def rows(
    model: Any,
    x: Samples,
    root_of: Callable[[Array], Array],
    draws: int,
    *,
    select: Select,
    params: Params,
    verify: bool,
) -> Jacobian:
    """Jacobian of ``sum_c S[n, c, r] f_c(x_n)`` with a constant S = root_of(f), (N, C, draws)."""
    if isinstance(model, MLP):
        _only_torch(select=select, params=params)
        return model.jacobian(x, root_of=root_of)
    torch_model, samples = _torch(model, x, select, params)
    from fastfisher.capture import captured_rows, check_inputs

    check_inputs(samples, torch_model, "x")
    return captured_rows(torch_model, samples, root_of, draws, verify=verify)


def ntk(
    model: Any,
    x: Samples,
    x2: Samples | None = None,
    *,
    outputs: Outputs = "full",
    select: Select = None,
    params: Params = None,
    layers: Literal["sum", "each"] = "sum",
    method: Method = "auto",
    precision: Precision = "highest",
    memory_limit: int | str | None = None,
    out: Array | None = None,
    threads: int = 0,
    verify: bool = True,
    progress: bool = False,
    return_info: bool = False,
) -> Any:
    """Empirical neural tangent kernel ``J(x) J(x2)^T`` of a model, without 1/N.

    Parameters
    ----------
    model : torch.nn.Module, (function, parameters) or fastfisher.models.MLP
        The model, see `jacobian`.
    x : array, mapping or iterable
        N samples, see `jacobian`. Batches are put together: the samples themselves stay in memory,
        their gradients do not.
    x2 : array, mapping or iterable, optional
        M other samples; without them the kernel of `x` with itself. Outputs that are normalised
        over the batch use the statistics of `x` for `x` and of `x2` for `x2`.
    outputs : "full" | "trace" | "diagonal" | "sum" | int
        ``full`` (N, C, M, C), so that ``.reshape(N*C, M*C)`` is J J2^T; ``trace`` (N, M), the sum
        over c of full[n, c, m, c]; ``diagonal`` (N, M, C); an int c (N, M); ``sum`` (N, M), of the
        summed outputs.
    select, params, verify
        As in `jacobian`.
    layers : "sum" | "each"
        One kernel of all parameters, or a dict with the kernel of each layer by its name: for torch
        models the module that owns the parameters, as in ``named_modules``, so that the model
        itself is ``""``; for a function what names have before their last dot, else the name.
    method, precision, threads
        As in `fastfisher.gram`.
    memory_limit : int or str, optional
        Bytes beside model, samples and result, for instance ``"2GB"``: blocks of samples are
        captured, and captured again where they do not fit. By default half of the free memory. For
        an `MLP` as in `fastfisher.gram`.
    out : array, optional
        Array that takes the result by finished tiles, a numpy memmap too; with ``layers="sum"``.
    progress : bool
        Whether to show a progress bar on standard error.
    return_info : bool
        Whether to return ``(array, GramInfo)``; with ``layers="each"`` a pair of dicts. The info
        says how each parameter was treated, and for each layer the method and its cost.

    Returns
    -------
    array or dict of str to array
        In the library, dtype and device of `x`; of 16-bit models in float32.

    Raises
    ------
    CaptureError
        A torch model without per-sample gradients, see `jacobian`.
    TypeError, ValueError
        Arguments that do not fit, by name; NonFiniteError where inputs hold NaN or infinity.
    MemoryError
        `memory_limit` is too small; the message says what is needed.

    Notes
    -----
    Cost: one forward pass, one backward pass to each layer for the C outputs, and the Gram of the
    factors, N^2/2 (i + C^2 o) multiply-adds for a dense layer. The Jacobian is never formed. On a
    GPU as for `fastfisher.jacobian`, with half of its free memory where no limit is given.

    Examples
    --------
    >>> import numpy as np
    >>> import fastfisher as ff
    >>> x = np.random.default_rng(0).standard_normal((5, 3))
    >>> mlp = ff.models.MLP((3, 8, 2), parameterization="ntk", sigma_b2=0.1)
    >>> ff.ntk(mlp, x).shape
    (5, 2, 5, 2)
    >>> sorted(ff.ntk(mlp, x, x[:2], outputs="trace", layers="each"))
    ['0', '1']
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> ff.ntk(model, torch.ones(5, 3), outputs="trace").shape
    torch.Size([5, 5])
    """
    if layers not in ("sum", "each"):
        raise ValueError(f"layers: expected 'sum' or 'each', got {layers!r}")
    if layers == "each" and out is not None:
        raise ValueError("out: expected None with layers='each', which gives one array a layer")
    options: dict[str, Any] = {"method": method, "precision": precision, "threads": threads}
    if isinstance(model, MLP):
        _only_torch(select=select, params=params)
        options |= {"outputs": outputs, "memory_limit": memory_limit, "progress": progress}
        left = model.jacobian(joined(x, "x"))
        right = None if x2 is None else model.jacobian(joined(x2, "x2"))
        if layers == "sum":
            return left.gram(right, out=out, return_info=return_info, **options)
        others = None if right is None else right.split()
        pairs = {
            name: part.gram(None if others is None else others[name], return_info=True, **options)
            for name, part in left.split().items()
        }
        kernels = {name: kernel for name, (kernel, _) in pairs.items()}
        infos = {name: info for name, (_, info) in pairs.items()}
    else:
        torch_model, samples = _torch(model, x, select, params)
        from fastfisher.capture import Capture, check_dtypes, check_inputs, gather, kernel

        others = None if x2 is None else gather(x2, "x2")
        if others is not None:
            check_inputs(others, torch_model, "x2")
            check_dtypes(others, samples, "x2")
        kernels, infos = kernel(
            Capture(torch_model, samples, verify=verify),
            samples,
            others,
            outputs=outputs,
            each=layers == "each",
            out=out,
            memory_limit=memory_limit,
            progress=progress,
            options=options,
        )
        if layers == "sum":
            return (kernels[""], infos[""]) if return_info else kernels[""]
    return (kernels, infos) if return_info else kernels


def _torch(model: Any, x: Samples, select: Select, params: Params) -> tuple[Any, Any]:
    """Model and samples for a capture."""
    expect_model(model)
    from fastfisher.capture import gather, torch_model

    return torch_model(model, select=select, params=params), gather(x, "x")


def expect_model(model: Any) -> None:
    """Refuse what is no model of torch.

    Raises
    ------
    TypeError
        Neither a module nor a pair (function, parameters).
    MissingExtraError
        torch is not installed.
    """
    function = isinstance(model, tuple) and len(model) == 2 and callable(model[0])
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if function:
        require("torch", purpose="a model given as a function", install="'fastfisher[torch]'")
    modules = getattr(sys.modules.get("torch"), "nn", None)
    module = "torch" in roots and modules is not None and isinstance(model, modules.Module)
    if not function and not module:
        raise TypeError(
            "model: expected a torch.nn.Module, a pair (function, dict of parameters) or "
            f"fastfisher.models.MLP, got {type(model).__name__}; factors of other models enter "
            "through fastfisher.Jacobian.from_factors"
        )


def _only_torch(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: expected None for fastfisher.models.MLP, got {value!r}")
