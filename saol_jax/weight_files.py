"""Files of pretrained weights: where they are, and the tensors in them."""

import pathlib
import zipfile

import numpy as np

from saol_jax.errors import UserError
from saol_jax.torch_file import read_torch_file

_HUB = "hf://"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the hub's own names, better one first


def read_weights(source: str) -> dict[str, np.ndarray]:
  """Reads all tensors of a file of weights.

  Args:
    source: path of a `.safetensors` file or of a file of `torch.save`, or of a folder with one of
      these as the Hugging Face hub names them; or `hf://org/name`, a model of the hub, perhaps with
      a file of it: `hf://org/name/file`.

  Returns:
    The tensors by name, as stored.

  Raises:
    UserError: there is no such file, or it cannot be read.
  """
  path = _download(source) if source.startswith(_HUB) else pathlib.Path(source).expanduser()
  path = find_in_folder(path) or path
  try:
    # Not by the suffix: on the hub and in caches files may have any name.
    return read_torch_file(path) if _is_torch(path) else _read_safetensors(path)
  except OSError as error:
    raise UserError(
      f"model.pretrained={source!r} cannot be read ({error.strerror or error}); expected a "
      ".safetensors file, a PyTorch file of weights (.pth, .bin), hf://org/name, or the workdir or "
      "export of a run"
    ) from error


def find_in_folder(folder: pathlib.Path) -> pathlib.Path | None:
  """The weights in a folder that was downloaded from the Hugging Face hub; None elsewhere."""
  paths = (folder / name for name in _HUB_FILES)
  return next((path for path in paths if path.is_file()), None)


def _is_torch(path: pathlib.Path) -> bool:
  """False for safetensors, which start with the length of a header in JSON."""
  with path.open("rb") as file:
    return zipfile.is_zipfile(file) or not file.seek(8) or file.read(1) != b"{"


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  import safetensors
  from safetensors.numpy import load_file

  try:
    return load_file(path)
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is damaged ({error}); download it again") from error
  except AttributeError as error:  # a type of number that NumPy has no name for, such as FP8
    raise UserError(
      f"{path} holds numbers of a type that cannot be read ({error}); convert it to float32, "
      "float16 or bfloat16"
    ) from error


def _download(source: str) -> pathlib.Path:
  """The local copy of a file of the hub, in huggingface_hub's cache."""
  try:
    from huggingface_hub import hf_hub_download as fetch
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
  except ImportError as error:
    raise UserError(
      f"model.pretrained={source!r} needs huggingface_hub: pip install huggingface_hub; or "
      "download the file yourself and give its path"
    ) from error
  organisation, name, *inside = source.removeprefix(_HUB).split("/", 2) + [""] * 2
  repository, files = f"{organisation}/{name}", inside[:1] if inside[0] else _HUB_FILES
  offline = False
  for file in files:
    try:
      return pathlib.Path(fetch(repository, file, local_files_only=offline))
    except EntryNotFoundError as error:
      offline = isinstance(error, LocalEntryNotFoundError)
    except (OSError, ValueError) as error:
      raise UserError(
        f"model.pretrained={source!r} could not be fetched: {str(error).splitlines()[0]}; expected "
        "hf://org/name or hf://org/name/file, as the address of the model's page shows it"
      ) from error
  if offline:
    raise UserError(
      f"model.pretrained={source!r} is not in the cache of huggingface_hub, and the hub cannot be "
      f"reached. Download {' or '.join(files)} of {repository} on a machine with a network, and "
      "give the path of the file"
    )
  raise UserError(
    f"model.pretrained={source!r} has no file {' or '.join(files)}; name one that it has: "
    f"hf://{repository}/FILE"
  )
