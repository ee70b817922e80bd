"""Outlier Suppression+: channels are shifted and scaled so that simulated quantisation loses little; SmoothQuant, min-max."""

import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kdbench.compression.calibration import Call, View, observed_ranges, reached, real_tokens, spread_tokens
from kdbench.compression.migration import channel_shift, search_threshold, smoothing_scale
from kdbench.compression.quantisers import Quantiser
from kdbench.errors import UserError, nearest
from kdbench.files import write_text
from kdbench.methods.closed_form import ClosedForm
from kdbench.methods.objective import Batch
from kdbench.methods.reader import Reader
from kdbench.metrics.layer_error import LayerError
from kdbench.models.folding import Restore, Site, fold, layer_outputs, matrix, sites, turned
from kdbench.models.origins import Origin
from kdbench.models.quantised import quantise, round_weights, roundings, set_mode
from kdbench.models.quantised_folder import describe

Migration = Literal["none", "smoothing", "shift", "scale", "both"]
ORIGINAL = "original"
"""The name of the student before it is changed, with which the test compares it."""
FILE = "migration.json"
"""What was done at each place: its largest activation before and after, the threshold that was found and what it loses."""


class OutlierSuppression(ClosedForm):
    """Weights and activations of a network on grids of few bits, simulated, after its channels were shifted and scaled.

    The places where a shift z and a scale s can be folded (:func:`~kdbench.models.folding.sites`) are gone through in the order of
    the forward, on the first batch and with quantisers on, so that each sees what those before it lose: ``z_j = (max_j + min_j) /
    2`` and ``s_j = max(1, max|X_j - z_j| / t)``, with the threshold t at which the outputs lose least: those of attention for
    query, key and value together, the products with the weights elsewhere, of a gated feed-forward part the gated ones. Then all
    batches give the ranges of activations, in full precision, and the weights are rounded. Padding never counts. Wei et al.
    2023, arXiv 2304.09145.

    Args:
        student: the origin of the network.
        weights: the quantiser of the weights of linear layers.
        activations: that of their inputs and, with one range for a tensor, of the inputs of both products of attention.
        migration: ``both``; ``shift`` or ``scale`` alone; ``smoothing``: ``s_j = max|X_j|^a / max|W_j|^(1-a)`` (SmoothQuant, Xiao
            et al. 2023, arXiv 2211.10438); ``none``: min-max quantisation as it is. Where layers have no bias (LLaMA), ``both``
            scales alone.
        share: a, of ``smoothing``.
        least: the lowest threshold that is tried; the official code has 1, and 0.1 for LLaMA.
        token_quantile: p of the token-wise clipping of ranges (:class:`~kdbench.compression.calibration.RunningRange`), or
            ``search``: from 1 down in steps of 0.005, 10 of them at 8 bits and 20 below, the one that moves the predictions for
            the calibration batches least. By default the lowest and highest values of all tokens count.
        references: further frozen networks that the test compares the student with; ``original`` is the network before.
    """

    def __init__(
        self,
        student: Origin,
        weights: Quantiser,
        activations: Quantiser,
        migration: Migration = "both",
        share: float = 0.5,
        least: float = 1.0,
        token_quantile: float | Literal["search"] | None = None,
        references: dict[str, Origin | str] | None = None,
    ) -> None:
        if migration not in get_args(Migration):
            raise UserError(f"There is no migration '{migration}'.{nearest(migration, get_args(Migration))}")
        if not 0 <= share <= 1:
            raise ValueError(f"the share of smoothing lies in [0, 1], not at {share}")
        if not least > 0:
            raise ValueError(f"the lowest threshold is above 0, not {least}")
        if not isinstance(token_quantile, str | None) and not 0 < token_quantile <= 1:
            raise ValueError(f"a quantile of tokens lies in (0, 1], not at {token_quantile}")
        super().__init__(student, references={ORIGINAL: student, **(references or {})})
        self.weights, self.activations = weights, activations
        self.migration, self.share, self.least, self.token_quantile = migration, share, least, token_quantile
        self.batches: list[Batch] = []
        self._layers: dict[str, Reader] = {}

    # ---- building ----

    def setup(self, stage: str) -> None:
        """Build the networks; refuse half precision, in which the losses of two thresholds cannot be told apart."""
        if self.trainer.precision not in ("32-true", "64-true"):
            raise UserError(
                f"OutlierSuppression calibrates in full precision: set trainer.precision to 32, not {self.trainer.precision}."
            )
        super().setup(stage)

    def complete(self) -> None:
        """Put quantised layers into the student, which round nothing yet.

        Raises:
            UserError: the network cannot be folded, or nothing of it can be shifted.
        """
        self.sites = sites(self.student) if self.migration != "none" else []
        if self.migration == "shift" and not any(site.shifts for site in self.sites):
            raise UserError(
                f"{type(self.student).__name__} has no biases that take a shift: set model.migration to scale."
            )
        for site in self.sites:
            if site.shortcut is not None:
                Restore.beside(self.student.get_submodule(site.shortcut))
        quantise(self.student, self.weights, self.activations)
        describe(self.student, self.weights, self.activations)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Round from now on: a checkpoint is written behind the end alone."""
        set_mode(self.student, "fixed")

    # ---- calibration ----

    def observe(self, batch: Batch) -> None:
        """Keep a batch; there are few."""
        self.batches.append(batch)

    def solve(self) -> None:
        """Move the channels, find the ranges, round the weights."""
        view = self._shown(self.batches[0])[0]
        moved = [self._move(site, view) for site in self.sites]
        self._find_ranges(self._best_quantile() if self.token_quantile == "search" else self.token_quantile or 1.0)
        round_weights(self.student)
        set_mode(self.student, "fixed")
        self.batches = []
        write_text(self.folder / FILE, json.dumps(moved, indent=2) + "\n")

    def _shown(self, batch: Batch) -> list[View]:
        return [batch[view] for view in self._views("student").values()]

    def _move(self, site: Site, view: View) -> dict[str, Any]:
        """Shift and scale what the readers of a site are given; return what was done."""
        network, mask = self.student, view.get("attention_mask")
        set_mode(network, "batch", mask)
        readers = [network.get_submodule(path) for path in site.readers]
        call = reached(network, network.get_submodule(site.function) if site.function else readers[0], view)
        tokens = real_tokens(call.states, mask)
        told: dict[str, Any] = {"source": site.source, "before": float(tokens.abs().max())}
        if self.migration in ("shift", "both") and site.shifts:
            shift = channel_shift(tokens)
            fold(network, site, shift, torch.ones_like(shift))
            tokens = tokens - shift
        if self.migration != "shift":
            scale, found = self._scale(site, call, tokens, readers, mask)
            fold(network, site, torch.zeros_like(scale), scale)
            tokens = tokens / scale
            told |= found
        return told | {"after": float(tokens.abs().max())}

    def _scale(
        self, site: Site, call: Call, tokens: Tensor, readers: Sequence[nn.Module], mask: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the scale of the tokens ``[N, C]`` that the readers of a site are given, and how it was found."""
        matrices = [matrix(layer) for layer in readers]
        if self.migration == "smoothing":
            return smoothing_scale(tokens, torch.cat(matrices), self.share), {}
        rows = [len(each) for each in matrices]

        def rounded(weights: Tensor) -> Tensor:
            return torch.cat([self.weights(each) for each in weights.split(rows)])

        def outputs(tokens: Tensor, weights: Tensor) -> Tensor:
            """Return what attention, or a gated part, makes of real tokens and of the weights of its readers, without rounding."""
            split = zip(site.readers, readers, weights.split(rows), strict=True)
            changed = {f"{path.removeprefix(inside)}.weight": turned(layer, each) for path, layer, each in split}
            return real_tokens(call.repeat(function, spread_tokens(tokens, call.states, mask), changed, result), mask)

        if site.function is None:
            found = search_threshold(tokens, torch.cat(matrices), self.activations, rounded, least=self.least)
        else:
            function, inside = self.student.get_submodule(site.function), f"{site.function}."
            result = self.student.get_submodule(site.result) if site.result else None
            set_mode(function, "off")
            found = search_threshold(tokens, torch.cat(matrices), self.activations, rounded, outputs, self.least)
        return found.scale, {"threshold": found.value, "loss": found.loss}

    def _find_ranges(self, quantile: float) -> None:
        """Give every rounding with one range that of all batches, in full precision."""
        set_mode(self.student, "off")
        places = {path: each for path, each in roundings(self.student).items() if each.static}
        views = [view for batch in self.batches for view in self._shown(batch)]
        for path, (low, high) in observed_ranges(self.student, places, views, quantile).items():
            places[path].low.copy_(low)
            places[path].high.copy_(high)

    def _best_quantile(self) -> float:
        """Return the quantile of tokens whose ranges move the predictions for the calibration batches least."""
        set_mode(self.student, "off")
        whole = [self._predicted(batch) for batch in self.batches]
        best, least = 1.0, float("inf")
        for step in range(10 if self.activations.bits >= 8 else 20):
            quantile = 1 - 0.005 * step
            self._find_ranges(quantile)
            set_mode(self.student, "fixed")
            pairs = zip(self.batches, whole, strict=True)
            lost = sum(float((self._predicted(batch) - before).square().sum()) for batch, before in pairs)
            if lost < least:
                best, least = quantile, lost
        return best

    def _predicted(self, batch: Batch) -> Tensor:
        return self.task.predictions(self.answer("student", batch), batch, self.data.views["student"])

    # ---- scores ----

    def on_test_epoch_start(self) -> None:
        """Begin to compare the layers of student and original."""
        super().on_test_epoch_start()
        taps = layer_outputs(self.student)
        for name in ("student", ORIGINAL):
            if name not in self._layers:
                self._layers[name] = Reader(self.network(name), taps, self._views(name))
        self.layer_error = LayerError(len(taps)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score all networks, and compare the layers of student and original."""
        super().test_step(batch, batch_idx)
        mask = self._shown(batch)[0].get("attention_mask")
        outputs = {
            name: [real_tokens(each, mask) for each in reader(batch).values()] for name, reader in self._layers.items()
        }
        self.layer_error.update(outputs["student"], outputs[ORIGINAL])

    def on_test_epoch_end(self) -> None:
        """Log scores, loyalties and the error of the layers."""
        super().on_test_epoch_end()
        self.log("test/layer_error@student", self.layer_error.compute().float())
