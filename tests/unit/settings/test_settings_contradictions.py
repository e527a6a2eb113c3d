"""Settings that contradict each other, in one file or across both."""

from pathlib import Path

import pytest

from wmtp.errors import SettingsError
from wmtp.settings import Recipe, load_settings

LEAST = "run: {name: r}\ntrain: {algo: baseline-mtp}\ndata: {train: {sources: [mbpp]}}\n"
STOP = "enabled: true, monitor"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems(recipe: str = LEAST, config: str | None = None, *overrides: str) -> list[str]:
    Path("recipe.yaml").write_text(recipe)
    if config is not None:
        Path("config.yaml").write_text(config)
    with pytest.raises(SettingsError) as caught:
        load_settings("recipe.yaml", None if config is None else "config.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def accept(recipe: str = LEAST, *overrides: str, config: str | None = None) -> Recipe:
    Path("recipe.yaml").write_text(recipe)
    if config is not None:
        Path("config.yaml").write_text(config)
    return load_settings("recipe.yaml", None if config is None else "config.yaml", overrides).recipe


# The algorithms and their sections

WITH_REFERENCE = "paths: {models: {ref: some/model}}\n"


@pytest.mark.parametrize("name", ["critic", "rho1"])
def test_algorithm_needs_its_section(name):
    recipe = LEAST.replace("baseline-mtp", f"{name}-wmtp")
    assert problems(recipe, WITH_REFERENCE) == [
        f'recipe.yaml:2: train.algo = "{name}-wmtp": needs the section `{name}`; '
        f"write `{name}: {{}}` to take its defaults"
    ]
    accept(recipe + f"{name}: {{}}", config=WITH_REFERENCE)


def test_rho1_needs_a_reference():
    (line,) = problems(LEAST.replace("baseline-mtp", "rho1-wmtp") + "rho1: {}\n")
    assert line == (
        'recipe.yaml:2: train.algo = "rho1-wmtp": needs a reference model with the same tokenizer; '
        "set `paths.models.ref` in the config"
    )


@pytest.mark.parametrize("algo", ["baseline-mtp", "rho1-wmtp", "diff-wmtp"])
def test_pretraining_is_for_the_critic_alone(algo):
    recipe = LEAST.replace("baseline-mtp", algo) + "rho1: {}\n"
    assert problems(recipe + "pretrain: {lr: 1e-3}\n", WITH_REFERENCE) == [
        "recipe.yaml:5: pretrain.enabled: critic-wmtp alone pretrains, "
        f"`train.algo` is {algo}; write false here or remove `pretrain`"
    ]
    accept(recipe + "pretrain: {enabled: false}\n", config=WITH_REFERENCE)


def test_critic_without_pretraining_is_allowed():
    accept(LEAST.replace("baseline-mtp", "critic-wmtp") + "critic: {}\n")


def test_rewards_need_a_model_unless_pseudo_rewards_are_allowed():
    recipe = LEAST.replace("baseline-mtp", "critic-wmtp") + "pretrain: {}\ncritic: {use_pseudo_rewards: false}\n"
    assert problems(recipe) == [
        "recipe.yaml:5: critic.use_pseudo_rewards = false: there is no reward model; "
        "set `paths.models.rm` in the config, or write true here"
    ]
    accept(recipe, "paths.models.rm=some/model")
    accept(recipe, "critic.target=verified")
    accept(recipe, "pretrain.enabled=false")


# The heads


@pytest.mark.parametrize(
    "override",
    ["model.detach_heads=true", "model.head_warmup_steps=5", "optim.heads_lr=0.001", "train.full_finetune=false"],
)
def test_one_head_has_no_extra_heads(override):
    (line,) = problems(LEAST, None, "model.horizon=1", override)
    assert line.startswith(f"--set {override}: `model.horizon: 1` has no extra heads")
    accept(LEAST, override)
    accept(LEAST, "model.horizon=1")


def test_coefficients_with_mean_one():
    recipe = accept(LEAST, "model.head_coefficients=[2, 1, 1, 0]")
    assert recipe.model.head_coefficients == (2.0, 1.0, 1.0, 0.0)
    accept(LEAST, "model.head_coefficients=[1.0000009, 1, 1, 1]")
    problems(LEAST, None, "model.head_coefficients=[1.00001, 1, 1, 1]")


# Stopping


@pytest.mark.parametrize(
    "monitor", ["loss", "wmtp_loss", "grad_norm", "lr", "eval_loss", "loss_h1", "loss_h4", "eval_loss_h4"]
)
def test_metrics_of_stage_2(monitor):
    accept(LEAST, f"train.early_stopping={{{STOP}: {monitor}}}")


@pytest.mark.parametrize("monitor", ["loss", "value_loss", "grad_norm", "value_variance", "explained_variance"])
def test_metrics_of_stage_1(monitor):
    recipe = LEAST.replace("baseline-mtp", "critic-wmtp") + "critic: {}\n"
    accept(recipe, f"pretrain.early_stopping={{{STOP}: {monitor}}}")


@pytest.mark.parametrize(
    ("monitor", "near"),
    [
        ("eval_los", "eval_loss"),
        ("value_los", ""),
        ("loss_h5", "loss_h"),
        ("eval_loss_h5", "eval_loss_h"),
        ("Loss", "loss"),
    ],
)
def test_a_metric_that_stage_2_does_not_have(monitor, near):
    (line,) = problems(LEAST, None, f"train.early_stopping={{{STOP}: {monitor}}}")
    assert f'train.early_stopping.monitor = "{monitor}": this stage has no such metric; ' in line
    assert f"did you mean {near}" in line or not near
    assert (
        "There are loss, wmtp_loss, grad_norm, lr, eval_loss, and per head loss_h1.. and eval_loss_h1.., up to 4"
        in line
    )


def test_a_metric_that_stage_1_does_not_have():
    recipe = LEAST.replace("baseline-mtp", "critic-wmtp") + "critic: {}\n"
    (line,) = problems(recipe, None, f"pretrain.early_stopping={{{STOP}: eval_loss}}")
    assert "did you mean value_loss?" in line
    assert line.endswith(
        "There are loss, value_loss, grad_norm, value_variance, explained_variance, variance_ratio, "
        "eval_value_loss, eval_value_variance, eval_explained_variance, eval_variance_ratio"
    )


def test_an_absurd_horizon_takes_no_time():
    override = f"train.early_stopping={{{STOP}: loss_h9}}"
    (line,) = problems(LEAST, None, override, "model.horizon=1000000000000")  # checks don't count up to it
    assert "must be above `model.horizon`" in line


def test_a_monitor_that_is_not_used_is_not_checked():
    accept(LEAST, "train.early_stopping.monitor=whatever")


def test_restore_best_needs_a_metric_of_evaluations():
    (line,) = problems(LEAST, None, f"train.early_stopping={{{STOP}: loss, restore_best: true}}")
    assert "train.early_stopping.restore_best = true: the best step is known only for a metric measured" in line
    assert "write `monitor: eval_loss`" in line
    accept(LEAST, f"train.early_stopping={{{STOP}: eval_loss_h2, restore_best: true}}")
    critic = LEAST.replace("baseline-mtp", "critic-wmtp") + "critic: {}\n"
    accept(critic, f"pretrain.early_stopping={{{STOP}: eval_value_loss, restore_best: true}}")
    (line,) = problems(critic, None, f"pretrain.early_stopping={{{STOP}: value_loss, restore_best: true}}")
    assert "pretrain.early_stopping.restore_best = true: " in line
    assert "write `monitor: eval_value_loss`" in line


def test_variance_bounds_in_the_wrong_order():
    (line,) = problems(LEAST, None, "train.early_stopping={variance_min: 3, variance_max: 1}")
    assert ": train.early_stopping.variance_min = 3: " in line
    assert "above variance_max" in line


def test_problems_that_only_show_once_others_are_mended_are_reported_too():
    lines = problems(LEAST, None, "train.early_stopping={variance_min: 3, variance_max: 1, patience: 0}")
    assert len(lines) == 2


# Data


def test_sources_need_a_path():
    recipe = LEAST.replace("[mbpp]", "[mbpp, custom]")
    assert problems(recipe) == [
        'recipe.yaml:3: data.train.sources[1] = "custom": `paths.datasets.custom` is not set in the config; '
        "set it to where the data lies"
    ]
    accept(recipe, "paths.datasets.custom=x.jsonl")


def test_metrics_need_a_path():
    (line,) = problems(LEAST + "eval: {metrics: [mbpp_exact, humaneval_pass@1]}\n")
    assert line.startswith(
        'recipe.yaml:4: eval.metrics[1] = "humaneval_pass@1": `paths.datasets.humaneval` is not set in the config'
    )


def test_evaluation_may_use_what_training_may_not():
    accept(LEAST, "data.eval={sources: [humaneval]}", "paths.datasets.humaneval=x.jsonl")


def test_pass_at_k_with_enough_programs():
    accept(LEAST, "eval.metrics=[mbpp_pass@5, mbpp_exact]", "eval.sampling.n=5")


def test_more_than_one_greedy_program():
    (line,) = problems(LEAST, None, "eval.sampling={temperature: 0, n: 5}")
    assert "eval.sampling.n = 5: greedy decoding (temperature 0) gives the same program each time; set n: 1" in line
    (line,) = problems(LEAST, None, "eval.sampling={temperature: 0.2, temperature_grid: [0.0], n: 5}")
    assert "greedy decoding" in line
    accept(LEAST, "eval.sampling={temperature: 0, n: 1}")


def test_a_protocol_for_another_source():
    (line,) = problems(LEAST, None, "eval={protocol: humaneval, metrics: [mbpp_pass@1]}")
    assert "eval.metrics[0]" in line
    assert "protocol humaneval puts humaneval problems alone; set eval.protocol: meta-mtp" in line
    accept(LEAST, "eval={protocol: mbpp/austin-3shot, metrics: [mbpp_pass@1]}")


def test_drafting_with_one_head():
    (line,) = problems(LEAST, None, "model.horizon=1", "eval.speculative=true")
    assert "eval.speculative=true: needs heads that draft: model.horizon 2 or more, it is 1" in line
