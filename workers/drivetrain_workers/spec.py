"""The sections of a job file that training reads: ``model``, ``training``, ``checkpoint``, ``sample``, ``baseline``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import DataSpec, FunctionPath, Spec, StorageSpec
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

DATA_FACTS = ("vocab_size", "classes", "sequence_length")  # what a model's factory can request


class ModelSpec(Spec):
    """The network, as functions of the user's code or of an installed package.

    ``factory(**args)`` returns a ``torch.nn.Module`` that maps int64 tokens ``[rows, length]`` to logits
    ``[rows, length, vocab]``; those of the `DATA_FACTS` that it has parameters for are passed by name.
    ``loss(model, batch)`` returns the mean loss over the rows of ``batch``, a dict of tensors ``[rows, width]``;
    without it, next-token cross-entropy. Where a loss is a mean over something else, such as the words of a sentence,
    ``weight(batch)`` returns their number.

    ``metrics(model, batch)`` returns numbers by name: each a mean over the same number as the loss, or a pair
    ``(total, count)``. ``predict(model, batch)`` returns a value for every row, by name.

    ``outcomes(model, batch)`` is for the assessment of the trained model: ``probabilities``
    ``[rows, ..., classes]`` and ``targets`` ``[rows, ...]`` (by default the label), or else an ``error`` for every row;
    ``slice``, names of the parts of the data that rows or decisions belong to (by default the class); ``score``, the
    value to explain, where that is not the probability of the chosen class. ``assess(model, splits)`` returns metrics
    that take too long for every evaluation; see `drivetrain_workers.assessment.splits.Splits`.

    All but the factory and ``assess`` receive a `drivetrain_workers.modeling.context.TrainContext` if they have
    a parameter ``context``. ``files`` are fetched like data, and the factory receives their paths by name.
    """

    factory: FunctionPath
    args: dict[str, Any] = {}
    files: dict[str, str] = Field({}, description="pre-trained weights and other files: a source for each name")
    loss: FunctionPath | None = None
    weight: FunctionPath | None = None
    metrics: FunctionPath | None = None
    predict: FunctionPath | None = None
    outcomes: FunctionPath | None = None
    assess: FunctionPath | None = None


class OptimizerSpec(Spec):
    """An optimizer, by its name in DeepSpeed; receives the settings that it takes."""

    type: Literal["Adam", "AdamW", "FusedAdam", "Lamb", "Lion", "SGD"] = "AdamW"
    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="for SGD")


class OffloadSpec(Spec):
    """What is kept in the host's memory, or on its disk, instead of the GPU's memory."""

    optimizer: Literal["none", "cpu", "nvme"] = Field("none", description="weights in fp32 and moments; zero 1 to 3")
    parameters: Literal["none", "cpu", "nvme"] = Field("none", description="zero 3 only")
    nvme_path: str | None = Field(None, description="folder on a fast disk of every node")


class ScheduleSpec(Spec):
    """Linear warm-up from 0, then decay to ``min_ratio`` of the learning rate at the last step."""

    type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    min_ratio: float = Field(0.1, ge=0, le=1)


class GuardSpec(Spec):
    """The action after a bad step.

    ``rewind`` resumes from the newest checkpoint and skips the batch of the step; ``warn`` reports it and continues.
    """

    non_finite: Literal["stop", "rewind", "warn"] = Field("stop", description="the loss or the gradient is NaN or Inf")
    spike: Literal["stop", "rewind", "warn"] = Field("warn", description="the loss is far above the previous ones")
    spike_score: float = Field(10.0, gt=0, description="robust standard deviations that count as a spike")
    window: int = Field(64, ge=4, description="losses that a new one is compared with")
    max_rewinds: int = Field(3, ge=0, description="per run; the next alarm stops it")


class BestSpec(Spec):
    """The comparison of evaluations."""

    metric: str = Field("loss", description="the eval loss, or a name that model.metrics returns")
    mode: Literal["min", "max"] = "min"

    def score(self, loss: float, metrics: dict[str, float]) -> float:
        """Return the score of an evaluation; lower is better.

        Raises:
            InputError: there is no such metric.
        """
        values = {**metrics, "loss": loss}
        if self.metric not in values:
            raise InputError("training.best.metric", repr(self.metric), ", ".join(sorted(values)))
        return values[self.metric] if self.mode == "min" else -values[self.metric]


class EarlyStopSpec(Spec):
    """End the run when evaluations stop improving, by `BestSpec`."""

    patience: int = Field(ge=1, description="evaluations without a better one")
    min_delta: float = Field(0.0, ge=0, description="minimum improvement")


class TrainingSpec(Spec):
    """How the network is trained. One step is one optimizer update on ``global_batch_size`` samples."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    global_batch_size: int = Field(32, ge=1)
    micro_batch_size: int | Literal["auto"] | None = Field(
        None, description="rows per forward pass; default: a worker's share, at most 32; auto: from the plan"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    gradient_clipping: float = Field(1.0, ge=0, description="0 switches it off")
    zero: Literal["auto", 0, 1, 2, 3] = Field(1, description="ZeRO stage; auto: the plan's choice")
    offload: OffloadSpec = OffloadSpec()
    activation_checkpointing: bool = Field(
        False,
        description="keep only the inputs of each module in a ModuleList or Sequential, and recompute the rest",
    )
    compile: str | None = Field(None, description="torch.compile with this backend: inductor, aot_eager, eager, ...")
    eval_every: int = Field(50, ge=1, description="steps between evaluations; the last step is always evaluated")
    best: BestSpec = BestSpec()
    early_stop: EarlyStopSpec | None = None
    predictions: int = Field(16, ge=1, description="eval samples that model.predict is called with at evaluations")
    guard: GuardSpec = GuardSpec()
    on_oom: Literal["stop", "retry-smaller"] = Field(
        "stop", description="out of memory; retry-smaller halves the micro-batch and keeps the global batch"
    )
    hang_after_s: float | Literal["auto"] = Field(
        "auto", description="a rank hangs after this long in one phase; auto: ten times the longest, at least 30 s"
    )
    deepspeed: dict[str, Any] = Field({}, description="raw DeepSpeed configuration, merged last")

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of training.steps and training.epochs")
        if isinstance(self.hang_after_s, float) and self.hang_after_s <= 0:
            raise ValueError(f"hang_after_s must be above 0 or auto, got {self.hang_after_s}")
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1 or auto, got {self.micro_batch_size}")
        if self.precision == "bf16" and self.zero == 0:
            raise ValueError("precision bf16 needs zero 1, 2 or 3: stage 0 keeps no fp32 master weights to resume from")
        if self.offload.optimizer != "none" and self.zero == 0:
            raise ValueError("offload.optimizer needs zero 1, 2 or 3")
        if self.offload.parameters != "none" and self.zero not in ("auto", 3):
            raise ValueError("offload.parameters needs zero 3")
        if self.compile and self.zero == 3:
            raise ValueError(
                "compile needs zero 0, 1 or 2: the compiler cannot see parameters that zero 3 has partitioned"
            )
        if "nvme" in (self.offload.optimizer, self.offload.parameters) and not self.offload.nvme_path:
            raise ValueError("offload to nvme needs offload.nvme_path")
        return self

    @property
    def stage(self) -> int:
        """ZeRO stage of a run that has started, when it is known."""
        assert not isinstance(self.zero, str)
        return self.zero

    @property
    def open_settings(self) -> bool:
        """Whether the plan has settings to choose."""
        return "auto" in (self.zero, self.micro_batch_size)


class KeepSpec(Spec):
    """Which checkpoints to keep."""

    last: int = Field(3, ge=1, description="the newest ones")
    every: int | None = Field(None, ge=1, description="and, permanently, those whose step is a multiple of this")
    best: int = Field(0, ge=0, description="and the best ones, by training.best")


class CheckpointSpec(Spec):
    """When checkpoints are written and which are kept."""

    every: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        50,
        description="steps between checkpoints; auto: from the cost of a save and failures; the last step is saved",
    )
    memory_every: int | None = Field(
        None, ge=1, description="steps between copies in the memory of the nodes, from which a failed gang resumes"
    )
    keep: KeepSpec = Field(KeepSpec(), description="a number: the newest ones")
    location: str | None = Field(None, description="folder or URL that checkpoints are uploaded to in the background")
    storage: StorageSpec = StorageSpec()
    verify: Literal["state", "step"] = Field(
        "state", description="on resume: compare digests of the loaded state; step: and the loss of a batch"
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _number_of_newest(cls, value: Any) -> Any:
        return {"last": value} if isinstance(value, int) else value


class SampleSpec(Spec):
    """Text that a language model generates at the end of the run and in `drivetrain predict`."""

    prompt: str = "The"
    template: str = Field("{input}", pattern=r"\{input\}", description="input of the model for a prompt")
    max_tokens: int = Field(60, ge=1)
    temperature: float = Field(0.8, ge=0, description="0: always the most likely token")


class BaselineSpec(Spec):
    """A classic method on the same split for comparison: ``function(splits) -> metrics``, or the standard one.

    See `drivetrain_workers.assessment.splits.Splits`.
    """

    function: FunctionPath | None = None
    metric: str | None = Field(None, description="metric of the comparison; training.best by default")
    mode: Literal["min", "max"] | None = Field(None, description="required with metric")

    @model_validator(mode="after")
    def _metric_with_mode(self) -> BaselineSpec:
        if (self.metric is None) != (self.mode is None):
            raise ValueError("give both metric and mode, or neither")
        return self


def _switch_or_section(baseline: object) -> str:
    return "section" if isinstance(baseline, dict | BaselineSpec) else "bool"


Baseline = Annotated[
    Annotated[bool, Tag("bool")] | Annotated[BaselineSpec, Tag("section")], Discriminator(_switch_or_section)
]


class TrainJob(BaseModel):
    """The sections of a resolved job that training needs; the others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: int
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    checkpoint: CheckpointSpec
    sample: SampleSpec | None = None
    baseline: Baseline = False
    explain: bool = False
