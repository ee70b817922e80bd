"""The layers of a Transformer: where they are in a network, and which of a teacher's belong to which of a student's."""

from typing import Literal, get_args

from torch import nn

from kdbench.errors import UserError, nearest

LayerKind = Literal["even", "skip", "first", "last", "last_of_group", "uniform"]


def layer_map(teacher_layers: int, student_layers: int, kind: LayerKind = "even") -> list[int]:
    """Return, for each student layer i = 0 .. S-1, the teacher layer (of 0 .. T-1) that it is made from or matched with.

    - ``even``: ``round(i (T-1) / (S-1))``, halves up; first and last layer are kept, 12 -> 6 is ``[0, 2, 4, 7, 9, 11]``.
      A single student layer takes layer 0. (Sanh et al. 2019, arXiv 1910.01108, extraction script.)
    - ``skip``: every r-th layer, ``r (i+1) - 1`` with ``r = T // S``; what is left over at the top is not used. Without its
      last entry, the teacher layers 2, 4, 6, 8, 10 (counted from 1) of PKD-Skip. (Sun et al. 2019, arXiv 1908.09355.)
    - ``first``: the first S layers. (Truncation: Turc et al. 2019, arXiv 1908.08962.)
    - ``last``: the last S layers; without its last entry, the layers 7 to 11 (counted from 1) of PKD-Last.
    - ``last_of_group``: the last of each of S equal groups, ``r (i+1) - 1`` with ``r = T / S``. (BiSTIL: Ansell et al. 2023.)
    - ``uniform``: ``u(m) - 1`` with ``u(m) = m T / S``, m = i + 1, halves up. (TinyBERT: Jiao et al. 2020, arXiv 1909.10351.)

    Raises:
        UserError: the student has no layers or more than the teacher, T is no multiple of S for ``last_of_group``, or
            the kind is unknown.
    """
    if kind not in get_args(LayerKind):
        kinds = get_args(LayerKind)
        raise UserError(f"There is no layer map '{kind}'.{nearest(kind, kinds)} There are: {', '.join(kinds)}.")
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"{student_layers} student layers cannot come from {teacher_layers} teacher layers: "
            f"choose between 1 and {teacher_layers}."
        )
    if kind == "last_of_group" and teacher_layers % student_layers:
        raise UserError(
            f"The layer map 'last_of_group' cuts the teacher into equal groups, and {teacher_layers} layers are no "
            f"multiple of {student_layers}: choose another number of student layers, or 'uniform'."
        )
    students = range(student_layers)
    if kind == "even":
        return [_ratio(i * (teacher_layers - 1), max(student_layers - 1, 1)) for i in students]
    if kind == "first":
        return list(students)
    if kind == "last":
        return [teacher_layers - student_layers + i for i in students]
    if kind == "uniform":
        return [_ratio((i + 1) * teacher_layers, student_layers) - 1 for i in students]
    group = teacher_layers // student_layers
    return [group * (i + 1) - 1 for i in students]


def stage_ends(blocks: int) -> list[int]:
    """Return the last block, from 0, of each of the four stages that a network of equal blocks is cut into.

    The stages have 2:2:6:2 blocks, so that of 12 blocks 1, 3, 9 and 11 end one (Hao et al. 2023, arXiv 2310.19444). Of L blocks
    stage k ends with block ``max(k, L f_k)``, counted from 1, halves up, with f = 1/6, 1/3, 5/6, 1; fewer than four blocks are
    a stage each.
    """
    if blocks < 4:
        return list(range(blocks))
    return [max(stage, _ratio(blocks * twelfths, 12)) - 1 for stage, twelfths in enumerate((2, 4, 10, 12), 1)]


def _ratio(dividend: int, divisor: int) -> int:
    """Divide and round halves up (Python's ``round`` takes halves to the even neighbour)."""
    return (2 * dividend + divisor) // (2 * divisor)


def transformer_blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return path and modules of a network's repeated blocks: an ``nn.ModuleList`` of one class.

    Lists inside a block (experts) do not count, nor does one whose length is not the config's ``num_hidden_layers``; of
    several, the one with the most parameters is meant.

    Raises:
        UserError: there is none (blocks with shared weights, as ALBERT's), or the network has an encoder and a decoder.
    """
    config = getattr(network, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{type(network).__name__} has an encoder and a decoder, so the number of a layer says too little: "
            "name the module itself, such as 'encoder.layers.0'."
        )
    # A network around an encoder keeps the encoder's config inside its own.
    expected = getattr(getattr(config, "encoder", config), "num_hidden_layers", None)
    found: dict[str, nn.ModuleList] = {}
    for path, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if len({type(block) for block in module}) == 1 and expected in (None, len(module)):
            found[path] = module
    if not found:
        raise UserError(
            f"{type(network).__name__} has no list of {expected or 'equal'} Transformer blocks, so its layers have no "
            "numbers: name a module of the network instead."
        )
    path = max(found, key=lambda path: sum(parameter.numel() for parameter in found[path].parameters()))
    return path, found[path]
