from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from prometheus_client import CollectorRegistry
from tiny_model import SPLIT, TINY, tiny_checkpoint

from cwbass.config import RegistryConfig
from cwbass.errors import CheckpointError, DataError, GateError, ParamsError, ServiceError
from cwbass.export import measure_parity, missing_packages, parity_problem
from cwbass.files import file_sha256
from cwbass.markdown import markdown_text
from cwbass.params import Params, load_params, parse_yaml
from cwbass.plugins import Plugin
from cwbass.registry import Number, find_version, list_versions, load_network, read_version
from cwbass.registry.aliases import current, history, promote
from cwbass.steps.register import RegisterParams, RegisterReport, register
from cwbass.storage import FolderStore
from cwbass.telemetry.metrics import Metrics
from cwbass.telemetry.recorder import Recorder
from cwbass.training.checkpoint import Checkpoint, save_checkpoint


class Run:
    """The files of a run, and the step called on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "registry")
        self.checkpoint = folder / "last.pt"
        self.metrics = folder / "metrics.json"
        self.report: Path | None = None
        self.save(tiny_checkpoint())
        self.score()

    def save(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(checkpoint, self.checkpoint)

    def score(self, **changes: Any) -> None:
        scores = {"miou": 0.6, "split_hash": SPLIT, "weights": "teacher", "protocol": "whole image"}
        self.metrics.write_text(json.dumps(scores | changes))

    def register(self, **settings: Any) -> dict[str, Any]:
        # Export takes seconds, and is asked for where it is tested.
        params = RegisterParams(registry=RegistryConfig(name="tiny", store=str(self.store.root), **({"onnx": False} | settings)))
        report = register(
            params, checkpoint=self.checkpoint, metrics=self.metrics, report=self.report, out_dir=self.folder / "out"
        )
        assert report.to_dict() == self.written()
        return report.to_dict()

    def written(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "out" / "registration.json").read_text())
        return content

    def files(self, number: str = "1.0.0") -> dict[str, bytes]:
        return read_version(self.store, find_version(self.store, "tiny", Number.parse(number)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_version_holds_all_that_is_needed_to_judge_and_to_use_it(run: Run) -> None:
    run.report = run.folder / "page.html"
    run.report.write_text("<!doctype html>")
    (run.folder / "flight.html").write_text("<!doctype html><title>flight")
    outcome = run.register()

    manifest_sha256 = file_sha256(run.store.root / "models/tiny/versions/1.0.0/MANIFEST.json")
    assert outcome == {
        "name": "tiny",
        "decision": "registered",
        "version": "1.0.0",
        "uri": (run.store.root / "models/tiny/versions/1.0.0").as_posix(),
        "manifest_sha256": manifest_sha256,
        "alias": None,
        "champion": None,
        "reasons": [],
        "page": str(run.folder / "out" / "gate.md"),
    }
    files = run.files()
    assert files.keys() == {
        "README.md", "SHA256SUMS", "config.json", "flight.html", "metrics.json",
        "model.safetensors", "params.yaml", "provenance.json", "report.html",
    }  # fmt: skip
    config = json.loads(files["config.json"])
    assert config["classes"] == ["sky", "road"]
    assert config["palette"] == [[0, 0, 0], [1, 0, 0]]
    assert config["ignore_index"] == 255
    assert config["protocol"] == "whole image"
    assert config["onnx"] == {"absent": "registry.onnx is false"}
    assert config["model"] == TINY.model_dump(mode="json", exclude={"weights"})
    assert load_params(parse_yaml(files["params.yaml"].decode(), "params"), Params) == Params(model=TINY)
    assert files["metrics.json"] == run.metrics.read_bytes()
    assert files["report.html"] == b"<!doctype html>"
    assert files["flight.html"] == b"<!doctype html><title>flight"
    assert files["README.md"].startswith(b"---\nlicense: ")


def test_the_card_states_the_licence_that_the_parameters_state(run: Run) -> None:
    run.register(license="CC-BY-4.0")
    assert run.files()["README.md"].startswith(b"---\nlicense: cc-by-4.0\n")


def test_provenance_leads_back_to_checkpoint_and_split(run: Run) -> None:
    run.score(split={"counts": {"labeled": 5}, "notes": ["a note"]})
    run.register()
    provenance = json.loads(run.files()["provenance.json"])
    assert provenance["checkpoint"]["sha256"] == file_sha256(run.checkpoint)
    assert (provenance["checkpoint"]["stage"], provenance["checkpoint"]["step"]) == ("train", 40)
    assert provenance["split"] == {"hash": SPLIT, "counts": {"labeled": 5}, "notes": ["a note"]}
    assert provenance["weights"] == "teacher"
    assert provenance["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance["created"])


def test_provenance_names_the_plugins_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwbass.steps.register.load_plugins", lambda: (Plugin("mine", Path("mine.py"), "ab" * 32),))
    run.register()
    assert json.loads(run.files()["provenance.json"])["plugins"] == {"mine": "ab" * 32}


def test_provenance_names_the_commit_of_the_working_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder)
    # A repository around the temporary folder must not be found in place of none.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(run.folder.parent))
    run.register()
    assert json.loads(run.files()["provenance.json"])["git"] is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(("git", *identity, *arguments), check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "metrics.json")
    git("commit", "-q", "-m", "run")
    run.save(tiny_checkpoint(seed=1))  # untracked: no change of what the commit says
    run.register()
    assert json.loads(run.files("1.1.0")["provenance.json"])["git"] == {"revision": git("rev-parse", "HEAD"), "dirty": False}

    run.score(miou=0.7)
    run.register()
    assert json.loads(run.files("1.2.0")["provenance.json"])["git"]["dirty"] is True


@pytest.mark.parametrize("weights", ["student", "teacher"])
def test_the_network_that_was_scored_is_the_one_that_is_shipped(run: Run, weights: str) -> None:
    run.score(weights=weights)
    run.register()
    image = torch.randint(0, 256, (1, 3, 33, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = tiny_checkpoint().network(weights)(image)
    assert torch.equal(load_network(run.files())(image), expected)
    with safetensors.safe_open(run.store.root / "models/tiny/versions/1.0.0/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_snippet_of_the_card_works(run: Run) -> None:
    run.register()
    blocks = re.findall(r"```python\n(.*?)```", run.files()["README.md"].decode(), re.DOTALL)
    assert len(blocks) == 1
    image = torch.full((1, 3, 20, 30), 7, dtype=torch.uint8)
    names: dict[str, Any] = {"image": image}
    exec(blocks[0].replace("path/to/registry", str(run.store.root)), names)
    assert torch.equal(names["probs"], tiny_checkpoint().network("teacher")(image).softmax(dim=1))


def test_registering_again_makes_no_second_version(run: Run) -> None:
    first = run.register()
    assert run.register() == first
    run.score(miou=0.61)
    assert run.register()["version"] == "1.1.0"
    run.score()
    assert run.register() == first  # the older version is found too
    run.save(tiny_checkpoint(seed=1))
    assert run.register()["version"] == "1.2.0"
    run.save(tiny_checkpoint(class_names=("sky", "road", "car")))
    assert run.register()["version"] == "2.0.0"


def test_a_store_can_be_passed_in(run: Run) -> None:
    other = FolderStore(run.folder / "other")
    params = RegisterParams(registry=RegistryConfig(onnx=False))
    register(params, checkpoint=run.checkpoint, metrics=run.metrics, report=None, out_dir=run.folder, store=other)
    assert list_versions(other, "cwbass-shapes") == [Number(1)]


class _Meanwhile(FolderStore):
    """While weights are on their way, somebody evaluates again into the folder that is registered."""

    def put(self, key: str, content: Any, *, if_absent: bool = False) -> bool:
        if key.endswith("model.safetensors"):
            for name in ("metrics.json", "page.html"):
                (self.root.parent / name).write_text("{}")
        return super().put(key, content, if_absent=if_absent)


def test_files_that_are_written_over_while_a_version_is_sent_are_registered_as_they_were_judged(run: Run) -> None:
    run.report = run.folder / "page.html"
    run.report.write_text("<!doctype html>")
    scores = run.metrics.read_bytes()
    run.store = _Meanwhile(run.folder / "registry")
    register(
        RegisterParams(registry=RegistryConfig(name="tiny", onnx=False)),
        checkpoint=run.checkpoint,
        metrics=run.metrics,
        report=run.report,
        out_dir=run.folder / "out",
        store=run.store,
    )
    files = run.files()
    assert (files["metrics.json"], files["report.html"]) == (scores, b"<!doctype html>")


def test_scores_that_are_written_over_as_soon_as_they_were_read_are_registered_as_they_were_judged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_written_over(read: Any) -> Any:
        def reading(path: Path, *arguments: Any, **options: Any) -> Any:
            content = read(path, *arguments, **options)
            if path == run.metrics:
                run.score(miou=0.1)
            return content

        return reading

    scores = run.metrics.read_bytes()
    for name in ("read_bytes", "read_text"):
        monkeypatch.setattr(Path, name, then_written_over(getattr(Path, name)))
    run.register(min_miou=0.5)
    assert run.files()["metrics.json"] == scores


def test_a_model_below_the_limits_is_refused_in_writing(run: Run) -> None:
    run.score(baseline_miou=0.59, miou_gain=0.01)
    with pytest.raises(GateError) as caught:
        run.register(min_miou=0.65, min_gain=0.02)
    reasons = ["miou is 0.6000, below registry.min_miou 0.6500", "miou_gain is 0.0100, below registry.min_gain 0.0200"]
    assert run.written() == {
        "name": "tiny", "decision": "refused", "version": None, "uri": None, "manifest_sha256": None,
        "alias": None, "champion": None, "reasons": reasons, "page": str(run.folder / "out" / "gate.md"),
    }  # fmt: skip
    assert caught.value.exit_code == 5
    assert all(reason in str(caught.value) for reason in reasons)
    assert run.store.list("") == []


def test_asking_the_gate_writes_nothing_and_names_a_version_that_is_there(run: Run) -> None:
    params = RegisterParams(registry=RegistryConfig(name="tiny", store=str(run.store.root), onnx=False))

    def ask(**settings: Any) -> RegisterReport:
        asked = RegisterParams(registry=params.registry.model_copy(update=settings))
        files = {"checkpoint": run.checkpoint, "metrics": run.metrics, "report": None, "out_dir": run.folder / "out"}
        return register(asked, **files, dry_run=True)

    before = sorted(run.folder.rglob("*"))
    assert ask() == RegisterReport("tiny", "passed")
    with pytest.raises(GateError, match=r"^tiny is not registered: miou is 0.*, or change the limit\.$"):
        ask(min_miou=0.9)
    assert sorted(run.folder.rglob("*")) == before
    run.register()
    assert ask() == RegisterReport("tiny", "passed", version="1.0.0")
    assert list_versions(run.store, "tiny") == [Number(1)]


def test_a_score_that_is_no_number_is_refused(run: Run) -> None:
    run.score(miou=float("nan"))
    with pytest.raises(GateError, match="miou is nan, which is no number"):
        run.register()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"split_hash": "cd" * 32}, "the scores have split_hash cdcdcdcdcdcd, the checkpoint abababababab"),
        ({"split_hash": None}, "the scores have split_hash None"),
        ({"checkpoint_sha256": "0" * 64}, "the scores have checkpoint_sha256 000000000000"),
        ({"weights": "auto"}, "weights is 'auto', not student or teacher"),
    ],
)
def test_scores_of_another_model_are_refused(run: Run, scores: dict[str, Any], message: str) -> None:
    run.score(**scores)
    with pytest.raises(DataError, match=message):
        run.register()
    assert run.store.list("") == []


def test_scores_that_name_the_checkpoint_are_accepted(run: Run) -> None:
    run.score(checkpoint_sha256=file_sha256(run.checkpoint))
    assert run.register()["version"] == "1.0.0"


def test_in_a_folder_the_scored_file_counts(run: Run) -> None:
    best = run.folder / "best.pt"
    save_checkpoint(tiny_checkpoint(seed=1), best)
    scored, run.checkpoint = run.checkpoint, run.folder
    run.score(checkpoint_sha256=file_sha256(scored))
    run.register()
    assert json.loads(run.files()["provenance.json"])["checkpoint"]["sha256"] == file_sha256(scored)
    run.score(checkpoint_sha256=file_sha256(best))
    run.register()
    assert json.loads(run.files("1.1.0")["provenance.json"])["checkpoint"]["sha256"] == file_sha256(best)
    run.score()  # does not say which
    with pytest.raises(DataError, match="holds no checkpoint of the scores' checkpoint_sha256"):
        run.register()


def test_a_missing_checkpoint_is_named(run: Run) -> None:
    run.checkpoint = run.folder / "gone.pt"
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such checkpoint"):
        run.register()


def test_a_network_the_checkpoint_lacks_is_refused(run: Run) -> None:
    run.save(tiny_checkpoint(networks=("student",)))
    with pytest.raises(DataError, match="weights is 'teacher', not student"):
        run.register()
    assert run.store.list("") == []


@pytest.mark.parametrize(
    ("content", "message"), [("{", r"metrics\.json is no JSON"), ("[1]", r"metrics\.json holds a list, not an object")]
)
def test_a_file_that_is_no_metrics_is_named(run: Run, content: str, message: str) -> None:
    run.metrics.write_text(content)
    with pytest.raises(DataError, match=message):
        run.register()
    run.metrics.unlink()
    with pytest.raises(DataError, match=r"metrics\.json: no such file"):
        run.register()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", "2", "images is 2, not a number"),
        ("split", [1], r"split is \[1\], not an object"),
        ("per_class", {"sky": 0.9}, r"per_class is \{'sky': 0\.9\}, not an object of objects"),
        ("checkpoints", 3, "checkpoints is 3, not an object of objects"),
        ("miou_gain_interval", [0.1], r"miou_gain_interval is \[0\.1\], not two numbers"),
        ("miou_gain_interval", {"low": 0, "high": 1}, r"miou_gain_interval is .+, not two numbers"),
    ],
)
def test_a_score_of_another_kind_is_named(run: Run, key: str, value: object, message: str) -> None:
    run.score(**{key: value})
    with pytest.raises(DataError, match=rf"metrics\.json: {message}\. Run `cwbass eval` again"):
        run.register()
    assert run.store.list("") == []


PER_CLASS = {"sky": {"iou": 0.9}, "road": {"iou": 0.3}}


def champion(run: Run) -> str | None:
    entry = current(run.store, "tiny", "champion")
    return None if entry is None else entry.version


def test_a_model_that_beats_the_champion_takes_its_place(run: Run) -> None:
    gate: dict[str, Any] = {"promote": "champion", "min_champion_gain": 0.01, "max_class_drop": 0.05}
    run.score(per_class=PER_CLASS)
    first = run.register(**gate)
    assert (first["version"], first["alias"], first["champion"]) == ("1.0.0", "champion", None)

    page = (run.folder / "out" / "gate.md").read_text()
    assert f"It is version 1.0.0 ({markdown_text(first['uri'])}). The alias champion points to it." in page

    run.score(miou=0.62, per_class={"sky": {"iou": 0.99}, "road": {"iou": 0.25}})
    second = run.register(**gate)
    assert (second["version"], second["champion"], champion(run)) == ("1.1.0", "1.0.0", "1.1.0")

    # A step that is run again finds its own model as the champion, which it need not beat.
    again = run.register(**gate)
    assert (again["version"], again["champion"], champion(run)) == ("1.1.0", None, "1.1.0")
    assert len(history(run.store, "tiny", "champion")) == 2


def test_a_model_that_does_not_beat_the_champion_leaves_no_trace_but_the_page(run: Run) -> None:
    run.register(promote="champion")
    before = run.store.list("")
    run.score(miou=0.605, per_class=PER_CLASS)
    with pytest.raises(
        GateError, match=r"gain over champion 1\.0\.0 is 0\.0050 .*; the champion 1\.0\.0 has no per_class"
    ) as caught:
        run.register(promote="champion", min_champion_gain=0.01, max_class_drop=0.05)
    assert str(run.folder / "out" / "gate.md") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run.store.list("") == before
    assert (run.written()["decision"], run.written()["champion"]) == ("refused", "1.0.0")
    page = (run.folder / "out" / "gate.md").read_text()
    assert page.startswith("# tiny: refused\n")
    assert "- gain over champion 1.0.0 is 0.0050 (0.6000 to 0.6050), below registry.min\\_champion\\_gain 0.0100" in page


def test_a_candidate_is_measured_against_the_champion_and_does_not_move_it(run: Run) -> None:
    run.register(promote="champion")
    run.score(miou=0.7)
    assert run.register(promote="candidate", min_champion_gain=0.05)["champion"] == "1.0.0"
    assert champion(run) == "1.0.0"
    candidate = current(run.store, "tiny", "candidate")
    assert candidate is not None and candidate.version == "1.1.0"


def test_a_champion_that_changes_while_a_model_is_judged_is_not_overrun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.register(promote="champion")
    run.score(miou=0.7)
    run.register()
    run.score(miou=0.65)
    original = FolderStore.put

    def put(self: FolderStore, key: str, content: bytes | Path, *, if_absent: bool = False) -> bool:
        if key.endswith("1.2.0/MANIFEST.json"):  # somebody promotes 1.1.0 between the gate and our move
            promote(run.store, "tiny", "champion", Number(1, 1), seen=current(run.store, "tiny", "champion"), reason="first")
        return original(self, key, content, if_absent=if_absent)

    monkeypatch.setattr(FolderStore, "put", put)
    with pytest.raises(ServiceError, match=r"tiny@champion was moved to 1\.1\.0 .* in the meantime"):
        run.register(promote="champion", min_champion_gain=0.01)
    assert champion(run) == "1.1.0"
    with pytest.raises(GateError, match=r"gain over champion 1\.1\.0 is -0\.0500"):  # run again: judged by the new one
        run.register(promote="champion", min_champion_gain=0.01)


def test_weights_that_are_too_large_are_refused(run: Run) -> None:
    with pytest.raises(GateError, match=r"size of the weights in MB is 1\.\d+, above registry\.max_size_mb 0\.001"):
        run.register(max_size_mb=0.001)


@pytest.mark.skipif(bool(missing_packages()), reason="pip install 'cwbass[export]' for onnx, onnxruntime, onnxscript")
def test_a_version_holds_an_onnx_file_that_was_checked(run: Run) -> None:
    run.register(onnx="auto")
    files = run.files()
    onnx = json.loads(files["config.json"])["onnx"]
    assert onnx["file"] == "model.onnx"
    assert onnx["parity"]["argmax_agreement"] >= 0.999
    assert len(onnx["parity"]["sizes"]) == 3
    assert "`model.onnx` is the same network for ONNX Runtime" in files["README.md"].decode()
    path = run.folder / "check.onnx"
    path.write_bytes(files["model.onnx"])
    assert b"whole image" in path.read_bytes()  # the scores' protocol, in its metadata
    assert parity_problem(measure_parity(load_network(files), path, [(40, 51)])) is None


def test_without_the_extra_a_version_says_why_it_has_no_onnx_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwbass.steps.register.missing_packages", lambda: ("onnx",))
    run.register(onnx="auto")
    files = run.files()
    assert "model.onnx" not in files
    assert json.loads(files["config.json"])["onnx"] == {"absent": "onnx not installed (cwbass[export])"}
    assert "There is no ONNX file: onnx not installed (cwbass\\[export\\])." in files["README.md"].decode()


def test_a_network_that_cannot_be_exported_is_registered_without_unless_onnx_was_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ParamsError("this network cannot be exported to ONNX: an operation")

    monkeypatch.setattr("cwbass.steps.register.missing_packages", lambda: ())
    monkeypatch.setattr("cwbass.steps.register.export_onnx", fail)
    with pytest.raises(ParamsError, match="an operation"):
        run.register(onnx=True)
    assert run.store.list("") == []
    run.register(onnx="auto")
    assert json.loads(run.files()["config.json"])["onnx"] == {"absent": "this network cannot be exported to ONNX: an operation"}


def test_a_file_that_answers_otherwise_stops_the_registration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise GateError("model.onnx does not answer as the network does: by 3. Set registry.onnx: false to ship without.")

    monkeypatch.setattr("cwbass.steps.register.missing_packages", lambda: ())
    monkeypatch.setattr("cwbass.steps.register.export_onnx", fail)
    with pytest.raises(
        GateError, match=r"^tiny is not registered: model\.onnx does not answer .* without\. Nothing was written; see "
    ):
        run.register(onnx="auto")
    assert run.store.list("") == []
    written = run.written()  # the pipeline's register goes by this, and so its verdict
    assert (written["decision"], written["version"], len(written["reasons"])) == ("refused", None, 1)
    assert "model.onnx does not answer" in written["reasons"][0]
    assert (run.folder / "out" / "gate.md").read_text().startswith("# tiny: refused\n")


def test_the_move_of_the_alias_is_counted(run: Run) -> None:
    metrics = Metrics(CollectorRegistry())
    params = RegisterParams(registry=RegistryConfig(name="tiny", onnx=False, promote="champion"))
    files = {"checkpoint": run.checkpoint, "metrics": run.metrics, "report": None, "out_dir": run.folder / "out"}
    register(params, **files, store=run.store, telemetry=Recorder(metrics, stage="register"))
    labels = {"operation": "promote", "outcome": "success"}
    assert metrics.registry.get_sample_value("cwbass_registry_operations_total", labels) == 1
