"""The files of deploy/ for the API: each way to run a worker gives it the same two secrets."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.deploy.confined import values
from tests.deploy.test_kubernetes import FOLDER, POLICY, kubectl
from tests.deploy.test_service import TEXT, UNIT, analyze
from tests.docs.blocks import texts_in
from tests.support.builders import SECRET
from watcher.cli import group
from watcher.config.loading import load
from watcher.encryption import new_key

DEPLOY = Path(__file__).parents[2] / "deploy"
README = texts_in("deploy/")
DROP_IN = (DEPLOY / "watcher-api.conf").read_text()
OVERRIDE = yaml.safe_load((DEPLOY / "compose.api.yaml").read_text())
ARGUMENTS = {
    "compose": OVERRIDE["services"]["watcher"]["command"],
    "systemd": shlex.split(values(DROP_IN, "ExecStart")[-1])[1:],
}
PATCH = yaml.safe_load((DEPLOY / "kubernetes-api" / "deployment.yaml").read_text())
(WORKER,) = PATCH["spec"]["template"]["spec"]["containers"]
VARIABLES = {
    "kubernetes": {one["name"]: one["value"] for one in WORKER["env"]},
    "compose": OVERRIDE["services"]["watcher"]["environment"],
    "systemd": dict(value.split("=", 1) for value in values(DROP_IN, "Environment")),
}


@pytest.mark.parametrize("arguments", [*ARGUMENTS.values(), WORKER["args"]])
def test_the_worker_is_started_by_a_command_that_exists(arguments: list[str]) -> None:
    assert "--api" in arguments
    assert CliRunner().invoke(group, [*arguments, "--help"]).exit_code == 0


def test_each_file_gives_both_secrets_under_the_documented_names() -> None:
    for environ in VARIABLES.values():
        assert [*environ] == ["WATCHER_HTTP_TOKEN_FILE", "WATCHER_SECRET_KEY_FILE"]
        assert [Path(path).name for path in environ.values()] == ["http_token", "secret_key"]
    assert (
        {*OVERRIDE["secrets"]}
        == {*OVERRIDE["services"]["watcher"]["secrets"]}
        == {"http_token", "secret_key"}
    )
    assert [value.split(":")[0] for value in values(DROP_IN, "LoadCredential")] == [
        "http_token",
        "secret_key",
    ]


def test_the_documented_section_completes_the_configuration(tmp_path: Path) -> None:
    (section,) = re.findall(r"```toml\n( *\[api\]\n.*?)```", README, re.DOTALL)
    (tmp_path / "watcher.toml").write_text(f"{(FOLDER / 'watcher.toml').read_text()}\n{section}")
    environ = {"LOOPRING_API_KEY": "k", "OPS_SECRET": SECRET, "WATCHER_SECRET_KEY": new_key()}
    found = load(tmp_path / "watcher.toml", environ)
    assert found.settings.api
    assert not found.warnings


def test_kustomize_builds_the_api_overlay() -> None:
    documents = [*yaml.safe_load_all(kubectl("kustomize", str(DEPLOY / "kubernetes-api")))]
    by_kind: dict[str, list[Any]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "ConfigMap": 1,
        "Deployment": 1,
        "Service": 1,
        "Ingress": 1,
        "NetworkPolicy": 2,
    }
    (deployment,), (service,), (ingress,) = (by_kind[kind] for kind in ("Deployment", "Service", "Ingress"))
    pod = deployment["spec"]["template"]
    (worker,) = pod["spec"]["containers"]
    assert worker["args"] == WORKER["args"]
    assert {"REDIS_URL_FILE", "WATCHER_HTTP_TOKEN_FILE"} <= {one["name"] for one in worker["env"]}
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ((port,), (target,)) = worker["ports"], service["spec"]["ports"]
    assert target["targetPort"] == port["name"]
    assert f":{port['containerPort']}" in " ".join(worker["args"])
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["backend"]["service"]["name"]) == ("/v1", service["metadata"]["name"])
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


def test_only_the_ingress_controller_reaches_the_port() -> None:
    policy = yaml.safe_load((DEPLOY / "kubernetes-api" / "network-policy.yaml").read_text())
    assert policy["spec"]["podSelector"] == POLICY["spec"]["podSelector"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    ]
    assert [port["port"] for port in rule["ports"]] == [WORKER["ports"][0]["containerPort"]]


def test_outside_a_container_the_port_is_on_loopback_only() -> None:
    assert OVERRIDE["services"]["watcher"]["ports"] == ["127.0.0.1:8787:8787"]
    assert "--http 127.0.0.1:8787" in values(DROP_IN, "ExecStart")[-1]


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    worker = "/opt/watcher/bin/watcher"
    (tmp_path / UNIT.name).write_text(TEXT.replace(worker, "/bin/true"))
    (tmp_path / f"{UNIT.name}.d").mkdir()
    (tmp_path / f"{UNIT.name}.d" / "api.conf").write_text(DROP_IN.replace(worker, "/bin/true"))
    checked = analyze("verify", "--man=no", str(tmp_path / UNIT.name))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
