"""Captions of COCO beside their images, the images as latents of Stable Diffusion XL (30,000 of the validation set of 2014)."""

from itertools import islice

import numpy as np
import torch
from torch.nn.functional import interpolate

from kdbench.data.cards import Hub
from kdbench.data.readers.fetched import fetch, unreachable
from kdbench.data.registry import Row
from kdbench.errors import UserError

DECODER = "stabilityai/sdxl-vae"
EDGE = 1024
ROWS = {"test": range(1000), "validation": range(1000, 1200), "train": range(1200, 2200)}
"""Which rows are read of each split; all are held out for a model that was not trained on COCO."""


def hub_latents(hub: Hub, split: str) -> list[Row]:
    """Return ``{"latent": float16 [4, 128, 128], "prompt"}`` of the rows of a split, encoded on the fastest device there is.

    Raises:
        UserError: diffusers is not installed, or the data or the encoder cannot be fetched.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("Latents are made by diffusers: run 'pip install kdbench[diffusion]'.") from error
    wanted = ROWS[split]
    rows = [row for _, row in islice(fetch(hub, "train"), wanted.start, wanted.stop)]
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        encoder = AutoencoderKL.from_pretrained(DECODER, use_safetensors=True).to(device)
    except (OSError, ValueError) as error:
        raise unreachable(DECODER, str(error).partition("\n")[0]) from error
    return [{"latent": _latent(encoder, row["image"], device), "prompt": row["caption"]} for row in rows]


@torch.no_grad()
def _latent(encoder: torch.nn.Module, image: object, device: torch.device) -> np.ndarray:
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].to(device).float()
    high, wide = pixels.shape[-2:]
    edge = min(high, wide)
    top, left = (high - edge) // 2, (wide - edge) // 2
    square = pixels[..., top : top + edge, left : left + edge]
    shown = interpolate(square, (EDGE, EDGE), mode="bicubic", antialias=True).clamp(0, 255) / 127.5 - 1
    found = encoder.encode(shown).latent_dist.mode() * encoder.config.scaling_factor
    return found[0].half().cpu().numpy()
