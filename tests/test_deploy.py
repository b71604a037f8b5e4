"""What lies in deploy/: valid for Kubernetes and Compose, and in agreement with the code and the documents."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from alpaca.health import ANSWER_SECONDS, ATTEMPTS, PAUSE_SECONDS, QUESTIONS
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS = ["kubernetes.yaml", "kubernetes-training.yaml"]
COMPOSE = ["compose.yaml", "compose.gpu.yaml"]
KUBERNETES = ("1.27", "1.37")  # the oldest and the newest that are tried
SERVE = ["python", "-m", "cog.server.http"]
# What 1.29.2, which Debian has, takes of Compose's specification; a later one takes all of it.
SERVICE_KEYS = {
    "image", "restart", "read_only", "cap_drop", "security_opt", "pids_limit", "healthcheck", "logging", "ports",
    "stop_grace_period", "mem_limit", "tmpfs", "volumes", "environment", "profiles", "command", "deploy",
}  # fmt: skip
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def resources(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(read(name)))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    return next(resource for resource in resources(name) if resource["kind"] == kind)


def pod(name: str) -> dict[str, Any]:
    return of_kind(name, "Deployment")["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    """Cog's server; the gateway beside it is the second one."""
    assert [one["name"] for one in pod(name)["containers"]] in (["server"], ["server", "gateway"])
    first: dict[str, Any] = pod(name)["containers"][0]
    return first


def pods_gateway() -> dict[str, Any]:
    second: dict[str, Any] = pod("kubernetes.yaml")["containers"][1]
    return second


def compose(name: str) -> dict[str, Any]:
    """A Compose file with every variable at its default."""
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", read(name)))


def services() -> dict[str, dict[str, Any]]:
    """Cog's servers."""
    return {name: service for name, service in compose("compose.yaml")["services"].items() if name != "gateway"}


def gateway() -> dict[str, Any]:
    service: dict[str, Any] = compose("compose.yaml")["services"]["gateway"]
    return service


def patched(given: Any, patch: Any) -> Any:
    """Kubernetes' strategic merge, as far as it is needed: lists are joined by `name`."""
    if isinstance(given, dict) and isinstance(patch, dict):
        return {key: patched(given.get(key), patch.get(key)) for key in {**given, **patch}}
    if isinstance(given, list) and isinstance(patch, list):
        changes = {entry["name"]: entry for entry in patch}
        assert changes.keys() <= {entry["name"] for entry in given}
        return [patched(entry, changes.get(entry["name"])) for entry in given]
    return given if patch is None else patch


def environments() -> dict[str, dict[str, str]]:
    """The variables of every container, by where they stand."""
    found = {name: {entry["name"]: entry["value"] for entry in container(name)["env"]} for name in MANIFESTS}
    for name, service in services().items():
        found[name] = {variable: str(value or "") for variable, value in service["environment"].items()}
    return found


def mounts() -> dict[str, dict[str, bool]]:
    """The folders of every container that are not the image's: path → whether it may be written to."""
    found = {
        name: {mount["mountPath"]: not mount.get("readOnly") for mount in container(name)["volumeMounts"]}
        for name in MANIFESTS
    }
    for name, service in services().items():
        parts = [volume.split(":") for volume in service["volumes"]]
        found[name] = {part[1]: part[2:] != ["ro"] for part in parts} | {path: True for path in service["tmpfs"]}
    return found


# --- Kubernetes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_knows_every_field(name: str, version: str) -> None:
    assert len(resources(name)) >= 4
    for resource in resources(name):
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_patch_gives_the_deployment_a_gpu(name: str) -> None:
    deployment = patched(of_kind(name, "Deployment"), resources("kubernetes-gpu.yaml")[0])
    kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)
    limits = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {**container(name)["resources"]["limits"], "nvidia.com/gpu": 1}


