"""The plan: who gets which port and GPU, and which command runs it."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from llava_core.config import WorkerTimings
from llava_core.errors import BadRequest
from serve.launcher.config import LaunchConfig, ModelSpec
from serve.launcher.gpus import device_environment, hand_out, visible_gpus
from serve.launcher.plan import Machine, Plan, make_plan, reachable
from serve.launcher.ports import choose_port, is_free_on, taken_sentence

A, B, C = ModelSpec("org/a"), ModelSpec("org/b"), ModelSpec("org/c")


def plan(config: LaunchConfig, *, taken: tuple[int, ...] = (), gpus: tuple[str, ...] = ()) -> Plan:
    machine = Machine(gpus=gpus, cores=8, environment={}, is_free=lambda host, port: port not in taken)
    return make_plan(config, machine, logs=Path("logs"))


def flags(argv: tuple[str, ...]) -> Mapping[str, str]:
    """`--option value` pairs; an option without a value counts as its own."""
    words = argv[3:]
    return {
        word: following if not following.startswith("--") else word
        for word, following in zip(words, (*words[1:], "--"), strict=True)
        if word.startswith("--")
    }


def test_the_usual_ports_are_taken_when_free_and_the_next_ones_when_not() -> None:
    usual = plan(LaunchConfig(models=(A, B)))
    assert [flags(child.argv)["--port"] for child in usual.children] == ["21001", "21002", "21003", "7860"]
    assert usual.notes == ()
    moved = plan(LaunchConfig(models=(A, B)), taken=(21001, 21003, 7860))
    assert [flags(child.argv)["--port"] for child in moved.children] == ["21002", "21004", "21005", "7861"]
    assert "port 7860 is taken, so the page listens on 7861" in moved.notes


def test_a_port_named_for_one_process_is_not_chosen_for_another() -> None:
    made = plan(LaunchConfig(models=(A,), port=21001, worker_port=21003))
    assert [flags(child.argv)["--port"] for child in made.children] == ["21002", "21003", "21001"]


def test_a_public_link_to_a_page_that_asks_nobody_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"whoever reaches the public link could.*--login.*--insecure"):
        plan(LaunchConfig(models=(A,), share=True))
    for wanted in (
        LaunchConfig(models=(A,), share=True, login=True),
        LaunchConfig(models=(A,), share=True, insecure=True),
    ):
        assert "--share" in plan(wanted).children[-1].argv


def test_the_same_port_named_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match="named twice"):
        plan(LaunchConfig(models=(A,), port=8000, controller_port=8000))


def test_a_named_port_that_is_taken_names_the_holder() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(BadRequest, match=rf"--port {port}: port {port} is taken by pid \d+ \(.*python"):
            choose_port(port, 7860, option="--port", is_free=is_free_on("127.0.0.1"))
        assert not is_free_on("0.0.0.0")(port)
    assert is_free_on("127.0.0.1")(port)
    assert "may not see" in taken_sentence(port)


@pytest.mark.parametrize(("host", "words"), [("no-such-host.invalid", "no such host"), ("192.0.2.1", "not an address")])
def test_a_host_that_is_not_ours_is_refused(host: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        is_free_on(host)(7860)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(BadRequest, match="1 to 65535"):
        choose_port(port, 7860, option="--port", is_free=lambda port: True)


def test_gpus_go_round_and_those_named_are_left_to_who_named_them() -> None:
    assert hand_out([A, B, C], ["0", "1"]) == [("0",), ("1",), ("0",)]
    assert hand_out([A, ModelSpec("org/b", ("0",)), C], ["0", "1", "2"]) == [("1",), ("0",), ("2",)]
    assert hand_out([ModelSpec("org/a", ()), B], ["0"]) == [(), ("0",)]
    assert hand_out([A, B], []) == [None, None]


def test_a_gpu_that_is_not_there_is_refused_and_those_there_are_named() -> None:
    with pytest.raises(BadRequest, match=r"org/a@0,3: there is no GPU 3; there are: 0, 1"):
        hand_out([ModelSpec("org/a", ("0", "3"))], ["0", "1"])


def test_a_gpu_asked_for_where_there_is_none_is_noted() -> None:
    assert plan(LaunchConfig(models=(ModelSpec("org/a", ("0",)),))).notes == (
        "no NVIDIA GPU was found here, yet org/a was to run on GPU 0",
    )


def test_cuda_visible_devices_bounds_what_is_handed_out() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-abc"}) == ("2", "GPU-abc")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


def test_workers_share_the_cores_unless_the_person_has_decided() -> None:
    assert device_environment(None, workers=3, cores=8, environment={}) == {"OMP_NUM_THREADS": "2"}
    assert device_environment(None, workers=9, cores=2, environment={}) == {"OMP_NUM_THREADS": "1"}
    assert device_environment(None, workers=3, cores=8, environment={"OMP_NUM_THREADS": "5"}) == {}
    assert device_environment(None, workers=1, cores=8, environment={}) == {}
    on_gpus = device_environment(("2", "0"), workers=1, cores=8, environment={})
    assert on_gpus["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert device_environment((), workers=1, cores=8, environment={})["CUDA_VISIBLE_DEVICES"] == ""


def test_a_worker_s_command_says_all_that_was_asked_of_its_model() -> None:
    spec = ModelSpec(
        "org/a",
        (),
        quantize="int8",
        name="mine",
        base="org/base",
        conv_template="llava_v1",
        dtype="float16",
        arguments=("--max-images", "4"),
    )
    made = plan(
        LaunchConfig(
            models=(spec, B),
            conv_template="chatml_direct",
            dtype="bfloat16",
            engine="transformers",
            allow_image_host=("a.org",),
        )
    )
    first, second = (flags(child.argv) for child in made.children[1:-1])
    assert first == {
        "--host": "127.0.0.1",
        "--port": "21002",
        "--controller-address": "http://127.0.0.1:21000",
        "--worker-address": "http://127.0.0.1:21002",
        "--model-path": "org/a",
        "--model-base": "org/base",
        "--model-name": "mine",
        "--conv-template": "llava_v1",
        "--dtype": "float16",
        "--engine": "transformers",
        "--device": "cpu",
        "--allow-image-host": "a.org",
        "--quantize": "int8",
        "--kv-memory": "25%",
        "--max-images": "4",
    }
    assert (second["--conv-template"], second["--dtype"], "--device" in second) == ("chatml_direct", "bfloat16", False)
    assert made.titles == {"worker 1": "mine in int8 on the CPU", "worker 2": "b"}


def test_the_controller_is_ended_after_everybody_else() -> None:
    ranks = {child.name: child.rank for child in plan(LaunchConfig(models=(A,))).children}
    assert ranks["controller"] > max(rank for name, rank in ranks.items() if name != "controller")


def test_whoever_has_answers_to_finish_is_given_the_time_that_it_gives_them() -> None:
    graces = {child.name: child.grace_s for child in plan(LaunchConfig(models=(A,))).children}
    assert graces["page"] is None
    assert (graces["controller"] or 0) > WorkerTimings.drain_s < (graces["worker 1"] or 0)


def test_wildcard_hosts_are_written_as_addresses_one_can_open() -> None:
    assert [reachable(host) for host in ("0.0.0.0", "::", "::1", "127.0.0.1", "box.local")] == [
        "127.0.0.1",
        "[::1]",
        "[::1]",
        "127.0.0.1",
        "box.local",
    ]


def test_settings_of_all_reach_every_worker_and_a_model_s_own_win() -> None:
    config = LaunchConfig(
        models=(A, ModelSpec("org/b", quantize="none", threads=2, share_between_owners=False)),
        quantize="nf4",
        threads=4,
        kv_memory="8GiB",
        share_between_owners=True,
        max_running=32,
    )
    _, first, second, _ = plan(config).children
    common = {"--kv-memory": "8GiB", "--max-running": "32"}
    assert (
        {
            "--quantize": "nf4",
            "--threads": "4",
            "--share-between-owners": "--share-between-owners",
        }
        | common
    ).items() <= flags(first.argv).items()
    own = {"--threads": "2", "--no-share-between-owners": "--no-share-between-owners"}
    assert (own | common).items() <= flags(second.argv).items()
    assert "--quantize" not in second.argv


def test_workers_that_share_a_device_share_its_memory() -> None:
    def memory(*models: ModelSpec, gpus: tuple[str, ...] = ()) -> list[str | None]:
        children = plan(LaunchConfig(models=models), gpus=gpus).children[1:-1]
        return [flags(child.argv).get("--kv-memory") for child in children]

    echo = ModelSpec(name="echo", engine="echo")
    on_cpu = ModelSpec("org/c", ())
    assert memory(A) == [None]
    assert memory(A, B) == ["25%", "25%"]
    assert memory(A, ModelSpec("org/b", kv_memory="1GiB")) == ["25%", "1GiB"]
    assert memory(A, B, C, gpus=("0", "1")) == ["42%", None, "42%"]
    assert memory(A, B, on_cpu, gpus=("0", "1")) == [None, None, None]
    assert memory(A, echo)[0] is None


def test_what_is_kept_is_said_to_the_page_and_a_password_is_not_on_its_command_line() -> None:
    kept = plan(
        LaunchConfig(
            models=(ModelSpec(path="models/a"),),
            history="on",
            database_url="postgresql://me:geheim@db/chats",
            keep_days=30,
            keep_originals=True,
        )
    )
    page = kept.children[-1]
    assert " ".join(page.argv).endswith("--history on --keep-days 30 --keep-originals")
    assert "geheim" not in " ".join(page.argv)
    assert page.variables == {"LLAVA_SERVE_DATABASE_URL": "postgresql://me:geheim@db/chats"}
