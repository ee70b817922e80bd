"""Whether a network takes what the data have for it, and tells their classes apart."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.models.surgery import Facts
from kdbench.models.taps import check_view
from kdbench.models.vision import ImageClassifier


def check_network(network: nn.Module, views: Iterable[Mapping[str, Tensor]], facts: Facts) -> None:
    """Check that a network's forward names every key of its views and takes images of their shape.

    Raises:
        UserError: it does not; see :func:`~kdbench.models.taps.check_view` and :func:`check_images`.
    """
    for view in views:
        check_view(network, view)
    check_images(network, facts)


@torch.no_grad()
def check_images(network: nn.Module, facts: Facts) -> None:
    """Run an image network once on an image of the data's shape, all zeros; whatever else is let pass.

    Raises:
        UserError: the images have another number of channels, are not cut into whole patches, are too small for the strides or
            of another size than the positions; or the classifier knows another number of classes.
    """
    if facts.image is None or getattr(network, "main_input_name", None) != "pixel_values":
        return
    name, (channels, height, width) = type(network).__name__, facts.image
    wanted = getattr(network.config, "num_channels", channels)
    if wanted != channels:
        raise UserError(
            f"{name} takes images of {wanted} channels, and those of the data have {channels}: give the network "
            f"'num_channels: {channels}', or choose other data."
        )
    patch = getattr(network.config, "patch_size", 1)
    if isinstance(patch, int) and (height % patch or width % patch):
        raise UserError(
            f"{name} cuts images into patches of {patch}x{patch}, and {height}x{width} is no multiple of that: choose another "
            "patch_size, or resize the images with data.image_size."
        )
    training = network.training
    try:
        network.eval()(pixel_values=torch.zeros(1, *facts.image))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} does not take images of {height}x{width} ({str(error).strip().splitlines()[0].rstrip('.')}): choose another "
            "size of its config, or resize the images with data.image_size."
        ) from error
    finally:
        network.train(training)
    classifies = isinstance(network, ImageClassifier) or "ForImageClassification" in name
    if facts.labels and classifies and network.config.num_labels != len(facts.labels):
        raise UserError(
            f"{name} tells {network.config.num_labels} classes apart, and the data have {len(facts.labels)}: give it a new head "
            "with 'then: [AddHead]' (task: classification), or take a network of these classes."
        )
