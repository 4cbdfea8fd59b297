"""Containers found in trees that the tests write; a real pid namespace is a live test's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tcpcore.errors import UsageError
from tcpcore.request import containers, places

HOST, INNER, OTHER = 4026531836, 4026532201, 4026532300  # the first is that of every host

WEB = "abcd" + "1" * 60
DB = "abcd" + "2" * 60
CACHE = "cafe" + "3" * 60
POD = "beef" + "4" * 60
GONE = "dead" + "5" * 60


def process(proc: Path, pid: int, namespace: int, *inner: int) -> None:
    """A process as /proc shows it: its pids from the outermost namespace in."""
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "ns/pid").symlink_to(f"pid:[{namespace}]")
    pids = "\t".join(map(str, (pid, *inner)))
    (proc / str(pid) / "status").write_text(
        f"Name:\tx\nTgid:\t{pid}\nNStgid:\t{pids}\nNSpid:\t{pids}\nNSpgid:\t{pids}\n"
    )


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_HOST", f"pid:[{HOST}]")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process(tmp_path, 1, HOST)
    process(tmp_path, 7, HOST)
    process(tmp_path, 500, INNER, 1)
    process(tmp_path, 507, INNER, 7)
    process(tmp_path, 600, OTHER, 7)
    process(tmp_path, 700, OTHER + 1, 40, 7)
    (tmp_path / "9").mkdir()  # exited meanwhile: neither ns nor status
    process(tmp_path, 508, INNER, 8)
    (tmp_path / "508/status").unlink()  # exited between the two
    (tmp_path / "self").symlink_to("7")
    (tmp_path / "meminfo").touch()
    return tmp_path


@pytest.mark.parametrize("namespace", ["500", "507", "0500", f"{INNER}", f"pid:[{INNER}]"])
def test_a_pid_of_a_namespace(proc: Path, namespace: str) -> None:
    assert containers.outer_pid("--pidns", namespace, 7, proc) == 507
    assert containers.outer_pid("--pidns", namespace, 1, proc) == 500


def test_other_namespaces(proc: Path) -> None:
    assert containers.outer_pid("--pidns", "1", 7, proc) == 7
    assert containers.outer_pid("--pidns", f"inode:{OTHER}", 7, proc) == 600
    assert containers.outer_pid("--pidns", "700", 7, proc) == 700


@pytest.mark.parametrize(
    ("namespace", "says"),
    [
        ("500", f"no process 8 in the pid namespace pid:[{INNER}]"),
        ("4026530000", "no process 8"),
        ("9", "no process 9"),
        ("12345", "no process 12345"),
        ("", "''"),
        ("web", "'web'"),
        ("-1", "'-1'"),
        ("../7", "'../7'"),
        ("9" * 5000, "neither"),
    ],
)
def test_no_such_process(proc: Path, namespace: str, says: str) -> None:
    with pytest.raises(UsageError) as e:
        containers.outer_pid("--pidns", namespace, 8, proc)
    assert str(e.value).startswith("--pidns: ")
    assert says in str(e.value)


def become(proc: Path, pid: int) -> None:
    (proc / "self").unlink()
    (proc / "self").symlink_to(str(pid))


def test_a_process_of_the_host_means_the_hosts_numbers(proc: Path) -> None:
    assert containers.host_pid(7, None, proc) == 7
    assert containers.host_pid(4_000_000, None, proc) == 4_000_000  # there may be one soon
    assert containers.host_pid(7, "500", proc) == 507


def test_a_process_in_a_pid_namespace_means_its_own_numbers(proc: Path) -> None:
    """If it sees the host's /proc."""
    become(proc, 500)
    assert containers.host_pid(7, None, proc) == 507
    assert containers.host_pid(1, None, proc) == 500
    assert containers.host_pid(7, f"{OTHER}", proc) == 600
    with pytest.raises(UsageError, match="pid: there is no process 8"):
        containers.host_pid(8, None, proc)


@pytest.mark.parametrize("namespace", [None, "1", f"{INNER}"])
def test_in_a_pid_namespace_without_the_hosts_proc(tmp_path: Path, namespace: str | None) -> None:
    process(tmp_path, 1, INNER)
    process(tmp_path, 7, INNER)
    (tmp_path / "self").symlink_to("7")
    with pytest.raises(UsageError) as e:
        containers.host_pid(7, namespace, tmp_path)
    assert str(e.value).startswith("pid: " if namespace is None else "pidns: ")
    assert "--pid=host" in str(e.value) and "`cgroup`" in str(e.value)


def test_a_kernel_without_pid_namespaces(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "self").symlink_to("7")
    assert containers.host_pid(7, None, tmp_path) == 7


