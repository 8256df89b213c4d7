"""The recipes of scripts/, with stand-ins for the commands of clusters that are not here."""

import os
import re
import shlex
import signal
import subprocess

import pytest
import yaml

from saol_jax.command_line import Folder
from saol_jax.errors import PEER_LOST, DivergedError, Stopped, UserError
from tests.support import ROOT

# What stands for the interpreter notes each of its arguments in a line.
PYTHON = 'printf "%s\\n" "$PWD" "$@" > "$NOTES/python"; exit ${CODE:-0}'
ARGUMENTS = ["--config=configs/imagenet_saol.py", "--config.data.name=two words; $HOME"]


@pytest.fixture
def launch(tmp_path):
  """A function that calls a script; returns how it ended, and what each command was given."""
  commands, repository = tmp_path / "bin", tmp_path / "my repository"

  def install(path, text) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)

  install(repository / ".venv" / "bin" / "python", PYTHON)
  # Each runs what the real one would run, on this machine.
  given = 'while [[ $1 == --* ]]; do shift; done; "$@"'
  install(commands / "srun", f'printf "%s\\n" "$@" > "$NOTES/srun"; {given}')
  install(commands / "scontrol", 'printf "%s\\n" "$@" > "$NOTES/scontrol"')
  given = 'for word; do [[ $word == --command=* ]] && bash -c "${word#--command=}"; done'
  install(commands / "gcloud", f'printf "%s\\n" "$@" > "$NOTES/gcloud"; {given}')

  def call(script, *arguments, cwd=repository, **variables):
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "NOTES": str(tmp_path)}
    done = subprocess.run(
      ["bash", str(ROOT / "scripts" / script), *arguments],
      cwd=cwd,
      env=environment | variables,
      capture_output=True,
      text=True,
      check=False,
    )
    notes = {
      name: (tmp_path / name).read_text().splitlines()
      for name in ("python", "srun", "scontrol", "gcloud")
      if (tmp_path / name).is_file()
    }
    return done, notes

  return call


@pytest.mark.parametrize(
  ("code", "restarts", "again"),
  [
    (0, 0, False),
    (UserError.code, 0, False),
    (DivergedError.code, 0, False),
    (Stopped.code, 0, True),
    (Stopped.code, 99, True),  # at the end of each time limit
    (PEER_LOST, 0, True),
    (PEER_LOST, 20, False),
    (128 + signal.SIGABRT, 0, True),  # JAX's answer to a lost peer
    (128 + signal.SIGKILL, 19, True),  # out of memory
    (128 + signal.SIGTERM, 0, True),  # stopped before there was anything to save
    (1, 20, False),
  ],
)
def test_slurm_queues_again_what_a_person_need_not_mend(launch, code, restarts, again):
  job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
  done, notes = launch("slurm.sbatch", *ARGUMENTS, CODE=str(code), **job)
  assert done.returncode == code, done.stderr
  assert notes["python"][1:] == ["main.py", *ARGUMENTS]
  assert notes.get("scontrol") == (["requeue", "17"] if again else None)
  assert (f"restarted {restarts} times" in done.stderr) == (restarts == 20)


def test_slurm_kills_no_process_that_is_about_to_leave(launch):
  """Its signal would hide the exit code that says whether to queue the job again."""
  _, notes = launch("slurm.sbatch", *ARGUMENTS)
  assert "--kill-on-bad-exit=0" in notes["srun"]  # a cluster may have the other default
  assert any(flag.startswith("--wait=") for flag in notes["srun"])  # and lets none hang for ever


def test_every_worker_of_a_pod_gets_the_same_command(launch, tmp_path):
  names = {"TPU": "my-pod", "ZONE": "us-central2-b", "REPO": "my repository"}
  places = {"WORKDIR": "/mnt/runs/a run", "DATA": "/mnt/my data"}
  done, notes = launch("tpu_pod.sh", *ARGUMENTS, cwd=tmp_path, **names, **places)
  assert done.returncode == 0, done.stderr
  assert notes["gcloud"][:5] == ["compute", "tpus", "tpu-vm", "ssh", "my-pod"]
  assert {"--zone=us-central2-b", "--worker=all"} < set(notes["gcloud"])
  where, *command = notes["python"]
  assert where == str(tmp_path / "my repository")
  assert command == [
    "main.py",
    *ARGUMENTS,
    "--workdir=/mnt/runs/a run",
    "--config.data.data_dir=/mnt/my data",
  ]


