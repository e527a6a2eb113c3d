"""What is wrong with settings is said all at once, with place, key path, value and cure."""

from pathlib import Path

import pytest

from wmtp.errors import SettingsError
from wmtp.settings import Recipe, check_settings, load_config, load_recipe, load_settings

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


# One override each on a recipe that is otherwise fine -> start of the message behind "--set ...: ".
WRONG_VALUES = [
    ("loss.lambda=1.5", "must be a number above 0 and at most 1 (strength of the weighting"),
    ("loss.lambda=0", "must be a number above 0 and at most 1"),
    ("loss.epsilon=1", "must be a number at least 0 and below 1"),
    ("loss.max_weight=1", "must be a number above 1"),
    ("loss.weight_temperature=0", "must be a number above 0"),
    ("loss.weight_norm=sofmax", "must be one of mean1.0_clip, softmax, none; did you mean `softmax`?"),
    ("loss.control=null", "must be one of none, shuffled, random_matched; did you mean `none`?"),
    ("train.algo=critic", "must be one of baseline-mtp, critic-wmtp, rho1-wmtp, diff-wmtp"),
    ("train.max_steps=0", "must be a whole number at least 1 or null"),
    ("train.max_steps=3.0", "must be a whole number at least 1 or null; write 3"),
    ("train.max_steps='5'", "must be a whole number at least 1 or null; write 5, without quotes"),
    ("train.max_steps=1_000", "must be a whole number at least 1 or null; write 1000, without quotes"),
    ("train.max_steps=true", "must be a whole number at least 1 or null ("),
    ("train.full_finetune=1", "must be true or false ("),
    ("train.full_finetune=off", "must be true or false; write false"),
    ("optim.lr=true", "must be a number above 0 ("),
    ("optim.lr='1e-4'", "must be a number above 0; write 1e-4, without quotes"),
    ("optim.lr=-1", "must be a number above 0"),
    ("optim.betas=[0.9, 1]", "optim.betas[1] = 1: must be a number at least 0 and below 1"),
    ("optim.betas=[0.9]", "must be a list of 2 numbers"),
    ("optim.betas=[0.9, 0.9, 0.9]", "must be a list of 2 numbers"),
    ("optim.betas=0.9", "must be a list of 2 numbers"),
    ("optim.scheduler=cos", "must be one of cosine, linear, constant"),
    ("optim.warmup_ratio=1.1", "must be a number at least 0 and at most 1"),
    ("optim=3", "must be a section with the keys optimizer, lr, heads_lr, weight_decay, betas"),
    ("optim=null", "must be a section with the keys optimizer, lr, heads_lr, weight_decay, betas"),
    ("train.early_stopping=true", "must be a section with the keys enabled, patience"),
    ("train.early_stopping.patience=0", "must be a whole number at least 1"),
    ("train.early_stopping.min_delta=0", "must be a number above 0"),
    ("train.early_stopping.mode=both", "must be one of any, all, loss_only"),
    ("train.early_stopping.grad_norm_threshold_ratio=0", "must be a number above 0 and at most 1"),
    ("data.train.sources=mbpp", "must be a non-empty list of names such as mbpp, contest, humaneval, custom; write ["),
    ("data.train.sources=[]", "must be a non-empty list"),
    ("data.train.sources=[mbp]", 'data.train.sources[0] = "mbp": must be one of mbpp, contest, humaneval, custom; did'),
    ("data.train.sources=[mbpp, mbpp]", 'data.train.sources[1] = "mbpp": mbpp is named twice'),
    ("data.train.sources=[humaneval]", 'data.train.sources[0] = "humaneval": humaneval is for evaluation only'),
    ("data.train.max_length=4", "must be above `model.horizon`, 4"),
    ("run.name=7", 'must be text; put it in quotes: "7" (name of the run'),
    ("run.name=a/b", "must be text (name of the run: 1 to 100 letters"),
    ("run.name=..", "can't name a folder"),
    ("run.tags=[a, 1]", 'run.tags[1] = 1: must be non-empty text; put it in quotes: "1"'),
    ("rho1.skip_threshold_percentile=1", "must be a number at least 0 and below 1"),
    ("critic.gamma=1.01", "must be a number at least 0 and at most 1"),
    ("eval.sampling.n=0", "must be a whole number at least 1"),
    ("eval.sampling.top_p=0", "must be a number above 0 and at most 1"),
    ("eval.metrics=[mbpp_exct]", 'eval.metrics[0] = "mbpp_exct": must be text such as mbpp_exact, mbpp_pass@1'),
    ("eval.metrics=[mbpp_pass@0]", 'eval.metrics[0] = "mbpp_pass@0": must be text such as'),
    ("eval.metrics=[mbpp_pass@2]", 'eval.metrics[0] = "mbpp_pass@2": needs at least 2 programs per problem'),
    ("eval.metrics=[mbpp_exact, mbpp_exact]", 'eval.metrics[1] = "mbpp_exact": mbpp_exact is named twice'),
    ("model.horizon=0", "must be a whole number at least 1"),
    ("model.head_coefficients=[1, 1]", "has 2 values, `model.horizon` is 4"),
    ("model.head_coefficients=[4, 2, 1, 1]", "the mean must be 1, not 2; write [2.0, 1.0, 0.5, 0.5]"),
    ("model.head_coefficients=[0, 0, 0, 0]", "at least one must be above 0"),
    ("model.head_coefficients=[3, 1, 1, -1]", "model.head_coefficients[3] = -1: must be a number at least 0"),
    ("seed=-1", "must be a whole number at least 0 and at most 4294967295"),
    ("log_interval=0", "must be a whole number at least 1"),
    ("paths.checkpoints.keep_last=0", "must be a whole number at least 1"),
    ("paths.checkpoints.save_interval=0", "must be a whole number at least 1 or null"),
    ("paths.output=", "must be non-empty text ("),
    ("paths.datasets.mbpp=3", "must be non-empty text or a section with the keys train, validation, test or null"),
    ("paths.datasets.mbpp={}", "needs at least one of train, validation, test"),
    ("paths.datasets.mbpp={test: 3}", "paths.datasets.mbpp.test = 3: must be non-empty text or null; put it in quotes"),
    ("devices.num_proc=0", "must be a whole number at least 1"),
    ("devices.compute_backend=gpu", "must be one of auto, cpu, cuda, mps"),
    ("devices.mixed_precision=fp61", "must be one of auto, bf16, fp16, fp32; did you mean `fp16`?"),
    # unknown, retired and misplaced keys
    ("loss.lamda=0.3", "unknown key, did you mean `lambda`?"),
    ("loss.xyzzy=1", "unknown key; there are weight_norm, lambda, weight_temperature"),
    ("train.early_stopping.patince=3", "unknown key, did you mean `patience`?"),
    ("paths.datasets.mbbp=x", "unknown key, did you mean `mbpp`?"),
    ("paths.datasets.mbpp={trian: x, test: y}", 'paths.datasets.mbpp.trian = "x": unknown key, did you mean `train`?'),
    ("trian.algo=baseline-mtp", "unknown key trian, did you mean `train`?"),
    ("sed=3", "unknown key sed, did you mean `seed`?"),
    ("qqqq=3", "unknown key qqqq; there are run, model,"),
    ("train.stage1={}", "moved to top-level `pretrain`"),
    ("train.stage1.lr=1", 'train.stage1 = {"lr": 1}: moved to top-level `pretrain`'),
    ("critic.pretrainer={}", "moved to top-level `pretrain`"),
    ("devices.fsdp.shardng=full", "unknown key, did you mean `sharding`?"),
    ("devices.fsdp.shard_size=2", "counts with sharding: hybrid alone; set that, or remove it"),
    (
        "devices={num_proc: 6, fsdp: {sharding: hybrid, shard_size: 4}}",
        "devices.fsdp.shard_size = 4: the 6 processes can't be divided into groups of 4",
    ),
    ("devices={num_proc: 2, mixed_precision: fp16}", 'devices.mixed_precision = "fp16": not with several processes'),
    # the override itself
    ("loss.lambda", "must look like train.max_steps=100"),
    ("=3", "must look like train.max_steps=100"),
    ("loss..lambda=3", "must look like train.max_steps=100"),
    ("loss.lambda=[", "not valid YAML"),
    ("loss.lambda.x=3", "loss.lambda is not a section"),
    ("data.train.sources.0=mbpp", "data.train.sources is not a section"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), WRONG_VALUES, ids=[override for override, _ in WRONG_VALUES])
