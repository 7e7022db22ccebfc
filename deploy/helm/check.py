#!/usr/bin/env python3
"""Renders and lints the chart with Helm's own engine, through the Python package helm-sdkpy.

    python3 deploy/helm/check.py [HELIOSTAT]

Each case is a set of values; the rendered objects are parsed as YAML and checked. With the path of a
heliostat binary, the rendered configuration is checked with it too.
"""
import asyncio
import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import helm_sdkpy
import yaml

CHART = pathlib.Path(__file__).parent / "heliostat"
BEGIN, END = "<<<rendered>>>", "<<<end>>>"


def lint(chart):
    """Returns the findings for a chart, and Helm's log. Lint logs the failures of templates and
    continues."""
    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            said = asyncio.run(helm_sdkpy.Lint(helm_sdkpy.Configuration()).run(str(chart)))
        except helm_sdkpy.HelmError as error:
            said = {"Errors": [str(error)]}
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        log.seek(0)
        return said, log.read().decode()


def with_values(values, folder):
    chart = pathlib.Path(folder) / "heliostat"
    shutil.copytree(CHART, chart)
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    unknown = set(values) - set(defaults)
    assert not unknown, unknown
    (chart / "values.yaml").write_text(json.dumps(merged(defaults, values)))
    return chart


def merged(under, over):
    if isinstance(under, dict) and isinstance(over, dict):
        return {**under, **{k: merged(under.get(k), v) for k, v in over.items()}}
    return over


def render(values):
    """Returns the objects that the chart renders from `values`, by kind."""
    objects = {}
    for template in sorted((CHART / "templates").glob("*.yaml")):
        with tempfile.TemporaryDirectory() as folder:
            chart = with_values(values, folder)
            # Lint logs why a template fails: let one fail with the output of another.
            for other in (chart / "templates").glob("*.yaml"):
                if other.name != template.name:
                    other.unlink()
            shutil.move(chart / "templates" / template.name, chart / "rendered.tpl")
            text = '{{ fail (printf "%s%s%s" "' + BEGIN + '" (tpl (.Files.Get "rendered.tpl") . | b64enc) "' + END + '") }}'
            (chart / "templates" / "tell.yaml").write_text(text)
            said, logged = lint(chart)
            assert BEGIN in logged, f"{template.name}: {said} {logged}"
            encoded = logged.split(BEGIN, 1)[1].split(END, 1)[0]
            found = yaml.safe_load(base64.b64decode(encoded))
            if found:
                objects[found["kind"]] = found
    return objects


