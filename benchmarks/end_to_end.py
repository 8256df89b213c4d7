"""How much of the bare step's speed a whole training keeps, in images/s.

  python benchmarks/end_to_end.py                         # the demo's recipe
  python benchmarks/end_to_end.py --config=configs/cifar_saol.py:cifar100,resnet8 \
      --set data.data_dir=DIR

Bare step: the run's own compiled step, on one batch that lies on the device. Run: all of
`train_and_evaluate`, with its loader, prefetching, transfers, log and progress, in a workdir that
is removed; its rate is what it logs, which leaves evaluations and checkpoints out, and without the
first line. The bare step is timed before and after the run, so that a machine's drift shows.
"""

import argparse
import importlib
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping

import ml_collections

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import record, step
from benchmarks.command_line import make_parser, parse_fields, positive, set_fields
from saol_jax.config import resolve
from saol_jax.data.loader import Loader
from saol_jax.experiment import Experiment
from saol_jax.train import train_and_evaluate

_LINES = 6  # of the log; the first one is left out
_WARM_UP_STEPS = 2


def main() -> None:
  """Measures, prints the table and writes the JSON."""
  options = _parse()
  config = read_config(options.config, parse_fields(options.set))
  output, result = record.begin(options.output, f"end_to_end_{config.data.name}")
  config.log_every_steps = max(1, options.steps // _LINES)
  config.num_train_steps = _LINES * config.log_every_steps
  config.eval_every_steps = config.checkpoint_every_steps = config.num_train_steps

  rates = {"before": bare_rates(config), "run": run_rates(config)}
  rates["after"] = bare_rates(config)
  medians = {name: statistics.median(found) for name, found in rates.items()}
  bare = statistics.mean((medians["before"], medians["after"]))
  result["settings"] = {"config": options.config, "set": options.set, "steps": options.steps}
  result["images_per_second"], result["run_over_bare"] = rates, medians["run"] / bare
  titles = {"before": "bare step, before", "run": "run", "after": "bare step, after"}
  rows = [
    (title, f"{medians[name]:.0f}", f"{medians[name] / bare:.2f}") for name, title in titles.items()
  ]
  print(record.markdown(("training", "images/s", "over the bare step"), rows, text_columns=1))
  record.write(output, result)


def read_config(recipe: str, fields: Mapping[str, str]) -> ml_collections.ConfigDict:
  """A recipe such as `configs/cifar_saol.py:gap`, with fields set as on main.py's command line."""
  path, _, argument = recipe.partition(":")
  module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
  config = module.get_config(argument)
  set_fields(config, fields)
  return config


def bare_rates(config: ml_collections.ConfigDict) -> list[float]:
  """Images/s of the compiled step alone, in turns of a line of the log."""
  experiment = Experiment(resolve(config))
  experiment.compile()
  batch = experiment.put(Loader(experiment.train, config.batch_size, config.seed)[0])
  states = {"": experiment.init()}
  turn = step.training_turn(experiment.train_step, states, "", batch)
  turn(_WARM_UP_STEPS)
  steps_a_line = config.log_every_steps
  return [
    config.batch_size * steps_a_line / step.seconds_of(turn, steps_a_line) for _ in range(_LINES)
  ]


def run_rates(config: ml_collections.ConfigDict) -> list[float]:
  """Images/s of the lines of the log of a run, but the first."""
  with tempfile.TemporaryDirectory() as workdir:
    train_and_evaluate(config, workdir)
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  found = [one["time/images_per_second"] for one in records if "time/images_per_second" in one]
  return found[1:]


def _parse() -> argparse.Namespace:
  parser = make_parser(__doc__)
  parser.add_argument("--config", default="configs/digits_saol.py", help="of main.py")
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config")
  parser.add_argument("--steps", type=positive(int), default=300, help="of each")
  return parser.parse_args()


if __name__ == "__main__":
  record.run(main)