def test_the_real_proc_knows_this_process() -> None:
    status = Path("/proc/self/status").read_text()
    inner = next(x for x in status.splitlines() if x.startswith("NSpid:")).split()[-1]
    assert containers.outer_pid("--pidns", f"{os.getpid()}", int(inner)) == os.getpid()


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture(autouse=True)
def no_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "mounted", lambda kind: None)


@pytest.fixture
def hierarchy(tmp_path: Path) -> Path:
    """Each runtime's way to name a cgroup."""
    top = tmp_path / "cgroup"
    for path in (
        f"system.slice/docker-{WEB}.scope/{WEB}/init",
        f"docker/{DB}",
        f"machine.slice/libpod-{CACHE}.scope/container",
        f"machine.slice/libpod-conmon-{CACHE}.scope",
        f"kubepods.slice/kubepods-pod1.slice/cri-containerd-{POD}.scope",
        "user.slice",
    ):
        (top / path).mkdir(parents=True)
    return top


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Each runtime's state files."""
    root = tmp_path / "root"
    docker = root / "var/lib/docker/containers"
    write(docker / WEB / "config.v2.json", {"ID": WEB, "Name": "/web", "Pid": 3})
    write(docker / DB / "config.v2.json", {"ID": DB, "Name": "/db"})
    write(docker / GONE / "config.v2.json", {"ID": GONE, "Name": "/gone"})
    storage = root / "var/lib/containers/storage/overlay-containers"
    write(storage / "containers.json", [{"id": CACHE, "names": ["cache", "lru"]}, {"id": GONE}])
    tasks = root / "run/containerd/io.containerd.runtime.v2.task"
    names = {"io.kubernetes.cri.container-name": "app"}
    write(tasks / "k8s.io" / POD / "config.json", {"ociVersion": "1", "annotations": names})
    return root


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("web", f"system.slice/docker-{WEB}.scope"),
        (WEB, f"system.slice/docker-{WEB}.scope"),
        ("abcd1", f"system.slice/docker-{WEB}.scope"),
        ("db", f"docker/{DB}"),
        ("abcd22", f"docker/{DB}"),
        ("cache", f"machine.slice/libpod-{CACHE}.scope"),
        ("lru", f"machine.slice/libpod-{CACHE}.scope"),
        ("cafe", f"machine.slice/libpod-{CACHE}.scope"),
        ("app", f"kubepods.slice/kubepods-pod1.slice/cri-containerd-{POD}.scope"),
    ],
)
def test_ids_and_names(hierarchy: Path, root: Path, text: str, path: str) -> None:
    assert containers.cgroup("--container", text, hierarchy, root) == hierarchy / path


@pytest.mark.parametrize(
    "name", ["docker-{}.scope", "nerdctl-{}.scope", "cri-containerd-{}.scope", "crio-{}.scope",
             "libpod-{}.scope", "libpod-{}", "{}"],
)  # fmt: skip
def test_every_runtimes_directory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.slice" / name.format(WEB)
    path.mkdir(parents=True)
    assert containers.cgroup("--container", WEB[:12], tmp_path, tmp_path) == path


@pytest.mark.parametrize(
    "name", ["libpod-conmon-{}.scope", "crio-conmon-{}.scope", "{}.mount", "x{}", "user-{}.slice"]
)
def test_what_is_no_container(tmp_path: Path, name: str) -> None:
    (tmp_path / name.format(WEB)).mkdir()
    with pytest.raises(UsageError, match="none runs here"):
        containers.cgroup("--container", WEB, tmp_path, tmp_path)


def test_a_host_with_cgroup_v1_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "mounted", {"cgroup": tmp_path}.get)
    with pytest.raises(UsageError, match="cgroup v2, which is needed"):
        containers.cgroup("--container", WEB, tmp_path, tmp_path)


def test_no_cgroup_v2_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--container: no cgroup v2 hierarchy is mounted here"):
        containers.cgroup("--container", WEB, None, tmp_path)


def refused(text: str, hierarchy: Path, root: Path) -> str:
    with pytest.raises(UsageError) as e:
        containers.cgroup("--container", text, hierarchy, root)
    assert str(e.value).startswith(f"--container: '{text}' is ")
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("text", ["", "abc", "we", "web ", "WEB", "gone", GONE, "fade", "*", "/"])
def test_unknown_lists_what_runs(hierarchy: Path, root: Path, text: str) -> None:
    said = refused(text, hierarchy, root)
    for candidate in (f"{WEB[:12]} web", f"{DB[:12]} db", f"{CACHE[:12]} cache lru", "app"):
        assert candidate in said


def test_an_ambiguous_id_lists_the_candidates(hierarchy: Path, root: Path) -> None:
    said = refused("abcd", hierarchy, root)
    assert said.endswith(f"is ambiguous: {WEB[:12]} web, {DB[:12]} db")


