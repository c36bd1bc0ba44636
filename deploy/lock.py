"""Write constraints.txt and requirements.lock from pyproject.toml: `make lock`.

constraints.txt pins every distribution by name and version, for `pip install -c`. It is also the
input: a pin stays as it is until somebody changes or deletes its line (`UPGRADE=1` ignores all).
requirements.lock adds the SHA-256 of every file that the configured index offers for that version,
for `pip install --require-hashes`, so one lock serves all platforms and Python versions. image.lock and
build.lock, in deploy/, are the parts of it that are in the production image, and that build its wheel.

They are resolved on the oldest supported Python, where the set is largest (backports), and carry no
addresses: pip's own configuration says where packages come from. Uses pip's internals to read the
hashes, hence the check of pip's version.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
LOCK = ROOT / "requirements.lock"
IMAGE = ROOT / "deploy" / "image.lock"
BUILD = ROOT / "deploy" / "build.lock"
IMAGE_EXTRAS = ("envoy", "otel")
OLDEST = (3, 11)
PIP_SERIES = "26."

CONSTRAINTS_HEADER = """\
# The exact versions that are tested together on CPython 3.11, 3.12 and 3.13.
# Written by `make lock`; change or delete a line and run it again to move one package.
# grpcio 1.76.0 is deliberate: an empty call costs 70 us there, 114 us on 1.85 (measured).
"""
LOCK_HEADER = """\
# constraints.txt with the SHA-256 of every file of each version. Written by `make lock`.
"""
IMAGE_HEADER = """\
# What the production image installs: the part of requirements.lock without extras but {extras}. Written by `make lock`.
"""
BUILD_HEADER = """\
# What builds the wheel: a part of requirements.lock. Written by `make lock`.
"""


def document() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def wanted() -> list[str]:
    """Return the requirements of the project with every extra, and of its build."""
    extras = document()["project"]["optional-dependencies"].values()
    return [
        *document()["build-system"]["requires"],
        *document()["project"]["dependencies"],
        *(requirement for extra in extras for requirement in extra),
    ]


def of_image() -> list[str]:
    """Return the requirements of what runs in production."""
    project = document()["project"]
    extras = (project["optional-dependencies"][name] for name in IMAGE_EXTRAS)
    return [*project["dependencies"], *(one for extra in extras for one in extra)]


def locked(pins: dict[str, str], digests: dict[str, list[str]]) -> str:
    """Return the lines of a lock."""
    return "".join(
        f"{name}=={version} \\\n"
        + " \\\n".join(f"    --hash=sha256:{digest}" for digest in digests[name])
        + "\n"
        for name, version in pins.items()
    )


def resolve(requirements: list[str], constraints: Path | None) -> dict[str, str]:
    """Return name → version as pip would install them into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        listed = Path(folder, "requirements.txt")
        listed.write_text("\n".join(requirements))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), "-r", str(listed)]
        if constraints:
            command += ["-c", str(constraints)]
        subprocess.run(command, check=True)
        install: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in install}
    return dict(sorted(found.items(), key=lambda pin: pin[0].lower()))


def hashes(name: str, version: str) -> list[str]:
    """Return the SHA-256 digests of all files the index offers for this version."""
    from pip._internal.commands.install import InstallCommand
    from pip._vendor.packaging.utils import canonicalize_name

    command = InstallCommand("install", "")
    options, _ = command.parse_args([])
    with command.main_context():
        finder = command._build_package_finder(options, command.get_default_session(options))
        sources = finder._link_collector.collect_sources(
            project_name=name, candidates_from_page=lambda _: ()
        )
        links = [
            link
            for source in sources.index_urls
            if source is not None and source.link is not None
            for page in [finder._link_collector.fetch_response(source.link)]
            if page is not None
            for link in parse_links(page)
        ]
    files = canonicalize_name(name).replace("-", "_")
    return sorted(
        {
            link.hash
            for link in links
            if link.hash_name == "sha256" and belongs(link.filename, files, version)
        }
    )


def parse_links(page: Any) -> list[Any]:
    """Return the links of one index page, through pip's own parser."""
    from pip._internal.index.collector import parse_links as pip_parse_links

    return list(pip_parse_links(page))


def belongs(filename: str, files: str, version: str) -> bool:
    """Tell whether a wheel or source archive is of this distribution and version."""
    from pip._vendor.packaging.utils import (
        InvalidSdistFilename,
        InvalidWheelFilename,
        parse_sdist_filename,
        parse_wheel_filename,
    )
    from pip._vendor.packaging.version import InvalidVersion, Version

    try:
        if filename.endswith(".whl"):
            name, found, _, _ = parse_wheel_filename(filename)
        else:
            name, found = parse_sdist_filename(filename)
    except (InvalidSdistFilename, InvalidWheelFilename, InvalidVersion):
        return False  # Eggs, installers and the odd old upload: pip does not take them either.
    return name.replace("-", "_") == files and found == Version(version)


def main() -> int:
    """Resolve, then write both files."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--upgrade", action="store_true", help="ignore the present pins")
    options = arguments.parse_args()

    import pip

    if sys.version_info[:2] != OLDEST or not pip.__version__.startswith(PIP_SERIES):
        running = f"Python {sys.version_info[0]}.{sys.version_info[1]} with pip {pip.__version__}"
        needed = f"Python {OLDEST[0]}.{OLDEST[1]} with pip {PIP_SERIES}x"
        sys.stderr.write(f"lock: needs {needed}, this is {running}\n")
        return 2

    present = CONSTRAINTS if CONSTRAINTS.exists() and not options.upgrade else None
    pins = resolve(wanted(), present)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda pin: hashes(*pin), pins.items())
    digests = dict(zip(pins, found, strict=True))
    bare = [name for name, of_name in digests.items() if not of_name]
    if bare:
        sys.stderr.write(f"lock: the index offers no hashes for {', '.join(bare)}\n")
        return 1

    CONSTRAINTS.write_text(
        CONSTRAINTS_HEADER + "".join(f"{name}=={version}\n" for name, version in pins.items())
    )
    LOCK.write_text(LOCK_HEADER + locked(pins, digests))
    header = IMAGE_HEADER.format(extras=" and ".join(IMAGE_EXTRAS))
    IMAGE.write_text(header + locked(resolve(of_image(), CONSTRAINTS), digests))
    BUILD.write_text(
        BUILD_HEADER + locked(resolve(document()["build-system"]["requires"], CONSTRAINTS), digests)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