def test_the_example_for_a_pod_names_folders_that_can_be_mounted(launch):
  """As it stands in the header; `Folder` refuses an address."""
  text = (ROOT / "scripts" / "tpu_pod.sh").read_text()
  example = dict(re.findall(r"\b(TPU|ZONE|WORKDIR|DATA)=(\S+)", text.partition("set -euo")[0]))
  _, notes = launch("tpu_pod.sh", REPO=".", **example)
  for argument in notes["python"][2:]:
    assert Folder().parse(argument.partition("=")[2]).startswith("/")


def test_a_pod_without_a_name_is_refused(launch):
  done, notes = launch("tpu_pod.sh", *ARGUMENTS)
  assert done.returncode != 0
  assert "name of the TPU" in done.stderr
  assert not notes


def read_jobset() -> dict:
  return yaml.safe_load((ROOT / "scripts" / "jobset.yaml").read_text())


def test_the_pods_of_a_jobset_find_each_other():
  jobset = read_jobset()
  (job,) = jobset["spec"]["replicatedJobs"]
  pods = job["template"]["spec"]
  (container,) = pods["template"]["spec"]["containers"]
  flags = dict(
    flag.removeprefix("--").split("=", 1) for flag in container["command"] if "=" in flag
  )
  assert pods["parallelism"] == pods["completions"] == int(flags["num_processes"])
  assert flags["process_id"] == "$(INDEX)"
  # JobSet names its pods SET-JOB-REPLICA-INDEX, and the set's own name is their subdomain.
  name = jobset["metadata"]["name"]
  assert flags["coordinator"].split(":")[0] == f"{name}-{job['name']}-0-0.{name}"
  known = (ROOT / "main.py").read_text() + (ROOT / "saol_jax" / "command_line.py").read_text()
  for flag in flags:
    assert re.search(rf'"{flag.split(".")[0]}"', known), flag
  assert (ROOT / flags["config"]).is_file()
  mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
  assert {
    f"/{flags[name].split('/')[1]}" for name in ("workdir", "config.data.data_dir")
  } == mounted - {"/dev/shm"}
  volumes = {volume["name"] for volume in pods["template"]["spec"]["volumes"]}
  assert {mount["name"] for mount in container["volumeMounts"]} == volumes
  assert shlex.join(container["command"][:2]) == ".venv/bin/python main.py"


def after_failed_pod(jobset: dict, code: int, condition: str | None) -> str:
  """What JobSet does once a pod has ended so, by the documents of Kubernetes and JobSet."""
  (job,) = jobset["spec"]["replicatedJobs"]
  reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
  for index, rule in enumerate(job["template"]["spec"]["podFailurePolicy"]["rules"]):
    which = f"matching {rule['action']} rule at index {index}"
    if code in rule.get("onExitCodes", {}).get("values", ()):
      reason = "PodFailurePolicy"
      message = f"Container train for pod default/saol-7 failed with exit code {code} {which}"
      break
    if condition in [pattern["type"] for pattern in rule.get("onPodConditions", ())]:
      reason = "PodFailurePolicy"
      message = f"Pod default/saol-7 has condition {condition} {which}"
      break
  for rule in jobset["spec"]["failurePolicy"]["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    fits = any(re.search(pattern, message) for pattern in patterns)
    if reason in rule["onJobFailureReasons"] and fits:
      return rule["action"]
  return "RestartJobSet"


@pytest.mark.parametrize(
  ("code", "condition", "action"),
  [
    (UserError.code, None, "FailJobSet"),
    (DivergedError.code, None, "FailJobSet"),
    (Stopped.code, None, "RestartJobSetAndIgnoreMaxRestarts"),
    (Stopped.code, "DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),
    (128 + signal.SIGKILL, "DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),
    (PEER_LOST, None, "RestartJobSet"),
    (128 + signal.SIGABRT, None, "RestartJobSet"),
  ],
)
def test_a_jobset_counts_crashes_and_gives_up_where_a_person_has_to_mend(code, condition, action):
  assert after_failed_pod(read_jobset(), code, condition) == action