def test_an_ambiguous_name_lists_the_candidates(hierarchy: Path, root: Path) -> None:
    tasks = root / "run/containerd/io.containerd.runtime.v2.task/default"
    write(tasks / DB / "config.json", {"annotations": {"nerdctl/name": "app"}})
    said = refused("app", hierarchy, root)
    assert "ambiguous" in said
    assert DB[:12] in said
    assert POD[:12] in said


def test_a_stopped_container_makes_no_name_ambiguous(hierarchy: Path, root: Path) -> None:
    docker = root / "var/lib/docker/containers"
    write(docker / GONE / "config.v2.json", {"ID": GONE, "Name": "/web"})
    assert WEB in str(containers.cgroup("--container", "web", hierarchy, root))


def test_a_name_goes_before_the_begin_of_an_id(hierarchy: Path, root: Path) -> None:
    docker = root / "var/lib/docker/containers"
    write(docker / DB / "config.v2.json", {"ID": DB, "Name": "/cafe"})
    assert containers.cgroup("--container", "cafe", hierarchy, root) == hierarchy / f"docker/{DB}"


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", "3", '"x"', '{"ID": 3, "Name": "/x"}', '[{"id": []}]',
                '[{"id": "x", "names": null}]', '{"annotations": []}', '{"annotations": null}'],
)  # fmt: skip
def test_a_state_file_of_another_shape_is_passed_over(
    hierarchy: Path, root: Path, content: str
) -> None:
    write(root / f"var/lib/docker/containers/{GONE}/config.v2.json", content)
    write(root / "var/lib/containers/storage/vfs-containers/containers.json", content)
    write(root / f"run/containerd/io.containerd.runtime.v2.task/moby/{WEB}/config.json", content)
    assert WEB in str(containers.cgroup("--container", "web", hierarchy, root))


def test_many_containers_are_not_all_listed(tmp_path: Path) -> None:
    for i in range(25):
        (tmp_path / f"{i:064x}").mkdir()
    said = refused("web", tmp_path, tmp_path)
    assert said.endswith("and 15 more")


def test_the_container_of_a_cgroup(hierarchy: Path, root: Path) -> None:
    """Also of one below the container's own; one without a name has the begin of its id."""
    (hierarchy / "docker" / GONE).mkdir()
    (root / f"var/lib/docker/containers/{GONE}/config.v2.json").unlink()
    named = containers.Named("by", hierarchy, root)
    for path, name in {
        f"system.slice/docker-{WEB}.scope": "web",
        f"system.slice/docker-{WEB}.scope/{WEB}/init": "web",
        f"machine.slice/libpod-{CACHE}.scope/container": "cache",
        f"machine.slice/libpod-conmon-{CACHE}.scope": None,
        f"docker/{GONE}": GONE[:12],
        "docker": None,
        "user.slice": None,
    }.items():
        assert named((hierarchy / path).stat().st_ino) == name, path
    assert named(None) is named(1 << 60) is None


def test_a_container_that_comes_later_when_the_rights_are_gone(hierarchy: Path, root: Path) -> None:
    """Those that were known keep their names."""
    named = containers.Named("by", hierarchy, root)
    (root / "var/lib/docker").rename(root / "gone")
    later = hierarchy / "docker" / GONE
    later.mkdir()
    assert named(later.stat().st_ino) == GONE[:12]
    assert named((hierarchy / f"docker/{DB}").stat().st_ino) == "db"


# What users may put there.

ME = os.getuid()
MINE = "face" + "6" * 60
STATE = ".local/share/containers/storage/overlay-containers/containers.json"


def user_slice(hierarchy: Path, user: int, key: str) -> Path:
    """Where systemd and podman put a user's container."""
    whose = f"user.slice/user-{user}.slice/user@{user}.service/user.slice"
    path = hierarchy / whose / f"libpod-{key}.scope"
    (path / "container").mkdir(parents=True)
    return path


@pytest.mark.parametrize("driver", ["overlay", "vfs"])
@pytest.mark.parametrize("file", ["containers", "volatile-containers"])
def test_a_users_own_container(hierarchy: Path, root: Path, driver: str, file: str) -> None:
    path = user_slice(hierarchy, ME, MINE)
    state = (root / "home/me" / STATE).parent.with_name(f"{driver}-containers") / f"{file}.json"
    write(state, [{"id": MINE, "names": ["mine"]}])
    assert containers.cgroup("--container", "mine", hierarchy, root) == path
    assert f"{MINE[:12]} mine (user {ME})" in refused("other", hierarchy, root)


