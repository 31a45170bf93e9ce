"""Fused programs word by word in float64, with the plainest loops: what every executor must give.

Scratch memory starts as NaN and is one buffer per image, as the executor has it: an overlap of what
lives at the same time, or a value that is read before it is written, shows in the outputs.
"""

import numpy as np
from scipy import special


class Words:
    """Reads words one after the other."""

    def __init__(self, words):
        self.words, self.at = [int(word) for word in words], 0

    def take(self, count):
        self.at += count
        assert self.at <= len(self.words), "the program ends too early"
        return self.words[self.at - count : self.at]


def run(words, inputs, weights):
    """The outputs [B, rows, channels], float64."""
    reader = Words(words)
    magic, n_inputs, n_outputs, n_weights, n_tensors, n_tables, n_steps, scratch = reader.take(8)
    assert magic == 0x45535032
    assert (len(inputs), len(weights)) == (n_inputs, n_weights)
    sizes = reader.take(n_weights)
    assert sizes == [np.size(weight) for weight in weights]
    weights = [np.asarray(weight, np.float64).ravel() for weight in weights]
    tensors = [reader.take(6) for _ in range(n_tensors)]
    tables = []
    for _ in range(n_tables):
        rows, taps = reader.take(2)
        tables.append(np.array(reader.take(rows * taps)).reshape(rows, taps))
    batch = len(inputs[0])
    spaces = {2: [np.full((batch, scratch), np.nan)]}
    spaces[0] = [np.asarray(x, np.float64).reshape(batch, -1) for x in inputs]
    spaces[1] = [np.full((batch, size(tensors, 1, index)), np.nan) for index in range(n_outputs)]

    def view(number):
        """Which of the floats of an image are row r and channel c."""
        kind, index, start, rows, channels, stride = tensors[number]
        places = start + np.arange(rows)[:, None] * stride + np.arange(channels)
        return spaces[kind][index], places

    for _ in range(n_steps):
        kind, activation, out, filter, bias, slopes, table, spread, count = reader.take(9)
        ins = []
        for number in reader.take(count):
            memory, places = view(number)
            ins.append(memory[:, places])
            assert not np.isnan(ins[-1]).any(), "reads what nobody wrote"
        made = step(
            kind,
            ins,
            *(None if number < 0 else weights[number] for number in (filter, bias)),
            None if table < 0 else tables[table],
            None if kind != 7 else tables[spread].astype(np.int32).view(np.float32),
            tensors[out][4],
        )
        made = ACTIVATIONS[activation](made, None if slopes < 0 else weights[slopes])
        memory, places = view(out)
        spread = -1 if kind == 7 else spread
        memory[:, places] = made if spread < 0 else made[:, tables[spread][:, 0]]
    assert reader.at == len(reader.words), "words are left over"
    found = []
    for index, memory in enumerate(spaces[1]):
        channels = next(t[5] for t in tensors if t[:2] == [1, index])
        found.append(memory.reshape(batch, -1, channels))
    return found


def size(tensors, kind, index):
    return max(t[3] * t[5] for t in tensors if t[:2] == [kind, index])


ACTIVATIONS = [
    lambda x, slopes: x,
    lambda x, slopes: np.maximum(x, 0),
    lambda x, slopes: np.clip(x, 0, 6),
    lambda x, slopes: special.expit(x),
    lambda x, slopes: np.tanh(x),
    lambda x, slopes: x * special.expit(x),
    lambda x, slopes: np.clip(x + 3, 0, 6) / 6,
    lambda x, slopes: x * np.clip(x + 3, 0, 6) / 6,
    lambda x, slopes: x * special.ndtr(x),
    lambda x, slopes: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    lambda x, slopes: np.where(x > 0, x, slopes * np.expm1(np.minimum(x, 0))),
    lambda x, slopes: np.where(x > 0, x, slopes * x),
]


def step(kind, ins, filter, bias, table, factors, channels):
    """What a step computes before its activation and its spread."""
    if kind == 5:
        return np.prod(np.broadcast_arrays(*ins), axis=0)
    if kind == 6:
        return special.softmax(ins[0], axis=-1)
    if kind == 8:
        return ins[0][:, :, table[:, 0]]
    if kind == 4:
        made = sum(ins)
        made = made if filter is None else made * filter
        return made if bias is None else made + bias
    (rows,) = ins
    batch, _, wide = rows.shape
    made = np.zeros((batch, len(table), channels))
    for q, taps in enumerate(table):
        read = [(tap, rows[:, row]) for tap, row in enumerate(taps) if row >= 0]
        for tap, values in read:
            if kind == 0:
                made[:, q] += values @ filter.reshape(-1, wide, channels)[tap]
            elif kind == 1:
                made[:, q] += values * filter.reshape(-1, wide)[tap]
            elif kind == 7:
                made[:, q] += values * factors[q, tap]
        if kind == 2 and read:
            made[:, q] = np.max([values for _, values in read], axis=0)
        if kind == 3 and read:
            made[:, q] = np.mean([values for _, values in read], axis=0)
    return made if bias is None else made + bias
