"""What the words of a program say, read and checked."""

import math
from dataclasses import dataclass

import numpy as np

from espace_tf.kernels.index_map import check_indices
from espace_tf.kernels.program import INPUT, MAGIC, OUTPUT, STEP_WORDS


@dataclass(frozen=True, eq=False)
class Program:
    """What the words of a program say about its borders, read and checked.

    Attributes:
        words: int32, all of it.
        inputs: floats of each input, per image.
        outputs: (rows, channels) of each output.
        weights: floats of each weight.
        filters: of each step the number of its filter among the weights, -1 where it has none.
    """

    words: np.ndarray
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    weights: tuple[int, ...]
    filters: tuple[int, ...]

    @classmethod
    def read(cls, words: np.ndarray) -> "Program":
        """The program of these words.

        Raises:
            TypeError, ValueError: not what `ProgramBuilder.words` returned.
        """
        words = np.asarray(words)
        check_indices(words, "program", rank=1)
        if len(words) < 8 or words[0] != MAGIC or words[:8].min() < 0:
            raise ValueError(
                f"program must begin with a header of 8 words. Received: {words[:8].tolist()}"
            )
        inputs, outputs, weights, tensors = map(int, words[1:5])
        end = 8 + weights + 6 * tensors
        if len(words) < end:
            raise ValueError(f"program must have {end} words at least. Received: {len(words)}")
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        for kind, index, _, rows, _, stride in words[8 + weights : end].reshape(-1, 6).tolist():
            sizes[kind, index] = rows, stride
        borders = [(INPUT, index) for index in range(inputs)]
        borders += [(OUTPUT, index) for index in range(outputs)]
        missing = [border for border in borders if border not in sizes]
        if missing:
            raise ValueError(f"program has no tensor for its inputs and outputs: {missing}")
        return cls(
            words=words,
            inputs=tuple(int(np.prod(sizes[INPUT, index])) for index in range(inputs)),
            outputs=tuple(sizes[OUTPUT, index] for index in range(outputs)),
            weights=tuple(words[8 : 8 + weights].tolist()),
            filters=_filters(words, end),
        )


def _filters(words: np.ndarray, at: int) -> tuple[int, ...]:
    """Of the steps of a program whose tables begin at a word.

    Raises:
        ValueError: the words end too early, or go on after the last step.
    """
    tables, steps = map(int, words[5:7])
    found = []
    for number in range(tables + steps):
        size = 2 if number < tables else STEP_WORDS
        head = words[at : at + size].tolist()
        more = math.prod(head) if size == 2 else sum(head[STEP_WORDS - 1 :])
        if len(head) < size or more < 1:
            break
        at += size + more
        if size == STEP_WORDS:
            found.append(head[3])
    if at != len(words) or len(found) < steps:
        raise ValueError(
            f"program must end with its last step of {steps}. Received: {len(words)} words"
        )
    return tuple(found)
