"""What is refused before a name, a value or a word reaches the shell of a host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from simvtp_ds.hosts import check_passed_on, check_words, read_hostfile

ROOT = Path(__file__).resolve().parents[2]
NASTY = [
    "a;touch x",
    "$(touch x)",
    "`touch x`",
    "a|b",
    "a&b",
    "a>b",
    "-oProxyCommand=x",
    "a$b",
    "a\\b",
    "w-[1-8]",
    "a'b",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_hostfile_whose_names_a_shell_or_ssh_would_take_apart_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostfile"
    path.write_text(f"worker-1 slots=8\n{name} slots=8\n")
    with pytest.raises(ValueError, match="hostfile, line 2: "):
        read_hostfile(path)


@pytest.mark.parametrize("line", ["worker-1", "worker-1 slots=x", "worker-1 slots=8; touch x", "worker-0 slots=8"])
def test_a_line_without_slots_or_a_host_twice_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hostfile"
    path.write_text(f"# comment\nworker-0 slots=8\n\n{line}\n")
    with pytest.raises(ValueError, match="line 4: "):
        read_hostfile(path)


def test_hostfiles_are_read_as_deepspeed_reads_them() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    for path in (ROOT / "hostfiles").iterdir():
        if path.name != "ssh_config":
            assert read_hostfile(path) == dict(fetch_hostfile(str(path)) or {})


def shell_gets(exports: dict[str, str], words: list[str], tmp_path: Path) -> list[str]:
    """What a host's shell makes of values and words that DeepSpeed's own runner wrote into its command."""
    arguments = SimpleNamespace(user_args=words, user_script=f"{tmp_path}/show", launcher_args="", ssh_port=None)
    for name in ("master_addr", "master_port", "venv_script", "no_python", "module", "no_local_rank", "save_pid"):
        setattr(arguments, name, None)
    arguments.enable_each_rank_log = None
    runner = PDSHRunner(arguments, "world")
    for name, value in exports.items():
        runner.add_export(name, value)
    command, _, _ = runner.get_cmd({}, {"worker-1": [0]})
    show = f'{tmp_path}/show () {{ printf "%s\\n" "$@" "$VALUE"; }}\n'
    line = " ".join([command[6], "show", *command[command.index(f"{tmp_path}/show") + 1 :]])
    script = show.replace(f"{tmp_path}/show", "show") + line
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


GOOD = ["plain", "two words", "a=b,c:/d.e+f@g%h", "with-dash", "~/x", "{a}", "[1,2]"]


def test_what_is_allowed_reaches_the_hosts_as_it_is(tmp_path: Path) -> None:
    check_words(GOOD[:4])
    values = {"VALUE": "a;b & c | d > e 'f'"}  # in DeepSpeed's double quotes these are plain
    assert shell_gets(values, GOOD[:4], tmp_path) == [*GOOD[:4], values["VALUE"]]


@pytest.mark.parametrize("word", ["$(touch x)", "a;b", "$HOME", "`id`", "a b$(id)", 'a "b"', "a&b", "*"])
def test_words_that_a_hosts_shell_would_change_are_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ValueError, match="shells would not take"):
        check_words(["fine", word])


@pytest.mark.parametrize("value", ["$(touch broken)", "`touch broken`", "$HOME", 'a"; touch broken; "'])
def test_values_that_a_hosts_shell_would_expand_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    assert shell_gets({"VALUE": "plain"}, ["word"], tmp_path) == ["word", "plain"]
    assert shell_gets({"VALUE": value}, ["word"], tmp_path) != ["word", value]  # DeepSpeed hands it on like this
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text(f"GOOD=1\nVALUE={value}\n")
    with pytest.raises(ValueError, match="line 2: VALUE holds"):
        check_passed_on({})
    (tmp_path / ".deepspeed_env").write_text("GOOD=1\n")
    check_passed_on({"HOME": value})  # stays here
    with pytest.raises(ValueError, match="the environment: NCCL_DEBUG holds"):
        check_passed_on({"NCCL_DEBUG": value})


@pytest.mark.parametrize("line", ["", "# comment", "no value", "A B=c", "A;touch x=1"])
def test_lines_that_deepspeed_cannot_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text(f"GOOD=1\n{line}\nMORE=2\n")
    with pytest.raises(ValueError, match="line 2: "):
        check_passed_on({})


def test_a_project_path_that_a_shell_would_take_apart_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a;b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"the path .*a;b holds ';'"):
        check_passed_on({})


def test_the_command_refuses_a_bad_name_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("$(touch${IFS}broken) slots=1\n")
    command = [sys.executable, "launch/check_hosts.py", str(tmp_path / "hostfile")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "hostfile, line 1" in done.stderr
