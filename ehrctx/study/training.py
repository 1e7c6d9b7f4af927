"""Keys on pretraining."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ehrctx.configuration import Config
from ehrctx.study.model_id import LARGEST_SEED, MINIMUM_CONTEXT, ModelId


class Rope(Config):
    """Rotary positions of Llama: pair i of a head of width d turns by theta^(-2 i / d) per token."""

    theta: float | None = Field(
        None,
        gt=1,
        allow_inf_nan=False,
        description="the base: larger turns more slowly; 500,000, or the base of the start, if left out",
    )
    scaling: Literal["none", "linear", "yarn"] = Field(
        "none",
        description="linear: every turn is divided by the factor (arXiv 2306.15595); yarn: only turns too slow to "
        "come round within the original context, and attention is sharpened (arXiv 2309.00071)",
    )
    factor: float = Field(1.0, ge=1, allow_inf_nan=False, description="by how much the original context is stretched")
    original_context: int | None = Field(
        None,
        ge=MINIMUM_CONTEXT,
        description="the context before stretching, in tokens: models of it or less are not stretched; if left out, "
        "the model's own divided by the factor, or that of the start",
    )

    def original(self, context: int) -> int:
        """The context before stretching, in tokens, of a model whose context length is `context`."""
        return self.original_context or round(context / self.factor)

    def of(self, context: int) -> Self:
        """What it says to a model of `context` tokens: no stretching where the original context suffices."""
        if self.original_context is None or context > self.original_context:
            return self
        return self.model_copy(update={"scaling": "none", "factor": 1.0, "original_context": None})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.scaling == "none") != (self.factor == 1):
            raise ValueError(
                f"scaling {self.scaling!r} does not go with factor {self.factor:g}. Give `scaling` (linear or "
                f"yarn) and a `factor` above 1 together, or neither"
            )
        if self.original_context is not None and self.scaling == "none":
            raise ValueError(
                "`original_context` goes with a scaling. Give `scaling` and `factor` as well, or leave it out"
            )
        return self


class Pretraining(Config):
    """Next-token pretraining. All amounts are in tokens that are not padding, so context lengths compare."""

    # How a training is run, not what it learns: changing one trains nothing again.
    RUNNING: ClassVar[tuple[str, ...]] = (
        "checkpoint_seconds", "keep_every_tokens", "threads", "devices", "strategy", "compile",
    )  # fmt: skip
    # What one architecture alone reads: changing it trains no other again.
    OF_ONE: ClassVar[dict[str, str]] = {"rope": "llama", "scan": "mamba"}

    tokens: int = Field(2_000_000_000, ge=1, description="the whole budget")
    tokens_per_step: int = Field(65_536, ge=1, description="tokens of one optimizer step")
    batch_tokens: int = Field(16_384, ge=1, description="tokens of one forward pass, padding included: sets memory")
    pool_windows: int = Field(
        20_000, ge=1, description="windows sorted by length at a time: 20,000 leave < 2 % padding"
    )
    learning_rate: float = Field(2e-4, gt=0)
    final_learning_rate: float = Field(1e-5, ge=0)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the tokens over which the rate rises")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only: no bias, gain or state decays")
    gradient_clip: float = Field(1.0, gt=0)
    validations: int = Field(
        4, ge=1, description="whole-split validations, evenly over the tokens, the last at the end"
    )
    weights: Literal["last", "best"] = Field(
        "last", description="which the model ends with: those of the last step, or of the lowest validation loss"
    )
    on_loss_spike: Literal["warn", "skip", "stop"] = Field(
        "warn", description="a step whose loss leaps far above the last 50: say so, leave its update out, or end"
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="what a kill can cost at most")
    keep_every_tokens: int | None = Field(
        None, ge=1, description="also keep the model every so many tokens, beside the checkpoint"
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="auto: bf16 on CUDA, float32 on CPU"
    )
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(2, ge=1, description="CPU threads of one training process or embedding job")
    devices: int = Field(1, ge=1, description="processes that share one training, one per GPU")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="what several devices share: batches alone, or weights and optimizer as well"
    )
    compile: bool = Field(False, description="torch.compile: minutes at the start, faster steps on a GPU")
    scan: Literal["auto", "mamba_ssm", "triton", "numba", "torch"] = Field(
        "auto", description="who computes Mamba's scan; auto: the best that the device has"
    )
    rope: Rope = Field(Rope(), description="rotary positions of Llama models; changing it trains no other again")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="added to the model's own seed (-s1, -s2 …)")

    def without_effect(self, model: ModelId) -> set[str]:
        """The keys on which what `model` learns does not depend."""
        return {*self.RUNNING, *(key for key, arch in self.OF_ONE.items() if arch != model.arch)}

    def check_context(self, model: ModelId) -> None:
        """Raises ValueError if one window is more than a step: steps, and with them the budget, would grow with it."""
        if model.context > self.tokens_per_step:
            raise ValueError(
                f"a context length of {model.context:,} is more than pretraining.tokens_per_step "
                f"({self.tokens_per_step:,}); raise tokens_per_step"
            )
        if model.arch == "llama" and self.rope.original(model.context) < MINIMUM_CONTEXT:
            raise ValueError(
                f"a context length of {model.context:,} divided by pretraining.rope.factor ({self.rope.factor:g}) is "
                f"less than {MINIMUM_CONTEXT} tokens; lower the factor"
            )
