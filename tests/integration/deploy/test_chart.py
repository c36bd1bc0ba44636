"""The Helm chart renders what Kubernetes takes, with settings that the processes take, and nothing that is secret."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from enforcer.cli import known
from enforcer.cli.config import faults_of
from enforcer.transport import envoy, http
from tests.fixtures.image import steps
from tests.fixtures.tools import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.tools import Tool

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "metergate"
VERSIONS = ("1.30.0", "1.37.0")
"""The oldest that the chart's `kubeVersion` allows, and the newest whose schemas are here."""
FINE = {"secrets.name": "metergate", "kafka.servers": "kafka-0:9092,kafka-1:9092"}
SECRETS = {
    "metergate_internal_token": "a token of sixteen or more",
    "metergate_redis_url": "rediss://:hidden@redis:6379/0",
    "metergate_database_url": "postgresql+asyncpg://metergate:hidden@db/metergate",
    "metergate_meter_database_url": "postgresql+asyncpg://metergate:hidden@db/metergate",
    "metergate_clickhouse_url": "https://metergate:hidden@clickhouse:8443/default",
    "metergate_kafka_password": "hidden",
}
DIGEST = f"sha256:{'0' * 64}"
METER_ENDS = 5 + 5
"""Seconds: its calls' grace, and a flush."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "image.digest": DIGEST,
        "image.pullSecrets": [{"name": "registry"}],
        "secrets.keys.kafkaPassword": "kafka-password",
        "kafka.protocol": "SASL_SSL",
        "kafka.username": "metergate",
        "clickhouseCluster": "metering",
        "settings": {"METERGATE_LOG_LEVEL": "warning"},
        "enforcer.journal": "kafka",
        "enforcer.settings": {"METERGATE_MOST_CALLS": "1000000", "METERGATE_TRANSPORT": "envoy"},
        "enforcer.podAnnotations": {"a": "b"},
        "enforcer.nodeSelector": {"a": "b"},
        "enforcer.tolerations": [{"key": "a", "operator": "Exists"}],
        "enforcer.affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}]}},
        "enforcer.priorityClassName": "high",
        "enforcer.extraVolumes": [{"name": "more", "emptyDir": {}}],
        "enforcer.extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "enforcer.extraEnv": [{"name": "TZ", "value": "UTC"}],
        "rollup.settings": {"METERGATE_METER_RAW_DAYS": "30"},
        "networkPolicy.prometheus": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
        "networkPolicy.egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        "ingress.enabled": True,
        "ingress.className": "nginx",
        "ingress.rules": [{"host": "m.example", "paths": [
            {"path": "/v1/events", "pathType": "Exact", "port": "http"}]}],
        "ingress.tls": [{"hosts": ["m.example"], "secretName": "tls"}],
        "serviceMonitor.enabled": True,
        "enforcer.probeScheme": "HTTPS",
        "serviceMonitor.tlsConfig": {"insecureSkipVerify": True},
        "serviceMonitor.labels": {"release": "prometheus"},
        "prometheusRule.enabled": True,
        "prometheusRule.files": {"alerts": 'groups:\n- name: a\n  rules:\n  - {alert: A, expr: up == 0,'
                                           ' annotations: {summary: "{{ $value }}"}}\n'},
    },
    "one of each, no Kafka": {
        "kafka.servers": "",
        "enforcer.autoscaling.enabled": False,
        "enforcer.replicas": 1,
        "rollup.replicas": 1,
        "networkPolicy.enabled": False,
        "podDisruptionBudget.enabled": False,
        "serviceAccount.create": False,
        "migration.enabled": False,
    },
}  # fmt: skip


def options(values: dict[str, Any]) -> Iterator[str]:
    for name, value in {**FINE, **values}.items():
        yield "--set-json"
        yield f"{name}={json.dumps(value)}"


def render(
    helm: Tool, values: dict[str, Any], version: str = VERSIONS[-1]
) -> dict[tuple[str, str], Any]:
    """What Kubernetes would get, by kind and name."""
    text = helm.run("template", "release", CHART, "--kube-version", version, *options(values))
    found = [one for one in YAML(typ="safe").load_all(text) if one]
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


@pytest.fixture(scope="module", params=VARIANTS)
def rendered(request: pytest.FixtureRequest, helm: Tool) -> dict[tuple[str, str], Any]:
    return render(helm, VARIANTS[request.param])


def templates(rendered: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """The pods, by component."""
    return {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["template"]
        for one in rendered.values()
        if "template" in one.get("spec", {})
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_lints(helm: Tool, variant: str) -> None:
    helm.run("lint", "--strict", "--kube-version", VERSIONS[0], *options(VARIANTS[variant]), CHART)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_takes_what_it_renders(helm: Tool, variant: str, version: str) -> None:
    schemas = importlib.import_module("kubernetes_validate")
    rendered = render(helm, VARIANTS[variant], version)
    own = {key: one for key, one in rendered.items() if "coreos" not in one["apiVersion"]}
    assert len(own) >= 6
    for one in own.values():
        assert schemas.validate(one, version, strict=True) == version.removesuffix(".0")
    deployment = next(
        one for (kind, _), one in own.items() if kind in {"Deployment", "StatefulSet"}
    )
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(schemas.ValidationError):
        schemas.validate(deployment, version, strict=True)


def test_each_kind_is_there_when_it_is_wanted(helm: Tool) -> None:
    kinds = {
        name: {f"{kind}/{what.removeprefix('release-metergate')}" for kind, what in render(helm, values)}
        for name, values in VARIANTS.items()
    }  # fmt: skip
    always = {"Service/", "Service/-enforcers", "Service/-meter", "Service/-rollups", "StatefulSet/-rollup"}  # fmt: skip
    usual = always | {
        "Service/-relays", "Deployment/-relay", "HorizontalPodAutoscaler/-enforcer", "Job/-migration",
        "ServiceAccount/", *(f"{kind}/-{role}" for role in ("enforcer", "relay", "rollup")
                             for kind in ("PodDisruptionBudget", "NetworkPolicy")),
    }  # fmt: skip
    assert kinds["one of each, no Kafka"] == always | {"Deployment/-enforcer"}
    assert kinds["default"] == usual | {"Deployment/-enforcer"}
    monitors = {f"ServiceMonitor/-{role}" for role in ("enforcer", "relay", "rollup")}
    assert kinds["everything"] == usual | monitors | {"StatefulSet/-enforcer", "Ingress/", "PrometheusRule/"}  # fmt: skip


def test_the_settings_of_each_container_work_out(rendered: dict[tuple[str, str], Any]) -> None:
    of_image = next(step.value for step in steps() if step.cmd == "ENV" and "PATH" in step.value)
    image = dict(zip(of_image[::2], of_image[1::2], strict=True))
    fields = {
        "metadata.labels['apps.kubernetes.io/pod-index']": "0",
        "metadata.name": "release-metergate-rollup-0",
    }
    alike: dict[str, set[str]] = {}
    for role, pod in templates(rendered).items():
        (items,) = [one["secret"]["items"] for one in pod["spec"]["volumes"] if "secret" in one]
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            given = {
                one["name"]: one.get("value") or fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
                for one in container["env"]
            }
            assert len(given) == len(container["env"])
            assert given.pop("METERGATE_SECRETS_DIR") == "/run/secrets/metergate"
            # No secret in the environment: it is read by more than the process.
            secret = {one.name for one in known.known() if one.secret or one.has_password}
            assert not given.keys() & secret
            settings = {
                **{name: text for name, text in {**image, **given}.items() if name[:10] == "METERGATE_"},
                **{one["path"].upper(): SECRETS[one["path"]] for one in items},
            }  # fmt: skip
            processes = {"metergate-enforcer": ["enforcer"], "metergate-meter": ["meter"]}
            process = processes.get(container["args"][0], [])
            assert [str(one) for one in faults_of(settings, process)] == [], (
                role,
                container["name"],
            )
            for name in (
                "METERGATE_BUCKETS",
                "METERGATE_KAFKA_PARTITIONS",
                "METERGATE_KAFKA_SERVERS",
            ):
                alike.setdefault(name, set()).add(settings.get(name, ""))
    assert all(len(found - {""}) <= 1 for found in alike.values())


def test_every_container_may_as_little_as_it_needs(rendered: dict[tuple[str, str], Any]) -> None:
    pods = templates(rendered)
    assert {"enforcer", "rollup"} <= pods.keys()
    for pod in pods.values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == next(
            step.value[0] for step in steps() if step.cmd == "USER"
        )  # fmt: skip
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108
    assert not [kind for kind, _ in rendered if kind in {"Secret", "Role", "ClusterRole"}]


def ports_of(pods: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Name → number of what each component listens at."""
    return {
        role: {
            one["name"]: one["containerPort"] for one in pod["spec"]["containers"][0].get("ports", [])
        }
        for role, pod in pods.items()
    }  # fmt: skip


