"""How a folded or quantised network is saved and opened: through transformers' own door for quantised checkpoints.

``config.json`` says what was done (``quantization_config``), and the ranges lie beside the weights. Once this module is imported,
``from_pretrained`` of transformers' classes puts everything in its place again. Without it transformers warns that it does not
know this kind of quantisation, and opens the rounded weights without the rest.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from kdbench.compression.quantisers import Quantiser
from kdbench.models.folding import Restore
from kdbench.models.quantised import quantise, set_mode

METHOD = "kdbench_simulated"


@register_quantization_config(METHOD)
@dataclass
class SimulatedQuantisation(QuantizationConfigMixin):
    """What ``config.json`` says of a folded or quantised network.

    Args:
        quant_method: the name of this method.
        weights: arguments of the weights' :class:`~kdbench.compression.quantisers.Quantiser`; None: nothing is quantised.
        activations: those of the activations'.
        restored: the modules that restore a shortcut, inside of the base model.
    """

    quant_method: str = METHOD
    weights: dict[str, Any] | None = None
    activations: dict[str, Any] | None = None
    restored: list[str] = field(default_factory=list)


@register_quantizer(METHOD)
class SimulatedQuantizer(HfQuantizer):
    """Puts quantised layers and restored shortcuts into a network before its weights and ranges are read."""

    quantization_config: SimulatedQuantisation

    def is_serializable(self) -> bool:
        """Return that it can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether gradients pass: rounding has none."""
        return False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        told = self.quantization_config
        for path in told.restored:
            Restore.beside(model.base_model.get_submodule(path))
        if told.weights is not None:
            quantise(model, Quantiser(**told.weights), Quantiser(**told.activations))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        set_mode(model, "fixed")


def describe(network: PreTrainedModel, weights: Quantiser | None = None, activations: Quantiser | None = None) -> None:
    """Write into the config of a network how it is folded and, with quantisers, quantised, so that it can be opened again."""
    restored = [path for path, module in network.base_model.named_modules() if hasattr(module, "restore")]
    told = [asdict(each) if each is not None else None for each in (weights, activations)]
    network.config.quantization_config = SimulatedQuantisation(METHOD, *told, restored)
