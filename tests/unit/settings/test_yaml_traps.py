"""YAML as people write it: version 1.2's core schema, and clean refusals of everything that isn't settings."""

import pytest

from wmtp.errors import SettingsError
from wmtp.settings import load_recipe
from wmtp.settings.yaml12 import BadScalarError, dump, parse, value_of

LEAST = "run: {name: r}\ntrain: {algo: baseline-mtp}\ndata: {train: {sources: [mbpp]}}\n"


def problems(folder, text: str | bytes) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as caught:
        load_recipe(path)
    return str(caught.value).replace(f"{folder}/", "").split("\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("5.e-5", 0.00005),
        (".5", 0.5),
        ("+.5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("none", "none"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("'5'", "5"),
        ('"true"', "true"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        (".", "."),
        ("-", None),  # a list with one null
        ("inf", "inf"),
        ("nan", "nan"),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    node = parse(text)
    got = value_of(node.value[0] if text == "-" else node)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", "1e999", "9" * 30, "9" * 5000, "0x" + "f" * 30])
def test_numbers_that_no_setting_can_hold(text):
    with pytest.raises(BadScalarError):
        value_of(parse(text))


@pytest.mark.parametrize(
    "value",
    ["1e-4", "no", "on", "0o17", "1:30", "010", "5", "", "null", "~", "a: b", "# c", "[x]", "<<", "=", "2024-01-01",
     " x ", "x\ny", "é한", "'", '"', "\x07", "\u2028", "\U0001f600", "!x", "&a", "*a", "%", "@", "`", "-", "a" * 500],
)  # fmt: skip
def test_dumped_text_comes_back_as_text(value):
    assert value_of(parse(dump({"k": value})).value[0][1]) == value


@pytest.mark.parametrize("value", [1e-5, 1e22, 0.1, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789, 3])
def test_dumped_numbers_come_back_exactly(value):
    got = value_of(parse(dump({"k": value})).value[0][1])
    assert (got, type(got)) == (value, type(value))


def test_words_of_yaml_1_1_stay_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(LEAST.replace("name: r", "name: no, tags: [on, y, 1_0]"))
    assert load_recipe(path).run.name == "no"
    assert load_recipe(path).run.tags == ("on", "y", "1_0")


def test_yes_for_true_is_refused_with_the_cure(tmp_path):
    (line,) = problems(tmp_path, LEAST + "model:\n  detach_heads: yes\n")
    assert line.startswith('recipe.yaml:5: model.detach_heads = "yes": must be true or false; write true (')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml: is empty"),
        ("# only a comment\n", "recipe.yaml: is empty"),
        ("---\n", "recipe.yaml: is empty"),
        ("5", "recipe.yaml:1: must hold sections"),
        ("\n- run\n- train\n", "recipe.yaml:2: must hold sections"),
        ("run: {name: r}\n---\nrun: {name: r}\n", "recipe.yaml:2: holds more than one YAML document"),
        ("run: [a\n", "recipe.yaml:2: not valid YAML: "),
        ("run:\n\tname: r", "indent with spaces, not with tabs"),
        ("run: a: b", "recipe.yaml:1: not valid YAML: mapping values are not allowed here (check the indentation"),
        ('run: "abc', "a quote is not closed"),
        ("run: *r", "an alias (*name) needs an anchor"),
        ("run: !!python/object:os.system {}", "the tag 'python/object:os.system' can't be used here"),
        ("run: !secret x", "the tag '!secret' can't be used here"),
        ("run: &r {name: r, tags: [*r]}", "holds too many values"),
        ("run: " + "[" * 5000, "recipe.yaml:1: nested more than 40 levels deep"),
        ('run: "\\UFFFFFFFF"', "an escape that names no character"),
        ("run: a\x07b", "recipe.yaml:1: the character U+0007 is not allowed"),
        (b"run: \xff\xfe", "recipe.yaml: is not UTF-8 text (byte 5)"),
        (LEAST.encode("utf-16"), "is not UTF-8 text"),
        (b"x" * 300_000, "is larger than 256 KiB"),
        ("%YAML 3.0\n---\nrun: 1", "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe_is_one_clean_problem(tmp_path, text, message):
    (line,) = problems(tmp_path, text)
    assert line.startswith("recipe.yaml:")
    assert message in line


def test_a_billion_laughs(tmp_path):
    levels = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    (line,) = problems(tmp_path, "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + levels)
    assert "holds too many values; write it without aliases" in line


def test_a_few_aliases_are_fine(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("run: {name: r}\ntrain: {algo: baseline-mtp}\ndata: {train: &d {sources: [mbpp]}, eval: *d}\n")
    assert load_recipe(path).data.eval.sources == ("mbpp",)


def test_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
    assert load_recipe(path).run.name == "r"


def test_duplicate_keys_name_both_lines(tmp_path):
    text = LEAST + "optim:\n  lr: 1e-4\n  betas: [0.9, 0.95]\n  lr: 1e-5\nrun:\n  name: x\n"
    assert problems(tmp_path, text) == [
        "recipe.yaml:1: run: is given twice, on lines 1 and 8; keep one",
        "recipe.yaml:5: optim.lr: is given twice, on lines 5 and 7; keep one",
    ]


def test_a_setting_under_both_its_names(tmp_path):
    (line,) = problems(tmp_path, LEAST + "loss:\n  weight_temperature: 1\n  temperature: 2\n")
    assert line == (
        "recipe.yaml:5: loss.weight_temperature: is given twice, on lines 5 and 6; "
        "`temperature` is another name for it; keep one"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a, b]\n: 1\n", "line 4 has a key that is not plain text"),
        ("<<: {loss: {}}\n", 'recipe.yaml:4: "<<" = {"loss": {}}: merge keys are not part of YAML 1.2'),
        ("1: x\n", 'recipe.yaml:4: 1 = "x": unknown key'),
        ("true: x\n", 'recipe.yaml:4: true = "x": unknown key'),
        ("'': x\n", 'recipe.yaml:4: "" = "x": unknown key'),
        ('"a\\nb": x\n', '"a\\nb" = "x": unknown key'),
        ('"\\ud800": x\n', "unknown key"),
        ('loss: {control: "\\ud800"}\n', "holds half a character"),
        ("loss: {lambda: .nan}\n", "recipe.yaml:4: loss.lambda = .nan: must be a finite number"),
        ("loss: {max_weight: .inf}\n", "recipe.yaml:4: loss.max_weight = .inf: must be a finite number"),
        ("loss: {max_weight: 1e999}\n", "loss.max_weight = 1e999: must be a finite number"),
        ("train.algo: x\n", '"train.algo" = "x": unknown key'),
    ],
)
def test_odd_keys_and_values(tmp_path, text, message):
    (line,) = problems(tmp_path, LEAST + text)
    assert message in line
    assert line.isprintable()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: there is no such file$"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(SettingsError, match=r"can't be read: is a directory$"):
        load_recipe(tmp_path)
