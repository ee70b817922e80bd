"""Speculative decoding with a draft that was distilled: how much faster, and whether the text is still the target's."""

import copy
import itertools
import time
import zlib

import torch
from torch import Tensor, nn

from kdbench.methods.base import Distillation
from kdbench.methods.objective import Batch, Objective
from kdbench.methods.writing import Writing
from kdbench.metrics.decoding import DecodingScore, law_places
from kdbench.models.generation import Sampling, generate
from kdbench.models.origins import Origin
from kdbench.models.speculative import EXACT, Decoded, Lenience, block_efficiency, check_pair, speculate, speed_up

GREEDY = Sampling(temperature=0.0)


class SpeculativeDecoding(Writing, Distillation):
    """Texts that a target writes with a draft running ahead, beside those that it writes alone; there is nothing to fit.

    For each of the first prompts of the test: greedy decoding in float64, where no rounding of a block decides between two
    tokens, and its mismatches; drawn text, whose law is tested; and the seconds that draft, target and both together take for as
    many tokens, one prompt at a time, in turns. See :class:`~kdbench.metrics.decoding.DecodingScore`; besides

    - ``expected_block_efficiency``: ``(1 - alpha^(g+1)) / (1 - alpha)`` of the acceptance rate alpha over fresh texts of the
      target, as if acceptances were independent;
    - ``cost``: c, the seconds of the draft over those of the target;
    - ``speed_up``: seconds of the target alone over those of both together; ``expected_speed_up``: the above over ``c g + 1``.

    Args:
        student: the origin of the draft.
        teacher: the origin of the target.
        block: g, tokens that are drafted for each call of the target.
        prompts: how many of the test are decoded.
        sampling: how text is drawn; by default from the target's own distribution.
        lenience: what the target's probability is taken for; by default exact.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        block: int = 4,
        prompts: int = 64,
        sampling: Sampling | None = None,
        lenience: Lenience = EXACT,
    ) -> None:
        if block < 1 or prompts < 1:
            raise ValueError(
                f"a block has a token or more, and a prompt or more are decoded, got {block} and {prompts}"
            )
        super().__init__(student, None, {"teacher": teacher})
        self.objective = Objective({})
        self.block, self.prompts = block, prompts
        self.judged_by, self.lenience = sampling or Sampling(), lenience

    def rehearse(self, batch: Batch) -> None:
        """See that draft and target go together."""
        check_pair(self.network("teacher"), self.network("student"))

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make the score of the decoding."""
        super().prepare_scores(compared)
        self.decoding = DecodingScore()

    def on_test_epoch_start(self) -> None:
        """Also begin to take the time, and make the copies that decode in float64."""
        super().on_test_epoch_start()
        self.times = {name: Clock() for name in ("student", "teacher", "both")}
        self.exact = {name: copy.deepcopy(self.network(name)).double() for name in ("student", "teacher")}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Also decode the first prompts."""
        super().test_step(batch, batch_idx)
        uniforms = self.uniforms("law", batch["id"], 0)
        for row, number in enumerate(batch["id"].tolist()):
            if number < self.prompts:
                real = batch["prompt"]["attention_mask"][row].bool()
                prompt = batch["prompt"]["input_ids"][row][real]
                text, places = self.decode(number, prompt, uniforms[row])
                counts = len(text.tokens), text.calls, text.drafted, text.taken
                self.decoding.update(*counts, places, self.mismatches(prompt))

    def decode(self, number: int, prompt: Tensor, uniforms: Tensor) -> tuple[Decoded, Tensor]:
        """Return the text that both networks write together, and where its tokens lie in the target's law; take the time."""
        draft, target = self.network("student"), self.network("teacher")
        ways = {
            "both": lambda: self._together(target, draft, prompt, self.judged_by, self.lenience, number),
            "teacher": lambda: self._alone(target, prompt, uniforms, self.judged_by),
            "student": lambda: self._alone(draft, prompt, uniforms, self.judged_by),
        }
        turn = number % len(ways)
        if not self.times["both"].tokens:
            ways["both"]()  # the first call of all costs what no later one does
        found = {}
        for name in (*list(ways)[turn:], *list(ways)[:turn]):
            with self.times[name]:
                found[name] = ways[name]()
            self.times[name].tokens += len(found[name].tokens)
        text = found["both"]
        return text, self._places(prompt, text.tokens.to(self.device), uniforms)

    def mismatches(self, prompt: Tensor) -> int:
        """Return how many tokens of greedy decoding differ from those of the target alone, in float64."""
        target, draft = self.exact["teacher"], self.exact["student"]
        plain = self._alone(target, prompt, torch.zeros(self.data.new_tokens, device=self.device), GREEDY)
        both = self._together(target, draft, prompt, GREEDY, EXACT, 0)
        pairs = itertools.zip_longest(plain.tokens.tolist(), both.tokens.tolist())
        return sum(ours != theirs for ours, theirs in pairs)

    def _alone(self, network: nn.Module, prompt: Tensor, uniforms: Tensor, sampling: Sampling) -> Decoded:
        drawn = generate(
            network,
            prompt[None],
            torch.ones_like(prompt[None]),
            uniforms[None],
            sampling,
            self.data.end_token,
            self.data.padding,
        )
        tokens = drawn.tokens[drawn.mask].cpu()
        return Decoded(tokens, len(tokens), 0, 0)

    def _together(
        self, target: nn.Module, draft: nn.Module, prompt: Tensor, sampling: Sampling, lenience: Lenience, number: int
    ) -> Decoded:
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.data.seed} {number}".encode()))
        length, end = self.data.new_tokens, self.data.end_token
        return speculate(target, draft, prompt, length, self.block, sampling, lenience, generator, end)

    @torch.no_grad()
    def _places(self, prompt: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
        text = torch.cat([prompt, tokens])[None]
        view = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        target, draft = (
            self.judged_by.probabilities(self.network(name)(**view).logits[0, len(prompt) - 1 : -1])
            for name in ("teacher", "student")
        )
        return law_places(target, draft, tokens, uniforms[: len(tokens)])

    def on_test_epoch_end(self) -> None:
        """Also log what decoding comes to."""
        alpha = float(self.distances["teacher"].compute()["acceptance"])
        super().on_test_epoch_end()
        per_token = {name: clock.seconds / clock.tokens for name, clock in self.times.items()}
        cost = per_token["student"] / per_token["teacher"]
        values = {name: float(value) for name, value in self.decoding.compute().items()} | {
            "expected_block_efficiency": block_efficiency(alpha, self.block),
            "cost": cost,
            "speed_up": per_token["teacher"] / per_token["both"],
            "expected_speed_up": speed_up(alpha, self.block, cost),
        }
        self.decoding.reset()
        self.log_dict({f"test/{name}@student": value for name, value in values.items()})


class Clock:
    """Sums the seconds inside a ``with``, the work of an accelerator included, and counts tokens."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0

    def __enter__(self) -> None:
        """Begin."""
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """End."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds += time.perf_counter() - self._began
