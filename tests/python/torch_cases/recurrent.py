# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers, cells in loops, state-space scans."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import rnn

from .base import N, Net, TorchCase, par


def last(layer: nn.Module, width: int = 4) -> nn.Module:
    """Batch-first layer, last step, linear head."""
    return Net(lambda m, x: m.head(m.layer(x)[0][:, -1]), layer=layer, head=nn.Linear(width, 3))


def sequence_first(layer: nn.Module) -> nn.Module:
    return Net(
        lambda m, x: m.head(m.layer(x.transpose(0, 1))[0][-1]), layer=layer, head=nn.Linear(4, 3)
    )


def unrolled(m, x):
    state = x.new_zeros(len(x), 4)
    for t in range(x.shape[1]):
        state = m.cell(x[:, t], state)
    return m.head(state)


def unrolled_lstm(m, x):
    h = c = x.new_zeros(len(x), 4)
    for step in x.unbind(1):
        h, c = m.cell(step, (h, c))
    return m.head(h)


def learned_state(m, x):
    y, _ = m.layer(x, m.h0.expand(-1, len(x), -1).contiguous())
    return m.head(y[:, -1])


def packed(m, x):
    lengths = 1 + (x[:, 1:, 0] > 0).sum(1)
    _, h = m.layer(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return m.head(h[-1])


def scan(m, x):
    state, decay = x.new_zeros(len(x), 4), torch.exp(-torch.exp(m.log_decay))
    for step in x.unbind(1):
        state = decay * state + step @ m.b
    return state @ m.c + x[:, -1] @ m.d


X = (5, 3)
CASES = [
    TorchCase("rnn", lambda: last(nn.RNN(3, 4, batch_first=True)), X),
    TorchCase(
        "rnn-relu-no-bias",
        lambda: last(nn.RNN(3, 4, nonlinearity="relu", bias=False, batch_first=True)),
        X,
    ),
    TorchCase(
        "rnn-two-layers-bidirectional",
        lambda: last(nn.RNN(3, 4, num_layers=2, bidirectional=True, batch_first=True), 8),
        X,
    ),
    TorchCase("gru", lambda: last(nn.GRU(3, 4, batch_first=True)), X),
    TorchCase(
        "gru-two-layers-bidirectional",
        lambda: last(nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True), 8),
        X,
    ),
    TorchCase("gru-sequence-first", lambda: sequence_first(nn.GRU(3, 4)), X),
    TorchCase("gru-sequence-first-square", lambda: sequence_first(nn.GRU(N, 4)), (N, N)),
    TorchCase(
        "gru-learned-state",
        lambda: Net(
            learned_state,
            layer=nn.GRU(3, 4, batch_first=True),
            h0=par(1, 1, 4),
            head=nn.Linear(4, 3),
        ),
        X,
    ),
    TorchCase("lstm", lambda: last(nn.LSTM(3, 4, batch_first=True)), X),
    TorchCase("lstm-eval", lambda: last(nn.LSTM(3, 4, batch_first=True)), X, evaluate=True),
    TorchCase(
        "lstm-two-layers-bidirectional",
        lambda: last(nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), 8),
        X,
    ),
    TorchCase("lstm-projected", lambda: last(nn.LSTM(3, 6, proj_size=4, batch_first=True)), X),
    TorchCase("lstm-sequence-first-square", lambda: sequence_first(nn.LSTM(N, 4)), (N, N)),
    TorchCase(
        "lstm-tuple-output", lambda: nn.LSTM(3, 2, batch_first=True), X, select=lambda out: out[0]
    ),
    TorchCase(
        "lstm-dropout-of-nothing",
        lambda: last(nn.LSTM(3, 4, num_layers=2, dropout=0.0, batch_first=True)),
        X,
    ),
    TorchCase(
        "lstm-used-twice",
        lambda: Net(
            lambda m, x: m.layer(m.layer(x)[0].flip(1))[0][:, -1],
            layer=nn.LSTM(4, 4, batch_first=True),
        ),
        (3, 4),
    ),
    TorchCase(
        "rnn-cell-loop", lambda: Net(unrolled, cell=nn.RNNCell(3, 4), head=nn.Linear(4, 3)), X
    ),
    TorchCase(
        "gru-cell-loop", lambda: Net(unrolled, cell=nn.GRUCell(3, 4), head=nn.Linear(4, 3)), X
    ),
    TorchCase(
        "lstm-cell-loop",
        lambda: Net(unrolled_lstm, cell=nn.LSTMCell(3, 4), head=nn.Linear(4, 3)),
        X,
    ),
    TorchCase(
        "state-space-scan",
        lambda: Net(scan, log_decay=par(4), b=par(3, 4), c=par(4, 2), d=par(3, 2)),
        X,
    ),
    TorchCase(
        "gru-packed",
        lambda: Net(packed, layer=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 3)),
        X,
        kind="either",
        match="sample|layer",
        notes="samples sorted by length, a ragged batch a step",
    ),
]
