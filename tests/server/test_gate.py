"""What stands before the routes: keys, CORS, TLS, names of requests, templates of requests, and nothing else that
listens."""

from __future__ import annotations

import http.client
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from mini_infer.cli import main
from mini_infer.config import ConfigError, EngineConfig
from mini_infer.server.launch import ServeOptions
from mini_infer.server.limits import MAX_ID_CHARS
from tests.server.running import Running

HI = [{"role": "user", "content": "hello"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ reasoning_effort or '' }}"
BEARER = {"Authorization": "Bearer second key"}


@pytest.fixture(scope="module")
def guarded(small_model: Path) -> Iterator[Running]:
    with Running(small_model, "--dry-run", "--dry-gpu", "free", "--api-key", "first", "--api-key", "second key",
                 "--allowed-origins", '["https://page.example"]', "--allow-credentials", "--enable-request-id-headers",
                 "--chat-template", TEMPLATE, "--trust-request-chat-template", "--max-logprobs", "3",
                 "--max-body-size", "64KiB", "--root-path", "/llm") as running:
        yield running


@pytest.fixture
def client(guarded: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, headers=BEARER, timeout=20) as client:
        yield client


class TestKeys:
    @pytest.mark.parametrize("headers", [
        {}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first"},
        {"Authorization": "first"}, {"Authorization": "Bearer firs"}, {"Authorization": "Bearer first1"},
        {"X-API-Key": "wrong"}, {"Authorization": "Bearer \xe9"}], ids=str)
    @pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/version", "/openapi.json", "/nothing", "//health",
                                      "/llm/v1/models"])
    def test_closed_without_one(self, guarded: Running, headers: dict[str, str], path: str) -> None:
        answer = httpx.get(guarded.url + path, headers={k: v.encode("latin-1") for k, v in headers.items()})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
        assert "first" not in error["message"]

    @pytest.mark.parametrize("headers", [{"Authorization": "Bearer first"}, {"authorization": "bearer  first"},
                                         {"X-API-Key": "second key"}, BEARER], ids=str)
    def test_open_with_one(self, guarded: Running, headers: dict[str, str]) -> None:
        for path in ("/v1/models", "/llm/v1/models"):
            assert httpx.get(guarded.url + path, headers=headers).status_code == 200

    @pytest.mark.parametrize("path", ["/web/../v1/models", "/web/%2e%2e/v1/models", "/health/../v1/models",
                                      "/health%2f..%2fv1/models", "/llm/web/../v1/models"])
    def test_no_way_around(self, guarded: Running, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)
        connection.request("GET", path)  # as it is: other clients would tidy it up
        response = connection.getresponse()
        assert response.status in (401, 404) and b'"object"' not in response.read()

    def test_health_and_the_page_are_open(self, guarded: Running) -> None:
        for path in ("/health", "/healthz", "/llm/health", "/"):
            assert httpx.get(guarded.url + path).status_code == 200

    def test_clients(self, guarded: Running) -> None:
        for key in ("first", "wrong"):
            ours = openai.OpenAI(base_url=guarded.url + "/v1", api_key=key, max_retries=0)
            theirs = anthropic.Anthropic(base_url=guarded.url, api_key=key, max_retries=0)
            if key == "first":
                assert list(ours.models.list())
                assert theirs.messages.create(model="dry", max_tokens=1, messages=HI).content  # type: ignore
            else:
                with pytest.raises(openai.AuthenticationError):
                    ours.models.list()
                with pytest.raises(anthropic.AuthenticationError):
                    theirs.messages.create(model="dry", max_tokens=1, messages=HI)  # type: ignore

    def test_keys_are_not_in_the_log_or_a_repr(self, guarded: Running) -> None:
        assert "first" not in "".join(guarded.log)
        assert "hidden" not in repr(ServeOptions(EngineConfig(), api_key=("hidden",)))

    def test_from_the_environment(self, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options: list[ServeOptions] = []
        monkeypatch.setenv("MINI_INFER_API_KEY", "from env")
        monkeypatch.setattr("mini_infer.server.launch.serve", lambda given, start: options.append(given) or 0)
        main(["serve", str(small_model)])
        main(["serve", str(small_model), "--api-key", "given"])
        assert [given.api_key for given in options] == [("from env",), ("given",)]


class TestCors:
    def preflight(self, url: str, origin: str) -> httpx.Response:
        return httpx.options(url + "/v1/chat/completions", headers={
            "Origin": origin, "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"})

    def test_for_the_origins_that_are_named(self, guarded: Running, client: httpx.Client) -> None:
        answer = self.preflight(guarded.url, "https://page.example")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert self.preflight(guarded.url, "https://evil.example").status_code == 400
        for status, headers in ((200, BEARER), (401, {"Authorization": "none"})):  # errors must be readable, too
            answer = client.get("/v1/models", headers={**headers, "Origin": "https://page.example"})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://page.example"

    def test_off_unless_asked_for(self, server: Running) -> None:
        answer = httpx.get(server.url + "/v1/models", headers={"Origin": "https://page.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert self.preflight(server.url, "https://page.example").status_code == 405


class TestRequestIds:
    def test_headers(self, client: httpx.Client, server: Running) -> None:
        body = {"prompt": "a", "max_tokens": 1}
        for _ in range(2):  # a client may use one again
            answer = client.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"})
            assert answer.headers["x-request-id"] == "mine" and answer.json()["id"] == "cmpl-mine"
        assert len(client.get("/v1/models").headers["x-request-id"]) == 32
        assert client.get("/nothing", headers={"X-Request-Id": "lost"}).headers["x-request-id"] == "lost"
        long = client.get("/health", headers={"X-Request-Id": "x" * (MAX_ID_CHARS + 1)}).headers["x-request-id"]
        assert len(long) == 32
        assert "x-request-id" not in httpx.get(server.url + "/health", headers={"X-Request-Id": "mine"}).headers

    def test_two_at_the_same_time(self, client: httpx.Client) -> None:
        body = {"messages": HI, "max_tokens": 30, "request_id": "same", "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as one, \
                client.stream("POST", "/v1/chat/completions", json=body) as two:
            texts = [answer.read().decode() for answer in (one, two)]
        assert all(text.endswith("data: [DONE]\n\n") and "chatcmpl-same" in text for text in texts)


class TestTemplates:
    def tokens(self, client: httpx.Client, **options: Any) -> Any:
        return client.post("/tokenize", json={"messages": HI, **options}).json()

    def test_the_one_of_the_command_line(self, client: httpx.Client) -> None:
        tokens = self.tokens(client)["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "user: hello\n"
        tokens = self.tokens(client, reasoning_effort="low")["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "user: hello\nlow"

    def test_one_in_a_request(self, client: httpx.Client) -> None:
        tokens = self.tokens(client, chat_template="<{{ messages[0].content }}{{ x }}>",
                             chat_template_kwargs={"x": 5})["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "<hello5>"

    @pytest.mark.parametrize("template", [
        "{% for", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}{{ ().__class__.x.y }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ '%999999999d'|format(1) }}{{ '%999999999d'|format(1) }}", "{{ 'x' * 100000 }}" * 200, "x" * 100_001])
    def test_hostile_ones(self, client: httpx.Client, template: str) -> None:
        body = {"messages": HI, "max_tokens": 1, "chat_template": template}
        if len(template) < 60_000:
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert client.get("/health").status_code == 200


def test_flags_reach_requests(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a", "logprobs": 4})
    assert answer.status_code == 400 and "at most 3" in answer.json()["error"]["message"]
    assert client.post("/v1/completions", json={"prompt": "a" * 70_000}).status_code == 413


def test_errors_name_what_the_client_sent(client: httpx.Client) -> None:
    """Of limits and templates that this server has, unlike the others of these tests."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for body, param in (({"logprobs": True, "top_logprobs": 4}, "top_logprobs"),
                        ({"messages": [*HI, {"role": "assistant", "tool_calls": [call]}]}, "messages[1].tool_calls")):
        error = client.post("/v1/chat/completions", json={"messages": HI, **body}).json()["error"]
        assert error["param"] == param and error["message"].startswith(param)
    for system in ({}, {"system": "be kind"}):
        use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        asked = {"messages": [*HI, {"role": "assistant", "content": [use]}], **system}
        for path, more in (("/v1/messages", {"max_tokens": 5}), ("/v1/messages/count_tokens", {})):
            error = client.post(path, json={**asked, **more}).json()["error"]
            assert error["message"].startswith("messages[1].content: the chat template of this model does not show")


def test_the_start_has_its_own_lines_alone(guarded: Running) -> None:
    assert all(line.startswith("mini-infer") for line in guarded.log)


def test_the_schema_tells_of_keys(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["security"] == [{"bearer": []}, {"header": []}]
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "header"}
    assert [path for path, routes in schema["paths"].items() if routes.get("get", {}).get("security") == []] == [
        "/health", "/healthz"]


@pytest.mark.parametrize("options, says", [
    ({"api_key": ("",)}, "api_key"), ({"api_key": ("a\nb",)}, "api_key"), ({"max_logprobs": 21}, "max_logprobs"),
    ({"max_body_size": 5}, "max_body_size"), ({"max_buffered_size": 2**20}, "max_buffered_size"),
    ({"root_path": "llm"}, "root_path"),
    ({"ssl_keyfile": "a"}, "ssl_certfile"), ({"ssl_certfile": "/nowhere"}, "ssl_certfile"),
    ({"ssl_cert_reqs": 2}, "ssl_ca_certs"), ({"ssl_cert_reqs": 5}, "ssl_cert_reqs"),
    ({"ssl_certfile": __file__}, "ssl_certfile")], ids=str)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ServeOptions(EngineConfig(), **options)


@pytest.mark.parametrize("template", ["/nowhere/template.jinja", "{% for", "a\n{{"])
def test_a_template_that_cannot_be(small_model: Path, capsys: pytest.CaptureFixture[str], template: str) -> None:
    assert main(["serve", str(small_model), "--dry-run", "--port", "0", "--chat-template", template]) == 2
    assert "chat_template" in capsys.readouterr().err


def test_https_with_a_client_s_certificate(small_model: Path, tmp_path: Path) -> None:
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=cert)
    known = ssl.create_default_context(cafile=cert)
    known.load_cert_chain(cert, key)
    with Running(small_model, "--dry-run", "--dry-gpu", "free", "--ssl-certfile", cert, "--ssl-keyfile", key,
                 "--ssl-ca-certs", cert, "--ssl-cert-reqs", "2") as server:
        url = f"https://127.0.0.1:{server.port}"
        assert httpx.get(url + "/health", verify=known).status_code == 200
        body = {"prompt": "a", "max_tokens": 5, "stream": True}
        assert httpx.post(url + "/v1/completions", json=body, verify=known).text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.TransportError):
            httpx.get(url + "/health", verify=trusting)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/health")


def test_nothing_but_the_api_listens(server: Running) -> None:
    """Neither the front nor the engine has another listening socket of any kind, and this one is on 127.0.0.1."""
    def sockets(pid: int) -> set[str]:
        links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        return set(re.findall(r"socket:\[(\d+)\]", " ".join(links)))

    ours = sockets(server.process.pid) | sockets(server.engine_pid)
    listening = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in ours:
                listening.append(fields[1])
    assert listening == [f"0100007F:{server.port:04X}"]
    for line in Path(f"/proc/{server.process.pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        assert not (fields[6] in ours and int(fields[3], 16) & 0x10000)  # __SO_ACCEPTCON
    for line in Path(f"/proc/{server.process.pid}/net/udp").read_text().splitlines()[1:]:
        assert line.split()[9] not in ours
