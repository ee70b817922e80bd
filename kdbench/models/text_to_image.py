"""Latent text-to-image models of diffusers as denoisers whose classes are prompts, and a judge that looks at what they draw."""

from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers.modeling_outputs import ImageClassifierOutput

from kdbench.errors import UserError
from kdbench.models.denoiser import DenoiserOutput, Parameterisation, beside, class_labels, noise_levels, scalings
from kdbench.models.origins import Origin, fetched, quiet
from kdbench.models.schedules import sigma_of
from kdbench.models.surgery import Facts, Surgery

PREDICTIONS: dict[str, Parameterisation] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
"""What diffusers calls the parameterisations."""
AT_ONCE = 8
"""Prompts or images that pass through a frozen network together."""


class TextToImage(nn.Module):
    """``D(x, sigma)`` of latents around the U-Net of a text-to-image model; a class is a prompt, the null class no prompt.

    The U-Net sees ``x / sqrt(1 + sigma^2)`` and the timestep whose level is nearest to sigma.

    Args:
        unet: a ``UNet2DConditionModel`` of diffusers.
        abar: of the schedule that it was trained on, ``[T]``.
        prompts: what the text encoders say of each prompt, the null prompt last: ``[P + 1, S, H]``.
        pooled: of Stable Diffusion XL, the pooled state of each, ``[P + 1, E]``.
        parameterisation: what the U-Net's outputs are.
        scale: pixels on an edge for each place of the latents.
    """

    main_input_name = "sample"
    prompts: Tensor
    pooled: Tensor | None
    levels: Tensor

    def __init__(
        self,
        unet: nn.Module,
        abar: Tensor,
        prompts: Tensor,
        pooled: Tensor | None = None,
        parameterisation: Parameterisation = "epsilon",
        scale: int = 8,
    ) -> None:
        super().__init__()
        self.unet, self.parameterisation = unet, parameterisation
        for name, value in (("prompts", prompts), ("pooled", pooled), ("levels", sigma_of(abar.double()))):
            self.register_buffer(name, value, persistent=False)
        edge = unet.config.sample_size
        shape = [unet.config.in_channels, edge, edge]
        self.config = SimpleNamespace(shape=shape, classes=len(prompts) - 1, boundary=None)
        self.size = scale * edge

    def get_input_embeddings(self) -> None:
        """Return None: the latents have no vocabulary, and the prompts have been read."""
        return

    def save_pretrained(self, folder: str, **settings: Any) -> None:
        """Save the U-Net, as diffusers opens it."""
        self.unet.save_pretrained(folder, **settings)

    def forward(self, sample: Tensor, sigma: float | Tensor, label: Tensor | None = None) -> DenoiserOutput:
        """Return ``denoised`` of noisy latents ``[B, C, H, W]`` in the VE form, for the prompts ``[B]``."""
        sigma = noise_levels(sigma, sample)
        label = class_labels(label, sample, self.config.classes)
        skip, out, into = scalings(sigma, self.parameterisation)
        timestep = (self.levels.log() - sigma.double().log()[:, None]).abs().argmin(1)
        told = {}
        if self.pooled is not None:
            sizes = sample.new_tensor([self.size, self.size, 0, 0, self.size, self.size])  # original, corner, target
            told = {"text_embeds": self.pooled[label], "time_ids": sizes.expand(len(sample), -1).to(self.pooled)}
        found = self.unet(
            (beside(into, sample) * sample).to(self.prompts),
            timestep,
            encoder_hidden_states=self.prompts[label],
            added_cond_kwargs=told,
        ).sample
        return DenoiserOutput(denoised=beside(skip, sample) * sample + beside(out, sample) * found.to(sample))


class FromDiffusers(Origin):
    """A text-to-image model of the hub in the layout of diffusers; its prompts are the names of the data's classes.

    Args:
        name: the id of a Stable Diffusion (XL) pipeline, or a folder.
        unet: the id of a repository with other weights of its U-Net: a distilled student.
        file: the file of these weights there: ``.safetensors``, or weights alone that ``torch`` has pickled.
        dtype: of the weights.
        then: surgeries on it, in order.
    """

    def __init__(
        self,
        name: str,
        unet: str | None = None,
        file: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        then: list[Surgery] | None = None,
    ) -> None:
        super().__init__(then)
        if (unet is None) != (file is None):
            raise ValueError("FromDiffusers needs 'unet' and 'file' together: a repository and the weights in it")
        self.name, self.unet, self.file, self.dtype = name, unet, file, getattr(torch, dtype)

    def make(self, facts: Facts) -> TextToImage:
        """Load the pipeline, read the prompts and let go of all but the U-Net.

        Raises:
            UserError: diffusers is not installed, the data have no classes, or the weights cannot be had.
        """
        if not facts.labels:
            raise UserError("FromDiffusers takes its prompts from the data: name their field in data.label.")
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise UserError("FromDiffusers needs diffusers: run 'pip install kdbench[diffusion]'.") from error
        with fetched(self.name):
            pipeline = DiffusionPipeline.from_pretrained(self.name, dtype=self.dtype, use_safetensors=True)
        if self.unet is not None:
            with fetched(self.unet):
                pipeline.unet.load_state_dict(_weights(self.unet, self.file))
        prompts, pooled = _read(pipeline, [*facts.labels, ""])
        if getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
            prompts[-1], pooled[-1] = 0, 0
        scheduler = pipeline.scheduler
        prediction = PREDICTIONS[scheduler.config.prediction_type]
        return TextToImage(
            pipeline.unet, scheduler.alphas_cumprod, prompts, pooled, prediction, pipeline.vae_scale_factor
        )

    def tokenizer(self) -> None:
        """Return None: the prompts are read once, and networks see their numbers."""
        return


