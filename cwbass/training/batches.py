"""What the steps of a stage are given: its loaders, and which images a step takes from them."""

from __future__ import annotations

from collections.abc import Iterable

from torch.utils.data import Dataset

from cwbass.data.offline import OfflineStream
from cwbass.data.streams import LabeledStream, Stream, UnlabeledStream, collate, index_at, make_loader, tag_table
from cwbass.methods.base import Method
from cwbass.training.loop import Schedule
from cwbass.training.run import Run
from cwbass.types import Batch, LabeledBatch, UnlabeledBatch


def open_loaders(
    run: Run, method: Method, schedule: Schedule, offline: OfflineStream | None
) -> tuple[Iterable[LabeledBatch], Iterable[UnlabeledBatch] | None]:
    """This process's part of the batches of ``schedule``'s steps, labelled and unlabelled; of the latter None where none is asked for.

    Args:
        run: Images, views and batch sizes.
        method: Whether it learns from unlabelled images, in how many strong views, and whether it is told the places of crops.
        schedule: Which steps.
        offline: Unlabelled crops with labels made before; None takes the run's unlabelled images.
    """
    train, spec = run.train, run.manifest.spec

    def load(stream: Dataset[Batch], batch_size: int) -> Iterable[Batch]:
        return make_loader(
            stream,
            collate,
            start=schedule.start * train.accumulate,
            stop=schedule.stop * train.accumulate,
            batch_size=batch_size,
            workers=train.workers,
            pin_memory=run.device.type == "cuda",
            world=run.world,
        )

    source, tags = run.open_images(run.manifest.labeled), tag_table(run.manifest.labeled, spec.num_classes)
    places = method.wants_places
    stream = LabeledStream(source, run.augment, ignore_index=spec.ignore_index, seed=run.seed, tags=tags, places=places)
    labeled = load(stream, train.batch_labeled)
    if not method.needs_unlabeled:
        return labeled, None
    if offline is not None:
        return labeled, load(offline, train.batch_unlabeled)
    views = UnlabeledStream(
        run.open_images(run.manifest.unlabeled),
        run.augment,
        seed=run.seed,
        strong_views=method.strong_views,
        tags=tag_table(run.manifest.unlabeled, spec.num_classes),
        places=places,
    )
    return labeled, load(views, train.batch_unlabeled)


def images_of(run: Run, method: Method, step: int, offline: OfflineStream | None) -> dict[str, list[str]]:
    """Ids of the images in a step's labelled and unlabelled batches, of all processes; other arguments as of :func:`open_loaders`."""
    train = run.train
    sources: dict[Stream, tuple[list[str], int]] = {
        "labeled": ([sample.id for sample in run.manifest.labeled], train.labeled_a_step)
    }
    if method.needs_unlabeled:
        ids = [sample.id for sample in run.manifest.unlabeled] if offline is None else list(offline.labels.ids)
        sources["unlabeled"] = ids, train.unlabeled_a_step
    return {
        stream: [
            ids[index_at(position, len(ids), seed=run.seed, stream=stream)]
            for position in range(step * batch, (step + 1) * batch)
        ]
        for stream, (ids, batch) in sources.items()
    }