def selected(labels: dict[str, str], pods: dict[str, Any]) -> str:
    """The one component whose pods have these labels."""
    (role,) = [one for one, pod in pods.items() if labels.items() <= pod["metadata"]["labels"].items()]  # fmt: skip
    return role


def test_probes_ask_ports_that_the_image_has(rendered: dict[tuple[str, str], Any]) -> None:
    pods = templates(rendered)
    exposed = set(next(step.value for step in steps() if step.cmd == "EXPOSE"))
    for role, ports in ports_of(pods).items():
        spec = pods[role]["spec"]
        if role == "migration":
            continue
        assert {str(port) for port in ports.values()} <= exposed
        for probe, path in (("startup", "/healthz"), ("liveness", "/healthz"), ("readiness", "/readyz")):  # fmt: skip
            asked = spec["containers"][0][f"{probe}Probe"]["httpGet"]
            assert (asked["path"], asked["port"] in ports) == (path, True)
        assert len(spec["topologySpreadConstraints"]) == 2
        for one in spec["topologySpreadConstraints"]:
            assert selected(one["labelSelector"]["matchLabels"], pods) == role


def test_services_budgets_and_policies_select_pods(rendered: dict[tuple[str, str], Any]) -> None:
    pods = templates(rendered)
    ports = ports_of(pods)
    for (kind, _), one in rendered.items():
        spec = one.get("spec", {})
        if kind == "Service":
            role = selected(spec["selector"], pods)
            assert {port["targetPort"] for port in spec["ports"]} <= ports[role].keys()
        elif kind in {"PodDisruptionBudget", "NetworkPolicy"}:
            selector = spec.get("selector") or spec["podSelector"]
            role = selected(selector["matchLabels"], pods)
            for rule in spec.get("ingress", []):
                assert {port["port"] for port in rule["ports"]} <= set(ports[role].values())


