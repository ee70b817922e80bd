"""Denoisers: any network wrapped so that it tells ``D(x, sigma) = E[x0 | x]`` of ``x = x0 + sigma n``; guidance between two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from kdbench.errors import UserError, nearest
from kdbench.models.denoising_networks import NETWORKS
from kdbench.models.schedules import alpha_of
from kdbench.models.surgery import Facts, Surgery

Parameterisation = Literal["edm", "epsilon", "v", "x0"]
Denoise = Callable[[Tensor, float | Tensor], Tensor]
"""``D(x, sigma)`` of samples ``[B, ...]`` at one level or at one each ``[B]``, of the shape of x."""


class Scalings(NamedTuple):
    """``D = skip x + out F(into x, ln(sigma) / 4)``."""

    skip: Tensor
    out: Tensor
    into: Tensor


def scalings(
    sigma: Tensor, parameterisation: Parameterisation = "edm", sigma_data: float = 0.5, boundary: float | None = None
) -> Scalings:
    """Return what makes a denoiser of a network F whose outputs are of one of these kinds.

    With ``d = sigma_data``, and in the VP form ``x_t = a x0 + s n`` that the last three see ``a = 1 / sqrt(1 + sigma^2)``:

    - ``edm``: ``skip = d^2 / (sigma^2 + d^2)``, ``out = sigma d / sqrt(sigma^2 + d^2)``, ``into = 1 / sqrt(sigma^2 + d^2)``
      (Karras et al. 2022, arXiv 2206.00364, table 1);
    - ``epsilon``, F = n: ``x0 = (x_t - s F) / a``; ``v``, ``F = a n - s x0``: ``x0 = a x_t - s F``; ``x0``, F = x0.

    Args:
        sigma: levels of noise, of any shape.
        parameterisation: what the network's outputs are.
        sigma_data: the standard deviation of the data, of ``edm`` alone.
        boundary: the smallest level smin of a consistency model, of ``edm`` alone: ``skip = d^2 / ((sigma - smin)^2 + d^2)``,
            ``out = (sigma - smin) d / sqrt(sigma^2 + d^2)``, so that ``D(x, smin) = x`` for any weights (Song et al. 2023,
            arXiv 2303.01469, appendix C).
    """
    if parameterisation == "edm":
        variance = sigma.square() + sigma_data**2
        above = sigma if boundary is None else sigma - boundary
        return Scalings(
            skip=sigma_data**2 / (above.square() + sigma_data**2),
            out=above * sigma_data * variance.rsqrt(),
            into=variance.rsqrt(),
        )
    alpha = alpha_of(sigma)
    skip, out = {
        "epsilon": (torch.ones_like(sigma), -sigma),
        "v": (alpha.square(), -sigma * alpha),
        "x0": (torch.zeros_like(sigma), torch.ones_like(sigma)),
    }[parameterisation]
    return Scalings(skip, out, into=alpha)


class DenoiserConfig(PreTrainedConfig):
    """What a :class:`Denoiser` is made of.

    Args:
        shape: of one sample, such as ``[2]`` or ``[1, 8, 8]``.
        network: ``fourier_mlp``, ``residual_mlp`` or ``unet`` (:mod:`kdbench.models.denoising_networks`).
        sizes: arguments of that network.
        parameterisation: what the network's outputs are, see :func:`scalings`.
        sigma_data: the standard deviation of the data; a wrong one makes the network carry the identity.
        boundary: the smallest level of a consistency model, see :func:`scalings`.
        classes: how many classes the samples have; 0: no labels. One more, the null class, stands for any class.
        kwargs: what transformers itself keeps in a ``config.json``.

    Raises:
        UserError: no such network or parameterisation, or numbers that make no denoiser.
    """

    model_type = "kdbench_denoiser"

    def __init__(
        self,
        shape: Sequence[int] = (2,),
        network: str = "fourier_mlp",
        sizes: dict[str, Any] | None = None,
        parameterisation: Parameterisation = "edm",
        sigma_data: float = 0.5,
        boundary: float | None = None,
        classes: int = 0,
        **kwargs: Any,
    ) -> None:
        self.shape, self.network, self.sizes = list(shape), network, dict(sizes or {})
        self.parameterisation, self.sigma_data, self.boundary = parameterisation, sigma_data, boundary
        self.classes = classes
        if network not in NETWORKS:
            raise UserError(f"There is no denoising network '{network}'.{nearest(network, NETWORKS)}")
        if parameterisation not in get_args(Parameterisation):
            raise UserError(
                f"A denoiser is parameterised as {', '.join(get_args(Parameterisation))}: not {parameterisation}."
            )
        if any(size < 1 for size in self.shape) or not self.shape or sigma_data <= 0 or classes < 0:
            raise UserError(
                f"A denoiser needs a shape, sigma_data > 0 and classes >= 0: not {self.shape}, {sigma_data} and {classes}."
            )
        if boundary is not None and (parameterisation != "edm" or boundary < 0):
            raise UserError("A boundary, 0 or above, is for the parameterisation 'edm' alone.")
        super().__init__(**kwargs)


@dataclass
class DenoiserOutput(ModelOutput):
    """``denoised``: the estimate of the clean sample, of the shape of the noisy one."""

    denoised: Tensor | None = None


class Denoiser(PreTrainedModel):
    """``D(x, sigma) = skip(sigma) x + out(sigma) F(into(sigma) x, ln(sigma) / 4, class)`` around a network F."""

    config_class = DenoiserConfig
    base_model_prefix = ""
    main_input_name = "sample"

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self.network = NETWORKS[config.network](config.shape, config.classes, **config.sizes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the network's own initialisation; what is loaded replaces it."""

    def get_input_embeddings(self) -> None:
        """Return None: samples have no vocabulary."""
        return

    def forward(self, sample: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> DenoiserOutput:
        """Return ``denoised`` of noisy samples in the VE form.

        Args:
            sample: ``[B, *shape]``, ``x0 + sigma n``.
            sigma: levels of noise above 0, ``[B]`` or one for all.
            label: classes ``[B]``, the null class among them; None: the null class.

        Raises:
            ValueError: a label for a denoiser without classes.
        """
        sigma = noise_levels(sigma, sample)
        label = class_labels(label, sample, self.config.classes)
        skip, out, into = scalings(sigma, self.config.parameterisation, self.config.sigma_data, self.config.boundary)
        found = self.network(beside(into, sample) * sample, sigma.log() / 4, label)
        return DenoiserOutput(denoised=beside(skip, sample) * sample + beside(out, sample) * found)


class AsConsistencyModel(Surgery):
    """The denoiser with the boundary form of consistency models, and otherwise its weights (arXiv 2303.01469).

    Args:
        smallest: the level at which the model is the identity.
    """

    def __init__(self, smallest: float = 0.002) -> None:
        self.smallest = smallest

    def __call__(self, network: nn.Module, facts: Facts) -> nn.Module:
        """Return the denoiser; raise :class:`UserError` for a network that is none, or not one of the kind ``edm``."""
        if not isinstance(network, Denoiser):
            raise UserError(f"AsConsistencyModel needs a Denoiser, and {type(network).__name__} is none.")
        changes = network.config.to_dict() | {"boundary": self.smallest}
        network.config.boundary = DenoiserConfig(**changes).boundary  # checked
        return network


class Guided:
    """A denoiser with its classes and guidance, as a function ``D_w(x, sigma) = D_0 + w (D_c - D_0)``.

    D_0 is the estimate for the null class; w = 1 is the conditional model and w = 0 the unconditional one, each at one
    evaluation, any other w costs two. Latent consistency models count the same strength as ``w' = w - 1``, and diffusers
    takes its "guidance 0" for w = 1 (Ho and Salimans 2022, arXiv 2207.12598).

    Args:
        denoiser: ``denoiser(sample, sigma, label).denoised``, whose null class is ``denoiser.config.classes``.
        label: classes ``[B]``; None: no class.
        weight: w.
        batch_size: evaluate so many samples at a time; all at once by default.

    Raises:
        ValueError: guidance without a class.
    """

    def __init__(
        self, denoiser: nn.Module, label: Tensor | None = None, weight: float = 1.0, batch_size: int | None = None
    ) -> None:
        if label is None and weight != 1:
            raise ValueError(f"guidance {weight} needs a class to guide to: give the labels, or weight 1 for none")
        self.denoiser, self.label, self.weight, self.batch_size = denoiser, label, weight, batch_size
        self.evaluations = 0
        """Evaluations of the network for each sample so far; a guided one counts two."""

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return ``D_w`` of samples ``[B, ...]``."""
        self.evaluations += 1 if self.weight in (0, 1) else 2
        size, sigma = self.batch_size or len(x), noise_levels(sigma, x)
        if len(x) <= size:
            return self._one(x, sigma, self.label)
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        return torch.cat(
            [self._one(x[part], sigma[part], None if self.label is None else self.label[part]) for part in parts]
        )

    def _one(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        if self.weight == 1:
            return self.denoiser(x, sigma, label).denoised
        null = torch.full_like(label, self.denoiser.config.classes)
        if self.weight == 0:
            return self.denoiser(x, sigma, null).denoised
        both = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([null, label])).denoised
        unconditional, conditional = both.chunk(2)
        return unconditional + self.weight * (conditional - unconditional)


def drop_labels(label: Tensor, classes: int, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Return labels ``[B]`` of which each is the null class, the number ``classes``, with a probability."""
    dropped = torch.rand(label.shape, generator=generator, device=label.device) < probability
    return label.masked_fill(dropped, classes)


def noise_levels(sigma: float | Tensor, sample: Tensor) -> Tensor:
    """Return the noise level of each sample ``[B]``, in the samples' type and on their device."""
    if isinstance(sigma, Tensor):
        return sigma.to(sample).expand(len(sample))
    return sample.new_full((len(sample),), sigma)


def class_labels(label: Tensor | None, sample: Tensor, classes: int) -> Tensor | None:
    """Return the class of each sample ``[B]``, the null class without labels; None for a network without classes."""
    if not classes:
        if label is not None:
            raise ValueError("this denoiser has no classes: call it without labels, or give its config 'classes'")
        return None
    return torch.full((len(sample),), classes, device=sample.device) if label is None else label


def beside(values: Tensor, sample: Tensor) -> Tensor:
    """Return values ``[B]`` so that they multiply samples ``[B, ...]``."""
    return values.reshape(-1, *[1] * (sample.dim() - 1))


AutoConfig.register(DenoiserConfig.model_type, DenoiserConfig)
AutoModel.register(DenoiserConfig, Denoiser)
