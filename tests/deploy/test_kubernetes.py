"""The Kubernetes manifests fit together, confine the worker, and probe it without Redis."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.docs.blocks import texts_in
from tests.support.builders import SECRET
from watcher.cli import group
from watcher.config.loading import load
from watcher.delivery.egress import REFUSED_NETWORKS
from watcher.environment import Environment

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


DEPLOYMENT, POLICY = manifest("deployment"), manifest("network-policy")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(WORKER,) = POD["containers"]
SECRETS, CUSTOM = manifest("secret.example"), manifest("kustomization")


def kubectl(*arguments: str) -> str:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on this machine")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def paths(value: Any, at: str = "") -> Iterator[str]:
    """Every key, with the ones above it."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield f"{at}.{key}"
            yield from paths(below, f"{at}.{key}")
    if isinstance(value, list):
        for number, below in enumerate(value):
            yield from paths(below, f"{at}.{number}")


def test_every_file_is_in_the_kustomization_or_an_example() -> None:
    (generated,) = CUSTOM["configMapGenerator"]
    named = {*CUSTOM["resources"], *generated["files"], "kustomization.yaml", "secret.example.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == named


def test_kustomize_builds_it_whole() -> None:
    documents = kubectl("kustomize", str(FOLDER)).split("\n---\n")
    kinds = [document.partition("\nkind: ")[2].split()[0] for document in documents]
    assert sorted(kinds) == ["ConfigMap", "Deployment", "NetworkPolicy"]
    (name,) = (line.split()[1] for line in documents[0].splitlines() if line.startswith("  name: watcher-"))
    (built,) = (document for document in documents if "\nkind: Deployment" in document)
    assert f"name: {name}\n" in built, "an edit of the configuration makes new pods"


def test_the_command_of_the_readme_makes_the_secret_that_the_example_shows(tmp_path: Path) -> None:
    readme = texts_in("deploy/README")
    (line,) = re.findall(r"^kubectl (create secret .*)=secrets$", readme, re.MULTILINE)
    for name, content in SECRETS["stringData"].items():
        (tmp_path / name).write_text(content)
    made = json.loads(kubectl(*f"{line}={tmp_path} --dry-run=client --output=json".split()))
    assert made["metadata"]["name"] == SECRETS["metadata"]["name"]
    decoded = {name: b64decode(value).decode() for name, value in made["data"].items()}
    assert decoded == SECRETS["stringData"]


def test_kubernetes_knows_every_field_of_the_deployment() -> None:
    # `set image` reads the file into kubectl's own types, which drop what they do not know.
    file = str(FOLDER / "deployment.yaml")
    known = json.loads(
        kubectl("set", "image", "--local", "--output", "json", "--filename", file, "watcher=x")
    )
    assert set(paths(DEPLOYMENT)) - set(paths(known)) == set()


def test_a_pod_has_no_rights_beyond_its_work() -> None:
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert int(POD["securityContext"]["runAsUser"]) >= 10_000
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert WORKER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = [mount["mountPath"] for mount in WORKER["volumeMounts"] if "readOnly" not in mount]
    assert writable == ["/tmp"]


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
def test_probes_read_a_file_and_use_no_network(probe: str, tmp_path: Path) -> None:
    program, *arguments = WORKER[probe]["exec"]["command"]
    assert (program, arguments[:2]) == ("watcher", ["health", "--file"])
    dockerfile = (FOLDER.parent / "Dockerfile").read_text()
    assert f"WATCHER_HEARTBEAT_FILE={arguments[2]}\n" in dockerfile
    (tmp_path / "beat").touch()
    ran = CliRunner().invoke(group, ["health", "--file", str(tmp_path / "beat")], standalone_mode=False)
    assert (ran.return_value, ran.output) == (0, "ok\n")


def test_secrets_and_configuration_are_mounted_where_the_worker_looks(tmp_path: Path) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in WORKER["volumeMounts"]}
    assert Path(mounts["configuration"]) / "watcher.toml" in Environment.PLACES
    assert sorted(mounts) == sorted(volume["name"] for volume in POD["volumes"])
    content = dict.fromkeys(SECRETS["stringData"], SECRET) | {"redis_url": "redis://redis"}
    environ = {}
    for variable in WORKER["env"]:
        key = variable["value"].removeprefix(f"{mounts['secrets']}/")
        (tmp_path / key).write_text(content.pop(key))
        environ[variable["name"]] = str(tmp_path / key)
    assert not content
    settings = load(FOLDER / "watcher.toml", environ).settings
    assert settings.redis.url.get_secret_value() == "redis://redis"


def test_a_worker_has_time_to_drain_and_its_successor_starts_first(tmp_path: Path) -> None:
    environ = {"LOOPRING_API_KEY": "k", "OPS_SECRET": SECRET}
    drain_s = load(FOLDER / "watcher.toml", environ).settings.worker.drain.total_seconds()
    assert int(POD["terminationGracePeriodSeconds"]) > drain_s
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == POLICY["spec"]["podSelector"]["matchLabels"]


def test_the_network_policy_denies_what_egress_denies() -> None:
    public = POLICY["spec"]["egress"][-1]
    blocks = [block["ipBlock"] for block in public["to"]]
    assert [block["cidr"] for block in blocks] == ["0.0.0.0/0", "2000::/3"]
    denied = {network for block in blocks for network in block["except"]}
    outside = {str(network) for network in REFUSED_NETWORKS if not _is_inside(network)}
    assert denied == {str(network) for network in REFUSED_NETWORKS} - outside
    assert POLICY["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in POLICY["spec"]


def _is_inside(network: Any) -> bool:
    """Whether a block of the policy would let it pass without its exception."""
    return network.version == 4 or str(network).startswith(("2", "3"))
