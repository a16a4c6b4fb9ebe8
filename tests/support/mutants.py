# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Break the mathematics in every small way and see a test fail: `make mutants`.

mutmut changes one operator, number or argument of one function at a time and runs the tests that
reach the function. A change that no test sees must stand in `mutants.json` with the reason why it
cannot be seen, by function and change; any other fails the run.

    python tests/support/mutants.py              # all modules of SUITES
    python tests/support/mutants.py vae loss     # some
    python tests/support/mutants.py --write      # also put what is new into the file
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KNOWN = Path(__file__).parent / "mutants.json"
UNKNOWN = "no reason yet"
COPIED = ("modeling_mdm", "tests", "examples", "processing", "configuration", "pyproject.toml")

# Every module's own tests: those of others would find the same changes later and slower. Left out:
# kernels, which need a GPU. The longest come first, so that two at a time end together.
SUITES = {
    "ssd_factored": ("mathematics/test_ssd.py", "mathematics/test_ssd_backends.py"),
    "ssd": ("mathematics/test_ssd.py", "mathematics/test_ssd_backends.py"),
    "scoring": ("generation/test_scoring.py", "generation/test_bound.py"),
    "vae": ("network/test_vae.py", "network/test_accumulation.py"),
    "likelihood": ("mathematics/test_likelihood.py", "generation/test_bound.py"),
    "loss": ("network/test_loss.py", "network/test_accumulation.py"),
    "diffusion": ("mathematics/test_diffusion.py", "mathematics/test_solvers.py"),
    "scan_orders": ("mathematics/test_scan_orders.py",),
    "solvers": ("mathematics/test_solvers.py",),
    "score_entropy": ("mathematics/test_score_entropy.py",),
    "selection": ("mathematics/test_selection.py",),
    "matmul": ("mathematics/test_matmul.py",),
}

# What reads files is no mathematics; test_vq.py tests it.
NO_MATHEMATICS = ("vae.VQFrontEnd", "vae._list_weights", "vae._shared_prefix")

# Where a tensor lies changes no number on a machine with one place for it: an argument `device`,
# and what a mutant puts in its place.
PLACE = re.compile(r",\s*(device=)?([\w.]*\bdevice|None|)(?=\s*[,)])")


def settings(module: str) -> str:
    """What mutmut reads; messages of errors are not mathematics."""
    tests = [f"tests/{name}" for name in SUITES[module]]
    return f"""
[tool.mutmut]
source_paths = ["modeling_mdm"]
only_mutate = ["modeling_mdm/{module}.py"]
do_not_mutate_patterns = ['^\\s*raise \\w+\\(']
also_copy = {json.dumps([name for name in COPIED if name != "modeling_mdm"])}
pytest_add_cli_args_test_selection = {json.dumps(tests)}
pytest_add_cli_args = ["-m", "not slow and not gpu", "-p", "no:cacheprovider"]
timeout_multiplier = 10.0
timeout_constant = 8.0
track_dependencies = false
use_git_change_detection = false
"""


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in a folder: what it printed."""
    environment = {
        **os.environ,
        "HYPOTHESIS_PROFILE": "mutants",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"mutmut {arguments[0]}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def function_of(mutant: str) -> str:
    """`modeling_mdm.vae.xǁMDMVAEǁencode__mutmut_3`: `vae.MDMVAE.encode`."""
    module, name = re.fullmatch(r"modeling_mdm\.(\w+)\.x(.+)__mutmut_\d+", mutant).groups()
    return f"{module}.{name.removeprefix('_') if 'ǁ' not in name else name[1:].replace('ǁ', '.')}"


def change_of(diff: str) -> tuple[str, str]:
    """The lines before and after, joined to one."""
    lines = [
        line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("---", "+++")
    ]
    before, after = ([line[1:].strip() for line in lines if line[0] == sign] for sign in "-+")
    return " ".join(before), " ".join(after)


def changes_only_the_place(before: str, after: str) -> bool:
    """Whether two lines differ in a `device` alone."""
    return "device" in before and PLACE.sub("", before) == PLACE.sub("", after)


def survivors(module: str) -> tuple[int, list[tuple[str, str]]]:
    """Run one module: how many mutants it has, and (function, change) of those that no test saw."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        with (folder / "pyproject.toml").open("a") as file:
            file.write(settings(module))
        mutmut(folder, "run", "--max-children", "1")
        meta = json.loads((folder / "mutants" / "modeling_mdm" / f"{module}.py.meta").read_text())
        alive, unsettled = [], []
        for line in mutmut(folder, "results").splitlines():
            name, status = line.strip().rsplit(": ", 1)
            if status in ("survived", "no tests"):
                before, after = change_of(mutmut(folder, "show", name))
                is_mathematics = not function_of(name).startswith(NO_MATHEMATICS)
                if is_mathematics and not changes_only_the_place(before, after):
                    alive.append((function_of(name), f"{before}  →  {after}"))
            elif status not in ("timeout", "segfault"):
                unsettled.append(line.strip())
        if unsettled:
            raise RuntimeError(f"{module}: not decided: " + ", ".join(unsettled))
    total, seconds = len(meta["exit_code_by_key"]), time.perf_counter() - start
    print(f"{module}: {total} mutants, {len(alive)} alive, {seconds:.0f} s", flush=True)
    return total, alive


def main() -> int:
    """Run the modules that are named: 0 if every survivor has its reason."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--write", action="store_true", help="write what survives to the file")
    parser.add_argument("--processes", type=int, default=2, help="modules at a time")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - set(SUITES):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    modules = [name for name in SUITES if name in (arguments.modules or SUITES)]
    known = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}
    with ThreadPoolExecutor(arguments.processes) as pool:
        runs = list(pool.map(survivors, modules))
    alive = [pair for _, found in runs for pair in found]
    new = [pair for pair in alive if known.get(pair[0], {}).get(pair[1], UNKNOWN) == UNKNOWN]
    gone = [
        (function, change)
        for function, changes in known.items()
        for change in changes
        if function.partition(".")[0] in modules and (function, change) not in alive
    ]
    for function, change in new:
        print(f"  alive: {function}: {change}")
    for function, change in gone:
        print(f"  no longer alive, take it out of the file: {function}: {change}")
    if arguments.write:
        for function, change in gone:
            del known[function][change]
        for function, change in new:
            known.setdefault(function, {})[change] = UNKNOWN
        known = {name: dict(sorted(known[name].items())) for name in sorted(known) if known[name]}
        KNOWN.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    total = sum(count for count, _ in runs)
    verdict = (
        f"{len(new)} that no test sees and {KNOWN.name} does not explain" if new else "all seen"
    )
    print(
        f"mutants: {total} in {len(modules)} modules, {len(alive) - len(new)} explained, {verdict}"
    )
    return int(bool(new))


if __name__ == "__main__":
    sys.exit(main())