def test_each_wrong_value_is_named_with_its_cure(override, message):
    (line,) = problems(LEAST + "loss: {lambda: 0.5}\n", None, override)
    assert line.startswith(f"--set {override}: {message}")


def test_the_cure_for_coefficients_can_be_pasted():
    (line,) = problems(LEAST, None, "model.head_coefficients=[3, 2, 1, 1]")
    accept(LEAST, "model.head_coefficients=" + line.partition("write ")[2])


def test_a_file_problem_has_file_line_path_value_and_cure():
    assert problems(LEAST + "loss:\n  epsilon: 0.1\n\n  lambda: 1.5 # too much\n") == [
        "recipe.yaml:7: loss.lambda = 1.5: must be a number above 0 and at most 1 "
        "(strength of the weighting; towards 0 it is the baseline)"
    ]


def test_missing_sections_and_keys():
    lines = problems("loss: {}\ndata:\n  eval: {sources: [mbpp]}\ntrain:\n  max_steps: 3\n")
    assert [line.partition(": is required: ")[0] for line in lines] == [
        "recipe.yaml: run",
        "recipe.yaml:2: data.train",
        "recipe.yaml:4: train.algo",
    ]
    assert lines[2].endswith("one of baseline-mtp, critic-wmtp, rho1-wmtp, diff-wmtp")


