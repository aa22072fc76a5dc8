"""The README of a registered model: what it is, how good it is, and where it came from.

Its front matter is that of the Hugging Face Hub, so that tools can read the scores; the body is for
people. What was not measured is said to be missing, never left to be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cwbass.headline import certainty, has_supervised_baseline
from cwbass.markdown import markdown_table, markdown_text
from cwbass.params import Params
from cwbass.reporting.curves import number
from cwbass.reporting.scores import SCORES, class_table, percent, score_table, verdict
from cwbass.reporting.svg import NONE

WEAK_IOU = 0.5  # classes below are named as a limitation
_HUB_METRICS = {"miou": "mean_iou", "pixel_accuracy": "accuracy"}  # the Hub's names, where it has one

Values = Mapping[str, Any]
_ORIGIN = {
    "data_version": "Version of the data",
    "data_listing": "Listing of the data (SHA-256, first 16 digits)",
    "run_id": "Pipeline run",
    "image": "Image",
}


def model_card(
    name: str, *, config: Values, metrics: Values, provenance: Values, params: Params, license: str | None = None
) -> str:
    """Markdown with YAML front matter.

    Args:
        name: Of the model.
        config: Content of config.json: ``classes``, and ``onnx`` where there is one.
        metrics: Content of metrics.json; only ``miou``, ``split_hash`` and ``weights`` must be there.
        provenance: Content of provenance.json.
        params: Of the run.
        license: SPDX expression; None where nobody has stated one.
    """
    matter = yaml.safe_dump(_front_matter(name, metrics, params, license), sort_keys=False, allow_unicode=True)
    sections = {
        "Intended use": _intended_use(config),
        "Licence": _licence(license),
        "Scores": _scores(metrics),
        "Classes": _classes(config, metrics),
        "Data": _data(metrics, params),
        "Recipe": markdown_table(("Setting", "Value"), _recipe(params).items()),
        "Limitations": "\n".join(f"- {line}" for line in _limitations(config, metrics)),
        "Loading": _loading(name, config.get("onnx") or {}, _protocol(metrics)),
        "Provenance": markdown_table(("What", "Value"), _provenance(provenance).items()),
    }
    body = "\n".join(f"\n## {title}\n\n{content}" for title, content in sections.items())
    return f"---\n{matter}---\n\n# {name}\n\n{markdown_text(verdict(metrics))}\n{body}\n"


def _front_matter(name: str, metrics: Values, params: Params, license: str | None) -> dict[str, Any]:
    dataset = Path(params.data.root).name or params.data.layout
    scores = [
        {"type": _HUB_METRICS.get(key, key), "name": label, "value": value}
        for key, label in SCORES.items()
        if (value := number(metrics.get(key))) is not None
    ]
    return {
        **_hub_license(license),
        "library_name": "cwbass",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", "semi-supervised", "cw-bass"],
        "metrics": ["mean_iou"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
                        "dataset": {"name": dataset, "type": dataset, "split": "test", "revision": metrics["split_hash"]},
                        "metrics": scores,
                    }
                ],
            }
        ],
    }


def _hub_license(license: str | None) -> dict[str, str]:
    """The Hub knows licences by their SPDX ids in lower case; any other expression is "other" with a name."""
    if license is None:
        return {"license": "unknown"}
    if " " in license or license.startswith("LicenseRef-"):
        return {"license": "other", "license_name": license}
    return {"license": license.lower()}


def _licence(license: str | None) -> str:
    inherited = "Weights inherit conditions of the training images and of the encoder's starting weights."
    if license is None:
        return (
            "Not stated. State it as an SPDX expression, say `Apache-2.0`, with `registry.license` in params.yaml: the card of the "
            f"next version then says it. {inherited}"
        )
    return f"{markdown_text(license)}. {inherited}"


def _intended_use(config: Values) -> str:
    return (
        f"A class for every pixel of an RGB image, out of the {len(config['classes'])} below, for images like those it was "
        "trained and tested on.\n\nNot for images of another kind, nor for classes it does not know: every pixel gets one of "
        "its own. Measure it on your own images before people rely on it."
    )


def _scores(metrics: Values) -> str:
    images = f"{metrics['images']:,} test images" if number(metrics.get("images")) is not None else "the test images"
    rows = [(label, row.ours, row.theirs, row.change) for label, row in score_table(metrics).items()]
    ece = number(metrics.get("ece"))
    calibration = (
        "Calibration was not measured."
        if ece is None
        else f"Calibration: confidence and accuracy differ by {percent(ece)} points on average (ECE)."
    )
    notes = " ".join(filter(None, (certainty(metrics), calibration)))
    baseline = "the same network, trained on the labelled images alone" if has_supervised_baseline(metrics) else "another model"
    return (
        f"In per cent, over all pixels of {images} together. Protocol: {_protocol(metrics)}. Weights: {markdown_text(metrics['weights'])}. "
        f"The baseline is {baseline}.\n\n"
        f"{markdown_table(('Score', 'This model', 'Baseline', 'Change'), rows)}\n\n{notes}"
    )


def _protocol(metrics: Values) -> str:
    return markdown_text(metrics.get("protocol") or "not recorded")


def _classes(config: Values, metrics: Values) -> str:
    measured = {row.name: row for row in class_table(metrics)}
    missing = (NONE, NONE, NONE, NONE)
    rows = [
        (index, name, *((row.share, row.iou.ours, row.iou.theirs, row.iou.change) if (row := measured.get(name)) else missing))
        for index, name in enumerate(config["classes"])
    ]
    return markdown_table(("Index", "Class", "Share of test pixels", "IoU", "Baseline IoU", "Change"), rows)


def _data(metrics: Values, params: Params) -> str:
    split: Values = metrics.get("split") or {}
    counts: Values = split.get("counts") or {}
    facts = {
        "Dataset": f"{Path(params.data.root).name or NONE} ({params.data.layout})",
        **{f"Images: {role}": f"{count:,}" for role, count in counts.items()},
        "Split": metrics["split_hash"],
    }
    notes = "".join(f"\n- {markdown_text(note)}" for note in split.get("notes") or ())
    budget = "Masks were used of the labelled images, to train on, and of the selection slice, to choose by; of no others."
    return f"{budget}\n\n{markdown_table(('What', 'Value'), facts.items())}" + (f"\n{notes}" if notes else "")


def _recipe(params: Params) -> dict[str, Any]:
    train, optimizer = params.train, params.train.optimizer
    recipe = params.method.model_dump().get("recipe")
    return {
        "Method": f"{params.method.name} ({recipe})" if recipe else params.method.name,
        "Network": f"{params.model.arch} with {params.model.encoder}",
        "Encoder's starting weights": params.model.weights or "random",
        "Length": f"{train.steps} steps" if train.steps else f"{train.epochs} epochs",
        "Warm-up, labelled images alone": f"{train.warmup_steps} steps",
        "Batch": f"{train.labeled_a_step} labelled + {train.unlabeled_a_step} unlabelled crops",
        "Crop": f"{params.augment.crop_size} pixels square",
        "Optimiser": f"{optimizer.name}, learning rate {optimizer.lr:g}",
        "Seed": params.seed,
        "All numbers": "params.yaml",
    }


def _limitations(config: Values, metrics: Values) -> list[str]:
    classes: Values = metrics.get("per_class") or {}
    iou = {name: number((classes.get(name) or {}).get("iou")) for name in config["classes"]}
    unknown = [markdown_text(name) for name, value in iou.items() if value is None]
    weak = [f"{markdown_text(name)} ({percent(value)})" for name, value in iou.items() if value is not None and value < WEAK_IOU]
    seed = f" with seed {markdown_text(metrics['seed'])}" if metrics.get("seed") is not None else ""
    lines = [f"Every score is of one run{seed} on one split; another seed or other images give other numbers."]
    if weak:
        lines.append(f"Weak classes, IoU below {WEAK_IOU:.0%}: {', '.join(weak)}.")
    if unknown:
        lines.append(f"Classes nothing is known of, for want of test pixels or of a measurement: {', '.join(unknown)}.")
    gain = number(metrics.get("miou_gain")) if has_supervised_baseline(metrics) else None
    if gain is None:
        lines.append("No supervised baseline was scored: whether the unlabelled images helped is not known.")
    elif gain < 0:
        lines.append("The supervised baseline has the higher mIoU: the unlabelled images did not help.")
    return lines


def _loading(name: str, onnx: Values, protocol: str) -> str:
    if onnx.get("file"):
        parity = onnx["parity"]
        graph = (
            f"`{onnx['file']}` is the same network for ONNX Runtime: uint8 RGB images of any size in, logits out; normalisation "
            f"and padding are inside. Against PyTorch on {len(parity['sizes'])} sizes: largest difference of a logit "
            f"{parity['max_abs_diff']:.1e}, same class at {100 * parity['argmax_agreement']:.3f} % of the pixels."
        )
    else:
        graph = f"There is no ONNX file: {markdown_text(onnx.get('absent') or 'none was asked for')}."
    return f"""`MANIFEST.json` says which version this is. From a shell, with its SHA-256 checked as it is read:

