"""A miniature of ImageNet, prepared by TFDS's own `imagenet2012` builder from tars made here."""

import io
import logging
import pathlib
import tarfile
from collections.abc import Mapping, Sequence


def prepare_imagenet(
  root: pathlib.Path,
  train: Mapping[str, Sequence[bytes]],
  validation: Sequence[bytes],
  *,
  file_format: str = "array_record",
) -> None:
  """Writes the two tars as image-net.org hands them out, and prepares them.

  Args:
    root: becomes the TFDS data_dir; the tars stay in `root/downloads/manual`.
    train: WordNet id, such as n01440764, to its encoded images.
    validation: encoded images; their labels are those of the first validation images.
    file_format: of the records.
  """
  import tensorflow_datasets as tfds

  manual = root / "downloads" / "manual"
  manual.mkdir(parents=True)
  with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
    for wnid, images in train.items():
      stream = io.BytesIO()
      with tarfile.open(fileobj=stream, mode="w") as inner:
        for number, image in enumerate(images):
          _add(inner, f"{wnid}_{number}.JPEG", image)
      _add(outer, f"{wnid}.tar", stream.getvalue())
  with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as tar:
    for number, image in enumerate(validation, 1):
      _add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", image)
  logging.getLogger("absl").setLevel(logging.ERROR)  # a warning that the test tar is missing
  tfds.disable_progress_bar()
  tfds.builder("imagenet2012", data_dir=root).download_and_prepare(
    file_format=file_format,
    download_config=tfds.download.DownloadConfig(manual_dir=str(manual)),
  )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  entry = tarfile.TarInfo(name)
  entry.size = len(data)
  tar.addfile(entry, io.BytesIO(data))