@pytest.mark.parametrize("name", MANIFESTS)
def test_selectors_ports_and_volumes_meet(name: str) -> None:
    deployment = of_kind(name, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    for resource in resources(name):
        if resource["kind"] == "Service":
            assert resource["spec"]["selector"] == labels
            assert [port["targetPort"] for port in resource["spec"]["ports"]] == ["http"]
        if resource["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            spec = resource["spec"]
            assert (spec.get("selector") or spec["podSelector"])["matchLabels"] == labels
    mounted = [mount["name"] for one in pod(name)["containers"] for mount in one["volumeMounts"]]
    assert sorted(volume["name"] for volume in pod(name)["volumes"]) == sorted(mounted)
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod(name)["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [r["metadata"]["name"] for r in resources(name) if r["kind"] == "PersistentVolumeClaim"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_probes_ask_for_the_status_and_have_time_for_the_answer(name: str) -> None:
    asked = {"startupProbe": "started", "readinessProbe": "ready", "livenessProbe": "alive"}
    assert set(asked.values()) == QUESTIONS.keys()
    for probe, question in asked.items():
        settings = container(name)[probe]
        assert settings["exec"]["command"] == ["python", "-m", "alpaca.health", question]
        assert settings["timeoutSeconds"] > longest(question)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_may_do_no_more_than_it_must(name: str) -> None:
    """What the namespace's strictest standard, `restricted`, asks for, and a root that can't be written to."""
    whole = pod(name)["securityContext"]
    assert whole["runAsNonRoot"] and whole["runAsUser"] and whole["fsGroup"] == whole["runAsUser"]
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in pod(name)["containers"]:
        own = one["securityContext"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
    assert pod(name)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_network_policy_keeps_private_addresses_out_of_reach(name: str) -> None:
    from ipaddress import ip_address, ip_network

    spec = of_kind(name, "NetworkPolicy")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    blocks = [to["ipBlock"] for rule in spec["egress"] for to in rule["to"] if "ipBlock" in to]

    def reached(address: str) -> bool:
        ip = ip_address(address)
        return any(
            ip in ip_network(block["cidr"]) and not any(ip in ip_network(out) for out in block["except"])
            for block in blocks
        )

    assert reached("93.184.216.34")
    private = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.1.1", "100.100.100.200", "fd00::1"]
    assert not [address for address in private if reached(address)]


# --- training on several machines ---------------------------------------------------------------------------------
JOB = "kubernetes-job.yaml"


def launched(given: list[str]) -> tuple[Any, Any]:
    """What torchrun and finetune.py understand of a command's words. Each refuses a word that it doesn't take."""
    from torch.distributed.run import get_args_parser

    from alpaca.training.cli import read_settings

    launch = get_args_parser().parse_args(given)
    script = launch.training_script
    assert script == "finetune.py"
    return launch, read_settings(launch.training_script_args)


def job_pod() -> dict[str, Any]:
    return of_kind(JOB, "Job")["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field_of_the_job(version: str) -> None:
    kinds = [resource["kind"] for resource in resources(JOB)]
    assert kinds == ["Service", "PersistentVolumeClaim", "Job", "NetworkPolicy"]
    for resource in resources(JOB):
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_pods_of_the_job_find_each_other_and_only_each_other() -> None:
    spec, service = of_kind(JOB, "Job")["spec"], of_kind(JOB, "Service")
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == labels
    assert job_pod()["subdomain"] == service["metadata"]["name"]
    one = job_pod()["containers"][0]
    assert one["args"][:3] == ["python", "-m", "torch.distributed.run"]
    launch, config = launched([word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in one["args"][3:]])
    assert launch.nnodes == str(spec["completions"]) == str(spec["parallelism"]) and launch.node_rank == 1
    assert launch.master_addr == f"{of_kind(JOB, 'Job')['metadata']['name']}-0.{service['metadata']['name']}"
    assert launch.master_port == one["ports"][0]["containerPort"]
    assert launch.nproc_per_node == str(one["resources"]["limits"]["nvidia.com/gpu"])
    assert config.resume_from_checkpoint == "auto" and config.output_dir.startswith("/output/")
    policy = of_kind(JOB, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels}}]}]


def test_the_jobs_pods_may_do_no_more_than_they_must() -> None:
    own, whole = job_pod()["containers"][0]["securityContext"], job_pod()["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]} and own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False and job_pod()["automountServiceAccountToken"] is False
    assert whole["runAsNonRoot"] and whole["seccompProfile"] == {"type": "RuntimeDefault"}
    mounted = {mount["name"] for mount in job_pod()["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job_pod()["volumes"]}


def test_skypilots_task_starts_a_process_for_each_gpu_with_options_that_exist() -> None:
    task = yaml.safe_load(read("skypilot.yaml"))
    assert task.keys() <= {"name", "num_nodes", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    variables = task["envs"] | {
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": task["resources"]["accelerators"].split(":")[1],
    }
    program = task["run"].replace(".venv/bin/torchrun", "printf '%s\\n'")  # the words that it is started with
    said = subprocess.run(["bash", "-euc", program], env=os.environ | variables, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    launch, config = launched(said.stdout.splitlines())
    assert (launch.nnodes, launch.node_rank, launch.nproc_per_node, launch.master_addr) == ("2", 1, "8", "10.0.0.1")
    assert config.output_dir == "/output/lora-mine" and "/output" in task["file_mounts"]
    assert config.resume_from_checkpoint == "auto" and config.base_model == task["envs"]["BASE_MODEL"]
    assert (ROOT / task["envs"]["DATA_PATH"]).is_file()
    assert subprocess.run(["bash", "-n"], input=task["setup"], text=True).returncode == 0


def test_accelerate_takes_the_settings_for_fsdp2() -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(DEPLOY / "fsdp2.yaml"))  # it refuses a key that it does not know
    assert config.num_machines == 2 and config.fsdp_config["fsdp_version"] == 2
    taken = {action.dest for action in launch_command_parser()._actions}
    assert config.fsdp_config.keys() <= taken


# --- Compose ------------------------------------------------------------------------------------------------------
def test_compose_files_keep_to_what_old_and_new_compose_take() -> None:
    for name in COMPOSE:
        content = compose(name)
        assert content.keys() <= {"services", "volumes"} | {key for key in content if key.startswith("x-")}
        for service in content["services"].values():
            assert service.keys() <= SERVICE_KEYS
            assert service.get("healthcheck", {}).keys() <= HEALTHCHECK_KEYS
    assert compose("compose.gpu.yaml")["services"].keys() == services().keys()


def test_only_the_gateway_is_reached_from_outside_and_no_other_machine_gets_in_unasked() -> None:
    assert {name: service.get("profiles") for name, service in services().items()} == {
        "predictor": None,
        "trainer": ["train"],
    }
    assert "profiles" not in gateway() and "ports" not in services()["predictor"]
    for service, port in ((gateway(), 8000), (services()["trainer"], 5000)):
        (published,) = service["ports"]
        assert published.startswith("127.0.0.1:") and published.endswith(f":{port}")


@pytest.mark.parametrize("command", [gateway()["command"], pods_gateway()["args"]], ids=["compose", "kubernetes"])
def test_the_gateway_takes_the_options_it_is_started_with(command: list[str]) -> None:
    from alpaca.gateway.__main__ import parser
    from alpaca.gateway.settings import Settings

    assert command[:3] == ["python", "-m", "alpaca.gateway"]
    given = parser().parse_args(command[3:])
    assert (given.host, given.port) == ("0.0.0.0", Settings.port)
    assert given.keys or (given.open and given.names == ["localhost", "127.0.0.1"])


def test_the_gateway_may_do_no_more_than_it_must() -> None:
    service = gateway()
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["mem_limit"]
    assert service["security_opt"] == ["no-new-privileges:true"] and all(v.endswith(":ro") for v in service["volumes"])
    assert "/health" in service["healthcheck"]["test"][-1]


def test_only_the_gateways_port_is_open_on_kubernetes() -> None:
    ports = {one["name"]: [port["name"] for port in one["ports"]] for one in pod("kubernetes.yaml")["containers"]}
    assert ports == {"server": ["cog"], "gateway": ["http"]}
    policy = of_kind("kubernetes.yaml", "NetworkPolicy")["spec"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "http"}]]


def test_the_health_check_ends_a_server_that_does_not_come_back() -> None:
    for service in services().values():
        kind, command = service["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        assert re.findall(r"-m alpaca\.health (\w+)", command) == ["ready", "alive"]
        words = shlex.split(command, comments=False)
        assert words[-4:] == ["1;", "exit", "1;", "}"] and "kill" in words  # what is killed is not "healthy"
        assert int(service["healthcheck"]["timeout"].removesuffix("s")) > longest("ready") + longest("alive")
        assert service["restart"] == "unless-stopped"


def test_a_service_may_do_no_more_than_it_must() -> None:
    for service in services().values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["logging"]["options"]["max-size"]


def test_every_volume_is_declared() -> None:
    named = {volume.split(":")[0] for service in services().values() for volume in service["volumes"]}
    assert {name for name in named if not name.startswith((".", "/"))} == compose("compose.yaml")["volumes"].keys()


# --- the dashboard ------------------------------------------------------------------------------------------------
def test_the_dashboard_shows_metrics_that_there_are() -> None:
    import json

    from alpaca.gateway.metrics import Metrics

    there = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    there |= {family.name for family in Metrics().registry.collect()}
    there |= {name + ending for name in there for ending in ("_total", "_bucket")}
    panels = json.loads(read("grafana.json"))["panels"]
    asked = [
        name for panel in panels for target in panel["targets"] for name in re.findall(r"alpaca_\w+", target["expr"])
    ]
    assert len(panels) > 6 and not set(asked) - there


# --- what both agree with -----------------------------------------------------------------------------------------
def longest(question: str) -> float:
    """Seconds that a question takes where the port is open and nobody answers."""
    tries = ATTEMPTS if question == "alive" else 1
    return tries * ANSWER_SECONDS + (tries - 1) * PAUSE_SECONDS


def test_the_trainers_run_cogs_server_for_trainings_and_the_others_the_images_command() -> None:
    assert services()["trainer"]["command"] == container("kubernetes-training.yaml")["args"]
    assert services()["trainer"]["command"] == [*SERVE, "--x-mode", "train"]
    assert "command" not in services()["predictor"]
    for name in MANIFESTS:
        assert "command" not in container(name), "it would replace tini, the image's entry point"
    assert "args" not in container("kubernetes.yaml")
    assert [port["containerPort"] for name in MANIFESTS for port in container(name)["ports"]] == [5000, 5000]


@pytest.mark.parametrize("where", environments())
def test_every_variable_is_documented(where: str) -> None:
    documents = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("serving.md", "operations.md"))
    rows = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", documents, re.MULTILINE))
    assert len(rows) > 10
    assert environments()[where].keys() <= rows


def test_variables_that_are_commented_out_are_documented_too_and_can_be_used_as_they_stand() -> None:
    documents = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("serving.md", "operations.md"))
    names = re.findall(r"# - \{ name: ([A-Z0-9_]+)", read("kubernetes.yaml"))
    assert names and all(f"| `{name}` |" in documents for name in names)
    for resource in yaml.safe_load_all(read("kubernetes.yaml").replace("# - {", "- {")):
        kubernetes_validate.validate(resource, KUBERNETES[-1], strict=True)
    assert not set(names) & environments()["kubernetes.yaml"].keys()


@pytest.mark.parametrize("where", environments())
def test_folders_that_variables_name_are_mounted_and_may_be_written_to(where: str) -> None:
    there = mounts()[where]
    for variable, value in environments()[where].items():
        if value.startswith("/"):
            folder = "/" + value.split("/")[1]
            assert folder in there, f"{variable}={value}"
            assert there[folder] is (variable != "ADAPTER_FOLDERS"), variable
    assert there["/tmp"]


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("*.yaml")))
def test_every_file_is_explained(name: str) -> None:
    assert f"deploy/{name}" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*")), ids=lambda path: path.name)
def test_lines_are_no_longer_than_elsewhere(path: Path) -> None:
    assert not [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 120]


# --- sizes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["SmolLM2-135M", "Qwen3-4B", "Llama-2-7B"])
def test_the_tables_of_sizes_are_those_that_the_code_reckons(model: str) -> None:
    from benchmarks.sizes import MODELS, sizes, tables

    made = tables([sizes(next(published for published in MODELS if published.name == model))])
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").splitlines()
    missing = [line for line in made.splitlines() if line and line not in text]
    assert not missing, "python benchmarks/sizes.py prints the tables anew"
