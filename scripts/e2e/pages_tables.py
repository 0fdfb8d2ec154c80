"""What test_docs.py has to know of pages beside what stands there. A key is a page and how the command begins."""
import re

from lib import installed

MINUTES = "takes minutes"
BUILDS = "builds with cargo, and fetches what it builds from"
CARD = "needs an NVIDIA card"
CONTAINER = "needs a container engine"
NEWCOMER = "scripts/newcomer carries it out, on a Debian of its own"

# Commands that are not executed, and why.
NOT_RUN = {
    ("README.md", "scripts/demo"): f"{BUILDS}; test_load.py runs it without building",
    ("README.md", "scripts/test"): f"{MINUTES}, and is what runs this",
    ("README.md", "CUDA_COMPUTE_CAP=90 cargo build"): BUILDS,
    ("README.md", "cargo build"): BUILDS,
    ("docs/egress.md", "unshare -n"): "takes 20 seconds; test_egress.py does it in less",
    ("docs/gpu.md", "CUDA_COMPUTE_CAP=89 cargo build"): BUILDS,
    ("docs/gpu.md", "docker"): f"{CONTAINER} and {CARD}",
    ("docs/governance.md", "client = openai.OpenAI"): "a part of a program; test_oidc.py has such clients",
    ("docs/install.md", "apt install"): NEWCOMER,
    ("docs/install.md", "runuser -u rempart -- rempart pull smollm2"): NEWCOMER,
    ("docs/install.md", "KEY="): NEWCOMER,
    ("docs/install.md", "systemctl"): NEWCOMER,
    ("docs/install.md", "curl"): NEWCOMER,
    ("docs/install.md", "REMPART_MODELS="): CONTAINER,
    ("docs/monitoring.md", "systemctl"): "needs a Prometheus that systemd runs",
    ("docs/performance.md", "scripts/bench-peers"): f"{MINUTES}, and {BUILDS}",
    ("docs/reliability.md", "scripts/reliability"): f"{MINUTES}; test_reliability.py runs it for a shorter time",
    ("docs/supply-chain.md", "scripts/release"): f"{BUILDS}; test_release.py runs it",
    ("docs/supply-chain.md", "scripts/test"): f"{BUILDS}; a step of scripts/test",
    **{(step.page, step.begins): NEWCOMER for step in installed.STEPS},
}

# Pages whose commands another test executes.
ELSEWHERE = {"docs/audit.md": "test_auditor.py"}

# Variables that a page speaks of, or that stand for what a reader has.
SETTINGS = {
    "README.md": {"HF_ENDPOINT": "http://127.0.0.1:8899"},
    "docs/clients.md": {"SSL_CERT_FILE": "ca.pem", "NODE_EXTRA_CA_CERTS": "ca.pem"},
    "docs/bench.md": {"URL": "http://127.0.0.1:8080/v1"},
    "docs/operate.md": {"SSL_CERT_FILE": "ca.pem"},
    "docs/governance.md": {"PGHOST": "the folder of a cluster's socket", "PGUSER": "postgres"},
}

# A server looks at its database every second: until the new key of the client's certificate is known, for half a minute or longer.
KNOWN = """for _ in {1..300}; do
    curl --cacert ca.pem --cert client.pem --key client-key.pem https://localhost:8443/v1/models > /dev/null 2>&1 && break
    sleep 0.1
done"""
# A login of the test's own, whose address is in login.issuer.
LOGIN = "python login.py > login.issuer 2> login.log & while [ ! -s login.issuer ]; do sleep 0.1; done"
# A collector of the test's own, which ends the command once that has noted what was sent.
COLLECTOR = "python collector.py > collector.log 2>&1 & until [ -s collector.log ]; do sleep 0.1; done"
# The hub that HF_ENDPOINT names, as this machine reaches no other.
HUB = r"""
python hub_stand_in.py 8899 model.gguf $(sha256sum model.gguf | head --bytes 64) \
    Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf org/name/file.gguf > hub.log 2>&1 &
until curl http://127.0.0.1:8899/api/models/org/name/revision/main > hub.txt 2>&1; do sleep 0.1; done
"""
CERTIFICATE = r"""
new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc"
$new -x509 -keyout ca-key.pem -out ca.pem -subj /CN=authority -addext basicConstraints=critical,CA:TRUE 2>&1
$new -keyout key.pem -out request.pem -subj /CN=server 2>&1
printf subjectAltName=DNS:llm.example,DNS:localhost,IP:127.0.0.1 > names
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -extfile names -out certificate.pem 2>&1
"""