def test_keys_in_the_wrong_file():
    lines = problems(LEAST + "seed: 3\n", "loss: {}\n")
    assert lines == [
        "recipe.yaml:4: seed = 3: belongs in the config file, not in the recipe",
        "config.yaml:1: loss = {}: belongs in the recipe, not in the config file",
    ]


def test_everything_wrong_with_both_files_at_once():
    recipe = (
        "run: {name: 5}\n"
        "train: {algo: critic-wmpt, max_stepz: 3, full_finetune: false}\n"
        "data: {train: {sources: [contest]}}\n"
        "model:\n  horizon: 1\n  detach_heads: true\n"
        "pretrain: {early_stopping: {enabled: true, monitor: valu_loss, patience: 0}}\n"
        "rho1: {min_ce_diff: -1}\n"
        "eval: {metrics: [humaneval_exact]}\n"
    )
    config = "devices: {num_proc: 0}\npaths: {modells: {}, datasets: {humaneval: 3}}\n"
    lines = problems(recipe, config, "sed=1", "log_interval=0")
    assert [line.split(": ")[0] + " " + line.split(": ")[1].split(" = ")[0] for line in lines] == [
        "--set sed=1 unknown key sed, did you mean `seed`?",
        "recipe.yaml:1 run.name",
        "recipe.yaml:2 train.algo",
        "recipe.yaml:2 train.max_stepz",
        "recipe.yaml:2 train.full_finetune",
        "recipe.yaml:3 data.train.sources[0]",  # contest has no path
        "recipe.yaml:6 model.detach_heads",
        "recipe.yaml:7 pretrain.early_stopping.patience",
        "recipe.yaml:7 pretrain.early_stopping.monitor",
        "recipe.yaml:8 rho1.min_ce_diff",
        "config.yaml:1 devices.num_proc",
        "config.yaml:2 paths.datasets.humaneval",  # and so nothing about the metric that needs it
        "config.yaml:2 paths.modells",
        "--set log_interval=0 must be a whole number at least 1 (steps between two lines of metrics)",
    ]


