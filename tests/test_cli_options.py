"""What the options of the command line refuse: one line, exit 2, nothing written, and no model
loaded for it."""

from __future__ import annotations

import argparse

import pytest

from tracelab.cli import loading, main
from tracelab.cli.parser import make_parser
from tracelab.interventions import FinetuneConfig
from tracelab.interventions.registry import LISTED, listed

BASE = {
    "fetch": ["fetch"],
    "score": ["score", "stereoset"],
    "probe": ["probe", "--bias", "gender"],
    "trace": ["trace", "--bias", "gender"],
    "attention": ["attention"],
    "generate": ["generate", "--prompt", "He"],
    **{
        f"fit {method.kind}": ["fit", method.kind, "--bias", "gender", "--out", "bundle"]
        for method in LISTED
    },
    "compare": ["compare", "--edit", "bundle"],
    "inspect": ["inspect", "--edit", "bundle", "--prompt", "He"],
    "export": ["export", "bundle", "--to", "merged", "--out", "model"],
    "report": ["report", "--bias", "gender", "--out", "report"],
}
"""A command line of each verb that lacks nothing."""
RANGES = {
    "--seed": (0, 2**32 - 1),
    "--seeds": (1, 1000),
    "--threads": (1, 1024),
    "--samples": (1, 10_000),
    "--ig-steps": (1, 100),
    "--layer": (-9999, 9999),
    "--head": (0, 9999),
    "generate --top-k": (0, 2**31 - 1),
    "fit fairmed --steps": (0, 1000),
    "fit fairmed --n-seeds": (1, 1000),
    "fit biasedit --steps": (0, 1_000_000),
    **{f"fit {method} --epochs": (1, 10_000) for method in ("experts", "klaad")},
    **{
        f"fit {method} --rank": (1, 65_536)
        for method in ("experts", "biasedit", "klaad", "erasure")
    },
    "fit biasedit --delta-rank": (1, 65_536),
}
"""By option, or by verb and option."""
COUNT = (1, 2**31 - 1)
NO_WHOLE_NUMBER = (
    *("", " ", "\n", "x", "²", "٣", "１２", "1_000", "1.5", "1e3", "0x10", "nan", "inf"),
    "7" * 5000,
)
NO_NUMBER = ("", " ", "x", "²", "٣", "１２", "1_000", "0x10", "1,5")
NOT_FINITE = ("nan", "inf", "-inf", "1e400", "7" * 5000)


def options_of(verb: str) -> list[argparse.Action]:
    verb, _, method = verb.partition(" ")
    parser = choices_of(make_parser())[verb]
    if method:
        parser = choices_of(parser)[method]
        parser.parse_known_args(["--bias", "gender"])  # a method's options are added when asked for
    return parser._actions


def may_be_negative(verb: str, option: str) -> bool:
    """Whether the configuration has no lower bound for it; a strength has none anywhere."""
    if not verb.startswith("fit"):
        return option == "--strength"
    config, name = listed(verb.split()[1]).config_class(), option[2:].replace("-", "_")
    for each in (config, FinetuneConfig):
        if name in each.model_fields:
            schema = each.model_json_schema()["properties"][name]
            return not {"minimum", "exclusiveMinimum"} & schema.keys()
    raise AssertionError(option)


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices


def reads(action: argparse.Action, kind: type) -> bool:
    return action.type is not None and type(action.type("1")) is kind


