"""A dataset that lies elsewhere, as a folder of this machine. A new kind of URL is a file beside this and a line in ``STORES``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cwbass.errors import ParamsError
from cwbass.plugins import Registry, load_plugins

DATASETS = Path("artifacts/datasets")  # copies, in a working directory that outlives the process where there is one


def _s3(url: str, copies: Path) -> Path:
    from cwbass.data.s3_dataset import s3_dataset  # boto3 takes a while to load

    return s3_dataset(url, copies)


# Scheme -> from a URL and the folder of copies to the folder of the dataset. What is there already need not be copied again, and
# several processes may ask at a time; data that change get another folder.
STORES: Registry[Callable[[str, Path], Path]] = Registry({"s3": _s3})


def local_dataset(data: str, copies: Path = DATASETS) -> Path:
    """The folder of a dataset: a path as it is, what lies at a URL as a copy.

    Args:
        data: A path, ``s3://bucket/prefix``, or another URL of ``STORES``.
        copies: Where copies are kept; made if need be.

    Raises:
        DataError: There is nothing at the URL, or a name there is no path that could be written.
        ParamsError: Nothing reads such URLs, access is refused, or the copy cannot be written.
        ServiceError: The store cannot be reached, or failed.
    """
    scheme, separator, _ = data.partition("://")
    if not separator:
        return Path(data)
    load_plugins()
    if scheme not in STORES:
        raise ParamsError(
            f"data.root is {data}; give a folder, or a URL that begins with {', '.join(f'{each}://' for each in STORES)}."
        )
    return STORES[scheme](data, copies)