def test_what_names_another_object_finds_it(rendered: dict[tuple[str, str], Any]) -> None:
    for (kind, _), one in rendered.items():
        spec = one.get("spec", {})
        if kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            assert "replicas" not in rendered[target["kind"], target["name"]]["spec"]
        elif kind == "StatefulSet":
            assert rendered["Service", spec["serviceName"]]["spec"]["clusterIP"] == "None"
        elif kind == "Ingress":
            for path in (path for rule in spec["rules"] for path in rule["http"]["paths"]):
                service = path["backend"]["service"]
                found = rendered["Service", service["name"]]["spec"]["ports"]
                assert service["port"]["name"] in {port["name"] for port in found}
    enforcer = templates(rendered)["enforcer"]["spec"]["containers"][0]["env"]
    (meter,) = [one["value"] for one in enforcer if one["name"] == "METERGATE_METER_ENDPOINT"]
    name, _, port = meter.partition(":")
    assert int(port) in {one["port"] for one in rendered["Service", name]["spec"]["ports"]}


def test_a_pod_has_the_time_that_its_process_needs_to_end(
    rendered: dict[tuple[str, str], Any],
) -> None:
    needs = {
        "enforcer": envoy.DRAIN_SECONDS + max(envoy.END_SECONDS, http.DRAIN_SECONDS),
        "relay": METER_ENDS,
        "rollup": METER_ENDS,
    }
    for role, pod in templates(rendered).items():
        if role not in needs:
            continue
        hook = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {})
        before = hook.get("sleep", {}).get("seconds", 0)
        assert pod["spec"]["terminationGracePeriodSeconds"] > before + needs[role], role
        assert (before > 0) == (role == "enforcer")


