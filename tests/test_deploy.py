"""The files under deploy/ and the Dockerfile: well formed, pinned, safe by default, and at one with the program.

Their linters (hadolint, kubernetes-validate, yamllint) come with `make setup` and need no network. Engines that would
run them (docker compose, promtool) are in .github/workflows/deploy.yml; kubectl and systemd are used where there are.
"""

from __future__ import annotations

import configparser
import copy
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

import mini_infer
from mini_infer.cli import make_parser
from mini_infer.config import EngineConfig
from mini_infer.engine.client import EXIT_SECONDS
from mini_infer.server import run, supervisor, tracing
from mini_infer.server.launch import ServeOptions

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
UNIT = DEPLOY / "systemd" / "mini-infer.service"
YAML = sorted([*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml"), *(ROOT / ".github").rglob("*.yml")])
PORT = ServeOptions(EngineConfig()).port
IMAGE = f"mini-infer:{mini_infer.__version__}"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def served_with(command: list[str]) -> Any:
    """What the program makes of a command line; an unknown flag ends the test."""
    return make_parser().parse_args(command)


def pinned(image: str) -> bool:
    return re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", image) is not None


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_is_tidy(path: Path) -> None:
    config = YamlLintConfig((ROOT / ".yamllint").read_text())
    assert [str(problem) for problem in linter.run(path.read_text(encoding="utf-8"), config)] == []


# ---- Dockerfile ------------------------------------------------------------------------------------------------------


def hadolint(path: Path) -> str:
    """Its complaints."""
    done = subprocess.run([Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr
    return done.stdout


def test_hadolint_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    for path in (*ROOT.glob("*Dockerfile*"), *DEPLOY.rglob("*Dockerfile*")):
        assert hadolint(path) == ""
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /src && pip install torch\n")
    assert {"DL3006", "DL3003", "DL3013"} <= set(re.findall(r"DL\d+", hadolint(tmp_path / "Dockerfile")))


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def of(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


def test_the_image_s_base_is_pinned() -> None:
    arguments = dict(argument.partition("=")[::2] for argument in of("ARG"))
    assert pinned(arguments["BASE"]) and arguments["BASE"].startswith("python:3.11")
    stages: set[str] = set()
    for stage in of("FROM"):
        image, _, name = stage.partition(" AS ")
        assert image == "${BASE}" or image in stages, "every stage has the one base"
        stages.add(name)
    (cuda,) = re.findall(r"--build-arg BASE=(\S+)", (ROOT / "Dockerfile").read_text())
    assert pinned(cuda)
    gpu = load(DEPLOY / "docker-compose.gpu.yml")["services"]["mini-infer"]["build"]["args"]
    assert gpu == {"BASE": cuda}


def test_the_image_runs_as_nobody_and_says_how_it_is() -> None:
    names = [name for name, _ in instructions()]
    last_stage = names[len(names) - names[::-1].index("FROM"):]
    assert {"USER", "HEALTHCHECK", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"} <= set(last_stage)
    assert "ADD" not in names
    user, group = of("USER")[-1].split(":")
    assert user.isdecimal() and int(user) > 0 and int(group) > 0  # a number: runAsNonRoot can tell
    assert f"--uid {user}" in "".join(of("RUN"))
    assert last_stage.index("USER") > last_stage.index("RUN")
    assert of("EXPOSE") == [str(PORT)] and of("STOPSIGNAL") == ["SIGTERM"]
    (check,) = of("HEALTHCHECK")
    probe = json.loads(check.partition("CMD ")[2])
    assert f"http://127.0.0.1:{PORT}/healthz'" in probe[-1]
    compile(probe[-1], "HEALTHCHECK", "exec")
    (entrypoint,), (command,) = of("ENTRYPOINT"), of("CMD")
    assert json.loads(entrypoint) == ["mini-infer"]
    assert served_with(json.loads(command)).host == "0.0.0.0"


def test_the_image_installs_pinned_packages_and_keeps_no_cache() -> None:
    runs = of("RUN")
    installs = [command for command in runs if "pip install" in command]
    assert len(installs) == 2
    for command in installs:
        assert "-c constraints.txt" in command and "--no-cache-dir" in command
    for command in runs:
        if "apt-get install" in command:
            assert "--no-install-recommends" in command and "rm -rf /var/lib/apt/lists" in command
    extras = re.findall(r"'\.\[([\w,]+)\]'", installs[-1])[0].split(",")
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert installs[-1].startswith("MINI_INFER_MARCH=${MARCH} "), "the image is for other machines"
    assert '"MINI_INFER_MARCH", "native"' in (ROOT / "setup.py").read_text()


def test_what_the_image_copies_is_there_and_nothing_else_is_sent() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for copy in of("COPY") if "--from" not in copy for source in copy.split()[:-1]}
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    assert any(fnmatch.fnmatch("x/__pycache__", rule) for rule in rules)


# ---- compose ---------------------------------------------------------------------------------------------------------

STRINGS = {"type": "array", "items": {"type": "string"}}
SERVICE = {  # of compose's specification, what is used here
    "type": "object", "additionalProperties": False, "properties": {
        "image": {"type": "string"}, "command": STRINGS, "ports": STRINGS, "volumes": STRINGS, "tmpfs": STRINGS,
        "build": {"type": "object", "additionalProperties": False, "properties": {
            "context": {"type": "string"}, "args": {"type": "object", "additionalProperties": {"type": "string"}}}},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]}, "init": {"type": "boolean"},
        "read_only": {"type": "boolean"}, "cap_drop": STRINGS, "security_opt": STRINGS, "depends_on": STRINGS,
        "stop_grace_period": {"type": "string", "pattern": r"^\d+s$"},
        "environment": {"type": "object", "additionalProperties": {"type": "string"}},
        "deploy": {"type": "object", "additionalProperties": False, "properties": {"resources": {
            "type": "object", "additionalProperties": False, "properties": {"reservations": {
                "type": "object", "additionalProperties": False, "properties": {"devices": {
                    "type": "array", "items": {"type": "object", "required": ["capabilities"], "properties": {
                        "driver": {"type": "string"}, "count": {"type": "integer"},
                        "capabilities": STRINGS}, "additionalProperties": False}}}}}}}}}}
COMPOSE = {"type": "object", "additionalProperties": False, "required": ["services"], "properties": {
    "name": {"type": "string"}, "services": {"type": "object", "additionalProperties": SERVICE},
    "volumes": {"type": "object", "additionalProperties": {"type": "null"}}}}


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_compose_files_are_as_compose_has_them(name: str) -> None:
    jsonschema.validate(load(DEPLOY / name), COMPOSE)


@pytest.mark.parametrize("wrong", [{"port": ["8000:8000"]}, {"restart": "sometimes"}, {"ports": "8000:8000"},
                                   {"init": "yes"}, {"stop_grace_period": 60}, {"build": {"arg": {}}},
                                   {"environment": {"A": True}}, {"deploy": {"gpus": 1}}], ids=str)
def test_a_slip_in_a_compose_file_would_show(wrong: dict[str, Any]) -> None:
    compose = load(DEPLOY / "docker-compose.yml")
    compose["services"]["mini-infer"].update(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose, COMPOSE)


def test_compose_is_pinned_local_and_whole() -> None:
    compose = load(DEPLOY / "docker-compose.yml")
    services = compose["services"]
    assert services["mini-infer"]["image"] == IMAGE
    assert (DEPLOY / services["mini-infer"]["build"]["context"] / "Dockerfile").is_file()
    named: set[str] = set()
    for service in services.values():
        assert pinned(service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "nothing listens to the world"
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists() and volume.endswith(":ro")
            else:
                named.add(source)
    assert named == set(compose["volumes"])
    assert served_with(services["mini-infer"]["command"]).host == "0.0.0.0"
    assert services["mini-infer"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert set(load(DEPLOY / "docker-compose.gpu.yml")["services"]) <= set(services)


def test_prometheus_and_grafana_find_each_other() -> None:
    services = load(DEPLOY / "docker-compose.yml")["services"]
    config = load(DEPLOY / "prometheus" / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert set(config) == {"global", "scrape_configs"} and set(config["global"]) == {"scrape_interval"}
    assert set(job) == {"job_name", "static_configs"}
    assert job["static_configs"] == [{"targets": [f"mini-infer:{PORT}"]}] and "mini-infer" in services
    (source,) = load(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["type"] == "prometheus" and source["url"] == "http://prometheus:9090" and "prometheus" in services
    (provider,) = load(DEPLOY / "grafana" / "provisioning" / "dashboards" / "mini-infer.yml")["providers"]
    folder = provider["options"]["path"]
    board = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert board == f"{folder}/mini-infer.json"
    assert f"./grafana/mini-infer.json:{board}:ro" in services["grafana"]["volumes"]


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


VERSIONS = sorted({kubernetes_validate.latest_version(), "1.29"})  # the oldest and the newest to hold them against
KUSTOMIZATION = {"apiVersion", "kind", "resources", "images", "patches"}  # what `rendered` knows
SERVICE_MONITOR = {  # of the Prometheus operator's, what is used here: no schema of Kubernetes has it
    "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"}, "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "additionalProperties": False, "required": ["name"], "properties": {
            "name": {"type": "string"}, "labels": {"type": "object", "additionalProperties": {"type": "string"}}}},
        "spec": {"type": "object", "additionalProperties": False, "required": ["selector", "endpoints"], "properties": {
            "selector": {"type": "object", "additionalProperties": False, "required": ["matchLabels"], "properties": {
                "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}},
            "endpoints": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": False, "required": ["port", "path"], "properties": {
                    "port": {"type": "string"}, "path": {"type": "string", "pattern": "^/"},
                    "interval": {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"},
                    "authorization": {"type": "object", "additionalProperties": False, "properties": {
                        "type": {"type": "string"}, "credentials": {
                            "type": "object", "additionalProperties": False, "required": ["key"], "properties": {
                                "name": {"type": "string"}, "key": {"type": "string"},
                                "optional": {"type": "boolean"}}}}}}}}}}}}


def rendered(folder: Path) -> dict[str, Any]:
    """What `kubectl apply -k` would apply, by kind."""
    kustomization = load(folder / "kustomization.yaml")
    assert set(kustomization) <= KUSTOMIZATION and kustomization["kind"] == "Kustomization"
    assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    built: dict[str, Any] = {}
    for resource in kustomization["resources"]:
        path = (folder / resource).resolve()
        built |= rendered(path) if path.is_dir() else {(manifest := load(path))["kind"]: manifest}
    for image in kustomization.get("images", ()):
        for each in built["Deployment"]["spec"]["template"]["spec"]["containers"]:
            if each["image"].partition(":")[0] == image["name"]:
                each["image"] = f"{image['name']}:{image['newTag']}"
    for patch in kustomization.get("patches", ()):
        for change in yaml.safe_load(patch["patch"]):
            assert set(change) == {"op", "path", "value"} and change["op"] == "add"
            *path, last = (step.replace("~1", "/") for step in change["path"].split("/")[1:])
            target = built[patch["target"]["kind"]]
            assert target["metadata"]["name"] == patch["target"]["name"]
            for step in path:
                target = target[int(step)] if isinstance(target, list) else target[step]
            target[last] = change["value"]
    return built


both_folders = pytest.mark.parametrize("folder", ["base", "gpu"], ids=["cpu-folder", "gpu-folder"])  # "gpu" is a mark


@pytest.mark.parametrize("version", VERSIONS)
@both_folders
def test_kubernetes_knows_every_field(folder: str, version: str) -> None:
    manifests = rendered(KUBERNETES / folder)
    assert set(manifests) == {"Deployment", "Service", "PersistentVolumeClaim"}
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)
    slip = copy.deepcopy(manifests["Deployment"])
    slip["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = 10
    with pytest.raises(kubernetes_validate.ValidationError, match="periodSecond"):
        kubernetes_validate.validate(slip, version, strict=True)


def test_every_manifest_is_held_against_a_schema() -> None:
    """The service monitor needs the operator's definitions, so it is applied by itself; with a key as without one."""
    used = {"servicemonitor.yaml", "kustomization.yaml", *load(BASE / "kustomization.yaml")["resources"]}
    assert {path.name for path in BASE.iterdir()} == used
    text = (BASE / "servicemonitor.yaml").read_text()
    with_key = re.sub(r"# (?=authorization:|  credentials:)", "", text)
    assert yaml.safe_load(with_key) != yaml.safe_load(text)
    for monitor in (yaml.safe_load(text), yaml.safe_load(with_key)):
        jsonschema.validate(monitor, SERVICE_MONITOR)
    (endpoint,) = yaml.safe_load(with_key)["spec"]["endpoints"]
    (secret,) = (source["secretRef"]["name"] for source in container()["envFrom"])
    assert endpoint["authorization"]["credentials"] == {"name": secret, "key": "MINI_INFER_API_KEY"}
    assert endpoint["path"] == "/metrics"


def pod() -> Any:
    return load(BASE / "deployment.yaml")["spec"]["template"]["spec"]


def container() -> Any:
    (only,) = pod()["containers"]
    return only


def test_the_manifests_belong_together() -> None:
    kinds = {"deployment": "Deployment", "service": "Service", "pvc": "PersistentVolumeClaim",
             "servicemonitor": "ServiceMonitor"}
    manifests = {name: load(BASE / f"{name}.yaml") for name in kinds}
    assert {name: manifest["kind"] for name, manifest in manifests.items()} == kinds
    labels = {"app.kubernetes.io/name": "mini-infer"}
    deployment, service = manifests["deployment"]["spec"], manifests["service"]["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == labels
    assert service["selector"] == manifests["service"]["metadata"]["labels"] == labels
    assert manifests["servicemonitor"]["spec"]["selector"]["matchLabels"] == labels
    (port,), (listens,) = service["ports"], container()["ports"]
    assert listens == {"name": "http", "containerPort": PORT} and port["targetPort"] == "http"
    assert manifests["servicemonitor"]["spec"]["endpoints"][0]["port"] == port["name"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod()["volumes"]
              if "persistentVolumeClaim" in volume]
    assert claims == [manifests["pvc"]["metadata"]["name"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod()["volumes"]} and mounts["cache"] in of("VOLUME")
    kustomization = load(BASE / "kustomization.yaml")
    assert kustomization["resources"] == [f"{name}.yaml" for name in kinds if name != "servicemonitor"]


def test_the_pod_is_confined() -> None:
    user = int(of("USER")[-1].split(":")[0])
    context, own = pod()["securityContext"], container()["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] == context["runAsGroup"] == user
    assert context["seccompProfile"] == {"type": "RuntimeDefault"} and pod()["automountServiceAccountToken"] is False
    assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container()["image"] == IMAGE and served_with(container()["args"]).host == "0.0.0.0"
    assert container()["resources"]["limits"]["memory"]


def test_the_probes_ask_what_they_are_for() -> None:
    startup, ready, live = (container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert [probe["httpGet"]["path"] for probe in (startup, ready, live)] == ["/health", "/health", "/healthz"]
    assert {probe["httpGet"]["port"] for probe in (startup, ready, live)} == {"http"}
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600, "a large model takes minutes to load"
    assert ready["failureThreshold"] == 1, "not ready is said once"
    patience = live["periodSeconds"] * live["failureThreshold"]
    assert patience >= 60 > ready["periodSeconds"], "a pod leaves the service long before it is killed"


def test_the_gpu_overlay_changes_what_is_there() -> None:
    overlay = load(KUBERNETES / "gpu" / "kustomization.yaml")
    assert overlay["resources"] == ["../base"]
    (image,) = overlay["images"]
    assert f"{image['name']}:{image['newTag']}" == load(
        DEPLOY / "docker-compose.gpu.yml")["services"]["mini-infer"]["image"] == f"{IMAGE}-cuda"
    plain, changed = (rendered(KUBERNETES / folder) for folder in ("base", "gpu"))
    (runs,) = plain["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert runs["image"] == IMAGE
    runs["image"], runs["resources"]["limits"]["nvidia.com/gpu"] = f"{IMAGE}-cuda", 1
    assert changed == plain


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here to check `rendered` with")
@both_folders
def test_kustomize_puts_them_together_the_same(folder: str) -> None:
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert built == rendered(KUBERNETES / folder)


# ---- systemd ---------------------------------------------------------------------------------------------------------


DIRECTIVES = {  # of systemd's, what is used here: it warns of others and goes on
    "Unit": "Description Wants After StartLimitIntervalSec StartLimitBurst",
    "Service": """Type Environment EnvironmentFile ExecStart KillMode TimeoutStopSec Restart RestartSec
        RestartPreventExitStatus DynamicUser CacheDirectory WorkingDirectory LimitNOFILE CapabilityBoundingSet
        NoNewPrivileges PrivateTmp ProtectSystem ProtectHome ProtectClock ProtectControlGroups ProtectHostname
        ProtectKernelLogs ProtectKernelModules ProtectKernelTunables RestrictAddressFamilies RestrictNamespaces
        RestrictRealtime RestrictSUIDSGID LockPersonality SystemCallArchitectures UMask""",
    "Install": "WantedBy"}


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_starts_the_program_and_lets_it_end() -> None:
    assert unit().sections() == list(DIRECTIVES)
    for section, names in DIRECTIVES.items():
        assert set(unit()[section]) <= set(names.split())
    service = unit()["Service"]
    binary, *command = shlex.split(service["ExecStart"])
    assert Path(binary).name == "mini-infer"
    served_with([argument for argument in command if not argument.startswith("$")])
    assert service["KillMode"] == "mixed", "a SIGTERM of its own would end the engine in the middle of requests"
    assert service["RestartPreventExitStatus"] == "2" and service["Restart"] == "on-failure"
    assert service["DynamicUser"] == "yes" and service["NoNewPrivileges"] == "yes"
    assert "User" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    binary = unit()["Service"]["ExecStart"].split()[0]
    copy = tmp_path / "mini-infer.service"
    copy.write_text(UNIT.read_text().replace(binary, "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "mini-infer" in line]
    assert done.returncode == 0 and not ours, done.stderr


# ---- what all of them must agree on ----------------------------------------------------------------------------------


def test_everybody_waits_longer_than_the_server_takes_to_end() -> None:
    """--shutdown-timeout for the requests, then the most that answers, connections, engine and traces may take."""
    after = supervisor.FLUSH_SECONDS + run.CLOSE_SECONDS + EXIT_SECONDS + tracing.FLUSH_SECONDS
    compose = load(DEPLOY / "docker-compose.yml")["services"]["mini-infer"]
    service = unit()["Service"]
    before = int(container()["lifecycle"]["preStop"]["exec"]["command"][-1])  # counts as well
    waits = {
        "compose": (compose["command"], int(compose["stop_grace_period"].removesuffix("s")), 0),
        "kubernetes": (container()["args"], pod()["terminationGracePeriodSeconds"], before),
        "systemd": (shlex.split(service["ExecStart"])[1:-1], int(service["TimeoutStopSec"]), 0),
    }
    default = ServeOptions(EngineConfig()).shutdown_timeout
    for name, (command, patience, first) in waits.items():
        timeout = served_with(command).shutdown_timeout
        assert timeout == default, f"{name} says it, and says the same as all"
        assert patience >= first + timeout + after, name
