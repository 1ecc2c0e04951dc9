"""``python -m benchmarks``: its parsers and its report. Nothing is timed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as main
from benchmarks import boot, costs, counters, disk, exits, growth, host, idle, network, profile, suite, tools, work
from benchmarks.console import Console
from benchmarks.machines import Context
from benchmarks.measure import BenchmarkError, Result, alternate, quantity, spread
from benchmarks.table import Line

SMAPS = """\
7f0000000000-7f0020000000 rw-s 00000000 00:01 1000                       /memfd:pyhyve-guest (deleted)
Size:             524288 kB
Rss:              200000 kB
Pss:              200000 kB
7f0020000000-7f0024000000 rw-s 00000000 00:01 1001                       /memfd:pyhyve-code (deleted)
Size:              65536 kB
Rss:                4096 kB
Pss:                2048 kB
7f0024000000-7f0028000000 r-xs 00000000 00:01 1001                       /memfd:pyhyve-code (deleted)
Size:              65536 kB
Rss:                4096 kB
Pss:                2048 kB
7f0030000000-7f0050000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:              300000 kB
Pss:              300000 kB
7f0060000000-7f0060100000 r-xp 00000000 08:01 77                         /usr/lib/libsome thing.so
Size:               1024 kB
Rss:                1024 kB
Pss:                  10 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Rss:                 128 kB
Pss:                 128 kB
"""


def test_own_memory_leaves_the_guests_out_and_counts_shared_pages_once():
    assert boot.own_memory(SMAPS, 512) == (4096 + 1024 + 128) / 1024


def test_the_phases_of_a_boot_add_up_to_its_time():
    report = {
        "started": 100.5,
        "now": 103.5,
        "cpu": 2.8,
        "vcpu0.run-ns": 2.5e9,
        "vcpu0.translate-ns": 0.5e9,
    }
    found = boot.phases(100.0, report)
    assert found == pytest.approx({"start-up": 0.5, "translation": 0.5, "execution": 1.8, "exits": 0.5, "waiting": 0.2})
    assert sum(found.values()) == pytest.approx(3.5)


def test_the_host_is_read_from_what_it_says():
    assert host.cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t: fpu\n") == "Some CPU @ 2.00GHz"
    assert host.cpu_model("") == "unknown processor"
    assert host.qemu_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright (c)\n") == "7.2.22 (Debian 1:7.2)"
    assert host.qemu_version("QEMU emulator version 10.0.0\n") == "10.0.0"


def test_without_qemu_the_report_says_so():
    assert any("not installed" in line for line in host.describe(None, None))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1.234, "s", "1.23 s"), (0.0123, "s", "12.3 ms"), (12.34, "MB", "12.3 MB"), (123.4, "MB", "123 MB")],
)
def test_a_value_has_three_digits(value, unit, text):
    assert quantity(value, unit) == text


def test_several_values_show_their_median_and_their_spread():
    assert spread([3.0, 1.0, 2.0], "s") == "2.00 s (1.00 s–3.00 s)"


def test_a_ratio_is_one_of_medians_and_limits_are_checked():
    result = Result("boot", "s", [2.0, 9.0, 4.0], [1.0, 2.0, 3.0], limit=4.5, ratio_limit=1.5)
    assert result.ratio == 2.0
    assert result.kept is False
    assert "ratio  2.00" in result.line()
    assert "NOT KEPT" in result.line()
    assert Result("boot", "s", [2.0], ratio_limit=3).kept is None
    assert Result("boot", "s", [2.0], limit=3).kept is True
    assert "[" not in Result("boot", "s", [2.0]).line()


def test_some_figures_have_to_be_large_enough():
    assert Result("gain", "×", [1.8, 1.6, 1.7], least=1.7).kept is True
    assert Result("gain", "×", [1.6], least=1.7).kept is False
    assert "[at least 1.70 ×: NOT KEPT]" in Result("gain", "×", [1.6], least=1.7).line()


def test_the_cpu_time_of_a_process_is_read_behind_its_name():
    stat = "17 (a) name) S 1 2 3 4 5 6 7 8 9 10 250 150 13 14 15\n"
    ticks = os.sysconf("SC_CLK_TCK")
    assert idle.cpu_seconds(stat) == 400 / ticks


def test_runs_alternate():
    order = []
    assert alternate(2, lambda: order.append("ours"), lambda: order.append("qemu")) == ([None] * 2, [None] * 2)
    assert order == ["ours", "qemu", "ours", "qemu"]
    assert alternate(1, lambda: 1, None) == ([1], [])


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupted(_context):
        raise KeyboardInterrupt

    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", "")  # which main() sets, for the test to undo
    monkeypatch.setitem(main.BENCHMARKS, "help", (interrupted, False))
    assert main.main(["help"]) == 130
    assert capsys.readouterr().err == "benchmarks: interrupted\n"


def test_an_unknown_name_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main.main(["nonsense"])
    assert "no benchmark 'nonsense'" in capsys.readouterr().err


# A guest's end of the conversation: it echoes lines, with what a terminal does to their ends, and runs them.
SHELL = r"""
import subprocess, sys
print("root@debian:~# ", end="", flush=True)
for line in sys.stdin:
    print(line.strip(), end="\r\n", flush=True)
    out = subprocess.run(["sh", "-c", line], capture_output=True, text=True).stdout
    print(out.replace("\n", "\r\n") + "root@debian:~# ", end="", flush=True)
