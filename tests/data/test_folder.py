"""A folder with every kind of bad file: what can be decoded is, what cannot is named."""

import errno
import logging
import os
import re
import types

import numpy as np
import pytest
from PIL import Image

from saol_jax.data import BadImages
from saol_jax.data.loader import Loader, padded_batches
from saol_jax.errors import UserError
from saol_jax.evaluate import evaluate
from saol_jax.image_files import read_image
from tests.data.bad_files import BROKEN, GOOD, JPEG_BYTES, ODD, PHOTO, SIZE, load, write
from tests.data.pictures import with_orientation


def test_files_are_found_at_any_depth_in_the_order_of_their_paths(decoded):
  source, places, batch = decoded
  assert source.info.class_names == ("odd", "worse")
  names = [source.name(i) for i in range(len(source))]
  assert names == sorted(names)
  assert places.keys() == ODD.keys() | BROKEN.keys() | {"0.jpeg", "1.jpeg", "fine.jpeg"}
  assert batch["label"].tolist() == [0] * len(ODD) + [1] * (len(BROKEN) + len(GOOD))
  assert len(source.boxed) == 0
  assert "box" not in batch


@pytest.mark.parametrize("name", ODD)
def test_what_can_be_decoded_is_as_pillow_decodes_it(decoded, name):
  _, places, batch = decoded
  assert not batch["broken"][places[name]]
  expected = read_image(ODD[name]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
  found = batch["image"][places[name]].astype(int)
  # Two ways to resize a smooth picture, and two ways to reconstruct JPEG, differ by a little.
  assert np.abs(found - np.asarray(expected, int)).mean() < 4
  if name not in ("one_pixel.png", "one_pixel.jpg"):
    assert found.std() > 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_exif_data_says(tmp_path, orientation):
  file = with_orientation(PHOTO, orientation)
  write(tmp_path, {"train/a/a.jpg": file, "val/a/a.jpg": file})
  (found,) = load(tmp_path)[np.array([0])]["image"].astype(int)
  stored = np.asarray(PHOTO.resize((SIZE, SIZE)), int)
  # The EXIF standard: where row 0 and column 0 of what is stored belong.
  turned = stored.transpose(1, 0, 2) if orientation >= 5 else stored
  flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
  turned = turned[::-1] if flip_rows else turned
  turned = turned[:, ::-1] if flip_columns else turned
  assert np.abs(found - turned).mean() < 4


def test_broken_files_are_named_with_the_reason_and_masked(folder, caplog):
  source = load(folder, threads=3)
  with caplog.at_level(logging.WARNING):
    batches = list(padded_batches(source, 10))
    list(padded_batches(source, 10))  # named once
  named = {record.args[0].rpartition("/")[2]: record.args[1] for record in caplog.records}
  assert named.keys() == BROKEN.keys()
  assert len(caplog.records) == len(BROKEN)
  for name, (_, reason) in BROKEN.items():
    assert reason in named[name]
  mask = np.concatenate([batch["mask"] for batch in batches])[: len(source)]
  assert {source.name(i).rpartition("/")[2] for i in np.flatnonzero(mask == 0)} == BROKEN.keys()
  assert all("broken" not in batch for batch in batches)


# Training


def test_in_training_the_next_good_image_stands_in(decoded, folder):
  source, places, _ = decoded
  empty = places["empty.jpg"]
  stand_in = places["fine.jpeg"]
  assert stand_in == empty + 1
  asked = np.array([0, empty, places["unreadable.jpg"], 1, places["text.jpg"]])
  found = source.sample(asked, seed=4, place=70)
  assert found["replaced"].tolist() == [0, 1, 1, 0, 1]
  whole = source.sample(np.where(asked == empty, stand_in, asked), seed=4, place=70)
  np.testing.assert_array_equal(found["image"], whole["image"])
  np.testing.assert_array_equal(found["label"], whole["label"])
  # After the last example comes the first.
  last = source.sample(np.array([len(source) - 1]), seed=4, place=0)
  assert (last["replaced"], last["label"]) == ([1], [0])
  again = load(folder, threads=1).sample(asked, seed=4, place=70)
  np.testing.assert_array_equal(again["image"], found["image"])


def test_too_many_broken_files_end_training_with_a_list(folder):
  # 5 of 27 are broken; the fraction is about what has been met, of the whole split.
  source = load(folder, bad_images=BadImages(max_fraction=3.5 / 30))
  loader = Loader(source, 10, seed=0)
  with pytest.raises(UserError) as error:
    list(map(loader.__getitem__, range(3)))
  lines = str(error.value).splitlines()
  assert lines[0] in ("4 image(s) cannot be decoded:", "5 image(s) cannot be decoded:")
  assert all(any(name in line for name in BROKEN) for line in lines[1:-1])
  assert len(lines[1:-1]) == int(lines[0][0])
  assert "of 30 images are broken" in lines[-1]
  assert "--config.data.max_bad_fraction=" in lines[-1]


def test_a_split_without_one_good_image_ends_at_once(tmp_path):
  write(tmp_path, {"train/a/1.jpg": b"", "train/a/2.jpg": b"x", "val/a/a.jpg": b""})
  with pytest.raises(UserError, match=r"2 image\(s\) cannot be decoded"):
    load(tmp_path, bad_images=BadImages(1.0)).sample(np.array([0]), 0, 0)


# Evaluation


def test_evaluation_fails_at_a_broken_file_unless_it_is_to_count(folder):
  source = load(folder, bad_images=BadImages(0.5, "fail"))
  with pytest.raises(UserError, match=r"bad_in_evaluation=count") as error:
    list(padded_batches(source, 30))
  assert all(name in str(error.value) for name in BROKEN)


@pytest.mark.parametrize("batch_size", [7, 50])
def test_evaluation_counts_each_good_image_once_and_says_how_many_are_not(folder, batch_size):
  """With a network that knows the label of each image: right means that it was counted once."""
  source = load(folder)
  counted = []

  def eval_step(variables, batch):
    assert set(batch["label"][batch["mask"] == 1]) <= {0, 1}
    count = batch["mask"].sum()
    counted.append(count)
    bins = {name: np.zeros(15) for name in ("bin_count", "bin_correct", "bin_confidence")}
    return {"saol": {"count": count, "top1": count, "top5": count, "nll": 0.5 * count, **bins}}

  experiment = types.SimpleNamespace(
    eval_batch_size=batch_size, heads=("saol",), my_part={}, eval_step=eval_step, put=dict
  )
  state = types.SimpleNamespace(variables=None, ema=None)
  results = evaluate(experiment, state, source, "eval").scores
  assert results["eval/broken_images"] == len(BROKEN)
  assert sum(counted) == len(source) - len(BROKEN)
  assert results["eval/saol_top1"] == 1.0
  assert results["eval/saol_nll"] == 0.5
  whole = load(folder, "test")
  assert "eval/broken_images" not in evaluate(experiment, state, whole, "eval").scores


def test_without_one_good_image_there_is_no_score(tmp_path):
  """It would be 0 / 0, and no later score is higher than NaN."""
  write(tmp_path, {"train/a/1.jpg": JPEG_BYTES, "val/a/1.jpg": b"", "val/a/2.jpg": b"x"})
  source = load(tmp_path, "test", bad_images=BadImages(1.0, "count"))
  eval_step = lambda variables, batch: {"saol": {"count": batch["mask"].sum()}}  # noqa: E731
  experiment = types.SimpleNamespace(
    eval_batch_size=2, heads=("saol",), my_part={}, eval_step=eval_step, put=dict
  )
  state = types.SimpleNamespace(variables=None, ema=None)
  with pytest.raises(UserError, match=r"not one of the 2 images .* can be decoded"):
    evaluate(experiment, state, source, "eval")


# The folder itself


def test_classes_and_boxes_that_do_not_fit_are_named(tmp_path, caplog):
  good = {"train/a/1.jpg": JPEG_BYTES, "train/b/1.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES}
  write(tmp_path, good)
  (tmp_path / "train" / "nothing").mkdir()
  with caplog.at_level(logging.WARNING):
    assert load(tmp_path).info.class_names == ("a", "b")
    assert len(load(tmp_path, "test")) == 1
  assert "no image in nothing; left out" in caplog.text
  assert "has no image of b" in caplog.text
  write(tmp_path, {"val/c/1.jpg": JPEG_BYTES, "val/d/1.jpg": JPEG_BYTES})
  with pytest.raises(UserError, match=r"2 class\(es\) that .*train lacks: c, d\. .*"):
    load(tmp_path, "test")


@pytest.mark.parametrize(
  ("make", "message"),
  [
    ((), r"has no folder 'train'; .*DIR/train/<class>/\*"),
    (("train/a/1.txt", "val/a/1.jpg"), r"train holds no image; expected .*\.jpeg"),
    (("train/a/1.jpg",), "has no folder 'val'"),
  ],
)
def test_what_is_no_data_set_is_refused(tmp_path, make, message):
  write(tmp_path, dict.fromkeys(make, JPEG_BYTES))
  with pytest.raises(UserError, match=message):
    load(tmp_path, "test")


def test_a_folder_of_classes_and_the_train_folder_itself_are_recognised(tmp_path):
  write(tmp_path, {"whole/cat/1.jpg": JPEG_BYTES, "whole/dog/1.jpg": JPEG_BYTES})
  with pytest.raises(UserError, match="If cat, dog are classes, move these folders to DIR/train"):
    load(tmp_path / "whole")
  write(tmp_path, {"split/train/cat/1.jpg": JPEG_BYTES})
  with pytest.raises(UserError, match=rf"set it to '{re.escape(str(tmp_path))}/split'"):
    load(tmp_path / "split" / "train")
  for there, name in (("test", "val"), ("validation", "val"), ("training", "train")):
    other = tmp_path / f"with_{there}"
    write(other, {f"{there}/cat/1.jpg": JPEG_BYTES})
    if name == "val":
      write(other, {"train/cat/1.jpg": JPEG_BYTES})
    with pytest.raises(UserError, match=f"rename '{there}' to '{name}'"):
      load(other, "test")
  write(tmp_path, {"alone/train/cat/1.jpg": JPEG_BYTES})
  with pytest.raises(UserError, match=r"has no folder 'val'.* Hold out a share"):
    load(tmp_path / "alone", "test")
  with pytest.raises(UserError, match=r"'.*/nowhere' is no folder"):
    load(tmp_path / "nowhere")


def test_files_of_other_kinds_are_counted_once(tmp_path, caplog):
  names = ["train/a/1.jpg", "train/a/2.PSD", "train/a/below/3.psd", "train/b/1.jpg", "train/b/x"]
  write(tmp_path, dict.fromkeys([*names, "train/a/.hidden", "val/a/1.jpg"], JPEG_BYTES))
  with caplog.at_level(logging.WARNING):
    assert len(load(tmp_path)) == 2
    load(tmp_path, "test")
  said = [message for message in caplog.messages if "other kinds" in message]
  assert len(said) == 1
  assert "left out 3 files of other kinds: 2 .psd, 1 without extension" in said[0]


def test_links_are_followed_but_not_in_a_circle(tmp_path):
  write(
    tmp_path, {"photos/1.jpg": JPEG_BYTES, "photos/2.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES}
  )
  (tmp_path / "train" / "a").mkdir(parents=True)
  (tmp_path / "train" / "a" / "linked").symlink_to(tmp_path / "photos")
  (tmp_path / "photos" / "circle").symlink_to(tmp_path / "photos")
  assert len(load(tmp_path)) == 2


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
  write(tmp_path, {"train/a/deep/1.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES})
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("deep"):
      raise PermissionError(errno.EACCES, "Permission denied")
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)  # root may list everything
  with pytest.raises(UserError, match=r"train/a/deep cannot be listed: Permission denied"):
    load(tmp_path)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("train/a/1.jpg,1,2,30,40,", "line 3.*is no box"),
    ("train/a/1.jpg,1,2,30", "line 3.*is no box"),
    ("train/a/1.jpg,left,2,30,40", "line 3.*four numbers"),
    ("train/a/1.jpg,30,2,30,40", "line 3.*x_min < x_max"),
    ("train/a/1.jpg,1,2,nan,40", "line 3.*is no box"),
    ("train/./a/2.jpg,1,2,30,41", r"line 3: another box of train/a/2\.jpg stands on line 2"),
  ],
)
def test_a_wrong_line_of_boxes_is_named(tmp_path, line, message):
  files = {"train/a/1.jpg": JPEG_BYTES, "train/a/2.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES}
  boxes = f"path,x_min,y_min,x_max,y_max\ntrain/a/2.jpg,1,2,30,40\n{line}\n"
  write(tmp_path, files | {"boxes.csv": boxes.encode()})
  with pytest.raises(UserError, match=message):
    load(tmp_path)


def test_boxes_in_shares_of_the_image_are_refused(tmp_path):
  write(tmp_path, {"train/a/1.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES})
  header = "path,x_min,y_min,x_max,y_max\n"
  (tmp_path / "boxes.csv").write_text(header + "train/a/1.jpg,0.1,0.2,0.5,1.0\n")
  with pytest.raises(UserError, match=r"boxes.csv: no number in it is above 1, .*expected pixels"):
    load(tmp_path)


def test_boxes_that_are_no_text_are_refused(tmp_path):
  files = {"train/a/1.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES, "boxes.csv": JPEG_BYTES}
  with pytest.raises(UserError, match=r"boxes\.csv cannot be read: .*UTF-8"):
    load(write(tmp_path, files))


def test_a_wrong_header_of_boxes_is_named(tmp_path):
  files = {"train/a/1.jpg": JPEG_BYTES, "val/a/1.jpg": JPEG_BYTES}
  write(tmp_path, files | {"boxes.csv": b"path,y_min,x_min,y_max,x_max\n"})
  with pytest.raises(
    UserError, match=r"header 'path,y_min.*expected 'path,x_min,y_min,x_max,y_max'"
  ):
    load(tmp_path)


def test_boxes_beyond_the_border_are_cut_off_and_said_once(tmp_path, caplog):
  files = {f"train/a/{n}.jpg": JPEG_BYTES for n in range(4)} | {"val/a/1.jpg": JPEG_BYTES}
  boxes = (
    "\ufeffpath,x_min,y_min,x_max,y_max\n"
    "train/a/0.jpg,-9,15,45,99\n"  # of 90 x 60: left half, lower three quarters
    "train/a/1.jpg,100,70,120,80\n"  # wholly outside
    "train/a/3.jpg,0,0,90,60\n"
    "train/a/3.jpg,0,0,90,60\n"  # the same again is no contradiction
    "train/a/gone.jpg,0,0,90,60\n"
  )
  write(tmp_path, files | {"boxes.csv": boxes.encode()})
  with caplog.at_level(logging.WARNING):
    source = load(tmp_path)
    batch = source[np.arange(4)]
    source[np.arange(4)]
  assert batch["box"].tolist() == [[8, 0, 32, 16], [31, 31, 32, 32], [0, 0, 0, 0], [0, 0, 32, 32]]
  assert source.boxed.tolist() == [0, 1, 3]
  assert "no image for train/a/gone.jpg" in caplog.text
  assert caplog.text.count("are cut off at the border") == 1


def _boxes(*paths):
  return "".join(f"{line}\n" for line in ("path,x_min,y_min,x_max,y_max", *paths)).encode()


@pytest.mark.parametrize("path", ["{}/train/a/1.jpg", r"train\a\1.jpg", "a/1.jpg", "train/b/1.jpg"])
def test_boxes_of_which_none_is_of_an_image_are_refused(tmp_path, path):
  path = path.format(tmp_path)
  files = dict.fromkeys(("train/a/1.jpg", "val/a/1.jpg"), JPEG_BYTES)
  write(tmp_path, files | {"boxes.csv": _boxes(f"{path},1,2,30,40", "b/1.jpg,1,2,30,40")})
  message = f"none of its 2 path(s) is an image: the first is '{path}', and there is 'train/a/1.j"
  with pytest.raises(UserError, match=re.escape(message)):
    load(tmp_path)


def test_boxes_may_be_of_one_split_alone(tmp_path):
  files = dict.fromkeys(("train/a/1.jpg", "val/a/1.jpg"), JPEG_BYTES)
  write(tmp_path, files | {"boxes.csv": _boxes("val/a/1.jpg,1,2,30,40")})
  assert [len(load(tmp_path, split).boxed) for split in ("train", "test")] == [0, 1]
  write(tmp_path, {"boxes.csv": _boxes("val/a/2.jpg,1,2,30,40")})
  with pytest.raises(UserError, match=r"the first is 'val/a/2\.jpg', and there is 'train/a/1"):
    load(tmp_path, "test")


def test_boxes_of_neither_split_are_named_once(tmp_path, caplog):
  files = dict.fromkeys(("train/a/1.jpg", "val/a/1.jpg"), JPEG_BYTES)
  lines = ("train/a/1.jpg,1,2,30,40", "training/a/1.jpg,1,2,30,40", "val/a/2.jpg,1,2,30,40")
  write(tmp_path, files | {"boxes.csv": _boxes(*lines)})
  for split, lost in (("train", "training/a/1.jpg"), ("test", "val/a/2.jpg")):
    caplog.clear()
    load(tmp_path, split)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
      f"no image for {lost}"
    ]


NFC, NFD = "\u00c4pfel", "A\u0308pfel"  # as a ZIP file and as macOS may spell Äpfel


def test_the_unicode_form_of_a_name_does_not_matter(tmp_path, caplog):
  files = dict.fromkeys((f"train/{NFD}/\u00fc.jpg", "train/Zoo/1.jpg"), JPEG_BYTES)
  files |= dict.fromkeys((f"val/{NFC}/u\u0308.jpg", f"val/{NFC}/v.jpg"), JPEG_BYTES)
  lines = (f"train/{NFC}/u\u0308.jpg,1,2,30,40", f"val/{NFD}/\u00fc.jpg,0,0,90,60")
  write(tmp_path, files | {"boxes.csv": _boxes(*lines)})
  train, val = (load(tmp_path, split) for split in ("train", "test"))
  assert train.info.class_names == val.info.class_names == ("Zoo", NFD)  # in the order of NFC
  assert train[np.arange(2)]["label"].tolist() == [0, 1]
  batch = val[np.arange(2)]  # opened by their own names
  assert batch["label"].tolist() == [1, 1]
  assert batch["box"].tolist() == [[0, 0, 32, 32], [0, 0, 0, 0]]
  assert train.boxed.tolist() == [1]
  assert "no image for" not in caplog.text


def test_two_spellings_of_a_class_are_refused(tmp_path):
  write(tmp_path, {f"train/{name}/1.jpg": JPEG_BYTES for name in (NFC, NFD)})
  with pytest.raises(UserError, match=r"Unicode form: 'A\\u0308pfel' and '\\xc4pfel'; move"):
    load(tmp_path)


def test_the_real_folder_is_whole(data_dir):
  root = data_dir / "tiny_imagenet_25"
  train, val = (load(root, split) for split in ("train", "test"))
  assert (len(train), len(val), len(train.info.class_names)) == (12_500, 1_250, 25)
  assert len(train.boxed) == 12_500
  assert not {train.name(i) for i in range(len(train))} & {val.name(i) for i in range(len(val))}
  batch = Loader(train, 256, seed=0)[10**6]
  assert batch["image"].shape == (256, SIZE, SIZE, 3)
  assert not batch["replaced"].any()
  assert 90 < batch["image"].mean() < 150
  y_min, x_min, y_max, x_max = val[np.arange(len(val))]["box"].T
  assert (y_min < y_max).all()
  assert (x_min < x_max).all()
