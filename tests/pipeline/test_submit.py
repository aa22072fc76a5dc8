"""`python -m pipeline submit` against a real HTTP server, through ``main``, with its exit codes and its one line."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import run
from fake_kfp import RUN_ID, TOKEN, KfpApi, kfp_api

pytest.importorskip("kfp", reason="needs kfp: pip install -c constraints.txt -e '.[pipeline]'")

from pipeline.__main__ import main

TOP = Path(__file__).parents[2]
GOLDEN = TOP / "tests/pipeline/pipeline.golden.yaml"


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The error, which is one line, and says nothing of the token."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert TOKEN not in self.err + self.out
        return lines[0]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    for name in ("HOST", "NAMESPACE", "TOKEN", "TOKEN_FILE", "CREDENTIALS"):
        monkeypatch.delenv(f"CWBASS_KFP_{name}", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(TOP)
    with kfp_api() as server:
        yield server


def submit(*arguments: object) -> Done:
    """With parameters where the arguments change them, else with a compiled package, for compiling takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        given = ("--params", "configs/smoke.yaml") if "--set" in arguments else ("--package", GOLDEN)
        given = () if "--package" in arguments else given
        return Done(*run(main, "pipeline", "submit", *given, *arguments))


def test_a_run_is_posted_with_both_documents_its_parameters_and_the_service_account(api: KfpApi) -> None:
    done = submit(
        *("--host", api.url, "--token", TOKEN, "--experiment", "segmentation", "--run-name", "first"),
        *("--set", "train.steps=40", "--data", "s3://bucket/shapes", "--argument", "accelerator_count=2"),
        *("--argument", "node_selector={pool: gpu}"),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"run_id": RUN_ID, "url": f"{api.url}/#/runs/details/{RUN_ID}", "state": "SUBMITTED"}
    (run,) = api.runs
    assert (run["display_name"], run["experiment_id"], run["service_account"]) == ("first", "exp-1", "cwbass-runner")
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "cwbass-train-eval-register"
    assert "exec-train" in run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    parameters = run["runtime_config"]["parameters"]
    assert parameters["data"] == "s3://bucket/shapes"
    assert parameters["accelerator_count"] == "2"  # text: of a number the back end would make nothing
    assert parameters["node_selector"] == {"pool": "gpu"}
    assert "steps: 40" in parameters["train_params"]
    assert set(api.authorizations) == {f"Bearer {TOKEN}"}


def test_a_dry_run_prints_the_request_and_sends_nothing(api: KfpApi) -> None:
    done = submit("--host", api.url, "--token", TOKEN, "--run-name", "first", "--dry-run")
    assert done.code == 0, done.err
    request = json.loads(done.out)
    assert (request["display_name"], request["experiment"]) == ("first", "Default")
    assert TOKEN not in done.out + done.err
    assert api.requests == []


def test_the_seconds_of_a_toleration_are_a_number(api: KfpApi) -> None:
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
    done = submit("--dry-run", "--argument", f"tolerations={json.dumps([toleration])}")
    assert done.code == 0, done.err
    assert json.loads(done.out)["runtime_config"]["parameters"]["tolerations"] == [toleration]


def test_a_compiled_package_is_sent_as_it_is(api: KfpApi, tmp_path: Path) -> None:
    package = tmp_path / "p.yaml"
    text = (TOP / "tests/pipeline/pipeline.golden.yaml").read_text()
    package.write_text(text.replace("ghcr.io/cwbass/cwbass:", "registry.example.com/ours:"))
    assert submit("--host", api.url, "--token", TOKEN, "--package", package).code == 0
    assert "registry.example.com/ours:" in json.dumps(api.runs[0]["pipeline_spec"])
    assert not api.runs[0]["runtime_config"].get("parameters")
    wanted = ("--data", "s3://bucket/v2", "--argument", "cpu=8")
    assert submit("--host", api.url, "--token", TOKEN, "--package", package, *wanted).code == 0
    assert api.runs[1]["runtime_config"]["parameters"] == {"data": "s3://bucket/v2", "cpu": "8"}


