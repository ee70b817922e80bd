"""Text-to-image models as denoisers, on very small pipelines with random weights, against diffusers' own schedulers."""

import json

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from kdbench.errors import UserError
from kdbench.models.origins import Facts
from kdbench.models.samplers import Segment, consistency, euler, sample
from kdbench.models.schedules import timestep_grid, timesteps
from kdbench.models.text_to_image import FromCLIP, FromDiffusers

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

PROMPTS = ["a cat", "a dog", "a hat"]
WIDTH, POOLED = 32, 16
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 60,
}


def tokenizer(folder):
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({piece: place for place, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def unet(seed, xl):
    torch.manual_seed(seed)
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + POOLED}
    more = {"addition_embed_type": "text_time", **sizes} if xl else {}
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH * (1 + xl),
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    ).eval()


def decoder():
    torch.manual_seed(5)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["SD", "SDXL"])
def pipeline(request, tmp_path_factory):
    """The folder of a very small pipeline, and the pipeline."""
    folder, xl = tmp_path_factory.mktemp("pipeline"), request.param
    words = tokenizer(folder / "words")
    torch.manual_seed(1)
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPTextConfig(**TEXT, **ends, max_position_embeddings=12, projection_dim=POOLED)
    parts = {"vae": decoder(), "unet": unet(0, xl), "scheduler": diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False)}
    parts |= {"text_encoder": CLIPTextModel(config), "tokenizer": words}
    if xl:
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(config), "tokenizer_2": words}
        made = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        made = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    made.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder / "pipeline", made


def told(made, prompts):
    """What diffusers itself gives a U-Net for some prompts."""
    found = made.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    if len(found) == 2:
        return {"encoder_hidden_states": found[0]}
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(len(prompts), -1)
    return {"encoder_hidden_states": found[0], "added_cond_kwargs": {"text_embeds": found[2], "time_ids": sizes}}


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_it_walks_as_the_schedulers_of_diffusers_do(pipeline, sampler):
    folder, made = pipeline
    network = FromDiffusers(str(folder)).build(Facts(labels=PROMPTS)).eval()
    assert (network.config.shape, network.config.classes) == ([4, 8, 8], 3)
    kinds = {"ddim": diffusers.DDIMScheduler, "lcm": diffusers.LCMScheduler}
    settings = {"ddim": {"set_alpha_to_one": True, "clip_sample": False, "steps_offset": 1}, "lcm": {}}
    scheduler = kinds[sampler](**SCHEDULE, **settings[sampler])
    scheduler.set_timesteps(4)
    noises = torch.randn(5, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([2, 0, 1])
    x, facts = noises[0], told(made, [PROMPTS[each] for each in label])
    fresh = iter(noises[1:])
    with torch.no_grad():
        for time in scheduler.timesteps:
            noise = made.unet(x, time, **facts).sample
            if sampler == "ddim":
                x = scheduler.step(noise, time, x).prev_sample
            else:  # the scheduler draws its own noise: the same equation with ours
                abar = scheduler.alphas_cumprod
                place = scheduler.timesteps.tolist().index(int(time))
                denoised = (x - (1 - abar[time]).sqrt() * noise) / abar[time].sqrt()
                after = abar[scheduler.timesteps[place + 1]] if place < 3 else torch.tensor(1.0)
                x = after.sqrt() * denoised + ((1 - after).sqrt() * next(fresh) if place < 3 else 0)
    times = timesteps(4, "leading", offset=1) if sampler == "ddim" else timesteps(4, "lcm")
    assert times == scheduler.timesteps.tolist()
    grid = timestep_grid(scheduler.alphas_cumprod, times)
    segment = Segment(network, grid, sampler=euler if sampler == "ddim" else consistency)
    ours = iter(noises[1:])
    found = sample([segment], noises[0], label, noise=lambda like: next(ours), form="vp").samples
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_other_weights_make_the_student(pipeline, tmp_path, monkeypatch):
    folder, made = pipeline
    other = unet(7, made.unet.config.addition_embed_type is not None)
    torch.save(other.state_dict(), tmp_path / "student.bin")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file: str(tmp_path / file))
    facts = Facts(labels=PROMPTS)
    student = FromDiffusers(str(folder), "someone/student", "student.bin").build(facts)
    base = FromDiffusers(str(folder)).build(facts)
    for name, value in student.unet.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert not torch.equal(next(student.parameters()), next(base.parameters()))
    assert torch.equal(student.prompts, base.prompts)
    student.save_pretrained(tmp_path / "kept")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "kept")
    assert torch.equal(next(again.parameters()), next(student.unet.parameters()))


def test_the_null_class_is_the_empty_prompt(pipeline):
    folder, made = pipeline
    network = FromDiffusers(str(folder)).build(Facts(labels=PROMPTS)).eval()
    if network.pooled is not None:  # Stable Diffusion XL has zeros for it
        assert not network.prompts[-1].any()
        assert not network.pooled[-1].any()
        return
    torch.testing.assert_close(network.prompts[-1:], told(made, [""])["encoder_hidden_states"])
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x, 1.0).denoised, network(x, 1.0, torch.tensor([3, 3])).denoised)


def test_the_judge_decodes_and_tells_prompts(tmp_path):
    torch.manual_seed(2)
    vision = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    text = {**TEXT, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53, "max_position_embeddings": 12}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=POOLED)).eval()
    clip.save_pretrained(tmp_path / "clip")
    words = tokenizer(tmp_path / "words")
    words.save_pretrained(tmp_path / "clip")
    vae = decoder().eval()
    vae.save_pretrained(tmp_path / "vae")
    judge = FromCLIP(str(tmp_path / "clip"), str(tmp_path / "vae")).build(Facts(labels=PROMPTS)).eval()
    latents = torch.randn(10, 4, 8, 8)
    with torch.no_grad():
        found = judge(latents).logits
        pictures = (vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1) + 1) / 2
        small = torch.nn.functional.interpolate(pictures, (8, 8), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(each)[:, None, None] for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        view = words(PROMPTS, padding=True, return_tensors="pt")
        expected = clip(pixel_values=(small - mean) / std, **view).logits_per_image
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert judge.classifier.in_features == POOLED


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: FromDiffusers("a", unet="b"), ValueError, "'unet' and 'file' together"),
        (lambda: FromDiffusers("a").build(), UserError, "name their field in data.label"),
        (lambda: FromDiffusers("/no/such/folder").build(Facts(labels=PROMPTS)), UserError, "cannot be loaded"),
    ],
)
def test_mistakes_are_told(make, error, match):
    with pytest.raises(error, match=match):
        make()
