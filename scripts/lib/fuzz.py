"""libFuzzer on what reads strangers' text: the targets of server/fuzz, our crates in them built to count what they cover.

Each target starts from seeds written here and from what it found earlier (.cache/fuzz/corpus), and runs for a time. An input
that ends it is a finding: its file is named, it is mended, and it becomes a seed.

Dependencies are those of every other build, and count nothing: what an input reaches in the compilers of grammars and of
templates leads `format` and `template` nowhere, and they get there by their seeds. Where those change, fuzz the whole program.
"""
import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil

SECONDS = 30
# Of one input: more than any takes that is within the limits.
TIMEOUT_S = 10
# Coverage as cargo-fuzz asks for it, without the sanitizers, which only nightly compilers have.
FLAGS = ("--cfg", "fuzzing", "-Copt-level=1", "-Ccodegen-units=1", "-Cpasses=sancov-module", "-Cllvm-args=-sanitizer-coverage-level=4",
         "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters", "-Cllvm-args=-sanitizer-coverage-pc-table",
         "-Cllvm-args=-sanitizer-coverage-trace-compares")
# What cargo calls with the compiler and its arguments. Build scripts have no libFuzzer to tell what they cover.
COMPILER = """#!/bin/sh
compiler=$1
shift
case " $* " in
*" --crate-name build_script_build "*) exec "$compiler" "$@" ;;
esac
exec "$compiler" "$@" {flags}
"""
# What libFuzzer says where nothing counts.
BLIND = "Is the code instrumented for coverage?"


@dataclasses.dataclass
class Target:
    """A binary of server/fuzz, its seeds, and options that only it needs."""

    name: str
    seeds: list[bytes]
    options: tuple[str, ...] = ()

    @property
    def binary(self):
        return f"fuzz-{self.name}"


MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi é\U0001f44b"}]},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"}, {"role": "user", "content": "And <|im_end|>?"}]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 1}, "y": {"enum": ["a", None]},
                                           "z": {"type": "array", "items": {"$ref": "#/$defs/d"}, "maxItems": 3}},
          "required": ["x"], "additionalProperties": False, "$defs": {"d": {"type": "string", "pattern": "^[a-f]{1,3}$"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}}]
COMMON = {"model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7, "stop": ["x"], "max_tokens": 5, "n": 2,
          "stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"7": -5}, "presence_penalty": 0.5,
          "min_p": 0.1, "min_tokens": 2, "repetition_penalty": 1.1, "truncate_prompt_tokens": -1}
SHAPE = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}

