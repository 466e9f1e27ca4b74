# SPDX-License-Identifier: Apache-2.0
"""One K-FAC refresh by kfac-jax, asked for line by line: a program of another interpreter.

It reads questions (JSON, one a line) and files of the folder that it is given, and answers with one
line each; it needs numpy, jax and kfac-jax only.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np
from kfac_jax._src import loss_functions

MODES = {"mc": "fisher_gradients", "exact": "fisher_exact", "empirical": "fisher_empirical"}


def loss(params: Any, batch: Any) -> Any:
    """Cross-entropy of a ReLU network of dense layers."""
    h, y = batch
    for k, (w, b) in enumerate(params):
        h = h @ w + b
        if k < len(params) - 1:
            h = jax.nn.relu(h)
    kfac_jax.register_softmax_cross_entropy_loss(h, y)
    return -jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None], 1).mean()


def compiled(kind: str, params: Any, batch: Any, damping: float) -> tuple[Any, Any]:
    """Refresh (params, batch, gradient, state, rng) -> (vector, state), and the first state."""
    estimator = kfac_jax.BlockDiagonalCurvature(
        loss, default_estimation_mode=MODES[kind], distributed_multiplies=False,
        distributed_cache_updates=False,
    )  # fmt: skip
    state = estimator.init(jax.random.PRNGKey(0), (params, batch), None, -1)

    @jax.jit
    def refresh(params: Any, batch: Any, gradient: Any, state: Any, rng: Any) -> Any:
        state = estimator.update_curvature_matrix_estimate(
            state, 0.0, 1.0, damping, batch[0].shape[0], rng, (params, batch)
        )
        state = estimator.update_cache(state, damping, None, -1, False, None)
        found = estimator.multiply_matpower(state, gradient, damping, -1, False, True, None)
        return found, state

    return refresh, state


def tree(arrays: list[Any]) -> list[Any]:
    """Pairs (w, b) with w (i, o), from arrays in the order and the shapes of torch."""
    pairs = zip(arrays[::2], arrays[1::2], strict=True)
    return [(jnp.asarray(np.ascontiguousarray(w.T)), jnp.asarray(b)) for w, b in pairs]


def main(folder: Path) -> None:
    """Answer until the questions end."""
    ask = (json.loads(line) for line in sys.stdin)

    def say(**answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    damping = float(next(ask)["damping"])
    with np.load(folder / "weights.npz") as found:
        weights = [found[str(k)] for k in range(len(found))]
    params = tree(weights)
    say(version=f"{kfac_jax.__version__}, jax {jax.__version__}")
    ready: dict[str, Any] = {}
    plain = loss_functions.CategoricalLogitsNegativeLogProbLoss.sample
    for question in ask:
        kind = question["kind"]
        if "fixed" in question:  # a check of the result
            with np.load(folder / "batch.npz") as found:
                batch = jnp.asarray(found["x"]), jnp.asarray(found["y"])
                flat = found["g"]
            sizes = np.cumsum([w.size for w in weights])[:-1]
            parts = np.split(flat, sizes)
            gradient = tree([p.reshape(w.shape) for p, w in zip(parts, weights, strict=True)])
            kind_of = loss_functions.CategoricalLogitsNegativeLogProbLoss
            if question["fixed"]:
                labels = jnp.asarray(np.load(folder / "labels.npy"))
                kind_of.sample = lambda self, rng, labels=labels: labels
            refresh, state = compiled(kind, params, batch, damping)
            rng = jax.random.PRNGKey(1)
            found_vector, _ = refresh(params, batch, gradient, state, rng)
            vector = [np.asarray(x).T.reshape(-1) for pair in found_vector for x in pair]
            np.save(folder / "result.npy", np.concatenate(vector))
            kind_of.sample = plain
            refresh, state = compiled(kind, params, batch, damping)
            jax.block_until_ready(refresh(params, batch, gradient, state, rng))
            ready[kind] = refresh, batch, gradient, state, rng
            say()
            continue
        refresh, batch, gradient, state, rng = ready[kind]
        rng, own = jax.random.split(rng)
        start = time.perf_counter()
        _, state = jax.block_until_ready(refresh(params, batch, gradient, state, own))
        seconds = time.perf_counter() - start
        ready[kind] = refresh, batch, gradient, state, rng
        say(seconds=seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
