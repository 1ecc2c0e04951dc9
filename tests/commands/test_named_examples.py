"""The examples about named machines in docs/commands.md: they run, and print what stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import kernels
from tests.loader.disk import images

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
SECTIONS = ("Machines with a name", "`bhyveload`")


def examples(section):
    """(command, what it prints) pairs of the blocks in a section."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def words(lines):
    return " ".join(" ".join(lines).split())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What the examples find: the commands, a kernel, a guest's directory and its disk."""
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path))
    for name in ("bhyve", "bhyveload", "bhyvectl", "pyhyve"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m pyhyve.commands.{name} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    source = str(PAGE.parents[1] / "src")
    monkeypatch.setenv("PYTHONPATH", source)
    kernel = Path(kernels.build(kernels.POWER_OFF)).read_bytes()
    config = "menuentry 'Tiny' {\n linux /boot/vmlinuz-1\n}\n"
    (tmp_path / "vmlinuz").write_bytes(kernel)
    guest = images.write(tmp_path / "guest", {"boot/vmlinuz-1": kernel, "boot/grub/grub.cfg": config})
    images.ext(tmp_path / "disk.img", guest, "ext4", 8 << 20)
    return tmp_path


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_prints_what_stands_there(section, place):
    shell = subprocess.Popen(
        ["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place
    )
    with shell:
        found = examples(section)
        assert found
        for command, expected in found:
            # $? of one example is what the next one may ask for
            shell.stdin.write(f"{command} </dev/null; s=$?; echo; echo '<'end'>'; (exit $s)\n")
            shell.stdin.flush()
            printed = []
            while (line := shell.stdout.readline().rstrip("\n")) != "<end>":
                assert shell.poll() is None
                printed.append(line)
            pattern = re.escape(words(expected)).replace(r"\.\.\.", "[0-9a-f]+")
            assert re.fullmatch(pattern, words(printed)), f"{command}: {printed}"
        shell.stdin.close()
