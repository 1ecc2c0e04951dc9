"""What boot configurations name, and taking it out of directories and disks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhyve.errors import LoaderError
from pyhyve.loader.disk.bootconfig import find, from_directory, from_disk
from pyhyve.loader.disk.choice import version_key
from pyhyve.loader.disk.grub import choices
from pyhyve.loader.disk.host import HostTree
from pyhyve.loader.disk.tree import Files
from tests.loader.disk import images

KERNELS = dict.fromkeys(("boot/vmlinuz-6.1", "boot/vmlinuz-6.10", "boot/vmlinuz-5.19"), b"kernel")
DISKS = {f"boot/initrd.img-{version}": b"disk" for version in ("6.1", "6.10", "5.19")}

# As grub-mkconfig writes it, shortened.
GRUB = """
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
  fi
}
if loadfont unicode ; then
  set gfxmode=auto
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then set timeout=30 ; else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
  elif true; then
    set timeout=5
  fi
fi
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 1234-abcd
	echo	'Loading Linux 6.10 ...'
	linux	/boot/vmlinuz-6.10 root=UUID=1234 ro  quiet "word with space"
	initrd	/boot/initrd.img-6.10
}
submenu 'Advanced options for Debian' $menuentry_id_option 'gnulinux-advanced-1' {
	menuentry 'Linux 6.10' --class debian $menuentry_id_option 'linux-6.10' {
		linux	/boot/vmlinuz-6.10 root=UUID=1234 ro
		initrd	/boot/initrd.img-6.10
	}
	menuentry 'Linux 6.1' --class debian $menuentry_id_option 'linux-6.1' {
		linux	($root)/boot/vmlinuz-6.1 root=UUID=1234 ro single
		initrd	/boot/initrd.img-5.19 /boot/initrd.img-6.1
	}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
for x in 1 2 3; do echo $x; done
"""


def tree(tmp_path, files):
    return Files(HostTree(str(images.write(tmp_path / "root", {**KERNELS, **DISKS, **files}))))


def grub(tmp_path, text, **more):
    return find(tree(tmp_path, {"boot/grub/grub.cfg": text, **more}))


@pytest.mark.parametrize(
    ("default", "kernel", "cmdline"),
    [
        ("0", "boot/vmlinuz-6.10", 'root=UUID=1234 ro quiet "word with space"'),
        ("", "boot/vmlinuz-6.10", 'root=UUID=1234 ro quiet "word with space"'),
        ("1>1", "boot/vmlinuz-6.1", "root=UUID=1234 ro single"),
        ("1", "boot/vmlinuz-6.10", "root=UUID=1234 ro"),
        ("gnulinux-advanced-1>linux-6.1", "boot/vmlinuz-6.1", "root=UUID=1234 ro single"),
        ("Advanced options for Debian>Linux 6.1", "boot/vmlinuz-6.1", "root=UUID=1234 ro single"),
        ("no such entry", "boot/vmlinuz-6.10", 'root=UUID=1234 ro quiet "word with space"'),
        ("uefi-firmware", "boot/vmlinuz-6.10", 'root=UUID=1234 ro quiet "word with space"'),
    ],
)
def test_grubs_default_entry(default, kernel, cmdline, tmp_path):
    choice = grub(tmp_path, GRUB.replace("DEFAULT", default))
    assert (choice.kernel, choice.cmdline) == (kernel, cmdline)


def test_grubs_saved_entry(tmp_path):
    text = GRUB.replace("DEFAULT", "${saved_entry}")
    block = "# GRUB Environment Block\nsaved_entry=gnulinux-advanced-1>linux-6.1\n" + "#" * 900
    choice = grub(tmp_path, text, **{"boot/grub/grubenv": block})
    assert choice.kernel == "boot/vmlinuz-6.1"
    assert choice.initrds == ("boot/initrd.img-5.19", "boot/initrd.img-6.1")


def test_a_multiboot_kernel_with_one_module(tmp_path):
    text = """
menuentry 'two' {
  multiboot /boot/kernel-1 a
  module /boot/first
  module /boot/second
}
menuentry 'one' {
  multiboot --quirk-bad-kludge /boot/kernel-1 root=ram
  module /boot/first its own words
  boot
}
"""
    files = {"boot/grub/grub.cfg": text, "boot/kernel-1": b"k", "boot/first": b"1", "boot/second": b"2"}
    choice = find(Files(HostTree(str(images.write(tmp_path / "root", files)))))
    assert (choice.title, choice.kernel, choice.cmdline) == ("one", "boot/kernel-1", "root=ram")
    assert choice.initrds == ("boot/first",)


def test_a_boot_partition_of_its_own(tmp_path):
    text = "menuentry x {\n linux /vmlinuz-7 ro\n initrd /initrd-7\n}"
    place = {"grub2/grub.cfg": text, "vmlinuz-7": b"kernel", "initrd-7": b"disk"}
    choice = find(Files(HostTree(str(images.write(tmp_path / "root", place)))))
    assert (choice.kernel, choice.initrds) == ("vmlinuz-7", ("initrd-7",))
    place = {"boot/grub/grub.cfg": text, "boot/vmlinuz-7": b"kernel", "boot/initrd-7": b"disk"}
    choice = find(Files(HostTree(str(images.write(tmp_path / "other", place)))))
    assert (choice.kernel, choice.initrds) == ("boot/vmlinuz-7", ("boot/initrd-7",))


@pytest.mark.parametrize(
    "text",
    ["", "'", '"', "if", "if [ a ]; then", "menuentry x {", "}", "{", "fi", "else", "for", "menuentry { }", "\\",
     "menuentry x { linux /gone\n }", "menuentry x { linux\n }", "[", "if [ -s ]; then fi", "{" * 5000,
     "menuentry x { " * 3000, "if true; then " * 3000, "set default=$default$default\n" * 40],
    ids=range(21),
)  # fmt: skip
def test_a_broken_script_falls_back_on_the_newest_kernel(text, tmp_path):
    assert grub(tmp_path, text).kernel == "boot/vmlinuz-6.10"


WORDS = "if fi then else elif menuentry submenu { } ; [ ] ' \" \\ $x ${x} set x=1 linux /boot/k \n # for do done"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split(" ")) | st.text(max_size=8)))
def test_any_script_gives_choices_or_none(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("root")
    (place / "grub.cfg").write_text(" ".join(words), errors="replace")
    found, _ = choices(Files(HostTree(str(place))), "/grub.cfg")
    assert all(choice.kernel is not None for choice in found)


SYSLINUX = """
DEFAULT menu.c32
PROMPT 0
LABEL old
  MENU LABEL ^Old one
  KERNEL ../vmlinuz-5.19
  APPEND initrd=../initrd.img-5.19 root=/dev/sda1 ro
LABEL new
  MENU LABEL New one
  MENU DEFAULT
  LINUX /boot/vmlinuz-6.1
  INITRD /boot/initrd.img-6.1
  APPEND root=/dev/sda1 quiet
"""


def test_syslinux_with_a_menu(tmp_path):
    choice = find(tree(tmp_path, {"boot/extlinux/extlinux.conf": SYSLINUX}))
    assert (choice.title, choice.kernel) == ("New one", "boot/vmlinuz-6.1")
    assert (choice.initrds, choice.cmdline) == (("boot/initrd.img-6.1",), "root=/dev/sda1 quiet")


def test_syslinux_with_a_default(tmp_path):
    text = SYSLINUX.replace("menu.c32", "old").replace("  MENU DEFAULT\n", "")
    choice = find(tree(tmp_path, {"boot/syslinux/syslinux.cfg": text}))
    assert (choice.title, choice.kernel) == ("Old one", "boot/vmlinuz-5.19")
    assert (choice.initrds, choice.cmdline) == (("boot/initrd.img-5.19",), "root=/dev/sda1 ro")


def entry(version, **more):
    lines = {"title": f"Linux {version}", "version": version, "linux": f"/vmlinuz-{version}", **more}
    return "".join(f"{key} {value}\n" for key, value in lines.items())


def test_boot_loader_entries(tmp_path):
    files = {
        "boot/loader/entries/a.conf": entry("5.19", options="root=a", initrd="/initrd.img-5.19"),
        "boot/loader/entries/b+3-0.conf": entry("6.1", options="root=b"),
        "boot/loader/entries/c.conf": entry("6.10", options="root=c", architecture="x64"),
        "boot/loader/entries/d.conf": entry("6.11", architecture="aa64"),
    }
    choice = find(tree(tmp_path, files))
    assert (choice.title, choice.kernel, choice.cmdline) == ("Linux 6.10", "boot/vmlinuz-6.10", "root=c")
    files["boot/loader/loader.conf"] = "timeout 3\ndefault b*\n"
    assert find(tree(tmp_path, files)).kernel == "boot/vmlinuz-6.1"
    files["boot/loader/loader.conf"] = "default a.conf\n"
    choice = find(tree(tmp_path, files))
    assert (choice.kernel, choice.initrds) == ("boot/vmlinuz-5.19", ("boot/initrd.img-5.19",))


def test_grub_that_reads_boot_loader_entries(tmp_path):
    files = {
        "boot/grub2/grub.cfg": 'load_env\nset default="${saved_entry}"\nblscfg\n',
        "boot/grub2/grubenv": "# GRUB Environment Block\nsaved_entry=old\nkernelopts=root=/dev/vda1 ro\n",
        "boot/loader/entries/old.conf": entry("5.19", options="$kernelopts", initrd="/initrd.img-5.19 $tuned_initrd"),
        "boot/loader/entries/new.conf": entry("6.1", options="$kernelopts"),
    }
    choice = find(tree(tmp_path, files))
    assert (choice.kernel, choice.cmdline) == ("boot/vmlinuz-5.19", "root=/dev/vda1 ro")


def test_the_newest_kernel_and_its_ram_disk(tmp_path):
    choice = find(tree(tmp_path, {"boot/vmlinuz-0-rescue-abc": b"kernel"}))
    assert (choice.kernel, choice.initrds) == ("boot/vmlinuz-6.10", ("boot/initrd.img-6.10",))


@pytest.mark.parametrize(
    ("kernel", "disk"),
    [("vmlinuz", "initrd.img"), ("vmlinuz-lts", "initramfs-lts"), ("vmlinuz-linux", "initramfs-linux.img"),
     ("bzImage", "initrd"), ("vmlinuz-6.1.0", "initrd-6.1.0")],
)  # fmt: skip
def test_names_that_belong_together(kernel, disk, tmp_path):
    for base in ("", "boot/"):
        place = images.write(tmp_path / f"root{base}", {base + kernel: b"kernel", base + disk: b"disk"})
        choice = find(Files(HostTree(str(place))))
        assert (choice.kernel, choice.initrds) == (base + kernel, (base + disk,))


def test_versions_are_ordered_as_people_do():
    versions = ["5.19", "6.1~rc2", "6.1", "6.1.2", "6.9", "6.10", "6.10-1"]
    assert sorted(set(versions), key=version_key) == versions


def test_what_is_taken_out_can_be_read(tmp_path):
    place = images.write(tmp_path / "root", {**KERNELS, **DISKS, "boot/grub/grub.cfg": GRUB.replace("DEFAULT", "1>1")})
    with from_directory(str(place), 1000) as boot:
        assert boot.kernel.read_bytes() == b"kernel"
        assert boot.initrd.read_bytes() == b"diskdisk"
        assert boot.named(f"kernel {boot.kernel} is bad") == f"kernel {place}:boot/vmlinuz-6.1 is bad"
    assert not boot.kernel.exists()


def test_the_first_file_system_with_a_kernel_wins(tmp_path):
    esp = images.write(tmp_path / "esp", {"EFI/debian/grub.cfg": "configfile $prefix/grub.cfg"})
    main = images.write(tmp_path / "main", {**KERNELS, **DISKS, "boot/grub/grub.cfg": GRUB.replace("DEFAULT", "0")})
    parts = [
        (images.fat(tmp_path / "p1", esp, 16, 16 << 20), "uefi"),
        (images.ext(tmp_path / "p2", main, "ext4", 16 << 20), "linux"),
    ]
    with from_disk(str(images.disk(tmp_path / "disk", "gpt", parts)), 1000) as boot:
        assert boot.title == "Debian GNU/Linux"
        assert boot.cmdline.startswith("root=UUID=1234 ro quiet")
        assert boot.initrd.read_bytes() == b"disk"


def test_a_disk_without_a_kernel_says_what_was_found(tmp_path):
    empty = images.write(tmp_path / "empty", {"file": b""})
    part = images.ext(tmp_path / "p1", empty, "ext2", 1 << 20)
    blank = tmp_path / "p2"
    blank.write_bytes(bytes(1 << 20))
    image = images.disk(tmp_path / "disk", "gpt", [(part, "linux"), (blank, "linux")])
    with pytest.raises(LoaderError) as caught, from_disk(str(image), 1000):
        pass
    assert str(caught.value) == (
        f"disk {image} has nothing to boot: partition 1: ext, no kernel; partition 2: no ext or FAT file system"
    )
    (tmp_path / "zeros").write_bytes(bytes(4096))
    with pytest.raises(LoaderError, match="no partition and no file system"), from_disk(str(tmp_path / "zeros"), 1):
        pass


def test_a_directory_without_a_kernel_is_one_line(tmp_path):
    with pytest.raises(LoaderError, match="has no boot configuration and no kernel"), from_directory(str(tmp_path), 1):
        pass
