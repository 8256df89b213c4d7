"""What all benchmarks share: where numbers come from and go to, and mistakes of their users."""

import json
import statistics
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import heads, input, record, step
from benchmarks.command_line import parse_fields, set_fields
from saol_jax.config import default_config
from saol_jax.errors import UserError
from tests.bench.calls import call


def test_flops_are_counted_where_the_compiler_of_the_device_does_not_tell(monkeypatch):
  """As those of GPUs and TPUs do not."""
  matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  lowered = jax.jit(lambda a, b: jnp.tanh(a @ b)).lower(matrix, matrix)
  assert record.count_flops(lowered) == 2 * 8**3
  monkeypatch.setattr(type(lowered), "cost_analysis", lambda self: None)
  assert record.count_flops(lowered) == 2 * 8**3


def test_a_mistake_is_one_message_and_leaves_nothing(tmp_path):
  path = tmp_path / "heads.json"
  code, output = call("heads.py", "--networks", "resnet51:32:10", f"--output={path}")
  assert code == 2
  assert output.startswith("error: ")
  assert "resnet51" in output
  assert len(output.splitlines()) == 1
  assert not path.exists()


@pytest.mark.parametrize(
  ("module", "arguments", "message"),
  [
    (step, ["--backbone=resnet51"], "resnet51"),
    (step, ["--batch_size=6", "--dtype=float16"], "float16"),
    (step, ["--batch_size=3"], "batch_size=3"),
    (step, ["--image_size=4"], "4 x 4"),
    (step, ["--output={folder}"], "--output="),
    (step, ["--output={folder}/file/step.json"], "--output="),
    (input, ["--photos=.", "--images=4", "--batch_size=8"], "--batch_size=8"),
    (heads, ["--networks", "resnet18:224"], "'resnet18:224'"),
    (heads, ["--networks", "resnet18:0:10"], "'resnet18:0:10'"),
  ],
)
def test_bad_input_is_named(monkeypatch, tmp_path, module, arguments, message):
  (tmp_path / "file").write_text("a file where a folder is wanted")
  if not any("--output" in argument for argument in arguments):
    arguments = [*arguments, "--output={folder}/result.json"]
  arguments = [argument.format(folder=tmp_path) for argument in arguments]
  monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
  with pytest.raises(UserError) as error:
    module.main()
  assert message in str(error.value)
  assert not (tmp_path / "result.json").exists()


def test_result_files_are_whole(tmp_path):
  path = tmp_path / "result.json"
  path.write_text("{}")
  with pytest.raises(TypeError):
    record.write(path, {"number": object()})
  assert path.read_text() == "{}"
  record.write(path, {"median": statistics.median([1.0, 2.0])})
  assert json.loads(path.read_text()) == {"median": 1.5}
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("deterministic=maybe", "--set deterministic=maybe; expected a value like False"),
    ("batch_size=1.5", "--set batch_size=1.5; expected a value like 128"),
    ("data.colour=1", "--set data.colour: no such field"),
    ("paint.colour=1", "--set paint.colour: no such field"),
  ],
)
def test_fields_that_cannot_be_set_are_named(text, message):
  with pytest.raises(UserError, match=message):
    set_fields(default_config(), parse_fields([text]))


def test_fields_are_set_as_on_the_command_line_of_main():
  config = default_config()
  fields = ["deterministic=true", "data.mean=(0.5,0.4,0.3)", "model.name=resnet8", "batch_size=8"]
  set_fields(config, parse_fields(fields))
  assert config.deterministic is True
  assert config.data.mean == (0.5, 0.4, 0.3)
  assert (config.model.name, config.batch_size) == ("resnet8", 8)


def test_a_commit_that_is_named_is_believed(monkeypatch):
  """Git may know another one, on a machine that got a copy of the files."""
  monkeypatch.setenv("SAOL_COMMIT", "that of the files")
  found = record.describe_run()
  assert (found["commit"], found["dirty"]) == ("that of the files", None)
