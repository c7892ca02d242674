"""The sections of a job file that training reads: ``model``, ``training``, ``checkpoint``, ``sample``, ``baseline``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from drivetrain_pipelines.errors import InputError
from drivetrain_pipelines.spec import DataSpec, FunctionPath, Spec, StorageSpec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

DATA_FACTS = ("vocab_size", "classes", "sequence_length")  # what a model factory can request


def _no_number_but_int(value: Any) -> Any:
    """Refuse ``true`` and ``1.0``, which are equal to 1 in Python."""
    if isinstance(value, bool | float):
        raise ValueError("auto, 0, 1, 2 or 3")
    return value


class ModelSpec(Spec):
    """The network, as functions of the user's code or of an installed package.

    ``factory(**args)`` returns a ``torch.nn.Module``. It also gets those of the `DATA_FACTS` that it has
    parameters for. Without ``loss``, the module maps int64 tokens ``[rows, length]`` to logits
    ``[rows, length, vocab]`` and the loss is next-token cross-entropy. A batch is a dictionary of tensors
    ``[rows, ...]``.

    ``outcomes(model, batch)`` returns ``probabilities`` ``[rows, ..., classes]`` and ``targets`` ``[rows, ...]``
    (default: the label), or an ``error`` for every row. It may also return ``slice``, the names of the parts of the
    data that rows or decisions belong to (default: the class), and ``score``, the value that ``explain`` explains
    (default: the probability of the chosen class). For ``assess`` see `drivetrain_workers.assessment.splits.Splits`.

    All functions except the factory and ``assess`` get a `drivetrain_workers.modeling.context.TrainContext` if they
    have a parameter ``context``.
    """

    factory: FunctionPath = Field(
        description="Function that returns the `torch.nn.Module`. It gets `args`, the paths of `files`, and those of "
        "`vocab_size`, `classes` and `sequence_length` that it has parameters for. A module in eval mode, as "
        "`from_pretrained` returns it, is set to training mode. In one in training mode, all parts keep their mode."
    )
    args: dict[str, Any] = Field({}, description="Arguments of the factory.")
    files: dict[str, str] = Field(
        {}, description="Sources by name, such as pre-trained weights. The factory gets the path of each by name."
    )
    loss: FunctionPath | None = Field(
        None, description="`function(model, batch)` that returns the mean loss. Default: next-token cross-entropy."
    )
    weight: FunctionPath | None = Field(
        None, description="`function(batch)` that returns the number of items the loss is a mean over. Default: rows."
    )
    metrics: FunctionPath | None = Field(
        None, description="`function(model, batch)` that returns means, or pairs `(total, count)`, by name."
    )
    predict: FunctionPath | None = Field(
        None, description="`function(model, batch)` that returns a value per row, by name."
    )
    outcomes: FunctionPath | None = Field(
        None,
        description="`function(model, batch)` that returns probabilities and targets, to assess the trained model.",
    )
    assess: FunctionPath | None = Field(
        None, description="`function(model, splits)` that returns numbers by name, called once after training."
    )


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSpec(Spec):
    """An optimizer. It computes the same as the one of its name in PyTorch, and gets the settings that it has."""

    type: Literal["Adam", "AdamW", "Lamb", "Lion", "SGD"] = Field(
        "AdamW",
        description="Optimizer, as in PyTorch: `Adam` adds the weight decay to the gradient, `AdamW` does not. `Lamb` "
        "and `Lion` need GPUs.",
    )
    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.95), strict=False, description="Decay rates of the moments.")
    eps: float = Field(1e-8, gt=0, description="Term added to the denominator.")
    weight_decay: float = Field(0.1, ge=0, description="Weight decay.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")


class OffloadSpec(Spec):
    """State kept in host memory or on disk instead of GPU memory."""

    optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Place of the fp32 weights and moments. Needs zero_stage 1 to 3."
    )
    parameters: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Place of the parameters. Needs zero_stage 3."
    )
    nvme_path: str | None = Field(None, description="Folder on a fast disk of every node, for `nvme`.")


class ScheduleSpec(Spec):
    """Linear warm-up from 0, then decay to ``min_ratio`` of the learning rate at the last step."""

    type: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape of the decay.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    min_ratio: float = Field(0.1, ge=0, le=1, description="Learning rate of the last step, relative to `optimizer.lr`.")


class GuardSpec(Spec):
    """Reaction to a bad step.

    ``stop`` ends the run, ``rewind`` loads the newest checkpoint and skips the batch, ``warn`` logs it and continues.
    No weight is updated with a gradient that is not finite. If a weight is not finite, ``warn`` ends the run, too.
    """

    non_finite: Literal["stop", "rewind", "warn"] = Field(
        "stop",
        description="Reaction if the loss, the gradient or a weight is NaN or infinite. Such a gradient is never "
        "applied. `warn` continues with the unchanged weights; where a weight itself is not finite, it stops the run.",
    )
    spike: Literal["stop", "rewind", "warn"] = Field(
        "warn", description="Reaction if the loss is far above the losses before it."
    )
    spike_score: float = Field(
        10.0, gt=0, description="Distance from the median, in robust standard deviations, that counts as a spike."
    )
    window: int = Field(64, ge=4, description="Number of earlier losses that a new one is compared with.")
    max_rewinds: int = Field(3, ge=0, description="Maximum number of rewinds per run. The next alarm stops it.")


class BestSpec(Spec):
    """Criterion by which evaluations are compared."""

    metric: str = Field("loss", description="`loss` for the eval loss, or a name that `model.metrics` returns.")
    mode: Literal["min", "max"] = Field("min", description="Whether lower or higher is better.")

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
    """End the run when it no longer improves, by `BestSpec`."""

    patience: int = Field(ge=1, description="Number of evaluations without improvement after which the run ends.")
    min_delta: float = Field(0.0, ge=0, description="Smallest difference that counts as an improvement.")


class TrainingSpec(Spec):
    """How the network is trained. One step is one optimizer update on ``global_batch_size`` samples."""

    renamed: ClassVar[dict[str, str]] = {
        "zero": "zero_stage",
        "schedule": "lr_schedule",
        "hang_after_s": "hang_timeout_s",
    }

    steps: int | None = Field(None, ge=1, description="Number of steps.")
    epochs: float | None = Field(
        None, gt=0, description="Number of epochs, which may be a fraction. Give either `steps` or `epochs`."
    )
    global_batch_size: int = Field(32, ge=1, description="Samples per step, the same at any number of workers.")
    micro_batch_size: int | Literal["auto"] | None = Field(
        None,
        description="Rows per forward pass. Default: all rows of a worker, at most 32. `auto`: as many as fit, by the "
        "plan.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Precision. `bf16` needs zero_stage 1 to 3.")
    optimizer: OptimizerSpec = Field(OptimizerSpec(), description="Optimizer and its settings.")
    lr_schedule: ScheduleSpec = Field(ScheduleSpec(), description="Learning rate schedule.")
    gradient_clipping: float = Field(1.0, ge=0, description="Maximum gradient norm. 0 disables clipping.")
    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(_no_number_but_int)] = Field(
        1, description="DeepSpeed ZeRO stage. `auto`: the plan selects it."
    )
    offload: OffloadSpec = Field(OffloadSpec(), description="State kept outside GPU memory.")
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of each module in a ModuleList or Sequential and recompute the rest in the "
        "backward pass.",
    )
    compile: str | None = Field(
        None,
        description="Backend of `torch.compile`, such as `inductor`. Needs zero_stage 0 to 2. Default: not compiled.",
    )
    eval_every: int = Field(50, ge=1, description="Steps between evaluations. The last step is always evaluated.")
    best: BestSpec = Field(BestSpec(), description="Criterion for `early_stop` and `checkpoint.keep.best`.")
    early_stop: EarlyStopSpec | None = Field(None, description="End the run when it no longer improves.")
    predictions: int = Field(
        16, ge=1, description="Number of evaluation samples passed to `model.predict` at each evaluation."
    )
    guard: GuardSpec = Field(GuardSpec(), description="Reaction to NaN, infinity and loss spikes.")
    on_oom: Literal["stop", "retry-smaller"] = Field(
        "stop", description="Out of memory: `retry-smaller` halves the micro-batch and keeps the global batch."
    )
    hang_timeout_s: float | Literal["auto"] = Field(
        "auto",
        description="Seconds in one phase after which a rank counts as hanging. `auto`: ten times the longest phase so "
        "far, at least 30 s.",
    )
    deepspeed: dict[str, Any] = Field({}, description="Raw DeepSpeed configuration, merged last.")

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of training.steps and training.epochs")
        if isinstance(self.hang_timeout_s, float) and self.hang_timeout_s <= 0:
            raise ValueError(f"hang_timeout_s must be above 0 or auto, got {self.hang_timeout_s}")
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1 or auto, got {self.micro_batch_size}")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 needs zero_stage 1, 2 or 3: stage 0 keeps no fp32 master weights to resume from"
            )
        if self.offload.optimizer != "none" and self.zero_stage == 0:
            raise ValueError("offload.optimizer needs zero_stage 1, 2 or 3")
        if self.offload.parameters != "none" and self.zero_stage not in ("auto", 3):
            raise ValueError("offload.parameters needs zero_stage 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile needs zero_stage 0, 1 or 2: the compiler cannot see parameters that zero 3 has partitioned"
            )
        if "nvme" in (self.offload.optimizer, self.offload.parameters) and not self.offload.nvme_path:
            raise ValueError("offload to nvme needs offload.nvme_path")
        return self

    @property
    def stage(self) -> int:
        """ZeRO stage of a run that has started; ``auto`` is resolved by then."""
        assert not isinstance(self.zero_stage, str)
        return self.zero_stage

    @property
    def open_settings(self) -> bool:
        """Whether the plan selects a setting."""
        return "auto" in (self.zero_stage, self.micro_batch_size)


class KeepSpec(Spec):
    """Which checkpoints are kept."""

    last: int = Field(3, ge=1, description="Number of newest checkpoints to keep.")
    every: int | None = Field(None, ge=1, description="Also keep checkpoints whose step is a multiple of this.")
    best: int = Field(0, ge=0, description="Also keep this many best checkpoints, by `training.best`.")


class CheckpointSpec(Spec):
    """When checkpoints are written and which are kept."""

    every: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        50,
        description="Steps between checkpoints. `auto` weighs the cost of a save against the failure rate of the run "
        "(Young's formula). The last step is always saved.",
    )
    memory_every: int | None = Field(
        None, ge=1, description="Steps between copies in the memory of the nodes, from which a failed gang restarts."
    )
    keep: KeepSpec = Field(KeepSpec(), description="Which checkpoints are kept. A number stands for `keep.last`.")
    location: str | None = Field(
        None, description="Folder or URL to which checkpoints are uploaded in the background, below the id of the run."
    )
    storage: StorageSpec = Field(StorageSpec(), description="Access to object storage for `location`.")
    verify: Literal["state", "step"] = Field(
        "state",
        description="Check after loading. `state`: digests of the loaded state. `step`: also the loss of one batch.",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _number_of_newest(cls, value: Any) -> Any:
        return {"last": value} if isinstance(value, int) else value


class SampleSpec(Spec):
    """Text generation at the end of the run, and the defaults of `drivetrain predict`."""

    prompt: str = Field("The", description="Prompt of the sample at the end of the run.")
    template: str = Field(
        "{input}", pattern=r"\{input\}", description="Text given to the model; `{input}` stands for the prompt."
    )
    max_tokens: int = Field(60, ge=1, description="Maximum number of generated tokens.")
    temperature: float = Field(0.8, ge=0, description="Sampling temperature. 0 always takes the most likely token.")
    stop: list[Annotated[str, StringConstraints(min_length=1)]] = Field(
        [],
        description="Texts before which the generated text ends. It also ends at every token of the tokenizer that "
        "ends a text or a turn, such as `</s>` or `<|im_end|>`.",
    )


class BaselineSpec(Spec):
    """A classic method trained and measured on the same split, for comparison with the network.

    See `drivetrain_workers.assessment.splits.Splits`.
    """

    function: FunctionPath | None = Field(
        None, description="`function(splits)` that returns metrics by name. Default: a method that suits the data."
    )
    metric: str | None = Field(None, description="Metric of the comparison. Default: `training.best`.")
    mode: Literal["min", "max"] | None = Field(None, description="Whether lower or higher is better, with `metric`.")

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
    """The sections of a resolved job that training needs; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: int
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    checkpoint: CheckpointSpec
    sample: SampleSpec | None = None
    baseline: Baseline = False
    explain: bool = False