def test_a_compiled_package_takes_no_other_parameters(api: KfpApi) -> None:
    package = TOP / "tests/pipeline/pipeline.golden.yaml"
    done = submit("--host", api.url, "--package", package, "--set", "train.steps=5")
    assert done.code == 3
    assert "pipeline.golden.yaml was compiled with its parameters. Leave --params and --set out" in done.line
    assert api.runs == []


def test_the_token_is_read_from_a_file_at_each_request(api: KfpApi, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    api.tokens = {TOKEN, "renewed"}
    api.states = ["RUNNING", "SUCCEEDED"]
    done = submit("--host", api.url, "--token-file", path, "--wait", "--poll", 0.01)
    assert (done.code, json.loads(done.out)["state"]) == (0, "SUCCEEDED")
    assert api.requests[-2:] == [f"GET /pipeline/apis/v2beta1/runs/{RUN_ID}"] * 2
    assert set(api.authorizations) == {f"Bearer {TOKEN}"}
    path.write_text("renewed")
    from pipeline.service import Service, connect, get_run

    client = connect(Service(api.url, token_file=str(path)))
    path.write_text(TOKEN)
    get_run(client, RUN_ID, seconds=5)
    assert api.authorizations[-1] == f"Bearer {TOKEN}"


def test_a_credentials_file_gives_what_options_do_not(api: KfpApi, tmp_path: Path) -> None:
    path = tmp_path / "kfp.yaml"
    path.write_text(f"host: {api.url}\ntoken: {TOKEN}\nnamespace: team\ncookies: session=1\n")
    path.chmod(0o600)
    done = submit("--credentials", path)
    assert done.code == 0, done.err
    assert api.cookies[0] == "session=1"
    assert "can be read by others" not in done.err
    path.chmod(0o640)
    assert "can be read by others" in submit("--credentials", path).err


@pytest.mark.parametrize("of_file", ["token: old", "token_file: {folder}/old"])
@pytest.mark.parametrize("option", ["--token", "--token-file"])
def test_a_token_that_is_given_goes_before_that_of_the_environment_and_of_the_credentials_file(
    api: KfpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, of_file: str
) -> None:
    for name, text in {"old": "old", "new": TOKEN, "kfp.yaml": of_file.format(folder=tmp_path)}.items():
        (tmp_path / name).write_text(text)
    given = (option, TOKEN if option == "--token" else tmp_path / "new")
    assert submit("--host", api.url, *given, "--credentials", tmp_path / "kfp.yaml").code == 0
    monkeypatch.setenv("CWBASS_KFP_TOKEN", "old")
    monkeypatch.setenv("CWBASS_KFP_TOKEN_FILE", str(tmp_path / "old"))
    assert submit("--host", api.url, *given).code == 0
    assert set(api.authorizations) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("content", [f"token: [{TOKEN}", f"- {TOKEN}", f"token: {{a: {TOKEN}}}", f"tokn: {TOKEN}"])
def test_a_wrong_credentials_file_is_exit_code_3_and_is_not_repeated(api: KfpApi, tmp_path: Path, content: str) -> None:
    path = tmp_path / "kfp.yaml"
    path.write_text(content)
    done = submit("--credentials", path, "--host", api.url)
    assert done.code == 3
    assert "kfp.yaml" in done.line and "token_file" in done.line


def test_a_wrong_token_is_exit_code_3(api: KfpApi) -> None:
    done = submit("--host", api.url, "--token", "expired")
    assert done.code == 3
    assert "does not accept the token (401)" in done.line and api.url in done.line
    assert "expired" not in done.line


def test_no_token_where_one_is_asked_for_is_exit_code_3(api: KfpApi) -> None:
    done = submit("--host", api.url)
    assert done.code == 3
    assert "asks for a token (401)" in done.line


def test_an_unknown_experiment_is_exit_code_3_and_names_those_there_are(api: KfpApi) -> None:
    done = submit("--host", api.url, "--token", TOKEN, "--experiment", "segmentaton")
    assert done.code == 3
    assert "no experiment 'segmentaton'; there are: Default, segmentation" in done.line
    assert api.runs == []
    done = submit("--host", api.url, "--token", TOKEN, "--experiment", "segmentaton", "--create-experiment")
    assert done.code == 0
    assert api.runs[0]["experiment_id"] == api.experiments["segmentaton"]


def test_a_host_that_is_something_else_is_exit_code_3(api: KfpApi) -> None:
    done = submit("--host", api.url.removesuffix("/pipeline"), "--token", TOKEN)
    assert done.code == 3
    assert "has no /apis/v2beta1 (404)" in done.line


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>log in</html>"), "answers with a page"),
        ((302, {"Location": "/dex/auth"}, b""), "another page (302)"),
    ],
)
def test_a_login_page_in_place_of_an_answer_is_exit_code_3(
    api: KfpApi, answer: tuple[int, dict[str, str], bytes], words: str
) -> None:
    api.answers = [answer]
    done = submit("--host", api.url, "--token", TOKEN)
    assert done.code == 3
    assert words in done.line


