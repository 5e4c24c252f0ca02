"""The words of the command line."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.cli.arguments import build_parser
from repository.policy.schedule import Pace
from repository.recovery import RecoverySettings
from repository.space import RESERVE_DEFAULT_BYTES

REPOSITORY_COMMANDS = [
    ["init", "R", "--reserve", "100M", "--headspace", "1GiB", "--quota", "5G"],
    ["status", "R", "--json"],
    ["mount", "R", "M", "--settle", "2s", "--max-age", "2h", "--auto-delete", "--min-snapshots", "3", "--keep-all"],
    ["umount", "M"],
    ["snapshot", "create", "R", "a", "b", "--name", "N", "--one-file-system", "--exclude-caches", "--json"],
    [
        "snapshot",
        "create",
        "R",
        "a",
        "--auto-delete",
        "--min-snapshots",
        "0",
        "--deletion-exponent",
        "1.5",
        "--no-estimate",
    ],
    ["snapshot", "list", "R"],
    ["snapshot", "delete", "R", "x", "y", "--dry-run"],
    ["snapshot", "undelete", "R", "x"],
    ["snapshot", "rename", "R", "x", "y"],
    ["snapshot", "pin", "R", "x"],
    ["snapshot", "unpin", "R", "x"],
    ["snapshot", "diff", "R", "x", "y:/z"],
    ["restore", "R", "x:/y", "D", "--merge"],
    ["gc", "R", "--safety", "none", "--dry-run"],
    ["check", "R", "--read-data"],
    ["rebuild", "R"],
    ["reserve", "release", "R"],
]


@pytest.mark.parametrize("words", REPOSITORY_COMMANDS, ids=" ".join)
def test_every_command_has_a_module(words: list[str]) -> None:
    args = build_parser().parse_args(words)
    assert importlib.util.find_spec(f"fusefs.cli.{args.module}") is not None


@pytest.mark.parametrize("words", REPOSITORY_COMMANDS, ids=" ".join)
def test_a_command_makes_its_own_parser_only_and_reads_the_same(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them took a tenth of a start."""
    expected = vars(build_parser().parse_args(words))
    made: list[str] = []
    real = argparse.ArgumentParser.set_defaults

    def counted(self: argparse.ArgumentParser, **defaults: object) -> None:
        made.append(self.prog)
        real(self, **defaults)

    monkeypatch.setattr(argparse.ArgumentParser, "set_defaults", counted)
    assert vars(build_parser(words).parse_args(words)) == expected
    assert len(made) == (2 if words[0] in ("snapshot", "reserve") else 1)
    helps: list[str] = []
    for parser in (build_parser(), build_parser(words)):
        with pytest.raises(SystemExit):
            parser.parse_args([*words, "--help"])
        helps.append(capsys.readouterr().out)
    assert helps[0] == helps[1] and words[0] in helps[0]


@pytest.mark.parametrize("words", [[], ["nothing"], ["--help"], ["snapshot"], ["snapshot", "nothing"], ["-x", "gc"]])
def test_help_and_mistakes_are_answered_with_all_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for parser in (build_parser(), build_parser(words)):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        said.append("".join(capsys.readouterr()))
    assert said[0] == said[1]


def test_sizes_and_times_are_read() -> None:
    init = build_parser().parse_args(REPOSITORY_COMMANDS[0])
    assert (init.reserve, init.headspace, init.quota) == (100_000_000, 1 << 30, 5_000_000_000)
    mount = build_parser().parse_args(REPOSITORY_COMMANDS[2])
    assert (mount.settle, mount.interval, mount.max_age, mount.min_snapshots) == (2.0, 60.0, 7200.0, 3)


def test_what_is_not_said_is_as_the_rules_have_it() -> None:
    """The command line has the figures again: importing where they belong would make `--help` slow."""
    mount = build_parser().parse_args(["mount", "R", "M"])
    pace, settings = Pace(), RecoverySettings()
    assert (mount.settle, mount.interval, mount.max_age) == (pace.settle_s, pace.interval_s, pace.max_age_s)
    assert (mount.auto_delete, mount.min_snapshots) == (settings.auto_delete, settings.min_snapshots)
    assert mount.deletion_exponent == settings.deletion_exponent
    assert build_parser().parse_args(["init", "R"]).reserve == RESERVE_DEFAULT_BYTES


def test_patterns_keep_their_order() -> None:
    words = ["snapshot", "create", "R", "--exclude", "a", "--exclude-from", "f", "p", "--exclude", "b"]
    args = build_parser().parse_args(words)
    assert args.excludes == [("pattern", "a"), ("file", "f"), ("pattern", "b")]
    assert build_parser().parse_args(["snapshot", "create", "R", "p"]).excludes == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["snapshot"],
        ["snapshot", "create", "R"],
        ["init", "R", "--reserve", "big"],
        ["mount", "R", "M", "--settle", "soon"],
        ["restore", "R", "S", "D", "--merge", "--overwrite"],
        ["gc", "R", "--safety", "some"],
        ["snapshot", "list", "R", "--all", "--trash"],
        ["mount", "R", "M", "--min-snapshots", "-1"],
        ["snapshot", "create", "R", "p", "--deletion-exponent", "-1"],
        ["snapshot", "create", "R", "p", "--deletion-exponent", "nan"],
        ["snapshot", "create", "R", "p", "--deletion-exponent", "much"],
    ],
)
def test_wrong_words_end_with_2_and_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(words)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_plain_command_loads_neither_the_loop_nor_the_mount(tmp_path: Path) -> None:
    """They cost more than most commands take, and pyfuse3 may not be there."""
    code = (
        "import sys; from fusefs.cli.main import main\n"
        "repo, files, out = sys.argv[1:]\n"
        "for words in (['init', repo, '--reserve', '1M', '--headspace', '0'], ['snapshot', 'create', repo, files, "
        "'--name', 'a'], ['snapshot', 'list', repo], ['snapshot', 'diff', repo, 'a', 'a'], ['status', repo], "
        "['gc', repo, '--dry-run'], ['gc', repo], ['reserve', 'status', repo], ['check', repo], "
        "['snapshot', 'delete', repo, 'a', '--dry-run'], ['restore', repo, 'a', out], "
        "['snapshot', 'delete', repo, 'a']):\n"
        "    assert main(words) == 0, words\n"
        "heavy = {'trio', 'pyfuse3', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    (tmp_path / "files").mkdir()
    paths = [str(tmp_path / name) for name in ("repo", "files", "out")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_needs_nothing_heavy() -> None:
    """`ballast --help` must work where pyfuse3 is missing, and must not load numpy or trio to print a page."""
    code = (
        "import sys; from fusefs.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'trio', 'pyfuse3', 'zstandard'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "snapshot" in done.stdout