REQUESTS = {
    "c": [{**COMMON, "messages": MESSAGES, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}},
           "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2, "chat_template_kwargs": {"thinking": True}},
          {"model": "m", "messages": MESSAGES[:2], "response_format": SHAPE, "reasoning_effort": "low"}],
    "p": [{**COMMON, "prompt": ["a", "b"], "echo": True, "logprobs": 3, "suffix": "s"},
          {"model": "m", "prompt": [[1, 2], [3]], "structured_outputs": {"regex": "[a-z]+"}}],
    "r": [{"model": "m", "input": "Hi", "instructions": "I", "max_output_tokens": 5, "metadata": {"a": "b"},
           "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, "reasoning": {"effort": "low"}},
          {"model": "m", "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "t"}]},
                                   {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                                   {"type": "function_call_output", "call_id": "c", "output": "o"}],
           "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}], "tool_choice": "required"}],
    "m": [{"model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "stop_sequences": ["x"],
           "messages": [{"role": "user", "content": "Hi"},
                        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"},
                                                          {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
                        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "2"}]}],
           "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}], "tool_choice": {"type": "any"},
           "thinking": {"type": "enabled", "budget_tokens": 1024}}],
    "e": [{"model": "m", "input": ["a", "b"], "dimensions": 2, "encoding_format": "base64"}, {"model": "m", "input": [[1], [2]]}],
    "k": [{"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}],
    "s": [{"model": "m", "text_1": "a", "text_2": ["b", "c"]}],
    "t": [{"model": "m", "prompt": "a", "return_token_strs": True}, {"model": "m", "messages": MESSAGES, "tools": TOOLS}],
    "d": [{"model": "m", "tokens": [1, 2]}],
}
FORMATS = [
    {"response_format": {"type": "json_object"}}, {"response_format": SHAPE},
    {"structured_outputs": {"json": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"const": "c"}]}}}},
    {"structured_outputs": {"json": {"type": "string", "format": "date-time", "maxLength": 40}}},
    {"structured_outputs": {"json": {"allOf": [{"type": "object"}, {"patternProperties": {"^a": {"type": "null"}}}]}}},
    {"structured_outputs": {"json": {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {
        "next": {"oneOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}}}}}}},
    {"structured_outputs": {"regex": "(a|b){2,5}[^c]?\\d+"}}, {"structured_outputs": {"choice": ["yes", "no", "né"]}},
    {"structured_outputs": {"grammar": "start: a+ \"x\"\na: /[0-9]+/ | \"(\" a \")\"\n%ignore / /"}},
]
# A syntax, a way to reason, flags of calls, and lengths of pieces; then the answer.
ANSWERS = [
    "012ab\n<think>\nHm, <tool_call>?\n</think>\n\nYes.",
    "001\x02\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"a\", \"argu",
    "103\x05\n{\"name\": \"get_weather\", \"parameters\": {\"q\": \"\\u007b\\\"{\"}}",
    "202\x03\x07\n[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"get_weather\", \"arguments\": {\"c\": [1]}}] and",
    "302\x01\nLet me see.[TOOL_CALLS]a[ARGS]{\"x\": 1}[TOOL_CALLS]get_weather[ARGS]{}",
    "402\x09\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{\"x\": 1}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "922\x04\nWell </think> é.",
]


def joined(first, second):
    """Two parts of an input, with a byte 0 between."""
    return first + b"\0" + second


def as_json(value):
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def template_seeds(repo):
    """The templates of models in use, each with a conversation."""
    lines = (repo / "server" / "text" / "tests" / "fixtures" / "templates.jsonl").read_text(encoding="utf-8").splitlines()
    bodies = [as_json({"model": "m", "messages": MESSAGES, "tools": TOOLS}), as_json({"model": "m", "messages": MESSAGES[:2]})]
    return [joined(json.loads(line)["source"].encode(), body) for line in lines for body in bodies]


def signature_seeds(repo):
    """Signatures of the reference implementation, of all kinds, and the lists of files in them."""
    files = sorted((repo / "server" / "hub" / "tests" / "fixtures" / "signatures").glob("*.sig"))
    texts = [file.read_bytes() for file in files]
    return [b"b" + text for text in texts] + [b"s" + base64.b64decode(json.loads(text)["dsseEnvelope"]["payload"]) for text in texts]


def targets(repo):
    requests = [endpoint.encode() + as_json(body) for endpoint, bodies in REQUESTS.items() for body in bodies]
    formats = [joined(as_json(body), bytes(range(7, 167, 5))) for body in FORMATS]
    # A format may exhaust its compiler: in a server its trial is ended, here the next one begins.
    forgiving = ("-fork=1", "-ignore_ooms=1", "-ignore_timeouts=1", "-ignore_crashes=0", "-rss_limit_mb=1024")
    return [
        Target("request", requests, ("-max_len=4096",)),
        Target("format", formats, ("-max_len=1024", "-len_control=0", *forgiving)),
        Target("answer", [answer.encode() for answer in ANSWERS], ("-max_len=1024",)),
        Target("signature", signature_seeds(repo), ("-max_len=8192",)),
        Target("template", template_seeds(repo), ("-max_len=32768",)),
    ]


def compiler(folder):
    """What compiles our crates for fuzzing. Its name tells what is in it: cargo compiles anew where that is another."""
    text = COMPILER.format(flags=" ".join(FLAGS))
    file = folder / f"rustc-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o755)
        draft.rename(file)
    return file


def dictionary(repo):
    """The names in docs/api.md: what no mutation of bytes finds by itself."""
    text = (repo / "docs" / "api.md").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"`([a-z_0-9.]{2,40})`", text)))
    return "".join(f'"\\"{name}\\""\n' for name in names)


def command(target, folder, binaries, seconds, repo):
    """The command that runs a target, with what it needs in `folder`."""
    seeds, corpus, found = (folder / kind / target.name for kind in ("seeds", "corpus", "found"))
    shutil.rmtree(seeds, ignore_errors=True)
    for one in (seeds, corpus, found):
        one.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (seeds / f"{number:03}").write_bytes(seed)
    words = folder / "names.dict"
    words.write_text(dictionary(repo), encoding="utf-8")
    return [binaries / target.binary, f"-max_total_time={seconds}", f"-timeout={TIMEOUT_S}", f"-dict={words}",
            f"-artifact_prefix={found}{os.sep}", "-verbosity=0", "-print_funcs=0", "-print_final_stats=1", *target.options, corpus, seeds]
