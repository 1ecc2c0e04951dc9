"""Fetches Debian packages with apt, without root and without touching the host's apt state.

apt runs on folders of its own (package lists, download area, an empty ``dpkg`` status) with the host's keyrings, the
host's ``Acquire`` settings (proxies) and those of the host's sources that name a Debian suite. So it works for any user
and where the host's package lists are missing or old. apt checks signatures and checksums and goes on with a partly
downloaded file.

Documents: apt.conf(5), apt-get(8) ``download`` and ``--print-uris``, apt's README.progress-reporting.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pyhyve.images.error import ImageError

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how much of it is (0 to 1, or None where it cannot be said)."""

PASS_YOUR_OWN = "pass a kernel and an initrd of your own with --kernel FILE --initrd FILE"
LISTS_FRESH_SECONDS = 24 * 3600

_SUITES = {"stable", "oldstable", "testing", "unstable", "sid"}
_URI_LINE = re.compile(r"^'[^']+' (?P<file>\S+) (?P<size>\d+)(?: SHA256:(?P<sha256>[0-9a-f]{64}))?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Package:
    """A package as apt would download it: file name, size in bytes and SHA-256 (empty where apt has none)."""

    name: str
    file: str
    size: int
    sha256: str

    @property
    def version(self) -> str:
        return unquote(self.file.split("_")[1])


class PrivateApt:
    """apt with its state below ``folder``, for packages of ``architecture``."""

    def __init__(self, folder: Path, architecture: str = "amd64") -> None:
        missing = [tool for tool in ("apt-get", "apt-cache", "apt-config", "dpkg-deb") if shutil.which(tool) is None]
        if missing:
            raise ImageError(f"building the Debian guest needs {missing[0]}, which this host lacks; {PASS_YOUR_OWN}")
        self.folder = folder
        self._architecture = architecture
        self.downloads = folder / "debs"
        self._config = folder / "apt.conf"
        for name in ("lists/partial", "archives/partial", "sources", "debs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self._write_sources()
        self._write_config()

    def update(self, progress: Progress, *, force: bool = False) -> None:
        """Fetch the package lists, unless there are some that are less than a day old."""
        stamp = self.folder / "updated"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_FRESH_SECONDS:
            return
        self._run(["apt-get", "update"], progress, "package lists", may_fail=True)
        if not list((self.folder / "lists").glob("*_Packages*")):
            raise ImageError(f"apt could not fetch Debian's package lists; check the network, or {PASS_YOUR_OWN}")
        stamp.touch()

    def depends(self, name: str) -> list[str]:
        """The names of the packages that the newest version of package ``name`` depends on; none if unknown."""
        out = self._output(["apt-cache", "show", "--no-all-versions", name])
        match = re.search(r"^Depends: (.*)$", out, re.MULTILINE)
        return [item.split("(")[0].split("|")[0].strip() for item in match[1].split(",")] if match else []

    def download(self, names: Sequence[str], progress: Progress) -> dict[str, Path]:
        """Fetch the packages; those that are there whole are not fetched again. Returns name to file."""
        packages = self._uris(names)
        wanted = [package for package in packages if not self._complete(package)]
        for package in wanted:
            path = self.downloads / package.file
            if path.exists() and path.stat().st_size >= package.size:
                # damaged, not cut short: apt would take it for whole
                path.unlink()
        if wanted:
            size = sum(package.size for package in wanted) / 1e6
            what = f"{', '.join(package.name for package in wanted)} ({size:.0f} MB)"
            self._run(["apt-get", "download", *(package.name for package in wanted)], progress, what)
        for package in packages:
            if not self._complete(package):
                raise ImageError(f"apt did not deliver {package.file} whole; run this again to go on with it")
        return {package.name: self.downloads / package.file for package in packages}

    def tidy(self, keep: Collection[Path]) -> None:
        """Give back the space of what can be made again, and of packages other than ``keep``."""
        left_over = [path for path in self.downloads.iterdir() if path not in keep]
        for path in (*left_over, *self.folder.glob("*pkgcache.bin")):
            path.unlink(missing_ok=True)

    def _uris(self, names: Sequence[str]) -> list[Package]:
        out = self._output(["apt-get", "--print-uris", "download", *names])
        found = [
            Package(match["file"].split("_")[0], match["file"], int(match["size"]), match["sha256"] or "")
            for match in _URI_LINE.finditer(out)
        ]
        missing = sorted(set(names) - {package.name for package in found})
        if missing:
            raise ImageError(f"apt knows no package {missing[0]} from this host's sources; {PASS_YOUR_OWN}")
        return found

    def _complete(self, package: Package) -> bool:
        path = self.downloads / package.file
        if not path.exists() or path.stat().st_size != package.size:
            return False
        if not package.sha256:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256

    def _write_sources(self) -> None:
        """Copy the host's sources that name a Debian suite: others cost time and cannot help."""
        folder = self.folder / "sources"
        for old in folder.iterdir():
            old.unlink()
        host = Path("/etc/apt")
        files = [host / "sources.list", *(host / "sources.list.d").glob("*.list")]
        files += (host / "sources.list.d").glob("*.sources")
        suites = _SUITES | _codenames()
        texts = {path.name: path.read_text(errors="replace") for path in sorted(files) if path.is_file()}
        debian = {name: text for name, text in texts.items() if suites & set(_uncommented(text).split())}
        for name, text in (debian or texts).items():
            (folder / name).write_text(text)

    def _write_config(self) -> None:
        command = ["apt-config", "dump", "Acquire"]
        dump = subprocess.run(command, capture_output=True, text=True, check=False, env=_c_locale())
        settings = {
            # nothing of the host's configuration but Acquire: it may hold commands to run after an update
            "Dir::Etc::Main": "/dev/null",
            "Dir::Etc::Parts": "/dev/null",
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": f"{self.folder}/sources",
            "Dir::State": str(self.folder),
            "Dir::State::Lists": f"{self.folder}/lists",
            "Dir::State::Status": f"{self.folder}/status",
            "Dir::Cache": str(self.folder),
            "Dir::Cache::Archives": f"{self.folder}/archives",
            "APT::Architecture": self._architecture,
            "APT::Install-Recommends": "false",
            # root's downloads are otherwise handed to a user who may not enter the cache
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
            "Acquire::https::Timeout": "30",
        }
        kept = [line for line in dump.stdout.splitlines() if "::IndexTargets" not in line and "::Languages" not in line]
        lines = [*kept, *(f'{name} "{value}";' for name, value in settings.items())]
        self._config.write_text("\n".join(lines) + "\n")

    def _environment(self) -> dict[str, str]:
        return {**_c_locale(), "APT_CONFIG": str(self._config), "DEBIAN_FRONTEND": "noninteractive"}

    def _output(self, command: Sequence[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment(), check=False)
        return done.stdout

    def _run(self, command: Sequence[str], progress: Progress, what: str, *, may_fail: bool = False) -> None:
        """Run apt in the download folder and pass its status lines on as progress."""
        progress(f"fetching {what}", None)
        read_end, write_end = os.pipe()
        with tempfile.TemporaryFile("w+") as errors, os.fdopen(read_end, "r", errors="replace") as status:
            try:
                process = subprocess.Popen(
                    [*command, "-q", "-o", f"APT::Status-Fd={write_end}"],
                    cwd=self.downloads,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=self._environment(),
                    pass_fds=[write_end],
                )
            finally:
                os.close(write_end)
            try:
                for line in status:
                    fraction = _fraction(line)
                    if fraction is not None:
                        progress(f"fetching {what}", fraction)
                code = process.wait()
            except BaseException:
                # apt keeps what it has of a file, so stopping it loses nothing
                process.kill()
                process.wait()
                raise
            if code and not may_fail:
                errors.seek(0)
                raise ImageError(f"apt could not fetch {what}: {_first_error(errors.read())}")


def _c_locale() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _codenames() -> set[str]:
    """This host's release by name, and its relatives (``bookworm-updates``)."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return set()
    match = re.search(r'^VERSION_CODENAME="?([\w.-]+)"?$', text, re.MULTILINE)
    return {match[1], f"{match[1]}-updates", f"{match[1]}-security"} if match else set()


def _uncommented(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _fraction(status_line: str) -> float | None:
    """The share that is done, of a line like ``dlstatus:1:42.5:Retrieving file 1 of 2``."""
    fields = status_line.split(":")
    if len(fields) < 3 or fields[0] != "dlstatus":
        return None
    try:
        return max(0.0, min(1.0, float(fields[2]) / 100))
    except ValueError:
        return None


def _first_error(text: str) -> str:
    lines = [line[3:].strip() for line in text.splitlines() if line.startswith("E: ")]
    return lines[0] if lines else "unknown reason"
