"""Which teacher layers a shallower student takes."""

from typing import Literal

from kdbench.errors import UserError

Kind = Literal["even", "skip", "first", "last", "last_of_group"]


def layer_map(teacher_layers: int, student_layers: int, kind: Kind = "even") -> list[int]:
    """Return the teacher layer (from 0) of each student layer.

    ``even``: ``round(i (L_t - 1) / (L_s - 1))``, 12 to 6 gives [0, 2, 4, 7, 9, 11] (DistilBERT, arXiv 1910.01108);
    ``skip`` and ``last_of_group``: the last layer of each group of ``L_t / L_s``, 12 to 6 gives [1, 3, 5, 7, 9, 11] (PKD,
    arXiv 1908.09355); ``first`` and ``last``: consecutive layers from the bottom or to the top.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(f"A student of {student_layers} layers cannot take them from {teacher_layers} layers.")
    if kind == "even":
        if student_layers == 1:
            return [0]
        # round half up: Python's round would send 2.5 to 2 and 7.5 to 8
        return [
            (2 * i * (teacher_layers - 1) + student_layers - 1) // (2 * (student_layers - 1))
            for i in range(student_layers)
        ]
    if kind == "first":
        return list(range(student_layers))
    if kind == "last":
        return list(range(teacher_layers - student_layers, teacher_layers))
    if kind in ("skip", "last_of_group"):
        if teacher_layers % student_layers:
            raise UserError(f"'{kind}' needs a number of layers that divides {teacher_layers}, not {student_layers}.")
        group = teacher_layers // student_layers
        return [group * (i + 1) - 1 for i in range(student_layers)]
    raise UserError(f"There is no layer map '{kind}': choose even, skip, first, last or last_of_group.")
