# SPDX-License-Identifier: Apache-2.0
"""What a natural-gradient step of many samples with one output takes beside its Gram matrix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc"
)

# A small step first: what loads then is not of the step that is measured.
PROGRAM = """
import sys
from pathlib import Path
import torch
import fastfisher as ff
import fastfisher.optim

n, way = int(sys.argv[1]), sys.argv[2]

def network(widths):
    torch.manual_seed(0)
    layers = []
    for i, o in zip(widths, widths[1:]):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])

def step(model, x, y):
    if way == "NGD":
        return float(ff.optim.NGD(model, lr=1.0, damping=1e-2).step(x=x, y=y))
    found = ff.ngd.update(ff.jacobian(model, x), model(x).detach() - y, damping=1e-2)
    return float(found.vector.norm())

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

step(network((4, 4, 1)), torch.randn(3, 4), torch.randn(3, 1))
model, x, y = network((784, 1024, 1024, 1024, 1)), torch.randn(n, 784), torch.randn(n, 1)
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
value = step(model, x, y)
print(kilobytes("VmHWM") - before, value)
"""


@pytest.mark.parametrize("way", ["NGD", "update"])
@pytest.mark.parametrize("n", [1024, pytest.param(8192, marks=pytest.mark.slow)])
def test_peak_of_a_step_with_one_output(n: int, way: str) -> None:
    """N = 8192: less than 2 GB beside the float32 Gram matrix; N = 1024: in the same proportion.

    Factors and their gradients grow with N, matrices of the solve with its square; the parameters
    (12 MB, some copies) and the scratch of the native Gram do not.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(n), way], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, value = done.stdout.split()[-2:]
    allowed = 2e9 * max(n / 8192, 0.2) + 4 * n * n
    assert 1024 * int(grown) < allowed
    assert 0 < float(value) < float("inf")
