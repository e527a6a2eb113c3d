"""The config: where things lie and what the run uses of this machine. Everything has a default that runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from wmtp.settings.recipe import Count, NonEmpty, Section


class Models(Section):
    """A model is `builtin:tiny`, a folder, a .gguf file, a hub id, or a URL that fsspec knows."""

    base: NonEmpty = Field(default="builtin:tiny", description="the model that is fine-tuned")
    rm: NonEmpty | None = Field(default=None, description="reward model (critic-wmtp)")
    ref: NonEmpty | None = Field(default=None, description="reference model (rho1-wmtp)")
    value_head: NonEmpty | None = Field(
        default=None, description="folder of a value head that a run has saved, to begin with (critic-wmtp)"
    )


class DatasetSplits(Section):
    """A data set whose splits lie in different places; at least one is given."""

    train: NonEmpty | None = Field(default=None, description="what is trained on")
    validation: NonEmpty | None = Field(default=None, description="what the held-out loss is measured on")
    test: NonEmpty | None = Field(default=None, description="what the evaluation uses")


def _shape(value: object) -> str:
    return "splits" if isinstance(value, dict | DatasetSplits) else "text"


DatasetPath = Annotated[
    Annotated[NonEmpty, Tag("text")] | Annotated[DatasetSplits, Tag("splits")], Discriminator(_shape)
]


class Datasets(Section):
    """Where the data sources of the recipe lie: a file, folder, hub id or URL, or one for each split."""

    mbpp: DatasetPath | None = Field(default="builtin:tasks", description="MBPP, or tasks in its form")
    contest: DatasetPath | None = Field(default=None, description="programming contests")
    humaneval: DatasetPath | None = Field(default=None, description="HumanEval (evaluation only)")
    custom: DatasetPath | None = Field(default=None, description="JSONL with prompt and response, or code files")


class Checkpoints(Section):
    """Checkpoints of a run."""

    base_path: NonEmpty | None = Field(
        default=None, description="folder or URL (s3://..) for checkpoints; null: inside the run's folder"
    )
    save_interval: Count | None = Field(default=None, description="steps between two; null: the recipe's")
    keep_last: Count = Field(default=3, description="newest checkpoints that are kept, beside the best")
    background: bool = Field(
        default=True, description="write while training goes on, from a copy in the CPU's memory; false: wait for it"
    )
    save_final: bool = Field(default=True, description="whether the last step is saved whatever the interval")


class Paths(Section):
    """Where things lie."""

    models: Models = Field(default=Models(), description="where the models come from")
    datasets: Datasets = Field(default=Datasets(), description="where the data sources of the recipe lie")
    checkpoints: Checkpoints = Field(default=Checkpoints(), description="where and how often checkpoints are saved")
    output: NonEmpty = Field(default="runs", description="folder that gets one folder per run")
    cache: NonEmpty | None = Field(default=None, description="folder for tokenised data; null: ~/.cache/wmtp")


class Mlflow(Section):
    """Tracking with MLflow, beside `metrics.jsonl`, which is always written."""

    enabled: bool = Field(default=True, description="false: metrics.jsonl alone")
    experiment: NonEmpty | None = Field(default=None, description="experiment's name; null: the project's")
    tracking_uri: NonEmpty | None = Field(default=None, description="where runs go; null: sqlite in the output folder")
    registry_uri: NonEmpty | None = Field(default=None, description="model registry; null: that of tracking_uri")


Seconds = Annotated[float, Field(gt=0)]


class Distributed(Section):
    """How the processes of a run talk to each other; nothing here matters to a run of one process."""

    backend: Literal["auto", "gloo", "nccl"] = Field(default="auto", description="auto: nccl on CUDA, else gloo")
    start_timeout: Seconds = Field(
        default=1800, description="seconds that a process waits for the others, or hears nothing of one, at first"
    )
    timeout: Seconds = Field(default=120, description="the same once training goes")
    save_wait: Seconds = Field(
        default=600, description="seconds that a checkpoint waits for the one before to be written, or is left out"
    )


class Fsdp(Section):
    """How weights, gradients and optimizer are spread over processes (FSDP2); not at all where there is one."""

    sharding: Literal["full", "hybrid", "none"] = Field(
        default="full", description="full: over all processes; hybrid: within groups; none: each has a whole copy"
    )
    shard_size: Count | None = Field(
        default=None, description="hybrid: processes that share one copy; null: those of one machine"
    )
    param_dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="what weights are gathered in; auto: bf16 for bf16 on CUDA, else fp32"
    )
    cpu_offload: bool = Field(default=False, description="keep shards in the CPU's memory (CUDA)")
    reshard_after_forward: bool = Field(
        default=True, description="free a layer's gathered weights until the backward pass needs them"
    )


class Devices(Section):
    """What of this machine is used; none of it changes what is computed, but for rounding."""

    compute_backend: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="where tensors live")
    mixed_precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="precision of forward and backward; auto: bf16 on CUDA, fp32 elsewhere"
    )
    num_proc: Count = Field(default=1, description="processes that `wmtp train` starts; torchrun starts its own")
    micro_batch_size: Count | None = Field(
        default=None, description="rows per forward pass of a process, to save memory; null: all that it has"
    )
    activation_checkpointing: bool = Field(
        default=False, description="keep each layer's input alone for the backward pass: less memory, a third more time"
    )
    distributed: Distributed = Field(default=Distributed(), description="how processes talk to each other")
    fsdp: Fsdp = Field(default=Fsdp(), description="how weights are spread over processes")


class Config(Section):
    """One machine. `wmtp.settings.load_config` reads it with all its checks."""

    project: NonEmpty = Field(default="wmtp", description="what the runs belong to")
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="every random choice derives from it")
    log_interval: Count = Field(default=10, description="steps between two lines of metrics")
    paths: Paths = Field(default=Paths(), description="where things lie")
    mlflow: Mlflow = Field(default=Mlflow(), description="tracking")
    devices: Devices = Field(default=Devices(), description="what of this machine is used")
