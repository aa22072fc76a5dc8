from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_servers import clean_environment, pushgateway

from cwbass.errors import CwbassError, GateError, Interrupted, ParamsError
from cwbass.telemetry import SILENT, TelemetrySettings, observe, observe_failure


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Value of each series."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def outcomes(text: str) -> set[str]:
    return {dict(labels)["outcome"] for name, labels in read(text) if name == "cwbass_stage_last_completion_timestamp_seconds"}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "success"),
        (GateError("too bad"), "refused"),
        (Interrupted("asked to"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (CwbassError("no"), "failed"),
        (RuntimeError("bug"), "failed"),
        (SystemExit(1), "failed"),
        (SystemExit(143), "interrupted"),  # of the command line's handler of SIGTERM
        (SystemExit(130), "interrupted"),
    ],
)
def test_the_outcome_is_written_however_a_step_ends(error: BaseException | None, outcome: str, tmp_path: Path) -> None:
    try:
        with observe("train", TelemetrySettings(), out_dir=tmp_path):
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    text = (tmp_path / "metrics.prom").read_text()
    assert outcomes(text) == {outcome}
    assert ("cwbass_stage_last_success_timestamp_seconds" in text) == (error is None)
    stops = read(text)["cwbass_train_interruptions_total", frozenset({("reason", "SIGINT")})]
    assert stops == isinstance(error, KeyboardInterrupt)


def test_what_fails_before_a_step_is_told_as_its_failure_and_what_does_not_is_not_told(tmp_path: Path) -> None:
    observe_here = partial(observe, "train", TelemetrySettings(), out_dir=tmp_path)
    with observe_failure(observe_here):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ParamsError, match="no such bucket"), observe_failure(observe_here):
        raise ParamsError("no such bucket")
    assert outcomes((tmp_path / "metrics.prom").read_text()) == {"failed"}


def test_a_request_to_stop_ends_the_lingering_of_a_step_that_is_done() -> None:
    code = (
        "import signal, sys\n"
        "from cwbass.telemetry import TelemetrySettings, observe\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "with observe('train', TelemetrySettings(port=0, linger=60)): print('trained', flush=True)\n"
        "print('reported')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "trained\n"
        time.sleep(0.5)
        process.terminate()
        assert (process.communicate(timeout=30)[0], process.returncode) == ("reported\n", 0)


def test_a_step_that_was_stopped_is_not_held_up_by_lingering() -> None:
    started = time.monotonic()
    with pytest.raises(Interrupted), observe("train", TelemetrySettings(port=0, linger=60)):
        raise Interrupted("asked to")
    assert time.monotonic() - started < 30


def test_the_revision_of_the_environment_goes_before_that_of_the_checkout(tmp_path: Path) -> None:
    with observe("train", TelemetrySettings(revision="4711abcd"), out_dir=tmp_path):
        pass
    assert 'revision="4711abcd"' in (tmp_path / "metrics.prom").read_text()


def test_of_several_processes_the_first_one_exports(tmp_path: Path) -> None:
    with observe("train", TelemetrySettings(rank=1, port=0, pushgateway="127.0.0.1:1"), out_dir=tmp_path) as telemetry:
        assert telemetry is SILENT
    assert list(tmp_path.iterdir()) == []


def test_the_file_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "collector"
    folder.mkdir()
    for settings in (TelemetrySettings(textfile=folder), TelemetrySettings(textfile=tmp_path / "one.prom"), TelemetrySettings()):
        with observe("split", settings, out_dir=out):  # a folder that the step did not come to make
            pass
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.prom")} == {"collector/cwbass_split.prom", "one.prom"}


def test_variables_are_settings_and_flags_win() -> None:
    variables = {
        "CWBASS_METRICS_PORT": "9095",
        "CWBASS_METRICS_ADDRESS": "::",
        "CWBASS_METRICS_LINGER": "2.5",
        "CWBASS_METRICS_TEXTFILE": "/x/y.prom",
        "CWBASS_PUSHGATEWAY": "http://gateway:9091",
        "CWBASS_PUSHGATEWAY_TIMEOUT": "1",
        "CWBASS_PIPELINE": "voc",
        "CWBASS_RUN_ID": "run-7",
        "CWBASS_REVISION": " ",
        "RANK": "3",
        "OTHER": "x",
    }
    found = TelemetrySettings.from_environment(variables, port=0, linger=None, pushgateway="other:9091")
    assert found == TelemetrySettings(
        0, "::", 2.5, Path("/x/y.prom"), "other:9091", 1.0, pipeline="voc", run_id="run-7", revision="", rank=3
    )
    assert TelemetrySettings.from_environment({}) == TelemetrySettings()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CWBASS_METRICS_PORT", "http"),
        ("CWBASS_METRICS_PORT", "65536"),
        ("CWBASS_METRICS_LINGER", "-1"),
        ("CWBASS_PUSHGATEWAY_TIMEOUT", "inf"),
        ("CWBASS_PUSHGATEWAY_TIMEOUT", "nan"),
    ],
)
def test_a_variable_that_is_no_such_number_is_named(variable: str, text: str) -> None:
    with pytest.raises(ParamsError, match=f"{variable} is '{text}'"):
        TelemetrySettings.from_environment({variable: text})


def test_the_last_success_survives_a_failure_in_a_real_pushgateway(tmp_path: Path) -> None:
    with pushgateway(tmp_path) as gateway:

        def run(run_id: str, error: Exception | None = None) -> str:
            """What the gateway holds after a run."""
            settings = TelemetrySettings(pushgateway=gateway.url, pipeline="voc", run_id=run_id)
            try:
                with observe("register", settings) as telemetry:
                    telemetry.describe_run(data_version="a", params="b", model="c")
                    telemetry.step_done()  # true only while training runs: not pushed
                    if error is not None:
                        raise error
            except GateError:
                pass
            return gateway.get("/metrics")

        group = frozenset({("job", "cwbass"), ("pipeline", "voc"), ("stage", "register"), ("instance", "")})
        success = "cwbass_stage_last_success_timestamp_seconds", group
        first = run("one")
        assert outcomes(first) == {"success"}
        assert "cwbass_train_steps_total" not in first
        second = run("two", GateError("too bad"))
        assert outcomes(second) == {"refused"}  # and not success beside it
        assert read(second)[success] == read(first)[success]
        third = run("three")
        assert outcomes(third) == {"success"}
        assert read(third)[success] > read(first)[success]
        # Three runs, one group, one run in it.
        assert {dict(labels)["run_id"] for name, labels in read(third) if name == "cwbass_run_info"} == {"three"}
        assert [labels for name, labels in read(third) if name == "push_time_seconds"] == [group]


def test_a_client_library_that_cannot_work_stops_nothing(tmp_path: Path) -> None:
    code = (
        "from cwbass.telemetry import TelemetrySettings, observe\n"
        "with observe('train', TelemetrySettings()) as telemetry: telemetry.step_done(); print('trained')"
    )
    environment = clean_environment() | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert "none can be kept, the step goes on without (FileNotFoundError" in done.stderr
