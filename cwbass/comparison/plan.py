"""The grid of a comparison, and the one file that names it: ``plan.json`` in its folder.

A folder holds one comparison. More seeds, labels and variants may join it later; other parameters, or another budget, may not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from cwbass.comparison.budget import Budget, Length, MethodCost, longest
from cwbass.comparison.variants import SUPERVISED
from cwbass.data import list_dataset
from cwbass.data.manifest import ROLES, Manifest
from cwbass.data.splits import check_pool, find_candidates
from cwbass.errors import DataError, ParamsError, counted
from cwbass.files import write_whole
from cwbass.jsonfile import read_object
from cwbass.methods import check_scored
from cwbass.methods.base import MethodConfig
from cwbass.params import Params, flatten, load_params
from cwbass.training.identity import decisive, differences

SCHEMA = 1
PLAN, COSTS = "plan.json", "costs"
AS_GIVEN = "as-given"  # the labels that the parameters name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = re.compile(r"split|warmup-[0-9]+|costs|unfinished|lock|plan\.json")  # by what a comparison itself keeps in its folders


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid; its ``id`` is its folder."""

    labels: str
    seed: int
    variant: str

    @property
    def group(self) -> str:
        """Labels and seed, as a path: cells of one group share a split."""
        return f"{self.labels}/seed{self.seed}"

    @property
    def id(self) -> str:
        """Labels, seed and variant, as a path."""
        return f"{self.group}/{self.variant}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared with what, on which budget."""

    out: Path
    params: Params  # of every cell, but for what a cell changes
    budget: Budget
    variants: Mapping[str, MethodConfig]  # ``supervised`` among them
    seeds: Sequence[int]
    labels: Mapping[str, Mapping[str, Any]]  # name -> keys of ``split``
    listing_sha256: str | None = None  # of the names of the dataset's files and classes; see ``looked_up``
    lists_sha256: Mapping[str, str] = field(default_factory=dict)  # of the ids in the lists of a set of labels, by its name

    def __post_init__(self) -> None:
        train = self.params.train
        if train.steps is None:
            raise ParamsError(
                "train.epochs is given, and a comparison counts steps. Say --set train.epochs=null --set train.steps=N; the warm-up "
                "takes the share of the budget that train.warmup_steps is of train.steps."
            )
        for name in (*self.variants, *self.labels):
            if not _NAME.fullmatch(name):
                raise ParamsError(f"{name!r} names a folder of the comparison; use letters, digits and ._- in it.")
            if _TAKEN.fullmatch(name):
                raise ParamsError(f"{name!r} is what a folder or file of the comparison itself is called; use another name.")
        for config in self.variants.values():
            check_scored(self.params.eval.weights, config.name)
        if len(self.variants) < 2 or not self.seeds or not self.labels:
            raise ParamsError("a comparison needs at least one method beside supervised, one seed and one set of labels.")

    @property
    def reference(self) -> str:
        """The variant that every other one is compared with: the first that was asked for beside the baseline."""
        return next(name for name in self.variants if name != SUPERVISED)

    def cells(self) -> Iterator[Cell]:
        """Group by group, so that a comparison that is stopped half-way compares like with like."""
        for labels in self.labels:
            for seed in self.seeds:
                for variant in self.variants:
                    yield Cell(labels, seed, variant)

    def cell(self, cell_id: str) -> Cell:
        """A cell by its id.

        Raises:
            ParamsError: There is none.
        """
        found = {cell.id: cell for cell in self.cells()}
        if cell_id not in found:
            raise ParamsError(f"--cell {cell_id} is none of this comparison's cells: {', '.join(found)}.")
        return found[cell_id]

    def cost(self, variant: str) -> MethodCost | None:
        """What was measured of a variant; None where it was not, yet."""
        path = self.cost_file(variant)
        return MethodCost.from_dict(read_json(path), str(path)) if path.is_file() else None

    def cost_file(self, variant: str) -> Path:
        """File of a variant's measured cost; measured with other parameters, it has another name."""
        return self.out / COSTS / f"{variant}-{_params_sha256(self.cost_params(variant))[:8]}.json"

    def cost_params(self, variant: str) -> Params:
        """Parameters that a variant's cost is measured with: those of the first cell, for seeds and labels do not change a step."""
        return self.group_params(next(self.cells())).model_copy(update={"method": self.variants[variant]})

    @property
    def cost_split_folder(self) -> Path:
        """Folder of the split on which costs are measured. No cell trains on it: the budget may yet be refused."""
        return self.out / COSTS / f"split-{_params_sha256(self.group_params(next(self.cells())))[:8]}"

    def unmeasured(self) -> list[str]:
        """Variants whose cost must be known before their steps are."""
        return [] if self.budget.kind == "steps" else [name for name in self.variants if self.cost(name) is None]

    def length(self, variant: str) -> Length:
        """The most steps with which all that a variant does fits the budget."""
        train = self.params.train
        assert train.steps is not None, "__post_init__"
        warmup = None if self.budget.kind == "steps" else self.cost(SUPERVISED)
        return longest(
            self.budget,
            variant,
            cost=None if self.budget.kind == "steps" else self.cost(variant),
            warmup=warmup.step if warmup else None,
            share=train.warmup_steps / train.steps,
            retraining=self.variants[variant].retraining,
        )

    def group_params(self, cell: Cell) -> Params:
        """Parameters with the seed and the labels of a cell, which all cells of its group share."""
        return self._changed(seed=cell.seed, split=self.labels[cell.labels])

    def cell_params(self, cell: Cell) -> Params:
        """All parameters of a cell's training. ``supervised`` is the warm-up that goes on."""
        length = self.length(cell.variant)
        train = {"steps": length.steps, "warmup_steps": length.warmup, "baseline": self.shares_warmup(cell)}
        return self._changed(
            seed=cell.seed,
            split=self.labels[cell.labels],
            train=train,
            method=self.variants[cell.variant].model_dump(mode="json"),
        )

    def warmup_params(self, cell: Cell) -> Params:
        """Parameters of a cell's warm-up, the same for all variants of as many steps. Without a baseline that goes on it is not scored."""
        if self.shares_warmup(cell):
            return self.cell_params(Cell(cell.labels, cell.seed, SUPERVISED))
        params = self.cell_params(cell)
        return params.model_copy(update={"train": params.train.model_copy(update={"snapshots": 0})})

    def shares_warmup(self, cell: Cell) -> bool:
        """Whether a cell's warm-up is the one from which the baseline goes on."""
        return self.length(cell.variant) == self.length(SUPERVISED)

    def folder(self, cell: Cell) -> Path:
        """Where a cell's training and reports lie."""
        return self.out / cell.id

    def split_folder(self, cell: Cell) -> Path:
        """Where the split of its group lies."""
        return self.out / cell.group / "split"

    def warmup_folder(self, cell: Cell) -> Path:
        """Folder of the warm-up that a cell starts from."""
        return self.out / cell.group / f"warmup-{self.length(cell.variant).steps}"

    def _changed(self, **changes: Any) -> Params:
        values = self.params.model_dump(mode="json")
        merged = {key: {**values[key], **new} if key in ("split", "train") else new for key, new in changes.items()}
        return load_params({**values, **merged}, Params)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the folder."""
        return {
            "schema": SCHEMA,
            "budget": str(self.budget),
            "params": self.params.model_dump(mode="json"),
            "variants": {name: method.model_dump(mode="json") for name, method in self.variants.items()},
            "seeds": list(self.seeds),
            "labels": {name: dict(keys) for name, keys in self.labels.items()},
            "listing_sha256": self.listing_sha256,
            "lists_sha256": dict(self.lists_sha256),
        }

    def looked_up(self) -> Plan:
        """The plan with the digests of what the dataset and the lists name; no image is opened.

        Raises:
            ParamsError: A set of labels is out of range, or larger than the images with masks.
            DataError: A file of the dataset or a list is missing or wrong.
        """
        root = Path(self.params.data.root)
        listing = list_dataset(self.params.data, self.params.split, root)
        lists = {}
        for name in self.labels:
            split = self.group_params(Cell(name, self.seeds[0], SUPERVISED)).split
            found = find_candidates(listing, split, root)
            if split.labeled_list is None:
                check_pool(found.masked, split)
            if named := [*found.named, *(found.bare if split.unlabeled_list is not None else ())]:
                lists[name] = _sha256([sample.id for sample in named])
        files = [
            [(sample.id, sample.image, sample.mask, *([] if sample.tags is None else [sample.tags])) for sample in role]
            for role in (listing.train, listing.test)
        ]
        return replace(self, listing_sha256=_sha256([listing.spec.to_dict(), *files]), lists_sha256=lists)

    def joined(self) -> Plan:
        """What is planned in the folder when this plan has joined the one there, if there is one.

        Raises:
            DataError: The folder holds a comparison of other parameters or data, or on another budget.
            ParamsError: A set of labels has two names.
        """
        path = self.out / PLAN
        if not path.is_file():
            self._refuse_same_labels({})
            return self
        there = Plan.read(self.out)
        self._refuse_same_labels(there.labels)
        if lines := differences(_claims(there, self), _claims(self, there)):
            if there.listing_sha256 and self.listing_sha256 and there.listing_sha256 != self.listing_sha256:
                lines.append(_changed_images(there, self))
            heading = (
                f"{path} plans another comparison than these parameters do, and numbers of the two cannot stand side by side:"
            )
            raise DataError("\n".join([heading, *lines, "Use another --out, or the values that are there."]))
        return replace(
            self,
            variants={**there.variants, **self.variants},
            seeds=[*there.seeds, *(seed for seed in self.seeds if seed not in there.seeds)],
            labels={**there.labels, **self.labels},
            listing_sha256=self.listing_sha256 or there.listing_sha256,
            lists_sha256={**there.lists_sha256, **self.lists_sha256},
        )

    def _refuse_same_labels(self, there: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse a set of labels that another name has already, here or in the plan that is there: all would be run twice."""
        given = self.params.split.model_dump(mode="json")
        names: dict[str, str] = {}
        for name, keys in {**there, **self.labels}.items():
            other = names.setdefault(json.dumps({**given, **keys}, sort_keys=True), name)
            if other != name and name not in there:
                raise ParamsError(f"--labels {name} are the labels of {other}, under another name. Leave one of them out.")

    def write(self) -> None:
        """Write the file that names the comparison; whoever joined the one there holds its lock."""
        write_whole(self.out / PLAN, f"{json.dumps(self.to_dict(), indent=1)}\n".encode())

    @classmethod
    def read(cls, out: Path) -> Self:
        """The plan of a folder.

        Raises:
            DataError: There is none, or another version wrote it.
        """
        path = out / PLAN
        values = read_json(path)
        if values.get("schema") != SCHEMA:
            raise DataError(f"{path} has schema {values.get('schema')!r}; this cwbass reads {SCHEMA}. Use another --out.")
        try:
            variants = {name: _method(method, values["params"]) for name, method in values["variants"].items()}
            return cls(
                out,
                load_params(values["params"], Params),
                Budget.parse(values["budget"]),
                variants,
                values["seeds"],
                values["labels"],
                values.get("listing_sha256"),
                values.get("lists_sha256", {}),
            )
        except (KeyError, TypeError, AttributeError, ParamsError) as error:
            raise DataError(f"{path} is no plan of this version ({error}). Use that version, or another --out.") from error


