"""Perceptrons: classifiers of plain vectors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from kdbench.errors import UserError


class MLPConfig(PreTrainedConfig):
    """The sizes of an :class:`MLPClassifier`.

    Args:
        inputs: how many numbers a vector has.
        widths: of the hidden layers, one number each; none: a linear classifier.
        num_labels: how many classes; not needed where their names are given.
        id2label: the names of the classes by their numbers.
        label2id: the numbers by the names; follows from ``id2label``.
        kwargs: what transformers itself keeps in a ``config.json``.

    Raises:
        UserError: a size is below 1.
    """

    model_type = "kdbench_mlp"

    def __init__(
        self,
        inputs: int = 32,
        widths: Sequence[int] = (16,),
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.inputs, self.widths = inputs, list(widths)
        if any(not isinstance(size, int) or size < 1 for size in (inputs, *self.widths)):
            raise UserError(f"An MLPClassifier has sizes of at least 1: not inputs {inputs} and widths {self.widths}.")
        if id2label is None and num_labels is not None:
            kwargs["num_labels"] = num_labels
        if id2label is not None and label2id is None:
            label2id = {label: int(number) for number, label in id2label.items()}
        super().__init__(id2label=id2label, label2id=label2id, **kwargs)


class HiddenLayer(nn.Module):
    """``max(0, W x + b)``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)

    def forward(self, states: Tensor) -> Tensor:
        """Return ``[B, width]`` for states ``[B, inputs]``."""
        return self.dense(states).relu()


class MLPClassifier(PreTrainedModel):
    """A multi-layer perceptron with rectified linear units, ``logits = W h_n + b``, ``h_i = max(0, W_i h_(i-1) + b_i)``.

    The hidden layer i is the module ``layers.i``; ``hidden_states.i`` tells ``h_i``, ``h_0`` being the features.
    """

    config_class = MLPConfig
    base_model_prefix = ""
    main_input_name = "features"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        sizes = [config.inputs, *config.widths]
        self.layers = nn.ModuleList(HiddenLayer(*pair) for pair in zip(sizes, config.widths, strict=False))
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's own initialisation; what is loaded replaces it."""

    def get_input_embeddings(self) -> None:
        """Return None: vectors have no vocabulary."""
        return

    def forward(self, features: Tensor) -> SequenceClassifierOutput:
        """Return ``logits`` ``[B, C]`` for ``features`` ``[B, inputs]``."""
        states = features
        for layer in self.layers:
            states = layer(states)
        return SequenceClassifierOutput(logits=self.classifier(states))


AutoConfig.register(MLPConfig.model_type, MLPConfig)
AutoModel.register(MLPConfig, MLPClassifier)
AutoModelForSequenceClassification.register(MLPConfig, MLPClassifier)