def main():
    always = {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"}

    for values, required in (({"global": {"apiKey": "k"}}, False), ({}, True)):
        with tempfile.TemporaryDirectory() as folder:
            said, logged = lint(with_values(values, folder))
            print("lint:", json.dumps(said))
            assert not said["Errors"], said
            assert ("set global.apiKey" in logged) == required, logged

    ours, number = "set cache.memory, in MiB, instead of", "cache.memory: must be a number of MiB"
    config = ['[cache]\nmemory = "1GiB"', 'cache.memory = "1GiB"', ' cache . memory="1GiB"', '"cache"."memory" = "1GiB"',
              'cache = {memory = "1GiB"}', 'cache = { disk = { dir = "/d" }, memory = "1GiB" }']
    others = ['# cache.memory = "1GiB"', 'cache.disk = { dir = "/memory" }', 'cache = { disk = { dir = "/in_memory = 1" } }']
    cases = [({"config": c}, ours) for c in config] + [({"config": c}, None) for c in others]
    cases += [({"cache": {"memory": m}}, number) for m in ("1GiB", 0, -1)] + [({"cache": {"memory": "512"}}, None)]
    for values, refused in cases:
        with tempfile.TemporaryDirectory() as folder:
            _, logged = lint(with_values({"global": {"apiKey": "k"}, **values}, folder))
            assert {m for m in (ours, number) if m in logged} == {m for m in [refused] if m}, (values, logged)

    small = render({"global": {"apiKey": "secret: #1"}, "port": 8080})
    assert set(small) == always | {"Secret"}, set(small)
    assert small["Secret"]["stringData"] == {"API_KEY": "secret: #1"}
    assert small["Service"]["spec"]["ports"][0]["port"] == 8080
    pod = small["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    env = {e["name"]: e for e in container["env"]}
    assert env["HELIOSTAT_SERVER__LISTEN"]["value"] == "0.0.0.0:8080"
    assert env["MIRROR_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == small["Secret"]["metadata"]["name"]
    assert "secret: #1" not in json.dumps(small["Deployment"]) + json.dumps(small["ConfigMap"])
    assert env["HELIOSTAT_CACHE__MEMORY"]["value"] == "256MiB"
    assert container["resources"] == {"requests": {"cpu": "100m"}, "limits": {"memory": "460Mi"}}, container["resources"]
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert "checksum/config" not in small["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    selector = small["Deployment"]["spec"]["selector"]["matchLabels"]
    for found in (small["Service"]["spec"]["selector"], small["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]):
        assert found == selector, found

    large = render({
        "existingSecret": "mine",
        "config": '[access.mirror]\nnetworks = ["10.0.0.0/8"]\n',
        "cache": {"memory": 1024},
        "upstreams": [
            {"name": "prom", "kind": "prometheus", "urls": ["http://prometheus:9090"], "default": True, "retries": 3,
             "rate_limit": {"per_second": 20, "burst": 20, "per_day": 1000000},
             "headers": {"X-Scope-OrgID": "a \"b\" <c>", "Authorization": {"env": "STORE_TOKEN"}}},
            {"name": "demo", "kind": "demo"}],
        "env": [{"name": "STORE_TOKEN", "value": "t"}],
        "podAnnotations": {"a": "b"}, "imagePullSecrets": [{"name": "p"}], "nodeSelector": {"n": "m"},
        "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}},
        "service": {"annotations": {"x": "y"}},
        "networkPolicy": {"from": [{"namespaceSelector": {}}]},
        "tls": {"secretName": "certificate"}, "restartOnChange": True,
        "extraVolumes": [{"name": "more", "emptyDir": {}}], "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "tlsConfig": {"serverName": "heliostat"}, "bearerTokenSecret": {"name": "scrape", "key": "token"}}})
    assert set(large) == always | {"ServiceMonitor"}, set(large)
    pod = large["Deployment"]["spec"]["template"]["spec"]
    env = {e["name"]: e for e in pod["containers"][0]["env"]}
    assert env["MIRROR_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "mine" and env["STORE_TOKEN"]["value"] == "t"
    assert env["HELIOSTAT_CACHE__MEMORY"]["value"] == "1024MiB"
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "1651Mi"}
    assert pod["nodeSelector"] == {"n": "m"} and pod["imagePullSecrets"] == [{"name": "p"}]
    assert large["NetworkPolicy"]["spec"]["ingress"][0]["from"] == [{"namespaceSelector": {}}]
    monitor = large["ServiceMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["endpoints"][0]["scheme"] == "https"
    assert monitor["spec"]["endpoints"][0]["tlsConfig"] == {"serverName": "heliostat"}
    assert monitor["spec"]["endpoints"][0]["authorization"] == {"credentials": {"name": "scrape", "key": "token"}}
    container = pod["containers"][0]
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS", container[probe]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounts == {"config": "/etc/heliostat", "tls": "/etc/heliostat-tls", "more": "/more"}, mounts
    assert env["HELIOSTAT_SERVER__TLS__CERT"]["value"] == mounts["tls"] + "/tls.crt"
    assert {v["name"] for v in pod["volumes"]} == set(mounts)
    assert pod["volumes"][1]["secret"] == {"secretName": "certificate"}
    assert "checksum/config" in large["Deployment"]["spec"]["template"]["metadata"]["annotations"]

    for claim, volume in (("", {"emptyDir": {}}), ("kept", {"persistentVolumeClaim": {"claimName": "kept"}})):
        disk = render({"global": {"apiKey": "k"}, "disk": {"enabled": True, "existingClaim": claim}})
        pod = disk["Deployment"]["spec"]["template"]["spec"]
        assert {"name": "kept", **volume} in pod["volumes"], pod["volumes"]
        env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert env["HELIOSTAT_CACHE__DISK__DIR"].startswith(mounts["kept"]), env
        assert env["HELIOSTAT_STATE__DIR"] == mounts["kept"], env
        assert env["HELIOSTAT_CACHE__DISK__SIZE"] == "10GiB", env

    shared = render({"global": {"apiKey": "k"}, "sharedCache": {"secretName": "redis", "password": True}})
    pod = shared["Deployment"]["spec"]["template"]["spec"]
    # The restart of a container goes on with what it had used of budgets.
    assert {"name": "kept", "emptyDir": {}} in pod["volumes"], pod["volumes"]
    container = pod["containers"][0]
    env = {e["name"]: e for e in container["env"]}
    for key in ("secret", "password"):
        name = f"SHARED_CACHE_{key.upper()}"
        assert env[name]["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": key}, env
        assert env[f"HELIOSTAT_CACHE__SHARED__{key.upper()}"]["value"] == '{ env = "' + name + '" }', env
    assert env["HELIOSTAT_CACHE__SHARED__PREFIX"]["value"].startswith("h1:"), env
    assert env["HELIOSTAT_STATE__DIR"]["value"] == "/var/lib/heliostat", env
    assert env["HELIOSTAT_REPLICAS__SHARE_LIMITS"]["value"] == "true", env
    assert env["HELIOSTAT_REPLICAS__NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name", env
    assert "SHARED_CACHE_SECRET" not in {e["name"] for e in small["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]}

    assert small["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    scaled = render({"global": {"apiKey": "k"}, "autoscaling": {"enabled": True}})
    assert "replicas" not in scaled["Deployment"]["spec"], scaled["Deployment"]["spec"]
    scaler = scaled["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == scaled["Deployment"]["metadata"]["name"], scaler
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 6), scaler

    none = render({"global": {"apiKey": "k"}, "podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}})
    assert set(none) == {"Deployment", "Service", "ConfigMap", "Secret"}, set(none)

    if len(sys.argv) > 1:
        for objects, wanted in ((small, ["demo "]), (large, ["prom ", "demo "])):
            with tempfile.TemporaryDirectory() as folder:
                config = pathlib.Path(folder) / "config.toml"
                config.write_text(objects["ConfigMap"]["data"]["config.toml"])
                container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
                # There is no certificate here.
                env = {e["name"]: e.get("value", "k") for e in container["env"] if "TLS" not in e["name"]}
                # The status is 1 if an upstream does not answer, 2 if the configuration is invalid.
                run = subprocess.run([sys.argv[1], "check", "--config", config], env={**os.environ, **env}, capture_output=True, text=True)
                assert run.returncode in (0, 1) and all(w in run.stdout for w in wanted), (run, config.read_text())
    print("the chart renders as expected")


main()