def label_sets(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``1/16``, ``0.125``, ``93`` or ``NAME=FILE``: what each changes in ``split``, by its name.

    Raises:
        ParamsError: It is none of these.
    """
    if not texts:
        return {AS_GIVEN: {}}
    sets: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if equals:
            if sets.setdefault(name, {"labeled": None, "labeled_list": path})["labeled_list"] != path:
                raise ParamsError(f"--labels names {name} twice, with different lists. Give each a name of its own.")
            continue
        top, slash, bottom = text.partition("/")
        try:
            labeled = int(top) / int(bottom) if slash else float(text) if "." in text else int(text)
        except (ValueError, ZeroDivisionError):
            raise ParamsError(f"--labels has {text!r}; write a share (1/16, 0.125), a count (93), or NAME=FILE of ids.") from None
        name, given = text.replace("/", "-"), {"labeled": labeled, "labeled_list": None}
        if sets.setdefault(name, given) != given:
            raise ParamsError(f"--labels names {name} twice: as a list, and as {text}. Give the list another name.")
    return sets


def _claims(plan: Plan, other: Plan) -> dict[str, Any]:
    """What two plans of one folder must have in common; of variants and labels, those that both have."""
    values = plan.to_dict()
    for name in ("variants", "labels", "lists_sha256"):
        theirs = getattr(other, name)
        values[name] = {key: value for key, value in values[name].items() if key in theirs}
    listing = values.pop("listing_sha256")
    if other.listing_sha256 is not None:  # a plan of before there were digests
        values["names of the dataset's files and classes (SHA-256)"] = listing
    values["ids in the list (SHA-256)"] = values.pop("lists_sha256")
    values["params"] = {
        key: value for key, value in decisive(values["params"]).items() if not key.startswith(("method.", "seed", "registry."))
    }
    return flatten({key: value for key, value in values.items() if key != "seeds"})


def _changed_images(there: Plan, now: Plan) -> str:
    """What has become of the dataset since a plan was made, as far as the first split that was drawn for it can tell."""
    changes = []
    drawn = next((cell for cell in there.cells() if (there.split_folder(cell) / "manifest.json").is_file()), None)
    if drawn is not None:
        split, manifest = there.group_params(drawn).split, Manifest.read(there.split_folder(drawn) / "manifest.json")
        listing = list_dataset(now.params.data, split, Path(now.params.data.root))
        held = {sample.image for role in ROLES for sample in manifest.samples(role)}
        images = {sample.image for sample in (*listing.train, *listing.test)}
        some_left_out = split.unlabeled_list is not None or split.group_pattern is not None
        found = {"gone": held - images, "new": set() if some_left_out else images - held}
        changes = [
            f"{counted(len(names), 'image is', 'images are')} {what}, the first {min(names)}"
            for what, names in found.items()
            if names
        ]
    text = "; ".join(changes) or "other images, masks, tags, classes or test images than when it was planned"
    return f"  which is to say of {now.params.data.root}: {text}"


def _params_sha256(params: Params) -> str:
    return _sha256(decisive(params.model_dump(mode="json")))


def _sha256(value: Any) -> str:
    """Of JSON values. Hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _method(values: Mapping[str, Any], params: Mapping[str, Any]) -> MethodConfig:
    return load_params({**params, "method": values}, Params).method


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file of a comparison.

    Raises:
        DataError: The file is missing, or holds something else.
    """
    return read_object(path, writer="cwbass compare", mend="Delete it, or use another --out.")