# What is done before a command: what the page takes for granted, or what a command that is not executed would have done.
BEFORE = {
    ("README.md", "curl http://127.0.0.1:8080/v1/chat"): "rempart serve SmolLM2-135M-Instruct.Q4_1.gguf",
    ("README.md", "rempart pull qwen2.5-0.5b-instruct"): HUB,
    ("docs/bench.md", "rempart bench --base-url http://127.0.0.1"): "rempart serve model.gguf",
    ("docs/bench.md", "rempart bench --base-url https://llm"):
        f"{CERTIFICATE}rempart serve model.gguf --bind 0.0.0.0:8443 --allow-remote --tls-certificate certificate.pem --tls-key key.pem",
    ("docs/bench.md", "rempart bench --base-url $URL --concurrency 8 --num-prompts 400 --result"): "rempart serve model.gguf",
    ("docs/clients.md", "export OPENAI_API_KEY"): f"""{CERTIFICATE}rempart serve smollm2-135m-instruct --bind 127.0.0.1:8443 \\
        --database rempart.db --tls-certificate certificate.pem --tls-key key.pem | grep -x 'sk-rempart-.*' > first.key""",
    ("docs/configuration.md", "curl -X POST http://127.0.0.1:9090"): "rempart serve model.gguf --admin-bind 127.0.0.1:9090",
    ("docs/gdpr.md", "rempart gdpr record"):
        "rempart serve model.gguf --database rempart.db; rempart user add anna@example.org --name Anna --database rempart.db",
    ("docs/governance.md", "rempart oidc fetch"): LOGIN,
    ("docs/monitoring.md", "rempart key create"): "rempart serve model.gguf --database rempart.db",
    ("docs/monitoring.md", "promtool"): f"{CERTIFICATE}cp ca.pem /etc/prometheus/rempart-ca.pem",
    ("docs/monitoring.md", "rempart traces send"): COLLECTOR,
    ("docs/operate.md", "export OPENAI_API_KEY"): f"""{CERTIFICATE}rempart serve model.gguf --bind 127.0.0.1:8443 \\
        --allowed-host llm.example --database rempart.db --tls-certificate certificate.pem --tls-key key.pem
    rempart key create auditor --role auditor --database rempart.db > auditor.key""",
    ("docs/operate.md", "rempart chat --base-url"): "rempart serve model.gguf --context-length 256",
    ("docs/operate.md", "git diff"): "git init --quiet; echo one > notes; git add notes; echo two > notes",
    ("docs/security.md", "rempart key list"): "rempart serve model.gguf --database rempart.db",
    ("docs/transport.md", "rempart key create"): "rempart project create sales --database rempart.db",
    ("docs/transport.md", "curl --cacert ca.pem --cert client.pem --key client-key.pem https://localhost:8443/v1"): KNOWN,
    ("docs/troubleshoot.md", "rempart support-bundle"):
        "echo 'models = \"model.gguf\"' > rempart.toml; rempart serve --config rempart.toml",
}

# What a reader types at a terminal, each when they see the pattern before it.
TYPED = {
    ("docs/operate.md", "rempart top"): [(" ready", "q")],
    ("docs/operate.md", "rempart chat --base-url"):
        [("/help tells more", ""), ("> ", "Say hello.\r"), (r"\[\d+ tokens.*TTFT \d+ ms", ""), ("> ", "\x04")],
}

