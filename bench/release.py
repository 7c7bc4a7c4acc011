"""Builds both programs as the image has them: twice, the second time by what the first was seen doing.

The compiler lays code out by what it guesses will run. The path of a request is some hundred kilobytes of it, more than the
first cache of a processor holds, and a guess that is wrong spreads it further (docs/decisions/0008). So the programs are
built with counters, carry the loads of bench/run for some seconds each, and are built again by what was counted.

It decides nothing about what is measured, and its figures of the first build are thrown away.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import install

# What the programs are seen doing: each way in which a request passes, handshakes, pushes and a fleet that polls. Without those
# that only change how many connections there are.
TRAINING = "http1,http1-1k,http1-64k,connections,http2,grpc,tcp,websocket,mtls,handshakes,routes,push,fleet"
# Some hundred thousand requests of most, thousands where each is a handshake; counts matter, not time.
SECONDS = 3
PROGRAMS = ("outrigger-proxy", "outrigger")
# The first whose counters have the form that the compiler writes (version 10 of the raw profile).
LLVM_MIN = 19
# It takes 75 s on two cores; past this it hangs.
TRAINING_SECONDS_MAX = 1800


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="bench/release",
        description="Builds outrigger-proxy and outrigger as the image has them: with counters, then loaded for a minute or two, "
        "then again by what was counted. Fifteen to twenty minutes on two cores; both programs are in target/trained.",
    )
    parser.add_argument("--features", default="", help="features of cargo beyond the default ones, such as spiffe")
    parser.add_argument("--target", help="the target of rustc (this machine's): only one whose programs run here")
    return parser.parse_args(argv)


def run(command, seconds, **settings):
    """Runs a command that people may watch; on our own output stands the folder of what was built and nothing else."""
    settings.setdefault("stdout", sys.stderr)
    print(f"bench/release: {' '.join(map(str, command))}", file=sys.stderr)
    try:
        ended = subprocess.run(command, cwd=install.ROOT, timeout=seconds, check=False, **settings)
    except (OSError, subprocess.TimeoutExpired) as failure:
        sys.exit(f"bench/release: `{command[0]}` did not run: {failure}")
    if ended.returncode:
        sys.exit(f"bench/release: `{' '.join(map(str, command))}` ended with {ended.returncode}")
    return ended


def host():
    said = run(["rustc", "-vV"], 60, stdout=subprocess.PIPE, text=True).stdout
    return re.search(r"^host: (\S+)$", said, re.MULTILINE).group(1)


def profdata():
    """The program that adds counters up, of a version that can read them."""
    sysroot = run(["rustc", "--print", "sysroot"], 60, stdout=subprocess.PIPE, text=True).stdout.strip()
    for program in Path(sysroot).glob("lib/rustlib/*/bin/llvm-profdata"):
        return program
    if not versions():
        install.from_debian([f"llvm-{LLVM_MIN}"])
    if not versions():
        sys.exit(f"bench/release: no llvm-profdata of LLVM {LLVM_MIN} or later; `rustup component add llvm-tools` has one")
    return versions()[max(versions())]


def versions():
    """Those of Debian, by their number."""
    found = {int(path.parts[3].removeprefix("llvm-")): path for path in Path("/").glob("usr/lib/llvm-*/bin/llvm-profdata")}
    return {number: path for number, path in found.items() if number >= LLVM_MIN}


def build(options, flags, folder):
    """Builds both programs with these flags of rustc more. Naming the target keeps them from build scripts."""
    environment = os.environ | {"RUSTFLAGS": f"{os.environ.get('RUSTFLAGS', '')} {flags}".strip(), "CARGO_TARGET_DIR": str(folder)}
    names = [word for program in PROGRAMS for word in ("--bin", program)]
    command = ["cargo", "build", "--release", "--locked", "--target", options.target, "--features", options.features, *names]
    run(command, install.BUILD_SECONDS_MAX, env=environment)
    return folder / options.target / "release"


def main(argv):
    options = arguments(argv)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("bench/release: two cores are needed, one for the programs and one for their load; `cargo build --release` needs one")
    options.target = options.target or host()
    add_up = profdata()
    target = install.target().parent.resolve()
    counts, trained = target / "counts", target / "trained"
    # Counters are added to the files that are there.
    shutil.rmtree(counts, ignore_errors=True)
    counting = build(options, f"-Cprofile-generate={counts}", target / "counting")
    load = ["--only", "outrigger", "--rounds", "1", "--seconds", str(SECONDS), "--work", TRAINING]
    run([install.HERE / "run", *load, "--binary", counting / PROGRAMS[0]], TRAINING_SECONDS_MAX, stdout=subprocess.DEVNULL)
    counted = sorted(counts.glob("*.profraw"))
    if len(counted) < len(PROGRAMS):
        sys.exit(f"bench/release: {len(counted)} programs wrote what they counted, not {len(PROGRAMS)}: did they end before they could?")
    profile = counts / "all.profdata"
    run([add_up, "merge", "--output", profile, *counted], 60)
    built = build(options, f"-Cprofile-use={profile} -Cllvm-args=-pgo-warn-missing-function=false", target / "trainee")
    trained.mkdir(exist_ok=True)
    for program in PROGRAMS:
        shutil.copy2(built / program, trained / program)
    print(trained)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
