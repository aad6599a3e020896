"""Make what the other runtimes of `speed.py` load: int4 decoders with the dimensions of a PerceptionLM checkpoint.

    python tests/benchmarks/peers.py CHECKPOINT FOLDER

FOLDER gets `llama.gguf` (Q4_0, random weights), `openvino` (int4, groups of 128) and `genai` (int4, blocks of 32), with
the checkpoint's weights. Needs the packages gguf, optimum-intel[openvino] and onnxruntime-genai, about 12 GB of
memory and 7 GB of disk.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PREFIX = "model.language_model."


def write_llama(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """The language model alone, as transformers saves one; its configuration."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    folder.mkdir(parents=True)
    tensors = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no dict
                if name.startswith(PREFIX):
                    tensors[f"model.{name.removeprefix(PREFIX)}"] = stored.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        **text,
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return config


def write_gguf(config: dict[str, Any], path: Path) -> None:
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType.Q4_0
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads, head_dim, vocab = config["num_key_value_heads"], config["head_dim"], config["vocab_size"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(vocab)
    writer.add_file_type(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"t{token}" for token in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    noise = np.random.default_rng(0).standard_normal((2048, 8192), dtype=np.float32)

    def add(name: str, rows: int, columns: int) -> None:
        values = np.resize(noise, (rows, columns)) / np.sqrt(columns)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", vocab, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(config["num_hidden_layers"]):
        shapes = {
            "attn_q": (heads * head_dim, hidden),
            "attn_k": (kv_heads * head_dim, hidden),
            "attn_v": (kv_heads * head_dim, hidden),
            "attn_output": (hidden, heads * head_dim),
            "ffn_gate": (wide, hidden),
            "ffn_up": (wide, hidden),
            "ffn_down": (hidden, wide),
        }
        for name, shape in shapes.items():
            add(f"blk.{layer}.{name}.weight", *shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    checkpoint, folder = map(Path, sys.argv[1:])
    config = write_llama(checkpoint, folder / "llama")
    write_gguf(config, folder / "llama.gguf")
    openvino = [
        Path(sys.executable).with_name("optimum-cli"),
        "export",
        "openvino",
        "--model",
        folder / "llama",
        "--task",
        "text-generation-with-past",
        "--weight-format",
        "int4",
        "--group-size",
        "128",
        "--ratio",
        "1.0",
        "--sym",
        folder / "openvino",
    ]
    genai = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        folder / "llama",
        "-o",
        folder / "genai",
        "-p",
        "int4",
        "-e",
        "cpu",
        "--extra_options",
        "int4_accuracy_level=4",
        "int4_block_size=32",
    ]
    for command in (openvino, genai):
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
