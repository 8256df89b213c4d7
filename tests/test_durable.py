"""Files that survive a power cut: on disk before they get their name."""

import os

from saol_jax import durable
from saol_jax.durable import scratch_folder, write_text


def test_text_is_on_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
  path, seen, fsync = tmp_path / "config.json", [], os.fsync

  def look(descriptor):
    seen.append((path.read_text(), (tmp_path / "config.json.tmp").read_text()))
    fsync(descriptor)

  path.write_text("old")
  monkeypatch.setattr(durable.os, "fsync", look)
  write_text(path, "né\n")
  assert seen == [("old", "né\n")]
  assert path.read_bytes() == "né\n".encode()
  assert list(tmp_path.iterdir()) == [path]


def test_the_same_text_is_not_written_again(tmp_path):
  path = tmp_path / "config.json"
  write_text(path, "{}")
  before = path.stat()
  write_text(path, "{}")
  after = path.stat()
  assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_who_reads_the_old_text_reads_it_to_its_end(tmp_path):
  """A file is replaced, never rewritten; so is one that others link to."""
  path, link = tmp_path / "config.json", tmp_path / "link"
  write_text(path, "old")
  os.link(path, link)
  with path.open() as reader:
    write_text(path, "new")
    assert reader.read() == link.read_text() == "old"
  assert path.read_text() == "new"


def test_names_that_are_not_utf_8_come_back_as_their_bytes(tmp_path):
  write_text(tmp_path / "MODEL_CARD.md", os.fsdecode(b"caf\xe9"))
  assert (tmp_path / "MODEL_CARD.md").read_bytes() == b"caf\xe9"


def test_a_scratch_folder_goes_and_takes_what_killed_processes_left(tmp_path):
  left, new, other = (tmp_path / name for name in (".x-left", ".x-new", ".y-left"))
  for folder in (left, new, other):
    (folder / "inside").mkdir(parents=True)
  os.utime(left, (0, 0))
  os.utime(other, (0, 0))
  with scratch_folder(tmp_path, ".x-") as first:
    assert not left.exists()
    os.utime(first, (0, 0))
    with scratch_folder(tmp_path, ".x-") as second:  # another process's would be the same
      assert first.exists()
      assert second != first
    (first / "file").write_text("")
  assert sorted(path.name for path in tmp_path.iterdir()) == [".x-new", ".y-left"]


def test_the_prefix_of_a_scratch_folder_is_no_pattern(tmp_path):
  """An export's holds the name of its folder."""
  left, other = tmp_path / "run[1]-left", tmp_path / "run1-left"
  for folder in (left, other):
    folder.mkdir()
    os.utime(folder, (0, 0))
  with scratch_folder(tmp_path, "run[1]-"):
    assert not left.exists()
    assert other.exists()