```sh
cwbass eval --checkpoint {name}@champion --store STORE --data DATASET
cwbass predict --checkpoint {name}@champion --store STORE --images FOLDER
```

In place of `champion` stands any alias or version. In Python:

```python
from cwbass.registry import latest, load_network, read_version
from cwbass.storage import open_store

store = open_store("path/to/registry")  # or s3://bucket/prefix
net = load_network(read_version(store, latest(store, "{name}")))
probs = net(image).softmax(dim=1)  # image: [B, 3, H, W] RGB, 0 to 255, any size
```

{graph}

Either is the network alone: scales, windows and mirror images of the scores' protocol ({protocol}) are up to whoever calls it. \
`cwbass predict` follows section `eval` of `params.yaml`."""


def _provenance(provenance: Values) -> dict[str, Any]:
    git: Values = provenance.get("git") or {}
    checkpoint: Values = provenance.get("checkpoint") or {}
    data: Values = provenance.get("data") or {}
    origin: Values = provenance.get("origin") or {}
    revision = git.get("revision") or "not in a repository"
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    return {
        "Created": provenance.get("created") or NONE,
        "Git revision": f"{revision}{changed}",
        "Data": data.get("root") or NONE,
        **{label: origin[name] for name, label in _ORIGIN.items() if name in origin},
        "Data, as DVC tracks it": data.get("dvc_md5") or "not tracked",
        "Checkpoint (SHA-256)": checkpoint.get("sha256") or NONE,
        "Stage, step": f"{checkpoint.get('stage', NONE)}, {checkpoint.get('step', NONE)}",
        **(provenance.get("versions") or {}),
    }
