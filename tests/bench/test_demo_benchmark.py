"""demo.py: both runs and their maps, shortened to two steps."""

import json

from PIL import Image

from tests.bench.calls import call, check_description
from tests.support import table_rows


def test_demo_scores_both_runs_and_keeps_the_picture(tmp_path):
  output = tmp_path / "found.json"
  code, log = call("demo.py", "--steps=2", "--maps=cam", f"--output={output}", timeout=600)
  assert code == 0, log
  result = json.loads(output.read_text())
  check_description(result["run"])
  saol, baseline = result["runs"]
  assert (saol["name"], baseline["name"]) == ("SAOL", "GAP-FC baseline")
  assert 0 < saol["saol_top1"] < 0.5  # two steps from chance
  assert "saol_top1" not in baseline
  scores, places = table_rows(log)[:2], table_rows(log)[2:]
  for run, row, place in zip(result["runs"], scores, places, strict=True):
    assert row[0] == place[0] == run["name"]
    assert row[3] == f"{100 * run['gap_top1']:.2f} %"
    assert place[2] == "cam"
    assert place[4] == f"{100 * run['localization']['cam']['gt_known']:.1f} %"
  with Image.open(tmp_path / "found.png") as picture:
    assert picture.width > 1000