@pytest.mark.parametrize("host", ["kubeflow.example.com", "ftp://kubeflow", "https://"])
def test_a_host_that_is_no_address_is_exit_code_3(api: KfpApi, host: str) -> None:
    done = submit("--host", host, "--token", TOKEN)
    assert done.code == 3
    assert "give an address such as https://" in done.line


def test_a_password_in_the_host_is_not_repeated(api: KfpApi) -> None:
    done = submit("--host", f"https://me:{TOKEN}@kubeflow.example.com")
    assert done.code == 3
    assert "kubeflow.example.com" in done.line


def test_no_host_is_exit_code_3(api: KfpApi) -> None:
    assert "no host is given" in submit("--token", TOKEN).line


def test_a_host_that_is_not_there_is_exit_code_6(api: KfpApi) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = submit("--host", host, "--token", TOKEN)
    assert done.code == 6
    assert f"{host} cannot be reached" in done.line and "refused" in done.line


BY_USER = "Basic bWU6YSBi"  # me:a b


def test_a_proxy_of_the_environment_is_gone_through_with_its_password(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:a%20b@127.0.0.1:{api.server_port}")
    done = submit("--host", "http://kubeflow.invalid/pipeline", "--token", TOKEN)
    assert done.code == 0, done.err
    assert json.loads(done.out)["url"] == f"http://kubeflow.invalid/pipeline/#/runs/details/{RUN_ID}"
    assert api.proxied == [("kubeflow.invalid", BY_USER)] * len(api.requests)
    monkeypatch.setenv("NO_PROXY", "kubeflow.invalid")
    assert "kubeflow.invalid/pipeline cannot be reached" in submit("--host", "http://kubeflow.invalid/pipeline").line
    assert len(api.proxied) == len(api.requests) == 2


def test_for_https_a_proxy_is_asked_for_a_tunnel(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"me:a%20b@127.0.0.1:{api.server_port}")
    done = submit("--host", "https://kubeflow.invalid/pipeline", "--token", TOKEN)
    assert done.code == 6
    assert "cannot be reached" in done.line and "502" in done.line
    assert set(api.proxied) == {("kubeflow.invalid:443", BY_USER)}


@pytest.mark.parametrize("proxy", [f"socks5://me:{TOKEN}@127.0.0.1:1", f"http://me:{TOKEN}@127.0.0.1:port", "http://"])
def test_a_proxy_that_is_none_is_exit_code_3_and_is_not_repeated(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    done = submit("--host", "https://kubeflow.invalid/pipeline")
    assert done.code == 3
    assert "HTTPS_PROXY is no address of an HTTP proxy" in done.line


def test_a_host_that_hangs_is_exit_code_6_within_the_timeout(api: KfpApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = submit("--host", host, "--token", TOKEN, "--timeout", 0.2)
    assert done.code == 6
    assert "did not answer in 0.2 s" in done.line


def test_a_slow_host_is_waited_for(api: KfpApi) -> None:
    api.delay = 0.3
    assert submit("--host", api.url, "--token", TOKEN, "--timeout", 5).code == 0


def test_a_run_that_was_posted_without_an_answer_may_have_started(api: KfpApi) -> None:
    import kfp_server_api

    from cwbass.errors import ServiceError
    from pipeline.service import Service, connect, create_run

    api.delay = 1.0
    client = connect(Service(api.url, token=TOKEN))
    with pytest.raises(ServiceError, match="may have started"):
        create_run(client, kfp_server_api.V2beta1Run(display_name="x"), seconds=0.2)
    assert api.requests == ["POST /pipeline/apis/v2beta1/runs"]  # and not sent a second time


@pytest.mark.parametrize("status", [408, 429, 503])
def test_a_failing_service_is_exit_code_6(api: KfpApi, status: int) -> None:
    api.answers = [(status, {"Content-Type": "application/json"}, b'{"message": "database is down"}')]
    done = submit("--host", api.url, "--token", TOKEN)
    assert done.code == 6
    assert f"failed ({status}): database is down." in done.line


def test_a_refused_request_is_exit_code_3_with_the_service_s_reason(api: KfpApi) -> None:
    api.answers = [(400, {"Content-Type": "application/json"}, b'{"message": "Invalid input error"}')]
    done = submit("--host", api.url, "--token", TOKEN)
    assert done.code == 3
    assert "(400): Invalid input error." in done.line


def test_waiting_for_a_failed_run_is_exit_code_1_and_names_the_step(api: KfpApi) -> None:
    api.states, api.failed_tasks = ["PENDING", "RUNNING", "FAILED"], ["warmup"]
    done = submit("--host", api.url, "--token", TOKEN, "--wait", "--poll", 0.01)
    assert done.code == 1
    assert f"ended FAILED in warmup. See {api.url}/#/runs/details/{RUN_ID}" in done.line


def test_waiting_for_a_run_whose_model_is_refused_is_exit_code_5(api: KfpApi) -> None:
    api.states, api.failed_tasks = ["FAILED"], ["verdict", "root"]
    done = submit("--host", api.url, "--token", TOKEN, "--wait", "--poll", 0.01)
    assert done.code == 5
    assert "failed in verdict, as it does where the model is refused" in done.line
    assert "If it was registered, verdict itself could not run" in done.line  # a pod without its image looks the same from here


def test_waiting_outlives_a_restart_of_the_service(api: KfpApi) -> None:
    api.states = ["RUNNING", "SUCCEEDED"]
    from pipeline.service import Service
    from pipeline.submit import wait

    api.answers = [(503, {}, b"")] * 3
    assert wait(RUN_ID, Service(api.url, token=TOKEN), url="u", seconds=5, poll=0.01) == "SUCCEEDED"
    assert len(api.requests) == 5


def test_an_answer_between_failures_is_patience_anew(api: KfpApi) -> None:
    from pipeline.service import Service
    from pipeline.submit import wait

    failures: list[tuple[int, dict[str, str], bytes]] = [(503, {}, b"")] * 9
    running = json.dumps({"run_id": RUN_ID, "state": "RUNNING"}).encode()
    api.answers = [*failures, (200, {"Content-Type": "application/json"}, running), *failures]
    assert wait(RUN_ID, Service(api.url, token=TOKEN), url="u", seconds=5, poll=0.01) == "SUCCEEDED"


def test_waiting_gives_up_in_the_end_and_says_that_the_run_goes_on(api: KfpApi) -> None:
    from cwbass.errors import ServiceError
    from pipeline.service import Service
    from pipeline.submit import wait

    api.answers = [(503, {}, b"")] * 20
    with pytest.raises(ServiceError, match="The run goes on: u"):
        wait(RUN_ID, Service(api.url, token=TOKEN), url="u", seconds=5, poll=0.01)
    assert len(api.requests) == 10


def test_waiting_for_a_run_that_was_deleted_is_exit_code_3_and_names_it(api: KfpApi) -> None:
    gone = {"code": 5, "message": f"Run {RUN_ID} not found", "details": []}
    page = f"{api.url}/#/runs/details/{RUN_ID}"
    api.states = ["RUNNING"]
    from cwbass.errors import ParamsError
    from pipeline.service import Service
    from pipeline.submit import wait

    api.answers = [(404, {"Content-Type": "application/json"}, json.dumps(gone).encode())]
    with pytest.raises(ParamsError, match=rf"\(404\): Run {RUN_ID} not found\. The run may go on: {page}"):
        wait(RUN_ID, Service(api.url, token=TOKEN), url=page, seconds=5, poll=0.01)


def test_waiting_with_a_token_that_expires_names_the_run(api: KfpApi) -> None:
    from cwbass.errors import ParamsError
    from pipeline.service import Service
    from pipeline.submit import wait

    api.tokens = set()
    with pytest.raises(ParamsError, match=r"does not accept the token \(401\)\. .* The run may go on: u$"):
        wait(RUN_ID, Service(api.url, token=TOKEN), url="u", seconds=5, poll=0.01)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("accelerator_cout=1", "did you mean 'accelerator_count'"),
        ("cpu", "NAME=VALUE"),
        ("node_selector=[gpu]", "a mapping"),
        ("tolerations=gpu", "a list"),
        # The back end's driver would fail on these, when the split is done.
        ("memory=16GB", "memory is '16GB'; it takes a quantity of Kubernetes such as 4, 500m or 16Gi"),
        ("cpu=four", "a quantity"),
        ("accelerator_count=0.5", "a whole number"),
        ("accelerator_count=0", "to train on CPUs, write accelerator_type="),  # evaluation would ask for one all the same
        ("node_selector={nvidia.com/gpu.present: true}", 'true is no text; write nvidia.com/gpu.present: "true"'),
        ("tolerations=[{key: gpu, value: 1}]", '1 is no text; write value: "1"'),
        ("node_selector={since: 2026-01-31}", '2026-01-31 is no text; write since: "2026-01-31"'),
        ("tolerations=[gpu]", "a list such as"),
    ],
)
def test_a_wrong_argument_is_exit_code_3(api: KfpApi, argument: str, words: str) -> None:
    done = submit("--host", api.url, "--token", TOKEN, "--argument", argument)
    assert done.code == 3
    assert words in done.line
    assert api.requests == []


def test_a_typo_in_the_parameters_is_found_before_anything_is_sent(api: KfpApi) -> None:
    done = submit("--host", api.url, "--token", TOKEN, "--set", "train.stpes=3")
    assert (done.code, "train.stpes: unknown key; did you mean 'steps'?" in done.line) == (3, True)
    assert api.requests == []


def test_a_package_that_is_no_pipeline_is_exit_code_3(api: KfpApi) -> None:
    assert "no compiled pipeline" in submit("--host", api.url, "--package", "dvc.yaml").line


def doctor(*arguments: object) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        return Done(*run(main, "pipeline", "doctor", *arguments))


def test_doctor_says_where_kubeflow_is_and_what_may_be_seen_there_and_sends_nothing(api: KfpApi) -> None:
    done = doctor("--host", f"{api.url}/", "--token", TOKEN, "--namespace", "team")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"host": api.url, "namespace": "team", "experiments": ["Default", "segmentation"]}
    assert api.requests == ["GET /pipeline/apis/v2beta1/experiments"]


def test_doctor_tells_a_token_that_is_not_taken_from_a_host_that_is_not_there(
    api: KfpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWBASS_KFP_HOST", api.url)
    assert (done := doctor("--token", "stale")).code == 3
    assert "does not accept the token (401)" in done.line
    monkeypatch.setenv("CWBASS_KFP_HOST", "http://127.0.0.1:9")
    assert (done := doctor("--token", TOKEN)).code == 6
    assert "cannot be reached" in done.line
