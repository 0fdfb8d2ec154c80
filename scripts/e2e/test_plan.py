"""`rempart plan` and `rempart bench engine`: what they tell, of files, of a configuration alone and of cards, and what they refuse.
How well the one predicts the other is measured by benches/plan.py."""
import json
import os
import re
import subprocess

import models
import pytest
from lib import server

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}
# Of that: attention, the gated layers, the head; and the embedding.
WEIGHTS = 32 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336) + 128256 * 4096


def rempart(*arguments):
    return subprocess.run([server.binary(), *arguments], capture_output=True, text=True, check=False)


def told(*arguments):
    done = rempart(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def smollm2():
    return str(models.fetch("smollm2", models.default_directory()))


def test_a_card_is_planned_from_its_datasheet(config):
    plan = told("plan", config, "--card", "h100-sxm")
    assert (plan["device"], plan["rates"]) == ("h100-sxm", "datasheet")
    weights, = plan["weights"]
    assert (weights["format"], weights["count"]) == ("Q4_K", WEIGHTS)
    # Four bits a weight and its scales, with the embedding; of 80 GiB, 90 %.
    memory = plan["memory"]
    assert 4.5 < 8 * memory["weights"] / (WEIGHTS + 128256 * 4096) < 5.2
    assert memory["available"] == (80 << 30) // 100 * 90
    assert memory["weights"] + memory["cache"] + memory["activations"] <= memory["available"]
    # Keys and values of a token in bf16: 32 layers of 8 heads of 128, twice.
    assert plan["cache_tokens"] == memory["cache"] // (32 * 8 * 128 * 2 * 2)
    # In 8 bits a number takes one byte, and 64 of them share a scale of four.
    small = told("plan", config, "--card", "h100-sxm", "--kv-dtype", "int8")
    assert small["cache_tokens"] == small["memory"]["cache"] // (32 * 2 * 8 * (128 + 2 * 4))
    rates = {answer["batch"]: answer["tokens_per_s"] for answer in plan["answers"]}
    assert rates[1] < rates[8] < rates[32]
    # No faster than the card reads the weights.
    assert rates[1] < 3350e9 / memory["weights"]


def test_a_faster_card_is_faster_and_a_small_one_too_small(config, tmp_path):
    first, second = (told("plan", config, "--card", card)["answers"][0]["tokens_per_s"] for card in ("l4", "h200"))
    assert first < second
    large = tmp_path / "large.json"
    large.write_text(json.dumps(CONFIG | {"num_hidden_layers": 160}), encoding="utf-8")
    refused = rempart("plan", str(large), "--card", "a10", "--weights", "Q8_0")
    assert refused.returncode == 1
    assert "the plan exceeds the memory available" in refused.stderr or "keys and values of one sequence" in refused.stderr


def test_numbers_of_16_bits_take_no_whole_numbers(config):
    exact = told("plan", config, "--card", "h100-sxm", "--weights", "BF16", "--activations", "int16")
    assert exact["weights"][0]["format"] == "BF16"
    assert exact["memory"]["weights"] >= 2 * WEIGHTS
    packed = told("plan", config, "--card", "h100-sxm", "--weights", "Q8_0")
    assert exact["answers"][0]["tokens_per_s"] < packed["answers"][0]["tokens_per_s"]


def test_cards_are_listed():
    listed = rempart("plan", "--list-cards")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^l40s +48 GiB +864 GB/s", listed.stdout, re.MULTILINE)


def test_this_machine_is_measured(smollm2):
    plan = told("plan", smollm2, "--device", "cpu", "--step-tokens-max", "64")
    assert plan["rates"] == "measured"
    assert {weights["format"] for weights in plan["weights"]} == {"Q4_1", "Q8_0"}
    assert all(0 < answer["weights_percent"] <= 100 for answer in plan["answers"])
    shown = rempart("plan", smollm2, "--device", "cpu", "--step-tokens-max", "64")
    assert "predicted, from rates measured just now; answers behind 1024 tokens:" in shown.stdout


def test_the_engine_is_measured(smollm2):
    measured = told("bench", "engine", smollm2, "--device", "cpu", "--batch", "1,3", "--prompt-tokens", "40", "--answer-tokens", "8",
                    "--repeat", "2", "--step-tokens-max", "32")
    assert measured["kv_dtype"] == "int8" and re.fullmatch("[0-9a-f]{16,}", measured["build"])
    assert [result["batch"] for result in measured["results"]] == [1, 3]
    assert all(result["prompt_tokens_per_s"] > 0 < result["answer_tokens_per_s"] for result in measured["results"])
    # No two measurements are the same to the nanosecond.
    assert all(result["prompt_tokens_per_s_std"] > 0 < result["answer_tokens_per_s_std"] for result in measured["results"])
    # Three prompts of 40 in steps of 32, 31 and 30 take two each; 8 tokens of each answer follow.
    assert measured["results"][1]["context_tokens"] == 40 + (6 + 8) // 2


def test_a_single_measurement_has_no_deviation(smollm2):
    once = ("bench", "engine", smollm2, "--device", "cpu", "--batch", "1", "--prompt-tokens", "3", "--answer-tokens", "2", "--repeat", "1")
    assert told(*once)["results"][0]["answer_tokens_per_s_std"] is None
    assert "±" not in rempart(*once).stdout


def test_more_answers_than_rows_for_prompts_are_measured(smollm2):
    measured = told("bench", "engine", smollm2, "--device", "cpu", "--batch", "12", "--prompt-tokens", "3", "--answer-tokens", "2",
                    "--repeat", "1", "--step-tokens-max", "12")
    assert measured["results"][0]["answer_tokens_per_s"] > 0


def test_what_the_model_was_not_made_for_is_refused(smollm2):
    refused = rempart("bench", "engine", smollm2, "--device", "cpu", "--prompt-tokens", "9000", "--batch", "1")
    assert refused.returncode == 1
    assert "of the 8192 that the model was made for" in refused.stderr


@pytest.mark.parametrize(("arguments", "said"), [
    (["plan", "CONFIG", "--card", "voodoo"], "--list-cards"),
    (["plan", "CONFIG", "--card", "l4", "--weights", "Q9"], "--weights Q9 is not one of F32, F16"),
    (["plan", "CONFIG", "--card", "l4", "--context-length", "131073"], "131073 is more than the model was made for, 131072"),
    (["plan", "CONFIG", "--card", "l4", "--step-tokens-max", "1048577"], "the limit of 1048576"),
    (["plan", "CONFIG", "--card", "l4", "--kv-dtype", "f32"], "in bf16 or in 8 bits"),
    (["plan", "CONFIG", "--card", "l4", "--weights", "F32"], "a card has no kernels for weights in F32"),
    (["plan", "CONFIG", "--card", "l4", "--activations", "int16"], "a card rounds activations to 8 bits"),
    (["plan", "absent"], "absent"),
    (["bench", "engine", "absent"], "absent"),
    (["bench", "engine", "x.gguf", "--batch", "600"], "--step-tokens-max 512 must be at least the largest --batch, 600"),
    (["bench", "engine", "x.gguf", "--answer-tokens", "1"], "must be at least 2"),
    (["bench", "engine", "x.gguf", "--repeat", "1001"], "the limit of 1000"),
])
def test_what_is_refused_says_why(config, arguments, said):
    refused = rempart(*[config if argument == "CONFIG" else argument for argument in arguments])
    assert refused.returncode == 1
    assert said in refused.stderr


def test_a_pipe_is_no_configuration_and_rows_are_whole_blocks(tmp_path):
    pipe, odd = tmp_path / "pipe.json", tmp_path / "odd.json"
    os.mkfifo(pipe)
    odd.write_text(json.dumps(CONFIG | {"hidden_size": 4000, "head_dim": 128}), encoding="utf-8")
    for path, said in ((pipe, "no regular file"), (odd, "rows of 4000 weights are not whole blocks of 256")):
        refused = rempart("plan", str(path), "--card", "l4")
        assert refused.returncode == 1
        assert said in refused.stderr


def test_a_configuration_that_is_none_is_named(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(CONFIG | {"num_key_value_heads": 5}), encoding="utf-8")
    refused = rempart("plan", str(path), "--card", "l4")
    assert refused.returncode == 1
    assert "num_key_value_heads is 5" in refused.stderr
