"""The exact denoiser of a mixture of Gaussians: a teacher without error, and the reference that learnt ones are held against."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from kdbench.errors import UserError
from kdbench.models.denoiser import DenoiserOutput, class_labels, noise_levels


class ExactDenoiserConfig(PreTrainedConfig):
    """The mixture of an :class:`ExactDenoiser`.

    Args:
        means: of the K components: points ``[K][D]``, or numbers ``[K]`` where every element of a sample is a draw of its own
            from a mixture in one dimension.
        stds: one for all components, or one each; the same in all directions.
        weights: of the components, summing to 1 after division by their sum; equal by default.
        classes: K where the components are the classes of samples, 0 where samples have none.
        kwargs: what transformers itself keeps in a ``config.json``.

    Raises:
        UserError: numbers that make no mixture.
    """

    model_type = "kdbench_exact_denoiser"

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Sequence[float] = (0.0,),
        stds: float | Sequence[float] = 1.0,
        weights: Sequence[float] | None = None,
        classes: int = 0,
        **kwargs: Any,
    ) -> None:
        count = len(means)
        self.means = [
            float(mean) if isinstance(mean, int | float) else [float(each) for each in mean] for mean in means
        ]
        self.stds = [float(stds)] * count if isinstance(stds, int | float) else [float(std) for std in stds]
        self.weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
        self.classes = classes
        if not count or len(self.stds) != count or len(self.weights) != count or classes not in (0, count):
            raise UserError(f"A mixture of {count} means has as many stds and weights, and 0 or {count} classes.")
        if min(self.stds) <= 0 or min(self.weights) <= 0:
            raise UserError("The stds and the weights of a mixture are above 0.")
        super().__init__(**kwargs)


class ExactDenoiser(PreTrainedModel):
    """``D(x, sigma) = sum_k r_k (d_k^2 x + sigma^2 m_k) / (d_k^2 + sigma^2)``, the posterior mean for ``sum_k w_k N(m_k, d_k^2)``.

    ``r_k``, proportional to ``w_k N(x; m_k, d_k^2 + sigma^2)``, is the probability of the component k. There is nothing to
    learn, and all is computed in float64.
    """

    config_class = ExactDenoiserConfig
    base_model_prefix = ""
    main_input_name = "sample"
    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, config: ExactDenoiserConfig) -> None:
        super().__init__(config)
        means = torch.tensor(config.means, dtype=torch.float64)
        self.elementwise = means.dim() == 1
        self.register_buffer("means", means[:, None] if self.elementwise else means)
        self.register_buffer("variances", torch.tensor(config.stds, dtype=torch.float64).square())
        self.register_buffer("log_weights", torch.tensor(config.weights, dtype=torch.float64).log().log_softmax(0))
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The type of the means: there is no parameter to tell it."""
        return self.means.dtype

    @property
    def device(self) -> torch.device:
        """Where the means are."""
        return self.means.device

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: there are no weights."""

    def get_input_embeddings(self) -> None:
        """Return None: samples have no vocabulary."""
        return

    def forward(self, sample: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> DenoiserOutput:
        """Return ``denoised`` of samples ``[B, ..., D]``, or of any shape where the elements are draws of their own.

        Args:
            sample: noisy samples.
            sigma: levels of noise, ``[B]`` or one for all.
            label: classes ``[B]``, the null class among them; a class is its component alone.

        Raises:
            ValueError: a label where samples have no classes.
        """
        points, variance = self._points(sample), self._variance(sample, sigma)
        joint, variances = self._joint(points, variance), self.variances.double()
        label = class_labels(label, sample, self.config.classes)
        if label is not None:
            numbers = torch.arange(len(self.means), device=label.device)
            other = (numbers != label[:, None]) & (label[:, None] < len(self.means))
            joint = joint.masked_fill(_spread(other, joint), -math.inf)
        shares = joint.softmax(-1)
        # Of a component: the mean of the sample and its own mean, weighed by their precisions.
        kept = variances / (variances + variance)
        denoised = (shares * kept).sum(-1, keepdim=True) * points + (shares * (1 - kept)) @ self.means.double()
        return DenoiserOutput(denoised=denoised.reshape(sample.shape).to(sample.dtype))

    def log_density(self, sample: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return ``log p(x)`` of noisy points ``[B, ..., D] -> [B, ...]``, or of every element, in float64 and nats."""
        return self._joint(self._points(sample), self._variance(sample, sigma)).logsumexp(-1)

    def _points(self, sample: Tensor) -> Tensor:
        return (sample[..., None] if self.elementwise else sample).double()

    def _variance(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """Return ``sigma^2`` so that it adds to ``[B, ..., K]``."""
        return _spread(noise_levels(sigma, sample.double()).square()[:, None], self._points(sample))

    def _joint(self, points: Tensor, variance: Tensor) -> Tensor:
        """Return ``log w_k N(x; m_k, d_k^2 + sigma^2)``, ``[B, ..., K]``."""
        spread = self.variances.double() + variance
        squares = (points[..., None, :] - self.means.double()).square().sum(-1)
        size = self.means.shape[-1]
        return self.log_weights.double() - squares / (2 * spread) - size / 2 * (2 * math.pi * spread).log()


def _spread(rows: Tensor, like: Tensor) -> Tensor:
    """Return ``[B, K]`` as ``[B, 1, ..., K]`` with as many dimensions as another tensor."""
    return rows.reshape(len(rows), *[1] * (like.dim() - 2), rows.shape[-1])


AutoConfig.register(ExactDenoiserConfig.model_type, ExactDenoiserConfig)
AutoModel.register(ExactDenoiserConfig, ExactDenoiser)
