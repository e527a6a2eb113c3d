"""The recipe: what is trained, on what and how. What it runs on is the config's matter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wmtp.stopping.config import EarlyStoppingConfig, ValueHeadStoppingConfig

ALIASES = {
    ("loss", "temperature"): "weight_temperature",
    ("critic", "value_coef"): "auxiliary_loss_coef",
}
"""Key path -> the name that the key stands for."""

RETIRED = {
    ("train", "stage1"): "moved to top-level `pretrain`",
    ("critic", "pretrainer"): "moved to top-level `pretrain`",
}
"""Key path -> cure, for keys that people know from earlier recipes or other tools."""

Algo = Literal["baseline-mtp", "critic-wmtp", "rho1-wmtp", "diff-wmtp"]
Source = Literal["mbpp", "contest", "humaneval", "custom"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NonEmpty = Annotated[str, Field(min_length=1)]
Metric = Annotated[
    str,
    Field(
        pattern=r"^(mbpp|humaneval|contest|custom)_(exact|pass@[1-9][0-9]{0,3})$",
        examples=[f"{s}_{m}" for s in ("mbpp", "humaneval", "contest", "custom") for m in ("exact", "pass@1")],
    ),
]
_UNIQUE: dict[str, Any] = {"uniqueItems": True}


class Section(BaseModel):
    """Closed and frozen: an unknown key is an error, a value never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Run(Section):
    """How the run is called."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,100}$", description="name of the run: 1 to 100 letters, digits, . _ or -"
    )
    tags: tuple[NonEmpty, ...] = Field(default=(), description="labels to find the run by")


class Model(Section):
    """The heads that are put on the base model."""

    horizon: Count = Field(
        default=4,
        description="number of heads: head k predicts the k-th next token; 1 is plain next-token training",
    )
    head: Literal["transformer", "residual"] = Field(
        default="transformer",
        description="extra head: one more decoder layer (Gloeckle et al.) or a residual block (Medusa)",
    )
    head_warmup_steps: int = Field(
        default=0, ge=0, description="steps at the start in which the extra heads learn alone"
    )
    detach_heads: bool = Field(default=False, description="true: heads 2..H don't push the trunk")
    head_coefficients: tuple[NotNegative, ...] | None = Field(
        default=None, description="weight of each head in the loss, mean one; null: all equal"
    )
    native_mtp: Literal["refuse", "drop"] = Field(
        default="refuse", description="what to do with MTP weights that the base checkpoint brings along"
    )


class Pretrain(Section):
    """Stage 1: a value head learns on frozen hidden states (critic-wmtp alone)."""

    enabled: bool = Field(default=True, description="false leaves stage 1 out")
    num_epochs: Count = Field(default=3, description="passes over the training data at most")
    max_steps: Count = Field(default=2000, description="steps at most, over all epochs")
    lr: Positive = Field(default=1e-4, description="learning rate of the value head")
    batch_size: Count | None = Field(default=None, description="sequences per step; null: that of data.train")
    save_value_head: bool = Field(default=True, description="whether the value head is written into the run's folder")
    early_stopping: ValueHeadStoppingConfig = Field(
        default=ValueHeadStoppingConfig(), description="when stage 1 stops early"
    )


class Train(Section):
    """Stage 2: the MTP model learns with the weighted loss."""

    algo: Algo = Field(description="where the weights of the targets come from")
    full_finetune: bool = Field(default=True, description="false: the trunk is frozen, the extra heads learn alone")
    num_epochs: Count = Field(default=3, description="passes over the training data at most")
    max_steps: Count | None = Field(
        default=None, description="steps at most, over all epochs; null: epochs alone count"
    )
    eval_interval: Count = Field(default=500, description="steps between two measurements of the held-out loss")
    save_interval: Count = Field(default=1000, description="steps between two checkpoints")
    early_stopping: EarlyStoppingConfig = Field(default=EarlyStoppingConfig(), description="when stage 2 stops early")


class Optim(Section):
    """The optimizer of stage 2."""

    optimizer: Literal["adamw", "lion", "sgd"] = Field(default="adamw", description="update rule")
    lr: Positive = Field(default=1.2e-5, description="highest learning rate")
    heads_lr: Positive | None = Field(
        default=None, description="that of the extra heads, which start fresh and can take more; null: lr"
    )
    weight_decay: NotNegative = Field(default=0.1, description="decoupled weight decay, of matrices alone")
    betas: tuple[BelowOne, BelowOne] = Field(default=(0.9, 0.95), description="averages of gradient and its square")
    grad_clip: Positive | None = Field(default=1.0, description="highest norm of the whole gradient; null: no clipping")
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after the warm-up"
    )
    warmup_ratio: Share = Field(default=0.03, description="share of all steps over which the learning rate rises")


class DataPart(Section):
    """Sequences to train on, or to measure the held-out loss on."""

    sources: tuple[Source, ...] = Field(
        min_length=1, description="data sets; the config says where they lie", json_schema_extra=_UNIQUE
    )
    max_length: int = Field(default=2048, ge=2, description="tokens per sequence at most")
    batch_size: Count = Field(default=8, description="sequences per update")
    pack_sequences: bool = Field(
        default=True, description="several documents per sequence; none sees another, no loss changes"
    )
    mask_prompt: bool = Field(default=True, description="true: the response's tokens alone are learnt")


class Data(Section):
    """What is read."""

    train: DataPart = Field(description="what is learnt")
    eval: DataPart = Field(
        default_factory=lambda fields: fields["train"],
        description="what the held-out loss is measured on, the sources' held-out parts; default: as train",
    )


class Loss(Section):
    """From scores to weights."""

    weight_norm: Literal["mean1.0_clip", "softmax", "none"] = Field(
        default="mean1.0_clip",
        description="mean one per sequence within bounds; softmax over heads times their number; unscaled",
    )
    lambda_: float = Field(
        default=0.3,
        alias="lambda",
        gt=0,
        le=1,
        description="strength of the weighting; towards 0 it is the baseline",
    )
    weight_temperature: Positive = Field(
        default=0.7,
        description="weights are exp(score / this); low: few tokens get most (alias: temperature)",
    )
    epsilon: float = Field(default=0.05, ge=0, lt=1, description="lowest weight under mean1.0_clip")
    max_weight: float = Field(default=3.0, gt=1, description="highest weight under mean1.0_clip")
    control: Literal["none", "shuffled", "random_matched"] = Field(
        default="none",
        description="for honest claims: the same weights permuted per sequence, or random ones like them",
    )


class Critic(Section):
    """Value targets, and scores from values (critic-wmtp)."""

    target: Literal["rm_sequence", "verified"] = Field(
        default="rm_sequence",
        description="reward of a sequence: a reward model's score, or whether the program passes",
    )
    token_spread: Literal["uniform", "length", "attention", "gae"] = Field(
        default="gae", description="how a sequence's reward is spread over its tokens"
    )
    delta_mode: Literal["td", "diff"] = Field(
        default="td", description="score of token j: V[j] - discount_lambda * V[j-1], or V[j] - V[j-1]"
    )
    normalize: Literal["zscore", "minmax", "none"] = Field(
        default="zscore", description="scaling of the scores within a sequence"
    )
    discount_lambda: Share = Field(default=0.95, description="discount of delta_mode td")
    gamma: Share = Field(default=0.99, description="discount of the value targets")
    gae_lambda: Share = Field(default=0.95, description="bias against variance in the value targets (GAE)")
    auxiliary_loss_coef: NotNegative = Field(
        default=0.1, description="share of the value loss in stage 2 (alias: value_coef)"
    )
    value_lr: Positive = Field(default=5e-5, description="learning rate of the value head in stage 2")
    use_pseudo_rewards: bool = Field(
        default=True, description="without a reward model: true takes the base model's mean log-likelihood"
    )
    on_useless: Literal["warn", "uniform", "fail"] = Field(
        default="warn", description="what to do with a critic that explains nothing on held-out data"
    )


class Rho1(Section):
    """Scores from the excess loss over a reference model (rho1-wmtp)."""

    selection_mode: Literal["weighted", "token_skip"] = Field(
        default="weighted", description="weigh all targets, or drop those with the lowest scores"
    )
    skip_threshold_percentile: BelowOne = Field(
        default=0.3, description="share of a sequence's targets that token_skip drops"
    )
    min_ce_diff: NotNegative = Field(default=0.01, description="scores nearer to 0 than this count as 0, in nats")
    score_from: Literal["head1", "per_head"] = Field(
        default="head1", description="one score per token, from head 1, or each head's own"
    )
    reference: Literal["cached", "live"] = Field(
        default="cached",
        description="the reference's losses are computed once per data set and kept, or anew in each step",
    )


class Sampling(Section):
    """How programs are sampled."""

    temperature: NotNegative = Field(default=0.2, description="0 is greedy decoding")
    temperature_grid: tuple[NotNegative, ...] = Field(
        default=(),
        description="more temperatures to sample at; the best of all is reported too, as the oracle that it is",
        json_schema_extra=_UNIQUE,
    )
    top_p: float = Field(default=0.95, gt=0, le=1, description="share of the probability that is sampled from")
    n: Count = Field(default=1, description="programs per problem and temperature")


class Eval(Section):
    """The evaluation after training."""

    protocol: Literal["meta-mtp", "mbpp/austin-3shot", "mbpp/bigcode-0shot", "humaneval"] = Field(
        default="meta-mtp", description="how problems are put and answers cut: docs/evaluation.md"
    )
    sampling: Sampling = Field(default=Sampling(), description="how programs are sampled")
    metrics: tuple[Metric, ...] = Field(
        default=(),
        description="{mbpp,humaneval,contest,custom}_exact or _pass@k; none: no evaluation",
        json_schema_extra=_UNIQUE,
    )
    before: bool = Field(default=False, description="evaluate the base model too, before it is trained")
    limit: Count | None = Field(default=None, description="problems of each source, the first ones; null: all")
    max_new_tokens: Count | None = Field(default=None, description="tokens of an answer; null: the protocol's number")
    batch_size: Count = Field(default=32, description="answers that are generated side by side")
    speculative: bool = Field(default=False, description="heads 2..H draft and head 1 verifies: same answers, faster")


class Recipe(Section):
    """One training run. `wmtp.settings.load_recipe` reads it with all its checks."""

    run: Run = Field(description="how the run is called")
    model: Model = Field(default=Model(), description="the heads that are put on the base model")
    pretrain: Pretrain | None = Field(
        default=None, description="stage 1, for critic-wmtp; null: no stage 1, the critic starts fresh"
    )
    train: Train = Field(description="stage 2")
    optim: Optim = Field(default=Optim(), description="the optimizer of stage 2")
    data: Data = Field(description="what is read")
    loss: Loss = Field(default=Loss(), description="from scores to weights")
    critic: Critic | None = Field(default=None, description="settings of critic-wmtp")
    rho1: Rho1 | None = Field(default=None, description="settings of rho1-wmtp")
    eval: Eval = Field(default=Eval(), description="the evaluation after training")