class ImageTextJudge(nn.Module):
    """Decodes latents and compares the images with prompts: ``logits`` are scaled cosines of CLIP, ``classifier`` is its text side.

    Args:
        clip: a ``CLIPModel``.
        vae: an ``AutoencoderKL`` of diffusers.
        prompts: features of the prompts, of length 1, ``[P, E]``.
        mean: of CLIP's pixels in [0, 1].
        std: of these.
    """

    main_input_name = "sample"

    def __init__(self, clip: nn.Module, vae: nn.Module, prompts: Tensor, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.clip, self.vae = clip, vae
        self.classifier = nn.Linear(prompts.shape[1], len(prompts), bias=False)
        self.classifier.weight.data = clip.logit_scale.exp().detach() * prompts
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    def get_input_embeddings(self) -> None:
        """Return None: the latents have no vocabulary."""
        return

    def forward(self, sample: Tensor) -> ImageClassifierOutput:
        """Return ``logits`` ``[B, P]`` of latents ``[B, C, H, W]``."""
        features = torch.cat([self._features(part) for part in sample.split(AT_ONCE)])
        return ImageClassifierOutput(logits=self.classifier(features))

    def _features(self, sample: Tensor) -> Tensor:
        images = self.vae.decode((sample / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        edge = self.clip.config.vision_config.image_size
        shown = interpolate(images.float().clamp(-1, 1) / 2 + 0.5, (edge, edge), mode="bicubic", antialias=True)
        pixels = (shown.clamp(0, 1) - self.mean) / self.std
        return normalize(
            self.clip.get_image_features(pixel_values=pixels.to(self.clip.dtype)).pooler_output.float(), dim=-1
        )


class FromCLIP(Origin):
    """A judge of latents: CLIP on what a decoder makes of them; its prompts are the names of the data's classes.

    Args:
        name: the id of a CLIP, such as ``openai/clip-vit-large-patch14``, or a folder.
        vae: the id of the decoder, such as ``stabilityai/sdxl-vae``, or a folder.
    """

    def __init__(self, name: str, vae: str) -> None:
        super().__init__()
        self.name, self.vae = name, vae

    def make(self, facts: Facts) -> ImageTextJudge:
        """Load both and read the prompts; raise :class:`UserError` where diffusers or the weights are missing."""
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise UserError("FromCLIP needs diffusers: run 'pip install kdbench[diffusion]'.") from error
        from transformers import AutoTokenizer, CLIPModel
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        with fetched(self.name), quiet():
            clip = CLIPModel.from_pretrained(self.name, use_safetensors=True).eval()
            tokenizer = AutoTokenizer.from_pretrained(self.name)
        with fetched(self.vae):
            vae = AutoencoderKL.from_pretrained(self.vae, use_safetensors=True)
        features = []
        for start in range(0, len(facts.labels), AT_ONCE):
            part = facts.labels[start : start + AT_ONCE]
            view = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                features.append(clip.get_text_features(**view).pooler_output)
        return ImageTextJudge(clip, vae, normalize(torch.cat(features), dim=-1), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

    def tokenizer(self) -> None:
        """Return None: the prompts are read once."""
        return


def _weights(repository: str, file: str) -> dict[str, Tensor]:
    """Return the weights in a file of a repository of the hub; of a pickled one nothing but weights is opened."""
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    path = hf_hub_download(repository, file)
    return load_file(path) if file.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)


@torch.no_grad()
def _read(pipeline: Any, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Return what the text encoders of a pipeline say of prompts, and of Stable Diffusion XL the pooled states."""
    states, pooled = [], []
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]
        told = pipeline.encode_prompt(part, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        states.append(told[0])
        pooled += told[2:3]
    return torch.cat(states), torch.cat(pooled) if pooled else None
