"""docs/scaling.md: examples for clusters can be read, and the projection follows from its formulas."""

import math
import re
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_job_of_slurm():
    (script,) = blocks("bash")
    first, *lines = script.splitlines()
    assert first == "#!/bin/bash"
    options = dict(
        line.split(" --")[1].partition("=")[::2] for line in lines if line[:7] == "#SBATCH"
    )
    # One process for each device.
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert int(options["nodes"]) > 1
    assert re.fullmatch(r"\d\d:\d\d:\d\d", options["time"])
    assert any(re.match(r"srun .*python train\.py$", line) for line in lines)
    # To the processes, not to the script: a signal after which a run is saved and started again.
    assert re.fullmatch(r"TERM@\d+", options["signal"])
    assert "requeue" in options
    assert f"if [ -e {asked_for_again()} ]; then" in lines


def asked_for_again() -> str:
    """The file by which the training says that it has not come to its end."""
    return re.search(r'Path\("(\w+)"\)\.touch', PAGE).group(1)


def test_the_job_of_kubernetes():
    (text,) = blocks("yaml")
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    # Without a service of this name, and of no address of its own, pods do not find each other.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert int(variables["PROCESSES"]) == spec["completions"] == spec["parallelism"]
    host, port = variables["COORDINATOR"].split(":")
    assert host == f"{name}-0.{pod['subdomain']}"
    assert {one["containerPort"] for one in container["ports"]} == {int(port)}
    asked = re.findall(r'os\.environ\["(\w+)"\]', PAGE)
    assert {*asked} == {*variables, "JOB_COMPLETION_INDEX"}


def assumed(symbol: str) -> float:
    """A number of the page: ``$symbol = a \\cdot 10^{b}$``, ``= 2^{n}`` or ``= a``."""
    written = re.search(rf"\${re.escape(symbol)} = ([^$]*)\$", PAGE).group(1)
    parts = re.fullmatch(r"(?:([\d.]+) \\cdot )?(\d+)\^\{(-?\d+)\}", written)
    if parts is None:
        return float(written)
    factor, base, exponent = parts.groups()
    return float(factor or 1) * float(base) ** int(exponent)


TABLE = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.M)


def test_there_is_a_projection():
    assert len(TABLE) == 3


@pytest.mark.parametrize("row", TABLE)
def test_the_projection_follows_from_its_assumptions(row):
    parameters, *shares = map(float, row)
    bytes_per_second, latency = assumed(r"\beta"), assumed(r"\alpha")
    for devices, share in zip((8, 64, 1024), shares, strict=True):
        operations = assumed("c") * assumed("N") * parameters / devices
        work = operations / assumed("F")
        sent = 2 * (devices - 1) / devices * (parameters + 1) * assumed("b") / bytes_per_second
        communication = sent + 2 * math.ceil(math.log2(devices)) * latency
        assert share == round(work / (work + communication), 2)
