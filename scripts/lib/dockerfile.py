"""A Dockerfile as the list of its steps: what `scripts/image` carries out. Of the format only what our own files use; anything
else is an error."""
import dataclasses
import json
import re
import shlex

KNOWN = {"FROM", "RUN", "COPY", "ARG", "ENV", "WORKDIR", "USER", "SHELL", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
         "ENTRYPOINT", "CMD"}


class DockerfileError(Exception):
    """It says something that is not understood."""


@dataclasses.dataclass
class Step:
    """One instruction: `RUN`, what it is told, and its options such as `--mount`."""

    name: str
    text: str
    options: list


def lines(text):
    """Whole instructions: comments out, continued lines joined."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [line.strip() for line in re.sub(r"\\\n\s*", " ", kept).splitlines() if line.strip()]


def steps(path):
    """All of a file's, with the ARGs before the first FROM put into the images' names."""
    arguments, found = {}, []
    for line in lines(path.read_text(encoding="utf-8")):
        name, _, text = line.partition(" ")
        if name not in KNOWN:
            raise DockerfileError(f"{path.name}: {name} is not understood")
        options = []
        while (match := re.match(r"\s*(--\S+)\s+", text)) and name != "HEALTHCHECK":
            options.append(match[1])
            text = text[match.end():]
        if name == "ARG" and not found:
            key, _, value = text.partition("=")
            arguments[key.strip()] = value.strip()
            continue
        if name == "FROM":
            text = expand(text, arguments)
        found.append(Step(name, " ".join([*options, text]) if name == "COPY" else text.strip(), options))
    return found


def expand(text, variables):
    """A text with what its ${names} stand for."""
    def value(match):
        if match[1] not in variables:
            raise DockerfileError(f"{match[0]} is not set")
        return variables[match[1]]
    return re.sub(r"\$\{(\w+)\}", value, text)


def base(text):
    """Image and name of a FROM."""
    match = re.fullmatch(r"(\S+)\s+AS\s+(\S+)", text, re.IGNORECASE)
    if not match:
        raise DockerfileError(f"FROM {text}: a stage needs a name")
    return match[1], match[2]


def copied(text):
    """The stage that a COPY takes from, None for the folder of the build, and its paths."""
    words = shlex.split(text)
    source = None
    while words[0].startswith("--"):
        option, _, value = words.pop(0).partition("=")
        if option != "--from":
            raise DockerfileError(f"COPY {option} is not understood")
        source = value
    return source, words


def mounts(step):
    """The folders that `RUN --mount=type=cache` keeps."""
    kept = []
    for option in step.options:
        fields = dict(field.partition("=")[::2] for field in option.removeprefix("--mount=").split(","))
        if not option.startswith("--mount=") or fields.get("type") != "cache":
            raise DockerfileError(f"RUN {option} is not understood")
        kept.append(fields["target"])
    return kept


def words(text):
    """The list of an instruction in its JSON form."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DockerfileError(f"{text}: only the JSON form is understood") from error


def health(text):
    """The command of a HEALTHCHECK."""
    _, _, command = text.partition("CMD ")
    return words(command.strip())