@pytest.mark.parametrize(
    ("values", "of_all", "of_enforcers"),
    [
        ({}, "metergate:0.1.0", "metergate:0.1.0"),
        ({"image.tag": "2"}, "metergate:2", "metergate:2"),
        ({"image.tag": "2", "enforcer.image.tag": "1"}, "metergate:2", "metergate:1"),
        ({"image.digest": DIGEST, "enforcer.image.tag": "1"}, f"metergate@{DIGEST}", "metergate:1"),
        ({"image.tag": "2", "enforcer.image.digest": DIGEST}, "metergate:2", f"metergate@{DIGEST}"),
    ],
)
def test_enforcers_can_stay_behind_in_an_upgrade(
    helm: Tool, values: dict[str, Any], of_all: str, of_enforcers: str
) -> None:
    for role, pod in templates(render(helm, values)).items():
        images = {
            one["image"]
            for one in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
        }
        assert images == {of_enforcers if role == "enforcer" else of_all}


def test_the_prometheus_operator_takes_what_is_for_it(helm: Tool, operator_check: Tool) -> None:
    rendered = render(helm, VARIANTS["everything"])
    own = [one for one in rendered.values() if "coreos" in one["apiVersion"]]
    text = "\n---\n".join(json.dumps(one) for one in own)
    assert operator_check.run(given=text).strip() == str(len(own)) == "4"
    own[0]["spec"]["endpoint"] = []
    with pytest.raises(ToolError, match='unknown field "endpoint"'):
        operator_check.run(given=json.dumps(own[0]))


def test_monitoring_finds_every_process_under_the_names_of_the_rules(helm: Tool) -> None:
    rendered = render(helm, VARIANTS["everything"])
    jobs = {}
    for (kind, _), one in rendered.items():
        if kind != "ServiceMonitor":
            continue
        assert one["metadata"]["labels"]["release"] == "prometheus"
        (endpoint,) = one["spec"]["endpoints"]
        (service,) = [
            other
            for (other_kind, _), other in rendered.items()
            if other_kind == "Service"
            and one["spec"]["selector"]["matchLabels"].items()
            <= other["metadata"]["labels"].items()
        ]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        (relabeling,) = endpoint["relabelings"]
        jobs[one["metadata"]["labels"]["app.kubernetes.io/component"]] = relabeling["replacement"]
    assert jobs == {
        "enforcer": "metergate-enforcer",
        "relay": "metergate-relay",
        "rollup": "metergate-meter",
    }
    (group,) = rendered["PrometheusRule", "release-metergate"]["spec"]["groups"]
    assert group["rules"][0]["annotations"]["summary"] == "{{ $value }}"


def test_the_rules_of_deploy_come_through_unchanged(helm: Tool) -> None:
    files = sorted((CHART.parents[1] / "prometheus" / "rules").glob("*.yml"))
    assert files
    given = {file.stem: file.read_text() for file in files}
    rendered = render(helm, {"prometheusRule.enabled": True, "prometheusRule.files": given})
    groups = [group for file in files for group in YAML(typ="safe").load(file)["groups"]]
    assert rendered["PrometheusRule", "release-metergate"]["spec"]["groups"] == groups


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"secrets.name": ""}, "secrets"),
        ({"secrets.nam": "x"}, "nam"),
        ({"buckets": 0}, "buckets"),
        ({"kafka.servers": "kafka"}, "servers"),
        ({"settings": {"METERGATE_INTERNAL_TOKEN": "x"}}, "METERGATE_INTERNAL_TOKEN"),
        ({"settings": {"METERGATE_MOST_CALLS": 1_000_000}}, "METERGATE_MOST_CALLS"),
        ({"enforcer.journal": "disk"}, "journal"),
        ({"enforcer.journal": "kafka", "kafka.servers": "", "rollup.replicas": 1}, "needs kafka.servers"),
        ({"kafka.servers": ""}, "without kafka.servers one process rolls up all buckets"),
        ({"image.digest": "latest"}, "digest"),
        ({"prometheusRule.enabled": True}, "--set-file prometheusRule.files.alerts"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(helm: Tool, values: dict[str, Any], told: str) -> None:
    with pytest.raises(ToolError) as refused:
        render(helm, values)
    assert told in str(refused.value)


def test_every_value_has_its_place_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Any, part: dict[str, Any], place: str) -> None:
        part = schema["definitions"][part["$ref"].split("/")[-1]] if "$ref" in part else part
        properties = part.get("properties")
        if properties is None:
            return
        assert part["additionalProperties"] is False, place
        assert values.keys() == properties.keys() - {"global"}, place
        for name, value in values.items():
            compare(value, properties[name], f"{place}.{name}")

    compare(YAML(typ="safe").load(CHART / "values.yaml"), schema, "values")