"""


def test_a_command_at_the_console_gives_its_output_and_its_time():
    with Console([sys.executable, "-c", SHELL]) as console:
        assert console.expect(b"root@debian:~# ", 30) >= console.spawned
        seconds, output = console.time("seq 3")
        assert output == b"1\r\n2\r\n3\r\n"
        assert seconds >= 0
        with pytest.raises(BenchmarkError, match="status 3"):
            console.time("(exit 3)")


def test_a_machine_that_ends_early_is_an_error_with_its_last_words():
    with (
        Console(["sh", "-c", "echo bhyve: no such kernel >&2; exit 1"]) as console,
        pytest.raises(BenchmarkError, match=r"status 1(.|\n)*no such kernel"),
    ):
        console.expect(b"root@debian:~# ", 30)


@pytest.fixture
def context(tmp_path):
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"no `{tool}` on this host (binutils)")
    return Context(1, True, None, tmp_path)


def test_tiny_guests_assemble(context):
    kernel = context.kernel("kernel", exits._LOOP_PORT.format(port=0x500, rounds=5))
    assert kernel.read_bytes()[:4] == b"\x7fELF"
    rom = context.rom("rom", "out %al, $0x80").read_bytes()
    assert len(rom) == 0x10000
    assert rom[:2] == b"\xe6\x80"
    assert rom[0xFFF0] == 0xE9
    assert (0xFFF3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little")) & 0xFFFF == 0
    with pytest.raises(BenchmarkError, match="as: "):
        context.kernel("wrong", "nonsense %eax")


def test_quick_runs_take_commands_that_exist():
    assert set(work.QUICK) <= set(work.COMMANDS)
    assert Path(main.__file__).with_name("probe.py").exists()


def fio_output(first: int, *values: int) -> str:
    fields = ["3", "fio-3.33", "bench", "0", "0"] + ["0"] * 120
    fields[first : first + len(values)] = map(str, values)
    return "fio: some notice\n" + ";".join(fields) + "\n"


@pytest.mark.parametrize("first", [pytest.param(5, id="reads"), pytest.param(46, id="writes")])
def test_fios_rate_and_the_cost_of_a_request_come_from_its_terse_output(first):
    found = disk.parse_fio(fio_output(first, 4000, 2000, 500, 2000), used=0.25)  # KiB, KiB/s, requests/s, ms
    assert found == disk.Run(rate=2000 * 1024, requests=500, cost=pytest.approx(250))


def test_an_error_of_fio_is_no_figure():
    failed = fio_output(5, 4000, 2000, 500, 2000).replace("bench;0;0", "bench;0;5")
    with pytest.raises(BenchmarkError, match="notice"):
        disk.parse_fio(failed, used=1)
    with pytest.raises(BenchmarkError, match="not found"):
        disk.parse_fio("fio: not found", used=1)


def test_iperfs_rate_is_the_receivers():
    output = (
        b"[  5]   0.00-4.00   sec   400 MBytes   839 Mbits/sec    0             sender\r\n"
        b"[  5]   0.00-4.00   sec   390 MBytes   800 Mbits/sec                  receiver\r\n"
    )
    assert network.parse_iperf(output) == 100e6
    with pytest.raises(BenchmarkError, match="refused"):
        network.parse_iperf(b"iperf3: error - connection refused")


def test_the_guests_programs_come_behind_the_initrd_on_a_boundary_that_the_kernel_finds(tmp_path, monkeypatch):
    archive, initrd = tmp_path / "tools.cpio", tmp_path / "version" / "initrd"
    initrd.parent.mkdir()
    archive.write_bytes(b"tools")
    initrd.write_bytes(b"initrd")
    monkeypatch.setattr(tools, "build_tools", lambda: archive)
    out = tools.add_tools(initrd, tmp_path)
    assert out.read_bytes() == b"initrd".ljust(512, b"\0") + b"tools".ljust(512, b"\0")
    archive.unlink()
    assert tools.add_tools(initrd, tmp_path) == out


def test_a_ratio_can_have_a_least():
    assert Result("x", "MB/s", [2.0], [1.0], ratio_least=1).kept
    assert not Result("x", "MB/s", [1.0], [2.0], ratio_least=1).kept
    assert "ratio at least 1: NOT KEPT" in Result("x", "MB/s", [1.0], [2.0], ratio_least=1).line()


def test_every_workload_does_some_of_its_work(tmp_path):
    """A checksum that depends on nothing but the amount; each belongs to a group with a limit."""
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"no `{tool}` on this host")
    cargo = suite.pack(tmp_path)
    assert len(suite.text(1000)) == 1000
    for workload in suite.WORKLOADS:
        assert workload.group in suite.GROUPS
        if not workload.command.startswith("./"):
            continue
        program, name, _ = workload.line(quick=True).split()
        runs = [subprocess.run([program, name, "1"], cwd=tmp_path, capture_output=True, check=True) for _ in range(2)]
        assert len(runs[0].stdout) == 17
        assert runs[0].stdout == runs[1].stdout
        assert f"{suite.PLACE}/{program[2:]}" in cargo.files
    usage = subprocess.run([tmp_path / "integer"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "usage" in usage.stderr


def test_a_line_compares_with_qemu_and_the_host():
    line = Line("calls", "recursion", [0.4, 0.6, 0.5], [1.0], [0.25])
    assert line.ratio == 0.5
    assert "×  2.00" in line.text()
    assert "[at most 0.4: NOT KEPT; aim native × 2]" in line.text()
    assert Line("calls", "recursion", [0.5]).ratio is None


def test_symbols_of_the_engine_are_readable():
    assert profile._readable("__pyx_f_6pyhyve_3vmm_4soft_6bounce_tlb_fill") == "bounce.tlb_fill"
    assert profile._readable("__pyx_f_6pyhyve_3vmm_4soft_6blocks_block_find.part.0") == "blocks.block_find"
    assert profile._readable("memcpy") == "memcpy"


def test_every_function_of_new_code_does_what_it_did_before(tmp_path):
    """``fresh`` and ``replaced``: what they compute depends on the amount only, so that the guest can be checked."""
    if shutil.which("gcc") is None:
        pytest.skip("no `gcc` on this host")
    program = tmp_path / "code"
    subprocess.run(["gcc", *suite.FLAGS, "-o", program, suite.SOURCES / "code.c"], check=True)
    for name in ("fresh", "replaced"):
        found = [subprocess.run([program, name, n], capture_output=True, check=True).stdout for n in "112"]
        assert found[0] == found[1] != found[2]


def test_the_program_of_costs_tells_what_its_lines_are_named_after(tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("no `gcc` on this host")
    program = tmp_path / "costs"
    subprocess.run(["gcc", *suite.FLAGS, "-o", program, suite.SOURCES / "costs.c"], check=True)
    output = subprocess.run([program, "1000"], capture_output=True, check=True).stdout
    assert all(value >= 0 for value in costs.parse_program(output.replace(b"\n", b"\r\n")).values())
    with pytest.raises(BenchmarkError, match="Killed"):
        costs.parse_program(b"load-hit 1.0\r\nKilled\r\n")


@pytest.mark.parametrize("name", costs.LOOPS)
def test_the_tiny_guests_of_costs_come_to_their_end(context, name, monkeypatch, tmp_path):
    monkeypatch.setenv("PYHYVE_RUNTIME_DIR", str(tmp_path))
    ours, qemu = exits.compare(context, name, costs.LOOPS[name].body(10), 10)
    assert len(ours) == 1
    assert not qemu


INFO_JIT = """\
QEMU 7.2.22 monitor - type 'help' for more information\r
(qemu) info jit\r
Translation buffer state:\r
gen code size       104857600/1073577819\r
TB count            162540\r
TB avg target size  18 max=1984 bytes\r
TB avg host size    314 bytes (expansion ratio: 17.4)\r
(qemu) """


def test_qemus_code_cache_is_what_its_monitor_says():
    assert costs.parse_jit(INFO_JIT) == costs.Moment(100.0, expansion=17.4)
    with pytest.raises(BenchmarkError, match="unknown command"):
        costs.parse_jit("unknown command: 'info jit'")


def test_counters_of_all_vcpus_are_added_up():
    found = counters.add_up({"vcpu0.blocks": 2, "vcpu1.blocks": 3, "vm.blocks-live": 4})
    assert found["vcpu.blocks"] == 5
    assert found["vm.blocks-live"] == 4


def test_host_code_is_compared_with_the_guests_only_without_a_flush_in_between():
    before = counters.add_up({"vm.code-bytes": 1000, "vcpu0.block-bytes": 100, "vm.code-flushes": 2})
    after = counters.add_up({"vm.code-bytes": 3000, "vcpu0.block-bytes": 300, "vm.code-flushes": 2})
    assert costs.expansion(before, after) == 10
    assert costs.expansion(before, counters.add_up({**after, "vm.code-flushes": 3})) is None


def test_translation_is_told_by_the_byte_the_instruction_the_block_and_the_boot():
    boot_counters = {"translate-ns": 2e9, "block-bytes": 4 << 20, "instructions-translated": 3e6, "blocks": 1e5}
    counted = counters.add_up({f"vcpu0.{name}": int(value) for name, value in boot_counters.items()})
    moment = costs.Moment(1)
    found = costs.translation([costs.Boot(10.0, moment, moment, {}, counted)])
    assert [(result.ours, result.unit) for result in found] == [
        ([2], "MB/s"),
        ([1.5], "M/s"),
        ([20], "µs"),
        ([20], "%"),
    ]


def rounds(**series):
    """Sixteen rounds in which only ``series`` change."""
    usual = {"seconds": 2.0, "cpu": 2.0, "native": 0.5, "megabytes": 200.0, "code_mb": 50.0, "data_mb": 50.0}
    usual |= {"blocks": 1000, "flushes": 9, "threads": 4, "descriptors": 18, "mappings": 450}
    return [growth.Round(**{**usual, **{name: values[i] for name, values in series.items()}}) for i in range(16)]


def test_a_run_that_stays_as_it_is_keeps_everything():
    warm_up = [9.0] * 4 + [2.0] * 12
    assert all(result.kept for result in growth.verdicts(rounds(cpu=warm_up)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cpu", [2 + 0.05 * i for i in range(16)]),
        ("megabytes", [200 + i for i in range(16)]),
        ("threads", [4] * 15 + [5]),
        ("descriptors", [18 + i // 8 for i in range(16)]),
        ("mappings", [450 + 3 * i for i in range(16)]),
    ],
)
def test_whatever_grows_behind_the_warm_up_is_not_kept(name, values):
    assert sum(not result.kept for result in growth.verdicts(rounds(**{name: values}))) == 1


def test_a_host_that_becomes_slower_is_not_taken_for_growth():
    slower = [1 + 0.05 * i for i in range(16)]
    assert all(result.kept for result in growth.verdicts(rounds(cpu=slower, native=[c / 4 for c in slower])))
