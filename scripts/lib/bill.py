#!/usr/bin/env python3
"""The crates of a binary as a CycloneDX list, from what cargo says of them: run by scripts/release, with cyclonedx-python-lib.

    scripts/lib/bill.py PACKAGE FILE
"""
import json
import pathlib
import re
import subprocess
import sys
import tomllib

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
# Its depth, name and version; then whether it was shown before, or is compiled into the compiler.
LINE = re.compile(r"(\d+)(\S+) v(\S+)")


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=REPO, capture_output=True, text=True, check=True).stdout


def host():
    return re.search(r"^host: (.*)$", subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout, re.MULTILINE)[1]


def crates(package):
    """What cargo compiles into a package's binary for this platform, each with what it depends on: (name, version). Crates of tests and
    of builds, and optional ones that nothing asks for, are not among them. The package is the first."""
    text = cargo("tree", "--locked", "--package", package, "--edges", "normal", "--prefix", "depth", "--target", host())
    found, above = {}, []
    for line in text.splitlines():
        if match := LINE.match(line):
            depth, crate = int(match[1]), (match[2], match[3])
            found.setdefault(crate, set())
            del above[depth:]
            if above:
                found[above[-1]].add(crate)
            above.append(crate)
    return found


def component(crate, about, checksum, kind):
    """A crate as cargo's metadata and the lock file have it. Ours have no checksum, and are nowhere to be fetched."""
    name, version = crate
    expression = [LicenseFactory().make_from_string(about["license"].replace("/", " OR "))] if about["license"] else []
    links = {ExternalReferenceType.WEBSITE: about["homepage"], ExternalReferenceType.VCS: about["repository"]}
    purl = PackageURL("cargo", None, name, version)
    return Component(
        type=kind, name=name, version=version, bom_ref=purl.to_string(), purl=purl if checksum else None,
        description=about["description"], licenses=expression,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=checksum)] if checksum else [],
        external_references=[ExternalReference(type=type_, url=XsUri(url)) for type_, url in links.items() if url])


def bill(package):
    found = crates(package)
    described = {(one["name"], one["version"]): one
                 for one in json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]}
    lock = tomllib.loads((REPO / "Cargo.lock").read_text(encoding="utf-8"))
    sums = {(one["name"], one["version"]): one.get("checksum") for one in lock["package"]}
    parts = {crate: component(crate, described[crate], sums[crate], ComponentType.LIBRARY) for crate in found}
    root = next(iter(found))
    parts[root] = component(root, described[root], None, ComponentType.APPLICATION)
    listed = Bom(components=[part for crate, part in parts.items() if crate != root])
    listed.metadata.component = parts[root]
    for crate, needs in found.items():
        listed.register_dependency(parts[crate], [parts[need] for need in sorted(needs)])
    return JsonV1Dot5(listed).output_as_string(indent=1)


def main():
    package, out = sys.argv[1:]
    pathlib.Path(out).write_text(bill(package) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