# What a command prints, as a pattern of one of its lines.
TELLS = {
    ("README.md", "curl http://127.0.0.1:8080/v1/chat"): r"^data: \[DONE\]$",
    ("README.md", "from openai import"): r"\w",
    ("README.md", "rempart pull qwen2.5-0.5b-instruct"): r"^next: rempart serve qwen2.5-0.5b-instruct$",
    ("README.md", "rempart pull hf:"): r"^next: rempart serve org--name--file$",
    ("README.md", "rempart plan"): r"tokens/s",
    ("docs/bench.md", "rempart bench --base-url https://llm"): r"ttft_p95",
    ("docs/clients.md", "from openai import"): r"\w",
    ("docs/clients.md", "import OpenAI"): r"\w",
    ("docs/clients.md", "import os\n\nfrom anthropic"): r"\w",
    ("docs/clients.md", "from langchain"): r"\w",
    ("docs/clients.md", "import os\n\nfrom llama_index"): r"\w",
    ("docs/clients.md", "import { createOpenAICompatible"): r"\w",
    ("docs/configuration.md", "rempart config check"): r"would start with it",
    ("docs/configuration.md", "rempart config show"): r"^models = .*# file$",
    ("docs/configuration.md", "curl -X POST"): r'"state": ?"ready"',
    ("docs/doctor.md", "rempart doctor --machine --json"): r"^{.*}$",
    ("docs/egress.md", "rempart doctor --egress"): r"^all \d+ attempts were stopped",
    ("docs/gdpr.md", "rempart audit verify"): r"each is what was written",
    ("docs/gdpr.md", "rempart content status"): r"nothing is recorded",
    ("docs/governance.md", "rempart serve smollm2-135m-instruct --database rempart.db     # a new one"): r"^sk-rempart-\S+$",
    ("docs/governance.md", "rempart key create laptop --database rempart.db --project sales"): r"^sk-rempart-\S+$",
    ("docs/governance.md", "rempart user add"): r"^user_\w+",
    ("docs/governance.md", "rempart audit verify --database rempart.db   "): r"^last: \d+:[0-9a-f]{64}",
    ("docs/governance.md", "rempart limit list"): r"^project sales: .*tokens-per-day=2000000",
    ("docs/governance.md", "rempart retention status"): r"^usage +183 days",
    ("docs/governance.md", "rempart content keygen"): r"^[0-9a-f]{64}$",
    ("docs/monitoring.md", "rempart traces send"): r"^1 lines sent; 0 spans",
    ("docs/operate.md", "rempart chat --prompt"): r"\w",
    ("docs/planning.md", "rempart plan smollm2"): r"tokens/s",
    ("docs/planning.md", "rempart plan --list-cards"): r"^l40s ",
    ("docs/planning.md", "rempart bench engine"): r"tok/s",
    ("docs/supply-chain.md", "rempart model list"): r"^smollm2-135m-instruct .*[0-9a-f]{64}",
    ("docs/transport.md", "curl --cacert ca.pem https"): r"\w",
    ("docs/transport.md", "curl --cacert ca.pem --cert client.pem --key client-key.pem https://localhost:8443/v1"): r'"object": ?"list"',
    ("docs/troubleshoot.md", "rempart support-bundle"): r"^server/metrics.txt +\d+ bytes",
}


def printed(pattern, which=-1):
    """The group of the pattern in what the page's commands have printed so far: by default the last such."""
    return lambda reader: re.findall(pattern, reader.all, re.MULTILINE)[which]


def read(name):
    """What stands in a file of the reader's."""
    return lambda reader: (reader.own.folder / name).read_text(encoding="utf-8").strip()


FEW = "--random-input-len 16 --random-output-len 4"
COMPARED = f"--num-prompts 16 {FEW} --regression-tolerance 9 --baseline before.json"
# Text of a page for which readers put in their own, and less of what takes long where a test's time would be spent on measuring.
PUT_IN = {
    ("README.md", "bench engine ./model.gguf"): "bench engine ./model.gguf --repeat 1 --batch 1 --prompt-tokens 16 --answer-tokens 2",
    ("README.md", "--concurrency 1,8"): f"--concurrency 1,8 --num-prompts 8 {FEW}",
    ("docs/bench.md", "--concurrency 1,4,16"): f"--concurrency 1,4,16 --num-prompts 16 {FEW}",
    ("docs/bench.md", "--duration-s 300"): f"--duration-s 2 {FEW}",
    # A machine that runs tests has other things to do.
    ("docs/bench.md", "ttft_p95=500ms,itl_p99=80ms"): "ttft_p95=60s,itl_p99=60s",
    ("docs/bench.md", "--num-prompts 400 --result"): f"--num-prompts 16 {FEW} --result",
    # It may stop for seconds, too, which half of so few requests show: who sees that it is slower measures again.
    ("docs/bench.md", "--num-prompts 400 --baseline before.json"):
        f"{COMPARED} || {{ [ $? -eq 4 ] || exit 1; rempart bench --base-url $URL --concurrency 8 {COMPARED}; }}",
    ("docs/clients.md", "sk-rempart-..."): read("first.key"),
    ("docs/governance.md", "postgres://rempart@db.example/rempart?sslmode=verify-full"):
        lambda reader: f"postgres://rempart@localhost/rempart?host={reader.own.environment['PGHOST']}",
    ("docs/governance.md", "https://login.example.org/realms/company"): read("login.issuer"),
    ("docs/governance.md", "67iibbOw"): printed(r"^sk-rempart-(\w{8})-", 1),
    ("docs/governance.md", "17:4be1..."): printed(r"^last: (\d+:[0-9a-f]{64})"),
    ("docs/governance.md", "5f0c..."): printed(r"^([0-9a-f]{64})$"),
    ("docs/governance.md", "6d1f..."): printed(r"^([0-9a-f]{64})$"),
    ("docs/planning.md", "bench engine smollm2-135m-instruct"):
        "bench engine smollm2-135m-instruct --repeat 1 --batch 1 --prompt-tokens 16 --answer-tokens 2",
    ("docs/transport.md", "sk-rempart-..."): printed(r"^(sk-rempart-\S+)$"),
}