@pytest.mark.parametrize("key", [WEB, POD, MINE])
def test_a_name_for_somebody_elses_container(hierarchy: Path, root: Path, key: str) -> None:
    """Of the system's, or of the next user's."""
    user_slice(hierarchy, ME + 1, MINE)
    user_slice(hierarchy, ME, CACHE[::-1])
    write(root / "home/me" / STATE, [{"id": key, "names": ["bank"]}])
    assert "bank" not in refused("bank", hierarchy, root).partition(" is ")[2]


def test_a_users_cgroup_with_the_id_of_the_systems(hierarchy: Path, root: Path) -> None:
    user_slice(hierarchy, ME, WEB)
    write(root / "home/me" / STATE, [{"id": WEB, "names": ["bank"]}])
    wanted = hierarchy / f"system.slice/docker-{WEB}.scope"
    for text in ("web", WEB, WEB[:5]):
        assert containers.cgroup("--container", text, hierarchy, root) == wanted
    assert "bank" not in refused("bank", hierarchy, root).partition(" is ")[2]


@pytest.mark.parametrize("name", [WEB, WEB[:12]])
def test_a_users_container_that_is_called_like_an_id(
    hierarchy: Path, root: Path, name: str
) -> None:
    user_slice(hierarchy, ME, MINE)
    write(root / "home/me" / STATE, [{"id": MINE, "names": [name]}])
    if name == WEB:
        assert WEB in str(containers.cgroup("--container", name, hierarchy, root))
    else:
        assert f"ambiguous: {name} web, {MINE[:12]}" in refused(name, hierarchy, root)


def test_two_users_with_one_id(hierarchy: Path, root: Path) -> None:
    """Only a name tells which one is meant."""
    mine = user_slice(hierarchy, ME, MINE)
    user_slice(hierarchy, ME + 1, MINE)
    write(root / "home/me" / STATE, [{"id": MINE, "names": ["mine"]}])
    assert containers.cgroup("--container", "mine", hierarchy, root) == mine
    said = refused(MINE, hierarchy, root)
    assert said.endswith(f"ambiguous: {MINE[:12]} mine (user {ME}), {MINE[:12]} (user {ME + 1})")


def test_homes_of_users_without_containers_are_left_alone(
    hierarchy: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root / "home/me" / STATE, [])
    looked: list[Path] = []

    def read(path: Path) -> tuple[bytes, int]:
        looked.append(path)
        return b"0", ME

    monkeypatch.setattr(containers, "_read", read)
    refused("none", hierarchy, root)
    assert looked and not any("home" in path.parts for path in looked)


VALID = json.dumps([{"id": MINE, "names": ["mine"]}])


def link(path: Path) -> None:
    target = path.parent / "elsewhere"
    target.write_text(VALID)
    path.symlink_to(target)


def feed(path: Path) -> None:
    """It has what a state file has; both ends stay open as long as this process."""
    os.mkfifo(path)
    os.write(os.open(path, os.O_RDWR), VALID.encode())


ODD: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "a fifo with a writer": feed,
    "folder": Path.mkdir,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link": link,
    "nothing behind a link": lambda path: path.symlink_to(path),
    "a long one": lambda path: path.write_text(VALID.ljust(5 << 20)),
    "a deep one": lambda path: path.write_text("[" * 100_000),
    "a long number": lambda path: path.write_text("[" + "9" * 100_000 + "]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe" * 100),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "where", [f"home/me/{STATE}", "var/lib/docker/containers/x/config.v2.json"]
)
def test_what_is_no_state_file(hierarchy: Path, root: Path, where: str, odd: str) -> None:
    """It neither keeps us nor means anything."""
    user_slice(hierarchy, ME, MINE)
    (root / where).parent.mkdir(parents=True)
    ODD[odd](root / where)
    assert WEB in str(containers.cgroup("--container", "web", hierarchy, root))
    assert f"{MINE[:12]} (user {ME})" in refused("mine", hierarchy, root)


def test_a_storage_folder_that_is_a_link(hierarchy: Path, root: Path, tmp_path: Path) -> None:
    """Another user's file that it leads to still counts for that user alone."""
    user_slice(hierarchy, ME + 1, MINE)
    write(tmp_path / "theirs/containers.json", [{"id": MINE, "names": ["mine"]}])
    (root / "home/me" / STATE).parent.parent.mkdir(parents=True)
    (root / "home/me" / STATE).parent.symlink_to(tmp_path / "theirs")
    assert f"{MINE[:12]} (user {ME + 1})" in refused("mine", hierarchy, root)


def test_a_container_with_many_names(hierarchy: Path, root: Path) -> None:
    user_slice(hierarchy, ME, MINE)
    names = ["mine", *("x" * 50 + str(i) for i in range(10_000))]
    write(root / "home/me" / STATE, [{"id": MINE, "names": names}])
    assert MINE in str(containers.cgroup("--container", "mine", hierarchy, root))
    assert len(refused("other", hierarchy, root)) < 1000
