"""Reads the manifests of deploy/kubernetes, checks what a schema does not say, and prints them as JSON for other checks.

Needs PyYAML, which comes with kubernetes-validate.
"""

import json
import pathlib
import re
import sys

import yaml

folder = pathlib.Path(sys.argv[1])
documents = []
for file in sorted(folder.glob("*.yaml")):
    documents += [document for document in yaml.safe_load_all(file.read_text()) if document]


def named(kind, name="sametime-mux"):
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


stateful_set = named("StatefulSet")
spec = stateful_set["spec"]["template"]["spec"]
(container,) = spec["containers"]
configuration = named("ConfigMap")["data"]["stconfig.toml"]
labels = stateful_set["spec"]["template"]["metadata"]["labels"]

# A Pod that ends has time for its drain, and the farewell messages.
drain = seconds(re.search(r'drain_timeout = "(\w+)"', configuration).group(1))
sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
assert spec["terminationGracePeriodSeconds"] >= sleep + drain + 10, "the grace period is too short"

# The load balancer has noticed by then that the Pod is not ready.
ready = container["readinessProbe"]
assert sleep > ready["periodSeconds"] * ready["failureThreshold"]

# Every port that a Service, a probe or the NetworkPolicy names is one of the container, and the program listens on it.
ports = {port["name"]: port["containerPort"] for port in container["ports"]}
listening = {int(port) for port in re.findall(r"\b(\d{4,5})\b", re.sub(r"servers = .*", "", configuration))}
assert set(ports.values()) <= listening, (ports, listening)
services = [d for d in documents if d["kind"] == "Service"]
used = {port["targetPort"] for service in services for port in service["spec"]["ports"]}
used |= {container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")}
used |= {port["port"] for rule in named("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
assert used <= set(ports), (used, ports)

# Everything that selects Pods selects these.
selectors = [service["spec"]["selector"] for service in services]
selectors += [named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
selectors += [named("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
selectors += [stateful_set["spec"]["selector"]["matchLabels"]]
assert all(selector.items() <= labels.items() for selector in selectors), selectors

# Nodes find each other: the names of all Pods that there may be, by the headless Service.
headless = named("Service", stateful_set["spec"]["serviceName"])
assert headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"]
scaler = named("HorizontalPodAutoscaler")["spec"]
names = set(re.findall(r'"(sametime-mux-\d+)"', configuration))
assert names == {f"sametime-mux-{n}" for n in range(scaler["maxReplicas"])}, names
assert f"http://{{node}}.{headless['metadata']['name']}:9534" in configuration
assert scaler["scaleTargetRef"]["name"] == stateful_set["metadata"]["name"]

# A Gateway has the ports of the Service that it takes the place of, and a route for each.
clients = {port["port"] for port in named("Service")["spec"]["ports"]}
assert {listener["port"] for listener in named("Gateway")["spec"]["listeners"]} == clients
routes = [d for d in documents if d["kind"] == "TCPRoute"]
assert {ref["port"] for d in routes for rule in d["spec"]["rules"] for ref in rule["backendRefs"]} == clients
sections = {ref["sectionName"] for d in routes for ref in d["spec"]["parentRefs"]}
assert sections == {listener["name"] for listener in named("Gateway")["spec"]["listeners"]}

# The ServiceMonitor finds one Service, and its port.
monitor = named("ServiceMonitor")["spec"]
wanted = monitor["selector"]["matchLabels"].items()
(monitored,) = [s for s in services if wanted <= s["metadata"]["labels"].items()]
assert {e["port"] for e in monitor["endpoints"]} <= {port["name"] for port in monitored["spec"]["ports"]}

json.dump({"documents": documents, "configuration": configuration}, sys.stdout)