def test_a_broken_file_hides_no_problem_of_the_other():
    lines = problems("run: [\n", "seed: x\n")
    assert lines[0].startswith("recipe.yaml:2: not valid YAML")
    assert lines[1].startswith('config.yaml:1: seed = "x": must be a whole number')
    assert len(lines) == 2


def test_an_empty_config_is_refused_and_a_written_one_may_be_empty():
    assert problems(LEAST, "") == ["config.yaml: is empty; write the sections into it"]
    accept(config="{}")


def test_long_values_are_cut():
    (line,) = problems(LEAST, None, f"loss={{control: {'x' * 500}}}")
    assert len(line) < 350


# Overrides


def test_overrides_reach_either_file():
    Path("recipe.yaml").write_text(LEAST + "loss: {lambda: 0.5, epsilon: 0.1}\n")
    Path("config.yaml").write_text("seed: 1\n")
    settings = load_settings(
        "recipe.yaml",
        "config.yaml",
        ["loss.lambda=1e-1", "seed=9", "data.train.sources=[contest]", "paths.datasets.contest=c.jsonl",
         "model={horizon: 2, head: residual}", "run.name=no", "train.max_steps=5", "train.max_steps=6"],
    )  # fmt: skip
    recipe, config = settings.recipe, settings.config
    assert (recipe.loss.lambda_, recipe.loss.epsilon) == (0.1, 0.1)
    assert config.seed == 9
    assert recipe.data.train.sources == ("contest",)
    assert (recipe.model.horizon, recipe.model.head) == (2, "residual")
    assert recipe.run.name == "no"
    assert recipe.train.max_steps == 6


def test_an_override_by_another_name_replaces_the_file_s():
    assert accept(LEAST + "loss: {weight_temperature: 0.7}\n", "loss.temperature=2").loss.weight_temperature == 2
    assert accept(LEAST + "loss: {temperature: 0.7}\n", "loss.weight_temperature=2").loss.weight_temperature == 2
    assert accept(LEAST, "loss={temperature: 2}").loss.weight_temperature == 2


def test_an_override_mends_the_file():
    accept(LEAST + "loss:\n  lambda: 7\n", "loss.lambda=0.7")


def test_null_takes_an_optional_section_away():
    recipe = LEAST + "pretrain: {}\n"
    problems(recipe)
    assert accept(recipe, "pretrain=").pretrain is None


def test_each_loader_alone():
    Path("recipe.yaml").write_text(LEAST)
    assert load_recipe("recipe.yaml", ["loss.lambda=1"]).loss.lambda_ == 1
    assert load_config(overrides=["seed=5"]).seed == 5
    with pytest.raises(SettingsError, match=r"^--set seed=5: unknown key seed"):
        load_recipe("recipe.yaml", ["seed=5"])
    with pytest.raises(SettingsError, match=r"^--set devices\.num_proc=0: must be"):
        load_config(None, ["devices.num_proc=0"])


def test_models_made_in_python_get_the_same_checks():
    recipe = Recipe.model_validate(
        {"run": {"name": "x"}, "train": {"algo": "rho1-wmtp"}, "data": {"train": {"sources": ["contest"]}}}
    )
    with pytest.raises(SettingsError) as caught:
        check_settings(recipe, load_config())
    first, second, third = str(caught.value).split("\n")
    assert third.startswith('recipe: train.algo = "rho1-wmtp": needs a reference model')
    assert first.startswith('recipe: train.algo = "rho1-wmtp": needs the section `rho1`')
    assert second.startswith('recipe: data.train.sources[0] = "contest": `paths.datasets.contest` is not set')
