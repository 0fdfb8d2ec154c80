"""What pages have an admin do who has carried out the five commands of docs/install.md: for `scripts/newcomer`."""
import dataclasses

from lib import documentation
from lib.newcomer import CONFIGURATION, DATA, MODELS, READY

ASK = "curl --silent --show-error --fail --retry 30 --retry-delay 1 --retry-connrefused"
RESTARTED = f"systemctl restart rempart && {ASK} {READY}"
# What the page says behind both ways to a model of one's own.
SERVED = f"""sed --in-place=.before 's/^models = .*/models = ["ours"]/' {CONFIGURATION} && {RESTARTED} &&
{ASK} --header "Authorization: Bearer $KEY" http://127.0.0.1:8080/v1/models | grep '"id": *"ours"' &&
rm -r {MODELS}/ours && mv {CONFIGURATION}.before {CONFIGURATION} && {RESTARTED}"""
SECRETS = "/etc/rempart/environment"


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a page. `before` does what it takes for granted; `after` fails where it has not done what it is there for, and takes
    back what the next one, or a purge, would find."""

    page: str
    begins: str
    before: str = "true"
    after: str = "true"


STEPS = (
    Step("docs/install.md", "runuser -u rempart -- rempart pull hf:", after=SERVED),
    Step("docs/install.md", "runuser -u rempart -- install", f"cp {MODELS}/*/*.gguf /srv/model.gguf",
         f"{SERVED} && rm /srv/model.gguf"),
    Step("docs/monitoring.md", "cp /usr/share/doc/rempart", "mkdir /etc/prometheus"),
    # The server looks for new keys every second.
    Step("docs/monitoring.md", "runuser -u rempart", after=f"""{ASK} --retry-all-errors http://127.0.0.1:8080/metrics \\
    --header "Authorization: Bearer $(cat /etc/prometheus/rempart.key)" | grep '^rempart_ready 1' && rm -r /etc/prometheus"""),
    Step("docs/troubleshoot.md", "set -a", f"""sed --in-place=.before /^database/d {CONFIGURATION} &&
install -m 0600 /dev/null {SECRETS} && echo REMPART_DATABASE={DATA}/rempart.db > {SECRETS}"""),
    Step("docs/troubleshoot.md", "journalctl", after=f"""tar -xzf rempart-support-*.tar.gz && grep listening rempart-support-*/log.txt &&
grep '"rows"' rempart-support-*/database.json && rm {SECRETS} && mv {CONFIGURATION}.before {CONFIGURATION}"""),
)


def commands():
    """What is typed, in order."""
    return [typed for step in STEPS for typed in (step.before, documentation.command(step.page, step.begins), step.after)]
