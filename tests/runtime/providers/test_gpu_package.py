"""The real onnxruntime-gpu, on a machine without a GPU: what it says is missing, and its parser of our options.

Its CUDA provider only loads where CUDA's libraries are. Stand-ins for them, in which every function fails as where
there is no GPU, bring it as far as reading its options, which comes before it looks for a device.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from onnx_vlm.runtime import ProviderError
from onnx_vlm.runtime.providers import probe
from onnx_vlm.runtime.providers.load_options import LoadOptions
from onnx_vlm.runtime.providers.options import OPTIONS, Choice
from onnx_vlm.runtime.providers.targets import choose_targets

pytestmark = pytest.mark.needs("onnxruntime-gpu")
LIBRARY = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
#: Which library a function is of, by the beginning of its name.
OWNERS = {"cublasLt": "cublasLt", "cublas": "cublas", "curand": "curand", "(__)?cuda": "cudart", "cu[A-Z]": "cuda"}
NO_DEVICE = 100  #: both CUDA_ERROR_NO_DEVICE and cudaErrorNoDevice
CREATE = """
import sys
from onnx_vlm.runtime.providers import onnx_bytes, ort_session, targets
from onnx_vlm.runtime.providers.load_options import LoadOptions
target = choose_targets(LoadOptions("cuda", provider_options=eval(sys.argv[1])))[0]
target.resolved["CUDAExecutionProvider"].update(eval(sys.argv[2]))
ort_session.create(onnx_bytes.doubling(), target, captures=True)
"""


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_what_is_missing_is_named(provider: str):
    with pytest.raises(ProviderError, match=r"libraries do not load: .*libcuda.so.1.*to get it: .*NVIDIA's driver"):
        probe.require(choose_targets(LoadOptions(provider))[0])


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries with every function that the CUDA provider asks of them, all failing."""
    folder = tmp_path_factory.mktemp("stand-ins")
    needed = re.findall(r"\[lib(\w+)\.so\.(\d+)\]", tell("readelf", "-d", LIBRARY))
    functions = re.findall(r" U (\w+)", tell("nm", "-D", "--undefined-only", LIBRARY))
    for name, version in needed:
        if name not in OWNERS.values():
            continue
        own = [one for one in functions if next((o for p, o in OWNERS.items() if re.match(p, one)), None) == name]
        own += ["cuInit"] if name == "cuda" else []
        file = f"lib{name}.so.{version}"
        texts = re.compile("String|Name")  # these give a text, not a status
        results = [(one, '(long)"no GPU"' if texts.search(one) else NO_DEVICE) for one in own]
        (folder / "code.c").write_text("".join(f"long {one}(void) {{ return {result}; }}\n" for one, result in results))
        (folder / "versions").write_text(f"{file} {{ global: *; }};\n")
        versions = [] if name in ("cuda", "curand") else [f"-Wl,--version-script={folder}/versions"]
        tell("gcc", "-shared", "-fPIC", "-o", folder / file, folder / "code.c", f"-Wl,-soname,{file}", *versions)
    return folder


@pytest.mark.needs("gcc, nm and readelf")
@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if "cuda" in option.goes])
def test_the_real_parser_takes_every_option(stand_ins: Path, name: str):
    values = OPTIONS[name].values
    for value in values.words if isinstance(values, Choice) else [max(values.least, 1)]:
        assert "Unknown provider option" not in (said := refusal(stand_ins, {name: value}))
        assert "CUDA failure 100" in said, said


@pytest.mark.needs("gcc, nm and readelf")
def test_the_real_parser_refuses_another(stand_ins: Path):
    assert 'Unknown provider option: "memory"' in refusal(stand_ins, {}, {"memory": "1"})
    assert "Failed to parse" in refusal(stand_ins, {}, {"arena_extend_strategy": "double"})


def refusal(folder: Path, options: dict, raw: dict | None = None) -> str:
    """What a session on CUDA is refused with."""
    path = os.pathsep.join([str(folder), os.environ.get("LD_LIBRARY_PATH", "")])
    command = [sys.executable, "-c", CREATE, repr(options), repr(raw or {})]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": path})
    assert done.returncode == 1
    return done.stderr


def tell(*command: object) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
