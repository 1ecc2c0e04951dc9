"""The configuration tree: names, values, expansion, files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhyve.config import DEFAULTS, Config, check_vm_name, parse_cpuset, parse_memsize
from pyhyve.errors import ConfigError

NAMES = st.lists(st.text("abcxyz0189_-", min_size=1, max_size=4), min_size=1, max_size=4).map(".".join)
VALUES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r\0"), max_size=20)


def test_a_variable_reads_back_as_set():
    config = Config()
    config.set("pci.0.3.0.device", "virtio-blk")
    assert config.get("pci.0.3.0.device") == "virtio-blk"
    assert config.get("pci.0.3.0.path") is None
    assert config.get("pci.0.3.0.path", "none") == "none"


def test_what_was_not_set_has_bhyves_default():
    config = Config()
    assert config.get("memory.size") == "256M"
    assert config.get_bool("acpi_tables") is False
    assert config.get_bool("x86.x2apic") is True
    assert config.get_int("cpus") == 1


def test_a_variable_has_nothing_below_it_and_a_node_has_no_value():
    config = Config()
    config.set("lpc.com1.path", "stdio")
    with pytest.raises(ConfigError, match=r"lpc\.com1: has variables below it"):
        config.set("lpc.com1", "stdio")
    with pytest.raises(ConfigError, match=r"lpc\.com1\.path is a variable"):
        config.set("lpc.com1.path.more", "x")


@pytest.mark.parametrize("name", ["", ".", "a..b", ".a", "a.", "a b", "a=b", "a\nb", "a%b"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(ConfigError, match="invalid configuration variable name"):
        Config().set(name, "x")


def test_a_frozen_tree_refuses_changes_and_still_reads():
    config = Config.of({"name": "vm0"})
    config.freeze()
    with pytest.raises(ConfigError, match="cannot be changed"):
        config.set("name", "vm1")
    with pytest.raises(ConfigError, match="cannot be changed"):
        config.unset("name")
    assert config.get("name") == "vm0"


def test_unset_makes_room_for_a_node():
    config = Config.of({"a.b": "1"})
    config.unset("a.b")
    config.unset("a.b")
    config.set("a", "2")
    assert config.get("a") == "2"


def test_values_expand_through_each_other():
    config = Config.of({"name": "vm0", "dir": "/images/%(name)", "disk": "%(dir)/root-%(cpus).img"})
    assert config.get("disk") == "/images/vm0/root-1.img"
    assert config.raw("disk") == "%(dir)/root-%(cpus).img"


def test_a_backslash_keeps_a_percent_sign_literal():
    config = Config.of({"a": r"\%(name\) 100\% \\ \n"})
    assert config.get("a") == r"%(name) 100% \ \n"


def test_a_circle_of_references_is_an_error_that_shows_it():
    config = Config.of({"a": "%(b)", "b": "x%(c)", "c": "%(a)"})
    with pytest.raises(ConfigError, match="refers to itself through a -> b -> c -> a"):
        config.get("a")


@pytest.mark.parametrize(("value", "message"), [("%(nowhere)", "nowhere, which is not set"), ("%(name", "without")])
def test_a_reference_that_leads_nowhere_is_an_error(value, message):
    with pytest.raises(ConfigError, match=message):
        Config.of({"a": value}).get("a")


@pytest.mark.parametrize("text", ["true", "on", "YES", "1"])
def test_truths(text):
    assert Config.of({"b": text}).get_bool("b") is True


@pytest.mark.parametrize("text", ["false", "Off", "no", "0"])
def test_falsehoods(text):
    assert Config.of({"b": text}).get_bool("b") is False


def test_what_is_no_truth_value_is_refused_by_name():
    with pytest.raises(ConfigError, match="acpi_tables: 'maybe' is not a truth value"):
        Config.of({"acpi_tables": "maybe"}).get_bool("acpi_tables")


def test_numbers_come_in_several_bases_and_keep_to_bounds():
    config = Config.of({"a": "0x10", "b": "010", "c": "ten"})
    assert config.get_int("a") == 16
    assert config.get_int("b") == 10
    with pytest.raises(ConfigError, match="c: 'ten' is not a number"):
        config.get_int("c")
    with pytest.raises(ConfigError, match="a: 16 is above 15"):
        config.get_int("a", maximum=15)
    with pytest.raises(ConfigError, match="a: 16 is below 17"):
        config.get_int("a", minimum=17)


def test_sizes_take_suffixes():
    config = Config.of({"a": "4k", "b": "17", "c": "2G", "d": "k"})
    assert [config.get_size(n) for n in "abc"] == [4096, 17, 2 << 30]
    with pytest.raises(ConfigError, match="d: 'k' is not a size"):
        config.get_size("d")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512 << 20), ("512M", 512 << 20), ("2g", 2 << 30), ("1048576", 1 << 20), ("4096K", 4 << 20)],
)
def test_memsize(text, size):
    assert parse_memsize(text) == size


@pytest.mark.parametrize("text", ["", "0", "M", "-1", "1.5G", "12X", "1 G", "0x100", "99999999T", "١M"])
def test_a_bad_memsize_is_refused(text):
    with pytest.raises(ValueError):
        parse_memsize(text)


def test_children_are_in_order_and_numbers_sort_as_numbers():
    config = Config.of({"pci.0.10.0.device": "a", "pci.0.9.0.device": "b", "pci.1.0.0.device": "c"})
    assert config.children("pci") == ["0", "1"]
    assert config.children("pci.0") == ["9", "10"]
    assert config.children("lpc") == []


def test_a_node_gives_the_variables_below_it():
    config = Config.of({"p.device": "x", "p.path": "/%(name)", "p.q.r": "deep", "name": "vm"})
    assert config.below("p") == {"device": "x", "path": "/vm", "q.r": "deep"}


def test_a_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "vm.conf"
    path.write_text("# a machine\n\nname=vm7\n memory.size = 1G \nboot.cmdline=a=b c=d\n")
    config = Config()
    config.load_file(str(path))
    assert config.get("name") == "vm7"
    assert config.get("memory.size") == "1G"
    assert config.get("boot.cmdline") == "a=b c=d"


def test_a_broken_line_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "vm.conf"
    path.write_text("name=vm7\nnonsense\n")
    with pytest.raises(ConfigError, match=r"vm\.conf:2: invalid configuration variable 'nonsense'"):
        Config().load_file(str(path))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read configuration file .*vm\.conf"):
        Config().load_file(str(tmp_path / "vm.conf"))
    with pytest.raises(ConfigError, match="cannot read configuration file"):
        Config().load_file(str(tmp_path))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"=x", b"a.=x", b"a=1\na.b=2", b"a=1\0"])
def test_a_file_of_nonsense_is_named_with_its_line(tmp_path, content):
    path = tmp_path / "vm.conf"
    path.write_bytes(b"# comment\n\n" + content)
    line = 3 + content.count(b"\n")
    with pytest.raises(ConfigError, match=rf"vm\.conf:{line}: ") as caught:
        Config().load_file(str(path))
    assert "\n" not in str(caught.value)


def test_a_value_in_a_file_is_taken_as_it_stands(tmp_path):
    path = tmp_path / "vm.conf"
    path.write_bytes(b"a= x \nb=\nc=\xff\r\n")
    config = Config()
    config.load_file(str(path))
    assert dict(config) == {"a": " x ", "b": "", "c": "\udcff"}


def test_a_doubled_percent_sign_is_one():
    assert Config.of({"a": "100%% of %%(name) %(b)", "b": "%%"}).get("a") == "100% of %(name) %"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\nb", "x" * 129])
def test_a_bad_machine_name_is_refused(name):
    with pytest.raises(ConfigError, match="invalid machine name"):
        check_vm_name(name)


@pytest.mark.parametrize("name", ["vm0", "my-vm.2", "Vm_3", "x" * 128, "größer"])
def test_a_machine_name_is_a_word(name):
    assert check_vm_name(name) == name


@pytest.mark.parametrize(("text", "cpus"), [("0", [0]), ("3,1", [1, 3]), ("4-6,1,5", [1, 4, 5, 6])])
def test_a_set_of_host_cpus(text, cpus):
    assert parse_cpuset(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1,", "3-1", "1-2-3", "-1", "99999", "1 2"])
def test_a_bad_set_of_host_cpus(text):
    with pytest.raises(ValueError):
        parse_cpuset(text)


def test_the_dump_is_sorted_and_holds_the_defaults():
    lines = Config.of({"name": "vm0", "cpus": "2"}).dump().splitlines()
    assert lines == sorted(lines)
    assert "cpus=2" in lines
    assert "cpus=1" not in Config.of({"cores": "2"}).dump().splitlines()
    assert f"memory.size={DEFAULTS['memory.size']}" in lines


@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_a_dump_loads_back_as_the_same_tree(tmp_path_factory, values):
    config = Config()
    for name, value in values.items():
        try:
            config.set(name, value)
        except ConfigError:
            continue  # a clash of node and variable
    path = tmp_path_factory.mktemp("dump") / "vm.conf"
    path.write_text(config.dump(), encoding="utf-8")
    again = Config()
    again.load_file(str(path))
    assert again.dump() == config.dump()


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc"))))
def test_escaped_text_expands_to_itself(text):
    assert Config.of({"a": Config.escape(text)}).get("a") == text
