"""`sidecar run` and its configuration, while streams run: a ConfigMap that changes, SIGHUP, and no file at all."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.app_support import request
from tests.kubelet import ON_FREE_PORTS, ConfigMap, Model, asked_at, client_at, in_a_pod, model, sidecar_run

GET = request("GET", "/v1/chat/completions")


def before(upstream: Model, more: str = "") -> str:
    return f"{ON_FREE_PORTS}upstreams: {{llm: {{url: 'http://{upstream.address}', proxy: none}}}}\n{more}"


@in_a_pod
async def test_a_config_map_changes_while_streams_run(tmp_path: Path) -> None:
    async with model(300, "old") as old, model(5, "new") as new:
        config_map = ConfigMap(tmp_path / "config", before(old))
        async with sidecar_run("--config", str(config_map.file)) as running, client_at(running.address) as client:
            await client.send(GET)
            assert (await client.head()).status == 200
            config_map.update(before(new, "max_header: 32KiB\nworkers_: 2\n"))
            await running.says(rf"{config_map.file}:\d+: workers_: unknown key")
            assert (await asked_at(running.address, GET)).body == old.sent[1]
            config_map.update(before(new, "max_header: 32KiB\nlogs: {level: debug}\n"))
            await running.says(r"configuration reloaded: upstreams.llm changed \(url\); max_header changed")
            await running.says("logs: stays as it was until a restart")
            assert (await asked_at(running.address, GET)).body == new.sent[0]
            parts = []
            while part := await client.chunk():
                parts.append(part)
            assert (part, b"".join(parts)) == (b"", old.sent[0])
            running.process.send_signal(signal.SIGHUP)
            await running.says("configuration reloaded: nothing changed")
            running.process.terminate()
            assert await running.ended() == 0


@in_a_pod
async def test_the_command_line_goes_before_the_file_again(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    async with model(5) as upstream:
        file.write_text(before(upstream))
        async with sidecar_run("--config", str(file), "--format", "typed") as running:
            file.write_text(before(upstream, "max_header: 32KiB\n"))
            running.process.send_signal(signal.SIGHUP)
            await running.says("configuration reloaded: max_header changed")
            assert (await asked_at(running.address, GET)).header("X-Stream-Format") == "typed"


@in_a_pod
async def test_without_a_file_a_hang_up_reads_secrets_again() -> None:
    async with model(5) as upstream:
        url = f"http://{upstream.address}"
        async with sidecar_run("--upstream", url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0") as running:
            running.process.send_signal(signal.SIGHUP)
            await running.says("there is no configuration file; secrets and certificates are read again")
            await running.says("configuration reloaded: nothing changed")
            assert (await asked_at(running.address, GET)).is_whole
            running.process.terminate()
            assert await running.ended() == 0