FLOATS = [(verb, a.option_strings[0]) for verb in BASE for a in options_of(verb) if reads(a, float)]
WHOLE = [(verb, a.option_strings[0]) for verb in BASE for a in options_of(verb) if reads(a, int)]
OWN = [(verb, option) for verb, option in WHOLE if not verb.startswith("fit")]
FIT = next((verb, option) for verb, option in WHOLE if verb == "fit klaad")
"""The fields of configurations are all read in one way."""


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """``refused(argv)``: the one line that it is refused with."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def never(options):
        raise AssertionError("the model was asked for")

    monkeypatch.setattr(loading, "load_model", never)

    def run(argv: list[str]) -> str:
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2, error
        assert not list((tmp_path / "cwd").iterdir())
        (line,) = error.splitlines()
        assert line.startswith("tracelab")
        assert line.isprintable()
        assert len(line) < 1200
        return line

    return run


def test_numbers_that_may_be_negative_are_these():
    free = {(verb, option) for verb, option in FLOATS if may_be_negative(verb, option)}
    assert {verb for verb, option in free if option == "--strength" and " " not in verb} == {
        *("score", "generate", "compare", "inspect", "export", "report")
    }
    own = {("experts", "--alpha"), ("biasedit", "--margin"), ("klaad", "--margin")}
    assert free >= {(f"fit {method}", option) for method, option in own}


def test_every_field_of_every_configuration_is_an_option():
    for method in LISTED:
        config = method.config_class()
        reached = {option for a in options_of(f"fit {method.kind}") for option in a.option_strings}
        fields = set(config.model_fields) - {"training"}
        if "training" in config.model_fields:
            fields |= set(FinetuneConfig.model_fields)
        assert {f"--{name.replace('_', '-')}" for name in fields} <= reached


@pytest.mark.parametrize(("verb", "option"), WHOLE)
def test_a_whole_number_out_of_its_range_is_refused_before_the_model_is_loaded(
    refused, verb, option
):
    least, most = RANGES.get(f"{verb} {option}", RANGES.get(option, COUNT))
    for value in (least - 1, most + 1, -(2**70), 2**70, 99999999999):
        end = f"is at least {least}," if value < least else f"is at most {most},"
        assert end in refused([*BASE[verb], f"{option}={value}"])


@pytest.mark.parametrize(("verb", "option"), [*OWN, FIT])
def test_what_is_no_whole_number_in_ascii_is_refused(refused, verb, option):
    for value in NO_WHOLE_NUMBER:
        assert f"argument {option}" in refused([*BASE[verb], f"{option}={value}"])


@pytest.mark.parametrize(("verb", "option"), FLOATS)
def test_what_is_no_finite_number_is_refused(refused, verb, option):
    for value in NO_NUMBER:
        assert "is not a number" in refused([*BASE[verb], f"{option}={value}"])
    for value in NOT_FINITE:
        assert " not " in refused([*BASE[verb], f"{option}={value}"])
    if not may_be_negative(verb, option):
        refused([*BASE[verb], f"{option}=-1"])
    if option.endswith("lr"):
        refused([*BASE[verb], f"{option}=-0"])


@pytest.mark.parametrize("verb", BASE)
def test_an_empty_value_is_refused(refused, verb):
    for action in options_of(verb):
        if (
            action.option_strings
            and action.nargs is None
            and action.type is None
            and not action.choices
        ):
            for value in ("", " ", "\n"):
                line = refused([*BASE[verb], f"{action.option_strings[0]}={value}"])
                assert "is empty: give it a value, or leave the option out" in line


def test_empty_names_are_refused_where_no_option_stands_before_them(refused):
    for argv in (
        ["fetch", ""],
        ["export", "", "--to", "merged"],
        ["score", ""],
        ["compare", "--stack", "", "b"],
        [""],
    ):
        refused(argv)


@pytest.mark.parametrize("word", ["caf\udce9", "a\udc80b", "nul\0", "\ud800"])
def test_an_argument_that_is_no_text_is_refused_wherever_it_stands(refused, word):
    for verb, argv in BASE.items():
        line = refused([*argv, word])
        assert f"argument {len(argv) + 1} is no text in UTF-8" in line
        if verb not in ("fetch", "export"):
            refused([*argv, "--model", word])
    refused(["inspect", "--edit", "bundle", "--prompt", word])
    refused([word])


@pytest.mark.parametrize("verb", BASE)
def test_two_dashes_are_no_value(refused, verb):
    for action in options_of(verb):
        if action.option_strings and action.nargs != 0:
            assert "has no value" in refused([*BASE[verb], f"{action.option_strings[0]}=--"])


@pytest.mark.parametrize(
    "layers",
    [
        "",
        ":",
        ",",
        "1,,2",
        "1,",
        "5:1",
        "3:3",
        "0:10:0",
        "10:0:-1",
        "0:1:1:1",
        "-1",
        "1:2,3",
        "a:b",
        "1.5",
        "²",
        "1_0",
    ]
    + ["٣", "0:99999999999", "99999999999", "0:10000", "7" * 5000, " ", "0 5"],
)
def test_layers_that_are_not_understood_are_refused(refused, layers):
    for base in (
        BASE["trace"],
        *(["fit", m, "--bias", "gender", "--out", "b"] for m in ("fairmed", "biasedit")),
    ):
        refused([*base, f"--layers={layers}"])


@pytest.mark.parametrize("layers", ["first", "last", "last0", "last1x", "lasts", "auto1", "last²"])
def test_words_for_layers_that_are_not_understood_are_refused(refused, layers):
    argv = ["fit", "biasedit", "--bias", "gender", "--out", "b", "--layers", layers]
    assert "are not understood" in refused(argv)


@pytest.mark.parametrize("out", [".", "..", "/", "x/..", "./"])
@pytest.mark.parametrize(
    "verb", ["fit experts", "fit klaad", "fit biasedit", "fit fairmed", "export"]
)
def test_a_bundle_needs_a_folder_with_a_name(refused, verb, out):
    argv = (
        ["export", "bundle", "--to", "merged"]
        if verb == "export"
        else [*verb.split(), "--bias", "gender"]
    )
    if verb == "export":  # the bundle is not there either
        refused([*argv, "--out", out])
    else:
        assert "cannot be replaced by a new folder" in refused([*argv, "--out", out])


@pytest.mark.parametrize(
    "name", ["bbq=²", "bbq=٣", "bbq=0", "bbq=-1", "bbq=", "bbq=1_0", "bbq=x", f"bbq={'7' * 5000}"]
)
def test_a_number_of_records_that_is_not_understood_is_refused(refused, name):
    assert "is not understood" in refused(["compare", "--edit", "bundle", "--benchmark", name])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score", "stereoset", "--strength", "1"], "--strength is that of edits: name them"),
        (
            ["report", *["--bias", "gender", "--out", "r", "--strength", "1"]],
            "--strength is that of edits",
        ),
        (
            [
                "inspect",
                *[
                    "--edit",
                    "a",
                    "--edit",
                    "b",
                    "--edit",
                    "c",
                    "--prompt",
                    "x",
                    "--strength",
                    "1",
                    "--strength",
                    "2",
                ],
            ],
            "--strength stands 2 times beside 3 edits: give it once for all, or once for each",
        ),
        (["compare", "--edit", "b", "--benchmark", "bbqq"], "unknown benchmark 'bbqq'"),
        (["compare", "--edit", "b", "--bias", "age"], "unknown bias type 'age'"),
        (
            ["inspect", "--edit", "b", "--prompt", "x", "--positions", "first"],
            "unknown positions 'first'",
        ),
        (["inspect", "--edit", "b", "--prompt", "x", "--rank-by", "p"], "unknown rank_by 'p'"),
        (["probe", "--bias", "gender", "--split", "half"], "unknown split 'half'"),
        (["trace", "--bias", "gender", "--positions", "some"], "unknown positions 'some'"),
        (["trace", "--bias", "gender", "--component", "mid"], "unknown component 'mid'"),
        (["attention", "--reduce", "all"], "unknown reduction 'all'"),
        (["report", "--bias", "age", "--out", "r"], "unknown bias type 'age'"),
        (["report", "--bias", "gender", "--out", "r", "--preset", "slow"], "unknown preset 'slow'"),
        (["paint"], "invalid choice: 'paint'"),
        (["score", "stereoset", "one\x1b[31m\nmore"], r"unrecognized arguments: one\x1b[31m more"),
        (["score", "stereoset", "x" * 5000], "unrecognized arguments: xxx"),
        ([], "required: VERB"),
    ],
)
def test_a_wrong_word_is_refused_before_the_model_is_loaded(refused, argv, message):
    assert message in refused(argv)


@pytest.mark.parametrize(
    "device", ["meta", "cuda:99", "foo", "mps", "cuda:-1", "²", "cuda:99999999999999999999"]
)
def test_a_device_that_cannot_compute_is_refused(tmp_path, monkeypatch, capsys, device):
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "--bias", "gender", "--device", device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tracelab: the device '{device}' cannot be used here (")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] err == 0.\nDefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 9e9"
        ),
        RuntimeError(
            "DefaultCPUAllocator: not enough memory: you tried to allocate 92233720368547 bytes."
        ),
    ],
)
def test_memory_that_runs_out_is_one_line(refused, monkeypatch, error):
    def load(options):
        raise error

    monkeypatch.setattr(loading, "load_model", load)
    assert "out of memory: ask for less" in refused(BASE["probe"])


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def load(options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loading, "load_model", load)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(BASE["probe"])


def test_a_path_longer_than_the_system_takes_is_one_line(refused):
    long = "x" * 5000
    for argv in (
        ["score", "stereoset", "--source", long],
        ["score", "stereoset", "--edit", long],
        ["score", "stereoset", "--json", f"{long}/x.json"],
        ["score", "stereoset", "--out", long],
        ["fit", "klaad", "--bias", "gender", "--out", long],
        ["export", long, "--to", "merged", "--out", "x"],
    ):
        refused(argv)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("tracelab 0.")


@pytest.mark.parametrize("verb", BASE)
def test_help_of_every_verb_shows_an_example(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert f"example: tracelab {verb}" in " ".join(capsys.readouterr().out.split())


def test_help_tells_the_ranges(capsys):
    for argv, told in (
        (["score"], "0 (default) to 4294967295"),
        (["trace"], "1 to 10000"),
        (["probe"], "1 to 1000"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, "--help"])
        assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", [name for name in BASE if name not in ("fetch", "export")])
def test_the_largest_seed_is_taken(verb):
    options = make_parser().parse_args([*BASE[verb], "--seed", "4294967295"])
    assert options.seed == 2**32 - 1
